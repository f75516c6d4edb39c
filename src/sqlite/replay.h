/*
 * sqlite/replay.h: an image of a database, brought forward by transactions: a plain file that
 * nobody else has open.  One thread.
 */
#ifndef BK_SQLITE_REPLAY_H
#define BK_SQLITE_REPLAY_H

#include "sqlite/past.h"

typedef struct {
    int fd;           /* for reading and writing; the caller's */
    const char *path; /* for messages, borrowed */
    uint32_t page_size;
    uint64_t page_count, digest; /* of what it is now */
} bk_replay_t;

/*
 * What the transactions of past made of its base, which the image is.  BK_CORRUPT: it is not, or
 * does not become what the last one left behind; then it is of no use any more.  Nothing is
 * flushed.
 */
bk_rc_t bk_replay(bk_replay_t *image, bk_past_t *past, bk_err_t *err);

#endif
