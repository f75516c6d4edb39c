/*
 * sqlite/hashes.c: the table of page hashes and its file.
 *
 *   magic "NGXBKHS\3" | page size u32 | salt 8 | frame u32 | checksum u32 × 2 | epoch 16 | txid u64
 *   | seen i64 | looked i64 | began i64 | inode u64 | digest u64 | count u64
 *   | hashes u64 × count | XXH3-64 of all before u64
 */
#include "sqlite/hashes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/publish.h"
#include "sqlite/source.h"

#define MAGIC     "NGXBKHS\3"
#define HEADER    104u
#define PAGES_MAX UINT32_MAX

void bk_hashes_init(bk_hashes_t *h, uint32_t page_size)
{
    *h = (bk_hashes_t){.page_size = page_size};
}

void bk_hashes_free(bk_hashes_t *h)
{
    free(h->of);
    *h = (bk_hashes_t){0};
}

uint64_t bk_hashes_get(const bk_hashes_t *h, uint64_t pgno)
{
    return pgno >= 1 && pgno <= h->count ? h->of[pgno - 1] : 0;
}

/* So that a database which grows does not have them moved, and twice meanwhile, each time. */
static uint64_t room_for(uint64_t count)
{
    return count + count / 8 + 1024;
}

static uint64_t zero_hash(const bk_hashes_t *h, uint64_t pgno)
{
    static const uint8_t zeros[65536];
    return pgno == bk_db_lock_page(h->page_size) ? 0 : bk_db_page_hash(pgno, zeros, h->page_size);
}

uint64_t bk_hashes_resized(const bk_hashes_t *h, uint64_t count)
{
    uint64_t digest = h->digest;
    for (uint64_t p = count + 1; p <= h->count; p++)
        digest ^= h->of[p - 1];
    for (uint64_t p = h->count + 1; p <= count; p++)
        digest ^= zero_hash(h, p);
    return digest;
}

bk_rc_t bk_hashes_resize(bk_hashes_t *h, uint64_t count, bk_err_t *err)
{
    if (count > h->room) {
        uint64_t room = room_for(count);
        uint64_t *more = count <= PAGES_MAX ? realloc(h->of, room * sizeof *more) : NULL;
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "hashes of %llu pages: out of memory",
                              (unsigned long long)count);
        h->of = more;
        h->room = room;
    }
    h->digest = bk_hashes_resized(h, count);
    for (uint64_t p = h->count + 1; p <= count; p++)
        h->of[p - 1] = zero_hash(h, p);
    h->count = count;
    return BK_OK;
}

void bk_hashes_set(bk_hashes_t *h, uint64_t pgno, uint64_t hash)
{
    h->digest ^= h->of[pgno - 1] ^ hash;
    h->of[pgno - 1] = hash;
}

/* --- the file --- */

bk_rc_t bk_hashes_save(const bk_hashes_t *h, const bk_hashes_state_t *state, const char *path,
                       bk_err_t *err)
{
    bk_buf_t head;
    uint8_t sum[8];
    bk_publish_t pub;
    size_t bytes = (size_t)h->count * 8;
    bk_buf_init(&head, HEADER);
    bk_buf_add(&head, MAGIC, 8);
    bk_buf_u32(&head, h->page_size);
    bk_buf_add(&head, state->place.salt, 8);
    bk_buf_u32(&head, state->place.frame);
    bk_buf_u32(&head, state->place.checksum[0]);
    bk_buf_u32(&head, state->place.checksum[1]);
    bk_buf_add(&head, state->epoch, BK_TXLOG_EPOCH);
    bk_buf_u64(&head, state->txid);
    bk_buf_i64(&head, state->seen);
    bk_buf_i64(&head, state->looked);
    bk_buf_i64(&head, state->began);
    bk_buf_u64(&head, state->inode);
    bk_buf_u64(&head, h->digest);
    bk_buf_u64(&head, h->count);
    if (!bk_buf_ok(&head)) {
        bk_buf_free(&head);
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
    }
    bk_put_u64(sum, XXH3_64bits_withSeed(head.data, head.len, XXH3_64bits(h->of, bytes)));
    bk_rc_t rc = bk_publish_open(&pub, AT_FDCWD, path, 0600, err);
    if (rc == BK_OK) {
        rc = bk_write_all(pub.fd, head.data, head.len, path, err);
        if (rc == BK_OK && bytes > 0)
            rc = bk_write_all(pub.fd, h->of, bytes, path, err);
        if (rc == BK_OK)
            rc = bk_write_all(pub.fd, sum, sizeof sum, path, err);
        if (rc == BK_OK)
            rc = bk_publish_commit(&pub, false, err);
        else
            bk_publish_abort(&pub);
    }
    bk_buf_free(&head);
    return rc;
}

