/*
 * t/unit/engine/set_test.c: what a set may say, and that its description tells no secret.
 */
#include "unit/engine/fixture.h"

static fixture_t *fresh(void)
{
    return fixture_new(true);
}

static void assert_refused(fixture_t *f, const char *why)
{
    bk_err_t err = {0};
    assert_int_equal(bk_set_check(&f->set, true, NULL, &err), BK_CONFIG);
    assert_contains(err.text, why);
    fixture_free(f);
}

static void set_text(char **place, const char *text)
{
    free(*place);
    *place = bk_strdup(text);
}

static void a_good_set_is_accepted(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    bk_err_t err = {0};
    json_t *warnings = json_array();
    OK(bk_set_check(&f->set, true, warnings, &err), &err);
    assert_int_equal(json_array_size(warnings), 0);
    /* Twice is as good: patterns are compiled anew. */
    OK(bk_set_check(&f->set, true, warnings, &err), &err);
    assert_int_equal(f->set.files[0].exclude_patterns.count, 1);
    json_decref(warnings);
    fixture_free(f);
}

static void a_set_without_sources_or_storage_is_refused(void **state)
{
    (void)state;
    bk_set_t set;
    bk_err_t err = {0};
    OK(bk_set_init(&set, "app", &err), &err);
    assert_int_equal(bk_set_check(&set, true, NULL, &err), BK_CONFIG);
    assert_contains(err.text, "base_dir");
    set.base_dir = bk_strdup("/nowhere/base");
    assert_int_equal(bk_set_check(&set, true, NULL, &err), BK_CONFIG);
    assert_contains(err.text, "protects nothing");
    bk_set_add_db(&set, "main")->path = bk_strdup("/nowhere/app.db");
    assert_int_equal(bk_set_check(&set, true, NULL, &err), BK_CONFIG);
    assert_contains(err.text, "has no storage");
    bk_set_free(&set);
}

static void what_is_captured_has_a_plain_name(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    f->set.dbs[0].pitr_window = 1000;
    set_text(&f->set.dbs[0].name, "Main");
    assert_refused(f, "lower case");
}

static void every_transaction_is_kept_for_a_week_unless_something_else_is_said(void **state)
{
    (void)state;
    bk_set_t set;
    bk_err_t err = {0};
    fixture_t *f = fresh();
    OK(bk_set_init(&set, "app", &err), &err);
    assert_int_equal(set.pitr_window, 7 * 86400000);
    bk_set_free(&set);
    f->set.pitr_window = 5000;
    f->set.dbs[0].pitr_window = 0;
    bk_set_db_t *other = bk_set_add_db(&f->set, "other");
    other->path = text_at(f, "app/other.db");
    OK(bk_set_check(&f->set, true, NULL, &err), &err);
    assert_int_equal(f->set.dbs[0].pitr_window, 0);
    assert_int_equal(f->set.dbs[1].pitr_window, 5000);
    fixture_free(f);
}

static void names_are_plain(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    set_text(&f->set.dbs[0].name, "../x");
    assert_refused(f, "../x");
    f = fresh();
    set_text(&f->set.files[0].name, "");
    assert_refused(f, "a name has");
    f = fresh();
    set_text(&f->set.files[1].name, "uploads");
    assert_refused(f, "used twice");
    f = fresh();
    set_text(&f->set.name, "a/b");
    assert_refused(f, "a/b");
}

static void paths_are_absolute(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    set_text(&f->set.dbs[0].path, "app.db");
    assert_refused(f, "absolute");
    f = fresh();
    set_text(&f->set.files[0].path, "/");
    assert_refused(f, "absolute");
    f = fresh();
    set_text(&f->set.restore_roots[0], "tmp");
    assert_refused(f, "restore_root");
    f = fresh();
    free(f->set.files[0].path);
    f->set.files[0].path = NULL;
    assert_refused(f, "\"path\" is missing");
}

static void a_path_has_one_spelling(void **state)
{
    (void)state;
    bk_err_t err = {0};
    fixture_t *f = fresh();
    set_text(&f->set.files[0].path, "//srv/./app//uploads/.hidden/..more/");
    set_text(&f->set.restore_roots[0], "/srv/.");
    OK(bk_set_check(&f->set, true, NULL, &err), &err);
    assert_string_equal(f->set.files[0].path, "/srv/app/uploads/.hidden/..more");
    assert_string_equal(f->set.restore_roots[0], "/srv");
    set_text(&f->set.files[0].path, "/srv/app/../etc");
    assert_refused(f, "without \"..\"");
    f = fresh();
    set_text(&f->set.files[0].path, "/srv/..");
    assert_refused(f, "without \"..\"");
    f = fresh();
    set_text(&f->set.files[0].path, "//./");
    assert_refused(f, "absolute");
}

