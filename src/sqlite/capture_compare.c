/*
 * sqlite/capture_compare.c: all pages of a database and what is known of them: what differs becomes
 * a transaction, or is counted.  Reads the database through sqlite/source.h; writes the open
 * segment.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/clock.h"
#include "sqlite/capture_private.h"
#include "sqlite/opening.h"
#include "sqlite/source.h"

#define READ_BYTES  (1u << 20)
#define GROWTH_MOST (1ull << 30)
#define PIECE_BYTES (64u << 10)
#define BUSY_MS     2000u
#define FULL_BYTES  (4u << 20) /* a segment that nothing of unknown size is added to */

bk_rc_t bk_capture_open_source(bk_capture_t *c, bk_db_source_t **source, bk_err_t *err)
{
    bk_rc_t rc = bk_db_source_open(c->database, c->busy_ms, c->ctl, source, err);
    if (rc != BK_OK)
        return rc;
    if ((strcmp(bk_db_source_info(*source)->journal, "wal") != 0) != c->batches)
        rc = bk_err_set(err, BK_UNSUPPORTED, "database %s changed its journal mode", c->database);
    else if (c->batches)
        rc = bk_capture_mark(c, err);
    if (rc != BK_OK) {
        bk_db_source_close(*source);
        *source = NULL;
    }
    return rc;
}

/* Pages first..first+n-1: those that differ from the hashes, into the log when there is one. */
static bk_rc_t compare_some(bk_capture_t *c, bool log, const uint8_t *pages, uint64_t first,
                            unsigned n, bk_err_t *err)
{
    uint32_t size = c->hashes.page_size;
    bk_rc_t rc = BK_OK;
    for (unsigned i = 0; i < n && rc == BK_OK; i++) {
        uint64_t pgno = first + i;
        uint64_t hash = bk_db_page_hash(pgno, pages + (size_t)i * size, size);
        if (pgno == bk_db_lock_page(size) || hash == bk_hashes_get(&c->hashes, pgno))
            continue;
        bk_hashes_set(&c->hashes, pgno, hash);
        c->logged += log;
        if (log)
            rc = bk_txlog_page(c->log, (uint32_t)pgno, pages + (size_t)i * size, err);
    }
    return rc;
}

static bool all_same(const bk_capture_t *c, const uint8_t *pages, uint64_t first, unsigned n)
{
    uint32_t size = c->hashes.page_size;
    for (unsigned i = 0; i < n; i++)
        if (first + i != bk_db_lock_page(size) &&
            bk_db_page_hash(first + i, pages + (size_t)i * size, size) !=
                bk_hashes_get(&c->hashes, first + i))
            return false;
    return true;
}

