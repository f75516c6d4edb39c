/*
 * files/backup.c: lane 0 of a file backup: directories in depth-first order, names to the lanes
 * (walk.h has the idea).
 *
 * Opens directories below the root by their path, so that no descriptor is held on the way down and
 * a directory that is moved meanwhile is simply gone.
 */
#include "files/backup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "files/compare.h"
#include "files/walk.h"

#define SLOTS_MAX     16384u /* alive: about 16 MiB with their content */
#define BATCH_FULL    32u
#define BATCH_COMPARE 256u

/* Where lane 0 is in one directory. */
typedef struct {
    bk_frame_t *frame;
    bk_segment_t *segment; /* its directories are being entered; NULL: the next is to be made */
    size_t slot;           /* next slot to look at */
    size_t next;           /* first name of the next segment */
} place_t;

typedef struct {
    place_t *items;
    size_t count, cap;
} stack_t_; /* stack_t is POSIX's */

/* Of a cache only the tag is kept. */
static void keep_tag(bk_walk_t *walk, bk_frame_t *frame)
{
    for (size_t i = 0; i < frame->names.count; i++) {
        if (strcmp(bk_listing_name(&frame->names, i), BK_CACHEDIR_TAG) != 0)
            continue;
        pthread_mutex_lock(&walk->lock);
        walk->stats.excluded += frame->names.count - 1;
        pthread_mutex_unlock(&walk->lock);
        frame->names.places[0] = frame->names.places[i];
        frame->names.count = 1;
        return;
    }
}

/* --- frames --- */

static bk_frame_t *new_frame(bk_walk_t *walk, const char *path, size_t len, bk_segment_t *parent,
                             bk_slot_t *slot)
{
    bk_frame_t *frame = calloc(1, sizeof *frame);
    if (frame == NULL || (frame->path = bk_strndup(path, len)) == NULL) {
        free(frame);
        return NULL;
    }
    frame->path_len = len;
    frame->parent = parent;
    frame->slot = slot;
    frame->tail = &frame->segments;
    if (slot != NULL && slot->known) {
        frame->previous = slot->entry.child;
        frame->has_previous = true;
    }
    pthread_mutex_lock(&walk->lock);
    frame->live_next = walk->live;
    frame->live_link = &walk->live;
    if (walk->live != NULL)
        walk->live->live_link = &frame->live_next;
    walk->live = frame;
    pthread_mutex_unlock(&walk->lock);
    return frame;
}

