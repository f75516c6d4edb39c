/*
 * engine/report.c: what the API answers without running a job: lists, single objects, status,
 * health, and the plan of a dry run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/cleanup.h"
#include "engine/engine_private.h"
#include "repo/session.h"

/* --- the catalog's copy of the snapshots --- */

bk_rc_t bk_engine_sync_from(bk_engine_t *engine, bk_opened_t *opened, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_snapshot_list_t list;
    bk_index_t *index;
    uint64_t chunks = 0, packs = 0, bytes = 0;
    bk_rc_t rc = bk_snapshot_list(opened->repo, engine->cache_dir, ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_catalog_backups_begin(engine->catalog, err);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++) {
        json_t *backup = bk_describe_snapshot(&list.items[i], bk_storage_name(opened->storage));
        rc = backup != NULL ? bk_catalog_backup_put(engine->catalog, backup, err)
                            : bk_err_set(err, BK_NO_MEMORY, "list backups: out of memory");
        json_decref(backup);
    }
    if (rc == BK_OK)
        rc = bk_catalog_backups_end(engine->catalog, err);
    if (rc == BK_OK && (rc = bk_repo_index(opened->repo, ctl, &index, err)) == BK_OK)
        bk_index_totals(index, &chunks, &packs, &bytes);
    json_t *totals =
        json_pack("{sI sI sI sI}", "chunks", (json_int_t)chunks, "packs", (json_int_t)packs,
                  "bytes", (json_int_t)bytes, "damaged_snapshots", (json_int_t)list.damaged);
    if (rc == BK_OK)
        rc = bk_catalog_set_value(engine->catalog, "repository", totals, err);
    json_decref(totals);
    bk_snapshot_list_free(&list);
    return rc;
}

bk_rc_t bk_engine_find(const bk_engine_t *engine, const bk_snapshot_list_t *list, const char *id,
                       const bk_snapshot_t **found, bk_err_t *err)
{
    if (id != NULL && strcmp(id, "latest") != 0)
        return bk_snapshot_find(list, id, found, err);
    for (size_t i = list->count; i-- > 0;) {
        const bk_snapshot_t *s = &list->items[i];
        if (strcmp(s->set, engine->set->name) == 0 && strcmp(s->kind, "safety") != 0) {
            *found = s;
            return BK_OK;
        }
    }
    return bk_err_set(err, BK_NOT_FOUND, "there is no backup of %s yet%s", engine->set->name,
                      list->count > 0 ? "; recover one of the others by its backup_id" : "");
}

/* --- lists --- */

typedef struct {
    const bk_list_filter_t *filter;
    json_t *backups, *legacy_dbs, *legacy_files, *legacy_full;
    uint64_t total;
    bool started; /* behind the cursor */
    char next[BK_BACKUP_ID];
} list_t;

static bool has_text(const json_t *array, const char *text)
{
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)(uintptr_t)array, i,
                       item) if (strcmp(json_string_value(item), text) == 0) return true;
    return false;
}

static bool matches(const bk_list_filter_t *f, const json_t *backup)
{
    int64_t completed = json_integer_value(json_object_get(backup, "completed_ns"));
    if (f->type != NULL && strcmp(f->type, json_string_value(json_object_get(backup, "type"))) != 0)
        return false;
    if (f->tag != NULL && !has_text(json_object_get(backup, "tags"), f->tag))
        return false;
    if (f->storage != NULL && !has_text(json_object_get(backup, "storages"), f->storage))
        return false;
    return (f->since == 0 || completed >= f->since) && (f->until == 0 || completed <= f->until);
}

static void add_legacy(list_t *list, const json_t *backup)
{
    json_t *one = json_pack("{sO sO sO sO sO}", "backup_id", json_object_get(backup, "backup_id"),
                            "size", json_object_get(backup, "size"), "timestamp",
                            json_object_get(backup, "timestamp"), "compressed",
                            json_object_get(backup, "compressed"), "encrypted",
                            json_object_get(backup, "encrypted"));
    bool dbs = json_array_size(json_object_get(backup, "databases")) > 0;
    bool files = json_array_size(json_object_get(backup, "trees")) > 0;
    if (dbs)
        json_array_append(list->legacy_dbs, one);
    if (files)
        json_array_append(list->legacy_files, one);
    if (dbs && files)
        json_array_append(list->legacy_full, one);
    json_decref(one);
}

