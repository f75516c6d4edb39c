/*
 * sqlite/connect.h: a connection to an application's database, as a guest: it waits for locks no
 * longer than allowed and can be stopped meanwhile, never checkpoints on its own account, leaves
 * beside the database what it found there, and tells in words which right is missing.
 *
 * A connection belongs to one thread at a time and must not move while it is open.
 */
#ifndef BK_SQLITE_CONNECT_H
#define BK_SQLITE_CONNECT_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/ctl.h"
#include "base/err.h"

typedef struct {
    sqlite3 *db;
    sqlite3_file *file; /* of the main database */
    const char *wal;    /* name of the -wal, owned by SQLite */
    char *path;         /* without links; owned */
    struct stat st;
    bk_ctl_t *ctl;
    unsigned busy_ms;
    int64_t give_up; /* bk_mono when the present wait for a lock is too long */
    bool attached, found_wal;
} bk_db_connection_t;

/* Takes no lock yet.  Release with bk_db_disconnect, also after a failure. */
bk_rc_t bk_db_connect(bk_db_connection_t *c, const char *path, unsigned busy_ms, bk_ctl_t *ctl,
                      bk_err_t *err);
void bk_db_disconnect(bk_db_connection_t *c);

/* The first column of the first row as text, "" when there is none.  out may be NULL. */
bk_rc_t bk_db_query(bk_db_connection_t *c, const char *sql, char *out, size_t size, bk_err_t *err);
/* To be called when a read has opened the -wal and -shm.  Those that this connection made are given
 * to the group of the database. */
void bk_db_share_companions(const bk_db_connection_t *c);

/* Describe a failure on a connection; a stop of the job comes first. */
bk_rc_t bk_db_failure(const bk_db_connection_t *c, int code, const char *operation, bk_err_t *err);
/* The same without a connection of this kind.  db may be NULL. */
bk_rc_t bk_db_error(sqlite3 *db, int code, const char *path, const char *operation, bk_err_t *err);

/* The page size in the first 20 bytes of a file, 0 when they are not a database's. */
uint32_t bk_db_header_page_size(const uint8_t header[20]);

/* A finished image: read only, without locks; nothing appears beside it.  By its file, or by the
 * URI that bk_db_image_uri makes of one: immutable, so no -wal or -shm is looked for. */
#define BK_DB_URI (4096 * 3 + 64) /* bytes that suffice for any path */
bk_rc_t bk_db_image_uri(const char *file, char *uri, size_t size, bk_err_t *err);
bk_rc_t bk_db_open_uri(const char *uri, sqlite3 **db, bk_err_t *err);
bk_rc_t bk_db_open_image(const char *file, sqlite3 **db, bk_err_t *err);

#endif
