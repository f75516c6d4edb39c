/*
 * engine/cleanup.h: retention, for the job and for its dry run.
 */
#ifndef BK_ENGINE_CLEANUP_H
#define BK_ENGINE_CLEANUP_H

#include "engine/engine_private.h"

/* Remove (or, dry, only name) the backups that nothing keeps; result as cleanup_result of
 * docs/api.md. */
bk_rc_t bk_cleanup_run(bk_job_t *job, bool dry_run, json_t *result, bk_err_t *err);
/* May the backup that a checked request names be deleted?  BK_NOT_FOUND; BK_CONFLICT: it is pinned,
 * or moments begin with it. */
bk_rc_t bk_delete_check(bk_engine_t *engine, const json_t *body, bk_ctl_t *ctl, bk_err_t *err);
/* What a recovery would do: fills job->result.  engine/recovery.c */
bk_rc_t bk_recovery_plan(bk_job_t *job, bk_err_t *err);

#endif
