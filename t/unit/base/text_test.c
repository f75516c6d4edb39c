/*
 * t/unit/base/text_test.c: encodings, units, failure texts and log lines: reversible where they say
 * so, printable always.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/str.h"
#include "base/texts.h"
#include "unit/testing.h"

static void a_list_of_texts_is_sorted_and_has_each_once(void **state)
{
    bk_texts_t list = {0};
    char text[16];
    (void)state;
    bk_texts_sort(&list);
    assert_false(bk_texts_has(&list, "x"));
    for (unsigned i = 0; i < 300; i++) {
        bk_fmt(text, sizeof text, "%u", i * 7 % 150);
        assert_true(bk_texts_add(&list, text, i * 7 % 150));
    }
    assert_string_equal(list.items[1].text, "7");
    bk_texts_sort(&list);
    assert_int_equal(list.count, 150);
    for (size_t i = 0; i < list.count; i++) {
        assert_int_equal(strtoul(list.items[i].text, NULL, 10), list.items[i].size);
        assert_true(i == 0 || strcmp(list.items[i - 1].text, list.items[i].text) < 0);
    }
    assert_true(bk_texts_has(&list, "149"));
    assert_false(bk_texts_has(&list, "150"));
    bk_texts_cut(&list, 1);
    assert_int_equal(list.count, 1);
    assert_true(bk_texts_has(&list, "0"));
    bk_texts_free(&list);
    assert_int_equal(list.count, 0);
}

/* --- encodings --- */

static void hex_goes_both_ways(void **state)
{
    uint8_t bytes[256], back[256];
    char text[513];
    (void)state;
    for (size_t i = 0; i < 256; i++)
        bytes[i] = (uint8_t)i;
    bk_hex(text, bytes, sizeof bytes);
    assert_int_equal(strlen(text), 512);
    assert_memory_equal(text, "000102", 6);
    assert_string_equal(text + 506, "fdfeff");
    assert_true(bk_unhex(back, 256, text, 512));
    assert_memory_equal(back, bytes, 256);
    assert_true(bk_unhex(back, 2, "aBCd", 4));
    assert_memory_equal(back, "\xab\xcd", 2);
    assert_true(bk_unhex(back, 0, "", 0));
    assert_false(bk_unhex(back, 2, "abc", 3));
    assert_false(bk_unhex(back, 2, "abcde", 5));
    assert_false(bk_unhex(back, 2, "abcg", 4));
    assert_false(bk_unhex(back, 2, " abc", 4));
    assert_false(bk_unhex(back, 1, "0x", 2));
}

/* The vectors of RFC 4648, section 10, without padding. */
static void base32_is_that_of_its_standard(void **state)
{
    static const char *const vectors[][2] = {{"", ""},
                                             {"f", "MY"},
                                             {"fo", "MZXQ"},
                                             {"foo", "MZXW6"},
                                             {"foob", "MZXW6YQ"},
                                             {"fooba", "MZXW6YTB"},
                                             {"foobar", "MZXW6YTBOI"}};
    char text[32];
    uint8_t back[16];
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const char *plain = vectors[i][0];
        bk_base32(text, (const uint8_t *)plain, strlen(plain));
        assert_string_equal(text, vectors[i][1]);
        assert_int_equal(bk_unbase32(back, sizeof back, text), strlen(plain));
        assert_memory_equal(back, plain, strlen(plain));
    }
    assert_int_equal(bk_unbase32(back, sizeof back, "mzxw-6ytb oi"), 6);
    assert_memory_equal(back, "foobar", 6);
}

static void damaged_base32_is_refused(void **state)
{
    static const char *const wrong[] = {"MZ1",    "M8",   "MZXW=",   "M",      "MZX",
                                        "MZXW6Y", "A",    "AAA",     "AAAAAA", /* no length */
                                        "MZ",     "MZXR", "\xc3\xa4"};         /* bits left over */
    uint8_t back[3];
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(bk_unbase32(back, sizeof back, wrong[i]), -1);
    assert_int_equal(bk_unbase32(back, sizeof back, "MZXW6"), 3);
    assert_int_equal(bk_unbase32(back, sizeof back, "MZXW6YQ"), -1); /* four bytes */
}

