/*
 * files/restore.c: lane 0 of a restore: through the backup's tree and the target side by side,
 * deciding name by name.
 *
 * Directories are made on the way (0700 until they are filled), links and FIFOs at once, files by
 * the window.  A directory that only leads to something selected is made when that something comes.
 */
#include "files/restore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "files/descent.h"
#include "files/walk.h"

static bk_rc_t no_memory(bk_err_t *err)
{
    return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
}

/* A failure of the window is one of the whole restore. */
static bk_rc_t from_window(bk_descent_t *run, bk_rc_t rc)
{
    run->broken = run->broken || rc != BK_OK;
    return rc;
}

/* --- names --- */

/* What has the name, and what the policy says.  False: skip. */
static bool decide(bk_descent_t *run, const bk_entry_t *entry, const char *path,
                   const struct stat *st, bk_existing_t *existing, bool *compare)
{
    const bk_restore_options_t *options = run->restore.options;
    *compare = false;
    if (bk_place_protected(&run->restore, path, st, false))
        return false;
    switch (options->overwrite) {
    case BK_OVERWRITE_NEVER:
        return false;
    case BK_OVERWRITE_IF_NEWER:
        if (!bk_descent_newer(entry, st))
            return false;
        *existing = BK_REPLACE;
        break;
    case BK_OVERWRITE_RENAME:
        *existing = BK_ASIDE;
        break;
    default:
        *existing = BK_REPLACE;
    }
    if (S_ISDIR(st->st_mode))
        *existing = BK_ASIDE;
    *compare = entry->type == BK_ENTRY_FILE && S_ISREG(st->st_mode) &&
               (uint64_t)st->st_size == entry->size;
    return true;
}

static bool same_special(const bk_at_t *at, const char *name, const bk_entry_t *entry,
                         const struct stat *st)
{
    if (entry->type == BK_ENTRY_FIFO)
        return S_ISFIFO(st->st_mode);
    return S_ISLNK(st->st_mode) && bk_at_leads_to(at, name, entry->target, entry->target_len);
}

/* A link or FIFO: made under a temporary name, complete with its metadata, then named. */
static bk_rc_t make_special(bk_descent_t *run, const bk_at_t *at, const bk_entry_t *entry,
                            const char *name, bk_existing_t existing, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char temporary[BK_TEMPORARY_MAX], target[BK_LINK_MAX + 1];
    bool link = entry->type == BK_ENTRY_LINK;
    bk_temporary_name(restore, temporary);
    if (link) {
        memcpy(target, entry->target, entry->target_len);
        target[entry->target_len] = '\0';
    }
    int errnum = bk_at_special(at, temporary, link ? target : NULL);
    if (errnum != 0)
        return bk_at_error(at->road, errnum, "make it", err);
    bk_rc_t rc = bk_place_metadata_at(restore, at, temporary, entry, false, err);
    if (rc != BK_OK) {
        bk_at_unlink(at, temporary, 0);
        return rc;
    }
    return bk_place_publish(restore, at, temporary, name, existing == BK_ASIDE, err);
}

/* One that is there already.  Through the helper, a name of several is replaced, not changed. */
static bk_rc_t keep_special(bk_descent_t *run, const bk_at_t *at, const bk_entry_t *entry,
                            const char *name, bk_err_t *err)
{
    bk_rc_t rc = bk_place_metadata_at(&run->restore, at, name, entry, false, err);
    if (rc != BK_EXISTS)
        return rc;
    bk_err_clear(err);
    return make_special(run, at, entry, name, BK_REPLACE, err);
}

static bk_rc_t do_special(bk_descent_t *run, bk_level_t *level, const bk_entry_t *entry,
                          const char *name, const char *path, const struct stat *st,
                          bk_existing_t existing, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char target[PATH_MAX];
    bool dry = restore->options->dry_run;
    bk_rc_t rc = BK_OK;
    const char *action = existing == BK_ASIDE     ? "rename"
                         : existing == BK_REPLACE ? "replace"
                                                  : "create";
    if (st != NULL && same_special(&level->at, name, entry, st)) {
        action = "unchanged";
        if (!dry)
            rc = keep_special(run, &level->at, entry, name, err);
    } else if (!dry) {
        int errnum = bk_level_enter(run, level);
        rc = errnum != 0 ? bk_at_error(&restore->road, errnum, "open its directory", err)
                         : make_special(run, &level->at, entry, name, existing, err);
    } else if (existing == BK_ASIDE) {
        restore->stats.renamed++;
    }
    if (rc != BK_OK)
        return rc;
    restore->stats.links += entry->type == BK_ENTRY_LINK;
    restore->stats.others += entry->type == BK_ENTRY_FIFO;
    if (bk_descent_target(run, path, target))
        bk_restore_plan(restore, target, action, 0);
    return BK_OK;
}

