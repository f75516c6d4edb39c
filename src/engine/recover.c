/*
 * engine/recover.c: the content of one backup to where it is wanted: trees through files/,
 * databases by recover_db.c.
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

json_t *bk_recover_list(json_t *result, const char *name)
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
                                        .alone = options->alone,
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
                              options->dry_run ? bk_recover_list(result, "plan") : NULL,
                              bk_recover_list(result, "files_failed"), ctl, err);
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

#define PLACE (BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE)

bk_rc_t bk_recover_root(const char *path, mode_t mode, bk_helper_t *helper, bk_ctl_t *ctl,
                        bk_root_t **root, bk_err_t *err)
{
    bk_err_t why = {0};
    /* The helper makes nothing above its roots, and a root that is there may be out of sight. */
    if (helper != NULL) {
        bk_rc_t rc = bk_root_open_helped(path, false, helper, PLACE, ctl, root, &why);
        if (rc == BK_OK)
            return BK_OK;
        if (rc != BK_NOT_FOUND) {
            if (err != NULL)
                *err = why;
            return rc;
        }
    }
    bk_rc_t rc = bk_mkdirs(path, mode, err);
    if (rc == BK_OK)
        return bk_root_open_helped(path, true, helper, PLACE, ctl, root, err);
    if (helper != NULL)
        bk_err_remedy(err, "the privileged helper makes nothing above a configured directory: make "
                           "it with its owner and mode, then recover again");
    return rc;
}

bk_rc_t bk_root_open_nearest(const char *path, bk_helper_t *helper, bk_ctl_t *ctl, bk_root_t **root,
                             const char **below, bk_err_t *err)
{
    char head[PATH_MAX];
    struct stat st;
    if (path[0] != '/' || !bk_strcpy(head, sizeof head, path))
        return bk_err_set(err, BK_INVALID, "%s: must be an absolute path", path);
    *below = "";
    if (helper != NULL && bk_root_open_helped(path, false, helper, PLACE, ctl, root, err) == BK_OK)
        return BK_OK;
    bk_err_clear(err);
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
            rc = bk_root_open_nearest(path, options->helper, ctl, &root, &below, err);
        else
            rc = bk_recover_root(path, 0755, options->helper, ctl, &root, err);
        if (rc == BK_OK)
            rc = recover_tree(repo, options, tree, root, below, true, team, result, ctl, err);
        bk_root_close(root);
    }
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
        rc = bk_recover_databases(options, target, subdir, team, result, ctl, err);
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
