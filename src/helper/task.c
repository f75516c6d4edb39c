/*
 * helper/task.c: what looking and placing share: finding a name beneath a directory, whose file it
 * is, and which names a database has.  Touches the file system below the given descriptor; libc
 * only.
 */
#include "helper/task.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "helper/refuse.h"

static void count(int errnum, const char *path)
{
    if (errnum == ELOOP)
        bk_refuse(BK_REFUSE_LINK, path, strlen(path));
    else if (errnum == EXDEV)
        bk_refuse(BK_REFUSE_MOUNT, path, strlen(path));
}

int bk_task_open(int dir, const char *path, int flags, mode_t mode)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)(flags | O_NOFOLLOW | O_CLOEXEC),
                           .mode = (flags & O_CREAT) != 0 ? mode : 0,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
                                      RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    long fd;
    do
        fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        int errnum = errno;
        count(errnum, path);
        errno = errnum;
    }
    return (int)fd;
}

int bk_task_find(int dir, const char *path, int flags)
{
    return bk_task_open(dir, path[0] != '\0' ? path : ".", flags | O_PATH, 0);
}

void bk_task_proc(char out[BK_TASK_PROC], int fd)
{
    snprintf(out, BK_TASK_PROC, "/proc/self/fd/%d", fd);
}

bool bk_task_allowed(const bk_task_t *task, const char *name, bool temporary)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    if ((task->root->may & BK_WIRE_DATABASE) == 0)
        return true;
    const char *base = bk_roots_base(task->root->conf);
    size_t len = strlen(base);
    if (strncmp(name, base, len) == 0)
        for (unsigned i = 0; i < sizeof ends / sizeof ends[0]; i++)
            if (strcmp(name + len, ends[i]) == 0)
                return true;
    if (temporary && strncmp(name, BK_TASK_TEMPORARY, sizeof BK_TASK_TEMPORARY - 1) == 0)
        return true;
    if (temporary && strncmp(name, base, len) == 0 &&
        strncmp(name + len, BK_TASK_ASIDE, sizeof BK_TASK_ASIDE - 1) == 0)
        return true;
    bk_refuse(BK_REFUSE_DATABASE, name, strlen(name));
    return false;
}

/* --- whose file is it --- */

static bool made_here(const bk_task_made_t *made, const struct stat *st)
{
    for (unsigned i = 0; i < BK_TASK_MADE; i++)
        if (made->list[i].fd >= 0 && made->list[i].inode == st->st_ino &&
            made->list[i].device == st->st_dev)
            return true;
    return false;
}

void bk_task_remember(bk_task_t *task, int fd)
{
    char path[BK_TASK_PROC];
    struct stat st;
    bk_task_made_t *made = task->made;
    bk_task_proc(path, fd);
    int held = open(path, O_PATH | O_CLOEXEC);
    if (held < 0)
        return; /* not remembered: changing it takes a closer look then */
    if (fstat(held, &st) != 0) {
        close(held);
        return;
    }
    unsigned at = made->next++ % BK_TASK_MADE;
    if (made->list[at].fd >= 0)
        close(made->list[at].fd);
    made->list[at].fd = held;
    made->list[at].inode = st.st_ino;
    made->list[at].device = st.st_dev;
}

static bool before(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec < b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

/*
 * One look: the file has one name, and that name is this one; unless somebody gave and took a name
 * within it.  *st is the file as it was at the end.
 *
 * An unlink counts the name off before it takes it out of the cache of names, and may be held up
 * between the two: the name still seems to lead to a file whose one name is elsewhere.  A rename to
 * the same name changes nothing and waits for whoever changes the directory: what was counted off
 * before is gone from the cache behind it.
 */
static int look_once(const bk_task_t *task, int fd, const char *name, struct stat *st)
{
    struct stat named;
    if (fstat(fd, st) != 0)
        return errno;
    if (st->st_nlink != 1)
        return EMLINK;
    if (renameat2(task->dir, name, task->dir, name, 0) != 0 ||
        fstatat(task->dir, name, &named, AT_SYMLINK_NOFOLLOW) != 0 || fstat(fd, st) != 0)
        return errno;
    bool same = named.st_ino == st->st_ino && named.st_dev == st->st_dev;
    return same && named.st_nlink == 1 && st->st_nlink == 1 ? 0 : EMLINK;
}

/*
 * Who may write to the directory can give a name in it to a file from elsewhere (a hard link; not
 * every system forbids that) and take it away again while we look.  But a link sets ctime before
 * its name is to be seen.  So: note the time, look, and see that ctime is older than the note.  A
 * file of elsewhere had no name here when it was seen to have one name only, and would have been
 * given one since then.
 */
int bk_task_sole(const bk_task_t *task, int fd, const char *name, unsigned patience_ms)
{
    const unsigned pause_ms = 4; /* a tick of the clock that ctime is taken from */
    struct stat st;
    if (fstat(fd, &st) != 0)
        return errno;
    if (S_ISDIR(st.st_mode) || made_here(task->made, &st))
        return 0;
    for (unsigned waited = 0;; waited += pause_ms) {
        struct timespec note, pause = {.tv_nsec = pause_ms * 1000000L};
        if (clock_gettime(CLOCK_REALTIME_COARSE, &note) != 0)
            return errno;
        int errnum = look_once(task, fd, name, &st);
        /* A link's owner gives nobody anything: without the wait. */
        if (errnum != 0 || S_ISLNK(st.st_mode) || before(&st.st_ctim, &note))
            return errnum;
        if (waited >= patience_ms)
            return EAGAIN;
        nanosleep(&pause, NULL);
    }
}

int bk_task_sole_busy(const bk_task_t *task, int fd, const char *name)
{
    struct stat st;
    int errnum = 0;
    for (unsigned i = 0; i < 24 && errnum == 0; i++)
        errnum = look_once(task, fd, name, &st);
    return errnum;
}

void bk_task_result(bk_wire_result_t *result, const struct stat *st)
{
    result->device = st->st_dev;
    result->inode = st->st_ino;
    result->size = (uint64_t)st->st_size;
    result->links = st->st_nlink;
    result->mtime_sec = st->st_mtim.tv_sec;
    result->mtime_nsec = (uint32_t)st->st_mtim.tv_nsec;
    result->ctime_sec = st->st_ctim.tv_sec;
    result->ctime_nsec = (uint32_t)st->st_ctim.tv_nsec;
    result->mode = st->st_mode;
    result->uid = st->st_uid;
    result->gid = st->st_gid;
    result->blocks = (uint64_t)st->st_blocks;
}
