/*
 * engine/set.c: one set as plain data: its defaults, its one validation, its redacted description.
 * Touches the disk only in bk_set_check, and only to look.
 */
#include "engine/set.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/str.h"
#include "crypto/keyring.h"
#include "engine/protect.h"

#define DAY_MS 86400000ull

bk_rc_t bk_set_init(bk_set_t *set, const char *name, bk_err_t *err)
{
    memset(set, 0, sizeof *set);
    set->name = bk_strdup(name);
    if (set->name == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", name);
    set->compression = (bk_compression_t){.codec = BK_CODEC_ZSTD, .level = 3};
    set->restore_safety = true;
    set->pitr_window = 7 * DAY_MS;
    set->ship_interval = 10000;
    set->retention_db = set->retention_files = 30 * DAY_MS;
    set->min_free = 1ull << 30;
    set->shutdown_grace = 5000;
    set->health_max_age = 26 * DAY_MS / 24;
    set->lanes = 3; /* each may hold a pack and a window; a fourth costs 30 MiB and gains nothing */
    return BK_OK;
}

static void free_texts(char **list)
{
    for (size_t i = 0; list != NULL && list[i] != NULL; i++)
        free(list[i]);
    free(list);
}

void bk_set_free(bk_set_t *set)
{
    if (set == NULL)
        return;
    for (size_t i = 0; i < set->db_count; i++) {
        free(set->dbs[i].name);
        free(set->dbs[i].path);
        free_texts(set->dbs[i].checks);
    }
    for (size_t i = 0; i < set->files_count; i++) {
        bk_set_files_t *files = &set->files[i];
        free(files->name);
        free(files->path);
        free_texts(files->match);
        free_texts(files->exclude);
        bk_patterns_free(&files->match_patterns);
        bk_patterns_free(&files->exclude_patterns);
    }
    for (size_t i = 0; i < set->key_count; i++) {
        free(set->keys[i].id);
        free(set->keys[i].file);
    }
    for (size_t i = 0; i < set->storage_count; i++)
        bk_storage_config_free(&set->storages[i]);
    free_texts(set->restore_roots);
    free(set->dbs);
    free(set->files);
    free(set->keys);
    free(set->storages);
    free(set->passphrase_file);
    free(set->base_dir);
    free(set->name);
    memset(set, 0, sizeof *set);
}

/* One more zeroed element behind the list, or NULL. */
static void *append(void *list, size_t *count, size_t size)
{
    void **at = list;
    void *more = realloc(*at, (*count + 1) * size);
    if (more == NULL)
        return NULL;
    *at = more;
    char *element = (char *)more + *count * size;
    memset(element, 0, size);
    (*count)++;
    return element;
}

bk_set_db_t *bk_set_add_db(bk_set_t *set, const char *name)
{
    bk_set_db_t *db = append(&set->dbs, &set->db_count, sizeof *db);
    if (db == NULL || (db->name = bk_strdup(name)) == NULL)
        return NULL;
    db->wal = BK_WAL_ON;
    db->busy_timeout = 30000;
    db->pitr_window = BK_SET_INHERIT;
    return db;
}

bk_set_files_t *bk_set_add_files(bk_set_t *set, const char *name)
{
    bk_set_files_t *files = append(&set->files, &set->files_count, sizeof *files);
    if (files == NULL || (files->name = bk_strdup(name)) == NULL)
        return NULL;
    files->one_file_system = files->cachedir = files->xattrs = true;
    return files;
}

bk_set_key_t *bk_set_add_key(bk_set_t *set, const char *id, const char *file)
{
    bk_set_key_t *key = append(&set->keys, &set->key_count, sizeof *key);
    if (key == NULL || (key->id = bk_strdup(id)) == NULL || (key->file = bk_strdup(file)) == NULL)
        return NULL;
    return key;
}

bk_storage_config_t *bk_set_add_storage(bk_set_t *set, const char *driver, const char *name)
{
    bk_storage_config_t *storage = append(&set->storages, &set->storage_count, sizeof *storage);
    if (storage == NULL || (storage->driver = bk_strdup(driver)) == NULL ||
        (storage->name = bk_strdup(name)) == NULL)
        return NULL;
    return storage;
}

bk_rc_t bk_set_add_text(char ***list, const char *text, bk_err_t *err)
{
    size_t count = 0;
    while (*list != NULL && (*list)[count] != NULL)
        count++;
    char **more = realloc(*list, (count + 2) * sizeof *more);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "out of memory");
    *list = more;
    more[count + 1] = NULL;
    more[count] = bk_strdup(text);
    return more[count] != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "out of memory");
}

/* --- validation --- */

