/*
 * t/unit/repo/segment_test.c: index segments: searching, merging, and refusing what is not one.
 */
#include "unit/testing.h"

#include <fcntl.h>
#include <xxhash.h>

#include "repo/segment.h"

#define HEADER  24
#define FAN_OUT 1024
#define RECORD  48 /* of packs and of entries */

typedef struct {
    bk_pack_t packs[4];
    const bk_pack_t *list[4];
    bk_err_t err;
} fixture_t;

static int set_up(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    for (size_t i = 0; i < 4; i++) {
        f->list[i] = &f->packs[i];
        f->packs[i].kind = i == 3 ? BK_KIND_META : BK_KIND_PACK;
        f->packs[i].bytes.len = BK_PACK_MAX;
        test_fill(f->packs[i].name.b, BK_ID_SIZE, i + 1);
    }
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture_t *f = *state;
    for (size_t i = 0; i < 4; i++)
        free(f->packs[i].entries);
    free(f);
    return 0;
}

static void add(fixture_t *f, size_t pack, const bk_id_t *id, uint32_t number)
{
    bk_pack_t *p = &f->packs[pack];
    if (p->count % 64 == 0)
        p->entries = realloc(p->entries, (p->count + 64) * sizeof *p->entries);
    p->entries[p->count++] = (bk_pack_entry_t){.id = *id,
                                               .offset = 80 + number,
                                               .stored = number,
                                               .raw = number % (BK_CHUNK_MAX + 1),
                                               .type = (uint8_t)(1 + number % 5),
                                               .codec = (uint8_t)(number % 3)};
}

static bk_segment_t *segment(fixture_t *f, size_t packs, const char *name)
{
    bk_buf_t out;
    bk_segment_t *s = NULL;
    bk_buf_init(&out, BK_SEGMENT_MAX);
    OK(bk_index_encode(f->list, packs, 1760538600000000000, &out, &f->err), &f->err);
    OK(bk_segment_take(name, out.data, out.len, &s, &f->err), &f->err);
    return s;
}

static bool found(const bk_segment_t *s, const bk_id_t *id, bk_location_t *where)
{
    uint32_t n = bk_segment_lower(s, id);
    return bk_segment_has(s, n, id) && bk_segment_entry(s, n, where);
}

/* Ids of several shapes: spread, crowded at one place, next to each other. */
static void make_id(bk_id_t *id, int shape, uint32_t number)
{
    memset(id, 0, sizeof *id);
    if (shape == 0) {
        test_fill(id->b, BK_ID_SIZE, number + 1);
    } else if (shape == 1) {
        memset(id->b, 0xff, 28);
        bk_put_u32(id->b + 28, number * 2654435761u);
    } else if (shape == 2) {
        id->b[0] = 7;
        id->b[31] = (uint8_t)number;
        id->b[30] = (uint8_t)(number >> 8);
    } else { /* half of them at the start, half at the end of one first byte */
        id->b[0] = 0x80;
        memset(id->b + 1, number % 2 == 0 ? 0 : 0xff, 20);
        bk_put_u32(id->b + 28, number);
    }
}

static void every_chunk_is_found_and_no_other(void **state)
{
    fixture_t *f = *state;
    static const uint32_t counts[] = {0, 1, 2, 3, 17, 256, 3000};
    for (int shape = 0; shape < 4; shape++) {
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            bk_location_t where;
            bk_id_t id;
            for (uint32_t n = 0; n < counts[c]; n++) {
                make_id(&id, shape, 2 * n);
                add(f, n % 4, &id, n);
            }
            bk_segment_t *s = segment(f, 4, "x");
            assert_int_equal(s->entries, counts[c]);
            for (uint32_t n = 0; n < counts[c]; n++) {
                make_id(&id, shape, 2 * n);
                assert_true(found(s, &id, &where));
                assert_memory_equal(where.entry.id.b, id.b, BK_ID_SIZE);
                assert_memory_equal(where.pack.b, f->packs[n % 4].name.b, BK_ID_SIZE);
                assert_int_equal(where.kind, n % 4 == 3 ? BK_KIND_META : BK_KIND_PACK);
                assert_int_equal(where.pack_size, BK_PACK_MAX);
                assert_int_equal(where.entry.offset, 80 + n);
                assert_int_equal(where.entry.stored, n);
                assert_int_equal(where.entry.raw, n);
                assert_int_equal(where.entry.type, 1 + n % 5);
                assert_int_equal(where.entry.codec, n % 3);
                make_id(&id, shape, 2 * n + 1);
                assert_false(found(s, &id, &where));
            }
            memset(&id, 0, sizeof id);
            assert_false(found(s, &id, &where));
            memset(&id, 0xff, sizeof id);
            assert_false(found(s, &id, &where));
            bk_segment_unref(s);
            for (size_t i = 0; i < 4; i++)
                f->packs[i].count = 0;
        }
    }
}

