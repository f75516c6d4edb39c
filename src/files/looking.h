/*
 * files/looking.h: how a backup looks at the files it reads: with this process's own rights, and
 * what they do not allow through the privileged helper, many names at a time (private to
 * src/files).
 *
 * Calls return 0 or an errno.  BK_LOOK_GONE: the helper is wanted and cannot be asked, so that
 * nobody knows what is there, and the backup has to end with bk_looker_gone; BK_LOOK_USED: see
 * there; EXDEV: a mount point, which the helper does not cross.  No link is followed, the name
 * itself neither.
 */
#ifndef BK_FILES_LOOKING_H
#define BK_FILES_LOOKING_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/buf.h"
#include "base/ctl.h"
#include "files/fsaccess.h"
#include "files/listing.h"
#include "helper/client.h"

#define BK_LOOK_GONE EOWNERDEAD /* no call here fails so for another reason */
#define BK_LOOK_USED EDEADLK    /* a database that this process has open; nor this one */
#define BK_VIEW_OPEN (BK_WIRE_OPS / 2)

/* One tree that is looked at, by any threads. */
typedef struct {
    bk_root_t *root;
    bk_helper_root_t *helper; /* NULL: none */
    bk_ctl_t *ctl;
    atomic_bool atime; /* O_NOATIME is not permitted to this process */
    pthread_mutex_t lock;
    bk_err_t gone; /* why the helper could not be asked, the first time; under the lock */
} bk_looker_t;

/* client: NULL, or borrowed until free.  Opening fails when neither way leads to path. */
bk_rc_t bk_looker_init(bk_looker_t *looker, const char *path, bk_helper_t *client, bk_ctl_t *ctl,
                       bk_err_t *err);
void bk_looker_free(bk_looker_t *looker); /* also of zeros */
bk_rc_t bk_looker_gone(bk_looker_t *looker, bk_err_t *err);

/* A directory below the root ("": itself), for listing.  helped: it took the helper. */
int bk_looker_dir(bk_looker_t *looker, const char *path, int *fd, bool *helped);
/* Status of a directory that cannot be opened. */
int bk_looker_stat(bk_looker_t *looker, const char *path, struct stat *st);
/* Its extended attributes.  A descriptor from the helper gives no right to those. */
int bk_looker_dir_attrs(bk_looker_t *looker, const char *path, int fd, bool helped, bk_buf_t *out);
/* Does the directory hold a valid CACHEDIR.TAG?  GONE counts as no. */
bool bk_looker_is_cache(bk_looker_t *looker, const char *path, int fd);

/* One thread looking at the names of one directory, in their order. */
typedef struct {
    bk_looker_t *looker;
    const char *path; /* of the directory, borrowed */
    int fd;           /* of it, borrowed */
    const bk_listing_t *names;
    bool helped;         /* nothing in it can be looked at without the helper */
    size_t first, count; /* names that the helper told of */
    bk_helper_result_t known[BK_WIRE_OPS];
} bk_view_t;

void bk_view_begin(bk_view_t *view, bk_looker_t *looker, const char *path, int fd,
                   const bk_listing_t *names);
void bk_view_end(bk_view_t *view);
/* at: number of the name in the listing. */
int bk_view_stat(bk_view_t *view, size_t at, struct stat *st);
/* Where the link leads, up to size bytes; more: ENAMETOOLONG. */
int bk_view_link(bk_view_t *view, size_t at, char *out, size_t size, size_t *len);
/* The extended attributes of what is no regular file and no directory. */
int bk_view_attrs(bk_view_t *view, size_t at, bk_buf_t *out);

/* A regular file, open for reading. */
typedef struct {
    int fd;    /* held (base/attached.h) until bk_view_close; -1: not open */
    int attrs; /* memfd with its attributes, the caller's; -1: none */
    int error; /* why it is not open */
    bool helped;
} bk_view_file_t;

/*
 * Open the first of the names at[0..count), and, when that takes the helper, up to
 * BK_VIEW_OPEN - 1 more of them with it; *opened tells how many of files are filled in.
 */
void bk_view_open(bk_view_t *view, const size_t *at, size_t count, bool attrs,
                  bk_view_file_t *files, size_t *opened);
void bk_view_close(bk_view_file_t *file); /* also one that is not open */
/* The attributes of an open file, of either kind. */
int bk_view_file_attrs(const bk_view_file_t *file, bk_buf_t *out);

#endif
