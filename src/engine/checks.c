/*
 * engine/checks.c: the jobs that look at what is stored: validate-recovery and verify.  They write
 * to scratch/ only.
 */
#include "engine/checks.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/readback.h"
#include "engine/recover.h"
#include "files/fsaccess.h"
#include "repo/verify.h"
#include "sqlite/check.h"
#include "sqlite/connect.h"
#include "sqlite/opening.h"
#include "sqlite/require.h"

#define FINDINGS_SHOWN 100
#define TABLES_SHOWN   1000

void bk_add_check(json_t *checks, const char *name, const char *status, const char *detail)
{
    json_array_append_new(checks, json_pack("{so ss so}", "name", bk_json_name(name, strlen(name)),
                                            "status", status, "detail",
                                            bk_json_name(detail, strlen(detail))));
}

void bk_add_result(json_t *checks, const char *name, const bk_err_t *err, const char *good)
{
    bool passed = err->rc == BK_OK;
    bk_add_check(checks, name, passed ? "pass" : "fail", passed ? good : err->text);
}

static bool is_stop(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED;
}

/* --- databases --- */

/* Names of the tables of a database file that nobody uses. */
static json_t *table_names(const char *file)
{
    json_t *names = json_array();
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    if (sqlite3_open_v2(file, &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX, NULL) == SQLITE_OK &&
        sqlite3_prepare_v2(db,
                           "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE "
                           "'sqlite\\_%' ESCAPE '\\' ORDER BY name",
                           -1, &statement, NULL) == SQLITE_OK)
        while (json_array_size(names) < TABLES_SHOWN && sqlite3_step(statement) == SQLITE_ROW) {
            const char *name = (const char *)sqlite3_column_text(statement, 0);
            if (name != NULL)
                json_array_append_new(names, bk_json_name(name, strlen(name)));
        }
    sqlite3_finalize(statement);
    sqlite3_close_v2(db);
    return names;
}

static void remove_image(const char *image)
{
    static const char *const companions[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < 4; i++) {
        char path[PATH_MAX];
        if (bk_fmt(path, sizeof path, "%s%s", image, companions[i]))
            unlink(path);
    }
}

bk_rc_t bk_check_required(const bk_set_db_t *db, const char *image, bk_ctl_t *ctl, bk_err_t *err)
{
    char uri[BK_DB_URI];
    if (db == NULL || db->checks == NULL)
        return BK_OK;
    bk_rc_t rc = bk_db_image_uri(image, uri, sizeof uri, err);
    bk_db_select_t of = {.image = uri};
    return rc == BK_OK ? bk_db_require(db->name, db->checks, &of, ctl, err) : rc;
}

static const bk_set_db_t *block_of(const bk_set_t *set, const char *name)
{
    for (size_t i = 0; i < set->db_count; i++)
        if (strcmp(set->dbs[i].name, name) == 0)
            return &set->dbs[i];
    return NULL;
}

/* facts: of a validation, which also asks what the configuration requires. */
static bk_rc_t prove(bk_job_t *job, const bk_point_t *point, const bk_snapshot_db_t *db,
                     json_t *facts, uint64_t *orphans, bk_err_t *err)
{
    char image[PATH_MAX];
    if (!bk_fmt(image, sizeof image, "%s/%s-%s.db", job->engine->scratch_dir, job->id, db->name))
        return bk_err_set(err, BK_CONFIG, "base_dir: the path is too long");
    bk_rc_t rc = bk_point_image(point, db, image, job->team, err);
    if (rc == BK_OK)
        rc = bk_db_check_file(image, job->ctl, err);
    if (rc == BK_OK)
        rc = bk_db_check_references(image, orphans, job->ctl, err);
    if (rc == BK_OK && facts != NULL)
        rc = bk_check_required(block_of(job->engine->set, db->name), image, job->ctl, err);
    if (rc == BK_OK && facts != NULL && json_object_get(facts, "tables") == NULL)
        json_object_set_new(facts, "tables", table_names(image));
    remove_image(image);
    return rc;
}

/* Applications that do not switch foreign keys on may live with such rows. */
static void add_orphans(json_t *checks, const bk_snapshot_db_t *db, uint64_t orphans)
{
    char name[128], text[128];
    if (orphans == 0)
        return;
    bk_fmt(name, sizeof name, "foreign keys of database %s", db->name);
    bk_fmt(text, sizeof text, "%s%llu rows refer to rows that are not there",
           orphans == BK_DB_ORPHANS_MAX ? "at least " : "", (unsigned long long)orphans);
    bk_add_check(checks, name, "warn", text);
}

