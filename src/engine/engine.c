/*
 * engine/engine.c: opening and owning a set, the queue, and running one job from its row to its
 * result.
 */
#include "engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/capturing.h"
#include "engine/ending.h"
#include "engine/engine_private.h"
#include "engine/metrics.h"
#include "engine/probe.h"
#include "engine/protect.h"
#include "engine/renew.h"
#include "engine/watching.h"
#include "sqlite/opening.h"

#define JOBS_KEPT   1000
#define CRASHES_MAX 20 /* times that one job may be cut off by a crash */

typedef struct {
    const char *name; /* of the kind, and of ids */
    bk_rc_t (*run)(bk_job_t *job, bk_err_t *err);
    bool resumes; /* after a crash it is simply run again */
} kind_t;

static const kind_t kinds[] = {
    [BK_JOB_BACKUP] = {"backup", bk_job_backup, true},
    [BK_JOB_RECOVERY] = {"recovery", bk_job_recovery, false},
    [BK_JOB_VALIDATE] = {"validate", bk_job_validate, true},
    [BK_JOB_VERIFY] = {"verify", bk_job_verify, true},
    [BK_JOB_TEST] = {"test", bk_job_test, true},
    [BK_JOB_CLEANUP] = {"cleanup", bk_job_cleanup, true},
    [BK_JOB_DELETE] = {"delete", bk_job_delete, true},
};

const char *bk_job_kind_name(bk_job_kind_t kind)
{
    return (size_t)kind < sizeof kinds / sizeof *kinds ? kinds[kind].name : "unknown";
}

const char *bk_job_status_name(bk_job_status_t status)
{
    static const char *const names[] = {"queued",  "running", "canceling", "completed",
                                        "warning", "failed",  "canceled",  "interrupted"};
    return (size_t)status < sizeof names / sizeof *names ? names[status] : "unknown";
}

/* --- opening --- */