/* How much the log may grow under the pin of a long read: it lies on the application's disk. */
static uint64_t growth_allowed(const bk_capture_t *c)
{
    struct statvfs fs;
    uint64_t quarter = fstatvfs(c->wal_fd, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize / 4 : 0;
    return c->growth != 0 ? c->growth : quarter < GROWTH_MOST ? quarter : GROWTH_MOST;
}

static bk_rc_t check_growth(const bk_capture_t *c, uint64_t limit, bk_err_t *err)
{
    struct stat st;
    if (fstat(c->wal_fd, &st) != 0 || (uint64_t)st.st_size <= limit)
        return BK_OK;
    return bk_err_set(err, BK_TIMEOUT,
                      "database %s: its -wal grew to %llu MiB while all of the database was read: "
                      "let go of, and tried again when less is written",
                      c->database, (unsigned long long)st.st_size >> 20);
}

/* Bytes; a log that is as large already may be empty inside. */
static uint64_t growth_limit(const bk_capture_t *c)
{
    struct stat st;
    return growth_allowed(c) + (fstat(c->wal_fd, &st) == 0 ? (uint64_t)st.st_size : 0);
}

/* --- a large database --- */

void bk_capture_sweep_end(bk_capture_t *c)
{
    free(c->sweep.again);
    c->sweep = (bk_capture_sweep_t){.again = NULL};
}

/* What is cut off may come back as zeros, which no frame tells. */
static void sweep_until(bk_capture_sweep_t *sweep, uint64_t page_count)
{
    if (page_count < sweep->count)
        sweep->count = page_count;
}

void bk_capture_swept(bk_capture_t *c, uint64_t page_count)
{
    bk_capture_sweep_t *sweep = &c->sweep;
    sweep_until(sweep, page_count);
    for (size_t i = 0; i < c->page_count; i++)
        if (c->pages[i].pgno <= sweep->count && c->pages[i].pgno < sweep->next)
            sweep->again[(c->pages[i].pgno - 1) / sweep->pieces] = 1;
}

static bk_rc_t sweep_pages(bk_capture_t *c, bool learn, const uint8_t *pages, unsigned n,
                           bk_err_t *err)
{
    bk_capture_sweep_t *sweep = &c->sweep;
    uint32_t size = c->hashes.page_size;
    if (learn)
        return compare_some(c, false, pages, sweep->next, n, err);
    for (unsigned i = 0, count; i < n; i += count) {
        count = n - i < sweep->pieces ? n - i : sweep->pieces;
        if (!all_same(c, pages + (size_t)i * size, sweep->next + i, count))
            sweep->again[(sweep->next + i - 1) / sweep->pieces] = 1;
    }
    return BK_OK;
}

/* What can be read under one pin. */
static bk_rc_t sweep_some(bk_capture_t *c, bool learn, uint8_t *pages, bk_err_t *err)
{
    bk_db_source_t *source = NULL;
    bk_capture_sweep_t *sweep = &c->sweep;
    uint32_t size = c->hashes.page_size;
    bk_rc_t rc = bk_capture_open_source(c, &source, err);
    if (rc != BK_OK)
        return rc;
    int64_t began = bk_mono(); /* a long log takes its time before */
    if (bk_db_source_info(source)->page_size != size)
        rc = bk_err_set(err, BK_CHANGED, "database %s: its page size changed from %u to %u",
                        c->database, size, bk_db_source_info(source)->page_size);
    sweep_until(sweep, bk_db_source_info(source)->page_count);
    while (rc == BK_OK && sweep->next <= sweep->count && bk_mono() - began < c->sweep_pin) {
        uint64_t left = sweep->count - sweep->next + 1;
        unsigned n = left < READ_BYTES / size ? (unsigned)left : READ_BYTES / size;
        rc = bk_ctl_check(c->ctl, err);
        if (rc == BK_OK)
            rc = bk_db_source_read(source, sweep->next, n, pages, err);
        bk_capture_moves(c, (uint64_t)n * size);
        if (rc == BK_OK)
            rc = sweep_pages(c, learn, pages, n, err);
        sweep->next += n;
    }
    bk_db_source_close(source);
    return rc;
}

/* A lock that is in the way is one for a moment. */
static bk_rc_t patiently(bk_capture_t *c, bk_rc_t (*look)(bk_capture_t *, bk_err_t *),
                         bk_err_t *err)
{
    int64_t began = bk_mono();
    for (;;) {
        bk_rc_t rc = bk_ctl_check(c->ctl, err);
        if (rc == BK_OK)
            rc = look(c, err);
        if (rc != BK_BUSY || bk_mono() - began > BUSY_MS * BK_MS)
            return rc;
        bk_sleep_ms(1);
    }
}

static bk_rc_t begin_sweep(bk_capture_t *c, bool learn, uint64_t bytes, bk_err_t *err)
{
    bk_wal_header_t header;
    bk_txlog_place_t *place = &c->at.place;
    uint32_t size = c->hashes.page_size;
    bk_rc_t rc = bk_db_wal_header(&c->readers[c->reader], BUSY_MS, &header, err);
    if (rc != BK_OK)
        return rc;
    place->frame = header.frames;
    memcpy(place->salt, header.salt, sizeof place->salt);
    memcpy(place->checksum, header.checksum, sizeof place->checksum);
    c->sweep = (bk_capture_sweep_t){
        .count = bytes / size, .next = 1, .pieces = size < PIECE_BYTES ? PIECE_BYTES / size : 1};
    c->sweep.again = calloc(c->sweep.count / c->sweep.pieces + 1, 1);
    if (c->sweep.again == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", c->database);
    return learn ? bk_hashes_resize(&c->hashes, c->sweep.count, err) : BK_OK;
}

bk_rc_t bk_capture_sweep(bk_capture_t *c, bool learn, bk_err_t *err)
{
    struct stat st;
    uint64_t limit = growth_limit(c);
    bk_capture_sweep_end(c);
    if (c->batches || bk_db_stat(c->readers[c->reader].path, &st) != 0 ||
        (uint64_t)st.st_size < c->sweep_from)
        return BK_OK;
    uint8_t *pages = malloc(READ_BYTES);
    bk_rc_t rc = pages != NULL
                     ? begin_sweep(c, learn, (uint64_t)st.st_size, err)
                     : bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", c->database);
    while (rc == BK_OK && c->sweep.next <= c->sweep.count) {
        rc = sweep_some(c, learn, pages, err);
        if (rc == BK_OK)
            rc = patiently(c, bk_capture_move_on, err);
        if (rc == BK_OK)
            rc = check_growth(c, limit, err);
    }
    free(pages);
    return rc;
}

/* The next pages to be compared, at most n; 0: none. */
static unsigned next_pages(const bk_capture_t *c, uint64_t *first, uint64_t count, unsigned n)
{
    const bk_capture_sweep_t *sweep = &c->sweep;
    while (sweep->again != NULL && *first <= sweep->count && *first <= count &&
           !sweep->again[(*first - 1) / sweep->pieces]) {
        uint64_t next = *first + sweep->pieces - (*first - 1) % sweep->pieces;
        *first = next <= sweep->count ? next : sweep->count + 1;
    }
    if (sweep->again != NULL && n > sweep->pieces)
        n = sweep->pieces;
    return *first > count ? 0 : count - *first + 1 < n ? (unsigned)(count - *first + 1) : n;
}

bk_rc_t bk_capture_compare(bk_capture_t *c, bk_db_source_t *source, bool log, bk_err_t *err)
{
    uint64_t limit = growth_limit(c), first = 1;
    c->compared = bk_now();
    const bk_db_info_t *info = bk_db_source_info(source);
    unsigned batch = READ_BYTES / info->page_size;
    int64_t began = bk_mono();
    uint8_t *pages = malloc(READ_BYTES);
    bk_rc_t rc = pages != NULL
                     ? bk_hashes_resize(&c->hashes, info->page_count, err)
                     : bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", c->database);
    /* Then all that was written up to the source's pin is known, and maybe a little more. */
    if (rc == BK_OK && c->sweep.again != NULL)
        rc = patiently(c, bk_capture_take, err);
    for (unsigned n; rc == BK_OK && (n = next_pages(c, &first, info->page_count, batch)) > 0;
         first += n) {
        rc = bk_ctl_check(c->ctl, err);
        if (rc == BK_OK)
            rc = check_growth(c, limit, err);
        if (rc == BK_OK)
            rc = bk_capture_check_hold(c, began, err);
        if (rc == BK_OK)
            rc = bk_db_source_read(source, first, n, pages, err);
        bk_capture_moves(c, READ_BYTES);
        if (rc == BK_OK)
            rc = compare_some(c, log, pages, first, n, err);
    }
    c->held = bk_mono() - began;
    if (rc == BK_OK)
        bk_capture_sweep_end(c);
    free(pages);
    return rc;
}

void bk_capture_settle(bk_capture_t *c)
{
    c->state.proved = c->compared;
    c->state.doubted = false;
    c->audit_next = 0;
}

void bk_capture_place(const bk_db_info_t *info, bk_txlog_place_t *place)
{
    place->frame = (uint32_t)info->wal_frames;
    memcpy(place->salt, info->wal_salt, sizeof place->salt);
    memcpy(place->checksum, info->wal_checksum, sizeof place->checksum);
}

int64_t bk_capture_known_until(const bk_capture_t *c)
{
    bool same = memcmp(c->known.epoch, c->at.epoch, sizeof c->known.epoch) == 0 &&
                c->known.txid <= c->at.txid;
    return same && c->known.until > c->at.looked ? c->known.until : c->at.looked;
}

/* What is found is compared page by page, and could not be begun again in another segment. */
static bk_rc_t room_for_difference(bk_capture_t *c, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (c->log != NULL && bk_txlog_size(c->log) >= FULL_BYTES)
        rc = bk_capture_seal(c, err);
    if (rc == BK_OK && c->log == NULL)
        rc = bk_capture_next_segment(c, err);
    return rc;
}

static bk_rc_t end_difference(bk_capture_t *c, uint64_t count, bk_tx_t *tx, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    uint64_t size = bk_txlog_size(c->log);
    tx->page_count = c->hashes.count;
    tx->after = c->hashes.digest;
    if (tx->after != tx->before || tx->page_count != count) {
        rc = bk_txlog_end(c->log, tx, err);
        c->at.txid += rc == BK_OK;
        c->unsaved += bk_txlog_size(c->log) - size;
    }
    if (rc == BK_OK) {
        c->at.place = tx->place;
        c->at.seen = tx->t_hi;
    }
    return rc;
}

bk_rc_t bk_capture_difference(bk_capture_t *c, uint32_t flag, bk_err_t *err)
{
    bk_db_source_t *source = NULL;
    bk_tx_t tx = {.flags = flag,
                  .txid = c->at.txid + 1,
                  .t_lo = bk_capture_known_until(c),
                  .before = c->hashes.digest};
    uint64_t count = c->hashes.count;
    c->logged = 0;
    bk_rc_t rc = room_for_difference(c, err);
    if (rc == BK_OK)
        rc = bk_capture_sweep(c, false, err);
    int64_t looked = bk_now(); /* what is committed from now on may be younger than the pin */
    if (rc == BK_OK)
        rc = bk_capture_open_source(c, &source, err);
    tx.t_hi = bk_now() > tx.t_lo ? bk_now() : tx.t_lo;
    if (rc == BK_OK && bk_db_source_info(source)->page_size != c->hashes.page_size)
        rc = bk_err_set(err, BK_CHANGED, "database %s: its page size changed from %u to %u",
                        c->database, c->hashes.page_size, bk_db_source_info(source)->page_size);
    if (rc == BK_OK)
        rc = bk_txlog_begin(c->log, err);
    if (rc == BK_OK)
        rc = bk_capture_compare(c, source, true, err);
    if (rc == BK_OK) {
        bk_capture_place(bk_db_source_info(source), &tx.place);
        rc = end_difference(c, count, &tx, err);
        /* Without a log nothing could be committed from t_hi to the end of the comparison. */
        c->at.looked = c->batches ? tx.t_hi : looked;
    }
    bk_db_source_close(source);
    return rc;
}

/* --- audit --- */

/* Nobody writes: else the application's commits would wait to be captured until all was read. */
static bool is_still(bk_capture_t *c, const bk_txlog_place_t *place)
{
    bk_wal_header_t header;
    return bk_db_wal_header(&c->readers[c->reader], 1, &header, NULL) == BK_OK &&
           header.frames == place->frame &&
           memcmp(header.salt, place->salt, sizeof header.salt) == 0;
}

/* The pages of a pinned database from the place on where the last piece ended. */
static bk_rc_t audit_piece(bk_capture_t *c, bk_db_source_t *source, bool *same, bk_err_t *err)
{
    uint64_t most = c->audit_piece < READ_BYTES ? c->audit_piece : READ_BYTES;
    unsigned batch = (unsigned)(most > c->hashes.page_size ? most / c->hashes.page_size : 1);
    uint64_t end = c->audit_next + c->audit_piece / c->hashes.page_size;
    uint8_t *pages = malloc(READ_BYTES);
    bool still = true;
    bk_rc_t rc = pages != NULL
                     ? BK_OK
                     : bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", c->database);
    do {
        uint64_t left = c->hashes.count - c->audit_next + 1;
        unsigned n = left < batch ? (unsigned)left : batch;
        if (rc == BK_OK)
            rc = bk_ctl_check(c->ctl, err);
        if (rc == BK_OK)
            rc = bk_db_source_read(source, c->audit_next, n, pages, err);
        if (rc != BK_OK)
            break;
        *same = all_same(c, pages, c->audit_next, n);
        c->audit_next += n;
        still = is_still(c, &c->at.place);
    } while (still && *same && c->audit_next < end && c->audit_next <= c->hashes.count);
    free(pages);
    return rc;
}

bk_rc_t bk_capture_audit(bk_capture_t *c, bool *same, bool *done, bk_err_t *err)
{
    bk_db_source_t *source = NULL;
    bk_txlog_place_t place;
    *same = true;
    *done = false;
    if (c->audit_next == 0 || c->audit_next > c->hashes.count) {
        c->audit_next = 1;
        c->audit_began = bk_now();
    }
    bk_rc_t rc = bk_capture_open_source(c, &source, err);
    if (rc != BK_OK)
        return rc;
    const bk_db_info_t *info = bk_db_source_info(source);
    bk_capture_place(info, &place);
    if (place.frame == c->at.place.frame &&
        memcmp(place.salt, c->at.place.salt, sizeof place.salt) == 0) {
        *same = info->page_count == c->hashes.count;
        if (*same)
            rc = audit_piece(c, source, same, err);
        *done = rc == BK_OK && (!*same || c->audit_next > c->hashes.count);
    }
    bk_db_source_close(source);
    return rc;
}
