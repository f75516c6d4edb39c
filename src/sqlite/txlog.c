/*
 * sqlite/txlog.c: reading segments: which transactions are in one, and their pages.  Reads only;
 * believes nothing that has no right checksum.
 */
#include "sqlite/txlog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/txlog_private.h"

#define PAGES_MAX UINT32_MAX

/* A part as it lies in the file. */
typedef struct {
    uint64_t offset; /* of its stored bytes */
    uint64_t hash;
    uint32_t count, stored;
    uint32_t tx;    /* number of its transaction in the log */
    uint32_t first; /* its page numbers begin there in numbers */
    bool zstd;
} part_t;

struct bk_txlog_s {
    bk_txlog_source_t source;
    bk_txlog_info_t info;
    bool sealed;
    uint64_t whole; /* open: where the last whole transaction ends */
    bk_buf_t index; /* heads and numbers of whole transactions, as in a sealed one */
    bk_tx_t *txs;
    size_t tx_count, tx_cap;
    part_t *parts;
    size_t part_count, part_cap;
    uint8_t *pages; /* of the part that is held */
    size_t held;    /* SIZE_MAX: none */
    bk_buf_t packed;
};

static bk_rc_t damaged(const char *what, bk_err_t *err)
{
    return bk_err_set(err, BK_CORRUPT, "a segment of transactions is damaged: %s", what);
}

static bool no_memory(bk_err_t *err)
{
    bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    return false;
}

/* --- heads --- */

bool bk_txlog_get_head(const uint8_t head[BK_TXLOG_HEAD], uint32_t page_size, bk_txlog_part_t *part)
{
    bk_tx_t *tx = &part->tx;
    *part = (bk_txlog_part_t){.count = bk_get_u32(head + 76),
                              .stored = bk_get_u32(head + 80),
                              .hash = bk_get_u64(head + 84)};
    *tx = (bk_tx_t){.txid = bk_get_u64(head + 8),
                    .flags = bk_get_u32(head + 4),
                    .page_count = bk_get_u64(head + 16),
                    .t_lo = (int64_t)bk_get_u64(head + 24),
                    .t_hi = (int64_t)bk_get_u64(head + 32),
                    .before = bk_get_u64(head + 40),
                    .after = bk_get_u64(head + 48)};
    memcpy(tx->place.salt, head + 56, 8);
    tx->place.frame = bk_get_u32(head + 64);
    tx->place.checksum[0] = bk_get_u32(head + 68);
    tx->place.checksum[1] = bk_get_u32(head + 72);
    return bk_get_u32(head) == BK_TXLOG_PART_MAGIC && (tx->flags & ~BK_TXLOG_FLAGS) == 0 &&
           tx->page_count <= PAGES_MAX && part->count <= bk_txlog_part_pages(page_size) &&
           part->stored <= (uint64_t)part->count * page_size &&
           ((tx->flags & BK_TXLOG_ZSTD) != 0 || part->stored == (uint64_t)part->count * page_size);
}

bool bk_txlog_check_head(const uint8_t *head, const bk_txlog_part_t *part)
{
    return bk_txlog_head_hash(head, part->count) == bk_get_u64(head + 92);
}

/* --- taking parts in --- */

static bool grow(void **items, size_t count, size_t *cap, size_t size)
{
    if (count < *cap)
        return true;
    size_t more = *cap > 0 ? 2 * *cap : 64;
    void *grown = realloc(*items, more * size);
    if (grown == NULL)
        return false;
    *items = grown;
    *cap = more;
    return true;
}

/*
 * The next part.  numbers: offset of its page numbers in log->index.  A transaction is there with
 * its last part; before that its parts wait behind part_count of the whole ones.
 */
