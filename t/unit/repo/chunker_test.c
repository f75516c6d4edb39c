/*
 * t/unit/repo/chunker_test.c: where streams are cut.  Different cuts would be no error, only a repository that stores
 * everything twice; so the cuts themselves are tested.
 */
#include "unit/testing.h"

#include "crypto/keyring.h"
#include "repo/chunker.h"
#include "repo/format.h"

#define DATA     (24u << 20)
#define CUTS_MAX 64

typedef struct {
    size_t ends[CUTS_MAX]; /* offsets behind each chunk */
    size_t count;
} cuts_t;

static uint8_t *data;
static bk_chunker_t plain;

static int set_up(void **state)
{
    (void)state;
    bk_keyring_t *ring = bk_keyring_plain();
    data = malloc(DATA + 4096);
    if (ring == NULL || data == NULL)
        return -1;
    test_fill(data, DATA, 5);
    bk_chunker_init(&plain, bk_keyring_chunker_key(ring));
    bk_keyring_free(ring);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(data);
    return 0;
}

static void cut_all(const bk_chunker_t *chunker, const uint8_t *bytes, size_t len, cuts_t *cuts)
{
    cuts->count = 0;
    for (size_t at = 0; at < len;) {
        size_t left = len - at, n = bk_chunker_cut(chunker, bytes + at, left);
        assert_true(n > 0 && n <= left && n <= BK_CHUNK_MAX);
        assert_true(n >= BK_CHUNK_MIN || n == left);
        assert_true(cuts->count < CUTS_MAX);
        at += n;
        cuts->ends[cuts->count++] = at;
    }
}

/* Computed by another program from the format's page: two versions that cut differently share nothing. */
static void cuts_are_those_of_the_first_version(void **state)
{
    (void)state;
    static const size_t plain_lengths[] = {2148377, 2973401, 2488844, 2187550, 4806571,
                                           1963101, 1289765, 2748390, 2263143, 2296682};
    static const size_t keyed_lengths[] = {2779186, 1136629, 573579,  2118414, 3083226, 2521281,
                                           2350591, 2612317, 2897712, 2170273, 2814573, 108043};
    bk_chunker_t keyed;
    uint8_t key[32];
    size_t at = 0;
    for (size_t i = 0; i < sizeof plain_lengths / sizeof *plain_lengths; i++) {
        assert_int_equal(bk_chunker_cut(&plain, data + at, DATA - at), plain_lengths[i]);
        at += plain_lengths[i];
    }
    assert_int_equal(at, DATA);
    memset(key, 0x22, sizeof key);
    bk_chunker_init(&keyed, key);
    assert_true(keyed.gear[0] == 0xe05f8a9998e36939u && keyed.gear[1] == 0xe73fa5c3eea0e338u &&
                keyed.gear[255] == 0x061888c7f5b0d60fu);
    at = 0;
    for (size_t i = 0; i < sizeof keyed_lengths / sizeof *keyed_lengths; i++) {
        assert_int_equal(bk_chunker_cut(&keyed, data + at, DATA - at), keyed_lengths[i]);
        at += keyed_lengths[i];
    }
    assert_int_equal(at, DATA);
}

/* The same bytes at another address, with other bytes behind them. */
static void a_cut_depends_on_the_data_alone(void **state)
{
    (void)state;
    uint8_t *copy = malloc(BK_CHUNK_MAX + 1);
    size_t at = 0;
    for (int i = 0; i < 4; i++) {
        size_t n = bk_chunker_cut(&plain, data + at, BK_CHUNK_MAX);
        memset(copy, 0xee, BK_CHUNK_MAX + 1);
        memcpy(copy + 1, data + at, n); /* unaligned */
        assert_int_equal(bk_chunker_cut(&plain, copy + 1, BK_CHUNK_MAX), n);
        assert_int_equal(bk_chunker_cut(&plain, copy + 1, n), n);
        assert_int_equal(bk_chunker_cut(&plain, copy + 1, n - 1), n - 1);
        at += n;
    }
    free(copy);
}

static void more_than_the_maximum_changes_nothing(void **state)
{
    (void)state;
    for (size_t at = 0; at < 3u << 20; at += 1u << 20)
        assert_int_equal(bk_chunker_cut(&plain, data + at, BK_CHUNK_MAX),
                         bk_chunker_cut(&plain, data + at, DATA - at));
}

static size_t shared(const cuts_t *a, size_t shift, const cuts_t *b)
{
    size_t equal = 0;
    for (size_t i = 0; i < a->count; i++)
        for (size_t j = 0; j < b->count; j++)
            equal += a->ends[i] + shift == b->ends[j];
    return equal;
}

