/*
 * t/unit/engine/recovery_test.c: recoveries through the engine: in place and into directories, what
 * they must not touch, and what a dry run promises.
 */
#include "unit/engine/recoveries.h"

#include <pthread.h>
#include <stdatomic.h>
#include <xxhash.h>

static void lose_everything(fixture_t *f)
{
    bk_err_t err = {0};
    OK(bk_remove_tree(at(f, "app"), true, &err), &err);
}

static json_t *plan(fixture_t *f, bk_job_kind_t kind, const char *text)
{
    bk_err_t err = {0};
    json_t *request = json(text), *result = NULL, *problems = NULL;
    OK(bk_request_check(&f->set, kind, request, &problems, &err), &err);
    bk_ctl_init(&f->ctl);
    OK(bk_engine_plan(f->engine, kind, request, NULL, &f->ctl, &result, &err), &err);
    bk_ctl_free(&f->ctl);
    json_decref(request);
    return result;
}

/* Why there is no plan. */
static bk_rc_t plan_fails(fixture_t *f, const char *text)
{
    json_t *request = json(text), *result = NULL;
    f->err = (bk_err_t){0};
    bk_ctl_init(&f->ctl);
    bk_rc_t rc =
        bk_engine_plan(f->engine, BK_JOB_RECOVERY, request, NULL, &f->ctl, &result, &f->err);
    bk_ctl_free(&f->ctl);
    json_decref(request);
    json_decref(result);
    return rc;
}

static const char *action_of(json_t *result, const char *path)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(result, "plan"), i, one)
    {
        if (strcmp(text_of(one, "path"), path) == 0)
            return text_of(one, "action");
    }
    return "(nothing)";
}

static void what_was_lost_whole_comes_back(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    lose_everything(f);
    assert_int_equal(mkdir(at(f, "app"), 0755), 0);
    json_t *job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"full\"}", "completed");
    assert_string_equal(text_of(job, "source_backup"), id);
    assert_string_equal(text_of(job, "type"), "full_system_recovery");
    assert_string_equal(text_of(job, "recovery_id"), text_of(job, "id"));
    assert_string_equal(text_of(job, "target"), "original");
    assert_string_equal(text_of(job, "databases.0.method"), "offline");
    assert_int_equal(int_of(job, "files_restored"), 4);
    assert_int_equal(json_array_size(member(job, "files_failed")), 0);
    assert_true(json_is_true(member(job, "validation.valid")));
    assert_true(json_is_real(member(job, "rto_seconds")));
    assert_null(member(job, "safety_backup")); /* there was nothing to save */
    done(job);
    assert_app_is_back(f);
}

/* The demand is about backups that hold up the application, not about what a recovery replaces. */
static void a_safety_backup_does_not_demand_wal(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    f->set.dbs[0].wal = BK_WAL_REQUIRE;
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "PRAGMA journal_mode=DELETE");
    sqlite3_close(db);
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_contains(text_of(job, "error"), "wal require");
    done(job);
    job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"database\"}", "completed");
    assert_int_equal(strncmp(text_of(job, "safety_backup"), "safety_", 7), 0);
    done(job);
}

static void the_safety_backup_undoes_a_recovery(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], text[256];
    back_up(f, "full", id);
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "DELETE FROM jobs WHERE id > 100");
    put(f, "app/uploads/a.wav", "newer sound");
    put(f, "app/uploads/extra.wav", "extra");
    json_t *job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"full\"}", "completed");
    assert_string_equal(text_of(job, "databases.0.method"), "live");
    assert_int_equal(strncmp(text_of(job, "safety_backup"), "safety_", 7), 0);
    bk_fmt(text, sizeof text, "{\"recovery_type\": \"full\", \"backup_id\": \"%s\"}",
           text_of(job, "safety_backup"));
    done(job);
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 500);
    assert_string_equal(get(f, "app/uploads/a.wav"), "sound a");
    assert_string_equal(get(f, "app/uploads/extra.wav"), "extra");
    done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 100);
    assert_string_equal(get(f, "app/uploads/a.wav"), "newer sound");
    sqlite3_close(db);
    /* A safety backup is never the latest. */
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, "latest", &backup, &f->err), &f->err);
    assert_string_equal(text_of(backup, "backup_id"), id);
    json_decref(backup);
}

typedef struct {
    fixture_t *f;
    atomic_bool stop;
    int written, failed;
} writer_t;

