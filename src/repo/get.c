/*
 * repo/get.c: single chunks by id, from wherever there is a sound copy.
 */
#include <stdlib.h>
#include <string.h>

#include "repo/doubt.h"
#include "repo/repo_private.h"

#define COPIES 4 /* of one chunk that are tried */

bk_rc_t bk_repo_pack_key(bk_repo_t *repo, const bk_id_t *pack, bk_kind_t kind, bk_object_key_t *key,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    uint8_t header[BK_OBJECT_HEADER];
    size_t got;
    bk_packcache_t *cache = bk_repo_packcache(repo);

    if (bk_packcache_find_key(cache, pack, key))
        return BK_OK;
    bk_pack_object_name(name, pack, kind);
    bk_rc_t rc =
        bk_objects_get(bk_repo_objects(repo), name, 0, sizeof header, header, &got, ctl, err);
    if (rc == BK_OK && got != sizeof header)
        rc = bk_err_set(err, BK_CORRUPT, "cut off");
    if (rc == BK_OK)
        rc = bk_object_key_open(bk_repo_keyring(repo), bk_repo_uuid(repo), kind, header, key, err);
    if (rc == BK_OK)
        bk_packcache_add_key(cache, pack, key);
    return rc;
}

/* The stored bytes of a frame, and the key of its pack. */
static bk_rc_t read_frame(bk_repo_t *repo, const bk_location_t *where, uint8_t *frame,
                          bk_object_key_t *key, bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    uint8_t header[BK_OBJECT_HEADER];
    size_t got = 0;
    bk_packcache_t *cache = bk_repo_packcache(repo);
    bk_rc_t rc;
    if (where->kind == BK_KIND_META) {
        rc = bk_packcache_frame(cache, bk_repo_objects(repo), where, header, frame, ctl, err);
        if (rc == BK_OK && !bk_packcache_find_key(cache, &where->pack, key)) {
            rc = bk_object_key_open(bk_repo_keyring(repo), bk_repo_uuid(repo), where->kind, header,
                                    key, err);
            if (rc == BK_OK)
                bk_packcache_add_key(cache, &where->pack, key);
        }
        return rc;
    }
    rc = bk_repo_pack_key(repo, &where->pack, where->kind, key, ctl, err);
    if (rc != BK_OK)
        return rc;
    bk_pack_object_name(name, &where->pack, where->kind);
    rc = bk_objects_get(bk_repo_objects(repo), name, where->entry.offset, where->entry.stored,
                        frame, &got, ctl, err);
    if (rc == BK_OK && got != where->entry.stored)
        rc = bk_err_set(err, BK_CORRUPT, "cut off");
    return rc;
}

static bk_rc_t read_at(bk_repo_t *repo, const bk_location_t *where, bk_buf_t *out, bk_ctl_t *ctl,
                       bk_err_t *err)
{
    bk_object_key_t key = {0};
    char name[BK_STORAGE_NAME];
    uint8_t *frame = NULL, *room = NULL;
    bk_rc_t rc = BK_OK;
    /* Whoever asks knows how long such a chunk can be: a longer one is not a lack of memory. */
    if (where->entry.raw > out->max)
        rc = bk_err_set(err, BK_CORRUPT, "it has %u bytes, more than any of its kind",
                        (unsigned)where->entry.raw);
    else if ((frame = malloc(where->entry.stored + 1u)) == NULL ||
             (room = bk_buf_room(out, where->entry.raw)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "out of memory");
    if (rc == BK_OK)
        rc = read_frame(repo, where, frame, &key, ctl, err);
    if (rc == BK_OK)
        rc = bk_pack_frame(bk_repo_keyring(repo), &key, &where->entry, frame, room, err);
    if (rc == BK_OK) {
        out->len += where->entry.raw;
    } else {
        if (room != NULL)
            bk_doubt_add_failure(bk_repo_doubt(repo), rc, &where->pack, where->kind);
        bk_pack_object_name(name, &where->pack, where->kind);
        bk_err_wrap(err, "%s", name);
    }
    free(frame);
    bk_object_key_wipe(&key);
    return rc;
}

typedef struct {
    bk_id_t packs[COPIES];
    size_t count;
} tried_t;

static bool was_tried(void *arg, const bk_id_t *pack)
{
    const tried_t *tried = arg;
    for (size_t i = 0; i < tried->count; i++)
        if (bk_id_equal(&tried->packs[i], pack))
            return true;
    return false;
}

static bool gives_up(bk_rc_t rc)
{
    return rc == BK_OK || rc == BK_CANCELED || rc == BK_INTERRUPTED || rc == BK_NO_MEMORY;
}

/*
 * Every copy the index knows, newest first; the first failure is the one that is told.
 * BK_NOT_FOUND: it knows none.
 */
static bk_rc_t read_indexed(bk_repo_t *repo, const bk_index_t *index, const bk_id_t *id,
                            bk_buf_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    tried_t tried = {.count = 0};
    bk_location_t where;
    bk_rc_t first = BK_NOT_FOUND;
    while (tried.count < COPIES &&
           bk_index_find_except(index, id, tried.count > 0 ? was_tried : NULL, &tried, &where)) {
        bk_err_t why = {0};
        bk_buf_reset(out);
        bk_rc_t rc = read_at(repo, &where, out, ctl, &why);
        if (gives_up(rc)) {
            if (rc != BK_OK && err != NULL)
                *err = why;
            return rc;
        }
        if (tried.count == 0) {
            /* The index promised it: what is missing is damage, too. */
            first = why.rc = rc == BK_NOT_FOUND ? BK_CORRUPT : rc;
            if (err != NULL)
                *err = why;
        }
        tried.packs[tried.count++] = where.pack;
    }
    bk_buf_reset(out);
    return first;
}

bk_rc_t bk_repo_get(bk_repo_t *repo, const bk_id_t *id, bk_buf_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_index_t *index;
    bk_location_t where;
    char hex[BK_ID_HEX];
    bk_err_t why = {0};

    bk_buf_reset(out);
    bk_id_hex(hex, id);
    bk_rc_t rc = bk_repo_index(repo, ctl, &index, err);
    if (rc != BK_OK)
        return rc;
    rc = read_indexed(repo, index, id, out, ctl, &why);
    if (rc == BK_NOT_FOUND) {
        rc = bk_repo_read_recent(repo, id, out, &where, ctl, &why);
        if (rc == BK_EXISTS)
            rc = read_at(repo, &where, out, ctl, &why);
        /* It may have moved from there to the index between the two. */
        if (rc == BK_NOT_FOUND)
            rc = read_indexed(repo, index, id, out, ctl, &why);
        if (rc == BK_NOT_FOUND)
            rc = bk_err_set(&why, BK_CORRUPT, "it is not in the index of this repository");
    }
    if (rc != BK_OK) {
        bk_buf_reset(out);
        bk_err_wrap(&why, "chunk %.16s…", hex);
        if (err != NULL)
            *err = why;
    }
    return rc;
}