static void bytes_inserted_in_front_change_only_the_first_cuts(void **state)
{
    (void)state;
    cuts_t before, after;
    uint8_t *longer = malloc(DATA + 1000);
    test_fill(longer, 1000, 77);
    memcpy(longer + 1000, data, DATA);
    cut_all(&plain, data, DATA, &before);
    cut_all(&plain, longer, DATA + 1000, &after);
    /* From the first common cut on all are common. */
    size_t equal = shared(&before, 1000, &after);
    assert_true(equal >= before.count / 2);
    for (size_t i = 0; i < equal; i++)
        assert_int_equal(before.ends[before.count - 1 - i] + 1000, after.ends[after.count - 1 - i]);
    free(longer);
}

static void a_changed_byte_changes_only_cuts_near_it(void **state)
{
    (void)state;
    cuts_t before, after;
    cut_all(&plain, data, DATA, &before);
    data[DATA / 2] ^= 0x55;
    cut_all(&plain, data, DATA, &after);
    data[DATA / 2] ^= 0x55;
    for (size_t i = 0; i < before.count && before.ends[i] <= DATA / 2; i++)
        assert_int_equal(before.ends[i], after.ends[i]);
    assert_true(shared(&before, 0, &after) + 4 >= before.count);
}

static void another_key_cuts_elsewhere(void **state)
{
    (void)state;
    uint8_t key[32] = {1};
    bk_chunker_t a, b;
    cuts_t first, second;
    bk_chunker_init(&a, key);
    key[31] = 1;
    bk_chunker_init(&b, key);
    cut_all(&a, data, DATA, &first);
    cut_all(&b, data, DATA, &second);
    assert_int_equal(shared(&first, 0, &second), 1); /* the end */
}

static void short_data_is_one_chunk(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, 1, 64, 4096, BK_CHUNK_MIN - 1, BK_CHUNK_MIN};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        assert_int_equal(bk_chunker_cut(&plain, data, lengths[i]), lengths[i]);
    /* Each length around a multiple of the loop's stride. */
    for (size_t n = BK_CHUNK_MIN + 1; n < BK_CHUNK_MIN + 20; n++)
        assert_int_equal(bk_chunker_cut(&plain, data, n), n);
}

static void data_without_variety_is_cut_at_the_maximum(void **state)
{
    (void)state;
    uint8_t *same = calloc(BK_CHUNK_MAX + 100, 1);
    /* 256 values: the hash settles after 64 bytes, and hardly ever to one that ends a chunk. */
    size_t longest = 0;
    for (int value = 0; value < 256; value += 85) {
        memset(same, value, BK_CHUNK_MAX + 100);
        longest += bk_chunker_cut(&plain, same, BK_CHUNK_MAX + 100) == BK_CHUNK_MAX;
    }
    assert_int_equal(longest, 4);
    free(same);
}

/* Eight keys: the mean stays near the average, few chunks reach the bounds. */
static void lengths_gather_around_the_average(void **state)
{
    (void)state;
    size_t count = 0, at_maximum = 0, below = 0;
    uint64_t total = 0;
    for (uint8_t round = 0; round < 8; round++) {
        uint8_t key[32] = {round};
        bk_chunker_t chunker;
        bk_chunker_init(&chunker, key);
        for (size_t at = 0; DATA - at > BK_CHUNK_MAX;) { /* no chunk that ends with the data */
            size_t n = bk_chunker_cut(&chunker, data + at, DATA - at);
            count++;
            total += n;
            at_maximum += n == BK_CHUNK_MAX;
            below += n < BK_CHUNK_AVG;
            at += n;
        }
    }
    uint64_t mean = total / count;
    assert_in_range(mean, BK_CHUNK_AVG * 9 / 10, BK_CHUNK_AVG * 13 / 10);
    assert_true(at_maximum * 50 <= count);
    assert_true(below * 2 <= count); /* the hard mask holds chunks back from being small */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_are_those_of_the_first_version),
        cmocka_unit_test(a_cut_depends_on_the_data_alone),
        cmocka_unit_test(more_than_the_maximum_changes_nothing),
        cmocka_unit_test(bytes_inserted_in_front_change_only_the_first_cuts),
        cmocka_unit_test(a_changed_byte_changes_only_cuts_near_it),
        cmocka_unit_test(another_key_cuts_elsewhere),
        cmocka_unit_test(short_data_is_one_chunk),
        cmocka_unit_test(data_without_variety_is_cut_at_the_maximum),
        cmocka_unit_test(lengths_gather_around_the_average),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