static bk_rc_t take_part(bk_txlog_t *log, const bk_txlog_part_t *part, uint64_t offset,
                         size_t numbers, bk_err_t *err)
{
    uint64_t expected = log->info.first + log->tx_count;
    if (part->tx.txid != expected || log->part_count == UINT32_MAX || numbers > UINT32_MAX)
        return damaged("its transactions do not follow each other", err);
    if (!grow((void **)&log->parts, log->part_count, &log->part_cap, sizeof *log->parts) ||
        !grow((void **)&log->txs, log->tx_count, &log->tx_cap, sizeof *log->txs)) {
        no_memory(err);
        return BK_NO_MEMORY;
    }
    log->parts[log->part_count++] = (part_t){.offset = offset,
                                             .hash = part->hash,
                                             .count = part->count,
                                             .stored = part->stored,
                                             .tx = (uint32_t)log->tx_count,
                                             .first = (uint32_t)numbers,
                                             .zstd = (part->tx.flags & BK_TXLOG_ZSTD) != 0};
    if ((part->tx.flags & BK_TXLOG_MORE) != 0)
        return BK_OK;
    bk_tx_t *tx = &log->txs[log->tx_count++];
    *tx = part->tx;
    tx->flags &= BK_TXLOG_GAP | BK_TXLOG_BATCH;
    tx->pages = 0;
    for (size_t i = log->part_count; i-- > 0 && log->parts[i].tx == log->tx_count - 1;)
        tx->pages += log->parts[i].count;
    return BK_OK;
}

/* Parts of a transaction that never came to its end. */
static void drop_tail(bk_txlog_t *log, size_t index_len)
{
    while (log->part_count > 0 && log->parts[log->part_count - 1].tx >= log->tx_count)
        log->part_count--;
    log->index.len = index_len;
}

static bk_rc_t fetch(const bk_txlog_t *log, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    return len > 0 ? log->source.read(log->source.arg, offset, out, len, err) : BK_OK;
}

bk_rc_t bk_txlog_bytes(const bk_txlog_t *log, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    return fetch(log, offset, out, len, err);
}

/* --- sealed: the index tells --- */

static bool is_trailer(const bk_txlog_t *log, const uint8_t trailer[BK_TXLOG_TRAILER])
{
    uint64_t offset = bk_get_u64(trailer), stored = bk_get_u64(trailer + 8),
             raw = bk_get_u64(trailer + 16), end = log->source.size - BK_TXLOG_TRAILER;
    return offset >= BK_TXLOG_HEADER && offset <= end && stored == end - offset && stored <= raw &&
           raw <= BK_TXLOG_INDEX_MAX;
}

static bk_rc_t read_index(bk_txlog_t *log, const uint8_t trailer[BK_TXLOG_TRAILER], bk_err_t *err)
{
    uint64_t offset = bk_get_u64(trailer), stored = bk_get_u64(trailer + 8),
             raw = bk_get_u64(trailer + 16);
    uint8_t *bytes = malloc(stored + 1);
    uint8_t *out = bk_buf_room(&log->index, raw + 1);
    bk_rc_t rc =
        bytes != NULL && out != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "read transactions");
    if (rc == BK_OK)
        rc = fetch(log, offset, bytes, stored, err);
    if (rc == BK_OK && stored > 0 && XXH3_64bits(bytes, stored) != bk_get_u64(trailer + 24))
        rc = damaged("its index", err);
    if (rc == BK_OK && raw > 0)
        rc = bk_decompress(stored < raw ? BK_CODEC_ZSTD : BK_CODEC_RAW, bytes, stored, out, raw,
                           err);
    if (rc == BK_OK)
        log->index.len = raw;
    free(bytes);
    return rc;
}

static bk_rc_t take_index(bk_txlog_t *log, bk_err_t *err)
{
    uint64_t end = BK_TXLOG_HEADER;
    for (size_t at = 0; at < log->index.len;) {
        bk_txlog_part_t part;
        const uint8_t *p = log->index.data + at, *head = p + 8;
        size_t left = log->index.len - at;
        if (left < 8 + BK_TXLOG_HEAD || !bk_txlog_get_head(head, log->info.page_size, &part) ||
            (left - 8 - BK_TXLOG_HEAD) / 4 < part.count || !bk_txlog_check_head(head, &part) ||
            bk_get_u64(p) != end)
            return damaged("its index", err);
        size_t numbers = at + 8 + BK_TXLOG_HEAD;
        uint64_t offset = end + BK_TXLOG_HEAD + (uint64_t)part.count * 4;
        bk_rc_t rc = take_part(log, &part, offset, numbers, err);
        if (rc != BK_OK)
            return rc;
        end = offset + part.stored;
        at = numbers + (size_t)part.count * 4;
    }
    size_t parts = log->part_count;
    drop_tail(log, log->index.len);
    return parts == log->part_count && end <= log->source.size ? BK_OK : damaged("its index", err);
}

