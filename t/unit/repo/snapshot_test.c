/*
 * t/unit/repo/snapshot_test.c: snapshots as JSON and back, every wrong member named, and the listing with its cache.
 */
#include "unit/repo/repo_testing.h"

#include <dirent.h>
#include <errno.h>

#include "base/json.h"
#include "repo/snapshot.h"

static char *copy(const char *text)
{
    char *s = bk_strdup(text);
    assert_non_null(s);
    return s;
}

static void fill(bk_snapshot_t *s, const char *id)
{
    bk_snapshot_init(s);
    bk_strcpy(s->backup_id, sizeof s->backup_id, id);
    bk_strcpy(s->kind, sizeof s->kind, "incremental");
    bk_strcpy(s->parent, sizeof s->parent, "full_20251015_143000");
    bk_strcpy(s->job, sizeof s->job, "01K7M0Z8JXQ4");
    s->set = copy("transcriber");
    s->host = copy("h\xf6st");
    s->started = 1760538600000000001;
    s->completed = 1760538600000000003;
    s->instant = 1760538600000000002;
    s->description = copy("before the\nupgrade \\o/");
    s->tags = json_pack("[ss]", "a", "b");
    s->config = json_pack("{s{si}}", "files", "max", 3);
    s->unreadable = json_pack("[{ss si ss}]", "path", "x\\xff", "errno", 13, "error", "denied");
    s->unreadable_total = 5;
    s->stats = json_pack("{sI}", "bytes_new", (json_int_t)INT64_MAX);
    s->pinned = true;
    s->previous = copy("snapshots/full_20251015_143000-00112233445566778899aabbccddeeff"
                       "00112233445566778899aabbccddeeff");
    s->trees = calloc(2, sizeof *s->trees);
    s->dbs = calloc(1, sizeof *s->dbs);
    assert_true(s->trees != NULL && s->dbs != NULL);
    s->tree_count = 2;
    s->trees[0] = (bk_snapshot_tree_t){.name = copy("audio"),
                                       .path = copy("/srv/\xff\x01/audio"),
                                       .entries = 3,
                                       .files = 12,
                                       .bytes = 1ull << 50,
                                       .described = true,
                                       .mode = 02750,
                                       .uid = UINT32_MAX,
                                       .gid = 7,
                                       .user = "app",
                                       .mtime = 1760538600000000003};
    memset(s->trees[0].root.b, 0xab, BK_ID_SIZE);
    s->trees[1] = (bk_snapshot_tree_t){.name = copy("t"), .path = copy("/")};
    s->db_count = 1;
    s->dbs[0] = (bk_snapshot_db_t){.name = copy("main"),
                                   .path = copy("/srv/app.db"),
                                   .map = {.count = 2000, .depth = 1},
                                   .page_size = 4096,
                                   .block_size = 65536,
                                   .page_count = 32000,
                                   .digest = 0xfedcba9876543210u,
                                   .journal = copy("wal"),
                                   .instant = 1760538600000000002,
                                   .uid = 33,
                                   .gid = UINT32_MAX,
                                   .mode = 0640};
    memset(s->dbs[0].map.root.b, 0xcd, BK_ID_SIZE);
}

