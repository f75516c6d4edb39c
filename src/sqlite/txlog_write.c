/*
 * sqlite/txlog_write.c: a segment comes into being: parts are appended, and at its end the index.
 * Touches the one file; a failed transaction is cut off again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/txlog_private.h"

size_t bk_txlog_index_max = BK_TXLOG_INDEX_MAX;

struct bk_txlog_writer_s {
    int fd;
    char *path;
    bk_txlog_info_t info;
    uint64_t size;       /* of whole transactions */
    uint64_t synced;     /* of those that survive a crash */
    uint64_t at;         /* of what is written of the one that runs */
    bk_buf_t index;      /* of whole transactions */
    size_t index_before; /* the one that runs begins there */
    bk_buf_t numbers;    /* of the part that is being filled, u32 each */
    bk_buf_t packed;
    uint8_t *pages;
    uint32_t count, total; /* pages in the part, in the transaction */
    bk_tx_t last;
    bool any;
};

/* --- bytes --- */

void bk_txlog_put_header(uint8_t out[BK_TXLOG_HEADER], const bk_txlog_info_t *info)
{
    memcpy(out, BK_TXLOG_MAGIC, 8);
    memcpy(out + 8, info->epoch, BK_TXLOG_EPOCH);
    bk_put_u32(out + 24, info->page_size);
    bk_put_u32(out + 28, 0);
    bk_put_u64(out + 32, info->first);
    bk_put_u64(out + 40, XXH3_64bits(out, 40));
}

void bk_txlog_put_head(uint8_t *out, const bk_txlog_part_t *part)
{
    const bk_tx_t *tx = &part->tx;
    bk_put_u32(out, BK_TXLOG_PART_MAGIC);
    bk_put_u32(out + 4, tx->flags);
    bk_put_u64(out + 8, tx->txid);
    bk_put_u64(out + 16, tx->page_count);
    bk_put_u64(out + 24, (uint64_t)tx->t_lo);
    bk_put_u64(out + 32, (uint64_t)tx->t_hi);
    bk_put_u64(out + 40, tx->before);
    bk_put_u64(out + 48, tx->after);
    memcpy(out + 56, tx->place.salt, 8);
    bk_put_u32(out + 64, tx->place.frame);
    bk_put_u32(out + 68, tx->place.checksum[0]);
    bk_put_u32(out + 72, tx->place.checksum[1]);
    bk_put_u32(out + 76, part->count);
    bk_put_u32(out + 80, part->stored);
    bk_put_u64(out + 84, part->hash);
    bk_put_u64(out + 92, bk_txlog_head_hash(out, part->count));
}

/* --- opening and closing --- */

