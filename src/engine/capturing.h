/*
 * engine/capturing.h: the captures of a set's databases, on the one process that owns the set: step
 * by step, sealed now and then, and shipped to the storage.  Any thread; a database belongs to one
 * at a time.
 */
#ifndef BK_ENGINE_CAPTURING_H
#define BK_ENGINE_CAPTURING_H

#include <jansson.h>

#include "engine/engine.h"
#include "sqlite/capture.h"

typedef struct bk_capturing_s bk_capturing_t;

bk_rc_t bk_capturing_new(const bk_set_t *set, bk_capturing_t **capturing, bk_err_t *err);
/* Lets go of everything, in order. */
void bk_capturing_free(bk_capturing_t *capturing);

/* Captures begin with the next step, and are let go of: what was captured is durable then. */
void bk_capturing_allow(bk_capturing_t *capturing, bool allow);

/*
 * Holds move on while the set is another's, so that nothing grows: next takes further ones, turn
 * with true ends those before, when the other process still had the set in between.
 */
void bk_capturing_hold_next(bk_capturing_t *capturing);
void bk_capturing_hold_turn(bk_capturing_t *capturing, bool over);
/* This process will not capture, or not soon.  leaving: nothing is held any more. */
void bk_capturing_release(bk_capturing_t *capturing, bool leaving);

/*
 * Let go of one database until resume, so that a recovery can put another file in its place.  By
 * path.
 */
void bk_capturing_suspend(bk_capturing_t *capturing, const char *path);
void bk_capturing_resume(bk_capturing_t *capturing, const char *path);

/*
 * A backup holds a database still, by path: what it sees is captured at once.  True, with what is
 * known of it, when nothing was committed since.  ctl: noted when a batch could not be made of it.
 */
bool bk_capturing_pinned(bk_capturing_t *capturing, const char *path, const bk_db_info_t *pinned,
                         bk_capture_state_t *state, bk_ctl_t *ctl);

/* Let go of the databases whose names are members of the object, until they are not; NULL: none. */
void bk_capturing_detach(bk_capturing_t *capturing, const json_t *names);

/* For status: one object a database that is captured. */
json_t *bk_capturing_describe(bk_capturing_t *capturing);

#endif
