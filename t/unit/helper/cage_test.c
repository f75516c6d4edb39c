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
#include <sys/xattr.h>

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
    join(path, box->root, "own");
    write_file(path, "own", 0, 0, 0600);
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

static int status_file;

static void run_in(const box_t *box, const bk_roots_t *roots, bk_wire_for_t what, inside_t inside)
{
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60);
        status_file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
        int walls = bk_cage_enter(roots, what);
        if (walls < 0 || bk_cage_close(roots, what) != 0)
            _exit(98);
        _exit(inside(box, walls));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void run_caged(void **state, bk_wire_for_t what, inside_t inside)
{
    const box_t *box = *state;
    if (box == NULL)
        SKIP_TEST();
    run_in(box, box->roots, what, inside);
}

/* A figure of /proc/self/status, which was opened before the cage was built. */
static uint64_t figure(const char *which)
{
    static char text[4096];
    static ssize_t len;
    if (len == 0)
        len = read(status_file, text, sizeof text - 1);
    const char *at = len > 0 ? strstr(text, which) : NULL;
    return at != NULL ? strtoull(at + strlen(which), NULL, 16) : ~0ull;
}

#define CAP(name) (1ull << CAP_##name)
static uint64_t expected;

static int has_expected(const box_t *box, int walls)
{
    (void)box;
    MUST((walls & BK_WIRE_CAGE_CAPS) != 0);
    MUST(figure("CapPrm:") == expected && figure("CapEff:") == expected);
    MUST(figure("CapInh:") == 0 && figure("CapAmb:") == 0);
    MUST((figure("CapBnd:") & ~(expected | CAP(SYS_ADMIN))) == 0);
    MUST(figure("NoNewPrivs:") == 1);
    return 0;
}

/* The first step alone: afterwards nobody may ask for all of this. */
static void test_nothing_of_it_can_be_dumped_or_traced(void **state)
{
    box_t *box = *state;
    int status;
    if (box == NULL)
        SKIP_TEST();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit core;
        bk_cage_enter(box->roots, BK_WIRE_FOR_FILES);
        getrlimit(RLIMIT_CORE, &core);
        _exit(core.rlim_max == 0 && prctl(PR_GET_DUMPABLE) == 0 &&
                      prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 && umask(0) == 077
                  ? 0
                  : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* Each kind of conversation keeps what its requests need with these roots, and nothing for later. */
static void test_few_capabilities_are_left(void **state)
{
    const uint64_t see = CAP(DAC_READ_SEARCH) | CAP(FOWNER);
    const uint64_t change = see | CAP(CHOWN) | CAP(DAC_OVERRIDE) | CAP(FSETID);
    const struct {
        bk_wire_for_t what;
        uint32_t flags;
        uint64_t left;
    } cases[] = {
        {BK_WIRE_FOR_FILES, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE, change},
        {BK_WIRE_FOR_FILES, BK_WIRE_MAY_PLACE | BK_WIRE_MAY_SETUID, change | CAP(SETFCAP)},
        {BK_WIRE_FOR_FILES, BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH, see},
        {BK_WIRE_FOR_WATCHING, BK_WIRE_ROOT_FLAGS & ~BK_WIRE_DATABASE, see},
        {BK_WIRE_FOR_STATUS, BK_WIRE_ROOT_FLAGS & ~BK_WIRE_DATABASE, 0},
    };
    if (*state == NULL)
        SKIP_TEST();
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        agent_root_t list[] = {{((box_t *)*state)->root, cases[i].flags}};
        bk_roots_t *roots = agent_roots(list, 1);
        expected = cases[i].left;
        run_in(*state, roots, cases[i].what, has_expected);
        bk_roots_free(roots);
    }
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
    run_caged(state, BK_WIRE_FOR_FILES, reach_out);
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
    run_caged(state, BK_WIRE_FOR_FILES, call_others);
}

/*
 * Landlock does not stand in the way of owners, modes, times and attributes.  The file is root's, as this process is, which
 * therefore may do all this without any capability: it is the system call that is missing.
 */
static int change_nothing(const box_t *box, int walls)
{
    char path[700], other[700];
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_NOW}};
    if ((walls & BK_WIRE_CAGE_SECCOMP) == 0)
        return 0;
    join(path, box->root, "own");
    join(other, box->root, "other");
    MUST(syscall(SYS_fchmodat, AT_FDCWD, path, 0600) == -1 && errno == EPERM);
    MUST(fchownat(AT_FDCWD, path, 0, 0, 0) == -1 && errno == EPERM);
    MUST(utimensat(AT_FDCWD, path, times, 0) == -1 && errno == EPERM);
    MUST(setxattr(path, "user.x", "x", 1, 0) == -1 && errno == EPERM);
    MUST(removexattr(path, "user.x") == -1 && errno == EPERM);
    MUST(unlinkat(AT_FDCWD, path, 0) == -1 && errno == EPERM);
    MUST(renameat2(AT_FDCWD, path, AT_FDCWD, other, 0) == -1 && errno == EPERM);
    MUST(linkat(AT_FDCWD, path, AT_FDCWD, other, 0) == -1 && errno == EPERM);
    MUST(mkdirat(AT_FDCWD, other, 0700) == -1 && errno == EPERM);
    MUST(symlinkat("x", AT_FDCWD, other) == -1 && errno == EPERM);
    MUST(mknodat(AT_FDCWD, other, S_IFIFO | 0600, 0) == -1 && errno == EPERM);
    return 0;
}

