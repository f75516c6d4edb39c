/*
 * sqlite/capture.h: every transaction of a live database into segments, without writing to it.
 *
 * WAL mode: one of two readers always holds a transaction open, so that the write-ahead log
 * cannot begin anew before it was read (docs/sqlite.md has the proof).  What is read is bounded by
 * the wal-index and checked frame by frame.  Rollback-journal mode has no log, and so no single
 * transactions: all pages are compared when something was committed, under a SHARED lock that
 * commits wait for, and what differs is one batch.  One thread at a time; no thread and no timer of
 * its own: call step when the log was written to, and after the time that it asks for.
 */
#ifndef BK_SQLITE_CAPTURE_H
#define BK_SQLITE_CAPTURE_H

#include "sqlite/source.h"
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
/*
 * While the other process goes on the hold has to move on as well, or the log could not begin anew:
 * next takes a second pin, turn ends the first one.  In between the caller makes sure that the
 * other process looked at the log: all that the second pin saw is captured then.
 */
bk_rc_t bk_capture_hold_next(bk_capture_hold_t *hold, bk_err_t *err);
void bk_capture_hold_turn(bk_capture_hold_t *hold);
/* In the log, as its pin saw it. */
uint32_t bk_capture_hold_frames(const bk_capture_hold_t *hold);

/* What an earlier capture of dir knew, wherever that was kept. */
typedef struct {
    uint8_t epoch[BK_TXLOG_EPOCH];
    uint64_t txid; /* the last one */
    int64_t until; /* ns: all that was committed until then is in it; 0: nothing is known */
} bk_capture_known_t;

typedef struct {
    const char *database;     /* path */
    const char *dir;          /* of this database alone, exists: <epoch>-<first>.tx, and "hashes" */
    unsigned busy_ms;         /* to wait for locks when it begins */
    bk_capture_hold_t *hold;  /* NULL: none; needed only during open, which may end its pin */
    bk_capture_known_t known; /* narrows a gap, and new numbers come behind it */
    uint32_t soft;            /* frames from which checkpoints are helped along; 0: 1000 */
    unsigned audit_idle;  /* ms: when nothing was written for so long some of the pages are compared
                                with what was captured; 0: 200 */
    unsigned audit_every; /* s: all of them are so often; 0: a day */
    uint64_t audit_piece; /* bytes at a time; 0: 16 MiB */
    uint64_t growth;      /* bytes that the log may grow by while all pages are read; 0: 1 GiB, or a
                        quarter of what is free there */
    uint64_t sweep;       /* bytes from which a database is read in many short pins; 0: 256 MiB */
    unsigned pin;         /* ms, of one of these; 0: 200 */
    bool want_wal;        /* BK_UNSUPPORTED without a log: no commit is to wait for a batch */
    unsigned batch_least, batch_most; /* ms: between two batches, and that commits wait for one; 0:
                                         a second each */
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
    uint64_t bars;       /* since open: times that writers were kept out for a moment */
    bool blocked;        /* another reader keeps the log from beginning anew */
    bool blocked_here;   /* it may be one of this process: a backup, say */
    bool paused;         /* holds nothing, because of the last failure; step tries again */
    bool batches;        /* it has no log: a number stands for all between two looks */
    bool new_epoch;      /* it began one: what was before is not connected with it */
    int64_t began;       /* ns: the epoch; what was captured needs a backup from then on */
    uint64_t audits;     /* since open: times that all pages were compared */
    uint64_t differing;  /* pages that were not what was captured: they are in a gap */
    bool doubted;        /* as bk_capture_doubt says, and not compared yet */
    int64_t proved;   /* ns: since open, all pages were compared, or are known from then; 0: not */
    uint64_t resumed; /* the transaction that it went on from, and the content after it */
    uint64_t resumed_digest;
    int64_t durable; /* ns, when the last transaction became durable; 0: none since open */
    int64_t as_of;   /* ns: all that was committed until then is durable */
} bk_capture_state_t;

/*
 * Pin the database and find out what happened since the last capture in dir: what the log tells,
 * or, when that began anew meanwhile or there is none, the difference of all pages as one gap.  The
 * first time, or when dir does not fit (another page size, hashes lost), a new epoch begins; both
 * read the whole database once, a large one without holding its log for long; BK_TIMEOUT when the
 * log grows too much meanwhile all the same, or commits would
 * have to wait too long.  BK_UNSUPPORTED when it is empty, or not in a wanted WAL mode; BK_BUSY,
 * BK_DENIED and the like.  options is borrowed during the call, ctl until close.
 */
bk_rc_t bk_capture_open(const bk_capture_options_t *options, bk_ctl_t *ctl, bk_capture_t **capture,
                        bk_err_t *err);
/*
 * Take in what was committed, durably.  woken: something was written to the log.  *again: call
 * again after so many ms at the latest.  After a failure it is paused and holds nothing of the
 * database; the next step tries anew.  BK_CHANGED: the database was replaced; so is it then.
 */
bk_rc_t bk_capture_step(bk_capture_t *capture, bool woken, unsigned *again, bk_err_t *err);
/*
 * Somebody holds the database still, and pinned tells what is seen there: the same at once, however
 * short ago the last batch was.  *is: what was captured is just that.
 */
bk_rc_t bk_capture_pinned(bk_capture_t *capture, const bk_db_info_t *pinned, bool *is,
                          bk_err_t *err);
/* Where in the log a pin is; all zeros without one. */
void bk_capture_place(const bk_db_info_t *pinned, bk_txlog_place_t *place);
/*
 * Somebody found that the database is not what was captured: the next step compares all pages, and
 * what differs becomes a gap.
 */
void bk_capture_doubt(bk_capture_t *capture);
/* Seal the open segment, if there is one, so that it can be shipped. */
bk_rc_t bk_capture_roll(bk_capture_t *capture, bk_err_t *err);
/*
 * Begin a new epoch with what is there, without reading the database: the numbers of the present
 * one are taken up to last, or its segments cannot be believed (0).  They stay in dir, and are
 * sealed.  Not while it is paused.
 */
bk_rc_t bk_capture_begin_epoch(bk_capture_t *capture, uint64_t last, bk_err_t *err);
void bk_capture_state(const bk_capture_t *capture, bk_capture_state_t *state);
/* In order, so that the next one goes on at once; a crash loses nothing that is durable.  NULL is
 * fine. */
void bk_capture_close(bk_capture_t *capture);

/* A segment of a capture's directory that is not to be read any more gets another ending. */
bk_rc_t bk_capture_set_aside(const char *path, const char *ending, bk_err_t *err);

#endif
