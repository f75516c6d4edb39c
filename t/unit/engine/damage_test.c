/*
 * t/unit/engine/damage_test.c: a segment that is damaged or missing costs the moments that need it
 * and nothing else: it is told, everything else can be had, and it goes when its time has come.
 */
#include "unit/engine/segments.h"

#include "engine/bases.h"

#define COUNT 16u /* transactions of E1, a segment each, one a second */

typedef struct {
    fixture_t *f;
    bk_opened_t opened;
    bk_snapshot_db_t dbs[3];
    bk_snapshot_t snapshots[3];
    bk_snapshot_list_t list; /* backups as of transactions 0, 5 and 11 */
} world_t;

static const uint64_t backups[] = {0, 5, 11};

static int set_up_damage(void **state)
{
    static char name[] = "main", set[] = "app";
    bk_err_t err = {0};
    world_t *w = calloc(1, sizeof *w);
    w->f = captured(true);
    for (unsigned i = 0; i < 3; i++) {
        w->dbs[i] = (bk_snapshot_db_t){.name = name,
                                       .digest = 1000 + backups[i],
                                       .page_count = 1 + backups[i] % 3,
                                       .page_size = 4096};
        w->snapshots[i] = (bk_snapshot_t){.set = set, .dbs = &w->dbs[i], .db_count = 1};
    }
    w->list = (bk_snapshot_list_t){.items = w->snapshots, .count = 3};
    OK(bk_engine_open_repo(w->f->engine, false, NULL, &w->opened, &err), &err);
    ship_small_ones(w->f, w->opened.repo, E1, 1, COUNT);
    *state = w;
    return 0;
}

static int tear_down_damage(void **state)
{
    world_t *w = *state;
    bk_engine_close_repo(&w->opened);
    fixture_free(w->f);
    free(w);
    return 0;
}

static bk_moments_t *open_moments(world_t *w)
{
    bk_err_t err = {0};
    bk_moments_t *moments;
    OK(bk_moments_open(NULL, "app", "main", w->opened.repo, NULL, &moments, &err), &err);
    return moments;
}

/* Nothing but transaction lost is damaged: the newest backup up to txid is not before it. */
static bool is_reachable(uint64_t txid, uint64_t lost)
{
    uint64_t base = 0;
    for (unsigned i = 0; i < 3; i++)
        base = backups[i] <= txid ? backups[i] : base;
    return txid != lost && (txid < lost || base >= lost);
}

static bk_rc_t at_second(bk_moments_t *moments, const bk_snapshot_list_t *list, int64_t ms,
                         bk_err_t *err)
{
    bk_moment_t moment;
    bk_err_clear(err);
    return bk_moments_at(moments, ms * BK_MS, list, &moment, err);
}

/* wanted: what is told of it. */
static void assert_only_what_needs_it(world_t *w, uint64_t lost, bk_rc_t wanted, const char *text)
{
    bk_moments_t *moments = open_moments(w);
    bk_moment_t moment;
    bk_err_t err = {0};
    for (uint64_t txid = 1; txid <= COUNT; txid++) {
        bk_err_clear(&err);
        bk_rc_t rc = bk_moments_number(moments, txid, &w->list, &moment, &err);
        if (is_reachable(txid, lost)) {
            OK(rc, &err);
            OK(at_second(moments, &w->list, (int64_t)txid * 1000, &err), &err);
            continue;
        }
        if (lost == 1 && txid == 1 && wanted == BK_NOT_FOUND)
            continue; /* that there was one before what is left nobody can tell */
        if (rc == BK_OK)
            fail_msg("transaction %d without %d", (int)txid, (int)lost);
        if (lost == 1 && wanted == BK_NOT_FOUND)
            continue;
        assert_int_equal(rc, wanted);
        assert_contains(err.text, text);
        if (txid == lost && lost > 1) /* a time inside of it */
            assert_int_equal(at_second(moments, &w->list, (int64_t)txid * 1000 + 500, &err),
                             BK_INVALID);
    }
    bk_moments_free(moments);
}