static void the_largest_values_come_back(void **state)
{
    fixture_t *f = *state;
    bk_id_t id = {{9}};
    bk_location_t where;
    add(f, 0, &id, 0);
    f->packs[0].entries[0] = (bk_pack_entry_t){.id = id,
                                               .offset = BK_PACK_MAX - 5,
                                               .stored = 5,
                                               .raw = BK_CHUNK_MAX,
                                               .type = BK_TYPE_BLOB,
                                               .codec = BK_CODEC_GZIP};
    bk_segment_t *s = segment(f, 1, "x");
    assert_true(found(s, &id, &where));
    assert_int_equal(where.entry.offset, BK_PACK_MAX - 5);
    assert_int_equal(where.entry.raw, BK_CHUNK_MAX);
    assert_int_equal(where.entry.type, BK_TYPE_BLOB);
    assert_int_equal(where.entry.codec, BK_CODEC_GZIP);
    bk_segment_unref(s);
}

static void a_chunk_in_two_packs_has_one_entry(void **state)
{
    fixture_t *f = *state;
    bk_id_t id = {{9}};
    add(f, 0, &id, 1);
    add(f, 1, &id, 2);
    bk_segment_t *s = segment(f, 2, "x");
    assert_int_equal(s->entries, 1);
    assert_int_equal(s->packs, 2);
    bk_segment_unref(s);
}

/* --- what is no segment --- */

static uint8_t *encode(fixture_t *f, size_t *len)
{
    static const char *const names[] = {"index/a", "index/bcd"};
    bk_buf_t out;
    for (uint32_t n = 0; n < 10; n++) {
        bk_id_t id;
        make_id(&id, 0, n);
        add(f, n % 2, &id, n);
    }
    bk_buf_init(&out, 1u << 16);
    OK(bk_segment_encode(f->list, 2, 0, names, 2, &out, &f->err), &f->err);
    *len = out.len;
    return out.data;
}

static void seal(uint8_t *bytes, size_t len)
{
    bk_put_u64(bytes + len - 8, XXH64(bytes, len - 8, 0));
}

static void every_flipped_bit_is_found_by_the_checksum(void **state)
{
    fixture_t *f = *state;
    size_t len;
    uint8_t *bytes = encode(f, &len);
    OK(bk_index_check(bytes, len, &f->err), &f->err);
    for (size_t bit = 0; bit < len * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        bk_rc_t rc = bk_index_check(bytes, len, &f->err);
        assert_true(rc == BK_CORRUPT || rc == BK_UNSUPPORTED);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy, bytes, cut);
        assert_int_equal(bk_index_check(copy, cut, &f->err), BK_CORRUPT);
        free(copy);
    }
    free(bytes);
}

/* Somebody who makes the checksum right gets a segment whose every entry lies in its pack, or none. */
static void what_passes_the_check_can_be_searched(void **state)
{
    fixture_t *f = *state;
    size_t len, passed = 0;
    uint8_t *bytes = encode(f, &len);
    for (size_t bit = 0; bit < (len - 8) * 8; bit++) {
        bk_segment_t *s = NULL;
        bk_location_t where;
        uint8_t *copy = malloc(len);
        memcpy(copy, bytes, len);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        seal(copy, len);
        if (bk_segment_take("x", copy, len, &s, &f->err) != BK_OK)
            continue;
        passed++;
        assert_int_equal(s->entries, 10);
        for (uint32_t n = 0; n < s->entries; n++) {
            assert_true(bk_segment_entry(s, n, &where));
            assert_true((uint64_t)where.entry.offset + where.entry.stored <= where.pack_size);
            assert_true(where.pack_size <= BK_PACK_MAX && where.entry.raw <= BK_CHUNK_MAX);
            assert_int_equal(bk_segment_lower(s, &where.entry.id), n);
        }
        bk_segment_unref(s);
    }
    assert_in_range(passed, 1, (len - 8) * 8 - 1);
    free(bytes);
}

