/*
 * t/unit/repo/durability_test.c: what a session writes, in which order, and what is left when it stops anywhere.
 */
#include "unit/repo/fixture.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "crypto/object.h"

static int set_up_plain(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    setup_fixture(f, true);
    open_repo(f);
    *state = f;
    return 0;
}

static int set_up_encrypted(void **state)
{
    fixture_t *f = calloc(1, sizeof *f);
    setup_fixture(f, false);
    open_repo(f);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    teardown_fixture(*state);
    free(*state);
    return 0;
}

static void chunks_come_back_after_commit_and_in_a_new_process(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    static const size_t sizes[] = {0, 1, 100, 4096, 70000, 600000, BK_CHUNK_MAX};
    bk_id_t ids[7][2];
    bk_session_t *session = begin_session(f, true);
    for (size_t i = 0; i < 7; i++) {
        ids[i][0] = put_seed(session, BK_TYPE_FILE, i + 1, sizes[i]);
        ids[i][1] = put_seed(session, BK_TYPE_TREE, i + 1, sizes[i] > 65536 ? 65536 : sizes[i]);
    }
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < 7; i++) {
            assert_seed(f->repo, &ids[i][0], i + 1, sizes[i]);
            assert_seed(f->repo, &ids[i][1], i + 1, sizes[i] > 65536 ? 65536 : sizes[i]);
        }
        reopen_repo(f);
    }
    assert_int_equal(count_objects(f->storage, "snapshots/full_20251015_143000-"), 1);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    assert_int_equal(count_spool(f, NULL), 0);
}

static void equal_bytes_are_stored_once_within_and_across_backups(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_stats_t stats;
    bk_session_t *session = begin_session(f, true);
    for (int i = 0; i < 5; i++)
        put_seed(session, BK_TYPE_FILE, 42, 100000);
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 1);
    assert_int_equal(stats.chunks_known, 4);
    assert_int_equal(stats.bytes_new, 100000);
    assert_int_equal(stats.bytes_known, 400000);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    size_t packs = count_objects(f->storage, "packs/");
    session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 42, 100000);
    assert_true(bk_session_has(session, &id));
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 0);
    assert_ok(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err));
    assert_int_equal(count_objects(f->storage, "packs/"), packs);
}

static void equal_bytes_of_two_types_are_two_chunks(void **state)
{
    fixture_t *f = *state;
    bk_session_t *session = begin_session(f, true);
    bk_id_t a = put_seed(session, BK_TYPE_FILE, 1, 1000);
    bk_id_t b = put_seed(session, BK_TYPE_BLOCK, 1, 1000);
    assert_memory_not_equal(a.b, b.b, sizeof a.b);
    bk_session_abort(session);
}

static void has_knows_what_this_session_put_and_nothing_else(void **state)
{
    fixture_t *f = *state;
    bk_id_t id, other;
    bk_session_t *session = begin_session(f, true);
    id = put_seed(session, BK_TYPE_FILE, 1, 1000);
    memset(&other, 1, sizeof other);
    assert_true(bk_session_has(session, &id));
    assert_false(bk_session_has(session, &other));
    bk_session_abort(session);
}

/* Nodes that were just written are read again, before and after their pack is closed. */
static void chunks_of_the_current_session_can_be_read(void **state)
{
    fixture_t *f = *state;
    bk_id_t early, late, data;
    bk_session_t *session = begin_session(f, true);
    early = put_seed(session, BK_TYPE_TREE, 1, 3000);
    assert_seed(f->repo, &early, 1, 3000);
    for (uint64_t i = 0; i < 100; i++) /* closes a pack or two of metadata */
        put_seed(session, BK_TYPE_TREE, 100 + i, 65536);
    data = put_seed(session, BK_TYPE_FILE, 2, 200000);
    late = put_seed(session, BK_TYPE_MAP, 3, 3000);
    assert_seed(f->repo, &early, 1, 3000);
    assert_seed(f->repo, &late, 3, 3000);
    assert_seed(f->repo, &data, 2, 200000);
    bk_session_abort(session);
}

static void a_backup_id_is_taken_once(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true);
    assert_ok(bk_session_commit(session, "full_20251015_143000_2", "{}", 2, &err));
    session = begin_session(f, true);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    session = begin_session(f, true);
    put_seed(session, BK_TYPE_FILE, 1, 1000);
    assert_int_equal(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err), BK_EXISTS);
    assert_int_equal(count_objects(f->storage, "snapshots/"), 2);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    session = begin_session(f, false);
    assert_int_equal(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err), BK_EXISTS);
}

