/*
 * sqlite/walindex.h: the shared index of a live write-ahead log, seen through a connection.
 */
#ifndef BK_SQLITE_WALINDEX_H
#define BK_SQLITE_WALINDEX_H

#include "sqlite/connect.h"
#include "sqlite/wal.h"

/*
 * The header as it is now.  c has a read transaction open.  wait_ms: for how long a header that is
 * being written, or was left so by a writer that died, is looked at again (BK_BUSY after it: the
 * next read transaction to begin repairs it).
 */
bk_rc_t bk_db_wal_header(bk_db_connection_t *c, unsigned wait_ms, bk_wal_header_t *header,
                         bk_err_t *err);

#endif
