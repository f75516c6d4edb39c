/*
 * t/unit/sqlite/capture_test.c: every commit of live writers is a transaction of the segments, and
 * what these make of the base is the database after that commit; and what is no commit is none.
 */
#include "sqlite/txlog_private.h"
#include "unit/sqlite/capture_testing.h"

#define CHECKPOINT_LOCK 121 /* its byte in the wal-index */

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

static void step_until_blocked(box_t *box, bool blocked)
{
    for (unsigned i = 0; i < 100 && state_of(box).blocked != blocked; i++) {
        bk_sleep_ms(100);
        step(box);
    }
    assert_int_equal(state_of(box).blocked, blocked);
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

/* Nobody else may come for a long time to tell that the log is free again. */
static void when_the_reader_has_left_the_log_is_helped_without_a_commit(void **state)
{
    box_t *box = *state;
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .soft = 100};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db), *reader = open_db(box->db);
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    run_sql(reader, "BEGIN; SELECT count(*) FROM t");
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, zeroblob(800000))");
    step_until_blocked(box, true);
    assert_in_range(state_of(box).wal_frames, 101, 799);
    run_sql(reader, "COMMIT");
    step_until_blocked(box, false);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    step(box);
    assert_in_range(state_of(box).wal_frames, 1, 10);
    sqlite3_close(reader);
    sqlite3_close(db);
}

/* A small log does no harm, but an application that wants it truncated waits for its readers. */
static void a_small_log_is_let_go_of_once_its_reader_has_left(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db), *reader = open_db(box->db);
    start(box);
    come_to_rest(box);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    run_sql(reader, "BEGIN; SELECT count(*) FROM t");
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, zeroblob(80000))");
    step(box);
    come_to_rest(box);
    assert_false(state_of(box).blocked);
    run_sql(reader, "COMMIT");
    sqlite3_busy_timeout(db, 0);
    for (unsigned i = 0; i < 100 && query(db, "PRAGMA wal_checkpoint(TRUNCATE)") != 0; i++) {
        bk_sleep_ms(100);
        step(box);
    }
    assert_int_equal(query(db, "PRAGMA wal_checkpoint(TRUNCATE)"), 0);
    sqlite3_close(reader);
    sqlite3_close(db);
}

/* When all of a long log is copied, the next commit begins it anew: there is nothing to help. */
static void nobody_is_kept_out_of_a_log_that_is_copied(void **state)
{
    box_t *box = *state;
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .soft = 10};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, zeroblob(800000))");
    step(box);
    come_to_rest(box);
    uint64_t bars = state_of(box).bars;
    assert_in_range(state_of(box).wal_frames, 101, 799);
    come_to_rest(box);
    assert_int_equal(state_of(box).bars, bars);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    step(box);
    assert_in_range(state_of(box).wal_frames, 1, 10);
    sqlite3_close(db);
}

/* Another process that holds the lock of checkpoints, as an application's own does. */
static pid_t lock_checkpoints(const box_t *box)
{
    int pipes[2];
    char shm[320], byte;
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = CHECKPOINT_LOCK, .l_len = 1};
    assert_int_equal(pipe(pipes), 0);
    snprintf(shm, sizeof shm, "%s-shm", box->db);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(shm, O_RDWR | O_CLOEXEC);
        if (fcntl(fd, F_SETLKW, &lock) == 0 && write(pipes[1], "", 1) == 1)
            pause();
        _exit(1);
    }
    close(pipes[1]);
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    close(pipes[0]);
    return pid;
}

static void a_checkpoint_of_somebody_else_was_no_help(void **state)
{
    box_t *box = *state;
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    start(box);
    come_to_rest(box);
    pid_t other = lock_checkpoints(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, zeroblob(80000))");
    step(box);
    come_to_rest(box);
    assert_in_range(state_of(box).wal_frames, 20, 100);
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    come_to_rest(box);
    run_sql(db, "INSERT INTO t(v) VALUES(1)");
    step(box);
    assert_in_range(state_of(box).wal_frames, 1, 10);
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
/* The application has its file grow ahead; what its commits say then is the length of the file. */
static void a_database_ends_where_its_header_says(void **state)
{
    box_t *box = *state;
    int chunk = 1 << 20;
    bk_capture_options_t options = {
        .database = box->db, .dir = box->log, .busy_ms = 20000, .audit_idle = 1, .audit_every = 1};
    assert_true(chaos_make(box->db, "wal", 4096, "none"));
    sqlite3 *db = open_db(box->db);
    assert_int_equal(sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk), 0);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(90000))");
    sqlite3_close(db);
    take_base(box);
    db = open_db(box->db);
    assert_int_equal(sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk), 0);
    OK(bk_capture_open(&options, &box->ctl, &box->capture, &box->err), &box->err);
    run_sql(db, "UPDATE t SET v=2");
    step(box);
    run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(90000))");
    step(box);
    assert_int_equal(state_of(box).txid, 2);
    assert_int_equal(state_of(box).page_count, query(db, "PRAGMA page_count"));
    replay(box, NULL, NULL);
    assert_is_now(box);
    come_to_rest(box);
    run_sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    bk_sleep_ms(1100);
    for (unsigned i = 0; i < 100 && state_of(box).audits == 0; i++) {
        bk_sleep_ms(10);
        step(box);
    }
    assert_int_equal(state_of(box).audits, 1);
    assert_int_equal(state_of(box).differing, 0);
    stop(box);
    replay(box, NULL, NULL);
    assert_int_equal(box->txid, 2);
    assert_is_now(box);
    start(box);
    sqlite3_close(db);
    stop(box);
    db = open_db(box->db);
    run_sql(db, "SELECT 1 FROM t");
    start(box); /* the log's last salts are unknown, but nothing happened */
    assert_int_equal(state_of(box).txid, 2);
    assert_int_equal(state_of(box).gaps, 0);
    sqlite3_close(db);
}

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
        TEST(when_the_reader_has_left_the_log_is_helped_without_a_commit),
        TEST(a_small_log_is_let_go_of_once_its_reader_has_left),
        TEST(nobody_is_kept_out_of_a_log_that_is_copied),
        TEST(a_checkpoint_of_somebody_else_was_no_help),
        TEST(all_commits_of_two_writers),
        TEST(all_commits_with_small_pages),
        TEST(all_commits_with_large_pages),
        TEST(what_fits_into_no_segment_begins_an_epoch),
        TEST(padding_is_no_transaction),
        TEST(frames_without_a_checksum_are_captured),
        TEST(a_page_that_nobody_wrote_is_noticed),
        TEST(pages_are_compared_although_somebody_writes),
        TEST(what_is_doubted_is_compared_at_once),
        TEST(a_database_ends_where_its_header_says),
        TEST(growing_over_the_lock_page_is_captured),
        TEST(a_full_disk_releases_the_pin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