static void without_upload_nothing_reaches_the_storage_and_all_is_readable(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, false);
    bk_id_t file = put_seed(session, BK_TYPE_FILE, 1, 300000);
    bk_id_t tree = put_seed(session, BK_TYPE_TREE, 2, 3000);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    assert_int_equal(count_objects(f->storage, "packs/"), 0);
    assert_int_equal(count_objects(f->storage, "meta/"), 0);
    assert_int_equal(count_objects(f->storage, "index/"), 0);
    assert_int_equal(count_objects(f->storage, "snapshots/"), 0);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    assert_int_equal(count_spool(f, NULL), 4);
    assert_seed(f->repo, &file, 1, 300000);
    reopen_repo(f);
    assert_seed(f->repo, &file, 1, 300000);
    assert_seed(f->repo, &tree, 2, 3000);
    /* Known to the next one that stays here, too. */
    bk_session_stats_t stats;
    session = begin_session(f, false);
    put_seed(session, BK_TYPE_FILE, 1, 300000);
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 0);
    assert_ok(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err));
    /* And the one after ships everything first. */
    session = begin_session(f, true);
    assert_int_equal(count_objects(f->storage, "packs/"), 1);
    assert_int_equal(count_objects(f->storage, "snapshots/"), 2);
    assert_int_equal(count_spool(f, NULL), 0);
    assert_true(bk_session_has(session, &file));
    bk_session_abort(session);
    reopen_repo(f);
    assert_seed(f->repo, &file, 1, 300000);
    assert_seed(f->repo, &tree, 2, 3000);
}

static void an_aborted_backup_leaves_its_closed_packs_for_the_next(void **state)
{
    fixture_t *f = *state;
    bk_session_stats_t stats;
    bk_session_t *session = begin_session(f, true);
    for (uint64_t i = 0; i < 40; i++)
        put_seed(session, BK_TYPE_FILE, i, 1u << 20);
    bk_session_abort(session);
    assert_int_equal(count_objects(f->storage, "snapshots/"), 0);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    size_t packs = count_objects(f->storage, "packs/");
    assert_true(packs >= 2);
    session = begin_session(f, true);
    for (uint64_t i = 0; i < 40; i++)
        put_seed(session, BK_TYPE_FILE, i, 1u << 20);
    bk_session_stats(session, &stats);
    assert_true(stats.chunks_known >= 30);
    bk_session_abort(session);
    bk_session_abort(NULL);
}

static void a_stopped_job_fails_the_put_and_the_next_run_succeeds(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_ctl_t ctl;
    bk_id_t id;
    bk_session_t *session = NULL;
    bk_session_options_t options = {.host = "h", .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
    uint8_t *data = malloc(1u << 20);
    bk_rc_t rc = BK_OK;
    bk_ctl_init(&ctl);
    assert_ok(bk_session_begin(f->repo, &options, &ctl, &session, &err));
    for (uint64_t i = 0; i < 100 && rc == BK_OK; i++) {
        if (i == 20)
            bk_ctl_stop(&ctl, BK_CANCELED);
        fill(data, 1u << 20, i);
        rc = bk_session_put(session, BK_TYPE_FILE, false, data, 1u << 20, &id, &err);
    }
    assert_int_equal(rc, BK_CANCELED);
    assert_int_equal(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err),
                     BK_CANCELED);
    assert_int_equal(count_objects(f->storage, "snapshots/"), 0);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    bk_ctl_free(&ctl);
    free(data);
    session = begin_session(f, true);
    id = put_seed(session, BK_TYPE_FILE, 3, 1u << 20);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    assert_seed(f->repo, &id, 3, 1u << 20);
}

/* Nothing may be listed after a failed commit, now or once the spool is shipped. */
static void a_commit_that_failed_is_never_listed_later(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_ctl_t ctl;
    char path[512];
    bk_session_t *session = NULL;
    bk_session_options_t options = {.host = "h", .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
    bk_ctl_init(&ctl);
    assert_ok(bk_session_begin(f->repo, &options, &ctl, &session, &err));
    put_seed(session, BK_TYPE_FILE, 3, 1000);
    bk_ctl_stop(&ctl, BK_INTERRUPTED);
    assert_int_equal(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err),
                     BK_INTERRUPTED);
    bk_ctl_free(&ctl);
    /* The snapshot itself cannot be published: something is in the way of its folder. */
    session = begin_session(f, true);
    put_seed(session, BK_TYPE_FILE, 4, 1000);
    int fd = open(fixture_path(f, "storage/snapshots", path), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_not_equal(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err), BK_OK);
    assert_int_equal(unlink(path), 0);
    session = begin_session(f, true);
    assert_int_equal(count_objects(f->storage, "snapshots/"), 0);
    assert_int_equal(count_spool(f, NULL), 0);
    bk_session_abort(session);
}

