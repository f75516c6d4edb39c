/*
 * crypto/slot.c: one way into the keyring: a key file or a passphrase that unwraps it.
 */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "crypto/keyring.h"
#include "crypto/keyring_private.h"

#define SLOT_MAX       (64u << 10)
#define SALT_BYTES     16
#define NONCE_BYTES    12
#define TAG_BYTES      16
#define VERIFIER_BYTES 16
#define SCRYPT_N       (1u << 17)
#define SCRYPT_R       8u
#define SCRYPT_P       1u
#define SCRYPT_MEMORY  (256ull << 20) /* at most, N * r * 128 and a little */
#define SCRYPT_WORK    (1u << 24)     /* at most, N * r * p: sixteen times what is written here */
#define LABEL_MAX      64

typedef struct {
    uint64_t n, r, p;
    uint8_t salt[SALT_BYTES];
} scrypt_t;

/*
 * okm = key 32 || verifier 16.  The verifier is public: it tells a wrong secret from a damaged
 * slot.
 */
static bk_rc_t derive(const bk_secret_t *secret, const char *id, const scrypt_t *kdf,
                      uint8_t okm[32 + VERIFIER_BYTES], bk_err_t *err)
{
    static const char info[] = "ngx-backup key slot";
    uint8_t stretched[32];
    if (secret->key != NULL) {
        bk_hkdf_sha256(okm, 32 + VERIFIER_BYTES, secret->key, BK_KEY_SIZE, id, strlen(id), info,
                       sizeof info - 1);
        return BK_OK;
    }
    if (EVP_PBE_scrypt(secret->passphrase, strlen(secret->passphrase), kdf->salt, SALT_BYTES,
                       kdf->n, kdf->r, kdf->p, SCRYPT_MEMORY, stretched, sizeof stretched) != 1)
        return bk_err_set(err, BK_NO_MEMORY, "key slot: scrypt failed: it needs %llu MiB of memory",
                          (unsigned long long)(kdf->n * kdf->r * 128 >> 20));
    bk_hkdf_sha256(okm, 32 + VERIFIER_BYTES, stretched, sizeof stretched, id, strlen(id), info,
                   sizeof info - 1);
    explicit_bzero(stretched, sizeof stretched);
    return BK_OK;
}

/* AES-256-GCM over the keyring; encrypt: out holds len + tag; decrypt: len counts the tag. */
static bool cipher(bool encrypt, const uint8_t key[32], const uint8_t nonce[NONCE_BYTES],
                   const char *id, const uint8_t *in, size_t len, uint8_t *out)
{
    int n = 0;
    bool done = false;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (ctx == NULL)
        return false;
    if (encrypt) {
        done = EVP_EncryptInit_ex2(ctx, EVP_aes_256_gcm(), key, nonce, NULL) == 1 &&
               EVP_EncryptUpdate(ctx, NULL, &n, (const uint8_t *)id, (int)strlen(id)) == 1 &&
               EVP_EncryptUpdate(ctx, out, &n, in, (int)len) == 1 &&
               EVP_EncryptFinal_ex(ctx, out + len, &n) == 1 &&
               EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, out + len) == 1;
    } else if (len >= TAG_BYTES) {
        uint8_t tag[TAG_BYTES], rest[16];
        memcpy(tag, in + len - TAG_BYTES, TAG_BYTES);
        done = EVP_DecryptInit_ex2(ctx, EVP_aes_256_gcm(), key, nonce, NULL) == 1 &&
               EVP_DecryptUpdate(ctx, NULL, &n, (const uint8_t *)id, (int)strlen(id)) == 1 &&
               EVP_DecryptUpdate(ctx, out, &n, in, (int)(len - TAG_BYTES)) == 1 &&
               EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, tag) == 1 &&
               EVP_DecryptFinal_ex(ctx, rest, &n) == 1;
    }
    EVP_CIPHER_CTX_free(ctx);
    return done;
}

static json_t *hex_value(const uint8_t *bytes, size_t len)
{
    char *text = malloc(2 * len + 1);
    if (text == NULL)
        return NULL;
    bk_hex(text, bytes, len);
    json_t *value = json_string(text);
    free(text);
    return value;
}

/* Other labels would break the slot's JSON, or a terminal. */
static bool label_valid(const char *label)
{
    char shown[4 * LABEL_MAX + 1];
    size_t len = strlen(label);
    if (len > LABEL_MAX)
        return false;
    bk_printable(shown, sizeof shown, label);
    return strcmp(shown, label) == 0;
}

