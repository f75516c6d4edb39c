/*
 * engine/readback.h: read every byte that the trees of one backup need, and keep nothing: the proof
 * that its files can be had, without the space to put them.
 */
#ifndef BK_ENGINE_READBACK_H
#define BK_ENGINE_READBACK_H

#include "base/team.h"
#include "repo/snapshot.h"

typedef struct {
    uint64_t files, bytes; /* looked at */
    uint64_t damaged;      /* files that lost something */
} bk_readback_t;

/*
 * failed: array that gets {path, error} of the first 100 that are damaged.  BK_OK also when some
 * are; failures are of the storage or a stop.
 */
bk_rc_t bk_readback(bk_repo_t *repo, const bk_snapshot_t *snapshot, bk_team_t *team, json_t *failed,
                    bk_readback_t *result, bk_ctl_t *ctl, bk_err_t *err);

#endif
