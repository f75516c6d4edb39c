/*
 * t/unit/repo/verify_test.c: damage is found at the level that promises it, and told as object, files and backups.
 */
#include "unit/repo/repo_testing.h"

#include <fcntl.h>

#include "base/clock.h"
#include "repo/map.h"
#include "repo/tree.h"
#include "repo/verify.h"

#define FILE_LEN 40000u

typedef struct {
    char text[256][1200];
    size_t count;
} lines_t;

static void add_line(void *arg, const char *object, const char *line)
{
    lines_t *lines = arg;
    assert_true(object != NULL && object[0] != '\0');
    if (lines->count < 256)
        bk_strcpy(lines->text[lines->count++], sizeof lines->text[0], line);
}

static bool has_line(const lines_t *lines, const char *a, const char *b)
{
    for (size_t i = 0; i < lines->count; i++)
        if (strstr(lines->text[i], a) != NULL && strstr(lines->text[i], b) != NULL)
            return true;
    return false;
}

typedef struct {
    fixture_t *f;
    unsigned level;
    lines_t *lines;
    bk_verify_result_t result;
} run_t;

static bk_rc_t verify_on_team(bk_team_t *team, void *arg, bk_err_t *err)
{
    run_t *run = arg;
    return bk_verify(run->f->repo, run->level, team, add_line, run->lines, &run->result, NULL, err);
}

static bk_verify_result_t verify(fixture_t *f, unsigned level, lines_t *lines)
{
    run_t run = {.f = f, .level = level, .lines = lines};
    memset(lines, 0, sizeof *lines);
    OK(bk_team_run(3, verify_on_team, &run, &f->err), &f->err);
    assert_int_equal(run.result.findings, lines->count);
    return run.result;
}

static bk_id_t put(bk_session_t *session, bk_type_t type, uint64_t seed)
{
    uint8_t data[FILE_LEN];
    bk_id_t id;
    bk_err_t err = {0};
    test_fill(data, sizeof data, seed);
    OK(bk_session_put(session, type, false, data, sizeof data, &id, &err), &err);
    return id;
}

/* A tree "t" with d/0.wav .. d/(n-1).wav of one chunk each, and a database "app" of n blocks. */
static void back_up(fixture_t *f, const char *id, size_t n, uint64_t seed)
{
    bk_session_t *session = fixture_session(f, true);
    bk_tree_builder_t *files = bk_tree_builder_new(session), *top = bk_tree_builder_new(session);
    bk_map_builder_t *blocks = bk_map_builder_new(session);
    bk_snapshot_t s;
    bk_id_t child;
    uint64_t entries;
    for (size_t i = 0; i < n; i++) {
        char name[32];
        bk_chunk_ref_t chunk = {put(session, BK_TYPE_FILE, seed + i), FILE_LEN};
        bk_fmt(name, sizeof name, "%03zu.wav", i);
        bk_entry_t entry = {.name = (const uint8_t *)name,
                            .name_len = (uint16_t)strlen(name),
                            .type = BK_ENTRY_FILE,
                            .flags = BK_ENTRY_CHUNKS,
                            .mode = 0600,
                            .user = "",
                            .group = "",
                            .size = FILE_LEN,
                            .links = 1,
                            .chunks = &chunk,
                            .chunk_count = 1};
        OK(bk_tree_builder_add(files, &entry, &f->err), &f->err);
        bk_chunk_ref_t block = {put(session, BK_TYPE_BLOCK, seed + i), FILE_LEN};
        OK(bk_map_builder_add(blocks, &block, &f->err), &f->err);
    }
    OK(bk_tree_builder_finish(files, &child, &entries, &f->err), &f->err);
    bk_entry_t dir = {.name = (const uint8_t *)"d",
                      .name_len = 1,
                      .type = BK_ENTRY_DIR,
                      .mode = 0700,
                      .user = "",
                      .group = "",
                      .links = 1,
                      .child = child,
                      .children = entries};
    OK(bk_tree_builder_add(top, &dir, &f->err), &f->err);
    bk_snapshot_init(&s);
    s.trees = calloc(1, sizeof *s.trees);
    s.dbs = calloc(1, sizeof *s.dbs);
    s.tree_count = s.db_count = 1;
    s.trees[0] = (bk_snapshot_tree_t){.name = bk_strdup("t"), .path = bk_strdup("/t")};
    OK(bk_tree_builder_finish(top, &s.trees[0].root, &s.trees[0].entries, &f->err), &f->err);
    s.dbs[0] = (bk_snapshot_db_t){
        .name = bk_strdup("app"), .path = bk_strdup("/app.db"), .journal = bk_strdup("wal")};
    s.dbs[0].page_size = 4096;
    s.dbs[0].block_size = 65536;
    s.dbs[0].page_count = n * 16;
    OK(bk_map_builder_finish(blocks, &s.dbs[0].map, &f->err), &f->err);
    bk_tree_builder_free(files);
    bk_tree_builder_free(top);
    bk_map_builder_free(blocks);
    OK(fixture_commit(f, session, id, &s), &f->err);
    free(s.trees[0].name);
    free(s.trees[0].path);
    free(s.dbs[0].name);
    free(s.dbs[0].path);
    free(s.dbs[0].journal);
    free(s.trees);
    free(s.dbs);
}