static void damage_costs_only_what_needs_it(void **state)
{
    world_t *w = *state;
    char path[BK_STORAGE_NAME + 16], text[64];
    for (uint64_t lost = 1; lost <= COUNT; lost++) {
        object_of(w->opened.repo, E1, lost - 1, path);
        bk_fmt(text, sizeof text, "transactions %u to %u cannot be read", (unsigned)lost,
               (unsigned)lost);
        spoil(w->f, path, 200);
        assert_only_what_needs_it(w, lost, BK_CORRUPT, text);
        spoil(w->f, path, 200);
    }
    assert_only_what_needs_it(w, COUNT + 1, BK_OK, "");
}

static void a_missing_segment_costs_only_what_needs_it(void **state)
{
    world_t *w = *state;
    char path[BK_STORAGE_NAME + 16], text[64], from[512];
    for (uint64_t lost = 1; lost < COUNT; lost++) {
        object_of(w->opened.repo, E1, lost - 1, path);
        bk_fmt(text, sizeof text, "transactions %u to %u is missing", (unsigned)lost,
               (unsigned)lost);
        bk_strcpy(from, sizeof from, at(w->f, path));
        assert_int_equal(rename(from, at(w->f, "away")), 0);
        assert_only_what_needs_it(w, lost, BK_NOT_FOUND, text);
        assert_int_equal(rename(at(w->f, "away"), from), 0);
    }
}

/* What can be had now, from a time on, can be had afterwards. */
static void assert_all_still_there(world_t *w, bk_moments_t *moments, uint64_t since,
                                   const bool kept[3])
{
    bk_snapshot_t left[3];
    bk_snapshot_list_t few = {.items = left};
    bk_moment_t moment;
    for (unsigned i = 0; i < 3; i++)
        if (kept[i])
            left[few.count++] = w->snapshots[i];
    for (uint64_t txid = since; txid <= COUNT; txid++) {
        bk_err_t err = {0};
        if (bk_moments_number(moments, txid, &w->list, &moment, NULL) == BK_OK)
            OK(bk_moments_number(moments, txid, &few, &moment, &err), &err);
    }
}

/* lost: told among what stays. */
static uint64_t clean_up(world_t *w, uint64_t since, bool *lost)
{
    bk_moments_t *moments = open_moments(w);
    bk_err_t err = {0};
    bool kept[3] = {false};
    uint64_t removed = 0;
    bk_ctl_t notes;
    bk_ctl_init(&notes);
    OK(bk_moments_keep(moments, (int64_t)since * BK_SEC, &w->list, kept, &err), &err);
    OK(bk_moments_remove(moments, true, &removed, &err), &err);
    assert_all_still_there(w, moments, since, kept);
    bk_moments_note_lost(moments, &notes);
    *lost = notes.notes_total > 0;
    bk_ctl_free(&notes);
    bk_moments_free(moments);
    return removed;
}

/* At the time at which it would go anyway, and not before. */
static void what_is_damaged_goes_in_its_time(void **state)
{
    world_t *w = *state;
    uint64_t wanted[COUNT + 2];
    bool lost;
    for (uint64_t since = 0; since <= COUNT + 1; since++) {
        wanted[since] = clean_up(w, since, &lost);
        assert_false(lost);
    }
    assert_int_equal(wanted[COUNT], 11); /* those before the last backup */
    for (uint64_t damaged = 1; damaged <= COUNT; damaged++) {
        char path[BK_STORAGE_NAME + 16];
        object_of(w->opened.repo, E1, damaged - 1, path);
        spoil(w->f, path, 200);
        for (uint64_t since = 0; since <= COUNT + 1; since++) {
            uint64_t removed = clean_up(w, since, &lost);
            if (removed > wanted[since])
                fail_msg("%d damaged, from %d on: too much", (int)damaged, (int)since);
            assert_int_equal(lost, removed < damaged);
        }
        assert_true(clean_up(w, COUNT + 1, &lost) + 1 >= wanted[COUNT + 1]);
        spoil(w->f, path, 200);
    }
}

