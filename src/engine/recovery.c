/*
 * engine/recovery.c: the recovery job: which backup, what of it, where to; a safety backup first
 * when something live is replaced.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/capturing.h"
#include "engine/cleanup.h"
#include "engine/engine_private.h"
#include "engine/recover.h"
#include "sqlite/check.h"
#include "sqlite/opening.h"
#include "sqlite/recover.h"

typedef struct {
    bk_job_t *job;
    bk_opened_t opened;
    bk_point_t point;
    bk_patterns_t patterns;
    bk_protected_t skip;
    bk_recover_options_t options;
    bool in_place;
    const char *target;
} recovery_t;

static const char *text_of(const json_t *body, const char *name)
{
    return json_string_value(json_object_get(body, name));
}

static bk_rc_t read_request(recovery_t *r, bk_err_t *err)
{
    const json_t *body = r->job->body, *patterns = json_object_get(body, "file_patterns"), *check;
    const char *type = text_of(body, "recovery_type"), *overwrite = text_of(body, "overwrite");
    bk_recover_options_t *o = &r->options;
    bk_rc_t rc = BK_OK;
    size_t i;
    json_t *item;

    r->target = text_of(body, "target_directory");
    r->in_place = r->target == NULL;
    o->databases = type == NULL || strcmp(type, "files") != 0;
    o->files = type == NULL || strcmp(type, "database") != 0;
    o->database = text_of(body, "database");
    o->paths = json_object_get(body, "paths");
    if (json_is_null(o->paths))
        o->paths = NULL;
    o->delete_extra = json_is_true(json_object_get(body, "delete_extra"));
    /* Into a directory files belong to whoever looks at them, unless this process or its helper may
     * set owners; in place they come back as they were. */
    o->owners = r->in_place || geteuid() == 0;
    o->alone = true;
    /* With a helper it is the one who places, so that owners come back; root needs none. */
    o->helper = geteuid() != 0 ? atomic_load(&r->job->engine->client) : NULL;
    check = json_object_get(body, "verify");
    o->check = check == NULL || !json_is_false(check);
    o->job = r->job->id;
    if (overwrite != NULL)
        bk_overwrite_parse(overwrite, &o->overwrite);
    json_array_foreach((json_t *)(uintptr_t)patterns, i, item)
    {
        if (rc == BK_OK)
            rc = bk_patterns_add(&r->patterns, json_string_value(item), err);
    }
    o->patterns = &r->patterns;
    o->set = r->job->engine->set;
    o->skip = &r->skip;
    return rc == BK_OK ? bk_protected_init(&r->skip, o->set, err) : rc;
}

/* What was asked for by name must be in the backup: nothing recovered is no success. */
static bk_rc_t check_content(const bk_recover_options_t *o, bk_err_t *err)
{
    const bk_snapshot_t *s = o->snapshot;
    bool found = o->database == NULL;
    for (size_t i = 0; i < s->db_count; i++)
        found = found || strcmp(s->dbs[i].name, o->database) == 0;
    if (o->databases && !found)
        return bk_err_set(err, BK_NOT_FOUND, "backup %s holds no database %s", s->backup_id,
                          o->database);
    if (o->databases && !o->files && s->db_count == 0)
        return bk_err_set(err, BK_NOT_FOUND, "backup %s holds no database", s->backup_id);
    if (o->files && !o->databases && s->tree_count == 0)
        return bk_err_set(err, BK_NOT_FOUND, "backup %s holds no files", s->backup_id);
    return BK_OK;
}

static bk_rc_t open_backup(recovery_t *r, bk_err_t *err)
{
    bk_point_wish_t wish;
    bk_ctl_phase(r->job->ctl, "prepare");
    bk_request_point(r->job->engine, r->job->body, &wish);
    bk_rc_t rc = bk_engine_open_repo(r->job->engine, false, r->job->ctl, &r->opened, err);
    if (rc == BK_OK)
        rc = bk_point_find(r->opened.repo, &wish, r->job->ctl, &r->point, err);
    if (rc != BK_OK)
        return rc;
    r->options.point = &r->point;
    r->options.snapshot = r->point.snapshot;
    bk_point_describe(&r->point, r->job->result);
    return check_content(&r->options, err);
}

static void close_recovery(recovery_t *r)
{
    bk_point_close(&r->point);
    bk_patterns_free(&r->patterns);
    bk_protected_free(&r->skip);
    bk_engine_close_repo(&r->opened);
}

/* --- in place --- */

static const bk_set_db_t *configured_db(const bk_set_t *set, const char *name)
{
    for (size_t i = 0; i < set->db_count; i++)
        if (strcmp(set->dbs[i].name, name) == 0)
            return &set->dbs[i];
    return NULL;
}

