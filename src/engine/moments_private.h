/*
 * engine/moments_private.h: what moments.c (the list, times and numbers) and bases.c (where to
 * begin, what is needed) share.
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
    bool needed;            /* bk_moments_keep said so */
} bk_moments_segment_t;

struct bk_moments_s {
    const char *database;
    char key[BK_HISTORY_NAME];
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    bk_moments_segment_t *segments; /* by time of the epoch, then number */
    size_t count, room;
    bk_capture_known_t known; /* of base_dir */
    bool served;              /* there is one */
    int64_t gap[2];           /* ns: the one that a time was refused for, or zeros */
    bk_txlog_t *log;          /* of segment held */
    size_t held;
};

/* A segment of the storage. */
bk_rc_t bk_moments_open_stored(bk_repo_t *repo, const bk_history_item_t *item, bk_ctl_t *ctl,
                               bk_txlog_t **log, bk_err_t *err);
bool bk_moments_same_epoch(const bk_moments_t *m, size_t a, size_t b);
/* The newest backup from which moment->tx, which is in a segment, can be reached. */
bk_rc_t bk_moments_find_base(bk_moments_t *m, size_t segment, const bk_snapshot_list_t *list,
                             bk_moment_t *moment, bk_err_t *err);

#endif
