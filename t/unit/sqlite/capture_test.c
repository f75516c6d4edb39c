/*
 * t/unit/sqlite/capture_test.c: every commit of live writers is a transaction of the segments, and
 * what these make of the base is the database after that commit; a capture goes on where the one
 * before ended, or says that something is missing.
 */
#include <dirent.h>
#include <sys/mount.h>

#include "base/attached.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/capture.h"
#include "sqlite/connect.h"
#include "sqlite/source.h"
#include "sqlite/txlog_private.h"
#include "unit/sqlite/capture_testing.h"

/* --- quiet --- */

static void each_commit_is_a_transaction(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    take_base(box);
    start(box);
    assert_int_equal(state_of(box).txid, 0);
    assert_true(state_of(box).new_epoch);
    for (int i = 0; i < 20; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(9000))");
        step(box);
        assert_int_equal(state_of(box).txid, i + 1);
    }
    run_sql(db, "BEGIN; DELETE FROM t; ROLLBACK");
    step(box);
    assert_int_equal(state_of(box).txid, 20);
    run_sql(db, "DELETE FROM t; VACUUM");
    step(box);
    assert_int_equal(state_of(box).txid, 22);
    assert_int_equal(replay(box, NULL, NULL), 1);
    assert_int_equal(box->txid, 22);
    assert_is_now(box);
    sqlite3_close(db);
}

/* All of it is in the log. */
static void one_that_was_never_checkpointed_is_captured(void **state)
{
    box_t *box = *state;
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA page_size=2048; PRAGMA journal_mode=WAL");
    run_sql(db, "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v)");
    take_base(box);
    start(box);
    for (int i = 0; i < 5; i++) {
        run_sql(db, "INSERT INTO t VALUES(randomblob(3000))");
        step(box);
        assert_int_equal(state_of(box).txid, i + 1);
    }
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

static void segments_follow_each_other(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 1024, "none"));
    sqlite3 *db = open_db(box->db);
    take_base(box);
    start(box);
    for (int i = 0; i < 9; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
        step(box);
        if (i % 3 == 2)
            OK(bk_capture_roll(box->capture, &box->err), &box->err);
    }
    OK(bk_capture_roll(box->capture, &box->err), &box->err); /* nothing to seal */
    assert_int_equal(replay(box, NULL, NULL), 3);
    assert_int_equal(box->txid, 9);
    assert_is_now(box);
    sqlite3_close(db);
}

/* The pin must not keep the log from beginning anew. */
static void the_log_does_not_grow_without_end(void **state)
{
    box_t *box = *state;
    char wal[320];
    struct stat st;
    unsigned again;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA synchronous=OFF");
    start(box);
    for (int i = 0; i < 6000; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
        if (i % 10 == 0)
            OK(bk_capture_step(box->capture, true, &again, &box->err), &box->err);
    }
    snprintf(wal, sizeof wal, "%s-wal", box->db);
    assert_int_equal(stat(wal, &st), 0);
    assert_in_range(st.st_size, 1, 9000 * 4120);
    step(box);
    assert_int_equal(state_of(box).txid, 6000);
    sqlite3_close(db);
}

/* It is of no use to keep writers out while somebody needs the log. */
static void while_a_reader_needs_the_log_writers_are_left_alone(void **state)
{
    box_t *box = *state;
    unsigned again, kept_out = 0;
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .soft = 10};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db), *reader = open_db(box->db);
    run_sql(db, "PRAGMA synchronous=OFF");
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    run_sql(reader, "BEGIN; SELECT count(*) FROM t");
    for (int i = 0; i < 100; i++)
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(9000))");
    step(box);
    for (unsigned i = 0; i < 20; i++) {
        bk_sleep_ms(51);
        OK(bk_capture_step(box->capture, true, &again, &box->err), &box->err);
    }
    bk_capture_state_t s = state_of(box);
    kept_out = s.bars;
    assert_true(s.blocked);
    assert_false(s.blocked_here);
    assert_in_range(kept_out, 1, 8); /* of 20 */
    sqlite3_close(reader);
    bk_db_source_t *source = open_source(box);
    for (unsigned i = 0; i < 60 && !s.blocked_here; i++) {
        run_sql(db, "UPDATE t SET v = v + 1");
        bk_sleep_ms(200);
        step(box);
        s = state_of(box);
    }
    assert_true(s.blocked_here);
    bk_db_source_close(source);
    sqlite3_close(db);
}

