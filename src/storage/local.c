/*
 * storage/local.c: objects as files below one directory.
 *
 * An object is published by base/publish.h beside its name; a spool file on the same file system is
 * linked instead of copied.  The directory is opened anew for each call: a disk that is unmounted
 * and mounted again is neither held busy nor written to behind its mount point's back.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/direct.h"
#include "base/publish.h"
#include "base/str.h"
#include "base/texts.h"
#include "storage/driver.h"

#define STEP         (4u << 20) /* bytes between two looks at the stop flag */
#define SETTLED_MAX  1024u      /* places; at most half of them are used */
#define SWEEP_AGE    86400u     /* seconds: no writer is at one temporary for so long */
#define SWEEP_LEVELS 4u

typedef struct {
    char *path;
    atomic_bool swept;
    pthread_mutex_t lock;
    struct {
        dev_t device;
        ino_t inode;        /* 0: free */
    } settled[SETTLED_MAX]; /* directories whose own names are durable; under lock */
    unsigned settled_count;
} local_t;

static bk_rc_t check(const bk_storage_config_t *config, bk_err_t *err)
{
    const char *path = bk_storage_config_get(config, "path");
    for (unsigned i = 0; i < config->count; i++)
        if (strcmp(config->settings[i].key, "path") != 0)
            return bk_err_set(err, BK_CONFIG,
                              "storage local %s: unknown setting \"%s\"; it has: path",
                              config->name, config->settings[i].key);
    if (path == NULL)
        return bk_err_set(err, BK_CONFIG, "storage local %s: \"path\" is missing: path /directory;",
                          config->name);
    if (path[0] != '/' || path[strspn(path, "/")] == '\0')
        return bk_err_set(err, BK_CONFIG,
                          "storage local %s: path \"%s\" must be an absolute path of a directory",
                          config->name, path);
    return BK_OK;
}

/* file:///path or file://localhost/path (RFC 8089), %HH for any byte. */
static bk_rc_t from_url(bk_storage_config_t *out, const char *url, bk_err_t *err)
{
    char path[4096];
    const char *p = url + strlen("file://");
    size_t len = 0;
    if (strncmp(p, "localhost/", 10) == 0)
        p += strlen("localhost");
    if (*p != '/')
        return bk_err_set(err, BK_INVALID, "%s: must be file:///absolute/path", url);
    for (; *p != '\0' && len + 1 < sizeof path; p++) {
        uint8_t byte = (uint8_t)*p;
        if (*p == '%') {
            if (!bk_unhex(&byte, 1, p + 1, strnlen(p + 1, 2)) || byte == 0)
                return bk_err_set(err, BK_INVALID, "%s: write a percent sign as %%25", url);
            p += 2;
        }
        path[len++] = (char)byte;
    }
    if (*p != '\0')
        return bk_err_set(err, BK_INVALID, "%s: the path is too long", url);
    path[len] = '\0';
    return bk_storage_config_set(out, "path", path, err);
}

static bk_rc_t open_local(const bk_storage_config_t *config, void **self, bk_err_t *err)
{
    bk_rc_t rc = check(config, err);
    if (rc != BK_OK)
        return rc;
    local_t *local = calloc(1, sizeof *local);
    if (local == NULL || (local->path = bk_strdup(bk_storage_config_get(config, "path"))) == NULL) {
        free(local);
        return bk_err_set(err, BK_NO_MEMORY, "out of memory");
    }
    for (size_t len = strlen(local->path); len > 1 && local->path[len - 1] == '/'; len--)
        local->path[len - 1] = '\0';
    pthread_mutex_init(&local->lock, NULL);
    *self = local;
    return BK_OK;
}

static void close_local(void *self)
{
    local_t *local = self;
    pthread_mutex_destroy(&local->lock);
    free(local->path);
    free(local);
}

/*
 * End of every call: say what an operator can do.  Publishing names its object, and so does the
 * caller of this driver: once is enough.
 */