static bk_rc_t check_secret(const bk_secret_t *secret, bk_err_t *err)
{
    if ((secret->key == NULL) == (secret->passphrase == NULL))
        return bk_err_set(err, BK_INVALID, "key slot: give a key or a passphrase");
    if (secret->passphrase != NULL && secret->passphrase[0] == '\0')
        return bk_err_set(err, BK_INVALID, "key slot: the passphrase is empty");
    return BK_OK;
}

/* The slot's JSON; sealed is the keyring with its tag. */
static json_t *make_slot(const bk_secret_t *secret, const char *id, const char *label,
                         const scrypt_t *kdf, const uint8_t *verifier, const uint8_t *nonce,
                         const uint8_t *sealed, size_t len)
{
    char created[BK_TIME_TEXT];
    bk_time_format(created, bk_now());
    json_t *object =
        json_pack("{si ss ss ss ss so so so}", "format", 1, "id", id, "kind",
                  secret->key != NULL ? "key" : "passphrase", "label", label, "created", created,
                  "verifier", hex_value(verifier, VERIFIER_BYTES), "nonce",
                  hex_value(nonce, NONCE_BYTES), "wrapped", hex_value(sealed, len));
    if (object == NULL || secret->key != NULL)
        return object;
    json_t *scrypt = json_pack("{sI sI sI so}", "n", (json_int_t)kdf->n, "r", (json_int_t)kdf->r,
                               "p", (json_int_t)kdf->p, "salt", hex_value(kdf->salt, SALT_BYTES));
    if (json_object_set_new(object, "scrypt", scrypt) != 0) {
        json_decref(object);
        object = NULL;
    }
    return object;
}

bk_rc_t bk_slot_seal(const bk_keyring_t *ring, const bk_secret_t *secret, const char *label,
                     bk_buf_t *slot, bk_err_t *err)
{
    char id[BK_ULID_LEN + 1];
    scrypt_t kdf = {.n = SCRYPT_N, .r = SCRYPT_R, .p = SCRYPT_P};
    uint8_t okm[32 + VERIFIER_BYTES], nonce[NONCE_BYTES], *sealed = NULL;
    bk_buf_t plain;
    json_t *object = NULL;

    if (label == NULL)
        label = "";
    if (!label_valid(label))
        return bk_err_set(err, BK_INVALID,
                          "key slot: a label has up to %d bytes of printable UTF-8", LABEL_MAX);
    bk_rc_t rc = check_secret(secret, err);
    if (rc != BK_OK)
        return rc;
    bk_buf_init(&plain, SLOT_MAX);
    bk_ulid(id);
    bk_random(kdf.salt, sizeof kdf.salt);
    bk_random(nonce, sizeof nonce);
    rc = bk_keyring_encode(ring, &plain, err);
    if (rc == BK_OK)
        rc = derive(secret, id, &kdf, okm, err);
    if (rc == BK_OK) {
        sealed = malloc(plain.len + TAG_BYTES);
        if (sealed == NULL || !cipher(true, okm, nonce, id, plain.data, plain.len, sealed))
            rc = bk_err_set(err, BK_NO_MEMORY, "key slot: out of memory");
    }
    if (rc == BK_OK) {
        object = make_slot(secret, id, label, &kdf, okm + 32, nonce, sealed, plain.len + TAG_BYTES);
        rc = object != NULL ? bk_json_dump(object, true, slot, err)
                            : bk_err_set(err, BK_NO_MEMORY, "key slot: out of memory");
    }
    json_decref(object);
    free(sealed);
    bk_buf_wipe(&plain);
    explicit_bzero(okm, sizeof okm);
    return rc;
}

static bool take_hex(const json_t *object, const char *name, uint8_t *out, size_t len)
{
    const json_t *value = json_object_get(object, name);
    return json_is_string(value) &&
           bk_unhex(out, len, json_string_value(value), json_string_length(value));
}

static bool take_scrypt(const json_t *object, scrypt_t *kdf)
{
    const json_t *value = json_object_get(object, "scrypt");
    json_int_t n = json_integer_value(json_object_get(value, "n"));
    json_int_t r = json_integer_value(json_object_get(value, "r"));
    json_int_t p = json_integer_value(json_object_get(value, "p"));
    if (n < 2 || n > 1 << 30 || (n & (n - 1)) != 0 || r < 1 || r > 1024 || p < 1 || p > 1024)
        return false;
    kdf->n = (uint64_t)n;
    kdf->r = (uint64_t)r;
    kdf->p = (uint64_t)p;
    return take_hex(value, "salt", kdf->salt, SALT_BYTES);
}

