/*
 * sqlite/recover.c: the last step of a database's recovery: a proven image takes the application's
 * database's place.  Decides the way, and does the live one; replace.c does the other.
 */
#include "sqlite/recover.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/beside.h"
#include "sqlite/connect.h"
#include "sqlite/replace.h"

#define STEP_BYTES   (4u << 20) /* copied between two looks at the stop flag */
#define HEADER_BYTES 20         /* magic, page size, journal mode */
#define PATH_ROOM    (PATH_MAX + 8)

static bk_rc_t image_page_size(const char *path, uint32_t *size, bk_err_t *err)
{
    uint8_t header[HEADER_BYTES] = {0};
    size_t got = 0;
    int fd = bk_openat(AT_FDCWD, path, O_RDONLY, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "open the image %s", path);
    bk_rc_t rc = bk_read_all(fd, header, sizeof header, &got, path, err);
    close(fd);
    *size = bk_db_header_page_size(header);
    return rc;
}

/* Through SQLite: a descriptor of our own would drop the locks of connections in this process. */
static bk_rc_t target_page_size(const char *path, bk_ctl_t *ctl, uint32_t *size, bk_err_t *err)
{
    uint8_t header[HEADER_BYTES];
    bk_db_connection_t c;
    bk_rc_t rc = bk_db_connect(&c, path, 0, ctl, err);
    if (rc == BK_OK) {
        int code = c.file->pMethods->xRead(c.file, header, sizeof header, 0);
        if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
            rc = bk_db_failure(&c, code, "read", err);
    }
    bk_db_disconnect(&c);
    *size = rc == BK_OK ? bk_db_header_page_size(header) : 0;
    return rc;
}

/* What may not be looked at is looked at by the helper, which follows no link of the last name. */
static bk_rc_t resolve_helped(const bk_db_recover_t *how, char real[PATH_ROOM], bool *there,
                              struct stat *st, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_beside_t beside;
    if (how->target[0] != '/' || !bk_strcpy(real, PATH_ROOM, how->target))
        return bk_err_set(err, BK_CONFIG, "database %s: not an absolute path", how->target);
    bk_rc_t rc = bk_beside_open(&beside, real, how->target, how->helper, ctl, err);
    if (rc == BK_OK) {
        int errnum = bk_beside_stat(&beside, beside.name, st);
        *there = errnum == 0;
        if (errnum != 0 && errnum != ENOENT)
            rc = bk_beside_error(&beside, errnum, "look at", beside.name, err);
        else if (*there && !S_ISREG(st->st_mode))
            rc = bk_err_set(err, BK_CONFIG, "database %s is not a file", how->target);
    }
    bk_beside_close(&beside);
    return rc;
}

/* Follow links: what is replaced is the file, never a link to it. */
static bk_rc_t resolve(const char *path, char real[PATH_ROOM], bool *there, struct stat *st,
                       bk_err_t *err)
{
    *there = realpath(path, real) != NULL;
    if (!*there && errno != ENOENT)
        return bk_err_sys(err, errno, "database %s", path);
    if (!*there && lstat(path, st) == 0)
        return bk_err_set(err, BK_CONFIG,
                          "database %s is a link to a file that is not there: make the file, or "
                          "remove the link",
                          path);
    if (!*there)
        return path[0] == '/' && bk_strcpy(real, PATH_ROOM, path)
                   ? BK_OK
                   : bk_err_set(err, BK_CONFIG, "database %s: not an absolute path", path);
    if (stat(real, st) != 0)
        return bk_err_sys(err, errno, "database %s", path);
    if (!S_ISREG(st->st_mode))
        return bk_err_set(err, BK_CONFIG, "database %s is not a file", path);
    return BK_OK;
}

typedef struct {
    char target[PATH_ROOM]; /* without links */
    bool sound;             /* the old file is a database */
    bk_db_method_t method;
    const char *reason;
} plan_t;

static bk_rc_t make_plan(const bk_db_recover_t *how, bk_ctl_t *ctl, plan_t *plan, bk_err_t *err)
{
    struct stat st;
    bool there;
    uint32_t old = 0, new = how->page_size;
    *plan = (plan_t){.method = BK_DB_OFFLINE};
    bk_rc_t rc = resolve(how->target, plan->target, &there, &st, err);
    if (rc == BK_DENIED && how->helper != NULL)
        rc = resolve_helped(how, plan->target, &there, &st, ctl, err);
    if (rc == BK_OK && how->image != NULL)
        rc = image_page_size(how->image, &new, err);
    if (rc == BK_OK && there && st.st_size > 0)
        rc = target_page_size(plan->target, ctl, &old, err);
    if (rc != BK_OK)
        return rc;
    plan->sound = old != 0;
    if (!there) {
        plan->reason = "the database is missing: it is put there as a new file";
    } else if (st.st_size == 0) {
        plan->reason = "the database is empty: it is replaced, with the application stopped";
    } else if (old == 0) {
        plan->reason =
            "the file is no database any more: it is replaced, with the application stopped";
    } else if (new == 0 && how->image != NULL) {
        plan->reason = "the backup is an empty database: the file is replaced, with the "
                       "application stopped";
    } else if (new != 0 && new != old) {
        plan->reason = "the page size differs: the file is replaced, with the application stopped";
    } else {
        plan->method = BK_DB_LIVE;
        plan->reason =
            "the database is rewritten in one transaction, the application keeps running";
    }
    return BK_OK;
}

bk_rc_t bk_db_recover_plan(const bk_db_recover_t *how, bk_db_method_t *method, const char **reason,
                           bk_err_t *err)
{
    plan_t plan;
    bk_rc_t rc = make_plan(how, NULL, &plan, err);
    *method = plan.method;
    *reason = rc == BK_OK ? plan.reason : "the database cannot be looked at";
    return rc;
}

