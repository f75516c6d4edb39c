/*
 * engine/queue.c: the part of the catalog that holds jobs: submitting, taking, ending, and the keys
 * that make a repeated request the same one.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "engine/catalog_private.h"

#define DAY (86400 * BK_SEC)

void bk_job_row_free(bk_job_row_t *row)
{
    json_decref(row->body);
    json_decref(row->result);
    free(row->trigger);
    free(row->requested_by);
    free(row->request_id);
    memset(row, 0, sizeof *row);
}

#define JOB_COLUMNS                                                                                \
    "id, kind, status, body, result, trigger, requested_by, request_id, created, started, "        \
    "completed, sequence"

static void read_row(sqlite3_stmt *statement, bk_job_row_t *row)
{
    memset(row, 0, sizeof *row);
    bk_strcpy(row->id, sizeof row->id, (const char *)sqlite3_column_text(statement, 0));
    /* Both are used as indexes: a damaged row must not lead astray. */
    int kind = sqlite3_column_int(statement, 1), status = sqlite3_column_int(statement, 2);
    row->kind = kind >= BK_JOB_BACKUP && kind <= BK_JOB_DELETE ? (bk_job_kind_t)kind : BK_JOB_TEST;
    row->status = status >= BK_STATUS_QUEUED && status <= BK_STATUS_INTERRUPTED
                      ? (bk_job_status_t)status
                      : BK_STATUS_FAILED;
    row->body = bk_catalog_parse(sqlite3_column_text(statement, 3));
    row->damaged = row->body == NULL || (int)row->kind != kind;
    if (row->body == NULL)
        row->body = json_object();
    row->result = bk_catalog_parse(sqlite3_column_text(statement, 4));
    row->trigger = bk_strdup((const char *)sqlite3_column_text(statement, 5));
    row->requested_by = bk_strdup((const char *)sqlite3_column_text(statement, 6));
    row->request_id = bk_strdup((const char *)sqlite3_column_text(statement, 7));
    row->created = sqlite3_column_int64(statement, 8);
    row->started = sqlite3_column_int64(statement, 9);
    row->completed = sqlite3_column_int64(statement, 10);
    row->sequence = sqlite3_column_int64(statement, 11);
}

/*
 * What a key stands for: the operation, who asked, and the body.  The same key on another operation
 * is a mistake of the client, and of another user no business of this one.
 */
static char *key_request(const bk_job_row_t *row, const char *body)
{
    bk_buf_t text;
    const char *kind = bk_job_kind_name(row->kind);
    const char *user = row->requested_by != NULL ? row->requested_by : "";
    bk_buf_init(&text, SIZE_MAX);
    bk_buf_add(&text, kind, strlen(kind));
    bk_buf_add(&text, "\n", 1);
    bk_buf_add(&text, user, strlen(user));
    bk_buf_add(&text, "\n", 1);
    bk_buf_add(&text, body, strlen(body));
    char *copy = bk_buf_ok(&text) ? bk_strdup(bk_buf_str(&text)) : NULL;
    bk_buf_free(&text);
    return copy;
}

