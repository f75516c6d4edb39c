/*
 * t/unit/engine/capturing_test.c: what the owner of a set does with captures besides stepping them:
 * segments on their way to the storage, and everything that may be in the way of it.
 */
#include "unit/engine/captures.h"

#include "engine/renew.h"

static const uint8_t OTHER[BK_EPOCH_SIZE] = {9};

static bk_txlog_writer_t *begin_segment(const fixture_t *f, const uint8_t epoch[BK_EPOCH_SIZE],
                                        uint64_t first)
{
    bk_err_t err = {0};
    bk_txlog_writer_t *log;
    bk_txlog_info_t info = {.page_size = 4096, .first = first};
    memcpy(info.epoch, epoch, BK_EPOCH_SIZE);
    OK(bk_txlog_create(segment(f, epoch, first, "tx"), &info, &log, &err), &err);
    return log;
}

static void add_transaction(bk_txlog_writer_t *log)
{
    bk_err_t err = {0};
    uint8_t page[4096] = {0};
    bk_tx_t tx = {.txid = bk_txlog_next(log), .page_count = 1, .t_lo = bk_now(), .t_hi = bk_now()};
    OK(bk_txlog_begin(log, &err), &err);
    OK(bk_txlog_page(log, 1, page, &err), &err);
    OK(bk_txlog_end(log, &tx, &err), &err);
    OK(bk_txlog_sync(log, &err), &err);
}

/* --- segments --- */

/* A step may have begun an epoch that nobody was told of yet: its segment grows under us. */
static void an_open_segment_belongs_to_the_capture(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    bk_err_t err = {0};
    bk_txlog_t *log;
    capture(f);
    bk_txlog_writer_t *writer = begin_segment(f, OTHER, 1);
    add_transaction(writer);
    ship(f);
    assert_int_equal(stored(f, OTHER), 0);
    add_transaction(writer);
    bk_txlog_close(writer);
    OK(bk_txlog_open_file(segment(f, OTHER, 1, "tx"), &log, &err), &err);
    assert_false(bk_txlog_sealed(log));
    assert_int_equal(bk_txlog_count(log), 2);
    bk_txlog_free(log);
    fixture_free(f);
}

/* The next capture that begins seals it: then it is shipped whole, and needed here no more. */
static void what_a_dead_process_left_open_is_shipped(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    capture(f);
    bk_txlog_writer_t *writer = begin_segment(f, OTHER, 1);
    add_transaction(writer);
    add_transaction(writer);
    bk_txlog_close(writer);
    bk_txlog_close(begin_segment(f, OTHER, 3)); /* and one with nothing in it */
    close_engine(f);
    open_engine(f);
    ship(f);
    assert_int_equal(stored(f, OTHER), 0);
    capture(f);
    ship(f);
    assert_int_equal(stored(f, OTHER), 1);
    assert_int_equal(access(segment(f, OTHER, 1, "tx"), F_OK), -1);
    assert_int_equal(access(segment(f, OTHER, 3, "tx"), F_OK), -1);
    fixture_free(f);
}

/* Whoever has lost the set while it ships takes nothing away from the next owner. */
static void a_former_owner_removes_nothing(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    uint8_t epoch[BK_EPOCH_SIZE];
    capture(f);
    epoch_of(f, epoch);
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    capture(f);
    sqlite3_close(db);
    reopen_sealed(f);
    capture(f);
    bk_engine_disown(f->engine);
    ship(f);
    assert_int_equal(stored(f, epoch), 0);
    assert_int_equal(access(segment(f, epoch, 1, "tx"), F_OK), 0);
    fixture_free(f);
}