/* --- open: look through it --- */

/* False: here the whole parts end. */
static bool scan_part(bk_txlog_t *log, uint64_t *at, bk_err_t *err)
{
    bk_txlog_part_t part;
    uint64_t left = log->source.size - *at;
    size_t start = log->index.len;
    bk_buf_u64(&log->index, *at);
    uint8_t *head = bk_buf_room(&log->index, BK_TXLOG_HEAD);
    if (head == NULL)
        return no_memory(err);
    if (left < BK_TXLOG_HEAD || fetch(log, *at, head, BK_TXLOG_HEAD, err) != BK_OK ||
        !bk_txlog_get_head(head, log->info.page_size, &part) ||
        left - BK_TXLOG_HEAD < (uint64_t)part.count * 4 + part.stored)
        return false;
    log->index.len += BK_TXLOG_HEAD;
    size_t numbers = log->index.len, bytes = (size_t)part.count * 4;
    uint64_t offset = *at + BK_TXLOG_HEAD + bytes;
    uint8_t *room = bk_buf_room(&log->index, bytes + 1), *packed;
    bk_buf_reset(&log->packed);
    packed = bk_buf_room(&log->packed, part.stored + 1u);
    if (room == NULL || packed == NULL)
        return no_memory(err);
    if (fetch(log, *at + BK_TXLOG_HEAD, room, bytes, err) != BK_OK ||
        fetch(log, offset, packed, part.stored, err) != BK_OK ||
        !bk_txlog_check_head(log->index.data + start + 8, &part) ||
        (part.stored > 0 && XXH3_64bits(packed, part.stored) != part.hash))
        return false;
    log->index.len += bytes;
    if (take_part(log, &part, offset, numbers, err) != BK_OK)
        return false;
    *at = offset + part.stored;
    return true;
}

static bk_rc_t scan(bk_txlog_t *log, bk_err_t *err)
{
    bk_err_t why = {0};
    uint64_t at = BK_TXLOG_HEADER;
    size_t index_len = 0, whole = 0;
    log->whole = at;
    while (scan_part(log, &at, &why))
        if (log->tx_count > whole) {
            whole = log->tx_count;
            log->whole = at;
            index_len = log->index.len;
        }
    drop_tail(log, index_len);
    /* What is torn is expected here; that it could not be read is not. */
    if (why.rc != BK_OK && why.rc != BK_CORRUPT) {
        if (err != NULL)
            *err = why;
        return why.rc;
    }
    return BK_OK;
}

uint64_t bk_txlog_whole(const bk_txlog_t *log, bk_buf_t *out)
{
    bk_buf_add(out, log->index.data, log->index.len);
    return log->whole;
}

static void forget(bk_txlog_t *log)
{
    log->tx_count = log->part_count = 0;
    bk_buf_reset(&log->index);
}

/* --- opening --- */

static bk_rc_t read_header(bk_txlog_t *log, bk_err_t *err)
{
    uint8_t header[BK_TXLOG_HEADER];
    bk_txlog_info_t *info = &log->info;
    if (log->source.size < sizeof header)
        return damaged("it is shorter than its header", err);
    bk_rc_t rc = fetch(log, 0, header, sizeof header, err);
    if (rc != BK_OK)
        return rc;
    memcpy(info->epoch, header + 8, BK_TXLOG_EPOCH);
    info->page_size = bk_get_u32(header + 24);
    info->first = bk_get_u64(header + 32);
    if (memcmp(header, BK_TXLOG_MAGIC, 8) != 0 ||
        XXH3_64bits(header, 40) != bk_get_u64(header + 40))
        return damaged("its header", err);
    if (info->page_size < 512 || info->page_size > 65536 ||
        (info->page_size & (info->page_size - 1)) != 0 || info->first == 0)
        return damaged("its page size", err);
    return BK_OK;
}

