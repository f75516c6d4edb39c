/*
 * helper/cage.h: what a conversation's process gives up before it listens to a worker: all
 * capabilities but those for the files' owners and modes, new privileges, being looked into, every
 * path outside the roots (Landlock), system calls that no request needs (seccomp).
 *
 * What a kernel lacks is left out and told: the cage is the second wall, behind the checks of each
 * request.
 */
#ifndef BK_HELPER_CAGE_H
#define BK_HELPER_CAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "helper/roots.h"

/* Which of the walls stand: BK_WIRE_CAGE_… of protocol.h; -1 and errno when the process could not
 * even give up its capabilities. */
int bk_cage_enter(const bk_roots_t *roots);
/*
 * The second step, when the first request told what this conversation is: CAP_SYS_ADMIN goes (a
 * watcher has set its fanotify marks by then), and of the system calls a watcher keeps those for
 * watching, any other does not.
 */
int bk_cage_close(bool watcher);
/* The part of bk_cage_close that is about capabilities. */
int bk_cage_drop_admin(void);

#endif
