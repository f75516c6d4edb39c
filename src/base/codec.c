/*
 * base/codec.c: compression contexts are large and slow to make, so each thread keeps one of each
 * kind until it ends.
 */
#include "base/codec.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define PROBE_BYTES (64u << 10)
#define FAST_LEVEL  4
#define GZIP_WINDOW 31 /* 15 bits and the gzip wrapper */

typedef struct {
    ZSTD_CCtx *zstd_out;
    ZSTD_DCtx *zstd_in;
    uint8_t *probe;   /* ZSTD_compressBound(PROBE_BYTES) */
    z_stream deflate; /* ready when deflate_level > 0 */
    z_stream inflate;
    int deflate_level;
    bool inflate_ready;
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
    if (c->deflate_level > 0)
        deflateEnd(&c->deflate);
    if (c->inflate_ready)
        inflateEnd(&c->inflate);
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
    /* A pack tells the length of each chunk and seals it: no need to store them once more. */
    if (c->zstd_out == NULL || c->zstd_in == NULL || c->probe == NULL ||
        ZSTD_isError(ZSTD_CCtx_setParameter(c->zstd_out, ZSTD_c_contentSizeFlag, 0)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(c->zstd_out, ZSTD_c_checksumFlag, 0)) ||
        pthread_setspecific(key, c) != 0) {
        free_contexts(c);
        return NULL;
    }
    return c;
}

static bool worth_it(size_t raw, size_t compressed)
{
    return compressed < raw && raw - compressed >= raw * 3 / 100;
}

/* Compressed length, or 0 when it does not fit into the room. */
static size_t try_zstd(contexts_t *c, int level, const void *data, size_t len, void *room,
                       size_t size)
{
    if (ZSTD_isError(ZSTD_CCtx_setParameter(c->zstd_out, ZSTD_c_compressionLevel, level)))
        return 0;
    size_t n = ZSTD_compress2(c->zstd_out, room, size, data, len);
    return ZSTD_isError(n) ? 0 : n;
}

/*
 * Fast levels are through with noise nearly as soon as with a probe of it; on small content the
 * probe would only add to the work.
 */
static bool probe_pays(bk_compression_t how, size_t len)
{
    bool fast = how.codec == BK_CODEC_ZSTD && how.level <= FAST_LEVEL;
    return len >= (fast ? 8 * PROBE_BYTES : PROBE_BYTES / 4);
}

static bool incompressible(contexts_t *c, const uint8_t *data, size_t len)
{
    /* The middle: headers and tags at the start of media compress and say nothing of the rest. */
    if (len > PROBE_BYTES) {
        data += (len - PROBE_BYTES) / 2;
        len = PROBE_BYTES;
    }
    size_t n = try_zstd(c, 1, data, len, c->probe, ZSTD_compressBound(PROBE_BYTES));
    return n == 0 || !worth_it(len, n);
}

static bool ready_deflate(contexts_t *c, int level)
{
    if (c->deflate_level == level)
        return deflateReset(&c->deflate) == Z_OK;
    if (c->deflate_level > 0)
        deflateEnd(&c->deflate);
    c->deflate_level = 0;
    memset(&c->deflate, 0, sizeof c->deflate);
    if (deflateInit2(&c->deflate, level, Z_DEFLATED, GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return false;
    c->deflate_level = level;
    return true;
}

/* Compressed length, or 0 when it does not fit into the room. */
static size_t try_gzip(contexts_t *c, int level, const uint8_t *data, size_t len, uint8_t *room,
                       size_t size)
{
    if (!ready_deflate(c, level))
        return 0;
    z_stream *z = &c->deflate;
    z->next_in = (Bytef *)(uintptr_t)data;
    z->avail_in = (uInt)len;
    z->next_out = room;
    z->avail_out = (uInt)size;
    return deflate(z, Z_FINISH) == Z_STREAM_END ? z->total_out : 0;
}

static bool level_known(bk_compression_t how)
{
    switch (how.codec) {
    case BK_CODEC_RAW:
        return true;
    case BK_CODEC_ZSTD:
        return how.level >= 1 && how.level <= 19;
    case BK_CODEC_GZIP:
        return how.level >= 1 && how.level <= 9;
    }
    return false;
}

bk_rc_t bk_compress(bk_compression_t how, bool probe, const void *data, size_t len, bk_buf_t *out,
                    bk_codec_t *used, bk_err_t *err)
{
    contexts_t *c = contexts();
    if (c == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "compress: out of memory");
    if (!level_known(how))
        return bk_err_set(err, BK_INVALID, "compress: there is no codec %d with level %d",
                          (int)how.codec, how.level);
    if (len > UINT32_MAX / 2)
        return bk_err_set(err, BK_TOO_LARGE, "compress: %zu bytes are too many at once", len);
    *used = BK_CODEC_RAW;
    if (how.codec != BK_CODEC_RAW && len > 0 &&
        !(probe && probe_pays(how, len) && incompressible(c, data, len))) {
        /* No more room than is worth it: a compressor that does not fit gives up early. */
        size_t size = len - len * 3 / 100;
        uint8_t *room = bk_buf_room(out, len);
        if (room == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "compress: out of memory");
        size_t n = how.codec == BK_CODEC_ZSTD ? try_zstd(c, how.level, data, len, room, size)
                                              : try_gzip(c, how.level, data, len, room, size);
        if (n > 0 && worth_it(len, n)) {
            out->len += n;
            *used = how.codec;
            return BK_OK;
        }
    }
    bk_buf_add(out, data, len);
    return bk_buf_ok(out) ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "compress: out of memory");
}

static bool gunzip(contexts_t *c, const void *data, size_t len, void *out, size_t raw_len)
{
    z_stream *z = &c->inflate;
    if (!c->inflate_ready) {
        memset(z, 0, sizeof *z);
        if (inflateInit2(z, GZIP_WINDOW) != Z_OK)
            return false;
        c->inflate_ready = true;
    } else if (inflateReset(z) != Z_OK) {
        return false;
    }
    z->next_in = (Bytef *)(uintptr_t)data;
    z->avail_in = (uInt)len;
    z->next_out = out;
    z->avail_out = (uInt)raw_len;
    return inflate(z, Z_FINISH) == Z_STREAM_END && z->total_out == raw_len && z->avail_in == 0;
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
        if (len > 0)
            memcpy(out, data, len);
        return BK_OK;
    case BK_CODEC_ZSTD:
        if (ZSTD_decompressDCtx(c->zstd_in, out, raw_len, data, len) == raw_len)
            return BK_OK;
        break;
    case BK_CODEC_GZIP:
        if (len <= UINT32_MAX && raw_len <= UINT32_MAX && gunzip(c, data, len, out, raw_len))
            return BK_OK;
        break;
    default:
        return bk_err_set(err, BK_CORRUPT, "decompress: codec %d is not known", (int)codec);
    }
    return bk_err_set(err, BK_CORRUPT, "decompress: the data is damaged");
}
