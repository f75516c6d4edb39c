/*
 * repo/index.c: segments from the storage, kept in the local cache as they are searched, and
 * mapped.
 */
#include "repo/index.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"

#define MAGIC        "NGXBKIDX"
#define VERSION      1u
#define HEADER_BYTES 24u
#define FANOUT_BYTES 1024u
#define PACK_BYTES   48u /* name 32 | size 4 | kind 2 | reserved 2 | created 8 */
#define ENTRY_BYTES  48u /* id 32 | pack 4 | offset 4 | stored 4 | raw 3 | type and codec 1 */
#define SEGMENT_MAX  (1u << 30)

typedef struct {
    char *name; /* object name */
    const uint8_t *map;
    size_t len;
    uint32_t packs, entries, superseded;
    bool hidden; /* replaced by another segment that is here */
    bool seen;   /* mark of the current refresh */
    bool made;   /* in memory only, from packs whose own segment is damaged */
} segment_t;

/* A segment on the storage that cannot be used: not fetched again as long as it is there. */
typedef struct {
    char *name;
    bool seen;
} damaged_t;

struct bk_index_s {
    bk_objects_t objects;
    const bk_keyring_t *ring;
    uint8_t uuid[BK_UUID_SIZE];
    char *cache_dir;
    pthread_rwlock_t lock; /* look-ups read, refresh writes */
    segment_t *segments;
    size_t count, cap;
    damaged_t *damaged;
    size_t damaged_count;
};

static const uint8_t *packs_of(const segment_t *s)
{
    return s->map + HEADER_BYTES + FANOUT_BYTES;
}

static const uint8_t *entries_of(const segment_t *s)
{
    return packs_of(s) + (size_t)s->packs * PACK_BYTES;
}

static uint32_t get_u24(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16;
}

/* The frame of the structure: everything but the entries themselves. */
static bk_rc_t check_shape(const uint8_t *bytes, size_t len, segment_t *s, bk_err_t *err)
{
    if (len < HEADER_BYTES + FANOUT_BYTES + 8 || len > SEGMENT_MAX || memcmp(bytes, MAGIC, 8) != 0)
        return bk_err_set(err, BK_CORRUPT, "not an index segment, or cut off");
    if (bk_get_u32(bytes + 8) != VERSION)
        return bk_err_set(err, BK_UNSUPPORTED, "the index segment is of a newer version");
    s->packs = bk_get_u32(bytes + 12);
    s->entries = bk_get_u32(bytes + 16);
    s->superseded = bk_get_u32(bytes + 20);
    uint64_t fixed = HEADER_BYTES + FANOUT_BYTES + (uint64_t)s->packs * PACK_BYTES +
                     (uint64_t)s->entries * ENTRY_BYTES + 8;
    /* Each superseded name has a byte at least: nobody counts to four billion for a wrong number.
     */
    if (fixed + s->superseded > len)
        return bk_err_set(err, BK_CORRUPT, "the index segment is cut off");
    s->map = bytes;
    s->len = len;
    return BK_OK;
}

static bk_rc_t check_entries(const segment_t *s, bk_err_t *err)
{
    const uint8_t *fan = s->map + HEADER_BYTES, *entry = entries_of(s);
    uint32_t counts[256] = {0}, sum = 0;
    for (uint32_t i = 0; i < s->entries; i++, entry += ENTRY_BYTES) {
        uint32_t pack = bk_get_u32(entry + 32), stored = bk_get_u32(entry + 40);
        uint8_t type = entry[47] >> 4, codec = entry[47] & 15;
        if (pack >= s->packs || (i > 0 && memcmp(entry - ENTRY_BYTES, entry, BK_ID_SIZE) >= 0) ||
            type < BK_TYPE_FILE || type > BK_TYPE_BLOB || codec > BK_CODEC_GZIP ||
            get_u24(entry + 44) > BK_CHUNK_MAX)
            return bk_err_set(err, BK_CORRUPT, "entry %u of the index segment is not valid", i);
        uint32_t size = bk_get_u32(packs_of(s) + (size_t)pack * PACK_BYTES + 32);
        if ((uint64_t)bk_get_u32(entry + 36) + stored > size || size > BK_PACK_MAX)
            return bk_err_set(err, BK_CORRUPT,
                              "entry %u of the index segment lies outside its pack", i);
        counts[entry[0]]++;
    }
    for (size_t i = 0; i < 256; i++) {
        sum += counts[i];
        if (bk_get_u32(fan + 4 * i) != sum)
            return bk_err_set(err, BK_CORRUPT, "the fan-out of the index segment is not valid");
    }
    bk_cur_t cur = bk_cur(entry, (size_t)(s->map + s->len - 8 - entry));
    for (uint32_t i = 0; i < s->superseded; i++)
        bk_cur_bytes(&cur, bk_cur_u8(&cur));
    if (!bk_cur_ok(&cur) || bk_cur_left(&cur) != 0)
        return bk_err_set(err, BK_CORRUPT, "the index segment has a wrong length");
    return BK_OK;
}

