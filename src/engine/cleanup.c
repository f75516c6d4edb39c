/*
 * engine/cleanup.c: which backups may go, and why each of the others stays; and what recoveries and
 * damaged catalogs left aside.  Removing a backup removes its snapshot; its data is not collected
 * in this version.
 */
#include "engine/cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "engine/bases.h"
#include "engine/engine_private.h"

#define NOT_COLLECTED                                                                              \
    "space of removed backups is not freed by this version: their data stays on the storage"

/* --- backups --- */

/* Of those that are stored and were checked there: no other is a reason to let an older one go. */
typedef struct {
    const bk_snapshot_t *newest, *newest_whole, *newest_full; /* of this set; safety ones are not */
} keepers_t;

static keepers_t find_keepers(const bk_set_t *set, const bk_snapshot_list_t *list)
{
    keepers_t k = {0};
    for (size_t i = 0; i < list->count; i++) {
        const bk_snapshot_t *s = &list->items[i];
        if (strcmp(s->set, set->name) != 0 || strcmp(s->kind, "safety") == 0 || s->provisional)
            continue;
        k.newest = s;
        if (s->unreadable_total > 0)
            continue;
        k.newest_whole = s;
        if (strcmp(s->kind, "full") == 0)
            k.newest_full = s;
    }
    return k;
}

static void add_reason(json_t *reasons, bool holds, const char *text)
{
    if (holds)
        json_array_append_new(reasons, json_string(text));
}

/* --- what windows begin with --- */

/*
 * Marks the backups that the moments of a pitr_window begin with, and, with segments, removes the
 * transactions that none of these needs.
 */
typedef struct {
    bk_engine_t *engine;
    bk_opened_t *opened;
    const bk_snapshot_list_t *list;
    bool *begins; /* of the list; those of windows are set */
    bk_ctl_t *ctl;
    bool segments, dry_run;
    uint64_t removed;
} windows_t;

static bk_rc_t mark_window(windows_t *w, const bk_set_db_t *db, bk_err_t *err)
{
    const bk_set_t *set = w->engine->set;
    bk_moments_t *moments = NULL;
    int64_t edge = bk_now() - (int64_t)db->pitr_window * BK_MS;
    bk_rc_t rc =
        bk_moments_open(set->base_dir, set->name, db->name, w->opened->repo, w->ctl, &moments, err);
    if (rc == BK_OK)
        rc = bk_moments_keep(moments, edge, w->list, w->begins, err);
    if (rc == BK_OK && w->segments) {
        bk_moments_note_lost(moments, w->ctl);
        rc = bk_moments_remove(moments, w->dry_run, &w->removed, err);
    }
    bk_moments_free(moments);
    return rc;
}

static bk_rc_t mark_windows(windows_t *w, bk_err_t *err)
{
    const bk_set_t *set = w->engine->set;
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < set->db_count && rc == BK_OK; i++)
        if (set->dbs[i].pitr_window > 0)
            rc = mark_window(w, &set->dbs[i], err);
    return rc;
}

static bk_rc_t find_begins(bk_engine_t *engine, bk_opened_t *opened, const bk_snapshot_list_t *list,
                           bool **begins, bk_ctl_t *ctl, bk_err_t *err)
{
    windows_t w = {.engine = engine, .opened = opened, .list = list, .ctl = ctl};
    w.begins = *begins = calloc(list->count + 1, sizeof **begins);
    return *begins != NULL ? mark_windows(&w, err)
                           : bk_err_set(err, BK_NO_MEMORY, "cleanup: out of memory");
}

/* --- backups, one by one --- */

