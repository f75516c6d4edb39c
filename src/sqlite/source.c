/*
 * sqlite/source.c: pins a live database and hands out its pages (source.h has the rule,
 * docs/sqlite.md the proof).
 */
#include "sqlite/source.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/attached.h"
#include "sqlite/wal.h"

#define LOCK_BYTE 0x40000000u

struct bk_db_source_s {
    sqlite3 *db;
    sqlite3_file *file;
    pthread_mutex_t lock; /* the unix VFS may seek and read: one at a time */
    int wal_fd;
    char *path;
    uint32_t *frame_of; /* page number - 1 to frame number, 0: in the file; NULL: all in the file */
    uint64_t frame_pages;
    bk_db_info_t info;
    bool attached;
};

uint64_t bk_db_lock_page(uint32_t page_size)
{
    return LOCK_BYTE / page_size + 1;
}

uint64_t bk_db_page_hash(uint64_t pgno, const uint8_t *page, uint32_t page_size)
{
    return XXH3_64bits_withSeed(page, page_size, pgno);
}

/* What a result of SQLite means for us, and what to do about it. */
bk_rc_t bk_db_error(sqlite3 *db, int code, const char *path, const char *operation, bk_err_t *err)
{
    const char *text = db != NULL ? sqlite3_errmsg(db) : sqlite3_errstr(code);
    switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return bk_err_set(
            err, BK_BUSY,
            "database %s: %s: %s: another connection holds a lock; end long transactions or "
            "locking_mode=EXCLUSIVE, or raise busy_timeout",
            path, operation, text);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return bk_err_set(err, BK_CORRUPT, "database %s: %s: %s", path, operation, text);
    case SQLITE_PERM:
    case SQLITE_AUTH:
    case SQLITE_READONLY:
        return bk_err_set(
            err, BK_DENIED,
            "database %s: %s: %s: this process needs to read and write the file, its -wal and "
            "-shm, and the directory they lie in",
            path, operation, text);
    case SQLITE_CANTOPEN:
        if (access(path, R_OK | W_OK) != 0)
            return bk_err_sys(err, errno, "database %s: %s", path, operation);
        return bk_err_set(
            err, BK_DENIED,
            "database %s: %s: %s: this process needs to write to the directory of the database",
            path, operation, text);
    case SQLITE_NOMEM:
        return bk_err_set(err, BK_NO_MEMORY, "database %s: %s: out of memory", path, operation);
    case SQLITE_FULL:
        return bk_err_set(err, BK_NO_SPACE, "database %s: %s: the disk is full", path, operation);
    default:
        return bk_err_set(err, BK_IO, "database %s: %s: %s", path, operation, text);
    }
}

static bk_rc_t query_text(bk_db_source_t *s, const char *sql, char *out, size_t size, bk_err_t *err)
{
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(s->db, sql, -1, &statement, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement);
    if (code == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        bk_strcpy(out, size, text != NULL ? text : "");
        code = SQLITE_OK;
    } else if (code == SQLITE_DONE) {
        out[0] = '\0';
        code = SQLITE_OK;
    }
    bk_rc_t rc = code == SQLITE_OK ? BK_OK : bk_db_error(s->db, code, s->path, "read", err);
    sqlite3_finalize(statement);
    return rc;
}

/* The rights SQLite needs, told one by one: its own message would be "unable to open database
 * file". */
static bk_rc_t check_rights(const char *path, struct stat *st, bk_err_t *err)
{
    char dir[4096];
    if (stat(path, st) != 0 && errno == ENOENT)
        return bk_err_set(
            err, BK_NOT_FOUND,
            "database %s is missing: start the application if it has not made it yet, "
            "recover it if it was lost, or correct \"path\"",
            path);
    if (stat(path, st) != 0)
        return bk_err_sys(err, errno, "database %s", path);
    if (!S_ISREG(st->st_mode))
        return bk_err_set(err, BK_CONFIG, "database %s is not a file", path);
    if (access(path, R_OK | W_OK) != 0)
        return bk_err_sys(err, errno,
                          "database %s: this process (user %u) needs to read and write it", path,
                          (unsigned)geteuid());
    bk_strcpy(dir, sizeof dir, path);
    char *slash = strrchr(dir, '/');
    if (slash != NULL) {
        slash[slash == dir] = '\0';
        if (access(dir, W_OK | X_OK) != 0)
            return bk_err_sys(
                err, errno,
                "database %s: this process (user %u) needs to write to directory %s, where "
                "-wal and -shm lie",
                path, (unsigned)geteuid(), dir);
    }
    return BK_OK;
}

