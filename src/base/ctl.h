/*
 * base/ctl.h: the line between a running job and whoever watches or stops it.
 *
 * The job's lanes add to the counters and poll bk_ctl_check at least every 100 ms of work; the
 * watcher reads counters and raises the stop flag.  Everything is atomic or under the small lock;
 * any thread may call anything.
 */
#ifndef BK_BASE_CTL_H
#define BK_BASE_CTL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/err.h"

#define BK_CTL_CURRENT 256 /* bytes of bk_ctl_t.current */
#define BK_CTL_NOTES   100 /* warnings kept with text; the rest are only counted */

typedef struct {
    atomic_int stop; /* 0, BK_CANCELED or BK_INTERRUPTED; the first one stays */
    atomic_uint_fast64_t bytes_done,
        bytes_total; /* source bytes looked at; totals are 0 while unknown */
    atomic_uint_fast64_t files_done, files_total;
    atomic_uint_fast64_t bytes_read;   /* really read from the source */
    atomic_uint_fast64_t bytes_stored; /* written to storages */
    int64_t started;                   /* bk_mono at bk_ctl_init */

    pthread_mutex_t lock;         /* guards what follows */
    const char *phase;            /* static string: "database", "files", "commit", ... */
    char current[BK_CTL_CURRENT]; /* object at work, printable */
    char *notes[BK_CTL_NOTES];    /* owned */
    unsigned notes_kept;
    uint64_t notes_total;
} bk_ctl_t;

void bk_ctl_init(bk_ctl_t *ctl);
void bk_ctl_free(bk_ctl_t *ctl);

/* Ask the job to stop.  why: BK_CANCELED (a person) or BK_INTERRUPTED (the host is leaving; it will
 * resume). */
void bk_ctl_stop(bk_ctl_t *ctl, bk_rc_t why);
/* BK_OK, or the stop reason described in err.  ctl may be NULL (never stops). */
bk_rc_t bk_ctl_check(bk_ctl_t *ctl, bk_err_t *err);

/* phase must be a string literal; it resets nothing. */
void bk_ctl_phase(bk_ctl_t *ctl, const char *phase);
void bk_ctl_current(bk_ctl_t *ctl, const char *text);
/* A warning: something was left out or had to be worked around; the result is then BK "warning",
 * never "success". */
void bk_ctl_note(bk_ctl_t *ctl, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
