/*
 * sqlite/capture_read.c: frames of the write-ahead log become transactions of the segment.  Reads
 * the -wal through a descriptor of its own, which carries no locks; writes the open segment.
 */
#include <stdlib.h>
#include <string.h>

#include "base/publish.h"
#include "sqlite/capture_private.h"
#include "sqlite/source.h"

static bk_rc_t add_page(bk_capture_t *c, const bk_wal_frame_t *frame, bk_err_t *err)
{
    if (c->page_count == c->page_room) {
        size_t room = c->page_room == 0 ? 1024 : c->page_room * 2;
        bk_capture_page_t *more = realloc(c->pages, room * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY,
                              "database %s: a transaction of %zu pages: out of "
                              "memory",
                              c->database, c->page_count);
        c->pages = more;
        c->page_room = room;
    }
    c->pages[c->page_count++] =
        (bk_capture_page_t){.pgno = frame->pgno,
                            .frame = frame->frame,
                            .hash = bk_db_page_hash(frame->pgno, frame->page, c->hashes.page_size)};
    if (frame->pgno == 1) {
        uint64_t told = bk_db_header_page_count(frame->page);
        c->told = told != 0 ? told : UINT32_MAX;
    }
    return BK_OK;
}

/*
 * Where the database ends after the transaction: what its commit says may be the length of a file
 * that is ahead of it.  Who changes the end changes the first page.
 */
static uint32_t database_end(const bk_capture_t *c, uint32_t commit)
{
    uint64_t told = c->told != 0 ? c->told : c->sweep.again == NULL ? c->hashes.count : UINT32_MAX;
    return told < commit ? (uint32_t)told : commit;
}

/* By page; of one page the newest version first. */
static int by_page(const void *a, const void *b)
{
    const bk_capture_page_t *x = a, *y = b;
    if (x->pgno != y->pgno)
        return x->pgno < y->pgno ? -1 : 1;
    return x->frame > y->frame ? -1 : x->frame < y->frame;
}

/*
 * What of the pages is in the database after the transaction: of each its last version, none behind
 * the end (VACUUM writes some), and not the lock page.
 */
static void keep_what_counts(bk_capture_t *c, uint32_t end)
{
    uint64_t lock_page = bk_db_lock_page(c->hashes.page_size);
    size_t kept = 0;
    qsort(c->pages, c->page_count, sizeof *c->pages, by_page);
    for (size_t i = 0; i < c->page_count; i++) {
        uint32_t pgno = c->pages[i].pgno;
        if (pgno <= end && pgno != lock_page && (kept == 0 || c->pages[kept - 1].pgno != pgno))
            c->pages[kept++] = c->pages[i];
    }
    c->page_count = kept;
}

/*
 * Some file systems make SQLite repeat the last frame of a commit to fill up a sector: that is no
 * transaction of its own.
 */
static bool is_padding(bk_capture_t *c, const bk_wal_frame_t *last, uint32_t end)
{
    uint32_t size = c->hashes.page_size;
    uint8_t *before = c->page + size;
    bk_wal_frame_t frame;
    bool known = c->last.frame == c->at.place.frame &&
                 memcmp(c->last.salt, c->at.place.salt, sizeof c->last.salt) == 0;
    if (c->page_count != 1 || end != c->hashes.count || last->frame == 1 ||
        c->at.place.frame != last->frame - 1 || (known && c->last.pgno != last->pgno))
        return false;
    return bk_wal_frame(c->wal_fd, c->database, size, last->frame - 1, before, &frame, NULL) ==
               BK_OK &&
           frame.pgno == last->pgno && frame.commit == last->commit &&
           memcmp(before, last->page, size) == 0;
}

static bk_rc_t write_pages(bk_capture_t *c, bk_err_t *err)
{
    uint32_t size = c->hashes.page_size;
    bk_rc_t rc = bk_txlog_begin(c->log, err);
    for (size_t i = 0; i < c->page_count && rc == BK_OK; i++) {
        size_t got;
        const bk_capture_page_t *page = &c->pages[i];
        rc = bk_pread_all(c->wal_fd, c->page, size, bk_wal_frame_offset(page->frame, size), &got,
                          c->database, err);
        if (rc == BK_OK && got != size)
            rc = bk_err_set(err, BK_CORRUPT, "database %s: its -wal became shorter", c->database);
        if (rc == BK_OK && bk_db_page_hash(page->pgno, c->page, size) != page->hash)
            rc = bk_err_set(err, BK_CORRUPT, "database %s: its -wal changed while it was read",
                            c->database);
        if (rc == BK_OK)
            rc = bk_txlog_page(c->log, page->pgno, c->page, err);
        bk_capture_moves(c, size);
    }
    return rc;
}

