/*
 * t/unit/engine/protect_test.c: what is left alone inside protected trees, and where paths lie.
 */
#include "unit/engine/fixture.h"

#include "engine/protect.h"
#include "sqlite/source.h"

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

/* A second set of this process, whose tree is all that the first one has. */
static void other_set(const fixture_t *f, bk_set_t *set)
{
    bk_err_t err = {0};
    OK(bk_set_init(set, "other", &err), &err);
    set->base_dir = text_at(f, "other");
    set->min_free = 0;
    bk_set_add_files(set, "all")->path = text_at(f, "app");
    bk_storage_config_t *storage = bk_set_add_storage(set, "local", "disk");
    OK(bk_storage_config_set(storage, "path", at(f, "storage-of-other"), &err), &err);
    OK(bk_set_add_text(&set->restore_roots, at(f, "restored"), &err), &err);
    set->restore_in_place = true;
    OK(bk_set_check(set, true, NULL, &err), &err);
}

static void second_name(const fixture_t *f, const char *name, const char *second)
{
    assert_int_equal(link(at(f, name), at(f, second)), 0);
}

/* Back up all with the other set and put it into restored/<where>. */
static void through_the_other_set(fixture_t *f, const char *where)
{
    char body[2048], id[BK_BACKUP_ID];
    back_up(f, "full", id);
    bk_fmt(body, sizeof body,
           "{\"recovery_type\": \"files\", \"target_directory\": \"%s/restored/%s\"}", f->dir,
           where);
    done(do_job(f, BK_JOB_RECOVERY, body, "completed"));
}

static void the_databases_of_other_sets_keep_their_locks(void **state)
{
    fixture_t *f = *state, other = {.dir = f->dir};
    bk_db_source_t *source;
    char shm[1024];
    /* The catalog is in use as long as its engine is. */
    second_name(f, "base/catalog.db", "app/uploads/second.catalog");
    second_name(f, "app/app.db", "app/uploads/second.db");
    other_set(f, &other.set);
    OK(bk_engine_open(&other.set, &other.engine, &f->err), &f->err);
    OK(bk_engine_own(other.engine, &f->err), &f->err);
    /* Also while it is not open: its own set sees to it. */
    through_the_other_set(&other, "closed");
    assert_true(there(f, "restored/closed/all/uploads/a.wav"));
    assert_false(there(f, "restored/closed/all/uploads/second.db"));
    OK(bk_db_source_open(at(f, "app/app.db"), 1000, NULL, &source, &f->err), &f->err);
    second_name(f, "app/app.db-shm", "app/uploads/second.shm");
    bk_strcpy(shm, sizeof shm, at(f, "app/app.db-shm"));
    assert_true(test_locked(shm));
    through_the_other_set(&other, "both");
    assert_true(test_locked(shm));
    assert_true(there(f, "restored/both/all/uploads/a.wav"));
    static const char *const absent[] = {"all/app.db", "all/uploads/second.db",
                                         "all/uploads/second.shm", "all/uploads/second.catalog"};
    for (size_t i = 0; i < 4; i++) {
        char name[256];
        bk_fmt(name, sizeof name, "restored/both/%s", absent[i]);
        assert_false(there(f, name));
    }
    /* Nobody says any more that it is a database, but it is open. */
    close_engine(f);
    through_the_other_set(&other, "alone");
    assert_true(test_locked(shm));
    assert_false(there(f, "restored/alone/all/app.db"));
    assert_true(there(f, "restored/alone/all/uploads/second.catalog"));
    bk_db_source_close(source);
    assert_false(test_locked(at(f, "app/app.db")));
    /* And now it is a file like any other. */
    through_the_other_set(&other, "free");
    assert_true(there(f, "restored/free/all/app.db"));
    /* Which is neither looked at nor replaced when it is open again. */
    OK(bk_db_source_open(at(f, "app/app.db"), 1000, NULL, &source, &f->err), &f->err);
    struct stat before, after;
    assert_int_equal(stat(at(f, "app/app.db"), &before), 0);
    done(do_job(&other, BK_JOB_RECOVERY, "{\"recovery_type\": \"files\"}", "completed"));
    assert_int_equal(stat(at(f, "app/app.db"), &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_true(test_locked(shm));
    bk_db_source_close(source);
    close_engine(&other);
    bk_set_free(&other.set);
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
        T(the_databases_of_other_sets_keep_their_locks),
        cmocka_unit_test(paths_lie_below_whole_components),
        T(paths_are_resolved_as_far_as_they_exist),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
