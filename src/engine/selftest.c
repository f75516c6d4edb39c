/*
 * engine/selftest.c: would a backup and a recovery work, now?  Reads the sources, writes one small
 * object to the storage and removes it, and recovers a sample of the newest backup into scratch/.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "crypto/hash.h"
#include "engine/checks.h"
#include "engine/recover.h"
#include "repo/tree.h"
#include "sqlite/source.h"

#define DATABASE_MAX (256u << 20) /* larger ones take too long for a test */
#define SAMPLE_FILES 8u
#define SAMPLE_BYTES (4u << 20)
#define SAMPLE_DIRS  64u /* that are looked into */

static bool is_stop(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED;
}

/* The first failure is the job's; the others are in the checks. */
static void keep_first(bk_rc_t *first, bk_rc_t rc, const bk_err_t *why, bk_err_t *err)
{
    if (rc == BK_OK || (*first != BK_OK && !is_stop(rc)))
        return;
    *first = rc;
    if (err != NULL)
        *err = *why;
}

/* --- the sources --- */

static bk_rc_t test_sources(bk_job_t *job, json_t *checks, bk_err_t *err)
{
    const bk_set_t *set = job->engine->set;
    bk_rc_t first = BK_OK;
    char name[128];
    for (size_t i = 0; i < set->db_count; i++) {
        bk_db_source_t *source = NULL;
        bk_err_t why = {0};
        bk_fmt(name, sizeof name, "read database %s", set->dbs[i].name);
        bk_rc_t rc = bk_db_source_open(set->dbs[i].path, (unsigned)set->dbs[i].busy_timeout,
                                       job->ctl, &source, &why);
        if (rc == BK_OK && set->dbs[i].wal != BK_WAL_OFF &&
            strcmp(bk_db_source_info(source)->journal, "wal") != 0)
            bk_ctl_note(job->ctl,
                        "database %s: journal_mode is %s: commits wait while a backup reads; run "
                        "\"PRAGMA journal_mode=WAL\" once",
                        set->dbs[i].name, bk_db_source_info(source)->journal);
        bk_db_source_close(source);
        bk_add_result(checks, name, &why, "ok");
        keep_first(&first, rc, &why, err);
    }
    for (size_t i = 0; i < set->files_count; i++) {
        bk_root_t *root = NULL;
        bk_err_t why = {0};
        bk_fmt(name, sizeof name, "read files %s", set->files[i].name);
        bk_rc_t rc =
            bk_root_open_helped(set->files[i].path, false, atomic_load(&job->engine->client),
                                BK_WIRE_MAY_READ, job->ctl, &root, &why);
        bk_root_close(root);
        bk_add_result(checks, name, &why, "ok");
        keep_first(&first, rc, &why, err);
    }
    return first;
}

/* --- the helper --- */

/* Not a failure of the test: workers go on with their own rights, and reading says how far. */
static void test_helper(bk_job_t *job, json_t *checks)
{
    bk_engine_helper_t helper;
    char text[128];
    bk_engine_get_helper(job->engine, &helper);
    switch (helper.state) {
    case BK_ENGINE_HELPER_OFF:
        bk_add_check(checks, "privileged helper", "skip",
                     helper.text[0] != '\0' ? helper.text : "workers use their own rights");
        return;
    case BK_ENGINE_HELPER_ACTIVE:
        bk_fmt(text, sizeof text, "version %s, process %d", helper.release, helper.pid);
        bk_add_check(checks, "privileged helper", "pass", text);
        return;
    case BK_ENGINE_HELPER_STANDBY:
        bk_add_check(checks, "privileged helper", "skip", helper.text);
        return;
    case BK_ENGINE_HELPER_DOWN:
        bk_add_check(checks, "privileged helper", "fail", helper.text);
        bk_ctl_note(job->ctl, "privileged helper: %s", helper.text);
    }
}

/* --- the storage --- */

typedef struct {
    const char *name;
    bool found;
} seek_t;

static bk_rc_t seek_name(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    seek_t *seek = arg;
    (void)err;
    seek->found = seek->found || strcmp(item->name, seek->name) == 0;
    return BK_OK;
}

