/*
 * t/unit/files/changes_backup_test.c: a backup that lists only the directories that are said to have changed gives the
 * same tree and the same figures as a walk, and looks nowhere else.
 */
#include "files_testing.h"

static world_t *world(void **state)
{
    return *state;
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

static void changed(world_t *w, const char *dir)
{
    bk_dirset_add(&w->dirty, dir, false);
}

static void changed_below(world_t *w, const char *dir)
{
    bk_dirset_add(&w->dirty, dir, true);
}

/* The first backup, with files old enough to be trusted. */
static void begin(world_t *w)
{
    let_the_clock_tick();
    w->backup.again = &w->again;
    run_backup(w);
    w->backup.again = NULL;
    assert_true(w->stats.walked);
}

/* By changes, and then what a walk from the same state makes of it. */
static void compare_with_walk(world_t *w, bool by_changes)
{
    bk_snapshot_tree_t before = w->tree;
    before.path = NULL;
    let_the_clock_tick();
    run_changes(w);
    assert_int_equal(w->stats.walked, !by_changes);
    bk_files_stats_t had = w->stats;
    bk_snapshot_tree_t tree = w->tree;
    tree.path = NULL;
    w->backup.previous = &before;
    run_backup(w);
    w->backup.previous = NULL;
    assert_memory_equal(&w->tree.root, &tree.root, sizeof tree.root);
    assert_int_equal(w->tree.entries, tree.entries);
    assert_int_equal(w->stats.files, had.files);
    assert_int_equal(w->stats.bytes, had.bytes);
    assert_int_equal(w->stats.dirs, had.dirs);
    assert_int_equal(w->stats.links, had.links);
    assert_int_equal(w->stats.others, had.others);
    assert_int_equal(w->stats.files_new, had.files_new);
    assert_int_equal(w->stats.files_changed, had.files_changed);
    assert_int_equal(w->stats.files_unmodified, had.files_unmodified);
    assert_int_equal(w->stats.files_removed, had.files_removed);
    w->stats = had;
}

static void make_some(world_t *w)
{
    make_dir(w, "a");
    make_dir(w, "a/b");
    make_dir(w, "a/b/c");
    make_dir(w, "d");
    make_dir(w, "d/e");
    put_text(at(w, "top"), "top");
    put_text(at(w, "a/one"), "one");
    put_text(at(w, "a/b/two"), "two");
    put_random(at(w, "a/b/c/three"), 3000, 1);
    put_text(at(w, "d/e/four"), "four");
    assert_int_equal(symlink("four", at(w, "d/e/link")), 0);
    assert_int_equal(mkfifo(at(w, "d/fifo"), 0600), 0);
}

static void nothing_is_listed_when_nothing_changed(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 0);
    assert_int_equal(w->stats.bytes_read, 0);
    assert_int_equal(w->stats.files_unmodified, 5);
}

static void only_changed_directories_are_listed(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    put_text(at(w, "a/b/two"), "2");
    put_text(at(w, "a/b/more"), "more");
    changed(w, "a/b");
    put_text(at(w, "d/e/four"), "unnoticed");
    let_the_clock_tick();
    run_changes(w);
    assert_false(w->stats.walked);
    assert_int_equal(w->stats.dirs_listed, 1);
    assert_int_equal(w->stats.files_new, 1);
    assert_int_equal(w->stats.files_changed, 1);
    assert_int_equal(w->stats.files, 6);
    /* Said later, it is found later. */
    changed(w, "d/e");
    run_changes(w);
    assert_int_equal(w->stats.files_changed, 1);
    compare_with_walk(w, true);
}

static void between_two_listed_directories_one_is_taken_over(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    put_text(at(w, "a/one"), "1");
    put_text(at(w, "a/b/c/three"), "3");
    changed(w, "a");
    changed(w, "a/b/c");
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 2);
    assert_int_equal(w->stats.files_changed, 2);
}

