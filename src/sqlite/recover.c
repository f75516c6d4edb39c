/*
 * sqlite/recover.c: the last step of a database's recovery: a proven image takes the application's
 * database's place.
 */
#include "sqlite/recover.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/attached.h"
#include "sqlite/source.h"

#define STEP_PAGES     2000
#define PENDING_BYTE   0x40000000
#define LOCK_BYTES     512 /* pending, reserved and shared bytes */
#define SHM_LOCK_FIRST 120
#define SHM_LOCK_BYTES 9

static const char *const companions[] = {"", "-wal", "-shm", "-journal"};

/* The page size in a database's header, or 0 when this is none. */
static uint32_t header_page_size(const char *path)
{
    uint8_t header[100];
    struct stat st;
    size_t got = 0;
    /* Opening and closing the file would drop the locks of a connection that this process has. */
    if (stat(path, &st) != 0 || bk_db_is_attached(st.st_dev, st.st_ino))
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    bk_rc_t rc = bk_read_all(fd, header, sizeof header, &got, path, NULL);
    close(fd);
    if (rc != BK_OK || got != sizeof header || memcmp(header, "SQLite format 3", 16) != 0)
        return 0;
    uint32_t size = (uint32_t)header[16] << 8 | header[17];
    return size == 1 ? 65536 : size;
}

bk_rc_t bk_db_recover_plan(const bk_db_recover_t *how, bk_db_method_t *method, const char **reason,
                           bk_err_t *err)
{
    struct stat st, image;
    *method = BK_DB_OFFLINE;
    if (stat(how->target, &st) != 0) {
        if (errno != ENOENT)
            return bk_err_sys(err, errno, "database %s", how->target);
        *reason = "the database is missing: it is put there as a new file";
        return BK_OK;
    }
    if (!S_ISREG(st.st_mode))
        return bk_err_set(err, BK_CONFIG, "database %s is not a file", how->target);
    uint32_t page_size = st.st_size > 0 ? header_page_size(how->target) : 0;
    if (st.st_size == 0) {
        *reason = "the database is empty: it is replaced";
    } else if (page_size == 0) {
        *reason = "the file is no database any more: it is replaced, with the application stopped";
    } else if (how->image != NULL && stat(how->image, &image) == 0 &&
               (image.st_size == 0 || header_page_size(how->image) != page_size)) {
        *reason = "the page size differs: the file is replaced, with the application stopped";
    } else {
        *method = BK_DB_LIVE;
        *reason = "the database is rewritten in one transaction, the application keeps running";
    }
    return BK_OK;
}

/* --- live --- */

static bk_rc_t copy_pages(sqlite3 *from, sqlite3 *to, const bk_db_recover_t *how, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    int64_t give_up = bk_mono() + (int64_t)how->busy_ms * BK_MS;
    bk_rc_t rc = BK_OK;
    sqlite3_backup *backup = sqlite3_backup_init(to, "main", from, "main");
    if (backup == NULL)
        return bk_db_error(to, sqlite3_errcode(to), how->target, "begin the recovery", err);
    for (;;) {
        int code = sqlite3_backup_step(backup, STEP_PAGES);
        if (code == SQLITE_DONE)
            break;
        if ((rc = bk_ctl_check(ctl, err)) != BK_OK)
            break;
        if ((code & 0xff) == SQLITE_BUSY || (code & 0xff) == SQLITE_LOCKED) {
            if (bk_mono() > give_up) {
                rc = bk_db_error(to, code, how->target, "write", err);
                break;
            }
            bk_sleep_ms(20);
        } else if (code != SQLITE_OK) {
            rc = bk_db_error(to, code, how->target, "write", err);
            break;
        }
    }
    /* Before SQLITE_DONE this rolls the one transaction back: nothing has changed then. */
    int code = sqlite3_backup_finish(backup);
    if (rc == BK_OK && code != SQLITE_OK)
        rc = bk_db_error(to, code, how->target, "commit the recovery", err);
    return rc;
}

