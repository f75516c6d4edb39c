/*
 * crypto/object.c: one AES-256-GCM key an object, positions as nonces.  EVP contexts are kept per
 * thread.
 */
#include "crypto/object.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/codec.h"
#include "crypto/keyring_private.h"

#define MAGIC     "NGXBKP\0\1"
#define MAX_WHOLE (1u << 30)

enum { AT_KIND = 8, AT_FLAGS = 10, AT_EPOCH = 12, AT_UUID = 16, AT_SALT = 32, AT_COMMITMENT = 64 };

static EVP_CIPHER *gcm;
static pthread_key_t thread_key;
static bool ready; /* both of them are there */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_context(void *ctx)
{
    EVP_CIPHER_CTX_free(ctx);
}

static void set_up(void)
{
    gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    ready = gcm != NULL && pthread_key_create(&thread_key, free_context) == 0;
}

static EVP_CIPHER_CTX *context(void)
{
    pthread_once(&once, set_up);
    if (!ready)
        return NULL;
    EVP_CIPHER_CTX *ctx = pthread_getspecific(thread_key);
    if (ctx == NULL) {
        ctx = EVP_CIPHER_CTX_new();
        if (ctx != NULL && pthread_setspecific(thread_key, ctx) != 0) {
            EVP_CIPHER_CTX_free(ctx);
            ctx = NULL;
        }
    }
    return ctx;
}

static void derive(const uint8_t secret[32], const uint8_t header[BK_OBJECT_HEADER],
                   uint8_t key_and_commitment[BK_KEY_SIZE + 16])
{
    static const char label[] = "ngx-backup/";
    uint8_t info[sizeof label - 1 + 2 + BK_UUID_SIZE];
    memcpy(info, label, sizeof label - 1);
    memcpy(info + sizeof label - 1, header + AT_KIND, 2);
    memcpy(info + sizeof label - 1 + 2, header + AT_UUID, BK_UUID_SIZE);
    bk_hkdf_sha256(key_and_commitment, BK_KEY_SIZE + 16, secret, 32, header + AT_SALT, 32, info,
                   sizeof info);
}

bk_rc_t bk_object_key_new(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                          bk_kind_t kind, const bk_id_t *content, bk_object_key_t *key,
                          bk_err_t *err)
{
    uint8_t random[64], okm[BK_KEY_SIZE + 16], salt_key[32];
    const uint8_t *secret;

    memset(key, 0, sizeof *key);
    memcpy(key->header, MAGIC, 8);
    key->header[AT_KIND] = (uint8_t)kind;
    bk_put_u32(key->header + AT_EPOCH, bk_keyring_epoch(ring));
    memcpy(key->header + AT_UUID, uuid, BK_UUID_SIZE);
    if (!bk_keyring_encrypted(ring)) {
        bk_random(key->header + AT_SALT, 32);
        return BK_OK;
    }
    secret = bk_keyring_secret(ring, bk_keyring_epoch(ring));
    if (secret == NULL)
        return bk_err_set(err, BK_FAILED, "seal object: the keyring has no secret for its epoch");
    /* The salt commits to the content: even a repeated random value gives equal keys only for equal
     * plaintext. */
    bk_random(random, 32);
    memcpy(random + 32, content->b, 32);
    bk_hkdf_sha256(salt_key, sizeof salt_key, secret, 32, NULL, 0, "salt", 4);
    bk_hmac_sha256(key->header + AT_SALT, salt_key, sizeof salt_key, random, sizeof random);
    derive(secret, key->header, okm);
    memcpy(key->key, okm, BK_KEY_SIZE);
    memcpy(key->header + AT_COMMITMENT, okm + BK_KEY_SIZE, 16);
    key->encrypted = true;
    explicit_bzero(okm, sizeof okm);
    explicit_bzero(salt_key, sizeof salt_key);
    return BK_OK;
}

