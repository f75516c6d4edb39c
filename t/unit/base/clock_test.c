/*
 * t/unit/base/clock_test.c: times as people write them.
 */
#include "base/clock.h"
#include "unit/testing.h"

#define AT(s) ((int64_t)(s)*BK_SEC)

static void times_are_written_in_utc(void **state)
{
    char text[BK_TIME_TEXT];
    (void)state;
    bk_time_format(text, AT(1760538600) + 250 * BK_MS);
    assert_string_equal(text, "2025-10-15T14:30:00Z");
    bk_time_format_exact(text, AT(1760538600) + 250 * BK_MS + 999999);
    assert_string_equal(text, "2025-10-15T14:30:00.250999999Z");
    bk_time_format_exact(text, 1760538600250000000);
    assert_string_equal(text, "2025-10-15T14:30:00.250Z");
    bk_time_format_exact(text, 1760538600000001000);
    assert_string_equal(text, "2025-10-15T14:30:00.000001Z");
    bk_time_stamp(text, AT(1760538600));
    assert_string_equal(text, "20251015_143000");
    bk_time_format(text, 0);
    assert_string_equal(text, "1970-01-01T00:00:00Z");
    bk_time_format_exact(text, -1); /* before: still the right side of the second */
    assert_string_equal(text, "1969-12-31T23:59:59.999999999Z");
    bk_time_format(text, INT64_MAX);
    assert_string_equal(text, "2262-04-11T23:47:16Z");
    bk_time_format(text, INT64_MIN);
    assert_string_equal(text, "1677-09-21T00:12:43Z");
}

static void times_are_read_with_any_offset(void **state)
{
    static const struct {
        const char *text;
        int64_t ns;
    } right[] = {{"2025-10-15T14:30:00Z", AT(1760538600)},
                 {"2025-10-15t14:30:00z", AT(1760538600)},
                 {"2025-10-15 14:30:00", AT(1760538600)},
                 {"2025-10-15T14:30:00.5Z", AT(1760538600) + BK_SEC / 2},
                 {"2025-10-15T14:30:00.123456789Z", AT(1760538600) + 123456789},
                 {"2025-10-15T14:30:00.1234567899Z", AT(1760538600) + 123456789},
                 {"2025-10-15T16:30:00+02:00", AT(1760538600)},
                 {"2025-10-15T04:00:00-10:30", AT(1760538600)},
                 {"2024-02-29T00:00:00Z", AT(1709164800)},
                 {"2000-02-29T00:00:00Z", AT(951782400)},
                 {"1970-01-01T00:00:00Z", 0},
                 {"2261-12-31T23:59:59Z", AT(9214646399)},
                 {"2016-12-31T23:59:60Z", AT(1483228800)}}; /* a leap second */
    int64_t ns;
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        assert_true(bk_time_parse(right[i].text, &ns));
        assert_int_equal(ns, right[i].ns);
    }
}

static void what_is_not_wholly_a_time_is_refused(void **state)
{
    static const char *const wrong[] = {"",
                                        "2025",
                                        "2025-10-15",
                                        "2025-10-15T14:30",
                                        "2025-10-15T14:30:00ZZ",
                                        "2025-10-15T14:30:00 Z",
                                        "2025-1-15T14:30:00Z",
                                        "2025-13-01T00:00:00Z",
                                        "2025-00-01T00:00:00Z",
                                        "2025-02-29T00:00:00Z",
                                        "2100-02-29T00:00:00Z",
                                        "2025-04-31T00:00:00Z",
                                        "2025-10-00T00:00:00Z",
                                        "2025-10-15T24:00:00Z",
                                        "2025-10-15T14:60:00Z",
                                        "2025-10-15T14:30:61Z",
                                        "2025-10-15T14:30:00.Z",
                                        "2025-10-15T14:30:00,5Z",
                                        "2025-10-15T14:30:00+2:00",
                                        "2025-10-15T14:30:00+0200",
                                        "2025-10-15T14:30:00+24:00",
                                        "2025-10-15T14:30:00+02:60",
                                        " 2025-10-15T14:30:00Z",
                                        "2025-10-15T14:30:00Z ",
                                        "1969-12-31T23:59:59Z",
                                        "2262-01-01T00:00:00Z",
                                        "-025-10-15T14:30:00Z",
                                        "2025/10/15T14:30:00Z",
                                        "now"};
    int64_t ns;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(bk_time_parse(wrong[i], &ns));
}

static void what_is_written_is_read_as_the_same(void **state)
{
    uint64_t seed = 5;
    (void)state;
    for (unsigned i = 0; i < 5000; i++) {
        char text[BK_TIME_TEXT];
        int64_t ns, at = (int64_t)(test_random(&seed) % 9214646400u) * BK_SEC +
                         (int64_t)(test_random(&seed) % 1000) * BK_MS;
        bk_time_format_exact(text, at);
        assert_true(bk_time_parse(text, &ns));
        assert_int_equal(ns, at);
    }
}

static void clocks_go_forward(void **state)
{
    (void)state;
    int64_t before = bk_mono();
    bk_sleep_ms(2);
    assert_true(bk_mono() - before >= 2 * BK_MS);
    assert_true(bk_now() > AT(1700000000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_are_written_in_utc),
        cmocka_unit_test(times_are_read_with_any_offset),
        cmocka_unit_test(what_is_not_wholly_a_time_is_refused),
        cmocka_unit_test(what_is_written_is_read_as_the_same),
        cmocka_unit_test(clocks_go_forward),
    };
    return cmocka_run_group_tests_name("base/clock", tests, NULL, NULL);
}