/* --- live --- */

/* SQLite waits for locks itself, by the connection's busy handler; this is for what it does not
 * wait for, so that no lock is asked for endlessly. */
static bk_rc_t step(bk_db_connection_t *to, sqlite3_backup *backup, int pages, bool *done,
                    bk_err_t *err)
{
    int64_t give_up = bk_mono() + (int64_t)to->busy_ms * BK_MS;
    for (;;) {
        bk_rc_t rc = bk_ctl_check(to->ctl, err);
        if (rc != BK_OK)
            return rc;
        int code = sqlite3_backup_step(backup, pages);
        *done = code == SQLITE_DONE;
        if (code == SQLITE_OK || code == SQLITE_DONE)
            return BK_OK;
        int kind = code & 0xff;
        if ((kind != SQLITE_BUSY && kind != SQLITE_LOCKED) || bk_mono() >= give_up)
            return bk_db_failure(to, code, "rewrite (nothing is changed)", err);
        bk_sleep_ms(20);
    }
}

static bk_rc_t copy_pages(sqlite3 *from, bk_db_connection_t *to, uint32_t page_size, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    bool done = false;
    int last = 0;
    sqlite3_backup *backup = sqlite3_backup_init(to->db, "main", from, "main");
    if (backup == NULL)
        return bk_db_failure(to, sqlite3_extended_errcode(to->db), "begin the recovery", err);
    while (rc == BK_OK && !done) {
        rc = step(to, backup, (int)(STEP_BYTES / page_size), &done, err);
        int copied = sqlite3_backup_pagecount(backup) - sqlite3_backup_remaining(backup);
        if (rc == BK_OK && to->ctl != NULL) {
            if (last == 0)
                atomic_fetch_add(&to->ctl->bytes_total,
                                 (uint64_t)sqlite3_backup_pagecount(backup) * page_size);
            atomic_fetch_add(&to->ctl->bytes_done, (uint64_t)(copied - last) * page_size);
            last = copied;
        }
    }
    /* All steps are one transaction, and it is over at the last one: before that this rolls back.
     */
    int code = sqlite3_backup_finish(backup);
    if (rc == BK_OK && code != SQLITE_OK)
        rc = bk_db_failure(to, code, "commit the recovery", err);
    return rc;
}

/* Where a directory on the way is closed to this process. */
static bk_rc_t room_helped(const bk_db_recover_t *how, const char *target, uint64_t *room,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    bk_beside_t beside;
    bk_rc_t rc = bk_beside_open(&beside, target, how->target, how->helper, ctl, err);
    if (rc == BK_OK)
        rc = bk_beside_room(&beside, room, err);
    bk_beside_close(&beside);
    return rc;
}

/* The transaction is as large as the image, in the -wal or in a -journal of what it replaces. */
static bk_rc_t check_room(const bk_db_recover_t *how, const char *target, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    char dir[PATH_ROOM];
    struct stat st;
    uint64_t room;
    if (stat(how->image, &st) != 0)
        return bk_err_sys(err, errno, "image %s", how->image);
    bk_strcpy(dir, sizeof dir, target);
    char *slash = strrchr(dir, '/');
    slash[slash == dir] = '\0';
    bk_rc_t rc = bk_free_space(dir, &room, err);
    if (rc == BK_DENIED && how->helper != NULL) {
        bk_err_clear(err);
        rc = room_helped(how, target, &room, ctl, err);
    }
    if (rc == BK_OK && room < (uint64_t)st.st_size)
        rc = bk_err_set(err, BK_NO_SPACE,
                        "database %s: rewriting it needs %llu MiB in %s, there are %llu MiB: free "
                        "some space",
                        target, (unsigned long long)st.st_size >> 20, dir,
                        (unsigned long long)(room >> 20));
    return rc;
}

static bk_rc_t recover_live(const bk_db_recover_t *how, const char *target, bk_ctl_t *ctl,
                            bk_err_t *err)
{
    sqlite3 *from = NULL;
    bk_db_connection_t to = {0};
    uint32_t page_size;
    bk_rc_t rc = check_room(how, target, ctl, err);
    if (rc == BK_OK)
        rc = image_page_size(how->image, &page_size, err);
    if (rc == BK_OK)
        rc = bk_db_open_image(how->image, &from, err);
    if (rc == BK_OK)
        rc = bk_db_connect(&to, target, how->busy_ms, ctl, err);
    if (rc == BK_OK) {
        rc = copy_pages(from, &to, page_size, err);
        bk_db_share_companions(&to);
    }
    /* When nobody else has it open, what was written goes from the -wal into the file now. */
    to.found_wal = false;
    bk_db_disconnect(&to);
    sqlite3_close_v2(from);
    return rc;
}

bk_rc_t bk_db_recover(const bk_db_recover_t *how, bk_db_method_t *method, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    plan_t plan;
    bk_rc_t rc = make_plan(how, ctl, &plan, err);
    *method = plan.method;
    if (rc != BK_OK)
        return rc;
    if (plan.method == BK_DB_OFFLINE)
        return bk_db_replace(how, plan.target, plan.sound, ctl, err);
    rc = recover_live(how, plan.target, ctl, err);
    if (rc == BK_CORRUPT) {
        /* Too damaged for SQLite to write to: as if it were no database. */
        bk_err_clear(err);
        *method = BK_DB_OFFLINE;
        rc = bk_db_replace(how, plan.target, false, ctl, err);
    }
    return rc;
}
