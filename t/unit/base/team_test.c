/*
 * t/unit/base/team_test.c: lanes do every work once, whatever number of them comes; a job can be
 * watched and stopped.
 */
#include <pthread.h>

#include "base/clock.h"
#include "base/ctl.h"
#include "base/str.h"
#include "base/team.h"
#include "unit/testing.h"

/* assert works on the thread of the test only: works count, the test looks. */
typedef struct {
    atomic_uint done, at_once, most_at_once;
    pthread_t caller;
    atomic_uint by_caller;
    unsigned fail_at; /* this one and all later ones fail; 0: none */
    bool slow;
} count_t;

static bk_rc_t count_work(void *arg, bk_err_t *err)
{
    count_t *c = arg;
    unsigned now = atomic_fetch_add(&c->at_once, 1) + 1, most = atomic_load(&c->most_at_once);
    while (now > most && !atomic_compare_exchange_weak(&c->most_at_once, &most, now))
        ;
    if (pthread_equal(pthread_self(), c->caller))
        atomic_fetch_add(&c->by_caller, 1);
    if (c->slow)
        bk_sleep_ms(1);
    atomic_fetch_sub(&c->at_once, 1);
    unsigned number = atomic_fetch_add(&c->done, 1) + 1;
    if (c->fail_at != 0 && number >= c->fail_at)
        return bk_err_set(err, BK_CORRUPT, "work %u", number);
    return BK_OK;
}

typedef struct {
    count_t count;
    unsigned works;
    size_t weight;
} job_t;

static bk_rc_t submit_all(bk_team_t *team, void *arg, bk_err_t *err)
{
    job_t *job = arg;
    bk_group_t group;
    bk_group_init(&group);
    job->count.caller = pthread_self();
    for (unsigned i = 0; i < job->works; i++)
        bk_team_submit(team, &group, count_work, &job->count, job->weight);
    return bk_team_wait(team, &group, err);
}

static void every_work_runs_once(void **state)
{
    static const size_t weights[] = {0, 1, 4u << 20, SIZE_MAX};
    (void)state;
    for (unsigned lanes = 0; lanes <= 20; lanes += lanes < 4 ? 1 : 8) {
        for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
            bk_err_t err = {0};
            job_t job = {.works = 500, .weight = weights[i]};
            OK(bk_team_run(lanes, submit_all, &job, &err), &err);
            assert_int_equal(atomic_load(&job.count.done), 500);
        }
    }
}

static void one_lane_does_all_in_the_caller(void **state)
{
    bk_err_t err = {0};
    job_t job = {.works = 100};
    (void)state;
    OK(bk_team_run(1, submit_all, &job, &err), &err);
    assert_int_equal(atomic_load(&job.count.by_caller), 100);
    assert_int_equal(atomic_load(&job.count.most_at_once), 1);
    job = (job_t){.works = 100};
    OK(submit_all(NULL, &job, &err), &err); /* no team at all */
    assert_int_equal(atomic_load(&job.count.by_caller), 100);
    assert_int_equal(bk_team_lanes(NULL), 1);
    assert_false(bk_team_help(NULL));
    bk_team_unref(NULL);
}

static void lanes_that_never_come_are_not_missed(void **state)
{
    bk_err_t err = {0};
    job_t job = {.works = 300};
    (void)state;
    bk_team_t *team = bk_team_new(4, 16, 1 << 20);
    assert_non_null(team);
    assert_int_equal(bk_team_lanes(team), 4);
    OK(submit_all(team, &job, &err), &err);
    assert_int_equal(atomic_load(&job.count.by_caller), 300);
    bk_team_close(team);
    bk_team_ref(team);
    bk_team_lane(team); /* late: returns at once, gives its reference back */
    bk_team_unref(team);
}

static void the_first_failure_is_kept_and_all_works_run(void **state)
{
    (void)state;
    for (unsigned lanes = 1; lanes <= 4; lanes++) {
        bk_err_t err = {0};
        job_t job = {.works = 50, .count.fail_at = 20};
        assert_int_equal(bk_team_run(lanes, submit_all, &job, &err), BK_CORRUPT);
        assert_int_equal(atomic_load(&job.count.done), 50);
        assert_int_equal(err.rc, BK_CORRUPT);
        assert_memory_equal(err.text, "work ", 5);
        if (lanes == 1)
            assert_string_equal(err.text, "work 20");
        job = (job_t){.works = 50, .count.fail_at = 1};
        assert_int_equal(bk_team_run(lanes, submit_all, &job, NULL), BK_CORRUPT);
    }
}

