/*
 * sqlite/blocks.c: looks a page's block up in the map and keeps the blocks used last.  Reads the
 * repository only.
 */
#include "sqlite/blocks.h"

#include <stdlib.h>
#include <string.h>

#include "repo/map.h"

#define KEPT_BYTES (8u << 20)
#define LEAF       1024u /* items of a map's leaf: read together */

typedef struct {
    uint64_t block; /* UINT64_MAX: none */
    uint64_t used;
    uint8_t *bytes; /* block_size */
} kept_t;

struct bk_db_blocks_s {
    bk_repo_t *repo;
    const bk_snapshot_db_t *db;
    bk_ctl_t *ctl;
    bk_buf_t chunk;
    kept_t *kept;
    size_t count;
    uint64_t clock;
    uint64_t leaf; /* whose items are in refs; UINT64_MAX: none */
    bk_chunk_ref_t refs[LEAF];
};

bk_rc_t bk_db_check_geometry(const bk_snapshot_db_t *db, bk_err_t *err)
{
    uint64_t pages = db->page_count;
    if (db->page_size < 512 || db->page_size > 65536 ||
        (db->page_size & (db->page_size - 1)) != 0 || db->block_size < db->page_size ||
        db->block_size > BK_CHUNK_MAX || db->block_size % db->page_size != 0 || pages > UINT32_MAX)
        return bk_err_set(err, BK_CORRUPT, "database %s: impossible page or block size", db->name);
    if (db->map.count != (pages * db->page_size + db->block_size - 1) / db->block_size)
        return bk_err_set(err, BK_CORRUPT, "database %s: %llu blocks do not make %llu pages",
                          db->name, (unsigned long long)db->map.count, (unsigned long long)pages);
    return BK_OK;
}

bk_rc_t bk_db_check_block(const bk_snapshot_db_t *db, uint64_t at, uint32_t raw, bk_err_t *err)
{
    uint64_t left = db->page_count * db->page_size - at * db->block_size;
    return raw == (left < db->block_size ? left : db->block_size)
               ? BK_OK
               : bk_err_set(err, BK_CORRUPT, "database %s: block %llu has a wrong length", db->name,
                            (unsigned long long)at);
}

bk_rc_t bk_db_blocks_open(bk_repo_t *repo, const bk_snapshot_db_t *db, bk_ctl_t *ctl,
                          bk_db_blocks_t **result, bk_err_t *err)
{
    *result = NULL;
    bk_rc_t rc = bk_db_check_geometry(db, err);
    if (rc != BK_OK)
        return rc;
    bk_db_blocks_t *blocks = calloc(1, sizeof *blocks);
    size_t count = KEPT_BYTES / db->block_size + 1;
    if (blocks != NULL)
        blocks->kept = calloc(count, sizeof *blocks->kept);
    if (blocks == NULL || blocks->kept == NULL) {
        free(blocks);
        return bk_err_set(err, BK_NO_MEMORY, "read database %s: out of memory", db->name);
    }
    blocks->repo = repo;
    blocks->db = db;
    blocks->ctl = ctl;
    blocks->count = count;
    blocks->leaf = UINT64_MAX;
    bk_buf_init(&blocks->chunk, BK_CHUNK_MAX);
    for (size_t i = 0; i < count; i++)
        blocks->kept[i].block = UINT64_MAX;
    *result = blocks;
    return BK_OK;
}

void bk_db_blocks_free(bk_db_blocks_t *blocks)
{
    if (blocks == NULL)
        return;
    for (size_t i = 0; i < blocks->count; i++)
        free(blocks->kept[i].bytes);
    free(blocks->kept);
    bk_buf_free(&blocks->chunk);
    free(blocks);
}

static bk_rc_t find_ref(bk_db_blocks_t *blocks, uint64_t block, const bk_chunk_ref_t **ref,
                        bk_err_t *err)
{
    const bk_map_t *map = &blocks->db->map;
    uint64_t leaf = block / LEAF, first = leaf * LEAF;
    bk_rc_t rc = BK_OK;
    if (blocks->leaf != leaf) {
        size_t n = map->count - first < LEAF ? (size_t)(map->count - first) : LEAF;
        blocks->leaf = UINT64_MAX;
        rc = bk_map_read(blocks->repo, map, first, n, blocks->refs, blocks->ctl, err);
        if (rc == BK_OK)
            blocks->leaf = leaf;
    }
    *ref = &blocks->refs[block - first];
    return rc == BK_OK ? bk_db_check_block(blocks->db, block, (*ref)->raw, err) : rc;
}

static bk_rc_t fetch(bk_db_blocks_t *blocks, uint64_t block, kept_t *kept, bk_err_t *err)
{
    const bk_chunk_ref_t *ref;
    bk_rc_t rc = find_ref(blocks, block, &ref, err);
    kept->block = UINT64_MAX;
    if (rc == BK_OK && kept->bytes == NULL &&
        (kept->bytes = malloc(blocks->db->block_size)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "out of memory");
    if (rc == BK_OK && bk_id_is_zero(&ref->id)) {
        memset(kept->bytes, 0, ref->raw);
    } else if (rc == BK_OK) {
        rc = bk_repo_get(blocks->repo, &ref->id, &blocks->chunk, blocks->ctl, err);
        if (rc == BK_OK && blocks->chunk.len != ref->raw)
            rc = bk_err_set(err, BK_CORRUPT, "it has a wrong length");
        if (rc == BK_OK)
            memcpy(kept->bytes, blocks->chunk.data, ref->raw);
    }
    if (rc != BK_OK)
        return bk_err_wrap(err, "database %s: block %llu", blocks->db->name,
                           (unsigned long long)block);
    kept->block = block;
    return BK_OK;
}

bk_rc_t bk_db_blocks_page(bk_db_blocks_t *blocks, uint64_t pgno, uint8_t *page, bk_err_t *err)
{
    uint64_t offset = (pgno - 1) * blocks->db->page_size, block = offset / blocks->db->block_size;
    kept_t *kept = &blocks->kept[0];
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < blocks->count && kept->block != block; i++)
        if (blocks->kept[i].block == block || blocks->kept[i].used < kept->used)
            kept = &blocks->kept[i];
    if (kept->block != block)
        rc = fetch(blocks, block, kept, err);
    if (rc != BK_OK)
        return rc;
    kept->used = ++blocks->clock;
    memcpy(page, kept->bytes + offset % blocks->db->block_size, blocks->db->page_size);
    return BK_OK;
}
