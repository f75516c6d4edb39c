/*
 * engine/checks.c: the jobs that only look: validate-recovery, verify, and the self-test.  They
 * write to scratch/ and, in the self-test, one small object to the storage, which they remove.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/engine_private.h"
#include "engine/recover.h"
#include "repo/verify.h"
#include "sqlite/dump.h"

#define FINDINGS_SHOWN 100

static void add_check(json_t *checks, const char *name, bk_rc_t rc, const char *detail)
{
    json_array_append_new(checks, json_pack("{ss ss so}", "name", name, "status",
                                            rc == BK_OK ? "pass" : "fail", "detail",
                                            bk_json_name(detail, strlen(detail))));
}

static bool is_stop(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED;
}

/* --- verify --- */

static void add_finding(void *arg, const char *object, const char *line)
{
    json_t *findings = arg;
    (void)object;
    if (json_array_size(findings) < FINDINGS_SHOWN)
        json_array_append_new(findings, bk_json_name(line, strlen(line)));
}

static bk_rc_t verify(bk_job_t *job, bk_opened_t *opened, unsigned level, json_t *result,
                      bk_err_t *err)
{
    bk_verify_result_t counts;
    json_t *findings = json_array();
    bk_rc_t rc =
        bk_verify(opened->repo, level, job->team, add_finding, findings, &counts, job->ctl, err);
    if (rc == BK_OK) {
        json_object_set_new(result, "level", json_integer((json_int_t)level));
        json_object_set_new(result, "objects", json_integer((json_int_t)counts.objects));
        json_object_set_new(result, "bytes", json_integer((json_int_t)counts.bytes));
        json_object_set_new(result, "chunks", json_integer((json_int_t)counts.chunks));
        json_object_set_new(result, "findings_total", json_integer((json_int_t)counts.findings));
        json_object_set(result, "findings", findings);
        if (counts.findings > 0) {
            const char *first = json_string_value(json_array_get(findings, 0));
            rc = bk_err_set(err, BK_CORRUPT, "%llu findings of damage, the first: %s",
                            (unsigned long long)counts.findings, first != NULL ? first : "?");
        }
    }
    json_decref(findings);
    return rc;
}

/* One snapshot's databases through scratch: materialised, digested, checked, removed. */
static bk_rc_t prove_databases(bk_job_t *job, bk_opened_t *opened, const bk_snapshot_t *s,
                               json_t *checks, bk_err_t *err)
{
    bk_rc_t first = BK_OK;
    for (size_t i = 0; i < s->db_count; i++) {
        char image[PATH_MAX], name[128];
        bk_err_t why = {0};
        bk_fmt(image, sizeof image, "%s/%s-%s.db", job->engine->scratch_dir, job->id,
               s->dbs[i].name);
        bk_fmt(name, sizeof name, "database %s", s->dbs[i].name);
        bk_rc_t rc =
            bk_db_materialise(opened->repo, &s->dbs[i], image, true, job->team, job->ctl, &why);
        unlink(image);
        if (is_stop(rc)) {
            if (err != NULL)
                *err = why;
            return rc;
        }
        add_check(checks, name, rc,
                  rc == BK_OK ? "digest and SQLite's integrity check passed" : why.text);
        if (rc != BK_OK && first == BK_OK) {
            first = rc;
            if (err != NULL)
                *err = why;
        }
    }
    return first;
}

bk_rc_t bk_job_verify(bk_job_t *job, bk_err_t *err)
{
    const json_t *wanted = json_object_get(job->body, "level");
    unsigned level =
        wanted != NULL && json_is_integer(wanted) ? (unsigned)json_integer_value(wanted) : 1;
    json_t *result = json_object(), *checks = json_array();
    bk_opened_t opened;
    bk_rc_t rc = bk_engine_open_repo(job->engine, false, job->ctl, &opened, err);
    json_object_set_new(job->result, "verify_result", result);
    if (rc == BK_OK) {
        rc = verify(job, &opened, level > 2 ? 2 : level, result, err);
        if (rc == BK_OK && level == 3) {
            bk_snapshot_list_t list;
            rc = bk_snapshot_list(opened.repo, job->engine->cache_dir, job->ctl, &list, err);
            for (size_t i = 0; rc == BK_OK && i < list.count; i++)
                rc = prove_databases(job, &opened, &list.items[i], checks, err);
            if (rc == BK_OK)
                bk_snapshot_list_free(&list);
            json_object_set(result, "checks", checks);
            json_object_set_new(result, "level", json_integer(3));
        }
        bk_engine_close_repo(&opened);
    }
    json_decref(checks);
    if (!is_stop(rc)) {
        char now[BK_TIME_TEXT];
        bk_time_format(now, bk_now());
        json_t *value =
            json_pack("{ss sb si}", "time", now, "good", (int)(rc == BK_OK), "level", (int)level);
        bk_catalog_set_value(job->engine->catalog, "verify", value, NULL);
        json_decref(value);
    }
    return rc;
}

/* --- validate-recovery --- */