/* A u32 at an offset is replaced, the checksum made right. */
static bk_rc_t with(const uint8_t *bytes, size_t len, size_t at, uint32_t value)
{
    bk_err_t err = {0};
    uint8_t *copy = malloc(len);
    memcpy(copy, bytes, len);
    bk_put_u32(copy + at, value);
    seal(copy, len);
    bk_rc_t rc = bk_index_check(copy, len, &err);
    assert_true(rc == BK_OK || err.text[0] != '\0');
    free(copy);
    return rc;
}

static void each_field_is_checked(void **state)
{
    fixture_t *f = *state;
    size_t len, packs = HEADER + FAN_OUT, entries = packs + 2 * RECORD;
    size_t names = entries + 10 * RECORD;
    uint8_t *bytes = encode(f, &len);
    assert_int_equal(with(bytes, len, 8, 1), BK_OK);
    assert_int_equal(with(bytes, len, 8, 2), BK_UNSUPPORTED);
    for (size_t at = 12; at <= 20; at += 4) { /* packs, entries, superseded */
        uint32_t now = bk_get_u32(bytes + at);
        assert_int_equal(with(bytes, len, at, now - 1), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at, now + 1), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at, UINT32_MAX), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at, 0x80000000u), BK_CORRUPT);
    }
    for (size_t i = 0; i < 256; i++)
        assert_int_equal(with(bytes, len, HEADER + 4 * i, 11), BK_CORRUPT);
    /* The pack is shorter than its entries say, or longer than any pack. */
    assert_int_equal(with(bytes, len, packs + 32, 80), BK_CORRUPT);
    assert_int_equal(with(bytes, len, packs + 32, BK_PACK_MAX + 1), BK_CORRUPT);
    assert_int_equal(with(bytes, len, packs + 36, 3), BK_CORRUPT); /* kind */
    assert_int_equal(with(bytes, len, packs + 36, 0), BK_CORRUPT);
    for (size_t n = 0; n < 10; n++) {
        size_t at = entries + n * RECORD;
        uint32_t last = bk_get_u32(bytes + at + 44);
        assert_int_equal(with(bytes, len, at + 32, 2), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 32, UINT32_MAX), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 36, BK_PACK_MAX + 1), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 36, UINT32_MAX), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 40, UINT32_MAX), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 44, (last & 0xff000000u) | (BK_CHUNK_MAX + 1)),
                         BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 44, last & 0x0fffffffu), BK_CORRUPT); /* type 0 */
        assert_int_equal(with(bytes, len, at + 44, last | 0x60000000u), BK_CORRUPT);
        assert_int_equal(with(bytes, len, at + 44, last | 0x03000000u), BK_CORRUPT); /* codec 3 */
    }
    uint32_t name = bk_get_u32(bytes + names);
    assert_int_equal(name & 0xff, 7);
    for (uint32_t n = 0; n < 256; n++)
        assert_int_equal(with(bytes, len, names, (name & ~0xffu) | n), n == 7 ? BK_OK : BK_CORRUPT);
    free(bytes);
}

static void entries_out_of_order_are_refused(void **state)
{
    fixture_t *f = *state;
    size_t len, entries = HEADER + FAN_OUT + 2 * RECORD;
    uint8_t *bytes = encode(f, &len), save[RECORD];
    for (size_t n = 0; n + 1 < 10; n++) {
        uint8_t *a = bytes + entries + n * RECORD, *b = a + RECORD;
        memcpy(save, b, RECORD);
        memcpy(b, a, RECORD); /* the same id twice */
        seal(bytes, len);
        assert_int_equal(bk_index_check(bytes, len, &f->err), BK_CORRUPT);
        memcpy(b, a, RECORD);
        memcpy(a, save, RECORD); /* and exchanged */
        seal(bytes, len);
        assert_int_equal(bk_index_check(bytes, len, &f->err), BK_CORRUPT);
        memcpy(a, b, RECORD);
        memcpy(b, save, RECORD);
    }
    seal(bytes, len);
    OK(bk_index_check(bytes, len, &f->err), &f->err);
    free(bytes);
}

/* --- merges --- */

typedef struct {
    char *dir;
    char path[300];
} place_t;

static place_t make_place(void)
{
    place_t p = {.dir = test_dir()};
    snprintf(p.path, sizeof p.path, "%s/merge", p.dir);
    return p;
}

