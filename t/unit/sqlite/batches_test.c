/*
 * t/unit/sqlite/batches_test.c: a database with a rollback journal is captured in batches: each is
 * what some commit left behind, commits wait for none of them long, and what becomes of it when the
 * journal mode, the page size or the process changes.
 */
#include <pthread.h>

#include "base/clock.h"
#include "sqlite/hashes.h"
#include "unit/sqlite/capture_testing.h"

static sqlite3 *begin(box_t *box, const char *journal)
{
    char sql[64];
    box->least = 1;
    box->most = 60000;
    assert_true(chaos_make(box->db, journal, 4096, "none"));
    take_base(box);
    start(box);
    sqlite3 *db = open_db(box->db);
    snprintf(sql, sizeof sql, "PRAGMA journal_mode=%s", journal);
    run_sql(db, sql);
    return db;
}

/* However short ago the last one was. */
static void batch(box_t *box)
{
    bool is = false;
    bk_db_source_t *source = open_source(box);
    OK(bk_capture_pinned(box->capture, bk_db_source_info(source), &is, &box->err), &box->err);
    assert_true(is);
    bk_db_source_close(source);
}

static void what_changed_between_two_looks_is_one_batch(void **state)
{
    static const char *const journals[] = {"delete", "truncate", "persist", "memory"};
    for (unsigned i = 0; i < 4; i++) {
        box_t *box;
        set_up((void **)&box);
        sqlite3 *db = begin(box, journals[i]);
        assert_true(state_of(box).batches);
        assert_int_equal(state_of(box).txid, 0);
        for (unsigned n = 0; n < 3; n++)
            run_sql(db, "INSERT INTO t(v, filler) VALUES(7, zeroblob(20000))");
        int64_t before = bk_now();
        batch(box);
        assert_int_equal(state_of(box).txid, 1);
        assert_true(state_of(box).as_of >= before);
        run_sql(db, "DELETE FROM t WHERE v = 7; VACUUM");
        batch(box);
        step(box);
        assert_int_equal(state_of(box).txid, 2);
        before = bk_now();
        step(box); /* nothing is new, and that is known */
        assert_int_equal(state_of(box).txid, 2);
        assert_true(state_of(box).as_of >= before);
        replay(box, NULL, NULL);
        assert_int_equal(box->batches, 2);
        assert_int_equal(box->gaps, 0);
        assert_is_now(box);
        sqlite3_close(db);
        tear_down((void **)&box);
    }
    *state = NULL;
}

/* Comparing costs, and commits wait for it: not after each of them. */
static void it_rests_between_two_batches(void **state)
{
    box_t *box = *state;
    sqlite3 *db = begin(box, "delete");
    stop(box);
    box->least = 3600000;
    start(box);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    batch(box);
    assert_int_equal(state_of(box).txid, 1);
    int64_t as_of = state_of(box).as_of;
    run_sql(db, "INSERT INTO t(v) VALUES(2)");
    step(box);
    assert_int_equal(state_of(box).txid, 1);
    assert_int_equal(state_of(box).as_of, as_of);
    batch(box);
    assert_int_equal(state_of(box).txid, 2);
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

/* Neither what it holds nor how it looks is ever in the way of somebody who does not wait. */
static void between_batches_nothing_is_held(void **state)
{
    box_t *box = *state;
    sqlite3 *db = begin(box, "delete");
    sqlite3_busy_timeout(db, 0);
    for (unsigned i = 0; i < 20; i++) {
        run_sql(db, "BEGIN EXCLUSIVE; INSERT INTO t(v) VALUES(1)");
        step(box);
        assert_false(state_of(box).paused);
        run_sql(db, "COMMIT");
        batch(box);
    }
    assert_int_equal(state_of(box).txid, 20);
    assert_false(exists(box->db, "-shm"));
    sqlite3_close(db);
}

static void what_would_take_too_long_is_given_up(void **state)
{
    box_t *box = *state;
    unsigned again;
    bk_rc_t rc = BK_OK;
    sqlite3 *db = begin(box, "delete");
    stop(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, zeroblob(300000000))");
    box->most = 20;
    assert_int_equal(try_open(box), BK_TIMEOUT);
    assert_non_null(strstr(box->err.text, "journal_mode=WAL"));
    sqlite3_busy_timeout(db, 0);
    run_sql(db, "DELETE FROM t WHERE v = 1; VACUUM");
    /* A few pages take as long when the machine has something else to do. */
    for (unsigned i = 0; i < 1000 && (rc = try_open(box)) == BK_TIMEOUT; i++)
        ;
    OK(rc, &box->err);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, zeroblob(300000000))");
    while ((rc = bk_capture_step(box->capture, true, &again, &box->err)) == BK_OK)
        bk_sleep_ms(1); /* it rests */
    assert_int_equal(rc, BK_TIMEOUT);
    assert_true(state_of(box).paused);
    run_sql(db, "DELETE FROM t WHERE v = 1; VACUUM");
    for (unsigned i = 0; i < 1000 && rc == BK_TIMEOUT; i++)
        rc = bk_capture_step(box->capture, true, &again, &box->err);
    OK(rc, &box->err);
    assert_false(state_of(box).paused);
    sqlite3_close(db);
}

