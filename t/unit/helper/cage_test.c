/*
 * t/unit/helper/cage_test.c: what a caged process can no longer do, each wall asked by itself.
 */
#include "agent.h"

#include <linux/capability.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>

#include "helper/cage.h"

typedef struct {
    char *dir;
    char root[600], outside[600];
    bk_roots_t *roots;
} box_t;

static int setup(void **state)
{
    char path[700];
    if (geteuid() != 0)
        return 0;
    box_t *box = calloc(1, sizeof *box);
    box->dir = test_dir();
    join(box->root, box->dir, "root");
    join(box->outside, box->dir, "outside");
    assert_int_equal(mkdir(box->root, 0700), 0);
    assert_int_equal(mkdir(box->outside, 0700), 0);
    join(path, box->outside, "f");
    write_file(path, "f", 0, 0, 0600);
    join(path, box->root, "f");
    write_file(path, "f", 4321, 4321, 0600);
    agent_root_t list[] = {{box->root, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE}};
    box->roots = agent_roots(list, 1);
    *state = box;
    return 0;
}

static int teardown(void **state)
{
    box_t *box = *state;
    if (box == NULL)
        return 0;
    bk_roots_free(box->roots);
    test_dir_remove(box->dir);
    free(box);
    return 0;
}

/* In a process of its own, caged: 0, or the line of what did not hold. */
typedef int (*inside_t)(const box_t *box, int walls);
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s (errno %d)\n", __FILE__, __LINE__,           \
                    #condition, errno);                                                            \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static void run_caged(void **state, bool watcher, inside_t inside)
{
    box_t *box = *state;
    int status;
    if (box == NULL)
        SKIP_TEST();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60);
        int walls = bk_cage_enter(box->roots);
        if (walls < 0 || bk_cage_close(watcher) != 0)
            _exit(98);
        _exit(inside(box, walls));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static uint64_t capabilities(const char *which)
{
    char line[200];
    unsigned long long found = ~0ull;
    size_t len = strlen(which);
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, which, len) == 0)
            found = strtoull(line + len, NULL, 16);
    if (file != NULL)
        fclose(file);
    return found;
}

/* Only the first step, so that /proc can still be read where Landlock is not to be had. */
static void test_few_capabilities_are_left(void **state)
{
    box_t *box = *state;
    int status;
    const uint64_t files = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH |
                           1u << CAP_FOWNER | 1u << CAP_FSETID;
    const uint64_t admin = 1u << CAP_SYS_ADMIN;
    if (box == NULL)
        SKIP_TEST();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct data[2];
        agent_root_t list[] = {{"/", BK_WIRE_MAY_READ}};
        bk_roots_t *roots = agent_roots(list, 1);
        bk_cage_enter(roots);
        bk_roots_free(roots);
        uint64_t bounding = capabilities("CapBnd:");
        bk_cage_drop_admin();
        syscall(SYS_capget, &header, data);
        bool ok = (bounding & ~(files | admin)) == 0 && (data[0].permitted & ~files) == 0 &&
                  (data[0].effective & ~files) == 0 && data[1].permitted == 0 &&
                  data[0].inheritable == 0 && (data[0].permitted & 1u << CAP_CHOWN) != 0;
        struct rlimit core;
        getrlimit(RLIMIT_CORE, &core);
        ok = ok && core.rlim_max == 0 && prctl(PR_GET_DUMPABLE) == 0 &&
             prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 && umask(0) == 077;
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int reach_out(const box_t *box, int walls)
{
    char path[700], other[700];
    if ((walls & BK_WIRE_CAGE_LANDLOCK) == 0)
        return 0;
    join(path, box->outside, "f");
    MUST(open(path, O_RDONLY) == -1 && errno == EACCES);
    MUST(open("/etc/passwd", O_RDONLY) == -1 && errno == EACCES);
    MUST(open("/", O_RDONLY | O_DIRECTORY) == -1 && errno == EACCES);
    join(path, box->outside, "new");
    MUST(openat(AT_FDCWD, path, O_RDWR | O_CREAT, 0600) == -1 && errno == EACCES);
    MUST(mkdirat(AT_FDCWD, path, 0700) == -1 && errno == EACCES);
    MUST(symlinkat("x", AT_FDCWD, path) == -1 && errno == EACCES);
    join(path, box->outside, "f");
    MUST(unlinkat(AT_FDCWD, path, 0) == -1 && errno == EACCES);
    join(other, box->root, "moved");
    MUST(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_NOREPLACE) == -1);
    MUST(linkat(AT_FDCWD, path, AT_FDCWD, other, 0) == -1);
    /* Below the root all is well. */
    join(path, box->root, "f");
    int fd = openat(AT_FDCWD, path, O_RDWR);
    MUST(fd >= 0);
    MUST(fchown(fd, 1, 1) == 0);
    MUST(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_NOREPLACE) == 0);
    return 0;
}

