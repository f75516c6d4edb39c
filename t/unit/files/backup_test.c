/*
 * t/unit/files/backup_test.c: what a file backup takes, leaves out, reports, and takes over from the one before.
 */
#include "files_testing.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static world_t *world(void **state)
{
    return *state;
}

/* The entry of a path in the last backup.  False when it has none. */
static bool find_entry(world_t *w, const char *path, bk_entry_t *found)
{
    bk_id_t node = w->tree.root;
    char rest[4096];
    assert_true(bk_strcpy(rest, sizeof rest, path));
    for (char *name = rest; name != NULL;) {
        char *slash = strchr(name, '/');
        if (slash != NULL)
            *slash++ = '\0';
        bk_tree_iter_t *iter = NULL;
        const bk_entry_t *entry = NULL;
        OK(bk_tree_iter_open(w->repo, &node, NULL, &iter, &w->err), &w->err);
        OK(bk_tree_iter_seek(iter, name, strlen(name), &w->err), &w->err);
        OK(bk_tree_iter_next(iter, &entry, &w->err), &w->err);
        bool there = entry != NULL && entry->name_len == strlen(name) &&
                     memcmp(entry->name, name, entry->name_len) == 0;
        if (there) {
            *found = *entry;
            node = entry->child;
        }
        bk_tree_iter_close(iter);
        if (!there)
            return false;
        name = slash;
    }
    return true;
}

static bool has(world_t *w, const char *path)
{
    bk_entry_t entry;
    return find_entry(w, path, &entry);
}

static void make_dir(const world_t *w, const char *path)
{
    assert_int_equal(mkdir(at(w, path), 0755), 0);
}

/* Past the time in which the clock of the file system may stand still. */
static void let_the_clock_tick(void)
{
    bk_sleep_ms(80);
}

/* --- what is left out --- */

static void excluded_names_are_left_out_and_counted(void **state)
{
    world_t *w = world(state);
    make_dir(w, "cache");
    make_dir(w, "deep");
    make_dir(w, "deep/er");
    put_text(at(w, "a.tmp"), "x");
    put_text(at(w, "deep/er/b.tmp"), "x");
    put_text(at(w, "deep/er/keep"), "x");
    put_text(at(w, "cache/x"), "x");
    put_text(at(w, "deep/cache"), "a file of that name");
    put_text(at(w, ".ngx-backup-job-1"), "temporary of a restore");
    OK(bk_patterns_add(&w->exclude, "*.tmp", &w->err), &w->err);
    OK(bk_patterns_add(&w->exclude, "cache/", &w->err), &w->err);
    run_backup(w);
    assert_false(has(w, "a.tmp") || has(w, "deep/er/b.tmp") || has(w, "cache"));
    assert_false(has(w, ".ngx-backup-job-1"));
    assert_true(has(w, "deep/er/keep") && has(w, "deep/cache"));
    assert_int_equal(w->stats.excluded, 4);
    assert_int_equal(w->stats.files, 2);
}

static void only_matching_files_are_taken(void **state)
{
    world_t *w = world(state);
    make_dir(w, "a");
    make_dir(w, "b");
    make_dir(w, "whole");
    put_text(at(w, "a/x.wav"), "x");
    put_text(at(w, "a/x.txt"), "x");
    put_text(at(w, "b/y.txt"), "x");
    put_text(at(w, "whole/z.txt"), "x");
    OK(bk_patterns_add(&w->match, "*.wav", &w->err), &w->err);
    OK(bk_patterns_add(&w->match, "whole/", &w->err), &w->err);
    run_backup(w);
    assert_true(has(w, "a/x.wav") && has(w, "whole/z.txt"));
    assert_false(has(w, "a/x.txt") || has(w, "b/y.txt"));
    assert_int_equal(w->stats.files, 2);
}

static void directories_that_cannot_match_are_not_entered(void **state)
{
    world_t *w = world(state);
    make_dir(w, "a");
    make_dir(w, "b");
    put_text(at(w, "a/x"), "x");
    put_text(at(w, "b/x"), "x");
    OK(bk_patterns_add(&w->match, "/a/*", &w->err), &w->err);
    run_backup(w);
    assert_true(has(w, "a/x"));
    assert_false(has(w, "b"));
}

