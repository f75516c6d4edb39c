/*
 * crypto/keyring_private.h: what the files of crypto/ know of each other.
 */
#ifndef BK_CRYPTO_KEYRING_PRIVATE_H
#define BK_CRYPTO_KEYRING_PRIVATE_H

#include "crypto/keyring.h"

/* SHA-256(tag || data) and HMAC-SHA-256(secret, tag || data) without copying data. */
void bk_sha256_tagged(bk_id_t *out, uint8_t tag, const void *data, size_t len);
void bk_hmac_sha256_tagged(uint8_t out[32], const void *secret, size_t secret_len, const void *tag,
                           size_t tag_len, const void *data, size_t len);

/* The 32-byte secret of an epoch, or NULL. */
const uint8_t *bk_keyring_secret(const bk_keyring_t *ring, uint32_t epoch);

/*
 * A keyring as bytes, for wrapping:
 *   version u8 1 | id key 32 | chunker key 32 | epochs u32 | epochs x { number u32 | created i64 ns
 * | secret 32 }
 */
bk_rc_t bk_keyring_encode(const bk_keyring_t *ring, bk_buf_t *out, bk_err_t *err);
bk_rc_t bk_keyring_decode(const void *bytes, size_t len, bk_keyring_t **ring, bk_err_t *err);

#endif
