/*
 * Behaviours: what a session stored can be read by id and in bulk, also after reopening, also from the spool; equal chunks are
 * stored once; a backup id is taken once; a killed session harms nothing and its packs are reused; damage is found.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "repo/map.h"
#include "repo/tree.h"
#include "repo/verify.h"
#include "unit/repo/repo_testing.h"

#define CHUNKS 300

static size_t chunk_len(size_t i)
{
    return i % 7 == 0 ? 700000 + i : 20 + i * 37;
}

static void put_chunks(fixture_t *f, bk_session_t *session, bk_id_t *ids, uint64_t seed)
{
    uint8_t *data = malloc(1u << 20);
    for (size_t i = 0; i < CHUNKS; i++) {
        test_fill(data, chunk_len(i), seed + i);
        OK(bk_session_put(session, i % 5 == 4 ? BK_TYPE_TREE : BK_TYPE_FILE, true, data,
                          chunk_len(i), &ids[i], &f->err),
           &f->err);
    }
    free(data);
}

static void check_chunks(fixture_t *f, const bk_id_t *ids, uint64_t seed)
{
    bk_buf_t buf;
    uint8_t *data = malloc(1u << 20);
    bk_buf_init(&buf, BK_CHUNK_MAX);
    for (size_t i = 0; i < CHUNKS; i++) {
        test_fill(data, chunk_len(i), seed + i);
        OK(bk_repo_get(f->repo, &ids[i], &buf, NULL, &f->err), &f->err);
        assert_int_equal(buf.len, chunk_len(i));
        assert_memory_equal(buf.data, data, buf.len);
    }
    bk_buf_free(&buf);
    free(data);
}

static void stored_chunks_come_back(bool encrypted)
{
    fixture_t f;
    bk_id_t ids[CHUNKS], again[CHUNKS];
    bk_session_stats_t stats;
    fixture_start(&f, encrypted);
    bk_session_t *session = fixture_session(&f, true);
    put_chunks(&f, session, ids, 1);
    put_chunks(&f, session, again, 1);
    assert_memory_equal(ids, again, sizeof ids);
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, CHUNKS);
    assert_int_equal(stats.chunks_known, CHUNKS);
    OK(fixture_commit(&f, session, "full_20251015_143000", NULL), &f.err);
    check_chunks(&f, ids, 1);
    fixture_close(&f);
    fixture_open(&f);
    check_chunks(&f, ids, 1);
    session = fixture_session(&f, true);
    put_chunks(&f, session, again, 1);
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 0);
    assert_int_equal(fixture_commit(&f, session, "full_20251015_143000", NULL), BK_EXISTS);
    fixture_end(&f);
}

static void stored_chunks_come_back_encrypted(void **state)
{
    (void)state;
    stored_chunks_come_back(true);
}

static void stored_chunks_come_back_plain(void **state)
{
    (void)state;
    stored_chunks_come_back(false);
}

static void spooled_backup_is_readable_and_ships_later(void **state)
{
    fixture_t f;
    bk_id_t ids[CHUNKS];
    bk_snapshot_list_t list;
    uint64_t objects, bytes;
    char spool[300];
    (void)state;
    fixture_start(&f, true);
    snprintf(spool, sizeof spool, "%s/spool", f.dir);
    bk_session_t *session = fixture_session(&f, false);
    put_chunks(&f, session, ids, 2);
    OK(fixture_commit(&f, session, "full_20251015_143000", NULL), &f.err);
    OK(bk_spool_measure(spool, &objects, &bytes, &f.err), &f.err);
    assert_true(objects >= 4);
    fixture_close(&f);
    fixture_open(&f);
    check_chunks(&f, ids, 2);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 1);
    bk_snapshot_list_free(&list);
    session = fixture_session(&f, true);
    OK(fixture_commit(&f, session, "full_20251015_143001", NULL), &f.err);
    OK(bk_spool_measure(spool, &objects, &bytes, &f.err), &f.err);
    assert_int_equal(objects, 0);
    check_chunks(&f, ids, 2);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 2);
    bk_snapshot_list_free(&list);
    fixture_end(&f);
}

typedef struct {
    uint64_t seed;
    size_t delivered;
    pthread_mutex_t lock;
} fetched_t;

static bk_rc_t deliver(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                       const bk_err_t *failure, bk_err_t *err)
{
    fetched_t *fetched = arg;
    uint8_t *expected = malloc(1u << 20);
    (void)failure;
    (void)err;
    assert_non_null(data);
    test_fill(expected, want->raw, fetched->seed + want->tag);
    assert_memory_equal(data, expected, want->raw);
    free(expected);
    pthread_mutex_lock(&fetched->lock);
    fetched->delivered++;
    pthread_mutex_unlock(&fetched->lock);
    return BK_OK;
}

typedef struct {
    fixture_t *f;
    bk_want_chunk_t *wants;
    size_t count;
    fetched_t *fetched;
} fetch_t;

static bk_rc_t fetch_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    fetch_t *fetch = arg;
    return bk_repo_fetch(fetch->f->repo, fetch->wants, fetch->count, team, deliver, fetch->fetched,
                         NULL, err);
}

static void every_want_is_delivered_once(void **state)
{
    fixture_t f;
    bk_id_t ids[CHUNKS];
    bk_want_chunk_t wants[2 * CHUNKS];
    fetched_t fetched = {.seed = 3};
    (void)state;
    pthread_mutex_init(&fetched.lock, NULL);
    fixture_start(&f, true);
    bk_session_t *session = fixture_session(&f, true);
    put_chunks(&f, session, ids, 3);
    OK(fixture_commit(&f, session, "full_20251015_143000", NULL), &f.err);
    for (size_t i = 0; i < 2 * CHUNKS; i++)
        wants[i] = (bk_want_chunk_t){
            .id = ids[i % CHUNKS], .raw = (uint32_t)chunk_len(i % CHUNKS), .tag = i % CHUNKS};
    fetch_t fetch = {.f = &f, .wants = wants, .count = 2 * CHUNKS, .fetched = &fetched};
    OK(bk_team_run(4, fetch_main, &fetch, &f.err), &f.err);
    assert_int_equal(fetched.delivered, 2 * CHUNKS);
    fixture_end(&f);
}

/* A tree of n files named by number, one of which may be different. */
static void build_tree(fixture_t *f, bk_session_t *session, size_t n, size_t different,
                       bk_id_t *root)
{
    uint64_t entries;
    bk_tree_builder_t *builder = bk_tree_builder_new(session);
    for (size_t i = 0; i < n; i++) {
        char name[32];
        bk_entry_t entry = {.name = (const uint8_t *)name,
                            .type = BK_ENTRY_FILE,
                            .flags = BK_ENTRY_INLINE,
                            .mode = 0644,
                            .user = "app",
                            .user_len = 3,
                            .group = "app",
                            .group_len = 3,
                            .mtime = i == different ? 1 : 2,
                            .size = 5,
                            .links = 1,
                            .content = (const uint8_t *)"hello",
                            .content_len = 5};
        entry.name_len = (uint16_t)snprintf(name, sizeof name, "%08zu.txt", i);
        OK(bk_tree_builder_add(builder, &entry, &f->err), &f->err);
    }
    OK(bk_tree_builder_finish(builder, root, &entries, &f->err), &f->err);
    assert_int_equal(entries, n);
    bk_tree_builder_free(builder);
}

