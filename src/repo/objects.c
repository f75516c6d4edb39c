/*
 * repo/objects.c: the storage first, then the spool.
 */
#include "repo/objects.h"

#include <string.h>

#include "base/str.h"

bk_rc_t bk_objects_get(const bk_objects_t *objects, const char *name, uint64_t offset, size_t len,
                       void *out, size_t *got, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_storage_get(objects->storage, name, offset, len, out, got, ctl, err);
    if (rc == BK_NOT_FOUND && objects->spool != NULL)
        rc = bk_storage_get(objects->spool, name, offset, len, out, got, ctl, err);
    return rc;
}

bk_rc_t bk_objects_get_all(const bk_objects_t *objects, const char *name, bk_buf_t *out,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_storage_get_all(objects->storage, name, out, ctl, err);
    if (rc == BK_NOT_FOUND && objects->spool != NULL)
        rc = bk_storage_get_all(objects->spool, name, out, ctl, err);
    return rc;
}

bk_rc_t bk_objects_size(const bk_objects_t *objects, const char *name, uint64_t *size,
                        bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_storage_size(objects->storage, name, size, ctl, err);
    if (rc == BK_NOT_FOUND && objects->spool != NULL)
        rc = bk_storage_size(objects->spool, name, size, ctl, err);
    return rc;
}

bk_rc_t bk_objects_list(const bk_objects_t *objects, const char *prefix, bk_storage_list_fn fn,
                        void *arg, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_storage_list(objects->storage, prefix, fn, arg, ctl, err);
    if (rc == BK_OK && objects->spool != NULL)
        rc = bk_storage_list(objects->spool, prefix, fn, arg, ctl, err);
    return rc;
}

void bk_pack_object_name(char *out, const bk_id_t *name, bk_kind_t kind)
{
    char hex[BK_ID_HEX];
    bk_id_hex(hex, name);
    bk_fmt(out, BK_STORAGE_NAME, "%s/%.2s/%s", kind == BK_KIND_META ? "meta" : "packs", hex, hex);
}

bool bk_object_name_id(const char *name, bk_id_t *id)
{
    size_t len = strlen(name);
    if (len <= 2 * BK_ID_SIZE)
        return false;
    const char *hex = name + len - 2 * BK_ID_SIZE;
    return (hex[-1] == '/' || hex[-1] == '-') && bk_id_unhex(id, hex, 2 * BK_ID_SIZE);
}
