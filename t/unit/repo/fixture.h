/*
 * t/unit/repo/fixture.h: a repository on a local storage in a directory of its own, for the tests of src/repo.
 */
#ifndef BK_TEST_REPO_FIXTURE_H
#define BK_TEST_REPO_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/repo.h"
#include "repo/session.h"

typedef struct {
    char dir[256];
    bk_storage_t *storage;
    bk_repo_t *repo;
    bool plain;
    uint8_t key[BK_KEY_SIZE];
} fixture_t;

#define assert_ok(expression)                                                                      \
    do {                                                                                           \
        err = (bk_err_t){0};                                                                       \
        bk_rc_t rc_of_it = (expression);                                                           \
        if (rc_of_it != BK_OK)                                                                     \
            fail_msg("%s: %s: %s", #expression, bk_rc_code(rc_of_it), err.text);                   \
    } while (0)

static inline const char *fixture_path(const fixture_t *f, const char *name, char out[512])
{
    assert_true(bk_fmt(out, 512, "%s/%s", f->dir, name));
    return out;
}

static inline bk_storage_t *open_dir_storage(const fixture_t *f)
{
    bk_err_t err = {0};
    char path[512];
    bk_storage_t *storage = NULL;
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("disk")};
    assert_ok(bk_storage_config_set(&config, "path", fixture_path(f, "storage", path), &err));
    assert_ok(bk_storage_open(&config, &storage, &err));
    bk_storage_config_free(&config);
    return storage;
}

/* Open (or make) the repository as the fixture is set up; the caller looks at the result. */
static inline bk_rc_t try_repo(fixture_t *f, const uint8_t *key, bool create, bk_repo_t **repo,
                               bk_err_t *err)
{
    char cache[512], spool[512];
    bk_repo_options_t options = {.storage = f->storage,
                                 .cache_dir = fixture_path(f, "cache", cache),
                                 .spool_dir = fixture_path(f, "spool", spool),
                                 .secret.key = f->plain ? NULL : key,
                                 .create = create,
                                 .plain = f->plain,
                                 .label = "test"};
    return bk_repo_open(&options, NULL, repo, err);
}

static inline void open_repo(fixture_t *f)
{
    bk_err_t err = {0};
    assert_ok(try_repo(f, f->key, true, &f->repo, &err));
}

static inline void reopen_repo(fixture_t *f)
{
    bk_repo_close(f->repo);
    f->repo = NULL;
    open_repo(f);
}

static inline void setup_fixture(fixture_t *f, bool plain)
{
    const char *tmp = getenv("TMPDIR");
    char path[512];
    memset(f, 0, sizeof *f);
    bk_fmt(f->dir, sizeof f->dir, "%s/bk-repo-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(mkdir(fixture_path(f, "cache", path), 0700), 0);
    assert_int_equal(mkdir(fixture_path(f, "spool", path), 0700), 0);
    f->plain = plain;
    bk_random(f->key, sizeof f->key);
    f->storage = open_dir_storage(f);
}

static inline void teardown_fixture(fixture_t *f)
{
    bk_repo_close(f->repo);
    bk_storage_close(f->storage);
    bk_remove_tree(f->dir, true, NULL);
}

/* Bytes that follow from a seed and do not compress; every seed has its own. */
static inline void fill(uint8_t *out, size_t len, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < len; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out[i] = (uint8_t)(x >> 32);
    }
}

static inline bk_session_t *begin_session(fixture_t *f, bool upload)
{
    bk_err_t err = {0};
    bk_session_t *session = NULL;
    bk_session_options_t options = {
        .host = "test.host", .compression = {BK_CODEC_ZSTD, 3}, .upload = upload};
    assert_ok(bk_session_begin(f->repo, &options, NULL, &session, &err));
    return session;
}

static inline bk_id_t put_seed(bk_session_t *session, bk_type_t type, uint64_t seed, size_t len)
{
    bk_err_t err = {0};
    bk_id_t id;
    uint8_t *data = malloc(len + 1);
    assert_non_null(data);
    fill(data, len, seed);
    assert_ok(bk_session_put(session, type, true, data, len, &id, &err));
    free(data);
    return id;
}

static inline void assert_seed(bk_repo_t *repo, const bk_id_t *id, uint64_t seed, size_t len)
{
    bk_err_t err = {0};
    bk_buf_t out;
    uint8_t *data = malloc(len + 1);
    assert_non_null(data);
    fill(data, len, seed);
    bk_buf_init(&out, BK_CHUNK_MAX);
    assert_ok(bk_repo_get(repo, id, &out, NULL, &err));
    assert_int_equal(out.len, len);
    assert_memory_equal(out.data, data, len);
    bk_buf_free(&out);
    free(data);
}

typedef struct {
    char names[4096][128];
    uint64_t sizes[4096];
    size_t count;
    uint64_t bytes;
} listing_t;

static inline bk_rc_t add_listed(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    listing_t *listing = arg;
    if (listing->count == 4096)
        return bk_err_set(err, BK_FAILED, "more objects than the test expects");
    bk_strcpy(listing->names[listing->count], sizeof listing->names[0], item->name);
    listing->sizes[listing->count++] = item->size;
    listing->bytes += item->size;
    return BK_OK;
}

/* Caller frees. */
static inline listing_t *list_objects(bk_storage_t *storage, const char *prefix)
{
    bk_err_t err = {0};
    listing_t *listing = calloc(1, sizeof *listing);
    assert_non_null(listing);
    assert_ok(bk_storage_list(storage, prefix, add_listed, listing, NULL, &err));
    return listing;
}

static inline size_t count_objects(bk_storage_t *storage, const char *prefix)
{
    listing_t *listing = list_objects(storage, prefix);
    size_t count = listing->count;
    free(listing);
    return count;
}

static inline size_t count_spool(fixture_t *f, uint64_t *bytes)
{
    bk_err_t err = {0};
    char path[512];
    uint64_t objects = 0, size = 0;
    assert_ok(bk_spool_measure(fixture_path(f, "spool", path), &objects, &size, &err));
    if (bytes != NULL)
        *bytes = size;
    return (size_t)objects;
}

/* Change one byte of a stored object in place. */
static inline void flip_byte(const fixture_t *f, const char *object, uint64_t offset)
{
    char path[512];
    uint8_t byte;
    assert_true(bk_fmt(path, sizeof path, "%s/storage/%s", f->dir, object));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 0x40;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

#endif
