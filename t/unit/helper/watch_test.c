/*
 * t/unit/helper/watch_test.c: the watcher tells of every change, where it is, and of what it cannot see.  Each test runs by
 * inotify, and by fanotify where this system and the directory for temporary files have it.
 */
#include "watching.h"

#include <dirent.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/xattr.h>

typedef struct {
    char *dir;
    char a[300], b[300], db[300]; /* roots */
    agent_root_t roots[3];
    watching_t w;
    bool started;
    bool fanotify, skip;
} box_t;

static uint32_t by_inotify = BK_WIRE_WATCH_INOTIFY, by_fanotify = BK_WIRE_WATCH_FANOTIFY;

static int set_up(void **state)
{
    const uint32_t *kind = *state;
    box_t *box = calloc(1, sizeof *box);
    box->dir = test_dir();
    snprintf(box->a, sizeof box->a, "%s/a", box->dir);
    snprintf(box->b, sizeof box->b, "%s/b", box->dir);
    snprintf(box->db, sizeof box->db, "%s/data/app.db", box->dir);
    char data[300];
    snprintf(data, sizeof data, "%s/data", box->dir);
    assert_int_equal(mkdir(box->a, 0755) + mkdir(box->b, 0755) + mkdir(data, 0755), 0);
    box->roots[0] = (agent_root_t){box->a, BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH};
    box->roots[1] = (agent_root_t){box->b, BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH};
    box->roots[2] =
        (agent_root_t){box->db, BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH | BK_WIRE_DATABASE};
    box->fanotify = kind == &by_fanotify;
    box->skip = box->fanotify && !watching_has_fanotify();
    bk_watch_use = *kind | BK_WIRE_WATCH_INOTIFY;
    *state = box;
    return 0;
}

static int tear_down(void **state)
{
    box_t *box = *state;
    if (box->started)
        watching_stop(&box->w);
    bk_watch_most = UINT32_MAX;
    bk_watch_use = BK_WIRE_WATCH_INOTIFY | BK_WIRE_WATCH_FANOTIFY;
    test_dir_remove(box->dir);
    free(box);
    return 0;
}

static void start(box_t *box, uint32_t count)
{
    watching_start(&box->w, box->roots, count);
    box->started = true;
    watching_ready(&box->w);
}

/* A path below a root; "b:x" is below the second. */
static const char *at(const box_t *box, const char *path)
{
    static char text[4][1000];
    static unsigned turn;
    char *out = text[turn++ % 4];
    bool second = strncmp(path, "b:", 2) == 0;
    snprintf(out, sizeof text[0], "%s/%s", second ? box->b : box->a, second ? path + 2 : path);
    return out;
}

static void make_dir(const box_t *box, const char *path)
{
    assert_int_equal(mkdir(at(box, path), 0755), 0);
}

static void put(const box_t *box, const char *path)
{
    write_file(at(box, path), path, 0, 0, 0644);
}

/* Exactly these are told since the last question: "a,b/" (with all below). */
static void told_of(box_t *box, unsigned root, const char *what)
{
    char list[1000];
    unsigned count = 0;
    watching_sync(&box->w);
    snprintf(list, sizeof list, "%s", what);
    bk_dirset_t *dirty = &box->w.roots[root].dirty;
    for (char *rest = list, *item; (item = strsep(&rest, ",")) != NULL; count++) {
        char below[1100];
        size_t len = strlen(item);
        bool tree = len > 0 && item[len - 1] == '/';
        item[len - tree] = '\0';
        snprintf(below, sizeof below, "%s%sno such name", item, item[0] != '\0' ? "/" : "");
        if (!bk_dirset_has(dirty, item))
            fail_msg("\"%s\" is not told", item);
        if (bk_dirset_has(dirty, below) != tree)
            fail_msg("\"%s\" is%s told with all below", item, tree ? " not" : "");
    }
    assert_int_equal(dirty->marked, count);
    bk_dirset_free(dirty);
}

