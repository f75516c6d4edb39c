/*
 * repo/need.c: what each backup needs, and which files lose something by what verification found.
 *
 * A directory that was found whole in one backup is not walked again in the next: most of two
 * backups is the same.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "repo/packset.h"
#include "repo/verify_private.h"

#define PATH_BYTES  4096
#define LOSSES_MAX  2000u    /* files that are told one by one */
#define CLEAN_MAX   1000000u /* directories and lists that are remembered as whole */
#define DEPTH_MAX   2048u
#define BACKUPS_MAX 8u /* that are named for one file */

/* A file (or directory, or database) that lost something, and the backups in which it did. */
typedef struct {
    char *path, *text; /* owned; text: what is wrong with it, when no problem tells */
    size_t problem;    /* BK_NO_PROBLEM: see text */
    bk_id_t chunk;     /* the first one that is lost */
    size_t backups[BACKUPS_MAX];
    size_t backup_count, last;
} loss_t;

typedef struct {
    bk_verify_t *v;
    const bk_snapshot_list_t *list;
    size_t backup; /* at work */
    loss_t *losses;
    size_t loss_count;
    uint64_t more;         /* losses beyond LOSSES_MAX */
    uint64_t lost;         /* times something was found lost */
    bool blind;            /* a node is lost: nobody knows what is needed below it */
    bk_packset_t clean;    /* roots of directories and lists that are whole */
    bk_packset_t told;     /* lost chunks, counted once */
    bk_packset_t harmful;  /* packs in which one of them lies */
    size_t unknown;        /* problem: chunks that are nowhere; BK_NO_PROBLEM until there is one */
    bk_err_t why;          /* of the walk; not on the stack, which is as deep as directories are */
    char path[PATH_BYTES]; /* printable */
} need_t;

/* --- what can be had --- */

static int by_bad(const void *a, const void *b)
{
    const bk_bad_t *x = a, *y = b;
    int order = bk_id_compare(&x->pack, &y->pack);
    return order != 0 ? order : bk_id_compare(&x->chunk, &y->chunk);
}

static void sort_bad(bk_bad_list_t *list)
{
    if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, by_bad);
}

static const bk_bad_t *find_bad(const bk_bad_list_t *list, const bk_id_t *pack,
                                const bk_id_t *chunk)
{
    bk_bad_t wanted = {.pack = *pack, .chunk = *chunk};
    return list->count > 0 ? bsearch(&wanted, list->items, list->count, sizeof *list->items, by_bad)
                           : NULL;
}

typedef struct {
    const bk_verify_t *v;
    const bk_id_t *chunk;
} asked_t;

static const bk_bad_t *why_bad(const bk_verify_t *v, const bk_id_t *pack, const bk_id_t *chunk)
{
    static const bk_id_t whole;
    const bk_bad_t *bad = find_bad(&v->bad_packs, pack, &whole);
    return bad != NULL ? bad : find_bad(&v->bad_chunks, pack, chunk);
}

static bool is_bad(void *arg, const bk_id_t *pack)
{
    const asked_t *asked = arg;
    return why_bad(asked->v, pack, asked->chunk) != NULL;
}

static bool have(const bk_verify_t *v, const bk_id_t *id)
{
    bk_location_t where;
    asked_t asked = {.v = v, .chunk = id};
    bool all_good = v->bad_packs.count == 0 && v->bad_chunks.count == 0;
    return bk_id_is_zero(id) ||
           bk_index_find_except(v->index, id, all_good ? NULL : is_bad, &asked, &where);
}

/* --- what is lost --- */

static void add_backup(loss_t *loss, size_t backup)
{
    /* One backup after the other is walked, so only the last one can come again. */
    if (loss->backup_count > 0 && loss->last == backup)
        return;
    if (loss->backup_count < BACKUPS_MAX)
        loss->backups[loss->backup_count] = backup;
    loss->last = backup;
    loss->backup_count++;
}

/* Same place, same reason. */
static bool same_loss(const loss_t *loss, const char *path, size_t problem, const char *text)
{
    return loss->problem == problem && strcmp(loss->path, path) == 0 &&
           (text == NULL) == (loss->text == NULL) &&
           (text == NULL || strcmp(loss->text, text) == 0);
}

