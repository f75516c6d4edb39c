/*
 * repo/index_load.c: the segments here are brought in line with those on the storage: fetched,
 * checked, cached, dropped, and merged when they are many.
 *
 * The cache has each segment unsealed under its own name, and in a directory of its own the merges.
 * Both are checked when they are opened, so no crash and no other process that uses the same cache
 * can do more than cost time.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/index_private.h"

#define MERGE_ABOVE 8   /* segments searched one by one */
#define BATCH       256 /* loaded between merges, so that few are mapped at a time */
#define ROUNDS      16  /* of loading, when merges turn out stale */

/* --- the list on the storage --- */

void bk_index_names_free(bk_index_names_t *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->names[i]);
    free(list->names);
    *list = (bk_index_names_t){0};
}

bk_rc_t bk_index_names_add(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    bk_index_names_t *list = arg;
    if (list->count == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 64;
        char **more = realloc(list->names, cap * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
        list->names = more;
        list->cap = cap;
    }
    if ((list->names[list->count] = bk_strdup(item->name)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    list->count++;
    return BK_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/*
 * Sorted, each once.  The spool first: a segment that is shipped meanwhile is then seen in one
 * place at least.
 */
static bk_rc_t list_names(const bk_index_t *index, bk_index_names_t *list, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    size_t kept = 0;
    bk_rc_t rc = BK_OK;
    if (index->objects.spool != NULL)
        rc = bk_storage_list(index->objects.spool, "index/", bk_index_names_add, list, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_list(index->objects.storage, "index/", bk_index_names_add, list, ctl, err);
    if (list->count > 1)
        qsort(list->names, list->count, sizeof *list->names, by_text);
    for (size_t i = 0; i < list->count; i++) {
        if (kept > 0 && strcmp(list->names[kept - 1], list->names[i]) == 0)
            free(list->names[i]);
        else
            list->names[kept++] = list->names[i];
    }
    list->count = kept;
    return rc;
}

/* --- the table of what is known --- */

bk_known_t *bk_index_known(const bk_index_t *index, const char *name, size_t len)
{
    size_t low = 0, high = index->known_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *other = index->known[middle].name;
        size_t other_len = strlen(other);
        int order = memcmp(other, name, other_len < len ? other_len : len);
        if (order == 0 && other_len == len)
            return &index->known[middle];
        if (order < 0 || (order == 0 && other_len < len))
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static bool cache_path(const bk_index_t *index, const char *name, char *out, size_t size)
{
    return bk_fmt(out, size, "%s/%s", index->cache_dir, strrchr(name, '/') + 1);
}

static bool merge_path(const bk_index_t *index, const char *name, char *out, size_t size)
{
    return bk_fmt(out, size, "%s/%s", index->merge_dir, name);
}

static void forget(const bk_index_t *index, bk_known_t *known)
{
    char path[4096];
    if (cache_path(index, known->name, path, sizeof path))
        unlink(path);
    bk_segment_unref(known->segment);
    free(known->name);
}

/* One walk along both sorted lists: names that are gone leave, new ones are not loaded yet. */
static bk_rc_t take_names(bk_index_t *index, bk_index_names_t *list, bk_err_t *err)
{
    size_t old = 0;
    bk_known_t *table = calloc(list->count + 1, sizeof *table);
    if (table == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    for (size_t i = 0; i < list->count; i++) {
        int order = -1;
        while (old < index->known_count &&
               (order = strcmp(index->known[old].name, list->names[i])) < 0)
            forget(index, &index->known[old++]);
        if (old < index->known_count && order == 0) {
            table[i] = index->known[old++];
            table[i].gone = false;
        } else {
            table[i].name = list->names[i];
            list->names[i] = NULL;
        }
    }
    while (old < index->known_count)
        forget(index, &index->known[old++]);
    free(index->known);
    index->known = table;
    index->known_count = list->count;
    return BK_OK;
}

/* Cached files of segments that went while nobody looked. */
static void sweep_cache(const bk_index_t *index)
{
    char name[BK_STORAGE_NAME], path[4096];
    struct dirent *entry;
    DIR *dir = opendir(index->cache_dir);
    if (dir == NULL)
        return;
    while ((entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.' && bk_fmt(name, sizeof name, "index/%s", entry->d_name) &&
            bk_index_known(index, name, strlen(name)) == NULL &&
            cache_path(index, name, path, sizeof path))
            unlink(path);
    closedir(dir);
}

/* --- merges --- */

typedef void (*covered_fn)(bk_known_t *known, void *arg);

/* Each segment in a merge; those that are not known give NULL. */
static void each_covered(const bk_index_t *index, const bk_segment_t *merge, covered_fn fn,
                         void *arg)
{
    bk_cur_t cur = bk_segment_superseded(merge);
    for (uint32_t i = 0; i < merge->superseded; i++) {
        uint8_t len = bk_cur_u8(&cur);
        const char *name = (const char *)bk_cur_bytes(&cur, len);
        fn(name != NULL ? bk_index_known(index, name, len) : NULL, arg);
    }
}

static void mark_merged(bk_known_t *known, void *arg)
{
    if (known == NULL)
        return;
    known->merged = *(bool *)arg;
    bk_segment_unref(known->segment);
    known->segment = NULL;
}

static void is_unusable(bk_known_t *known, void *arg)
{
    if (known == NULL || known->hidden)
        *(bool *)arg = true;
}

static void is_taken(bk_known_t *known, void *arg)
{
    if (known == NULL || known->merged)
        *(bool *)arg = true;
}

static void discard_merge(const bk_index_t *index, bk_segment_t *merge)
{
    char path[4096];
    if (merge_path(index, merge->name, path, sizeof path))
        unlink(path);
    bk_segment_unref(merge);
}

/* A merge holds until one of its segments is removed or replaced: its entries must not be found. */
static void drop_stale_merges(bk_index_t *index)
{
    size_t kept = 0;
    for (size_t i = 0; i < index->merge_count; i++) {
        bk_segment_t *merge = index->merges[i];
        bool stale = false, merged = false;
        each_covered(index, merge, is_unusable, &stale);
        if (stale) {
            each_covered(index, merge, mark_merged, &merged);
            discard_merge(index, merge);
        } else {
            index->merges[kept++] = merge;
        }
    }
    index->merge_count = kept;
}

static bk_rc_t add_merge(bk_index_t *index, bk_segment_t *merge, bk_err_t *err)
{
    bool merged = true;
    bk_segment_t **more = realloc(index->merges, (index->merge_count + 1) * sizeof *index->merges);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    index->merges = more;
    index->merges[index->merge_count++] = merge;
    each_covered(index, merge, mark_merged, &merged);
    return BK_OK;
}

static int larger_first(const void *a, const void *b)
{
    const bk_segment_t *x = *(bk_segment_t *const *)a, *y = *(bk_segment_t *const *)b;
    return x->entries != y->entries ? (x->entries > y->entries ? -1 : 1) : strcmp(x->name, y->name);
}

/*
 * Merges that an earlier process left.  A crash, or a second process, can leave two with the same
 * segment in them: the larger one is taken.
 */
static bk_rc_t adopt_merges(bk_index_t *index, bk_err_t *err)
{
    char path[4096];
    struct dirent *entry;
    bk_segment_t **found = NULL;
    size_t count = 0, cap = 0;
    bk_rc_t rc = BK_OK;
    DIR *dir = opendir(index->merge_dir);
    while (dir != NULL && rc == BK_OK && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.' || !merge_path(index, entry->d_name, path, sizeof path))
            continue;
        if (count == cap) {
            bk_segment_t **more = realloc(found, (2 * cap + 8) * sizeof *more);
            if (more == NULL) {
                rc = bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
                break;
            }
            found = more;
            cap = 2 * cap + 8;
        }
        if (bk_segment_map(entry->d_name, path, &found[count], NULL) == BK_OK)
            count++;
        else
            unlink(path);
    }
    if (dir != NULL)
        closedir(dir);
    if (count > 1)
        qsort(found, count, sizeof *found, larger_first);
    for (size_t i = 0; i < count; i++) {
        bool taken = found[i]->superseded == 0;
        each_covered(index, found[i], is_taken, &taken);
        if (taken)
            discard_merge(index, found[i]);
        else if (rc != BK_OK || (rc = add_merge(index, found[i], err)) != BK_OK)
            bk_segment_unref(found[i]);
    }
    free(found);
    return rc;
}

static bool is_input(const bk_segment_t *segment, bk_segment_t *const *inputs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (inputs[i] == segment)
            return true;
    return false;
}

/* The new merge stands for its inputs, of which some are merges themselves. */
static bk_rc_t exchange_merges(bk_index_t *index, bk_segment_t *merge, bk_segment_t *const *inputs,
                               size_t count, bk_err_t *err)
{
    bk_rc_t rc = add_merge(index, merge, err);
    if (rc != BK_OK) {
        discard_merge(index, merge);
        return rc;
    }
    size_t kept = 0;
    for (size_t i = 0; i < index->merge_count; i++) {
        if (is_input(index->merges[i], inputs, count))
            discard_merge(index, index->merges[i]);
        else
            index->merges[kept++] = index->merges[i];
    }
    index->merge_count = kept;
    return rc;
}

static bk_rc_t merge_inputs(bk_index_t *index, bk_segment_t *const *inputs, size_t count,
                            bk_err_t *err)
{
    char name[BK_ULID_LEN + 1], path[4096];
    bk_segment_t *merge = NULL;
    bk_ulid(name);
    if (!merge_path(index, name, path, sizeof path))
        return bk_err_set(err, BK_CONFIG, "the path %s is too long", index->merge_dir);
    bk_rc_t rc = bk_segment_merge(inputs, count, path, err);
    if (rc == BK_OK)
        rc = bk_segment_map(name, path, &merge, err);
    return rc == BK_OK ? exchange_merges(index, merge, inputs, count, err) : rc;
}

/* A segment that replaces others stays by itself: it says who is hidden. */
static bool may_merge(const bk_known_t *known)
{
    return known->segment != NULL && !known->hidden && known->segment->superseded == 0 &&
           strlen(known->name) <= UINT8_MAX;
}

/* Only to be faster: when it fails, all segments are still there. */
static void merge_small(bk_index_t *index)
{
    size_t count = 0;
    bk_err_t err = {0};
    for (size_t i = 0; i < index->known_count; i++)
        count += may_merge(&index->known[i]);
    if (count + index->merge_count <= MERGE_ABOVE)
        return;
    bk_segment_t **list = calloc(count + index->merge_count, sizeof(bk_segment_t *));
    if (list == NULL)
        return;
    count = 0;
    for (size_t i = 0; i < index->known_count; i++)
        if (may_merge(&index->known[i]))
            list[count++] = index->known[i].segment;
    for (size_t i = 0; i < index->merge_count; i++)
        list[count++] = index->merges[i];
    size_t chosen = bk_segment_choose(list, count);
    if (chosen > 1 && merge_inputs(index, list, chosen, &err) != BK_OK)
        bk_log(BK_LOG_WARN, "index cache: %s", err.text);
    free(list);
}

/* --- loading --- */

/* Fetch and check one segment, and cache it when that is possible. */
static bk_rc_t download(bk_index_t *index, bk_known_t *known, const char *path, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    bk_buf_t object, plain;
    bk_id_t digest, wanted;
    bk_err_t why = {0};
    bk_buf_init(&object, BK_SEGMENT_MAX);
    bk_buf_init(&plain, BK_SEGMENT_MAX);
    bk_rc_t rc = bk_objects_get_all(&index->objects, known->name, &object, ctl, err);
    if (rc == BK_OK) {
        bk_sha256(&digest, object.data, object.len);
        if (!bk_object_name_id(known->name, &wanted) || !bk_id_equal(&digest, &wanted))
            rc = bk_err_set(err, BK_CORRUPT, "its SHA-256 differs from its name");
    }
    if (rc == BK_OK)
        rc = bk_object_unwrap(index->ring, index->uuid, BK_KIND_INDEX, object.data, object.len,
                              &plain, err);
    bk_buf_free(&object);
    if (rc == BK_OK)
        rc = bk_index_check(plain.data, plain.len, err);
    if (rc == BK_OK) {
        if (bk_publish_cache(AT_FDCWD, path, 0600, plain.data, plain.len, &why) != BK_OK ||
            bk_segment_map(known->name, path, &known->segment, &why) != BK_OK) {
            bk_log(BK_LOG_WARN, "index cache: %s; the segment is kept in memory", why.text);
            rc = bk_segment_take(known->name, plain.data, plain.len, &known->segment, err);
            bk_buf_init(&plain, BK_SEGMENT_MAX); /* its memory went to the segment, or is free */
        }
    }
    bk_buf_free(&plain);
    return rc;
}

static bk_rc_t load(bk_index_t *index, bk_known_t *known, bk_ctl_t *ctl, bk_err_t *err)
{
    char path[4096];
    bk_err_t why = {0};
    bk_rc_t rc = bk_ctl_check(ctl, err);
    if (rc != BK_OK)
        return rc;
    if (!cache_path(index, known->name, path, sizeof path))
        return bk_err_set(err, BK_CONFIG, "the path %s is too long", index->cache_dir);
    rc = bk_segment_map(known->name, path, &known->segment, &why);
    if (rc != BK_OK)
        rc = download(index, known, path, ctl, &why);
    if (rc == BK_CORRUPT || rc == BK_WRONG_KEY) {
        known->damaged = true;
        bk_ctl_note(ctl, "%s: %s; the packs' own directories are used instead", known->name,
                    why.text);
        return BK_OK;
    }
    if (rc == BK_NOT_FOUND) {
        known->gone = true;
        return BK_OK;
    }
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

/* A segment is hidden only when the one that replaces it is here and verified. */
static void hide_superseded(bk_index_t *index)
{
    for (size_t i = 0; i < index->known_count; i++)
        index->known[i].hidden = false;
    for (size_t i = 0; i < index->known_count; i++) {
        const bk_segment_t *s = index->known[i].segment;
        if (s == NULL || s->superseded == 0)
            continue;
        bk_cur_t cur = bk_segment_superseded(s);
        for (uint32_t n = 0; n < s->superseded; n++) {
            uint8_t len = bk_cur_u8(&cur);
            const char *name = (const char *)bk_cur_bytes(&cur, len);
            bk_known_t *old = name != NULL ? bk_index_known(index, name, len) : NULL;
            if (old != NULL && old != &index->known[i])
                old->hidden = true;
        }
    }
}

static bool is_missing(const bk_known_t *known)
{
    return known->segment == NULL && !known->merged && !known->damaged && !known->gone;
}

/* Newest first: a segment that replaces others is newer than they are. */
static bk_rc_t load_missing(bk_index_t *index, size_t *loaded, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *loaded = 0;
    for (size_t i = index->known_count; i-- > 0 && rc == BK_OK;) {
        if (!is_missing(&index->known[i]))
            continue;
        rc = load(index, &index->known[i], ctl, err);
        if (++*loaded % BATCH == 0) {
            hide_superseded(index);
            drop_stale_merges(index);
            merge_small(index);
        }
    }
    hide_superseded(index);
    drop_stale_merges(index);
    return rc;
}

static void drop_gone(bk_index_t *index)
{
    size_t kept = 0;
    for (size_t i = 0; i < index->known_count; i++) {
        if (index->known[i].gone)
            forget(index, &index->known[i]);
        else
            index->known[kept++] = index->known[i];
    }
    index->known_count = kept;
}

static void note_damaged(bk_index_t *index, bk_ctl_t *ctl)
{
    for (size_t i = 0; i < index->known_count; i++)
        if (index->known[i].damaged && !index->known[i].hidden)
            bk_ctl_note(ctl, "%s: it is damaged; the packs' own directories are used instead",
                        index->known[i].name);
}

bool bk_index_is_damaged(const bk_index_t *index)
{
    for (size_t i = 0; i < index->known_count; i++)
        if (index->known[i].damaged && !index->known[i].hidden)
            return true;
    return false;
}

bk_rc_t bk_index_load(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_index_names_t list = {0};
    size_t loaded = 1;
    bk_rc_t rc = list_names(index, &list, ctl, err);
    if (rc == BK_OK)
        rc = take_names(index, &list, err);
    bk_index_names_free(&list);
    if (rc != BK_OK)
        return rc;
    if (!index->looked) {
        index->looked = true;
        sweep_cache(index);
        rc = adopt_merges(index, err);
    }
    hide_superseded(index);
    drop_stale_merges(index);
    note_damaged(index, ctl);
    for (int round = 0; round < ROUNDS && loaded > 0 && rc == BK_OK; round++)
        rc = load_missing(index, &loaded, ctl, err);
    drop_gone(index);
    if (rc == BK_OK)
        merge_small(index);
    return rc;
}

void bk_index_unload(bk_index_t *index)
{
    for (size_t i = 0; i < index->known_count; i++) {
        bk_segment_unref(index->known[i].segment);
        free(index->known[i].name);
    }
    for (size_t i = 0; i < index->merge_count; i++)
        bk_segment_unref(index->merges[i]);
    for (size_t i = 0; i < index->made_count; i++)
        bk_segment_unref(index->made[i]);
    free(index->known);
    free(index->merges);
    free(index->made);
}
