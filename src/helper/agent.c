/*
 * helper/agent.c: takes up conversations: one process each, which knows the roots of that moment.
 * Never reads what a worker says beyond the TALK message; libc only.
 */
#include "helper/agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "helper/guard.h"
#include "helper/refuse.h"
#include "helper/talk.h"
#include "helper/wire.h"

#define IDLE_MS 5000 /* without a conversation; then another helper may serve, or none */

typedef struct {
    int line, broker, signals; /* -1: closed */
    bk_roots_t *roots;
    uint64_t generation;
    unsigned talks, most; /* processes */
    bool full;            /* it was said */
    bk_wire_message_t order, call;
} agent_t;

static void reap(agent_t *agent)
{
    while (bk_guard_signal(agent->signals) != 0)
        continue;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        agent->talks--;
}

static void obey_conf(agent_t *agent, const bk_wire_conf_t *conf)
{
    agent->generation = conf->generation;
    agent->most = conf->talks < BK_WIRE_TALKS       ? BK_WIRE_TALKS
                  : conf->talks > BK_WIRE_TALKS_MAX ? BK_WIRE_TALKS_MAX
                                                    : conf->talks;
}

/* New roots, which the supervisor has checked.  0 or an errno. */
static int take_conf(agent_t *agent)
{
    bk_wire_conf_t conf;
    bk_roots_t *roots;
    uint32_t which;
    const char *why;
    if (agent->order.head.verb != BK_WIRE_CONF || agent->order.head.len != sizeof conf ||
        agent->order.fd_count != 1)
        return EPROTO;
    memcpy(&conf, agent->order.body, sizeof conf);
    int errnum = bk_roots_read(agent->order.fds[0], conf.count, &roots, &which, &why);
    if (errnum != 0)
        return errnum;
    bk_roots_free(agent->roots);
    agent->roots = roots;
    obey_conf(agent, &conf);
    return 0;
}

/* Everything that the supervisor said up to now.  0 or an errno: then another agent does better. */
static int obey(agent_t *agent)
{
    while (agent->line >= 0) {
        int errnum = EPROTO;
        bk_wire_got_t got = bk_wire_receive(agent->line, &agent->order);
        if (got == BK_WIRE_EMPTY)
            return 0;
        if (got == BK_WIRE_END) {
            close(agent->line);
            agent->line = -1;
            return 0;
        }
        if (got == BK_WIRE_OK)
            errnum = take_conf(agent);
        bk_wire_drop(&agent->order);
        if (errnum != 0)
            return errnum;
    }
    return 0;
}

static _Noreturn void talk(agent_t *agent, int fd, bk_wire_for_t what)
{
    if (bk_guard_keep(fd) != 0)
        _exit(2);
    _exit(bk_talk_run(3, what, agent->roots, agent->generation));
}

/* Said to the worker, and once in the system's log. */
static void turn_away(agent_t *agent, int fd)
{
    char text[160];
    snprintf(text, sizeof text,
             "it has %u conversations with workers already, as many as it takes up; see what keeps "
             "them open",
             agent->talks);
    (void)bk_wire_send(fd, BK_WIRE_FAILED, 0, text, strlen(text), NULL, 0);
    if (!agent->full)
        syslog(LOG_WARNING, "a worker is turned away: %s", text);
    agent->full = true;
}

/* A conversation that is not taken up ends at once for the worker: its other end is closed. */
static void take_up(agent_t *agent)
{
    const bk_wire_message_t *call = &agent->call;
    bk_wire_talk_t wish;
    if (call->head.verb != BK_WIRE_TALK || call->head.len != sizeof wish || call->fd_count != 1)
        return;
    memcpy(&wish, call->body, sizeof wish);
    if (wish.what < BK_WIRE_FOR_STATUS || wish.what > BK_WIRE_FOR_WATCHING || wish.zero != 0 ||
        !bk_wire_is_seqpacket(call->fds[0]))
        return;
    if (agent->talks >= agent->most) {
        turn_away(agent, call->fds[0]);
        return;
    }
    pid_t pid = bk_guard_fork("bk-helper-talk");
    if (pid == 0)
        talk(agent, call->fds[0], (bk_wire_for_t)wish.what);
    if (pid > 0)
        agent->talks++;
}

/* One TALK of the workers.  0 or an errno. */
static int answer(agent_t *agent)
{
    int errnum = 0;
    switch (bk_wire_receive(agent->broker, &agent->call)) {
    case BK_WIRE_END:
        close(agent->broker);
        agent->broker = -1;
        return 0;
    case BK_WIRE_OK:
        /* A worker of a new generation calls when the supervisor has already passed it on: what is
         * in the line now is older than the call. */
        errnum = obey(agent);
        if (errnum == 0 && agent->line >= 0)
            take_up(agent);
        bk_wire_drop(&agent->call);
        return errnum;
    default:
        return 0;
    }
}

static int serve(agent_t *agent)
{
    while (agent->line >= 0 || agent->talks > 0) {
        struct pollfd fds[3] = {{.fd = agent->line, .events = POLLIN},
                                {.fd = agent->line >= 0 ? agent->broker : -1, .events = POLLIN},
                                {.fd = agent->signals, .events = POLLIN}};
        int errnum = 0, found = poll(fds, 3, agent->talks > 0 ? -1 : IDLE_MS);
        if (found < 0 && errno != EINTR)
            return errno;
        if (found == 0)
            return 0;
        reap(agent);
        if (fds[0].revents != 0)
            errnum = obey(agent);
        if (errnum == 0 && fds[1].revents != 0 && agent->line >= 0)
            errnum = answer(agent);
        if (errnum != 0)
            return errnum;
    }
    return 0;
}

int bk_agent_run(int line, int broker, bk_roots_t *roots, const bk_wire_conf_t *conf)
{
    agent_t *agent = calloc(1, sizeof *agent);
    if (agent == NULL)
        return 2;
    agent->line = line;
    agent->broker = broker;
    agent->roots = roots;
    obey_conf(agent, conf);
    bk_refuse_share();
    agent->signals = bk_guard_signals(0);
    int errnum = agent->signals < 0 ? errno : serve(agent);
    bk_roots_free(agent->roots);
    free(agent);
    return errnum == 0 ? 0 : 2;
}
