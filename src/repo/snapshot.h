/*
 * repo/snapshot.h: what one backup holds: the sealed JSON that is the commit point, and the listing
 * of all of them. Snapshots are values: each belongs to the thread that loaded it.
 */
#ifndef BK_REPO_SNAPSHOT_H
#define BK_REPO_SNAPSHOT_H

#include <jansson.h>

#include "repo/map.h"
#include "repo/repo.h"

#define BK_BACKUP_ID      64 /* "incremental_20251015_143000_12" and NUL */
#define BK_SNAPSHOT_OWNER 64 /* of a name and NUL; a longer one is not kept */

typedef struct {
    char *name; /* of the files block */
    char *path; /* absolute, as configured */
    bk_id_t root;
    uint64_t entries; /* of the root directory itself */
    uint64_t files, bytes;
    /* Of the root directory, which is in no other one; a snapshot may not tell (described). */
    bool described;
    uint32_t mode, uid, gid;                                /* mode: permission bits only, 07777 */
    char user[BK_SNAPSHOT_OWNER], group[BK_SNAPSHOT_OWNER]; /* "": not known, or too long */
    int64_t mtime;                                          /* ns */
} bk_snapshot_tree_t;

typedef struct {
    char *name; /* of the database block */
    char *path;
    bk_map_t map;
    uint32_t page_size, block_size;
    uint64_t page_count;
    uint64_t digest; /* XOR of XXH3-64(page, seed page number) over all pages but the lock page */
    char *journal;   /* "wal", "delete", ... */
    int64_t instant; /* ns: the image is the database as committed at this moment */
    uint32_t uid, gid, mode; /* of the main file */
} bk_snapshot_db_t;

typedef struct {
    char backup_id[BK_BACKUP_ID];
    char *set, *host;
    char kind[16];             /* "full" or "incremental", "safety" */
    char parent[BK_BACKUP_ID]; /* "" for none */
    char job[BK_BACKUP_ID];
    int64_t started, completed, instant; /* ns UTC */
    bk_snapshot_tree_t *trees;
    size_t tree_count;
    bk_snapshot_db_t *dbs;
    size_t db_count;
    char *description;  /* may be NULL */
    json_t *tags;       /* array of strings */
    json_t *config;     /* redacted configuration, object */
    json_t *unreadable; /* array of {path, errno, error}; not empty: a warning */
    uint64_t unreadable_total;
    json_t *stats; /* object: files_new, files_changed, files_unmodified, bytes_source, bytes_new,
                      bytes_stored, ... */
    bool pinned;
    char *previous; /* object name of the snapshot before this one in the same set and host, or NULL
                     */
    char *object;   /* its own object name; set by load and list */
    uint64_t object_size;
    /*
     * Set by list: it is still in this machine's spool, so it is not on the storage, or was not
     * checked there for the last time.  Never a reason to let an older one go.
     */
    bool provisional;
} bk_snapshot_t;

void bk_snapshot_init(bk_snapshot_t *snapshot);
void bk_snapshot_free(bk_snapshot_t *snapshot);
/* Canonical JSON for bk_session_commit; and back.  decode checks types, ranges and ids: a fuzz
 * target. */
bk_rc_t bk_snapshot_encode(const bk_snapshot_t *snapshot, bk_buf_t *out, bk_err_t *err);
bk_rc_t bk_snapshot_decode(const void *text, size_t len, bk_snapshot_t *snapshot, bk_err_t *err);

/* "full_20251015_143000"; bk_backup_id_valid is the only check between a request and an object
 * name. */
bool bk_backup_id_valid(const char *text);

typedef struct {
    bk_snapshot_t *items; /* oldest first by completed time */
    size_t count;
    size_t damaged; /* objects that could not be read; each is a note in ctl */
} bk_snapshot_list_t;

/* Load all; cache_dir (may be NULL) keeps the objects so that the next listing fetches only new
 * ones. */
bk_rc_t bk_snapshot_list(bk_repo_t *repo, const char *cache_dir, bk_ctl_t *ctl,
                         bk_snapshot_list_t *list, bk_err_t *err);
void bk_snapshot_list_free(bk_snapshot_list_t *list);
/* By exact id, or the newest for "latest" (kind "safety" never is); borrowed; BK_NOT_FOUND says
 * which ids exist. */
bk_rc_t bk_snapshot_find(const bk_snapshot_list_t *list, const char *id,
                         const bk_snapshot_t **found, bk_err_t *err);
/* Remove the object.  The data stays until it is collected. */
bk_rc_t bk_snapshot_remove(bk_repo_t *repo, const bk_snapshot_t *snapshot, bk_ctl_t *ctl,
                           bk_err_t *err);
/*
 * Remove the objects of that backup id whose bytes are not what their names say, which no list has.
 * A copy of each is left in aside_dir first, as snapshot.damaged-….  BK_NOT_FOUND: there is none.
 */
bk_rc_t bk_snapshot_remove_damaged(bk_repo_t *repo, const char *backup_id, const char *aside_dir,
                                   bk_ctl_t *ctl, bk_err_t *err);

#endif
