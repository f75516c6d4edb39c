/*
 * t/unit/helper/attack_test.c: a worker that was taken over (uid nobody, with a conversation in its hands) and an application's
 * user who owns the root's directory, against the helper.  Nothing outside of the root may be read, made, changed or removed.
 *
 * The races run for 3 seconds together; NGX_BACKUP_ATTACK_SECONDS=60 makes them longer.
 */
#include "agent.h"

#include <dirent.h>
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>

#define APP    4321
#define SECRET "the secret"

typedef struct {
    char *dir;
    char root[600], outside[600], secret[600], data[600], database[600];
    agent_t agent;
} box_t;

static int setup(void **state)
{
    char path[700];
    if (geteuid() != 0)
        return 0;
    box_t *box = calloc(1, sizeof *box);
    box->dir = test_dir();
    join(box->root, box->dir, "uploads");
    join(box->outside, box->dir, "outside");
    join(box->secret, box->outside, "secret");
    join(box->data, box->dir, "data");
    join(box->database, box->data, "app.db");
    assert_int_equal(mkdir(box->root, 0755), 0);
    assert_int_equal(mkdir(box->outside, 0700), 0);
    assert_int_equal(mkdir(box->data, 0775), 0);
    assert_int_equal(chown(box->root, APP, APP), 0);
    assert_int_equal(chown(box->data, APP, APP), 0);
    write_file(box->secret, SECRET, 0, 0, 0600);
    write_file(box->database, "database", APP, APP, 0640);
    join(path, box->root, "d");
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(chown(path, APP, APP), 0);
    join(path, box->root, "d/secret");
    write_file(path, "harmless", APP, APP, 0600);
    join(path, box->root, "f");
    write_file(path, "harmless", APP, APP, 0600);
    const uint32_t both = BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE;
    agent_root_t list[] = {{box->root, both}, {box->database, both | BK_WIRE_DATABASE}};
    box->agent = agent_start(list, 2);
    *state = box;
    return 0;
}

static int teardown(void **state)
{
    box_t *box = *state;
    if (box == NULL)
        return 0;
    agent_stop(&box->agent);
    test_dir_remove(box->dir);
    free(box);
    *state = NULL;
    return 0;
}

#define BOX                                                                                        \
    box_t *box = *state;                                                                           \
    if (box == NULL)                                                                               \
    SKIP_TEST()

/* --- processes without rights --- */

static void drop_to(uid_t uid)
{
    if (setgroups(0, NULL) != 0 || setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0)
        _exit(99);
}

/* What the hostile worker does: returns 0, or the line where something was not as it must be. */
typedef int (*attack_t)(box_t *box);
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s (errno %d)\n", __FILE__, __LINE__,           \
                    #condition, errno);                                                            \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static void run_as(box_t *box, uid_t uid, attack_t attack)
{
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(300);
        if (uid != 0)
            drop_to(uid);
        _exit(attack(box));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* In the background until stopped. */
static pid_t start_as(box_t *box, uid_t uid, attack_t attack)
{
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (uid != 0)
            drop_to(uid);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(0);
        _exit(attack(box));
    }
    return pid;
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static bool time_is_over(const struct timespec *start, double share)
{
    const char *text = getenv("NGX_BACKUP_ATTACK_SECONDS");
    double seconds = (text != NULL ? strtod(text, NULL) : 3) * share;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start->tv_sec) + (double)(now.tv_nsec - start->tv_nsec) / 1e9 >
           seconds;
}

/* --- saying it raw --- */

static bk_wire_message_t in;

/* Ask, and wait for the reply. */
static bk_wire_got_t ask(int talk, bk_wire_verb_t verb, const void *body, size_t len)
{
    if (bk_wire_send(talk, verb, 5, body, len, NULL, 0) != 0)
        return BK_WIRE_END;
    return agent_next(talk, &in);
}

