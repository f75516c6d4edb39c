/*
 * repo/index_rebuild.c: the index from the packs' own directories: in memory for what damaged
 * segments named, or stored again as a whole.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "repo/index_private.h"

#define ENTRIES_MAX (1u << 20) /* in one rebuilt segment: bounds the memory */

typedef struct {
    bk_index_t *index;
    bk_ctl_t *ctl;
    bk_id_t *known; /* packs to pass over, sorted */
    size_t known_count;
    bk_pack_t **packs;
    size_t count, cap, entries;
    bool store;      /* a segment each ENTRIES_MAX entries; else one in memory at the end */
    size_t left_out; /* packs whose directories cannot be read */
} rebuild_t;

static void free_packs(rebuild_t *rebuild)
{
    for (size_t i = 0; i < rebuild->count; i++) {
        free(rebuild->packs[i]->entries);
        free(rebuild->packs[i]);
    }
    rebuild->count = rebuild->entries = 0;
}

static void free_rebuild(rebuild_t *rebuild)
{
    free_packs(rebuild);
    free(rebuild->packs);
    free(rebuild->known);
}

static int compare_ids(const void *a, const void *b)
{
    return bk_id_compare(a, b);
}

static bk_rc_t remember(rebuild_t *rebuild, bk_pack_t *pack, bk_err_t *err)
{
    if (rebuild->count == rebuild->cap) {
        size_t cap = rebuild->cap > 0 ? 2 * rebuild->cap : 64;
        bk_pack_t **more = realloc(rebuild->packs, cap * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "rebuild the index: out of memory");
        rebuild->packs = more;
        rebuild->cap = cap;
    }
    rebuild->packs[rebuild->count++] = pack;
    rebuild->entries += pack->count;
    return BK_OK;
}

/* --- further copies of a chunk --- */

typedef struct {
    const bk_pack_entry_t *entry;
    size_t number; /* among all entries, pack by pack */
} numbered_t;

static int by_id(const void *a, const void *b)
{
    const numbered_t *x = a, *y = b;
    int order = bk_id_compare(&x->entry->id, &y->entry->id);
    return order != 0 ? order : (x->number < y->number ? -1 : x->number > y->number);
}

/* Which entries have a chunk that an entry before them has: by number.  Heap; NULL: no memory. */
static bool *find_further(const rebuild_t *rebuild, size_t *count)
{
    size_t n = 0;
    numbered_t *all = calloc(rebuild->entries + 1, sizeof *all);
    bool *further = calloc(rebuild->entries + 1, sizeof *further);
    *count = 0;
    for (size_t i = 0; all != NULL && i < rebuild->count; i++)
        for (size_t j = 0; j < rebuild->packs[i]->count; j++, n++)
            all[n] = (numbered_t){&rebuild->packs[i]->entries[j], n};
    if (n > 1)
        qsort(all, n, sizeof *all, by_id);
    for (size_t i = 1; further != NULL && i < n; i++)
        if (bk_id_equal(&all[i - 1].entry->id, &all[i].entry->id)) {
            further[all[i].number] = true;
            ++*count;
        }
    if (all == NULL) {
        free(further);
        further = NULL;
    }
    free(all);
    return further;
}

/* The entries of pack that further marks move to a record of the same pack in rest. */
static bk_rc_t part_pack(bk_pack_t *pack, const bool *further, rebuild_t *rest, bk_err_t *err)
{
    size_t kept = 0;
    bk_pack_t *other = calloc(1, sizeof *other);
    bk_rc_t rc = BK_OK;
    if (other == NULL || (other->entries = calloc(pack->count + 1, sizeof *other->entries)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "rebuild the index: out of memory");
    for (size_t i = 0; rc == BK_OK && i < pack->count; i++) {
        if (further[i])
            other->entries[other->count++] = pack->entries[i];
        else
            pack->entries[kept++] = pack->entries[i];
    }
    if (rc == BK_OK) {
        pack->count = kept;
        other->kind = pack->kind;
        other->name = pack->name;
        other->bytes.len = pack->bytes.len;
        if (other->count > 0 && (rc = remember(rest, other, err)) == BK_OK)
            return BK_OK;
    }
    if (other != NULL)
        free(other->entries);
    free(other);
    return rc;
}

/*
 * A segment names each chunk once.  But any copy may be the damaged one, which its pack's directory
 * does not tell: the others go into segments of their own.  They move to rest.
 */
static bk_rc_t part_copies(rebuild_t *rebuild, rebuild_t *rest, bk_err_t *err)
{
    size_t count, at = 0;
    bool *further = find_further(rebuild, &count);
    bk_rc_t rc =
        further != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "rebuild the index: out of memory");
    for (size_t i = 0, n; rc == BK_OK && count > 0 && i < rebuild->count; i++, at += n) {
        n = rebuild->packs[i]->count;
        rc = part_pack(rebuild->packs[i], further + at, rest, err);
    }
    rebuild->entries -= rest->entries;
    free(further);
    return rc;
}

