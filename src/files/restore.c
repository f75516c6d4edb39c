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
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "files/filling.h"
#include "files/listing.h"
#include "files/walk.h"

#define STALE       3600u /* seconds after which a temporary has no owner any more */
#define OPEN_LEVELS 48u   /* directories on the way down that keep their descriptor */

/* One directory of the tree on the way down. */
typedef struct {
    bk_tree_iter_t *iter;
    bk_place_t *place; /* NULL until something in it is wanted, and in the first walk */
    bk_entry_t entry;  /* of the directory; its user and group in text */
    char *text;
    char *path;         /* below the tree's root */
    bool whole;         /* all below is selected by paths (or nothing limits them) */
    bool taken;         /* a pattern for directories took all below */
    int fd;             /* -1: not open; then it is opened again when needed */
    bk_listing_t extra; /* names in the target, when what the backup has not is to go */
    size_t extra_at;
    bool remove_extra;
} level_t;

typedef struct {
    bk_restore_t restore;
    bk_window_t *window;
    level_t *levels;
    size_t count, cap;
    bool counting; /* the first walk: only add up */
    bool measure;  /* and subtract what is there */
    bool broken;   /* the window failed: nothing more can be done */
    uint64_t need; /* bytes that have to be free */
} run_t;

/* --- what is selected --- */

/* Is path the given one or below it?  And the reverse: does it lead there? */
static bool is_below(const char *path, const char *above, size_t above_len)
{
    return above_len == 0 || (strncmp(path, above, above_len) == 0 &&
                              (path[above_len] == '\0' || path[above_len] == '/'));
}

static size_t trim(const char **path)
{
    while (**path == '/')
        (*path)++;
    size_t len = strlen(*path);
    while (len > 0 && (*path)[len - 1] == '/')
        len--;
    return len;
}

static bool path_selected(const bk_restore_options_t *options, const char *path)
{
    bool any = options->path_count == 0;
    for (size_t i = 0; i < options->path_count && !any; i++) {
        const char *wanted = options->paths[i];
        size_t len = trim(&wanted);
        any = is_below(path, wanted, len);
    }
    return any;
}

static bool path_leads(const bk_restore_options_t *options, const char *dir)
{
    size_t dir_len = strlen(dir);
    for (size_t i = 0; i < options->path_count; i++) {
        const char *wanted = options->paths[i];
        size_t len = trim(&wanted);
        if (dir_len < len && strncmp(wanted, dir, dir_len) == 0 &&
            (dir_len == 0 || wanted[dir_len] == '/'))
            return true;
    }
    return false;
}

static bool has_patterns(const bk_restore_options_t *options)
{
    return options->patterns != NULL && options->patterns->count > 0;
}

static bool file_selected(const run_t *run, const level_t *level, const char *path)
{
    const bk_restore_options_t *options = run->restore.options;
    if (!level->whole && !path_selected(options, path))
        return false;
    return !has_patterns(options) || level->taken ||
           bk_patterns_match(options->patterns, path, strlen(path), false);
}

static bool dir_leads(const run_t *run, const level_t *level, const char *path, bool *whole,
                      bool *taken)
{
    const bk_restore_options_t *options = run->restore.options;
    size_t len = strlen(path);
    *whole = level->whole || path_selected(options, path);
    *taken = level->taken ||
             (has_patterns(options) && bk_patterns_take_tree(options->patterns, path, len));
    if (!*whole && !path_leads(options, path))
        return false;
    return !has_patterns(options) || *taken ||
           bk_patterns_may_match_below(options->patterns, path, len);
}

/* Nothing limits what comes out of this directory: it is restored as a directory, too. */
static bool is_wanted(const run_t *run, const level_t *level)
{
    return level->whole && (!has_patterns(run->restore.options) || level->taken);
}

/* A failure of the window is one of the whole restore. */
static bk_rc_t from_window(run_t *run, bk_rc_t rc)
{
    run->broken = run->broken || rc != BK_OK;
    return rc;
}

/* --- levels --- */

