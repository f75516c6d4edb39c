/*
 * t/unit/engine/captures.h: what tests of captured databases share: a set that captures, steps of
 * it, segments here and on the storage.
 */
#ifndef BK_TEST_ENGINE_CAPTURES_H
#define BK_TEST_ENGINE_CAPTURES_H

#include "unit/engine/fixture.h"

#include <dirent.h>

#include "engine/capturing_private.h"
#include "engine/engine_private.h"
#include "repo/history.h"
#include "sqlite/hashes.h"

#define DAY 86400LL /* s */

/* A set whose database is captured; a first backup is there, so that segments are shipped. */
static inline fixture_t *captured(bool encrypted)
{
    char id[BK_BACKUP_ID];
    fixture_t *f = fixture_new(encrypted);
    f->set.dbs[0].pitr_window = 7 * DAY * 1000;
    open_engine(f);
    back_up(f, "full", id);
    return f;
}

/* A step of each captured database; the first failure, if there is any. */
static inline bk_rc_t step_all(fixture_t *f, bk_err_t *err)
{
    bk_rc_t result = BK_OK;
    for (size_t i = 0; i < bk_engine_captures(f->engine); i++) {
        unsigned again;
        bk_rc_t rc = bk_engine_capture(f->engine, i, true, &again, result == BK_OK ? err : NULL);
        result = result == BK_OK ? rc : result;
    }
    return result;
}

static inline void capture(fixture_t *f)
{
    bk_err_t err = {0};
    OK(step_all(f, &err), &err);
}

static inline void ship(fixture_t *f)
{
    bk_err_t err = {0};
    bk_ctl_init(&f->ctl);
    OK(bk_engine_ship(f->engine, &f->ctl, &err), &err);
    bk_ctl_free(&f->ctl);
}

/* The epoch that goes on, as its hashes tell. */
static inline void epoch_of(const fixture_t *f, uint8_t epoch[BK_EPOCH_SIZE])
{
    bk_hashes_t hashes;
    bk_hashes_state_t state;
    bk_err_t err = {0};
    OK(bk_hashes_load(&hashes, &state, at(f, "base/wal/main/hashes"), &err), &err);
    memcpy(epoch, state.epoch, BK_EPOCH_SIZE);
    bk_hashes_free(&hashes);
}

/* Path of a segment in base_dir; ending "tx" unless it is set aside. */
static inline const char *segment(const fixture_t *f, const uint8_t epoch[BK_EPOCH_SIZE],
                                  uint64_t first, const char *ending)
{
    char hex[2 * BK_EPOCH_SIZE + 1], name[200];
    bk_hex(hex, epoch, BK_EPOCH_SIZE);
    bk_fmt(name, sizeof name, "base/wal/main/%s-%020llu.%s", hex, (unsigned long long)first,
           ending);
    return at(f, name);
}

/* How many segments of an epoch are on the storage. */
static inline unsigned stored(fixture_t *f, const uint8_t *epoch)
{
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_history_list_t list;
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_history_list(opened.repo, "app.main", epoch, NULL, &list, &err), &err);
    unsigned count = (unsigned)list.count;
    bk_history_list_free(&list);
    bk_engine_close_repo(&opened);
    return count;
}

/* As ten seconds of quiet would do; nobody has them open. */
static inline void seal_all(const fixture_t *f)
{
    DIR *dir = opendir(at(f, "base/wal/main"));
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char name[512];
        bk_err_t err = {0};
        bk_txlog_writer_t *log;
        bk_tx_t last;
        bk_fmt(name, sizeof name, "base/wal/main/%s", entry->d_name);
        if (strstr(name, ".tx") == NULL || bk_txlog_reopen(at(f, name), &log, &err) != BK_OK)
            continue;
        if (!bk_txlog_last(log, &last))
            bk_txlog_close(log);
        else
            OK(bk_txlog_seal(log, &err), &err);
    }
    closedir(dir);
}

/* So that what was captured so far is sealed: the next owner goes on with the one that is open. */
static inline void reopen_sealed(fixture_t *f)
{
    close_engine(f);
    seal_all(f);
    open_engine(f);
}

/* What status says of the first one. */
static inline json_t *capture_of(fixture_t *f)
{
    json_t *list = bk_capturing_describe(f->engine->capturing);
    json_t *one = json_incref(json_array_get(list, 0));
    json_decref(list);
    return one;
}

static inline void add_rows(sqlite3 *db, fixture_t *f, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        sql(db, "INSERT INTO jobs(name) VALUES('row')");
    capture(f);
}

/* Whether a reader is left anywhere. */
static inline bool is_held(sqlite3 *db)
{
    return sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) ==
           SQLITE_BUSY;
}

#endif