bk_rc_t bk_index_check(const void *segment, size_t len, bk_err_t *err)
{
    segment_t s = {0};
    bk_rc_t rc = check_shape(segment, len, &s, err);
    if (rc == BK_OK && XXH64(segment, len - 8, 0) != bk_get_u64((const uint8_t *)segment + len - 8))
        rc = bk_err_set(err, BK_CORRUPT, "the index segment's checksum does not fit");
    return rc == BK_OK ? check_entries(&s, err) : rc;
}

typedef struct {
    const bk_pack_entry_t *entry;
    uint32_t pack;
} sort_t;

static int by_id(const void *a, const void *b)
{
    return bk_id_compare(&((const sort_t *)a)->entry->id, &((const sort_t *)b)->entry->id);
}

/* Same chunk in two packs of one segment: either will do, one is kept. */
static size_t drop_equal(sort_t *list, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || bk_id_compare(&list[kept - 1].entry->id, &list[i].entry->id) != 0)
            list[kept++] = list[i];
    return kept;
}

bk_rc_t bk_index_encode(const bk_pack_t *const *packs, size_t count, int64_t created, bk_buf_t *out,
                        bk_err_t *err)
{
    size_t total = 0, n = 0;
    uint32_t counts[256] = {0}, sum = 0;
    for (size_t i = 0; i < count; i++)
        total += packs[i]->count;
    sort_t *list = calloc(total + 1, sizeof *list);
    if (list == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "write index segment: out of memory");
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < packs[i]->count; j++)
            list[n++] = (sort_t){.entry = &packs[i]->entries[j], .pack = (uint32_t)i};
    qsort(list, total, sizeof *list, by_id);
    total = drop_equal(list, total);
    size_t start = out->len;
    bk_buf_add(out, MAGIC, 8);
    bk_buf_u32(out, VERSION);
    bk_buf_u32(out, (uint32_t)count);
    bk_buf_u32(out, (uint32_t)total);
    bk_buf_u32(out, 0);
    for (size_t i = 0; i < total; i++)
        counts[list[i].entry->id.b[0]]++;
    for (size_t i = 0; i < 256; i++)
        bk_buf_u32(out, sum += counts[i]);
    for (size_t i = 0; i < count; i++) {
        bk_buf_add(out, packs[i]->name.b, BK_ID_SIZE);
        bk_buf_u32(out, (uint32_t)packs[i]->bytes.len);
        bk_buf_u16(out, (uint16_t)packs[i]->kind);
        bk_buf_u16(out, 0);
        bk_buf_i64(out, created / BK_SEC);
    }
    for (size_t i = 0; i < total; i++) {
        const bk_pack_entry_t *entry = list[i].entry;
        bk_buf_add(out, entry->id.b, BK_ID_SIZE);
        bk_buf_u32(out, list[i].pack);
        bk_buf_u32(out, entry->offset);
        bk_buf_u32(out, entry->stored);
        bk_buf_u16(out, (uint16_t)entry->raw);
        bk_buf_u8(out, (uint8_t)(entry->raw >> 16));
        bk_buf_u8(out, (uint8_t)(entry->type << 4 | entry->codec));
    }
    free(list);
    if (bk_buf_ok(out))
        bk_buf_u64(out, XXH64(out->data + start, out->len - start, 0));
    return bk_buf_ok(out) ? BK_OK
                          : bk_err_set(err, BK_NO_MEMORY, "write index segment: out of memory");
}