/* The clock was set since: its first transaction is older than those of one that ended. */
static void what_goes_on_is_not_over(void **state)
{
    world_t *w = *state;
    bk_err_t err = {0};
    bk_moments_t *moments;
    bool kept[3] = {false};
    uint64_t removed = 0;
    ship_small_ones(w->f, w->opened.repo, E2, 101, 4);
    covered(w->f, E1, COUNT, 200 * BK_SEC);
    OK(bk_moments_open(w->f->set.base_dir, "app", "main", w->opened.repo, NULL, &moments, &err),
       &err);
    OK(bk_moments_keep(moments, 103 * BK_SEC, &w->list, kept, &err), &err);
    assert_true(kept[2]);
    OK(bk_moments_remove(moments, true, &removed, &err), &err);
    assert_int_equal(removed, backups[2]);
    bk_moments_free(moments);
}

/* Lost, and stored behind the beginning of what goes on: it says nothing of now. */
static void a_lost_epoch_does_not_end_what_goes_on(void **state)
{
    world_t *w = *state;
    char path[BK_STORAGE_NAME + 16];
    bk_err_t err = {0};
    bk_moments_t *moments;
    bk_moment_t moment;
    ship_small_ones(w->f, w->opened.repo, E2, 101, 1);
    object_of(w->opened.repo, E2, 0, path);
    spoil(w->f, path, 200);
    covered(w->f, E1, COUNT, 200 * BK_SEC);
    OK(bk_moments_open(w->f->set.base_dir, "app", "main", w->opened.repo, NULL, &moments, &err),
       &err);
    OK(bk_moments_at(moments, 150 * BK_SEC, &w->list, &moment, &err), &err);
    assert_int_equal(moment.tx.txid, COUNT);
    assert_int_equal(bk_moments_at(moments, 201 * BK_SEC, &w->list, &moment, &err), BK_INVALID);
    assert_contains(err.text, "captured up to");
    bk_moments_free(moments);
    /* Of one that is over nobody knows what came behind it. */
    covered(w->f, E2, 101, 200 * BK_SEC);
    OK(bk_moments_open(w->f->set.base_dir, "app", "main", w->opened.repo, NULL, &moments, &err),
       &err);
    assert_int_equal(bk_moments_at(moments, 150 * BK_SEC, &w->list, &moment, &err), BK_INVALID);
    bk_moments_free(moments);
}

/* Of E1, all of it. */
static void window_of(world_t *w, bk_moments_t *moments, bk_window_t *window)
{
    bk_err_t err = {0};
    bk_bases_t bases;
    OK(bk_bases_init(&bases, &w->list, "app", "main", &err), &err);
    OK(bk_moments_window(moments, 0, &bases, window, &err), &err);
    assert_int_equal(window->last + 1, COUNT);
    bk_bases_free(&bases);
}

/* Each would cost a search for its time; what follows the window need not even answer. */
static void backups_behind_a_window_are_not_looked_for(void **state)
{
    world_t *w = *state;
    bk_window_t window;
    char path[BK_STORAGE_NAME + 16];
    for (unsigned i = 0; i < 3; i++) {
        w->dbs[i].digest = 5;
        w->dbs[i].instant = (i + 1) * 1000 * BK_SEC;
    }
    w->dbs[0] = (bk_snapshot_db_t){.name = w->dbs[0].name,
                                   .digest = 1000 + COUNT,
                                   .page_count = 1 + COUNT % 3,
                                   .instant = 100 * BK_SEC};
    ship_small_ones(w->f, w->opened.repo, E2, 101, 20);
    bk_moments_t *moments = open_moments(w);
    window_of(w, moments, &window); /* long behind its last transaction, and yet of it */
    assert_true(window.reachable);
    assert_int_equal(window.earliest.txid, COUNT);
    w->dbs[0].instant = 1000 * BK_SEC;
    for (unsigned i = 19; i > 0; i--) {
        object_of(w->opened.repo, E2, i, path);
        assert_int_equal(unlink(at(w->f, path)), 0);
        assert_int_equal(symlink("nowhere", at(w->f, path)), 0); /* cannot be opened: ELOOP */
    }
    window_of(w, moments, &window);
    assert_false(window.reachable);
    bk_moments_free(moments);
}