static void two_sessions_do_not_share_a_spool(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true), *second = NULL;
    bk_session_options_t options = {.host = "h", .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
    assert_int_equal(bk_session_begin(f->repo, &options, NULL, &second, &err), BK_LOCKED);
    bk_session_abort(session);
    assert_ok(bk_session_begin(f->repo, &options, NULL, &second, &err));
    bk_session_abort(second);
}

/* --- the collector --- */

static void condemn(fixture_t *f, const char *pack_hex)
{
    bk_err_t err = {0};
    bk_buf_t object;
    bk_id_t digest;
    char hex[BK_ID_HEX], ulid[BK_ULID_LEN + 1], name[BK_STORAGE_NAME], text[80];
    bk_fmt(text, sizeof text, "[\"%s\"]", pack_hex);
    bk_buf_init(&object, 4096);
    assert_ok(bk_object_wrap(bk_repo_keyring(f->repo), bk_repo_uuid(f->repo), BK_KIND_CONDEMNED,
                             text, strlen(text), &object, &err));
    bk_sha256(&digest, object.data, object.len);
    bk_id_hex(hex, &digest);
    bk_ulid(ulid);
    bk_fmt(name, sizeof name, "condemned/%s-%s", ulid, hex);
    assert_ok(bk_storage_put(f->storage, name, object.data, object.len, true, NULL, &err));
    bk_buf_free(&object);
}

static bk_id_t commit_one(fixture_t *f, const char *backup_id, uint64_t seed)
{
    bk_err_t err = {0};
    bk_session_t *session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, seed, 50000);
    assert_ok(bk_session_commit(session, backup_id, "{}", 2, &err));
    return id;
}

static void a_chunk_only_in_condemned_packs_is_stored_again(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_stats_t stats;
    bk_id_t id = commit_one(f, "full_20251015_143000", 9);
    listing_t *packs = list_objects(f->storage, "packs/");
    assert_int_equal(packs->count, 1);
    condemn(f, strrchr(packs->names[0], '/') + 1);
    bk_session_t *session = begin_session(f, true);
    assert_false(bk_session_has(session, &id));
    put_seed(session, BK_TYPE_FILE, 9, 50000);
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 1);
    assert_ok(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err));
    assert_int_equal(count_objects(f->storage, "packs/"), 2);
    /* The collector takes the old one: the chunk is still there. */
    assert_ok(bk_storage_remove(f->storage, packs->names[0], NULL, &err));
    reopen_repo(f);
    assert_seed(f->repo, &id, 9, 50000);
    free(packs);
}

static void a_pack_condemned_meanwhile_stops_the_commit_only_when_relied_on(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    commit_one(f, "full_20251015_143000", 1);
    listing_t *packs = list_objects(f->storage, "packs/");
    commit_one(f, "full_20251015_143001", 2);

    bk_session_t *session = begin_session(f, true);
    put_seed(session, BK_TYPE_FILE, 2, 50000);
    condemn(f, strrchr(packs->names[0], '/') + 1); /* holds seed 1: not ours */
    assert_ok(bk_session_commit(session, "full_20251015_143002", "{}", 2, &err));

    session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 2, 50000);
    assert_true(bk_session_has(session, &id));
    listing_t *all = list_objects(f->storage, "packs/");
    for (size_t i = 0; i < all->count; i++)
        if (strcmp(all->names[i], packs->names[0]) != 0)
            condemn(f, strrchr(all->names[i], '/') + 1);
    assert_int_equal(bk_session_commit(session, "full_20251015_143003", "{}", 2, &err), BK_STORAGE);
    assert_int_equal(count_objects(f->storage, "snapshots/full_20251015_143003-"), 0);
    /* Run again: the chunk is stored anew. */
    session = begin_session(f, true);
    assert_false(bk_session_has(session, &id));
    put_seed(session, BK_TYPE_FILE, 2, 50000);
    assert_ok(bk_session_commit(session, "full_20251015_143003", "{}", 2, &err));
    free(packs);
    free(all);
}

