/*
 * repo/tree.c: building and reading the nodes of one directory.
 *
 * A builder has one open node a level: level 0 holds entries, each further level the nodes of the
 * one below.  An iterator has one node a level, too, the root first.  LEVELS bounds both.
 */
#include "repo/tree.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define NODE_LEAF    1
#define NODE_BRANCH  2
#define NODE_VERSION 1
#define NODE_MIN     (4u << 10)
#define NODE_FULL    (64u << 10)
/* A node reaches NODE_FULL with its last entry, and no entry has 64 KiB. */
#define NODE_LIMIT (NODE_FULL + (64u << 10))
#define CUT_MASK   0x7fu
#define LEVELS     8 /* a branch has 14 children or more: far beyond any directory */

static int compare_names(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    int order = memcmp(a, b, a_len < b_len ? a_len : b_len);
    if (order != 0)
        return order;
    return a_len < b_len ? -1 : a_len > b_len;
}

/* --- building --- */

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
    bool over; /* finished or failed: the open nodes mean nothing any more */
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

static void start_node(open_node_t *node, uint8_t kind, const uint8_t *first, uint16_t first_len)
{
    bk_buf_reset(&node->bytes);
    bk_buf_u8(&node->bytes, kind);
    bk_buf_u8(&node->bytes, NODE_VERSION);
    bk_buf_u32(&node->bytes, 0);
    node->count = 0;
    node->below = 0;
    if (first_len > 0)
        memcpy(node->first, first, first_len);
    node->first_len = first_len;
}

/* The node ends behind this name: a property of the name, not of what came before. */
static bool cuts(const open_node_t *node, const uint8_t *name, size_t len)
{
    if (node->bytes.len >= NODE_FULL)
        return true;
    return node->bytes.len >= NODE_MIN && (XXH3_64bits(name, len) & CUT_MASK) == 0;
}

static bk_rc_t store_node(bk_tree_builder_t *builder, open_node_t *node, bk_id_t *id, bk_err_t *err)
{
    if (!bk_buf_ok(&node->bytes))
        return bk_err_set(err, BK_NO_MEMORY, "store a directory: out of memory");
    bk_put_u32(node->bytes.data + 2, node->count);
    return bk_session_put(builder->session, BK_TYPE_TREE, false, node->bytes.data, node->bytes.len,
                          id, err);
}

/* Store the open node of a level and name it in the level above, which may end that one, too. */
static bk_rc_t close_node(bk_tree_builder_t *builder, size_t level, bk_err_t *err)
{
    for (;; level++) {
        open_node_t *node = &builder->levels[level], *above = node + 1;
        bk_id_t id;
        if (level + 1 == LEVELS)
            return bk_err_set(err, BK_TOO_LARGE, "store a directory: it has too many entries");
        bk_rc_t rc = store_node(builder, node, &id, err);
        if (rc != BK_OK)
            return rc;
        builder->used[level] = true;
        if (above->count == 0)
            start_node(above, NODE_BRANCH, node->first, node->first_len);
        bk_buf_u16(&above->bytes, node->first_len);
        bk_buf_add(&above->bytes, node->first, node->first_len);
        bk_buf_add(&above->bytes, id.b, BK_ID_SIZE);
        bk_buf_u64(&above->bytes, node->below);
        above->count++;
        above->below += node->below;
        node->count = 0;
        if (!cuts(above, node->first, node->first_len))
            return BK_OK;
    }
}

static bk_rc_t add_entry(bk_tree_builder_t *builder, const bk_entry_t *entry, bk_err_t *err)
{
    open_node_t *node = &builder->levels[0];
    bk_rc_t rc = bk_entry_check(entry, err);
    if (rc != BK_OK)
        return rc;
    if (builder->entries > 0 &&
        compare_names(builder->last, builder->last_len, entry->name, entry->name_len) >= 0)
        return bk_err_set(err, BK_FAILED, "store a directory: its entries are not in order");
    if (node->count == 0)
        start_node(node, NODE_LEAF, entry->name, entry->name_len);
    memcpy(builder->last, entry->name, entry->name_len);
    builder->last_len = entry->name_len;
    bk_entry_encode(entry, &node->bytes);
    node->count++;
    node->below++;
    builder->entries++;
    return cuts(node, entry->name, entry->name_len) ? close_node(builder, 0, err) : BK_OK;
}