typedef struct {
    char names[64][BK_STORAGE_NAME];
    uint64_t sizes[64];
    size_t count;
} objects_t;

static bk_rc_t add_object(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    objects_t *objects = arg;
    (void)err;
    assert_true(objects->count < 64);
    objects->sizes[objects->count] = item->size;
    bk_strcpy(objects->names[objects->count++], BK_STORAGE_NAME, item->name);
    return BK_OK;
}

static objects_t list(fixture_t *f, const char *prefix)
{
    objects_t objects = {.count = 0};
    OK(bk_storage_list(f->storage, prefix, add_object, &objects, NULL, &f->err), &f->err);
    return objects;
}

static void flip(fixture_t *f, const char *object, uint64_t at)
{
    char path[1024];
    uint8_t byte;
    bk_fmt(path, sizeof path, "%s/storage/%s", f->dir, object);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= 0x04;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

static void reopen(fixture_t *f)
{
    fixture_close(f);
    fixture_open(f);
}

static int set_up(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    fixture_start(f, true);
    *state = f;
    return 0;
}

static int set_up_plain(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    fixture_start(f, false);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture_end(*state);
    free(*state);
    return 0;
}

static void a_sound_repository_has_no_findings(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 20, 1);
    back_up(f, "full_2", 20, 1);
    for (unsigned level = 0; level <= 2; level++) {
        bk_verify_result_t result = verify(f, level, &lines);
        assert_int_equal(result.findings, 0);
        assert_true(result.objects >= 3);
    }
    assert_int_equal(verify(f, 2, &lines).chunks, 20 + 20 + 2 + 1);
    bk_verify_result_t result;
    assert_int_equal(bk_verify(f->repo, 3, NULL, add_line, &lines, &result, NULL, &f->err),
                     BK_INVALID);
}

static void a_missing_pack_is_told_with_files_and_backups_at_every_level(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 5, 1);
    objects_t packs = list(f, "packs/");
    back_up(f, "full_2", 6, 1);
    back_up(f, "full_3", 5, 1000);
    OK(bk_storage_remove(f->storage, packs.names[0], NULL, &f->err), &f->err);
    for (unsigned level = 0; level <= 2; level++) {
        reopen(f);
        verify(f, level, &lines);
        assert_true(has_line(&lines, packs.names[0], "missing"));
        assert_true(has_line(&lines, packs.names[0], "10 chunks that backups need are lost"));
        assert_true(has_line(&lines, "t/d/003.wav", "full_1, full_2"));
        assert_true(has_line(&lines, "app: ", "full_1, full_2"));
        assert_false(has_line(&lines, "full_3", ""));
        assert_false(has_line(&lines, "t/d/005.wav", ""));
        assert_int_equal(lines.count, 1 + 5 + 1);
    }
}

/* Left by a backup that failed before its index segment was written: a full disk, a crash. */
static void a_pack_that_no_backup_finished_is_no_damage(void **state)
{
    fixture_t *f = *state;
    lines_t *lines = calloc(1, sizeof *lines);
    char name[BK_STORAGE_NAME];
    uint8_t data[FILE_LEN];
    bk_pack_t pack;
    bk_id_t id;
    assert_non_null(lines);
    back_up(f, "full_1", 3, 1);
    test_fill(data, sizeof data, 77);
    bk_chunk_id(bk_repo_keyring(f->repo), BK_TYPE_FILE, data, sizeof data, &id);
    OK(bk_pack_init(&pack, BK_KIND_PACK, BK_PACK_TARGET, f->encrypted, &f->err), &f->err);
    OK(bk_pack_add(&pack, &id, BK_TYPE_FILE, BK_CODEC_RAW, data, sizeof data, sizeof data, &f->err),
       &f->err);
    OK(bk_pack_finish(&pack, bk_repo_keyring(f->repo), bk_repo_uuid(f->repo), &f->err), &f->err);
    bk_pack_object_name(name, &pack.name, pack.kind);
    OK(bk_storage_put(f->storage, name, pack.bytes.data, pack.bytes.len, true, NULL, &f->err),
       &f->err);
    bk_pack_free(&pack);
    for (unsigned level = 0; level <= 2; level++)
        assert_int_equal(verify(f, level, lines).findings, 0);
    free(lines);
}

