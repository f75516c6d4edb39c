/*
 * t/unit/helper/client_test.c: the worker's side against a real conversation process: looking, opening, many threads,
 * conversations that die.
 */
#include "agent.h"

#include <pthread.h>
#include <sys/resource.h>

#include "helper/client_private.h"

#define APP 4321 /* owner of the application's files; nobody has this number */

typedef struct {
    char *dir;
    char root[600];
    agent_t agent;
    bk_helper_t *helper;
    bk_helper_root_t *handle;
} box_t;

static int setup(void **state)
{
    char path[600];
    bk_err_t err = {0};
    if (geteuid() != 0)
        return 0;
    box_t *box = calloc(1, sizeof *box);
    box->dir = test_dir();
    join(box->root, box->dir, "uploads");
    assert_int_equal(mkdir(box->root, 0750), 0);
    assert_int_equal(chown(box->root, APP, APP), 0);
    join(path, box->root, "sub");
    assert_int_equal(mkdir(path, 0700), 0);
    join(path, box->root, "a.txt");
    write_file(path, "hello", APP, APP, 0640);
    join(path, box->root, "sub/b.txt");
    write_file(path, "below", APP, APP, 0600);
    join(path, box->root, "link");
    assert_int_equal(symlink("a.txt", path), 0);
    agent_root_t list[] = {{box->root, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE},
                           {"/nowhere/at/all", BK_WIRE_MAY_READ}};
    box->agent = agent_start(list, 2);
    be_worker();
    OK(bk_helper_new(box->agent.broker, &box->helper, &err), &err);
    OK(bk_helper_root_open(box->helper, box->root, BK_WIRE_MAY_READ, &box->handle, NULL, &err),
       &err);
    *state = box;
    return 0;
}

static int teardown(void **state)
{
    box_t *box = *state;
    if (box == NULL)
        return 0;
    bk_helper_root_close(box->handle);
    bk_helper_free(box->helper);
    be_root();
    agent_stop(&box->agent);
    test_dir_remove(box->dir);
    free(box);
    *state = NULL;
    return 0;
}

#define BOX                                                                                        \
    box_t *box = *state;                                                                           \
    bk_err_t err = {0};                                                                            \
    if (box == NULL)                                                                               \
    SKIP_TEST()

static bk_helper_result_t one(box_t *box, const char *dir, bk_helper_op_t op)
{
    bk_helper_result_t result;
    bk_err_t err = {0};
    OK(bk_helper_at(box->handle, dir, 0, &op, 1, &result, NULL, &err), &err);
    return result;
}

/* SQLite's calls have no job that could be stopped. */
static void test_a_conversation_that_hangs_is_not_waited_for_for_ever(void **state)
{
    BOX;
    uint64_t rights;
    bk_helper_root_t *other;
    bk_helper_op_t op = {.call = BK_WIRE_STAT, .name = "a.txt"};
    bk_helper_result_t result = one(box, "", op);
    assert_int_equal(result.error, 0);
    be_root();
    pid_t pid = agent_conversation(box->agent.pid, &rights);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    be_worker();
    bk_helper_alone_ms = 300;
    assert_int_equal(bk_helper_at(box->handle, "", 0, &op, 1, &result, NULL, &err), BK_UNAVAILABLE);
    /* The next one has another. */
    OK(bk_helper_at(box->handle, "", 0, &op, 1, &result, NULL, &err), &err);
    assert_int_equal(result.error, 0);
    be_root();
    assert_int_equal(kill(agent_conversation(box->agent.pid, &rights), SIGSTOP), 0);
    be_worker();
    assert_int_equal(
        bk_helper_root_open(box->helper, box->root, BK_WIRE_MAY_PLACE, &other, NULL, &err),
        BK_UNAVAILABLE);
    bk_helper_alone_ms = 30000;
}

/* Descriptors that nobody takes up count against the limit of the user who sends them. */
static int begin_with_many_under_way(const box_t *box)
{
    struct rlimit few = {24, 24};
    int pair[2], null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bk_talker_t *talker;
    bk_err_t err = {0};
    alarm(60);
    if (setgid(NOBODY) != 0 || setuid(NOBODY) != 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0 ||
        setrlimit(RLIMIT_NOFILE, &few) != 0)
        return 2;
    for (unsigned i = 0; i < 100; i++)
        if (bk_wire_send(pair[0], BK_WIRE_TALK, 0, NULL, 0, &null, 1) != 0)
            break;
    return bk_talker_open(box->agent.broker, BK_WIRE_FOR_FILES, &talker, NULL, &err) ==
                       BK_UNAVAILABLE &&
                   strstr(err.text, "under way") != NULL
               ? 0
               : 1;
}

