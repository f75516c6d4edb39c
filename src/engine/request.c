/*
 * engine/request.c: what a request may say.  No side effects; knows the set, the disk only to
 * resolve a target directory.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/engine_private.h"
#include "engine/protect.h"
#include "sqlite/query.h"

#define TAGS_MAX   32
#define TEXT_MAX   1024
#define TABLES_MAX 1000

#define QUERY_ROWS_MAX    100000
#define QUERY_SECONDS_MAX 60 /* a thread that answers requests is busy meanwhile */

static bool one_of(const char *text, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strcmp(text, *words) == 0)
            return true;
    return false;
}

static void want_backup_id(bk_want_t *want)
{
    const char *id;
    if (bk_want_string(want, "backup_id", &id) && !bk_backup_id_valid(id))
        bk_want_problem(want, "backup_id",
                        "is not a backup id; GET …/list shows them, or use \"latest\"");
}

static void check_create(bk_want_t *want)
{
    static const char *const types[] = {"full", "incremental", NULL};
    const char *text;
    bool upload;
    json_t *tags, *tag;
    size_t i;
    if (bk_want_string(want, "backup_type", &text) && !one_of(text, types))
        bk_want_problem(want, "backup_type", "must be \"full\" or \"incremental\"");
    bk_want_bool(want, "upload_to_storage", &upload);
    if (bk_want_string(want, "description", &text) && strlen(text) > TEXT_MAX)
        bk_want_problem(want, "description", "must have at most %d bytes", TEXT_MAX);
    if (bk_want_strings(want, "tags", &tags)) {
        if (json_array_size(tags) > TAGS_MAX)
            bk_want_problem(want, "tags", "must be at most %d", TAGS_MAX);
        json_array_foreach(tags, i,
                           tag) if (json_string_length(tag) == 0 || json_string_length(tag) > 64)
            bk_want_problem(want, "tags", "each must have 1 to 64 bytes");
    }
}

/* The target directory without "." and "..", or false. */
static bool plain_path(const char *path)
{
    if (path[0] != '/' || strlen(path) >= PATH_MAX - 64)
        return false;
    for (const char *p = path; (p = strstr(p, "/.")) != NULL; p++)
        if (p[2] == '\0' || p[2] == '/' || (p[2] == '.' && (p[3] == '\0' || p[3] == '/')))
            return false;
    return true;
}

static bk_rc_t check_inside(const char *target, const char *resolved, const char *what,
                            const char *dir, bk_err_t *err)
{
    char own[PATH_MAX];
    if (dir == NULL || !bk_path_resolve(dir, own) || bk_path_below(resolved, own) == NULL)
        return BK_OK;
    return bk_err_set(err, BK_FORBIDDEN, "target_directory %s lies in %s %s: choose another",
                      target, what, dir);
}

/* A directory below the target has a tree's name: it must not be where the application's files are.
 */
static bk_rc_t check_live(const bk_set_t *set, const char *target, const char *resolved,
                          bk_err_t *err)
{
    for (size_t i = 0; i < set->files_count; i++)
        for (size_t n = 0; n < set->files_count; n++) {
            char place[PATH_MAX], place_resolved[PATH_MAX], live[PATH_MAX];
            if (bk_fmt(place, sizeof place, "%s/%s", resolved, set->files[i].name) &&
                bk_path_resolve(place, place_resolved) &&
                bk_path_resolve(set->files[n].path, live) && strcmp(place_resolved, live) == 0)
                return bk_err_set(err, BK_FORBIDDEN,
                                  "target_directory %s: files %s would be recovered onto the "
                                  "application's own (%s): recover in place, or choose another "
                                  "directory",
                                  target, set->files[i].name, set->files[n].path);
        }
    return BK_OK;
}

static bk_rc_t check_own(const bk_set_t *set, const char *target, const char *resolved,
                         bk_err_t *err)
{
    bk_rc_t rc = check_inside(target, resolved, "base_dir", set->base_dir, err);
    for (size_t i = 0; i < set->storage_count && rc == BK_OK; i++)
        if (strcmp(set->storages[i].driver, "local") == 0)
            rc = check_inside(target, resolved, "storage",
                              bk_storage_config_get(&set->storages[i], "path"), err);
    return rc == BK_OK ? check_live(set, target, resolved, err) : rc;
}

