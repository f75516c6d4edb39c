/*
 * t/unit/engine/compact_test.c: small segments on the storage become large ones: every transaction
 * stays there once, for readers of the old names, too, and nothing goes before what it became is
 * read whole.
 */
#include "unit/engine/captures.h"
#include "unit/engine/segments.h"

#include "engine/bases.h"
#include "engine/compact.h"

/* A backup of what the first epoch was before transaction 1 + number. */
typedef struct {
    bk_snapshot_db_t db;
    bk_snapshot_t snapshot;
    bk_snapshot_list_t list;
} base_t;

static void base_of(base_t *base, uint64_t number)
{
    static char name[] = "main", set[] = "app";
    base->db = (bk_snapshot_db_t){
        .name = name, .digest = 1000 + number, .page_count = 1 + number % 3, .page_size = 4096};
    base->snapshot = (bk_snapshot_t){.set = set, .dbs = &base->db, .db_count = 1};
    base->list = (bk_snapshot_list_t){.items = &base->snapshot, .count = 1};
}

static void assert_pages(bk_past_t *past, uint64_t txid)
{
    uint8_t page[4096], wanted[4096];
    bk_err_t err = {0};
    assert_int_equal(bk_past_digest(past), 1000u + txid);
    assert_int_equal(bk_past_page_count(past), 1 + txid % 3);
    for (uint64_t p = 1; p <= 1 + txid % 3; p++) {
        OK(bk_past_page(past, p, page, &err), &err);
        fill_page(wanted, txid + p);
        assert_memory_equal(page, wanted, sizeof page);
    }
}

static bk_past_t *past_of(bk_moments_t *moments, const base_t *base, uint64_t txid,
                          bk_moment_t *moment)
{
    bk_past_t *past;
    bk_err_t err = {0};
    OK(bk_moments_number(moments, txid, &base->list, moment, &err), &err);
    OK(bk_moments_past(moment, NULL, NULL, &past, &err), &err);
    return past;
}

/* Every transaction is there once, with its own pages. */
static void assert_all_there(bk_repo_t *repo, uint64_t count)
{
    bk_err_t err = {0};
    bk_moments_t *moments;
    bk_moment_t moment;
    uint64_t next = 1;
    base_t base;
    base_of(&base, 0);
    OK(bk_moments_open(NULL, "app", "main", repo, NULL, &moments, &err), &err);
    for (size_t s = 0; s < bk_moments_count(moments); s++) {
        bk_txlog_t *log;
        OK(bk_moments_segment(moments, s, &log, &err), &err);
        for (size_t i = 0; i < bk_txlog_count(log) && bk_txlog_info(log)->epoch[0] == E1[0]; i++)
            assert_int_equal(bk_txlog_tx(log, i)->txid, next++);
    }
    assert_int_equal(next, count + 1);
    for (uint64_t txid = 1; txid <= count; txid++) {
        bk_past_t *past = past_of(moments, &base, txid, &moment);
        assert_pages(past, txid);
        bk_past_free(past);
    }
    bk_moments_free(moments);
}

static size_t count_all(bk_repo_t *repo, const uint8_t *epoch, bool hidden)
{
    bk_err_t err = {0};
    bk_history_list_t list;
    size_t count = 0;
    if (hidden)
        OK(bk_history_list_all(repo, "app.main", NULL, &list, &err), &err);
    else
        OK(bk_history_list(repo, "app.main", NULL, NULL, &list, &err), &err);
    for (size_t i = 0; i < list.count; i++)
        count += list.items[i].name.epoch[0] == epoch[0];
    bk_history_list_free(&list);
    return count;
}

typedef struct {
    fixture_t *f;
    bk_opened_t opened;
} merging_t;

static size_t merge(merging_t *w, int64_t grace)
{
    bk_err_t err = {0};
    size_t merged;
    OK(bk_compact(w->f->engine, w->opened.repo, "app.main", grace, &merged, &w->f->ctl, &err),
       &err);
    return merged;
}