/* --- live writers --- */

static void chaos(box_t *box, int page_size, const char *vacuum, int autocheckpoint, long commits)
{
    oracle_t oracle = {.number = 0};
    unsigned again = 1, roll = 0;
    assert_true(chaos_make(box->db, "wal", page_size, vacuum));
    take_base(box);
    start(box);
    pid_t pids[2] = {writer(box, &oracle, 0, autocheckpoint, commits),
                     writer(box, &oracle, 1, autocheckpoint, commits)};
    for (bool over = false; !over;) {
        over = is_over(&pids[0]) && is_over(&pids[1]);
        OK(bk_capture_step(box->capture, false, &again, &box->err), &box->err);
        if (++roll % 100 == 0)
            OK(bk_capture_roll(box->capture, &box->err), &box->err);
        bk_sleep_ms(again < 3 ? again : 3);
    }
    replay(box, judge, &oracle);
    assert_is_now(box);
    assert_int_equal(oracle.number, 2 * commits);
    assert_int_equal(oracle.commits, 2 * commits);
    assert_int_equal(box->gaps, 0);
    assert_int_equal(state_of(box).txid, box->txid);
    assert_int_equal(state_of(box).digest, box->digest);
}

static void all_commits_of_two_writers(void **state)
{
    chaos(*state, 4096, "none", 20, 150);
}

static void all_commits_with_small_pages(void **state)
{
    chaos(*state, 512, "full", 1000, 100);
}

static void all_commits_with_large_pages(void **state)
{
    chaos(*state, 65536, "incremental", 5, 60);
}

/* --- going on --- */

static void what_the_log_still_tells_is_no_gap(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    take_base(box);
    for (int i = 0; i < 5; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
        start(box);
        if (i == 0)
            take_base(box);
        run_sql(db, "UPDATE t SET v = v + 1");
        if (i % 2)
            step(box);
        stop(box);
    }
    start(box);
    assert_int_equal(state_of(box).gaps, 0);
    assert_false(state_of(box).new_epoch);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 9);
    assert_int_equal(box->gaps, 0);
    assert_is_now(box);
    sqlite3_close(db);
}

static void what_nobody_saw_is_one_gap(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    take_base(box);
    start(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
    step(box);
    stop(box);
    for (int i = 0; i < 3; i++)
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(9000));"
                    "PRAGMA wal_checkpoint(TRUNCATE)");
    start(box);
    assert_int_equal(state_of(box).gaps, 1);
    assert_false(state_of(box).new_epoch);
    run_sql(db, "DELETE FROM t WHERE id > 2");
    step(box);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 3);
    assert_int_equal(box->gaps, 1);
    assert_is_now(box);
    sqlite3_close(db);
}