bk_rc_t bk_prove_databases(bk_job_t *job, const bk_point_t *point, uint64_t max, json_t *checks,
                           json_t *facts, bk_err_t *err)
{
    const bk_snapshot_t *s = point->snapshot;
    bk_rc_t first = BK_OK;
    bk_ctl_phase(job->ctl, "database");
    for (size_t i = 0; i < s->db_count; i++) {
        const bk_snapshot_db_t *db = &s->dbs[i];
        bk_err_t why = {0};
        char name[128];
        bk_fmt(name, sizeof name, "recover database %s", db->name);
        if (max > 0 && db->page_count * db->page_size > max) {
            bk_add_check(checks, name, "skip",
                         "it is large: validate-recovery rebuilds and checks it");
            continue;
        }
        bk_ctl_current(job->ctl, db->name);
        uint64_t orphans = 0;
        bk_rc_t rc = prove(job, point, db, facts, &orphans, &why);
        if (!is_stop(rc))
            bk_add_result(checks, name, &why, "rebuilt; its digest and SQLite's check are right");
        add_orphans(checks, db, orphans);
        if (rc != BK_OK && (first == BK_OK || is_stop(rc))) {
            first = rc;
            if (err != NULL)
                *err = why;
        }
        if (is_stop(rc))
            break;
    }
    return first;
}

/* --- verify --- */

static void add_finding(void *arg, const char *object, const char *line)
{
    json_t *findings = arg;
    (void)object;
    if (json_array_size(findings) < FINDINGS_SHOWN)
        json_array_append_new(findings, bk_json_name(line, strlen(line)));
}

static bk_rc_t verify(bk_job_t *job, bk_opened_t *opened, unsigned level, json_t *result,
                      bk_err_t *err)
{
    bk_verify_result_t counts;
    json_t *findings = json_array();
    bk_rc_t rc =
        bk_verify(opened->repo, level, job->team, add_finding, findings, &counts, job->ctl, err);
    if (rc == BK_OK) {
        json_object_set_new(result, "level", json_integer((json_int_t)level));
        json_object_set_new(result, "objects", json_integer((json_int_t)counts.objects));
        json_object_set_new(result, "bytes", json_integer((json_int_t)counts.bytes));
        json_object_set_new(result, "chunks", json_integer((json_int_t)counts.chunks));
        json_object_set_new(result, "findings_total", json_integer((json_int_t)counts.findings));
        json_object_set(result, "findings", findings);
        const char *first = json_string_value(json_array_get(findings, 0));
        if (counts.findings > counts.harmless)
            rc = bk_err_set(err, BK_CORRUPT, "%llu findings of damage, the first: %s%s%s",
                            (unsigned long long)counts.findings, first != NULL ? first : "?",
                            counts.findings > counts.harmless + counts.moments
                                ? "; a full backup stores again what the application still has of "
                                  "it"
                                : "",
                            counts.moments > 0 ? "; " BK_MOMENTS_LOST : "");
        else if (counts.findings > 0)
            bk_ctl_note(job->ctl,
                        "%llu findings, but no backup loses anything by them, the first: %s",
                        (unsigned long long)counts.findings, first != NULL ? first : "?");
    }
    json_decref(findings);
    return rc;
}

/* Level 3: every backup's databases once more, whole. */
static bk_rc_t prove_all(bk_job_t *job, bk_opened_t *opened, json_t *checks, bk_err_t *err)
{
    bk_snapshot_list_t list;
    bk_rc_t first = BK_OK;
    bk_rc_t rc = bk_snapshot_list(opened->repo, job->engine->cache_dir, job->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < list.count && !is_stop(first); i++) {
        bk_err_t why = {0};
        json_t *one = json_array(), *check;
        size_t n;
        bk_point_t point = {.snapshot = &list.items[i], .repo = opened->repo, .ctl = job->ctl};
        rc = bk_prove_databases(job, &point, 0, one, NULL, &why);
        json_array_foreach(one, n, check)
        {
            json_object_set_new(check, "backup_id", json_string(list.items[i].backup_id));
            json_array_append(checks, check);
        }
        json_decref(one);
        if (rc != BK_OK && (first == BK_OK || is_stop(rc))) {
            first = rc;
            if (err != NULL)
                *err = why;
        }
    }
    bk_snapshot_list_free(&list);
    return first;
}

/* For health and for "verified" of the backups; what could not be looked at says nothing. */
static void remember(bk_job_t *job, int64_t started, bk_rc_t rc, unsigned level)
{
    char now[BK_TIME_TEXT];
    bk_err_t why = {0};
    if (rc != BK_OK && rc != BK_CORRUPT)
        return;
    bk_time_format(now, bk_now());
    json_t *value = json_pack("{ss sI sb si}", "time", now, "started_ns", (json_int_t)started,
                              "good", (int)(rc == BK_OK), "level", (int)level);
    if (bk_catalog_set_value(job->engine->catalog, "verify", value, &why) != BK_OK)
        bk_ctl_note(job->ctl, "the result could not be kept for the health check: %s", why.text);
    json_decref(value);
}

