/*
 * engine/readback.c: walks the trees of a backup on lane 0 and fetches the chunks of many files at
 * a time on all lanes; each chunk is compared with its id on the way.  Writes nothing.
 */
#include "engine/readback.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "repo/map.h"
#include "repo/tree.h"

#define WINDOW    8192u /* chunks that are fetched together */
#define BLOB_MAX  (16u << 20)
#define DEPTH_MAX 2048u
#define SHOWN     100u

/* One file, while chunks of it are on the way. */
typedef struct file_s {
    struct file_s *next;
    bool damaged;
    char path[];
} file_t;

typedef struct {
    bk_repo_t *repo;
    bk_team_t *team;
    bk_ctl_t *ctl;
    bk_want_chunk_t *wants;
    size_t count;
    file_t *files; /* newest first */
    bk_buf_t blob;
    pthread_mutex_t lock; /* guards what follows, and damaged of each file */
    bk_readback_t *result;
    json_t *failed;
} run_t;

/* What concerns one object, and not the storage or the whole job. */
static bool is_damage(bk_rc_t rc)
{
    return rc == BK_CORRUPT || rc == BK_NOT_FOUND || rc == BK_TOO_LARGE;
}

static void add_damage(run_t *run, const char *path, const bk_err_t *why)
{
    run->result->damaged++;
    if (json_array_size(run->failed) < SHOWN)
        json_array_append_new(run->failed,
                              json_pack("{so so}", "path", bk_json_name(path, strlen(path)),
                                        "error", bk_json_name(why->text, strlen(why->text))));
}

static void damage_file(run_t *run, file_t *file, const bk_err_t *why)
{
    pthread_mutex_lock(&run->lock);
    if (!file->damaged)
        add_damage(run, file->path, why);
    file->damaged = true;
    pthread_mutex_unlock(&run->lock);
}

static bk_rc_t take_chunk(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                          const bk_err_t *failure, bk_err_t *err)
{
    run_t *run = arg;
    if (data != NULL) {
        atomic_fetch_add_explicit(&run->ctl->bytes_done, want->raw, memory_order_relaxed);
        return BK_OK;
    }
    if (!is_damage(failure->rc)) {
        if (err != NULL)
            *err = *failure;
        return failure->rc;
    }
    damage_file(run, want->user, failure);
    return BK_OK;
}

/* Fetch what is waiting; the newest file may still get chunks. */
static bk_rc_t flush(run_t *run, bk_err_t *err)
{
    bk_rc_t rc = bk_ctl_check(run->ctl, err);
    if (rc == BK_OK && run->count > 0)
        rc = bk_repo_fetch(run->repo, run->wants, run->count, run->team, take_chunk, run, run->ctl,
                           err);
    run->count = 0;
    while (run->files != NULL && run->files->next != NULL) {
        file_t *old = run->files->next;
        run->files->next = old->next;
        free(old);
    }
    return rc;
}

static bk_rc_t want(run_t *run, file_t *file, const bk_chunk_ref_t *refs, size_t n, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < n && rc == BK_OK; i++) {
        if (bk_id_is_zero(&refs[i].id))
            continue; /* a hole */
        if (run->count == WINDOW)
            rc = flush(run, err);
        run->wants[run->count++] =
            (bk_want_chunk_t){.id = refs[i].id, .raw = refs[i].raw, .user = file};
    }
    return rc;
}

static bk_rc_t want_map(run_t *run, file_t *file, const bk_map_t *map, bk_err_t *err)
{
    bk_chunk_ref_t refs[256];
    bk_rc_t rc = BK_OK;
    for (uint64_t first = 0; first < map->count && rc == BK_OK; first += 256) {
        bk_err_t why = {0};
        size_t n = map->count - first < 256 ? (size_t)(map->count - first) : 256;
        rc = bk_map_read(run->repo, map, first, n, refs, run->ctl, &why);
        if (is_damage(rc)) {
            damage_file(run, file, &why);
            return BK_OK;
        }
        if (rc != BK_OK && err != NULL)
            *err = why;
        if (rc == BK_OK)
            rc = want(run, file, refs, n, err);
    }
    return rc;
}