static void one_changed_file_rewrites_few_nodes(void **state)
{
    fixture_t f;
    bk_id_t root, same, other;
    bk_session_stats_t before, after;
    const size_t n = 100000;
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    build_tree(&f, session, n, n, &root);
    build_tree(&f, session, n, n, &same);
    assert_true(bk_id_equal(&root, &same));
    bk_session_stats(session, &before);
    build_tree(&f, session, n, 54321, &other);
    assert_false(bk_id_equal(&root, &other));
    bk_session_stats(session, &after);
    assert_in_range(after.chunks_new - before.chunks_new, 1, 3);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);

    bk_tree_iter_t *iter;
    const bk_entry_t *entry;
    size_t count = 0;
    OK(bk_tree_iter_open(f.repo, &root, NULL, &iter, &f.err), &f.err);
    while (bk_tree_iter_next(iter, &entry, &f.err) == BK_OK && entry != NULL)
        count++;
    assert_int_equal(count, n);
    bk_tree_iter_close(iter);
    OK(bk_tree_iter_open(f.repo, &root, NULL, &iter, &f.err), &f.err);
    OK(bk_tree_iter_seek(iter, "00077777.txt", 12, &f.err), &f.err);
    OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
    assert_memory_equal(entry->name, "00077777.txt", 12);
    OK(bk_tree_iter_seek(iter, "zzz", 3, &f.err), &f.err);
    OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
    assert_null(entry);
    bk_tree_iter_close(iter);
    fixture_end(&f);
}