static void everything_comes_back(void **state)
{
    bk_snapshot_t s, got;
    bk_buf_t text, again;
    bk_err_t err = {0};
    (void)state;
    fill(&s, "incremental_20251015_150000_12");
    bk_buf_init(&text, 1u << 20);
    bk_buf_init(&again, 1u << 20);
    OK(bk_snapshot_encode(&s, &text, &err), &err);
    OK(bk_snapshot_decode(text.data, text.len, &got, &err), &err);
    assert_string_equal(got.backup_id, s.backup_id);
    assert_string_equal(got.kind, s.kind);
    assert_string_equal(got.parent, s.parent);
    assert_string_equal(got.job, s.job);
    assert_string_equal(got.set, s.set);
    assert_string_equal(got.host, s.host);
    assert_string_equal(got.description, s.description);
    assert_string_equal(got.previous, s.previous);
    assert_true(got.started == s.started && got.completed == s.completed &&
                got.instant == s.instant);
    assert_true(json_equal(got.tags, s.tags) && json_equal(got.config, s.config) &&
                json_equal(got.unreadable, s.unreadable) && json_equal(got.stats, s.stats));
    assert_true(got.unreadable_total == 5 && got.pinned);
    assert_int_equal(got.tree_count, 2);
    assert_string_equal(got.trees[0].path, s.trees[0].path);
    assert_true(bk_id_equal(&got.trees[0].root, &s.trees[0].root));
    assert_true(got.trees[0].entries == 3 && got.trees[0].files == 12 &&
                got.trees[0].bytes == 1ull << 50);
    assert_true(got.trees[0].described && got.trees[0].mode == 02750 &&
                got.trees[0].uid == UINT32_MAX && got.trees[0].gid == 7 &&
                got.trees[0].mtime == s.trees[0].mtime);
    assert_string_equal(got.trees[0].user, "app");
    assert_string_equal(got.trees[0].group, "");
    assert_false(got.trees[1].described);
    const bk_snapshot_db_t *db = &got.dbs[0];
    assert_int_equal(got.db_count, 1);
    assert_true(bk_id_equal(&db->map.root, &s.dbs[0].map.root) && db->map.count == 2000 &&
                db->map.depth == 1);
    assert_true(db->page_size == 4096 && db->block_size == 65536 && db->page_count == 32000 &&
                db->digest == s.dbs[0].digest && db->instant == s.dbs[0].instant);
    assert_true(db->uid == 33 && db->gid == UINT32_MAX && db->mode == 0640);
    assert_string_equal(db->journal, "wal");
    /* Canonical: the same value is the same bytes. */
    OK(bk_snapshot_encode(&got, &again, &err), &err);
    assert_int_equal(again.len, text.len);
    assert_memory_equal(again.data, text.data, text.len);
    bk_snapshot_free(&got);
    bk_snapshot_free(&s);
    bk_buf_free(&text);
    bk_buf_free(&again);
}

static void the_least_snapshot_comes_back(void **state)
{
    bk_snapshot_t s, got;
    bk_buf_t text;
    bk_err_t err = {0};
    (void)state;
    bk_snapshot_init(&s);
    bk_strcpy(s.backup_id, sizeof s.backup_id, "full_20251015_143000");
    bk_strcpy(s.kind, sizeof s.kind, "full");
    s.set = copy("");
    s.host = copy("");
    bk_buf_init(&text, 1u << 20);
    OK(bk_snapshot_encode(&s, &text, &err), &err);
    OK(bk_snapshot_decode(text.data, text.len, &got, &err), &err);
    assert_null(got.description);
    assert_null(got.previous);
    assert_int_equal(json_array_size(got.tags), 0);
    assert_false(got.pinned);
    bk_snapshot_free(&got);
    bk_snapshot_free(&s);
    bk_buf_free(&text);
}

/* What the member at path ("a", or "databases/0/a") becomes; NULL value: it is taken out. */
static bk_rc_t decode_with(const bk_buf_t *text, const char *path, json_t *value, bk_err_t *err)
{
    bk_snapshot_t got;
    bk_buf_t changed;
    json_t *root = json_loadb((const char *)text->data, text->len, 0, NULL), *at = root;
    const char *slash, *name = path;
    assert_non_null(root);
    while ((slash = strchr(name, '/')) != NULL) {
        char part[64];
        bk_fmt(part, sizeof part, "%.*s", (int)(slash - name), name);
        at = json_is_array(at) ? json_array_get(at, (size_t)(part[0] - '0'))
                               : json_object_get(at, part);
        assert_non_null(at);
        name = slash + 1;
    }
    if (value == NULL)
        assert_int_equal(json_object_del(at, name), 0);
    else
        assert_int_equal(json_object_set_new(at, name, value), 0);
    bk_buf_init(&changed, 1u << 20);
    OK(bk_json_dump(root, true, &changed, err), err);
    json_decref(root);
    bk_rc_t rc = bk_snapshot_decode(changed.data, changed.len, &got, err);
    if (rc == BK_OK)
        bk_snapshot_free(&got);
    bk_buf_free(&changed);
    return rc;
}

