/*
 * t/unit/storage/local_test.c: the local driver: what every driver must do, and what can go wrong
 * with a directory on a disk.
 */
#include "unit/storage/conformance.h"

#include <dirent.h>
#include <sys/wait.h>
#include <time.h>

static void local_config(bk_storage_config_t *config, const char *path)
{
    bk_err_t err = {0};
    config->driver = bk_strdup("local");
    config->name = bk_strdup("disk");
    OK(bk_storage_config_set(config, "path", path, &err), &err);
}

static void conformance_config(bk_storage_config_t *config, const char *dir)
{
    char path[512];
    bk_fmt(path, sizeof path, "%s/storage", dir);
    local_config(config, path);
}

static bk_storage_t *open_at(const char *path)
{
    bk_storage_config_t config = {0};
    bk_storage_t *st = NULL;
    bk_err_t err = {0};
    local_config(&config, path);
    OK(bk_storage_open(&config, &st, &err), &err);
    bk_storage_config_free(&config);
    return st;
}

/* --- configuration --- */

static void settings_are_checked_without_touching_the_disk(void **state)
{
    static const struct {
        const char *key, *value, *says;
    } wrong[] = {{"bucket", "b", "unknown setting \"bucket\""},
                 {"path", "relative", "must be an absolute path"},
                 {"path", "", "must be an absolute path"},
                 {"path", "/", "must be an absolute path"},
                 {"path", "///", "must be an absolute path"},
                 {NULL, NULL, "\"path\" is missing"}};
    bk_err_t err = {0};
    bk_storage_t *st = NULL;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("disk")};
        if (wrong[i].key != NULL)
            OK(bk_storage_config_set(&config, wrong[i].key, wrong[i].value, &err), &err);
        assert_int_equal(bk_storage_config_check(&config, &err), BK_CONFIG);
        assert_non_null(strstr(err.text, wrong[i].says));
        assert_non_null(strstr(err.text, "disk"));
        assert_int_equal(bk_storage_open(&config, &st, &err), BK_CONFIG);
        assert_null(st);
        bk_storage_config_free(&config);
    }
    bk_storage_config_t config = {0};
    local_config(&config, "/never/looked/at");
    OK(bk_storage_config_check(&config, &err), &err);
    assert_string_equal(bk_storage_config_get(&config, "path"), "/never/looked/at");
    assert_null(bk_storage_config_get(&config, "other"));
    assert_int_equal(bk_storage_config_set(&config, "path", "/b", &err), BK_CONFIG);
    assert_string_equal(bk_storage_config_get(&config, "path"), "/never/looked/at");
    bk_storage_config_free(&config);
    bk_storage_config_free(&config);
    bk_storage_config_free(NULL);
}

static void an_unknown_driver_is_answered_with_those_there_are(void **state)
{
    bk_storage_config_t config = {.driver = bk_strdup("tape"), .name = bk_strdup("t")};
    bk_storage_t *st = NULL;
    bk_err_t err = {0};
    (void)state;
    OK(bk_storage_driver_check("local", &err), &err);
    assert_int_equal(bk_storage_driver_check("tape", &err), BK_UNSUPPORTED);
    assert_non_null(strstr(err.text, "\"tape\""));
    assert_non_null(strstr(err.text, "local"));
    assert_int_equal(bk_storage_config_check(&config, &err), BK_UNSUPPORTED);
    assert_int_equal(bk_storage_open(&config, &st, &err), BK_UNSUPPORTED);
    bk_storage_config_free(&config);
    assert_int_equal(bk_storage_open(&config, &st, &err), BK_UNSUPPORTED);
    bk_storage_close(NULL);
}

