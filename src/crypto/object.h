/*
 * crypto/object.h: the envelope of every object on a storage.
 *
 *   header 80 B = magic "NGXBKP\0\1" | kind u16 | flags u16 | key epoch u32
 *                 | repository uuid 16 | salt 32 | commitment 16
 *   salt        = HMAC(HKDF(secret, "salt"), 32 random bytes || digest of the content)
 *   key 32 || commitment 16
 *               = HKDF-SHA-256(secret, salt, "ngx-backup/" || kind u16 || uuid)
 *   part        = AES-256-GCM(key, nonce = u32be(domain) || u64be(position),
 *                             AAD = header || aad) || tag 16
 *
 * One key encrypts one object and the position in it is the nonce, so a (key, nonce) pair cannot
 * repeat whatever crashes or is cloned (NIST SP 800-38D 8.2.1).  The commitment tells a wrong key
 * from damage.  A plain ring uses the same layout with epoch 0, a random salt, commitment zero and
 * parts as they are, without tags; their integrity is the SHA-256 in the name.
 */
#ifndef BK_CRYPTO_OBJECT_H
#define BK_CRYPTO_OBJECT_H

#include "crypto/keyring.h"

#define BK_OBJECT_HEADER 80
#define BK_OBJECT_TAG    16

/* What the object is.  Stored: never change one. */
typedef enum {
    BK_KIND_PACK = 1, /* data: file chunks, database blocks */
    BK_KIND_META = 2, /* tree nodes, maps, attribute blobs */
    BK_KIND_INDEX = 3,
    BK_KIND_SNAPSHOT = 4,
    BK_KIND_WAL = 5,
    BK_KIND_LEASE = 6,
    BK_KIND_CONDEMNED = 7
} bk_kind_t;

/* Nonce domains. */
enum { BK_PART_FRAME = 1, BK_PART_DIRECTORY = 2, BK_PART_WHOLE = 3 };

typedef struct {
    uint8_t header[BK_OBJECT_HEADER];
    uint8_t key[BK_KEY_SIZE];
    bool encrypted;
} bk_object_key_t;

/*
 * A fresh key for a new object.  content: a digest that commits to everything that will be
 * encrypted, such as its SHA-256, so that even a machine whose random numbers repeat (a cloned one)
 * never uses one key for two contents.  Not looked at for a plain ring.
 */
bk_rc_t bk_object_key_new(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                          bk_kind_t kind, const bk_id_t *content, bk_object_key_t *key,
                          bk_err_t *err);
/* The key of an existing object by its header: BK_CORRUPT (magic, kind, uuid), BK_WRONG_KEY
 * (commitment, epoch). */
bk_rc_t bk_object_key_open(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                           bk_kind_t kind, const uint8_t header[BK_OBJECT_HEADER],
                           bk_object_key_t *key, bk_err_t *err);
/* Zeroise it, also in the calling thread's cipher context. */
void bk_object_key_wipe(bk_object_key_t *key);
/* Bytes a sealed part is longer than its content: 16 or 0. */
size_t bk_object_overhead(const bk_object_key_t *key);

/* out: len + overhead bytes, may be in. */
bk_rc_t bk_object_seal(const bk_object_key_t *key, uint32_t domain, uint64_t position,
                       const void *aad, size_t aad_len, const void *in, size_t len, void *out,
                       bk_err_t *err);
/* len counts the overhead; out: len - overhead bytes, may be in.  BK_CORRUPT when it does not
 * authenticate. */
bk_rc_t bk_object_unseal(const bk_object_key_t *key, uint32_t domain, uint64_t position,
                         const void *aad, size_t aad_len, const void *in, size_t len, void *out,
                         bk_err_t *err);

/*
 * A whole small object, used for index segments, snapshots, leases:
 *
 *   header | codec u8 | raw u32 | part(domain WHOLE, position 0, aad = codec | raw) of codec(data)
 *
 * unwrap appends at most out->max - out->len bytes and checks every length.
 */
bk_rc_t bk_object_wrap(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE], bk_kind_t kind,
                       const void *data, size_t len, bk_buf_t *out, bk_err_t *err);
bk_rc_t bk_object_unwrap(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE], bk_kind_t kind,
                         const void *object, size_t len, bk_buf_t *out, bk_err_t *err);

#endif
