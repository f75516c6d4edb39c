/*
 * repo/map.c: long lists of chunks as a radix tree of fan-out 1 024.
 */
#include "repo/map.h"

#include <stdlib.h>
#include <string.h>

#define LEAF_ITEM   36u
#define BRANCH_ITEM 32u
#define NODE_MAX    (BK_MAP_FANOUT * LEAF_ITEM)
#define LEVELS      4 /* 1 024^4 chunks */

struct bk_map_builder_s {
    bk_session_t *session;
    bk_buf_t levels[LEVELS];
    uint32_t items[LEVELS];
    uint64_t count;
};

bk_map_builder_t *bk_map_builder_new(bk_session_t *session)
{
    bk_map_builder_t *builder = calloc(1, sizeof *builder);
    if (builder == NULL)
        return NULL;
    builder->session = session;
    for (size_t i = 0; i < LEVELS; i++)
        bk_buf_init(&builder->levels[i], NODE_MAX);
    return builder;
}

void bk_map_builder_free(bk_map_builder_t *builder)
{
    if (builder == NULL)
        return;
    for (size_t i = 0; i < LEVELS; i++)
        bk_buf_free(&builder->levels[i]);
    free(builder);
}

static bk_rc_t close_level(bk_map_builder_t *builder, size_t level, bk_id_t *id, bk_err_t *err)
{
    bk_buf_t *node = &builder->levels[level];
    if (!bk_buf_ok(node))
        return bk_err_set(err, BK_NO_MEMORY, "store a list of chunks: out of memory");
    bk_rc_t rc =
        bk_session_put(builder->session, BK_TYPE_MAP, false, node->data, node->len, id, err);
    bk_buf_reset(node);
    builder->items[level] = 0;
    return rc;
}

/* Closed only when the next item needs its place, so that a full last node stays the root. */
static bk_rc_t make_room(bk_map_builder_t *builder, size_t level, bk_err_t *err)
{
    bk_id_t id;
    if (builder->items[level] < BK_MAP_FANOUT)
        return BK_OK;
    if (level + 1 == LEVELS)
        return bk_err_set(err, BK_TOO_LARGE, "store a list of chunks: it is too long");
    bk_rc_t rc = close_level(builder, level, &id, err);
    if (rc == BK_OK)
        rc = make_room(builder, level + 1, err);
    if (rc == BK_OK) {
        bk_buf_add(&builder->levels[level + 1], id.b, BK_ID_SIZE);
        builder->items[level + 1]++;
    }
    return rc;
}

bk_rc_t bk_map_builder_add(bk_map_builder_t *builder, const bk_chunk_ref_t *ref, bk_err_t *err)
{
    if (ref->raw == 0 || ref->raw > BK_CHUNK_MAX)
        return bk_err_set(err, BK_FAILED, "store a list of chunks: a chunk of %u bytes",
                          (unsigned)ref->raw);
    bk_rc_t rc = make_room(builder, 0, err);
    if (rc != BK_OK)
        return rc;
    bk_buf_add(&builder->levels[0], ref->id.b, BK_ID_SIZE);
    bk_buf_u32(&builder->levels[0], ref->raw);
    builder->items[0]++;
    builder->count++;
    return BK_OK;
}

bk_rc_t bk_map_builder_finish(bk_map_builder_t *builder, bk_map_t *map, bk_err_t *err)
{
    memset(map, 0, sizeof *map);
    map->count = builder->count;
    for (size_t level = 0; level < LEVELS; level++) {
        bk_id_t id;
        bool top = true;
        for (size_t above = level + 1; above < LEVELS; above++)
            top = top && builder->items[above] == 0;
        bk_rc_t rc = close_level(builder, level, &id, err);
        if (rc != BK_OK)
            return rc;
        if (top) {
            map->root = id;
            map->depth = (uint8_t)level;
            return BK_OK;
        }
        if ((rc = make_room(builder, level + 1, err)) != BK_OK)
            return rc;
        bk_buf_add(&builder->levels[level + 1], id.b, BK_ID_SIZE);
        builder->items[level + 1]++;
    }
    return bk_err_set(err, BK_TOO_LARGE, "store a list of chunks: it is too long");
}

/* --- reading --- */