bk_rc_t bk_job_verify(bk_job_t *job, bk_err_t *err)
{
    const json_t *wanted = json_object_get(job->body, "level");
    unsigned level = json_is_integer(wanted) ? (unsigned)json_integer_value(wanted) : 1;
    int64_t started = bk_now();
    json_t *result = json_object();
    bk_opened_t opened;
    json_object_set_new(job->result, "verify_result", result);
    bk_ctl_phase(job->ctl, "verify");
    bk_rc_t rc = bk_engine_open_repo(job->engine, false, job->ctl, &opened, err);
    if (rc == BK_OK) {
        rc = verify(job, &opened, level > 2 ? 2 : level, result, err);
        if (rc == BK_OK && level == 3) {
            json_t *checks = json_array();
            json_object_set_new(result, "checks", checks);
            json_object_set_new(result, "level", json_integer(3));
            rc = prove_all(job, &opened, checks, err);
        }
        bk_engine_close_repo(&opened);
        remember(job, started, rc, level);
    }
    return rc;
}

/* --- validate-recovery --- */

/* The members that the answer has always had: path, exists, size, tables, integrity_check, valid.
 */
static json_t *database_facts(const bk_snapshot_t *s, json_t *facts, bool valid)
{
    const bk_snapshot_db_t *db = s->db_count > 0 ? &s->dbs[0] : NULL;
    json_t *tables = json_object_get(facts, "tables");
    return json_pack("{so sb sI so ss sI sb}", "path",
                     db != NULL ? bk_json_name(db->path, strlen(db->path)) : json_null(), "exists",
                     (int)(db != NULL && bk_db_access(db->path, F_OK) == 0), "size",
                     db != NULL ? (json_int_t)(db->page_count * db->page_size) : (json_int_t)0,
                     "tables", tables != NULL ? json_incref(tables) : json_array(),
                     "integrity_check", valid ? "ok" : "failed", "databases",
                     (json_int_t)s->db_count, "valid", (int)valid);
}

static bool can_read(bk_job_t *job, size_t at)
{
    const bk_set_t *set = job->engine->set;
    bk_root_t *root = NULL;
    if (at < set->db_count)
        return bk_db_access(set->dbs[at].path, R_OK) == 0;
    bk_rc_t rc = bk_root_open_helped(set->files[at - set->db_count].path, false,
                                     atomic_load(&job->engine->client), BK_WIRE_MAY_READ, job->ctl,
                                     &root, NULL);
    bk_root_close(root);
    return rc == BK_OK;
}

static json_t *path_facts(bk_job_t *job, json_t *checks, bool *valid)
{
    const bk_set_t *set = job->engine->set;
    json_t *missing = json_array();
    size_t checked = set->db_count + set->files_count;
    for (size_t i = 0; i < checked; i++) {
        const char *path =
            i < set->db_count ? set->dbs[i].path : set->files[i - set->db_count].path;
        if (!can_read(job, i))
            json_array_append_new(missing, bk_json_name(path, strlen(path)));
    }
    size_t lost = json_array_size(missing);
    *valid = lost == 0;
    bk_add_check(checks, "the application's paths", *valid ? "pass" : "warn",
                 *valid ? "each configured path can be read"
                        : "a configured path cannot be read now");
    return json_pack("{sI sI so sb}", "critical_paths_checked", (json_int_t)checked,
                     "critical_paths_valid", (json_int_t)(checked - lost), "missing_paths", missing,
                     "valid", (int)*valid);
}

/* What each of them is as of. */
static json_t *recovery_points(const bk_point_t *point)
{
    const bk_snapshot_t *s = point->snapshot;
    json_t *list = json_array();
    for (size_t i = 0; i < s->db_count; i++) {
        json_t *entry = json_pack("{ss}", "name", s->dbs[i].name);
        bk_point_tell(point, &s->dbs[i], entry);
        json_array_append_new(list, entry);
    }
    return list;
}

