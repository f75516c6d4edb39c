/*
 * engine/unchanged.h: what a backup need not read of a captured database, because an earlier backup
 * has it and no transaction since then changed it; and what its transactions say that it will find.
 * One thread.
 */
#ifndef BK_ENGINE_UNCHANGED_H
#define BK_ENGINE_UNCHANGED_H

#include "engine/moments.h"
#include "sqlite/dump.h"
#include "sqlite/source.h"

typedef struct {
    bk_snapshot_list_t own; /* of the list that was given */
    bk_moments_t *moments;
    bk_moment_t moment;
    bk_past_t *past;
    bk_db_known_t known; /* past NULL: nothing is known */
    bool told;           /* its transactions tell what is to be found: */
    uint64_t digest, page_count;
    bk_snapshot_db_t since; /* what was there before blocks were seen */
} bk_unchanged_t;

/*
 * Of a pinned database of a set.  state: what the capture knows of just that content; NULL: more
 * was committed since the pin, and it is looked for among the transactions.  repo, list and ctl are
 * borrowed until free.  That nothing is known is no failure: only a stop is.
 */
typedef struct {
    const char *base_dir, *set, *host, *database; /* only backups of these */
    bk_repo_t *repo;
    const bk_snapshot_list_t *list;
    bk_ctl_t *ctl;
    bool all;                        /* is read: only what is to be found is asked for */
    const bk_db_seen_t *seen;        /* unless this was seen before; NULL: nothing */
    const bk_capture_state_t *since; /* what was captured before that */
} bk_unchanged_of_t;
bk_rc_t bk_unchanged_find(const bk_unchanged_of_t *of, const bk_db_info_t *pinned,
                          const bk_capture_state_t *state, bk_unchanged_t *unchanged,
                          bk_err_t *err);
void bk_unchanged_free(bk_unchanged_t *unchanged);

#endif
