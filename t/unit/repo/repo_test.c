/*
 * t/unit/repo/repo_test.c: opening, creating, keys, single chunks.
 */
#include "unit/repo/fixture.h"

static int set_up_plain(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    setup_fixture(f, true);
    *state = f;
    return 0;
}

static int set_up_encrypted(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    setup_fixture(f, false);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    teardown_fixture(*state);
    free(*state);
    return 0;
}

static void an_empty_storage_is_repo_missing_and_says_what_to_do(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    assert_int_equal(try_repo(f, f->key, false, &repo, &err), BK_REPO_MISSING);
    assert_non_null(strstr(err.text, "disk"));
    assert_null(repo);
}

static void a_made_repository_opens_again_with_the_same_uuid(void **state)
{
    fixture_t *f = *state;
    uint8_t uuid[BK_UUID_SIZE];
    open_repo(f);
    assert_int_equal(bk_repo_encrypted(f->repo), f->encrypted);
    memcpy(uuid, bk_repo_uuid(f->repo), sizeof uuid);
    reopen_repo(f);
    assert_memory_equal(uuid, bk_repo_uuid(f->repo), sizeof uuid);
}

static void format_tells_a_person_how_to_restore(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_buf_t text;
    json_t *format = NULL;
    open_repo(f);
    bk_buf_init(&text, 65536);
    assert_ok(bk_storage_get_all(f->storage, "FORMAT", &text, NULL, &err));
    assert_ok(bk_json_parse(text.data, text.len, &format, &err));
    assert_string_equal(json_string_value(json_object_get(format, "format")),
                        "ngx-backup repository");
    assert_int_equal(json_integer_value(json_object_get(format, "version")), 1);
    assert_int_equal(json_is_true(json_object_get(format, "encrypted")), f->encrypted);
    assert_int_equal(json_string_length(json_object_get(format, "repository")), 32);
    assert_non_null(strstr(json_string_value(json_object_get(format, "restore")), "ngx-backup"));
    json_decref(format);
    bk_buf_free(&text);
}

static void another_key_is_wrong_key(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    uint8_t other[BK_KEY_SIZE];
    open_repo(f);
    bk_random(other, sizeof other);
    assert_int_equal(try_repo(f, other, false, &repo, &err), BK_WRONG_KEY);
    assert_int_equal(try_repo(f, NULL, false, &repo, &err), BK_CONFIG);
}

static void a_key_for_a_plain_repository_is_a_mistake_of_configuration(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    open_repo(f);
    f->encrypted = true;
    assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_CONFIG);
}

static void a_damaged_slot_is_not_called_a_wrong_key(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    open_repo(f);
    listing_t *slots = list_objects(f->storage, "keys/");
    assert_int_equal(slots->count, 1);
    bk_buf_t slot;
    bk_buf_init(&slot, 65536);
    assert_ok(bk_storage_get_all(f->storage, slots->names[0], &slot, NULL, &err));
    char *wrapped = strstr(bk_buf_str(&slot), "\"wrapped\":\"");
    assert_non_null(wrapped);
    wrapped[20] = wrapped[20] == '0' ? '1' : '0';
    assert_ok(bk_storage_put(f->storage, slots->names[0], slot.data, slot.len, false, NULL, &err));
    assert_int_equal(try_repo(f, f->key, false, &repo, &err), BK_CORRUPT);
    bk_buf_free(&slot);
    free(slots);
}

static void put_format(fixture_t *f, const char *text)
{
    bk_err_t err = {0};
    assert_ok(bk_storage_put(f->storage, "FORMAT", text, strlen(text), false, NULL, &err));
}

static void a_newer_or_damaged_format_is_refused(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    put_format(f, "{\"format\":\"ngx-backup repository\",\"version\":2,\"encrypted\":false,"
                  "\"repository\":\"00112233445566778899aabbccddeeff\"}");
    assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_UNSUPPORTED);
    put_format(f, "not json");
    assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_CORRUPT);
    put_format(f, "{\"format\":\"something else\",\"version\":1}");
    assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_CORRUPT);
    put_format(f, "");
    assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_CORRUPT);
    put_format(f, "{\"format\":\"ngx-backup repository\",\"version\":1,\"encrypted\":\"maybe\","
                  "\"repository\":\"00112233445566778899aabbccddeeff\"}");
    assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_CORRUPT);
}

