/*
 * engine/bases.h: which backup a moment begins from, and what the moments of a window need: backups
 * are told by the content of their database.  One thread.
 */
#ifndef BK_ENGINE_BASES_H
#define BK_ENGINE_BASES_H

#include "engine/moments.h"

/* The backups of a list that hold a database, to be found by its content. */
typedef struct {
    const bk_snapshot_list_t *list;
    struct bk_base_s *items; /* sorted by digest, newest first */
    size_t count;
} bk_bases_t;

/* list and database are borrowed until free. */
bk_rc_t bk_bases_init(bk_bases_t *bases, const bk_snapshot_list_t *list, const char *database,
                      bk_err_t *err);
void bk_bases_free(bk_bases_t *bases);
/* The newest one whose database has this content; page_count 0: whatever it is.  Sets backup and
 * from of *moment. */
bool bk_bases_find(const bk_bases_t *bases, uint64_t digest, uint64_t page_count,
                   bk_moment_t *moment);

/*
 * What is needed so that every moment from a time (ns) on that can be had now stays so: of each
 * epoch that reaches into that time one backup, the newest that is not younger or else the oldest,
 * and the segments behind it.  backups: list->count flags, of which those are set.
 */
bk_rc_t bk_moments_keep(bk_moments_t *moments, int64_t since, const bk_snapshot_list_t *list,
                        bool *backups, bk_err_t *err);
/* The same without any backup: segments with transactions from then on. */
bk_rc_t bk_moments_keep_since(bk_moments_t *moments, int64_t since, bk_err_t *err);
/* Remove the segments on the storage that were not needed; dry_run: only count them, into *count.
 */
bk_rc_t bk_moments_remove(bk_moments_t *moments, bool dry_run, uint64_t *count, bk_err_t *err);

#endif