static void a_full_stack_makes_the_caller_work(void **state)
{
    bk_group_t group;
    bk_err_t err = {0};
    count_t count = {.caller = pthread_self()};
    (void)state;
    bk_group_init(&group);
    bk_team_t *team = bk_team_new(2, 3, 100); /* its other lane never comes */
    for (unsigned i = 0; i < 3; i++)
        bk_team_submit(team, &group, count_work, &count, 10);
    assert_int_equal(atomic_load(&count.done), 0); /* they wait */
    bk_team_submit(team, &group, count_work, &count, 10);
    assert_int_equal(atomic_load(&count.done), 1); /* too many */
    assert_true(bk_team_help(team));
    assert_int_equal(atomic_load(&count.done), 2);
    bk_team_submit(team, &group, count_work, &count, 81);
    assert_int_equal(atomic_load(&count.done), 3); /* too heavy */
    bk_team_submit(team, &group, count_work, &count, 80);
    assert_int_equal(atomic_load(&count.done), 3);
    OK(bk_team_wait(team, &group, &err), &err);
    assert_int_equal(atomic_load(&count.done), 6);
    assert_false(bk_team_help(team));
    /* Alone, even what is heavier than allowed may wait: it would never fit otherwise. */
    bk_team_submit(team, &group, count_work, &count, SIZE_MAX);
    assert_int_equal(atomic_load(&count.done), 6);
    bk_team_submit(team, &group, count_work, &count, SIZE_MAX);
    assert_int_equal(atomic_load(&count.done), 7);
    OK(bk_team_wait(team, &group, &err), &err);
    assert_int_equal(atomic_load(&count.done), 8);
    bk_team_close(team);
    bk_team_unref(team);
    team = bk_team_new(1, 3, 100); /* nobody else will ever come: at once */
    bk_team_submit(team, &group, count_work, &count, 1);
    assert_int_equal(atomic_load(&count.done), 9);
    bk_team_unref(team);
    assert_null(bk_team_new(0, 1, 1));
    assert_null(bk_team_new(1, 0, 1));
    assert_null(bk_team_new(1, SIZE_MAX, 1));
}

/* Works that bring more works, as directories bring their entries. */
typedef struct {
    bk_team_t *team;
    bk_group_t group;
    atomic_uint done;
} tree_t;

typedef struct {
    tree_t *tree;
    unsigned depth;
} node_t;

static bk_rc_t grow(void *arg, bk_err_t *err)
{
    node_t node = *(node_t *)arg;
    (void)err;
    free(arg);
    for (unsigned i = 0; i < 3 && node.depth > 0; i++) {
        node_t *child = malloc(sizeof *child);
        if (child == NULL)
            return BK_NO_MEMORY;
        *child = (node_t){.tree = node.tree, .depth = node.depth - 1};
        bk_team_submit(node.tree->team, &node.tree->group, grow, child, 100);
    }
    atomic_fetch_add(&node.tree->done, 1);
    return BK_OK;
}

static bk_rc_t grow_tree(bk_team_t *team, void *arg, bk_err_t *err)
{
    tree_t *tree = arg;
    node_t *top = malloc(sizeof *top);
    if (top == NULL)
        return BK_NO_MEMORY;
    *top = (node_t){.tree = tree, .depth = 6};
    tree->team = team;
    bk_group_init(&tree->group);
    bk_team_submit(team, &tree->group, grow, top, 100);
    return bk_team_wait(team, &tree->group, err);
}

static void works_may_bring_works(void **state)
{
    (void)state;
    for (unsigned lanes = 1; lanes <= 4; lanes++) {
        tree_t tree = {0};
        bk_err_t err = {0};
        OK(bk_team_run(lanes, grow_tree, &tree, &err), &err);
        assert_int_equal(atomic_load(&tree.done), 1093); /* 1 + 3 + 9 + ... + 729 */
    }
}

/* A work that brings another while its waiter sleeps, run by a thread that then leaves. */
typedef struct {
    bk_team_t *team;
    bk_group_t group;
    count_t count;
    atomic_bool started, waiting;
} late_t;

static bk_rc_t bring_one_more(void *arg, bk_err_t *err)
{
    late_t *late = arg;
    (void)err;
    atomic_store(&late->started, true);
    while (!atomic_load(&late->waiting))
        bk_sleep_ms(1);
    bk_sleep_ms(5); /* most likely asleep by now */
    bk_team_submit(late->team, &late->group, count_work, &late->count, 1);
    return BK_OK;
}