static int ask_root(int talk, const char *path, uint32_t may)
{
    char body[sizeof(bk_wire_ask_root_t) + BK_WIRE_PATH];
    bk_wire_ask_root_t head = {.may = may, .len = (uint32_t)strlen(path)};
    bk_wire_root_reply_t reply;
    memcpy(body, &head, sizeof head);
    memcpy(body + sizeof head, path, head.len);
    if (ask(talk, BK_WIRE_ROOT, body, sizeof head + head.len) != BK_WIRE_OK ||
        in.head.verb != BK_WIRE_ROOT)
        return -1;
    memcpy(&reply, in.body, sizeof reply);
    return reply.error == 0 ? (int)reply.root : -1;
}

#define BOTH (BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE)

/* One operation with names of any bytes.  The errno of its result; -1: the conversation ended.  A descriptor stays in in. */
static int raw(int talk, int root, const char *dir, size_t dir_len, bk_wire_op_t op,
               const char *name, size_t name_len, const char *name2, size_t name2_len)
{
    static char body[BK_WIRE_BODY];
    size_t len = 0;
    bk_wire_result_t result;
    bk_wire_at_t at = {.root = (uint32_t)root, .dir_len = (uint16_t)dir_len, .count = 1};
    op.name_len = (uint16_t)name_len;
    op.name2_len = (uint16_t)name2_len;
    memcpy(body, &at, sizeof at), len += sizeof at;
    memcpy(body + len, dir, dir_len), len += dir_len;
    memcpy(body + len, &op, sizeof op), len += sizeof op;
    memcpy(body + len, name, name_len), len += name_len;
    memcpy(body + len, name2, name2_len), len += name2_len;
    if (ask(talk, BK_WIRE_AT, body, len) != BK_WIRE_OK || in.head.verb != BK_WIRE_AT ||
        in.head.len < sizeof result)
        return -1;
    memcpy(&result, in.body, sizeof result);
    return result.error;
}

static int op_at(int talk, int root, const char *dir, bk_wire_call_t call, uint32_t flags,
                 const char *name, const char *name2)
{
    bk_wire_op_t op = {.call = (uint16_t)call, .flags = flags};
    if (call == BK_WIRE_META) {
        op.set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE;
        op.uid = op.gid = NOBODY;
        op.mode = 0666;
    }
    return raw(talk, root, dir, strlen(dir), op, name, strlen(name), name2, strlen(name2));
}

static bool takes_two(int call)
{
    return call == BK_WIRE_RENAME || call == BK_WIRE_LINK || call == BK_WIRE_LINK_FROM ||
           call == BK_WIRE_SYMLINK;
}

/* Outside is as it was: one file, its content, owner and mode, and no name more. */
static void assert_untouched(const box_t *box)
{
    struct stat st;
    char text[32] = "";
    unsigned count = 0;
    assert_int_equal(stat(box->secret, &st), 0);
    assert_int_equal(st.st_mode, S_IFREG | 0600);
    assert_int_equal(st.st_uid, 0);
    int fd = open(box->secret, O_RDONLY | O_CLOEXEC);
    assert_int_equal(read(fd, text, sizeof text - 1), strlen(SECRET));
    close(fd);
    assert_string_equal(text, SECRET);
    DIR *dir = opendir(box->outside);
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    assert_int_equal(count, 3);
    assert_int_equal(stat(box->outside, &st), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0700);
    assert_int_equal(st.st_uid, 0);
}

/* --- paths --- */

