/*
 * repo/snapshot.c: a snapshot as canonical JSON, and back.  Decoding trusts nothing.
 */
#include "repo/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"

#define ROOTS_MAX 1000u

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
    json_t *object = json_pack("{so so so sI sI sI}", "name", text_json(tree->name), "path",
                               text_json(tree->path), "root", id_json(&tree->root), "entries",
                               (json_int_t)tree->entries, "files", (json_int_t)tree->files, "bytes",
                               (json_int_t)tree->bytes);
    if (!tree->described || object == NULL)
        return object;
    json_object_set_new(object, "directory",
                        json_pack("{sI sI sI so so sI}", "mode", (json_int_t)tree->mode, "uid",
                                  (json_int_t)tree->uid, "gid", (json_int_t)tree->gid, "user",
                                  text_json(tree->user), "group", text_json(tree->group), "mtime",
                                  (json_int_t)tree->mtime));
    return object;
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
    size_t start = out->len;
    bk_rc_t rc = root != NULL ? bk_json_dump(root, true, out, err)
                              : bk_err_set(err, BK_NO_MEMORY, "write snapshot: out of memory");
    json_decref(root);
    /* A backup whose snapshot no reader would take is none: better to fail now. */
    bk_snapshot_t proof;
    if (rc == BK_OK)
        rc = bk_snapshot_decode(out->data + start, out->len - start, &proof, err);
    if (rc == BK_OK)
        bk_snapshot_free(&proof);
    return rc;
}

/* --- reading: the first member that is missing or wrong is remembered --- */

typedef struct {
    const char *wrong; /* name of the member, or NULL */
} take_t;

static void complain(take_t *take, const char *name)
{
    if (take->wrong == NULL)
        take->wrong = name;
}

/* Text that may stand for any bytes but NUL; heap. */
static char *take_text(const json_t *object, const char *name, bool optional, take_t *take)
{
    const json_t *value = json_object_get(object, name);
    if (optional && (value == NULL || json_is_null(value)))
        return NULL;
    size_t size = json_string_length(value) + 1;
    char *text = json_is_string(value) ? malloc(size) : NULL;
    int64_t len =
        text != NULL ? bk_name_unescape((uint8_t *)text, size - 1, json_string_value(value)) : -1;
    if (len < 0 || memchr(text, '\0', (size_t)len) != NULL) {
        free(text);
        complain(take, name);
        return NULL;
    }
    text[len] = '\0';
    return text;
}

static void take_small(const json_t *object, const char *name, char *out, size_t size, take_t *take)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value) || !bk_strcpy(out, size, json_string_value(value)))
        complain(take, name);
}

static bool take_bool(const json_t *object, const char *name, take_t *take)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_boolean(value))
        complain(take, name);
    return json_is_true(value);
}

static uint64_t take_number(const json_t *object, const char *name, uint64_t max, take_t *take)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) > max) {
        complain(take, name);
        return 0;
    }
    return (uint64_t)json_integer_value(value);
}

static void take_hex(const json_t *object, const char *name, uint8_t *out, size_t len, take_t *take)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value) ||
        !bk_unhex(out, len, json_string_value(value), json_string_length(value)))
        complain(take, name);
}

static json_t *take_json(const json_t *object, const char *name, json_type type, take_t *take)
{
    json_t *value = json_object_get(object, name);
    if (value == NULL || json_typeof(value) != type) {
        complain(take, name);
        return NULL;
    }
    return json_incref(value);
}

static void take_owner(const json_t *object, const char *name, char out[BK_SNAPSHOT_OWNER],
                       take_t *take)
{
    char *text = take_text(object, name, false, take);
    if (text == NULL || !bk_strcpy(out, BK_SNAPSHOT_OWNER, text))
        out[0] = '\0';
    free(text);
}

static void take_directory(const json_t *object, bk_snapshot_tree_t *tree, take_t *take)
{
    tree->described = object != NULL;
    if (object == NULL)
        return;
    tree->mode = (uint32_t)take_number(object, "mode", 07777, take);
    tree->uid = (uint32_t)take_number(object, "uid", UINT32_MAX, take);
    tree->gid = (uint32_t)take_number(object, "gid", UINT32_MAX, take);
    take_owner(object, "user", tree->user, take);
    take_owner(object, "group", tree->group, take);
    tree->mtime = (int64_t)take_number(object, "mtime", INT64_MAX, take);
}

static void take_tree(const json_t *object, bk_snapshot_tree_t *tree, take_t *take)
{
    tree->name = take_text(object, "name", false, take);
    tree->path = take_text(object, "path", false, take);
    take_hex(object, "root", tree->root.b, BK_ID_SIZE, take);
    tree->entries = take_number(object, "entries", INT64_MAX, take);
    tree->files = take_number(object, "files", INT64_MAX, take);
    tree->bytes = take_number(object, "bytes", INT64_MAX, take);
    take_directory(json_object_get(object, "directory"), tree, take);
}

static bool is_power(uint64_t value, uint64_t min, uint64_t max)
{
    return value >= min && value <= max && (value & (value - 1)) == 0;
}