bk_rc_t bk_object_key_open(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                           bk_kind_t kind, const uint8_t header[BK_OBJECT_HEADER],
                           bk_object_key_t *key, bk_err_t *err)
{
    uint8_t okm[BK_KEY_SIZE + 16];
    uint32_t epoch = bk_get_u32(header + AT_EPOCH);

    memset(key, 0, sizeof *key);
    if (memcmp(header, MAGIC, 8) != 0)
        return bk_err_set(err, BK_CORRUPT, "not an object of ngx-backup, or damaged: wrong magic");
    if (header[AT_KIND] != (uint8_t)kind || header[AT_KIND + 1] != 0 || header[AT_FLAGS] != 0 ||
        header[AT_FLAGS + 1] != 0)
        return bk_err_set(err, BK_CORRUPT, "the object has another kind than its name says");
    if (memcmp(header + AT_UUID, uuid, BK_UUID_SIZE) != 0)
        return bk_err_set(err, BK_CORRUPT, "the object belongs to another repository");
    memcpy(key->header, header, BK_OBJECT_HEADER);
    if (!bk_keyring_encrypted(ring)) {
        if (epoch != 0)
            return bk_err_set(err, BK_CORRUPT, "the object is encrypted, the repository is not");
        return BK_OK;
    }
    if (epoch == 0)
        return bk_err_set(err, BK_CORRUPT, "the object is not encrypted, the repository is");
    const uint8_t *secret = bk_keyring_secret(ring, epoch);
    if (secret == NULL)
        return bk_err_set(err, BK_WRONG_KEY, "the keyring does not know key epoch %u of the object",
                          (unsigned)epoch);
    derive(secret, header, okm);
    bool same = bk_equal_secret(okm + BK_KEY_SIZE, header + AT_COMMITMENT, 16);
    if (same)
        memcpy(key->key, okm, BK_KEY_SIZE);
    explicit_bzero(okm, sizeof okm);
    if (!same)
        return bk_err_set(err, BK_WRONG_KEY,
                          "the object's header is damaged or was written with another key");
    key->encrypted = true;
    return BK_OK;
}

void bk_object_key_wipe(bk_object_key_t *key)
{
    explicit_bzero(key->key, sizeof key->key);
    /* This thread's context has the key too, expanded; a reset clears it. */
    pthread_once(&once, set_up);
    EVP_CIPHER_CTX *ctx = key->encrypted && ready ? pthread_getspecific(thread_key) : NULL;
    if (ctx != NULL)
        EVP_CIPHER_CTX_reset(ctx);
}

size_t bk_object_overhead(const bk_object_key_t *key)
{
    return key->encrypted ? BK_OBJECT_TAG : 0;
}

static void make_nonce(uint8_t nonce[12], uint32_t domain, uint64_t position)
{
    for (int i = 0; i < 4; i++)
        nonce[i] = (uint8_t)(domain >> (24 - 8 * i));
    for (int i = 0; i < 8; i++)
        nonce[4 + i] = (uint8_t)(position >> (56 - 8 * i));
}

bk_rc_t bk_object_seal(const bk_object_key_t *key, uint32_t domain, uint64_t position,
                       const void *aad, size_t aad_len, const void *in, size_t len, void *out,
                       bk_err_t *err)
{
    uint8_t nonce[12], *to = out;
    int n = 0;
    if (!key->encrypted) {
        if (len > 0 && in != out)
            memmove(out, in, len);
        return BK_OK;
    }
    EVP_CIPHER_CTX *ctx = context();
    make_nonce(nonce, domain, position);
    if (ctx == NULL || len > INT32_MAX ||
        EVP_EncryptInit_ex2(ctx, gcm, key->key, nonce, NULL) != 1 ||
        EVP_EncryptUpdate(ctx, NULL, &n, key->header, BK_OBJECT_HEADER) != 1 ||
        (aad_len > 0 && EVP_EncryptUpdate(ctx, NULL, &n, aad, (int)aad_len) != 1) ||
        (len > 0 && EVP_EncryptUpdate(ctx, to, &n, in, (int)len) != 1) ||
        EVP_EncryptFinal_ex(ctx, to + len, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, BK_OBJECT_TAG, to + len) != 1)
        return bk_err_set(err, BK_FAILED, "encrypt: OpenSSL failed");
    return BK_OK;
}