static void *help_once(void *arg)
{
    late_t *late = arg;
    while (!bk_team_help(late->team))
        bk_sleep_ms(1);
    return NULL;
}

static void a_waiter_takes_what_comes_while_it_sleeps(void **state)
{
    late_t late = {.count.caller = pthread_self()};
    pthread_t thread;
    bk_err_t err = {0};
    (void)state;
    late.team = bk_team_new(2, 10, 100);
    bk_group_init(&late.group);
    assert_int_equal(pthread_create(&thread, NULL, help_once, &late), 0);
    bk_team_submit(late.team, &late.group, bring_one_more, &late, 1);
    /* Only when the other thread has it, else this one would run it. */
    while (!atomic_load(&late.started))
        bk_sleep_ms(1);
    atomic_store(&late.waiting, true);
    OK(bk_team_wait(late.team, &late.group, &err), &err);
    assert_int_equal(atomic_load(&late.count.by_caller), 1);
    pthread_join(thread, NULL);
    bk_team_close(late.team);
    bk_team_unref(late.team);
}

/* Many short groups, gone as soon as they are waited for: nobody may touch one afterwards. */
static bk_rc_t many_groups(bk_team_t *team, void *arg, bk_err_t *err)
{
    count_t *count = arg;
    bk_rc_t rc = BK_OK;
    for (unsigned i = 0; i < 2000 && rc == BK_OK; i++) {
        bk_group_t *group = malloc(sizeof *group);
        if (group == NULL)
            return BK_NO_MEMORY;
        bk_group_init(group);
        for (unsigned n = 0; n < i % 5; n++)
            bk_team_submit(team, group, count_work, count, 1);
        rc = bk_team_wait(team, group, err);
        free(group);
    }
    return rc;
}

static void a_group_is_free_once_it_was_waited_for(void **state)
{
    count_t count = {0};
    bk_err_t err = {0};
    (void)state;
    OK(bk_team_run(3, many_groups, &count, &err), &err);
    assert_int_equal(atomic_load(&count.done), 2000 / 5 * 10);
}

typedef struct {
    bk_team_t *team;
    count_t *count;
    atomic_int rc;
} waiter_t;

static void *wait_for_own(void *arg)
{
    waiter_t *w = arg;
    bk_err_t err = {0};
    for (unsigned i = 0; i < 300; i++) {
        bk_group_t group;
        bk_group_init(&group);
        for (unsigned n = 0; n < 7; n++)
            bk_team_submit(w->team, &group, count_work, w->count, 1);
        if (bk_team_wait(w->team, &group, &err) != BK_OK)
            atomic_store(&w->rc, 1);
    }
    return NULL;
}

