/*
 * t/unit/testing.h: what unit tests share: cmocka, a private directory, asserting on bk_rc_t, opening a repository in it.
 */
#ifndef BK_TESTING_H
#define BK_TESTING_H

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/publish.h"

/* The expression must give BK_OK; err is printed otherwise. */
#define OK(expression, err)                                                                        \
    do {                                                                                           \
        if ((expression) != BK_OK) {                                                               \
            print_error("%s\n", (err)->text);                                                      \
            assert_true(0 && #expression);                                                         \
        }                                                                                          \
    } while (0)

/* For what this machine cannot show.  cmocka's own skip() says "not ok # SKIP", which prove counts as a failure. */
#define SKIP_TEST()                                                                                \
    do {                                                                                           \
        print_message("# left out: not possible on this machine\n");                               \
        return;                                                                                    \
    } while (0)

static inline char *test_dir(void)
{
    const char *tmp = getenv("TMPDIR");
    char *dir = malloc(256);
    snprintf(dir, 256, "%s/ngx-backup-test-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(chmod(dir, 0755), 0);
    return dir;
}

static inline void test_dir_remove(char *dir)
{
    bk_err_t err = {0};
    OK(bk_remove_tree(dir, true, &err), &err);
    free(dir);
}

/* Everything below a directory, in no order, directories before what they hold; links are not
 * followed. */
typedef void (*test_visit_fn)(void *arg, const char *path, const struct stat *st);
static inline void test_visit(const char *dir, test_visit_fn fn, void *arg)
{
    DIR *stream = opendir(dir);
    assert_non_null(stream);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        char path[4400];
        struct stat st;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        assert_int_equal(lstat(path, &st), 0);
        fn(arg, path, &st);
        if (S_ISDIR(st.st_mode))
            test_visit(path, fn, arg);
    }
    closedir(stream);
}

static inline void test_give_one(void *arg, const char *path, const struct stat *st)
{
    const uid_t *owner = arg;
    (void)st;
    assert_int_equal(lchown(path, *owner, *owner), 0);
}

/* chown -R, the group alike. */
static inline void test_give(const char *dir, uid_t owner)
{
    assert_int_equal(lchown(dir, owner, owner), 0);
    test_visit(dir, test_give_one, &owner);
}

typedef struct {
    const char *from, *to;
} test_copy_t;

static inline void test_copy_one(void *arg, const char *path, const struct stat *st)
{
    const test_copy_t *copy = arg;
    char to[4400], bytes[65536];
    snprintf(to, sizeof to, "%s%s", copy->to, path + strlen(copy->from));
    if (S_ISDIR(st->st_mode)) {
        assert_int_equal(mkdir(to, st->st_mode & 07777), 0);
        return;
    }
    assert_true(S_ISREG(st->st_mode));
    int in = open(path, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, st->st_mode & 07777);
    assert_true(in >= 0 && out >= 0);
    for (ssize_t got; (got = read(in, bytes, sizeof bytes)) != 0;)
        assert_true(got > 0 && write(out, bytes, (size_t)got) == got);
    close(in);
    close(out);
}

/* Directories and files with their modes, to a name that is not there. */
static inline void test_copy_tree(const char *from, const char *to)
{
    struct stat st;
    test_copy_t copy = {from, to};
    assert_int_equal(stat(from, &st), 0);
    assert_int_equal(mkdir(to, st.st_mode & 07777), 0);
    test_visit(from, test_copy_one, &copy);
}

/* Write over a file that may be read-only. */
static inline void test_spoil(const char *path, off_t at, const char *text)
{
    assert_int_equal(chmod(path, 0600), 0);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, text, strlen(text), at), strlen(text));
    close(fd);
}

/* Has this process, or any but a child of it, a POSIX lock on the file?  A second process looks. */
static inline bool test_locked(const char *path)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || fcntl(fd, F_GETLK, &lock) != 0)
            _exit(2);
        _exit(lock.l_type != F_UNLCK);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status) == 1;
}

static inline uint64_t test_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline void test_fill(uint8_t *out, size_t len, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)(test_random(&state) >> 32);
}

#endif
