/*
 * sqlite/capture_private.h: what capture.c (pinning), capture_read.c (the log), capture_begin.c
 * (where to go on), capture_compare.c (all pages) and capture_batches.c (no log) share of one
 * capture.
 */
#ifndef BK_SQLITE_CAPTURE_PRIVATE_H
#define BK_SQLITE_CAPTURE_PRIVATE_H

#include "sqlite/capture.h"
#include "sqlite/hashes.h"
#include "sqlite/walindex.h"

#define BK_CAPTURE_NAME (2 * BK_TXLOG_EPOCH + 1 + 20 + sizeof ".tx")

/* A page of the transaction that is being read. */
typedef struct {
    uint32_t pgno, frame;
    uint64_t hash;
} bk_capture_page_t;

/* The frame with which the last transaction ended. */
typedef struct {
    uint32_t frame, pgno, salt[2];
} bk_capture_last_t;

struct bk_capture_hold_s {
    bk_db_connection_t readers[2];
    unsigned reader;            /* which of them holds the pin */
    bk_wal_header_t header;     /* as seen after the pin */
    bk_wal_header_t header_now; /* of the other one */
};

/* Of a database without a log: what each commit changes, and can be read without a lock. */
typedef struct {
    uint8_t header[100];
    int64_t size;
} bk_capture_mark_t;

/* All pages of a large database are read in many short pins, in pieces of so many pages. */
typedef struct {
    uint8_t *again;  /* one a piece: what was read of it is not what is there at the end */
    uint64_t count;  /* pages; what lies behind them has to be read again, too */
    uint64_t next;   /* pages from here on are not read yet */
    unsigned pieces; /* pages in one */
} bk_capture_sweep_t;

struct bk_capture_s {
    bk_capture_hold_t *hold; /* while it begins */
    char *database, *dir;
    unsigned busy_ms;
    uint32_t soft;
    uint64_t growth, sweep_from;
    int64_t sweep_pin; /* ns */
    bk_capture_sweep_t sweep;
    int64_t audit_idle, audit_every; /* ns */
    uint64_t audit_piece;
    int64_t audited;     /* bk_mono of the last audit */
    uint64_t audit_next; /* the page that the present one goes on with; 0: there is none */
    int64_t audit_began; /* ns */
    int64_t mend_rest;   /* bk_mono: what is doubted is not compared before */
    int64_t compared;    /* ns: when the last comparison of all pages began */
    bk_ctl_t *ctl;
    bk_db_connection_t readers[2], checkpointer, writer;
    bool going;      /* one of the readers is pinned; or, of batches, they are known */
    unsigned reader; /* which */
    bool want_wal;
    bool batches;    /* no log, and no pin */
    unsigned busy;   /* batches in a row that a lock was in the way of */
    uint64_t logged; /* pages of the last difference */
    bk_capture_mark_t mark;
    int64_t held;                    /* ns: that commits waited for the last one */
    int64_t rest;                    /* bk_mono: no batch before */
    int64_t batch_least, batch_most; /* ns */
    int wal_fd;
    bk_hashes_t hashes;
    bk_hashes_state_t at;   /* what they are of: the last transaction that is in the log */
    bk_txlog_writer_t *log; /* NULL: the next transaction begins a segment */
    uint64_t unsaved;       /* bytes of log since the hashes were saved */
    bk_capture_state_t state;
    bk_capture_known_t known; /* when it began */
    uint64_t number;          /* the highest that a transaction had, of any epoch */
    int64_t seen;             /* ns: when the present look was over */
    int64_t idle;             /* bk_mono since when nothing is new */
    int64_t named;            /* bk_mono when the file was last compared with its name */
    int64_t was_named;        /* ns: and was the one of that name */
    int64_t moved;            /* bk_mono when the pin moved on */
    uint32_t pinned[2];       /* the log's salts then */
    int64_t tried;            /* bk_mono when the log was last helped along */
    int64_t pause;            /* ns: not before, while somebody keeps it from beginning anew */
    bk_txlog_place_t helped;  /* all is copied up to there, and the pin needs nothing of it */
    unsigned wait;            /* ms, what step said last */
    bk_capture_page_t *pages;
    size_t page_count, page_room;
    uint32_t told; /* where the database ends, as its first page says; 0: that is not among them */
    bk_capture_last_t last;
    uint8_t *page; /* room for two, of page_size bytes */
};