static void every_change_of_a_name_tells_its_directory(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "d");
    make_dir(box, "d/e");
    put(box, "d/old");
    put(box, "d/e/old");
    start(box, 1);
    put(box, "d/new");
    told_of(box, 0, "d");
    int fd = open(at(box, "d/e/old"), O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "x", 1), 1);
    told_of(box, 0, "d/e"); /* before it is closed */
    close(fd);
    told_of(box, 0, "d/e");
    assert_int_equal(chmod(at(box, "d/old"), 0600), 0);
    told_of(box, 0, "d");
    assert_int_equal(chown(at(box, "d/e/old"), 1, 1), 0);
    told_of(box, 0, "d/e");
    assert_int_equal(truncate(at(box, "d/e/old"), 1), 0);
    told_of(box, 0, "d/e");
    if (setxattr(at(box, "d/old"), "user.x", "y", 1, 0) == 0)
        told_of(box, 0, "d");
    assert_int_equal(link(at(box, "d/old"), at(box, "d/e/link")), 0);
    told_of(box, 0, "d/e");
    assert_int_equal(symlink("x", at(box, "sym")), 0);
    told_of(box, 0, "");
    assert_int_equal(mkfifo(at(box, "d/e/fifo"), 0600), 0);
    told_of(box, 0, "d/e");
    assert_int_equal(rename(at(box, "d/new"), at(box, "d/e/moved")), 0);
    told_of(box, 0, "d,d/e");
    assert_int_equal(unlink(at(box, "d/e/moved")), 0);
    told_of(box, 0, "d/e");
    /* Nothing happens, nothing is told; a look is no change. */
    assert_int_equal(access(at(box, "d/old"), R_OK), 0);
    fd = open(at(box, "d/old"), O_RDONLY);
    close(fd);
    watching_sync(&box->w);
    assert_true(bk_dirset_empty(&box->w.roots[0].dirty));
}

static void what_a_mapping_wrote_is_told_when_it_ends(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "d");
    put(box, "d/file");
    start(box, 1);
    int fd = open(at(box, "d/file"), O_RDWR);
    char *map = mmap(NULL, 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    close(fd);
    map[0] = 'X';
    munmap(map, 4);
    told_of(box, 0, "d");
}

static void a_directory_tells_of_itself(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "d");
    make_dir(box, "d/e");
    start(box, 1);
    assert_int_equal(chmod(at(box, "d/e"), 0700), 0);
    told_of(box, 0, box->fanotify ? "d/e" : "d,d/e");
    assert_int_equal(rmdir(at(box, "d/e")), 0);
    told_of(box, 0, "d");
    assert_int_equal(chmod(box->a, 0700), 0);
    told_of(box, 0, "");
}

static void new_directories_are_watched_at_once(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    start(box, 1);
    make_dir(box, "new");
    make_dir(box, "new/deep");
    put(box, "new/deep/file");
    told_of(box, 0, ",new/");
    put(box, "new/deep/more");
    told_of(box, 0, "new/deep");
    make_dir(box, "new/deep/er");
    told_of(box, 0, "new/deep,new/deep/er/");
    put(box, "new/deep/er/x");
    told_of(box, 0, "new/deep/er");
}

static void many_new_directories_are_all_watched(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char path[100];
    start(box, 1);
    for (unsigned i = 0; i < 400; i++) {
        snprintf(path, sizeof path, "d%u", i);
        make_dir(box, path);
        for (unsigned k = 0; k < 3; k++) {
            snprintf(path, sizeof path, "d%u/e%u", i, k);
            make_dir(box, path);
        }
    }
    watching_sync(&box->w);
    for (unsigned i = 0; i < 400; i++) {
        snprintf(path, sizeof path, "d%u/e2", i);
        assert_true(bk_dirset_has(&box->w.roots[0].dirty, path));
    }
    /* What was told before its watch was there is told once more after it: then only what changes. */
    bool exact = false;
    for (unsigned tries = 0; tries < 100 && !exact; tries++) {
        bk_sleep_ms(50);
        watching_sync(&box->w);
        bk_dirset_free(&box->w.roots[0].dirty);
        exact = true;
        for (unsigned i = 0; i < 400; i += 7) {
            snprintf(path, sizeof path, "d%u/e1/x", i);
            put(box, path);
        }
        watching_sync(&box->w);
        for (unsigned i = 0; i < 400; i++) {
            snprintf(path, sizeof path, "d%u/e1", i);
            bool told = bk_dirset_has(&box->w.roots[0].dirty, path);
            assert_true(told || i % 7 != 0);
            exact = exact && told == (i % 7 == 0);
        }
    }
    assert_true(exact);
}

