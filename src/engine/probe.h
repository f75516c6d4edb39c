/*
 * engine/probe.h: a look at a directory that may not answer.
 *
 * A file system of the network or a disk that fails can hold a system call for minutes, and nothing
 * ends it.  So each look is a thread of its own, at most one at a time, which nobody joins; who
 * asks waits a moment for it and gets what is known: the last answer and its age, and since when
 * the look that is under way has had none.  Any thread may ask, and is never held for longer.
 */
#ifndef BK_ENGINE_PROBE_H
#define BK_ENGINE_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

typedef struct bk_probe_s bk_probe_t;

typedef struct {
    bool usable;          /* it can be read and written */
    bool there;           /* it exists */
    bool makeable;        /* it does not, but could be made */
    uint64_t total, left; /* bytes of its file system, or of that above it; 0: not known */
    int64_t time;         /* ns: of this answer; 0: there was none yet */
    int64_t silent;       /* ns: since when it has not answered; 0: it answers */
} bk_probe_answer_t;

/* path is copied. */
bk_rc_t bk_probe_new(const char *path, bk_probe_t **probe, bk_err_t *err);
/* A look that is under way ends by itself, some time. */
void bk_probe_free(bk_probe_t *probe);
/* Waits for at most 500 ms, and not at all while an earlier look has no answer. */
void bk_probe_look(bk_probe_t *probe, bk_probe_answer_t *answer);

#endif