static void maps_keep_every_place(void **state)
{
    fixture_t f;
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    static const uint64_t sizes[] = {0, 1, 1023, 1024, 1025, 2048, 1024 * 3 + 7, 1100000};
    bk_map_t maps[8];
    for (size_t s = 0; s < 8; s++) {
        bk_map_builder_t *builder = bk_map_builder_new(session);
        for (uint64_t i = 0; i < sizes[s]; i++) {
            bk_chunk_ref_t ref = {.raw = 1 + (uint32_t)(i & 0xffff)};
            memcpy(ref.id.b, &i, sizeof i);
            OK(bk_map_builder_add(builder, &ref, &f.err), &f.err);
        }
        OK(bk_map_builder_finish(builder, &maps[s], &f.err), &f.err);
        assert_int_equal(maps[s].count, sizes[s]);
        bk_map_builder_free(builder);
    }
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    for (size_t s = 0; s < 8; s++) {
        bk_chunk_ref_t refs[100];
        for (uint64_t first = 0; first < sizes[s]; first += sizes[s] / 7 + 1) {
            size_t n = sizes[s] - first < 100 ? (size_t)(sizes[s] - first) : 100;
            OK(bk_map_read(f.repo, &maps[s], first, n, refs, NULL, &f.err), &f.err);
            for (size_t i = 0; i < n; i++)
                assert_int_equal(bk_get_u64(refs[i].id.b), first + i);
        }
        assert_int_equal(bk_map_read(f.repo, &maps[s], sizes[s], 1, refs, NULL, &f.err),
                         BK_CORRUPT);
    }
    fixture_end(&f);
}

/* A child stores and commits until it is killed; every snapshot it left must be whole. */
static void kill_in_the_middle_harms_nothing(void **state)
{
    fixture_t f;
    uint64_t random = 42;
    (void)state;
    fixture_start(&f, true);
    /* On a slow machine the child may never get as far as a commit. */
    OK(fixture_commit(&f, fixture_session(&f, true), "full_first", NULL), &f.err);
    fixture_close(&f);
    for (int round = 0; round < 12; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            fixture_open(&f);
            for (int n = 0; n < 1000; n++) {
                char id[64];
                bk_id_t ids[CHUNKS];
                bk_session_t *session = fixture_session(&f, true);
                put_chunks(&f, session, ids, (uint64_t)(round * 1000 + n) * CHUNKS);
                bk_snapshot_t s;
                bk_snapshot_init(&s);
                s.trees = calloc(1, sizeof *s.trees);
                s.tree_count = 1;
                s.trees[0].name = s.trees[0].path = bk_strdup("t");
                build_tree(&f, session, 2000, (size_t)(round * 31 + n), &s.trees[0].root);
                snprintf(id, sizeof id, "full_%d_%d", round, n);
                fixture_commit(&f, session, id, &s);
            }
            _exit(0);
        }
        bk_sleep_ms(50 + (unsigned)(test_random(&random) % 400));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    fixture_open(&f);
    bk_session_t *session = fixture_session(&f, true);
    OK(fixture_commit(&f, session, "full_last", NULL), &f.err);
    bk_snapshot_list_t list;
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.damaged, 0);
    assert_true(list.count > 1);
    for (size_t i = 0; i < list.count; i++) {
        bk_tree_iter_t *iter;
        const bk_entry_t *entry;
        size_t count = 0;
        if (list.items[i].tree_count == 0)
            continue;
        OK(bk_tree_iter_open(f.repo, &list.items[i].trees[0].root, NULL, &iter, &f.err), &f.err);
        do {
            OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
            count += entry != NULL;
        } while (entry != NULL);
        assert_int_equal(count, 2000);
        bk_tree_iter_close(iter);
    }
    bk_snapshot_list_free(&list);
    fixture_end(&f);
}

static void count_finding(void *arg, const char *object, const char *line)
{
    (void)object;
    (void)line;
    ++*(size_t *)arg;
}

/* Flip a byte of each object in turn: verification names it, and reading never gives wrong bytes. */
typedef struct {
    char names[64][BK_STORAGE_NAME];
    size_t count;
} objects_t;

static bk_rc_t remember(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    objects_t *objects = arg;
    (void)err;
    if (objects->count < 64 && strncmp(item->name, "leases/", 7) != 0)
        bk_strcpy(objects->names[objects->count++], BK_STORAGE_NAME, item->name);
    return BK_OK;
}

