/*
 * engine/ending.h: how a job ends: its status, its warnings, the line in the log, and that its end
 * comes into the catalog, sooner or later.  For the owner's job thread.
 *
 * A job that was taken must not stay "running" for ever.  When the catalog cannot be written (a
 * full disk), the end is kept in memory and written before the next job is taken.
 */
#ifndef BK_ENGINE_ENDING_H
#define BK_ENGINE_ENDING_H

#include "engine/engine_private.h"

/* resumes: a job of this kind is simply run again after it was interrupted. */
bk_job_status_t bk_ending_status(bk_rc_t rc, bool resumes, const bk_ctl_t *ctl,
                                 const json_t *result);
/* Warnings of ctl as result.warnings and warnings_total. */
void bk_ending_add_warnings(json_t *result, bk_ctl_t *ctl);
void bk_ending_log(const bk_engine_t *engine, const char *id, bk_job_status_t status, bk_ctl_t *ctl,
                   const bk_err_t *err);

/* Write the end of a job that was run; result is stolen.  An interrupted one is queued again. */
void bk_ending_record(bk_engine_t *engine, const char *id, bk_job_status_t status, json_t *result);
/*
 * Before another job is taken: write the end that could not be written, give up the job that was
 * taken and never run.  Errors are those of the catalog: try again later.
 */
bk_rc_t bk_ending_settle(bk_engine_t *engine, bk_err_t *err);
/* A job that will not be run (again) fails with text. */
bk_rc_t bk_ending_give_up(bk_engine_t *engine, const char *id, bk_err_t *err, const char *text);

#endif
