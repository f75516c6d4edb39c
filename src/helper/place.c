/*
 * helper/place.c: operations that change something: files, directories, links and FIFOs with their
 * owners, modes, times and attributes.
 *
 * What is changed is found first (O_PATH, no link followed) and then changed through that
 * descriptor, so that nobody can put another object in between.  What is allowed:
 *
 *   - everything needs BK_WIRE_MAY_PLACE;
 *   - a file that has names elsewhere, or may have, is never changed: META finds it as it should be
 *     or fails with EMLINK, and the restore replaces it.  A restore never writes into a file that
 *     was there, it makes a new one and renames it;
 *   - set-user-id and set-group-id bits of files, and security.capability, are left out without
 *     BK_WIRE_MAY_SETUID; device nodes and sockets are neither made nor changed nor linked;
 *   - of a database root only the database's own names and temporaries beside it.
 *
 * Touches the file system below the request's directory and, for LINK_FROM, below the root; libc
 * only.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "helper/attributes.h"
#include "helper/refuse.h"
#include "helper/task.h"

#define SPECIAL     (S_ISUID | S_ISGID)
#define PATIENCE_MS 200 /* to learn whose file it is that was changed just now */

static int refuse(const bk_task_t *task, bk_refuse_t kind, int errnum)
{
    bk_refuse(kind, task->name, strlen(task->name));
    return errnum;
}

/* --- what is to be changed --- */

/* An O_PATH descriptor of something that may be changed or linked.  0 or an errno. */
static int find(bk_task_t *task, int dir, int *found, struct stat *st)
{
    *found = bk_task_find(dir, task->name, 0);
    if (*found < 0)
        return errno;
    int errnum = fstat(*found, st) != 0 ? errno : 0;
    if (errnum == 0 && !S_ISREG(st->st_mode) && !S_ISDIR(st->st_mode) && !S_ISLNK(st->st_mode) &&
        !S_ISFIFO(st->st_mode))
        errnum = refuse(task, BK_REFUSE_KIND, EPERM);
    if (errnum != 0)
        close(*found);
    return errnum;
}

/* --- META --- */

