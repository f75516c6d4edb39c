/*
 * files/placing.c: one name of the target at a time: giving it to a finished temporary, moving it
 * aside, removing it with what is below.  Touches the target through placeat.h only.
 */
#include "files/placing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "files/listing.h"
#include "files/walk.h"

#define LISTED_MAX  1000u
#define ASIDE_TRIES 100u
#define DEPTH_MAX   100u /* directories below one that is removed: each holds a descriptor */

/* --- directories --- */

bk_place_t *bk_place_new(const char *path, bool made)
{
    bk_place_t *place = calloc(1, sizeof *place);
    if (place == NULL || (place->path = bk_strdup(path)) == NULL) {
        free(place);
        return NULL;
    }
    place->users = 1;
    place->made = made;
    return place;
}

void bk_place_release(bk_place_t *place)
{
    if (place == NULL || --place->users > 0)
        return;
    free(place->path);
    free(place);
}

bool bk_place_path(const bk_place_t *place, const char *name, char *out)
{
    const char *slash = place->path[0] != '\0' ? "/" : "";
    return bk_fmt(out, PATH_MAX, "%s%s%s", place->path, slash, name);
}

/* --- reporting --- */

static json_t *absolute_name(const bk_restore_t *restore, const char *path)
{
    char text[2 * PATH_MAX];
    bool root = strcmp(bk_root_path(restore->road.root), "/") == 0;
    bk_fmt(text, sizeof text, "%s%s%s", root ? "" : bk_root_path(restore->road.root),
           path[0] != '\0' ? "/" : "", path);
    return bk_json_name(text, strlen(text));
}

void bk_restore_plan(bk_restore_t *restore, const char *path, const char *action, uint64_t size)
{
    if (restore->plan == NULL)
        return;
    pthread_mutex_lock(&restore->lock);
    if (json_array_size(restore->plan) < LISTED_MAX) {
        json_t *item = json_object();
        json_object_set_new(item, "path", absolute_name(restore, path));
        json_object_set_new(item, "action", json_string(action));
        json_object_set_new(item, "size", json_integer((json_int_t)size));
        json_array_append_new(restore->plan, item);
    }
    pthread_mutex_unlock(&restore->lock);
}

void bk_restore_fail(bk_restore_t *restore, const char *path, const bk_err_t *why)
{
    pthread_mutex_lock(&restore->lock);
    restore->stats.failed++;
    if (restore->failed != NULL && json_array_size(restore->failed) < LISTED_MAX) {
        json_t *item = json_object();
        json_object_set_new(item, "path", absolute_name(restore, path));
        json_object_set_new(item, "error", json_string(why->text));
        json_array_append_new(restore->failed, item);
    }
    pthread_mutex_unlock(&restore->lock);
}

bool bk_restore_is_fatal(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED || rc == BK_NO_SPACE || rc == BK_NO_MEMORY ||
           rc == BK_UNAVAILABLE;
}

void bk_restore_current(bk_restore_t *restore, const char *path)
{
    char text[BK_CTL_CURRENT];
    int64_t now = bk_mono();
    int64_t due = atomic_load_explicit(&restore->current_due, memory_order_relaxed);
    if (restore->ctl == NULL || now < due ||
        !atomic_compare_exchange_strong(&restore->current_due, &due, now + 100 * BK_MS))
        return;
    bk_name_escape(text, sizeof text, path, strlen(path));
    bk_ctl_current(restore->ctl, text);
}

bk_reader_t *bk_restore_reader(bk_restore_t *restore)
{
    bk_reader_t *reader = NULL;
    pthread_mutex_lock(&restore->lock);
    if (restore->reader_count > 0)
        reader = restore->readers[--restore->reader_count];
    pthread_mutex_unlock(&restore->lock);
    return reader != NULL ? reader : bk_reader_new(NULL, restore->ctl);
}

void bk_restore_reader_back(bk_restore_t *restore, bk_reader_t *reader)
{
    if (reader == NULL)
        return;
    pthread_mutex_lock(&restore->lock);
    bool kept = restore->reader_count < sizeof restore->readers / sizeof restore->readers[0];
    if (kept)
        restore->readers[restore->reader_count++] = reader;
    pthread_mutex_unlock(&restore->lock);
    if (!kept)
        bk_reader_free(reader);
}

void bk_temporary_name(bk_restore_t *restore, char out[BK_TEMPORARY_MAX])
{
    bk_fmt(out, BK_TEMPORARY_MAX, BK_FILES_TEMPORARY "%s-%s-%llu", restore->job, restore->run,
           (unsigned long long)atomic_fetch_add(&restore->number, 1));
}

/* --- giving and taking names --- */