static void a_directory_that_moves_tells_from_its_new_place(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "d");
    make_dir(box, "d/e");
    make_dir(box, "d/e/f");
    make_dir(box, "g");
    start(box, 1);
    assert_int_equal(rename(at(box, "d/e"), at(box, "g/h")), 0);
    told_of(box, 0, "d,g,g/h/");
    put(box, "g/h/f/x");
    told_of(box, 0, "g/h/f");
    assert_int_equal(rename(at(box, "g"), at(box, "d/e")), 0); /* the old name again */
    told_of(box, 0, ",d,d/e/");
    put(box, "d/e/h/f/y");
    told_of(box, 0, "d/e/h/f");
    put(box, "d/e/x");
    told_of(box, 0, "d/e");
    /* Two change places. */
    make_dir(box, "g");
    make_dir(box, "g/only here");
    told_of(box, 0, ",g/");
    assert_int_equal(renameat2(AT_FDCWD, at(box, "g"), AT_FDCWD, at(box, "d"), RENAME_EXCHANGE), 0);
    told_of(box, 0, ",d/,g/");
    put(box, "d/only here/x");
    put(box, "g/e/h/f/z");
    told_of(box, 0, "d/only here,g/e/h/f");
}

static void a_directory_moves_between_roots_out_and_in(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char out[400];
    make_dir(box, "d");
    make_dir(box, "d/e");
    make_dir(box, "b:x");
    start(box, 2);
    assert_int_equal(rename(at(box, "d"), at(box, "b:x/d")), 0);
    told_of(box, 0, "");
    told_of(box, 1, "x,x/d/");
    put(box, "b:x/d/e/file");
    told_of(box, 1, "x/d/e");
    watching_sync(&box->w);
    assert_true(bk_dirset_empty(&box->w.roots[0].dirty));
    /* out of all roots: nothing is told of what happens there */
    snprintf(out, sizeof out, "%s/outside", box->dir);
    assert_int_equal(rename(at(box, "b:x/d"), out), 0);
    told_of(box, 1, "x");
    snprintf(out, sizeof out, "%s/outside/e/other", box->dir);
    bk_sleep_ms(500);
    write_file(out, "x", 0, 0, 0644);
    watching_sync(&box->w);
    assert_true(bk_dirset_empty(&box->w.roots[1].dirty));
    snprintf(out, sizeof out, "%s/outside", box->dir);
    assert_int_equal(rename(out, at(box, "back")), 0);
    told_of(box, 0, ",back/");
    put(box, "back/e/file");
    told_of(box, 0, "back/e");
}

static void links_to_directories_are_not_followed(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "b:x");
    assert_int_equal(symlink(box->b, at(box, "link")), 0);
    start(box, 1);
    assert_int_equal(symlink(box->b, at(box, "link2")), 0);
    told_of(box, 0, "");
    put(box, "b:x/file");
    watching_sync(&box->w);
    assert_true(bk_dirset_empty(&box->w.roots[0].dirty));
}

static void without_more_watches_it_is_said_where(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "d");
    bk_watch_most = 3;
    start(box, 1);
    make_dir(box, "e");
    watching_sync(&box->w);
    assert_true(bk_dirset_empty(&box->w.roots[0].limits));
    make_dir(box, "d/f");
    make_dir(box, "d/f/g");
    for (unsigned i = 0; i < 50 && bk_dirset_empty(&box->w.roots[0].limits); i++) {
        bk_sleep_ms(20);
        watching_sync(&box->w);
    }
    assert_true(bk_dirset_has(&box->w.roots[0].limits, "d/f"));
    assert_int_equal(box->w.roots[0].why, ENOSPC);
    assert_true(bk_dirset_has(&box->w.roots[0].limits, "d/f/g"));
    assert_false(bk_dirset_has(&box->w.roots[0].limits, "d"));
    bk_dirset_free(&box->w.roots[0].dirty);
    put(box, "e/x"); /* the rest stays watched */
    told_of(box, 0, "e");
}

