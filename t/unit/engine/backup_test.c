/*
 * t/unit/engine/backup_test.c: backups through the engine: what they report, how they fail, how
 * they go on.
 */
#include "unit/engine/fixture.h"

#include <pthread.h>

static json_t *list(fixture_t *f)
{
    bk_err_t err = {0};
    json_t *answer = NULL;
    bk_list_filter_t filter = {.limit = 100};
    OK(bk_engine_list(f->engine, &filter, &answer, &err), &err);
    return answer;
}

static void a_full_backup_reports_what_it_holds(void **state)
{
    fixture_t *f = *state;
    json_t *job = do_job(f, BK_JOB_BACKUP,
                         "{\"backup_type\": \"full\", \"description\": \"d\", \"tags\": [\"x\"]}",
                         "completed");
    assert_string_equal(text_of(job, "type"), "full_backup");
    assert_string_equal(text_of(job, "operation_id"), text_of(job, "id"));
    assert_string_equal(text_of(job, "backup_id"), text_of(job, "id"));
    assert_int_equal(strncmp(text_of(job, "id"), "full_2", 6), 0);
    assert_true(json_is_true(json_object_get(job, "success")));
    assert_true(json_is_null(json_object_get(job, "error")));
    assert_int_equal(int_of(job, "stats.files_new"), 4);
    assert_int_equal(int_of(job, "stats.excluded"), 1);
    assert_true(int_of(job, "total_size") > 20);
    assert_true(int_of(job, "stats.bytes_stored") > 0);
    assert_int_equal(json_array_size(json_object_get(job, "warnings")), 0);

    bk_err_t err = {0};
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, text_of(job, "backup_id"), &backup, &err), &err);
    assert_string_equal(text_of(backup, "type"), "full");
    assert_string_equal(text_of(backup, "description"), "d");
    assert_string_equal(text_of(backup, "tags.0"), "x");
    assert_string_equal(text_of(backup, "databases.0.name"), "main");
    assert_string_equal(text_of(backup, "databases.0.journal"), "wal");
    assert_string_equal(text_of(backup, "trees.0.name"), "uploads");
    assert_int_equal(int_of(backup, "files"), 4);
    json_decref(backup);
    done(job);
}

static void an_incremental_backup_reads_only_what_changed(void **state)
{
    fixture_t *f = *state;
    char full[BK_BACKUP_ID];
    back_up(f, "full", full);
    put(f, "app/uploads/a.wav", "another sound of another length");
    put(f, "app/uploads/new.wav", "new");
    assert_int_equal(unlink(at(f, "app/uploads/2025/c.mp3")), 0);
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", "completed");
    assert_int_equal(int_of(job, "stats.files_new"), 1);
    assert_int_equal(int_of(job, "stats.files_changed"), 1);
    assert_int_equal(int_of(job, "stats.files_unmodified"), 2);
    assert_int_equal(int_of(job, "stats.files_removed"), 1);
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, text_of(job, "id"), &backup, &f->err), &f->err);
    assert_string_equal(text_of(backup, "parent"), full);
    json_decref(backup);
    done(job);
}

static void add_size(void *arg, const char *path, const struct stat *st)
{
    (void)path;
    if (S_ISREG(st->st_mode))
        *(uint64_t *)arg += (uint64_t)st->st_size;
}

/* A backup of a file of 400000 bytes that shrinks well, and back; the bytes of all data packs. */
static uint64_t there_and_back(fixture_t *f, bk_compression_t compression)
{
    enum { LEN = 400000 };
    char id[BK_BACKUP_ID], target[1200], *text = malloc(LEN + 1);
    struct stat st;
    uint64_t stored = 0;
    for (int i = 0; i < LEN; i++)
        text[i] = "the same words over and over "[i % 29];
    text[LEN] = '\0';
    close_engine(f);
    f->set.compression = compression;
    open_engine(f);
    put(f, "app/transcripts/long.txt", text);
    back_up(f, "full", id);
    bk_fmt(target, sizeof target, "{\"recovery_type\": \"full\", \"target_directory\": \"%s\"}",
           at(f, "restored/all"));
    done(do_job(f, BK_JOB_RECOVERY, target, "completed"));
    assert_int_equal(stat(at(f, "restored/all/transcripts/long.txt"), &st), 0);
    assert_int_equal(st.st_size, LEN);
    assert_int_equal(strncmp(get(f, "restored/all/transcripts/long.txt"), text, 65535), 0);
    assert_int_equal(number_in(f, "restored/all/app.db", "SELECT count(*) FROM jobs"), 500);
    done(do_job(f, BK_JOB_VERIFY, "{\"level\": 3}", "completed"));
    free(text);
    test_visit(at(f, "storage/packs"), add_size, &stored);
    return stored;
}

