/*
 * repo/snapshot.c: the sealed JSON of a backup, and the list of all backups.
 */
#include "repo/snapshot.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"

#define SNAPSHOT_MAX (256u << 20)
#define ROOTS_MAX    1000u

void bk_snapshot_init(bk_snapshot_t *s)
{
    memset(s, 0, sizeof *s);
}

void bk_snapshot_free(bk_snapshot_t *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < s->tree_count; i++) {
        free(s->trees[i].name);
        free(s->trees[i].path);
    }
    for (size_t i = 0; i < s->db_count; i++) {
        free(s->dbs[i].name);
        free(s->dbs[i].path);
        free(s->dbs[i].journal);
    }
    free(s->trees);
    free(s->dbs);
    free(s->set);
    free(s->host);
    free(s->description);
    free(s->previous);
    free(s->object);
    json_decref(s->tags);
    json_decref(s->config);
    json_decref(s->unreadable);
    json_decref(s->stats);
    memset(s, 0, sizeof *s);
}

bool bk_backup_id_valid(const char *text)
{
    size_t len = strlen(text);
    return len > 0 && len < BK_BACKUP_ID && text[0] >= 'a' && text[0] <= 'z' &&
           strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_") == len;
}

/* --- writing --- */

static json_t *id_json(const bk_id_t *id)
{
    char hex[BK_ID_HEX];
    bk_id_hex(hex, id);
    return json_string(hex);
}

static json_t *text_json(const char *text)
{
    return text != NULL ? bk_json_name(text, strlen(text)) : json_null();
}

static json_t *tree_json(const bk_snapshot_tree_t *tree)
{
    return json_pack("{so so so sI sI sI}", "name", text_json(tree->name), "path",
                     text_json(tree->path), "root", id_json(&tree->root), "entries",
                     (json_int_t)tree->entries, "files", (json_int_t)tree->files, "bytes",
                     (json_int_t)tree->bytes);
}

static json_t *db_json(const bk_snapshot_db_t *db)
{
    char digest[17];
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)db->digest);
    return json_pack("{so so so sI si sI sI sI ss so sI sI sI sI}", "name", text_json(db->name),
                     "path", text_json(db->path), "map", id_json(&db->map.root), "blocks",
                     (json_int_t)db->map.count, "depth", (int)db->map.depth, "page_size",
                     (json_int_t)db->page_size, "block_size", (json_int_t)db->block_size,
                     "page_count", (json_int_t)db->page_count, "digest", digest, "journal",
                     text_json(db->journal), "instant", (json_int_t)db->instant, "uid",
                     (json_int_t)db->uid, "gid", (json_int_t)db->gid, "mode", (json_int_t)db->mode);
}

static json_t *or_empty(json_t *value, json_t *empty)
{
    if (value == NULL)
        return empty;
    json_decref(empty);
    return json_incref(value);
}

bk_rc_t bk_snapshot_encode(const bk_snapshot_t *s, bk_buf_t *out, bk_err_t *err)
{
    json_t *trees = json_array(), *dbs = json_array();
    for (size_t i = 0; i < s->tree_count; i++)
        json_array_append_new(trees, tree_json(&s->trees[i]));
    for (size_t i = 0; i < s->db_count; i++)
        json_array_append_new(dbs, db_json(&s->dbs[i]));
    json_t *root = json_pack(
        "{si ss so so ss ss ss sI sI sI so so so so so so sI so sb so}", "format", 1, "backup_id",
        s->backup_id, "set", text_json(s->set), "host", text_json(s->host), "kind", s->kind,
        "parent", s->parent, "job", s->job, "started", (json_int_t)s->started, "completed",
        (json_int_t)s->completed, "instant", (json_int_t)s->instant, "trees", trees, "databases",
        dbs, "description", text_json(s->description), "tags", or_empty(s->tags, json_array()),
        "config", or_empty(s->config, json_object()), "unreadable",
        or_empty(s->unreadable, json_array()), "unreadable_total", (json_int_t)s->unreadable_total,
        "stats", or_empty(s->stats, json_object()), "pinned", (int)s->pinned, "previous",
        text_json(s->previous));
    bk_rc_t rc = root != NULL ? bk_json_dump(root, true, out, err)
                              : bk_err_set(err, BK_NO_MEMORY, "write snapshot: out of memory");
    json_decref(root);
    return rc;
}