static void add_loss(need_t *need, size_t problem, const bk_id_t *chunk, const char *text)
{
    need->lost++;
    for (size_t i = need->loss_count; i-- > 0;) {
        if (same_loss(&need->losses[i], need->path, problem, text)) {
            add_backup(&need->losses[i], need->backup);
            return;
        }
    }
    if (need->loss_count == LOSSES_MAX) {
        need->more++;
        return;
    }
    loss_t *loss = &need->losses[need->loss_count];
    *loss = (loss_t){.path = bk_strdup(need->path), .text = bk_strdup(text), .problem = problem};
    if (chunk != NULL)
        loss->chunk = *chunk;
    if (loss->path == NULL || (text != NULL && loss->text == NULL)) {
        free(loss->path);
        free(loss->text);
        need->more++;
        return;
    }
    add_backup(loss, need->backup);
    need->loss_count++;
}

static bool note_harmful(void *arg, const bk_id_t *pack)
{
    need_t *need = arg;
    (void)bk_packset_add(&need->harmful, pack, BK_KIND_PACK);
    return true;
}

/* A pack without which no backup loses anything; other copies of all that they need are sound. */
static bool is_harmless(const need_t *need, const bk_problem_t *problem)
{
    bk_id_t pack;
    return !need->blind &&
           (strncmp(problem->object, "packs/", 6) == 0 ||
            strncmp(problem->object, "meta/", 5) == 0) &&
           problem->chunks == 0 && bk_object_name_id(problem->object, &pack) &&
           !bk_packset_has(&need->harmful, &pack);
}

/* The chunk cannot be had: by which problem? */
static void lose(need_t *need, const bk_id_t *id)
{
    bk_verify_t *v = need->v;
    bk_location_t where;
    size_t problem = BK_NO_PROBLEM;
    if (bk_index_find(v->index, id, &where)) {
        const bk_bad_t *bad = why_bad(v, &where.pack, id);
        problem = bad != NULL ? bad->problem : BK_NO_PROBLEM;
    } else {
        if (need->unknown == BK_NO_PROBLEM)
            need->unknown = bk_verify_problem(v, "index", "chunks that backups need are nowhere");
        problem = need->unknown;
    }
    if (problem != BK_NO_PROBLEM && !bk_packset_has(&need->told, id)) {
        v->problems[problem].chunks++;
        bk_packset_add(&need->told, id, BK_KIND_PACK);
        (void)bk_index_find_except(v->index, id, note_harmful, need, &where);
    }
    add_loss(need, problem, id, problem == BK_NO_PROBLEM ? "a chunk is lost" : NULL);
}

static void want(need_t *need, const bk_id_t *id)
{
    if (!have(need->v, id))
        lose(need, id);
}

static void remember_clean(need_t *need, const bk_id_t *root, uint64_t lost_before)
{
    /* Without memory it is walked again: slower, not wrong. */
    if (need->lost == lost_before && need->clean.count < CLEAN_MAX)
        bk_packset_add(&need->clean, root, BK_KIND_META);
}

static bool ends_walk(bk_rc_t rc)
{
    return rc != BK_OK && rc != BK_CORRUPT && rc != BK_NOT_FOUND;
}

/* --- lists of chunks --- */

static bk_rc_t want_node(void *arg, const bk_id_t *node, bk_err_t *err)
{
    need_t *need = arg;
    (void)err;
    if (have(need->v, node))
        return BK_OK;
    lose(need, node);
    need->blind = true;
    return BK_NOT_FOUND; /* nothing below it can be looked at */
}

