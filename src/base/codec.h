/*
 * base/codec.h: zstd (RFC 8878) and gzip (RFC 1952) on whole chunks.  Contexts are kept per thread
 * and reused; any thread.
 */
#ifndef BK_BASE_CODEC_H
#define BK_BASE_CODEC_H

#include "base/buf.h"
#include "base/err.h"

/* Stored in packs: never change one. */
typedef enum { BK_CODEC_RAW = 0, BK_CODEC_ZSTD = 1, BK_CODEC_GZIP = 2 } bk_codec_t;

/* Largest level we offer: zstd 1..19, gzip 1..9. */
typedef struct {
    bk_codec_t codec;
    int level;
} bk_compression_t;

/*
 * Append the compressed form of data to out when it saves at least 3 %, else the data itself; *used
 * tells which. probe: where it costs little of the whole, first try 64 KiB of it at level 1 and
 * store raw without more work when that saves less than 3 % (media).
 */
bk_rc_t bk_compress(bk_compression_t how, bool probe, const void *data, size_t len, bk_buf_t *out,
                    bk_codec_t *used, bk_err_t *err);
/* Exactly raw_len bytes to out, which holds that many; BK_CORRUPT when it yields more or fewer. */
bk_rc_t bk_decompress(bk_codec_t codec, const void *data, size_t len, void *out, size_t raw_len,
                      bk_err_t *err);

#endif
