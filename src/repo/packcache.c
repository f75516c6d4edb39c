/*
 * repo/packcache.c: a direct-mapped table of keys and a small list of packs, the least recently
 * used leaving first.
 */
#include "repo/packcache.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define KEYS      512u
#define PACKS     64u
#define PACK_MAX  (8u << 20)    /* longer ones are read in parts */
#define BYTES_MAX (16u << 20)   /* of all packs together */
#define STEP      (100 * BK_MS) /* how often a thread that waits looks at ctl */

typedef struct {
    bool valid;
    bk_id_t name;
    bk_object_key_t key;
} pack_key_t;

typedef enum { FREE, LOADING, READY } state_t;

typedef struct {
    bk_id_t name;
    state_t state;
    uint8_t *bytes;
    size_t len;
    uint64_t used; /* clock of the last use */
} pack_t;

struct bk_packcache_s {
    pthread_mutex_t lock;
    pthread_cond_t loaded;
    pack_key_t keys[KEYS];
    pack_t packs[PACKS];
    size_t bytes;
    uint64_t clock;
};

bk_packcache_t *bk_packcache_new(void)
{
    bk_packcache_t *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return NULL;
    pthread_mutex_init(&cache->lock, NULL);
    bk_cond_init(&cache->loaded);
    return cache;
}

void bk_packcache_free(bk_packcache_t *cache)
{
    if (cache == NULL)
        return;
    for (size_t i = 0; i < PACKS; i++)
        free(cache->packs[i].bytes);
    explicit_bzero(cache->keys, sizeof cache->keys);
    pthread_mutex_destroy(&cache->lock);
    pthread_cond_destroy(&cache->loaded);
    free(cache);
}

static pack_key_t *key_place(bk_packcache_t *cache, const bk_id_t *pack)
{
    return &cache->keys[(pack->b[0] | (size_t)pack->b[1] << 8) % KEYS];
}

bool bk_packcache_find_key(bk_packcache_t *cache, const bk_id_t *pack, bk_object_key_t *key)
{
    pack_key_t *place = key_place(cache, pack);
    pthread_mutex_lock(&cache->lock);
    bool known = place->valid && bk_id_equal(&place->name, pack);
    if (known)
        *key = place->key;
    pthread_mutex_unlock(&cache->lock);
    return known;
}

void bk_packcache_add_key(bk_packcache_t *cache, const bk_id_t *pack, const bk_object_key_t *key)
{
    pack_key_t *place = key_place(cache, pack);
    pthread_mutex_lock(&cache->lock);
    *place = (pack_key_t){.valid = true, .name = *pack, .key = *key};
    pthread_mutex_unlock(&cache->lock);
}

/* Lock held from here on down to the public function. */

static void drop(bk_packcache_t *cache, pack_t *pack)
{
    free(pack->bytes);
    cache->bytes -= pack->len;
    memset(pack, 0, sizeof *pack);
}

static pack_t *find(bk_packcache_t *cache, const bk_id_t *name)
{
    for (size_t i = 0; i < PACKS; i++)
        if (cache->packs[i].state != FREE && bk_id_equal(&cache->packs[i].name, name))
            return &cache->packs[i];
    return NULL;
}

static pack_t *oldest(bk_packcache_t *cache)
{
    pack_t *oldest = NULL;
    for (size_t i = 0; i < PACKS; i++) {
        pack_t *pack = &cache->packs[i];
        if (pack->state == READY && (oldest == NULL || pack->used < oldest->used))
            oldest = pack;
    }
    return oldest;
}

/* A place with room for len bytes more, or NULL when everything is being loaded. */
static pack_t *make_room(bk_packcache_t *cache, size_t len)
{
    pack_t *old;
    while (cache->bytes + len > BYTES_MAX && (old = oldest(cache)) != NULL)
        drop(cache, old);
    if (cache->bytes + len > BYTES_MAX)
        return NULL;
    for (size_t i = 0; i < PACKS; i++)
        if (cache->packs[i].state == FREE)
            return &cache->packs[i];
    if ((old = oldest(cache)) != NULL)
        drop(cache, old);
    return old;
}

