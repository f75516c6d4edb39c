/*
 * base/team.h: a job's lanes, on whatever threads the host has (nginx thread pool, plain threads).
 *
 * Lane 0 runs the job's main function; lanes 1.. run bk_team_lane and take work from one bounded
 * stack.  Lane 0 must be able to do everything alone: a lane may start late or never.  Hence the
 * two rules that make a deadlock impossible: bk_team_submit runs the work in the caller when the
 * stack is full, and bk_team_wait works while it waits. A work function must not call bk_team_wait
 * and must not block on another work function.
 *
 * Lifetime: bk_team_new gives one reference; each lane that will be started needs its own
 * (bk_team_ref) and gives it back when bk_team_lane returns.  A lane that starts after
 * bk_team_close returns at once.
 */
#ifndef BK_BASE_TEAM_H
#define BK_BASE_TEAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

typedef struct bk_team_s bk_team_t;

/*
 * The works that belong together, and the first failure among them.  Zero-initialise with
 * bk_group_init. Later works of a failed group still run (they must look at bk_group_failed
 * themselves when that is cheaper).
 */
typedef struct {
    atomic_size_t pending;
    atomic_bool failed;
    bk_err_t err; /* valid once failed; written once, under the team's lock */
} bk_group_t;

typedef bk_rc_t (*bk_work_fn)(void *arg, bk_err_t *err);

/* lanes >= 1 counts lane 0.  At most queue_max works and queue_bytes of declared weight wait at a
 * time. */
bk_team_t *bk_team_new(unsigned lanes, size_t queue_max, size_t queue_bytes);
bk_team_t *bk_team_ref(bk_team_t *team);
void bk_team_unref(bk_team_t *team);
unsigned bk_team_lanes(const bk_team_t *team);

/* Body of lanes 1..: work until the team is closed. */
void bk_team_lane(bk_team_t *team);
/* No more work will come; lanes return.  Called by lane 0 at its end. */
void bk_team_close(bk_team_t *team);

void bk_group_init(bk_group_t *group);
bool bk_group_failed(const bk_group_t *group);
/* team may be NULL: the work runs at once in the caller. */
void bk_team_submit(bk_team_t *team, bk_group_t *group, bk_work_fn fn, void *arg, size_t weight);
/* Work until the group has nothing pending, then its first failure or BK_OK. */
bk_rc_t bk_team_wait(bk_team_t *team, bk_group_t *group, bk_err_t *err);
/* Run at most one waiting work in the caller.  False when there was none. */
bool bk_team_help(bk_team_t *team);

/* Run main on this thread as lane 0 with lanes - 1 plain threads beside it: the command line and
 * unit tests. */
bk_rc_t bk_team_run(unsigned lanes, bk_rc_t (*main_fn)(bk_team_t *team, void *arg, bk_err_t *err),
                    void *arg, bk_err_t *err);

#endif
