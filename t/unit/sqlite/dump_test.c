/*
 * Behaviours: what did not change is stored once; zeros are stored nowhere and come back as holes; an image that is not
 * exactly what the backup says is never left behind; a stop is obeyed; a map that lies about its size is refused.
 */
#include "base/attached.h"
#include "repo/map.h"
#include "unit/sqlite/sqlite_testing.h"

static void make_big(const char *path, int page_size, int kilobytes)
{
    char sql[200];
    assert_true(chaos_make(path, "wal", page_size, "none"));
    sqlite3 *db = open_db(path);
    snprintf(sql, sizeof sql, "INSERT INTO t(v, filler) VALUES(1, randomblob(%d))",
             kilobytes * 1024);
    run_sql(db, sql);
    sqlite3_close(db);
}

static void what_did_not_change_is_stored_once(void **state)
{
    fixture_t f;
    char path[300];
    bk_session_stats_t first, second;
    bk_snapshot_db_t db;
    (void)state;
    fixture_start(&f, true);
    make_big(file_in(&f, "app.db", path), 4096, 3000);
    for (int round = 0; round < 2; round++) {
        db = (bk_snapshot_db_t){0};
        job_t job = {.f = &f, .path = path, .db = &db, .busy_ms = 1000};
        job.session = fixture_session(&f, true);
        OK(bk_team_run(2, dump_main, &job, &f.err), &f.err);
        bk_session_stats(job.session, round == 0 ? &first : &second);
        OK(fixture_commit(&f, job.session, round == 0 ? "full_1" : "full_2", NULL), &f.err);
        free_db(&db);
        sqlite3 *app = open_db(path);
        run_sql(app, "UPDATE t SET v=v+1 WHERE id=1");
        sqlite3_close(app);
    }
    assert_true(first.bytes_new > 3000 * 1024);
    assert_true(second.bytes_new < 4 * BK_BLOCK_SIZE);
    fixture_end(&f);
}

static void progress_counts_every_page(void **state)
{
    fixture_t f;
    char path[300], image[300];
    bk_snapshot_db_t db;
    (void)state;
    fixture_start(&f, true);
    make_big(file_in(&f, "app.db", path), 4096, 1000);
    dump(&f, path, "full_1", &db);
    uint64_t bytes = db.page_count * db.page_size;
    assert_int_equal(atomic_load(&f.ctl.bytes_total), bytes);
    assert_int_equal(atomic_load(&f.ctl.bytes_done), bytes);
    OK(materialise(&f, &db, file_in(&f, "image.db", image)), &f.err);
    free_db(&db);
    fixture_end(&f);
}

static void zeros_are_holes(void **state)
{
    fixture_t f;
    char path[300], image[300];
    bk_snapshot_db_t db;
    struct stat st;
    (void)state;
    fixture_start(&f, true);
    assert_true(chaos_make(file_in(&f, "app.db", path), "delete", 4096, "none"));
    /* Pages of a freed row are zeroed by secure_delete, and stay in the file. */
    sqlite3 *app = open_db(path);
    run_sql(app,
            "PRAGMA secure_delete=ON; INSERT INTO t(v, filler) VALUES(1, randomblob(40000000));"
            "DELETE FROM t WHERE id > 1");
    sqlite3_close(app);
    dump(&f, path, "full_1", &db);
    OK(materialise(&f, &db, file_in(&f, "image.db", image)), &f.err);
    assert_int_equal(stat(image, &st), 0);
    assert_true(st.st_size > 40000000);
    assert_true(st.st_blocks * 512 < st.st_size / 4);
    free_db(&db);
    fixture_end(&f);
}

static bk_rc_t refused(fixture_t *f, bk_snapshot_db_t *db, const char *file)
{
    bk_rc_t rc = materialise(f, db, file);
    assert_true(rc != BK_OK);
    return rc;
}

