/*
 * t/unit/engine/unchanged_test.c: an incremental backup of a captured database reads the blocks that
 * its transactions changed, and is what a full one would be: recovered, its pages have the digest
 * that the transactions tell, and what the application sees.
 */
#include "unit/engine/captures.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "engine/capturing.h"

#define ROWS 3000 /* of a page each */

static fixture_t *with_rows(sqlite3 **db)
{
    fixture_t *f = fixture_new(false);
    char id[BK_BACKUP_ID];
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    *db = open_db(f, "app/app.db");
    sql(*db, "CREATE TABLE big(id INTEGER PRIMARY KEY, filler BLOB);"
             "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)"
             "INSERT INTO big SELECT i, randomblob(3500) FROM n; PRAGMA wal_checkpoint(TRUNCATE)");
    open_engine(f);
    capture(f);
    back_up(f, "full", id);
    return f;
}

/* An incremental backup that ends so, with such a warning: how much of its sources it read. */
static uint64_t incremental_ends(fixture_t *f, const char *status, const char *warning,
                                 char id[BK_BACKUP_ID])
{
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", status);
    if (warning != NULL)
        assert_contains(text_of(job, "warnings.0"), warning);
    bk_strcpy(id, BK_BACKUP_ID, text_of(job, "backup_id"));
    uint64_t bytes = (uint64_t)int_of(job, "stats.bytes_read");
    done(job);
    return bytes;
}

static uint64_t incremental(fixture_t *f, char id[BK_BACKUP_ID])
{
    return incremental_ends(f, "completed", NULL, id);
}

/* Digest, pages and SQLite's check are asked of it by the recovery itself. */
static int64_t recovered(fixture_t *f, const char *id, const char *question)
{
    static unsigned number;
    char body[512], file[64];
    bk_fmt(file, sizeof file, "restored/%u", ++number);
    bk_fmt(body, sizeof body,
           "{\"recovery_type\": \"database\", \"backup_id\": \"%s\", "
           "\"restore_to_original\": false, \"target_directory\": \"%s\"}",
           id, at(f, file));
    done(do_job(f, BK_JOB_RECOVERY, body, "completed"));
    bk_fmt(file, sizeof file, "restored/%u/app.db", number);
    return number_in(f, file, question);
}

static const char *const sum = "SELECT sum(id * length(filler)) FROM big";

static void only_what_changed_is_read(void **state)
{
    (void)state;
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    fixture_t *f = with_rows(&db);
    uint64_t all = (uint64_t)number(db, "PRAGMA page_count") * 4096;
    assert_true(all > ROWS * 4096);
    assert_int_equal(incremental(f, id), 0);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id IN (1, 1500, 3000)");
    uint64_t bytes = incremental(f, id);
    assert_in_range(bytes, 1, all / 10);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    /* When much changed, all is read at once. */
    sql(db, "UPDATE big SET filler = randomblob(3300) WHERE id % 64 = 5");
    assert_true(incremental(f, id) >= all);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    /* A full one believes nobody. */
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"full\"}", "completed");
    assert_true((uint64_t)int_of(job, "stats.bytes_read") >= all);
    done(job);
    sqlite3_close(db);
    fixture_free(f);
}

/* Also across a restart, segments on the storage, and sizes that change. */
static void whatever_happens_in_between_it_is_the_database(void **state)
{
    (void)state;
    static const char *const what[] = {
        "DELETE FROM big WHERE id % 3 = 0",
        "VACUUM",
        "INSERT INTO big SELECT id + 5000, randomblob(3000) FROM big WHERE id % 2",
        "DELETE FROM big WHERE id > 2000; VACUUM; INSERT INTO big VALUES(9000, zeroblob(900000))",
        "UPDATE big SET filler = zeroblob(300000) WHERE id = 9000",
        "DELETE FROM big WHERE id = 9000; VACUUM",
        "INSERT INTO big VALUES(9001, randomblob(5000000))",
    };
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    fixture_t *f = with_rows(&db);
    for (unsigned round = 0; round < 14; round++) {
        sql(db, what[round % 7]);
        if (round % 2)
            capture(f);
        if (round % 3 == 1)
            ship(f);
        if (round % 4 == 2) {
            close_engine(f);
            open_engine(f);
            capture(f);
        }
        sql(db, "UPDATE big SET filler = randomblob(100) WHERE id = 7");
        incremental(f, id);
        assert_int_equal(recovered(f, id, sum), number(db, sum));
    }
    sqlite3_close(db);
    fixture_free(f);
}

