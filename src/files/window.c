/*
 * files/window.c: a bounded number of files on their way: compare and write what needs no chunks,
 * fetch the others' chunks in the order they are stored in, flush the file system once, then
 * rename, link, remove, and set what directories say.
 *
 * Lane 0 owns the window; works touch only the items they were given.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "files/finishing.h"
#include "files/sources.h"

#define ITEMS_MAX  8192u
#define BYTES_MAX  (512ull << 20)
#define WANTS_MAX  16384u
#define WORK_ITEMS 64u
#define MAP_READ   1024u
#define HELD_MAX   48u /* files of several chunks that are begun through the helper */

typedef struct {
    void *items;
    size_t count, cap, size;
} list_t;

struct bk_window_s {
    bk_restore_t *restore;
    list_t items;  /* bk_item_t * */
    list_t dirs;   /* bk_final_t */
    list_t extras; /* bk_extra_t */
    uint64_t bytes;
    bk_want_chunk_t *wants;
    size_t want_count;
    size_t held; /* items that were begun and hold a descriptor, since the last fetch */
    bk_sources_t sources;
};

static void *list_add(list_t *list, size_t size)
{
    list->size = size;
    if (list->count == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 64;
        void *more = realloc(list->items, cap * size);
        if (more == NULL)
            return NULL;
        list->items = more;
        list->cap = cap;
    }
    return (char *)list->items + list->count++ * size;
}

bk_window_t *bk_window_new(bk_restore_t *restore)
{
    bk_window_t *window = calloc(1, sizeof *window);
    if (window == NULL)
        return NULL;
    window->restore = restore;
    window->wants = malloc(WANTS_MAX * sizeof *window->wants);
    if (window->wants == NULL) {
        free(window);
        return NULL;
    }
    return window;
}

static bk_item_t *item_at(const bk_window_t *window, size_t i)
{
    return ((bk_item_t **)window->items.items)[i];
}

/* A temporary that got no name has no reason to stay. */
static void remove_temporary(bk_item_t *item)
{
    bk_at_t at;
    if (item->temporary[0] == '\0' || bk_item_helped(item))
        return;
    if (bk_at_open(&item->restore->road, item->place->path, true, &at) != 0)
        return;
    bk_at_unlink(&at, item->temporary, 0);
    bk_at_close(&at);
    item->temporary[0] = '\0';
}

static void clear_lists(bk_window_t *window)
{
    bk_final_t *finals = window->dirs.items;
    bk_extra_t *extras = window->extras.items;
    if (window->restore->road.helper != NULL)
        bk_helped_discard(window->items.items, window->items.count);
    for (size_t i = 0; i < window->items.count; i++) {
        remove_temporary(item_at(window, i));
        bk_item_free(item_at(window, i));
    }
    for (size_t i = 0; i < window->dirs.count; i++) {
        bk_place_release(finals[i].place);
        free(finals[i].text);
    }
    for (size_t i = 0; i < window->extras.count; i++) {
        bk_place_release(extras[i].place);
        free(extras[i].name);
        free(extras[i].path);
    }
    window->items.count = window->dirs.count = window->extras.count = 0;
    window->bytes = 0;
}

void bk_window_free(bk_window_t *window)
{
    if (window == NULL)
        return;
    /* Temporaries go also when the job was stopped. */
    window->restore->road.ctl = NULL;
    clear_lists(window);
    bk_sources_free(&window->sources);
    free(window->items.items);
    free(window->dirs.items);
    free(window->extras.items);
    free(window->wants);
    free(window);
}

static bk_rc_t no_memory(bk_err_t *err)
{
    return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
}

static bool is_follower(const bk_item_t *item)
{
    return item->source != NULL && !item->first;
}

static bool is_over(const bk_item_t *item)
{
    return item->filled || item->unchanged || atomic_load(&item->failed);
}

/* --- adding --- */

static bk_rc_t make_room(bk_window_t *window, bk_err_t *err)
{
    size_t count = window->items.count + window->dirs.count + window->extras.count;
    return count < ITEMS_MAX && window->bytes < BYTES_MAX ? BK_OK : bk_window_flush(window, err);
}