static void a_wrong_image_is_told(void **state)
{
    fixture_t f;
    char path[300], image[300];
    bk_snapshot_db_t db;
    (void)state;
    fixture_start(&f, true);
    make_big(file_in(&f, "app.db", path), 4096, 500);
    dump(&f, path, "full_1", &db);
    file_in(&f, "image.db", image);
    db.digest ^= 1;
    assert_int_equal(refused(&f, &db, image), BK_CORRUPT);
    db.digest ^= 1;
    bk_snapshot_db_t lie = db;
    lie.page_size = 0;
    assert_int_equal(refused(&f, &lie, image), BK_CORRUPT);
    lie = db;
    lie.block_size = 1000;
    assert_int_equal(refused(&f, &lie, image), BK_CORRUPT);
    lie = db;
    lie.page_count += 100;
    assert_int_equal(refused(&f, &lie, image), BK_CORRUPT);
    lie = db;
    lie.page_count = UINT64_MAX / 4096;
    assert_int_equal(refused(&f, &lie, image), BK_CORRUPT);
    lie = db;
    lie.map.root.b[0] ^= 1;
    assert_int_equal(refused(&f, &lie, image), BK_CORRUPT);
    bk_ctl_stop(&f.ctl, BK_CANCELED);
    assert_int_equal(refused(&f, &db, image), BK_CANCELED);
    free_db(&db);
    fixture_end(&f);
}

static void what_is_no_whole_database_is_told(void **state)
{
    fixture_t f;
    char path[300];
    struct stat st;
    (void)state;
    fixture_start(&f, true);
    make_big(file_in(&f, "app.db", path), 4096, 500);
    sqlite3 *app = open_db(path);
    run_sql(app, "PRAGMA wal_checkpoint(TRUNCATE)");
    sqlite3_close(app);
    OK(bk_db_check_file(path, &f.ctl, &f.err), &f.err);
    bk_ctl_stop(&f.ctl, BK_CANCELED); /* noticed with the next page, not with the next row */
    assert_int_equal(bk_db_check_file(path, &f.ctl, &f.err), BK_CANCELED);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size - 100), 0);
    assert_int_equal(bk_db_check_file(path, NULL, &f.err), BK_CORRUPT);
    assert_int_equal(truncate(path, 2048), 0);
    assert_int_equal(bk_db_check_file(path, NULL, &f.err), BK_CORRUPT);
    assert_int_equal(truncate(path, 10), 0);
    assert_int_equal(bk_db_check_file(path, NULL, &f.err), BK_CORRUPT);
    assert_int_equal(truncate(path, 0), 0);
    OK(bk_db_check_file(path, NULL, &f.err), &f.err);
    fixture_end(&f);
}

static void damage_that_was_backed_up_is_told(void **state)
{
    fixture_t f;
    char path[300], image[300];
    bk_snapshot_db_t db;
    (void)state;
    fixture_start(&f, true);
    make_big(file_in(&f, "app.db", path), 1024, 100);
    sqlite3 *app = open_db(path);
    long root = query(app, "SELECT rootpage FROM sqlite_schema WHERE name='t'");
    sqlite3_close(app);
    spoil(path, (off_t)(root - 1) * 1024, "this is no page of a table at all");
    dump(&f, path, "full_1", &db);
    assert_int_equal(refused(&f, &db, file_in(&f, "image.db", image)), BK_CORRUPT);
    assert_non_null(strstr(f.err.text, "check"));
    free_db(&db);
    fixture_end(&f);
}

static void a_stop_is_obeyed(void **state)
{
    fixture_t f;
    char path[300];
    bk_snapshot_db_t db = {0};
    struct stat st;
    (void)state;
    fixture_start(&f, true);
    make_big(file_in(&f, "app.db", path), 4096, 3000);
    job_t job = {.f = &f, .path = path, .db = &db, .busy_ms = 1000};
    job.session = fixture_session(&f, true);
    bk_ctl_stop(&f.ctl, BK_INTERRUPTED);
    assert_int_equal(bk_team_run(3, dump_main, &job, &f.err), BK_INTERRUPTED);
    bk_session_abort(job.session);
    assert_int_equal(stat(path, &st), 0);
    assert_false(bk_attached_has(&st));
    free_db(&db);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_did_not_change_is_stored_once),
        cmocka_unit_test(progress_counts_every_page),
        cmocka_unit_test(zeros_are_holes),
        cmocka_unit_test(a_wrong_image_is_told),
        cmocka_unit_test(what_is_no_whole_database_is_told),
        cmocka_unit_test(damage_that_was_backed_up_is_told),
        cmocka_unit_test(a_stop_is_obeyed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
