/*
 * repo/verify.c: names, checksums, every frame, and whether every backup finds all it needs.  Reads only.
 */
#include "repo/verify.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "repo/repo_private.h"

#define OBJECT_MAX (256u << 20)
#define PATH_BYTES 4096

typedef struct {
    bk_repo_t *repo;
    bk_index_t *index;
    unsigned level;
    bk_verify_finding_fn fn;
    void *arg;
    bk_verify_result_t *result;
    bk_ctl_t *ctl;
    pthread_mutex_t lock; /* guards result, the findings and what follows */
    bk_id_t *bad;         /* damaged chunks, sorted before use */
    size_t bad_count, bad_cap;
} verify_t;

static void finding(verify_t *v, const char *object, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void finding(verify_t *v, const char *object, const char *fmt, ...)
{
    char line[2048];
    va_list args;
    size_t at = (size_t)snprintf(line, sizeof line, "%s: ", object);
    va_start(args, fmt);
    if (at < sizeof line)
        vsnprintf(line + at, sizeof line - at, fmt, args);
    va_end(args);
    pthread_mutex_lock(&v->lock);
    v->result->findings++;
    v->fn(v->arg, object, line);
    pthread_mutex_unlock(&v->lock);
}

static void bad_chunk(verify_t *v, const bk_id_t *id)
{
    pthread_mutex_lock(&v->lock);
    if (v->bad_count == v->bad_cap) {
        size_t cap = v->bad_cap > 0 ? 2 * v->bad_cap : 64;
        bk_id_t *more = realloc(v->bad, cap * sizeof *more);
        if (more != NULL) {
            v->bad = more;
            v->bad_cap = cap;
        }
    }
    if (v->bad_count < v->bad_cap)
        v->bad[v->bad_count++] = *id;
    pthread_mutex_unlock(&v->lock);
}

static void count_object(verify_t *v, uint64_t bytes)
{
    pthread_mutex_lock(&v->lock);
    v->result->objects++;
    v->result->bytes += bytes;
    pthread_mutex_unlock(&v->lock);
    if (v->ctl != NULL) {
        atomic_fetch_add(&v->ctl->bytes_done, bytes);
        atomic_fetch_add(&v->ctl->files_done, 1);
    }
}

/* --- level 0: every pack of the index is there with its size --- */

typedef struct {
    bk_id_t name;
    uint64_t size;
} pack_t;

typedef struct {
    verify_t *v;
    pack_t *packs;
    size_t count, cap;
} packs_t;

static bk_rc_t add_pack(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    packs_t *list = arg;
    if (list->count == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 256;
        pack_t *more = realloc(list->packs, cap * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "list packs: out of memory");
        list->packs = more;
        list->cap = cap;
    }
    if (bk_object_name_id(item->name, &list->packs[list->count].name))
        list->packs[list->count++].size = item->size;
    return BK_OK;
}

static int by_name(const void *a, const void *b)
{
    return bk_id_compare(&((const pack_t *)a)->name, &((const pack_t *)b)->name);
}

static bk_rc_t check_pack_there(void *arg, const bk_id_t *name, uint32_t size, bk_kind_t kind,
                                bk_err_t *err)
{
    packs_t *list = arg;
    char object[BK_STORAGE_NAME];
    pack_t wanted = {.name = *name};
    const pack_t *found =
        list->count > 0 ? bsearch(&wanted, list->packs, list->count, sizeof wanted, by_name) : NULL;
    (void)err;
    bk_pack_object_name(object, name, kind);
    if (found == NULL)
        finding(list->v, object, "the pack is missing");
    else if (found->size != size)
        finding(list->v, object, "the pack has %llu bytes instead of %u",
                (unsigned long long)found->size, (unsigned)size);
    else if (list->v->level == 0)
        count_object(list->v, size);
    return BK_OK;
}

static bk_rc_t check_packs_there(verify_t *v, bk_err_t *err)
{
    packs_t list = {.v = v};
    const bk_objects_t *objects = bk_repo_objects(v->repo);
    bk_rc_t rc = bk_objects_list(objects, "packs/", add_pack, &list, v->ctl, err);
    if (rc == BK_OK)
        rc = bk_objects_list(objects, "meta/", add_pack, &list, v->ctl, err);
    if (rc == BK_OK && list.count > 1)
        qsort(list.packs, list.count, sizeof *list.packs, by_name);
    if (rc == BK_OK)
        rc = bk_index_each_pack(v->index, check_pack_there, &list, err);
    free(list.packs);
    return rc;
}

/* --- levels 1 and 2: the bytes of each object --- */

typedef struct {
    verify_t *v;
    char name[BK_STORAGE_NAME];
} object_t;

/* Every frame of a whole pack in memory. */
static bk_rc_t check_frames(verify_t *v, const char *name, bk_kind_t kind, bk_buf_t *bytes,
                            bk_err_t *err)
{
    bk_object_key_t key = {0};
    bk_pack_trailer_t where;
    bk_pack_entry_t *entries = NULL;
    uint8_t *raw = malloc(BK_CHUNK_MAX), *directory = NULL;
    bk_rc_t rc;

    if (raw == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "verify %s: out of memory", name);
    if (bytes->len < BK_OBJECT_HEADER + 32) {
        rc = bk_err_set(err, BK_CORRUPT, "cut off");
        goto done;
    }
    rc = bk_object_key_open(bk_repo_keyring(v->repo), bk_repo_uuid(v->repo), kind, bytes->data,
                            &key, err);
    if (rc == BK_OK)
        rc = bk_pack_trailer(bytes->data + bytes->len - 32, bytes->len, &where, err);
    if (rc == BK_OK && (directory = malloc(where.length + 1u)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "out of memory");
    if (rc == BK_OK) {
        memcpy(directory, bytes->data + where.offset, where.length);
        rc = bk_pack_directory(&key, directory, &where, &entries, err);
    }
    for (uint32_t i = 0; rc == BK_OK && i < where.count; i++) {
        bk_err_t why = {0};
        if ((rc = bk_ctl_check(v->ctl, err)) != BK_OK)
            break;
        if (bk_pack_frame(bk_repo_keyring(v->repo), &key, &entries[i],
                          bytes->data + entries[i].offset, raw, &why) != BK_OK) {
            char hex[BK_ID_HEX];
            bk_id_hex(hex, &entries[i].id);
            bad_chunk(v, &entries[i].id);
            finding(v, name, "chunk %.16s…: %s", hex, why.text);
        }
        pthread_mutex_lock(&v->lock);
        v->result->chunks++;
        pthread_mutex_unlock(&v->lock);
    }
done:
    free(raw);
    free(directory);
    free(entries);
    bk_object_key_wipe(&key);
    return rc;
}

/* All chunks that the index has in a pack that cannot be used. */
typedef struct {
    verify_t *v;
    bk_id_t pack;
} lost_pack_t;

static bk_rc_t lose_chunk(void *arg, const bk_location_t *where, bk_err_t *err)
{
    lost_pack_t *lost = arg;
    (void)err;
    if (bk_id_equal(&where->pack, &lost->pack))
        bad_chunk(lost->v, &where->entry.id);
    return BK_OK;
}

static bk_rc_t check_object(void *arg, bk_err_t *err)
{
    object_t *object = arg;
    verify_t *v = object->v;
    const char *name = object->name;
    bk_buf_t bytes;
    bk_id_t digest, wanted;
    bk_err_t why = {0};
    bool is_data = strncmp(name, "packs/", 6) == 0, is_meta = strncmp(name, "meta/", 5) == 0;

    bk_buf_init(&bytes, OBJECT_MAX);
    bk_rc_t rc = bk_ctl_check(v->ctl, err);
    if (rc != BK_OK)
        goto done;
    rc = bk_objects_get_all(bk_repo_objects(v->repo), name, &bytes, v->ctl, &why);
    if (rc == BK_CANCELED || rc == BK_INTERRUPTED || rc == BK_NO_MEMORY) {
        if (err != NULL)
            *err = why;
        goto done;
    }
    count_object(v, bytes.len);
    if (rc == BK_NOT_FOUND) { /* removed since it was listed */
        rc = BK_OK;
        goto done;
    }
    bk_sha256(&digest, bytes.data, bytes.len);
    bool sound = rc == BK_OK && bk_object_name_id(name, &wanted) && bk_id_equal(&digest, &wanted);
    if (rc != BK_OK)
        finding(v, name, "%s", why.text);
    else if (!sound)
        finding(v, name, "its SHA-256 differs from its name: the object is damaged");
    rc = BK_OK;
    if (is_data || is_meta) {
        if (v->level >= 2 && bytes.len > 0) {
            rc = check_frames(v, name, is_meta ? BK_KIND_META : BK_KIND_PACK, &bytes, &why);
            if (rc == BK_CORRUPT || rc == BK_WRONG_KEY) {
                lost_pack_t lost = {.v = v};
                bk_object_name_id(name, &lost.pack);
                if (sound)
                    finding(v, name, "%s", why.text);
                bk_index_each_chunk(v->index, lose_chunk, &lost, NULL);
                rc = BK_OK;
            } else if (rc != BK_OK && err != NULL) {
                *err = why;
            }
        } else if (!sound) {
            lost_pack_t lost = {.v = v};
            bk_object_name_id(name, &lost.pack);
            bk_index_each_chunk(v->index, lose_chunk, &lost, NULL);
        }
    }
done:
    bk_buf_free(&bytes);
    free(object);
    return rc;
}

typedef struct {
    verify_t *v;
    bk_team_t *team;
    bk_group_t *group;
} submit_t;

static bk_rc_t submit_object(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    submit_t *submit = arg;
    object_t *object = malloc(sizeof *object);
    if (object == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
    object->v = submit->v;
    bk_strcpy(object->name, sizeof object->name, item->name);
    if (submit->v->ctl != NULL) {
        atomic_fetch_add(&submit->v->ctl->bytes_total, item->size);
        atomic_fetch_add(&submit->v->ctl->files_total, 1);
    }
    bk_team_submit(submit->team, submit->group, check_object, object, (size_t)item->size);
    return bk_group_failed(submit->group) ? BK_FAILED : BK_OK;
}

static bk_rc_t check_objects(verify_t *v, bk_team_t *team, bk_err_t *err)
{
    static const char *const folders[] = {"packs/", "meta/", "index/", "snapshots/"};
    bk_group_t group;
    submit_t submit = {.v = v, .team = team, .group = &group};
    bk_rc_t rc = BK_OK;
    bk_group_init(&group);
    for (size_t i = 0; i < 4 && rc == BK_OK; i++)
        rc = bk_objects_list(bk_repo_objects(v->repo), folders[i], submit_object, &submit, v->ctl,
                             err);
    bk_err_t failure = {0};
    bk_rc_t done = bk_team_wait(team, &group, &failure);
    if (done != BK_OK) {
        if (err != NULL)
            *err = failure;
        return done;
    }
    return rc;
}

/* --- what the backups need --- */

static int compare_ids(const void *a, const void *b)
{
    return bk_id_compare(a, b);
}

/* True when the chunk can be had as far as we know. */
static bool have(const verify_t *v, const bk_id_t *id)
{
    bk_location_t where;
    if (bk_id_is_zero(id))
        return true;
    if (v->bad_count > 0 && bsearch(id, v->bad, v->bad_count, sizeof *id, compare_ids) != NULL)
        return false;
    return bk_index_find(v->index, id, &where);
}

typedef struct {
    verify_t *v;
    const bk_snapshot_t *snapshot;
    char path[PATH_BYTES]; /* printable */
} need_t;

static void lost(need_t *need, const bk_id_t *id)
{
    char hex[BK_ID_HEX];
    bk_id_hex(hex, id);
    finding(need->v, need->snapshot->backup_id, "%s: chunk %.16s… is lost", need->path, hex);
}

static bk_rc_t need_node(void *arg, const bk_id_t *node, bk_err_t *err)
{
    need_t *need = arg;
    (void)err;
    if (have(need->v, node))
        return BK_OK;
    lost(need, node);
    return BK_NOT_FOUND; /* nothing below it can be looked at */
}

static bk_rc_t need_map(need_t *need, const bk_map_t *map, bk_err_t *err)
{
    bk_chunk_ref_t refs[BK_MAP_FANOUT];
    bk_err_t why = {0};
    bk_rc_t rc = bk_map_each_node(need->v->repo, map, need_node, need, need->v->ctl, &why);
    for (uint64_t first = 0; rc == BK_OK && first < map->count; first += BK_MAP_FANOUT) {
        size_t n =
            map->count - first < BK_MAP_FANOUT ? (size_t)(map->count - first) : BK_MAP_FANOUT;
        rc = bk_map_read(need->v->repo, map, first, n, refs, need->v->ctl, &why);
        for (size_t i = 0; i < n && rc == BK_OK; i++)
            if (!have(need->v, &refs[i].id))
                lost(need, &refs[i].id);
    }
    if (rc == BK_CORRUPT)
        finding(need->v, need->snapshot->backup_id, "%s: %s", need->path, why.text);
    if (rc == BK_CANCELED || rc == BK_INTERRUPTED) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    return BK_OK;
}

static bk_rc_t need_directory(need_t *need, const bk_id_t *root, unsigned depth, bk_err_t *err);

static bk_rc_t need_entry(need_t *need, const bk_entry_t *entry, unsigned depth, bk_err_t *err)
{
    for (uint32_t i = 0; i < entry->chunk_count; i++)
        if (!have(need->v, &entry->chunks[i].id))
            lost(need, &entry->chunks[i].id);
    if ((entry->flags & BK_ENTRY_EXTENTS) && !have(need->v, &entry->extents))
        lost(need, &entry->extents);
    if ((entry->flags & BK_ENTRY_ATTRS) && !have(need->v, &entry->attrs))
        lost(need, &entry->attrs);
    if (entry->flags & BK_ENTRY_MAP) {
        bk_map_t map = {.root = entry->map, .count = entry->map_count, .depth = entry->map_depth};
        return need_map(need, &map, err);
    }
    if (entry->type == BK_ENTRY_DIR)
        return need_directory(need, &entry->child, depth + 1, err);
    return BK_OK;
}

static bk_rc_t need_directory(need_t *need, const bk_id_t *root, unsigned depth, bk_err_t *err)
{
    bk_tree_iter_t *iter = NULL;
    const bk_entry_t *entry;
    bk_err_t why = {0};
    size_t len = strlen(need->path);
    if (depth > 1000)
        return BK_OK;
    if (!have(need->v, root)) {
        lost(need, root);
        return BK_OK;
    }
    bk_rc_t rc = bk_tree_iter_open(need->v->repo, root, need->v->ctl, &iter, &why);
    while (rc == BK_OK && (rc = bk_tree_iter_next(iter, &entry, &why)) == BK_OK && entry != NULL) {
        if (len + 1 < sizeof need->path) {
            need->path[len] = '/';
            bk_name_escape(need->path + len + 1, sizeof need->path - len - 1, entry->name,
                           entry->name_len);
        }
        rc = need_entry(need, entry, depth, &why);
        need->path[len] = '\0';
    }
    need->path[len] = '\0';
    bk_tree_iter_close(iter);
    if (rc == BK_CORRUPT) {
        finding(need->v, need->snapshot->backup_id, "%s: %s", need->path, why.text);
        rc = BK_OK;
    } else if (rc != BK_OK && err != NULL) {
        *err = why;
    }
    return rc;
}

static bk_rc_t check_needs(verify_t *v, const bk_snapshot_list_t *list, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (v->bad_count > 1)
        qsort(v->bad, v->bad_count, sizeof *v->bad, compare_ids);
    need_t *need = calloc(1, sizeof *need);
    if (need == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
    need->v = v;
    for (size_t i = 0; i < list->count && rc == BK_OK; i++) {
        const bk_snapshot_t *s = &list->items[i];
        need->snapshot = s;
        for (size_t n = 0; n < s->db_count && rc == BK_OK; n++) {
            bk_strcpy(need->path, sizeof need->path, s->dbs[n].name);
            rc = need_map(need, &s->dbs[n].map, err);
        }
        for (size_t n = 0; n < s->tree_count && rc == BK_OK; n++) {
            bk_strcpy(need->path, sizeof need->path, s->trees[n].name);
            rc = need_directory(need, &s->trees[n].root, 0, err);
        }
    }
    free(need);
    return rc;
}

bk_rc_t bk_verify(bk_repo_t *repo, unsigned level, bk_team_t *team, bk_verify_finding_fn fn,
                  void *arg, bk_verify_result_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    verify_t v = {.repo = repo, .level = level, .fn = fn, .arg = arg, .result = result, .ctl = ctl};
    bk_snapshot_list_t list = {0};
    bk_ctl_t notes;

    memset(result, 0, sizeof *result);
    if (level > 2)
        return bk_err_set(err, BK_INVALID, "verify: level %u is not from 0 to 2", level);
    pthread_mutex_init(&v.lock, NULL);
    bk_ctl_init(&notes);
    bk_ctl_phase(ctl, "verify");
    bk_rc_t rc = bk_repo_index(repo, &notes, &v.index, err);
    if (rc == BK_OK)
        rc = bk_index_refresh(v.index, &notes, err);
    if (rc == BK_OK)
        rc = bk_snapshot_list(repo, NULL, &notes, &list, err);
    if (rc == BK_OK)
        rc = check_packs_there(&v, err);
    if (rc == BK_OK && level >= 1)
        rc = check_objects(&v, team, err);
    for (unsigned i = 0; i < notes.notes_kept && level == 0; i++)
        finding(&v, "repository", "%s", notes.notes[i]);
    if (rc == BK_OK && (level >= 2 || v.bad_count > 0))
        rc = check_needs(&v, &list, err);
    bk_snapshot_list_free(&list);
    bk_ctl_free(&notes);
    free(v.bad);
    pthread_mutex_destroy(&v.lock);
    return rc;
}
