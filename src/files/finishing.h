/*
 * files/finishing.h: what comes when the files of a window have their names: names that are too
 * many go, directories get their metadata (private to src/files).  Lane 0 only.
 */
#ifndef BK_FILES_FINISHING_H
#define BK_FILES_FINISHING_H

#include "files/placing.h"

typedef struct {
    bk_place_t *place;
    bk_entry_t entry; /* its user and group point into text */
    char *text;
} bk_final_t;

typedef struct {
    bk_place_t *place;
    char *name, *path;
} bk_extra_t;

/* What fails for one is reported.  Both fail only when the whole restore has to end. */
bk_rc_t bk_finish_extras(bk_restore_t *restore, const bk_extra_t *extras, size_t count,
                         bk_err_t *err);
bk_rc_t bk_finish_dirs(bk_restore_t *restore, const bk_final_t *finals, size_t count,
                       bk_err_t *err);

#endif