static bk_rc_t recover_live(const bk_db_recover_t *how, bk_ctl_t *ctl, bk_err_t *err)
{
    sqlite3 *from = NULL, *to = NULL;
    struct stat st;
    int on = 1;
    if (stat(how->target, &st) != 0)
        return bk_err_sys(err, errno, "database %s", how->target);
    bk_rc_t rc = bk_db_attach(how->target, &st, err);
    if (rc != BK_OK)
        return rc;
    int code =
        sqlite3_open_v2(how->image, &from, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (code != SQLITE_OK)
        rc = bk_db_error(from, code, how->image, "open", err);
    if (rc == BK_OK) {
        code = sqlite3_open_v2(how->target, &to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
        if (code != SQLITE_OK)
            rc = bk_db_error(to, code, how->target, "open", err);
    }
    if (rc == BK_OK) {
        sqlite3_busy_timeout(to, 1000);
        sqlite3_db_config(to, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
        sqlite3_file_control(to, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
        rc = copy_pages(from, to, how, ctl, err);
    }
    sqlite3_close_v2(from);
    sqlite3_close_v2(to);
    bk_db_detach(st.st_dev, st.st_ino);
    return rc;
}

/* --- offline --- */

/* Does any process hold SQLite's lock bytes?  The caller made sure that it is not this one. */
static bk_rc_t check_unlocked(const char *path, off_t first, off_t bytes, const char *target,
                              bk_err_t *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = first, .l_len = bytes};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "open %s", path);
    bk_rc_t rc = BK_OK;
    if (fcntl(fd, F_GETLK, &lock) != 0)
        rc = bk_err_sys(err, errno, "look for locks on %s", path);
    else if (lock.l_type != F_UNLCK)
        rc = bk_err_set(
            err, BK_BUSY,
            "database %s is open in process %ld: stop the application, recover again, start it",
            target, (long)lock.l_pid);
    close(fd);
    return rc;
}

static bk_rc_t check_nobody(const char *target, bk_err_t *err)
{
    char shm[4096];
    struct stat st;
    if (stat(target, &st) == 0 && bk_db_is_attached(st.st_dev, st.st_ino))
        return bk_err_set(err, BK_BUSY, "database %s is in use by another job: try again", target);
    bk_rc_t rc = check_unlocked(target, PENDING_BYTE, LOCK_BYTES, target, err);
    if (rc != BK_OK)
        return rc;
    bk_fmt(shm, sizeof shm, "%s-shm", target);
    return check_unlocked(shm, SHM_LOCK_FIRST, SHM_LOCK_BYTES, target, err);
}

/*
 * The main file is moved last and comes back first: while a -wal stands beside a main file, they
 * belong together.  A crash in between leaves set-aside companions beside the old file or no file
 * at all; running the recovery again completes it.
 */
static bk_rc_t set_aside(const bk_db_recover_t *how, bk_err_t *err)
{
    for (size_t i = 4; i-- > 0;) {
        char from[4096], to[4096];
        bk_fmt(from, sizeof from, "%s%s", how->target, companions[i]);
        bk_fmt(to, sizeof to, "%s.before-%s%s", how->target, how->job, companions[i]);
        if (rename(from, to) != 0 && errno != ENOENT)
            return bk_err_sys(err, errno, "set %s aside as %s", from, to);
    }
    return BK_OK;
}

static bk_rc_t copy_into(int from, int to, const char *what, bk_ctl_t *ctl, bk_err_t *err)
{
    static const size_t step = 1u << 20;
    bk_buf_t buffer;
    size_t got = 0;
    bk_buf_init(&buffer, step);
    uint8_t *room = bk_buf_room(&buffer, step);
    bk_rc_t rc =
        room != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "copy %s: out of memory", what);
    do {
        if (rc == BK_OK)
            rc = bk_ctl_check(ctl, err);
        if (rc == BK_OK)
            rc = bk_read_all(from, room, step, &got, what, err);
        if (rc == BK_OK)
            rc = bk_write_all(to, room, got, what, err);
    } while (rc == BK_OK && got == step);
    bk_buf_free(&buffer);
    return rc;
}

static bk_rc_t recover_offline(const bk_db_recover_t *how, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_publish_t pub;
    struct stat st;
    uint32_t uid = how->uid, gid = how->gid, mode = how->mode;
    bk_rc_t rc = check_nobody(how->target, err);
    if (rc != BK_OK)
        return rc;
    if (stat(how->target, &st) == 0) {
        uid = st.st_uid;
        gid = st.st_gid;
        mode = st.st_mode & 07777;
    }
    int from = open(how->image, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return bk_err_sys(err, errno, "open %s", how->image);
    rc = bk_publish_open(&pub, AT_FDCWD, how->target, 0600, err);
    if (rc == BK_OK) {
        rc = copy_into(from, pub.fd, how->target, ctl, err);
        if (rc == BK_OK && (uid != geteuid() || gid != getegid()) && fchown(pub.fd, uid, gid) != 0)
            bk_ctl_note(
                ctl,
                "database %s: it belongs to user %u now: its owner %u:%u could not be set (%s)",
                how->target, (unsigned)geteuid(), uid, gid, strerror_r(errno, (char[128]){0}, 128));
        if (rc == BK_OK && fchmod(pub.fd, (mode_t)mode) != 0)
            rc = bk_err_sys(err, errno, "set the mode of %s", how->target);
        /* Whatever else can fail has succeeded: only renames from here on. */
        if (rc == BK_OK && fsync(pub.fd) != 0)
            rc = bk_err_sys(err, errno, "fsync %s", how->target);
        if (rc == BK_OK)
            rc = set_aside(how, err);
        if (rc == BK_OK)
            rc = bk_publish_commit(&pub, false, err);
        else
            bk_publish_abort(&pub);
    }
    close(from);
    return rc;
}

bk_rc_t bk_db_recover(const bk_db_recover_t *how, bk_db_method_t *method, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    const char *reason;
    bk_rc_t rc = bk_db_recover_plan(how, method, &reason, err);
    if (rc != BK_OK)
        return rc;
    if (*method == BK_DB_OFFLINE)
        return recover_offline(how, ctl, err);
    rc = recover_live(how, ctl, err);
    if (rc == BK_CORRUPT) {
        /* Too damaged for SQLite to open: as if it were no database. */
        bk_err_clear(err);
        *method = BK_DB_OFFLINE;
        rc = recover_offline(how, ctl, err);
    }
    return rc;
}