static void a_root_that_is_replaced_ends_the_watch(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char aside[400];
    bk_err_t err = {0};
    start(box, 2);
    snprintf(aside, sizeof aside, "%s/aside", box->dir);
    assert_int_equal(rename(box->b, aside), 0);
    assert_int_equal(mkdir(box->b, 0755), 0);
    /* Either the answer says so or the next look. */
    bk_rc_t rc = bk_watch_sync(box->w.watch, box->a, NULL, &err);
    assert_int_equal(rc, BK_UNAVAILABLE);
    watching_drain(&box->w);
    assert_true(box->w.over);
}

static void a_directory_above_a_root_that_is_replaced_ends_the_watch(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char inner[400], aside[400], outer[400];
    bk_err_t err = {0};
    snprintf(outer, sizeof outer, "%s/outer", box->dir);
    snprintf(inner, sizeof inner, "%s/outer/inner", box->dir);
    snprintf(aside, sizeof aside, "%s/aside", box->dir);
    assert_int_equal(mkdir(outer, 0755) + mkdir(inner, 0755), 0);
    box->roots[0].path = inner;
    start(box, 1);
    assert_int_equal(rename(outer, aside), 0);
    assert_int_equal(mkdir(outer, 0755) + mkdir(inner, 0755), 0);
    assert_int_equal(bk_watch_sync(box->w.watch, inner, NULL, &err), BK_UNAVAILABLE);
}

static void a_dead_helper_ends_the_watch(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    bk_err_t err = {0};
    start(box, 1);
    kill(box->w.agent.pid, SIGKILL); /* and with it the conversation's process */
    for (unsigned i = 0; i < 100 && !box->w.over; i++) {
        bk_wire_wait(bk_watch_fd(box->w.watch), POLLIN, 100);
        watching_drain(&box->w);
    }
    assert_true(box->w.over);
    assert_int_equal(bk_watch_sync(box->w.watch, box->a, NULL, &err), BK_UNAVAILABLE);
}

static void databases_are_told_at_once(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char wal[400], shm[400];
    write_file(box->db, "x", 0, 0, 0644);
    start(box, 3);
    snprintf(wal, sizeof wal, "%s-wal", box->db);
    snprintf(shm, sizeof shm, "%s-shm", box->db);
    unsigned before = box->w.roots[2].data;
    write_file(shm, "x", 0, 0, 0644);
    watching_sync(&box->w);
    assert_int_equal(box->w.roots[2].data, before);
    write_file(wal, "x", 0, 0, 0644);
    bk_wire_wait(bk_watch_fd(box->w.watch), POLLIN, 5000);
    watching_drain(&box->w);
    assert_true(box->w.roots[2].data > before);
    before = box->w.roots[2].data;
    watching_sync(&box->w);
    before = box->w.roots[2].data;
    write_file(box->db, "y", 0, 0, 0644);
    watching_sync(&box->w);
    assert_true(box->w.roots[2].data > before);
    assert_true(bk_dirset_empty(&box->w.roots[2].dirty));
}

/* Nobody reads for a while: it becomes coarser, but nothing is left out and nobody waits. */
static void a_reader_that_is_slow_loses_nothing(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char path[300], name[200];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    for (unsigned i = 0; i < 5500; i++) {
        snprintf(path, sizeof path, "%u%s", i, name);
        make_dir(box, path);
    }
    start(box, 1);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 5500; i++) {
            snprintf(path, sizeof path, "%u%s/f", i, name);
            int fd = open(at(box, path), O_WRONLY | O_CREAT, 0644);
            assert_true(fd >= 0);
            close(fd);
        }
        bk_sleep_ms(200);
    }
    watching_sync(&box->w);
    for (unsigned i = 0; i < 5500; i++) {
        snprintf(path, sizeof path, "%u%s", i, name);
        assert_true(bk_dirset_has(&box->w.roots[0].dirty, path));
    }
}

