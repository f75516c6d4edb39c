/*
 * t/unit/crypto/key_test.c: the key a person keeps, and files with secrets.
 */
#include "unit/testing.h"

#include <errno.h>
#include <fcntl.h>

#include "crypto/keyring.h"

/* Bytes 0 to 31; written by another program from the format's page. */
#define GOLDEN "AAAQ-EAYE-AUDA-OCAJ-BIFQ-YDIO-B4IB-CEQT-CQKR-MFYY-DENB-WHA5-DYPR-EAA5"

typedef struct {
    char *dir;
    char path[300];
} fixture_t;

static int set_up(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    f->dir = test_dir();
    snprintf(f->path, sizeof f->path, "%s/secret", f->dir);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture_t *f = *state;
    test_dir_remove(f->dir);
    free(f);
    return 0;
}

static void write_secret(const fixture_t *f, const void *data, size_t len, mode_t mode)
{
    bk_err_t err = {0};
    OK(bk_publish_bytes(AT_FDCWD, f->path, mode, data, len, false, &err), &err);
    assert_int_equal(chmod(f->path, mode), 0);
}

static void golden_key(uint8_t key[BK_KEY_SIZE])
{
    for (uint8_t i = 0; i < BK_KEY_SIZE; i++)
        key[i] = i;
}

static void a_key_reads_as_56_characters_in_groups(void **state)
{
    (void)state;
    uint8_t key[BK_KEY_SIZE], back[BK_KEY_SIZE] = {0};
    char text[80];
    bk_err_t err = {0};
    golden_key(key);
    bk_key_encode(text, key);
    assert_string_equal(text, GOLDEN);
    OK(bk_key_decode(back, text, &err), &err);
    assert_memory_equal(back, key, sizeof key);
    for (int i = 0; i < 50; i++) {
        bk_key_generate(key);
        bk_key_encode(text, key);
        OK(bk_key_decode(back, text, &err), &err);
        assert_memory_equal(back, key, sizeof key);
    }
}

static void a_key_may_be_typed_in_any_case_and_grouping(void **state)
{
    (void)state;
    uint8_t key[BK_KEY_SIZE], back[BK_KEY_SIZE];
    bk_err_t err = {0};
    golden_key(key);
    OK(bk_key_decode(back, " aaaqeaye auda-ocajBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5  DYPREAA5 ", &err),
       &err);
    assert_memory_equal(back, key, sizeof key);
}

static void every_mistyped_character_is_noticed(void **state)
{
    (void)state;
    char text[] = GOLDEN;
    uint8_t key[BK_KEY_SIZE];
    for (size_t i = 0; i < sizeof text - 1; i++) {
        bk_err_t err = {0};
        char was = text[i];
        if (was == '-')
            continue;
        text[i] = was == 'A' ? 'B' : 'A';
        assert_int_equal(bk_key_decode(key, text, &err), BK_CONFIG);
        assert_non_null(strstr(err.text, "checksum"));
        text[i] = '1';
        assert_int_equal(bk_key_decode(key, text, &err), BK_CONFIG);
        text[i] = was;
    }
}

static void a_text_of_another_length_is_no_key(void **state)
{
    (void)state;
    uint8_t key[BK_KEY_SIZE];
    bk_err_t err = {0};
    assert_int_equal(bk_key_decode(key, "", &err), BK_CONFIG);
    assert_int_equal(bk_key_decode(key, "AAAQ-EAYE", &err), BK_CONFIG);
    assert_int_equal(bk_key_decode(key, GOLDEN "A", &err), BK_CONFIG);
    assert_int_equal(bk_key_decode(key, GOLDEN "-" GOLDEN, &err), BK_CONFIG);
}

static void a_key_file_has_comments_or_raw_bytes(void **state)
{
    fixture_t *f = *state;
    static const char text[] =
        "# key of the repository; keep a copy\n\n  " GOLDEN "   # made today\r\n";
    uint8_t key[BK_KEY_SIZE], back[BK_KEY_SIZE] = {0};
    bk_err_t err = {0};
    golden_key(key);
    write_secret(f, text, sizeof text - 1, 0600);
    OK(bk_key_read_file(f->path, back, &err), &err);
    assert_memory_equal(back, key, sizeof key);
    memset(back, 0, sizeof back);
    write_secret(f, key, sizeof key, 0640);
    OK(bk_key_read_file(f->path, back, &err), &err);
    assert_memory_equal(back, key, sizeof key);
}

static void a_key_split_over_two_lines_is_read(void **state)
{
    fixture_t *f = *state;
    char text[] = GOLDEN "\n";
    uint8_t key[BK_KEY_SIZE], back[BK_KEY_SIZE];
    bk_err_t err = {0};
    golden_key(key);
    text[34] = '\n';
    write_secret(f, text, sizeof text - 1, 0600);
    OK(bk_key_read_file(f->path, back, &err), &err);
    assert_memory_equal(back, key, sizeof key);
}

/* The first 32 characters of a key would otherwise be taken for a key of their own. */
static void a_cut_key_is_not_taken_for_raw_bytes(void **state)
{
    fixture_t *f = *state;
    uint8_t key[BK_KEY_SIZE];
    bk_err_t err = {0};
    write_secret(f, GOLDEN, BK_KEY_SIZE, 0600);
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
    assert_non_null(strstr(err.text, f->path));
}

