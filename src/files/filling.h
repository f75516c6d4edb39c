/*
 * files/filling.h: one file on its way to its name (private to src/files).
 *
 * It is filled under a temporary name beside its own, by whichever lane has its bytes; when the
 * last of them is in, that lane sets its metadata.  Publishing is the window's work.
 */
#ifndef BK_FILES_FILLING_H
#define BK_FILES_FILLING_H

#include "files/placing.h"

typedef struct {
    uint64_t offset, length;
    uint64_t before; /* data bytes of the extents before this one */
} bk_piece_t;

typedef struct bk_source_s bk_source_t; /* window.c: the first of several hard links */

typedef struct {
    bk_restore_t *restore;
    bk_place_t *place;
    bk_entry_t entry; /* its pointers lead into this allocation */
    const char *name;
    bk_existing_t existing;
    bool compare;
    char temporary[BK_TEMPORARY_MAX]; /* "": none was made */
    bool unchanged;                   /* what is there is right */
    bool filled;                      /* the temporary is complete */
    atomic_bool failed;               /* reported; the temporary is to be removed */
    atomic_uint_fast64_t left;        /* chunks not yet in */
    uint64_t data_bytes;              /* to be written: all but holes */
    bk_piece_t *pieces;               /* of a sparse file, owned */
    size_t piece_count;
    bk_source_t *source; /* several links */
    bool first;          /* of them: it is the source */
    bool linked;         /* to the source, instead of being filled */
} bk_item_t;

/* NULL: no memory.  The place gets one more user. */
bk_item_t *bk_item_new(bk_restore_t *restore, bk_place_t *place, const bk_entry_t *entry);
void bk_item_free(bk_item_t *item);

/* Report, once. */
void bk_item_fail(bk_item_t *item, const bk_err_t *why);
/*
 * Look whether the existing file is right already (then its metadata are set), and write the file
 * when that needs no chunks.  Fails only when the whole restore has to end.  dir: of the place.
 */
bk_rc_t bk_item_prepare(bk_item_t *item, int dir, bk_reader_t *reader, bk_err_t *err);
bool bk_item_needs_chunks(const bk_item_t *item);
/*
 * Make the temporary and read where its data go, before chunks are fetched.  Fatal failures only.
 */
bk_rc_t bk_item_begin(bk_item_t *item, bk_err_t *err);
/* A bk_deliver_fn: want->user is the item, want->tag the offset in its data. */
bk_rc_t bk_item_deliver(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                        const bk_err_t *failure, bk_err_t *err);

#endif
