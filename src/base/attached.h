/*
 * base/attached.h: which databases this process has open through SQLite, and which files it has
 * open by descriptors of its own.  Never both of one file: POSIX locks belong to the process, so
 * closing any descriptor of a database or of its -shm drops all of SQLite's locks on it, and with
 * them the snapshot that a backup reads or the transaction that a recovery writes
 * (https://www.sqlite.org/howtocorrupt.html, section 2.2).
 *
 * Whoever opens a database through SQLite adds it first.  Whoever opens files that may be databases
 * holds each descriptor before anything else, and closes it here.  O_PATH descriptors take and drop
 * no locks and need none of this; a descriptor of a -wal neither.  Any thread.
 */
#ifndef BK_BASE_ATTACHED_H
#define BK_BASE_ATTACHED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/err.h"

/* As stat(2). */
typedef int (*bk_attached_look_fn)(const char *path, struct stat *st);

/*
 * Count the database (and the -shm beside it, whenever there is one) as open; look finds the -shm.
 * path: without links.  BK_BUSY while it is reserved, or held by a descriptor.
 */
bk_rc_t bk_attached_add(const char *path, const struct stat *st, bk_attached_look_fn look,
                        bk_err_t *err);
/* How many connections of this process have it open. */
unsigned bk_attached_count(uint64_t device, uint64_t inode);
/* SQLite has read from it: the -shm that is there now stays the one, and nobody looks again. */
void bk_attached_settle(uint64_t device, uint64_t inode);
/* After SQLite closed it. */
void bk_attached_remove(uint64_t device, uint64_t inode);

/*
 * Keep this process's SQLite away from the name and the file, so that its raw descriptors may be
 * opened and closed: BK_BUSY when it is attached, reserved or held.  st is NULL when there is no
 * file.
 */
bk_rc_t bk_attached_reserve(const char *path, const struct stat *st, bk_attached_look_fn look,
                            bk_err_t *err);
void bk_attached_release(const char *path);

/* Is the file attached or reserved?  To pass over it; what is opened is held all the same. */
bool bk_attached_has(const struct stat *st);

/*
 * Take note of a descriptor for reading a file: until bk_attached_close SQLite does not get the
 * file.  False: it has it already.  Then the descriptor is not the caller's any more: it stays open
 * until SQLite has closed the file.
 */
bool bk_attached_hold(int fd);
/* Close a descriptor that was held; -1 is fine. */
void bk_attached_close(int fd);

#endif
