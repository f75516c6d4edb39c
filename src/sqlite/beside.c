/*
 * sqlite/beside.c: one call for each thing that replacing a database does to a name, as a system
 * call or as an operation of the helper's.  Touches the directory of the database.
 */
#include "sqlite/beside.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"

static int result_of(int rc)
{
    return rc < 0 ? errno : 0;
}

/* One operation; fd (may be NULL) gets a descriptor, *refused what META left out. */
static int ask(bk_beside_t *b, const bk_helper_op_t *op, int *fd, struct stat *st,
               uint32_t *refused)
{
    bk_err_t why = {0};
    bk_helper_result_t result;
    if (bk_helper_at(b->helper, "", 0, op, 1, &result, b->ctl, &why) != BK_OK) {
        b->gone = why;
        return BK_BESIDE_GONE;
    }
    free(result.data);
    if (fd != NULL)
        *fd = result.fd;
    else if (result.fd >= 0)
        close(result.fd);
    if (st != NULL)
        *st = result.st;
    if (refused != NULL)
        *refused = result.refused;
    return fd != NULL && result.error == 0 && result.fd < 0 ? EIO : result.error;
}

bk_rc_t bk_beside_error(const bk_beside_t *b, int errnum, const char *what, const char *name,
                        bk_err_t *err)
{
    if (errnum != BK_BESIDE_GONE)
        return bk_err_sys(err, errnum, "database %s: %s %s", b->target, what, name);
    if (err != NULL)
        *err = b->gone;
    return bk_err_wrap(err, "database %s: %s %s", b->target, what, name), b->gone.rc;
}

static bk_rc_t open_own(bk_beside_t *b, bk_err_t *err)
{
    char dir[PATH_MAX];
    size_t len = (size_t)(b->name - b->target);
    if (len >= sizeof dir)
        return bk_err_set(err, BK_CONFIG, "database %s: the path is too long", b->target);
    memcpy(dir, b->target, len);
    dir[len > 1 ? len - 1 : len] = '\0';
    b->fd = bk_openat(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY, 0);
    return b->fd >= 0 ? BK_OK
                      : bk_err_sys(err, errno, "database %s: open directory %s", b->target, dir);
}

bk_rc_t bk_beside_open(bk_beside_t *b, const char *target, const char *configured,
                       bk_helper_t *helper, bk_ctl_t *ctl, bk_err_t *err)
{
    const uint32_t may = BK_WIRE_DATABASE | BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE;
    bk_err_t why = {0};
    const char *slash = strrchr(target, '/');
    *b = (bk_beside_t){
        .target = target, .name = slash != NULL ? slash + 1 : target, .fd = -1, .ctl = ctl};
    bk_rc_t rc = helper == NULL
                     ? BK_FORBIDDEN
                     : bk_helper_root_open(helper, configured, may, &b->helper, ctl, &why);
    if (rc == BK_FORBIDDEN)
        return open_own(b, err);
    if (rc != BK_OK) {
        if (err != NULL)
            *err = why;
        return rc;
    }
    int errnum =
        ask(b, &(bk_helper_op_t){.call = BK_WIRE_OPEN, .flags = O_DIRECTORY}, &b->fd, NULL, NULL);
    return errnum == 0 ? BK_OK : bk_beside_error(b, errnum, "open the directory of", b->name, err);
}

void bk_beside_close(bk_beside_t *b)
{
    if (b->target == NULL)
        return;
    if (b->fd >= 0)
        close(b->fd);
    bk_helper_root_close(b->helper);
    *b = (bk_beside_t){.fd = -1};
}

int bk_beside_stat(bk_beside_t *b, const char *name, struct stat *st)
{
    if (b->helper != NULL)
        return ask(b, &(bk_helper_op_t){.call = BK_WIRE_STAT, .name = name}, NULL, st, NULL);
    return result_of(fstatat(b->fd, name, st, AT_SYMLINK_NOFOLLOW));
}

int bk_beside_use(bk_beside_t *b, const char *name, int *fd)
{
    bk_helper_op_t op = {.call = BK_WIRE_OPEN, .name = name, .flags = O_RDWR};
    if (b->helper != NULL)
        return ask(b, &op, fd, NULL, NULL);
    *fd = bk_openat(b->fd, name, O_RDWR | O_NOFOLLOW, 0);
    return result_of(*fd);
}

int bk_beside_create(bk_beside_t *b, const char *name, int *fd)
{
    if (b->helper != NULL)
        return ask(b, &(bk_helper_op_t){.call = BK_WIRE_CREATE, .name = name}, fd, NULL, NULL);
    *fd = bk_openat(b->fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    return result_of(*fd);
}

int bk_beside_rename(bk_beside_t *b, const char *from, const char *to, unsigned flags)
{
    bk_helper_op_t op = {.call = BK_WIRE_RENAME, .name = from, .name2 = to, .flags = flags};
    if (b->helper != NULL)
        return ask(b, &op, NULL, NULL, NULL);
    return result_of(renameat2(b->fd, from, b->fd, to, flags));
}

int bk_beside_unlink(bk_beside_t *b, const char *name)
{
    if (b->helper != NULL)
        return ask(b, &(bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = name}, NULL, NULL, NULL);
    return result_of(unlinkat(b->fd, name, 0));
}

int bk_beside_link(bk_beside_t *b, const char *from, const char *to)
{
    return b->helper != NULL ? EOPNOTSUPP : result_of(linkat(b->fd, from, b->fd, to, 0));
}

int bk_beside_own(bk_beside_t *b, const char *name, uint32_t uid, uint32_t gid, uint32_t mode,
                  bool *owned)
{
    uint32_t refused = 0;
    int errnum = ask(b,
                     &(bk_helper_op_t){.call = BK_WIRE_META,
                                       .name = name,
                                       .set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE,
                                       .uid = uid,
                                       .gid = gid,
                                       .mode = mode & 0777},
                     NULL, NULL, &refused);
    *owned = (refused & BK_WIRE_REFUSED_OWNER) == 0;
    return errnum;
}

int bk_beside_alone(bk_beside_t *b, int fd)
{
    bk_helper_op_t op = {.call = BK_WIRE_ALONE, .name = b->name, .attrs = fd};
    if (b->helper != NULL)
        return ask(b, &op, NULL, NULL, NULL);
    /* The default signal of a lease that is broken would end this process; this one is ignored. */
    if (fcntl(fd, F_SETSIG, SIGURG) != 0)
        return EOPNOTSUPP;
    if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0)
        return errno == EAGAIN ? EBUSY : EOPNOTSUPP;
    return result_of(fcntl(fd, F_SETLEASE, F_UNLCK));
}

bk_rc_t bk_beside_room(bk_beside_t *b, uint64_t *bytes, bk_err_t *err)
{
    struct statvfs st;
    if (fstatvfs(b->fd, &st) != 0)
        return bk_err_sys(err, errno, "database %s: free space", b->target);
    *bytes = (uint64_t)st.f_bavail * st.f_frsize;
    return BK_OK;
}

bk_rc_t bk_beside_sync(bk_beside_t *b, bk_err_t *err)
{
    /* EINVAL: a file system without fsync of directories. */
    if (TEMP_FAILURE_RETRY(fsync(b->fd)) == 0 || errno == EINVAL)
        return BK_OK;
    return bk_err_sys(err, errno, "database %s: fsync of its directory", b->target);
}
