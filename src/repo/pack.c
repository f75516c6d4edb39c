/*
 * repo/pack.c: building packs in memory, and reading any part of one without trusting it.
 */
#include "repo/pack.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define ENTRY_BYTES   46u /* id 32 | offset 4 | stored 4 | raw 4 | type 1 | codec 1 */
#define TRAILER_BYTES 32u
#define DIRECTORY_MAX (8u << 20)
#define MAGIC_END     "NGXBKEND"

/* CRC-32C (Castagnoli), bit by bit: 20 bytes a pack. */
static uint32_t crc32c(const uint8_t *data, size_t len)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < len; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return ~crc;
}

size_t bk_pack_target(bk_kind_t kind, uint64_t repository)
{
    if (kind == BK_KIND_META)
        return BK_META_TARGET;
    return repository >= 2ull << 40     ? 4 * BK_PACK_TARGET
           : repository >= 256ull << 30 ? 2 * BK_PACK_TARGET
                                        : BK_PACK_TARGET;
}

bk_rc_t bk_pack_init(bk_pack_t *pack, bk_kind_t kind, size_t target, bool encrypted, bk_err_t *err)
{
    memset(pack, 0, sizeof *pack);
    pack->kind = kind;
    pack->overhead = encrypted ? BK_OBJECT_TAG : 0;
    bk_buf_init(&pack->bytes, BK_PACK_MAX);
    /* Reserve once what a pack can become: untouched pages cost nothing, growing would copy. */
    size_t reserve = target + (kind == BK_KIND_META ? 0 : BK_CHUNK_MAX) + (4u << 20);
    if (bk_buf_room(&pack->bytes, reserve) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "start a pack: out of memory");
    bk_pack_reset(pack);
    return BK_OK;
}

void bk_pack_reset(bk_pack_t *pack)
{
    bk_buf_reset(&pack->bytes);
    memset(pack->bytes.data, 0, BK_OBJECT_HEADER);
    pack->bytes.len = BK_OBJECT_HEADER;
    pack->entries = NULL;
    pack->count = pack->cap = 0;
}

void bk_pack_free(bk_pack_t *pack)
{
    bk_buf_free(&pack->bytes);
    free(pack->entries);
    pack->entries = NULL;
    pack->count = pack->cap = 0;
}

size_t bk_pack_size(const bk_pack_t *pack)
{
    return pack->bytes.len + pack->count * ENTRY_BYTES + TRAILER_BYTES;
}

/* Room for one more entry, and nothing that a reader would refuse. */
static bk_rc_t grow_entries(bk_pack_t *pack, size_t raw, bk_err_t *err)
{
    if (raw > BK_CHUNK_MAX)
        return bk_err_set(err, BK_TOO_LARGE, "add to a pack: a chunk of %zu bytes is too long",
                          raw);
    if (pack->count >= DIRECTORY_MAX / ENTRY_BYTES)
        return bk_err_set(err, BK_TOO_LARGE, "add to a pack: it has %zu chunks already",
                          pack->count);
    if (pack->count < pack->cap)
        return BK_OK;
    size_t cap = pack->cap > 0 ? 2 * pack->cap : 64;
    bk_pack_entry_t *more = realloc(pack->entries, cap * sizeof *more);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "add to a pack: out of memory");
    pack->entries = more;
    pack->cap = cap;
    return BK_OK;
}

/*
 * The bytes from offset on are a new frame; there is room for its entry.  When rc or its tag's room
 * fails, the pack is as it was before.
 */
static bk_rc_t add_frame(bk_pack_t *pack, const bk_pack_entry_t *entry, bk_rc_t rc, bk_err_t *err)
{
    uint8_t *tag = rc == BK_OK ? bk_buf_room(&pack->bytes, pack->overhead) : NULL;
    if (rc == BK_OK && !bk_buf_ok(&pack->bytes))
        rc = bk_err_set(err, BK_NO_MEMORY, "add to a pack: out of memory or past its limit");
    if (rc != BK_OK) {
        pack->bytes.len = entry->offset;
        pack->bytes.failed = false;
        return rc;
    }
    memset(tag, 0, pack->overhead);
    pack->bytes.len += pack->overhead;
    pack->entries[pack->count] = *entry;
    pack->entries[pack->count++].stored = (uint32_t)(pack->bytes.len - entry->offset);
    return BK_OK;
}

