/*
 * t/unit/base/publish_test.c: a file comes into being whole or not at all, and trees are removed
 * without leaving them.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "base/str.h"
#include "unit/testing.h"

typedef struct {
    char *dir;
    bk_err_t err;
    char path[4][512];
    unsigned turn;
} place_t;

static int place_setup(void **state)
{
    place_t *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->dir = test_dir();
    *state = p;
    return 0;
}

static int place_teardown(void **state)
{
    place_t *p = *state;
    test_dir_remove(p->dir);
    free(p);
    return 0;
}

/* Valid until the fourth call from here. */
static const char *in(place_t *p, const char *name)
{
    char *path = p->path[p->turn++ % 4];
    bk_fmt(path, 512, "%s/%s", p->dir, name);
    return path;
}

static void make(place_t *p, const char *name, const char *text)
{
    OK(bk_publish_bytes(AT_FDCWD, in(p, name), 0600, text, strlen(text), false, &p->err), &p->err);
}

static void holds(place_t *p, const char *name, const char *text)
{
    bk_buf_t out;
    bk_buf_init(&out, 1000);
    OK(bk_read_file(AT_FDCWD, in(p, name), &out, &p->err), &p->err);
    assert_int_equal(out.len, strlen(text));
    assert_memory_equal(out.data, text, out.len);
    bk_buf_free(&out);
}

/* Everything in the directory, sorted by nothing: only to be counted. */
static unsigned entries(place_t *p)
{
    unsigned count = 0;
    DIR *d = opendir(p->dir);
    struct dirent *entry;
    assert_non_null(d);
    while ((entry = readdir(d)) != NULL)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(d);
    return count;
}

static bool is_there(place_t *p, const char *name)
{
    struct stat st;
    return lstat(in(p, name), &st) == 0;
}

/* --- publishing --- */

