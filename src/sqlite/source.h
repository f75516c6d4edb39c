/*
 * sqlite/source.h: a live SQLite database as a stable array of pages, without a copy and without
 * writing to it.
 *
 * WAL mode: a reader holds a transaction open (the pin).  Seen from the wal-index header read after
 * the pin, with S its salts, M its mxFrame and B the frames already backfilled
 * (https://www.sqlite.org/walformat.html): B >= M: the database file alone is the image; nobody can
 * write to it while pinned. B <  M: pages with a frame <= M come from the newest such frame, the
 * others from the file; no reset can happen while pinned, and nobody backfills past the pin. The
 * proof is in docs/sqlite.md.  Rollback-journal mode: the pin is a SHARED lock; the file alone is
 * the image, and the application's commits wait while it is held.
 *
 * POSIX locks: closing any descriptor of the database or its -shm in this process would drop
 * SQLite's locks, so the file is read only through SQLite's own handle, and nobody else in the
 * process may open it (base/attached.h sees to that). A source belongs to one thread at a
 * time, except bk_db_source_read, which several may call at once.
 */
#ifndef BK_SQLITE_SOURCE_H
#define BK_SQLITE_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/ctl.h"
#include "base/err.h"

/* One of so many bytes is read in many pins of so many ms, or its log could not begin anew for long
 * (unless told otherwise, by tests). */
#define BK_DB_LARGE  (256ull << 20)
#define BK_DB_PIN_MS 200u

typedef struct bk_db_source_s bk_db_source_t;

typedef struct {
    uint32_t page_size;
    uint64_t page_count;                   /* of the image */
    uint64_t wal_frames;                   /* M, 0 outside WAL mode */
    uint32_t wal_salt[2], wal_checksum[2]; /* of M */
    char journal[16]; /* "wal"; "delete" for all others: only the application's own connections know
                            which of the rollback modes they use */
    int64_t instant;  /* bk_now when the pin was taken: the image holds every transaction committed
                        before it */
    uint32_t uid, gid, mode;
    uint64_t device, inode;
} bk_db_info_t;

/*
 * Pin.  busy_ms: how long to wait for locks (BK_BUSY after it, naming what to do).  BK_NOT_FOUND
 * when there is no file; BK_CORRUPT when it is not a database; BK_DENIED names the right that is
 * missing.
 */
bk_rc_t bk_db_source_open(const char *path, unsigned busy_ms, bk_ctl_t *ctl,
                          bk_db_source_t **source, bk_err_t *err);
const bk_db_info_t *bk_db_source_info(const bk_db_source_t *source);
/* Pages first..first+n-1 (from 1), each page_size bytes, into out.  The lock page (byte 1 GiB)
 * reads as zeros. */
bk_rc_t bk_db_source_read(bk_db_source_t *source, uint64_t first, unsigned n, uint8_t *out,
                          bk_err_t *err);
/* Release the pin.  NULL is fine. */
void bk_db_source_close(bk_db_source_t *source);

/* Digest of pages: XXH3-64 of each page seeded by its number, XOR over all; the lock page counts
 * nothing. */
uint64_t bk_db_page_hash(uint64_t pgno, const uint8_t *page, uint32_t page_size);
/* Pages, as the header in the first of them says; 0: it was last written by a SQLite older than
 * 3.7, which left this as it was.  Files and commits may be longer (SQLITE_FCNTL_CHUNK_SIZE). */
#define BK_DB_HEADER 100u
uint64_t bk_db_header_page_count(const uint8_t header[BK_DB_HEADER]);
/* Number of the page that holds byte 1 GiB: never stored, never hashed. */
uint64_t bk_db_lock_page(uint32_t page_size);

#endif