bk_rc_t bk_window_add(bk_window_t *window, bk_place_t *place, const bk_entry_t *entry,
                      bk_existing_t existing, bool compare, bk_err_t *err)
{
    bk_rc_t rc = make_room(window, err);
    if (rc != BK_OK)
        return rc;
    bk_item_t **slot = list_add(&window->items, sizeof *slot);
    bk_item_t *item = bk_item_new(window->restore, place, entry);
    if (slot == NULL || item == NULL) {
        window->items.count -= slot != NULL;
        bk_item_free(item);
        return no_memory(err);
    }
    *slot = item;
    item->existing = existing;
    item->compare = compare;
    window->bytes += item->data_bytes;
    return bk_sources_note(&window->sources, item, err);
}

bk_rc_t bk_window_add_dir(bk_window_t *window, bk_place_t *place, const bk_entry_t *entry,
                          bk_err_t *err)
{
    bk_final_t *final = list_add(&window->dirs, sizeof *final);
    if (final == NULL)
        return no_memory(err);
    *final = (bk_final_t){.place = place, .entry = *entry};
    place->users++;
    final->text = malloc((size_t)entry->user_len + entry->group_len + 1);
    if (final->text == NULL)
        return no_memory(err);
    memcpy(final->text, entry->user, entry->user_len);
    memcpy(final->text + entry->user_len, entry->group, entry->group_len);
    final->entry.user = final->text;
    final->entry.group = final->text + entry->user_len;
    final->entry.name = NULL;
    return make_room(window, err);
}

bk_rc_t bk_window_add_extra(bk_window_t *window, bk_place_t *place, const char *name,
                            const char *path, bk_err_t *err)
{
    bk_extra_t *extra = list_add(&window->extras, sizeof *extra);
    if (extra == NULL)
        return no_memory(err);
    *extra = (bk_extra_t){.place = place, .name = bk_strdup(name), .path = bk_strdup(path)};
    place->users++;
    if (extra->name == NULL || extra->path == NULL)
        return no_memory(err);
    return make_room(window, err);
}

/* --- works on runs of items --- */

typedef struct {
    bk_window_t *window;
    size_t first, count;
} run_t;

static bk_rc_t spread(bk_window_t *window, bk_work_fn fn, bk_err_t *err)
{
    bk_group_t group;
    bk_rc_t rc = BK_OK;
    bk_group_init(&group);
    for (size_t at = 0; at < window->items.count && rc == BK_OK; at += WORK_ITEMS) {
        run_t *run = malloc(sizeof *run);
        if (run == NULL) {
            rc = no_memory(err);
            break;
        }
        size_t left = window->items.count - at;
        *run = (run_t){window, at, left < WORK_ITEMS ? left : WORK_ITEMS};
        bk_team_submit(window->restore->team, &group, fn, run, 64u << 10);
        if (bk_group_failed(&group))
            break;
    }
    bk_err_t failure = {0};
    bk_rc_t done = bk_team_wait(window->restore->team, &group, &failure);
    if (rc == BK_OK && done != BK_OK) {
        rc = done;
        if (err != NULL)
            *err = failure;
    }
    return rc;
}

static bk_item_t *const *items_of(const run_t *run)
{
    return (bk_item_t *const *)run->window->items.items + run->first;
}

/* The item's directory; *at is that of the item before. */
static int enter_place(const bk_item_t *item, const bk_place_t **place, bk_at_t *at)
{
    if (*place == item->place)
        return 0;
    bk_at_close(at);
    int errnum = bk_at_open(&item->restore->road, item->place->path, item->place->other, at);
    *place = errnum == 0 ? item->place : NULL;
    return errnum;
}

static void fail_place(bk_item_t *item, int errnum)
{
    bk_err_t why = {0};
    bk_at_error(&item->restore->road, errnum, "open its directory", &why);
    bk_item_fail(item, &why);
}

