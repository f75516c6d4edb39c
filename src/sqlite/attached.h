/*
 * sqlite/attached.h: which databases this process has open through SQLite, so that nobody else
 * opens and closes them: that would drop SQLite's POSIX locks.  Any thread.
 */
#ifndef BK_SQLITE_ATTACHED_H
#define BK_SQLITE_ATTACHED_H

#include <stdint.h>
#include <sys/stat.h>

#include "base/err.h"

/*
 * Count the database (and the -shm beside it, when there is one) as open.  path: without links.
 * BK_BUSY while it is reserved.
 */
bk_rc_t bk_db_attach(const char *path, const struct stat *st, bk_err_t *err);
/* How many connections of this process have it open. */
unsigned bk_db_attached(uint64_t device, uint64_t inode);
void bk_db_detach(uint64_t device, uint64_t inode);

/*
 * Keep this process's SQLite away from the name and the file, so that its raw descriptors may be
 * opened and closed: BK_BUSY when it is attached or reserved.  st is NULL when there is no file.
 */
bk_rc_t bk_db_reserve(const char *path, const struct stat *st, bk_err_t *err);
void bk_db_release(const char *path);

#endif
