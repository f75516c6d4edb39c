/*
 * t/unit/helper/supervisor_test.c: what a supervisor answers to its master, how it keeps an agent, how many conversations
 * an agent takes up, and who is active when there are two.
 */
#include "unit/helper/agent.h"

#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "helper/client_private.h"
#include "helper/lock.h"
#include "helper/supervisor.h"

typedef struct {
    pid_t pid;
    int control, broker; /* the master's end, the workers' end */
    bk_wire_message_t in;
    uint32_t talks; /* said with the next CONF */
} master_t;

static uint64_t nginx_number(void)
{
    static uint32_t count;
    return (uint64_t)getpid() << 32 | ++count;
}

/* path: through one, so that the broker comes with the first CONF. */
static master_t *master_start(bool path)
{
    int control[2], broker[2];
    master_t *m = calloc(1, sizeof *m);
    assert_non_null(m);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, broker), 0);
    fflush(NULL);
    m->pid = fork();
    assert_true(m->pid >= 0);
    if (m->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(control[0]);
        close(broker[0]);
        if (path)
            close(broker[1]);
        _exit(bk_supervise(control[1], path ? -1 : broker[1]));
    }
    close(control[1]);
    m->control = control[0];
    m->broker = path ? broker[1] : broker[0];
    if (path)
        close(broker[0]);
    else
        close(broker[1]);
    return m;
}

/* The exit status, within 10 s. */
static int master_end(master_t *m)
{
    int status = -1;
    pid_t got = 0;
    if (m->control >= 0)
        close(m->control);
    for (unsigned tries = 0; tries < 1000 && got == 0; tries++) {
        got = waitpid(m->pid, &status, WNOHANG);
        usleep(10000);
    }
    if (got == 0)
        kill(m->pid, SIGKILL);
    assert_int_equal(got, m->pid);
    close(m->broker);
    free(m);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int roots_memfd(const char *path, bool sealed)
{
    bk_wire_root_t root = {.flags = BK_WIRE_MAY_READ, .len = (uint32_t)strlen(path)};
    memcpy(root.path, path, strlen(path));
    int fd = memfd_create("roots", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &root, sizeof root), sizeof root);
    if (sealed)
        assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
    return fd;
}

static void send_conf(master_t *m, uint64_t generation, uint64_t nginx, const char *path,
                      int broker)
{
    bk_wire_conf_t conf = {.generation = generation, .nginx = nginx, .count = 1, .talks = m->talks};
    int fds[2] = {roots_memfd(path, true), broker};
    assert_int_equal(bk_wire_send(m->control, BK_WIRE_CONF, (uint32_t)generation, &conf,
                                  sizeof conf, fds, broker >= 0 ? 2 : 1),
                     0);
    close(fds[0]);
}

static bk_wire_ready_t expect_ready(master_t *m)
{
    bk_wire_ready_t ready;
    assert_int_equal(agent_next(m->control, &m->in), BK_WIRE_OK);
    if (m->in.head.verb == BK_WIRE_FAILED)
        print_error("%.*s\n", (int)m->in.head.len, (const char *)m->in.body);
    assert_int_equal(m->in.head.verb, BK_WIRE_READY);
    assert_int_equal(m->in.head.len, sizeof ready);
    memcpy(&ready, m->in.body, sizeof ready);
    return ready;
}

