/*
 * repo/packset.c: a hash set of pack names, and the two questions about packs that the storage
 * answers.
 */
#include "repo/packset.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

#define CONDEMNED_MAX (64u << 20)
#define ASK_EACH      64u /* up to so many packs are looked at one by one */

void bk_packset_free(bk_packset_t *set)
{
    free(set->slots);
    memset(set, 0, sizeof *set);
}

static size_t place_of(const bk_packset_t *set, const bk_id_t *name)
{
    size_t at = (size_t)bk_get_u64(name->b) & (set->cap - 1);
    while (!bk_id_is_zero(&set->slots[at].name) && !bk_id_equal(&set->slots[at].name, name))
        at = (at + 1) & (set->cap - 1);
    return at;
}

bool bk_packset_has(const bk_packset_t *set, const bk_id_t *name)
{
    return set->count > 0 && !bk_id_is_zero(&set->slots[place_of(set, name)].name);
}

bool bk_packset_add(bk_packset_t *set, const bk_id_t *name, bk_kind_t kind)
{
    if (bk_packset_has(set, name) || bk_id_is_zero(name))
        return true;
    if (2 * (set->count + 1) > set->cap) {
        bk_packset_t bigger = {.cap = set->cap > 0 ? 2 * set->cap : 64, .count = set->count};
        bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
        if (bigger.slots == NULL)
            return false;
        for (size_t i = 0; i < set->cap; i++)
            if (!bk_id_is_zero(&set->slots[i].name))
                bigger.slots[place_of(&bigger, &set->slots[i].name)] = set->slots[i];
        free(set->slots);
        *set = bigger;
    }
    set->slots[place_of(set, name)] = (bk_packset_item_t){.name = *name, .kind = (uint8_t)kind};
    set->count++;
    return true;
}

const bk_packset_item_t *bk_packset_next(const bk_packset_t *set, size_t *at)
{
    while (*at < set->cap) {
        const bk_packset_item_t *item = &set->slots[(*at)++];
        if (!bk_id_is_zero(&item->name))
            return item;
    }
    return NULL;
}

const bk_packset_item_t *bk_packset_common(const bk_packset_t *a, const bk_packset_t *b)
{
    size_t at = 0;
    const bk_packset_item_t *item;
    while (b->count > 0 && (item = bk_packset_next(a, &at)) != NULL)
        if (bk_packset_has(b, &item->name))
            return item;
    return NULL;
}

void bk_packset_encode(const bk_packset_t *set, bk_buf_t *out)
{
    size_t at = 0;
    const bk_packset_item_t *item;
    while ((item = bk_packset_next(set, &at)) != NULL) {
        bk_buf_add(out, item->name.b, BK_ID_SIZE);
        bk_buf_u8(out, item->kind);
    }
}

bk_rc_t bk_packset_decode(bk_packset_t *set, const void *data, size_t len, bk_err_t *err)
{
    bk_cur_t cur = bk_cur(data, len);
    if (len % BK_PACKSET_ITEM != 0)
        return bk_err_set(err, BK_CORRUPT, "the list of packs is cut off");
    while (bk_cur_left(&cur) > 0) {
        bk_id_t name;
        memcpy(name.b, bk_cur_bytes(&cur, BK_ID_SIZE), BK_ID_SIZE);
        uint8_t kind = bk_cur_u8(&cur);
        if (kind != BK_KIND_PACK && kind != BK_KIND_META)
            return bk_err_set(err, BK_CORRUPT, "the list of packs is damaged");
        if (!bk_packset_add(set, &name, (bk_kind_t)kind))
            return bk_err_set(err, BK_NO_MEMORY, "read a list of packs: out of memory");
    }
    return BK_OK;
}

/* --- condemned packs --- */

typedef struct {
    bk_repo_t *repo;
    bk_packset_t *set;
    bk_ctl_t *ctl;
} condemned_t;

static bk_rc_t add_names(bk_packset_t *set, const json_t *names, bk_err_t *err)
{
    json_t *name;
    size_t i;
    if (!json_is_array(names))
        return bk_err_set(err, BK_CORRUPT, "not a list of packs");
    json_array_foreach((json_t *)(uintptr_t)names, i, name)
    {
        bk_id_t id;
        if (!json_is_string(name) ||
            !bk_id_unhex(&id, json_string_value(name), json_string_length(name)))
            return bk_err_set(err, BK_CORRUPT, "not a list of packs");
        if (!bk_packset_add(set, &id, BK_KIND_PACK))
            return bk_err_set(err, BK_NO_MEMORY, "out of memory");
    }
    return BK_OK;
}

