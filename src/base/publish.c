/*
 * base/publish.c: temporary, fsync, rename, fsync of the directory; in that order, here and nowhere
 * else.
 */
#include "base/publish.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/str.h"

#define TMP_PREFIX ".tmp-"

int bk_openat(int dirfd, const char *path, int flags, mode_t mode)
{
    return TEMP_FAILURE_RETRY(openat(dirfd, path, flags | O_CLOEXEC, mode));
}

static int sync_fd(int fd)
{
    return TEMP_FAILURE_RETRY(fsync(fd));
}

/* EINVAL: a file system without fsync of directories; there is nothing more to ask it for. */
static int sync_directory(int fd)
{
    int rc = sync_fd(fd);
    return rc != 0 && errno == EINVAL ? 0 : rc;
}

/* Split path into its directory (into dir, "." when there is none) and last component. */
static bool split_path(const char *path, char *dir, size_t size, const char **name)
{
    const char *slash = strrchr(path, '/');
    *name = slash != NULL ? slash + 1 : path;
    size_t len = slash != NULL ? (size_t)(slash - path) : 0;
    if (slash == NULL)
        return bk_strcpy(dir, size, ".");
    if (len == 0)
        return bk_strcpy(dir, size, "/");
    if (len >= size)
        return false;
    memcpy(dir, path, len);
    dir[len] = '\0';
    return true;
}

bk_rc_t bk_publish_open(bk_publish_t *pub, int dirfd, const char *path, mode_t mode, bk_err_t *err)
{
    char dir[4096], ulid[BK_ULID_LEN + 1];
    const char *name;

    *pub = (bk_publish_t){.fd = -1, .dirfd = -1};
    if (!split_path(path, dir, sizeof dir, &name) ||
        !bk_strcpy(pub->name, sizeof pub->name, name) || *name == '\0')
        return bk_err_set(err, BK_INVALID, "write %s: not a usable file name", path);
    pub->dirfd = bk_openat(dirfd, dir, O_RDONLY | O_DIRECTORY, 0);
    if (pub->dirfd < 0)
        return bk_err_sys(err, errno, "write %s: open directory %s", path, dir);
    bk_ulid(ulid);
    bk_fmt(pub->tmp, sizeof pub->tmp, TMP_PREFIX "%s", ulid);
    pub->fd = bk_openat(pub->dirfd, pub->tmp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
    if (pub->fd < 0) {
        int errnum = errno;
        pub->tmp[0] = '\0';
        bk_publish_abort(pub);
        return bk_err_sys(err, errnum, "write %s: create a temporary file in %s", path, dir);
    }
    return BK_OK;
}

/* Give the temporary its name; tmp is empty once it is gone. */
static int move(bk_publish_t *pub, bool exclusive)
{
    int dir = pub->dirfd, rc;
    if (!exclusive)
        rc = TEMP_FAILURE_RETRY(renameat(dir, pub->tmp, dir, pub->name));
    else
        rc = TEMP_FAILURE_RETRY(renameat2(dir, pub->tmp, dir, pub->name, RENAME_NOREPLACE));
    if (rc == 0) {
        pub->tmp[0] = '\0';
    } else if (exclusive && (errno == EINVAL || errno == ENOSYS)) {
        /* A file system without that flag: a link fails when the name is taken, too. */
        rc = TEMP_FAILURE_RETRY(linkat(dir, pub->tmp, dir, pub->name, 0));
        if (rc == 0 && TEMP_FAILURE_RETRY(unlinkat(dir, pub->tmp, 0)) == 0)
            pub->tmp[0] = '\0';
    }
    return rc;
}

static bk_rc_t commit(bk_publish_t *pub, bool exclusive, bool durable, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (durable && sync_fd(pub->fd) != 0) {
        rc = bk_err_sys(err, errno, "write %s: fsync", pub->name);
        goto fail;
    }
    int closed = close(pub->fd);
    pub->fd = -1;
    /* EINTR: Linux has closed it nevertheless, and fsync has told all there was to tell. */
    if (closed != 0 && errno != EINTR) {
        rc = bk_err_sys(err, errno, "write %s: close", pub->name);
        goto fail;
    }
    if (move(pub, exclusive) != 0) {
        rc = bk_err_sys(err, errno, "write %s: rename", pub->name);
        goto fail;
    }
    if (durable && sync_directory(pub->dirfd) != 0)
        rc = bk_err_sys(err, errno, "write %s: fsync of its directory", pub->name);
fail:
    bk_publish_abort(pub);
    return rc;
}

bk_rc_t bk_publish_commit(bk_publish_t *pub, bool exclusive, bk_err_t *err)
{
    return commit(pub, exclusive, true, err);
}

void bk_publish_abort(bk_publish_t *pub)
{
    if (pub->fd >= 0)
        close(pub->fd);
    if (pub->dirfd >= 0) {
        if (pub->tmp[0] != '\0')
            TEMP_FAILURE_RETRY(unlinkat(pub->dirfd, pub->tmp, 0));
        close(pub->dirfd);
    }
    pub->fd = pub->dirfd = -1;
    pub->tmp[0] = '\0';
}

static bk_rc_t publish_bytes(int dirfd, const char *path, mode_t mode, const void *data, size_t len,
                             bool exclusive, bool durable, bk_err_t *err)
{
    bk_publish_t pub;
    bk_rc_t rc = bk_publish_open(&pub, dirfd, path, mode, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_write_all(pub.fd, data, len, path, err);
    if (rc != BK_OK) {
        bk_publish_abort(&pub);
        return rc;
    }
    return commit(&pub, exclusive, durable, err);
}

bk_rc_t bk_publish_bytes(int dirfd, const char *path, mode_t mode, const void *data, size_t len,
                         bool exclusive, bk_err_t *err)
{
    return publish_bytes(dirfd, path, mode, data, len, exclusive, true, err);
}

bk_rc_t bk_publish_cache(int dirfd, const char *path, mode_t mode, const void *data, size_t len,
                         bk_err_t *err)
{
    return publish_bytes(dirfd, path, mode, data, len, false, false, err);
}

void bk_publish_sweep(const char *dir, unsigned min_age)
{
    DIR *d = opendir(dir);
    time_t now = time(NULL);
    struct dirent *entry;
    if (d == NULL)
        return;
    while ((entry = readdir(d)) != NULL) {
        struct stat st;
        if (strncmp(entry->d_name, TMP_PREFIX, sizeof TMP_PREFIX - 1) == 0 &&
            fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode) && now - st.st_mtime >= (time_t)min_age)
            unlinkat(dirfd(d), entry->d_name, 0);
    }
    closedir(d);
}

bk_rc_t bk_write_all(int fd, const void *data, size_t len, const char *what, bk_err_t *err)
{
    const uint8_t *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return bk_err_sys(err, n == 0 ? ENOSPC : errno, "write %s", what);
        p += n;
        len -= (size_t)n;
    }
    return BK_OK;
}