bk_rc_t bk_object_unseal(const bk_object_key_t *key, uint32_t domain, uint64_t position,
                         const void *aad, size_t aad_len, const void *in, size_t len, void *out,
                         bk_err_t *err)
{
    const uint8_t *from = in;
    uint8_t nonce[12], tag[BK_OBJECT_TAG];
    int n = 0;
    if (!key->encrypted) {
        if (len > 0 && in != out)
            memmove(out, in, len);
        return BK_OK;
    }
    if (len < BK_OBJECT_TAG || len > INT32_MAX)
        return bk_err_set(err, BK_CORRUPT, "decrypt: the part is too short or too long");
    len -= BK_OBJECT_TAG;
    EVP_CIPHER_CTX *ctx = context();
    make_nonce(nonce, domain, position);
    memcpy(tag, from + len, BK_OBJECT_TAG);
    if (ctx == NULL || EVP_DecryptInit_ex2(ctx, gcm, key->key, nonce, NULL) != 1 ||
        EVP_DecryptUpdate(ctx, NULL, &n, key->header, BK_OBJECT_HEADER) != 1 ||
        (aad_len > 0 && EVP_DecryptUpdate(ctx, NULL, &n, aad, (int)aad_len) != 1) ||
        (len > 0 && EVP_DecryptUpdate(ctx, out, &n, from, (int)len) != 1) ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, BK_OBJECT_TAG, tag) != 1)
        return bk_err_set(err, BK_FAILED, "decrypt: OpenSSL failed");
    uint8_t rest[16];
    if (EVP_DecryptFinal_ex(ctx, rest, &n) != 1)
        return bk_err_set(err, BK_CORRUPT, "decrypt: the data is damaged");
    return BK_OK;
}

bk_rc_t bk_object_wrap(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE], bk_kind_t kind,
                       const void *data, size_t len, bk_buf_t *out, bk_err_t *err)
{
    static const bk_compression_t how = {.codec = BK_CODEC_ZSTD, .level = 3};
    bk_object_key_t key = {0};
    bk_buf_t packed;
    bk_codec_t codec;
    bk_id_t digest;
    uint8_t about[5];

    if (len > MAX_WHOLE)
        return bk_err_set(err, BK_TOO_LARGE, "write object: %zu bytes are too many", len);
    bk_buf_init(&packed, MAX_WHOLE + 64);
    bk_rc_t rc = bk_compress(how, false, data, len, &packed, &codec, err);
    if (rc == BK_OK) {
        bk_sha256(&digest, packed.data, packed.len);
        rc = bk_object_key_new(ring, uuid, kind, &digest, &key, err);
    }
    if (rc == BK_OK) {
        size_t sealed = packed.len + bk_object_overhead(&key);
        about[0] = (uint8_t)codec;
        bk_put_u32(about + 1, (uint32_t)len);
        bk_buf_add(out, key.header, BK_OBJECT_HEADER);
        bk_buf_add(out, about, sizeof about);
        uint8_t *room = bk_buf_room(out, sealed);
        if (room == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "write object: out of memory");
        else
            rc = bk_object_seal(&key, BK_PART_WHOLE, 0, about, sizeof about, packed.data,
                                packed.len, room, err);
        if (rc == BK_OK)
            out->len += sealed;
    }
    bk_object_key_wipe(&key);
    bk_buf_free(&packed);
    return rc;
}

bk_rc_t bk_object_unwrap(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE], bk_kind_t kind,
                         const void *object, size_t len, bk_buf_t *out, bk_err_t *err)
{
    bk_object_key_t key = {0};
    bk_cur_t cur = bk_cur(object, len);
    const uint8_t *header = bk_cur_bytes(&cur, BK_OBJECT_HEADER);
    const uint8_t *about = bk_cur_bytes(&cur, 5);
    if (!bk_cur_ok(&cur))
        return bk_err_set(err, BK_CORRUPT, "the object is cut off");
    uint32_t raw = bk_get_u32(about + 1);
    bk_rc_t rc = bk_object_key_open(ring, uuid, kind, header, &key, err);
    if (rc != BK_OK)
        return rc;
    size_t sealed = bk_cur_left(&cur), overhead = bk_object_overhead(&key);
    if (sealed < overhead || raw > out->max - out->len) {
        bk_object_key_wipe(&key);
        return bk_err_set(err, BK_CORRUPT, "the object's lengths do not fit");
    }
    bk_buf_t packed;
    bk_buf_init(&packed, sealed + 1);
    uint8_t *plain = bk_buf_room(&packed, sealed + 1), *room = bk_buf_room(out, raw);
    if (plain == NULL || room == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "read object: out of memory");
    else
        rc = bk_object_unseal(&key, BK_PART_WHOLE, 0, about, 5, cur.p, sealed, plain, err);
    if (rc == BK_OK)
        rc = bk_decompress((bk_codec_t)about[0], plain, sealed - overhead, room, raw, err);
    if (rc == BK_OK)
        out->len += raw;
    bk_buf_wipe(&packed);
    bk_object_key_wipe(&key);
    return rc;
}
