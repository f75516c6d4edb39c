/*
 * files/dirset.c: directories as nodes that know their parent, found by a hash of parent and name.
 * Touches memory only.
 */
#include "files/dirset.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct bk_dirnode_s {
    const bk_dirnode_t *parent;
    uint64_t hash;
    uint16_t len;
    bool at, tree;
    char name[];
};

void bk_dirset_init(bk_dirset_t *set)
{
    memset(set, 0, sizeof *set);
}

void bk_dirset_free(bk_dirset_t *set)
{
    for (size_t i = 0; i < set->size; i++)
        free(set->table[i]);
    free(set->table);
    free(set->root);
    bk_dirset_init(set);
}

static uint64_t hash_of(const bk_dirnode_t *parent, const void *name, size_t len)
{
    return XXH3_64bits_withSeed(name, len, parent->hash);
}

static size_t find_place(const bk_dirset_t *set, const bk_dirnode_t *parent, const void *name,
                         size_t len, uint64_t hash)
{
    size_t at = (size_t)hash & (set->size - 1);
    for (; set->table[at] != NULL; at = (at + 1) & (set->size - 1)) {
        const bk_dirnode_t *node = set->table[at];
        if (node->hash == hash && node->parent == parent && node->len == len &&
            memcmp(node->name, name, len) == 0)
            break;
    }
    return at;
}

static bk_dirnode_t *new_node(const bk_dirnode_t *parent, const char *name, size_t len,
                              uint64_t hash)
{
    bk_dirnode_t *node = calloc(1, sizeof *node + len + 1);
    if (node == NULL)
        return NULL;
    node->parent = parent;
    node->hash = hash;
    node->len = (uint16_t)len;
    memcpy(node->name, name, len);
    return node;
}

static bool grow(bk_dirset_t *set)
{
    size_t old = set->size, size = old > 0 ? 2 * old : 64;
    bk_dirnode_t **table = calloc(size, sizeof(bk_dirnode_t *)), **before = set->table;
    if (table == NULL)
        return false;
    set->table = table;
    set->size = size;
    for (size_t i = 0; i < old; i++) {
        bk_dirnode_t *node = before[i];
        if (node != NULL)
            table[find_place(set, node->parent, node->name, node->len, node->hash)] = node;
    }
    free(before);
    return true;
}

/* The place of a name, made when it is not there.  NULL: no room. */
static bk_dirnode_t *enter(bk_dirset_t *set, const bk_dirnode_t *parent, const char *name,
                           size_t len)
{
    uint64_t hash = hash_of(parent, name, len);
    if (set->size > 0) {
        bk_dirnode_t *there = set->table[find_place(set, parent, name, len, hash)];
        if (there != NULL)
            return there;
    }
    if (set->count == BK_DIRSET_MAX || (set->count >= set->size / 2 && !grow(set)))
        return NULL;
    bk_dirnode_t *node = new_node(parent, name, len, hash);
    if (node == NULL)
        return NULL;
    set->table[find_place(set, parent, name, len, hash)] = node;
    set->count++;
    return node;
}

/* What is on the way to others is of no use any more. */
static void take_all(bk_dirset_t *set)
{
    bk_dirset_free(set);
    set->all = true;
    set->marked = 1;
}

void bk_dirset_add(bk_dirset_t *set, const char *path, bool tree)
{
    if (set->all)
        return;
    if (set->root == NULL)
        set->root = new_node(NULL, "", 0, 0);
    bk_dirnode_t *node = set->root;
    for (const char *p = path; node != NULL && *p != '\0' && !node->tree;) {
        size_t len = strcspn(p, "/");
        node = len > 0 && len <= NAME_MAX ? enter(set, node, p, len) : NULL;
        p += len + (p[len] == '/');
    }
    if (node == NULL || (tree && node == set->root)) {
        take_all(set);
    } else if (!node->tree) {
        set->marked += !node->at;
        node->at = true;
        node->tree = tree;
    }
}

/* --- asking --- */

const bk_dirnode_t *bk_dirset_root(const bk_dirset_t *set)
{
    static const bk_dirnode_t everything = {.at = true, .tree = true};
    return set->all ? &everything : set->root;
}

const bk_dirnode_t *bk_dirset_child(const bk_dirset_t *set, const bk_dirnode_t *node,
                                    const void *name, size_t len)
{
    if (set->count == 0 || node == NULL)
        return NULL;
    return set->table[find_place(set, node, name, len, hash_of(node, name, len))];
}

bool bk_dirnode_marked(const bk_dirnode_t *node)
{
    return node != NULL && node->at;
}

bool bk_dirnode_tree(const bk_dirnode_t *node)
{
    return node != NULL && node->tree;
}

bool bk_dirset_has(const bk_dirset_t *set, const char *path)
{
    const bk_dirnode_t *node = bk_dirset_root(set);
    for (const char *p = path; node != NULL && *p != '\0' && !node->tree;) {
        size_t len = strcspn(p, "/");
        node = bk_dirset_child(set, node, p, len);
        p += len + (p[len] == '/');
    }
    return bk_dirnode_marked(node);
}

/* The path of a node, put together from its end.  False when it is longer than a path can be. */
static bool path_of(const bk_dirnode_t *node, char out[PATH_MAX])
{
    size_t at = PATH_MAX - 1;
    out[at] = '\0';
    for (; node->parent != NULL; node = node->parent) {
        size_t slash = out[at] != '\0';
        if (node->len + slash > at)
            return false;
        if (slash)
            out[--at] = '/';
        at -= node->len;
        memcpy(out + at, node->name, node->len);
    }
    memmove(out, out + at, PATH_MAX - at);
    return true;
}

bool bk_dirset_each(const bk_dirset_t *set, bool (*fn)(void *arg, const char *path, bool tree),
                    void *arg)
{
    char path[PATH_MAX];
    if (bk_dirnode_marked(bk_dirset_root(set)) && !fn(arg, "", set->all))
        return false;
    for (size_t i = 0; i < set->size; i++) {
        const bk_dirnode_t *node = set->table[i];
        if (node == NULL || !node->at)
            continue;
        if (!path_of(node, path) || !fn(arg, path, node->tree))
            return false;
    }
    return true;
}

static bool add_one(void *arg, const char *path, bool tree)
{
    bk_dirset_add(arg, path, tree);
    return true;
}

void bk_dirset_merge(bk_dirset_t *set, const bk_dirset_t *from)
{
    if (!bk_dirset_each(from, add_one, set))
        take_all(set);
}
