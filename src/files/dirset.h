/*
 * files/dirset.h: a set of directories of one tree that have to be looked at again: each alone, or
 * with everything below it.  In memory only; bounded: what does not fit makes the whole tree the
 * one member.
 *
 * Belongs to one thread at a time; while nobody changes it, any number may ask it.
 */
#ifndef BK_FILES_DIRSET_H
#define BK_FILES_DIRSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BK_DIRSET_MAX 65536u /* directories, with those on the way to them: about 8 MiB */

typedef struct bk_dirnode_s bk_dirnode_t;
typedef struct {
    bool all;             /* everything is a member, and nothing else is kept */
    bk_dirnode_t *root;   /* NULL: nothing was added */
    bk_dirnode_t **table; /* of all others, by parent and name */
    size_t size, count;   /* places, nodes */
    size_t marked;        /* members */
} bk_dirset_t;

void bk_dirset_init(bk_dirset_t *set);
void bk_dirset_free(bk_dirset_t *set); /* empties it: it can be used again */
/* path: relative to the tree's root, "" is the root.  tree: with everything below. */
void bk_dirset_add(bk_dirset_t *set, const char *path, bool tree);
/* All of from into set. */
void bk_dirset_merge(bk_dirset_t *set, const bk_dirset_t *from);

static inline bool bk_dirset_empty(const bk_dirset_t *set)
{
    return set->marked == 0;
}
/* Is the directory a member, by itself or by one above it? */
bool bk_dirset_has(const bk_dirset_t *set, const char *path);

/*
 * On the way down: the place of the root and of a name in a directory's place.  NULL: neither that
 * directory nor anything below it is a member (as long as no directory above it is one with
 * everything below).
 */
const bk_dirnode_t *bk_dirset_root(const bk_dirset_t *set);
const bk_dirnode_t *bk_dirset_child(const bk_dirset_t *set, const bk_dirnode_t *node,
                                    const void *name, size_t len);
bool bk_dirnode_marked(const bk_dirnode_t *node); /* itself is a member */
bool bk_dirnode_tree(const bk_dirnode_t *node);   /* with everything below */

/* Each member once, in no order, until fn returns false: false then. */
bool bk_dirset_each(const bk_dirset_t *set, bool (*fn)(void *arg, const char *path, bool tree),
                    void *arg);

#endif