static void expect_failed(master_t *m, const char *text)
{
    assert_int_equal(agent_next(m->control, &m->in), BK_WIRE_OK);
    assert_int_equal(m->in.head.verb, BK_WIRE_FAILED);
    m->in.body[m->in.head.len] = '\0';
    if (strstr((const char *)m->in.body, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", (const char *)m->in.body, text);
}

/* HELLO of a new conversation; what came. */
static bk_wire_got_t hello(int broker, bk_wire_hello_t *out)
{
    agent_t agent = {.broker = broker};
    bk_wire_message_t *message = calloc(1, sizeof *message);
    assert_non_null(message);
    int fd = agent_talk(&agent);
    (void)bk_wire_send(fd, BK_WIRE_HELLO, 1, NULL, 0, NULL, 0);
    bk_wire_got_t got = agent_next(fd, message);
    if (got == BK_WIRE_OK && message->head.len == sizeof *out)
        memcpy(out, message->body, sizeof *out);
    close(fd);
    free(message);
    return got;
}

static void new_conversations_know_the_new_configuration(void **state)
{
    (void)state;
    bk_wire_hello_t h = {0};
    uint64_t nginx = nginx_number();
    master_t *m = master_start(false);
    for (uint64_t generation = 1; generation <= 20; generation++) {
        send_conf(m, generation, nginx, "/", -1);
        bk_wire_ready_t ready = expect_ready(m);
        assert_int_equal(ready.generation, generation);
        assert_int_equal(ready.active, 1);
        assert_int_equal(ready.pid, m->pid);
        assert_int_equal(hello(m->broker, &h), BK_WIRE_OK);
        assert_int_equal(h.generation, generation);
    }
    assert_int_equal(master_end(m), 0);
}

static void the_broker_may_come_with_the_first_configuration(void **state)
{
    (void)state;
    int broker[2];
    bk_wire_hello_t h = {0};
    uint64_t nginx = nginx_number();
    master_t *m = master_start(true);
    send_conf(m, 1, nginx, "/", -1);
    expect_failed(m, "damaged");
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, broker), 0);
    send_conf(m, 2, nginx, "/", broker[1]);
    close(broker[1]);
    expect_ready(m);
    send_conf(m, 3, nginx, "/", -1);
    expect_ready(m);
    assert_int_equal(hello(broker[0], &h), BK_WIRE_OK);
    assert_int_equal(h.generation, 3);
    close(broker[0]);
    assert_int_equal(master_end(m), 0);
}

static void what_is_wrong_is_refused_and_the_old_stays(void **state)
{
    (void)state;
    bk_wire_hello_t h = {0};
    uint64_t nginx = nginx_number();
    bk_wire_conf_t conf = {.generation = 2, .nginx = nginx, .count = 1};
    master_t *m = master_start(false);
    send_conf(m, 1, nginx, "/", -1);
    expect_ready(m);
    send_conf(m, 2, nginx, "relative", -1);
    expect_failed(m, "root 0 of the configuration is refused: its path is not absolute");
    int open_fd = roots_memfd("/", false);
    assert_int_equal(bk_wire_send(m->control, BK_WIRE_CONF, 3, &conf, sizeof conf, &open_fd, 1), 0);
    expect_failed(m, "not a sealed memfd");
    close(open_fd);
    assert_int_equal(bk_wire_send(m->control, BK_WIRE_CONF, 4, &conf, sizeof conf, NULL, 0), 0);
    expect_failed(m, "damaged");
    assert_int_equal(bk_wire_send(m->control, BK_WIRE_ROOT, 5, NULL, 0, NULL, 0), 0);
    expect_failed(m, "not for a supervisor");
    assert_int_equal(send(m->control, "hello", 5, 0), 5);
    expect_failed(m, "not understood");
    bk_wire_head_t other = {
        .magic = BK_WIRE_MAGIC, .version = BK_WIRE_VERSION + 1, .verb = BK_WIRE_CONF};
    assert_int_equal(send(m->control, &other, sizeof other, 0), sizeof other);
    expect_failed(m, "install both of one version");
    assert_int_equal(hello(m->broker, &h), BK_WIRE_OK);
    assert_int_equal(h.generation, 1);
    assert_int_equal(master_end(m), 0);
}

