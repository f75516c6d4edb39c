/*
 * files/reading.c: the content and attributes of regular files into their slots.
 *
 * Runs in any lane.  Files of one work are gathered before they are read, so that those that take
 * the privileged helper are opened with one message.  Nothing here blocks in open.  A database that
 * this process has open is left out as if it were gone (base/attached.h).
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "files/compare.h"
#include "files/walk.h"

#define READ_TRIES 3u

/* --- readers: one for each lane at work --- */

static bk_reader_t *take_reader(bk_walk_t *walk)
{
    bk_reader_t *reader = NULL;
    pthread_mutex_lock(&walk->lock);
    if (walk->readers.count > 0)
        reader = walk->readers.items[--walk->readers.count];
    pthread_mutex_unlock(&walk->lock);
    return reader != NULL ? reader : bk_reader_new(walk->session, walk->ctl);
}

void bk_reading_give_reader(bk_walk_t *walk, bk_reader_t *reader)
{
    if (reader == NULL)
        return;
    pthread_mutex_lock(&walk->lock);
    bool kept = walk->readers.count < sizeof walk->readers.items / sizeof walk->readers.items[0];
    if (kept)
        walk->readers.items[walk->readers.count++] = reader;
    pthread_mutex_unlock(&walk->lock);
    if (!kept)
        bk_reader_free(reader);
}

/* --- states --- */

static int64_t ns_of(const struct timespec *time)
{
    return time->tv_sec * BK_SEC + time->tv_nsec;
}

/*
 * A write that comes right after our reading can leave the times as they are, when the clock of the
 * file system has not ticked since: then the next backup must not trust them, and the entry gets no
 * ctime.
 */
static bool is_racy(const struct stat *st, int64_t looked)
{
    bool coarse = st->st_ctim.tv_nsec == 0 && st->st_mtim.tv_nsec == 0;
    int64_t tick = coarse ? 2 * BK_SEC : 50 * BK_MS;
    return looked - ns_of(&st->st_ctim) < tick || looked - ns_of(&st->st_mtim) < tick;
}

static bool same_state(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           ns_of(&a->st_mtim) == ns_of(&b->st_mtim) && ns_of(&a->st_ctim) == ns_of(&b->st_ctim);
}

void bk_reading_count(bk_names_work_t *work, const bk_slot_t *slot, bool before, bool unchanged)
{
    bk_ctl_t *ctl = work->walk->ctl;
    work->stats.files++;
    work->stats.bytes += slot->entry.size;
    if (unchanged)
        work->stats.files_unmodified++;
    else if (before)
        work->stats.files_changed++;
    else
        work->stats.files_new++;
    if (ctl != NULL) {
        atomic_fetch_add_explicit(&ctl->files_done, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&ctl->bytes_done, slot->entry.size, memory_order_relaxed);
    }
}

/* --- opening --- */

static size_t name_of(const bk_names_work_t *work, const bk_read_t *read)
{
    return work->segment->first + (size_t)(read->slot - work->segment->slots);
}

/* Make the file of reads[at] ready, and perhaps those behind it. */
static void open_files(bk_names_work_t *work, size_t at)
{
    size_t names[BK_VIEW_OPEN], count = 0, opened = 0;
    bk_view_file_t files[BK_VIEW_OPEN];
    while (at + count < work->read_count && (count == 0 || !work->reads[at + count].ready)) {
        names[count] = name_of(work, &work->reads[at + count]);
        count++;
    }
    bk_view_open(&work->view, names, count, work->walk->options->xattrs, files, &opened);
    for (size_t i = 0; i < opened; i++) {
        work->reads[at + i].file = files[i];
        work->reads[at + i].ready = true;
    }
}

/* --- one file --- */

typedef enum { GONE, FAILED, STABLE, MOVING } reading_t;

static bk_rc_t read_open(bk_names_work_t *work, bk_read_t *read, reading_t *result, int *sys,
                         bk_err_t *err)
{
    struct stat after;
    bk_content_t content = {.entry = &read->slot->entry};
    bk_rc_t rc = BK_OK;
    bk_buf_reset(&work->attrs);
    *sys = work->walk->options->xattrs ? bk_view_file_attrs(&read->file, &work->attrs) : 0;
    if (*sys == 0) {
        rc = bk_content_read(work->reader, read->file.fd, &read->st, work->spread, &content, err);
        free(read->slot->owned);
        read->slot->owned = content.owned;
        work->stats.bytes_read += content.bytes_read;
        *sys = content.sys;
    }
    if (rc == BK_OK && *sys == 0) {
        if (fstat(read->file.fd, &after) != 0) {
            *sys = errno;
        } else {
            *result = same_state(&read->st, &after) ? STABLE : MOVING;
            read->st = after;
        }
    }
    return rc;
}

