/*
 * engine/point.h: the point in time that somebody asks for, as a backup that may never have been
 * made: files as in a real one, databases as in it or as of a moment between backups.  For the
 * engine, and for the command line that has no engine.  One thread.
 */
#ifndef BK_ENGINE_POINT_H
#define BK_ENGINE_POINT_H

#include "base/json.h"
#include "engine/moments.h"
#include "repo/snapshot.h"
#include "sqlite/blocks.h"
#include "sqlite/query.h"
#include "sqlite/vfs.h"

typedef struct {
    const char *set;       /* whose backups count, but for a backup_id; NULL: the only one's */
    const char *base_dir;  /* with transactions that are not on the storage yet; NULL: none */
    const char *cache_dir; /* of the repository; NULL: none */
    const char *backup_id; /* NULL and "latest": the newest, if there is nothing else below */
    int64_t time;          /* ns; 0: none */
    uint64_t transaction;  /* 0: none */
    const char *database;  /* only this one; NULL: all */
    bool databases, files; /* what is wanted */
} bk_point_wish_t;

typedef struct {
    bk_moments_t *moments; /* NULL: as in the backup */
    bk_moment_t moment;
} bk_point_past_t;

typedef struct {
    const bk_snapshot_t *snapshot; /* what there is at the point */
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    bk_snapshot_list_t list;
    bk_snapshot_t made;         /* is the snapshot, unless that is a real one */
    bk_snapshot_db_t *dbs;      /* of made */
    bk_point_past_t *past;      /* of each of them */
    const bk_snapshot_t *files; /* of a moment; NULL: no files */
    json_t *window;             /* after BK_INVALID: as bk_moments_describe says, or NULL */
} bk_point_t;

/*
 * repo, ctl and the strings of wish are borrowed until close, which is needed after a failure, too.
 * BK_NOT_FOUND: no such backup; BK_INVALID: no such moment, the message names the nearest;
 * or no set where there are several, which it names.
 */
bk_rc_t bk_point_find(bk_repo_t *repo, const bk_point_wish_t *wish, bk_ctl_t *ctl,
                      bk_point_t *point, bk_err_t *err);
void bk_point_close(bk_point_t *point);
/*
 * Of all of it: source_backup, and recovery_point; for a moment that is the oldest of its
 * databases', with files_recovery_point and files_read_until, and transaction when there is only
 * one.
 */
void bk_point_describe(const bk_point_t *point, json_t *result);
/* Of one of its databases: recovery_point, which is exact for a moment, and then transaction. */
void bk_point_tell(const bk_point_t *point, const bk_snapshot_db_t *db, json_t *entry);

/* By exact id; the newest of the set (NULL: of all) when id is NULL or "latest".  BK_NOT_FOUND. */
bk_rc_t bk_point_backup(const bk_snapshot_list_t *list, const char *set, const char *id,
                        const bk_snapshot_t **found, bk_err_t *err);

/* A database of the snapshot into an empty file, as bk_db_materialise does. */
bk_rc_t bk_point_write(const bk_point_t *point, const bk_snapshot_db_t *db, int fd,
                       const char *file, bk_team_t *team, bk_err_t *err);
/* The same into a new file (mode 0600), for SQLite to work on; removed when that fails. */
bk_rc_t bk_point_image(const bk_point_t *point, const bk_snapshot_db_t *db, const char *file,
                       bk_team_t *team, bk_err_t *err);

/* By its name.  BK_NOT_FOUND. */
bk_rc_t bk_point_database(const bk_point_t *point, const char *name, const bk_snapshot_db_t **db,
                          bk_err_t *err);

/* One for SQLite to read without writing it out (sqlite/vfs.h). */
typedef struct {
    bk_vfs_image_t *image;
    bk_past_t *past;
    bk_db_blocks_t *blocks;
} bk_point_view_t;

/* point is borrowed until hide; view must not move. */
bk_rc_t bk_point_show(const bk_point_t *point, const bk_snapshot_db_t *db, bk_point_view_t *view,
                      bk_err_t *err);
void bk_point_hide(bk_point_view_t *view);

/* SQL that only reads, of a database of the snapshot (how->image is filled in).  *answer: that of
 * bk_db_select, with database and what bk_point_describe adds.  query.c. */
bk_rc_t bk_point_ask(const bk_point_t *point, const char *database, const bk_db_select_t *how,
                     json_t **answer, bk_err_t *err);

#endif
