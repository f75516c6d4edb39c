/*
 * repo/session_private.h: what session.c (putting), commit.c (ending) and lease.c share of a
 * running session.
 */
#ifndef BK_REPO_SESSION_PRIVATE_H
#define BK_REPO_SESSION_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "repo/doubt.h"
#include "repo/recent.h"
#include "repo/repo_private.h"
#include "repo/session.h"

#define BK_OPEN_PACKS 64 /* of a kind; there are never more than lanes */

typedef struct {
    bk_open_pack_t *packs[BK_OPEN_PACKS]; /* the last is taken first */
    size_t count;
    size_t target;       /* bytes of one; fixed after begin */
    unsigned made, most; /* how many there are, and may be: 0 for as many as there are lanes */
} bk_open_packs_t;

struct bk_session_s {
    bk_repo_t *repo;
    bk_index_t *index;
    bk_recent_t *recent;
    bk_ctl_t *ctl;
    bk_session_options_t options;
    char *host;
    char relied_snapshot[BK_STORAGE_NAME]; /* "": none */
    int spool_lock;      /* descriptor that keeps other sessions out of the spool */
    bk_packset_t absent; /* condemned or in doubt: what they hold counts as not stored */
    int64_t doubted; /* ns: when a pack was last noted as gone or damaged; both fixed after begin */

    pthread_mutex_t lease_lock; /* guards the lease while lanes run */
    char lease[BK_STORAGE_NAME];
    int64_t lease_mono, lease_wall; /* when it was last written */
    _Atomic int64_t due;            /* bk_mono of the next look at lease and index */

    pthread_mutex_t flush_lock; /* held through the writing of an index segment */

    pthread_mutex_t lock; /* guards what follows; never held during I/O */
    pthread_cond_t given; /* an open pack came back to its list */
    bk_open_packs_t data, meta;
    bk_pack_t **finished; /* durable, in no index segment yet: names and entries, no bytes */
    size_t finished_count, finished_cap, finished_entries;
    int64_t finished_since; /* bk_mono of the oldest of them */
    bk_packset_t relied;    /* packs that hold what this backup needs */
    bk_session_stats_t stats;
    bk_err_t failure; /* the first; rc BK_OK while there is none */
};

/* lease.c */
bk_rc_t bk_lease_begin(bk_session_t *session, bk_err_t *err);
/* Write the lease again when it is older than five minutes; a new one when it ran out. */
bk_rc_t bk_lease_keep(bk_session_t *session, bk_err_t *err);
void bk_lease_end(bk_session_t *session);

/* session.c */
/* Remember the first failure; returns rc. */
bk_rc_t bk_session_fail(bk_session_t *session, bk_rc_t rc, const bk_err_t *err);
/*
 * Seal an open pack, make it durable in the spool and on the storage, and empty it for the next
 * chunks.
 */
bk_rc_t bk_session_close_pack(bk_session_t *session, bk_open_pack_t *open, bk_err_t *err);
/* One index segment of all finished packs. */
bk_rc_t bk_session_flush_index(bk_session_t *session, bk_err_t *err);
/* Free everything; the lease ends, the spool is unlocked. */
void bk_session_free(bk_session_t *session);

#endif