typedef bk_rc_t (*segment_fn)(rebuild_t *rebuild, const bk_index_names_t *superseded,
                              bk_err_t *err);

/* One segment of all packs, and as many more as chunks have copies; the last one replaces. */
static bk_rc_t make_segments(rebuild_t *rebuild, const bk_index_names_t *superseded,
                             segment_fn make, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    while (rc == BK_OK && rebuild->count > 0) {
        rebuild_t rest = {0};
        rc = part_copies(rebuild, &rest, err);
        if (rc == BK_OK)
            rc = make(rebuild, rest.count == 0 ? superseded : NULL, err);
        free_packs(rebuild);
        free(rebuild->packs);
        rebuild->packs = rest.packs;
        rebuild->count = rest.count;
        rebuild->cap = rest.cap;
        rebuild->entries = rest.entries;
    }
    free_packs(rebuild);
    return rc;
}

static bk_rc_t store_segment(rebuild_t *rebuild, const bk_index_names_t *superseded, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    uint64_t bytes;
    bk_index_t *index = rebuild->index;
    return bk_segment_store(index->ring, index->uuid, (const bk_pack_t *const *)rebuild->packs,
                            rebuild->count,
                            superseded != NULL ? (const char *const *)superseded->names : NULL,
                            superseded != NULL ? superseded->count : 0, index->objects.storage,
                            name, &bytes, rebuild->ctl, err);
}

/* --- packs --- */

static bk_rc_t rebuild_pack(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    rebuild_t *rebuild = arg;
    bk_index_t *index = rebuild->index;
    bk_err_t why = {0};
    bk_id_t name;
    if (rebuild->known_count > 0 && bk_object_name_id(item->name, &name) &&
        bsearch(&name, rebuild->known, rebuild->known_count, sizeof name, compare_ids) != NULL)
        return BK_OK;
    bk_rc_t rc = bk_ctl_check(rebuild->ctl, err);
    if (rc != BK_OK)
        return rc;
    bk_kind_t kind = strncmp(item->name, "meta/", 5) == 0 ? BK_KIND_META : BK_KIND_PACK;
    bk_pack_t *pack = calloc(1, sizeof *pack);
    if (pack == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "rebuild the index: out of memory");
    rc = bk_pack_read_entries(&index->objects, index->ring, index->uuid, item->name, item->size,
                              kind, pack, rebuild->ctl, &why);
    if (rc == BK_OK && rebuild->store && rebuild->count > 0 &&
        rebuild->entries + pack->count > ENTRIES_MAX)
        rc = make_segments(rebuild, NULL, store_segment, &why);
    if (rc == BK_OK)
        rc = remember(rebuild, pack, &why);
    if (rc == BK_OK)
        return BK_OK;
    free(pack->entries);
    free(pack);
    if (rc == BK_CORRUPT || rc == BK_WRONG_KEY) {
        rebuild->left_out++;
        bk_ctl_note(rebuild->ctl, "%s: %s; its chunks are left out of the index", item->name,
                    why.text);
        return BK_OK;
    }
    if (rc == BK_NOT_FOUND)
        return BK_OK; /* removed, or shipped, between listing and reading */
    if (err != NULL)
        *err = why;
    return rc;
}

/* --- in memory --- */

static void add_packs(const bk_segment_t *segment, bk_id_t *names, size_t *count)
{
    uint32_t size;
    bk_kind_t kind;
    for (uint32_t n = 0; n < segment->packs; n++)
        bk_segment_pack(segment, n, &names[(*count)++], &size, &kind);
}