static void threads_may_wait_for_groups_of_their_own(void **state)
{
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    waiter_t waiters[THREADS];
    count_t count = {0};
    (void)state;
    bk_team_t *team = bk_team_new(THREADS, 5, 1 << 20);
    for (size_t i = 0; i < THREADS; i++) {
        waiters[i] = (waiter_t){.team = team, .count = &count};
        assert_int_equal(pthread_create(&threads[i], NULL, wait_for_own, &waiters[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(atomic_load(&waiters[i].rc), 0);
    }
    assert_int_equal(atomic_load(&count.done), THREADS * 300 * 7);
    bk_team_close(team);
    bk_team_unref(team);
}

/* Lane 0 gives the others time to fall asleep; the works take some, so that one lane is not enough. */
static bk_rc_t pause_and_submit(bk_team_t *team, void *arg, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (unsigned i = 0; i < 3 && rc == BK_OK; i++) {
        bk_sleep_ms(5);
        rc = submit_all(team, arg, err);
    }
    return rc;
}

static void sleeping_lanes_wake_up(void **state)
{
    bk_err_t err = {0};
    (void)state;
    /* On a busy machine lanes may be late; that none ever helps in 20 attempts is a bug. */
    for (unsigned attempt = 0; attempt < 20; attempt++) {
        job_t job = {.works = 40, .count.slow = true};
        OK(bk_team_run(4, pause_and_submit, &job, &err), &err);
        assert_int_equal(atomic_load(&job.count.done), 120);
        if (atomic_load(&job.count.by_caller) < 120 && atomic_load(&job.count.most_at_once) > 1)
            return;
    }
    fail();
}

/* --- watching and stopping --- */

static void the_first_reason_to_stop_stays(void **state)
{
    bk_ctl_t ctl;
    bk_err_t err = {0};
    (void)state;
    bk_ctl_init(&ctl);
    OK(bk_ctl_check(&ctl, &err), &err);
    bk_ctl_stop(&ctl, BK_INTERRUPTED);
    bk_ctl_stop(&ctl, BK_CANCELED);
    assert_int_equal(bk_ctl_check(&ctl, &err), BK_INTERRUPTED);
    assert_int_equal(err.rc, BK_INTERRUPTED);
    assert_int_equal(bk_ctl_check(&ctl, NULL), BK_INTERRUPTED);
    bk_ctl_free(&ctl);
    bk_ctl_init(&ctl);
    bk_ctl_stop(&ctl, BK_CANCELED);
    assert_int_equal(bk_ctl_check(&ctl, &err), BK_CANCELED);
    assert_string_equal(err.text, "the job was canceled");
    bk_ctl_free(&ctl);
    OK(bk_ctl_check(NULL, &err), &err);
}

static void notes_are_kept_up_to_a_number_and_counted_beyond(void **state)
{
    bk_ctl_t ctl;
    char text[5000];
    (void)state;
    bk_ctl_init(&ctl);
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    bk_ctl_note(&ctl, "cannot read %s", "a\nb\xff");
    bk_ctl_note(&ctl, "%s", text);
    for (unsigned i = 0; i < 200; i++)
        bk_ctl_note(&ctl, "note %u", i);
    assert_int_equal(ctl.notes_total, 202);
    assert_int_equal(ctl.notes_kept, BK_CTL_NOTES);
    assert_string_equal(ctl.notes[0], "cannot read a\\x0ab\\xff");
    assert_int_equal(strlen(ctl.notes[1]), 2047);
    assert_string_equal(ctl.notes[99], "note 97");
    bk_ctl_phase(&ctl, "files");
    bk_ctl_current(&ctl, text);
    assert_int_equal(strlen(ctl.current), BK_CTL_CURRENT - 1);
    bk_ctl_current(&ctl, "dir/a\tb");
    assert_string_equal(ctl.current, "dir/a\\x09b");
    bk_ctl_phase(&ctl, "commit");
    assert_string_equal(ctl.phase, "commit");
    assert_string_equal(ctl.current, "");
    bk_ctl_free(&ctl);
    bk_ctl_note(NULL, "nobody listens");
    bk_ctl_phase(NULL, "x");
    bk_ctl_current(NULL, "x");
}

static void *note_and_count(void *arg)
{
    bk_ctl_t *ctl = arg;
    for (unsigned i = 0; i < 1000; i++) {
        bk_ctl_note(ctl, "note %u", i);
        bk_ctl_current(ctl, "something");
        bk_ctl_phase(ctl, "files");
        atomic_fetch_add(&ctl->bytes_done, 3);
        bk_ctl_check(ctl, NULL);
    }
    bk_ctl_stop(ctl, BK_CANCELED);
    return NULL;
}

static void lanes_may_report_at_once(void **state)
{
    pthread_t threads[4];
    bk_ctl_t ctl;
    (void)state;
    bk_ctl_init(&ctl);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, note_and_count, &ctl), 0);
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(ctl.notes_total, 4000);
    assert_int_equal(ctl.notes_kept, BK_CTL_NOTES);
    assert_int_equal(atomic_load(&ctl.bytes_done), 12000);
    assert_int_equal(bk_ctl_check(&ctl, NULL), BK_CANCELED);
    bk_ctl_free(&ctl);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_work_runs_once),
        cmocka_unit_test(one_lane_does_all_in_the_caller),
        cmocka_unit_test(lanes_that_never_come_are_not_missed),
        cmocka_unit_test(the_first_failure_is_kept_and_all_works_run),
        cmocka_unit_test(a_full_stack_makes_the_caller_work),
        cmocka_unit_test(works_may_bring_works),
        cmocka_unit_test(a_waiter_takes_what_comes_while_it_sleeps),
        cmocka_unit_test(a_group_is_free_once_it_was_waited_for),
        cmocka_unit_test(threads_may_wait_for_groups_of_their_own),
        cmocka_unit_test(sleeping_lanes_wake_up),
        cmocka_unit_test(the_first_reason_to_stop_stays),
        cmocka_unit_test(notes_are_kept_up_to_a_number_and_counted_beyond),
        cmocka_unit_test(lanes_may_report_at_once),
    };
    return cmocka_run_group_tests_name("base/team", tests, NULL, NULL);
}