static bk_rc_t check_name(const char *what, const char *name, bk_err_t *err)
{
    size_t len = strlen(name);
    if (len > 0 && len <= 32 && name[0] != '-' &&
        strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == len)
        return BK_OK;
    return bk_err_set(err, BK_CONFIG, "%s \"%s\": a name has 1 to 32 letters, digits, '_' and '-'",
                      what, name);
}

/*
 * One spelling for each path, in place: no "//", no "/./", no '/' at the end.  The privileged
 * helper knows its directories by their spelling.  False where ".." would make it depend on links.
 */
static bool tidy_path(char *path)
{
    char *out = path;
    for (const char *in = path; *in != '\0';) {
        size_t len = strcspn(++in, "/");
        if (len == 2 && in[0] == '.' && in[1] == '.')
            return false;
        if (len > 0 && !(len == 1 && in[0] == '.')) {
            *out++ = '/';
            memmove(out, in, len);
            out += len;
        }
        in += len;
    }
    if (out == path)
        *out++ = '/';
    *out = '\0';
    return true;
}

static bk_rc_t check_path(const char *what, const char *name, const char *directive, char *path,
                          bk_err_t *err)
{
    if (path == NULL)
        return bk_err_set(err, BK_CONFIG, "%s %s: \"%s\" is missing", what, name, directive);
    if (path[0] != '/')
        return bk_err_set(err, BK_CONFIG, "%s %s: %s \"%s\" must be an absolute path", what, name,
                          directive, path);
    if (!tidy_path(path))
        return bk_err_set(err, BK_CONFIG, "%s %s: %s \"%s\" must be written without \"..\"", what,
                          name, directive, path);
    if (path[1] == '\0')
        return bk_err_set(err, BK_CONFIG, "%s %s: %s must be an absolute path below \"/\"", what,
                          name, directive);
    if (strlen(path) >= PATH_MAX - 64)
        return bk_err_set(err, BK_CONFIG, "%s %s: %s is too long", what, name, directive);
    return BK_OK;
}

/* inner is outer or lies below it; links are resolved as far as the paths exist. */
static bool lies_in(const char *inner, const char *outer)
{
    char a[PATH_MAX], b[PATH_MAX];
    return bk_path_resolve(inner, a) && bk_path_resolve(outer, b) && bk_path_below(a, b) != NULL;
}

