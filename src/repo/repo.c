/*
 * repo/repo.c: opening and creating a repository, and single chunks out of it.
 */
#include "repo/repo.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/repo_private.h"

#define FORMAT_MAX (64u << 10)
#define META_PACKS 6 /* whole metadata packs kept; each about BK_META_TARGET */

typedef struct {
    bk_id_t name;
    bk_object_key_t key;
    uint8_t *bytes; /* the whole pack, as stored; NULL: place is free */
    size_t len;
    uint64_t used; /* clock of the last use */
} meta_pack_t;

#define PACK_KEYS 256 /* direct-mapped by the first byte of the pack's name */

typedef struct {
    bool valid;
    bk_id_t name;
    bk_object_key_t key;
} pack_key_t;

struct bk_repo_s {
    bk_objects_t objects;
    bk_keyring_t *ring;
    bk_chunker_t chunker;
    uint8_t uuid[BK_UUID_SIZE];
    char *cache_dir, *spool_dir;
    pthread_mutex_t lock; /* guards what follows */
    bk_index_t *index;
    meta_pack_t meta[META_PACKS];
    uint64_t clock;
    pack_key_t keys[PACK_KEYS];
};

/* --- FORMAT --- */

static bk_rc_t write_format(bk_repo_t *repo, bool encrypted, bk_ctl_t *ctl, bk_err_t *err)
{
    char uuid[2 * BK_UUID_SIZE + 1], created[BK_TIME_TEXT];
    bk_buf_t text;
    bk_hex(uuid, repo->uuid, BK_UUID_SIZE);
    bk_time_format(created, bk_now());
    json_t *format = json_pack(
        "{ss si ss sb ss ss}", "format", "ngx-backup repository", "version", BK_FORMAT_VERSION,
        "repository", uuid, "encrypted", encrypted, "created", created, "restore",
        "Install ngx-backup on any machine and run: ngx-backup recover --storage <where this file "
        "lies> --key-file <your key> --target <empty directory>. docs/repository-format.md of the "
        "project describes every byte.");
    bk_buf_init(&text, FORMAT_MAX);
    bk_rc_t rc = bk_json_dump(format, false, &text, err);
    json_decref(format);
    if (rc == BK_OK)
        rc = bk_storage_put(repo->objects.storage, "FORMAT", text.data, text.len, true, ctl, err);
    bk_buf_free(&text);
    return rc;
}

static bk_rc_t read_format(bk_repo_t *repo, bool *encrypted, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t text;
    json_t *format = NULL;
    bk_buf_init(&text, FORMAT_MAX);
    bk_rc_t rc = bk_storage_get_all(repo->objects.storage, "FORMAT", &text, ctl, err);
    if (rc == BK_NOT_FOUND)
        rc = bk_err_set(
            err, BK_REPO_MISSING,
            "%s %s holds no repository (there is no FORMAT object); the first backup makes one",
            bk_storage_driver(repo->objects.storage), bk_storage_name(repo->objects.storage));
    if (rc == BK_OK)
        rc = bk_json_parse(text.data, text.len, &format, err);
    bk_buf_free(&text);
    if (rc == BK_MALFORMED)
        return bk_err_set(err, BK_CORRUPT, "the repository's FORMAT object is damaged");
    if (rc != BK_OK)
        return rc;
    const char *magic = json_string_value(json_object_get(format, "format"));
    const char *uuid = json_string_value(json_object_get(format, "repository"));
    json_int_t version = json_integer_value(json_object_get(format, "version"));
    *encrypted = json_is_true(json_object_get(format, "encrypted"));
    if (magic == NULL || strcmp(magic, "ngx-backup repository") != 0 || uuid == NULL ||
        version < 1 || !bk_unhex(repo->uuid, BK_UUID_SIZE, uuid, strlen(uuid)))
        rc = bk_err_set(err, BK_CORRUPT, "the repository's FORMAT object is damaged");
    else if (version > BK_FORMAT_VERSION)
        rc = bk_err_set(err, BK_UNSUPPORTED,
                        "the repository has format %d, this ngx-backup knows up to %d: upgrade it",
                        (int)version, BK_FORMAT_VERSION);
    json_decref(format);
    return rc;
}

