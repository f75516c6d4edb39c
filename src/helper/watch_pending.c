/*
 * helper/watch_pending.c: what is still to be told of one root.  Touches memory only.
 *
 * Items are kept in the order in which they came; a hash finds those not yet told, so that a
 * directory that changes a thousand times is told once.
 */
#include <stdlib.h>
#include <string.h>

#include "helper/watch_private.h"

#define PLACES (4 * BK_PENDING_MAX)

bool bk_pending_init(bk_pending_t *pending)
{
    memset(pending, 0, sizeof *pending);
    pending->items = malloc(BK_PENDING_MAX * sizeof *pending->items);
    pending->text = malloc(BK_PENDING_BYTES);
    pending->table = calloc(PLACES, sizeof *pending->table);
    if (pending->items != NULL && pending->text != NULL && pending->table != NULL)
        return true;
    bk_pending_free(pending);
    return false;
}

void bk_pending_free(bk_pending_t *pending)
{
    free(pending->items);
    free(pending->text);
    free(pending->table);
    memset(pending, 0, sizeof *pending);
}

bool bk_pending_any(const bk_pending_t *pending)
{
    return pending->lost || pending->watched || pending->data || pending->first < pending->count;
}

static void clear(bk_pending_t *pending)
{
    if (pending->count > 0)
        memset(pending->table, 0, PLACES * sizeof *pending->table);
    pending->first = pending->count = pending->used = 0;
}

static uint32_t hash_of(const char *path, size_t len)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)path[i]) * 16777619u;
    return hash ^ hash >> 15;
}

/* The place of an item of that path and sort (limits are told beside changes), or a free one. */
static size_t find_place(const bk_pending_t *pending, const char *path, size_t len, bool limit)
{
    size_t at = hash_of(path, len) & (PLACES - 1);
    for (; pending->table[at] != 0; at = (at + 1) & (PLACES - 1)) {
        const bk_pending_item_t *item = &pending->items[pending->table[at] - 1];
        if (item->len == len && bk_pending_is_limit((bk_wire_kind_t)item->kind) == limit &&
            memcmp(pending->text + item->offset, path, len) == 0)
            break;
    }
    return at;
}

void bk_pending_add(bk_pending_t *pending, const char *path, bk_wire_kind_t kind, int error)
{
    size_t len = strlen(path);
    size_t at = find_place(pending, path, len, bk_pending_is_limit(kind));
    uint32_t there = pending->table[at];
    if (there != 0 && there - 1 >= pending->first) {
        if (kind == BK_WIRE_TREE)
            pending->items[there - 1].kind = kind;
        return;
    }
    if (pending->count == BK_PENDING_MAX || pending->used + len + 1 > BK_PENDING_BYTES) {
        bool limits = bk_pending_is_limit(kind);
        for (size_t i = pending->first; i < pending->count; i++) {
            limits = limits || bk_pending_is_limit((bk_wire_kind_t)pending->items[i].kind);
            error = error != 0 ? error : pending->items[i].error;
        }
        clear(pending);
        bk_pending_add(pending, "", BK_WIRE_TREE, 0);
        if (limits)
            bk_pending_add(pending, "", BK_WIRE_LIMIT, error);
        return;
    }
    bk_pending_item_t *item = &pending->items[pending->count++];
    *item = (bk_pending_item_t){(uint32_t)pending->used, (uint16_t)len, (uint16_t)kind, error};
    memcpy(pending->text + pending->used, path, len + 1);
    pending->used += len + 1;
    pending->table[at] = (uint32_t)pending->count;
}

void bk_pending_lose(bk_pending_t *pending)
{
    clear(pending);
    pending->watched = false;
    pending->lost = true;
}

static bool put_path(unsigned char *body, size_t *at, size_t size, uint32_t root,
                     bk_wire_kind_t kind, int error, const char *path, size_t len)
{
    bk_wire_event_t event = {
        .root = root, .kind = (uint16_t)kind, .len = (uint16_t)len, .error = error};
    if (*at + sizeof event + len > size)
        return false;
    memcpy(body + *at, &event, sizeof event);
    memcpy(body + *at + sizeof event, path, len);
    *at += sizeof event + len;
    return true;
}

static bool put(unsigned char *body, size_t *at, size_t size, uint32_t root, bk_wire_kind_t kind)
{
    return put_path(body, at, size, root, kind, 0, "", 0);
}

size_t bk_pending_write(const bk_pending_t *pending, uint32_t root, unsigned char *body, size_t at,
                        size_t size, bk_pending_said_t *said)
{
    memset(said, 0, sizeof *said);
    if (pending->data && !(said->data = put(body, &at, size, root, BK_WIRE_DATA)))
        return at;
    if (pending->lost && !(said->lost = put(body, &at, size, root, BK_WIRE_LOST)))
        return at;
    for (size_t i = pending->first; i < pending->count; i++) {
        const bk_pending_item_t *item = &pending->items[i];
        if (!put_path(body, &at, size, root, (bk_wire_kind_t)item->kind, item->error,
                      pending->text + item->offset, item->len))
            return at;
        said->items++;
    }
    said->watched = pending->watched && put(body, &at, size, root, BK_WIRE_WATCHED);
    return at;
}

void bk_pending_told(bk_pending_t *pending, const bk_pending_said_t *said)
{
    pending->first += said->items;
    pending->lost = pending->lost && !said->lost;
    pending->watched = pending->watched && !said->watched;
    pending->data = pending->data && !said->data;
    if (pending->first == pending->count)
        clear(pending);
}