/* Whoever watches a step sees that it moves on. */
static inline void bk_capture_moves(bk_capture_t *c, uint64_t bytes)
{
    if (c->ctl != NULL)
        atomic_fetch_add(&c->ctl->bytes_read, bytes);
}

/* capture.c */
/* What was committed until now, the pin stays; and with a new one: the log can begin anew. */
bk_rc_t bk_capture_take(bk_capture_t *c, bk_err_t *err);
bk_rc_t bk_capture_move_on(bk_capture_t *c, bk_err_t *err);
/* It is of no use any more: the log need not wait for it. */
void bk_capture_hold_let_go(bk_capture_hold_t *hold);

/* capture_read.c */
/* Take in everything up to header, which was seen at c->seen; c->at is then its end. */
bk_rc_t bk_capture_frames(bk_capture_t *c, const bk_wal_header_t *header, bk_err_t *err);

/* capture_begin.c */
/* Hashes and log of dir, or a new epoch; and a gap when there is one.  A reader is pinned; header
 * was seen at c->seen. */
bk_rc_t bk_capture_begin(bk_capture_t *c, const bk_wal_header_t *header, bk_err_t *err);
/* A segment for the next transaction; and the end of the open one. */
bk_rc_t bk_capture_next_segment(bk_capture_t *c, bk_err_t *err);
bk_rc_t bk_capture_seal(bk_capture_t *c, bk_err_t *err);
bk_rc_t bk_capture_save(bk_capture_t *c, bk_err_t *err);
/* What differs from what is known becomes one transaction, marked as a gap, and durable. */
bk_rc_t bk_capture_bridge(bk_capture_t *c, bk_err_t *err);
/* The same of pages that nobody wrote: they are counted.  While it is busy they stay doubted. */
bk_rc_t bk_capture_mend(bk_capture_t *c, bk_err_t *err);
/* What is in dir is not gone on with: the next one begins an epoch. */
void bk_capture_forget(bk_capture_t *c);

/* capture_compare.c */
/* BK_UNSUPPORTED: its journal mode changed. */
bk_rc_t bk_capture_open_source(bk_capture_t *c, bk_db_source_t **source, bk_err_t *err);
/*
 * Before all pages of a large database are compared, without holding its log for longer than a
 * moment: learn makes the hashes those of what is read, else only what differs is found.  Compare
 * then reads what was found, and what was written meanwhile: bk_capture_swept tells it of pages.
 * Until it has, nothing is captured: whatever fails before, the capture has to begin anew.
 */
bk_rc_t bk_capture_sweep(bk_capture_t *c, bool learn, bk_err_t *err);
void bk_capture_swept(bk_capture_t *c, uint64_t page_count);
void bk_capture_sweep_end(bk_capture_t *c);
/* Make the hashes those of all pages; the pages that differ go into the log when there is one. */
bk_rc_t bk_capture_compare(bk_capture_t *c, bk_db_source_t *source, bool log, bk_err_t *err);
/*
 * The difference between what is known and what is there as one transaction with that flag; or
 * nothing, when there is none.
 */
bk_rc_t bk_capture_difference(bk_capture_t *c, uint32_t flag, bk_err_t *err);
/*
 * Some more pages: are they what was captured?  Ends early when somebody begins to write.  *done:
 * that were all; *same: false as soon as one is not.
 */
bk_rc_t bk_capture_audit(bk_capture_t *c, bool *same, bool *done, bk_err_t *err);
/* ns: until when nothing but what is known can have happened. */
int64_t bk_capture_known_until(const bk_capture_t *c);

/* What was found is durable: all pages are known from the last comparison on. */
void bk_capture_settle(bk_capture_t *c);

/* capture_batches.c */
/* BK_TIMEOUT: commits have been waiting since began (bk_mono) for longer than they are to. */
bk_rc_t bk_capture_check_hold(const bk_capture_t *c, int64_t began, bk_err_t *err);
/* In place of pinning: reader 0 is connected. */
bk_rc_t bk_capture_start_batches(bk_capture_t *c, bk_err_t *err);
/* A lock is held that commits wait for: what they change is remembered. */
bk_rc_t bk_capture_mark(bk_capture_t *c, bk_err_t *err);
/* It is still what was remembered. */
bool bk_capture_marked(bk_capture_t *c);
/* now: do not rest.  BK_UNSUPPORTED: it has a log now. */
bk_rc_t bk_capture_batch(bk_capture_t *c, bool now, bk_err_t *err);

#endif
