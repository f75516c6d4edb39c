/*
 * engine/backup.c: one backup: databases first, then files, then the snapshot that makes it exist.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "engine/capturing.h"
#include "engine/engine_private.h"
#include "engine/protect.h"
#include "engine/unchanged.h"
#include "engine/watching.h"
#include "files/backup.h"
#include "files/compare.h"
#include "repo/session.h"
#include "sqlite/dump.h"
#include "sqlite/opening.h"

#define UNREADABLE_SHOWN 100
#define MISSED_SHOWN     10
#define ATTEMPTS         3 /* at an id that another host takes in the same second */

static bool is_stop(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED;
}

typedef struct {
    bk_job_t *job;
    bk_opened_t *opened;
    const bk_backup_scope_t *scope;
    bk_session_t *session;
    const bk_snapshot_list_t *list; /* of the storage */
    const bk_snapshot_t *previous;
    bk_snapshot_t snapshot;
    bk_files_stats_t files;
    bk_protected_t skip;
    bk_watching_plan_t *plans; /* one a tree of the set; journal NULL: none */
    bk_files_stats_t *trees;   /* of each */
    uint64_t watch_missed;
} backup_t;

/* --- parts --- */

static void forget_database(bk_snapshot_db_t *db)
{
    free(db->name);
    free(db->path);
    free(db->journal);
    memset(db, 0, sizeof *db);
}

/*
 * As soon as the pin tells: until it is released, the application's commits wait.  A safety backup
 * takes it in any mode: what a recovery replaces must not be lost.
 */
static bk_rc_t check_journal(const backup_t *b, const bk_set_db_t *db, const bk_db_info_t *info,
                             bk_err_t *err)
{
    return db->wal != BK_WAL_REQUIRE || b->scope->lenient || strcmp(info->journal, "wal") == 0
               ? BK_OK
               : bk_err_set(err, BK_CONFIG,
                            "database %s: journal_mode is %s, but the configuration says wal "
                            "require: run \"PRAGMA journal_mode=WAL\" once, or write \"wal on\"",
                            db->path, info->journal);
}

/* What was read of a large database before its pin. */
typedef struct {
    bk_capture_state_t since;
    bk_db_seen_t seen;
} ahead_t;

uint64_t bk_backup_ahead_from = BK_DB_LARGE;
unsigned bk_backup_ahead_pin;

/*
 * All of a large database would be read under one pin, and its log grow meanwhile.  So it is read
 * before, and under the pin only what its transactions changed since.  That it cannot be is no
 * failure.
 */
static bk_rc_t look_ahead(const backup_t *b, const bk_set_db_t *db, ahead_t *ahead, bk_err_t *err)
{
    struct stat st;
    bk_err_t why = {0};
    const bk_engine_t *engine = b->job->engine;
    *ahead = (ahead_t){.seen = {.count = 0}};
    if (!b->scope->full || b->scope->lenient || db->pitr_window == 0 ||
        bk_db_stat(db->path, &st) != 0 || (uint64_t)st.st_size < bk_backup_ahead_from ||
        !bk_capturing_since(engine->capturing, db->path, &ahead->since))
        return BK_OK;
    bk_rc_t rc =
        bk_db_look_ahead(b->session, db->path, (unsigned)db->busy_timeout, bk_backup_ahead_pin,
                         b->job->team, &ahead->seen, b->job->ctl, &why);
    if (rc == BK_OK)
        return rc;
    bk_db_seen_free(&ahead->seen);
    if (!is_stop(rc))
        return BK_OK;
    if (err != NULL)
        *err = why;
    return rc;
}

/*
 * What a backup need not read, and what it has to find.  A full one reads all, and so does one of a
 * database without a log, for which the application's commits would wait; one that saves what a
 * recovery replaces asks nobody.
 */
