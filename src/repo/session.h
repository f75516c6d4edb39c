/*
 * repo/session.h: writing one backup.
 *
 * The order (each step durable before the next; docs/repository-format.md "Writing" says why):
 *   lease; condemned/, then index/; packs to the spool (fsync), to the storage; index segment;
 *   lease valid and condemned/ again; snapshot; condemned/ and every pack again; lease ends.
 * Interrupted anywhere: what is durable is reused by the next session, nothing listed is broken.
 *
 * One session at a time writes through a spool.  Threads: put and has by any lane; begin, commit
 * and abort by lane 0, when no lane is in put or has any more.  Chunks can be read by bk_repo_get
 * as soon as put has returned.
 */
#ifndef BK_REPO_SESSION_H
#define BK_REPO_SESSION_H

#include "repo/repo.h"

typedef struct bk_session_s bk_session_t;

typedef struct {
    const char *host; /* for the lease */
    bk_compression_t
        compression; /* of FILE chunks; blocks and metadata use zstd 1 unless gzip is set */
    bool upload;     /* false: keep everything in the spool, restorable once shipped later */
} bk_session_options_t;

typedef struct {
    uint64_t chunks_new, chunks_known; /* put calls that stored, and that found it there */
    uint64_t bytes_new, bytes_known;   /* raw bytes of those */
    uint64_t bytes_stored;             /* bytes of packs, index and snapshot written */
    uint64_t packs;
} bk_session_stats_t;

/*
 * First ships what an earlier session left in the spool (upload only).  BK_LOCKED: another session
 * has the spool.
 */
bk_rc_t bk_session_begin(bk_repo_t *repo, const bk_session_options_t *options, bk_ctl_t *ctl,
                         bk_session_t **session, bk_err_t *err);
/*
 * Store one chunk unless it is known; *id is its id.  probe: the content may be incompressible
 * (files). data is not kept.  Closing a full pack (seal, spool, ship) happens in the calling lane.
 */
bk_rc_t bk_session_put(bk_session_t *session, bk_type_t type, bool probe, const void *data,
                       size_t len, bk_id_t *id, bk_err_t *err);
/*
 * True when id is stored, and not only in packs that are condemned, gone or damaged: then its bytes
 * need not be read again.
 */
bool bk_session_has(bk_session_t *session, const bk_id_t *id);
/*
 * This backup takes over tree nodes by their ids, and nobody looks at what they name: it relies on
 * the snapshot (its object name) that they come from, which commit finds there still or fails.
 */
void bk_session_rely(bk_session_t *session, const char *snapshot);
/*
 * True when packs were found gone or damaged after since (ns): what a backup of before that refers
 * to must be looked at chunk by chunk, not taken over by the ids of nodes.
 */
bool bk_session_doubts(const bk_session_t *session, int64_t since);
bk_repo_t *bk_session_repo(bk_session_t *session);
bk_ctl_t *bk_session_ctl(bk_session_t *session);
void bk_session_stats(bk_session_t *session, bk_session_stats_t *stats);

/*
 * Store what is still open: afterwards the statistics are final but for the snapshot itself, which
 * may want to hold them.  commit does it too.
 */
bk_rc_t bk_session_flush(bk_session_t *session, bk_err_t *err);
/*
 * Flush packs and index, then publish the snapshot: body (canonical JSON) sealed as
 * snapshots/<backup_id>-<sha256>. BK_EXISTS when another snapshot has that backup id; BK_STORAGE
 * when packs the backup relies on were condemned, or are gone or cut off (the next session stores
 * their content again).  After a failure nothing is listed.  The session is over and freed,
 * whatever the result.
 */
bk_rc_t bk_session_commit(bk_session_t *session, const char *backup_id, const void *body,
                          size_t len, bk_err_t *err);
/* Give up: what was shipped stays for reuse (its index is flushed when possible), the lease ends.
 * NULL is fine. */
void bk_session_abort(bk_session_t *session);

/* Objects and bytes waiting in a spool directory. */
bk_rc_t bk_spool_measure(const char *spool_dir, uint64_t *objects, uint64_t *bytes, bk_err_t *err);

#endif
