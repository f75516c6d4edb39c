/*
 * repo/verify.c: names, checksums, every frame, and whether every backup finds all it needs.  Reads
 * only.
 *
 * First the objects are looked at, by all lanes; each thing that is wrong becomes a problem, and
 * the packs and chunks that cannot be used because of it are remembered.  Then need.c walks the
 * backups and tells which files lost something by which problem.
 */
#include "repo/verify.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "repo/history.h"
#include "repo/repo_private.h"
#include "repo/verify_private.h"

#define READ_MAX   (8u << 20) /* of one read, but a single longer frame */
#define WHOLE_STEP (1u << 20)

/* --- problems --- */

size_t bk_verify_problem(bk_verify_t *v, const char *object, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    size_t number = BK_NO_PROBLEM;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    pthread_mutex_lock(&v->lock);
    v->result->findings++;
    if (v->problem_count == v->problem_cap && v->problem_cap < BK_PROBLEMS_MAX) {
        size_t cap = v->problem_cap > 0 ? 2 * v->problem_cap : 16;
        bk_problem_t *more = realloc(v->problems, cap * sizeof *more);
        if (more != NULL) {
            v->problems = more;
            v->problem_cap = cap;
        }
    }
    if (v->problem_count < v->problem_cap) {
        bk_problem_t *problem = &v->problems[v->problem_count];
        *problem = (bk_problem_t){.object = bk_strdup(object), .text = bk_strdup(text)};
        if (problem->object != NULL && problem->text != NULL) {
            number = v->problem_count++;
        } else {
            free(problem->object);
            free(problem->text);
        }
    }
    if (number == BK_NO_PROBLEM) { /* too many to relate to files: told at once */
        char line[1600];
        bk_fmt(line, sizeof line, "%s: %s", object, text);
        v->fn(v->arg, object, line);
    }
    pthread_mutex_unlock(&v->lock);
    return number;
}

static void add_bad(bk_verify_t *v, bk_bad_list_t *list, const bk_id_t *pack, const bk_id_t *chunk,
                    size_t problem)
{
    pthread_mutex_lock(&v->lock);
    if (list->count == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 64;
        bk_bad_t *more = realloc(list->items, cap * sizeof *more);
        if (more != NULL) {
            list->items = more;
            list->cap = cap;
        } else {
            v->out_of_memory = true;
        }
    }
    if (list->count < list->cap)
        list->items[list->count++] = (bk_bad_t){
            .pack = *pack, .chunk = chunk != NULL ? *chunk : (bk_id_t){{0}}, .problem = problem};
    pthread_mutex_unlock(&v->lock);
}

/* Nothing in this pack can be used. */
static void lose_pack(bk_verify_t *v, const bk_id_t *pack, size_t problem)
{
    add_bad(v, &v->bad_packs, pack, NULL, problem);
}

/* One chunk of this pack cannot be used. */
static void lose_chunk(bk_verify_t *v, const bk_id_t *pack, const bk_pack_entry_t *entry,
                       size_t problem)
{
    bk_kind_t kind = BK_TYPE_IS_META(entry->type) ? BK_KIND_META : BK_KIND_PACK;
    add_bad(v, &v->bad_chunks, pack, &entry->id, problem);
    bk_doubt_add(bk_repo_doubt(v->repo), BK_DOUBT_BAD, pack, kind);
    pthread_mutex_lock(&v->lock);
    v->out_of_memory = !bk_packset_add(&v->unsound, pack, kind) || v->out_of_memory;
    pthread_mutex_unlock(&v->lock);
}

/*
 * The pack was read, with this result: is it to be noted as damaged?  A disk that cannot read one
 * file is damage, a storage that does not answer at all is not.
 */
static void judge_pack(bk_verify_t *v, const bk_id_t *pack, bk_kind_t kind, bk_rc_t rc)
{
    uint64_t size;
    if (rc == BK_OK)
        return;
    pthread_mutex_lock(&v->lock);
    v->out_of_memory = !bk_packset_add(&v->unsound, pack, kind) || v->out_of_memory;
    pthread_mutex_unlock(&v->lock);
    if (rc == BK_CORRUPT || rc == BK_WRONG_KEY ||
        bk_storage_size(bk_repo_storage(v->repo), "FORMAT", &size, v->ctl, NULL) == BK_OK)
        bk_doubt_add(bk_repo_doubt(v->repo), BK_DOUBT_BAD, pack, kind);
}