static void of_two_for_one_nginx_one_waits(void **state)
{
    (void)state;
    bk_wire_hello_t h = {0};
    uint64_t nginx = nginx_number();
    master_t *first = master_start(false), *second = master_start(false),
             *other = master_start(false);
    send_conf(first, 1, nginx, "/", -1);
    assert_int_equal(expect_ready(first).active, 1);
    send_conf(second, 1, nginx, "/", -1);
    assert_int_equal(expect_ready(second).active, 0);
    send_conf(other, 1, nginx_number(), "/", -1);
    assert_int_equal(expect_ready(other).active, 1);
    /* Whoever calls a standby is told at once, by the end of the conversation. */
    assert_int_equal(hello(second->broker, &h), BK_WIRE_END);
    assert_int_equal(bk_wire_send(first->control, BK_WIRE_QUIT, 0, NULL, 0, NULL, 0), 0);
    assert_int_equal(master_end(first), 0);
    bool answers = false;
    for (unsigned tries = 0; tries < 500 && !answers; tries++) {
        answers = hello(second->broker, &h) == BK_WIRE_OK;
        usleep(20000);
    }
    assert_true(answers);
    send_conf(second, 2, nginx, "/", -1);
    assert_int_equal(expect_ready(second).active, 1);
    /* Forked later, it holds the master's end of the second one, too. */
    assert_int_equal(master_end(other), 0);
    assert_int_equal(master_end(second), 0);
}

static void after_quit_conversations_end_by_themselves(void **state)
{
    (void)state;
    master_t *m = master_start(false);
    send_conf(m, 1, nginx_number(), "/", -1);
    expect_ready(m);
    agent_t agent = {.broker = m->broker};
    int fd = agent_talk(&agent);
    assert_int_equal(bk_wire_send(fd, BK_WIRE_HELLO, 1, NULL, 0, NULL, 0), 0);
    assert_int_equal(agent_next(fd, &m->in), BK_WIRE_OK);
    assert_int_equal(bk_wire_send(m->control, BK_WIRE_QUIT, 0, NULL, 0, NULL, 0), 0);
    usleep(300000);
    assert_int_equal(waitpid(m->pid, NULL, WNOHANG), 0);
    assert_int_equal(bk_wire_send(fd, BK_WIRE_HELLO, 2, NULL, 0, NULL, 0), 0);
    assert_int_equal(agent_next(fd, &m->in), BK_WIRE_OK);
    close(fd);
    assert_int_equal(master_end(m), 0);
}

static void the_end_of_the_master_ends_conversations(void **state)
{
    (void)state;
    master_t *m = master_start(false);
    bk_wire_message_t *message = calloc(1, sizeof *message);
    assert_non_null(message);
    send_conf(m, 1, nginx_number(), "/", -1);
    expect_ready(m);
    agent_t agent = {.broker = m->broker};
    int fd = agent_talk(&agent);
    assert_int_equal(bk_wire_send(fd, BK_WIRE_HELLO, 1, NULL, 0, NULL, 0), 0);
    assert_int_equal(agent_next(fd, message), BK_WIRE_OK);
    assert_int_equal(master_end(m), 0);
    assert_int_equal(agent_next(fd, message), BK_WIRE_END);
    close(fd);
    free(message);
}

/* How many of these conversations answer. */
static unsigned count_answers(const int *fds, unsigned count, bk_wire_message_t *message)
{
    unsigned answers = 0;
    for (unsigned i = 0; i < count; i++) {
        (void)bk_wire_send(fds[i], BK_WIRE_HELLO, 1, NULL, 0, NULL, 0);
        answers += agent_next(fds[i], message) == BK_WIRE_OK;
    }
    return answers;
}

/* As many as the configuration needs; who comes then is told, and may come again later. */
static void an_agent_has_so_many_conversations_and_no_more(void **state)
{
    (void)state;
    enum { MOST = BK_WIRE_TALKS + 16 };
    int fds[MOST + 8];
    bk_wire_hello_t h = {0};
    master_t *m = master_start(false);
    m->talks = MOST;
    send_conf(m, 1, nginx_number(), "/", -1);
    expect_ready(m);
    agent_t agent = {.broker = m->broker};
    for (unsigned i = 0; i < MOST + 8; i++) {
        fds[i] = agent_talk(&agent);
        /* One by one: the socket holds only so many descriptors that nobody has taken up. */
        (void)bk_wire_send(fds[i], BK_WIRE_HELLO, 1, NULL, 0, NULL, 0);
        assert_int_equal(agent_next(fds[i], &m->in), BK_WIRE_OK);
        assert_int_equal(m->in.head.verb, i < MOST ? BK_WIRE_HELLO : BK_WIRE_FAILED);
        assert_int_equal(m->in.head.id, i < MOST);
    }
    assert_int_equal(count_answers(fds, MOST + 8, &m->in), MOST);
    bk_talker_t *talker;
    bk_err_t err = {0};
    assert_int_equal(bk_talker_open(m->broker, BK_WIRE_FOR_STATUS, &talker, NULL, &err),
                     BK_UNAVAILABLE);
    assert_non_null(strstr(err.text, "conversations with workers already"));
    for (unsigned i = 0; i < MOST + 8; i++)
        close(fds[i]);
    bool answers = false;
    for (unsigned tries = 0; tries < 500 && !answers; tries++) {
        answers = hello(m->broker, &h) == BK_WIRE_OK && h.pid > 0;
        usleep(20000);
    }
    assert_true(answers);
    assert_int_equal(master_end(m), 0);
}

