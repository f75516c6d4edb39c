/*
 * t/unit/helper/engine_watching_test.c: what the engine makes of what a helper's watcher tells: which backups go by changes,
 * what ends that, and what it says of it.  The helper is a real one.
 */
#include "agent.h"

#include "unit/engine/fixture.h"

#include <sched.h>
#include <sys/mount.h>

#include "engine/engine_private.h"
#include "engine/watching.h"
#include "helper/watch.h"

typedef struct {
    fixture_t *f;
    agent_t agent;
    bk_helper_t *helper;
    int fd;
} box_t;

/* --- the log --- */

static char logged[65536];

static void keep_log(void *data, bk_log_level_t level, const char *line)
{
    size_t len = strlen(logged);
    (void)data;
    if (level <= BK_LOG_NOTICE)
        snprintf(logged + len, sizeof logged - len, "%s\n", line);
}

static inline unsigned times_logged(const char *text)
{
    unsigned count = 0;
    for (const char *at_ = logged; (at_ = strstr(at_, text)) != NULL; at_++)
        count++;
    return count;
}

/* --- an engine with a helper --- */

static void begin(box_t *box)
{
    const uint32_t may = BK_WIRE_MAY_READ | BK_WIRE_MAY_WATCH;
    agent_root_t roots[] = {{at(box->f, "app/uploads"), may},
                            {at(box->f, "app/transcripts"), may},
                            {at(box->f, "app/app.db"), may | BK_WIRE_DATABASE}};
    bk_err_t err = {0};
    box->agent = agent_start(roots, 3);
    OK(bk_helper_new(box->agent.broker, &box->helper, &err), &err);
}

static void end(box_t *box)
{
    bk_engine_watch_end(box->f->engine);
    bk_helper_free(box->helper);
    agent_stop(&box->agent);
}

static void watch(box_t *box)
{
    bk_err_t err = {0};
    OK(bk_engine_watch(box->f->engine, box->helper, &box->fd, &err), &err);
}

/* What status says of a tree. */
static bool says(const box_t *box, size_t tree, const char *name, const char *value)
{
    json_t *list = bk_watching_describe(box->f->engine->watching);
    json_t *found = json_object_get(json_array_get(list, tree), name);
    bool is = json_is_boolean(found) ? json_is_true(found) == (strcmp(value, "true") == 0)
                                     : found != NULL && strstr(json_string_value(found), value);
    json_decref(list);
    return is;
}

/* Drain until it is so. */
static void until(const box_t *box, size_t tree, const char *name, const char *value)
{
    for (unsigned tries = 0; tries < 300; tries++) {
        bk_err_t err = {0};
        (void)bk_engine_watch_drain(box->f->engine, &err);
        if (says(box, tree, name, value))
            return;
        bk_wire_wait(box->fd, POLLIN, 50);
    }
    json_t *list = bk_watching_describe(box->f->engine->watching);
    char *text = json_dumps(list, 0);
    fail_msg("not: %s %s: %s", name, value, text);
}

static int set_up_box(void **state)
{
    box_t *box = calloc(1, sizeof *box);
    logged[0] = '\0';
    box->f = fixture_new(false);
    bk_log_set(keep_log, NULL, BK_LOG_DEBUG);
    open_engine(box->f);
    *state = box;
    return 0;
}

static void start(box_t *box)
{
    begin(box);
    watch(box);
    until(box, 0, "watching", "true");
    until(box, 1, "watching", "true");
}

static int tear_down_box(void **state)
{
    box_t *box = *state;
    if (box->helper != NULL)
        end(box);
    bk_watch_most = UINT32_MAX;
    bk_watch_use = BK_WIRE_WATCH_INOTIFY | BK_WIRE_WATCH_FANOTIFY;
    bk_watching_try_every = 30 * BK_SEC;
    bk_watching_later = 0;
    fixture_free(box->f);
    free(box);
    return 0;
}

