/*
 * sqlite/recover.h: put a proven image in the place of an application's database.
 *
 * Live: sqlite3_backup from the image into the database, one write transaction: open readers keep
 * their snapshot, writers wait, everyone sees the new content afterwards.  BUSY longer than
 * busy_ms: BK_BUSY, nothing changed.  A stop of the job before the end: nothing changed.
 * Offline, when the file is missing, empty, no database, or has another page size: prove that
 * nobody has it open, keep the old file as <path>.before-<job> (and -wal, -shm, -journal likewise),
 * publish the new file by rename, with owner and mode of the old one, else those given.  A database
 * that somebody has open is never renamed over (BK_BUSY says to stop the application).
 */
#ifndef BK_SQLITE_RECOVER_H
#define BK_SQLITE_RECOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/ctl.h"
#include "base/err.h"
#include "helper/client.h"

typedef enum { BK_DB_LIVE = 1, BK_DB_OFFLINE = 2 } bk_db_method_t;

typedef struct {
    const char *image;       /* proven file, same file system or not; NULL in a plan: none yet */
    uint32_t page_size;      /* of the backup, for a plan without an image; 0: unknown */
    const char *target;      /* the application's database */
    const char *job;         /* for the names of what is set aside */
    uint32_t uid, gid, mode; /* for a file that is made; an existing file's own are kept */
    unsigned busy_ms;
    bk_helper_t *helper; /* who replaces the file, so that its owner comes back; NULL: own rights */
} bk_db_recover_t;

/* Which way it would go now, for dry runs and progress; *reason is a static sentence. */
bk_rc_t bk_db_recover_plan(const bk_db_recover_t *how, bk_db_method_t *method, const char **reason,
                           bk_err_t *err);
bk_rc_t bk_db_recover(const bk_db_recover_t *how, bk_db_method_t *method, bk_ctl_t *ctl,
                      bk_err_t *err);

#endif
