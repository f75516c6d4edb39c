/*
 * repo/repo.c: opening and creating a repository; the FORMAT object.
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
#include "repo/doubt.h"
#include "repo/repo_private.h"

#define FORMAT_MAX (64u << 10)
struct bk_repo_s {
    bk_objects_t objects;
    bk_keyring_t *ring;
    bk_chunker_t chunker;
    uint8_t uuid[BK_UUID_SIZE];
    char *cache_dir, *spool_dir;
    bk_packcache_t *packcache;
    bk_doubt_t *doubt;
    pthread_mutex_t lock; /* guards what follows */
    bk_index_t *index;
    bk_recent_t *recent;
};

/* --- FORMAT --- */

void bk_repo_keyring_check(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                           bk_id_t *check)
{
    static const char label[] = "ngx-backup keyring";
    uint8_t text[sizeof label - 1 + BK_UUID_SIZE];
    memcpy(text, label, sizeof label - 1);
    memcpy(text + sizeof label - 1, uuid, BK_UUID_SIZE);
    bk_chunk_id(ring, 0, text, sizeof text, check); /* no chunk has type 0 */
}

typedef struct {
    bool encrypted;
    bk_id_t check; /* when encrypted */
} format_t;

static bk_rc_t write_format(bk_repo_t *repo, bool encrypted, bk_ctl_t *ctl, bk_err_t *err)
{
    char uuid[2 * BK_UUID_SIZE + 1], created[BK_TIME_TEXT], hex[BK_ID_HEX];
    bk_buf_t text;
    bk_id_t check;
    bk_hex(uuid, repo->uuid, BK_UUID_SIZE);
    bk_time_format(created, bk_now());
    json_t *format = json_pack(
        "{ss si ss sb ss ss}", "format", "ngx-backup repository", "version", BK_FORMAT_VERSION,
        "repository", uuid, "encrypted", encrypted, "created", created, "restore",
        "Install ngx-backup on any machine and run: ngx-backup recover --storage <where this file "
        "lies> --key-file <your key> --target <empty directory>. docs/repository-format.md of the "
        "project describes every byte.");
    /* Without it, a slot that a creator left behind who then lost the race would open by the same
     * key and give a keyring that reads nothing. */
    bk_repo_keyring_check(repo->ring, repo->uuid, &check);
    bk_id_hex(hex, &check);
    if (encrypted)
        json_object_set_new(format, "keyring", json_string(hex));
    bk_buf_init(&text, FORMAT_MAX);
    bk_rc_t rc = bk_json_dump(format, false, &text, err);
    json_decref(format);
    if (rc == BK_OK)
        rc = bk_storage_put(repo->objects.storage, "FORMAT", text.data, text.len, true, ctl, err);
    bk_buf_free(&text);
    return rc;
}

/* Version 1's members; a newer version may have any others. */
static bool take_format(bk_repo_t *repo, const json_t *object, format_t *format)
{
    const json_t *encrypted = json_object_get(object, "encrypted");
    const json_t *uuid = json_object_get(object, "repository");
    const json_t *check = json_object_get(object, "keyring");
    format->encrypted = json_is_true(encrypted);
    return json_is_boolean(encrypted) && json_is_string(uuid) &&
           bk_unhex(repo->uuid, BK_UUID_SIZE, json_string_value(uuid), json_string_length(uuid)) &&
           (!format->encrypted ||
            (json_is_string(check) &&
             bk_id_unhex(&format->check, json_string_value(check), json_string_length(check))));
}