static int leave_by_paths(box_t *box)
{
    static const char *const ways[] = {"..",    "../outside",     "d/../../outside",
                                       "/",     "/etc",           ".",
                                       "d/..",  "d//secret",      "d/",
                                       "//etc", "d/./secret",     "../../../../etc",
                                       "...//", "d/../../uploads"};
    static const char *const names[] = {"..",       ".", "/", "/etc/passwd", "../outside/secret",
                                        "d/secret", "d/"};
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    MUST(root >= 0);
    for (int call = BK_WIRE_STAT; call <= BK_WIRE_SYNC; call++) {
        bool two = takes_two(call), sync = call == BK_WIRE_SYNC;
        for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++)
            MUST(op_at(talk, root, ways[i], (bk_wire_call_t)call, 0, sync ? "" : "f",
                       two ? "g" : "") == EPERM);
        for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
            /* LINK_FROM takes a path below the root. */
            if (call != BK_WIRE_LINK_FROM || i != 5)
                MUST(op_at(talk, root, "", (bk_wire_call_t)call, 0, names[i], two ? "g" : "") ==
                     EPERM);
            if (two && call != BK_WIRE_SYMLINK)
                MUST(op_at(talk, root, "", (bk_wire_call_t)call, 0, "f", names[i]) == EPERM);
        }
        bk_wire_op_t op = {.call = (uint16_t)call};
        MUST(raw(talk, root, "", 0, op, "f\0x", 3, "g", two ? 1 : 0) == EPERM);
        MUST(raw(talk, root, "d\0", 2, op, "f", sync ? 0 : 1, "g", two ? 1 : 0) == EPERM);
    }
    /* Roots are named exactly as they are configured. */
    char path[700];
    static const char *const roots[] = {"/", "/etc", "/proc/self/root", "relative", ""};
    for (unsigned i = 0; i < 4; i++)
        MUST(ask_root(talk, roots[i], BK_WIRE_MAY_READ) == -1);
    join(path, box->root, "");
    MUST(ask_root(talk, path, BK_WIRE_MAY_READ) == -1);
    join(path, box->root, "../outside");
    MUST(ask_root(talk, path, BK_WIRE_MAY_READ) == -1);
    MUST(ask_root(talk, box->outside, BK_WIRE_MAY_READ) == -1);
    MUST(ask_root(talk, box->root, BOTH | BK_WIRE_MAY_SETUID) == -1);
    MUST(ask_root(talk, box->root, BK_WIRE_DATABASE | BK_WIRE_MAY_READ) == -1);
    MUST(ask_root(talk, box->root, 1u << 20) == -1);
    MUST(op_at(talk, root, "", BK_WIRE_STAT, 0, "f", "") == 0);
    return 0;
}

static void test_no_path_leads_out(void **state)
{
    BOX;
    run_as(box, NOBODY, leave_by_paths);
    assert_untouched(box);
    /* And counted, for all conversations together. */
    bk_wire_hello_t hello;
    int talk = agent_talk(&box->agent);
    assert_int_equal(ask(talk, BK_WIRE_HELLO, NULL, 0), BK_WIRE_OK);
    memcpy(&hello, in.body, sizeof hello);
    assert_true(hello.refused > 200);
    close(talk);
}

/* --- links, /proc, devices, mounts --- */

static int follow_links(box_t *box)
{
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    MUST(root >= 0);
    static const char *const dirs[] = {"out", "abs",        "proc", "proc/etc",
                                       "up",  "out/secret", "cwd",  "self"};
    for (unsigned i = 0; i < sizeof dirs / sizeof dirs[0]; i++)
        for (int call = BK_WIRE_STAT; call <= BK_WIRE_SYNC; call++)
            MUST(op_at(talk, root, dirs[i], (bk_wire_call_t)call, 0,
                       call == BK_WIRE_SYNC ? "" : "secret", takes_two(call) ? "g" : "") == ELOOP);
    MUST(op_at(talk, root, "", BK_WIRE_OPEN, 0, "file", "") == ELOOP);
    MUST(op_at(talk, root, "", BK_WIRE_OPEN, O_DIRECTORY, "out", "") != 0);
    MUST(op_at(talk, root, "", BK_WIRE_CREATE, 0, "file", "") != 0);
    MUST(op_at(talk, root, "", BK_WIRE_CREATE, 0, "dangling", "") != 0);
    MUST(op_at(talk, root, "", BK_WIRE_LINK_FROM, 0, "out/secret", "g") == ELOOP);
    /* META and LINK of a link are its own. */
    MUST(op_at(talk, root, "", BK_WIRE_META, 0, "file", "") == 0);
    MUST(op_at(talk, root, "", BK_WIRE_LINK, 0, "file", "g") == 0);
    MUST(op_at(talk, root, "", BK_WIRE_OPEN, 0, "g", "") == ELOOP);
    MUST(op_at(talk, root, "", BK_WIRE_OPEN, O_PATH, "g", "") == 0);
    MUST(in.fd_count == 1);
    MUST(openat(in.fds[0], "", O_RDONLY) == -1);
    bk_wire_drop(&in);
    return 0;
}

