/*
 * repo/index_store.c: what goes into index segments and out to the storage: entries of stored
 * packs, sealed segments.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "repo/index.h"

#define SEGMENT_MAX (1u << 30)

bk_rc_t bk_pack_read_entries(const bk_objects_t *objects, const bk_keyring_t *ring,
                             const uint8_t uuid[BK_UUID_SIZE], const char *name, uint64_t size,
                             bk_kind_t kind, bk_pack_t *pack, bk_ctl_t *ctl, bk_err_t *err)
{
    uint8_t header[BK_OBJECT_HEADER], trailer[32];
    bk_pack_trailer_t where;
    bk_object_key_t key = {0};
    uint8_t *directory = NULL;
    size_t got;

    memset(pack, 0, sizeof *pack);
    pack->kind = kind;
    bk_buf_init(&pack->bytes, BK_PACK_MAX);
    if (!bk_object_name_id(name, &pack->name) || size < BK_OBJECT_HEADER + sizeof trailer ||
        size > BK_PACK_MAX)
        return bk_err_set(err, BK_CORRUPT, "%s: not a pack", name);
    bk_rc_t rc = bk_objects_get(objects, name, 0, sizeof header, header, &got, ctl, err);
    if (rc == BK_OK)
        rc = bk_object_key_open(ring, uuid, kind, header, &key, err);
    if (rc == BK_OK)
        rc = bk_objects_get(objects, name, size - sizeof trailer, sizeof trailer, trailer, &got,
                            ctl, err);
    if (rc == BK_OK && got != sizeof trailer)
        rc = bk_err_set(err, BK_CORRUPT, "%s: cut off", name);
    if (rc == BK_OK)
        rc = bk_pack_trailer(trailer, size, &where, err);
    if (rc == BK_OK && (directory = malloc(where.length + 1u)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", name);
    if (rc == BK_OK)
        rc = bk_objects_get(objects, name, where.offset, where.length, directory, &got, ctl, err);
    if (rc == BK_OK && got != where.length)
        rc = bk_err_set(err, BK_CORRUPT, "%s: cut off", name);
    if (rc == BK_OK)
        rc = bk_pack_directory(&key, directory, &where, &pack->entries, err);
    if (rc == BK_OK) {
        pack->count = where.count;
        pack->bytes.len = (size_t)size; /* only its length is used by bk_index_encode */
    }
    free(directory);
    bk_object_key_wipe(&key);
    return rc;
}

bk_rc_t bk_index_store(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                       const bk_pack_t *const *packs, size_t count, bk_storage_t *to,
                       char name[BK_STORAGE_NAME], uint64_t *bytes, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t plain, object;
    char ulid[BK_ULID_LEN + 1], hex[BK_ID_HEX];
    bk_id_t digest;
    bk_buf_init(&plain, SEGMENT_MAX);
    bk_buf_init(&object, SEGMENT_MAX);
    bk_rc_t rc = bk_index_encode(packs, count, bk_now(), &plain, err);
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
