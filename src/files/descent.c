/*
 * files/descent.c: the directories of a restore: which are selected, what is there already, making
 * what is missing.  A directory that only leads to something selected is made when that comes.
 */
#include "files/descent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "files/walk.h"

#define STALE       3600u /* seconds after which a temporary has no owner any more */
#define OPEN_LEVELS 48u   /* directories on the way down that keep their descriptor */

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

bool bk_descent_path(const bk_restore_options_t *options, const char *path)
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

bool bk_descent_selects(const bk_descent_t *run, const bk_level_t *level, const char *path)
{
    const bk_restore_options_t *options = run->restore.options;
    if (!level->whole && !bk_descent_path(options, path))
        return false;
    return !has_patterns(options) || level->taken ||
           bk_patterns_match(options->patterns, path, strlen(path), false);
}

bool bk_descent_leads(const bk_descent_t *run, const bk_level_t *level, const char *path,
                      bool *whole, bool *taken)
{
    const bk_restore_options_t *options = run->restore.options;
    size_t len = strlen(path);
    *whole = level->whole || bk_descent_path(options, path);
    *taken = level->taken ||
             (has_patterns(options) && bk_patterns_take_tree(options->patterns, path, len));
    if (!*whole && !path_leads(options, path))
        return false;
    return !has_patterns(options) || *taken ||
           bk_patterns_may_match_below(options->patterns, path, len);
}

/* Nothing limits what comes out of this directory: it is restored as a directory, too. */
bool bk_descent_wants(const bk_descent_t *run, const bk_level_t *level)
{
    return level->whole && (!has_patterns(run->restore.options) || level->taken);
}

/* --- levels --- */

static void drop_peek(bk_level_t *level)
{
    if (level->peek != NULL)
        bk_listing_free(&level->peek->names);
    free(level->peek);
    level->peek = NULL;
}

void bk_level_close(bk_level_t *level)
{
    bk_tree_iter_close(level->iter);
    bk_place_release(level->place);
    drop_peek(level);
    bk_at_close(&level->at);
    free(level->text);
    free(level->path);
}

static bk_rc_t no_memory(bk_err_t *err)
{
    return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
}

/* entry: of the directory, NULL for the tree's root. */
bk_rc_t bk_level_open(bk_descent_t *run, const bk_id_t *node, const bk_entry_t *entry,
                      const char *path, bk_err_t *err)
{
    if (run->count == run->cap) {
        size_t cap = run->cap > 0 ? 2 * run->cap : 32;
        bk_level_t *more = realloc(run->levels, cap * sizeof *more);
        if (more == NULL)
            return no_memory(err);
        run->levels = more;
        run->cap = cap;
    }
    bk_level_t level = {.path = bk_strdup(path)};
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
        bk_level_close(&level);
        return rc;
    }
    run->levels[run->count++] = level;
    return BK_OK;
}

/* --- the target's directories --- */

/* Path of a level below the root: the subdirectory and the tree's path. */
bool bk_descent_target(const bk_descent_t *run, const char *path, char *out)
{
    const char *sub = run->restore.options->subdir;
    size_t len = sub != NULL ? trim(&sub) : 0;
    return bk_fmt(out, PATH_MAX, "%.*s%s%s", (int)len, len > 0 ? sub : "",
                  len > 0 && path[0] != '\0' ? "/" : "", path);
}

/* The level's directory in the target.  0 or an errno. */
int bk_level_enter(bk_descent_t *run, bk_level_t *level)
{
    if (level->at.road != NULL)
        return 0;
    int errnum =
        bk_at_open(&run->restore.road, level->place->path, level->place->other, &level->at);
    if (errnum != 0)
        level->at.road = NULL;
    return errnum;
}

static void leave_dir(bk_level_t *level)
{
    bk_at_close(&level->at);
    level->at.road = NULL;
}

bool bk_descent_newer(const bk_entry_t *entry, const struct stat *st)
{
    return entry->mtime > st->st_mtim.tv_sec * BK_SEC + st->st_mtim.tv_nsec;
}

void bk_descent_skip(bk_descent_t *run, const char *path, uint64_t size)
{
    char target[PATH_MAX];
    if (run->restore.ctl != NULL) {
        atomic_fetch_add_explicit(&run->restore.ctl->files_done, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&run->restore.ctl->bytes_done, size, memory_order_relaxed);
    }
    pthread_mutex_lock(&run->restore.lock);
    run->restore.stats.skipped++;
    pthread_mutex_unlock(&run->restore.lock);
    if (bk_descent_target(run, path, target))
        bk_restore_plan(&run->restore, target, "skip", size);
}

