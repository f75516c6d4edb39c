/*
 * repo/tree.c: building and reading the nodes of one directory.
 *
 * A builder has one open node a level: level 0 holds entries, level n > 0 the children of level n - 1.  An iterator has one node
 * a level, too.  Both are bounded by LEVELS nodes.
 */
#include "repo/tree.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define NODE_LEAF    1
#define NODE_BRANCH  2
#define NODE_VERSION 1
#define HEADER_BYTES 6u
#define NODE_MIN     (4u << 10)
#define NODE_MAX     (64u << 10)
/* One entry can be longer than a node may become: names, chunk lists. */
#define NODE_LIMIT (NODE_MAX + (64u << 10))
#define CUT_MASK   0x7fu
#define LEVELS     8 /* 2^7 children or more a branch: far beyond any directory */

typedef struct {
    bk_buf_t bytes; /* header, then items */
    uint32_t count;
    uint64_t below; /* entries under it */
    uint8_t first[BK_NAME_MAX];
    uint16_t first_len;
} open_node_t;

struct bk_tree_builder_s {
    bk_session_t *session;
    open_node_t levels[LEVELS];
    bool used[LEVELS]; /* a node of this level was written already: there must be a level above */
    uint8_t last[BK_NAME_MAX];
    uint16_t last_len;
    uint64_t entries;
};

bk_tree_builder_t *bk_tree_builder_new(bk_session_t *session)
{
    bk_tree_builder_t *builder = calloc(1, sizeof *builder);
    if (builder == NULL)
        return NULL;
    builder->session = session;
    for (size_t i = 0; i < LEVELS; i++)
        bk_buf_init(&builder->levels[i].bytes, NODE_LIMIT);
    return builder;
}

void bk_tree_builder_free(bk_tree_builder_t *builder)
{
    if (builder == NULL)
        return;
    for (size_t i = 0; i < LEVELS; i++)
        bk_buf_free(&builder->levels[i].bytes);
    free(builder);
}

static void start_node(open_node_t *node, uint8_t kind)
{
    bk_buf_reset(&node->bytes);
    bk_buf_u8(&node->bytes, kind);
    bk_buf_u8(&node->bytes, NODE_VERSION);
    bk_buf_u32(&node->bytes, 0);
    node->count = 0;
    node->below = 0;
}

/* The node ends behind this name: a property of the name, so that the cut does not depend on history. */
static bool cuts(const open_node_t *node, const uint8_t *name, size_t len)
{
    if (node->bytes.len >= NODE_MAX)
        return true;
    return node->bytes.len >= NODE_MIN && (XXH3_64bits(name, len) & CUT_MASK) == 0;
}

static bk_rc_t add_child(bk_tree_builder_t *builder, size_t level, const uint8_t *first,
                         uint16_t first_len, const bk_id_t *child, uint64_t below, bk_err_t *err);

/* Store the open node of a level and name it in the level above. */
static bk_rc_t close_node(bk_tree_builder_t *builder, size_t level, bk_id_t *id, bk_err_t *err)
{
    open_node_t *node = &builder->levels[level];
    if (!bk_buf_ok(&node->bytes))
        return bk_err_set(err, BK_NO_MEMORY, "store a directory: out of memory");
    bk_put_u32(node->bytes.data + 2, node->count);
    return bk_session_put(builder->session, BK_TYPE_TREE, false, node->bytes.data, node->bytes.len,
                          id, err);
}

static bk_rc_t close_and_link(bk_tree_builder_t *builder, size_t level, bk_err_t *err)
{
    open_node_t *node = &builder->levels[level];
    bk_id_t id;
    bk_rc_t rc = close_node(builder, level, &id, err);
    if (rc == BK_OK)
        rc = add_child(builder, level + 1, node->first, node->first_len, &id, node->below, err);
    builder->used[level] = true;
    node->count = 0;
    return rc;
}

static bk_rc_t add_child(bk_tree_builder_t *builder, size_t level, const uint8_t *first,
                         uint16_t first_len, const bk_id_t *child, uint64_t below, bk_err_t *err)
{
    if (level == LEVELS)
        return bk_err_set(err, BK_TOO_LARGE, "store a directory: it has too many entries");
    open_node_t *node = &builder->levels[level];
    if (node->count == 0) {
        start_node(node, NODE_BRANCH);
        memcpy(node->first, first, first_len);
        node->first_len = first_len;
    }
    bk_buf_u16(&node->bytes, first_len);
    bk_buf_add(&node->bytes, first, first_len);
    bk_buf_add(&node->bytes, child->b, BK_ID_SIZE);
    bk_buf_u64(&node->bytes, below);
    node->count++;
    node->below += below;
    return cuts(node, first, first_len) ? close_and_link(builder, level, err) : BK_OK;
}

static int compare_names(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    int order = memcmp(a, b, a_len < b_len ? a_len : b_len);
    if (order != 0)
        return order;
    return a_len < b_len ? -1 : a_len > b_len;
}

