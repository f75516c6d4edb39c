/*
 * repo/pack.h: many chunks in one object.
 *
 *   header 80 B   crypto/object.h, kind pack or meta
 *   frame …       part(domain FRAME, position = offset of the frame in the pack, aad = type u8 |
 * codec u8 | raw u32) directory     part(domain DIRECTORY, position 0) of zstd(entries sorted by
 * id: id 32 | offset u32 | stored u32 | raw u32 | type u8 | codec u8) trailer 32 B  directory
 * offset u32 | directory length u32 | count u32 | raw directory length u32 | reserved u32 0 |
 *                 crc32c of the 20 bytes before u32 | magic "NGXBKEND"
 *
 * stored counts the tag.  A pack under construction is owned by one thread at a time; a finished
 * one is bytes.
 */
#ifndef BK_REPO_PACK_H
#define BK_REPO_PACK_H

#include "base/buf.h"
#include "base/codec.h"
#include "crypto/object.h"
#include "repo/format.h"

typedef struct {
    bk_id_t id;
    uint32_t offset, stored, raw; /* bytes; offset from the start of the pack */
    uint8_t type, codec;
} bk_pack_entry_t;

typedef struct {
    bk_kind_t kind;
    bk_buf_t bytes;           /* header room, then compressed frames with room for tags */
    bk_pack_entry_t *entries; /* in order of adding until finished, then sorted by id */
    size_t count, cap;
    bk_id_t name; /* SHA-256 of the finished bytes */
} bk_pack_t;

bk_rc_t bk_pack_init(bk_pack_t *pack, bk_kind_t kind, bk_err_t *err);
void bk_pack_free(bk_pack_t *pack);
/* Bytes it would have if finished now, roughly; compare with BK_PACK_TARGET. */
size_t bk_pack_size(const bk_pack_t *pack);
/* data: the chunk in codec's form, len bytes; raw: its length before. */
bk_rc_t bk_pack_add(bk_pack_t *pack, const bk_id_t *id, bk_type_t type, bk_codec_t codec,
                    const void *data, size_t len, uint32_t raw, bk_err_t *err);
/* Seal every frame in place, append directory and trailer, compute the name. */
bk_rc_t bk_pack_finish(bk_pack_t *pack, const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                       bk_err_t *err);

/* Read the trailer (the last 32 bytes of a pack of the given size): where the directory lies.
 * Checks every bound. */
bk_rc_t bk_pack_trailer(const uint8_t trailer[32], uint64_t pack_size, uint32_t *dir_offset,
                        uint32_t *dir_len, uint32_t *dir_raw, uint32_t *count, bk_err_t *err);
/* Decode a directory; *entries is heap, owned by the caller, sorted by id, every entry within the
 * pack. */
bk_rc_t bk_pack_directory(const bk_object_key_t *key, const void *dir, uint32_t dir_len,
                          uint32_t dir_offset, uint32_t dir_raw, uint32_t count,
                          bk_pack_entry_t **entries, bk_err_t *err);
/*
 * Decrypt, decompress and check one frame: frame points at entry->stored bytes, out holds
 * entry->raw.  The id is recomputed and compared: BK_CORRUPT names what did not fit.
 */
bk_rc_t bk_pack_frame(const bk_keyring_t *ring, const bk_object_key_t *key,
                      const bk_pack_entry_t *entry, const uint8_t *frame, uint8_t *out,
                      bk_err_t *err);

#endif
