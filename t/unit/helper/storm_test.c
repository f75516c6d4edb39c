/*
 * t/unit/helper/storm_test.c: creates, writes, renames, deletes, moves of directories and hard links at random, while
 * backups go by what the watcher tells; at rest the last of them must be the tree that a walk makes.
 *
 * STORM_SEEDS (4) seeds from STORM_FIRST (1) on; every second one with an event queue so small that it overflows; two of four
 * by fanotify where it works, or all as STORM_BY (inotify, fanotify) says.  Each begins with 3000 operations, or as many as
 * are done in STORM_SECONDS.
 */
#include "unit/files/files_testing.h"
#include "watching.h"

#include <pthread.h>
#include <stdatomic.h>

#define ROUNDS 3

typedef struct {
    world_t *w;
    uint64_t random;
    unsigned ops;
    int64_t until; /* bk_mono: not after that many, but then; 0: none */
    bool calm;     /* so slow that even a small queue holds what happens */
    atomic_bool over;
    pthread_t thread;
} storm_t;

static unsigned choose(storm_t *s, unsigned below)
{
    return (unsigned)(test_random(&s->random) >> 33) % below;
}

/* Up to four directories down; few names, so that they meet. */
static void random_path(storm_t *s, char out[600], bool file)
{
    size_t len = (size_t)snprintf(out, 600, "%s", s->w->source);
    unsigned depth = choose(s, 5);
    for (unsigned i = 0; i < depth + !file; i++)
        len += (size_t)snprintf(out + len, 600 - len, "/d%u", choose(s, 6));
    if (file)
        snprintf(out + len, 600 - len, "/f%u", choose(s, 8));
}

/* The directories on the way to a path. */
static void make_way(storm_t *s, const char *path)
{
    char dir[600];
    for (const char *p = path + strlen(s->w->source) + 1; (p = strchr(p, '/')) != NULL; p++) {
        snprintf(dir, sizeof dir, "%.*s", (int)(p - path), path);
        mkdir(dir, 0755);
    }
}

static void write_some(storm_t *s, const char *path, int flags)
{
    uint8_t data[3000];
    size_t len = choose(s, 20) == 0 ? sizeof data : choose(s, 100);
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | flags, 0644);
    if (fd < 0)
        return;
    test_fill(data, len, s->random);
    if (write(fd, data, len) < 0)
        len = 0;
    close(fd);
}

/* Most of these fail most of the time: nothing of that name is there. */
static void one_op(storm_t *s)
{
    char a[600], b[600];
    bool file = choose(s, 3) != 0;
    random_path(s, a, file);
    random_path(s, b, file);
    switch (choose(s, 16)) {
    case 0:
    case 1:
    case 2:
        random_path(s, a, false);
        make_way(s, a);
        mkdir(a, 0755);
        break;
    case 3:
    case 4:
    case 5:
        random_path(s, a, true);
        make_way(s, a);
        write_some(s, a, O_CREAT | O_TRUNC);
        break;
    case 6:
        random_path(s, a, true);
        write_some(s, a, O_APPEND);
        break;
    case 7:
    case 8:
    case 9:
        rename(a, b);
        break;
    case 10:
        renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
        break;
    case 11:
        random_path(s, a, true);
        unlink(a);
        break;
    case 12:
        rmdir(a);
        break;
    case 13:
        chmod(a, file ? 0600 + choose(s, 64) : 0700 + choose(s, 64));
        break;
    case 14:
        if (choose(s, 4) == 0 && link(a, b) != 0 && choose(s, 2) == 0)
            symlink("somewhere", a);
        break;
    default:
        if (choose(s, 30) == 0) {
            bk_err_t ignored = {0};
            random_path(s, a, false);
            bk_remove_tree(a, true, &ignored);
        }
    }
}

/*
 * A small queue of fanotify is filled by whatever else writes to the file system, for as long as it
 * does: then the storm goes on unwatched.
 */