static void every_missing_or_wrong_member_is_named(void **state)
{
    static const char *const members[] = {
        "backup_id",
        "set",
        "host",
        "kind",
        "parent",
        "job",
        "started",
        "completed",
        "instant",
        "trees",
        "databases",
        "tags",
        "config",
        "unreadable",
        "unreadable_total",
        "stats",
        "format",
        "trees/0/name",
        "trees/0/path",
        "trees/1/root",
        "trees/0/entries",
        "trees/0/files",
        "trees/0/bytes",
        "databases/0/name",
        "databases/0/path",
        "databases/0/map",
        "databases/0/depth",
        "databases/0/page_size",
        "databases/0/mode",
        "databases/0/block_size",
        "databases/0/uid",
        "databases/0/gid",
        "databases/0/digest",
        "databases/0/page_count",
        "databases/0/instant",
        "databases/0/journal",
        "databases/0/blocks",
        "unreadable/0/path",
        "unreadable/0/errno",
        "unreadable/0/error",
    };
    bk_snapshot_t s;
    bk_buf_t text;
    bk_err_t err = {0};
    (void)state;
    fill(&s, "incremental_20251015_150000");
    bk_buf_init(&text, 1u << 20);
    OK(bk_snapshot_encode(&s, &text, &err), &err);
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        const char *name =
            strrchr(members[i], '/') != NULL ? strrchr(members[i], '/') + 1 : members[i];
        if (strncmp(members[i], "unreadable/", 11) == 0)
            name = "unreadable";
        assert_int_equal(decode_with(&text, members[i], NULL, &err), BK_CORRUPT);
        if (strstr(err.text, name) == NULL)
            fail_msg("%s: %s", members[i], err.text);
        assert_int_equal(decode_with(&text, members[i], json_true(), &err), BK_CORRUPT);
        assert_int_equal(decode_with(&text, members[i], json_real(1.5), &err), BK_CORRUPT);
    }
    bk_buf_free(&text);
    bk_snapshot_free(&s);
}

