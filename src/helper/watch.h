/*
 * helper/watch.h: a conversation that watches: its process does nothing else.  libc only.
 *
 * What is told is what a backup needs to be exact, no more: directories, not files, each once in
 * 100 ms; a database that was written, at once.  Nothing is dropped in silence: where the kernel or
 * this process cannot keep up, a directory becomes a tree, a tree the root, and lost events are
 * said to be LOST until all of it is watched again.
 */
#ifndef BK_HELPER_WATCH_H
#define BK_HELPER_WATCH_H

#include <stdbool.h>

#include "helper/roots.h"
#include "helper/wire.h"

/* Which kinds of watching work here: BK_WIRE_WATCH_…  Asked before the cage closes.  fanotify works
 * on most file systems, and needs CAP_SYS_ADMIN once. */
uint32_t bk_watch_kinds(void);

/*
 * Marks on the file systems of all directories in roots that may be watched, wherever fanotify
 * works; NULL: nowhere.  Needs CAP_SYS_ADMIN and the roots within reach, so it comes before the
 * cage closes.  Events gather from here on.
 */
typedef struct bk_fanotify_s bk_fanotify_t;
bk_fanotify_t *bk_fanotify_open(const bk_roots_t *roots);
void bk_fanotify_close(bk_fanotify_t *fan); /* after bk_watch_run; NULL is fine */
bool bk_fanotify_works(void);

/*
 * Serve the conversation, of which *in holds the first WATCH request; later ones are read into it.
 * fan: borrowed; NULL: inotify alone.
 * 0: the peer closed, or a root is not there any more (watch again); EPROTO: the peer broke the
 * protocol; else an errno.
 */
int bk_watch_run(int fd, const bk_roots_t *roots, bk_wire_message_t *in, bk_fanotify_t *fan);

/* For tests: as if the system had no more watches than that for one root. */
extern unsigned bk_watch_most;
/* For tests: only these kinds are used; BK_WIRE_WATCH_… */
extern unsigned bk_watch_use;

#endif
