/*
 * engine/catalog.c: opening the catalog, the copies of the backups, and small values.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/catalog_private.h"

#define SCHEMA_VERSION 1
#define BUSY_MS        10000
#define BUSY_STEP_MS   20
#define JSON_MAX       (64u << 20)

static const char schema[] =
    "CREATE TABLE jobs(sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " kind INTEGER NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL, result TEXT, trigger "
    "TEXT,"
    " requested_by TEXT, request_id TEXT, created INTEGER NOT NULL, started INTEGER, completed "
    "INTEGER, crashes INTEGER NOT NULL DEFAULT 0);"
    "CREATE INDEX jobs_status ON jobs(status, sequence);"
    "CREATE TABLE idempotency(key TEXT PRIMARY KEY, body TEXT NOT NULL /* the whole request */,"
    " job TEXT NOT NULL,"
    " created INTEGER NOT NULL);"
    "CREATE TABLE backups(id TEXT PRIMARY KEY, completed INTEGER NOT NULL,"
    " document TEXT NOT NULL);"
    "CREATE INDEX backups_completed ON backups(completed);"
    "CREATE TABLE state(key TEXT PRIMARY KEY, value TEXT NOT NULL, updated INTEGER NOT NULL);"
    "PRAGMA user_version = 1;";

bk_rc_t bk_catalog_failed(const bk_catalog_t *catalog, int code, const char *what, bk_err_t *err)
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

bk_rc_t bk_catalog_exec(bk_catalog_t *catalog, const char *sql, bk_err_t *err)
{
    int code = sqlite3_exec(catalog->db, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? BK_OK : bk_catalog_failed(catalog, code, "write", err);
}

bk_rc_t bk_catalog_prepare(bk_catalog_t *catalog, const char *sql, sqlite3_stmt **statement,
                           bk_err_t *err)
{
    int code = sqlite3_prepare_v2(catalog->db, sql, -1, statement, NULL);
    return code == SQLITE_OK ? BK_OK : bk_catalog_failed(catalog, code, "prepare", err);
}

void bk_catalog_bind(sqlite3_stmt *statement, int at, const char *text)
{
    if (text != NULL)
        sqlite3_bind_text(statement, at, text, -1, SQLITE_TRANSIENT);
}

/* Step a statement that returns nothing, and finalise it. */
bk_rc_t bk_catalog_step(bk_catalog_t *catalog, sqlite3_stmt *statement, bk_err_t *err)
{
    int code = sqlite3_step(statement);
    bk_rc_t rc = code == SQLITE_DONE || code == SQLITE_ROW
                     ? BK_OK
                     : bk_catalog_failed(catalog, code, "write", err);
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
        rc = bk_catalog_exec(catalog, "PRAGMA journal_mode=WAL", err);
    }
    return rc;
}

/* It is small: damage is better found now than by the statement that meets it. */
static bk_rc_t check_pages(bk_catalog_t *catalog, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc = bk_catalog_prepare(catalog, "PRAGMA quick_check(1)", &statement, err);
    if (rc != BK_OK)
        return rc;
    int code = sqlite3_step(statement);
    if (code != SQLITE_ROW) {
        rc = bk_catalog_failed(catalog, code, "check", err);
    } else {
        const char *found = (const char *)sqlite3_column_text(statement, 0);
        if (found == NULL || strcmp(found, "ok") != 0)
            rc = bk_err_set(err, BK_CORRUPT, "catalog %s is damaged: %s", catalog->path,
                            found != NULL ? found : "?");
    }
    sqlite3_finalize(statement);
    return rc;
}