/* What does not fit behind other transactions gets a segment of its own. */
static bk_rc_t write_transaction(bk_capture_t *c, bk_tx_t *tx, bk_err_t *err)
{
    bk_tx_t before;
    for (;;) {
        bk_rc_t rc = c->log == NULL ? bk_capture_next_segment(c, err) : BK_OK;
        uint64_t size = rc == BK_OK ? bk_txlog_size(c->log) : 0;
        if (rc == BK_OK)
            rc = write_pages(c, err);
        if (rc == BK_OK)
            rc = bk_txlog_end(c->log, tx, err);
        if (rc == BK_OK)
            c->unsaved += bk_txlog_size(c->log) - size;
        if (rc != BK_TOO_LARGE || !bk_txlog_last(c->log, &before))
            return rc;
        if ((rc = bk_capture_seal(c, err)) != BK_OK)
            return rc;
    }
}

/*
 * The hashes are changed first: when writing fails, the capture is paused and begins again with
 * what is on the disk.
 */
static bk_rc_t end_transaction(bk_capture_t *c, const bk_wal_frame_t *last, bk_err_t *err)
{
    uint32_t end = database_end(c, last->commit);
    bk_tx_t tx = {.txid = c->at.txid + 1,
                  .page_count = end,
                  .t_lo = c->at.looked < c->seen ? c->at.looked : c->seen,
                  .t_hi = c->seen,
                  .before = c->hashes.digest};
    memcpy(tx.place.salt, c->at.place.salt, sizeof tx.place.salt);
    tx.place.frame = last->frame;
    memcpy(tx.place.checksum, last->checksum, sizeof tx.place.checksum);
    keep_what_counts(c, end);
    if (c->sweep.again != NULL) {
        bk_capture_swept(c, end);
        c->at.place = tx.place;
        return BK_OK;
    }
    if (is_padding(c, last, end)) {
        c->at.place = tx.place;
        return BK_OK;
    }
    bk_rc_t rc = bk_hashes_resize(&c->hashes, end, err);
    for (size_t i = 0; i < c->page_count && rc == BK_OK; i++)
        bk_hashes_set(&c->hashes, c->pages[i].pgno, c->pages[i].hash);
    tx.after = c->hashes.digest;
    if (rc == BK_OK)
        rc = write_transaction(c, &tx, err);
    if (rc != BK_OK)
        return rc;
    c->at.txid = tx.txid;
    c->at.place = tx.place;
    c->at.seen = tx.t_hi;
    return BK_OK;
}

static bk_rc_t take_frame(void *arg, const bk_wal_frame_t *frame, bk_err_t *err)
{
    bk_capture_t *c = arg;
    bk_rc_t rc = add_page(c, frame, err);
    bk_capture_moves(c, c->hashes.page_size);
    if (rc != BK_OK || frame->commit == 0)
        return rc;
    rc = end_transaction(c, frame, err);
    c->last = (bk_capture_last_t){.frame = frame->frame, .pgno = frame->pgno};
    memcpy(c->last.salt, c->at.place.salt, sizeof c->last.salt);
    c->page_count = c->told = 0;
    return rc;
}

bk_rc_t bk_capture_frames(bk_capture_t *c, const bk_wal_header_t *header, bk_err_t *err)
{
    bk_txlog_place_t *place = &c->at.place;
    c->state.wal_frames = header->frames;
    /* Pinned all the time, so a new generation begins where the old one ended. */
    if (memcmp(place->salt, header->salt, sizeof header->salt) != 0) {
        *place = (bk_txlog_place_t){.frame = 0};
        memcpy(place->salt, header->salt, sizeof header->salt);
    }
    if (header->frames < place->frame)
        return bk_err_set(err, BK_CORRUPT,
                          "database %s: its -wal has %u frames, of which %u were read before",
                          c->database, header->frames, place->frame);
    if (header->frames == place->frame)
        return BK_OK;
    if (header->page_size != c->hashes.page_size)
        return bk_err_set(err, BK_CHANGED, "database %s: its page size changed from %u to %u",
                          c->database, c->hashes.page_size, header->page_size);
    c->page_count = c->told = 0;
    uint32_t start[2] = {place->checksum[0], place->checksum[1]};
    bk_rc_t rc = bk_wal_frames(c->wal_fd, c->database, header, place->frame, start, take_frame, c,
                               c->ctl, err);
    if (rc == BK_OK && c->page_count > 0)
        rc = bk_err_set(err, BK_CORRUPT,
                        "database %s: the last frame of its -wal ends no "
                        "transaction",
                        c->database);
    return rc;
}