/* --- reading: each helper clears *right when a member is missing or wrong --- */

static char *take_text(const json_t *object, const char *name, bool optional, bool *right)
{
    const json_t *value = json_object_get(object, name);
    if (optional && (value == NULL || json_is_null(value)))
        return NULL;
    if (!json_is_string(value)) {
        *right = false;
        return NULL;
    }
    size_t size = json_string_length(value) + 1;
    char *text = malloc(size);
    int64_t len =
        text != NULL ? bk_name_unescape((uint8_t *)text, size - 1, json_string_value(value)) : -1;
    if (len < 0 || memchr(text, '\0', (size_t)len) != NULL) {
        free(text);
        *right = false;
        return NULL;
    }
    text[len] = '\0';
    return text;
}

static void take_small(const json_t *object, const char *name, char *out, size_t size, bool *right)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value) || !bk_strcpy(out, size, json_string_value(value)))
        *right = false;
}

static uint64_t take_number(const json_t *object, const char *name, uint64_t max, bool *right)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) > max) {
        *right = false;
        return 0;
    }
    return (uint64_t)json_integer_value(value);
}

static void take_id(const json_t *object, const char *name, bk_id_t *id, bool *right)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value) ||
        !bk_id_unhex(id, json_string_value(value), json_string_length(value)))
        *right = false;
}

static json_t *take_json(const json_t *object, const char *name, int type, bool *right)
{
    json_t *value = json_object_get(object, name);
    if (value == NULL || json_typeof(value) != (json_type)type) {
        *right = false;
        return NULL;
    }
    return json_incref(value);
}

static void take_tree(const json_t *object, bk_snapshot_tree_t *tree, bool *right)
{
    tree->name = take_text(object, "name", false, right);
    tree->path = take_text(object, "path", false, right);
    take_id(object, "root", &tree->root, right);
    tree->entries = take_number(object, "entries", INT64_MAX, right);
    tree->files = take_number(object, "files", INT64_MAX, right);
    tree->bytes = take_number(object, "bytes", INT64_MAX, right);
}

static void take_db(const json_t *object, bk_snapshot_db_t *db, bool *right)
{
    uint8_t digest[8];
    const json_t *text = json_object_get(object, "digest");
    db->name = take_text(object, "name", false, right);
    db->path = take_text(object, "path", false, right);
    take_id(object, "map", &db->map.root, right);
    db->map.count = take_number(object, "blocks", INT64_MAX, right);
    db->map.depth = (uint8_t)take_number(object, "depth", 8, right);
    db->page_size = (uint32_t)take_number(object, "page_size", 65536, right);
    db->block_size = (uint32_t)take_number(object, "block_size", BK_CHUNK_MAX, right);
    db->page_count = take_number(object, "page_count", UINT32_MAX, right);
    db->journal = take_text(object, "journal", false, right);
    db->instant = (int64_t)take_number(object, "instant", INT64_MAX, right);
    db->uid = (uint32_t)take_number(object, "uid", UINT32_MAX, right);
    db->gid = (uint32_t)take_number(object, "gid", UINT32_MAX, right);
    db->mode = (uint32_t)take_number(object, "mode", 07777, right);
    if (!json_is_string(text) ||
        !bk_unhex(digest, 8, json_string_value(text), json_string_length(text))) {
        *right = false;
        return;
    }
    for (size_t i = 0; i < 8; i++)
        db->digest = db->digest << 8 | digest[i];
    if (db->page_size < 512 || (db->page_size & (db->page_size - 1)) != 0 ||
        db->block_size < db->page_size || db->block_size % db->page_size != 0 ||
        (db->page_count * db->page_size + db->block_size - 1) / db->block_size != db->map.count)
        *right = false;
}

