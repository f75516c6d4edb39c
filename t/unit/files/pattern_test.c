/*
 * t/unit/files/pattern_test.c: the table of patterns in docs/files.md, and that no pattern is slow.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files/pattern.h"

typedef struct {
    const char *pattern, *path;
    bool directory, matches;
} case_t;

static const case_t cases[] = {
    /* without '/': the last component, anywhere */
    {"*.tmp", "a.tmp", false, true},
    {"*.tmp", "x/y/a.tmp", false, true},
    {"*.tmp", "a.tmp/b", false, false},
    {"*.tmp", ".tmp", false, true},
    {"*.tmp", "a.tmpx", false, false},
    {"a", "a", false, true},
    {"a", "b/a", true, true},
    {"a", "ab", false, false},
    {"*", "anything/at all", false, true},
    {"**", "anything/at all", false, true},
    {".*", ".hidden", false, true},
    {".*", "not.hidden", false, false},
    /* '?' and '*' never take '/' */
    {"a?c", "abc", false, true},
    {"a?c", "ac", false, false},
    {"/a?c", "a/c", false, false},
    {"/a*c", "a/c", false, false},
    {"/a*c", "abbbc", false, true},
    {"a*b*c", "aXbXbXc", false, true},
    {"a*b*c", "aXcXb", false, false},
    /* with '/': from the root */
    {"/a", "a", false, true},
    {"/a", "b/a", false, false},
    {"a/b", "a/b", false, true},
    {"a/b", "x/a/b", false, false},
    {"a/*", "a/b", false, true},
    {"a/*", "a/b/c", false, false},
    {"a//b", "a/b", false, true},
    /* '**': whole components, also none */
    {"**/a", "a", false, true},
    {"**/a", "x/y/a", false, true},
    {"**/a", "xa", false, false},
    {"a/**/b", "a/b", false, true},
    {"a/**/b", "a/x/b", false, true},
    {"a/**/b", "a/x/y/b", false, true},
    {"a/**/b", "ab", false, false},
    {"a/**/b", "a/xb", false, false},
    {"a/**/**/b", "a/b", false, true},
    {"a/**", "a/b", false, true},
    {"a/**", "a/b/c", false, true},
    {"a/**", "a", true, false},
    {"/**", "a/b", false, true},
    {"**/x/**/y", "1/x/2/3/y", false, true},
    {"**/x/**/y", "1/y/2/3/x", false, false},
    {"a**b", "aXXb", false, true},
    {"/a**b", "a/b", false, false},
    /* a trailing '/': directories only */
    {"cache/", "cache", true, true},
    {"cache/", "cache", false, false},
    {"cache/", "x/cache", true, true},
    {"/cache/", "x/cache", true, false},
    {"a/*/", "a/b", true, true},
    {"a/*/", "a/b", false, false},
    {"**/", "a/b", true, true},
    {"a//", "b/a", true, true},
    /* sets */
    {"[abc]", "b", false, true},
    {"[abc]", "d", false, false},
    {"[a-c]x", "bx", false, true},
    {"[!a-c]", "d", false, true},
    {"[!a-c]", "b", false, false},
    {"[^a]", "b", false, true},
    {"[]]", "]", false, true},
    {"[!]]", "]", false, false},
    {"[a-]", "-", false, true},
    {"[\\]a]", "]", false, true},
    {"[a\\-c]", "b", false, false},
    {"[a\\-c]", "-", false, true},
    {"[[]", "[", false, true},
    /* quoting */
    {"\\*", "*", false, true},
    {"\\*", "a", false, false},
    {"a\\?b", "a?b", false, true},
    {"\\[a]", "[a]", false, true},
    {"\\\\", "\\", false, true},
    /* bytes, not characters */
    {"?", "\xff", false, true},
    {"??", "\xc3\xa4", false, true},
    {"[\xf0-\xff]", "\xf8", false, true},
    {"a\nb", "a\nb", false, true},
};

static bk_pattern_t *compile(const char *text)
{
    bk_err_t err = {0};
    bk_pattern_t *pattern = NULL;
    if (bk_pattern_compile(text, &pattern, &err) != BK_OK)
        fail_msg("%s: %s", text, err.text);
    return pattern;
}

static void each_case_of_the_table_matches_as_documented(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const case_t *c = &cases[i];
        bk_pattern_t *pattern = compile(c->pattern);
        if (bk_pattern_match(pattern, c->path, strlen(c->path), c->directory) != c->matches)
            fail_msg("'%s' against '%s'%s: expected %s", c->pattern, c->path,
                     c->directory ? " (directory)" : "", c->matches ? "a match" : "none");
        bk_pattern_free(pattern);
    }
}