static bk_rc_t walk_map(need_t *need, const bk_map_t *map)
{
    bk_chunk_ref_t refs[BK_MAP_FANOUT];
    bk_verify_t *v = need->v;
    uint64_t lost_before = need->lost;
    if (bk_packset_has(&need->clean, &map->root))
        return BK_OK;
    bk_rc_t rc = bk_map_each_node(v->repo, map, want_node, need, v->ctl, &need->why);
    for (uint64_t first = 0; rc == BK_OK && first < map->count; first += BK_MAP_FANOUT) {
        size_t n =
            map->count - first < BK_MAP_FANOUT ? (size_t)(map->count - first) : BK_MAP_FANOUT;
        rc = bk_map_read(v->repo, map, first, n, refs, v->ctl, &need->why);
        for (size_t i = 0; i < n && rc == BK_OK; i++)
            want(need, &refs[i].id);
    }
    if (ends_walk(rc))
        return rc;
    if (rc == BK_CORRUPT && need->lost == lost_before)
        add_loss(need, BK_NO_PROBLEM, NULL, need->why.text);
    need->blind = need->blind || rc != BK_OK;
    remember_clean(need, &map->root, lost_before);
    return BK_OK;
}

/* --- directories --- */

static bk_rc_t walk_directory(need_t *need, const bk_id_t *root, unsigned depth);

static bk_rc_t walk_entry(need_t *need, const bk_entry_t *entry, unsigned depth)
{
    for (uint32_t i = 0; i < entry->chunk_count; i++)
        want(need, &entry->chunks[i].id);
    if (entry->flags & BK_ENTRY_EXTENTS)
        want(need, &entry->extents);
    if (entry->flags & BK_ENTRY_ATTRS)
        want(need, &entry->attrs);
    if (entry->flags & BK_ENTRY_MAP) {
        bk_map_t map = {.root = entry->map, .count = entry->map_count, .depth = entry->map_depth};
        return walk_map(need, &map);
    }
    return entry->type == BK_ENTRY_DIR ? walk_directory(need, &entry->child, depth + 1) : BK_OK;
}

static bk_rc_t walk_entries(need_t *need, bk_tree_iter_t *iter, unsigned depth)
{
    const bk_entry_t *entry = NULL;
    size_t len = strlen(need->path);
    bk_rc_t rc;
    while ((rc = bk_tree_iter_next(iter, &entry, &need->why)) == BK_OK && entry != NULL) {
        if (len + 2 < sizeof need->path) {
            need->path[len] = '/';
            bk_name_escape(need->path + len + 1, sizeof need->path - len - 1, entry->name,
                           entry->name_len);
        }
        rc = walk_entry(need, entry, depth);
        need->path[len] = '\0';
        if (rc != BK_OK)
            break;
    }
    return rc;
}

static bk_rc_t walk_directory(need_t *need, const bk_id_t *root, unsigned depth)
{
    bk_tree_iter_t *iter = NULL;
    uint64_t lost_before = need->lost;
    if (bk_packset_has(&need->clean, root))
        return BK_OK;
    if (depth > DEPTH_MAX) {
        add_loss(need, BK_NO_PROBLEM, NULL, "directories are nested too deep to be checked");
        need->blind = true;
        return BK_OK;
    }
    if (!have(need->v, root)) {
        lose(need, root);
        need->blind = true;
        return BK_OK;
    }
    bk_rc_t rc = bk_tree_iter_open(need->v->repo, root, need->v->ctl, &iter, &need->why);
    if (rc == BK_OK)
        rc = walk_entries(need, iter, depth);
    bk_tree_iter_close(iter);
    if (ends_walk(rc))
        return rc;
    if (rc != BK_OK) {
        add_loss(need, BK_NO_PROBLEM, NULL, need->why.text);
        need->blind = true;
    }
    remember_clean(need, root, lost_before);
    return BK_OK;
}

static bk_rc_t walk_backups(need_t *need)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < need->list->count && rc == BK_OK; i++) {
        const bk_snapshot_t *s = &need->list->items[i];
        need->backup = i;
        for (size_t n = 0; n < s->db_count && rc == BK_OK; n++) {
            bk_strcpy(need->path, sizeof need->path, s->dbs[n].name);
            rc = walk_map(need, &s->dbs[n].map);
        }
        for (size_t n = 0; n < s->tree_count && rc == BK_OK; n++) {
            bk_strcpy(need->path, sizeof need->path, s->trees[n].name);
            rc = walk_directory(need, &s->trees[n].root, 0);
        }
    }
    return rc;
}

