/*
 * Behaviours: an image of a database under a constant writer is exactly the database after some commit, and that commit lies between
 * the last one before the pin and the first one after it; the writer never sees an error; images are proved; every journal
 * mode and page size; a recovery into the live database leaves open readers their snapshot.
 */
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "sqlite/dump.h"
#include "sqlite/recover.h"
#include "unit/repo/repo_testing.h"

typedef struct {
    atomic_long before, after; /* commit number before COMMIT is sent and after it returned */
    atomic_int failed, stop;
} shared_t;

static void run_sql(sqlite3 *db, const char *sql)
{
    char *message = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) {
        print_error("%s: %s\n", sql, message);
        assert_true(0);
    }
}

static long query(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *statement;
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    long value = (long)sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

static sqlite3 *open_db(const char *path)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 20000);
    return db;
}

static void make_db(const char *path, const char *journal, int page_size, const char *auto_vacuum)
{
    char sql[512];
    sqlite3 *db = open_db(path);
    snprintf(sql, sizeof sql, "PRAGMA page_size=%d; PRAGMA auto_vacuum=%s; PRAGMA journal_mode=%s;",
             page_size, auto_vacuum, journal);
    run_sql(db, sql);
    run_sql(db, "CREATE TABLE head(commit_number INTEGER, rows INTEGER, total INTEGER);"
                "INSERT INTO head VALUES(0, 0, 0);"
                "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, filler BLOB);");
    sqlite3_close(db);
}

/* Each transaction changes rows and then writes what the whole table must look like. */
static void writer(const char *path, shared_t *shared, unsigned seed)
{
    uint64_t random = seed * 977 + 1;
    sqlite3 *db = open_db(path);
    char sql[512];
    run_sql(db, "PRAGMA cache_size=20; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=50");
    for (long n = atomic_load(&shared->after) + 1; !atomic_load(&shared->stop); n++) {
        uint64_t r = test_random(&random);
        if (sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK)
            atomic_store(&shared->failed, 1);
        for (unsigned i = 0; i < 1 + r % 20; i++) {
            r = test_random(&random);
            snprintf(
                sql, sizeof sql,
                r % 3 ? "INSERT INTO t(v, filler) VALUES(%d, randomblob(%d))"
                      : "DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT %d) AND %d",
                (int)(r >> 8) % 20, (int)(r >> 20) % 3000 + 1);
            run_sql(db, sql);
        }
        if (r % 10 == 0) {
            run_sql(db, "ROLLBACK");
            n--;
            continue;
        }
        snprintf(sql, sizeof sql,
                 "UPDATE head SET commit_number=%ld, rows=(SELECT count(*) FROM t),"
                 "total=(SELECT coalesce(sum(v*id),0) FROM t)",
                 n);
        run_sql(db, sql);
        atomic_store(&shared->before, n);
        if (sqlite3_exec(db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK) {
            atomic_store(&shared->failed, 1);
            break;
        }
        atomic_store(&shared->after, n);
        if (n % 37 == 0)
            sqlite3_exec(
                db, n % 2 ? "PRAGMA wal_checkpoint(TRUNCATE)" : "PRAGMA wal_checkpoint(RESTART)",
                NULL, NULL, NULL);
        if (n % 101 == 0) {
            atomic_store(&shared->before, n);
            sqlite3_exec(db, "VACUUM", NULL, NULL, NULL);
        }
    }
    sqlite3_close(db);
}

typedef struct {
    fixture_t *f;
    bk_session_t *session;
    const char *path, *file;
    bk_snapshot_db_t *db;
} job_t;

static bk_rc_t dump_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    job_t *job = arg;
    return bk_db_dump(job->session, job->path, 20000, team, job->db, NULL, err);
}

static bk_rc_t materialise_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    job_t *job = arg;
    return bk_db_materialise(job->f->repo, job->db, job->file, true, team, NULL, err);
}

