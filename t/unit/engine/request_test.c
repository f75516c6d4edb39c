/*
 * t/unit/engine/request_test.c: what a request body may say, and that each mistake is named by its
 * pointer.
 */
#include "unit/engine/fixture.h"

typedef struct {
    bk_job_kind_t kind;
    const char *body, *pointer, *detail;
} mistake_t;

static const mistake_t mistakes[] = {
    {BK_JOB_BACKUP, "{\"backup_type\": \"weird\"}", "#/backup_type", "full"},
    {BK_JOB_BACKUP, "{\"backup_type\": 5}", "#/backup_type", "string"},
    {BK_JOB_BACKUP, "{\"backup_typ\": \"full\"}", "#/backup_typ", "not known"},
    {BK_JOB_BACKUP, "{\"upload_to_storage\": \"maybe\"}", "#/upload_to_storage", ""},
    {BK_JOB_BACKUP, "{\"tags\": [\"a\", 1]}", "#/tags", ""},
    {BK_JOB_BACKUP, "{\"tags\": [\"\"]}", "#/tags", "1 to 64"},
    {BK_JOB_RECOVERY, "{}", "#/recovery_type", "needed"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"x\"}", "#/recovery_type", "database"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"backup_id\": \"../../etc\"}", "#/backup_id",
     "backup id"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"backup_id\": \"*\"}", "#/backup_id",
     "backup id"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"point_in_time\": \"yesterday\"}",
     "#/point_in_time", "must be a time"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"database\", \"transaction\": 0}", "#/transaction",
     "from 1 to"},
    {BK_JOB_RECOVERY,
     "{\"recovery_type\": \"database\", \"transaction\": 7, \"backup_id\": \"latest\"}",
     "#/transaction", "excludes"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"tables\": [\"jobs\"]}", "#/tables",
     "\"recovery_type\": \"database\""},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"database\", \"tables\": []}", "#/tables", "1 to 1000"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"database\", \"tables\": [\"\"]}", "#/tables", "empty"},
    {BK_JOB_RECOVERY,
     "{\"recovery_type\": \"database\", \"tables\": [\"a\"], \"target_directory\": \"/x\"}",
     "#/tables", "into the database itself"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"database\": \"nope\"}", "#/database",
     "no database block"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"file_patterns\": [\"a[\"]}",
     "#/file_patterns", "position"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"paths\": [\"\"]}", "#/paths", "empty"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"database\", \"file_patterns\": [\"*.wav\"]}",
     "#/file_patterns", "\"recovery_type\": \"files\""},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"paths\": [\"uploads/a\"]}", "#/paths",
     "\"recovery_type\": \"files\""},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"overwrite\": \"rename\"}", "#/overwrite",
     "safety backup"},
    {BK_JOB_RECOVERY,
     "{\"recovery_type\": \"database\", \"tables\": [\"a\"], \"overwrite\": \"never\"}",
     "#/overwrite", "tables"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"overwrite\": \"sometimes\"}", "#/overwrite",
     "if-newer"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"restore_to_original\": false}",
     "#/target_directory", "needed"},
    {BK_JOB_RECOVERY,
     "{\"recovery_type\": \"files\", \"restore_to_original\": true, \"target_directory\": \"/x\"}",
     "#/target_directory", "excludes"},
    {BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"dry_run\": 1}", "#/dry_run", ""},
    {BK_JOB_VALIDATE, "{\"backup_id\": \"UPPER\"}", "#/backup_id", "backup id"},
    {BK_JOB_VERIFY, "{\"level\": 4}", "#/level", ""},
    {BK_JOB_VERIFY, "{\"level\": -1}", "#/level", ""},
    {BK_JOB_TEST, "{\"x\": 1}", "#/x", "not known"},
    {BK_JOB_CLEANUP, "{\"dry_run\": \"yes\"}", "#/dry_run", ""},
    {BK_JOB_DELETE, "{}", "#/backup_id", "needed"},
    {BK_JOB_DELETE, "{\"backup_id\": \"latest\"}", "#/backup_id", "latest"},
};