/* deep: every chunk of this backup's files; else that everything the index names is there. */
static bk_rc_t check_files(bk_job_t *job, bk_opened_t *opened, const bk_snapshot_t *s, bool deep,
                           json_t *checks, json_t *result, bk_err_t *err)
{
    bk_readback_t read = {0};
    bk_err_t why = {0};
    json_t *failed = json_array(), *detail = json_object();
    char text[128];
    bk_rc_t rc;
    bk_ctl_phase(job->ctl, "files");
    if (deep) {
        rc = bk_readback(opened->repo, s, job->team, failed, &read, job->ctl, &why);
        if (rc == BK_OK && read.damaged > 0) {
            const json_t *first = json_array_get(failed, 0);
            rc = bk_err_set(&why, BK_CORRUPT, "%llu files lost something, the first: %s: %s",
                            (unsigned long long)read.damaged,
                            json_string_value(json_object_get(first, "path")),
                            json_string_value(json_object_get(first, "error")));
        }
        bk_fmt(text, sizeof text, "%llu files, every chunk read and compared with its id",
               (unsigned long long)read.files);
    } else {
        rc = verify(job, opened, 0, detail, &why);
        for (size_t i = 0; i < s->tree_count; i++)
            read.files += s->trees[i].files;
        read.damaged = rc == BK_OK ? 0 : read.files;
        bk_fmt(text, sizeof text, "every pack is there with its size; \"deep\" reads them");
    }
    if (!is_stop(rc)) {
        bk_add_result(checks, deep ? "read files" : "stored objects", &why, text);
        json_object_set_new(
            result, "file_validation",
            json_pack("{sI sI sb so sb}", "files_checked", (json_int_t)read.files, "files_valid",
                      (json_int_t)(read.files > read.damaged ? read.files - read.damaged : 0),
                      "checksum_verified", (int)deep, "files_failed", json_incref(failed), "valid",
                      (int)(rc == BK_OK)));
    }
    json_decref(failed);
    json_decref(detail);
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

static bk_rc_t validate(bk_job_t *job, bk_opened_t *opened, const bk_point_t *point, json_t *result,
                        bk_err_t *err)
{
    const bk_snapshot_t *s = point->snapshot;
    json_t *checks = json_array(), *facts = json_object();
    bool paths = true, deep = json_is_true(json_object_get(job->body, "deep"));
    bk_err_t why = {0};
    json_object_set_new(result, "backup_id", json_string(s->backup_id));
    bk_point_describe(point, result);
    json_object_set_new(result, "databases", recovery_points(point));
    json_object_set_new(result, "checks", checks);
    bk_rc_t rc = bk_prove_databases(job, point, 0, checks, facts, err);
    json_object_set_new(result, "database_validation", database_facts(s, facts, rc == BK_OK));
    if (!is_stop(rc)) {
        bk_rc_t files = check_files(job, opened, s, deep, checks, result, &why);
        if (rc == BK_OK || is_stop(files)) {
            rc = files;
            if (rc != BK_OK && err != NULL)
                *err = why;
        }
    }
    if (job->engine->set->db_count + job->engine->set->files_count > 0)
        json_object_set_new(result, "system_validation", path_facts(job, checks, &paths));
    json_object_set_new(result, "valid", json_boolean(rc == BK_OK));
    if (!paths)
        bk_ctl_note(job->ctl, "a configured path of the application cannot be read now");
    json_decref(facts);
    return rc;
}

bk_rc_t bk_job_validate(bk_job_t *job, bk_err_t *err)
{
    bk_point_wish_t wish;
    bk_point_t point = {0};
    bk_opened_t opened;
    json_t *result = json_object();
    json_object_set_new(job->result, "validation_result", result);
    json_object_set_new(result, "timestamp", bk_json_time(bk_now()));
    json_object_set_new(result, "valid", json_false());
    bk_request_point(job->engine, job->body, &wish);
    /* A moment is one of databases: the files are those of backups, which have their own ids. */
    wish.databases = true;
    bk_rc_t rc = bk_engine_open_repo(job->engine, false, job->ctl, &opened, err);
    if (rc == BK_OK) {
        rc = bk_point_find(opened.repo, &wish, job->ctl, &point, err);
        if (rc == BK_OK)
            rc = validate(job, &opened, &point, result, err);
        bk_point_close(&point);
        bk_engine_close_repo(&opened);
    }
    return rc;
}

bk_rc_t bk_validate_alone(const bk_point_t *point, char *scratch_dir, bool deep, bk_team_t *team,
                          json_t *result, bk_err_t *err)
{
    /* No application is here: nothing is configured, and an engine has nothing but scratch/. */
    bk_set_t nothing = {.name = NULL};
    bk_engine_t bare = {.set = &nothing, .scratch_dir = scratch_dir};
    bk_opened_t opened = {.repo = point->repo};
    json_t *body = json_pack("{sb}", "deep", (int)deep);
    bk_job_t job = {
        .engine = &bare, .id = "validate", .body = body, .team = team, .ctl = point->ctl};
    json_object_set_new(result, "timestamp", bk_json_time(bk_now()));
    json_object_set_new(result, "valid", json_false());
    bk_rc_t rc = validate(&job, &opened, point, result, err);
    json_decref(body);
    return rc;
}
