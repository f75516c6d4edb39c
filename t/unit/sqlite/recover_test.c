/*
 * Behaviours: a recovery into a live database is one transaction: open readers keep what they see, writers wait and go on, a
 * stop or a lock that is not given leaves everything as it was.  A database that somebody has open is never replaced by a
 * file; when nobody has, the old one is kept whole beside the new one, with its owner and mode, and nothing of its log gets
 * into the new one.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "sqlite/recover.h"
#include "unit/sqlite/sqlite_testing.h"

typedef struct {
    fixture_t f;
    char path[300], image[300], aside[340];
    bk_db_recover_t how;
    bk_db_method_t method;
} world_t;

/* app.db with one extra row of value 7 in the image only. */
static void start(world_t *w, const char *journal, int page_size, int image_page_size)
{
    memset(w, 0, sizeof *w);
    fixture_start(&w->f, false);
    file_in(&w->f, "app.db", w->path);
    file_in(&w->f, "image.db", w->image);
    snprintf(w->aside, sizeof w->aside, "%s.before-job_1", w->path);
    assert_true(chaos_make(w->path, journal, page_size, "none"));
    assert_true(chaos_make(w->image, journal, image_page_size, "none"));
    sqlite3 *db = open_db(w->image);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(7, randomblob(20000))");
    sqlite3_close(db);
    w->how = (bk_db_recover_t){.image = w->image,
                               .target = w->path,
                               .job = "job_1",
                               .uid = geteuid(),
                               .gid = getegid(),
                               .mode = 0640,
                               .busy_ms = 20000};
}

static bk_rc_t recover(world_t *w)
{
    bk_err_clear(&w->f.err);
    return bk_db_recover(&w->how, &w->method, &w->f.ctl, &w->f.err);
}

static long sevens(const char *path)
{
    sqlite3 *db = open_db(path);
    long n = query(db, "SELECT count(*) FROM t WHERE v=7");
    assert_int_equal(query(db, "SELECT count(*) FROM pragma_integrity_check WHERE "
                               "integrity_check='ok'"),
                     1);
    sqlite3_close(db);
    return n;
}

/* --- live --- */

static void readers_keep_what_they_see(void **state)
{
    world_t w;
    (void)state;
    start(&w, "wal", 4096, 4096);
    sqlite3 *reader = open_db(w.path), *app = open_db(w.path);
    run_sql(reader, "BEGIN");
    assert_int_equal(query(reader, "SELECT count(*) FROM t WHERE v=7"), 0);
    OK(recover(&w), &w.f.err);
    assert_int_equal(w.method, BK_DB_LIVE);
    assert_int_equal(query(reader, "SELECT count(*) FROM t WHERE v=7"), 0);
    assert_int_equal(query(app, "SELECT count(*) FROM t WHERE v=7"), 1);
    run_sql(reader, "COMMIT");
    assert_int_equal(query(reader, "SELECT count(*) FROM t WHERE v=7"), 1);
    run_sql(app, "INSERT INTO t(v) VALUES(7)");
    sqlite3_close(reader);
    sqlite3_close(app);
    assert_int_equal(sevens(w.path), 2);
    assert_false(exists(w.aside, ""));
    fixture_end(&w.f);
}

/* With the application stopped the image is in the file itself afterwards, not in a -wal of our user. */
static void nothing_is_left_beside_an_idle_database(void **state)
{
    world_t w;
    (void)state;
    start(&w, "wal", 4096, 4096);
    OK(recover(&w), &w.f.err);
    assert_int_equal(w.method, BK_DB_LIVE);
    assert_false(exists(w.path, "-wal"));
    assert_false(exists(w.path, "-shm"));
    assert_int_equal(sevens(w.path), 1);
    fixture_end(&w.f);
}

static void write_lock(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "BEGIN IMMEDIATE; INSERT INTO t(v) VALUES(7), (7), (7)");
}

static void a_writer_that_does_not_let_go(void **state)
{
    world_t w;
    (void)state;
    start(&w, "wal", 4096, 4096);
    pid_t pid = hold(write_lock, w.path);
    w.how.busy_ms = 50;
    assert_int_equal(recover(&w), BK_BUSY);
    assert_non_null(strstr(w.f.err.text, "nothing is changed"));
    kill_hard(pid);
    assert_int_equal(sevens(w.path), 0);
    fixture_end(&w.f);
}

static void read_lock(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "BEGIN");
    query(db, "SELECT n FROM head");
}

static void a_reader_in_rollback_mode_holds_it_up(void **state)
{
    world_t w;
    (void)state;
    start(&w, "delete", 4096, 4096);
    pid_t pid = hold(read_lock, w.path);
    w.how.busy_ms = 50;
    assert_int_equal(recover(&w), BK_BUSY);
    kill_hard(pid);
    assert_int_equal(sevens(w.path), 0);
    assert_false(exists(w.path, "-journal"));
    OK(recover(&w), &w.f.err);
    assert_int_equal(w.method, BK_DB_LIVE);
    assert_int_equal(sevens(w.path), 1);
    fixture_end(&w.f);
}

