/*
 * t/unit/helper/agent.h: a small agent for tests: takes conversations from the broker socket and forks bk_talk_run for
 * each, as the real one does.  The test keeps the worker's end.
 */
#ifndef BK_TEST_AGENT_H
#define BK_TEST_AGENT_H

#include "../testing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "helper/client.h"
#include "helper/refuse.h"
#include "helper/roots.h"
#include "helper/talk.h"
#include "helper/wire.h"

#define NOBODY 65534

typedef struct {
    const char *path;
    uint32_t flags;
} agent_root_t;

typedef struct {
    pid_t pid;
    int broker; /* the workers' end */
} agent_t;

static inline bk_roots_t *agent_roots(const agent_root_t *list, uint32_t count)
{
    bk_roots_t *roots = NULL;
    uint32_t which;
    const char *why;
    bk_wire_root_t *table = calloc(count + 1, sizeof *table);
    assert_non_null(table);
    for (uint32_t i = 0; i < count; i++) {
        table[i].flags = list[i].flags;
        table[i].len = (uint32_t)strlen(list[i].path);
        memcpy(table[i].path, list[i].path, table[i].len);
    }
    int errnum = bk_roots_parse(table, count * sizeof *table, count, &roots, &which, &why);
    if (errnum != 0)
        print_error("%s\n", why);
    assert_int_equal(errnum, 0);
    free(table);
    return roots;
}

/* Never returns. */
static inline void agent_run(int broker, const bk_roots_t *roots, pid_t parent)
{
    bk_wire_message_t *message = calloc(1, sizeof *message);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || message == NULL)
        _exit(3);
    signal(SIGCHLD, SIG_IGN);
    bk_refuse_share();
    for (;;) {
        if (bk_wire_wait(broker, POLLIN, -1) < 0)
            _exit(3);
        bk_wire_got_t got = bk_wire_receive(broker, message);
        if (got == BK_WIRE_END)
            _exit(0);
        if (got == BK_WIRE_OK && message->head.verb == BK_WIRE_TALK && message->fd_count == 1) {
            bk_wire_talk_t wish;
            memcpy(&wish, message->body, sizeof wish);
            pid_t me = getpid();
            pid_t pid = fork();
            if (pid == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                close(broker);
                if (getppid() != me)
                    _exit(3);
                _exit(bk_talk_run(message->fds[0], (bk_wire_for_t)wish.what, roots, 7));
            }
        }
        bk_wire_drop(message);
    }
}

static inline agent_t agent_start(const agent_root_t *list, uint32_t count)
{
    int pair[2];
    agent_t agent;
    bk_roots_t *roots = agent_roots(list, count);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid_t parent = getpid();
    fflush(NULL);
    agent.pid = fork();
    assert_true(agent.pid >= 0);
    if (agent.pid == 0) {
        close(pair[0]);
        agent_run(pair[1], roots, parent);
    }
    close(pair[1]);
    bk_roots_free(roots);
    agent.broker = pair[0];
    return agent;
}

static inline void agent_stop(agent_t *agent)
{
    close(agent->broker);
    kill(agent->pid, SIGKILL);
    waitpid(agent->pid, NULL, 0);
}

/* A conversation of one's own, to say to it what the client never would. */
static inline int agent_talk_for(const agent_t *agent, bk_wire_for_t what)
{
    bk_wire_talk_t wish = {.what = what};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(bk_wire_send(agent->broker, BK_WIRE_TALK, 0, &wish, sizeof wish, &pair[1], 1),
                     0);
    close(pair[1]);
    return pair[0];
}

static inline int agent_talk(const agent_t *agent)
{
    return agent_talk_for(agent, BK_WIRE_FOR_FILES);
}

/* The next message, or the end: nothing else may take longer than 10 s. */
static inline bk_wire_got_t agent_next(int fd, bk_wire_message_t *message)
{
    for (unsigned tries = 0; tries < 100; tries++) {
        if (bk_wire_wait(fd, POLLIN, 100) > 0) {
            bk_wire_got_t got = bk_wire_receive(fd, message);
            if (got != BK_WIRE_EMPTY)
                return got;
        }
    }
    return BK_WIRE_EMPTY;
}

/* The process of a conversation that the agent forked, the last one, and its permitted capabilities. */
static inline pid_t agent_conversation(pid_t agent, uint64_t *rights)
{
    pid_t found = 0;
    DIR *proc = opendir("/proc");
    assert_non_null(proc);
    for (const struct dirent *item; (item = readdir(proc)) != NULL;) {
        char path[300], line[200];
        unsigned long long permitted = 0;
        long parent = -1;
        snprintf(path, sizeof path, "/proc/%s/status", item->d_name);
        FILE *file = item->d_name[0] >= '1' && item->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        while (file != NULL && fgets(line, sizeof line, file) != NULL) {
            if (strncmp(line, "PPid:", 5) == 0)
                parent = strtol(line + 5, NULL, 10);
            else if (strncmp(line, "CapPrm:", 7) == 0)
                permitted = strtoull(line + 7, NULL, 16);
        }
        if (file != NULL)
            fclose(file);
        if (parent != agent)
            continue;
        found = (pid_t)strtol(item->d_name, NULL, 10);
        *rights = permitted;
    }
    closedir(proc);
    assert_true(found > 0);
    return found;
}

static inline void write_file(const char *path, const char *text, uid_t uid, gid_t gid, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchown(fd, uid, gid), 0);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static inline void join(char out[600], const char *dir, const char *name)
{
    snprintf(out, 600, "%s/%s", dir, name);
}

/* What the worker does, it does as nobody. */
static inline void be_worker(void)
{
    assert_int_equal(seteuid(NOBODY), 0);
}

static inline void be_root(void)
{
    assert_int_equal(seteuid(0), 0);
}

#endif
