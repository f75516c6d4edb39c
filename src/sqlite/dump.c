/*
 * sqlite/dump.c: a pinned database, block by block, into chunks and a map; and a map back into a
 * file that is proved before anybody uses it.
 */
#include "sqlite/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/map.h"
#include "sqlite/attached.h"

#define WINDOW           64u /* blocks read ahead and in flight: at most 8 MiB */
#define FULL_CHECK_BYTES (5ull << 30)
#define FETCH_BLOCKS     4096u

typedef struct dump_s dump_t;

/* One block in flight. */
typedef struct {
    dump_t *dump;
    uint64_t first; /* page */
    unsigned pages;
    uint8_t *bytes;
    bk_id_t id;
    uint64_t digest;
} block_t;

struct dump_s {
    bk_session_t *session;
    bk_db_source_t *source;
    bk_ctl_t *ctl;
    uint32_t page_size, block_size;
    uint64_t lock_page;
    block_t blocks[WINDOW];
    uint8_t *buffer;
};

static bool all_zero(const uint8_t *bytes, size_t len)
{
    return len == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

/* A lane's work: digest of the pages, then into the repository. */
static bk_rc_t store_block(void *arg, bk_err_t *err)
{
    block_t *block = arg;
    dump_t *dump = block->dump;
    size_t len = (size_t)block->pages * dump->page_size;
    bk_rc_t rc = bk_ctl_check(dump->ctl, err);
    if (rc != BK_OK)
        return rc;
    block->digest = 0;
    for (unsigned i = 0; i < block->pages; i++)
        if (block->first + i != dump->lock_page)
            block->digest ^= bk_db_page_hash(
                block->first + i, block->bytes + (size_t)i * dump->page_size, dump->page_size);
    memset(&block->id, 0, sizeof block->id);
    if (!all_zero(block->bytes, len))
        rc =
            bk_session_put(dump->session, BK_TYPE_BLOCK, false, block->bytes, len, &block->id, err);
    if (dump->ctl != NULL) {
        atomic_fetch_add(&dump->ctl->bytes_done, len);
        atomic_fetch_add(&dump->ctl->bytes_read, len);
    }
    return rc;
}

/* Up to WINDOW blocks from page first on; *used: how many. */
static bk_rc_t store_window(dump_t *dump, bk_team_t *team, uint64_t first, uint64_t page_count,
                            size_t *used, bk_err_t *err)
{
    bk_group_t group;
    unsigned per_block = dump->block_size / dump->page_size;
    bk_rc_t rc = BK_OK;
    bk_group_init(&group);
    *used = 0;
    for (size_t i = 0; i < WINDOW && first <= page_count && rc == BK_OK; i++, first += per_block) {
        block_t *block = &dump->blocks[i];
        block->dump = dump;
        block->first = first;
        block->pages =
            page_count - first + 1 < per_block ? (unsigned)(page_count - first + 1) : per_block;
        block->bytes = dump->buffer + i * dump->block_size;
        if ((rc = bk_ctl_check(dump->ctl, err)) == BK_OK)
            rc = bk_db_source_read(dump->source, first, block->pages, block->bytes, err);
        if (rc == BK_OK) {
            bk_team_submit(team, &group, store_block, block, dump->block_size);
            (*used)++;
        }
    }
    bk_err_t failure = {0};
    bk_rc_t done = bk_team_wait(team, &group, &failure);
    if (rc == BK_OK && done != BK_OK) {
        if (err != NULL)
            *err = failure;
        rc = done;
    }
    return rc;
}

static bk_rc_t store_pages(dump_t *dump, bk_team_t *team, bk_snapshot_db_t *db, bk_err_t *err)
{
    bk_map_builder_t *builder = bk_map_builder_new(dump->session);
    unsigned per_block = dump->block_size / dump->page_size;
    bk_rc_t rc =
        builder != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "back up database: out of memory");
    for (uint64_t first = 1; rc == BK_OK && first <= db->page_count;) {
        size_t used;
        rc = store_window(dump, team, first, db->page_count, &used, err);
        for (size_t i = 0; i < used && rc == BK_OK; i++) {
            bk_chunk_ref_t ref = {.id = dump->blocks[i].id,
                                  .raw = dump->blocks[i].pages * dump->page_size};
            db->digest ^= dump->blocks[i].digest;
            rc = bk_map_builder_add(builder, &ref, err);
        }
        first += (uint64_t)used * per_block;
    }
    if (rc == BK_OK)
        rc = bk_map_builder_finish(builder, &db->map, err);
    bk_map_builder_free(builder);
    return rc;
}