static void a_key_file_with_more_in_it_is_refused(void **state)
{
    fixture_t *f = *state;
    uint8_t key[BK_KEY_SIZE];
    bk_err_t err = {0};
    char text[6000];
    memset(text, ' ', sizeof text);
    memcpy(text, GOLDEN, sizeof GOLDEN - 1);
    text[1000] = 'x'; /* behind many blanks */
    write_secret(f, text, 2000, 0600);
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
    text[1000] = '\0';
    write_secret(f, text, 2000, 0600);
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
    write_secret(f, text, sizeof text, 0600);
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
    write_secret(f, "", 0, 0600);
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
}

static void a_file_open_to_everybody_is_refused_with_the_remedy(void **state)
{
    fixture_t *f = *state;
    static const mode_t modes[] = {0604, 0602, 0601, 0644};
    uint8_t key[BK_KEY_SIZE];
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        bk_err_t err = {0};
        write_secret(f, GOLDEN, sizeof GOLDEN - 1, modes[i]);
        assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
        assert_non_null(strstr(err.text, "chmod o="));
        assert_null(strstr(err.text, "AAAQ"));
    }
}

static void what_is_no_regular_file_is_refused_at_once(void **state)
{
    fixture_t *f = *state;
    uint8_t key[BK_KEY_SIZE];
    bk_err_t err = {0};
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_NOT_FOUND);
    assert_int_equal(mkfifo(f->path, 0600), 0); /* nobody writes: opening it would wait */
    assert_int_equal(bk_key_read_file(f->path, key, &err), BK_CONFIG);
    assert_int_equal(bk_key_read_file(f->dir, key, &err), BK_CONFIG);
}

static void a_secret_is_the_first_line_of_its_file(void **state)
{
    fixture_t *f = *state;
    bk_buf_t out;
    bk_err_t err = {0};
    bk_buf_init(&out, 100);
    write_secret(f, "p\xc3\xa4ss word \nsecond", 18, 0600);
    OK(bk_secret_read_file(f->path, &out, &err), &err);
    assert_int_equal(out.len, 11);
    assert_memory_equal(out.data, "p\xc3\xa4ss word ", 11);
    write_secret(f, "other\r\n", 7, 0600);
    OK(bk_secret_read_file(f->path, &out, &err), &err);
    assert_int_equal(out.len, 5);
    assert_string_equal(bk_buf_str(&out), "other");
    write_secret(f, "no newline", 10, 0600);
    OK(bk_secret_read_file(f->path, &out, &err), &err);
    assert_int_equal(out.len, 10);
    bk_buf_wipe(&out);
}

static void a_secret_that_cannot_be_meant_is_refused(void **state)
{
    fixture_t *f = *state;
    bk_buf_t out;
    bk_err_t err = {0};
    char longer[200];
    bk_buf_init(&out, 100);
    write_secret(f, "", 0, 0600);
    assert_int_equal(bk_secret_read_file(f->path, &out, &err), BK_CONFIG);
    write_secret(f, "\nsecond", 7, 0600);
    assert_int_equal(bk_secret_read_file(f->path, &out, &err), BK_CONFIG);
    write_secret(f, "a\0b\n", 4, 0600);
    assert_int_equal(bk_secret_read_file(f->path, &out, &err), BK_CONFIG);
    memset(longer, 'x', sizeof longer);
    write_secret(f, longer, sizeof longer, 0600);
    assert_int_equal(bk_secret_read_file(f->path, &out, &err), BK_CONFIG);
    write_secret(f, "word\n", 5, 0604);
    assert_int_equal(bk_secret_read_file(f->path, &out, &err), BK_CONFIG);
    bk_buf_wipe(&out);
}

static void memory_for_secrets_starts_empty(void **state)
{
    (void)state;
    static const uint8_t zeros[5000];
    uint8_t *p = bk_secret_alloc(sizeof zeros);
    assert_non_null(p);
    assert_memory_equal(p, zeros, sizeof zeros);
    memset(p, 1, sizeof zeros);
    bk_secret_free(p, sizeof zeros);
    bk_secret_free(NULL, 10);
}

/* A core file of a worker is sent around by people who look for a crash. */
static void memory_for_secrets_is_left_out_of_core_files(void **state)
{
    (void)state;
    char line[300], address[32];
    bool inside = false, left_out = false;
    uint8_t *p = bk_secret_alloc(100);
    assert_non_null(p);
    snprintf(address, sizeof address, "%lx-", (unsigned long)(uintptr_t)p);
    FILE *maps = fopen("/proc/self/smaps", "re");
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps) != NULL) {
        if (strncmp(line, address, strlen(address)) == 0)
            inside = true;
        if (inside && strncmp(line, "VmFlags:", 8) == 0) {
            left_out = strstr(line, " dd") != NULL;
            break;
        }
    }
    fclose(maps);
    assert_true(inside);
    assert_true(left_out);
    bk_secret_free(p, 100);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_key_reads_as_56_characters_in_groups),
        TEST(a_key_may_be_typed_in_any_case_and_grouping),
        TEST(every_mistyped_character_is_noticed),
        TEST(a_text_of_another_length_is_no_key),
        TEST(a_key_file_has_comments_or_raw_bytes),
        TEST(a_key_split_over_two_lines_is_read),
        TEST(a_cut_key_is_not_taken_for_raw_bytes),
        TEST(a_key_file_with_more_in_it_is_refused),
        TEST(a_file_open_to_everybody_is_refused_with_the_remedy),
        TEST(what_is_no_regular_file_is_refused_at_once),
        TEST(a_secret_is_the_first_line_of_its_file),
        TEST(a_secret_that_cannot_be_meant_is_refused),
        TEST(memory_for_secrets_starts_empty),
        TEST(memory_for_secrets_is_left_out_of_core_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
