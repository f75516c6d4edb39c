/*
 * sqlite/tables.h: single tables of a past state put back into the application's database, in one
 * transaction: everyone sees all of them as they were, or nothing has changed.
 *
 * A table that is there loses its rows and gets those of the past, with their rowids; one that was
 * dropped is made again, with its indexes and triggers.  Triggers do not fire.  A virtual table
 * comes back with the tables in which it keeps its content.  AUTOINCREMENT goes on from the larger
 * number.
 */
#ifndef BK_SQLITE_TABLES_H
#define BK_SQLITE_TABLES_H

#include <jansson.h>

#include "base/ctl.h"
#include "base/err.h"

typedef struct {
    const char *image;    /* URI of the past state (sqlite/vfs.h), for this call alone */
    const char *target;   /* the application's database */
    const json_t *tables; /* strings; upper and lower case are the same, as in SQL */
    unsigned busy_ms;     /* how long to wait for a lock */
} bk_tables_t;

/*
 * *result, owned by the caller: for each table {name, action, rows}.  Nothing is changed by a
 * failure: BK_INVALID: there was no such table, or it is none that can be recovered; BK_CONFLICT:
 * its columns are others today, its rows break a constraint of today, or rows of a foreign key
 * would refer to nothing; BK_BUSY: a writer held the database for longer than busy_ms.
 */
bk_rc_t bk_tables_recover(const bk_tables_t *how, json_t **result, bk_ctl_t *ctl, bk_err_t *err);
/*
 * What it would do: for each table {name, action, rows_now, rows_then, only_now, only_then}.  The
 * last two count rows that have no equal on the other side; a changed row is in both.  Takes as
 * long as sorting both sides.
 */
bk_rc_t bk_tables_compare(const bk_tables_t *how, json_t **result, bk_ctl_t *ctl, bk_err_t *err);
/* Only whether there are such tables on both sides, as bk_tables_recover would find them. */
bk_rc_t bk_tables_check(const bk_tables_t *how, bk_ctl_t *ctl, bk_err_t *err);

#endif