static void base32_of_any_bytes_comes_back(void **state)
{
    uint8_t bytes[40], back[40];
    char text[80];
    (void)state;
    for (size_t len = 0; len <= sizeof bytes; len++) {
        test_fill(bytes, len, len);
        bk_base32(text, bytes, len);
        assert_int_equal(strlen(text), (len * 8 + 4) / 5);
        assert_int_equal(bk_unbase32(back, sizeof back, text), len);
        assert_memory_equal(back, bytes, len);
    }
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void ulids_differ_and_sort_by_time(void **state)
{
    enum { COUNT = 2000 };
    static char ids[COUNT][BK_ULID_LEN + 1];
    char first[BK_ULID_LEN + 1], later[BK_ULID_LEN + 1];
    (void)state;
    bk_ulid(first);
    for (size_t i = 0; i < COUNT; i++) {
        bk_ulid(ids[i]);
        assert_int_equal(strlen(ids[i]), BK_ULID_LEN);
        assert_int_equal(strspn(ids[i], "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), BK_ULID_LEN);
    }
    bk_sleep_ms(3);
    bk_ulid(later);
    qsort(ids, COUNT, sizeof *ids, by_text);
    for (size_t i = 1; i < COUNT; i++)
        assert_string_not_equal(ids[i - 1], ids[i]);
    assert_true(strncmp(first, ids[COUNT - 1], 10) <= 0);
    assert_true(strcmp(ids[0], later) < 0);
}

static void copies_that_do_not_fit_are_cut_and_say_so(void **state)
{
    char out[5];
    (void)state;
    assert_true(bk_strcpy(out, sizeof out, "four"));
    assert_string_equal(out, "four");
    assert_false(bk_strcpy(out, sizeof out, "fives"));
    assert_string_equal(out, "five");
    assert_false(bk_strcpy(out, 0, "x"));
    assert_true(bk_fmt(out, sizeof out, "%d", 1234));
    assert_false(bk_fmt(out, sizeof out, "%d", 12345));
    assert_string_equal(out, "1234");
    assert_null(bk_strdup(NULL));
    assert_null(bk_strndup(NULL, 3));
    char *copy = bk_strndup("abcdef", 3);
    assert_string_equal(copy, "abc");
    free(copy);
    copy = bk_strndup("ab", 30);
    assert_string_equal(copy, "ab");
    free(copy);
}

/* --- names --- */

static void names_that_are_no_text_are_escaped(void **state)
{
    static const char *const expected[][2] = {
        {"plain.txt", "plain.txt"},
        {"gr\xc3\xb6\xc3\x9f\x65 \xe2\x82\xac \xf0\x9f\x8e\xa4", NULL}, /* UTF-8 stays */
        {"a\nb", "a\\x0ab"},
        {"\x1b[31m", "\\x1b[31m"},
        {"\x7f", "\\x7f"},
        {"back\\slash", "back\\x5cslash"},
        {"\xff\xfe", "\\xff\\xfe"},
        {"\xc3", "\\xc3"},                            /* cut */
        {"\xc3(", "\\xc3("},                          /* no continuation */
        {"\xc0\xaf", "\\xc0\\xaf"},                   /* overlong */
        {"\xe0\x80\xaf", "\\xe0\\x80\\xaf"},          /* overlong */
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},          /* a surrogate */
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"}, /* past U+10FFFF */
        {"\xf5\x80\x80\x80", "\\xf5\\x80\\x80\\x80"},
        {"\xc2\x85", "\\xc2\\x85"}, /* a C1 control */
        {"", ""}};
    char out[64];
    uint8_t back[64];
    (void)state;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const char *name = expected[i][0], *text = expected[i][1] != NULL ? expected[i][1] : name;
        assert_int_equal(bk_name_escape(out, sizeof out, name, strlen(name)), strlen(text));
        assert_string_equal(out, text);
        assert_int_equal(bk_name_unescape(back, sizeof back, out), strlen(name));
        assert_memory_equal(back, name, strlen(name));
    }
}

static void any_name_comes_back(void **state)
{
    uint64_t seed = 11;
    (void)state;
    for (unsigned round = 0; round < 3000; round++) {
        uint8_t name[40], back[40];
        char out[4 * sizeof name + 1];
        size_t len = test_random(&seed) % (sizeof name + 1);
        for (size_t i = 0; i < len; i++) /* half of it looks like UTF-8 and escapes */
            name[i] = round % 2 == 0
                          ? (uint8_t)test_random(&seed)
                          : (uint8_t) "\\x0\xc3\xa9\xe2\x82\xac\xf0\x9f"[test_random(&seed) % 10];
        bk_name_escape(out, sizeof out, name, len);
        assert_int_equal(bk_name_unescape(back, sizeof back, out), len);
        assert_memory_equal(back, name, len);
    }
}

static void a_name_is_cut_at_a_whole_character(void **state)
{
    char out[8];
    (void)state;
    assert_int_equal(bk_name_escape(out, 5, "ab\nc", 4), 2); /* no half escape */
    assert_string_equal(out, "ab");
    assert_int_equal(bk_name_escape(out, 4, "ab\xc3\xa4", 4), 2);
    assert_string_equal(out, "ab");
    assert_int_equal(bk_name_escape(out, 5, "ab\xc3\xa4", 4), 4);
    assert_int_equal(bk_name_escape(out, 1, "ab", 2), 0);
    assert_string_equal(out, "");
    assert_int_equal(bk_name_escape(NULL, 0, "ab", 2), 0);
}

static void escapes_that_nobody_wrote_are_refused(void **state)
{
    static const char *const wrong[] = {"\\", "\\x", "\\x1", "\\n", "\\xzz", "a\\", "\\\\"};
    uint8_t back[4];
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(bk_name_unescape(back, sizeof back, wrong[i]), -1);
    assert_int_equal(bk_name_unescape(back, 2, "abc"), -1);
    assert_int_equal(bk_name_unescape(back, 0, ""), 0);
}

static void printable_keeps_escapes_and_tells_when_it_cuts(void **state)
{
    char out[10];
    (void)state;
    assert_true(bk_printable(out, sizeof out, "a\\x0ab"));
    assert_string_equal(out, "a\\x0ab");
    assert_true(bk_printable(out, sizeof out, "a\xff"));
    assert_string_equal(out, "a\\xff");
    assert_false(bk_printable(out, sizeof out, "1234567\n"));
    assert_string_equal(out, "1234567");
    assert_false(bk_printable(out, sizeof out, "12345678\xc3\xa4"));
    assert_string_equal(out, "12345678");
}

/* --- units --- */

static void sizes_are_nginx_sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } right[] = {{"0", 0},
                 {"10", 10},
                 {"64k", 65536},
                 {"16m", 16 << 20},
                 {"2G", 2ull << 30},
                 {"1t", 1ull << 40},
                 {"007K", 7168},
                 {"18446744073709551615", UINT64_MAX},
                 {"16777215t", 16777215ull << 40}};
    static const char *const wrong[] = {"",
                                        "k",
                                        "1kk",
                                        "1 k",
                                        "-1",
                                        "+1",
                                        "1b",
                                        "1e3",
                                        "0x10",
                                        "1.5",
                                        " 1",
                                        "1k ",
                                        "18446744073709551616",
                                        "16777216t",
                                        "99999999999999999999"};
    uint64_t bytes;
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        assert_true(bk_parse_size(right[i].text, &bytes));
        assert_int_equal(bytes, right[i].bytes);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(bk_parse_size(wrong[i], &bytes));
}