/* What lies behind it goes on to the storage. */
static void a_damaged_segment_is_set_aside(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    capture(f);
    for (unsigned i = 1; i <= 3; i++) {
        bk_err_t err = {0};
        bk_txlog_writer_t *log = begin_segment(f, OTHER, i);
        add_transaction(log);
        OK(bk_txlog_seal(log, &err), &err);
    }
    int fd = open(segment(f, OTHER, 2, "tx"), O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, 20), 1);
    close(fd);
    ship(f);
    assert_int_equal(stored(f, OTHER), 2);
    assert_int_equal(access(segment(f, OTHER, 2, "damaged"), F_OK), 0);
    assert_int_equal(access(segment(f, OTHER, 2, "tx"), F_OK), -1);
    f->set.dbs[0].pitr_window = 1000;
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    assert_int_equal(utimensat(AT_FDCWD, segment(f, OTHER, 2, "damaged"), old, 0), 0);
    reopen_sealed(f);
    capture(f);
    ship(f);
    assert_int_equal(access(segment(f, OTHER, 2, "damaged"), F_OK), -1);
    fixture_free(f);
}

/* base_dir may be on the application's own disk. */
static void min_free_is_left_to_the_application(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    bk_err_t err = {0};
    uint8_t epoch[BK_EPOCH_SIZE];
    json_t *health;
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, epoch);
    add_rows(db, f, 2);
    reopen_sealed(f);
    capture(f); /* what is sealed was replayed, and is needed */
    add_rows(db, f, 1);
    f->set.min_free = 1ull << 62;
    for (unsigned i = 0; i < 3; i++) {
        bk_sleep_ms(i == 0 ? 1100 : 0); /* it is looked at once a second */
        bk_rc_t rc = step_all(f, &err);
        assert_int_equal(rc, i == 0 ? BK_NO_SPACE : BK_OK); /* not tried again at once */
    }
    json_t *one = capture_of(f);
    assert_true(json_is_false(json_object_get(one, "capturing")));
    assert_contains(text_of(one, "problem"), "min_free");
    json_decref(one);
    OK(bk_engine_health(f->engine, &health, &err), &err);
    assert_string_equal(text_of(health, "status"), "fail");
    json_decref(health);
    sqlite3_busy_timeout(db, 0);
    assert_int_equal(sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL),
                     SQLITE_OK); /* nothing is held */
    sql(db, "INSERT INTO jobs(name) VALUES('unseen')");
    f->set.min_free = 0;
    bk_capturing_resume(f->engine->capturing, f->set.dbs[0].path);
    capture(f);
    one = capture_of(f);
    assert_true(json_is_true(json_object_get(one, "capturing")));
    assert_int_equal(int_of(one, "gaps"), 1);
    assert_int_equal(int_of(one, "transaction"), 4);
    json_decref(one);
    sqlite3_close(db);
    fixture_free(f);
}

/* --- several databases --- */

typedef struct {
    fixture_t *f;
    size_t which;
    bk_rc_t rc;
    atomic_bool over;
    pthread_t thread;
} stepping_t;

static void *step_on_a_thread(void *arg)
{
    stepping_t *s = arg;
    unsigned again;
    s->rc = bk_engine_capture(s->f->engine, s->which, true, &again, NULL);
    atomic_store(&s->over, true);
    return NULL;
}

/* Somebody has one database for himself: another is captured all the same, and it can be detached
 * at once. */
