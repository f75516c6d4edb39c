/*
 * t/unit/repo/index_test.c: the index of a real storage: finding, refreshing, damage, merges, rebuilding.
 */
#include "unit/testing.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/log.h"
#include "base/str.h"
#include "repo/segment.h"

static const uint8_t uuid[BK_UUID_SIZE] = {1, 2, 3};

typedef struct {
    char *dir;
    char cache[300], merges[330];
    bk_keyring_t *ring;
    bk_objects_t objects;
    bk_index_t *index;
    bk_ctl_t ctl;
    bk_err_t err;
} fixture_t;

static bk_storage_t *open_storage(fixture_t *f, const char *name)
{
    char path[300];
    bk_storage_t *st = NULL;
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup(name)};
    snprintf(path, sizeof path, "%s/%s", f->dir, name);
    OK(bk_mkdirs(path, 0700, &f->err), &f->err);
    OK(bk_storage_config_set(&config, "path", path, &f->err), &f->err);
    OK(bk_storage_open(&config, &st, &f->err), &f->err);
    bk_storage_config_free(&config);
    return st;
}

static int set_up(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    f->dir = test_dir();
    f->ring = bk_keyring_new();
    snprintf(f->cache, sizeof f->cache, "%s/cache", f->dir);
    snprintf(f->merges, sizeof f->merges, "%s/index-merged", f->cache);
    f->objects.storage = open_storage(f, "storage");
    f->objects.spool = open_storage(f, "spool");
    bk_ctl_init(&f->ctl);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture_t *f = *state;
    bk_index_close(f->index);
    bk_storage_close(f->objects.storage);
    bk_storage_close(f->objects.spool);
    bk_keyring_free(f->ring);
    bk_ctl_free(&f->ctl);
    test_dir_remove(f->dir);
    free(f);
    return 0;
}

static void open_index(fixture_t *f)
{
    bk_index_close(f->index);
    f->index = NULL;
    OK(bk_index_open(&f->objects, f->ring, uuid, f->cache, &f->ctl, &f->index, &f->err), &f->err);
}

static void refresh(fixture_t *f)
{
    OK(bk_index_refresh(f->index, &f->ctl, &f->err), &f->err);
}

/* Notes since the last call. */
static uint64_t notes(fixture_t *f)
{
    uint64_t count = f->ctl.notes_total;
    bk_ctl_free(&f->ctl);
    bk_ctl_init(&f->ctl);
    return count;
}

typedef struct {
    char text[BK_STORAGE_NAME];
} name_t;

static void chunk_id(bk_id_t *id, uint32_t segment, uint32_t chunk)
{
    test_fill(id->b, BK_ID_SIZE, (uint64_t)segment << 32 | chunk);
}

static void pack_id(bk_id_t *id, uint32_t segment)
{
    test_fill(id->b, BK_ID_SIZE, 0xabcdefu + ((uint64_t)segment << 32));
}

/* A segment with chunks 0.. of a pack that is only named; chunk 99 is in every segment. */
static name_t put_segment_in(fixture_t *f, bk_storage_t *to, uint32_t segment, uint32_t chunks,
                             const name_t *old, size_t old_count)
{
    name_t name;
    const char *names[4];
    uint64_t bytes;
    bk_pack_t pack = {.kind = BK_KIND_PACK, .count = chunks + 1};
    const bk_pack_t *packs = &pack;
    pack.entries = calloc(chunks + 1, sizeof *pack.entries);
    pack.bytes.len = 1000 + segment;
    pack_id(&pack.name, segment);
    for (uint32_t n = 0; n <= chunks; n++) {
        pack.entries[n] = (bk_pack_entry_t){.offset = 80, .stored = 20, .raw = n, .type = 1};
        chunk_id(&pack.entries[n].id, n < chunks ? segment : 99, n < chunks ? n : 99);
    }
    for (size_t i = 0; i < old_count; i++)
        names[i] = old[i].text;
    OK(bk_segment_store(f->ring, uuid, &packs, 1, names, old_count, to, name.text, &bytes, NULL,
                        &f->err),
       &f->err);
    free(pack.entries);
    return name;
}

static name_t put_segment(fixture_t *f, uint32_t segment, uint32_t chunks)
{
    return put_segment_in(f, f->objects.storage, segment, chunks, NULL, 0);
}

static bool finds(fixture_t *f, uint32_t segment, uint32_t chunk)
{
    bk_location_t where;
    bk_id_t id, pack;
    chunk_id(&id, segment, chunk);
    pack_id(&pack, segment);
    if (!bk_index_find(f->index, &id, &where))
        return false;
    assert_memory_equal(where.entry.id.b, id.b, BK_ID_SIZE);
    assert_memory_equal(where.pack.b, pack.b, BK_ID_SIZE);
    assert_int_equal(where.pack_size, 1000 + segment);
    assert_int_equal(where.entry.raw, chunk);
    return true;
}

