/*
 * t/unit/engine/catalog_test.c: the catalog alone: ids, idempotency, damage, several processes.
 */
#include "unit/engine/fixture.h"

#include "engine/catalog.h"

#define EDITS 20 /* of a value, for each job of a child */

typedef struct {
    char *dir;
    bk_catalog_t *catalog;
} box_t;

static int open_box(void **state)
{
    box_t *box = calloc(1, sizeof *box);
    bk_err_t err = {0};
    bool replaced;
    box->dir = test_dir();
    OK(bk_catalog_open(box->dir, &box->catalog, &replaced, &err), &err);
    assert_false(replaced);
    *state = box;
    return 0;
}

static int close_box(void **state)
{
    box_t *box = *state;
    bk_catalog_close(box->catalog);
    test_dir_remove(box->dir);
    free(box);
    return 0;
}

static bk_rc_t submit_row(bk_catalog_t *catalog, const char *id, const char *body, bool backup,
                          const char *key, char out[BK_JOB_ID], bool *replayed)
{
    bk_err_t err = {0};
    bk_job_row_t row = {
        .kind = backup ? BK_JOB_BACKUP : BK_JOB_RECOVERY, .body = json(body), .created = bk_now()};
    bk_strcpy(row.id, sizeof row.id, id);
    bk_rc_t rc = bk_catalog_submit(catalog, &row, key, replayed, &err);
    bk_strcpy(out, BK_JOB_ID, row.id);
    bk_job_row_free(&row);
    return rc;
}

static void ids_of_one_second_get_suffixes(void **state)
{
    box_t *box = *state;
    char id[BK_JOB_ID];
    bool replayed;
    static const char *const expected[] = {"a_1", "a_1_2", "a_1_3"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(submit_row(box->catalog, "a_1", "{}", true, NULL, id, &replayed), BK_OK);
        assert_string_equal(id, expected[i]);
    }
}

static void a_backup_that_waits_behind_another_stands_for_later_ones(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char id[BK_JOB_ID];
    bool replayed;
    assert_int_equal(submit_row(box->catalog, "b", "{}", true, NULL, id, &replayed), BK_OK);
    OK(bk_catalog_take(box->catalog, id, &err), &err);
    assert_int_equal(submit_row(box->catalog, "b", "{}", true, NULL, id, &replayed), BK_OK);
    assert_string_equal(id, "b_2");
    assert_int_equal(submit_row(box->catalog, "b", "{}", true, NULL, id, &replayed), BK_CONFLICT);
    assert_string_equal(id, "b_2");
    assert_int_equal(submit_row(box->catalog, "b", "{\"x\": 1}", true, NULL, id, &replayed), BK_OK);
}

static void jobs_are_taken_in_order_and_once(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char id[BK_JOB_ID];
    bool replayed;
    submit_row(box->catalog, "b_1", "{}", true, NULL, id, &replayed);
    submit_row(box->catalog, "a_1", "{}", true, NULL, id, &replayed);
    OK(bk_catalog_take(box->catalog, id, &err), &err);
    assert_string_equal(id, "b_1");
    OK(bk_catalog_take(box->catalog, id, &err), &err);
    assert_string_equal(id, "a_1");
    OK(bk_catalog_take(box->catalog, id, &err), &err);
    assert_string_equal(id, "");
}

static void an_idempotency_key_stands_for_one_request(void **state)
{
    box_t *box = *state;
    char first[BK_JOB_ID], id[BK_JOB_ID];
    bool replayed;
    assert_int_equal(
        submit_row(box->catalog, "r_1", "{\"a\": 1, \"b\": 2}", false, "k", first, &replayed),
        BK_OK);
    assert_false(replayed);
    /* The same members in another order are the same request. */
    assert_int_equal(
        submit_row(box->catalog, "r_2", "{\"b\": 2, \"a\": 1}", false, "k", id, &replayed), BK_OK);
    assert_true(replayed);
    assert_string_equal(id, first);
    assert_int_equal(submit_row(box->catalog, "r_2", "{\"a\": 2}", false, "k", id, &replayed),
                     BK_INVALID);
    assert_int_equal(submit_row(box->catalog, "r_2", "{\"a\": 2}", false, "other", id, &replayed),
                     BK_OK);
    assert_string_equal(id, "r_2");
}

