/*
 * t/unit/engine/checks_test.c: the jobs that look, cleanup, and what status, health and lists say.
 */
#include "unit/engine/fixture.h"

#include <errno.h>

static const char *check_status(json_t *checks, const char *name)
{
    size_t i;
    json_t *one;
    json_array_foreach(checks, i, one)
    {
        if (strcmp(text_of(one, "name"), name) == 0)
            return text_of(one, "status");
    }
    return "(none)";
}

static void validation_proves_a_backup_without_touching_anything(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    put(f, "app/uploads/a.wav", "changed since");
    for (int deep = 0; deep < 2; deep++) {
        json_t *job = do_job(f, BK_JOB_VALIDATE, deep ? "{\"deep\": true}" : NULL, "completed");
        json_t *result = json_object_get(job, "validation_result");
        assert_true(json_is_true(json_object_get(result, "valid")));
        assert_string_equal(text_of(result, "backup_id"), id);
        assert_string_equal(text_of(result, "database_validation.integrity_check"), "ok");
        assert_string_equal(text_of(result, "database_validation.tables.0"), "jobs");
        assert_string_equal(text_of(result, "database_validation.path"), at(f, "app/app.db"));
        assert_int_equal(int_of(result, "file_validation.files_checked"), 4);
        assert_int_equal(int_of(result, "file_validation.files_valid"), 4);
        assert_int_equal(json_is_true(member(result, "file_validation.checksum_verified")), deep);
        assert_int_equal(int_of(result, "system_validation.critical_paths_checked"), 3);
        assert_string_equal(
            check_status(json_object_get(result, "checks"), "recover database main"), "pass");
        done(job);
    }
    assert_string_equal(get(f, "app/uploads/a.wav"), "changed since");
    assert_int_equal(rmdir(at(f, "base/scratch")), 0); /* nothing was left in it */
    assert_int_equal(mkdir(at(f, "base/scratch"), 0700), 0);
}

typedef struct {
    char path[1024];
    off_t size;
} largest_t;

static void note_largest(void *arg, const char *path, const struct stat *st)
{
    largest_t *largest = arg;
    if (!S_ISREG(st->st_mode) || st->st_size <= largest->size)
        return;
    largest->size = st->st_size;
    bk_strcpy(largest->path, sizeof largest->path, path);
}

static void deep_validation_names_the_files_that_are_lost(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    char *big = malloc(300000);
    test_fill((uint8_t *)big, 299999, 7);
    for (int i = 0; i < 299999; i++)
        big[i] = (char)('!' + (unsigned char)big[i] % 90);
    big[299999] = '\0';
    put(f, "app/uploads/2025/big.wav", big);
    free(big);
    back_up(f, "full", id);
    /* The largest pack holds the only file that is no inline content. */
    largest_t largest = {.size = 0};
    test_visit(at(f, "storage/packs"), note_largest, &largest);
    test_spoil(largest.path, 150000, "XXXX");
    done(do_job(f, BK_JOB_VALIDATE, NULL, "completed")); /* everything is there */
    /* The files are there already and right: a recovery fetches nothing. */
    done(do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\"}", "completed"));
    json_t *job = do_job(f, BK_JOB_VALIDATE, "{\"deep\": true}", "failed");
    json_t *files = member(job, "validation_result.file_validation");
    assert_int_equal(int_of(files, "files_valid"), 4);
    assert_int_equal(int_of(files, "files_checked"), 5);
    assert_string_equal(text_of(files, "files_failed.0.path"), "uploads/2025/big.wav");
    assert_contains(text_of(job, "error"), "big.wav");
    done(job);
    /* The recovery gives the rest and says what is missing. */
    assert_int_equal(unlink(at(f, "app/uploads/2025/big.wav")), 0);
    assert_int_equal(unlink(at(f, "app/uploads/a.wav")), 0);
    job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\"}", "warning");
    assert_contains(text_of(job, "files_failed.0.path"), "big.wav");
    assert_true(json_is_false(member(job, "validation.valid")));
    assert_string_equal(get(f, "app/uploads/a.wav"), "sound a");
    done(job);
}

