/*
 * files/batch.c: names of one directory into slots: look, compare with the previous backup, leave
 * what is new to reading.c.  Runs in any lane.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "files/walk.h"

#define ALONE_MIN   (1u << 20)  /* larger files are works of their own */
#define LARGE_MIN   (64u << 20) /* larger ones are spread over the lanes */
#define LISTED_MAX  1000u
#define CURRENT_GAP (100 * BK_MS)

typedef struct {
    bk_walk_t *walk;
    bk_segment_t *segment;
    bk_handle_t *handle;
    size_t first, count; /* slots of the segment */
} batch_t;

/* --- things shared with lane 0 --- */

bool bk_walk_path(const bk_frame_t *frame, const char *name, char *out, size_t *len)
{
    size_t name_len = strlen(name), at = frame->path_len;
    if (at + 1 + name_len + 1 > PATH_MAX)
        return false;
    memcpy(out, frame->path, at);
    if (at > 0)
        out[at++] = '/';
    memcpy(out + at, name, name_len + 1);
    *len = at + name_len;
    return true;
}

void bk_walk_again(bk_walk_t *walk, const bk_frame_t *frame)
{
    if (walk->options->again == NULL)
        return;
    pthread_mutex_lock(&walk->lock);
    bk_dirset_add(walk->options->again, frame->path, false);
    pthread_mutex_unlock(&walk->lock);
}

/* Under the lock.  rel may be a file or a directory: it, and where its name is. */
static void again_at(bk_walk_t *walk, const char *rel)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(rel, '/');
    if (walk->options->again == NULL)
        return;
    bk_fmt(parent, sizeof parent, "%.*s", slash != NULL ? (int)(slash - rel) : 0, rel);
    bk_dirset_add(walk->options->again, rel, false);
    bk_dirset_add(walk->options->again, parent, false);
}

/* Once: what would help. */
static void note_denied(bk_walk_t *walk)
{
    pthread_mutex_lock(&walk->lock);
    bool noted = walk->denied_noted;
    walk->denied_noted = true;
    pthread_mutex_unlock(&walk->lock);
    if (!noted && walk->options->helper == NULL)
        bk_ctl_note(walk->ctl,
                    "files \"%s\": this process (user id %u) has no right to some of them; the "
                    "privileged helper reads them without any: see the directive backup_helper",
                    walk->options->name != NULL ? walk->options->name : "", (unsigned)geteuid());
}

bk_rc_t bk_walk_unreadable(bk_walk_t *walk, const char *rel, int errnum, const char *operation,
                           bk_err_t *err)
{
    bk_err_t why = {0};
    bk_buf_t path;
    if (errnum == BK_LOOK_GONE)
        return bk_looker_gone(&walk->looker, err);
    if (errnum == EACCES)
        note_denied(walk);
    bk_err_sys(&why, errnum, "%s", operation);
    bk_buf_init(&path, 2 * PATH_MAX);
    bk_buf_add(&path, walk->options->path, strlen(walk->options->path));
    if (rel[0] != '\0') {
        bk_buf_u8(&path, '/');
        bk_buf_add(&path, rel, strlen(rel));
    }
    pthread_mutex_lock(&walk->lock);
    walk->stats.unreadable++;
    again_at(walk, rel);
    if (walk->unreadable != NULL && json_array_size(walk->unreadable) < LISTED_MAX &&
        bk_buf_ok(&path)) {
        json_t *item = json_object();
        json_object_set_new(item, "path", bk_json_name(path.data, path.len));
        json_object_set_new(item, "errno", json_integer(errnum));
        json_object_set_new(item, "error", json_string(why.text));
        json_array_append_new(walk->unreadable, item);
    }
    pthread_mutex_unlock(&walk->lock);
    bk_buf_free(&path);
    return BK_OK;
}