/* Before the first lock: a tree of another set may reach the catalog by a name of its own. */
static bk_rc_t attach(bk_catalog_t *catalog, bk_err_t *err)
{
    bk_rc_t rc = BK_BUSY;
    if (stat(catalog->path, &catalog->st) != 0)
        return bk_err_sys(err, errno, "catalog %s", catalog->path);
    for (int i = 0; i < BUSY_MS / BUSY_STEP_MS && rc == BK_BUSY; i++) {
        if (i > 0)
            bk_sleep_ms(BUSY_STEP_MS);
        rc = bk_attached_add(catalog->path, &catalog->st, stat, err);
    }
    catalog->attached = rc == BK_OK;
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
        return bk_catalog_failed(catalog, code, "open", err);
    sqlite3_busy_timeout(catalog->db, BUSY_MS);
    bk_rc_t rc = attach(catalog, err);
    if (rc == BK_OK)
        rc = enter_wal_mode(catalog, err);
    if (rc == BK_OK)
        bk_attached_settle(catalog->st.st_dev, catalog->st.st_ino);
    if (rc == BK_OK)
        rc = check_pages(catalog, err);
    if (rc == BK_OK)
        rc = bk_catalog_exec(catalog, "PRAGMA synchronous=FULL; BEGIN IMMEDIATE", err);
    if (rc != BK_OK)
        return rc;
    rc = bk_catalog_prepare(catalog, "PRAGMA user_version", &statement, err);
    if (rc == BK_OK) {
        if (sqlite3_step(statement) == SQLITE_ROW)
            version = sqlite3_column_int(statement, 0);
        sqlite3_finalize(statement);
    }
    if (rc == BK_OK && version == 0)
        rc = bk_catalog_exec(catalog, schema, err);
    else if (rc == BK_OK && version > SCHEMA_VERSION)
        rc = bk_err_set(err, BK_UNSUPPORTED,
                        "catalog %s was made by a newer ngx-backup; upgrade, or move it away to "
                        "begin a new one",
                        catalog->path);
    bk_rc_t end =
        bk_catalog_exec(catalog, rc == BK_OK ? "COMMIT" : "ROLLBACK", rc == BK_OK ? err : NULL);
    return rc != BK_OK ? rc : end;
}

