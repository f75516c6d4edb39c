/*
 * sqlite/capture_batches.c: a database with a rollback journal, which has no log to read.  Each
 * commit changes its header, which is looked at without a lock; then all pages are compared while
 * no other commit can come, and what differs is one batch.  Reads the database through SQLite's
 * handle; writes the open segment.
 */
#include <string.h>

#include "base/clock.h"
#include "sqlite/capture_private.h"
#include "sqlite/connect.h"

#define REST      50 /* times as long as commits had to wait for a batch is none made: 2 % */
#define WARM_SIZE 16384
#define FASTEST   8 /* bytes a ns: nothing compares more */

/* In an idle connection's handle: no lock is taken, so none of the application's is refused. */
static bk_rc_t read_mark(bk_capture_t *c, bk_capture_mark_t *mark, bk_err_t *err)
{
    sqlite3_file *file = c->readers[0].file;
    sqlite3_int64 size = 0;
    memset(mark, 0, sizeof *mark);
    int code = file->pMethods->xFileSize(file, &size);
    if (code == SQLITE_OK)
        code = file->pMethods->xRead(file, mark->header, sizeof mark->header, 0);
    mark->size = size;
    return code == SQLITE_OK || code == SQLITE_IOERR_SHORT_READ
               ? BK_OK
               : bk_db_failure(&c->readers[0], code, "read", err);
}

bk_rc_t bk_capture_mark(bk_capture_t *c, bk_err_t *err)
{
    return read_mark(c, &c->mark, err);
}

bool bk_capture_marked(bk_capture_t *c)
{
    bk_capture_mark_t mark;
    return read_mark(c, &mark, NULL) == BK_OK && memcmp(&mark, &c->mark, sizeof mark) == 0;
}

static bk_rc_t too_long(const bk_capture_t *c, bk_err_t *err)
{
    return bk_err_set(err, BK_TIMEOUT,
                      "database %s cannot be compared within %lld ms, while the application's "
                      "commits wait: run \"PRAGMA journal_mode=WAL\" once, and every transaction "
                      "is captured",
                      c->database, (long long)(c->batch_most / BK_MS));
}

bk_rc_t bk_capture_check_hold(const bk_capture_t *c, int64_t began, bk_err_t *err)
{
    return c->batches && bk_mono() - began > c->batch_most ? too_long(c, err) : BK_OK;
}

/* What comes from a disk is read before commits wait for it; not when it is of no use. */
static bk_rc_t warm(bk_capture_t *c, bk_err_t *err)
{
    uint8_t bytes[WARM_SIZE];
    bk_capture_mark_t mark;
    sqlite3_file *file = c->readers[0].file;
    bk_rc_t rc = read_mark(c, &mark, err);
    if (rc == BK_OK && mark.size / FASTEST > c->batch_most)
        rc = too_long(c, err);
    for (int64_t at = 0; at < mark.size && rc == BK_OK; at += WARM_SIZE) {
        rc = bk_ctl_check(c->ctl, err);
        bk_capture_moves(c, WARM_SIZE);
        int code = rc == BK_OK ? file->pMethods->xRead(file, bytes, WARM_SIZE, at) : SQLITE_OK;
        if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
            rc = bk_db_failure(&c->readers[0], code, "read", err);
    }
    return rc;
}

static void rest(bk_capture_t *c)
{
    c->rest = bk_mono() + (REST * c->held > c->batch_least ? REST * c->held : c->batch_least);
}

bk_rc_t bk_capture_start_batches(bk_capture_t *c, bk_err_t *err)
{
    bk_wal_header_t none = {0};
    bk_rc_t rc = warm(c, err);
    if (rc == BK_OK)
        rc = bk_capture_begin(c, &none, err);
    rest(c);
    return rc;
}

bk_rc_t bk_capture_batch(bk_capture_t *c, bool now, bk_err_t *err)
{
    int64_t looked = bk_now();
    uint64_t txid = c->at.txid;
    if (bk_capture_marked(c)) {
        c->busy = 0;
        /* What was committed before has changed the header by then. */
        c->at.looked = looked > c->at.looked ? looked : c->at.looked;
        return BK_OK;
    }
    if (!now && bk_mono() < c->rest)
        return BK_OK;
    bk_rc_t rc = now ? BK_OK : warm(c, err);
    if (rc == BK_OK)
        rc = bk_capture_difference(c, BK_TXLOG_BATCH, err);
    c->busy = rc == BK_BUSY ? c->busy + 1 : 0;
    if (rc != BK_BUSY)
        rest(c);
    else
        c->rest = bk_mono() + c->batch_least;
    if (rc == BK_OK)
        bk_capture_settle(c);
    if (c->at.txid != txid)
        c->idle = bk_mono();
    return rc;
}
