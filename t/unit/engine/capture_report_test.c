/*
 * t/unit/engine/capture_report_test.c: what status, health and metrics say of captures: how much would
 * be lost now, how much not yet shipped, and that a step hangs.
 */
#include "unit/engine/captures.h"

#include "engine/covered.h"
#include "engine/metrics.h"

/* --- what would be lost --- */

static void check_is(fixture_t *f, const char *name, const char *status, const char *output)
{
    json_t *health;
    char path[128];
    bk_err_t err = {0};
    OK(bk_engine_health(f->engine, &health, &err), &err);
    bk_fmt(path, sizeof path, "checks.database_main:%s.0.status", name);
    if (strcmp(text_of(health, path), status) != 0)
        fail_msg("%s is %s, not %s", name, text_of(health, path), status);
    if (strcmp(status, "fail") == 0)
        assert_string_equal(text_of(health, "status"), "fail");
    bk_fmt(path, sizeof path, "checks.database_main:%s.0.output", name);
    if (output != NULL)
        assert_contains(text_of(health, path), output);
    json_decref(health);
}

/* What status says, in seconds; -1: nothing. */
static double age_of(fixture_t *f, const char *name)
{
    json_t *one = capture_of(f);
    const json_t *value = json_object_get(one, name);
    double age = json_is_number(value) ? json_number_value(value) : -1;
    json_decref(one);
    return age;
}

static bool metric_has(fixture_t *f, const char *text)
{
    bk_buf_t out;
    bk_err_t err = {0};
    bk_buf_init(&out, 1 << 20);
    json_t *nothing = json_object();
    OK(bk_engine_metrics(f->engine, nothing, nothing, &out, &err), &err);
    bk_buf_u8(&out, 0);
    bool has = strstr((const char *)out.data, text) != NULL;
    json_decref(nothing);
    bk_buf_free(&out);
    return has;
}

/* As if it had the set for so long. */
static bk_captured_t *owned_for(fixture_t *f, int64_t seconds)
{
    bk_captured_t *one = &f->engine->capturing->list[0];
    one->since = bk_now() - seconds * BK_SEC;
    return one;
}

/* Nobody wrote for six hours: then what was committed a moment ago is a moment old. */
static void idleness_is_no_loss(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    ship(f);
    add_rows(db, f, 1);
    reopen_sealed(f);
    capture(f);
    ship(f);
    bk_captured_t *one = owned_for(f, 30000);
    assert_int_equal(one->shipped, 1);
    assert_int_equal(one->waiting, 0);
    one->shipped_until -= 21600 * BK_SEC;
    assert_true(age_of(f, "shipped_age_seconds") < 200);
    add_rows(db, f, 1);
    double age = age_of(f, "shipped_age_seconds");
    assert_true(age >= 0 && age < 200);
    check_is(f, "shipped_age", "pass", NULL);
    assert_true(metric_has(
        f, "nginx_backup_shipped_age_seconds{backup=\"app\",database=\"main\",storage=\"disk\"} "));
    /* It is the oldest one that counts, not the newest. */
    one->waiting -= 400 * BK_SEC;
    add_rows(db, f, 1);
    assert_true(age_of(f, "shipped_age_seconds") >= 400);
    check_is(f, "shipped_age", "warn", "not on the storage");
    one->waiting -= 600 * BK_SEC;
    check_is(f, "shipped_age", "fail", "not on the storage");
    reopen_sealed(f);
    capture(f);
    ship(f);
    assert_true(age_of(f, "shipped_age_seconds") < 200);
    check_is(f, "shipped_age", "pass", NULL);
    sqlite3_close(db);
    fixture_free(f);
}

