/*
 * sqlite/vfs.h: a past state of a database as a file that SQLite can read (bk_past_t), under a name
 * that only this process knows: for queries, checks and copies without writing the image out.
 *
 * It is a SQLite VFS of its own, "ngxbackup" (https://www.sqlite.org/vfs.html): read only, without
 * locks or companions; temporary files are those of the default VFS.
 */
#ifndef BK_SQLITE_VFS_H
#define BK_SQLITE_VFS_H

#include "sqlite/past.h"

typedef struct bk_vfs_image_s bk_vfs_image_t;

/*
 * past is borrowed until bk_vfs_hide.  Many images may be shown by many threads; each image is for
 * one connection at a time.
 */
bk_rc_t bk_vfs_show(bk_past_t *past, bk_vfs_image_t **image, bk_err_t *err);
/* After its connection was closed.  NULL is fine. */
void bk_vfs_hide(bk_vfs_image_t *image);
/* For sqlite3_open_v2 with SQLITE_OPEN_URI, and for ATTACH; lives as long as the image. */
const char *bk_vfs_uri(const bk_vfs_image_t *image);
/*
 * SQLite knows only that a page could not be read.  Why it was, once one was not: into err, and its
 * code; else rc and err as they are.
 */
bk_rc_t bk_vfs_failure(const bk_vfs_image_t *image, bk_rc_t rc, bk_err_t *err);

#endif