/* The application ends, empties its log and begins again: nothing happened, nothing is said. */
static void a_restart_of_the_application_is_no_gap(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    sqlite3 *db = open_db(box->db);
    start(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
    step(box);
    stop(box);
    run_sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    sqlite3_close(db);
    start(box);
    assert_int_equal(state_of(box).gaps, 0);
    stop(box);
    db = open_db(box->db);
    run_sql(db, "UPDATE t SET v = 7");
    sqlite3_close(db);
    start(box);
    assert_int_equal(state_of(box).gaps, 1);
    replay(box, NULL, NULL);
    assert_is_now(box);
}

/* Everything is copied and nobody needs the log: the next commit begins it anew. */
static void come_to_rest(box_t *box)
{
    for (unsigned i = 0; i < 3; i++) {
        bk_sleep_ms(210);
        step(box);
    }
}

static void a_hold_bridges_the_time_between_two(void **state)
{
    box_t *box = *state;
    bk_capture_hold_t *hold = NULL;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    sqlite3 *db = open_db(box->db);
    start(box);
    for (unsigned round = 0; round < 2; round++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
        step(box);
        come_to_rest(box);
        if (round == 0)
            OK(bk_capture_hold(box->db, 1000, &box->ctl, &hold, &box->err), &box->err);
        stop(box);
        run_sql(db, "UPDATE t SET v = v + 1; UPDATE t SET v = v + 1");
        bk_capture_options_t options = {
            .database = box->db, .dir = box->log, .busy_ms = 20000, .hold = hold};
        OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
        bk_capture_hold_end(hold);
        hold = NULL;
        step(box);
        assert_int_equal(state_of(box).gaps, round); /* the second time nobody held it */
        assert_int_equal(state_of(box).txid, round == 0 ? 3 : 5);
    }
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

/* While the other one goes on a hold moves on: the log begins anew all the same. */
static void a_hold_that_moves_on_lets_the_log_begin_anew(void **state)
{
    box_t *box = *state;
    bk_capture_hold_t *hold;
    bk_capture_options_t options = {.database = box->db, .dir = box->log, .busy_ms = 20000};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA wal_autocheckpoint=0");
    start(box);
    OK(bk_capture_hold(box->db, 1000, &box->ctl, &hold, &box->err), &box->err);
    for (unsigned i = 0; i < 10; i++) {
        run_sql(db, "UPDATE t SET v = v + 1");
        step(box);
        OK(bk_capture_hold_next(hold, &box->err), &box->err);
        bk_capture_hold_turn(hold, true);
        come_to_rest(box);
        OK(bk_capture_hold_next(hold, &box->err), &box->err);
        if (i == 5) {
            bk_capture_hold_turn(hold, false); /* was the other one gone? */
            OK(bk_capture_hold_next(hold, &box->err), &box->err);
        }
        bk_capture_hold_turn(hold, true);
        assert_in_range(bk_capture_hold_frames(hold), 1, 4);
    }
    /* What it sees now is captured before the other one lets go. */
    run_sql(db, "UPDATE t SET v = v + 1");
    OK(bk_capture_hold_next(hold, &box->err), &box->err);
    bk_capture_hold_turn(hold, true);
    stop(box);
    sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    run_sql(db, "UPDATE t SET v = v + 1; UPDATE t SET v = v + 1");
    options.hold = hold;
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    bk_capture_hold_end(hold);
    assert_int_equal(state_of(box).gaps, 0);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 13);
    assert_is_now(box);
    sqlite3_close(db);
}

/* An empty log has no name of its own: one is as good as another, so it proves nothing. */
static void a_hold_on_an_empty_log_bridges_nothing(void **state)
{
    box_t *box = *state;
    bk_capture_hold_t *hold;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    start(box);
    stop(box);
    sqlite3 *db = open_db(box->db);
    run_sql(db, "UPDATE t SET v = 5");
    sqlite3_close(db); /* and the log is gone */
    OK(bk_capture_hold(box->db, 1000, &box->ctl, &hold, &box->err), &box->err);
    db = open_db(box->db);
    run_sql(db, "UPDATE t SET v = 6");
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .hold = hold};
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    bk_capture_hold_end(hold);
    step(box);
    assert_int_equal(state_of(box).gaps, 1);
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

static void break_the_schema(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA wal_autocheckpoint=0; PRAGMA writable_schema=ON;"
                "INSERT INTO sqlite_schema VALUES('table', 'x', 'x', 2, 'CREATE TABLE x(')");
}

/* What nobody can ask about is left as it was found. */
static void a_first_look_that_fails_leaves_the_log(void **state)
{
    box_t *box = *state;
    struct stat before, after;
    char wal[320];
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    kill_hard(hold(break_the_schema, box->db));
    snprintf(wal, sizeof wal, "%s-wal", box->db);
    assert_int_equal(stat(wal, &before), 0);
    assert_true(before.st_size > 0);
    assert_int_equal(try_open(box), BK_CORRUPT);
    assert_int_equal(stat(wal, &after), 0);
    assert_int_equal(after.st_size, before.st_size);
}