static void *write_rows(void *arg)
{
    writer_t *w = arg;
    sqlite3 *db = open_db(w->f, "app/app.db");
    while (!atomic_load(&w->stop)) {
        if (sqlite3_exec(db, "INSERT INTO jobs(name) VALUES('live')", NULL, NULL, NULL) ==
            SQLITE_OK)
            w->written++;
        else
            w->failed++;
        usleep(500);
    }
    sqlite3_close(db);
    return NULL;
}

static void a_database_is_recovered_while_the_application_writes(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], text[256];
    pthread_t thread;
    writer_t w = {.f = f};
    back_up(f, "full", id);
    sqlite3 *reader = open_db(f, "app/app.db");
    assert_int_equal(number(reader, "SELECT count(*) FROM jobs"), 500);
    sql(reader, "UPDATE jobs SET name = 'wrong'");
    bk_fmt(text, sizeof text, "{\"recovery_type\": \"database\", \"backup_id\": \"%s\"}", id);
    assert_int_equal(pthread_create(&thread, NULL, write_rows, &w), 0);
    for (int i = 0; i < 3; i++)
        done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(w.failed, 0);
    assert_int_equal(number(reader, "SELECT count(*) FROM jobs WHERE name = 'wrong'"), 0);
    assert_int_equal(number(reader, "SELECT count(*) FROM jobs WHERE name LIKE 'job %'"), 500);
    assert_int_equal(number(reader, "SELECT count(*) FROM pragma_integrity_check WHERE "
                                    "integrity_check = 'ok'"),
                     1);
    sqlite3_close(reader);
}

static void a_database_beyond_reading_is_set_aside_and_recovered(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], name[256];
    back_up(f, "full", id);
    put(f, "app/app.db", "this is no database at all, and was one a moment ago");
    json_t *job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"full\"}", "warning");
    assert_contains(text_of(job, "warnings.0"), "safety backup");
    bk_fmt(name, sizeof name, "app/app.db.before-%s", text_of(job, "id"));
    assert_contains(get(f, name), "no database");
    done(job);
    assert_app_is_back(f);
}

/* It is whole: once the lock is gone nothing would be left of what it held. */
static void a_locked_database_is_not_replaced_unsaved(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    f->set.dbs[0].busy_timeout = 50;
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "PRAGMA journal_mode=DELETE; DELETE FROM jobs WHERE id > 100; BEGIN EXCLUSIVE");
    json_t *job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"database\"}", "failed");
    assert_contains(text_of(job, "error"), "safety backup (nothing was recovered");
    assert_contains(text_of(job, "error"), "locked");
    done(job);
    sql(db, "COMMIT");
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 100);
    sqlite3_close(db);
}

static void files_by_pattern_go_to_a_target(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    json_t *job = do_job(f, BK_JOB_RECOVERY,
                         body(f,
                              "{\"recovery_type\": \"files\", \"file_patterns\": [\"*.wav\"],"
                              " \"restore_to_original\": false, \"target_directory\": \"@\"}",
                              "restored/audio"),
                         "completed");
    assert_string_equal(text_of(job, "type"), "file_restoration");
    assert_int_equal(int_of(job, "files_restored"), 2);
    assert_null(member(job, "safety_backup"));
    done(job);
    assert_string_equal(get(f, "restored/audio/uploads/a.wav"), "sound a");
    assert_true(there(f, "restored/audio/uploads/2025/b.wav"));
    assert_false(there(f, "restored/audio/uploads/2025/c.mp3"));
    assert_false(there(f, "restored/audio/app.db"));
}

static void paths_name_trees_directories_and_files(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], text[4096];
    back_up(f, "full", id);
    bk_fmt(text, sizeof text,
           "{\"recovery_type\": \"files\", \"target_directory\": \"%s\","
           " \"paths\": [\"uploads/2025\", \"%s\"]}",
           at(f, "restored/p"), at(f, "app/transcripts/t.txt"));
    done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
    assert_true(there(f, "restored/p/uploads/2025/b.wav"));
    assert_true(there(f, "restored/p/uploads/2025/c.mp3"));
    assert_true(there(f, "restored/p/transcripts/t.txt"));
    assert_false(there(f, "restored/p/uploads/a.wav"));
    json_t *job = do_job(f, BK_JOB_RECOVERY,
                         body(f,
                              "{\"recovery_type\": \"files\", \"paths\": [\"2025\"],"
                              " \"target_directory\": \"@\"}",
                              "restored/q"),
                         "failed");
    assert_contains(text_of(job, "error"), "begins with the name of a files block");
    done(job);
}