static const char *configured_tree(void *arg, const char *name)
{
    const bk_set_t *set = arg;
    for (size_t i = 0; i < set->files_count; i++)
        if (strcmp(set->files[i].name, name) == 0)
            return set->files[i].path;
    return NULL;
}

/* What is there now, so that the recovery can be undone. */
static bk_rc_t safety_backup(recovery_t *r, bk_err_t *err)
{
    bk_job_t *job = r->job;
    char id[BK_BACKUP_ID], stamp[BK_TIME_TEXT];
    json_t *result = json_object();
    bk_time_stamp(stamp, bk_now());
    bk_fmt(id, sizeof id, "safety_%s", stamp);
    bk_backup_scope_t scope = {.id = id,
                               .kind = "safety",
                               .database = r->options.database,
                               .databases = r->options.databases,
                               .files = r->options.files,
                               .upload = true,
                               .lenient = true};
    bk_rc_t rc = bk_backup_run(job, &r->opened, &scope, result, err);
    if (rc == BK_OK && json_object_get(result, "backup_id") != NULL)
        json_object_set(job->result, "safety_backup", json_object_get(result, "backup_id"));
    else if (rc != BK_OK && rc != BK_CANCELED && rc != BK_INTERRUPTED)
        bk_err_wrap(err,
                    "safety backup (nothing was recovered; \"restore_safety off;\" leaves it out)");
    json_decref(result);
    return rc;
}

/*
 * A live database stays captured, so that the recovery is in its history as well.  A file that is
 * to be replaced must not be open in this process.
 */
static bk_rc_t put_back(bk_job_t *job, const bk_db_recover_t *how, bk_db_method_t *method,
                        bk_err_t *err)
{
    bk_capturing_t *capturing = job->engine->capturing;
    const char *reason = NULL;
    bk_err_t why = {0};
    bk_db_method_t planned = BK_DB_OFFLINE;
    if (bk_db_recover_plan(how, &planned, &reason, &why) == BK_OK && planned == BK_DB_LIVE)
        return bk_db_recover(how, method, job->ctl, err);
    bk_capturing_suspend(capturing, how->target);
    bk_rc_t rc = bk_db_recover(how, method, job->ctl, err);
    bk_capturing_resume(capturing, how->target);
    return rc;
}

/* It is copied from the disk: what could not be written there must not be taken for what was. */
static bk_rc_t prove_image(bk_job_t *job, const char *image, bk_err_t *err)
{
    int fd = bk_openat(AT_FDCWD, image, O_RDONLY | O_NOFOLLOW, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "open %s", image);
    bk_rc_t rc = bk_db_check_and_flush(fd, image, true, job->team, job->ctl, err);
    close(fd);
    return rc;
}

static bk_rc_t recover_database(recovery_t *r, const bk_snapshot_db_t *db,
                                const bk_set_db_t *target, json_t *done, bk_err_t *err)
{
    bk_job_t *job = r->job;
    char image[PATH_MAX], extra[PATH_MAX + 8];
    bk_db_method_t method = BK_DB_LIVE;
    bk_ctl_phase(job->ctl, "database");
    bk_ctl_current(job->ctl, db->name);
    bk_fmt(image, sizeof image, "%s/%s-%s.db", job->engine->scratch_dir, job->id, db->name);
    bk_rc_t rc = bk_point_image(&r->point, db, image, job->team, err);
    if (rc == BK_OK)
        rc = prove_image(job, image, err);
    if (rc == BK_OK && r->options.check)
        rc = bk_check_required(target, image, job->ctl, err);
    if (rc == BK_OK) {
        bk_db_recover_t how = {.image = image,
                               .target = target->path,
                               .job = job->id,
                               .uid = db->uid,
                               .gid = db->gid,
                               .mode = db->mode,
                               .busy_ms = (unsigned)target->busy_timeout,
                               .helper = r->options.helper};
        rc = put_back(job, &how, &method, err);
    }
    if (rc == BK_OK) {
        json_t *entry = json_pack("{ss so ss ss}", "name", db->name, "path",
                                  bk_json_name(target->path, strlen(target->path)), "method",
                                  method == BK_DB_LIVE ? "live" : "offline", "check", "ok");
        bk_point_tell(&r->point, db, entry);
        json_array_append_new(done, entry);
    }
    unlink(image);
    bk_fmt(extra, sizeof extra, "%s-wal", image);
    unlink(extra);
    bk_fmt(extra, sizeof extra, "%s-shm", image);
    unlink(extra);
    return rc;
}

