/*
 * t/unit/base/direct_test.c: bytes that go past the page cache arrive where they belong, at any
 * offset, whatever lies beside them and whatever the file system can do.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "base/direct.h"
#include "base/str.h"
#include "unit/testing.h"

#define FILE_MAX (3u << 20)

static int open_file(const char *dir)
{
    char path[512];
    bk_fmt(path, sizeof path, "%s/ngx-backup-direct-%d", dir, (int)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    return fd;
}

static void assert_holds(int fd, const uint8_t *want, size_t len)
{
    bk_err_t err = {0};
    size_t got = 0;
    uint8_t *read = malloc(len + 1);
    OK(bk_pread_all(fd, read, len + 1, 0, &got, "it", &err), &err);
    assert_int_equal(got, len);
    assert_memory_equal(read, want, len);
    free(read);
}

/* Pieces of all sizes, in an order that leaves holes to be filled from both sides. */
static void write_pieces(const char *dir)
{
    bk_err_t err = {0};
    int fd = open_file(dir);
    uint64_t random = 7;
    uint8_t *bytes = malloc(FILE_MAX);
    for (size_t i = 0; i + 8 <= FILE_MAX; i += 8) {
        uint64_t next = test_random(&random);
        memcpy(bytes + i, &next, 8);
    }
    size_t cuts[64], count = 0;
    for (size_t at = 0; at < FILE_MAX && count < 63; count++) {
        static const size_t sizes[] = {1,      4095,  BK_DIRECT_MIN, BK_DIRECT_MIN + 4097,
                                       700001, 262143};
        cuts[count] = at;
        at += sizes[count % (sizeof sizes / sizeof *sizes)];
    }
    cuts[count] = FILE_MAX;
    for (size_t parity = 2; parity-- > 0;)
        for (size_t i = parity; i < count; i += 2)
            OK(bk_direct_write(fd, bytes + cuts[i], cuts[i + 1] - cuts[i], cuts[i], "it", &err),
               &err);
    assert_holds(fd, bytes, FILE_MAX);
    assert_int_equal(fcntl(fd, F_GETFL) & O_DIRECT, 0);
    close(fd);
    free(bytes);
}

static void pieces_arrive_where_they_belong(void **state)
{
    (void)state;
    char *dir = test_dir();
    write_pieces(dir);
    test_dir_remove(dir);
}

static void a_file_system_in_memory_is_served_too(void **state)
{
    (void)state;
    if (access("/dev/shm", W_OK) != 0)
        SKIP_TEST();
    write_pieces("/dev/shm");
}

/* The limit cuts a write short in the middle of a block, and fails the next one. */
static void a_write_cut_short_is_an_error(void **state)
{
    (void)state;
    bk_err_t err = {0};
    struct rlimit before, limit;
    char *dir = test_dir();
    int fd = open_file(dir);
    uint8_t *bytes = calloc(FILE_MAX, 1);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = (2u << 20) + 1234;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    bk_rc_t rc = bk_direct_write(fd, bytes, FILE_MAX, 0, "it", &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_not_equal(rc, BK_OK);
    assert_int_equal(err.sys, EFBIG);
    assert_non_null(strstr(err.text, "write it"));
    OK(bk_direct_write(fd, bytes, FILE_MAX, 0, "it", &err), &err);
    assert_holds(fd, bytes, FILE_MAX);
    close(fd);
    free(bytes);
    test_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_arrive_where_they_belong),
        cmocka_unit_test(a_file_system_in_memory_is_served_too),
        cmocka_unit_test(a_write_cut_short_is_an_error),
    };
    return cmocka_run_group_tests_name("base/direct", tests, NULL, NULL);
}
