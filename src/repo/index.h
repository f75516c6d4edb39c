/*
 * repo/index.h: where each chunk lies.
 *
 * A segment is immutable; sealed on the storage as index/<ulid>-<sha256>, opened in the local cache
 * (same content, unsealed, mmapped):
 *
 *   "NGXBKIDX" | version u32 | packs u32 | entries u32 | superseded u32
 *   fan-out      256 × u32: entries whose first id byte is <= i
 *   packs        packs × { name 32 | size u32 | kind u16 | reserved u16 | created i64 (s) }
 *   entries      entries × { id 32 | pack u32 | offset u32 | stored u32 | raw u24
 *                            | (type << 4 | codec) u8 }, sorted by id
 *   superseded   superseded × { u8 length | object name } of segments this one replaces
 *   xxh64 of all before
 *
 * The opened index is a set of segments.  When they are many, small ones are merged into files of
 * the cache, so that a look-up searches a few dozen at most.  Look-ups may be made by any thread at
 * any time; they see the segments of the last refresh and never wait for the storage.  Refreshing
 * and rebuilding wait for each other.
 */
#ifndef BK_REPO_INDEX_H
#define BK_REPO_INDEX_H

#include "base/ctl.h"
#include "repo/objects.h"
#include "repo/pack.h"

typedef struct bk_index_s bk_index_t;

typedef struct {
    bk_id_t pack;       /* name of the pack */
    uint32_t pack_size; /* bytes */
    bk_kind_t kind;
    bk_pack_entry_t entry;
} bk_location_t;

/*
 * Bring cache_dir in line with the storage (download new segments, drop gone ones, verify both) and
 * map it.  Segments that are damaged are reported through ctl notes; the directories of packs that
 * no other segment names are read instead.  Nothing is written to the storage.  A cache that cannot
 * be written costs memory, not the index.  After a failed refresh the index is what it was before.
 */
bk_rc_t bk_index_open(const bk_objects_t *objects, const bk_keyring_t *ring,
                      const uint8_t uuid[BK_UUID_SIZE], const char *cache_dir, bk_ctl_t *ctl,
                      bk_index_t **index, bk_err_t *err);
bk_rc_t bk_index_refresh(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err);
void bk_index_close(bk_index_t *index);

bool bk_index_find(const bk_index_t *index, const bk_id_t *id, bk_location_t *where);
/* The same, passing over packs that refuse() answers true for. */
typedef bool (*bk_index_refuse_fn)(void *arg, const bk_id_t *pack);
bool bk_index_find_except(const bk_index_t *index, const bk_id_t *id, bk_index_refuse_fn refuse,
                          void *arg, bk_location_t *where);
/* True when the index names a pack of that name. */
bool bk_index_has_pack(const bk_index_t *index, const bk_id_t *pack);
/* False when the index names the pack, but with no such size. */
bool bk_index_pack_fits(const bk_index_t *index, const bk_id_t *pack, uint64_t size);
/* Totals for status: chunks (with further copies of one), packs, bytes in packs. */
void bk_index_totals(const bk_index_t *index, uint64_t *chunks, uint64_t *packs, uint64_t *bytes);

typedef bk_rc_t (*bk_index_pack_fn)(void *arg, const bk_id_t *name, uint32_t size, bk_kind_t kind,
                                    bk_err_t *err);
typedef bk_rc_t (*bk_index_chunk_fn)(void *arg, const bk_location_t *where, bk_err_t *err);
/*
 * Each pack once, or once for each size and kind that segments disagree about, by name; each entry.
 * They walk over the segments of the moment they began; fn may look chunks up and refresh.
 */
bk_rc_t bk_index_each_pack(const bk_index_t *index, bk_index_pack_fn fn, void *arg, bk_err_t *err);
bk_rc_t bk_index_each_chunk(const bk_index_t *index, bk_index_chunk_fn fn, void *arg,
                            bk_err_t *err);

/*
 * Everything again from the trailers and directories of all packs on the storage, as new segments
 * of about a million entries.  They replace those that were there when every pack could be read;
 * packs that could not are noted in ctl.
 */
bk_rc_t bk_index_rebuild(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err);

/* Encode a segment from finished packs (their entries and names). */
bk_rc_t bk_index_encode(const bk_pack_t *const *packs, size_t count, int64_t created, bk_buf_t *out,
                        bk_err_t *err);
/*
 * Encode, seal and publish a segment on one storage (or the spool); name and size come back.
 */
bk_rc_t bk_index_store(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                       const bk_pack_t *const *packs, size_t count, bk_storage_t *to,
                       char name[BK_STORAGE_NAME], uint64_t *bytes, bk_ctl_t *ctl, bk_err_t *err);
/*
 * Entries, name and size of a stored pack by its own trailer and directory; free pack->entries
 * afterwards.
 */
bk_rc_t bk_pack_read_entries(const bk_objects_t *objects, const bk_keyring_t *ring,
                             const uint8_t uuid[BK_UUID_SIZE], const char *name, uint64_t size,
                             bk_kind_t kind, bk_pack_t *pack, bk_ctl_t *ctl, bk_err_t *err);
/* Check a segment's every bound and order: the fuzz target. */
bk_rc_t bk_index_check(const void *segment, size_t len, bk_err_t *err);

#endif