/* Why it stays, as an array; empty: it may go. */
static json_t *reasons_of(const bk_set_t *set, const bk_snapshot_t *s, const keepers_t *k,
                          bool begins, int64_t now)
{
    json_t *reasons = json_array();
    bool dbs = s->db_count > 0, files = s->tree_count > 0;
    bool for_ever =
        (dbs && set->retention_db == 0) || (files && set->retention_files == 0) || (!dbs && !files);
    uint64_t keep = dbs ? set->retention_db : 0;
    if (files && set->retention_files > keep)
        keep = set->retention_files;
    int64_t age_ms = (now - s->completed) / BK_MS;
    add_reason(reasons, strcmp(s->set, set->name) != 0, "belongs to another set");
    add_reason(reasons, s->pinned, "pinned");
    add_reason(reasons, s->provisional, "waits to be stored, and checked there");
    add_reason(reasons, s == k->newest, "the newest backup");
    add_reason(reasons, s == k->newest_whole, "the newest backup without warnings");
    add_reason(reasons, s == k->newest_full, "the newest full backup without warnings");
    add_reason(reasons, begins, "the moments of pitr_window begin with it");
    add_reason(reasons, for_ever, "retention keeps it for ever");
    add_reason(reasons, !for_ever && age_ms < (int64_t)keep, "younger than retention");
    return reasons;
}

static bk_rc_t clean_backups(bk_job_t *job, bk_opened_t *opened, bool dry_run, json_t *kept,
                             json_t *deleted, bk_err_t *err)
{
    bk_engine_t *engine = job->engine;
    bk_snapshot_list_t list;
    bool *begins = NULL;
    int64_t now = bk_now();
    bk_rc_t rc = bk_snapshot_list(opened->repo, engine->cache_dir, job->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    rc = find_begins(engine, opened, &list, &begins, job->ctl, err);
    keepers_t keepers = find_keepers(engine->set, &list);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++) {
        const bk_snapshot_t *s = &list.items[i];
        json_t *reasons = reasons_of(engine->set, s, &keepers, begins[i], now);
        rc = bk_ctl_check(job->ctl, err);
        if (rc == BK_OK && json_array_size(reasons) > 0) {
            json_array_append_new(kept, json_pack("{ss so sO}", "id", s->backup_id, "completed",
                                                  bk_json_time(s->completed), "reasons", reasons));
        } else if (rc == BK_OK) {
            if (!dry_run)
                rc = bk_snapshot_remove(opened->repo, s, job->ctl, err);
            if (rc == BK_OK)
                json_array_append_new(deleted, json_string(s->backup_id));
        }
        json_decref(reasons);
    }
    free(begins);
    bk_snapshot_list_free(&list);
    return rc;
}

/* --- what was set aside --- */

/* Files of dir whose names begin with prefix and that got their name longer than age ago. */
static void clean_aside(const char *dir, const char *prefix, int64_t age_ns, bool dry_run,
                        json_t *removed)
{
    DIR *stream = opendir(dir);
    if (stream == NULL)
        return;
    for (const struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        char path[PATH_MAX];
        struct stat st;
        if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0 ||
            !bk_fmt(path, sizeof path, "%s/%s", dir, entry->d_name) ||
            fstatat(dirfd(stream), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(st.st_mode))
            continue;
        int64_t renamed = (int64_t)st.st_ctim.tv_sec * BK_SEC + st.st_ctim.tv_nsec;
        if (bk_now() - renamed < age_ns)
            continue;
        if (dry_run || unlinkat(dirfd(stream), entry->d_name, 0) == 0)
            json_array_append_new(removed, bk_json_name(path, strlen(path)));
        else
            bk_log(BK_LOG_WARN, "cleanup: %s could not be removed", path);
    }
    closedir(stream);
}

/* Damaged catalogs and snapshots, databases that recoveries replaced: once retention has passed. */
static void clean_leftovers(const bk_set_t *set, bool dry_run, json_t *removed)
{
    if (set->retention_db == 0)
        return;
    int64_t age = (int64_t)set->retention_db * BK_MS;
    clean_aside(set->base_dir, "catalog.db.damaged-", age, dry_run, removed);
    clean_aside(set->base_dir, "snapshot.damaged-", age, dry_run, removed);
    for (size_t i = 0; i < set->db_count; i++) {
        char dir[PATH_MAX], prefix[NAME_MAX * 2];
        bk_strcpy(dir, sizeof dir, set->dbs[i].path);
        char *slash = strrchr(dir, '/');
        if (slash == NULL || slash == dir)
            continue;
        *slash = '\0';
        static const char *const companions[] = {"", "-wal", "-shm", "-journal"};
        for (size_t n = 0; n < 4; n++) {
            bk_fmt(prefix, sizeof prefix, "%s%s.before-recovery_", slash + 1, companions[n]);
            clean_aside(dir, prefix, age, dry_run, removed);
        }
    }
}

