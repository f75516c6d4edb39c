/*
 * files/placing.c: one name of the target at a time: its metadata, giving it to a finished
 * temporary, moving it aside, removing it.  Touches the target's file system below a directory's
 * descriptor, never through a link.
 */
#include "files/placing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    bool root = strcmp(bk_root_path(restore->root), "/") == 0;
    bk_fmt(text, sizeof text, "%s%s%s", root ? "" : bk_root_path(restore->root),
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
    return rc == BK_CANCELED || rc == BK_INTERRUPTED || rc == BK_NO_SPACE || rc == BK_NO_MEMORY;
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

/* --- metadata --- */

static void times_of(const bk_entry_t *entry, struct timespec times[2])
{
    int64_t ns = entry->mtime % BK_SEC;
    times[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
    times[1] = (struct timespec){.tv_sec = entry->mtime / BK_SEC - (ns < 0),
                                 .tv_nsec = ns < 0 ? ns + BK_SEC : ns};
}

static void owner_of(bk_restore_t *restore, const bk_entry_t *entry, uid_t *uid, gid_t *gid)
{
    *uid = bk_names_uid(restore->names, entry->user, entry->user_len, entry->uid);
    *gid = bk_names_gid(restore->names, entry->group, entry->group_len, entry->gid);
}

/* Set-user-id bits are an owner's promise: without the owner they would be somebody else's. */
static mode_t mode_of(const bk_entry_t *entry, bool owner_ok)
{
    mode_t mode = entry->mode & 07777;
    return owner_ok || entry->type == BK_ENTRY_DIR ? mode : mode & ~(mode_t)06000;
}

static bk_rc_t read_attrs(bk_restore_t *restore, const bk_entry_t *entry, bk_buf_t *blob,
                          bk_err_t *err)
{
    if (!(entry->flags & BK_ENTRY_ATTRS))
        return BK_OK;
    bk_rc_t rc = bk_repo_get(restore->repo, &entry->attrs, blob, restore->ctl, err);
    if (rc != BK_OK)
        bk_err_wrap(err, "extended attributes");
    return rc;
}

bk_rc_t bk_place_metadata(bk_restore_t *restore, int fd, const bk_entry_t *entry, bool fresh,
                          bk_err_t *err)
{
    struct stat st = {0};
    struct timespec times[2];
    bk_buf_t blob;
    bk_rc_t rc = BK_OK;
    unsigned refused = 0;
    bool owner_ok = false;
    if (!fresh && fstat(fd, &st) != 0)
        return bk_err_sys(err, errno, "look at it");
    if (restore->options->owners) {
        uid_t uid;
        gid_t gid;
        owner_of(restore, entry, &uid, &gid);
        owner_ok = (!fresh && st.st_uid == uid && st.st_gid == gid) || fchown(fd, uid, gid) == 0;
        if (!owner_ok)
            atomic_fetch_add(&restore->owner_refused, 1);
    }
    if ((entry->flags & BK_ENTRY_ATTRS) || !fresh) {
        bk_buf_init(&blob, BK_CHUNK_MAX);
        rc = read_attrs(restore, entry, &blob, err);
        if (rc == BK_OK)
            rc = bk_attrs_write(fd, fresh, blob.data, blob.len, &refused, err);
        bk_buf_free(&blob);
        atomic_fetch_add(&restore->attrs_refused, refused);
    }
    /* chown clears set-user-id bits, so the mode comes behind it, also when it seems right. */
    if (rc == BK_OK && fchmod(fd, mode_of(entry, owner_ok)) != 0)
        rc = bk_err_sys(err, errno, "set its mode");
    times_of(entry, times);
    if (rc == BK_OK && futimens(fd, times) != 0)
        rc = bk_err_sys(err, errno, "set its times");
    return rc;
}

bk_rc_t bk_place_metadata_at(bk_restore_t *restore, int dir, const char *name,
                             const bk_entry_t *entry, bk_err_t *err)
{
    struct timespec times[2];
    bk_buf_t blob;
    unsigned refused = 0;
    bool owner_ok = false;
    if (restore->options->owners) {
        uid_t uid;
        gid_t gid;
        owner_of(restore, entry, &uid, &gid);
        owner_ok = fchownat(dir, name, uid, gid, AT_SYMLINK_NOFOLLOW) == 0;
        if (!owner_ok)
            atomic_fetch_add(&restore->owner_refused, 1);
    }
    bk_buf_init(&blob, BK_CHUNK_MAX);
    bk_rc_t rc = read_attrs(restore, entry, &blob, err);
    if (rc == BK_OK && blob.len > 0)
        rc = bk_attrs_write_at(dir, name, blob.data, blob.len, &refused, err);
    bk_buf_free(&blob);
    atomic_fetch_add(&restore->attrs_refused, refused);
    if (rc == BK_OK && entry->type == BK_ENTRY_FIFO) {
        /* chmod follows links, a descriptor of the thing itself does not. */
        char path[64];
        int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        struct stat st;
        bk_fmt(path, sizeof path, "/proc/self/fd/%d", fd);
        if (fd < 0 || fstat(fd, &st) != 0 || !S_ISFIFO(st.st_mode) ||
            chmod(path, mode_of(entry, owner_ok)) != 0)
            rc = bk_err_sys(err, errno, "set its mode");
        if (fd >= 0)
            close(fd);
    }
    times_of(entry, times);
    if (rc == BK_OK && utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) != 0)
        rc = bk_err_sys(err, errno, "set its times");
    return rc;
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

bk_rc_t bk_place_aside(bk_restore_t *restore, int dir, const char *name, bk_err_t *err)
{
    for (unsigned tries = 0; tries < ASIDE_TRIES; tries++) {
        char aside[256];
        aside_name(restore, name, tries, aside);
        if (renameat2(dir, name, dir, aside, RENAME_NOREPLACE) == 0) {
            count_aside(restore);
            return BK_OK;
        }
        if (errno == ENOENT)
            return BK_OK;
        if (errno == EINVAL || errno == ENOSYS) {
            /* A file system without NOREPLACE: a look has to do. */
            struct stat st;
            if (fstatat(dir, aside, &st, AT_SYMLINK_NOFOLLOW) != 0 &&
                renameat(dir, name, dir, aside) == 0) {
                count_aside(restore);
                return BK_OK;
            }
            errno = EEXIST;
        }
        if (errno != EEXIST && errno != ENOTEMPTY)
            break;
    }
    return bk_err_sys(err, errno, "move the existing one aside");
}

/* A second name for the existing file, so that there is no moment without one. */
static bool link_aside(bk_restore_t *restore, int dir, const char *name)
{
    for (unsigned tries = 0; tries < ASIDE_TRIES; tries++) {
        char aside[256];
        aside_name(restore, name, tries, aside);
        if (linkat(dir, name, dir, aside, 0) == 0) {
            count_aside(restore);
            return true;
        }
        if (errno != EEXIST)
            return errno == ENOENT;
    }
    return false;
}

bk_rc_t bk_place_publish(bk_restore_t *restore, int dir, const char *temporary, const char *name,
                         bool aside, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (aside && !link_aside(restore, dir, name))
        rc = bk_place_aside(restore, dir, name, err);
    if (rc == BK_OK && renameat(dir, temporary, dir, name) != 0)
        rc = bk_err_sys(err, errno, "give it its name");
    if (rc != BK_OK)
        unlinkat(dir, temporary, 0);
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

static bk_rc_t remove_one(bk_restore_t *restore, int dir, const char *name, const char *path,
                          bool dry, unsigned depth, bool *gone, bk_err_t *err);

static bk_rc_t remove_below(bk_restore_t *restore, int dir, const char *name, const char *path,
                            bool dry, unsigned depth, bool *empty, bk_err_t *err)
{
    bk_listing_t listing;
    bk_rc_t rc = BK_OK;
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "remove it: open directory");
    int errnum = bk_listing_read(fd, &listing);
    if (errnum != 0)
        rc = bk_err_sys(err, errnum, "remove it: list directory");
    for (size_t i = 0; i < listing.count && rc == BK_OK; i++) {
        char below[PATH_MAX];
        bool gone = false;
        const char *item = bk_listing_name(&listing, i);
        if (bk_fmt(below, sizeof below, "%s/%s", path, item))
            rc = remove_one(restore, fd, item, below, dry, depth + 1, &gone, err);
        *empty = *empty && gone;
    }
    bk_listing_free(&listing);
    close(fd);
    return rc;
}

static bk_rc_t remove_one(bk_restore_t *restore, int dir, const char *name, const char *path,
                          bool dry, unsigned depth, bool *gone, bk_err_t *err)
{
    struct stat st;
    bk_rc_t rc = bk_ctl_check(restore->ctl, err);
    *gone = false;
    if (rc != BK_OK)
        return rc;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        *gone = true;
        return BK_OK;
    }
    /* A backup never holds sockets and devices, so their absence in it says nothing. */
    if (bk_place_protected(restore, path, &st, true) || S_ISSOCK(st.st_mode) ||
        S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
        return BK_OK;
    bool empty = true;
    if (S_ISDIR(st.st_mode)) {
        struct stat above;
        if (fstat(dir, &above) != 0 || above.st_dev != st.st_dev)
            return BK_OK; /* somebody mounted something here */
        if (depth == DEPTH_MAX)
            return bk_err_set(err, BK_FAILED, "remove it: its directories are nested too deep");
        rc = remove_below(restore, dir, name, path, dry, depth, &empty, err);
    }
    if (rc != BK_OK || !empty)
        return rc;
    if (!dry && unlinkat(dir, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) != 0 && errno != ENOENT)
        return bk_err_sys(err, errno, "remove it");
    *gone = true;
    count_deleted(restore);
    return BK_OK;
}

bk_rc_t bk_place_remove(bk_restore_t *restore, int dir, const char *name, const char *path,
                        bool dry, bk_err_t *err)
{
    bool gone;
    return remove_one(restore, dir, name, path, dry, 0, &gone, err);
}
