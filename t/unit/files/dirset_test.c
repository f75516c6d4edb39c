/*
 * t/unit/files/dirset_test.c: sets of directories: what is in them, what is below, and their bound.
 */
#include "unit/testing.h"

#include "files/dirset.h"

static void a_directory_is_a_member_alone_or_with_all_below(void **state)
{
    (void)state;
    bk_dirset_t set;
    bk_dirset_init(&set);
    assert_true(bk_dirset_empty(&set));
    assert_null(bk_dirset_root(&set));
    bk_dirset_add(&set, "a/b", false);
    bk_dirset_add(&set, "c", true);
    assert_false(bk_dirset_empty(&set));
    assert_true(bk_dirset_has(&set, "a/b"));
    assert_false(bk_dirset_has(&set, ""));
    assert_false(bk_dirset_has(&set, "a"));
    assert_false(bk_dirset_has(&set, "a/b/c"));
    assert_false(bk_dirset_has(&set, "b"));
    assert_true(bk_dirset_has(&set, "c"));
    assert_true(bk_dirset_has(&set, "c/d/e"));
    assert_int_equal(set.marked, 2);
    bk_dirset_add(&set, "c/d", false); /* known already */
    bk_dirset_add(&set, "a/b", false);
    assert_int_equal(set.marked, 2);
    bk_dirset_free(&set);
    assert_true(bk_dirset_empty(&set));
}

static void the_way_down_tells_what_is_below(void **state)
{
    (void)state;
    bk_dirset_t set;
    bk_dirset_init(&set);
    bk_dirset_add(&set, "a/bb", false);
    const bk_dirnode_t *root = bk_dirset_root(&set);
    const bk_dirnode_t *a = bk_dirset_child(&set, root, "a", 1);
    assert_non_null(a);
    assert_false(bk_dirnode_marked(root) || bk_dirnode_marked(a));
    assert_true(bk_dirnode_marked(bk_dirset_child(&set, a, "bb", 2)));
    assert_null(bk_dirset_child(&set, a, "b", 1));
    assert_null(bk_dirset_child(&set, root, "bb", 2));
    bk_dirset_free(&set);
}

static void the_root_with_all_below_is_everything(void **state)
{
    (void)state;
    bk_dirset_t set, other;
    bk_dirset_init(&set);
    bk_dirset_init(&other);
    bk_dirset_add(&set, "x/y", false);
    bk_dirset_add(&set, "", true);
    assert_true(set.all && bk_dirset_has(&set, "") && bk_dirset_has(&set, "any/where"));
    assert_true(bk_dirnode_tree(bk_dirset_root(&set)));
    bk_dirset_add(&other, "", false);
    assert_true(bk_dirset_has(&other, ""));
    assert_false(bk_dirset_has(&other, "any"));
    bk_dirset_merge(&other, &set);
    assert_true(other.all);
    bk_dirset_free(&set);
    bk_dirset_free(&other);
}

static void merging_keeps_every_member(void **state)
{
    (void)state;
    bk_dirset_t a, b;
    char path[64];
    bk_dirset_init(&a);
    bk_dirset_init(&b);
    for (unsigned i = 0; i < 3000; i++) {
        snprintf(path, sizeof path, "dir%u/sub%u", i % 7, i);
        bk_dirset_add(i % 2 != 0 ? &a : &b, path, i % 5 == 0);
    }
    bk_dirset_add(&b, "", false);
    bk_dirset_merge(&a, &b);
    assert_int_equal(a.marked, 3001);
    for (unsigned i = 0; i < 3000; i++) {
        snprintf(path, sizeof path, "dir%u/sub%u", i % 7, i);
        assert_true(bk_dirset_has(&a, path));
        snprintf(path, sizeof path, "dir%u/sub%u/below", i % 7, i);
        assert_true(bk_dirset_has(&a, path) == (i % 5 == 0));
    }
    bk_dirset_free(&a);
    bk_dirset_free(&b);
}

static void what_does_not_fit_makes_everything_a_member(void **state)
{
    (void)state;
    bk_dirset_t set;
    char path[64];
    bk_dirset_init(&set);
    for (unsigned i = 0; i <= BK_DIRSET_MAX; i++) {
        snprintf(path, sizeof path, "%u", i);
        bk_dirset_add(&set, path, false);
        assert_true(bk_dirset_has(&set, path));
    }
    assert_true(set.all);
    assert_true(bk_dirset_has(&set, "never/added"));
    bk_dirset_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_directory_is_a_member_alone_or_with_all_below),
        cmocka_unit_test(the_way_down_tells_what_is_below),
        cmocka_unit_test(the_root_with_all_below_is_everything),
        cmocka_unit_test(merging_keeps_every_member),
        cmocka_unit_test(what_does_not_fit_makes_everything_a_member),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