static void count_object(bk_verify_t *v, uint64_t bytes)
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
} listed_t;

typedef struct {
    bk_verify_t *v;
    listed_t *packs;
    size_t count, cap;
    bk_id_t last; /* told last; the same pack may be named by several segments */
} listed_packs_t;

static bk_rc_t add_listed(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    listed_packs_t *list = arg;
    if (list->count == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 256;
        listed_t *more = realloc(list->packs, cap * sizeof *more);
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
    return bk_id_compare(&((const listed_t *)a)->name, &((const listed_t *)b)->name);
}

static bool already_lost(const bk_verify_t *v, const bk_id_t *pack)
{
    for (size_t i = 0; i < v->bad_packs.count; i++)
        if (bk_id_equal(&v->bad_packs.items[i].pack, pack))
            return true;
    return false;
}

static bk_rc_t check_listed(void *arg, const bk_id_t *name, uint32_t size, bk_kind_t kind,
                            bk_err_t *err)
{
    listed_packs_t *list = arg;
    bk_verify_t *v = list->v;
    char object[BK_STORAGE_NAME];
    listed_t wanted = {.name = *name};
    const listed_t *found =
        list->count > 0 ? bsearch(&wanted, list->packs, list->count, sizeof wanted, by_name) : NULL;
    (void)err;
    bk_pack_object_name(object, name, kind);
    if ((found == NULL || found->size != size) && already_lost(v, name))
        return BK_OK;
    if (found == NULL || found->size != size)
        bk_doubt_add(bk_repo_doubt(v->repo), BK_DOUBT_ABSENT, name, kind);
    if (found == NULL)
        lose_pack(v, name, bk_verify_problem(v, object, "the pack is missing"));
    else if (found->size != size)
        lose_pack(v, name,
                  bk_verify_problem(v, object, "the pack has %llu bytes instead of %u",
                                    (unsigned long long)found->size, (unsigned)size));
    else if (v->level == 0)
        count_object(v, size);
    return BK_OK;
}

static bk_rc_t check_packs_there(bk_verify_t *v, bk_err_t *err)
{
    listed_packs_t list = {.v = v};
    const bk_objects_t *objects = bk_repo_objects(v->repo);
    bk_rc_t rc = bk_objects_list(objects, "packs/", add_listed, &list, v->ctl, err);
    if (rc == BK_OK)
        rc = bk_objects_list(objects, "meta/", add_listed, &list, v->ctl, err);
    if (rc == BK_OK && list.count > 1)
        qsort(list.packs, list.count, sizeof *list.packs, by_name);
    if (rc == BK_OK)
        rc = bk_index_each_pack(v->index, check_listed, &list, err);
    free(list.packs);
    return rc;
}

/* --- levels 1 and 2: the bytes of each object --- */

typedef struct {
    bk_verify_t *v;
    uint64_t size;
    char name[BK_STORAGE_NAME];
} object_t;

/* An object read once from start to end, hashed on the way. */
typedef struct {
    const object_t *object;
    bk_sha256_t *sha;
    uint64_t at;
} stream_t;

/* The next len bytes. BK_CORRUPT when the object ends before. */
static bk_rc_t stream_read(stream_t *stream, uint8_t *out, size_t len, bk_err_t *err)
{
    const object_t *object = stream->object;
    bk_verify_t *v = object->v;
    size_t got = 0;
    bk_rc_t rc = bk_ctl_check(v->ctl, err);
    if (rc == BK_OK)
        rc = bk_objects_get(bk_repo_objects(v->repo), object->name, stream->at, len, out, &got,
                            v->ctl, err);
    if (rc != BK_OK)
        return rc;
    bk_sha256_add(stream->sha, out, got);
    stream->at += got;
    return got == len ? BK_OK : bk_err_set(err, BK_CORRUPT, "it is cut off");
}

/* Up to the end of the object, or to end. */
static bk_rc_t stream_to(stream_t *stream, uint64_t end, bk_err_t *err)
{
    uint8_t *bytes = malloc(WHOLE_STEP);
    bk_rc_t rc = bytes != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
    while (rc == BK_OK && stream->at < end) {
        uint64_t left = end - stream->at;
        rc = stream_read(stream, bytes, left < WHOLE_STEP ? (size_t)left : WHOLE_STEP, err);
    }
    free(bytes);
    return rc;
}

static bool ends_verification(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED || rc == BK_NO_MEMORY;
}

static int by_offset(const void *a, const void *b)
{
    const bk_pack_entry_t *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static bool is_other_pack(void *arg, const bk_id_t *pack)
{
    return !bk_id_equal(arg, pack);
}

/* What the index says of a chunk in this pack must be what the pack says. */
static void check_entry(bk_verify_t *v, const char *name, bk_id_t *pack,
                        const bk_pack_entry_t *entry, const char *hex)
{
    bk_location_t where;
    if (bk_index_find_except(v->index, &entry->id, is_other_pack, pack, &where)) {
        if (where.entry.offset == entry->offset && where.entry.stored == entry->stored &&
            where.entry.raw == entry->raw && where.entry.type == entry->type &&
            where.entry.codec == entry->codec)
            return;
        lose_chunk(
            v, pack, entry,
            bk_verify_problem(v, name, "chunk %.16s…: the index has it at another place", hex));
    } else if (bk_index_has_pack(v->index, pack) && !bk_index_find(v->index, &entry->id, &where)) {
        /* A pack of which the index knows nothing was left by a backup that did not end: its space
         * is all that it costs, and what backups need is looked for anyway. */
        bk_verify_problem(v, name, "chunk %.16s…: the index does not know it", hex);
    }
}

static void check_frame(bk_verify_t *v, const char *name, bk_id_t *pack, const bk_object_key_t *key,
                        const bk_pack_entry_t *entry, uint8_t *frame, uint8_t *raw)
{
    char hex[BK_ID_HEX];
    bk_err_t why = {0};
    bk_id_hex(hex, &entry->id);
    if (bk_pack_frame(bk_repo_keyring(v->repo), key, entry, frame, raw, &why) != BK_OK)
        lose_chunk(v, pack, entry, bk_verify_problem(v, name, "chunk %.16s…: %s", hex, why.text));
    else
        check_entry(v, name, pack, entry, hex);
    pthread_mutex_lock(&v->lock);
    v->result->chunks++;
    pthread_mutex_unlock(&v->lock);
}

/* All frames in the order they lie in, several with one read. */
static bk_rc_t check_frames(stream_t *stream, bk_id_t *pack, const bk_object_key_t *key,
                            const bk_pack_entry_t *entries, uint32_t count, bk_err_t *err)
{
    bk_verify_t *v = stream->object->v;
    size_t room = 0;
    uint8_t *bytes = NULL, *raw = malloc(BK_CHUNK_MAX);
    bk_rc_t rc = raw != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
    for (uint32_t i = 0, n; i < count && rc == BK_OK; i += n) {
        uint64_t start = entries[i].offset, end = start + entries[i].stored;
        if (start < stream->at) {
            rc = bk_err_set(err, BK_CORRUPT, "its frames overlap");
            break;
        }
        for (n = 1; i + n < count; n++) {
            const bk_pack_entry_t *next = &entries[i + n];
            if (next->offset < end || next->offset + (uint64_t)next->stored - start > READ_MAX)
                break;
            end = next->offset + (uint64_t)next->stored;
        }
        if (end - start > room) {
            room = (size_t)(end - start);
            free(bytes);
            bytes = malloc(room);
        }
        if (bytes == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
        if (rc == BK_OK)
            rc = stream_to(stream, start, err);
        if (rc == BK_OK)
            rc = stream_read(stream, bytes, (size_t)(end - start), err);
        for (uint32_t j = i; rc == BK_OK && j < i + n; j++)
            check_frame(v, stream->object->name, pack, key, &entries[j],
                        bytes + (entries[j].offset - start), raw);
    }
    free(raw);
    free(bytes);
    return rc;
}

/* The directory is read first, by itself; then everything in one pass. */
static bk_rc_t check_pack(stream_t *stream, bk_id_t *pack, bk_kind_t kind, bk_err_t *err)
{
    const object_t *object = stream->object;
    bk_verify_t *v = object->v;
    bk_repo_t *repo = v->repo;
    bk_pack_t stored = {0};
    bk_object_key_t key = {0};
    uint8_t header[BK_OBJECT_HEADER];
    bk_rc_t rc =
        bk_pack_read_entries(bk_repo_objects(repo), bk_repo_keyring(repo), bk_repo_uuid(repo),
                             object->name, object->size, kind, &stored, v->ctl, err);
    if (rc == BK_OK)
        rc = stream_read(stream, header, sizeof header, err);
    if (rc == BK_OK)
        rc = bk_object_key_open(bk_repo_keyring(repo), bk_repo_uuid(repo), kind, header, &key, err);
    if (rc == BK_OK && stored.count > 1)
        qsort(stored.entries, stored.count, sizeof *stored.entries, by_offset);
    if (rc == BK_OK)
        rc = check_frames(stream, pack, &key, stored.entries, (uint32_t)stored.count, err);
    bk_object_key_wipe(&key);
    free(stored.entries);
    return rc;
}

static bk_rc_t check_bytes(const object_t *object, stream_t *stream, bk_err_t *err)
{
    bk_verify_t *v = object->v;
    const char *name = object->name;
    bk_id_t digest, wanted;
    bk_err_t why = {0}, pack_why = {0};
    bool is_data = strncmp(name, "packs/", 6) == 0, is_meta = strncmp(name, "meta/", 5) == 0;
    bool is_history = strncmp(name, "wal/", 4) == 0;
    bk_rc_t pack_rc = BK_OK;

    if (!bk_object_name_id(name, &wanted)) {
        bk_verify_problem(v, name, "its name is not one of ours");
        return BK_OK;
    }
    if (v->level >= 2 && (is_data || is_meta)) {
        pack_rc = check_pack(stream, &wanted, is_meta ? BK_KIND_META : BK_KIND_PACK, &pack_why);
    } else if (v->level >= 2 && is_history) {
        pack_rc = bk_history_check(v->repo, name, object->size, v->ctl, &pack_why);
    }
    if (ends_verification(pack_rc)) {
        if (err != NULL)
            *err = pack_why;
        return pack_rc;
    }
    bk_rc_t rc = stream_to(stream, object->size, &why);
    if (ends_verification(rc)) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    if (rc == BK_NOT_FOUND)
        return BK_OK; /* removed since it was listed: the index knows whether it was needed */
    bk_sha256_end(stream->sha, &digest);
    bool sound = rc == BK_OK && bk_id_equal(&digest, &wanted);
    size_t problem = BK_NO_PROBLEM;
    char of[BK_HISTORY_NAME + 96] = "";
    bk_history_name_t range;
    if (is_history && bk_history_parse(name, &range))
        bk_fmt(of, sizeof of, "transactions %llu to %llu of %s: ", (unsigned long long)range.first,
               (unsigned long long)range.last, range.database);
    if (!sound)
        problem = bk_verify_problem(
            v, name, "%s%s", of,
            rc != BK_OK ? why.text : "its SHA-256 differs from its name: the object is damaged");
    if (pack_rc != BK_OK && sound)
        problem = bk_verify_problem(v, name, "%s%s", of, pack_why.text);
    /* Below level 2 nobody knows which frames are hit. */
    if ((is_data || is_meta) && (pack_rc != BK_OK || (!sound && v->level < 2)))
        lose_pack(v, &wanted, problem);
    if (is_data || is_meta)
        judge_pack(v, &wanted, is_meta ? BK_KIND_META : BK_KIND_PACK,
                   rc != BK_OK ? rc : (sound ? pack_rc : BK_CORRUPT));
    return BK_OK;
}

static bk_rc_t check_object(void *arg, bk_err_t *err)
{
    object_t *object = arg;
    stream_t stream = {.object = object, .sha = bk_sha256_new()};
    bk_rc_t rc = bk_ctl_check(object->v->ctl, err);
    if (rc == BK_OK && stream.sha == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
    if (rc == BK_OK) {
        count_object(object->v, object->size);
        rc = check_bytes(object, &stream, err);
    }
    bk_sha256_free(stream.sha);
    free(object);
    return rc;
}

typedef struct {
    bk_verify_t *v;
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
    object->size = item->size;
    bk_strcpy(object->name, sizeof object->name, item->name);
    if (submit->v->ctl != NULL) {
        atomic_fetch_add(&submit->v->ctl->bytes_total, item->size);
        atomic_fetch_add(&submit->v->ctl->files_total, 1);
    }
    bk_team_submit(submit->team, submit->group, check_object, object, 0);
    return bk_group_failed(submit->group) ? BK_FAILED : BK_OK;
}

static bk_rc_t check_objects(bk_verify_t *v, bk_team_t *team, bk_err_t *err)
{
    static const char *const folders[] = {"packs/", "meta/", "index/", "snapshots/", "wal/"};
    bk_group_t group;
    submit_t submit = {.v = v, .team = team, .group = &group};
    bk_err_t failure = {0};
    bk_rc_t rc = BK_OK;
    bk_group_init(&group);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && rc == BK_OK; i++)
        rc = bk_objects_list(bk_repo_objects(v->repo), folders[i], submit_object, &submit, v->ctl,
                             err);
    bk_rc_t done = bk_team_wait(team, &group, &failure);
    if (done != BK_OK) {
        if (err != NULL)
            *err = failure;
        return done;
    }
    return rc;
}

/* --- the whole --- */

/*
 * What opening index and list had to work around; what is told as a problem already is not told
 * twice.
 */
static void tell_notes(bk_verify_t *v, const bk_ctl_t *notes)
{
    for (unsigned i = 0; i < notes->notes_kept; i++) {
        const char *note = notes->notes[i];
        bool told = false;
        for (size_t n = 0; n < v->problem_count && !told; n++)
            told = strncmp(note, v->problems[n].object, strlen(v->problems[n].object)) == 0;
        if (told)
            continue;
        const char *colon = strstr(note, ": ");
        char object[BK_STORAGE_NAME] = "repository";
        if (colon != NULL && (size_t)(colon - note) < sizeof object) {
            memcpy(object, note, (size_t)(colon - note));
            object[colon - note] = '\0';
        }
        bk_verify_problem(v, object, "%s", colon != NULL ? colon + 2 : note);
    }
}

static void free_verify(bk_verify_t *v)
{
    for (size_t i = 0; i < v->problem_count; i++) {
        free(v->problems[i].object);
        free(v->problems[i].text);
    }
    free(v->problems);
    free(v->bad_packs.items);
    free(v->bad_chunks.items);
    bk_packset_free(&v->unsound);
    pthread_mutex_destroy(&v->lock);
}

bk_rc_t bk_verify(bk_repo_t *repo, unsigned level, bk_team_t *team, bk_verify_finding_fn fn,
                  void *arg, bk_verify_result_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_verify_t v = {
        .repo = repo, .level = level, .fn = fn, .arg = arg, .result = result, .ctl = ctl};
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
    for (size_t i = 0; rc == BK_OK && level == 0 && i < list.count; i++)
        count_object(&v, list.items[i].object_size); /* it was read, checked and decoded */
    if (rc == BK_OK)
        rc = check_packs_there(&v, err);
    if (rc == BK_OK)
        rc = bk_verify_history(&v, err);
    if (rc == BK_OK && level >= 1)
        rc = check_objects(&v, team, err);
    if (rc == BK_OK && level >= 1)
        rc = bk_verify_spare(&v, err);
    if (rc == BK_OK) {
        tell_notes(&v, &notes);
        if (v.out_of_memory)
            rc = bk_err_set(err, BK_NO_MEMORY, "verify: out of memory");
        else
            rc = bk_verify_needs(&v, &list, err);
        if (rc == BK_OK && level == 2)
            bk_doubt_settle(bk_repo_doubt(repo), &v.unsound);
    }
    bk_snapshot_list_free(&list);
    bk_ctl_free(&notes);
    free_verify(&v);
    return rc;
}