static void test_links_are_never_followed(void **state)
{
    BOX;
    static const char *const links[][2] = {
        {"out", "../outside"},         {"file", "../outside/secret"},
        {"proc", "/proc/self/root"},   {"up", ".."},
        {"cwd", "/proc/self/cwd"},     {"self", "."},
        {"dangling", "../outside/new"}};
    char path[700];
    for (unsigned i = 0; i < sizeof links / sizeof links[0]; i++) {
        join(path, box->root, links[i][0]);
        assert_int_equal(symlink(links[i][1], path), 0);
    }
    join(path, box->root, "abs");
    assert_int_equal(symlink(box->outside, path), 0);
    run_as(box, NOBODY, follow_links);
    assert_untouched(box);
}

static int use_devices(box_t *box)
{
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    MUST(root >= 0);
    static const char *const names[] = {"null", "disk", "socket"};
    for (unsigned i = 0; i < 3; i++) {
        MUST(op_at(talk, root, "", BK_WIRE_OPEN, 0, names[i], "") == EPERM);
        MUST(op_at(talk, root, "", BK_WIRE_OPEN, O_PATH, names[i], "") == EPERM);
        MUST(op_at(talk, root, "", BK_WIRE_META, 0, names[i], "") == EPERM);
        MUST(op_at(talk, root, "", BK_WIRE_LINK, 0, names[i], "g") == EPERM);
        MUST(op_at(talk, root, "", BK_WIRE_ATTRS, 0, names[i], "") == EPERM);
        MUST(op_at(talk, root, "", BK_WIRE_STAT, 0, names[i], "") == 0);
    }
    /* A FIFO that nobody writes to does not hold the helper up. */
    MUST(op_at(talk, root, "", BK_WIRE_OPEN, 0, "fifo", "") == 0);
    bk_wire_drop(&in);
    return 0;
}

static void test_devices_and_sockets_are_not_touched(void **state)
{
    BOX;
    char path[700];
    join(path, box->root, "null");
    if (mknod(path, S_IFCHR | 0666, makedev(1, 3)) != 0)
        SKIP_TEST();
    join(path, box->root, "disk");
    assert_int_equal(mknod(path, S_IFBLK | 0666, makedev(7, 200)), 0);
    join(path, box->root, "socket");
    assert_int_equal(mknod(path, S_IFSOCK | 0666, 0), 0);
    join(path, box->root, "fifo");
    assert_int_equal(mkfifo(path, 0600), 0);
    run_as(box, NOBODY, use_devices);
    struct stat st;
    join(path, box->root, "null");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_uid, 0);
}

static int cross_mounts(box_t *box)
{
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    MUST(root >= 0);
    for (int call = BK_WIRE_STAT; call <= BK_WIRE_SYNC; call++)
        MUST(op_at(talk, root, "mnt", (bk_wire_call_t)call, 0, call == BK_WIRE_SYNC ? "" : "x",
                   takes_two(call) ? "g" : "") == EXDEV);
    static const char *const names[] = {"mnt", "bound"};
    for (unsigned i = 0; i < 2; i++) {
        MUST(op_at(talk, root, "", BK_WIRE_STAT, 0, names[i], "") == EXDEV);
        MUST(op_at(talk, root, "", BK_WIRE_OPEN, 0, names[i], "") == EXDEV);
        MUST(op_at(talk, root, "", BK_WIRE_OPEN, O_PATH, names[i], "") == EXDEV);
        MUST(op_at(talk, root, "", BK_WIRE_META, 0, names[i], "") == EXDEV);
        MUST(op_at(talk, root, "", BK_WIRE_ATTRS, 0, names[i], "") == EXDEV);
        MUST(op_at(talk, root, "", BK_WIRE_LINK, 0, names[i], "g") == EXDEV);
        MUST(op_at(talk, root, "", BK_WIRE_RENAME, 0, names[i], "g") == EBUSY);
        MUST(op_at(talk, root, "", BK_WIRE_UNLINK, 0, names[i], "") != 0);
    }
    MUST(op_at(talk, root, "", BK_WIRE_LINK_FROM, 0, "mnt/x", "g") == EXDEV);
    /* A root may itself be the mount: a disk for uploads. */
    char path[700];
    join(path, box->root, "mnt");
    int mounted = ask_root(talk, path, BOTH);
    MUST(mounted >= 0);
    MUST(op_at(talk, mounted, "", BK_WIRE_STAT, 0, "", "") == 0);
    MUST(op_at(talk, mounted, "", BK_WIRE_CREATE, 0, "x", "") == 0);
    MUST(op_at(talk, mounted, "", BK_WIRE_OPEN, 0, "x", "") == 0);
    bk_wire_drop(&in);
    return 0;
}