static bk_rc_t writer_new(const char *path, const bk_txlog_info_t *info, bk_txlog_writer_t **writer,
                          bk_err_t *err)
{
    bk_txlog_writer_t *w = calloc(1, sizeof *w);
    size_t room = (size_t)bk_txlog_part_pages(info->page_size) * info->page_size;
    if (w == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
    w->fd = -1;
    w->info = *info;
    bk_buf_init(&w->index, bk_txlog_index_max);
    bk_buf_init(&w->numbers, 4u << 20);
    bk_buf_init(&w->packed, BK_TXLOG_INDEX_MAX + BK_TXLOG_TRAILER);
    w->path = bk_strdup(path);
    w->pages = malloc(room);
    if (w->path == NULL || w->pages == NULL) {
        bk_txlog_close(w);
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
    }
    *writer = w;
    return BK_OK;
}

void bk_txlog_close(bk_txlog_writer_t *w)
{
    if (w == NULL)
        return;
    if (w->fd >= 0)
        close(w->fd);
    bk_buf_free(&w->index);
    bk_buf_free(&w->numbers);
    bk_buf_free(&w->packed);
    free(w->pages);
    free(w->path);
    free(w);
}

bk_rc_t bk_txlog_create(const char *path, const bk_txlog_info_t *info, bk_txlog_writer_t **writer,
                        bk_err_t *err)
{
    uint8_t header[BK_TXLOG_HEADER];
    bk_txlog_writer_t *w = NULL;
    bk_txlog_put_header(header, info);
    bk_rc_t rc = writer_new(path, info, &w, err);
    if (rc == BK_OK)
        rc = bk_publish_bytes(AT_FDCWD, path, 0600, header, sizeof header, true, err);
    if (rc == BK_OK && (w->fd = bk_openat(AT_FDCWD, path, O_RDWR | O_NOFOLLOW, 0)) < 0)
        rc = bk_err_sys(err, errno, "open %s", path);
    if (rc != BK_OK) {
        bk_txlog_close(w);
        return rc;
    }
    w->size = w->at = w->synced = sizeof header;
    *writer = w;
    return BK_OK;
}

const bk_txlog_info_t *bk_txlog_writer_info(const bk_txlog_writer_t *writer)
{
    return &writer->info;
}

bool bk_txlog_last(const bk_txlog_writer_t *writer, bk_tx_t *tx)
{
    *tx = writer->last;
    return writer->any;
}

uint64_t bk_txlog_size(const bk_txlog_writer_t *writer)
{
    return writer->size;
}

uint64_t bk_txlog_next(const bk_txlog_writer_t *writer)
{
    return writer->any ? writer->last.txid + 1 : writer->info.first;
}

/* --- appending --- */

/* As it was before the transaction began; what stays behind the end does not count anyway. */
static bk_rc_t undo(bk_txlog_writer_t *w, bk_rc_t rc)
{
    if (w->at != w->size && ftruncate(w->fd, (off_t)w->size) != 0)
        return rc;
    w->at = w->size;
    w->index.len = w->index_before;
    bk_buf_reset(&w->numbers);
    w->count = w->total = 0;
    return rc;
}

static bk_rc_t append(bk_txlog_writer_t *w, const void *data, size_t len, bk_err_t *err)
{
    bk_rc_t rc = len > 0 ? bk_pwrite_all(w->fd, data, len, w->at, w->path, err) : BK_OK;
    if (rc == BK_OK)
        w->at += len;
    return rc;
}

/* Head and numbers stand in the index first, behind their offset, and are written from there. */
static bk_rc_t write_part(bk_txlog_writer_t *w, const bk_tx_t *tx, bk_err_t *err)
{
    const bk_compression_t zstd = {.codec = BK_CODEC_ZSTD, .level = 1};
    size_t raw = (size_t)w->count * w->info.page_size;
    bk_codec_t used = BK_CODEC_RAW;
    bk_txlog_part_t part = {.tx = *tx, .count = w->count};
    bk_rc_t rc = BK_OK;
    bk_buf_reset(&w->packed);
    if (raw > 0)
        rc = bk_compress(zstd, false, w->pages, raw, &w->packed, &used, err);
    if (rc != BK_OK)
        return rc;
    const uint8_t *bytes = w->packed.data;
    size_t stored = w->packed.len;
    part.stored = (uint32_t)stored;
    part.tx.flags |= used == BK_CODEC_ZSTD ? BK_TXLOG_ZSTD : 0;
    part.hash = stored > 0 ? XXH3_64bits(bytes, stored) : 0;
    bk_buf_u64(&w->index, w->at);
    uint8_t *head = bk_buf_room(&w->index, BK_TXLOG_HEAD + w->numbers.len);
    if (head == NULL)
        return bk_err_set(err, BK_TOO_LARGE, "%s: more pages than a segment can hold", w->path);
    if (w->numbers.len > 0)
        memcpy(head + BK_TXLOG_HEAD, w->numbers.data, w->numbers.len);
    bk_txlog_put_head(head, &part);
    w->index.len += BK_TXLOG_HEAD + w->numbers.len;
    rc = append(w, head, BK_TXLOG_HEAD + w->numbers.len, err);
    if (rc == BK_OK)
        rc = append(w, bytes, stored, err);
    bk_buf_reset(&w->numbers);
    w->count = 0;
    return rc;
}

bk_rc_t bk_txlog_begin(bk_txlog_writer_t *w, bk_err_t *err)
{
    if (w->at != w->size && undo(w, BK_OK) == BK_OK && w->at != w->size)
        return bk_err_sys(err, errno, "%s: cut off what failed", w->path);
    w->index_before = w->index.len;
    w->total = 0;
    return BK_OK;
}

bk_rc_t bk_txlog_page(bk_txlog_writer_t *w, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    if (w->count == bk_txlog_part_pages(w->info.page_size)) {
        bk_tx_t more = {.txid = bk_txlog_next(w), .flags = BK_TXLOG_MORE};
        bk_rc_t rc = write_part(w, &more, err);
        if (rc != BK_OK)
            return undo(w, rc);
    }
    memcpy(w->pages + (size_t)w->count * w->info.page_size, page, w->info.page_size);
    bk_buf_u32(&w->numbers, pgno);
    w->count++;
    w->total++;
    return BK_OK;
}

bk_rc_t bk_txlog_end(bk_txlog_writer_t *w, bk_tx_t *tx, bk_err_t *err)
{
    tx->pages = w->total;
    if (tx->txid != bk_txlog_next(w))
        return undo(w, bk_err_set(err, BK_INVALID, "%s: transaction %llu is not the next one",
                                  w->path, (unsigned long long)tx->txid));
    bk_rc_t rc = write_part(w, tx, err);
    if (rc != BK_OK)
        return undo(w, rc);
    w->size = w->at;
    w->last = *tx;
    w->any = true;
    return BK_OK;
}

/*
 * What could not be written the kernel takes for written from then on, and the next flush succeeds
 * without it: so it is cut off, to be captured once more.
 */
bk_rc_t bk_txlog_sync(bk_txlog_writer_t *w, bk_err_t *err)
{
    if (fdatasync(w->fd) == 0) {
        w->synced = w->size;
        return BK_OK;
    }
    bk_rc_t rc = bk_err_sys(err, errno, "flush %s", w->path);
    w->size = w->at = w->synced;
    if (ftruncate(w->fd, (off_t)w->size) != 0)
        bk_err_wrap(err, "cut off the end of it failed as well");
    return rc;
}

/* --- sealing --- */

bk_rc_t bk_txlog_put_index(const bk_buf_t *index, uint64_t offset, bk_buf_t *out, bk_err_t *err)
{
    const bk_compression_t zstd = {.codec = BK_CODEC_ZSTD, .level = 3};
    bk_codec_t used = BK_CODEC_RAW;
    size_t began = out->len;
    bk_rc_t rc = BK_OK;
    if (index->len > 0)
        rc = bk_compress(zstd, false, index->data, index->len, out, &used, err);
    if (rc != BK_OK)
        return rc;
    size_t stored = out->len - began;
    uint64_t hash = stored > 0 ? XXH3_64bits(out->data + began, stored) : 0;
    bk_buf_u64(out, offset);
    bk_buf_u64(out, stored);
    bk_buf_u64(out, index->len);
    bk_buf_u64(out, hash);
    bk_buf_add(out, BK_TXLOG_END, 8);
    return bk_buf_ok(out) ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "transactions: out of memory");
}

