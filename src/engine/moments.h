/*
 * engine/moments.h: which moments of a database can be had, from the segments in base_dir and on
 * the storage: the transaction that a time or a number means, the backup to begin from, and the
 * image.  One thread.
 */
#ifndef BK_ENGINE_MOMENTS_H
#define BK_ENGINE_MOMENTS_H

#include "base/team.h"
#include "repo/history.h"
#include "repo/snapshot.h"
#include "sqlite/capture.h"
#include "sqlite/past.h"

#define BK_MOMENTS_DIR "wal" /* in base_dir; a directory for each database below */

/* What that means which is damaged or missing, and what helps. */
#define BK_MOMENTS_LOST                                                                            \
    "moments from these transactions to the next backup cannot be had, others can: make a backup " \
    "when there was none since; cleanup removes what is damaged when pitr_window has passed"

typedef struct bk_moments_s bk_moments_t;

/* What a database's segments have in their names on the storage, which may hold those of other
 * sets.
 */
void bk_moments_key(const char *set, const char *database, char out[BK_HISTORY_NAME]);

/*
 * Of the database of that name in a set.  base_dir: with what is not on the storage yet; NULL:
 * none. All of these are borrowed until free.  Damaged segments are no failure: they
 * cost the moments that need them.
 */
bk_rc_t bk_moments_open(const char *base_dir, const char *set, const char *database,
                        bk_repo_t *repo, bk_ctl_t *ctl, bk_moments_t **moments, bk_err_t *err);
void bk_moments_free(bk_moments_t *moments);          /* NULL is fine */
size_t bk_moments_count(const bk_moments_t *moments); /* of segments; 0: nothing was captured */

/* Until when its transactions are known to be captured, as base_dir (may be NULL) says now. */
bool bk_moments_known(const char *base_dir, const char *database, bk_capture_known_t *known);
/* BK_INVALID: why a database has no moments at all; known: of bk_moments_known. */
bk_rc_t bk_moments_none(const char *database, const bk_capture_known_t *known, bk_err_t *err);
/* ns: until when last, of that segment, which ends its epoch, is known to be the last one. */
int64_t bk_moments_known_until(const bk_moments_t *moments, size_t segment, const bk_tx_t *last);

typedef struct {
    bk_moments_t *of;
    bk_tx_t tx;                   /* the one that the image is as of */
    bool unsure;                  /* it is the last one on the storage: there may have been more */
    int64_t batch;                /* ns: until when the next one is a batch, of which some may have
                                     been there at that time; 0: it is none */
    size_t first, last;           /* of the segments that are needed */
    uint64_t base;                /* transaction that the backup is as of */
    const bk_snapshot_t *backup;  /* of the list that was given */
    const bk_snapshot_db_t *from; /* in it */
} bk_moment_t;

/*
 * The last transaction that was there at a time (ns), or the one of that number, and the newest
 * backup from which it can be reached.  BK_INVALID: before or after all that is known, or nobody
 * saw that time, or two epochs have that number; bk_moments_describe names the nearest moments.
 * BK_NOT_FOUND, BK_CORRUPT: a transaction that it needs is missing or damaged, which the message
 * names, or there is no backup to begin from.  Without base_dir nobody knows what came behind the
 * last transaction: then it is that one, and unsure.
 */
bk_rc_t bk_moments_at(bk_moments_t *moments, int64_t time, const bk_snapshot_list_t *list,
                      bk_moment_t *moment, bk_err_t *err);
bk_rc_t bk_moments_number(bk_moments_t *moments, uint64_t txid, const bk_snapshot_list_t *list,
                          bk_moment_t *moment, bk_err_t *err);
/* The one of that number on top of an earlier state of its epoch, which from (borrowed, as long as
 * moment) describes.  BK_NOT_FOUND: it does not lead there. */
bk_rc_t bk_moments_since(bk_moments_t *moments, const bk_capture_state_t *since,
                         const bk_snapshot_db_t *from, uint64_t txid, bk_moment_t *moment,
                         bk_err_t *err);
/*
 * The transaction of the epoch that goes on which ends at that place of the write-ahead log; it was
 * the last one at instant (ns), or is one of those after it.  0: none is.  The place is not the
 * one before the first frame.
 */
bk_rc_t bk_moments_placed(bk_moments_t *moments, const bk_txlog_place_t *place, int64_t instant,
                          uint64_t *txid, bk_err_t *err);
/* Write the database as of then into an empty file, as bk_db_materialise does: its digest is what
 * the transaction left behind. */
bk_rc_t bk_moments_image(const bk_moment_t *moment, int fd, const char *file, bk_team_t *team,
                         bk_err_t *err);
/* The transactions since the backup.  page, with arg, reads the backup's pages; moment, and what it
 * is of, stay until bk_past_free. */
bk_rc_t bk_moments_past(const bk_moment_t *moment, bk_past_page_fn page, void *arg,
                        bk_past_t **past, bk_err_t *err);

/* Segments are in the order of time; the one behind the last of the same epoch. */
size_t bk_moments_epoch_end(const bk_moments_t *moments, size_t at);
/* The newest segment of those that can be read whose first transaction was there at a time (ns);
 * count: none. */
bk_rc_t bk_moments_segment_at(bk_moments_t *moments, int64_t time, size_t *at, bk_err_t *err);
/* The same, open until the next call: not to be freed. */
bk_rc_t bk_moments_segment(bk_moments_t *moments, size_t at, bk_txlog_t **log, bk_err_t *err);
/* The same; *log is NULL when it is damaged or gone: whoever can goes on without it.  What else
 * fails (the storage does not answer) is an error. */
bk_rc_t bk_moments_look(bk_moments_t *moments, size_t at, bk_txlog_t **log, bk_err_t *err);
/* Segment number at, for bk_txlog_free. */
bk_rc_t bk_moments_log(bk_moments_t *moments, size_t at, bk_txlog_t **log, bk_err_t *err);

#endif