/* A storage that does not answer says nothing of what it holds. */
static void a_silent_storage_is_no_damage(void **state)
{
    world_t *w = *state;
    bk_err_t err = {0};
    bk_moments_t *moments = open_moments(w);
    bk_moment_t moment;
    char path[BK_STORAGE_NAME + 16];
    uint64_t removed = 0;
    object_of(w->opened.repo, E1, 7, path);
    assert_int_equal(unlink(at(w->f, path)), 0);
    assert_int_equal(symlink("nowhere", at(w->f, path)), 0); /* cannot be opened: ELOOP */
    assert_int_equal(bk_moments_keep(moments, COUNT * BK_SEC, &w->list, NULL, &err), BK_STORAGE);
    assert_int_equal(bk_moments_keep_since(moments, COUNT * BK_SEC, &err), BK_STORAGE);
    assert_int_equal(bk_moments_number(moments, 9, &w->list, &moment, &err), BK_STORAGE);
    bk_moments_free(moments);
    moments = open_moments(w); /* what is needed is not known: nothing goes */
    OK(bk_moments_keep_since(moments, 0, &err), &err);
    OK(bk_moments_remove(moments, true, &removed, &err), &err);
    assert_int_equal(removed, 0);
    bk_moments_free(moments);
}

/* --- of a database --- */

static json_t *timeline(fixture_t *f)
{
    bk_timeline_filter_t filter = {.database = "main"};
    bk_err_t err = {0};
    json_t *answer;
    OK(bk_engine_timeline(f->engine, &filter, NULL, &answer, &err), &err);
    return answer;
}

static int64_t time_in(json_t *value, const char *path)
{
    int64_t time = 0;
    assert_true(bk_time_parse(text_of(value, path), &time));
    return time;
}

/* Six transactions, a segment each; a backup behind the first and the fifth one. */
static fixture_t *six(int64_t times[7], sqlite3 **db)
{
    fixture_t *f = captured(true);
    char id[BK_BACKUP_ID];
    *db = open_db(f, "app/app.db");
    capture(f);
    for (unsigned i = 1; i <= 6; i++) {
        sql(*db, "INSERT INTO jobs(name) VALUES('new')");
        ship_everything(f);
        times[i] = a_moment_later();
        if (i == 1 || i == 5)
            back_up(f, "incremental", id);
    }
    capture(f);
    return f;
}

static void assert_told(fixture_t *f, const char *reason, const int64_t times[7])
{
    json_t *answer = timeline(f), *db = json_array_get(json_object_get(answer, "databases"), 0);
    assert_int_equal(json_array_size(json_object_get(db, "windows")), 2);
    assert_int_equal(int_of(db, "windows.0.first_transaction"), 5);
    assert_int_equal(int_of(db, "windows.0.last_transaction"), 6);
    assert_int_equal(int_of(db, "windows.1.first_transaction"), 1);
    assert_int_equal(int_of(db, "windows.1.last_transaction"), 2);
    assert_true(json_is_true(member(db, "windows.0.recoverable")));
    assert_true(json_is_true(member(db, "windows.1.recoverable")));
    assert_int_equal(json_array_size(json_object_get(db, "gaps")), 1);
    assert_string_equal(text_of(db, "gaps.0.reason"), reason);
    assert_int_equal(int_of(db, "gaps.0.transaction"), 3);
    assert_int_equal(int_of(db, "gaps.0.last_transaction"), 3);
    assert_true(time_in(db, "gaps.0.from") < times[2]);
    assert_int_equal(rows_at(f, time_in(db, "windows.1.to")), 502);
    assert_true(time_in(db, "gaps.0.to") > times[4] && time_in(db, "gaps.0.to") < times[5]);
    json_decref(answer);
}

static void assert_refused(fixture_t *f, int64_t time, const char *why, const int64_t times[7])
{
    char text[BK_TIME_TEXT];
    bk_err_t err = {0};
    json_t *more;
    bk_time_format_exact(text, time);
    json_t *body = json_pack("{ssss}", "recovery_type", "database", "point_in_time", text);
    bk_ctl_init(&f->ctl);
    assert_int_equal(bk_engine_check(f->engine, BK_JOB_RECOVERY, body, &f->ctl, &more, &err),
                     BK_INVALID);
    bk_ctl_free(&f->ctl);
    assert_contains(err.text, why);
    assert_string_equal(text_of(more, "recovery_window.database"), "main");
    assert_int_equal(json_array_size(member(more, "recovery_window.gaps")), 1);
    assert_true(time_in(more, "recovery_window.gaps.0.to") < times[5]);
    json_decref(more);
    json_decref(body);
}