/* Copies of the chunk that all segments have, by refusing each that was seen. */
typedef struct {
    bk_id_t packs[100];
    size_t count;
} seen_t;

static bool was_seen(void *arg, const bk_id_t *pack)
{
    seen_t *seen = arg;
    for (size_t i = 0; i < seen->count; i++)
        if (bk_id_equal(&seen->packs[i], pack))
            return true;
    return false;
}

static size_t copies(fixture_t *f)
{
    seen_t seen = {.count = 0};
    bk_location_t where;
    bk_id_t id;
    chunk_id(&id, 99, 99);
    while (seen.count < 100 && bk_index_find_except(f->index, &id, was_seen, &seen, &where))
        seen.packs[seen.count++] = where.pack;
    return seen.count;
}

static size_t count_files(const char *dir)
{
    size_t count = 0;
    struct dirent *entry;
    DIR *d = opendir(dir);
    assert_non_null(d);
    while ((entry = readdir(d)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(d);
    return count;
}

static void object_path(const fixture_t *f, const char *name, char out[700])
{
    snprintf(out, 700, "%s/storage/%s", f->dir, name);
}

static void cached_path(const fixture_t *f, const char *name, char out[700])
{
    snprintf(out, 700, "%s/%s", f->cache, name);
}

/* Change one byte in the middle of a file, or cut it there. */
static void damage(const char *path, bool cut)
{
    struct stat st;
    uint8_t byte;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    if (cut) {
        assert_int_equal(ftruncate(fd, st.st_size / 2), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, st.st_size / 2), 1);
        byte ^= 0x20;
        assert_int_equal(pwrite(fd, &byte, 1, st.st_size / 2), 1);
    }
    close(fd);
}

/* --- finding --- */

static void an_empty_storage_has_an_empty_index(void **state)
{
    fixture_t *f = *state;
    uint64_t chunks, packs, bytes;
    bk_id_t pack = {{1}};
    open_index(f);
    assert_false(finds(f, 1, 0));
    assert_false(bk_index_has_pack(f->index, &pack));
    bk_index_totals(f->index, &chunks, &packs, &bytes);
    assert_true(chunks == 0 && packs == 0 && bytes == 0);
    assert_int_equal(notes(f), 0);
}

static void chunks_of_all_segments_are_found(void **state)
{
    fixture_t *f = *state;
    put_segment(f, 1, 0);
    put_segment(f, 2, 1);
    put_segment(f, 3, 500);
    put_segment_in(f, f->objects.spool, 4, 10, NULL, 0);
    open_index(f);
    assert_true(finds(f, 2, 0));
    for (uint32_t n = 0; n < 500; n++)
        assert_true(finds(f, 3, n));
    for (uint32_t n = 0; n < 10; n++)
        assert_true(finds(f, 4, n));
    assert_false(finds(f, 1, 0));
    assert_false(finds(f, 2, 1));
    assert_int_equal(copies(f), 4);
}

static bk_rc_t count_pack(void *arg, const bk_id_t *name, uint32_t size, bk_kind_t kind,
                          bk_err_t *err)
{
    (void)name;
    (void)err;
    assert_true(size > 1000 && kind == BK_KIND_PACK);
    ++*(size_t *)arg;
    return BK_OK;
}

static bk_rc_t count_chunk(void *arg, const bk_location_t *where, bk_err_t *err)
{
    (void)err;
    assert_int_equal(where->entry.stored, 20);
    ++*(size_t *)arg;
    return BK_OK;
}

static bk_rc_t stop_at_once(void *arg, const bk_location_t *where, bk_err_t *err)
{
    (void)where;
    ++*(size_t *)arg;
    return bk_err_set(err, BK_CANCELED, "enough");
}

/* A pack that two segments name counts once; rebuilding makes such segments. */
static void walks_and_totals_count_each_pack_once(void **state)
{
    fixture_t *f = *state;
    uint64_t chunks, packs, bytes;
    size_t seen = 0;
    bk_id_t id;
    put_segment(f, 1, 10);
    put_segment(f, 1, 10);
    put_segment(f, 2, 5);
    open_index(f);
    OK(bk_index_each_pack(f->index, count_pack, &seen, &f->err), &f->err);
    assert_int_equal(seen, 2);
    seen = 0;
    OK(bk_index_each_chunk(f->index, count_chunk, &seen, &f->err), &f->err);
    assert_int_equal(seen, 11 + 11 + 6);
    bk_index_totals(f->index, &chunks, &packs, &bytes);
    assert_true(chunks == 28 && packs == 2 && bytes == 1001 + 1002);
    for (uint32_t k = 1; k <= 3; k++) {
        pack_id(&id, k);
        assert_int_equal(bk_index_has_pack(f->index, &id), k <= 2);
    }
    seen = 0;
    assert_int_equal(bk_index_each_chunk(f->index, stop_at_once, &seen, &f->err), BK_CANCELED);
    assert_int_equal(seen, 1);
}

/* --- refreshing --- */

static void a_refresh_sees_what_came_and_what_went(void **state)
{
    fixture_t *f = *state;
    char path[700];
    name_t first = put_segment(f, 1, 10), second;
    open_index(f);
    second = put_segment(f, 2, 10);
    assert_false(finds(f, 2, 3));
    refresh(f);
    assert_true(finds(f, 1, 3) && finds(f, 2, 3));
    OK(bk_storage_remove(f->objects.storage, first.text, NULL, &f->err), &f->err);
    assert_true(finds(f, 1, 3));
    refresh(f);
    assert_false(finds(f, 1, 3));
    assert_true(finds(f, 2, 3));
    cached_path(f, first.text, path);
    assert_int_equal(access(path, F_OK), -1);
    cached_path(f, second.text, path);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(notes(f), 0);
}

static void a_segment_in_spool_and_storage_counts_once(void **state)
{
    fixture_t *f = *state;
    bk_buf_t object;
    name_t name = put_segment_in(f, f->objects.spool, 1, 10, NULL, 0);
    uint64_t chunks, packs, bytes;
    bk_buf_init(&object, 1u << 20);
    open_index(f);
    OK(bk_storage_get_all(f->objects.spool, name.text, &object, NULL, &f->err), &f->err);
    OK(bk_storage_put(f->objects.storage, name.text, object.data, object.len, true, NULL, &f->err),
       &f->err);
    refresh(f);
    bk_index_totals(f->index, &chunks, &packs, &bytes);
    assert_int_equal(chunks, 11);
    OK(bk_storage_remove(f->objects.spool, name.text, NULL, &f->err), &f->err);
    refresh(f);
    assert_true(finds(f, 1, 3));
    bk_buf_free(&object);
}

static void a_stopped_refresh_leaves_the_index_as_it_was(void **state)
{
    fixture_t *f = *state;
    put_segment(f, 1, 10);
    open_index(f);
    put_segment(f, 2, 10);
    bk_ctl_stop(&f->ctl, BK_CANCELED);
    assert_int_equal(bk_index_refresh(f->index, &f->ctl, &f->err), BK_CANCELED);
    assert_true(finds(f, 1, 3));
    assert_false(finds(f, 2, 3));
    notes(f);
    refresh(f);
    assert_true(finds(f, 1, 3) && finds(f, 2, 3));
}

/* --- the cache --- */

static void a_damaged_cache_is_fetched_again(void **state)
{
    fixture_t *f = *state;
    char path[700];
    name_t name = put_segment(f, 1, 100);
    open_index(f);
    cached_path(f, name.text, path);
    for (int how = 0; how < 6; how++) {
        if (how < 2) {
            damage(path, how == 1);
        } else if (how == 2) {
            assert_int_equal(truncate(path, 0), 0);
        } else {
            assert_int_equal(unlink(path), 0);
            if (how == 4)
                assert_int_equal(symlink("/etc/passwd", path), 0);
            if (how == 5)
                assert_int_equal(mkfifo(path, 0600), 0);
        }
        open_index(f);
        for (uint32_t n = 0; n < 100; n++)
            assert_true(finds(f, 1, n));
        struct stat st;
        assert_int_equal(lstat(path, &st), 0);
        assert_true(S_ISREG(st.st_mode) && st.st_size > 1000);
    }
    assert_int_equal(notes(f), 0);
}

/* A full disk, for one: recovery must not need room for a cache. */
static void a_cache_that_cannot_be_written_is_done_without(void **state)
{
    fixture_t *f = *state;
    char path[700];
    name_t name = put_segment(f, 1, 100);
    cached_path(f, name.text, path);
    OK(bk_mkdirs(path, 0700, &f->err), &f->err); /* a directory has the name */
    bk_log_set(NULL, NULL, BK_LOG_ERROR);
    open_index(f);
    for (uint32_t n = 0; n < 100; n++)
        assert_true(finds(f, 1, n));
    assert_int_equal(notes(f), 0);
}

static void stale_files_leave_the_cache(void **state)
{
    fixture_t *f = *state;
    char path[700], stranger[700];
    name_t name = put_segment(f, 1, 10);
    open_index(f);
    cached_path(f, name.text, path);
    cached_path(f, "index/01K7M0Q8R5ZJ3X9V2T4B6N8CDE-00", stranger);
    OK(bk_publish_cache(AT_FDCWD, stranger, 0600, "x", 1, &f->err), &f->err);
    open_index(f);
    assert_int_equal(access(stranger, F_OK), -1);
    assert_int_equal(access(path, F_OK), 0);
    bk_index_close(f->index);
    f->index = NULL;
    OK(bk_storage_remove(f->objects.storage, name.text, NULL, &f->err), &f->err);
    open_index(f);
    assert_int_equal(access(path, F_OK), -1);
}

/* --- segments that replace others --- */

static void a_replaced_segment_is_passed_over(void **state)
{
    fixture_t *f = *state;
    name_t old[2] = {put_segment(f, 1, 10), put_segment(f, 2, 10)};
    put_segment(f, 3, 10);
    open_index(f);
    assert_true(finds(f, 1, 3) && finds(f, 2, 3) && finds(f, 3, 3));
    name_t merged = put_segment_in(f, f->objects.storage, 4, 10, old, 2);
    refresh(f);
    assert_false(finds(f, 1, 3) || finds(f, 2, 3));
    assert_true(finds(f, 3, 3) && finds(f, 4, 3));
    open_index(f);
    assert_false(finds(f, 1, 3) || finds(f, 2, 3));
    OK(bk_storage_remove(f->objects.storage, merged.text, NULL, &f->err), &f->err);
    refresh(f);
    assert_true(finds(f, 1, 3) && finds(f, 2, 3) && finds(f, 3, 3));
}

static void only_a_sound_segment_replaces_others(void **state)
{
    fixture_t *f = *state;
    char path[700];
    name_t old = put_segment(f, 1, 10);
    name_t merged = put_segment_in(f, f->objects.storage, 2, 10, &old, 1);
    object_path(f, merged.text, path);
    damage(path, false);
    open_index(f);
    assert_true(finds(f, 1, 3));
    assert_true(notes(f) > 0);
}

static void damage_of_a_replaced_segment_is_no_news(void **state)
{
    fixture_t *f = *state;
    char path[700];
    name_t old = put_segment(f, 1, 10);
    put_segment_in(f, f->objects.storage, 2, 10, &old, 1);
    object_path(f, old.text, path);
    damage(path, false);
    open_index(f);
    notes(f);
    refresh(f);
    assert_int_equal(notes(f), 0);
    assert_true(finds(f, 2, 3));
}

/* --- many segments --- */

static void assert_all(fixture_t *f, uint32_t first, uint32_t last, uint32_t chunks)
{
    for (uint32_t k = first; k <= last; k++)
        for (uint32_t n = 0; n < chunks; n++)
            assert_true(finds(f, k, n));
}

static void many_segments_are_merged_and_found(void **state)
{
    fixture_t *f = *state;
    uint64_t chunks, packs, bytes;
    for (uint32_t k = 1; k <= 40; k++)
        put_segment(f, k, 7);
    open_index(f);
    assert_all(f, 1, 40, 7);
    assert_int_equal(copies(f), 40);
    assert_in_range(count_files(f->merges), 1, 8);
    open_index(f); /* from the merges */
    assert_all(f, 1, 40, 7);
    assert_int_equal(copies(f), 40);
    bk_index_totals(f->index, &chunks, &packs, &bytes);
    assert_true(chunks == 40 * 8 && packs == 40);
    /* One by one, as backups do. */
    for (uint32_t k = 41; k <= 70; k++) {
        put_segment(f, k, 7);
        refresh(f);
        assert_true(finds(f, k, 6));
    }
    assert_all(f, 1, 70, 7);
    assert_int_equal(copies(f), 70);
    assert_in_range(count_files(f->merges), 1, 8);
    assert_int_equal(notes(f), 0);
}

static void a_segment_that_goes_leaves_its_merge(void **state)
{
    fixture_t *f = *state;
    name_t names[21];
    for (uint32_t k = 1; k <= 20; k++)
        names[k] = put_segment(f, k, 7);
    open_index(f);
    assert_true(count_files(f->merges) > 0);
    OK(bk_storage_remove(f->objects.storage, names[5].text, NULL, &f->err), &f->err);
    refresh(f);
    assert_false(finds(f, 5, 3));
    assert_all(f, 1, 4, 7);
    assert_all(f, 6, 20, 7);
    /* Also when it goes while nobody looks. */
    OK(bk_storage_remove(f->objects.storage, names[20].text, NULL, &f->err), &f->err);
    open_index(f);
    assert_false(finds(f, 5, 3) || finds(f, 20, 3));
    assert_all(f, 6, 19, 7);
    assert_int_equal(copies(f), 18);
}

static void a_replaced_segment_leaves_its_merge(void **state)
{
    fixture_t *f = *state;
    name_t names[21];
    for (uint32_t k = 1; k <= 20; k++)
        names[k] = put_segment(f, k, 7);
    open_index(f);
    put_segment_in(f, f->objects.storage, 50, 7, &names[5], 2);
    refresh(f);
    assert_false(finds(f, 5, 3) || finds(f, 6, 3));
    assert_all(f, 7, 20, 7);
    assert_all(f, 50, 50, 7);
    open_index(f);
    assert_false(finds(f, 5, 3) || finds(f, 6, 3));
    assert_int_equal(copies(f), 19);
    put_segment_in(f, f->objects.storage, 51, 7, &names[7], 1);
    open_index(f);
    assert_false(finds(f, 7, 3));
    assert_all(f, 8, 20, 7);
}

static void damaged_merges_are_made_again(void **state)
{
    fixture_t *f = *state;
    char path[1000];
    for (uint32_t k = 1; k <= 20; k++)
        put_segment(f, k, 7);
    for (int how = 0; how < 3; how++) {
        open_index(f);
        bk_index_close(f->index);
        f->index = NULL;
        struct dirent *entry;
        DIR *d = opendir(f->merges);
        size_t damaged = 0;
        while ((entry = readdir(d)) != NULL) {
            if (entry->d_name[0] == '.')
                continue;
            snprintf(path, sizeof path, "%s/%s", f->merges, entry->d_name);
            if (how < 2)
                damage(path, how == 1);
            else
                assert_int_equal(unlink(path), 0);
            damaged++;
        }
        closedir(d);
        assert_true(damaged > 0);
        open_index(f);
        assert_all(f, 1, 20, 7);
        assert_int_equal(copies(f), 20);
    }
    assert_int_equal(notes(f), 0);
}

/* As a crash between writing a merge and removing its inputs, or two processes with one cache, leave them. */
static void merges_that_overlap_count_once(void **state)
{
    fixture_t *f = *state;
    uint64_t chunks, packs, bytes;
    char aside[330], path[1000];
    bk_buf_t copy;
    for (uint32_t k = 1; k <= 12; k++)
        put_segment(f, k, 7);
    open_index(f);
    assert_int_equal(count_files(f->merges), 1);
    struct dirent *entry;
    DIR *d = opendir(f->merges);
    bk_buf_init(&copy, 1u << 20);
    while ((entry = readdir(d)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", f->merges, entry->d_name);
        OK(bk_read_file(AT_FDCWD, path, &copy, &f->err), &f->err);
    }
    closedir(d);
    for (uint32_t k = 13; k <= 30; k++)
        put_segment(f, k, 7);
    refresh(f);
    snprintf(aside, sizeof aside, "%s/older", f->merges);
    OK(bk_publish_cache(AT_FDCWD, aside, 0600, copy.data, copy.len, &f->err), &f->err);
    bk_buf_free(&copy);
    open_index(f);
    assert_int_equal(access(aside, F_OK), -1);
    bk_index_totals(f->index, &chunks, &packs, &bytes);
    assert_int_equal(chunks, 30 * 8);
    assert_all(f, 1, 30, 7);
}

/* More than are loaded between two merges. */
static void hundreds_of_segments_are_found(void **state)
{
    fixture_t *f = *state;
    for (uint32_t k = 1; k <= 600; k++)
        put_segment(f, k, 3);
    open_index(f);
    assert_all(f, 1, 600, 3);
    open_index(f);
    assert_all(f, 1, 600, 3);
    assert_in_range(count_files(f->merges), 1, 8);
}

/* --- look-ups meanwhile --- */

typedef struct {
    fixture_t *f;
    atomic_bool stop;
    atomic_uint rounds;
    bool missed;
} looker_t;

static void *look(void *arg)
{
    looker_t *l = arg;
    bk_location_t where;
    bk_id_t id, pack;
    size_t packs = 0;
    while (!atomic_load(&l->stop)) {
        for (uint32_t k = 1; k <= 10; k++) {
            chunk_id(&id, k, k % 7);
            pack_id(&pack, k);
            if (!bk_index_find(l->f->index, &id, &where) || !bk_id_equal(&where.pack, &pack))
                l->missed = true;
        }
        if (bk_index_each_pack(l->f->index, count_pack, &packs, NULL) != BK_OK ||
            !bk_index_has_pack(l->f->index, &pack))
            l->missed = true;
        atomic_fetch_add(&l->rounds, 1);
    }
    return NULL;
}

static void look_ups_go_on_while_segments_come_and_merge(void **state)
{
    fixture_t *f = *state;
    enum { THREADS = 3 };
    pthread_t threads[THREADS];
    looker_t l = {.f = f};
    name_t passing = {""};
    for (uint32_t k = 1; k <= 10; k++)
        put_segment(f, k, 7);
    open_index(f);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, look, &l), 0);
    for (uint32_t k = 11; k <= 60; k++) {
        if (passing.text[0] != '\0')
            OK(bk_storage_remove(f->objects.storage, passing.text, NULL, &f->err), &f->err);
        passing = put_segment(f, k, 7); /* its removal makes a merge stale */
        put_segment(f, 100 + k, 7);
        refresh(f);
    }
    atomic_store(&l.stop, true);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_true(atomic_load(&l.rounds) > 0);
    assert_false(l.missed);
    assert_all(f, 111, 160, 7);
}

