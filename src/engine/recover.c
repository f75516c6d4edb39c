/*
 * engine/recover.c: the content of one backup to where it is wanted: trees through files/,
 * databases as proved files.
 */
#include "engine/recover.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/dump.h"

#define COPY_STEP (1u << 20)

bool bk_overwrite_parse(const char *text, bk_overwrite_t *overwrite)
{
    static const char *const words[] = {"always", "if-newer", "never", "rename"};
    for (size_t i = 0; i < 4; i++)
        if (strcmp(text, words[i]) == 0) {
            *overwrite = (bk_overwrite_t)i;
            return true;
        }
    return false;
}

static void add_number(json_t *result, const char *name, uint64_t more)
{
    json_int_t now = json_integer_value(json_object_get(result, name));
    json_object_set_new(result, name, json_integer(now + (json_int_t)more));
}

static json_t *member_array(json_t *result, const char *name)
{
    json_t *array = json_object_get(result, name);
    if (array == NULL) {
        array = json_array();
        json_object_set_new(result, name, array);
    }
    return array;
}

/* --- files --- */

/* The wanted paths that lie in this tree, relative to it, each ended by NUL in one block; whole:
 * the tree itself is. */
typedef struct {
    char **items;
    size_t count;
    bool whole;
} paths_t;

/* What of a wanted path lies in the tree, by the tree's name or by its directory; or NULL. */
static const char *below_tree(const char *text, const bk_snapshot_tree_t *tree)
{
    return bk_path_below(text, text[0] == '/' ? tree->path : tree->name);
}

static bk_rc_t paths_of_tree(const json_t *wanted, const bk_snapshot_tree_t *tree, paths_t *paths,
                             bk_err_t *err)
{
    size_t i;
    json_t *item;
    memset(paths, 0, sizeof *paths);
    if (wanted == NULL || json_array_size(wanted) == 0) {
        paths->whole = true;
        return BK_OK;
    }
    paths->items = calloc(json_array_size(wanted), sizeof *paths->items);
    if (paths->items == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "recover: out of memory");
    json_array_foreach((json_t *)(uintptr_t)wanted, i, item)
    {
        const char *text = json_string_value(item);
        const char *rest = below_tree(text, tree);
        uint8_t raw[PATH_MAX];
        if (rest == NULL)
            continue;
        /* As listings show names: bytes that are no text are written \xHH. */
        int64_t len = bk_name_unescape(raw, sizeof raw - 1, rest);
        if (len < 0)
            return bk_err_set(err, BK_INVALID, "path %s: a \"\\\" is written \"\\x5c\"", text);
        raw[len] = '\0';
        while (len > 0 && raw[len - 1] == '/')
            raw[--len] = '\0';
        if (len == 0)
            paths->whole = true;
        else if ((paths->items[paths->count] = bk_strdup((char *)raw)) == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "recover: out of memory");
        else
            paths->count++;
    }
    return BK_OK;
}

static void free_paths(paths_t *paths)
{
    for (size_t i = 0; i < paths->count; i++)
        free(paths->items[i]);
    free(paths->items);
}

/* In the application's own directory, what its backups leave out stays as it is. */
static bk_rc_t kept_in_place(const bk_set_t *set, const bk_snapshot_tree_t *tree,
                             bk_patterns_t *keep, const bk_set_files_t **files, bk_err_t *err)
{
    for (size_t i = 0; set != NULL && i < set->files_count; i++) {
        if (strcmp(set->files[i].name, tree->name) == 0) {
            *files = &set->files[i];
            return bk_protected_patterns(set, &set->files[i], keep, err);
        }
    }
    return BK_OK;
}

