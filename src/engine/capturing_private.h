/*
 * engine/capturing_private.h: what capturing.c (steps) and shipping.c (to the storage) share of the
 * captures of a set.
 */
#ifndef BK_ENGINE_CAPTURING_PRIVATE_H
#define BK_ENGINE_CAPTURING_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/capturing.h"
#include "engine/engine_private.h"
#include "repo/history.h"
#include "sqlite/capture.h"

typedef struct {
    const bk_set_db_t *db;
    char key[BK_HISTORY_NAME]; /* on the storage */
    char *dir;
    atomic_bool suspended, detached; /* somebody wants it so */
    pthread_mutex_t lock;            /* guards what follows; held during a step */
    bk_capture_t *capture;
    bk_ctl_t ctl;
    bk_capture_hold_t *hold; /* before this process owns the set */
    int64_t held;            /* bk_mono: its pin; 0: there never was one */
    bool next_held;          /* it has a second pin */
    bool failed;
    unsigned timeouts; /* in a row */
    int64_t next;      /* bk_mono: not before */
    int64_t room;      /* bk_mono: when the free space was last looked at */
    int64_t sealed;    /* bk_mono: of the last segment */

    pthread_mutex_t text; /* guards what status shows */
    int64_t stepping;     /* bk_mono: since when a step runs; 0: none does */
    bk_capture_state_t state;
    char problem[BK_ERR_TEXT];
    int covered;      /* open for bk_covered_write, or -1 */
    bool sealed_some; /* since it was shipped, or maybe */
    uint8_t shipped_epoch[BK_EPOCH_SIZE];
    uint64_t shipped;      /* its transactions up to this are on the storage, as far as is known */
    int64_t shipped_until; /* ns: as of then they are */
    bool forked;           /* the storage knows another history of this epoch */
    uint64_t fork_last;    /* and numbers up to this */
    unsigned since_compacted; /* shipments; of the thread that ships */
} bk_captured_t;

struct bk_capturing_s {
    const bk_set_t *set;
    bk_captured_t *list; /* those with a window */
    size_t count;
    atomic_bool allowed, leaving;
    char problem[BK_ERR_TEXT]; /* of shipping, as last told; its thread's */
};

/* shipping.c: take the lock; false: whoever has it takes too long. */
bool bk_capturing_lock_soon(bk_captured_t *one);
/* shipping.c: which names are segments, for scandir. */
struct dirent;
int bk_capturing_segments(const struct dirent *entry);

#endif
