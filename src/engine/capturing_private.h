/*
 * engine/capturing_private.h: what capturing.c (steps), shipping.c (to the storage) and
 * capture_report.c (how they are) share of the captures of a set.
 */
#ifndef BK_ENGINE_CAPTURING_PRIVATE_H
#define BK_ENGINE_CAPTURING_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/capturing.h"
#include "engine/engine_private.h"
#include "repo/history.h"
#include "sqlite/capture.h"

#define BK_WAITING_UNKNOWN (-1)

typedef struct {
    const bk_set_db_t *db;
    char key[BK_HISTORY_NAME]; /* on the storage */
    char *dir;
    atomic_bool suspended, detached; /* somebody wants it so */
    atomic_bool soon;                /* a step is to be made, whatever next says */
    pthread_mutex_t lock;            /* guards what follows; held during a step */
    bk_capture_t *capture;
    bk_ctl_t ctl;
    bk_capture_hold_t *hold; /* before this process owns the set */
    int64_t held;            /* bk_mono: its pin; 0: there never was one */
    int64_t next_held;       /* ns: since when it has a second pin; 0: it has none */
    bool failed;
    unsigned timeouts; /* in a row */
    int64_t next;      /* bk_mono: not before */
    int64_t room;      /* bk_mono: when the free space was last looked at */
    int64_t sealed;    /* bk_mono: of the last segment */

    pthread_mutex_t text; /* guards what status shows */
    int64_t stepping;     /* bk_mono: since when a step runs; 0: none does */
    uint64_t progress;    /* bytes that steps have read of all pages, as last seen */
    int64_t progressed;   /* bk_mono: when that was more than before */
    bk_capture_state_t state;
    char problem[BK_ERR_TEXT];
    char shipping[BK_ERR_TEXT]; /* why its transactions do not come to the storage */
    int64_t since;              /* ns: when this process became the owner */
    bool looked;                /* whether there was one before */
    int64_t before;             /* ns: as_of of that one */
    uint64_t gaps;              /* since the catalog knows */
    int64_t proved, doubted;    /* ns: all pages were as captured; they were not; 0: never */
    int64_t asked;              /* that doubt, as the capture was told of it */
    int64_t waiting;            /* ns: all committed before that is on the storage, the rest is not;
                                   0: all is; BK_WAITING_UNKNOWN */
    int covered;                /* open for bk_covered_write, or -1 */
    bool sealed_some;           /* since it was shipped, or maybe */
    uint8_t shipped_epoch[BK_EPOCH_SIZE];
    uint64_t shipped;      /* its transactions up to this are on the storage, as far as is known */
    int64_t shipped_until; /* ns: as of then they are */
    bool forked;           /* the storage knows another history of this epoch */
    uint64_t fork_last;    /* and numbers up to this */
    unsigned since_compacted; /* shipments; of the thread that ships */
} bk_captured_t;

struct bk_capturing_s {
    const bk_set_t *set;
    bk_catalog_t *catalog;
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

/* --- capture_report.c --- */

/* This process is the owner from now on: what those before it remembered. */
void bk_capture_report_begin(bk_capturing_t *c);
/* Whether it is captured or not, until when was it before?  [reads base_dir, so only on the thread
 * of its steps] */
void bk_capture_report_first(bk_captured_t *one);
/* A capture was opened: its counters begin anew.  [reads base_dir] */
void bk_capture_report_opened(bk_captured_t *one);
/* Under text: the state of a step is there, before is that of the step before. */
void bk_capture_report_step(bk_captured_t *one, const bk_capture_state_t *before);
/* What of it is to be known after a restart, into the catalog. */
void bk_capture_report_remember(bk_capturing_t *c, bk_captured_t *one,
                                const bk_capture_state_t *before);
/* Something was shipped: what waits now?  [reads base_dir] */
void bk_capture_report_waiting(bk_captured_t *one);
void bk_capture_report_proved(bk_capturing_t *c, bk_captured_t *one, int64_t when);
void bk_capture_report_doubt(bk_capturing_t *c, bk_captured_t *one);
/* All pages are to be compared. */
bool bk_capture_report_doubted(bk_captured_t *one);

#endif