/* When the writing takes too long, another try would not end either: so nothing is written. */
static void more_than_can_be_written_begins_an_epoch(void **state)
{
    box_t *box = *state;
    unsigned tries = 0;
    bk_rc_t rc;
    sqlite3 *db = begin(box, "delete");
    uint8_t epoch[BK_TXLOG_EPOCH];
    memcpy(epoch, state_of(box).epoch, sizeof epoch);
    stop(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(200000000))");
    /* Ever more time: comparing comes first within it. */
    for (box->most = 26; (rc = try_open(box)) == BK_TIMEOUT && tries < 300; tries++)
        box->most += 5;
    OK(rc, &box->err);
    assert_memory_not_equal(epoch, state_of(box).epoch, sizeof epoch);
    assert_int_equal(state_of(box).gaps, 0);
    sqlite3_close(db);
}

static void where_a_log_is_demanded_no_commit_waits(void **state)
{
    box_t *box = *state;
    bk_capture_options_t options = {.database = box->db, .dir = box->log, .want_wal = true};
    assert_true(chaos_make(box->db, "delete", 4096, "none"));
    assert_int_equal(bk_capture_open(&options, &box->ctl, &box->capture, &box->err),
                     BK_UNSUPPORTED);
    assert_non_null(strstr(box->err.text, "wal require"));
}

/* In the middle of its last look, or before it, or behind. */
static void *stop_soon(void *arg)
{
    bk_sleep_ms(20);
    bk_ctl_stop(arg, BK_INTERRUPTED);
    return NULL;
}

static void half_a_batch_is_not_gone_on_with(void **state)
{
    box_t *box = *state;
    pthread_t thread;
    sqlite3 *db = begin(box, "delete");
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100000000))");
    assert_int_equal(pthread_create(&thread, NULL, stop_soon, &box->ctl), 0);
    stop(box);
    assert_int_equal(pthread_join(thread, NULL), 0);
    atomic_store(&box->ctl.stop, 0);
    start(box);
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

/* As if the last look had been earlier. */
static void looked_before(const box_t *box, int64_t ns)
{
    bk_hashes_t hashes;
    bk_hashes_state_t known;
    bk_err_t err = {0};
    char path[320];
    snprintf(path, sizeof path, "%s/hashes", box->log);
    OK(bk_hashes_load(&hashes, &known, path, &err), &err);
    known.looked -= ns;
    OK(bk_hashes_save(&hashes, &known, path, &err), &err);
    bk_hashes_free(&hashes);
}

static void after_a_restart_the_difference_is_a_batch_unless_it_took_long(void **state)
{
    box_t *box = *state;
    sqlite3 *db = begin(box, "delete");
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    stop(box); /* with a last look */
    start(box);
    assert_int_equal(state_of(box).txid, 1);
    stop(box);
    run_sql(db, "INSERT INTO t(v) VALUES(2)");
    start(box);
    assert_int_equal(state_of(box).txid, 2);
    assert_int_equal(state_of(box).gaps, 0);
    stop(box);
    looked_before(box, 120 * BK_SEC);
    run_sql(db, "INSERT INTO t(v) VALUES(3)");
    start(box);
    assert_int_equal(state_of(box).txid, 3);
    assert_int_equal(state_of(box).gaps, 1);
    replay(box, NULL, NULL);
    assert_int_equal(box->batches, 2);
    assert_int_equal(box->gaps, 1);
    assert_is_now(box);
    sqlite3_close(db);
}