static void test_with_too_many_descriptors_under_way_it_ends_in_time(void **state)
{
    BOX;
    int status;
    (void)err;
    be_root();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(begin_with_many_under_way(box));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    be_worker();
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_the_helper_says_who_it_is(void **state)
{
    BOX;
    bk_wire_hello_t hello;
    OK(bk_helper_hello(box->helper, &hello, NULL, &err), &err);
    assert_int_equal(hello.generation, 7);
    assert_int_equal(hello.pid, box->agent.pid);
    assert_string_equal(hello.release, BK_VERSION);
    assert_true((hello.cage & BK_WIRE_CAGE_CAPS) != 0);
}

static void test_files_in_closed_directories_are_seen_and_read(void **state)
{
    BOX;
    char path[600], text[16] = "";
    join(path, box->root, "sub/b.txt");
    assert_int_equal(open(path, O_RDONLY), -1);
    bk_helper_result_t st =
        one(box, "sub", (bk_helper_op_t){.call = BK_WIRE_STAT, .name = "b.txt"});
    assert_int_equal(st.error, 0);
    assert_int_equal(st.fd, -1);
    assert_int_equal(st.st.st_size, 5);
    assert_int_equal(st.st.st_uid, APP);
    assert_int_equal(st.st.st_mode, S_IFREG | 0600);
    bk_helper_result_t file =
        one(box, "sub", (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "b.txt"});
    assert_int_equal(file.error, 0);
    assert_int_equal(read(file.fd, text, sizeof text), 5);
    assert_string_equal(text, "below");
    assert_int_equal(file.st.st_ino, st.st.st_ino);
    assert_int_equal(fcntl(file.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_true((fcntl(file.fd, F_GETFD) & FD_CLOEXEC) != 0);
    close(file.fd);
    (void)err;
}

static void test_directories_are_listed(void **state)
{
    BOX;
    unsigned count = 0;
    bk_helper_result_t dir =
        one(box, "", (bk_helper_op_t){.call = BK_WIRE_OPEN, .flags = O_DIRECTORY});
    assert_int_equal(dir.error, 0);
    DIR *list = fdopendir(dir.fd);
    assert_non_null(list);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    assert_int_equal(count, 5);
    (void)err;
}

static void test_links_tell_where_they_lead_and_are_not_followed(void **state)
{
    BOX;
    bk_helper_result_t link = one(
        box, "", (bk_helper_op_t){.call = BK_WIRE_STAT, .name = "link", .flags = BK_WIRE_LINKS});
    assert_int_equal(link.error, 0);
    assert_true(S_ISLNK(link.st.st_mode));
    assert_string_equal(link.data, "a.txt");
    assert_int_equal(link.data_len, 5);
    free(link.data);
    assert_int_equal(one(box, "", (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "link"}).error,
                     ELOOP);
    (void)err;
}

static void test_each_operation_fails_by_itself(void **state)
{
    BOX;
    bk_helper_op_t ops[] = {{.call = BK_WIRE_OPEN, .name = "a.txt"},
                            {.call = BK_WIRE_STAT, .name = "missing"},
                            {.call = BK_WIRE_OPEN, .name = "sub"},
                            {.call = BK_WIRE_STAT, .name = "a.txt"}};
    bk_helper_result_t results[4];
    OK(bk_helper_at(box->handle, "", 0, ops, 4, results, NULL, &err), &err);
    assert_int_equal(results[0].error, 0);
    assert_int_equal(results[1].error, ENOENT);
    assert_int_equal(results[2].error, 0);
    assert_int_equal(results[3].error, 0);
    struct stat st;
    assert_int_equal(fstat(results[2].fd, &st), 0);
    assert_true(S_ISDIR(st.st_mode));
    close(results[0].fd);
    close(results[2].fd);
}

/* 300 links of 4000 bytes have no room in one reply, 300 operations none in one request. */
static void test_any_number_of_operations(void **state)
{
    BOX;
    enum { COUNT = 300 };
    static char names[COUNT][16], target[4001];
    bk_helper_op_t ops[COUNT];
    bk_helper_result_t results[COUNT];
    memset(target, 'x', sizeof target - 1);
    be_root();
    for (unsigned i = 0; i < COUNT; i++) {
        char path[600];
        snprintf(names[i], sizeof names[i], "l%u", i);
        snprintf(path, sizeof path, "%s/l%u", box->root, i);
        target[0] = (char)('a' + i % 26);
        assert_int_equal(symlink(target, path), 0);
        ops[i] = (bk_helper_op_t){.call = BK_WIRE_STAT, .name = names[i], .flags = BK_WIRE_LINKS};
    }
    be_worker();
    OK(bk_helper_at(box->handle, "", 0, ops, COUNT, results, NULL, &err), &err);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(results[i].error, 0);
        assert_int_equal(results[i].data_len, 4000);
        assert_int_equal(results[i].data[0], 'a' + (int)(i % 26));
        free(results[i].data);
    }
}

static void test_a_directory_that_is_another_one_now_is_stale(void **state)
{
    BOX;
    struct stat st;
    bk_helper_op_t op = {.call = BK_WIRE_STAT, .name = "b.txt"};
    bk_helper_result_t result = one(box, "sub", (bk_helper_op_t){.call = BK_WIRE_STAT});
    st = result.st;
    OK(bk_helper_at(box->handle, "sub", st.st_ino, &op, 1, &result, NULL, &err), &err);
    assert_int_equal(result.error, 0);
    OK(bk_helper_at(box->handle, "sub", st.st_ino + 1, &op, 1, &result, NULL, &err), &err);
    assert_int_equal(result.error, ESTALE);
}

static void test_roots_are_those_of_the_configuration(void **state)
{
    BOX;
    bk_helper_root_t *root;
    assert_int_equal(
        bk_helper_root_open(box->helper, box->dir, BK_WIRE_MAY_READ, &root, NULL, &err),
        BK_FORBIDDEN);
    assert_null(root);
    assert_int_equal(
        bk_helper_root_open(box->helper, box->root, BK_WIRE_MAY_WATCH, &root, NULL, &err),
        BK_FORBIDDEN);
    assert_int_equal(
        bk_helper_root_open(box->helper, "/nowhere/at/all", BK_WIRE_MAY_READ, &root, NULL, &err),
        BK_NOT_FOUND);
}

static void test_a_root_that_is_made_later_can_be_opened(void **state)
{
    BOX;
    char path[600];
    bk_helper_root_t *root = NULL;
    be_root();
    join(path, box->dir, "later");
    agent_root_t list[] = {{path, BK_WIRE_MAY_READ}};
    agent_t agent = agent_start(list, 1);
    bk_helper_t *helper;
    OK(bk_helper_new(agent.broker, &helper, &err), &err);
    be_worker();
    assert_int_equal(bk_helper_root_open(helper, path, BK_WIRE_MAY_READ, &root, NULL, &err),
                     BK_NOT_FOUND);
    be_root();
    assert_int_equal(mkdir(path, 0700), 0);
    be_worker();
    OK(bk_helper_root_open(helper, path, BK_WIRE_MAY_READ, &root, NULL, &err), &err);
    bk_helper_op_t op = {.call = BK_WIRE_OPEN, .flags = O_DIRECTORY};
    bk_helper_result_t result;
    OK(bk_helper_at(root, "", 0, &op, 1, &result, NULL, &err), &err);
    assert_int_equal(result.error, 0);
    close(result.fd);
    bk_helper_root_close(root);
    bk_helper_free(helper);
    be_root();
    agent_stop(&agent);
    be_worker();
}

/* --- threads, and conversations that die --- */

static void *ask_often(void *data)
{
    box_t *box = data;
    for (unsigned i = 0; i < 200; i++) {
        bk_helper_op_t ops[2] = {{.call = BK_WIRE_STAT, .name = "a.txt"},
                                 {.call = BK_WIRE_OPEN, .name = "a.txt"}};
        bk_helper_result_t results[2];
        bk_err_t err = {0};
        if (bk_helper_at(box->handle, "", 0, ops, 2, results, NULL, &err) != BK_OK ||
            results[0].error != 0 || results[0].st.st_size != 5 || results[1].error != 0 ||
            results[1].fd < 0)
            return "failed";
        close(results[1].fd);
    }
    return NULL;
}

static void test_many_threads_ask_at_once(void **state)
{
    BOX;
    pthread_t threads[20];
    void *failed;
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_often, box), 0);
    for (unsigned i = 0; i < 20; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    (void)err;
}

static unsigned talkers(pid_t agent, pid_t out[16])
{
    char path[100];
    unsigned count = 0;
    long pid;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)agent, (int)agent);
    FILE *file = fopen(path, "r");
    while (file != NULL && count < 16 && fscanf(file, "%ld", &pid) == 1)
        out[count++] = (pid_t)pid;
    if (file != NULL)
        fclose(file);
    return count;
}