/* The next owner knows what waits from base_dir, and says why it does. */
static void a_storage_that_is_away_is_told_after_a_restart(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    bk_err_t err = {0};
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    add_rows(db, f, 1);
    reopen_sealed(f);
    capture(f);
    ship(f);
    int64_t before = bk_now();
    add_rows(db, f, 2);
    int64_t after = bk_now();
    reopen_sealed(f);
    assert_int_equal(rename(at(f, "storage"), at(f, "away")), 0);
    put(f, "storage", "no directory");
    assert_true(age_of(f, "shipped_age_seconds") < 0); /* nobody knows */
    check_is(f, "shipped_age", "pass", NULL);          /* and could not yet */
    owned_for(f, 61);
    check_is(f, "shipped_age", "warn", "nobody knows");
    capture(f);
    assert_true(age_of(f, "shipped_age_seconds") >= 0); /* what is here may be all */
    owned_for(f, 1);
    assert_true(age_of(f, "shipped_age_seconds") < 0); /* the storage will be asked soon */
    check_is(f, "shipped_age", "pass", NULL);
    bk_ctl_init(&f->ctl);
    assert_int_not_equal(bk_engine_ship(f->engine, &f->ctl, &err), BK_OK);
    json_t *one = capture_of(f);
    assert_string_equal(text_of(one, "shipping_problem"), err.text);
    json_decref(one);
    bk_captured_t *c = owned_for(f, 2000);
    assert_true(c->waiting > 0 && c->waiting <= after);
    assert_true(age_of(f, "shipped_age_seconds") >= 0);
    check_is(f, "shipped_age", "pass", NULL); /* not late yet */
    c->waiting -= 1000 * BK_SEC;
    check_is(f, "shipped_age", "fail", err.text);
    c->waiting += 1000 * BK_SEC;
    assert_int_equal(unlink(at(f, "storage")), 0);
    assert_int_equal(rename(at(f, "away"), at(f, "storage")), 0);
    OK(bk_engine_ship(f->engine, &f->ctl, &err), &err);
    bk_ctl_free(&f->ctl);
    one = capture_of(f);
    assert_null(json_object_get(one, "shipping_problem"));
    json_decref(one);
    /* What it still has here is on the storage: only what comes now waits. */
    assert_int_equal(c->waiting, 0);
    before = bk_now() - 20 * BK_SEC;
    add_rows(db, f, 1);
    assert_true(c->waiting > before);
    sqlite3_close(db);
    fixture_free(f);
}

/* The storage lacks it whatever came after it. */
static void what_an_earlier_epoch_left_waits_as_well(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    uint8_t first[BK_EPOCH_SIZE], second[BK_EPOCH_SIZE];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, first);
    ship(f);
    int64_t before = bk_now();
    add_rows(db, f, 2);
    int64_t after = bk_now();
    close_engine(f);
    sql(db, "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=WAL");
    open_engine(f);
    capture(f);
    epoch_of(f, second);
    assert_memory_not_equal(first, second, sizeof first);
    add_rows(db, f, 1);
    bk_captured_t *one = owned_for(f, 2000);
    bk_capture_report_waiting(one);
    assert_in_range(one->waiting, before - 20 * BK_SEC, after);
    ship(f);
    assert_true(one->waiting == 0 || one->waiting > after);
    sqlite3_close(db);
    fixture_free(f);
}

/* For days, with every reload. */
static void a_dead_capture_fails_health(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    bk_err_t err = {0};
    json_t *answer;
    capture(f);
    bk_captured_t *one = owned_for(f, 2000);
    check_is(f, "durable_age", "pass", NULL);
    one->state.as_of = bk_now() - 100 * BK_SEC;
    check_is(f, "durable_age", "warn", NULL);
    one->state.as_of = bk_now() - 1000 * BK_SEC;
    check_is(f, "durable_age", "fail", NULL);
    OK(bk_engine_detach(f->engine, "main", true, &answer, &err), &err);
    json_decref(answer);
    bk_engine_obey_detach(f->engine);
    one->state.as_of = bk_now();
    check_is(f, "durable_age", "warn", "detached");
    assert_true(metric_has(f, "capture_up{backup=\"app\",database=\"main\"} 0"));
    one->state.as_of = bk_now() - 1000 * BK_SEC;
    check_is(f, "durable_age", "fail", "detached");
    /* Nor does another owner begin to count anew. */
    bk_capture_known_t known = {.until = bk_now() - 1000 * BK_SEC};
    int fd = -1;
    close_engine(f);
    bk_covered_write(at(f, "base/wal/main"), &known, &fd);
    close(fd);
    open_engine(f);
    capture(f); /* it is detached: nothing but that is looked at */
    assert_true(age_of(f, "durable_age_seconds") >= 1000);
    check_is(f, "durable_age", "warn", "detached"); /* a machine that was off */
    owned_for(f, 61);
    check_is(f, "durable_age", "fail", "detached");
    fixture_free(f);
}

/* That of a database which was never captured is as old as the owner. */
static void a_capture_that_never_began_fails_health(void **state)
{
    (void)state;
    fixture_t *f = fixture_new(false);
    bk_err_t err = {0};
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    assert_int_equal(unlink(at(f, "app/app.db")), 0);
    open_engine(f);
    assert_int_not_equal(step_all(f, &err), BK_OK);
    check_is(f, "durable_age", "warn", NULL);
    owned_for(f, 1000);
    check_is(f, "durable_age", "fail", NULL);
    check_is(f, "shipped_age", "warn", "nobody knows");
    fixture_free(f);
}