static void a_flipped_frame_costs_one_file_at_level_2(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 5, 1);
    objects_t packs = list(f, "packs/");
    flip(f, packs.names[0], 80 + 100); /* the first frame is the first file's chunk */
    reopen(f);
    verify(f, 0, &lines);
    assert_int_equal(lines.count, 0);
    verify(f, 1, &lines);
    assert_true(has_line(&lines, packs.names[0], "SHA-256"));
    assert_true(has_line(&lines, "t/d/004.wav", "full_1")); /* which one is not known there */
    verify(f, 2, &lines);
    assert_true(has_line(&lines, packs.names[0], "SHA-256"));
    assert_true(has_line(&lines, packs.names[0], "1 chunk that backups need is lost"));
    assert_true(has_line(&lines, "t/d/000.wav", "full_1"));
    assert_false(has_line(&lines, "t/d/004.wav", ""));
    assert_int_equal(lines.count, 3);
}

static void a_lost_directory_is_told(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 5, 1);
    objects_t metas = list(f, "meta/");
    assert_int_equal(metas.count, 1);
    OK(bk_storage_remove(f->storage, metas.names[0], NULL, &f->err), &f->err);
    reopen(f);
    verify(f, 0, &lines);
    assert_true(has_line(&lines, metas.names[0], "missing"));
    assert_true(has_line(&lines, "t: ", "full_1"));
    assert_true(has_line(&lines, "app: ", "full_1"));
}

/* A later backup that stored the chunk again makes the earlier one whole. */
static void a_second_sound_copy_is_no_loss(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 5, 1);
    objects_t packs = list(f, "packs/");
    OK(bk_storage_remove(f->storage, packs.names[0], NULL, &f->err), &f->err);
    bk_session_t *session = fixture_session(f, true);
    put(session, BK_TYPE_FILE, 1);
    assert_int_equal(fixture_commit(f, session, "full_2", NULL), BK_STORAGE);
    back_up(f, "full_2", 5, 1);
    reopen(f);
    verify(f, 2, &lines);
    assert_int_equal(lines.count, 1);
    assert_true(has_line(&lines, packs.names[0], "no backup loses anything"));
}

static void a_damaged_snapshot_is_told_at_every_level(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 2, 1);
    back_up(f, "full_2", 2, 1);
    objects_t snapshots = list(f, "snapshots/full_1-");
    flip(f, snapshots.names[0], 100);
    for (unsigned level = 0; level <= 2; level++) {
        reopen(f);
        verify(f, level, &lines);
        assert_int_equal(lines.count, 1);
        assert_true(has_line(&lines, snapshots.names[0], ""));
    }
}

static void verification_writes_nothing_even_when_the_index_is_damaged(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    char cache[512];
    back_up(f, "full_1", 2, 1);
    objects_t before = list(f, "");
    objects_t segments = list(f, "index/");
    flip(f, segments.names[0], 200);
    bk_fmt(cache, sizeof cache, "%s/cache/index", f->dir);
    for (unsigned level = 0; level <= 2; level++) {
        fixture_close(f);
        OK(bk_remove_tree(cache, true, &f->err), &f->err);
        fixture_open(f);
        verify(f, level, &lines);
        assert_int_equal(lines.count, 1);
        assert_true(has_line(&lines, segments.names[0], ""));
        verify(f, level, &lines);
        assert_int_equal(lines.count, 1);
        objects_t after = list(f, "");
        assert_int_equal(after.count, before.count);
    }
}

static bk_rc_t count_chunk(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                           const bk_err_t *failure, bk_err_t *err)
{
    uint8_t expected[FILE_LEN];
    (void)failure;
    (void)err;
    test_fill(expected, sizeof expected, want->tag);
    if (data != NULL)
        assert_memory_equal(data, expected, sizeof expected);
    else
        ++*(size_t *)arg;
    return BK_OK;
}