/* A selected name that is no directory. */
static bk_rc_t do_name(bk_descent_t *run, const bk_entry_t *entry, const char *name,
                       const char *path, bk_err_t *err)
{
    bk_level_t *level = &run->levels[run->count - 1];
    bk_existing_t existing = BK_NOT_THERE;
    struct stat st;
    bool compare = false;
    int found = level->place->made ? 0 : bk_level_enter(run, level);
    if (found != 0)
        return bk_at_error(&run->restore.road, found, "open its directory", err);
    found = bk_level_stat(run, level, name, &st);
    if (found == BK_AT_GONE || found == EXDEV)
        return bk_at_error(&run->restore.road, found, "look at it", err);
    if (entry->type == BK_ENTRY_FILE) {
        run->restore.stats.files++;
        run->restore.stats.bytes += entry->size;
    }
    if (found == 0 && !decide(run, entry, path, &st, &existing, &compare)) {
        bk_descent_skip(run, path, entry->size);
        return BK_OK;
    }
    if (entry->type == BK_ENTRY_FILE)
        return from_window(run,
                           bk_window_add(run->window, level->place, entry, existing, compare, err));
    return do_special(run, level, entry, name, path, found == 0 ? &st : NULL, existing, err);
}

/* Names of the target that sort before the entry (all, when NULL) are not in the backup. */
static bk_rc_t take_extras(bk_descent_t *run, bk_level_t *level, const bk_entry_t *entry,
                           const char *name, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    while (level->remove_extra && level->extra_at < level->peek->names.count && rc == BK_OK) {
        const char *extra = bk_listing_name(&level->peek->names, level->extra_at);
        int order = entry != NULL ? strcmp(extra, name) : -1;
        char path[PATH_MAX];
        if (order > 0)
            break;
        level->extra_at++;
        if (order < 0 && bk_fmt(path, sizeof path, "%s%s%s", level->path,
                                level->path[0] != '\0' ? "/" : "", extra))
            rc = from_window(run, bk_window_add_extra(run->window, level->place, extra, path, err));
    }
    return rc;
}

/* --- the walk --- */

