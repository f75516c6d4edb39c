/*
 * engine/compact.h: many small segments of a database on the storage become few larger ones, with
 * every transaction as it was.  One thread at a time for each database.
 */
#ifndef BK_ENGINE_COMPACT_H
#define BK_ENGINE_COMPACT_H

#include "engine/engine_private.h"

#define BK_COMPACT_RUN   32u            /* segments that follow each other, and more */
#define BK_COMPACT_MOST  1024u          /* of them at a time */
#define BK_COMPACT_CAP   (256ull << 20) /* bytes of what they become */
#define BK_COMPACT_GRACE (3600 * BK_SEC)

/*
 * Merge one run of segments, when there is one, and remove those that were merged longer than grace
 * (ns, by the storage's clock) ago.  *merged: how many became one now.  key: as bk_moments_key
 * gives.  Stopped at any time, every transaction is there.
 */
bk_rc_t bk_compact(bk_engine_t *engine, bk_repo_t *repo, const char *key, int64_t grace,
                   size_t *merged, bk_ctl_t *ctl, bk_err_t *err);

#endif