static bool parse_header(bk_hashes_t *h, bk_hashes_state_t *state, const uint8_t header[HEADER])
{
    bk_cur_t cur = bk_cur(header, HEADER);
    const uint8_t *magic = bk_cur_bytes(&cur, 8);
    uint32_t page_size = bk_cur_u32(&cur);
    const uint8_t *salt = bk_cur_bytes(&cur, 8);
    *state = (bk_hashes_state_t){.place = {.frame = bk_cur_u32(&cur)}};
    state->place.checksum[0] = bk_cur_u32(&cur);
    state->place.checksum[1] = bk_cur_u32(&cur);
    const uint8_t *epoch = bk_cur_bytes(&cur, BK_TXLOG_EPOCH);
    state->txid = bk_cur_u64(&cur);
    state->seen = bk_cur_i64(&cur);
    state->looked = bk_cur_i64(&cur);
    state->began = bk_cur_i64(&cur);
    state->inode = bk_cur_u64(&cur);
    bk_hashes_init(h, page_size);
    h->digest = bk_cur_u64(&cur);
    h->count = bk_cur_u64(&cur);
    h->room = room_for(h->count);
    if (!bk_cur_ok(&cur) || memcmp(magic, MAGIC, 8) != 0 || page_size < 512 || page_size > 65536 ||
        (page_size & (page_size - 1)) != 0 || h->count > PAGES_MAX)
        return false;
    memcpy(state->place.salt, salt, 8);
    memcpy(state->epoch, epoch, BK_TXLOG_EPOCH);
    return true;
}

/* The hashes go to where they stay: of a large database they are too much to have twice. */
static bk_rc_t read_all(bk_hashes_t *h, bk_hashes_state_t *state, int fd, const char *path,
                        bk_err_t *err)
{
    struct stat st;
    uint8_t header[HEADER], sum[8];
    size_t got, bytes = 0;
    bool good = false;
    if (fstat(fd, &st) != 0)
        return bk_err_sys(err, errno, "read %s", path);
    bk_rc_t rc = bk_pread_all(fd, header, sizeof header, 0, &got, path, err);
    if (rc == BK_OK && got == sizeof header && parse_header(h, state, header)) {
        bytes = (size_t)h->count * 8;
        good = (uint64_t)st.st_size == HEADER + bytes + sizeof sum;
    }
    if (rc == BK_OK && good && (h->of = malloc((size_t)h->room * 8)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
    if (rc == BK_OK && good)
        rc = bk_pread_all(fd, h->of, bytes, HEADER, &got, path, err);
    good = good && rc == BK_OK && got == bytes;
    if (good)
        rc = bk_pread_all(fd, sum, sizeof sum, HEADER + bytes, &got, path, err);
    good =
        good && rc == BK_OK && got == sizeof sum &&
        bk_get_u64(sum) == XXH3_64bits_withSeed(header, sizeof header, XXH3_64bits(h->of, bytes));
    if (rc == BK_OK && !good)
        rc = bk_err_set(err, BK_CORRUPT, "%s is damaged", path);
    if (rc != BK_OK)
        bk_hashes_free(h);
    return rc;
}

bk_rc_t bk_hashes_load(bk_hashes_t *h, bk_hashes_state_t *state, const char *path, bk_err_t *err)
{
    *h = (bk_hashes_t){0};
    int fd = bk_openat(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "open %s", path);
    bk_rc_t rc = read_all(h, state, fd, path, err);
    close(fd);
    return rc;
}