static void a_storage_stands_alone(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    bk_set_add_storage(&f->set, "local", "second");
    assert_refused(f, "not supported yet");
}

static void what_would_contain_itself_is_refused(void **state)
{
    (void)state;
    bk_err_t err = {0};
    fixture_t *f = fresh();
    set_text(&f->set.files[0].path, at(f, "base/inside"));
    assert_refused(f, "would contain itself");
    f = fresh();
    set_text(&f->set.files[0].path, at(f, "storage"));
    assert_refused(f, "would contain itself");
    f = fresh();
    set_text(&f->set.base_dir, at(f, "storage/base"));
    assert_refused(f, "must not lie in each other");
    f = fresh();
    set_text(&f->set.dbs[0].path, at(f, "storage/app.db"));
    assert_refused(f, "choose another directory");
    /* Also through a link. */
    f = fresh();
    assert_int_equal(mkdir(at(f, "base"), 0700), 0);
    assert_int_equal(symlink(at(f, "base"), at(f, "alias")), 0);
    set_text(&f->set.files[0].path, at(f, "alias/inside"));
    assert_refused(f, "would contain itself");
    /* The other way round is fine: it is left out. */
    f = fresh();
    json_t *warnings = json_array();
    set_text(&f->set.files[0].path, f->dir);
    set_text(&f->set.files[1].path, at(f, "app/transcripts"));
    OK(bk_set_check(&f->set, true, warnings, &err), &err);
    assert_int_equal(json_array_size(warnings), 3); /* base_dir, storage, the other tree */
    json_decref(warnings);
    fixture_free(f);
}

static void keys_are_there_and_private(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    assert_int_equal(chmod(at(f, "k1.key"), 0644), 0);
    assert_refused(f, "chmod");
    f = fresh();
    assert_int_equal(unlink(at(f, "k1.key")), 0);
    bk_err_t err = {0};
    assert_int_equal(bk_set_check(&f->set, true, NULL, &err), BK_NOT_FOUND);
    assert_contains(err.text, "k1.key");
    fixture_free(f);
    f = fresh();
    f->set.passphrase_file = text_at(f, "pass");
    assert_refused(f, "not both");
}

static void patterns_are_told_with_their_position(void **state)
{
    (void)state;
    bk_err_t err = {0};
    fixture_t *f = fresh();
    OK(bk_set_add_text(&f->set.files[1].match, "ab[c", &err), &err);
    assert_refused(f, "position");
}

static void numbers_have_ranges(void **state)
{
    (void)state;
    fixture_t *f = fresh();
    f->set.compression.level = 20;
    assert_refused(f, "1 to 19");
    f = fresh();
    f->set.compression = (bk_compression_t){.codec = BK_CODEC_GZIP, .level = 10};
    assert_refused(f, "1 to 9");
    f = fresh();
    f->set.compression = (bk_compression_t){.codec = BK_CODEC_RAW};
    bk_err_t err = {0};
    OK(bk_set_check(&f->set, true, NULL, &err), &err);
    f->set.lanes = 17;
    assert_refused(f, "lanes");
}

static void the_description_tells_no_secret(void **state)
{
    (void)state;
    bk_err_t err = {0};
    fixture_t *f = fresh();
    OK(bk_storage_config_set(&f->set.storages[0], "secret_key", "hunter2", &err), &err);
    json_t *set = bk_set_describe(&f->set);
    char *text = json_dumps(set, 0);
    assert_null(strstr(text, "hunter2"));
    assert_null(strstr(text, "k1.key"));
    assert_contains(text, "\"enabled\": true");
    assert_contains(text, at(f, "app/app.db"));
    free(text);
    json_decref(set);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_set_is_accepted),
        cmocka_unit_test(a_set_without_sources_or_storage_is_refused),
        cmocka_unit_test(what_is_captured_has_a_plain_name),
        cmocka_unit_test(every_transaction_is_kept_for_a_week_unless_something_else_is_said),
        cmocka_unit_test(names_are_plain),
        cmocka_unit_test(paths_are_absolute),
        cmocka_unit_test(a_path_has_one_spelling),
        cmocka_unit_test(a_storage_stands_alone),
        cmocka_unit_test(what_would_contain_itself_is_refused),
        cmocka_unit_test(keys_are_there_and_private),
        cmocka_unit_test(patterns_are_told_with_their_position),
        cmocka_unit_test(numbers_have_ranges),
        cmocka_unit_test(the_description_tells_no_secret),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
