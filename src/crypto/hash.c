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
static bool ready; /* both of them are there */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_context(void *ctx)
{
    EVP_MD_CTX_free(ctx);
}

static void set_up(void)
{
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    ready = sha256 != NULL && pthread_key_create(&key, free_context) == 0;
}

/* This thread's context, or NULL when memory is exhausted. */
static EVP_MD_CTX *context(void)
{
    pthread_once(&once, set_up);
    if (!ready)
        return NULL;
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

/* A message may come in parts. */
typedef struct {
    const void *data;
    size_t len;
} part_t;

/*
 * A digest that fails means that memory is exhausted or OpenSSL broken: no result would be right,
 * and a wrong id would lose data, so the process stops.
 */
static void must(bool done)
{
    if (!done)
        __builtin_trap();
}

static void digest(uint8_t out[32], const part_t *parts, size_t count)
{
    EVP_MD_CTX *ctx = context();
    unsigned len = 0;
    must(ctx != NULL && EVP_DigestInit_ex2(ctx, sha256, NULL) == 1);
    for (size_t i = 0; i < count; i++)
        must(EVP_DigestUpdate(ctx, parts[i].data, parts[i].len) == 1);
    must(EVP_DigestFinal_ex(ctx, out, &len) == 1);
}

void bk_sha256(bk_id_t *out, const void *data, size_t len)
{
    digest(out->b, &(part_t){data, len}, 1);
}

void bk_sha256_tagged(bk_id_t *out, uint8_t tag, const void *data, size_t len)
{
    digest(out->b, (const part_t[]){{&tag, 1}, {data, len}}, 2);
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
    if (s->ctx == NULL || sha256 == NULL || EVP_DigestInit_ex2(s->ctx, sha256, NULL) != 1) {
        bk_sha256_free(s);
        return NULL;
    }
    return s;
}

void bk_sha256_add(bk_sha256_t *s, const void *data, size_t len)
{
    must(EVP_DigestUpdate(s->ctx, data, len) == 1);
}

void bk_sha256_end(bk_sha256_t *s, bk_id_t *out)
{
    unsigned len = 0;
    must(EVP_DigestFinal_ex(s->ctx, out->b, &len) == 1 &&
         EVP_DigestInit_ex2(s->ctx, sha256, NULL) == 1);
}

void bk_sha256_free(bk_sha256_t *s)
{
    if (s == NULL)
        return;
    EVP_MD_CTX_free(s->ctx);
    free(s);
}

/* RFC 2104, with the message in up to three parts. */
static void hmac(uint8_t out[32], const void *secret, size_t secret_len, const part_t *parts,
                 size_t count)
{
    uint8_t pad[BLOCK], inner[32], start[BLOCK] = {0};
    part_t all[4] = {{pad, BLOCK}};
    must(count < sizeof all / sizeof *all);
    if (secret_len > BLOCK)
        digest(start, &(part_t){secret, secret_len}, 1);
    else if (secret_len > 0)
        memcpy(start, secret, secret_len);
    for (size_t i = 0; i < BLOCK; i++)
        pad[i] = start[i] ^ 0x36;
    memcpy(all + 1, parts, count * sizeof *parts);
    digest(inner, all, count + 1);
    for (size_t i = 0; i < BLOCK; i++)
        pad[i] = start[i] ^ 0x5c;
    digest(out, (const part_t[]){{pad, BLOCK}, {inner, sizeof inner}}, 2);
    explicit_bzero(pad, sizeof pad);
    explicit_bzero(start, sizeof start);
}

void bk_hmac_sha256_tagged(uint8_t out[32], const void *secret, size_t secret_len, const void *tag,
                           size_t tag_len, const void *data, size_t len)
{
    hmac(out, secret, secret_len, (const part_t[]){{tag, tag_len}, {data, len}}, 2);
}

void bk_hmac_sha256(uint8_t out[32], const void *secret, size_t secret_len, const void *data,
                    size_t len)
{
    hmac(out, secret, secret_len, &(part_t){data, len}, 1);
}

/* RFC 5869: extract, then expand. */
void bk_hkdf_sha256(uint8_t *out, size_t out_len, const void *secret, size_t secret_len,
                    const void *salt, size_t salt_len, const void *info, size_t info_len)
{
    uint8_t prk[32], block[32];
    size_t have = 0;
    must(out_len <= 255 * sizeof block); /* the counter is one byte: keys would repeat */
    bk_hmac_sha256(prk, salt, salt_len, secret, secret_len);
    for (uint8_t n = 1; out_len > 0; n++) {
        hmac(block, prk, sizeof prk,
             (const part_t[]){{block, have}, {info, info_len}, {&n, sizeof n}}, 3);
        have = sizeof block;
        size_t take = out_len < sizeof block ? out_len : sizeof block;
        memcpy(out, block, take);
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