bool bk_walk_skips(const bk_walk_t *walk, const struct stat *st)
{
    size_t low = 0, high = walk->options->skip_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const bk_inode_t *at = &walk->skip[middle];
        if (at->inode == st->st_ino && at->device == st->st_dev)
            return true;
        if (at->inode < st->st_ino || (at->inode == st->st_ino && at->device < st->st_dev))
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static int64_t ns_of(const struct timespec *time)
{
    return time->tv_sec * BK_SEC + time->tv_nsec;
}

void bk_entry_from_stat(bk_walk_t *walk, bk_entry_t *entry, uint8_t type, const struct stat *st)
{
    entry->type = type;
    entry->mode = st->st_mode & 07777;
    entry->uid = st->st_uid;
    entry->gid = st->st_gid;
    entry->user = bk_names_user(walk->names, st->st_uid, &entry->user_len);
    entry->group = bk_names_group(walk->names, st->st_gid, &entry->group_len);
    entry->mtime = ns_of(&st->st_mtim);
    entry->ctime = ns_of(&st->st_ctim);
    entry->device = st->st_dev;
    entry->inode = st->st_ino;
    entry->links = (uint32_t)st->st_nlink;
}

bk_rc_t bk_entry_put_attrs(bk_walk_t *walk, bk_entry_t *entry, const bk_buf_t *blob, bk_err_t *err)
{
    if (blob->len == 0)
        return BK_OK;
    entry->flags |= BK_ENTRY_ATTRS;
    return bk_session_put(walk->session, BK_TYPE_BLOB, false, blob->data, blob->len, &entry->attrs,
                          err);
}

void bk_walk_lost_previous(bk_walk_t *walk, const bk_frame_t *frame, const bk_err_t *why)
{
    pthread_mutex_lock(&walk->lock);
    bool noted = walk->lost_noted;
    walk->lost_noted = true;
    pthread_mutex_unlock(&walk->lock);
    if (noted || why->rc == BK_CANCELED || why->rc == BK_INTERRUPTED)
        return;
    char text[256];
    bk_name_escape(text, sizeof text, frame->path, frame->path_len);
    bk_ctl_note(walk->ctl,
                "the previous backup of %s/%s cannot be read, so files are read again: %s",
                walk->options->path, text, why->text);
}

static void add_stats(bk_walk_t *walk, const bk_files_stats_t *more)
{
    bk_files_stats_t *sum = &walk->stats;
    pthread_mutex_lock(&walk->lock);
    sum->files_new += more->files_new;
    sum->files_changed += more->files_changed;
    sum->files_unmodified += more->files_unmodified;
    sum->links += more->links;
    sum->others += more->others;
    sum->files += more->files;
    sum->bytes += more->bytes;
    sum->bytes_read += more->bytes_read;
    sum->excluded += more->excluded;
    sum->too_large += more->too_large;
    sum->special += more->special;
    pthread_mutex_unlock(&walk->lock);
}

/* At most ten times a second: a person reads it. */
static void show_current(const bk_names_work_t *work)
{
    bk_walk_t *walk = work->walk;
    int64_t now = bk_mono(), due = atomic_load_explicit(&walk->current_due, memory_order_relaxed);
    char text[BK_CTL_CURRENT];
    if (walk->ctl == NULL || now < due ||
        !atomic_compare_exchange_strong(&walk->current_due, &due, now + CURRENT_GAP))
        return;
    bk_name_escape(text, sizeof text, work->path, work->path_len);
    bk_ctl_current(walk->ctl, text);
}

/* --- one file --- */

static bool content_stored(bk_walk_t *walk, const bk_entry_t *entry)
{
    if ((entry->flags & BK_ENTRY_MAP) && !bk_session_has(walk->session, &entry->map))
        return false;
    if ((entry->flags & BK_ENTRY_EXTENTS) && !bk_session_has(walk->session, &entry->extents))
        return false;
    if ((entry->flags & BK_ENTRY_ATTRS) && !bk_session_has(walk->session, &entry->attrs))
        return false;
    for (uint32_t i = 0; i < entry->chunk_count; i++)
        if (!bk_session_has(walk->session, &entry->chunks[i].id))
            return false;
    return true;
}

static bool is_unchanged(bk_walk_t *walk, const bk_entry_t *before, const struct stat *st)
{
    return before->type == BK_ENTRY_FILE && !(before->flags & BK_ENTRY_DAMAGED) &&
           before->size == (uint64_t)st->st_size && before->mtime == ns_of(&st->st_mtim) &&
           before->ctime == ns_of(&st->st_ctim) && before->ctime != 0 &&
           before->inode == st->st_ino && before->device == st->st_dev &&
           content_stored(walk, before);
}

/* Content and attributes of the previous backup's entry. */
static bk_rc_t take_over(bk_names_work_t *work, bk_slot_t *slot, const bk_entry_t *before,
                         bk_err_t *err)
{
    bk_entry_t *entry = &slot->entry;
    size_t bytes = before->content_len + before->chunk_count * sizeof(bk_chunk_ref_t);
    if (bytes > 0 && (slot->owned = malloc(bytes)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "take over a file: out of memory");
    entry->flags = before->flags;
    if (!work->walk->options->xattrs)
        entry->flags &= (uint16_t)~BK_ENTRY_ATTRS;
    entry->size = before->size;
    entry->sha256 = before->sha256;
    entry->attrs = before->attrs;
    entry->extents = before->extents;
    entry->data_bytes = before->data_bytes;
    entry->map = before->map;
    entry->map_count = before->map_count;
    entry->map_depth = before->map_depth;
    entry->content_len = before->content_len;
    entry->chunk_count = before->chunk_count;
    if (before->content_len > 0)
        entry->content = memcpy(slot->owned, before->content, before->content_len);
    if (before->chunk_count > 0)
        entry->chunks = memcpy(slot->owned, before->chunks, bytes);
    return BK_OK;
}

static bk_rc_t submit(bk_walk_t *walk, bk_segment_t *segment, bk_handle_t *handle, size_t first,
                      size_t count, bk_work_fn fn, bk_err_t *err);
static bk_rc_t run_alone(void *arg, bk_err_t *err);

/* For lane 0, which alone may wait for other lanes. */
static bk_rc_t leave_to_lane0(bk_names_work_t *work, bk_slot_t *slot, bk_err_t *err)
{
    bk_large_t *large = calloc(1, sizeof *large);
    if (large == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read a large file: out of memory");
    large->segment = work->segment;
    large->slot = slot;
    large->handle = work->handle;
    atomic_fetch_add(&work->handle->users, 1);
    atomic_fetch_add(&work->segment->pending, 1);
    pthread_mutex_lock(&work->walk->lock);
    large->next = work->walk->large;
    work->walk->large = large;
    pthread_mutex_unlock(&work->walk->lock);
    return BK_OK;
}

static bool is_selected(const bk_frame_t *frame, const bk_files_options_t *options,
                        const bk_names_work_t *work)
{
    return frame->selected || options->match == NULL || options->match->count == 0 ||
           bk_patterns_match(options->match, work->path, work->path_len, false);
}

static bk_rc_t do_file(bk_names_work_t *work, bk_slot_t *slot, const struct stat *st,
                       const bk_entry_t *before, bk_err_t *err)
{
    bk_walk_t *walk = work->walk;
    bool many = bk_team_lanes(walk->team) > 1;
    if (walk->options->max_size > 0 && (uint64_t)st->st_size > walk->options->max_size) {
        work->stats.too_large++;
        return BK_OK;
    }
    show_current(work);
    if (before != NULL && is_unchanged(walk, before, st)) {
        bk_entry_from_stat(walk, &slot->entry, BK_ENTRY_FILE, st);
        bk_rc_t rc = take_over(work, slot, before, err);
        slot->present = rc == BK_OK;
        bk_reading_count(work, slot, true, true);
        return rc;
    }
    /* By what is on the disk, so that an empty giant stays where it is. */
    uint64_t bytes = (uint64_t)st->st_blocks * 512;
    if (many && !work->alone && bytes >= ALONE_MIN) {
        if (bytes >= LARGE_MIN)
            return leave_to_lane0(work, slot, err);
        return submit(walk, work->segment, work->handle, (size_t)(slot - work->segment->slots), 1,
                      run_alone, err);
    }
    return bk_reading_add(work, slot, st, before, err);
}

static bk_rc_t do_link(bk_names_work_t *work, bk_slot_t *slot, size_t at, const struct stat *st,
                       bk_err_t *err)
{
    char target[BK_LINK_MAX + 2];
    size_t len = 0;
    int errnum = bk_view_link(&work->view, at, target, sizeof target, &len);
    if (errnum == ENOENT || errnum == EINVAL)
        return BK_OK;
    if (errnum != 0 || len == 0 || len > BK_LINK_MAX)
        return bk_walk_unreadable(work->walk, work->path, errnum != 0 ? errnum : ENAMETOOLONG,
                                  "read link", err);
    slot->owned = malloc(len);
    if (slot->owned == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read a link: out of memory");
    memcpy(slot->owned, target, len);
    bk_entry_from_stat(work->walk, &slot->entry, BK_ENTRY_LINK, st);
    slot->entry.target = slot->owned;
    slot->entry.target_len = (uint16_t)len;
    slot->present = true;
    work->stats.links++;
    return BK_OK;
}

/* Links and FIFOs can't be opened for their attributes. */
static bk_rc_t add_attrs_at(bk_names_work_t *work, bk_slot_t *slot, size_t at, bk_err_t *err)
{
    if (!slot->present || !work->walk->options->xattrs)
        return BK_OK;
    int errnum = bk_view_attrs(&work->view, at, &work->attrs);
    if (errnum == BK_LOOK_GONE)
        return bk_looker_gone(&work->walk->looker, err);
    if (errnum != 0)
        return BK_OK;
    return bk_entry_put_attrs(work->walk, &slot->entry, &work->attrs, err);
}

static void note_special(bk_names_work_t *work, mode_t mode)
{
    static const char *const kinds[] = {"sockets", "character devices", "block devices"};
    size_t kind = S_ISSOCK(mode) ? 0 : S_ISCHR(mode) ? 1 : 2;
    bk_walk_t *walk = work->walk;
    work->stats.special++;
    pthread_mutex_lock(&walk->lock);
    bool noted = walk->special_noted[kind];
    walk->special_noted[kind] = true;
    pthread_mutex_unlock(&walk->lock);
    if (!noted) {
        char text[256];
        bk_name_escape(text, sizeof text, work->path, work->path_len);
        bk_log(BK_LOG_NOTICE, "files \"%s\": %s are left out, the first is %s",
               walk->options->name != NULL ? walk->options->name : "", kinds[kind], text);
    }
}

/* Fill one slot.  before: the entry of that name in the previous backup, or NULL. */
static bk_rc_t do_name(bk_names_work_t *work, size_t at, const char *name, const bk_entry_t *before,
                       bk_err_t *err)
{
    bk_slot_t *slot = &work->segment->slots[at - work->segment->first];
    const bk_files_options_t *options = work->walk->options;
    struct stat st;
    if (!bk_walk_path(work->segment->frame, name, work->path, &work->path_len))
        return bk_walk_unreadable(work->walk, work->segment->frame->path, ENAMETOOLONG,
                                  "read a name in it", err);
    int errnum = bk_view_stat(&work->view, at, &st);
    if (errnum == ENOENT)
        return BK_OK;
    if (errnum != 0)
        return bk_walk_unreadable(work->walk, work->path, errnum, "look at", err);
    /* It was no directory when the names were read; its content was never listed. */
    if (S_ISDIR(st.st_mode))
        return bk_walk_unreadable(work->walk, work->path, EAGAIN, "became a directory meanwhile",
                                  err);
    if (bk_walk_skips(work->walk, &st) || (S_ISREG(st.st_mode) && bk_attached_has(&st)) ||
        strncmp(name, BK_FILES_TEMPORARY, sizeof BK_FILES_TEMPORARY - 1) == 0 ||
        (options->exclude != NULL &&
         bk_patterns_match(options->exclude, work->path, work->path_len, false)) ||
        !is_selected(work->segment->frame, options, work)) {
        work->stats.excluded++;
        return BK_OK;
    }
    bk_rc_t rc = BK_OK;
    if (st.st_nlink > 1 && !work->alone) /* which is the second look at this name */
        rc = bk_reuse_linked(work->walk, work->segment->frame, &st, before, err);
    if (rc != BK_OK)
        return rc;
    switch (st.st_mode & S_IFMT) {
    case S_IFREG:
        return do_file(work, slot, &st, before, err);
    case S_IFLNK:
        rc = do_link(work, slot, at, &st, err);
        break;
    case S_IFIFO:
        bk_entry_from_stat(work->walk, &slot->entry, BK_ENTRY_FIFO, &st);
        slot->present = true;
        work->stats.others++;
        break;
    default:
        note_special(work, st.st_mode);
        return BK_OK;
    }
    return rc == BK_OK ? add_attrs_at(work, slot, at, err) : rc;
}

/* --- works --- */

static int compare_name(const char *name, const bk_entry_t *entry)
{
    size_t len = strlen(name), shorter = len < entry->name_len ? len : entry->name_len;
    int order = memcmp(name, entry->name, shorter);
    if (order != 0)
        return order;
    return len < entry->name_len ? -1 : len > entry->name_len;
}

/* Names and the previous directory's entries are both sorted: one pass over each. */
static bk_rc_t do_names(bk_names_work_t *work, size_t first, size_t count, bk_err_t *err)
{
    bk_walk_t *walk = work->walk;
    bk_frame_t *frame = work->segment->frame;
    bk_tree_iter_t *iter = NULL;
    const bk_entry_t *before = NULL;
    const char *name = bk_listing_name(&frame->names, work->segment->first + first);
    bk_err_t lost = {0};
    bk_rc_t rc = BK_OK;
    if (frame->has_previous) {
        bk_rc_t known = bk_tree_iter_open(bk_session_repo(walk->session), &frame->previous,
                                          walk->ctl, &iter, &lost);
        if (known == BK_OK && count < frame->names.count)
            known = bk_tree_iter_seek(iter, name, strlen(name), &lost);
        if (known == BK_OK)
            known = bk_tree_iter_next(iter, &before, &lost);
    }
    for (size_t i = first; i < first + count && rc == BK_OK; i++) {
        bk_slot_t *slot = &work->segment->slots[i];
        name = bk_listing_name(&frame->names, work->segment->first + i);
        while (before != NULL && compare_name(name, before) > 0)
            if (bk_tree_iter_next(iter, &before, &lost) != BK_OK)
                before = NULL;
        if ((rc = bk_ctl_check(walk->ctl, err)) != BK_OK || slot->directory || slot->taken ||
            bk_group_failed(&walk->group))
            continue;
        slot->entry.name = (const uint8_t *)name;
        slot->entry.name_len = (uint16_t)strlen(name);
        bool known = before != NULL && compare_name(name, before) == 0;
        rc = do_name(work, work->segment->first + i, name, known ? before : NULL, err);
    }
    bk_tree_iter_close(iter);
    if (lost.rc != BK_OK)
        bk_walk_lost_previous(walk, frame, &lost);
    return rc == BK_OK ? bk_reading_flush(work, err) : rc;
}

/* All but the large arrays in it. */
static void begin(bk_names_work_t *work, bk_walk_t *walk, bk_segment_t *segment,
                  bk_handle_t *handle)
{
    work->walk = walk;
    work->segment = segment;
    work->handle = handle;
    work->reader = NULL;
    work->stats = (bk_files_stats_t){0};
    work->alone = false;
    work->spread = NULL;
    work->read_count = 0;
}

/* The body of every work here; what it holds is given back. */
static bk_rc_t run_names(bk_names_work_t *work, size_t first, size_t count, bk_err_t *err)
{
    bk_walk_t *walk = work->walk;
    bk_frame_t *frame = work->segment->frame;
    bk_buf_init(&work->attrs, BK_ATTRS_MAX);
    bk_view_begin(&work->view, &walk->looker, frame->path, work->handle->fd, &frame->names);
    bk_rc_t rc = do_names(work, first, count, err);
    bk_reading_drop(work);
    bk_view_end(&work->view);
    bk_buf_free(&work->attrs);
    bk_reading_give_reader(walk, work->reader);
    add_stats(walk, &work->stats);
    bk_handle_release(work->handle);
    return rc == BK_OK ? bk_segment_finish_one(walk, work->segment, err) : rc;
}

static bk_rc_t run(batch_t *batch, bool alone, bk_err_t *err)
{
    bk_names_work_t work;
    begin(&work, batch->walk, batch->segment, batch->handle);
    work.alone = alone;
    bk_rc_t rc = run_names(&work, batch->first, batch->count, err);
    free(batch);
    return rc;
}

static bk_rc_t run_batch(void *arg, bk_err_t *err)
{
    return run(arg, false, err);
}

static bk_rc_t run_alone(void *arg, bk_err_t *err)
{
    return run(arg, true, err);
}

static bk_rc_t submit(bk_walk_t *walk, bk_segment_t *segment, bk_handle_t *handle, size_t first,
                      size_t count, bk_work_fn fn, bk_err_t *err)
{
    batch_t *batch = malloc(sizeof *batch);
    if (batch == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
    *batch = (batch_t){walk, segment, handle, first, count};
    atomic_fetch_add(&handle->users, 1);
    atomic_fetch_add(&segment->pending, 1);
    bk_team_submit(walk->team, &walk->group, fn, batch, 64u << 10);
    return BK_OK;
}

bk_rc_t bk_batch_submit(bk_walk_t *walk, bk_segment_t *segment, bk_handle_t *handle, size_t first,
                        size_t count, bk_err_t *err)
{
    return submit(walk, segment, handle, first, count, run_batch, err);
}

static bk_rc_t read_large(bk_walk_t *walk, bk_large_t *large, bk_err_t *err)
{
    bk_names_work_t work;
    begin(&work, walk, large->segment, large->handle);
    work.alone = true;
    work.spread = walk->team;
    bk_rc_t rc = run_names(&work, (size_t)(large->slot - large->segment->slots), 1, err);
    free(large);
    return rc;
}

bk_rc_t bk_batch_large(bk_walk_t *walk, bk_err_t *err)
{
    for (;;) {
        pthread_mutex_lock(&walk->lock);
        bk_large_t *large = walk->large;
        if (large != NULL)
            walk->large = large->next;
        pthread_mutex_unlock(&walk->lock);
        if (large == NULL)
            return BK_OK;
        bk_rc_t rc = read_large(walk, large, err);
        if (rc != BK_OK)
            return rc;
    }
}
