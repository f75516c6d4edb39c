/*
 * t/unit/files/changes_test.c: the journal of changes is complete only when it is.
 */
#include "unit/testing.h"

#include "base/clock.h"
#include "files/changes.h"

static const bk_changes_base_t first = {.backup = "full_1", .fingerprint = 7, .dirs = 3};
static const bk_changes_base_t second = {.backup = "incremental_2", .fingerprint = 7};

static bool take(bk_changes_t *c, const bk_dirset_t **dirty)
{
    bk_changes_base_t base;
    return bk_changes_take(c, dirty, &base);
}

static void done(bk_changes_t *c, const bk_changes_base_t *base, const char *again)
{
    bk_dirset_t set;
    bk_dirset_init(&set);
    if (again != NULL)
        bk_dirset_add(&set, again, false);
    bk_changes_done(c, base, &set);
}

/* Watched, and with a first backup. */
static bk_changes_t *begun(void)
{
    const bk_dirset_t *dirty;
    bk_changes_t *c = bk_changes_new();
    bk_changes_tell(c, BK_CHANGES_WATCHED, "");
    assert_false(take(c, &dirty));
    done(c, &first, NULL);
    return c;
}

static void it_is_complete_after_a_walk_that_was_watched(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_base_t base;
    bk_changes_t *c = bk_changes_new();
    bk_changes_tell(c, BK_CHANGES_DIRTY, "early");
    assert_false(take(c, &dirty));
    done(c, &first, NULL); /* a walk, but not everything was watched yet */
    bk_changes_tell(c, BK_CHANGES_WATCHED, "");
    assert_false(take(c, &dirty));
    done(c, &first, NULL);
    bk_changes_tell(c, BK_CHANGES_DIRTY, "a");
    bk_changes_state_t now;
    bk_changes_state(c, &now);
    assert_true(now.watched && now.complete && now.dirty == 1 && now.last > 0);
    assert_true(bk_changes_take(c, &dirty, &base));
    assert_string_equal(base.backup, "full_1");
    assert_int_equal(base.dirs, 3);
    assert_int_equal(dirty->marked, 1);
    assert_true(bk_dirset_has(dirty, "a"));
    bk_changes_free(c);
}

static void what_comes_during_a_backup_belongs_to_the_next(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_t *c = begun();
    bk_changes_tell(c, BK_CHANGES_DIRTY, "a");
    assert_true(take(c, &dirty));
    bk_changes_tell(c, BK_CHANGES_DIRTY, "b");
    assert_false(bk_dirset_has(dirty, "b"));
    done(c, &second, "again");
    assert_true(take(c, &dirty));
    assert_false(bk_dirset_has(dirty, "a"));
    assert_true(bk_dirset_has(dirty, "b") && bk_dirset_has(dirty, "again"));
    /* It fails: all of it is there again, with what came meanwhile. */
    bk_changes_tell(c, BK_CHANGES_TREE, "c");
    bk_changes_give_back(c);
    assert_true(take(c, &dirty));
    assert_true(bk_dirset_has(dirty, "b") && bk_dirset_has(dirty, "c/below"));
    done(c, &second, NULL);
    assert_true(take(c, &dirty));
    assert_true(bk_dirset_empty(dirty));
    bk_changes_free(c);
}

static void lost_events_make_it_incomplete_until_a_walk_after_them(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_t *c = begun();
    bk_changes_tell(c, BK_CHANGES_LOST, "");
    assert_false(take(c, &dirty));
    bk_changes_tell(c, BK_CHANGES_WATCHED, "");
    done(c, &second, NULL); /* this walk began before everything was watched again */
    assert_false(take(c, &dirty));
    done(c, &second, NULL);
    assert_true(take(c, &dirty));
    bk_changes_tell(c, BK_CHANGES_LOST, ""); /* during a backup */
    bk_changes_tell(c, BK_CHANGES_WATCHED, "");
    done(c, &second, NULL);
    assert_false(take(c, &dirty));
    bk_changes_give_back(c); /* the walk fails */
    assert_false(take(c, &dirty));
    done(c, &second, NULL);
    assert_true(take(c, &dirty));
    bk_changes_free(c);
}

static void what_is_not_watched_is_always_in_it(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_t *c = begun();
    bk_changes_tell(c, BK_CHANGES_LIMIT, "deep");
    for (unsigned i = 0; i < 3; i++) {
        assert_true(take(c, &dirty));
        assert_true(bk_dirset_has(dirty, "deep/er"));
        assert_int_equal(dirty->marked, 1);
        done(c, &second, NULL);
    }
    bk_changes_tell(c, BK_CHANGES_LOST, "");
    bk_changes_tell(c, BK_CHANGES_WATCHED, "");
    take(c, &dirty);
    done(c, &second, NULL);
    assert_true(take(c, &dirty));
    assert_true(bk_dirset_empty(dirty));
    bk_changes_free(c);
}