/* Segment k has 50 chunks of its own and one that all have. */
static bk_segment_t *numbered(fixture_t *f, uint32_t k, const bk_id_t *common)
{
    char name[32];
    bk_id_t id;
    f->packs[0].count = f->packs[1].count = 0;
    bk_put_u32(f->packs[0].name.b, k);
    bk_put_u32(f->packs[1].name.b, k);
    for (uint32_t n = 0; n < 50; n++) {
        make_id(&id, 0, 1000 * k + n);
        add(f, n % 2, &id, n);
    }
    add(f, 1, common, k);
    snprintf(name, sizeof name, "index/%u", k);
    return segment(f, 2, name);
}

static size_t count_copies(const bk_segment_t *s, const bk_id_t *id, uint64_t *stored)
{
    size_t copies = 0;
    bk_location_t where;
    *stored = 0;
    for (uint32_t n = bk_segment_lower(s, id); bk_segment_has(s, n, id); n++, copies++) {
        assert_true(bk_segment_entry(s, n, &where));
        *stored = 100 * *stored + where.entry.stored;
    }
    return copies;
}

static void a_merge_has_everything_of_its_inputs(void **state)
{
    fixture_t *f = *state;
    place_t p = make_place();
    bk_id_t common, id;
    bk_segment_t *inputs[5], *merge = NULL, *second[2], *both = NULL;
    bk_location_t where;
    uint64_t stored;
    test_fill(common.b, BK_ID_SIZE, 99999);
    for (uint32_t k = 0; k < 5; k++)
        inputs[k] = numbered(f, k + 1, &common);
    OK(bk_segment_merge(inputs, 5, p.path, &f->err), &f->err);
    OK(bk_segment_map("m", p.path, &merge, &f->err), &f->err);
    assert_int_equal(merge->entries, 5 * 51);
    assert_int_equal(merge->packs, 10);
    assert_int_equal(merge->superseded, 5);
    for (uint32_t k = 1; k <= 5; k++) {
        for (uint32_t n = 0; n < 50; n++) {
            make_id(&id, 0, 1000 * k + n);
            assert_true(found(merge, &id, &where));
            assert_int_equal(where.entry.stored, n);
            assert_int_equal(bk_get_u32(where.pack.b), k);
            assert_memory_equal(where.pack.b + 4, f->packs[n % 2].name.b + 4, BK_ID_SIZE - 4);
        }
    }
    /* Every copy of a chunk stays, in the order of the inputs. */
    assert_int_equal(count_copies(merge, &common, &stored), 5);
    assert_int_equal(stored, 102030405);
    /* Merged once more, it still names the stored segments. */
    second[0] = merge;
    second[1] = numbered(f, 6, &common);
    OK(bk_segment_merge(second, 2, p.path, &f->err), &f->err);
    OK(bk_segment_map("m2", p.path, &both, &f->err), &f->err);
    assert_int_equal(both->entries, 6 * 51);
    assert_int_equal(both->superseded, 6);
    assert_int_equal(count_copies(both, &common, &stored), 6);
    bk_cur_t cur = bk_segment_superseded(both);
    for (char k = '1'; k <= '6'; k++) {
        assert_int_equal(bk_cur_u8(&cur), 7);
        const uint8_t *name = bk_cur_bytes(&cur, 7);
        assert_memory_equal(name, "index/", 6);
        assert_int_equal(name[6], k);
    }
    assert_true(bk_cur_ok(&cur) && bk_cur_left(&cur) == 0);
    for (uint32_t k = 0; k < 5; k++)
        bk_segment_unref(inputs[k]);
    bk_segment_unref(merge);
    bk_segment_unref(second[1]);
    bk_segment_unref(both);
    test_dir_remove(p.dir);
}

static void a_merge_may_have_empty_inputs(void **state)
{
    fixture_t *f = *state;
    place_t p = make_place();
    bk_id_t id = {{1}};
    bk_segment_t *inputs[3], *merge = NULL;
    bk_location_t where;
    inputs[0] = segment(f, 0, "index/a");
    inputs[2] = segment(f, 1, "index/c");
    add(f, 0, &id, 5);
    inputs[1] = segment(f, 1, "index/b");
    OK(bk_segment_merge(inputs, 3, p.path, &f->err), &f->err);
    OK(bk_segment_map("m", p.path, &merge, &f->err), &f->err);
    assert_int_equal(merge->entries, 1);
    assert_true(found(merge, &id, &where));
    for (size_t i = 0; i < 3; i++)
        bk_segment_unref(inputs[i]);
    bk_segment_unref(merge);
    test_dir_remove(p.dir);
}

