/*
 * t/unit/repo/fixture.h: the repository of repo_testing.h, opened when a test wants it, with content made from seeds, lists of what is on
 * the storage, and damage.
 */
#ifndef BK_TEST_REPO_FIXTURE_H
#define BK_TEST_REPO_FIXTURE_H

#include <fcntl.h>

#include "base/json.h"
#include "unit/repo/repo_testing.h"

#define assert_ok(expression)                                                                      \
    do {                                                                                           \
        err = (bk_err_t){0};                                                                       \
        bk_rc_t rc_of_it = (expression);                                                           \
        if (rc_of_it != BK_OK)                                                                     \
            fail_msg("%s: %s: %s", #expression, bk_rc_code(rc_of_it), err.text);                   \
    } while (0)

/* Open (or make) the repository with another key, say; the caller looks at the result. */
static inline bk_rc_t try_repo(fixture_t *f, const uint8_t *key, bool create, bk_repo_t **repo,
                               bk_err_t *err)
{
    return fixture_try(f, f->encrypted ? key : NULL, create, repo, err);
}

static inline void open_repo(fixture_t *f)
{
    OK(try_repo(f, f->key, true, &f->repo, &f->err), &f->err);
}

static inline void reopen_repo(fixture_t *f)
{
    bk_repo_close(f->repo);
    f->repo = NULL;
    open_repo(f);
}

static inline void setup_fixture(fixture_t *f, bool plain)
{
    fixture_prepare(f, !plain);
}

static inline void teardown_fixture(fixture_t *f)
{
    fixture_end(f);
}

static inline void fill(uint8_t *out, size_t len, uint64_t seed)
{
    test_fill(out, len, seed);
}

static inline bk_session_t *begin_session(fixture_t *f, bool upload)
{
    return fixture_session(f, upload);
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
