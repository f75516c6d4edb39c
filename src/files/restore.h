/*
 * files/restore.h: file trees out of the repository, in place or into a directory.
 *
 * Works in windows of bounded size: plan entries, fetch their chunks in pack order, write
 * temporaries beside their final names, flush, set metadata, rename.  A file appears complete or
 * not at all.  In place, what is already right (same size and content) is not rewritten.
 * Directories get their times last.  Every path is resolved beneath the target root without
 * following links, so that a link planted in the target leads nowhere.
 */
#ifndef BK_FILES_RESTORE_H
#define BK_FILES_RESTORE_H

#include <jansson.h>

#include "base/team.h"
#include "files/backup.h"
#include "files/fsaccess.h"
#include "files/pattern.h"
#include "repo/snapshot.h"

/*
 * What is in the way of a name of another kind follows the same policy: "always" replaces a file by
 * a directory, but moves a directory aside as <name>.before-<job>, since nobody asked to lose what
 * is in it.
 */
typedef enum {
    BK_OVERWRITE_ALWAYS,   /* replace what differs */
    BK_OVERWRITE_IF_NEWER, /* only when the backup's mtime is newer */
    BK_OVERWRITE_NEVER,    /* keep whatever has the name */
    BK_OVERWRITE_RENAME    /* keep the existing file as <name>.before-<job> */
} bk_overwrite_t;

typedef struct {
    const bk_snapshot_tree_t *tree;
    bk_root_t *target;
    const char *subdir; /* below target, "" for the target itself; made when missing */
    const bk_patterns_t
        *patterns;            /* any must match (files; their directories come along); empty: all */
    const char *const *paths; /* any must be the path or a parent of it; count 0: all */
    size_t path_count;
    bk_overwrite_t overwrite;
    /* In what was selected as whole directories, remove what the backup has not: but no sockets and
     * devices, nor anything in a cache (CACHEDIR.TAG), on another file system, or in a directory
     * that the backup could not read. */
    bool delete_extra;
    bool owners;  /* set uid and gid (by name first when the name exists here); failing is a note */
    bool dry_run; /* touch nothing, fill stats and plan */
    bool alone;   /* no other restore into this target runs now: temporaries are leftovers */
    const char *job; /* for .before-<job> and temporary names */
    /* Never replaced nor removed: what the backup leaves out on purpose.  All may be NULL or 0. */
    const bk_patterns_t *keep;       /* the exclude patterns of the files block */
    const bk_patterns_t *keep_match; /* its match patterns: what they do not select stays */
    uint64_t keep_larger;            /* its max_size */
    const bk_inode_t *skip;          /* databases and their companions, base_dir, storages */
    size_t skip_count;
} bk_restore_options_t;

typedef struct {
    uint64_t files, bytes;              /* selected */
    uint64_t written, bytes_written;    /* files really written */
    uint64_t unchanged;                 /* there already */
    uint64_t skipped, renamed, deleted; /* by policy; deleted counts everything below, too */
    uint64_t dirs, links, others;
    uint64_t failed;
} bk_restore_stats_t;

/*
 * plan (may be NULL): array that gets {path, action, size} for the first 1 000; actions are create,
 * replace, unchanged, skip, rename (the existing one is moved aside), link (to a file of this
 * restore), mkdir, delete.  failed: array of {path, error}, first 1 000.  Paths are absolute. A
 * file that fails (damaged chunk, no permission) is listed and the rest goes on.  BK_NO_SPACE
 * before anything is written when the target is too small.
 */
bk_rc_t bk_files_restore(bk_repo_t *repo, const bk_restore_options_t *options, bk_team_t *team,
                         bk_restore_stats_t *stats, json_t *plan, json_t *failed, bk_ctl_t *ctl,
                         bk_err_t *err);

#endif