static bk_rc_t hand_over(bk_changes_t *from, bk_changes_t *to, int64_t until, size_t cut)
{
    bk_buf_t bytes;
    bk_buf_init(&bytes, 1 << 20);
    bk_changes_encode(from, &bytes);
    bk_cur_t cur = bk_cur(bytes.data, bytes.len - cut);
    bk_rc_t rc = bk_changes_resume(to, &cur, until, NULL);
    bk_buf_free(&bytes);
    return rc;
}

static void a_successor_that_watched_already_goes_on(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_base_t base;
    bk_changes_t *old = begun(), *new = bk_changes_new();
    bk_changes_tell(old, BK_CHANGES_DIRTY, "a");
    take(old, &dirty); /* a backup that is cut off */
    bk_changes_tell(old, BK_CHANGES_TREE, "b/c");
    bk_changes_tell(new, BK_CHANGES_WATCHED, "");
    bk_changes_tell(new, BK_CHANGES_DIRTY, "d");
    assert_int_equal(hand_over(old, new, bk_mono(), 0), BK_OK);
    assert_true(bk_changes_take(new, &dirty, &base));
    assert_string_equal(base.backup, "full_1");
    assert_int_equal(base.dirs, 3);
    assert_true(bk_dirset_has(dirty, "a") && bk_dirset_has(dirty, "b/c/x") &&
                bk_dirset_has(dirty, "d"));
    assert_int_equal(dirty->marked, 3);
    bk_changes_free(old);
    bk_changes_free(new);
}

static void a_successor_that_came_too_late_walks(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_t *old = begun(), *new = bk_changes_new();
    int64_t until = bk_mono();
    assert_int_equal(hand_over(old, new, until, 0), BK_OK); /* not watched at all */
    assert_false(take(new, &dirty));
    bk_changes_give_back(new);
    bk_sleep_ms(2);
    bk_changes_tell(new, BK_CHANGES_WATCHED, "");
    assert_int_equal(hand_over(old, new, until, 0), BK_OK);
    assert_false(take(new, &dirty));
    bk_changes_give_back(new);
    /* Nor does it help when the old one did not know everything. */
    bk_changes_tell(old, BK_CHANGES_LOST, "");
    assert_int_equal(hand_over(old, new, bk_mono(), 0), BK_OK);
    assert_false(take(new, &dirty));
    bk_changes_free(old);
    bk_changes_free(new);
}

static void a_journal_that_is_cut_off_is_not_believed(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_changes_t *old = begun(), *new = bk_changes_new();
    bk_changes_tell(old, BK_CHANGES_DIRTY, "some/where");
    bk_changes_tell(new, BK_CHANGES_WATCHED, "");
    for (size_t cut = 1; cut < 60; cut++)
        assert_int_equal(hand_over(old, new, bk_mono(), cut), BK_CORRUPT);
    assert_false(take(new, &dirty));
    bk_changes_free(old);
    bk_changes_free(new);
}

static void only_what_nobody_told_is_unexplained(void **state)
{
    (void)state;
    const bk_dirset_t *dirty;
    bk_dirset_t where, rest;
    bk_changes_t *c = begun();
    bk_dirset_init(&where);
    bk_dirset_init(&rest);
    bk_changes_tell(c, BK_CHANGES_DIRTY, "before");
    take(c, &dirty);
    bk_changes_tell(c, BK_CHANGES_DIRTY, "during");
    bk_dirset_add(&where, "before", false);
    bk_dirset_add(&where, "during", false);
    bk_dirset_add(&where, "missed", false);
    bk_changes_explain(c, &where, &rest);
    assert_int_equal(rest.marked, 1);
    assert_true(bk_dirset_has(&rest, "missed"));
    bk_dirset_free(&where);
    bk_dirset_free(&rest);
    bk_changes_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_complete_after_a_walk_that_was_watched),
        cmocka_unit_test(what_comes_during_a_backup_belongs_to_the_next),
        cmocka_unit_test(lost_events_make_it_incomplete_until_a_walk_after_them),
        cmocka_unit_test(what_is_not_watched_is_always_in_it),
        cmocka_unit_test(a_successor_that_watched_already_goes_on),
        cmocka_unit_test(a_successor_that_came_too_late_walks),
        cmocka_unit_test(a_journal_that_is_cut_off_is_not_believed),
        cmocka_unit_test(only_what_nobody_told_is_unexplained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
