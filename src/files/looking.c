/*
 * files/looking.c: status, links, attributes and descriptors of the names in a tree.  Own rights
 * are tried first, since a system call costs less than a message; from the first name of a
 * directory on that may not even be looked at, all of it is asked of the helper.  Changes nothing.
 */
#include "files/looking.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/publish.h"
#include "base/str.h"
#include "files/attrs.h"

#define READING (O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY)

/* --- the tree --- */

bk_rc_t bk_looker_init(bk_looker_t *looker, const char *path, bk_helper_t *client, bk_ctl_t *ctl,
                       bk_err_t *err)
{
    bk_err_t why = {0};
    memset(looker, 0, sizeof *looker);
    looker->ctl = ctl;
    pthread_mutex_init(&looker->lock, NULL);
    bk_rc_t rc =
        bk_root_open_helped(path, false, client, BK_WIRE_MAY_READ, ctl, &looker->root, &why);
    if (rc == BK_UNAVAILABLE && bk_root_open(path, false, &looker->root, NULL) == BK_OK) {
        /* Own rights may do for all of it; when they do not, this is what to tell. */
        looker->gone = why;
        rc = BK_OK;
    }
    if (rc != BK_OK) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    looker->helper = bk_root_helper(looker->root);
    return BK_OK;
}

void bk_looker_free(bk_looker_t *looker)
{
    if (looker->root == NULL)
        return;
    bk_root_close(looker->root);
    pthread_mutex_destroy(&looker->lock);
    looker->root = NULL;
}

bk_rc_t bk_looker_gone(bk_looker_t *looker, bk_err_t *err)
{
    pthread_mutex_lock(&looker->lock);
    bk_err_t gone = looker->gone;
    pthread_mutex_unlock(&looker->lock);
    if (err != NULL)
        *err = gone;
    return gone.rc;
}

/* Own rights do not do: is there somebody to ask? */
static bool denied(bk_looker_t *looker, int errnum, int *result)
{
    *result = errnum;
    if (errnum != EACCES)
        return false;
    if (looker->helper != NULL)
        return true;
    pthread_mutex_lock(&looker->lock);
    if (looker->gone.rc != BK_OK)
        *result = BK_LOOK_GONE;
    pthread_mutex_unlock(&looker->lock);
    return false;
}

static int ask(bk_looker_t *looker, const char *dir, const bk_helper_op_t *ops, size_t count,
               bk_helper_result_t *results)
{
    bk_err_t why = {0};
    if (bk_helper_at(looker->helper, dir, 0, ops, count, results, looker->ctl, &why) == BK_OK)
        return 0;
    if (why.rc == BK_UNAVAILABLE)
        bk_err_remedy(&why, "run the backup again when the helper answers");
    pthread_mutex_lock(&looker->lock);
    if (looker->gone.rc == BK_OK)
        looker->gone = why;
    pthread_mutex_unlock(&looker->lock);
    return BK_LOOK_GONE;
}

static void drop(bk_helper_result_t *result)
{
    if (result->fd >= 0)
        close(result->fd);
    free(result->data);
    result->fd = -1;
    result->data = NULL;
}

/* One operation; *result is the caller's when 0 is returned. */
static int ask_one(bk_looker_t *looker, const char *dir, const bk_helper_op_t *op,
                   bk_helper_result_t *result)
{
    int errnum = ask(looker, dir, op, 1, result);
    if (errnum == 0 && result->error != 0) {
        errnum = result->error;
        drop(result);
    }
    return errnum;
}

/* --- directories --- */

static int own_dir(bk_looker_t *looker, const char *path)
{
    int flags = O_RDONLY | O_DIRECTORY, fd = -1;
    if (!atomic_load_explicit(&looker->atime, memory_order_relaxed))
        fd = bk_root_open_raw(looker->root, path, flags | O_NOATIME, 0);
    return fd >= 0 ? fd : bk_root_open_raw(looker->root, path, flags, 0);
}

int bk_looker_dir(bk_looker_t *looker, const char *path, int *fd, bool *helped)
{
    bk_helper_op_t op = {.call = BK_WIRE_OPEN, .flags = O_DIRECTORY | O_NOATIME};
    bk_helper_result_t result;
    int errnum;
    *helped = false;
    *fd = own_dir(looker, path);
    if (*fd >= 0)
        return 0;
    if (!denied(looker, errno, &errnum))
        return errnum;
    *helped = true;
    errnum = ask_one(looker, path, &op, &result);
    if (errnum != 0)
        return errnum;
    *fd = result.fd;
    result.fd = -1;
    drop(&result);
    return *fd >= 0 ? 0 : EIO;
}

