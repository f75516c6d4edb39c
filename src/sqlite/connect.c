/*
 * sqlite/connect.c: opens application databases the polite way (connect.h).  Touches only SQLite,
 * and the group of companions it made itself.
 */
#include "sqlite/connect.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/clock.h"
#include "base/str.h"
#include "sqlite/opening.h"

/* --- failures --- */

/* What a result of SQLite means for us, and what to do about it. */
bk_rc_t bk_db_error(sqlite3 *db, int code, const char *path, const char *operation, bk_err_t *err)
{
    const char *text = db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(code);
    if (code == SQLITE_READONLY_DBMOVED)
        return bk_err_set(err, BK_CHANGED,
                          "database %s: %s: the file was replaced while it was open", path,
                          operation);
    switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
        return bk_err_set(err, BK_BUSY,
                          "database %s: %s: %s: another connection holds a lock; end long "
                          "transactions or locking_mode=EXCLUSIVE, or raise busy_timeout",
                          /* The backup interface leaves "not an error" at its connections. */
                          path, operation, sqlite3_errstr(code));
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return bk_err_set(err, BK_CORRUPT, "database %s: %s: %s", path, operation, text);
    case SQLITE_PERM:
    case SQLITE_AUTH:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
        return bk_err_set(err, BK_DENIED,
                          "database %s: %s: %s: this process needs to read and write the file, "
                          "its -wal and -shm, and the directory they lie in",
                          path, operation, text);
    case SQLITE_NOMEM:
        return bk_err_set(err, BK_NO_MEMORY, "database %s: %s: out of memory", path, operation);
    case SQLITE_FULL:
        return bk_err_set(err, BK_NO_SPACE, "database %s: %s: the disk is full", path, operation);
    default:
        return bk_err_set(err, BK_IO, "database %s: %s: %s", path, operation, text);
    }
}

/* BK_OK when this process may do how to the file, or when there is none. */
static bk_rc_t check_right(const char *database, const char *path, int how, const char *what,
                           bk_err_t *err)
{
    int errnum = bk_db_access(path, how) == 0 ? 0 : errno;
    if (errnum == 0 || errnum == ENOENT)
        return BK_OK;
    bk_rc_t rc = bk_err_sys(err, errnum, "database %s: this process (user %u) needs to %s %s",
                            database, (unsigned)geteuid(), what, path);
    if (rc == BK_DENIED && errnum != EROFS)
        bk_err_remedy(err, "%s",
                      bk_db_is_helped(database)
                          ? "the privileged helper could not give it either: see the error log"
                          : "give it that right, or let nginx have its privileged helper "
                            "(directive backup_helper), which needs none");
    return rc;
}

/*
 * The rights SQLite needs, one by one: its own message would be "unable to open database file", or
 * none at all, since it opens for reading what it may not write.
 */
static bk_rc_t check_files(const char *path, bk_err_t *err)
{
    static const char *const ends[] = {"", "-wal", "-shm"};
    char name[PATH_MAX + 8];
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < 3 && rc == BK_OK; i++) {
        bk_fmt(name, sizeof name, "%s%s", path, ends[i]);
        rc = check_right(path, name, R_OK | W_OK, "read and write", err);
    }
    return rc;
}

/* Asked only after a failure: a database whose -wal and -shm are there needs no new files. */
static bk_rc_t check_directory(const char *path, bk_err_t *err)
{
    char dir[PATH_MAX];
    bk_strcpy(dir, sizeof dir, path);
    char *slash = strrchr(dir, '/');
    if (slash == NULL)
        return BK_OK;
    slash[slash == dir] = '\0';
    return check_right(path, dir, W_OK | X_OK,
                       "make -wal and -shm, or remove a -journal, in directory", err);
}

bk_rc_t bk_db_failure(const bk_db_connection_t *c, int code, const char *operation, bk_err_t *err)
{
    bk_rc_t rc = bk_ctl_check(c->ctl, err);
    int kind = code & 0xff;
    if (rc == BK_OK && (kind == SQLITE_CANTOPEN || kind == SQLITE_READONLY || kind == SQLITE_PERM ||
                        kind == SQLITE_IOERR)) {
        rc = check_files(c->path, err);
        if (rc == BK_OK)
            rc = check_directory(c->path, err);
    }
    return rc != BK_OK ? rc : bk_db_error(c->db, code, c->path, operation, err);
}

