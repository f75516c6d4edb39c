/*
 * repo/snapshot_list.c: all backups of a repository: loading, finding and removing their snapshots.
 * Writes only into the local cache.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"
#include "base/texts.h"
#include "repo/snapshot.h"

#define SNAPSHOT_MAX (256u << 20)
#define PREFIX       "snapshots/"
#define PREFIX_LEN   (sizeof PREFIX - 1)

/* --- the cache: objects as they are on the storage, under the last part of their names --- */

/* Files of snapshots that are gone: the cache is not larger than the list. */
static void sweep_cache(const char *cache, const bk_texts_t *names)
{
    char name[BK_STORAGE_NAME];
    bk_publish_sweep(cache, 3600);
    DIR *dir = opendir(cache);
    if (dir == NULL)
        return;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.' || !bk_fmt(name, sizeof name, PREFIX "%s", entry->d_name))
            continue;
        if (!bk_texts_has(names, name))
            (void)unlinkat(dirfd(dir), entry->d_name, 0); /* tried again next time */
    }
    closedir(dir);
}

static bool right_name(const char *name, const bk_buf_t *object)
{
    bk_id_t wanted, digest;
    bk_sha256(&digest, object->data, object->len);
    return bk_object_name_id(name, &wanted) && bk_id_equal(&digest, &wanted);
}

/* The sealed object, from the cache when it is there and right. */
static bk_rc_t read_object(bk_repo_t *repo, const char *cache, const char *name, bk_buf_t *object,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    char path[4096];
    bool cached = cache != NULL && bk_fmt(path, sizeof path, "%s/%s", cache, name + PREFIX_LEN);
    if (cached && bk_read_file(AT_FDCWD, path, object, NULL) == BK_OK && right_name(name, object))
        return BK_OK;
    bk_buf_reset(object);
    bk_rc_t rc = bk_objects_get_all(bk_repo_objects(repo), name, object, ctl, err);
    if (rc == BK_OK && !right_name(name, object))
        rc = bk_err_set(err, BK_CORRUPT, "its SHA-256 differs from its name");
    if (rc == BK_OK && cached) /* without the cache the next listing is slower, nothing else */
        (void)bk_publish_bytes(AT_FDCWD, path, 0600, object->data, object->len, false, NULL);
    return rc;
}

/* --- loading --- */

static bk_rc_t load(bk_repo_t *repo, const char *cache, const char *name, bk_snapshot_t *s,
                    bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t object, plain;
    bk_snapshot_init(s);
    bk_buf_init(&object, SNAPSHOT_MAX);
    bk_buf_init(&plain, SNAPSHOT_MAX);
    bk_rc_t rc = read_object(repo, cache, name, &object, ctl, err);
    if (rc == BK_OK)
        rc = bk_object_unwrap(bk_repo_keyring(repo), bk_repo_uuid(repo), BK_KIND_SNAPSHOT,
                              object.data, object.len, &plain, err);
    if (rc == BK_OK)
        rc = bk_snapshot_decode(plain.data, plain.len, s, err);
    if (rc == BK_OK) {
        size_t len = strlen(s->backup_id);
        s->object_size = object.len;
        /* The name is what people ask for and what a removal removes. */
        if (strncmp(name + PREFIX_LEN, s->backup_id, len) != 0 ||
            strlen(name) != PREFIX_LEN + len + 1 + 2 * BK_ID_SIZE || name[PREFIX_LEN + len] != '-')
            rc = bk_err_set(err, BK_CORRUPT, "it belongs to another backup id");
        else if ((s->object = bk_strdup(name)) == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "list backups: out of memory");
        if (rc != BK_OK)
            bk_snapshot_free(s);
    }
    bk_buf_free(&object);
    bk_buf_free(&plain);
    return rc;
}

/* These say something about the one object; everything else about the storage or this process. */
static bool is_damage(bk_rc_t rc)
{
    return rc == BK_CORRUPT || rc == BK_WRONG_KEY || rc == BK_UNSUPPORTED || rc == BK_TOO_LARGE;
}

static bk_rc_t load_all(bk_repo_t *repo, const char *cache, const bk_texts_t *names,
                        const bk_texts_t *spooled, bk_ctl_t *ctl, bk_snapshot_list_t *list,
                        bk_err_t *err)
{
    list->items = calloc(names->count + 1, sizeof *list->items);
    if (list->items == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "list backups: out of memory");
    for (size_t i = 0; i < names->count; i++) {
        bk_err_t why = {0};
        bk_rc_t rc = bk_ctl_check(ctl, &why);
        if (rc == BK_OK)
            rc = load(repo, cache, names->items[i].text, &list->items[list->count], ctl, &why);
        if (rc == BK_OK) {
            list->items[list->count++].provisional = bk_texts_has(spooled, names->items[i].text);
        } else if (is_damage(rc)) {
            list->damaged++;
            if (ctl != NULL)
                bk_ctl_note(ctl, "%s: %s", names->items[i].text, why.text);
        } else if (rc != BK_NOT_FOUND) { /* removed since it was listed: not there */
            if (err != NULL)
                *err = why;
            return rc;
        }
    }
    return BK_OK;
}

static int by_time(const void *a, const void *b)
{
    const bk_snapshot_t *x = a, *y = b;
    if (x->completed != y->completed)
        return x->completed < y->completed ? -1 : 1;
    return strcmp(x->backup_id, y->backup_id);
}