static void a_whole_backup_into_a_directory_can_be_opened(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    const char *text =
        body(f, "{\"recovery_type\": \"full\", \"target_directory\": \"@\"}", "restored/all");
    json_t *job = do_job(f, BK_JOB_RECOVERY, text, "completed");
    assert_string_equal(text_of(job, "databases.0.file"), "app.db");
    done(job);
    assert_int_equal(number_in(f, "restored/all/app.db", "SELECT count(*) FROM jobs"), 500);
    assert_true(there(f, "restored/all/transcripts/t.txt"));
    /* Once more: it replaces the file, and rename keeps the one before. */
    done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
    job = do_job(f, BK_JOB_RECOVERY,
                 body(f,
                      "{\"recovery_type\": \"database\", \"overwrite\": \"rename\","
                      " \"target_directory\": \"@\"}",
                      "restored/all"),
                 "completed");
    char name[256];
    bk_fmt(name, sizeof name, "restored/all/app.db.before-%s", text_of(job, "id"));
    assert_true(there(f, name));
    done(job);
}

static void a_database_in_use_is_not_replaced_in_a_directory(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    char dry[1024];
    const char *text =
        body(f, "{\"recovery_type\": \"database\", \"target_directory\": \"@\"}", "restored/db");
    done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
    sqlite3 *db = open_db(f, "restored/db/app.db");
    sql(db, "PRAGMA journal_mode=WAL; INSERT INTO jobs(name) VALUES('kept')");
    json_t *job = do_job(f, BK_JOB_RECOVERY, text, "failed");
    assert_contains(text_of(job, "error"), "-wal");
    done(job);
    /* A plan promises nothing else. */
    bk_strcpy(dry, sizeof dry,
              body(f,
                   "{\"recovery_type\": \"database\", \"dry_run\": true,"
                   " \"target_directory\": \"@\"}",
                   "restored/db"));
    assert_int_equal(plan_fails(f, dry), BK_EXISTS);
    assert_contains(f->err.text, "-wal");
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 501);
    sqlite3_close(db);
}

static void the_live_database_is_not_replaced_through_a_target(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    OK(bk_set_add_text(&f->set.restore_roots, at(f, "app"), &f->err), &f->err);
    /* Without a files block below app, so that only the database is in the way. */
    free(f->set.files[0].path);
    f->set.files[0].path = text_at(f, "uploads");
    free(f->set.files[1].path);
    f->set.files[1].path = text_at(f, "transcripts");
    json_t *job = do_job(
        f, BK_JOB_RECOVERY,
        body(f, "{\"recovery_type\": \"database\", \"target_directory\": \"@\"}", "app"), "failed");
    assert_string_equal(text_of(job, "problem.code"), "Forbidden");
    assert_contains(text_of(job, "error"), "application's own database");
    done(job);
    assert_app_is_back(f);
}

static void assert_forbidden(fixture_t *f, const char *text, const char *why)
{
    char id[BK_JOB_ID];
    assert_int_equal(submit(f, BK_JOB_RECOVERY, text, id), BK_FORBIDDEN);
    assert_contains(f->err.text, why);
}

static void targets_are_inside_a_restore_root(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    const char *format = "{\"recovery_type\": \"full\", \"target_directory\": \"@\"}";
    assert_forbidden(f, body(f, format, "elsewhere"), "outside every restore_root");
    assert_forbidden(f, body(f, format, "restored-not"), "outside every restore_root");
    assert_forbidden(f, body(f, format, "restored/../app"), "without");
    assert_forbidden(f, "{\"recovery_type\": \"full\", \"target_directory\": \"restored\"}",
                     "absolute");
    /* A link inside that leads out. */
    assert_int_equal(mkdir(at(f, "restored"), 0755), 0);
    assert_int_equal(symlink(at(f, "app"), at(f, "restored/link")), 0);
    assert_forbidden(f, body(f, format, "restored/link"), "outside every restore_root");
    assert_forbidden(f, body(f, format, "restored/link/deeper"), "outside every restore_root");
    OK(bk_set_add_text(&f->set.restore_roots, f->dir, &f->err), &f->err);
    assert_forbidden(f, body(f, format, "base/scratch"), "base_dir");
    assert_forbidden(f, body(f, format, "storage"), "storage");
    assert_forbidden(f, body(f, format, "app"), "application's own");
    f->set.restore_roots[0][0] = '\0';
    free(f->set.restore_roots[0]);
    free(f->set.restore_roots[1]);
    f->set.restore_roots[0] = NULL;
    assert_forbidden(f, body(f, format, "restored"), "no restore_root is configured");
    f->set.restore_in_place = false;
    assert_forbidden(f, "{\"recovery_type\": \"full\"}", "restore_in_place");
}

