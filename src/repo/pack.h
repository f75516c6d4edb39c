/*
 * repo/pack.h: many chunks in one object.
 *
 *   header 80 B   crypto/object.h, kind pack or meta
 *   frame ...     part(domain FRAME, position = offset of the frame in the pack,
 *                 aad = type u8 | codec u8 | raw u32)
 *   directory     part(domain DIRECTORY, position 0) of codec(entries sorted by id:
 *                 id 32 | offset u32 | stored u32 | raw u32 | type u8 | codec u8)
 *   trailer 32 B  directory offset u32 | its length u32 | entries u32 | its raw length u32
 *                 | its codec u32 | crc32c of these 20 bytes u32 | magic "NGXBKEND"
 *
 * stored counts the tag.  A pack under construction is owned by one thread at a time; a finished
 * one is bytes.
 */
#ifndef BK_REPO_PACK_H
#define BK_REPO_PACK_H

#include <stdbool.h>

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
    size_t overhead;          /* bytes of tag behind each frame: 16 or 0 */
    bk_buf_t bytes;           /* header room, then compressed frames with room for tags */
    bk_pack_entry_t *entries; /* in order of adding until finished, then sorted by id */
    size_t count, cap;
    bk_id_t name; /* SHA-256 of the finished bytes */
} bk_pack_t;

/*
 * Bytes that a pack should have in a repository whose packs have so many together: more content in
 * bigger packs, or a storage holds millions of them.
 */
size_t bk_pack_target(bk_kind_t kind, uint64_t repository);

/* target: bytes that it will have at most, but for one more chunk; that much room is reserved. */
bk_rc_t bk_pack_init(bk_pack_t *pack, bk_kind_t kind, size_t target, bool encrypted, bk_err_t *err);
void bk_pack_free(bk_pack_t *pack);
/* Empty again, with the memory of its bytes; the entries are somebody else's by now and are only
 * let go. */
void bk_pack_reset(bk_pack_t *pack);
/* Bytes it would have if finished now, roughly; compare with the target. */
size_t bk_pack_size(const bk_pack_t *pack);
/*
 * data: the chunk in codec's form, len bytes; raw: its length before, at most BK_CHUNK_MAX.  After
 * a failure the pack is what it was before.  A chunk that is added twice is stored once.
 */
bk_rc_t bk_pack_add(bk_pack_t *pack, const bk_id_t *id, bk_type_t type, bk_codec_t codec,
                    const void *data, size_t len, uint32_t raw, bk_err_t *err);
/* Compress a chunk to the end of the pack, as bk_compress does, and add it. */
bk_rc_t bk_pack_append(bk_pack_t *pack, const bk_id_t *id, bk_type_t type, bk_compression_t how,
                       bool probe, const void *data, size_t len, bk_err_t *err);
/*
 * Seal every frame in place, append directory and trailer, compute the name.  The ring must be
 * encrypted exactly when the pack was begun so.  After a failure the pack can only be freed.
 */
bk_rc_t bk_pack_finish(bk_pack_t *pack, const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                       bk_err_t *err);

/* Where the directory lies. */
typedef struct {
    uint32_t offset, length; /* in the pack, as stored */
    uint32_t count;          /* entries */
    uint32_t raw;            /* bytes when decompressed */
    uint32_t codec;
} bk_pack_trailer_t;

/* Read the last 32 bytes of a pack of the given size; checks every bound. */
bk_rc_t bk_pack_trailer(const uint8_t trailer[32], uint64_t pack_size, bk_pack_trailer_t *where,
                        bk_err_t *err);
/*
 * Decode a directory of where->length bytes, which is overwritten; *entries is heap, owned by the
 * caller, sorted by id, every entry within the pack.
 */
bk_rc_t bk_pack_directory(const bk_object_key_t *key, void *directory,
                          const bk_pack_trailer_t *where, bk_pack_entry_t **entries, bk_err_t *err);
/*
 * Decrypt, decompress and check one frame: frame points at entry->stored bytes, out holds
 * entry->raw.  The id is recomputed and compared: BK_CORRUPT names what did not fit.
 */
bk_rc_t bk_pack_frame(const bk_keyring_t *ring, const bk_object_key_t *key,
                      const bk_pack_entry_t *entry, uint8_t *frame, uint8_t *out, bk_err_t *err);

#endif