static void aside_name(const bk_restore_t *restore, const char *name, unsigned tries, char *out)
{
    char suffix[80];
    if (tries == 0)
        bk_fmt(suffix, sizeof suffix, ".before-%s", restore->job);
    else
        bk_fmt(suffix, sizeof suffix, ".before-%s-%u", restore->job, tries + 1);
    bk_fmt(out, 256, "%.*s%s", (int)(255 - strlen(suffix)), name, suffix);
}

static void count_aside(bk_restore_t *restore)
{
    pthread_mutex_lock(&restore->lock);
    restore->stats.renamed++;
    pthread_mutex_unlock(&restore->lock);
}

bk_rc_t bk_place_aside(bk_restore_t *restore, const bk_at_t *at, const char *name, bk_err_t *err)
{
    int errnum = EEXIST;
    for (unsigned tries = 0; tries < ASIDE_TRIES; tries++) {
        char aside[256];
        struct stat st;
        aside_name(restore, name, tries, aside);
        errnum = bk_at_rename(at, name, aside, RENAME_NOREPLACE);
        /* A file system without NOREPLACE: a look has to do. */
        if (errnum == EINVAL || errnum == ENOSYS)
            errnum =
                bk_at_stat(at, aside, &st) == ENOENT ? bk_at_rename(at, name, aside, 0) : EEXIST;
        if (errnum == 0)
            count_aside(restore);
        if (errnum == 0 || errnum == ENOENT)
            return BK_OK;
        if (errnum != EEXIST && errnum != ENOTEMPTY)
            break;
    }
    return bk_at_error(at->road, errnum, "move the existing one aside", err);
}

/* A second name for the existing file, so that there is no moment without one. */
static bool link_aside(bk_restore_t *restore, const bk_at_t *at, const char *name)
{
    for (unsigned tries = 0; tries < ASIDE_TRIES; tries++) {
        char aside[256];
        aside_name(restore, name, tries, aside);
        int errnum = bk_at_link(at, name, aside);
        if (errnum == 0) {
            count_aside(restore);
            return true;
        }
        if (errnum != EEXIST)
            return errnum == ENOENT;
    }
    return false;
}

bk_rc_t bk_place_publish(bk_restore_t *restore, const bk_at_t *at, const char *temporary,
                         const char *name, bool aside, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (aside && !link_aside(restore, at, name))
        rc = bk_place_aside(restore, at, name, err);
    if (rc == BK_OK) {
        int errnum = bk_at_rename(at, temporary, name, 0);
        if (errnum != 0)
            rc = bk_at_error(at->road, errnum, "give it its name", err);
    }
    if (rc != BK_OK)
        bk_at_unlink(at, temporary, 0);
    return rc;
}

/* Would a backup with these match patterns hold it? */
static bool would_match(const bk_patterns_t *match, const char *path, bool directory)
{
    size_t len = strlen(path);
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/'))
        if (bk_patterns_take_tree(match, path, (size_t)(slash - path)))
            return true;
    if (directory)
        return bk_patterns_take_tree(match, path, len) ||
               bk_patterns_may_match_below(match, path, len);
    return bk_patterns_match(match, path, len, false);
}

bool bk_place_protected(const bk_restore_t *restore, const char *path, const struct stat *st,
                        bool removing)
{
    const bk_restore_options_t *options = restore->options;
    bool directory = S_ISDIR(st->st_mode);
    for (size_t i = 0; i < options->skip_count; i++)
        if (options->skip[i].inode == st->st_ino && options->skip[i].device == st->st_dev)
            return true;
    if (S_ISREG(st->st_mode) && bk_attached_has(st))
        return true;
    if (options->keep != NULL && bk_patterns_match(options->keep, path, strlen(path), directory))
        return true;
    if (!removing)
        return false;
    if (options->keep_match != NULL && options->keep_match->count > 0 &&
        !would_match(options->keep_match, path, directory))
        return true;
    return S_ISREG(st->st_mode) && options->keep_larger > 0 &&
           (uint64_t)st->st_size > options->keep_larger;
}

static void count_deleted(bk_restore_t *restore)
{
    pthread_mutex_lock(&restore->lock);
    restore->stats.deleted++;
    pthread_mutex_unlock(&restore->lock);
}

/* A directory while what is below it is removed. */
typedef struct {
    bk_at_t at;
    dev_t device;
    unsigned depth;
    bool dry;
} emptied_t;

static bk_rc_t remove_one(bk_restore_t *restore, const emptied_t *dir, bk_peek_t *peek,
                          const char *name, const char *path, bool *gone, bk_err_t *err);