static int set_up_merging(void **state)
{
    bk_err_t err = {0};
    merging_t *w = calloc(1, sizeof *w);
    w->f = captured(true);
    OK(bk_engine_open_repo(w->f->engine, false, NULL, &w->opened, &err), &err);
    bk_ctl_init(&w->f->ctl);
    *state = w;
    return 0;
}

static int tear_down_merging(void **state)
{
    merging_t *w = *state;
    bk_ctl_free(&w->f->ctl);
    bk_engine_close_repo(&w->opened);
    fixture_free(w->f);
    free(w);
    return 0;
}

static void many_segments_become_few(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    ship_small_ones(w->f, repo, E1, 1, 200);
    ship_small_ones(w->f, repo, E2, 201, 31); /* one less than a run */
    assert_all_there(repo, 200);
    assert_int_equal(merge(w, 3600 * BK_SEC), 200);
    /* Both are there now, as if it had been killed here. */
    assert_int_equal(count_all(repo, E1, true), 201);
    assert_int_equal(count_all(repo, E1, false), 1);
    assert_all_there(repo, 200);
    assert_int_equal(merge(w, 3600 * BK_SEC), 0);
    assert_int_equal(count_all(repo, E1, true), 201);
    assert_int_equal(merge(w, 0), 0);
    assert_int_equal(count_all(repo, E1, true), 1);
    assert_int_equal(count_all(repo, E2, true), 31);
    assert_all_there(repo, 200);
    done(do_job(w->f, BK_JOB_VERIFY, "{\"level\": 2}", "completed"));
    bk_ctl_init(&w->f->ctl);
}

/* New ones come, and are merged with each other before they are with the wide one. */
static void what_was_merged_is_not_written_again_soon(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    ship_small_ones(w->f, repo, E1, 1, 400);
    assert_int_equal(merge(w, 0), 400);
    ship_small_ones(w->f, repo, E1, 401, 31);
    (void)merge(w, 0);
    size_t before = count_all(repo, E1, false);
    ship_small_ones(w->f, repo, E1, 432, 40);
    (void)merge(w, 0);
    (void)merge(w, 0);
    assert_true(before <= 32);
    assert_true(count_all(repo, E1, true) <= 3);
    assert_all_there(repo, 471);
}

/* Somebody listed before it all was merged and removed, and has some of them open. */
static void a_reader_of_the_old_names_goes_on(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    bk_err_t err = {0};
    bk_moments_t *moments;
    bk_moment_t moment, other;
    base_t base, late;
    base_of(&base, 0);
    base_of(&late, 35);
    ship_small_ones(w->f, repo, E1, 1, 40);
    OK(bk_moments_open(NULL, "app", "main", repo, NULL, &moments, &err), &err);
    bk_past_t *few = past_of(moments, &late, 38, &moment), /* all of them stay open */
        *many = past_of(moments, &base, 38, &other);
    assert_int_equal(merge(w, 0), 40);
    (void)merge(w, 0);
    assert_int_equal(count_all(repo, E1, true), 1);
    assert_pages(few, 38);
    assert_pages(many, 38);
    bk_past_free(few);
    bk_past_free(many);
    /* The list of before finds each by its number, in what is there now. */
    for (uint64_t txid = 1; txid <= 40; txid++) {
        bk_past_t *past = past_of(moments, &base, txid, &moment);
        assert_pages(past, txid);
        bk_past_free(past);
    }
    bk_moments_free(moments);
}

/* One of the old names leads to what holds all of them. */
static void a_cleanup_with_the_old_names_spares_what_they_became(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    bk_err_t err = {0};
    bk_moments_t *moments;
    uint64_t removed = 0;
    base_t base;
    base_of(&base, 35);
    ship_small_ones(w->f, repo, E1, 1, 40);
    OK(bk_moments_open(NULL, "app", "main", repo, NULL, &moments, &err), &err);
    assert_int_equal(merge(w, 0), 40);
    (void)merge(w, 0);
    assert_int_equal(count_all(repo, E1, true), 1);
    bool begins = false;
    OK(bk_moments_keep(moments, 38 * BK_SEC, &base.list, &begins, &err), &err);
    OK(bk_moments_remove(moments, false, &removed, &err), &err);
    assert_int_equal(removed, 0);
    bk_moments_free(moments);
    assert_all_there(repo, 40);
}