/* There a pin would keep the application from committing. */
static void outside_wal_mode_nothing_is_held(void **state)
{
    box_t *box = *state;
    bk_capture_hold_t *hold;
    assert_true(chaos_make(box->db, "delete", 4096, "none"));
    assert_int_equal(bk_capture_hold(box->db, 1000, &box->ctl, &hold, &box->err), BK_UNSUPPORTED);
    assert_null(hold);
    assert_false(exists(box->db, "-shm"));
    sqlite3 *db = open_db(box->db);
    sqlite3_busy_timeout(db, 0);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    sqlite3_close(db);
}

static void capture_until_killed(box_t *box, unsigned steps)
{
    unsigned again;
    if (try_open(box) != BK_OK)
        _exit(1);
    for (unsigned i = 0; i < steps; i++) {
        if (bk_capture_step(box->capture, true, &again, &box->err) != BK_OK)
            _exit(2);
        if (i % 20 == 19 && bk_capture_roll(box->capture, &box->err) != BK_OK)
            _exit(3);
        usleep(500);
    }
    raise(SIGKILL);
}

/* Whoever is killed, the application's writers or we: at worst a gap is said, never a wrong state.
 */
static void kills_leave_a_gap_at_worst(void **state)
{
    box_t *box = *state;
    oracle_t oracle = {.number = 0};
    uint64_t seed = 1;
    assert_true(chaos_make(box->db, "wal", 1024, "full"));
    take_base(box);
    start(box);
    stop(box);
    for (unsigned round = 0; round < 12; round++) {
        int status;
        pid_t pids[2] = {writer(box, &oracle, 0, 20, 0), writer(box, &oracle, 1, 1000, 0)};
        pid_t us = fork();
        if (us == 0)
            capture_until_killed(box, 5 + (unsigned)(chaos_random(&seed) % 60));
        assert_int_equal(waitpid(us, &status, 0), us);
        assert_true(WIFSIGNALED(status));
        for (unsigned i = 0; i < 2; i++)
            kill_hard(pids[i]);
    }
    start(box);
    replay(box, judge, &oracle);
    assert_is_now(box);
    assert_true(box->txid > 30);
}

/* What is copied needs no pin any more, so the log begins anew just while it is asked what it
 * holds. */
static void where_to_go_on_is_found_while_the_log_begins_anew(void **state)
{
    box_t *box = *state;
    oracle_t oracle = {.number = 0};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    start(box);
    stop(box);
    pid_t pid = writer(box, &oracle, 0, 1, 0); /* a checkpoint after each commit */
    for (unsigned round = 0; round < 60; round++) {
        usleep(round % 7 * 300);
        start(box);
        step(box);
        stop(box);
    }
    kill_hard(pid);
    start(box);
    step(box);
    replay(box, judge, &oracle);
    assert_is_now(box);
    assert_true(box->txid > 20);
}

static box_t *held;

static void capture_one(const char *path)
{
    start(held);
    sqlite3 *db = open_db(path);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
    step(held);
}

static void keep_times(box_t *box, const bk_tx_t *tx, void *arg)
{
    bk_tx_t *times = arg;
    assert_in_range(box->txid, 1, 2);
    times[box->txid - 1] = *tx;
}

/*
 * The look that saw the last transaction had the log's header before t_hi, and a commit may have
 * been made in between: whoever goes on says that it came after the look began.
 */
static void what_comes_next_may_be_older_than_the_end_of_a_look(void **state)
{
    bk_tx_t times[2];
    box_t *box = held = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    kill_hard(hold(capture_one, box->db));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
    start(box);
    replay(box, keep_times, times);
    assert_int_equal(box->txid, 2);
    assert_int_equal(box->gaps, 0);
    assert_true(times[1].t_lo >= times[0].t_lo);
    assert_true(times[1].t_lo < times[0].t_hi);
    sqlite3_close(db);
}

