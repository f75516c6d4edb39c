/*
 * helper/watch_root.c: one root: which directories it has, what an event in one of them means, and
 * finding those that are new.  Touches the root's directories, for listing them; the kernel's
 * events come from a source (watch_inotify.c, watch_fanotify.c), which numbers directories.
 *
 * Why nothing is missed.  A directory is watched first and listed then, so a name that comes later
 * makes an event.  A directory that was found after the first scan is told as changed after its
 * watch was added: what happened in it before, nobody saw.  When a directory comes to a place
 * (made, or moved there), it is told with all below it, at once, and visited: a visit finds a watch
 * that is there already by its number, and puts its node to the new place.  An event that was read
 * while the place was out of date tells a wrong path, but then the right one is told afterwards
 * with all below it.  Whoever backs up looks at a directory only after it was told, so a change is
 * either seen by that look, or told after it.
 *
 * Nothing of this depends on the order of events on one name: a source may put several into one, in
 * the place of the first.  Whatever says that a directory left its place makes it be visited again,
 * so the last look at a place comes after the last event of it.
 *
 * A mount below the root is not entered, and told: the same directories may be mounted in two
 * places, and what is mounted over a directory makes no event.
 *
 * When the kernel's queue overflowed, names and places are unknown: LOST is said, everything is
 * visited again, and WATCHED is said when that is through.  After each overflow the next attempt
 * waits longer, so that a storm is let pass.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "helper/watch_private.h"

#define BUFFER        65536u
#define VISITS        128 /* of one piece of work */
#define CUT_KEPT      200 /* ms until what moved away is forgotten */
#define RETRY_FIRST   50  /* ms after an overflow */
#define RETRY_LONGEST 2000

unsigned bk_watch_most = UINT32_MAX;

/* A directory still to be visited: a name in a node's directory. */
typedef struct {
    uint32_t parent;
    int parent_wd; /* so that another node in the same place is not taken for it */
    bool deep;     /* visit what is below even where nothing is new */
    char *name;
} visit_t;

struct bk_rootwatch_s {
    int dir;
    const char *base; /* of a database */
    bk_source_t source;
    bk_pending_t *pending;
    bk_nodes_t nodes;
    visit_t *visits;
    size_t visit_count, visit_cap;
    bool lost;     /* until WATCHED */
    bool scanning; /* visits are those of a scan of everything */
    bool gone;
    bool cuts;        /* something was cut off */
    int64_t cut_at;   /* the first of them */
    int64_t retry_at; /* the next scan may begin */
    int64_t calm_at;  /* without an overflow until then: the next pause is short again */
    int pause;
    uint32_t round, generation;
    char *listing;
};

int64_t bk_watch_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- telling --- */

/* What is said of places, not of changes, is said while everything is LOST, too. */
static void tell_path(bk_rootwatch_t *w, const char *path, bk_wire_kind_t kind, int error)
{
    if (!w->lost || bk_pending_is_limit(kind))
        bk_pending_add(w->pending, path, kind, error);
}

static void tell(bk_rootwatch_t *w, uint32_t at, bk_wire_kind_t kind)
{
    char path[BK_WIRE_PATH + 1];
    bk_node_t *node = &w->nodes.list[at];
    if (w->lost || (kind == BK_WIRE_DIRTY && node->told == w->generation))
        return;
    if (!bk_nodes_path(&w->nodes, at, path))
        return;
    bk_pending_add(w->pending, path, kind, 0);
    if (kind == BK_WIRE_DIRTY)
        node->told = w->generation;
}

/* From here on down nothing is watched; why is an errno. */
static void tell_limit(bk_rootwatch_t *w, uint32_t at, int why)
{
    char path[BK_WIRE_PATH + 1];
    if (bk_nodes_path(&w->nodes, at, path))
        bk_pending_add(w->pending, path, BK_WIRE_LIMIT, why);
}

/* What is told of a directory again, it may be told again of: its place or the reader changed. */
static void new_generation(bk_rootwatch_t *w)
{
    w->generation++;
}

static bool join(char out[BK_WIRE_PATH + 1], const char *dir, const char *name)
{
    size_t len = strlen(dir), more = strlen(name);
    if (len + 1 + more > BK_WIRE_PATH)
        return false;
    memmove(out, dir, len + 1);
    if (len > 0)
        out[len++] = '/';
    memcpy(out + len, name, more + 1);
    return true;
}

/* A name in a node's directory. */
static void tell_child(bk_rootwatch_t *w, uint32_t parent, const char *name, bk_wire_kind_t kind,
                       int error)
{
    char path[BK_WIRE_PATH + 1];
    if (!bk_nodes_path(&w->nodes, parent, path))
        return;
    if (join(path, path, name))
        tell_path(w, path, kind, error);
    else
        tell_path(w, path, BK_WIRE_TREE, 0);
}

