/*
 * storage/local.c: objects as files below one directory.  Publishing is temporary, fsync, rename,
 * fsync of the directory; a spool file on the same file system is linked instead of copied.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "storage/driver.h"

#define COPY_STEP (4u << 20)

typedef struct {
    char *path;
    pthread_mutex_t lock;
    int root; /* descriptor of path, or -1 before first use; under lock until opened */
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
    if (path[0] != '/' || path[1] == '\0')
        return bk_err_set(err, BK_CONFIG,
                          "storage local %s: path \"%s\" must be an absolute path of a directory",
                          config->name, path);
    return BK_OK;
}

static bk_rc_t from_url(bk_storage_config_t *out, const char *url, bk_err_t *err)
{
    const char *path = url + strlen("file://");
    if (*path != '/')
        return bk_err_set(err, BK_INVALID, "%s: must be file:///absolute/path", url);
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
    local->root = -1;
    pthread_mutex_init(&local->lock, NULL);
    *self = local;
    return BK_OK;
}

static void close_local(void *self)
{
    local_t *local = self;
    if (local->root >= 0)
        close(local->root);
    pthread_mutex_destroy(&local->lock);
    free(local->path);
    free(local);
}

/* The directory's descriptor; make: create the last component when only that is missing. */
static bk_rc_t root_of(local_t *local, bool make, int *root, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&local->lock);
    if (local->root < 0) {
        local->root = open(local->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (local->root < 0 && errno == ENOENT && make && mkdir(local->path, 0700) == 0)
            local->root = open(local->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (local->root < 0)
            rc = bk_err_sys(err, errno, "open directory %s", local->path);
    }
    *root = local->root;
    pthread_mutex_unlock(&local->lock);
    return rc;
}

/* mkdir -p of the directories in name, each made durable. */
static bk_rc_t make_parents(int root, const char *name, bk_err_t *err)
{
    char part[BK_STORAGE_NAME], parent[BK_STORAGE_NAME] = ".";
    bk_strcpy(part, sizeof part, name);
    for (char *slash = strchr(part, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdirat(root, part, 0700) == 0) {
            bk_rc_t rc = bk_fsync_dir(root, parent, err);
            if (rc != BK_OK)
                return rc;
        } else if (errno != EEXIST) {
            return bk_err_sys(err, errno, "make directory %s", part);
        }
        bk_strcpy(parent, sizeof parent, part);
        *slash = '/';
    }
    return BK_OK;
}

/* A temporary in the object's directory; the directory is made when it is missing. */
static bk_rc_t begin(local_t *local, const char *name, bk_publish_t *pub, int *root, bk_err_t *err)
{
    bk_rc_t rc = root_of(local, true, root, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_publish_open(pub, *root, name, 0600, err);
    if (rc != BK_NOT_FOUND)
        return rc;
    if ((rc = make_parents(*root, name, err)) != BK_OK)
        return rc;
    return bk_publish_open(pub, *root, name, 0600, err);
}

static bk_rc_t put(void *self, const char *name, const void *data, size_t len, bool exclusive,
                   bk_ctl_t *ctl, bk_err_t *err)
{
    bk_publish_t pub;
    int root;
    (void)ctl;
    bk_rc_t rc = begin(self, name, &pub, &root, err);
    if (rc != BK_OK)
        return rc;
    if ((rc = bk_write_all(pub.fd, data, len, name, err)) != BK_OK) {
        bk_publish_abort(&pub);
        return rc;
    }
    return bk_publish_commit(&pub, exclusive, err);
}

static bk_rc_t copy_file(int from, int to, const char *path, bk_ctl_t *ctl, bk_err_t *err)
{
    char *buffer = NULL;
    bk_rc_t rc = BK_OK;
    for (;;) {
        if ((rc = bk_ctl_check(ctl, err)) != BK_OK)
            break;
        if (buffer == NULL) {
            ssize_t n = copy_file_range(from, NULL, to, NULL, COPY_STEP, 0);
            if (n > 0 || (n < 0 && errno == EINTR))
                continue;
            if (n == 0)
                break;
            if (errno != EXDEV && errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) {
                rc = bk_err_sys(err, errno, "copy %s", path);
                break;
            }
            if ((buffer = malloc(COPY_STEP)) == NULL) {
                rc = bk_err_set(err, BK_NO_MEMORY, "copy %s: out of memory", path);
                break;
            }
        }
        size_t got;
        if ((rc = bk_read_all(from, buffer, COPY_STEP, &got, path, err)) != BK_OK || got == 0 ||
            (rc = bk_write_all(to, buffer, got, path, err)) != BK_OK)
            break;
    }
    free(buffer);
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

static bk_rc_t put_file(void *self, const char *name, const char *path, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    local_t *local = self;
    bk_publish_t pub;
    struct stat st;
    int root, from;
    bk_rc_t rc = root_of(local, true, &root, err);
    if (rc != BK_OK)
        return rc;
    if (linkat(AT_FDCWD, path, root, name, 0) == 0)
        return sync_parent(root, name, err);
    if (errno == ENOENT && fstatat(AT_FDCWD, path, &st, 0) == 0) {
        if ((rc = make_parents(root, name, err)) != BK_OK)
            return rc;
        if (linkat(AT_FDCWD, path, root, name, 0) == 0)
            return sync_parent(root, name, err);
    }
    if (errno == EEXIST)
        return sync_parent(root, name, err);
    if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != EOPNOTSUPP)
        return bk_err_sys(err, errno, "link %s", path);
    if ((from = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return bk_err_sys(err, errno, "open %s", path);
    rc = begin(local, name, &pub, &root, err);
    if (rc == BK_OK) {
        rc = copy_file(from, pub.fd, path, ctl, err);
        if (rc == BK_OK)
            rc = bk_publish_commit(&pub, false, err);
        else
            bk_publish_abort(&pub);
    }
    close(from);
    return rc;
}

static bk_rc_t get(void *self, const char *name, uint64_t offset, size_t len, void *out,
                   size_t *got, bk_ctl_t *ctl, bk_err_t *err)
{
    int root;
    (void)ctl;
    bk_rc_t rc = root_of(self, false, &root, err);
    if (rc != BK_OK)
        return rc;
    int fd = openat(root, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return bk_err_sys(err, errno, "open");
    rc = bk_pread_all(fd, out, len, offset, got, name, err);
    close(fd);
    return rc;
}

static bk_rc_t size_of(void *self, const char *name, uint64_t *size, bk_ctl_t *ctl, bk_err_t *err)
{
    struct stat st;
    int root;
    (void)ctl;
    bk_rc_t rc = root_of(self, false, &root, err);
    if (rc != BK_OK)
        return rc;
    if (fstatat(root, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return bk_err_sys(err, errno, "stat");
    if (!S_ISREG(st.st_mode))
        return bk_err_set(err, BK_NOT_FOUND, "not a file");
    *size = (uint64_t)st.st_size;
    return BK_OK;
}

typedef struct {
    const char *prefix;
    bk_storage_list_fn fn;
    void *arg;
    bk_ctl_t *ctl;
} listing_t;

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorted names in a directory; directories end in '/', so that the order is that of whole object
 * names. */
static bk_rc_t read_names(int fd, const char *what, char ***names, size_t *count, bk_err_t *err)
{
    size_t cap = 0;
    struct dirent *entry;
    bk_rc_t rc = BK_OK;
    DIR *d = fdopendir(fd);
    *names = NULL;
    *count = 0;
    if (d == NULL) {
        int errnum = errno;
        close(fd);
        return bk_err_sys(err, errnum, "list %s", what);
    }
    while (rc == BK_OK && (errno = 0, entry = readdir(d)) != NULL) {
        char name[258];
        struct stat st;
        if (entry->d_name[0] == '.')
            continue;
        bool directory = entry->d_type == DT_DIR;
        if (entry->d_type == DT_UNKNOWN)
            directory = fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                        S_ISDIR(st.st_mode);
        bk_fmt(name, sizeof name, "%s%s", entry->d_name, directory ? "/" : "");
        if (*count == cap) {
            cap = cap > 0 ? 2 * cap : 64;
            char **more = realloc(*names, cap * sizeof **names);
            if (more == NULL) {
                rc = bk_err_set(err, BK_NO_MEMORY, "list %s: out of memory", what);
                break;
            }
            *names = more;
        }
        if (((*names)[*count] = bk_strdup(name)) == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "list %s: out of memory", what);
        else
            (*count)++;
    }
    if (rc == BK_OK && errno != 0)
        rc = bk_err_sys(err, errno, "list %s", what);
    closedir(d);
    if (*count > 1)
        qsort(*names, *count, sizeof **names, by_name);
    return rc;
}

/* path: "" or a directory with its '/'. */
static bk_rc_t list_below(int root, const listing_t *listing, const char *path, bk_err_t *err)
{
    char **names = NULL;
    size_t count = 0;
    int fd =
        openat(root, *path != '\0' ? path : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "list %s", path);
    bk_rc_t rc = read_names(fd, path, &names, &count, err);
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        char name[BK_STORAGE_NAME];
        if (!bk_fmt(name, sizeof name, "%s%s", path, names[i]))
            continue;
        size_t len = strlen(name), want = strlen(listing->prefix);
        if (strncmp(name, listing->prefix, len < want ? len : want) != 0)
            continue;
        rc = bk_ctl_check(listing->ctl, err);
        if (rc == BK_OK && name[len - 1] == '/') {
            rc = list_below(root, listing, name, err);
        } else if (rc == BK_OK && len >= want) {
            struct stat st;
            if (fstatat(root, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
                continue; /* removed meanwhile, or not ours */
            bk_storage_item_t item = {.name = name,
                                      .size = (uint64_t)st.st_size,
                                      .mtime =
                                          (int64_t)st.st_mtim.tv_sec * BK_SEC + st.st_mtim.tv_nsec};
            rc = listing->fn(listing->arg, &item, err);
        }
    }
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
    return rc;
}

static bk_rc_t list(void *self, const char *prefix, bk_storage_list_fn fn, void *arg, bk_ctl_t *ctl,
                    bk_err_t *err)
{
    local_t *local = self;
    listing_t listing = {.prefix = prefix, .fn = fn, .arg = arg, .ctl = ctl};
    char start[BK_STORAGE_NAME];
    int root;
    bk_rc_t rc = root_of(local, false, &root, err);
    if (rc != BK_OK)
        return rc;
    bk_strcpy(start, sizeof start, prefix);
    char *slash = strrchr(start, '/');
    if (slash != NULL)
        slash[1] = '\0';
    else
        start[0] = '\0';
    return list_below(root, &listing, start, err);
}

static bk_rc_t remove_object(void *self, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    int root;
    (void)ctl;
    bk_rc_t rc = root_of(self, false, &root, err);
    if (rc != BK_OK)
        return rc;
    if (unlinkat(root, name, 0) != 0 && errno != ENOENT)
        return bk_err_sys(err, errno, "unlink");
    rc = sync_parent(root, name, err);
    return rc == BK_NOT_FOUND ? BK_OK : rc;
}

static bk_rc_t free_space(void *self, uint64_t *bytes, bk_err_t *err)
{
    const local_t *local = self;
    return bk_free_space(local->path, bytes, err);
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