/* The others are merged; nothing that can be read is given up. */
static void a_damaged_or_missing_segment_is_left_out(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    bk_history_list_t list;
    bk_err_t err = {0};
    char path[BK_STORAGE_NAME + 16] = "storage/";
    ship_small_ones(w->f, repo, E1, 1, 100);
    OK(bk_history_list(repo, "app.main", E1, NULL, &list, &err), &err);
    bk_history_object(path + strlen(path), &list.items[9]);
    OK(bk_history_remove(repo, &list.items[49], NULL, &err), &err);
    bk_history_list_free(&list);
    spoil(w->f, path, 200);
    /* 1..9 | 10 | 11..49 | | 51..100 */
    assert_int_equal(merge(w, 0), 39);
    assert_int_equal(merge(w, 0), 50);
    assert_int_equal(merge(w, 0), 0);
    assert_int_equal(count_all(repo, E1, true), 9 + 1 + 1 + 1);
}

/* The others are still there: they are merged again. */
static void a_merged_segment_that_is_damaged_is_made_again(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    char path[BK_STORAGE_NAME + 16];
    ship_small_ones(w->f, repo, E1, 1, 40);
    assert_int_equal(merge(w, 3600 * BK_SEC), 40);
    object_of(repo, E1, 0, path);
    spoil(w->f, path, size_of(w->f, path) / 2); /* pages: what tells of them is sound */
    (void)merge(w, 0);
    (void)merge(w, 0);
    (void)merge(w, 0);
    assert_int_equal(count_all(repo, E1, true), 1);
    assert_all_there(repo, 40);
}

/* The others were removed; one of them is still here, as long as a hash of it is needed. */
static void what_is_still_here_does_not_hide_what_it_became(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    bk_err_t err = {0};
    bk_moments_t *moments;
    bk_moment_t moment;
    base_t base;
    base_of(&base, 0);
    ship_small_ones(w->f, repo, E1, 1, 40);
    assert_int_equal(merge(w, 0), 40);
    write_segment(w->f, E1, 4096, 1, 3, BK_SEC, true);
    OK(bk_moments_open(w->f->set.base_dir, "app", "main", repo, NULL, &moments, &err), &err);
    for (uint64_t txid = 1; txid <= 40; txid++) {
        bk_past_t *past = past_of(moments, &base, txid, &moment);
        assert_pages(past, txid);
        bk_past_free(past);
    }
    bk_moments_free(moments);
}

/* One of the others is damaged as well, elsewhere: each has what the other one lacks. */
static void a_damaged_one_stays_when_the_others_are_not_whole(void **state)
{
    merging_t *w = *state;
    bk_repo_t *repo = w->opened.repo;
    char wide[BK_STORAGE_NAME + 16], small[BK_STORAGE_NAME + 16];
    for (uint64_t i = 1; i <= 40; i++)
        ship_one(w->f, repo, E1, i, 40); /* three parts each */
    object_of(repo, E1, 39, small);
    assert_int_equal(merge(w, 3600 * BK_SEC), 40);
    object_of(repo, E1, 0, wide);
    spoil(w->f, wide, 200);
    spoil(w->f, small, size_of(w->f, small) / 2);
    (void)merge(w, 0);
    assert_int_equal(count_all(repo, E1, true), 41);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up_merging, tear_down_merging)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(many_segments_become_few),
        T(what_was_merged_is_not_written_again_soon),
        T(a_reader_of_the_old_names_goes_on),
        T(a_cleanup_with_the_old_names_spares_what_they_became),
        T(a_merged_segment_that_is_damaged_is_made_again),
        T(what_is_still_here_does_not_hide_what_it_became),
        T(a_damaged_one_stays_when_the_others_are_not_whole),
        T(a_damaged_or_missing_segment_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
