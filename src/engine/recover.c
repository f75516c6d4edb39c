/*
 * engine/recover.c: the content of one backup to where it is wanted: trees through files/, databases as proved files.
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

#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/dump.h"

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

/* The wanted paths that lie in this tree, relative to it, each ended by NUL in one block; whole: the tree itself is. */
typedef struct {
    char **items;
    size_t count;
    bool whole;
} paths_t;

static const char *strip(const char *path, const char *prefix)
{
    size_t len = strlen(prefix);
    while (len > 1 && prefix[len - 1] == '/')
        len--;
    if (strncmp(path, prefix, len) != 0 || (path[len] != '/' && path[len] != '\0'))
        return NULL;
    path += len;
    while (*path == '/')
        path++;
    return path;
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
        const char *rest = strip(text, text[0] == '/' ? tree->path : tree->name);
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

static bk_rc_t recover_tree(bk_repo_t *repo, const bk_recover_options_t *options,
                            const bk_snapshot_tree_t *tree, bk_root_t *target, const char *subdir,
                            bk_team_t *team, json_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_restore_stats_t stats = {0};
    paths_t paths;
    bk_rc_t rc = paths_of_tree(options->paths, tree, &paths, err);
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
                                        .job = options->job};
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
            found = found || strip(text, text[0] == '/' ? tree->path : tree->name) != NULL;
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

bk_rc_t bk_recover_files(bk_repo_t *repo, const bk_recover_options_t *options,
                         bk_recover_where_fn where, void *arg, bk_team_t *team, json_t *result,
                         bk_ctl_t *ctl, bk_err_t *err)
{
    bk_ctl_phase(ctl, "files");
    bk_rc_t rc = check_paths(options, err);
    for (size_t i = 0; i < options->snapshot->tree_count && rc == BK_OK; i++) {
        const bk_snapshot_tree_t *tree = &options->snapshot->trees[i];
        const char *path = where(arg, tree->name);
        bk_root_t *root = NULL;
        struct stat st;
        if (path == NULL) {
            bk_ctl_note(ctl, "files %s is no longer configured: recover it into a target_directory",
                        tree->name);
            continue;
        }
        if (options->dry_run && stat(path, &st) != 0) {
            json_array_append_new(member_array(result, "plan"),
                                  json_pack("{so ss}", "path", bk_json_name(path, strlen(path)),
                                            "action", "mkdir and everything in it"));
            continue;
        }
        rc = bk_root_open(path, true, &root, err);
        if (rc == BK_OK)
            rc = recover_tree(repo, options, tree, root, "", team, result, ctl, err);
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

static bk_rc_t copy_image(const char *image, int dirfd, const char *name, uint32_t mode,
                          bk_ctl_t *ctl, bk_err_t *err)
{
    bk_publish_t pub;
    size_t got = 1;
    uint8_t *buffer = malloc(1u << 20);
    int from = open(image, O_RDONLY | O_CLOEXEC);
    bk_rc_t rc = buffer != NULL && from >= 0 ? BK_OK : bk_err_sys(err, errno, "open %s", image);
    if (rc == BK_OK)
        rc = bk_publish_open(&pub, dirfd, name, mode & 0777, err);
    if (rc == BK_OK) {
        while (rc == BK_OK && got > 0) {
            rc = bk_ctl_check(ctl, err);
            if (rc == BK_OK)
                rc = bk_read_all(from, buffer, 1u << 20, &got, image, err);
            if (rc == BK_OK)
                rc = bk_write_all(pub.fd, buffer, got, name, err);
        }
        if (rc == BK_OK)
            rc = bk_publish_commit(&pub, false, err);
        else
            bk_publish_abort(&pub);
    }
    if (from >= 0)
        close(from);
    free(buffer);
    return rc;
}

/* What becomes of a file that has the database's name already.  *skip: leave it. */
static bk_rc_t make_way(const bk_recover_options_t *options, const bk_snapshot_db_t *db, int dirfd,
                        const char *name, bool *skip, bk_err_t *err)
{
    char aside[NAME_MAX * 2];
    struct stat st;
    *skip = false;
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return BK_OK;
    int64_t mtime = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    *skip = options->overwrite == BK_OVERWRITE_NEVER ||
            (options->overwrite == BK_OVERWRITE_IF_NEWER && mtime >= db->instant);
    if (options->overwrite != BK_OVERWRITE_RENAME)
        return BK_OK;
    bk_fmt(aside, sizeof aside, "%s.before-%s", name, options->job);
    return renameat(dirfd, name, dirfd, aside) == 0 ? BK_OK
                                                    : bk_err_sys(err, errno, "rename %s", name);
}

static bk_rc_t recover_database(bk_repo_t *repo, const bk_recover_options_t *options,
                                const bk_snapshot_db_t *db, int dirfd, bk_team_t *team,
                                json_t *result, bk_ctl_t *ctl, bk_err_t *err)
{
    char image[PATH_MAX];
    const char *slash = strrchr(db->path, '/'), *name = slash != NULL ? slash + 1 : db->path;
    bool skip = false;
    bk_ctl_current(ctl, db->name);
    bk_fmt(image, sizeof image, "%s/%s-%s.db", options->scratch, options->job, db->name);
    bk_rc_t rc = make_way(options, db, dirfd, name, &skip, err);
    if (rc == BK_OK && !skip) {
        rc = bk_db_materialise(repo, db, image, options->check, team, ctl, err);
        if (rc == BK_OK)
            rc = copy_image(image, dirfd, name, db->mode, ctl, err);
        unlink(image);
    }
    if (rc == BK_OK)
        json_array_append_new(member_array(result, "databases"),
                              json_pack("{ss ss so ss}", "name", db->name, "file", name,
                                        "recovery_point", bk_json_time(db->instant), "action",
                                        skip ? "skipped" : "written"));
    return rc;
}

bk_rc_t bk_recover_into(bk_repo_t *repo, const bk_recover_options_t *options, bk_root_t *target,
                        const char *subdir, bk_team_t *team, json_t *result, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    const bk_snapshot_t *s = options->snapshot;
    bk_rc_t rc = options->files ? check_paths(options, err) : BK_OK;
    int fd = -1;
    bk_ctl_phase(ctl, "database");
    for (size_t i = 0; options->databases && i < s->db_count && rc == BK_OK; i++) {
        if (options->database != NULL && strcmp(options->database, s->dbs[i].name) != 0)
            continue;
        if (options->dry_run) {
            json_array_append_new(
                member_array(result, "plan"),
                json_pack("{ss ss sI}", "path", s->dbs[i].path, "action", "database", "size",
                          (json_int_t)(s->dbs[i].page_count * s->dbs[i].page_size)));
            continue;
        }
        if (fd < 0)
            rc = make_beneath(target, subdir, &fd, err);
        if (rc == BK_OK)
            rc = recover_database(repo, options, &s->dbs[i], fd, team, result, ctl, err);
    }
    if (fd >= 0)
        close(fd);
    bk_ctl_phase(ctl, "files");
    for (size_t i = 0; options->files && i < s->tree_count && rc == BK_OK; i++) {
        char below[PATH_MAX];
        bk_fmt(below, sizeof below, "%s%s%s", subdir, *subdir != '\0' ? "/" : "", s->trees[i].name);
        rc = recover_tree(repo, options, &s->trees[i], target, below, team, result, ctl, err);
    }
    return rc;
}
