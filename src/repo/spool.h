/*
 * repo/spool.h: moving objects from the spool to the storage.  The spool is a local directory with the storage's own names.
 */
#ifndef BK_REPO_SPOOL_H
#define BK_REPO_SPOOL_H

#include "repo/repo.h"

/* Publish one spooled object on the storage; then remove it from the spool when asked. */
bk_rc_t bk_spool_ship_one(bk_repo_t *repo, const char *name, bool remove, bk_ctl_t *ctl,
                          bk_err_t *err);
/*
 * Everything an earlier session left, in the order that keeps the storage consistent: packs, then an index segment for
 * those that no segment names, then index segments, then snapshots.
 */
bk_rc_t bk_spool_ship(bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err);

#endif
