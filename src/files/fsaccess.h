/*
 * files/fsaccess.h: how the file engine reaches the application's files: the seam where a
 * privileged helper fits in.
 *
 * A root is a configured directory.  Everything is named by (root, relative path) and resolved
 * beneath the root without following symbolic links (openat2 RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
 * | RESOLVE_NO_MAGICLINKS, emulated component by component where the kernel lacks it).  Any thread.
 */
#ifndef BK_FILES_FSACCESS_H
#define BK_FILES_FSACCESS_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/err.h"

typedef struct bk_root_s bk_root_t;

/* path: absolute.  make: create it (0700) when missing. */
bk_rc_t bk_root_open(const char *path, bool make, bk_root_t **root, bk_err_t *err);
void bk_root_close(bk_root_t *root);
const char *bk_root_path(const bk_root_t *root);
int bk_root_fd(const bk_root_t *root); /* O_PATH-less directory descriptor, borrowed */

/* Open beneath: rel "" is the root itself.  flags as for open(2); O_CLOEXEC and O_NOFOLLOW are
 * added. */
bk_rc_t bk_root_openat(bk_root_t *root, const char *rel, int flags, mode_t mode, int *fd,
                       bk_err_t *err);
/* The same for many files: the descriptor, or -1 and errno (ELOOP, EXDEV: a link in the way). */
int bk_root_open_raw(bk_root_t *root, const char *rel, int flags, mode_t mode);

#endif
