/*
 * t/fault/failcall.c: a preloaded library that lets the Nth of some system calls fail.
 *
 *   LD_PRELOAD=failcall.so FAILCALL="CALLS:N:ACTION ..." program
 *
 * CALLS: names joined by ',', or "all": open write fsync rename link mkdir close copy stat unlink.
 * ACTION: an errno (EIO ENOSPC EINTR EXDEV EPERM EINVAL ENOSYS), "short" (a write or copy of half
 * the bytes), "kill" (SIGKILL before the call) or "stop" (SIGSTOP before it, then it is done).  N "0": each one.  Of several rules the first
 * that applies decides.  Calls are counted over all threads.  A program may set its own rules with
 * failcall_set (by dlsym), NULL for none, and ask with failcall_hits how often the last one applied.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    OPEN = 1,
    WRITE = 2,
    FSYNC = 4,
    RENAME = 8,
    LINK = 16,
    MKDIR = 32,
    CLOSE = 64,
    COPY = 128,
    STAT = 256,
    UNLINK = 512
};

enum { KILL = -1, SHORT = -2, STOP = -3 };

typedef struct {
    const char *name;
    int value;
} name_t;

static const name_t calls[] = {{"open", OPEN},     {"write", WRITE}, {"fsync", FSYNC},
                               {"rename", RENAME}, {"link", LINK},   {"mkdir", MKDIR},
                               {"close", CLOSE},   {"copy", COPY},   {"stat", STAT},
                               {"unlink", UNLINK}, {"all", 1023}};
static const name_t actions[] = {
    {"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EINTR", EINTR}, {"EXDEV", EXDEV}, {"EPERM", EPERM},
    {"EINVAL", EINVAL}, {"ENOSYS", ENOSYS}, {"short", SHORT}, {"kill", KILL},   {"stop", STOP}};

enum { RULES = 4 };

/* Changed only while no other thread is in a call. */
static struct {
    int mask, action;
    long wanted;
    atomic_long seen, hits;
} rules[RULES];
static unsigned rule_count, last;

#define LOOKUP(table, text, len) lookup(table, sizeof table / sizeof *table, text, len)

static int lookup(const name_t *row, size_t count, const char *text, size_t len)
{
    for (size_t i = 0; i < count; i++)
        if (strlen(row[i].name) == len && strncmp(row[i].name, text, len) == 0)
            return row[i].value;
    static const char message[] = "failcall: unknown name in FAILCALL\n";
    syscall(SYS_write, 2, message, sizeof message - 1);
    _exit(127);
}

void failcall_set(const char *spec);
long failcall_hits(void);

/* One rule; returns where it ends. */
static const char *parse(const char *p, unsigned i)
{
    rules[i].mask = 0;
    while (*p != '\0' && *p != ':') {
        size_t len = strcspn(p, ",:");
        rules[i].mask |= LOOKUP(calls, p, len);
        p += len + (p[len] == ',');
    }
    char *end;
    rules[i].wanted = strtol(*p == ':' ? p + 1 : p, &end, 10);
    p = end + (*end == ':');
    size_t len = strcspn(p, " ");
    rules[i].action = LOOKUP(actions, p, len);
    atomic_store(&rules[i].seen, 0);
    atomic_store(&rules[i].hits, 0);
    return p + len + strspn(p + len, " ");
}

void failcall_set(const char *spec)
{
    unsigned count = 0;
    rule_count = 0;
    while (spec != NULL && *spec != '\0' && count < RULES)
        spec = parse(spec, count++);
    rule_count = count;
    if (count > 0)
        last = count - 1;
}

long failcall_hits(void)
{
    return atomic_load(&rules[last].hits);
}

__attribute__((constructor)) static void from_environment(void)
{
    failcall_set(getenv("FAILCALL"));
}

static bool applies(unsigned i, int call, const size_t *len)
{
    if ((rules[i].mask & call) == 0 || (rules[i].action == SHORT && (len == NULL || *len < 2)))
        return false;
    long number = atomic_fetch_add(&rules[i].seen, 1) + 1;
    if (rules[i].wanted != 0 && number != rules[i].wanted)
        return false;
    atomic_fetch_add(&rules[i].hits, 1);
    return true;
}