static void *stop_in_the_middle(void *arg)
{
    bk_ctl_t *ctl = arg;
    while (atomic_load(&ctl->bytes_done) == 0)
        ;
    bk_ctl_stop(ctl, BK_CANCELED);
    return NULL;
}

static void a_stop_in_the_middle_changes_nothing(void **state)
{
    world_t w;
    int stopped = 0;
    (void)state;
    start(&w, "wal", 4096, 4096);
    sqlite3 *db = open_db(w.image);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(7, randomblob(60000000))");
    sqlite3_close(db);
    /* It may win the race against the stop, but not each time. */
    for (int i = 0; i < 10 && stopped == 0; i++) {
        pthread_t thread;
        bk_ctl_free(&w.f.ctl);
        bk_ctl_init(&w.f.ctl);
        db = open_db(w.path);
        run_sql(db, "DELETE FROM t WHERE v=7");
        sqlite3_close(db);
        assert_int_equal(pthread_create(&thread, NULL, stop_in_the_middle, &w.f.ctl), 0);
        bk_rc_t rc = recover(&w);
        pthread_join(thread, NULL);
        assert_true(rc == BK_OK || rc == BK_CANCELED);
        assert_int_equal(sevens(w.path), rc == BK_OK ? 2 : 0);
        stopped += rc == BK_CANCELED;
    }
    assert_true(stopped > 0);
    fixture_end(&w.f);
}

static void applications_go_on_writing(void **state)
{
    world_t w;
    char log[300];
    pid_t writers[2];
    int status;
    (void)state;
    start(&w, "wal", 4096, 4096);
    for (int i = 0; i < 2; i++) {
        chaos_t chaos = {.path = w.path,
                         .log = file_in(&w.f, i == 0 ? "log-0" : "log-1", log),
                         .seed = (uint64_t)bk_mono() + (uint64_t)i,
                         .autocheckpoint = 20};
        writers[i] = fork();
        if (writers[i] == 0)
            _exit(chaos_run(&chaos) ? 0 : 1);
    }
    for (int i = 0; i < 10; i++) {
        bk_sleep_ms(20);
        OK(recover(&w), &w.f.err);
        assert_int_equal(w.method, BK_DB_LIVE);
    }
    for (int i = 0; i < 2; i++) {
        kill(writers[i], SIGTERM);
        assert_int_equal(waitpid(writers[i], &status, 0), writers[i]);
        assert_int_equal(status, 0);
    }
    sevens(w.path);
    fixture_end(&w.f);
}

/* --- offline --- */

static void commit_only_to_the_log(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA wal_autocheckpoint=0; INSERT INTO t(v) VALUES(7), (7), (7)");
}

