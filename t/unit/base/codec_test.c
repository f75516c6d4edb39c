/*
 * t/unit/base/codec_test.c: what is compressed comes back, what would not shrink stays raw, what is
 * damaged is never believed.
 */
#include <pthread.h>

#include "base/codec.h"
#include "unit/testing.h"

enum { MAX = 300000 };

/* seed 0: nothing compresses; else text-like, the smaller the better. */
static void fill(uint8_t *out, size_t len, unsigned seed)
{
    uint64_t state = 99;
    test_fill(out, len, 1 + seed);
    for (size_t i = 0; seed > 0 && i < len; i++)
        out[i] = (uint8_t)("etaoinshrdlu e\nta"[test_random(&state) % (4 + seed % 12)]);
}

static void any_content_comes_back(void **state)
{
    static const bk_compression_t ways[] = {
        {BK_CODEC_RAW, 0},  {BK_CODEC_ZSTD, 1}, {BK_CODEC_ZSTD, 3}, {BK_CODEC_ZSTD, 19},
        {BK_CODEC_GZIP, 1}, {BK_CODEC_GZIP, 9}, {BK_CODEC_GZIP, 1}, {BK_CODEC_ZSTD, 3}};
    static const size_t sizes[] = {0, 1, 2, 33, 100, 4096, 65535, 65536, 65537, MAX};
    uint8_t *data = malloc(MAX), *back = malloc(MAX + 1);
    (void)state;
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (unsigned kind = 0; kind < 3; kind++)
                for (int probe = 0; probe < 2; probe++) {
                    size_t len = sizes[s];
                    bk_buf_t out;
                    bk_codec_t used;
                    bk_err_t err = {0};
                    fill(data, len, kind);
                    bk_buf_init(&out, MAX + 3);
                    bk_buf_add(&out, "old", 3);
                    OK(bk_compress(ways[w], probe, data, len, &out, &used, &err), &err);
                    assert_true(used == BK_CODEC_RAW || used == ways[w].codec);
                    assert_memory_equal(out.data, "old", 3);
                    if (used == BK_CODEC_RAW)
                        assert_int_equal(out.len, len + 3);
                    else
                        assert_true(out.len - 3 <= len - len * 3 / 100);
                    if (ways[w].codec != BK_CODEC_RAW && len >= 4096)
                        assert_int_equal(used, kind > 0 ? ways[w].codec : BK_CODEC_RAW);
                    back[len] = 0xee;
                    OK(bk_decompress(used, out.data + 3, out.len - 3, back, len, &err), &err);
                    assert_memory_equal(back, data, len);
                    assert_int_equal(back[len], 0xee);
                    bk_buf_free(&out);
                }
    free(data);
    free(back);
}

static void saving_three_percent_is_enough_and_less_is_not(void **state)
{
    enum { LEN = 100000 };
    uint8_t *data = malloc(LEN);
    bk_buf_t out;
    bk_codec_t used;
    bk_err_t err = {0};
    (void)state;
    bk_buf_init(&out, LEN);
    for (int gzip = 0; gzip < 2; gzip++) {
        bk_compression_t how = {gzip ? BK_CODEC_GZIP : BK_CODEC_ZSTD, 3};
        /* Random, but for zeros at the end: what is saved is what they are. */
        test_fill(data, LEN, 1);
        memset(data + LEN - 2000, 0, 2000);
        OK(bk_compress(how, false, data, LEN, &out, &used, &err), &err);
        assert_int_equal(used, BK_CODEC_RAW);
        assert_int_equal(out.len, LEN);
        bk_buf_reset(&out);
        memset(data + LEN - 6000, 0, 6000);
        OK(bk_compress(how, false, data, LEN, &out, &used, &err), &err);
        assert_int_equal(used, how.codec);
        assert_true(out.len <= LEN * 97 / 100);
        bk_buf_reset(&out);
    }
    bk_buf_free(&out);
    free(data);
}

static void the_probe_looks_at_the_middle(void **state)
{
    enum { LEN = 3 * MAX };
    static const bk_compression_t ways[] = {
        {BK_CODEC_ZSTD, 3}, {BK_CODEC_ZSTD, 12}, {BK_CODEC_GZIP, 6}};
    uint8_t *data = calloc(1, LEN);
    bk_buf_t out;
    bk_err_t err = {0};
    (void)state;
    /* A recording: an empty header, then noise. */
    test_fill(data + MAX, LEN - MAX, 1);
    bk_buf_init(&out, LEN);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        for (int probe = 0; probe < 2; probe++) {
            bk_codec_t used;
            OK(bk_compress(ways[i], probe, data, LEN, &out, &used, &err), &err);
            assert_int_equal(used, probe ? BK_CODEC_RAW : ways[i].codec);
            bk_buf_reset(&out);
        }
    }
    bk_buf_free(&out);
    free(data);
}

