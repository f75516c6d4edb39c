/*
 * sqlite/walindex.c: reads the wal-index through SQLite's own mapping of it: a mapping of our own
 * would need a descriptor of the -shm, and closing that drops SQLite's locks.
 */
#include "sqlite/walindex.h"

#include <string.h>

#include "base/clock.h"

static void copy_shared(uint8_t *out, const volatile uint8_t *from, size_t len)
{
    for (size_t i = 0; i < len; i++)
        out[i] = from[i];
}

/*
 * A wal-index header and the backfilled frames that belong to it.  Writers store the second copy,
 * then the first; a restart of the log stores a new header, then no backfilled frames.  So the
 * first copy is read before everything else and once more after it: unchanged, it vouches for what
 * was read in between.
 */
static bool read_once(sqlite3_file *file, const volatile uint8_t *shared, bk_wal_header_t *header)
{
    uint8_t bytes[BK_WAL_INDEX_HEADER], again[BK_WAL_INDEX_COPY];
    copy_shared(bytes, shared, BK_WAL_INDEX_COPY);
    file->pMethods->xShmBarrier(file);
    copy_shared(bytes + BK_WAL_INDEX_COPY, shared + BK_WAL_INDEX_COPY,
                sizeof bytes - BK_WAL_INDEX_COPY);
    file->pMethods->xShmBarrier(file);
    copy_shared(again, shared, sizeof again);
    return memcmp(bytes, again, sizeof again) == 0 && bk_wal_index_parse(bytes, header);
}

bk_rc_t bk_db_wal_header(bk_db_connection_t *c, unsigned wait_ms, bk_wal_header_t *header,
                         bk_err_t *err)
{
    void volatile *shared = NULL;
    sqlite3_file *file = c->file;
    if (file->pMethods->iVersion < 2 || file->pMethods->xShmMap == NULL)
        return bk_err_set(err, BK_UNSUPPORTED, "database %s: SQLite has no shared memory here",
                          c->path);
    int code = file->pMethods->xShmMap(file, 0, BK_WAL_INDEX_REGION, 0, &shared);
    if (code != SQLITE_OK || shared == NULL)
        return bk_db_failure(c, code != SQLITE_OK ? code : SQLITE_BUSY, "map the wal-index", err);
    for (unsigned tries = 0; tries <= wait_ms; tries++) {
        if (read_once(file, shared, header))
            return BK_OK;
        bk_sleep_ms(1);
    }
    return bk_err_set(err, BK_BUSY,
                      "database %s: its wal-index does not come to rest (a writer may have died "
                      "there): try again",
                      c->path);
}