static void of_a_cache_only_the_tag_is_kept(void **state)
{
    world_t *w = world(state);
    const char *signature = "Signature: 8a477f597d28d172789f06886806bc55\n# whatever\n";
    make_dir(w, "cache");
    make_dir(w, "cache/sub");
    make_dir(w, "liar");
    put_text(at(w, "cache/CACHEDIR.TAG"), signature);
    put_text(at(w, "cache/a"), "x");
    put_text(at(w, "liar/CACHEDIR.TAG"), "Signature: something else entirely, not 43 bytes");
    put_text(at(w, "liar/a"), "x");
    run_backup(w);
    assert_true(has(w, "cache/CACHEDIR.TAG") && has(w, "liar/a"));
    assert_false(has(w, "cache/a") || has(w, "cache/sub"));
    assert_int_equal(w->stats.excluded, 2);
    w->backup.cachedir = false;
    run_backup(w);
    assert_true(has(w, "cache/a"));
}

static void too_large_files_are_left_out_and_counted(void **state)
{
    world_t *w = world(state);
    put_random(at(w, "large"), 1001, 1);
    put_random(at(w, "right"), 1000, 1);
    w->backup.max_size = 1000;
    run_backup(w);
    assert_false(has(w, "large"));
    assert_true(has(w, "right"));
    assert_int_equal(w->stats.too_large, 1);
}

static void what_is_to_be_skipped_is_never_opened(void **state)
{
    world_t *w = world(state);
    struct stat st;
    bk_inode_t skip[2];
    char events[4096];
    make_dir(w, "base");
    put_text(at(w, "base/secret"), "x");
    put_text(at(w, "app.db"), "SQLite");
    put_text(at(w, "other"), "x");
    assert_int_equal(link(at(w, "app.db"), at(w, "same.db")), 0);
    assert_int_equal(stat(at(w, "app.db"), &st), 0);
    skip[0] = (bk_inode_t){st.st_dev, st.st_ino};
    assert_int_equal(stat(at(w, "base"), &st), 0);
    skip[1] = (bk_inode_t){st.st_dev, st.st_ino};
    w->backup.skip = skip;
    w->backup.skip_count = 2;
    int watch = inotify_init1(IN_NONBLOCK);
    assert_true(inotify_add_watch(watch, at(w, "app.db"), IN_OPEN) >= 0);
    run_backup(w);
    assert_false(has(w, "app.db") || has(w, "same.db") || has(w, "base"));
    assert_true(has(w, "other"));
    assert_int_equal(read(watch, events, sizeof events), -1);
    assert_int_equal(errno, EAGAIN);
    close(watch);
}

static void sockets_and_devices_are_left_out_and_counted(void **state)
{
    world_t *w = world(state);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/s", w->source);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    unsigned expected = 1;
    if (mknod(at(w, "null"), S_IFCHR | 0600, makedev(1, 3)) == 0)
        expected++;
    put_text(at(w, "file"), "x");
    run_backup(w);
    assert_int_equal(w->stats.special, expected);
    assert_int_equal(w->tree.entries, 1);
    assert_int_equal(w->ctl.notes_total, 0);
    close(fd);
}

/* Runs fn in a child of its own; its failed assertions make it exit with 1. */
static void in_child(world_t *w, void (*fn)(world_t *w))
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        fn(w);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        SKIP_TEST();
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* For children, where cmocka's assertions would jump into the parent's frames. */
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static void back_up_with_a_mount(world_t *w)
{
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", at(w, "mount"), "tmpfs", 0, "size=1m") != 0)
        _exit(77);
    put_text(at(w, "mount/inside"), "x");
    w->backup.one_file_system = true;
    MUST(try_backup(w) == BK_OK);
    MUST(has(w, "mount") && !has(w, "mount/inside") && has(w, "file"));
    w->backup.one_file_system = false;
    MUST(try_backup(w) == BK_OK);
    MUST(has(w, "mount/inside"));
}

static void other_file_systems_stay_outside_when_told_so(void **state)
{
    world_t *w = world(state);
    if (geteuid() != 0)
        SKIP_TEST();
    make_dir(w, "mount");
    put_text(at(w, "file"), "x");
    in_child(w, back_up_with_a_mount);
}

/* --- what cannot be read --- */

#define NOBODY 65534