static bk_rc_t read_format(bk_repo_t *repo, format_t *format, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t text;
    json_t *object = NULL;
    bk_buf_init(&text, FORMAT_MAX);
    bk_rc_t rc = bk_storage_get_all(repo->objects.storage, "FORMAT", &text, ctl, err);
    if (rc == BK_NOT_FOUND)
        rc = bk_err_set(
            err, BK_REPO_MISSING,
            "%s %s holds no repository (there is no FORMAT object); the first backup makes one",
            bk_storage_driver(repo->objects.storage), bk_storage_name(repo->objects.storage));
    if (rc == BK_OK)
        rc = bk_json_parse(text.data, text.len, &object, err);
    bk_buf_free(&text);
    if (rc == BK_MALFORMED || rc == BK_TOO_LARGE)
        return bk_err_set(err, BK_CORRUPT, "the repository's FORMAT object is damaged");
    if (rc != BK_OK)
        return rc;
    const char *magic = json_string_value(json_object_get(object, "format"));
    json_int_t version = json_integer_value(json_object_get(object, "version"));
    if (magic == NULL || strcmp(magic, "ngx-backup repository") != 0 || version < 1)
        rc = bk_err_set(err, BK_CORRUPT, "the repository's FORMAT object is damaged");
    else if (version > BK_FORMAT_VERSION)
        rc =
            bk_err_set(err, BK_UNSUPPORTED,
                       "the repository has format %lld, this ngx-backup knows up to %d: upgrade it",
                       (long long)version, BK_FORMAT_VERSION);
    else if (!take_format(repo, object, format))
        rc = bk_err_set(err, BK_CORRUPT, "the repository's FORMAT object is damaged");
    json_decref(object);
    return rc;
}

static bk_rc_t stop_at_first(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    (void)err;
    bk_strcpy(arg, BK_STORAGE_NAME, item->name);
    return BK_EXISTS;
}

/*
 * Whatever is there without FORMAT is what is left of another repository: a new keyring among old
 * packs would hide what its FORMAT, once it is back, makes readable.  A slot alone holds nothing: a
 * creator died before its FORMAT.
 */
static bk_rc_t refuse_remains(bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
{
    static const char *const folders[] = {"snapshots/", "packs/", "meta/", "index/", "wal/"};
    char found[BK_STORAGE_NAME] = "";
    bk_storage_t *storage = repo->objects.storage;
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && rc == BK_OK; i++) {
        bk_err_t why = {0};
        rc = bk_storage_list(storage, folders[i], stop_at_first, found, ctl, &why);
        if (rc == BK_NOT_FOUND) /* the storage itself is made by the first object */
            rc = BK_OK;
        else if (rc != BK_OK && rc != BK_EXISTS && err != NULL)
            *err = why;
    }
    uint64_t size;
    if (rc != BK_EXISTS || bk_storage_size(storage, "FORMAT", &size, ctl, NULL) == BK_OK)
        return rc; /* BK_EXISTS: another creator was faster */
    return bk_err_set(err, BK_CONFLICT,
                      "%s %s holds %s, but no FORMAT object: this is what is left of a repository, "
                      "and no new one is begun in it. Put FORMAT back (from a copy of the storage, "
                      "or as docs/repository-format.md, \"A lost FORMAT\", tells), or use an empty "
                      "storage",
                      bk_storage_driver(storage), bk_storage_name(storage), found);
}

/*
 * Slot first, FORMAT last: a crash between them leaves a slot of no repository, which is passed
 * over.
 */
static bk_rc_t create(bk_repo_t *repo, const bk_repo_options_t *options, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    char slot[BK_STORAGE_NAME] = "";
    bk_rc_t rc = BK_OK;
    bool secret = options->secret.key != NULL || options->secret.passphrase != NULL;
    if (!options->plain && !secret)
        return bk_err_set(err, BK_CONFIG, "a new encrypted repository needs a key or a passphrase");
    if (options->plain && secret)
        return bk_err_set(err, BK_CONFIG, "a repository without encryption takes no key");
    if ((rc = refuse_remains(repo, ctl, err)) != BK_OK)
        return rc;
    bk_random(repo->uuid, BK_UUID_SIZE);
    repo->ring = options->plain ? bk_keyring_plain() : bk_keyring_new();
    if (repo->ring == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "make a repository: out of memory");
    if (!options->plain)
        rc = bk_repo_write_slot(repo, &options->secret,
                                options->label != NULL ? options->label : "", slot, ctl, err);
    if (rc == BK_OK)
        rc = write_format(repo, !options->plain, ctl, err);
    if (rc == BK_EXISTS) { /* another creator was faster: theirs it is */
        bk_keyring_free(repo->ring);
        repo->ring = NULL;
        if (slot[0] != '\0')
            bk_storage_remove(repo->objects.storage, slot, ctl, NULL);
    }
    return rc;
}