static bk_rc_t result(const local_t *local, const char *name, bk_rc_t rc, bk_err_t *err)
{
    if (rc == BK_OK || err == NULL)
        return rc;
    const char *base = strrchr(name, '/');
    const char *said[] = {name, base != NULL ? base + 1 : name};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        char prefix[BK_STORAGE_NAME + 16];
        bk_fmt(prefix, sizeof prefix, "write %s: ", said[i]);
        size_t len = strlen(prefix);
        if (strncmp(err->text, prefix, len) == 0)
            memmove(err->text, err->text + len, strlen(err->text + len) + 1);
    }
    if (rc == BK_NO_SPACE)
        bk_err_remedy(err, "free space on %s or remove old backups", local->path);
    else if (rc == BK_DENIED && err->sys != EROFS)
        bk_err_remedy(err, "give this process's user access to %s and all below it", local->path);
    return rc;
}

/* To write is not to look for: what is missing then is the storage's fault. */
static bk_rc_t write_result(const local_t *local, const char *name, bk_rc_t rc, bk_err_t *err)
{
    if (rc == BK_NOT_FOUND) {
        rc = BK_STORAGE;
        if (err != NULL)
            err->rc = rc;
    }
    return result(local, name, rc, err);
}

/* make: create the directory when only it is missing; what lies above is the operator's. */
static bk_rc_t open_root(const local_t *local, bool make, int *root, bk_err_t *err)
{
    const int flags = O_PATH | O_DIRECTORY;
    *root = bk_openat(AT_FDCWD, local->path, flags, 0);
    if (*root >= 0)
        return BK_OK;
    if (errno == ENOENT && make) {
        bk_rc_t rc = bk_mkdir_last(local->path, 0700, err);
        if (rc != BK_OK)
            return rc;
        *root = bk_openat(AT_FDCWD, local->path, flags, 0);
        if (*root >= 0)
            return BK_OK;
    }
    if (errno == ENOTDIR)
        return bk_err_set(err, BK_STORAGE, "%s is not a directory", local->path);
    return bk_err_sys(err, errno, "open directory %s", local->path);
}

/* mkdir -p of the directories in name.  They become durable by settle. */
static bk_rc_t make_parents(int root, const char *name, bk_err_t *err)
{
    char part[BK_STORAGE_NAME];
    bk_strcpy(part, sizeof part, name);
    for (char *slash = strchr(part, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (TEMP_FAILURE_RETRY(mkdirat(root, part, 0700)) != 0 && errno != EEXIST)
            return bk_err_sys(err, errno, "make directory %s", part);
        *slash = '/';
    }
    return BK_OK;
}

/* True when the directory was there already, else it is now. */
static bool settled(local_t *local, const struct stat *st, bool add)
{
    pthread_mutex_lock(&local->lock);
    size_t at = (size_t)(st->st_ino * 0x9e3779b97f4a7c15u >> 32) % SETTLED_MAX;
    while (local->settled[at].inode != 0 &&
           (local->settled[at].inode != st->st_ino || local->settled[at].device != st->st_dev))
        at = (at + 1) % SETTLED_MAX;
    bool there = local->settled[at].inode != 0;
    if (add && !there) {
        if (local->settled_count >= SETTLED_MAX / 2) {
            memset(local->settled, 0, sizeof local->settled);
            local->settled_count = 0;
        }
        local->settled[at].device = st->st_dev;
        local->settled[at].inode = st->st_ino;
        local->settled_count++;
    }
    pthread_mutex_unlock(&local->lock);
    return there;
}

/*
 * Make the directories that lead to name durable.  Once each is enough, but whoever made one may
 * have died, or may be another lane that has not synced it yet: so it is not left to the maker.
 */
static bk_rc_t settle(local_t *local, int root, const char *name, bk_err_t *err)
{
    char part[BK_STORAGE_NAME];
    struct stat st;
    bk_rc_t rc = BK_OK;
    bk_strcpy(part, sizeof part, name);
    char *end = strrchr(part, '/');
    if (end == NULL)
        return BK_OK;
    *end = '\0';
    if (TEMP_FAILURE_RETRY(fstatat(root, part, &st, 0)) != 0)
        return bk_err_sys(err, errno, "look at directory %s", part);
    if (settled(local, &st, false))
        return BK_OK;
    while (rc == BK_OK && (end = strrchr(part, '/')) != NULL) {
        *end = '\0';
        rc = bk_fsync_dir(root, part, err);
    }
    if (rc == BK_OK)
        rc = bk_fsync_dir(root, ".", err);
    if (rc == BK_OK)
        settled(local, &st, true);
    return rc;
}

/* fsync the directory that holds name. */
static bk_rc_t sync_parent(int root, const char *name, bk_err_t *err)
{
    char dir[BK_STORAGE_NAME];
    bk_strcpy(dir, sizeof dir, name);
    char *slash = strrchr(dir, '/');
    if (slash != NULL)
        *slash = '\0';
    return bk_fsync_dir(root, slash != NULL ? dir : ".", err);
}

/* Temporaries of writers that died.  What cannot be read or removed stays: it does no harm. */
static void sweep(const char *dir, unsigned levels)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    if (d == NULL)
        return;
    while (levels > 0 && (entry = readdir(d)) != NULL) {
        char below[4096];
        if (entry->d_type == DT_DIR && bk_storage_name_valid(entry->d_name, false) &&
            bk_fmt(below, sizeof below, "%s/%s", dir, entry->d_name))
            sweep(below, levels - 1);
    }
    closedir(d);
    bk_publish_sweep(dir, SWEEP_AGE);
}