/* Checked members of a slot; object is owned by the caller. */
static bk_rc_t parse(const void *slot, size_t len, json_t **object, bool *by_key, bk_err_t *err)
{
    json_t *value = NULL;
    if (len > SLOT_MAX || bk_json_parse(slot, len, &value, NULL) != BK_OK)
        return bk_err_set(err, BK_CORRUPT, "the key slot is damaged");
    const char *kind = json_string_value(json_object_get(value, "kind"));
    const char *id = json_string_value(json_object_get(value, "id"));
    json_int_t format = json_integer_value(json_object_get(value, "format"));
    if (format > 1) {
        json_decref(value);
        return bk_err_set(err, BK_UNSUPPORTED, "the key slot is of a newer version of ngx-backup");
    }
    if (format != 1 || id == NULL || strlen(id) != BK_ULID_LEN || kind == NULL ||
        (strcmp(kind, "key") != 0 && strcmp(kind, "passphrase") != 0)) {
        json_decref(value);
        return bk_err_set(err, BK_CORRUPT, "the key slot is damaged");
    }
    *by_key = strcmp(kind, "key") == 0;
    *object = value;
    return BK_OK;
}

static bk_rc_t open_parsed(const json_t *object, bool by_key, const bk_secret_t *secret,
                           bk_keyring_t **ring, bk_err_t *err)
{
    uint8_t okm[32 + VERIFIER_BYTES], verifier[VERIFIER_BYTES], nonce[NONCE_BYTES];
    const char *id = json_string_value(json_object_get(object, "id"));
    const json_t *wrapped = json_object_get(object, "wrapped");
    size_t len = json_string_length(wrapped) / 2;
    scrypt_t kdf = {0};
    uint8_t *sealed = NULL;

    if (by_key != (secret->key != NULL))
        return bk_err_set(err, BK_WRONG_KEY, "this slot opens by %s",
                          by_key ? "key" : "passphrase");
    /* A slot is not authenticated before the work is done, and must not exhaust the machine. */
    if (!by_key && take_scrypt(object, &kdf) &&
        (kdf.n * kdf.r * 128 > SCRYPT_MEMORY / 2 || kdf.n * kdf.r * kdf.p > SCRYPT_WORK))
        return bk_err_set(err, BK_UNSUPPORTED,
                          "the key slot asks for more memory or time than this program gives");
    if (!take_hex(object, "verifier", verifier, sizeof verifier) ||
        !take_hex(object, "nonce", nonce, sizeof nonce) || len <= TAG_BYTES ||
        (!by_key && !take_scrypt(object, &kdf)))
        return bk_err_set(err, BK_CORRUPT, "the key slot is damaged");
    bk_rc_t rc = derive(secret, id, &kdf, okm, err);
    if (rc != BK_OK)
        return rc;
    sealed = bk_secret_alloc(2 * len);
    if (sealed == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "key slot: out of memory");
    else if (!bk_equal_secret(okm + 32, verifier, sizeof verifier))
        rc = bk_err_set(err, BK_WRONG_KEY, "the %s is not this slot's",
                        by_key ? "key" : "passphrase");
    else if (!take_hex(object, "wrapped", sealed, len) ||
             !cipher(false, okm, nonce, id, sealed, len, sealed + len))
        rc = bk_err_set(err, BK_CORRUPT, "the key slot is damaged");
    else
        rc = bk_keyring_decode(sealed + len, len - TAG_BYTES, ring, err);
    bk_secret_free(sealed, 2 * len);
    explicit_bzero(okm, sizeof okm);
    return rc;
}

bk_rc_t bk_slot_open(const void *slot, size_t len, const bk_secret_t *secret, bk_keyring_t **ring,
                     bk_err_t *err)
{
    json_t *object;
    bool by_key;
    bk_rc_t rc = check_secret(secret, err);
    if (rc == BK_OK)
        rc = parse(slot, len, &object, &by_key, err);
    if (rc != BK_OK)
        return rc;
    rc = open_parsed(object, by_key, secret, ring, err);
    json_decref(object);
    return rc;
}

bk_rc_t bk_slot_describe(const void *slot, size_t len, json_t **facts, bk_err_t *err)
{
    json_t *object;
    bool by_key;
    bk_rc_t rc = parse(slot, len, &object, &by_key, err);
    if (rc != BK_OK)
        return rc;
    static const char *const shown[] = {"id", "kind", "label", "created"};
    json_t *result = json_object();
    int failed = result == NULL;
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        char text[4 * LABEL_MAX + 1];
        const char *value = json_string_value(json_object_get(object, shown[i]));
        /* Nobody vouches for a slot's texts: they must not command a terminal. */
        bk_printable(text, sizeof text, value != NULL ? value : "");
        failed |= json_object_set_new(result, shown[i], json_string(text));
    }
    json_decref(object);
    if (failed) {
        json_decref(result);
        return bk_err_set(err, BK_NO_MEMORY, "key slot: out of memory");
    }
    *facts = result;
    return BK_OK;
}