/* The application's disk must not fill because all of its database is read under a pin. */
static void a_first_read_gives_way_to_a_log_that_grows(void **state)
{
    box_t *box = *state;
    oracle_t oracle = {.number = 0};
    char path[320];
    bk_rc_t rc = BK_OK;
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .growth = 1};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "CREATE TABLE big(v); INSERT INTO big VALUES(zeroblob(40000000));"
                "PRAGMA wal_checkpoint(TRUNCATE)");
    sqlite3_close(db);
    pid_t pid = writer(box, &oracle, 0, 0, 0);
    snprintf(path, sizeof path, "%s/hashes", box->log);
    for (unsigned i = 0; i < 100 && rc == BK_OK; i++) {
        rc = bk_capture_open(&options, &box->ctl, &box->capture, &box->err);
        stop(box);
        unlink(path);
    }
    kill_hard(pid);
    assert_int_equal(rc, BK_TIMEOUT);
    assert_non_null(strstr(box->err.text, "-wal grew"));
    start(box);
    step(box);
}

/* It begins a segment, or, when it is too large for any, an epoch. */
static void what_fits_into_no_segment_begins_an_epoch(void **state)
{
    box_t *box = *state;
    uint8_t epoch[BK_TXLOG_EPOCH];
    unsigned again;
    assert_true(chaos_make(box->db, "wal", 512, "none"));
    sqlite3 *db = open_db(box->db);
    take_base(box);
    bk_txlog_index_max = 900;
    start(box);
    memcpy(epoch, state_of(box).epoch, sizeof epoch);
    for (unsigned i = 0; i < 12; i++)
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(9000))");
    step(box);
    assert_true(replay(box, NULL, NULL) > 2);
    assert_int_equal(box->txid, 12);
    assert_is_now(box);
    for (unsigned i = 0; i < 2; i++) { /* seen as it happens, and not */
        if (i == 1)
            stop(box);
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900000));"
                    "PRAGMA wal_checkpoint(TRUNCATE)");
        if (i == 1)
            run_sql(db, "UPDATE t SET v = v + 1");
        if (i == 0)
            assert_int_equal(bk_capture_step(box->capture, true, &again, &box->err), BK_TOO_LARGE);
        else
            start(box);
        step(box);
        assert_true(state_of(box).new_epoch);
        assert_memory_not_equal(epoch, state_of(box).epoch, sizeof epoch);
        memcpy(epoch, state_of(box).epoch, sizeof epoch);
        assert_non_null(strstr(box->ctl.notes[i], "can hold"));
    }
    bk_txlog_index_max = BK_TXLOG_INDEX_MAX;
    run_sql(db, "UPDATE t SET v = v + 1");
    step(box);
    assert_int_equal(state_of(box).txid, 13); /* numbers go on */
    sqlite3_close(db);
}

/* Where a sector is larger than a page the last frame is repeated until the sector is full. */
static void padding_is_no_transaction(void **state)
{
    box_t *box = *state;
    char uri[400];
    sqlite3 *db;
    assert_true(chaos_make(box->db, "wal", 512, "none"));
    take_base(box);
    snprintf(uri, sizeof uri, "file:%s?psow=0", box->db);
    assert_int_equal(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL), 0);
    run_sql(db, "PRAGMA synchronous=FULL");
    start(box);
    for (unsigned i = 0; i < 20; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
        step(box);
    }
    assert_int_equal(state_of(box).txid, 20);
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

/*
 * Pages that were spilled and changed again, then ROLLBACK TO: some releases of SQLite commit
 * frames without a checksum then, which readers see all the same.
 */
