/*
 * base/codec.c: compression contexts are large and slow to make, so each thread keeps one of each kind until it ends.
 */
#include "base/codec.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define PROBE_BYTES (64u << 10)
#define GZIP_WINDOW 31 /* 15 bits and the gzip wrapper */

typedef struct {
    ZSTD_CCtx *zstd_out;
    ZSTD_DCtx *zstd_in;
    uint8_t *probe; /* ZSTD_compressBound(PROBE_BYTES) */
} contexts_t;

static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static int key_error;

static void free_contexts(void *arg)
{
    contexts_t *c = arg;
    if (c == NULL)
        return;
    ZSTD_freeCCtx(c->zstd_out);
    ZSTD_freeDCtx(c->zstd_in);
    free(c->probe);
    free(c);
}

static void make_key(void)
{
    key_error = pthread_key_create(&key, free_contexts);
}

static contexts_t *contexts(void)
{
    pthread_once(&key_once, make_key);
    if (key_error != 0)
        return NULL;
    contexts_t *c = pthread_getspecific(key);
    if (c != NULL)
        return c;
    c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->zstd_out = ZSTD_createCCtx();
    c->zstd_in = ZSTD_createDCtx();
    c->probe = malloc(ZSTD_compressBound(PROBE_BYTES));
    if (c->zstd_out == NULL || c->zstd_in == NULL || c->probe == NULL ||
        pthread_setspecific(key, c) != 0) {
        free_contexts(c);
        return NULL;
    }
    return c;
}

static bool worth_it(size_t raw, size_t compressed)
{
    return compressed < raw - raw * 3 / 100 && compressed < raw;
}

static bool incompressible(contexts_t *c, const uint8_t *data, size_t len)
{
    /* The middle: headers and tags at the start of media compress and say nothing of the rest. */
    if (len > PROBE_BYTES) {
        data += (len - PROBE_BYTES) / 2;
        len = PROBE_BYTES;
    }
    size_t n =
        ZSTD_compressCCtx(c->zstd_out, c->probe, ZSTD_compressBound(PROBE_BYTES), data, len, 1);
    return ZSTD_isError(n) || !worth_it(len, n);
}

/* Compressed length in room, or 0 when it does not fit or is not worth it. */
static size_t try_gzip(int level, const uint8_t *data, size_t len, uint8_t *room, size_t size)
{
    z_stream z = {0};
    if (deflateInit2(&z, level, Z_DEFLATED, GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return 0;
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)len;
    z.next_out = room;
    z.avail_out = (uInt)size;
    int rc = deflate(&z, Z_FINISH);
    size_t n = z.total_out;
    deflateEnd(&z);
    return rc == Z_STREAM_END ? n : 0;
}

bk_rc_t bk_compress(bk_compression_t how, bool probe, const void *data, size_t len, bk_buf_t *out,
                    bk_codec_t *used, bk_err_t *err)
{
    contexts_t *c = contexts();
    if (c == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "compress: out of memory");
    if (len > UINT32_MAX / 2)
        return bk_err_set(err, BK_TOO_LARGE, "compress: %zu bytes are too many at once", len);
    *used = BK_CODEC_RAW;
    if (how.codec != BK_CODEC_RAW && len > 0 &&
        !(probe && len > PROBE_BYTES / 4 && incompressible(c, data, len))) {
        /* No more room than what would be worth it: a compressor that does not fit gives up early. */
        size_t size = len, n = 0;
        uint8_t *room = bk_buf_room(out, size);
        if (room == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "compress: out of memory");
        if (how.codec == BK_CODEC_ZSTD) {
            n = ZSTD_compressCCtx(c->zstd_out, room, size, data, len, how.level);
            if (ZSTD_isError(n))
                n = 0;
        } else {
            n = try_gzip(how.level, data, len, room, size);
        }
        if (n > 0 && worth_it(len, n)) {
            out->len += n;
            *used = how.codec;
            return BK_OK;
        }
    }
    bk_buf_add(out, data, len);
    return bk_buf_ok(out) ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "compress: out of memory");
}

static bool gunzip(const void *data, size_t len, void *out, size_t raw_len)
{
    z_stream z = {0};
    if (inflateInit2(&z, GZIP_WINDOW) != Z_OK)
        return false;
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)len;
    z.next_out = out;
    z.avail_out = (uInt)raw_len;
    int rc = inflate(&z, Z_FINISH);
    bool whole = rc == Z_STREAM_END && z.total_out == raw_len && z.avail_in == 0;
    inflateEnd(&z);
    return whole;
}

bk_rc_t bk_decompress(bk_codec_t codec, const void *data, size_t len, void *out, size_t raw_len,
                      bk_err_t *err)
{
    contexts_t *c = contexts();
    if (c == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "decompress: out of memory");
    switch (codec) {
    case BK_CODEC_RAW:
        if (len != raw_len)
            break;
        memcpy(out, data, len);
        return BK_OK;
    case BK_CODEC_ZSTD:
        if (ZSTD_decompressDCtx(c->zstd_in, out, raw_len, data, len) == raw_len)
            return BK_OK;
        break;
    case BK_CODEC_GZIP:
        if (len <= UINT32_MAX && raw_len <= UINT32_MAX && gunzip(data, len, out, raw_len))
            return BK_OK;
        break;
    default:
        return bk_err_set(err, BK_CORRUPT, "decompress: codec %d is not known", (int)codec);
    }
    return bk_err_set(err, BK_CORRUPT, "decompress: the data is damaged");
}