static void a_locked_database_keeps_no_other_waiting(void **state)
{
    (void)state;
    fixture_t *f = fixture_new(false);
    unsigned again;
    bk_err_t err = {0};
    json_t *answer;
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    bk_set_db_t *other = bk_set_add_db(&f->set, "other");
    other->path = text_at(f, "app/other.db");
    other->pitr_window = 7 * DAY * 1000;
    other->busy_timeout = f->set.dbs[0].busy_timeout = 600000;
    sqlite3 *db = open_db(f, "app/other.db"), *locked = open_db(f, "app/app.db");
    sql(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(v)");
    sql(locked, "PRAGMA locking_mode=EXCLUSIVE; INSERT INTO jobs(name) VALUES('mine')");
    open_engine(f);
    assert_int_equal(bk_engine_captures(f->engine), 2);
    stepping_t s = {.f = f};
    assert_int_equal(pthread_create(&s.thread, NULL, step_on_a_thread, &s), 0);
    bk_sleep_ms(50);
    OK(bk_engine_capture(f->engine, 1, true, &again, &err), &err);
    sql(db, "INSERT INTO t VALUES(1)");
    OK(bk_engine_capture(f->engine, 1, true, &again, &err), &err);
    OK(bk_engine_detach(f->engine, "main", true, &answer, &err), &err);
    json_decref(answer);
    bk_engine_obey_detach(f->engine);
    pthread_join(s.thread, NULL);
    json_t *list = bk_capturing_describe(f->engine->capturing);
    assert_true(json_is_true(member(list, "0.detached")));
    assert_int_equal(int_of(list, "1.transaction"), 1);
    json_decref(list);
    sqlite3_close(locked);
    sqlite3_close(db);
    fixture_free(f);
}

/* locking_mode=EXCLUSIVE for good: it is said, and tried again. */
static void a_database_that_is_somebodys_alone_is_told(void **state)
{
    (void)state;
    fixture_t *f = fixture_new(false);
    unsigned again;
    bk_err_t err = {0};
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    f->set.dbs[0].busy_timeout = 10;
    sqlite3 *locked = open_db(f, "app/app.db");
    sql(locked, "PRAGMA locking_mode=EXCLUSIVE; INSERT INTO jobs(name) VALUES('mine')");
    open_engine(f);
    assert_int_equal(bk_engine_capture(f->engine, 0, true, &again, &err), BK_BUSY);
    assert_in_range(again, 1000, 10000);
    json_t *one = capture_of(f);
    assert_true(json_is_false(json_object_get(one, "capturing")));
    assert_contains(text_of(one, "problem"), "locking_mode=EXCLUSIVE");
    json_decref(one);
    sqlite3_close(locked);
    bk_capturing_resume(f->engine->capturing, f->set.dbs[0].path);
    capture(f);
    one = capture_of(f);
    assert_true(json_is_true(json_object_get(one, "capturing")));
    assert_null(json_object_get(one, "problem"));
    json_decref(one);
    fixture_free(f);
}

/* A rollback journal knows no single transactions. */
static void a_rollback_journal_is_captured_in_batches(void **state)
{
    (void)state;
    fixture_t *f = fixture_new(false);
    char id[BK_BACKUP_ID], text[512], between[BK_TIME_TEXT];
    bk_err_t err = {0};
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "PRAGMA journal_mode=DELETE");
    open_engine(f);
    capture(f);
    json_t *one = capture_of(f);
    assert_true(json_is_true(json_object_get(one, "capturing")));
    assert_string_equal(text_of(one, "precision"), "batch");
    json_decref(one);
    /* What a backup reads is a batch of its own, so that the next one is connected with it. */
    sql(db, "INSERT INTO jobs(name) VALUES('in the backup'), ('in the backup')");
    back_up(f, "full", id);
    sql(db, "INSERT INTO jobs(name) VALUES('behind it'); DELETE FROM jobs WHERE id <= 100");
    sqlite3_close(db);
    bk_time_format_exact(between, bk_now());
    long long last = 0;
    for (unsigned i = 0; i < 300 && last < 2; i++) {
        bk_sleep_ms(100); /* it rests */
        capture(f);
        one = capture_of(f);
        last = int_of(one, "transaction");
        json_decref(one);
    }
    assert_int_equal(last, 2);
    OK(bk_engine_ship(f->engine, &f->ctl, &err), &err);
    for (long long n = last - 1; n <= last; n++) {
        bk_fmt(text, sizeof text,
               "{\"recovery_type\": \"database\", \"transaction\": %lld, "
               "\"restore_to_original\": false, \"target_directory\": \"%s/%lld\"}",
               n, at(f, "restored"), n);
        done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
        bk_fmt(text, sizeof text, "restored/%lld/app.db", n);
        assert_int_equal(number_in(f, text, "SELECT count(*) FROM jobs"), n == last ? 403 : 502);
    }
    /* A time within a batch is before it, which is told. */
    bk_fmt(text, sizeof text,
           "{\"recovery_type\": \"database\", \"point_in_time\": \"%s\", "
           "\"restore_to_original\": false, \"target_directory\": \"%s\"}",
           between, at(f, "restored/between"));
    one = do_job(f, BK_JOB_RECOVERY, text, "warning");
    assert_contains(text_of(one, "warnings.0"), "is one batch, which is not in it");
    assert_int_equal(int_of(one, "transaction"), last - 1);
    done(one);
    json_t *status;
    OK(bk_engine_status(f->engine, NULL, NULL, &status, &err), &err);
    one = json_array_get(member(status, "backup_system.database.databases"), 0);
    assert_string_equal(text_of(one, "name"), "main");
    assert_true(json_is_true(json_object_get(one, "exists")));
    assert_true(json_is_false(json_object_get(one, "wal_mode")));
    json_decref(status);
    fixture_free(f);
}