static bool alive(pid_t pid)
{
    char path[100], state = 'Z';
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    if (fscanf(file, "%*d %*s %c", &state) != 1)
        state = 'Z';
    fclose(file);
    return state != 'Z';
}

/* Kill the agent, and with it all conversations; another one takes up the same broker socket. */
static void replace_agent(box_t *box, int theirs, const bk_roots_t *roots)
{
    be_root();
    pid_t talking[16];
    unsigned count = talkers(box->agent.pid, talking);
    kill(box->agent.pid, SIGKILL);
    waitpid(box->agent.pid, NULL, 0);
    for (unsigned i = 0; i < count; i++)
        for (unsigned tries = 0; tries < 1000 && alive(talking[i]); tries++)
            usleep(5000);
    pid_t parent = getpid();
    box->agent.pid = fork();
    if (box->agent.pid == 0)
        agent_run(theirs, roots, parent);
    be_worker();
}

static void test_a_conversation_that_died_is_replaced(void **state)
{
    BOX;
    int pair[2];
    bk_helper_t *helper;
    bk_helper_root_t *root;
    be_root();
    agent_root_t list[] = {{box->root, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE}};
    bk_roots_t *roots = agent_roots(list, 1);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    replace_agent(box, pair[1], roots);
    OK(bk_helper_new(pair[0], &helper, &err), &err);
    OK(bk_helper_root_open(helper, box->root, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE, &root, NULL,
                           &err),
       &err);
    for (unsigned i = 0; i < 3; i++) {
        bk_helper_op_t op = {.call = BK_WIRE_STAT, .name = "a.txt"};
        bk_helper_op_t make = {.call = BK_WIRE_MKDIR, .name = i == 0 ? "d0" : i == 1 ? "d1" : "d2"};
        bk_helper_result_t result;
        OK(bk_helper_at(root, "", 0, &op, 1, &result, NULL, &err), &err);
        assert_int_equal(result.error, 0);
        replace_agent(box, pair[1], roots);
        /* It never got the request, so a change too is said again. */
        OK(bk_helper_at(root, "", 0, &make, 1, &result, NULL, &err), &err);
        assert_int_equal(result.error, 0);
        replace_agent(box, pair[1], roots);
    }
    bk_helper_root_close(root);
    bk_helper_free(helper);
    close(pair[0]);
    close(pair[1]);
    bk_roots_free(roots);
}