static void take_roots(const json_t *root, bk_snapshot_t *s, bool *right)
{
    const json_t *trees = json_object_get(root, "trees"), *dbs = json_object_get(root, "databases");
    size_t tree_count = json_array_size(trees), db_count = json_array_size(dbs);
    if (!json_is_array(trees) || !json_is_array(dbs) || tree_count > ROOTS_MAX ||
        db_count > ROOTS_MAX) {
        *right = false;
        return;
    }
    s->trees = calloc(tree_count + 1, sizeof *s->trees);
    s->dbs = calloc(db_count + 1, sizeof *s->dbs);
    if (s->trees == NULL || s->dbs == NULL) {
        *right = false;
        return;
    }
    for (size_t i = 0; i < tree_count && *right; i++, s->tree_count++)
        take_tree(json_array_get(trees, i), &s->trees[i], right);
    for (size_t i = 0; i < db_count && *right; i++, s->db_count++)
        take_db(json_array_get(dbs, i), &s->dbs[i], right);
}

bk_rc_t bk_snapshot_decode(const void *text, size_t len, bk_snapshot_t *s, bk_err_t *err)
{
    json_t *root = NULL;
    bool right = true;
    bk_snapshot_init(s);
    bk_rc_t rc = bk_json_parse(text, len, &root, err);
    if (rc != BK_OK)
        return bk_err_set(err, BK_CORRUPT, "the snapshot is damaged");
    json_int_t format = json_integer_value(json_object_get(root, "format"));
    if (format > 1) {
        json_decref(root);
        return bk_err_set(err, BK_UNSUPPORTED,
                          "the snapshot was written by a newer ngx-backup: upgrade it");
    }
    take_small(root, "backup_id", s->backup_id, sizeof s->backup_id, &right);
    s->set = take_text(root, "set", false, &right);
    s->host = take_text(root, "host", false, &right);
    take_small(root, "kind", s->kind, sizeof s->kind, &right);
    take_small(root, "parent", s->parent, sizeof s->parent, &right);
    take_small(root, "job", s->job, sizeof s->job, &right);
    s->started = (int64_t)take_number(root, "started", INT64_MAX, &right);
    s->completed = (int64_t)take_number(root, "completed", INT64_MAX, &right);
    s->instant = (int64_t)take_number(root, "instant", INT64_MAX, &right);
    s->description = take_text(root, "description", true, &right);
    s->previous = take_text(root, "previous", true, &right);
    s->tags = take_json(root, "tags", JSON_ARRAY, &right);
    s->config = take_json(root, "config", JSON_OBJECT, &right);
    s->unreadable = take_json(root, "unreadable", JSON_ARRAY, &right);
    s->unreadable_total = take_number(root, "unreadable_total", INT64_MAX, &right);
    s->stats = take_json(root, "stats", JSON_OBJECT, &right);
    s->pinned = json_is_true(json_object_get(root, "pinned"));
    take_roots(root, s, &right);
    if (format != 1 || !bk_backup_id_valid(s->backup_id))
        right = false;
    size_t i;
    json_t *tag;
    json_array_foreach(s->tags, i, tag) right = right && json_is_string(tag);
    json_decref(root);
    if (right)
        return BK_OK;
    bk_snapshot_free(s);
    return bk_err_set(err, BK_CORRUPT, "the snapshot has missing or impossible members");
}

/* --- listing --- */

typedef struct {
    bk_repo_t *repo;
    const char *cache_dir;
    bk_ctl_t *ctl;
    bk_snapshot_list_t *list;
    size_t cap;
} listing_t;

static bool right_name(const char *name, const bk_buf_t *object)
{
    bk_id_t wanted, digest;
    bk_sha256(&digest, object->data, object->len);
    return bk_object_name_id(name, &wanted) && bk_id_equal(&digest, &wanted);
}