static bk_rc_t find_unchanged(const backup_t *b, const bk_set_db_t *db, const bk_db_info_t *pinned,
                              const ahead_t *ahead, bk_unchanged_t *unchanged, bk_err_t *err)
{
    bk_capture_state_t state;
    const bk_engine_t *engine = b->job->engine;
    bool wal = strcmp(pinned->journal, "wal") == 0;
    bk_unchanged_of_t of = {.base_dir = engine->set->base_dir,
                            .set = engine->set->name,
                            .host = engine->host,
                            .database = db->name,
                            .repo = b->opened->repo,
                            .list = b->list,
                            .ctl = b->job->ctl,
                            .all = b->scope->full || !wal,
                            .seen = ahead->seen.count > 0 ? &ahead->seen : NULL,
                            .since = &ahead->since};
    *unchanged = (bk_unchanged_t){.moments = NULL};
    if (db->pitr_window == 0 || (wal && b->scope->lenient))
        return BK_OK;
    /* Without a log this makes a batch of it, whatever is read then. */
    bool is = bk_capturing_pinned(engine->capturing, db->path, pinned, &state, b->job->ctl);
    if (b->scope->lenient || (!wal && !is))
        return BK_OK;
    return bk_unchanged_find(&of, pinned, is ? &state : NULL, unchanged, err);
}

static void tell_why_all_is_read(const backup_t *b, const bk_set_db_t *db, bk_rc_t rc,
                                 const bk_err_t *why)
{
    if (rc == BK_CHANGED)
        bk_ctl_note(b->job->ctl,
                    "%s, so all of it was read: somebody writes to the file past SQLite, or a disk "
                    "damages it",
                    why->text);
    else
        bk_log(BK_LOG_WARN, "backup %s: job %s: database %s: all of it is read: %s",
               b->job->engine->set->name, b->job->id, db->name, why->text);
}

/*
 * Is it what the transactions tell?  Else they lack a change, which goes into a gap with the
 * capture's next step.  whole: all of it was read, so that it is a proof.
 */
static void judge_captured(const backup_t *b, const bk_set_db_t *db, const bk_snapshot_db_t *found,
                           const bk_unchanged_t *told, bool whole, bool noted)
{
    bk_capturing_t *capturing = b->job->engine->capturing;
    if (found->digest == told->digest && found->page_count == told->page_count) {
        if (whole)
            bk_capturing_proved(capturing, db->path, found->instant);
        return;
    }
    bk_log(BK_LOG_ERROR,
           "backup %s: database %s: what a backup read is not what its transactions made of it: "
           "all pages are compared, what differs becomes a gap",
           b->job->engine->set->name, db->name);
    if (!noted)
        bk_ctl_note(b->job->ctl,
                    "database %s: what was read is not what its transactions made of it: somebody "
                    "writes to the file past SQLite, or a disk damages it; moments before this "
                    "backup do not have that",
                    db->name);
    bk_capturing_doubt(capturing, db->path);
}