/* A backup, and what it was made by. */
static void backed_up(box_t *box, const char *type, const char *status, const char *scan)
{
    char body[64];
    bk_sleep_ms(80); /* past the time in which a file system's clock stands still */
    bk_fmt(body, sizeof body, "{\"backup_type\": \"%s\"}", type);
    json_t *job = do_job(box->f, BK_JOB_BACKUP, body, status);
    assert_string_equal(text_of(job, "stats.scan"), scan);
    done(job);
}

/* --- tests --- */

static void spoil_pack(void *arg, const char *path, const struct stat *st)
{
    (void)arg;
    for (off_t pos = 100; S_ISREG(st->st_mode) && pos + 8 < st->st_size; pos += 8)
        test_spoil(path, pos, "XXXXXXXX");
}

/* What was missed is a report; that it cannot be made must not be in the way of a backup. */
static void a_damaged_backup_before_does_not_fail_the_next(void **state)
{
    box_t *box = *state;
    start(box);
    backed_up(box, "full", "completed", "walk");
    backed_up(box, "incremental", "completed", "changes");
    test_visit(at(box->f, "storage/meta"), spoil_pack, NULL);
    put(box->f, "app/uploads/2025/new.wav", "new");
    json_t *job = do_job(box->f, BK_JOB_BACKUP, "{\"backup_type\": \"full\"}", "warning");
    assert_contains(text_of(job, "warnings.0"), "cannot be compared");
    assert_int_equal(int_of(job, "stats.files"), 5);
    done(job);
    backed_up(box, "incremental", "warning", "walk"); /* what was found damaged is stored again */
    backed_up(box, "incremental", "completed", "changes");
    test_visit(at(box->f, "storage/meta"), spoil_pack, NULL);
    put(box->f, "app/uploads/2025/new.wav", "newer");
    backed_up(box, "incremental", "warning", "walk");
}

/* What a backup reads of the watch is known to whoever captures, and a stop in between ends nothing. */
static void a_backup_keeps_what_was_told_of_databases(void **state)
{
    box_t *box = *state;
    bk_watching_plan_t plan;
    bk_ctl_t stopped;
    bk_err_t err = {0};
    start(box);
    backed_up(box, "full", "completed", "walk");
    sqlite3 *db = open_db(box->f, "app/app.db");
    unsigned before = bk_engine_written(box->f->engine);
    sql(db, "INSERT INTO jobs(name) VALUES ('one more')");
    bk_ctl_init(&stopped);
    bk_ctl_stop(&stopped, BK_CANCELED);
    bk_watching_take(box->f->engine->watching, 0, "any", false, &stopped, &plan);
    assert_false(plan.usable);
    bk_watching_settle(&plan, NULL, NULL);
    bk_ctl_free(&stopped);
    backed_up(box, "incremental", "completed", "changes");
    assert_true(bk_engine_written(box->f->engine) > before);
    OK(bk_engine_watch_drain(box->f->engine, &err), &err);
    sqlite3_close(db);
}

/* As on a reload: the successor watches before the one before it lets go. */
static void hand_over(box_t *box)
{
    bk_err_t err = {0};
    bk_engine_t *before = box->f->engine;
    OK(bk_engine_open(&box->f->set, &box->f->engine, &err), &err);
    watch(box);
    until(box, 0, "watching", "true");
    until(box, 1, "watching", "true");
    bk_engine_disown(before);
    bk_engine_watch_end(before);
    bk_engine_close(before);
    OK(bk_engine_own(box->f->engine, &err), &err);
}

static void change_nothing(bk_set_files_t *files)
{
    (void)files;
}

static void change_cachedir(bk_set_files_t *files)
{
    files->cachedir = !files->cachedir;
}

static void change_xattrs(bk_set_files_t *files)
{
    files->xattrs = !files->xattrs;
}

static void change_file_system(bk_set_files_t *files)
{
    files->one_file_system = !files->one_file_system;
}

static void change_size(bk_set_files_t *files)
{
    files->max_size = 1000000;
}

static void change_match(bk_set_files_t *files)
{
    OK(bk_set_add_text(&files->match, "**", NULL), &(bk_err_t){0});
}

static void change_exclude(bk_set_files_t *files)
{
    OK(bk_set_add_text(&files->exclude, "*.part", NULL), &(bk_err_t){0});
}

