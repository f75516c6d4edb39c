/*
 * helper/guard.c: forking without orphans, signals as descriptors.  Touches the process's own
 * signal mask and descriptors; libc only.
 */
#include "helper/guard.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

int64_t bk_guard_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int bk_guard_signals(int terminate)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    if (terminate) {
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
    }
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return -1;
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int bk_guard_signal(int signals)
{
    struct signalfd_siginfo info;
    ssize_t got;
    do
        got = read(signals, &info, sizeof info);
    while (got < 0 && errno == EINTR);
    return got == (ssize_t)sizeof info ? (int)info.ssi_signo : 0;
}

pid_t bk_guard_fork(const char *name)
{
    sigset_t none;
    pid_t parent = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    /* The parent may have ended before it could be watched. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
        _exit(3);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    (void)prctl(PR_SET_NAME, name);
    return 0;
}

int bk_guard_keep(int fd)
{
    if (fd != 3 && dup2(fd, 3) < 0)
        return errno;
    return close_range(4, ~0u, 0) == 0 ? 0 : errno;
}
