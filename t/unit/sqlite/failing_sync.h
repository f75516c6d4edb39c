/*
 * t/unit/sqlite/failing_sync.h: a flush that fails when a test says so.  For one file of a program.
 */
#ifndef SQLITE_FAILING_SYNC_H
#define SQLITE_FAILING_SYNC_H

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

static bool sync_fails;

/* In place of that of libc. */
int fdatasync(int fd)
{
    if (!sync_fails)
        return fsync(fd);
    errno = EIO;
    return -1;
}

#endif
