/*
 * repo/chunker.c: FastCDC (Xia et al., USENIX ATC 2016): a Gear hash, a harder mask before the
 * average and an easier one after it.
 */
#include "repo/chunker.h"

#include <openssl/evp.h>
#include <string.h>

#include "repo/format.h"

/* The top bits of a Gear hash depend on the last 64 bytes; 23 bits before the average, 19 after
 * (average 2^21). */
#define MASK_HARD (0x7fffffull << 41)
#define MASK_EASY (0x7ffffull << 45)

void bk_chunker_init(bk_chunker_t *chunker, const uint8_t key[32])
{
    static const uint8_t iv[16], zeros[sizeof chunker->gear];
    uint8_t stream[sizeof chunker->gear];
    int n = 0;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    /* Without a table equal files would be cut differently in each run: better to stop. */
    if (ctx == NULL || EVP_EncryptInit_ex2(ctx, EVP_aes_256_ctr(), key, iv, NULL) != 1 ||
        EVP_EncryptUpdate(ctx, stream, &n, zeros, sizeof zeros) != 1)
        __builtin_trap();
    EVP_CIPHER_CTX_free(ctx);
    for (size_t i = 0; i < 256; i++) {
        uint64_t word = 0;
        for (size_t j = 0; j < 8; j++)
            word |= (uint64_t)stream[8 * i + j] << (8 * j);
        chunker->gear[i] = word;
    }
    explicit_bzero(stream, sizeof stream);
}

/*
 * The end of the first byte of [from, to) at which the masked bits of the hash are zero, or 0.
 * Unrolled: most bytes end nothing, and this loop sees every byte of every large file.
 */
static size_t scan(const uint64_t *gear, const uint8_t *data, size_t from, size_t to, uint64_t mask,
                   uint64_t *state)
{
    uint64_t hash = *state;
    size_t i = from;
#define STEP(n)                                                                                    \
    hash = (hash << 1) + gear[data[i + (n)]];                                                      \
    if (__builtin_expect((hash & mask) == 0, 0))                                                   \
        return i + (n) + 1;
    for (; i + 8 <= to; i += 8) {
        STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
    }
    for (; i < to; i++) {
        STEP(0)
    }
#undef STEP
    *state = hash;
    return 0;
}

size_t bk_chunker_cut(const bk_chunker_t *chunker, const uint8_t *data, size_t len)
{
    uint64_t hash = 0;
    if (len <= BK_CHUNK_MIN)
        return len;
    size_t end = len < BK_CHUNK_MAX ? len : BK_CHUNK_MAX;
    size_t average = end < BK_CHUNK_AVG ? end : BK_CHUNK_AVG;
    size_t cut = scan(chunker->gear, data, BK_CHUNK_MIN, average, MASK_HARD, &hash);
    if (cut == 0)
        cut = scan(chunker->gear, data, average, end, MASK_EASY, &hash);
    return cut > 0 ? cut : end;
}