static void every_verification_level_passes_on_what_was_written(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], body[32];
    back_up(f, "full", id);
    for (int level = 0; level <= 3; level++) {
        bk_fmt(body, sizeof body, "{\"level\": %d}", level);
        json_t *job = do_job(f, BK_JOB_VERIFY, body, "completed");
        assert_int_equal(int_of(job, "verify_result.level"), level);
        assert_int_equal(int_of(job, "verify_result.findings_total"), 0);
        done(job);
    }
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, id, &backup, &f->err), &f->err);
    assert_true(json_is_string(json_object_get(backup, "verified")));
    json_decref(backup);
}

static void a_self_test_of_a_new_installation_makes_the_repository(void **state)
{
    fixture_t *f = *state;
    json_t *job = do_job(f, BK_JOB_TEST, NULL, "warning");
    assert_contains(text_of(job, "warnings.0"), "no backup yet");
    assert_true(json_is_true(member(job, "test_result.overall_success")));
    done(job);
    assert_true(there(f, "storage/FORMAT"));
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    job = do_job(f, BK_JOB_TEST, NULL, "completed");
    json_t *result = json_object_get(job, "test_result");
    assert_true(json_is_true(member(result, "backup_test.success")));
    assert_true(json_is_true(member(result, "recovery_test.success")));
    assert_true(json_array_size(member(result, "recovery_test.test_file_recovery.sample")) > 0);
    assert_true(json_is_true(member(result, "storage_test.0.accessible")));
    assert_true(json_is_real(member(result, "storage_test.0.latency_ms")));
    assert_string_equal(check_status(json_object_get(result, "checks"), "read database main"),
                        "pass");
    done(job);
    assert_int_equal(rmdir(at(f, "base/scratch")), 0);
    assert_int_equal(mkdir(at(f, "base/scratch"), 0700), 0);
    /* nothing was left there */
    assert_true(rmdir(at(f, "storage/test")) == 0 || errno == ENOENT);
}

static void a_self_test_tells_each_thing_that_is_wrong(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    assert_int_equal(rename(at(f, "app/transcripts"), at(f, "app/gone")), 0);
    put_key(f, "k1.key", 9);
    json_t *job = do_job(f, BK_JOB_TEST, NULL, "failed");
    json_t *checks = member(job, "test_result.checks");
    assert_string_equal(check_status(checks, "read database main"), "pass");
    assert_string_equal(check_status(checks, "read files transcripts"), "fail");
    assert_string_equal(check_status(checks, "read files uploads"), "pass");
    assert_string_equal(check_status(checks, "repository and key"), "fail");
    assert_string_equal(check_status(checks, "storage: write, read, list, delete"), "pass");
    assert_contains(text_of(job, "error"), "transcripts");
    done(job);
}

/* --- cleanup --- */

/* Make every backup look days old, as its own snapshot says, by turning retention into less. */
static void retention_ms(fixture_t *f, uint64_t ms)
{
    f->set.retention_db = f->set.retention_files = ms;
}

static bool kept_for(json_t *result, const char *id, const char *reason)
{
    size_t i, n;
    json_t *one, *text;
    json_array_foreach(json_object_get(result, "kept"), i, one)
    {
        if (strcmp(text_of(one, "id"), id) != 0)
            continue;
        json_array_foreach(json_object_get(one, "reasons"), n, text)
        {
            if (strcmp(json_string_value(text), reason) == 0)
                return true;
        }
    }
    return false;
}