static void a_link_planted_after_the_check_leads_nowhere(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], job_id[BK_JOB_ID], taken[BK_JOB_ID];
    back_up(f, "full", id);
    assert_int_equal(
        submit(f, BK_JOB_RECOVERY,
               body(f, "{\"recovery_type\": \"full\", \"target_directory\": \"@\"}", "restored/x"),
               job_id),
        BK_OK);
    assert_int_equal(mkdir(at(f, "restored"), 0755), 0);
    assert_int_equal(mkdir(at(f, "outside"), 0755), 0);
    assert_int_equal(symlink(at(f, "outside"), at(f, "restored/x")), 0);
    assert_int_equal(run_next(f, taken), BK_STATUS_FAILED);
    assert_false(there(f, "outside/app.db"));
    assert_false(there(f, "outside/uploads"));
    assert_int_equal(unlink(at(f, "restored/x")), 0);
    /* And below the target. */
    assert_int_equal(mkdir(at(f, "restored/x"), 0755), 0);
    assert_int_equal(symlink(at(f, "outside"), at(f, "restored/x/uploads")), 0);
    json_t *job =
        do_job(f, BK_JOB_RECOVERY,
               body(f, "{\"recovery_type\": \"files\", \"target_directory\": \"@\"}", "restored/x"),
               "failed");
    done(job);
    assert_false(there(f, "outside/a.wav"));
}

static void a_dry_run_tells_and_touches_nothing(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    put(f, "app/uploads/a.wav", "changed since");
    assert_int_equal(unlink(at(f, "app/transcripts/t.txt")), 0);
    json_t *result = plan(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"dry_run\": true}");
    assert_true(json_is_true(json_object_get(result, "dry_run")));
    assert_string_equal(text_of(result, "source_backup"), id);
    assert_string_equal(action_of(result, at(f, "app/app.db")), "database, live");
    assert_string_equal(action_of(result, at(f, "app/uploads/a.wav")), "replace");
    assert_string_equal(action_of(result, at(f, "app/uploads/2025/b.wav")), "unchanged");
    assert_string_equal(action_of(result, at(f, "app/transcripts/t.txt")), "create");
    json_decref(result);
    assert_string_equal(get(f, "app/uploads/a.wav"), "changed since");
    assert_false(there(f, "app/transcripts/t.txt"));
    /* Into a directory that is not there yet. */
    result = plan(f, BK_JOB_RECOVERY,
                  body(f,
                       "{\"recovery_type\": \"full\", \"dry_run\": true, \"target_directory\":"
                       " \"@\"}",
                       "restored/new"));
    assert_string_equal(action_of(result, at(f, "restored/new/app.db")), "database");
    assert_string_equal(action_of(result, at(f, "restored/new/uploads/a.wav")), "create");
    json_decref(result);
    assert_false(there(f, "restored"));
    /* Of a tree that is gone. */
    bk_err_t err = {0};
    OK(bk_remove_tree(at(f, "app/uploads"), true, &err), &err);
    result = plan(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"dry_run\": true}");
    assert_string_equal(action_of(result, at(f, "app/uploads/2025/c.mp3")), "create");
    json_decref(result);
    assert_false(there(f, "app/uploads"));
}

static void overwrite_policies_keep_what_they_say(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], name[256];
    back_up(f, "full", id);
    put(f, "app/uploads/a.wav", "mine");
    json_t *job = do_job(f, BK_JOB_RECOVERY,
                         "{\"recovery_type\": \"files\", \"overwrite\": \"never\"}", "completed");
    assert_int_equal(int_of(job, "files_skipped"), 4);
    done(job);
    assert_string_equal(get(f, "app/uploads/a.wav"), "mine");
    done(do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"overwrite\": \"if-newer\"}",
                "completed"));
    assert_string_equal(get(f, "app/uploads/a.wav"), "mine");
    job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\", \"overwrite\": \"rename\"}",
                 "completed");
    assert_string_equal(get(f, "app/uploads/a.wav"), "sound a");
    bk_fmt(name, sizeof name, "app/uploads/a.wav.before-%s", text_of(job, "id"));
    assert_string_equal(get(f, name), "mine");
    done(job);
}