/* --- the connection --- */

/* SQLite asks whether to try again for a lock. */
static int wait_for_lock(void *arg, int tries)
{
    bk_db_connection_t *c = arg;
    if (tries == 0)
        c->give_up = bk_mono() + (int64_t)c->busy_ms * BK_MS;
    if (bk_mono() >= c->give_up || bk_ctl_check(c->ctl, NULL) != BK_OK)
        return 0;
    bk_sleep_ms(tries < 10 ? 1 : tries < 40 ? 5 : 20);
    return 1;
}

static bk_rc_t resolve_error(const char *path, int errnum, bk_err_t *err)
{
    bk_rc_t rc = bk_err_sys(err, errnum, "database %s", path);
    if (rc == BK_DENIED)
        bk_err_remedy(err,
                      "this process (user %u) may not look into a directory on the way: give "
                      "it that right, or let nginx have its privileged helper (directive "
                      "backup_helper)",
                      (unsigned)geteuid());
    return rc;
}

static bk_rc_t resolve(bk_db_connection_t *c, const char *path, bk_err_t *err)
{
    char real[PATH_MAX];
    /* Where links cannot be looked at, the helper has resolved them. */
    if (realpath(path, real) == NULL &&
        (errno != EACCES || !bk_db_is_helped(path) || !bk_strcpy(real, sizeof real, path)))
        return resolve_error(path, errno, err);
    if (bk_db_stat(real, &c->st) != 0)
        return resolve_error(path, errno, err);
    if (!S_ISREG(c->st.st_mode))
        return bk_err_set(err, BK_CONFIG, "database %s is not a file", path);
    if ((c->path = bk_strdup(real)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", path);
    return BK_OK;
}

/* Is the file that SQLite opened the one that was counted as attached? */
static bk_rc_t check_same(bk_db_connection_t *c, bk_err_t *err)
{
    int moved = 0;
    struct stat st;
    sqlite3_file_control(c->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
    if (moved || bk_db_stat(c->path, &st) != 0 || st.st_dev != c->st.st_dev ||
        st.st_ino != c->st.st_ino)
        return bk_err_set(err, BK_CHANGED, "database %s was replaced while it was opened", c->path);
    return BK_OK;
}

/*
 * Never checkpoint nor remove a -wal that was there before; one that this connection makes goes
 * with it, when it is the last one.
 */
static void leave_companions(bk_db_connection_t *c, bool leave)
{
    int on = leave;
    sqlite3_db_config(c->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, on, NULL);
    sqlite3_file_control(c->db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
}

/* Another job may be reading it as a file at the moment, or replace it. */
static bk_rc_t attach(bk_db_connection_t *c, bk_err_t *err)
{
    int64_t give_up = bk_mono() + (int64_t)c->busy_ms * BK_MS;
    for (;;) {
        bk_rc_t stop = bk_ctl_check(c->ctl, err);
        bk_rc_t rc = stop == BK_OK ? bk_attached_add(c->path, &c->st, bk_db_stat, err) : stop;
        if (rc != BK_BUSY || bk_mono() >= give_up)
            return rc;
        bk_err_clear(err);
        bk_sleep_ms(5);
    }
}

bk_rc_t bk_db_connect(bk_db_connection_t *c, const char *path, unsigned busy_ms, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    struct stat st;
    char wal[PATH_MAX + 8];
    *c = (bk_db_connection_t){.ctl = ctl, .busy_ms = busy_ms};
    bk_rc_t rc = resolve(c, path, err);
    if (rc == BK_OK)
        rc = check_files(c->path, err);
    if (rc != BK_OK)
        return rc;
    bk_fmt(wal, sizeof wal, "%s-wal", c->path);
    c->found_wal = bk_db_stat(wal, &st) == 0;
    if ((rc = attach(c, err)) != BK_OK)
        return rc;
    c->attached = true;
    /* The path is absolute, so never an URI itself; what is attached to it may be one. */
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_URI;
    int code = sqlite3_open_v2(c->path, &c->db, flags, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_file_control(c->db, "main", SQLITE_FCNTL_FILE_POINTER, &c->file);
    if (code == SQLITE_OK && (c->file == NULL || c->file->pMethods == NULL))
        code = SQLITE_CANTOPEN;
    if (code != SQLITE_OK)
        return bk_db_failure(c, code, "open", err);
    sqlite3_extended_result_codes(c->db, 1);
    sqlite3_busy_handler(c->db, wait_for_lock, c);
    sqlite3_wal_autocheckpoint(c->db, 0);
    leave_companions(c, true);
    c->wal = sqlite3_filename_wal(sqlite3_db_filename(c->db, "main"));
    return check_same(c, err);
}

void bk_db_disconnect(bk_db_connection_t *c)
{
    if (c->db != NULL && !c->found_wal)
        leave_companions(c, false);
    sqlite3_close_v2(c->db);
    if (c->attached)
        bk_attached_remove(c->st.st_dev, c->st.st_ino);
    free(c->path);
    *c = (bk_db_connection_t){0};
}

bk_rc_t bk_db_query(bk_db_connection_t *c, const char *sql, char *out, size_t size, bk_err_t *err)
{
    sqlite3_stmt *statement = NULL;
    const char *text = NULL;
    int code = sqlite3_prepare_v2(c->db, sql, -1, &statement, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement);
    if (code == SQLITE_ROW)
        text = (const char *)sqlite3_column_text(statement, 0);
    if (out != NULL)
        bk_strcpy(out, size, text != NULL ? text : "");
    bk_rc_t rc =
        code == SQLITE_ROW || code == SQLITE_DONE ? BK_OK : bk_db_failure(c, code, sql, err);
    sqlite3_finalize(statement);
    return rc;
}

void bk_db_share_companions(const bk_db_connection_t *c)
{
    static const char *const ends[] = {"-wal", "-shm"};
    char name[PATH_MAX + 8];
    struct stat st;
    bk_attached_settle(c->st.st_dev, c->st.st_ino);
    /* Otherwise an application of another user could not open its own database.  Root's SQLite
     * does this itself; who is not in the group cannot, and has it told by the application. */
    for (size_t i = 0; i < 2 && !c->found_wal; i++)
        if (bk_fmt(name, sizeof name, "%s%s", c->path, ends[i]) && lstat(name, &st) == 0 &&
            st.st_uid == geteuid() && st.st_gid != c->st.st_gid &&
            lchown(name, (uid_t)-1, c->st.st_gid) != 0)
            continue;
}

/* --- files --- */

uint32_t bk_db_header_page_size(const uint8_t header[20])
{
    uint32_t size = (uint32_t)header[16] << 8 | header[17];
    if (size == 1)
        size = 65536;
    return memcmp(header, "SQLite format 3", 16) == 0 && size >= 512 && (size & (size - 1)) == 0
               ? size
               : 0;
}

bk_rc_t bk_db_image_uri(const char *file, char *uri, size_t size, bk_err_t *err)
{
    char *p = uri + snprintf(uri, size, "file:");
    for (const char *c = file; *c != '\0'; c++) {
        if (p + 32 >= uri + size)
            return bk_err_set(err, BK_INVALID, "the path of the image %s is too long", file);
        if (strchr("%?#", *c) != NULL)
            p += snprintf(p, 4, "%%%02X", (unsigned char)*c);
        else
            *p++ = *c;
    }
    snprintf(p, 32, "?mode=ro&immutable=1");
    return BK_OK;
}

bk_rc_t bk_db_open_uri(const char *uri, sqlite3 **db, bk_err_t *err)
{
    *db = NULL;
    int code = sqlite3_open_v2(uri, db,
                               SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, NULL);
    if (code == SQLITE_OK)
        return BK_OK;
    bk_rc_t rc = bk_db_error(*db, code, uri, "open", err);
    sqlite3_close_v2(*db);
    *db = NULL;
    return rc;
}

bk_rc_t bk_db_open_image(const char *file, sqlite3 **db, bk_err_t *err)
{
    char uri[BK_DB_URI];
    *db = NULL;
    bk_rc_t rc = bk_db_image_uri(file, uri, sizeof uri, err);
    return rc == BK_OK ? bk_db_open_uri(uri, db, err) : rc;
}
