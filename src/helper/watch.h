/*
 * helper/watch.h: a conversation that watches: from the first WATCH on its process does nothing
 * else.  libc only.
 *
 * What is told is what a backup needs to be exact, no more: directories, not files, each once in
 * 100 ms; a database that was written, at once.  Nothing is dropped in silence: where the kernel or
 * this process cannot keep up, a directory becomes a tree, a tree the root, and lost events are
 * said to be LOST until all of it is watched again.
 */
#ifndef BK_HELPER_WATCH_H
#define BK_HELPER_WATCH_H

#include "helper/roots.h"
#include "helper/wire.h"

/* Which kinds of watching work here: BK_WIRE_WATCH_…  Asked before the cage closes. */
uint32_t bk_watch_kinds(void);

/*
 * Serve the conversation, of which *in holds the first WATCH request; later ones are read into it.
 * 0: the peer closed, or a root is not there any more (watch again); EPROTO: the peer broke the
 * protocol; else an errno.
 */
int bk_watch_run(int fd, const bk_roots_t *roots, bk_wire_message_t *in);

/* For tests: as if the system had no more watches than that for one root. */
extern unsigned bk_watch_most;

#endif