void bk_descent_fail(bk_descent_t *run, const char *path, const bk_err_t *why)
{
    char target[PATH_MAX];
    if (!bk_descent_target(run, path, target))
        bk_strcpy(target, sizeof target, path);
    bk_restore_fail(&run->restore, target, why);
}

/* Make the root of the tree in the target, with the directories that lead there. */
bk_rc_t bk_descent_base(bk_descent_t *run, bool *made, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char path[PATH_MAX];
    bk_rc_t rc = BK_OK;
    int fd;
    *made = false;
    if (!bk_descent_target(run, "", path))
        return bk_err_set(err, BK_INVALID, "restore into %s: the path is too long",
                          restore->options->subdir);
    rc = bk_road_make(&restore->road, path, restore->options->dry_run, made, err);
    if (rc != BK_OK || *made)
        return rc;
    bk_at_t at;
    int errnum = bk_at_open(&restore->road, path, false, &at);
    if (errnum == 0 && (errnum = bk_at_read(&at, "", O_DIRECTORY, &fd)) == 0)
        close(fd);
    bk_at_close(&at);
    if (errnum == 0)
        return BK_OK;
    rc = bk_at_error(&restore->road, errnum, "open directory", err);
    bk_err_wrap(err, "restore into %s/%s", bk_root_path(restore->road.root), path);
    return rc;
}

/*
 * A temporary of a restore that was killed.  While one that is alone in this target runs, every
 * other's is; else one that nobody has touched for long.
 */
static void sweep(bk_descent_t *run, const bk_at_t *at, const char *name, unsigned char kind)
{
    struct stat st;
    if ((kind != DT_REG && kind != DT_LNK && kind != DT_FIFO && kind != DT_UNKNOWN) ||
        strncmp(name, BK_FILES_TEMPORARY, sizeof BK_FILES_TEMPORARY - 1) != 0 ||
        bk_at_stat(at, name, &st) != 0 || S_ISDIR(st.st_mode))
        return;
    if (run->restore.options->alone || st.st_ctim.tv_sec + (int64_t)STALE < bk_now() / BK_SEC)
        bk_at_unlink(at, name, 0);
}

/* Another file system than the root's, of a directory that is open with own rights. */
static bool on_other(bk_descent_t *run, int fd)
{
    struct stat st, root;
    return fstat(fd, &st) == 0 && fstat(bk_root_fd(run->restore.road.root), &root) == 0 &&
           st.st_dev != root.st_dev;
}

/* An existing directory: what is in it, also that the backup does not have? */
bk_rc_t bk_level_look(bk_descent_t *run, bk_level_t *level, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    int fd = -1;
    if (level->place->made)
        return BK_OK;
    int errnum = bk_level_enter(run, level);
    if (errnum == 0)
        errnum = bk_at_read(&level->at, "", O_DIRECTORY, &fd);
    if (errnum == 0 && !bk_at_helped(&level->at))
        level->place->other = on_other(run, fd);
    if (errnum == 0)
        level->place->inherits = fgetxattr(fd, "system.posix_acl_default", NULL, 0) > 0;
    if (errnum == 0 && (level->peek = calloc(1, sizeof *level->peek)) == NULL)
        errnum = ENOMEM;
    if (errnum == 0)
        errnum = bk_listing_read(fd, &level->peek->names);
    if (fd >= 0)
        close(fd);
    /* With own rights names are looked at one by one, so files come back all the same. */
    if (errnum != 0 && run->restore.road.helper != NULL)
        return bk_at_error(&run->restore.road, errnum, "list the directory", err);
    for (size_t i = 0; errnum == 0 && i < level->peek->names.count && !options->dry_run; i++)
        sweep(run, &level->at, bk_listing_name(&level->peek->names, i),
              bk_listing_kind(&level->peek->names, i));
    level->remove_extra = errnum == 0 && options->delete_extra && bk_descent_wants(run, level) &&
                          !level->place->other && !(level->entry.flags & BK_ENTRY_DAMAGED) &&
                          !bk_at_is_cache(&level->at);
    if (!level->remove_extra && !bk_at_helped(&level->at))
        drop_peek(level);
    return BK_OK;
}

/* What to do with something that is no directory where one belongs.  False: leave it. */
static bool replace_by_dir(bk_descent_t *run, const bk_at_t *at, const char *name,
                           const bk_entry_t *entry, const struct stat *st, bk_rc_t *rc,
                           bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    int errnum;
    if (options->overwrite == BK_OVERWRITE_NEVER ||
        (options->overwrite == BK_OVERWRITE_IF_NEWER && !bk_descent_newer(entry, st)))
        return false;
    if (options->dry_run)
        return true;
    if (options->overwrite == BK_OVERWRITE_RENAME)
        *rc = bk_place_aside(&run->restore, at, name, err);
    else if ((errnum = bk_at_unlink(at, name, 0)) != 0 && errnum != ENOENT)
        *rc = bk_at_error(at->road, errnum, "remove what is in the way of the directory", err);
    return true;
}

