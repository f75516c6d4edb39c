/*
 * t/unit/repo/map_test.c: lists of chunks: every place comes back, little is rewritten, and no node of a wrong shape is
 * believed.
 */
#include "unit/repo/repo_testing.h"

#include "repo/map.h"

static bk_chunk_ref_t ref_of(uint64_t i)
{
    bk_chunk_ref_t ref = {.raw = (uint32_t)(1 + i % BK_CHUNK_MAX)};
    bk_put_u64(ref.id.b, i);
    return ref;
}

/* changed: the place that holds another chunk, or count for none. */
static bk_map_t build(fixture_t *f, bk_session_t *session, uint64_t count, uint64_t changed)
{
    bk_map_t map;
    bk_map_builder_t *builder = bk_map_builder_new(session);
    assert_non_null(builder);
    for (uint64_t i = 0; i < count; i++) {
        bk_chunk_ref_t ref = ref_of(i == changed ? UINT64_MAX : i);
        OK(bk_map_builder_add(builder, &ref, &f->err), &f->err);
    }
    OK(bk_map_builder_finish(builder, &map, &f->err), &f->err);
    bk_map_builder_free(builder);
    assert_int_equal(map.count, count);
    assert_true(bk_map_valid(&map));
    return map;
}

static bk_rc_t count_node(void *arg, const bk_id_t *node, bk_err_t *err)
{
    (void)node;
    (void)err;
    ++*(size_t *)arg;
    return BK_OK;
}

static void any_range_comes_back(void **state)
{
    static const struct {
        uint64_t count;
        uint8_t depth;
        size_t nodes;
    } sizes[] = {{0, 0, 1},
                 {1, 0, 1},
                 {1024, 0, 1},
                 {1025, 1, 3},
                 {5000, 1, 6},
                 {1024 * 1024, 1, 1025},
                 {1024 * 1024 + 1, 2, 1025 + 3}};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    static bk_chunk_ref_t refs[3000];
    fixture_t f;
    bk_map_t maps[SIZES];
    uint64_t seed = 3;
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    for (size_t s = 0; s < SIZES; s++) {
        maps[s] = build(&f, session, sizes[s].count, sizes[s].count);
        assert_int_equal(maps[s].depth, sizes[s].depth);
    }
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    for (size_t s = 0; s < SIZES; s++) {
        const uint64_t count = sizes[s].count;
        size_t nodes = 0;
        OK(bk_map_each_node(f.repo, &maps[s], count_node, &nodes, NULL, &f.err), &f.err);
        assert_int_equal(nodes, sizes[s].nodes);
        for (size_t round = 0; round < 30; round++) {
            uint64_t first = count > 0 ? test_random(&seed) % count : 0;
            size_t n = (size_t)(test_random(&seed) % 3000);
            if (n > count - first)
                n = (size_t)(count - first);
            OK(bk_map_read(f.repo, &maps[s], first, n, refs, NULL, &f.err), &f.err);
            for (size_t i = 0; i < n; i++) {
                bk_chunk_ref_t ref = ref_of(first + i);
                assert_memory_equal(refs[i].id.b, ref.id.b, BK_ID_SIZE);
                assert_int_equal(refs[i].raw, ref.raw);
            }
        }
        assert_int_equal(bk_map_read(f.repo, &maps[s], count, 1, refs, NULL, &f.err), BK_CORRUPT);
        assert_int_equal(bk_map_read(f.repo, &maps[s], UINT64_MAX, 2, refs, NULL, &f.err),
                         BK_CORRUPT);
        OK(bk_map_read(f.repo, &maps[s], count, 0, refs, NULL, &f.err), &f.err);
    }
    fixture_end(&f);
}

static void one_changed_block_rewrites_its_leaf_and_the_branches_above(void **state)
{
    fixture_t f;
    bk_session_stats_t before, after;
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    bk_map_t one = build(&f, session, 1100000, 1100000),
             same = build(&f, session, 1100000, 1100000);
    assert_true(bk_id_equal(&one.root, &same.root));
    bk_session_stats(session, &before);
    bk_map_t other = build(&f, session, 1100000, 777777);
    bk_session_stats(session, &after);
    assert_false(bk_id_equal(&one.root, &other.root));
    assert_int_equal(after.chunks_new - before.chunks_new, 3);
    bk_session_abort(session);
    fixture_end(&f);
}