/* Somebody deleted a pack: a backup that relies on it must not claim success, and the next one heals it. */
static void heal_from(fixture_t *f, bool cut_off, uint64_t more)
{
    bk_err_t err = {0};
    char path[512];
    bk_id_t id = commit_one(f, "full_20251015_143000", 1);
    listing_t *packs = list_objects(f->storage, "packs/");
    for (uint64_t i = 0; i < more; i++) { /* other packs that it relies on, too */
        bk_session_t *other = begin_session(f, true);
        put_seed(other, BK_TYPE_FILE, 1000 + i, 1000);
        bk_session_abort(other);
    }
    bk_session_t *session = begin_session(f, true);
    put_seed(session, BK_TYPE_FILE, 1, 50000);
    for (uint64_t i = 0; i < more; i++)
        put_seed(session, BK_TYPE_FILE, 1000 + i, 1000);
    bk_fmt(path, sizeof path, "%.200s/storage/%.128s", f->dir, packs->names[0]);
    if (cut_off)
        assert_int_equal(truncate(path, (off_t)packs->sizes[0] - 100), 0);
    else
        assert_int_equal(unlink(path), 0);
    assert_int_equal(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err), BK_STORAGE);
    assert_int_equal(count_objects(f->storage, "snapshots/full_20251015_143001-"), 0);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    reopen_repo(f);
    session = begin_session(f, true);
    assert_false(bk_session_has(session, &id));
    put_seed(session, BK_TYPE_FILE, 1, 50000);
    assert_ok(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err));
    reopen_repo(f);
    assert_seed(f->repo, &id, 1, 50000);
    free(packs);
}

static void a_vanished_pack_fails_the_backup_that_relies_on_it_and_heals(void **state)
{
    heal_from(*state, false, 0);
}

static void so_does_a_pack_that_was_cut_off(void **state)
{
    heal_from(*state, true, 0);
}

/* Then packs are listed, not asked for. */
static void so_does_one_of_many_packs_that_was_cut_off(void **state)
{
    heal_from(*state, true, 70);
}

/* The spool's copy is whole: it takes the place of what a disk lost the end of. */
static void a_spooled_pack_replaces_one_that_was_cut_off(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    char from[600], to[600], dir[600];
    bk_session_t *session = begin_session(f, false);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 1, 50000);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    bk_storage_t *spool = bk_repo_objects(f->repo)->spool;
    listing_t *packs = list_objects(spool, "packs/");
    bk_fmt(from, sizeof from, "%.200s/spool/%.128s", f->dir, packs->names[0]);
    bk_fmt(to, sizeof to, "%.200s/storage/%.128s", f->dir, packs->names[0]);
    bk_strcpy(dir, sizeof dir, to);
    *strrchr(dir, '/') = '\0';
    assert_ok(bk_mkdirs(dir, 0700, &err));
    int fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "NGXBKP", 6), 6);
    close(fd);
    session = begin_session(f, true);
    bk_session_abort(session);
    assert_int_equal(count_spool(f, NULL), 0);
    reopen_repo(f);
    assert_seed(f->repo, &id, 1, 50000);
    free(packs);
}

/* It relied on a pack of the storage that went away before it was shipped. */
static void a_spooled_backup_whose_packs_vanished_is_dropped_with_a_note(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_ctl_t ctl;
    commit_one(f, "full_20251015_143000", 1);
    bk_session_t *session = begin_session(f, false);
    put_seed(session, BK_TYPE_FILE, 1, 50000);
    assert_ok(bk_session_commit(session, "full_20251015_143001", "{}", 2, &err));
    listing_t *packs = list_objects(f->storage, "packs/");
    assert_ok(bk_storage_remove(f->storage, packs->names[0], NULL, &err));
    bk_session_options_t options = {.host = "h", .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
    bk_ctl_init(&ctl);
    assert_ok(bk_session_begin(f->repo, &options, &ctl, &session, &err));
    assert_int_equal(ctl.notes_total, 1);
    assert_non_null(strstr(ctl.notes[0], "full_20251015_143001"));
    bk_session_abort(session);
    bk_ctl_free(&ctl);
    assert_int_equal(count_objects(f->storage, "snapshots/full_20251015_143001-"), 0);
    assert_int_equal(count_spool(f, NULL), 0);
    free(packs);
}

/* --- packs --- */

static void the_spool_holds_no_second_copy_of_a_shipped_pack(void **state)
{
    fixture_t *f = *state;
    struct stat st;
    char path[512];
    bk_session_t *session = begin_session(f, true);
    for (uint64_t i = 0; i < 20; i++)
        put_seed(session, BK_TYPE_FILE, i, 1u << 20);
    /* A closed pack waits in the spool for its index segment: the same file, by another name. */
    listing_t *packs = list_objects(f->storage, "packs/");
    assert_true(packs->count >= 1);
    bk_fmt(path, sizeof path, "%s/storage/%.128s", f->dir, packs->names[0]);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_nlink, 2);
    free(packs);
    bk_session_abort(session);
}

