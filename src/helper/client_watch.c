/*
 * helper/client_watch.c: a worker's side of watching: one conversation of its own, requests in it,
 * and the events that come unasked.  Touches that socket only.  Belongs to one thread at a time.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "helper/client_private.h"

#define STEP_MS   100   /* how often ctl is looked at */
#define ANSWER_MS 10000 /* for one request */

/* A body with events that came while a reply was waited for. */
typedef struct body_s {
    struct body_s *next;
    size_t len;
    unsigned char bytes[];
} body_t;

struct bk_watch_s {
    bk_talker_t *talker;
    unsigned roots;
    body_t *first, **last;
    size_t at; /* in first */
    bool over;
    bk_err_t why;  /* it is over */
    uint32_t owed; /* the id of a barrier that nobody waits for any more; 0: none */
};

bk_rc_t bk_watch_open(bk_helper_t *helper, bk_watch_t **out, bk_err_t *err)
{
    bk_watch_t *watch = calloc(1, sizeof *watch);
    *out = NULL;
    if (watch == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "privileged helper: memory is exhausted");
    watch->last = &watch->first;
    bk_rc_t rc =
        bk_talker_open(bk_helper_broker(helper), BK_WIRE_FOR_WATCHING, &watch->talker, NULL, err);
    if (rc != BK_OK) {
        free(watch);
        return rc;
    }
    *out = watch;
    return BK_OK;
}

static void drop_first(bk_watch_t *watch)
{
    body_t *body = watch->first;
    watch->first = body->next;
    if (watch->first == NULL)
        watch->last = &watch->first;
    watch->at = 0;
    free(body);
}

void bk_watch_close(bk_watch_t *watch)
{
    if (watch == NULL)
        return;
    while (watch->first != NULL)
        drop_first(watch);
    bk_talker_close(watch->talker);
    free(watch);
}

int bk_watch_fd(const bk_watch_t *watch)
{
    return watch->talker->fd;
}

static bool is_stop(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED;
}

/* The first reason is the true one. */
static bk_rc_t end(bk_watch_t *watch, const char *text, bk_err_t *err)
{
    if (!watch->over)
        bk_err_set(&watch->why, BK_UNAVAILABLE, "privileged helper: %s", text);
    watch->over = true;
    if (err != NULL)
        *err = watch->why;
    return BK_UNAVAILABLE;
}

static bk_rc_t is_over(bk_watch_t *watch, bk_err_t *err)
{
    return end(watch,
               "it ended the watching; a watched directory is gone or was replaced, or see the "
               "system's log",
               err);
}

/* Keep the events of the message that was just received. */
static bk_rc_t keep_events(bk_watch_t *watch, bk_err_t *err)
{
    const bk_wire_message_t *in = &watch->talker->in;
    body_t *body = malloc(sizeof *body + in->head.len);
    if (body == NULL)
        return end(watch, "memory is exhausted", err);
    body->next = NULL;
    body->len = in->head.len;
    memcpy(body->bytes, in->body, in->head.len);
    *watch->last = body;
    watch->last = &body->next;
    return BK_OK;
}

/* The next message: an EVENT is kept; *answered when it is the reply with that id.  One that is
 * owed to nobody counts as none. */
static bk_rc_t receive(bk_watch_t *watch, uint32_t id, bool *answered, bool *empty, bk_err_t *err)
{
    bk_talker_t *talker = watch->talker;
    *answered = *empty = false;
    bk_wire_drop(&talker->in);
    switch (bk_wire_receive(talker->fd, &talker->in)) {
    case BK_WIRE_EMPTY:
        *empty = true;
        return BK_OK;
    case BK_WIRE_OK:
        if (talker->in.head.verb == BK_WIRE_EVENT && talker->in.head.id == 0 &&
            talker->in.fd_count == 0)
            return keep_events(watch, err);
        if ((talker->in.head.verb != BK_WIRE_WATCH && talker->in.head.verb != BK_WIRE_FAILED) ||
            talker->in.fd_count != 0 || talker->in.head.id == 0)
            return is_over(watch, err);
        if (talker->in.head.id == watch->owed) {
            watch->owed = 0;
            return BK_OK;
        }
        *answered = talker->in.head.id == id;
        return *answered ? BK_OK : is_over(watch, err);
    default:
        return is_over(watch, err);
    }
}

/* Receive until the reply with that id, 0: until nothing is owed. */
static bk_rc_t wait_reply(bk_watch_t *watch, uint32_t id, int64_t until, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    bool answered = false, empty = false;
    while (id != 0 ? !answered : watch->owed != 0) {
        if (empty && bk_wire_wait(watch->talker->fd, POLLIN, STEP_MS) < 0)
            return is_over(watch, err);
        bk_rc_t rc = bk_ctl_check(ctl, err);
        if (rc == BK_OK)
            rc = receive(watch, id, &answered, &empty, err);
        if (rc != BK_OK)
            return rc;
        if (!answered && bk_mono() >= until)
            return end(watch, "its watching does not answer", err);
    }
    return BK_OK;
}

/*
 * barrier: whoever stops waiting leaves the reply to the next who asks.  Not so of a new root,
 * whose number would be missed.
 */