/* What was noted is worth nothing where a walk would look at other things now. */
static void each_option_of_files_that_changes_makes_a_walk(void **state)
{
    static void (*const change[])(bk_set_files_t *) = {
        change_nothing, change_cachedir, change_xattrs,  change_file_system,
        change_size,    change_match,    change_exclude, change_nothing};
    box_t *box = *state;
    bk_err_t err = {0};
    start(box);
    backed_up(box, "full", "completed", "walk");
    for (unsigned i = 0; i < sizeof change / sizeof change[0]; i++) {
        hand_over(box);
        change[i](&box->f->set.files[0]);
        OK(bk_set_check(&box->f->set, true, NULL, &err), &err);
        backed_up(box, "incremental", "completed",
                  change[i] == change_nothing ? "changes" : "walk");
    }
}

/* A disk that is not mounted, a directory that is made anew. */
static void a_tree_that_was_missing_is_watched_when_it_comes(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    unsigned ends = 0;
    assert_int_equal(rename(at(box->f, "app/transcripts"), at(box->f, "aside")), 0);
    bk_watching_try_every = 1;
    begin(box);
    watch(box);
    until(box, 0, "watching", "true");
    assert_true(says(box, 1, "reason", "No such file"));
    for (unsigned i = 0; i < 3; i++)
        OK(bk_engine_watch_drain(box->f->engine, &err), &err);
    assert_int_equal(times_logged("files transcripts: changes are not noticed"), 1);
    assert_int_equal(rename(at(box->f, "aside"), at(box->f, "app/transcripts")), 0);
    for (unsigned i = 0; i < 100 && !says(box, 1, "watching", "true"); i++) {
        if (bk_engine_watch_drain(box->f->engine, &err) != BK_OK) {
            ends++;
            watch(box);
        }
        bk_sleep_ms(20);
    }
    until(box, 0, "watching", "true");
    until(box, 1, "watching", "true");
    assert_true(ends <= 1);
}