/* What was written last is in the -wal, as long as nobody has moved it into the file. */
static int64_t last_change(const char *path, const struct stat *st)
{
    char wal[PATH_MAX + 8];
    struct stat st_wal;
    int64_t changed = st->st_mtim.tv_sec * BK_SEC + st->st_mtim.tv_nsec;
    bk_fmt(wal, sizeof wal, "%s-wal", path);
    if (bk_db_stat(wal, &st_wal) != 0 || st_wal.st_size == 0)
        return changed;
    int64_t logged = st_wal.st_mtim.tv_sec * BK_SEC + st_wal.st_mtim.tv_nsec;
    return logged > changed ? logged : changed;
}

/* Why the application's database stays as it is; NULL: it does not. */
static const char *why_kept(const recovery_t *r, const bk_snapshot_db_t *db,
                            const bk_set_db_t *target)
{
    struct stat st;
    if (bk_db_stat(target->path, &st) != 0 ||
        !bk_recover_keeps(r->options.overwrite, last_change(target->path, &st), db->instant))
        return NULL;
    return r->options.overwrite == BK_OVERWRITE_NEVER
               ? "it is there, and \"overwrite\" is \"never\""
               : "it was changed after the backup, and \"overwrite\" is \"if-newer\"";
}

static void add_kept(const bk_snapshot_db_t *db, const bk_set_db_t *target, const char *reason,
                     json_t *done)
{
    json_array_append_new(done, json_pack("{ss so ss ss}", "name", db->name, "path",
                                          bk_json_name(target->path, strlen(target->path)),
                                          "action", "skipped", "reason", reason));
}

static bk_rc_t recover_databases(recovery_t *r, bk_err_t *err)
{
    const bk_snapshot_t *s = r->options.snapshot;
    json_t *done = json_array();
    bk_rc_t rc = BK_OK;
    json_object_set_new(r->job->result, "databases", done);
    for (size_t i = 0; i < s->db_count && rc == BK_OK; i++) {
        const bk_snapshot_db_t *db = &s->dbs[i];
        const bk_set_db_t *target = configured_db(r->job->engine->set, db->name);
        const char *kept;
        if (r->options.database != NULL && strcmp(r->options.database, db->name) != 0)
            continue;
        if (target == NULL)
            bk_ctl_note(r->job->ctl,
                        "database %s is no longer configured: recover it into a target_directory",
                        db->name);
        else if ((kept = why_kept(r, db, target)) != NULL)
            add_kept(db, target, kept, done);
        else
            rc = recover_database(r, db, target, done, err);
    }
    return rc;
}

static bk_rc_t recover_tables(recovery_t *r, bk_err_t *err)
{
    bk_job_t *job = r->job;
    json_t *done = NULL;
    bk_ctl_phase(job->ctl, "database");
    bk_rc_t rc =
        bk_tables_of_point(job->engine, &r->point, job->body, BK_TABLES_RECOVER, &done, err);
    if (rc == BK_OK)
        json_object_set_new(job->result, "databases", done);
    return rc;
}

static bk_rc_t recover_in_place(recovery_t *r, bk_err_t *err)
{
    bk_job_t *job = r->job;
    const bk_set_t *set = job->engine->set;
    bk_rc_t rc = set->restore_safety ? safety_backup(r, err) : BK_OK;
    if (rc == BK_OK && json_is_array(json_object_get(job->body, "tables")))
        rc = recover_tables(r, err);
    else if (rc == BK_OK && r->options.databases)
        rc = recover_databases(r, err);
    if (rc == BK_OK && r->options.files)
        rc = bk_recover_files(r->opened.repo, &r->options, configured_tree, (void *)(uintptr_t)set,
                              job->team, job->result, job->ctl, err);
    return rc;
}

/* --- into a directory --- */

static bk_rc_t recover_to_target(recovery_t *r, bk_err_t *err)
{
    bk_job_t *job = r->job;
    char resolved[PATH_MAX];
    const char *root_path, *below;
    bk_root_t *root = NULL;
    bk_rc_t rc = bk_target_check(job->engine->set, r->target, &root_path, &below, resolved, err);
    if (rc == BK_OK && r->options.dry_run)
        rc = bk_root_open_nearest(resolved, r->options.helper, job->ctl, &root, &below, err);
    else if (rc == BK_OK)
        rc = bk_recover_root(root_path, 0700, r->options.helper, job->ctl, &root, err);
    if (rc == BK_OK && bk_root_helper(root) != NULL)
        r->options.owners = true;
    if (rc == BK_OK)
        rc = bk_recover_into(r->opened.repo, &r->options, root, below, job->team, job->result,
                             job->ctl, err);
    bk_root_close(root);
    return rc;
}

