/*
 * t/unit/repo/lease_test.c: a lease is renewed while nothing new is found, replaced when it ran out, and ended for a
 * session that died.
 */
#include "unit/repo/fixture.h"

#include <sys/wait.h>

#include "base/clock.h"
#include "repo/session_private.h"

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

/* As if the lease had been written so long ago, and a look at it were due. */
static void age_lease(bk_session_t *session, int64_t seconds)
{
    session->lease_mono -= seconds * BK_SEC;
    session->lease_wall -= seconds * BK_SEC;
    atomic_store(&session->due, 0);
}

static void looking_up_known_chunks_keeps_the_lease_alive(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 1, 1000);
    listing_t *before = list_objects(f->storage, "leases/");
    age_lease(session, 400);
    assert_true(bk_session_has(session, &id));
    listing_t *after = list_objects(f->storage, "leases/");
    assert_int_equal(after->count, 1);
    assert_string_equal(before->names[0], after->names[0]);
    assert_true(bk_mono() - session->lease_mono < 60 * BK_SEC);
    free(before);
    free(after);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
}

static void a_lease_that_ran_out_is_replaced_by_another(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true);
    put_seed(session, BK_TYPE_FILE, 1, 1000);
    listing_t *before = list_objects(f->storage, "leases/");
    age_lease(session, 4000);
    put_seed(session, BK_TYPE_FILE, 1, 1000);
    listing_t *after = list_objects(f->storage, "leases/");
    assert_int_equal(after->count, 1);
    assert_string_not_equal(before->names[0], after->names[0]);
    /* Also when nobody looked until the commit. */
    session->lease_mono -= 4000 * BK_SEC;
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    free(before);
    free(after);
}

static void a_clock_set_back_does_not_stop_renewal(void **state)
{
    fixture_t *f = *state;
    bk_session_t *session = begin_session(f, true);
    session->lease_wall += 86400 * BK_SEC;
    session->lease_mono -= 400 * BK_SEC;
    atomic_store(&session->due, 0);
    put_seed(session, BK_TYPE_FILE, 1, 1000);
    assert_true(bk_mono() - session->lease_mono < 60 * BK_SEC);
    bk_session_abort(session);
}

static void the_next_session_ends_the_lease_of_one_that_died(void **state)
{
    fixture_t *f = *state;
    int status;
    pid_t child = fork();
    if (child == 0) {
        begin_session(f, true);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(count_objects(f->storage, "leases/"), 1);
    bk_session_t *session = begin_session(f, true);
    assert_int_equal(count_objects(f->storage, "leases/"), 1);
    bk_session_abort(session);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
}

static void old_closed_packs_get_their_segment_without_waiting_for_more(void **state)
{
    fixture_t *f = *state;
    bk_session_t *session = begin_session(f, true);
    for (uint64_t i = 0; i < 20; i++)
        put_seed(session, BK_TYPE_FILE, i, 1u << 20);
    assert_int_equal(count_objects(f->storage, "index/"), 0);
    session->finished_since -= 700 * BK_SEC;
    atomic_store(&session->due, 0);
    put_seed(session, BK_TYPE_FILE, 1, 1u << 20);
    assert_int_equal(count_objects(f->storage, "index/"), 1);
    bk_session_abort(session);
}

static void a_host_of_any_name_makes_a_valid_lease(void **state)
{
    fixture_t *f = *state;
    static const char *const hosts[] = {"", ".", "../../etc", "h\xc3\xb6st name", "a.b-c"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        bk_err_t err = {0};
        bk_session_t *session = NULL;
        bk_session_options_t options = {
            .host = hosts[i], .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
        assert_ok(bk_session_begin(f->repo, &options, NULL, &session, &err));
        assert_int_equal(count_objects(f->storage, "leases/"), 1);
        bk_session_abort(session);
        assert_int_equal(count_objects(f->storage, "leases/"), 0);
    }
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(looking_up_known_chunks_keeps_the_lease_alive),
        CASE(a_lease_that_ran_out_is_replaced_by_another),
        CASE(a_clock_set_back_does_not_stop_renewal),
        CASE(the_next_session_ends_the_lease_of_one_that_died),
        CASE(old_closed_packs_get_their_segment_without_waiting_for_more),
        CASE(a_host_of_any_name_makes_a_valid_lease),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
