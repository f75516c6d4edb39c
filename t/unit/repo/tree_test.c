/*
 * t/unit/repo/tree_test.c: directories: one form for one content, little rewritten for a little change, and no node
 * believed that contradicts itself.
 */
#include "unit/repo/repo_testing.h"

#include <xxhash.h>

#include "repo/tree.h"

typedef struct {
    char name[BK_NAME_MAX + 1];
    uint16_t len;
    int64_t mtime;
} item_t;

static int by_name(const void *a, const void *b)
{
    const item_t *x = a, *y = b;
    int order = memcmp(x->name, y->name, x->len < y->len ? x->len : y->len);
    return order != 0 ? order : (int)x->len - (int)y->len;
}

static bk_entry_t entry_of(const item_t *item)
{
    return (bk_entry_t){.name = (const uint8_t *)item->name,
                        .name_len = item->len,
                        .type = BK_ENTRY_FILE,
                        .flags = BK_ENTRY_INLINE,
                        .mode = 0644,
                        .user = "",
                        .group = "",
                        .mtime = item->mtime,
                        .size = 3,
                        .content = (const uint8_t *)"abc",
                        .content_len = 3};
}

static uint64_t build(fixture_t *f, bk_session_t *session, const item_t *items, size_t count,
                      bk_id_t *root)
{
    uint64_t entries;
    bk_tree_builder_t *builder = bk_tree_builder_new(session);
    assert_non_null(builder);
    for (size_t i = 0; i < count; i++) {
        bk_entry_t entry = entry_of(&items[i]);
        OK(bk_tree_builder_add(builder, &entry, &f->err), &f->err);
    }
    OK(bk_tree_builder_finish(builder, root, &entries, &f->err), &f->err);
    bk_tree_builder_free(builder);
    return entries;
}

static item_t *number_names(size_t count)
{
    item_t *items = calloc(count + 1, sizeof *items);
    assert_non_null(items);
    for (size_t i = 0; i < count; i++)
        items[i].len = (uint16_t)snprintf(items[i].name, sizeof items[i].name, "%09zu.wav", i);
    return items;
}

/* Names of any bytes, sorted, unique. */
static size_t any_names(item_t *items, size_t count, uint64_t seed)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        item_t *item = &items[i];
        memset(item, 0, sizeof *item);
        item->len = (uint16_t)(1 + test_random(&seed) % (i % 9 == 0 ? BK_NAME_MAX : 12));
        for (size_t b = 0; b < item->len; b++) {
            uint8_t byte = (uint8_t)(test_random(&seed) >> 24);
            item->name[b] = (char)(byte == 0 || byte == '/' ? '\n' : byte);
        }
        if (!bk_entry_name_valid((const uint8_t *)item->name, item->len))
            item->name[0] = 'x';
    }
    qsort(items, count, sizeof *items, by_name);
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || by_name(&items[kept - 1], &items[i]) != 0)
            items[kept++] = items[i];
    return kept;
}

static void check_all(fixture_t *f, const bk_id_t *root, const item_t *items, size_t count)
{
    bk_tree_iter_t *iter;
    const bk_entry_t *entry;
    size_t seen = 0;
    OK(bk_tree_iter_open(f->repo, root, &f->ctl, &iter, &f->err), &f->err);
    for (;; seen++) {
        OK(bk_tree_iter_next(iter, &entry, &f->err), &f->err);
        if (entry == NULL)
            break;
        assert_true(seen < count);
        assert_int_equal(entry->name_len, items[seen].len);
        assert_memory_equal(entry->name, items[seen].name, items[seen].len);
        assert_true(entry->mtime == items[seen].mtime);
        assert_memory_equal(entry->content, "abc", 3);
    }
    assert_int_equal(seen, count);
    OK(bk_tree_iter_next(iter, &entry, &f->err), &f->err);
    assert_null(entry);
    bk_tree_iter_close(iter);
}