static void impossible_values_are_refused(void **state)
{
    bk_snapshot_t s;
    bk_buf_t text;
    bk_err_t err = {0};
    struct {
        const char *path;
        json_t *value;
    } cases[] = {
        {"backup_id", json_string("../x")},
        {"backup_id", json_string("")},
        {"parent", json_string("a/b")},
        {"kind", json_string("differential")},
        {"host", json_string("a\\x00b")},
        {"host", json_string("a\\q")},
        {"started", json_integer(-1)},
        {"pinned", json_integer(1)},
        {"pinned", NULL},
        {"description", json_integer(1)},
        {"previous", json_array()},
        {"tags", json_pack("[i]", 1)},
        {"unreadable_total", json_integer(0)},
        {"trees/0/root", json_string("ab")},
        {"trees/0/root", json_string("zz112233445566778899aabbccddeeff"
                                     "00112233445566778899aabbccddeeff")},
        {"databases/0/page_size", json_integer(1000)},
        {"databases/0/page_size", json_integer(131072)},
        {"databases/0/page_size", json_integer(256)},
        {"databases/0/block_size", json_integer(2048)},
        {"databases/0/block_size", json_integer(12288)},
        {"databases/0/page_count", json_integer(32017)},
        {"databases/0/page_count", json_integer(1ll << 40)},
        {"databases/0/blocks", json_integer(1999)},
        {"databases/0/depth", json_integer(0)},
        {"databases/0/depth", json_integer(2)},
        {"databases/0/mode", json_integer(010000)},
        {"databases/0/digest", json_string("0123")},
    };
    (void)state;
    fill(&s, "incremental_20251015_150000");
    bk_buf_init(&text, 1u << 20);
    OK(bk_snapshot_encode(&s, &text, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (decode_with(&text, cases[i].path, cases[i].value, &err) != BK_CORRUPT)
            fail_msg("%s (case %zu) was believed", cases[i].path, i);
    assert_int_equal(decode_with(&text, "format", json_integer(2), &err), BK_UNSUPPORTED);
    /* What a later version adds does no harm. */
    assert_int_equal(decode_with(&text, "new_member", json_string("x"), &err), BK_OK);
    bk_snapshot_t got;
    static const char *const texts[] = {"", "{}", "[]", "null", "1", "{\"format\":1", "\xff"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_int_equal(bk_snapshot_decode(texts[i], strlen(texts[i]), &got, &err), BK_CORRUPT);
    bk_buf_free(&text);
    bk_snapshot_free(&s);
}

static void a_snapshot_nobody_could_read_is_not_written(void **state)
{
    bk_snapshot_t s;
    bk_buf_t text;
    bk_err_t err = {0};
    (void)state;
    fill(&s, "incremental_20251015_150000");
    bk_buf_init(&text, 1u << 20);
    s.dbs[0].map.count = 1;
    assert_int_equal(bk_snapshot_encode(&s, &text, &err), BK_CORRUPT);
    assert_non_null(strstr(err.text, "blocks"));
    bk_buf_free(&text);
    bk_snapshot_free(&s);
}

static void only_plain_words_are_backup_ids(void **state)
{
    static const char *const good[] = {"full_20251015_143000", "incremental_20251015_143000_12",
                                       "safety_20251015_143000"};
    static const char *const bad[] = {"",    ".",  "..",  "a/b",     "/etc",     "A", "full-1",
                                      "a b", "1a", "a\n", "full_..", "\xc3\xa4", "_a"};
    char longest[BK_BACKUP_ID + 1];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(bk_backup_id_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(bk_backup_id_valid(bad[i]));
    memset(longest, 'a', sizeof longest);
    longest[BK_BACKUP_ID - 1] = '\0';
    assert_true(bk_backup_id_valid(longest));
    longest[BK_BACKUP_ID - 1] = 'a';
    longest[BK_BACKUP_ID] = '\0';
    assert_false(bk_backup_id_valid(longest));
}

/* --- the list --- */

static void commit(fixture_t *f, const char *id, const char *kind, int64_t completed, bool upload)
{
    bk_snapshot_t s;
    bk_buf_t body;
    bk_session_t *session = fixture_session(f, upload);
    fill(&s, id);
    bk_strcpy(s.kind, sizeof s.kind, kind);
    s.completed = completed;
    bk_buf_init(&body, 1u << 20);
    OK(bk_snapshot_encode(&s, &body, &f->err), &f->err);
    OK(bk_session_commit(session, id, body.data, body.len, &f->err), &f->err);
    bk_buf_free(&body);
    bk_snapshot_free(&s);
}

static size_t files_in(const char *dir)
{
    size_t count = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d)) != NULL;)
        count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

static void the_list_is_sorted_by_time_and_finds_by_id(void **state)
{
    fixture_t f;
    bk_snapshot_list_t list;
    const bk_snapshot_t *found;
    (void)state;
    fixture_start(&f, true);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 0);
    assert_int_equal(bk_snapshot_find(&list, "latest", &found, &f.err), BK_NOT_FOUND);
    bk_snapshot_list_free(&list);
    commit(&f, "full_20251015_143000", "full", 3000, true);
    commit(&f, "incremental_20251015_150000", "incremental", 1000, true);
    commit(&f, "safety_20251016_000000", "safety", 9000, true);
    commit(&f, "full_20251015_143000_2", "full", 2000, false);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 4);
    assert_int_equal(list.damaged, 0);
    assert_string_equal(list.items[0].backup_id, "incremental_20251015_150000");
    assert_string_equal(list.items[1].backup_id, "full_20251015_143000_2");
    assert_string_equal(list.items[2].backup_id, "full_20251015_143000");
    assert_string_equal(list.items[3].backup_id, "safety_20251016_000000");
    OK(bk_snapshot_find(&list, "latest", &found, &f.err), &f.err);
    assert_string_equal(found->backup_id, "full_20251015_143000");
    OK(bk_snapshot_find(&list, "safety_20251016_000000", &found, &f.err), &f.err);
    assert_ptr_equal(found, &list.items[3]);
    assert_int_equal(bk_snapshot_find(&list, "full_1", &found, &f.err), BK_NOT_FOUND);
    assert_non_null(strstr(f.err.text, "full_20251015_143000"));
    /* A removed one is gone, wherever it was. */
    for (size_t i = 0; i < 2; i++)
        OK(bk_snapshot_remove(f.repo, &list.items[i], &f.ctl, &f.err), &f.err);
    bk_snapshot_list_free(&list);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 2);
    bk_snapshot_list_free(&list);
    fixture_end(&f);
}

static void overwrite(const char *dir, const char *object, size_t offset)
{
    char path[600];
    bk_fmt(path, sizeof path, "%s/%s", dir, object);
    assert_int_equal(chmod(path, 0600), 0);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    assert_int_not_equal(fputc(byte ^ 0x20, file), EOF);
    assert_int_equal(fclose(file), 0);
}