static void close_database(bk_catalog_t *catalog)
{
    sqlite3_close_v2(catalog->db);
    catalog->db = NULL;
    if (catalog->attached)
        bk_attached_remove(catalog->st.st_dev, catalog->st.st_ino);
    catalog->attached = false;
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

char *bk_catalog_dump(const json_t *value)
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

json_t *bk_catalog_parse(const unsigned char *text)
{
    json_t *value = NULL;
    if (text != NULL)
        bk_json_parse(text, strlen((const char *)text), &value, NULL);
    return value;
}

/* Lock held.  The first column of the first row as text into out; BK_NOT_FOUND without a row. */
bk_rc_t bk_catalog_text(bk_catalog_t *catalog, sqlite3_stmt *statement, char *out, size_t size,
                        bk_err_t *err)
{
    int code = sqlite3_step(statement);
    bk_rc_t rc = BK_NOT_FOUND;
    if (code == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        bk_strcpy(out, size, text != NULL ? text : "");
        rc = BK_OK;
    } else if (code != SQLITE_DONE) {
        rc = bk_catalog_failed(catalog, code, "read", err);
    }
    sqlite3_finalize(statement);
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
    if (bk_catalog_prepare(catalog, "SELECT document FROM backups WHERE id = ?1", &statement,
                           NULL) != BK_OK)
        return false;
    bk_catalog_bind(statement, 1, document->id);
    if (sqlite3_step(statement) == SQLITE_ROW)
        same = strcmp((const char *)sqlite3_column_text(statement, 0), document->text) == 0;
    sqlite3_finalize(statement);
    return same;
}

static bk_rc_t put_document(bk_catalog_t *catalog, const document_t *document, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc = bk_catalog_prepare(catalog, "INSERT OR REPLACE INTO backups VALUES(?1, ?2, ?3)",
                                    &statement, err);
    if (rc != BK_OK)
        return rc;
    bk_catalog_bind(statement, 1, document->id);
    sqlite3_bind_int64(statement, 2, document->completed);
    bk_catalog_bind(statement, 3, document->text);
    return bk_catalog_step(catalog, statement, err);
}

/* Lock held.  Remove the rows whose id is no member of known. */
static bk_rc_t drop_unknown(bk_catalog_t *catalog, const json_t *known, bool *changed,
                            bk_err_t *err)
{
    sqlite3_stmt *statement;
    json_t *gone = json_array(), *id;
    size_t i;
    bk_rc_t rc = bk_catalog_prepare(catalog, "SELECT id FROM backups", &statement, err);
    if (rc == BK_OK) {
        int code;
        while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
            const char *text = (const char *)sqlite3_column_text(statement, 0);
            if (text != NULL && json_object_get(known, text) == NULL)
                json_array_append_new(gone, json_string(text));
        }
        if (code != SQLITE_DONE)
            rc = bk_catalog_failed(catalog, code, "read", err);
        sqlite3_finalize(statement);
    }
    json_array_foreach(gone, i, id)
    {
        if (rc == BK_OK)
            rc = bk_catalog_prepare(catalog, "DELETE FROM backups WHERE id = ?1", &statement, err);
        if (rc == BK_OK) {
            bk_catalog_bind(statement, 1, json_string_value(id));
            rc = bk_catalog_step(catalog, statement, err);
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
        documents[i].text = bk_catalog_dump(backup);
        whole = documents[i].id != NULL && documents[i].text != NULL &&
                json_object_set_new(known, documents[i].id, json_true()) == 0;
    }
    if (!whole) {
        free_documents(documents, count);
        json_decref(known);
        return bk_err_set(err, BK_NO_MEMORY, "catalog: out of memory");
    }
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_exec(catalog, "BEGIN IMMEDIATE", err);
    if (rc == BK_OK) {
        for (size_t i = 0; rc == BK_OK && i < count; i++)
            if (!same_document(catalog, &documents[i])) {
                rc = put_document(catalog, &documents[i], err);
                changed = true;
            }
        if (rc == BK_OK)
            rc = drop_unknown(catalog, known, &changed, err);
        bool commit = rc == BK_OK && changed;
        bk_rc_t end =
            bk_catalog_exec(catalog, commit ? "COMMIT" : "ROLLBACK", rc == BK_OK ? err : NULL);
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
    bk_rc_t rc =
        bk_catalog_prepare(catalog, "SELECT document FROM backups WHERE id = ?1", &statement, err);
    if (rc == BK_OK) {
        bk_catalog_bind(statement, 1, id);
        if (sqlite3_step(statement) == SQLITE_ROW)
            *backup = bk_catalog_parse(sqlite3_column_text(statement, 0));
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
    bk_rc_t rc = bk_catalog_prepare(
        catalog, "SELECT document FROM backups ORDER BY completed DESC, id DESC", &statement, err);
    if (rc == BK_OK) {
        bool more = true;
        while (more && sqlite3_step(statement) == SQLITE_ROW) {
            json_t *backup = bk_catalog_parse(sqlite3_column_text(statement, 0));
            more = backup == NULL || fn(arg, backup);
            json_decref(backup);
        }
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

/* --- values --- */

static bk_rc_t read_value(bk_catalog_t *catalog, const char *key, json_t **value, bk_err_t *err)
{
    sqlite3_stmt *statement;
    *value = NULL;
    bk_rc_t rc =
        bk_catalog_prepare(catalog, "SELECT value FROM state WHERE key = ?1", &statement, err);
    if (rc != BK_OK)
        return rc;
    bk_catalog_bind(statement, 1, key);
    if (sqlite3_step(statement) == SQLITE_ROW)
        *value = bk_catalog_parse(sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return BK_OK;
}

static bk_rc_t write_value(bk_catalog_t *catalog, const char *key, const json_t *value,
                           bk_err_t *err)
{
    sqlite3_stmt *statement;
    char *text = bk_catalog_dump(value);
    bk_rc_t rc = bk_catalog_prepare(catalog, "INSERT OR REPLACE INTO state VALUES(?1, ?2, ?3)",
                                    &statement, err);
    if (rc == BK_OK) {
        bk_catalog_bind(statement, 1, key);
        bk_catalog_bind(statement, 2, text);
        sqlite3_bind_int64(statement, 3, bk_now());
        rc = bk_catalog_step(catalog, statement, err);
    }
    free(text);
    return rc;
}

bk_rc_t bk_catalog_value(bk_catalog_t *catalog, const char *key, json_t **value, bk_err_t *err)
{
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = read_value(catalog, key, value, err);
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_set_value(bk_catalog_t *catalog, const char *key, const json_t *value,
                             bk_err_t *err)
{
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = write_value(catalog, key, value, err);
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_edit_value(bk_catalog_t *catalog, const char *key, bk_catalog_edit_fn edit,
                              void *arg, bk_err_t *err)
{
    json_t *value = NULL;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_exec(catalog, "BEGIN IMMEDIATE", err);
    bool begun = rc == BK_OK;
    if (rc == BK_OK)
        rc = read_value(catalog, key, &value, err);
    if (rc == BK_OK && !json_is_object(value)) {
        json_decref(value);
        value = json_object();
    }
    if (rc == BK_OK) {
        edit(value, arg);
        rc = write_value(catalog, key, value, err);
    }
    if (rc == BK_OK)
        rc = bk_catalog_exec(catalog, "COMMIT", err);
    if (rc != BK_OK && begun)
        (void)bk_catalog_exec(catalog, "ROLLBACK", NULL);
    pthread_mutex_unlock(&catalog->lock);
    json_decref(value);
    return rc;
}