/* How many of the n files and n blocks of back_up cannot be had, by a process that knows nothing. */
static size_t count_lost(fixture_t *f, size_t n, uint64_t seed)
{
    char from[512], to[512];
    size_t failed = 0;
    bk_want_chunk_t *wants = calloc(2 * n, sizeof *wants);
    fixture_t other = *f;
    other.dir = test_dir();
    assert_int_equal(symlink(fixture_path(f, "storage", from), fixture_path(&other, "storage", to)),
                     0);
    fixture_open(&other);
    for (size_t i = 0; i < 2 * n; i++) {
        uint8_t data[FILE_LEN];
        wants[i] = (bk_want_chunk_t){.raw = FILE_LEN, .tag = seed + i / 2};
        test_fill(data, sizeof data, wants[i].tag);
        bk_chunk_id(bk_repo_keyring(other.repo), i % 2 ? BK_TYPE_FILE : BK_TYPE_BLOCK, data,
                    sizeof data, &wants[i].id);
    }
    OK(bk_repo_fetch(other.repo, wants, 2 * n, NULL, count_chunk, &failed, NULL, &f->err), &f->err);
    free(wants);
    fixture_close(&other);
    test_dir_remove(other.dir);
    return failed;
}

typedef enum { FLIP_FRAME, FLIP_DIRECTORY, CUT_OFF, CUT_TO_NOTHING, HARMS } harm_t;

static void harm(fixture_t *f, const objects_t *objects, harm_t how)
{
    for (size_t i = 0; i < objects->count; i++) {
        char path[1024];
        uint64_t size = objects->sizes[i];
        bk_fmt(path, sizeof path, "%s/storage/%s", f->dir, objects->names[i]);
        if (how == FLIP_FRAME)
            flip(f, objects->names[i], 80 + 100);
        else if (how == FLIP_DIRECTORY)
            flip(f, objects->names[i], size - 60);
        else
            assert_int_equal(truncate(path, how == CUT_OFF ? (off_t)size - 100 : 0), 0);
    }
}

/*
 * Whoever finds the damage, the next backup of the same content stores it again, and old backups are
 * whole by it, also for a machine that knows nothing of the damage.
 */
static void heal(fixture_t *f, const char *prefix, harm_t how, unsigned level)
{
    lines_t *lines = calloc(1, sizeof *lines);
    char id[32];
    uint64_t seed = 1 + 1000 * (uint64_t)how + 10000 * level + (prefix[0] == 'm' ? 100000 : 0);
    objects_t before = list(f, prefix);
    bk_fmt(id, sizeof id, "full_%llu", (unsigned long long)seed);
    back_up(f, id, 4, seed);
    objects_t after = list(f, prefix), fresh = {.count = 0};
    for (size_t i = 0; i < after.count; i++) {
        bool known = false;
        for (size_t j = 0; j < before.count; j++)
            known = known || strcmp(after.names[i], before.names[j]) == 0;
        if (!known) {
            fresh.sizes[fresh.count] = after.sizes[i];
            bk_strcpy(fresh.names[fresh.count++], BK_STORAGE_NAME, after.names[i]);
        }
    }
    assert_true(fresh.count > 0);
    harm(f, &fresh, how);
    reopen(f);
    verify(f, level, lines);
    assert_true(has_line(lines, fresh.names[0], ""));
    assert_true(has_line(lines, " lost", id));
    reopen(f);
    bk_strcpy(id + strlen(id), 8, "_again");
    back_up(f, id, 4, seed);
    assert_int_equal(count_lost(f, 4, seed), 0);
    reopen(f);
    bk_verify_result_t result = verify(f, 2, lines);
    assert_true(has_line(lines, fresh.names[0], "no backup loses anything"));
    assert_int_equal(result.findings, result.harmless);
    objects_t healed = list(f, prefix);
    /* Nothing is stored a third time. */
    bk_strcpy(id + strlen(id) - 6, 8, "_third");
    back_up(f, id, 4, seed);
    assert_int_equal(list(f, prefix).count, healed.count);
    free(lines);
}

static void what_damaged_packs_held_is_stored_again(void **state)
{
    for (harm_t how = 0; how < HARMS; how++)
        for (unsigned level = how < CUT_OFF ? 1 : 0; level <= 2; level++) {
            tear_down(state);
            set_up(state);
            heal(*state, "packs/", how, level);
            heal(*state, "meta/", how, level);
        }
}

