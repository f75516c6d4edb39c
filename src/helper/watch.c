/*
 * helper/watch.c: the conversation of a watcher: WATCH requests in, EVENT messages out.  Touches
 * the conversation's socket and the roots' directories; libc only.
 *
 * One loop, which never waits but in poll: for the peer, for the kernel's events, for a piece of
 * scanning, or for the moment to tell.  What is to be told waits up to 100 ms for more of the same,
 * but for databases; when the peer does not read, it waits longer and becomes coarser.
 */
#include "helper/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper/watch_private.h"

#define TELL_MS  100  /* what comes within is told together */
#define CHECK_MS 5000 /* is the root's path still that directory? */
#define VISIT_MS 500  /* of new directories, before a request is answered */
#define FULL_MS  20   /* between two looks whether the peer has read */
#define REST_MS  25   /* between two looks at what happened in whole file systems */
#define DATA_MS  2    /* at most, between two looks at a database: many writes are one event then */

unsigned bk_watch_use = BK_WIRE_WATCH_INOTIFY | BK_WIRE_WATCH_FANOTIFY;

typedef struct {
    const bk_roots_entry_t *conf;
    int dir; /* O_PATH */
    uint64_t device, inode;
    bk_pending_t pending;
    bk_rootwatch_t *watch;
    bk_inotify_t *inotify; /* its source; NULL: fanotify */
    int64_t rest;          /* ms: not looked at before */
} watched_t;

typedef struct {
    int fd;
    const bk_roots_t *roots;
    bk_wire_message_t *in;
    bk_fanotify_t *fan; /* NULL: none */
    int64_t fan_at;     /* it is not read before */
    unsigned count;
    watched_t list[BK_WIRE_ROOTS];
    int64_t tell_at; /* 0: nothing waits */
    int64_t check_at;
    int64_t full_at; /* the peer's queue was full: not before */
    bool asked;      /* the answer waits until everything is told */
    uint32_t asked_id, asked_root;
    unsigned char out[BK_WIRE_BODY];
} watcher_t;

uint32_t bk_watch_kinds(void)
{
    uint32_t kinds = bk_fanotify_works() ? BK_WIRE_WATCH_FANOTIFY : 0;
    int fd = inotify_init1(IN_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        kinds |= BK_WIRE_WATCH_INOTIFY;
    }
    return kinds & bk_watch_use;
}

/* --- out --- */

static int reply(watcher_t *w, uint32_t id, uint32_t root, int error)
{
    bk_wire_root_reply_t body = {.root = root, .error = error};
    if (error == 0) {
        body.device = w->list[root].device;
        body.inode = w->list[root].inode;
    }
    return bk_wire_send(w->fd, BK_WIRE_WATCH, id, &body, sizeof body, NULL, 0);
}

static int say_no(watcher_t *w, const char *text)
{
    return bk_wire_send(w->fd, BK_WIRE_FAILED, w->in->head.id, text, strlen(text), NULL, 0);
}

static bool any_pending(const watcher_t *w)
{
    for (unsigned i = 0; i < w->count; i++)
        if (bk_pending_any(&w->list[i].pending))
            return true;
    return false;
}

/* One message of what is pending.  0 or an errno. */
static int tell_some(watcher_t *w)
{
    bk_pending_said_t said[BK_WIRE_ROOTS];
    size_t len = 0;
    unsigned first = 0;
    while (first < w->count && !bk_pending_any(&w->list[first].pending))
        first++;
    unsigned end = first;
    for (; end < w->count; end++)
        len = bk_pending_write(&w->list[end].pending, end, w->out, len, sizeof w->out, &said[end]);
    int errnum = len > 0 ? bk_wire_send(w->fd, BK_WIRE_EVENT, 0, w->out, len, NULL, 0) : 0;
    for (unsigned i = first; errnum == 0 && i < end; i++)
        bk_pending_told(&w->list[i].pending, &said[i]);
    return errnum;
}

/* 0: all that was due is told, or the peer has to read first; else an errno. */
static int tell(watcher_t *w, int64_t now)
{
    int errnum = 0;
    while (errnum == 0 && any_pending(w))
        errnum = tell_some(w);
    if (errnum == 0 && w->asked) {
        errnum = reply(w, w->asked_id, w->asked_root, 0);
        w->asked = errnum == EAGAIN;
    }
    w->full_at = errnum == EAGAIN ? now + FULL_MS : 0;
    if (errnum == 0)
        w->tell_at = 0;
    return errnum == EAGAIN ? 0 : errnum;
}

static bool urgent(const watcher_t *w)
{
    for (unsigned i = 0; i < w->count; i++)
        if (w->list[i].pending.data)
            return true;
    return w->asked;
}

/* --- in --- */

