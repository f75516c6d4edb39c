/*
 * engine/bases.h: which backup a moment begins from, and what the moments of a window need: backups
 * are told by the content of their database.  One thread.
 */
#ifndef BK_ENGINE_BASES_H
#define BK_ENGINE_BASES_H

#include "base/json.h"
#include "engine/moments.h"

/* The backups of a list that hold a database, to be found by its content. */
typedef struct {
    const bk_snapshot_list_t *list;
    struct bk_base_s *items; /* sorted by digest, newest first */
    size_t count;
} bk_bases_t;

/* Of a set's database: another set may have the same, but lets its backups go when it likes.  list
 * is borrowed until free. */
bk_rc_t bk_bases_init(bk_bases_t *bases, const bk_snapshot_list_t *list, const char *set,
                      const char *database, bk_err_t *err);
void bk_bases_free(bk_bases_t *bases);
/* Those that are not known to last: nothing may go for their sake. */
void bk_bases_leave_out_provisional(bk_bases_t *bases);
/* The newest one whose database has this content; page_count 0: whatever it is.  Sets backup and
 * from of *moment. */
bool bk_bases_find(const bk_bases_t *bases, uint64_t digest, uint64_t page_count,
                   bk_moment_t *moment);

/* A stretch of an epoch without a hole: segments first to last of the list.  damaged: none of them
 * can be read, and nothing is set but these. */
typedef struct {
    size_t first, last;
    bool goes_on;      /* in the epoch of the stretch before */
    bool damaged;      /* why: bk_moments_why */
    uint64_t txids[2]; /* first and last number, as the names tell */
    bk_tx_t begin, end;
    int64_t until;    /* ns: what was committed until then is known */
    bool reachable;   /* there is a backup to begin from */
    bk_tx_t earliest; /* the first transaction that can be had, then */
    int64_t from;     /* ns: when that was, or the backup that it changed; else when begin was */
} bk_window_t;

/* first: a segment with which one begins: number 0, or the one behind the last of another. */
bk_rc_t bk_moments_window(bk_moments_t *moments, size_t first, const bk_bases_t *bases,
                          bk_window_t *window, bk_err_t *err);
/* Why that segment cannot be read; NULL: it can, as far as anybody knows. */
const char *bk_moments_why(const bk_moments_t *moments, size_t at);
/*
 * For an answer that a moment cannot be had: {"database", "earliest", "latest", "gaps": [{"from",
 * "to"}]}: from when to when moments can be, what is damaged or missing in between, and the gap
 * that the last bk_moments_at or bk_moments_number met.  NULL when nothing can.  err: their
 * refusal, which gets the nearest moments that can be had; NULL: nobody asked.
 */
json_t *bk_moments_describe(bk_moments_t *moments, const bk_snapshot_list_t *list, bk_err_t *err);

/*
 * What is needed so that every moment from a time (ns) on that can be had now stays so: of each
 * epoch that reaches into that time one backup, the newest that is not younger or else the oldest,
 * the segments behind it, and that of the transaction that it is as of when a time may mean that.
 * What is damaged or missing counts as if it were whole, so that it and what it needs go when they
 * would have gone anyway; the moments behind it get a backup of their own.  backups: list->count
 * flags, of which those are set.
 */
bk_rc_t bk_moments_keep(bk_moments_t *moments, int64_t since, const bk_snapshot_list_t *list,
                        bool *backups, bk_err_t *err);
/* The same without any backup: segments with transactions from then on. */
bk_rc_t bk_moments_keep_since(bk_moments_t *moments, int64_t since, bk_err_t *err);
/* Of what is needed, note what is damaged or missing. */
void bk_moments_note_lost(const bk_moments_t *moments, bk_ctl_t *ctl);
/* Remove the segments on the storage that were not needed; dry_run: only count them, into *count.
 */
bk_rc_t bk_moments_remove(bk_moments_t *moments, bool dry_run, uint64_t *count, bk_err_t *err);

#endif
