/*
 * engine/catalog_private.h: what catalog.c (opening, backups, values) and queue.c (jobs) share.
 *
 * The functions want the catalog's lock held, but dump and parse.
 */
#ifndef BK_ENGINE_CATALOG_PRIVATE_H
#define BK_ENGINE_CATALOG_PRIVATE_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "engine/catalog.h"

struct bk_catalog_s {
    pthread_mutex_t lock; /* one statement sequence at a time */
    sqlite3 *db;
    char *path;
    struct stat st; /* of what is attached (base/attached.h) */
    bool attached;
};

/* Describe what SQLite answered. */
bk_rc_t bk_catalog_failed(const bk_catalog_t *catalog, int code, const char *what, bk_err_t *err);
bk_rc_t bk_catalog_exec(bk_catalog_t *catalog, const char *sql, bk_err_t *err);
bk_rc_t bk_catalog_prepare(bk_catalog_t *catalog, const char *sql, sqlite3_stmt **statement,
                           bk_err_t *err);
/* NULL stays NULL. */
void bk_catalog_bind(sqlite3_stmt *statement, int at, const char *text);
/* Step a statement that returns nothing, and finalise it. */
bk_rc_t bk_catalog_step(bk_catalog_t *catalog, sqlite3_stmt *statement, bk_err_t *err);
/* The first column of the first row as text, and finalise it.  BK_NOT_FOUND, without text in err,
 * when there is no row. */
bk_rc_t bk_catalog_text(bk_catalog_t *catalog, sqlite3_stmt *statement, char *out, size_t size,
                        bk_err_t *err);

/* Canonical text of a value ("{}" for NULL), owned by the caller; and back.  NULL: no memory, or no
 * JSON. */
char *bk_catalog_dump(const json_t *value);
json_t *bk_catalog_parse(const unsigned char *text);

#endif