static bk_rc_t refresh_inside(void *arg, const bk_location_t *where, bk_err_t *err)
{
    fixture_t *f = arg;
    bk_location_t again;
    assert_true(bk_index_find(f->index, &where->entry.id, &again));
    return bk_index_refresh(f->index, &f->ctl, err);
}

static void a_walk_may_look_up_and_refresh(void **state)
{
    fixture_t *f = *state;
    put_segment(f, 1, 5);
    open_index(f);
    put_segment(f, 2, 5);
    OK(bk_index_each_chunk(f->index, refresh_inside, f, &f->err), &f->err);
    assert_true(finds(f, 2, 3));
}

/* --- damage on the storage, and rebuilding --- */

static void make_chunk(uint32_t pack, uint32_t n, char out[40])
{
    snprintf(out, 40, "pack %u chunk %u", pack, n);
}

/* A real pack; its name comes back. */
static name_t put_pack(fixture_t *f, uint32_t number, uint32_t chunks, bool meta, bk_pack_t *keep)
{
    name_t name;
    bk_pack_t pack;
    char text[40] = "";
    bk_id_t id;
    bk_type_t type = meta ? BK_TYPE_TREE : BK_TYPE_FILE;
    OK(bk_pack_init(&pack, meta ? BK_KIND_META : BK_KIND_PACK, BK_PACK_TARGET, true, &f->err),
       &f->err);
    for (uint32_t n = 0; n < chunks; n++) {
        make_chunk(number, n, text);
        bk_chunk_id(f->ring, (uint8_t)type, text, strlen(text), &id);
        OK(bk_pack_add(&pack, &id, type, BK_CODEC_RAW, text, strlen(text), (uint32_t)strlen(text),
                       &f->err),
           &f->err);
    }
    OK(bk_pack_finish(&pack, f->ring, uuid, &f->err), &f->err);
    bk_pack_object_name(name.text, &pack.name, pack.kind);
    OK(bk_storage_put(f->objects.storage, name.text, pack.bytes.data, pack.bytes.len, true, NULL,
                      &f->err),
       &f->err);
    if (keep != NULL)
        *keep = pack;
    else
        bk_pack_free(&pack);
    return name;
}

