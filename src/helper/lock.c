/*
 * helper/lock.c: one flock per nginx in BK_LOCK_DIRECTORY.  Touches nothing else; libc only.
 */
#include "helper/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_SIZE 32
#define TRIES     16 /* a file that was just removed by its last owner */

static void name_of(uint64_t nginx, char out[NAME_SIZE])
{
    snprintf(out, NAME_SIZE, "%016" PRIx64 ".lock", nginx);
}

/* Nobody else could make, keep or replace a file there. */
static int open_directory(void)
{
    struct stat st;
    if (mkdir(BK_LOCK_DIRECTORY, 0755) != 0 && errno != EEXIST)
        return -1;
    int dir = open(BK_LOCK_DIRECTORY, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return -1;
    int errnum = fstat(dir, &st) != 0                                           ? errno
                 : st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) ? EPERM
                                                                                : 0;
    if (errnum == 0)
        return dir;
    close(dir);
    errno = errnum;
    return -1;
}

/* Is it still the file of that name? */
static bool is_current(int dir, const char *name, int fd)
{
    struct stat mine, theirs;
    return fstat(fd, &mine) == 0 && fstatat(dir, name, &theirs, AT_SYMLINK_NOFOLLOW) == 0 &&
           mine.st_ino == theirs.st_ino && mine.st_dev == theirs.st_dev;
}

int bk_lock_take(uint64_t nginx)
{
    char name[NAME_SIZE];
    int fd = -1, errnum = EAGAIN, dir = open_directory();
    if (dir < 0)
        return -1;
    name_of(nginx, name);
    for (unsigned tries = 0; tries < TRIES; tries++) {
        fd = openat(dir, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        errnum = fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0 ? errno : 0;
        if (errnum == 0 && is_current(dir, name, fd))
            break;
        if (fd >= 0)
            close(fd);
        fd = -1;
        if (errnum != 0)
            break;
        errnum = EWOULDBLOCK;
    }
    close(dir);
    errno = errnum;
    return fd;
}

void bk_lock_remove(uint64_t nginx)
{
    char name[NAME_SIZE];
    int dir = open_directory();
    if (dir < 0)
        return;
    name_of(nginx, name);
    (void)unlinkat(dir, name, 0);
    close(dir);
}