/* The sealed object, from the cache when it is there and right. */
static bk_rc_t read_object(const listing_t *listing, const char *name, bk_buf_t *object,
                           bk_err_t *err)
{
    char path[4096];
    bool cached = listing->cache_dir != NULL &&
                  bk_fmt(path, sizeof path, "%s/%s", listing->cache_dir, strrchr(name, '/') + 1);
    if (cached && bk_read_file(AT_FDCWD, path, object, NULL) == BK_OK && right_name(name, object))
        return BK_OK;
    bk_buf_reset(object);
    bk_rc_t rc =
        bk_objects_get_all(bk_repo_objects(listing->repo), name, object, listing->ctl, err);
    if (rc == BK_OK && !right_name(name, object))
        rc = bk_err_set(err, BK_CORRUPT, "its SHA-256 differs from its name");
    if (rc == BK_OK && cached)
        bk_publish_bytes(AT_FDCWD, path, 0600, object->data, object->len, false, NULL);
    return rc;
}

static bk_rc_t load(const listing_t *listing, const char *name, bk_snapshot_t *s, bk_err_t *err)
{
    bk_buf_t object, plain;
    bk_buf_init(&object, SNAPSHOT_MAX);
    bk_buf_init(&plain, SNAPSHOT_MAX);
    bk_rc_t rc = read_object(listing, name, &object, err);
    if (rc == BK_OK)
        rc = bk_object_unwrap(bk_repo_keyring(listing->repo), bk_repo_uuid(listing->repo),
                              BK_KIND_SNAPSHOT, object.data, object.len, &plain, err);
    if (rc == BK_OK)
        rc = bk_snapshot_decode(plain.data, plain.len, s, err);
    if (rc == BK_OK) {
        s->object = bk_strdup(name);
        s->object_size = object.len;
        size_t len = strlen(s->backup_id);
        if (strncmp(name + strlen("snapshots/"), s->backup_id, len) != 0 ||
            name[strlen("snapshots/") + len] != '-')
            rc = bk_err_set(err, BK_CORRUPT, "it belongs to another backup id");
        if (rc != BK_OK)
            bk_snapshot_free(s);
    }
    bk_buf_free(&object);
    bk_buf_free(&plain);
    return rc;
}

static bk_rc_t add_snapshot(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    listing_t *listing = arg;
    bk_snapshot_list_t *list = listing->list;
    bk_err_t why = {0};
    bk_snapshot_t s;
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].object, item->name) == 0)
            return BK_OK; /* on the storage and in the spool */
    bk_rc_t rc = load(listing, item->name, &s, &why);
    if (rc == BK_CORRUPT || rc == BK_WRONG_KEY || rc == BK_UNSUPPORTED) {
        list->damaged++;
        bk_ctl_note(listing->ctl, "%s: %s", item->name, why.text);
        return BK_OK;
    }
    if (rc == BK_NOT_FOUND)
        return BK_OK; /* removed meanwhile */
    if (rc != BK_OK) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    if (list->count == listing->cap) {
        size_t cap = listing->cap > 0 ? 2 * listing->cap : 64;
        bk_snapshot_t *more = realloc(list->items, cap * sizeof *more);
        if (more == NULL) {
            bk_snapshot_free(&s);
            return bk_err_set(err, BK_NO_MEMORY, "list backups: out of memory");
        }
        list->items = more;
        listing->cap = cap;
    }
    list->items[list->count++] = s;
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
    listing_t listing = {.repo = repo, .ctl = ctl, .list = list};
    memset(list, 0, sizeof *list);
    if (cache_dir != NULL) {
        bk_fmt(dir, sizeof dir, "%s/snapshots", cache_dir);
        if (bk_mkdirs(dir, 0700, NULL) == BK_OK)
            listing.cache_dir = dir;
    }
    bk_rc_t rc =
        bk_objects_list(bk_repo_objects(repo), "snapshots/", add_snapshot, &listing, ctl, err);
    if (rc != BK_OK)
        bk_snapshot_list_free(list);
    else if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, by_time);
    return rc;
}

void bk_snapshot_list_free(bk_snapshot_list_t *list)
{
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