bk_rc_t bk_pack_add(bk_pack_t *pack, const bk_id_t *id, bk_type_t type, bk_codec_t codec,
                    const void *data, size_t len, uint32_t raw, bk_err_t *err)
{
    bk_pack_entry_t entry = {.id = *id,
                             .offset = (uint32_t)pack->bytes.len,
                             .raw = raw,
                             .type = (uint8_t)type,
                             .codec = (uint8_t)codec};
    bk_rc_t rc = grow_entries(pack, raw, err);
    if (rc != BK_OK)
        return rc;
    bk_buf_add(&pack->bytes, data, len);
    return add_frame(pack, &entry, BK_OK, err);
}

bk_rc_t bk_pack_append(bk_pack_t *pack, const bk_id_t *id, bk_type_t type, bk_compression_t how,
                       bool probe, const void *data, size_t len, bk_err_t *err)
{
    bk_pack_entry_t entry = {.id = *id,
                             .offset = (uint32_t)pack->bytes.len,
                             .raw = (uint32_t)len,
                             .type = (uint8_t)type};
    bk_codec_t codec = BK_CODEC_RAW;
    bk_rc_t rc = grow_entries(pack, len, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_compress(how, probe, data, len, &pack->bytes, &codec, err);
    entry.codec = (uint8_t)codec;
    return add_frame(pack, &entry, rc, err);
}

static int by_id(const void *a, const void *b)
{
    return bk_id_compare(&((const bk_pack_entry_t *)a)->id, &((const bk_pack_entry_t *)b)->id);
}

static void frame_aad(const bk_pack_entry_t *entry, uint8_t aad[6])
{
    aad[0] = entry->type;
    aad[1] = entry->codec;
    bk_put_u32(aad + 2, entry->raw);
}

/*
 * Sort by id.  A chunk that was added twice keeps one entry, or readers would refuse the directory;
 * the other frame is zeroed, since no seal would cover it.
 */
static void sort_entries(bk_pack_t *pack)
{
    size_t kept = 0;
    if (pack->count > 1)
        qsort(pack->entries, pack->count, sizeof *pack->entries, by_id);
    for (size_t i = 0; i < pack->count; i++) {
        const bk_pack_entry_t *entry = &pack->entries[i];
        if (kept > 0 && bk_id_equal(&pack->entries[kept - 1].id, &entry->id))
            memset(pack->bytes.data + entry->offset, 0, entry->stored);
        else
            pack->entries[kept++] = *entry;
    }
    pack->count = kept;
}

static void encode_directory(const bk_pack_t *pack, bk_buf_t *raw)
{
    for (size_t i = 0; i < pack->count; i++) {
        const bk_pack_entry_t *entry = &pack->entries[i];
        bk_buf_add(raw, entry->id.b, BK_ID_SIZE);
        bk_buf_u32(raw, entry->offset);
        bk_buf_u32(raw, entry->stored);
        bk_buf_u32(raw, entry->raw);
        bk_buf_u8(raw, entry->type);
        bk_buf_u8(raw, entry->codec);
    }
}

/*
 * A digest of all that will be encrypted.  The ids in the directory commit to each chunk's content;
 * what could still differ is how it was compressed, by chance and not by anybody's will, and a fast
 * hash tells that as well as a slow one.
 */
static void digest_content(const bk_pack_t *pack, const bk_buf_t *directory, bk_id_t *digest)
{
    uint8_t all[BK_ID_SIZE + sizeof(XXH128_canonical_t)];
    bk_id_t ids;
    XXH128_canonical_t frames;
    XXH128_canonicalFromHash(&frames, XXH3_128bits(pack->bytes.data + BK_OBJECT_HEADER,
                                                   pack->bytes.len - BK_OBJECT_HEADER));
    bk_sha256(&ids, directory->data, directory->len);
    memcpy(all, ids.b, BK_ID_SIZE);
    memcpy(all + BK_ID_SIZE, &frames, sizeof frames);
    bk_sha256(digest, all, sizeof all);
}

static void encode_trailer(uint8_t trailer[TRAILER_BYTES], const bk_pack_trailer_t *where)
{
    bk_put_u32(trailer, where->offset);
    bk_put_u32(trailer + 4, where->length);
    bk_put_u32(trailer + 8, where->count);
    bk_put_u32(trailer + 12, where->raw);
    bk_put_u32(trailer + 16, where->codec);
    bk_put_u32(trailer + 20, crc32c(trailer, 20));
    memcpy(trailer + 24, MAGIC_END, 8);
}

static bk_rc_t append_directory(bk_pack_t *pack, const bk_object_key_t *key, const bk_buf_t *raw,
                                bk_err_t *err)
{
    static const bk_compression_t how = {.codec = BK_CODEC_ZSTD, .level = 1};
    bk_buf_t packed;
    bk_codec_t codec;
    bk_buf_init(&packed, DIRECTORY_MAX + 64);
    bk_rc_t rc = bk_compress(how, false, raw->data, raw->len, &packed, &codec, err);
    if (rc == BK_OK) {
        bk_pack_trailer_t where = {.offset = (uint32_t)pack->bytes.len,
                                   .length = (uint32_t)(packed.len + pack->overhead),
                                   .count = (uint32_t)pack->count,
                                   .raw = (uint32_t)raw->len,
                                   .codec = (uint32_t)codec};
        uint8_t *room = bk_buf_room(&pack->bytes, where.length + TRAILER_BYTES);
        if (room == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "finish a pack: out of memory");
        else
            rc = bk_object_seal(key, BK_PART_DIRECTORY, 0, NULL, 0, packed.data, packed.len, room,
                                err);
        if (rc == BK_OK) {
            encode_trailer(room + where.length, &where);
            pack->bytes.len += where.length + TRAILER_BYTES;
        }
    }
    bk_buf_free(&packed);
    return rc;
}

static bk_rc_t seal_frames(bk_pack_t *pack, const bk_object_key_t *key, bk_err_t *err)
{
    for (size_t i = 0; i < pack->count; i++) {
        const bk_pack_entry_t *entry = &pack->entries[i];
        uint8_t aad[6], *frame = pack->bytes.data + entry->offset;
        frame_aad(entry, aad);
        bk_rc_t rc = bk_object_seal(key, BK_PART_FRAME, entry->offset, aad, sizeof aad, frame,
                                    entry->stored - pack->overhead, frame, err);
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

bk_rc_t bk_pack_finish(bk_pack_t *pack, const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                       bk_err_t *err)
{
    bk_object_key_t key = {0};
    bk_id_t content = {{0}};
    bk_buf_t directory;
    /* Frames without room for tags would be sealed over their neighbours. */
    if ((pack->overhead > 0) != bk_keyring_encrypted(ring))
        return bk_err_set(err, BK_FAILED, "finish a pack: it was begun for another keyring");
    bk_buf_init(&directory, DIRECTORY_MAX);
    sort_entries(pack);
    encode_directory(pack, &directory);
    bk_rc_t rc = BK_OK;
    if (!bk_buf_ok(&directory))
        rc = bk_err_set(err, BK_NO_MEMORY, "finish a pack: out of memory");
    if (rc == BK_OK && bk_keyring_encrypted(ring))
        digest_content(pack, &directory, &content);
    if (rc == BK_OK)
        rc = bk_object_key_new(ring, uuid, pack->kind, &content, &key, err);
    if (rc == BK_OK) {
        memcpy(pack->bytes.data, key.header, BK_OBJECT_HEADER);
        if (key.encrypted)
            rc = seal_frames(pack, &key, err);
    }
    if (rc == BK_OK)
        rc = append_directory(pack, &key, &directory, err);
    if (rc == BK_OK)
        bk_sha256(&pack->name, pack->bytes.data, pack->bytes.len);
    bk_object_key_wipe(&key);
    bk_buf_free(&directory);
    return rc;
}

bk_rc_t bk_pack_trailer(const uint8_t trailer[32], uint64_t pack_size, bk_pack_trailer_t *where,
                        bk_err_t *err)
{
    where->offset = bk_get_u32(trailer);
    where->length = bk_get_u32(trailer + 4);
    where->count = bk_get_u32(trailer + 8);
    where->raw = bk_get_u32(trailer + 12);
    where->codec = bk_get_u32(trailer + 16);
    if (memcmp(trailer + 24, MAGIC_END, 8) != 0 || bk_get_u32(trailer + 20) != crc32c(trailer, 20))
        return bk_err_set(err, BK_CORRUPT, "the pack's end is missing or damaged");
    if (pack_size > BK_PACK_MAX || where->offset < BK_OBJECT_HEADER ||
        (uint64_t)where->offset + where->length + TRAILER_BYTES != pack_size ||
        where->count > DIRECTORY_MAX / ENTRY_BYTES || where->raw != where->count * ENTRY_BYTES)
        return bk_err_set(err, BK_CORRUPT, "the pack's directory does not fit into the pack");
    return BK_OK;
}

bk_rc_t bk_pack_directory(const bk_object_key_t *key, void *directory,
                          const bk_pack_trailer_t *where, bk_pack_entry_t **entries, bk_err_t *err)
{
    size_t overhead = bk_object_overhead(key);
    bk_pack_entry_t *list = NULL;
    *entries = NULL;
    if (where->length < overhead)
        return bk_err_set(err, BK_CORRUPT, "the pack's directory is cut off");
    uint8_t *raw = malloc(where->raw + 1u);
    list = calloc(where->count + 1u, sizeof *list);
    if (raw == NULL || list == NULL) {
        free(raw);
        free(list);
        return bk_err_set(err, BK_NO_MEMORY, "read a pack's directory: out of memory");
    }
    bk_rc_t rc = bk_object_unseal(key, BK_PART_DIRECTORY, 0, NULL, 0, directory, where->length,
                                  directory, err);
    if (rc == BK_OK)
        rc = bk_decompress((bk_codec_t)where->codec, directory, where->length - overhead, raw,
                           where->raw, err);
    bk_cur_t cur = bk_cur(raw, where->raw);
    for (uint32_t i = 0; i < where->count && rc == BK_OK; i++) {
        bk_pack_entry_t *entry = &list[i];
        memcpy(entry->id.b, bk_cur_bytes(&cur, BK_ID_SIZE), BK_ID_SIZE);
        entry->offset = bk_cur_u32(&cur);
        entry->stored = bk_cur_u32(&cur);
        entry->raw = bk_cur_u32(&cur);
        entry->type = bk_cur_u8(&cur);
        entry->codec = bk_cur_u8(&cur);
        if (entry->offset < BK_OBJECT_HEADER || entry->stored < overhead ||
            (uint64_t)entry->offset + entry->stored > where->offset || entry->raw > BK_CHUNK_MAX ||
            entry->type < BK_TYPE_FILE || entry->type > BK_TYPE_BLOB ||
            entry->codec > BK_CODEC_GZIP ||
            (i > 0 && bk_id_compare(&list[i - 1].id, &entry->id) >= 0))
            rc = bk_err_set(err, BK_CORRUPT, "entry %u of the pack's directory is not valid", i);
    }
    free(raw);
    if (rc == BK_OK)
        *entries = list;
    else
        free(list);
    return rc;
}

bk_rc_t bk_pack_frame(const bk_keyring_t *ring, const bk_object_key_t *key,
                      const bk_pack_entry_t *entry, uint8_t *frame, uint8_t *out, bk_err_t *err)
{
    size_t overhead = bk_object_overhead(key);
    uint8_t aad[6];
    bk_id_t id;
    if (entry->stored < overhead)
        return bk_err_set(err, BK_CORRUPT, "the frame is too short");
    frame_aad(entry, aad);
    bk_rc_t rc = bk_object_unseal(key, BK_PART_FRAME, entry->offset, aad, sizeof aad, frame,
                                  entry->stored, frame, err);
    if (rc == BK_OK)
        rc = bk_decompress((bk_codec_t)entry->codec, frame, entry->stored - overhead, out,
                           entry->raw, err);
    if (rc != BK_OK)
        return rc;
    bk_chunk_id(ring, entry->type, out, entry->raw, &id);
    if (!bk_id_equal(&id, &entry->id))
        return bk_err_set(err, BK_CORRUPT, "the chunk's content does not have its id");
    return BK_OK;
}