static void without_compression_contents_are_stored_as_they_are(void **state)
{
    fixture_t *f = *state;
    uint64_t db = (uint64_t)number_in(f, "app/app.db", "PRAGMA page_count") * 4096;
    assert_true(there_and_back(f, (bk_compression_t){.codec = BK_CODEC_RAW}) >= 400000 + db);
}

static void gzip_goes_there_and_back(void **state)
{
    assert_true(there_and_back(*state, (bk_compression_t){.codec = BK_CODEC_GZIP, .level = 6}) <
                100000);
}

static void two_backups_in_one_second_are_two(void **state)
{
    fixture_t *f = *state;
    char ids[4][BK_BACKUP_ID];
    for (int i = 0; i < 4; i++)
        back_up(f, "full", ids[i]);
    for (int i = 1; i < 4; i++)
        for (int n = 0; n < i; n++)
            assert_string_not_equal(ids[i], ids[n]);
    json_t *answer = list(f);
    assert_int_equal(int_of(answer, "total"), 4);
    assert_string_equal(text_of(answer, "backups.0.backup_id"), ids[3]);
    assert_int_equal(json_array_size(member(answer, "available_backups.full_system_backups")), 4);
    json_decref(answer);
}

static void an_id_that_another_host_used_gets_a_suffix(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], job_id[BK_JOB_ID];
    back_up(f, "full", id);
    close_engine(f);
    /* The same storage, another machine: its catalog knows nothing of that backup. */
    bk_err_t err = {0};
    OK(bk_remove_tree(at(f, "base"), true, &err), &err);
    open_engine(f);
    for (int i = 0; i < 50; i++) {
        json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "completed");
        bk_strcpy(job_id, sizeof job_id, text_of(job, "id"));
        assert_int_equal(strncmp(text_of(job, "backup_id"), job_id, strlen(job_id)), 0);
        bool same_second = strcmp(job_id, id) == 0;
        if (same_second)
            assert_string_not_equal(text_of(job, "backup_id"), id);
        done(job);
        if (!same_second)
            break;
    }
    json_t *answer = list(f);
    assert_true(int_of(answer, "total") >= 2);
    json_decref(answer);
}

static void a_missing_database_fails_the_backup(void **state)
{
    fixture_t *f = *state;
    assert_int_equal(rename(at(f, "app/app.db"), at(f, "app/elsewhere.db")), 0);
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_contains(text_of(job, "error"), "app.db");
    assert_true(json_is_false(json_object_get(job, "success")));
    assert_string_equal(text_of(job, "problem.code"), "NotFound");
    done(job);
    json_t *answer = list(f);
    assert_int_equal(int_of(answer, "total"), 0);
    json_decref(answer);
    assert_int_equal(rename(at(f, "app/elsewhere.db"), at(f, "app/app.db")), 0);
    done(do_job(f, BK_JOB_BACKUP, NULL, "completed"));
}

static void a_vanished_tree_fails_the_backup(void **state)
{
    fixture_t *f = *state;
    assert_int_equal(rename(at(f, "app/transcripts"), at(f, "app/moved")), 0);
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_contains(text_of(job, "error"), "transcripts");
    done(job);
    assert_int_equal(rename(at(f, "app/moved"), at(f, "app/transcripts")), 0);
    done(do_job(f, BK_JOB_BACKUP, NULL, "completed"));
}