/* True: errno is set, the call is not done.  len: what a short call halves, or NULL. */
static bool fails(int call, size_t *len)
{
    for (unsigned i = 0; i < rule_count; i++) {
        if (!applies(i, call, len))
            continue;
        if (rules[i].action == KILL)
            kill(getpid(), SIGKILL);
        if (rules[i].action == STOP) {
            kill(getpid(), SIGSTOP);
            return false;
        }
        if (rules[i].action == SHORT) {
            *len /= 2;
            return false;
        }
        errno = rules[i].action;
        return true;
    }
    return false;
}

static int real_open(int dirfd, const char *path, int flags, va_list args)
{
    mode_t mode =
        (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(args, mode_t) : 0;
    if (fails(OPEN, NULL))
        return -1;
    return (int)syscall(SYS_openat, dirfd, path, flags, mode);
}

#define OPEN_CALL(name)                                                                            \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        int fd = real_open(AT_FDCWD, path, flags, args);                                           \
        va_end(args);                                                                              \
        return fd;                                                                                 \
    }
#define OPENAT_CALL(name)                                                                          \
    int name(int dirfd, const char *path, int flags, ...)                                          \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        int fd = real_open(dirfd, path, flags, args);                                              \
        va_end(args);                                                                              \
        return fd;                                                                                 \
    }
OPEN_CALL(open)
OPEN_CALL(open64)
OPENAT_CALL(openat)
OPENAT_CALL(openat64)

ssize_t write(int fd, const void *data, size_t len)
{
    return fails(WRITE, &len) ? -1 : syscall(SYS_write, fd, data, len);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t offset)
{
    return fails(WRITE, &len) ? -1 : syscall(SYS_pwrite64, fd, data, len, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off_t offset)
{
    return fails(WRITE, &len) ? -1 : syscall(SYS_pwrite64, fd, data, len, offset);
}

ssize_t copy_file_range(int from, off_t *from_at, int to, off_t *to_at, size_t len, unsigned flags)
{
    return fails(COPY, &len) ? -1
                             : syscall(SYS_copy_file_range, from, from_at, to, to_at, len, flags);
}

int fsync(int fd)
{
    return fails(FSYNC, NULL) ? -1 : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return fails(FSYNC, NULL) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int rename(const char *from, const char *to)
{
    return fails(RENAME, NULL) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat(int fromfd, const char *from, int tofd, const char *to)
{
    return fails(RENAME, NULL) ? -1 : (int)syscall(SYS_renameat2, fromfd, from, tofd, to, 0);
}

int renameat2(int fromfd, const char *from, int tofd, const char *to, unsigned flags)
{
    return fails(RENAME, NULL) ? -1 : (int)syscall(SYS_renameat2, fromfd, from, tofd, to, flags);
}

int link(const char *from, const char *to)
{
    return fails(LINK, NULL) ? -1 : (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int fromfd, const char *from, int tofd, const char *to, int flags)
{
    return fails(LINK, NULL) ? -1 : (int)syscall(SYS_linkat, fromfd, from, tofd, to, flags);
}

int mkdir(const char *path, mode_t mode)
{
    return fails(MKDIR, NULL) ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int mkdirat(int dirfd, const char *path, mode_t mode)
{
    return fails(MKDIR, NULL) ? -1 : (int)syscall(SYS_mkdirat, dirfd, path, mode);
}

/* As the kernel does it: the descriptor is gone, whatever the answer. */
int close(int fd)
{
    bool failed = fails(CLOSE, NULL);
    int why = errno, rc = (int)syscall(SYS_close, fd);
    if (failed)
        errno = why;
    return failed ? -1 : rc;
}

int fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
    return fails(STAT, NULL) ? -1 : (int)syscall(SYS_newfstatat, dirfd, path, st, flags);
}

int fstatat64(int dirfd, const char *path, struct stat64 *st, int flags)
{
    return fails(STAT, NULL) ? -1 : (int)syscall(SYS_newfstatat, dirfd, path, st, flags);
}

int fstat(int fd, struct stat *st)
{
    return fails(STAT, NULL) ? -1 : (int)syscall(SYS_fstat, fd, st);
}

int fstat64(int fd, struct stat64 *st)
{
    return fails(STAT, NULL) ? -1 : (int)syscall(SYS_fstat, fd, st);
}

int unlinkat(int dirfd, const char *path, int flags)
{
    return fails(UNLINK, NULL) ? -1 : (int)syscall(SYS_unlinkat, dirfd, path, flags);
}

int unlink(const char *path)
{
    return fails(UNLINK, NULL) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