static void flipped_byte_is_found(void **state)
{
    fixture_t f;
    bk_id_t ids[CHUNKS];
    objects_t objects = {0};
    uint64_t random = 7;
    (void)state;
    fixture_start(&f, true);
    bk_session_t *session = fixture_session(&f, true);
    put_chunks(&f, session, ids, 9);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    OK(bk_storage_list(f.storage, "", remember, &objects, NULL, &f.err), &f.err);
    for (size_t i = 0; i < objects.count; i++) {
        char path[1024];
        struct stat st;
        uint8_t byte;
        bk_verify_result_t result;
        size_t found = 0;
        if (strncmp(objects.names[i], "keys/", 5) == 0 || strcmp(objects.names[i], "FORMAT") == 0)
            continue;
        snprintf(path, sizeof path, "%s/storage/%s", f.dir, objects.names[i]);
        assert_int_equal(stat(path, &st), 0);
        off_t at = (off_t)(test_random(&random) % (uint64_t)st.st_size);
        int fd = open(path, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        OK(bk_verify(f.repo, 2, NULL, count_finding, &found, &result, NULL, &f.err), &f.err);
        if (found == 0)
            print_error("%s at %lld\n", objects.names[i], (long long)at);
        assert_true(found > 0);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
    }
    bk_verify_result_t result;
    size_t found = 0;
    OK(bk_verify(f.repo, 2, NULL, count_finding, &found, &result, NULL, &f.err), &f.err);
    assert_int_equal(found, 0);
    assert_int_equal(result.chunks, CHUNKS);
    fixture_end(&f);
}

static void wrong_key_is_told(void **state)
{
    fixture_t f;
    (void)state;
    fixture_start(&f, true);
    fixture_close(&f);
    uint8_t other[BK_KEY_SIZE] = {1};
    char cache[300], path[300];
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("disk")};
    snprintf(cache, sizeof cache, "%s/cache", f.dir);
    snprintf(path, sizeof path, "%s/storage", f.dir);
    OK(bk_storage_config_set(&config, "path", path, &f.err), &f.err);
    OK(bk_storage_open(&config, &f.storage, &f.err), &f.err);
    bk_storage_config_free(&config);
    bk_repo_options_t options = {
        .storage = f.storage, .cache_dir = cache, .secret = {.key = other}};
    assert_int_equal(bk_repo_open(&options, NULL, &f.repo, &f.err), BK_WRONG_KEY);
    options.secret.key = NULL;
    assert_int_equal(bk_repo_open(&options, NULL, &f.repo, &f.err), BK_CONFIG);
    options.secret.key = f.key;
    OK(bk_repo_open(&options, NULL, &f.repo, &f.err), &f.err);
    char slot[64];
    bk_secret_t second = {.key = other};
    OK(bk_repo_key_add(f.repo, &second, "second", slot, sizeof slot, NULL, &f.err), &f.err);
    json_t *slots;
    OK(bk_repo_key_list(f.repo, &slots, NULL, &f.err), &f.err);
    assert_int_equal(json_array_size(slots), 2);
    json_decref(slots);
    OK(bk_repo_key_remove(f.repo, slot, NULL, &f.err), &f.err);
    fixture_end(&f);
}

static void a_backup_that_takes_over_nodes_needs_their_snapshot_to_its_end(void **state)
{
    (void)state;
    fixture_t f;
    bk_id_t ids[CHUNKS];
    bk_snapshot_list_t list;
    fixture_start(&f, true);
    bk_session_t *session = fixture_session(&f, true);
    put_chunks(&f, session, ids, 1);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    for (unsigned gone = 0; gone < 2; gone++) {
        session = fixture_session(&f, true);
        bk_session_rely(session, list.items[0].object);
        if (gone)
            OK(bk_snapshot_remove(f.repo, &list.items[0], &f.ctl, &f.err), &f.err);
        bk_rc_t rc = fixture_commit(&f, session, gone ? "full_3" : "full_2", NULL);
        assert_int_equal(rc, gone ? BK_STORAGE : BK_OK);
    }
    assert_non_null(strstr(f.err.text, "run it again"));
    bk_snapshot_list_free(&list);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.items[0].backup_id, "full_2");
    bk_snapshot_list_free(&list);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stored_chunks_come_back_encrypted),
        cmocka_unit_test(stored_chunks_come_back_plain),
        cmocka_unit_test(a_backup_that_takes_over_nodes_needs_their_snapshot_to_its_end),
        cmocka_unit_test(spooled_backup_is_readable_and_ships_later),
        cmocka_unit_test(every_want_is_delivered_once),
        cmocka_unit_test(one_changed_file_rewrites_few_nodes),
        cmocka_unit_test(maps_keep_every_place),
        cmocka_unit_test(kill_in_the_middle_harms_nothing),
        cmocka_unit_test(flipped_byte_is_found),
        cmocka_unit_test(wrong_key_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