static void an_empty_directory_comes_back_empty(void **state)
{
    fixture_t f;
    bk_id_t root;
    (void)state;
    fixture_start(&f, true);
    bk_session_t *session = fixture_session(&f, true);
    assert_int_equal(build(&f, session, NULL, 0, &root), 0);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    check_all(&f, &root, NULL, 0);
    fixture_end(&f);
}

static void names_of_any_bytes_come_back_in_order(void **state)
{
    enum { COUNT = 30000 };
    fixture_t f;
    bk_id_t root;
    item_t *items = calloc(COUNT, sizeof *items);
    (void)state;
    assert_non_null(items);
    size_t count = any_names(items, COUNT, 42);
    assert_true(count > COUNT / 2);
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    assert_int_equal(build(&f, session, items, count, &root), count);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    check_all(&f, &root, items, count);
    free(items);
    fixture_end(&f);
}

/* A directory that grew and shrank has the root of one that was always so; each state shares most nodes with the last. */
static void the_root_tells_the_content_and_not_its_history(void **state)
{
    enum { COUNT = 5000, STEPS = 200 };
    fixture_t f;
    bk_id_t first, root, again;
    uint64_t seed = 7;
    item_t *items = number_names(COUNT), *now = number_names(COUNT);
    size_t count = COUNT;
    bk_session_stats_t before, after;
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    build(&f, session, items, COUNT, &first);
    bk_session_stats(session, &before);
    for (size_t step = 0; step < STEPS; step++) { /* take random ones out */
        size_t out = (size_t)(test_random(&seed) % count);
        memmove(&now[out], &now[out + 1], (count - out) * sizeof *now);
        count--;
        build(&f, session, now, count, &root);
        assert_false(bk_id_equal(&root, &first));
    }
    bk_session_stats(session, &after);
    /* A leaf and the branches above it, sometimes two leaves: not the directory. */
    assert_in_range((after.chunks_new - before.chunks_new), STEPS, STEPS * 5);
    memcpy(now, items, COUNT * sizeof *now);
    build(&f, session, now, COUNT, &again);
    assert_true(bk_id_equal(&first, &again));
    bk_session_abort(session);
    free(items);
    free(now);
    fixture_end(&f);
}

static void one_change_among_200000_rewrites_the_nodes_on_its_way(void **state)
{
    enum { COUNT = 200000 };
    fixture_t f;
    bk_id_t root;
    bk_session_stats_t before, after;
    item_t *items = number_names(COUNT);
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    build(&f, session, items, COUNT, &root);
    bk_session_stats(session, &before);
    assert_true(before.chunks_new > 100);
    items[COUNT / 3].mtime = 99;
    build(&f, session, items, COUNT, &root);
    bk_session_stats(session, &after);
    assert_in_range(after.chunks_new - before.chunks_new, 2, 4);
    bk_session_abort(session);
    free(items);
    fixture_end(&f);
}

/* Names whose hash asks for a cut at each of them must not make nodes of one entry. */
static void names_chosen_to_cut_everywhere_do_not_blow_up_the_tree(void **state)
{
    enum { COUNT = 4000 };
    fixture_t f;
    bk_id_t root;
    bk_session_stats_t stats;
    item_t *items = number_names(COUNT);
    size_t n = 0;
    (void)state;
    for (size_t i = 0; n < COUNT; i++) {
        items[n].len = (uint16_t)snprintf(items[n].name, sizeof items[n].name, "%012zu", i);
        n += (XXH3_64bits(items[n].name, items[n].len) & 0x7f) == 0;
    }
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    build(&f, session, items, COUNT, &root);
    bk_session_stats(session, &stats);
    assert_in_range(stats.chunks_new, 2, COUNT / 20);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    check_all(&f, &root, items, COUNT);
    free(items);
    fixture_end(&f);
}

