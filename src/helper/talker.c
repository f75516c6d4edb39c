/*
 * helper/talker.c: one conversation of a worker with the privileged helper: beginning it through
 * the broker socket, one request, one reply.  Touches sockets only.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "helper/client_private.h"

#define STEP_MS   100  /* how often ctl is looked at */
#define ANSWER_MS 2000 /* for the helper to take up a conversation */

#define REMEDY "see the error log of nginx and the system's log for why it ended"

void bk_talker_close(bk_talker_t *talker)
{
    if (talker == NULL)
        return;
    bk_wire_drop(&talker->in);
    for (unsigned i = 0; i < talker->root_count; i++)
        free(talker->roots[i].path);
    if (talker->fd >= 0)
        close(talker->fd);
    free(talker);
}

void bk_talker_put(bk_talker_t *talker, const void *bytes, size_t len)
{
    memcpy(talker->out + talker->out_len, bytes, len);
    talker->out_len += len;
}

void bk_talker_text(const bk_talker_t *talker, char out[BK_TALKER_TEXT])
{
    char text[BK_TALKER_TEXT];
    size_t len = talker->in.head.len < sizeof text - 1 ? talker->in.head.len : sizeof text - 1;
    memcpy(text, talker->in.body, len);
    text[len] = '\0';
    bk_printable(out, BK_TALKER_TEXT, text);
}

/* --- one request --- */

/* BK_OK: fd is ready.  Else why not. */
static bk_rc_t wait_for(int fd, short events, int64_t until, bk_ctl_t *ctl, bk_err_t *err)
{
    for (;;) {
        bk_rc_t rc = bk_ctl_check(ctl, err);
        if (rc != BK_OK)
            return rc;
        int ready = bk_wire_wait(fd, events, STEP_MS);
        if (ready > 0)
            return BK_OK;
        if (ready < 0)
            return bk_err_sys(err, errno, "privileged helper: wait for it");
        if (until != 0 && bk_mono() >= until)
            return bk_err_set(err, BK_UNAVAILABLE,
                              "privileged helper: no answer in time; check that it runs");
    }
}

/* Until there may be room again for what could not be sent.  Of descriptors under way nobody tells
 * when they have arrived. */
static bk_rc_t wait_room(int fd, int errnum, int64_t until, bk_ctl_t *ctl, bk_err_t *err)
{
    if (errnum != ETOOMANYREFS)
        return wait_for(fd, POLLOUT, until, ctl, err);
    bk_sleep_ms(STEP_MS / 4);
    bk_rc_t rc = bk_ctl_check(ctl, err);
    if (rc == BK_OK && until != 0 && bk_mono() >= until)
        rc = bk_err_set(err, BK_UNAVAILABLE,
                        "privileged helper: too many descriptors of this user are under way; raise "
                        "worker_rlimit_nofile");
    return rc;
}

/* A message that is not a reply to what was asked: this side can no longer tell what is what. */
static bool is_reply(const bk_talker_t *talker, bk_wire_verb_t verb)
{
    if (verb == BK_WIRE_HELLO && talker->in.head.verb == BK_WIRE_FAILED && talker->in.head.id == 0)
        return talker->in.fd_count == 0; /* it was not taken up */
    return talker->in.head.id == talker->last_id &&
           (talker->in.head.verb == verb || talker->in.head.verb == BK_WIRE_FAILED) &&
           (talker->in.fd_count == 0 || talker->in.head.verb == BK_WIRE_AT);
}

static bk_talked_t wait_reply(bk_talker_t *talker, bk_wire_verb_t verb, int64_t until,
                              bk_ctl_t *ctl, bk_err_t *err)
{
    for (;;) {
        if (wait_for(talker->fd, POLLIN, until, ctl, err) != BK_OK)
            return BK_TALK_STOPPED;
        switch (bk_wire_receive(talker->fd, &talker->in)) {
        case BK_WIRE_EMPTY:
            continue;
        case BK_WIRE_OK:
            if (is_reply(talker, verb))
                return BK_TALKED;
            bk_wire_drop(&talker->in);
            bk_err_set(err, BK_UNAVAILABLE,
                       "privileged helper: it answered something else; restart nginx, so that "
                       "module and helper are of one version");
            return BK_TALK_UNKNOWN;
        case BK_WIRE_BROKEN:
            bk_err_set(err, BK_UNAVAILABLE,
                       "privileged helper: its answer is not understood; restart nginx, so that "
                       "module and helper are of one version");
            return BK_TALK_UNKNOWN;
        case BK_WIRE_END:
            bk_err_set(err, BK_UNAVAILABLE,
                       "privileged helper: it ended the conversation; " REMEDY);
            return BK_TALK_UNKNOWN;
        }
    }
}