static bk_rc_t recover_tree(bk_repo_t *repo, const bk_recover_options_t *options,
                            const bk_snapshot_tree_t *tree, bk_root_t *target, const char *subdir,
                            bool in_place, bk_team_t *team, json_t *result, bk_ctl_t *ctl,
                            bk_err_t *err)
{
    bk_restore_stats_t stats = {0};
    paths_t paths;
    bk_patterns_t keep = {0};
    const bk_set_files_t *files = NULL;
    bk_rc_t rc = paths_of_tree(options->paths, tree, &paths, err);
    if (rc == BK_OK && in_place)
        rc = kept_in_place(options->set, tree, &keep, &files, err);
    if (rc == BK_OK && (paths.whole || paths.count > 0)) {
        bk_restore_options_t restore = {.tree = tree,
                                        .target = target,
                                        .subdir = subdir,
                                        .patterns = options->patterns,
                                        .paths = (const char *const *)paths.items,
                                        .path_count = paths.whole ? 0 : paths.count,
                                        .overwrite = options->overwrite,
                                        .delete_extra = options->delete_extra,
                                        .owners = options->owners,
                                        .dry_run = options->dry_run,
                                        .job = options->job,
                                        .keep = &keep};
        if (files != NULL) {
            restore.keep_match = &files->match_patterns;
            restore.keep_larger = files->max_size;
        }
        if (options->skip != NULL) {
            restore.skip = options->skip->items;
            restore.skip_count = options->skip->count;
        }
        rc = bk_files_restore(repo, &restore, team, &stats,
                              options->dry_run ? member_array(result, "plan") : NULL,
                              member_array(result, "files_failed"), ctl, err);
        add_number(result, "files_selected", stats.files);
        add_number(result, "bytes_selected", stats.bytes);
        add_number(result, "files_restored", stats.written);
        add_number(result, "bytes_restored", stats.bytes_written);
        add_number(result, "files_unchanged", stats.unchanged);
        add_number(result, "files_skipped", stats.skipped);
        add_number(result, "files_renamed", stats.renamed);
        add_number(result, "files_deleted", stats.deleted);
        if (stats.failed > 0) {
            add_number(result, "files_failed_total", stats.failed);
            json_object_set_new(result, "incomplete", json_true());
        }
    }
    bk_patterns_free(&keep);
    free_paths(&paths);
    return rc;
}

/* A path that is in no tree is a mistake worth telling, not an empty success. */
static bk_rc_t check_paths(const bk_recover_options_t *options, bk_err_t *err)
{
    size_t i;
    json_t *item;
    json_array_foreach(options->paths, i, item)
    {
        bool found = false;
        const char *text = json_string_value(item);
        for (size_t n = 0; n < options->snapshot->tree_count; n++) {
            const bk_snapshot_tree_t *tree = &options->snapshot->trees[n];
            found = found || below_tree(text, tree) != NULL;
        }
        if (!found)
            return bk_err_set(err, BK_INVALID,
                              "path %s: a path begins with the name of a files block "
                              "(\"uploads/2025/a.wav\") or with "
                              "its directory",
                              text);
    }
    return BK_OK;
}

bk_rc_t bk_root_open_nearest(const char *path, bk_root_t **root, const char **below, bk_err_t *err)
{
    char head[PATH_MAX];
    struct stat st;
    if (path[0] != '/' || !bk_strcpy(head, sizeof head, path))
        return bk_err_set(err, BK_INVALID, "%s: must be an absolute path", path);
    while (stat(head, &st) != 0 && (errno == ENOENT || errno == ENOTDIR) && head[1] != '\0') {
        char *slash = strrchr(head, '/');
        slash[slash == head] = '\0';
    }
    *below = path + strlen(head);
    while (**below == '/')
        (*below)++;
    return bk_root_open(head, false, root, err);
}

