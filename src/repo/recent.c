/*
 * repo/recent.c: one open-addressing table under one lock; held for a few look-ups only.
 */
#include "repo/recent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "repo/format.h"

#define FIRST_CAP 1024u
#define STEP      (100 * BK_MS) /* how often a lane that waits looks at ctl */

typedef enum { FREE, GONE, COMING, OPEN, CLOSED } state_t;

typedef struct {
    bk_pack_entry_t entry; /* only the id counts while COMING */
    bk_open_pack_t *open;  /* OPEN */
    uint32_t pack;         /* CLOSED: place in packs */
    uint8_t state;
} chunk_t;

typedef struct {
    bk_id_t name;
    uint32_t size;
    bk_kind_t kind;
    bool indexed;
} closed_t;

struct bk_recent_s {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a chunk came or was dropped, or a reader left a pack */
    chunk_t *chunks;
    size_t cap, used; /* used counts GONE */
    closed_t *packs;
    size_t pack_count, pack_cap;
    unsigned readers, waiters;
    uint64_t generation;
};

bk_recent_t *bk_recent_new(void)
{
    bk_recent_t *recent = calloc(1, sizeof *recent);
    if (recent == NULL)
        return NULL;
    pthread_mutex_init(&recent->lock, NULL);
    bk_cond_init(&recent->changed);
    return recent;
}

void bk_recent_free(bk_recent_t *recent)
{
    if (recent == NULL)
        return;
    pthread_mutex_destroy(&recent->lock);
    pthread_cond_destroy(&recent->changed);
    free(recent->chunks);
    free(recent->packs);
    free(recent);
}

/* Lock held from here on down to the public functions. */

static chunk_t *find(const bk_recent_t *recent, const bk_id_t *id)
{
    if (recent->cap == 0)
        return NULL;
    size_t at = (size_t)bk_get_u64(id->b + 8) & (recent->cap - 1);
    while (recent->chunks[at].state != FREE) {
        chunk_t *chunk = &recent->chunks[at];
        if (chunk->state != GONE && bk_id_equal(&chunk->entry.id, id))
            return chunk;
        at = (at + 1) & (recent->cap - 1);
    }
    return NULL;
}

static void insert(chunk_t *chunks, size_t cap, const chunk_t *chunk)
{
    size_t at = (size_t)bk_get_u64(chunk->entry.id.b + 8) & (cap - 1);
    while (chunks[at].state != FREE)
        at = (at + 1) & (cap - 1);
    chunks[at] = *chunk;
}

/* A new table without GONE and without what is indexed, with room for one more. */
static bool rebuild(bk_recent_t *recent)
{
    size_t kept = 0, cap = FIRST_CAP;
    for (size_t i = 0; i < recent->cap; i++)
        kept += recent->chunks[i].state > GONE;
    while (3 * cap < 4 * (kept + 1) + cap)
        cap *= 2;
    chunk_t *chunks = calloc(cap, sizeof *chunks);
    if (chunks == NULL)
        return false;
    recent->used = 0;
    for (size_t i = 0; i < recent->cap; i++) {
        const chunk_t *chunk = &recent->chunks[i];
        if (chunk->state <= GONE || (chunk->state == CLOSED && recent->packs[chunk->pack].indexed))
            continue;
        insert(chunks, cap, chunk);
        recent->used++;
    }
    free(recent->chunks);
    recent->chunks = chunks;
    recent->cap = cap;
    return true;
}

static void wake(bk_recent_t *recent)
{
    if (recent->waiters > 0)
        pthread_cond_broadcast(&recent->changed);
}

uint64_t bk_recent_generation(bk_recent_t *recent)
{
    pthread_mutex_lock(&recent->lock);
    uint64_t generation = recent->generation;
    pthread_mutex_unlock(&recent->lock);
    return generation;
}

bk_rc_t bk_recent_claim(bk_recent_t *recent, const bk_id_t *id, uint64_t generation, bool *mine,
                        bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *mine = false;
    pthread_mutex_lock(&recent->lock);
    if (recent->generation != generation) {
        rc = BK_CONFLICT;
    } else if (find(recent, id) == NULL) {
        if (4 * (recent->used + 1) > 3 * recent->cap && !rebuild(recent)) {
            rc = bk_err_set(err, BK_NO_MEMORY, "store a chunk: out of memory");
        } else {
            chunk_t chunk = {.entry.id = *id, .state = COMING};
            insert(recent->chunks, recent->cap, &chunk);
            recent->used++;
            *mine = true;
        }
    }
    pthread_mutex_unlock(&recent->lock);
    return rc;
}

void bk_recent_drop(bk_recent_t *recent, const bk_id_t *id)
{
    pthread_mutex_lock(&recent->lock);
    chunk_t *chunk = find(recent, id);
    if (chunk != NULL)
        chunk->state = GONE;
    wake(recent);
    pthread_mutex_unlock(&recent->lock);
}

void bk_recent_place(bk_recent_t *recent, const bk_pack_entry_t *entry, bk_open_pack_t *open)
{
    pthread_mutex_lock(&recent->lock);
    chunk_t *chunk = find(recent, &entry->id);
    if (chunk != NULL) {
        chunk->entry = *entry;
        chunk->open = open;
        chunk->state = OPEN;
    }
    wake(recent);
    pthread_mutex_unlock(&recent->lock);
}