static void another_length_than_promised_is_damage(void **state)
{
    enum { LEN = 5000 };
    static const bk_codec_t codecs[] = {BK_CODEC_RAW, BK_CODEC_ZSTD, BK_CODEC_GZIP};
    uint8_t data[LEN], back[LEN + 2];
    (void)state;
    fill(data, LEN, 1);
    for (size_t i = 0; i < 3; i++) {
        bk_buf_t out;
        bk_codec_t used;
        bk_err_t err = {0};
        bk_buf_init(&out, 2 * LEN);
        OK(bk_compress((bk_compression_t){codecs[i], 3}, false, data, LEN, &out, &used, &err),
           &err);
        assert_int_equal(used, codecs[i]);
        assert_int_equal(bk_decompress(used, out.data, out.len, back, LEN - 1, &err), BK_CORRUPT);
        assert_int_equal(bk_decompress(used, out.data, out.len, back, LEN + 1, &err), BK_CORRUPT);
        assert_int_equal(bk_decompress(used, out.data, out.len, back, 0, &err), BK_CORRUPT);
        assert_int_equal(bk_decompress(used, out.data, out.len - 1, back, LEN, &err), BK_CORRUPT);
        assert_int_equal(bk_decompress(used, out.data, 0, back, LEN, &err), BK_CORRUPT);
        bk_buf_u8(&out, 0);
        assert_int_equal(bk_decompress(used, out.data, out.len, back, LEN, &err), BK_CORRUPT);
        out.len--;
        /* None of that spoils what comes next. */
        OK(bk_decompress(used, out.data, out.len, back, LEN, &err), &err);
        assert_memory_equal(back, data, LEN);
        bk_buf_free(&out);
    }
}

/* Damage may go unseen here (ids are checked above), but nothing is written past the end. */
static void damaged_content_never_leaves_its_bounds(void **state)
{
    enum { LEN = 3000 };
    uint8_t data[LEN];
    uint64_t seed = 17;
    (void)state;
    fill(data, LEN, 5);
    for (int gzip = 0; gzip < 2; gzip++) {
        bk_compression_t how = {gzip ? BK_CODEC_GZIP : BK_CODEC_ZSTD, 3};
        bk_buf_t out;
        bk_codec_t used;
        bk_err_t err = {0};
        bk_buf_init(&out, LEN);
        OK(bk_compress(how, false, data, LEN, &out, &used, &err), &err);
        for (unsigned i = 0; i < 2000; i++) {
            uint8_t *back = malloc(LEN); /* to the byte: a sanitizer watches its end */
            size_t at = test_random(&seed) % out.len;
            uint8_t before = out.data[at];
            out.data[at] ^= (uint8_t)(1 + test_random(&seed) % 255);
            bk_rc_t rc = bk_decompress(used, out.data, out.len, back, LEN, &err);
            assert_true(rc == BK_OK || rc == BK_CORRUPT);
            out.data[at] = before;
            free(back);
        }
        bk_buf_free(&out);
    }
}

static void unknown_ways_are_refused(void **state)
{
    static const bk_compression_t wrong[] = {{BK_CODEC_ZSTD, 0},  {BK_CODEC_ZSTD, 20},
                                             {BK_CODEC_ZSTD, -1}, {BK_CODEC_GZIP, 0},
                                             {BK_CODEC_GZIP, 10}, {(bk_codec_t)7, 1}};
    bk_buf_t out;
    bk_codec_t used;
    bk_err_t err = {0};
    uint8_t back[4];
    (void)state;
    bk_buf_init(&out, 100);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(bk_compress(wrong[i], false, "data", 4, &out, &used, &err), BK_INVALID);
    assert_int_equal(out.len, 0);
    assert_int_equal(bk_decompress((bk_codec_t)7, "data", 4, back, 4, &err), BK_CORRUPT);
    bk_buf_free(&out);
}

static void a_buffer_without_room_is_no_compression(void **state)
{
    uint8_t data[1000] = {0};
    bk_buf_t out;
    bk_codec_t used;
    bk_err_t err = {0};
    (void)state;
    bk_buf_init(&out, 999);
    assert_int_equal(
        bk_compress((bk_compression_t){BK_CODEC_RAW, 0}, false, data, 1000, &out, &used, &err),
        BK_NO_MEMORY);
    bk_buf_free(&out);
}

static void *round_trips(void *arg)
{
    uint8_t *data = malloc(MAX), *back = malloc(MAX);
    bk_buf_t out;
    bk_err_t err = {0};
    bk_codec_t used;
    bool good = true;
    bk_buf_init(&out, MAX);
    for (unsigned i = 0; i < 20 && good; i++) {
        bk_compression_t how = {i % 2 == 0 ? BK_CODEC_ZSTD : BK_CODEC_GZIP, 1 + (int)i % 5};
        size_t len = MAX - i * 1000;
        fill(data, len, i % 3);
        bk_buf_reset(&out);
        good = bk_compress(how, true, data, len, &out, &used, &err) == BK_OK &&
               bk_decompress(used, out.data, out.len, back, len, &err) == BK_OK &&
               memcmp(data, back, len) == 0;
    }
    bk_buf_free(&out);
    free(data);
    free(back);
    return good ? NULL : arg;
}

/* Contexts belong to threads and go with them: a leak would be seen by the sanitizer. */
static void each_thread_has_contexts_of_its_own(void **state)
{
    pthread_t threads[4];
    for (unsigned round = 0; round < 3; round++) {
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, round_trips, state), 0);
        for (size_t i = 0; i < 4; i++) {
            void *bad;
            pthread_join(threads[i], &bad);
            assert_null(bad);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_content_comes_back),
        cmocka_unit_test(saving_three_percent_is_enough_and_less_is_not),
        cmocka_unit_test(the_probe_looks_at_the_middle),
        cmocka_unit_test(another_length_than_promised_is_damage),
        cmocka_unit_test(damaged_content_never_leaves_its_bounds),
        cmocka_unit_test(unknown_ways_are_refused),
        cmocka_unit_test(a_buffer_without_room_is_no_compression),
        cmocka_unit_test(each_thread_has_contexts_of_its_own),
    };
    return cmocka_run_group_tests_name("base/codec", tests, NULL, NULL);
}