static void the_cache_serves_checks_and_forgets(void **state)
{
    fixture_t f;
    bk_snapshot_list_t list;
    char cache[300], cached[400], storage[300], name[BK_STORAGE_NAME];
    (void)state;
    fixture_start(&f, true);
    bk_fmt(cache, sizeof cache, "%s/cache", f.dir);
    bk_fmt(cached, sizeof cached, "%s/snapshots", cache);
    bk_fmt(storage, sizeof storage, "%s/storage", f.dir);
    commit(&f, "full_20251015_143000", "full", 1, true);
    commit(&f, "full_20251015_143001", "full", 2, true);
    OK(bk_snapshot_list(f.repo, cache, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 2);
    assert_int_equal(files_in(cached), 2);
    bk_strcpy(name, sizeof name, list.items[0].object);
    bk_snapshot_list_free(&list);

    /* What is in the cache is not read from the storage again: damage there is not seen. */
    overwrite(storage, name, 100);
    OK(bk_snapshot_list(f.repo, cache, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 2);
    bk_snapshot_list_free(&list);

    /* A cached file that rots is not believed; here the storage's copy is damaged, too. */
    overwrite(cache, name, 100);
    OK(bk_snapshot_list(f.repo, cache, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 2 - 1);
    assert_int_equal(list.damaged, 1);
    assert_int_equal(f.ctl.notes_total, 1);
    assert_non_null(strstr(f.ctl.notes[0], name));
    bk_snapshot_list_free(&list);

    /* Mend the storage: it comes back. */
    overwrite(storage, name, 100);
    OK(bk_snapshot_list(f.repo, cache, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 2);
    OK(bk_snapshot_remove(f.repo, &list.items[0], &f.ctl, &f.err), &f.err);
    bk_snapshot_list_free(&list);
    OK(bk_snapshot_list(f.repo, cache, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 1);
    assert_int_equal(files_in(cached), 1);
    bk_snapshot_list_free(&list);
    fixture_end(&f);
}

static void a_snapshot_under_a_foreign_name_is_damage(void **state)
{
    fixture_t f;
    bk_snapshot_list_t list;
    bk_buf_t body, object;
    bk_snapshot_t s;
    bk_id_t digest;
    char name[BK_STORAGE_NAME], hex[BK_ID_HEX];
    (void)state;
    fixture_start(&f, false);
    commit(&f, "full_20251015_143000", "full", 1, true);
    fill(&s, "full_20251015_143001");
    bk_buf_init(&body, 1u << 20);
    bk_buf_init(&object, 1u << 20);
    OK(bk_snapshot_encode(&s, &body, &f.err), &f.err);
    OK(bk_object_wrap(bk_repo_keyring(f.repo), bk_repo_uuid(f.repo), BK_KIND_SNAPSHOT, body.data,
                      body.len, &object, &f.err),
       &f.err);
    bk_sha256(&digest, object.data, object.len);
    bk_id_hex(hex, &digest);
    /* The right content under another id, and other things under the right kind of name. */
    bk_fmt(name, sizeof name, "snapshots/full_20251015_14300-%s", hex);
    OK(bk_storage_put(f.storage, name, object.data, object.len, true, NULL, &f.err), &f.err);
    bk_fmt(name, sizeof name, "snapshots/full_20251015_143001-x-%s", hex);
    OK(bk_storage_put(f.storage, name, object.data, object.len, true, NULL, &f.err), &f.err);
    OK(bk_storage_put(f.storage, "snapshots/junk", "junk", 4, true, NULL, &f.err), &f.err);
    OK(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), &f.err);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.damaged, 3);
    bk_snapshot_list_free(&list);
    bk_ctl_stop(&f.ctl, BK_CANCELED);
    assert_int_equal(bk_snapshot_list(f.repo, NULL, &f.ctl, &list, &f.err), BK_CANCELED);
    assert_int_equal(list.count, 0);
    bk_buf_free(&body);
    bk_buf_free(&object);
    bk_snapshot_free(&s);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_comes_back),
        cmocka_unit_test(the_least_snapshot_comes_back),
        cmocka_unit_test(every_missing_or_wrong_member_is_named),
        cmocka_unit_test(impossible_values_are_refused),
        cmocka_unit_test(a_snapshot_nobody_could_read_is_not_written),
        cmocka_unit_test(only_plain_words_are_backup_ids),
        cmocka_unit_test(the_list_is_sorted_by_time_and_finds_by_id),
        cmocka_unit_test(the_cache_serves_checks_and_forgets),
        cmocka_unit_test(a_snapshot_under_a_foreign_name_is_damage),
    };
    return cmocka_run_group_tests_name("repo/snapshot", tests, NULL, NULL);
}
