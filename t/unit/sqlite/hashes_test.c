/*
 * t/unit/sqlite/hashes_test.c: the digest follows every change of a page and of the page count, and
 * a saved table comes back whole or not at all.
 */
#include "unit/testing.h"

#include <fcntl.h>
#include <unistd.h>

#include "sqlite/hashes.h"
#include "sqlite/source.h"

#define PAGE 65536u /* its lock page is the 16385th, near enough to be reached */

typedef struct {
    char *dir, path[300];
    bk_hashes_t h;
    bk_err_t err;
} table_t;

static int set_up(void **state)
{
    table_t *t = calloc(1, sizeof *t);
    t->dir = test_dir();
    snprintf(t->path, sizeof t->path, "%s/hashes", t->dir);
    bk_hashes_init(&t->h, PAGE);
    *state = t;
    return 0;
}

static int tear_down(void **state)
{
    table_t *t = *state;
    bk_hashes_free(&t->h);
    test_dir_remove(t->dir);
    free(t);
    return 0;
}

static uint64_t xor_of_all(const bk_hashes_t *h)
{
    uint64_t digest = 0;
    for (uint64_t p = 1; p <= h->count; p++)
        digest ^= bk_hashes_get(h, p);
    return digest;
}

static void the_digest_follows_every_change(void **state)
{
    table_t *t = *state;
    uint64_t seven;
    OK(bk_hashes_resize(&t->h, 7, &t->err), &t->err);
    seven = t->h.digest;
    assert_int_not_equal(bk_hashes_get(&t->h, 1), bk_hashes_get(&t->h, 2));
    for (uint64_t p = 1; p <= 7; p++) {
        uint64_t zero = bk_hashes_get(&t->h, p);
        bk_hashes_set(&t->h, p, p * 1000003);
        assert_int_equal(t->h.digest, xor_of_all(&t->h));
        bk_hashes_set(&t->h, p, zero);
    }
    assert_int_equal(t->h.digest, seven);
}

static void a_page_that_went_and_came_back_is_zeros(void **state)
{
    table_t *t = *state;
    OK(bk_hashes_resize(&t->h, 7, &t->err), &t->err);
    uint64_t seven = t->h.digest;
    bk_hashes_set(&t->h, 6, 99);
    uint64_t three = bk_hashes_resized(&t->h, 3);
    OK(bk_hashes_resize(&t->h, 3, &t->err), &t->err);
    assert_int_equal(t->h.digest, three);
    assert_int_equal(t->h.digest, xor_of_all(&t->h));
    assert_int_equal(bk_hashes_get(&t->h, 6), 0);
    assert_int_equal(bk_hashes_resized(&t->h, 7), seven);
    OK(bk_hashes_resize(&t->h, 7, &t->err), &t->err);
    assert_int_equal(t->h.digest, seven);
}

static void the_lock_page_counts_for_nothing(void **state)
{
    table_t *t = *state;
    uint64_t lock = bk_db_lock_page(PAGE);
    OK(bk_hashes_resize(&t->h, lock - 1, &t->err), &t->err);
    uint64_t before = t->h.digest;
    OK(bk_hashes_resize(&t->h, lock, &t->err), &t->err);
    assert_int_equal(bk_hashes_get(&t->h, lock), 0);
    assert_int_equal(t->h.digest, before);
}

static bk_hashes_state_t sample(void)
{
    return (bk_hashes_state_t){.epoch = {1, 2, 3},
                               .txid = 12,
                               .place = {.salt = {5, 6}, .frame = 7, .checksum = {8, 9}},
                               .seen = 1234567890123,
                               .looked = 1234567890012};
}

static void save_sample(table_t *t)
{
    bk_hashes_state_t s = sample();
    OK(bk_hashes_resize(&t->h, 40, &t->err), &t->err);
    bk_hashes_set(&t->h, 9, 4711);
    OK(bk_hashes_save(&t->h, &s, t->path, &t->err), &t->err);
}

static void a_saved_table_comes_back(void **state)
{
    table_t *t = *state;
    bk_hashes_t h = {0};
    bk_hashes_state_t s, expect = sample();
    assert_int_equal(bk_hashes_load(&h, &s, t->path, &t->err), BK_NOT_FOUND);
    save_sample(t);
    OK(bk_hashes_load(&h, &s, t->path, &t->err), &t->err);
    assert_memory_equal(s.epoch, expect.epoch, sizeof s.epoch);
    assert_int_equal(s.txid, 12);
    assert_memory_equal(&s.place, &expect.place, sizeof s.place);
    assert_int_equal(s.seen, expect.seen);
    assert_int_equal(s.looked, expect.looked);
    assert_int_equal(h.page_size, PAGE);
    assert_int_equal(h.count, 40);
    assert_int_equal(h.digest, t->h.digest);
    assert_memory_equal(h.of, t->h.of, 40 * 8);
    bk_hashes_free(&h);
}

static void no_damage_to_the_file_passes(void **state)
{
    table_t *t = *state;
    bk_hashes_t h = {0};
    bk_hashes_state_t s;
    uint8_t byte;
    save_sample(t);
    int fd = open(t->path, O_RDWR | O_CLOEXEC);
    off_t size = lseek(fd, 0, SEEK_END);
    assert_true(size > 40 * 8);
    for (off_t at = 0; at < size; at++) {
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        uint8_t other = byte ^ 0x10;
        assert_int_equal(pwrite(fd, &other, 1, at), 1);
        assert_int_equal(bk_hashes_load(&h, &s, t->path, &t->err), BK_CORRUPT);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    while (size-- > 0) {
        assert_int_equal(ftruncate(fd, size), 0);
        assert_int_equal(bk_hashes_load(&h, &s, t->path, &t->err), BK_CORRUPT);
    }
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_digest_follows_every_change, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_page_that_went_and_came_back_is_zeros, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_lock_page_counts_for_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_saved_table_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_damage_to_the_file_passes, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