static bool add_backup(void *arg, json_t *backup)
{
    list_t *list = arg;
    const char *id = json_string_value(json_object_get(backup, "backup_id"));
    if (!matches(list->filter, backup))
        return true;
    list->total++;
    if (!list->started) {
        list->started = strcmp(id, list->filter->cursor) == 0;
        return true;
    }
    if (json_array_size(list->backups) >= list->filter->limit) {
        if (list->next[0] == '\0') {
            const json_t *last = json_array_get(list->backups, json_array_size(list->backups) - 1);
            bk_strcpy(list->next, sizeof list->next,
                      json_string_value(json_object_get(last, "backup_id")));
        }
        return true; /* only counted from here */
    }
    json_object_del(backup, "unreadable");
    json_object_del(backup, "completed_ns");
    json_array_append(list->backups, backup);
    add_legacy(list, backup);
    return true;
}

bk_rc_t bk_engine_list(bk_engine_t *engine, const bk_list_filter_t *filter, json_t **result,
                       bk_err_t *err)
{
    list_t list = {.filter = filter,
                   .backups = json_array(),
                   .legacy_dbs = json_array(),
                   .legacy_files = json_array(),
                   .legacy_full = json_array(),
                   .started = filter->cursor == NULL};
    bk_rc_t rc = bk_catalog_backups(engine->catalog, add_backup, &list, err);
    if (rc == BK_OK && !list.started)
        rc = bk_err_set(err, BK_INVALID,
                        "cursor: there is no such place in the list any more: start again");
    *result = json_pack("{so sI so so s{so s[] so so}}", "timestamp", bk_json_time(bk_now()),
                        "total", (json_int_t)list.total, "next_cursor",
                        list.next[0] != '\0' ? json_string(list.next) : json_null(), "backups",
                        list.backups, "available_backups", "database_backups", list.legacy_dbs,
                        "wal_backups", "file_backups", list.legacy_files, "full_system_backups",
                        list.legacy_full);
    if (rc != BK_OK) {
        json_decref(*result);
        *result = NULL;
    }
    return rc;
}

bk_rc_t bk_engine_backup(bk_engine_t *engine, const char *id, json_t **backup, bk_err_t *err)
{
    bk_rc_t rc = bk_catalog_backup(engine->catalog, id, backup, err);
    if (rc == BK_OK)
        json_object_del(*backup, "completed_ns");
    return rc;
}

bk_rc_t bk_engine_job(bk_engine_t *engine, const char *id, json_t **job, bk_err_t *err)
{
    bk_job_row_t row;
    bk_rc_t rc = bk_catalog_job(engine->catalog, id, &row, err);
    if (rc != BK_OK)
        return rc;
    *job = bk_describe_job(&row, engine->set->name);
    bk_job_row_free(&row);
    return *job != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "job %s: out of memory", id);
}

typedef struct {
    const char *set;
    json_t *jobs;
    unsigned limit;
    int64_t last;
    bool more;
} jobs_t;

static void add_job(void *arg, const bk_job_row_t *row)
{
    jobs_t *jobs = arg;
    if (json_array_size(jobs->jobs) == jobs->limit) {
        jobs->more = true;
        return;
    }
    json_array_append_new(jobs->jobs, bk_describe_job(row, jobs->set));
    jobs->last = row->sequence;
}

