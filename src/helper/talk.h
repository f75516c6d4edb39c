/*
 * helper/talk.h: the privileged side of one conversation: one process, forked for it by the agent.
 *
 * The peer is a worker that may have been taken over.  It can ask for what the roots give it, one
 * request at a time, and nothing else: a second request before the reply to the first was read, or
 * a message that is not of the protocol, ends the conversation.
 */
#ifndef BK_HELPER_TALK_H
#define BK_HELPER_TALK_H

#include "helper/roots.h"

/*
 * Serve the conversation until it ends; fd is taken over, what: as TALK said.  Enters the cage
 * first, so this is the last thing that the process does: the result is its exit status (0: the
 * peer closed, 1: it broke the protocol, 2: the system failed).
 */
int bk_talk_run(int fd, bk_wire_for_t what, const bk_roots_t *roots, uint64_t generation);

#endif
