/*
 * engine/backup.c: one backup: databases first, then files, then the snapshot that makes it exist.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/engine_private.h"
#include "files/backup.h"
#include "repo/session.h"
#include "sqlite/dump.h"

#define UNREADABLE_SHOWN 100
#define SKIP_MAX         1024

typedef struct {
    bk_job_t *job;
    bk_opened_t *opened;
    const bk_backup_scope_t *scope;
    bk_session_t *session;
    const bk_snapshot_t *previous;
    bk_snapshot_t snapshot;
    bk_files_stats_t files;
    bk_inode_t skip[SKIP_MAX];
    size_t skip_count;
} backup_t;

/* --- what the file engine must not touch --- */

static void skip_path(backup_t *b, const char *path)
{
    struct stat st;
    if (path != NULL && b->skip_count < SKIP_MAX && stat(path, &st) == 0)
        b->skip[b->skip_count++] = (bk_inode_t){.device = st.st_dev, .inode = st.st_ino};
}

static void collect_skip(backup_t *b)
{
    static const char *const companions[] = {"", "-wal", "-shm", "-journal"};
    const bk_set_t *set = b->job->engine->set;
    skip_path(b, set->base_dir);
    skip_path(b, bk_storage_local_path(b->opened->storage));
    for (size_t i = 0; i < set->db_count; i++)
        for (size_t n = 0; n < 4; n++) {
            char path[4096];
            bk_fmt(path, sizeof path, "%s%s", set->dbs[i].path, companions[n]);
            skip_path(b, path);
        }
}

/* --- parts --- */

static bk_rc_t backup_database(backup_t *b, const bk_set_db_t *db, bk_err_t *err)
{
    bk_ctl_t *ctl = b->job->ctl;
    bk_err_t why = {0};
    bk_snapshot_db_t *out = &b->snapshot.dbs[b->snapshot.db_count];
    bk_ctl_current(ctl, db->name);
    bk_rc_t rc =
        bk_db_dump(b->session, db->path, (unsigned)db->busy_timeout, b->job->team, out, ctl, &why);
    if (rc == BK_OK && (out->name = bk_strdup(db->name)) == NULL)
        rc = bk_err_set(&why, BK_NO_MEMORY, "database %s: out of memory", db->name);
    bool wal = rc == BK_OK && strcmp(out->journal, "wal") == 0;
    if (rc == BK_OK && !wal && db->wal == BK_WAL_REQUIRE)
        rc = bk_err_set(
            &why, BK_CONFIG,
            "database %s: journal_mode is %s, but the configuration says wal require: run \"PRAGMA "
            "journal_mode=WAL\" once, or write \"wal on\"",
            db->name, out->journal);
    b->snapshot.db_count += out->path != NULL;
    if (rc == BK_OK || rc == BK_CANCELED || rc == BK_INTERRUPTED || !b->scope->lenient) {
        if (rc != BK_OK && err != NULL)
            *err = why;
        return rc;
    }
    /* A database that is to be recovered may be beyond reading: its files are set aside then. */
    bk_ctl_note(ctl, "the safety backup has no database %s: %s", db->name, why.text);
    free(out->name);
    free(out->path);
    free(out->journal);
    if (out->path != NULL)
        b->snapshot.db_count--;
    memset(out, 0, sizeof *out);
    return BK_OK;
}

static const bk_snapshot_tree_t *previous_tree(const backup_t *b, const bk_set_files_t *files)
{
    for (size_t i = 0; b->previous != NULL && i < b->previous->tree_count; i++) {
        const bk_snapshot_tree_t *tree = &b->previous->trees[i];
        if (strcmp(tree->name, files->name) == 0 && strcmp(tree->path, files->path) == 0)
            return tree;
    }
    return NULL;
}

static void add_stats(bk_files_stats_t *sum, const bk_files_stats_t *one)
{
    sum->files_new += one->files_new;
    sum->files_changed += one->files_changed;
    sum->files_unmodified += one->files_unmodified;
    sum->files_removed += one->files_removed;
    sum->dirs += one->dirs;
    sum->links += one->links;
    sum->others += one->others;
    sum->files += one->files;
    sum->bytes += one->bytes;
    sum->bytes_read += one->bytes_read;
    sum->excluded += one->excluded;
    sum->too_large += one->too_large;
    sum->special += one->special;
    sum->unreadable += one->unreadable;
}