/* What waits in the kernel's queue when the barrier is asked for is more than one buffer holds. */
static void a_barrier_comes_after_all_that_waits(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char path[300];
    uint64_t rights;
    for (unsigned i = 0; i < 5000; i++) {
        snprintf(path, sizeof path, "directory %u", i);
        make_dir(box, path);
    }
    start(box, 1);
    pid_t watcher = agent_conversation(box->w.agent.pid, &rights);
    assert_int_equal(kill(watcher, SIGSTOP), 0);
    for (unsigned i = 0; i < 5000; i++) {
        snprintf(path, sizeof path, "directory %u/a file with a long name", i);
        int fd = open(at(box, path), O_WRONLY | O_CREAT, 0644);
        assert_true(fd >= 0);
        close(fd);
    }
    assert_int_equal(kill(watcher, SIGCONT), 0);
    watching_sync(&box->w);
    for (unsigned i = 0; i < 5000; i++) {
        snprintf(path, sizeof path, "directory %u", i);
        if (!bk_dirset_has(&box->w.roots[0].dirty, path))
            fail_msg("\"%s\" is not told", path);
    }
}

static unsigned inotify_watches(pid_t pid)
{
    unsigned count = 0;
    char path[300], line[300];
    snprintf(path, sizeof path, "/proc/%d/fdinfo", (int)pid);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (const struct dirent *item; (item = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", (int)pid, item->d_name);
        FILE *file = fopen(path, "r");
        while (file != NULL && fgets(line, sizeof line, file) != NULL)
            count += strncmp(line, "inotify wd:", 11) == 0;
        if (file != NULL)
            fclose(file);
    }
    closedir(dir);
    return count;
}

/* Directories that come and go all the time: there is never a moment of rest in which to forget them. */
static void what_went_is_forgotten_also_under_churn(void **state)
{
    box_t *box = *state;
    uint64_t rights;
    char name[100], out[400];
    if (box->skip)
        SKIP_TEST();
    start(box, 1);
    pid_t watcher = agent_conversation(box->w.agent.pid, &rights);
    for (unsigned i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "d%u", i);
        snprintf(out, sizeof out, "%s/gone %u", box->dir, i);
        make_dir(box, name);
        watching_sync(&box->w);
        assert_int_equal(rename(at(box, name), out), 0);
        watching_sync(&box->w);
        bk_sleep_ms(15);
    }
    assert_true(inotify_watches(watcher) < 60);
}

/* A job that is cancelled in its barrier does not end the watch: the answer comes later, to nobody. */
static void a_barrier_that_nobody_waits_for_ends_nothing(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    bk_ctl_t stopped;
    uint64_t rights;
    if (box->skip)
        SKIP_TEST();
    make_dir(box, "d");
    start(box, 1);
    pid_t watcher = agent_conversation(box->w.agent.pid, &rights);
    bk_ctl_init(&stopped);
    bk_ctl_stop(&stopped, BK_CANCELED);
    assert_int_equal(kill(watcher, SIGSTOP), 0);
    assert_int_equal(bk_watch_sync(box->w.watch, box->a, &stopped, &err), BK_CANCELED);
    assert_int_equal(bk_watch_sync(box->w.watch, box->a, &stopped, &err), BK_CANCELED);
    assert_int_equal(kill(watcher, SIGCONT), 0);
    put(box, "d/file");
    told_of(box, 0, "d");
    assert_int_equal(bk_watch_sync(box->w.watch, box->a, &stopped, &err), BK_CANCELED);
    put(box, "file");
    for (unsigned i = 0; i < 10; i++) {
        bk_wire_wait(bk_watch_fd(box->w.watch), POLLIN, 20);
        watching_drain(&box->w);
    }
    assert_false(box->w.over);
    told_of(box, 0, "");
    bk_ctl_free(&stopped);
}