static void cleanup_keeps_the_newest_and_says_why(void **state)
{
    fixture_t *f = *state;
    char ids[3][BK_BACKUP_ID];
    back_up(f, "full", ids[0]);
    back_up(f, "full", ids[1]);
    back_up(f, "incremental", ids[2]);
    json_t *job = do_job(f, BK_JOB_CLEANUP, "{}", "completed");
    json_t *result = json_object_get(job, "cleanup_result");
    assert_true(kept_for(result, ids[0], "younger than retention"));
    assert_int_equal(json_array_size(json_object_get(result, "deleted")), 0);
    assert_true(json_is_true(json_object_get(result, "database_cleanup")));
    assert_string_equal(text_of(result, "storage_cleanup.0.backend_type"), "local");
    done(job);

    retention_ms(f, 1);
    bk_sleep_ms(5);
    json_t *plan = NULL, *body = json("{\"dry_run\": true}");
    OK(bk_engine_plan(f->engine, BK_JOB_CLEANUP, body, NULL, NULL, &plan, &f->err), &f->err);
    assert_string_equal(text_of(plan, "deleted.0"), ids[0]);
    assert_int_equal(json_array_size(json_object_get(plan, "deleted")), 1);
    json_decref(plan);
    json_decref(body);

    job = do_job(f, BK_JOB_CLEANUP, NULL, "completed");
    result = json_object_get(job, "cleanup_result");
    assert_string_equal(text_of(result, "deleted.0"), ids[0]);
    assert_true(kept_for(result, ids[1], "the newest full backup without warnings"));
    assert_true(kept_for(result, ids[2], "the newest backup"));
    assert_int_equal(int_of(result, "freed_bytes"), 0);
    assert_contains(text_of(result, "note"), "not freed");
    done(job);
    json_t *backup = NULL;
    assert_int_equal(bk_engine_backup(f->engine, ids[0], &backup, &f->err), BK_NOT_FOUND);
    done(do_job(f, BK_JOB_VALIDATE, "{\"deep\": true}", "completed"));

    retention_ms(f, 0);
    job = do_job(f, BK_JOB_CLEANUP, NULL, "completed");
    assert_true(
        kept_for(json_object_get(job, "cleanup_result"), ids[1], "retention keeps it for ever"));
    done(job);
}

typedef struct {
    fixture_t *f;
    const char *prefix;
} copy_to_spool_t;

static void copy_to_spool(void *arg, const char *path, const struct stat *st)
{
    const copy_to_spool_t *copy = arg;
    char to[1024];
    bk_err_t err = {0};
    bk_buf_t bytes;
    (void)st;
    if (strncmp(strrchr(path, '/') + 1, copy->prefix, strlen(copy->prefix)) != 0)
        return;
    bk_fmt(to, sizeof to, "%s/%s", at(copy->f, "base/spool/snapshots"), strrchr(path, '/') + 1);
    bk_buf_init(&bytes, 1u << 20);
    OK(bk_read_file(AT_FDCWD, path, &bytes, &err), &err);
    OK(bk_publish_bytes(AT_FDCWD, to, 0600, bytes.data, bytes.len, false, &err), &err);
    bk_buf_free(&bytes);
}

/* Nothing older goes because of a backup that may not last. */
static void cleanup_counts_on_what_is_stored_and_checked_only(void **state)
{
    fixture_t *f = *state;
    char stored[BK_BACKUP_ID], waiting[BK_BACKUP_ID], name[80];
    back_up(f, "full", stored);
    json_t *job = do_job(f, BK_JOB_BACKUP,
                         "{\"backup_type\": \"full\", \"upload_to_storage\": false}", "completed");
    bk_strcpy(waiting, sizeof waiting, text_of(job, "backup_id"));
    done(job);
    retention_ms(f, 1);
    bk_sleep_ms(20);
    job = do_job(f, BK_JOB_CLEANUP, NULL, "completed");
    json_t *result = json_object_get(job, "cleanup_result");
    assert_true(kept_for(result, stored, "the newest full backup without warnings"));
    assert_true(kept_for(result, waiting, "waits to be stored, and checked there"));
    assert_int_equal(json_array_size(json_object_get(result, "deleted")), 0);
    done(job);

    /* On the storage, but its session died before the last look at what it relies on. */
    back_up(f, "full", stored);
    back_up(f, "full", waiting);
    bk_fmt(name, sizeof name, "%s-", waiting);
    copy_to_spool_t copy = {f, name};
    test_visit(at(f, "storage/snapshots"), copy_to_spool, &copy);
    job = do_job(f, BK_JOB_CLEANUP, NULL, "completed");
    result = json_object_get(job, "cleanup_result");
    assert_true(kept_for(result, stored, "the newest backup"));
    assert_true(kept_for(result, waiting, "waits to be stored, and checked there"));
    done(job);
}

