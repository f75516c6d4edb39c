/*
 * files/compare.h: what differs between two stored trees.  Reads only directories whose nodes
 * differ, so it costs what changed.  Any thread; blocks on the repository.
 */
#ifndef BK_FILES_COMPARE_H
#define BK_FILES_COMPARE_H

#include "files/dirset.h"
#include "repo/tree.h"

typedef struct {
    uint64_t files_new, files_changed, files_removed;
    int64_t files, bytes, dirs, links, others; /* what after has more than before */
} bk_compared_t;

/*
 * Whether two entries of one name are the same file as it was.  A ctime of 0 is one that was too
 * fresh to be trusted: the rest decides then.
 */
bool bk_files_same(const bk_entry_t *before, const bk_entry_t *after);

/*
 * where (may be NULL): gets the directories in which a name came, went, or has other content or
 * metadata; what only other names of the same inode or the moment of reading can have changed
 * (ctime, number of links) does not count there.
 */
bk_rc_t bk_files_compare(bk_repo_t *repo, const bk_id_t *before, const bk_id_t *after,
                         bk_compared_t *sums, bk_dirset_t *where, bk_ctl_t *ctl, bk_err_t *err);

#endif
