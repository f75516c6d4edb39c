/*
 * helper/watch_private.h: what the files of watching share.
 *
 *   watch.c           the conversation: requests in, events out, whose turn it is
 *   watch_pending.c   what is still to be told of one root, each directory once
 *   watch_root.c      one root: what an event means, finding what is new
 *   watch_nodes.c     the watched directories: their names, and finding them
 *   watch_inotify.c   a source of events: a watch on each directory
 *   watch_fanotify.c  a source of events: a mark on the file system, for all roots
 */
#ifndef BK_HELPER_WATCH_PRIVATE_H
#define BK_HELPER_WATCH_PRIVATE_H

#include <stdbool.h>
#include <sys/types.h>

#include "helper/watch.h"

/* --- what is to be told of one root --- */

#define BK_PENDING_MAX   8192u      /* directories; more become the whole root */
#define BK_PENDING_BYTES (1u << 20) /* of their paths */

typedef struct {
    uint32_t offset; /* of the path in text, with its NUL */
    uint16_t len, kind;
    int error; /* of a LIMIT */
} bk_pending_item_t;

typedef struct {
    bool lost, watched, data; /* to be said: LOST first, WATCHED last */
    bk_pending_item_t *items;
    size_t first, count; /* items before first are told */
    char *text;
    size_t used;
    uint32_t *table; /* hash of a path to item + 1 */
} bk_pending_t;

bool bk_pending_init(bk_pending_t *pending);
void bk_pending_free(bk_pending_t *pending);
bool bk_pending_any(const bk_pending_t *pending);
/* kind: DIRTY, TREE, LIMIT (with the errno of why) or MOUNT.  What does not fit makes it TREE of
 * the root. */
void bk_pending_add(bk_pending_t *pending, const char *path, bk_wire_kind_t kind, int error);
/* Said of places, not of changes. */
static inline bool bk_pending_is_limit(bk_wire_kind_t kind)
{
    return kind == BK_WIRE_LIMIT || kind == BK_WIRE_MOUNT;
}
/* Nothing of what is kept matters any more: everything may have changed. */
void bk_pending_lose(bk_pending_t *pending);
/*
 * Append what fits into a body of size bytes as bk_wire_event_t and path; the new length.  Only
 * bk_pending_told makes it forgotten.
 */
typedef struct {
    size_t items;
    bool lost, watched, data;
} bk_pending_said_t;
size_t bk_pending_write(const bk_pending_t *pending, uint32_t root, unsigned char *body, size_t at,
                        size_t size, bk_pending_said_t *said);
void bk_pending_told(bk_pending_t *pending, const bk_pending_said_t *said);

/* --- watched directories --- */

#define BK_NODE_NONE UINT32_MAX

typedef struct {
    int wd;                             /* of inotify; 0: a free place */
    uint32_t parent, child, next, prev; /* NONE: of none */
    uint32_t by_wd, by_name;            /* next in the same bucket */
    uint32_t round;                     /* of the scan that met it last */
    uint32_t told;                      /* the generation in which it was marked */
    bool cut;                           /* moved away, to a place not yet known */
    char *name;
} bk_node_t;

typedef struct {
    bk_node_t *list;
    uint32_t count, cap, free, live; /* free: a chain by next */
    uint32_t *wds, *names;           /* buckets */
    uint32_t size;
    uint32_t root;
} bk_nodes_t;

bool bk_nodes_init(bk_nodes_t *nodes);
void bk_nodes_free(bk_nodes_t *nodes);
/* A directory that was not there; NONE: no memory.  parent NONE: the root. */
uint32_t bk_nodes_add(bk_nodes_t *nodes, int wd, uint32_t parent, const char *name);
uint32_t bk_nodes_by_wd(const bk_nodes_t *nodes, int wd);
uint32_t bk_nodes_by_name(const bk_nodes_t *nodes, uint32_t parent, const char *name);
/* To another place; a directory of that name there is cut off.  False: no memory. */
bool bk_nodes_move(bk_nodes_t *nodes, uint32_t node, uint32_t parent, const char *name);
/* Out of its place, with what is below it. */
void bk_nodes_cut(bk_nodes_t *nodes, uint32_t node);
/* Forget this one; what is below it is cut off. */
void bk_nodes_remove(bk_nodes_t *nodes, uint32_t node);
/* The path from the root.  False: it is cut off, or longer than BK_WIRE_PATH. */
bool bk_nodes_path(const bk_nodes_t *nodes, uint32_t node, char out[BK_WIRE_PATH + 1]);

/* --- one root --- */

typedef struct bk_rootwatch_s bk_rootwatch_t;

/* What numbers directories, and passes their events to bk_rootwatch_event by those numbers. */
typedef struct {
    void *self;
    /* fd: the directory, open for reading.  From now on its events come.  Its number, > 0, the same
     * each time; or -1 and errno.  A number that was dropped does not come back soon. */
    int (*add)(void *self, int fd);
    void (*drop)(void *self, int number);
    void (*close)(void *self); /* with the root; NULL: nothing to do */
} bk_source_t;

/*
 * dir: of the root, O_PATH, borrowed.  base: of a database, its file's name; NULL: a tree.  0 or an
 * errno; EREMOTE: a file system whose changes nobody here sees.
 */
int bk_rootwatch_open(int dir, const char *base, bk_pending_t *pending, bk_rootwatch_t **watch);
/* A tree is scanned by bk_rootwatch_work from here on, until WATCHED is pending.  0 or an errno. */
int bk_rootwatch_start(bk_rootwatch_t *watch, const bk_source_t *source);
void bk_rootwatch_close(bk_rootwatch_t *watch); /* NULL is fine */
/* Events are about to be read: what was told before may be on its way already. */
void bk_rootwatch_reading(bk_rootwatch_t *watch);
/* mask: of inotify; several events on one name may be in one.  name "": the directory itself.
 * False: the root is gone. */
bool bk_rootwatch_event(bk_rootwatch_t *watch, int number, uint32_t mask, const char *name);
void bk_rootwatch_lost(bk_rootwatch_t *watch);
/* A bounded piece of scanning.  Ms until there is more to do, 0: now, -1: nothing; or that the root
 * is gone. */
#define BK_WATCH_GONE (-2)
int bk_rootwatch_work(bk_rootwatch_t *watch, int64_t now);

/* --- sources --- */

typedef struct bk_inotify_s bk_inotify_t;

int bk_inotify_open(bool database, bk_inotify_t **in); /* 0 or an errno */
void bk_inotify_close(bk_inotify_t *in);               /* NULL is fine */
int bk_inotify_fd(const bk_inotify_t *in);
bk_source_t bk_inotify_source(bk_inotify_t *in);
size_t bk_inotify_waiting(const bk_inotify_t *in); /* bytes */
/* Read what is there: at least bytes of it, if there are so many, 0: one buffer.  False: the root
 * is gone. */
bool bk_inotify_read(bk_inotify_t *in, bk_rootwatch_t *root, size_t bytes);

/* fanotify: watch.h has how it begins and ends. */
int bk_fanotify_fd(const bk_fanotify_t *fan);
/* The source of one root, while it lives; false: not on this file system.  The source's close ends
 * it. */
bool bk_fanotify_join(bk_fanotify_t *fan, int dir, bk_rootwatch_t *root, bk_source_t *source);
size_t bk_fanotify_waiting(const bk_fanotify_t *fan); /* events, whose sizes are not known */
/* As bk_inotify_read, for all roots that joined.  False: one of them is gone. */
bool bk_fanotify_read(bk_fanotify_t *fan, size_t events);

int64_t bk_watch_now(void); /* ms, monotonic */

#endif
