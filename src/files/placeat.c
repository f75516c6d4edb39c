/*
 * files/placeat.c: one call for each thing that a restore does to a name, as a system call below a
 * directory's descriptor or as an operation of the helper's.  Touches the target; knows nothing of
 * backups.
 */
#include "files/placeat.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"

static int result_of(int rc)
{
    return rc < 0 ? errno : 0;
}

/* --- the road --- */

bk_rc_t bk_road_init(bk_road_t *road, bk_root_t *root, bk_ctl_t *ctl, bk_err_t *err)
{
    *road = (bk_road_t){.root = root, .helper = bk_root_helper(root), .ctl = ctl, .nothing = -1};
    pthread_mutex_init(&road->lock, NULL);
    if (road->helper == NULL)
        return BK_OK;
    road->nothing = memfd_create("attributes", MFD_CLOEXEC);
    return road->nothing >= 0 ? BK_OK : bk_err_sys(err, errno, "make a memory file");
}

void bk_road_free(bk_road_t *road)
{
    if (road->root == NULL)
        return;
    if (road->nothing >= 0)
        close(road->nothing);
    pthread_mutex_destroy(&road->lock);
    road->root = NULL;
}

bk_rc_t bk_at_error(bk_road_t *road, int errnum, const char *what, bk_err_t *err)
{
    if (errnum == EXDEV && road->helper != NULL)
        return bk_err_set(err, BK_FORBIDDEN,
                          "%s: another file system is mounted there, which the privileged helper "
                          "does not cross: give it a files block of its own",
                          what);
    if (errnum != BK_AT_GONE)
        return bk_err_sys(err, errnum, "%s", what);
    pthread_mutex_lock(&road->lock);
    bk_err_t gone = road->gone;
    pthread_mutex_unlock(&road->lock);
    if (err != NULL)
        *err = gone;
    return gone.rc;
}

static int gone(bk_road_t *road, const bk_err_t *why)
{
    pthread_mutex_lock(&road->lock);
    if (road->gone.rc == BK_OK) {
        road->gone = *why;
        if (why->rc == BK_UNAVAILABLE)
            bk_err_remedy(&road->gone, "run the recovery again when the helper answers; the files "
                                       "that were not reached are as they were");
    }
    pthread_mutex_unlock(&road->lock);
    return BK_AT_GONE;
}

/* A descriptor of the root itself, which may be for nothing but asking. */
static int open_root(bk_road_t *road, int *fd)
{
    bk_at_t at = {.road = road, .path = "", .fd = -1};
    if (road->helper != NULL)
        return bk_at_read(&at, "", O_DIRECTORY, fd);
    *fd = bk_root_open_raw(road->root, "", O_RDONLY | O_DIRECTORY, 0);
    return result_of(*fd);
}

bk_rc_t bk_road_free_space(bk_road_t *road, uint64_t *bytes, bk_err_t *err)
{
    int fd = -1;
    struct statvfs st;
    if (road->helper == NULL)
        return bk_free_space(bk_root_path(road->root), bytes, err);
    int errnum = open_root(road, &fd);
    if (errnum == 0)
        errnum = result_of(fstatvfs(fd, &st));
    if (fd >= 0)
        close(fd);
    if (errnum != 0)
        return bk_at_error(road, errnum, bk_root_path(road->root), err);
    *bytes = (uint64_t)st.f_bavail * st.f_frsize;
    return BK_OK;
}

bk_rc_t bk_road_sync(bk_road_t *road, bk_err_t *err)
{
    int fd = -1;
    if (road->helper == NULL)
        return syncfs(bk_root_fd(road->root)) == 0
                   ? BK_OK
                   : bk_err_sys(err, errno, "flush %s", bk_root_path(road->root));
    /* Any descriptor will do, so no conversation is held up by a slow disk. */
    int errnum = open_root(road, &fd);
    if (errnum == 0)
        errnum = result_of(syncfs(fd));
    if (fd >= 0)
        close(fd);
    if (errnum == 0)
        return BK_OK;
    bk_at_error(road, errnum, bk_root_path(road->root), err);
    return bk_err_wrap(err, "flush");
}

/* --- directories --- */

int bk_at_open(bk_road_t *road, const char *path, bool own, bk_at_t *at)
{
    *at = (bk_at_t){.road = road, .path = path, .fd = -1};
    if (road->helper != NULL && !own)
        return 0;
    at->fd = bk_root_open_raw(road->root, path, O_PATH | O_DIRECTORY, 0);
    return result_of(at->fd);
}

void bk_at_close(bk_at_t *at)
{
    if (at->road != NULL && at->fd >= 0)
        close(at->fd);
    at->fd = -1;
}

bool bk_at_helped(const bk_at_t *at)
{
    return at->fd < 0;
}

/* --- operations --- */