/* What is below the limit is walked by every backup, the rest goes by changes; the log is no flood. */
static void what_cannot_be_watched_is_walked_and_said_once(void **state)
{
    box_t *box = *state;
    char name[64];
    for (unsigned i = 0; i < 30; i++) {
        bk_fmt(name, sizeof name, "app/uploads/deep/%u/file", i);
        put(box->f, name, "text");
    }
    bk_watch_most = 3; /* the root, and two of 2025, deep and what is below */
    bk_watch_use = BK_WIRE_WATCH_INOTIFY;
    start(box);
    assert_true(says(box, 0, "reason", "a part cannot be watched"));
    assert_int_equal(times_logged("changes are not noticed, so every backup walks them"), 1);
    assert_int_equal(
        times_logged("there is no inotify watch left; raise fs.inotify.max_user_watches"), 1);
    backed_up(box, "full", "completed", "walk");
    put(box->f, "app/uploads/deep/7/file", "changed");
    put(box->f, "app/uploads/deep/29/new", "new");
    put(box->f, "app/uploads/2025/b.wav", "another");
    bk_sleep_ms(80);
    json_t *job = do_job(box->f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", "completed");
    assert_string_equal(text_of(job, "stats.scan"), "changes");
    assert_int_equal(int_of(job, "stats.files_changed"), 2);
    assert_int_equal(int_of(job, "stats.files_new"), 1);
    done(job);
    assert_int_equal(times_logged("changes are not noticed"), 1);
}

/* What no watcher can see is found once a day. */
static void once_a_day_all_of_it_is_walked(void **state)
{
    box_t *box = *state;
    start(box);
    backed_up(box, "full", "completed", "walk");
    backed_up(box, "incremental", "completed", "changes");
    bk_watching_later = 23 * 3600 * BK_SEC;
    backed_up(box, "incremental", "completed", "changes");
    /* Through a name that is gone again: the directory of the other name was told nothing. */
    assert_int_equal(link(at(box->f, "app/uploads/a.wav"), at(box->f, "app/uploads/2025/g")), 0);
    int fd = open(at(box->f, "app/uploads/2025/g"), O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "more", 4), 4);
    close(fd);
    assert_int_equal(unlink(at(box->f, "app/uploads/2025/g")), 0);
    backed_up(box, "incremental", "completed", "changes");
    bk_watching_later = 24 * 3600 * BK_SEC;
    bk_sleep_ms(80);
    json_t *job = do_job(box->f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", "warning");
    assert_string_equal(text_of(job, "stats.scan"), "walk");
    assert_int_equal(int_of(job, "stats.files_changed"), 1);
    assert_int_equal(int_of(job, "stats.watch_missed"), 1);
    done(job);
    backed_up(box, "incremental", "completed", "changes"); /* the day begins anew */
    bk_watching_later = -3600 * BK_SEC; /* a clock that went back is no reason to trust it */
    backed_up(box, "incremental", "completed", "walk");
}

/* The journal is used once, by who watched without a gap; after a crash there is none. */
static void a_journal_with_a_gap_is_not_used(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    start(box);
    backed_up(box, "full", "completed", "walk");
    bk_engine_disown(box->f->engine);
    bk_engine_watch_end(box->f->engine);
    assert_true(there(box->f, "base/changes"));
    close_engine(box->f);
    OK(bk_engine_open(&box->f->set, &box->f->engine, &err), &err);
    watch(box); /* too late: nobody saw what happened since */
    until(box, 0, "watching", "true");
    OK(bk_engine_own(box->f->engine, &err), &err);
    assert_false(there(box->f, "base/changes"));
    backed_up(box, "incremental", "completed", "walk");
    backed_up(box, "incremental", "completed", "changes");
    /* Damaged in any byte it is no journal. */
    bk_engine_t *before = box->f->engine;
    OK(bk_engine_open(&box->f->set, &box->f->engine, &err), &err);
    watch(box);
    until(box, 0, "watching", "true");
    until(box, 1, "watching", "true");
    bk_engine_disown(before);
    bk_engine_watch_end(before);
    bk_engine_close(before);
    test_spoil(at(box->f, "base/changes"), 80, "X");
    OK(bk_engine_own(box->f->engine, &err), &err);
    backed_up(box, "incremental", "completed", "walk");
}

/* Nothing is told of what happens in a mount; the kernel names it by its real path. */
static void a_mount_below_a_root_with_a_link_in_its_path_is_listed(void **state)
{
    box_t *box = *state;
    bk_err_t err = {0};
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        SKIP_TEST();
    close_engine(box->f);
    assert_int_equal(rename(at(box->f, "app/uploads"), at(box->f, "app/real")), 0);
    assert_int_equal(symlink("real", at(box->f, "app/uploads")), 0);
    box->f->set.files[0].one_file_system = false;
    OK(bk_engine_open(&box->f->set, &box->f->engine, &err), &err);
    OK(bk_engine_own(box->f->engine, &err), &err);
    start(box);
    backed_up(box, "full", "completed", "walk");
    if (mount("none", at(box->f, "app/uploads/2025"), "tmpfs", 0, NULL) != 0)
        SKIP_TEST();
    put(box->f, "app/uploads/2025/inside", "1");
    backed_up(box, "incremental", "completed", "walk");
    put(box->f, "app/uploads/2025/inside", "2");
    bk_sleep_ms(80);
    json_t *job = do_job(box->f, BK_JOB_BACKUP, "{\"backup_type\": \"incremental\"}", "completed");
    assert_string_equal(text_of(job, "stats.scan"), "changes");
    assert_int_equal(int_of(job, "stats.files_changed"), 1);
    done(job);
    assert_int_equal(umount(at(box->f, "app/uploads/2025")), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up_box, tear_down_box)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_damaged_backup_before_does_not_fail_the_next),
        TEST(a_tree_that_was_missing_is_watched_when_it_comes),
        TEST(a_backup_keeps_what_was_told_of_databases),
        TEST(what_cannot_be_watched_is_walked_and_said_once),
        TEST(once_a_day_all_of_it_is_walked),
        TEST(a_journal_with_a_gap_is_not_used),
        TEST(each_option_of_files_that_changes_makes_a_walk),
        TEST(a_mount_below_a_root_with_a_link_in_its_path_is_listed), /* last: in a namespace */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