static void free_db(bk_snapshot_db_t *db)
{
    free(db->path);
    free(db->journal);
    memset(db, 0, sizeof *db);
}

/* Back up and bring back; the file is left at job->file. */
static void round_trip(fixture_t *f, const char *path, const char *file, int n)
{
    char id[64];
    bk_snapshot_db_t db = {.name = (char *)(uintptr_t) "main"};
    job_t job = {.f = f, .path = path, .file = file, .db = &db};
    job.session = fixture_session(f, true);
    OK(bk_team_run(3, dump_main, &job, &f->err), &f->err);
    snprintf(id, sizeof id, "full_%d", n);
    OK(fixture_commit(f, job.session, id, NULL), &f->err);
    OK(bk_team_run(3, materialise_main, &job, &f->err), &f->err);
    db.name = NULL;
    free_db(&db);
}

static void images_under_a_writer(const char *journal, int page_size, const char *auto_vacuum)
{
    fixture_t f;
    char path[300], file[300];
    shared_t *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fixture_start(&f, true);
    snprintf(path, sizeof path, "%s/app.db", f.dir);
    snprintf(file, sizeof file, "%s/image.db", f.dir);
    make_db(path, journal, page_size, auto_vacuum);
    for (int round = 0; round < 10; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            writer(path, shared, (unsigned)round + 1);
            _exit(0);
        }
        bk_sleep_ms(40);
        long low = atomic_load(&shared->after);
        bk_snapshot_db_t db = {.name = (char *)(uintptr_t) "main"};
        job_t job = {
            .f = &f, .path = path, .file = file, .db = &db, .session = fixture_session(&f, true)};
        OK(bk_team_run(3, dump_main, &job, &f.err), &f.err);
        long high = atomic_load(&shared->before);
        /* Every other writer is killed in the middle of something. */
        if (round % 2)
            atomic_store(&shared->stop, 1);
        else
            kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        atomic_store(&shared->stop, 0);
        char id[64];
        snprintf(id, sizeof id, "full_%d", round);
        OK(fixture_commit(&f, job.session, id, NULL), &f.err);
        OK(bk_team_run(3, materialise_main, &job, &f.err), &f.err);
        sqlite3 *image = open_db(file);
        long number = query(image, "SELECT commit_number FROM head");
        assert_in_range(number, low, high);
        assert_int_equal(query(image, "SELECT rows FROM head"),
                         query(image, "SELECT count(*) FROM t"));
        assert_int_equal(query(image, "SELECT total FROM head"),
                         query(image, "SELECT coalesce(sum(v*id),0) FROM t"));
        sqlite3_close(image);
        unlink(file);
        char wal[320];
        snprintf(wal, sizeof wal, "%s-wal", file);
        unlink(wal);
        snprintf(wal, sizeof wal, "%s-shm", file);
        unlink(wal);
        db.name = NULL;
        free_db(&db);
        assert_int_equal(atomic_load(&shared->failed), 0);
        /* The number may be one ahead of what was acknowledged: the killed writer's last commit. */
        sqlite3 *live = open_db(path);
        atomic_store(&shared->after, query(live, "SELECT commit_number FROM head"));
        sqlite3_close(live);
    }
    munmap(shared, sizeof *shared);
    fixture_end(&f);
}

static void wal_4096(void **state)
{
    (void)state;
    images_under_a_writer("wal", 4096, "none");
}

static void wal_512_auto_vacuum(void **state)
{
    (void)state;
    images_under_a_writer("wal", 512, "full");
}

static void wal_65536(void **state)
{
    (void)state;
    images_under_a_writer("wal", 65536, "incremental");
}

static void rollback_journal(void **state)
{
    (void)state;
    images_under_a_writer("delete", 4096, "none");
}

