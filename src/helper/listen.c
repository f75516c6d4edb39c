/*
 * helper/listen.c: a path socket for nginx's masters.  Who may connect is decided twice: by the
 * directory, which root alone may write to, and by the peer's user, who must be root.  Touches the
 * socket and nothing else; libc only.
 */
#include "helper/listen.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "helper/guard.h"
#include "helper/supervisor.h"

#define MASTERS 16u /* connected at a time */

static int complain(const char *path, const char *what)
{
    fprintf(stderr, "ngx-backup-helper: %s: %s\n", path, what);
    return -1;
}

/* Who can write to the directory can put another socket in place of this one. */
static int check_directory(const char *path)
{
    char dir[sizeof((struct sockaddr_un *)0)->sun_path];
    struct stat st;
    size_t len = strlen(path);
    if (path[0] != '/' || len >= sizeof dir || path[len - 1] == '/')
        return complain(path, "must be an absolute path of at most 107 bytes");
    memcpy(dir, path, len + 1);
    char *slash = strrchr(dir, '/');
    slash[slash == dir] = '\0';
    if (lstat(dir, &st) != 0) {
        fprintf(stderr, "ngx-backup-helper: %s: %m\n", dir);
        return -1;
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != 0 || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return complain(dir, "must be a directory that root owns and nobody else may write to");
    return 0;
}

static int open_socket(const char *path)
{
    struct stat st;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (check_directory(path) != 0)
        return -1;
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    /* Somebody answers: two services of one path would take nginx from each other. */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
        close(fd);
        return complain(path, "another helper listens here already");
    }
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
        (void)unlink(path);
    umask(0177);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, MASTERS) != 0) {
        fprintf(stderr, "ngx-backup-helper: %s: %m\n", path);
        close(fd);
        return -1;
    }
    umask(077);
    return fd;
}

static bool is_root(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0;
}

/* One master.  How many processes were started: 0 or 1. */
static unsigned greet(int listener, unsigned masters)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return 0;
    pid_t pid = is_root(fd) && masters < MASTERS ? bk_guard_fork("bk-helper-super") : -1;
    if (pid == 0)
        _exit(bk_guard_keep(fd) == 0 ? bk_supervise(3, -1) : 1);
    close(fd);
    return pid > 0 ? 1 : 0;
}

int bk_listen(const char *path)
{
    unsigned masters = 0;
    bool ended = false;
    int listener = open_socket(path), signals = bk_guard_signals(1);
    if (listener < 0 || signals < 0)
        return 1;
    while (!ended) {
        struct pollfd fds[2] = {{.fd = listener, .events = POLLIN},
                                {.fd = signals, .events = POLLIN}};
        int signal;
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return 1;
        while ((signal = bk_guard_signal(signals)) != 0)
            ended = ended || signal != SIGCHLD;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            masters--;
        if (!ended && fds[0].revents != 0)
            masters += greet(listener, masters);
    }
    (void)unlink(path);
    return 0;
}