static bk_rc_t dump_database(backup_t *b, const bk_set_db_t *db, bk_snapshot_db_t *out,
                             bk_err_t *err)
{
    bk_ctl_t *ctl = b->job->ctl;
    bk_db_source_t *source;
    bk_unchanged_t unchanged = {.moments = NULL};
    ahead_t ahead;
    bk_rc_t rc = look_ahead(b, db, &ahead, err);
    if (rc == BK_OK)
        rc = bk_db_source_open(db->path, (unsigned)db->busy_timeout, ctl, &source, err);
    if (rc != BK_OK) {
        bk_db_seen_free(&ahead.seen);
        return rc;
    }
    rc = check_journal(b, db, bk_db_source_info(source), err);
    if (rc == BK_OK)
        rc = find_unchanged(b, db, bk_db_source_info(source), &ahead, &unchanged, err);
    const bk_db_known_t *known = unchanged.known.past != NULL ? &unchanged.known : NULL;
    if (rc == BK_OK)
        rc = bk_db_dump(b->session, source, db->path, known, b->job->team, out, ctl, err);
    bool noted = rc == BK_CHANGED;
    if (rc != BK_OK && known != NULL && !is_stop(rc)) {
        tell_why_all_is_read(b, db, rc, err);
        forget_database(out);
        known = NULL;
        rc = bk_db_dump(b->session, source, db->path, NULL, b->job->team, out, ctl, err);
    }
    if (rc == BK_OK && unchanged.told)
        judge_captured(b, db, out, &unchanged, known == NULL || known->seen != NULL, noted);
    bk_unchanged_free(&unchanged);
    bk_db_seen_free(&ahead.seen);
    bk_db_source_close(source);
    if (rc == BK_OK && (out->name = bk_strdup(db->name)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "out of memory");
    return rc;
}

/*
 * What concerns this one source, and stays so; anything else (storage, space, a stop) ends the job.
 * So does a source that is only locked, or changes, for now: what it holds is whole, and the
 * recovery would replace it a moment later.
 */
static bool beyond_saving(bk_rc_t rc)
{
    return rc == BK_NOT_FOUND || rc == BK_CORRUPT || rc == BK_DENIED || rc == BK_IO ||
           rc == BK_CONFIG;
}

/*
 * A safety backup keeps what can be kept of what a recovery is about to replace: what is missing is
 * no loss, and a database beyond reading is set aside as files by the recovery itself.
 */
static bk_rc_t leave_out(const backup_t *b, const char *what, const char *name, const char *path,
                         const bk_err_t *why, bk_err_t *err)
{
    struct stat st;
    if (!b->scope->lenient || !beyond_saving(why->rc)) {
        if (err != NULL)
            *err = *why;
        return why->rc;
    }
    if (stat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR))
        bk_log(BK_LOG_INFO, "backup %s: job %s: %s %s is not there, so there is nothing to save",
               b->job->engine->set->name, b->job->id, what, name);
    else
        bk_ctl_note(b->job->ctl, "the safety backup has no %s %s: %s", what, name, why->text);
    return BK_OK;
}

static bk_rc_t backup_database(backup_t *b, const bk_set_db_t *db, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_snapshot_db_t *out = &b->snapshot.dbs[b->snapshot.db_count];
    bk_ctl_current(b->job->ctl, db->name);
    if (dump_database(b, db, out, &why) == BK_OK) {
        b->snapshot.db_count++;
        return BK_OK;
    }
    forget_database(out);
    if (strstr(why.text, db->path) == NULL && !is_stop(why.rc))
        bk_err_wrap(&why, "database %s", db->name);
    return leave_out(b, "database", db->name, db->path, &why, err);
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
    sum->dirs_listed += one->dirs_listed;
    sum->walked = sum->walked || one->walked;
}

typedef struct {
    const backup_t *b;
    const char *root;
    unsigned noted;
} missed_t;

static bool note_missed(void *arg, const char *path, bool tree)
{
    missed_t *missed = arg;
    char text[256];
    (void)tree;
    bk_name_escape(text, sizeof text, path, strlen(path));
    bk_ctl_note(missed->b->job->ctl,
                "the watcher had missed a change in %s%s%s, which is in this backup now",
                missed->root, text[0] != '\0' ? "/" : "", text);
    return ++missed->noted < MISSED_SHOWN;
}

/*
 * What changed although the watcher said nothing of it: a walk that was due has found it.  This is
 * a report: that the previous tree cannot be read is no reason to be without a new one.
 */
