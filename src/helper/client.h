/*
 * helper/client.h: how a worker asks the privileged helper.
 *
 * A bk_helper_t is one process's side: the broker socket and a few conversations, one of which a
 * thread holds for the length of a request, so any number of threads may ask at once.  A
 * conversation that breaks is replaced; a request that only looks (stat, open for reading) is then
 * sent again once, one that changes something fails with BK_UNAVAILABLE, since nobody knows whether
 * it was done.  Everything waits in poll with a bound of 100 ms and looks at ctl in between; where
 * ctl is NULL, for bk_helper_alone_ms at most, then it is BK_UNAVAILABLE.
 */
#ifndef BK_HELPER_CLIENT_H
#define BK_HELPER_CLIENT_H

#include <sys/stat.h>

#include "base/ctl.h"
#include "base/err.h"
#include "helper/protocol.h"

typedef struct bk_helper_s bk_helper_t;
typedef struct bk_helper_root_s bk_helper_root_t;

extern unsigned bk_helper_alone_ms; /* 30000; for tests */

/* broker: the inherited socket, borrowed; it must stay open as long as this lives. */
bk_rc_t bk_helper_new(int broker, bk_helper_t **helper, bk_err_t *err);
void bk_helper_free(bk_helper_t *helper); /* after all roots and watches; NULL is fine */
/* Ask who is there: version, watch kinds.  BK_UNAVAILABLE when nobody answers within 2 s. */
bk_rc_t bk_helper_hello(bk_helper_t *helper, bk_wire_hello_t *hello, bk_ctl_t *ctl, bk_err_t *err);

/*
 * path: as configured; may: BK_WIRE_MAY_… that are needed.  BK_FORBIDDEN when the configuration
 * does not give that root; BK_NOT_FOUND and the like when it is not there now.
 */
bk_rc_t bk_helper_root_open(bk_helper_t *helper, const char *path, uint32_t may,
                            bk_helper_root_t **root, bk_ctl_t *ctl, bk_err_t *err);
void bk_helper_root_close(bk_helper_root_t *root); /* NULL is fine */

/* One operation; protocol.h says what the calls take.  Unused members are 0 or NULL. */
typedef struct {
    bk_wire_call_t call;
    const char *name, *name2; /* NULL: "" */
    uint32_t flags, set;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec mtime;
    int attrs; /* a memfd for META with BK_WIRE_SET_ATTRS, a database's for ALONE, borrowed */
} bk_helper_op_t;

typedef struct {
    int error;      /* errno; 0: done */
    int fd;         /* the caller's now; -1: none */
    struct stat st; /* STAT, OPEN: what protocol.h carries; the rest is 0 */
    uint32_t refused;
    char *data; /* NUL-terminated, the caller frees; NULL: none */
    size_t data_len;
} bk_helper_result_t;

/*
 * Do count operations (any number: they are sent in messages of BK_WIRE_OPS) on names in the
 * directory dir, relative to the root.  inode: that the directory must have, 0: any.  Fails only
 * when the helper could not be asked; each result tells of its own.  On failure no result holds
 * anything.
 */
bk_rc_t bk_helper_at(bk_helper_root_t *root, const char *dir, uint64_t inode,
                     const bk_helper_op_t *ops, size_t count, bk_helper_result_t *results,
                     bk_ctl_t *ctl, bk_err_t *err);

/* --- watching --- */

typedef struct bk_watch_s bk_watch_t;

typedef struct {
    unsigned root; /* as numbered by bk_watch_add: 0, 1, ... */
    bk_wire_kind_t kind;
    int error;                   /* LIMIT: the errno of why */
    char path[BK_WIRE_PATH + 1]; /* relative to the root */
} bk_watch_event_t;

bk_rc_t bk_watch_open(bk_helper_t *helper, bk_watch_t **watch, bk_err_t *err);
void bk_watch_close(bk_watch_t *watch); /* NULL is fine */
/*
 * Start watching one more root, a directory or a database, as configured.  One that fails has no
 * number; BK_UNSUPPORTED: this system or file system cannot watch it.  BK_UNAVAILABLE: the watch is
 * over, open a new one.
 */
bk_rc_t bk_watch_add(bk_watch_t *watch, const char *path, bk_ctl_t *ctl, bk_err_t *err);
/*
 * Wait until everything that happened so far, in all roots, is told: bk_watch_next then has it.
 * path: any root that was added.  When ctl stops it the watch goes on.
 */
bk_rc_t bk_watch_sync(bk_watch_t *watch, const char *path, bk_ctl_t *ctl, bk_err_t *err);
/* To be polled for reading, by an event loop too; what is known already does not show there, so ask
 * bk_watch_next until it has nothing. */
int bk_watch_fd(const bk_watch_t *watch);
/* The next event without waiting: BK_OK, BK_NOT_FOUND when there is none now, BK_UNAVAILABLE when
 * the helper is gone: open a new watch, and treat everything as changed. */
bk_rc_t bk_watch_next(bk_watch_t *watch, bk_watch_event_t *event, bk_err_t *err);

#endif