int bk_looker_stat(bk_looker_t *looker, const char *path, struct stat *st)
{
    bk_helper_op_t op = {.call = BK_WIRE_STAT};
    bk_helper_result_t result;
    int fd = bk_root_open_raw(looker->root, path, O_PATH | O_DIRECTORY, 0), errnum;
    if (fd >= 0) {
        errnum = fstat(fd, st) == 0 ? 0 : errno;
        close(fd);
        return errnum;
    }
    if (!denied(looker, errno, &errnum))
        return errnum;
    errnum = ask_one(looker, path, &op, &result);
    if (errnum != 0)
        return errnum;
    *st = result.st;
    drop(&result);
    return 0;
}

/* What a memfd of the helper's holds; none (-1) is nothing. */
static int read_blob(int fd, bk_buf_t *out)
{
    struct stat st;
    size_t got = 0;
    bk_buf_reset(out);
    if (fd < 0)
        return 0;
    if (fstat(fd, &st) != 0)
        return errno;
    if ((uint64_t)st.st_size > BK_WIRE_ATTRS_MAX)
        return E2BIG;
    uint8_t *room = bk_buf_room(out, (size_t)st.st_size);
    if (room == NULL)
        return ENOMEM;
    if (bk_pread_all(fd, room, (size_t)st.st_size, 0, &got, "attributes", NULL) != BK_OK)
        return EIO;
    out->len += got;
    return 0;
}

static int ask_attrs(bk_looker_t *looker, const char *dir, const char *name, bk_buf_t *out)
{
    bk_helper_op_t op = {.call = BK_WIRE_ATTRS, .name = name};
    bk_helper_result_t result;
    bk_buf_reset(out);
    int errnum = ask_one(looker, dir, &op, &result);
    if (errnum != 0)
        return errnum;
    errnum = read_blob(result.fd, out);
    drop(&result);
    return errnum;
}

int bk_looker_dir_attrs(bk_looker_t *looker, const char *path, int fd, bool helped, bk_buf_t *out)
{
    return helped ? ask_attrs(looker, path, "", out) : bk_attrs_read(fd, out);
}

bool bk_looker_is_cache(bk_looker_t *looker, const char *path, int fd)
{
    bk_helper_op_t op = {.call = BK_WIRE_OPEN, .name = BK_CACHEDIR_TAG};
    bk_helper_result_t result = {.fd = -1};
    int tag = openat(fd, BK_CACHEDIR_TAG, READING | O_NONBLOCK), errnum;
    if (tag < 0 && denied(looker, errno, &errnum) && ask_one(looker, path, &op, &result) == 0) {
        tag = result.fd;
        result.fd = -1;
        drop(&result);
    }
    return bk_listing_is_tag(tag);
}

/* --- names --- */

void bk_view_begin(bk_view_t *view, bk_looker_t *looker, const char *path, int fd,
                   const bk_listing_t *names)
{
    view->looker = looker;
    view->path = path;
    view->fd = fd;
    view->names = names;
    view->helped = false;
    view->first = view->count = 0;
}

static void forget(bk_view_t *view)
{
    for (size_t i = 0; i < view->count; i++)
        drop(&view->known[i]);
    view->count = 0;
}

void bk_view_end(bk_view_t *view)
{
    forget(view);
}

/* Status, and targets of links, of the names from at on. */
static int ask_names(bk_view_t *view, size_t at)
{
    bk_helper_op_t ops[BK_WIRE_OPS] = {0};
    size_t count = view->names->count - at;
    if (count > BK_WIRE_OPS)
        count = BK_WIRE_OPS;
    forget(view);
    for (size_t i = 0; i < count; i++)
        ops[i] = (bk_helper_op_t){.call = BK_WIRE_STAT,
                                  .name = bk_listing_name(view->names, at + i),
                                  .flags = BK_WIRE_LINKS};
    int errnum = ask(view->looker, view->path, ops, count, view->known);
    if (errnum != 0)
        return errnum;
    view->first = at;
    view->count = count;
    return 0;
}

static int known(bk_view_t *view, size_t at, const bk_helper_result_t **result)
{
    int errnum = 0;
    if (at < view->first || at >= view->first + view->count)
        errnum = ask_names(view, at);
    if (errnum != 0)
        return errnum;
    *result = &view->known[at - view->first];
    return (*result)->error;
}

int bk_view_stat(bk_view_t *view, size_t at, struct stat *st)
{
    const bk_helper_result_t *result;
    int errnum;
    if (!view->helped) {
        const char *name = bk_listing_name(view->names, at);
        if (fstatat(view->fd, name, st, AT_SYMLINK_NOFOLLOW) == 0)
            return 0;
        if (!denied(view->looker, errno, &errnum))
            return errnum;
        view->helped = true;
    }
    errnum = known(view, at, &result);
    if (errnum == 0)
        *st = result->st;
    return errnum;
}