/* List a directory and remove what is in it; inner is open, peek has no names yet. */
static bk_rc_t remove_all(bk_restore_t *restore, const emptied_t *inner, bk_peek_t *peek,
                          const char *path, bool *empty, bk_err_t *err)
{
    int fd = -1;
    bk_rc_t rc = BK_OK;
    int errnum = bk_at_read(&inner->at, "", O_DIRECTORY, &fd);
    if (errnum != 0)
        return bk_at_error(inner->at.road, errnum, "remove it: open directory", err);
    errnum = bk_listing_read(fd, &peek->names);
    close(fd);
    if (errnum != 0)
        return bk_err_sys(err, errnum, "remove it: list directory");
    for (size_t i = 0; i < peek->names.count && rc == BK_OK; i++) {
        char below[PATH_MAX];
        bool gone = false;
        const char *item = bk_listing_name(&peek->names, i);
        if (bk_fmt(below, sizeof below, "%s/%s", path, item))
            rc = remove_one(restore, inner, peek, item, below, &gone, err);
        *empty = *empty && gone;
    }
    return rc;
}

static bk_rc_t remove_below(bk_restore_t *restore, const emptied_t *dir, const char *name,
                            const char *path, bool *empty, bk_err_t *err)
{
    bk_rc_t rc;
    emptied_t inner = *dir;
    bk_peek_t *peek = calloc(1, sizeof *peek);
    char *below = malloc(PATH_MAX);
    inner.depth++;
    inner.at.fd = -1;
    if (peek == NULL || below == NULL) {
        rc = bk_err_set(err, BK_NO_MEMORY, "remove it: out of memory");
    } else if (!bk_fmt(below, PATH_MAX, "%s%s%s", dir->at.path, dir->at.path[0] != '\0' ? "/" : "",
                       name)) {
        rc = bk_err_sys(err, ENAMETOOLONG, "remove it");
    } else {
        inner.at.path = below;
        if (!bk_at_helped(&dir->at)) {
            inner.at.fd = openat(dir->at.fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (inner.at.fd < 0)
                rc = errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "remove it: open directory");
            else
                rc = remove_all(restore, &inner, peek, path, empty, err);
        } else {
            rc = remove_all(restore, &inner, peek, path, empty, err);
        }
    }
    bk_at_close(&inner.at);
    if (peek != NULL)
        bk_listing_free(&peek->names);
    free(peek);
    free(below);
    return rc;
}

/* peek: the names of the directory, NULL: look at this one alone. */
static bk_rc_t remove_one(bk_restore_t *restore, const emptied_t *dir, bk_peek_t *peek,
                          const char *name, const char *path, bool *gone, bk_err_t *err)
{
    struct stat st;
    bk_rc_t rc = bk_ctl_check(restore->ctl, err);
    *gone = false;
    if (rc != BK_OK)
        return rc;
    int errnum =
        peek != NULL ? bk_peek_stat(peek, &dir->at, name, &st) : bk_at_stat(&dir->at, name, &st);
    if (errnum == BK_AT_GONE)
        return bk_at_error(dir->at.road, errnum, "remove it", err);
    if (errnum == EXDEV)
        return BK_OK; /* somebody mounted something here */
    if (errnum != 0) {
        *gone = true;
        return BK_OK;
    }
    /* A backup never holds sockets and devices, so their absence in it says nothing. */
    if (bk_place_protected(restore, path, &st, true) || S_ISSOCK(st.st_mode) ||
        S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
        return BK_OK;
    bool empty = true, folder = S_ISDIR(st.st_mode);
    if (folder) {
        if (dir->device != st.st_dev)
            return BK_OK; /* a mount, too */
        if (dir->depth == DEPTH_MAX)
            return bk_err_set(err, BK_FAILED, "remove it: its directories are nested too deep");
        rc = remove_below(restore, dir, name, path, &empty, err);
    }
    if (rc != BK_OK || !empty)
        return rc;
    errnum = dir->dry ? 0 : bk_at_unlink(&dir->at, name, folder ? AT_REMOVEDIR : 0);
    if (errnum != 0 && errnum != ENOENT)
        return bk_at_error(dir->at.road, errnum, "remove it", err);
    *gone = true;
    count_deleted(restore);
    return BK_OK;
}

bk_rc_t bk_place_remove(bk_restore_t *restore, const bk_at_t *at, const char *name,
                        const char *path, bool dry, bk_err_t *err)
{
    bool gone;
    struct stat st;
    emptied_t dir = {.at = *at, .dry = dry};
    int errnum = bk_at_helped(at) ? bk_at_stat(at, "", &st) : fstat(at->fd, &st) != 0 ? errno : 0;
    if (errnum != 0)
        return bk_at_error(at->road, errnum, "remove it: look at its directory", err);
    dir.device = st.st_dev;
    return remove_one(restore, &dir, NULL, name, path, &gone, err);
}