static bk_rc_t prepare_items(const run_t *run, bk_reader_t *reader, bk_err_t *err)
{
    bk_restore_t *restore = run->window->restore;
    const bk_place_t *place = NULL;
    bk_at_t at = {0};
    bk_rc_t rc = BK_OK;
    if (restore->road.helper != NULL)
        rc = bk_helped_compare(items_of(run), run->count, reader, err);
    for (size_t i = run->first; i < run->first + run->count && rc == BK_OK; i++) {
        bk_item_t *item = item_at(run->window, i);
        if ((rc = bk_ctl_check(restore->ctl, err)) != BK_OK || is_follower(item) || is_over(item))
            continue;
        if (!item->compare && (restore->options->dry_run || bk_item_needs_chunks(item)))
            continue;
        int errnum = enter_place(item, &place, &at);
        if (errnum != 0)
            fail_place(item, errnum);
        else
            rc = bk_item_prepare(item, &at, reader, err);
    }
    bk_at_close(&at);
    return rc;
}

static bk_rc_t prepare(void *arg, bk_err_t *err)
{
    run_t *run = arg;
    bk_restore_t *restore = run->window->restore;
    bool compare = false;
    for (size_t i = run->first; i < run->first + run->count; i++)
        compare = compare || item_at(run->window, i)->compare;
    bk_reader_t *reader = compare ? bk_restore_reader(restore) : NULL;
    bk_rc_t rc = compare && reader == NULL ? no_memory(err) : prepare_items(run, reader, err);
    bk_restore_reader_back(restore, reader);
    free(run);
    return rc;
}

static bk_rc_t describe(void *arg, bk_err_t *err)
{
    run_t *run = arg;
    bk_rc_t rc = bk_helped_describe(items_of(run), run->count, err);
    free(run);
    return rc;
}

/* --- fetching --- */

static bk_rc_t fetch(bk_window_t *window, bk_err_t *err)
{
    bk_restore_t *restore = window->restore;
    size_t count = window->want_count;
    window->want_count = window->held = 0;
    bk_rc_t rc = bk_repo_fetch(restore->repo, window->wants, count, restore->team, bk_item_deliver,
                               restore, restore->ctl, err);
    /* Those of damaged files would stay open until the window's end. */
    for (size_t i = 0; restore->road.helper != NULL && i < window->items.count; i++) {
        bk_item_t *item = item_at(window, i);
        if (item->fd >= 0 && atomic_load(&item->failed)) {
            close(item->fd);
            item->fd = -1;
        }
    }
    return rc;
}

/* Wants for some chunks that follow each other.  *offset: data bytes before them. */
static bk_rc_t want_chunks(bk_window_t *window, bk_item_t *item, const bk_chunk_ref_t *refs,
                           size_t count, uint64_t *offset, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        if (refs[i].raw > item->data_bytes - *offset || refs[i].raw == 0) {
            bk_err_t why = {0};
            bk_err_set(&why, BK_CORRUPT, "its chunks are longer than the file");
            bk_item_fail(item, &why);
            return BK_OK;
        }
        window->wants[window->want_count++] =
            (bk_want_chunk_t){.id = refs[i].id, .raw = refs[i].raw, .user = item, .tag = *offset};
        *offset += refs[i].raw;
        if (window->want_count == WANTS_MAX)
            rc = fetch(window, err);
    }
    return rc;
}

static bk_rc_t want_map(bk_window_t *window, bk_item_t *item, uint64_t *offset, bk_err_t *err)
{
    bk_restore_t *restore = window->restore;
    const bk_entry_t *entry = &item->entry;
    bk_map_t map = {.root = entry->map, .count = entry->map_count, .depth = entry->map_depth};
    bk_chunk_ref_t *refs = malloc(MAP_READ * sizeof *refs);
    bk_rc_t rc = refs == NULL ? no_memory(err) : BK_OK;
    for (uint64_t at = 0; at < map.count && rc == BK_OK && !atomic_load(&item->failed);) {
        bk_err_t why = {0};
        size_t n = map.count - at < MAP_READ ? (size_t)(map.count - at) : MAP_READ;
        rc = bk_map_read(restore->repo, &map, at, n, refs, restore->ctl, &why);
        if (rc == BK_OK) {
            rc = want_chunks(window, item, refs, n, offset, err);
        } else if (!bk_restore_is_fatal(rc)) {
            bk_item_fail(item, &why);
            rc = BK_OK;
        } else if (err != NULL) {
            *err = why;
        }
        at += n;
    }
    free(refs);
    return rc;
}

