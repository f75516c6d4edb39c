/*
 * t/unit/repo/fetch_test.c: many chunks at once: each want is answered once, with the right bytes or a failure.
 */
#include "unit/repo/fixture.h"

#include <stdatomic.h>

#include "base/team.h"

enum { CHUNKS = 400, LEN = 100000 };

typedef struct {
    fixture_t *f;
    bk_want_chunk_t *wants;
    size_t count;
    bk_ctl_t *ctl;
    atomic_uint delivered[4 * CHUNKS], failed[4 * CHUNKS];
    uint64_t seeds[4 * CHUNKS];
    atomic_size_t calls;
    size_t fail_at; /* the delivery that returns a failure; 0: none */
    size_t stop_at; /* the delivery that stops the job; 0: none */
    char failure[BK_ERR_TEXT];
} job_t;

static bk_rc_t deliver(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                       const bk_err_t *failure, bk_err_t *err)
{
    job_t *job = arg;
    size_t call = atomic_fetch_add(&job->calls, 1) + 1;
    assert_ptr_equal(want->user, job);
    if (data == NULL) {
        assert_non_null(failure);
        atomic_fetch_add(&job->failed[want->tag], 1);
        bk_strcpy(job->failure, sizeof job->failure, failure->text);
    } else {
        uint8_t *expected = calloc(want->raw + 1u, 1);
        if (job->seeds[want->tag] != 0)
            fill(expected, want->raw, job->seeds[want->tag]);
        assert_memory_equal(data, expected, want->raw);
        free(expected);
        atomic_fetch_add(&job->delivered[want->tag], 1);
    }
    if (call == job->stop_at)
        bk_ctl_stop(job->ctl, BK_CANCELED);
    return call == job->fail_at ? bk_err_set(err, BK_NO_SPACE, "the target is full") : BK_OK;
}

static bk_rc_t fetch_on_team(bk_team_t *team, void *arg, bk_err_t *err)
{
    job_t *job = arg;
    return bk_repo_fetch(job->f->repo, job->wants, job->count, team, deliver, job, job->ctl, err);
}

static void add_want(job_t *job, const bk_id_t *id, uint64_t seed, uint32_t raw)
{
    job->wants[job->count] =
        (bk_want_chunk_t){.id = *id, .raw = raw, .user = job, .tag = job->count};
    job->seeds[job->count++] = seed;
}

static job_t *new_job(fixture_t *f)
{
    job_t *job = calloc(1, sizeof *job);
    job->f = f;
    job->wants = calloc(4 * CHUNKS, sizeof *job->wants);
    return job;
}

static void free_job(job_t *job)
{
    free(job->wants);
    free(job);
}

static void store(fixture_t *f, bk_id_t *ids)
{
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true);
    for (uint64_t i = 0; i < CHUNKS; i++)
        ids[i] = put_seed(session, BK_TYPE_FILE, i + 1, LEN);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
}

static int set_up(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    setup_fixture(f, false);
    open_repo(f);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    teardown_fixture(*state);
    free(*state);
    return 0;
}

static void every_want_is_answered_once_by_any_number_of_lanes(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_id_t ids[CHUNKS];
    store(f, ids);
    for (unsigned lanes = 1; lanes <= 4; lanes += 3) {
        job_t *job = new_job(f);
        for (uint64_t i = 0; i < CHUNKS; i++) /* in no order, every third twice more */
            for (uint64_t n = 0; n < (i % 3 == 0 ? 3 : 1); n++)
                add_want(job, &ids[(i * 37) % CHUNKS], (i * 37) % CHUNKS + 1, LEN);
        assert_ok(bk_team_run(lanes, fetch_on_team, job, &err));
        for (size_t i = 0; i < job->count; i++) {
            assert_int_equal(job->delivered[i], 1);
            assert_int_equal(job->failed[i], 0);
        }
        free_job(job);
    }
}

static void few_of_a_pack_and_most_of_a_pack_are_both_right(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_id_t ids[CHUNKS];
    store(f, ids);
    for (uint64_t step = 1; step <= CHUNKS; step = step * 3 + 1) {
        job_t *job = new_job(f);
        for (uint64_t i = 0; i < CHUNKS; i += step)
            add_want(job, &ids[i], i + 1, LEN);
        assert_ok(bk_team_run(3, fetch_on_team, job, &err));
        for (size_t i = 0; i < job->count; i++)
            assert_int_equal(job->delivered[i], 1);
        free_job(job);
    }
}

static void zeros_and_empty_chunks_are_delivered(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_id_t zero = {{0}};
    bk_session_t *session = begin_session(f, true);
    bk_id_t empty = put_seed(session, BK_TYPE_FILE, 5, 0);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    job_t *job = new_job(f);
    add_want(job, &zero, 0, 65536);
    add_want(job, &empty, 5, 0);
    assert_ok(bk_team_run(2, fetch_on_team, job, &err));
    assert_int_equal(job->delivered[0], 1);
    assert_int_equal(job->delivered[1], 1);
    free_job(job);
}

