/*
 * sqlite/wal.h: the bytes of a write-ahead log and its shared index
 * (https://www.sqlite.org/walformat.html and https://www.sqlite.org/fileformat2.html#walformat).
 * Parsers only: no locks, no SQLite handle.  Any thread.
 */
#ifndef BK_SQLITE_WAL_H
#define BK_SQLITE_WAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ctl.h"
#include "base/err.h"

#define BK_WAL_INDEX_REGION 32768 /* bytes of the first region of the -shm */
#define BK_WAL_INDEX_COPY   48    /* bytes of one of the two headers in it */
#define BK_WAL_INDEX_HEADER 136   /* two headers, then the checkpoint information */

typedef struct {
    uint32_t page_size;
    uint32_t frames;      /* mxFrame: valid frames */
    uint32_t pages;       /* of the database after the last of them */
    uint32_t checksum[2]; /* running checksum at the last of them */
    uint32_t salt[2];     /* as stored */
    uint32_t backfilled;  /* frames already in the database file */
    bool big_endian;      /* byte order of checksums */
} bk_wal_header_t;

/* False when the two copies differ, the checksum is wrong, nothing is there yet, or it is of a
 * format this program does not know. */
bool bk_wal_index_parse(const uint8_t bytes[BK_WAL_INDEX_HEADER], bk_wal_header_t *header);

/* Where the page of a frame (from 1) starts in the -wal. */
uint64_t bk_wal_frame_offset(uint32_t frame, uint32_t page_size);

/* One frame, as it is read. */
typedef struct {
    uint32_t frame; /* from 1 */
    uint32_t pgno;
    uint32_t commit;      /* pages of the database after it; 0: no transaction ends here */
    uint32_t checksum[2]; /* running checksum at its end */
    const uint8_t *page;  /* valid during the call */
} bk_wal_frame_t;
typedef bk_rc_t (*bk_wal_frame_fn)(void *arg, const bk_wal_frame_t *frame, bk_err_t *err);

/*
 * Frames after+1..header->frames in order, salts and the running checksum checked up to the last
 * one, which has to be the header's.  checksum: at the end of frame after, not needed for 0.
 * BK_CORRUPT when the log is not what the index says; what fn returns ends it.  Frames that SQLite
 * itself left without a checksum are taken as the index counts them, and theirs is told as 0, 0.
 */
bk_rc_t bk_wal_frames(int fd, const char *what, const bk_wal_header_t *header, uint32_t after,
                      const uint32_t checksum[2], bk_wal_frame_fn fn, void *arg, bk_ctl_t *ctl,
                      bk_err_t *err);
/* One frame alone, of those that were checked before; page: page_size bytes. */
bk_rc_t bk_wal_frame(int fd, const char *what, uint32_t page_size, uint32_t number, uint8_t *page,
                     bk_wal_frame_t *frame, bk_err_t *err);
/* Does that frame of header's generation end with this checksum? */
bk_rc_t bk_wal_ends_with(int fd, const char *what, const bk_wal_header_t *header, uint32_t frame,
                         const uint32_t checksum[2], bool *does, bk_err_t *err);
/* frame_of[pgno - 1] becomes the newest frame of each page up to header->pages. */
bk_rc_t bk_wal_scan(int fd, const char *what, const bk_wal_header_t *header, uint32_t *frame_of,
                    bk_ctl_t *ctl, bk_err_t *err);

#endif