static bk_rc_t backup_files(backup_t *b, const bk_set_files_t *files, bk_err_t *err)
{
    bk_files_stats_t stats = {0};
    bk_snapshot_tree_t *tree = &b->snapshot.trees[b->snapshot.tree_count];
    bk_files_options_t options = {.name = files->name,
                                  .path = files->path,
                                  .match = &files->match_patterns,
                                  .exclude = &files->exclude_patterns,
                                  .max_size = files->max_size,
                                  .one_file_system = files->one_file_system,
                                  .cachedir = files->cachedir,
                                  .xattrs = files->xattrs,
                                  .skip = b->skip,
                                  .skip_count = b->skip_count,
                                  .previous = b->scope->full ? NULL : previous_tree(b, files)};
    bk_rc_t rc = bk_files_backup(b->session, &options, b->job->team, tree, &stats,
                                 b->snapshot.unreadable, b->job->ctl, err);
    add_stats(&b->files, &stats);
    if (rc != BK_OK)
        return rc;
    free(tree->name);
    tree->name = bk_strdup(files->name);
    if (tree->path == NULL)
        tree->path = bk_strdup(files->path);
    b->snapshot.tree_count++;
    return tree->name != NULL && tree->path != NULL
               ? BK_OK
               : bk_err_set(err, BK_NO_MEMORY, "files: out of memory");
}