/* Since the first that is not forgotten yet: under churn there is always a younger one. */
static void note_cut(bk_rootwatch_t *w)
{
    if (!w->cuts)
        w->cut_at = bk_watch_now();
    w->cuts = true;
}

/* --- visiting --- */

static void push_visit(bk_rootwatch_t *w, uint32_t parent, const char *name, bool deep)
{
    if (w->visit_count == w->visit_cap) {
        size_t cap = w->visit_cap > 0 ? 2 * w->visit_cap : 256;
        visit_t *more = realloc(w->visits, cap * sizeof *more);
        if (more == NULL) {
            tell_child(w, parent, name, BK_WIRE_LIMIT, ENOMEM);
            return;
        }
        w->visits = more;
        w->visit_cap = cap;
    }
    visit_t *item = &w->visits[w->visit_count];
    *item = (visit_t){parent, w->nodes.list[parent].wd, deep, strdup(name)};
    if (item->name != NULL)
        w->visit_count++;
    else
        tell_child(w, parent, name, BK_WIRE_LIMIT, ENOMEM);
}

static void drop_visits(bk_rootwatch_t *w)
{
    while (w->visit_count > 0)
        free(w->visits[--w->visit_count].name);
}

static int open_dir(const bk_rootwatch_t *w, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOATIME,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    int fd = -1;
    if (path[0] == '\0')
        path = ".";
    for (unsigned tries = 0; tries < 64; tries++) {
        fd = (int)syscall(SYS_openat2, w->dir, path, &how, sizeof how);
        if (fd >= 0)
            return fd;
        if (errno == EPERM && (how.flags & O_NOATIME) != 0)
            how.flags &= ~(uint64_t)O_NOATIME;
        else if (errno != EAGAIN && errno != EINTR)
            return -1;
    }
    return fd;
}

/* Changes that another machine makes are not seen here. */
static bool is_remote(int fd)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) != 0)
        return false;
    switch ((uint32_t)fs.f_type) {
    case 0x6969:     /* NFS */
    case 0x517b:     /* SMB */
    case 0xff534d42: /* CIFS */
    case 0xfe534d42: /* SMB2 */
    case 0x65735546: /* FUSE */
    case 0x01021997: /* 9P */
    case 0x00c36400: /* Ceph */
    case 0x5346414f: /* AFS */
    case 0x6b414653: /* kAFS */
    case 0x73757245: /* Coda */
    case 0x01161970: /* GFS2 */
    case 0x7461636f: /* OCFS2 */
    case 0x0bd00bd0: /* Lustre */
        return true;
    default:
        return false;
    }
}

/* Push the directories in fd. */
static void list_dir(bk_rootwatch_t *w, uint32_t at, int fd, bool deep)
{
    for (;;) {
        long len = syscall(SYS_getdents64, fd, w->listing, (unsigned long)BUFFER);
        if (len < 0 && errno != ENOENT) /* removed meanwhile is no failure */
            tell_limit(w, at, errno);
        if (len <= 0)
            return;
        for (long pos = 0; pos < len;) {
            const struct dirent64 *item = (const void *)(w->listing + pos);
            struct stat st;
            pos += item->d_reclen;
            if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0)
                continue;
            bool is_dir =
                item->d_type == DT_DIR ||
                (item->d_type == DT_UNKNOWN &&
                 fstatat(fd, item->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode));
            if (is_dir)
                push_visit(w, at, item->d_name, deep);
        }
    }
}

/* The node of a directory that is watched as wd: made, moved or as it was.  *fresh: its content
 * has to be visited; *deep: with all below. */
static uint32_t settle(bk_rootwatch_t *w, int wd, uint32_t parent, const char *name, bool *fresh,
                       bool *deep)
{
    uint32_t at = bk_nodes_by_wd(&w->nodes, wd);
    *fresh = true;
    if (at == BK_NODE_NONE) {
        at = bk_nodes_add(&w->nodes, wd, parent, name);
        if (at == BK_NODE_NONE)
            return at;
        w->nodes.list[at].told = w->generation - 1;
        if (parent != BK_NODE_NONE)
            tell(w, at, BK_WIRE_DIRTY);
    } else if (parent != BK_NODE_NONE &&
               (w->nodes.list[at].parent != parent || strcmp(w->nodes.list[at].name, name) != 0)) {
        *deep = true;
        new_generation(w);
        note_cut(w);
        if (!bk_nodes_move(&w->nodes, at, parent, name))
            return BK_NODE_NONE;
        tell(w, at, BK_WIRE_TREE);
    } else {
        *fresh = *deep || w->scanning;
    }
    w->nodes.list[at].round = w->round;
    return at;
}

