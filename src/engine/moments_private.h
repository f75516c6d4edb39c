/*
 * engine/moments_private.h: what segments.c (the list), moments.c (times and numbers), bases.c
 * (where to begin) and keeping.c (what is needed) share.
 */
#ifndef BK_ENGINE_MOMENTS_PRIVATE_H
#define BK_ENGINE_MOMENTS_PRIVATE_H

#include "engine/bases.h"
#include "engine/moments.h"
#include "sqlite/capture.h"

typedef struct {
    uint8_t epoch[BK_EPOCH_SIZE];
    uint64_t first, last;   /* transactions; of an open one: as of the listing */
    char *path;             /* in base_dir; else item counts */
    bk_history_item_t item; /* on the storage */
    int64_t begins;         /* ns: t_lo of the first transaction of its epoch */
    char *damage;           /* owned: why it cannot be read; NULL: it can, or nobody tried */
    bool sound;             /* it was read */
    bool needed;            /* bk_moments_keep said so */
} bk_moments_segment_t;

/* A moment that is told. */
typedef struct {
    int64_t time;  /* ns; 0: there is none */
    uint64_t txid; /* 0: that of a backup */
} bk_moments_spot_t;

struct bk_moments_s {
    const char *base_dir, *set, *database;
    char key[BK_HISTORY_NAME];
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    bk_moments_segment_t *segments; /* by time of the epoch, then number */
    size_t count, room;
    bk_capture_known_t known; /* of base_dir */
    bool served;              /* there is one */
    bk_moments_spot_t gap[2]; /* the one that the last moment was refused for, or zeros */
    uint64_t absent;          /* the number that it was refused for; 0: none */
    bk_txlog_t *log;          /* of segment held */
    size_t held;
};

/* A segment of the storage. */
bk_rc_t bk_moments_open_stored(bk_repo_t *repo, const bk_history_item_t *item, bk_ctl_t *ctl,
                               bk_txlog_t **log, bk_err_t *err);
bool bk_moments_same_epoch(const bk_moments_t *m, size_t a, size_t b);
/* Its first transaction is the next one after those of the segment before it. */
bool bk_moments_follows(const bk_moments_t *m, size_t at);
/* BK_CORRUPT with the transactions of a damaged segment and why they cannot be read. */
bk_rc_t bk_moments_damaged(const bk_moments_t *m, size_t at, bk_err_t *err);
/* The same of what is damaged behind a segment, or BK_NOT_FOUND when it is missing. */
bk_rc_t bk_moments_broken(const bk_moments_t *m, size_t before, bk_err_t *err);
/* From a segment on, the first one below end that can be read; *found is end and *log NULL when
 * there is none.  *log is as bk_moments_look gives it. */
bk_rc_t bk_moments_next_sound(bk_moments_t *m, size_t at, size_t end, size_t *found,
                              bk_txlog_t **log, bk_err_t *err);
/* Can it be read?  Opened at most once for this. */
bk_rc_t bk_moments_sound(bk_moments_t *m, size_t at, bool *sound, bk_err_t *err);
/*
 * From when on (ns) there was nothing but what a backup holds until its first transaction, tx,
 * changed that: of segment first, which begins an epoch, or all that is there.  0: nobody knows
 * such a backup.  Any other one in between says that something was committed, and so may what is
 * lost.  first is count for an epoch whose first transaction is still to come.
 */
bk_rc_t bk_moments_stands_from(bk_moments_t *m, size_t first, const bk_tx_t *tx,
                               const bk_snapshot_list_t *list, int64_t *from, bk_err_t *err);
/* The newest backup from which moment->tx, which is in a segment, can be reached; *begin: the
 * oldest segment that was looked at. */
bk_rc_t bk_moments_look_back(bk_moments_t *m, const bk_bases_t *bases, size_t segment,
                             bk_moment_t *moment, size_t *begin, bool *found, bk_err_t *err);
/* The same, of all backups; BK_NOT_FOUND and BK_CORRUPT tell why there is none. */
bk_rc_t bk_moments_find_base(bk_moments_t *m, size_t segment, const bk_snapshot_list_t *list,
                             bk_moment_t *moment, bk_err_t *err);

#endif
