/*
 * repo/spool.c: from the spool to the storage, also after a crash in the middle of it.
 */
#include "repo/spool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/publish.h"
#include "base/str.h"
#include "base/texts.h"
#include "repo/packset.h"
#include "repo/session.h"

#define CHECK_STEP (4u << 20)
#define RELIES_MAX (256u << 20)

bk_rc_t bk_spool_ship_one(bk_repo_t *repo, const char *name, bool remove, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    char path[4096];
    if (!bk_fmt(path, sizeof path, "%s/%s", bk_repo_spool_dir(repo), name))
        return bk_err_set(err, BK_INVALID, "%s: the spool's path is too long", name);
    bk_rc_t rc = bk_storage_put_file(bk_repo_storage(repo), name, path, ctl, err);
    if (rc == BK_OK && remove)
        rc = bk_storage_remove(bk_repo_objects(repo)->spool, name, NULL, err);
    return rc;
}

static bk_rc_t ship_all(bk_repo_t *repo, const char *prefix, bool remove, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    bk_texts_t list = {0};
    bk_rc_t rc =
        bk_storage_list(bk_repo_objects(repo)->spool, prefix, bk_storage_collect, &list, ctl, err);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++)
        rc = bk_spool_ship_one(repo, list.items[i].text, remove, ctl, err);
    bk_texts_free(&list);
    return rc;
}

/*
 * Spooled packs (on the storage by now) that no index segment names get one of their own; then they
 * leave the spool.
 */
static bk_rc_t index_packs(bk_repo_t *repo, const bk_texts_t *list, bk_kind_t kind, bk_ctl_t *ctl,
                           bk_err_t *err)
{
    bk_index_t *index;
    char segment[BK_STORAGE_NAME];
    uint64_t bytes;
    size_t count = 0;
    bk_rc_t rc = bk_repo_index(repo, ctl, &index, err);
    bk_pack_t **packs = calloc(list->count + 1, sizeof *packs);
    if (rc == BK_OK && packs == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "index the spool: out of memory");
    for (size_t i = 0; i < list->count && rc == BK_OK; i++) {
        bk_err_t why = {0};
        bk_id_t id;
        bk_pack_t *pack = calloc(1, sizeof *pack);
        if (pack == NULL) {
            rc = bk_err_set(err, BK_NO_MEMORY, "index the spool: out of memory");
        } else if (!bk_object_name_id(list->items[i].text, &id) || bk_index_has_pack(index, &id)) {
            free(pack);
        } else if ((rc = bk_pack_read_entries(bk_repo_objects(repo), bk_repo_keyring(repo),
                                              bk_repo_uuid(repo), list->items[i].text,
                                              list->items[i].size, kind, pack, ctl, &why)) ==
                   BK_OK) {
            packs[count++] = pack;
        } else {
            free(pack);
            if (rc == BK_CORRUPT || rc == BK_WRONG_KEY) {
                bk_ctl_note(ctl, "%s in the spool: %s; it is left out", list->items[i].text,
                            why.text);
                rc = BK_OK;
            } else if (err != NULL) {
                *err = why;
            }
        }
    }
    if (rc == BK_OK && count > 0)
        rc = bk_index_store(bk_repo_keyring(repo), bk_repo_uuid(repo),
                            (const bk_pack_t *const *)packs, count, bk_repo_storage(repo), segment,
                            &bytes, ctl, err);
    for (size_t i = 0; i < count; i++) {
        free(packs[i]->entries);
        free(packs[i]);
    }
    free(packs);
    return rc;
}

/* A pack's SHA-256 is its name: nothing else may get to the storage under it. */
static bk_rc_t pack_is_sound(bk_storage_t *spool, const char *name, uint64_t size, bool *sound,
                             bk_ctl_t *ctl, bk_err_t *err)
{
    bk_id_t wanted, actual;
    uint8_t *bytes = malloc(CHECK_STEP);
    bk_sha256_t *sha = bk_sha256_new();
    bk_rc_t rc = BK_OK;
    *sound = false;
    if (bytes == NULL || sha == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "check the spool: out of memory");
    for (uint64_t at = 0; rc == BK_OK && at < size;) {
        size_t got = 0;
        rc = bk_storage_get(spool, name, at, CHECK_STEP, bytes, &got, ctl, err);
        if (rc == BK_OK && got == 0)
            break;
        bk_sha256_add(sha, bytes, got);
        at += got;
    }
    if (rc == BK_OK) {
        bk_sha256_end(sha, &actual);
        *sound = bk_object_name_id(name, &wanted) && bk_id_equal(&wanted, &actual);
    }
    bk_sha256_free(sha);
    free(bytes);
    return rc;
}