static name_t index_pack(fixture_t *f, const bk_pack_t *pack)
{
    name_t name;
    uint64_t bytes;
    OK(bk_index_store(f->ring, uuid, &pack, 1, f->objects.storage, name.text, &bytes, NULL,
                      &f->err),
       &f->err);
    return name;
}

/* Found, and the place leads to the chunk itself. */
static bool reads(fixture_t *f, uint32_t number, uint32_t n, bool meta)
{
    char text[40], object[BK_STORAGE_NAME];
    uint8_t header[BK_OBJECT_HEADER], frame[100], out[100];
    bk_location_t where;
    bk_object_key_t key;
    bk_id_t id;
    size_t got;
    make_chunk(number, n, text);
    bk_chunk_id(f->ring, meta ? BK_TYPE_TREE : BK_TYPE_FILE, text, strlen(text), &id);
    if (!bk_index_find(f->index, &id, &where))
        return false;
    assert_int_equal(where.kind, meta ? BK_KIND_META : BK_KIND_PACK);
    bk_pack_object_name(object, &where.pack, where.kind);
    OK(bk_storage_get(f->objects.storage, object, 0, sizeof header, header, &got, NULL, &f->err),
       &f->err);
    OK(bk_object_key_open(f->ring, uuid, where.kind, header, &key, &f->err), &f->err);
    OK(bk_storage_get(f->objects.storage, object, where.entry.offset, where.entry.stored, frame,
                      &got, NULL, &f->err),
       &f->err);
    OK(bk_pack_frame(f->ring, &key, &where.entry, frame, out, &f->err), &f->err);
    assert_memory_equal(out, text, strlen(text));
    bk_object_key_wipe(&key);
    return true;
}