static json_t *paths_valid(const bk_set_t *set, json_t *checks, bool *valid)
{
    json_t *missing = json_array();
    size_t checked = 0;
    for (size_t i = 0; i < set->db_count + set->files_count; i++) {
        const char *path =
            i < set->db_count ? set->dbs[i].path : set->files[i - set->db_count].path;
        checked++;
        if (access(path, R_OK) != 0)
            json_array_append_new(missing, bk_json_name(path, strlen(path)));
    }
    *valid = json_array_size(missing) == 0;
    add_check(checks, "application's files", *valid ? BK_OK : BK_NOT_FOUND,
              *valid ? "every configured path can be read"
                     : "a configured path cannot be read now");
    return json_pack("{sI sI so sb}", "critical_paths_checked", (json_int_t)checked,
                     "critical_paths_valid", (json_int_t)(checked - json_array_size(missing)),
                     "missing_paths", missing, "valid", (int)*valid);
}

static bk_rc_t validate(bk_job_t *job, bk_opened_t *opened, const bk_snapshot_t *s, json_t *result,
                        bk_err_t *err)
{
    json_t *checks = json_array(), *deep = json_object();
    bool paths = true, wants_deep = json_is_true(json_object_get(job->body, "deep"));
    uint64_t files = 0;
    json_object_set_new(result, "backup_id", json_string(s->backup_id));
    json_object_set_new(result, "checks", checks);
    bk_ctl_phase(job->ctl, "database");
    bk_rc_t rc = prove_databases(job, opened, s, checks, err);
    bool dbs = rc == BK_OK;
    if (is_stop(rc))
        goto done;
    bk_err_t why = {0};
    bk_rc_t found = verify(job, opened, wants_deep ? 2 : 0, deep, &why);
    if (is_stop(found)) {
        rc = found;
        if (err != NULL)
            *err = why;
        goto done;
    }
    add_check(checks, wants_deep ? "every chunk on the storage" : "packs on the storage", found,
              found == BK_OK ? "all there" : why.text);
    if (rc == BK_OK && found != BK_OK) {
        rc = found;
        if (err != NULL)
            *err = why;
    }
    for (size_t i = 0; i < s->tree_count; i++)
        files += s->trees[i].files;
    json_object_set_new(result, "database_validation",
                        json_pack("{sI ss sb}", "databases", (json_int_t)s->db_count,
                                  "integrity_check", dbs ? "ok" : "failed", "valid", (int)dbs));
    json_object_set_new(result, "file_validation",
                        json_pack("{sI sI sb sb}", "files_checked", (json_int_t)files,
                                  "files_valid", (json_int_t)(found == BK_OK ? files : 0),
                                  "checksum_verified", (int)(wants_deep && found == BK_OK), "valid",
                                  (int)(found == BK_OK)));
    json_object_set_new(result, "system_validation", paths_valid(job->engine->set, checks, &paths));
    json_object_set_new(result, "valid", json_boolean(rc == BK_OK));
    if (!paths)
        bk_ctl_note(job->ctl, "a configured path of the application cannot be read now");
done:
    json_decref(deep);
    return rc;
}

bk_rc_t bk_job_validate(bk_job_t *job, bk_err_t *err)
{
    const char *id = json_string_value(json_object_get(job->body, "backup_id"));
    const bk_snapshot_t *snapshot;
    bk_snapshot_list_t list = {0};
    bk_opened_t opened;
    json_t *result = json_object();
    json_object_set_new(job->result, "validation_result", result);
    json_object_set_new(result, "timestamp", bk_json_time(bk_now()));
    json_object_set_new(result, "valid", json_false());
    bk_rc_t rc = bk_engine_open_repo(job->engine, false, job->ctl, &opened, err);
    if (rc == BK_OK) {
        rc = bk_snapshot_list(opened.repo, job->engine->cache_dir, job->ctl, &list, err);
        if (rc == BK_OK)
            rc = bk_engine_find(job->engine, &list, id, &snapshot, err);
        if (rc == BK_OK)
            rc = validate(job, &opened, snapshot, result, err);
        bk_snapshot_list_free(&list);
        bk_engine_close_repo(&opened);
    }
    return rc;
}

/* --- self-test --- */

typedef struct {
    const char *prefix;
    bool found;
} seek_t;

static bk_rc_t seek_name(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    seek_t *seek = arg;
    (void)err;
    seek->found = seek->found || strcmp(item->name, seek->prefix) == 0;
    return BK_OK;
}

