/*
 * t/unit/files/looking_test.c: a file that became a database in use between the look and the
 * opening is not read, and closing what was opened drops none of its locks.
 */
#include "unit/files/files_testing.h"

#include "base/attached.h"
#include "files/looking.h"

static void what_became_a_database_is_not_read(void **state)
{
    world_t *w = *state;
    bk_looker_t looker;
    bk_listing_t names;
    bk_view_t view;
    bk_view_file_t file;
    struct stat st;
    size_t first = 0, opened;
    put_text(at(w, "app.db"), "content");
    assert_int_equal(stat(at(w, "app.db"), &st), 0);
    OK(bk_looker_init(&looker, w->source, NULL, NULL, &w->err), &w->err);
    int dir = open(w->source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(bk_listing_read(dir, &names), 0);
    bk_view_begin(&view, &looker, "", dir, &names);
    bk_view_open(&view, &first, 1, false, &file, &opened);
    assert_true(file.fd >= 0);
    /* As long as it is being read, SQLite does not get it. */
    assert_int_equal(bk_attached_add(at(w, "app.db"), &st, stat, &w->err), BK_BUSY);
    bk_view_close(&file);
    OK(bk_attached_add(at(w, "app.db"), &st, stat, &w->err), &w->err);
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int database = open(at(w, "app.db"), O_RDWR | O_CLOEXEC);
    assert_int_equal(fcntl(database, F_SETLK, &lock), 0);
    bk_view_open(&view, &first, 1, false, &file, &opened);
    assert_int_equal(file.fd, -1);
    assert_int_equal(file.error, BK_LOOK_USED);
    bk_view_close(&file);
    assert_true(test_locked(at(w, "app.db")));
    close(database);
    bk_attached_remove(st.st_dev, st.st_ino);
    bk_view_end(&view);
    bk_listing_free(&names);
    close(dir);
    bk_looker_free(&looker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_became_a_database_is_not_read, world_set_up,
                                        world_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