/* The least of the waits; -1 is none. */
static int sooner(int a, int64_t b)
{
    if (b < 0)
        b = 0;
    return a < 0 || b < a ? (int)b : a;
}

static void release(watched_t *root)
{
    bk_rootwatch_close(root->watch);
    bk_inotify_close(root->inotify);
    bk_pending_free(&root->pending);
    if (root->dir >= 0)
        close(root->dir);
}

/*
 * A database has an inotify watch also where fanotify works: it is told at once, while what happens
 * in a whole file system is looked at now and then.
 */
static int choose_source(watcher_t *w, watched_t *root, bk_source_t *source)
{
    bool database = (root->conf->flags & BK_WIRE_DATABASE) != 0;
    if (!database && bk_fanotify_join(w->fan, root->dir, root->watch, source))
        return 0;
    int errnum = bk_inotify_open(database, &root->inotify);
    if (errnum == 0)
        *source = bk_inotify_source(root->inotify);
    return errnum;
}

static int start(watcher_t *w, watched_t *root)
{
    struct stat st;
    root->dir = bk_roots_open(root->conf);
    if (root->dir < 0)
        return errno;
    if (fstat(root->dir, &st) != 0)
        return errno;
    if (!bk_roots_reachable(root->dir))
        return ESTALE;
    root->device = st.st_dev;
    root->inode = st.st_ino;
    if (!bk_pending_init(&root->pending))
        return ENOMEM;
    const char *base =
        (root->conf->flags & BK_WIRE_DATABASE) != 0 ? bk_roots_base(root->conf) : NULL;
    bk_source_t source;
    int errnum = bk_rootwatch_open(root->dir, base, &root->pending, &root->watch);
    if (errnum == 0)
        errnum = choose_source(w, root, &source);
    return errnum != 0 ? errnum : bk_rootwatch_start(root->watch, &source);
}

/* Is the path of every root still the directory that is watched? */
static bool all_there(const watcher_t *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        struct stat st;
        int dir = bk_roots_open(w->list[i].conf);
        bool same = dir >= 0 && fstat(dir, &st) == 0 && st.st_ino == w->list[i].inode &&
                    st.st_dev == w->list[i].device;
        if (dir >= 0)
            close(dir);
        if (!same)
            return false;
    }
    return true;
}

static int work(watcher_t *w, int64_t now)
{
    int ms = -1;
    for (unsigned i = 0; i < w->count; i++) {
        int more = bk_rootwatch_work(w->list[i].watch, now);
        if (more == BK_WATCH_GONE)
            return more;
        if (more >= 0)
            ms = sooner(ms, more);
    }
    return ms;
}

/*
 * All that happened until now into what is pending.  New directories are visited, too, as long as
 * that does not take long: it is not needed, since they are told with all below them, but saves
 * telling of them once more.  False: a root is gone.
 */
static bool catch_up(watcher_t *w)
{
    int64_t until = bk_watch_now() + VISIT_MS;
    size_t events = w->fan != NULL ? bk_fanotify_waiting(w->fan) : 0;
    if (events > 0 && !bk_fanotify_read(w->fan, events))
        return false;
    for (unsigned i = 0; i < w->count; i++) {
        watched_t *root = &w->list[i];
        size_t bytes = root->inotify != NULL ? bk_inotify_waiting(root->inotify) : 0;
        if (bytes > 0 && !bk_inotify_read(root->inotify, root->watch, bytes))
            return false;
    }
    while (work(w, bk_watch_now()) == 0 && bk_watch_now() < until)
        continue;
    return all_there(w);
}

/* 0; EPROTO; ENODEV: a root is gone. */
static int answer_watch(watcher_t *w)
{
    bk_wire_ask_root_t ask;
    bk_wire_cur_t cur = bk_wire_cur(w->in);
    bk_wire_get(&cur, &ask, sizeof ask);
    const char *path = bk_wire_bytes(&cur, ask.len);
    if (w->in->head.verb != BK_WIRE_WATCH || w->in->fd_count > 0 || cur.failed || cur.left != 0 ||
        ask.len == 0 || ask.len > BK_WIRE_PATH || w->asked)
        return EPROTO;
    uint32_t may = ask.may | BK_WIRE_MAY_WATCH;
    int number =
        (ask.may & ~BK_WIRE_ROOT_FLAGS) == 0 ? bk_roots_find(w->roots, path, ask.len, may) : -1;
    if (number < 0)
        return say_no(w, "the configuration does not give this root for watching");
    const bk_roots_entry_t *conf = &w->roots->list[number];
    for (unsigned i = 0; i < w->count; i++) {
        if (w->list[i].conf != conf)
            continue;
        w->asked = true;
        w->asked_id = w->in->head.id;
        w->asked_root = i;
        return catch_up(w) ? 0 : ENODEV;
    }
    if (w->count == BK_WIRE_ROOTS)
        return say_no(w, "this conversation has too many roots");
    watched_t *root = &w->list[w->count];
    *root = (watched_t){.conf = conf, .dir = -1};
    int errnum = start(w, root);
    if (errnum != 0) {
        release(root);
        return reply(w, w->in->head.id, 0, errnum);
    }
    w->count++;
    return reply(w, w->in->head.id, w->count - 1, 0);
}

