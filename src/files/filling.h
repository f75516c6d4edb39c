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
    bool written;                     /* its content is, through the helper: metadata are to come */
    bool filled;                      /* the temporary is complete */
    int fd; /* of the temporary, through the helper while chunks are to come; -1: none */
    pthread_mutex_t writing;   /* of fd: how it writes is a state of what all lanes share */
    atomic_bool failed;        /* reported; the temporary is to be removed */
    atomic_uint_fast64_t left; /* chunks not yet in */
    uint64_t data_bytes;       /* to be written: all but holes */
    bk_piece_t *pieces;        /* of a sparse file, owned */
    size_t piece_count;
    bk_source_t *source; /* several links */
    bool first;          /* of them: it is the source */
    bool linked;         /* to the source, instead of being filled */
} bk_item_t;

/* NULL: no memory.  The place gets one more user. */
bk_item_t *bk_item_new(bk_restore_t *restore, bk_place_t *place, const bk_entry_t *entry);
void bk_item_free(bk_item_t *item);

/* Its directory is the helper's business. */
static inline bool bk_item_helped(const bk_item_t *item)
{
    return item->restore->road.helper != NULL && !item->place->other;
}

/* Report, once. */
void bk_item_fail(bk_item_t *item, const bk_err_t *why);
/*
 * Look whether the existing file is right already (then its metadata are set), and write the file
 * when that needs no chunks.  Fails only when the whole restore has to end.  at: of the place.
 * Through the helper, bk_helped_compare has looked before.
 */
bk_rc_t bk_item_prepare(bk_item_t *item, const bk_at_t *at, bk_reader_t *reader, bk_err_t *err);
/* Has fd the content of the entry? */
bk_rc_t bk_item_is_right(const bk_item_t *item, int fd, bk_reader_t *reader, bool *right,
                         bk_err_t *err);
/* What has the name is a database that this process has open: it is not looked at nor replaced. */
bk_rc_t bk_item_in_use(bk_err_t *err);
bool bk_item_needs_chunks(const bk_item_t *item);
/* Sort a failure: of this file (reported, BK_OK), or of everything. */
bk_rc_t bk_item_settle(bk_item_t *item, bk_rc_t rc, const bk_err_t *why, bk_err_t *err);
/* Data bytes [offset, offset + len) of the file to where they belong in fd. */
bk_rc_t bk_item_write(const bk_item_t *item, int fd, const uint8_t *data, size_t len,
                      uint64_t offset, bk_err_t *err);
/* The last byte is in: its size, when it ends in a hole; closes fd. */
bk_rc_t bk_item_close(const bk_item_t *item, int fd, bk_rc_t rc, bk_err_t *err);
/*
 * Make the temporary and read where its data go, before chunks are fetched.  Fatal failures only.
 */
bk_rc_t bk_item_begin(bk_item_t *item, bk_err_t *err);
/* A bk_deliver_fn: want->user is the item, want->tag the offset in its data. */
bk_rc_t bk_item_deliver(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                        const bk_err_t *failure, bk_err_t *err);

/*
 * helped.c: through the helper, whose messages hold many operations on one directory.  All skip the
 * items that are not its business, or failed.  They fail only when the whole restore has to end.
 */

/* Those that are there and may be right: unchanged tells, their metadata are set then. */
bk_rc_t bk_helped_compare(bk_item_t *const *items, size_t count, bk_reader_t *reader,
                          bk_err_t *err);
/* All bytes of the file: it is written with others of its directory, soon.  Any lane. */
bk_rc_t bk_helped_write(bk_item_t *item, const uint8_t *data, size_t len, bk_err_t *err);
/* Write what was only collected.  Lane 0, when no other is at it. */
bk_rc_t bk_helped_write_rest(bk_restore_t *restore, bk_err_t *err);
void bk_helped_forget(bk_restore_t *restore); /* the memory of it, at the end */
/* Written ones get their metadata: then they are filled. */
bk_rc_t bk_helped_describe(bk_item_t *const *items, size_t count, bk_err_t *err);
/* Filled ones get their names, but those whose name's file is kept aside. */
bk_rc_t bk_helped_publish(bk_item_t *const *items, size_t count, bk_err_t *err);
/* Temporaries that have no name to go to. */
void bk_helped_discard(bk_item_t *const *items, size_t count);

#endif
