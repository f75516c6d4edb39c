/*
 * engine/covered.c: the record, one write in place: a reader that meets half of it sees that by its
 * hash, and reads again.
 *
 *   magic "NGXBKCV\1" | epoch 16 | transaction u64 | until i64 | XXH3-64 of all before u64
 */
#include "engine/covered.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/publish.h"
#include "base/str.h"

#define MAGIC  "NGXBKCV\1"
#define RECORD (8u + BK_TXLOG_EPOCH + 24u)
#define TRIES  3u

static bool path_of(const char *dir, char path[PATH_MAX])
{
    return bk_fmt(path, PATH_MAX, "%s/covered", dir);
}

void bk_covered_write(const char *dir, const bk_capture_known_t *known, int *fd)
{
    uint8_t record[RECORD];
    char path[PATH_MAX];
    memcpy(record, MAGIC, 8);
    memcpy(record + 8, known->epoch, BK_TXLOG_EPOCH);
    bk_put_u64(record + 24, known->txid);
    bk_put_u64(record + 32, (uint64_t)known->until);
    bk_put_u64(record + 40, XXH3_64bits(record, 40));
    if (*fd < 0 && path_of(dir, path))
        *fd = bk_openat(AT_FDCWD, path, O_WRONLY | O_CREAT | O_NOFOLLOW, 0600);
    if (*fd >= 0)
        (void)bk_pwrite_all(*fd, record, sizeof record, 0, "covered", NULL);
}

bool bk_covered_read(const char *dir, bk_capture_known_t *known)
{
    uint8_t record[RECORD];
    char path[PATH_MAX];
    size_t got = 0;
    bool whole = false;
    *known = (bk_capture_known_t){.until = 0};
    int fd = path_of(dir, path) ? bk_openat(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW, 0) : -1;
    for (unsigned i = 0; i < TRIES && fd >= 0 && !whole; i++)
        whole = bk_pread_all(fd, record, sizeof record, 0, &got, path, NULL) == BK_OK &&
                got == sizeof record && memcmp(record, MAGIC, 8) == 0 &&
                XXH3_64bits(record, 40) == bk_get_u64(record + 40);
    if (fd >= 0)
        close(fd);
    if (!whole)
        return false;
    memcpy(known->epoch, record + 8, BK_TXLOG_EPOCH);
    known->txid = bk_get_u64(record + 24);
    known->until = (int64_t)bk_get_u64(record + 32);
    return true;
}