static void unreadable(fixture_t *f)
{
    assert_int_equal(chmod(at(f, "app/uploads/a.wav"), 0), 0);
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "warning");
    assert_true(json_is_true(json_object_get(job, "success")));
    assert_int_equal(int_of(job, "unreadable_total"), 1);
    assert_contains(text_of(job, "warnings.0"), "a.wav");
    assert_contains(text_of(job, "unreadable.0.path"), "a.wav");
    json_t *backup = NULL;
    OK(bk_engine_backup(f->engine, text_of(job, "id"), &backup, &f->err), &f->err);
    assert_string_equal(text_of(backup, "status"), "warning");
    json_decref(backup);
    done(job);
}

static void an_unreadable_file_is_a_warning_with_its_name(void **state)
{
    as_nobody(*state, unreadable);
}

static void read_only(fixture_t *f)
{
    bk_err_t err = {0};
    assert_int_equal(chmod(at(f, "base/spool"), 0500), 0);
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_contains(text_of(job, "error"), "spool");
    done(job);
    assert_int_equal(chmod(at(f, "base/spool"), 0700), 0);
    done(do_job(f, BK_JOB_BACKUP, NULL, "completed"));
    close_engine(f);
    assert_int_equal(chmod(at(f, "base"), 0500), 0);
    assert_int_equal(chmod(at(f, "base/catalog.db"), 0400), 0);
    assert_int_not_equal(bk_engine_open(&f->set, &f->engine, &err), BK_OK);
    assert_contains(err.text, "base");
    f->engine = NULL;
    assert_int_equal(chmod(at(f, "base"), 0700), 0);
    assert_int_equal(chmod(at(f, "base/catalog.db"), 0600), 0);
    open_engine(f);
}

static void a_directory_that_cannot_be_written_is_named(void **state)
{
    as_nobody(*state, read_only);
}

static void the_wrong_key_is_told(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    put_key(f, "k1.key", 2);
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_string_equal(text_of(job, "problem.code"), "WrongKey");
    done(job);
    /* A second key that is right opens it. */
    put_key(f, "k2.key", 1);
    assert_non_null(bk_set_add_key(&f->set, "k2", at(f, "k2.key")));
    done(do_job(f, BK_JOB_BACKUP, NULL, "completed"));
}

static void a_repository_with_a_key_is_not_opened_without(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    free(f->set.keys[0].id);
    free(f->set.keys[0].file);
    f->set.key_count = 0;
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_contains(text_of(job, "error"), "encrypt");
    done(job);
}

static void too_little_space_is_refused_before_anything_is_read(void **state)
{
    fixture_t *f = *state;
    f->set.min_free = UINT64_MAX / 2;
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_string_equal(text_of(job, "problem.code"), "NoSpace");
    assert_contains(text_of(job, "error"), "min_free");
    done(job);
}

static void nothing_of_a_canceled_backup_is_listed(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    OK(bk_engine_take(f->engine, id, &f->err), &f->err);
    bk_ctl_init(&f->ctl);
    bk_ctl_stop(&f->ctl, BK_CANCELED);
    assert_int_equal(run_taken(f, id), BK_STATUS_CANCELED);
    bk_ctl_free(&f->ctl);
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "canceled");
    done(job);
    json_t *answer = list(f);
    assert_int_equal(int_of(answer, "total"), 0);
    json_decref(answer);
    done(do_job(f, BK_JOB_BACKUP, NULL, "completed"));
}

/* Stops the job as soon as it has read something. */
static void *stop_soon(void *arg)
{
    bk_ctl_t *ctl = arg;
    for (int i = 0; i < 20000 && atomic_load(&ctl->bytes_done) == 0; i++)
        usleep(200);
    bk_ctl_stop(ctl, BK_INTERRUPTED);
    return NULL;
}

/* Enough to be busy with for a while. */
static void add_files(fixture_t *f)
{
    char *big = malloc(60000), name[64];
    for (int i = 0; i < 300; i++) {
        test_fill((uint8_t *)big, 59999, (uint64_t)i);
        for (int n = 0; n < 59999; n++)
            big[n] = (char)('a' + (unsigned char)big[n] % 26);
        big[59999] = '\0';
        bk_fmt(name, sizeof name, "app/uploads/big/%d.wav", i);
        put(f, name, big);
    }
    free(big);
}

