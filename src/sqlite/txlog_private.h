/*
 * sqlite/txlog_private.h: the bytes of a segment, which its writer and its reader share.
 *
 *   header 48     magic "NGXBKTX\1" | epoch 16 | page size u32 | 0 u32 | first u64 | hash u64
 *   part …        head 100 | page numbers count × u32 | pages, stored bytes
 *   index         zstd( for each part: offset u64 | head 100 | page numbers )
 *   trailer 40    index offset u64 | stored u64 | raw u64 | hash u64 | magic "NGXBKTXE"
 *
 *   head          magic u32 | flags u32 | txid u64 | page count u64 | t_lo i64 | t_hi i64
 *                 | digest before u64 | after u64 | salt 8 | frame u32 | checksum u32 × 2
 *                 | count u32 | stored u32 | hash of the stored pages u64
 *                 | hash of all before u64, seeded by that of the page numbers
 *
 * A transaction is one part, or several of which all but the last have MORE and nothing but their
 * txid.  Hashes are XXH3-64, with seed 0 but where it says so.
 */
#ifndef BK_SQLITE_TXLOG_PRIVATE_H
#define BK_SQLITE_TXLOG_PRIVATE_H

#include <xxhash.h>

#include "base/buf.h"
#include "sqlite/txlog.h"

#define BK_TXLOG_HEADER     48u
#define BK_TXLOG_HEAD       100u
#define BK_TXLOG_TRAILER    40u
#define BK_TXLOG_PART_MAGIC 0x31505854u /* "TXP1" */
#define BK_TXLOG_MORE       2u          /* flags of a part, besides those of bk_tx_t */
#define BK_TXLOG_ZSTD       4u
#define BK_TXLOG_FLAGS      15u
#define BK_TXLOG_PART       (1u << 20)  /* bytes of pages in a part, but one page at least */
#define BK_TXLOG_INDEX_MAX  (64u << 20) /* bytes: of 16 million pages */
#define BK_TXLOG_MERGED     (16u << 20) /* bytes of the index of one that is merged */
#define BK_TXLOG_MAGIC      "NGXBKTX\1"
#define BK_TXLOG_END        "NGXBKTXE"

extern size_t bk_txlog_index_max; /* that a writer makes: lower only in tests */

typedef struct {
    bk_tx_t tx; /* flags: as in the file */
    uint32_t count, stored;
    uint64_t hash; /* of the stored bytes */
} bk_txlog_part_t;

static inline uint32_t bk_txlog_part_pages(uint32_t page_size)
{
    return page_size < BK_TXLOG_PART ? BK_TXLOG_PART / page_size : 1;
}

static inline uint64_t bk_txlog_head_hash(const uint8_t *head, uint32_t count)
{
    return XXH3_64bits_withSeed(head, 92, XXH3_64bits(head + BK_TXLOG_HEAD, (size_t)count * 4));
}

void bk_txlog_put_header(uint8_t out[BK_TXLOG_HEADER], const bk_txlog_info_t *info);
/* pgnos: part->count numbers, in the order of the file's bytes, right behind out. */
void bk_txlog_put_head(uint8_t *out, const bk_txlog_part_t *part);
/* False: damaged, or not the head of a part. */
bool bk_txlog_get_head(const uint8_t head[BK_TXLOG_HEAD], uint32_t page_size,
                       bk_txlog_part_t *part);
/* Where the last whole transaction of an open segment ends; its index so far, or that of a sealed
 * one, into out. */
uint64_t bk_txlog_whole(const bk_txlog_t *log, bk_buf_t *out);
/* Behind the parts, which end at offset: the packed index and the trailer, appended to out. */
bk_rc_t bk_txlog_put_index(const bk_buf_t *index, uint64_t offset, bk_buf_t *out, bk_err_t *err);
/* Bytes of a log as they are stored. */
bk_rc_t bk_txlog_bytes(const bk_txlog_t *log, uint64_t offset, void *out, size_t len,
                       bk_err_t *err);
/* head and the page numbers behind it. */
bool bk_txlog_check_head(const uint8_t *head, const bk_txlog_part_t *part);

#endif