bk_rc_t bk_engine_jobs(bk_engine_t *engine, const char *cursor, unsigned limit, json_t **list,
                       bk_err_t *err)
{
    char *end = NULL, next[32];
    uint64_t total = 0;
    int64_t before = cursor != NULL ? strtoll(cursor, &end, 10) : 0;
    if (cursor != NULL && (*end != '\0' || before <= 0))
        return bk_err_set(err, BK_INVALID, "cursor: not one that this list gave");
    jobs_t jobs = {.set = engine->set->name, .jobs = json_array(), .limit = limit};
    bk_rc_t rc = bk_catalog_jobs(engine->catalog, before, limit + 1, add_job, &jobs, &total, err);
    bk_fmt(next, sizeof next, "%lld", (long long)jobs.last);
    *list = json_pack("{so sI so}", "jobs", jobs.jobs, "total", (json_int_t)total, "next_cursor",
                      jobs.more ? json_string(next) : json_null());
    if (rc != BK_OK) {
        json_decref(*list);
        *list = NULL;
    }
    return rc;
}

bk_rc_t bk_engine_plan(bk_engine_t *engine, bk_job_kind_t kind, json_t *body, bk_team_t *team,
                       bk_ctl_t *ctl, json_t **plan, bk_err_t *err)
{
    bk_job_t job = {.engine = engine,
                    .id = "plan",
                    .body = body,
                    .result = json_object(),
                    .team = team,
                    .ctl = ctl};
    bk_rc_t rc = kind == BK_JOB_RECOVERY ? bk_recovery_plan(&job, err)
                 : kind == BK_JOB_CLEANUP
                     ? bk_cleanup_run(&job, true, job.result, err)
                     : bk_err_set(err, BK_INVALID, "only recoveries and cleanups have a dry run");
    if (rc == BK_OK)
        *plan = job.result;
    else
        json_decref(job.result);
    return rc;
}

/* --- status --- */

typedef struct {
    uint64_t total, full, with_db, with_files, size, stored, db_size, files_size, db_stored;
    json_t *last_full, *last_incremental, *last_db; /* times */
    int64_t newest;                                 /* completed, ns, not of a safety backup */
    uint64_t files;                                 /* of the newest */
    bool have_newest;
} summary_t;

static bool summarise(void *arg, json_t *backup)
{
    summary_t *s = arg;
    const char *type = json_string_value(json_object_get(backup, "type"));
    json_t *completed = json_object_get(backup, "completed");
    uint64_t stored = (uint64_t)json_integer_value(json_object_get(backup, "stored_size"));
    size_t i;
    json_t *item;
    bool safety = strcmp(type, "safety") == 0;
    s->total++;
    s->size += (uint64_t)json_integer_value(json_object_get(backup, "size"));
    s->stored += stored;
    if (strcmp(type, "full") == 0) {
        s->full++;
        if (s->last_full == NULL)
            s->last_full = json_incref(completed);
    } else if (!safety && s->last_incremental == NULL) {
        s->last_incremental = json_incref(completed);
    }
    if (!safety && !s->have_newest) {
        s->have_newest = true;
        s->newest = json_integer_value(json_object_get(backup, "completed_ns"));
        s->files = (uint64_t)json_integer_value(json_object_get(backup, "files"));
    }
    if (json_array_size(json_object_get(backup, "databases")) > 0) {
        s->with_db++;
        if (s->last_db == NULL)
            s->last_db = json_incref(completed);
    }
    json_array_foreach(json_object_get(backup, "databases"), i, item) s->db_size +=
        (uint64_t)json_integer_value(json_object_get(item, "size"));
    json_array_foreach(json_object_get(backup, "trees"), i, item) s->files_size +=
        (uint64_t)json_integer_value(json_object_get(item, "size"));
    return true;
}

static void free_summary(summary_t *s)
{
    json_decref(s->last_full);
    json_decref(s->last_incremental);
    json_decref(s->last_db);
}

static json_t *or_null(json_t *value)
{
    return value != NULL ? json_incref(value) : json_null();
}

static json_t *database_status(const bk_engine_t *engine, const summary_t *s)
{
    const bk_set_t *set = engine->set;
    char wal[PATH_MAX];
    struct stat st;
    const char *path = set->db_count > 0 ? set->dbs[0].path : "";
    bk_fmt(wal, sizeof wal, "%s-wal", path);
    return json_pack(
        "{so sb sb sI sI sI sI so so so}", "database_path", bk_json_name(path, strlen(path)),
        "database_exists", (int)(set->db_count > 0 && stat(path, &st) == 0), "wal_mode_enabled",
        (int)(set->db_count > 0 && stat(wal, &st) == 0), "total_backups", (json_int_t)s->with_db,
        "full_backups", (json_int_t)s->full, "wal_backups", (json_int_t)0, "total_backup_size",
        (json_int_t)s->db_size, "last_full_backup", or_null(s->last_db), "last_wal_backup",
        json_null(), "backup_directory", bk_json_name(set->base_dir, strlen(set->base_dir)));
}

