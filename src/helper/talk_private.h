/*
 * helper/talk_private.h: the state of a conversation, for talk.c and the fuzz target that feeds it
 * messages.
 */
#ifndef BK_HELPER_TALK_PRIVATE_H
#define BK_HELPER_TALK_PRIVATE_H

#include "helper/task.h"
#include "helper/watch.h"
#include "helper/wire.h"

typedef struct {
    int fd;
    const bk_roots_t *conf;
    uint64_t generation;
    bk_wire_for_t what;
    uint32_t watch_kinds, cage;
    unsigned root_count;
    bk_task_root_t roots[BK_WIRE_ROOTS];
    bk_task_made_t made;
    bk_fanotify_t *fan; /* of a watcher; NULL: none */
    bk_wire_message_t in;
    unsigned attrs_used; /* descriptors of in that operations took */
    size_t out_len;
    unsigned out_fd_count;
    int out_fds[BK_WIRE_OPS];
    unsigned char out[BK_WIRE_BODY];
} bk_talk_t;

/* fd: borrowed */
bk_talk_t *bk_talk_new(int fd, bk_wire_for_t what, const bk_roots_t *roots, uint64_t generation);
void bk_talk_free(bk_talk_t *talk);
/* Answer the request in talk->in.  0; EPROTO: not of the protocol; EINPROGRESS: the first WATCH,
 * which is for bk_watch_run; else the conversation ends. */
int bk_talk_message(bk_talk_t *talk);

#endif
