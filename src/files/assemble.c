/*
 * files/assemble.c: finished segments into tree nodes, from the leaves to the root (walk.h has the
 * idea).  Runs in whichever lane finished last; puts nodes into the session; never waits.
 */
#include <stdlib.h>
#include <unistd.h>

#include "files/walk.h"

void bk_handle_release(bk_handle_t *handle)
{
    if (handle == NULL || atomic_fetch_sub(&handle->users, 1) != 1)
        return;
    close(handle->fd);
    free(handle);
}

static void free_segment(bk_walk_t *walk, bk_segment_t *segment)
{
    for (size_t i = 0; i < segment->count; i++)
        free(segment->slots[i].owned);
    atomic_fetch_sub(&walk->slots, segment->count);
    free(segment);
}

void bk_frame_free(bk_walk_t *walk, bk_frame_t *frame)
{
    if (frame == NULL)
        return;
    pthread_mutex_lock(&walk->lock);
    *frame->live_link = frame->live_next;
    if (frame->live_next != NULL)
        frame->live_next->live_link = frame->live_link;
    pthread_mutex_unlock(&walk->lock);
    while (frame->segments != NULL) {
        bk_segment_t *segment = frame->segments;
        frame->segments = segment->next;
        free_segment(walk, segment);
    }
    bk_tree_builder_free(frame->builder);
    bk_tree_iter_close(frame->before);
    bk_listing_free(&frame->names);
    free(frame->path);
    free(frame);
}

bk_segment_t *bk_segment_new(bk_walk_t *walk, bk_frame_t *frame, size_t first, size_t count,
                             bool last)
{
    bk_segment_t *segment = calloc(1, sizeof *segment + count * sizeof *segment->slots);
    if (segment == NULL)
        return NULL;
    segment->frame = frame;
    segment->first = first;
    segment->count = count;
    atomic_init(&segment->pending, 1);
    atomic_fetch_add(&walk->slots, count);
    pthread_mutex_lock(&walk->lock);
    *frame->tail = segment;
    frame->tail = &segment->next;
    frame->closed = last;
    pthread_mutex_unlock(&walk->lock);
    return segment;
}

static bk_rc_t add_entries(bk_walk_t *walk, bk_frame_t *frame, const bk_segment_t *segment,
                           bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (frame->builder == NULL && (frame->builder = bk_tree_builder_new(walk->session)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "store a directory: out of memory");
    for (size_t i = 0; i < segment->count && rc == BK_OK; i++)
        if (segment->slots[i].present)
            rc = bk_tree_builder_add(frame->builder, &segment->slots[i].entry, err);
    return rc;
}

/* Build what is ready.  *whole: that was the last segment, and nobody else touches the frame. */
static bk_rc_t build_ready(bk_walk_t *walk, bk_frame_t *frame, bool *whole, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *whole = false;
    pthread_mutex_lock(&walk->lock);
    if (frame->building) {
        /* Whoever is building looks again before it leaves. */
        pthread_mutex_unlock(&walk->lock);
        return BK_OK;
    }
    frame->building = true;
    while (rc == BK_OK && frame->segments != NULL && frame->segments->done) {
        bk_segment_t *segment = frame->segments;
        frame->segments = segment->next;
        if (frame->segments == NULL)
            frame->tail = &frame->segments;
        pthread_mutex_unlock(&walk->lock);
        rc = add_entries(walk, frame, segment, err);
        free_segment(walk, segment);
        pthread_mutex_lock(&walk->lock);
    }
    *whole = rc == BK_OK && frame->segments == NULL && frame->closed;
    frame->building = *whole || rc != BK_OK;
    pthread_mutex_unlock(&walk->lock);
    return rc;
}

bk_rc_t bk_segment_finish_one(bk_walk_t *walk, bk_segment_t *segment, bk_err_t *err)
{
    while (segment != NULL && atomic_fetch_sub(&segment->pending, 1) == 1) {
        bk_frame_t *frame = segment->frame;
        bk_id_t root;
        uint64_t entries;
        bool whole;
        pthread_mutex_lock(&walk->lock);
        segment->done = true;
        pthread_mutex_unlock(&walk->lock);
        bk_rc_t rc = build_ready(walk, frame, &whole, err);
        if (rc != BK_OK || !whole)
            return rc;
        if ((rc = bk_tree_builder_finish(frame->builder, &root, &entries, err)) != BK_OK)
            return rc;
        if (frame->slot != NULL) {
            frame->slot->entry.child = root;
            frame->slot->entry.children = entries;
        } else {
            walk->root_id = root;
            walk->root_entries = entries;
            walk->finished = true;
        }
        segment = frame->parent;
        bk_frame_free(walk, frame);
    }
    return BK_OK;
}