bk_rc_t bk_tree_builder_add(bk_tree_builder_t *builder, const bk_entry_t *entry, bk_err_t *err)
{
    if (builder->over)
        return bk_err_set(err, BK_FAILED, "store a directory: it is over or failed already");
    bk_rc_t rc = add_entry(builder, entry, err);
    builder->over = rc != BK_OK;
    return rc;
}

bk_rc_t bk_tree_builder_finish(bk_tree_builder_t *builder, bk_id_t *root, uint64_t *entries,
                               bk_err_t *err)
{
    size_t level = 0;
    if (builder->over)
        return bk_err_set(err, BK_FAILED, "store a directory: it is over or failed already");
    builder->over = true;
    *entries = builder->entries;
    if (builder->entries == 0)
        start_node(&builder->levels[0], NODE_LEAF, NULL, 0);
    /* The lowest level of which nothing was written before holds everything: it is the root. */
    for (; builder->used[level]; level++) {
        if (builder->levels[level].count == 0)
            continue;
        bk_rc_t rc = close_node(builder, level, err);
        if (rc != BK_OK)
            return rc;
    }
    return store_node(builder, &builder->levels[level], root, err);
}

/* --- reading --- */

typedef struct {
    bk_buf_t bytes;
    bk_id_t id;
    bool leaf;
    bk_cur_t items, cur;  /* all items; what is not read yet */
    uint32_t count, left; /* the same, as numbers */
} read_node_t;

typedef struct {
    const uint8_t *first; /* in the branch's bytes */
    uint16_t first_len;
    bk_id_t id;
    uint64_t below;
} child_t;

struct bk_tree_iter_s {
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    read_node_t levels[LEVELS]; /* 0 is the root, which stays */
    size_t depth;               /* levels in use */
    bk_chunk_ref_t *scratch;
    size_t scratch_cap;
    bk_entry_t entry;
    uint8_t last[BK_NAME_MAX]; /* name of the entry decoded last */
    uint16_t last_len;
    bool any;       /* there is such an entry */
    bool pending;   /* seek has decoded an entry that next has not given yet */
    bk_rc_t failed; /* a damaged directory is not read on */
};

/* A child of a branch that check_branch has passed. */
static child_t take_child(read_node_t *node)
{
    child_t child = {0};
    child.first_len = bk_cur_u16(&node->cur);
    child.first = bk_cur_bytes(&node->cur, child.first_len);
    const uint8_t *id = bk_cur_bytes(&node->cur, BK_ID_SIZE);
    child.below = bk_cur_u64(&node->cur);
    if (id != NULL)
        memcpy(child.id.b, id, BK_ID_SIZE);
    node->left--;
    return child;
}

/* All items of a branch: whole, sorted, and with as many entries as the level above says. */
static bk_rc_t check_branch(const read_node_t *branch, const child_t *self, bk_err_t *err)
{
    read_node_t probe = {.cur = branch->items, .left = branch->count};
    child_t before = {0};
    uint64_t sum = 0;
    if (branch->count == 0)
        return bk_err_set(err, BK_CORRUPT, "a branch of a directory is empty");
    while (probe.left > 0) {
        child_t child = take_child(&probe);
        if (!bk_cur_ok(&probe.cur))
            return bk_err_set(err, BK_CORRUPT, "a branch of a directory is cut off");
        if (!bk_entry_name_valid(child.first, child.first_len) || child.below == 0 ||
            child.below > UINT64_MAX - sum ||
            (before.first != NULL &&
             compare_names(before.first, before.first_len, child.first, child.first_len) >= 0))
            return bk_err_set(err, BK_CORRUPT, "a branch of a directory has impossible items");
        sum += child.below;
        before = child;
    }
    if (bk_cur_left(&probe.cur) != 0 || (self != NULL && sum != self->below))
        return bk_err_set(err, BK_CORRUPT, "a branch of a directory has another length than said");
    return BK_OK;
}