static void frames_without_a_checksum_are_captured(void **state)
{
    box_t *box = *state;
    unsigned taken = 0;
    assert_true(chaos_make(box->db, "wal", 1024, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA cache_size=12; PRAGMA wal_autocheckpoint=0");
    for (unsigned i = 0; i < 200; i++)
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(700))");
    take_base(box);
    start(box);
    for (unsigned i = 0; i < 10; i++) {
        run_sql(db, "BEGIN; SAVEPOINT s; UPDATE t SET filler = randomblob(700);"
                    "UPDATE t SET filler = randomblob(700) WHERE id > 100;"
                    "ROLLBACK TO s; RELEASE s; UPDATE t SET v = v + 1 WHERE id = 3; COMMIT");
        step(box);
        taken++;
        if (i % 3 == 0)
            run_sql(db, "UPDATE t SET v = v + 1 WHERE id = 5");
        taken += i % 3 == 0;
    }
    step(box);
    assert_int_equal(state_of(box).txid, taken);
    replay(box, NULL, NULL);
    assert_is_now(box); /* a backup reads them as well */
    assert_int_equal(box->gaps, 0);
    sqlite3_close(db);
}

/* Past SQLite: by another process, since closing the file here would drop our locks. */
static void write_past_sqlite(const box_t *box, uint64_t offset)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(box->db, O_WRONLY | O_CLOEXEC);
        _exit(fd >= 0 && pwrite(fd, "xyz", 3, (off_t)offset) == 3 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* When nobody writes the pages are compared with what was captured. */
static void a_page_that_nobody_wrote_is_noticed(void **state)
{
    box_t *box = *state;
    uint8_t epoch[BK_TXLOG_EPOCH];
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .audit_idle = 1, .audit_every = 1};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(90000))");
    take_base(box);
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    memcpy(epoch, state_of(box).epoch, sizeof epoch);
    int64_t before = bk_now();
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(9000))");
    step(box);
    come_to_rest(box);
    for (unsigned i = 0; i < 100 && state_of(box).audits == 0; i++) {
        bk_sleep_ms(50);
        step(box);
    }
    assert_int_equal(state_of(box).audits, 1);
    assert_true(state_of(box).proved >= before);
    assert_int_equal(state_of(box).differing, 0);
    write_past_sqlite(box, 10 * 4096 + 100);
    for (unsigned i = 0; i < 100 && state_of(box).audits == 1; i++) {
        bk_sleep_ms(50);
        step(box);
    }
    /* It is in a gap, so that what comes behind that is right. */
    assert_int_equal(state_of(box).differing, 1);
    assert_int_equal(state_of(box).gaps, 1);
    assert_false(state_of(box).doubted);
    assert_memory_equal(epoch, state_of(box).epoch, sizeof epoch);
    assert_int_equal(state_of(box).txid, 2);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(9000))");
    step(box);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 3);
    assert_int_equal(box->gaps, 1);
    assert_is_now(box);
    sqlite3_close(db);
}

/* Piece by piece: somebody writes all the time, and not one moment is long enough for all. */
static void pages_are_compared_although_somebody_writes(void **state)
{
    box_t *box = *state;
    bk_capture_options_t options = {.database = box->db,
                                    .dir = box->log,
                                    .busy_ms = 20000,
                                    .audit_idle = 1,
                                    .audit_every = 1,
                                    .audit_piece = 4 * 4096};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(400000)); CREATE TABLE other(v);"
                "INSERT INTO other VALUES(0); PRAGMA wal_checkpoint(TRUNCATE)");
    take_base(box);
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    bk_sleep_ms(1100);
    write_past_sqlite(box, 90 * 4096 + 100);
    unsigned rounds = 0;
    for (; rounds < 500 && state_of(box).audits == 0; rounds++) {
        run_sql(db, "UPDATE other SET v = v + 1");
        step(box); /* takes it in */
        bk_sleep_ms(2);
        step(box); /* finds nothing new */
    }
    assert_int_equal(state_of(box).audits, 1);
    assert_in_range(rounds, 20, 499);
    assert_int_equal(state_of(box).differing, 1);
    assert_int_equal(state_of(box).gaps, 1);
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