static void urls_become_configurations(void **state)
{
    static const char *const right[][2] = {{"file:///mnt/backup", "/mnt/backup"},
                                           {"file://localhost/mnt/b", "/mnt/b"},
                                           {"file:///mnt/my%20disk/50%25", "/mnt/my disk/50%"},
                                           {"file:///mnt/my disk", "/mnt/my disk"}};
    static const char *const wrong[][2] = {{"file://mnt/backup", "file:///absolute/path"},
                                           {"file://", "file:///absolute/path"},
                                           {"file:///a%2", "%25"},
                                           {"file:///a%zz", "%25"},
                                           {"file:///a%00b", "%25"},
                                           {"s9://bucket", "file://"},
                                           {"/mnt/backup", "file://"},
                                           {"", "file://"}};
    bk_storage_config_t config;
    bk_err_t err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        OK(bk_storage_config_url(&config, right[i][0], &err), &err);
        assert_string_equal(config.driver, "local");
        assert_string_equal(bk_storage_config_get(&config, "path"), right[i][1]);
        OK(bk_storage_config_check(&config, &err), &err);
        bk_storage_config_free(&config);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(bk_storage_config_url(&config, wrong[i][0], &err), BK_INVALID);
        assert_non_null(strstr(err.text, wrong[i][1]));
        assert_null(config.driver);
        assert_int_equal(config.count, 0);
    }
}

/* --- the directory --- */

static void opening_and_reading_create_nothing(void **state)
{
    store_t *s = *state;
    uint64_t size;
    seen_t seen = {0};
    is_missing(s, "a");
    assert_int_equal(bk_storage_size(s->st, "a", &size, NULL, &s->err), BK_NOT_FOUND);
    assert_int_equal(bk_storage_list(s->st, "", see, &seen, NULL, &s->err), BK_NOT_FOUND);
    OK(bk_storage_remove(s->st, "a", NULL, &s->err), &s->err);
    assert_int_equal(access(bk_storage_local_path(s->st), F_OK), -1);
}

static void others_cannot_read_what_is_written(void **state)
{
    static const char *const names[] = {"", "/packs", "/packs/aa", "/packs/aa/one"};
    store_t *s = *state;
    mode_t before = umask(0);
    put_text(s, "packs/aa/one", "x");
    umask(before);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct stat st;
        char path[512];
        bk_fmt(path, sizeof path, "%s%s", bk_storage_local_path(s->st), names[i]);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, i < 3 ? 0700 : 0600);
    }
}

static void a_missing_directory_above_is_not_made_up(void **state)
{
    store_t *s = *state;
    char path[512], file[512];
    bk_fmt(path, sizeof path, "%s/not/mounted", s->dir);
    bk_storage_t *st = open_at(path);
    assert_int_equal(bk_storage_put(st, "a", "x", 1, false, NULL, &s->err), BK_STORAGE);
    assert_non_null(strstr(s->err.text, path));
    assert_non_null(strstr(s->err.text, "create it"));
    make_file(s, "spooled", 1, 10, file);
    assert_int_equal(bk_storage_put_file(st, "a", file, NULL, &s->err), BK_STORAGE);
    bk_storage_close(st);
    bk_fmt(path, sizeof path, "%s/not", s->dir);
    assert_int_equal(access(path, F_OK), -1);
}

static void a_file_in_place_of_the_directory_is_said(void **state)
{
    store_t *s = *state;
    char path[512];
    uint64_t size;
    seen_t seen = {0};
    make_file(s, "file", 1, 10, path);
    bk_storage_t *st = open_at(path);
    assert_int_equal(bk_storage_put(st, "a", "x", 1, false, NULL, &s->err), BK_STORAGE);
    assert_non_null(strstr(s->err.text, "is not a directory"));
    assert_int_equal(bk_storage_size(st, "a", &size, NULL, &s->err), BK_STORAGE);
    assert_int_equal(bk_storage_list(st, "", see, &seen, NULL, &s->err), BK_STORAGE);
    assert_non_null(strstr(s->err.text, "local disk: list: "));
    bk_storage_close(st);
}

static void an_object_in_place_of_a_directory_is_said(void **state)
{
    store_t *s = *state;
    char file[512];
    put_text(s, "packs", "in the way");
    assert_int_equal(bk_storage_put(s->st, "packs/aa/one", "x", 1, false, NULL, &s->err),
                     BK_STORAGE);
    assert_non_null(strstr(s->err.text, "Not a directory"));
    make_file(s, "spooled", 1, 10, file);
    assert_int_equal(bk_storage_put_file(s->st, "packs/aa/one", file, NULL, &s->err), BK_STORAGE);
    holds_text(s, "packs", "in the way");
    put_text(s, "dir/one", "x");
    assert_int_equal(bk_storage_remove(s->st, "dir", NULL, &s->err), BK_STORAGE);
    holds_text(s, "dir/one", "x");
}