bk_rc_t bk_target_check(const bk_set_t *set, const char *target, const char **root,
                        const char **below, char resolved[PATH_MAX], bk_err_t *err)
{
    char list[1024] = "";
    if (!plain_path(target) || !bk_path_resolve(target, resolved))
        return bk_err_set(err, BK_FORBIDDEN,
                          "target_directory %s: must be an absolute path without \".\" and \"..\"",
                          target);
    for (size_t i = 0; set->restore_roots != NULL && set->restore_roots[i] != NULL; i++) {
        char allowed[PATH_MAX];
        size_t used = strlen(list);
        const char *rest = bk_path_resolve(set->restore_roots[i], allowed)
                               ? bk_path_below(resolved, allowed)
                               : NULL;
        if (rest != NULL) {
            *root = set->restore_roots[i];
            *below = rest;
            return check_own(set, target, resolved, err);
        }
        bk_fmt(list + used, sizeof list - used, "%s%s", used > 0 ? ", " : "",
               set->restore_roots[i]);
    }
    if (list[0] == '\0')
        return bk_err_set(
            err, BK_FORBIDDEN,
            "target_directory %s: no restore_root is configured: add \"restore_root /directory;\"",
            target);
    return bk_err_set(err, BK_FORBIDDEN, "target_directory %s lies outside every restore_root (%s)",
                      target, list);
}

static void want_patterns(bk_want_t *want, const char *name)
{
    json_t *array, *item;
    size_t i;
    if (!bk_want_strings(want, name, &array))
        return;
    json_array_foreach(array, i, item)
    {
        bk_pattern_t *pattern = NULL;
        bk_err_t why = {0};
        if (bk_pattern_compile(json_string_value(item), &pattern, &why) != BK_OK)
            bk_want_problem(want, name, "%s", why.text);
        bk_pattern_free(pattern);
    }
}

/*
 * A choice of files: with another type it would not narrow what that type does to the database, and
 * whoever names some files must not get yesterday's database with them.
 */
static void want_files(bk_want_t *want)
{
    const char *type = json_string_value(json_object_get(want->object, "recovery_type"));
    const char *const names[] = {"file_patterns", "paths"};
    json_t *paths, *item;
    size_t n;
    want_patterns(want, "file_patterns");
    if (bk_want_strings(want, "paths", &paths)) {
        json_array_foreach(paths, n, item) if (json_string_length(item) == 0 ||
                                               json_string_length(item) >= PATH_MAX)
            bk_want_problem(want, "paths", "must not be empty or too long");
    }
    for (n = 0; n < 2 && type != NULL && strcmp(type, "files") != 0; n++)
        if (json_array_size(json_object_get(want->object, names[n])) > 0)
            bk_want_problem(want, names[n],
                            "needs \"recovery_type\": \"files\": it chooses files, while \"%s\" "
                            "replaces the database as a whole",
                            type);
}

/* A backup, or a moment; whether there is one shows when it is looked for. */
static void want_point(bk_want_t *want)
{
    const char *text = "";
    bool has_id = json_is_string(json_object_get(want->object, "backup_id"));
    int64_t ns;
    uint64_t transaction = 0;
    bool has_time = bk_want_string(want, "point_in_time", &text);
    bool has_number = bk_want_uint(want, "transaction", 1, INT64_MAX, &transaction);
    want_backup_id(want);
    if (has_time && !bk_time_parse(text, &ns))
        bk_want_problem(want, "point_in_time", "must be a time like 2025-10-15T14:30:00Z");
    else if (has_time + has_number + has_id > 1)
        bk_want_problem(want, has_time ? "point_in_time" : "transaction",
                        "excludes the others of \"backup_id\", \"point_in_time\" and "
                        "\"transaction\"");
}

