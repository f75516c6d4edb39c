/*
 * helper/lock.h: of all helpers of one nginx only one is active.  The lock is a flock on a file in
 * a directory that only root may write to; it is free when all who hold the descriptor are gone.
 */
#ifndef BK_HELPER_LOCK_H
#define BK_HELPER_LOCK_H

#include <stdint.h>

#define BK_LOCK_DIRECTORY "/run/ngx-backup"

/* The lock's descriptor; -1 with errno EWOULDBLOCK when another one has it, or what went wrong. */
int bk_lock_take(uint64_t nginx);
/* Remove the file, while still holding it. */
void bk_lock_remove(uint64_t nginx);

#endif
