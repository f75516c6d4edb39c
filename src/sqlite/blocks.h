/*
 * sqlite/blocks.h: single pages of a database in the repository, from the blocks of its map.  Only
 * blocks that are asked for are fetched, and a few MiB of them stay at hand.  One thread.
 */
#ifndef BK_SQLITE_BLOCKS_H
#define BK_SQLITE_BLOCKS_H

#include "repo/repo.h"
#include "repo/snapshot.h"

typedef struct bk_db_blocks_s bk_db_blocks_t;

/* repo, db and ctl are borrowed until free.  BK_CORRUPT: its sizes do not go together. */
bk_rc_t bk_db_blocks_open(bk_repo_t *repo, const bk_snapshot_db_t *db, bk_ctl_t *ctl,
                          bk_db_blocks_t **blocks, bk_err_t *err);
void bk_db_blocks_free(bk_db_blocks_t *blocks); /* NULL is fine */
/* pgno: 1 to db->page_count; page: db->page_size bytes. */
bk_rc_t bk_db_blocks_page(bk_db_blocks_t *blocks, uint64_t pgno, uint8_t *page, bk_err_t *err);

/* A snapshot is only as good as who wrote it: whether nothing that is computed from its sizes can
 * divide by zero or wrap round.  BK_CORRUPT. */
bk_rc_t bk_db_check_geometry(const bk_snapshot_db_t *db, bk_err_t *err);
/* The same of the block number at with that many bytes. */
bk_rc_t bk_db_check_block(const bk_snapshot_db_t *db, uint64_t at, uint32_t raw, bk_err_t *err);

#endif