static bk_rc_t backup_parts(backup_t *b, bk_err_t *err)
{
    const bk_set_t *set = b->job->engine->set;
    bk_rc_t rc = BK_OK;
    b->snapshot.dbs = calloc(set->db_count + 1, sizeof *b->snapshot.dbs);
    b->snapshot.trees = calloc(set->files_count + 1, sizeof *b->snapshot.trees);
    b->snapshot.unreadable = json_array();
    if (b->snapshot.dbs == NULL || b->snapshot.trees == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup: out of memory");
    bk_ctl_phase(b->job->ctl, "database");
    for (size_t i = 0; b->scope->databases && i < set->db_count && rc == BK_OK; i++)
        if (b->scope->database == NULL || strcmp(b->scope->database, set->dbs[i].name) == 0)
            rc = backup_database(b, &set->dbs[i], err);
    bk_ctl_phase(b->job->ctl, "files");
    for (size_t i = 0; b->scope->files && i < set->files_count && rc == BK_OK; i++)
        rc = backup_files(b, &set->files[i], err);
    return rc;
}

/* --- the snapshot --- */

static json_t *stats_json(const backup_t *b, const bk_session_stats_t *session)
{
    uint64_t source = b->files.bytes;
    for (size_t i = 0; i < b->snapshot.db_count; i++)
        source += b->snapshot.dbs[i].page_count * b->snapshot.dbs[i].page_size;
    uint64_t seen = session->bytes_new + session->bytes_known;
    return json_pack(
        "{sI sI sI sI sI sI sI sI sI sI sI sI sI sI sf sf}", "files", (json_int_t)b->files.files,
        "files_new", (json_int_t)b->files.files_new, "files_changed",
        (json_int_t)b->files.files_changed, "files_unmodified",
        (json_int_t)b->files.files_unmodified, "files_removed", (json_int_t)b->files.files_removed,
        "directories", (json_int_t)b->files.dirs, "links", (json_int_t)b->files.links, "excluded",
        (json_int_t)(b->files.excluded + b->files.too_large), "unreadable",
        (json_int_t)b->files.unreadable, "bytes_source", (json_int_t)source, "bytes_new",
        (json_int_t)session->bytes_new, "bytes_stored", (json_int_t)session->bytes_stored,
        "chunks_new", (json_int_t)session->chunks_new, "packs", (json_int_t)session->packs,
        "compression_ratio",
        session->bytes_stored > 0 ? (double)session->bytes_new / (double)session->bytes_stored
                                  : 1.0,
        "dedup_ratio", session->bytes_new > 0 ? (double)seen / (double)session->bytes_new : 1.0);
}

static bk_rc_t commit(backup_t *b, json_t *result, bk_err_t *err)
{
    bk_snapshot_t *s = &b->snapshot;
    bk_job_t *job = b->job;
    const bk_set_t *set = job->engine->set;
    bk_session_stats_t stats;
    bk_buf_t body;

    bk_ctl_phase(job->ctl, "commit");
    bk_rc_t rc = bk_session_flush(b->session, err);
    if (rc != BK_OK)
        return rc;
    bk_session_stats(b->session, &stats);
    bk_strcpy(s->backup_id, sizeof s->backup_id, b->scope->id);
    bk_strcpy(s->kind, sizeof s->kind, b->scope->kind);
    bk_strcpy(s->job, sizeof s->job, job->id);
    s->set = bk_strdup(set->name);
    s->host = bk_strdup(job->engine->host);
    s->description = bk_strdup(json_string_value(json_object_get(job->body, "description")));
    s->tags = json_incref(json_object_get(job->body, "tags"));
    s->config = bk_set_describe(set);
    s->unreadable_total = b->files.unreadable;
    s->stats = stats_json(b, &stats);
    s->completed = bk_now();
    s->instant = s->db_count > 0 ? s->dbs[0].instant : s->started;
    if (b->previous != NULL) {
        bk_strcpy(s->parent, sizeof s->parent, b->previous->backup_id);
        s->previous = bk_strdup(b->previous->object);
    }
    bk_buf_init(&body, 256u << 20);
    rc = bk_snapshot_encode(s, &body, err);
    if (rc == BK_OK)
        rc = bk_session_commit(b->session, b->scope->id, body.data, body.len, err);
    else
        bk_session_abort(b->session);
    b->session = NULL;
    bk_buf_free(&body);
    if (rc == BK_OK)
        json_object_set(result, "stats", s->stats);
    return rc;
}

/* What could not be read, for the job: a backup with holes is a warning, never a plain success. */
static void report_unreadable(const backup_t *b, json_t *result)
{
    json_t *shown = json_array();
    for (size_t i = 0; i < json_array_size(b->snapshot.unreadable) && i < UNREADABLE_SHOWN; i++)
        json_array_append(shown, json_array_get(b->snapshot.unreadable, i));
    json_object_set_new(result, "warnings", shown);
    json_object_set_new(result, "unreadable_total", json_integer((json_int_t)b->files.unreadable));
    json_object_set_new(result, "incomplete", json_boolean(b->files.unreadable > 0));
}

static const bk_snapshot_t *find_previous(const bk_snapshot_list_t *list, const char *set,
                                          const char *host)
{
    for (size_t i = list->count; i-- > 0;) {
        const bk_snapshot_t *s = &list->items[i];
        if (strcmp(s->set, set) == 0 && strcmp(s->host, host) == 0 &&
            strcmp(s->kind, "safety") != 0)
            return s;
    }
    return NULL;
}

/* The job's id, unless another host has used it in the same second. */
static void choose_id(const bk_snapshot_list_t *list, char id[BK_BACKUP_ID])
{
    char wanted[BK_BACKUP_ID];
    bk_strcpy(wanted, sizeof wanted, id);
    for (unsigned n = 2; n < 1000; n++) {
        bool taken = false;
        for (size_t i = 0; i < list->count; i++)
            taken = taken || strcmp(list->items[i].backup_id, id) == 0;
        if (!taken)
            return;
        bk_fmt(id, BK_BACKUP_ID, "%s_%u", wanted, n);
    }
}

bk_rc_t bk_backup_run(bk_job_t *job, bk_opened_t *opened, const bk_backup_scope_t *scope,
                      json_t *result, bk_err_t *err)
{
    bk_engine_t *engine = job->engine;
    bk_snapshot_list_t list = {0};
    char id[BK_BACKUP_ID];
    bk_backup_scope_t chosen = *scope;
    backup_t *b = calloc(1, sizeof *b);
    if (b == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup: out of memory");
    bk_snapshot_init(&b->snapshot);
    b->job = job;
    b->opened = opened;
    b->scope = &chosen;
    b->snapshot.started = bk_now();
    bk_rc_t rc = bk_engine_check_space(engine, err);
    if (rc == BK_OK)
        rc = bk_snapshot_list(opened->repo, engine->cache_dir, job->ctl, &list, err);
    if (rc == BK_OK) {
        bk_strcpy(id, sizeof id, scope->id);
        choose_id(&list, id);
        chosen.id = id;
        b->previous = find_previous(&list, engine->set->name, engine->host);
        collect_skip(b);
        bk_session_options_t options = {
            .host = engine->host, .compression = engine->set->compression, .upload = scope->upload};
        rc = bk_session_begin(opened->repo, &options, job->ctl, &b->session, err);
    }
    if (rc == BK_OK)
        rc = backup_parts(b, err);
    if (rc == BK_OK)
        rc = commit(b, result, err);
    bk_session_abort(b->session);
    if (rc == BK_OK) {
        json_object_set_new(result, "backup_id", json_string(id));
        report_unreadable(b, result);
    }
    bk_snapshot_free(&b->snapshot);
    bk_snapshot_list_free(&list);
    free(b);
    return rc;
}

bk_rc_t bk_job_backup(bk_job_t *job, bk_err_t *err)
{
    const char *type = json_string_value(json_object_get(job->body, "backup_type"));
    const json_t *upload = json_object_get(job->body, "upload_to_storage");
    bool full = type == NULL || strcmp(type, "full") == 0;
    bk_opened_t opened;
    bk_ctl_phase(job->ctl, "prepare");
    bk_rc_t rc = bk_engine_open_repo(job->engine, true, job->ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    bk_backup_scope_t scope = {.id = job->id,
                               .kind = full ? "full" : "incremental",
                               .databases = true,
                               .files = true,
                               .full = full,
                               .upload = upload == NULL || json_is_true(upload)};
    rc = bk_backup_run(job, &opened, &scope, job->result, err);
    if (rc == BK_OK) {
        json_t *source = json_object_get(json_object_get(job->result, "stats"), "bytes_source");
        json_object_set(job->result, "total_size", source);
        bk_err_t ignored = {0};
        if (bk_engine_sync_from(job->engine, &opened, job->ctl, &ignored) != BK_OK)
            bk_ctl_note(job->ctl, "the list of backups could not be refreshed: %s", ignored.text);
    }
    bk_engine_close_repo(&opened);
    return rc;
}