static void live_recovery_keeps_readers_and_takes_place(void **state)
{
    fixture_t f;
    char path[300], file[300], db_sql[] = "DELETE FROM t; UPDATE head SET rows=0, total=0";
    (void)state;
    fixture_start(&f, true);
    snprintf(path, sizeof path, "%s/app.db", f.dir);
    snprintf(file, sizeof file, "%s/image.db", f.dir);
    make_db(path, "wal", 4096, "none");
    sqlite3 *db = open_db(path);
    run_sql(db, "INSERT INTO t(v, filler) SELECT 1, randomblob(2000) FROM "
                "json_each('[1,2,3,4,5,6,7,8,9,10]')");
    round_trip(&f, path, file, 1);
    run_sql(db, db_sql);
    sqlite3 *reader = open_db(path);
    run_sql(reader, "BEGIN");
    assert_int_equal(query(reader, "SELECT count(*) FROM t"), 0);
    bk_db_recover_t how = {.image = file, .target = path, .job = "job_1", .busy_ms = 1000};
    bk_db_method_t method;
    OK(bk_db_recover(&how, &method, &f.ctl, &f.err), &f.err);
    assert_int_equal(method, BK_DB_LIVE);
    assert_int_equal(query(reader, "SELECT count(*) FROM t"), 0);
    run_sql(reader, "COMMIT");
    assert_int_equal(query(reader, "SELECT count(*) FROM t"), 10);
    assert_int_equal(query(db, "SELECT count(*) FROM t"), 10);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    /* A writer that never lets go: a clear refusal, nothing changed. */
    run_sql(reader, "BEGIN IMMEDIATE");
    how.busy_ms = 200;
    assert_int_equal(bk_db_recover(&how, &method, &f.ctl, &f.err), BK_BUSY);
    run_sql(reader, "ROLLBACK");
    assert_int_equal(query(db, "SELECT count(*) FROM t"), 11);
    sqlite3_close(reader);
    sqlite3_close(db);
    fixture_end(&f);
}

static void offline_recovery_sets_the_old_files_aside(void **state)
{
    fixture_t f;
    char path[300], file[300], aside[400];
    struct stat st;
    bk_db_method_t method;
    (void)state;
    fixture_start(&f, false);
    snprintf(path, sizeof path, "%s/app.db", f.dir);
    snprintf(file, sizeof file, "%s/image.db", f.dir);
    snprintf(aside, sizeof aside, "%s.before-job_1", path);
    make_db(path, "wal", 4096, "none");
    round_trip(&f, path, file, 1);
    bk_db_recover_t how = {.image = file,
                           .target = path,
                           .job = "job_1",
                           .mode = 0640,
                           .busy_ms = 1000,
                           .uid = geteuid(),
                           .gid = getegid()};
    assert_int_equal(unlink(path), 0);
    OK(bk_db_recover(&how, &method, &f.ctl, &f.err), &f.err);
    assert_int_equal(method, BK_DB_OFFLINE);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    /* Garbage in the header; somebody has it open: refused.  Nobody has: replaced. */
    pid_t pid = fork();
    if (pid == 0) {
        sqlite3 *holder = open_db(path);
        run_sql(holder, "BEGIN");
        query(holder, "SELECT count(*) FROM t");
        kill(getpid(), SIGSTOP);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, WUNTRACED);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "garbage garbage", 15, 0), 15);
    close(fd);
    assert_int_equal(bk_db_recover(&how, &method, &f.ctl, &f.err), BK_BUSY);
    assert_non_null(strstr(f.err.text, "stop the application"));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    OK(bk_db_recover(&how, &method, &f.ctl, &f.err), &f.err);
    assert_int_equal(stat(aside, &st), 0);
    sqlite3 *db = open_db(path);
    assert_int_equal(query(db, "SELECT count(*) FROM t"), 0);
    sqlite3_close(db);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wal_4096),
        cmocka_unit_test(wal_512_auto_vacuum),
        cmocka_unit_test(wal_65536),
        cmocka_unit_test(rollback_journal),
        cmocka_unit_test(live_recovery_keeps_readers_and_takes_place),
        cmocka_unit_test(offline_recovery_sets_the_old_files_aside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
