/*
 * helper/supervisor.h: the process between nginx's master and the agent: holds the lifeline to the
 * one and keeps the other alive.
 */
#ifndef BK_HELPER_SUPERVISOR_H
#define BK_HELPER_SUPERVISOR_H

/*
 * Serve one nginx master until it says QUIT or is gone; the result is the exit status.  Both
 * sockets are taken over; broker -1: it comes with the first CONF.
 */
int bk_supervise(int control, int broker);

#endif