static void back_up_as_nobody(world_t *w)
{
    MUST(setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
    MUST(try_backup(w) == BK_OK);
    MUST(w->stats.unreadable == 2);
    MUST(json_array_size(w->unreadable) == 2);
    for (size_t i = 0; i < 2; i++) {
        json_t *item = json_array_get(w->unreadable, i);
        const char *path = json_string_value(json_object_get(item, "path"));
        MUST(strcmp(path, at(w, "closed")) == 0 || strcmp(path, at(w, "secret")) == 0);
        MUST(json_integer_value(json_object_get(item, "errno")) == EACCES);
        MUST(strstr(json_string_value(json_object_get(item, "error")), "denied") != NULL);
    }
    bk_entry_t entry;
    MUST(has(w, "open") && !has(w, "secret"));
    /* The directory is there, empty, and says that it is not whole. */
    MUST(find_entry(w, "closed", &entry));
    MUST(entry.type == BK_ENTRY_DIR && entry.children == 0 && (entry.flags & BK_ENTRY_DAMAGED));
    MUST(!has(w, "closed/in"));
}

static void unreadable_files_and_directories_are_listed(void **state)
{
    world_t *w = world(state);
    static const char *const parts[] = {"storage", "spool", "cache"};
    if (geteuid() != 0)
        SKIP_TEST();
    make_dir(w, "closed");
    put_text(at(w, "closed/in"), "x");
    put_text(at(w, "secret"), "x");
    put_text(at(w, "open"), "x");
    assert_int_equal(chmod(at(w, "closed"), 0700), 0);
    assert_int_equal(chmod(at(w, "secret"), 0600), 0);
    for (size_t i = 0; i < 3; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", w->dir, parts[i]);
        test_give(path, NOBODY);
    }
    in_child(w, back_up_as_nobody);
}

static void a_missing_root_is_a_clear_failure(void **state)
{
    world_t *w = world(state);
    w->backup.path = "/nonexistent/uploads";
    assert_int_equal(try_backup(w), BK_NOT_FOUND);
    assert_non_null(strstr(w->err.text, "files \"test\""));
    assert_non_null(strstr(w->err.text, "/nonexistent/uploads"));
}

/* --- what moves --- */

typedef struct {
    const char *path;
    atomic_bool stop;
} mover_t;

static void *append_for_ever(void *arg)
{
    mover_t *mover = arg;
    char block[4096] = {1};
    int fd = open(mover->path, O_WRONLY | O_APPEND);
    for (off_t size = 0; !atomic_load(&mover->stop); size += (off_t)sizeof block) {
        if (write(fd, block, sizeof block) < 0)
            break;
        /* Never so small that one reading of it is over before the next write. */
        if (size > 1 << 27) {
            if (ftruncate(fd, 40 << 20) != 0)
                break;
            size = 0;
        }
        sched_yield();
    }
    close(fd);
    return NULL;
}

static void a_file_that_changes_while_it_is_read_is_marked(void **state)
{
    world_t *w = world(state);
    mover_t mover = {.path = at(w, "log")};
    pthread_t thread;
    bk_entry_t entry;
    bool marked = false;
    put_random(at(w, "log"), 40 << 20, 1);
    put_text(at(w, "quiet"), "x");
    assert_int_equal(pthread_create(&thread, NULL, append_for_ever, &mover), 0);
    for (unsigned i = 0; i < 20 && !marked; i++) {
        run_backup(w);
        assert_true(find_entry(w, "log", &entry));
        marked = (entry.flags & BK_ENTRY_DAMAGED) != 0;
    }
    atomic_store(&mover.stop, true);
    pthread_join(thread, NULL);
    assert_true(marked);
    assert_true(w->ctl.notes_total > 0);
    assert_non_null(strstr(w->ctl.notes[0], "changed while it was read"));
    assert_true(find_entry(w, "quiet", &entry));
    assert_false(entry.flags & BK_ENTRY_DAMAGED);
    /* What is kept is one whole reading: as long as it says, with the sum it says. */
    run_restore(w);
    struct stat st;
    assert_true(find_entry(w, "log", &entry));
    assert_int_equal(stat(out(w, "log"), &st), 0);
    assert_int_equal(st.st_size, entry.size);
    size_t len = 0;
    char *data = get_bytes(out(w, "log"), &len);
    bk_id_t sum;
    bk_sha256(&sum, data, len);
    assert_true(bk_id_equal(&sum, &entry.sha256));
    free(data);
    /* The next incremental backup does not believe it. */
    run_incremental(w);
    assert_true(find_entry(w, "log", &entry));
    assert_false(entry.flags & BK_ENTRY_DAMAGED);
    assert_int_equal(w->stats.files_changed, 1);
}

static void *come_and_go(void *arg)
{
    mover_t *mover = arg;
    char name[4200], dir[4200];
    for (unsigned i = 0; !atomic_load(&mover->stop); i++) {
        snprintf(name, sizeof name, "%s/f%u", mover->path, i % 50);
        snprintf(dir, sizeof dir, "%s/d%u", mover->path, i % 7);
        int fd = open(name, O_WRONLY | O_CREAT, 0644);
        if (fd >= 0)
            close(fd);
        mkdir(dir, 0755);
        snprintf(name, sizeof name, "%s/f%u", mover->path, (i + 25) % 50);
        snprintf(dir, sizeof dir, "%s/d%u", mover->path, (i + 3) % 7);
        unlink(name);
        rmdir(dir);
    }
    return NULL;
}

static void what_vanishes_during_the_walk_is_no_failure(void **state)
{
    world_t *w = world(state);
    mover_t mover = {.path = w->source};
    pthread_t thread;
    put_text(at(w, "stays"), "x");
    assert_int_equal(pthread_create(&thread, NULL, come_and_go, &mover), 0);
    for (unsigned i = 0; i < 10; i++) {
        run_backup(w);
        assert_int_equal(w->stats.unreadable, 0);
        assert_true(has(w, "stays"));
    }
    atomic_store(&mover.stop, true);
    pthread_join(thread, NULL);
}

/* --- incremental --- */

static void unchanged_files_are_not_opened_again(void **state)
{
    world_t *w = world(state);
    char name[64];
    for (unsigned i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "f%u", i);
        put_random(at(w, name), i * 1000, i);
    }
    make_dir(w, "d");
    put_random(at(w, "d/large"), 3 << 20, 7);
    let_the_clock_tick();
    run_backup(w);
    bk_id_t first = w->tree.root;
    int watch = inotify_init1(IN_NONBLOCK);
    char events[4096];
    assert_true(inotify_add_watch(watch, at(w, "f7"), IN_OPEN) >= 0);
    run_incremental(w);
    assert_int_equal(read(watch, events, sizeof events), -1);
    close(watch);
    assert_int_equal(w->stats.files_unmodified, 101);
    assert_int_equal(w->stats.bytes_read, 0);
    assert_true(bk_id_equal(&first, &w->tree.root));
}