static void what_cannot_be_had_is_told_and_the_rest_goes_on(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_id_t ids[CHUNKS], nobody;
    store(f, ids);
    memset(&nobody, 7, sizeof nobody);
    listing_t *packs = list_objects(f->storage, "packs/");
    assert_true(packs->count >= 2);
    assert_ok(bk_storage_remove(f->storage, packs->names[0], NULL, &err));
    flip_byte(f, packs->names[1], 80 + LEN / 2); /* in its first frame */
    job_t *job = new_job(f);
    for (uint64_t i = 0; i < CHUNKS; i++)
        add_want(job, &ids[i], i + 1, LEN);
    add_want(job, &nobody, 1, LEN);
    add_want(job, &ids[CHUNKS - 1], CHUNKS, LEN - 1); /* another length than it has */
    assert_ok(bk_team_run(3, fetch_on_team, job, &err));
    size_t failed = 0;
    for (size_t i = 0; i < job->count; i++) {
        assert_int_equal(job->delivered[i] + job->failed[i], 1);
        failed += job->failed[i];
    }
    size_t in_pack = (size_t)(packs->sizes[0] / LEN);
    assert_true(failed >= in_pack + 3 && failed <= in_pack + 4);
    assert_int_equal(job->failed[CHUNKS], 1);
    assert_int_equal(job->failed[CHUNKS + 1], 1);
    free_job(job);
    free(packs);
}

static void a_failed_delivery_ends_the_fetch_with_its_error(void **state)
{
    fixture_t *f = *state;
    bk_id_t ids[CHUNKS];
    store(f, ids);
    for (unsigned lanes = 1; lanes <= 3; lanes += 2) {
        bk_err_t err = {0};
        job_t *job = new_job(f);
        job->fail_at = 5;
        for (uint64_t i = 0; i < CHUNKS; i++)
            add_want(job, &ids[i], i + 1, LEN);
        assert_int_equal(bk_team_run(lanes, fetch_on_team, job, &err), BK_NO_SPACE);
        assert_string_equal(err.text, "the target is full");
        if (lanes == 1) /* several may have got far before they notice */
            assert_int_equal(job->calls, 5);
        free_job(job);
    }
}

static void a_stopped_fetch_ends_as_canceled_and_blames_no_chunk(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_ctl_t ctl;
    bk_id_t ids[CHUNKS];
    store(f, ids);
    bk_ctl_init(&ctl);
    job_t *job = new_job(f);
    job->ctl = &ctl;
    job->stop_at = 10;
    for (uint64_t i = 0; i < CHUNKS; i++)
        add_want(job, &ids[i], i + 1, LEN);
    assert_int_equal(bk_team_run(3, fetch_on_team, job, &err), BK_CANCELED);
    for (size_t i = 0; i < job->count; i++)
        assert_int_equal(job->failed[i], 0);
    bk_ctl_free(&ctl);
    free_job(job);
}

static void chunks_of_the_running_session_are_fetched_too(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_id_t ids[CHUNKS];
    bk_session_t *session = begin_session(f, true);
    job_t *job = new_job(f);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        ids[i] = put_seed(session, BK_TYPE_FILE, i + 1, LEN);
        add_want(job, &ids[i], i + 1, LEN);
    }
    assert_ok(bk_team_run(3, fetch_on_team, job, &err));
    for (size_t i = 0; i < job->count; i++)
        assert_int_equal(job->delivered[i], 1);
    free_job(job);
    bk_session_abort(session);
}

/* An older copy in a sound pack serves when the newest is gone. */
static void another_copy_serves_when_the_newest_is_gone(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 1, LEN);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    listing_t *first = list_objects(f->storage, "packs/");
    /* The same chunk once more, by a writer that has not seen the first. */
    fixture_t other = *f;
    char dir[300];
    bk_fmt(dir, sizeof dir, "%.200s/other", f->dir);
    other.dir = dir;
    char path[512];
    assert_int_equal(mkdir(other.dir, 0700), 0);
    assert_int_equal(mkdir(fixture_path(&other, "cache", path), 0700), 0);
    assert_int_equal(mkdir(fixture_path(&other, "spool", path), 0700), 0);
    listing_t *segments = list_objects(f->storage, "index/");
    char from[700], to[700];
    bk_fmt(from, sizeof from, "%s/storage/%.128s", f->dir, segments->names[0]);
    bk_fmt(to, sizeof to, "%s/segment", other.dir);
    assert_int_equal(rename(from, to), 0);
    open_repo(&other);
    session = begin_session(&other, true);
    put_seed(session, BK_TYPE_FILE, 1, LEN);
    assert_ok(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err));
    bk_repo_close(other.repo);
    assert_int_equal(rename(to, from), 0);
    listing_t *both = list_objects(f->storage, "packs/");
    assert_int_equal(both->count, 2);
    for (size_t i = 0; i < 2; i++) {
        char object[700], aside[700];
        bk_fmt(object, sizeof object, "%s/storage/%.128s", f->dir, both->names[i]);
        bk_fmt(aside, sizeof aside, "%s/aside", f->dir);
        assert_int_equal(rename(object, aside), 0);
        reopen_repo(f);
        assert_seed(f->repo, &id, 1, LEN);
        job_t *job = new_job(f);
        add_want(job, &id, 1, LEN);
        assert_ok(bk_team_run(2, fetch_on_team, job, &err));
        assert_int_equal(job->delivered[0], 1);
        free_job(job);
        assert_int_equal(rename(aside, object), 0);
    }
    free(first);
    free(segments);
    free(both);
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(every_want_is_answered_once_by_any_number_of_lanes),
        CASE(few_of_a_pack_and_most_of_a_pack_are_both_right),
        CASE(zeros_and_empty_chunks_are_delivered),
        CASE(what_cannot_be_had_is_told_and_the_rest_goes_on),
        CASE(a_failed_delivery_ends_the_fetch_with_its_error),
        CASE(a_stopped_fetch_ends_as_canceled_and_blames_no_chunk),
        CASE(chunks_of_the_running_session_are_fetched_too),
        CASE(another_copy_serves_when_the_newest_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