/* --- transactions --- */

static bool has_window(const bk_set_t *set, const char *database)
{
    for (size_t i = 0; i < set->db_count; i++)
        if (strcmp(set->dbs[i].name, database) == 0)
            return set->dbs[i].pitr_window > 0;
    return false;
}

/* Those of databases that are not captured any more, once retention has passed. */
static bk_rc_t clean_abandoned(windows_t *w, const char *database, bk_err_t *err)
{
    const bk_set_t *set = w->engine->set;
    bk_moments_t *moments = NULL;
    bk_rc_t rc = bk_moments_open(NULL, set->name, database, w->opened->repo, w->ctl, &moments, err);
    if (rc == BK_OK)
        rc = bk_moments_keep_since(moments, bk_now() - (int64_t)set->retention_db * BK_MS, err);
    if (rc == BK_OK)
        rc = bk_moments_remove(moments, w->dry_run, &w->removed, err);
    bk_moments_free(moments);
    return rc;
}

static bk_rc_t clean_all_abandoned(windows_t *w, bk_err_t *err)
{
    const bk_set_t *set = w->engine->set;
    bk_buf_t names;
    if (set->retention_db == 0)
        return BK_OK;
    bk_buf_init(&names, 1u << 20);
    bk_rc_t rc = bk_history_databases(w->opened->repo, set->name, &names, w->ctl, err);
    for (size_t at = 0; rc == BK_OK && at < names.len;) {
        const char *name = (const char *)names.data + at;
        if (!has_window(set, name))
            rc = clean_abandoned(w, name, err);
        at += strlen(name) + 1;
    }
    bk_buf_free(&names);
    return rc;
}