bk_rc_t bk_db_dump(bk_session_t *session, const char *path, unsigned busy_ms, bk_team_t *team,
                   bk_snapshot_db_t *db, bk_ctl_t *ctl, bk_err_t *err)
{
    dump_t *dump = calloc(1, sizeof *dump);
    if (dump == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", path);
    dump->session = session;
    dump->ctl = ctl;
    bk_rc_t rc = bk_db_source_open(path, busy_ms, ctl, &dump->source, err);
    if (rc == BK_OK) {
        const bk_db_info_t *info = bk_db_source_info(dump->source);
        uint64_t bytes = info->page_count * info->page_size;
        db->page_size = dump->page_size = info->page_size;
        db->block_size = bytes >= BK_BLOCK_LARGE ? 2 * BK_BLOCK_SIZE : BK_BLOCK_SIZE;
        dump->block_size = db->block_size;
        dump->lock_page = bk_db_lock_page(info->page_size);
        db->page_count = info->page_count;
        db->digest = 0;
        db->instant = info->instant;
        db->uid = info->uid;
        db->gid = info->gid;
        db->mode = info->mode;
        db->path = bk_strdup(path);
        db->journal = bk_strdup(info->journal);
        dump->buffer = malloc((size_t)WINDOW * dump->block_size);
        if (ctl != NULL)
            atomic_fetch_add(&ctl->bytes_total, bytes);
        if (db->path == NULL || db->journal == NULL || dump->buffer == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", path);
    }
    if (rc == BK_OK)
        rc = store_pages(dump, team, db, err);
    bk_db_source_close(dump->source);
    free(dump->buffer);
    free(dump);
    return rc;
}

/* --- back --- */

typedef struct {
    int fd;
    const char *file;
    const bk_snapshot_db_t *db;
    uint64_t lock_page;
    atomic_uint_fast64_t digest;
    bk_ctl_t *ctl;
} image_t;

static uint64_t digest_of(const image_t *image, uint64_t block, const uint8_t *bytes, size_t len)
{
    uint64_t digest = 0, first = block * (image->db->block_size / image->db->page_size) + 1;
    for (size_t at = 0; at < len; at += image->db->page_size, first++)
        if (first != image->lock_page)
            digest ^= bk_db_page_hash(first, bytes + at, image->db->page_size);
    return digest;
}

/* XOR is commutative: blocks may arrive in any order. */
static bk_rc_t write_block(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                           const bk_err_t *failure, bk_err_t *err)
{
    image_t *image = arg;
    if (data == NULL) {
        if (err != NULL)
            *err = *failure;
        bk_err_wrap(err, "database %s: block %llu is lost", image->db->name,
                    (unsigned long long)want->tag);
        return failure->rc;
    }
    atomic_fetch_xor(&image->digest, digest_of(image, want->tag, data, want->raw));
    if (image->ctl != NULL)
        atomic_fetch_add(&image->ctl->bytes_done, want->raw);
    return bk_pwrite_all(image->fd, data, want->raw, want->tag * image->db->block_size, image->file,
                         err);
}

/* Blocks of the map from first on, holes counted into the digest; the others are fetched. */
static bk_rc_t write_window(image_t *image, bk_repo_t *repo, uint64_t first, size_t n,
                            bk_chunk_ref_t *refs, bk_want_chunk_t *wants, const uint8_t *zeros,
                            bk_team_t *team, bk_err_t *err)
{
    size_t count = 0;
    bk_rc_t rc = bk_map_read(repo, &image->db->map, first, n, refs, image->ctl, err);
    for (size_t i = 0; i < n && rc == BK_OK; i++) {
        uint64_t at = (first + i) * image->db->block_size;
        uint64_t bytes = image->db->page_count * image->db->page_size;
        if (refs[i].raw > image->db->block_size || at + refs[i].raw > bytes ||
            (refs[i].raw < image->db->block_size && at + refs[i].raw != bytes))
            rc = bk_err_set(err, BK_CORRUPT, "database %s: block %llu has a wrong length",
                            image->db->name, (unsigned long long)(first + i));
        else if (bk_id_is_zero(&refs[i].id))
            atomic_fetch_xor(&image->digest, digest_of(image, first + i, zeros, refs[i].raw));
        else
            wants[count++] =
                (bk_want_chunk_t){.id = refs[i].id, .raw = refs[i].raw, .tag = first + i};
    }
    if (rc == BK_OK)
        rc = bk_repo_fetch(repo, wants, count, team, write_block, image, image->ctl, err);
    return rc;
}

static bk_rc_t write_image(image_t *image, bk_repo_t *repo, bk_team_t *team, bk_err_t *err)
{
    const bk_snapshot_db_t *db = image->db;
    bk_rc_t rc = BK_OK;
    bk_chunk_ref_t *refs = calloc(FETCH_BLOCKS, sizeof *refs);
    bk_want_chunk_t *wants = calloc(FETCH_BLOCKS, sizeof *wants);
    uint8_t *zeros = calloc(1, db->block_size);
    if (refs == NULL || wants == NULL || zeros == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "recover database %s: out of memory", db->name);
    if (rc == BK_OK && ftruncate(image->fd, (off_t)(db->page_count * db->page_size)) != 0)
        rc = bk_err_sys(err, errno, "make %s as long as the database", image->file);
    for (uint64_t first = 0; rc == BK_OK && first < db->map.count; first += FETCH_BLOCKS) {
        size_t n =
            db->map.count - first < FETCH_BLOCKS ? (size_t)(db->map.count - first) : FETCH_BLOCKS;
        rc = write_window(image, repo, first, n, refs, wants, zeros, team, err);
    }
    if (rc == BK_OK && atomic_load(&image->digest) != db->digest)
        rc = bk_err_set(err, BK_CORRUPT,
                        "database %s: the digest of the restored pages differs from the backup's",
                        db->name);
    if (rc == BK_OK && fsync(image->fd) != 0)
        rc = bk_err_sys(err, errno, "fsync %s", image->file);
    free(refs);
    free(wants);
    free(zeros);
    return rc;
}

bk_rc_t bk_db_materialise(bk_repo_t *repo, const bk_snapshot_db_t *db, const char *file, bool check,
                          bk_team_t *team, bk_ctl_t *ctl, bk_err_t *err)
{
    image_t image = {
        .file = file, .db = db, .ctl = ctl, .lock_page = bk_db_lock_page(db->page_size)};
    uint64_t bytes = db->page_count * db->page_size, room;
    char dir[4096];

    bk_strcpy(dir, sizeof dir, file);
    char *slash = strrchr(dir, '/');
    if (slash != NULL)
        *slash = '\0';
    bk_rc_t rc = bk_free_space(slash != NULL && dir[0] != '\0' ? dir : ".", &room, err);
    if (rc == BK_OK && room < bytes)
        rc = bk_err_set(err, BK_NO_SPACE,
                        "database %s needs %llu MiB in %s, there are %llu MiB: free some space",
                        db->name, (unsigned long long)(bytes >> 20), dir,
                        (unsigned long long)(room >> 20));
    if (rc != BK_OK)
        return rc;
    image.fd = open(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (image.fd < 0)
        return bk_err_sys(err, errno, "make %s", file);
    atomic_init(&image.digest, 0);
    if (ctl != NULL)
        atomic_fetch_add(&ctl->bytes_total, bytes);
    rc = write_image(&image, repo, team, err);
    close(image.fd);
    if (rc == BK_OK && check && db->page_count > 0)
        rc = bk_db_check_file(file, bytes < FULL_CHECK_BYTES, ctl, err);
    if (rc != BK_OK)
        unlink(file);
    return rc;
}

static int keep_going(void *arg)
{
    return bk_ctl_check(arg, NULL) != BK_OK;
}

bk_rc_t bk_db_check_file(const char *file, bool full, bk_ctl_t *ctl, bk_err_t *err)
{
    char uri[4096 * 3 + 32], *p;
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;

    /* immutable: nobody writes to it, and no -wal or -shm may appear beside it. */
    p = uri + snprintf(uri, sizeof uri, "file:");
    for (const char *c = file; *c != '\0' && p < uri + sizeof uri - 32; c++) {
        if (strchr("%?#", *c) != NULL)
            p += snprintf(p, 4, "%%%02X", (unsigned char)*c);
        else
            *p++ = *c;
    }
    snprintf(p, 32, "?mode=ro&immutable=1");
    int code = sqlite3_open_v2(uri, &db,
                               SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, NULL);
    bk_rc_t rc = code == SQLITE_OK ? BK_OK : bk_db_error(db, code, file, "open", err);
    if (rc == BK_OK) {
        sqlite3_progress_handler(db, 100000, keep_going, ctl);
        code = sqlite3_prepare_v2(db, full ? "PRAGMA integrity_check(1)" : "PRAGMA quick_check(1)",
                                  -1, &statement, NULL);
        if (code == SQLITE_OK)
            code = sqlite3_step(statement);
        if (code == SQLITE_INTERRUPT)
            rc = bk_ctl_check(ctl, err);
        else if (code != SQLITE_ROW)
            rc = bk_db_error(db, code, file, "check", err);
        else if (strcmp((const char *)sqlite3_column_text(statement, 0), "ok") != 0)
            rc = bk_err_set(err, BK_CORRUPT, "database %s: SQLite's check says: %s", file,
                            (const char *)sqlite3_column_text(statement, 0));
    }
    sqlite3_finalize(statement);
    sqlite3_close_v2(db);
    return rc;
}