typedef struct {
    bk_session_t *session;
    uint64_t first, count;
    size_t len;
    bk_type_t type;
} put_many_t;

static void *put_many(void *arg)
{
    put_many_t *many = arg;
    uint8_t *data = malloc(many->len);
    bk_err_t err = {0};
    bk_id_t id;
    bk_rc_t rc = BK_OK;
    for (uint64_t i = 0; i < many->count && rc == BK_OK; i++) {
        fill(data, many->len, many->first + i);
        rc = bk_session_put(many->session, many->type, true, data, many->len, &id, &err);
    }
    free(data);
    return rc == BK_OK ? NULL : many;
}

static void lanes_that_bring_the_same_chunk_at_once_store_it_once(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    enum { LANES = 4 };
    pthread_t threads[LANES];
    bk_session_stats_t stats;
    bk_session_t *session = begin_session(f, true);
    put_many_t many = {session, 1000, 600, 30000, BK_TYPE_FILE};
    for (size_t i = 0; i < LANES; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, put_many, &many), 0);
    for (size_t i = 0; i < LANES; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 600);
    assert_int_equal(stats.chunks_known, 1800);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    listing_t *packs = list_objects(f->storage, "packs/");
    assert_true(packs->bytes < 600 * 30000 + 600 * 100 + 4096);
    free(packs);
}

/* More chunks than one index segment holds: they move to the index while other lanes look them up. */
static void chunks_are_found_while_they_move_to_the_index(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    enum { LANES = 3, CHUNKS = 200000 }; /* 20 MB: more than three open packs hold */
    pthread_t threads[LANES];
    bk_session_stats_t stats;
    bk_session_t *session = begin_session(f, true);
    put_many_t many = {session, 1, CHUNKS, 40, BK_TYPE_TREE};
    for (size_t i = 0; i < LANES; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, put_many, &many), 0);
    for (size_t i = 0; i < LANES; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, CHUNKS);
    for (uint64_t seed = 1; seed <= CHUNKS; seed += 4999) {
        bk_id_t id = put_seed(session, BK_TYPE_TREE, seed, 40);
        assert_seed(f->repo, &id, seed, 40);
    }
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    for (uint64_t seed = 1; seed <= CHUNKS; seed += 4999) {
        uint8_t data[40];
        bk_id_t id;
        fill(data, sizeof data, seed);
        bk_chunk_id(bk_repo_keyring(f->repo), BK_TYPE_TREE, data, sizeof data, &id);
        assert_seed(f->repo, &id, seed, 40);
    }
}

typedef struct {
    fixture_t *f;
    bk_session_t *session;
    _Atomic uint64_t done; /* seeds below it are put */
    bk_id_t ids[3000];
} stream_t;

static void *put_stream(void *arg)
{
    stream_t *stream = arg;
    uint8_t data[20000];
    bk_err_t err = {0};
    for (uint64_t i = 0; i < 3000; i++) {
        fill(data, sizeof data, i + 1);
        if (bk_session_put(stream->session, i % 2 ? BK_TYPE_TREE : BK_TYPE_FILE, false, data,
                           sizeof data, &stream->ids[i], &err) != BK_OK)
            return stream;
        stream->done = i + 1;
    }
    return NULL;
}

static void *read_stream(void *arg)
{
    stream_t *stream = arg;
    uint8_t data[20000];
    bk_err_t err = {0};
    bk_buf_t out;
    void *result = NULL;
    uint64_t at = 0, done;
    bk_buf_init(&out, BK_CHUNK_MAX);
    while ((done = stream->done) < 3000 && result == NULL) {
        if (done == 0)
            continue;
        at = done - 1 - (at * 31 + 7) % (done < 300 ? done : 300); /* fresh ones */
        fill(data, sizeof data, at + 1);
        if (bk_repo_get(stream->f->repo, &stream->ids[at], &out, NULL, &err) != BK_OK ||
            out.len != sizeof data || memcmp(out.data, data, sizeof data) != 0) {
            print_error("%u: %s\n", (unsigned)at, err.text);
            result = stream;
        }
    }
    bk_buf_free(&out);
    return result;
}

