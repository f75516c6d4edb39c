/*
 * helper/agent.h: the process that takes up conversations with workers, one process each.
 */
#ifndef BK_HELPER_AGENT_H
#define BK_HELPER_AGENT_H

#include "helper/roots.h"

/*
 * line: from the supervisor, carries CONF; its end means to take up nothing more and to leave when
 * the last conversation is over.  broker: from the workers.  Everything is taken over; the result
 * is the exit status: 0 also when nobody has talked for some seconds.  SIGCHLD must be blocked.
 */
int bk_agent_run(int line, int broker, bk_roots_t *roots, const bk_wire_conf_t *conf);

#endif
