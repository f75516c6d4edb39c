/*
 * helper/supervisor.c: takes configurations from nginx's master, keeps an agent running, waits as
 * a standby while the helper of another master is active.  Root, and so small on purpose: it reads
 * nothing but what the master says, and opens nothing but its lock.  libc only.
 *
 * It has the lock and an agent, or neither: an agent that nobody talks to any more leaves, and the
 * lock with it.  The next call of a worker takes the lock and starts an agent, or is turned away
 * when the helper of another master has the lock.  So during a binary upgrade the one serves whose
 * master has the workers, however long both masters live.
 *
 * The end of the control socket without QUIT, or SIGTERM, ends everything at once.
 */
#include "helper/supervisor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "helper/agent.h"
#include "helper/cage.h"
#include "helper/guard.h"
#include "helper/lock.h"
#include "helper/wire.h"

#define BACK_MS    100   /* before the first new agent; doubles with each that dies young */
#define BACK_MAX   30000 /* ms */
#define STEADY_MS  60000 /* an agent that lived so long was a good one */
#define LEAVE_MS   30000 /* for conversations to end after QUIT */
#define NO_TIMEOUT (-1)

typedef struct {
    int control, broker, signals;
    int lock; /* -1: idle or standby */
    uint64_t nginx;
    bk_wire_conf_t conf;
    bk_roots_t *roots; /* NULL before the first CONF */
    pid_t agent;       /* 0: none */
    int line;          /* to the agent */
    int64_t born, next;
    unsigned failures; /* agents that died young, in a row */
    bool leaving, ended;
    int64_t leave_by;
    bk_wire_message_t in;
} supervisor_t;

/* --- the agent --- */

static _Noreturn void be_agent(supervisor_t *s, int line)
{
    close(s->control);
    close(s->signals);
    bk_wire_drop(&s->in);
    if (s->line >= 0)
        close(s->line);
    /* The lock stays open: it must not be free before this agent is gone. */
    _exit(bk_agent_run(line, s->broker, s->roots, &s->conf));
}

static void start_agent(supervisor_t *s)
{
    int pair[2] = {-1, -1};
    s->born = bk_guard_now();
    s->next = s->born + BACK_MS;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return;
    pid_t pid = bk_guard_fork("bk-helper-agent");
    if (pid == 0) {
        close(pair[0]);
        be_agent(s, pair[1]);
    }
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return;
    }
    s->agent = pid;
    s->line = pair[0];
}

/* Doubling, with up to a quarter more or less, so that nothing beats in time with it. */
static int64_t back_off(unsigned failures)
{
    uint32_t dice = 0;
    int64_t ms = failures < 9 ? BACK_MS << failures : BACK_MAX;
    if (ms > BACK_MAX)
        ms = BACK_MAX;
    if (getrandom(&dice, sizeof dice, GRND_NONBLOCK) < 0)
        dice = (uint32_t)getpid();
    return ms - ms / 4 + (int64_t)(dice % (uint32_t)(ms / 2 + 1));
}

static void release(supervisor_t *s)
{
    if (s->lock < 0)
        return;
    bk_lock_remove(s->nginx);
    close(s->lock);
    s->lock = -1;
}

static void bury_agent(supervisor_t *s, int status)
{
    int64_t now = bk_guard_now();
    close(s->line);
    s->line = -1;
    s->agent = 0;
    if (s->leaving) {
        s->ended = true;
        return;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        release(s);
        return;
    }
    if (now - s->born >= STEADY_MS)
        s->failures = 0;
    int64_t wait = back_off(s->failures++);
    s->next = now + wait;
    syslog(LOG_WARNING, "the agent ended (%s %d); the next one starts in %d ms",
           WIFSIGNALED(status) ? "signal" : "status",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), (int)wait);
}

static void reap(supervisor_t *s)
{
    int signal, status;
    pid_t pid;
    while ((signal = bk_guard_signal(s->signals)) != 0)
        s->ended = s->ended || signal != SIGCHLD;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == s->agent)
            bury_agent(s, status);
}

static void kill_agent(supervisor_t *s)
{
    if (s->agent == 0)
        return;
    kill(s->agent, SIGKILL);
    while (waitpid(s->agent, NULL, 0) < 0 && errno == EINTR)
        continue;
    s->agent = 0;
}

/* --- being active --- */

/* 0, or why the lock cannot even be tried. */
static int try_lock(supervisor_t *s)
{
    s->lock = bk_lock_take(s->nginx);
    if (s->lock < 0)
        return errno == EWOULDBLOCK ? 0 : errno;
    s->next = 0;
    return 0;
}

/*
 * A worker calls and there is no agent.  The call is left to the one that is started now; a standby
 * does not leave it waiting: it is closed, and the worker does without.
 */
static void answer_call(supervisor_t *s)
{
    if (try_lock(s) == 0 && s->lock >= 0)
        return;
    bk_wire_got_t got = bk_wire_receive(s->broker, &s->in);
    bk_wire_drop(&s->in);
    if (got == BK_WIRE_END) {
        close(s->broker);
        s->broker = -1;
    }
}

/* --- the master --- */

static void refuse(supervisor_t *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void refuse(supervisor_t *s, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len > (int)sizeof text - 1)
        len = (int)sizeof text - 1;
    (void)bk_wire_send(s->control, BK_WIRE_FAILED, s->in.head.id, text, (size_t)len, NULL, 0);
}