static bk_rc_t push(stack_t_ *stack, bk_frame_t *frame, bk_err_t *err)
{
    if (stack->count == stack->cap) {
        size_t cap = stack->cap > 0 ? 2 * stack->cap : 32;
        place_t *more = realloc(stack->items, cap * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
        stack->items = more;
        stack->cap = cap;
    }
    stack->items[stack->count++] = (place_t){.frame = frame};
    return BK_OK;
}

static bk_handle_t *new_handle(int fd)
{
    bk_handle_t *handle = malloc(sizeof *handle);
    if (handle == NULL) {
        close(fd);
        return NULL;
    }
    atomic_init(&handle->users, 1);
    handle->fd = fd;
    return handle;
}

static bool is_gone(int errnum)
{
    return errnum == ENOENT || errnum == ENOTDIR || errnum == ELOOP || errnum == EXDEV;
}

/* The descriptor of a frame's directory, unless it is another directory by now. */
static bk_rc_t reopen(bk_walk_t *walk, const bk_frame_t *frame, bk_handle_t **handle, bk_err_t *err)
{
    struct stat st;
    bool helped;
    int fd;
    *handle = NULL;
    int errnum = bk_looker_dir(&walk->looker, frame->path, &fd, &helped);
    if (is_gone(errnum))
        return BK_OK;
    if (errnum != 0)
        return bk_walk_unreadable(walk, frame->path, errnum, "open directory", err);
    if (fstat(fd, &st) != 0 || st.st_ino != frame->inode || st.st_dev != frame->device) {
        close(fd);
        return BK_OK;
    }
    *handle = new_handle(fd);
    return *handle != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
}

/* What the entry of a directory says, but its child.  fd: -1 when it cannot be read. */
static bk_rc_t describe_dir(bk_walk_t *walk, const bk_frame_t *frame, int fd, bool helped,
                            const struct stat *st, bk_err_t *err)
{
    bk_slot_t *slot = frame->slot;
    bk_rc_t rc = BK_OK;
    if (slot == NULL)
        return BK_OK;
    slot->entry.flags = fd >= 0 ? 0 : BK_ENTRY_DAMAGED;
    bk_entry_from_stat(walk, &slot->entry, BK_ENTRY_DIR, st);
    slot->present = true;
    pthread_mutex_lock(&walk->lock);
    walk->stats.dirs++;
    pthread_mutex_unlock(&walk->lock);
    if (fd >= 0 && walk->options->xattrs) {
        bk_buf_t blob;
        bk_buf_init(&blob, BK_ATTRS_MAX);
        int errnum = bk_looker_dir_attrs(&walk->looker, frame->path, fd, helped, &blob);
        if (errnum == BK_LOOK_GONE)
            rc = bk_looker_gone(&walk->looker, err);
        else if (errnum == 0)
            rc = bk_entry_put_attrs(walk, &slot->entry, &blob, err);
        bk_buf_free(&blob);
    }
    return rc;
}

/* A directory that can't be listed is in the tree all the same, empty and marked. */
static bk_rc_t describe_unreadable(bk_walk_t *walk, bk_frame_t *frame, int errnum, bk_err_t *err)
{
    struct stat st;
    bk_rc_t rc = bk_walk_unreadable(walk, frame->path, errnum, "open directory", err);
    if (rc != BK_OK || bk_looker_stat(&walk->looker, frame->path, &st) != 0 ||
        bk_walk_skips(walk, &st))
        return rc;
    return describe_dir(walk, frame, -1, false, &st, err);
}

/* The names in the directory fd; *listed tells whether that went well. */
static bk_rc_t load_names(bk_walk_t *walk, bk_frame_t *frame, int fd, int *errnum, bk_err_t *err)
{
    *errnum = bk_listing_read(fd, &frame->names);
    if (*errnum == ENOMEM)
        return bk_err_set(err, BK_NO_MEMORY, "list a directory of %zu names: out of memory",
                          frame->names.count);
    if (*errnum == 0 || (*errnum == ENOENT && frame->slot != NULL))
        return BK_OK;
    if (frame->slot == NULL)
        return bk_err_sys(err, *errnum, "list %s", walk->options->path);
    return bk_walk_unreadable(walk, frame->path, *errnum, "list directory", err);
}

/* Read what is in a directory; without names when there is nothing to walk. */
static bk_rc_t load_frame(bk_walk_t *walk, bk_frame_t *frame, bk_err_t *err)
{
    const bk_files_options_t *options = walk->options;
    struct stat st;
    bool helped;
    int fd, listed = 0, errnum = bk_looker_dir(&walk->looker, frame->path, &fd, &helped);
    if (errnum == EXDEV && helped)
        return options->one_file_system
                   ? BK_OK
                   : bk_walk_unreadable(walk, frame->path, errnum,
                                        "open a mount point, which the helper does not cross (give "
                                        "it a files block of its own)",
                                        err);
    if (errnum != 0)
        return is_gone(errnum) ? BK_OK : describe_unreadable(walk, frame, errnum, err);
    if (fstat(fd, &st) != 0 || bk_walk_skips(walk, &st)) {
        close(fd);
        return BK_OK;
    }
    frame->device = st.st_dev;
    frame->inode = st.st_ino;
    bk_rc_t rc = BK_OK;
    atomic_fetch_add_explicit(&walk->listed, 1, memory_order_relaxed);
    /* A mount point stays as an empty directory: something can be mounted on it again. */
    if (!options->one_file_system || st.st_dev == walk->device)
        rc = load_names(walk, frame, fd, &listed, err);
    if (rc == BK_OK && options->cachedir && frame->names.count > 1 &&
        bk_looker_is_cache(&walk->looker, frame->path, fd))
        keep_tag(walk, frame);
    if (rc == BK_OK && listed != ENOENT) /* which is: removed since it was opened */
        rc = describe_dir(walk, frame, listed == 0 ? fd : -1, helped, &st, err);
    close(fd);
    return rc;
}

/* --- segments --- */

static bool kind_is_dir(bk_view_t *view, size_t at)
{
    struct stat st;
    unsigned char kind = bk_listing_kind(view->names, at);
    if (kind != DT_UNKNOWN)
        return kind == DT_DIR;
    return view->fd >= 0 && bk_view_stat(view, at, &st) == 0 && S_ISDIR(st.st_mode);
}

/* A directory that nothing is said of is as it was, with all that is below it. */
static bk_rc_t recognise(bk_walk_t *walk, const bk_frame_t *frame, bk_slot_t *slot,
                         const bk_entry_t *before, bk_err_t *err)
{
    slot->entry.child = before->child;
    slot->known = true;
    if (frame->how != BK_FRAME_LIST)
        return BK_OK;
    bk_rc_t rc = bk_reuse_entry(slot, before, err);
    slot->taken = bk_dirset_child(walk->options->since->dirty, frame->dirty, before->name,
                                  before->name_len) == NULL;
    slot->directory = !slot->taken;
    if (rc == BK_OK && slot->taken && !bk_session_has(walk->session, &before->child))
        rc = bk_reuse_give_up(walk, err);
    return rc;
}

/* Which nodes of the previous tree belong to the directories of a segment. */
static bk_rc_t find_previous(bk_walk_t *walk, bk_segment_t *segment, bk_err_t *err)
{
    bk_rc_t done = BK_OK;
    bk_frame_t *frame = segment->frame;
    bk_tree_iter_t *iter = NULL;
    bk_err_t lost = {0};
    const bk_entry_t *before = NULL;
    bk_rc_t rc = bk_tree_iter_open(bk_session_repo(walk->session), &frame->previous, walk->ctl,
                                   &iter, &lost);
    for (size_t i = 0; i < segment->count && rc == BK_OK && done == BK_OK; i++) {
        bk_slot_t *slot = &segment->slots[i];
        if (!slot->directory)
            continue;
        rc = bk_tree_iter_seek(iter, slot->entry.name, slot->entry.name_len, &lost);
        if (rc == BK_OK)
            rc = bk_tree_iter_next(iter, &before, &lost);
        if (rc != BK_OK || before == NULL)
            break;
        if (before->type == BK_ENTRY_DIR && before->name_len == slot->entry.name_len &&
            memcmp(before->name, slot->entry.name, before->name_len) == 0)
            done = recognise(walk, frame, slot, before, err);
    }
    bk_tree_iter_close(iter);
    if (lost.rc != BK_OK && walk->since)
        return bk_reuse_give_up(walk, err);
    if (lost.rc != BK_OK)
        bk_walk_lost_previous(walk, frame, &lost);
    return done;
}

/* Let other lanes catch up when much is unfinished. */
static void throttle(bk_walk_t *walk)
{
    while (atomic_load(&walk->slots) > SLOTS_MAX && !bk_group_failed(&walk->group)) {
        if (bk_team_help(walk->team))
            continue;
        bk_team_wait(walk->team, &walk->group, NULL);
        break;
    }
}

/* Make the next segment of a directory and hand out what is no directory. */
static bk_rc_t start_segment(bk_walk_t *walk, place_t *place, bk_err_t *err)
{
    bk_frame_t *frame = place->frame;
    size_t count = frame->names.count - place->next;
    bk_handle_t *handle = NULL;
    bool dirs = false;
    if (count > BK_SEGMENT_MAX)
        count = BK_SEGMENT_MAX;
    bk_segment_t *segment =
        bk_segment_new(walk, frame, place->next, count, place->next + count == frame->names.count);
    if (segment == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
    place->segment = segment;
    place->slot = 0;
    place->next += count;
    if (frame->how == BK_FRAME_TAKE)
        return bk_reuse_segment(walk, segment, err);
    bk_view_t view;
    bk_rc_t rc = count > 0 ? reopen(walk, frame, &handle, err) : BK_OK;
    bk_view_begin(&view, &walk->looker, frame->path, handle != NULL ? handle->fd : -1,
                  &frame->names);
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        bk_slot_t *slot = &segment->slots[i];
        slot->directory = kind_is_dir(&view, segment->first + i);
        slot->entry.name = (const uint8_t *)bk_listing_name(&frame->names, segment->first + i);
        slot->entry.name_len = (uint16_t)strlen((const char *)slot->entry.name);
        dirs = dirs || slot->directory;
    }
    bk_view_end(&view);
    if (rc == BK_OK && dirs && frame->has_previous)
        rc = find_previous(walk, segment, err);
    size_t step = frame->has_previous ? BATCH_COMPARE : BATCH_FULL;
    for (size_t at = 0; at < count && rc == BK_OK && handle != NULL; at += step) {
        bool any = false;
        size_t end = at + step < count ? at + step : count;
        for (size_t i = at; i < end && !any; i++)
            any = !segment->slots[i].directory && !segment->slots[i].taken;
        if (any)
            rc = bk_batch_submit(walk, segment, handle, at, end - at, err);
    }
    bk_handle_release(handle);
    return rc;
}

/* Excluded, or nothing in it could be selected. */
static bool leave_out(bk_walk_t *walk, const bk_frame_t *parent, const char *path, size_t len,
                      bool *selected)
{
    const bk_files_options_t *options = walk->options;
    bool matching = options->match != NULL && options->match->count > 0;
    *selected = parent->selected || (matching && bk_patterns_take_tree(options->match, path, len));
    if (options->exclude != NULL && bk_patterns_match(options->exclude, path, len, true))
        return true;
    return matching && !*selected && !bk_patterns_may_match_below(options->match, path, len);
}

/* How to go through a directory: what is said of it, unless it is new or within what is walked. */
static void choose_how(const bk_walk_t *walk, bk_frame_t *frame, const bk_frame_t *parent)
{
    if (!walk->since || (parent != NULL && parent->how == BK_FRAME_WALK) || !frame->has_previous)
        return;
    frame->dirty = parent == NULL
                       ? bk_dirset_root(walk->options->since->dirty)
                       : bk_dirset_child(walk->options->since->dirty, parent->dirty,
                                         frame->slot->entry.name, frame->slot->entry.name_len);
    if (parent != NULL && frame->dirty == NULL)
        return;
    if (!bk_dirnode_tree(frame->dirty))
        frame->how = bk_dirnode_marked(frame->dirty) ? BK_FRAME_LIST : BK_FRAME_TAKE;
}

/* The entries of a directory that is taken over, which only its parent knows the number of. */
static bk_rc_t take_frame(bk_walk_t *walk, bk_frame_t *frame, uint64_t entries, bk_err_t *err)
{
    bk_err_t lost = {0};
    frame->names.count = (size_t)entries;
    if (bk_tree_iter_open(bk_session_repo(walk->session), &frame->previous, walk->ctl,
                          &frame->before, &lost) == BK_OK)
        return BK_OK;
    return bk_reuse_give_up(walk, err);
}

/* Enter the directory in a slot: a new place on the stack. */
static bk_rc_t enter(bk_walk_t *walk, stack_t_ *stack, bk_segment_t *segment, bk_slot_t *slot,
                     bk_err_t *err)
{
    char path[PATH_MAX];
    size_t len;
    bool selected;
    const char *name = (const char *)slot->entry.name;
    if (!bk_walk_path(segment->frame, name, path, &len))
        return bk_walk_unreadable(walk, segment->frame->path, ENAMETOOLONG,
                                  "enter a directory in it", err);
    if (leave_out(walk, segment->frame, path, len, &selected)) {
        slot->present = false;
        pthread_mutex_lock(&walk->lock);
        walk->stats.excluded++;
        pthread_mutex_unlock(&walk->lock);
        return BK_OK;
    }
    atomic_fetch_add(&segment->pending, 1);
    bk_frame_t *frame = new_frame(walk, path, len, segment, slot);
    if (frame == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
    frame->selected = selected;
    choose_how(walk, frame, segment->frame);
    bk_rc_t rc;
    if (frame->how == BK_FRAME_TAKE) {
        rc = take_frame(walk, frame, slot->entry.children, err);
    } else {
        slot->present = false; /* until it is seen */
        rc = load_frame(walk, frame, err);
    }
    return rc == BK_OK ? push(stack, frame, err) : rc;
}

/* One step of the walk in the directory on top of the stack. */
static bk_rc_t step(bk_walk_t *walk, stack_t_ *stack, bk_err_t *err)
{
    place_t *place = &stack->items[stack->count - 1];
    bk_segment_t *segment = place->segment;
    if (segment == NULL) {
        throttle(walk);
        return start_segment(walk, place, err);
    }
    while (place->slot < segment->count) {
        bk_slot_t *slot = &segment->slots[place->slot++];
        if (slot->directory)
            return enter(walk, stack, segment, slot, err);
    }
    /* The segment may be freed with this, and the frame when it was the last. */
    place->segment = NULL;
    if (place->next == place->frame->names.count)
        stack->count--;
    return bk_segment_finish_one(walk, segment, err);
}

static bk_rc_t walk_all(bk_walk_t *walk, bk_err_t *err)
{
    stack_t_ stack = {0};
    bk_rc_t rc = BK_OK;
    if (walk->since && bk_dirset_empty(walk->options->since->dirty) &&
        bk_session_has(walk->session, &walk->options->previous->root)) {
        walk->root_id = walk->options->previous->root;
        walk->root_entries = walk->options->previous->entries;
        walk->finished = true;
        return BK_OK;
    }
    bk_frame_t *frame = new_frame(walk, "", 0, NULL, NULL);
    if (frame == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
    if (walk->options->previous != NULL) {
        frame->previous = walk->options->previous->root;
        frame->has_previous = true;
    }
    choose_how(walk, frame, NULL);
    if (frame->how == BK_FRAME_TAKE)
        rc = take_frame(walk, frame, walk->options->previous->entries, err);
    else
        rc = load_frame(walk, frame, err);
    if (rc == BK_OK)
        rc = push(&stack, frame, err);
    while (rc == BK_OK && stack.count > 0 && !bk_group_failed(&walk->group)) {
        rc = bk_ctl_check(walk->ctl, err);
        if (rc == BK_OK)
            rc = step(walk, &stack, err);
        if (rc == BK_OK)
            rc = bk_batch_large(walk, err);
    }
    free(stack.items);
    return rc;
}

/* Until nothing is left: a work may find another large file. */
static bk_rc_t finish_works(bk_walk_t *walk, bk_rc_t rc, bk_err_t *err)
{
    for (;;) {
        bk_err_t failure = {0};
        bk_rc_t done = bk_team_wait(walk->team, &walk->group, &failure);
        if (rc == BK_OK && done != BK_OK) {
            rc = done;
            if (err != NULL)
                *err = failure;
        }
        if (rc != BK_OK || walk->large == NULL)
            return rc;
        rc = bk_batch_large(walk, err);
    }
}

/* --- the whole --- */

static int compare_inodes(const void *a, const void *b)
{
    const bk_inode_t *x = a, *y = b;
    if (x->inode != y->inode)
        return x->inode < y->inode ? -1 : 1;
    return x->device < y->device ? -1 : x->device > y->device;
}

static bk_rc_t set_up(bk_walk_t *walk, bk_err_t *err)
{
    const bk_files_options_t *options = walk->options;
    struct stat st;
    bk_rc_t rc = bk_looker_init(&walk->looker, options->path, options->helper, walk->ctl, err);
    if (rc != BK_OK) {
        bk_err_wrap(err, "files \"%s\"", options->name != NULL ? options->name : "");
        return rc;
    }
    int errnum = bk_looker_stat(&walk->looker, "", &st);
    if (errnum == BK_LOOK_GONE)
        return bk_looker_gone(&walk->looker, err);
    if (errnum != 0)
        return bk_err_sys(err, errnum, "look at %s", options->path);
    walk->device = st.st_dev;
    walk->root = st;
    walk->started = bk_now();
    walk->names = bk_names_new();
    walk->skip = calloc(options->skip_count + 1, sizeof *walk->skip);
    if (walk->names == NULL || walk->skip == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "walk %s: out of memory", options->path);
    for (size_t i = 0; i < options->skip_count; i++)
        walk->skip[i] = options->skip[i];
    qsort(walk->skip, options->skip_count, sizeof *walk->skip, compare_inodes);
    if (bk_walk_skips(walk, &st))
        return bk_err_set(err, BK_CONFIG,
                          "files \"%s\": %s is the backup's own directory; choose another path",
                          options->name != NULL ? options->name : "", options->path);
    return BK_OK;
}

static void tear_down(bk_walk_t *walk)
{
    while (walk->large != NULL) {
        bk_large_t *large = walk->large;
        walk->large = large->next;
        bk_handle_release(large->handle);
        free(large);
    }
    while (walk->live != NULL)
        bk_frame_free(walk, walk->live);
    for (size_t i = 0; i < walk->readers.count; i++)
        bk_reader_free(walk->readers.items[i]);
    bk_names_free(walk->names);
    bk_looker_free(&walk->looker);
    free(walk->skip);
    free(walk->linked);
    pthread_mutex_destroy(&walk->lock);
}

/* The figures of the whole tree, when only a part of it was looked at.  That reads more of the
 * previous tree than making the new one did: what was removed is counted there. */
static bk_rc_t count_by_comparison(bk_walk_t *walk, bk_err_t *err)
{
    const bk_snapshot_tree_t *previous = walk->options->previous;
    const bk_files_since_t *since = walk->options->since;
    bk_files_stats_t *stats = &walk->stats;
    bk_compared_t sums;
    bk_rc_t rc = bk_files_compare(bk_session_repo(walk->session), &previous->root, &walk->root_id,
                                  &sums, NULL, walk->ctl, err);
    if (rc == BK_CANCELED || rc == BK_INTERRUPTED)
        return rc;
    if (rc != BK_OK)
        return bk_reuse_give_up(walk, err);
    stats->files = previous->files + (uint64_t)sums.files;
    stats->bytes = previous->bytes + (uint64_t)sums.bytes;
    stats->dirs = since->dirs + (uint64_t)sums.dirs;
    stats->links = since->links + (uint64_t)sums.links;
    stats->others = since->others + (uint64_t)sums.others;
    stats->files_new = sums.files_new;
    stats->files_changed = sums.files_changed;
    stats->files_unmodified = stats->files - sums.files_new - sums.files_changed;
    return BK_OK;
}

static void keep_owner(char out[BK_SNAPSHOT_OWNER], const char *name, uint8_t len)
{
    if (!bk_fmt(out, BK_SNAPSHOT_OWNER, "%.*s", (int)len, name))
        out[0] = '\0';
}

/* No entry of the tree does. */
static void describe_root(bk_walk_t *walk, bk_snapshot_tree_t *tree)
{
    uint8_t len;
    const struct stat *st = &walk->root;
    int64_t mtime = (int64_t)st->st_mtim.tv_sec * BK_SEC + st->st_mtim.tv_nsec;
    tree->described = true;
    tree->mode = st->st_mode & 07777;
    tree->uid = st->st_uid;
    tree->gid = st->st_gid;
    tree->mtime = mtime > 0 ? mtime : 0;
    const char *user = bk_names_user(walk->names, st->st_uid, &len);
    keep_owner(tree->user, user, len);
    const char *group = bk_names_group(walk->names, st->st_gid, &len);
    keep_owner(tree->group, group, len);
}

static bk_rc_t fill_tree(bk_walk_t *walk, bk_snapshot_tree_t *tree, bk_err_t *err)
{
    const bk_snapshot_tree_t *previous = walk->options->previous;
    bk_files_stats_t *stats = &walk->stats;
    uint64_t still = stats->files_unmodified + stats->files_changed;
    if (!walk->finished)
        return bk_err_set(err, BK_FAILED, "walk %s: it did not come to its end",
                          walk->options->path);
    if (previous != NULL && previous->files > still)
        stats->files_removed = previous->files - still;
    free(tree->path);
    tree->path = bk_strdup(walk->options->path);
    if (tree->path == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "walk %s: out of memory", walk->options->path);
    tree->root = walk->root_id;
    tree->entries = walk->root_entries;
    tree->files = stats->files;
    tree->bytes = stats->bytes;
    describe_root(walk, tree);
    return BK_OK;
}

static bk_rc_t run(bk_walk_t *walk, bk_snapshot_tree_t *tree, bk_err_t *err)
{
    pthread_mutex_init(&walk->lock, NULL);
    bk_group_init(&walk->group);
    bk_rc_t rc = set_up(walk, err);
    if (rc == BK_OK) {
        rc = walk_all(walk, err);
        rc = finish_works(walk, rc, err);
    }
    if (rc == BK_OK && walk->since && !bk_reuse_links_complete(walk))
        rc = bk_reuse_give_up(walk, err);
    if (rc == BK_OK && walk->since)
        rc = count_by_comparison(walk, err);
    if (rc == BK_OK)
        rc = fill_tree(walk, tree, err);
    walk->stats.dirs_listed = atomic_load(&walk->listed);
    walk->stats.walked = !walk->since;
    tear_down(walk);
    return rc;
}

bk_rc_t bk_files_backup(bk_session_t *session, const bk_files_options_t *options, bk_team_t *team,
                        bk_snapshot_tree_t *tree, bk_files_stats_t *stats, json_t *unreadable,
                        bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_walk_t fresh = {
        .session = session, .options = options, .team = team, .ctl = ctl, .unreadable = unreadable};
    size_t listed = json_array_size(unreadable);
    bk_err_t why = {0};
    bk_walk_t walk = fresh;
    walk.since = options->since != NULL && options->previous != NULL;
    bk_rc_t rc = run(&walk, tree, &why);
    if (rc != BK_OK && atomic_load(&walk.redo)) {
        while (json_array_size(unreadable) > listed)
            json_array_remove(unreadable, json_array_size(unreadable) - 1);
        walk = fresh;
        rc = run(&walk, tree, &why);
    }
    *stats = walk.stats;
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}