/* Bytes on the disk of what will be replaced. */
static uint64_t bytes_there(bk_descent_t *run, const char *path)
{
    char target[PATH_MAX];
    struct stat st;
    bk_at_t at;
    if (!bk_descent_target(run, path, target))
        return 0;
    char *slash = strrchr(target, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    *(slash != NULL ? slash : target) = '\0';
    if (bk_at_open(&run->restore.road, target, false, &at) != 0)
        return 0;
    bool there = bk_at_stat(&at, name, &st) == 0 && S_ISREG(st.st_mode);
    bk_at_close(&at);
    return there ? (uint64_t)st.st_blocks * 512 : 0;
}

/* For the first walk: what comes, and how much room it takes. */
static void count_entry(bk_descent_t *run, const bk_entry_t *entry, const char *path)
{
    bk_ctl_t *ctl = run->restore.ctl;
    if (entry->type != BK_ENTRY_FILE)
        return;
    uint64_t bytes = entry->flags & BK_ENTRY_EXTENTS ? entry->data_bytes : entry->size;
    uint64_t there = run->measure ? bytes_there(run, path) : 0;
    run->need += there < bytes ? bytes - there : 0;
    if (ctl == NULL || run->measure)
        return;
    atomic_fetch_add_explicit(&ctl->files_total, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&ctl->bytes_total, entry->size, memory_order_relaxed);
}

static bk_rc_t enter_dir(bk_descent_t *run, const bk_entry_t *entry, const char *path,
                         bk_err_t *err)
{
    bool whole, taken, there = true;
    if (!bk_descent_leads(run, &run->levels[run->count - 1], path, &whole, &taken))
        return BK_OK;
    bk_rc_t rc = bk_level_open(run, &entry->child, entry, path, err);
    if (rc != BK_OK)
        return rc;
    bk_level_t *level = &run->levels[run->count - 1];
    level->whole = whole;
    level->taken = taken;
    if (!run->counting && bk_descent_wants(run, level))
        rc = bk_descent_dirs(run, &there, err);
    return rc;
}

static bk_rc_t do_entry(bk_descent_t *run, const bk_entry_t *entry, bk_err_t *err)
{
    bk_level_t *level = &run->levels[run->count - 1];
    char name[BK_NAME_MAX + 1], path[PATH_MAX];
    bool there = true;
    bk_rc_t rc = BK_OK;
    memcpy(name, entry->name, entry->name_len);
    name[entry->name_len] = '\0';
    if (!run->counting && (rc = take_extras(run, level, entry, name, err)) != BK_OK)
        return rc;
    if (!bk_fmt(path, sizeof path, "%s%s%s", level->path, level->path[0] != '\0' ? "/" : "", name))
        return bk_err_sys(err, ENAMETOOLONG, "restore it");
    if (entry->type == BK_ENTRY_DIR)
        return enter_dir(run, entry, path, err);
    if (!bk_descent_selects(run, level, path))
        return BK_OK;
    if (run->counting) {
        count_entry(run, entry, path);
        return BK_OK;
    }
    rc = bk_descent_dirs(run, &there, err);
    if (rc != BK_OK || !there)
        return rc;
    return do_name(run, entry, name, path, err);
}

/* The root of the tree, when it was made, gets what the backup knows of it; what was there is the
 * operator's. */
static void describe_root(const bk_descent_t *run, bk_level_t *root)
{
    const bk_snapshot_tree_t *tree = run->restore.options->tree;
    if (!root->place->made || !tree->described)
        return;
    root->entry = (bk_entry_t){.type = BK_ENTRY_DIR,
                               .mode = tree->mode,
                               .uid = tree->uid,
                               .gid = tree->gid,
                               .user = tree->user,
                               .group = tree->group,
                               .user_len = (uint8_t)strlen(tree->user),
                               .group_len = (uint8_t)strlen(tree->group),
                               .mtime = tree->mtime};
}

/*
 * The directory's metadata belong to the backup when we made it, or when it was selected as such.
 */
static bk_rc_t leave_level(bk_descent_t *run, bk_err_t *err)
{
    bk_level_t *level = &run->levels[run->count - 1];
    bk_overwrite_t overwrite = run->restore.options->overwrite;
    bk_rc_t rc = BK_OK;
    if (!run->counting && level->place != NULL) {
        rc = take_extras(run, level, NULL, NULL, err);
        bool ours = level->place->made ||
                    (bk_descent_wants(run, level) && overwrite != BK_OVERWRITE_NEVER &&
                     overwrite != BK_OVERWRITE_IF_NEWER);
        if (rc == BK_OK && level->entry.type != 0 && ours) /* 0: nobody knows it */
            rc = from_window(run, bk_window_add_dir(run->window, level->place, &level->entry, err));
    }
    bk_level_close(level);
    run->count--;
    return rc;
}

static bk_rc_t walk_tree(bk_descent_t *run, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    bool made = false;
    bk_rc_t rc = BK_OK;
    if (!run->counting)
        rc = bk_descent_base(run, &made, err);
    if (rc == BK_OK)
        rc = bk_level_open(run, &options->tree->root, NULL, "", err);
    if (rc != BK_OK)
        return rc;
    bk_level_t *root = &run->levels[0];
    root->whole = bk_descent_path(options, "");
    if (!run->counting) {
        char path[PATH_MAX];
        bk_descent_target(run, "", path);
        root->place = bk_place_new(path, made);
        if (root->place == NULL)
            return no_memory(err);
        root->place->inherits = true; /* who knows what is above */
        describe_root(run, root);
        if ((rc = bk_level_look(run, root, err)) != BK_OK)
            return rc;
    }
    while (rc == BK_OK && run->count > 0) {
        bk_err_t why = {0};
        const bk_entry_t *entry = NULL;
        size_t before = run->count;
        bk_level_t *level = &run->levels[before - 1];
        if ((rc = bk_ctl_check(run->restore.ctl, err)) != BK_OK)
            break;
        rc = bk_tree_iter_next(level->iter, &entry, &why);
        bool whole_dir = rc != BK_OK; /* what failed is the rest of the directory */
        if (rc == BK_OK)
            rc = entry != NULL ? do_entry(run, entry, &why) : leave_level(run, &why);
        if (rc == BK_OK)
            continue;
        if (bk_restore_is_fatal(rc) || run->broken) {
            if (err != NULL)
                *err = why;
            break;
        }
        /* A damaged part of the backup: what is elsewhere comes back all the same. */
        if (!run->counting && run->count > 0) {
            char path[PATH_MAX];
            level = &run->levels[run->count - 1];
            if (whole_dir || !bk_fmt(path, sizeof path, "%s%s%.*s", level->path,
                                     level->path[0] != '\0' ? "/" : "", (int)entry->name_len,
                                     (const char *)entry->name))
                bk_strcpy(path, sizeof path, level->path);
            bk_descent_fail(run, path, &why);
        }
        if (whole_dir) {
            level->remove_extra = false;
            bk_level_close(level);
            run->count--;
        }
        rc = BK_OK;
    }
    return rc;
}

/* --- the whole --- */

static bk_rc_t count_all(bk_descent_t *run, bool measure, bk_err_t *err)
{
    run->counting = true;
    run->measure = measure;
    run->need = 0;
    bk_rc_t rc = walk_tree(run, err);
    run->counting = run->measure = false;
    return rc;
}

static bk_rc_t check_space(bk_descent_t *run, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    const char *root = bk_root_path(run->restore.road.root);
    uint64_t available = 0;
    if (options->dry_run || run->need == 0)
        return BK_OK;
    bk_rc_t rc = bk_road_free_space(&run->restore.road, &available, err);
    if (rc != BK_OK || run->need <= available)
        return rc;
    /* In place much of it may be there already. */
    if (options->overwrite != BK_OVERWRITE_RENAME &&
        ((rc = count_all(run, true, err)) != BK_OK || run->need <= available))
        return rc;
    return bk_err_set(err, BK_NO_SPACE,
                      "restore into %s: %llu bytes are needed, %llu are free; make room or choose "
                      "another target",
                      root, (unsigned long long)run->need, (unsigned long long)available);
}

static void note_refusals(bk_restore_t *restore)
{
    uint64_t owners = atomic_load(&restore->owner_refused);
    uint64_t attrs = atomic_load(&restore->attrs_refused);
    uint64_t setuid = atomic_load(&restore->setuid_refused);
    if (owners > 0)
        bk_ctl_note(restore->ctl,
                    "the owner of %llu files could not be set; they belong to the user that "
                    "restored them",
                    (unsigned long long)owners);
    if (attrs > 0)
        bk_ctl_note(restore->ctl,
                    "%llu extended attributes or access control lists could not be set",
                    (unsigned long long)attrs);
    if (setuid > 0)
        bk_ctl_note(restore->ctl,
                    "%llu files came back without their set-user-id or set-group-id bits or their "
                    "capabilities: the privileged helper gives them only with \"restore_setuid "
                    "on;\"",
                    (unsigned long long)setuid);
}

/* The job's name as part of file names. */
static void job_name(bk_restore_t *restore)
{
    uint8_t random[4];
    bk_random(random, sizeof random);
    bk_hex(restore->run, random, sizeof random);
    const char *job = restore->options->job != NULL ? restore->options->job : "restore";
    bk_strcpy(restore->job, sizeof restore->job, job);
    for (char *p = restore->job; *p != '\0'; p++)
        if (*p == '/' || (unsigned char)*p <= ' ')
            *p = '-';
}

static bk_rc_t set_up(bk_descent_t *run, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    pthread_mutex_init(&restore->lock, NULL);
    bk_rc_t rc = bk_road_init(&restore->road, restore->options->target, restore->ctl, err);
    if (rc != BK_OK)
        return rc;
    job_name(restore);
    restore->names = bk_names_new();
    run->window = bk_window_new(restore);
    return restore->names != NULL && run->window != NULL ? BK_OK : no_memory(err);
}

static void tear_down(bk_descent_t *run)
{
    while (run->count > 0)
        bk_level_close(&run->levels[--run->count]);
    free(run->levels);
    bk_window_free(run->window);
    for (size_t i = 0; i < run->restore.reader_count; i++)
        bk_reader_free(run->restore.readers[i]);
    bk_helped_forget(&run->restore);
    bk_names_free(run->restore.names);
    bk_road_free(&run->restore.road);
    pthread_mutex_destroy(&run->restore.lock);
}

bk_rc_t bk_files_restore(bk_repo_t *repo, const bk_restore_options_t *options, bk_team_t *team,
                         bk_restore_stats_t *stats, json_t *plan, json_t *failed, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    bk_descent_t run = {.restore = {.repo = repo,
                                    .options = options,
                                    .team = team,
                                    .ctl = ctl,
                                    .plan = plan,
                                    .failed = failed}};
    bk_rc_t rc = set_up(&run, err);
    if (rc == BK_OK)
        rc = count_all(&run, false, err);
    if (rc == BK_OK)
        rc = check_space(&run, err);
    if (rc == BK_OK)
        rc = walk_tree(&run, err);
    if (rc == BK_OK)
        rc = bk_window_flush(run.window, err);
    if (rc == BK_OK && !options->dry_run)
        rc = bk_road_sync(&run.restore.road, err);
    note_refusals(&run.restore);
    *stats = run.restore.stats;
    tear_down(&run);
    return rc;
}