static bk_rc_t open_for_writing(local_t *local, int *root, bk_err_t *err)
{
    bk_rc_t rc = open_root(local, true, root, err);
    if (rc == BK_OK && !atomic_exchange(&local->swept, true))
        sweep(local->path, SWEEP_LEVELS);
    return rc;
}

/* A temporary in the object's directory; the directory is made when it is missing. */
static bk_rc_t begin(int root, const char *name, bk_publish_t *pub, bk_err_t *err)
{
    bk_rc_t rc = bk_publish_open(pub, root, name, 0600, err);
    if (rc != BK_NOT_FOUND)
        return rc;
    bk_err_clear(err);
    if ((rc = make_parents(root, name, err)) != BK_OK)
        return rc;
    return bk_publish_open(pub, root, name, 0600, err);
}

static bk_rc_t write_steps(int fd, const char *name, const uint8_t *data, size_t len, bk_ctl_t *ctl,
                           bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t at = 0; at < len && rc == BK_OK; at += STEP) {
        rc = bk_ctl_check(ctl, err);
        if (rc == BK_OK)
            rc = bk_direct_write(fd, data + at, len - at < STEP ? len - at : STEP, at, name, err);
    }
    return rc;
}

static bk_rc_t put(void *self, const char *name, const void *data, size_t len, bool exclusive,
                   bk_ctl_t *ctl, bk_err_t *err)
{
    local_t *local = self;
    bk_publish_t pub;
    int root;
    bk_rc_t rc = open_for_writing(local, &root, err);
    if (rc != BK_OK)
        return write_result(local, name, rc, err);
    if ((rc = begin(root, name, &pub, err)) == BK_OK) {
        if ((rc = write_steps(pub.fd, name, data, len, ctl, err)) == BK_OK)
            rc = bk_publish_commit(&pub, exclusive, err);
        else
            bk_publish_abort(&pub);
    }
    if (rc == BK_OK)
        rc = settle(local, root, name, err);
    close(root);
    return write_result(local, name, rc, err);
}