/* In a mount namespace of its own, which ends with this process. */
static int with_mounts(box_t *box)
{
    char path[700];
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return 77;
    join(path, box->root, "mnt");
    MUST(mkdir(path, 0755) == 0);
    if (mount("tmpfs", path, "tmpfs", 0, NULL) != 0)
        return 77;
    join(path, box->root, "bound");
    write_file(path, "", 0, 0, 0600);
    MUST(mount(box->secret, path, NULL, MS_BIND, NULL) == 0);
    char mounted[700];
    join(mounted, box->root, "mnt");
    agent_root_t list[] = {{box->root, BOTH}, {mounted, BOTH}};
    box->agent = agent_start(list, 2);
    pid_t pid = fork();
    if (pid == 0) {
        drop_to(NOBODY);
        _exit(cross_mounts(box));
    }
    int status = 1;
    waitpid(pid, &status, 0);
    agent_stop(&box->agent);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static void test_mounts_below_a_root_are_not_entered(void **state)
{
    BOX;
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(with_mounts(box));
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        SKIP_TEST();
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_untouched(box);
}

/* What is passed on gives no more than itself: the directory above is as closed as before. */
static int climb_from_descriptors(box_t *box)
{
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    MUST(root >= 0);
    MUST(op_at(talk, root, "", BK_WIRE_OPEN, O_DIRECTORY, "", "") == 0 && in.fd_count == 1);
    MUST(openat(in.fds[0], "../outside/secret", O_RDONLY) == -1 && errno == EACCES);
    MUST(openat(in.fds[0], "d/secret", O_RDONLY) == -1 && errno == EACCES);
    MUST(openat(in.fds[0], "new", O_RDWR | O_CREAT, 0600) == -1 && errno == EACCES);
    bk_wire_drop(&in);
    MUST(op_at(talk, root, "d", BK_WIRE_OPEN, 0, "secret", "") == 0 && in.fd_count == 1);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", in.fds[0]);
    MUST(open(path, O_RDWR) == -1 && errno == EACCES);
    MUST(fchmod(in.fds[0], 0666) == -1);
    MUST(write(in.fds[0], "x", 1) == -1);
    bk_wire_drop(&in);
    return 0;
}

static void test_descriptors_give_no_more_than_themselves(void **state)
{
    BOX;
    run_as(box, NOBODY, climb_from_descriptors);
    assert_untouched(box);
}

/* --- races --- */

/* The application's user exchanges a directory and a file for links, as fast as it can. */
static int swap_links(box_t *box)
{
    MUST(chdir(box->root) == 0);
    MUST(symlink("../outside", "s") == 0);
    MUST(symlink("../outside/secret", "t") == 0);
    for (;;) {
        renameat2(AT_FDCWD, "d", AT_FDCWD, "s", RENAME_EXCHANGE);
        renameat2(AT_FDCWD, "f", AT_FDCWD, "t", RENAME_EXCHANGE);
    }
    return 0;
}

/* No descriptor of what is outside, whatever the moment was. */
static bool shows_secret(void)
{
    for (unsigned i = 0; i < in.fd_count; i++) {
        char text[32] = "";
        if (pread(in.fds[i], text, sizeof text - 1, 0) > 0 && strcmp(text, SECRET) == 0)
            return true;
    }
    return false;
}

static int race_links(box_t *box)
{
    static const struct {
        bk_wire_call_t call;
        const char *dir, *name, *name2;
        uint32_t flags;
    } tries[] = {
        {BK_WIRE_OPEN, "d", "secret", "", 0},
        {BK_WIRE_OPEN, "", "f", "", 0},
        {BK_WIRE_META, "d", "secret", "", 0},
        {BK_WIRE_META, "", "f", "", 0},
        {BK_WIRE_CREATE, "d", "made", "", 0},
        {BK_WIRE_UNLINK, "d", "made", "", 0},
        {BK_WIRE_MKDIR, "d", "dir", "", 0},
        {BK_WIRE_UNLINK, "d", "dir", "", AT_REMOVEDIR},
        {BK_WIRE_LINK, "d", "secret", "two", 0},
        {BK_WIRE_UNLINK, "d", "two", "", 0},
        {BK_WIRE_SYMLINK, "d", "sym", "x", 0},
        {BK_WIRE_UNLINK, "d", "sym", "", 0},
        {BK_WIRE_LINK_FROM, "", "d/secret", "e", 0},
        {BK_WIRE_OPEN, "", "e", "", 0},
        {BK_WIRE_UNLINK, "", "e", "", 0},
        {BK_WIRE_OPEN, "d", "", "", O_DIRECTORY},
        {BK_WIRE_ATTRS, "d", "secret", "", 0},
        {BK_WIRE_STAT, "d", "secret", "", 0},
    };
    unsigned long done = 0, well = 0, loops = 0;
    struct timespec start;
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    MUST(root >= 0);
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (!time_is_over(&start, 0.5)) {
        for (unsigned i = 0; i < sizeof tries / sizeof tries[0]; i++) {
            int errnum = op_at(talk, root, tries[i].dir, tries[i].call, tries[i].flags,
                               tries[i].name, tries[i].name2);
            MUST(errnum >= 0);
            MUST(!shows_secret());
            if (errnum == 0 && tries[i].call == BK_WIRE_STAT) {
                bk_wire_result_t result;
                memcpy(&result, in.body, sizeof result);
                MUST(result.size == strlen("harmless"));
            }
            bk_wire_drop(&in);
            done++;
            well += errnum == 0;
            loops += errnum == ELOOP;
        }
    }
    /* Else it was no race. */
    MUST(well > 0 && loops > 0);
    printf("# links: %lu operations, %lu done, %lu met a link\n", done, well, loops);
    fflush(stdout);
    return 0;
}

static void test_links_that_are_swapped_in(void **state)
{
    BOX;
    pid_t pid = start_as(box, APP, swap_links);
    run_as(box, NOBODY, race_links);
    stop(pid);
    assert_untouched(box);
}

/* Gives names in the roots to a file from elsewhere and takes them away: as root, for systems that let anybody do that. */
static int swap_names(box_t *box)
{
    char trap[700];
    join(trap, box->root, "trap");
    unlink(box->database);
    /* The secret has at most one further name at a time, and none right behind that. */
    for (unsigned round = 0;; round++) {
        link(box->secret, trap);
        unlink(trap);
        link(box->secret, box->database);
        unlink(box->database);
        if (round % 16 != 0)
            continue;
        write_file(trap, "own", APP, APP, 0600);
        write_file(box->database, "own", APP, APP, 0600);
        unlink(trap);
        unlink(box->database);
    }
    return 0;
}

static int race_names(box_t *box)
{
    unsigned long done = 0, changed = 0, refused = 0;
    struct timespec start;
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH),
        db = ask_root(talk, box->database, BOTH | BK_WIRE_DATABASE);
    MUST(root >= 0 && db >= 0);
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (!time_is_over(&start, 0.5)) {
        int errnum = op_at(talk, root, "", BK_WIRE_META, 0, "trap", "");
        MUST(errnum >= 0);
        changed += errnum == 0;
        refused += errnum == EMLINK;
        errnum = op_at(talk, db, "", BK_WIRE_OPEN, O_RDWR, "app.db", "");
        MUST(errnum >= 0);
        MUST(!shows_secret());
        bk_wire_drop(&in);
        changed += errnum == 0;
        refused += errnum == EMLINK;
        done += 2;
    }
    MUST(refused > 0);
    printf("# names: %lu operations, %lu done, %lu met a further name\n", done, changed, refused);
    fflush(stdout);
    return 0;
}

