/*
 * base/direct.h: many bytes into a file past the page cache.
 *
 * What a backup writes is not read again soon: by way of the cache it costs a copy and a page for
 * each 4 KiB, and pushes out pages that the application reads.  Where the file system has no direct
 * I/O, the bytes go through the cache after all.  Blocks; any thread.
 */
#ifndef BK_BASE_DIRECT_H
#define BK_BASE_DIRECT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Fewer bytes gain nothing; bk_direct_write writes them in the usual way. */
#define BK_DIRECT_MIN (256u << 10)

/*
 * data to [offset, offset + len) of fd, which nobody else uses meanwhile: its O_DIRECT flag changes
 * and is clear afterwards.  Does not sync.  what names the object in the message.
 */
bk_rc_t bk_direct_write(int fd, const void *data, size_t len, uint64_t offset, const char *what,
                        bk_err_t *err);

#endif