static json_t *files_status(const bk_engine_t *engine, const summary_t *s, const json_t *repository)
{
    const bk_set_t *set = engine->set;
    json_t *directories = json_array();
    uint64_t stored = (uint64_t)json_integer_value(json_object_get(repository, "bytes"));
    double efficiency = s->size > stored && s->size > 0 ? 1 - (double)stored / (double)s->size : 0;
    for (size_t i = 0; i < set->files_count; i++)
        json_array_append_new(directories,
                              bk_json_name(set->files[i].path, strlen(set->files[i].path)));
    return json_pack(
        "{so sb sI sI si sI sI sI sf so}", "monitored_directories", directories,
        "realtime_monitoring_enabled", 0, "total_files_tracked", (json_int_t)s->files,
        "unique_content_items", json_integer_value(json_object_get(repository, "chunks")),
        "backup_queue_size", 0, "total_original_size", (json_int_t)s->files_size,
        "total_backup_size", (json_int_t)stored, "deduplication_saved",
        (json_int_t)(s->size > stored ? s->size - stored : 0), "storage_efficiency", efficiency,
        "backup_directory", bk_json_name(set->base_dir, strlen(set->base_dir)));
}

static json_t *storages_status(const bk_engine_t *engine, const json_t *repository)
{
    const bk_storage_config_t *storage = &engine->set->storages[0];
    const char *path = bk_storage_config_get(storage, "path");
    struct statvfs fs;
    bool local = path != NULL && strcmp(storage->driver, "local") == 0;
    json_t *one =
        json_pack("{ss ss sb sI sI}", "backend_type", storage->driver, "name", storage->name,
                  "accessible", (int)(!local || access(path, R_OK | W_OK | X_OK) == 0),
                  "total_size", json_integer_value(json_object_get(repository, "bytes")),
                  "pack_count", json_integer_value(json_object_get(repository, "packs")));
    if (local) {
        json_object_set_new(one, "base_path", bk_json_name(path, strlen(path)));
        if (statvfs(path, &fs) == 0) {
            double total = (double)fs.f_blocks * (double)fs.f_frsize,
                   left = (double)fs.f_bavail * (double)fs.f_frsize;
            json_object_set_new(one, "disk_total", json_integer((json_int_t)total));
            json_object_set_new(one, "disk_free", json_integer((json_int_t)left));
            json_object_set_new(one, "disk_used", json_integer((json_int_t)(total - left)));
            json_object_set_new(one, "disk_usage_percent",
                                json_real(total > 0 ? 100 - 100 * left / total : 0));
        }
    }
    return json_pack("[o]", one);
}

static json_t *operations(bk_engine_t *engine, const char *id, bk_ctl_t *ctl)
{
    json_t *all = json_object(), *job = NULL;
    if (id == NULL || ctl == NULL || bk_engine_job(engine, id, &job, NULL) != BK_OK)
        return all;
    json_t *progress = bk_job_progress(ctl);
    json_t *one = json_pack("{sO sO sO so}", "type", json_object_get(job, "type"), "started",
                            json_object_get(job, "started"), "status",
                            json_object_get(job, "status"), "last_updated", bk_json_time(bk_now()));
    json_object_update(one, progress);
    json_object_set_new(all, id, one);
    json_decref(progress);
    json_decref(job);
    return all;
}

