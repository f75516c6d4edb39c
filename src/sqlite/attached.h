/*
 * sqlite/attached.h: which databases this process has open through SQLite, so that nobody else
 * opens and closes them: that would drop SQLite's POSIX locks.  Any thread.
 */
#ifndef BK_SQLITE_ATTACHED_H
#define BK_SQLITE_ATTACHED_H

#include <sqlite3.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/err.h"

/* Count the database (and the -shm beside it, when there is one) as open.  st: of the database. */
bk_rc_t bk_db_attach(const char *path, const struct stat *st, bk_err_t *err);
void bk_db_detach(uint64_t device, uint64_t inode);

/* Describe a failure of SQLite.  db may be NULL. */
bk_rc_t bk_db_error(sqlite3 *db, int code, const char *path, const char *operation, bk_err_t *err);

#endif
