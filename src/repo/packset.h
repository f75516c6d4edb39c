/*
 * repo/packset.h: sets of packs by name: those a backup relies on, those that a collector
 * condemned, those that are gone or damaged.  One owner per set; the functions that read the
 * storage block.
 */
#ifndef BK_REPO_PACKSET_H
#define BK_REPO_PACKSET_H

#include "repo/repo.h"

typedef struct {
    bk_id_t name;
    uint8_t kind; /* bk_kind_t */
} bk_packset_item_t;

/* Zero-initialise.  Open addressing; a zero name marks a free slot. */
typedef struct {
    bk_packset_item_t *slots;
    size_t cap, count;
} bk_packset_t;

void bk_packset_free(bk_packset_t *set);
bool bk_packset_has(const bk_packset_t *set, const bk_id_t *name);
/* False: out of memory. */
bool bk_packset_add(bk_packset_t *set, const bk_id_t *name, bk_kind_t kind);
/* A member of a that is also in b, or NULL. */
const bk_packset_item_t *bk_packset_common(const bk_packset_t *a, const bk_packset_t *b);
/* Pass over the members; *at starts at 0; NULL at the end. */
const bk_packset_item_t *bk_packset_next(const bk_packset_t *set, size_t *at);

#define BK_PACKSET_ITEM (BK_ID_SIZE + 1u)
/* As bytes: { name 32 | kind u8 } each, in no order. */
void bk_packset_encode(const bk_packset_t *set, bk_buf_t *out);
bk_rc_t bk_packset_decode(bk_packset_t *set, const void *data, size_t len, bk_err_t *err);

/*
 * Add the packs of every object in condemned/ (kind BK_KIND_CONDEMNED, a JSON array of pack names
 * in hexadecimal).  A list that cannot be read is a failure: guessing that it is empty could lose
 * data.
 */
bk_rc_t bk_packset_condemned(bk_repo_t *repo, bk_packset_t *set, bk_ctl_t *ctl, bk_err_t *err);
/*
 * Add to missing the members of set that are not on the storage, or not with the size that the
 * index names: few are asked for, many are listed.
 */
bk_rc_t bk_packset_missing(bk_repo_t *repo, const bk_packset_t *set, bk_packset_t *missing,
                           bk_ctl_t *ctl, bk_err_t *err);

#endif