static bk_rc_t connect(bk_db_source_t *s, unsigned busy_ms, bk_err_t *err)
{
    int on = 1;
    int code = sqlite3_open_v2(s->path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (code != SQLITE_OK)
        return bk_db_error(s->db, code, s->path, "open", err);
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, (int)busy_ms);
    /* Never checkpoint and never delete the -wal on our account. */
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sqlite3_wal_autocheckpoint(s->db, 0);
    sqlite3_file_control(s->db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
    code = sqlite3_file_control(s->db, "main", SQLITE_FCNTL_FILE_POINTER, &s->file);
    if (code != SQLITE_OK || s->file == NULL || s->file->pMethods == NULL)
        return bk_db_error(s->db, code, s->path, "open", err);
    return BK_OK;
}

static bk_rc_t pin(bk_db_source_t *s, bk_err_t *err)
{
    char text[64];
    int code = sqlite3_exec(s->db, "BEGIN", NULL, NULL, NULL);
    if (code != SQLITE_OK)
        return bk_db_error(s->db, code, s->path, "begin", err);
    bk_rc_t rc = query_text(s, "SELECT count(*) FROM sqlite_schema", text, sizeof text, err);
    if (rc == BK_OK)
        rc = query_text(s, "PRAGMA journal_mode", s->info.journal, sizeof s->info.journal, err);
    if (rc == BK_OK)
        rc = query_text(s, "PRAGMA page_size", text, sizeof text, err);
    s->info.page_size = (uint32_t)strtoul(text, NULL, 10);
    if (rc == BK_OK && (s->info.page_size < 512 || s->info.page_size > 65536))
        rc = bk_err_set(err, BK_CORRUPT, "database %s: impossible page size", s->path);
    return rc;
}

static bk_rc_t pages_of_file(bk_db_source_t *s, uint64_t *pages, bk_err_t *err)
{
    sqlite3_int64 size = 0;
    int code = s->file->pMethods->xFileSize(s->file, &size);
    if (code != SQLITE_OK)
        return bk_db_error(NULL, code, s->path, "size", err);
    *pages = (uint64_t)size / s->info.page_size;
    return BK_OK;
}

/* A stable wal-index header and the number of backfilled frames; both copies must be equal and
 * their checksum right. */
static bk_rc_t read_header(bk_db_source_t *s, bk_wal_header_t *header, bk_err_t *err)
{
    void volatile *shared = NULL;
    if (s->file->pMethods->iVersion < 2)
        return bk_err_set(err, BK_UNSUPPORTED, "database %s: SQLite has no shared memory here",
                          s->path);
    int code = s->file->pMethods->xShmMap(s->file, 0, BK_WAL_INDEX_REGION, 0, &shared);
    if (code != SQLITE_OK || shared == NULL)
        return bk_db_error(NULL, code != SQLITE_OK ? code : SQLITE_BUSY, s->path,
                           "map the wal-index", err);
    for (int tries = 0; tries < 1000; tries++) {
        uint8_t bytes[BK_WAL_INDEX_HEADER];
        const volatile uint8_t *from = shared;
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = from[i];
        if (s->file->pMethods->xShmBarrier != NULL)
            s->file->pMethods->xShmBarrier(s->file);
        if (bk_wal_index_parse(bytes, header))
            return BK_OK;
        bk_sleep_ms(1);
    }
    return bk_err_set(err, BK_BUSY, "database %s: its wal-index does not come to rest", s->path);
}

/* Map each page to its newest frame up to the header's last one. */
static bk_rc_t read_frames(bk_db_source_t *s, const bk_wal_header_t *header, bk_ctl_t *ctl,
                           bk_err_t *err)
{
    char path[4096];
    bk_fmt(path, sizeof path, "%s-wal", s->path);
    s->wal_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (s->wal_fd < 0)
        return bk_err_sys(err, errno, "database %s: open %s", s->path, path);
    s->frame_of = calloc(header->pages > 0 ? header->pages : 1, sizeof *s->frame_of);
    if (s->frame_of == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", s->path);
    s->frame_pages = header->pages;
    return bk_wal_scan(s->wal_fd, path, header, s->frame_of, ctl, err);
}

static bk_rc_t look_at_wal(bk_db_source_t *s, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_wal_header_t header;
    bk_rc_t rc = read_header(s, &header, err);
    if (rc != BK_OK)
        return rc;
    s->info.wal_frames = header.frames;
    if (header.frames == 0)
        return pages_of_file(s, &s->info.page_count, err);
    if (header.page_size != s->info.page_size)
        return bk_err_set(err, BK_CORRUPT, "database %s: the wal-index has another page size",
                          s->path);
    s->info.page_count = header.pages;
    if (header.backfilled >= header.frames)
        return BK_OK; /* the file is the image and stays it while we are pinned */
    return read_frames(s, &header, ctl, err);
}

bk_rc_t bk_db_source_open(const char *path, unsigned busy_ms, bk_ctl_t *ctl,
                          bk_db_source_t **source, bk_err_t *err)
{
    struct stat st;
    bk_rc_t rc = check_rights(path, &st, err);
    if (rc != BK_OK)
        return rc;
    bk_db_source_t *s = calloc(1, sizeof *s);
    if (s == NULL || (s->path = bk_strdup(path)) == NULL) {
        free(s);
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", path);
    }
    s->wal_fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    s->info.uid = st.st_uid;
    s->info.gid = st.st_gid;
    s->info.mode = st.st_mode & 07777;
    s->info.device = st.st_dev;
    s->info.inode = st.st_ino;
    rc = bk_db_attach(path, &st, err);
    s->attached = rc == BK_OK;
    if (rc == BK_OK && st.st_size == 0) {
        /* Nothing was ever stored; SQLite itself writes no page until it must. */
        s->info.page_size = 4096;
        bk_strcpy(s->info.journal, sizeof s->info.journal, "delete");
        s->info.instant = bk_now();
        *source = s;
        return BK_OK;
    }
    if (rc == BK_OK)
        rc = connect(s, busy_ms, err);
    if (rc == BK_OK)
        rc = pin(s, err);
    s->info.instant = bk_now();
    if (rc == BK_OK)
        rc = strcmp(s->info.journal, "wal") == 0 ? look_at_wal(s, ctl, err)
                                                 : pages_of_file(s, &s->info.page_count, err);
    if (rc != BK_OK)
        bk_db_source_close(s);
    else
        *source = s;
    return rc;
}

const bk_db_info_t *bk_db_source_info(const bk_db_source_t *source)
{
    return &source->info;
}

static bk_rc_t read_from_file(bk_db_source_t *s, uint64_t pgno, unsigned n, uint8_t *out,
                              bk_err_t *err)
{
    pthread_mutex_lock(&s->lock);
    int code = s->file->pMethods->xRead(s->file, out, (int)(n * s->info.page_size),
                                        (sqlite3_int64)((pgno - 1) * s->info.page_size));
    pthread_mutex_unlock(&s->lock);
    /* A short read was filled with zeros: pages behind the end of the file are zeros. */
    if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
        return bk_db_error(NULL, code, s->path, "read", err);
    return BK_OK;
}

static uint32_t frame_of(const bk_db_source_t *s, uint64_t pgno)
{
    return s->frame_of != NULL && pgno <= s->frame_pages ? s->frame_of[pgno - 1] : 0;
}

bk_rc_t bk_db_source_read(bk_db_source_t *s, uint64_t first, unsigned n, uint8_t *out,
                          bk_err_t *err)
{
    uint32_t size = s->info.page_size;
    uint64_t lock_page = bk_db_lock_page(size);
    for (unsigned i = 0; i < n;) {
        uint64_t pgno = first + i;
        uint32_t frame = frame_of(s, pgno);
        uint8_t *to = out + (size_t)i * size;
        if (frame != 0) {
            size_t got;
            bk_rc_t rc = bk_pread_all(s->wal_fd, to, size, bk_wal_frame_offset(frame, size), &got,
                                      s->path, err);
            if (rc == BK_OK && got != size)
                rc = bk_err_set(err, BK_IO, "database %s: its -wal is shorter than its index says",
                                s->path);
            if (rc != BK_OK)
                return rc;
            i++;
        } else {
            unsigned run = 1;
            while (i + run < n && frame_of(s, pgno + run) == 0)
                run++;
            bk_rc_t rc = read_from_file(s, pgno, run, to, err);
            if (rc != BK_OK)
                return rc;
            i += run;
        }
    }
    if (first <= lock_page && lock_page < first + n)
        memset(out + (size_t)(lock_page - first) * size, 0, size);
    return BK_OK;
}

void bk_db_source_close(bk_db_source_t *s)
{
    if (s == NULL)
        return;
    if (s->db != NULL) {
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
        sqlite3_close_v2(s->db);
    }
    if (s->wal_fd >= 0)
        close(s->wal_fd);
    if (s->attached)
        bk_db_detach(s->info.device, s->info.inode);
    pthread_mutex_destroy(&s->lock);
    free(s->frame_of);
    free(s->path);
    free(s);
}
