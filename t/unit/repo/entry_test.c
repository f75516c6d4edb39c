/*
 * t/unit/repo/entry_test.c: directory entries as bytes: everything comes back, nothing impossible is believed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "repo/tree.h"

typedef struct {
    bk_buf_t bytes;
    bk_chunk_ref_t *scratch;
    size_t cap;
    bk_entry_t got;
    bk_err_t err;
} box_t;

static bk_chunk_ref_t refs[BK_MAP_FANOUT];
static uint8_t many[BK_INLINE_MAX + 1];

static bk_id_t an_id(uint8_t fill)
{
    bk_id_t id;
    memset(id.b, fill, sizeof id.b);
    return id;
}

static bk_entry_t a_file(const char *name)
{
    return (bk_entry_t){.name = (const uint8_t *)name,
                        .name_len = (uint16_t)strlen(name),
                        .type = BK_ENTRY_FILE,
                        .mode = 0640,
                        .uid = 1000,
                        .gid = 4000000000u,
                        .user = "anna",
                        .user_len = 4,
                        .group = "",
                        .mtime = -1234567890123456789LL,
                        .ctime = 1234567890123456789LL,
                        .device = 1ull << 63,
                        .inode = UINT64_MAX,
                        .links = 3,
                        .sha256 = an_id(9)};
}

static bk_rc_t decode(box_t *box, const void *bytes, size_t len)
{
    bk_cur_t cur = bk_cur(bytes, len);
    bk_err_clear(&box->err);
    bk_rc_t rc = bk_entry_decode(&cur, &box->scratch, &box->cap, &box->got, &box->err);
    if (rc == BK_OK)
        assert_int_equal(bk_cur_left(&cur), 0);
    return rc;
}

static bk_rc_t there_and_back(box_t *box, const bk_entry_t *entry)
{
    bk_buf_reset(&box->bytes);
    bk_entry_encode(entry, &box->bytes);
    assert_true(bk_buf_ok(&box->bytes));
    return decode(box, box->bytes.data, box->bytes.len);
}

static int set_up(void **state)
{
    static box_t box;
    memset(&box, 0, sizeof box);
    bk_buf_init(&box.bytes, 1u << 20);
    *state = &box;
    return 0;
}

static int tear_down(void **state)
{
    box_t *box = *state;
    bk_buf_free(&box->bytes);
    free(box->scratch);
    return 0;
}

static void every_member_of_a_file_comes_back(void **state)
{
    box_t *box = *state;
    bk_entry_t e = a_file("a\n\xff b");
    e.flags = BK_ENTRY_CHUNKS | BK_ENTRY_EXTENTS | BK_ENTRY_ATTRS | BK_ENTRY_DAMAGED;
    e.size = 1ull << 40;
    e.chunks = refs;
    e.chunk_count = 2;
    refs[0] = (bk_chunk_ref_t){.id = an_id(1), .raw = 5};
    refs[1] = (bk_chunk_ref_t){.id = an_id(2), .raw = BK_CHUNK_MAX};
    e.data_bytes = 5 + (uint64_t)BK_CHUNK_MAX;
    e.extents = an_id(3);
    e.attrs = an_id(4);
    assert_int_equal(there_and_back(box, &e), BK_OK);
    const bk_entry_t *g = &box->got;
    assert_int_equal(g->name_len, e.name_len);
    assert_memory_equal(g->name, e.name, e.name_len);
    assert_int_equal(g->type, e.type);
    assert_int_equal(g->flags, e.flags);
    assert_int_equal(g->mode, e.mode);
    assert_int_equal(g->uid, e.uid);
    assert_int_equal(g->gid, e.gid);
    assert_int_equal(g->user_len, 4);
    assert_memory_equal(g->user, "anna", 4);
    assert_int_equal(g->group_len, 0);
    assert_true(g->mtime == e.mtime && g->ctime == e.ctime && g->size == e.size);
    assert_true(g->device == e.device && g->inode == e.inode && g->links == e.links);
    assert_true(bk_id_equal(&g->sha256, &e.sha256) && bk_id_equal(&g->extents, &e.extents) &&
                bk_id_equal(&g->attrs, &e.attrs));
    assert_true(g->data_bytes == e.data_bytes);
    assert_int_equal(g->chunk_count, 2);
    assert_memory_equal(g->chunks[1].id.b, refs[1].id.b, BK_ID_SIZE);
    assert_int_equal(g->chunks[0].raw, 5);
    assert_int_equal(g->chunks[1].raw, BK_CHUNK_MAX);
}

static void each_type_comes_back(void **state)
{
    box_t *box = *state;
    bk_entry_t dir = a_file("d"), link = a_file("l"), fifo = a_file("p"), small = a_file("i"),
               large = a_file("m"), empty = a_file("e");
    dir.type = BK_ENTRY_DIR;
    dir.child = an_id(5);
    dir.children = 77;
    assert_int_equal(there_and_back(box, &dir), BK_OK);
    assert_true(bk_id_equal(&box->got.child, &dir.child) && box->got.children == 77);

    link.type = BK_ENTRY_LINK;
    link.target = (const uint8_t *)"../x/\xfe";
    link.target_len = 6;
    assert_int_equal(there_and_back(box, &link), BK_OK);
    assert_int_equal(box->got.target_len, 6);
    assert_memory_equal(box->got.target, link.target, 6);

    fifo.type = BK_ENTRY_FIFO;
    fifo.flags = BK_ENTRY_ATTRS;
    fifo.attrs = an_id(8);
    assert_int_equal(there_and_back(box, &fifo), BK_OK);
    assert_true(bk_id_equal(&box->got.attrs, &fifo.attrs));

    small.flags = BK_ENTRY_INLINE;
    small.content = many;
    small.content_len = BK_INLINE_MAX;
    small.size = BK_INLINE_MAX;
    assert_int_equal(there_and_back(box, &small), BK_OK);
    assert_int_equal(box->got.content_len, BK_INLINE_MAX);
    assert_memory_equal(box->got.content, many, BK_INLINE_MAX);

    large.flags = BK_ENTRY_MAP;
    large.size = 1ull << 34;
    large.map = an_id(6);
    large.map_count = 5000;
    large.map_depth = 1;
    assert_int_equal(there_and_back(box, &large), BK_OK);
    assert_true(bk_id_equal(&box->got.map, &large.map) && box->got.map_count == 5000);
    assert_int_equal(box->got.map_depth, 1);

    assert_int_equal(there_and_back(box, &empty), BK_OK);
}

static void names_that_would_leave_the_directory_are_refused(void **state)
{
    static const struct {
        const char *bytes;
        uint16_t len;
    } bad[] = {{"", 0}, {".", 1}, {"..", 2}, {"a/b", 3}, {"/", 1}, {"a\0b", 3}};
    box_t *box = *state;
    char longest[BK_NAME_MAX + 1];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bk_entry_t e = a_file("x");
        e.name = (const uint8_t *)bad[i].bytes;
        e.name_len = bad[i].len;
        assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    }
    bk_entry_t e = a_file("x");
    memset(longest, 'n', sizeof longest);
    e.name = (const uint8_t *)longest;
    e.name_len = BK_NAME_MAX;
    assert_int_equal(there_and_back(box, &e), BK_OK);
    e.name_len = BK_NAME_MAX + 1;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e = a_file("...");
    assert_int_equal(there_and_back(box, &e), BK_OK);
}

static void impossible_content_is_refused(void **state)
{
    box_t *box = *state;
    bk_entry_t e;

    e = a_file("no content though it has bytes");
    e.size = 1;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);

    e = a_file("two contents");
    e.flags = BK_ENTRY_INLINE | BK_ENTRY_CHUNKS;
    e.content = many;
    e.chunks = refs;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);

    e = a_file("inline of another length");
    e.flags = BK_ENTRY_INLINE;
    e.content = many;
    e.content_len = 10;
    e.size = 11;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);

    e = a_file("inline too long");
    e.flags = BK_ENTRY_INLINE;
    e.content = many;
    e.content_len = BK_INLINE_MAX + 1;
    e.size = BK_INLINE_MAX + 1;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);

    e = a_file("chunks that do not add up");
    e.flags = BK_ENTRY_CHUNKS;
    e.chunks = refs;
    e.chunk_count = 1;
    refs[0] = (bk_chunk_ref_t){.id = an_id(1), .raw = 5};
    e.size = 6;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e.size = 5;
    assert_int_equal(there_and_back(box, &e), BK_OK);

    refs[0].raw = BK_CHUNK_MAX + 1;
    e.size = BK_CHUNK_MAX + 1;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    refs[0].raw = 0;
    e.size = 0;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);

    e = a_file("more data than bytes");
    e.flags = BK_ENTRY_EXTENTS;
    e.size = 4;
    e.data_bytes = 5;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);

    e = a_file("a map of the wrong depth");
    e.flags = BK_ENTRY_MAP;
    e.size = 1ull << 30;
    e.map_count = 5000;
    e.map_depth = 0;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e.map_depth = 2;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e.map_depth = 1;
    assert_int_equal(there_and_back(box, &e), BK_OK);
}

static void impossible_flags_modes_and_types_are_refused(void **state)
{
    box_t *box = *state;
    bk_entry_t e = a_file("x");
    e.type = 0;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e.type = 5;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e = a_file("x");
    e.mode = 010000;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e = a_file("x");
    e.flags = 64;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e = a_file("x");
    e.type = BK_ENTRY_DIR;
    e.flags = BK_ENTRY_CHUNKS;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e = a_file("x");
    e.type = BK_ENTRY_DIR;
    e.size = 1;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e = a_file("x");
    e.type = BK_ENTRY_LINK;
    e.target = (const uint8_t *)"";
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
    e.target = (const uint8_t *)"a\0b";
    e.target_len = 3;
    assert_int_equal(there_and_back(box, &e), BK_CORRUPT);
}

/* Whatever is cut off anywhere is noticed; and no byte of the header can make it read outside. */
static void a_cut_off_entry_is_refused_at_every_length(void **state)
{
    box_t *box = *state;
    bk_entry_t e = a_file("name");
    e.flags = BK_ENTRY_CHUNKS | BK_ENTRY_EXTENTS | BK_ENTRY_ATTRS;
    e.chunks = refs;
    e.chunk_count = 3;
    for (size_t i = 0; i < 3; i++)
        refs[i] = (bk_chunk_ref_t){.id = an_id((uint8_t)i), .raw = 100};
    e.data_bytes = 300;
    e.size = 1000;
    assert_int_equal(there_and_back(box, &e), BK_OK);
    size_t len = box->bytes.len;
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *exact = malloc(cut > 0 ? cut : 1);
        assert_non_null(exact);
        memcpy(exact, box->bytes.data, cut);
        assert_int_equal(decode(box, exact, cut), BK_CORRUPT);
        free(exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_member_of_a_file_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(each_type_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(names_that_would_leave_the_directory_are_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(impossible_content_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(impossible_flags_modes_and_types_are_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_cut_off_entry_is_refused_at_every_length, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests_name("repo/entry", tests, NULL, NULL);
}