/* --- a large one --- */

#define PAGE 65536u

static void put_number(uint8_t *at, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (24 - 8 * i));
}

/*
 * Pages up to here that are free, without a byte on the disk but their two lists; those around the
 * lock page are taken first.
 */
static void make_free_pages(const fixture_t *f, uint32_t from, uint32_t pages)
{
    uint32_t lock_page = 0x40000000u / PAGE + 1, next = lock_page - 3, trunk = from;
    uint8_t *list = calloc(1, PAGE), header[4];
    int fd = open(at(f, "app/app.db"), O_RDWR | O_CLOEXEC);
    uint32_t total = pages - from; /* the trunks count, the lock page does not */
    for (unsigned t = 0; t < 2; t++, trunk++) {
        uint32_t count = 0, most = t == 0 ? 9000 : total - 2 - 9000;
        memset(list, 0, PAGE);
        put_number(list, t == 0 ? trunk + 1 : 0);
        for (; count < most; count++, next++) {
            if (next > pages)
                next = from + 2;
            if (next == lock_page)
                next++;
            put_number(list + 8 + 4 * (size_t)count, next);
        }
        put_number(list + 4, count);
        assert_int_equal(pwrite(fd, list, PAGE, (off_t)(trunk - 1) * PAGE), PAGE);
    }
    put_number(header, pages);
    assert_int_equal(pwrite(fd, header, 4, 28), 4);
    put_number(header, from);
    assert_int_equal(pwrite(fd, header, 4, 32), 4);
    put_number(header, total);
    assert_int_equal(pwrite(fd, header, 4, 36), 4);
    assert_int_equal(ftruncate(fd, (off_t)pages * PAGE), 0);
    close(fd);
    free(list);
}

/* SQLite never uses the page at 1 GiB, and everything goes around it. */
static void moments_of_a_database_over_the_lock_page_come_back(void **state)
{
    (void)state;
    fixture_t *f = fixture_new(false);
    char id[BK_BACKUP_ID];
    json_t *answer;
    bk_err_t err = {0};
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "PRAGMA journal_mode=DELETE; PRAGMA page_size=65536; VACUUM");
    uint32_t used = (uint32_t)number(db, "PRAGMA page_count");
    sqlite3_close(db);
    make_free_pages(f, used + 1, 19000); /* 1.16 GiB */
    db = open_db(f, "app/app.db");
    assert_int_equal(number(db, "SELECT count(*) FROM pragma_integrity_check"
                                " WHERE integrity_check = 'ok'"),
                     1);
    sql(db, "PRAGMA journal_mode=WAL");
    open_engine(f);
    capture(f);
    back_up(f, "full", id);
    for (unsigned i = 1; i <= 5; i++) {
        sql(db, "INSERT INTO jobs(name) VALUES(hex(randomblob(100000)))");
        capture(f);
    }
    json_t *one = capture_of(f);
    assert_int_equal(int_of(one, "transaction"), 5);
    json_decref(one);
    done(do_job(f, BK_JOB_VALIDATE, "{\"transaction\": 4, \"database\": \"main\"}", "completed"));
    json_t *body =
        json("{\"transaction\": 3, \"sql\": \"SELECT count(*), sum(length(name)) FROM jobs"
             " WHERE id > 500\"}");
    json_t *more;
    bk_ctl_init(&f->ctl);
    OK(bk_engine_query(f->engine, body, &f->ctl, &answer, &more, &err), &err);
    bk_ctl_free(&f->ctl);
    assert_int_equal(int_of(answer, "rows.0.0"), 3);
    assert_int_equal(int_of(answer, "rows.0.1"), 600000);
    json_decref(answer);
    json_decref(body);
    sqlite3_close(db);
    fixture_free(f);
}

