/*
 * repo/index_store.c: what goes into index segments and out to the storage: entries of stored
 * packs, sealed segments.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "repo/segment.h"

#define TAIL (32u << 10) /* read at once from the end of a pack: most directories are shorter */

/* Exactly len bytes. */
static bk_rc_t get(const bk_objects_t *objects, const char *name, uint64_t offset, size_t len,
                   uint8_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    size_t got = 0;
    bk_rc_t rc = bk_objects_get(objects, name, offset, len, out, &got, ctl, err);
    if (rc == BK_OK && got != len)
        rc = bk_err_set(err, BK_CORRUPT, "%s: cut off", name);
    return rc;
}

/*
 * The directory as stored, in *bytes (heap, freed by the caller) from *start on.  The end of the
 * pack has it mostly; a long one is fetched.
 */
static bk_rc_t get_directory(const bk_objects_t *objects, const char *name, uint64_t size,
                             bk_pack_trailer_t *where, uint8_t **bytes, size_t *start,
                             bk_ctl_t *ctl, bk_err_t *err)
{
    size_t tail = size < TAIL ? (size_t)size : TAIL;
    if ((*bytes = malloc(tail)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", name);
    bk_rc_t rc = get(objects, name, size - tail, tail, *bytes, ctl, err);
    if (rc == BK_OK)
        rc = bk_pack_trailer(*bytes + tail - 32, size, where, err);
    if (rc != BK_OK)
        return rc;
    if (where->offset >= size - tail) {
        *start = (size_t)(where->offset - (size - tail));
        return BK_OK;
    }
    free(*bytes);
    *start = 0;
    if ((*bytes = malloc(where->length + 1u)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", name);
    return get(objects, name, where->offset, where->length, *bytes, ctl, err);
}

bk_rc_t bk_pack_read_entries(const bk_objects_t *objects, const bk_keyring_t *ring,
                             const uint8_t uuid[BK_UUID_SIZE], const char *name, uint64_t size,
                             bk_kind_t kind, bk_pack_t *pack, bk_ctl_t *ctl, bk_err_t *err)
{
    uint8_t header[BK_OBJECT_HEADER], *directory = NULL;
    bk_pack_trailer_t where;
    bk_object_key_t key = {0};
    size_t start = 0;

    memset(pack, 0, sizeof *pack);
    pack->kind = kind;
    bk_buf_init(&pack->bytes, BK_PACK_MAX);
    if (!bk_object_name_id(name, &pack->name) || size < BK_OBJECT_HEADER + 32 || size > BK_PACK_MAX)
        return bk_err_set(err, BK_CORRUPT, "%s: not a pack", name);
    bk_rc_t rc = get(objects, name, 0, sizeof header, header, ctl, err);
    if (rc == BK_OK)
        rc = bk_object_key_open(ring, uuid, kind, header, &key, err);
    if (rc == BK_OK)
        rc = get_directory(objects, name, size, &where, &directory, &start, ctl, err);
    if (rc == BK_OK)
        rc = bk_pack_directory(&key, directory + start, &where, &pack->entries, err);
    if (rc == BK_OK) {
        pack->count = where.count;
        pack->bytes.len = (size_t)size; /* only its length is used by bk_index_encode */
    }
    free(directory);
    bk_object_key_wipe(&key);
    return rc;
}

bk_rc_t bk_segment_store(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                         const bk_pack_t *const *packs, size_t count, const char *const *superseded,
                         size_t superseded_count, bk_storage_t *to, char name[BK_STORAGE_NAME],
                         uint64_t *bytes, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t plain, object;
    char ulid[BK_ULID_LEN + 1], hex[BK_ID_HEX];
    bk_id_t digest;
    bk_buf_init(&plain, BK_SEGMENT_MAX);
    bk_buf_init(&object, BK_SEGMENT_MAX);
    bk_rc_t rc =
        bk_segment_encode(packs, count, bk_now(), superseded, superseded_count, &plain, err);
    if (rc == BK_OK)
        rc = bk_object_wrap(ring, uuid, BK_KIND_INDEX, plain.data, plain.len, &object, err);
    if (rc == BK_OK) {
        bk_sha256(&digest, object.data, object.len);
        bk_id_hex(hex, &digest);
        bk_ulid(ulid);
        bk_fmt(name, BK_STORAGE_NAME, "index/%s-%s", ulid, hex);
        *bytes = object.len;
        rc = bk_storage_put(to, name, object.data, object.len, true, ctl, err);
    }
    bk_buf_free(&plain);
    bk_buf_free(&object);
    return rc;
}

bk_rc_t bk_index_store(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                       const bk_pack_t *const *packs, size_t count, bk_storage_t *to,
                       char name[BK_STORAGE_NAME], uint64_t *bytes, bk_ctl_t *ctl, bk_err_t *err)
{
    return bk_segment_store(ring, uuid, packs, count, NULL, 0, to, name, bytes, ctl, err);
}
