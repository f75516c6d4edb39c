/*
 * t/unit/base/json_test.c: strict in, canonical out, and no problem of a request gets lost.
 */
#include "base/json.h"
#include "base/str.h"
#include "unit/testing.h"

static json_t *parse(const char *text)
{
    json_t *value = NULL;
    bk_err_t err = {0};
    OK(bk_json_parse(text, strlen(text), &value, &err), &err);
    return value;
}

static void canonical_text_is_compact_and_sorted(void **state)
{
    bk_buf_t out;
    bk_err_t err = {0};
    (void)state;
    json_t *value =
        parse(" { \"b\" : 1, \"a\" : [ true, null, \"\\u00e4\" ], \"c\":{\"z\":0,\"y\":-5} } ");
    bk_buf_init(&out, 200);
    OK(bk_json_dump(value, true, &out, &err), &err);
    assert_string_equal(bk_buf_str(&out),
                        "{\"a\":[true,null,\"\xc3\xa4\"],\"b\":1,\"c\":{\"y\":-5,\"z\":0}}");
    bk_buf_reset(&out);
    OK(bk_json_dump(value, false, &out, &err), &err);
    assert_string_equal(bk_buf_str(&out),
                        "{\"b\":1,\"a\":[true,null,\"\xc3\xa4\"],\"c\":{\"z\":0,\"y\":-5}}");
    bk_buf_free(&out);
    bk_buf_init(&out, 10);
    assert_int_equal(bk_json_dump(value, true, &out, &err), BK_NO_MEMORY);
    assert_int_equal(bk_json_dump(NULL, true, &out, &err), BK_NO_MEMORY);
    bk_buf_free(&out);
    json_decref(value);
}

static void what_is_not_one_whole_value_is_refused(void **state)
{
    static const char *const wrong[] = {"",
                                        " ",
                                        "{",
                                        "{\"a\":1,}",
                                        "{\"a\":1}x",
                                        "{\"a\":1} {}",
                                        "[1,]",
                                        "{a:1}",
                                        "{\"a\":1,\"a\":2}",
                                        "'a'",
                                        "\"\xff\"",
                                        "\"\\ud800\"",
                                        "\"a\\u0000b\"",
                                        "nul",
                                        "01",
                                        "1.",
                                        "\"\n\"",
                                        "123456789012345678901234567890",
                                        "\xef\xbb\xbf{}",
                                        "//\n{}"};
    bk_err_t err = {0};
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        json_t *value = (json_t *)&err;
        assert_int_equal(bk_json_parse(wrong[i], strlen(wrong[i]), &value, &err), BK_MALFORMED);
        assert_null(value);
        assert_non_null(strstr(err.text, "not valid JSON: line "));
    }
    json_t *value = parse("7"); /* any kind of value */
    assert_int_equal(json_integer_value(value), 7);
    json_decref(value);
}

static void nesting_without_end_is_refused(void **state)
{
    enum { DEPTH = 200000 };
    char *text = malloc(DEPTH);
    json_t *value;
    bk_err_t err = {0};
    (void)state;
    memset(text, '[', DEPTH);
    assert_int_equal(bk_json_parse(text, DEPTH, &value, &err), BK_MALFORMED);
    free(text);
}

static void members_are_taken_by_type(void **state)
{
    const char *string = "default";
    bool flag = true;
    uint64_t number = 99;
    json_t *array = NULL, *object = NULL, *none = NULL;
    bk_want_t want;
    (void)state;
    json_t *value = parse(
        "{\"s\":\"text\",\"b\":false,\"n\":42,\"a\":[\"x\",\"y\"],\"o\":{\"k\":1},\"null\":null}");
    bk_want_begin(&want, value);
    assert_true(bk_want_string(&want, "s", &string));
    assert_string_equal(string, "text");
    assert_true(bk_want_bool(&want, "b", &flag));
    assert_false(flag);
    assert_true(bk_want_uint(&want, "n", 1, 42, &number));
    assert_int_equal(number, 42);
    assert_true(bk_want_strings(&want, "a", &array));
    assert_int_equal(json_array_size(array), 2);
    assert_true(bk_want_object(&want, "o", &object));
    assert_non_null(json_object_get(object, "k"));
    /* What is not there, or null, changes nothing and is no problem. */
    assert_false(bk_want_string(&want, "null", &string));
    assert_false(bk_want_string(&want, "missing", &string));
    assert_string_equal(string, "text");
    assert_false(bk_want_object(&want, "missing", &none));
    assert_null(none);
    assert_null(bk_want_done(&want));
    json_decref(value);
}

