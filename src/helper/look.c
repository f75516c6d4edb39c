/*
 * helper/look.c: operations that only look: metadata, descriptors for reading (of a database also
 * for writing), extended attributes.  Nothing is opened before it is known to be a regular file, a
 * directory or a FIFO: opening a device can do things.  Touches the file system below the request's
 * directory; libc only.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "helper/attributes.h"
#include "helper/refuse.h"
#include "helper/task.h"

#define CREATE_TRIES 8 /* a companion that comes and goes meanwhile */
#define PATIENCE_MS  200

/* Without a right to read, a restore may still see what is there. */
static int may_look(const bk_task_t *task)
{
    if ((task->root->may & (BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE)) != 0)
        return 0;
    bk_refuse(BK_REFUSE_RIGHT, task->name, strlen(task->name));
    return EPERM;
}

static int refuse_kind(const bk_task_t *task)
{
    bk_refuse(BK_REFUSE_KIND, task->name, strlen(task->name));
    return EPERM;
}

static int refuse_link(const bk_task_t *task)
{
    bk_refuse(BK_REFUSE_LINK, task->name, strlen(task->name));
    return ELOOP;
}

/* --- STAT --- */

static void from_statx(bk_wire_result_t *result, const struct statx *x)
{
    result->device = makedev(x->stx_dev_major, x->stx_dev_minor);
    result->inode = x->stx_ino;
    result->size = x->stx_size;
    result->links = x->stx_nlink;
    result->mtime_sec = x->stx_mtime.tv_sec;
    result->mtime_nsec = x->stx_mtime.tv_nsec;
    result->ctime_sec = x->stx_ctime.tv_sec;
    result->ctime_nsec = x->stx_ctime.tv_nsec;
    result->mode = x->stx_mode;
    result->uid = x->stx_uid;
    result->gid = x->stx_gid;
    result->blocks = x->stx_blocks;
}

static int read_link(bk_task_t *task)
{
    if (task->room == 0)
        return ENOBUFS;
    size_t most = task->room < BK_WIRE_PATH + 1 ? task->room : BK_WIRE_PATH + 1;
    ssize_t len = readlinkat(task->dir, task->name, task->data, most);
    if (len < 0)
        return errno;
    if ((size_t)len == most)
        return most <= BK_WIRE_PATH ? ENOBUFS : ENAMETOOLONG;
    task->result->data_len = (uint32_t)len;
    return 0;
}

int bk_look_stat(bk_task_t *task)
{
    struct statx x;
    bool self = task->name[0] == '\0';
    int errnum = may_look(task);
    if (errnum != 0)
        return errnum;
    if (!self && !bk_task_allowed(task, task->name, true))
        return EPERM;
    if (statx(task->dir, task->name,
              AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (self ? AT_EMPTY_PATH : 0), STATX_BASIC_STATS,
              &x) != 0)
        return errno;
    if (!self && (x.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0) {
        bk_refuse(BK_REFUSE_MOUNT, task->name, strlen(task->name));
        return EXDEV;
    }
    if (S_ISLNK(x.stx_mode) && (task->op->flags & BK_WIRE_LINKS) != 0)
        errnum = read_link(task);
    if (errnum == 0)
        from_statx(task->result, &x);
    return errnum;
}

/* --- OPEN --- */

/* Bits that a caller may set without meaning anything here: what they stand for is always so. */
#define ALWAYS (O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_LARGEFILE)

static int check_flags(const bk_task_t *task, int flags)
{
    int allowed = O_DIRECTORY | O_NOATIME | O_PATH;
    if ((task->root->may & BK_WIRE_DATABASE) != 0 && task->name[0] != '\0')
        allowed |= O_RDWR | O_CREAT | O_EXCL;
    if ((flags & ~(allowed | ALWAYS)) == 0)
        return 0;
    bk_refuse(BK_REFUSE_RIGHT, task->name, strlen(task->name));
    return EPERM;
}

/* The object of an O_PATH descriptor, opened for use: no name is looked up again. */
static int reopen(int found, const struct stat *st, int flags)
{
    char path[BK_TASK_PROC];
    flags = (flags & (O_RDWR | O_NOATIME)) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    if (S_ISDIR(st->st_mode))
        return openat(found, ".", flags | O_DIRECTORY);
    bk_task_proc(path, found);
    return open(path, flags);
}

/*
 * A database file that is given out for writing must be the application's own: not a second name
 * of a file from elsewhere.  Where only root, or the owner of the file, decides what is in the
 * directory, one look is enough: a database that is written all the time has no old ctime.
 */
static int check_database(const bk_task_t *task, int found, const struct stat *st)
{
    struct stat dir;
    if (st->st_nlink != 1 || fstat(task->dir, &dir) != 0)
        return EMLINK;
    bool others = (dir.st_mode & (S_IWGRP | S_IWOTH)) != 0;
    if (!others && (dir.st_uid == 0 || dir.st_uid == st->st_uid))
        return 0;
    int errnum = bk_task_sole(task, found, task->name, PATIENCE_MS);
    return errnum == EAGAIN ? bk_task_sole_busy(task, found, task->name) : errnum;
}

static int open_found(bk_task_t *task, int found, int flags)
{
    struct stat st;
    int errnum = 0;
    if (fstat(found, &st) != 0)
        return errno;
    bool link = S_ISLNK(st.st_mode) && (flags & O_PATH) != 0;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) && !S_ISFIFO(st.st_mode) && !link)
        return S_ISLNK(st.st_mode) ? refuse_link(task) : refuse_kind(task);
    if ((flags & O_RDWR) != 0) {
        if (!S_ISREG(st.st_mode))
            return refuse_kind(task);
        errnum = check_database(task, found, &st);
        if (errnum == EMLINK)
            bk_refuse(BK_REFUSE_NAMES, task->name, strlen(task->name));
        if (errnum != 0)
            return errnum;
    }
    task->fd = (flags & O_PATH) != 0 ? fcntl(found, F_DUPFD_CLOEXEC, 0) : reopen(found, &st, flags);
    if (task->fd < 0)
        return errno;
    bk_task_result(task->result, &st);
    return 0;
}

