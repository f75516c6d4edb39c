/*
 * sqlite/query.h: one question in SQL to an image of a database, answered as JSON.  Nothing is
 * written, no other file is reached, and rows, bytes and time are bounded, whatever the SQL says.
 */
#ifndef BK_SQLITE_QUERY_H
#define BK_SQLITE_QUERY_H

#include <sqlite3.h>
#include <stdint.h>

#include "base/ctl.h"
#include "base/err.h"
#include "base/json.h"

#define BK_QUERY_ROWS  1000       /* when max_rows is 0 */
#define BK_QUERY_BYTES (4u << 20) /* when max_bytes is 0 */
#define BK_QUERY_MS    10000      /* when max_ms is 0 */
#define BK_QUERY_SQL   65536      /* longest SQL, in bytes */

typedef struct {
    const char *image;  /* SQLite URI that opens for reading only (bk_db_image_uri) */
    sqlite3 *db;        /* or, instead, a connection of whose main database it is asked */
    const char *sql;    /* one SELECT, VALUES, WITH or EXPLAIN of these, UTF-8 */
    uint64_t max_rows;  /* in the answer; at most 1e6 */
    uint64_t max_bytes; /* of values in the answer, and of any value on the way; at most 64 MiB */
    uint64_t max_ms;    /* to run; at most one hour */
} bk_db_select_t;

/*
 * *result, owned by the caller: {"columns": [{"name", "type"}], "rows": [[value …] …],
 * "row_count", "truncated": false | "rows" | "bytes", "elapsed": seconds}.  docs/sqlite.md says how
 * values look.  BK_INVALID: no such SQL (with the byte it fails at); BK_FORBIDDEN: SQL that does
 * more than read; BK_TIMEOUT; BK_TOO_LARGE: a single value passes max_bytes.  Any thread.
 * A connection that was given is as before, within its transaction as well, but for its authorizer
 * and progress handler: there are none then.
 */
bk_rc_t bk_db_select(const bk_db_select_t *how, json_t **result, bk_ctl_t *ctl, bk_err_t *err);

#endif