static void wait_until_watched(watching_t *watching, bool crowded)
{
    watching_root_t *root = &watching->roots[0];
    for (unsigned i = 0; i < 600 && !root->watched; i++) {
        watching_sync(watching);
        bk_sleep_ms(20);
    }
    if (!root->watched && !crowded)
        fail_msg("after a storm it is not watched again");
}

static void *blow(void *arg)
{
    storm_t *s = arg;
    for (unsigned i = 0; s->until != 0 ? bk_mono() < s->until : i < s->ops; i++) {
        one_op(s);
        if (s->calm && i % 2 == 0)
            bk_sleep_ms(2);
        else if (i % 256 == 0)
            usleep(choose(s, 4000));
    }
    atomic_store(&s->over, true);
    return NULL;
}

/* What the watcher has told since the last time, into the set of the next backup. */
static void take_changes(world_t *w, watching_t *watching)
{
    watching_root_t *root = &watching->roots[0];
    watching_sync(watching);
    bk_dirset_merge(&w->dirty, &root->dirty);
    bk_dirset_merge(&w->dirty, &root->limits);
    bk_dirset_free(&root->dirty);
    if (!root->watched)
        bk_dirset_add(&root->dirty, "", true);
}

static void show_entry(const char *side, const char *dir, const bk_entry_t *e)
{
    if (e == NULL)
        print_message("# %s: %s: nothing\n", side, dir);
    else
        print_message("# %s: %s: %.*s type %u mode %o size %lu links %u inode %lu mtime %ld ctime "
                      "%ld flags %x\n",
                      side, dir, (int)e->name_len, (const char *)e->name, e->type, e->mode,
                      (unsigned long)e->size, e->links, (unsigned long)e->inode, (long)e->mtime,
                      (long)e->ctime, e->flags);
}

/* For whoever has to find out why. */
static void show_difference(world_t *w, const bk_id_t *a, const bk_id_t *b, const char *dir)
{
    bk_tree_iter_t *x = NULL, *y = NULL;
    const bk_entry_t *e, *f;
    OK(bk_tree_iter_open(w->repo, a, NULL, &x, &w->err), &w->err);
    OK(bk_tree_iter_open(w->repo, b, NULL, &y, &w->err), &w->err);
    OK(bk_tree_iter_next(x, &e, &w->err), &w->err);
    OK(bk_tree_iter_next(y, &f, &w->err), &w->err);
    while (e != NULL || f != NULL) {
        int order = 0;
        if (e != NULL && f != NULL)
            order = memcmp(e->name, f->name, e->name_len < f->name_len ? e->name_len : f->name_len);
        bool left = f == NULL || (e != NULL && order <= 0),
             right = e == NULL || (f != NULL && order >= 0);
        bool both = left && right;
        if (!both || e->mtime != f->mtime || e->ctime != f->ctime || e->size != f->size ||
            e->mode != f->mode || e->links != f->links || e->inode != f->inode ||
            e->flags != f->flags || !bk_id_equal(&e->sha256, &f->sha256)) {
            show_entry("changes", dir, left ? e : NULL);
            show_entry("walk   ", dir, right ? f : NULL);
        }
        if (both && e->type == BK_ENTRY_DIR && f->type == BK_ENTRY_DIR &&
            !bk_id_equal(&e->child, &f->child)) {
            char below[600];
            snprintf(below, sizeof below, "%s/%.*s", dir, (int)e->name_len, (const char *)e->name);
            show_difference(w, &e->child, &f->child, below);
        }
        if (left)
            OK(bk_tree_iter_next(x, &e, &w->err), &w->err);
        if (right)
            OK(bk_tree_iter_next(y, &f, &w->err), &w->err);
    }
    bk_tree_iter_close(x);
    bk_tree_iter_close(y);
}

static void assert_tree_of_a_walk(world_t *w, bk_snapshot_tree_t before)
{
    bk_files_stats_t had = w->stats;
    bk_snapshot_tree_t tree = w->tree;
    tree.path = before.path = NULL;
    w->backup.previous = &before;
    run_backup(w);
    w->backup.previous = NULL;
    if (!bk_id_equal(&w->tree.root, &tree.root)) {
        show_difference(w, &tree.root, &w->tree.root, "");
        fail_msg("the tree by changes is not that of the walk");
    }
    assert_int_equal(w->stats.files, had.files);
    assert_int_equal(w->stats.bytes, had.bytes);
    assert_int_equal(w->stats.dirs, had.dirs);
    assert_int_equal(w->stats.links, had.links);
    w->stats = had;
}

