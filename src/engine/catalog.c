/*
 * engine/catalog.c: the tables and the few statements on them.
 */
#include "engine/catalog.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"

#define SCHEMA_VERSION 1
#define BUSY_MS        10000
#define BUSY_STEP_MS   20
#define JSON_MAX       (64u << 20)
#define DAY            (86400 * BK_SEC)

struct bk_catalog_s {
    pthread_mutex_t lock; /* one statement sequence at a time */
    sqlite3 *db;
    char *path;
};

static const char schema[] =
    "CREATE TABLE jobs(sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " kind INTEGER NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL, result TEXT, trigger "
    "TEXT,"
    " requested_by TEXT, request_id TEXT, created INTEGER NOT NULL, started INTEGER, completed "
    "INTEGER, crashes INTEGER NOT NULL DEFAULT 0);"
    "CREATE INDEX jobs_status ON jobs(status, sequence);"
    "CREATE TABLE idempotency(key TEXT PRIMARY KEY, body TEXT NOT NULL, job TEXT NOT NULL,"
    " created INTEGER NOT NULL);"
    "CREATE TABLE backups(id TEXT PRIMARY KEY, completed INTEGER NOT NULL,"
    " document TEXT NOT NULL);"
    "CREATE INDEX backups_completed ON backups(completed);"
    "CREATE TABLE state(key TEXT PRIMARY KEY, value TEXT NOT NULL, updated INTEGER NOT NULL);"
    "PRAGMA user_version = 1;";

static bk_rc_t failed(const bk_catalog_t *catalog, int code, const char *what, bk_err_t *err)
{
    int primary = code & 0xff;
    bk_rc_t rc =
        primary == SQLITE_FULL ? BK_NO_SPACE
        : primary == SQLITE_READONLY || primary == SQLITE_CANTOPEN || primary == SQLITE_PERM
            ? BK_DENIED
        : primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB ? BK_CORRUPT
        : primary == SQLITE_BUSY || primary == SQLITE_LOCKED    ? BK_BUSY
        : primary == SQLITE_NOMEM                               ? BK_NO_MEMORY
                                                                : BK_IO;
    return bk_err_set(err, rc, "catalog %s: %s: %s", catalog->path, what,
                      catalog->db != NULL ? sqlite3_errmsg(catalog->db) : sqlite3_errstr(code));
}