static void close_segment(segment_t *s)
{
    if (s->map != NULL && s->made)
        free((void *)(uintptr_t)s->map);
    else if (s->map != NULL)
        munmap((void *)(uintptr_t)s->map, s->len);
    free(s->name);
    memset(s, 0, sizeof *s);
}

static void cache_path(const bk_index_t *index, const char *name, char *out, size_t size)
{
    bk_fmt(out, size, "%s/%s", index->cache_dir, strrchr(name, '/') + 1);
}

static bk_rc_t map_file(const char *path, segment_t *s, bk_err_t *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return bk_err_sys(err, errno, "open index cache %s", path);
    void *map = MAP_FAILED;
    if (fstat(fd, &st) == 0 && st.st_size > 0)
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return bk_err_set(err, BK_CORRUPT, "index cache %s is not usable", path);
    bk_rc_t rc = check_shape(map, (size_t)st.st_size, s, err);
    /* A cache file is written whole or not at all, but disks rot: one fast pass at open. */
    if (rc == BK_OK && XXH64(map, (size_t)st.st_size - 8, 0) != bk_get_u64(s->map + s->len - 8))
        rc = bk_err_set(err, BK_CORRUPT, "index cache %s is damaged", path);
    if (rc != BK_OK) {
        munmap(map, (size_t)st.st_size);
        s->map = NULL;
    }
    return rc;
}

/* Fetch, check and cache one segment. */
static bk_rc_t download(bk_index_t *index, const char *name, const char *path, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    bk_buf_t object, plain;
    bk_id_t digest, wanted;
    bk_buf_init(&object, SEGMENT_MAX);
    bk_buf_init(&plain, SEGMENT_MAX);
    bk_rc_t rc = bk_objects_get_all(&index->objects, name, &object, ctl, err);
    if (rc == BK_OK) {
        bk_sha256(&digest, object.data, object.len);
        if (!bk_object_name_id(name, &wanted) || !bk_id_equal(&digest, &wanted))
            rc = bk_err_set(err, BK_CORRUPT, "%s: its SHA-256 differs from its name", name);
    }
    if (rc == BK_OK)
        rc = bk_object_unwrap(index->ring, index->uuid, BK_KIND_INDEX, object.data, object.len,
                              &plain, err);
    if (rc == BK_OK)
        rc = bk_index_check(plain.data, plain.len, err);
    if (rc == BK_OK)
        rc = bk_publish_bytes(AT_FDCWD, path, 0600, plain.data, plain.len, false, err);
    bk_buf_free(&object);
    bk_buf_free(&plain);
    return rc;
}

/* Room for one more; caller holds the write lock, also below. */
static bk_rc_t grow(bk_index_t *index, bk_err_t *err)
{
    if (index->count < index->cap)
        return BK_OK;
    size_t cap = index->cap > 0 ? 2 * index->cap : 16;
    segment_t *more = realloc(index->segments, cap * sizeof *more);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    index->segments = more;
    index->cap = cap;
    return BK_OK;
}

static bk_rc_t add_segment(bk_index_t *index, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    char path[4096];
    segment_t s = {0};
    bk_rc_t room = grow(index, err);
    if (room != BK_OK)
        return room;
    cache_path(index, name, path, sizeof path);
    bk_rc_t rc = map_file(path, &s, err);
    if (rc == BK_NOT_FOUND || rc == BK_CORRUPT) {
        rc = download(index, name, path, ctl, err);
        if (rc == BK_OK)
            rc = map_file(path, &s, err);
    }
    if (rc == BK_OK && (s.name = bk_strdup(name)) == NULL) {
        close_segment(&s);
        rc = bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    }
    if (rc != BK_OK)
        return rc;
    s.seen = true;
    index->segments[index->count++] = s;
    return BK_OK;
}

static segment_t *find_segment(bk_index_t *index, const char *name, size_t len)
{
    for (size_t i = 0; i < index->count; i++)
        if (strlen(index->segments[i].name) == len &&
            memcmp(index->segments[i].name, name, len) == 0)
            return &index->segments[i];
    return NULL;
}

