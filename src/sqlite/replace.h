/*
 * sqlite/replace.h: the offline half of a recovery: a new file takes the name of a database that
 * nobody has open.  recover.h says when.
 */
#ifndef BK_SQLITE_REPLACE_H
#define BK_SQLITE_REPLACE_H

#include "sqlite/recover.h"

/*
 * target: how->target without links.  sound: the old file is a database, so that what waits in its
 * -wal or -journal belongs into it before it is set aside.
 */
bk_rc_t bk_db_replace(const bk_db_recover_t *how, const char *target, bool sound, bk_ctl_t *ctl,
                      bk_err_t *err);

#endif
