/*
 * sqlite/check.h: SQLite's own checks of an image, which nobody writes meanwhile.  Any thread, one
 * image each.
 */
#ifndef BK_SQLITE_CHECK_H
#define BK_SQLITE_CHECK_H

#include "base/ctl.h"
#include "base/team.h"

#define BK_DB_WHOLE_BYTES (5ull << 30) /* from here on an integrity_check would take too long */

/*
 * integrity_check below that size, else quick_check, of a file that is open for reading; name is
 * for messages.  BK_CORRUPT: with what SQLite said.
 */
bk_rc_t bk_db_check(int fd, const char *name, bk_ctl_t *ctl, bk_err_t *err);
bk_rc_t bk_db_check_file(const char *file, bk_ctl_t *ctl, bk_err_t *err);
/* Flush it, and check it meanwhile when that is wanted: before it gets a name, or is copied. */
bk_rc_t bk_db_check_and_flush(int fd, const char *name, bool check, bk_team_t *team, bk_ctl_t *ctl,
                              bk_err_t *err);

/* How many rows of it refer to rows that are not there, at most BK_DB_ORPHANS_MAX. */
#define BK_DB_ORPHANS_MAX 1000u
bk_rc_t bk_db_check_references(const char *file, uint64_t *orphans, bk_ctl_t *ctl, bk_err_t *err);

#endif