/* The kernel's copy where it can (reflinks, no way through memory), else by read and write. */
static bk_rc_t copy_bytes(int from, int to, const char *path, uint64_t size, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    char *buffer = NULL;
    uint64_t done = 0;
    bk_rc_t rc = BK_OK;
    while (done < size && (rc = bk_ctl_check(ctl, err)) == BK_OK) {
        size_t got = size - done < STEP ? (size_t)(size - done) : STEP;
        if (buffer == NULL) {
            ssize_t n = copy_file_range(from, NULL, to, NULL, got, 0);
            if (n > 0)
                done += (uint64_t)n;
            if (n > 0 || (n < 0 && errno == EINTR))
                continue;
            if (n < 0 && errno != EXDEV && errno != EINVAL && errno != ENOSYS &&
                errno != EOPNOTSUPP) {
                rc = bk_err_sys(err, errno, "copy %s", path);
                break;
            }
            /* Not here; or nothing came, which old kernels say of files that are not empty. */
            if ((buffer = malloc(STEP)) == NULL) {
                rc = bk_err_set(err, BK_NO_MEMORY, "copy %s: out of memory", path);
                break;
            }
        }
        if ((rc = bk_read_all(from, buffer, got, &got, path, err)) == BK_OK && got == 0)
            rc = bk_err_set(err, BK_CHANGED, "copy %s: it became shorter meanwhile", path);
        if (rc == BK_OK && (rc = bk_write_all(to, buffer, got, path, err)) == BK_OK)
            done += got;
        if (rc != BK_OK)
            break;
    }
    free(buffer);
    return rc;
}

static bk_rc_t copy_object(int root, const char *name, const char *path, bk_ctl_t *ctl,
                           bk_err_t *err)
{
    bk_publish_t pub;
    struct stat st;
    bk_rc_t rc;
    if (fstatat(root, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
        return sync_parent(root, name, err);
    int from = bk_openat(AT_FDCWD, path, O_RDONLY, 0);
    if (from < 0 || TEMP_FAILURE_RETRY(fstat(from, &st)) != 0) {
        rc = bk_err_sys(err, errno, "open %s", path);
        if (from >= 0)
            close(from);
        return rc;
    }
    if ((rc = begin(root, name, &pub, err)) == BK_OK) {
        if ((rc = copy_bytes(from, pub.fd, path, (uint64_t)st.st_size, ctl, err)) == BK_OK)
            rc = bk_publish_commit(&pub, false, err);
        else
            bk_publish_abort(&pub);
    }
    close(from);
    return rc;
}

static bk_rc_t link_or_copy(int root, const char *name, const char *path, bk_ctl_t *ctl,
                            bk_err_t *err)
{
    struct stat st;
    int failed = TEMP_FAILURE_RETRY(linkat(AT_FDCWD, path, root, name, 0));
    if (failed != 0 && errno == ENOENT) {
        if (TEMP_FAILURE_RETRY(fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW)) != 0)
            return bk_err_sys(err, errno, "read %s", path);
        bk_rc_t rc = make_parents(root, name, err);
        if (rc != BK_OK)
            return rc;
        failed = TEMP_FAILURE_RETRY(linkat(AT_FDCWD, path, root, name, 0));
    }
    if (failed == 0 || errno == EEXIST)
        return sync_parent(root, name, err);
    if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != EOPNOTSUPP)
        return bk_err_sys(err, errno, "link %s", path);
    return copy_object(root, name, path, ctl, err);
}

static bk_rc_t put_file(void *self, const char *name, const char *path, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    local_t *local = self;
    int root;
    bk_rc_t rc = open_for_writing(local, &root, err);
    if (rc != BK_OK)
        return write_result(local, name, rc, err);
    rc = link_or_copy(root, name, path, ctl, err);
    if (rc == BK_OK)
        rc = settle(local, root, name, err);
    close(root);
    return write_result(local, name, rc, err);
}

