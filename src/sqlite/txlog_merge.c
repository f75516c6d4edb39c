/*
 * sqlite/txlog_merge.c: sealed segments that follow each other become one with the same
 * transactions.  Parts say nothing of where they lie, so their bytes are copied as they are, each
 * compared with its hash; only the index is made anew.  Touches the one file.
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

struct bk_txlog_merge_s {
    int fd;
    char *path;
    bk_txlog_info_t info; /* first 0: nothing was added yet */
    bk_tx_t last;
    uint64_t at;
    bk_buf_t index, add; /* add: of the one that is being added */
    bk_buf_t bytes;
};

bk_rc_t bk_txlog_merge_new(const char *path, bk_txlog_merge_t **merge, bk_err_t *err)
{
    bk_txlog_merge_t *m = calloc(1, sizeof *m);
    *merge = NULL;
    if (m == NULL || (m->path = bk_strdup(path)) == NULL) {
        free(m);
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
    }
    m->at = BK_TXLOG_HEADER;
    bk_buf_init(&m->index, BK_TXLOG_MERGED);
    bk_buf_init(&m->add, BK_TXLOG_INDEX_MAX);
    bk_buf_init(&m->bytes, BK_TXLOG_INDEX_MAX);
    m->fd = bk_openat(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (m->fd < 0) {
        bk_rc_t rc = bk_err_sys(err, errno, "make %s", path);
        bk_txlog_merge_free(m);
        return rc;
    }
    *merge = m;
    return BK_OK;
}

void bk_txlog_merge_free(bk_txlog_merge_t *m)
{
    if (m == NULL)
        return;
    if (m->fd >= 0)
        close(m->fd);
    bk_buf_free(&m->index);
    bk_buf_free(&m->add);
    bk_buf_free(&m->bytes);
    free(m->path);
    free(m);
}

static bk_rc_t append(bk_txlog_merge_t *m, const void *data, size_t len, bk_err_t *err)
{
    bk_rc_t rc = len > 0 ? bk_pwrite_all(m->fd, data, len, m->at, m->path, err) : BK_OK;
    if (rc == BK_OK)
        m->at += len;
    return rc;
}

static bk_rc_t check_follows(const bk_txlog_merge_t *m, const bk_txlog_t *log, bk_err_t *err)
{
    const bk_txlog_info_t *info = bk_txlog_info(log);
    if (!bk_txlog_sealed(log) || bk_txlog_count(log) == 0)
        return bk_err_set(err, BK_INVALID, "a segment that is not sealed cannot be merged");
    if (m->info.first != 0 &&
        (memcmp(info->epoch, m->info.epoch, BK_TXLOG_EPOCH) != 0 ||
         info->page_size != m->info.page_size || info->first != m->last.txid + 1 ||
         bk_txlog_tx(log, 0)->before != m->last.after))
        return bk_err_set(err, BK_CORRUPT,
                          "transaction %llu does not follow what the segments before it hold",
                          (unsigned long long)info->first);
    return BK_OK;
}

/* The part whose index entry is entry: its bytes, and the entry with its new place. */
static bk_rc_t add_part(bk_txlog_merge_t *m, const bk_txlog_t *log, uint8_t *entry, size_t left,
                        size_t *taken, bk_err_t *err)
{
    bk_txlog_part_t part;
    uint8_t *head = entry + 8;
    if (left < 8 + BK_TXLOG_HEAD ||
        !bk_txlog_get_head(head, bk_txlog_info(log)->page_size, &part) ||
        (left - 8 - BK_TXLOG_HEAD) / 4 < part.count)
        return bk_err_set(err, BK_CORRUPT, "a segment of transactions is damaged: its index");
    size_t numbers = (size_t)part.count * 4;
    uint64_t offset = bk_get_u64(entry) + BK_TXLOG_HEAD + numbers;
    bk_buf_reset(&m->bytes);
    uint8_t *bytes = bk_buf_room(&m->bytes, part.stored + 1u);
    if (bytes == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", m->path);
    bk_rc_t rc = part.stored > 0 ? bk_txlog_bytes(log, offset, bytes, part.stored, err) : BK_OK;
    if (rc == BK_OK && part.stored > 0 && XXH3_64bits(bytes, part.stored) != part.hash)
        rc = bk_err_set(err, BK_CORRUPT, "transaction %llu is damaged",
                        (unsigned long long)part.tx.txid);
    bk_put_u64(entry, m->at);
    if (rc == BK_OK)
        rc = append(m, head, BK_TXLOG_HEAD + numbers, err);
    if (rc == BK_OK)
        rc = append(m, bytes, part.stored, err);
    *taken = 8 + BK_TXLOG_HEAD + numbers;
    return rc;
}

bk_rc_t bk_txlog_merge_add(bk_txlog_merge_t *m, const bk_txlog_t *log, bk_err_t *err)
{
    uint64_t began = m->at;
    bk_rc_t rc = check_follows(m, log, err);
    if (rc != BK_OK)
        return rc;
    bk_buf_reset(&m->add);
    (void)bk_txlog_whole(log, &m->add);
    if (!bk_buf_ok(&m->add))
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", m->path);
    if (m->index.len + m->add.len > BK_TXLOG_MERGED)
        return bk_err_set(err, BK_TOO_LARGE, "%s: more transactions than it is to hold", m->path);
    for (size_t at = 0, taken = 0; rc == BK_OK && at < m->add.len; at += taken)
        rc = add_part(m, log, m->add.data + at, m->add.len - at, &taken, err);
    if (rc == BK_OK) {
        bk_buf_add(&m->index, m->add.data, m->add.len);
        if (!bk_buf_ok(&m->index))
            rc = bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", m->path);
    }
    if (rc != BK_OK) {
        m->at = began; /* what follows, or the index, is written over it */
        return rc;
    }
    if (m->info.first == 0)
        m->info = *bk_txlog_info(log);
    m->last = *bk_txlog_tx(log, bk_txlog_count(log) - 1);
    return BK_OK;
}

bk_rc_t bk_txlog_merge_end(bk_txlog_merge_t *m, uint64_t *size, bk_err_t *err)
{
    uint8_t header[BK_TXLOG_HEADER];
    bk_txlog_put_header(header, &m->info);
    bk_rc_t rc = m->info.first != 0 ? bk_pwrite_all(m->fd, header, sizeof header, 0, m->path, err)
                                    : bk_err_set(err, BK_INVALID, "%s: it is empty", m->path);
    bk_buf_reset(&m->bytes);
    if (rc == BK_OK)
        rc = bk_txlog_put_index(&m->index, m->at, &m->bytes, err);
    if (rc == BK_OK)
        rc = append(m, m->bytes.data, m->bytes.len, err);
    if (rc == BK_OK && ftruncate(m->fd, (off_t)m->at) != 0)
        rc = bk_err_sys(err, errno, "%s", m->path);
    *size = m->at;
    return rc;
}
