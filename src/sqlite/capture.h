/*
 * sqlite/capture.h: every transaction of a live WAL database into segments, without writing to the
 * database.
 *
 * One of two readers always holds a transaction open, so that the write-ahead log cannot begin anew
 * before it was read (docs/sqlite.md has the proof).  What is read is bounded by the wal-index and
 * checked frame by frame.  One thread at a time; no thread and no timer of its own: call step when
 * the log was written to, and after the time that it asks for.
 */
#ifndef BK_SQLITE_CAPTURE_H
#define BK_SQLITE_CAPTURE_H

#include "sqlite/txlog.h"

typedef struct bk_capture_s bk_capture_t;

/*
 * A pin alone, taken before another process that captures lets go: what comes in between is then no
 * gap.  To be closed as soon as this process captures, or will not.  BK_UNSUPPORTED, with nothing
 * held, when it is not in WAL mode.
 */
typedef struct bk_capture_hold_s bk_capture_hold_t;
bk_rc_t bk_capture_hold(const char *database, unsigned busy_ms, bk_ctl_t *ctl,
                        bk_capture_hold_t **hold, bk_err_t *err);
void bk_capture_hold_end(bk_capture_hold_t *hold); /* NULL is fine */

/* What an earlier capture of dir knew, wherever that was kept. */
typedef struct {
    uint8_t epoch[BK_TXLOG_EPOCH];
    uint64_t txid; /* the last one */
    int64_t until; /* ns: all that was committed until then is in it; 0: nothing is known */
} bk_capture_known_t;

typedef struct {
    const char *database; /* path */
    const char *dir;      /* of this database alone, exists: <epoch>-<first>.tx, and "hashes" */
    unsigned busy_ms;     /* to wait for locks when it begins */
    const bk_capture_hold_t *hold; /* NULL: none; needed only during open */
    bk_capture_known_t known;      /* narrows a gap, and new numbers come behind it */
    uint32_t soft;                 /* frames from which checkpoints are helped along; 0: 1000 */
} bk_capture_options_t;

typedef struct {
    uint8_t epoch[BK_TXLOG_EPOCH];
    uint64_t txid;               /* the last one that is durable; an epoch may have none yet */
    uint64_t page_count, digest; /* of the database after it */
    uint32_t page_size;
    uint64_t gaps;       /* since open */
    uint64_t bytes;      /* of the open segment; 0: none */
    uint64_t saved;      /* segments up to this transaction are not needed to go on */
    uint32_t wal_frames; /* in the log, as last seen */
    bool blocked;        /* another reader of the application keeps the log from beginning anew */
    bool paused;         /* not pinned, because of the last failure; step tries again */
    bool new_epoch;      /* it began one: what was before is not connected with it */
    int64_t durable;     /* ns, when the last transaction became durable; 0: none since open */
    int64_t as_of;       /* ns: all that was committed until then is durable */
} bk_capture_state_t;

/*
 * Pin the database and find out what happened since the last capture in dir: what the log tells,
 * or, when that began anew meanwhile, the difference of all pages as one gap.  The first time, or
 * when dir does not fit (another page size, hashes lost), a new epoch begins; both read the whole
 * database once.  BK_UNSUPPORTED when it is not in WAL mode; BK_BUSY, BK_DENIED and the like.
 * options is borrowed during the call, ctl until close.
 */
bk_rc_t bk_capture_open(const bk_capture_options_t *options, bk_ctl_t *ctl, bk_capture_t **capture,
                        bk_err_t *err);
/*
 * Take in what was committed, durably.  woken: something was written to the log.  *again: call
 * again after so many ms at the latest.  After a failure it is paused and holds nothing of the
 * database; the next step tries anew.  BK_CHANGED: the database was replaced; so is it then.
 */
bk_rc_t bk_capture_step(bk_capture_t *capture, bool woken, unsigned *again, bk_err_t *err);
/* Seal the open segment, if there is one, so that it can be shipped. */
bk_rc_t bk_capture_roll(bk_capture_t *capture, bk_err_t *err);
void bk_capture_state(const bk_capture_t *capture, bk_capture_state_t *state);
/* In order, so that the next one goes on at once; a crash loses nothing that is durable.  NULL is
 * fine. */
void bk_capture_close(bk_capture_t *capture);

#endif