static bk_rc_t run(bk_catalog_t *catalog, const char *sql, bk_err_t *err)
{
    int code = sqlite3_exec(catalog->db, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? BK_OK : failed(catalog, code, "write", err);
}

static bk_rc_t prepare(bk_catalog_t *catalog, const char *sql, sqlite3_stmt **statement,
                       bk_err_t *err)
{
    int code = sqlite3_prepare_v2(catalog->db, sql, -1, statement, NULL);
    return code == SQLITE_OK ? BK_OK : failed(catalog, code, "prepare", err);
}

static void bind_text(sqlite3_stmt *statement, int at, const char *text)
{
    if (text != NULL)
        sqlite3_bind_text(statement, at, text, -1, SQLITE_TRANSIENT);
}

/* Step a statement that returns nothing, and finalise it. */
static bk_rc_t finish(bk_catalog_t *catalog, sqlite3_stmt *statement, bk_err_t *err)
{
    int code = sqlite3_step(statement);
    bk_rc_t rc =
        code == SQLITE_DONE || code == SQLITE_ROW ? BK_OK : failed(catalog, code, "write", err);
    sqlite3_finalize(statement);
    return rc;
}

/* The first to open a new catalog changes its mode; the others may find it locked for a moment. */
static bk_rc_t enter_wal_mode(bk_catalog_t *catalog, bk_err_t *err)
{
    bk_rc_t rc = BK_BUSY;
    for (int i = 0; i < BUSY_MS / BUSY_STEP_MS && rc == BK_BUSY; i++) {
        if (i > 0)
            bk_sleep_ms(BUSY_STEP_MS);
        rc = run(catalog, "PRAGMA journal_mode=WAL", err);
    }
    return rc;
}

/* It is small: damage is better found now than by the statement that meets it. */
static bk_rc_t check_pages(bk_catalog_t *catalog, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc = prepare(catalog, "PRAGMA quick_check(1)", &statement, err);
    if (rc != BK_OK)
        return rc;
    int code = sqlite3_step(statement);
    if (code != SQLITE_ROW) {
        rc = failed(catalog, code, "check", err);
    } else {
        const char *found = (const char *)sqlite3_column_text(statement, 0);
        if (found == NULL || strcmp(found, "ok") != 0)
            rc = bk_err_set(err, BK_CORRUPT, "catalog %s is damaged: %s", catalog->path,
                            found != NULL ? found : "?");
    }
    sqlite3_finalize(statement);
    return rc;
}

static bk_rc_t open_database(bk_catalog_t *catalog, bk_err_t *err)
{
    sqlite3_stmt *statement;
    int version = 0;
    int code =
        sqlite3_open_v2(catalog->path, &catalog->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    if (code != SQLITE_OK)
        return failed(catalog, code, "open", err);
    sqlite3_busy_timeout(catalog->db, BUSY_MS);
    bk_rc_t rc = enter_wal_mode(catalog, err);
    if (rc == BK_OK)
        rc = check_pages(catalog, err);
    if (rc == BK_OK)
        rc = run(catalog, "PRAGMA synchronous=FULL; BEGIN IMMEDIATE", err);
    if (rc != BK_OK)
        return rc;
    rc = prepare(catalog, "PRAGMA user_version", &statement, err);
    if (rc == BK_OK) {
        if (sqlite3_step(statement) == SQLITE_ROW)
            version = sqlite3_column_int(statement, 0);
        sqlite3_finalize(statement);
    }
    if (rc == BK_OK && version == 0)
        rc = run(catalog, schema, err);
    else if (rc == BK_OK && version > SCHEMA_VERSION)
        rc = bk_err_set(err, BK_UNSUPPORTED,
                        "catalog %s was made by a newer ngx-backup; upgrade, or move it away to "
                        "begin a new one",
                        catalog->path);
    bk_rc_t end = run(catalog, rc == BK_OK ? "COMMIT" : "ROLLBACK", rc == BK_OK ? err : NULL);
    return rc != BK_OK ? rc : end;
}

static void close_database(bk_catalog_t *catalog)
{
    sqlite3_close_v2(catalog->db);
    catalog->db = NULL;
}

static void set_aside(const bk_catalog_t *catalog)
{
    static const char *const parts[] = {"", "-wal", "-shm"};
    char stamp[BK_TIME_TEXT];
    bk_time_stamp(stamp, bk_now());
    for (size_t i = 0; i < 3; i++) {
        char from[4096], to[4096];
        bk_fmt(from, sizeof from, "%s%s", catalog->path, parts[i]);
        bk_fmt(to, sizeof to, "%s.damaged-%s%s", catalog->path, stamp, parts[i]);
        rename(from, to);
    }
}

/* One process sets it aside; the others find the new one when they have the lock. */
static bk_rc_t replace_damaged(bk_catalog_t *catalog, bool *replaced, bk_err_t *err)
{
    char path[4096];
    int fd = -1;
    bk_rc_t rc = BK_LOCKED;
    bk_fmt(path, sizeof path, "%s.lock", catalog->path);
    for (int i = 0; i < BUSY_MS / BUSY_STEP_MS && rc == BK_LOCKED; i++) {
        if (i > 0)
            bk_sleep_ms(BUSY_STEP_MS);
        rc = bk_lock_file(path, &fd, err);
    }
    if (rc != BK_OK)
        return rc;
    close_database(catalog);
    rc = open_database(catalog, err);
    if (rc == BK_CORRUPT) {
        close_database(catalog);
        set_aside(catalog);
        *replaced = true;
        rc = open_database(catalog, err);
    }
    close(fd);
    return rc;
}

bk_rc_t bk_catalog_open(const char *base_dir, bk_catalog_t **result, bool *replaced, bk_err_t *err)
{
    char path[4096];
    bk_catalog_t *catalog = calloc(1, sizeof *catalog);
    *replaced = false;
    bk_fmt(path, sizeof path, "%s/catalog.db", base_dir);
    if (catalog == NULL || (catalog->path = bk_strdup(path)) == NULL) {
        free(catalog);
        return bk_err_set(err, BK_NO_MEMORY, "catalog: out of memory");
    }
    pthread_mutex_init(&catalog->lock, NULL);
    bk_rc_t rc = open_database(catalog, err);
    if (rc == BK_CORRUPT)
        rc = replace_damaged(catalog, replaced, err);
    if (rc != BK_OK)
        bk_catalog_close(catalog);
    else
        *result = catalog;
    return rc;
}

void bk_catalog_close(bk_catalog_t *catalog)
{
    if (catalog == NULL)
        return;
    close_database(catalog);
    pthread_mutex_destroy(&catalog->lock);
    free(catalog->path);
    free(catalog);
}

/* --- jobs --- */

void bk_job_row_free(bk_job_row_t *row)
{
    json_decref(row->body);
    json_decref(row->result);
    free(row->trigger);
    free(row->requested_by);
    free(row->request_id);
    memset(row, 0, sizeof *row);
}

static char *dump(const json_t *value)
{
    bk_buf_t text;
    json_t *empty = value == NULL ? json_object() : NULL;
    bk_buf_init(&text, JSON_MAX);
    bk_rc_t rc =
        bk_json_dump(value != NULL ? (json_t *)(uintptr_t)value : empty, true, &text, NULL);
    char *copy = rc == BK_OK ? bk_strdup(bk_buf_str(&text)) : NULL;
    bk_buf_free(&text);
    json_decref(empty);
    return copy;
}

static json_t *parse(const unsigned char *text)
{
    json_t *value = NULL;
    if (text != NULL)
        bk_json_parse(text, strlen((const char *)text), &value, NULL);
    return value;
}

#define JOB_COLUMNS                                                                                \
    "id, kind, status, body, result, trigger, requested_by, request_id, created, started, "        \
    "completed, sequence"

static void read_row(sqlite3_stmt *statement, bk_job_row_t *row)
{
    memset(row, 0, sizeof *row);
    bk_strcpy(row->id, sizeof row->id, (const char *)sqlite3_column_text(statement, 0));
    row->kind = (bk_job_kind_t)sqlite3_column_int(statement, 1);
    row->status = (bk_job_status_t)sqlite3_column_int(statement, 2);
    row->body = parse(sqlite3_column_text(statement, 3));
    row->result = parse(sqlite3_column_text(statement, 4));
    row->trigger = bk_strdup((const char *)sqlite3_column_text(statement, 5));
    row->requested_by = bk_strdup((const char *)sqlite3_column_text(statement, 6));
    row->request_id = bk_strdup((const char *)sqlite3_column_text(statement, 7));
    row->created = sqlite3_column_int64(statement, 8);
    row->started = sqlite3_column_int64(statement, 9);
    row->completed = sqlite3_column_int64(statement, 10);
    row->sequence = sqlite3_column_int64(statement, 11);
}

/* Lock held.  The first column of the first row as text into out; BK_NOT_FOUND without a row. */
static bk_rc_t find_text(bk_catalog_t *catalog, sqlite3_stmt *statement, char *out, size_t size,
                         bk_err_t *err)
{
    int code = sqlite3_step(statement);
    bk_rc_t rc = BK_NOT_FOUND;
    if (code == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        bk_strcpy(out, size, text != NULL ? text : "");
        rc = BK_OK;
    } else if (code != SQLITE_DONE) {
        rc = failed(catalog, code, "read", err);
    }
    sqlite3_finalize(statement);
    return rc;
}

/* Lock held, in a transaction.  What an earlier request with this key was. */
static bk_rc_t replay(bk_catalog_t *catalog, const char *key, const char *body, char id[BK_JOB_ID],
                      bool *replayed, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc =
        prepare(catalog, "SELECT job, body FROM idempotency WHERE key = ?1 AND created > ?2",
                &statement, err);
    if (rc != BK_OK)
        return rc;
    bind_text(statement, 1, key);
    sqlite3_bind_int64(statement, 2, bk_now() - DAY);
    int code = sqlite3_step(statement);
    if (code == SQLITE_ROW) {
        bk_strcpy(id, BK_JOB_ID, (const char *)sqlite3_column_text(statement, 0));
        *replayed = strcmp((const char *)sqlite3_column_text(statement, 1), body) == 0;
        if (!*replayed)
            rc = bk_err_set(
                err, BK_INVALID,
                "this Idempotency-Key was used with another request (job %s): use a new key", id);
    } else if (code != SQLITE_DONE) {
        rc = failed(catalog, code, "read", err);
    }
    sqlite3_finalize(statement);
    return rc;
}

/*
 * Lock held.  The equal job that makes this one needless.  Backups may follow each other, also
 * within a second: only one that already waits behind a running job stands for all later ones.
 */
static bk_rc_t find_equal(bk_catalog_t *catalog, const bk_job_row_t *row, const char *body,
                          char id[BK_JOB_ID], bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc =
        prepare(catalog,
                row->kind == BK_JOB_BACKUP
                    ? "SELECT id FROM jobs WHERE status = 0 AND kind = ?1 AND body = ?2 AND EXISTS"
                      " (SELECT 1 FROM jobs WHERE status = 1)"
                    : "SELECT id FROM jobs WHERE status IN (0, 1) AND kind = ?1 AND body = ?2",
                &statement, err);
    if (rc != BK_OK)
        return rc;
    sqlite3_bind_int(statement, 1, (int)row->kind);
    bind_text(statement, 2, body);
    return find_text(catalog, statement, id, BK_JOB_ID, err);
}

static bk_rc_t insert_job(bk_catalog_t *catalog, bk_job_row_t *row, const char *body, bk_err_t *err)
{
    char wanted[BK_JOB_ID];
    bk_strcpy(wanted, sizeof wanted, row->id);
    for (unsigned n = 2; n < 1000; n++) {
        sqlite3_stmt *statement;
        bk_rc_t rc = prepare(
            catalog,
            "INSERT INTO jobs(id, kind, status, body, trigger, requested_by, request_id, created)"
            " VALUES(?1, ?2, 0, ?3, ?4, ?5, ?6, ?7)",
            &statement, err);
        if (rc != BK_OK)
            return rc;
        bind_text(statement, 1, row->id);
        sqlite3_bind_int(statement, 2, (int)row->kind);
        bind_text(statement, 3, body);
        bind_text(statement, 4, row->trigger);
        bind_text(statement, 5, row->requested_by);
        bind_text(statement, 6, row->request_id);
        sqlite3_bind_int64(statement, 7, row->created);
        int code = sqlite3_step(statement);
        sqlite3_finalize(statement);
        if (code == SQLITE_DONE)
            return BK_OK;
        if ((code & 0xff) != SQLITE_CONSTRAINT)
            return failed(catalog, code, "add a job", err);
        bk_fmt(row->id, sizeof row->id, "%s_%u", wanted, n);
    }
    return bk_err_set(err, BK_CONFLICT, "too many jobs in one second: try again");
}

static bk_rc_t remember_key(bk_catalog_t *catalog, const char *key, const char *body,
                            const char *id, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc = prepare(catalog, "INSERT OR REPLACE INTO idempotency VALUES(?1, ?2, ?3, ?4)",
                         &statement, err);
    if (rc != BK_OK)
        return rc;
    bind_text(statement, 1, key);
    bind_text(statement, 2, body);
    bind_text(statement, 3, id);
    sqlite3_bind_int64(statement, 4, bk_now());
    return finish(catalog, statement, err);
}

bk_rc_t bk_catalog_submit(bk_catalog_t *catalog, bk_job_row_t *row, const char *key, bool *replayed,
                          bk_err_t *err)
{
    char *body = dump(row->body), id[BK_JOB_ID];
    *replayed = false;
    if (body == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "catalog: out of memory");
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = run(catalog, "BEGIN IMMEDIATE", err);
    if (rc == BK_OK) {
        if (key != NULL)
            rc = replay(catalog, key, body, id, replayed, err);
        if (rc == BK_OK && *replayed) {
            bk_strcpy(row->id, sizeof row->id, id);
        } else if (rc == BK_OK) {
            bk_rc_t found = find_equal(catalog, row, body, id, err);
            if (found == BK_OK) {
                bk_strcpy(row->id, sizeof row->id, id);
                rc = bk_err_set(err, BK_CONFLICT, "the same job is queued or running already: %s",
                                id);
            } else if (found != BK_NOT_FOUND) {
                rc = found;
            }
            if (rc == BK_OK)
                rc = insert_job(catalog, row, body, err);
            if (rc == BK_OK && key != NULL)
                rc = remember_key(catalog, key, body, row->id, err);
        }
        bk_rc_t end = run(catalog, rc == BK_OK ? "COMMIT" : "ROLLBACK", rc == BK_OK ? err : NULL);
        if (rc == BK_OK)
            rc = end;
    }
    pthread_mutex_unlock(&catalog->lock);
    free(body);
    return rc;
}

static bk_rc_t one_job(bk_catalog_t *catalog, sqlite3_stmt *statement, bk_job_row_t *row,
                       bk_err_t *err)
{
    int code = sqlite3_step(statement);
    bk_rc_t rc = code == SQLITE_ROW    ? BK_OK
                 : code == SQLITE_DONE ? BK_NOT_FOUND
                                       : failed(catalog, code, "read", err);
    if (rc == BK_OK)
        read_row(statement, row);
    sqlite3_finalize(statement);
    return rc;
}

bk_rc_t bk_catalog_job(bk_catalog_t *catalog, const char *id, bk_job_row_t *row, bk_err_t *err)
{
    sqlite3_stmt *statement;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc =
        prepare(catalog, "SELECT " JOB_COLUMNS " FROM jobs WHERE id = ?1", &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, id);
        rc = one_job(catalog, statement, row, err);
    }
    pthread_mutex_unlock(&catalog->lock);
    if (rc == BK_NOT_FOUND)
        bk_err_set(err, rc, "there is no job \"%s\"", id);
    return rc;
}

bk_rc_t bk_catalog_last(bk_catalog_t *catalog, bk_job_kind_t kind, bk_job_row_t *row, bk_err_t *err)
{
    sqlite3_stmt *statement;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc =
        prepare(catalog,
                "SELECT " JOB_COLUMNS
                " FROM jobs WHERE kind = ?1 AND status IN (3, 4, 5) ORDER BY sequence DESC LIMIT 1",
                &statement, err);
    if (rc == BK_OK) {
        sqlite3_bind_int(statement, 1, (int)kind);
        rc = one_job(catalog, statement, row, err);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_jobs(bk_catalog_t *catalog, int64_t before, unsigned limit, bk_catalog_job_fn fn,
                        void *arg, uint64_t *total, bk_err_t *err)
{
    sqlite3_stmt *statement;
    char count[32] = "0";
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(catalog, "SELECT count(*) FROM jobs", &statement, err);
    if (rc == BK_OK)
        rc = find_text(catalog, statement, count, sizeof count, err);
    *total = strtoull(count, NULL, 10);
    if (rc == BK_OK)
        rc = prepare(catalog,
                     "SELECT " JOB_COLUMNS
                     " FROM jobs WHERE ?1 = 0 OR sequence < ?1 ORDER BY sequence DESC LIMIT ?2",
                     &statement, err);
    if (rc == BK_OK) {
        int code;
        sqlite3_bind_int64(statement, 1, before);
        sqlite3_bind_int(statement, 2, (int)limit);
        while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
            bk_job_row_t row;
            read_row(statement, &row);
            fn(arg, &row);
            bk_job_row_free(&row);
        }
        if (code != SQLITE_DONE)
            rc = failed(catalog, code, "read", err);
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_take(bk_catalog_t *catalog, char id[BK_JOB_ID], bk_err_t *err)
{
    sqlite3_stmt *statement;
    id[0] = '\0';
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(catalog,
                         "UPDATE jobs SET status = 1, started = ?1 WHERE sequence ="
                         " (SELECT min(sequence) FROM jobs WHERE status = 0) RETURNING id",
                         &statement, err);
    if (rc == BK_OK) {
        sqlite3_bind_int64(statement, 1, bk_now());
        int code = sqlite3_step(statement);
        if (code == SQLITE_ROW) {
            bk_strcpy(id, BK_JOB_ID, (const char *)sqlite3_column_text(statement, 0));
            code = sqlite3_step(statement);
        }
        if (code != SQLITE_DONE)
            rc = failed(catalog, code, "take a job", err);
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_finish(bk_catalog_t *catalog, const char *id, bk_job_status_t status,
                          const json_t *result, bk_err_t *err)
{
    sqlite3_stmt *statement;
    char *text = result != NULL ? dump(result) : NULL;
    bool again = status == BK_STATUS_QUEUED;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc =
        prepare(catalog,
                again ? "UPDATE jobs SET status = ?2, result = ?3, started = NULL WHERE id = ?1"
                      : "UPDATE jobs SET status = ?2, result = ?3, completed = ?4 WHERE id = ?1",
                &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, id);
        sqlite3_bind_int(statement, 2, (int)status);
        bind_text(statement, 3, text);
        if (!again)
            sqlite3_bind_int64(statement, 4, bk_now());
        rc = finish(catalog, statement, err);
    }
    pthread_mutex_unlock(&catalog->lock);
    free(text);
    return rc;
}

bk_rc_t bk_catalog_requeue(bk_catalog_t *catalog, const char *id, unsigned *crashes, bk_err_t *err)
{
    sqlite3_stmt *statement;
    char count[32] = "0";
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(catalog,
                         "UPDATE jobs SET status = 0, started = NULL, crashes = crashes + 1"
                         " WHERE id = ?1 RETURNING crashes",
                         &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, id);
        rc = find_text(catalog, statement, count, sizeof count, err);
    }
    pthread_mutex_unlock(&catalog->lock);
    *crashes = (unsigned)strtoul(count, NULL, 10);
    return rc == BK_NOT_FOUND ? bk_err_set(err, rc, "there is no job \"%s\"", id) : rc;
}

bk_rc_t bk_catalog_change(bk_catalog_t *catalog, const char *id, bk_job_status_t from,
                          bk_job_status_t to, bk_err_t *err)
{
    sqlite3_stmt *statement;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(
        catalog, "UPDATE jobs SET status = ?3, completed = ?4 WHERE id = ?1 AND status = ?2",
        &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, id);
        sqlite3_bind_int(statement, 2, (int)from);
        sqlite3_bind_int(statement, 3, (int)to);
        sqlite3_bind_int64(statement, 4, bk_now());
        rc = finish(catalog, statement, err);
        if (rc == BK_OK && sqlite3_changes(catalog->db) == 0)
            rc = bk_err_set(err, BK_CONFLICT, "job %s is no longer %s", id,
                            bk_job_status_name(from));
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_counts(bk_catalog_t *catalog, uint64_t counts[8], bk_err_t *err)
{
    sqlite3_stmt *statement;
    memset(counts, 0, 8 * sizeof *counts);
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc =
        prepare(catalog, "SELECT status, count(*) FROM jobs WHERE kind = 0 GROUP BY status",
                &statement, err);
    if (rc == BK_OK) {
        while (sqlite3_step(statement) == SQLITE_ROW) {
            int status = sqlite3_column_int(statement, 0);
            if (status >= 0 && status < 8)
                counts[status] = (uint64_t)sqlite3_column_int64(statement, 1);
        }
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_prune(bk_catalog_t *catalog, unsigned keep, bk_err_t *err)
{
    char sql[256];
    bk_fmt(
        sql, sizeof sql,
        "DELETE FROM jobs WHERE status > 2 AND sequence <= (SELECT max(sequence) FROM jobs) - %u;"
        "DELETE FROM idempotency WHERE created < %lld",
        keep, (long long)(bk_now() - DAY));
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = run(catalog, sql, err);
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

/* --- backups --- */

typedef struct {
    const char *id; /* borrowed from the object */
    json_int_t completed;
    char *text;
} document_t;

static void free_documents(document_t *documents, size_t count)
{
    for (size_t i = 0; documents != NULL && i < count; i++)
        free(documents[i].text);
    free(documents);
}

/* Lock held.  Is that what the row says already? */
static bool same_document(bk_catalog_t *catalog, const document_t *document)
{
    sqlite3_stmt *statement;
    bool same = false;
    if (prepare(catalog, "SELECT document FROM backups WHERE id = ?1", &statement, NULL) != BK_OK)
        return false;
    bind_text(statement, 1, document->id);
    if (sqlite3_step(statement) == SQLITE_ROW)
        same = strcmp((const char *)sqlite3_column_text(statement, 0), document->text) == 0;
    sqlite3_finalize(statement);
    return same;
}

static bk_rc_t put_document(bk_catalog_t *catalog, const document_t *document, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc =
        prepare(catalog, "INSERT OR REPLACE INTO backups VALUES(?1, ?2, ?3)", &statement, err);
    if (rc != BK_OK)
        return rc;
    bind_text(statement, 1, document->id);
    sqlite3_bind_int64(statement, 2, document->completed);
    bind_text(statement, 3, document->text);
    return finish(catalog, statement, err);
}

/* Lock held.  Remove the rows whose id is no member of known. */
static bk_rc_t drop_unknown(bk_catalog_t *catalog, const json_t *known, bool *changed,
                            bk_err_t *err)
{
    sqlite3_stmt *statement;
    json_t *gone = json_array(), *id;
    size_t i;
    bk_rc_t rc = prepare(catalog, "SELECT id FROM backups", &statement, err);
    if (rc == BK_OK) {
        int code;
        while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
            const char *text = (const char *)sqlite3_column_text(statement, 0);
            if (text != NULL && json_object_get(known, text) == NULL)
                json_array_append_new(gone, json_string(text));
        }
        if (code != SQLITE_DONE)
            rc = failed(catalog, code, "read", err);
        sqlite3_finalize(statement);
    }
    json_array_foreach(gone, i, id)
    {
        if (rc == BK_OK)
            rc = prepare(catalog, "DELETE FROM backups WHERE id = ?1", &statement, err);
        if (rc == BK_OK) {
            bind_text(statement, 1, json_string_value(id));
            rc = finish(catalog, statement, err);
            *changed = true;
        }
    }
    json_decref(gone);
    return rc;
}

bk_rc_t bk_catalog_backups_replace(bk_catalog_t *catalog, const json_t *backups, bk_err_t *err)
{
    size_t count = json_array_size(backups);
    document_t *documents = calloc(count + 1, sizeof *documents);
    json_t *known = json_object();
    bool changed = false, whole = documents != NULL && known != NULL;
    for (size_t i = 0; whole && i < count; i++) {
        const json_t *backup = json_array_get(backups, i);
        documents[i].id = json_string_value(json_object_get(backup, "backup_id"));
        documents[i].completed = json_integer_value(json_object_get(backup, "completed_ns"));
        documents[i].text = dump(backup);
        whole = documents[i].id != NULL && documents[i].text != NULL &&
                json_object_set_new(known, documents[i].id, json_true()) == 0;
    }
    if (!whole) {
        free_documents(documents, count);
        json_decref(known);
        return bk_err_set(err, BK_NO_MEMORY, "catalog: out of memory");
    }
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = run(catalog, "BEGIN IMMEDIATE", err);
    if (rc == BK_OK) {
        for (size_t i = 0; rc == BK_OK && i < count; i++)
            if (!same_document(catalog, &documents[i])) {
                rc = put_document(catalog, &documents[i], err);
                changed = true;
            }
        if (rc == BK_OK)
            rc = drop_unknown(catalog, known, &changed, err);
        bool commit = rc == BK_OK && changed;
        bk_rc_t end = run(catalog, commit ? "COMMIT" : "ROLLBACK", rc == BK_OK ? err : NULL);
        if (rc == BK_OK)
            rc = end;
    }
    pthread_mutex_unlock(&catalog->lock);
    free_documents(documents, count);
    json_decref(known);
    return rc;
}

bk_rc_t bk_catalog_backup(bk_catalog_t *catalog, const char *id, json_t **backup, bk_err_t *err)
{
    sqlite3_stmt *statement;
    *backup = NULL;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(catalog, "SELECT document FROM backups WHERE id = ?1", &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, id);
        if (sqlite3_step(statement) == SQLITE_ROW)
            *backup = parse(sqlite3_column_text(statement, 0));
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    if (rc == BK_OK && *backup == NULL)
        rc = bk_err_set(err, BK_NOT_FOUND, "there is no backup \"%s\"", id);
    return rc;
}

bk_rc_t bk_catalog_backups(bk_catalog_t *catalog, bk_catalog_backup_fn fn, void *arg, bk_err_t *err)
{
    sqlite3_stmt *statement;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(catalog, "SELECT document FROM backups ORDER BY completed DESC, id DESC",
                         &statement, err);
    if (rc == BK_OK) {
        bool more = true;
        while (more && sqlite3_step(statement) == SQLITE_ROW) {
            json_t *backup = parse(sqlite3_column_text(statement, 0));
            more = backup == NULL || fn(arg, backup);
            json_decref(backup);
        }
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

/* --- values --- */

bk_rc_t bk_catalog_value(bk_catalog_t *catalog, const char *key, json_t **value, bk_err_t *err)
{
    sqlite3_stmt *statement;
    *value = NULL;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = prepare(catalog, "SELECT value FROM state WHERE key = ?1", &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, key);
        if (sqlite3_step(statement) == SQLITE_ROW)
            *value = parse(sqlite3_column_text(statement, 0));
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_set_value(bk_catalog_t *catalog, const char *key, const json_t *value,
                             bk_err_t *err)
{
    sqlite3_stmt *statement;
    char *text = dump(value);
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc =
        prepare(catalog, "INSERT OR REPLACE INTO state VALUES(?1, ?2, ?3)", &statement, err);
    if (rc == BK_OK) {
        bind_text(statement, 1, key);
        bind_text(statement, 2, text);
        sqlite3_bind_int64(statement, 3, bk_now());
        rc = finish(catalog, statement, err);
    }
    pthread_mutex_unlock(&catalog->lock);
    free(text);
    return rc;
}
