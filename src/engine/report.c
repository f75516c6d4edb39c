/*
 * engine/report.c: what the API answers without running a job: lists, single objects, status,
 * health, and the plan of a dry run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/cleanup.h"
#include "engine/engine_private.h"
#include "repo/history.h"

/* --- the catalog's copy of the snapshots --- */

/* Figures of all backups, so that status and health need not parse every one each second. */
static json_t *summarise(const bk_engine_t *engine, const bk_snapshot_list_t *list)
{
    uint64_t full = 0, with_db = 0, with_files = 0, db_size = 0, files_size = 0, stored = 0;
    const bk_snapshot_t *last_full = NULL, *last_incremental = NULL, *last_db = NULL,
                        *newest = NULL;
    for (size_t i = 0; i < list->count; i++) {
        const bk_snapshot_t *s = &list->items[i];
        bool own = strcmp(s->set, engine->set->name) == 0 && strcmp(s->kind, "safety") != 0;
        stored += (uint64_t)json_integer_value(json_object_get(s->stats, "bytes_stored"));
        with_db += s->db_count > 0;
        with_files += s->tree_count > 0;
        for (size_t n = 0; n < s->db_count; n++)
            db_size += s->dbs[n].page_count * s->dbs[n].page_size;
        for (size_t n = 0; n < s->tree_count; n++)
            files_size += s->trees[n].bytes;
        full += strcmp(s->kind, "full") == 0;
        if (!own)
            continue;
        newest = s;
        if (strcmp(s->kind, "full") == 0)
            last_full = s;
        else
            last_incremental = s;
        if (s->db_count > 0)
            last_db = s;
    }
    uint64_t files = 0;
    for (size_t n = 0; newest != NULL && n < newest->tree_count; n++)
        files += newest->trees[n].files;
    return json_pack("{sI sI sI sI sI sI sI sI so so so sI sI so ss* sI ss*}", "total",
                     (json_int_t)list->count, "damaged", (json_int_t)list->damaged, "full",
                     (json_int_t)full, "with_database", (json_int_t)with_db, "with_files",
                     (json_int_t)with_files, "database_size", (json_int_t)db_size, "files_size",
                     (json_int_t)files_size, "stored", (json_int_t)stored, "last_full",
                     bk_json_time(last_full != NULL ? last_full->completed : 0), "last_incremental",
                     bk_json_time(last_incremental != NULL ? last_incremental->completed : 0),
                     "last_database", bk_json_time(last_db != NULL ? last_db->completed : 0),
                     "database_ns", (json_int_t)(last_db != NULL ? last_db->dbs[0].instant : 0),
                     "newest_ns", (json_int_t)(newest != NULL ? newest->completed : 0), "newest",
                     bk_json_time(newest != NULL ? newest->completed : 0), "newest_id",
                     newest != NULL ? newest->backup_id : NULL, "files", (json_int_t)files,
                     "journal", last_db != NULL ? last_db->dbs[0].journal : NULL);
}

/* For health; the first one is named. */
static bk_rc_t name_missing(void *arg, const bk_history_name_t *missing, bk_err_t *err)
{
    json_t *summary = arg;
    char text[BK_HISTORY_NAME + 96];
    (void)err;
    bk_fmt(text, sizeof text, "%s: transactions %llu to %llu are missing", missing->database,
           (unsigned long long)missing->first, (unsigned long long)missing->last);
    if (json_object_get(summary, "missing") == NULL)
        json_object_set_new(summary, "missing", json_string(text));
    return BK_OK;
}

bk_rc_t bk_engine_sync_from(bk_engine_t *engine, bk_opened_t *opened, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_snapshot_list_t list;
    bk_index_t *index;
    uint64_t chunks = 0, packs = 0, bytes = 0;
    json_t *backups = json_array(), *summary = NULL;
    bk_rc_t rc = bk_snapshot_list(opened->repo, engine->cache_dir, ctl, &list, err);
    for (size_t i = 0; rc == BK_OK && i < list.count; i++)
        if (json_array_append_new(
                backups, bk_describe_snapshot(&list.items[i], bk_storage_name(opened->storage))) !=
            0)
            rc = bk_err_set(err, BK_NO_MEMORY, "list backups: out of memory");
    if (rc == BK_OK)
        rc = bk_catalog_backups_replace(engine->catalog, backups, err);
    if (rc == BK_OK)
        rc = bk_repo_index(opened->repo, ctl, &index, err);
    if (rc == BK_OK) {
        bk_index_totals(index, &chunks, &packs, &bytes);
        summary = summarise(engine, &list);
        json_object_set_new(summary, "chunks", json_integer((json_int_t)chunks));
        json_object_set_new(summary, "packs", json_integer((json_int_t)packs));
        json_object_set_new(summary, "bytes", json_integer((json_int_t)bytes));
        rc = bk_history_missing(opened->repo, engine->set->name, name_missing, summary, ctl, err);
    }
    if (rc == BK_OK)
        rc = bk_catalog_set_value(engine->catalog, "summary", summary, err);
    json_decref(summary);
    json_decref(backups);
    bk_snapshot_list_free(&list);
    return rc;
}

/* --- lists --- */

/* When a verification that began after the backup found everything right, or null. */
static void set_verified(json_t *backup, const json_t *verify)
{
    bool covers = json_is_true(json_object_get(verify, "good")) &&
                  json_integer_value(json_object_get(verify, "level")) > 0 &&
                  json_integer_value(json_object_get(verify, "started_ns")) >=
                      json_integer_value(json_object_get(backup, "completed_ns"));
    if (covers)
        json_object_set(backup, "verified", json_object_get(verify, "time"));
}

typedef struct {
    const bk_list_filter_t *filter;
    const json_t *verify;
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
    set_verified(backup, list->verify);
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
    json_t *verify = NULL;
    bk_rc_t rc = bk_catalog_value(engine->catalog, "verify", &verify, err);
    list.verify = verify;
    if (rc == BK_OK)
        rc = bk_catalog_backups(engine->catalog, add_backup, &list, err);
    json_decref(verify);
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
    json_t *summary = NULL, *verify = NULL;
    const char *newest;
    bk_rc_t rc = BK_OK;
    if (strcmp(id, "latest") == 0) {
        rc = bk_catalog_value(engine->catalog, "summary", &summary, err);
        newest = json_string_value(json_object_get(summary, "newest_id"));
        id = newest != NULL ? newest : id;
    }
    if (rc == BK_OK)
        rc = bk_catalog_backup(engine->catalog, id, backup, err);
    if (rc == BK_OK)
        rc = bk_catalog_value(engine->catalog, "verify", &verify, err);
    if (rc == BK_OK) {
        set_verified(*backup, verify);
        json_object_del(*backup, "completed_ns");
    }
    json_decref(verify);
    json_decref(summary);
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