bk_rc_t bk_snapshot_list(bk_repo_t *repo, const char *cache_dir, bk_ctl_t *ctl,
                         bk_snapshot_list_t *list, bk_err_t *err)
{
    char dir[4096];
    const char *cache = NULL;
    const bk_objects_t *objects = bk_repo_objects(repo);
    bk_texts_t names = {0}, spooled = {0};
    memset(list, 0, sizeof *list);
    if (cache_dir != NULL && bk_fmt(dir, sizeof dir, "%s/snapshots", cache_dir) &&
        bk_mkdirs(dir, 0700, NULL) == BK_OK)
        cache = dir;
    /* The spool first: what is shipped meanwhile is then seen in one of both at least. */
    bk_rc_t rc = BK_OK;
    if (objects->spool != NULL)
        rc = bk_storage_list(objects->spool, PREFIX, bk_storage_collect, &spooled, ctl, err);
    if (rc == BK_OK)
        rc = bk_storage_list(objects->storage, PREFIX, bk_storage_collect, &names, ctl, err);
    for (size_t i = 0; i < spooled.count && rc == BK_OK; i++)
        if (!bk_texts_add(&names, spooled.items[i].text, spooled.items[i].size))
            rc = bk_err_set(err, BK_NO_MEMORY, "list backups: out of memory");
    if (rc == BK_OK) {
        bk_texts_sort(&names);
        bk_texts_sort(&spooled);
        rc = load_all(repo, cache, &names, &spooled, ctl, list, err);
    }
    if (rc == BK_OK && cache != NULL)
        sweep_cache(cache, &names);
    if (rc != BK_OK)
        bk_snapshot_list_free(list);
    else if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, by_time);
    bk_texts_free(&names);
    bk_texts_free(&spooled);
    return rc;
}

void bk_snapshot_list_free(bk_snapshot_list_t *list)
{
    if (list == NULL)
        return;
    for (size_t i = 0; i < list->count; i++)
        bk_snapshot_free(&list->items[i]);
    free(list->items);
    memset(list, 0, sizeof *list);
}

bk_rc_t bk_snapshot_find(const bk_snapshot_list_t *list, const char *id,
                         const bk_snapshot_t **found, bk_err_t *err)
{
    bool latest = strcmp(id, "latest") == 0;
    const char *newest = NULL;
    for (size_t i = list->count; i-- > 0;) {
        const bk_snapshot_t *s = &list->items[i];
        bool safety = strcmp(s->kind, "safety") == 0;
        if (newest == NULL && !safety)
            newest = s->backup_id;
        if (latest ? !safety : strcmp(s->backup_id, id) == 0) {
            *found = s;
            return BK_OK;
        }
    }
    if (list->count == 0 || (latest && newest == NULL))
        return bk_err_set(err, BK_NOT_FOUND, "there is no backup yet");
    return bk_err_set(err, BK_NOT_FOUND,
                      "there is no backup \"%s\"; there are %zu, the newest is %s", id, list->count,
                      newest != NULL ? newest : list->items[list->count - 1].backup_id);
}

bk_rc_t bk_snapshot_remove(bk_repo_t *repo, const bk_snapshot_t *snapshot, bk_ctl_t *ctl,
                           bk_err_t *err)
{
    const bk_objects_t *objects = bk_repo_objects(repo);
    bk_rc_t rc = bk_storage_remove(objects->storage, snapshot->object, ctl, err);
    if (rc == BK_OK && objects->spool != NULL)
        rc = bk_storage_remove(objects->spool, snapshot->object, ctl, err);
    return rc;
}

/* Only what no key can make readable again: its SHA-256 differs from its name. */
static bk_rc_t remove_damaged(bk_repo_t *repo, const char *name, const char *aside_dir,
                              size_t *removed, bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_objects_t *objects = bk_repo_objects(repo);
    char path[4096];
    bk_buf_t object;
    bk_buf_init(&object, SNAPSHOT_MAX);
    bk_rc_t rc = bk_objects_get_all(objects, name, &object, ctl, err);
    bool damaged = rc == BK_OK && !right_name(name, &object);
    if (damaged &&
        !bk_fmt(path, sizeof path, "%s/snapshot.damaged-%s", aside_dir, name + PREFIX_LEN))
        rc = bk_err_set(err, BK_CONFIG, "base_dir: the path is too long");
    else if (damaged)
        rc = bk_publish_bytes(AT_FDCWD, path, 0600, object.data, object.len, false, err);
    if (rc == BK_OK && damaged)
        rc = bk_storage_remove(objects->storage, name, ctl, err);
    if (rc == BK_OK && damaged && objects->spool != NULL)
        rc = bk_storage_remove(objects->spool, name, ctl, err);
    *removed += rc == BK_OK && damaged;
    bk_buf_free(&object);
    return rc;
}

bk_rc_t bk_snapshot_remove_damaged(bk_repo_t *repo, const char *backup_id, const char *aside_dir,
                                   bk_ctl_t *ctl, bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    bk_texts_t names = {0};
    size_t removed = 0;
    if (!bk_backup_id_valid(backup_id))
        return bk_err_set(err, BK_INVALID, "\"%s\" is no backup id", backup_id);
    bk_fmt(prefix, sizeof prefix, PREFIX "%s-", backup_id);
    bk_rc_t rc =
        bk_objects_list(bk_repo_objects(repo), prefix, bk_storage_collect, &names, ctl, err);
    bk_texts_sort(&names);
    for (size_t i = 0; i < names.count && rc == BK_OK; i++)
        if (strlen(names.items[i].text) == strlen(prefix) + 2 * BK_ID_SIZE)
            rc = remove_damaged(repo, names.items[i].text, aside_dir, &removed, ctl, err);
    bk_texts_free(&names);
    if (rc == BK_OK && removed == 0)
        rc = bk_err_set(err, BK_NOT_FOUND, "there is no backup \"%s\"", backup_id);
    return rc;
}