static void test_names_of_files_from_elsewhere(void **state)
{
    BOX;
    pid_t pid = start_as(box, 0, swap_names);
    run_as(box, NOBODY, race_names);
    stop(pid);
    assert_untouched(box);
}

/* --- exhaustion --- */

static unsigned fds_of_conversations(const box_t *box, unsigned *talks)
{
    char path[100];
    unsigned most = 0;
    long pid;
    *talks = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)box->agent.pid,
             (int)box->agent.pid);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fscanf(file, "%ld", &pid) == 1) {
        unsigned count = 0;
        snprintf(path, sizeof path, "/proc/%ld/fd", pid);
        DIR *dir = opendir(path);
        while (dir != NULL && readdir(dir) != NULL)
            count++;
        if (dir != NULL)
            closedir(dir);
        most = count > most ? count : most;
        (*talks)++;
    }
    fclose(file);
    return most;
}

/* Send descriptors that nobody asked for. */
static int flood(box_t *box)
{
    int fds[BK_WIRE_OPS];
    for (unsigned i = 0; i < BK_WIRE_OPS; i++)
        fds[i] = 0;
    for (unsigned round = 0; round < 50; round++) {
        int talk = agent_talk(&box->agent);
        bk_wire_send(talk, BK_WIRE_HELLO, 1, NULL, 0, fds, BK_WIRE_OPS);
        bk_wire_got_t got = agent_next(talk, &in);
        MUST(got == BK_WIRE_END);
        close(talk);
    }
    return 0;
}

