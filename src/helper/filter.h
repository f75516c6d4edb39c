/*
 * helper/filter.h: the list of system calls that a conversation's process may use (seccomp).
 */
#ifndef BK_HELPER_FILTER_H
#define BK_HELPER_FILTER_H

#include <stdbool.h>

/* What a process does; to talk, every one may. */
#define BK_FILTER_FIND      1u /* find and list directories */
#define BK_FILTER_LOOK      2u /* open files, read links and attributes */
#define BK_FILTER_COMPANION 4u /* make what SQLite keeps beside a database */
#define BK_FILTER_PLACE     8u /* make, change, rename and remove */
#define BK_FILTER_WATCH     16u

/* Does this kernel filter, and is there a list for this machine (x86-64, AArch64)? */
bool bk_filter_works(void);
/* Any other call fails with EPERM from now on.  0, or -1 and errno. */
int bk_filter_enter(unsigned what);

#endif
