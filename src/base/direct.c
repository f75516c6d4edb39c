/*
 * base/direct.c: whole blocks from an aligned buffer with O_DIRECT, the edges through the cache.
 * An edge and a block never share a page, so neither sees a stale copy of the other.
 */
#include "base/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/publish.h"

#define BLOCK_MIN 4096u      /* as large as any disk's sector */
#define STEP      (1u << 20) /* of one write; a multiple of every size of pages */

static size_t block_size(void)
{
    long page = sysconf(_SC_PAGESIZE);
    return page > (long)BLOCK_MIN && page <= (long)STEP ? (size_t)page : BLOCK_MIN;
}

static bool set_direct(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

/*
 * *done: bytes written, a multiple of block.  What is left when it returns BK_OK is for the usual
 * way: the file system refused, or stopped where no block ends.
 */
static bk_rc_t write_blocks(int fd, const uint8_t *data, size_t len, uint64_t offset,
                            uint8_t *buffer, size_t block, size_t *done, const char *what,
                            bk_err_t *err)
{
    *done = 0;
    while (*done < len) {
        size_t step = len - *done < STEP ? len - *done : STEP;
        memcpy(buffer, data + *done, step);
        ssize_t n = pwrite(fd, buffer, step, (off_t)(offset + *done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EINVAL)
            return bk_err_sys(err, errno, "write %s", what);
        if (n > 0)
            *done += (size_t)n - (size_t)n % block;
        if (n < 0 || (size_t)n < step)
            break;
    }
    return BK_OK;
}

bk_rc_t bk_direct_write(int fd, const void *data, size_t len, uint64_t offset, const char *what,
                        bk_err_t *err)
{
    const uint8_t *from = data;
    size_t block = block_size(), head = (size_t)(-offset % block), done = 0;
    void *buffer = NULL;
    bk_rc_t rc = BK_OK;
    if (len < BK_DIRECT_MIN || posix_memalign(&buffer, block, STEP) != 0)
        return bk_pwrite_all(fd, data, len, offset, what, err);
    if (head > 0)
        rc = bk_pwrite_all(fd, from, head, offset, what, err);
    if (rc == BK_OK && set_direct(fd, true)) {
        size_t blocks = len - head - (len - head) % block;
        rc = write_blocks(fd, from + head, blocks, offset + head, buffer, block, &done, what, err);
        /* It cannot be refused: the file was open without it before. */
        if (!set_direct(fd, false) && rc == BK_OK)
            rc = bk_err_sys(err, errno, "write %s", what);
    }
    free(buffer);
    done += head;
    return rc == BK_OK ? bk_pwrite_all(fd, from + done, len - done, offset + done, what, err) : rc;
}