/* Ask for many descriptors and never take them. */
static int never_read(box_t *box)
{
    static char body[BK_WIRE_BODY];
    for (unsigned round = 0; round < 20; round++) {
        int talk = agent_talk(&box->agent);
        int root = ask_root(talk, box->root, BOTH);
        MUST(root >= 0);
        bk_wire_at_t at = {.root = (uint32_t)root, .count = BK_WIRE_OPS};
        bk_wire_op_t op = {.call = BK_WIRE_OPEN, .name_len = 1};
        size_t len = sizeof at;
        memcpy(body, &at, sizeof at);
        for (unsigned i = 0; i < BK_WIRE_OPS; i++) {
            memcpy(body + len, &op, sizeof op), len += sizeof op;
            body[len++] = 'f';
        }
        unsigned sent = 0;
        while (sent < 1000 && bk_wire_send(talk, BK_WIRE_AT, sent, body, len, NULL, 0) == 0) {
            sent++;
            usleep(200);
        }
        MUST(sent < 1000);
        /* At most the one reply is there. */
        unsigned replies = 0;
        while (replies < 100 && agent_next(talk, &in) == BK_WIRE_OK) {
            bk_wire_drop(&in);
            replies++;
        }
        MUST(replies <= 1);
        close(talk);
    }
    return 0;
}

/* 80 conversations, each of which left a full reply unread; then one more is served as if nothing were. */
static int hold_many(box_t *box)
{
    static char body[BK_WIRE_BODY];
    int talks[80];
    for (unsigned t = 0; t < 80; t++) {
        talks[t] = agent_talk(&box->agent);
        int root = ask_root(talks[t], box->root, BOTH);
        MUST(root >= 0);
        bk_wire_at_t at = {.root = (uint32_t)root, .count = BK_WIRE_OPS};
        bk_wire_op_t op = {.call = BK_WIRE_OPEN, .name_len = 1};
        size_t len = sizeof at;
        memcpy(body, &at, sizeof at);
        for (unsigned i = 0; i < BK_WIRE_OPS; i++) {
            memcpy(body + len, &op, sizeof op), len += sizeof op;
            body[len++] = 'f';
        }
        MUST(bk_wire_send(talks[t], BK_WIRE_AT, 1, body, len, NULL, 0) == 0);
    }
    int last = agent_talk(&box->agent);
    int root = ask_root(last, box->root, BOTH);
    MUST(root >= 0);
    MUST(op_at(last, root, "", BK_WIRE_OPEN, 0, "f", "") == 0 && in.fd_count == 1);
    bk_wire_drop(&in);
    return 0;
}

