/*
 * files/fsaccess.c: opening beneath a root without following links: by openat2, or component by
 * component where the kernel lacks it or a sandbox forbids it.  Touches the file system only; knows
 * nothing of backups.
 */
#include "files/fsaccess.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"

struct bk_root_s {
    int fd;
    char *path;
    atomic_bool walk; /* openat2 is not to be had here */
    bk_helper_root_t *helper;
};

/* By the helper's rights; a configuration that does not have this root is no failure. */
static bk_rc_t ask_helper(bk_root_t *root, bk_helper_t *helper, uint32_t may, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = bk_helper_root_open(helper, root->path, may, &root->helper, ctl, &why);
    if (rc == BK_OK || rc == BK_FORBIDDEN)
        return BK_OK;
    if (err != NULL)
        *err = why;
    return rc;
}

bk_rc_t bk_root_open(const char *path, bool make, bk_root_t **result, bk_err_t *err)
{
    return bk_root_open_helped(path, make, NULL, 0, NULL, result, err);
}

bk_rc_t bk_root_open_helped(const char *path, bool make, bk_helper_t *helper, uint32_t may,
                            bk_ctl_t *ctl, bk_root_t **result, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (path[0] != '/')
        return bk_err_set(err, BK_INVALID, "directory %s: the path must be absolute", path);
    /* What stands in the way of making it shows when it is opened. */
    if (make && (rc = bk_mkdirs(path, 0700, err)) != BK_OK && helper == NULL)
        return rc;
    bk_root_t *root = calloc(1, sizeof *root);
    if (root == NULL || (root->path = bk_strdup(path)) == NULL) {
        free(root);
        return bk_err_set(err, BK_NO_MEMORY, "open directory %s: out of memory", path);
    }
    root->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int errnum = errno;
    rc = helper != NULL ? ask_helper(root, helper, may, ctl, err) : BK_OK;
    if (rc == BK_OK && root->fd < 0 && root->helper == NULL)
        rc = bk_err_sys(err, errnum, "open directory %s", path);
    if (rc != BK_OK) {
        bk_root_close(root);
        return rc;
    }
    *result = root;
    return BK_OK;
}

void bk_root_close(bk_root_t *root)
{
    if (root == NULL)
        return;
    if (root->fd >= 0)
        close(root->fd);
    bk_helper_root_close(root->helper);
    free(root->path);
    free(root);
}

const char *bk_root_path(const bk_root_t *root)
{
    return root->path;
}

int bk_root_fd(const bk_root_t *root)
{
    return root->fd;
}

bk_helper_root_t *bk_root_helper(const bk_root_t *root)
{
    return root->helper;
}

/* Relative, without empty components, "." or "..". */
static bool rel_valid(const char *rel)
{
    for (const char *p = rel; *p != '\0';) {
        size_t len = strcspn(p, "/");
        if (len == 0 || (p[0] == '.' && (len == 1 || (len == 2 && p[1] == '.'))))
            return false;
        p += len;
        if (*p == '/' && *++p == '\0')
            return false;
    }
    return true;
}

static int open_beneath(int dir, const char *rel, int flags, mode_t mode)
{
    struct open_how how = {
        .flags = (uint64_t)(unsigned)flags,
        .mode = (flags & (O_CREAT | __O_TMPFILE)) != 0 ? mode : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    int fd;
    /* EAGAIN: a rename somewhere raced with the look-up; the kernel asks for another try. */
    for (unsigned tries = 0; tries < 32; tries++) {
        fd = (int)syscall(SYS_openat2, dir, rel, &how, sizeof how);
        if (fd >= 0 || (errno != EAGAIN && errno != EINTR))
            break;
    }
    return fd;
}

static int open_walking(int dir, const char *rel, int flags, mode_t mode)
{
    int at = dir, fd = -1;
    const char *p = rel;
    for (;;) {
        char name[256];
        size_t len = strcspn(p, "/");
        if (len >= sizeof name) {
            errno = ENAMETOOLONG;
            fd = -1;
            break;
        }
        memcpy(name, p, len);
        name[len] = '\0';
        bool last = p[len] == '\0';
        fd = openat(at, name, last ? flags : O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, mode);
        if (fd < 0 || last)
            break;
        if (at != dir)
            close(at);
        at = fd;
        p += len + 1;
    }
    int errnum = errno;
    if (at != dir)
        close(at);
    errno = errnum;
    return fd;
}

int bk_root_open_raw(bk_root_t *root, const char *rel, int flags, mode_t mode)
{
    flags |= O_CLOEXEC | O_NOFOLLOW;
    if (root->fd < 0) {
        errno = EACCES;
        return -1;
    }
    if (rel[0] == '\0')
        return openat(root->fd, ".", flags, mode);
    if (!rel_valid(rel)) {
        errno = EINVAL;
        return -1;
    }
    if (!atomic_load_explicit(&root->walk, memory_order_relaxed)) {
        int fd = open_beneath(root->fd, rel, flags, mode);
        if (fd >= 0 || (errno != ENOSYS && errno != EPERM))
            return fd;
        /* EPERM may be the file's own answer (O_NOATIME, immutable): the other road tells. */
        bool missing = errno == ENOSYS;
        fd = open_walking(root->fd, rel, flags, mode);
        if (missing || fd >= 0)
            atomic_store_explicit(&root->walk, true, memory_order_relaxed);
        return fd;
    }
    return open_walking(root->fd, rel, flags, mode);
}

bk_rc_t bk_root_openat(bk_root_t *root, const char *rel, int flags, mode_t mode, int *fd,
                       bk_err_t *err)
{
    *fd = bk_root_open_raw(root, rel, flags, mode);
    if (*fd >= 0)
        return BK_OK;
    if (errno == EINVAL && rel[0] != '\0' && !rel_valid(rel))
        return bk_err_set(err, BK_INVALID, "open \"%s\" in %s: not a path below it", rel,
                          root->path);
    if (errno == ELOOP || errno == EXDEV)
        return bk_err_set(err, BK_FORBIDDEN,
                          "open \"%s\" in %s: there is a symbolic link in the way, which is never "
                          "followed",
                          rel, root->path);
    return bk_err_sys(err, errno, "open \"%s\" in %s", rel, root->path);
}
