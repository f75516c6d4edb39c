/*
 * sqlite/check.c: asks SQLite about an image: through a VFS that reads an open descriptor, so that
 * the file needs no name that this process may open.
 */
#include "sqlite/check.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/publish.h"
#include "sqlite/connect.h"
#include "sqlite/vfs.h"

#define CACHE_KIB   16384 /* an index is read in another order than its table */
#define HEADER_SIZE 20

typedef struct {
    int fd;
    const char *name;
    uint32_t page_size;
    bk_ctl_t *ctl;
} image_t;

static int keep_going(void *arg)
{
    return bk_ctl_check(arg, NULL) != BK_OK;
}

static bk_rc_t read_page(void *arg, uint64_t pgno, uint8_t *out, bk_err_t *err)
{
    const image_t *image = arg;
    size_t got = 0;
    bk_rc_t rc = bk_ctl_check(image->ctl, err);
    if (rc == BK_OK)
        rc = bk_pread_all(image->fd, out, image->page_size, (pgno - 1) * image->page_size, &got,
                          image->name, err);
    if (rc == BK_OK)
        memset(out + got, 0, image->page_size - got);
    return rc;
}

/* The one answer of a PRAGMA that checks. */
static bk_rc_t ask(sqlite3 *db, const char *sql, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    sqlite3_stmt *statement = NULL;
    sqlite3_progress_handler(db, 100000, keep_going, ctl);
    int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement);
    const char *text = code == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
    if (code == SQLITE_INTERRUPT)
        rc = bk_ctl_check(ctl, err);
    else if (code != SQLITE_ROW)
        rc = bk_db_error(db, code, name, "check", err);
    else if (text == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "check database %s: out of memory", name);
    else if (strcmp(text, "ok") != 0)
        rc = bk_err_set(err, BK_CORRUPT, "database %s: SQLite's check says: %s", name, text);
    sqlite3_finalize(statement);
    return rc;
}

static bk_rc_t check_uri(const char *uri, bool whole, const char *name, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    sqlite3 *db;
    char cache[48];
    bk_rc_t rc = bk_db_open_uri(uri, &db, err);
    if (rc != BK_OK)
        return rc;
    snprintf(cache, sizeof cache, "PRAGMA cache_size=-%d", CACHE_KIB);
    sqlite3_exec(db, cache, NULL, NULL, NULL);
    rc = ask(db, whole ? "PRAGMA integrity_check(1)" : "PRAGMA quick_check(1)", name, ctl, err);
    sqlite3_close_v2(db);
    return rc;
}

static bk_rc_t check_image(const image_t *image, uint64_t bytes, bk_err_t *err)
{
    bk_past_t *past;
    bk_vfs_image_t *shown;
    bk_past_base_t base = {.page = read_page,
                           .arg = (void *)(uintptr_t)image,
                           .page_count = bytes / image->page_size,
                           .page_size = image->page_size};
    bk_past_segments_t none = {.count = 0};
    bk_rc_t rc = bk_past_open(&base, &none, 0, image->ctl, &past, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_vfs_show(past, &shown, err);
    if (rc == BK_OK) {
        rc = check_uri(bk_vfs_uri(shown), bytes < BK_DB_WHOLE_BYTES, image->name, image->ctl, err);
        rc = bk_vfs_failure(shown, rc, err);
        bk_vfs_hide(shown);
    }
    bk_past_free(past);
    return rc;
}

bk_rc_t bk_db_check(int fd, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    struct stat st;
    uint8_t header[HEADER_SIZE] = {0};
    size_t got;
    image_t image = {.fd = fd, .name = name, .ctl = ctl};
    if (fstat(fd, &st) != 0)
        return bk_err_sys(err, errno, "check %s", name);
    if (st.st_size == 0)
        return BK_OK;
    bk_rc_t rc = bk_pread_all(fd, header, sizeof header, 0, &got, name, err);
    image.page_size = bk_db_header_page_size(header);
    if (rc == BK_OK && image.page_size == 0)
        rc = bk_err_set(err, BK_CORRUPT, "database %s is none", name);
    else if (rc == BK_OK && st.st_size % image.page_size != 0)
        rc = bk_err_set(err, BK_CORRUPT, "database %s: its last page is cut off", name);
    return rc == BK_OK ? check_image(&image, (uint64_t)st.st_size, err) : rc;
}

bk_rc_t bk_db_check_file(const char *file, bk_ctl_t *ctl, bk_err_t *err)
{
    int fd = bk_openat(AT_FDCWD, file, O_RDONLY | O_NOFOLLOW, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "open %s", file);
    bk_rc_t rc = bk_db_check(fd, file, ctl, err);
    close(fd);
    return rc;
}

static bk_rc_t flush(void *arg, bk_err_t *err)
{
    const image_t *image = arg;
    return fsync(image->fd) == 0 ? BK_OK : bk_err_sys(err, errno, "fsync %s", image->name);
}

/* The disk is busy with the one, the processor with the other. */
bk_rc_t bk_db_check_and_flush(int fd, const char *name, bool check, bk_team_t *team, bk_ctl_t *ctl,
                              bk_err_t *err)
{
    bk_group_t group;
    image_t image = {.fd = fd, .name = name};
    bk_group_init(&group);
    bk_team_submit(team, &group, flush, &image, 0);
    bk_rc_t rc = check ? bk_db_check(fd, name, ctl, err) : BK_OK;
    bk_rc_t flushed = bk_team_wait(team, &group, rc == BK_OK ? err : NULL);
    return rc != BK_OK ? rc : flushed;
}

bk_rc_t bk_db_check_references(const char *file, uint64_t *orphans, bk_ctl_t *ctl, bk_err_t *err)
{
    sqlite3 *db;
    sqlite3_stmt *statement = NULL;
    *orphans = 0;
    bk_rc_t rc = bk_db_open_image(file, &db, err);
    if (rc != BK_OK)
        return rc;
    sqlite3_progress_handler(db, 100000, keep_going, ctl);
    int code = sqlite3_prepare_v2(db, "PRAGMA foreign_key_check", -1, &statement, NULL);
    while (code == SQLITE_OK && *orphans < BK_DB_ORPHANS_MAX &&
           (code = sqlite3_step(statement)) == SQLITE_ROW) {
        ++*orphans;
        code = SQLITE_OK;
    }
    if (code == SQLITE_INTERRUPT)
        rc = bk_ctl_check(ctl, err);
    sqlite3_finalize(statement);
    sqlite3_close_v2(db);
    return rc; /* a schema that does not even allow the question is no damage */
}