static void close_level(level_t *level)
{
    bk_tree_iter_close(level->iter);
    bk_place_release(level->place);
    bk_listing_free(&level->extra);
    if (level->fd >= 0)
        close(level->fd);
    free(level->text);
    free(level->path);
}

static bk_rc_t no_memory(bk_err_t *err)
{
    return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
}

/* entry: of the directory, NULL for the tree's root. */
static bk_rc_t open_level(run_t *run, const bk_id_t *node, const bk_entry_t *entry,
                          const char *path, bk_err_t *err)
{
    if (run->count == run->cap) {
        size_t cap = run->cap > 0 ? 2 * run->cap : 32;
        level_t *more = realloc(run->levels, cap * sizeof *more);
        if (more == NULL)
            return no_memory(err);
        run->levels = more;
        run->cap = cap;
    }
    level_t level = {.fd = -1, .path = bk_strdup(path)};
    bk_rc_t rc = level.path == NULL ? no_memory(err) : BK_OK;
    if (rc == BK_OK && entry != NULL) {
        level.entry = *entry;
        level.text = malloc((size_t)entry->user_len + entry->group_len + 1);
        if (level.text == NULL) {
            rc = no_memory(err);
        } else {
            memcpy(level.text, entry->user, entry->user_len);
            memcpy(level.text + entry->user_len, entry->group, entry->group_len);
            level.entry.user = level.text;
            level.entry.group = level.text + entry->user_len;
        }
    }
    if (rc == BK_OK)
        rc = bk_tree_iter_open(run->restore.repo, node, run->restore.ctl, &level.iter, err);
    if (rc != BK_OK) {
        close_level(&level);
        return rc;
    }
    run->levels[run->count++] = level;
    return BK_OK;
}

/* --- the target's directories --- */

/* Path of a level below the root: the subdirectory and the tree's path. */
static bool target_path(const run_t *run, const char *path, char *out)
{
    const char *sub = run->restore.options->subdir;
    size_t len = sub != NULL ? trim(&sub) : 0;
    return bk_fmt(out, PATH_MAX, "%.*s%s%s", (int)len, len > 0 ? sub : "",
                  len > 0 && path[0] != '\0' ? "/" : "", path);
}

static int level_fd(run_t *run, level_t *level)
{
    if (level->fd < 0)
        level->fd =
            bk_root_open_raw(run->restore.root, level->place->path, O_RDONLY | O_DIRECTORY, 0);
    return level->fd;
}

static bool newer(const bk_entry_t *entry, const struct stat *st)
{
    return entry->mtime > st->st_mtim.tv_sec * BK_SEC + st->st_mtim.tv_nsec;
}

static void count_skipped(run_t *run, const char *path, uint64_t size)
{
    char target[PATH_MAX];
    if (run->restore.ctl != NULL) {
        atomic_fetch_add_explicit(&run->restore.ctl->files_done, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&run->restore.ctl->bytes_done, size, memory_order_relaxed);
    }
    pthread_mutex_lock(&run->restore.lock);
    run->restore.stats.skipped++;
    pthread_mutex_unlock(&run->restore.lock);
    if (target_path(run, path, target))
        bk_restore_plan(&run->restore, target, "skip", size);
}

static void fail_path(run_t *run, const char *path, const bk_err_t *why)
{
    char target[PATH_MAX];
    if (!target_path(run, path, target))
        bk_strcpy(target, sizeof target, path);
    bk_restore_fail(&run->restore, target, why);
}