static void a_missing_database_comes_back(void **state)
{
    world_t w;
    struct stat st;
    (void)state;
    start(&w, "wal", 4096, 4096);
    /* Someone removed the file and left its log: that must not get into the new one. */
    pid_t pid = hold(commit_only_to_the_log, w.path);
    assert_int_equal(unlink(w.path), 0);
    assert_true(exists(w.path, "-wal"));
    assert_int_equal(recover(&w), BK_BUSY);
    kill_hard(pid);
    OK(recover(&w), &w.f.err);
    assert_int_equal(w.method, BK_DB_OFFLINE);
    assert_int_equal(stat(w.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_false(exists(w.path, "-wal"));
    assert_true(exists(w.aside, "-wal"));
    assert_int_equal(sevens(w.path), 1);
    fixture_end(&w.f);
}

static void a_damaged_file_is_kept_aside(void **state)
{
    world_t w;
    struct stat old, new, kept;
    (void)state;
    start(&w, "wal", 4096, 4096);
    assert_int_equal(chmod(w.path, 0660), 0);
    if (geteuid() == 0)
        assert_int_equal(chown(w.path, 1234, 2345), 0);
    pid_t pid = hold(read_lock, w.path);
    spoil(w.path, 0, "garbage garbage");
    assert_int_equal(stat(w.path, &old), 0);
    assert_int_equal(recover(&w), BK_BUSY);
    char who[40];
    snprintf(who, sizeof who, "process %d", (int)pid);
    assert_non_null(strstr(w.f.err.text, who));
    assert_non_null(strstr(w.f.err.text, "stop the application"));
    kill_hard(pid);
    OK(recover(&w), &w.f.err);
    assert_int_equal(w.method, BK_DB_OFFLINE);
    assert_int_equal(stat(w.path, &new), 0);
    assert_int_equal(stat(w.aside, &kept), 0);
    assert_int_equal(kept.st_ino, old.st_ino);
    assert_int_equal(kept.st_nlink, 1);
    assert_int_equal(new.st_mode, old.st_mode);
    assert_int_equal(new.st_uid, old.st_uid);
    assert_int_equal(new.st_gid, old.st_gid);
    assert_true(exists(w.aside, "-wal"));
    assert_int_equal(sevens(w.path), 1);
    /* Once more with the same job: nothing that was set aside is written over. */
    spoil(w.path, 0, "garbage garbage");
    OK(recover(&w), &w.f.err);
    assert_int_equal(stat(w.aside, &kept), 0);
    assert_int_equal(kept.st_ino, old.st_ino);
    assert_true(exists(w.aside, ".2"));
    fixture_end(&w.f);
}

static void open_only(const char *path)
{
    sqlite3 *db = open_db(path);
    query(db, "SELECT n FROM head");
}

/* Between transactions a connection in a rollback mode holds no lock at all. */
static void an_idle_connection_counts(void **state)
{
    world_t w;
    (void)state;
    start(&w, "delete", 4096, 8192);
    pid_t pid = hold(open_only, w.path);
    bk_rc_t rc = recover(&w);
    kill_hard(pid);
    assert_int_equal(rc, BK_BUSY);
    assert_int_equal(sevens(w.path), 0);
    OK(recover(&w), &w.f.err);
    assert_int_equal(sevens(w.path), 1);
    fixture_end(&w.f);
}

static void another_page_size_needs_the_application_stopped(void **state)
{
    world_t w;
    const char *reason;
    char copy[300];
    (void)state;
    start(&w, "wal", 4096, 8192);
    pid_t pid = hold(commit_only_to_the_log, w.path);
    OK(bk_db_recover_plan(&w.how, &w.method, &reason, &w.f.err), &w.f.err);
    assert_int_equal(w.method, BK_DB_OFFLINE);
    assert_non_null(strstr(reason, "page size"));
    assert_int_equal(recover(&w), BK_BUSY);
    kill_hard(pid);
    OK(recover(&w), &w.f.err);
    assert_int_equal(w.method, BK_DB_OFFLINE);
    assert_int_equal(sevens(w.path), 1);
    /* What the application had committed is in the one file that was kept. */
    assert_false(exists(w.aside, "-wal"));
    assert_int_equal(rename(w.aside, file_in(&w.f, "old.db", copy)), 0);
    assert_int_equal(sevens(copy), 3);
    fixture_end(&w.f);
}

static void links_are_followed(void **state)
{
    world_t w;
    char link_path[300];
    struct stat st;
    (void)state;
    start(&w, "wal", 4096, 8192);
    assert_int_equal(symlink("app.db", file_in(&w.f, "link.db", link_path)), 0);
    w.how.target = link_path;
    OK(recover(&w), &w.f.err);
    assert_int_equal(lstat(link_path, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(sevens(w.path), 1);
    assert_true(exists(w.aside, ""));
    assert_int_equal(unlink(w.path), 0);
    assert_int_equal(recover(&w), BK_CONFIG);
    assert_non_null(strstr(w.f.err.text, "link"));
    fixture_end(&w.f);
}

static void a_plan_tells_the_way(void **state)
{
    world_t w;
    const char *reason;
    (void)state;
    start(&w, "wal", 4096, 4096);
    w.how.image = NULL;
    OK(bk_db_recover_plan(&w.how, &w.method, &reason, &w.f.err), &w.f.err);
    assert_int_equal(w.method, BK_DB_LIVE);
    w.how.page_size = 512;
    OK(bk_db_recover_plan(&w.how, &w.method, &reason, &w.f.err), &w.f.err);
    assert_int_equal(w.method, BK_DB_OFFLINE);
    assert_int_equal(unlink(w.path), 0);
    OK(bk_db_recover_plan(&w.how, &w.method, &reason, &w.f.err), &w.f.err);
    assert_int_equal(w.method, BK_DB_OFFLINE);
    assert_non_null(strstr(reason, "missing"));
    assert_int_equal(mkdir(w.path, 0755), 0);
    assert_int_equal(bk_db_recover_plan(&w.how, &w.method, &reason, &w.f.err), BK_CONFIG);
    fixture_end(&w.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_keep_what_they_see),
        cmocka_unit_test(nothing_is_left_beside_an_idle_database),
        cmocka_unit_test(a_writer_that_does_not_let_go),
        cmocka_unit_test(a_reader_in_rollback_mode_holds_it_up),
        cmocka_unit_test(a_stop_in_the_middle_changes_nothing),
        cmocka_unit_test(applications_go_on_writing),
        cmocka_unit_test(a_missing_database_comes_back),
        cmocka_unit_test(a_damaged_file_is_kept_aside),
        cmocka_unit_test(an_idle_connection_counts),
        cmocka_unit_test(another_page_size_needs_the_application_stopped),
        cmocka_unit_test(links_are_followed),
        cmocka_unit_test(a_plan_tells_the_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