/* Slot first, FORMAT last: a crash between them leaves a slot that nobody looks at. */
static bk_rc_t create(bk_repo_t *repo, const bk_repo_options_t *options, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    bool secret = options->secret.key != NULL || options->secret.passphrase != NULL;
    if (!options->plain && !secret)
        return bk_err_set(err, BK_CONFIG, "a new encrypted repository needs a key or a passphrase");
    bk_random(repo->uuid, BK_UUID_SIZE);
    repo->ring = options->plain ? bk_keyring_plain() : bk_keyring_new();
    if (repo->ring == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "make a repository: out of memory");
    if (!options->plain)
        rc = bk_repo_write_slot(repo, &options->secret,
                                options->label != NULL ? options->label : "", NULL, 0, ctl, err);
    if (rc == BK_OK)
        rc = write_format(repo, !options->plain, ctl, err);
    return rc;
}

static bk_rc_t unlock(bk_repo_t *repo, const bk_repo_options_t *options, bool encrypted,
                      bk_ctl_t *ctl, bk_err_t *err)
{
    bool secret = options->secret.key != NULL || options->secret.passphrase != NULL;
    if (!encrypted) {
        if (secret || (options->create && !options->plain))
            return bk_err_set(
                err, BK_CONFIG,
                "the repository is not encrypted, but a key is configured: leave the key "
                "out, or use an empty storage for an encrypted one");
        repo->ring = bk_keyring_plain();
        return repo->ring != NULL ? BK_OK
                                  : bk_err_set(err, BK_NO_MEMORY, "open repository: out of memory");
    }
    if (!secret)
        return bk_err_set(err, BK_CONFIG,
                          "the repository is encrypted: give its key or passphrase");
    return bk_repo_try_slots(repo, &options->secret, &repo->ring, ctl, err);
}

static bk_rc_t open_spool(bk_repo_t *repo, const char *dir, bk_err_t *err)
{
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("spool")};
    bk_rc_t rc = config.driver != NULL && config.name != NULL
                     ? bk_storage_config_set(&config, "path", dir, err)
                     : bk_err_set(err, BK_NO_MEMORY, "open spool: out of memory");
    if (rc == BK_OK)
        rc = bk_storage_open(&config, &repo->objects.spool, err);
    bk_storage_config_free(&config);
    return rc;
}

bk_rc_t bk_repo_open(const bk_repo_options_t *options, bk_ctl_t *ctl, bk_repo_t **result,
                     bk_err_t *err)
{
    bool encrypted = false;
    bk_repo_t *repo = calloc(1, sizeof *repo);
    if (repo == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "open repository: out of memory");
    pthread_mutex_init(&repo->lock, NULL);
    repo->objects.storage = options->storage;
    repo->cache_dir = bk_strdup(options->cache_dir);
    repo->spool_dir = bk_strdup(options->spool_dir);
    bk_rc_t rc = BK_OK;
    if (repo->cache_dir == NULL || (options->spool_dir != NULL && repo->spool_dir == NULL))
        rc = bk_err_set(err, BK_NO_MEMORY, "open repository: out of memory");
    if (rc == BK_OK && options->spool_dir != NULL)
        rc = open_spool(repo, options->spool_dir, err);
    if (rc == BK_OK) {
        rc = read_format(repo, &encrypted, ctl, err);
        bool made = false;
        if (rc == BK_REPO_MISSING && options->create) {
            bk_err_clear(err);
            rc = create(repo, options, ctl, err);
            made = rc == BK_OK;
            if (rc == BK_EXISTS) { /* another creator was faster: theirs it is */
                bk_keyring_free(repo->ring);
                repo->ring = NULL;
                bk_err_clear(err);
                rc = read_format(repo, &encrypted, ctl, err);
            }
        }
        if (rc == BK_OK && !made)
            rc = unlock(repo, options, encrypted, ctl, err);
    }
    if (rc != BK_OK) {
        bk_repo_close(repo);
        return rc;
    }
    bk_chunker_init(&repo->chunker, bk_keyring_chunker_key(repo->ring));
    *result = repo;
    return BK_OK;
}