static bk_rc_t submit_as(bk_catalog_t *catalog, bk_job_kind_t kind, const char *user, char *out,
                         bool *replayed, bk_err_t *err)
{
    bk_job_row_t row = {
        .kind = kind, .body = json("{}"), .requested_by = bk_strdup(user), .created = bk_now()};
    bk_strcpy(row.id, sizeof row.id, "j");
    bk_rc_t rc = bk_catalog_submit(catalog, &row, "k", replayed, err);
    bk_strcpy(out, BK_JOB_ID, row.id);
    bk_job_row_free(&row);
    return rc;
}

static void an_idempotency_key_is_bound_to_operation_and_user(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char first[BK_JOB_ID], id[BK_JOB_ID];
    bool replayed;
    OK(submit_as(box->catalog, BK_JOB_TEST, "anna", first, &replayed, &err), &err);
    assert_int_equal(submit_as(box->catalog, BK_JOB_CLEANUP, "anna", id, &replayed, &err),
                     BK_INVALID);
    assert_contains(err.text, "another operation");
    assert_int_equal(submit_as(box->catalog, BK_JOB_TEST, "ben", id, &replayed, &err), BK_INVALID);
    assert_false(replayed);
    OK(submit_as(box->catalog, BK_JOB_TEST, "anna", id, &replayed, &err), &err);
    assert_true(replayed);
    assert_string_equal(id, first);
}

static void a_job_that_ended_can_be_asked_for_again(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char id[BK_JOB_ID];
    bool replayed;
    assert_int_equal(submit_row(box->catalog, "r_1", "{}", false, NULL, id, &replayed), BK_OK);
    assert_int_equal(submit_row(box->catalog, "r_2", "{}", false, NULL, id, &replayed),
                     BK_CONFLICT);
    assert_string_equal(id, "r_1");
    OK(bk_catalog_take(box->catalog, id, &err), &err);
    assert_int_equal(submit_row(box->catalog, "r_2", "{}", false, NULL, id, &replayed),
                     BK_CONFLICT);
    OK(bk_catalog_finish(box->catalog, "r_1", BK_STATUS_COMPLETED, NULL, &err), &err);
    assert_int_equal(submit_row(box->catalog, "r_2", "{}", false, NULL, id, &replayed), BK_OK);
}

/* A runner that leaves puts its job back; but not one that somebody does not want any more. */
static void a_job_that_is_being_canceled_is_not_queued_again(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    bk_job_row_t row;
    char id[BK_JOB_ID];
    bool replayed, canceled;
    unsigned crashes;
    for (int i = 0; i < 4; i++) {
        bool wish = i % 2 == 1, crash = i >= 2;
        assert_int_equal(submit_row(box->catalog, "b", "{}", true, NULL, id, &replayed), BK_OK);
        OK(bk_catalog_take(box->catalog, id, &err), &err);
        if (wish)
            OK(bk_catalog_change(box->catalog, id, BK_STATUS_RUNNING, BK_STATUS_CANCELING, &err),
               &err);
        if (crash) {
            OK(bk_catalog_requeue(box->catalog, id, &crashes, &canceled, &err), &err);
            assert_int_equal(crashes, 1);
            assert_int_equal(canceled, wish);
        } else {
            OK(bk_catalog_finish(box->catalog, id, BK_STATUS_QUEUED, NULL, &err), &err);
        }
        OK(bk_catalog_job(box->catalog, id, &row, &err), &err);
        assert_int_equal(row.status, wish ? BK_STATUS_CANCELED : BK_STATUS_QUEUED);
        assert_int_equal(row.completed > 0, wish);
        assert_int_equal(row.started > 0, wish);
        bk_job_row_free(&row);
        OK(bk_catalog_finish(box->catalog, id, BK_STATUS_FAILED, NULL, &err), &err);
    }
}