static void cleanup_removes_what_was_set_aside_long_ago(void **state)
{
    fixture_t *f = *state;
    put(f, "base/catalog.db.damaged-20200101_000000", "x");
    put(f, "app/app.db.before-recovery_20200101_000000", "x");
    put(f, "app/app.db-wal.before-recovery_20200101_000000", "x");
    put(f, "app/app.db.before-lunch", "not ours");
    done(do_job(f, BK_JOB_CLEANUP, NULL, "completed"));
    assert_true(there(f, "app/app.db.before-recovery_20200101_000000")); /* named a moment ago */
    retention_ms(f, 1);
    bk_sleep_ms(20);
    json_t *job = do_job(f, BK_JOB_CLEANUP, NULL, "completed");
    assert_int_equal(json_array_size(member(job, "cleanup_result.leftovers")), 3);
    done(job);
    assert_false(there(f, "base/catalog.db.damaged-20200101_000000"));
    assert_false(there(f, "app/app.db.before-recovery_20200101_000000"));
    assert_false(there(f, "app/app.db-wal.before-recovery_20200101_000000"));
    assert_true(there(f, "app/app.db.before-lunch"));
    assert_true(there(f, "app/app.db"));
}

static void a_backup_is_deleted_by_its_id(void **state)
{
    fixture_t *f = *state;
    char ids[2][BK_BACKUP_ID], body[128];
    back_up(f, "full", ids[0]);
    back_up(f, "full", ids[1]);
    bk_fmt(body, sizeof body, "{\"backup_id\": \"%s\"}", ids[0]);
    done(do_job(f, BK_JOB_DELETE, body, "completed"));
    json_t *backup = NULL;
    assert_int_equal(bk_engine_backup(f->engine, ids[0], &backup, &f->err), BK_NOT_FOUND);
    done(do_job(f, BK_JOB_DELETE, body, "failed"));
    OK(bk_engine_backup(f->engine, ids[1], &backup, &f->err), &f->err);
    json_decref(backup);
}

static void spoil_snapshot(void *arg, const char *path, const struct stat *st)
{
    const char *prefix = arg;
    if (strncmp(strrchr(path, '/') + 1, prefix, strlen(prefix)) == 0)
        test_spoil(path, st->st_size / 2, "XXXX");
}

static void count_aside(void *arg, const char *path, const struct stat *st)
{
    (void)st;
    *(int *)arg += strstr(path, "/snapshot.damaged-full_") != NULL;
}

/* A copy of the object stays beside the catalog until retention has passed. */
static void a_damaged_backup_is_deleted_by_its_id_and_health_is_well(void **state)
{
    fixture_t *f = *state;
    char ids[2][BK_BACKUP_ID], body[128];
    json_t *health = NULL;
    int aside = 0;
    back_up(f, "full", ids[0]);
    back_up(f, "full", ids[1]);
    bk_fmt(body, sizeof body, "%s-", ids[0]);
    test_visit(at(f, "storage/snapshots"), spoil_snapshot, body);
    OK(bk_remove_tree(at(f, "base/cache/snapshots"), true, &f->err), &f->err);
    done(do_job(f, BK_JOB_VERIFY, "{\"level\": 0}", "failed"));
    OK(bk_engine_sync(f->engine, NULL, &f->err), &f->err);
    OK(bk_engine_health(f->engine, &health, &f->err), &f->err);
    assert_string_equal(text_of(health, "status"), "fail");
    json_decref(health);
    bk_fmt(body, sizeof body, "{\"backup_id\": \"%s\"}", ids[0]);
    done(do_job(f, BK_JOB_DELETE, body, "completed"));
    done(do_job(f, BK_JOB_DELETE, body, "failed"));
    test_visit(at(f, "base"), count_aside, &aside);
    assert_int_equal(aside, 1);
    done(do_job(f, BK_JOB_VERIFY, "{\"level\": 2}", "completed"));
    OK(bk_engine_health(f->engine, &health, &f->err), &f->err);
    assert_string_not_equal(text_of(health, "status"), "fail");
    json_decref(health);
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, ids[1], &backup, &f->err), &f->err);
    json_decref(backup);
    retention_ms(f, 1);
    bk_sleep_ms(20);
    done(do_job(f, BK_JOB_CLEANUP, NULL, "completed"));
    aside = 0;
    test_visit(at(f, "base"), count_aside, &aside);
    assert_int_equal(aside, 0);
}