/* The first name of a node as its branch has it: a wrong one would mislead a search. */
static bk_rc_t check_first(const read_node_t *node, const child_t *self, bk_err_t *err)
{
    bk_cur_t cur = node->items;
    uint16_t len = bk_cur_u16(&cur);
    const uint8_t *first = bk_cur_bytes(&cur, len);
    if (first == NULL || len != self->first_len || memcmp(first, self->first, len) != 0)
        return bk_err_set(err, BK_CORRUPT, "a node of a directory starts with another name");
    return BK_OK;
}

/* Read a node below those that are open; self: what its branch says of it, NULL for the root. */
static bk_rc_t open_node(bk_tree_iter_t *iter, const bk_id_t *id, const child_t *self,
                         bk_err_t *err)
{
    if (iter->depth == LEVELS)
        return bk_err_set(err, BK_CORRUPT, "the branches of a directory are nested too deep");
    read_node_t *node = &iter->levels[iter->depth];
    bk_rc_t rc = bk_repo_get(iter->repo, id, &node->bytes, iter->ctl, err);
    if (rc != BK_OK)
        return rc;
    node->cur = bk_cur(node->bytes.data, node->bytes.len);
    uint8_t kind = bk_cur_u8(&node->cur), version = bk_cur_u8(&node->cur);
    node->count = node->left = bk_cur_u32(&node->cur);
    node->items = node->cur;
    node->leaf = kind == NODE_LEAF;
    node->id = *id;
    if (!bk_cur_ok(&node->cur) || (kind != NODE_LEAF && kind != NODE_BRANCH))
        return bk_err_set(err, BK_CORRUPT, "a node of a directory is damaged");
    if (version != NODE_VERSION)
        return bk_err_set(err, BK_UNSUPPORTED,
                          "a directory was written by a newer ngx-backup: upgrade it");
    if (!node->leaf)
        rc = check_branch(node, self, err);
    else if (self != NULL && node->count != self->below)
        rc = bk_err_set(err, BK_CORRUPT, "a node of a directory has another length than said");
    if (rc == BK_OK && self != NULL)
        rc = check_first(node, self, err);
    if (rc == BK_OK)
        iter->depth++;
    return rc;
}