static void test_where_nothing_is_placed_nothing_can_be_changed(void **state)
{
    const box_t *box = *state;
    if (box == NULL)
        SKIP_TEST();
    agent_root_t list[] = {{box->root, BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH}};
    bk_roots_t *roots = agent_roots(list, 1);
    run_in(box, roots, BK_WIRE_FOR_FILES, change_nothing);
    run_in(box, roots, BK_WIRE_FOR_STATUS, change_nothing);
    bk_roots_free(roots);
}

static int open_nothing(const box_t *box, int walls)
{
    char path[700];
    join(path, box->root, "own");
    if ((walls & (BK_WIRE_CAGE_SECCOMP | BK_WIRE_CAGE_LANDLOCK)) != 0)
        MUST(open(path, O_RDONLY) == -1);
    return 0;
}

static void test_the_status_opens_nothing_and_a_watcher_no_file(void **state)
{
    run_caged(state, BK_WIRE_FOR_STATUS, open_nothing);
    run_caged(state, BK_WIRE_FOR_WATCHING, open_nothing);
}

static int watch(const box_t *box, int walls)
{
    int fd = (int)syscall(SYS_inotify_init1, 0);
    MUST(fd >= 0);
    if ((walls & BK_WIRE_CAGE_SECCOMP) == 0)
        return 0;
    MUST(change_nothing(box, walls) == 0);
    MUST(syscall(SYS_fanotify_init, 0, 0) == -1 && errno == EPERM);
    MUST(syscall(SYS_fanotify_mark, fd, 0, 0ull, -1, NULL) == -1 && errno == EPERM);
    MUST(syscall(SYS_open_by_handle_at, 0, NULL, 0) == -1 && errno == EPERM);
    return 0;
}

static void test_watchers_watch_and_others_do_not(void **state)
{
    run_caged(state, BK_WIRE_FOR_WATCHING, watch);
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
    run_caged(state, BK_WIRE_FOR_FILES, remember);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_few_capabilities_are_left),
        T(test_nothing_of_it_can_be_dumped_or_traced),
        T(test_where_nothing_is_placed_nothing_can_be_changed),
        T(test_the_status_opens_nothing_and_a_watcher_no_file),
        T(test_paths_outside_the_roots_are_out_of_reach),
        T(test_other_system_calls_fail),
        T(test_watchers_watch_and_others_do_not),
        T(test_others_do_not_watch),
    };
    return cmocka_run_group_tests_name("helper cage", tests, NULL, NULL);
}