/* A segment is dropped only when the one that replaces it is here and verified. */
static void hide_superseded(bk_index_t *index)
{
    for (size_t i = 0; i < index->count; i++)
        index->segments[i].hidden = false;
    for (size_t i = 0; i < index->count; i++) {
        const segment_t *s = &index->segments[i];
        const uint8_t *p = entries_of(s) + (size_t)s->entries * ENTRY_BYTES;
        bk_cur_t cur = bk_cur(p, (size_t)(s->map + s->len - 8 - p));
        for (uint32_t n = 0; n < s->superseded; n++) {
            uint8_t len = bk_cur_u8(&cur);
            const uint8_t *name = bk_cur_bytes(&cur, len);
            segment_t *old = name != NULL ? find_segment(index, (const char *)name, len) : NULL;
            if (old != NULL && old != s)
                old->hidden = true;
        }
    }
}

typedef struct {
    bk_index_t *index;
    bk_ctl_t *ctl;
} refresh_t;

static damaged_t *find_damaged(bk_index_t *index, const char *name)
{
    for (size_t i = 0; i < index->damaged_count; i++)
        if (strcmp(index->damaged[i].name, name) == 0)
            return &index->damaged[i];
    return NULL;
}

static bk_rc_t add_damaged(bk_index_t *index, const char *name, bk_err_t *err)
{
    damaged_t *more = realloc(index->damaged, (index->damaged_count + 1) * sizeof *index->damaged);
    char *copy = bk_strdup(name);
    if (more != NULL)
        index->damaged = more;
    if (more == NULL || copy == NULL) {
        free(copy);
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    }
    more[index->damaged_count++] = (damaged_t){.name = copy, .seen = true};
    return BK_OK;
}