static bk_rc_t ask(bk_watch_t *watch, const char *path, bool barrier, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_talker_t *talker = watch->talker;
    bk_wire_ask_root_t body = {.may = BK_WIRE_MAY_WATCH, .len = (uint32_t)strlen(path)};
    int64_t until = bk_mono() + ANSWER_MS * BK_MS;
    if (body.len == 0 || body.len > BK_WIRE_PATH)
        return bk_err_set(err, BK_INVALID, "privileged helper: the path of a root is too long");
    if (watch->over)
        return is_over(watch, err);
    bk_rc_t rc = wait_reply(watch, 0, until, ctl, err);
    if (rc != BK_OK)
        return rc;
    talker->out_len = 0;
    bk_talker_put(talker, &body, sizeof body);
    bk_talker_put(talker, path, body.len);
    if (++talker->last_id == 0)
        talker->last_id++;
    if (bk_wire_send(talker->fd, BK_WIRE_WATCH, talker->last_id, talker->out, talker->out_len, NULL,
                     0) != 0)
        return is_over(watch, err);
    rc = wait_reply(watch, talker->last_id, until, ctl, err);
    if (barrier && is_stop(rc))
        watch->owed = talker->last_id;
    else if (rc != BK_OK && !watch->over)
        (void)end(watch, "nobody waited for its answer", NULL);
    return rc;
}

/* What the reply says; *root: its number. */
static bk_rc_t read_reply(bk_watch_t *watch, const char *path, uint32_t *root, bk_err_t *err)
{
    char text[BK_TALKER_TEXT];
    bk_wire_root_reply_t reply;
    if (watch->talker->in.head.verb == BK_WIRE_FAILED) {
        bk_talker_text(watch->talker, text);
        return bk_err_set(err, BK_FORBIDDEN, "%s: privileged helper: %s", path, text);
    }
    if (watch->talker->in.head.len != sizeof reply)
        return is_over(watch, err);
    memcpy(&reply, watch->talker->in.body, sizeof reply);
    *root = reply.root;
    switch (reply.error) {
    case 0:
        return BK_OK;
    case EREMOTE:
        return bk_err_set(err, BK_UNSUPPORTED,
                          "%s is on a network or FUSE file system, where changes by others cannot "
                          "be noticed: its backups walk",
                          path);
    case EMFILE:
        return bk_err_set(err, BK_UNSUPPORTED,
                          "%s: this system has no inotify instance left: raise "
                          "fs.inotify.max_user_instances",
                          path);
    case ENOSPC:
        return bk_err_set(err, BK_UNSUPPORTED,
                          "%s: this system has no inotify watch left: raise "
                          "fs.inotify.max_user_watches",
                          path);
    case ESTALE:
        return is_over(watch, err);
    default:
        return bk_err_sys(err, reply.error, "%s: privileged helper: watch it", path);
    }
}

bk_rc_t bk_watch_add(bk_watch_t *watch, const char *path, bk_ctl_t *ctl, bk_err_t *err)
{
    uint32_t root;
    bk_rc_t rc = ask(watch, path, false, ctl, err);
    if (rc == BK_OK)
        rc = read_reply(watch, path, &root, err);
    if (rc == BK_OK && root != watch->roots)
        rc = is_over(watch, err);
    watch->roots += rc == BK_OK;
    return rc;
}

bk_rc_t bk_watch_sync(bk_watch_t *watch, const char *path, bk_ctl_t *ctl, bk_err_t *err)
{
    uint32_t root;
    bk_rc_t rc = ask(watch, path, true, ctl, err);
    return rc == BK_OK ? read_reply(watch, path, &root, err) : rc;
}

/* One event out of the first kept body.  False when it is not what the protocol says. */
static bool take_event(bk_watch_t *watch, bk_watch_event_t *out)
{
    bk_wire_event_t event;
    body_t *body = watch->first;
    size_t left = body->len - watch->at;
    if (left < sizeof event)
        return false;
    memcpy(&event, body->bytes + watch->at, sizeof event);
    const unsigned char *path = body->bytes + watch->at + sizeof event;
    if (event.len > left - sizeof event || event.len > BK_WIRE_PATH || event.root >= watch->roots ||
        event.kind < BK_WIRE_DIRTY || event.kind > BK_WIRE_MOUNT ||
        (event.len > 0 && !bk_wire_is_relative((const char *)path, event.len)))
        return false;
    out->root = event.root;
    out->kind = (bk_wire_kind_t)event.kind;
    out->error = event.error;
    memcpy(out->path, path, event.len);
    out->path[event.len] = '\0';
    watch->at += sizeof event + event.len;
    if (watch->at == body->len)
        drop_first(watch);
    return true;
}

bk_rc_t bk_watch_next(bk_watch_t *watch, bk_watch_event_t *event, bk_err_t *err)
{
    bool answered, empty = false;
    while (watch->first == NULL && !empty) {
        bk_rc_t rc = watch->over ? is_over(watch, err) : receive(watch, 0, &answered, &empty, err);
        if (rc != BK_OK)
            return rc;
    }
    if (watch->first == NULL)
        return bk_err_set(err, BK_NOT_FOUND, "nothing has changed");
    return take_event(watch, event) ? BK_OK : is_over(watch, err);
}