static void damage_in_a_window_is_told_and_goes(void **state)
{
    (void)state;
    int64_t times[7];
    sqlite3 *db;
    fixture_t *f = six(times, &db);
    bk_err_t err = {0};
    bk_opened_t opened;
    char path[BK_STORAGE_NAME + 16];
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    object_of(opened.repo, NULL, 2, path);
    bk_engine_close_repo(&opened);
    spoil(f, path, 200);
    assert_told(f, "damaged", times);
    assert_refused(f, times[3], "transactions 3 to 3 cannot be read", times);
    assert_refused(f, times[4], "transactions 3 to 3 cannot be read", times);
    assert_int_equal(rows_at(f, times[6]), 506);
    json_t *job = do_job(f, BK_JOB_VERIFY, "{\"level\": 1}", "failed");
    assert_contains(text_of(job, "error"), "transactions 3 to 3 of app.main");
    assert_contains(text_of(job, "error"), "make a backup when there was none since");
    assert_null(strstr(text_of(job, "error"), "stores again"));
    done(job);
    job = do_job(f, BK_JOB_CLEANUP, "{}", "warning");
    assert_int_equal(int_of(job, "cleanup_result.segments_deleted"), 0);
    assert_contains(text_of(job, "warnings.0"), "transactions 3 to 3 cannot be read");
    done(job);
    f->set.dbs[0].pitr_window = (uint64_t)((bk_now() - times[5]) / BK_MS);
    job = do_job(f, BK_JOB_CLEANUP, "{}", "completed");
    assert_true(int_of(job, "cleanup_result.segments_deleted") >= 4);
    done(job);
    done(do_job(f, BK_JOB_VERIFY, "{\"level\": 1}", "completed"));
    assert_int_equal(rows_at(f, times[6]), 506);
    sqlite3_close(db);
    fixture_free(f);
}

static void a_hole_in_a_window_is_told(void **state)
{
    (void)state;
    int64_t times[7];
    sqlite3 *db;
    json_t *health;
    fixture_t *f = six(times, &db);
    bk_err_t err = {0};
    bk_opened_t opened;
    char path[BK_STORAGE_NAME + 16], id[BK_BACKUP_ID];
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    object_of(opened.repo, NULL, 2, path);
    bk_engine_close_repo(&opened);
    done(do_job(f, BK_JOB_VERIFY, "{\"level\": 0}", "completed"));
    assert_int_equal(unlink(at(f, path)), 0);
    assert_told(f, "missing", times);
    assert_refused(f, times[3], "transactions 3 to 3 is missing", times);
    assert_refused(f, times[4], "transactions 3 to 3 is missing", times);
    assert_int_equal(rows_at(f, times[5]), 505);
    json_t *job = do_job(f, BK_JOB_VERIFY, "{\"level\": 0}", "failed");
    assert_contains(text_of(job, "error"), "transactions 3 to 3 are missing");
    assert_contains(text_of(job, "error"), "make a backup when there was none since");
    done(job);
    back_up(f, "incremental", id);
    OK(bk_engine_health(f->engine, &health, &err), &err);
    char *text = json_dumps(health, 0);
    assert_contains(text, "transactions 3 to 3 are missing");
    free(text);
    json_decref(health);
    sqlite3_close(db);
    fixture_free(f);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up_damage, tear_down_damage)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(damage_costs_only_what_needs_it),
        T(a_missing_segment_costs_only_what_needs_it),
        T(what_is_damaged_goes_in_its_time),
        T(what_goes_on_is_not_over),
        T(a_lost_epoch_does_not_end_what_goes_on),
        T(backups_behind_a_window_are_not_looked_for),
        T(a_silent_storage_is_no_damage),
        cmocka_unit_test(damage_in_a_window_is_told_and_goes),
        cmocka_unit_test(a_hole_in_a_window_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