static bk_rc_t open_object(int root, const char *name, int *fd, struct stat *st, bk_err_t *err)
{
    /* O_NONBLOCK: a named pipe of that name must not hang the caller. */
    *fd = bk_openat(root, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (*fd < 0)
        return bk_err_sys(err, errno, "open");
    bk_rc_t rc = BK_OK;
    if (TEMP_FAILURE_RETRY(fstat(*fd, st)) != 0)
        rc = bk_err_sys(err, errno, "stat");
    else if (!S_ISREG(st->st_mode))
        rc = bk_err_set(err, BK_NOT_FOUND, "not a file");
    if (rc != BK_OK)
        close(*fd);
    return rc;
}

static bk_rc_t get(void *self, const char *name, uint64_t offset, size_t len, void *out,
                   size_t *got, bk_ctl_t *ctl, bk_err_t *err)
{
    const local_t *local = self;
    struct stat st;
    uint8_t *to = out;
    int root, fd;
    bk_rc_t rc = open_root(local, false, &root, err);
    if (rc != BK_OK)
        return result(local, name, rc, err);
    *got = 0;
    rc = open_object(root, name, &fd, &st, err);
    close(root);
    if (rc != BK_OK)
        return result(local, name, rc, err);
    bool more = offset < (uint64_t)st.st_size;
    while (more && *got < len && rc == BK_OK) {
        size_t step = len - *got < STEP ? len - *got : STEP, n = 0;
        rc = bk_pread_all(fd, to + *got, step, offset + *got, &n, name, err);
        *got += n;
        more = n == step;
        if (rc == BK_OK && more)
            rc = bk_ctl_check(ctl, err);
    }
    close(fd);
    return result(local, name, rc, err);
}

static bk_rc_t size_of(void *self, const char *name, uint64_t *size, bk_ctl_t *ctl, bk_err_t *err)
{
    const local_t *local = self;
    struct stat st;
    int root;
    (void)ctl;
    bk_rc_t rc = open_root(local, false, &root, err);
    if (rc != BK_OK)
        return result(local, name, rc, err);
    if (TEMP_FAILURE_RETRY(fstatat(root, name, &st, AT_SYMLINK_NOFOLLOW)) != 0)
        rc = bk_err_sys(err, errno, "stat");
    else if (!S_ISREG(st.st_mode))
        rc = bk_err_set(err, BK_NOT_FOUND, "not a file");
    else
        *size = (uint64_t)st.st_size;
    close(root);
    return result(local, name, rc, err);
}

typedef struct {
    int root;
    const char *prefix;
    bk_storage_list_fn fn;
    void *arg;
    bk_ctl_t *ctl;
} listing_t;

/* A linked directory counts, as it does when an object in it is opened. */
static bool is_directory(int dir, const struct dirent *entry)
{
    struct stat st;
    if (entry->d_type != DT_UNKNOWN && entry->d_type != DT_LNK)
        return entry->d_type == DT_DIR;
    return fstatat(dir, entry->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode);
}

/*
 * Sorted names in a directory that can be an object's (temporaries and "lost+found" cannot).
 * Directories end in '/', so that the order is that of whole object names.  Takes fd over.
 */
static bk_rc_t read_names(int fd, const char *what, bk_texts_t *names, bk_err_t *err)
{
    struct dirent *entry;
    bk_rc_t rc = BK_OK;
    DIR *d = fdopendir(fd);
    if (d == NULL) {
        int errnum = errno;
        close(fd);
        return bk_err_sys(err, errnum, "read directory %s", what);
    }
    while (rc == BK_OK && (errno = 0, entry = readdir(d)) != NULL) {
        char name[258];
        if (bk_storage_name_valid(entry->d_name, false) &&
            bk_fmt(name, sizeof name, "%s%s", entry->d_name,
                   is_directory(dirfd(d), entry) ? "/" : "") &&
            !bk_texts_add(names, name, 0))
            rc = bk_err_set(err, BK_NO_MEMORY, "read directory %s: out of memory", what);
    }
    if (rc == BK_OK && errno != 0)
        rc = bk_err_sys(err, errno, "read directory %s", what);
    closedir(d);
    bk_texts_sort(names);
    return rc;
}

static bk_rc_t list_object(const listing_t *listing, char *name, bk_err_t *err)
{
    struct stat st;
    if (TEMP_FAILURE_RETRY(fstatat(listing->root, name, &st, AT_SYMLINK_NOFOLLOW)) != 0)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "stat %s", name);
    if (!S_ISREG(st.st_mode))
        return BK_OK;
    bk_storage_item_t item = {.name = name,
                              .size = (uint64_t)st.st_size,
                              .mtime = (int64_t)st.st_mtim.tv_sec * BK_SEC + st.st_mtim.tv_nsec};
    return listing->fn(listing->arg, &item, err);
}