static void new_changed_and_removed_files_are_counted(void **state)
{
    world_t *w = world(state);
    struct stat st;
    put_text(at(w, "same"), "x");
    put_text(at(w, "goes"), "x");
    put_text(at(w, "size"), "x");
    put_text(at(w, "touched"), "x");
    put_text(at(w, "mode"), "x");
    put_text(at(w, "replaced"), "x");
    let_the_clock_tick();
    run_backup(w);
    assert_int_equal(w->stats.files_new, 6);
    put_text(at(w, "new"), "x");
    put_text(at(w, "size"), "xyz");
    set_mtime(at(w, "touched"), 1, 1);
    assert_int_equal(chmod(at(w, "mode"), 0600), 0);
    assert_int_equal(unlink(at(w, "goes")), 0);
    assert_int_equal(stat(at(w, "replaced"), &st), 0);
    put_text(at(w, "replaced.new"), "y");
    set_mtime(at(w, "replaced.new"), st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    assert_int_equal(rename(at(w, "replaced.new"), at(w, "replaced")), 0);
    run_incremental(w);
    assert_int_equal(w->stats.files_new, 1);
    assert_int_equal(w->stats.files_changed, 4);
    assert_int_equal(w->stats.files_unmodified, 1);
    assert_int_equal(w->stats.files_removed, 1);
    run_restore(w);
    assert_text(out(w, "replaced"), "y");
    assert_text(out(w, "size"), "xyz");
}

/* A time that is still to come can't be trusted, so such a file is read by every backup. */
static void what_is_read_again_in_vain_is_unmodified(void **state)
{
    world_t *w = world(state);
    put_text(at(w, "young"), "some text");
    set_mtime(at(w, "young"), bk_now() / BK_SEC + 1000, 0);
    run_backup(w);
    run_incremental(w);
    assert_int_equal(w->stats.bytes_read, 9);
    assert_int_equal(w->stats.files_changed, 0);
    assert_int_equal(w->stats.files_unmodified, 1);
    put_text(at(w, "young"), "other");
    run_incremental(w);
    assert_int_equal(w->stats.files_changed, 1);
}

/* Same size, same mtime: ctime tells, and where it could not have ticked, the file is read. */
static void a_change_right_after_the_backup_is_seen(void **state)
{
    world_t *w = world(state);
    for (unsigned i = 0; i < 20; i++) {
        put_text(at(w, "file"), "aaaa");
        set_mtime(at(w, "file"), 1000, 0);
        run_backup(w);
        put_text(at(w, "file"), "bbbb");
        set_mtime(at(w, "file"), 1000, 0);
        run_incremental(w);
        run_restore(w);
        assert_text(out(w, "file"), "bbbb");
    }
}

/* One random change to the tree. */
static void mutate(world_t *w, uint64_t *random)
{
    char name[64], other[64];
    unsigned dir = (unsigned)(test_random(random) % 8), file = (unsigned)(test_random(random) % 40);
    snprintf(name, sizeof name, "d%u/f%u", dir, file);
    snprintf(other, sizeof other, "d%u/f%u", (dir + 3) % 8, file);
    switch (test_random(random) % 9) {
    case 0:
        unlink(at(w, name));
        break;
    case 1:
        rename(at(w, name), at(w, other));
        break;
    case 2:
        if (symlink("somewhere", at(w, name)) != 0)
            unlink(at(w, name));
        break;
    case 3:
        link(at(w, name), at(w, other));
        break;
    case 4:
        chmod(at(w, name), 0600 + file % 64);
        break;
    case 5:
        snprintf(name, sizeof name, "d%u/sub%u", dir, file % 5);
        if (mkdir(at(w, name), 0755) != 0)
            rmdir(at(w, name));
        break;
    case 6:
        snprintf(name, sizeof name, "d%u/sub%u/x", dir, file % 5);
        /* fall through */
    default: {
        struct stat st;
        if (lstat(at(w, name), &st) == 0 && !S_ISREG(st.st_mode))
            unlink(at(w, name));
        int fd = open(at(w, name), O_WRONLY | O_CREAT | O_NOFOLLOW, 0644);
        if (fd < 0)
            break;
        uint8_t data[3000];
        test_fill(data, sizeof data, test_random(random));
        size_t len = (size_t)(test_random(random) % sizeof data);
        assert_int_equal(pwrite(fd, data, len, (off_t)(test_random(random) % 2 * 600000)),
                         (ssize_t)len);
        close(fd);
    }
    }
}

static void after_random_changes_incremental_and_full_give_the_same_tree(void **state)
{
    world_t *w = world(state);
    uint64_t random = 42;
    char name[64];
    for (unsigned i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "d%u", i);
        make_dir(w, name);
    }
    run_backup(w);
    for (unsigned round = 0; round < 15; round++) {
        for (unsigned i = 0; i < 40; i++)
            mutate(w, &random);
        let_the_clock_tick();
        run_incremental(w);
        bk_id_t incremental = w->tree.root;
        bk_files_stats_t stats = w->stats;
        w->lanes = 1 + round % 4;
        run_backup(w);
        if (!bk_id_equal(&incremental, &w->tree.root))
            fail_msg("round %u: the trees differ", round);
        assert_int_equal(stats.files, w->stats.files);
        assert_int_equal(stats.bytes, w->stats.bytes);
    }
}