bk_rc_t bk_tree_builder_add(bk_tree_builder_t *builder, const bk_entry_t *entry, bk_err_t *err)
{
    open_node_t *node = &builder->levels[0];
    if (!bk_entry_name_valid(entry->name, entry->name_len) ||
        (builder->entries > 0 &&
         compare_names(builder->last, builder->last_len, entry->name, entry->name_len) >= 0))
        return bk_err_set(err, BK_FAILED, "store a directory: its entries are not in order");
    if (node->count == 0) {
        start_node(node, NODE_LEAF);
        memcpy(node->first, entry->name, entry->name_len);
        node->first_len = entry->name_len;
    }
    memcpy(builder->last, entry->name, entry->name_len);
    builder->last_len = entry->name_len;
    bk_entry_encode(entry, &node->bytes);
    node->count++;
    node->below++;
    builder->entries++;
    return cuts(node, entry->name, entry->name_len) ? close_and_link(builder, 0, err) : BK_OK;
}

bk_rc_t bk_tree_builder_finish(bk_tree_builder_t *builder, bk_id_t *root, uint64_t *entries,
                               bk_err_t *err)
{
    *entries = builder->entries;
    if (builder->entries == 0)
        start_node(&builder->levels[0], NODE_LEAF);
    for (size_t level = 0; level < LEVELS; level++) {
        open_node_t *node = &builder->levels[level];
        bool above = builder->used[level];
        if (!above)
            return close_node(builder, level, root, err);
        if (node->count > 0) {
            bk_rc_t rc = close_and_link(builder, level, err);
            if (rc != BK_OK)
                return rc;
        }
    }
    return bk_err_set(err, BK_TOO_LARGE, "store a directory: it has too many entries");
}

/* --- reading --- */

typedef struct {
    bk_buf_t bytes;
    bk_cur_t cur;
    uint32_t left; /* items not yet read */
} read_node_t;

struct bk_tree_iter_s {
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    read_node_t levels[LEVELS]; /* 0 is the root */
    size_t depth;               /* levels in use */
    bk_chunk_ref_t *scratch;
    size_t scratch_cap;
    bk_entry_t entry;
    uint8_t last[BK_NAME_MAX];
    uint16_t last_len;
    bool any;
    bool pending; /* seek has decoded an entry that next has not given yet */
};

static bk_rc_t open_node(bk_tree_iter_t *iter, const bk_id_t *id, bool *leaf, bk_err_t *err)
{
    if (iter->depth == LEVELS)
        return bk_err_set(err, BK_CORRUPT, "a directory is nested too deep");
    read_node_t *node = &iter->levels[iter->depth];
    bk_rc_t rc = bk_repo_get(iter->repo, id, &node->bytes, iter->ctl, err);
    if (rc != BK_OK)
        return rc;
    node->cur = bk_cur(node->bytes.data, node->bytes.len);
    uint8_t kind = bk_cur_u8(&node->cur), version = bk_cur_u8(&node->cur);
    node->left = bk_cur_u32(&node->cur);
    if (!bk_cur_ok(&node->cur) || (kind != NODE_LEAF && kind != NODE_BRANCH))
        return bk_err_set(err, BK_CORRUPT, "a node of a directory is damaged");
    if (version != NODE_VERSION)
        return bk_err_set(err, BK_UNSUPPORTED, "a directory was written by a newer version");
    if (kind == NODE_BRANCH && node->left == 0)
        return bk_err_set(err, BK_CORRUPT, "a node of a directory is empty");
    *leaf = kind == NODE_LEAF;
    iter->depth++;
    return BK_OK;
}

/* Read the next child of a branch. */
static bk_rc_t next_child(read_node_t *node, const uint8_t **first, uint16_t *first_len,
                          bk_id_t *child, bk_err_t *err)
{
    *first_len = bk_cur_u16(&node->cur);
    *first = bk_cur_bytes(&node->cur, *first_len);
    const uint8_t *id = bk_cur_bytes(&node->cur, BK_ID_SIZE);
    bk_cur_u64(&node->cur);
    if (!bk_cur_ok(&node->cur))
        return bk_err_set(err, BK_CORRUPT, "a node of a directory is cut off");
    memcpy(child->b, id, BK_ID_SIZE);
    node->left--;
    return BK_OK;
}

/* From the node at the bottom down to the leaf that starts it. */
static bk_rc_t descend(bk_tree_iter_t *iter, const bk_id_t *id, bk_err_t *err)
{
    bk_id_t child = *id;
    bool leaf = false;
    bk_rc_t rc = open_node(iter, &child, &leaf, err);
    while (rc == BK_OK && !leaf) {
        const uint8_t *first;
        uint16_t len;
        rc = next_child(&iter->levels[iter->depth - 1], &first, &len, &child, err);
        if (rc == BK_OK)
            rc = open_node(iter, &child, &leaf, err);
    }
    return rc;
}