/* --- holds --- */

/* Of a worker that quits before it ever had the set; and of one that cannot have it. */
static void a_hold_ends_with_the_hope_of_the_set(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    bk_engine_t *second;
    bk_err_t err = {0};
    sqlite3 *db = open_db(f, "app/app.db");
    sqlite3_busy_timeout(db, 0);
    for (unsigned round = 0; round < 2; round++) {
        OK(bk_engine_open(&f->set, &second, &err), &err);
        bk_engine_capture_hold(second);
        assert_int_equal(bk_engine_own(second, &err), BK_LOCKED);
        sql(db, "INSERT INTO jobs(name) VALUES('one')");
        assert_true(is_held(db));
        if (round == 0) {
            bk_engine_capture_release(second);
            assert_false(is_held(db));
            bk_engine_capture_hold(second); /* a look that came late */
        } else {
            bk_engine_disown(f->engine);
            assert_int_equal(rmdir(at(f, "base/scratch")), 0);
            put(f, "base/scratch", "in the way");
            assert_int_not_equal(bk_engine_own(second, &err), BK_OK);
            assert_int_equal(unlink(at(f, "base/scratch")), 0);
        }
        sql(db, "INSERT INTO jobs(name) VALUES('two')");
        assert_false(is_held(db));
        bk_engine_close(second);
    }
    sqlite3_close(db);
    fixture_free(f);
}

/* --- the next owner --- */

/* A try to own the set after so long; frames of the log that its hold has seen. */
static uint32_t try_to_own(bk_engine_t *heir, int64_t seconds)
{
    bk_err_t err = {0};
    bk_captured_t *one = &heir->capturing->list[0];
    one->held -= seconds * BK_SEC;
    assert_int_equal(bk_engine_own(heir, &err), BK_LOCKED);
    return one->hold != NULL ? bk_capture_hold_frames(one->hold) : 0;
}

/* Its owner may have looked for the last time, although it still has the set. */
static void a_hold_moves_on_to_what_the_owner_looked_at(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    bk_engine_t *heir;
    bk_err_t err = {0};
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "PRAGMA wal_autocheckpoint=0");
    capture(f);
    add_rows(db, f, 1);
    OK(bk_engine_open(&f->set, &heir, &err), &err);
    bk_engine_capture_hold(heir);
    uint32_t frames = bk_capture_hold_frames(heir->capturing->list[0].hold);
    sql(db, "INSERT INTO jobs(name) VALUES('next')");
    assert_int_equal(try_to_own(heir, 0), frames);
    assert_int_equal(try_to_own(heir, 2), frames); /* nobody looked since */
    assert_int_equal(try_to_own(heir, 2), frames);
    capture(f);
    assert_true(try_to_own(heir, 0) > frames);
    sql(db, "INSERT INTO jobs(name) VALUES('more')");
    frames = try_to_own(heir, 2);
    assert_true(try_to_own(heir, 20) > frames); /* the log must not grow without end */
    bk_engine_close(heir);
    sqlite3_close(db);
    fixture_free(f);
}

/* --- epochs --- */

/* base_dir as it was, below an application and a storage that went on. */
static void keep_base(const fixture_t *f, bool back)
{
    bk_err_t err = {0};
    const char *from = at(f, back ? "kept" : "base"), *to = at(f, back ? "base" : "kept");
    if (back)
        OK(bk_remove_tree(to, true, &err), &err);
    test_copy_tree(from, to);
}

static bool has_warning(fixture_t *f)
{
    json_t *health;
    bk_err_t err = {0};
    OK(bk_engine_health(f->engine, &health, &err), &err);
    bool warns = strcmp(text_of(health, "checks.database_main:base.0.status"), "warn") == 0;
    json_decref(health);
    return warns;
}