static void the_longest_entries_come_back(void **state)
{
    enum { COUNT = 60 };
    fixture_t f;
    bk_id_t root;
    uint64_t entries, sum = 0;
    static bk_chunk_ref_t refs[BK_MAP_FANOUT];
    static char owner[255];
    (void)state;
    for (size_t i = 0; i < BK_MAP_FANOUT; i++)
        sum += refs[i].raw = (uint32_t)(i + 1);
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    bk_tree_builder_t *builder = bk_tree_builder_new(session);
    for (size_t i = 0; i < COUNT; i++) {
        char name[BK_NAME_MAX];
        memset(name, 'a', sizeof name);
        name[sizeof name - 1] = (char)('0' + i);
        bk_entry_t entry = {.name = (uint8_t *)name,
                            .name_len = sizeof name,
                            .type = BK_ENTRY_FILE,
                            .flags = BK_ENTRY_CHUNKS | BK_ENTRY_EXTENTS | BK_ENTRY_ATTRS,
                            .user = owner,
                            .user_len = 255,
                            .group = owner,
                            .group_len = 255,
                            .size = UINT64_MAX,
                            .data_bytes = sum,
                            .chunks = refs,
                            .chunk_count = BK_MAP_FANOUT};
        OK(bk_tree_builder_add(builder, &entry, &f.err), &f.err);
    }
    OK(bk_tree_builder_finish(builder, &root, &entries, &f.err), &f.err);
    bk_tree_builder_free(builder);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    bk_tree_iter_t *iter;
    const bk_entry_t *entry;
    size_t seen = 0;
    OK(bk_tree_iter_open(f.repo, &root, NULL, &iter, &f.err), &f.err);
    while (bk_tree_iter_next(iter, &entry, &f.err) == BK_OK && entry != NULL) {
        assert_int_equal(entry->chunk_count, BK_MAP_FANOUT);
        assert_int_equal(entry->chunks[BK_MAP_FANOUT - 1].raw, BK_MAP_FANOUT);
        seen++;
    }
    assert_int_equal(seen, COUNT);
    bk_tree_iter_close(iter);
    fixture_end(&f);
}

static void seek_finds_the_first_name_not_before(void **state)
{
    enum { COUNT = 20000 };
    fixture_t f;
    bk_id_t root;
    uint64_t seed = 5;
    bk_tree_iter_t *iter;
    const bk_entry_t *entry;
    item_t *items = calloc(COUNT, sizeof *items), wanted;
    (void)state;
    assert_non_null(items);
    size_t count = any_names(items, COUNT, 99);
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    build(&f, session, items, count, &root);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    OK(bk_tree_iter_open(f.repo, &root, NULL, &iter, &f.err), &f.err);
    for (size_t round = 0, at = 0; round < 4000; round++) {
        /* Names that are there, names between them, names before and behind all; anywhere, then a
         * little farther each time. */
        at = (at + (size_t)(test_random(&seed) % (round < 2000 ? count : 300))) % count;
        wanted = items[at];
        if (round % 3 == 1 && wanted.len < BK_NAME_MAX)
            wanted.name[wanted.len++] = '\1';
        else if (round % 7 == 2)
            wanted.name[0] = (char)test_random(&seed);
        size_t low = 0, high = count;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (by_name(&items[middle], &wanted) < 0)
                low = middle + 1;
            else
                high = middle;
        }
        OK(bk_tree_iter_seek(iter, wanted.name, wanted.len, &f.err), &f.err);
        for (size_t i = 0; i <= test_random(&seed) % 200; i++, low++) {
            OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
            if (low >= count) {
                assert_null(entry);
                break;
            }
            assert_non_null(entry);
            assert_int_equal(entry->name_len, items[low].len);
            assert_memory_equal(entry->name, items[low].name, entry->name_len);
        }
    }
    /* Behind all, after the end was reached and again; and back from there. */
    do
        OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
    while (entry != NULL);
    for (size_t round = 0; round < 3; round++) {
        memset(wanted.name, 0xff, BK_NAME_MAX);
        OK(bk_tree_iter_seek(iter, wanted.name, BK_NAME_MAX, &f.err), &f.err);
        OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
        assert_null(entry);
    }
    OK(bk_tree_iter_seek(iter, "", 0, &f.err), &f.err);
    OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
    assert_memory_equal(entry->name, items[0].name, items[0].len);
    bk_tree_iter_close(iter);
    free(items);
    fixture_end(&f);
}

