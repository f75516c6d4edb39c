/*
 * files/sources.c: hard links by the device and inode that their file had when it was backed up.
 */
#include "files/sources.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

static void free_source(bk_source_t *source)
{
    free(source->path);
    free(source);
}

void bk_sources_free(bk_sources_t *sources)
{
    for (size_t i = 0; i < BK_SOURCE_BUCKETS; i++) {
        while (sources->buckets[i] != NULL) {
            bk_source_t *source = sources->buckets[i];
            sources->buckets[i] = source->next;
            free_source(source);
        }
    }
}

static bk_source_t **find_source(bk_sources_t *sources, uint64_t device, uint64_t inode)
{
    bk_source_t **at = &sources->buckets[(inode ^ inode >> 17 ^ device) % BK_SOURCE_BUCKETS];
    while (*at != NULL && ((*at)->inode != inode || (*at)->device != device))
        at = &(*at)->next;
    return at;
}

/* The item is the file that later names are linked to. */
bk_rc_t bk_source_make(bk_item_t *item, bk_source_t *source, bk_err_t *err)
{
    char path[PATH_MAX];
    item->source = source;
    item->first = true;
    source->pending = true;
    source->there = false;
    free(source->path);
    source->path = bk_place_path(item->place, item->name, path) ? bk_strdup(path) : bk_strdup("");
    return source->path != NULL ? BK_OK
                                : bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
}

bk_rc_t bk_sources_note(bk_sources_t *sources, bk_item_t *item, bk_err_t *err)
{
    const bk_entry_t *entry = &item->entry;
    if (entry->links < 2)
        return BK_OK;
    bk_source_t **at = find_source(sources, entry->device, entry->inode), *source = *at;
    if (source == NULL) {
        if ((source = *at = calloc(1, sizeof *source)) == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
        source->device = entry->device;
        source->inode = entry->inode;
        source->links = entry->links;
    }
    source->seen++;
    if (!source->pending && !source->there)
        return bk_source_make(item, source, err);
    item->source = source;
    return BK_OK;
}

/* Sources of which all names were met. */
void bk_sources_forget(bk_sources_t *sources)
{
    for (size_t i = 0; i < BK_SOURCE_BUCKETS; i++) {
        for (bk_source_t **at = &sources->buckets[i]; *at != NULL;) {
            bk_source_t *source = *at;
            if (source->seen >= source->links && !source->pending) {
                *at = source->next;
                free_source(source);
            } else {
                at = &source->next;
            }
        }
    }
}

/* Is the item's name the same file as its source already? */
bool bk_source_is_linked(const bk_item_t *item, const bk_at_t *at)
{
    char above[PATH_MAX];
    struct stat a, b;
    bk_at_t source;
    if (item->existing == BK_NOT_THERE || !bk_strcpy(above, sizeof above, item->source->path))
        return false;
    char *slash = strrchr(above, '/');
    const char *name =
        slash != NULL ? item->source->path + (slash - above) + 1 : item->source->path;
    *(slash != NULL ? slash : above) = '\0';
    if (bk_at_open(at->road, above, !bk_at_helped(at), &source) != 0)
        return false;
    bool same = bk_at_stat(&source, name, &a) == 0 && bk_at_stat(at, item->name, &b) == 0 &&
                a.st_ino == b.st_ino && a.st_dev == b.st_dev;
    bk_at_close(&source);
    return same;
}

/* A second name for the source: under a temporary name first, since link never replaces. */
bk_rc_t bk_source_link(bk_item_t *item, const bk_at_t *at, bk_err_t *err)
{
    bk_restore_t *restore = item->restore;
    bk_temporary_name(restore, item->temporary);
    int errnum = bk_at_link_from(at, item->source->path, item->temporary);
    bk_rc_t rc = errnum != 0 ? bk_at_error(at->road, errnum, "link it", err)
                             : bk_place_publish(restore, at, item->temporary, item->name,
                                                item->existing == BK_ASIDE, err);
    item->temporary[0] = '\0';
    return rc;
}
