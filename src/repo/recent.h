/*
 * repo/recent.h: the chunks of a running session that the index does not know yet: on their way, in
 * a pack that is still open, or in a closed one.  This is what makes two lanes that bring the same
 * chunk store it once, and what lets a reader see what was written a moment ago.
 *
 * Threads: any.  Lock order: a pack's lock, then the table's own; the table's lock is never held
 * during I/O.
 */
#ifndef BK_REPO_RECENT_H
#define BK_REPO_RECENT_H

#include <pthread.h>

#include "base/ctl.h"
#include "repo/index.h"

typedef struct bk_recent_s bk_recent_t;

/*
 * A pack under construction.  Who took it out of the list of open packs may change it, holding the
 * lock.
 */
typedef struct {
    bk_pack_t pack;
    pthread_mutex_t lock;
    unsigned readers; /* under the table's lock: threads that may look into the pack */
} bk_open_pack_t;

bk_recent_t *bk_recent_new(void); /* NULL: no memory */
void bk_recent_free(bk_recent_t *recent);

/*
 * Changes whenever chunks move to the index.  Read it, look into the index, then claim with it: the
 * claim is refused (BK_CONFLICT, without text) when the chunk may have moved meanwhile, and the
 * look-up has to be repeated.
 */
uint64_t bk_recent_generation(bk_recent_t *recent);
/* *mine: nobody brought this chunk before; the caller owes a bk_recent_place or bk_recent_drop. */
bk_rc_t bk_recent_claim(bk_recent_t *recent, const bk_id_t *id, uint64_t generation, bool *mine,
                        bk_err_t *err);
void bk_recent_drop(bk_recent_t *recent, const bk_id_t *id);
/* The chunk lies in an open pack; also when it moved from one to another. */
void bk_recent_place(bk_recent_t *recent, const bk_pack_entry_t *entry, bk_open_pack_t *open);
/* The open pack is finished and durable; its chunks lie at closed->entries. */
bk_rc_t bk_recent_close(bk_recent_t *recent, const bk_pack_t *closed, bk_err_t *err);
/* The index names these packs now. */
void bk_recent_indexed(bk_recent_t *recent, bk_pack_t *const *packs, size_t count);
/* The session is over: forget everything, waiting for readers of open packs. */
void bk_recent_clear(bk_recent_t *recent);

bool bk_recent_has(bk_recent_t *recent, const bk_id_t *id);
/*
 * BK_OK: out holds the raw bytes.  BK_EXISTS, without text: it lies at *where.  BK_NOT_FOUND,
 * without text: it is not here.
 */
bk_rc_t bk_recent_read(bk_recent_t *recent, const bk_id_t *id, bk_buf_t *out, bk_location_t *where,
                       bk_ctl_t *ctl, bk_err_t *err);

#endif