static void a_damaged_file_is_not_mapped(void **state)
{
    fixture_t *f = *state;
    place_t p = make_place();
    bk_segment_t *s = NULL;
    size_t len;
    uint8_t *bytes = encode(f, &len);
    for (size_t at = 0; at < len; at += 7) {
        bytes[at] ^= 4;
        OK(bk_publish_cache(AT_FDCWD, p.path, 0600, bytes, len, &f->err), &f->err);
        assert_int_not_equal(bk_segment_map("x", p.path, &s, &f->err), BK_OK);
        bytes[at] ^= 4;
        OK(bk_publish_cache(AT_FDCWD, p.path, 0600, bytes, at, &f->err), &f->err);
        assert_int_equal(bk_segment_map("x", p.path, &s, &f->err), BK_CORRUPT);
    }
    assert_int_equal(bk_segment_map("x", p.dir, &s, &f->err), BK_CORRUPT);
    assert_int_equal(unlink(p.path), 0);
    assert_int_equal(bk_segment_map("x", p.path, &s, &f->err), BK_NOT_FOUND);
    assert_int_equal(mkfifo(p.path, 0600), 0);
    assert_int_equal(bk_segment_map("x", p.path, &s, &f->err), BK_CORRUPT);
    assert_null(s);
    free(bytes);
    test_dir_remove(p.dir);
}

static size_t choose(const uint32_t *sizes, size_t count, uint32_t *left, size_t *left_count)
{
    bk_segment_t segments[64], *list[64];
    for (size_t i = 0; i < count; i++) {
        segments[i] = (bk_segment_t){
            .name = (char *)(uintptr_t) "x", .entries = sizes[i], .len = sizes[i] * 48ull + 1056};
        list[i] = &segments[i];
    }
    size_t chosen = bk_segment_choose(list, count);
    *left_count = count - chosen;
    for (size_t i = 0; i < *left_count; i++)
        left[i] = list[chosen + i]->entries;
    return chosen;
}

static void what_is_not_merged_at_least_doubles(void **state)
{
    (void)state;
    uint32_t left[64];
    size_t count;
    assert_int_equal(choose((uint32_t[]){5, 5, 5, 5}, 4, left, &count), 4);
    assert_int_equal(choose((uint32_t[]){100, 10, 10, 10}, 4, left, &count), 3);
    assert_int_equal(left[0], 100);
    assert_int_equal(choose((uint32_t[]){8, 4, 2, 1}, 4, left, &count), 0);
    assert_int_equal(choose((uint32_t[]){8, 4, 2, 1, 1}, 5, left, &count), 5);
    assert_int_equal(choose((uint32_t[]){0, 0, 7}, 3, left, &count), 2);
    assert_int_equal(choose(NULL, 0, left, &count), 0);
    /* Never more than a segment can hold: 22 million entries. */
    assert_int_equal(choose((uint32_t[]){15000000, 15000000}, 2, left, &count), 0);
    for (uint64_t seed = 1; seed < 200; seed++) {
        uint32_t sizes[60];
        uint64_t random = seed * 88172645463325252u, sum = 0;
        for (size_t i = 0; i < 60; i++)
            sum += sizes[i] = (uint32_t)(test_random(&random) >> (46 + test_random(&random) % 18));
        choose(sizes, 60, left, &count);
        assert_true(count <= 20);
        /* Each that stays is larger than all smaller ones together. */
        for (size_t i = count; i-- > 0;) {
            sum -= left[i];
            assert_true(left[i] > sum);
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_chunk_is_found_and_no_other),
        TEST(the_largest_values_come_back),
        TEST(a_chunk_in_two_packs_has_one_entry),
        TEST(every_flipped_bit_is_found_by_the_checksum),
        TEST(what_passes_the_check_can_be_searched),
        TEST(each_field_is_checked),
        TEST(entries_out_of_order_are_refused),
        TEST(a_merge_has_everything_of_its_inputs),
        TEST(a_merge_may_have_empty_inputs),
        TEST(a_damaged_file_is_not_mapped),
        TEST(what_is_not_merged_at_least_doubles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