/* 0 to go on; EPROTO; ECONNRESET: the end. */
static int receive(watcher_t *w)
{
    switch (bk_wire_receive(w->fd, w->in)) {
    case BK_WIRE_OK: {
        int errnum = answer_watch(w);
        bk_wire_drop(w->in);
        return errnum;
    }
    case BK_WIRE_EMPTY:
        return 0;
    case BK_WIRE_END:
        return ECONNRESET;
    default:
        return EPROTO;
    }
}

/* --- the loop --- */

static int wait_ms(const watcher_t *w, int work, int64_t now)
{
    int ms = sooner(work, w->check_at - now);
    if (w->full_at != 0)
        return sooner(ms, w->full_at - now);
    if (w->tell_at != 0)
        ms = sooner(ms, w->tell_at - now);
    return ms;
}

/* Read the sources that have something. */
static int read_sources(watcher_t *w, const struct pollfd *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        watched_t *root = &w->list[i];
        if (fds[i].revents == 0 || root->inotify == NULL)
            continue;
        if ((root->conf->flags & BK_WIRE_DATABASE) != 0)
            root->rest = bk_watch_now() + DATA_MS;
        if (!bk_inotify_read(root->inotify, root->watch, 0))
            return ENODEV;
    }
    if (fds[count].revents == 0)
        return 0;
    w->fan_at = bk_watch_now() + REST_MS;
    return bk_fanotify_read(w->fan, 0) ? 0 : ENODEV;
}

static int wait_for_something(watcher_t *w, int ms, int64_t now)
{
    struct pollfd fds[BK_WIRE_ROOTS + 2];
    unsigned count = w->count; /* a request may add one */
    for (unsigned i = 0; i < count; i++) {
        const watched_t *root = &w->list[i];
        int fd = root->inotify != NULL ? bk_inotify_fd(root->inotify) : -1;
        /* While it rests, what happens there is gathered by the kernel, each thing once. */
        if (now < root->rest)
            ms = sooner(ms, root->rest - now);
        fds[i] = (struct pollfd){.fd = now < root->rest ? -1 : fd, .events = POLLIN};
    }
    bool rest = w->fan != NULL && now < w->fan_at;
    if (rest)
        ms = sooner(ms, w->fan_at - now);
    int fan = w->fan != NULL && !rest ? bk_fanotify_fd(w->fan) : -1;
    fds[count] = (struct pollfd){.fd = fan, .events = POLLIN};
    fds[count + 1] = (struct pollfd){.fd = w->fd, .events = POLLIN};
    if (poll(fds, count + 2, ms) < 0)
        return errno == EINTR ? 0 : errno;
    int errnum = fds[count + 1].revents != 0 ? receive(w) : 0;
    return errnum == 0 ? read_sources(w, fds, count) : errnum;
}

static int step(watcher_t *w)
{
    int64_t now = bk_watch_now();
    int ms = work(w, now);
    if (ms == BK_WATCH_GONE)
        return ENODEV;
    if (any_pending(w) && w->tell_at == 0)
        w->tell_at = now + TELL_MS;
    int errnum = wait_for_something(w, urgent(w) && w->full_at == 0 ? 0 : wait_ms(w, ms, now), now);
    now = bk_watch_now();
    if (errnum == 0 && now >= w->check_at) {
        w->check_at = now + CHECK_MS;
        errnum = all_there(w) ? 0 : ENODEV;
    }
    if (errnum == 0 && now >= w->full_at && (urgent(w) || (w->tell_at != 0 && now >= w->tell_at)))
        errnum = tell(w, now);
    return errnum;
}

int bk_watch_run(int fd, const bk_roots_t *roots, bk_wire_message_t *in, bk_fanotify_t *fan)
{
    watcher_t *w = calloc(1, sizeof *w);
    if (w == NULL)
        return ENOMEM;
    w->fd = fd;
    w->roots = roots;
    w->in = in;
    w->fan = fan;
    int errnum = answer_watch(w);
    while (errnum == 0)
        errnum = step(w);
    for (unsigned i = 0; i < w->count; i++)
        release(&w->list[i]);
    free(w);
    return errnum == ECONNRESET || errnum == EPIPE || errnum == ENODEV ? 0 : errnum;
}