static bk_rc_t see_segment(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    refresh_t *refresh = arg;
    bk_index_t *index = refresh->index;
    segment_t *known = find_segment(index, item->name, strlen(item->name));
    if (known != NULL) {
        known->seen = true;
        return BK_OK;
    }
    damaged_t *damaged = find_damaged(index, item->name);
    if (damaged != NULL) {
        damaged->seen = true;
        bk_ctl_note(refresh->ctl, "%s: it is damaged; the packs' own directories are used instead",
                    item->name);
        return BK_OK;
    }
    bk_err_t why = {0};
    bk_rc_t rc = add_segment(index, item->name, refresh->ctl, &why);
    if (rc == BK_CORRUPT || rc == BK_WRONG_KEY) {
        bk_ctl_note(refresh->ctl, "%s: %s; the packs' own directories are used instead", item->name,
                    why.text);
        return add_damaged(index, item->name, err);
    }
    if (rc == BK_NOT_FOUND)
        return BK_OK; /* removed between listing and reading */
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

static void forget_damaged(bk_index_t *index)
{
    size_t kept = 0;
    for (size_t i = 0; i < index->damaged_count; i++) {
        if (index->damaged[i].seen)
            index->damaged[kept++] = index->damaged[i];
        else
            free(index->damaged[i].name);
    }
    index->damaged_count = kept;
}

/* Segments that are gone from the storage leave the map and the cache. */
static void drop_unseen(bk_index_t *index)
{
    size_t kept = 0;
    for (size_t i = 0; i < index->count; i++) {
        segment_t *s = &index->segments[i];
        if (s->seen || (s->made && index->damaged_count > 0)) {
            index->segments[kept++] = *s;
        } else {
            char path[4096];
            cache_path(index, s->name, path, sizeof path);
            if (!s->made)
                unlink(path);
            close_segment(s);
        }
    }
    index->count = kept;
}

static bk_rc_t make_up_for_damaged(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err);

bk_rc_t bk_index_refresh(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    refresh_t refresh = {.index = index, .ctl = ctl};
    pthread_rwlock_wrlock(&index->lock);
    for (size_t i = 0; i < index->count; i++)
        index->segments[i].seen = false;
    for (size_t i = 0; i < index->damaged_count; i++)
        index->damaged[i].seen = false;
    bk_rc_t rc = bk_objects_list(&index->objects, "index/", see_segment, &refresh, ctl, err);
    if (rc == BK_OK) {
        forget_damaged(index);
        drop_unseen(index);
    }
    hide_superseded(index);
    if (rc == BK_OK && index->damaged_count > 0)
        rc = make_up_for_damaged(index, ctl, err);
    pthread_rwlock_unlock(&index->lock);
    return rc;
}

bk_rc_t bk_index_open(const bk_objects_t *objects, const bk_keyring_t *ring,
                      const uint8_t uuid[BK_UUID_SIZE], const char *cache_dir, bk_ctl_t *ctl,
                      bk_index_t **result, bk_err_t *err)
{
    char dir[4096];
    bk_index_t *index = calloc(1, sizeof *index);
    if (index == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    index->objects = *objects;
    index->ring = ring;
    memcpy(index->uuid, uuid, BK_UUID_SIZE);
    pthread_rwlock_init(&index->lock, NULL);
    bk_fmt(dir, sizeof dir, "%s/index", cache_dir);
    bk_rc_t rc = bk_mkdirs(dir, 0700, err);
    if (rc == BK_OK && (index->cache_dir = bk_strdup(dir)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    if (rc == BK_OK) {
        bk_publish_sweep(dir, 3600);
        rc = bk_index_refresh(index, ctl, err);
    }
    if (rc != BK_OK)
        bk_index_close(index);
    else
        *result = index;
    return rc;
}

void bk_index_close(bk_index_t *index)
{
    if (index == NULL)
        return;
    for (size_t i = 0; i < index->count; i++)
        close_segment(&index->segments[i]);
    free(index->segments);
    for (size_t i = 0; i < index->damaged_count; i++)
        free(index->damaged[i].name);
    free(index->damaged);
    free(index->cache_dir);
    pthread_rwlock_destroy(&index->lock);
    free(index);
}

static void fill_location(const segment_t *s, const uint8_t *entry, bk_location_t *where)
{
    const uint8_t *pack = packs_of(s) + (size_t)bk_get_u32(entry + 32) * PACK_BYTES;
    memcpy(where->pack.b, pack, BK_ID_SIZE);
    where->pack_size = bk_get_u32(pack + 32);
    where->kind = (bk_kind_t)(pack[36] | pack[37] << 8);
    memcpy(where->entry.id.b, entry, BK_ID_SIZE);
    where->entry.offset = bk_get_u32(entry + 36);
    where->entry.stored = bk_get_u32(entry + 40);
    where->entry.raw = get_u24(entry + 44);
    where->entry.type = entry[47] >> 4;
    where->entry.codec = entry[47] & 15;
}

static bool find_in(const segment_t *s, const bk_id_t *id, bk_location_t *where)
{
    const uint8_t *fan = s->map + HEADER_BYTES, *entries = entries_of(s);
    uint32_t low = id->b[0] > 0 ? bk_get_u32(fan + 4 * (id->b[0] - 1u)) : 0;
    uint32_t high = bk_get_u32(fan + 4u * id->b[0]);
    if (high > s->entries)
        high = s->entries;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const uint8_t *entry = entries + (size_t)middle * ENTRY_BYTES;
        int order = memcmp(entry, id->b, BK_ID_SIZE);
        if (order == 0) {
            fill_location(s, entry, where);
            return true;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

bool bk_index_find_except(const bk_index_t *index, const bk_id_t *id, bk_index_refuse_fn refuse,
                          void *arg, bk_location_t *where)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)(uintptr_t)&index->lock;
    bool found = false;
    pthread_rwlock_rdlock(lock);
    for (size_t i = index->count; i-- > 0 && !found;) {
        const segment_t *s = &index->segments[i];
        if (!s->hidden && find_in(s, id, where))
            found = refuse == NULL || !refuse(arg, &where->pack);
    }
    pthread_rwlock_unlock(lock);
    return found;
}

bool bk_index_find(const bk_index_t *index, const bk_id_t *id, bk_location_t *where)
{
    return bk_index_find_except(index, id, NULL, NULL, where);
}

static bk_rc_t each(const bk_index_t *index, bk_index_pack_fn pack_fn, bk_index_chunk_fn chunk_fn,
                    void *arg, bk_err_t *err)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)(uintptr_t)&index->lock;
    bk_rc_t rc = BK_OK;
    pthread_rwlock_rdlock(lock);
    for (size_t i = 0; i < index->count && rc == BK_OK; i++) {
        const segment_t *s = &index->segments[i];
        if (s->hidden)
            continue;
        for (uint32_t n = 0; pack_fn != NULL && n < s->packs && rc == BK_OK; n++) {
            const uint8_t *pack = packs_of(s) + (size_t)n * PACK_BYTES;
            bk_id_t name;
            memcpy(name.b, pack, BK_ID_SIZE);
            rc = pack_fn(arg, &name, bk_get_u32(pack + 32), (bk_kind_t)(pack[36] | pack[37] << 8),
                         err);
        }
        for (uint32_t n = 0; chunk_fn != NULL && n < s->entries && rc == BK_OK; n++) {
            bk_location_t where;
            fill_location(s, entries_of(s) + (size_t)n * ENTRY_BYTES, &where);
            rc = chunk_fn(arg, &where, err);
        }
    }
    pthread_rwlock_unlock(lock);
    return rc;
}

bk_rc_t bk_index_each_pack(const bk_index_t *index, bk_index_pack_fn fn, void *arg, bk_err_t *err)
{
    return each(index, fn, NULL, arg, err);
}

bk_rc_t bk_index_each_chunk(const bk_index_t *index, bk_index_chunk_fn fn, void *arg, bk_err_t *err)
{
    return each(index, NULL, fn, arg, err);
}

static bk_rc_t match_pack(void *arg, const bk_id_t *name, uint32_t size, bk_kind_t kind,
                          bk_err_t *err)
{
    (void)size;
    (void)kind;
    (void)err;
    return bk_id_equal(name, arg) ? BK_EXISTS : BK_OK;
}

bool bk_index_has_pack(const bk_index_t *index, const bk_id_t *pack)
{
    bk_id_t copy = *pack;
    return bk_index_each_pack(index, match_pack, &copy, NULL) == BK_EXISTS;
}

void bk_index_totals(const bk_index_t *index, uint64_t *chunks, uint64_t *packs, uint64_t *bytes)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)(uintptr_t)&index->lock;
    *chunks = *packs = *bytes = 0;
    pthread_rwlock_rdlock(lock);
    for (size_t i = 0; i < index->count; i++) {
        const segment_t *s = &index->segments[i];
        if (s->hidden)
            continue;
        *chunks += s->entries;
        *packs += s->packs;
        for (uint32_t n = 0; n < s->packs; n++)
            *bytes += bk_get_u32(packs_of(s) + (size_t)n * PACK_BYTES + 32);
    }
    pthread_rwlock_unlock(lock);
}