/* Make the root of the tree in the target, with the directories that lead there. */
static bk_rc_t make_base(run_t *run, bool *made, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char path[PATH_MAX];
    struct stat st;
    *made = false;
    if (!target_path(run, "", path))
        return bk_err_set(err, BK_INVALID, "restore into %s: the path is too long",
                          restore->options->subdir);
    for (char *p = path; *p != '\0'; p++) {
        char *slash = strchr(p, '/');
        if (slash != NULL)
            *slash = '\0';
        char *name = strrchr(path, '/');
        if (name != NULL)
            *name = '\0';
        int dir =
            bk_root_open_raw(restore->root, name != NULL ? path : "", O_PATH | O_DIRECTORY, 0);
        if (name != NULL)
            *name = '/';
        const char *last = name != NULL ? name + 1 : path;
        int errnum = dir < 0 ? errno : 0;
        *made = dir < 0 || fstatat(dir, last, &st, AT_SYMLINK_NOFOLLOW) != 0;
        if (dir >= 0 && *made && !restore->options->dry_run && mkdirat(dir, last, 0700) != 0)
            errnum = errno;
        if (dir >= 0)
            close(dir);
        if (errnum != 0 && !restore->options->dry_run)
            return bk_err_sys(err, errnum, "make directory %s/%s", bk_root_path(restore->root),
                              path);
        if (slash == NULL)
            break;
        *slash = '/';
        p = slash;
    }
    if (*made)
        return BK_OK;
    int fd = bk_root_open_raw(restore->root, path, O_PATH | O_DIRECTORY, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "restore into %s/%s: open directory",
                          bk_root_path(restore->root), path);
    close(fd);
    return BK_OK;
}

/* A temporary of a restore that was killed. */
static void sweep(int dir, const char *name, unsigned char kind)
{
    struct stat st;
    if ((kind == DT_REG || kind == DT_UNKNOWN) &&
        strncmp(name, BK_FILES_TEMPORARY, sizeof BK_FILES_TEMPORARY - 1) == 0 &&
        fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
        st.st_ctim.tv_sec + (int64_t)STALE < bk_now() / BK_SEC)
        unlinkat(dir, name, 0);
}

/* An existing directory: what is in it that the backup does not have? */
static void look_inside(run_t *run, level_t *level)
{
    const bk_restore_options_t *options = run->restore.options;
    if (level->place->made || level_fd(run, level) < 0)
        return;
    struct stat st, root;
    level->place->other = fstat(level->fd, &st) == 0 &&
                          fstat(bk_root_fd(run->restore.root), &root) == 0 &&
                          st.st_dev != root.st_dev;
    bool ok = bk_listing_read(level->fd, &level->extra) == 0;
    for (size_t i = 0; i < level->extra.count && !options->dry_run; i++)
        sweep(level->fd, bk_listing_name(&level->extra, i), bk_listing_kind(&level->extra, i));
    level->remove_extra = ok && options->delete_extra && is_wanted(run, level) &&
                          !level->place->other && !(level->entry.flags & BK_ENTRY_DAMAGED) &&
                          !bk_listing_is_cache(level->fd);
    if (!level->remove_extra)
        bk_listing_free(&level->extra);
}

/* What to do with something that is no directory where one belongs.  False: leave it. */
static bool replace_by_dir(run_t *run, int dir, const char *name, const bk_entry_t *entry,
                           const struct stat *st, bk_rc_t *rc, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    if (options->overwrite == BK_OVERWRITE_NEVER ||
        (options->overwrite == BK_OVERWRITE_IF_NEWER && !newer(entry, st)))
        return false;
    if (options->dry_run)
        return true;
    if (options->overwrite == BK_OVERWRITE_RENAME)
        *rc = bk_place_aside(&run->restore, dir, name, err);
    else if (unlinkat(dir, name, 0) != 0 && errno != ENOENT)
        *rc = bk_err_sys(err, errno, "remove what is in the way of the directory");
    return true;
}

/* One directory below an existing (or made) one.  *place stays NULL when the policy says no. */
static bk_rc_t make_dir(run_t *run, level_t *parent, level_t *level, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    const bk_restore_options_t *options = restore->options;
    char path[PATH_MAX];
    struct stat st;
    const char *slash = strrchr(level->path, '/');
    const char *name = slash != NULL ? slash + 1 : level->path;
    bool made = true;
    bk_rc_t rc = BK_OK;
    if (!target_path(run, level->path, path))
        return bk_err_sys(err, ENAMETOOLONG, "make directory");
    bool known = !(parent->place->made && options->dry_run);
    int dir = known ? level_fd(run, parent) : -1;
    if (known && dir < 0)
        return bk_err_sys(err, errno, "open the directory above it");
    if (known && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        made = !S_ISDIR(st.st_mode);
        if (bk_place_protected(restore, level->path, &st, false) && made)
            return BK_OK;
        if (made && !replace_by_dir(run, dir, name, &level->entry, &st, &rc, err))
            return BK_OK;
    }
    if (rc == BK_OK && made && !options->dry_run && mkdirat(dir, name, 0700) != 0)
        rc = bk_err_sys(err, errno, "make directory");
    if (rc != BK_OK)
        return rc;
    if (made)
        bk_restore_plan(restore, path, "mkdir", 0);
    restore->stats.dirs++;
    level->place = bk_place_new(path, made);
    if (level->place == NULL)
        return no_memory(err);
    level->place->other = parent->place->other;
    look_inside(run, level);
    return BK_OK;
}

