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
    char *path;      /* below the tree's root */
    bool whole;      /* all below is selected by paths (or nothing limits them) */
    bool taken;      /* a pattern for directories took all below */
    bk_at_t at;      /* of the place; .road NULL: not open, then it is opened when needed */
    bk_peek_t *peek; /* names in the target: for what the backup has not, and to look at */
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

static void drop_peek(level_t *level)
{
    if (level->peek != NULL)
        bk_listing_free(&level->peek->names);
    free(level->peek);
    level->peek = NULL;
}

static void close_level(level_t *level)
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
    level_t level = {.path = bk_strdup(path)};
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

/* The level's directory in the target.  0 or an errno. */
static int enter_level(run_t *run, level_t *level)
{
    if (level->at.road != NULL)
        return 0;
    int errnum =
        bk_at_open(&run->restore.road, level->place->path, level->place->other, &level->at);
    if (errnum != 0)
        level->at.road = NULL;
    return errnum;
}

static void leave_dir(level_t *level)
{
    bk_at_close(&level->at);
    level->at.road = NULL;
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

/* One directory on the way to the tree's root. */
static bk_rc_t make_one(run_t *run, const char *above, const char *name, bool *made, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    struct stat st;
    bk_at_t at;
    int errnum = bk_at_open(&restore->road, above, false, &at);
    if (errnum == 0) {
        int found = bk_at_stat(&at, name, &st);
        *made = found != 0;
        if (found == BK_AT_GONE || found == EXDEV)
            errnum = found;
        else if (*made && !restore->options->dry_run)
            errnum = bk_at_mkdir(&at, name);
        if (errnum == 0 && *made && !restore->options->dry_run)
            errnum = bk_at_like_above(&at, name);
    } else {
        *made = true;
    }
    bk_at_close(&at);
    if (errnum == 0 || (restore->options->dry_run && errnum != BK_AT_GONE))
        return BK_OK;
    bk_rc_t rc = bk_at_error(&restore->road, errnum, name, err);
    bk_err_wrap(err, "make directory %s/%s", bk_root_path(restore->road.root), above);
    return rc;
}

/* Make the root of the tree in the target, with the directories that lead there. */
static bk_rc_t make_base(run_t *run, bool *made, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    char path[PATH_MAX];
    bk_rc_t rc = BK_OK;
    int fd;
    *made = false;
    if (!target_path(run, "", path))
        return bk_err_set(err, BK_INVALID, "restore into %s: the path is too long",
                          restore->options->subdir);
    for (char *p = path; *p != '\0' && rc == BK_OK;) {
        char *slash = strchr(p, '/');
        if (slash != NULL)
            *slash = '\0';
        /* path is cut behind this name, and for a moment before it. */
        char *cut = p > path ? p - 1 : NULL;
        if (cut != NULL)
            *cut = '\0';
        rc = make_one(run, cut != NULL ? path : "", p, made, err);
        if (cut != NULL)
            *cut = '/';
        if (slash == NULL)
            break;
        *slash = '/';
        p = slash + 1;
    }
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
static void sweep(run_t *run, const bk_at_t *at, const char *name, unsigned char kind)
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
static bool on_other(run_t *run, int fd)
{
    struct stat st, root;
    return fstat(fd, &st) == 0 && fstat(bk_root_fd(run->restore.road.root), &root) == 0 &&
           st.st_dev != root.st_dev;
}

/* An existing directory: what is in it, also that the backup does not have? */
static bk_rc_t look_inside(run_t *run, level_t *level, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    int fd = -1;
    if (level->place->made)
        return BK_OK;
    int errnum = enter_level(run, level);
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
    level->remove_extra = errnum == 0 && options->delete_extra && is_wanted(run, level) &&
                          !level->place->other && !(level->entry.flags & BK_ENTRY_DAMAGED) &&
                          !bk_at_is_cache(&level->at);
    if (!level->remove_extra && !bk_at_helped(&level->at))
        drop_peek(level);
    return BK_OK;
}

/* What to do with something that is no directory where one belongs.  False: leave it. */
static bool replace_by_dir(run_t *run, const bk_at_t *at, const char *name, const bk_entry_t *entry,
                           const struct stat *st, bk_rc_t *rc, bk_err_t *err)
{
    const bk_restore_options_t *options = run->restore.options;
    int errnum;
    if (options->overwrite == BK_OVERWRITE_NEVER ||
        (options->overwrite == BK_OVERWRITE_IF_NEWER && !newer(entry, st)))
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
static int look_at(run_t *run, level_t *level, const char *name, struct stat *st)
{
    if (level->place->made)
        return ENOENT;
    int errnum = enter_level(run, level);
    if (errnum != 0)
        return errnum;
    return level->peek != NULL ? bk_peek_stat(level->peek, &level->at, name, st)
                               : bk_at_stat(&level->at, name, st);
}

/* A mount that the helper does not cross: with own rights, where those do. */
static bool is_mount(run_t *run, const char *path)
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
static bool clear_way(run_t *run, level_t *parent, const level_t *level, const char *name,
                      const char *path, bool *made, bool *other, bk_rc_t *rc, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    struct stat st;
    int errnum = look_at(run, parent, name, &st);
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
static bk_rc_t make_dir(run_t *run, level_t *parent, level_t *level, bk_err_t *err)
{
    bk_restore_t *restore = &run->restore;
    const bk_restore_options_t *options = restore->options;
    char path[PATH_MAX];
    const char *slash = strrchr(level->path, '/');
    const char *name = slash != NULL ? slash + 1 : level->path;
    bool made = true, other = parent->place->other;
    bk_rc_t rc = BK_OK;
    if (!target_path(run, level->path, path))
        return bk_err_sys(err, ENAMETOOLONG, "make directory");
    if (!(parent->place->made && options->dry_run)) {
        int errnum = enter_level(run, parent);
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
    rc = look_inside(run, level, err);
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
        if (i >= OPEN_LEVELS)
            leave_dir(&run->levels[i - OPEN_LEVELS]);
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

static bool same_special(const bk_at_t *at, const char *name, const bk_entry_t *entry,
                         const struct stat *st)
{
    if (entry->type == BK_ENTRY_FIFO)
        return S_ISFIFO(st->st_mode);
    return S_ISLNK(st->st_mode) && bk_at_leads_to(at, name, entry->target, entry->target_len);
}

/* A link or FIFO: made under a temporary name, complete with its metadata, then named. */
static bk_rc_t make_special(run_t *run, const bk_at_t *at, const bk_entry_t *entry,
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
static bk_rc_t keep_special(run_t *run, const bk_at_t *at, const bk_entry_t *entry,
                            const char *name, bk_err_t *err)
{
    bk_rc_t rc = bk_place_metadata_at(&run->restore, at, name, entry, false, err);
    if (rc != BK_EXISTS)
        return rc;
    bk_err_clear(err);
    return make_special(run, at, entry, name, BK_REPLACE, err);
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
    if (st != NULL && same_special(&level->at, name, entry, st)) {
        action = "unchanged";
        if (!dry)
            rc = keep_special(run, &level->at, entry, name, err);
    } else if (!dry) {
        int errnum = enter_level(run, level);
        rc = errnum != 0 ? bk_at_error(&restore->road, errnum, "open its directory", err)
                         : make_special(run, &level->at, entry, name, existing, err);
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
    bool compare = false;
    int found = level->place->made ? 0 : enter_level(run, level);
    if (found != 0)
        return bk_at_error(&run->restore.road, found, "open its directory", err);
    found = look_at(run, level, name, &st);
    if (found == BK_AT_GONE || found == EXDEV)
        return bk_at_error(&run->restore.road, found, "look at it", err);
    if (entry->type == BK_ENTRY_FILE) {
        run->restore.stats.files++;
        run->restore.stats.bytes += entry->size;
    }
    if (found == 0 && !decide(run, entry, path, &st, &existing, &compare)) {
        count_skipped(run, path, entry->size);
        return BK_OK;
    }
    if (entry->type == BK_ENTRY_FILE)
        return from_window(run,
                           bk_window_add(run->window, level->place, entry, existing, compare, err));
    return do_special(run, level, entry, name, path, found == 0 ? &st : NULL, existing, err);
}

/* Names of the target that sort before the entry (all, when NULL) are not in the backup. */
static bk_rc_t take_extras(run_t *run, level_t *level, const bk_entry_t *entry, const char *name,
                           bk_err_t *err)
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
static uint64_t bytes_there(run_t *run, const char *path)
{
    char target[PATH_MAX];
    struct stat st;
    bk_at_t at;
    if (!target_path(run, path, target))
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
        root->place->inherits = true; /* who knows what is above */
        if ((rc = look_inside(run, root, err)) != BK_OK)
            return rc;
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

static bk_rc_t set_up(run_t *run, bk_err_t *err)
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

static void tear_down(run_t *run)
{
    while (run->count > 0)
        close_level(&run->levels[--run->count]);
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
    run_t run = {.restore = {.repo = repo,
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