/* Lock held, in a transaction.  What an earlier request with this key was. */
static bk_rc_t replay(bk_catalog_t *catalog, const char *key, const char *request,
                      char id[BK_JOB_ID], bool *replayed, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc = bk_catalog_prepare(
        catalog, "SELECT job, body FROM idempotency WHERE key = ?1 AND created > ?2", &statement,
        err);
    if (rc != BK_OK)
        return rc;
    bk_catalog_bind(statement, 1, key);
    sqlite3_bind_int64(statement, 2, bk_now() - DAY);
    int code = sqlite3_step(statement);
    if (code == SQLITE_ROW) {
        bk_strcpy(id, BK_JOB_ID, (const char *)sqlite3_column_text(statement, 0));
        *replayed = strcmp((const char *)sqlite3_column_text(statement, 1), request) == 0;
        if (!*replayed)
            rc = bk_err_set(err, BK_INVALID,
                            "this Idempotency-Key was used for another request (job %s), with "
                            "another operation, body or user: use a new key",
                            id);
    } else if (code != SQLITE_DONE) {
        rc = bk_catalog_failed(catalog, code, "read", err);
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
    bk_rc_t rc = bk_catalog_prepare(
        catalog,
        row->kind == BK_JOB_BACKUP
            ? "SELECT id FROM jobs WHERE status = 0 AND kind = ?1 AND body = ?2 AND EXISTS"
              " (SELECT 1 FROM jobs WHERE status IN (1, 2))"
            : "SELECT id FROM jobs WHERE status IN (0, 1, 2) AND kind = ?1 AND body = ?2",
        &statement, err);
    if (rc != BK_OK)
        return rc;
    sqlite3_bind_int(statement, 1, (int)row->kind);
    bk_catalog_bind(statement, 2, body);
    return bk_catalog_text(catalog, statement, id, BK_JOB_ID, err);
}

static bk_rc_t insert_job(bk_catalog_t *catalog, bk_job_row_t *row, const char *body, bk_err_t *err)
{
    char wanted[BK_JOB_ID];
    bk_strcpy(wanted, sizeof wanted, row->id);
    for (unsigned n = 2; n < 1000; n++) {
        sqlite3_stmt *statement;
        bk_rc_t rc = bk_catalog_prepare(
            catalog,
            "INSERT INTO jobs(id, kind, status, body, trigger, requested_by, request_id, created)"
            " VALUES(?1, ?2, 0, ?3, ?4, ?5, ?6, ?7)",
            &statement, err);
        if (rc != BK_OK)
            return rc;
        bk_catalog_bind(statement, 1, row->id);
        sqlite3_bind_int(statement, 2, (int)row->kind);
        bk_catalog_bind(statement, 3, body);
        bk_catalog_bind(statement, 4, row->trigger);
        bk_catalog_bind(statement, 5, row->requested_by);
        bk_catalog_bind(statement, 6, row->request_id);
        sqlite3_bind_int64(statement, 7, row->created);
        int code = sqlite3_step(statement);
        sqlite3_finalize(statement);
        if (code == SQLITE_DONE)
            return BK_OK;
        if ((code & 0xff) != SQLITE_CONSTRAINT)
            return bk_catalog_failed(catalog, code, "add a job", err);
        bk_fmt(row->id, sizeof row->id, "%s_%u", wanted, n);
    }
    return bk_err_set(err, BK_CONFLICT, "too many jobs in one second: try again");
}

static bk_rc_t remember_key(bk_catalog_t *catalog, const char *key, const char *request,
                            const char *id, bk_err_t *err)
{
    sqlite3_stmt *statement;
    bk_rc_t rc = bk_catalog_prepare(
        catalog, "INSERT OR REPLACE INTO idempotency VALUES(?1, ?2, ?3, ?4)", &statement, err);
    if (rc != BK_OK)
        return rc;
    bk_catalog_bind(statement, 1, key);
    bk_catalog_bind(statement, 2, request);
    bk_catalog_bind(statement, 3, id);
    sqlite3_bind_int64(statement, 4, bk_now());
    return bk_catalog_step(catalog, statement, err);
}

bk_rc_t bk_catalog_submit(bk_catalog_t *catalog, bk_job_row_t *row, const char *key, bool *replayed,
                          bk_err_t *err)
{
    char *body = bk_catalog_dump(row->body), id[BK_JOB_ID];
    char *request = body != NULL ? key_request(row, body) : NULL;
    *replayed = false;
    if (request == NULL) {
        free(body);
        return bk_err_set(err, BK_NO_MEMORY, "catalog: out of memory");
    }
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_exec(catalog, "BEGIN IMMEDIATE", err);
    if (rc == BK_OK) {
        if (key != NULL)
            rc = replay(catalog, key, request, id, replayed, err);
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
                rc = remember_key(catalog, key, request, row->id, err);
        }
        bk_rc_t end =
            bk_catalog_exec(catalog, rc == BK_OK ? "COMMIT" : "ROLLBACK", rc == BK_OK ? err : NULL);
        if (rc == BK_OK)
            rc = end;
    }
    pthread_mutex_unlock(&catalog->lock);
    free(request);
    free(body);
    return rc;
}

static bk_rc_t one_job(bk_catalog_t *catalog, sqlite3_stmt *statement, bk_job_row_t *row,
                       bk_err_t *err)
{
    int code = sqlite3_step(statement);
    bk_rc_t rc = code == SQLITE_ROW    ? BK_OK
                 : code == SQLITE_DONE ? BK_NOT_FOUND
                                       : bk_catalog_failed(catalog, code, "read", err);
    if (rc == BK_OK)
        read_row(statement, row);
    sqlite3_finalize(statement);
    return rc;
}