int bk_view_link(bk_view_t *view, size_t at, char *out, size_t size, size_t *len)
{
    const bk_helper_result_t *result;
    if (!view->helped) {
        ssize_t got = readlinkat(view->fd, bk_listing_name(view->names, at), out, size);
        *len = got > 0 ? (size_t)got : 0;
        return got < 0 ? errno : (size_t)got == size ? ENAMETOOLONG : 0;
    }
    int errnum = known(view, at, &result);
    if (errnum != 0)
        return errnum;
    if (result->data == NULL)
        return EINVAL; /* no link any more */
    if (result->data_len >= size)
        return ENAMETOOLONG;
    memcpy(out, result->data, result->data_len);
    *len = result->data_len;
    return 0;
}

int bk_view_attrs(bk_view_t *view, size_t at, bk_buf_t *out)
{
    const char *name = bk_listing_name(view->names, at);
    return view->helped ? ask_attrs(view->looker, view->path, name, out)
                        : bk_attrs_read_at(view->fd, name, out);
}

/* --- files --- */

static int own_open(bk_view_t *view, const char *name)
{
    bk_looker_t *looker = view->looker;
    /* O_NONBLOCK: the name may have become a FIFO since we looked. */
    int flags = READING | O_NONBLOCK, fd = -1;
    if (!atomic_load_explicit(&looker->atime, memory_order_relaxed)) {
        fd = openat(view->fd, name, flags | O_NOATIME);
        if (fd >= 0 || errno != EPERM)
            return fd;
    }
    fd = openat(view->fd, name, flags);
    /* Somebody else's file: the others will be, too. */
    if (fd >= 0)
        atomic_store_explicit(&looker->atime, true, memory_order_relaxed);
    return fd;
}

void bk_view_close(bk_view_file_t *file)
{
    bk_attached_close(file->fd);
    if (file->attrs >= 0)
        close(file->attrs);
    file->fd = file->attrs = -1;
}

/* A database is not opened beside SQLite, also when it took the place of what was looked at. */
static void hold(bk_view_file_t *file)
{
    if (file->fd < 0 || bk_attached_hold(file->fd))
        return;
    file->fd = -1;
    file->error = BK_LOOK_USED;
}

/* Each file takes one operation, with its attributes two. */
static void take_files(bk_helper_result_t *results, size_t count, bool attrs, bk_view_file_t *files)
{
    size_t each = attrs ? 2 : 1;
    for (size_t i = 0; i < count; i++) {
        bk_helper_result_t *open = &results[i * each], *more = attrs ? open + 1 : NULL;
        files[i] =
            (bk_view_file_t){.fd = open->fd, .attrs = -1, .error = open->error, .helped = true};
        open->fd = -1;
        hold(&files[i]);
        if (more != NULL) {
            files[i].attrs = more->fd;
            more->fd = -1;
            if (files[i].error == 0)
                files[i].error = more->error;
            drop(more);
        }
        drop(open);
        if (files[i].error == 0 && files[i].fd < 0)
            files[i].error = EIO;
        if (files[i].error != 0)
            bk_view_close(&files[i]);
    }
}

void bk_view_open(bk_view_t *view, const size_t *at, size_t count, bool attrs,
                  bk_view_file_t *files, size_t *opened)
{
    bk_helper_op_t ops[2 * BK_VIEW_OPEN] = {0};
    bk_helper_result_t results[2 * BK_VIEW_OPEN];
    size_t n = 0;
    files[0] = (bk_view_file_t){.fd = -1, .attrs = -1, .error = EACCES};
    *opened = 1;
    if (!view->helped) {
        files[0].fd = own_open(view, bk_listing_name(view->names, at[0]));
        if (files[0].fd >= 0 || !denied(view->looker, errno, &files[0].error)) {
            hold(&files[0]);
            return;
        }
    }
    if (count > BK_VIEW_OPEN)
        count = BK_VIEW_OPEN;
    for (size_t i = 0; i < count; i++) {
        const char *name = bk_listing_name(view->names, at[i]);
        ops[n++] = (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = name, .flags = O_NOATIME};
        if (attrs)
            ops[n++] = (bk_helper_op_t){.call = BK_WIRE_ATTRS, .name = name};
    }
    files[0].error = ask(view->looker, view->path, ops, n, results);
    if (files[0].error != 0)
        return;
    take_files(results, count, attrs, files);
    *opened = count;
}

int bk_view_file_attrs(const bk_view_file_t *file, bk_buf_t *out)
{
    return file->helped ? read_blob(file->attrs, out) : bk_attrs_read(file->fd, out);
}