static bk_rc_t count_object(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    (void)item;
    (void)err;
    ++*(size_t *)arg;
    return BK_OK;
}

static size_t count_segments(fixture_t *f)
{
    size_t count = 0;
    OK(bk_storage_list(f->objects.storage, "index/", count_object, &count, NULL, &f->err), &f->err);
    return count;
}

static void packs_stand_in_for_a_damaged_segment(void **state)
{
    fixture_t *f = *state;
    char path[700];
    bk_pack_t pack[2];
    bk_buf_t whole;
    put_pack(f, 1, 20, false, &pack[0]);
    put_pack(f, 2, 20, true, &pack[1]);
    index_pack(f, &pack[0]);
    name_t name = index_pack(f, &pack[1]);
    object_path(f, name.text, path);
    bk_buf_init(&whole, 1u << 20);
    OK(bk_read_file(AT_FDCWD, path, &whole, &f->err), &f->err);
    for (int cut = 0; cut < 2; cut++) {
        damage(path, cut == 1);
        OK(bk_remove_tree(f->cache, false, &f->err), &f->err); /* which still had it */
        open_index(f);
        assert_true(notes(f) > 0);
        for (uint32_t n = 0; n < 20; n++)
            assert_true(reads(f, 1, n, false) && reads(f, 2, n, true));
        put_pack(f, 10 + (uint32_t)cut, 1, false, NULL); /* without a segment */
        refresh(f);
        assert_true(notes(f) > 0);
        assert_true(reads(f, 10 + (uint32_t)cut, 0, false));
        assert_int_equal(count_segments(f), 2); /* reading writes nothing */
        /* It comes back, from another copy of the storage for one. */
        OK(bk_storage_remove(f->objects.storage, name.text, NULL, &f->err), &f->err);
        OK(bk_storage_put(f->objects.storage, name.text, whole.data, whole.len, true, NULL,
                          &f->err),
           &f->err);
        open_index(f);
        assert_int_equal(notes(f), 0);
        assert_true(reads(f, 1, 3, false) && reads(f, 2, 3, true));
        assert_false(reads(f, 10 + (uint32_t)cut, 0, false)); /* nobody names it */
    }
    bk_buf_free(&whole);
    bk_pack_free(&pack[0]);
    bk_pack_free(&pack[1]);
}