void bk_repo_close(bk_repo_t *repo)
{
    if (repo == NULL)
        return;
    bk_index_close(repo->index);
    for (size_t i = 0; i < META_PACKS; i++)
        free(repo->meta[i].bytes);
    explicit_bzero(repo->meta, sizeof repo->meta);
    explicit_bzero(repo->keys, sizeof repo->keys);
    if (repo->ring != NULL)
        bk_keyring_free(repo->ring);
    bk_storage_close(repo->objects.spool);
    pthread_mutex_destroy(&repo->lock);
    free(repo->cache_dir);
    free(repo->spool_dir);
    free(repo);
}

bk_storage_t *bk_repo_storage(bk_repo_t *repo)
{
    return repo->objects.storage;
}

const bk_objects_t *bk_repo_objects(const bk_repo_t *repo)
{
    return &repo->objects;
}

const char *bk_repo_spool_dir(const bk_repo_t *repo)
{
    return repo->spool_dir;
}

const bk_keyring_t *bk_repo_keyring(const bk_repo_t *repo)
{
    return repo->ring;
}

const uint8_t *bk_repo_uuid(const bk_repo_t *repo)
{
    return repo->uuid;
}

const bk_chunker_t *bk_repo_chunker(const bk_repo_t *repo)
{
    return &repo->chunker;
}

bool bk_repo_encrypted(const bk_repo_t *repo)
{
    return bk_keyring_encrypted(repo->ring);
}

bk_rc_t bk_repo_index(bk_repo_t *repo, bk_ctl_t *ctl, bk_index_t **index, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&repo->lock);
    if (repo->index == NULL)
        rc = bk_index_open(&repo->objects, repo->ring, repo->uuid, repo->cache_dir, ctl,
                           &repo->index, err);
    *index = repo->index;
    pthread_mutex_unlock(&repo->lock);
    return rc;
}

/* --- chunks --- */

bk_rc_t bk_repo_pack_key(bk_repo_t *repo, const bk_id_t *pack, bk_kind_t kind, bk_object_key_t *key,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    uint8_t header[BK_OBJECT_HEADER];
    size_t got;
    pack_key_t *place = &repo->keys[pack->b[0]];

    pthread_mutex_lock(&repo->lock);
    bool known = place->valid && bk_id_equal(&place->name, pack);
    if (known)
        *key = place->key;
    pthread_mutex_unlock(&repo->lock);
    if (known)
        return BK_OK;
    bk_pack_object_name(name, pack, kind);
    bk_rc_t rc = bk_objects_get(&repo->objects, name, 0, sizeof header, header, &got, ctl, err);
    if (rc == BK_OK && got != sizeof header)
        rc = bk_err_set(err, BK_CORRUPT, "%s: cut off", name);
    if (rc == BK_OK &&
        (rc = bk_object_key_open(repo->ring, repo->uuid, kind, header, key, err)) != BK_OK)
        bk_err_wrap(err, "%s", name);
    if (rc == BK_OK) {
        pthread_mutex_lock(&repo->lock);
        place->valid = true;
        place->name = *pack;
        place->key = *key;
        pthread_mutex_unlock(&repo->lock);
    }
    return rc;
}

