/*
 * engine/document.c: the JSON that clients see of jobs, backups and failures.  Computes; touches
 * nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/engine_private.h"

json_t *bk_problem(const bk_err_t *err, json_t *problems)
{
    char type[128];
    bk_rc_t rc = err->rc != BK_OK ? err->rc : BK_FAILED;
    bk_fmt(type, sizeof type, "urn:ngx-backup:problem:%s", bk_rc_code(rc));
    json_t *problem = json_pack("{ss ss si so ss}", "type", type, "title", bk_rc_title(rc),
                                "status", bk_rc_http(rc), "detail",
                                bk_json_name(err->text, strlen(err->text)), "code", bk_rc_code(rc));
    if (json_is_object(problems)) {
        json_object_update_missing(problem, problems);
        json_decref(problems);
    } else if (problems != NULL) {
        json_object_set_new(problem, "errors", problems);
    }
    return problem;
}

json_t *bk_job_progress(bk_ctl_t *ctl)
{
    uint64_t done = atomic_load(&ctl->bytes_done), total = atomic_load(&ctl->bytes_total);
    uint64_t files = atomic_load(&ctl->files_done), files_total = atomic_load(&ctl->files_total);
    double seconds = (double)(bk_mono() - ctl->started) / BK_SEC;
    double rate = seconds > 0 ? (double)done / seconds : 0;
    double part = total > 0         ? (double)done / (double)total
                  : files_total > 0 ? (double)files / (double)files_total
                                    : 0;
    json_t *eta = total > done && rate > 0
                      ? json_integer((json_int_t)((double)(total - done) / rate))
                      : json_null();
    pthread_mutex_lock(&ctl->lock);
    json_t *progress = json_pack(
        "{si ss s{sI sI sI sI sI so sI sI so}}", "progress", (int)(part < 1 ? part * 100 : 100),
        "phase", ctl->phase, "progress_detail", "files_done", (json_int_t)files, "files_total",
        (json_int_t)files_total, "bytes_done", (json_int_t)done, "bytes_total", (json_int_t)total,
        "bytes_per_second", (json_int_t)rate, "eta_seconds", eta, "bytes_read",
        (json_int_t)atomic_load(&ctl->bytes_read), "bytes_stored",
        (json_int_t)atomic_load(&ctl->bytes_stored), "current",
        bk_json_name(ctl->current, strlen(ctl->current)));
    pthread_mutex_unlock(&ctl->lock);
    return progress;
}

static const char *type_name(const bk_job_row_t *row)
{
    const char *type = json_string_value(json_object_get(row->body, "recovery_type"));
    switch (row->kind) {
    case BK_JOB_BACKUP:
        return strncmp(row->id, "incremental", 11) == 0 ? "incremental_backup" : "full_backup";
    case BK_JOB_RECOVERY:
        return type != NULL && strcmp(type, "database") == 0 ? "database_restoration"
               : type != NULL && strcmp(type, "files") == 0  ? "file_restoration"
                                                             : "full_system_recovery";
    default:
        return bk_job_kind_name(row->kind);
    }
}

static const char *message_of(const bk_job_row_t *row)
{
    static const char *const text[] = {
        "waits for its turn",      "is running", "is being canceled", "completed",
        "completed with warnings", "failed",     "was canceled",      "was interrupted"};
    return text[row->status];
}

json_t *bk_describe_job(const bk_job_row_t *row, const char *set)
{
    bool done = row->status >= BK_STATUS_COMPLETED && row->status != BK_STATUS_INTERRUPTED;
    bool good = row->status == BK_STATUS_COMPLETED || row->status == BK_STATUS_WARNING;
    int64_t end = row->completed > 0 ? row->completed : bk_now();
    const char *name = bk_job_kind_name(row->kind), *error;
    char message[256];
    bk_fmt(message, sizeof message, "%c%s %s", name[0] - 'a' + 'A', name + 1, message_of(row));
    json_t *job = json_pack(
        "{ss ss ss ss ss ss sb so ss si so ss* ss* ss* so so so so so so}", "id", row->id,
        "operation_id", row->id, "kind", bk_job_kind_name(row->kind), "type", type_name(row),
        "backup", set, "status", bk_job_status_name(row->status), "done", (int)done, "success",
        done ? json_boolean(good) : json_null(), "message", message, "progress", done ? 100 : 0,
        "request", json_incref(row->body), "trigger", row->trigger, "requested_by",
        row->requested_by, "request_id", row->request_id, "created", bk_json_time(row->created),
        "started", bk_json_time(row->started), "updated",
        bk_json_time(row->completed > 0 ? row->completed
                     : row->started > 0 ? row->started
                                        : row->created),
        "completed", bk_json_time(row->completed), "duration_seconds",
        row->started > 0 ? json_real((double)(end - row->started) / BK_SEC) : json_null(), "error",
        json_null());
    if (row->kind == BK_JOB_BACKUP)
        json_object_set_new(
            job, "backup_type",
            json_string(strncmp(row->id, "incremental", 11) == 0 ? "incremental" : "full"));
    if (row->kind == BK_JOB_RECOVERY)
        json_object_set_new(job, "recovery_id", json_string(row->id));
    if (row->result != NULL)
        json_object_update(job, row->result);
    if (json_object_get(job, "warnings") == NULL)
        json_object_set_new(job, "warnings", json_array());
    error = json_string_value(json_object_get(job, "error"));
    if (done && error != NULL && !good) {
        json_object_set_new(job, "message", json_string(error));
    }
    return job;
}

static json_t *describe_trees(const bk_snapshot_t *s, uint64_t *files, uint64_t *bytes)
{
    json_t *trees = json_array();
    for (size_t i = 0; i < s->tree_count; i++) {
        const bk_snapshot_tree_t *tree = &s->trees[i];
        json_array_append_new(
            trees, json_pack("{so so sI sI}", "name", bk_json_name(tree->name, strlen(tree->name)),
                             "path", bk_json_name(tree->path, strlen(tree->path)), "files",
                             (json_int_t)tree->files, "size", (json_int_t)tree->bytes));
        *files += tree->files;
        *bytes += tree->bytes;
    }
    return trees;
}

static json_t *describe_dbs(const bk_snapshot_t *s, uint64_t *bytes)
{
    json_t *dbs = json_array();
    for (size_t i = 0; i < s->db_count; i++) {
        const bk_snapshot_db_t *db = &s->dbs[i];
        uint64_t size = db->page_count * db->page_size;
        json_array_append_new(
            dbs,
            json_pack("{so so sI sI si ss so}", "name", bk_json_name(db->name, strlen(db->name)),
                      "path", bk_json_name(db->path, strlen(db->path)), "size", (json_int_t)size,
                      "page_count", (json_int_t)db->page_count, "page_size", (int)db->page_size,
                      "journal", db->journal, "instant", bk_json_time(db->instant)));
        *bytes += size;
    }
    return dbs;
}

json_t *bk_describe_snapshot(const bk_snapshot_t *s, const char *storage)
{
    uint64_t files = 0, bytes = 0;
    json_t *trees = describe_trees(s, &files, &bytes), *dbs = describe_dbs(s, &bytes);
    json_t *stored = json_object_get(s->stats, "bytes_stored");
    const json_t *encryption = json_object_get(s->config, "encryption");
    const char *method =
        json_string_value(json_object_get(json_object_get(s->config, "compression"), "method"));
    json_t *first = json_array_size(dbs) > 0 ? json_incref(json_array_get(dbs, 0)) : json_null();
    return json_pack(
        "{ss ss ss ss ss so so so so sI sI so sI so so so sb sb s[s] so sO sO sI sb sI so so}",
        "backup_id", s->backup_id, "backup", s->set, "type", s->kind, "status",
        s->unreadable_total > 0 ? "warning" : "completed", "host", s->host, "parent",
        s->parent[0] != '\0' ? json_string(s->parent) : json_null(), "timestamp",
        bk_json_time(s->started), "completed", bk_json_time(s->completed), "instant",
        bk_json_time(s->instant), "completed_ns", (json_int_t)s->completed, "size",
        (json_int_t)bytes, "stored_size", stored != NULL ? json_incref(stored) : json_integer(0),
        "files", (json_int_t)files, "database", first, "databases", dbs, "trees", trees,
        "compressed", (int)(method != NULL && strcmp(method, "off") != 0), "encrypted",
        (int)json_is_true(json_object_get(encryption, "enabled")), "storages", storage,
        "description",
        s->description != NULL ? bk_json_name(s->description, strlen(s->description)) : json_null(),
        "tags", s->tags, "stats", s->stats, "unreadable_total", (json_int_t)s->unreadable_total,
        "pinned", (int)s->pinned, "snapshot_size", (json_int_t)s->object_size, "unreadable",
        json_incref(s->unreadable), "verified", json_null());
}