static bk_rc_t fetch_item(bk_window_t *window, bk_item_t *item, bk_err_t *err)
{
    char path[PATH_MAX];
    uint64_t offset = 0;
    if (bk_place_path(item->place, item->name, path))
        bk_restore_current(window->restore, path);
    bk_rc_t rc = bk_item_begin(item, err);
    if (rc != BK_OK || atomic_load(&item->failed))
        return rc;
    if (item->entry.flags & BK_ENTRY_MAP)
        rc = want_map(window, item, &offset, err);
    else
        rc = want_chunks(window, item, item->entry.chunks, item->entry.chunk_count, &offset, err);
    if (rc == BK_OK && offset != item->data_bytes && !atomic_load(&item->failed)) {
        bk_err_t why = {0};
        bk_err_set(&why, BK_CORRUPT, "its chunks are shorter than the file");
        bk_item_fail(item, &why);
    }
    window->held += item->fd >= 0;
    return rc == BK_OK && window->held == HELD_MAX ? fetch(window, err) : rc;
}

static bk_rc_t fetch_all(bk_window_t *window, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    window->want_count = 0;
    for (size_t i = 0; i < window->items.count && rc == BK_OK; i++) {
        bk_item_t *item = item_at(window, i);
        if (!is_follower(item) && !is_over(item) && bk_item_needs_chunks(item))
            rc = fetch_item(window, item, err);
    }
    return rc == BK_OK && window->want_count > 0 ? fetch(window, err) : rc;
}

/* --- names --- */

static bk_rc_t publish_items(const run_t *run, bk_err_t *err)
{
    bk_restore_t *restore = run->window->restore;
    const bk_place_t *place = NULL;
    bk_at_t at = {0};
    bk_rc_t rc = BK_OK;
    if (restore->road.helper != NULL)
        rc = bk_helped_publish(items_of(run), run->count, err);
    for (size_t i = run->first; i < run->first + run->count && rc == BK_OK; i++) {
        bk_item_t *item = item_at(run->window, i);
        bk_err_t why = {0};
        if (!item->filled || atomic_load(&item->failed) || item->temporary[0] == '\0')
            continue;
        int errnum = enter_place(item, &place, &at);
        if (errnum != 0) {
            fail_place(item, errnum);
            continue;
        }
        bk_rc_t one = bk_place_publish(restore, &at, item->temporary, item->name,
                                       item->existing == BK_ASIDE, &why);
        item->temporary[0] = '\0';
        if (one != BK_OK) {
            item->filled = false;
            rc = bk_item_settle(item, one, &why, err);
        }
        if (rc == BK_OK)
            rc = bk_ctl_check(restore->ctl, err);
    }
    bk_at_close(&at);
    return rc;
}

static bk_rc_t publish(void *arg, bk_err_t *err)
{
    run_t *run = arg;
    bk_rc_t rc = publish_items(run, err);
    free(run);
    return rc;
}

/* One that is to be linked.  *again: its source has content of its own to come. */
static bk_rc_t do_follower(bk_item_t *item, const bk_at_t *at, int entered, bool *again,
                           bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    if (item->restore->options->dry_run) {
        item->unchanged = entered == 0 && bk_source_is_linked(item, at);
        item->linked = item->filled = !item->unchanged;
        return BK_OK;
    }
    if (entered != 0) {
        fail_place(item, entered);
        return BK_OK;
    }
    if (item->source->there && bk_source_is_linked(item, at)) {
        item->unchanged = true;
        return BK_OK;
    }
    if (item->source->there && (rc = bk_source_link(item, at, &why)) == BK_OK) {
        item->linked = item->filled = true;
        return BK_OK;
    }
    if (bk_restore_is_fatal(rc)) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    *again = true;
    return item->source->pending ? BK_OK : bk_source_make(item, item->source, err);
}

/* Followers whose source is in place become links; the others must get content of their own. */
static bk_rc_t link_followers(bk_window_t *window, bool *again, bk_err_t *err)
{
    const bk_place_t *place = NULL;
    bk_at_t at = {0};
    bk_rc_t rc = BK_OK;
    *again = false;
    for (size_t i = 0; i < window->items.count && rc == BK_OK; i++) {
        bk_item_t *item = item_at(window, i);
        if (!is_follower(item) || is_over(item))
            continue;
        int entered = enter_place(item, &place, &at);
        rc = do_follower(item, &at, entered, again, err);
        if (rc == BK_OK)
            rc = bk_ctl_check(window->restore->ctl, err);
    }
    bk_at_close(&at);
    return rc;
}

