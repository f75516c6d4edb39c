/*
 * helper/client_private.h: one conversation, as seen by a worker: for client.c, which keeps a pool
 * of them, and for whoever watches, which has one of its own.  A conversation belongs to one
 * thread at a time.
 */
#ifndef BK_HELPER_CLIENT_PRIVATE_H
#define BK_HELPER_CLIENT_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>

#include "helper/client.h"
#include "helper/wire.h"

typedef struct {
    char *path; /* owned */
    uint32_t may;
    uint64_t device, inode;
    uint32_t number;
} bk_talker_root_t;

typedef struct {
    int fd;
    uint32_t last_id;
    bk_wire_hello_t hello; /* as of the beginning */
    bool busy;             /* of the pool: a thread has it */
    pthread_t last;        /* the thread that had it last */
    unsigned root_count;
    bk_talker_root_t roots[BK_WIRE_ROOTS];
    size_t out_len;
    unsigned char out[BK_WIRE_BODY]; /* the request */
    bk_wire_message_t in;            /* the reply, and its descriptors */
} bk_talker_t;

/* What became of a request. */
typedef enum {
    BK_TALKED = 0,   /* there is a reply in in: of the same verb, or FAILED */
    BK_TALK_UNSENT,  /* the helper never got it */
    BK_TALK_UNKNOWN, /* it may have been done; the conversation is over */
    BK_TALK_STOPPED  /* ctl says so, or the time is over; the conversation is over */
} bk_talked_t;

/* Begin a conversation: HELLO was answered.  BK_UNAVAILABLE when nobody does so within 2 s. */
bk_rc_t bk_talker_open(int broker, bk_wire_for_t what, bk_talker_t **talker, bk_ctl_t *ctl,
                       bk_err_t *err);
void bk_talker_close(bk_talker_t *talker); /* NULL is fine */
/*
 * Send out (out_len bytes) with descriptors and wait for the reply, for limit_ms at most (0: as
 * long as it takes).  err is described on anything but BK_TALKED.
 */
bk_talked_t bk_talker_ask(bk_talker_t *talker, bk_wire_verb_t verb, const int *fds,
                          unsigned fd_count, unsigned limit_ms, bk_ctl_t *ctl, bk_err_t *err);
/* The text of a FAILED reply, printable and cut. */
#define BK_TALKER_TEXT 256
void bk_talker_text(const bk_talker_t *talker, char out[BK_TALKER_TEXT]);
void bk_talker_put(bk_talker_t *talker, const void *bytes, size_t len);

int bk_helper_broker(const bk_helper_t *helper);

#endif