/* Run by another user than root: root may do everything. */
static void as_nobody(void (*fn)(store_t *s), store_t *s)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(99);
        fn(s);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* assert in a child: cmocka's own would jump back into the parent's test. */
#define MUST(expression)                                                                           \
    do {                                                                                           \
        if (!(expression)) {                                                                       \
            fprintf(stderr, "line %d: not so: %s: %s\n", __LINE__, #expression, s->err.text);      \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static void write_where_it_is_denied(store_t *s)
{
    char text[512];
    uint8_t out[1];
    size_t got;
    uint64_t size;
    MUST(bk_storage_put(s->st, "aa/new", "x", 1, false, NULL, &s->err) == BK_DENIED);
    bk_fmt(text, sizeof text, "local disk: write aa/new: ");
    MUST(strncmp(s->err.text, text, strlen(text)) == 0);
    bk_fmt(text, sizeof text, "give this process's user access to %s",
           bk_storage_local_path(s->st));
    MUST(strstr(s->err.text, text) != NULL);
    MUST(strstr(s->err.text, "write aa/new: write") == NULL);
    MUST(bk_storage_put(s->st, "bb/new", "x", 1, true, NULL, &s->err) == BK_DENIED);
    MUST(bk_storage_put_file(s->st, "aa/new", "/etc/passwd", NULL, &s->err) == BK_DENIED);
    MUST(bk_storage_remove(s->st, "aa/one", NULL, &s->err) == BK_DENIED);
    /* Readable is enough for reading. */
    MUST(bk_storage_size(s->st, "aa/one", &size, NULL, &s->err) == BK_OK && size == 1);
    MUST(bk_storage_get(s->st, "aa/one", 0, 1, out, &got, NULL, &s->err) == BK_OK && got == 1);
}

static void modes(store_t *s, const char *name, mode_t mode)
{
    char path[512];
    bk_fmt(path, sizeof path, "%s%s", bk_storage_local_path(s->st), name);
    assert_int_equal(chmod(path, mode), 0);
}

static void denied_access_names_the_directory(void **state)
{
    store_t *s = *state;
    put_text(s, "aa/one", "x");
    modes(s, "/aa/one", 0444);
    modes(s, "/aa", 0555);
    modes(s, "", 0555);
    as_nobody(write_where_it_is_denied, s);
    modes(s, "", 0700);
    modes(s, "/aa", 0700);
}

static void list_what_is_closed(store_t *s)
{
    seen_t seen = {0};
    MUST(bk_storage_list(s->st, "", see, &seen, NULL, &s->err) == BK_DENIED);
    MUST(strstr(s->err.text, "closed/") != NULL);
    MUST(strcmp(seen.text, "aa/one=1 ") == 0);
}

static void a_directory_that_cannot_be_read_fails_the_listing(void **state)
{
    store_t *s = *state;
    put_text(s, "aa/one", "x");
    put_text(s, "closed/two", "x");
    modes(s, "/aa", 0755);
    modes(s, "", 0755);
    as_nobody(list_what_is_closed, s);
}

static void make_below(store_t *s, const char *name, const char *text, time_t age)
{
    char path[512];
    bk_fmt(path, sizeof path, "%s/%s", bk_storage_local_path(s->st), name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    OK(bk_write_all(fd, text, strlen(text), path, &s->err), &s->err);
    close(fd);
    struct timespec times[2] = {{.tv_sec = time(NULL) - age}, {.tv_sec = time(NULL) - age}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static bool is_below(const store_t *s, const char *name)
{
    char path[512];
    struct stat st;
    bk_fmt(path, sizeof path, "%s/%s", bk_storage_local_path(s->st), name);
    return lstat(path, &st) == 0;
}

static void old_temporaries_are_swept_by_the_next_writer(void **state)
{
    enum { YOUNG = 3600, OLD = 2 * 86400 };
    store_t *s = *state;
    seen_t seen;
    put_text(s, "packs/aa/one", "x");
    make_below(s, "packs/aa/.tmp-OLD", "half", OLD);
    make_below(s, "packs/.tmp-OLD", "half", OLD);
    make_below(s, ".tmp-OLD", "half", OLD);
    make_below(s, ".tmp-YOUNG", "half", YOUNG);
    make_below(s, "packs/aa/.other-OLD", "not ours", OLD);
    make_below(s, "packs/aa/object", "old, but an object", OLD);
    bk_storage_t *st = open_at(bk_storage_local_path(s->st));
    bk_storage_close(s->st);
    s->st = st;
    assert_string_equal(list_text(s, "", &seen), "packs/aa/object=18 packs/aa/one=1 ");
    assert_true(is_below(s, ".tmp-OLD")); /* a reader changes nothing */
    put_text(s, "keys/1", "x");
    assert_false(is_below(s, ".tmp-OLD"));
    assert_false(is_below(s, "packs/.tmp-OLD"));
    assert_false(is_below(s, "packs/aa/.tmp-OLD"));
    assert_true(is_below(s, ".tmp-YOUNG"));
    assert_true(is_below(s, "packs/aa/.other-OLD"));
    assert_string_equal(list_text(s, "", &seen), "keys/1=1 packs/aa/object=18 packs/aa/one=1 ");
}

static void a_refused_object_leaves_no_temporary(void **state)
{
    store_t *s = *state;
    put_text(s, "one", "x");
    assert_int_equal(bk_storage_put(s->st, "one", "y", 1, true, NULL, &s->err), BK_EXISTS);
    DIR *d = opendir(bk_storage_local_path(s->st));
    struct dirent *entry;
    assert_non_null(d);
    while ((entry = readdir(d)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            assert_string_equal(entry->d_name, "one");
    closedir(d);
}

static void what_is_no_plain_file_is_no_object(void **state)
{
    store_t *s = *state;
    char path[512];
    uint8_t out[10];
    size_t got;
    seen_t seen;
    put_text(s, "aa/one", "x");
    make_below(s, "aa/lost+found", "a foreign name", 0);
    bk_fmt(path, sizeof path, "%s/aa/pipe", bk_storage_local_path(s->st));
    assert_int_equal(mkfifo(path, 0600), 0);
    bk_fmt(path, sizeof path, "%s/aa/link", bk_storage_local_path(s->st));
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_string_equal(list_text(s, "", &seen), "aa/one=1 ");
    is_missing(s, "aa/pipe");
    is_missing(s, "aa/link");
    /* A pipe must not hang its reader. */
    assert_int_equal(bk_storage_get(s->st, "aa/pipe", 0, 1, out, &got, NULL, &s->err),
                     BK_NOT_FOUND);
    assert_int_not_equal(bk_storage_get(s->st, "aa/link", 0, 1, out, &got, NULL, &s->err), BK_OK);
}

static void a_linked_directory_is_listed_as_it_is_read(void **state)
{
    store_t *s = *state;
    char path[512], target[512];
    seen_t seen;
    put_text(s, "keys/1", "x");
    bk_fmt(target, sizeof target, "%s/elsewhere", s->dir);
    bk_fmt(path, sizeof path, "%s/packs", bk_storage_local_path(s->st));
    assert_int_equal(mkdir(target, 0700), 0);
    assert_int_equal(symlink(target, path), 0);
    put_text(s, "packs/aa/one", "x");
    holds_text(s, "packs/aa/one", "x");
    assert_string_equal(list_text(s, "packs/", &seen), "packs/aa/one=1 ");
    assert_string_equal(list_text(s, "", &seen), "keys/1=1 packs/aa/one=1 ");
}

static void a_directory_mounted_anew_is_the_one_that_is_used(void **state)
{
    store_t *s = *state;
    char away[512];
    put_text(s, "aa/one", "old");
    bk_fmt(away, sizeof away, "%s/away", s->dir);
    assert_int_equal(rename(bk_storage_local_path(s->st), away), 0);
    is_missing(s, "aa/one");
    assert_int_equal(mkdir(bk_storage_local_path(s->st), 0700), 0);
    put_text(s, "aa/one", "new");
    holds_text(s, "aa/one", "new");
}

static ino_t inode_of(const char *path, dev_t *device)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    *device = st.st_dev;
    return st.st_ino;
}

static void a_file_of_the_same_file_system_is_linked(void **state)
{
    store_t *s = *state;
    char path[512], object[512];
    dev_t a, b;
    make_file(s, "spooled", 1, 100, path);
    OK(bk_storage_put_file(s->st, "packs/aa/one", path, NULL, &s->err), &s->err);
    bk_fmt(object, sizeof object, "%s/packs/aa/one", bk_storage_local_path(s->st));
    assert_int_equal(inode_of(path, &a), inode_of(object, &b));
    assert_int_equal(a, b);
}

static void a_file_of_another_file_system_is_copied(void **state)
{
    enum { LEN = (13u << 20) + 17 };
    store_t *s = *state;
    char there[] = "/dev/shm/ngx-backup-test-XXXXXX", *here = s->dir, path[512];
    dev_t a, b;
    if (mkdtemp(there) == NULL || inode_of(here, &a) == 0 || inode_of(there, &b) == 0 || a == b) {
        rmdir(there);
        SKIP_TEST();
    }
    s->dir = there;
    make_file(s, "spooled", 5, LEN, path);
    s->dir = here;
    bk_rc_t rc = bk_storage_put_file(s->st, "packs/aa/one", path, NULL, &s->err);
    bk_rc_t again = bk_storage_put_file(s->st, "packs/aa/one", path, NULL, &s->err);
    unlink(path);
    rmdir(there);
    OK(rc, &s->err);
    OK(again, &s->err);
    holds_fill(s, "packs/aa/one", 5, LEN);
}

static void free_space_is_that_of_the_directory_to_come(void **state)
{
    store_t *s = *state;
    uint64_t bytes = 0;
    char path[512];
    assert_int_equal(access(bk_storage_local_path(s->st), F_OK), -1);
    OK(bk_storage_free_space(s->st, &bytes, &s->err), &s->err);
    assert_true(bytes > 0 && bytes < UINT64_MAX);
    bk_fmt(path, sizeof path, "%s/not/mounted", s->dir);
    bk_storage_t *st = open_at(path);
    assert_int_equal(bk_storage_free_space(st, &bytes, &s->err), BK_NOT_FOUND);
    bk_storage_close(st);
}

static void a_trailing_slash_means_the_same_directory(void **state)
{
    store_t *s = *state;
    char path[512];
    bk_fmt(path, sizeof path, "%s///", bk_storage_local_path(s->st));
    bk_storage_t *st = open_at(path);
    assert_string_equal(bk_storage_local_path(st), bk_storage_local_path(s->st));
    OK(bk_storage_put(st, "a", "x", 1, true, NULL, &s->err), &s->err);
    holds_text(s, "a", "x");
    bk_storage_close(st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CONFORMANCE_TESTS,
        cmocka_unit_test(settings_are_checked_without_touching_the_disk),
        cmocka_unit_test(an_unknown_driver_is_answered_with_those_there_are),
        cmocka_unit_test(urls_become_configurations),
        STORE_TEST(opening_and_reading_create_nothing),
        STORE_TEST(others_cannot_read_what_is_written),
        STORE_TEST(a_missing_directory_above_is_not_made_up),
        STORE_TEST(a_file_in_place_of_the_directory_is_said),
        STORE_TEST(an_object_in_place_of_a_directory_is_said),
        STORE_TEST(denied_access_names_the_directory),
        STORE_TEST(a_directory_that_cannot_be_read_fails_the_listing),
        STORE_TEST(old_temporaries_are_swept_by_the_next_writer),
        STORE_TEST(a_refused_object_leaves_no_temporary),
        STORE_TEST(what_is_no_plain_file_is_no_object),
        STORE_TEST(a_linked_directory_is_listed_as_it_is_read),
        STORE_TEST(a_directory_mounted_anew_is_the_one_that_is_used),
        STORE_TEST(a_file_of_the_same_file_system_is_linked),
        STORE_TEST(a_file_of_another_file_system_is_copied),
        STORE_TEST(free_space_is_that_of_the_directory_to_come),
        STORE_TEST(a_trailing_slash_means_the_same_directory),
    };
    return cmocka_run_group_tests_name("storage/local", tests, NULL, NULL);
}
