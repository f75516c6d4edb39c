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
}

size_t bk_chunker_cut(const bk_chunker_t *chunker, const uint8_t *data, size_t len)
{
    const uint64_t *gear = chunker->gear;
    uint64_t hash = 0;
    if (len <= BK_CHUNK_MIN)
        return len;
    size_t end = len < BK_CHUNK_MAX ? len : BK_CHUNK_MAX;
    size_t average = end < BK_CHUNK_AVG ? end : BK_CHUNK_AVG;
    size_t i = BK_CHUNK_MIN;
    for (; i < average; i++) {
        hash = (hash << 1) + gear[data[i]];
        if ((hash & MASK_HARD) == 0)
            return i + 1;
    }
    for (; i < end; i++) {
        hash = (hash << 1) + gear[data[i]];
        if ((hash & MASK_EASY) == 0)
            return i + 1;
    }
    return end;
}