static void nothing_is_to_be_done(fixture_t *f)
{
    char id[BK_JOB_ID];
    bk_err_t err = {0};
    f->engine->renew_next = 0;
    OK(bk_engine_take(f->engine, id, &err), &err);
    assert_string_equal(id, "");
}

/* Nobody makes the backup that it begins from: the engine does, once. */
static void renews(fixture_t *f)
{
    char id[BK_JOB_ID];
    nothing_is_to_be_done(f); /* others have a minute for it */
    bk_renew_after = 0;
    f->engine->renew_next = 0;
    assert_int_equal(run_next(f, id), BK_STATUS_COMPLETED);
    assert_int_equal(strncmp(id, "incremental_", 12), 0);
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "trigger"), "capture");
    json_decref(job);
    nothing_is_to_be_done(f);
    bk_renew_after = 60 * BK_SEC;
    assert_false(has_warning(f));
}

/* Numbers that are on the storage are not given a second time. */
static void an_older_base_dir_begins_an_epoch(void **state)
{
    bool same_number = *(const bool *)*state;
    fixture_t *f = captured(false);
    uint8_t first[BK_EPOCH_SIZE], second[BK_EPOCH_SIZE];
    char id[BK_BACKUP_ID];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    back_up(f, "full", id);
    assert_false(has_warning(f));
    add_rows(db, f, 2);
    reopen_sealed(f);
    capture(f);
    ship(f);
    epoch_of(f, first);
    close_engine(f);
    keep_base(f, false);
    open_engine(f);
    capture(f);
    add_rows(db, f, 3);
    reopen_sealed(f);
    capture(f);
    ship(f);
    assert_int_equal(stored(f, first), 2);
    close_engine(f);
    keep_base(f, true);
    sql(db, "PRAGMA wal_checkpoint(TRUNCATE); UPDATE jobs SET name = 'other' WHERE id = 1");
    open_engine(f);
    capture(f);
    if (same_number) { /* captured further than the storage knows before that could be asked */
        add_rows(db, f, 3);
        reopen_sealed(f);
        capture(f);
    }
    ship(f);
    assert_int_equal(stored(f, first), 2);
    capture(f); /* here it begins */
    epoch_of(f, second);
    assert_memory_not_equal(first, second, sizeof first);
    assert_true(has_warning(f));
    add_rows(db, f, 2);
    reopen_sealed(f);
    capture(f);
    ship(f);
    assert_int_equal(stored(f, first), 2);
    assert_int_equal(stored(f, second), 1);
    assert_true(has_warning(f));
    json_t *one = capture_of(f);
    /* Two behind the last one of before, here or on the storage. */
    assert_int_equal(int_of(one, "transaction"), same_number ? 8 : 7);
    assert_int_equal(int_of(one, "shipped_transaction"), same_number ? 8 : 7);
    json_decref(one);
    renews(f);
    sqlite3_close(db);
    fixture_free(f);
}

int main(void)
{
    static bool ahead = false, same = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_open_segment_belongs_to_the_capture),
        cmocka_unit_test(what_a_dead_process_left_open_is_shipped),
        cmocka_unit_test(a_former_owner_removes_nothing),
        cmocka_unit_test(a_damaged_segment_is_set_aside),
        cmocka_unit_test(min_free_is_left_to_the_application),
        cmocka_unit_test(a_locked_database_keeps_no_other_waiting),
        cmocka_unit_test(a_database_that_is_somebodys_alone_is_told),
        cmocka_unit_test(a_rollback_journal_is_captured_in_batches),
        cmocka_unit_test(moments_of_a_database_over_the_lock_page_come_back),
        cmocka_unit_test(a_hold_ends_with_the_hope_of_the_set),
        cmocka_unit_test(a_hold_moves_on_to_what_the_owner_looked_at),
        cmocka_unit_test_prestate(an_older_base_dir_begins_an_epoch, &ahead),
        cmocka_unit_test_prestate(an_older_base_dir_begins_an_epoch, &same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