static void readers_see_what_lanes_put_while_packs_are_closed(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    pthread_t threads[4];
    stream_t *stream = calloc(1, sizeof *stream);
    stream->f = f;
    stream->session = begin_session(f, true);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(
            pthread_create(&threads[i], NULL, i == 0 ? put_stream : read_stream, stream), 0);
    for (size_t i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    assert_ok(bk_session_commit(stream->session, "full_20251015_143000", "{}", 2, &err));
    free(stream);
}

static void small_packs_of_many_lanes_are_merged_at_the_end(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    enum { LANES = 4 };
    pthread_t threads[LANES];
    put_many_t many[LANES];
    bk_session_t *session = begin_session(f, true);
    for (size_t i = 0; i < LANES; i++) {
        many[i] = (put_many_t){session, 5000 + 100 * i, 40, 20000, BK_TYPE_TREE};
        assert_int_equal(pthread_create(&threads[i], NULL, put_many, &many[i]), 0);
    }
    for (size_t i = 0; i < LANES; i++)
        pthread_join(threads[i], NULL);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    assert_int_equal(count_objects(f->storage, "meta/"), 1);
    for (uint64_t seed = 5000; seed < 5000 + 100 * LANES; seed += 100) {
        uint8_t data[20000];
        bk_id_t id;
        fill(data, sizeof data, seed);
        bk_chunk_id(bk_repo_keyring(f->repo), BK_TYPE_TREE, data, sizeof data, &id);
        assert_seed(f->repo, &id, seed, sizeof data);
    }
}

/* --- leftovers --- */

static void packs_without_index_in_the_spool_are_shipped_and_used(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_session_stats_t stats;
    char path[512];
    bk_session_t *session = begin_session(f, false);
    for (uint64_t i = 0; i < 20; i++)
        put_seed(session, BK_TYPE_FILE, i, 1u << 20);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    /* As after a crash before the index segment. */
    assert_ok(bk_remove_tree(fixture_path(f, "spool/index", path), true, &err));
    assert_ok(bk_remove_tree(fixture_path(f, "spool/snapshots", path), true, &err));
    assert_ok(bk_remove_tree(fixture_path(f, "cache/index", path), true, &err));
    reopen_repo(f);
    session = begin_session(f, true);
    bk_id_t ids[20];
    for (uint64_t i = 0; i < 20; i++)
        ids[i] = put_seed(session, BK_TYPE_FILE, i, 1u << 20);
    bk_session_stats(session, &stats);
    assert_int_equal(stats.chunks_new, 0);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    assert_int_equal(count_spool(f, NULL), 0);
    reopen_repo(f);
    for (uint64_t i = 0; i < 20; i++)
        assert_seed(f->repo, &ids[i], i, 1u << 20);
}

static void a_damaged_pack_in_the_spool_is_left_out(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    char path[600], dir[512];
    bk_session_t *session;
    uint8_t junk[300];
    fill(junk, sizeof junk, 5);
    assert_ok(bk_mkdirs(fixture_path(f, "spool/packs/ab", dir), 0700, &err));
    bk_fmt(path, sizeof path, "%s/abababababababababababababababababababababababababababababababab",
           dir);
    assert_ok(bk_publish_bytes(AT_FDCWD, path, 0600, junk, sizeof junk, false, &err));
    session = begin_session(f, true);
    assert_int_equal(count_objects(f->storage, "packs/"), 0);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 1, 1000);
    assert_ok(bk_session_commit(session, "full_20251015_143000", "{}", 2, &err));
    assert_seed(f->repo, &id, 1, 1000);
}

static void measuring_a_spool_that_is_not_there_yet_finds_nothing(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    char path[512];
    uint64_t objects = 1, bytes = 1;
    assert_ok(bk_spool_measure(fixture_path(f, "no-such-spool", path), &objects, &bytes, &err));
    assert_int_equal(objects, 0);
    assert_int_equal(bytes, 0);
}

/* --- the lease --- */

static void a_lease_is_there_while_the_session_runs(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    bk_buf_t object, plain;
    json_t *lease = NULL;
    bk_session_t *session = begin_session(f, true);
    listing_t *leases = list_objects(f->storage, "leases/");
    assert_int_equal(leases->count, 1);
    bk_buf_init(&object, 4096);
    bk_buf_init(&plain, 4096);
    assert_ok(bk_storage_get_all(f->storage, leases->names[0], &object, NULL, &err));
    assert_ok(bk_object_unwrap(bk_repo_keyring(f->repo), bk_repo_uuid(f->repo), BK_KIND_LEASE,
                               object.data, object.len, &plain, &err));
    assert_ok(bk_json_parse(plain.data, plain.len, &lease, &err));
    assert_string_equal(json_string_value(json_object_get(lease, "host")), "test.host");
    int64_t expires = 0;
    assert_true(bk_time_parse(json_string_value(json_object_get(lease, "expires")), &expires));
    assert_true(expires > bk_now() + 800 * BK_SEC && expires < bk_now() + 1000 * BK_SEC);
    json_decref(lease);
    bk_buf_free(&object);
    bk_buf_free(&plain);
    free(leases);
    bk_session_abort(session);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
}

