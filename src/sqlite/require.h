/*
 * sqlite/require.h: what the configuration requires of a database before a recovery may count: SQL
 * that has to be true of it.
 */
#ifndef BK_SQLITE_REQUIRE_H
#define BK_SQLITE_REQUIRE_H

#include "sqlite/query.h"

/*
 * checks: NULL-terminated, or NULL for none; each a query (query.h) of the image or connection that
 * of names, which may take a minute.  BK_FAILED, with the query, when one does not answer with a
 * single row whose first value is true, as SQL takes it: a number other than 0.  name: the
 * database's, for messages.
 */
bk_rc_t bk_db_require(const char *name, char *const *checks, const bk_db_select_t *of,
                      bk_ctl_t *ctl, bk_err_t *err);

#endif