static void ready(const supervisor_t *s)
{
    bk_wire_ready_t body = {
        .generation = s->conf.generation, .active = s->lock >= 0, .pid = (int32_t)getpid()};
    snprintf(body.release, sizeof body.release, "%s", BK_VERSION);
    (void)bk_wire_send(s->control, BK_WIRE_READY, s->in.head.id, &body, sizeof body, NULL, 0);
}

/* To an agent that cannot take it, the next one will be born with it. */
static void tell_agent(supervisor_t *s)
{
    if (s->agent != 0 &&
        bk_wire_send(s->line, BK_WIRE_CONF, 0, &s->conf, sizeof s->conf, s->in.fds, 1) != 0)
        kill(s->agent, SIGKILL);
}

static void take_conf(supervisor_t *s)
{
    bk_wire_conf_t conf;
    bk_roots_t *roots = NULL;
    uint32_t which = 0;
    const char *why = "";
    unsigned wanted = s->broker < 0 && s->roots == NULL ? 2 : 1;
    if (s->in.head.len != sizeof conf || s->in.fd_count != wanted ||
        (wanted == 2 && !bk_wire_is_seqpacket(s->in.fds[1]))) {
        refuse(s, "the configuration's message is damaged");
        return;
    }
    memcpy(&conf, s->in.body, sizeof conf);
    int errnum = bk_roots_read(s->in.fds[0], conf.count, &roots, &which, &why);
    if (errnum != 0) {
        refuse(s, "root %u of the configuration is refused: %s", which, why);
        return;
    }
    if (s->roots == NULL)
        s->nginx = conf.nginx;
    if (s->lock < 0)
        errnum = try_lock(s);
    if (errnum != 0) {
        errno = errnum;
        refuse(s, "the lock in " BK_LOCK_DIRECTORY " cannot be taken (%m): that must be a "
                  "directory that root can write to, and nobody else");
        bk_roots_free(roots);
        return;
    }
    if (wanted == 2) {
        s->broker = s->in.fds[1];
        s->in.fds[1] = -1;
    }
    bk_roots_free(s->roots);
    s->roots = roots;
    s->conf = conf;
    tell_agent(s);
    if (s->lock >= 0 && s->agent == 0 && s->failures == 0)
        start_agent(s);
    ready(s);
}

static void leave(supervisor_t *s)
{
    s->leaving = true;
    s->leave_by = bk_guard_now() + LEAVE_MS;
    s->ended = s->agent == 0;
    /* It sees the end of the line, takes up nothing more, and leaves after its conversations. */
    if (s->line >= 0)
        (void)shutdown(s->line, SHUT_RDWR);
}

static void listen_to_master(supervisor_t *s)
{
    switch (bk_wire_receive(s->control, &s->in)) {
    case BK_WIRE_EMPTY:
        return;
    case BK_WIRE_END:
        s->ended = true;
        return;
    case BK_WIRE_BROKEN:
        if (s->in.head.magic == BK_WIRE_MAGIC && s->in.head.version != BK_WIRE_VERSION)
            refuse(s,
                   "this helper is of version " BK_VERSION " and speaks protocol %u, the module "
                   "in nginx speaks protocol %u: install both of one version, and restart nginx "
                   "(a reload keeps the module that is loaded)",
                   BK_WIRE_VERSION, s->in.head.version);
        else
            refuse(s, "a message of the master is not understood");
        return;
    case BK_WIRE_OK:
        if (s->in.head.verb == BK_WIRE_CONF)
            take_conf(s);
        else if (s->in.head.verb == BK_WIRE_QUIT)
            leave(s);
        else
            refuse(s, "verb %u is not for a supervisor", s->in.head.verb);
        bk_wire_drop(&s->in);
    }
}

/* --- the loop --- */

static int until(int64_t time, int most)
{
    int64_t left = time - bk_guard_now();
    if (left < 0)
        return 0;
    return most >= 0 && left > most ? most : (int)left;
}

static int timeout_of(const supervisor_t *s)
{
    if (s->leaving)
        return until(s->leave_by, LEAVE_MS);
    return s->lock >= 0 && s->agent == 0 ? until(s->next, BACK_MAX * 2) : NO_TIMEOUT;
}

static void act(supervisor_t *s)
{
    if (s->leaving) {
        s->ended = s->ended || bk_guard_now() >= s->leave_by;
        return;
    }
    if (s->lock >= 0 && s->agent == 0 && bk_guard_now() >= s->next)
        start_agent(s);
}

static int serve(supervisor_t *s)
{
    while (!s->ended) {
        struct pollfd fds[3] = {
            {.fd = s->leaving ? -1 : s->control, .events = POLLIN},
            {.fd = s->signals, .events = POLLIN},
            {.fd = s->roots != NULL && s->lock < 0 ? s->broker : -1, .events = POLLIN}};
        if (poll(fds, 3, timeout_of(s)) < 0 && errno != EINTR)
            return errno;
        reap(s);
        if (fds[0].revents != 0)
            listen_to_master(s);
        if (fds[2].revents != 0 && s->lock < 0)
            answer_call(s);
        if (!s->ended)
            act(s);
    }
    return 0;
}

int bk_supervise(int control, int broker)
{
    supervisor_t *s = calloc(1, sizeof *s);
    if (s == NULL)
        return 1;
    s->control = control;
    s->broker = broker;
    s->lock = s->line = -1;
    s->signals = bk_guard_signals(1);
    int errnum = s->signals < 0 || bk_cage_outer() != 0 ? errno : serve(s);
    kill_agent(s);
    release(s);
    bk_roots_free(s->roots);
    free(s);
    return errnum == 0 ? 0 : 1;
}