/* --- what is shown --- */

static void status_has_the_members_that_pages_read(void **state)
{
    static const char *const members[] = {
        "timestamp",
        "service_running",
        "backup_system.orchestrator.initialized",
        "backup_system.orchestrator.backup_base_dir",
        "backup_system.orchestrator.current_operations",
        "backup_system.orchestrator.statistics.total_backups",
        "backup_system.orchestrator.statistics.successful_backups",
        "backup_system.orchestrator.statistics.failed_backups",
        "backup_system.orchestrator.statistics.total_size_backed_up",
        "backup_system.orchestrator.statistics.last_full_backup",
        "backup_system.orchestrator.statistics.last_incremental_backup",
        "backup_system.database.database_path",
        "backup_system.database.database_exists",
        "backup_system.database.wal_mode_enabled",
        "backup_system.database.total_backups",
        "backup_system.database.full_backups",
        "backup_system.database.wal_backups",
        "backup_system.database.total_backup_size",
        "backup_system.database.last_full_backup",
        "backup_system.database.last_wal_backup",
        "backup_system.database.backup_directory",
        "backup_system.files.monitored_directories",
        "backup_system.files.realtime_monitoring_enabled",
        "backup_system.files.total_files_tracked",
        "backup_system.files.unique_content_items",
        "backup_system.files.backup_queue_size",
        "backup_system.files.total_original_size",
        "backup_system.files.total_backup_size",
        "backup_system.files.deduplication_saved",
        "backup_system.files.storage_efficiency",
        "backup_system.files.backup_directory",
        "backup_system.compression.compression_method",
        "backup_system.compression.compression_level",
        "backup_system.compression.extension",
        "backup_system.compression.zstd_available",
        "backup_system.compression.gzip_available",
        "backup_system.storage_backends.0.backend_type",
        "backup_system.storage_backends.0.base_path",
        "backup_system.storage_backends.0.accessible",
        "backup_system.storage_backends.0.total_size",
        "backup_system.storage_backends.0.disk_total",
        "backup_system.storage_backends.0.disk_used",
        "backup_system.storage_backends.0.disk_free",
        "backup_system.storage_backends.0.disk_usage_percent",
        "backup_system.current_operations",
        "configuration.scheduling_enabled",
        "configuration.realtime_monitoring",
        "configuration.compression_enabled",
        "configuration.encryption_enabled",
        "configuration.storage_backends",
        "statistics.started",
        "statistics.total_operations",
        "statistics.successful_operations",
        "statistics.failed_operations",
        "statistics.last_full_backup",
        "statistics.last_incremental_backup",
        "statistics.last_cleanup",
    };
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    for (int round = 0; round < 2; round++) { /* also before the first backup */
        json_t *status = NULL;
        OK(bk_engine_status(f->engine, NULL, NULL, &status, &f->err), &f->err);
        for (size_t i = 0; i < sizeof members / sizeof *members; i++)
            if (member(status, members[i]) == NULL)
                fail_msg("no %s in round %d", members[i], round);
        if (round == 1) {
            assert_int_equal(int_of(status, "backup_system.orchestrator.statistics.total_backups"),
                             1);
            assert_int_equal(int_of(status, "backup_system.files.total_files_tracked"), 4);
            assert_true(json_is_true(member(status, "backup_system.database.wal_mode_enabled")));
            assert_true(json_is_string(member(status, "statistics.last_full_backup")));
            assert_true(json_is_string(member(status, "statistics.last_cleanup")));
        } else {
            back_up(f, "full", id);
            done(do_job(f, BK_JOB_CLEANUP, NULL, "completed"));
        }
        json_decref(status);
    }
}