/* Names of all packs of the segments that count, sorted. */
static bk_rc_t know_packs(rebuild_t *rebuild, bk_err_t *err)
{
    const bk_index_t *index = rebuild->index;
    size_t total = 0;
    for (size_t i = 0; i < index->known_count; i++)
        total += index->known[i].segment != NULL ? index->known[i].segment->packs : 0;
    for (size_t i = 0; i < index->merge_count; i++)
        total += index->merges[i]->packs;
    for (size_t i = 0; i < index->made_count; i++)
        total += index->made[i]->packs;
    if ((rebuild->known = calloc(total + 1, sizeof *rebuild->known)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    for (size_t i = 0; i < index->known_count; i++)
        if (index->known[i].segment != NULL && !index->known[i].hidden)
            add_packs(index->known[i].segment, rebuild->known, &rebuild->known_count);
    for (size_t i = 0; i < index->merge_count; i++)
        add_packs(index->merges[i], rebuild->known, &rebuild->known_count);
    for (size_t i = 0; i < index->made_count; i++)
        add_packs(index->made[i], rebuild->known, &rebuild->known_count);
    if (rebuild->known_count > 1)
        qsort(rebuild->known, rebuild->known_count, sizeof *rebuild->known, compare_ids);
    return BK_OK;
}

static bk_rc_t add_made(rebuild_t *rebuild, const bk_index_names_t *superseded, bk_err_t *err)
{
    bk_buf_t bytes;
    bk_index_t *index = rebuild->index;
    (void)superseded; /* nothing on the storage is replaced */
    bk_segment_t **more = realloc(index->made, (index->made_count + 1) * sizeof *index->made);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    index->made = more;
    bk_buf_init(&bytes, BK_SEGMENT_MAX);
    bk_rc_t rc = bk_index_encode((const bk_pack_t *const *)rebuild->packs, rebuild->count, bk_now(),
                                 &bytes, err);
    if (rc != BK_OK) {
        bk_buf_free(&bytes);
        return rc;
    }
    rc = bk_segment_take("made", bytes.data, bytes.len, &index->made[index->made_count], err);
    index->made_count += rc == BK_OK;
    return rc;
}

/*
 * Segments in memory for packs that no sound segment names.  Nothing is written: readers may not,
 * and the damaged object may come back from another copy of the storage.
 */
bk_rc_t bk_index_make_up(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    rebuild_t rebuild = {.index = index, .ctl = ctl};
    if (!bk_index_is_damaged(index)) {
        for (size_t i = 0; i < index->made_count; i++)
            bk_segment_unref(index->made[i]);
        index->made_count = 0;
        return BK_OK;
    }
    bk_rc_t rc = know_packs(&rebuild, err);
    if (rc == BK_OK)
        rc = bk_objects_list(&index->objects, "packs/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK)
        rc = bk_objects_list(&index->objects, "meta/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK)
        rc = make_segments(&rebuild, NULL, add_made, err);
    free_rebuild(&rebuild);
    return rc;
}

/* --- on the storage --- */

/* What is too long is no name that is written here. */
static bk_rc_t add_segment(void *names, const bk_storage_item_t *item, bk_err_t *err)
{
    return strlen(item->name) > UINT8_MAX ? BK_OK : bk_index_names_add(names, item, err);
}

/*
 * Segments are listed before packs: what a listed segment names is then among the packs.  They are
 * replaced only when every pack could be read, since a segment may know chunks of a pack whose
 * directory is damaged.
 */
static bk_rc_t rebuild_all(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    rebuild_t rebuild = {.index = index, .ctl = ctl, .store = true};
    bk_index_names_t old = {0};
    bk_storage_t *storage = index->objects.storage;
    bk_rc_t rc = bk_storage_list(storage, "index/", add_segment, &old, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_list(storage, "packs/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_list(storage, "meta/", rebuild_pack, &rebuild, ctl, err);
    if (rc == BK_OK)
        rc = make_segments(&rebuild, rebuild.left_out == 0 ? &old : NULL, store_segment, err);
    bk_index_names_free(&old);
    free_rebuild(&rebuild);
    return rc;
}

bk_rc_t bk_index_rebuild(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    pthread_mutex_lock(&index->loading);
    bk_rc_t rc = rebuild_all(index, ctl, err);
    if (rc == BK_OK)
        rc = bk_index_load(index, ctl, err);
    if (rc == BK_OK)
        rc = bk_index_make_up(index, ctl, err);
    if (rc == BK_OK)
        rc = bk_index_publish(index, err);
    pthread_mutex_unlock(&index->loading);
    return rc;
}