static void another_page_size_begins_an_epoch(void **state)
{
    box_t *box = *state;
    unsigned again;
    bk_rc_t rc;
    sqlite3 *db = begin(box, "delete");
    run_sql(db, "PRAGMA page_size=1024; VACUUM");
    while ((rc = bk_capture_step(box->capture, true, &again, &box->err)) == BK_OK)
        bk_sleep_ms(1); /* it rests */
    assert_int_equal(rc, BK_CHANGED);
    step(box);
    assert_true(state_of(box).new_epoch);
    assert_int_equal(state_of(box).page_size, 1024);
    sqlite3_close(db);
}

/* Into WAL mode the application may go at any time; back only when nobody else has it open. */
static void the_journal_mode_may_change(void **state)
{
    box_t *box = *state;
    sqlite3 *db = begin(box, "delete");
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    batch(box);
    run_sql(db, "PRAGMA journal_mode=WAL; INSERT INTO t(v) VALUES(2)");
    batch(box);
    assert_false(state_of(box).batches);
    uint64_t txid = state_of(box).txid;
    for (unsigned i = 0; i < 3; i++)
        run_sql(db, "INSERT INTO t(v) VALUES(3)");
    step(box);
    assert_int_equal(state_of(box).txid, txid + 3);
    stop(box);
    run_sql(db, "PRAGMA journal_mode=DELETE; INSERT INTO t(v) VALUES(4)");
    start(box);
    assert_true(state_of(box).batches);
    assert_false(state_of(box).new_epoch);
    run_sql(db, "INSERT INTO t(v) VALUES(5)");
    batch(box);
    replay(box, NULL, NULL);
    assert_int_equal(box->batches, 3);
    assert_int_equal(box->gaps, 1);
    assert_is_now(box);
    sqlite3_close(db);
}

/* One of them is killed again and again, so that its journal has to be played back. */
static void each_batch_is_what_a_commit_left(void **state)
{
    box_t *box = *state;
    oracle_t oracle = {.number = 0};
    unsigned again, kills = 0;
    box->least = 1;
    assert_true(chaos_make(box->db, "delete", 4096, "full"));
    take_base(box);
    start(box);
    pid_t pids[2] = {writer(box, &oracle, 0, 1000, 300), writer(box, &oracle, 1, 1000, 1000000)};
    for (unsigned i = 1; !is_over(&pids[0]); i++) {
        bk_rc_t rc = bk_capture_step(box->capture, true, &again, &box->err);
        if (rc != BK_BUSY)
            OK(rc, &box->err);
        if (i % 5 == 0)
            batch(box); /* it may rest for long when the machine is slow */
        if (i % 10 == 0) {
            kill_hard(pids[1]);
            pids[1] = writer(box, &oracle, 1, 1000, 1000000);
            kills++;
        }
        bk_sleep_ms(3);
    }
    kill_hard(pids[1]);
    batch(box);
    replay(box, judge, &oracle);
    assert_is_now(box);
    assert_true(kills > 0);
    assert_in_range(box->batches, 6, 1000);
    assert_int_equal(box->gaps, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_changed_between_two_looks_is_one_batch),
        cmocka_unit_test_setup_teardown(it_rests_between_two_batches, set_up, tear_down),
        cmocka_unit_test_setup_teardown(between_batches_nothing_is_held, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_would_take_too_long_is_given_up, set_up, tear_down),
        cmocka_unit_test_setup_teardown(more_than_can_be_written_begins_an_epoch, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(where_a_log_is_demanded_no_commit_waits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(half_a_batch_is_not_gone_on_with, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            after_a_restart_the_difference_is_a_batch_unless_it_took_long, set_up, tear_down),
        cmocka_unit_test_setup_teardown(another_page_size_begins_an_epoch, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_journal_mode_may_change, set_up, tear_down),
        cmocka_unit_test_setup_teardown(each_batch_is_what_a_commit_left, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
