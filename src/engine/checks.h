/*
 * engine/checks.h: what the checking jobs share (private to src/engine): their list of checks, and
 * the proof that a backup's databases can be had.
 */
#ifndef BK_ENGINE_CHECKS_H
#define BK_ENGINE_CHECKS_H

#include "engine/engine_private.h"

/* Append {name, status: pass|fail|skip, detail}. */
void bk_add_check(json_t *checks, const char *name, const char *status, const char *detail);
/* pass with good, or fail with what err says. */
void bk_add_result(json_t *checks, const char *name, const bk_err_t *err, const char *good);

/*
 * Each database of the point through scratch/: rebuilt, digested, checked, removed.  facts (may be
 * NULL): object that gets the names of the first one's tables.  Databases larger than max bytes are
 * skipped (0: none is).  Returns the first failure, after all were tried.
 */
bk_rc_t bk_prove_databases(bk_job_t *job, const bk_point_t *point, uint64_t max, json_t *checks,
                           json_t *facts, bk_err_t *err);

#endif