static void every_kind_of_change_gives_the_tree_of_a_walk(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    /* removed, with what is below */
    assert_int_equal(unlink(at(w, "a/b/c/three")), 0);
    assert_int_equal(rmdir(at(w, "a/b/c")), 0);
    changed(w, "a/b/c");
    changed(w, "a/b");
    /* new, with something in it */
    make_dir(w, "d/new");
    put_text(at(w, "d/new/x"), "x");
    changed(w, "d");
    changed_below(w, "d/new");
    compare_with_walk(w, true);
    /* a directory moves */
    assert_int_equal(rename(at(w, "d/e"), at(w, "a/b/moved")), 0);
    changed(w, "d");
    changed(w, "a/b");
    changed_below(w, "a/b/moved");
    compare_with_walk(w, true);
    /* a directory becomes a file, a file a directory */
    assert_int_equal(unlink(at(w, "d/new/x")), 0);
    assert_int_equal(rmdir(at(w, "d/new")), 0);
    put_text(at(w, "d/new"), "a file now");
    changed(w, "d");
    assert_int_equal(unlink(at(w, "top")), 0);
    make_dir(w, "top");
    put_text(at(w, "top/y"), "y");
    changed(w, "");
    changed_below(w, "top");
    compare_with_walk(w, true);
    /* metadata of a directory and of a file */
    assert_int_equal(chmod(at(w, "a"), 0700), 0);
    changed(w, "a");
    changed(w, "");
    assert_int_equal(chmod(at(w, "a/b/two"), 0600), 0);
    changed(w, "a/b");
    compare_with_walk(w, true);
    /* everything at once */
    changed_below(w, "");
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 6);
}

static void changes_in_what_is_left_out_do_no_harm(void **state)
{
    world_t *w = world(state);
    make_some(w);
    make_dir(w, "cache");
    make_dir(w, "cache/deep");
    OK(bk_patterns_add(&w->exclude, "cache/", &w->err), &w->err);
    begin(w);
    put_text(at(w, "cache/deep/x"), "x");
    changed(w, "cache/deep");
    changed(w, "cache");
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 0);
    changed(w, "");
    changed_below(w, "cache");
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 1);
}

static void a_directory_that_is_gone_before_it_is_listed_is_left_out(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    assert_int_equal(unlink(at(w, "a/b/c/three")), 0);
    assert_int_equal(rmdir(at(w, "a/b/c")), 0);
    changed(w, "a/b/c"); /* but nothing yet of a/b */
    let_the_clock_tick();
    run_changes(w);
    assert_int_equal(w->stats.files, 4);
    changed(w, "a/b");
    compare_with_walk(w, true);
}

static void a_file_with_several_names_changes_everywhere(void **state)
{
    world_t *w = world(state);
    make_some(w);
    assert_int_equal(link(at(w, "a/one"), at(w, "d/e/uno")), 0);
    begin(w);
    put_text(at(w, "d/e/uno"), "written through one name");
    changed(w, "d/e");
    compare_with_walk(w, true);
    assert_int_equal(w->stats.files_changed, 2);
    assert_int_equal(w->stats.dirs_listed, 2);
    assert_int_equal(unlink(at(w, "d/e/uno")), 0);
    changed(w, "d/e");
    compare_with_walk(w, true);
    /* One name is left: its directory is no special one any more. */
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 0);
}

static void a_new_name_of_an_old_file_elsewhere_means_a_walk(void **state)
{
    world_t *w = world(state);
    make_some(w);
    put_random(at(w, "a/large"), 3 << 20, 5); /* looked at twice */
    begin(w);
    assert_int_equal(link(at(w, "a/b/c/three"), at(w, "d/drei")), 0);
    changed(w, "d");
    compare_with_walk(w, false);
    put_text(at(w, "d/drei"), "changed");
    changed(w, "d");
    compare_with_walk(w, true);
    assert_int_equal(w->stats.files_changed, 2);
    assert_int_equal(link(at(w, "a/large"), at(w, "d/gross")), 0);
    changed(w, "d");
    compare_with_walk(w, false);
    /* Two new names side by side can be judged. */
    put_text(at(w, "d/e/x"), "x");
    assert_int_equal(link(at(w, "d/e/x"), at(w, "d/e/y")), 0);
    changed(w, "d/e");
    compare_with_walk(w, true);
}

static void a_file_with_several_names_that_changes_meanwhile_means_a_walk(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    put_text(at(w, "d/e/x"), "x");
    assert_int_equal(link(at(w, "d/e/x"), at(w, "d/e/y")), 0);
    changed(w, "d/e");
    run_changes(w); /* so soon that the link may have come after the first look */
    assert_true(w->again.all);
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 6); /* by changes, but all of them */
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 1);
}

static void what_was_read_too_early_is_looked_at_again(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    put_text(at(w, "a/b/two"), "just now");
    changed(w, "a/b");
    run_changes(w); /* without a tick of the clock */
    assert_true(bk_dirset_has(&w->again, "a/b"));
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 1);
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 0);
}

