/*
 * repo/index.c: opening the index, exchanging its view, and looking chunks and packs up.
 *
 * Look-ups hold the lock for reading while they search; a refresh holds it for the exchange of one
 * pointer.  Walks over everything hold a reference of the view instead, since they may take long.
 */
#include "repo/index.h"

#include <stdlib.h>
#include <string.h>

#include "base/publish.h"
#include "base/str.h"
#include "repo/index_private.h"

/* --- views --- */

static void unref_view(bk_view_t *view)
{
    if (view == NULL || atomic_fetch_sub(&view->refs, 1) != 1)
        return;
    for (size_t i = 0; i < view->count; i++)
        bk_segment_unref(view->segments[i]);
    pthread_mutex_destroy(&view->lock);
    free(view->segments);
    free(view->packs);
    free(view);
}

static void add_to_view(bk_view_t *view, bk_segment_t *segment)
{
    view->segments[view->count++] = bk_segment_ref(segment);
}

static pthread_rwlock_t *lock_of(const bk_index_t *index)
{
    return (pthread_rwlock_t *)(uintptr_t)&index->lock;
}

/* Newest segments first: what was stored last is asked for most. */
bk_rc_t bk_index_publish(bk_index_t *index, bk_err_t *err)
{
    bk_view_t *view = calloc(1, sizeof *view);
    size_t most = index->known_count + index->merge_count + index->made_count;
    if (view == NULL || (view->segments = calloc(most + 1, sizeof(bk_segment_t *))) == NULL) {
        free(view);
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    }
    atomic_init(&view->refs, 1);
    pthread_mutex_init(&view->lock, NULL);
    for (size_t i = index->known_count; i-- > 0;)
        if (index->known[i].segment != NULL && !index->known[i].hidden)
            add_to_view(view, index->known[i].segment);
    for (size_t i = 0; i < index->merge_count; i++)
        add_to_view(view, index->merges[i]);
    for (size_t i = 0; i < index->made_count; i++)
        add_to_view(view, index->made[i]);
    pthread_rwlock_wrlock(&index->lock);
    bk_view_t *old = index->view;
    index->view = view;
    pthread_rwlock_unlock(&index->lock);
    unref_view(old);
    return BK_OK;
}

static bk_view_t *take_view(const bk_index_t *index)
{
    pthread_rwlock_rdlock(lock_of(index));
    bk_view_t *view = index->view;
    atomic_fetch_add(&view->refs, 1);
    pthread_rwlock_unlock(lock_of(index));
    return view;
}

/* --- opening --- */

bk_rc_t bk_index_refresh(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    pthread_mutex_lock(&index->loading);
    bk_rc_t rc = bk_index_load(index, ctl, err);
    if (rc == BK_OK)
        rc = bk_index_make_up(index, ctl, err);
    if (rc == BK_OK)
        rc = bk_index_publish(index, err);
    pthread_mutex_unlock(&index->loading);
    return rc;
}

