/*
 * sqlite/beside.h: a database's name and those beside it, while a new file takes its place: with
 * this process's own rights, or by the privileged helper, so that owners come back and no right to
 * the directory is needed (private to src/sqlite).
 *
 * Names are the last components of paths.  Calls return 0 or an errno; BK_BESIDE_GONE when the
 * helper could not be asked, and then it is known why (bk_beside_error).  One thread.
 */
#ifndef BK_SQLITE_BESIDE_H
#define BK_SQLITE_BESIDE_H

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "base/ctl.h"
#include "helper/client.h"

#define BK_BESIDE_GONE EOWNERDEAD

typedef struct {
    const char *target;       /* borrowed: the path, without links */
    const char *name;         /* points into it */
    int fd;                   /* the directory; through the helper for flushing it alone */
    bk_helper_root_t *helper; /* NULL: own rights */
    bk_ctl_t *ctl;
    bk_err_t gone;
} bk_beside_t;

/*
 * helper: NULL or borrowed; a configuration without that database means own rights.  configured:
 * the path as the configuration has it.
 */
bk_rc_t bk_beside_open(bk_beside_t *b, const char *target, const char *configured,
                       bk_helper_t *helper, bk_ctl_t *ctl, bk_err_t *err);
void bk_beside_close(bk_beside_t *b); /* also of zeros */

int bk_beside_stat(bk_beside_t *b, const char *name, struct stat *st);
int bk_beside_use(bk_beside_t *b, const char *name, int *fd); /* for reading, writing, locking */
int bk_beside_create(bk_beside_t *b, const char *name, int *fd);
int bk_beside_rename(bk_beside_t *b, const char *from, const char *to, unsigned flags);
int bk_beside_unlink(bk_beside_t *b, const char *name);
int bk_beside_link(bk_beside_t *b, const char *from, const char *to); /* own rights only */
/* Through the helper only; *owned: false when the owner could not be set. */
int bk_beside_own(bk_beside_t *b, const char *name, uint32_t uid, uint32_t gid, uint32_t mode,
                  bool *owned);
/* Is fd all there is of the database?  EBUSY; EOPNOTSUPP when nobody can tell. */
int bk_beside_alone(bk_beside_t *b, int fd);
bk_rc_t bk_beside_room(bk_beside_t *b, uint64_t *bytes, bk_err_t *err);
bk_rc_t bk_beside_sync(bk_beside_t *b, bk_err_t *err);

/* Describe what a call failed with: "database TARGET: what NAME: text of the errno". */
bk_rc_t bk_beside_error(const bk_beside_t *b, int errnum, const char *what, const char *name,
                        bk_err_t *err);

#endif