static void test_nobody_answers(void **state)
{
    BOX;
    int pair[2];
    bk_helper_t *helper;
    bk_wire_hello_t hello;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    OK(bk_helper_new(pair[0], &helper, &err), &err);
    assert_int_equal(bk_helper_hello(helper, &hello, NULL, &err), BK_UNAVAILABLE);
    close(pair[1]);
    assert_int_equal(bk_helper_hello(helper, &hello, NULL, &err), BK_UNAVAILABLE);
    bk_helper_free(helper);
    close(pair[0]);
    (void)box;
}

/* A helper that is slow, on a pipe of its own: a job that is stopped does not wait for it. */
static void test_a_stopped_job_does_not_wait(void **state)
{
    BOX;
    int pair[2];
    bk_helper_t *helper;
    bk_wire_hello_t hello;
    bk_ctl_t ctl;
    bk_ctl_init(&ctl);
    bk_ctl_stop(&ctl, BK_CANCELED);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    OK(bk_helper_new(pair[0], &helper, &err), &err);
    assert_int_equal(bk_helper_hello(helper, &hello, &ctl, &err), BK_CANCELED);
    bk_helper_free(helper);
    bk_ctl_free(&ctl);
    close(pair[0]);
    close(pair[1]);
    (void)box;
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_a_conversation_that_hangs_is_not_waited_for_for_ever),
        T(test_with_too_many_descriptors_under_way_it_ends_in_time),
        T(test_the_helper_says_who_it_is),
        T(test_files_in_closed_directories_are_seen_and_read),
        T(test_directories_are_listed),
        T(test_links_tell_where_they_lead_and_are_not_followed),
        T(test_each_operation_fails_by_itself),
        T(test_any_number_of_operations),
        T(test_a_directory_that_is_another_one_now_is_stale),
        T(test_roots_are_those_of_the_configuration),
        T(test_a_root_that_is_made_later_can_be_opened),
        T(test_many_threads_ask_at_once),
        T(test_a_conversation_that_died_is_replaced),
        T(test_nobody_answers),
        T(test_a_stopped_job_does_not_wait),
    };
    return cmocka_run_group_tests_name("helper client", tests, NULL, NULL);
}
