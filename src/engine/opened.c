/*
 * engine/opened.c: the set's storage and repository, opened for one job.  It makes the repository
 * of a new storage, and none where there was one: an empty directory in its place is a disk that is
 * not mounted, and backups must not begin anew beside it.
 */
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "crypto/hash.h"
#include "engine/engine_private.h"

#define KNOWN "repository" /* value in the catalog */

static bk_rc_t open_with_key(bk_repo_options_t *options, const char *file, bk_ctl_t *ctl,
                             bk_repo_t **repo, bk_err_t *err)
{
    uint8_t key[BK_KEY_SIZE];
    bk_rc_t rc = bk_key_read_file(file, key, err);
    options->secret = (bk_secret_t){.key = key};
    if (rc == BK_OK)
        rc = bk_repo_open(options, ctl, repo, err);
    explicit_bzero(key, sizeof key);
    return rc;
}

static bk_keyring_t *known_ring(bk_engine_t *engine)
{
    pthread_mutex_lock(&engine->ring_lock);
    bk_keyring_t *ring = engine->ring != NULL ? bk_keyring_share(engine->ring) : NULL;
    pthread_mutex_unlock(&engine->ring_lock);
    return ring;
}

static void keep_ring(bk_engine_t *engine, const bk_repo_t *repo)
{
    pthread_mutex_lock(&engine->ring_lock);
    if (engine->ring != bk_repo_keyring(repo)) {
        bk_keyring_free(engine->ring);
        engine->ring = bk_keyring_share(bk_repo_keyring(repo));
    }
    pthread_mutex_unlock(&engine->ring_lock);
}

/*
 * scrypt takes 128 MiB and a good part of a second, and transactions are shipped every 10 s: what
 * it opened is kept until the next reload.
 */
static bk_rc_t open_with_passphrase(bk_engine_t *engine, bk_repo_options_t *options, bk_ctl_t *ctl,
                                    bk_repo_t **repo, bk_err_t *err)
{
    bk_buf_t text;
    bk_keyring_t *ring = known_ring(engine);
    bk_rc_t rc = BK_CONFIG;
    options->ring = ring;
    if (ring != NULL)
        rc = bk_repo_open(options, ctl, repo, err);
    bk_keyring_free(ring);
    options->ring = NULL;
    if (rc != BK_CONFIG)
        return rc;
    /* Nothing was kept, or it is of another repository. */
    bk_err_clear(err);
    bk_buf_init(&text, 4096);
    rc = bk_secret_read_file(engine->set->passphrase_file, &text, err);
    options->secret = (bk_secret_t){.passphrase = rc == BK_OK ? bk_buf_str(&text) : NULL};
    if (rc == BK_OK)
        rc = bk_repo_open(options, ctl, repo, err);
    bk_buf_wipe(&text);
    if (rc == BK_OK)
        keep_ring(engine, *repo);
    return rc;
}

static bk_rc_t open_with_secret(bk_engine_t *engine, bk_repo_options_t *options, bk_ctl_t *ctl,
                                bk_repo_t **repo, bk_err_t *err)
{
    const bk_set_t *set = engine->set;
    bk_rc_t rc = BK_WRONG_KEY;
    if (set->passphrase_file != NULL)
        return open_with_passphrase(engine, options, ctl, repo, err);
    /* The first key makes a new repository; any of them may open an old one. */
    for (size_t i = 0; i < set->key_count && rc == BK_WRONG_KEY; i++) {
        options->label = set->keys[i].id;
        rc = open_with_key(options, set->keys[i].file, ctl, repo, err);
    }
    return rc;
}

/* Which storage this is: another one under the same name, or the same path elsewhere, is another.
 */
static void identify(const bk_storage_config_t *storage, char hex[BK_ID_HEX])
{
    bk_buf_t text;
    bk_id_t digest;
    bk_buf_init(&text, 65536);
    bk_buf_printf(&text, "%s %s", storage->driver, storage->name);
    for (unsigned i = 0; i < storage->count; i++)
        bk_buf_printf(&text, "\n%s %s", storage->settings[i].key, storage->settings[i].value);
    bk_sha256(&digest, text.data, text.len);
    bk_id_hex(hex, &digest);
    bk_buf_free(&text);
}

