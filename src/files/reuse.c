/*
 * files/reuse.c: what a backup takes over from the previous tree without a look at the file system,
 * and when that would not be right.  Touches the repository and the walk only.
 *
 * A file with several names changes through any of them, and only the directory of that name tells.
 * So a directory that holds such a file is listed by every backup (options->again).  That is enough
 * but in one case: a file that had one name has got another, elsewhere; the directory of the old
 * name says nothing.  It shows in the new name: an inode whose names were all unknown before, and
 * not all of whose names were met, may have its old one in a directory that was taken over.
 *
 * All this counts on names that stay as they are while they are counted.  An inode that changed
 * since the backup began (a new name is such a change) may have been met before and after: then
 * the next backup walks.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "files/walk.h"

typedef struct bk_linked_s {
    uint64_t device, inode; /* 0, 0: free */
    uint64_t seen, links;
    bool known; /* one of the names seen was there before */
} linked_t;

/* All that an entry points to is copied, in the order in which it must be aligned. */
bk_rc_t bk_reuse_entry(bk_slot_t *slot, const bk_entry_t *before, bk_err_t *err)
{
    bk_entry_t *entry = &slot->entry;
    bool known_name = entry->name != NULL;
    size_t chunks = before->chunk_count * sizeof *before->chunks;
    size_t bytes = chunks + before->content_len + before->target_len + before->user_len +
                   before->group_len + before->name_len + 1u;
    const uint8_t *name = entry->name;
    char *at = slot->owned = malloc(bytes);
    if (at == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "take over a directory: out of memory");
    *entry = *before;
    if (chunks > 0)
        entry->chunks = memcpy(at, before->chunks, chunks);
    at += chunks;
    if (before->content_len > 0)
        entry->content = memcpy(at, before->content, before->content_len);
    at += before->content_len;
    if (before->target_len > 0)
        entry->target = memcpy(at, before->target, before->target_len);
    at += before->target_len;
    if (before->user_len > 0)
        entry->user = memcpy(at, before->user, before->user_len);
    at += before->user_len;
    if (before->group_len > 0)
        entry->group = memcpy(at, before->group, before->group_len);
    at += before->group_len;
    memcpy(at, before->name, before->name_len);
    at[before->name_len] = '\0';
    entry->name = known_name ? name : (const uint8_t *)at;
    slot->present = true;
    slot->taken = true;
    return BK_OK;
}

bk_rc_t bk_reuse_give_up(bk_walk_t *walk, bk_err_t *err)
{
    if (!atomic_exchange(&walk->redo, true))
        bk_log(BK_LOG_NOTICE,
               "files \"%s\": what is known to have changed is not enough this time, so the whole "
               "tree is walked",
               walk->options->name != NULL ? walk->options->name : "");
    return bk_err_set(err, BK_CHANGED, "files: the tree has to be walked");
}

bk_rc_t bk_reuse_segment(bk_walk_t *walk, bk_segment_t *segment, bk_err_t *err)
{
    bk_frame_t *frame = segment->frame;
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < segment->count && rc == BK_OK; i++) {
        bk_slot_t *slot = &segment->slots[i];
        const bk_entry_t *before = NULL;
        bk_err_t lost = {0};
        if (bk_tree_iter_next(frame->before, &before, &lost) != BK_OK || before == NULL)
            return bk_reuse_give_up(walk, err);
        rc = bk_reuse_entry(slot, before, err);
        if (rc != BK_OK || before->type != BK_ENTRY_DIR)
            continue;
        slot->known = slot->directory = bk_dirset_child(walk->options->since->dirty, frame->dirty,
                                                        before->name, before->name_len) != NULL;
        if (!slot->directory && !bk_session_has(walk->session, &before->child))
            rc = bk_reuse_give_up(walk, err);
    }
    return rc;
}

/* --- inodes with several names --- */

static linked_t *find(linked_t *table, size_t size, uint64_t device, uint64_t inode)
{
    size_t at = (size_t)((inode * 0x9e3779b97f4a7c15u ^ device) >> 7) & (size - 1);
    while (table[at].links != 0 && (table[at].inode != inode || table[at].device != device))
        at = (at + 1) & (size - 1);
    return &table[at];
}

/* Under the lock. */
static bool make_room(bk_walk_t *walk)
{
    size_t size = walk->linked_size > 0 ? 2 * walk->linked_size : 256;
    if (walk->linked_count < walk->linked_size / 2)
        return true;
    linked_t *table = calloc(size, sizeof *table);
    if (table == NULL)
        return false;
    for (size_t i = 0; i < walk->linked_size; i++)
        if (walk->linked[i].links != 0)
            *find(table, size, walk->linked[i].device, walk->linked[i].inode) = walk->linked[i];
    free(walk->linked);
    walk->linked = table;
    walk->linked_size = size;
    return true;
}

/* As far as the clock of the file system can tell. */
static bool changed_meanwhile(const bk_walk_t *walk, const struct stat *st)
{
    int64_t tick = st->st_ctim.tv_nsec == 0 && st->st_mtim.tv_nsec == 0 ? 2 * BK_SEC : 50 * BK_MS;
    return st->st_ctim.tv_sec * BK_SEC + st->st_ctim.tv_nsec > walk->started - tick;
}

bk_rc_t bk_reuse_linked(bk_walk_t *walk, const bk_frame_t *frame, const struct stat *st,
                        const bk_entry_t *before, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    bk_walk_again(walk, frame);
    pthread_mutex_lock(&walk->lock);
    if (walk->options->again != NULL && changed_meanwhile(walk, st))
        bk_dirset_add(walk->options->again, "", true);
    if (!walk->since) {
        rc = BK_OK;
    } else if (make_room(walk)) {
        linked_t *item = find(walk->linked, walk->linked_size, st->st_dev, st->st_ino);
        walk->linked_count += item->links == 0;
        item->device = st->st_dev;
        item->inode = st->st_ino;
        item->seen++;
        if (st->st_nlink > item->links)
            item->links = st->st_nlink;
        item->known = item->known || (before != NULL && before->inode == st->st_ino &&
                                      before->device == st->st_dev);
    } else {
        rc = bk_err_set(err, BK_NO_MEMORY, "walk: out of memory");
    }
    pthread_mutex_unlock(&walk->lock);
    return rc;
}

bool bk_reuse_links_complete(const bk_walk_t *walk)
{
    for (size_t i = 0; i < walk->linked_size; i++) {
        const linked_t *item = &walk->linked[i];
        if (item->links != 0 && !item->known && item->seen < item->links)
            return false;
    }
    return true;
}
