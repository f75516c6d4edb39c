/*
 * t/fuzz/pack.c: packs of a plain repository: trailer, directory, frames.  The trailer's checksum is made right first, or
 * nothing would get past it.
 */
#include "fuzz.h"

#include "repo/pack.h"

static const uint8_t uuid[BK_UUID_SIZE];

static uint32_t crc32c(const uint8_t *data, size_t len)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    }
    return ~crc;
}

static void seed(size_t chunks)
{
    bk_keyring_t *ring = bk_keyring_plain();
    bk_pack_t pack;
    bk_err_t err = {0};
    FUZZ_CHECK(bk_pack_init(&pack, BK_KIND_PACK, BK_PACK_TARGET, false, &err) == BK_OK);
    for (size_t i = 0; i < chunks; i++) {
        char data[200];
        bk_id_t id;
        bk_buf_t packed;
        bk_codec_t codec;
        bk_compression_t how = {.codec = (bk_codec_t)(i % 3), .level = 1};
        memset(data, (int)('a' + i), sizeof data);
        bk_buf_init(&packed, 4096);
        bk_chunk_id(ring, BK_TYPE_FILE, data, sizeof data, &id);
        FUZZ_CHECK(bk_compress(how, false, data, sizeof data, &packed, &codec, &err) == BK_OK);
        FUZZ_CHECK(bk_pack_add(&pack, &id, BK_TYPE_FILE, codec, packed.data, packed.len,
                               sizeof data, &err) == BK_OK);
        bk_buf_free(&packed);
    }
    FUZZ_CHECK(bk_pack_finish(&pack, ring, uuid, &err) == BK_OK);
    fuzz_seed(pack.bytes.data, pack.bytes.len);
    bk_pack_free(&pack);
    bk_keyring_free(ring);
}

static void seeds(void)
{
    seed(0);
    seed(1);
    seed(20);
}

static void check_frames(const bk_keyring_t *ring, const bk_object_key_t *key, const uint8_t *pack,
                         const bk_pack_entry_t *entries, size_t count)
{
    bk_err_t err = {0};
    for (size_t i = 0; i < count && i < 8; i++) {
        bk_id_t id;
        if (entries[i].raw > 1u << 20)
            continue;
        /* Exactly the bytes there are, so that one too many is seen. */
        uint8_t *frame = malloc(entries[i].stored + 1u), *out = malloc(entries[i].raw + 1u);
        FUZZ_CHECK(frame != NULL && out != NULL);
        memcpy(frame, pack + entries[i].offset, entries[i].stored);
        if (bk_pack_frame(ring, key, &entries[i], frame, out, &err) == BK_OK) {
            bk_chunk_id(ring, entries[i].type, out, entries[i].raw, &id);
            FUZZ_CHECK(bk_id_equal(&id, &entries[i].id));
        }
        free(frame);
        free(out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bk_keyring_t *ring;
    bk_object_key_t key;
    bk_pack_trailer_t where;
    bk_pack_entry_t *entries = NULL;
    bk_err_t err = {0};
    if (ring == NULL)
        ring = bk_keyring_plain();
    if (size < BK_OBJECT_HEADER + 32)
        return 0;
    uint8_t trailer[32];
    memcpy(trailer, data + size - 32, sizeof trailer);
    bk_put_u32(trailer + 20, crc32c(trailer, 20));
    if (bk_object_key_open(ring, uuid, BK_KIND_PACK, data, &key, &err) != BK_OK ||
        bk_pack_trailer(trailer, size, &where, &err) != BK_OK)
        return 0;
    uint8_t *directory = malloc(where.length + 1u);
    FUZZ_CHECK(directory != NULL);
    memcpy(directory, data + where.offset, where.length);
    if (bk_pack_directory(&key, directory, &where, &entries, &err) == BK_OK) {
        for (uint32_t i = 0; i < where.count; i++)
            FUZZ_CHECK(entries[i].offset >= BK_OBJECT_HEADER &&
                       (uint64_t)entries[i].offset + entries[i].stored <= where.offset &&
                       entries[i].raw <= BK_CHUNK_MAX);
        check_frames(ring, &key, data, entries, where.count);
    }
    free(entries);
    free(directory);
    return 0;
}
