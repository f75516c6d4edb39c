/*
 * sqlite/tables.h: single tables of a past state put back into the application's database, in one
 * transaction: everyone sees all of them as they were, or nothing has changed.
 *
 * A table that is there loses its rows and gets those of the past, with their rowids; one that was
 * dropped is made again, with its indexes and triggers.  Triggers do not fire.  A virtual table
 * comes back with the tables in which it keeps its content.  AUTOINCREMENT goes on from the larger
 * number.
 *
 * What is proved of the past, before the target is touched.  Its pages are those that were captured
 * (the repository proves each block, past.h the chain of digests); what remains is a database that
 * was damaged then already, by the application or its disk.  So SQLite checks these tables with
 * their indexes, and the schema: as much as the recovery reads, and not the whole database, whose
 * other tables do not come back.
 */
#ifndef BK_SQLITE_TABLES_H
#define BK_SQLITE_TABLES_H

#include <jansson.h>
#include <stdbool.h>

#include "base/ctl.h"
#include "base/err.h"

typedef struct {
    const char *image;    /* URI of the past state (sqlite/vfs.h), for this call alone */
    const char *target;   /* the application's database */
    const json_t *tables; /* strings; upper and lower case are the same, as in SQL */
    unsigned busy_ms;     /* how long to wait for a lock */
    bool verify; /* damage of the past is a failure; else a note, and rows that can be read count */
    const char *database; /* its name, for messages about checks */
    char *const *checks;  /* SQL that must be true afterwards (require.h); NULL: none */
} bk_tables_t;

/*
 * *result, owned by the caller: for each table {name, action, rows}.  Nothing is changed by a
 * failure: BK_INVALID: there was no such table, or it is none that can be recovered; BK_CONFLICT:
 * its columns are others today, its rows break a constraint of today, or rows of a foreign key
 * would refer to nothing; BK_CORRUPT: the past is damaged; BK_FAILED: a check is not true, it is
 * asked inside the transaction; BK_BUSY: a writer held the database for longer than busy_ms.
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
