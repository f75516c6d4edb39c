/*
 * files/listing.c: reading and sorting the names of one directory.
 */
#include "files/listing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/publish.h"

/* https://bford.info/cachedir/ */
#define SIGNATURE "Signature: 8a477f597d28d172789f06886806bc55"
#define NAMES_MAX (1u << 30) /* bytes of one directory's names */

typedef struct {
    bk_listing_t *listing;
    size_t len, cap, places_cap;
} growing_t;

static bool add_name(growing_t *g, const char *name, unsigned char kind)
{
    bk_listing_t *listing = g->listing;
    size_t len = strlen(name) + 1;
    if (g->len + len > g->cap) {
        size_t cap = g->cap > 0 ? 2 * g->cap : 4096;
        char *more = cap <= NAMES_MAX ? realloc(listing->names, cap) : NULL;
        if (more == NULL)
            return false;
        listing->names = more;
        g->cap = cap;
    }
    if (listing->count == g->places_cap) {
        size_t cap = g->places_cap > 0 ? 2 * g->places_cap : 128;
        size_t *more = realloc(listing->places, cap * sizeof *more);
        if (more == NULL)
            return false;
        listing->places = more;
        g->places_cap = cap;
    }
    listing->places[listing->count++] = g->len | (size_t)kind << (8 * sizeof(size_t) - 8);
    memcpy(listing->names + g->len, name, len);
    g->len += len;
    return true;
}

static int compare_places(const void *a, const void *b, void *names)
{
    const size_t mask = SIZE_MAX >> 8;
    return strcmp((const char *)names + (*(const size_t *)a & mask),
                  (const char *)names + (*(const size_t *)b & mask));
}

/* A file system may show a name twice while it is renamed; a tree wants each once. */
static void sort_names(bk_listing_t *listing)
{
    size_t kept = 0;
    if (listing->count == 0)
        return;
    qsort_r(listing->places, listing->count, sizeof *listing->places, compare_places,
            listing->names);
    for (size_t i = 0; i < listing->count; i++)
        if (i == 0 ||
            compare_places(&listing->places[i], &listing->places[kept - 1], listing->names) != 0)
            listing->places[kept++] = listing->places[i];
    listing->count = kept;
}

int bk_listing_read(int fd, bk_listing_t *listing)
{
    growing_t growing = {.listing = listing};
    const size_t size = 64u << 10;
    int errnum = 0;
    char *buf = malloc(size);
    *listing = (bk_listing_t){0};
    if (buf == NULL)
        return ENOMEM;
    while (errnum == 0) {
        ssize_t len = getdents64(fd, buf, size);
        if (len <= 0) {
            errnum = len < 0 ? errno : 0;
            break;
        }
        for (ssize_t at = 0; at < len && errnum == 0;) {
            const struct dirent64 *item = (const struct dirent64 *)(const void *)(buf + at);
            at += item->d_reclen;
            if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0 &&
                !add_name(&growing, item->d_name, item->d_type))
                errnum = ENOMEM;
        }
    }
    free(buf);
    sort_names(listing);
    return errnum;
}

void bk_listing_free(bk_listing_t *listing)
{
    free(listing->names);
    free(listing->places);
    *listing = (bk_listing_t){0};
}

bool bk_listing_is_tag(int fd)
{
    char text[sizeof SIGNATURE - 1];
    size_t got = 0;
    if (fd < 0 || !bk_attached_hold(fd))
        return false;
    bk_rc_t rc = bk_read_all(fd, text, sizeof text, &got, BK_CACHEDIR_TAG, NULL);
    bk_attached_close(fd);
    return rc == BK_OK && got == sizeof text && memcmp(text, SIGNATURE, got) == 0;
}

bool bk_listing_is_cache(int fd)
{
    int tag = openat(fd, BK_CACHEDIR_TAG, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    return bk_listing_is_tag(tag);
}