/* Somebody else found it, and says so. */
static void what_is_doubted_is_compared_at_once(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(90000))");
    take_base(box);
    start(box);
    come_to_rest(box);
    bk_capture_doubt(box->capture);
    step(box); /* there is nothing */
    assert_false(state_of(box).doubted);
    assert_int_equal(state_of(box).gaps, 0);
    write_past_sqlite(box, 10 * 4096 + 100);
    run_sql(db, "INSERT INTO t(v) VALUES(7)");
    bk_capture_doubt(box->capture);
    step(box);
    assert_false(state_of(box).doubted);
    assert_int_equal(state_of(box).gaps, 1);
    assert_int_equal(state_of(box).txid, 2); /* what was committed is a transaction, as ever */
    replay(box, NULL, NULL);
    assert_is_now(box);
    sqlite3_close(db);
}

/* --- a large one --- */

/* Never used pages up to here, without a byte on the disk. */
static void make_sparse(const box_t *box, uint32_t pages, uint32_t page_size)
{
    assert_true(chaos_make(box->db, "delete", (int)page_size, "none"));
    int fd = open(box->db, O_RDWR | O_CLOEXEC);
    uint8_t count[4] = {(uint8_t)(pages >> 24), (uint8_t)(pages >> 16), (uint8_t)(pages >> 8),
                        (uint8_t)pages};
    assert_int_equal(pwrite(fd, count, 4, 28), 4);
    assert_int_equal(ftruncate(fd, (off_t)pages * page_size), 0);
    close(fd);
}

static void growing_over_the_lock_page_is_captured(void **state)
{
    box_t *box = *state;
    uint64_t digest = 0, lock_page = bk_db_lock_page(65536);
    uint8_t *page = malloc(65536);
    make_sparse(box, (uint32_t)lock_page - 3, 65536);
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA journal_mode=WAL");
    start(box);
    for (unsigned i = 0; i < 6; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100000))");
        step(box);
    }
    come_to_rest(box);
    stop(box);
    start(box); /* and gone on with */
    assert_int_equal(state_of(box).gaps, 0);
    assert_int_equal(state_of(box).txid, 6);
    bk_db_source_t *source = open_source(box);
    uint64_t pages = bk_db_source_info(source)->page_count;
    assert_true(pages > lock_page + 5);
    for (uint64_t p = 1; p <= pages; p++) {
        OK(bk_db_source_read(source, p, 1, page, &box->err), &box->err);
        digest ^= p != lock_page ? bk_db_page_hash(p, page, 65536) : 0;
    }
    assert_int_equal(state_of(box).page_count, pages);
    assert_int_equal(state_of(box).digest, digest);
    bk_db_source_close(source);
    sqlite3_close(db);
    free(page);
}

/* --- what cannot be --- */

static void a_database_that_was_replaced_is_noticed(void **state)
{
    box_t *box = *state;
    char aside[320];
    unsigned again;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    start(box);
    uint8_t epoch[BK_TXLOG_EPOCH];
    memcpy(epoch, state_of(box).epoch, sizeof epoch);
    snprintf(aside, sizeof aside, "%s.old", box->db);
    assert_int_equal(rename(box->db, aside), 0);
    snprintf(aside, sizeof aside, "%s-wal", box->db);
    unlink(aside);
    snprintf(aside, sizeof aside, "%s-shm", box->db);
    unlink(aside);
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    bk_rc_t rc = BK_OK;
    for (unsigned i = 0; i < 300 && rc == BK_OK; i++) {
        bk_sleep_ms(10);
        rc = bk_capture_step(box->capture, false, &again, &box->err);
    }
    assert_int_equal(rc, BK_CHANGED);
    assert_true(state_of(box).paused);
    step(box); /* the new one is compared with what was there */
    assert_false(state_of(box).paused);
    assert_memory_equal(epoch, state_of(box).epoch, sizeof epoch);
}