static void status_shows_the_running_job(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], path[256];
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    OK(bk_engine_take(f->engine, id, &f->err), &f->err);
    bk_ctl_init(&f->ctl);
    bk_ctl_phase(&f->ctl, "files");
    atomic_store(&f->ctl.bytes_total, 200);
    atomic_store(&f->ctl.bytes_done, 50);
    json_t *status = NULL;
    OK(bk_engine_status(f->engine, id, &f->ctl, &status, &f->err), &f->err);
    bk_fmt(path, sizeof path, "backup_system.current_operations.%s", id);
    json_t *one = member(status, path);
    assert_string_equal(text_of(one, "type"), "full_backup");
    assert_string_equal(text_of(one, "status"), "running");
    assert_string_equal(text_of(one, "phase"), "files");
    assert_int_equal(int_of(one, "progress"), 25);
    assert_int_equal(int_of(status, "jobs.running"), 1);
    json_decref(status);
    bk_ctl_free(&f->ctl);
}

static json_t *health(fixture_t *f)
{
    json_t *answer = NULL;
    OK(bk_engine_health(f->engine, &answer, &f->err), &f->err);
    return answer;
}

static void health_follows_what_happens(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    json_t *h = health(f);
    assert_string_equal(text_of(h, "status"), "warn"); /* no backup yet */
    json_decref(h);
    back_up(f, "full", id);
    h = health(f);
    assert_string_equal(text_of(h, "status"), "pass");
    assert_true(json_is_true(json_object_get(h, "healthy")));
    assert_true(json_is_string(json_object_get(h, "last_successful_backup")));
    json_decref(h);
    f->set.health_max_age = 1;
    bk_sleep_ms(5);
    h = health(f);
    assert_string_equal(text_of(h, "status"), "warn");
    assert_contains(text_of(h, "checks.backup:age.0.output"), "health_max_age");
    json_decref(h);
    f->set.health_max_age = 3600000;
    assert_int_equal(rename(at(f, "app/app.db"), at(f, "app/x.db")), 0);
    done(do_job(f, BK_JOB_BACKUP, NULL, "failed"));
    h = health(f);
    assert_string_equal(text_of(h, "status"), "fail");
    assert_contains(text_of(h, "checks.backup:result.0.output"), "app.db");
    json_decref(h);
    assert_int_equal(rename(at(f, "app/x.db"), at(f, "app/app.db")), 0);
    done(do_job(f, BK_JOB_BACKUP, NULL, "completed"));
    f->set.min_free = UINT64_MAX / 2;
    h = health(f);
    assert_string_equal(text_of(h, "status"), "fail");
    assert_contains(text_of(h, "checks.disk:free.0.output"), "min_free");
    json_decref(h);
    f->set.min_free = 0;
    assert_int_equal(rename(at(f, "storage"), at(f, "unmounted")), 0);
    h = health(f);
    assert_string_equal(text_of(h, "status"), "fail");
    assert_string_equal(text_of(h, "checks.storage_disk:accessible.0.status"), "fail");
    json_decref(h);
}

