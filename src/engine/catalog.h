/*
 * engine/catalog.h: base_dir/catalog.db: jobs, idempotency keys, copies of the snapshots, a few
 * values.  All but the history of jobs can be rebuilt.  Several processes have it open at once
 * (WAL); within a process one handle is shared under its own lock.  Calls take milliseconds, never
 * seconds.
 */
#ifndef BK_ENGINE_CATALOG_H
#define BK_ENGINE_CATALOG_H

#include <jansson.h>

#include "engine/engine.h"

typedef struct bk_catalog_s bk_catalog_t;

/* A damaged catalog is set aside as catalog.db.damaged-<time> and a new one is made; *replaced
 * tells. */
bk_rc_t bk_catalog_open(const char *base_dir, bk_catalog_t **catalog, bool *replaced,
                        bk_err_t *err);
void bk_catalog_close(bk_catalog_t *catalog);

/* One row of jobs; strings are heap, owned by the row. */
typedef struct {
    char id[BK_JOB_ID];
    bk_job_kind_t kind;
    bk_job_status_t status;
    json_t *body;   /* request, object */
    json_t *result; /* object; NULL before the end */
    char *trigger, *requested_by, *request_id;
    int64_t created, started, completed; /* ns, 0: not yet */
    int64_t sequence;                    /* order of creation */
    bool damaged; /* what was asked for cannot be told any more: never to be run */
} bk_job_row_t;

void bk_job_row_free(bk_job_row_t *row);

/*
 * Insert a queued job under id, "_2", "_3", … when that is taken; row->id is filled.  An equal job
 * (kind, body) that is queued or running: BK_CONFLICT and its id.  key (may be NULL) as
 * bk_engine_submit says.
 */
bk_rc_t bk_catalog_submit(bk_catalog_t *catalog, bk_job_row_t *row, const char *key, bool *replayed,
                          bk_err_t *err);
bk_rc_t bk_catalog_job(bk_catalog_t *catalog, const char *id, bk_job_row_t *row, bk_err_t *err);
/* Newest first, sequence below before (0: from the newest); fn gets each row. */
typedef void (*bk_catalog_job_fn)(void *arg, const bk_job_row_t *row);
bk_rc_t bk_catalog_jobs(bk_catalog_t *catalog, int64_t before, unsigned limit, bk_catalog_job_fn fn,
                        void *arg, uint64_t *total, bk_err_t *err);
/* The oldest queued one becomes running; id "" when there is none. */
bk_rc_t bk_catalog_take(bk_catalog_t *catalog, char id[BK_JOB_ID], bk_err_t *err);
/*
 * status, result (may be NULL) and completed = now for an ended one.  Queued: it is to be taken
 * again, started is forgotten; one that is being canceled is canceled instead.
 */
bk_rc_t bk_catalog_finish(bk_catalog_t *catalog, const char *id, bk_job_status_t status,
                          const json_t *result, bk_err_t *err);
/*
 * A running job whose process died is queued again; *crashes: how often that has happened to it.
 * One that was being canceled is *canceled.
 */
bk_rc_t bk_catalog_requeue(bk_catalog_t *catalog, const char *id, unsigned *crashes, bool *canceled,
                           bk_err_t *err);
/* Change status only when it is from now: BK_CONFLICT otherwise.  To canceling: it has no end yet.
 */
bk_rc_t bk_catalog_change(bk_catalog_t *catalog, const char *id, bk_job_status_t from,
                          bk_job_status_t to, bk_err_t *err);
/* Count of jobs by status since the beginning: counts[status]. */
bk_rc_t bk_catalog_counts(bk_catalog_t *catalog, uint64_t counts[8], bk_err_t *err);
/* The newest ended job of a kind; BK_NOT_FOUND when there is none. */
bk_rc_t bk_catalog_last(bk_catalog_t *catalog, bk_job_kind_t kind, bk_job_row_t *row,
                        bk_err_t *err);
/* Drop ended jobs but the newest keep, and idempotency keys older than a day. */
bk_rc_t bk_catalog_prune(bk_catalog_t *catalog, unsigned keep, bk_err_t *err);

/*
 * Backups: one JSON object each, as GET /backups/{id} shows it, with "completed_ns".  replace puts
 * the whole list (array) in place of the old one, at once; what is the same is not written.
 */
bk_rc_t bk_catalog_backups_replace(bk_catalog_t *catalog, const json_t *backups, bk_err_t *err);
bk_rc_t bk_catalog_backup(bk_catalog_t *catalog, const char *id, json_t **backup, bk_err_t *err);
/* Newest first; every one is parsed and given to fn, which answers false to stop. */
typedef bool (*bk_catalog_backup_fn)(void *arg, json_t *backup);
bk_rc_t bk_catalog_backups(bk_catalog_t *catalog, bk_catalog_backup_fn fn, void *arg,
                           bk_err_t *err);

/* Small values: {"verified": …}.  A missing one is NULL and BK_OK. */
bk_rc_t bk_catalog_value(bk_catalog_t *catalog, const char *key, json_t **value, bk_err_t *err);
bk_rc_t bk_catalog_set_value(bk_catalog_t *catalog, const char *key, const json_t *value,
                             bk_err_t *err);
/*
 * Change the members of one, of which several processes know others: nobody writes it in between.
 * edit is given an object, empty when there is none yet, and asks the catalog for nothing.
 */
typedef void (*bk_catalog_edit_fn)(json_t *value, void *arg);
bk_rc_t bk_catalog_edit_value(bk_catalog_t *catalog, const char *key, bk_catalog_edit_fn edit,
                              void *arg, bk_err_t *err);

#endif
