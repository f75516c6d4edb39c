/*
 * helper/filter.h: the list of system calls that a conversation's process may use (seccomp).
 */
#ifndef BK_HELPER_FILTER_H
#define BK_HELPER_FILTER_H

#include <stdbool.h>

/* Does this kernel filter, and is there a list for this machine (x86-64, AArch64)? */
bool bk_filter_works(void);
/* Any other call fails with EPERM from now on.  0, or -1 and errno. */
int bk_filter_enter(bool watcher);

#endif