bk_rc_t bk_engine_status(bk_engine_t *engine, const char *running_id, bk_ctl_t *running,
                         json_t **status, bk_err_t *err)
{
    static const char *const methods[] = {"none", "zstd", "gzip"}, *const extensions[] = {
                                                                       "", ".zst", ".gz"};
    const bk_set_t *set = engine->set;
    summary_t s = {0};
    uint64_t counts[8];
    json_t *repository = NULL;
    bk_rc_t rc = bk_catalog_backups(engine->catalog, summarise, &s, err);
    if (rc == BK_OK)
        rc = bk_catalog_counts(engine->catalog, counts, err);
    if (rc == BK_OK)
        rc = bk_catalog_value(engine->catalog, "repository", &repository, err);
    if (rc != BK_OK) {
        free_summary(&s);
        return rc;
    }
    bool encrypted = set->key_count > 0 || set->passphrase_file != NULL;
    uint64_t good = counts[BK_STATUS_COMPLETED] + counts[BK_STATUS_WARNING],
             bad = counts[BK_STATUS_FAILED];
    json_t *current = operations(engine, running_id, running);
    json_t *statistics =
        json_pack("{sI sI sI sI so so}", "total_backups", (json_int_t)(good + bad),
                  "successful_backups", (json_int_t)good, "failed_backups", (json_int_t)bad,
                  "total_size_backed_up", (json_int_t)s.size, "last_full_backup",
                  or_null(s.last_full), "last_incremental_backup", or_null(s.last_incremental));
    json_t *system = json_pack(
        "{s{sb so sI so} so so s{ss si ss sb sb} so so}", "orchestrator", "initialized", 1,
        "backup_base_dir", bk_json_name(set->base_dir, strlen(set->base_dir)), "current_operations",
        (json_int_t)json_object_size(current), "statistics", statistics, "database",
        database_status(engine, &s), "files", files_status(engine, &s, repository), "compression",
        "compression_method", methods[set->compression.codec], "compression_level",
        set->compression.level, "extension", extensions[set->compression.codec], "zstd_available",
        1, "gzip_available", 1, "storage_backends", storages_status(engine, repository),
        "current_operations", current);
    *status = json_pack(
        "{so ss ss sb so s{sb sb sb sb si} s{so sI sI sI so so} s{sI sI} sI so}", "timestamp",
        bk_json_time(bk_now()), "backup", set->name, "version", BK_VERSION, "service_running", 1,
        "backup_system", system, "configuration", "scheduling_enabled", 0, "realtime_monitoring", 0,
        "compression_enabled", (int)(set->compression.codec != BK_CODEC_RAW), "encryption_enabled",
        (int)encrypted, "storage_backends", 1, "statistics", "started",
        bk_json_time(engine->started), "total_operations", (json_int_t)(good + bad),
        "successful_operations", (json_int_t)good, "failed_operations", (json_int_t)bad,
        "last_full_backup", or_null(s.last_full), "last_incremental_backup",
        or_null(s.last_incremental), "jobs", "running", (json_int_t)counts[BK_STATUS_RUNNING],
        "queued", (json_int_t)counts[BK_STATUS_QUEUED], "backups", (json_int_t)s.total,
        "last_successful_backup", s.have_newest ? bk_json_time(s.newest) : json_null());
    json_decref(repository);
    free_summary(&s);
    return *status != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "status: out of memory");
}

/* --- health --- */

typedef enum { PASS, WARN, FAIL } verdict_t;

static const char *const verdicts[] = {"pass", "warn", "fail"};

static void add_check(json_t *checks, const char *name, verdict_t verdict, json_t *value,
                      const char *unit, const char *output, verdict_t *worst)
{
    json_t *one = json_pack("{ss so ss* ss so}", "componentType", "component", "observedValue",
                            value, "observedUnit", unit, "status", verdicts[verdict], "time",
                            bk_json_time(bk_now()));
    if (output != NULL && verdict != PASS)
        json_object_set_new(one, "output", bk_json_name(output, strlen(output)));
    json_object_set_new(checks, name, json_pack("[o]", one));
    if (verdict > *worst)
        *worst = verdict;
}