bk_rc_t bk_pwrite_all(int fd, const void *data, size_t len, uint64_t offset, const char *what,
                      bk_err_t *err)
{
    const uint8_t *p = data;
    while (len > 0) {
        ssize_t n = pwrite(fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return bk_err_sys(err, n == 0 ? ENOSPC : errno, "write %s", what);
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return BK_OK;
}

bk_rc_t bk_read_all(int fd, void *data, size_t len, size_t *got, const char *what, bk_err_t *err)
{
    uint8_t *p = data;
    *got = 0;
    while (*got < len) {
        ssize_t n = read(fd, p + *got, len - *got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return bk_err_sys(err, errno, "read %s", what);
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return BK_OK;
}

bk_rc_t bk_pread_all(int fd, void *data, size_t len, uint64_t offset, size_t *got, const char *what,
                     bk_err_t *err)
{
    uint8_t *p = data;
    *got = 0;
    while (*got < len) {
        ssize_t n = pread(fd, p + *got, len - *got, (off_t)(offset + *got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return bk_err_sys(err, errno, "read %s", what);
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return BK_OK;
}

bk_rc_t bk_read_file(int dirfd, const char *path, bk_buf_t *out, bk_err_t *err)
{
    int fd = bk_openat(dirfd, path, O_RDONLY, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "read %s", path);
    bk_rc_t rc = BK_OK;
    for (;;) {
        size_t step = 64u << 10, got;
        if (step > out->max - out->len)
            step = out->max - out->len;
        uint8_t probe = 0, *room = step > 0 ? bk_buf_room(out, step) : &probe;
        if (room == NULL) {
            rc = bk_err_set(err, BK_NO_MEMORY, "read %s: out of memory", path);
            break;
        }
        rc = bk_read_all(fd, room, step > 0 ? step : 1, &got, path, err);
        if (rc != BK_OK || got == 0)
            break;
        if (step == 0) {
            rc = bk_err_set(err, BK_TOO_LARGE, "read %s: longer than %zu bytes", path, out->max);
            break;
        }
        out->len += got;
    }
    close(fd);
    return rc;
}

bk_rc_t bk_mkdirs(const char *path, mode_t mode, bk_err_t *err)
{
    char part[4096];
    struct stat st;
    if (*path == '\0' || !bk_strcpy(part, sizeof part, path))
        return bk_err_set(err, BK_INVALID, "make directory %s: the path is %s", path,
                          *path == '\0' ? "empty" : "too long");
    for (char *p = part + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char end = *p;
        *p = '\0';
        if (TEMP_FAILURE_RETRY(mkdir(part, mode)) == 0) {
            char dir[4096];
            const char *name;
            if (split_path(part, dir, sizeof dir, &name) &&
                bk_fsync_dir(AT_FDCWD, dir, err) != BK_OK)
                return err != NULL ? err->rc : BK_IO;
        } else if (errno != EEXIST) {
            int errnum = errno;
            /* A parent that exists but may not be written to is no failure. */
            if (stat(part, &st) != 0 || !S_ISDIR(st.st_mode))
                return bk_err_sys(err, errnum, "make directory %s", part);
        } else if (stat(part, &st) != 0 || !S_ISDIR(st.st_mode)) {
            return bk_err_sys(err, ENOTDIR, "make directory %s", part);
        }
        *p = end;
        if (end == '\0')
            return BK_OK;
        while (p[1] == '/')
            p++;
        if (p[1] == '\0')
            return BK_OK;
    }
}

static bk_rc_t no_parent(const char *path, const char *dir, bk_err_t *err)
{
    return bk_err_set(
        err, BK_NOT_FOUND,
        "%s: the directory above it, %s, does not exist: create it, or mount its disk", path, dir);
}

bool bk_parent_of(const char *path, char *dir, size_t size)
{
    char whole[4096];
    const char *name;
    if (!bk_strcpy(whole, sizeof whole, path))
        return false;
    for (size_t len = strlen(whole); len > 1 && whole[len - 1] == '/';)
        whole[--len] = '\0';
    return split_path(whole, dir, size, &name);
}

bk_rc_t bk_mkdir_check(const char *path, bk_err_t *err)
{
    char dir[4096];
    struct stat st;
    if (stat(path, &st) == 0)
        return S_ISDIR(st.st_mode) ? BK_OK
                                   : bk_err_set(err, BK_CONFIG, "%s is not a directory", path);
    if (errno != ENOENT || !bk_parent_of(path, dir, sizeof dir))
        return BK_OK; /* who uses it is told */
    if (stat(dir, &st) == 0)
        return S_ISDIR(st.st_mode) ? BK_OK
                                   : bk_err_set(err, BK_CONFIG, "%s is not a directory", dir);
    return errno == ENOENT ? no_parent(path, dir, err) : BK_OK;
}

bk_rc_t bk_mkdir_last(const char *path, mode_t mode, bk_err_t *err)
{
    char dir[4096];
    struct stat st;
    if (!bk_parent_of(path, dir, sizeof dir))
        return bk_err_set(err, BK_INVALID, "make directory %s: the path is too long", path);
    if (TEMP_FAILURE_RETRY(mkdir(path, mode)) == 0)
        return bk_fsync_dir(AT_FDCWD, dir, err);
    int errnum = errno;
    if (stat(path, &st) == 0)
        return S_ISDIR(st.st_mode) ? BK_OK : bk_err_sys(err, ENOTDIR, "make directory %s", path);
    return errnum == ENOENT ? no_parent(path, dir, err)
                            : bk_err_sys(err, errnum, "make directory %s", path);
}

bk_rc_t bk_fsync_dir(int dirfd, const char *path, bk_err_t *err)
{
    int fd = bk_openat(dirfd, path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "open directory %s", path);
    bk_rc_t rc = BK_OK;
    if (sync_directory(fd) != 0)
        rc = bk_err_sys(err, errno, "fsync directory %s", path);
    close(fd);
    return rc;
}

/* Where something is mounted; a bind mount may well be on the same device. */
static bool is_mount(const struct statx *st, dev_t device)
{
    return makedev(st->stx_dev_major, st->stx_dev_minor) != device ||
           (st->stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

static bk_rc_t remove_below(int fd, dev_t device, unsigned depth, const char *what, bk_err_t *err);

static bk_rc_t remove_entry(int dir, const char *name, dev_t device, unsigned depth,
                            const char *what, bk_err_t *err)
{
    struct statx st;
    if (statx(dir, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &st) != 0)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "remove %s: %s", what, name);
    if (!S_ISDIR(st.stx_mode)) {
        if (TEMP_FAILURE_RETRY(unlinkat(dir, name, 0)) != 0 && errno != ENOENT)
            return bk_err_sys(err, errno, "remove %s: remove %s", what, name);
        return BK_OK;
    }
    if (is_mount(&st, device))
        return bk_err_set(err, BK_IO, "remove %s: %s is a mount point", what, name);
    if (depth == 0)
        return bk_err_set(err, BK_IO, "remove %s: %s lies too deep", what, name);
    int child = bk_openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (child < 0)
        return bk_err_sys(err, errno, "remove %s: open %s", what, name);
    bk_rc_t rc = remove_below(child, device, depth - 1, what, err);
    if (rc == BK_OK && TEMP_FAILURE_RETRY(unlinkat(dir, name, AT_REMOVEDIR)) != 0 &&
        errno != ENOENT)
        rc = bk_err_sys(err, errno, "remove %s: remove directory %s", what, name);
    return rc;
}

/*
 * Depth-first with descriptors, so that a directory swapped for a link is not followed.  Takes fd
 * over.
 */
static bk_rc_t remove_below(int fd, dev_t device, unsigned depth, const char *what, bk_err_t *err)
{
    DIR *d = fdopendir(fd);
    struct dirent *entry;
    bk_rc_t rc = BK_OK;
    if (d == NULL) {
        int errnum = errno;
        close(fd);
        return bk_err_sys(err, errnum, "remove %s", what);
    }
    while (rc == BK_OK && (errno = 0, entry = readdir(d)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = remove_entry(dirfd(d), entry->d_name, device, depth, what, err);
    }
    if (rc == BK_OK && errno != 0)
        rc = bk_err_sys(err, errno, "remove %s: read the directory", what);
    closedir(d);
    return rc;
}

bk_rc_t bk_remove_tree(const char *dir, bool self, bk_err_t *err)
{
    struct stat st;
    int fd = bk_openat(AT_FDCWD, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd < 0)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "remove %s", dir);
    if (fstat(fd, &st) != 0) {
        int errnum = errno;
        close(fd);
        return bk_err_sys(err, errnum, "remove %s", dir);
    }
    bk_rc_t rc = remove_below(fd, st.st_dev, 512, dir, err);
    if (rc == BK_OK && self && rmdir(dir) != 0)
        rc = bk_err_sys(err, errno, "remove directory %s", dir);
    return rc;
}

bk_rc_t bk_free_space(const char *path, uint64_t *bytes, bk_err_t *err)
{
    struct statvfs st;
    if (statvfs(path, &st) != 0)
        return bk_err_sys(err, errno, "free space of %s", path);
    *bytes = (uint64_t)st.f_bavail * st.f_frsize;
    return BK_OK;
}

bk_rc_t bk_lock_file(const char *path, int *fd, bk_err_t *err)
{
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0)
        return bk_err_sys(err, errno, "lock %s", path);
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0)
        return BK_OK;
    int errnum = errno;
    close(*fd);
    *fd = -1;
    if (errnum == EWOULDBLOCK)
        return bk_err_set(err, BK_LOCKED, "lock %s: another process holds it", path);
    return bk_err_sys(err, errnum, "lock %s", path);
}