static bk_rc_t wait_loaded(bk_packcache_t *cache, bk_ctl_t *ctl, bk_err_t *err)
{
    (void)bk_cond_wait_until(&cache->loaded, &cache->lock, bk_mono() + STEP);
    return bk_ctl_check(ctl, err);
}

/* The lock is given up while the storage is read; the place is LOADING and stays ours. */
static bk_rc_t load(bk_packcache_t *cache, pack_t *pack, const bk_objects_t *objects,
                    const bk_location_t *where, bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    size_t got = 0, len = where->pack_size;
    *pack = (pack_t){.name = where->pack, .state = LOADING, .len = len};
    cache->bytes += len;
    pthread_mutex_unlock(&cache->lock);

    uint8_t *bytes = malloc(len);
    bk_rc_t rc =
        bytes != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "read metadata: out of memory");
    bk_pack_object_name(name, &where->pack, where->kind);
    if (rc == BK_OK)
        rc = bk_objects_get(objects, name, 0, len, bytes, &got, ctl, err);
    if (rc == BK_OK && got != len)
        rc = bk_err_set(err, BK_CORRUPT, "cut off");

    pthread_mutex_lock(&cache->lock);
    pack->bytes = bytes;
    pack->state = READY;
    if (rc != BK_OK)
        drop(cache, pack);
    pthread_cond_broadcast(&cache->loaded);
    return rc;
}

static bk_rc_t read_part(const bk_objects_t *objects, const bk_location_t *where, uint64_t offset,
                         size_t len, uint8_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    size_t got = 0;
    bk_pack_object_name(name, &where->pack, where->kind);
    bk_rc_t rc = bk_objects_get(objects, name, offset, len, out, &got, ctl, err);
    if (rc == BK_OK && got != len)
        rc = bk_err_set(err, BK_CORRUPT, "cut off");
    return rc;
}

bk_rc_t bk_packcache_frame(bk_packcache_t *cache, const bk_objects_t *objects,
                           const bk_location_t *where, uint8_t header[BK_OBJECT_HEADER],
                           uint8_t *frame, bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_pack_entry_t *entry = &where->entry;
    bk_rc_t rc = BK_OK;
    pack_t *pack = NULL;
    if (where->pack_size < BK_OBJECT_HEADER ||
        (uint64_t)entry->offset + entry->stored > where->pack_size)
        return bk_err_set(err, BK_CORRUPT, "the index points past the end of the pack");
    pthread_mutex_lock(&cache->lock);
    while (where->pack_size <= PACK_MAX) {
        pack = find(cache, &where->pack);
        if (pack == NULL) {
            pack = make_room(cache, where->pack_size);
            if (pack != NULL)
                rc = load(cache, pack, objects, where, ctl, err);
            break;
        }
        if (pack->state == READY)
            break;
        if ((rc = wait_loaded(cache, ctl, err)) != BK_OK)
            break;
    }
    if (rc == BK_OK && pack != NULL) {
        if ((uint64_t)entry->offset + entry->stored > pack->len) {
            rc = bk_err_set(err, BK_CORRUPT, "two index entries differ about the pack's size");
        } else {
            pack->used = ++cache->clock;
            memcpy(header, pack->bytes, BK_OBJECT_HEADER);
            memcpy(frame, pack->bytes + entry->offset, entry->stored);
        }
    }
    pthread_mutex_unlock(&cache->lock);
    if (rc == BK_OK && pack == NULL) {
        rc = read_part(objects, where, 0, BK_OBJECT_HEADER, header, ctl, err);
        if (rc == BK_OK)
            rc = read_part(objects, where, entry->offset, entry->stored, frame, ctl, err);
    }
    return rc;
}