static void nothing_is_seen_before_commit(void **state)
{
    place_t *p = *state;
    bk_publish_t pub;
    struct stat st;
    make(p, "file", "old");
    OK(bk_publish_open(&pub, AT_FDCWD, in(p, "file"), 0640, &p->err), &p->err);
    OK(bk_write_all(pub.fd, "new", 3, "file", &p->err), &p->err);
    assert_int_equal(fcntl(pub.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(fcntl(pub.dirfd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    holds(p, "file", "old");
    assert_int_equal(entries(p), 2);
    OK(bk_publish_commit(&pub, false, &p->err), &p->err);
    holds(p, "file", "new");
    assert_int_equal(entries(p), 1);
    assert_int_equal(stat(in(p, "file"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    bk_publish_abort(&pub); /* once more is harmless */
    holds(p, "file", "new");
}

static void an_abort_leaves_what_was_there(void **state)
{
    place_t *p = *state;
    bk_publish_t pub;
    make(p, "file", "old");
    OK(bk_publish_open(&pub, AT_FDCWD, in(p, "file"), 0600, &p->err), &p->err);
    OK(bk_write_all(pub.fd, "new", 3, "file", &p->err), &p->err);
    bk_publish_abort(&pub);
    bk_publish_abort(&pub);
    holds(p, "file", "old");
    assert_int_equal(entries(p), 1);
}

static void exclusive_replaces_nothing(void **state)
{
    place_t *p = *state;
    OK(bk_publish_bytes(AT_FDCWD, in(p, "file"), 0600, "first", 5, true, &p->err), &p->err);
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "file"), 0600, "other", 5, true, &p->err),
                     BK_EXISTS);
    holds(p, "file", "first");
    /* A link that leads nowhere is something, too. */
    assert_int_equal(symlink("nowhere", in(p, "link")), 0);
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "link"), 0600, "x", 1, true, &p->err),
                     BK_EXISTS);
    assert_int_equal(entries(p), 2);
}

static void a_link_is_replaced_and_not_followed(void **state)
{
    place_t *p = *state;
    struct stat st;
    make(p, "target", "stays");
    assert_int_equal(symlink("target", in(p, "link")), 0);
    make(p, "link", "a file now");
    assert_int_equal(lstat(in(p, "link"), &st), 0);
    assert_true(S_ISREG(st.st_mode));
    holds(p, "target", "stays");
}

static void paths_are_relative_to_the_directory_given(void **state)
{
    place_t *p = *state;
    int dir = open(p->dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir >= 0);
    OK(bk_mkdirs(in(p, "sub"), 0700, &p->err), &p->err);
    OK(bk_publish_bytes(dir, "sub/file", 0600, "x", 1, false, &p->err), &p->err);
    OK(bk_publish_bytes(dir, "file", 0600, "y", 1, true, &p->err), &p->err);
    holds(p, "sub/file", "x");
    holds(p, "file", "y");
    OK(bk_fsync_dir(dir, "sub", &p->err), &p->err);
    assert_int_equal(bk_fsync_dir(dir, "none", &p->err), BK_NOT_FOUND);
    close(dir);
}

static void what_cannot_be_published_names_the_object(void **state)
{
    place_t *p = *state;
    char longest[400];
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "none/file"), 0600, "x", 1, false, &p->err),
                     BK_NOT_FOUND);
    assert_non_null(strstr(p->err.text, "none/file"));
    make(p, "file", "x");
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "file/y"), 0600, "x", 1, false, &p->err),
                     BK_NOT_FOUND);
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "dir/"), 0600, "x", 1, false, &p->err),
                     BK_INVALID);
    assert_int_equal(bk_publish_bytes(AT_FDCWD, "", 0600, "x", 1, false, &p->err), BK_INVALID);
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(bk_publish_bytes(AT_FDCWD, longest, 0600, "x", 1, false, &p->err), BK_INVALID);
    /* A directory has the name. */
    OK(bk_mkdirs(in(p, "dir"), 0700, &p->err), &p->err);
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "dir"), 0600, "x", 1, false, &p->err), BK_IO);
    assert_int_equal(bk_publish_bytes(AT_FDCWD, in(p, "dir"), 0600, "x", 1, true, &p->err),
                     BK_EXISTS);
    assert_int_equal(entries(p), 2);
}

enum { WRITERS = 4, ROUNDS = 40 };

static void *publish_own(void *arg)
{
    char text[32];
    bk_err_t err = {0};
    uintptr_t failed = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        memset(text, 'a' + (int)i % 26, sizeof text);
        failed +=
            bk_publish_bytes(AT_FDCWD, arg, 0600, text, 1 + i % sizeof text, false, &err) != BK_OK;
    }
    return (void *)failed; /* NOLINT: a number of failures */
}

static void writers_of_one_name_do_not_mix(void **state)
{
    place_t *p = *state;
    pthread_t threads[WRITERS];
    char path[512];
    bk_strcpy(path, sizeof path, in(p, "file"));
    make(p, "file", "a");
    for (size_t i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, publish_own, path), 0);
    for (unsigned i = 0; i < 500; i++) {
        bk_buf_t out;
        bk_buf_init(&out, 100);
        OK(bk_read_file(AT_FDCWD, path, &out, &p->err), &p->err);
        assert_true(out.len > 0);
        for (size_t k = 1; k < out.len; k++)
            assert_int_equal(out.data[k], out.data[0]);
        bk_buf_free(&out);
    }
    for (size_t i = 0; i < WRITERS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(entries(p), 1);
}