/* By another process: a descriptor that this one closes would drop SQLite's locks. */
static void write_past_sqlite(const char *path)
{
    uint8_t byte;
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        off_t at = lseek(fd, 0, SEEK_END) - 96;
        bool ok = pread(fd, &byte, 1, at) == 1;
        byte ^= 1;
        _exit(ok && pwrite(fd, &byte, 1, at) == 1 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* What is captured is known not to be what is there. */
static void is_doubted(fixture_t *f, bool doubted)
{
    json_t *health, *one = capture_of(f);
    bk_err_t err = {0};
    assert_int_equal(json_is_true(json_object_get(one, "doubted")), doubted);
    json_decref(one);
    OK(bk_engine_health(f->engine, &health, &err), &err);
    assert_string_equal(text_of(health, "checks.database_main:content.0.status"),
                        doubted ? "fail" : "pass");
    json_decref(health);
}

/* In a block that a transaction changes as well. */
static void what_no_transaction_tells_is_noticed(void **state)
{
    (void)state;
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    fixture_t *f = with_rows(&db);
    write_past_sqlite(at(f, "app/app.db"));
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id = 2999");
    assert_true(incremental_ends(f, "warning", "not what its transactions tell", id) > ROWS * 4096);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    is_doubted(f, true);
    capture(f);
    is_doubted(f, false);
    assert_true(incremental(f, id) < ROWS * 4096);
    sqlite3_close(db);
    fixture_free(f);
}

/* A full backup believes nobody, and says what it found; in a gap, moments are right again. */
static void a_full_backup_finds_what_no_transaction_tells(void **state)
{
    (void)state;
    sqlite3 *db;
    char body[256];
    fixture_t *f = with_rows(&db);
    capture(f);
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"full\"}", "completed");
    done(job);
    json_t *one = capture_of(f);
    char proved[BK_TIME_TEXT];
    bk_strcpy(proved, sizeof proved, text_of(one, "proved"));
    assert_int_equal(strlen(proved), strlen("2025-01-01T00:00:00Z"));
    json_decref(one);
    write_past_sqlite(at(f, "app/app.db"));
    job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"full\"}", "warning");
    assert_contains(text_of(job, "warnings.0"), "not what its transactions made of it");
    done(job);
    is_doubted(f, true);
    close_engine(f); /* whoever comes next knows of it */
    open_engine(f);
    is_doubted(f, true);
    capture(f);
    is_doubted(f, false);
    one = capture_of(f);
    assert_int_equal(int_of(one, "gaps"), 1);
    json_decref(one);
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id = 1");
    capture(f);
    one = capture_of(f);
    bk_fmt(body, sizeof body,
           "{\"recovery_type\": \"database\", \"transaction\": %lld, "
           "\"restore_to_original\": false, \"target_directory\": \"%s\"}",
           (long long)int_of(one, "transaction"), at(f, "restored/after"));
    json_decref(one);
    done(do_job(f, BK_JOB_RECOVERY, body, "completed"));
    const char *all = "SELECT sum(unicode(hex(substr(filler, 3300, 1)))) FROM big";
    assert_int_equal(number_in(f, "restored/after/app.db", all), number(db, all));
    done(do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"full\"}", "completed"));
    sqlite3_close(db);
    fixture_free(f);
}

/* The earlier backup's map is gone: the new one does without. */
static void what_cannot_be_read_of_the_earlier_backup_is_no_obstacle(void **state)
{
    (void)state;
    sqlite3 *db;
    bk_err_t err = {0};
    char id[BK_BACKUP_ID];
    fixture_t *f = with_rows(&db);
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id = 1");
    close_engine(f);
    OK(bk_remove_tree(at(f, "storage/meta"), true, &err), &err);
    open_engine(f);
    capture(f);
    /* The first one finds out, and says that the next one will be whole. */
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", "failed");
    assert_contains(text_of(job, "error"), "run it again");
    done(job);
    /* The warning is of the files. */
    assert_true(incremental_ends(f, "warning", "previous", id) > ROWS * 4096);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    sqlite3_close(db);
    fixture_free(f);
}

/* What the capture does not know, nobody takes for known. */
static void without_a_capture_all_is_read(void **state)
{
    (void)state;
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    fixture_t *f = with_rows(&db);
    json_t *answer;
    OK(bk_engine_detach(f->engine, "main", true, &answer, &f->err), &f->err);
    json_decref(answer);
    bk_engine_obey_detach(f->engine);
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id = 1");
    assert_true(incremental(f, id) > ROWS * 4096);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    sqlite3_close(db);
    fixture_free(f);
}