static void what_could_not_be_read_is_tried_again(void **state)
{
    world_t *w = world(state);
    if (geteuid() != 0)
        SKIP_TEST();
    make_some(w);
    assert_int_equal(chmod(w->dir, 0777), 0);
    assert_int_equal(chmod(at(w, "a/b/two"), 0), 0);
    assert_int_equal(chmod(at(w, "d/e"), 0), 0);
    test_give(w->dir, 65534);
    assert_int_equal(seteuid(65534), 0);
    begin(w);
    assert_int_equal(w->stats.unreadable, 2);
    run_changes(w); /* nothing is said to have changed, but the holes are still there */
    assert_int_equal(w->stats.unreadable, 2);
    assert_int_equal(json_array_size(w->unreadable), 2);
    assert_false(w->stats.walked);
    assert_int_equal(chmod(at(w, "a/b/two"), 0600), 0);
    assert_int_equal(chmod(at(w, "d/e"), 0700), 0);
    run_changes(w);
    assert_int_equal(w->stats.unreadable, 0);
    assert_int_equal(w->stats.files, 5);
    compare_with_walk(w, true);
    assert_int_equal(seteuid(0), 0);
}

static void a_damaged_previous_tree_means_a_walk(void **state)
{
    world_t *w = world(state);
    make_some(w);
    begin(w);
    changed(w, "a/b");
    memset(&w->tree.root, 7, sizeof w->tree.root);
    let_the_clock_tick();
    run_changes(w);
    assert_true(w->stats.walked);
    assert_int_equal(w->stats.files, 5);
}

typedef struct {
    char path[4400];
    off_t size;
    unsigned count;
} metas_t;

static void note_meta(void *arg, const char *path, const struct stat *st)
{
    metas_t *metas = arg;
    if (!S_ISREG(st->st_mode))
        return;
    metas->count++;
    metas->size = st->st_size;
    snprintf(metas->path, sizeof metas->path, "%s", path);
}

/* Only the figures need what was in a directory that is gone. */
static void a_previous_tree_that_cannot_be_compared_means_a_walk(void **state)
{
    world_t *w = world(state);
    char meta[400];
    metas_t first = {.count = 0};
    make_some(w);
    begin(w);
    snprintf(meta, sizeof meta, "%s/storage/meta", w->dir);
    test_visit(meta, note_meta, &first);
    assert_int_equal(first.count, 1);
    /* The node of the root is in another pack now than those of what is below. */
    put_text(at(w, "top"), "another");
    changed(w, "");
    let_the_clock_tick();
    run_changes(w);
    assert_false(w->stats.walked);
    for (off_t pos = 100; pos + 8 <= first.size; pos += 8)
        test_spoil(first.path, pos, "XXXXXXXX");
    bk_repo_close(w->repo);
    bk_storage_close(w->storage);
    world_open_repo(w);
    assert_int_equal(unlink(at(w, "d/e/four")) + unlink(at(w, "d/e/link")), 0);
    assert_int_equal(unlink(at(w, "d/fifo")) + rmdir(at(w, "d/e")) + rmdir(at(w, "d")), 0);
    changed(w, "");
    run_changes(w);
    assert_true(w->stats.walked);
    assert_int_equal(w->stats.files, 4);
}

static void of_a_hundred_changed_directories_no_other_is_listed(void **state)
{
    world_t *w = world(state);
    char path[64];
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(path, sizeof path, "dir%u", i);
        make_dir(w, path);
        for (unsigned k = 0; k < 3; k++) {
            snprintf(path, sizeof path, "dir%u/file%u", i, k);
            put_text(at(w, path), path);
        }
    }
    begin(w);
    for (unsigned i = 0; i < 100; i++) {
        snprintf(path, sizeof path, "dir%u/file1", i * 10 + 3);
        put_text(at(w, path), "changed");
        snprintf(path, sizeof path, "dir%u", i * 10 + 3);
        changed(w, path);
    }
    compare_with_walk(w, true);
    assert_int_equal(w->stats.dirs_listed, 100);
    assert_int_equal(w->stats.files_changed, 100);
    assert_int_equal(w->stats.files, 3000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_is_listed_when_nothing_changed),
        TEST(only_changed_directories_are_listed),
        TEST(between_two_listed_directories_one_is_taken_over),
        TEST(every_kind_of_change_gives_the_tree_of_a_walk),
        TEST(changes_in_what_is_left_out_do_no_harm),
        TEST(a_directory_that_is_gone_before_it_is_listed_is_left_out),
        TEST(a_file_with_several_names_changes_everywhere),
        TEST(a_new_name_of_an_old_file_elsewhere_means_a_walk),
        TEST(a_file_with_several_names_that_changes_meanwhile_means_a_walk),
        TEST(what_was_read_too_early_is_looked_at_again),
        TEST(what_could_not_be_read_is_tried_again),
        TEST(a_damaged_previous_tree_means_a_walk),
        TEST(a_previous_tree_that_cannot_be_compared_means_a_walk),
        TEST(of_a_hundred_changed_directories_no_other_is_listed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