int bk_at_batch(const bk_at_t *at, const bk_helper_op_t *ops, size_t count,
                bk_helper_result_t *results)
{
    bk_err_t why = {0};
    bk_rc_t rc =
        bk_helper_at(at->road->helper, at->path, 0, ops, count, results, at->road->ctl, &why);
    return rc == BK_OK ? 0 : gone(at->road, &why);
}

/* One operation, of which fd or st (may be NULL) are wanted. */
static int ask(const bk_at_t *at, const bk_helper_op_t *op, int *fd, struct stat *st)
{
    bk_helper_result_t result;
    int errnum = bk_at_batch(at, op, 1, &result);
    if (errnum != 0)
        return errnum;
    free(result.data);
    if (fd != NULL)
        *fd = result.fd;
    else if (result.fd >= 0)
        close(result.fd);
    if (fd != NULL && result.error == 0 && result.fd < 0)
        return EIO;
    if (st != NULL)
        *st = result.st;
    return result.error;
}

int bk_at_stat(const bk_at_t *at, const char *name, struct stat *st)
{
    if (bk_at_helped(at))
        return ask(at, &(bk_helper_op_t){.call = BK_WIRE_STAT, .name = name}, NULL, st);
    return result_of(fstatat(at->fd, name, st, AT_SYMLINK_NOFOLLOW));
}

int bk_at_read(const bk_at_t *at, const char *name, int flags, int *fd)
{
    *fd = -1;
    if (bk_at_helped(at))
        return ask(at,
                   &(bk_helper_op_t){.call = BK_WIRE_OPEN, .name = name, .flags = (uint32_t)flags},
                   fd, NULL);
    const char *what = name[0] != '\0' ? name : ".";
    flags |= O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    *fd = openat(at->fd, what, flags);
    if (*fd < 0 && errno == EPERM && (flags & O_NOATIME) != 0)
        *fd = openat(at->fd, what, flags & ~O_NOATIME);
    return result_of(*fd);
}

bool bk_at_leads_to(const bk_at_t *at, const char *name, const void *target, size_t len)
{
    char text[PATH_MAX];
    if (!bk_at_helped(at)) {
        ssize_t got = readlinkat(at->fd, name, text, sizeof text);
        return got >= 0 && (size_t)got == len && memcmp(text, target, len) == 0;
    }
    bk_helper_result_t result;
    bk_helper_op_t op = {.call = BK_WIRE_STAT, .name = name, .flags = BK_WIRE_LINKS};
    if (bk_at_batch(at, &op, 1, &result) != 0)
        return false;
    bool same = result.error == 0 && result.data != NULL && result.data_len == len &&
                memcmp(result.data, target, len) == 0;
    free(result.data);
    return same;
}

bool bk_at_is_cache(const bk_at_t *at)
{
    int fd = -1;
    return bk_at_read(at, BK_CACHEDIR_TAG, 0, &fd) == 0 && bk_listing_is_tag(fd);
}

int bk_at_mkdir(const bk_at_t *at, const char *name)
{
    if (bk_at_helped(at))
        return ask(at, &(bk_helper_op_t){.call = BK_WIRE_MKDIR, .name = name}, NULL, NULL);
    return result_of(mkdirat(at->fd, name, 0700));
}

int bk_at_like_above(const bk_at_t *at, const char *name)
{
    struct stat st;
    if (!bk_at_helped(at))
        return 0;
    int errnum = bk_at_stat(at, "", &st);
    if (errnum != 0)
        return errnum;
    return ask(at,
               &(bk_helper_op_t){.call = BK_WIRE_META,
                                 .name = name,
                                 .uid = st.st_uid,
                                 .gid = st.st_gid,
                                 .set = BK_WIRE_SET_OWNER},
               NULL, NULL);
}

int bk_at_unlink(const bk_at_t *at, const char *name, int flags)
{
    if (bk_at_helped(at))
        return ask(
            at, &(bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = name, .flags = (uint32_t)flags},
            NULL, NULL);
    return result_of(unlinkat(at->fd, name, flags));
}

int bk_at_rename(const bk_at_t *at, const char *from, const char *to, unsigned flags)
{
    bk_helper_op_t op = {.call = BK_WIRE_RENAME, .name = from, .name2 = to, .flags = flags};
    if (bk_at_helped(at))
        return ask(at, &op, NULL, NULL);
    return result_of(renameat2(at->fd, from, at->fd, to, flags));
}

int bk_at_link(const bk_at_t *at, const char *from, const char *to)
{
    if (bk_at_helped(at))
        return ask(at, &(bk_helper_op_t){.call = BK_WIRE_LINK, .name = from, .name2 = to}, NULL,
                   NULL);
    return result_of(linkat(at->fd, from, at->fd, to, 0));
}

