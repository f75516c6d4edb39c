/*
 * engine/renew.h: a backup to begin from, when the history of a captured database has none: the
 * capture began anew (another page size, a file put in its place, an older base_dir) or began at
 * all, and nobody made a backup since.
 */
#ifndef BK_ENGINE_RENEW_H
#define BK_ENGINE_RENEW_H

#include "engine/engine.h"

extern int64_t bk_renew_after; /* ns that others have for it, 60 s; for tests */

/*
 * Owner only, now and then: queue an incremental backup when it is time.  Only of a set that has a
 * backup of its database already: the first one is the operator's.  BK_OK also when nothing was to
 * be done.  [short]
 */
bk_rc_t bk_renew_base(bk_engine_t *engine, bk_err_t *err);

#endif