static void durations_are_nginx_durations(void **state)
{
    static const struct {
        const char *text;
        uint64_t ms;
    } right[] = {{"0", 0},           {"10", 10000},       {"250ms", 250},      {"10s", 10000},
                 {"15m", 900000},    {"6h", 21600000},    {"30d", 2592000000}, {"2w", 1209600000},
                 {"1M", 2592000000}, {"1y", 31536000000}, {"1h30m", 5400000},  {"1m30", 90000}};
    static const char *const wrong[] = {"",
                                        "s",
                                        "1x",
                                        "1 s",
                                        "1mss",
                                        "-1s",
                                        "1.5h",
                                        "1h30x",
                                        "1H",
                                        "584942418y",
                                        "18446744073709551615s"};
    uint64_t ms;
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        assert_true(bk_parse_duration(right[i].text, &ms));
        assert_int_equal(ms, right[i].ms);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(bk_parse_duration(wrong[i], &ms));
}

/* --- failures --- */

static void each_failure_has_its_facts(void **state)
{
    (void)state;
    assert_string_equal(bk_rc_code(BK_NO_SPACE), "NoSpace");
    assert_int_equal(bk_rc_http(BK_NO_SPACE), 507);
    assert_int_equal(bk_rc_exit(BK_REPO_MISSING), 10);
    assert_int_equal(bk_rc_exit(BK_INTERRUPTED), 130);
    assert_int_equal(bk_rc_http(BK_OK), 200);
    assert_int_equal(bk_rc_exit(BK_OK), 0);
    assert_string_equal(bk_rc_title(BK_BUSY), "The database is in use");
    assert_string_equal(bk_rc_code((bk_rc_t)9999), "Failed");
    assert_int_equal(bk_rc_http((bk_rc_t)-1), 500);
    for (int rc = 1; rc <= BK_UNAVAILABLE; rc++) {
        assert_true(bk_rc_exit((bk_rc_t)rc) > 0);
        assert_true(bk_rc_http((bk_rc_t)rc) >= 400);
    }
}