/* Does a name of an existing directory lead to something, and to what?  0, ENOENT, another errno.
 */
int bk_level_stat(bk_descent_t *run, bk_level_t *level, const char *name, struct stat *st)
{
    if (level->place->made)
        return ENOENT;
    int errnum = bk_level_enter(run, level);
    if (errnum != 0)
        return errnum;
    return level->peek != NULL ? bk_peek_stat(level->peek, &level->at, name, st)
                               : bk_at_stat(&level->at, name, st);
}

/* A mount that the helper does not cross: with own rights, where those do. */
static bool is_mount(bk_descent_t *run, const char *path)
{
    int fd = bk_root_open_raw(run->restore.road.root, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/*
 * What is where a directory belongs.  *made: it has to be made.  False: leave it.  *other: it is
 * there and another file system.
 */
static bool clear_way(bk_descent_t *run, bk_level_t *parent, const bk_level_t *level,
                      const char *name, const char *path, bool *made, bool *other, bk_rc_t *rc,
                      bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    struct stat st;
    int errnum = bk_level_stat(run, parent, name, &st);
    if (errnum == EXDEV && is_mount(run, path)) {
        *made = false;
        *other = true;
        return true;
    }
    if (errnum == BK_AT_GONE || errnum == EXDEV)
        *rc = bk_at_error(&restore->road, errnum, "make directory", err);
    if (errnum != 0)
        return true;
    *made = !S_ISDIR(st.st_mode);
    return !*made || (!bk_place_protected(restore, level->path, &st, false) &&
                      replace_by_dir(run, &parent->at, name, &level->entry, &st, rc, err));
}

/* One directory below an existing (or made) one.  *place stays NULL when the policy says no. */
static bk_rc_t make_dir(bk_descent_t *run, bk_level_t *parent, bk_level_t *level, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    const bk_restore_options_t *options = restore->options;
    char path[PATH_MAX];
    const char *slash = strrchr(level->path, '/');
    const char *name = slash != NULL ? slash + 1 : level->path;
    bool made = true, other = parent->place->other;
    bk_rc_t rc = BK_OK;
    if (!bk_descent_target(run, level->path, path))
        return bk_err_sys(err, ENAMETOOLONG, "make directory");
    if (!(parent->place->made && options->dry_run)) {
        int errnum = bk_level_enter(run, parent);
        if (errnum != 0)
            return bk_at_error(&restore->road, errnum, "open the directory above it", err);
        if (!clear_way(run, parent, level, name, path, &made, &other, &rc, err))
            return BK_OK;
    }
    if (rc == BK_OK && made && !options->dry_run) {
        int errnum = bk_place_mkdir(restore, &parent->at, name, &level->entry);
        if (errnum != 0)
            rc = bk_at_error(&restore->road, errnum, "make directory", err);
    }
    if (rc != BK_OK)
        return rc;
    level->place = bk_place_new(path, made);
    if (level->place == NULL)
        return no_memory(err);
    level->place->other = other;
    level->place->inherits = parent->place->inherits;
    level->place->fresh = made && !parent->place->inherits;
    rc = bk_level_look(run, level, err);
    if (rc != BK_OK) {
        leave_dir(level);
        bk_place_release(level->place);
        level->place = NULL;
        return rc;
    }
    if (made)
        bk_restore_plan(restore, path, "mkdir", 0);
    restore->stats.dirs++;
    return BK_OK;
}

/* All directories down to the top of the stack.  False: it can't be, which was reported. */
bk_rc_t bk_descent_dirs(bk_descent_t *run, bool *there, bk_err_t *err)
{
    *there = true;
    for (size_t i = 0; i < run->count; i++) {
        bk_level_t *level = &run->levels[i];
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
            bk_descent_fail(run, level->path, &why);
        else if (level->place == NULL)
            bk_descent_skip(run, level->path, 0);
        if (level->place == NULL) {
            /* What is below can't come back either: leave this directory. */
            while (run->count > i)
                bk_level_close(&run->levels[--run->count]);
            *there = false;
            return BK_OK;
        }
        if (i >= OPEN_LEVELS)
            leave_dir(&run->levels[i - OPEN_LEVELS]);
    }
    return BK_OK;
}