static uint64_t span_of(unsigned level) /* chunks below one item of a node */
{
    uint64_t span = 1;
    while (level-- > 0)
        span *= BK_MAP_FANOUT;
    return span;
}

/* One list has one form: no more levels than it needs. */
bool bk_map_valid(const bk_map_t *map)
{
    return map->depth < LEVELS && map->count <= span_of(map->depth + 1u) &&
           (map->depth == 0 || map->count > span_of(map->depth));
}

/* Read a node of the level; items: how many it must have. */
static bk_rc_t read_node(bk_repo_t *repo, const bk_id_t *id, unsigned level, uint64_t items,
                         bk_buf_t *node, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_repo_get(repo, id, node, ctl, err);
    if (rc == BK_OK && node->len != items * (level == 0 ? LEAF_ITEM : BRANCH_ITEM))
        rc = bk_err_set(err, BK_CORRUPT, "a list of chunks has a node of the wrong length");
    return rc;
}

static uint64_t items_of(uint64_t count, unsigned level)
{
    uint64_t span = span_of(level);
    return (count + span - 1) / span;
}

/* count: chunks below this node; first and n are relative to it. */
static bk_rc_t read_below(bk_repo_t *repo, const bk_id_t *id, unsigned level, uint64_t count,
                          uint64_t first, size_t n, bk_chunk_ref_t *out, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    bk_buf_t node;
    bk_buf_init(&node, NODE_MAX);
    bk_rc_t rc = read_node(repo, id, level, items_of(count, level), &node, ctl, err);
    uint64_t span = span_of(level);
    while (rc == BK_OK && n > 0) {
        uint64_t item = first / span, start = item * span;
        if (level == 0) {
            const uint8_t *p = node.data + item * LEAF_ITEM;
            memcpy(out->id.b, p, BK_ID_SIZE);
            out->raw = bk_get_u32(p + BK_ID_SIZE);
            if (out->raw == 0 || out->raw > BK_CHUNK_MAX)
                rc = bk_err_set(err, BK_CORRUPT, "a list of chunks names an impossible chunk");
            out++;
            first++;
            n--;
        } else {
            bk_id_t child;
            uint64_t below = count - start < span ? count - start : span;
            size_t take = start + below - first < n ? (size_t)(start + below - first) : n;
            memcpy(child.b, node.data + item * BRANCH_ITEM, BK_ID_SIZE);
            rc = read_below(repo, &child, level - 1, below, first - start, take, out, ctl, err);
            out += take;
            first += take;
            n -= take;
        }
    }
    bk_buf_free(&node);
    return rc;
}

bk_rc_t bk_map_read(bk_repo_t *repo, const bk_map_t *map, uint64_t first, size_t n,
                    bk_chunk_ref_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    if (!bk_map_valid(map) || first > map->count || n > map->count - first)
        return bk_err_set(err, BK_CORRUPT, "a list of chunks is shorter than expected");
    if (n == 0)
        return BK_OK;
    return read_below(repo, &map->root, map->depth, map->count, first, n, out, ctl, err);
}

static bk_rc_t each_below(bk_repo_t *repo, const bk_id_t *id, unsigned level, uint64_t count,
                          bk_map_node_fn fn, void *arg, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t node;
    bk_rc_t rc = fn(arg, id, err);
    if (rc != BK_OK || level == 0)
        return rc;
    bk_buf_init(&node, NODE_MAX);
    rc = read_node(repo, id, level, items_of(count, level), &node, ctl, err);
    uint64_t span = span_of(level);
    for (uint64_t start = 0; start < count && rc == BK_OK; start += span) {
        bk_id_t child;
        memcpy(child.b, node.data + start / span * BRANCH_ITEM, BK_ID_SIZE);
        rc = each_below(repo, &child, level - 1, count - start < span ? count - start : span, fn,
                        arg, ctl, err);
    }
    bk_buf_free(&node);
    return rc;
}

bk_rc_t bk_map_each_node(bk_repo_t *repo, const bk_map_t *map, bk_map_node_fn fn, void *arg,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    if (!bk_map_valid(map))
        return bk_err_set(err, BK_CORRUPT, "a list of chunks has an impossible shape");
    return each_below(repo, &map->root, map->depth, map->count, fn, arg, ctl, err);
}
