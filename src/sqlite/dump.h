/*
 * sqlite/dump.h: a pinned database into the repository, and back out of it as a plain file.
 * Runs on lane 0 and uses the team for hashing, compressing, fetching.
 */
#ifndef BK_SQLITE_DUMP_H
#define BK_SQLITE_DUMP_H

#include "base/team.h"
#include "repo/session.h"
#include "repo/snapshot.h"
#include "sqlite/past.h"
#include "sqlite/source.h"

/* The blocks of a database as they were stored before its pin, each at a time of its own. */
typedef struct {
    struct bk_db_seen_block_s *blocks;
    uint64_t count, room;
    uint32_t page_size, block_size;
} bk_db_seen_t;

/*
 * What is known of a pinned database: it is past, which stands on what an earlier backup holds
 * (like), or on what was there before any of the blocks was seen.
 */
typedef struct {
    const bk_snapshot_db_t *like; /* or seen */
    const bk_db_seen_t *seen;
    const bk_past_t *past;
} bk_db_known_t;

/*
 * Store the blocks of a large database in WAL mode, in many pins of pin_ms each (0: BK_DB_PIN_MS),
 * so that its log can begin anew meanwhile.  seen is for bk_db_seen_free, also after a failure.
 */
bk_rc_t bk_db_look_ahead(bk_session_t *session, const char *path, unsigned busy_ms, unsigned pin_ms,
                         bk_team_t *team, bk_db_seen_t *seen, bk_ctl_t *ctl, bk_err_t *err);
void bk_db_seen_free(bk_db_seen_t *seen);

/*
 * Back up a pinned database, which is at path: blocks of BK_BLOCK_SIZE into chunks and a map, and
 * the digest.  Fills every member of *db but name (heap strings owned by it).  All-zero blocks are
 * stored as holes.  known may be NULL; else blocks that it says are as in the earlier backup, or as
 * they were seen, and that are stored, are not read.  BK_CHANGED: what was read shows that it is
 * wrong; other failures may come from the earlier backup: without known they do not.
 */
bk_rc_t bk_db_dump(bk_session_t *session, bk_db_source_t *source, const char *path,
                   const bk_db_known_t *known, bk_team_t *team, bk_snapshot_db_t *db, bk_ctl_t *ctl,
                   bk_err_t *err);

/*
 * Write the image of db into an empty file that is open for reading and writing; file is its name,
 * for messages.  Page count and digest are those of the backup, or it is BK_CORRUPT.  Nothing is
 * flushed: who gives it its name does that.
 */
bk_rc_t bk_db_materialise(bk_repo_t *repo, const bk_snapshot_db_t *db, int fd, const char *file,
                          bk_team_t *team, bk_ctl_t *ctl, bk_err_t *err);

#endif