static void policies_hold_for_the_database_in_place(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "DELETE FROM jobs WHERE id > 100");
    json_t *result =
        plan(f, BK_JOB_RECOVERY,
             "{\"recovery_type\": \"full\", \"overwrite\": \"never\", \"dry_run\": true}");
    assert_string_equal(action_of(result, at(f, "app/app.db")), "skip");
    json_decref(result);
    static const char *const keeping[] = {"never", "if-newer"};
    for (size_t i = 0; i < 2; i++) {
        char text[128];
        bk_fmt(text, sizeof text, "{\"recovery_type\": \"full\", \"overwrite\": \"%s\"}",
               keeping[i]);
        json_t *job = do_job(f, BK_JOB_RECOVERY, text, "completed");
        assert_string_equal(text_of(job, "databases.0.action"), "skipped");
        assert_contains(text_of(job, "databases.0.reason"), keeping[i]);
        done(job);
        assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 100);
    }
    sqlite3_close(db);
    /* What is not there is put there, also by "never". */
    assert_int_equal(unlink(at(f, "app/app.db")), 0);
    assert_int_equal(unlink(at(f, "app/transcripts/t.txt")), 0);
    done(do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"full\", \"overwrite\": \"never\"}",
                "completed"));
    assert_app_is_back(f);
    /* And an older one gives way. */
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    db = open_db(f, "app/app.db");
    sql(db, "DELETE FROM jobs; PRAGMA wal_checkpoint(TRUNCATE)");
    sqlite3_close(db);
    assert_int_equal(utimensat(AT_FDCWD, at(f, "app/app.db"), old, 0), 0);
    char text[256];
    bk_fmt(text, sizeof text,
           "{\"recovery_type\": \"full\", \"overwrite\": \"if-newer\", \"backup_id\": \"%s\"}", id);
    done(do_job(f, BK_JOB_RECOVERY, text, "completed"));
    assert_app_is_back(f);
}

static void delete_extra_spares_what_backups_leave_out(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    free(f->set.files[0].path);
    f->set.files[0].path = text_at(f, "app");
    free(f->set.files[1].path);
    f->set.files[1].path = text_at(f, "other");
    put(f, "other/o.txt", "o");
    OK(bk_set_check(&f->set, true, NULL, &f->err), &f->err);
    back_up(f, "full", id);
    put(f, "app/uploads/extra.wav", "extra");
    put(f, "app/uploads/more.tmp", "excluded");
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "INSERT INTO jobs(name) VALUES('new')");
    json_t *job = do_job(f, BK_JOB_RECOVERY,
                         "{\"recovery_type\": \"files\", \"delete_extra\": true}", "completed");
    assert_int_equal(int_of(job, "files_deleted"), 1);
    done(job);
    assert_false(there(f, "app/uploads/extra.wav"));
    assert_true(there(f, "app/uploads/more.tmp"));
    assert_true(there(f, "app/uploads/skip.tmp"));
    assert_true(there(f, "app/app.db-wal"));
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 501);
    sqlite3_close(db);
}

static void two_databases_of_one_name_get_two_files(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    put(f, "app2/x", "x");
    sqlite3 *db = open_db(f, "app2/app.db");
    sql(db, "CREATE TABLE other(x)");
    sqlite3_close(db);
    bk_set_db_t *second = bk_set_add_db(&f->set, "second");
    second->path = text_at(f, "app2/app.db");
    second->pitr_window = 0;
    back_up(f, "full", id);
    done(do_job(
        f, BK_JOB_RECOVERY,
        body(f, "{\"recovery_type\": \"database\", \"target_directory\": \"@\"}", "restored/two"),
        "completed"));
    assert_int_equal(number_in(f, "restored/two/main-app.db", "SELECT count(*) FROM jobs"), 500);
    assert_int_equal(number_in(f, "restored/two/second-app.db", "SELECT count(*) FROM other"), 0);
    done(do_job(f, BK_JOB_RECOVERY,
                body(f,
                     "{\"recovery_type\": \"database\", \"database\": \"second\","
                     " \"target_directory\": \"@\"}",
                     "restored/one"),
                "completed"));
    assert_false(there(f, "restored/one/main-app.db"));
}

