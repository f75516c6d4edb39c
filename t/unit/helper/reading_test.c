/*
 * t/unit/helper/reading_test.c: a process without any right to a tree backs it up through the helper, and the result is
 * to the byte what its owner would have got.
 */
#include "unit/helper/agent.h"

#include <grp.h>
#include <sys/mount.h>
#include <time.h>

#include "unit/files/files_testing.h"

#define OWNER 12345
#define MANY  200

typedef struct {
    world_t *w;
    agent_t agent;
    bk_helper_t *client;
} helped_t;

/* --- becoming nobody, and root again: for all threads --- */

static void become_nobody(void)
{
    assert_int_equal(setgroups(0, NULL), 0);
    assert_int_equal(setegid(NOBODY), 0);
    assert_int_equal(seteuid(NOBODY), 0);
}

static void become_root(void)
{
    assert_int_equal(seteuid(0), 0);
    assert_int_equal(setegid(0), 0);
}

static void give_away(const char *dir, uid_t uid)
{
    char *argv[] = {"chown", "-hR", NULL, NULL, NULL};
    char owner[32];
    snprintf(owner, sizeof owner, "%u:%u", (unsigned)uid, (unsigned)uid);
    argv[2] = owner;
    argv[3] = (char *)(uintptr_t)dir;
    pid_t pid = fork();
    if (pid == 0) {
        execvp(argv[0], argv);
        _exit(127);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* Files whose clock has ticked since: else nobody trusts their times. */
static void settle(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
}

static void fill_tree(const world_t *w)
{
    char name[64];
    assert_int_equal(mkdir(at(w, "many"), 0750), 0);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "many/file%03u", i);
        put_random(at(w, name), 700 + i * 17, i);
        assert_int_equal(chmod(at(w, name), 0640), 0);
    }
    assert_int_equal(mkdir(at(w, "open"), 0755), 0);
    put_text(at(w, "open/secret"), "only its owner reads this");
    assert_int_equal(chmod(at(w, "open/secret"), 0600), 0);
    put_text(at(w, "open/public"), "everybody reads this");
    assert_int_equal(mkdir(at(w, "open/closed"), 0700), 0);
    assert_int_equal(mkdir(at(w, "open/closed/deeper"), 0700), 0);
    put_random(at(w, "open/closed/deeper/large"), 3u << 20, 99);
    assert_int_equal(chmod(at(w, "open/closed/deeper/large"), 0600), 0);
    assert_int_equal(symlink("../no where", at(w, "open/closed/link")), 0);
    assert_int_equal(mkfifo(at(w, "open/closed/fifo"), 0600), 0);
    assert_int_equal(link(at(w, "open/secret"), at(w, "open/closed/second name")), 0);
    assert_int_equal(mkdir(at(w, "empty"), 0700), 0);
    assert_int_equal(mkdir(at(w, "cache"), 0700), 0);
    put_text(at(w, "cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n");
    assert_int_equal(chmod(at(w, "cache/CACHEDIR.TAG"), 0600), 0);
    put_text(at(w, "cache/made again"), "x");
    /* A file system without user attributes has none to lose. */
    (void)setxattr(at(w, "open/secret"), "user.note", "seen", 4, 0);
    (void)setxattr(at(w, "open/closed"), "user.note", "dir", 3, 0);
    give_away(w->source, OWNER);
    assert_int_equal(chmod(w->source, 0750), 0);
    settle();
}

static int set_up(void **state)
{
    helped_t *h = calloc(1, sizeof *h);
    if (geteuid() != 0) {
        *state = h;
        return 0;
    }
    assert_int_equal(world_set_up((void **)&h->w), 0);
    fill_tree(h->w);
    give_away(h->w->dir, NOBODY);
    give_away(h->w->source, OWNER);
    settle();
    agent_root_t list[] = {{h->w->source, BK_WIRE_MAY_READ}};
    h->agent = agent_start(list, 1);
    OK(bk_helper_new(h->agent.broker, &h->client, &h->w->err), &h->w->err);
    *state = h;
    return 0;
}

static int tear_down(void **state)
{
    helped_t *h = *state;
    if (h->w != NULL) {
        bk_helper_free(h->client);
        agent_stop(&h->agent);
        world_tear_down((void **)&h->w);
    }
    free(h);
    return 0;
}

static bk_rc_t backup_as_nobody(helped_t *h)
{
    become_nobody();
    bk_rc_t rc = try_backup(h->w);
    become_root();
    return rc;
}

/* The repository's directories belong to nobody, so root's runs are followed by this. */
static void root_was_here(helped_t *h)
{
    static const char *const dirs[] = {"cache", "spool", "storage"};
    char path[400];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", h->w->dir, dirs[i]);
        give_away(path, NOBODY);
    }
}