static const char *problem(const json_t *problems, size_t i, const char *member)
{
    return json_string_value(json_object_get(json_array_get(problems, i), member));
}

static void each_problem_names_its_member(void **state)
{
    const char *string = NULL;
    bool flag = false;
    uint64_t number = 0;
    json_t *array = NULL, *object = NULL;
    bk_want_t want;
    (void)state;
    json_t *value =
        parse("{\"s\":1,\"b\":\"true\",\"n\":-1,\"big\":43,\"real\":1.0,\"a\":[\"x\",2],\"o\":[],"
              "\"~a/b\":1}");
    bk_want_begin(&want, value);
    assert_false(bk_want_string(&want, "s", &string));
    assert_false(bk_want_bool(&want, "b", &flag));
    assert_false(bk_want_uint(&want, "n", 1, 42, &number));
    assert_false(bk_want_uint(&want, "big", 0, 42, &number));
    assert_false(bk_want_uint(&want, "real", 0, 42, &number));
    assert_false(bk_want_strings(&want, "a", &array));
    assert_false(bk_want_object(&want, "o", &object));
    bk_want_problem(&want, "x", "is %s", "too\nlong");
    json_t *problems = bk_want_done(&want);
    static const char *const expected[][2] = {{"#/s", "must be a string"},
                                              {"#/b", "must be true or false"},
                                              {"#/n", "must be a whole number from 1 to 42"},
                                              {"#/big", "must be a whole number from 0 to 42"},
                                              {"#/real", "must be a whole number from 0 to 42"},
                                              {"#/a", "must be an array of strings"},
                                              {"#/o", "must be an object"},
                                              {"#/x", "is too\\x0along"},
                                              {"#/~0a~1b", "is not known here"}};
    assert_int_equal(json_array_size(problems), sizeof expected / sizeof *expected);
    for (size_t i = 0; i < json_array_size(problems); i++) {
        assert_string_equal(problem(problems, i, "pointer"), expected[i][0]);
        assert_string_equal(problem(problems, i, "detail"), expected[i][1]);
    }
    json_decref(problems);
    json_decref(value);
}

/* Wherever a name is cut: its problem is there. */
static void a_very_long_unknown_member_is_still_a_problem(void **state)
{
    (void)state;
    for (size_t len = 240; len < 270; len++) {
        char name[300];
        bk_want_t want;
        for (size_t i = 0; i < len; i++)
            name[i] = "\xe2\x82\xac"[i % 3];
        name[len - len % 3] = '\0';
        json_t *value = json_object();
        assert_int_equal(json_object_set_new(value, name, json_true()), 0);
        bk_want_begin(&want, value);
        bk_want_problem(&want, "other", "%s%s%s", name, name, name);
        json_t *problems = bk_want_done(&want);
        assert_int_equal(json_array_size(problems), 2);
        json_decref(problems);
        json_decref(value);
    }
}

static void names_and_times_become_values(void **state)
{
    char name[3000];
    (void)state;
    json_t *value = bk_json_name("a\xff", 2);
    assert_string_equal(json_string_value(value), "a\\xff");
    json_decref(value);
    memset(name, 0xff, sizeof name);
    for (size_t len = 250; len < sizeof name; len += 1373) { /* on both sides of the small buffer */
        value = bk_json_name(name, len);
        assert_int_equal(json_string_length(value), 4 * len);
        json_decref(value);
    }
    value = bk_json_time(1760538600 * 1000000000LL);
    assert_string_equal(json_string_value(value), "2025-10-15T14:30:00Z");
    json_decref(value);
    value = bk_json_time(0);
    assert_true(json_is_null(value));
    json_decref(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(canonical_text_is_compact_and_sorted),
        cmocka_unit_test(what_is_not_one_whole_value_is_refused),
        cmocka_unit_test(nesting_without_end_is_refused),
        cmocka_unit_test(members_are_taken_by_type),
        cmocka_unit_test(each_problem_names_its_member),
        cmocka_unit_test(a_very_long_unknown_member_is_still_a_problem),
        cmocka_unit_test(names_and_times_become_values),
    };
    return cmocka_run_group_tests_name("base/json", tests, NULL, NULL);
}