static void another_page_size_begins_an_epoch(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    start(box);
    uint8_t epoch[BK_TXLOG_EPOCH];
    memcpy(epoch, state_of(box).epoch, sizeof epoch);
    stop(box);
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM;"
                "PRAGMA journal_mode=WAL; INSERT INTO t(v) VALUES(3)");
    start(box);
    assert_true(state_of(box).new_epoch);
    assert_int_equal(state_of(box).page_size, 1024);
    assert_memory_not_equal(epoch, state_of(box).epoch, sizeof epoch);
    run_sql(db, "INSERT INTO t(v) VALUES(4)");
    step(box);
    assert_int_equal(state_of(box).txid, 1);
    sqlite3_close(db);
}

static void without_its_hashes_an_epoch_begins(void **state)
{
    box_t *box = *state;
    char path[320];
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    start(box);
    stop(box);
    snprintf(path, sizeof path, "%s/hashes", box->log);
    spoil(path, 100, "damage");
    start(box);
    assert_true(state_of(box).new_epoch);
    assert_int_equal(box->ctl.notes_total, 1);
    assert_non_null(strstr(box->ctl.notes[0], "damaged"));
}

/* The application's disk must not fill because ours is full. */
static void a_full_disk_releases_the_pin(void **state)
{
    box_t *box = *state;
    unsigned again;
    if (geteuid() != 0 || mount("none", box->log, "tmpfs", 0, "size=256k") != 0)
        skip();
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    take_base(box);
    start(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(100))");
    step(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900000))");
    bk_rc_t rc = bk_capture_step(box->capture, true, &again, &box->err);
    assert_int_equal(rc, BK_NO_SPACE);
    assert_true(state_of(box).paused);
    assert_in_range(again, 500, 10000);
    run_sql(db, "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(v) VALUES(9)");
    rc = bk_capture_step(box->capture, true, &again, &box->err);
    assert_int_equal(rc, BK_NO_SPACE);
    assert_int_equal(mount("none", box->log, "tmpfs", MS_REMOUNT, "size=16m"), 0);
    step(box);
    assert_int_equal(state_of(box).gaps, 1);
    run_sql(db, "UPDATE t SET v = v + 1");
    step(box);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 3);
    assert_is_now(box);
    stop(box);
    sqlite3_close(db);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_commit_is_a_transaction),
        TEST(one_that_was_never_checkpointed_is_captured),
        TEST(segments_follow_each_other),
        TEST(the_log_does_not_grow_without_end),
        TEST(while_a_reader_needs_the_log_writers_are_left_alone),
        TEST(all_commits_of_two_writers),
        TEST(all_commits_with_small_pages),
        TEST(all_commits_with_large_pages),
        TEST(what_the_log_still_tells_is_no_gap),
        TEST(what_nobody_saw_is_one_gap),
        TEST(a_restart_of_the_application_is_no_gap),
        TEST(a_hold_bridges_the_time_between_two),
        TEST(a_hold_that_moves_on_lets_the_log_begin_anew),
        TEST(a_hold_on_an_empty_log_bridges_nothing),
        TEST(a_first_look_that_fails_leaves_the_log),
        TEST(outside_wal_mode_nothing_is_held),
        TEST(kills_leave_a_gap_at_worst),
        TEST(where_to_go_on_is_found_while_the_log_begins_anew),
        TEST(what_comes_next_may_be_older_than_the_end_of_a_look),
        TEST(a_first_read_gives_way_to_a_log_that_grows),
        TEST(what_fits_into_no_segment_begins_an_epoch),
        TEST(padding_is_no_transaction),
        TEST(frames_without_a_checksum_are_captured),
        TEST(a_page_that_nobody_wrote_is_noticed),
        TEST(pages_are_compared_although_somebody_writes),
        TEST(what_is_doubted_is_compared_at_once),
        TEST(growing_over_the_lock_page_is_captured),
        TEST(a_database_that_was_replaced_is_noticed),
        TEST(another_page_size_begins_an_epoch),
        TEST(without_its_hashes_an_epoch_begins),
        TEST(a_full_disk_releases_the_pin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