static void a_segment_of_another_key_is_damage(void **state)
{
    fixture_t *f = *state;
    bk_keyring_t *own = f->ring;
    put_pack(f, 1, 5, false, NULL);
    f->ring = bk_keyring_new();
    put_segment(f, 7, 5);
    bk_keyring_free(f->ring);
    f->ring = own;
    open_index(f);
    assert_true(notes(f) > 0);
    assert_false(finds(f, 7, 3));
    assert_true(reads(f, 1, 3, false));
}

static void an_object_that_is_no_segment_is_damage(void **state)
{
    fixture_t *f = *state;
    bk_buf_t object;
    char name[BK_STORAGE_NAME], hex[BK_ID_HEX];
    bk_id_t digest;
    bk_buf_init(&object, 1000);
    OK(bk_object_wrap(f->ring, uuid, BK_KIND_INDEX, "not a segment", 13, &object, &f->err),
       &f->err);
    bk_sha256(&digest, object.data, object.len);
    bk_id_hex(hex, &digest);
    bk_fmt(name, sizeof name, "index/01k7m0q8r5zj3x9v2t4b6n8cde-%s", hex);
    OK(bk_storage_put(f->objects.storage, name, object.data, object.len, true, NULL, &f->err),
       &f->err);
    bk_buf_free(&object);
    put_segment(f, 1, 5);
    open_index(f);
    assert_true(notes(f) > 0);
    assert_true(finds(f, 1, 3));
}