static void the_tree_is_the_one_that_root_reads(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL)
        SKIP_TEST();
    run_backup(w);
    root_was_here(h);
    bk_snapshot_tree_t own = w->tree;
    bk_files_stats_t stats = w->stats;
    assert_int_equal(stats.files, MANY + 5);
    assert_true(access(at(w, "open/secret"), R_OK) == 0);
    w->backup.helper = h->client;
    OK(backup_as_nobody(h), &w->err);
    assert_int_equal(w->stats.unreadable, 0);
    assert_int_equal(w->stats.files, stats.files);
    assert_int_equal(w->stats.links, stats.links);
    assert_int_equal(w->stats.others, stats.others);
    assert_int_equal(w->stats.excluded, stats.excluded);
    assert_true(bk_id_equal(&w->tree.root, &own.root));
}

static void an_unchanged_tree_is_not_read_again(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL)
        SKIP_TEST();
    w->backup.helper = h->client;
    OK(backup_as_nobody(h), &w->err);
    bk_snapshot_tree_t first = w->tree;
    w->backup.previous = &first;
    OK(backup_as_nobody(h), &w->err);
    assert_int_equal(w->stats.bytes_read, 0);
    assert_int_equal(w->stats.files_unmodified, MANY + 5);
    put_text(at(w, "many/file007"), "new content");
    settle();
    OK(backup_as_nobody(h), &w->err);
    assert_int_equal(w->stats.bytes_read, strlen("new content"));
    assert_int_equal(w->stats.files_changed, 1);
    w->backup.previous = NULL;
}

static void what_is_said_to_have_changed_is_all_that_is_listed(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL)
        SKIP_TEST();
    w->backup.helper = h->client;
    OK(backup_as_nobody(h), &w->err);
    put_text(at(w, "open/closed/deeper/new"), "found");
    settle();
    bk_dirset_add(&w->dirty, "open/closed/deeper", false);
    become_nobody();
    run_changes(w);
    become_root();
    assert_false(w->stats.walked);
    assert_int_equal(w->stats.files_new, 1);
    bk_id_t changed = w->tree.root;
    OK(backup_as_nobody(h), &w->err);
    assert_true(bk_id_equal(&w->tree.root, &changed));
}

static bool noted(const world_t *w, const char *text)
{
    for (unsigned i = 0; i < w->ctl.notes_kept; i++)
        if (strstr(w->ctl.notes[i], text) != NULL)
            return true;
    return false;
}

static void without_a_helper_it_is_said_what_would_help(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL)
        SKIP_TEST();
    assert_int_equal(chmod(w->source, 0755), 0);
    OK(backup_as_nobody(h), &w->err);
    assert_true(w->stats.unreadable > 0);
    assert_int_equal(json_array_size(w->unreadable), w->stats.unreadable);
    assert_true(noted(w, "backup_helper"));
}

static void a_helper_that_is_gone_fails_what_needs_it(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL)
        SKIP_TEST();
    assert_int_equal(chmod(w->source, 0755), 0);
    kill(h->agent.pid, SIGKILL);
    waitpid(h->agent.pid, NULL, 0);
    h->agent = agent_start(&(agent_root_t){"/nonexistent", BK_WIRE_MAY_READ}, 1);
    w->backup.helper = h->client; /* whose broker nobody listens on */
    assert_int_equal(backup_as_nobody(h), BK_UNAVAILABLE);
    assert_non_null(strstr(w->err.text, "helper"));
}

static void a_helper_that_is_gone_is_not_missed_where_own_rights_do(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL)
        SKIP_TEST();
    kill(h->agent.pid, SIGKILL);
    waitpid(h->agent.pid, NULL, 0);
    h->agent = agent_start(&(agent_root_t){"/nonexistent", BK_WIRE_MAY_READ}, 1);
    w->backup.helper = h->client;
    run_backup(w); /* as root */
    assert_int_equal(w->stats.unreadable, 0);
}

static void a_mount_point_is_told_and_not_crossed(void **state)
{
    helped_t *h = *state;
    world_t *w = h->w;
    if (w == NULL || mount("none", at(w, "empty"), "tmpfs", 0, "size=1m") != 0)
        SKIP_TEST();
    put_text(at(w, "empty/other"), "elsewhere");
    assert_int_equal(chmod(at(w, "empty"), 0700), 0);
    w->backup.helper = h->client;
    bk_rc_t rc = backup_as_nobody(h);
    uint64_t unreadable = w->stats.unreadable;
    w->backup.one_file_system = true;
    bk_rc_t one_rc = backup_as_nobody(h);
    assert_int_equal(umount(at(w, "empty")), 0);
    OK(rc, &w->err);
    OK(one_rc, &w->err);
    assert_int_equal(unreadable, 1);
    assert_int_equal(w->stats.unreadable, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_tree_is_the_one_that_root_reads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_unchanged_tree_is_not_read_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_said_to_have_changed_is_all_that_is_listed, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(without_a_helper_it_is_said_what_would_help, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_helper_that_is_gone_fails_what_needs_it, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_helper_that_is_gone_is_not_missed_where_own_rights_do,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_mount_point_is_told_and_not_crossed, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