static void check_age(const bk_engine_t *engine, const summary_t *s, json_t *checks,
                      verdict_t *worst)
{
    int64_t age = bk_now() - s->newest;
    uint64_t max = engine->set->health_max_age;
    if (!s->have_newest)
        add_check(checks, "backup:age", WARN, json_null(), "s", "there is no backup yet", worst);
    else
        add_check(checks, "backup:age", max > 0 && age > (int64_t)max * BK_MS ? WARN : PASS,
                  json_integer(age / BK_SEC), "s", "the newest backup is older than health_max_age",
                  worst);
}

static void check_last_job(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    bk_job_row_t row;
    if (bk_catalog_last(engine->catalog, BK_JOB_BACKUP, &row, NULL) != BK_OK)
        return;
    verdict_t verdict = row.status == BK_STATUS_FAILED    ? FAIL
                        : row.status == BK_STATUS_WARNING ? WARN
                                                          : PASS;
    const char *error = json_string_value(json_object_get(row.result, "error"));
    add_check(checks, "backup:result", verdict, json_string(bk_job_status_name(row.status)), NULL,
              error != NULL ? error : "the last backup ended with warnings", worst);
    bk_job_row_free(&row);
}

static void check_disk(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    uint64_t bytes = 0;
    bk_err_t why = {0};
    bk_rc_t rc = bk_engine_check_space(engine, &why);
    bk_free_space(engine->set->base_dir, &bytes, NULL);
    add_check(checks, "disk:free", rc == BK_OK ? PASS : FAIL, json_integer((json_int_t)bytes), "By",
              why.text, worst);
}

static void check_storage(const bk_engine_t *engine, const summary_t *s, json_t *checks,
                          verdict_t *worst)
{
    const bk_storage_config_t *storage = &engine->set->storages[0];
    const char *path = bk_storage_config_get(storage, "path");
    char name[64], text[PATH_MAX + 128] = "";
    bool good = path == NULL || access(path, R_OK | W_OK | X_OK) == 0 ||
                (!s->have_newest && access(path, F_OK) != 0);
    bk_fmt(name, sizeof name, "storage_%s:accessible", storage->name);
    if (path != NULL)
        bk_fmt(text, sizeof text,
               "%s cannot be read and written by nginx's workers, or is not mounted", path);
    add_check(checks, name, good ? PASS : FAIL, json_boolean(good), NULL, text, worst);
}

static void check_verified(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    json_t *value = NULL;
    if (bk_catalog_value(engine->catalog, "verify", &value, NULL) != BK_OK || value == NULL)
        return;
    bool good = json_is_true(json_object_get(value, "good"));
    add_check(checks, "repository:verified", good ? PASS : FAIL,
              or_null(json_object_get(value, "time")), NULL,
              "the last verification found damage; GET …/jobs shows it", worst);
    json_decref(value);
}

bk_rc_t bk_engine_health(bk_engine_t *engine, json_t **health, bk_err_t *err)
{
    summary_t s = {0};
    verdict_t worst = PASS;
    json_t *checks = json_object();
    char description[64];
    bk_rc_t rc = bk_catalog_backups(engine->catalog, summarise, &s, err);
    if (rc == BK_OK) {
        check_age(engine, &s, checks, &worst);
        check_last_job(engine, checks, &worst);
        check_storage(engine, &s, checks, &worst);
        check_disk(engine, checks, &worst);
        check_verified(engine, checks, &worst);
        if (engine->catalog_replaced)
            add_check(checks, "catalog:state", WARN, json_string("replaced"), NULL,
                      "the catalog was damaged and replaced; the history of jobs is lost", &worst);
        bk_fmt(description, sizeof description, "backup of %s", engine->set->name);
        *health = json_pack("{ss ss ss ss ss so sb sb si so so}", "status", verdicts[worst],
                            "version", "1", "releaseId", BK_VERSION, "serviceId", engine->set->name,
                            "description", description, "timestamp", bk_json_time(bk_now()),
                            "healthy", (int)(worst != FAIL), "service_running", 1,
                            "storage_backends_count", 1, "last_successful_backup",
                            s.have_newest ? bk_json_time(s.newest) : json_null(), "checks", checks);
        if (*health == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "health: out of memory");
    } else {
        json_decref(checks);
    }
    free_summary(&s);
    return rc;
}
