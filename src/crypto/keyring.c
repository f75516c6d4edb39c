/*
 * crypto/keyring.c: the secrets of one repository in locked memory, and the chunk ids made with
 * them.
 */
#include "crypto/keyring.h"

#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "crypto/keyring_private.h"

#define MAX_EPOCHS 64u

typedef struct {
    uint32_t number;
    int64_t created; /* ns */
    uint8_t secret[32];
} epoch_t;

struct bk_keyring_s {
    atomic_int sharers; /* besides the first */
    bool encrypted;
    uint8_t id_key[32];
    uint8_t chunker_key[32];
    uint32_t epoch_count;
    epoch_t epochs[MAX_EPOCHS]; /* rising numbers; the last one is for new objects */
};

bk_keyring_t *bk_keyring_plain(void)
{
    /* Public: without encryption the cut points are no secret either. */
    static const char label[] = "ngx-backup plain chunker key";
    bk_keyring_t *ring = bk_secret_alloc(sizeof *ring);
    if (ring == NULL)
        return NULL;
    bk_hmac_sha256(ring->chunker_key, label, sizeof label - 1, NULL, 0);
    return ring;
}

bk_keyring_t *bk_keyring_new(void)
{
    bk_keyring_t *ring = bk_secret_alloc(sizeof *ring);
    if (ring == NULL)
        return NULL;
    ring->encrypted = true;
    bk_random(ring->id_key, sizeof ring->id_key);
    bk_random(ring->chunker_key, sizeof ring->chunker_key);
    ring->epoch_count = 1;
    ring->epochs[0].number = 1;
    ring->epochs[0].created = bk_now();
    bk_random(ring->epochs[0].secret, 32);
    return ring;
}

bk_keyring_t *bk_keyring_share(const bk_keyring_t *ring)
{
    bk_keyring_t *shared = (bk_keyring_t *)(uintptr_t)ring;
    atomic_fetch_add(&shared->sharers, 1);
    return shared;
}

void bk_keyring_free(bk_keyring_t *ring)
{
    if (ring != NULL && atomic_fetch_sub(&ring->sharers, 1) == 0)
        bk_secret_free(ring, sizeof *ring);
}

bool bk_keyring_encrypted(const bk_keyring_t *ring)
{
    return ring->encrypted;
}

const uint8_t *bk_keyring_chunker_key(const bk_keyring_t *ring)
{
    return ring->chunker_key;
}

uint32_t bk_keyring_epoch(const bk_keyring_t *ring)
{
    return ring->encrypted ? ring->epochs[ring->epoch_count - 1].number : 0;
}

const uint8_t *bk_keyring_secret(const bk_keyring_t *ring, uint32_t epoch)
{
    for (uint32_t i = 0; i < ring->epoch_count; i++)
        if (ring->epochs[i].number == epoch)
            return ring->epochs[i].secret;
    return NULL;
}

void bk_chunk_id(const bk_keyring_t *ring, uint8_t type, const void *data, size_t len, bk_id_t *id)
{
    if (ring->encrypted)
        bk_hmac_sha256_tagged(id->b, ring->id_key, sizeof ring->id_key, &type, 1, data, len);
    else
        bk_sha256_tagged(id, type, data, len);
}

bk_rc_t bk_keyring_encode(const bk_keyring_t *ring, bk_buf_t *out, bk_err_t *err)
{
    if (!ring->encrypted)
        return bk_err_set(err, BK_INVALID, "a repository without encryption has no keyring");
    bk_buf_room(out, 69u + 44u * ring->epoch_count); /* growing would leave copies in the heap */
    bk_buf_u8(out, 1);
    bk_buf_add(out, ring->id_key, 32);
    bk_buf_add(out, ring->chunker_key, 32);
    bk_buf_u32(out, ring->epoch_count);
    for (uint32_t i = 0; i < ring->epoch_count; i++) {
        bk_buf_u32(out, ring->epochs[i].number);
        bk_buf_i64(out, ring->epochs[i].created);
        bk_buf_add(out, ring->epochs[i].secret, 32);
    }
    return bk_buf_ok(out) ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "write keyring: out of memory");
}

bk_rc_t bk_keyring_decode(const void *bytes, size_t len, bk_keyring_t **result, bk_err_t *err)
{
    bk_cur_t cur = bk_cur(bytes, len);
    bk_keyring_t *ring = bk_secret_alloc(sizeof *ring);
    if (ring == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read keyring: out of memory");
    uint8_t version = bk_cur_u8(&cur);
    const uint8_t *id_key = bk_cur_bytes(&cur, 32), *chunker_key = bk_cur_bytes(&cur, 32);
    uint32_t count = bk_cur_u32(&cur);
    bool right = bk_cur_ok(&cur) && version == 1 && count >= 1 && count <= MAX_EPOCHS;
    for (uint32_t i = 0; right && i < count; i++) {
        epoch_t *epoch = &ring->epochs[i];
        epoch->number = bk_cur_u32(&cur);
        epoch->created = bk_cur_i64(&cur);
        const uint8_t *secret = bk_cur_bytes(&cur, 32);
        right = secret != NULL && epoch->number > (i > 0 ? epoch[-1].number : 0);
        if (right)
            memcpy(epoch->secret, secret, 32);
    }
    if (!right || bk_cur_left(&cur) != 0) {
        bk_keyring_free(ring);
        if (version > 1)
            return bk_err_set(err, BK_UNSUPPORTED,
                              "the keyring is of a newer version of ngx-backup");
        return bk_err_set(err, BK_CORRUPT, "the keyring is damaged");
    }
    memcpy(ring->id_key, id_key, 32);
    memcpy(ring->chunker_key, chunker_key, 32);
    ring->epoch_count = count;
    ring->encrypted = true;
    *result = ring;
    return BK_OK;
}