bk_rc_t bk_catalog_job(bk_catalog_t *catalog, const char *id, bk_job_row_t *row, bk_err_t *err)
{
    sqlite3_stmt *statement;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_prepare(catalog, "SELECT " JOB_COLUMNS " FROM jobs WHERE id = ?1",
                                    &statement, err);
    if (rc == BK_OK) {
        bk_catalog_bind(statement, 1, id);
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
    bk_rc_t rc = bk_catalog_prepare(
        catalog,
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
    bk_rc_t rc = bk_catalog_prepare(catalog, "SELECT count(*) FROM jobs", &statement, err);
    if (rc == BK_OK)
        rc = bk_catalog_text(catalog, statement, count, sizeof count, err);
    *total = strtoull(count, NULL, 10);
    if (rc == BK_OK)
        rc = bk_catalog_prepare(
            catalog,
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
            rc = bk_catalog_failed(catalog, code, "read", err);
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
    bk_rc_t rc =
        bk_catalog_prepare(catalog,
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
            rc = bk_catalog_failed(catalog, code, "take a job", err);
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

/*
 * To the queue again; but the wish to cancel, which may come at any moment and from any process,
 * holds for whoever would take the job next: then this is its end.
 */
#define AGAIN(now)                                                                                 \
    "status = CASE status WHEN 2 THEN 6 ELSE 0 END,"                                               \
    " started = CASE status WHEN 2 THEN started END,"                                              \
    " completed = CASE status WHEN 2 THEN " now " END"

bk_rc_t bk_catalog_finish(bk_catalog_t *catalog, const char *id, bk_job_status_t status,
                          const json_t *result, bk_err_t *err)
{
    sqlite3_stmt *statement;
    char *text = result != NULL ? bk_catalog_dump(result) : NULL;
    bool again = status == BK_STATUS_QUEUED;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_prepare(
        catalog,
        again ? "UPDATE jobs SET " AGAIN("?4") ", result = ?3 WHERE id = ?1"
              : "UPDATE jobs SET status = ?2, result = ?3, completed = ?4 WHERE id = ?1",
        &statement, err);
    if (rc == BK_OK) {
        bk_catalog_bind(statement, 1, id);
        if (!again)
            sqlite3_bind_int(statement, 2, (int)status);
        bk_catalog_bind(statement, 3, text);
        sqlite3_bind_int64(statement, 4, bk_now());
        rc = bk_catalog_step(catalog, statement, err);
    }
    pthread_mutex_unlock(&catalog->lock);
    free(text);
    return rc;
}

bk_rc_t bk_catalog_requeue(bk_catalog_t *catalog, const char *id, unsigned *crashes, bool *canceled,
                           bk_err_t *err)
{
    sqlite3_stmt *statement;
    *crashes = 0;
    *canceled = false;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_prepare(
        catalog,
        "UPDATE jobs SET " AGAIN("?2") ", crashes = crashes + 1"
                                       " WHERE id = ?1 RETURNING crashes, status",
        &statement, err);
    if (rc == BK_OK) {
        bk_catalog_bind(statement, 1, id);
        sqlite3_bind_int64(statement, 2, bk_now());
        int code = sqlite3_step(statement);
        if (code == SQLITE_ROW) {
            *crashes = (unsigned)sqlite3_column_int(statement, 0);
            *canceled = sqlite3_column_int(statement, 1) == BK_STATUS_CANCELED;
        } else {
            rc = code == SQLITE_DONE ? bk_err_set(err, BK_NOT_FOUND, "there is no job \"%s\"", id)
                                     : bk_catalog_failed(catalog, code, "write", err);
        }
        sqlite3_finalize(statement);
    }
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}

bk_rc_t bk_catalog_change(bk_catalog_t *catalog, const char *id, bk_job_status_t from,
                          bk_job_status_t to, bk_err_t *err)
{
    sqlite3_stmt *statement;
    pthread_mutex_lock(&catalog->lock);
    bk_rc_t rc = bk_catalog_prepare(
        catalog,
        "UPDATE jobs SET status = ?3, completed = CASE ?3 WHEN 2 THEN completed ELSE ?4 END"
        " WHERE id = ?1 AND status = ?2",
        &statement, err);
    if (rc == BK_OK) {
        bk_catalog_bind(statement, 1, id);
        sqlite3_bind_int(statement, 2, (int)from);
        sqlite3_bind_int(statement, 3, (int)to);
        sqlite3_bind_int64(statement, 4, bk_now());
        rc = bk_catalog_step(catalog, statement, err);
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
    bk_rc_t rc = bk_catalog_prepare(
        catalog, "SELECT status, count(*) FROM jobs WHERE kind = 0 GROUP BY status", &statement,
        err);
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
    bk_rc_t rc = bk_catalog_exec(catalog, sql, err);
    pthread_mutex_unlock(&catalog->lock);
    return rc;
}
