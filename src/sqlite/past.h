/*
 * sqlite/past.h: a database as of one of its transactions, page by page, without writing it out: a
 * base and what the transactions since then changed.
 *
 * Opening reads which pages each transaction changed, newest first; pages themselves are read when
 * they are asked for.  Memory: 16 to 32 bytes for each page that was changed.  One thread at a
 * time.
 */
#ifndef BK_SQLITE_PAST_H
#define BK_SQLITE_PAST_H

#include "base/ctl.h"
#include "sqlite/txlog.h"

typedef bk_rc_t (*bk_past_page_fn)(void *arg, uint64_t pgno, uint8_t *out, bk_err_t *err);

/* What was there before: pages 1 to page_count. */
typedef struct {
    bk_past_page_fn page; /* may be NULL when only changes are asked for */
    void *arg;
    uint64_t txid; /* transaction that it is as of; 0: before the first */
    uint64_t page_count, digest;
    uint32_t page_size;
} bk_past_base_t;

/* Segments of one epoch in the order of their transactions, opened and closed as needed; opened
 * once more when a page is not found any more. */
typedef struct {
    bk_rc_t (*open)(void *arg, size_t at, bk_txlog_t **log, bk_err_t *err);
    void (*close)(void *arg, size_t at, bk_txlog_t *log);
    void *arg;
    size_t count;
} bk_past_segments_t;

typedef struct bk_past_s bk_past_t;

/*
 * As of transaction txid >= base->txid; what base and segments point to is there until free.
 * BK_NOT_FOUND: a transaction between them is missing; BK_CORRUPT: what the transactions say of
 * themselves does not follow one another from the base on.
 */
bk_rc_t bk_past_open(const bk_past_base_t *base, const bk_past_segments_t *segments, uint64_t txid,
                     bk_ctl_t *ctl, bk_past_t **past, bk_err_t *err);
void bk_past_free(bk_past_t *past); /* NULL is fine */

uint32_t bk_past_page_size(const bk_past_t *past);
uint64_t bk_past_page_count(const bk_past_t *past);
/* pgno: 1 to page_count.  page: page_size bytes; the lock page (byte 1 GiB) is zeros. */
bk_rc_t bk_past_page(bk_past_t *past, uint64_t pgno, uint8_t *page, bk_err_t *err);
/*
 * What makes of the base this state: its first base_end pages count, what comes behind is zeros,
 * and then the newest version of each page that was changed, in the order in which they are stored.
 */
uint64_t bk_past_base_end(const bk_past_t *past);
/* Is page pgno (1 to page_count) as in the base?  Nothing is read for it. */
bool bk_past_same(const bk_past_t *past, uint64_t pgno);
uint64_t bk_past_digest(const bk_past_t *past);
bk_rc_t bk_past_changes(bk_past_t *past, bk_txlog_page_fn fn, void *arg, bk_err_t *err);
/* Read every page: BK_CORRUPT when they are not what the transaction left behind. */
bk_rc_t bk_past_check(bk_past_t *past, bk_err_t *err);

#endif
