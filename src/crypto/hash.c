/*
 * crypto/hash.c: digests over OpenSSL's EVP.  Algorithms are fetched once; each thread keeps its
 * own contexts, since a hundred thousand small chunks must not cost as many context creations.
 */
#include "crypto/hash.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/str.h"
#include "crypto/keyring_private.h"

#define BLOCK 64 /* bytes of a SHA-256 block */

static EVP_MD *sha256;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_context(void *ctx)
{
    EVP_MD_CTX_free(ctx);
}

static void set_up(void)
{
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    pthread_key_create(&key, free_context);
}

/* This thread's context, or NULL when memory is exhausted. */
static EVP_MD_CTX *context(void)
{
    pthread_once(&once, set_up);
    EVP_MD_CTX *ctx = pthread_getspecific(key);
    if (ctx == NULL) {
        ctx = EVP_MD_CTX_new();
        if (ctx != NULL && pthread_setspecific(key, ctx) != 0) {
            EVP_MD_CTX_free(ctx);
            ctx = NULL;
        }
    }
    return ctx;
}

bool bk_id_equal(const bk_id_t *a, const bk_id_t *b)
{
    return memcmp(a->b, b->b, BK_ID_SIZE) == 0;
}

bool bk_id_is_zero(const bk_id_t *id)
{
    static const bk_id_t zero;
    return bk_id_equal(id, &zero);
}

int bk_id_compare(const bk_id_t *a, const bk_id_t *b)
{
    return memcmp(a->b, b->b, BK_ID_SIZE);
}

void bk_id_hex(char out[BK_ID_HEX], const bk_id_t *id)
{
    bk_hex(out, id->b, BK_ID_SIZE);
}

bool bk_id_unhex(bk_id_t *id, const char *text, size_t len)
{
    return bk_unhex(id->b, BK_ID_SIZE, text, len);
}

/*
 * One message of up to three parts.  A digest that fails means that memory is exhausted or OpenSSL
 * broken: no result would be right, and a wrong id would lose data, so the process stops.
 */
static void digest(uint8_t out[32], const void *a, size_t a_len, const void *b, size_t b_len,
                   const void *c, size_t c_len)
{
    EVP_MD_CTX *ctx = context();
    unsigned len = 0;
    if (ctx == NULL || sha256 == NULL || EVP_DigestInit_ex2(ctx, sha256, NULL) != 1 ||
        EVP_DigestUpdate(ctx, a, a_len) != 1 || EVP_DigestUpdate(ctx, b, b_len) != 1 ||
        EVP_DigestUpdate(ctx, c, c_len) != 1 || EVP_DigestFinal_ex(ctx, out, &len) != 1)
        __builtin_trap();
}

void bk_sha256(bk_id_t *out, const void *data, size_t len)
{
    digest(out->b, data, len, NULL, 0, NULL, 0);
}

void bk_sha256_tagged(bk_id_t *out, uint8_t tag, const void *data, size_t len)
{
    digest(out->b, &tag, 1, data, len, NULL, 0);
}

struct bk_sha256_s {
    EVP_MD_CTX *ctx;
};

bk_sha256_t *bk_sha256_new(void)
{
    pthread_once(&once, set_up);
    bk_sha256_t *s = malloc(sizeof *s);
    if (s == NULL)
        return NULL;
    s->ctx = EVP_MD_CTX_new();
    if (s->ctx == NULL || EVP_DigestInit_ex2(s->ctx, sha256, NULL) != 1) {
        bk_sha256_free(s);
        return NULL;
    }
    return s;
}

void bk_sha256_add(bk_sha256_t *s, const void *data, size_t len)
{
    EVP_DigestUpdate(s->ctx, data, len);
}

void bk_sha256_end(bk_sha256_t *s, bk_id_t *out)
{
    unsigned len = 0;
    EVP_DigestFinal_ex(s->ctx, out->b, &len);
    EVP_DigestInit_ex2(s->ctx, sha256, NULL);
}

void bk_sha256_free(bk_sha256_t *s)
{
    if (s == NULL)
        return;
    EVP_MD_CTX_free(s->ctx);
    free(s);
}

/* RFC 2104, with the message in two parts. */
void bk_hmac_sha256_tagged(uint8_t out[32], const void *secret, size_t secret_len, const void *tag,
                           size_t tag_len, const void *data, size_t len)
{
    uint8_t pad[BLOCK], inner[32], start[BLOCK] = {0};
    if (secret_len > BLOCK)
        digest(start, secret, secret_len, NULL, 0, NULL, 0);
    else if (secret_len > 0)
        memcpy(start, secret, secret_len);
    for (size_t i = 0; i < BLOCK; i++)
        pad[i] = start[i] ^ 0x36;
    digest(inner, pad, BLOCK, tag, tag_len, data, len);
    for (size_t i = 0; i < BLOCK; i++)
        pad[i] = start[i] ^ 0x5c;
    digest(out, pad, BLOCK, inner, sizeof inner, NULL, 0);
    explicit_bzero(pad, sizeof pad);
    explicit_bzero(start, sizeof start);
}

void bk_hmac_sha256(uint8_t out[32], const void *secret, size_t secret_len, const void *data,
                    size_t len)
{
    bk_hmac_sha256_tagged(out, secret, secret_len, NULL, 0, data, len);
}

/* RFC 5869: extract, then expand. */
void bk_hkdf_sha256(uint8_t *out, size_t out_len, const void *secret, size_t secret_len,
                    const void *salt, size_t salt_len, const void *info, size_t info_len)
{
    uint8_t prk[32], block[32 + 128 + 1];
    size_t have = 0;
    bk_hmac_sha256(prk, salt, salt_len, secret, secret_len);
    if (info_len > 128)
        info_len = 128;
    for (uint8_t n = 1; out_len > 0; n++) {
        uint8_t next[32];
        memcpy(block + have, info, info_len);
        block[have + info_len] = n;
        bk_hmac_sha256(next, prk, sizeof prk, block, have + info_len + 1);
        size_t take = out_len < sizeof next ? out_len : sizeof next;
        memcpy(out, next, take);
        memcpy(block, next, sizeof next);
        have = sizeof next;
        out += take;
        out_len -= take;
    }
    explicit_bzero(prk, sizeof prk);
    explicit_bzero(block, sizeof block);
}

void bk_random(void *out, size_t len)
{
    uint8_t *p = out;
    while (len > 0) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            __builtin_trap(); /* a key from anything else would be no key */
        p += n;
        len -= (size_t)n;
    }
}

bool bk_equal_secret(const void *a, const void *b, size_t len)
{
    const volatile uint8_t *x = a, *y = b;
    uint8_t difference = 0;
    for (size_t i = 0; i < len; i++)
        difference |= x[i] ^ y[i];
    return difference == 0;
}
