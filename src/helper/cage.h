/*
 * helper/cage.h: what the helper's processes give up, and most of all that of a conversation before
 * it listens to a worker: all capabilities but those for the files' owners and modes, new
 * privileges, being looked into, every path outside the roots (Landlock), system calls that no
 * request needs (seccomp).
 *
 * What a kernel lacks is left out and told: the cage is the second wall, behind the checks of each
 * request.
 */
#ifndef BK_HELPER_CAGE_H
#define BK_HELPER_CAGE_H

#include "helper/roots.h"

/*
 * For supervisor and agent, whose children get no more than they have: only capabilities that some
 * conversation may need, no new ones by a program, not to be looked into.  0, or -1 and errno.
 */
int bk_cage_outer(void);
/*
 * The first step of a conversation.  Which of the walls stand: BK_WIRE_CAGE_… of protocol.h; -1 and
 * errno when the process could not even give up its capabilities.  What is left is what a
 * conversation of that kind may need with these roots: to change something only where a root may be
 * placed or is a database; for the status, nothing.
 */
int bk_cage_enter(const bk_roots_t *roots, bk_wire_for_t what);
/*
 * The second step, before the peer is listened to: CAP_SYS_ADMIN goes, which a watcher keeps until
 * here to set its fanotify marks, and system calls are limited.
 */
int bk_cage_close(const bk_roots_t *roots, bk_wire_for_t what);

#endif