/* --- rebuilding from the packs --- */

typedef struct {
    bk_index_t *index;
    bk_ctl_t *ctl;
    const bk_id_t *known; /* packs to pass over, sorted */
    size_t known_count;
    bk_pack_t **packs;
    size_t count, cap;
} rebuild_t;

static int compare_ids(const void *a, const void *b)
{
    return bk_id_compare(a, b);
}

static bk_rc_t rebuild_pack(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    rebuild_t *rebuild = arg;
    bk_err_t why = {0};
    bk_id_t name;
    if (rebuild->known_count > 0 && bk_object_name_id(item->name, &name) &&
        bsearch(&name, rebuild->known, rebuild->known_count, sizeof name, compare_ids) != NULL)
        return BK_OK;
    bk_kind_t kind = strncmp(item->name, "meta/", 5) == 0 ? BK_KIND_META : BK_KIND_PACK;
    bk_pack_t *pack = calloc(1, sizeof *pack);
    if (pack == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "rebuild the index: out of memory");
    bk_rc_t rc =
        bk_pack_read_entries(&rebuild->index->objects, rebuild->index->ring, rebuild->index->uuid,
                             item->name, item->size, kind, pack, rebuild->ctl, &why);
    if (rc != BK_OK) {
        free(pack);
        if (rc != BK_CORRUPT && rc != BK_WRONG_KEY) {
            if (err != NULL)
                *err = why;
            return rc;
        }
        bk_ctl_note(rebuild->ctl, "%s: %s; its chunks are left out of the index", item->name,
                    why.text);
        return BK_OK;
    }
    if (rebuild->count == rebuild->cap) {
        size_t cap = rebuild->cap > 0 ? 2 * rebuild->cap : 64;
        bk_pack_t **more = realloc(rebuild->packs, cap * sizeof *more);
        if (more == NULL) {
            free(pack->entries);
            free(pack);
            return bk_err_set(err, BK_NO_MEMORY, "rebuild the index: out of memory");
        }
        rebuild->packs = more;
        rebuild->cap = cap;
    }
    rebuild->packs[rebuild->count++] = pack;
    return BK_OK;
}