/* Another host publishes a backup under our id while we are reading. */
typedef struct {
    fixture_t *f;
    char from[1024], to[1024];
} other_host_t;

static void *publish_soon(void *arg)
{
    other_host_t *other = arg;
    for (int i = 0; i < 20000 && atomic_load(&other->f->ctl.files_done) == 0; i++)
        usleep(100);
    return rename(other->from, other->to) == 0 ? NULL : other;
}

static void note_name(void *arg, const char *path, const struct stat *st)
{
    (void)st;
    bk_strcpy(arg, 256, strrchr(path, '/') + 1);
}

static void an_id_that_is_taken_meanwhile_gets_a_suffix(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID], job_id[BK_JOB_ID], name[256] = "", command[1200];
    add_files(f);
    back_up(f, "full", id);
    test_visit(at(f, "storage/snapshots"), note_name, name);
    assert_string_not_equal(name, "");
    other_host_t other = {.f = f};
    bk_fmt(other.to, sizeof other.to, "%s/%s", at(f, "storage/snapshots"), name);
    bk_fmt(other.from, sizeof other.from, "%s/%s", f->dir, name);
    assert_int_equal(rename(other.to, other.from), 0);
    sqlite3 *db = open_db(f, "base/catalog.db");
    sql(db, "DELETE FROM jobs");
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, job_id), BK_OK);
    bk_fmt(command, sizeof command, "UPDATE jobs SET id = '%s'", id);
    sql(db, command);
    sqlite3_close(db);
    OK(bk_engine_take(f->engine, job_id, &f->err), &f->err);
    pthread_t thread;
    void *failed;
    bk_ctl_init(&f->ctl);
    assert_int_equal(pthread_create(&thread, NULL, publish_soon, &other), 0);
    bk_job_status_t status = run_taken(f, id);
    pthread_join(thread, &failed);
    bk_ctl_free(&f->ctl);
    assert_null(failed);
    assert_int_equal(status, BK_STATUS_COMPLETED);
    json_t *job = job_of(f, id);
    bk_fmt(name, sizeof name, "%s_2", id);
    assert_string_equal(text_of(job, "backup_id"), name);
    done(job);
    json_t *answer = list(f);
    assert_int_equal(int_of(answer, "total"), 2);
    json_decref(answer);
}

static void a_repository_that_vanished_is_not_begun_anew(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    back_up(f, "full", id);
    assert_int_equal(rename(at(f, "storage"), at(f, "elsewhere")), 0);
    assert_int_equal(mkdir(at(f, "storage"), 0700), 0); /* a mount point without its disk */
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "failed");
    assert_contains(text_of(job, "error"), "mount its disk");
    done(job);
    assert_false(there(f, "storage/FORMAT"));
    assert_int_equal(rmdir(at(f, "storage")), 0);
    done(do_job(f, BK_JOB_BACKUP, NULL, "failed"));
    assert_false(there(f, "storage/FORMAT"));
    assert_int_equal(rename(at(f, "elsewhere"), at(f, "storage")), 0);
    back_up(f, "incremental", id);
    /* On purpose: another storage. */
    close_engine(f);
    bk_strcpy(f->set.storages[0].name, 5, "two");
    assert_int_equal(rename(at(f, "storage"), at(f, "elsewhere")), 0);
    open_engine(f);
    back_up(f, "full", id);
    assert_true(there(f, "storage/FORMAT"));
}

static void an_interrupted_backup_is_queued_again_and_completes(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], again[BK_JOB_ID];
    pthread_t stopper;
    add_files(f);
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    OK(bk_engine_take(f->engine, again, &f->err), &f->err);
    bk_ctl_init(&f->ctl);
    assert_int_equal(pthread_create(&stopper, NULL, stop_soon, &f->ctl), 0);
    bk_job_status_t status = run_taken(f, id);
    pthread_join(stopper, NULL);
    bk_ctl_free(&f->ctl);
    assert_int_equal(status, BK_STATUS_INTERRUPTED);
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "queued");
    assert_true(json_is_null(json_object_get(job, "error")));
    assert_true(json_is_null(json_object_get(job, "started")));
    done(job);
    close_engine(f);
    open_engine(f);
    assert_int_equal(run_next(f, again), BK_STATUS_COMPLETED);
    assert_string_equal(again, id);
}