static void take_db(const json_t *object, bk_snapshot_db_t *db, take_t *take)
{
    uint8_t digest[8] = {0};
    db->name = take_text(object, "name", false, take);
    db->path = take_text(object, "path", false, take);
    take_hex(object, "map", db->map.root.b, BK_ID_SIZE, take);
    db->map.count = take_number(object, "blocks", INT64_MAX, take);
    db->map.depth = (uint8_t)take_number(object, "depth", 8, take);
    db->page_size = (uint32_t)take_number(object, "page_size", 65536, take);
    db->block_size = (uint32_t)take_number(object, "block_size", BK_CHUNK_MAX, take);
    db->page_count = take_number(object, "page_count", UINT32_MAX, take);
    take_hex(object, "digest", digest, sizeof digest, take);
    for (size_t i = 0; i < sizeof digest; i++)
        db->digest = db->digest << 8 | digest[i];
    db->journal = take_text(object, "journal", false, take);
    db->instant = (int64_t)take_number(object, "instant", INT64_MAX, take);
    db->uid = (uint32_t)take_number(object, "uid", UINT32_MAX, take);
    db->gid = (uint32_t)take_number(object, "gid", UINT32_MAX, take);
    db->mode = (uint32_t)take_number(object, "mode", 07777, take);
    /* A restore computes places in the image from these: they have to go together. */
    if (!is_power(db->page_size, 512, 65536))
        complain(take, "page_size");
    else if (!is_power(db->block_size, db->page_size, BK_CHUNK_MAX))
        complain(take, "block_size");
    else if ((db->page_count * db->page_size + db->block_size - 1) / db->block_size !=
             db->map.count)
        complain(take, "blocks");
    else if (!bk_map_valid(&db->map))
        complain(take, "depth");
}

static void take_roots(const json_t *root, bk_snapshot_t *s, take_t *take)
{
    const json_t *trees = json_object_get(root, "trees"), *dbs = json_object_get(root, "databases");
    size_t tree_count = json_array_size(trees), db_count = json_array_size(dbs);
    if (!json_is_array(trees) || tree_count > ROOTS_MAX)
        complain(take, "trees");
    if (!json_is_array(dbs) || db_count > ROOTS_MAX)
        complain(take, "databases");
    if (take->wrong != NULL)
        return;
    s->trees = calloc(tree_count + 1, sizeof *s->trees);
    s->dbs = calloc(db_count + 1, sizeof *s->dbs);
    if (s->trees == NULL || s->dbs == NULL) {
        complain(take, "trees");
        return;
    }
    for (size_t i = 0; i < tree_count; i++)
        take_tree(json_array_get(trees, i), &s->trees[s->tree_count++], take);
    for (size_t i = 0; i < db_count; i++)
        take_db(json_array_get(dbs, i), &s->dbs[s->db_count++], take);
}

/* The lists inside: whoever shows or restores a backup takes their shape for granted. */
static void check_lists(const bk_snapshot_t *s, take_t *take)
{
    size_t i;
    const json_t *item;
    json_array_foreach(s->tags, i, item)
    {
        if (!json_is_string(item))
            complain(take, "tags");
    }
    json_array_foreach(s->unreadable, i, item)
    {
        if (!json_is_string(json_object_get(item, "path")) ||
            !json_is_string(json_object_get(item, "error")) ||
            !json_is_integer(json_object_get(item, "errno")))
            complain(take, "unreadable");
    }
    if (s->unreadable_total < json_array_size(s->unreadable))
        complain(take, "unreadable_total");
}

static bool kind_valid(const char *kind)
{
    return strcmp(kind, "full") == 0 || strcmp(kind, "incremental") == 0 ||
           strcmp(kind, "safety") == 0;
}

static void take_members(const json_t *root, bk_snapshot_t *s, take_t *take)
{
    take_small(root, "backup_id", s->backup_id, sizeof s->backup_id, take);
    s->set = take_text(root, "set", false, take);
    s->host = take_text(root, "host", false, take);
    take_small(root, "kind", s->kind, sizeof s->kind, take);
    take_small(root, "parent", s->parent, sizeof s->parent, take);
    take_small(root, "job", s->job, sizeof s->job, take);
    s->started = (int64_t)take_number(root, "started", INT64_MAX, take);
    s->completed = (int64_t)take_number(root, "completed", INT64_MAX, take);
    s->instant = (int64_t)take_number(root, "instant", INT64_MAX, take);
    s->description = take_text(root, "description", true, take);
    s->previous = take_text(root, "previous", true, take);
    s->tags = take_json(root, "tags", JSON_ARRAY, take);
    s->config = take_json(root, "config", JSON_OBJECT, take);
    s->unreadable = take_json(root, "unreadable", JSON_ARRAY, take);
    s->unreadable_total = take_number(root, "unreadable_total", INT64_MAX, take);
    s->stats = take_json(root, "stats", JSON_OBJECT, take);
    s->pinned = take_bool(root, "pinned", take);
    take_roots(root, s, take);
    check_lists(s, take);
    if (!bk_backup_id_valid(s->backup_id))
        complain(take, "backup_id");
    if (s->parent[0] != '\0' && !bk_backup_id_valid(s->parent))
        complain(take, "parent");
    if (!kind_valid(s->kind))
        complain(take, "kind");
}

bk_rc_t bk_snapshot_decode(const void *text, size_t len, bk_snapshot_t *s, bk_err_t *err)
{
    json_t *root = NULL;
    take_t take = {0};
    bk_rc_t rc = BK_OK;
    bk_snapshot_init(s);
    if (bk_json_parse(text, len, &root, NULL) != BK_OK)
        return bk_err_set(err, BK_CORRUPT, "the snapshot is damaged: it is not JSON");
    json_int_t format = json_integer_value(json_object_get(root, "format"));
    if (format > 1) {
        rc = bk_err_set(err, BK_UNSUPPORTED,
                        "the snapshot was written by a newer ngx-backup: upgrade it");
    } else {
        if (format != 1)
            complain(&take, "format");
        take_members(root, s, &take);
        if (take.wrong != NULL)
            rc = bk_err_set(err, BK_CORRUPT,
                            "the snapshot is damaged: its member \"%s\" is missing or impossible",
                            take.wrong);
    }
    json_decref(root);
    if (rc != BK_OK)
        bk_snapshot_free(s);
    return rc;
}