static void a_lost_index_is_rebuilt(void **state)
{
    fixture_t *f = *state;
    for (uint32_t k = 1; k <= 6; k++)
        put_pack(f, k, 10, k % 2 == 0, NULL);
    open_index(f);
    assert_false(reads(f, 1, 3, false));
    OK(bk_index_rebuild(f->index, &f->ctl, &f->err), &f->err);
    assert_int_equal(count_segments(f), 1);
    for (uint32_t k = 1; k <= 6; k++)
        for (uint32_t n = 0; n < 10; n++)
            assert_true(reads(f, k, n, k % 2 == 0));
    open_index(f);
    assert_true(reads(f, 6, 3, true));
    assert_int_equal(notes(f), 0);
}

static size_t count_copies(fixture_t *f, uint32_t number, uint32_t n)
{
    char text[40];
    seen_t seen = {.count = 0};
    bk_location_t where;
    bk_id_t id;
    make_chunk(number, n, text);
    bk_chunk_id(f->ring, BK_TYPE_FILE, text, strlen(text), &id);
    while (bk_index_find_except(f->index, &id, was_seen, &seen, &where))
        seen.packs[seen.count++] = where.pack;
    return seen.count;
}

/* One of them may be damaged, and its directory does not tell. */
static void a_rebuilt_index_knows_every_copy_of_a_chunk(void **state)
{
    fixture_t *f = *state;
    char path[700];
    for (uint32_t k = 1; k <= 3; k++)
        put_pack(f, 1, 10, false, NULL);
    put_pack(f, 2, 10, false, NULL);
    name_t bad = put_segment(f, 7, 5);
    object_path(f, bad.text, path);
    damage(path, false);
    open_index(f); /* made up in memory */
    for (uint32_t n = 0; n < 10; n++) {
        assert_int_equal(count_copies(f, 1, n), 3);
        assert_int_equal(count_copies(f, 2, n), 1);
    }
    OK(bk_index_rebuild(f->index, &f->ctl, &f->err), &f->err);
    notes(f);
    refresh(f);
    assert_int_equal(notes(f), 0);
    for (uint32_t n = 0; n < 10; n++) {
        assert_int_equal(count_copies(f, 1, n), 3);
        assert_int_equal(count_copies(f, 2, n), 1);
        assert_true(reads(f, 1, n, false) && reads(f, 2, n, false));
    }
}