static void ended_jobs_are_pruned_and_waiting_ones_kept(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char id[BK_JOB_ID], name[32];
    bool replayed;
    submit_row(box->catalog, "waits", "{}", true, NULL, id, &replayed);
    for (int i = 0; i < 20; i++) {
        bk_fmt(name, sizeof name, "e_%d", i);
        submit_row(box->catalog, name, "{}", true, NULL, id, &replayed);
        OK(bk_catalog_finish(box->catalog, name, BK_STATUS_FAILED, NULL, &err), &err);
    }
    OK(bk_catalog_prune(box->catalog, 5, &err), &err);
    bk_job_row_t row;
    assert_int_equal(bk_catalog_job(box->catalog, "e_14", &row, &err), BK_NOT_FOUND);
    OK(bk_catalog_job(box->catalog, "e_15", &row, &err), &err);
    bk_job_row_free(&row);
    OK(bk_catalog_job(box->catalog, "waits", &row, &err), &err);
    bk_job_row_free(&row);
}

static bool count_backup(void *arg, json_t *backup)
{
    (void)backup;
    ++*(int *)arg;
    return true;
}

static void the_list_of_backups_is_replaced_whole(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    json_t *list = json("[{\"backup_id\": \"a\", \"completed_ns\": 1, \"x\": 1},"
                        " {\"backup_id\": \"b\", \"completed_ns\": 2}]");
    json_t *backup = NULL;
    int count = 0;
    OK(bk_catalog_backups_replace(box->catalog, list, &err), &err);
    OK(bk_catalog_backups(box->catalog, count_backup, &count, &err), &err);
    assert_int_equal(count, 2);
    json_decref(list);
    list = json("[{\"backup_id\": \"a\", \"completed_ns\": 1, \"x\": 2}]");
    OK(bk_catalog_backups_replace(box->catalog, list, &err), &err);
    json_decref(list);
    OK(bk_catalog_backup(box->catalog, "a", &backup, &err), &err);
    assert_int_equal(int_of(backup, "x"), 2);
    json_decref(backup);
    assert_int_equal(bk_catalog_backup(box->catalog, "b", &backup, &err), BK_NOT_FOUND);
}

static void count_damaged(void *arg, const char *path, const struct stat *st)
{
    size_t *count = arg;
    const char *stamp = strstr(path, "catalog.db.damaged-");
    (void)st;
    if (stamp != NULL && strchr(stamp + strlen("catalog.db.damaged-"), '-') == NULL)
        ++*count;
}

/* Without their -wal and -shm. */
static size_t damaged_files(const char *dir)
{
    size_t count = 0;
    test_visit(dir, count_damaged, &count);
    return count;
}

static void a_damaged_catalog_is_set_aside(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char path[512], id[BK_JOB_ID], junk[20000];
    bool replaced, replayed;
    for (int i = 0; i < 200; i++)
        submit_row(box->catalog, "x", "{\"pad\": \"................................\"}", false,
                   NULL, id, &replayed);
    bk_catalog_close(box->catalog);
    bk_fmt(path, sizeof path, "%s/catalog.db", box->dir);
    int fd = open(path, O_WRONLY);
    memset(junk, 0xa5, sizeof junk);
    assert_int_equal(pwrite(fd, junk, sizeof junk, 4096), sizeof junk); /* behind the header */
    close(fd);
    OK(bk_catalog_open(box->dir, &box->catalog, &replaced, &err), &err);
    assert_true(replaced);
    assert_int_equal(damaged_files(box->dir), 1);
    OK(bk_catalog_take(box->catalog, id, &err), &err);
    assert_string_equal(id, "");
    bk_catalog_close(box->catalog);
    /* No database at all. */
    fd = open(path, O_WRONLY | O_TRUNC);
    assert_int_equal(write(fd, junk, 5000), 5000);
    close(fd);
    OK(bk_catalog_open(box->dir, &box->catalog, &replaced, &err), &err);
    assert_true(replaced);
}