static void a_failed_call_is_told_by_its_errno(void **state)
{
    static const struct {
        int sys;
        bk_rc_t rc;
    } expected[] = {{ENOSPC, BK_NO_SPACE},   {EDQUOT, BK_NO_SPACE},
                    {EACCES, BK_DENIED},     {EPERM, BK_DENIED},
                    {EROFS, BK_DENIED},      {ENOENT, BK_NOT_FOUND},
                    {ENOTDIR, BK_NOT_FOUND}, {EEXIST, BK_EXISTS},
                    {ENOMEM, BK_NO_MEMORY},  {EIO, BK_IO},
                    {ELOOP, BK_IO}};
    bk_err_t err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        assert_int_equal(bk_err_sys(&err, expected[i].sys, "write %s", "x"), expected[i].rc);
        assert_int_equal(err.rc, expected[i].rc);
        assert_int_equal(err.sys, expected[i].sys);
        assert_int_equal(bk_err_sys(NULL, expected[i].sys, "write"), expected[i].rc);
    }
    bk_err_sys(&err, ENOSPC, "write %s", "a/b");
    assert_string_equal(err.text, "write a/b: No space left on device");
    bk_err_sys(&err, EROFS, "write %s", "a/b");
    assert_string_equal(err.text, "write a/b: Read-only file system; mount it writable");
    bk_err_clear(&err);
    assert_int_equal(err.rc, BK_OK);
    assert_int_equal(err.sys, 0);
    assert_string_equal(err.text, "");
    bk_err_clear(NULL);
}

static void context_goes_in_front_and_remedy_behind(void **state)
{
    bk_err_t err = {0};
    (void)state;
    bk_err_sys(&err, EIO, "fsync");
    assert_int_equal(bk_err_wrap(&err, "local %s: write %s", "disk", "a"), BK_IO);
    assert_int_equal(bk_err_remedy(&err, "look at %s", "the disk"), BK_IO);
    assert_string_equal(err.text,
                        "local disk: write a: fsync: Input/output error; look at the disk");
    assert_int_equal(err.sys, EIO);
    assert_int_equal(bk_err_wrap(NULL, "x"), BK_FAILED);
    assert_int_equal(bk_err_remedy(NULL, "x"), BK_FAILED);
    /* The old text may be part of the new one. */
    assert_int_equal(bk_err_set(&err, BK_CORRUPT, "before: %s", err.text), BK_CORRUPT);
    assert_string_equal(err.text, "before: local disk: write a: fsync: Input/output error; "
                                  "look at the disk");
    assert_int_equal(err.sys, 0);
    assert_int_equal(bk_err_set(NULL, BK_BUSY, "nobody asks"), BK_BUSY);
}

static void texts_are_printable_whatever_a_name_holds(void **state)
{
    bk_err_t err = {0};
    (void)state;
    bk_err_set(&err, BK_FAILED, "read %s", "evil\nname\x1b[2J\xff\xc3\xa4");
    assert_string_equal(err.text, "read evil\\x0aname\\x1b[2J\\xff\xc3\xa4");
    bk_err_wrap(&err, "in %s", "a\tb");
    assert_string_equal(err.text, "in a\\x09b: read evil\\x0aname\\x1b[2J\\xff\xc3\xa4");
}