static void a_backup_whose_process_died_is_queued_again(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], again[BK_JOB_ID];
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    OK(bk_engine_take(f->engine, again, &f->err), &f->err);
    close_engine(f); /* as a crash leaves it: running */
    open_engine(f);
    assert_int_equal(run_next(f, again), BK_STATUS_COMPLETED);
    assert_string_equal(again, id);
}

static void a_job_that_always_kills_its_process_ends(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID], taken[BK_JOB_ID] = "x";
    assert_int_equal(submit(f, BK_JOB_BACKUP, NULL, id), BK_OK);
    for (int i = 0; i < 100 && taken[0] != '\0'; i++) {
        OK(bk_engine_take(f->engine, taken, &f->err), &f->err);
        close_engine(f);
        open_engine(f);
    }
    json_t *job = job_of(f, id);
    assert_string_equal(text_of(job, "status"), "failed");
    assert_contains(text_of(job, "error"), "died");
    done(job);
}

static void a_resumed_backup_that_was_published_is_not_made_twice(void **state)
{
    fixture_t *f = *state;
    char id[BK_JOB_ID];
    json_t *job = do_job(f, BK_JOB_BACKUP, NULL, "completed");
    bk_strcpy(id, sizeof id, text_of(job, "id"));
    done(job);
    close_engine(f);
    /* As when the process died between the two: published, and still running in the catalog. */
    sqlite3 *db = open_db(f, "base/catalog.db");
    sql(db, "UPDATE jobs SET status = 1, result = NULL, completed = NULL");
    sqlite3_close(db);
    open_engine(f);
    char again[BK_JOB_ID];
    assert_int_equal(run_next(f, again), BK_STATUS_COMPLETED);
    job = job_of(f, id);
    assert_string_equal(text_of(job, "backup_id"), id);
    assert_int_equal(int_of(job, "stats.files"), 4);
    done(job);
    json_t *answer = list(f);
    assert_int_equal(int_of(answer, "total"), 1);
    json_decref(answer);
}

static void without_upload_the_next_backup_ships_it(void **state)
{
    fixture_t *f = *state;
    json_t *job = do_job(f, BK_JOB_BACKUP, "{\"upload_to_storage\": false}", "completed");
    char id[BK_BACKUP_ID], next[BK_BACKUP_ID];
    bk_strcpy(id, sizeof id, text_of(job, "backup_id"));
    done(job);
    json_t *answer = list(f);
    assert_int_equal(int_of(answer, "total"), 1);
    json_decref(answer);
    back_up(f, "incremental", next);
    bk_err_t err = {0};
    OK(bk_remove_tree(at(f, "base/spool"), false, &err), &err);
    OK(bk_engine_sync(f->engine, NULL, &err), &err);
    answer = list(f);
    assert_int_equal(int_of(answer, "total"), 2);
    assert_string_equal(text_of(answer, "backups.1.backup_id"), id);
    json_decref(answer);
}

static void databases_and_journals_inside_a_tree_are_left_out(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    free(f->set.files[0].path);
    f->set.files[0].path = text_at(f, "app");
    OK(bk_set_check(&f->set, true, NULL, &f->err), &f->err);
    sqlite3 *db = open_db(f, "app/app.db"); /* makes -wal and -shm */
    sql(db, "INSERT INTO jobs(name) VALUES('x')");
    put(f, "app/app.db-wal2", "some other file");
    back_up(f, "full", id);
    sqlite3_close(db);
    char body[1200];
    bk_fmt(body, sizeof body,
           "{\"recovery_type\": \"files\", \"paths\": [\"uploads\"], \"target_directory\": \"%s\"}",
           at(f, "restored/x"));
    done(do_job(f, BK_JOB_RECOVERY, body, "completed"));
    assert_true(there(f, "restored/x/uploads/uploads/a.wav"));
    assert_true(there(f, "restored/x/uploads/app.db-wal2"));
    assert_false(there(f, "restored/x/uploads/app.db"));
    assert_false(there(f, "restored/x/uploads/app.db-wal"));
    assert_false(there(f, "restored/x/uploads/app.db-shm"));
}

