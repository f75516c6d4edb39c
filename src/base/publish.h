/*
 * base/publish.h: the one way a file comes into being, and the loops around read and write.
 *
 * Calling sequence: bk_publish_open, write to pub.fd, then bk_publish_commit (fsync, rename or
 * link, fsync of the directory) or bk_publish_abort.  A crash at any point leaves the old file or
 * the new one under the name, and at most one temporary ".tmp-<ulid>" beside it, which
 * bk_publish_sweep removes.  All calls block; any thread.
 */
#ifndef BK_BASE_PUBLISH_H
#define BK_BASE_PUBLISH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/err.h"

typedef struct {
    int fd;       /* open for writing, or -1 */
    int dirfd;    /* directory of the name, owned */
    char tmp[64]; /* temporary name in it */
    char name[256];
} bk_publish_t;

/* dirfd: base of path (AT_FDCWD allowed, not kept).  path's directory must exist.  mode as for
 * open(2). */
bk_rc_t bk_publish_open(bk_publish_t *pub, int dirfd, const char *path, mode_t mode, bk_err_t *err);
/* exclusive: BK_EXISTS instead of replacing what has the name (nothing is changed then).  Aborts
 * when it fails. */
bk_rc_t bk_publish_commit(bk_publish_t *pub, bool exclusive, bk_err_t *err);
void bk_publish_abort(bk_publish_t *pub);
/* open + write + commit. */
bk_rc_t bk_publish_bytes(int dirfd, const char *path, mode_t mode, const void *data, size_t len,
                         bool exclusive, bk_err_t *err);
/*
 * The same without fsync, replacing: for caches that can be made again and whose readers check what
 * they find, since power loss may leave a short or an empty file.
 */
bk_rc_t bk_publish_cache(int dirfd, const char *path, mode_t mode, const void *data, size_t len,
                         bk_err_t *err);
/* Remove temporaries older than min_age seconds in one directory. */
void bk_publish_sweep(const char *dir, unsigned min_age);

/*
 * Loops over short transfers and EINTR, which network and FUSE file systems may answer in any call.
 * what names the object in the message.  bk_openat is openat(2) with O_CLOEXEC: -1 and errno.
 */
int bk_openat(int dirfd, const char *path, int flags, mode_t mode);
bk_rc_t bk_write_all(int fd, const void *data, size_t len, const char *what, bk_err_t *err);
bk_rc_t bk_pwrite_all(int fd, const void *data, size_t len, uint64_t offset, const char *what,
                      bk_err_t *err);
/* Reads up to len bytes; *got < len only at the end of the file. */
bk_rc_t bk_read_all(int fd, void *data, size_t len, size_t *got, const char *what, bk_err_t *err);
bk_rc_t bk_pread_all(int fd, void *data, size_t len, uint64_t offset, size_t *got, const char *what,
                     bk_err_t *err);
/* A whole small file.  BK_TOO_LARGE past out->max. */
bk_rc_t bk_read_file(int dirfd, const char *path, bk_buf_t *out, bk_err_t *err);

/* mkdir -p with mode for each directory made; BK_OK when it is there.  fsyncs the parents it
 * changed. */
bk_rc_t bk_mkdirs(const char *path, mode_t mode, bk_err_t *err);
/* The directory that path lies in, "." for a name alone; slashes at the end of path count nothing.
 * false: it does not fit. */
bool bk_parent_of(const char *path, char *dir, size_t size);
/*
 * Make a directory (BK_OK when it is there already), but none above it: those are the operator's,
 * who may have forgotten to mount their disk.  BK_NOT_FOUND says so.
 */
bk_rc_t bk_mkdir_last(const char *path, mode_t mode, bk_err_t *err);
/* The same question without making anything: could it be made? */
bk_rc_t bk_mkdir_check(const char *path, bk_err_t *err);
/* fsync a directory by path relative to dirfd. */
bk_rc_t bk_fsync_dir(int dirfd, const char *path, bk_err_t *err);
/* rm -r of the content of dir, not following links, not crossing mounts; dir itself too when self.
 */
bk_rc_t bk_remove_tree(const char *dir, bool self, bk_err_t *err);
/* Bytes free for this user on the file system of path. */
bk_rc_t bk_free_space(const char *path, uint64_t *bytes, bk_err_t *err);
/* flock(2) exclusive without waiting; BK_LOCKED when taken.  *fd stays open and holds it. */
bk_rc_t bk_lock_file(const char *path, int *fd, bk_err_t *err);

#endif