/* Over restarts, and when each of two captures had one. */
static void gaps_are_counted_for_good(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    json_t *one;
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    for (unsigned round = 1; round <= 3; round++) {
        bk_capturing_suspend(f->engine->capturing, f->set.dbs[0].path);
        if (round == 3)
            close_engine(f);
        sql(db, "INSERT INTO jobs(name) VALUES('unseen'); PRAGMA wal_checkpoint(TRUNCATE);"
                "INSERT INTO jobs(name) VALUES('unseen')");
        if (round == 3)
            open_engine(f);
        bk_capturing_resume(f->engine->capturing, f->set.dbs[0].path);
        capture(f);
        one = capture_of(f);
        assert_int_equal(int_of(one, "gaps"), round);
        json_decref(one);
    }
    close_engine(f);
    open_engine(f);
    assert_true(metric_has(f, "capture_gaps_total{backup=\"app\",database=\"main\"} 3\n"));
    sqlite3_close(db);
    fixture_free(f);
}

/* --- a step that hangs --- */

/* A thread that hangs cannot tell; one that reads a lot moves on. */
static void a_step_that_hangs_is_told(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    capture(f);
    json_t *one = capture_of(f);
    assert_null(json_object_get(one, "problem"));
    json_decref(one);
    bk_captured_t *c = &f->engine->capturing->list[0];
    c->stepping = bk_mono() - 31 * BK_SEC;
    atomic_fetch_add(&c->ctl.bytes_read, 1);
    check_is(f, "durable_age", "warn", "more than 30 s");
    c->progressed = c->stepping;
    check_is(f, "durable_age", "fail", "has hung for 31 s");
    check_is(f, "durable_age", "fail", " MiB: bring that disk back");
    one = capture_of(f);
    assert_true(json_is_false(json_object_get(one, "capturing")));
    json_decref(one);
    c->stepping = 0;
    check_is(f, "durable_age", "pass", NULL);
    fixture_free(f);
}

typedef struct {
    bk_captured_t *one;
    atomic_bool held, answered;
    pthread_t thread;
} hanging_t;

/* As a step does in a system call. */
static void *hang(void *arg)
{
    hanging_t *h = arg;
    pthread_mutex_lock(&h->one->lock);
    atomic_store(&h->held, true);
    for (unsigned i = 0; i < 1000 && !atomic_load(&h->answered); i++)
        bk_sleep_ms(20);
    bool answered = atomic_load(&h->answered);
    pthread_mutex_unlock(&h->one->lock);
    return answered ? NULL : h;
}

static void begin_to_hang(hanging_t *h, fixture_t *f)
{
    *h = (hanging_t){.one = &f->engine->capturing->list[0]};
    assert_int_equal(pthread_create(&h->thread, NULL, hang, h), 0);
    while (!atomic_load(&h->held))
        bk_sleep_ms(1);
}

static void detach(fixture_t *f, bool detached)
{
    json_t *answer;
    bk_err_t err = {0};
    OK(bk_engine_detach(f->engine, "main", detached, &answer, &err), &err);
    json_decref(answer);
    OK(bk_engine_status(f->engine, NULL, NULL, &answer, &err), &err); /* obeys */
    json_decref(answer);
}

static void end_hanging(hanging_t *h)
{
    void *late;
    atomic_store(&h->answered, true);
    pthread_join(h->thread, &late);
    assert_null(late);
}

/* Whoever detaches a database, or asks how it is, does not wait for a disk. */
static void detaching_waits_for_no_step(void **state)
{
    (void)state;
    hanging_t h;
    fixture_t *f = captured(false);
    sqlite3 *db = open_db(f, "app/app.db");
    sqlite3_busy_timeout(db, 0);
    capture(f);
    sql(db, "INSERT INTO jobs(name) VALUES('held')");
    assert_true(is_held(db));
    begin_to_hang(&h, f);
    detach(f, true);
    check_is(f, "durable_age", "warn", "detached");
    end_hanging(&h);
    capture(f); /* the thread of the step lets go when it comes back */
    assert_false(is_held(db));
    assert_true(metric_has(f, "capture_up{backup=\"app\",database=\"main\"} 0"));
    /* Nor is what was said of it for good when it was attached again before that. */
    detach(f, false);
    capture(f);
    begin_to_hang(&h, f);
    detach(f, true);
    detach(f, false);
    end_hanging(&h);
    sql(db, "INSERT INTO jobs(name) VALUES('seen')");
    capture(f);
    assert_true(is_held(db));
    assert_true(metric_has(f, "capture_up{backup=\"app\",database=\"main\"} 1"));
    sqlite3_close(db);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idleness_is_no_loss),
        cmocka_unit_test(a_storage_that_is_away_is_told_after_a_restart),
        cmocka_unit_test(what_an_earlier_epoch_left_waits_as_well),
        cmocka_unit_test(a_dead_capture_fails_health),
        cmocka_unit_test(a_capture_that_never_began_fails_health),
        cmocka_unit_test(gaps_are_counted_for_good),
        cmocka_unit_test(a_step_that_hangs_is_told),
        cmocka_unit_test(detaching_waits_for_no_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