/* --- kill -9 --- */

enum { KILL_CHUNKS = 24, KILL_LEN = 150000 };

static size_t kill_len(size_t i)
{
    return i % 3 == 0 ? 30000 : KILL_LEN;
}

static bk_type_t kill_type(size_t i)
{
    return i % 3 == 0 ? BK_TYPE_TREE : BK_TYPE_FILE;
}

/*
 * Backup n of the crash test; its body is the list of its chunks' seeds.  Half of them are those of the backup before,
 * so that it relies on packs of others.
 */
static bk_rc_t run_backup(fixture_t *f, uint64_t n, bk_err_t *err)
{
    bk_session_t *session = NULL;
    bk_session_options_t options = {
        .host = "h", .compression = {BK_CODEC_ZSTD, 1}, .upload = n % 5 != 0};
    char name[64], body[512] = "[";
    uint8_t *data = malloc(KILL_LEN);
    bk_rc_t rc = bk_session_begin(f->repo, &options, NULL, &session, err);
    for (size_t i = 0; i < KILL_CHUNKS && rc == BK_OK; i++) {
        uint64_t seed = n * (KILL_CHUNKS / 2) + i;
        size_t used = strlen(body);
        bk_id_t id;
        fill(data, kill_len(i), seed);
        rc = bk_session_put(session, kill_type(i), false, data, kill_len(i), &id, err);
        bk_fmt(body + used, sizeof body - used, "%s%llu", i > 0 ? "," : "",
               (unsigned long long)seed);
    }
    size_t used = strlen(body);
    bk_fmt(body + used, sizeof body - used, "]");
    bk_fmt(name, sizeof name, "full_20251015_%06u", (unsigned)n);
    if (rc == BK_OK)
        rc = bk_session_commit(session, name, body, strlen(body), err);
    free(data);
    return rc;
}

static void run_backups_until_killed(fixture_t *f, uint64_t first)
{
    bk_err_t err = {0};
    for (uint64_t n = first; n < first + 1000; n++) {
        if (run_backup(f, n, &err) != BK_OK) {
            fprintf(stderr, "backup %u: %s\n", (unsigned)n, err.text);
            _exit(3);
        }
    }
    _exit(0);
}

static void check_snapshot(fixture_t *f, const char *name)
{
    bk_err_t err = {0};
    bk_buf_t object, plain;
    json_t *seeds = NULL, *value;
    size_t i;
    bk_buf_init(&object, 1u << 20);
    bk_buf_init(&plain, 1u << 20);
    assert_ok(bk_storage_get_all(f->storage, name, &object, NULL, &err));
    assert_ok(bk_object_unwrap(bk_repo_keyring(f->repo), bk_repo_uuid(f->repo), BK_KIND_SNAPSHOT,
                               object.data, object.len, &plain, &err));
    assert_ok(bk_json_parse(plain.data, plain.len, &seeds, &err));
    assert_int_equal(json_array_size(seeds), KILL_CHUNKS);
    uint8_t *data = malloc(KILL_LEN);
    json_array_foreach(seeds, i, value)
    {
        uint64_t seed = (uint64_t)json_integer_value(value);
        bk_id_t id;
        fill(data, kill_len(i), seed);
        bk_chunk_id(bk_repo_keyring(f->repo), (uint8_t)kill_type(i), data, kill_len(i), &id);
        assert_seed(f->repo, &id, seed, kill_len(i));
    }
    free(data);
    json_decref(seeds);
    bk_buf_free(&object);
    bk_buf_free(&plain);
}

/* Start a child that backs up all the time, and kill it after a moment. */
static void kill_a_child(fixture_t *f, uint64_t first)
{
    bk_err_t err = {0};
    uint32_t random;
    int status;
    bk_repo_close(f->repo);
    f->repo = NULL;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (try_repo(f, f->key, true, &f->repo, &err) == BK_OK)
            run_backups_until_killed(f, first);
        fprintf(stderr, "open: %s\n", err.text);
        _exit(2);
    }
    bk_random(&random, sizeof random);
    struct timespec pause = {.tv_nsec = (long)(random % 120000) * 1000};
    nanosleep(&pause, NULL);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status))
        fail_msg("the child ended with status %d by itself", status);
    open_repo(f);
}