/* Lock held.  The whole metadata pack, read when it is not here; *found is valid until the lock is released. */
static bk_rc_t meta_pack(bk_repo_t *repo, const bk_location_t *where, meta_pack_t **found,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    meta_pack_t *oldest = &repo->meta[0];
    for (size_t i = 0; i < META_PACKS; i++) {
        meta_pack_t *place = &repo->meta[i];
        if (place->bytes != NULL && bk_id_equal(&place->name, &where->pack)) {
            place->used = ++repo->clock;
            *found = place;
            return BK_OK;
        }
        if (place->bytes == NULL || (oldest->bytes != NULL && place->used < oldest->used))
            oldest = place;
    }
    size_t got, len = where->pack_size;
    uint8_t *bytes = malloc(len);
    if (bytes == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read metadata: out of memory");
    bk_pack_object_name(name, &where->pack, where->kind);
    bk_rc_t rc = bk_objects_get(&repo->objects, name, 0, len, bytes, &got, ctl, err);
    if (rc == BK_OK && (got != len || len < BK_OBJECT_HEADER))
        rc = bk_err_set(err, BK_CORRUPT, "%s: cut off", name);
    if (rc == BK_OK)
        rc = bk_object_key_open(repo->ring, repo->uuid, where->kind, bytes, &oldest->key, err);
    if (rc != BK_OK) {
        free(bytes);
        return rc;
    }
    free(oldest->bytes);
    oldest->bytes = bytes;
    oldest->len = len;
    oldest->name = where->pack;
    oldest->used = ++repo->clock;
    *found = oldest;
    return BK_OK;
}

/* The stored bytes of a frame, and the key of its pack. */
static bk_rc_t read_frame(bk_repo_t *repo, const bk_location_t *where, uint8_t *frame,
                          bk_object_key_t *key, bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    size_t got = 0;
    bk_rc_t rc;
    if (where->kind == BK_KIND_META) {
        meta_pack_t *pack = NULL;
        pthread_mutex_lock(&repo->lock);
        rc = meta_pack(repo, where, &pack, ctl, err);
        if (rc == BK_OK && (uint64_t)where->entry.offset + where->entry.stored > pack->len)
            rc = bk_err_set(err, BK_CORRUPT, "the index points past the end of a pack");
        if (rc == BK_OK) {
            memcpy(frame, pack->bytes + where->entry.offset, where->entry.stored);
            *key = pack->key;
        }
        pthread_mutex_unlock(&repo->lock);
        return rc;
    }
    rc = bk_repo_pack_key(repo, &where->pack, where->kind, key, ctl, err);
    if (rc != BK_OK)
        return rc;
    bk_pack_object_name(name, &where->pack, where->kind);
    rc = bk_objects_get(&repo->objects, name, where->entry.offset, where->entry.stored, frame, &got,
                        ctl, err);
    if (rc == BK_OK && got != where->entry.stored)
        rc = bk_err_set(err, BK_CORRUPT, "%s: cut off", name);
    return rc;
}

bk_rc_t bk_repo_get(bk_repo_t *repo, const bk_id_t *id, bk_buf_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_index_t *index;
    bk_location_t where;
    bk_object_key_t key;
    char hex[BK_ID_HEX];

    bk_buf_reset(out);
    bk_id_hex(hex, id);
    bk_rc_t rc = bk_repo_index(repo, ctl, &index, err);
    if (rc != BK_OK)
        return rc;
    if (!bk_index_find(index, id, &where))
        return bk_err_set(err, BK_CORRUPT, "chunk %.16s… is not in the index of this repository",
                          hex);
    uint8_t *frame = malloc(where.entry.stored + 1u), *room = bk_buf_room(out, where.entry.raw);
    if (frame == NULL || room == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "read chunk %.16s…: out of memory", hex);
    if (rc == BK_OK)
        rc = read_frame(repo, &where, frame, &key, ctl, err);
    if (rc == BK_OK)
        rc = bk_pack_frame(repo->ring, &key, &where.entry, frame, room, err);
    if (rc == BK_OK) {
        out->len = where.entry.raw;
    } else {
        char name[BK_STORAGE_NAME];
        bk_pack_object_name(name, &where.pack, where.kind);
        bk_err_wrap(err, "chunk %.16s… in %s", hex, name);
        if (rc == BK_NOT_FOUND && err != NULL)
            rc = err->rc = BK_CORRUPT; /* the index promised it */
    }
    free(frame);
    bk_object_key_wipe(&key);
    return rc;
}