static bk_rc_t read_condemned(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    condemned_t *condemned = arg;
    bk_repo_t *repo = condemned->repo;
    bk_buf_t object, plain;
    json_t *names = NULL;

    bk_buf_init(&object, CONDEMNED_MAX);
    bk_buf_init(&plain, CONDEMNED_MAX);
    bk_rc_t rc =
        bk_storage_get_all(bk_repo_storage(repo), item->name, &object, condemned->ctl, err);
    if (rc == BK_NOT_FOUND) {
        rc = BK_OK; /* the collector has ended: its packs are gone, which is found out otherwise */
    } else if (rc == BK_OK) {
        rc = bk_object_unwrap(bk_repo_keyring(repo), bk_repo_uuid(repo), BK_KIND_CONDEMNED,
                              object.data, object.len, &plain, err);
        if (rc == BK_OK)
            rc = bk_json_parse(plain.data, plain.len, &names, err);
        if (rc == BK_OK)
            rc = add_names(condemned->set, names, err);
        if (rc != BK_OK)
            bk_err_wrap(err, "%s", item->name);
    }
    json_decref(names);
    bk_buf_free(&object);
    bk_buf_free(&plain);
    return rc;
}

bk_rc_t bk_packset_condemned(bk_repo_t *repo, bk_packset_t *set, bk_ctl_t *ctl, bk_err_t *err)
{
    condemned_t condemned = {.repo = repo, .set = set, .ctl = ctl};
    return bk_storage_list(bk_repo_storage(repo), "condemned/", read_condemned, &condemned, ctl,
                           err);
}

/* --- missing packs --- */

typedef struct {
    const bk_index_t *index;
    bk_packset_t packs;
} present_t;

static bk_rc_t add_present(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    present_t *present = arg;
    bk_id_t name;
    if (bk_object_name_id(item->name, &name) &&
        bk_index_pack_fits(present->index, &name, item->size) &&
        !bk_packset_add(&present->packs, &name, BK_KIND_PACK))
        return bk_err_set(err, BK_NO_MEMORY, "list packs: out of memory");
    return BK_OK;
}

static bk_rc_t ask_each(bk_repo_t *repo, const bk_index_t *index, const bk_packset_t *set,
                        bk_packset_t *missing, bk_ctl_t *ctl, bk_err_t *err)
{
    size_t at = 0;
    const bk_packset_item_t *item;
    while ((item = bk_packset_next(set, &at)) != NULL) {
        char object[BK_STORAGE_NAME];
        uint64_t size = 0;
        bk_err_t why = {0};
        bk_pack_object_name(object, &item->name, (bk_kind_t)item->kind);
        bk_rc_t rc = bk_storage_size(bk_repo_storage(repo), object, &size, ctl, &why);
        if (rc == BK_NOT_FOUND || (rc == BK_OK && !bk_index_pack_fits(index, &item->name, size))) {
            if (!bk_packset_add(missing, &item->name, (bk_kind_t)item->kind))
                return bk_err_set(err, BK_NO_MEMORY, "look for packs: out of memory");
        } else if (rc != BK_OK) {
            if (err != NULL)
                *err = why;
            return rc;
        }
    }
    return BK_OK;
}

bk_rc_t bk_packset_missing(bk_repo_t *repo, const bk_packset_t *set, bk_packset_t *missing,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    present_t present = {0};
    bk_index_t *index;
    size_t at = 0;
    const bk_packset_item_t *item;
    bk_rc_t rc = bk_repo_index(repo, ctl, &index, err);
    if (rc != BK_OK)
        return rc;
    if (set->count <= ASK_EACH)
        return ask_each(repo, index, set, missing, ctl, err);
    present.index = index;
    rc = bk_storage_list(bk_repo_storage(repo), "packs/", add_present, &present, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_list(bk_repo_storage(repo), "meta/", add_present, &present, ctl, err);
    while (rc == BK_OK && (item = bk_packset_next(set, &at)) != NULL)
        if (!bk_packset_has(&present.packs, &item->name) &&
            !bk_packset_add(missing, &item->name, (bk_kind_t)item->kind))
            rc = bk_err_set(err, BK_NO_MEMORY, "look for packs: out of memory");
    bk_packset_free(&present.packs);
    return rc;
}