static void test_descriptors_are_not_used_up(void **state)
{
    BOX;
    unsigned talks;
    run_as(box, NOBODY, flood);
    run_as(box, NOBODY, never_read);
    run_as(box, NOBODY, hold_many);
    int talk = agent_talk(&box->agent);
    int root = ask_root(talk, box->root, BOTH);
    assert_true(root >= 0);
    for (unsigned i = 0; i < 500; i++) {
        assert_int_equal(op_at(talk, root, "d", BK_WIRE_CREATE, 0, "n", ""), 0);
        bk_wire_drop(&in);
        assert_int_equal(op_at(talk, root, "d", BK_WIRE_UNLINK, 0, "n", ""), 0);
    }
    assert_true(fds_of_conversations(box, &talks) < 100);
    /* Those that are over have gone. */
    for (unsigned tries = 0; tries < 100 && talks > 1; tries++) {
        usleep(50000);
        fds_of_conversations(box, &talks);
    }
    assert_int_equal(talks, 1);
    close(talk);
}

/* --- grammar --- */

static int talk_nonsense(box_t *box)
{
    static unsigned char body[4096];
    uint64_t seed = 20240917;
    int good = agent_talk(&box->agent);
    int root = ask_root(good, box->root, BOTH);
    MUST(root >= 0);
    /* What only others may say. */
    static const int verbs[] = {
        BK_WIRE_CONF, BK_WIRE_QUIT, BK_WIRE_READY, BK_WIRE_FAILED, BK_WIRE_TALK, BK_WIRE_EVENT, 0,
        11,           999,          BK_WIRE_WATCH};
    for (unsigned i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        int talk = agent_talk(&box->agent);
        MUST(ask(talk, (bk_wire_verb_t)verbs[i], NULL, 0) == BK_WIRE_END);
        close(talk);
    }
    /* What only a conversation of another kind may say. */
    for (bk_wire_for_t what = BK_WIRE_FOR_STATUS; what <= BK_WIRE_FOR_WATCHING; what += 2) {
        int talk = agent_talk_for(&box->agent, what);
        MUST(ask_root(talk, box->root, BK_WIRE_MAY_READ) == -1);
        close(talk);
        talk = agent_talk_for(&box->agent, what);
        MUST(op_at(talk, 0, "", BK_WIRE_STAT, 0, "f", "") == -1);
        close(talk);
    }
    /* AT before any ROOT, and of a root that was not given. */
    int early = agent_talk(&box->agent);
    MUST(op_at(early, 0, "", BK_WIRE_STAT, 0, "f", "") == -1);
    close(early);
    /* Bodies with bytes changed at random: answered, or the end; never the end of another conversation. */
    for (unsigned round = 0; round < 400; round++) {
        bk_wire_at_t at = {.count = 2};
        bk_wire_op_t op = {.call = (uint16_t)(1 + round % 13), .name_len = 1};
        size_t len = 0;
        memcpy(body, &at, sizeof at), len += sizeof at;
        for (unsigned i = 0; i < 2; i++) {
            memcpy(body + len, &op, sizeof op), len += sizeof op;
            body[len++] = 'q';
        }
        for (unsigned i = 0; i < 1 + round % 4; i++)
            body[test_random(&seed) % len] = (unsigned char)test_random(&seed);
        len -= round % 5 == 0 ? test_random(&seed) % len : 0;
        int talk = agent_talk(&box->agent);
        int number = ask_root(talk, box->root, BK_WIRE_MAY_READ);
        MUST(number == 0);
        ask(talk, BK_WIRE_AT, body, len);
        bk_wire_drop(&in);
        close(talk);
    }
    MUST(op_at(good, root, "", BK_WIRE_STAT, 0, "f", "") == 0);
    return 0;
}

static void test_nonsense_ends_its_own_conversation_alone(void **state)
{
    BOX;
    run_as(box, NOBODY, talk_nonsense);
    assert_untouched(box);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_no_path_leads_out),
        T(test_links_are_never_followed),
        T(test_devices_and_sockets_are_not_touched),
        T(test_mounts_below_a_root_are_not_entered),
        T(test_descriptors_give_no_more_than_themselves),
        T(test_links_that_are_swapped_in),
        T(test_names_of_files_from_elsewhere),
        T(test_descriptors_are_not_used_up),
        T(test_nonsense_ends_its_own_conversation_alone),
    };
    return cmocka_run_group_tests_name("helper attack", tests, NULL, NULL);
}