static bk_rc_t make_dir(const char *cache_dir, const char *name, char **path, bk_err_t *err)
{
    char dir[4096];
    if (!bk_fmt(dir, sizeof dir, "%s/%s", cache_dir, name))
        return bk_err_set(err, BK_CONFIG, "the path of the cache directory %s is too long",
                          cache_dir);
    bk_rc_t rc = bk_mkdirs(dir, 0700, err);
    if (rc == BK_OK && (*path = bk_strdup(dir)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    if (rc == BK_OK)
        bk_publish_sweep(dir, 3600);
    return rc;
}

bk_rc_t bk_index_open(const bk_objects_t *objects, const bk_keyring_t *ring,
                      const uint8_t uuid[BK_UUID_SIZE], const char *cache_dir, bk_ctl_t *ctl,
                      bk_index_t **result, bk_err_t *err)
{
    bk_index_t *index = calloc(1, sizeof *index);
    if (index == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    index->objects = *objects;
    index->ring = ring;
    memcpy(index->uuid, uuid, BK_UUID_SIZE);
    pthread_rwlock_init(&index->lock, NULL);
    pthread_mutex_init(&index->loading, NULL);
    bk_rc_t rc = make_dir(cache_dir, "index", &index->cache_dir, err);
    if (rc == BK_OK)
        rc = make_dir(cache_dir, "index-merged", &index->merge_dir, err);
    if (rc == BK_OK)
        rc = bk_index_refresh(index, ctl, err);
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
    unref_view(index->view);
    bk_index_unload(index);
    free(index->cache_dir);
    free(index->merge_dir);
    pthread_rwlock_destroy(&index->lock);
    pthread_mutex_destroy(&index->loading);
    free(index);
}

/* --- chunks --- */

bool bk_index_find_except(const bk_index_t *index, const bk_id_t *id, bk_index_refuse_fn refuse,
                          void *arg, bk_location_t *where)
{
    bool found = false;
    pthread_rwlock_rdlock(lock_of(index));
    const bk_view_t *view = index->view;
    for (size_t i = 0; i < view->count && !found; i++) {
        const bk_segment_t *s = view->segments[i];
        uint32_t n = bk_segment_lower(s, id);
        /* A merge may have several copies of a chunk. */
        for (; bk_segment_has(s, n, id) && !found; n++)
            found = bk_segment_entry(s, n, where) && (refuse == NULL || !refuse(arg, &where->pack));
    }
    pthread_rwlock_unlock(lock_of(index));
    return found;
}

bool bk_index_find(const bk_index_t *index, const bk_id_t *id, bk_location_t *where)
{
    return bk_index_find_except(index, id, NULL, NULL, where);
}

bk_rc_t bk_index_each_chunk(const bk_index_t *index, bk_index_chunk_fn fn, void *arg, bk_err_t *err)
{
    bk_view_t *view = take_view(index);
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < view->count && rc == BK_OK; i++) {
        bk_location_t where;
        for (uint32_t n = 0; n < view->segments[i]->entries && rc == BK_OK; n++)
            if (bk_segment_entry(view->segments[i], n, &where))
                rc = fn(arg, &where, err);
    }
    unref_view(view);
    return rc;
}

/* --- packs --- */

static int compare_packs(const void *a, const void *b)
{
    const bk_named_pack_t *x = a, *y = b;
    int order = bk_id_compare(&x->name, &y->name);
    if (order != 0)
        return order;
    return x->size != y->size ? (x->size < y->size ? -1 : 1) : (int)x->kind - (int)y->kind;
}

/* Segments that disagree about a pack are both told. */
static bk_rc_t know_packs(bk_view_t *view, bk_err_t *err)
{
    size_t total = 0, kept = 0;
    for (size_t i = 0; i < view->count; i++)
        total += view->segments[i]->packs;
    bk_named_pack_t *packs = calloc(total + 1, sizeof *packs);
    if (packs == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    total = 0;
    for (size_t i = 0; i < view->count; i++)
        for (uint32_t n = 0; n < view->segments[i]->packs; n++, total++)
            bk_segment_pack(view->segments[i], n, &packs[total].name, &packs[total].size,
                            &packs[total].kind);
    qsort(packs, total, sizeof *packs, compare_packs);
    for (size_t i = 0; i < total; i++)
        if (kept == 0 || compare_packs(&packs[kept - 1], &packs[i]) != 0)
            packs[kept++] = packs[i];
    view->packs = packs;
    view->pack_count = kept;
    view->packs_known = true;
    return BK_OK;
}

static bk_rc_t take_packs(const bk_index_t *index, bk_view_t **result, bk_err_t *err)
{
    bk_view_t *view = take_view(index);
    pthread_mutex_lock(&view->lock);
    bk_rc_t rc = view->packs_known ? BK_OK : know_packs(view, err);
    pthread_mutex_unlock(&view->lock);
    if (rc == BK_OK)
        *result = view;
    else
        unref_view(view);
    return rc;
}

bk_rc_t bk_index_each_pack(const bk_index_t *index, bk_index_pack_fn fn, void *arg, bk_err_t *err)
{
    bk_view_t *view = NULL;
    bk_rc_t rc = take_packs(index, &view, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < view->pack_count && rc == BK_OK; i++)
        rc = fn(arg, &view->packs[i].name, view->packs[i].size, view->packs[i].kind, err);
    unref_view(view);
    return rc;
}

static int compare_name(const void *key, const void *item)
{
    return bk_id_compare(key, &((const bk_named_pack_t *)item)->name);
}

bool bk_index_has_pack(const bk_index_t *index, const bk_id_t *pack)
{
    bk_view_t *view = NULL;
    bool found = false;
    if (take_packs(index, &view, NULL) == BK_OK) {
        found =
            bsearch(pack, view->packs, view->pack_count, sizeof *view->packs, compare_name) != NULL;
        unref_view(view);
        return found;
    }
    /* No memory for the table: the long way. */
    view = take_view(index);
    for (size_t i = 0; i < view->count && !found; i++)
        for (uint32_t n = 0; n < view->segments[i]->packs && !found; n++)
            found = memcmp(bk_segment_pack_bytes(view->segments[i], n), pack->b, BK_ID_SIZE) == 0;
    unref_view(view);
    return found;
}

bool bk_index_pack_fits(const bk_index_t *index, const bk_id_t *pack, uint64_t size)
{
    bk_view_t *view = NULL;
    /* Without memory for the table nothing can be said against it. */
    if (take_packs(index, &view, NULL) != BK_OK)
        return true;
    size_t low = 0, high = view->pack_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (bk_id_compare(&view->packs[middle].name, pack) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    bool named = false, fits = false;
    for (; low < view->pack_count && bk_id_equal(&view->packs[low].name, pack); low++) {
        named = true;
        fits = fits || view->packs[low].size == size;
    }
    unref_view(view);
    return fits || !named;
}

void bk_index_totals(const bk_index_t *index, uint64_t *chunks, uint64_t *packs, uint64_t *bytes)
{
    bk_view_t *view = NULL;
    *chunks = *packs = *bytes = 0;
    if (take_packs(index, &view, NULL) != BK_OK)
        return;
    for (size_t i = 0; i < view->count; i++)
        *chunks += view->segments[i]->entries;
    *packs = view->pack_count;
    for (size_t i = 0; i < view->pack_count; i++)
        *bytes += view->packs[i].size;
    unref_view(view);
}
