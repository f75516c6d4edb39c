/*
 * engine/capturing.h: the captures of a set's databases, on the one process that owns the set: step
 * by step, sealed now and then, and shipped to the storage.  Any thread; a database belongs to one
 * at a time.
 */
#ifndef BK_ENGINE_CAPTURING_H
#define BK_ENGINE_CAPTURING_H

#include <jansson.h>

#include "engine/catalog.h"
#include "engine/engine.h"
#include "sqlite/capture.h"

typedef struct bk_capturing_s bk_capturing_t;

/* catalog: what is remembered of captures from one owner to the next; borrowed. */
bk_rc_t bk_capturing_new(const bk_set_t *set, bk_catalog_t *catalog, bk_capturing_t **capturing,
                         bk_err_t *err);
/* Lets go of everything, in order. */
void bk_capturing_free(bk_capturing_t *capturing);

/* Captures begin with the next step, and are let go of: what was captured is durable then. */
void bk_capturing_allow(bk_capturing_t *capturing, bool allow);

/* The set is another's: holds move on, so that nothing grows. */
void bk_capturing_hold_on(bk_capturing_t *capturing);
/* This process will not capture, or not soon.  leaving: nothing is held any more. */
void bk_capturing_release(bk_capturing_t *capturing, bool leaving);

/*
 * Let go of one database until resume, so that a recovery can put another file in its place.  By
 * path.
 */
void bk_capturing_suspend(bk_capturing_t *capturing, const char *path);
void bk_capturing_resume(bk_capturing_t *capturing, const char *path);

/* What was captured by now: whatever comes later is a transaction.  False: that is not sure. */
bool bk_capturing_since(bk_capturing_t *capturing, const char *path, bk_capture_state_t *state);
/*
 * A backup holds a database still, by path: what it sees is captured at once.  True, with what is
 * known of it, when nothing was committed since.  ctl: noted when a batch could not be made of it.
 */
bool bk_capturing_pinned(bk_capturing_t *capturing, const char *path, const bk_db_info_t *pinned,
                         bk_capture_state_t *state, bk_ctl_t *ctl);

/*
 * A backup has read all pages of a database, by path, and they are just what its transactions tell
 * as of when (ns); or they are not: then the next step compares all, what differs is a gap, and
 * health fails until then.
 */
void bk_capturing_proved(bk_capturing_t *capturing, const char *path, int64_t when);
void bk_capturing_doubt(bk_capturing_t *capturing, const char *path);

/*
 * Let go of the databases whose names are members of the object, until they are not; NULL: none.
 * Never waits: a step that hangs lets go when it comes back.
 */
void bk_capturing_detach(bk_capturing_t *capturing, const json_t *names);

/* For health: how one of them is, of bk_capturing_count. */
typedef struct {
    const char *name;
    bool detached, capturing;
    bool batches;
    bool stuck;      /* a step does not come back, and may hold the log */
    bool doubted;    /* what was captured is not what is there */
    int64_t since;   /* ns: for so long this process has been to capture it; 0: it is not */
    int64_t durable; /* ns: all that was committed until then is in base_dir; 0: nobody knows */
    int64_t shipped; /* ns: the same of the storage */
    int64_t proved;  /* ns: all pages were last compared with what was captured; 0: never */
    char problem[BK_ERR_TEXT];  /* "": none */
    char shipping[BK_ERR_TEXT]; /* the same, of the way to the storage */
} bk_capture_report_t;
size_t bk_capturing_count(const bk_capturing_t *capturing);
void bk_capturing_report(bk_capturing_t *capturing, size_t which, bk_capture_report_t *report);

/* For status: one object a database that is captured. */
json_t *bk_capturing_describe(bk_capturing_t *capturing);

#endif