static void free_rebuilt(rebuild_t *rebuild)
{
    for (size_t i = 0; i < rebuild->count; i++) {
        free(rebuild->packs[i]->entries);
        free(rebuild->packs[i]);
    }
    free(rebuild->packs);
}

/* Names of all packs of segments that count, sorted; *names is the caller's. */
static bk_rc_t known_packs(const bk_index_t *index, bk_id_t **names, size_t *count, bk_err_t *err)
{
    size_t total = 0;
    *count = 0;
    for (size_t i = 0; i < index->count; i++)
        total += index->segments[i].packs;
    if ((*names = calloc(total + 1, sizeof **names)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    for (size_t i = 0; i < index->count; i++) {
        const segment_t *s = &index->segments[i];
        for (uint32_t n = 0; n < s->packs && !s->hidden; n++)
            memcpy((*names)[(*count)++].b, packs_of(s) + (size_t)n * PACK_BYTES, BK_ID_SIZE);
    }
    qsort(*names, *count, sizeof **names, compare_ids);
    return BK_OK;
}

/*
 * A segment in memory for packs that no sound segment names.  Nothing is written: readers may not,
 * and the damaged object may come back from another copy of the storage.
 */
static bk_rc_t make_up_for_damaged(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    rebuild_t rebuild = {.index = index, .ctl = ctl};
    bk_id_t *known = NULL;
    bk_buf_t bytes;
    segment_t s = {.made = true, .seen = true};
    bk_buf_init(&bytes, SEGMENT_MAX);
    bk_rc_t rc = known_packs(index, &known, &rebuild.known_count, err);
    rebuild.known = known;
    if (rc == BK_OK)
        rc = bk_objects_list(&index->objects, "packs/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK)
        rc = bk_objects_list(&index->objects, "meta/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK && rebuild.count > 0) {
        rc = bk_index_encode((const bk_pack_t *const *)rebuild.packs, rebuild.count, bk_now(),
                             &bytes, err);
        if (rc == BK_OK)
            rc = grow(index, err);
        if (rc == BK_OK)
            rc = check_shape(bytes.data, bytes.len, &s, err);
        if (rc == BK_OK && (s.name = bk_strdup("index/made")) == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
        if (rc == BK_OK) {
            index->segments[index->count++] = s;
            bk_buf_init(&bytes, SEGMENT_MAX); /* the segment has the memory now */
        }
    }
    bk_buf_free(&bytes);
    free(known);
    free_rebuilt(&rebuild);
    return rc;
}

bk_rc_t bk_index_rebuild(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    rebuild_t rebuild = {.index = index, .ctl = ctl};
    char name[BK_STORAGE_NAME];
    uint64_t bytes;
    bk_rc_t rc =
        bk_storage_list(index->objects.storage, "packs/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_list(index->objects.storage, "meta/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK && rebuild.count > 0)
        rc = bk_index_store(index->ring, index->uuid, (const bk_pack_t *const *)rebuild.packs,
                            rebuild.count, index->objects.storage, name, &bytes, ctl, err);
    if (rc == BK_OK && rebuild.count > 0) {
        pthread_rwlock_wrlock(&index->lock);
        rc = add_segment(index, name, ctl, err);
        pthread_rwlock_unlock(&index->lock);
    }
    free_rebuilt(&rebuild);
    return rc;
}
