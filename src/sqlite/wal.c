/*
 * sqlite/wal.c: reading a write-ahead log without trusting more of it than its index vouches for.
 */
#include "sqlite/wal.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/publish.h"

#define WAL_HEADER    32u
#define FRAME_HEADER  24u
#define INDEX_VERSION 3007000u
#define READ_BYTES    (1u << 20)

/* The wal-index is in native byte order: the reader is the machine that wrote it. */
static uint32_t native(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint32_t big(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Fibonacci-weighted sums over pairs of 32-bit words; len is a multiple of 8. */
static void checksum(bool big_endian, const uint8_t *p, size_t len, uint32_t sum[2])
{
    uint32_t a = sum[0], b = sum[1];
    for (size_t i = 0; i < len; i += 8) {
        uint32_t x = big_endian ? big(p + i) : bk_get_u32(p + i);
        uint32_t y = big_endian ? big(p + i + 4) : bk_get_u32(p + i + 4);
        a += x + b;
        b += y + a;
    }
    sum[0] = a;
    sum[1] = b;
}

bool bk_wal_index_parse(const uint8_t bytes[BK_WAL_INDEX_HEADER], bk_wal_header_t *header)
{
    uint32_t sum[2] = {0, 0};
    uint16_t size;
    if (memcmp(bytes, bytes + 48, 48) != 0 || native(bytes) != INDEX_VERSION || bytes[12] == 0)
        return false;
    /* In native order whatever the log's own order is. */
    for (size_t i = 0; i < 40; i += 8) {
        sum[0] += native(bytes + i) + sum[1];
        sum[1] += native(bytes + i + 4) + sum[0];
    }
    if (sum[0] != native(bytes + 40) || sum[1] != native(bytes + 44))
        return false;
    memcpy(&size, bytes + 14, sizeof size);
    header->big_endian = bytes[13] != 0;
    header->page_size = (uint32_t)(size & 0xfe00) + ((uint32_t)(size & 1) << 16);
    header->frames = native(bytes + 16);
    header->pages = native(bytes + 20);
    header->checksum[0] = native(bytes + 24);
    header->checksum[1] = native(bytes + 28);
    memcpy(header->salt, bytes + 32, 8);
    header->backfilled = native(bytes + 96);
    /* A log without frames has no page size yet. */
    return header->frames == 0 ||
           (header->page_size >= 512 && (header->page_size & (header->page_size - 1)) == 0);
}

uint64_t bk_wal_frame_offset(uint32_t frame, uint32_t page_size)
{
    return WAL_HEADER + (uint64_t)(frame - 1) * (FRAME_HEADER + page_size) + FRAME_HEADER;
}

static bk_rc_t bad(const char *what, const char *why, uint32_t frame, bk_err_t *err)
{
    return bk_err_set(err, BK_CORRUPT, "%s: frame %u %s", what, frame, why);
}

static bk_rc_t check_log_header(int fd, const char *what, const bk_wal_header_t *header,
                                uint32_t sum[2], bk_err_t *err)
{
    uint8_t bytes[WAL_HEADER];
    size_t got;
    bk_rc_t rc = bk_pread_all(fd, bytes, sizeof bytes, 0, &got, what, err);
    if (rc != BK_OK)
        return rc;
    uint32_t magic = big(bytes);
    sum[0] = sum[1] = 0;
    checksum((magic & 1) != 0, bytes, 24, sum);
    if (got != sizeof bytes || (magic & ~1u) != 0x377f0682u ||
        big(bytes + 8) != header->page_size || memcmp(bytes + 16, header->salt, 8) != 0 ||
        sum[0] != big(bytes + 24) || sum[1] != big(bytes + 28))
        return bk_err_set(err, BK_CORRUPT, "%s: its header does not fit the wal-index", what);
    return BK_OK;
}

/* Where the running checksum is not known any more. */
static bool is_unknown(const uint32_t sum[2])
{
    return sum[0] == 0 && sum[1] == 0;
}

/*
 * SQLite writes a frame without salts and checksum when it means to compute the checksums of its
 * transaction anew at the end, since pages were spilled from the cache and changed again.  Some
 * releases (Debian 12's is one) forget to when ROLLBACK TO a savepoint came in between.  The index
 * counts such a frame, and readers use it; only a recovery of the log would stop there.  The
 * checksums that follow it go on from a value that is not in the log.
 */
static bool is_unsigned(const uint8_t *p)
{
    static const uint8_t zeros[16];
    return memcmp(p + 8, zeros, sizeof zeros) == 0;
}

static bk_rc_t check_frame(const uint8_t *p, uint32_t frame, const char *what,
                           const bk_wal_header_t *header, uint32_t sum[2], bk_err_t *err)
{
    bool unknown = is_unknown(sum);
    checksum(header->big_endian, p, 8, sum);
    checksum(header->big_endian, p + FRAME_HEADER, header->page_size, sum);
    if (is_unsigned(p)) {
        sum[0] = sum[1] = 0;
        return BK_OK;
    }
    if (memcmp(p + 8, header->salt, 8) != 0)
        return bad(what, "is of another generation", frame, err);
    if (unknown) {
        sum[0] = big(p + 16);
        sum[1] = big(p + 20);
    }
    return sum[0] == big(p + 16) && sum[1] == big(p + 20)
               ? BK_OK
               : bad(what, "has a wrong checksum", frame, err);
}

/* Frames n from frame on, which are at bytes. */
static bk_rc_t check_frames(const uint8_t *bytes, uint32_t frame, size_t n, const char *what,
                            const bk_wal_header_t *header, uint32_t sum[2], bk_wal_frame_fn fn,
                            void *arg, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < n && rc == BK_OK; i++, frame++) {
        const uint8_t *p = bytes + i * (FRAME_HEADER + header->page_size);
        if ((rc = check_frame(p, frame, what, header, sum, err)) != BK_OK)
            break;
        if (big(p) == 0)
            return bad(what, "has no page", frame, err);
        bk_wal_frame_t one = {.frame = frame,
                              .pgno = big(p),
                              .commit = big(p + 4),
                              .checksum = {sum[0], sum[1]},
                              .page = p + FRAME_HEADER};
        rc = fn(arg, &one, err);
    }
    return rc;
}

bk_rc_t bk_wal_frames(int fd, const char *what, const bk_wal_header_t *header, uint32_t after,
                      const uint32_t start[2], bk_wal_frame_fn fn, void *arg, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    size_t frame_bytes = FRAME_HEADER + header->page_size;
    size_t batch = READ_BYTES / frame_bytes > 0 ? READ_BYTES / frame_bytes : 1;
    uint32_t sum[2] = {0, 0}, left = header->frames > after ? header->frames - after : 0;
    if (batch > left)
        batch = left > 0 ? left : 1;
    uint8_t *buffer = malloc(batch * frame_bytes);
    if (buffer == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", what);
    bk_rc_t rc = BK_OK;
    if (after == 0)
        rc = check_log_header(fd, what, header, sum, err);
    else
        memcpy(sum, start, sizeof sum);
    for (uint32_t frame = after + 1; rc == BK_OK && frame <= header->frames;) {
        size_t n = header->frames - frame + 1 < batch ? header->frames - frame + 1 : batch, got;
        if ((rc = bk_ctl_check(ctl, err)) != BK_OK)
            break;
        rc = bk_pread_all(fd, buffer, n * frame_bytes,
                          bk_wal_frame_offset(frame, header->page_size) - FRAME_HEADER, &got, what,
                          err);
        if (rc == BK_OK && got != n * frame_bytes)
            rc = bad(what, "is cut off", frame, err);
        if (rc == BK_OK)
            rc = check_frames(buffer, frame, n, what, header, sum, fn, arg, err);
        frame += (uint32_t)n;
    }
    if (rc == BK_OK && header->frames > 0 && !is_unknown(sum) &&
        (sum[0] != header->checksum[0] || sum[1] != header->checksum[1]))
        rc = bad(what, "does not end as the wal-index says", header->frames, err);
    free(buffer);
    return rc;
}

bk_rc_t bk_wal_frame(int fd, const char *what, uint32_t page_size, uint32_t number, uint8_t *page,
                     bk_wal_frame_t *frame, bk_err_t *err)
{
    uint8_t p[FRAME_HEADER];
    size_t got, head = 0;
    uint64_t at = bk_wal_frame_offset(number, page_size);
    bk_rc_t rc = bk_pread_all(fd, p, sizeof p, at - FRAME_HEADER, &head, what, err);
    if (rc == BK_OK)
        rc = bk_pread_all(fd, page, page_size, at, &got, what, err);
    if (rc == BK_OK && (head != sizeof p || got != page_size))
        rc = bad(what, "is cut off", number, err);
    if (rc == BK_OK)
        *frame = (bk_wal_frame_t){.frame = number,
                                  .pgno = big(p),
                                  .commit = big(p + 4),
                                  .checksum = {big(p + 16), big(p + 20)},
                                  .page = page};
    return rc;
}

bk_rc_t bk_wal_ends_with(int fd, const char *what, const bk_wal_header_t *header, uint32_t frame,
                         const uint32_t sum[2], bool *does, bk_err_t *err)
{
    uint8_t p[FRAME_HEADER];
    size_t got;
    bk_rc_t rc =
        bk_pread_all(fd, p, sizeof p, bk_wal_frame_offset(frame, header->page_size) - FRAME_HEADER,
                     &got, what, err);
    *does = rc == BK_OK && got == sizeof p && memcmp(p + 8, header->salt, 8) == 0 &&
            big(p + 16) == sum[0] && big(p + 20) == sum[1];
    return rc;
}

typedef struct {
    uint32_t *frame_of, pages;
} scan_t;

static bk_rc_t note_frame(void *arg, const bk_wal_frame_t *frame, bk_err_t *err)
{
    scan_t *scan = arg;
    (void)err;
    if (frame->pgno <= scan->pages)
        scan->frame_of[frame->pgno - 1] = frame->frame;
    return BK_OK;
}

bk_rc_t bk_wal_scan(int fd, const char *what, const bk_wal_header_t *header, uint32_t *frame_of,
                    bk_ctl_t *ctl, bk_err_t *err)
{
    scan_t scan = {frame_of, header->pages};
    return bk_wal_frames(fd, what, header, 0, NULL, note_frame, &scan, ctl, err);
}