static void what_no_backup_holds_is_told(void **state)
{
    fixture_t *f = *state;
    json_t *job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"database\"}", "failed");
    assert_string_equal(text_of(job, "problem.code"), "RepositoryMissing");
    done(job);
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    job = do_job(f, BK_JOB_RECOVERY,
                 "{\"recovery_type\": \"database\", \"backup_id\": \"full_20001231_000000\"}",
                 "failed");
    assert_string_equal(text_of(job, "problem.code"), "NotFound");
    assert_contains(text_of(job, "error"), id);
    done(job);
    job = do_job(f, BK_JOB_RECOVERY,
                 body(f,
                      "{\"recovery_type\": \"database\", \"database\": \"nope\","
                      " \"target_directory\": \"@\"}",
                      "restored/n"),
                 "failed");
    assert_contains(text_of(job, "error"), "holds no database nope");
    done(job);
}

/* Of a recovery that was killed, hours ago or just now. */
static void a_leftover_goes_with_the_next_recovery(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], name[64];
    unsigned files = 0;
    uint64_t seed = XXH3_64bits(f->set.name, strlen(f->set.name));
    back_up(f, "full", id);
    OK(bk_mkdirs(at(f, "restored/db"), 0755, &f->err), &f->err);
    snprintf(name, sizeof name, "restored/db/.ngx-backup-%016llx",
             (unsigned long long)XXH3_64bits_withSeed("app.db", 6, seed));
    put(f, name, "a part of it");
    done(do_job(
        f, BK_JOB_RECOVERY,
        body(f, "{\"recovery_type\": \"database\", \"target_directory\": \"@\"}", "restored/db"),
        "completed"));
    assert_int_equal(number_in(f, "restored/db/app.db", "SELECT count(*) FROM jobs"), 500);
    test_visit(at(f, "restored/db"), count_file, &files);
    assert_int_equal(files, 1);
}

static void a_recovery_whose_process_died_is_not_repeated(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    back_up(f, "full", id);
    assert_int_equal(submit(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"full\"}", id), BK_OK);
    OK(bk_engine_take(f->engine, id, &f->err), &f->err);
    close_engine(f);
    open_engine(f);
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "failed");
    assert_contains(text_of(job, "error"), "run it again");
    done(job);
}

static void an_equal_recovery_is_a_conflict_while_it_waits(void **state)
{
    fixture_t *f = *state;
    char first[BK_JOB_ID], second[BK_JOB_ID];
    const char *text = "{\"recovery_type\": \"full\"}";
    back_up(f, "full", first);
    assert_int_equal(submit(f, BK_JOB_RECOVERY, text, first), BK_OK);
    assert_int_equal(submit(f, BK_JOB_RECOVERY, text, second), BK_CONFLICT);
    assert_string_equal(second, first);
    assert_int_equal(submit(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\"}", second), BK_OK);
    assert_int_equal(run_next(f, second), BK_STATUS_COMPLETED);
    assert_int_equal(submit(f, BK_JOB_RECOVERY, text, second), BK_OK);
}

static int set_up_passphrase(void **state)
{
    fixture_t *f = fixture_new(false);
    put(f, "pass", "correct horse battery\n");
    assert_int_equal(chmod(at(f, "pass"), 0600), 0);
    f->set.passphrase_file = text_at(f, "pass");
    open_engine(f);
    *state = f;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(what_was_lost_whole_comes_back),
        T(a_safety_backup_does_not_demand_wal),
        T(the_safety_backup_undoes_a_recovery),
        T(a_database_is_recovered_while_the_application_writes),
        T(a_database_beyond_reading_is_set_aside_and_recovered),
        T(a_locked_database_is_not_replaced_unsaved),
        T(files_by_pattern_go_to_a_target),
        T(paths_name_trees_directories_and_files),
        T(a_whole_backup_into_a_directory_can_be_opened),
        T(a_database_in_use_is_not_replaced_in_a_directory),
        T(the_live_database_is_not_replaced_through_a_target),
        T(targets_are_inside_a_restore_root),
        T(a_link_planted_after_the_check_leads_nowhere),
        T(a_dry_run_tells_and_touches_nothing),
        T(overwrite_policies_keep_what_they_say),
        T(policies_hold_for_the_database_in_place),
        T(delete_extra_spares_what_backups_leave_out),
        T(two_databases_of_one_name_get_two_files),
        T(what_no_backup_holds_is_told),
        T(a_leftover_goes_with_the_next_recovery),
        T(a_recovery_whose_process_died_is_not_repeated),
        T(an_equal_recovery_is_a_conflict_while_it_waits),
        cmocka_unit_test_setup_teardown(what_was_lost_whole_comes_back, set_up_encrypted,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_was_lost_whole_comes_back, set_up_passphrase,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