/* With a queue of 16 events nearly everything is lost, which is said; then all is watched again. */
static void after_lost_events_everything_is_watched_again(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    char path[100];
    uint64_t rights;
    watching_queues_t queues;
    if (!watching_small_queues(&queues))
        SKIP_TEST();
    start(box, 1);
    watching_usual_queues(&queues);
    for (unsigned i = 0; i < 2000; i++) {
        snprintf(path, sizeof path, "d%u", i);
        make_dir(box, path);
    }
    /* However slow this machine is: the watcher is slower. */
    pid_t watcher = agent_conversation(box->w.agent.pid, &rights);
    assert_int_equal(kill(watcher, SIGSTOP), 0);
    for (unsigned i = 0; i < 2000; i++) {
        snprintf(path, sizeof path, "d%u/f", i);
        put(box, path);
    }
    assert_int_equal(kill(watcher, SIGCONT), 0);
    for (unsigned tries = 0; tries < 200; tries++) {
        watching_sync(&box->w);
        if (box->w.roots[0].lost > 0 && box->w.roots[0].watched)
            break;
        bk_sleep_ms(50);
    }
    assert_true(box->w.roots[0].lost > 0);
    assert_true(box->w.roots[0].watched);
    assert_true(box->w.roots[0].dirty.all);
    watching_ready(&box->w);
    put(box, "d1234/x");
    put(box, "d17/x");
    told_of(box, 0, "d1234,d17");
}

static void only_watching_is_left_in_that_conversation(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    bk_wire_message_t *in = calloc(1, sizeof *in);
    box->w.agent = agent_start(box->roots, 1);
    int fd = agent_talk_for(&box->w.agent, BK_WIRE_FOR_WATCHING);
    struct {
        bk_wire_ask_root_t ask;
        char path[300];
    } body = {.ask = {BK_WIRE_MAY_WATCH, (uint32_t)strlen(box->a)}};
    memcpy(body.path, box->a, body.ask.len);
    size_t len = sizeof body.ask + body.ask.len;
    assert_int_equal(bk_wire_send(fd, BK_WIRE_WATCH, 1, &body, len, NULL, 0), 0);
    assert_int_equal(agent_next(fd, in), BK_WIRE_OK);
    assert_int_equal(in->head.verb, BK_WIRE_WATCH);
    body.ask.len = 4;
    memcpy(body.path, "/etc", 4);
    assert_int_equal(bk_wire_send(fd, BK_WIRE_WATCH, 2, &body, sizeof body.ask + 4, NULL, 0), 0);
    do {
        assert_int_equal(agent_next(fd, in), BK_WIRE_OK);
    } while (in->head.verb == BK_WIRE_EVENT);
    assert_int_equal(in->head.verb, BK_WIRE_FAILED);
    assert_int_equal(bk_wire_send(fd, BK_WIRE_HELLO, 3, NULL, 0, NULL, 0), 0);
    bk_wire_got_t got;
    do {
        got = agent_next(fd, in);
    } while (got == BK_WIRE_OK && in->head.verb == BK_WIRE_EVENT);
    assert_int_equal(got, BK_WIRE_END);
    close(fd);
    agent_stop(&box->w.agent);
    free(in);
}

static void a_watcher_gives_up_the_right_to_administrate(void **state)
{
    box_t *box = *state;
    uint64_t rights;
    if (box->skip || geteuid() != 0)
        SKIP_TEST();
    start(box, 2);
    agent_conversation(box->w.agent.pid, &rights);
    assert_true((rights & 1u << CAP_DAC_READ_SEARCH) != 0);
    assert_true((rights & 1u << CAP_SYS_ADMIN) == 0);
    put(box, "b:x"); /* and watches all the same */
    told_of(box, 1, "");
}