/* A creator that died between slot and FORMAT leaves a slot of another keyring that the same key opens. */
/* A new keyring among old packs would hide what FORMAT, once it is back, makes readable. */
static void no_repository_is_begun_in_what_is_left_of_another(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    char from[512], to[512];
    open_repo(f);
    bk_session_t *session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 1, 5000);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    bk_repo_close(f->repo);
    f->repo = NULL;
    fixture_path(f, "storage/FORMAT", from);
    assert_int_equal(rename(from, fixture_path(f, "FORMAT", to)), 0);
    static const char *const left[] = {"snapshots", "packs", "index"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        char part[512], name[64], aside[512];
        err = (bk_err_t){0};
        assert_int_equal(try_repo(f, f->key, true, &repo, &err), BK_CONFLICT);
        assert_non_null(strstr(err.text, left[i]));
        assert_non_null(strstr(err.text, "Put FORMAT back"));
        bk_fmt(name, sizeof name, "storage/%s", left[i]);
        assert_int_equal(rename(fixture_path(f, name, part), fixture_path(f, left[i], aside)), 0);
    }
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        char part[512], name[64], aside[512];
        bk_fmt(name, sizeof name, "storage/%s", left[i]);
        assert_int_equal(rename(fixture_path(f, left[i], aside), fixture_path(f, name, part)), 0);
    }
    assert_int_equal(count_objects(f->storage, "keys/"), f->encrypted ? 1 : 0);
    assert_int_equal(rename(to, from), 0);
    open_repo(f);
    assert_seed(f->repo, &id, 1, 5000);
}

static void a_slot_left_by_a_creator_that_died_is_passed_over(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_id_t id;
    open_repo(f);
    assert_ok(bk_storage_remove(f->storage, "FORMAT", NULL, &err));
    reopen_repo(f); /* makes a second repository beside the first slot */
    assert_int_equal(count_objects(f->storage, "keys/"), 2);
    bk_session_t *session = begin_session(f, true);
    id = put_seed(session, BK_TYPE_FILE, 7, 5000);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    reopen_repo(f);
    assert_seed(f->repo, &id, 7, 5000);
}

/* Such a slot must not count as the one that still opens the repository. */
static void the_last_slot_that_opens_the_repository_is_not_removed(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    json_t *list = NULL;
    open_repo(f);
    assert_ok(bk_storage_remove(f->storage, "FORMAT", NULL, &err));
    reopen_repo(f);
    assert_ok(bk_repo_key_list(f->repo, &list, NULL, &err));
    assert_int_equal(json_array_size(list), 1);
    const char *slot = json_string_value(json_object_get(json_array_get(list, 0), "slot"));
    assert_non_null(slot);
    assert_int_equal(bk_repo_key_remove(f->repo, slot, NULL, &err), BK_CONFLICT);
    json_decref(list);
}

static void keys_are_added_listed_and_removed_but_the_last(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    uint8_t second[BK_KEY_SIZE];
    bk_secret_t secret = {.key = second};
    char name[64];
    json_t *list = NULL;

    bk_random(second, sizeof second);
    open_repo(f);
    assert_ok(bk_repo_key_add(f->repo, &secret, "spare", name, sizeof name, NULL, &err));
    assert_ok(try_repo(f, second, false, &repo, &err));
    bk_repo_close(repo);
    assert_ok(bk_repo_key_list(f->repo, &list, NULL, &err));
    assert_int_equal(json_array_size(list), 2);
    const char *first = NULL;
    for (size_t i = 0; i < 2; i++) {
        const json_t *item = json_array_get(list, i);
        const char *slot = json_string_value(json_object_get(item, "slot"));
        assert_non_null(slot);
        if (strcmp(slot, name) == 0)
            assert_string_equal(json_string_value(json_object_get(item, "label")), "spare");
        else
            first = slot;
    }
    assert_non_null(first);
    assert_int_equal(bk_repo_key_remove(f->repo, "nothing", NULL, &err), BK_NOT_FOUND);
    assert_ok(bk_repo_key_remove(f->repo, first, NULL, &err));
    assert_int_equal(bk_repo_key_remove(f->repo, name, NULL, &err), BK_CONFLICT);
    assert_int_equal(try_repo(f, f->key, false, &repo, &err), BK_WRONG_KEY);
    assert_ok(try_repo(f, second, false, &repo, &err));
    bk_repo_close(repo);
    json_decref(list);
}

