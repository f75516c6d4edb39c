/*
 * helper/watch_nodes.c: the watched directories of one root as nodes that know their parent, found
 * by watch descriptor and by parent and name.  A node holds no path, so that a directory moves with
 * all that is below it in one step.  Touches memory only.
 */
#include <stdlib.h>
#include <string.h>

#include "helper/watch_private.h"

bool bk_nodes_init(bk_nodes_t *nodes)
{
    memset(nodes, 0, sizeof *nodes);
    nodes->free = nodes->root = BK_NODE_NONE;
    nodes->size = 1024;
    nodes->wds = malloc(nodes->size * sizeof *nodes->wds);
    nodes->names = malloc(nodes->size * sizeof *nodes->names);
    if (nodes->wds == NULL || nodes->names == NULL)
        return false;
    memset(nodes->wds, 0xff, nodes->size * sizeof *nodes->wds);
    memset(nodes->names, 0xff, nodes->size * sizeof *nodes->names);
    return true;
}

void bk_nodes_free(bk_nodes_t *nodes)
{
    for (uint32_t i = 0; i < nodes->count; i++)
        free(nodes->list[i].name);
    free(nodes->list);
    free(nodes->wds);
    free(nodes->names);
    memset(nodes, 0, sizeof *nodes);
}

static uint32_t *wd_bucket(const bk_nodes_t *nodes, int wd)
{
    return &nodes->wds[(uint32_t)wd * 2654435761u >> 7 & (nodes->size - 1)];
}

static uint32_t *name_bucket(const bk_nodes_t *nodes, uint32_t parent, const char *name)
{
    uint32_t hash = 2166136261u ^ parent * 2654435761u;
    for (const char *p = name; *p != '\0'; p++)
        hash = (hash ^ (unsigned char)*p) * 16777619u;
    return &nodes->names[(hash ^ hash >> 15) & (nodes->size - 1)];
}

/* --- chains --- */

static void enter_place(bk_nodes_t *nodes, uint32_t at, uint32_t parent)
{
    bk_node_t *node = &nodes->list[at];
    node->parent = parent;
    node->prev = node->next = BK_NODE_NONE;
    if (parent == BK_NODE_NONE)
        return;
    uint32_t *bucket = name_bucket(nodes, parent, node->name);
    node->by_name = *bucket;
    *bucket = at;
    node->next = nodes->list[parent].child;
    if (node->next != BK_NODE_NONE)
        nodes->list[node->next].prev = at;
    nodes->list[parent].child = at;
}

static void leave_place(bk_nodes_t *nodes, uint32_t at)
{
    bk_node_t *node = &nodes->list[at];
    if (node->parent == BK_NODE_NONE)
        return;
    uint32_t *link = name_bucket(nodes, node->parent, node->name);
    while (*link != at)
        link = &nodes->list[*link].by_name;
    *link = node->by_name;
    if (node->prev != BK_NODE_NONE)
        nodes->list[node->prev].next = node->next;
    else
        nodes->list[node->parent].child = node->next;
    if (node->next != BK_NODE_NONE)
        nodes->list[node->next].prev = node->prev;
    node->parent = node->prev = node->next = BK_NODE_NONE;
}

static bool grow_buckets(bk_nodes_t *nodes)
{
    uint32_t size = 2 * nodes->size;
    uint32_t *wds = malloc(size * sizeof *wds), *names = malloc(size * sizeof *names);
    if (wds == NULL || names == NULL) {
        free(wds);
        free(names);
        return false;
    }
    free(nodes->wds);
    free(nodes->names);
    nodes->wds = wds;
    nodes->names = names;
    nodes->size = size;
    memset(wds, 0xff, size * sizeof *wds);
    memset(names, 0xff, size * sizeof *names);
    for (uint32_t i = 0; i < nodes->count; i++) {
        bk_node_t *node = &nodes->list[i];
        if (node->wd == 0)
            continue;
        uint32_t *bucket = wd_bucket(nodes, node->wd);
        node->by_wd = *bucket;
        *bucket = i;
        if (node->parent == BK_NODE_NONE)
            continue;
        bucket = name_bucket(nodes, node->parent, node->name);
        node->by_name = *bucket;
        *bucket = i;
    }
    return true;
}