void bk_request_point(const bk_engine_t *engine, const json_t *body, bk_point_wish_t *wish)
{
    const char *type = json_string_value(json_object_get(body, "recovery_type"));
    const char *time = json_string_value(json_object_get(body, "point_in_time"));
    *wish = (bk_point_wish_t){
        .set = engine->set->name,
        .base_dir = engine->set->base_dir,
        .cache_dir = engine->cache_dir,
        .backup_id = json_string_value(json_object_get(body, "backup_id")),
        .transaction = (uint64_t)json_integer_value(json_object_get(body, "transaction")),
        .database = json_string_value(json_object_get(body, "database")),
        .databases = type == NULL || strcmp(type, "files") != 0,
        .files = type != NULL && strcmp(type, "database") != 0};
    if (time != NULL && !bk_time_parse(time, &wish->time))
        wish->time = INT64_MAX; /* never the newest backup instead */
}

/* Of a database block. */
static void want_database(bk_want_t *want, const bk_set_t *set)
{
    const char *text;
    bool found = false;
    if (!bk_want_string(want, "database", &text))
        return;
    for (size_t i = 0; i < set->db_count; i++)
        found = found || strcmp(set->dbs[i].name, text) == 0;
    if (!found)
        bk_want_problem(want, "database", "there is no database block of that name");
}

/* Of one database, where it is: whether it has them shows when they are looked for. */
static void want_tables(bk_want_t *want, const bk_set_t *set)
{
    json_t *tables, *name;
    const char *type = json_string_value(json_object_get(want->object, "recovery_type"));
    size_t i;
    if (!bk_want_strings(want, "tables", &tables))
        return;
    if (json_array_size(tables) == 0 || json_array_size(tables) > TABLES_MAX)
        bk_want_problem(want, "tables", "must name 1 to %d tables", TABLES_MAX);
    json_array_foreach(tables, i, name) if (json_string_length(name) == 0)
        bk_want_problem(want, "tables", "must not be empty");
    if (type != NULL && strcmp(type, "database") != 0)
        bk_want_problem(want, "tables", "needs \"recovery_type\": \"database\"");
    if (json_is_string(json_object_get(want->object, "target_directory")))
        bk_want_problem(want, "tables",
                        "come back into the database itself: leave out \"target_directory\", or "
                        "recover the whole database there");
    if (set->db_count != 1 && !json_is_string(json_object_get(want->object, "database")))
        bk_want_problem(want, "database", "is needed with \"tables\"");
}

/* What is not possible is told, not passed over: who wrote it counts on it. */
static void want_policy(bk_want_t *want)
{
    static const char *const policies[] = {"always", "if-newer", "never", "rename", NULL};
    const char *type = json_string_value(json_object_get(want->object, "recovery_type")), *text;
    bool target = json_is_string(json_object_get(want->object, "target_directory"));
    if (!bk_want_string(want, "overwrite", &text))
        return;
    if (!one_of(text, policies))
        bk_want_problem(want, "overwrite",
                        "must be \"always\", \"if-newer\", \"never\" or \"rename\"");
    else if (json_is_array(json_object_get(want->object, "tables")) && strcmp(text, "always") != 0)
        bk_want_problem(want, "overwrite", "is of whole files: the named tables are replaced");
    else if (strcmp(text, "rename") == 0 && !target && type != NULL && strcmp(type, "files") != 0)
        bk_want_problem(
            want, "overwrite",
            "\"rename\" cannot keep a database in place, which is rewritten while it is "
            "in use: a safety backup keeps it (\"restore_safety on\"), or recover the "
            "files alone");
}

