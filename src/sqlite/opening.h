/*
 * sqlite/opening.h: an application's database that this process has no right to, opened through the
 * privileged helper beneath SQLite: by the system calls that its unix VFS lets others replace
 * (https://www.sqlite.org/c3ref/vfs.html, xSetSystemCall).
 *
 * That table belongs to the whole process, so a replacement does what the system call does, and
 * only for a database that was named here, and only what it answers with EACCES, is asked of the
 * helper.  Any thread.
 */
#ifndef BK_SQLITE_OPENING_H
#define BK_SQLITE_OPENING_H

#include <stdbool.h>
#include <sys/stat.h>

#include "base/err.h"
#include "helper/client.h"

/*
 * From now on the files of the database at path, as the helper's configuration names it, may come
 * from client, which is borrowed until bk_db_unhelp of the same path.  Named again it gets the new
 * client.
 */
bk_rc_t bk_db_help(const char *path, bk_helper_t *client, bk_err_t *err);
/* Waits for what is being asked about it. */
void bk_db_unhelp(const char *path);
/* Is path one of those databases? */
bool bk_db_is_helped(const char *path);

/* As stat(2), access(2) and open(2) for reading, of a database and its companions: 0 or a
 * descriptor, or -1 and errno. */
int bk_db_stat(const char *path, struct stat *st);
int bk_db_access(const char *path, int how);
int bk_db_open_file(const char *path);

#endif
