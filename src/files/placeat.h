/*
 * files/placeat.h: names of the target's directories, changed with this process's own rights or by
 * the privileged helper (private to src/files and src/engine).
 *
 * A road is chosen once for a target: with a helper everything goes through it, so that owners come
 * back.  Own rights are left for what the helper does not cross: other file systems mounted below
 * the target.
 *
 * Calls return 0 or an errno; BK_AT_GONE when the helper could not be asked, and then the road
 * knows why (bk_at_error).  No link is followed, the name itself neither.  Any thread.
 */
#ifndef BK_FILES_PLACEAT_H
#define BK_FILES_PLACEAT_H

#include <errno.h>
#include <pthread.h>

#include "base/ctl.h"
#include "files/fsaccess.h"
#include "files/listing.h"
#include "helper/client.h"

#define BK_AT_GONE EOWNERDEAD /* no call here fails so for another reason */

typedef struct {
    bk_root_t *root;
    bk_helper_root_t *helper; /* NULL: own rights */
    bk_ctl_t *ctl;
    int nothing; /* a memfd without bytes, for attributes that are none; -1: none needed */
    pthread_mutex_t lock;
    bk_err_t gone; /* why the helper could not be asked, the first time */
} bk_road_t;

/* A directory of the target that is being worked in. */
typedef struct {
    bk_road_t *road;
    const char *path; /* below the root, borrowed */
    int fd;           /* of it; -1: through the helper, or not open */
} bk_at_t;

/* root and ctl are borrowed. */
bk_rc_t bk_road_init(bk_road_t *road, bk_root_t *root, bk_ctl_t *ctl, bk_err_t *err);
void bk_road_free(bk_road_t *road); /* also of zeros */
/*
 * All directories of a path below the root; through the helper each with the owner of the one
 * above.  dry: only look.  *made: the last one was not there.
 */
bk_rc_t bk_road_make(bk_road_t *road, const char *path, bool dry, bool *made, bk_err_t *err);
/* Bytes that are free there for this process, and: everything that was written is on the disk. */
bk_rc_t bk_road_free_space(bk_road_t *road, uint64_t *bytes, bk_err_t *err);
bk_rc_t bk_road_sync(bk_road_t *road, bk_err_t *err);

/*
 * own: another file system, which the helper does not cross.  Through the helper this asks nothing:
 * a directory that is not there shows in the first operation.
 */
int bk_at_open(bk_road_t *road, const char *path, bool own, bk_at_t *at);
void bk_at_close(bk_at_t *at); /* also of one that was never open */
bool bk_at_helped(const bk_at_t *at);

int bk_at_stat(const bk_at_t *at, const char *name, struct stat *st);
/* A descriptor for reading; "" is the directory itself.  flags: 0, O_DIRECTORY or O_NOATIME, which
 * is left out where it is not allowed. */
int bk_at_read(const bk_at_t *at, const char *name, int flags, int *fd);
bool bk_at_leads_to(const bk_at_t *at, const char *name, const void *target, size_t len);
bool bk_at_is_cache(const bk_at_t *at);               /* holds a valid CACHEDIR.TAG */
int bk_at_mkdir(const bk_at_t *at, const char *name); /* 0700 */
/* Through the helper: give a directory that was made the owner of the one above it. */
int bk_at_like_above(const bk_at_t *at, const char *name);
int bk_at_unlink(const bk_at_t *at, const char *name, int flags);
int bk_at_rename(const bk_at_t *at, const char *from, const char *to, unsigned flags);
int bk_at_link(const bk_at_t *at, const char *from, const char *to);
/* from: a path below the root. */
int bk_at_link_from(const bk_at_t *at, const char *from, const char *to);
/* A new file, 0600, open for reading and writing. */
int bk_at_create(const bk_at_t *at, const char *name, int *fd);
/* link: where it leads; NULL: a FIFO instead, 0600. */
int bk_at_special(const bk_at_t *at, const char *name, const char *link);

/* Several operations through the helper, in order, each with its result; 0 or BK_AT_GONE. */
int bk_at_batch(const bk_at_t *at, const bk_helper_op_t *ops, size_t count,
                bk_helper_result_t *results);

/* Describe an errno of a call here, which failed at what; fatal when the helper is gone. */
bk_rc_t bk_at_error(bk_road_t *road, int errnum, const char *what, bk_err_t *err);

/* --- what is there already, name by name in sorted order --- */

#define BK_PEEK_NAMES BK_WIRE_OPS

typedef struct {
    bk_listing_t names;
    size_t first, count; /* of them those that are known */
    struct stat st[BK_PEEK_NAMES];
    int error[BK_PEEK_NAMES];
} bk_peek_t;

/* As bk_at_stat, for names in ascending order: the helper is asked for many at once. */
int bk_peek_stat(bk_peek_t *peek, const bk_at_t *at, const char *name, struct stat *st);

#endif