static void each_mistake_is_named(void **state)
{
    fixture_t *f = *state;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        const mistake_t *m = &mistakes[i];
        bk_err_t err = {0};
        json_t *body = json(m->body), *problems = NULL;
        bk_rc_t rc = bk_request_check(&f->set, m->kind, body, &problems, &err);
        if (rc != BK_INVALID || json_array_size(problems) != 1)
            fail_msg("%s: %s", m->body, err.text);
        assert_string_equal(text_of(problems, "0.pointer"), m->pointer);
        assert_contains(text_of(problems, "0.detail"), m->detail);
        assert_contains(err.text, m->pointer);
        json_decref(problems);
        json_decref(body);
    }
}

static void all_mistakes_are_told_at_once(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    json_t *problems = NULL;
    json_t *body = json("{\"recovery_type\": \"x\", \"overwrite\": 1, \"color\": \"red\"}");
    assert_int_equal(bk_request_check(&f->set, BK_JOB_RECOVERY, body, &problems, &err), BK_INVALID);
    assert_int_equal(json_array_size(problems), 3);
    json_decref(problems);
    json_decref(body);
    body = json("[1]");
    assert_int_equal(bk_request_check(&f->set, BK_JOB_BACKUP, body, &problems, &err), BK_INVALID);
    json_decref(problems);
    json_decref(body);
}

static void the_original_requests_are_accepted(void **state)
{
    static const struct {
        bk_job_kind_t kind;
        const char *body;
    } good[] = {
        {BK_JOB_BACKUP, "{}"},
        {BK_JOB_BACKUP, "{\"backup_type\": \"full\", \"upload_to_storage\": true}"},
        {BK_JOB_BACKUP, "{\"backup_type\": \"incremental\", \"upload_to_storage\": false}"},
        {BK_JOB_RECOVERY, "{\"recovery_type\": \"database\", \"backup_id\": "
                          "\"full_20251015_143000\", \"restore_to_original\": true}"},
        {BK_JOB_RECOVERY,
         "{\"recovery_type\": \"full\", \"backup_id\": null, \"point_in_time\": null, "
         "\"file_patterns\": null, \"restore_to_original\": true, \"target_directory\": null}"},
        {BK_JOB_VALIDATE, "{}"},
        {BK_JOB_CLEANUP, "{}"},
        {BK_JOB_TEST, "{}"},
    };
    fixture_t *f = *state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        bk_err_t err = {0};
        json_t *body = json(good[i].body), *problems = NULL;
        OK(bk_request_check(&f->set, good[i].kind, body, &problems, &err), &err);
        assert_null(problems);
        json_decref(body);
    }
    bk_err_t err = {0};
    json_t *problems = NULL;
    OK(bk_request_check(&f->set, BK_JOB_BACKUP, NULL, &problems, &err), &err);
}

static void a_problem_document_has_all_members(void **state)
{
    (void)state;
    bk_err_t err = {0};
    bk_err_set(&err, BK_FORBIDDEN, "not there");
    json_t *problem = bk_problem(&err, json_pack("[{ss}]", "pointer", "#/x"));
    assert_string_equal(text_of(problem, "type"), "urn:ngx-backup:problem:Forbidden");
    assert_string_equal(text_of(problem, "title"), "The target is not allowed");
    assert_int_equal(int_of(problem, "status"), 403);
    assert_string_equal(text_of(problem, "detail"), "not there");
    assert_string_equal(text_of(problem, "errors.0.pointer"), "#/x");
    json_decref(problem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(each_mistake_is_named),
        T(all_mistakes_are_told_at_once),
        T(the_original_requests_are_accepted),
        cmocka_unit_test(a_problem_document_has_all_members),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