static void a_wrong_pattern_is_refused_with_its_position(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } wrong[] = {
        {"", "empty"},         {"/", "nothing"},        {"a[b", "position 2"},
        {"[", "position 1"},   {"[!", "position 1"},    {"[a/b]", "position 1"},
        {"a\\", "position 2"}, {"[z-a]", "position 2"}, {"a/../b", "position 3"},
        {"./a", "position 1"}, {"[a\\", "position 1"},  {"//", "nothing"},
        {"[]", "position 1"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bk_err_t err = {0};
        bk_pattern_t *pattern = NULL;
        assert_int_equal(bk_pattern_compile(wrong[i].text, &pattern, &err), BK_INVALID);
        if (strstr(err.text, wrong[i].says) == NULL)
            fail_msg("'%s': '%s' does not say '%s'", wrong[i].text, err.text, wrong[i].says);
    }
}

static void a_pattern_longer_than_the_limit_is_refused(void **state)
{
    (void)state;
    char text[1026];
    bk_err_t err = {0};
    bk_pattern_t *pattern = NULL;
    memset(text, 'a', sizeof text);
    text[1025] = '\0';
    assert_int_equal(bk_pattern_compile(text, &pattern, &err), BK_INVALID);
    text[1024] = '\0';
    assert_int_equal(bk_pattern_compile(text, &pattern, &err), BK_OK);
    bk_pattern_free(pattern);
}

/* With backtracking over every star, any of these would outlive the universe. */
static void stars_do_not_explode(void **state)
{
    (void)state;
    char pattern_text[1025] = "", path[4096];
    for (size_t i = 0; i < 511; i++)
        memcpy(pattern_text + 2 * i, "a*", 3);
    memcpy(pattern_text + 1022, "b", 2);
    memset(path, 'a', sizeof path);
    bk_pattern_t *pattern = compile(pattern_text);
    assert_false(bk_pattern_match(pattern, path, sizeof path, false));
    bk_pattern_free(pattern);

    pattern_text[0] = '\0';
    for (size_t i = 0; i < 200; i++)
        memcpy(pattern_text + 5 * i, "**/a/", 6);
    memcpy(pattern_text + 1000, "b", 2);
    for (size_t i = 0; i < sizeof path; i++)
        path[i] = i % 2 == 0 ? 'a' : '/';
    pattern = compile(pattern_text);
    assert_false(bk_pattern_match(pattern, path, sizeof path - 1, false));
    bk_pattern_free(pattern);
}

static void only_directories_that_can_lead_to_a_match_are_entered(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *dir;
        bool enter;
    } table[] = {
        {"*.wav", "a/b", true}, {"a/b/c", "", true},         {"a/b/c", "a", true},
        {"a/b/c", "a/b", true}, {"a/b/c", "a/b/c", false},   {"a/b/c", "x", false},
        {"a/*/c", "a/x", true}, {"a/**/c", "a/x/y/z", true}, {"**/c", "x/y", true},
        {"/a", "b", false},     {"a/b/", "a/b", false},      {"a/b/", "a", true},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        bk_pattern_t *pattern = compile(table[i].pattern);
        if (bk_pattern_may_match_below(pattern, table[i].dir, strlen(table[i].dir)) !=
            table[i].enter)
            fail_msg("'%s' and directory '%s'", table[i].pattern, table[i].dir);
        bk_pattern_free(pattern);
    }
}

static void a_list_matches_when_any_of_its_patterns_does(void **state)
{
    (void)state;
    bk_err_t err = {0};
    bk_patterns_t list = {0};
    assert_false(bk_patterns_match(&list, "a", 1, false));
    assert_int_equal(bk_patterns_add(&list, "*.tmp", &err), BK_OK);
    assert_int_equal(bk_patterns_add(&list, "logs/", &err), BK_OK);
    assert_int_equal(bk_patterns_add(&list, "[", &err), BK_INVALID);
    assert_int_equal(list.count, 2);
    assert_true(bk_patterns_match(&list, "x.tmp", 5, false));
    assert_true(bk_patterns_match(&list, "logs", 4, true));
    assert_false(bk_patterns_match(&list, "logs", 4, false));
    assert_true(bk_patterns_take_tree(&list, "logs", 4));
    assert_false(bk_patterns_take_tree(&list, "x.tmp", 5));
    bk_patterns_free(&list);
    assert_int_equal(list.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_case_of_the_table_matches_as_documented),
        cmocka_unit_test(a_wrong_pattern_is_refused_with_its_position),
        cmocka_unit_test(a_pattern_longer_than_the_limit_is_refused),
        cmocka_unit_test(stars_do_not_explode),
        cmocka_unit_test(only_directories_that_can_lead_to_a_match_are_entered),
        cmocka_unit_test(a_list_matches_when_any_of_its_patterns_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