static bk_rc_t load(bk_txlog_t *log, bk_err_t *err)
{
    uint8_t trailer[BK_TXLOG_TRAILER] = {0};
    bk_rc_t rc = read_header(log, err);
    if (rc == BK_OK && log->source.size >= BK_TXLOG_HEADER + BK_TXLOG_TRAILER)
        rc = fetch(log, log->source.size - sizeof trailer, trailer, sizeof trailer, err);
    if (rc != BK_OK)
        return rc;
    /* A page of the application may end like a trailer: then it is open, and has no index. */
    if (memcmp(trailer + 32, BK_TXLOG_END, 8) != 0 || !is_trailer(log, trailer))
        return scan(log, err);
    bk_err_t why = {0};
    rc = read_index(log, trailer, &why);
    if (rc == BK_OK)
        rc = take_index(log, &why);
    log->sealed = rc == BK_OK;
    if (rc == BK_CORRUPT) {
        forget(log);
        rc = scan(log, &why);
        /* A sealed one has more behind its last whole transaction. */
        if (rc == BK_OK && log->whole != log->source.size)
            rc = damaged("its index", &why);
    }
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

bk_rc_t bk_txlog_open(const bk_txlog_source_t *source, bk_txlog_t **result, bk_err_t *err)
{
    bk_txlog_t *log = calloc(1, sizeof *log);
    if (log == NULL) {
        if (source->close != NULL)
            source->close(source->arg);
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    }
    log->source = *source;
    log->held = SIZE_MAX;
    bk_buf_init(&log->index, BK_TXLOG_INDEX_MAX + 64);
    bk_buf_init(&log->packed, 2 * BK_TXLOG_PART);
    bk_rc_t rc = load(log, err);
    if (rc == BK_OK)
        *result = log;
    else
        bk_txlog_free(log);
    return rc;
}

static bk_rc_t read_fd(void *arg, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    size_t got = 0;
    bk_rc_t rc = bk_pread_all((int)(intptr_t)arg, out, len, offset, &got, "transactions", err);
    return rc == BK_OK && got != len ? damaged("it is cut off", err) : rc;
}

static void close_fd(void *arg)
{
    close((int)(intptr_t)arg);
}

bk_rc_t bk_txlog_open_file(const char *path, bk_txlog_t **log, bk_err_t *err)
{
    struct stat st;
    int fd = bk_openat(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW, 0);
    if (fd < 0 || fstat(fd, &st) != 0) {
        bk_rc_t rc = bk_err_sys(err, errno, "open %s", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    bk_txlog_source_t source = {.read = read_fd,
                                .close = close_fd,
                                .arg = (void *)(intptr_t)fd,
                                .size = (uint64_t)st.st_size};
    bk_rc_t rc = bk_txlog_open(&source, log, err);
    return rc == BK_OK ? rc : bk_err_wrap(err, "%s", path);
}

void bk_txlog_free(bk_txlog_t *log)
{
    if (log == NULL)
        return;
    if (log->source.close != NULL)
        log->source.close(log->source.arg);
    bk_buf_free(&log->index);
    bk_buf_free(&log->packed);
    free(log->txs);
    free(log->parts);
    free(log->pages);
    free(log);
}

const bk_txlog_info_t *bk_txlog_info(const bk_txlog_t *log)
{
    return &log->info;
}

bool bk_txlog_sealed(const bk_txlog_t *log)
{
    return log->sealed;
}

size_t bk_txlog_count(const bk_txlog_t *log)
{
    return log->tx_count;
}

const bk_tx_t *bk_txlog_tx(const bk_txlog_t *log, size_t at)
{
    return &log->txs[at];
}

/* --- pages --- */

static uint32_t number_of(const bk_txlog_t *log, const part_t *part, uint32_t slot)
{
    return bk_get_u32(log->index.data + part->first + (size_t)slot * 4);
}

/* The pages of a part into log->pages. */
static bk_rc_t hold(bk_txlog_t *log, size_t at, bk_err_t *err)
{
    const part_t *part = &log->parts[at];
    size_t raw = (size_t)part->count * log->info.page_size;
    if (log->held == at)
        return BK_OK;
    log->held = SIZE_MAX;
    bk_buf_reset(&log->packed);
    uint8_t *packed = bk_buf_room(&log->packed, part->stored + 1u);
    if (log->pages == NULL)
        log->pages = malloc((size_t)bk_txlog_part_pages(log->info.page_size) * log->info.page_size);
    if (packed == NULL || log->pages == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    bk_rc_t rc = fetch(log, part->offset, packed, part->stored, err);
    if (rc == BK_OK && part->stored > 0 && XXH3_64bits(packed, part->stored) != part->hash)
        rc = damaged("pages of a transaction", err);
    if (rc == BK_OK && raw > 0)
        rc = bk_decompress(part->zstd ? BK_CODEC_ZSTD : BK_CODEC_RAW, packed, part->stored,
                           log->pages, raw, err);
    if (rc == BK_OK)
        log->held = at;
    return rc;
}

/* The first part of a transaction. */
static size_t first_part(const bk_txlog_t *log, size_t tx)
{
    size_t low = 0, high = log->part_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (log->parts[middle].tx < tx)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bk_rc_t bk_txlog_pages(bk_txlog_t *log, size_t at, bk_txlog_page_fn fn, void *arg, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = first_part(log, at); i < log->part_count && log->parts[i].tx == at; i++) {
        const part_t *part = &log->parts[i];
        rc = hold(log, i, err);
        for (uint32_t slot = 0; rc == BK_OK && slot < part->count; slot++)
            rc = fn(arg, number_of(log, part, slot),
                    log->pages + (size_t)slot * log->info.page_size, err);
        if (rc != BK_OK)
            break;
    }
    return rc;
}

bool bk_txlog_numbers(const bk_txlog_t *log, size_t at, bk_txlog_number_fn fn, void *arg)
{
    for (size_t i = first_part(log, at); i < log->part_count && log->parts[i].tx == at; i++)
        for (uint32_t slot = 0; slot < log->parts[i].count; slot++)
            if (!fn(arg, number_of(log, &log->parts[i], slot),
                    (bk_txlog_spot_t){(uint32_t)i, slot}))
                return false;
    return true;
}

bk_rc_t bk_txlog_get(bk_txlog_t *log, bk_txlog_spot_t spot, uint8_t *page, bk_err_t *err)
{
    bk_rc_t rc = hold(log, spot.part, err);
    if (rc == BK_OK)
        memcpy(page, log->pages + (size_t)spot.slot * log->info.page_size, log->info.page_size);
    return rc;
}

bk_rc_t bk_txlog_narrow(bk_txlog_t *log, uint64_t first, uint64_t last, bk_err_t *err)
{
    if (first < log->info.first || last < first || last - log->info.first >= log->tx_count)
        return damaged("it does not have the transactions that its name tells", err);
    size_t skip = (size_t)(first - log->info.first), count = (size_t)(last - first + 1);
    size_t from = first_part(log, skip), to = first_part(log, skip + count);
    memmove(log->parts, log->parts + from, (to - from) * sizeof *log->parts);
    memmove(log->txs, log->txs + skip, count * sizeof *log->txs);
    log->part_count = to - from;
    log->tx_count = count;
    for (size_t i = 0; i < log->part_count; i++)
        log->parts[i].tx -= (uint32_t)skip;
    log->info.first = first;
    log->held = SIZE_MAX;
    return BK_OK;
}

bool bk_txlog_same_place(const bk_txlog_place_t *a, const bk_txlog_place_t *b)
{
    return a->frame == b->frame && memcmp(a->salt, b->salt, sizeof a->salt) == 0 &&
           (a->frame == 0 || memcmp(a->checksum, b->checksum, sizeof a->checksum) == 0);
}
