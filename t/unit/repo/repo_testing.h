/*
 * t/unit/repo/repo_testing.h: a repository in a private directory, for the tests of repo/ and of everything above.
 */
#ifndef BK_REPO_TESTING_H
#define BK_REPO_TESTING_H

#include "base/str.h"
#include "repo/session.h"
#include "repo/snapshot.h"
#include "unit/testing.h"

typedef struct {
    char *dir;
    bool encrypted;
    uint8_t key[BK_KEY_SIZE];
    bk_storage_t *storage;
    bk_repo_t *repo;
    bk_ctl_t ctl;
    bk_err_t err;
} fixture_t;

static inline const char *fixture_path(const fixture_t *f, const char *name, char out[512])
{
    assert_true(bk_fmt(out, 512, "%s/%s", f->dir, name));
    return out;
}

static inline void fixture_open_storage(fixture_t *f)
{
    char path[512];
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("disk")};
    OK(bk_mkdirs(fixture_path(f, "cache", path), 0700, &f->err), &f->err);
    OK(bk_mkdirs(fixture_path(f, "spool", path), 0700, &f->err), &f->err);
    OK(bk_storage_config_set(&config, "path", fixture_path(f, "storage", path), &f->err), &f->err);
    OK(bk_storage_open(&config, &f->storage, &f->err), &f->err);
    bk_storage_config_free(&config);
}

/* key NULL: without one. */
static inline bk_rc_t fixture_try(fixture_t *f, const uint8_t *key, bool create, bk_repo_t **repo,
                                  bk_err_t *err)
{
    char cache[512], spool[512];
    bk_repo_options_t options = {.storage = f->storage,
                                 .cache_dir = fixture_path(f, "cache", cache),
                                 .spool_dir = fixture_path(f, "spool", spool),
                                 .secret.key = key,
                                 .create = create,
                                 .plain = !f->encrypted,
                                 .label = "test"};
    return bk_repo_open(&options, &f->ctl, repo, err);
}

static inline void fixture_open(fixture_t *f)
{
    fixture_open_storage(f);
    OK(fixture_try(f, f->encrypted ? f->key : NULL, true, &f->repo, &f->err), &f->err);
}

static inline void fixture_close(fixture_t *f)
{
    bk_repo_close(f->repo);
    bk_storage_close(f->storage);
    f->repo = NULL;
    f->storage = NULL;
}

/* A storage, and no repository yet. */
static inline void fixture_prepare(fixture_t *f, bool encrypted)
{
    memset(f, 0, sizeof *f);
    f->dir = test_dir();
    f->encrypted = encrypted;
    bk_key_generate(f->key);
    bk_ctl_init(&f->ctl);
    fixture_open_storage(f);
}

static inline void fixture_start(fixture_t *f, bool encrypted)
{
    fixture_prepare(f, encrypted);
    OK(fixture_try(f, encrypted ? f->key : NULL, true, &f->repo, &f->err), &f->err);
}

static inline void fixture_end(fixture_t *f)
{
    fixture_close(f);
    bk_ctl_free(&f->ctl);
    test_dir_remove(f->dir);
}

static inline bk_session_t *fixture_session(fixture_t *f, bool upload)
{
    bk_session_t *session;
    bk_session_options_t options = {
        .host = "test.host", .compression = {.codec = BK_CODEC_ZSTD, .level = 3}, .upload = upload};
    OK(bk_session_begin(f->repo, &options, &f->ctl, &session, &f->err), &f->err);
    return session;
}

/* Commit a snapshot without roots but those given. */
static inline bk_rc_t fixture_commit(fixture_t *f, bk_session_t *session, const char *id,
                                     bk_snapshot_t *extra)
{
    bk_snapshot_t s;
    bk_buf_t body;
    if (extra != NULL)
        s = *extra;
    else
        bk_snapshot_init(&s);
    bk_strcpy(s.backup_id, sizeof s.backup_id, id);
    bk_strcpy(s.kind, sizeof s.kind, "full");
    s.set = bk_strdup("test");
    s.host = bk_strdup("host");
    s.started = s.completed = s.instant = 1760538600000000000;
    bk_buf_init(&body, 1u << 20);
    OK(bk_snapshot_encode(&s, &body, &f->err), &f->err);
    bk_rc_t rc = bk_session_commit(session, id, body.data, body.len, &f->err);
    bk_buf_free(&body);
    free(s.set);
    free(s.host);
    return rc;
}

#endif