bk_rc_t bk_tree_iter_open(bk_repo_t *repo, const bk_id_t *root, bk_ctl_t *ctl,
                          bk_tree_iter_t **result, bk_err_t *err)
{
    bk_tree_iter_t *iter = calloc(1, sizeof *iter);
    if (iter == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read a directory: out of memory");
    iter->repo = repo;
    iter->ctl = ctl;
    for (size_t i = 0; i < LEVELS; i++)
        bk_buf_init(&iter->levels[i].bytes, BK_CHUNK_MAX);
    bk_rc_t rc = descend(iter, root, err);
    if (rc != BK_OK)
        bk_tree_iter_close(iter);
    else
        *result = iter;
    return rc;
}

void bk_tree_iter_close(bk_tree_iter_t *iter)
{
    if (iter == NULL)
        return;
    for (size_t i = 0; i < LEVELS; i++)
        bk_buf_free(&iter->levels[i].bytes);
    free(iter->scratch);
    free(iter);
}

/* Decode the next entry into iter->entry; *there is false at the end. */
static bk_rc_t advance(bk_tree_iter_t *iter, bool *there, bk_err_t *err)
{
    bk_rc_t rc = bk_ctl_check(iter->ctl, err);
    *there = false;
    while (rc == BK_OK && iter->depth > 0 && iter->levels[iter->depth - 1].left == 0) {
        if (bk_cur_left(&iter->levels[iter->depth - 1].cur) != 0)
            return bk_err_set(err, BK_CORRUPT, "a node of a directory has bytes behind its end");
        iter->depth--;
        if (iter->depth == 0)
            return BK_OK;
        read_node_t *branch = &iter->levels[iter->depth - 1];
        if (branch->left > 0) {
            const uint8_t *first;
            uint16_t len;
            bk_id_t child;
            rc = next_child(branch, &first, &len, &child, err);
            if (rc == BK_OK)
                rc = descend(iter, &child, err);
        }
    }
    if (rc != BK_OK || iter->depth == 0)
        return rc;
    read_node_t *leaf = &iter->levels[iter->depth - 1];
    rc = bk_entry_decode(&leaf->cur, &iter->scratch, &iter->scratch_cap, &iter->entry, err);
    if (rc != BK_OK)
        return rc;
    leaf->left--;
    /* Sorted and unique: a merge and a restore both rely on it. */
    if (iter->any &&
        compare_names(iter->last, iter->last_len, iter->entry.name, iter->entry.name_len) >= 0)
        return bk_err_set(err, BK_CORRUPT, "the entries of a directory are not in order");
    memcpy(iter->last, iter->entry.name, iter->entry.name_len);
    iter->last_len = iter->entry.name_len;
    iter->any = true;
    *there = true;
    return BK_OK;
}

bk_rc_t bk_tree_iter_next(bk_tree_iter_t *iter, const bk_entry_t **entry, bk_err_t *err)
{
    bool there = iter->pending;
    bk_rc_t rc = BK_OK;
    if (!iter->pending)
        rc = advance(iter, &there, err);
    iter->pending = false;
    *entry = rc == BK_OK && there ? &iter->entry : NULL;
    return rc;
}

/* In a branch, go to the last child that starts at or before name. */
static bk_rc_t skip_children(bk_tree_iter_t *iter, const void *name, size_t len, bk_err_t *err)
{
    for (size_t level = 0; level + 1 < iter->depth; level++) {
        read_node_t *branch = &iter->levels[level];
        bk_cur_t ahead = branch->cur, best = branch->cur;
        uint32_t left = branch->left, best_left = 0;
        bk_id_t child;
        bool jump = false;
        while (left > 0) {
            read_node_t probe = {.cur = ahead, .left = left};
            const uint8_t *first;
            uint16_t first_len;
            bk_id_t id;
            bk_rc_t rc = next_child(&probe, &first, &first_len, &id, err);
            if (rc != BK_OK)
                return rc;
            if (compare_names(first, first_len, name, len) > 0)
                break;
            child = id;
            ahead = best = probe.cur;
            left = best_left = probe.left;
            jump = true;
        }
        if (jump) {
            branch->cur = best;
            branch->left = best_left;
            iter->depth = level + 1;
            bk_rc_t rc = descend(iter, &child, err);
            if (rc != BK_OK)
                return rc;
        }
    }
    return BK_OK;
}

bk_rc_t bk_tree_iter_seek(bk_tree_iter_t *iter, const void *name, size_t len, bk_err_t *err)
{
    bool there = iter->pending;
    bk_rc_t rc = BK_OK;
    if (there && compare_names(iter->entry.name, iter->entry.name_len, name, len) >= 0)
        return BK_OK;
    iter->pending = false;
    rc = skip_children(iter, name, len, err);
    do {
        if (rc == BK_OK)
            rc = advance(iter, &there, err);
    } while (rc == BK_OK && there &&
             compare_names(iter->entry.name, iter->entry.name_len, name, len) < 0);
    iter->pending = rc == BK_OK && there;
    return rc;
}