/* A new epoch begins with a number that a transaction of the one before has. */
static void another_epoch_is_not_taken_for_the_one_before(void **state)
{
    (void)state;
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    fixture_t *f = with_rows(&db);
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id = 1");
    capture(f);
    assert_true(incremental(f, id) < ROWS * 4096);
    close_engine(f);
    sql(db, "UPDATE big SET filler = randomblob(3400) WHERE id = 2");
    assert_int_equal(unlink(at(f, "base/wal/main/hashes")), 0);
    open_engine(f);
    capture(f);
    assert_true(incremental(f, id) > ROWS * 4096);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    sqlite3_close(db);
    fixture_free(f);
}

/* While the application commits all the time the pin is behind what is captured. */
static void beside_a_writer_it_is_the_transaction_of_the_pin(void **state)
{
    (void)state;
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    unsigned less = 0;
    fixture_t *f = with_rows(&db);
    sqlite3_close(db);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        db = open_db(f, "app/app.db");
        for (unsigned i = 0;; i++)
            sql(db, i % 2 ? "UPDATE big SET filler = randomblob(3000) WHERE id = 5"
                          : "INSERT INTO jobs(name) VALUES('next')");
    }
    for (unsigned i = 0; i < 10; i++) {
        capture(f);
        less += incremental(f, id) < ROWS * 4096;
        if (i % 3 == 0) /* and what that finds is just what that one left behind */
            back_up(f, "full", id);
        assert_int_equal(recovered(f, id, "SELECT count(*) FROM big"), ROWS);
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_in_range(less, 9, 10); /* a header may be just written, for once */
    fixture_free(f);
}

static uint64_t full(fixture_t *f, char id[BK_BACKUP_ID])
{
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"full\"}", "completed");
    bk_strcpy(id, BK_BACKUP_ID, text_of(job, "backup_id"));
    uint64_t bytes = (uint64_t)int_of(job, "stats.bytes_read");
    done(job);
    return bytes;
}

/* It is read before the pin, and what is written meanwhile once more; the dump itself compares the
 * digest of all of it with what the transactions tell. */
static void a_full_backup_of_a_large_one_looks_ahead(void **state)
{
    (void)state;
    sqlite3 *db;
    char id[BK_BACKUP_ID];
    uint64_t more = 0;
    fixture_t *f = with_rows(&db);
    uint64_t all = (uint64_t)number(db, "PRAGMA page_count") * 4096;
    bk_backup_ahead_from = 1;
    bk_backup_ahead_pin = 1;
    assert_in_range(full(f, id), all, all + all / 4);
    assert_int_equal(recovered(f, id, sum), number(db, sum));
    sqlite3_close(db);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        db = open_db(f, "app/app.db");
        for (unsigned i = 1;; i++) {
            char text[96];
            bk_fmt(text, sizeof text, "UPDATE big SET filler = randomblob(3500) WHERE id = %u",
                   1 + i * 2654435761u % ROWS);
            sql(db, text);
            if (i % 400 == 0)
                sql(db, "DELETE FROM big WHERE id > 2990; VACUUM;"
                        "INSERT INTO big SELECT 2990 + id, randomblob(3500) FROM big LIMIT 10");
            bk_sleep_ms(1);
        }
    }
    for (unsigned i = 0; i < 12; i++) {
        capture(f);
        more += full(f, id) - all;
        assert_in_range(recovered(f, id, "SELECT count(*) FROM big"), ROWS - 10, ROWS);
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_in_range(more, 1, 12 * all); /* something was written meanwhile */
    bk_backup_ahead_from = BK_DB_LARGE;
    bk_backup_ahead_pin = 0;
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_changed_is_read),
        cmocka_unit_test(whatever_happens_in_between_it_is_the_database),
        cmocka_unit_test(what_no_transaction_tells_is_noticed),
        cmocka_unit_test(a_full_backup_finds_what_no_transaction_tells),
        cmocka_unit_test(what_cannot_be_read_of_the_earlier_backup_is_no_obstacle),
        cmocka_unit_test(without_a_capture_all_is_read),
        cmocka_unit_test(another_epoch_is_not_taken_for_the_one_before),
        cmocka_unit_test(beside_a_writer_it_is_the_transaction_of_the_pin),
        cmocka_unit_test(a_full_backup_of_a_large_one_looks_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