/* Publish one pack; one that is damaged is thrown away, so that its chunks are stored again. */
static bk_rc_t ship_pack(bk_repo_t *repo, const char *name, uint64_t size, bool *shipped,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    bk_storage_t *spool = bk_repo_objects(repo)->spool;
    uint64_t there = 0;
    bool other = bk_storage_size(bk_repo_storage(repo), name, &there, ctl, NULL) == BK_OK;
    *shipped = other && there == size;
    if (*shipped)
        return BK_OK;
    bk_rc_t rc = pack_is_sound(spool, name, size, shipped, ctl, err);
    /* Objects are never overwritten: one that was cut off would stay in its way. */
    if (rc == BK_OK && *shipped && other)
        rc = bk_storage_remove(bk_repo_storage(repo), name, ctl, err);
    if (rc == BK_OK && *shipped)
        return bk_spool_ship_one(repo, name, false, ctl, err);
    if (rc == BK_OK) {
        bk_ctl_note(ctl, "%s in the spool is damaged: it is left out", name);
        rc = bk_storage_remove(spool, name, ctl, err);
    }
    return rc;
}

static bk_rc_t ship_packs(bk_repo_t *repo, const char *prefix, bk_kind_t kind, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    bk_texts_t list = {0};
    size_t kept = 0;
    bk_storage_t *spool = bk_repo_objects(repo)->spool;
    bk_rc_t rc = bk_storage_list(spool, prefix, bk_storage_collect, &list, ctl, err);
    for (size_t i = 0; i < list.count; i++) {
        bool shipped = false;
        if (rc == BK_OK)
            rc = ship_pack(repo, list.items[i].text, list.items[i].size, &shipped, ctl, err);
        if (shipped) {
            bk_text_t left_out = list.items[kept];
            list.items[kept++] = list.items[i];
            list.items[i] = left_out;
        }
    }
    bk_texts_cut(&list, kept);
    if (rc == BK_OK && list.count > 0)
        rc = index_packs(repo, &list, kind, ctl, err);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++)
        rc = bk_storage_remove(spool, list.items[i].text, ctl, err);
    bk_texts_free(&list);
    return rc;
}

/* --- snapshots --- */

void bk_spool_relies_name(char out[BK_STORAGE_NAME], const char *snapshot)
{
    bk_fmt(out, BK_STORAGE_NAME, "relies/%s", strrchr(snapshot, '/') + 1);
}

void bk_spool_forget_snapshot(bk_repo_t *repo, const char *snapshot)
{
    char relies[BK_STORAGE_NAME];
    bk_storage_t *spool = bk_repo_objects(repo)->spool;
    bk_spool_relies_name(relies, snapshot);
    /* In this order: a list without its snapshot is harmless. */
    if (bk_storage_remove(spool, snapshot, NULL, NULL) == BK_OK)
        bk_storage_remove(spool, relies, NULL, NULL);
}

/* *whole: every pack is on the storage and none is condemned. */
static bk_rc_t relies_on_what_is_there(bk_repo_t *repo, const bk_packset_t *relied, bool *whole,
                                       bk_ctl_t *ctl, bk_err_t *err)
{
    bk_packset_t condemned = {0}, missing = {0};
    bk_rc_t rc = bk_packset_condemned(repo, &condemned, ctl, err);
    if (rc == BK_OK)
        rc = bk_packset_missing(repo, relied, &missing, ctl, err);
    *whole = rc == BK_OK && missing.count == 0 && bk_packset_common(relied, &condemned) == NULL;
    bk_packset_free(&condemned);
    bk_packset_free(&missing);
    return rc;
}