static bk_rc_t write_index(bk_txlog_writer_t *w, bk_err_t *err)
{
    bk_buf_reset(&w->packed);
    bk_rc_t rc = bk_txlog_put_index(&w->index, w->at, &w->packed, err);
    return rc == BK_OK ? append(w, w->packed.data, w->packed.len, err) : rc;
}

bk_rc_t bk_txlog_seal(bk_txlog_writer_t *w, bk_err_t *err)
{
    w->index_before = w->index.len;
    bk_rc_t rc = write_index(w, err);
    if (rc == BK_OK)
        rc = bk_txlog_sync(w, err);
    if (rc != BK_OK)
        undo(w, rc);
    bk_txlog_close(w);
    return rc;
}

/* --- after a crash --- */

bk_rc_t bk_txlog_reopen(const char *path, bk_txlog_writer_t **writer, bk_err_t *err)
{
    bk_txlog_t *log = NULL;
    bk_txlog_writer_t *w = NULL;
    bk_rc_t rc = bk_txlog_open_file(path, &log, err);
    if (rc == BK_OK && bk_txlog_sealed(log))
        rc = bk_err_set(err, BK_EXISTS, "%s is sealed", path);
    if (rc == BK_OK)
        rc = writer_new(path, bk_txlog_info(log), &w, err);
    if (rc == BK_OK && (w->fd = bk_openat(AT_FDCWD, path, O_RDWR | O_NOFOLLOW, 0)) < 0)
        rc = bk_err_sys(err, errno, "open %s", path);
    if (rc == BK_OK) {
        w->size = w->at = w->synced = bk_txlog_whole(log, &w->index);
        if (!bk_buf_ok(&w->index))
            rc = bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
        else if (ftruncate(w->fd, (off_t)w->size) != 0 || fsync(w->fd) != 0)
            rc = bk_err_sys(err, errno, "cut off the end of %s", path);
    }
    if (rc == BK_OK && bk_txlog_count(log) > 0) {
        w->last = *bk_txlog_tx(log, bk_txlog_count(log) - 1);
        w->any = true;
    }
    bk_txlog_free(log);
    if (rc == BK_OK)
        *writer = w;
    else
        bk_txlog_close(w);
    return rc;
}