static void what_a_worker_says_to_the_broker_harms_nobody(void **state)
{
    (void)state;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), two[2] = {null, null};
    bk_wire_hello_t h = {0};
    master_t *m = master_start(false);
    send_conf(m, 1, nginx_number(), "/", -1);
    expect_ready(m);
    assert_int_equal(hello(m->broker, &h), BK_WIRE_OK);
    int pid = h.pid;
    assert_int_equal(send(m->broker, "x", 1, 0), 1);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_TALK, 0, NULL, 0, NULL, 0), 0);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_TALK, 0, NULL, 0, two, 2), 0);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_TALK, 0, NULL, 0, &null, 1), 0);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_TALK, 0, "body", 4, &null, 1), 0);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_TALK, 0, "8 bytes!", 8, &null, 1), 0);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_CONF, 0, NULL, 0, &null, 1), 0);
    assert_int_equal(bk_wire_send(m->broker, BK_WIRE_QUIT, 0, NULL, 0, NULL, 0), 0);
    assert_int_equal(hello(m->broker, &h), BK_WIRE_OK);
    assert_int_equal(h.pid, pid);
    assert_int_equal(h.generation, 1);
    close(null);
    assert_int_equal(master_end(m), 0);
}

static void after_each_killed_agent_the_next_is_waited_for_longer(void **state)
{
    (void)state;
    bk_wire_hello_t h = {0};
    master_t *m = master_start(false);
    send_conf(m, 1, nginx_number(), "/", -1);
    expect_ready(m);
    assert_int_equal(hello(m->broker, &h), BK_WIRE_OK);
    for (unsigned n = 0; n < 5;
         n++) { /* 0.1 s and twice as long each time, give or take a quarter */
        int pid = h.pid;
        int64_t killed = bk_mono();
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(hello(m->broker, &h), BK_WIRE_OK);
        assert_int_not_equal(h.pid, pid);
        assert_true(bk_mono() - killed >= (75 << n) * BK_MS);
    }
    assert_int_equal(master_end(m), 0);
}

static void a_lock_file_is_not_left(void **state)
{
    (void)state;
    char path[64];
    struct stat st;
    uint64_t nginx = nginx_number();
    master_t *m = master_start(false);
    send_conf(m, 1, nginx, "/", -1);
    expect_ready(m);
    snprintf(path, sizeof path, "%s/%016llx.lock", BK_LOCK_DIRECTORY, (unsigned long long)nginx);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(master_end(m), 0);
    assert_int_equal(stat(path, &st), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(new_conversations_know_the_new_configuration),
        cmocka_unit_test(the_broker_may_come_with_the_first_configuration),
        cmocka_unit_test(what_is_wrong_is_refused_and_the_old_stays),
        cmocka_unit_test(of_two_for_one_nginx_one_waits),
        cmocka_unit_test(after_quit_conversations_end_by_themselves),
        cmocka_unit_test(the_end_of_the_master_ends_conversations),
        cmocka_unit_test(an_agent_has_so_many_conversations_and_no_more),
        cmocka_unit_test(what_a_worker_says_to_the_broker_harms_nobody),
        cmocka_unit_test(after_each_killed_agent_the_next_is_waited_for_longer),
        cmocka_unit_test(a_lock_file_is_not_left),
    };
    if (geteuid() != 0) {
        puts("1..0 # SKIP only root may be a helper");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