static bk_rc_t clean_transactions(bk_job_t *job, bk_opened_t *opened, bool dry_run, json_t *result,
                                  bk_err_t *err)
{
    bk_snapshot_list_t list;
    windows_t w = {.engine = job->engine,
                   .opened = opened,
                   .list = &list,
                   .ctl = job->ctl,
                   .segments = true,
                   .dry_run = dry_run};
    bk_rc_t rc = bk_snapshot_list(opened->repo, job->engine->cache_dir, job->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    w.begins = calloc(list.count + 1, sizeof *w.begins);
    rc = w.begins != NULL ? mark_windows(&w, err)
                          : bk_err_set(err, BK_NO_MEMORY, "cleanup: out of memory");
    if (rc == BK_OK)
        rc = clean_all_abandoned(&w, err);
    free(w.begins);
    bk_snapshot_list_free(&list);
    json_object_set_new(result, "segments_deleted", json_integer((json_int_t)w.removed));
    return rc;
}

/* --- the whole --- */

bk_rc_t bk_cleanup_run(bk_job_t *job, bool dry_run, json_t *result, bk_err_t *err)
{
    bk_engine_t *engine = job->engine;
    bk_opened_t opened;
    json_t *kept = json_array(), *deleted = json_array(), *leftovers = json_array();
    json_object_set_new(result, "started", bk_json_time(bk_now()));
    json_object_set_new(result, "dry_run", json_boolean(dry_run));
    json_object_set_new(result, "kept", kept);
    json_object_set_new(result, "deleted", deleted);
    json_object_set_new(result, "leftovers", leftovers);
    json_object_set_new(result, "freed_bytes", json_integer(0));
    json_object_set_new(result, "note", json_string(NOT_COLLECTED));
    bk_rc_t rc = bk_engine_open_repo(engine, false, job->ctl, &opened, err);
    if (rc == BK_OK) {
        rc = clean_backups(job, &opened, dry_run, kept, deleted, err);
        if (rc == BK_OK)
            rc = clean_transactions(job, &opened, dry_run, result, err);
        if (json_array_size(deleted) > 0 && !dry_run &&
            bk_engine_sync_from(engine, &opened, NULL, NULL) != BK_OK)
            bk_ctl_note(job->ctl, "the list of backups could not be refreshed");
        bk_engine_close_repo(&opened);
    } else if (rc == BK_REPO_MISSING) { /* before the first backup there is nothing to remove */
        bk_err_clear(err);
        rc = BK_OK;
    }
    if (rc == BK_OK)
        clean_leftovers(engine->set, dry_run, leftovers);
    json_object_set_new(result, "database_cleanup", json_boolean(rc == BK_OK));
    json_object_set_new(result, "file_cleanup", json_boolean(rc == BK_OK));
    json_object_set_new(result, "storage_cleanup",
                        json_pack("[{ss ss ss}]", "backend_type", engine->set->storages[0].driver,
                                  "name", engine->set->storages[0].name, "status",
                                  rc == BK_OK ? "completed" : "failed"));
    json_object_set_new(result, "success", json_boolean(rc == BK_OK));
    json_object_set_new(result, "completed", bk_json_time(bk_now()));
    return rc;
}

bk_rc_t bk_job_cleanup(bk_job_t *job, bk_err_t *err)
{
    json_t *result = json_object();
    json_object_set_new(job->result, "cleanup_result", result);
    bk_ctl_phase(job->ctl, "cleanup");
    return bk_cleanup_run(job, json_is_true(json_object_get(job->body, "dry_run")), result, err);
}

/* Is it one that nobody may delete just now?  BK_CONFLICT says why. */
static bk_rc_t may_delete(bk_engine_t *engine, bk_opened_t *opened, const bk_snapshot_list_t *list,
                          const bk_snapshot_t *snapshot, bk_ctl_t *ctl, bk_err_t *err)
{
    bool *begins = NULL;
    const char *id = snapshot->backup_id;
    if (snapshot->pinned)
        return bk_err_set(err, BK_CONFLICT, "backup %s is pinned: it cannot be deleted", id);
    bk_rc_t rc = find_begins(engine, opened, list, &begins, ctl, err);
    if (rc == BK_OK && begins[snapshot - list->items])
        rc = bk_err_set(err, BK_CONFLICT,
                        "backup %s: the moments of pitr_window begin with it, without it they "
                        "could not be recovered: it can be deleted when the window has moved on, "
                        "or with a shorter pitr_window",
                        id);
    free(begins);
    return rc;
}

/*
 * NULL: its snapshot is damaged, or there is none of that id.  Damage is not noted: what is left of
 * it afterwards is told then.
 */
static bk_rc_t find_deleted(bk_engine_t *engine, bk_opened_t *opened, const char *id,
                            bk_snapshot_list_t *list, const bk_snapshot_t **snapshot, bk_ctl_t *ctl,
                            bk_err_t *err)
{
    bk_err_t why = {0};
    *snapshot = NULL;
    bk_rc_t rc = bk_snapshot_list(opened->repo, engine->cache_dir, NULL, list, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_snapshot_find(list, id != NULL ? id : "", snapshot, &why);
    if (rc == BK_OK)
        return may_delete(engine, opened, list, *snapshot, ctl, err);
    if (rc == BK_NOT_FOUND && id != NULL && list->damaged > 0)
        return BK_OK;
    if (err != NULL)
        *err = why;
    return rc;
}

bk_rc_t bk_delete_check(bk_engine_t *engine, const json_t *body, bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_snapshot_t *snapshot;
    bk_snapshot_list_t list = {0};
    bk_opened_t opened;
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    rc = find_deleted(engine, &opened, json_string_value(json_object_get(body, "backup_id")), &list,
                      &snapshot, ctl, err);
    bk_snapshot_list_free(&list);
    bk_engine_close_repo(&opened);
    return rc;
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
    rc = find_deleted(job->engine, &opened, id, &list, &snapshot, job->ctl, err);
    if (rc == BK_OK)
        rc = snapshot != NULL ? bk_snapshot_remove(opened.repo, snapshot, job->ctl, err)
                              : bk_snapshot_remove_damaged(
                                    opened.repo, id, job->engine->set->base_dir, job->ctl, err);
    if (rc == BK_OK) {
        json_object_set_new(job->result, "deleted", json_string(id));
        json_object_set_new(job->result, "note", json_string(NOT_COLLECTED));
        rc = bk_engine_sync_from(job->engine, &opened, job->ctl, err);
    }
    bk_snapshot_list_free(&list);
    bk_engine_close_repo(&opened);
    return rc;
}