/* The same file is at two places then, and what is mounted over a directory makes no event. */
static void what_is_mounted_below_a_root_is_said_to_be_unwatched(void **state)
{
    box_t *box = *state;
    if (box->skip || unshare(CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        SKIP_TEST();
    make_dir(box, "d");
    make_dir(box, "d/e");
    make_dir(box, "bind");
    make_dir(box, "other");
    assert_int_equal(mount(at(box, "d"), at(box, "bind"), NULL, MS_BIND, NULL), 0);
    assert_int_equal(mount("none", at(box, "other"), "tmpfs", 0, NULL), 0);
    start(box, 1);
    assert_true(bk_dirset_has(&box->w.roots[0].limits, "bind"));
    assert_true(bk_dirset_has(&box->w.roots[0].limits, "bind/e"));
    assert_true(bk_dirset_has(&box->w.roots[0].limits, "other"));
    assert_false(bk_dirset_has(&box->w.roots[0].limits, "d"));
    put(box, "bind/e/file");
    told_of(box, 0, "d/e");
    put(box, "other/file");
    watching_sync(&box->w);
    assert_true(bk_dirset_empty(&box->w.roots[0].dirty));
    assert_int_equal(umount(at(box, "bind")) + umount(at(box, "other")), 0);
}

static void what_happens_outside_the_roots_is_not_told(void **state)
{
    box_t *box = *state;
    char path[400], moved[400];
    if (box->skip)
        SKIP_TEST();
    snprintf(path, sizeof path, "%s/beside", box->dir);
    snprintf(moved, sizeof moved, "%s/beside/d", box->dir);
    make_dir(box, "d");
    start(box, 1);
    assert_int_equal(mkdir(path, 0755) + mkdir(moved, 0755), 0);
    snprintf(moved, sizeof moved, "%s/beside/d/f", box->dir);
    write_file(moved, "x", 0, 0, 0644);
    put(box, "b:f");
    watching_sync(&box->w);
    assert_int_equal(box->w.roots[0].events, 0);
    put(box, "d/f");
    told_of(box, 0, "d");
}

static void a_root_that_may_not_be_watched_is_refused(void **state)
{
    box_t *box = *state;
    if (box->skip)
        SKIP_TEST();
    bk_err_t err = {0};
    bk_watch_t *watch;
    bk_helper_t *helper;
    box->roots[0].flags = BK_WIRE_MAY_READ;
    agent_t agent = agent_start(box->roots, 2);
    OK(bk_helper_new(agent.broker, &helper, &err), &err);
    OK(bk_watch_open(helper, &watch, &err), &err);
    assert_int_equal(bk_watch_add(watch, box->a, NULL, &err), BK_FORBIDDEN);
    OK(bk_watch_add(watch, box->b, NULL, &err), &err);
    bk_watch_close(watch);
    bk_helper_free(helper);
    agent_stop(&agent);
}

#define BY(kind, name)                                                                             \
    {                                                                                              \
#name " (" #kind ")", name, set_up, tear_down, &kind                                       \
    }
#define TEST(name) BY(by_inotify, name), BY(by_fanotify, name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_change_of_a_name_tells_its_directory),
        TEST(what_a_mapping_wrote_is_told_when_it_ends),
        TEST(a_directory_tells_of_itself),
        TEST(new_directories_are_watched_at_once),
        TEST(many_new_directories_are_all_watched),
        TEST(a_directory_that_moves_tells_from_its_new_place),
        TEST(a_directory_moves_between_roots_out_and_in),
        TEST(links_to_directories_are_not_followed),
        TEST(without_more_watches_it_is_said_where),
        TEST(a_root_that_is_replaced_ends_the_watch),
        TEST(a_directory_above_a_root_that_is_replaced_ends_the_watch),
        TEST(a_dead_helper_ends_the_watch),
        TEST(databases_are_told_at_once),
        TEST(a_reader_that_is_slow_loses_nothing),
        TEST(a_barrier_comes_after_all_that_waits),
        BY(by_inotify, what_went_is_forgotten_also_under_churn),
        TEST(a_barrier_that_nobody_waits_for_ends_nothing),
        TEST(after_lost_events_everything_is_watched_again),
        TEST(only_watching_is_left_in_that_conversation),
        TEST(a_root_that_may_not_be_watched_is_refused),
        TEST(a_watcher_gives_up_the_right_to_administrate),
        TEST(what_happens_outside_the_roots_is_not_told),
        TEST(what_is_mounted_below_a_root_is_said_to_be_unwatched), /* last: in a namespace */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