/* A passphrase is dear to open: once for an engine, and anew after a reload.  What was kept opens no
 * repository without encryption. */
static void a_passphrase_is_opened_once(void **state)
{
    (void)state;
    char id[BK_BACKUP_ID];
    fixture_t *f = fixture_new(false);
    put(f, "pass", "correct horse battery staple\n");
    assert_int_equal(chmod(at(f, "pass"), 0600), 0);
    char *pass = f->set.passphrase_file = text_at(f, "pass");
    open_engine(f);
    back_up(f, "full", id);
    close_engine(f);
    assert_int_equal(rename(at(f, "storage"), at(f, "sealed")), 0);
    assert_int_equal(rename(at(f, "base"), at(f, "sealed.base")), 0);
    f->set.passphrase_file = NULL;
    open_engine(f);
    back_up(f, "full", id);
    close_engine(f);
    assert_int_equal(rename(at(f, "storage"), at(f, "plain")), 0);
    assert_int_equal(rename(at(f, "base"), at(f, "plain.base")), 0);
    assert_int_equal(rename(at(f, "sealed"), at(f, "storage")), 0);
    assert_int_equal(rename(at(f, "sealed.base"), at(f, "base")), 0);
    f->set.passphrase_file = pass;
    open_engine(f);
    back_up(f, "incremental", id);
    assert_int_equal(rename(at(f, "pass"), at(f, "aside")), 0);
    back_up(f, "incremental", id);
    assert_int_equal(rename(at(f, "aside"), at(f, "pass")), 0);
    assert_int_equal(rename(at(f, "storage"), at(f, "sealed")), 0);
    assert_int_equal(rename(at(f, "plain"), at(f, "storage")), 0);
    json_t *job = do_job(f, BK_JOB_BACKUP, "{}", "failed");
    assert_contains(text_of(job, "error"), "not encrypted");
    done(job);
    assert_int_equal(rename(at(f, "storage"), at(f, "plain")), 0);
    assert_int_equal(rename(at(f, "sealed"), at(f, "storage")), 0);
    close_engine(f);
    open_engine(f);
    assert_int_equal(rename(at(f, "pass"), at(f, "aside")), 0);
    done(do_job(f, BK_JOB_BACKUP, "{}", "failed"));
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(a_full_backup_reports_what_it_holds),
        T(an_incremental_backup_reads_only_what_changed),
        T(two_backups_in_one_second_are_two),
        T(an_id_that_another_host_used_gets_a_suffix),
        T(an_id_that_is_taken_meanwhile_gets_a_suffix),
        T(a_missing_database_fails_the_backup),
        T(a_vanished_tree_fails_the_backup),
        T(an_unreadable_file_is_a_warning_with_its_name),
        T(a_directory_that_cannot_be_written_is_named),
        cmocka_unit_test(a_passphrase_is_opened_once),
        cmocka_unit_test_setup_teardown(the_wrong_key_is_told, set_up_encrypted, tear_down),
        cmocka_unit_test_setup_teardown(a_repository_with_a_key_is_not_opened_without,
                                        set_up_encrypted, tear_down),
        T(too_little_space_is_refused_before_anything_is_read),
        T(nothing_of_a_canceled_backup_is_listed),
        T(a_repository_that_vanished_is_not_begun_anew),
        T(an_interrupted_backup_is_queued_again_and_completes),
        T(a_backup_whose_process_died_is_queued_again),
        T(a_job_that_always_kills_its_process_ends),
        T(a_resumed_backup_that_was_published_is_not_made_twice),
        T(without_upload_the_next_backup_ships_it),
        T(without_compression_contents_are_stored_as_they_are),
        T(gzip_goes_there_and_back),
        T(databases_and_journals_inside_a_tree_are_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
