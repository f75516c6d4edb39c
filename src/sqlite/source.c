/*
 * sqlite/source.c: pins a live database and hands out its pages (source.h has the rule,
 * docs/sqlite.md the proof).
 */
#include "sqlite/source.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/connect.h"
#include "sqlite/opening.h"
#include "sqlite/walindex.h"

#define LOCK_BYTE       0x40000000u
#define HEADER_WAIT     1000 /* ms */
#define EMPTY_PAGE_SIZE 4096u

struct bk_db_source_s {
    bk_db_connection_t c;
    pthread_mutex_t lock; /* the unix VFS may seek and read: one at a time */
    int wal_fd;
    uint32_t *frame_of; /* page number - 1 to frame number, 0: in the file; NULL: all in the file */
    uint64_t frame_pages;
    uint64_t header_pages; /* 0: not told */
    bk_db_info_t info;
};

uint64_t bk_db_lock_page(uint32_t page_size)
{
    return LOCK_BYTE / page_size + 1;
}

uint64_t bk_db_page_hash(uint64_t pgno, const uint8_t *page, uint32_t page_size)
{
    return XXH3_64bits_withSeed(page, page_size, pgno);
}

uint64_t bk_db_header_page_count(const uint8_t header[BK_DB_HEADER])
{
    bool current = memcmp(header + 24, header + 92, 4) == 0;
    return !current ? 0
                    : (uint64_t)header[28] << 24 | (uint64_t)header[29] << 16 |
                          (uint64_t)header[30] << 8 | header[31];
}

/*
 * Page size, journal mode and length, from the file itself: asking by SQL would need the schema.
 * While pinned these bytes do not change, also not under a checkpoint that rewrites the page they
 * are in.
 */
static bk_rc_t read_file_header(bk_db_source_t *s, bk_err_t *err)
{
    uint8_t header[BK_DB_HEADER] = {0};
    int code = s->c.file->pMethods->xRead(s->c.file, header, sizeof header, 0);
    if (code == SQLITE_IOERR_SHORT_READ) {
        /* Nothing was ever stored. */
        s->info.page_size = EMPTY_PAGE_SIZE;
        bk_strcpy(s->info.journal, sizeof s->info.journal, "delete");
        return BK_OK;
    }
    if (code != SQLITE_OK)
        return bk_db_failure(&s->c, code, "read", err);
    s->info.page_size = bk_db_header_page_size(header);
    s->header_pages = bk_db_header_page_count(header);
    bk_strcpy(s->info.journal, sizeof s->info.journal, header[19] == 2 ? "wal" : "delete");
    if (s->info.page_size == 0)
        return bk_err_set(err, BK_CORRUPT, "database %s: impossible page size", s->c.path);
    /* A -wal counts for SQLite whatever the header says. */
    struct stat st;
    return header[19] != 2 && bk_db_stat(s->c.wal, &st) == 0
               ? bk_db_query(&s->c, "PRAGMA journal_mode", s->info.journal, sizeof s->info.journal,
                             err)
               : BK_OK;
}

/*
 * Begin the transaction.  It needs no schema: an application may use another SQLite than this
 * process, and a damaged schema is no reason to lose the pages as well.
 */
static bk_rc_t pin(bk_db_source_t *s, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = bk_db_query(&s->c, "BEGIN", NULL, 0, err);
    if (rc == BK_OK)
        rc = bk_db_query(&s->c, "PRAGMA schema_version", NULL, 0, err);
    bk_db_share_companions(&s->c);
    if (rc == BK_OK)
        rc = read_file_header(s, err);
    if (rc == BK_OK &&
        bk_db_query(&s->c, "SELECT 1 FROM sqlite_schema", NULL, 0, &why) == BK_CORRUPT)
        bk_ctl_note(s->c.ctl, "%s: its pages are backed up as they are", why.text);
    return rc;
}

static bk_rc_t pages_of_file(bk_db_source_t *s, uint64_t *pages, bk_err_t *err)
{
    sqlite3_int64 size = 0;
    int code = s->c.file->pMethods->xFileSize(s->c.file, &size);
    if (code != SQLITE_OK)
        return bk_db_failure(&s->c, code, "size", err);
    /* A last page that is cut off counts, as it does for SQLite; what is behind the end of the
     * database, where the application had the file grow in larger steps, does not. */
    *pages = ((uint64_t)size + s->info.page_size - 1) / s->info.page_size;
    if (s->header_pages != 0 && s->header_pages < *pages)
        *pages = s->header_pages;
    return BK_OK;
}

