/*
 * t/unit/base/buf_test.c: buffers never pass their maximum, cursors never read past their end.
 */
#include "base/buf.h"
#include "unit/testing.h"

static void integers_are_little_endian_and_come_back(void **state)
{
    bk_buf_t buf;
    (void)state;
    bk_buf_init(&buf, 100);
    bk_buf_u8(&buf, 0x01);
    bk_buf_u16(&buf, 0x0302);
    bk_buf_u32(&buf, 0x07060504);
    bk_buf_u64(&buf, 0x0f0e0d0c0b0a0908);
    bk_buf_i64(&buf, -2);
    assert_true(bk_buf_ok(&buf));
    assert_int_equal(buf.len, 23);
    for (size_t i = 0; i < 15; i++)
        assert_int_equal(buf.data[i], i + 1);
    bk_cur_t cur = bk_cur(buf.data, buf.len);
    assert_int_equal(bk_cur_u8(&cur), 0x01);
    assert_int_equal(bk_cur_u16(&cur), 0x0302);
    assert_int_equal(bk_cur_u32(&cur), 0x07060504);
    assert_int_equal(bk_cur_u64(&cur), 0x0f0e0d0c0b0a0908);
    assert_int_equal(bk_cur_i64(&cur), -2);
    assert_true(bk_cur_ok(&cur));
    assert_int_equal(bk_cur_left(&cur), 0);
    uint8_t raw[9] = {0};
    bk_put_u64(raw + 1, 0x1122334455667788);
    assert_int_equal(bk_get_u64(raw + 1), 0x1122334455667788);
    bk_put_u32(raw + 1, 0xfffefdfc);
    assert_int_equal(bk_get_u32(raw + 1), 0xfffefdfc);
    assert_int_equal(raw[0], 0);
    bk_buf_free(&buf);
}

static void an_append_past_the_maximum_drops_all_that_follow(void **state)
{
    bk_buf_t buf;
    (void)state;
    bk_buf_init(&buf, 10);
    bk_buf_add(&buf, "12345678", 8);
    bk_buf_add(&buf, "abc", 3);
    assert_false(bk_buf_ok(&buf));
    bk_buf_u8(&buf, '9'); /* would fit */
    bk_buf_printf(&buf, "x");
    assert_int_equal(buf.len, 8);
    assert_memory_equal(buf.data, "12345678", 8);
    assert_true(buf.cap <= 10);
    assert_null(bk_buf_room(&buf, 0));
    bk_buf_reset(&buf);
    assert_true(bk_buf_ok(&buf));
    bk_buf_add(&buf, "0123456789", 10);
    assert_true(bk_buf_ok(&buf));
    assert_int_equal(buf.len, 10);
    assert_null(bk_buf_room(&buf, SIZE_MAX)); /* no overflow */
    bk_buf_free(&buf);
    assert_null(buf.data);
    assert_int_equal(buf.len, 0);
    bk_buf_u8(&buf, 1); /* usable again */
    assert_int_equal(buf.len, 1);
    bk_buf_wipe(&buf);
    assert_int_equal(buf.len, 0);
    bk_buf_free(&buf);
}

static void text_needs_room_for_its_end(void **state)
{
    bk_buf_t buf;
    (void)state;
    bk_buf_init(&buf, 6);
    bk_buf_printf(&buf, "%d-%s", 12, "a");
    assert_string_equal(bk_buf_str(&buf), "12-a");
    assert_int_equal(buf.len, 4);
    bk_buf_printf(&buf, "b");
    assert_string_equal(bk_buf_str(&buf), "12-ab");
    bk_buf_u8(&buf, 'c');
    assert_true(bk_buf_ok(&buf));
    assert_null(bk_buf_str(&buf));
    assert_false(bk_buf_ok(&buf));
    bk_buf_free(&buf);
    bk_buf_init(&buf, 10);
    assert_string_equal(bk_buf_str(&buf), "");
    bk_buf_add(&buf, NULL, 0);
    assert_true(bk_buf_ok(&buf));
    bk_buf_free(&buf);
}

static void many_appends_keep_every_byte(void **state)
{
    enum { COUNT = 100000 };
    bk_buf_t buf;
    (void)state;
    bk_buf_init(&buf, 1 << 20);
    for (uint32_t i = 0; i < COUNT; i++)
        bk_buf_u32(&buf, i * 2654435761u);
    assert_int_equal(buf.len, 4 * COUNT);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_int_equal(bk_get_u32(buf.data + 4 * i), i * 2654435761u);
    bk_buf_free(&buf);
}

static void a_field_that_is_not_whole_fails_the_cursor(void **state)
{
    static const uint8_t data[7] = {1, 2, 3, 4, 5, 6, 7};
    (void)state;
    bk_cur_t cur = bk_cur(data, sizeof data);
    assert_int_equal(bk_cur_u32(&cur), 0x04030201);
    assert_int_equal(bk_cur_u32(&cur), 0);
    assert_false(bk_cur_ok(&cur));
    assert_int_equal(bk_cur_left(&cur), 0);
    assert_int_equal(bk_cur_u8(&cur), 0); /* would be there */
    assert_null(bk_cur_bytes(&cur, 0));
    cur = bk_cur(data, sizeof data);
    assert_ptr_equal(bk_cur_bytes(&cur, 7), data);
    assert_non_null(bk_cur_bytes(&cur, 0));
    assert_null(bk_cur_bytes(&cur, 1));
    cur = bk_cur(data, 3);
    assert_null(bk_cur_bytes(&cur, SIZE_MAX)); /* no overflow */
    cur = bk_cur(NULL, 0);
    assert_non_null(bk_cur_bytes(&cur, 0));
    assert_true(bk_cur_ok(&cur));
    assert_int_equal(bk_cur_u64(&cur), 0);
    assert_false(bk_cur_ok(&cur));
    cur = bk_cur(NULL, 9);
    assert_int_equal(bk_cur_left(&cur), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_little_endian_and_come_back),
        cmocka_unit_test(an_append_past_the_maximum_drops_all_that_follow),
        cmocka_unit_test(text_needs_room_for_its_end),
        cmocka_unit_test(many_appends_keep_every_byte),
        cmocka_unit_test(a_field_that_is_not_whole_fails_the_cursor),
    };
    return cmocka_run_group_tests_name("base/buf", tests, NULL, NULL);
}