static void lists_come_in_pages_and_filtered(void **state)
{
    fixture_t *f = *state;
    char ids[5][BK_BACKUP_ID], cursor[BK_BACKUP_ID] = "";
    for (int i = 0; i < 5; i++)
        back_up(f, i % 2 == 0 ? "full" : "incremental", ids[i]);
    int seen = 0;
    for (int page = 0; page < 5; page++) {
        bk_list_filter_t filter = {.limit = 2, .cursor = cursor[0] != '\0' ? cursor : NULL};
        json_t *answer = NULL;
        OK(bk_engine_list(f->engine, &filter, &answer, &f->err), &f->err);
        size_t count = json_array_size(json_object_get(answer, "backups"));
        for (size_t i = 0; i < count; i++) {
            char path[64];
            bk_fmt(path, sizeof path, "backups.%zu.backup_id", i);
            assert_string_equal(text_of(answer, path), ids[4 - seen]);
            seen++;
        }
        assert_int_equal(int_of(answer, "total"), 5);
        const char *next = json_string_value(json_object_get(answer, "next_cursor"));
        bk_strcpy(cursor, sizeof cursor, next != NULL ? next : "");
        json_decref(answer);
        if (cursor[0] == '\0')
            break;
    }
    assert_int_equal(seen, 5);
    bk_list_filter_t filter = {.limit = 10, .type = "incremental"};
    json_t *answer = NULL;
    OK(bk_engine_list(f->engine, &filter, &answer, &f->err), &f->err);
    assert_int_equal(int_of(answer, "total"), 2);
    json_decref(answer);
    filter = (bk_list_filter_t){.limit = 10, .since = bk_now()};
    OK(bk_engine_list(f->engine, &filter, &answer, &f->err), &f->err);
    assert_int_equal(int_of(answer, "total"), 0);
    json_decref(answer);
    filter = (bk_list_filter_t){.limit = 10, .cursor = "full_20000101_000000"};
    assert_int_equal(bk_engine_list(f->engine, &filter, &answer, &f->err), BK_INVALID);
}

static void a_lost_catalog_comes_back_from_the_storage(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    close_engine(f);
    put(f, "base/catalog.db", "garbage instead of a database, long enough to be read as one?");
    open_engine(f);
    json_t *h = health(f);
    assert_string_equal(text_of(h, "checks.catalog:state.0.status"), "warn");
    json_decref(h);
    OK(bk_engine_sync(f->engine, NULL, &f->err), &f->err);
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, id, &backup, &f->err), &f->err);
    json_decref(backup);
    done(do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", "completed"));
}

static void two_sets_on_one_storage_do_not_mix(void **state)
{
    fixture_t *f = *state;
    char mine[BK_BACKUP_ID], theirs[BK_BACKUP_ID];
    back_up(f, "full", mine);
    fixture_t *other = calloc(1, sizeof *other);
    other->dir = bk_strdup(at(f, "other"));
    assert_int_equal(mkdir(other->dir, 0755), 0);
    make_app(other);
    char *storage = text_at(f, "storage");
    make_set(other, false, storage);
    free(storage);
    free(other->set.name);
    other->set.name = bk_strdup("other");
    open_engine(other);
    back_up(other, "incremental", theirs);
    json_t *backup = NULL;
    OK(bk_engine_backup(other->engine, theirs, &backup, &f->err), &f->err);
    assert_true(json_is_null(json_object_get(backup, "parent"))); /* not of the other set */
    assert_string_equal(text_of(backup, "backup"), "other");
    json_decref(backup);
    json_t *job = do_job(f, BK_JOB_VALIDATE, NULL, "completed");
    assert_string_equal(text_of(job, "validation_result.backup_id"), mine);
    done(job);
    retention_ms(f, 1);
    bk_sleep_ms(5);
    job = do_job(f, BK_JOB_CLEANUP, NULL, "completed");
    assert_true(kept_for(json_object_get(job, "cleanup_result"), theirs, "belongs to another set"));
    done(job);
    fixture_free(other);
}

static void only_one_process_owns_a_set(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_engine_t *second = NULL;
    OK(bk_engine_open(&f->set, &second, &err), &err);
    assert_int_equal(bk_engine_own(second, &err), BK_LOCKED);
    bk_engine_disown(f->engine);
    OK(bk_engine_own(second, &err), &err);
    assert_int_equal(bk_engine_own(f->engine, &err), BK_LOCKED);
    bk_engine_close(second);
    OK(bk_engine_own(f->engine, &err), &err);
}