static bk_rc_t load_relied(bk_repo_t *repo, const char *snapshot, bk_packset_t *relied,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    char relies[BK_STORAGE_NAME];
    bk_buf_t bytes;
    bk_spool_relies_name(relies, snapshot);
    bk_buf_init(&bytes, RELIES_MAX);
    bk_rc_t rc = bk_storage_get_all(bk_repo_objects(repo)->spool, relies, &bytes, ctl, err);
    if (rc == BK_OK)
        rc = bk_packset_decode(relied, bytes.data, bytes.len, err);
    bk_buf_free(&bytes);
    return rc;
}

/*
 * The session that wrote it has ended or died; what the commit does in its order is done here in
 * the same order.
 */
static bk_rc_t ship_snapshot(bk_repo_t *repo, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_packset_t relied = {0};
    bk_err_t why = {0};
    bool whole = false;
    bk_rc_t rc = load_relied(repo, name, &relied, ctl, &why);
    if (rc == BK_CORRUPT || rc == BK_NOT_FOUND) { /* cannot be checked: not listed */
        rc = BK_OK;
    } else if (rc == BK_OK) {
        rc = relies_on_what_is_there(repo, &relied, &whole, ctl, &why);
        if (rc == BK_OK && whole)
            rc = bk_spool_ship_one(repo, name, false, ctl, &why);
        if (rc == BK_OK && whole)
            rc = relies_on_what_is_there(repo, &relied, &whole, ctl, &why);
    }
    bk_packset_free(&relied);
    if (rc != BK_OK) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    if (!whole) {
        bk_ctl_note(ctl,
                    "%s, which waited in the spool, relies on packs that are gone: it is dropped",
                    name);
        rc = bk_storage_remove(bk_repo_storage(repo), name, ctl, err);
    }
    if (rc == BK_OK)
        bk_spool_forget_snapshot(repo, name);
    return rc;
}

static bk_rc_t ship_snapshots(bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_texts_t list = {0};
    bk_storage_t *spool = bk_repo_objects(repo)->spool;
    bk_rc_t rc = bk_storage_list(spool, "snapshots/", bk_storage_collect, &list, ctl, err);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++)
        rc = ship_snapshot(repo, list.items[i].text, ctl, err);
    bk_texts_free(&list);
    /* Lists whose snapshot never came to be. */
    if (rc == BK_OK)
        rc = bk_storage_list(spool, "relies/", bk_storage_collect, &list, ctl, err);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++)
        rc = bk_storage_remove(spool, list.items[i].text, ctl, err);
    bk_texts_free(&list);
    return rc;
}

bk_rc_t bk_spool_ship(bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_index_t *index;
    bk_rc_t rc = bk_repo_index(repo, ctl, &index, err);
    if (rc == BK_OK)
        rc = bk_index_refresh(index, ctl, err);
    if (rc == BK_OK)
        rc = ship_packs(repo, "packs/", BK_KIND_PACK, ctl, err);
    if (rc == BK_OK)
        rc = ship_packs(repo, "meta/", BK_KIND_META, ctl, err);
    if (rc == BK_OK)
        rc = ship_all(repo, "index/", true, ctl, err);
    if (rc == BK_OK)
        rc = ship_snapshots(repo, ctl, err);
    return rc;
}

typedef struct {
    uint64_t objects, bytes;
} measure_t;

static bk_rc_t add_size(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    measure_t *measure = arg;
    (void)err;
    if (strncmp(item->name, "relies/", strlen("relies/")) != 0) {
        measure->objects++;
        measure->bytes += item->size;
    }
    return BK_OK;
}

bk_rc_t bk_spool_measure(const char *spool_dir, uint64_t *objects, uint64_t *bytes, bk_err_t *err)
{
    bk_storage_t *spool = NULL;
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("spool")};
    measure_t measure = {0};
    bk_rc_t rc = config.driver != NULL && config.name != NULL
                     ? bk_storage_config_set(&config, "path", spool_dir, err)
                     : bk_err_set(err, BK_NO_MEMORY, "measure the spool: out of memory");
    if (rc == BK_OK)
        rc = bk_storage_open(&config, &spool, err);
    if (rc == BK_OK)
        rc = bk_storage_list(spool, "", add_size, &measure, NULL, err);
    if (rc == BK_NOT_FOUND) { /* no backup ever used it */
        bk_err_clear(err);
        rc = BK_OK;
    }
    bk_storage_close(spool);
    bk_storage_config_free(&config);
    *objects = measure.objects;
    *bytes = measure.bytes;
    return rc;
}