static void a_rebuilt_index_replaces_the_old_one(void **state)
{
    fixture_t *f = *state;
    char path[700];
    bk_pack_t pack;
    put_pack(f, 1, 10, false, &pack);
    name_t name = index_pack(f, &pack);
    bk_pack_free(&pack);
    put_segment(f, 7, 5); /* names a pack that is not there any more */
    put_pack(f, 2, 10, true, NULL);
    object_path(f, name.text, path);
    damage(path, false);
    open_index(f);
    assert_true(notes(f) > 0);
    OK(bk_index_rebuild(f->index, &f->ctl, &f->err), &f->err);
    notes(f);
    refresh(f);
    assert_int_equal(notes(f), 0);
    assert_false(finds(f, 7, 3));
    assert_true(reads(f, 1, 3, false) && reads(f, 2, 3, true));
}

/* What only the old segments know stays known. */
static void nothing_is_replaced_when_a_pack_cannot_be_read(void **state)
{
    fixture_t *f = *state;
    char path[700];
    struct stat st;
    bk_pack_t pack;
    name_t bad = put_pack(f, 1, 10, false, &pack);
    index_pack(f, &pack);
    bk_pack_free(&pack);
    put_pack(f, 2, 10, false, NULL);
    object_path(f, bad.text, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(chmod(path, 0600), 0);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, st.st_size - 20), 1); /* the trailer */
    close(fd);
    open_index(f);
    OK(bk_index_rebuild(f->index, &f->ctl, &f->err), &f->err);
    assert_int_equal(notes(f), 1);
    assert_true(reads(f, 1, 3, false)); /* its frame is sound */
    assert_true(reads(f, 2, 3, false));
}

static void entries_of_a_stored_pack_are_read_by_its_end(void **state)
{
    fixture_t *f = *state;
    static const uint32_t counts[] = {0, 1, 700,
                                      5000}; /* the last directory is longer than 32 KiB */
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bk_pack_t made, read;
        name_t name = put_pack(f, (uint32_t)i, counts[i], false, &made);
        OK(bk_pack_read_entries(&f->objects, f->ring, uuid, name.text, made.bytes.len, BK_KIND_PACK,
                                &read, NULL, &f->err),
           &f->err);
        assert_int_equal(read.count, counts[i]);
        assert_int_equal(read.bytes.len, made.bytes.len);
        assert_memory_equal(read.name.b, made.name.b, BK_ID_SIZE);
        for (uint32_t n = 0; n < counts[i]; n++) {
            assert_memory_equal(read.entries[n].id.b, made.entries[n].id.b, BK_ID_SIZE);
            assert_int_equal(read.entries[n].offset, made.entries[n].offset);
            assert_int_equal(read.entries[n].stored, made.entries[n].stored);
        }
        free(read.entries);
        /* A listing that tells another size, and another kind. */
        for (int wrong = -1; wrong <= 1; wrong += 2)
            assert_int_equal(bk_pack_read_entries(&f->objects, f->ring, uuid, name.text,
                                                  made.bytes.len + (size_t)wrong, BK_KIND_PACK,
                                                  &read, NULL, &f->err),
                             BK_CORRUPT);
        assert_int_equal(bk_pack_read_entries(&f->objects, f->ring, uuid, name.text, made.bytes.len,
                                              BK_KIND_META, &read, NULL, &f->err),
                         BK_CORRUPT);
        assert_int_equal(bk_pack_read_entries(&f->objects, f->ring, uuid, name.text, 100,
                                              BK_KIND_PACK, &read, NULL, &f->err),
                         BK_CORRUPT);
        bk_pack_free(&made);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_empty_storage_has_an_empty_index),
        TEST(chunks_of_all_segments_are_found),
        TEST(walks_and_totals_count_each_pack_once),
        TEST(a_refresh_sees_what_came_and_what_went),
        TEST(a_segment_in_spool_and_storage_counts_once),
        TEST(a_stopped_refresh_leaves_the_index_as_it_was),
        TEST(a_damaged_cache_is_fetched_again),
        TEST(a_cache_that_cannot_be_written_is_done_without),
        TEST(stale_files_leave_the_cache),
        TEST(a_replaced_segment_is_passed_over),
        TEST(only_a_sound_segment_replaces_others),
        TEST(damage_of_a_replaced_segment_is_no_news),
        TEST(many_segments_are_merged_and_found),
        TEST(a_segment_that_goes_leaves_its_merge),
        TEST(a_replaced_segment_leaves_its_merge),
        TEST(damaged_merges_are_made_again),
        TEST(merges_that_overlap_count_once),
        TEST(hundreds_of_segments_are_found),
        TEST(look_ups_go_on_while_segments_come_and_merge),
        TEST(a_walk_may_look_up_and_refresh),
        TEST(packs_stand_in_for_a_damaged_segment),
        TEST(a_segment_of_another_key_is_damage),
        TEST(an_object_that_is_no_segment_is_damage),
        TEST(a_lost_index_is_rebuilt),
        TEST(a_rebuilt_index_replaces_the_old_one),
        TEST(a_rebuilt_index_knows_every_copy_of_a_chunk),
        TEST(nothing_is_replaced_when_a_pack_cannot_be_read),
        TEST(entries_of_a_stored_pack_are_read_by_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