/* path: "" or a directory with its '/'. */
static bk_rc_t list_below(const listing_t *listing, const char *path, bk_err_t *err)
{
    bk_texts_t names = {0};
    size_t want = strlen(listing->prefix);
    const char *dir = *path != '\0' ? path : ".";
    int fd = bk_openat(listing->root, dir, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? BK_OK
                   : bk_err_sys(err, errno, "open directory %s", dir);
    bk_rc_t rc = read_names(fd, dir, &names, err);
    for (size_t i = 0; i < names.count && rc == BK_OK; i++) {
        char name[BK_STORAGE_NAME];
        if (!bk_fmt(name, sizeof name, "%s%s", path, names.items[i].text))
            continue;
        size_t len = strlen(name);
        if (strncmp(name, listing->prefix, len < want ? len : want) != 0)
            continue;
        rc = bk_ctl_check(listing->ctl, err);
        if (rc == BK_OK && name[len - 1] == '/')
            rc = list_below(listing, name, err);
        else if (rc == BK_OK && len >= want)
            rc = list_object(listing, name, err);
    }
    bk_texts_free(&names);
    return rc;
}

static bk_rc_t list(void *self, const char *prefix, bk_storage_list_fn fn, void *arg, bk_ctl_t *ctl,
                    bk_err_t *err)
{
    const local_t *local = self;
    listing_t listing = {.prefix = prefix, .fn = fn, .arg = arg, .ctl = ctl};
    char start[BK_STORAGE_NAME];
    bk_rc_t rc = open_root(local, false, &listing.root, err);
    if (rc != BK_OK)
        return result(local, prefix, rc, err);
    bk_strcpy(start, sizeof start, prefix);
    char *slash = strrchr(start, '/');
    start[slash != NULL ? slash + 1 - start : 0] = '\0';
    rc = list_below(&listing, start, err);
    close(listing.root);
    return rc;
}

static bk_rc_t remove_object(void *self, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    const local_t *local = self;
    int root;
    (void)ctl;
    bk_rc_t rc = open_root(local, false, &root, err);
    if (rc == BK_NOT_FOUND) {
        bk_err_clear(err);
        return BK_OK;
    }
    if (rc != BK_OK)
        return result(local, name, rc, err);
    if (TEMP_FAILURE_RETRY(unlinkat(root, name, 0)) == 0)
        rc = sync_parent(root, name, err);
    else if (errno != ENOENT && errno != ENOTDIR)
        rc = bk_err_sys(err, errno, "unlink");
    close(root);
    return result(local, name, rc, err);
}

static bk_rc_t free_space(void *self, uint64_t *bytes, bk_err_t *err)
{
    const local_t *local = self;
    char parent[4096];
    bk_rc_t rc = bk_free_space(local->path, bytes, err);
    /* Not made yet: it will lie where its parent does. */
    if (rc == BK_NOT_FOUND && bk_parent_of(local->path, parent, sizeof parent))
        rc = bk_free_space(parent, bytes, err);
    return rc;
}

static const char *local_path(void *self)
{
    return ((const local_t *)self)->path;
}

const bk_storage_driver_t bk_storage_local = {
    .driver = "local",
    .features = BK_STORAGE_ADOPT | BK_STORAGE_FREE,
    .check = check,
    .url = from_url,
    .scheme = "file",
    .open = open_local,
    .close = close_local,
    .put = put,
    .put_file = put_file,
    .get = get,
    .size = size_of,
    .list = list,
    .remove = remove_object,
    .free_space = free_space,
    .local_path = local_path,
};