static void test_paths_outside_the_roots_are_out_of_reach(void **state)
{
    run_caged(state, false, reach_out);
}

static int call_others(const box_t *box, int walls)
{
    char *none[] = {NULL};
    struct utsname name;
    char path[700];
    if ((walls & BK_WIRE_CAGE_SECCOMP) == 0)
        return 0;
    MUST(execve("/bin/true", none, none) == -1 && errno == EPERM);
    MUST(socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EPERM);
    MUST(fork() == -1 && errno == EPERM);
    MUST(kill(getppid(), 0) == -1 && errno == EPERM);
    MUST(uname(&name) == -1 && errno == EPERM);
    MUST(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == -1 && errno == EPERM);
    MUST(setuid(1) == -1 && errno == EPERM);
    MUST(syscall(SYS_open_by_handle_at, 0, NULL, 0) == -1 && errno == EPERM);
    MUST(syscall(SYS_mount, NULL, NULL, NULL, 0, NULL) == -1 && errno == EPERM);
    join(path, box->root, "device");
    MUST(mknodat(AT_FDCWD, path, S_IFCHR | 0600, makedev(1, 3)) == -1 && errno == EPERM);
    MUST(mknodat(AT_FDCWD, path, S_IFREG | 0600, 0) == -1 && errno == EPERM);
    MUST(mknodat(AT_FDCWD, path, S_IFIFO | 0600, 0) == 0);
    return 0;
}

static void test_other_system_calls_fail(void **state)
{
    run_caged(state, false, call_others);
}

static int watch(const box_t *box, int walls)
{
    (void)box;
    int fd = (int)syscall(SYS_inotify_init1, 0);
    MUST(fd >= 0);
    if ((walls & BK_WIRE_CAGE_SECCOMP) == 0)
        return 0;
    MUST(syscall(SYS_fanotify_init, 0, 0) == -1 && errno == EPERM);
    MUST(syscall(SYS_fanotify_mark, fd, 0, 0ull, -1, NULL) == -1 && errno == EPERM);
    MUST(syscall(SYS_open_by_handle_at, 0, NULL, 0) == -1 && errno == EPERM);
    return 0;
}

static void test_watchers_watch_and_others_do_not(void **state)
{
    run_caged(state, true, watch);
}

static int remember(const box_t *box, int walls)
{
    (void)box;
    if ((walls & BK_WIRE_CAGE_SECCOMP) == 0)
        return 0;
    MUST(syscall(SYS_inotify_init1, 0) == -1 && errno == EPERM);
    MUST(syscall(SYS_fanotify_init, 0, 0) == -1 && errno == EPERM);
    return 0;
}

static void test_others_do_not_watch(void **state)
{
    run_caged(state, false, remember);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_few_capabilities_are_left), T(test_paths_outside_the_roots_are_out_of_reach),
        T(test_other_system_calls_fail),   T(test_watchers_watch_and_others_do_not),
        T(test_others_do_not_watch),
    };
    return cmocka_run_group_tests_name("helper cage", tests, NULL, NULL);
}
