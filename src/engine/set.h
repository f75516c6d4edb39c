/*
 * engine/set.h: one "backup NAME { }" as plain data: what to protect, how, and where to.
 *
 * Built by the configuration (nginx directives) or by the command line, checked by bk_set_check,
 * immutable from then on: any thread may read it.  All strings are heap, owned by the set.
 */
#ifndef BK_ENGINE_SET_H
#define BK_ENGINE_SET_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/codec.h"
#include "base/err.h"
#include "files/pattern.h"
#include "storage/storage.h"

#define BK_SET_INHERIT UINT64_MAX /* the set's own value */

typedef enum { BK_WAL_OFF, BK_WAL_ON, BK_WAL_REQUIRE } bk_wal_t;

typedef struct {
    char *name, *path;
    bk_wal_t
        wal; /* on: WAL is expected, status says when it is not; require: backup fails otherwise */
    uint64_t busy_timeout; /* ms */
    uint64_t pitr_window;  /* ms; 0: transactions are not captured; BK_SET_INHERIT until checked */
    char **checks;         /* SQL that a recovered one has to answer with true, NULL-terminated */
} bk_set_db_t;

typedef struct {
    char *name, *path;
    char **match, **exclude;                        /* pattern texts, NULL-terminated */
    bk_patterns_t match_patterns, exclude_patterns; /* compiled by bk_set_check */
    uint64_t max_size;
    bool one_file_system, cachedir, xattrs;
} bk_set_files_t;

typedef struct {
    char *id, *file;
} bk_set_key_t;

typedef struct {
    char *name;
    char *base_dir; /* absolute; default "backup_NAME" below nginx's prefix */
    bk_set_db_t *dbs;
    size_t db_count;
    bk_set_files_t *files;
    size_t files_count;
    bk_compression_t compression;
    bk_set_key_t *keys; /* first is the one for new slots; none: not encrypted */
    size_t key_count;
    char *passphrase_file;
    bk_storage_config_t *storages;
    size_t storage_count; /* exactly one in this version */
    char **restore_roots; /* NULL-terminated */
    bool restore_in_place, restore_safety;
    bool restore_setuid;    /* the helper may give set-user-id bits and file capabilities back */
    uint64_t pitr_window;   /* ms; of the databases that say nothing else */
    uint64_t ship_interval; /* ms: how often transactions go to the storage */
    uint64_t retention_db, retention_files; /* ms; 0: keep for ever */
    uint64_t min_free;       /* bytes that must stay free in base_dir and local storages */
    uint64_t shutdown_grace; /* ms */
    uint64_t health_max_age; /* ms since the last good backup: warn; 0: never */
    unsigned lanes;          /* threads of a job, 1..16 */
} bk_set_t;

/* Defaults everywhere (each with its reason in docs/directives.md). */
bk_rc_t bk_set_init(bk_set_t *set, const char *name, bk_err_t *err);
void bk_set_free(bk_set_t *set);
/* Append an element with its defaults; the pointer is valid until the next append. */
bk_set_db_t *bk_set_add_db(bk_set_t *set, const char *name);
bk_set_files_t *bk_set_add_files(bk_set_t *set, const char *name);
bk_set_key_t *bk_set_add_key(bk_set_t *set, const char *id, const char *file);
bk_storage_config_t *bk_set_add_storage(bk_set_t *set, const char *driver, const char *name);
bk_rc_t bk_set_add_text(char ***list, const char *text,
                        bk_err_t *err); /* append to a NULL-terminated list */

/*
 * The one validation that nginx -t, the runner and the command line share.  files_too: also look at
 * key files and directories.  BK_CONFIG names the directive and the remedy.  Compiles patterns.
 * Problems to warn of are appended to warnings (array of strings, may be NULL).
 */
bk_rc_t bk_set_check(bk_set_t *set, bool files_too, json_t *warnings, bk_err_t *err);
/* Redacted configuration for GET /config and snapshots. */
json_t *bk_set_describe(const bk_set_t *set);

#endif