static uint32_t new_place(bk_nodes_t *nodes)
{
    uint32_t at = nodes->free;
    if (at != BK_NODE_NONE) {
        nodes->free = nodes->list[at].next;
        return at;
    }
    if (nodes->count == nodes->cap) {
        uint32_t cap = nodes->cap > 0 ? 2 * nodes->cap : 256;
        if (cap > UINT32_MAX / sizeof *nodes->list)
            return BK_NODE_NONE;
        bk_node_t *more = realloc(nodes->list, cap * sizeof *more);
        if (more == NULL)
            return BK_NODE_NONE;
        nodes->list = more;
        nodes->cap = cap;
    }
    return nodes->count++;
}

/* --- the operations --- */

uint32_t bk_nodes_by_wd(const bk_nodes_t *nodes, int wd)
{
    uint32_t at = *wd_bucket(nodes, wd);
    while (at != BK_NODE_NONE && nodes->list[at].wd != wd)
        at = nodes->list[at].by_wd;
    return at;
}

uint32_t bk_nodes_by_name(const bk_nodes_t *nodes, uint32_t parent, const char *name)
{
    uint32_t at = *name_bucket(nodes, parent, name);
    while (at != BK_NODE_NONE &&
           (nodes->list[at].parent != parent || strcmp(nodes->list[at].name, name) != 0))
        at = nodes->list[at].by_name;
    return at;
}

void bk_nodes_cut(bk_nodes_t *nodes, uint32_t at)
{
    leave_place(nodes, at);
    nodes->list[at].cut = true;
}

uint32_t bk_nodes_add(bk_nodes_t *nodes, int wd, uint32_t parent, const char *name)
{
    if (nodes->live >= nodes->size && !grow_buckets(nodes))
        return BK_NODE_NONE;
    char *copy = strdup(name);
    uint32_t at = copy != NULL ? new_place(nodes) : BK_NODE_NONE;
    if (at == BK_NODE_NONE) {
        free(copy);
        return BK_NODE_NONE;
    }
    uint32_t other = parent != BK_NODE_NONE ? bk_nodes_by_name(nodes, parent, name) : BK_NODE_NONE;
    if (other != BK_NODE_NONE)
        bk_nodes_cut(nodes, other);
    bk_node_t *node = &nodes->list[at];
    *node = (bk_node_t){.wd = wd, .child = BK_NODE_NONE, .name = copy};
    uint32_t *bucket = wd_bucket(nodes, wd);
    node->by_wd = *bucket;
    *bucket = at;
    enter_place(nodes, at, parent);
    nodes->live++;
    return at;
}

/* Is node above at, or at itself? */
static bool is_above(const bk_nodes_t *nodes, uint32_t node, uint32_t at)
{
    while (at != BK_NODE_NONE && at != node)
        at = nodes->list[at].parent;
    return at == node;
}

bool bk_nodes_move(bk_nodes_t *nodes, uint32_t at, uint32_t parent, const char *name)
{
    char *copy = strdup(name);
    if (copy == NULL)
        return false;
    /* What was seen below it is out of date when it shall be below that. */
    if (is_above(nodes, at, parent))
        bk_nodes_cut(nodes, parent);
    leave_place(nodes, at);
    uint32_t other = bk_nodes_by_name(nodes, parent, name);
    if (other != BK_NODE_NONE)
        bk_nodes_cut(nodes, other);
    free(nodes->list[at].name);
    nodes->list[at].name = copy;
    nodes->list[at].cut = false;
    enter_place(nodes, at, parent);
    return true;
}

void bk_nodes_remove(bk_nodes_t *nodes, uint32_t at)
{
    bk_node_t *node = &nodes->list[at];
    while (node->child != BK_NODE_NONE)
        bk_nodes_cut(nodes, node->child);
    leave_place(nodes, at);
    uint32_t *link = wd_bucket(nodes, node->wd);
    while (*link != at)
        link = &nodes->list[*link].by_wd;
    *link = node->by_wd;
    free(node->name);
    *node = (bk_node_t){.next = nodes->free};
    nodes->free = at;
    nodes->live--;
    if (nodes->root == at)
        nodes->root = BK_NODE_NONE;
}

bool bk_nodes_path(const bk_nodes_t *nodes, uint32_t at, char out[BK_WIRE_PATH + 1])
{
    size_t start = BK_WIRE_PATH;
    out[start] = '\0';
    for (; at != nodes->root; at = nodes->list[at].parent) {
        const bk_node_t *node = &nodes->list[at];
        size_t len = strlen(node->name), slash = out[start] != '\0';
        if (node->parent == BK_NODE_NONE || len + slash > start)
            return false;
        if (slash)
            out[--start] = '/';
        start -= len;
        memcpy(out + start, node->name, len);
    }
    memmove(out, out + start, BK_WIRE_PATH + 1 - start);
    return true;
}