bk_rc_t bk_recover_files(bk_repo_t *repo, const bk_recover_options_t *options,
                         bk_recover_where_fn where, void *arg, bk_team_t *team, json_t *result,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    bk_ctl_phase(ctl, "files");
    bk_rc_t rc = check_paths(options, err);
    for (size_t i = 0; i < options->snapshot->tree_count && rc == BK_OK; i++) {
        const bk_snapshot_tree_t *tree = &options->snapshot->trees[i];
        const char *path = where(arg, tree->name), *below = "";
        bk_root_t *root = NULL;
        if (path == NULL) {
            bk_ctl_note(ctl, "files %s is no longer configured: recover it into a target_directory",
                        tree->name);
            continue;
        }
        if (options->dry_run)
            rc = bk_root_open_nearest(path, &root, &below, err);
        else if ((rc = bk_mkdirs(path, 0755, err)) == BK_OK)
            rc = bk_root_open(path, true, &root, err);
        if (rc == BK_OK)
            rc = recover_tree(repo, options, tree, root, below, true, team, result, ctl, err);
        bk_root_close(root);
    }
    return rc;
}

/* --- databases into a directory --- */

/* mkdir -p beneath the root without following links; *fd is the last directory. */
static bk_rc_t make_beneath(bk_root_t *root, const char *rel, int *fd, bk_err_t *err)
{
    char name[NAME_MAX + 1];
    bk_rc_t rc = bk_root_openat(root, "", O_RDONLY | O_DIRECTORY, 0, fd, err);
    while (rc == BK_OK && *rel != '\0') {
        const char *slash = strchr(rel, '/');
        size_t len = slash != NULL ? (size_t)(slash - rel) : strlen(rel);
        if (len >= sizeof name) {
            rc = bk_err_set(err, BK_INVALID, "%s: a name is too long", rel);
            break;
        }
        memcpy(name, rel, len);
        name[len] = '\0';
        rel += len + (slash != NULL);
        if (len == 0)
            continue;
        if (mkdirat(*fd, name, 0755) != 0 && errno != EEXIST) {
            rc = bk_err_sys(err, errno, "make directory %s in %s", name, bk_root_path(root));
            break;
        }
        int next = openat(*fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0)
            rc = bk_err_sys(err, errno, "open directory %s in %s", name, bk_root_path(root));
        else {
            close(*fd);
            *fd = next;
        }
    }
    if (rc != BK_OK && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return rc;
}

/* The name of a database below a target: the last part of its path unless something else has it. */
static bool database_file(const bk_snapshot_t *s, const bk_snapshot_db_t *db, char *out,
                          size_t size)
{
    const char *slash = strrchr(db->path, '/'), *name = slash != NULL ? slash + 1 : db->path;
    bool shared = false;
    for (size_t i = 0; i < s->db_count; i++) {
        const char *other = strrchr(s->dbs[i].path, '/');
        other = other != NULL ? other + 1 : s->dbs[i].path;
        shared = shared || (&s->dbs[i] != db && strcmp(other, name) == 0);
    }
    for (size_t i = 0; i < s->tree_count; i++)
        shared = shared || strcmp(s->trees[i].name, name) == 0;
    return *name != '\0' &&
           bk_fmt(out, size, "%s%s%s", shared ? db->name : "", shared ? "-" : "", name);
}

typedef struct {
    const bk_recover_options_t *options;
    const bk_snapshot_db_t *db;
    int dirfd;
    const char *name;
    const char *where; /* for messages */
} place_t;

/*
 * What has the name is in use, or may be.  A log or journal beside it belongs to another content
 * and would be played into this one.
 */
static bk_rc_t check_place(const place_t *place, bk_err_t *err)
{
    static const char *const companions[] = {"-wal", "-shm", "-journal"};
    const bk_protected_t *skip = place->options->skip;
    char name[NAME_MAX * 2];
    struct stat st;
    bool there = fstatat(place->dirfd, place->name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    for (size_t i = 0; there && skip != NULL && i < skip->count; i++)
        if (skip->items[i].device == st.st_dev && skip->items[i].inode == st.st_ino)
            return bk_err_set(err, BK_FORBIDDEN,
                              "%s/%s is the application's own database: recover it in place "
                              "(without target_directory), or choose another directory",
                              place->where, place->name);
    if (there && !S_ISREG(st.st_mode))
        return bk_err_set(err, BK_EXISTS,
                          "%s/%s is there and is no file: remove it, or choose another directory",
                          place->where, place->name);
    for (size_t i = 0; i < 3; i++) {
        bk_fmt(name, sizeof name, "%s%s", place->name, companions[i]);
        if (fstatat(place->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            return bk_err_set(err, BK_EXISTS,
                              "%s/%s is there: a database of that name is or was in use; remove "
                              "both, or choose another directory",
                              place->where, name);
    }
    return BK_OK;
}

/* What becomes of a file that has the database's name already.  *skip: leave it. */
static bk_rc_t make_way(const place_t *place, bool *skip, bk_err_t *err)
{
    bk_overwrite_t overwrite = place->options->overwrite;
    char aside[NAME_MAX * 2];
    struct stat st;
    *skip = false;
    if (fstatat(place->dirfd, place->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return BK_OK;
    int64_t mtime = (int64_t)st.st_mtim.tv_sec * BK_SEC + st.st_mtim.tv_nsec;
    *skip = overwrite == BK_OVERWRITE_NEVER ||
            (overwrite == BK_OVERWRITE_IF_NEWER && mtime >= place->db->instant);
    if (overwrite != BK_OVERWRITE_RENAME)
        return BK_OK;
    bk_fmt(aside, sizeof aside, "%s.before-%s", place->name, place->options->job);
    return renameat(place->dirfd, place->name, place->dirfd, aside) == 0
               ? BK_OK
               : bk_err_sys(err, errno, "rename %s in %s", place->name, place->where);
}

/* Owner and mode as they were, as far as this process may. */
static bk_rc_t own(int fd, const place_t *place, bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_snapshot_db_t *db = place->db;
    if (place->options->owners && fchown(fd, db->uid, db->gid) != 0)
        bk_ctl_note(ctl, "the owner of %s/%s could not be set", place->where, place->name);
    return fchmod(fd, db->mode & 0777) == 0
               ? BK_OK
               : bk_err_sys(err, errno, "set the mode of %s/%s", place->where, place->name);
}

static bk_rc_t copy_image(int from, const place_t *place, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_publish_t pub;
    size_t got = 1;
    uint8_t *buffer = malloc(COPY_STEP);
    if (buffer == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "recover database %s: out of memory", place->db->name);
    bk_rc_t rc = bk_publish_open(&pub, place->dirfd, place->name, 0600, err);
    if (rc == BK_OK) {
        while (rc == BK_OK && got > 0) {
            rc = bk_ctl_check(ctl, err);
            if (rc == BK_OK)
                rc = bk_read_all(from, buffer, COPY_STEP, &got, place->db->name, err);
            if (rc == BK_OK)
                rc = bk_write_all(pub.fd, buffer, got, place->name, err);
        }
        if (rc == BK_OK)
            rc = own(pub.fd, place, ctl, err);
        if (rc == BK_OK)
            rc = bk_publish_commit(&pub, false, err);
        else
            bk_publish_abort(&pub);
    }
    free(buffer);
    return rc;
}

/* The proved image under its name: the file itself, or a copy when it lies on another file system.
 */
static bk_rc_t place_image(const char *image, const place_t *place, bk_ctl_t *ctl, bk_err_t *err)
{
    int from = open(image, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (from < 0)
        return bk_err_sys(err, errno, "open %s", image);
    bk_rc_t rc = own(from, place, ctl, err);
    if (rc == BK_OK && fsync(from) != 0)
        rc = bk_err_sys(err, errno, "fsync %s", image);
    if (rc == BK_OK) {
        if (renameat(AT_FDCWD, image, place->dirfd, place->name) == 0)
            rc = bk_fsync_dir(place->dirfd, ".", err);
        else if (errno == EXDEV)
            rc = copy_image(from, place, ctl, err);
        else
            rc = bk_err_sys(err, errno, "give %s its name in %s", place->name, place->where);
    }
    close(from);
    return rc;
}

static bk_rc_t recover_database(bk_repo_t *repo, const place_t *place, bk_team_t *team,
                                json_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    char image[PATH_MAX];
    const bk_recover_options_t *options = place->options;
    const bk_snapshot_db_t *db = place->db;
    bool skip = false;
    bk_ctl_current(ctl, db->name);
    if (!bk_fmt(image, sizeof image, "%s/%s-%s.db", options->scratch, options->job, db->name))
        return bk_err_set(err, BK_CONFIG, "%s: the path is too long", options->scratch);
    bk_rc_t rc = check_place(place, err);
    if (rc == BK_OK)
        rc = make_way(place, &skip, err);
    if (rc == BK_OK && !skip) {
        rc = bk_db_materialise(repo, db, image, options->check, team, ctl, err);
        if (rc == BK_OK)
            rc = place_image(image, place, ctl, err);
        unlink(image);
    }
    if (rc == BK_OK)
        json_array_append_new(member_array(result, "databases"),
                              json_pack("{ss so so ss}", "name", db->name, "file",
                                        bk_json_name(place->name, strlen(place->name)),
                                        "recovery_point", bk_json_time(db->instant), "action",
                                        skip ? "skipped" : "written"));
    return rc;
}

static void plan_database(const bk_snapshot_db_t *db, const char *where, const char *name,
                          json_t *result)
{
    char path[PATH_MAX];
    bk_fmt(path, sizeof path, "%s/%s", where, name);
    json_array_append_new(member_array(result, "plan"),
                          json_pack("{so ss sI}", "path", bk_json_name(path, strlen(path)),
                                    "action", "database", "size",
                                    (json_int_t)(db->page_count * db->page_size)));
}

static bk_rc_t recover_databases(bk_repo_t *repo, const bk_recover_options_t *options,
                                 bk_root_t *target, const char *subdir, bk_team_t *team,
                                 json_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_snapshot_t *s = options->snapshot;
    char name[NAME_MAX + 1], where[PATH_MAX];
    bk_rc_t rc = BK_OK;
    int fd = -1;
    bk_fmt(where, sizeof where, "%s%s%s", bk_root_path(target), *subdir != '\0' ? "/" : "", subdir);
    for (size_t i = 0; i < s->db_count && rc == BK_OK; i++) {
        const bk_snapshot_db_t *db = &s->dbs[i];
        if (options->database != NULL && strcmp(options->database, db->name) != 0)
            continue;
        if (!database_file(s, db, name, sizeof name)) {
            rc = bk_err_set(err, BK_UNSUPPORTED, "database %s: its path %s gives no file name",
                            db->name, db->path);
        } else if (options->dry_run) {
            plan_database(db, where, name, result);
        } else {
            if (fd < 0)
                rc = make_beneath(target, subdir, &fd, err);
            place_t place = {
                .options = options, .db = db, .dirfd = fd, .name = name, .where = where};
            if (rc == BK_OK)
                rc = recover_database(repo, &place, team, result, ctl, err);
        }
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

bk_rc_t bk_recover_into(bk_repo_t *repo, const bk_recover_options_t *options, bk_root_t *target,
                        const char *subdir, bk_team_t *team, json_t *result, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    const bk_snapshot_t *s = options->snapshot;
    bk_rc_t rc = options->files ? check_paths(options, err) : BK_OK;
    bk_ctl_phase(ctl, "database");
    if (rc == BK_OK && options->databases)
        rc = recover_databases(repo, options, target, subdir, team, result, ctl, err);
    bk_ctl_phase(ctl, "files");
    for (size_t i = 0; options->files && i < s->tree_count && rc == BK_OK; i++) {
        char below[PATH_MAX];
        if (!bk_fmt(below, sizeof below, "%s%s%s", subdir, *subdir != '\0' ? "/" : "",
                    s->trees[i].name))
            rc = bk_err_set(err, BK_INVALID, "%s: the path is too long", subdir);
        else
            rc = recover_tree(repo, options, &s->trees[i], target, below, false, team, result, ctl,
                              err);
    }
    return rc;
}
