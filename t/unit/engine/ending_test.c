/*
 * t/unit/engine/ending_test.c: a job that was taken comes to an end in the catalog, also when the
 * catalog cannot be read or written meanwhile.
 */
#include "unit/engine/fixture.h"

static void in_catalog(const fixture_t *f, const char *text)
{
    sqlite3 *db = open_db(f, "base/catalog.db");
    sql(db, text);
    sqlite3_close(db);
}

static void take_one(fixture_t *f, bk_job_kind_t kind, const char *body, char id[BK_JOB_ID])
{
    char taken[BK_JOB_ID];
    assert_int_equal(submit(f, kind, body, id), BK_OK);
    OK(bk_engine_take(f->engine, taken, &f->err), &f->err);
    assert_string_equal(taken, id);
}

static bk_job_status_t run_it(fixture_t *f, const char *id)
{
    bk_ctl_init(&f->ctl);
    bk_job_status_t status = run_taken(f, id);
    bk_ctl_free(&f->ctl);
    return status;
}

static void assert_failed(fixture_t *f, const char *id, const char *why)
{
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "failed");
    assert_contains(text_of(job, "error"), why);
    assert_contains(text_of(job, "problem.detail"), why);
    done(job);
}

static void a_job_whose_row_cannot_be_read_fails(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    take_one(f, BK_JOB_BACKUP, NULL, id);
    in_catalog(f, "ALTER TABLE jobs RENAME COLUMN trigger TO gone");
    assert_int_equal(run_it(f, id), BK_STATUS_FAILED);
    in_catalog(f, "ALTER TABLE jobs RENAME COLUMN gone TO trigger");
    assert_failed(f, id, "its record cannot be read");
    back_up(f, "full", id);
}

static void an_end_that_cannot_be_written_is_written_before_the_next_job(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], next[BK_JOB_ID];
    bk_err_t err = {0};
    take_one(f, BK_JOB_BACKUP, NULL, id);
    in_catalog(f, "CREATE TRIGGER full BEFORE UPDATE ON jobs"
                  " BEGIN SELECT RAISE(ABORT, 'no space'); END");
    assert_int_equal(run_it(f, id), BK_STATUS_COMPLETED);
    assert_int_not_equal(bk_engine_take(f->engine, next, &err), BK_OK);
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "running");
    done(job);
    in_catalog(f, "DROP TRIGGER full");
    OK(bk_engine_take(f->engine, next, &err), &err);
    assert_string_equal(next, "");
    job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "completed");
    assert_string_equal(text_of(job, "backup_id"), id);
    done(job);
}

static void a_job_that_was_taken_and_not_run_fails(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], next[BK_JOB_ID];
    bk_err_t err = {0};
    take_one(f, BK_JOB_BACKUP, NULL, id);
    OK(bk_engine_take(f->engine, next, &err), &err);
    assert_failed(f, id, "could not be started");
}

/* Read as {}, it would be a recovery of everything, in place. */
static void a_request_that_is_damaged_is_not_run(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    back_up(f, "full", id);
    put(f, "app/uploads/a.wav", "changed since");
    take_one(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"database\"}", id);
    in_catalog(f, "UPDATE jobs SET body = substr(body, 2) WHERE status = 1");
    assert_int_equal(run_it(f, id), BK_STATUS_FAILED);
    assert_failed(f, id, "is damaged");
    assert_string_equal(get(f, "app/uploads/a.wav"), "changed since");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_job_whose_row_cannot_be_read_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            an_end_that_cannot_be_written_is_written_before_the_next_job, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_job_that_was_taken_and_not_run_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_request_that_is_damaged_is_not_run, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