bk_talked_t bk_talker_ask(bk_talker_t *talker, bk_wire_verb_t verb, const int *fds,
                          unsigned fd_count, unsigned limit_ms, bk_ctl_t *ctl, bk_err_t *err)
{
    int64_t until = limit_ms != 0 ? bk_mono() + limit_ms * BK_MS : 0;
    bk_wire_drop(&talker->in);
    talker->last_id++;
    for (;;) {
        int errnum = bk_wire_send(talker->fd, verb, talker->last_id, talker->out, talker->out_len,
                                  fds, fd_count);
        if (errnum == 0)
            return wait_reply(talker, verb, until, ctl, err);
        /* What is not taken up is told before it ends. */
        if (verb == BK_WIRE_HELLO && (errnum == EPIPE || errnum == ECONNRESET))
            return wait_reply(talker, verb, until, ctl, err);
        if (errnum != EAGAIN && errnum != ETOOMANYREFS) {
            bk_err_set(err, BK_UNAVAILABLE, "privileged helper: it is gone; " REMEDY);
            return BK_TALK_UNSENT;
        }
        if (wait_room(talker->fd, errnum, until, ctl, err) != BK_OK)
            return BK_TALK_STOPPED;
    }
}

/* --- the beginning --- */

static bk_rc_t pass_to_broker(int broker, bk_wire_for_t what, int theirs, bk_ctl_t *ctl,
                              bk_err_t *err)
{
    bk_wire_talk_t wish = {.what = what};
    int64_t until = bk_mono() + ANSWER_MS * BK_MS;
    for (;;) {
        int errnum = bk_wire_send(broker, BK_WIRE_TALK, 0, &wish, sizeof wish, &theirs, 1);
        if (errnum == 0)
            return BK_OK;
        if (errnum != EAGAIN && errnum != ETOOMANYREFS)
            return bk_err_set(err, BK_UNAVAILABLE, "privileged helper: it does not run; " REMEDY);
        bk_rc_t rc = wait_room(broker, errnum, until, ctl, err);
        if (rc != BK_OK)
            return rc;
    }
}

static bk_rc_t say_hello(bk_talker_t *talker, bk_ctl_t *ctl, bk_err_t *err)
{
    talker->out_len = 0;
    if (bk_talker_ask(talker, BK_WIRE_HELLO, NULL, 0, ANSWER_MS, ctl, err) != BK_TALKED)
        return err != NULL && err->rc != BK_OK ? err->rc : BK_UNAVAILABLE;
    if (talker->in.head.verb == BK_WIRE_FAILED) {
        char text[BK_TALKER_TEXT];
        bk_talker_text(talker, text);
        return bk_err_set(err, BK_UNAVAILABLE, "privileged helper: %s", text);
    }
    if (talker->in.head.verb != BK_WIRE_HELLO || talker->in.head.len != sizeof talker->hello)
        return bk_err_set(err, BK_UNAVAILABLE,
                          "privileged helper: its greeting is not understood; restart nginx, so "
                          "that module and helper are of one version");
    memcpy(&talker->hello, talker->in.body, sizeof talker->hello);
    talker->hello.release[sizeof talker->hello.release - 1] = '\0';
    return BK_OK;
}

bk_rc_t bk_talker_open(int broker, bk_wire_for_t what, bk_talker_t **out, bk_ctl_t *ctl,
                       bk_err_t *err)
{
    int pair[2], size = 4 * (int)BK_WIRE_MESSAGE;
    bk_err_t why = {0};
    *out = NULL;
    bk_talker_t *talker = calloc(1, sizeof *talker);
    if (talker == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "privileged helper: memory is exhausted");
    talker->fd = -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        bk_rc_t rc = bk_err_sys(err, errno, "privileged helper: make a conversation");
        bk_talker_close(talker);
        return rc;
    }
    talker->fd = pair[0];
    /* The usual size does; a smaller one of this system would refuse large requests. */
    (void)setsockopt(talker->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    bk_rc_t rc = pass_to_broker(broker, what, pair[1], ctl, &why);
    close(pair[1]);
    if (rc == BK_OK)
        rc = say_hello(talker, ctl, &why);
    if (rc != BK_OK) {
        bk_talker_close(talker);
        if (err != NULL)
            *err = why;
        return rc;
    }
    *out = talker;
    return BK_OK;
}