/* Map each page to its newest frame up to the header's last one. */
static bk_rc_t read_frames(bk_db_source_t *s, const bk_wal_header_t *header, bk_err_t *err)
{
    s->wal_fd = bk_db_open_file(s->c.wal);
    if (s->wal_fd < 0)
        return bk_err_sys(err, errno, "database %s: open %s", s->c.path, s->c.wal);
    s->frame_of = calloc(header->pages > 0 ? header->pages : 1, sizeof *s->frame_of);
    if (s->frame_of == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", s->c.path);
    s->frame_pages = header->pages;
    bk_rc_t rc = bk_wal_scan(s->wal_fd, s->c.wal, header, s->frame_of, s->c.ctl, err);
    if (rc == BK_CORRUPT)
        bk_err_remedy(err, "if the -wal was removed or replaced while the application has it "
                           "open, restart the application");
    return rc;
}

/* What the log calls its length may be that of a file which is ahead of its database, too. */
static bk_rc_t pages_of_image(bk_db_source_t *s, const bk_wal_header_t *header, bk_err_t *err)
{
    uint8_t *page = malloc(s->info.page_size);
    if (page == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", s->c.path);
    bk_rc_t rc = bk_db_source_read(s, 1, 1, page, err);
    uint64_t count = rc == BK_OK ? bk_db_header_page_count(page) : 0;
    s->info.page_count = count != 0 && count < header->pages ? count : header->pages;
    free(page);
    return rc;
}

static bk_rc_t look_at_wal(bk_db_source_t *s, bk_err_t *err)
{
    bk_wal_header_t header;
    bk_rc_t rc = bk_db_wal_header(&s->c, HEADER_WAIT, &header, err);
    if (rc != BK_OK)
        return rc;
    s->info.wal_frames = header.frames;
    memcpy(s->info.wal_salt, header.salt, sizeof header.salt);
    memcpy(s->info.wal_checksum, header.checksum, sizeof header.checksum);
    if (header.frames == 0)
        return pages_of_file(s, &s->info.page_count, err);
    if (header.page_size != s->info.page_size)
        return bk_err_set(err, BK_CORRUPT, "database %s: the wal-index has another page size",
                          s->c.path);
    /* Else the file is the image and stays it while we are pinned. */
    if (header.backfilled < header.frames)
        rc = read_frames(s, &header, err);
    return rc == BK_OK ? pages_of_image(s, &header, err) : rc;
}

bk_rc_t bk_db_source_open(const char *path, unsigned busy_ms, bk_ctl_t *ctl,
                          bk_db_source_t **source, bk_err_t *err)
{
    bk_db_source_t *s = calloc(1, sizeof *s);
    *source = NULL;
    if (s == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", path);
    s->wal_fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    bk_rc_t rc = bk_db_connect(&s->c, path, busy_ms, ctl, err);
    s->info.uid = s->c.st.st_uid;
    s->info.gid = s->c.st.st_gid;
    s->info.mode = s->c.st.st_mode & 07777;
    s->info.device = s->c.st.st_dev;
    s->info.inode = s->c.st.st_ino;
    if (rc == BK_OK)
        rc = pin(s, err);
    /* Before the wal-index is read: commits between the pin and that are in the image as well. */
    s->info.instant = bk_now();
    if (rc == BK_OK)
        rc = strcmp(s->info.journal, "wal") == 0 ? look_at_wal(s, err)
                                                 : pages_of_file(s, &s->info.page_count, err);
    if (rc != BK_OK) {
        bk_db_source_close(s);
        return rc;
    }
    *source = s;
    return BK_OK;
}

const bk_db_info_t *bk_db_source_info(const bk_db_source_t *source)
{
    return &source->info;
}

static bk_rc_t read_from_file(bk_db_source_t *s, uint64_t pgno, unsigned n, uint8_t *out,
                              bk_err_t *err)
{
    pthread_mutex_lock(&s->lock);
    int code = s->c.file->pMethods->xRead(s->c.file, out, (int)(n * s->info.page_size),
                                          (sqlite3_int64)((pgno - 1) * s->info.page_size));
    pthread_mutex_unlock(&s->lock);
    /* A short read was filled with zeros: pages behind the end of the file are zeros. */
    if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
        return bk_db_error(NULL, code, s->c.path, "read", err);
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
                                      s->c.path, err);
            if (rc == BK_OK && got != size)
                rc = bk_err_set(err, BK_IO, "database %s: its -wal is shorter than its index says",
                                s->c.path);
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
    bk_db_disconnect(&s->c);
    if (s->wal_fd >= 0)
        close(s->wal_fd);
    pthread_mutex_destroy(&s->lock);
    free(s->frame_of);
    free(s);
}
