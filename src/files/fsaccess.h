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
#include "helper/client.h"

typedef struct bk_root_s bk_root_t;

/* path: absolute.  make: create it (0700) when missing. */
bk_rc_t bk_root_open(const char *path, bool make, bk_root_t **root, bk_err_t *err);
/*
 * The same with a helper (NULL: own rights only; borrowed until close) that gives the rights may
 * (BK_WIRE_MAY_...) besides.  Either is enough; a root that the helper's configuration does not
 * have is used by own rights.
 */
bk_rc_t bk_root_open_helped(const char *path, bool make, bk_helper_t *helper, uint32_t may,
                            bk_ctl_t *ctl, bk_root_t **root, bk_err_t *err);
void bk_root_close(bk_root_t *root);
const char *bk_root_path(const bk_root_t *root);
/* O_PATH-less directory descriptor, borrowed; -1: this process may not open the directory. */
int bk_root_fd(const bk_root_t *root);
bk_helper_root_t *bk_root_helper(const bk_root_t *root); /* NULL: none */

/* Open beneath: rel "" is the root itself.  flags as for open(2); O_CLOEXEC and O_NOFOLLOW are
 * added. */
bk_rc_t bk_root_openat(bk_root_t *root, const char *rel, int flags, mode_t mode, int *fd,
                       bk_err_t *err);
/* The same for many files: the descriptor, or -1 and errno (ELOOP, EXDEV: a link in the way). */
int bk_root_open_raw(bk_root_t *root, const char *rel, int flags, mode_t mode);

#endif