static void a_waiting_job_can_be_canceled(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    bk_job_status_t status;
    bk_err_t err = {0};
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    OK(bk_engine_cancel(f->engine, id, &status, &err), &err);
    assert_int_equal(status, BK_STATUS_CANCELED);
    assert_int_equal(bk_engine_cancel(f->engine, id, &status, &err), BK_CONFLICT);
    assert_contains(err.text, "canceled");
    assert_int_equal(bk_engine_cancel(f->engine, "nope", &status, &err), BK_NOT_FOUND);
    OK(bk_engine_take(f->engine, id, &err), &err);
    assert_string_equal(id, "");
}

static bk_job_status_t status_of(fixture_t *f, const char *id)
{
    bk_err_t err = {0};
    json_t *job = NULL;
    bk_job_status_t status = BK_STATUS_QUEUED;
    OK(bk_engine_job(f->engine, id, &job, &err), &err);
    const char *name = json_string_value(json_object_get(job, "status"));
    while (strcmp(bk_job_status_name(status), name) != 0)
        status++;
    json_decref(job);
    return status;
}

/* A backup that was taken, and canceled before anybody could raise its ctl. */
static void take_canceled(fixture_t *f, char id[BK_JOB_ID])
{
    char taken[BK_JOB_ID];
    bk_job_status_t status;
    bk_err_t err = {0};
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    OK(bk_engine_take(f->engine, taken, &err), &err);
    assert_string_equal(taken, id);
    for (int i = 0; i < 2; i++) {
        OK(bk_engine_cancel(f->engine, id, &status, &err), &err);
        assert_int_equal(status, BK_STATUS_CANCELING);
    }
    assert_int_equal(status_of(f, id), BK_STATUS_CANCELING);
}

static void a_wish_to_cancel_holds_before_the_job_begins(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    bk_job_status_t status;
    bk_ctl_t ctl;
    bk_err_t err = {0};
    bk_team_t *team = bk_team_new(1, 8, 1 << 20);
    take_canceled(f, id);
    bk_ctl_init(&ctl);
    assert_int_equal(bk_engine_run(f->engine, id, team, &ctl, &status, &err), BK_CANCELED);
    assert_int_equal(status, BK_STATUS_CANCELED);
    assert_int_equal(status_of(f, id), BK_STATUS_CANCELED);
    bk_ctl_free(&ctl);
    bk_team_unref(team);
}

static void a_wish_to_cancel_outlives_the_runner(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], next[BK_JOB_ID];
    bk_err_t err = {0};
    take_canceled(f, id);
    bk_engine_close(f->engine); /* as a process that dies does */
    OK(bk_engine_open(&f->set, &f->engine, &err), &err);
    OK(bk_engine_own(f->engine, &err), &err);
    assert_int_equal(status_of(f, id), BK_STATUS_CANCELED);
    OK(bk_engine_take(f->engine, next, &err), &err);
    assert_string_equal(next, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(validation_proves_a_backup_without_touching_anything),
        T(deep_validation_names_the_files_that_are_lost),
        T(every_verification_level_passes_on_what_was_written),
        T(a_self_test_of_a_new_installation_makes_the_repository),
        cmocka_unit_test_setup_teardown(a_self_test_tells_each_thing_that_is_wrong,
                                        set_up_encrypted, tear_down),
        T(cleanup_keeps_the_newest_and_says_why),
        T(cleanup_counts_on_what_is_stored_and_checked_only),
        T(cleanup_removes_what_was_set_aside_long_ago),
        T(a_backup_is_deleted_by_its_id),
        T(a_damaged_backup_is_deleted_by_its_id_and_health_is_well),
        T(status_has_the_members_that_pages_read),
        T(status_shows_the_running_job),
        T(health_follows_what_happens),
        T(lists_come_in_pages_and_filtered),
        T(a_lost_catalog_comes_back_from_the_storage),
        T(two_sets_on_one_storage_do_not_mix),
        T(only_one_process_owns_a_set),
        T(a_waiting_job_can_be_canceled),
        T(a_wish_to_cancel_holds_before_the_job_begins),
        T(a_wish_to_cancel_outlives_the_runner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