/* --- nodes written by hand --- */

static void node_start(bk_buf_t *node, uint8_t kind, uint32_t count)
{
    bk_buf_reset(node);
    bk_buf_u8(node, kind);
    bk_buf_u8(node, 1);
    bk_buf_u32(node, count);
}

static void add_name(bk_buf_t *node, const char *name)
{
    item_t item = {.len = (uint16_t)strlen(name)};
    memcpy(item.name, name, item.len);
    bk_entry_t entry = entry_of(&item);
    bk_entry_encode(&entry, node);
}

static void add_child(bk_buf_t *node, const char *first, const bk_id_t *id, uint64_t below)
{
    bk_buf_u16(node, (uint16_t)strlen(first));
    bk_buf_add(node, first, strlen(first));
    bk_buf_add(node, id->b, BK_ID_SIZE);
    bk_buf_u64(node, below);
}

static bk_id_t put(fixture_t *f, bk_session_t *session, const bk_buf_t *node)
{
    bk_id_t id;
    OK(bk_session_put(session, BK_TYPE_TREE, false, node->data, node->len, &id, &f->err), &f->err);
    return id;
}

/* Read everything: BK_OK, or what stopped it. */
static bk_rc_t walk(fixture_t *f, const bk_id_t *root)
{
    bk_tree_iter_t *iter;
    const bk_entry_t *entry = NULL;
    bk_rc_t rc = bk_tree_iter_open(f->repo, root, NULL, &iter, &f->err);
    if (rc != BK_OK)
        return rc;
    do
        rc = bk_tree_iter_next(iter, &entry, &f->err);
    while (rc == BK_OK && entry != NULL);
    assert_int_equal(bk_tree_iter_next(iter, &entry, &f->err), rc); /* it stays so */
    bk_tree_iter_close(iter);
    return rc;
}

enum { BAD_MAX = 64 };

typedef struct {
    fixture_t f;
    bk_session_t *session;
    bk_buf_t node;
    bk_id_t leaf_ab, leaf_cd; /* {a, b} and {c, d} */
    struct {
        const char *why;
        bk_id_t root;
        bk_rc_t rc;
    } bad[BAD_MAX];
    size_t count;
} hostile_t;

static void expect(hostile_t *h, bk_rc_t rc, const char *why)
{
    assert_true(h->count < BAD_MAX);
    h->bad[h->count].why = why;
    h->bad[h->count].rc = rc;
    h->bad[h->count++].root = put(&h->f, h->session, &h->node);
}

static void leaf_of(hostile_t *h, const char *a, const char *b, uint32_t count)
{
    node_start(&h->node, 1, count);
    add_name(&h->node, a);
    if (b != NULL)
        add_name(&h->node, b);
}

static void hostile_leaves(hostile_t *h)
{
    leaf_of(h, "a", "b", 2);
    h->leaf_ab = put(&h->f, h->session, &h->node);
    expect(h, BK_OK, "a sound leaf");
    leaf_of(h, "c", "d", 2);
    h->leaf_cd = put(&h->f, h->session, &h->node);
    leaf_of(h, "b", "a", 2);
    expect(h, BK_CORRUPT, "wrong order");
    leaf_of(h, "a", "a", 2);
    expect(h, BK_CORRUPT, "the same name twice");
    leaf_of(h, "..", NULL, 1);
    expect(h, BK_CORRUPT, "the parent directory");
    leaf_of(h, "a/b", NULL, 1);
    expect(h, BK_CORRUPT, "a slash");
    leaf_of(h, "a", "b", 3);
    expect(h, BK_CORRUPT, "more entries promised");
    leaf_of(h, "a", "b", 1);
    expect(h, BK_CORRUPT, "bytes behind the end");
    leaf_of(h, "a", "b", 2);
    h->node.len--;
    expect(h, BK_CORRUPT, "cut off");
    leaf_of(h, "a", "b", UINT32_MAX);
    expect(h, BK_CORRUPT, "four billion entries promised");
    leaf_of(h, "a", "b", 2);
    h->node.data[0] = 3;
    expect(h, BK_CORRUPT, "unknown kind");
    leaf_of(h, "a", "b", 2);
    h->node.data[1] = 2;
    expect(h, BK_UNSUPPORTED, "newer version");
    bk_buf_reset(&h->node);
    bk_buf_u8(&h->node, 1);
    expect(h, BK_CORRUPT, "less than a header");
    node_start(&h->node, 1, 0);
    expect(h, BK_OK, "an empty leaf");
}