static bk_rc_t read_blob(run_t *run, file_t *file, const bk_id_t *id, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = bk_repo_get(run->repo, id, &run->blob, run->ctl, &why);
    if (is_damage(rc)) {
        damage_file(run, file, &why);
        return BK_OK;
    }
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

static bk_rc_t read_entry(run_t *run, const char *path, const bk_entry_t *entry, bk_err_t *err)
{
    size_t len = strlen(path);
    file_t *file = malloc(sizeof *file + len + 1);
    bk_rc_t rc = BK_OK;
    if (file == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "validate: out of memory");
    memcpy(file->path, path, len + 1);
    file->damaged = false;
    file->next = run->files;
    run->files = file;
    if (entry->type == BK_ENTRY_FILE) {
        run->result->files++;
        run->result->bytes += entry->size;
        atomic_fetch_add_explicit(&run->ctl->files_done, 1, memory_order_relaxed);
    }
    if (entry->flags & BK_ENTRY_ATTRS)
        rc = read_blob(run, file, &entry->attrs, err);
    if (rc == BK_OK && (entry->flags & BK_ENTRY_EXTENTS))
        rc = read_blob(run, file, &entry->extents, err);
    if (rc == BK_OK && (entry->flags & BK_ENTRY_CHUNKS))
        rc = want(run, file, entry->chunks, entry->chunk_count, err);
    if (rc == BK_OK && (entry->flags & BK_ENTRY_MAP)) {
        bk_map_t map = {.root = entry->map, .count = entry->map_count, .depth = entry->map_depth};
        rc = want_map(run, file, &map, err);
    }
    return rc;
}

/* --- directories --- */

typedef struct {
    bk_tree_iter_t *iter;
    size_t path_len;
} level_t;

typedef struct {
    level_t *levels;
    size_t count;
    char path[PATH_MAX * 4];
} walk_t;

static bk_rc_t enter(run_t *run, walk_t *walk, const bk_id_t *root, bk_err_t *err)
{
    if (walk->count == DEPTH_MAX)
        return bk_err_set(err, BK_CORRUPT, "%s: directories are nested too deep", walk->path);
    level_t *level = &walk->levels[walk->count];
    bk_rc_t rc = bk_tree_iter_open(run->repo, root, run->ctl, &level->iter, err);
    if (rc == BK_OK) {
        level->path_len = strlen(walk->path);
        walk->count++;
    }
    return rc;
}

/* The name behind the path of its directory; bytes that are no text stay as they are. */
static bool append_name(walk_t *walk, size_t at, const bk_entry_t *entry)
{
    if (at + entry->name_len + 2 > sizeof walk->path)
        return false;
    walk->path[at] = '/';
    memcpy(walk->path + at + 1, entry->name, entry->name_len);
    walk->path[at + 1 + entry->name_len] = '\0';
    return true;
}

/* One entry of the deepest directory; *err tells of a directory that cannot be read. */
static bk_rc_t step(run_t *run, walk_t *walk, bk_err_t *err)
{
    level_t *level = &walk->levels[walk->count - 1];
    const bk_entry_t *entry = NULL;
    bk_id_t child;
    walk->path[level->path_len] = '\0';
    bk_rc_t rc = bk_tree_iter_next(level->iter, &entry, err);
    if (rc != BK_OK || entry == NULL) {
        bk_tree_iter_close(level->iter);
        walk->count--;
        return rc;
    }
    if (!append_name(walk, level->path_len, entry))
        return bk_err_set(err, BK_CORRUPT, "%s: the path is too long", walk->path);
    child = entry->child;
    bool directory = entry->type == BK_ENTRY_DIR;
    rc = read_entry(run, walk->path, entry, err);
    return rc == BK_OK && directory ? enter(run, walk, &child, err) : rc;
}

static bk_rc_t read_tree(run_t *run, walk_t *walk, const bk_snapshot_tree_t *tree, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_strcpy(walk->path, sizeof walk->path, tree->name);
    bk_rc_t rc = enter(run, walk, &tree->root, &why);
    if (is_damage(rc)) {
        add_damage(run, walk->path, &why);
        return BK_OK;
    }
    while (walk->count > 0 && (rc == BK_OK || is_damage(rc))) {
        rc = step(run, walk, &why);
        if (is_damage(rc)) {
            pthread_mutex_lock(&run->lock);
            add_damage(run, walk->path, &why);
            pthread_mutex_unlock(&run->lock);
        }
    }
    while (walk->count > 0)
        bk_tree_iter_close(walk->levels[--walk->count].iter);
    if (rc == BK_OK || is_damage(rc))
        return flush(run, err);
    if (err != NULL)
        *err = why;
    return rc;
}

bk_rc_t bk_readback(bk_repo_t *repo, const bk_snapshot_t *snapshot, bk_team_t *team, json_t *failed,
                    bk_readback_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    run_t run = {.repo = repo, .team = team, .ctl = ctl, .result = result, .failed = failed};
    walk_t *walk = calloc(1, sizeof *walk);
    bk_rc_t rc = BK_OK;
    memset(result, 0, sizeof *result);
    pthread_mutex_init(&run.lock, NULL);
    bk_buf_init(&run.blob, BLOB_MAX);
    run.wants = calloc(WINDOW, sizeof *run.wants);
    if (walk != NULL)
        walk->levels = calloc(DEPTH_MAX, sizeof *walk->levels);
    if (run.wants == NULL || walk == NULL || walk->levels == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "validate: out of memory");
    for (size_t i = 0; i < snapshot->tree_count && rc == BK_OK; i++) {
        atomic_fetch_add(&ctl->files_total, snapshot->trees[i].files);
        atomic_fetch_add(&ctl->bytes_total, snapshot->trees[i].bytes);
        rc = read_tree(&run, walk, &snapshot->trees[i], err);
    }
    while (run.files != NULL) {
        file_t *next = run.files->next;
        free(run.files);
        run.files = next;
    }
    if (walk != NULL)
        free(walk->levels);
    free(walk);
    free(run.wants);
    bk_buf_free(&run.blob);
    pthread_mutex_destroy(&run.lock);
    return rc;
}
