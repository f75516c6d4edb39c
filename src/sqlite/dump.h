/*
 * sqlite/dump.h: a pinned database into the repository, and back out of it as a plain file.
 * Runs on lane 0 and uses the team for hashing, compressing, fetching.
 */
#ifndef BK_SQLITE_DUMP_H
#define BK_SQLITE_DUMP_H

#include "base/team.h"
#include "repo/session.h"
#include "repo/snapshot.h"
#include "sqlite/source.h"

/*
 * Back up a pinned database, which is at path: blocks of BK_BLOCK_SIZE into chunks and a map, and
 * the digest.  Fills every member of *db but name (heap strings owned by it).  All-zero blocks are
 * stored as holes.
 */
bk_rc_t bk_db_dump(bk_session_t *session, bk_db_source_t *source, const char *path, bk_team_t *team,
                   bk_snapshot_db_t *db, bk_ctl_t *ctl, bk_err_t *err);

/*
 * Write the image of db into an empty file that is open for reading and writing; file is its name,
 * for messages.  Page count and digest are those of the backup, or it is BK_CORRUPT.  Nothing is
 * flushed: who gives it its name does that.
 */
bk_rc_t bk_db_materialise(bk_repo_t *repo, const bk_snapshot_db_t *db, int fd, const char *file,
                          bk_team_t *team, bk_ctl_t *ctl, bk_err_t *err);

#endif
