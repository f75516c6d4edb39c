/*
 * t/fuzz/keyring.c: key slots (JSON) and, behind a zero byte, keyrings as bytes.
 */
#include "fuzz.h"

#include <jansson.h>

#include "crypto/keyring.h"
#include "crypto/keyring_private.h"

static const uint8_t key[BK_KEY_SIZE] = {7};

static void seeds(void)
{
    bk_keyring_t *ring = bk_keyring_new();
    bk_secret_t secret = {.key = key};
    bk_buf_t out;
    bk_err_t err = {0};
    bk_buf_init(&out, 1u << 16);
    FUZZ_CHECK(bk_slot_seal(ring, &secret, "label", &out, &err) == BK_OK);
    fuzz_seed(out.data, out.len);
    bk_buf_reset(&out);
    bk_buf_u8(&out, 0);
    FUZZ_CHECK(bk_keyring_encode(ring, &out, &err) == BK_OK);
    fuzz_seed(out.data, out.len);
    bk_buf_free(&out);
    bk_keyring_free(ring);
}

static void try_keyring(const uint8_t *data, size_t size)
{
    bk_keyring_t *ring = NULL;
    bk_buf_t again;
    bk_err_t err = {0};
    if (bk_keyring_decode(data, size, &ring, &err) != BK_OK)
        return;
    bk_buf_init(&again, size + 1);
    FUZZ_CHECK(bk_keyring_encode(ring, &again, &err) == BK_OK);
    FUZZ_CHECK(again.len == size && memcmp(again.data, data, size) == 0);
    bk_buf_wipe(&again);
    bk_keyring_free(ring);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_secret_t secret = {.key = key};
    bk_keyring_t *ring = NULL;
    json_t *facts = NULL;
    bk_err_t err = {0};
    if (size > 0 && data[0] == 0) {
        try_keyring(data + 1, size - 1);
        return 0;
    }
    if (bk_slot_open(data, size, &secret, &ring, &err) == BK_OK)
        bk_keyring_free(ring);
    if (bk_slot_describe(data, size, &facts, &err) == BK_OK)
        json_decref(facts);
    return 0;
}
