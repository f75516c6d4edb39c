/*
 * helper/guard.h: what the processes of the helper have in common: they fork children that die with
 * them, and they learn of a child's end through a descriptor.  libc only.
 */
#ifndef BK_HELPER_GUARD_H
#define BK_HELPER_GUARD_H

#include <stdint.h>
#include <sys/types.h>

/* Monotonic, ms. */
int64_t bk_guard_now(void);
/* A descriptor that becomes readable when a child ended, or on SIGTERM and SIGINT when terminate is
 * set; these are blocked from now on.  -1 errno. */
int bk_guard_signals(int terminate);
/* The next signal that came, 0 when there is none. */
int bk_guard_signal(int signals);
/*
 * fork; the child is killed when its parent ends, has no signals blocked and is called name in
 * /proc.  As fork: 0 in the child.
 */
pid_t bk_guard_fork(const char *name);
/* In a child: keep fd, as 3, and the standard descriptors; close all others.  0 or an errno. */
int bk_guard_keep(int fd);

#endif
