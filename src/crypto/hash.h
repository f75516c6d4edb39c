/*
 * crypto/hash.h: SHA-256 (FIPS 180-4), HMAC-SHA-256 (RFC 2104), HKDF-SHA-256 (RFC 5869) over
 * OpenSSL's EVP, and the 32-byte id that names everything.  Contexts are private to one thread; the
 * one-shot functions are safe anywhere.
 */
#ifndef BK_CRYPTO_HASH_H
#define BK_CRYPTO_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define BK_ID_SIZE 32
#define BK_ID_HEX  65 /* hex digits and NUL */

typedef struct {
    uint8_t b[BK_ID_SIZE];
} bk_id_t;

bool bk_id_equal(const bk_id_t *a, const bk_id_t *b);
bool bk_id_is_zero(const bk_id_t *id);
int bk_id_compare(const bk_id_t *a, const bk_id_t *b); /* memcmp order */
void bk_id_hex(char out[BK_ID_HEX], const bk_id_t *id);
bool bk_id_unhex(bk_id_t *id, const char *text, size_t len);

void bk_sha256(bk_id_t *out, const void *data, size_t len);

/* Incremental; bk_sha256_free(NULL) is fine.  new returns NULL when memory is exhausted. */
typedef struct bk_sha256_s bk_sha256_t;
bk_sha256_t *bk_sha256_new(void);
void bk_sha256_add(bk_sha256_t *ctx, const void *data, size_t len);
/* Digest of all added since new or the last end; the context is ready for the next message. */
void bk_sha256_end(bk_sha256_t *ctx, bk_id_t *out);
void bk_sha256_free(bk_sha256_t *ctx);

void bk_hmac_sha256(uint8_t out[32], const void *key, size_t key_len, const void *data, size_t len);
/* out_len: at most 8160 bytes (RFC 5869). */
void bk_hkdf_sha256(uint8_t *out, size_t out_len, const void *secret, size_t secret_len,
                    const void *salt, size_t salt_len, const void *info, size_t info_len);
/* Bytes from the kernel; the process stops when there are none (nothing safe could follow). */
void bk_random(void *out, size_t len);
/* Compare in time that depends on len only. */
bool bk_equal_secret(const void *a, const void *b, size_t len);

#endif
