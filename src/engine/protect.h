/*
 * engine/protect.h: what neither a backup nor a recovery of files may touch, although it lies in a
 * protected tree: databases with their companions, base_dir, and local storages, of this set and of
 * every other one that this process has entered.
 *
 * A database has its own road; copied as a file, or put back as one, it would be torn.  A log or
 * journal that comes back beside it would be played into it.
 */
#ifndef BK_ENGINE_PROTECT_H
#define BK_ENGINE_PROTECT_H

#include <limits.h>

#include "engine/set.h"
#include "files/backup.h"
#include "files/pattern.h"

typedef struct {
    bk_inode_t *items; /* what is there now, by inode: found under any name */
    size_t count, room;
} bk_protected_t;

/* From now on the set's own is left alone by all sets of the process; the set is borrowed until
 * leave.  Any thread. */
bk_rc_t bk_protected_enter(const bk_set_t *set, bk_err_t *err);
void bk_protected_leave(const bk_set_t *set); /* also of one that was not entered */

bk_rc_t bk_protected_init(bk_protected_t *list, const bk_set_t *set, bk_err_t *err);
void bk_protected_free(bk_protected_t *list);

/*
 * The exclude patterns of a tree, and those for database files in it: a journal comes and goes, so
 * that its inode says nothing.  patterns must be empty.
 */
bk_rc_t bk_protected_patterns(const bk_set_t *set, const bk_set_files_t *files,
                              bk_patterns_t *patterns, bk_err_t *err);

/* Path without symbolic links, whose last parts need not exist.  False when it is no such path. */
bool bk_path_resolve(const char *path, char out[PATH_MAX]);
/* What of inner lies below outer ("" for the same), both resolved; NULL when it lies elsewhere. */
const char *bk_path_below(const char *inner, const char *outer);

#endif