/* Was there a repository on this storage? */
static bool had_repository(bk_engine_t *engine, const bk_storage_config_t *storage)
{
    char hex[BK_ID_HEX];
    json_t *value = NULL;
    bool had = false;
    identify(storage, hex);
    if (bk_catalog_value(engine->catalog, KNOWN, &value, NULL) == BK_OK && value != NULL) {
        const char *known = json_string_value(json_object_get(value, "storage"));
        had = known != NULL && strcmp(known, hex) == 0;
    }
    json_decref(value);
    return had;
}

/* Only a guard against accidents: without it the backup is as good. */
static void remember_repository(bk_engine_t *engine, const bk_storage_config_t *storage)
{
    char hex[BK_ID_HEX];
    if (had_repository(engine, storage))
        return;
    identify(storage, hex);
    json_t *value = json_pack("{ss}", "storage", hex);
    if (bk_catalog_set_value(engine->catalog, KNOWN, value, NULL) != BK_OK)
        bk_log(BK_LOG_WARN, "backup %s: the catalog cannot be written", engine->set->name);
    json_decref(value);
}

static bk_rc_t open_repo(bk_engine_t *engine, bk_repo_options_t *options, bk_ctl_t *ctl,
                         bk_repo_t **repo, bk_err_t *err)
{
    return options->plain ? bk_repo_open(options, ctl, repo, err)
                          : open_with_secret(engine, options, ctl, repo, err);
}

bk_rc_t bk_engine_open_repo(bk_engine_t *engine, bool create, bk_ctl_t *ctl, bk_opened_t *opened,
                            bk_err_t *err)
{
    const bk_set_t *set = engine->set;
    const bk_storage_config_t *storage = &set->storages[0];
    memset(opened, 0, sizeof *opened);
    bk_rc_t rc = bk_storage_open(storage, &opened->storage, err);
    if (rc != BK_OK)
        return rc;
    bk_repo_options_t options = {.storage = opened->storage,
                                 .cache_dir = engine->cache_dir,
                                 .spool_dir = engine->spool_dir,
                                 .create = create && !had_repository(engine, storage),
                                 .plain = set->key_count == 0 && set->passphrase_file == NULL};
    rc = open_repo(engine, &options, ctl, &opened->repo, err);
    if (rc == BK_REPO_MISSING && create)
        rc = bk_err_set(err, BK_REPO_MISSING,
                        "storage %s %s: the repository that was there is gone: mount its disk; if "
                        "it was removed for good, give the storage another name, which begins a "
                        "new one",
                        storage->driver, storage->name);
    if (rc == BK_OK)
        remember_repository(engine, storage);
    else
        bk_engine_close_repo(opened);
    return rc;
}

void bk_engine_close_repo(bk_opened_t *opened)
{
    bk_repo_close(opened->repo);
    bk_storage_close(opened->storage);
    memset(opened, 0, sizeof *opened);
}

bk_rc_t bk_judge_space(const char *path, uint64_t bytes, uint64_t min, bk_err_t *err)
{
    if (bytes >= min)
        return BK_OK;
    return bk_err_set(
        err, BK_NO_SPACE,
        "%s has %llu MiB free, min_free wants %llu MiB: free some space, or lower min_free", path,
        (unsigned long long)(bytes >> 20), (unsigned long long)(min >> 20));
}

static bk_rc_t check_free(const char *path, uint64_t min, bk_err_t *err)
{
    uint64_t bytes;
    struct stat st;
    if (stat(path, &st) != 0)
        return BK_OK; /* made later; the parent's disk will tell */
    bk_rc_t rc = bk_free_space(path, &bytes, err);
    return rc == BK_OK ? bk_judge_space(path, bytes, min, err) : rc;
}

bk_rc_t bk_engine_check_space(bk_engine_t *engine, bk_err_t *err)
{
    const bk_set_t *set = engine->set;
    const char *local = strcmp(set->storages[0].driver, "local") == 0
                            ? bk_storage_config_get(&set->storages[0], "path")
                            : NULL;
    bk_rc_t rc = check_free(set->base_dir, set->min_free, err);
    if (rc == BK_OK && local != NULL)
        rc = check_free(local, set->min_free, err);
    return rc;
}
