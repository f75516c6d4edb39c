/*
 * files/listing.h: the names in a directory, sorted as a tree sorts them (private to src/files).
 */
#ifndef BK_FILES_LISTING_H
#define BK_FILES_LISTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *names;    /* each with its NUL */
    size_t *places; /* of each name in names, sorted; the top byte is its DT_ kind */
    size_t count;
} bk_listing_t;

/* All names but "." and ".." in the directory fd, each once.  0 or an errno (ENOMEM: too many).
 * What was read so far is there all the same.  Free it in any case. */
int bk_listing_read(int fd, bk_listing_t *listing);
void bk_listing_free(bk_listing_t *listing);

/* Whether the directory fd holds a valid CACHEDIR.TAG: what is in it can be made again. */
#define BK_CACHEDIR_TAG "CACHEDIR.TAG"
bool bk_listing_is_cache(int fd);
bool bk_listing_is_tag(int fd); /* of a file of that name, which is closed; -1: there is none */

static inline const char *bk_listing_name(const bk_listing_t *listing, size_t i)
{
    return listing->names + (listing->places[i] & (SIZE_MAX >> 8));
}

static inline unsigned char bk_listing_kind(const bk_listing_t *listing, size_t i)
{
    return (unsigned char)(listing->places[i] >> (8 * sizeof(size_t) - 8));
}

#endif