bk_rc_t bk_recent_close(bk_recent_t *recent, const bk_pack_t *closed, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&recent->lock);
    if (recent->pack_count == recent->pack_cap) {
        size_t cap = recent->pack_cap > 0 ? 2 * recent->pack_cap : 64;
        closed_t *more = realloc(recent->packs, cap * sizeof *more);
        if (more == NULL) {
            rc = bk_err_set(err, BK_NO_MEMORY, "close a pack: out of memory");
        } else {
            recent->packs = more;
            recent->pack_cap = cap;
        }
    }
    if (rc == BK_OK) {
        uint32_t number = (uint32_t)recent->pack_count++;
        recent->packs[number] = (closed_t){
            .name = closed->name, .size = (uint32_t)closed->bytes.len, .kind = closed->kind};
        for (size_t i = 0; i < closed->count; i++) {
            chunk_t *chunk = find(recent, &closed->entries[i].id);
            if (chunk == NULL)
                continue;
            chunk->entry = closed->entries[i];
            chunk->open = NULL;
            chunk->pack = number;
            chunk->state = CLOSED;
        }
    }
    pthread_mutex_unlock(&recent->lock);
    return rc;
}

/* Numbers of packs change: chunks follow. */
static void compact_packs(bk_recent_t *recent)
{
    uint32_t *moved = calloc(recent->pack_count + 1, sizeof *moved);
    size_t kept = 0;
    if (moved == NULL)
        return; /* the list stays longer than needed, nothing else */
    for (size_t i = 0; i < recent->pack_count; i++) {
        moved[i] = (uint32_t)kept;
        if (!recent->packs[i].indexed)
            recent->packs[kept++] = recent->packs[i];
    }
    recent->pack_count = kept;
    for (size_t i = 0; i < recent->cap; i++)
        if (recent->chunks[i].state == CLOSED)
            recent->chunks[i].pack = moved[recent->chunks[i].pack];
    free(moved);
}

void bk_recent_indexed(bk_recent_t *recent, bk_pack_t *const *packs, size_t count)
{
    pthread_mutex_lock(&recent->lock);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < recent->pack_count; j++)
            if (bk_id_equal(&recent->packs[j].name, &packs[i]->name))
                recent->packs[j].indexed = true;
    recent->generation++;
    if (rebuild(recent))
        compact_packs(recent);
    pthread_mutex_unlock(&recent->lock);
}

void bk_recent_clear(bk_recent_t *recent)
{
    pthread_mutex_lock(&recent->lock);
    free(recent->chunks);
    recent->chunks = NULL;
    recent->cap = recent->used = recent->pack_count = 0;
    recent->generation++;
    recent->waiters++;
    pthread_cond_broadcast(&recent->changed);
    while (recent->readers > 0)
        pthread_cond_wait(&recent->changed, &recent->lock);
    recent->waiters--;
    pthread_mutex_unlock(&recent->lock);
}

bool bk_recent_has(bk_recent_t *recent, const bk_id_t *id)
{
    pthread_mutex_lock(&recent->lock);
    bool has = find(recent, id) != NULL;
    pthread_mutex_unlock(&recent->lock);
    return has;
}

/* Another lane is about to place the chunk: a moment, unless the job stops. */
static bk_rc_t wait_for_change(bk_recent_t *recent, bk_ctl_t *ctl, bk_err_t *err)
{
    recent->waiters++;
    (void)bk_cond_wait_until(&recent->changed, &recent->lock, bk_mono() + STEP);
    recent->waiters--;
    return bk_ctl_check(ctl, err);
}

/* The pack is not changed while its lock is held; the chunk may have left it before. */
static bk_rc_t read_open(bk_recent_t *recent, const bk_id_t *id, bk_open_pack_t *open,
                         bk_buf_t *out, bk_err_t *err)
{
    bk_pack_entry_t entry = {0};
    pthread_mutex_lock(&open->lock);
    pthread_mutex_lock(&recent->lock);
    const chunk_t *chunk = find(recent, id);
    bool here = chunk != NULL && chunk->state == OPEN && chunk->open == open;
    if (here)
        entry = chunk->entry;
    pthread_mutex_unlock(&recent->lock);
    bk_rc_t rc = BK_CONFLICT;
    if (here) {
        uint8_t *room = bk_buf_room(out, entry.raw);
        rc = room == NULL
                 ? bk_err_set(err, BK_NO_MEMORY, "read a chunk: out of memory")
                 : bk_decompress((bk_codec_t)entry.codec, open->pack.bytes.data + entry.offset,
                                 entry.stored - open->pack.overhead, room, entry.raw, err);
        if (rc == BK_OK)
            out->len += entry.raw;
    }
    pthread_mutex_unlock(&open->lock);
    return rc;
}

bk_rc_t bk_recent_read(bk_recent_t *recent, const bk_id_t *id, bk_buf_t *out, bk_location_t *where,
                       bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc;
    pthread_mutex_lock(&recent->lock);
    do {
        const chunk_t *chunk = find(recent, id);
        rc = BK_CONFLICT;
        if (chunk == NULL) {
            rc = BK_NOT_FOUND;
        } else if (chunk->state == COMING) {
            bk_rc_t stop = wait_for_change(recent, ctl, err);
            if (stop != BK_OK)
                rc = stop;
        } else if (chunk->state == CLOSED) {
            const closed_t *pack = &recent->packs[chunk->pack];
            *where = (bk_location_t){.pack = pack->name,
                                     .pack_size = pack->size,
                                     .kind = pack->kind,
                                     .entry = chunk->entry};
            rc = BK_EXISTS;
        } else {
            bk_open_pack_t *open = chunk->open;
            open->readers++;
            recent->readers++;
            pthread_mutex_unlock(&recent->lock);
            rc = read_open(recent, id, open, out, err);
            pthread_mutex_lock(&recent->lock);
            open->readers--;
            recent->readers--;
            wake(recent);
        }
    } while (rc == BK_CONFLICT);
    pthread_mutex_unlock(&recent->lock);
    return rc;
}
