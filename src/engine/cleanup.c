/*
 * engine/cleanup.c: which backups may go, and why each of the others stays.  Removing a backup
 * removes its snapshot; its data is not collected in this version.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/cleanup.h"
#include "engine/engine_private.h"

#define NOT_COLLECTED                                                                              \
    "space of removed backups is not freed by this version: their data stays on the storage"

/* Why it stays, as an array; empty: it may go. */
static json_t *reasons(const bk_set_t *set, const bk_snapshot_t *s, const bk_snapshot_t *newest,
                       int64_t now)
{
    json_t *why = json_array();
    uint64_t keep = s->db_count > 0 ? set->retention_db : 0;
    bool for_ever = (s->db_count > 0 && set->retention_db == 0) ||
                    (s->tree_count > 0 && set->retention_files == 0);
    if (s->tree_count > 0 && set->retention_files > keep)
        keep = set->retention_files;
    if (strcmp(s->set, set->name) != 0)
        json_array_append_new(why, json_string("belongs to another set"));
    if (s->pinned)
        json_array_append_new(why, json_string("pinned"));
    if (s == newest)
        json_array_append_new(why, json_string("the newest backup"));
    if (for_ever)
        json_array_append_new(why, json_string("retention keeps it for ever"));
    else if (now - s->completed < (int64_t)keep * BK_MS)
        json_array_append_new(why, json_string("younger than retention"));
    return why;
}

static const bk_snapshot_t *find_newest(const bk_set_t *set, const bk_snapshot_list_t *list)
{
    for (size_t i = list->count; i-- > 0;)
        if (strcmp(list->items[i].kind, "safety") != 0 &&
            strcmp(list->items[i].set, set->name) == 0)
            return &list->items[i];
    return NULL;
}

bk_rc_t bk_cleanup_run(bk_job_t *job, bool dry_run, json_t *result, bk_err_t *err)
{
    bk_engine_t *engine = job->engine;
    bk_opened_t opened;
    bk_snapshot_list_t list = {0};
    json_t *kept = json_array(), *deleted = json_array();
    int64_t now = bk_now();
    json_object_set_new(result, "started", bk_json_time(now));
    json_object_set_new(result, "dry_run", json_boolean(dry_run));
    json_object_set_new(result, "kept", kept);
    json_object_set_new(result, "deleted", deleted);
    json_object_set_new(result, "freed_bytes", json_integer(0));
    json_object_set_new(result, "note", json_string(NOT_COLLECTED));
    bk_rc_t rc = bk_engine_open_repo(engine, false, job->ctl, &opened, err);
    if (rc == BK_REPO_MISSING) {
        bk_err_clear(err);
        json_object_set_new(result, "success", json_true());
        return BK_OK;
    }
    if (rc != BK_OK)
        return rc;
    rc = bk_snapshot_list(opened.repo, engine->cache_dir, job->ctl, &list, err);
    const bk_snapshot_t *newest = find_newest(engine->set, &list);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++) {
        const bk_snapshot_t *s = &list.items[i];
        json_t *why = reasons(engine->set, s, newest, now);
        if (json_array_size(why) > 0) {
            json_array_append_new(kept, json_pack("{ss so sO}", "id", s->backup_id, "completed",
                                                  bk_json_time(s->completed), "reasons", why));
        } else {
            if (!dry_run)
                rc = bk_snapshot_remove(opened.repo, s, job->ctl, err);
            if (rc == BK_OK)
                json_array_append_new(deleted, json_string(s->backup_id));
        }
        json_decref(why);
    }
    bk_snapshot_list_free(&list);
    if (rc == BK_OK && !dry_run)
        rc = bk_engine_sync_from(engine, &opened, job->ctl, err);
    bk_engine_close_repo(&opened);
    json_object_set_new(result, "completed", bk_json_time(bk_now()));
    json_object_set_new(result, "success", json_boolean(rc == BK_OK));
    return rc;
}

bk_rc_t bk_job_cleanup(bk_job_t *job, bk_err_t *err)
{
    json_t *result = json_object();
    json_object_set_new(job->result, "cleanup_result", result);
    return bk_cleanup_run(job, json_is_true(json_object_get(job->body, "dry_run")), result, err);
}

bk_rc_t bk_job_delete(bk_job_t *job, bk_err_t *err)
{
    const char *id = json_string_value(json_object_get(job->body, "backup_id"));
    const bk_snapshot_t *snapshot;
    bk_snapshot_list_t list = {0};
    bk_opened_t opened;
    bk_rc_t rc = bk_engine_open_repo(job->engine, false, job->ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_snapshot_list(opened.repo, job->engine->cache_dir, job->ctl, &list, err);
    if (rc == BK_OK)
        rc = bk_snapshot_find(&list, id != NULL ? id : "", &snapshot, err);
    if (rc == BK_OK && snapshot->pinned)
        rc = bk_err_set(err, BK_CONFLICT, "backup %s is pinned: it cannot be deleted", id);
    if (rc == BK_OK)
        rc = bk_snapshot_remove(opened.repo, snapshot, job->ctl, err);
    if (rc == BK_OK) {
        json_object_set_new(job->result, "deleted", json_string(snapshot->backup_id));
        json_object_set_new(job->result, "note", json_string(NOT_COLLECTED));
        rc = bk_engine_sync_from(job->engine, &opened, job->ctl, err);
    }
    bk_snapshot_list_free(&list);
    bk_engine_close_repo(&opened);
    return rc;
}
