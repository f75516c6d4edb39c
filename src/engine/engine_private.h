/*
 * engine/engine_private.h: what the files of engine/ share: the engine, a running job, and the
 * bodies of each kind of job.
 */
#ifndef BK_ENGINE_ENGINE_PRIVATE_H
#define BK_ENGINE_ENGINE_PRIVATE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "engine/catalog.h"
#include "engine/engine.h"
#include "engine/point.h"
#include "repo/repo.h"
#include "repo/snapshot.h"

struct bk_engine_s {
    const bk_set_t *set;
    bk_catalog_t *catalog;
    char host[128];
    char *cache_dir, *spool_dir, *scratch_dir;
    atomic_int lock_fd; /* of base_dir/lock while owner, else -1; status asks on another thread */
    int64_t started;    /* ns */
    pthread_mutex_t helper_lock;
    pthread_mutex_t ring_lock;
    bk_keyring_t *ring;          /* of a passphrase, which is dear to open; under ring_lock */
    bk_engine_helper_t helper;   /* as last told; under helper_lock */
    bk_helper_t *_Atomic client; /* NULL: jobs have their own rights only */
    struct bk_watching_s *watching;
    struct bk_capturing_s *capturing;
    struct bk_probe_s *probe; /* of a local storage, else NULL */
    /* Owner: the job that was taken and has no end in the catalog yet, "" when there is none; its
     * end once it has one (engine/ending.h). */
    char taken[BK_JOB_ID];
    bk_job_status_t status;
    json_t *result;
    int64_t renew_next; /* bk_mono: engine/renew.h looks again then */
};

/* A job while it runs: belongs to lane 0; other lanes see only what is handed to them. */
typedef struct {
    bk_engine_t *engine;
    const char *id;
    int64_t created; /* ns */
    json_t *body;    /* checked request, borrowed */
    json_t *result;  /* object: members of the answer */
    bk_team_t *team;
    bk_ctl_t *ctl;
} bk_job_t;

/* The repository of the set's storage, opened for one job. */
typedef struct {
    bk_storage_t *storage;
    bk_repo_t *repo;
} bk_opened_t;

void bk_engine_get_helper(bk_engine_t *engine, bk_engine_helper_t *helper);
const char *bk_engine_helper_name(bk_engine_helper_state_t state);

bk_rc_t bk_engine_open_repo(bk_engine_t *engine, bool create, bk_ctl_t *ctl, bk_opened_t *opened,
                            bk_err_t *err);
void bk_engine_close_repo(bk_opened_t *opened);
/* Free space of base_dir and of a local storage against min_free: BK_NO_SPACE. */
bk_rc_t bk_engine_check_space(bk_engine_t *engine, bk_err_t *err);
/* The same of what is known already: bytes that are free at path. */
bk_rc_t bk_judge_space(const char *path, uint64_t bytes, uint64_t min, bk_err_t *err);

/* Databases that this process may not open are opened through its helper, if it has one.  [may wait
 * for the helper] */
void bk_engine_reach_databases(bk_engine_t *engine);
/* The owner: what is detached now.  What cannot be read changes nothing. */
void bk_engine_obey_detach(bk_engine_t *engine);

/* One job each; result members are added to job->result, warnings go through ctl notes. */
bk_rc_t bk_job_backup(bk_job_t *job, bk_err_t *err);
bk_rc_t bk_job_recovery(bk_job_t *job, bk_err_t *err);
bk_rc_t bk_job_validate(bk_job_t *job, bk_err_t *err);
bk_rc_t bk_job_verify(bk_job_t *job, bk_err_t *err);
bk_rc_t bk_job_test(bk_job_t *job, bk_err_t *err);
bk_rc_t bk_job_cleanup(bk_job_t *job, bk_err_t *err);
bk_rc_t bk_job_delete(bk_job_t *job, bk_err_t *err);

/* A backup of parts of the set under its own id and kind: the safety backup of a recovery. */
typedef struct {
    const char *id, *kind; /* "safety" */
    const char *database;  /* only this one; NULL: all */
    bool databases, files;
    bool full;
    bool upload;
    bool lenient; /* a database that cannot be read is noted, not fatal */
} bk_backup_scope_t;
bk_rc_t bk_backup_run(bk_job_t *job, bk_opened_t *opened, const bk_backup_scope_t *scope,
                      json_t *result, bk_err_t *err);

/* The point that a checked request is about.  Its strings are body's and the engine's. */
void bk_request_point(const bk_engine_t *engine, const json_t *body, bk_point_wish_t *wish);

/*
 * The checks that a database's block has, on an image: BK_FAILED, with the query, when one does not
 * answer with a single row whose first value is true.  db NULL: there are none.  checks.c.
 */
bk_rc_t bk_check_required(const bk_set_db_t *db, const char *image, bk_ctl_t *ctl, bk_err_t *err);

/*
 * The tables that a checked request names, of the point: whether there are such (*result, which may
 * then be NULL, stays NULL), what would change, or the recovery.  recover_tables.c.
 */
typedef enum { BK_TABLES_CHECK, BK_TABLES_COMPARE, BK_TABLES_RECOVER } bk_tables_act_t;
bk_rc_t bk_tables_of_point(bk_engine_t *engine, const bk_point_t *point, const json_t *body,
                           bk_tables_act_t act, json_t **result, bk_err_t *err);

/* Snapshots of the storage into the catalog. */
bk_rc_t bk_engine_sync_from(bk_engine_t *engine, bk_opened_t *opened, bk_ctl_t *ctl, bk_err_t *err);
/* GET /jobs/{id} of a row. */
json_t *bk_describe_job(const bk_job_row_t *row, const char *set);

/*
 * Is target inside a restore_root, links resolved?  root: that restore_root; below: the rest, in
 * resolved.  BK_FORBIDDEN.
 */
bk_rc_t bk_target_check(const bk_set_t *set, const char *target, const char **root,
                        const char **below, char resolved[PATH_MAX], bk_err_t *err);

/* For tests: bytes from which a full backup looks ahead, and ms of each of its pins; 0: 200. */
extern uint64_t bk_backup_ahead_from;
extern unsigned bk_backup_ahead_pin;

#endif
