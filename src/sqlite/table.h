/*
 * sqlite/table.h: one table in two schemas of a connection, "main" (today) and "past": what it is,
 * and how its rows come from the one to the other.  One thread; inside the caller's transaction.
 */
#ifndef BK_SQLITE_TABLE_H
#define BK_SQLITE_TABLE_H

#include "sqlite/connect.h"

typedef struct {
    char *name;      /* as the past spells it; owned, and so are the others */
    char *type;      /* "table" or "view" */
    char *shape;     /* what must be the same today */
    char *sql;       /* that made it */
    bool is_virtual; /* its content lies in tables of its own, its shadows */
    bool missing;    /* today */
} bk_table_t;

/* SQL by the rules of sqlite3_mprintf; its first value as text in *text (sqlite3_free; NULL: none),
 * unless that is NULL. */
bk_rc_t bk_table_sql(bk_db_connection_t *c, char **text, bk_err_t *err, const char *format, ...);
bk_rc_t bk_table_number(bk_db_connection_t *c, int64_t *number, bk_err_t *err, const char *format,
                        ...);

/* BK_INVALID: the past has no such table, or not one that can be recovered.  BK_CONFLICT: today's
 * is another one.  Free it also after a failure. */
bk_rc_t bk_table_open(bk_db_connection_t *c, const char *name, bk_table_t *table, bk_err_t *err);
void bk_table_free(bk_table_t *table);

/*
 * SQLite's own check of the past's table, or of what a virtual one keeps its content in, with their
 * indexes: integrity_check of a database below 5 GiB, else quick_check, as for a whole one.  Reads
 * every page of them; main is not touched.  BK_CORRUPT: with what SQLite said.
 */
bk_rc_t bk_table_prove(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err);
/* The same of what names the tables, and of the numbers that were given out. */
bk_rc_t bk_table_prove_schema(bk_db_connection_t *c, bk_err_t *err);

/* Make it if it is missing, and give it the rows of the past.  *rows: how many. */
bk_rc_t bk_table_put_back(bk_db_connection_t *c, const bk_table_t *table, int64_t *rows,
                          bk_err_t *err);
/* The indexes and triggers of a table that was missing. */
bk_rc_t bk_table_finish(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err);
/* Rows that schema has and the other has not. */
bk_rc_t bk_table_only_in(bk_db_connection_t *c, const bk_table_t *table, const char *schema,
                         int64_t *rows, bk_err_t *err);

#endif