/* False: it could not be watched, for want of something. */
static bool watch_dir(bk_rootwatch_t *w, int fd, uint32_t parent, const char *name, bool deep)
{
    bool fresh;
    if (w->nodes.live >= bk_watch_most) {
        errno = ENOSPC;
        return false;
    }
    int wd = w->source.add(w->source.self, fd);
    if (wd < 0)
        return false;
    uint32_t at = settle(w, wd, parent, name, &fresh, &deep);
    if (at == BK_NODE_NONE) {
        if (bk_nodes_by_wd(&w->nodes, wd) == BK_NODE_NONE)
            w->source.drop(w->source.self, wd);
        errno = ENOMEM;
        return false;
    }
    if (parent == BK_NODE_NONE)
        w->nodes.root = at;
    if (fresh)
        list_dir(w, at, fd, deep);
    return true;
}

static void visit(bk_rootwatch_t *w, const visit_t *item)
{
    char path[BK_WIRE_PATH + 1];
    const bk_node_t *parent = &w->nodes.list[item->parent];
    if (parent->wd != item->parent_wd || !bk_nodes_path(&w->nodes, item->parent, path))
        return; /* it went: whoever met it at its new place goes on there */
    if (!join(path, path, item->name)) {
        tell_limit(w, item->parent, ENAMETOOLONG);
        return;
    }
    int fd = open_dir(w, path);
    if (fd < 0) {
        if (errno == EXDEV)
            tell_path(w, path, BK_WIRE_MOUNT, 0);
        else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
            tell_path(w, path, BK_WIRE_LIMIT, errno);
        return;
    }
    if (!watch_dir(w, fd, item->parent, item->name, item->deep))
        tell_path(w, path, BK_WIRE_LIMIT, errno);
    close(fd);
}

/* --- what moved away --- */

/* Forget what is cut off: it went for good, or its new place was visited already. */
static void forget_cut(bk_rootwatch_t *w)
{
    bool again = true;
    while (again) {
        again = false;
        for (uint32_t i = 0; i < w->nodes.count; i++) {
            if (w->nodes.list[i].wd == 0 || !w->nodes.list[i].cut)
                continue;
            again = again || w->nodes.list[i].child != BK_NODE_NONE;
            w->source.drop(w->source.self, w->nodes.list[i].wd);
            bk_nodes_remove(&w->nodes, i);
        }
    }
    w->cuts = false;
}

/* What a scan of everything did not meet is not there. */
static void forget_unmet(bk_rootwatch_t *w)
{
    for (uint32_t i = 0; i < w->nodes.count; i++)
        if (w->nodes.list[i].wd != 0 && w->nodes.list[i].round != w->round && i != w->nodes.root &&
            !w->nodes.list[i].cut)
            bk_nodes_cut(&w->nodes, i);
    forget_cut(w);
}

/* --- events --- */

static void lose(bk_rootwatch_t *w)
{
    int64_t now = bk_watch_now();
    drop_visits(w);
    if (!w->lost)
        bk_pending_lose(w->pending);
    w->lost = true;
    w->scanning = false;
    w->pending->watched = false;
    w->pause = now > w->calm_at || w->pause == 0 ? RETRY_FIRST : 2 * w->pause;
    if (w->pause > RETRY_LONGEST)
        w->pause = RETRY_LONGEST;
    w->retry_at = now + w->pause;
    w->calm_at = now + 5 * w->pause + 5000;
}

static void directory_event(bk_rootwatch_t *w, uint32_t at, uint32_t mask, const char *name)
{
    uint32_t child = (mask & (IN_MOVED_FROM | IN_DELETE)) != 0
                         ? bk_nodes_by_name(&w->nodes, at, name)
                         : BK_NODE_NONE;
    if (child != BK_NODE_NONE) {
        new_generation(w);
        bk_nodes_cut(&w->nodes, child);
        note_cut(w);
        /* A visit may have been ahead of this event: then what is there now came later, stays, and
         * nobody tells of it again. */
        push_visit(w, at, name, true);
    }
    if ((mask & (IN_CREATE | IN_MOVED_TO)) != 0) {
        tell_child(w, at, name, BK_WIRE_TREE, 0);
        push_visit(w, at, name, false);
    }
    if ((mask & IN_ATTRIB) != 0)
        tell_child(w, at, name, BK_WIRE_DIRTY, 0);
}