static void a_long_text_ends_in_dots(void **state)
{
    char name[3 * BK_ERR_TEXT];
    bk_err_t err = {0};
    (void)state;
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    for (size_t len = BK_ERR_TEXT - 40; len < BK_ERR_TEXT + 40; len++) {
        name[len] = '\0';
        bk_err_set(&err, BK_FAILED, "%s", name);
        size_t kept = strlen(err.text);
        assert_true(kept < BK_ERR_TEXT);
        if (len < BK_ERR_TEXT)
            assert_string_equal(err.text, name);
        else
            assert_string_equal(err.text + kept - 3, "...");
        bk_err_wrap(&err, "around");
        assert_memory_equal(err.text, "around: nnn", 11);
        bk_err_remedy(&err, "do that");
        kept = strlen(err.text);
        assert_true(kept < BK_ERR_TEXT);
        assert_true(strcmp(err.text + kept - 3, "...") == 0 ||
                    strcmp(err.text + kept - 9, "; do that") == 0);
        name[len] = 'n';
    }
    /* Neither a character nor an escape is cut in two. */
    for (size_t shift = 0; shift < 4; shift++) {
        for (size_t i = 0; i < sizeof name - 1; i++)
            name[i] = i < shift ? 'a' : "\xe2\x82\xac"[(i - shift) % 3];
        bk_err_set(&err, BK_FAILED, "%s", name);
        size_t kept = strlen(err.text);
        assert_string_equal(err.text + kept - 3, "...");
        err.text[kept - 3] = '\0';
        assert_int_equal((kept - 3 - shift) % 3, 0);
        assert_null(strchr(err.text, '\\'));
    }
}

/* --- log --- */

static struct {
    char line[4096];
    bk_log_level_t level;
    unsigned count;
} logged;

static void keep_line(void *data, bk_log_level_t level, const char *line)
{
    assert_ptr_equal(data, &logged);
    bk_strcpy(logged.line, sizeof logged.line, line);
    logged.level = level;
    logged.count++;
}

static void log_lines_are_single_printable_and_bounded(void **state)
{
    char text[5000];
    (void)state;
    bk_log_set(keep_line, &logged, BK_LOG_INFO);
    bk_log(BK_LOG_NOTICE, "one %s", "line\nforged: \xff");
    assert_string_equal(logged.line, "one line\\x0aforged: \\xff");
    assert_int_equal(logged.level, BK_LOG_NOTICE);
    bk_log(BK_LOG_DEBUG, "too verbose");
    assert_int_equal(logged.count, 1);
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    bk_log(BK_LOG_ERROR, "%s", text);
    assert_int_equal(logged.count, 2);
    assert_int_equal(strlen(logged.line), 2047);
    bk_log_set(NULL, NULL, BK_LOG_WARN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_of_texts_is_sorted_and_has_each_once),
        cmocka_unit_test(hex_goes_both_ways),
        cmocka_unit_test(base32_is_that_of_its_standard),
        cmocka_unit_test(damaged_base32_is_refused),
        cmocka_unit_test(base32_of_any_bytes_comes_back),
        cmocka_unit_test(ulids_differ_and_sort_by_time),
        cmocka_unit_test(copies_that_do_not_fit_are_cut_and_say_so),
        cmocka_unit_test(names_that_are_no_text_are_escaped),
        cmocka_unit_test(any_name_comes_back),
        cmocka_unit_test(a_name_is_cut_at_a_whole_character),
        cmocka_unit_test(escapes_that_nobody_wrote_are_refused),
        cmocka_unit_test(printable_keeps_escapes_and_tells_when_it_cuts),
        cmocka_unit_test(sizes_are_nginx_sizes),
        cmocka_unit_test(durations_are_nginx_durations),
        cmocka_unit_test(each_failure_has_its_facts),
        cmocka_unit_test(a_failed_call_is_told_by_its_errno),
        cmocka_unit_test(context_goes_in_front_and_remedy_behind),
        cmocka_unit_test(texts_are_printable_whatever_a_name_holds),
        cmocka_unit_test(a_long_text_ends_in_dots),
        cmocka_unit_test(log_lines_are_single_printable_and_bounded),
    };
    return cmocka_run_group_tests_name("base/text", tests, NULL, NULL);
}