static void settle_sources(bk_window_t *window)
{
    for (size_t i = 0; i < window->items.count; i++) {
        bk_item_t *item = item_at(window, i);
        if (item->source == NULL || !item->first || !item->source->pending)
            continue;
        item->source->pending = false;
        item->source->there = (item->filled || item->unchanged) && !atomic_load(&item->failed);
    }
}

static bk_rc_t flush_disk(bk_window_t *window, bk_err_t *err)
{
    bool any = false;
    for (size_t i = 0; i < window->items.count && !any; i++)
        any = item_at(window, i)->temporary[0] != '\0';
    return any ? bk_road_sync(&window->restore->road, err) : BK_OK;
}

/* --- the whole --- */

static const char *action_of(const bk_item_t *item)
{
    if (item->unchanged)
        return "unchanged";
    if (item->existing == BK_ASIDE)
        return "rename";
    if (item->linked)
        return "link";
    return item->existing == BK_NOT_THERE ? "create" : "replace";
}

static void count_item(bk_restore_t *restore, const bk_item_t *item)
{
    bk_restore_stats_t *stats = &restore->stats;
    pthread_mutex_lock(&restore->lock);
    stats->unchanged += item->unchanged;
    stats->written += item->filled;
    if (item->filled && !item->linked)
        stats->bytes_written += item->data_bytes;
    if (restore->options->dry_run && item->filled && item->existing == BK_ASIDE)
        stats->renamed++;
    pthread_mutex_unlock(&restore->lock);
    if (restore->ctl == NULL)
        return;
    atomic_fetch_add_explicit(&restore->ctl->files_done, 1, memory_order_relaxed);
    /* Chunks were counted as they came. */
    if (!item->filled || item->linked || !bk_item_needs_chunks(item))
        atomic_fetch_add_explicit(&restore->ctl->bytes_done, item->entry.size,
                                  memory_order_relaxed);
}

/* What became of each file. */
static void settle_items(bk_window_t *window)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < window->items.count; i++) {
        bk_item_t *item = item_at(window, i);
        if (atomic_load(&item->failed) || !is_over(item))
            continue;
        count_item(window->restore, item);
        if (window->restore->plan != NULL && bk_place_path(item->place, item->name, path))
            bk_restore_plan(window->restore, path, action_of(item), item->entry.size);
    }
    bk_sources_forget(&window->sources);
}

/* A dry run takes what would be written for written. */
static void pretend(bk_window_t *window)
{
    for (size_t i = 0; i < window->items.count; i++) {
        bk_item_t *item = item_at(window, i);
        if (!is_follower(item) && !is_over(item))
            item->filled = true;
    }
}

static bk_rc_t fill(bk_window_t *window, bk_err_t *err)
{
    bk_rc_t rc = spread(window, prepare, err);
    if (rc != BK_OK)
        return rc;
    if (window->restore->options->dry_run) {
        pretend(window);
        return BK_OK;
    }
    rc = fetch_all(window, err);
    if (rc == BK_OK && window->restore->road.helper != NULL) {
        rc = bk_helped_write_rest(window->restore, err);
        if (rc == BK_OK)
            rc = spread(window, describe, err);
    }
    if (rc == BK_OK)
        rc = flush_disk(window, err);
    return rc == BK_OK ? spread(window, publish, err) : rc;
}

bk_rc_t bk_window_flush(bk_window_t *window, bk_err_t *err)
{
    bool again = window->items.count > 0;
    bk_rc_t rc = BK_OK;
    while (rc == BK_OK && again) {
        rc = fill(window, err);
        if (rc == BK_OK) {
            settle_sources(window);
            rc = link_followers(window, &again, err);
        }
    }
    if (rc == BK_OK)
        rc = bk_finish_extras(window->restore, window->extras.items, window->extras.count, err);
    if (rc == BK_OK && !window->restore->options->dry_run)
        rc = bk_finish_dirs(window->restore, window->dirs.items, window->dirs.count, err);
    if (rc == BK_OK) {
        settle_items(window);
        clear_lists(window);
    }
    return rc;
}