static bk_rc_t unlock(bk_repo_t *repo, const bk_repo_options_t *options, const format_t *format,
                      bk_ctl_t *ctl, bk_err_t *err)
{
    bool secret = options->secret.key != NULL || options->secret.passphrase != NULL;
    if (!format->encrypted) {
        if (secret || options->ring != NULL || (options->create && !options->plain))
            return bk_err_set(
                err, BK_CONFIG,
                "the repository is not encrypted, but a key is configured: leave the key "
                "out, or use an empty storage for an encrypted one");
        repo->ring = bk_keyring_plain();
        return repo->ring != NULL ? BK_OK
                                  : bk_err_set(err, BK_NO_MEMORY, "open repository: out of memory");
    }
    if (options->ring != NULL) {
        bk_id_t check;
        bk_repo_keyring_check(options->ring, repo->uuid, &check);
        if (bk_id_equal(&check, &format->check)) {
            repo->ring = bk_keyring_share(options->ring);
            return BK_OK;
        }
    }
    if (!secret)
        return bk_err_set(err, BK_CONFIG,
                          "the repository is encrypted: give its key or passphrase");
    return bk_repo_try_slots(repo, &options->secret, &format->check, &repo->ring, ctl, err);
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
    format_t format = {0};
    bk_repo_t *repo = calloc(1, sizeof *repo);
    if (repo == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "open repository: out of memory");
    pthread_mutex_init(&repo->lock, NULL);
    repo->objects.storage = options->storage;
    repo->cache_dir = bk_strdup(options->cache_dir);
    repo->spool_dir = bk_strdup(options->spool_dir);
    bk_rc_t rc = BK_OK;
    repo->packcache = bk_packcache_new();
    repo->doubt = bk_doubt_new(options->cache_dir);
    if (repo->cache_dir == NULL || repo->packcache == NULL || repo->doubt == NULL ||
        (options->spool_dir != NULL && repo->spool_dir == NULL))
        rc = bk_err_set(err, BK_NO_MEMORY, "open repository: out of memory");
    if (rc == BK_OK && options->spool_dir != NULL)
        rc = open_spool(repo, options->spool_dir, err);
    if (rc == BK_OK) {
        rc = read_format(repo, &format, ctl, err);
        bool made = false;
        if (rc == BK_REPO_MISSING && options->create) {
            bk_err_clear(err);
            rc = create(repo, options, ctl, err);
            made = rc == BK_OK;
            if (rc == BK_EXISTS) {
                bk_err_clear(err);
                rc = read_format(repo, &format, ctl, err);
            }
        }
        if (rc == BK_OK && !made)
            rc = unlock(repo, options, &format, ctl, err);
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
    bk_packcache_free(repo->packcache);
    bk_doubt_free(repo->doubt);
    bk_recent_free(repo->recent);
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

const char *bk_repo_cache_dir(const bk_repo_t *repo)
{
    return repo->cache_dir;
}

bk_packcache_t *bk_repo_packcache(bk_repo_t *repo)
{
    return repo->packcache;
}

bk_doubt_t *bk_repo_doubt(bk_repo_t *repo)
{
    return repo->doubt;
}

bk_rc_t bk_repo_recent(bk_repo_t *repo, bk_recent_t **recent, bk_err_t *err)
{
    pthread_mutex_lock(&repo->lock);
    if (repo->recent == NULL)
        repo->recent = bk_recent_new();
    *recent = repo->recent;
    pthread_mutex_unlock(&repo->lock);
    return *recent != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "begin a backup: out of memory");
}

bk_rc_t bk_repo_read_recent(bk_repo_t *repo, const bk_id_t *id, bk_buf_t *out, bk_location_t *where,
                            bk_ctl_t *ctl, bk_err_t *err)
{
    pthread_mutex_lock(&repo->lock);
    bk_recent_t *recent = repo->recent;
    pthread_mutex_unlock(&repo->lock);
    return recent != NULL ? bk_recent_read(recent, id, out, where, ctl, err) : BK_NOT_FOUND;
}
