/*
 * t/fuzz/object.c: whole objects of a plain repository: envelope, lengths, compression.
 */
#include "fuzz.h"

#include "crypto/object.h"

static const uint8_t uuid[BK_UUID_SIZE];

static void seeds(void)
{
    bk_keyring_t *ring = bk_keyring_plain();
    bk_buf_t out;
    bk_err_t err = {0};
    char text[3000];
    memset(text, 'x', sizeof text);
    bk_buf_init(&out, 1u << 16);
    for (size_t len = 0; len <= sizeof text; len = 3 * len + 11) {
        bk_buf_reset(&out);
        FUZZ_CHECK(bk_object_wrap(ring, uuid, BK_KIND_SNAPSHOT, text, len, &out, &err) == BK_OK);
        fuzz_seed(out.data, out.len);
    }
    bk_buf_free(&out);
    bk_keyring_free(ring);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bk_keyring_t *ring;
    bk_buf_t plain, object, again;
    bk_err_t err = {0};
    if (ring == NULL)
        ring = bk_keyring_plain();
    bk_buf_init(&plain, 1u << 20);
    bk_buf_init(&object, 2u << 20);
    bk_buf_init(&again, 1u << 20);
    if (bk_object_unwrap(ring, uuid, BK_KIND_SNAPSHOT, data, size, &plain, &err) == BK_OK) {
        FUZZ_CHECK(plain.len <= 1u << 20);
        FUZZ_CHECK(bk_object_wrap(ring, uuid, BK_KIND_SNAPSHOT, plain.data, plain.len, &object,
                                  &err) == BK_OK);
        FUZZ_CHECK(bk_object_unwrap(ring, uuid, BK_KIND_SNAPSHOT, object.data, object.len, &again,
                                    &err) == BK_OK);
        FUZZ_CHECK(again.len == plain.len &&
                   (plain.len == 0 || memcmp(again.data, plain.data, plain.len) == 0));
    } else {
        FUZZ_CHECK(err.rc != BK_OK && err.text[0] != '\0');
    }
    bk_buf_free(&plain);
    bk_buf_free(&object);
    bk_buf_free(&again);
    return 0;
}