static void the_number_of_lanes_does_not_change_the_tree(void **state)
{
    world_t *w = world(state);
    char name[64];
    bk_id_t root = {0};
    for (unsigned i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "f%u", i);
        put_bytes(at(w, name), name, i % 8);
    }
    make_dir(w, "d");
    put_random(at(w, "d/large"), 66 << 20, 7);
    let_the_clock_tick();
    for (w->lanes = 1; w->lanes <= 4; w->lanes++) {
        run_backup(w);
        if (w->lanes > 1)
            assert_true(bk_id_equal(&root, &w->tree.root));
        root = w->tree.root;
    }
}

static void a_lost_previous_backup_costs_time_only(void **state)
{
    world_t *w = world(state);
    put_text(at(w, "a"), "x");
    make_dir(w, "d");
    put_random(at(w, "d/b"), 5000, 1);
    let_the_clock_tick();
    run_backup(w);
    bk_id_t first = w->tree.root;
    w->tree.root.b[0] ^= 1;
    run_incremental(w);
    assert_int_equal(w->stats.files_unmodified, 0);
    assert_int_equal(w->stats.files, 2);
    assert_true(bk_id_equal(&first, &w->tree.root));
    assert_int_equal(w->ctl.notes_total, 1);
    assert_non_null(strstr(w->ctl.notes[0], "read again"));
}

