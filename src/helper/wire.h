/*
 * helper/wire.h: one checked datagram of protocol.h, out and in.  Shared by the helper and by the
 * workers' client; libc only.  A message belongs to one thread.
 */
#ifndef BK_HELPER_WIRE_H
#define BK_HELPER_WIRE_H

#include <stdbool.h>
#include <stddef.h>

#include "helper/protocol.h"

#define BK_WIRE_BODY (BK_WIRE_MESSAGE - sizeof(bk_wire_head_t))

typedef struct {
    bk_wire_head_t head;
    unsigned char body[BK_WIRE_BODY]; /* head.len bytes of it */
    unsigned fd_count;
    int fds[BK_WIRE_OPS]; /* owned by the message: -1 where one was taken out */
} bk_wire_message_t;

/* What bk_wire_receive found. */
typedef enum {
    BK_WIRE_OK = 0,
    BK_WIRE_EMPTY, /* nothing there now */
    BK_WIRE_END,   /* the other side is gone; errno is 0 or says why */
    BK_WIRE_BROKEN /* not a message of this protocol: the conversation is over */
} bk_wire_got_t;

/*
 * The next message, without waiting (poll first).  Checked are magic, version, the exact length and
 * that no descriptor was lost; on anything but BK_WIRE_OK the message holds no descriptors.
 */
bk_wire_got_t bk_wire_receive(int fd, bk_wire_message_t *message);
/*
 * Send without waiting and without a signal.  fds are borrowed.  0 or an errno: EAGAIN when the
 * other side's queue is full, EMSGSIZE when len or fd_count is more than a message can hold,
 * ETOOMANYREFS when too many descriptors are under way on this machine.
 */
int bk_wire_send(int fd, bk_wire_verb_t verb, uint32_t id, const void *body, size_t len,
                 const int *fds, unsigned fd_count);
/* Wait for events of fd for ms at most: 1 something is to be seen, 0 not yet, -1 errno. */
int bk_wire_wait(int fd, short events, int ms);
/* Close what the message still owns. */
void bk_wire_drop(bk_wire_message_t *message);
/* An AF_UNIX socket of type SEQPACKET?  What else a peer passes as a conversation is no such thing.
 */
bool bk_wire_is_seqpacket(int fd);

/* --- reading a body: fields in order; the first that is not wholly there makes it failed --- */

typedef struct {
    const unsigned char *at;
    size_t left;
    bool failed;
} bk_wire_cur_t;

bk_wire_cur_t bk_wire_cur(const bk_wire_message_t *message);
/* Copy len bytes out; zeros once failed. */
void bk_wire_get(bk_wire_cur_t *cur, void *out, size_t len);
/* The next len bytes in place, NULL once failed. */
const char *bk_wire_bytes(bk_wire_cur_t *cur, size_t len);

/* One name in a directory: no '/', no NUL, not "", "." or "..", at most BK_WIRE_NAME bytes. */
bool bk_wire_is_name(const char *name, size_t len);
/* Names with single '/' between them: relative, without "." and "..", at most BK_WIRE_PATH. */
bool bk_wire_is_relative(const char *path, size_t len);

#endif