static bk_rc_t find_missed(backup_t *b, const bk_watching_plan_t *plan,
                           const bk_snapshot_tree_t *previous, const bk_snapshot_tree_t *tree,
                           bk_err_t *err)
{
    bk_compared_t sums;
    bk_dirset_t where, rest;
    bk_ctl_t *ctl = b->job->ctl;
    bk_dirset_init(&where);
    bk_dirset_init(&rest);
    bk_rc_t rc =
        bk_files_compare(b->opened->repo, &previous->root, &tree->root, &sums, &where, ctl, err);
    if (rc == BK_OK && !bk_dirset_empty(&where))
        bk_watching_explain(b->job->engine->watching, plan, &where, &rest, ctl);
    missed_t missed = {b, tree->path, 0};
    (void)bk_dirset_each(&rest, note_missed, &missed);
    b->watch_missed += rest.marked;
    bk_dirset_free(&where);
    bk_dirset_free(&rest);
    if (rc == BK_OK || is_stop(rc))
        return rc;
    bk_ctl_note(ctl,
                "what the watcher may have missed in %s is not told, because the previous backup "
                "cannot be compared: %s",
                tree->path, err->text);
    return BK_OK;
}

/* The last backup's figures stand for this one's until it is through. */
static void expect(bk_ctl_t *ctl, const bk_snapshot_tree_t *like)
{
    if (like == NULL)
        return;
    atomic_fetch_add(&ctl->files_total, like->files);
    atomic_fetch_add(&ctl->bytes_total, like->bytes);
}

static void settle(bk_ctl_t *ctl)
{
    atomic_store(&ctl->files_total, atomic_load(&ctl->files_done));
    atomic_store(&ctl->bytes_total, atomic_load(&ctl->bytes_done));
}

static bk_rc_t backup_files(backup_t *b, size_t at, bk_err_t *err)
{
    const bk_set_files_t *files = &b->job->engine->set->files[at];
    bk_files_stats_t stats = {0};
    bk_watching_plan_t *plan = &b->plans[at];
    bk_files_since_t since = {0};
    bk_patterns_t exclude = {0};
    bk_err_t why = {0};
    bk_ctl_t *ctl = b->job->ctl;
    const bk_snapshot_tree_t *previous = previous_tree(b, files);
    bk_snapshot_tree_t *tree = &b->snapshot.trees[b->snapshot.tree_count];
    bk_files_options_t options = {.name = files->name,
                                  .path = files->path,
                                  .match = &files->match_patterns,
                                  .exclude = &exclude,
                                  .max_size = files->max_size,
                                  .one_file_system = files->one_file_system,
                                  .cachedir = files->cachedir,
                                  .xattrs = files->xattrs,
                                  .skip = b->skip.items,
                                  .skip_count = b->skip.count,
                                  .helper = atomic_load(&b->job->engine->client),
                                  .previous = b->scope->full ? NULL : previous};
    if (!b->scope->lenient) {
        bk_watching_take(b->job->engine->watching, at,
                         previous != NULL ? b->previous->backup_id : NULL, b->scope->full, ctl,
                         plan);
        /* What is shipped later is checked by its packs alone. */
        plan->walk = plan->walk || !b->scope->upload;
        /* Nor is what names chunks in packs that were found damaged since: they are looked at. */
        plan->walk =
            plan->walk || (previous != NULL && bk_session_doubts(b->session, b->previous->started));
        since =
            (bk_files_since_t){plan->dirty, plan->base.dirs, plan->base.links, plan->base.others};
        options.since = plan->walk ? NULL : &since;
        options.again = &plan->again;
    }
    expect(ctl, previous);
    bk_rc_t rc = bk_protected_patterns(b->job->engine->set, files, &exclude, &why);
    if (rc == BK_OK)
        rc = bk_files_backup(b->session, &options, b->job->team, tree, &stats,
                             b->snapshot.unreadable, ctl, &why);
    if (rc == BK_OK && plan->usable && plan->walk)
        rc = find_missed(b, plan, previous, tree, &why);
    if (rc == BK_OK && !stats.walked)
        bk_session_rely(b->session, b->previous->object);
    b->trees[at] = stats;
    settle(ctl);
    bk_patterns_free(&exclude);
    if (rc == BK_OK) {
        free(tree->name);
        tree->name = bk_strdup(files->name);
        if (tree->path == NULL)
            tree->path = bk_strdup(files->path);
        if (tree->name == NULL || tree->path == NULL)
            rc = bk_err_set(&why, BK_NO_MEMORY, "files %s: out of memory", files->name);
    }
    if (rc == BK_OK) {
        add_stats(&b->files, &stats);
        b->snapshot.tree_count++;
        return BK_OK;
    }
    free(tree->name);
    free(tree->path);
    memset(tree, 0, sizeof *tree);
    return leave_out(b, "files", files->name, files->path, &why, err);
}

