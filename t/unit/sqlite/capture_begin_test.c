/*
 * t/unit/sqlite/capture_begin_test.c: a capture goes on where the one before ended, however that was,
 * or says that something is missing.
 */
#include "unit/sqlite/capture_testing.h"
#include "unit/sqlite/failing_sync.h"

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
        bk_capture_hold_turn(hold);
        come_to_rest(box);
        OK(bk_capture_hold_next(hold, &box->err), &box->err);
        bk_capture_hold_turn(hold);
        assert_in_range(bk_capture_hold_frames(hold), 1, 4);
    }
    /* What it sees now is captured before the other one lets go. */
    run_sql(db, "UPDATE t SET v = v + 1");
    OK(bk_capture_hold_next(hold, &box->err), &box->err);
    bk_capture_hold_turn(hold);
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

/* As a writer leaves the wal-index that is killed while it stores its header. */
static void tear_the_index(const box_t *box)
{
    int status;
    char shm[320];
    snprintf(shm, sizeof shm, "%s-shm", box->db);
    pid_t pid = fork();
    if (pid == 0) {
        spoil(shm, 60, "torn");
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/*
 * Nothing is lost, unless SQLite itself left frames without a checksum, as some releases do: a
 * recovery ends before them, and what is written there then is not what came behind.
 */
static void a_recovery_of_the_log_is_no_gap_or_one(void **state)
{
    box_t *box = *state;
    unsigned again, taken = 0;
    assert_true(chaos_make(box->db, "wal", 1024, "none"));
    sqlite3 *db = open_db(box->db);
    run_sql(db, "PRAGMA cache_size=12; PRAGMA wal_autocheckpoint=0");
    for (unsigned i = 0; i < 200; i++)
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(700))");
    take_base(box);
    start(box);
    for (unsigned i = 0; i < 2; i++) {
        run_sql(db, i == 0 ? "UPDATE t SET v = v + 1 WHERE id = 5"
                           : "BEGIN; SAVEPOINT s; UPDATE t SET filler = randomblob(700);"
                             "UPDATE t SET filler = randomblob(700) WHERE id > 100;"
                             "ROLLBACK TO s; RELEASE s; UPDATE t SET v = v + 1 WHERE id = 3;"
                             "COMMIT");
        step(box);
        assert_int_equal(state_of(box).txid, ++taken);
        uint32_t frames = state_of(box).wal_frames;
        tear_the_index(box);
        for (unsigned k = 0; k < 200; k++)
            run_sql(db, "UPDATE t SET v = v + 1 WHERE id = 7");
        taken += 200;
        if (bk_capture_step(box->capture, true, &again, &box->err) != BK_OK)
            step(box);
        assert_true(state_of(box).wal_frames > frames);
        replay(box, NULL, NULL);
        assert_is_now(box);
        assert_in_range(box->gaps, 0, i);
        if (box->gaps == 0)
            assert_int_equal(box->txid, taken);
    }
    sqlite3_close(db);
}

/* The last look sees nothing when it is stopped, and says so. */
static void a_last_look_that_is_stopped_saw_nothing(void **state)
{
    bk_tx_t times[2];
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    sqlite3 *db = open_db(box->db);
    start(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
    step(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
    int64_t committed = bk_now();
    bk_sleep_ms(2);
    bk_ctl_stop(&box->ctl, BK_INTERRUPTED);
    stop(box);
    atomic_store(&box->ctl.stop, 0);
    start(box);
    replay(box, keep_times, times);
    assert_int_equal(box->txid, 2);
    assert_int_equal(box->gaps, 0);
    assert_true(times[1].t_lo <= committed);
    sqlite3_close(db);
}

static void what_a_flush_could_not_write_is_captured_once_more(void **state)
{
    box_t *box = *state;
    unsigned again;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
    sqlite3 *db = open_db(box->db);
    start(box);
    for (unsigned i = 0; i < 2; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
        sync_fails = i == 1;
        bk_rc_t rc = bk_capture_step(box->capture, true, &again, &box->err);
        sync_fails = false;
        assert_int_equal(rc, i == 1 ? BK_IO : BK_OK);
    }
    assert_int_equal(state_of(box).txid, 1);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 1);
    step(box);
    assert_int_equal(state_of(box).txid, 2);
    replay(box, NULL, NULL);
    assert_int_equal(box->gaps, 0);
    assert_is_now(box);
    sqlite3_close(db);
}

/* Of an open segment all that is behind the damage is lost, but not what comes next. */
static void a_segment_that_lost_its_end_is_not_gone_on_with(void **state)
{
    box_t *box = *state;
    char path[700];
    struct dirent **names;
    struct stat st;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    start(box);
    for (unsigned i = 0; i < 3; i++) {
        run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
        step(box);
    }
    stop(box);
    assert_int_equal(scandir(box->log, &names, only_segments, alphasort), 1);
    snprintf(path, sizeof path, "%s/%s", box->log, names[0]->d_name);
    free(names[0]);
    free(names);
    assert_int_equal(stat(path, &st), 0);
    spoil(path, st.st_size - 10, "damage");
    start(box);
    assert_false(state_of(box).new_epoch);
    assert_int_equal(state_of(box).txid, 3);
    assert_int_equal(box->ctl.notes_total, 1);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
    step(box);
    assert_int_equal(state_of(box).txid, 4);
    stop(box);
    assert_int_equal(scandir(box->log, &names, only_segments, alphasort), 2);
    static const uint64_t first[] = {1, 4}, count[] = {2, 1};
    for (unsigned i = 0; i < 2; i++) {
        bk_txlog_t *log;
        snprintf(path, sizeof path, "%s/%s", box->log, names[i]->d_name);
        OK(bk_txlog_open_file(path, &log, &box->err), &box->err);
        assert_int_equal(bk_txlog_info(log)->first, first[i]);
        assert_int_equal(bk_txlog_count(log), count[i]);
        bk_txlog_free(log);
        free(names[i]);
    }
    free(names);
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

/* --- with nothing to go on from --- */

static void a_database_that_was_replaced_is_noticed(void **state)
{
    box_t *box = *state;
    char aside[320];
    unsigned again;
    bk_tx_t gap[2];
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    take_base(box);
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
    sqlite3 *db = open_db(box->db);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(900))");
    int64_t committed = bk_now();
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
    replay(box, keep_times, gap);
    assert_int_equal(box->txid, 1);
    assert_int_equal(box->gaps, 1);
    assert_true(gap[0].t_lo <= committed); /* though the old one was looked at after that */
    assert_is_now(box);
    sqlite3_close(db);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
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
        TEST(a_recovery_of_the_log_is_no_gap_or_one),
        TEST(a_last_look_that_is_stopped_saw_nothing),
        TEST(what_a_flush_could_not_write_is_captured_once_more),
        TEST(a_segment_that_lost_its_end_is_not_gone_on_with),
        TEST(a_first_read_gives_way_to_a_log_that_grows),
        TEST(a_database_that_was_replaced_is_noticed),
        TEST(another_page_size_begins_an_epoch),
        TEST(without_its_hashes_an_epoch_begins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