/* Which of the last backups went by changes. */
static unsigned by_changes, by_walk;

static void storm(world_t *w, watching_t *watching, uint64_t seed, bool crowded)
{
    const char *seconds = getenv("STORM_SECONDS");
    storm_t s = {.w = w, .random = seed * 0x9e3779b97f4a7c15u + 1, .ops = 3000};
    for (unsigned i = 0; i < 600; i++)
        one_op(&s);
    watching_ready(watching);
    bk_sleep_ms(80);
    w->backup.again = &w->again;
    run_backup(w);
    w->backup.again = NULL;
    for (unsigned round = 0; round < ROUNDS; round++) {
        s.calm = round > 0;
        s.ops = s.calm ? 80 : 3000;
        s.until = s.calm || seconds == NULL ? 0 : bk_mono() + strtol(seconds, NULL, 10) * BK_SEC;
        if (s.calm) { /* so that most of the tree can be taken over */
            wait_until_watched(watching, crowded);
            take_changes(w, watching);
            run_changes(w);
        }
        atomic_store(&s.over, false);
        assert_int_equal(pthread_create(&s.thread, NULL, blow, &s), 0);
        for (unsigned i = 0; i < 3 || ((i < 100 || s.until != 0) && !atomic_load(&s.over)); i++) {
            take_changes(w, watching);
            run_changes(w);
        }
        pthread_join(s.thread, NULL);
        bk_sleep_ms(80);
        bk_snapshot_tree_t before = w->tree;
        take_changes(w, watching);
        run_changes(w);
        print_message("# %u files, %u of %u directories%s\n", (unsigned)w->stats.files,
                      (unsigned)w->stats.dirs_listed, (unsigned)w->stats.dirs,
                      w->stats.walked ? ", walked" : "");
        *(w->stats.walked || w->stats.dirs_listed >= w->stats.dirs ? &by_walk : &by_changes) += 1;
        assert_tree_of_a_walk(w, before);
    }
}

static void after_a_storm_the_changes_give_the_tree_of_a_walk(void **state)
{
    (void)state;
    const char *by = getenv("STORM_BY");
    const char *seeds = getenv("STORM_SEEDS"), *first = getenv("STORM_FIRST");
    uint64_t from = first != NULL ? strtoull(first, NULL, 10) : 1;
    uint64_t count = seeds != NULL ? strtoull(seeds, NULL, 10) : 4;
    for (uint64_t seed = from; seed < from + count; seed++) {
        void *made = NULL;
        watching_t watching;
        watching_queues_t queues;
        world_set_up(&made);
        world_t *w = made;
        agent_root_t root = {w->source, BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH};
        bool fanotify = by != NULL ? strcmp(by, "fanotify") == 0 : seed % 4 < 2;
        bk_watch_use = BK_WIRE_WATCH_INOTIFY |
                       (fanotify && watching_has_fanotify() ? BK_WIRE_WATCH_FANOTIFY : 0);
        bool small = seed % 2 == 0 && watching_small_queues(&queues);
        watching_start(&watching, &root, 1);
        if (small)
            watching_usual_queues(&queues);
        fanotify = (bk_watch_use & BK_WIRE_WATCH_FANOTIFY) != 0;
        print_message("# seed %lu by %s\n", (unsigned long)seed, fanotify ? "fanotify" : "inotify");
        storm(w, &watching, seed, small && fanotify);
        print_message("# lost %u times\n", watching.roots[0].lost);
        watching_stop(&watching);
        world_tear_down(&made);
    }
    print_message("# %u backups by changes, %u by walks\n", by_changes, by_walk);
    assert_true(by_changes > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(after_a_storm_the_changes_give_the_tree_of_a_walk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