static bk_rc_t test_storage(bk_storage_t *storage, bk_ctl_t *ctl, double *ms, bk_err_t *err)
{
    char name[BK_STORAGE_NAME], ulid[BK_ULID_LEN + 1], data[4096], back[sizeof data];
    size_t got = 0;
    bk_ulid(ulid);
    for (char *p = ulid; *p != '\0'; p++)
        *p = *p >= 'A' && *p <= 'Z' ? (char)(*p - 'A' + 'a') : *p;
    bk_fmt(name, sizeof name, "test/%s", ulid);
    bk_random(data, sizeof data);
    seek_t seek = {.name = name};
    int64_t start = bk_mono();
    bk_rc_t rc = bk_storage_put(storage, name, data, sizeof data, true, ctl, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_storage_get(storage, name, 0, sizeof back, back, &got, ctl, err);
    *ms = (double)(bk_mono() - start) / BK_MS;
    if (rc == BK_OK && (got != sizeof data || memcmp(data, back, sizeof data) != 0))
        rc = bk_err_set(err, BK_STORAGE, "the storage gave back other bytes than were written");
    if (rc == BK_OK)
        rc = bk_storage_list(storage, "test/", seek_name, &seek, ctl, err);
    if (rc == BK_OK && !seek.found)
        rc = bk_err_set(err, BK_STORAGE, "the storage does not list what was written");
    bk_err_t removal = {0};
    bk_rc_t removed = bk_storage_remove(storage, name, NULL, &removal);
    if (rc == BK_OK && removed != BK_OK) {
        rc = removed;
        if (err != NULL)
            *err = removal;
    }
    return rc;
}

/* --- recovery of a sample --- */

typedef struct {
    bk_opened_t *opened;
    bk_ctl_t *ctl;
    json_t *paths; /* "TREE/rest" of the files to recover */
    uint64_t bytes;
    unsigned dirs; /* still to be looked into */
} sample_t;

static bool sample_full(const sample_t *sample)
{
    return json_array_size(sample->paths) >= SAMPLE_FILES || sample->dirs == 0;
}

static void pick(sample_t *sample, const char *path, const bk_entry_t *entry)
{
    if (entry->type != BK_ENTRY_FILE || sample_full(sample) ||
        entry->size > SAMPLE_BYTES - sample->bytes)
        return;
    sample->bytes += entry->size;
    json_array_append_new(sample->paths, bk_json_name(path, strlen(path)));
}

/* The first small files of a tree, directories below after the files; as deep as dirs allows. */
static bk_rc_t sample_directory(sample_t *sample, const char *path, const bk_id_t *root,
                                bk_err_t *err)
{
    bk_tree_iter_t *iter = NULL;
    const bk_entry_t *entry = NULL;
    if (sample_full(sample))
        return BK_OK;
    sample->dirs--;
    bk_rc_t rc = bk_tree_iter_open(sample->opened->repo, root, sample->ctl, &iter, err);
    while (rc == BK_OK && !sample_full(sample)) {
        char below[PATH_MAX];
        rc = bk_tree_iter_next(iter, &entry, err);
        if (rc != BK_OK || entry == NULL)
            break;
        if (!bk_fmt(below, sizeof below, "%s/%.*s", path, (int)entry->name_len,
                    (const char *)entry->name))
            continue;
        if (entry->type == BK_ENTRY_DIR) {
            bk_id_t child = entry->child;
            rc = sample_directory(sample, below, &child, err);
        } else {
            pick(sample, below, entry);
        }
    }
    bk_tree_iter_close(iter);
    return rc;
}

static bk_rc_t recover_sample(bk_job_t *job, bk_opened_t *opened, const bk_snapshot_t *s,
                              json_t *facts, bk_err_t *err)
{
    char dir[PATH_MAX];
    bk_root_t *root = NULL;
    sample_t sample = {
        .opened = opened, .ctl = job->ctl, .paths = json_array(), .dirs = SAMPLE_DIRS};
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < s->tree_count && rc == BK_OK; i++)
        rc = sample_directory(&sample, s->trees[i].name, &s->trees[i].root, err);
    if (rc == BK_OK && json_array_size(sample.paths) > 0) {
        bk_recover_options_t options = {
            .snapshot = s, .files = true, .paths = sample.paths, .job = job->id};
        bk_fmt(dir, sizeof dir, "%s/%s-files", job->engine->scratch_dir, job->id);
        rc = bk_root_open(dir, true, &root, err);
        if (rc == BK_OK)
            rc = bk_recover_into(opened->repo, &options, root, "", job->team, facts, job->ctl, err);
        bk_root_close(root);
        bk_remove_tree(dir, true, NULL);
    }
    const json_t *failed = json_array_get(json_object_get(facts, "files_failed"), 0);
    if (rc == BK_OK && failed != NULL)
        rc = bk_err_set(err, BK_CORRUPT, "%s: %s",
                        json_string_value(json_object_get(failed, "path")),
                        json_string_value(json_object_get(failed, "error")));
    json_object_set(facts, "sample", sample.paths);
    json_decref(sample.paths);
    return rc;
}

