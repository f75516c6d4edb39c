/*
 * files/backup.h: one file tree into the repository.
 *
 * Lane 0 walks; the team reads, cuts, hashes.  A directory's node is built by whichever lane
 * finishes its last entry, so nobody waits for anybody, and memory is bounded by a segment of 4 096
 * entries per open directory plus the names of the directories on the way down.
 *
 * Compared with a previous snapshot's tree, a file whose size, mtime, ctime, inode and device are
 * equal is not opened and its entry is taken over (full: every file is read).  A file that changes
 * while it is read is read again, up to three times, then kept as read and noted.  What cannot be
 * read is listed, never skipped in silence. Sockets and device nodes are noted once per kind and
 * left out.
 *
 * When it is known what can have changed since the previous snapshot, only those directories are
 * listed; every other is taken over by its node's id, without a look at the file system, so the
 * cost follows the changes.  The tree is the same as a walk would build.  What such a backup meets
 * that it cannot judge (a damaged previous tree, a new name for a file that has others elsewhere)
 * makes it a walk.
 */
#ifndef BK_FILES_BACKUP_H
#define BK_FILES_BACKUP_H

#include <jansson.h>

#include "base/team.h"
#include "files/dirset.h"
#include "files/pattern.h"
#include "helper/client.h"
#include "repo/session.h"
#include "repo/snapshot.h"

typedef struct {
    uint64_t device, inode;
} bk_inode_t;

/* What is known of the time since the previous snapshot. */
typedef struct {
    const bk_dirset_t *dirty;     /* directories that may differ from it, or from what it read */
    uint64_t dirs, links, others; /* in it */
} bk_files_since_t;

typedef struct {
    const char *name; /* of the files block, for messages */
    const char *path;
    const bk_patterns_t *match; /* empty: everything; applies to files, not directories */
    const bk_patterns_t *exclude;
    uint64_t max_size;    /* larger files are left out and counted; 0: no limit */
    bool one_file_system; /* do not cross mounts */
    bool cachedir;        /* leave out the content of directories with a valid CACHEDIR.TAG */
    bool xattrs;
    /* Never entered nor opened: base_dir, storages, databases and their companions. */
    const bk_inode_t *skip;
    size_t skip_count;
    const bk_snapshot_tree_t *previous; /* NULL: read everything */
    const bk_files_since_t *since;      /* NULL, or no previous: walk */
    bk_helper_t *helper;                /* reads what this process has no right to; NULL: none */
    /* Gets the directories that the next backup has to list in any case: what is in them can change
     * unnoticed (files with several names), or was not read as it should be.  May be NULL. */
    bk_dirset_t *again;
} bk_files_options_t;

typedef struct {
    uint64_t files_new, files_changed, files_unmodified, files_removed;
    uint64_t dirs, links, others; /* others: FIFOs */
    uint64_t files, bytes;        /* all files in the tree, logical bytes */
    uint64_t bytes_read;
    uint64_t excluded, too_large, special; /* left out */
    uint64_t unreadable;
    uint64_t dirs_listed;
    bool walked; /* all directories were */
} bk_files_stats_t;

/*
 * Fills tree (but name) and stats: what was left out is counted in the directories that were
 * listed, all else for the whole tree.  Appends {path, errno, error} to unreadable (at most 1 000,
 * all are counted).  Fails only when the root itself cannot be read, the repository fails, the
 * helper is wanted and cannot be asked, or ctl says stop.
 */
bk_rc_t bk_files_backup(bk_session_t *session, const bk_files_options_t *options, bk_team_t *team,
                        bk_snapshot_tree_t *tree, bk_files_stats_t *stats, json_t *unreadable,
                        bk_ctl_t *ctl, bk_err_t *err);

#endif