static bk_rc_t backup_parts(backup_t *b, bk_err_t *err)
{
    const bk_set_t *set = b->job->engine->set;
    bk_rc_t rc = BK_OK;
    b->snapshot.dbs = calloc(set->db_count + 1, sizeof *b->snapshot.dbs);
    b->snapshot.trees = calloc(set->files_count + 1, sizeof *b->snapshot.trees);
    b->snapshot.unreadable = json_array();
    b->plans = calloc(set->files_count + 1, sizeof *b->plans);
    b->trees = calloc(set->files_count + 1, sizeof *b->trees);
    if (b->snapshot.dbs == NULL || b->snapshot.trees == NULL || b->plans == NULL ||
        b->trees == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup: out of memory");
    bk_ctl_phase(b->job->ctl, "database");
    for (size_t i = 0; b->scope->databases && i < set->db_count && rc == BK_OK; i++)
        if (b->scope->database == NULL || strcmp(b->scope->database, set->dbs[i].name) == 0)
            rc = backup_database(b, &set->dbs[i], err);
    bk_ctl_phase(b->job->ctl, "files");
    for (size_t i = 0; b->scope->files && i < set->files_count && rc == BK_OK; i++)
        rc = backup_files(b, i, err);
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
        "{sI sI ss sI sI sI sI sI sI sI sI sI sI sI sI sI sI sI sf sf}", "dirs_listed",
        (json_int_t)b->files.dirs_listed, "bytes_read",
        (json_int_t)atomic_load(&b->job->ctl->bytes_read), "scan",
        b->files.walked ? "walk" : "changes", "watch_missed", (json_int_t)b->watch_missed, "files",
        (json_int_t)b->files.files, "files_new", (json_int_t)b->files.files_new, "files_changed",
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

static bk_rc_t commit(backup_t *b, bk_err_t *err)
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
    return rc;
}

/* What could not be read, for the job: a backup with holes is a warning, never a plain success. */
static void report_unreadable(const bk_snapshot_t *s, json_t *result)
{
    json_t *shown = json_array(), *warnings = json_array(), *item;
    size_t i;
    json_array_foreach(s->unreadable, i, item)
    {
        if (i == UNREADABLE_SHOWN)
            break;
        json_array_append(shown, item);
        json_array_append_new(
            warnings, json_sprintf("%s: %s", json_string_value(json_object_get(item, "path")),
                                   json_string_value(json_object_get(item, "error"))));
    }
    json_object_set_new(result, "warnings", warnings);
    json_object_set_new(result, "unreadable", shown);
    json_object_set_new(result, "unreadable_total", json_integer((json_int_t)s->unreadable_total));
    json_object_set_new(result, "incomplete", json_boolean(s->unreadable_total > 0));
}

static void report(const bk_snapshot_t *s, json_t *result)
{
    json_object_set_new(result, "backup_id", json_string(s->backup_id));
    json_object_set(result, "stats", s->stats);
    json_object_set(result, "total_size", json_object_get(s->stats, "bytes_source"));
    report_unreadable(s, result);
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

/* The wanted id, or with the first suffix that no backup has; another host may share the storage.
 */
static void choose_id(const bk_snapshot_list_t *list, const char *wanted, char id[BK_BACKUP_ID])
{
    bk_strcpy(id, BK_BACKUP_ID, wanted);
    for (unsigned n = 2; n < 1000; n++) {
        bool taken = false;
        for (size_t i = 0; i < list->count; i++)
            taken = taken || strcmp(list->items[i].backup_id, id) == 0;
        if (!taken)
            return;
        bk_fmt(id, BK_BACKUP_ID, "%s_%u", wanted, n);
    }
}

static bk_rc_t make_snapshot(backup_t *b, json_t *result, bk_err_t *err)
{
    bk_engine_t *engine = b->job->engine;
    bk_session_options_t options = {
        .host = engine->host, .compression = engine->set->compression, .upload = b->scope->upload};
    bk_snapshot_t *s = &b->snapshot;
    s->started = bk_now();
    bk_rc_t rc = bk_protected_init(&b->skip, engine->set, err);
    if (rc == BK_OK)
        rc = bk_session_begin(b->opened->repo, &options, b->job->ctl, &b->session, err);
    if (rc == BK_OK)
        rc = backup_parts(b, err);
    bool empty = s->db_count + s->tree_count == 0;
    if (rc == BK_OK && !empty)
        rc = commit(b, err);
    if (rc == BK_OK && !empty)
        report(s, result);
    for (size_t i = 0; b->plans != NULL && b->trees != NULL && i < engine->set->files_count; i++)
        bk_watching_settle(&b->plans[i], rc == BK_OK && !empty ? s->backup_id : NULL, &b->trees[i]);
    free(b->plans);
    free(b->trees);
    bk_session_abort(b->session);
    bk_protected_free(&b->skip);
    return rc;
}

/* A resumed job whose backup was published just before it was cut off has nothing left to do. */
static const bk_snapshot_t *made_already(const bk_snapshot_list_t *list, const bk_job_t *job,
                                         const bk_backup_scope_t *scope)
{
    for (size_t i = 0; i < list->count; i++) {
        const bk_snapshot_t *s = &list->items[i];
        if (strcmp(s->job, job->id) == 0 && strcmp(s->kind, scope->kind) == 0 &&
            strcmp(s->set, job->engine->set->name) == 0 &&
            strcmp(s->host, job->engine->host) == 0 && s->started >= job->created)
            return s;
    }
    return NULL;
}

bk_rc_t bk_backup_run(bk_job_t *job, bk_opened_t *opened, const bk_backup_scope_t *scope,
                      json_t *result, bk_err_t *err)
{
    bk_engine_t *engine = job->engine;
    bk_rc_t rc = bk_engine_check_space(engine, err);
    bool again = rc == BK_OK;
    for (unsigned attempt = 1; again; attempt++) {
        bk_snapshot_list_t list = {0};
        backup_t *b = calloc(1, sizeof *b);
        char id[BK_BACKUP_ID];
        bk_backup_scope_t chosen = *scope;
        if (b == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "backup: out of memory");
        bk_snapshot_init(&b->snapshot);
        rc = bk_snapshot_list(opened->repo, engine->cache_dir, job->ctl, &list, err);
        const bk_snapshot_t *made = rc == BK_OK ? made_already(&list, job, scope) : NULL;
        if (made != NULL) {
            report(made, result);
        } else if (rc == BK_OK) {
            choose_id(&list, scope->id, id);
            chosen.id = id;
            b->job = job;
            b->opened = opened;
            b->scope = &chosen;
            b->list = &list;
            b->previous = find_previous(&list, engine->set->name, engine->host);
            rc = make_snapshot(b, result, err);
        }
        bk_snapshot_free(&b->snapshot);
        bk_snapshot_list_free(&list);
        free(b);
        /* Its content is stored, so that the next attempt is short. */
        again = rc == BK_EXISTS && attempt < ATTEMPTS;
    }
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
                               .upload = !json_is_false(upload)};
    rc = bk_backup_run(job, &opened, &scope, job->result, err);
    if (rc == BK_OK) {
        bk_err_t ignored = {0};
        bk_ctl_phase(job->ctl, "catalog");
        if (bk_engine_sync_from(job->engine, &opened, NULL, &ignored) != BK_OK)
            bk_ctl_note(job->ctl, "the list of backups could not be refreshed: %s", ignored.text);
    }
    bk_engine_close_repo(&opened);
    return rc;
}