static void what_a_reader_finds_damaged_is_stored_again(void **state)
{
    fixture_t *f = *state;
    uint8_t data[FILE_LEN];
    bk_id_t id;
    bk_buf_t out;
    back_up(f, "full_1", 4, 1);
    objects_t packs = list(f, "packs/");
    harm(f, &packs, FLIP_FRAME);
    reopen(f);
    test_fill(data, sizeof data, 1);
    bk_chunk_id(bk_repo_keyring(f->repo), BK_TYPE_FILE, data, sizeof data, &id);
    bk_buf_init(&out, BK_CHUNK_MAX);
    assert_int_equal(bk_repo_get(f->repo, &id, &out, NULL, &f->err), BK_CORRUPT);
    bk_buf_free(&out);
    reopen(f);
    bk_session_t *session = fixture_session(f, true);
    assert_false(bk_session_has(session, &id));
    assert_true(bk_session_doubts(session, bk_now() - 3600 * BK_SEC));
    assert_false(bk_session_doubts(session, bk_now() + BK_SEC));
    bk_session_abort(session);
    back_up(f, "full_2", 4, 1);
    assert_int_equal(count_lost(f, 4, 1), 0);
}

/* Only level 2 has read everything: it takes back what was noted of a pack that is sound. */
static void a_sound_pack_is_trusted_again(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    back_up(f, "full_1", 4, 1);
    objects_t packs = list(f, "packs/");
    harm(f, &packs, FLIP_FRAME);
    reopen(f);
    verify(f, 1, &lines);
    harm(f, &packs, FLIP_FRAME); /* back to what it was */
    for (unsigned level = 1; level <= 2; level++) {
        uint8_t data[FILE_LEN];
        bk_id_t id;
        reopen(f);
        assert_int_equal(verify(f, level, &lines).findings, 0);
        bk_session_t *session = fixture_session(f, true);
        test_fill(data, sizeof data, 1);
        bk_chunk_id(bk_repo_keyring(f->repo), BK_TYPE_FILE, data, sizeof data, &id);
        assert_int_equal(bk_session_has(session, &id), level == 2);
        bk_session_abort(session);
    }
}

/* Every object, one flip at a time, in every part of it: found at level 2, and never wrong bytes. */
static void no_flip_anywhere_gives_wrong_bytes(void **state)
{
    fixture_t *f = *state;
    lines_t lines;
    enum { N = 4 };
    uint64_t random = 99;
    back_up(f, "full_1", N, 1);
    objects_t objects = list(f, "");
    for (size_t i = 0; i < objects.count; i++) {
        const char *name = objects.names[i];
        if (strcmp(name, "FORMAT") == 0 || strncmp(name, "keys/", 5) == 0)
            continue;
        for (int round = 0; round < 24; round++) {
            uint64_t size = objects.sizes[i];
            uint64_t at = round < 8 ? (uint64_t)round * 11 % size : test_random(&random) % size;
            if (round >= 16)
                at = size - 1 - test_random(&random) % (size < 120 ? size : 120);
            char cache[512];
            size_t failed = 0;
            bk_want_chunk_t wants[2 * N];
            flip(f, name, at);
            fixture_close(f);
            bk_fmt(cache, sizeof cache, "%s/cache", f->dir);
            OK(bk_remove_tree(cache, true, &f->err), &f->err);
            fixture_open(f);
            verify(f, 2, &lines);
            if (lines.count == 0)
                fail_msg("%s at %llu", name, (unsigned long long)at);
            for (uint64_t n = 0; n < 2 * N; n++) {
                uint8_t data[FILE_LEN];
                wants[n] = (bk_want_chunk_t){.raw = FILE_LEN, .tag = 1 + n / 2};
                test_fill(data, sizeof data, wants[n].tag);
                bk_chunk_id(bk_repo_keyring(f->repo), n % 2 ? BK_TYPE_FILE : BK_TYPE_BLOCK, data,
                            sizeof data, &wants[n].id);
            }
            OK(bk_repo_fetch(f->repo, wants, 2 * N, NULL, count_chunk, &failed, NULL, &f->err),
               &f->err);
            if (strncmp(name, "packs/", 6) != 0)
                assert_int_equal(failed, 0);
            flip(f, name, at);
        }
    }
    reopen(f);
    verify(f, 2, &lines);
    assert_int_equal(lines.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_sound_repository_has_no_findings, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_sound_repository_has_no_findings, set_up_plain,
                                        tear_down),
        cmocka_unit_test_setup_teardown(
            a_missing_pack_is_told_with_files_and_backups_at_every_level, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_pack_that_no_backup_finished_is_no_damage, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_flipped_frame_costs_one_file_at_level_2, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_flipped_frame_costs_one_file_at_level_2, set_up_plain,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_lost_directory_is_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_second_sound_copy_is_no_loss, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_snapshot_is_told_at_every_level, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(verification_writes_nothing_even_when_the_index_is_damaged,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_damaged_packs_held_is_stored_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_reader_finds_damaged_is_stored_again, set_up_plain,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_sound_pack_is_trusted_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_flip_anywhere_gives_wrong_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_flip_anywhere_gives_wrong_bytes, set_up_plain,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