static void warn(json_t *warnings, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void warn(json_t *warnings, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    if (warnings == NULL)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    json_array_append_new(warnings, json_string(text));
}

/* Both names become part of the names of objects. */
static bk_rc_t check_captured(const bk_set_t *set, const bk_set_db_t *db, bk_err_t *err)
{
    if (strpbrk(db->name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != NULL)
        return bk_err_set(err, BK_CONFIG,
                          "database %s: its name must be in lower case for its transactions to be "
                          "captured (or say \"pitr_window off\" in its block)",
                          db->name);
    if (strpbrk(set->name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != NULL)
        return bk_err_set(err, BK_CONFIG,
                          "backup %s: its name must be in lower case for the transactions of its "
                          "databases to be captured (or say \"pitr_window off\")",
                          set->name);
    return BK_OK;
}

static bk_rc_t check_dbs(bk_set_t *set, bk_err_t *err)
{
    for (size_t i = 0; i < set->db_count; i++) {
        bk_set_db_t *db = &set->dbs[i];
        if (db->pitr_window == BK_SET_INHERIT)
            db->pitr_window = set->pitr_window;
        bk_rc_t rc = check_name("database", db->name, err);
        if (rc == BK_OK)
            rc = check_path("database", db->name, "path", db->path, err);
        for (size_t n = 0; n < i && rc == BK_OK; n++)
            if (strcmp(set->dbs[n].name, db->name) == 0 || strcmp(set->dbs[n].path, db->path) == 0)
                rc = bk_err_set(err, BK_CONFIG, "database %s: its name or path is used twice",
                                db->name);
        if (rc == BK_OK && db->busy_timeout > 3600000)
            rc = bk_err_set(err, BK_CONFIG, "database %s: busy_timeout must be at most 1h",
                            db->name);
        if (rc == BK_OK && db->pitr_window > 0)
            rc = check_captured(set, db, err);
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

static bk_rc_t compile(const bk_set_files_t *files, char **texts, bk_patterns_t *patterns,
                       bk_err_t *err)
{
    bk_patterns_free(patterns);
    for (size_t i = 0; texts != NULL && texts[i] != NULL; i++) {
        bk_err_t why = {0};
        bk_rc_t rc = bk_patterns_add(patterns, texts[i], &why);
        if (rc != BK_OK)
            return bk_err_set(err, rc == BK_INVALID ? BK_CONFIG : rc, "files %s: %s", files->name,
                              why.text);
    }
    return BK_OK;
}

static bk_rc_t check_files(bk_set_t *set, json_t *warnings, bk_err_t *err)
{
    for (size_t i = 0; i < set->files_count; i++) {
        bk_set_files_t *files = &set->files[i];
        bk_rc_t rc = check_name("files", files->name, err);
        if (rc == BK_OK)
            rc = check_path("files", files->name, "path", files->path, err);
        for (size_t n = 0; n < i && rc == BK_OK; n++) {
            if (strcmp(set->files[n].name, files->name) == 0)
                rc = bk_err_set(err, BK_CONFIG, "files %s: the name is used twice", files->name);
            else if (lies_in(files->path, set->files[n].path) ||
                     lies_in(set->files[n].path, files->path))
                warn(warnings,
                     "files %s and %s overlap: what is in both is kept twice in each backup",
                     set->files[n].name, files->name);
        }
        if (rc == BK_OK)
            rc = compile(files, files->match, &files->match_patterns, err);
        if (rc == BK_OK)
            rc = compile(files, files->exclude, &files->exclude_patterns, err);
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

static bk_rc_t check_overlap(bk_set_t *set, const char *what, const char *dir, json_t *warnings,
                             bk_err_t *err)
{
    for (size_t i = 0; i < set->files_count; i++) {
        if (lies_in(set->files[i].path, dir))
            return bk_err_set(
                err, BK_CONFIG,
                "files %s: path %s lies in %s %s: a backup would contain itself; choose another "
                "directory",
                set->files[i].name, set->files[i].path, what, dir);
        if (lies_in(dir, set->files[i].path))
            warn(warnings, "%s %s lies in files %s: it is left out of the backup", what, dir,
                 set->files[i].name);
    }
    for (size_t i = 0; i < set->db_count; i++)
        if (lies_in(set->dbs[i].path, dir))
            return bk_err_set(err, BK_CONFIG,
                              "database %s: path %s lies in %s %s; choose another directory",
                              set->dbs[i].name, set->dbs[i].path, what, dir);
    return BK_OK;
}

static bk_rc_t check_storage(bk_set_t *set, json_t *warnings, bk_err_t *err)
{
    if (set->storage_count == 0)
        return bk_err_set(
            err, BK_CONFIG,
            "backup %s has no storage: add \"storage local disk { path /directory; }\"", set->name);
    if (set->storage_count > 1)
        return bk_err_set(
            err, BK_CONFIG,
            "backup %s has %zu storages: several at once are not supported yet, leave one",
            set->name, set->storage_count);
    bk_rc_t rc = check_name("storage", set->storages[0].name, err);
    if (rc == BK_OK)
        rc = bk_storage_config_check(&set->storages[0], err);
    const char *path = bk_storage_config_get(&set->storages[0], "path");
    if (rc == BK_OK && strcmp(set->storages[0].driver, "local") == 0) {
        if (lies_in(path, set->base_dir) || lies_in(set->base_dir, path))
            return bk_err_set(err, BK_CONFIG,
                              "storage local %s and base_dir must not lie in each other",
                              set->storages[0].name);
        rc = check_overlap(set, "storage", path, warnings, err);
    } else if (rc == BK_OK && set->key_count == 0 && set->passphrase_file == NULL) {
        warn(warnings,
             "storage %s %s is not on this machine and there is no \"encryption\": whoever runs it "
             "can read every backup",
             set->storages[0].driver, set->storages[0].name);
    }
    return rc;
}

static bk_rc_t check_secrets(const bk_set_t *set, bk_err_t *err)
{
    if (set->key_count > 0 && set->passphrase_file != NULL)
        return bk_err_set(err, BK_CONFIG, "encryption: give keys or a passphrase_file, not both");
    for (size_t i = 0; i < set->key_count; i++) {
        uint8_t key[BK_KEY_SIZE];
        bk_rc_t rc = bk_key_read_file(set->keys[i].file, key, err);
        explicit_bzero(key, sizeof key);
        if (rc != BK_OK)
            return bk_err_wrap(err, "encryption: key %s", set->keys[i].id);
    }
    if (set->passphrase_file != NULL) {
        bk_buf_t text;
        bk_buf_init(&text, 4096);
        bk_rc_t rc = bk_secret_read_file(set->passphrase_file, &text, err);
        bk_buf_wipe(&text);
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

bk_rc_t bk_set_check(bk_set_t *set, bool files_too, json_t *warnings, bk_err_t *err)
{
    bk_rc_t rc = check_name("backup", set->name, err);
    if (rc == BK_OK)
        rc = check_path("backup", set->name, "base_dir", set->base_dir, err);
    if (rc == BK_OK && set->db_count + set->files_count == 0)
        rc = bk_err_set(err, BK_CONFIG,
                        "backup %s protects nothing: add a \"database\" or a \"files\" block",
                        set->name);
    if (rc == BK_OK)
        rc = check_dbs(set, err);
    if (rc == BK_OK)
        rc = check_files(set, warnings, err);
    if (rc == BK_OK)
        rc = check_overlap(set, "base_dir", set->base_dir, warnings, err);
    if (rc == BK_OK)
        rc = check_storage(set, warnings, err);
    for (size_t i = 0; rc == BK_OK && set->restore_roots != NULL && set->restore_roots[i] != NULL;
         i++)
        rc = check_path("backup", set->name, "restore_root", set->restore_roots[i], err);
    if (rc == BK_OK && set->compression.codec != BK_CODEC_RAW &&
        (set->compression.level < 1 ||
         set->compression.level > (set->compression.codec == BK_CODEC_GZIP ? 9 : 19)))
        rc = bk_err_set(err, BK_CONFIG, "compression: level must be 1 to %d",
                        set->compression.codec == BK_CODEC_GZIP ? 9 : 19);
    if (rc == BK_OK && (set->ship_interval < 1000 || set->ship_interval > 3600000))
        rc = bk_err_set(err, BK_CONFIG, "backup %s: ship_interval must be 1s to 1h", set->name);
    if (rc == BK_OK && (set->lanes < 1 || set->lanes > 16))
        rc = bk_err_set(err, BK_CONFIG, "backup %s: lanes must be 1 to 16", set->name);
    if (rc == BK_OK && files_too)
        rc = check_secrets(set, err);
    return rc;
}

/* --- description --- */

static json_t *texts(char **list)
{
    json_t *array = json_array();
    for (size_t i = 0; list != NULL && list[i] != NULL; i++)
        json_array_append_new(array, bk_json_name(list[i], strlen(list[i])));
    return array;
}

static json_t *path_json(const char *path)
{
    return bk_json_name(path, strlen(path));
}

static json_t *storage_json(const bk_storage_config_t *storage)
{
    json_t *object = json_pack("{ss ss}", "driver", storage->driver, "name", storage->name);
    for (unsigned i = 0; i < storage->count; i++) {
        const char *key = storage->settings[i].key;
        bool secret = strstr(key, "key") != NULL || strstr(key, "secret") != NULL ||
                      strstr(key, "password") != NULL || strstr(key, "token") != NULL;
        json_object_set_new(object, key,
                            secret ? json_string("***") : path_json(storage->settings[i].value));
    }
    return object;
}

json_t *bk_set_describe(const bk_set_t *set)
{
    static const char *const wal[] = {"off", "on", "require"}, *const codec[] = {"off", "zstd",
                                                                                 "gzip"};
    json_t *dbs = json_array(), *files = json_array(), *storages = json_array(),
           *keys = json_array();
    for (size_t i = 0; i < set->db_count; i++)
        json_array_append_new(
            dbs, json_pack("{ss so ss sf sf so}", "name", set->dbs[i].name, "path",
                           path_json(set->dbs[i].path), "wal", wal[set->dbs[i].wal],
                           "busy_timeout_seconds", (double)set->dbs[i].busy_timeout / 1000,
                           "pitr_window_seconds", (double)set->dbs[i].pitr_window / 1000, "check",
                           texts(set->dbs[i].checks)));
    for (size_t i = 0; i < set->files_count; i++) {
        const bk_set_files_t *f = &set->files[i];
        json_array_append_new(files,
                              json_pack("{ss so so so sI sb sb sb}", "name", f->name, "path",
                                        path_json(f->path), "match", texts(f->match), "exclude",
                                        texts(f->exclude), "max_file_size", (json_int_t)f->max_size,
                                        "one_file_system", (int)f->one_file_system, "cachedir",
                                        (int)f->cachedir, "xattrs", (int)f->xattrs));
    }
    for (size_t i = 0; i < set->storage_count; i++)
        json_array_append_new(storages, storage_json(&set->storages[i]));
    for (size_t i = 0; i < set->key_count; i++)
        json_array_append_new(keys, json_string(set->keys[i].id));
    return json_pack(
        "{ss so so so s{ss si} s{sb so sb} so so sb sb sb s{sf sf} sI sf sf}", "name", set->name,
        "base_dir", path_json(set->base_dir), "databases", dbs, "files", files, "compression",
        "method", codec[set->compression.codec], "level", set->compression.level, "encryption",
        "enabled", (int)(set->key_count > 0 || set->passphrase_file != NULL), "keys", keys,
        "passphrase", (int)(set->passphrase_file != NULL), "storages", storages, "restore_roots",
        texts(set->restore_roots), "restore_in_place", (int)set->restore_in_place, "restore_safety",
        (int)set->restore_safety, "restore_setuid", (int)set->restore_setuid, "retention",
        "database_days", (double)set->retention_db / (double)DAY_MS, "files_days",
        (double)set->retention_files / (double)DAY_MS, "min_free", (json_int_t)set->min_free,
        "shutdown_grace_seconds", (double)set->shutdown_grace / 1000, "ship_interval_seconds",
        (double)set->ship_interval / 1000);
}