static bk_rc_t test_recovery(bk_job_t *job, bk_opened_t *opened, json_t *checks, json_t *result,
                             bk_err_t *err)
{
    bk_snapshot_list_t list = {0};
    const bk_snapshot_t *s = NULL;
    bk_err_t why = {0};
    json_t *dbs = json_object(), *files = json_object();
    bk_rc_t first = bk_snapshot_list(opened->repo, job->engine->cache_dir, job->ctl, &list, err);
    if (first == BK_OK && bk_point_backup(&list, job->engine->set->name, NULL, &s, NULL) != BK_OK) {
        bk_add_check(checks, "recover a sample", "skip", "there is no backup yet");
        bk_ctl_note(job->ctl, "there is no backup yet, so no recovery could be tested");
    } else if (first == BK_OK) {
        json_object_set_new(result, "source_backup", json_string(s->backup_id));
        bk_point_t point = {.snapshot = s, .repo = opened->repo, .ctl = job->ctl};
        first = bk_prove_databases(job, &point, DATABASE_MAX, checks, dbs, err);
        json_object_set_new(dbs, "success", json_boolean(first == BK_OK));
        bk_rc_t rc = is_stop(first) ? first : recover_sample(job, opened, s, files, &why);
        if (!is_stop(rc) && s->tree_count > 0)
            bk_add_result(checks, "recover files", &why, "a sample was recovered");
        json_object_set_new(files, "success", json_boolean(rc == BK_OK));
        keep_first(&first, rc, &why, err);
    }
    json_object_set_new(result, "timestamp", bk_json_time(bk_now()));
    json_object_set_new(result, "test_database_recovery", dbs);
    json_object_set_new(result, "test_file_recovery", files);
    json_object_set_new(result, "test_validation",
                        json_pack("{sb}", "valid", (int)(first == BK_OK)));
    json_object_set_new(result, "success", json_boolean(first == BK_OK));
    bk_snapshot_list_free(&list);
    return first;
}

/* --- the whole --- */

static json_t *error_text(const bk_err_t *why)
{
    return why->rc == BK_OK ? json_null() : bk_json_name(why->text, strlen(why->text));
}

/* The road of a backup up to its first object: sources, space, repository and key. */
static bk_rc_t test_backup(bk_job_t *job, bk_opened_t *opened, json_t *checks, json_t *result,
                           bk_err_t *err)
{
    bk_err_t why = {0}, opening = {0};
    bk_rc_t first = test_sources(job, checks, err);
    bk_rc_t rc = bk_engine_check_space(job->engine, &why);
    bk_add_result(checks, "free space", &why, "more than min_free");
    keep_first(&first, rc, &why, err);
    /* A new installation gets its repository here, so that the key is tested, too. */
    rc = bk_engine_open_repo(job->engine, true, job->ctl, opened, &opening);
    bk_add_result(checks, "repository and key", &opening, "opened");
    keep_first(&first, rc, &opening, err);
    json_t *facts = json_pack("{sb sn so}", "success", (int)(first == BK_OK), "operation_id",
                              "error", first == BK_OK ? json_null() : error_text(err));
    json_object_set_new(result, "backup_test", facts);
    return first;
}

bk_rc_t bk_job_test(bk_job_t *job, bk_err_t *err)
{
    const bk_storage_config_t *config = &job->engine->set->storages[0];
    json_t *checks = json_array(), *result = json_object(), *recovery = json_object();
    bk_opened_t opened = {0};
    bk_storage_t *storage = NULL;
    bk_err_t first_err = {0}, why = {0};
    double ms = 0;
    json_object_set_new(job->result, "test_result", result);
    json_object_set_new(result, "timestamp", bk_json_time(bk_now()));
    json_object_set_new(result, "checks", checks);
    json_object_set_new(result, "recovery_test", recovery);
    bk_ctl_phase(job->ctl, "test");
    test_helper(job, checks);
    bk_rc_t first = test_backup(job, &opened, checks, result, &first_err);
    /* Whatever the key says: a storage that works is one thing less to look at. */
    bk_rc_t rc = bk_storage_open(config, &storage, &why);
    if (rc == BK_OK)
        rc = test_storage(storage, job->ctl, &ms, &why);
    bk_storage_close(storage);
    bk_add_result(checks, "storage: write, read, list, delete", &why, "ok");
    keep_first(&first, rc, &why, &first_err);
    json_object_set_new(result, "storage_test",
                        json_pack("[{ss ss sb sf so}]", "backend_type", config->driver, "name",
                                  config->name, "accessible", (int)(why.rc == BK_OK), "latency_ms",
                                  ms, "error", error_text(&why)));
    if (opened.repo != NULL) {
        bk_err_t recovering = {0};
        rc = test_recovery(job, &opened, checks, recovery, &recovering);
        keep_first(&first, rc, &recovering, &first_err);
    } else {
        json_object_set_new(recovery, "success", json_false());
    }
    bk_engine_close_repo(&opened);
    json_object_set_new(result, "overall_success", json_boolean(first == BK_OK));
    if (first != BK_OK && err != NULL)
        *err = first_err;
    return first;
}