static bk_rc_t make_directory(const bk_engine_t *engine, const char *name, char **path,
                              bk_err_t *err)
{
    char text[4096];
    bk_fmt(text, sizeof text, "%s/%s", engine->set->base_dir, name);
    *path = bk_strdup(text);
    if (*path == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", engine->set->name);
    return bk_mkdir_last(text, 0700, err);
}

/* In the log, and for a while in the health that all processes show. */
static void tell_replaced(bk_engine_t *engine)
{
    json_t *now = json_integer(bk_now());
    bk_log(BK_LOG_ERROR,
           "backup %s: the catalog was damaged and set aside as catalog.db.damaged-*; backups are "
           "read from the storage again, the history of jobs is lost",
           engine->set->name);
    if (bk_catalog_set_value(engine->catalog, "replaced", now, NULL) != BK_OK)
        bk_log(BK_LOG_WARN, "backup %s: the new catalog cannot be written", engine->set->name);
    json_decref(now);
}

bk_rc_t bk_engine_open(const bk_set_t *set, bk_engine_t **result, bk_err_t *err)
{
    bool replaced = false;
    bk_engine_t *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    engine->set = set;
    atomic_init(&engine->lock_fd, -1);
    engine->started = bk_now();
    pthread_mutex_init(&engine->helper_lock, NULL);
    pthread_mutex_init(&engine->ring_lock, NULL);
    if (gethostname(engine->host, sizeof engine->host - 1) != 0 || engine->host[0] == '\0')
        bk_strcpy(engine->host, sizeof engine->host, "localhost");
    bk_rc_t rc = bk_mkdir_last(set->base_dir, 0700, err);
    if (rc == BK_OK)
        rc = make_directory(engine, "cache", &engine->cache_dir, err);
    if (rc == BK_OK)
        rc = make_directory(engine, "spool", &engine->spool_dir, err);
    if (rc == BK_OK)
        rc = make_directory(engine, "scratch", &engine->scratch_dir, err);
    if (rc == BK_OK)
        rc = bk_catalog_open(set->base_dir, &engine->catalog, &replaced, err);
    if (rc != BK_OK) {
        bk_err_wrap(err, "backup %s: base_dir %s", set->name, set->base_dir);
        bk_engine_close(engine);
        return rc;
    }
    if (replaced)
        tell_replaced(engine);
    const bk_storage_config_t *storage = set->storage_count > 0 ? &set->storages[0] : NULL;
    rc = bk_protected_enter(set, err);
    if (rc == BK_OK)
        rc = bk_watching_new(set, &engine->watching, err);
    if (rc == BK_OK)
        rc = bk_capturing_new(set, engine->catalog, &engine->capturing, err);
    if (rc == BK_OK && storage != NULL && strcmp(storage->driver, "local") == 0)
        rc = bk_probe_new(bk_storage_config_get(storage, "path"), &engine->probe, err);
    if (rc != BK_OK) {
        bk_engine_close(engine);
        return rc;
    }
    *result = engine;
    return BK_OK;
}

void bk_engine_close(bk_engine_t *engine)
{
    if (engine == NULL)
        return;
    bk_engine_disown(engine);
    bk_protected_leave(engine->set);
    bk_capturing_free(engine->capturing);
    bk_watching_free(engine->watching);
    bk_probe_free(engine->probe);
    bk_catalog_close(engine->catalog);
    free(engine->cache_dir);
    free(engine->spool_dir);
    free(engine->scratch_dir);
    json_decref(engine->result);
    for (size_t i = 0; i < engine->set->db_count; i++)
        bk_db_unhelp(engine->set->dbs[i].path);
    pthread_mutex_destroy(&engine->helper_lock);
    pthread_mutex_destroy(&engine->ring_lock);
    bk_keyring_free(engine->ring);
    free(engine);
}

void bk_engine_set_client(bk_engine_t *engine, bk_helper_t *client)
{
    atomic_store(&engine->client, client);
}

/* What goes wrong here shows as a missing right when the database is opened. */
void bk_engine_reach_databases(bk_engine_t *engine)
{
    bk_helper_t *client = atomic_load(&engine->client);
    for (size_t i = 0; client != NULL && i < engine->set->db_count; i++)
        (void)bk_db_help(engine->set->dbs[i].path, client, NULL);
}

void bk_engine_set_helper(bk_engine_t *engine, const bk_engine_helper_t *helper)
{
    pthread_mutex_lock(&engine->helper_lock);
    engine->helper = *helper;
    pthread_mutex_unlock(&engine->helper_lock);
    if (helper->state == BK_ENGINE_HELPER_ACTIVE)
        bk_engine_reach_databases(engine);
}

void bk_engine_get_helper(bk_engine_t *engine, bk_engine_helper_t *helper)
{
    pthread_mutex_lock(&engine->helper_lock);
    *helper = engine->helper;
    pthread_mutex_unlock(&engine->helper_lock);
}

const char *bk_engine_helper_name(bk_engine_helper_state_t state)
{
    static const char *const names[] = {"off", "active", "standby", "down"};
    return names[state];
}

const bk_set_t *bk_engine_set(const bk_engine_t *engine)
{
    return engine->set;
}

/* --- owning --- */

typedef struct {
    char ids[64][BK_JOB_ID];
    bool resumes[64];
    size_t count;
} running_t;

static void find_running(void *arg, const bk_job_row_t *row)
{
    running_t *running = arg;
    bool runs = row->status == BK_STATUS_RUNNING || row->status == BK_STATUS_CANCELING;
    if (!runs || running->count == 64)
        return;
    bk_strcpy(running->ids[running->count], BK_JOB_ID, row->id);
    running->resumes[running->count++] = kinds[row->kind].resumes;
}

/*
 * What was running when its process died.  A recovery is not repeated on its own: somebody may have
 * mended things since.  A job that brings its process down each time must not do so for ever.
 */
static bk_rc_t recover_jobs(bk_engine_t *engine, bk_err_t *err)
{
    running_t *running = calloc(1, sizeof *running);
    uint64_t total;
    if (running == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", engine->set->name);
    bk_rc_t rc = bk_catalog_jobs(engine->catalog, 0, JOBS_KEPT, find_running, running, &total, err);
    for (size_t i = 0; i < running->count && rc == BK_OK; i++) {
        const char *id = running->ids[i];
        unsigned crashes = 0;
        bool canceled = false;
        if (!running->resumes[i]) {
            rc = bk_ending_give_up(
                engine, id, err,
                "the process was stopped in the middle of this recovery: files that are "
                "there are whole, each database is as before or recovered; run it again");
            continue;
        }
        rc = bk_catalog_requeue(engine->catalog, id, &crashes, &canceled, err);
        if (rc == BK_OK && canceled)
            bk_log(BK_LOG_NOTICE, "backup %s: job %s was cut off while it was being canceled",
                   engine->set->name, id);
        else if (rc == BK_OK && crashes > CRASHES_MAX)
            rc = bk_ending_give_up(
                engine, id, err,
                "the process died again and again while this job ran: look for "
                "\"exited on signal\" and for the kernel's out of memory messages");
        else if (rc == BK_OK)
            bk_log(BK_LOG_WARN, "backup %s: job %s was cut off and is queued again",
                   engine->set->name, id);
    }
    free(running);
    return rc;
}

static void unlock(int fd)
{
    flock(fd, LOCK_UN);
    close(fd);
}

static bk_rc_t take_lock(bk_engine_t *engine, int *fd, bk_err_t *err)
{
    char path[4096];
    bk_fmt(path, sizeof path, "%s/lock", engine->set->base_dir);
    bk_rc_t rc = bk_lock_file(path, fd, err);
    if (rc == BK_LOCKED)
        bk_capturing_hold_on(engine->capturing);
    return rc;
}

bk_rc_t bk_engine_own(bk_engine_t *engine, bk_err_t *err)
{
    int fd = -1;
    if (atomic_load(&engine->lock_fd) >= 0)
        return BK_OK;
    bk_rc_t rc = take_lock(engine, &fd, err);
    bool locked = rc == BK_OK;
    if (rc == BK_OK)
        rc = bk_remove_tree(engine->scratch_dir, false, err);
    if (rc == BK_OK)
        rc = recover_jobs(engine, err);
    if (rc == BK_OK) {
        bk_watching_load(engine->watching);
        bk_engine_obey_detach(engine);
        bk_capturing_allow(engine->capturing, true);
        atomic_store(&engine->lock_fd, fd); /* status acts as the owner from here on */
        return BK_OK;
    }
    if (locked)
        unlock(fd);
    if (rc != BK_LOCKED)
        bk_capturing_release(engine->capturing, false);
    return rc;
}

void bk_engine_disown(bk_engine_t *engine)
{
    int fd = atomic_exchange(&engine->lock_fd, -1);
    if (fd < 0)
        return;
    bk_capturing_allow(engine->capturing, false);
    if (bk_watching_any(engine->watching))
        bk_watching_save(engine->watching);
    unlock(fd);
}

/* --- the queue --- */

static const char *id_prefix(const bk_submit_t *request)
{
    const char *type = json_string_value(json_object_get(request->body, "backup_type"));
    if (request->kind == BK_JOB_BACKUP)
        return type != NULL ? type : "full";
    return bk_job_kind_name(request->kind);
}

bk_rc_t bk_engine_submit(bk_engine_t *engine, const bk_submit_t *request, char id[BK_JOB_ID],
                         bool *replayed, bk_err_t *err)
{
    char stamp[BK_TIME_TEXT];
    json_t *problems = NULL;
    bk_rc_t rc = bk_request_check(engine->set, request->kind, request->body, &problems, err);
    json_decref(problems);
    if (rc != BK_OK)
        return rc;
    bk_job_row_t row = {.kind = request->kind,
                        .created = bk_now(),
                        .body = request->body != NULL ? json_incref(request->body) : json_object(),
                        .trigger = bk_strdup(request->trigger),
                        .requested_by = bk_strdup(request->requested_by),
                        .request_id = bk_strdup(request->request_id)};
    bk_time_stamp(stamp, row.created);
    bk_fmt(row.id, sizeof row.id, "%s_%s", id_prefix(request), stamp);
    rc = bk_catalog_submit(engine->catalog, &row, request->idempotency_key, replayed, err);
    bk_strcpy(id, BK_JOB_ID, row.id);
    bk_job_row_free(&row);
    return rc;
}

bk_rc_t bk_engine_take(bk_engine_t *engine, char id[BK_JOB_ID], bk_err_t *err)
{
    id[0] = '\0';
    bk_rc_t rc = bk_ending_settle(engine, err);
    if (rc == BK_OK)
        rc = bk_renew_base(engine, err);
    if (rc == BK_OK)
        rc = bk_catalog_take(engine->catalog, id, err);
    if (rc == BK_OK)
        bk_strcpy(engine->taken, sizeof engine->taken, id);
    return rc;
}

/* The job may be taken, end or be queued again between two looks at it: each try is one step. */
bk_rc_t bk_engine_cancel(bk_engine_t *engine, const char *id, bk_job_status_t *status,
                         bk_err_t *err)
{
    static const struct {
        bk_job_status_t from, to;
    } tries[] = {{BK_STATUS_QUEUED, BK_STATUS_CANCELED},
                 {BK_STATUS_RUNNING, BK_STATUS_CANCELING},
                 {BK_STATUS_QUEUED, BK_STATUS_CANCELED}};
    bk_job_row_t row;
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        *status = tries[i].to;
        bk_rc_t rc = bk_catalog_change(engine->catalog, id, tries[i].from, tries[i].to, err);
        if (rc != BK_CONFLICT)
            return rc;
    }
    bk_rc_t rc = bk_catalog_job(engine->catalog, id, &row, err);
    if (rc != BK_OK)
        return rc;
    *status = row.status;
    bk_job_row_free(&row);
    if (*status == BK_STATUS_CANCELING) { /* somebody was first */
        bk_err_clear(err);
        return BK_OK;
    }
    return bk_err_set(err, BK_CONFLICT, "job %s is %s", id, bk_job_status_name(*status));
}

/* --- running --- */

/* What the job does; its end is in *status, what failed in failure. */
static bk_rc_t run_row(bk_engine_t *engine, const bk_job_row_t *row, bk_team_t *team, bk_ctl_t *ctl,
                       json_t *result, bk_job_status_t *status, bk_err_t *failure)
{
    bk_job_t job = {.engine = engine,
                    .id = row->id,
                    .created = row->created,
                    .body = row->body,
                    .result = result,
                    .team = team,
                    .ctl = ctl};
    bool resumes = kinds[row->kind].resumes;
    bk_log(BK_LOG_NOTICE, "backup %s: job %s started (%s by %s)", engine->set->name, row->id,
           row->trigger != NULL ? row->trigger : "?",
           row->requested_by != NULL ? row->requested_by : "?");
    bk_rc_t rc = kinds[row->kind].run(&job, failure);
    if (rc == BK_INTERRUPTED && !resumes)
        bk_err_set(failure, BK_INTERRUPTED,
                   "nginx was stopped in the middle of this recovery: files that are there are "
                   "whole, each database is as before or recovered; run it again");
    *status = bk_ending_status(rc, resumes, ctl, result);
    bk_ending_add_warnings(result, ctl);
    return rc;
}

bk_rc_t bk_engine_run(bk_engine_t *engine, const char *id, bk_team_t *team, bk_ctl_t *ctl,
                      bk_job_status_t *status, bk_err_t *err)
{
    bk_job_row_t row;
    bk_err_t failure = {0}, ignored = {0};
    json_t *result = json_object();
    int64_t began = bk_mono();
    *status = BK_STATUS_FAILED;
    bk_rc_t rc = bk_catalog_job(engine->catalog, id, &row, &failure);
    if (rc != BK_OK) {
        bk_err_wrap(&failure, "job %s was not started, its record cannot be read", id);
    } else {
        if (row.status == BK_STATUS_CANCELING) /* before anybody could raise its ctl */
            bk_ctl_stop(ctl, BK_CANCELED);
        /* A request without its members would be another one: the newest backup, in place. */
        rc = row.damaged ? bk_err_set(&failure, BK_CORRUPT,
                                      "job %s was not started, its record in %s/catalog.db is "
                                      "damaged: ask for it again",
                                      id, engine->set->base_dir)
                         : run_row(engine, &row, team, ctl, result, status, &failure);
        bk_metrics_count(engine, row.kind, row.body, *status, result,
                         (double)(bk_mono() - began) / BK_SEC);
        bk_job_row_free(&row);
    }
    if (rc != BK_OK) {
        json_object_set_new(result, "error", json_string(failure.text));
        json_object_set_new(result, "problem", bk_problem(&failure, NULL));
    }
    bk_remove_tree(engine->scratch_dir, false, &ignored);
    bk_ending_log(engine, id, *status, ctl, &failure);
    bk_ending_record(engine, id, *status, result);
    bk_catalog_prune(engine->catalog, JOBS_KEPT, NULL);
    if (rc != BK_OK && err != NULL)
        *err = failure;
    return rc;
}

bk_rc_t bk_engine_sync(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_opened_t opened;
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc == BK_REPO_MISSING) { /* before the first backup */
        bk_err_clear(err);
        return BK_OK;
    }
    if (rc == BK_OK) {
        rc = bk_engine_sync_from(engine, &opened, ctl, err);
        bk_engine_close_repo(&opened);
    }
    return rc;
}