static bk_rc_t run(recovery_t *r, bk_err_t *err)
{
    bk_rc_t rc = read_request(r, err);
    if (rc == BK_OK)
        rc = open_backup(r, err);
    if (rc == BK_OK) {
        json_object_set_new(r->job->result, "target",
                            r->in_place ? json_string("original")
                                        : bk_json_name(r->target, strlen(r->target)));
        rc = r->in_place ? recover_in_place(r, err) : recover_to_target(r, err);
    }
    return rc;
}

bk_rc_t bk_job_recovery(bk_job_t *job, bk_err_t *err)
{
    recovery_t r = {.job = job};
    bk_rc_t rc = run(&r, err);
    if (rc == BK_OK) {
        bool whole = !json_is_true(json_object_get(job->result, "incomplete"));
        json_object_set_new(
            job->result, "validation",
            json_pack("{sb ss}", "valid", (int)whole, "detail",
                      whole ? "every chunk had its id; databases passed their digest and check"
                            : "some files could not be recovered: files_failed lists them"));
        json_object_set_new(job->result, "rto_seconds",
                            json_real((double)(bk_mono() - job->ctl->started) / BK_SEC));
    }
    /* The safety backup is in the list also when the recovery failed: it was made for that. */
    if (r.opened.repo != NULL && bk_engine_sync_from(job->engine, &r.opened, NULL, NULL) != BK_OK)
        bk_ctl_note(job->ctl, "the list of backups could not be refreshed");
    close_recovery(&r);
    return rc;
}

/* --- the plan of a dry run --- */

static void plan_databases(recovery_t *r, json_t *plan)
{
    const bk_snapshot_t *s = r->options.snapshot;
    bk_engine_reach_databases(r->job->engine);
    for (size_t i = 0; i < s->db_count; i++) {
        const bk_set_db_t *target = configured_db(r->job->engine->set, s->dbs[i].name);
        bk_db_method_t method = BK_DB_LIVE;
        const char *reason = "the database is no longer configured";
        if (r->options.database != NULL && strcmp(r->options.database, s->dbs[i].name) != 0)
            continue;
        const char *kept = target != NULL ? why_kept(r, &s->dbs[i], target) : NULL;
        if (kept != NULL) {
            reason = kept;
        } else if (target != NULL) {
            bk_db_recover_t how = {.target = target->path,
                                   .page_size = s->dbs[i].page_size,
                                   .job = r->job->id,
                                   .helper = r->options.helper};
            bk_err_t why = {0};
            if (bk_db_recover_plan(&how, &method, &reason, &why) != BK_OK)
                reason = "the database cannot be looked at";
        }
        json_t *entry = json_pack(
            "{so ss ss sI}", "path",
            bk_json_name(target != NULL ? target->path : s->dbs[i].path,
                         strlen(target != NULL ? target->path : s->dbs[i].path)),
            "action",
            target == NULL || kept != NULL ? "skip"
            : method == BK_DB_LIVE         ? "database, live"
                                           : "database, offline",
            "reason", reason, "size", (json_int_t)(s->dbs[i].page_count * s->dbs[i].page_size));
        bk_point_tell(&r->point, &s->dbs[i], entry);
        json_array_append_new(plan, entry);
    }
}

static bk_rc_t plan_tables(recovery_t *r, json_t *plan, bk_err_t *err)
{
    json_t *list = NULL;
    bk_rc_t rc =
        bk_tables_of_point(r->job->engine, &r->point, r->job->body, BK_TABLES_COMPARE, &list, err);
    if (rc == BK_OK)
        json_array_extend(plan, list);
    json_decref(list);
    return rc;
}

bk_rc_t bk_recovery_plan(bk_job_t *job, bk_err_t *err)
{
    recovery_t r = {.job = job};
    json_t *plan = json_array();
    json_object_set_new(job->result, "plan", plan);
    bk_rc_t rc = read_request(&r, err);
    r.options.dry_run = true;
    if (rc == BK_OK)
        rc = open_backup(&r, err);
    if (rc == BK_OK && r.in_place) {
        if (json_is_array(json_object_get(job->body, "tables")))
            rc = plan_tables(&r, plan, err);
        else if (r.options.databases)
            plan_databases(&r, plan);
        if (rc == BK_OK && r.options.files)
            rc = bk_recover_files(r.opened.repo, &r.options, configured_tree,
                                  (void *)(uintptr_t)job->engine->set, job->team, job->result,
                                  job->ctl, err);
        json_object_set_new(job->result, "safety_backup",
                            json_boolean(job->engine->set->restore_safety));
    } else if (rc == BK_OK) {
        rc = recover_to_target(&r, err);
    }
    json_object_set_new(job->result, "dry_run", json_true());
    close_recovery(&r);
    return rc;
}