static void after_kill_9_at_any_moment_every_listed_backup_is_whole(void **state)
{
    fixture_t *f = *state;
    bk_err_t err = {0};
    const char *rounds_text = getenv("BK_TEST_KILLS");
    uint64_t rounds = rounds_text != NULL ? strtoull(rounds_text, NULL, 10) : 25;
    uint64_t next = 3;
    /* On a slow machine the child may never get as far as a commit. */
    assert_ok(run_backup(f, 1, &err));
    assert_ok(run_backup(f, 2, &err));
    for (uint64_t round = 0; round < rounds; round++) {
        kill_a_child(f, next);
        /* Names of earlier rounds are taken; go on behind the newest, one may wait in the spool. */
        listing_t *all = list_objects(f->storage, "snapshots/");
        for (size_t i = 0; i < all->count; i++) {
            uint64_t n = strtoull(all->names[i] + strlen("snapshots/full_20251015_"), NULL, 10);
            if (n >= next)
                next = n + 1;
            if (i + 3 > all->count)
                check_snapshot(f, all->names[i]);
        }
        free(all);
        next += 2;
    }
    /* The next backups succeed; what the spool held is shipped, and nothing is left behind. */
    bk_session_t *session = begin_session(f, true);
    bk_id_t id = put_seed(session, BK_TYPE_FILE, 1u << 30, 1000);
    assert_ok(bk_session_commit(session, "full_20261015_143000", "[]", 2, &err));
    assert_seed(f->repo, &id, 1u << 30, 1000);
    assert_int_equal(count_spool(f, NULL), 0);
    assert_int_equal(count_objects(f->storage, "leases/"), 0);
    listing_t *all = list_objects(f->storage, "snapshots/full_2025");
    assert_true(all->count > 0);
    for (size_t i = 0; i < all->count; i++)
        check_snapshot(f, all->names[i]);
    free(all);
}

#define BOTH(test)                                                                                 \
    cmocka_unit_test_setup_teardown(test, set_up_plain, tear_down),                                \
        cmocka_unit_test_setup_teardown(test, set_up_encrypted, tear_down)
#define ENCRYPTED(test) cmocka_unit_test_setup_teardown(test, set_up_encrypted, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(chunks_come_back_after_commit_and_in_a_new_process),
        BOTH(equal_bytes_are_stored_once_within_and_across_backups),
        BOTH(equal_bytes_of_two_types_are_two_chunks),
        ENCRYPTED(has_knows_what_this_session_put_and_nothing_else),
        BOTH(chunks_of_the_current_session_can_be_read),
        ENCRYPTED(a_backup_id_is_taken_once),
        BOTH(without_upload_nothing_reaches_the_storage_and_all_is_readable),
        ENCRYPTED(an_aborted_backup_leaves_its_closed_packs_for_the_next),
        ENCRYPTED(a_stopped_job_fails_the_put_and_the_next_run_succeeds),
        ENCRYPTED(a_commit_that_failed_is_never_listed_later),
        ENCRYPTED(two_sessions_do_not_share_a_spool),
        ENCRYPTED(a_chunk_only_in_condemned_packs_is_stored_again),
        ENCRYPTED(a_pack_condemned_meanwhile_stops_the_commit_only_when_relied_on),
        ENCRYPTED(a_vanished_pack_fails_the_backup_that_relies_on_it_and_heals),
        ENCRYPTED(so_does_a_pack_that_was_cut_off),
        ENCRYPTED(so_does_one_of_many_packs_that_was_cut_off),
        ENCRYPTED(a_spooled_pack_replaces_one_that_was_cut_off),
        ENCRYPTED(a_spooled_backup_whose_packs_vanished_is_dropped_with_a_note),
        ENCRYPTED(the_spool_holds_no_second_copy_of_a_shipped_pack),
        ENCRYPTED(lanes_that_bring_the_same_chunk_at_once_store_it_once),
        ENCRYPTED(chunks_are_found_while_they_move_to_the_index),
        ENCRYPTED(readers_see_what_lanes_put_while_packs_are_closed),
        ENCRYPTED(small_packs_of_many_lanes_are_merged_at_the_end),
        ENCRYPTED(packs_without_index_in_the_spool_are_shipped_and_used),
        ENCRYPTED(a_damaged_pack_in_the_spool_is_left_out),
        ENCRYPTED(measuring_a_spool_that_is_not_there_yet_finds_nothing),
        ENCRYPTED(a_lease_is_there_while_the_session_runs),
        BOTH(after_kill_9_at_any_moment_every_listed_backup_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