static bk_rc_t check_recovery(const bk_set_t *set, bk_want_t *want, bk_err_t *err)
{
    static const char *const types[] = {"database", "files", "full", NULL};
    const char *text, *root, *below;
    char resolved[PATH_MAX];
    bool original = true, flag;

    if (!bk_want_string(want, "recovery_type", &text))
        bk_want_problem(want, "recovery_type", "is needed: \"database\", \"files\" or \"full\"");
    else if (!one_of(text, types))
        bk_want_problem(want, "recovery_type", "must be \"database\", \"files\" or \"full\"");
    want_point(want);
    want_tables(want, set);
    /* Into a directory also what the configuration no longer has: the backup knows it. */
    if (json_is_string(json_object_get(want->object, "target_directory")))
        bk_want_string(want, "database", &text);
    else
        want_database(want, set);
    want_files(want);
    bk_want_bool(want, "restore_to_original", &original);
    want_policy(want);
    bk_want_bool(want, "delete_extra", &flag);
    bk_want_bool(want, "dry_run", &flag);
    bk_want_bool(want, "verify", &flag);
    bool target = bk_want_string(want, "target_directory", &text);
    if (target && original && json_is_true(json_object_get(want->object, "restore_to_original")))
        bk_want_problem(want, "target_directory", "excludes \"restore_to_original\": true");
    if (!target && !original)
        bk_want_problem(want, "target_directory",
                        "is needed when \"restore_to_original\" is false");
    if (json_array_size(want->problems) > 0)
        return BK_OK;
    if (target)
        return bk_target_check(set, text, &root, &below, resolved, err);
    if (!set->restore_in_place)
        return bk_err_set(
            err, BK_FORBIDDEN,
            "recovery in place is not allowed: set \"restore_in_place on;\", or give a "
            "target_directory inside a restore_root");
    return BK_OK;
}

static bk_rc_t refuse(const json_t *problems, bk_err_t *err)
{
    const json_t *first = json_array_get(problems, 0);
    if (first == NULL)
        return BK_OK;
    return bk_err_set(err, BK_INVALID, "the request is not valid: %s %s",
                      json_string_value(json_object_get(first, "pointer")),
                      json_string_value(json_object_get(first, "detail")));
}

bk_rc_t bk_request_check(const bk_set_t *set, bk_job_kind_t kind, json_t *body, json_t **problems,
                         bk_err_t *err)
{
    bk_want_t want;
    uint64_t level;
    bool flag;
    bk_rc_t rc = BK_OK;
    *problems = NULL;
    if (body != NULL && !json_is_object(body))
        return bk_err_set(err, BK_INVALID, "the request body must be a JSON object");
    json_t *object = body != NULL ? json_incref(body) : json_object();
    bk_want_begin(&want, object);
    switch (kind) {
    case BK_JOB_BACKUP:
        check_create(&want);
        break;
    case BK_JOB_RECOVERY:
        rc = check_recovery(set, &want, err);
        break;
    case BK_JOB_VALIDATE:
        want_point(&want);
        want_database(&want, set);
        bk_want_bool(&want, "deep", &flag);
        break;
    case BK_JOB_VERIFY:
        bk_want_uint(&want, "level", 0, 3, &level);
        break;
    case BK_JOB_CLEANUP:
        bk_want_bool(&want, "dry_run", &flag);
        break;
    case BK_JOB_DELETE:
        want_backup_id(&want);
        if (!json_is_string(json_object_get(object, "backup_id")))
            bk_want_problem(&want, "backup_id", "is needed");
        else if (strcmp(json_string_value(json_object_get(object, "backup_id")), "latest") == 0)
            bk_want_problem(&want, "backup_id", "must name one backup: \"latest\" changes");
        break;
    case BK_JOB_TEST:
        break;
    }
    *problems = bk_want_done(&want);
    json_decref(object);
    return *problems == NULL ? rc : refuse(*problems, err);
}

bk_rc_t bk_query_check(const bk_set_t *set, json_t *body, json_t **problems, bk_err_t *err)
{
    bk_want_t want;
    const char *sql;
    uint64_t number;
    *problems = NULL;
    if (!json_is_object(body))
        return bk_err_set(err, BK_INVALID, "the request body must be a JSON object");
    bk_want_begin(&want, body);
    if (!bk_want_string(&want, "sql", &sql))
        bk_want_problem(&want, "sql", "is needed: one SELECT");
    else if (strlen(sql) > BK_QUERY_SQL)
        bk_want_problem(&want, "sql", "must have at most %u bytes", BK_QUERY_SQL);
    want_point(&want);
    want_database(&want, set);
    if (set->db_count != 1 && !json_is_string(json_object_get(body, "database")))
        bk_want_problem(&want, "database", "is needed: the name of a database block");
    bk_want_uint(&want, "limit", 1, QUERY_ROWS_MAX, &number);
    bk_want_uint(&want, "timeout", 1, QUERY_SECONDS_MAX, &number);
    *problems = bk_want_done(&want);
    return refuse(*problems, err);
}
