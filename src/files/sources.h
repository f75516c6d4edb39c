/*
 * files/sources.h: hard links of a restore: the first file of several names gets the content, the
 * others become links to it (private to src/files).  Lane 0 only.
 */
#ifndef BK_FILES_SOURCES_H
#define BK_FILES_SOURCES_H

#include "files/filling.h"

#define BK_SOURCE_BUCKETS 1024u

/* The first file of several hard links. */
struct bk_source_s {
    bk_source_t *next;
    uint64_t device, inode;
    uint32_t seen, links; /* names met so far, and all */
    char *path;           /* below the root */
    bool pending;         /* its item is in the window */
    bool there;           /* its file is in place */
};

typedef struct {
    bk_source_t *buckets[BK_SOURCE_BUCKETS];
} bk_sources_t; /* zeros at first */

void bk_sources_free(bk_sources_t *sources); /* what is in it */
/* One more name: the item becomes the source of its file, or gets the one that there is. */
bk_rc_t bk_sources_note(bk_sources_t *sources, bk_item_t *item, bk_err_t *err);
/* Drop those of which all names were met. */
void bk_sources_forget(bk_sources_t *sources);

/* The item is the file that later names are linked to. */
bk_rc_t bk_source_make(bk_item_t *item, bk_source_t *source, bk_err_t *err);
/* Is the item's name the same file as its source already?  at: the item's directory. */
bool bk_source_is_linked(const bk_item_t *item, const bk_at_t *at);
bk_rc_t bk_source_link(bk_item_t *item, const bk_at_t *at, bk_err_t *err);

#endif