static void hostile_branches(hostile_t *h)
{
    bk_id_t nothing;
    memset(&nothing, 0xee, sizeof nothing);
    struct {
        const char *why;
        const char *first_a, *first_c;
        uint64_t below_a, below_c;
        uint32_t count;
        bk_rc_t rc;
    } cases[] = {
        {"a sound branch", "a", "c", 2, 2, 2, BK_OK},
        {"children in wrong order", "c", "a", 2, 2, 2, BK_CORRUPT},
        {"children of the same name", "a", "a", 2, 2, 2, BK_CORRUPT},
        {"a child that starts elsewhere", "a", "bb", 2, 2, 2, BK_CORRUPT},
        {"a child with more entries than said", "a", "c", 2, 1, 2, BK_CORRUPT},
        {"a child with fewer entries than said", "a", "c", 3, 2, 2, BK_CORRUPT},
        {"a child without entries", "a", "c", 2, 0, 2, BK_CORRUPT},
        {"a sum that overflows", "a", "c", UINT64_MAX, 2, 2, BK_CORRUPT},
        {"an impossible first name", "", "c", 2, 2, 2, BK_CORRUPT},
        {"more children promised", "a", "c", 2, 2, 3, BK_CORRUPT},
        {"fewer children promised", "a", "c", 2, 2, 1, BK_CORRUPT},
        {"no children", "a", "c", 2, 2, 0, BK_CORRUPT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        node_start(&h->node, 2, cases[i].count);
        add_child(&h->node, cases[i].first_a, &h->leaf_ab, cases[i].below_a);
        add_child(&h->node, cases[i].first_c, &h->leaf_cd, cases[i].below_c);
        expect(h, cases[i].rc, cases[i].why);
    }
    node_start(&h->node, 2, 2);
    add_child(&h->node, "a", &h->leaf_ab, 2);
    add_child(&h->node, "b", &h->leaf_cd, 2);
    expect(h, BK_CORRUPT, "children that overlap");
    node_start(&h->node, 2, 2);
    add_child(&h->node, "a", &h->leaf_ab, 2);
    add_child(&h->node, "c", &nothing, 2);
    expect(h, BK_CORRUPT, "a child that is stored nowhere");
    node_start(&h->node, 2, 2);
    add_child(&h->node, "a", &h->leaf_ab, 2);
    add_child(&h->node, "c", &h->leaf_cd, 2);
    bk_id_t both = put(&h->f, h->session, &h->node);
    for (uint64_t said = 3; said <= 5; said++) {
        node_start(&h->node, 2, 1);
        add_child(&h->node, "a", &both, said);
        expect(h, said == 4 ? BK_OK : BK_CORRUPT, "a branch of branches and its number of entries");
    }
    /* A chain of branches as deep as somebody likes. */
    bk_id_t below = h->leaf_ab;
    for (size_t level = 0; level < 300; level++) {
        node_start(&h->node, 2, 1);
        add_child(&h->node, "a", &below, 2);
        below = put(&h->f, h->session, &h->node);
    }
    expect(h, BK_CORRUPT, "branches without end");
}

static void nodes_that_contradict_themselves_are_refused(void **state)
{
    static hostile_t h;
    (void)state;
    memset(&h, 0, sizeof h);
    bk_buf_init(&h.node, 1u << 20);
    fixture_start(&h.f, false);
    h.session = fixture_session(&h.f, true);
    hostile_leaves(&h);
    hostile_branches(&h);
    /* Longer than any node may be, though each entry is sound. */
    node_start(&h.node, 1, 2000);
    for (unsigned i = 0; i < 2000; i++) {
        char name[16];
        snprintf(name, sizeof name, "%08u", i);
        add_name(&h.node, name);
    }
    assert_true(h.node.len > 128u << 10);
    bk_id_t long_root = put(&h.f, h.session, &h.node);
    OK(fixture_commit(&h.f, h.session, "full_1", NULL), &h.f.err);
    for (size_t i = 0; i < h.count; i++) {
        bk_rc_t rc = walk(&h.f, &h.bad[i].root);
        if (rc != h.bad[i].rc)
            fail_msg("%s: %s", h.bad[i].why, bk_rc_code(rc));
    }
    assert_int_equal(walk(&h.f, &long_root), BK_CORRUPT);
    bk_buf_free(&h.node);
    fixture_end(&h.f);
}

static void seek_reads_only_the_nodes_on_its_way(void **state)
{
    fixture_t f;
    bk_id_t nothing, other, ab, root;
    bk_buf_t node;
    bk_tree_iter_t *iter;
    const bk_entry_t *entry;
    (void)state;
    memset(&nothing, 0xee, sizeof nothing);
    memset(&other, 0xdd, sizeof other);
    bk_buf_init(&node, 1u << 16);
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    node_start(&node, 1, 2);
    add_name(&node, "m");
    add_name(&node, "n");
    ab = put(&f, session, &node);
    node_start(&node, 2, 3);
    add_child(&node, "a", &nothing, 1);
    add_child(&node, "m", &ab, 2);
    add_child(&node, "x", &other, 1);
    root = put(&f, session, &node);
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    OK(bk_tree_iter_open(f.repo, &root, NULL, &iter, &f.err), &f.err);
    OK(bk_tree_iter_seek(iter, "mm", 2, &f.err), &f.err);
    OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
    assert_memory_equal(entry->name, "n", 1);
    OK(bk_tree_iter_seek(iter, "m", 1, &f.err), &f.err);
    OK(bk_tree_iter_next(iter, &entry, &f.err), &f.err);
    assert_memory_equal(entry->name, "m", 1);
    bk_tree_iter_close(iter);
    bk_buf_free(&node);
    fixture_end(&f);
}

static void the_builder_refuses_what_no_reader_would_take(void **state)
{
    fixture_t f;
    bk_id_t root;
    uint64_t entries;
    static const char *const wrong[] = {"a", "9", "b/c", "..", ""};
    (void)state;
    fixture_start(&f, false);
    bk_session_t *session = fixture_session(&f, true);
    for (size_t i = 0; i < 5; i++) {
        bk_tree_builder_t *builder = bk_tree_builder_new(session);
        item_t first = {.name = "a", .len = 1}, second = {.len = (uint16_t)strlen(wrong[i])};
        memcpy(second.name, wrong[i], second.len);
        bk_entry_t entry = entry_of(&first);
        OK(bk_tree_builder_add(builder, &entry, &f.err), &f.err);
        entry = entry_of(&second);
        assert_int_not_equal(bk_tree_builder_add(builder, &entry, &f.err), BK_OK);
        assert_int_not_equal(bk_tree_builder_finish(builder, &root, &entries, &f.err), BK_OK);
        bk_tree_builder_free(builder);
    }
    bk_session_abort(session);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_directory_comes_back_empty),
        cmocka_unit_test(names_of_any_bytes_come_back_in_order),
        cmocka_unit_test(the_root_tells_the_content_and_not_its_history),
        cmocka_unit_test(one_change_among_200000_rewrites_the_nodes_on_its_way),
        cmocka_unit_test(names_chosen_to_cut_everywhere_do_not_blow_up_the_tree),
        cmocka_unit_test(the_longest_entries_come_back),
        cmocka_unit_test(seek_finds_the_first_name_not_before),
        cmocka_unit_test(nodes_that_contradict_themselves_are_refused),
        cmocka_unit_test(seek_reads_only_the_nodes_on_its_way),
        cmocka_unit_test(the_builder_refuses_what_no_reader_would_take),
    };
    return cmocka_run_group_tests_name("repo/tree", tests, NULL, NULL);
}
