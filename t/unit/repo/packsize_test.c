/*
 * t/unit/repo/packsize_test.c: packs grow with the repository, lanes then share them, and memory
 * does not grow with them.
 */
#include "unit/repo/repo_testing.h"

#include "repo/index.h"
#include "repo/repo_private.h"

#define LANES 3

/* Tell the index of packs that are nowhere: a repository of any size. */
static void pretend_packs(fixture_t *f, uint32_t count)
{
    char name[BK_STORAGE_NAME];
    uint64_t bytes;
    bk_pack_t *packs = calloc(count, sizeof *packs);
    const bk_pack_t **list = calloc(count, sizeof *list);
    bk_pack_entry_t *entries = calloc(count, sizeof *entries);
    assert_true(packs != NULL && list != NULL && entries != NULL);
    for (uint32_t i = 0; i < count; i++) {
        bk_random(&packs[i].name, sizeof packs[i].name);
        bk_random(&entries[i].id, sizeof entries[i].id);
        entries[i].offset = BK_OBJECT_HEADER;
        entries[i].stored = entries[i].raw = 1000;
        entries[i].type = BK_TYPE_FILE;
        packs[i].kind = BK_KIND_PACK;
        packs[i].entries = &entries[i];
        packs[i].count = 1;
        packs[i].bytes.len = 64u << 20;
        list[i] = &packs[i];
    }
    OK(bk_index_store(bk_repo_keyring(f->repo), bk_repo_uuid(f->repo), list, count, f->storage,
                      name, &bytes, NULL, &f->err),
       &f->err);
    free(entries);
    free(list);
    free(packs);
}

typedef struct {
    bk_session_t *session;
    uint32_t first, count, len;
    bk_id_t *ids;
    bk_rc_t rc;
    bk_err_t err;
} lane_t;

static void fill(uint32_t *out, uint32_t len, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;
    for (uint32_t i = 0; i < len / 4; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        out[i] = x;
    }
}

static void *put_chunks(void *arg)
{
    lane_t *lane = arg;
    uint32_t *data = malloc(lane->len);
    for (uint32_t i = 0; data != NULL && i < lane->count && lane->rc == BK_OK; i++) {
        fill(data, lane->len, lane->first + i);
        lane->rc = bk_session_put(lane->session, BK_TYPE_FILE, true, data, lane->len,
                                  &lane->ids[lane->first + i], &lane->err);
    }
    free(data);
    return NULL;
}

static bk_rc_t note_largest(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    uint64_t *largest = arg;
    (void)err;
    if (item->size > *largest)
        *largest = item->size;
    return BK_OK;
}

static void check_all(fixture_t *f, const bk_id_t *ids, uint32_t count, uint32_t len)
{
    uint32_t *data = malloc(len);
    bk_buf_t out;
    assert_non_null(data);
    bk_buf_init(&out, BK_CHUNK_MAX);
    for (uint32_t i = 0; i < count; i++) {
        bk_buf_reset(&out);
        OK(bk_repo_get(f->repo, &ids[i], &out, NULL, &f->err), &f->err);
        fill(data, len, i);
        assert_int_equal(out.len, len);
        assert_memory_equal(out.data, data, len);
    }
    bk_buf_free(&out);
    free(data);
}

/* So many MiB of content by several lanes into a repository of so many packs. */
static void the_largest_pack_has(uint32_t packs, uint64_t target, uint32_t mib, bool encrypted)
{
    fixture_t f;
    lane_t lanes[LANES];
    pthread_t threads[LANES];
    uint64_t largest = 0;
    uint32_t len = 1u << 20, each = mib / LANES;
    bk_id_t *ids = calloc((size_t)each * LANES, sizeof *ids);
    assert_non_null(ids);
    fixture_start(&f, encrypted);
    pretend_packs(&f, packs);
    bk_session_t *session = fixture_session(&f, true);
    for (uint32_t i = 0; i < LANES; i++) {
        lanes[i] =
            (lane_t){.session = session, .first = i * each, .count = each, .len = len, .ids = ids};
        assert_int_equal(pthread_create(&threads[i], NULL, put_chunks, &lanes[i]), 0);
    }
    for (uint32_t i = 0; i < LANES; i++) {
        pthread_join(threads[i], NULL);
        OK(lanes[i].rc, &lanes[i].err);
    }
    check_all(&f, ids, each * LANES, len); /* from packs that are open, too */
    OK(fixture_commit(&f, session, "full_1", NULL), &f.err);
    OK(bk_storage_list(f.storage, "packs/", note_largest, &largest, NULL, &f.err), &f.err);
    assert_in_range(largest, target - (2u << 20), target + (4u << 20));
    assert_true(largest <= BK_PACK_MAX);
    check_all(&f, ids, each * LANES, len);
    fixture_end(&f);
    free(ids);
}

static void packs_have_16_mib_in_a_small_repository(void **state)
{
    (void)state;
    the_largest_pack_has(4095, 16u << 20, 60, true);
}

static void packs_have_32_mib_from_256_gib_up(void **state)
{
    (void)state;
    the_largest_pack_has(4096, 32u << 20, 78, true);
}

static void packs_have_64_mib_from_2_tib_up(void **state)
{
    (void)state;
    the_largest_pack_has(32768, 64u << 20, 78, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_have_16_mib_in_a_small_repository),
        cmocka_unit_test(packs_have_32_mib_from_256_gib_up),
        cmocka_unit_test(packs_have_64_mib_from_2_tib_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
