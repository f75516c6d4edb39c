/*
 * crypto/keyring.h: the secrets of one repository, and the slots that wrap them.
 *
 *   keyring = { id key 32, chunker key 32, epochs: [ { number, secret 32, created } ] }
 *   slot    = JSON { format, id, kind "key"|"passphrase", label, created, kdf parameters,
 *                    nonce, verifier, wrapped }
 *   wrapped = AES-256-GCM(KEK, keyring)
 *   KEK     = HKDF of the raw 32-byte key, or of scrypt(passphrase, N=2^17 r=8 p=1)
 *
 * A repository without encryption has a keyring too: plain, with no secrets (bk_keyring_plain), so
 * that nothing above needs two ways.  Keyrings live in locked, zeroised memory outside core files,
 * are immutable once made, and may be read by any thread.
 */
#ifndef BK_CRYPTO_KEYRING_H
#define BK_CRYPTO_KEYRING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "crypto/hash.h"

#define BK_KEY_SIZE  32
#define BK_KEY_TEXT  64 /* room for the 56 characters, their dashes are not stored; NUL */
#define BK_UUID_SIZE 16

typedef struct bk_keyring_s bk_keyring_t;

/* New random secrets with epoch 1; or the secretless one.  NULL when memory is exhausted. */
bk_keyring_t *bk_keyring_new(void);
bk_keyring_t *bk_keyring_plain(void);
/* Once more of the same, each to be freed: it goes with the last. */
bk_keyring_t *bk_keyring_share(const bk_keyring_t *ring);
void bk_keyring_free(bk_keyring_t *ring); /* NULL is fine */
bool bk_keyring_encrypted(const bk_keyring_t *ring);
/* Gear table key of the chunker: 32 bytes; for a plain ring a public constant. */
const uint8_t *bk_keyring_chunker_key(const bk_keyring_t *ring);
/* Newest epoch's number (1..), 0 for plain. */
uint32_t bk_keyring_epoch(const bk_keyring_t *ring);

/* Chunk id: HMAC-SHA-256(id key, type || data), plain ring: SHA-256(type || data).  type: one byte
 * of repo/format.h. */
void bk_chunk_id(const bk_keyring_t *ring, uint8_t type, const void *data, size_t len, bk_id_t *id);

/* What opens a slot.  Exactly one is set; memory belongs to the caller, who wipes it. */
typedef struct {
    const uint8_t *key;     /* BK_KEY_SIZE bytes */
    const char *passphrase; /* NUL-terminated UTF-8 */
} bk_secret_t;

/*
 * Wrap into slot text (a JSON object).  label: up to 64 bytes of UTF-8 without controls, for
 * people; NULL is "".  BK_INVALID for another label, an empty passphrase, a plain ring.
 */
bk_rc_t bk_slot_seal(const bk_keyring_t *ring, const bk_secret_t *secret, const char *label,
                     bk_buf_t *slot, bk_err_t *err);
/*
 * BK_WRONG_KEY when this secret is not this slot's (or of the other kind); BK_CORRUPT when the slot
 * is damaged; BK_UNSUPPORTED when its passphrase asks for more work than this program does.
 */
bk_rc_t bk_slot_open(const void *slot, size_t len, const bk_secret_t *secret, bk_keyring_t **ring,
                     bk_err_t *err);
/* Public facts of a slot for listings: {id, kind, label, created}.  Owned by the caller. */
struct json_t;
bk_rc_t bk_slot_describe(const void *slot, size_t len, struct json_t **facts, bk_err_t *err);

/* The key a person keeps: 32 random bytes + 3 bytes checksum as 56 base32 characters in groups of
 * four. */
void bk_key_generate(uint8_t key[BK_KEY_SIZE]);
void bk_key_encode(char out[80], const uint8_t key[BK_KEY_SIZE]); /* with dashes */
bk_rc_t bk_key_decode(uint8_t key[BK_KEY_SIZE], const char *text, bk_err_t *err);
/*
 * Read a key file: the text form (comments after '#', blanks ignored) or exactly 32 raw bytes.  A
 * file that others can read is refused (BK_CONFIG), with the chmod that mends it.  32 printable
 * bytes are no raw key but a cut or mistyped one.
 */
bk_rc_t bk_key_read_file(const char *path, uint8_t key[BK_KEY_SIZE], bk_err_t *err);
/* First line of a file under the same permission rule, for passphrases and tokens; wipe out after
 * use. */
bk_rc_t bk_secret_read_file(const char *path, bk_buf_t *out, bk_err_t *err);

/* Locked, core-excluded, zeroised memory for secrets.  free(NULL) is fine. */
void *bk_secret_alloc(size_t size);
void bk_secret_free(void *p, size_t size);

#endif
