/*
 * helper/roots.c: the table of roots and the way to one of them.  Reads the memfd that nginx's
 * master sealed, and looks at directories on the way to a root; libc only.
 */
#include "helper/roots.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper/wire.h"

#define LINKS_MAX 40 /* on the way to one root, as the kernel allows */

/* "/", or "/" and names. */
static bool absolute(const char *path, size_t len)
{
    return len > 0 && path[0] == '/' && (len == 1 || bk_wire_is_relative(path + 1, len - 1));
}

static const char *fault(const bk_wire_root_t *root)
{
    if (root->len == 0 || root->len > BK_WIRE_PATH)
        return "its path has no length, or is too long";
    if (!absolute(root->path, root->len))
        return "its path is not absolute and normalised";
    for (size_t i = root->len; i < sizeof root->path; i++)
        if (root->path[i] != '\0')
            return "bytes follow its path";
    if ((root->flags & ~BK_WIRE_ROOT_FLAGS) != 0)
        return "it has unknown flags: helper and module are of different versions";
    if ((root->flags & BK_WIRE_DATABASE) != 0 && root->len == 1)
        return "a database is a file, not /";
    return NULL;
}

int bk_roots_parse(const void *data, size_t len, uint32_t count, bk_roots_t **out, uint32_t *which,
                   const char **why)
{
    *out = NULL;
    *which = 0;
    *why = "memory is exhausted";
    if (count > BK_WIRE_ROOTS || len != count * sizeof(bk_wire_root_t)) {
        *why = "the table of roots does not have the announced size";
        return EINVAL;
    }
    bk_wire_root_t *root = malloc(sizeof *root);
    bk_roots_t *roots = calloc(1, sizeof *roots);
    int errnum = root == NULL || roots == NULL ? ENOMEM : 0;
    if (errnum == 0 && (roots->list = calloc(count + 1, sizeof *roots->list)) == NULL)
        errnum = ENOMEM;
    for (uint32_t i = 0; i < count && errnum == 0; i++) {
        memcpy(root, (const char *)data + i * sizeof *root, sizeof *root);
        const char *wrong = fault(root);
        if (wrong != NULL) {
            *which = i;
            *why = wrong;
            errnum = EINVAL;
        } else if ((roots->list[i].path = strndup(root->path, root->len)) == NULL) {
            errnum = ENOMEM;
        } else {
            roots->list[i].flags = root->flags;
            roots->count = i + 1;
        }
    }
    free(root);
    if (errnum != 0)
        bk_roots_free(roots);
    else
        *out = roots;
    return errnum;
}

int bk_roots_read(int fd, uint32_t count, bk_roots_t **roots, uint32_t *which, const char **why)
{
    const int sealed = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;
    *roots = NULL;
    *which = 0;
    *why = "the table of roots is not a sealed memfd";
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & sealed) != sealed || fstat(fd, &st) != 0)
        return EINVAL;
    if (count > BK_WIRE_ROOTS || (uint64_t)st.st_size != count * sizeof(bk_wire_root_t)) {
        *why = "the table of roots does not have the announced size";
        return EINVAL;
    }
    if (count == 0)
        return bk_roots_parse("", 0, 0, roots, which, why);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return errno;
    int errnum = bk_roots_parse(data, (size_t)st.st_size, count, roots, which, why);
    munmap(data, (size_t)st.st_size);
    return errnum;
}

void bk_roots_free(bk_roots_t *roots)
{
    if (roots == NULL)
        return;
    for (uint32_t i = 0; i < roots->count; i++)
        free(roots->list[i].path);
    free(roots->list);
    free(roots);
}

int bk_roots_find(const bk_roots_t *roots, const char *path, size_t len, uint32_t may)
{
    for (uint32_t i = 0; i < roots->count; i++)
        if ((roots->list[i].flags & may) == may && strlen(roots->list[i].path) == len &&
            memcmp(roots->list[i].path, path, len) == 0)
            return (int)i;
    return -1;
}

const char *bk_roots_base(const bk_roots_entry_t *root)
{
    return strrchr(root->path, '/') + 1;
}

/* --- the way to a root --- */

/* Only root can have made what is in this directory. */
static bool trusted(int dir)
{
    struct stat st;
    return fstat(dir, &st) == 0 && st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/* Put the target of a link in front of what is left of the path.  0 or an errno. */
static int follow(int dir, const char *name, char *rest, size_t size)
{
    char target[PATH_MAX];
    if (!trusted(dir))
        return ELOOP;
    ssize_t len = readlinkat(dir, name, target, sizeof target);
    if (len < 0)
        return errno;
    size_t left = strlen(rest);
    if ((size_t)len >= sizeof target || (size_t)len + 1 + left >= size)
        return ENAMETOOLONG;
    memmove(rest + len + 1, rest, left + 1);
    memcpy(rest, target, (size_t)len);
    rest[len] = '/';
    return 0;
}

/* Cut the first component off rest; false at its end. */
static bool next(char *rest, char name[NAME_MAX + 1], int *errnum)
{
    size_t skip = strspn(rest, "/"), len = strcspn(rest + skip, "/");
    if (len == 0)
        return false;
    if (len > NAME_MAX) {
        *errnum = ENAMETOOLONG;
        return false;
    }
    memcpy(name, rest + skip, len);
    name[len] = '\0';
    memmove(rest, rest + skip + len, strlen(rest + skip + len) + 1);
    return true;
}

/* One step further: *dir is replaced, or rest by what a link says. */
static int step(int *dir, const char *name, char *rest, size_t size, unsigned *links)
{
    struct stat st;
    int fd = openat(*dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int errnum = fstat(fd, &st) != 0 ? errno : 0;
    if (errnum == 0 && S_ISLNK(st.st_mode)) {
        close(fd);
        if (++*links > LINKS_MAX)
            return ELOOP;
        errnum = follow(*dir, name, rest, size);
        if (errnum != 0 || rest[0] != '/')
            return errnum;
        fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
            return errno;
    } else if (errnum == 0 && !S_ISDIR(st.st_mode)) {
        errnum = ENOTDIR;
    }
    if (errnum != 0) {
        close(fd);
        return errnum;
    }
    close(*dir);
    *dir = fd;
    return 0;
}

int bk_roots_open(const bk_roots_entry_t *root)
{
    char rest[2 * PATH_MAX], name[NAME_MAX + 1];
    size_t len = strlen(root->path);
    unsigned links = 0;
    int errnum = 0;
    if ((root->flags & BK_WIRE_DATABASE) != 0)
        len = (size_t)(bk_roots_base(root) - root->path);
    memcpy(rest, root->path, len);
    rest[len] = '\0';
    int dir = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return -1;
    while (errnum == 0 && next(rest, name, &errnum))
        errnum = step(&dir, name, rest, sizeof rest, &links);
    if (errnum != 0) {
        close(dir);
        errno = errnum;
        return -1;
    }
    return dir;
}

bool bk_roots_reachable(int dir)
{
    int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || errno != EACCES;
}