static bk_rc_t open_next_child(bk_tree_iter_t *iter, bk_err_t *err)
{
    child_t child = take_child(&iter->levels[iter->depth - 1]);
    return open_node(iter, &child.id, &child, err);
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
        bk_buf_init(&iter->levels[i].bytes, NODE_LIMIT);
    bk_rc_t rc = open_node(iter, root, NULL, err);
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

/* Bring a leaf with unread entries to the bottom; *there is false when there is none. */
static bk_rc_t find_leaf(bk_tree_iter_t *iter, bool *there, bk_err_t *err)
{
    for (;;) {
        read_node_t *node = &iter->levels[iter->depth - 1];
        if (node->left > 0 && node->leaf) {
            *there = true;
            return BK_OK;
        }
        if (node->left > 0) {
            bk_rc_t rc = open_next_child(iter, err);
            if (rc != BK_OK)
                return rc;
            continue;
        }
        if (node->leaf && bk_cur_left(&node->cur) != 0)
            return bk_err_set(err, BK_CORRUPT, "a node of a directory has bytes behind its end");
        if (iter->depth == 1) {
            *there = false;
            return BK_OK;
        }
        iter->depth--;
    }
}

/* Decode the next entry into iter->entry; *there is false at the end. */
static bk_rc_t advance(bk_tree_iter_t *iter, bool *there, bk_err_t *err)
{
    bk_rc_t rc = bk_ctl_check(iter->ctl, err);
    if (rc == BK_OK)
        rc = find_leaf(iter, there, err);
    if (rc != BK_OK || !*there)
        return rc;
    read_node_t *leaf = &iter->levels[iter->depth - 1];
    bk_entry_t *entry = &iter->entry;
    rc = bk_entry_decode(&leaf->cur, &iter->scratch, &iter->scratch_cap, entry, err);
    if (rc != BK_OK)
        return rc;
    leaf->left--;
    /* Sorted and unique: a merge and a restore both rely on it. */
    if (iter->any && compare_names(iter->last, iter->last_len, entry->name, entry->name_len) >= 0)
        return bk_err_set(err, BK_CORRUPT, "the entries of a directory are not in order");
    memcpy(iter->last, entry->name, entry->name_len);
    iter->last_len = entry->name_len;
    iter->any = true;
    return BK_OK;
}

static bk_rc_t fail_again(const bk_tree_iter_t *iter, bk_err_t *err)
{
    return bk_err_set(err, iter->failed, "the directory could not be read before");
}

bk_rc_t bk_tree_iter_next(bk_tree_iter_t *iter, const bk_entry_t **entry, bk_err_t *err)
{
    bool there = iter->pending;
    *entry = NULL;
    if (iter->failed != BK_OK)
        return fail_again(iter, err);
    if (!there)
        iter->failed = advance(iter, &there, err);
    iter->pending = false;
    if (iter->failed == BK_OK && there)
        *entry = &iter->entry;
    return iter->failed;
}

/*
 * From the root down to the leaf where name must be; what is open already is not read again.
 * forward: name is behind all that was read, so nothing before the open children matters.
 */
static bk_rc_t go_down(bk_tree_iter_t *iter, const void *name, size_t len, bool forward,
                       bool *opened, bk_err_t *err)
{
    for (size_t level = 0; !iter->levels[level].leaf; level++) {
        read_node_t *branch = &iter->levels[level];
        bool open = level + 1 < iter->depth, found = open && forward;
        child_t child = {0};
        if (!found) {
            branch->cur = branch->items;
            branch->left = branch->count;
            child = take_child(branch);
        }
        for (read_node_t probe = *branch; probe.left > 0;) {
            child_t next = take_child(&probe);
            if (compare_names(next.first, next.first_len, name, len) > 0)
                break;
            child = next;
            found = false;
            branch->cur = probe.cur;
            branch->left = probe.left;
        }
        if (found || (open && bk_id_equal(&iter->levels[level + 1].id, &child.id)))
            continue;
        iter->depth = level + 1;
        *opened = true;
        bk_rc_t rc = open_node(iter, &child.id, &child, err);
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

bk_rc_t bk_tree_iter_seek(bk_tree_iter_t *iter, const void *name, size_t len, bk_err_t *err)
{
    bool there = true, opened = false;
    int order = iter->any ? compare_names(iter->last, iter->last_len, name, len) : -1;
    if (iter->failed != BK_OK)
        return fail_again(iter, err);
    if (iter->pending && order == 0)
        return BK_OK;
    iter->pending = false;
    iter->failed = go_down(iter, name, len, iter->any && order < 0, &opened, err);
    if (iter->failed == BK_OK && (opened || order >= 0)) { /* read the leaf from its start */
        read_node_t *leaf = &iter->levels[iter->depth - 1];
        leaf->cur = leaf->items;
        leaf->left = leaf->count;
        iter->any = false;
    }
    do {
        if (iter->failed == BK_OK)
            iter->failed = advance(iter, &there, err);
    } while (iter->failed == BK_OK && there &&
             compare_names(iter->entry.name, iter->entry.name_len, name, len) < 0);
    iter->pending = iter->failed == BK_OK && there;
    return iter->failed;
}