static bool is_companion(const char *base, const char *name)
{
    size_t len = strlen(base);
    return strncmp(name, base, len) == 0 && (name[len] == '\0' || strcmp(name + len, "-wal") == 0 ||
                                             strcmp(name + len, "-journal") == 0);
}

void bk_rootwatch_lost(bk_rootwatch_t *w)
{
    if (w->base != NULL)
        w->pending->data = true;
    else
        lose(w);
}

bool bk_rootwatch_event(bk_rootwatch_t *w, int number, uint32_t mask, const char *name)
{
    uint32_t at = bk_nodes_by_wd(&w->nodes, number);
    if (at == BK_NODE_NONE || w->gone)
        return !w->gone;
    if (at == w->nodes.root &&
        (mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED)) != 0) {
        w->gone = true;
        return false;
    }
    if (w->base != NULL) {
        w->pending->data = w->pending->data || (name[0] != '\0' && is_companion(w->base, name));
        return true;
    }
    if ((mask & IN_UNMOUNT) != 0)
        tell(w, at, BK_WIRE_TREE);
    if ((mask & IN_IGNORED) != 0) {
        new_generation(w);
        bk_nodes_remove(&w->nodes, at);
        note_cut(w);
        return true;
    }
    if ((mask & (IN_MOVE_SELF | IN_DELETE_SELF)) != 0)
        return true; /* the directory above tells */
    tell(w, at, BK_WIRE_DIRTY);
    if (name[0] != '\0' && (mask & IN_ISDIR) != 0)
        directory_event(w, at, mask, name);
    return true;
}

void bk_rootwatch_reading(bk_rootwatch_t *w)
{
    new_generation(w);
}

/* --- scanning --- */

/* False: the root is gone. */
static bool begin_scan(bk_rootwatch_t *w)
{
    int fd = open_dir(w, "");
    if (fd < 0)
        return false;
    drop_visits(w);
    w->round++;
    w->scanning = true;
    bool watched = watch_dir(w, fd, BK_NODE_NONE, "", true);
    close(fd);
    return watched;
}

static void end_scan(bk_rootwatch_t *w)
{
    forget_unmet(w);
    w->scanning = false;
    w->lost = false;
    w->pending->watched = true;
    new_generation(w);
}

int bk_rootwatch_work(bk_rootwatch_t *w, int64_t now)
{
    if (w->base != NULL)
        return -1;
    if (w->lost && !w->scanning) {
        if (now < w->retry_at)
            return (int)(w->retry_at - now);
        if (!begin_scan(w))
            w->gone = true;
    }
    for (unsigned i = 0; i < VISITS && w->visit_count > 0 && !w->gone; i++) {
        visit_t item = w->visits[--w->visit_count];
        visit(w, &item);
        free(item.name);
    }
    if (w->visit_count > 0)
        return 0;
    if (w->scanning && !w->gone)
        end_scan(w);
    if (w->gone)
        return BK_WATCH_GONE;
    if (w->cuts && now - w->cut_at >= CUT_KEPT)
        forget_cut(w);
    return w->cuts ? CUT_KEPT : -1;
}

/* --- beginning and end --- */

void bk_rootwatch_close(bk_rootwatch_t *w)
{
    if (w == NULL)
        return;
    if (w->source.close != NULL)
        w->source.close(w->source.self);
    drop_visits(w);
    free(w->visits);
    bk_nodes_free(&w->nodes);
    free(w->listing);
    free(w);
}

int bk_rootwatch_open(int dir, const char *base, bk_pending_t *pending, bk_rootwatch_t **out)
{
    *out = NULL;
    bk_rootwatch_t *w = calloc(1, sizeof *w);
    if (w == NULL)
        return ENOMEM;
    w->dir = dir;
    w->base = base;
    w->pending = pending;
    w->lost = base == NULL;
    w->listing = malloc(BUFFER);
    int errnum = w->listing == NULL || !bk_nodes_init(&w->nodes) ? ENOMEM : 0;
    int fd = errnum == 0 ? open_dir(w, "") : -1;
    if (errnum == 0 && fd < 0)
        errnum = errno;
    if (errnum == 0 && is_remote(fd))
        errnum = EREMOTE;
    if (fd >= 0)
        close(fd);
    if (errnum != 0)
        bk_rootwatch_close(w);
    else
        *out = w;
    return errnum;
}

int bk_rootwatch_start(bk_rootwatch_t *w, const bk_source_t *source)
{
    w->source = *source;
    errno = 0;
    if (!begin_scan(w))
        return errno != 0 ? errno : EIO;
    /* Of a database only what happens in its own directory matters, so that is all of a scan. */
    if (w->base != NULL) {
        drop_visits(w);
        w->pending->watched = true;
    }
    return 0;
}