static void shapes_that_cannot_be_are_refused(void **state)
{
    static const struct {
        uint64_t count;
        uint8_t depth;
        bool valid;
    } shapes[] = {
        {0, 0, true},
        {0, 1, false},
        {1024, 0, true},
        {1024, 1, false},
        {1025, 0, false},
        {1025, 1, true},
        {1ull << 20, 1, true},
        {1ull << 20, 2, false},
        {(1ull << 20) + 1, 1, false},
        {1ull << 40, 3, true},
        {(1ull << 40) + 1, 3, false},
        {(1ull << 40) + 1, 4, false},
        {UINT64_MAX, 6, false},
        {UINT64_MAX, 255, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        bk_map_t map = {.count = shapes[i].count, .depth = shapes[i].depth};
        assert_int_equal(bk_map_valid(&map), shapes[i].valid);
    }
}

static bk_id_t put(fixture_t *f, bk_session_t *session, const uint8_t *node, size_t len)
{
    bk_id_t id;
    OK(bk_session_put(session, BK_TYPE_MAP, false, node, len, &id, &f->err), &f->err);
    return id;
}

static void nodes_that_do_not_fit_are_refused(void **state)
{
    enum { ITEM = 36, FULL = BK_MAP_FANOUT * ITEM };
    static uint8_t node[2 * FULL];
    static bk_chunk_ref_t refs[BK_MAP_FANOUT];
    fixture_t f;
    size_t nodes = 0;
    struct {
        const char *why;
        bk_map_t map;
        bk_rc_t rc;
    } cases[] = {
        {"a sound leaf", {.count = 3}, BK_OK},
        {"fewer chunks than the node", {.count = 2}, BK_CORRUPT},
        {"more chunks than the node", {.count = 4}, BK_CORRUPT},
        {"a leaf that is cut off", {.count = 3}, BK_CORRUPT},
        {"a chunk without bytes", {.count = 3}, BK_CORRUPT},
        {"a chunk that is too long", {.count = 3}, BK_CORRUPT},
        {"a node that is stored nowhere", {.count = 3}, BK_CORRUPT},
        {"a node of another list", {.count = 3}, BK_CORRUPT},
        {"a branch whose leaf is another's", {.count = 1025, .depth = 1}, BK_CORRUPT},
        {"a leaf where a branch must be", {.count = 1025, .depth = 1}, BK_CORRUPT},
    };
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    for (size_t i = 0; i < sizeof node / ITEM; i++)
        bk_put_u32(node + i * ITEM + 32, 7);
    bk_id_t sound = put(&f, session, node, 3 * ITEM);
    for (size_t i = 0; i < 3; i++)
        cases[i].map.root = sound;
    cases[3].map.root = put(&f, session, node, 3 * ITEM - 1);
    bk_put_u32(node + ITEM + 32, 0);
    cases[4].map.root = put(&f, session, node, 3 * ITEM);
    bk_put_u32(node + ITEM + 32, BK_CHUNK_MAX + 1);
    cases[5].map.root = put(&f, session, node, 3 * ITEM);
    bk_put_u32(node + ITEM + 32, 7);
    memset(cases[6].map.root.b, 0xee, BK_ID_SIZE);
    cases[7].map.root = put(&f, session, node, FULL);
    uint8_t branch[2 * BK_ID_SIZE];
    memcpy(branch, sound.b, BK_ID_SIZE);
    memcpy(branch + BK_ID_SIZE, sound.b, BK_ID_SIZE);
    cases[8].map.root = put(&f, session, branch, sizeof branch);
    cases[9].map.root = sound;
    bk_map_t long_one = {.root = put(&f, session, node, sizeof node), .count = 3};
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    assert_int_equal(bk_map_read(f.repo, &long_one, 0, 3, refs, NULL, &f.err), BK_CORRUPT);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bk_map_t *map = &cases[i].map;
        size_t n = map->count < BK_MAP_FANOUT ? (size_t)map->count : BK_MAP_FANOUT;
        bk_rc_t rc = bk_map_read(f.repo, map, 0, n, refs, NULL, &f.err);
        if (rc != cases[i].rc)
            fail_msg("%s: %s %s", cases[i].why, bk_rc_code(rc), f.err.text);
    }
    assert_int_equal(bk_map_each_node(f.repo, &cases[9].map, count_node, &nodes, NULL, &f.err),
                     BK_CORRUPT);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_range_comes_back),
        cmocka_unit_test(one_changed_block_rewrites_its_leaf_and_the_branches_above),
        cmocka_unit_test(shapes_that_cannot_be_are_refused),
        cmocka_unit_test(nodes_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests_name("repo/map", tests, NULL, NULL);
}