/* --- telling --- */

static void tell_problems(const need_t *need, bool walked)
{
    const bk_verify_t *v = need->v;
    for (size_t i = 0; i < v->problem_count; i++) {
        const bk_problem_t *problem = &v->problems[i];
        char line[2048], tail[96] = "";
        if (problem->chunks > 0) {
            bk_fmt(tail, sizeof tail, ": %llu chunk%s that backups need %s lost",
                   (unsigned long long)problem->chunks, problem->chunks == 1 ? "" : "s",
                   problem->chunks == 1 ? "is" : "are");
        } else if (walked && is_harmless(need, problem)) {
            bk_fmt(tail, sizeof tail, ": no backup loses anything by it");
            v->result->harmless++;
        } else if (problem->spare) {
            bk_fmt(tail, sizeof tail, ": its transactions are in other segments as well");
            v->result->harmless++;
        } else if (strncmp(problem->object, "wal/", 4) == 0) {
            v->result->moments++;
        }
        bk_fmt(line, sizeof line, "%s: %s%s", problem->object, problem->text, tail);
        v->fn(v->arg, problem->object, line);
    }
}

static void tell_loss(const need_t *need, const loss_t *loss)
{
    const bk_verify_t *v = need->v;
    char line[PATH_BYTES + 2048], hex[BK_ID_HEX];
    const char *object = need->list->items[loss->backups[0]].object;
    bk_buf_t text;
    bk_buf_init(&text, sizeof line - 1);
    if (loss->problem != BK_NO_PROBLEM) {
        object = v->problems[loss->problem].object;
        bk_id_hex(hex, &loss->chunk);
        bk_buf_printf(&text, "%s: chunk %.16s… of %s is lost in ", loss->path, hex, object);
    } else {
        bk_buf_printf(&text, "%s: %s, in ", loss->path, loss->text);
    }
    for (size_t i = 0; i < loss->backup_count && i < BACKUPS_MAX; i++)
        bk_buf_printf(&text, "%s%s", i > 0 ? ", " : "",
                      need->list->items[loss->backups[i]].backup_id);
    if (loss->backup_count > BACKUPS_MAX)
        bk_buf_printf(&text, " and %zu more", loss->backup_count - BACKUPS_MAX);
    const char *told = bk_buf_str(&text);
    v->fn(v->arg, object, told != NULL ? told : loss->path);
    bk_buf_free(&text);
}

static void tell_losses(const need_t *need)
{
    bk_verify_t *v = need->v;
    for (size_t i = 0; i < need->loss_count; i++)
        tell_loss(need, &need->losses[i]);
    v->result->findings += need->loss_count;
    if (need->more > 0) {
        char line[96];
        bk_fmt(line, sizeof line, "%llu more files have lost something",
               (unsigned long long)need->more);
        v->fn(v->arg, "repository", line);
        v->result->findings++;
    }
}

bk_rc_t bk_verify_needs(bk_verify_t *v, const bk_snapshot_list_t *list, bk_err_t *err)
{
    bool walk = v->level >= 2 || v->bad_packs.count > 0 || v->bad_chunks.count > 0;
    need_t *need = calloc(1, sizeof *need);
    loss_t *losses = calloc(LOSSES_MAX, sizeof *losses);
    bk_rc_t rc = BK_OK;
    if (need == NULL || losses == NULL) {
        free(need);
        free(losses);
        return bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
    }
    need->v = v;
    need->list = list;
    need->losses = losses;
    need->unknown = BK_NO_PROBLEM;
    sort_bad(&v->bad_packs);
    sort_bad(&v->bad_chunks);
    if (walk)
        rc = walk_backups(need);
    if (rc != BK_OK && err != NULL)
        *err = need->why;
    tell_problems(need, walk && rc == BK_OK);
    tell_losses(need);
    for (size_t i = 0; i < need->loss_count; i++) {
        free(losses[i].path);
        free(losses[i].text);
    }
    free(losses);
    bk_packset_free(&need->clean);
    bk_packset_free(&need->told);
    bk_packset_free(&need->harmful);
    free(need);
    return rc;
}