int bk_at_link_from(const bk_at_t *at, const char *from, const char *to)
{
    char dir[PATH_MAX];
    if (bk_at_helped(at))
        return ask(at, &(bk_helper_op_t){.call = BK_WIRE_LINK_FROM, .name = from, .name2 = to},
                   NULL, NULL);
    if (!bk_strcpy(dir, sizeof dir, from))
        return ENAMETOOLONG;
    char *slash = strrchr(dir, '/');
    const char *name = slash != NULL ? from + (slash - dir) + 1 : from;
    *(slash != NULL ? slash : dir) = '\0';
    int fd = bk_root_open_raw(at->road->root, dir, O_PATH | O_DIRECTORY, 0);
    if (fd < 0)
        return errno;
    int errnum = result_of(linkat(fd, name, at->fd, to, 0));
    close(fd);
    return errnum;
}

int bk_at_create(const bk_at_t *at, const char *name, int *fd)
{
    if (bk_at_helped(at))
        return ask(at, &(bk_helper_op_t){.call = BK_WIRE_CREATE, .name = name}, fd, NULL);
    *fd = openat(at->fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    return result_of(*fd);
}

int bk_at_special(const bk_at_t *at, const char *name, const char *link)
{
    if (bk_at_helped(at))
        return ask(at,
                   &(bk_helper_op_t){.call = link != NULL ? BK_WIRE_SYMLINK : BK_WIRE_MKFIFO,
                                     .name = name,
                                     .name2 = link},
                   NULL, NULL);
    return result_of(link != NULL ? symlinkat(link, at->fd, name) : mkfifoat(at->fd, name, 0600));
}

/* --- directories that are missing --- */

static bk_rc_t make_one(bk_road_t *road, const char *above, const char *name, bool dry, bool *made,
                        bk_err_t *err)
{
    struct stat st;
    bk_at_t at;
    int errnum = bk_at_open(road, above, false, &at);
    if (errnum == 0) {
        int found = bk_at_stat(&at, name, &st);
        *made = found != 0;
        if (found == BK_AT_GONE || found == EXDEV)
            errnum = found;
        else if (*made && !dry)
            errnum = bk_at_mkdir(&at, name);
        if (errnum == 0 && *made && !dry)
            errnum = bk_at_like_above(&at, name);
    } else {
        *made = true;
    }
    bk_at_close(&at);
    if (errnum == 0 || (dry && errnum != BK_AT_GONE))
        return BK_OK;
    bk_rc_t rc = bk_at_error(road, errnum, name, err);
    bk_err_wrap(err, "make directory %s/%s", bk_root_path(road->root), above);
    return rc;
}

bk_rc_t bk_road_make(bk_road_t *road, const char *path, bool dry, bool *made, bk_err_t *err)
{
    char above[PATH_MAX];
    bk_rc_t rc = BK_OK;
    *made = false;
    if (!bk_strcpy(above, sizeof above, path))
        return bk_err_set(err, BK_INVALID, "%s: the path is too long", path);
    for (char *name = above; *name != '\0' && rc == BK_OK;) {
        size_t len = strcspn(name, "/");
        char end = name[len];
        name[len] = '\0';
        /* above is cut behind this name, and for a moment before it. */
        if (name > above)
            name[-1] = '\0';
        rc = make_one(road, name > above ? above : "", name, dry, made, err);
        if (name > above)
            name[-1] = '/';
        name[len] = end;
        name += end != '\0' ? len + 1 : len;
    }
    return rc;
}

/* --- many names --- */

/* The place of a name in the listing, or of the one behind it. */
static size_t place_of(const bk_listing_t *names, const char *name)
{
    size_t low = 0, high = names->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(bk_listing_name(names, middle), name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int fill(bk_peek_t *peek, const bk_at_t *at, size_t first)
{
    bk_helper_op_t ops[BK_PEEK_NAMES] = {0};
    bk_helper_result_t results[BK_PEEK_NAMES];
    size_t count = peek->names.count - first;
    if (count > BK_PEEK_NAMES)
        count = BK_PEEK_NAMES;
    for (size_t i = 0; i < count; i++)
        ops[i] = (bk_helper_op_t){.call = BK_WIRE_STAT,
                                  .name = bk_listing_name(&peek->names, first + i)};
    peek->count = 0;
    int errnum = bk_at_batch(at, ops, count, results);
    if (errnum != 0)
        return errnum;
    for (size_t i = 0; i < count; i++) {
        free(results[i].data);
        peek->st[i] = results[i].st;
        peek->error[i] = results[i].error;
    }
    peek->first = first;
    peek->count = count;
    return 0;
}

int bk_peek_stat(bk_peek_t *peek, const bk_at_t *at, const char *name, struct stat *st)
{
    if (!bk_at_helped(at))
        return bk_at_stat(at, name, st);
    size_t place = place_of(&peek->names, name);
    if (place == peek->names.count || strcmp(bk_listing_name(&peek->names, place), name) != 0)
        return ENOENT;
    if (place < peek->first || place >= peek->first + peek->count) {
        int errnum = fill(peek, at, place);
        if (errnum != 0)
            return errnum;
    }
    *st = peek->st[place - peek->first];
    return peek->error[place - peek->first];
}