static bk_rc_t test_storage(bk_storage_t *storage, bk_ctl_t *ctl, double *ms, bk_err_t *err)
{
    char name[BK_STORAGE_NAME], ulid[BK_ULID_LEN + 1], data[4096], back[sizeof data];
    size_t got = 0;
    bk_ulid(ulid);
    bk_fmt(name, sizeof name, "test/%s", ulid);
    bk_random(data, sizeof data);
    seek_t seek = {.prefix = name};
    int64_t start = bk_mono();
    bk_rc_t rc = bk_storage_put(storage, name, data, sizeof data, true, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_get(storage, name, 0, sizeof back, back, &got, ctl, err);
    *ms = (double)(bk_mono() - start) / BK_MS;
    if (rc == BK_OK && (got != sizeof data || memcmp(data, back, sizeof data) != 0))
        rc = bk_err_set(err, BK_STORAGE, "the storage gave back other bytes than were written");
    if (rc == BK_OK)
        rc = bk_storage_list(storage, "test/", seek_name, &seek, ctl, err);
    if (rc == BK_OK && !seek.found)
        rc = bk_err_set(err, BK_STORAGE, "the storage does not list what was written");
    bk_err_t ignored = {0};
    bk_rc_t removed = bk_storage_remove(storage, name, NULL, rc == BK_OK ? err : &ignored);
    return rc != BK_OK ? rc : removed;
}

/* The real road, small: read the databases, and recover the newest backup's smallest part into
 * scratch. */
static bk_rc_t test_recovery(bk_job_t *job, bk_opened_t *opened, json_t *checks, bk_err_t *err)
{
    bk_snapshot_list_t list = {0};
    const bk_snapshot_t *snapshot;
    bk_rc_t rc = bk_snapshot_list(opened->repo, job->engine->cache_dir, job->ctl, &list, err);
    if (rc == BK_OK && list.count == 0) {
        bk_ctl_note(job->ctl, "there is no backup yet, so no recovery could be tested");
        return BK_OK;
    }
    if (rc == BK_OK)
        rc = bk_engine_find(job->engine, &list, NULL, &snapshot, err);
    if (rc == BK_OK)
        rc = prove_databases(job, opened, snapshot, checks, err);
    bk_snapshot_list_free(&list);
    return rc;
}

static bk_rc_t test_sources(bk_job_t *job, json_t *checks, bk_err_t *err)
{
    const bk_set_t *set = job->engine->set;
    bk_rc_t first = BK_OK;
    for (size_t i = 0; i < set->db_count; i++) {
        bk_db_source_t *source = NULL;
        bk_err_t why = {0};
        char name[128];
        bk_fmt(name, sizeof name, "read database %s", set->dbs[i].name);
        bk_rc_t rc = bk_db_source_open(set->dbs[i].path, 5000, job->ctl, &source, &why);
        bk_db_source_close(source);
        add_check(checks, name, rc, rc == BK_OK ? "ok" : why.text);
        if (rc != BK_OK && first == BK_OK) {
            first = rc;
            if (err != NULL)
                *err = why;
        }
    }
    for (size_t i = 0; i < set->files_count; i++) {
        bool good = access(set->files[i].path, R_OK | X_OK) == 0;
        char name[128];
        bk_fmt(name, sizeof name, "read files %s", set->files[i].name);
        add_check(checks, name, good ? BK_OK : BK_DENIED,
                  good ? "ok" : "the directory cannot be read");
        if (!good && first == BK_OK)
            first = bk_err_set(err, BK_DENIED, "files %s: %s cannot be read by this process",
                               set->files[i].name, set->files[i].path);
    }
    return first;
}

bk_rc_t bk_job_test(bk_job_t *job, bk_err_t *err)
{
    json_t *checks = json_array(), *result = json_object(), *storages = json_array();
    bk_opened_t opened = {0};
    bk_err_t why = {0}, recovery_why = {0};
    double ms = 0;
    json_object_set_new(job->result, "test_result", result);
    bk_rc_t rc = test_sources(job, checks, err);
    /* A self-test of a new installation makes the repository, so that the key is tested too. */
    bk_rc_t opening = bk_engine_open_repo(job->engine, true, job->ctl, &opened, &why);
    add_check(checks, "repository and key", opening, opening == BK_OK ? "ok" : why.text);
    bk_rc_t storage = opening, recovery = opening;
    if (opening == BK_OK) {
        storage = test_storage(opened.storage, job->ctl, &ms, &why);
        add_check(checks, "storage: write, read, list, delete", storage,
                  storage == BK_OK ? "ok" : why.text);
        recovery = test_recovery(job, &opened, checks, &recovery_why);
        bk_engine_close_repo(&opened);
    }
    json_array_append_new(
        storages,
        json_pack("{ss ss sb sf so}", "backend_type", job->engine->set->storages[0].driver, "name",
                  job->engine->set->storages[0].name, "accessible", (int)(storage == BK_OK),
                  "latency_ms", ms, "error",
                  storage == BK_OK ? json_null() : bk_json_name(why.text, strlen(why.text))));
    if (rc == BK_OK && storage != BK_OK) {
        rc = storage;
        if (err != NULL)
            *err = why;
    }
    if (rc == BK_OK && recovery != BK_OK) {
        rc = recovery;
        if (err != NULL)
            *err = recovery_why;
    }
    json_object_set_new(result, "timestamp", bk_json_time(bk_now()));
    json_object_set_new(result, "checks", checks);
    json_object_set_new(result, "storage_test", storages);
    json_object_set_new(result, "backup_test",
                        json_pack("{sb}", "success", (int)(opening == BK_OK)));
    json_object_set_new(result, "recovery_test",
                        json_pack("{sb}", "success", (int)(recovery == BK_OK)));
    json_object_set_new(result, "overall_success", json_boolean(rc == BK_OK));
    return rc;
}