static void a_newer_catalog_is_left_alone(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    char path[512];
    bool replaced;
    sqlite3 *db;
    bk_catalog_close(box->catalog);
    bk_fmt(path, sizeof path, "%s/catalog.db", box->dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sql(db, "PRAGMA user_version = 99");
    sqlite3_close(db);
    assert_int_equal(bk_catalog_open(box->dir, &box->catalog, &replaced, &err), BK_UNSUPPORTED);
    assert_contains(err.text, "newer");
    assert_false(replaced);
    assert_int_equal(damaged_files(box->dir), 0);
    box->catalog = NULL;
}

static void count_one(json_t *value, void *arg)
{
    json_int_t before = json_integer_value(json_object_get(value, "edits"));
    (void)arg;
    json_object_set_new(value, "edits", json_integer(before + 1));
}

/* Children of one round: all at once, each submits a few jobs, and counts them. */
static void several(const char *dir, int children, int jobs)
{
    pid_t pids[16];
    int start[2];
    char byte;
    assert_int_equal(pipe(start), 0);
    for (int i = 0; i < children; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0) {
            close(start[1]);
            if (read(start[0], &byte, 1) != 0) /* until all are there */
                _exit(3);
            bk_catalog_t *catalog;
            bk_err_t err = {0};
            bool replaced, replayed;
            char id[BK_JOB_ID];
            if (bk_catalog_open(dir, &catalog, &replaced, &err) != BK_OK) {
                fprintf(stderr, "child: %s\n", err.text);
                _exit(1);
            }
            for (int n = 0; n < jobs; n++)
                if (submit_row(catalog, "same", "{}", true, NULL, id, &replayed) != BK_OK)
                    _exit(2);
            for (int n = 0; n < EDITS * jobs; n++)
                if (bk_catalog_edit_value(catalog, "count", count_one, NULL, &err) != BK_OK)
                    _exit(4);
            bk_catalog_close(catalog);
            _exit(0);
        }
    }
    close(start[0]);
    close(start[1]);
    for (int i = 0; i < children; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
}

static void count_job(void *arg, const bk_job_row_t *row)
{
    (void)row;
    ++*(int *)arg;
}

static void several_processes_make_and_share_it(void **state)
{
    (void)state;
    char *dir = test_dir();
    bk_err_t err = {0};
    bk_catalog_t *catalog;
    bool replaced;
    uint64_t total;
    int seen = 0;
    several(dir, 8, 5);
    OK(bk_catalog_open(dir, &catalog, &replaced, &err), &err);
    assert_false(replaced);
    OK(bk_catalog_jobs(catalog, 0, 500, count_job, &seen, &total, &err), &err);
    assert_int_equal(seen, 40);
    assert_int_equal(total, 40);
    json_t *value;
    OK(bk_catalog_value(catalog, "count", &value, &err), &err);
    assert_int_equal(int_of(value, "edits"), EDITS * 40);
    json_decref(value);
    bk_catalog_close(catalog);
    test_dir_remove(dir);
}

static void several_processes_set_a_damaged_one_aside_once(void **state)
{
    (void)state;
    char *dir = test_dir(), path[512];
    bk_fmt(path, sizeof path, "%s/catalog.db", dir);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, path, sizeof path), sizeof path);
    close(fd);
    several(dir, 8, 2);
    assert_int_equal(damaged_files(dir), 1);
    /* Nobody threw away what another had begun. */
    bk_err_t err = {0};
    bk_catalog_t *catalog;
    bool replaced;
    uint64_t total;
    int seen = 0;
    OK(bk_catalog_open(dir, &catalog, &replaced, &err), &err);
    OK(bk_catalog_jobs(catalog, 0, 500, count_job, &seen, &total, &err), &err);
    assert_int_equal(seen, 16);
    bk_catalog_close(catalog);
    test_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, open_box, close_box)
        T(ids_of_one_second_get_suffixes),
        T(a_backup_that_waits_behind_another_stands_for_later_ones),
        T(jobs_are_taken_in_order_and_once),
        T(an_idempotency_key_stands_for_one_request),
        T(an_idempotency_key_is_bound_to_operation_and_user),
        T(a_job_that_ended_can_be_asked_for_again),
        T(a_job_that_is_being_canceled_is_not_queued_again),
        T(ended_jobs_are_pruned_and_waiting_ones_kept),
        T(the_list_of_backups_is_replaced_whole),
        T(a_damaged_catalog_is_set_aside),
        T(a_newer_catalog_is_left_alone),
        cmocka_unit_test(several_processes_make_and_share_it),
        cmocka_unit_test(several_processes_set_a_damaged_one_aside_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
