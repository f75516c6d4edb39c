/*
 * sqlite/txlog.h: transactions of a database, one after the other, in files called segments.
 *
 * A segment is appended to while it is open, and closed by an index of its own, which lets a reader
 * find any page of any transaction without reading the rest.  Its bytes are described in
 * docs/repository-format.md.  Readers trust nothing: every length is checked, every record has a
 * checksum.  A writer belongs to one thread at a time, so does a reader.
 */
#ifndef BK_SQLITE_TXLOG_H
#define BK_SQLITE_TXLOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/ctl.h"
#include "base/err.h"

#define BK_TXLOG_EPOCH 16

/* Where in the write-ahead log a transaction ends. */
typedef struct {
    uint32_t salt[2]; /* as stored in the log */
    uint32_t frame;   /* from 1; 0: before the first */
    uint32_t checksum[2];
} bk_txlog_place_t;

/* Before the first frame there is no checksum. */
bool bk_txlog_same_place(const bk_txlog_place_t *a, const bk_txlog_place_t *b);

#define BK_TXLOG_GAP   1u /* all the changes of an interval that nobody saw */
#define BK_TXLOG_BATCH 8u /* all the changes between two looks at a database without a log */

typedef struct {
    uint64_t txid; /* from 1, without holes */
    uint32_t flags;
    uint32_t pages;         /* that it changed and that are stored */
    uint64_t page_count;    /* of the database after it */
    int64_t t_lo, t_hi;     /* ns: it was committed between these */
    uint64_t before, after; /* digests of the database */
    bk_txlog_place_t place; /* where it ends */
} bk_tx_t;

typedef struct {
    uint8_t epoch[BK_TXLOG_EPOCH];
    uint32_t page_size;
    uint64_t first; /* txid */
} bk_txlog_info_t;

/* --- writing --- */

typedef struct bk_txlog_writer_s bk_txlog_writer_t;

/* A new file; BK_EXISTS when there is one.  Durable from here on. */
bk_rc_t bk_txlog_create(const char *path, const bk_txlog_info_t *info, bk_txlog_writer_t **writer,
                        bk_err_t *err);
/* One that a writer left open: what is behind its last whole transaction is cut off. */
bk_rc_t bk_txlog_reopen(const char *path, bk_txlog_writer_t **writer, bk_err_t *err);
/* Without sealing it.  NULL is fine. */
void bk_txlog_close(bk_txlog_writer_t *writer);

/*
 * A transaction: begin, each page that it changed once, end.  Nothing of it counts before end
 * returned, and it survives a crash when bk_txlog_sync returned after that.  After a failure
 * (BK_NO_SPACE, BK_IO; BK_TOO_LARGE: the index would be) the segment is as it was before begin.
 */
bk_rc_t bk_txlog_begin(bk_txlog_writer_t *writer, bk_err_t *err);
bk_rc_t bk_txlog_page(bk_txlog_writer_t *writer, uint32_t pgno, const uint8_t *page, bk_err_t *err);
/* tx->txid has to be the next, tx->pages is filled in. */
bk_rc_t bk_txlog_end(bk_txlog_writer_t *writer, bk_tx_t *tx, bk_err_t *err);
/* After a failure the segment has what it had when this was done last; only close is left. */
bk_rc_t bk_txlog_sync(bk_txlog_writer_t *writer, bk_err_t *err);
/* Add the index and sync: nothing can be appended any more.  The writer is closed. */
bk_rc_t bk_txlog_seal(bk_txlog_writer_t *writer, bk_err_t *err);

const bk_txlog_info_t *bk_txlog_writer_info(const bk_txlog_writer_t *writer);
/* Of the last whole transaction; false: there is none yet. */
bool bk_txlog_last(const bk_txlog_writer_t *writer, bk_tx_t *tx);
uint64_t bk_txlog_size(const bk_txlog_writer_t *writer); /* bytes */
uint64_t bk_txlog_next(const bk_txlog_writer_t *writer); /* txid */

/* --- reading --- */

typedef struct bk_txlog_s bk_txlog_t;

/* Where the bytes come from; read gives exactly len bytes or fails. */
typedef struct {
    bk_rc_t (*read)(void *arg, uint64_t offset, void *out, size_t len, bk_err_t *err);
    void (*close)(void *arg); /* when the log is freed, or could not be opened; NULL: nothing */
    void *arg;
    uint64_t size;
} bk_txlog_source_t;

/* source->arg is to be there as long as the log.  One that is not sealed is looked through; what is
 * behind its last whole transaction does not count.  BK_CORRUPT. */
bk_rc_t bk_txlog_open(const bk_txlog_source_t *source, bk_txlog_t **log, bk_err_t *err);
/* The same of a file of this machine. */
bk_rc_t bk_txlog_open_file(const char *path, bk_txlog_t **log, bk_err_t *err);
void bk_txlog_free(bk_txlog_t *log); /* NULL is fine */
/* Only these transactions of it, with the same spots as in a segment that had no others. */
bk_rc_t bk_txlog_narrow(bk_txlog_t *log, uint64_t first, uint64_t last, bk_err_t *err);

const bk_txlog_info_t *bk_txlog_info(const bk_txlog_t *log);
bool bk_txlog_sealed(const bk_txlog_t *log);
size_t bk_txlog_count(const bk_txlog_t *log);                 /* of transactions */
const bk_tx_t *bk_txlog_tx(const bk_txlog_t *log, size_t at); /* in order of txid */

/* Every page of one transaction; page is valid during the call. */
typedef bk_rc_t (*bk_txlog_page_fn)(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err);
bk_rc_t bk_txlog_pages(bk_txlog_t *log, size_t at, bk_txlog_page_fn fn, void *arg, bk_err_t *err);

/* Where a page lies in its log. */
typedef struct {
    uint32_t part, slot;
} bk_txlog_spot_t;

/* The numbers of the pages of one transaction, without their content: nothing is read for it. */
typedef bool (*bk_txlog_number_fn)(void *arg, uint32_t pgno, bk_txlog_spot_t spot);
/* False when fn gave it up by returning false. */
bool bk_txlog_numbers(const bk_txlog_t *log, size_t at, bk_txlog_number_fn fn, void *arg);
/* One page; a spot that numbers told of this log. */
bk_rc_t bk_txlog_get(bk_txlog_t *log, bk_txlog_spot_t spot, uint8_t *page, bk_err_t *err);

/* --- merging --- */

/*
 * Sealed segments that follow each other into one new file, which must not be there; nothing is
 * flushed.  add: BK_TOO_LARGE when one would be more than it is to hold, BK_CORRUPT when a segment
 * is damaged or does not follow; after either it is as it was before.
 */
typedef struct bk_txlog_merge_s bk_txlog_merge_t;
bk_rc_t bk_txlog_merge_new(const char *path, bk_txlog_merge_t **merge, bk_err_t *err);
bk_rc_t bk_txlog_merge_add(bk_txlog_merge_t *merge, const bk_txlog_t *log, bk_err_t *err);
/* *size: of the file, bytes. */
bk_rc_t bk_txlog_merge_end(bk_txlog_merge_t *merge, uint64_t *size, bk_err_t *err);
void bk_txlog_merge_free(bk_txlog_merge_t *merge); /* NULL is fine */

#endif