/* --- stopping, and limits --- */

static void a_stop_ends_the_backup_and_the_next_one_works(void **state)
{
    world_t *w = world(state);
    char name[64];
    for (unsigned i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "f%u", i);
        put_random(at(w, name), 3000, i);
    }
    bk_ctl_stop(&w->ctl, BK_CANCELED);
    bk_session_options_t how = {.host = "test", .compression = {BK_CODEC_ZSTD, 1}, .upload = true};
    doing_t doing = {.w = w};
    bk_ctl_t quiet;
    bk_ctl_init(&quiet);
    OK(bk_session_begin(w->repo, &how, &quiet, &doing.session, &w->err), &w->err);
    assert_int_equal(bk_team_run(3, do_backup, &doing, &w->err), BK_CANCELED);
    bk_session_abort(doing.session);
    bk_ctl_free(&quiet);
    atomic_store(&w->ctl.stop, 0);
    run_backup(w);
    assert_int_equal(w->stats.files, 200);
}

static void back_up_with_few_descriptors(world_t *w)
{
    struct rlimit few = {.rlim_cur = 96, .rlim_max = 96};
    MUST(setrlimit(RLIMIT_NOFILE, &few) == 0);
    MUST(try_backup(w) == BK_OK);
    MUST(w->stats.unreadable == 0);
    MUST(w->stats.dirs == 400 && w->stats.files == 400);
    MUST(try_restore(w) == BK_OK);
    MUST(w->restored.failed == 0 && w->restored.written == 400);
}

static void few_descriptors_are_enough(void **state)
{
    world_t *w = world(state);
    char path[4096], file[4100];
    for (unsigned i = 0; i < 200; i++) {
        for (unsigned n = 0; n <= i; n++) /* d/d/d … */
            memcpy(path + 2 * n, "d/", 2);
        path[2 * i + 1] = '\0';
        make_dir(w, path);
        bk_fmt(file, sizeof file, "%s/f", path);
        put_text(at(w, file), "x");
    }
    for (unsigned i = 0; i < 200; i++) {
        bk_fmt(path, sizeof path, "e%u", i);
        make_dir(w, path);
        bk_fmt(file, sizeof file, "%s/f", path);
        put_random(at(w, file), 2000, i);
    }
    in_child(w, back_up_with_few_descriptors);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)
    const struct CMUnitTest tests[] = {
        T(excluded_names_are_left_out_and_counted),
        T(only_matching_files_are_taken),
        T(directories_that_cannot_match_are_not_entered),
        T(of_a_cache_only_the_tag_is_kept),
        T(too_large_files_are_left_out_and_counted),
        T(what_is_to_be_skipped_is_never_opened),
        T(sockets_and_devices_are_left_out_and_counted),
        T(other_file_systems_stay_outside_when_told_so),
        T(unreadable_files_and_directories_are_listed),
        T(a_missing_root_is_a_clear_failure),
        T(a_file_that_changes_while_it_is_read_is_marked),
        T(what_vanishes_during_the_walk_is_no_failure),
        T(unchanged_files_are_not_opened_again),
        T(new_changed_and_removed_files_are_counted),
        T(what_is_read_again_in_vain_is_unmodified),
        T(a_change_right_after_the_backup_is_seen),
        T(after_random_changes_incremental_and_full_give_the_same_tree),
        T(the_number_of_lanes_does_not_change_the_tree),
        T(a_lost_previous_backup_costs_time_only),
        T(a_stop_ends_the_backup_and_the_next_one_works),
        T(few_descriptors_are_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