/* The attributes that the worker passed.  Only memory: another file could make us wait for ever. */
static int read_blob(int fd, unsigned char **out, size_t *len)
{
    struct stat st;
    *out = NULL;
    *len = 0;
    if (fd < 0 || fcntl(fd, F_GET_SEALS) < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return EINVAL;
    if (st.st_size < 0 || (uint64_t)st.st_size > BK_WIRE_ATTRS_MAX)
        return E2BIG;
    unsigned char *blob = malloc((size_t)st.st_size + 1);
    if (blob == NULL)
        return ENOMEM;
    size_t done = 0;
    while (done < (size_t)st.st_size) {
        ssize_t n = pread(fd, blob + done, (size_t)st.st_size - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int errnum = n < 0 ? errno : EINVAL;
            free(blob);
            return errnum;
        }
        done += (size_t)n;
    }
    *out = blob;
    *len = done;
    return 0;
}

/* The mode that may be set: without special bits where the root does not give them. */
static mode_t mode_for(bk_task_t *task, const struct stat *st)
{
    mode_t mode = task->op->mode & 07777;
    if (S_ISDIR(st->st_mode) || (mode & SPECIAL) == 0 ||
        (task->root->may & BK_WIRE_MAY_SETUID) != 0)
        return mode;
    refuse(task, BK_REFUSE_SETUID, 0);
    task->result->refused |= BK_WIRE_REFUSED_SETUID;
    return mode & ~(mode_t)SPECIAL;
}

/* Is everything that the operation would set as it should be? */
static bool is_so(bk_task_t *task, int found, const struct stat *st, const void *blob, size_t len)
{
    const bk_wire_op_t *op = task->op;
    if ((op->set & BK_WIRE_SET_OWNER) != 0 && (st->st_uid != op->uid || st->st_gid != op->gid))
        return false;
    if ((op->set & BK_WIRE_SET_MODE) != 0 && !S_ISLNK(st->st_mode) &&
        (st->st_mode & 07777) != (op->mode & 07777))
        return false;
    if ((op->set & BK_WIRE_SET_MTIME) != 0 &&
        (st->st_mtim.tv_sec != op->mtime_sec || (uint32_t)st->st_mtim.tv_nsec != op->mtime_nsec))
        return false;
    if ((op->set & BK_WIRE_SET_ATTRS) == 0)
        return true;
    bk_buf_t now;
    bk_buf_init(&now, BK_WIRE_ATTRS_MAX);
    bool same = bk_attributes_read(found, &now) == 0 && now.len == len &&
                (len == 0 || memcmp(now.data, blob, len) == 0);
    bk_buf_free(&now);
    return same;
}

/* A file system without owners (FAT, some NFS) is no reason to stop. */
static int set_owner(bk_task_t *task, int found)
{
    const bk_wire_op_t *op = task->op;
    if ((op->set & BK_WIRE_SET_OWNER) == 0 ||
        fchownat(found, "", op->uid, op->gid, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno != EPERM && errno != EINVAL && errno != EOPNOTSUPP)
        return errno;
    task->result->refused |= BK_WIRE_REFUSED_OWNER;
    return 0;
}

/* Owner, attributes, mode, time: chown clears special bits, an access list changes the mode, and
 * all but the last may change the time. */
static int set_all(bk_task_t *task, int found, const struct stat *st, const void *blob, size_t len)
{
    const bk_wire_op_t *op = task->op;
    char path[BK_TASK_PROC];
    unsigned refused = 0;
    bk_task_proc(path, found);
    int errnum = set_owner(task, found);
    if (errnum == 0 && (op->set & BK_WIRE_SET_ATTRS) != 0) {
        bool capabilities = (task->root->may & BK_WIRE_MAY_SETUID) != 0, withheld = false;
        errnum = bk_attributes_write(found, (op->set & BK_WIRE_SET_FRESH) != 0, capabilities, blob,
                                     len, &refused, &withheld);
        if (withheld) {
            refuse(task, BK_REFUSE_SETUID, 0);
            task->result->refused |= BK_WIRE_REFUSED_SETUID;
        }
        task->result->refused |= refused < BK_WIRE_REFUSED_ATTRS ? refused : BK_WIRE_REFUSED_ATTRS;
    }
    if (errnum == 0 && (op->set & BK_WIRE_SET_MODE) != 0 && !S_ISLNK(st->st_mode)) {
        mode_t mode = mode_for(task, st);
        /* Special bits without their owner would be somebody else's. */
        if ((task->result->refused & BK_WIRE_REFUSED_OWNER) != 0 && !S_ISDIR(st->st_mode))
            mode &= ~(mode_t)SPECIAL;
        if (chmod(path, mode) != 0)
            errnum = errno;
    }
    if (errnum == 0 && (op->set & BK_WIRE_SET_MTIME) != 0) {
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                    {.tv_sec = op->mtime_sec, .tv_nsec = op->mtime_nsec}};
        if (utimensat(AT_FDCWD, path, times, 0) != 0)
            errnum = errno;
    }
    return errnum;
}

static int place_meta(bk_task_t *task)
{
    const uint32_t known = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE | BK_WIRE_SET_MTIME |
                           BK_WIRE_SET_ATTRS | BK_WIRE_SET_FRESH;
    struct stat st;
    unsigned char *blob = NULL;
    size_t len = 0;
    int found = -1;
    if ((task->op->set & ~known) != 0 || task->op->mtime_nsec >= 1000000000u)
        return EINVAL;
    int errnum = find(task, task->dir, &found, &st);
    if (errnum != 0)
        return errnum;
    if ((task->op->set & BK_WIRE_SET_ATTRS) != 0)
        errnum = read_blob(task->attrs, &blob, &len);
    bool fresh = (task->op->set & BK_WIRE_SET_FRESH) != 0;
    /* Of what is as it should be nobody has to know whose it is. */
    if (errnum == 0 && (fresh || !is_so(task, found, &st, blob, len))) {
        errnum = bk_task_sole(task, found, task->name, PATIENCE_MS);
        if (errnum == EAGAIN)
            errnum = EMLINK;
        if (errnum == 0)
            errnum = set_all(task, found, &st, blob, len);
        else if (errnum == EMLINK)
            refuse(task, BK_REFUSE_NAMES, 0);
    }
    free(blob);
    close(found);
    return errnum;
}

/* --- making --- */

static int place_create(bk_task_t *task)
{
    struct stat st;
    int fd = bk_task_open(task->dir, task->name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return errno;
    if (fstat(fd, &st) != 0) {
        int errnum = errno;
        close(fd);
        return errnum;
    }
    bk_task_remember(task, fd);
    bk_task_result(task->result, &st);
    task->fd = fd;
    return 0;
}

static int result_of(int rc)
{
    return rc == 0 ? 0 : errno;
}

/* Another name for what is found: the very object that was looked at. */
static int place_link(bk_task_t *task)
{
    struct stat st;
    int found = -1;
    bool from = task->op->call == BK_WIRE_LINK_FROM;
    int errnum = find(task, from ? task->root->fd : task->dir, &found, &st);
    if (errnum != 0)
        return errnum;
    errnum = S_ISDIR(st.st_mode)
                 ? EISDIR
                 : result_of(linkat(found, "", task->dir, task->name2, AT_EMPTY_PATH));
    close(found);
    return errnum;
}

static int place_rename(bk_task_t *task)
{
    uint32_t flags = task->op->flags;
    if (flags != 0 && flags != RENAME_NOREPLACE && flags != RENAME_EXCHANGE)
        return EINVAL;
    return result_of(renameat2(task->dir, task->name, task->dir, task->name2, flags));
}

static int place_unlink(bk_task_t *task)
{
    if (task->op->flags != 0 && task->op->flags != AT_REMOVEDIR)
        return EINVAL;
    return result_of(unlinkat(task->dir, task->name, (int)task->op->flags));
}

static int place_sync(bk_task_t *task)
{
    int fd = openat(task->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int errnum = result_of(syncfs(fd));
    close(fd);
    return errnum;
}

/*
 * A write lease is given only when no other open file leads there; and it is asked of the worker's
 * own, so that one does not count.  It is given back at once.
 */
static int place_alone(bk_task_t *task)
{
    struct stat st, named;
    if ((task->root->may & BK_WIRE_DATABASE) == 0 ||
        strcmp(task->name, bk_roots_base(task->root->conf)) != 0)
        return refuse(task, BK_REFUSE_DATABASE, EPERM);
    if (fstat(task->attrs, &st) != 0 ||
        fstatat(task->dir, task->name, &named, AT_SYMLINK_NOFOLLOW) != 0)
        return errno;
    if (!S_ISREG(st.st_mode) || st.st_ino != named.st_ino || st.st_dev != named.st_dev)
        return ESTALE;
    /* The default signal of a lease that is broken would end this process; this one is ignored. */
    if (fcntl(task->attrs, F_SETSIG, SIGURG) != 0)
        return EOPNOTSUPP;
    if (fcntl(task->attrs, F_SETLEASE, F_WRLCK) != 0)
        return errno == EAGAIN ? EBUSY : EOPNOTSUPP;
    return result_of(fcntl(task->attrs, F_SETLEASE, F_UNLCK));
}

/* --- which of them --- */

/* A database root knows few verbs, and its database is replaced by a rename, never removed. */
static int check_database(const bk_task_t *task)
{
    if ((task->root->may & BK_WIRE_DATABASE) == 0 || task->op->call == BK_WIRE_SYNC)
        return 0;
    switch ((bk_wire_call_t)task->op->call) {
    case BK_WIRE_CREATE:
    case BK_WIRE_META:
    case BK_WIRE_RENAME:
    case BK_WIRE_UNLINK:
    case BK_WIRE_ALONE:
        break;
    default:
        return refuse(task, BK_REFUSE_DATABASE, EPERM);
    }
    if (!bk_task_allowed(task, task->name, true))
        return EPERM;
    if (task->op->call == BK_WIRE_RENAME)
        return bk_task_allowed(task, task->name2, true) ? 0 : EPERM;
    if (task->op->call == BK_WIRE_UNLINK &&
        strcmp(task->name, bk_roots_base(task->root->conf)) == 0)
        return refuse(task, BK_REFUSE_DATABASE, EPERM);
    return 0;
}

int bk_place_do(bk_task_t *task)
{
    if ((task->root->may & BK_WIRE_MAY_PLACE) == 0)
        return refuse(task, BK_REFUSE_RIGHT, EPERM);
    int errnum = check_database(task);
    if (errnum != 0)
        return errnum;
    switch ((bk_wire_call_t)task->op->call) {
    case BK_WIRE_CREATE:
        return place_create(task);
    case BK_WIRE_META:
        return place_meta(task);
    case BK_WIRE_RENAME:
        return place_rename(task);
    case BK_WIRE_LINK:
    case BK_WIRE_LINK_FROM:
        return place_link(task);
    case BK_WIRE_SYMLINK:
        return result_of(symlinkat(task->name2, task->dir, task->name));
    case BK_WIRE_MKDIR:
        return result_of(mkdirat(task->dir, task->name, 0700));
    case BK_WIRE_MKFIFO:
        return result_of(mknodat(task->dir, task->name, S_IFIFO | 0600, 0));
    case BK_WIRE_UNLINK:
        return place_unlink(task);
    case BK_WIRE_SYNC:
        return place_sync(task);
    case BK_WIRE_ALONE:
        return place_alone(task);
    default:
        return EINVAL;
    }
}
