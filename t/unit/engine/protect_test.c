/*
 * t/unit/engine/protect_test.c: what is left alone inside protected trees, and where paths lie.
 */
#include "unit/engine/fixture.h"

#include "engine/protect.h"

static bool left_out(const bk_patterns_t *patterns, const char *path)
{
    return bk_patterns_match(patterns, path, strlen(path), false);
}

static void databases_in_a_tree_are_left_out_by_name(void **state)
{
    fixture_t *f = *state;
    bk_patterns_t patterns = {0};
    bk_set_files_t *files = &f->set.files[0];
    free(files->path);
    files->path = text_at(f, "app");
    bk_set_add_db(&f->set, "odd")->path = text_at(f, "app/uploads/a*b[1]?\\.db");
    OK(bk_protected_patterns(&f->set, files, &patterns, &f->err), &f->err);
    /* None of these exists now: a journal comes and goes. */
    assert_true(left_out(&patterns, "app.db"));
    assert_true(left_out(&patterns, "app.db-journal"));
    assert_true(left_out(&patterns, "app.db-wal"));
    assert_true(left_out(&patterns, "app.db-shm"));
    assert_true(left_out(&patterns, "uploads/a*b[1]?\\.db-journal"));
    assert_true(left_out(&patterns, "uploads/x.tmp")); /* the configured one */
    assert_false(left_out(&patterns, "uploads/axb[1]?\\.db-journal"));
    assert_false(left_out(&patterns, "uploads/app.db"));
    assert_false(left_out(&patterns, "app.db-journal2"));
    bk_patterns_free(&patterns);
    /* A tree without a database has only its own patterns. */
    OK(bk_protected_patterns(&f->set, &f->set.files[1], &patterns, &f->err), &f->err);
    assert_int_equal(patterns.count, 0);
    bk_patterns_free(&patterns);
}

static void databases_are_found_through_links(void **state)
{
    fixture_t *f = *state;
    bk_patterns_t patterns = {0};
    assert_int_equal(symlink(at(f, "app"), at(f, "alias")), 0);
    free(f->set.files[0].path);
    f->set.files[0].path = text_at(f, "alias");
    OK(bk_protected_patterns(&f->set, &f->set.files[0], &patterns, &f->err), &f->err);
    assert_true(left_out(&patterns, "app.db-journal"));
    bk_patterns_free(&patterns);
}

static void what_is_there_is_told_by_inode(void **state)
{
    fixture_t *f = *state;
    bk_protected_t list = {0};
    struct stat st;
    OK(bk_protected_init(&list, &f->set, &f->err), &f->err);
    static const char *const names[] = {"base", "app/app.db"};
    for (size_t i = 0; i < 2; i++) {
        bool found = false;
        assert_int_equal(stat(at(f, names[i]), &st), 0);
        for (size_t n = 0; n < list.count; n++)
            found =
                found || (list.items[n].inode == st.st_ino && list.items[n].device == st.st_dev);
        assert_true(found);
    }
    bk_protected_free(&list);
}

static void paths_lie_below_whole_components(void **state)
{
    (void)state;
    assert_string_equal(bk_path_below("/a/b/c", "/a/b"), "c");
    assert_string_equal(bk_path_below("/a/b", "/a/b/"), "");
    assert_string_equal(bk_path_below("/a", "/"), "a");
    assert_null(bk_path_below("/a/bc", "/a/b"));
    assert_null(bk_path_below("/a", "/a/b"));
}

static void paths_are_resolved_as_far_as_they_exist(void **state)
{
    fixture_t *f = *state;
    char out[PATH_MAX], expected[PATH_MAX];
    assert_int_equal(symlink(at(f, "app"), at(f, "alias")), 0);
    assert_true(bk_path_resolve(at(f, "alias/uploads/none/deep"), out));
    assert_non_null(realpath(at(f, "app/uploads"), expected));
    assert_int_equal(strncmp(out, expected, strlen(expected)), 0);
    assert_string_equal(out + strlen(expected), "/none/deep");
    assert_false(bk_path_resolve("relative", out));
    assert_true(bk_path_resolve("/nothing-here/x", out));
    assert_string_equal(out, "/nothing-here/x");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(databases_in_a_tree_are_left_out_by_name),
        T(databases_are_found_through_links),
        T(what_is_there_is_told_by_inode),
        cmocka_unit_test(paths_lie_below_whole_components),
        T(paths_are_resolved_as_far_as_they_exist),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