/* All directories down to the top of the stack.  False: it can't be, which was reported. */
static bk_rc_t make_dirs(run_t *run, bool *there, bk_err_t *err)
{
    *there = true;
    for (size_t i = 0; i < run->count; i++) {
        level_t *level = &run->levels[i];
        bk_err_t why = {0};
        if (level->place != NULL)
            continue;
        bk_rc_t rc = make_dir(run, &run->levels[i - 1], level, &why);
        if (rc != BK_OK && bk_restore_is_fatal(rc)) {
            if (err != NULL)
                *err = why;
            return rc;
        }
        if (rc != BK_OK)
            fail_path(run, level->path, &why);
        else if (level->place == NULL)
            count_skipped(run, level->path, 0);
        if (level->place == NULL) {
            /* What is below can't come back either: leave this directory. */
            while (run->count > i)
                close_level(&run->levels[--run->count]);
            *there = false;
            return BK_OK;
        }
        if (i >= OPEN_LEVELS && run->levels[i - OPEN_LEVELS].fd >= 0) {
            close(run->levels[i - OPEN_LEVELS].fd);
            run->levels[i - OPEN_LEVELS].fd = -1;
        }
    }
    return BK_OK;
}

/* --- names --- */

/* What has the name, and what the policy says.  False: skip. */
static bool decide(run_t *run, const bk_entry_t *entry, const char *path, const struct stat *st,
                   bk_existing_t *existing, bool *compare)
{
    const bk_restore_options_t *options = run->restore.options;
    *compare = false;
    if (bk_place_protected(&run->restore, path, st, false))
        return false;
    switch (options->overwrite) {
    case BK_OVERWRITE_NEVER:
        return false;
    case BK_OVERWRITE_IF_NEWER:
        if (!newer(entry, st))
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

static bool same_special(int dir, const char *name, const bk_entry_t *entry, const struct stat *st)
{
    char target[BK_LINK_MAX + 1];
    if (entry->type == BK_ENTRY_FIFO)
        return S_ISFIFO(st->st_mode);
    if (!S_ISLNK(st->st_mode))
        return false;
    ssize_t len = readlinkat(dir, name, target, sizeof target);
    return len >= 0 && (size_t)len == entry->target_len &&
           memcmp(target, entry->target, (size_t)len) == 0;
}

/* A link or FIFO: made under a temporary name, complete with its metadata, then named. */
static bk_rc_t make_special(run_t *run, int dir, const bk_entry_t *entry, const char *name,
                            bk_existing_t existing, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char temporary[BK_TEMPORARY_MAX], target[BK_LINK_MAX + 1];
    bk_temporary_name(restore, temporary);
    int result;
    if (entry->type == BK_ENTRY_LINK) {
        memcpy(target, entry->target, entry->target_len);
        target[entry->target_len] = '\0';
        result = symlinkat(target, dir, temporary);
    } else {
        result = mkfifoat(dir, temporary, 0600);
    }
    if (result != 0)
        return bk_err_sys(err, errno, "make it");
    bk_rc_t rc = bk_place_metadata_at(restore, dir, temporary, entry, err);
    if (rc != BK_OK) {
        unlinkat(dir, temporary, 0);
        return rc;
    }
    return bk_place_publish(restore, dir, temporary, name, existing == BK_ASIDE, err);
}

static bk_rc_t do_special(run_t *run, level_t *level, const bk_entry_t *entry, const char *name,
                          const char *path, const struct stat *st, bk_existing_t existing,
                          bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char target[PATH_MAX];
    bool dry = restore->options->dry_run;
    bk_rc_t rc = BK_OK;
    const char *action = existing == BK_ASIDE     ? "rename"
                         : existing == BK_REPLACE ? "replace"
                                                  : "create";
    if (st != NULL && same_special(level->fd, name, entry, st)) {
        action = "unchanged";
        if (!dry)
            rc = bk_place_metadata_at(restore, level->fd, name, entry, err);
    } else if (!dry) {
        rc = make_special(run, level_fd(run, level), entry, name, existing, err);
    } else if (existing == BK_ASIDE) {
        restore->stats.renamed++;
    }
    if (rc != BK_OK)
        return rc;
    restore->stats.links += entry->type == BK_ENTRY_LINK;
    restore->stats.others += entry->type == BK_ENTRY_FIFO;
    if (target_path(run, path, target))
        bk_restore_plan(restore, target, action, 0);
    return BK_OK;
}

/* A selected name that is no directory. */
static bk_rc_t do_name(run_t *run, const bk_entry_t *entry, const char *name, const char *path,
                       bk_err_t *err)
{
    level_t *level = &run->levels[run->count - 1];
    bk_existing_t existing = BK_NOT_THERE;
    struct stat st;
    bool compare = false, there = false;
    if (!level->place->made) {
        if (level_fd(run, level) < 0)
            return bk_err_sys(err, errno, "open its directory");
        there = fstatat(level->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    }
    if (entry->type == BK_ENTRY_FILE) {
        run->restore.stats.files++;
        run->restore.stats.bytes += entry->size;
    }
    if (there && !decide(run, entry, path, &st, &existing, &compare)) {
        count_skipped(run, path, entry->size);
        return BK_OK;
    }
    if (entry->type == BK_ENTRY_FILE)
        return from_window(run,
                           bk_window_add(run->window, level->place, entry, existing, compare, err));
    return do_special(run, level, entry, name, path, there ? &st : NULL, existing, err);
}

/* Names of the target that sort before the entry (all, when NULL) are not in the backup. */
static bk_rc_t take_extras(run_t *run, level_t *level, const bk_entry_t *entry, const char *name,
                           bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    while (level->remove_extra && level->extra_at < level->extra.count && rc == BK_OK) {
        const char *extra = bk_listing_name(&level->extra, level->extra_at);
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
static uint64_t bytes_there(run_t *run, const char *path)
{
    char target[PATH_MAX];
    struct stat st;
    if (!target_path(run, path, target))
        return 0;
    int fd = bk_root_open_raw(run->restore.root, target, O_PATH, 0);
    uint64_t bytes =
        fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
    if (fd >= 0)
        close(fd);
    return bytes;
}

/* For the first walk: what comes, and how much room it takes. */
static void count_entry(run_t *run, const bk_entry_t *entry, const char *path)
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

static bk_rc_t enter_dir(run_t *run, const bk_entry_t *entry, const char *path, bk_err_t *err)
{
    bool whole, taken, there = true;
    if (!dir_leads(run, &run->levels[run->count - 1], path, &whole, &taken))
        return BK_OK;
    bk_rc_t rc = open_level(run, &entry->child, entry, path, err);
    if (rc != BK_OK)
        return rc;
    level_t *level = &run->levels[run->count - 1];
    level->whole = whole;
    level->taken = taken;
    if (!run->counting && is_wanted(run, level))
        rc = make_dirs(run, &there, err);
    return rc;
}

static bk_rc_t do_entry(run_t *run, const bk_entry_t *entry, bk_err_t *err)
{
    level_t *level = &run->levels[run->count - 1];
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
    if (!file_selected(run, level, path))
        return BK_OK;
    if (run->counting) {
        count_entry(run, entry, path);
        return BK_OK;
    }
    rc = make_dirs(run, &there, err);
    if (rc != BK_OK || !there)
        return rc;
    return do_name(run, entry, name, path, err);
}

/*
 * The directory's metadata belong to the backup when we made it, or when it was selected as such.
 */
static bk_rc_t leave_level(run_t *run, bk_err_t *err)
{
    level_t *level = &run->levels[run->count - 1];
    bk_overwrite_t overwrite = run->restore.options->overwrite;
    bk_rc_t rc = BK_OK;
    if (!run->counting && level->place != NULL) {
        rc = take_extras(run, level, NULL, NULL, err);
        bool ours =
            level->place->made || (is_wanted(run, level) && overwrite != BK_OVERWRITE_NEVER &&
                                   overwrite != BK_OVERWRITE_IF_NEWER);
        if (rc == BK_OK && level->text != NULL && ours)
            rc = from_window(run, bk_window_add_dir(run->window, level->place, &level->entry, err));
    }
    close_level(level);
    run->count--;
    return rc;
}

static bk_rc_t walk_tree(run_t *run, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    bool made = false;
    bk_rc_t rc = BK_OK;
    if (!run->counting)
        rc = make_base(run, &made, err);
    if (rc == BK_OK)
        rc = open_level(run, &options->tree->root, NULL, "", err);
    if (rc != BK_OK)
        return rc;
    level_t *root = &run->levels[0];
    root->whole = path_selected(options, "");
    if (!run->counting) {
        char path[PATH_MAX];
        target_path(run, "", path);
        root->place = bk_place_new(path, made);
        if (root->place == NULL)
            return no_memory(err);
        look_inside(run, root);
    }
    while (rc == BK_OK && run->count > 0) {
        bk_err_t why = {0};
        const bk_entry_t *entry = NULL;
        size_t before = run->count;
        level_t *level = &run->levels[before - 1];
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
            fail_path(run, path, &why);
        }
        if (whole_dir) {
            level->remove_extra = false;
            close_level(level);
            run->count--;
        }
        rc = BK_OK;
    }
    return rc;
}

/* --- the whole --- */

static bk_rc_t count_all(run_t *run, bool measure, bk_err_t *err)
{
    run->counting = true;
    run->measure = measure;
    run->need = 0;
    bk_rc_t rc = walk_tree(run, err);
    run->counting = run->measure = false;
    return rc;
}

static bk_rc_t check_space(run_t *run, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    const char *root = bk_root_path(run->restore.root);
    uint64_t available = 0;
    if (options->dry_run || run->need == 0)
        return BK_OK;
    bk_rc_t rc = bk_free_space(root, &available, err);
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
    if (owners > 0)
        bk_ctl_note(restore->ctl,
                    "the owner of %llu files could not be set; they belong to the user that "
                    "restored them",
                    (unsigned long long)owners);
    if (attrs > 0)
        bk_ctl_note(restore->ctl,
                    "%llu extended attributes or access control lists could not be set",
                    (unsigned long long)attrs);
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

static bk_rc_t set_up(run_t *run, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    pthread_mutex_init(&restore->lock, NULL);
    job_name(restore);
    restore->names = bk_names_new();
    run->window = bk_window_new(restore);
    return restore->names != NULL && run->window != NULL ? BK_OK : no_memory(err);
}

static void tear_down(run_t *run)
{
    while (run->count > 0)
        close_level(&run->levels[--run->count]);
    free(run->levels);
    bk_window_free(run->window);
    for (size_t i = 0; i < run->restore.reader_count; i++)
        bk_reader_free(run->restore.readers[i]);
    bk_names_free(run->restore.names);
    pthread_mutex_destroy(&run->restore.lock);
}

bk_rc_t bk_files_restore(bk_repo_t *repo, const bk_restore_options_t *options, bk_team_t *team,
                         bk_restore_stats_t *stats, json_t *plan, json_t *failed, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    run_t run = {.restore = {.repo = repo,
                             .options = options,
                             .team = team,
                             .ctl = ctl,
                             .root = options->target,
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
    if (rc == BK_OK && !options->dry_run && syncfs(bk_root_fd(options->target)) != 0)
        rc = bk_err_sys(err, errno, "flush %s", bk_root_path(options->target));
    note_refusals(&run.restore);
    *stats = run.restore.stats;
    tear_down(&run);
    return rc;
}
