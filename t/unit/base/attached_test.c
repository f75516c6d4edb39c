/*
 * t/unit/base/attached_test.c: a file is SQLite's or somebody's who reads it, never both; and the
 * lock that a second process sees survives whoever comes too late.
 */
#include "unit/testing.h"

#include "base/attached.h"
#include "base/str.h"

typedef struct {
    char *dir, path[300], shm[310];
    struct stat st, st_shm;
    bk_err_t err;
} fixture_t;

static int make_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "x", 1), 1);
    return fd;
}

static void begin(fixture_t *f)
{
    *f = (fixture_t){.dir = test_dir()};
    snprintf(f->path, sizeof f->path, "%s/app.db", f->dir);
    snprintf(f->shm, sizeof f->shm, "%s-shm", f->path);
    close(make_file(f->path));
    assert_int_equal(stat(f->path, &f->st), 0);
}

static void make_shm(fixture_t *f)
{
    close(make_file(f->shm));
    assert_int_equal(stat(f->shm, &f->st_shm), 0);
}

static void end(fixture_t *f)
{
    test_dir_remove(f->dir);
}

/* As SQLite would. */
static int open_and_lock(const char *path)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 120, .l_len = 1};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_SETLK, &lock), 0);
    return fd;
}

static bk_rc_t attach(fixture_t *f)
{
    bk_err_clear(&f->err);
    return bk_attached_add(f->path, &f->st, stat, &f->err);
}

static void what_is_read_is_not_opened_as_a_database(void **state)
{
    fixture_t f;
    (void)state;
    begin(&f);
    int one = open(f.path, O_RDONLY | O_CLOEXEC), two = open(f.path, O_RDONLY | O_CLOEXEC);
    assert_true(bk_attached_hold(one));
    assert_true(bk_attached_hold(two));
    assert_int_equal(attach(&f), BK_BUSY);
    assert_int_equal(bk_attached_reserve(f.path, &f.st, stat, &f.err), BK_BUSY);
    bk_attached_close(one);
    assert_int_equal(attach(&f), BK_BUSY);
    bk_attached_close(two);
    OK(attach(&f), &f.err);
    bk_attached_remove(f.st.st_dev, f.st.st_ino);
    /* Its -shm counts, too. */
    make_shm(&f);
    one = open(f.shm, O_RDONLY | O_CLOEXEC);
    assert_true(bk_attached_hold(one));
    assert_int_equal(attach(&f), BK_BUSY);
    bk_attached_close(one);
    OK(attach(&f), &f.err);
    bk_attached_remove(f.st.st_dev, f.st.st_ino);
    bk_attached_close(-1);
    end(&f);
}

static void a_lock_survives_who_opens_it_too_late(void **state)
{
    fixture_t f;
    (void)state;
    begin(&f);
    make_shm(&f);
    OK(attach(&f), &f.err);
    int database = open_and_lock(f.path), shm = open_and_lock(f.shm);
    bk_attached_settle(f.st.st_dev, f.st.st_ino);
    int late = open(f.path, O_RDONLY | O_CLOEXEC), later = open(f.shm, O_RDONLY | O_CLOEXEC);
    assert_false(bk_attached_hold(late));
    assert_false(bk_attached_hold(later));
    assert_true(fcntl(late, F_GETFD) >= 0);
    assert_true(test_locked(f.path));
    assert_true(test_locked(f.shm));
    close(database);
    close(shm);
    bk_attached_remove(f.st.st_dev, f.st.st_ino);
    /* Now nothing is lost by closing them. */
    assert_int_equal(fcntl(late, F_GETFD), -1);
    assert_int_equal(fcntl(later, F_GETFD), -1);
    end(&f);
}

static void the_shm_is_known_whenever_it_comes(void **state)
{
    fixture_t f;
    (void)state;
    begin(&f);
    OK(attach(&f), &f.err);
    OK(attach(&f), &f.err);
    assert_true(bk_attached_has(&f.st));
    make_shm(&f);
    assert_true(bk_attached_has(&f.st_shm));
    bk_attached_settle(f.st.st_dev, f.st.st_ino);
    assert_true(bk_attached_has(&f.st_shm));
    bk_attached_remove(f.st.st_dev, f.st.st_ino);
    assert_true(bk_attached_has(&f.st_shm));
    bk_attached_remove(f.st.st_dev, f.st.st_ino);
    assert_false(bk_attached_has(&f.st));
    assert_false(bk_attached_has(&f.st_shm));
    end(&f);
}

static void a_recovery_keeps_both_away(void **state)
{
    fixture_t f;
    (void)state;
    begin(&f);
    OK(bk_attached_reserve(f.path, &f.st, stat, &f.err), &f.err);
    int late = open(f.path, O_RDONLY | O_CLOEXEC);
    assert_false(bk_attached_hold(late));
    assert_int_equal(attach(&f), BK_BUSY);
    assert_true(fcntl(late, F_GETFD) >= 0);
    bk_attached_release(f.path);
    assert_int_equal(fcntl(late, F_GETFD), -1);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_read_is_not_opened_as_a_database),
        cmocka_unit_test(a_lock_survives_who_opens_it_too_late),
        cmocka_unit_test(the_shm_is_known_whenever_it_comes),
        cmocka_unit_test(a_recovery_keeps_both_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
