/*
 * repo/spool.h: moving objects from the spool to the storage.
 *
 * The spool is a local directory with the storage's own names, and beside each snapshot
 * "relies/<snapshot>": the packs it needs, so that a snapshot that is shipped later, or whose
 * session died before its last check, can be checked without reading it.
 */
#ifndef BK_REPO_SPOOL_H
#define BK_REPO_SPOOL_H

#include "repo/repo.h"

/* Publish one spooled object on the storage; then remove it from the spool when asked. */
bk_rc_t bk_spool_ship_one(bk_repo_t *repo, const char *name, bool remove, bk_ctl_t *ctl,
                          bk_err_t *err);
/*
 * Everything an earlier session left, in the order that keeps the storage consistent: packs (those
 * that are what their name says), an index segment for those that no segment names, index segments,
 * then the snapshots that still have all they rely on.  What is left out is noted in ctl.
 */
bk_rc_t bk_spool_ship(bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err);
/* "snapshots/X" to "relies/X". */
void bk_spool_relies_name(char out[BK_STORAGE_NAME], const char *snapshot);
/* Take a snapshot and the list beside it out of the spool. */
void bk_spool_forget_snapshot(bk_repo_t *repo, const char *snapshot);

#endif