/* One reading of the file.  st: what it was before, then what it was after. */
static bk_rc_t read_once(bk_names_work_t *work, size_t at, reading_t *result, int *sys,
                         bk_err_t *err)
{
    bk_read_t *read = &work->reads[at];
    bk_rc_t rc = BK_OK;
    *result = FAILED;
    if (!read->ready)
        open_files(work, at);
    read->ready = false;
    *sys = read->file.error;
    if (read->file.fd >= 0)
        rc = read_open(work, read, result, sys, err);
    else if (*sys == ENOENT || *sys == ELOOP || *sys == ENXIO || *sys == BK_LOOK_USED)
        *result = GONE;
    bk_view_close(&read->file);
    return rc;
}

static bk_rc_t finish_file(bk_names_work_t *work, bk_read_t *read, reading_t result, int64_t looked,
                           bk_err_t *err)
{
    bk_walk_t *walk = work->walk;
    bk_entry_t *entry = &read->slot->entry;
    uint64_t size = entry->size; /* of what was read, which a moving file may differ from */
    bk_entry_from_stat(walk, entry, BK_ENTRY_FILE, &read->st);
    entry->size = size;
    if (is_racy(&read->st, looked) || result == MOVING)
        bk_walk_again(walk, work->segment->frame);
    if (is_racy(&read->st, looked))
        entry->ctime = 0;
    if (result == MOVING) {
        char text[256];
        entry->flags |= BK_ENTRY_DAMAGED;
        bk_name_escape(text, sizeof text, work->path, work->path_len);
        bk_ctl_note(walk->ctl, "%s/%s changed while it was read, %u times; kept as read",
                    walk->options->path, text, READ_TRIES);
    }
    read->slot->present = true;
    bk_rc_t rc = bk_entry_put_attrs(walk, entry, &work->attrs, err);
    bk_reading_count(work, read->slot, read->known,
                     read->known && bk_files_same(&read->before, entry));
    return rc;
}

static bk_rc_t read_file(bk_names_work_t *work, size_t at, bk_err_t *err)
{
    bk_read_t *read = &work->reads[at];
    reading_t result = MOVING;
    int sys = 0;
    int64_t looked = 0;
    for (unsigned tries = 0; tries < READ_TRIES && result == MOVING; tries++) {
        looked = bk_now();
        if (!S_ISREG(read->st.st_mode)) {
            result = GONE;
            break;
        }
        bk_rc_t rc = read_once(work, at, &result, &sys, err);
        if (rc != BK_OK)
            return rc;
    }
    if (result == GONE)
        return BK_OK;
    if (result == FAILED)
        return bk_walk_unreadable(work->walk, work->path, sys, "read", err);
    return finish_file(work, read, result, looked, err);
}

/* --- those of one work --- */

bk_rc_t bk_reading_flush(bk_names_work_t *work, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (work->read_count > 0 && work->reader == NULL &&
        (work->reader = take_reader(work->walk)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read files: out of memory");
    for (size_t i = 0; i < work->read_count && rc == BK_OK; i++) {
        const char *name = (const char *)work->reads[i].slot->entry.name;
        rc = bk_ctl_check(work->walk->ctl, err);
        if (rc == BK_OK && bk_walk_path(work->segment->frame, name, work->path, &work->path_len))
            rc = read_file(work, i, err);
    }
    bk_reading_drop(work);
    return rc;
}

void bk_reading_drop(bk_names_work_t *work)
{
    for (size_t i = 0; i < work->read_count; i++)
        if (work->reads[i].ready)
            bk_view_close(&work->reads[i].file);
    work->read_count = 0;
}

bk_rc_t bk_reading_add(bk_names_work_t *work, bk_slot_t *slot, const struct stat *st,
                       const bk_entry_t *before, bk_err_t *err)
{
    bk_read_t *read = &work->reads[work->read_count++];
    read->slot = slot;
    read->st = *st;
    read->known = before != NULL && before->type == BK_ENTRY_FILE;
    if (read->known)
        read->before = *before;
    read->ready = false;
    return work->read_count == BK_VIEW_OPEN ? bk_reading_flush(work, err) : BK_OK;
}