static void old_temporaries_are_swept_and_nothing_else(void **state)
{
    static const char *const names[] = {".tmp-OLD", ".tmp-YOUNG", "tmp-OLD", ".tmpOLD", "file"};
    place_t *p = *state;
    struct timespec old[2] = {{.tv_sec = time(NULL) - 4000}, {.tv_sec = time(NULL) - 4000}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        make(p, names[i], "x");
        if (strstr(names[i], "YOUNG") == NULL)
            assert_int_equal(utimensat(AT_FDCWD, in(p, names[i]), old, 0), 0);
    }
    OK(bk_mkdirs(in(p, ".tmp-DIR"), 0700, &p->err), &p->err);
    assert_int_equal(utimensat(AT_FDCWD, in(p, ".tmp-DIR"), old, 0), 0);
    bk_publish_sweep(p->dir, 3600);
    assert_false(is_there(p, ".tmp-OLD"));
    assert_int_equal(entries(p), 5);
    bk_publish_sweep(in(p, "none"), 0);
}

/* --- reading and writing --- */

static void reads_end_at_the_end(void **state)
{
    place_t *p = *state;
    char out[20];
    size_t got = 99;
    make(p, "file", "0123456789");
    int fd = open(in(p, "file"), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    OK(bk_read_all(fd, out, 4, &got, "file", &p->err), &p->err);
    assert_int_equal(got, 4);
    OK(bk_read_all(fd, out, sizeof out, &got, "file", &p->err), &p->err);
    assert_int_equal(got, 6);
    assert_memory_equal(out, "456789", 6);
    OK(bk_pread_all(fd, out, 3, 8, &got, "file", &p->err), &p->err);
    assert_int_equal(got, 2);
    OK(bk_pread_all(fd, out, 3, 11, &got, "file", &p->err), &p->err);
    assert_int_equal(got, 0);
    OK(bk_pwrite_all(fd, "XY", 2, 1, "file", &p->err), &p->err);
    holds(p, "file", "0XY3456789");
    close(fd);
    assert_int_equal(bk_read_all(fd, out, 1, &got, "gone", &p->err), BK_IO);
    assert_non_null(strstr(p->err.text, "read gone"));
    assert_int_equal(bk_write_all(fd, "x", 1, "gone", &p->err), BK_IO);
    assert_int_equal(bk_pwrite_all(fd, "x", 1, 0, "gone", &p->err), BK_IO);
    assert_int_equal(bk_pread_all(fd, out, 1, 0, &got, "gone", &p->err), BK_IO);
}

typedef struct {
    int fd;
    size_t len;
} feed_t;

static void *feed_slowly(void *arg)
{
    feed_t *feed = arg;
    uint8_t byte = 0;
    for (size_t i = 0; i < feed->len; i++, byte++)
        if (write(feed->fd, &byte, 1) != 1)
            break;
    close(feed->fd);
    return NULL;
}

static void short_reads_are_continued(void **state)
{
    enum { LEN = 3000 };
    int ends[2];
    uint8_t out[LEN + 10];
    size_t got;
    pthread_t thread;
    bk_err_t err = {0};
    (void)state;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    feed_t feed = {.fd = ends[1], .len = LEN};
    assert_int_equal(pthread_create(&thread, NULL, feed_slowly, &feed), 0);
    OK(bk_read_all(ends[0], out, sizeof out, &got, "pipe", &err), &err);
    pthread_join(thread, NULL);
    assert_int_equal(got, LEN);
    for (size_t i = 0; i < LEN; i++)
        assert_int_equal(out[i], i & 0xff);
    close(ends[0]);
}

static void files_are_read_up_to_the_limit(void **state)
{
    place_t *p = *state;
    uint8_t *data = malloc(200000);
    bk_buf_t out;
    test_fill(data, 200000, 1);
    OK(bk_publish_bytes(AT_FDCWD, in(p, "large"), 0600, data, 200000, false, &p->err), &p->err);
    bk_buf_init(&out, 200001);
    bk_buf_u8(&out, 'x');
    OK(bk_read_file(AT_FDCWD, in(p, "large"), &out, &p->err), &p->err);
    assert_int_equal(out.len, 200001);
    assert_memory_equal(out.data + 1, data, 200000);
    bk_buf_free(&out);
    bk_buf_init(&out, 199999);
    assert_int_equal(bk_read_file(AT_FDCWD, in(p, "large"), &out, &p->err), BK_TOO_LARGE);
    bk_buf_free(&out);
    assert_int_equal(bk_read_file(AT_FDCWD, in(p, "none"), &out, &p->err), BK_NOT_FOUND);
    assert_int_equal(bk_read_file(AT_FDCWD, p->dir, &out, &p->err), BK_IO);
    bk_buf_free(&out);
    free(data);
}

/* --- directories --- */

static void directories_are_made_where_they_are_missing(void **state)
{
    place_t *p = *state;
    struct stat st;
    OK(bk_mkdirs(in(p, "a/b//c/"), 0711, &p->err), &p->err);
    OK(bk_mkdirs(in(p, "a/b/c"), 0700, &p->err), &p->err);
    assert_int_equal(stat(in(p, "a/b/c"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0711);
    make(p, "file", "x");
    assert_int_equal(bk_mkdirs(in(p, "file"), 0700, &p->err), BK_NOT_FOUND);
    assert_non_null(strstr(p->err.text, "Not a directory"));
    assert_int_equal(bk_mkdirs(in(p, "file/a"), 0700, &p->err), BK_NOT_FOUND);
    assert_int_equal(symlink("a", in(p, "link")), 0);
    OK(bk_mkdirs(in(p, "link/d"), 0700, &p->err), &p->err);
    assert_true(is_there(p, "a/d"));
    OK(bk_mkdirs("/", 0700, &p->err), &p->err);
    assert_int_equal(bk_mkdirs("", 0700, &p->err), BK_INVALID);
    char *longest = malloc(6000);
    memset(longest, '/', 5999);
    longest[5999] = '\0';
    assert_int_equal(bk_mkdirs(longest, 0700, &p->err), BK_INVALID);
    free(longest);
}

static void a_tree_is_removed_without_following_links(void **state)
{
    place_t *p = *state;
    OK(bk_mkdirs(in(p, "tree/a/b/c"), 0700, &p->err), &p->err);
    OK(bk_mkdirs(in(p, "tree/x\ny"), 0700, &p->err), &p->err);
    OK(bk_mkdirs(in(p, "other"), 0700, &p->err), &p->err);
    make(p, "other/file", "stays");
    make(p, "tree/a/file", "x");
    assert_int_equal(symlink("../../other", in(p, "tree/a/link")), 0);
    assert_int_equal(symlink("..", in(p, "tree/up")), 0);
    assert_int_equal(mkfifo(in(p, "tree/a/b/pipe"), 0600), 0);
    OK(bk_remove_tree(in(p, "tree"), false, &p->err), &p->err);
    assert_true(is_there(p, "tree"));
    OK(bk_remove_tree(in(p, "tree"), true, &p->err), &p->err);
    assert_false(is_there(p, "tree"));
    OK(bk_remove_tree(in(p, "tree"), true, &p->err), &p->err); /* nothing there: done */
    holds(p, "other/file", "stays");
    assert_int_equal(symlink("other", in(p, "link")), 0);
    assert_int_not_equal(bk_remove_tree(in(p, "link"), false, &p->err), BK_OK);
    assert_int_not_equal(bk_remove_tree(in(p, "other/file"), true, &p->err), BK_OK);
    holds(p, "other/file", "stays");
}

static void a_tree_too_deep_is_an_error_and_not_a_crash(void **state)
{
    place_t *p = *state;
    char path[4096];
    int len = snprintf(path, sizeof path, "%s/deep", p->dir);
    for (unsigned i = 0; i < 600; i++)
        len += snprintf(path + len, sizeof path - (size_t)len, "/d");
    OK(bk_mkdirs(path, 0700, &p->err), &p->err);
    struct rlimit before, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_not_equal(bk_remove_tree(in(p, "deep"), true, &p->err), BK_OK);
    few = before;
    few.rlim_cur = 64; /* without descriptors for it */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    bk_rc_t rc = bk_remove_tree(in(p, "deep"), true, &p->err);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(rc, BK_IO);
    /* From the middle on it goes. */
    path[strlen(p->dir) + strlen("/deep") + 2 * 300] = '\0';
    OK(bk_remove_tree(path, true, &p->err), &p->err);
    OK(bk_remove_tree(in(p, "deep"), true, &p->err), &p->err);
}

/* In a name space of its own, so that nothing stays mounted. */
static void mount_and_remove(place_t *p)
{
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(in(p, "outside"), in(p, "tree/sub/mount"), NULL, MS_BIND, NULL) != 0)
        _exit(77);
    bk_rc_t rc = bk_remove_tree(in(p, "tree"), true, &p->err);
    _exit(rc != BK_OK && strstr(p->err.text, "mount is a mount point") != NULL ? 0 : 1);
}

static void what_is_mounted_in_a_tree_is_left_alone(void **state)
{
    place_t *p = *state;
    int status;
    OK(bk_mkdirs(in(p, "tree/sub/mount"), 0700, &p->err), &p->err);
    OK(bk_mkdirs(in(p, "outside"), 0700, &p->err), &p->err);
    make(p, "outside/file", "stays");
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        mount_and_remove(p);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    holds(p, "outside/file", "stays");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        SKIP_TEST(); /* may not mount here */
    assert_int_equal(status, 0);
}

/* --- the rest --- */

static void a_lock_has_one_holder(void **state)
{
    place_t *p = *state;
    int first, second = 4711;
    OK(bk_lock_file(in(p, "lock"), &first, &p->err), &p->err);
    assert_int_equal(fcntl(first, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(bk_lock_file(in(p, "lock"), &second, &p->err), BK_LOCKED);
    assert_int_equal(second, -1);
    assert_non_null(strstr(p->err.text, "another process"));
    close(first);
    OK(bk_lock_file(in(p, "lock"), &second, &p->err), &p->err);
    close(second);
    assert_int_equal(bk_lock_file(in(p, "none/lock"), &second, &p->err), BK_NOT_FOUND);
    assert_int_equal(symlink("lock", in(p, "link")), 0);
    assert_int_not_equal(bk_lock_file(in(p, "link"), &second, &p->err), BK_OK);
}

static void free_space_is_told(void **state)
{
    place_t *p = *state;
    uint64_t bytes = 0;
    OK(bk_free_space(p->dir, &bytes, &p->err), &p->err);
    assert_true(bytes > 0);
    assert_int_equal(bk_free_space(in(p, "none"), &bytes, &p->err), BK_NOT_FOUND);
}

#define PLACE_TEST(f) cmocka_unit_test_setup_teardown(f, place_setup, place_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(nothing_is_seen_before_commit),
        PLACE_TEST(an_abort_leaves_what_was_there),
        PLACE_TEST(exclusive_replaces_nothing),
        PLACE_TEST(a_link_is_replaced_and_not_followed),
        PLACE_TEST(paths_are_relative_to_the_directory_given),
        PLACE_TEST(what_cannot_be_published_names_the_object),
        PLACE_TEST(writers_of_one_name_do_not_mix),
        PLACE_TEST(old_temporaries_are_swept_and_nothing_else),
        PLACE_TEST(reads_end_at_the_end),
        cmocka_unit_test(short_reads_are_continued),
        PLACE_TEST(files_are_read_up_to_the_limit),
        PLACE_TEST(directories_are_made_where_they_are_missing),
        PLACE_TEST(a_tree_is_removed_without_following_links),
        PLACE_TEST(a_tree_too_deep_is_an_error_and_not_a_crash),
        PLACE_TEST(what_is_mounted_in_a_tree_is_left_alone),
        PLACE_TEST(a_lock_has_one_holder),
        PLACE_TEST(free_space_is_told),
    };
    return cmocka_run_group_tests_name("base/publish", tests, NULL, NULL);
}