/* A new -wal, -shm or -journal belongs to whom the database belongs. */
static int create_companion(bk_task_t *task)
{
    struct stat database, st;
    const char *base = bk_roots_base(task->root->conf);
    if (strcmp(task->name, base) == 0)
        return ENOENT; /* the application makes its database */
    if (fstatat(task->dir, base, &database, AT_SYMLINK_NOFOLLOW) != 0)
        return errno;
    if (!S_ISREG(database.st_mode))
        return refuse_kind(task);
    int fd = bk_task_open(task->dir, task->name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return errno;
    if (fchown(fd, database.st_uid, database.st_gid) != 0 ||
        fchmod(fd, database.st_mode & 0777) != 0 || fstat(fd, &st) != 0) {
        int errnum = errno;
        unlinkat(task->dir, task->name, 0);
        close(fd);
        return errnum;
    }
    task->fd = fd;
    bk_task_result(task->result, &st);
    return 0;
}

int bk_look_open(bk_task_t *task)
{
    int flags = (int)task->op->flags, errnum = may_look(task);
    if (errnum == 0)
        errnum = check_flags(task, flags);
    if (errnum != 0)
        return errnum;
    /* Beside a database temporaries are made by who places one. */
    bool temporary = (task->root->may & BK_WIRE_MAY_PLACE) != 0;
    if (task->name[0] != '\0' && !bk_task_allowed(task, task->name, temporary))
        return EPERM;
    for (unsigned tries = 0; tries < CREATE_TRIES; tries++) {
        int found = bk_task_find(task->dir, task->name, flags & O_DIRECTORY);
        if (found >= 0) {
            struct stat st;
            /* To restore, directories are listed; content is read only where that was asked for. */
            if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
                errnum = EEXIST;
            else if ((task->root->may & BK_WIRE_MAY_READ) == 0 && (flags & O_PATH) == 0 &&
                     (fstat(found, &st) != 0 || !S_ISDIR(st.st_mode)))
                errnum = EPERM;
            else
                errnum = open_found(task, found, flags);
            close(found);
            return errnum;
        }
        if (errno != ENOENT || (flags & O_CREAT) == 0)
            return errno;
        errnum = create_companion(task);
        if (errnum != EEXIST)
            return errnum;
    }
    return EAGAIN;
}

/* --- ATTRS --- */

static int to_memfd(bk_task_t *task, const bk_buf_t *blob)
{
    int fd = memfd_create("attributes", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return errno;
    for (size_t done = 0; done < blob->len;) {
        ssize_t n = write(fd, blob->data + done, blob->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int errnum = errno;
            close(fd);
            return errnum;
        }
        done += (size_t)n;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
        int errnum = errno;
        close(fd);
        return errnum;
    }
    task->fd = fd;
    return 0;
}

int bk_look_attrs(bk_task_t *task)
{
    struct stat st;
    bk_buf_t blob;
    uint64_t len;
    int errnum = may_look(task);
    if (errnum != 0)
        return errnum;
    if (task->name[0] != '\0' && !bk_task_allowed(task, task->name, true))
        return EPERM;
    if (task->room < sizeof len)
        return ENOBUFS;
    int found = bk_task_find(task->dir, task->name, 0);
    if (found < 0)
        return errno;
    bk_buf_init(&blob, BK_WIRE_ATTRS_MAX);
    if (fstat(found, &st) != 0)
        errnum = errno;
    else if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode) || S_ISSOCK(st.st_mode))
        errnum = refuse_kind(task);
    else
        errnum = bk_attributes_read(found, &blob);
    if (errnum == 0 && blob.len > 0)
        errnum = to_memfd(task, &blob);
    if (errnum == 0) {
        len = blob.len;
        memcpy(task->data, &len, sizeof len);
        task->result->data_len = sizeof len;
        bk_task_result(task->result, &st);
    }
    bk_buf_free(&blob);
    close(found);
    return errnum;
}
