/*
 * repo/map.h: long lists of chunks (a database's blocks, a large file's content) as a radix tree.
 *
 *   leaf   = up to 1 024 × { id 32 | raw u32 }          depth 0
 *   branch = up to 1 024 × { node id 32 }               depth 1…
 * Every node but the last of its level is full, so item i's place is i's digits in base 1 024.
 * An all-zero id stands for a chunk of zeros that is stored nowhere.  The depth is the least that
 * holds all items; an empty list is one empty leaf.  One thread per object.
 */
#ifndef BK_REPO_MAP_H
#define BK_REPO_MAP_H

#include "repo/repo.h"
#include "repo/session.h"
#include "repo/tree.h"

typedef struct {
    bk_id_t root;
    uint64_t count; /* chunks */
    uint8_t depth;
} bk_map_t;

/* True when count and depth go together. */
bool bk_map_valid(const bk_map_t *map);

typedef struct bk_map_builder_s bk_map_builder_t;
bk_map_builder_t *bk_map_builder_new(bk_session_t *session);
bk_rc_t bk_map_builder_add(bk_map_builder_t *builder, const bk_chunk_ref_t *ref, bk_err_t *err);
bk_rc_t bk_map_builder_finish(bk_map_builder_t *builder, bk_map_t *map, bk_err_t *err);
void bk_map_builder_free(bk_map_builder_t *builder);

/* Items [first, first + n) into out; reads the nodes it needs.  BK_CORRUPT past the end or when
 * nodes do not fit. */
bk_rc_t bk_map_read(bk_repo_t *repo, const bk_map_t *map, uint64_t first, size_t n,
                    bk_chunk_ref_t *out, bk_ctl_t *ctl, bk_err_t *err);
/* Every node id of the map (for marking and verifying). */
typedef bk_rc_t (*bk_map_node_fn)(void *arg, const bk_id_t *node, bk_err_t *err);
bk_rc_t bk_map_each_node(bk_repo_t *repo, const bk_map_t *map, bk_map_node_fn fn, void *arg,
                         bk_ctl_t *ctl, bk_err_t *err);

#endif