static void a_plain_repository_has_no_keys_to_add(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_secret_t secret = {.key = f->key};
    open_repo(f);
    assert_int_equal(bk_repo_key_add(f->repo, &secret, "x", NULL, 0, NULL, &err), BK_INVALID);
}

typedef struct {
    fixture_t *f;
    bk_repo_t *repo;
    bk_rc_t rc;
    bk_err_t err;
} creator_t;

static void *create_it(void *arg)
{
    creator_t *creator = arg;
    creator->rc = try_repo(creator->f, creator->f->key, true, &creator->repo, &creator->err);
    return NULL;
}

static void creators_that_race_end_with_one_repository(void **state)
{
    fixture_t *f = *state;
    enum { CREATORS = 6 };
    pthread_t threads[CREATORS];
    creator_t creators[CREATORS];
    for (size_t i = 0; i < CREATORS; i++) {
        creators[i] = (creator_t){.f = f};
        assert_int_equal(pthread_create(&threads[i], NULL, create_it, &creators[i]), 0);
    }
    bk_id_t first = {0}, id;
    for (size_t i = 0; i < CREATORS; i++) {
        pthread_join(threads[i], NULL);
        if (creators[i].rc != BK_OK)
            fail_msg("creator %zu: %s", i, creators[i].err.text);
        bk_chunk_id(bk_repo_keyring(creators[i].repo), 1, "same", 4, i == 0 ? &first : &id);
        if (i > 0)
            assert_memory_equal(first.b, id.b, sizeof id.b);
        assert_memory_equal(bk_repo_uuid(creators[0].repo), bk_repo_uuid(creators[i].repo),
                            BK_UUID_SIZE);
    }
    for (size_t i = 0; i < CREATORS; i++)
        bk_repo_close(creators[i].repo);
    /* Who lost took its slot away. */
    assert_int_equal(count_objects(f->storage, "keys/"), f->encrypted ? 1 : 0);
}

static void an_unknown_chunk_is_corrupt_not_a_crash(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_buf_t out;
    bk_id_t id;
    open_repo(f);
    memset(&id, 0x5a, sizeof id);
    bk_buf_init(&out, BK_CHUNK_MAX);
    assert_int_equal(bk_repo_get(f->repo, &id, &out, NULL, &err), BK_CORRUPT);
    assert_int_equal(out.len, 0);
    bk_buf_free(&out);
}

#define BOTH(test)                                                                                 \
    cmocka_unit_test_setup_teardown(test, set_up_plain, tear_down),                                \
        cmocka_unit_test_setup_teardown(test, set_up_encrypted, tear_down)
#define PLAIN(test)     cmocka_unit_test_setup_teardown(test, set_up_plain, tear_down)
#define ENCRYPTED(test) cmocka_unit_test_setup_teardown(test, set_up_encrypted, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(an_empty_storage_is_repo_missing_and_says_what_to_do),
        BOTH(no_repository_is_begun_in_what_is_left_of_another),
        BOTH(a_made_repository_opens_again_with_the_same_uuid),
        BOTH(format_tells_a_person_how_to_restore),
        ENCRYPTED(another_key_is_wrong_key),
        PLAIN(a_key_for_a_plain_repository_is_a_mistake_of_configuration),
        ENCRYPTED(a_damaged_slot_is_not_called_a_wrong_key),
        PLAIN(a_newer_or_damaged_format_is_refused),
        ENCRYPTED(a_slot_left_by_a_creator_that_died_is_passed_over),
        ENCRYPTED(the_last_slot_that_opens_the_repository_is_not_removed),
        ENCRYPTED(keys_are_added_listed_and_removed_but_the_last),
        PLAIN(a_plain_repository_has_no_keys_to_add),
        BOTH(creators_that_race_end_with_one_repository),
        BOTH(an_unknown_chunk_is_corrupt_not_a_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
