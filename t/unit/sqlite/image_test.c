/*
 * Behaviours: an image taken while applications write is the database after one commit: it holds every commit that was
 * acknowledged before the instant it names, and nothing that was not begun before the backup ended; writers never see an
 * error; writers killed in the middle of something change nothing about that.  Every journal mode, page size and auto_vacuum.
 */
#include "unit/sqlite/sqlite_testing.h"

#define ROUNDS  5
#define WRITERS 2

typedef struct {
    const char *journal;
    int page_size;
    const char *auto_vacuum;
    int autocheckpoint;
} kind_t;

typedef struct {
    fixture_t f;
    char path[300], image[300], log_of[ROUNDS * WRITERS][300];
    const char *logs[ROUNDS * WRITERS];
    size_t count;
    pid_t writers[WRITERS];
} world_t;

static void start_writers(world_t *w, const kind_t *kind, uint64_t seed)
{
    for (size_t i = 0; i < WRITERS; i++, w->count++) {
        char name[40];
        snprintf(name, sizeof name, "log-%zu", w->count);
        w->logs[w->count] = file_in(&w->f, name, w->log_of[w->count]);
        chaos_t chaos = {.path = w->path,
                         .log = w->logs[w->count],
                         .journal = kind->journal,
                         .seed = seed * 100 + i,
                         .autocheckpoint = kind->autocheckpoint};
        w->writers[i] = fork();
        if (w->writers[i] == 0)
            _exit(chaos_run(&chaos) ? 0 : 1);
    }
}

static void stop_writers(world_t *w, bool hard)
{
    for (size_t i = 0; i < WRITERS; i++) {
        int status;
        if (w->writers[i] == 0)
            continue;
        kill(w->writers[i], hard ? SIGKILL : SIGTERM);
        assert_int_equal(waitpid(w->writers[i], &status, 0), w->writers[i]);
        if (!hard)
            assert_int_equal(status, 0);
        w->writers[i] = 0;
    }
}

/* Each log has grown: the writers are at work. */
static void wait_for_commits(const world_t *w, off_t bytes)
{
    for (int tries = 0; tries < 3000; tries++) {
        off_t sum = 0;
        struct stat st;
        for (size_t i = w->count - WRITERS; i < w->count; i++)
            sum += stat(w->logs[i], &st) == 0 ? st.st_size : 0;
        if (sum >= bytes)
            return;
        bk_sleep_ms(2);
    }
    fail_msg("the writers do not write");
}

static void judge(world_t *w, bk_snapshot_db_t *db, int64_t end)
{
    int64_t number = 0;
    uint64_t digest = 0;
    OK(materialise(&w->f, db, w->image), &w->f.err);
    sqlite3 *image = open_db(w->image);
    assert_true(chaos_content(image, &number, &digest));
    const char *wrong = chaos_judge(w->logs, w->count, number, digest, db->instant, end);
    if (wrong != NULL)
        fail_msg("commit %ld: %s", (long)number, wrong);
    sqlite3_close(image);
    unlink(w->image);
}

static void images_under_writers(const kind_t *kind)
{
    world_t w = {0};
    fixture_start(&w.f, true);
    file_in(&w.f, "app.db", w.path);
    file_in(&w.f, "image.db", w.image);
    assert_true(chaos_make(w.path, kind->journal, kind->page_size, kind->auto_vacuum));
    for (int round = 0; round < ROUNDS; round++) {
        bk_snapshot_db_t db;
        char id[64];
        uint64_t seed = (uint64_t)bk_mono();
        snprintf(id, sizeof id, "full_%d", round);
        start_writers(&w, kind, seed);
        wait_for_commits(&w, 500 + (off_t)(seed % 5000));
        /* Some are dead before the backup begins, in the middle of whatever they did. */
        if (round % 3 == 1)
            stop_writers(&w, true);
        dump(&w.f, w.path, id, &db);
        int64_t end = bk_now();
        stop_writers(&w, round % 3 == 2);
        /* Which of the rollback modes it is, only the application's own connection knows. */
        assert_string_equal(db.journal, strcmp(kind->journal, "wal") == 0 ? "wal" : "delete");
        assert_int_equal(db.page_size, kind->page_size);
        judge(&w, &db, end);
        free_db(&db);
    }
    fixture_end(&w.f);
}

static void wal_with_small_checkpoints(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"wal", 4096, "none", 20});
}

static void wal_that_grows(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"wal", 4096, "none", 0});
}

static void wal_512_auto_vacuum(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"wal", 512, "full", 1000});
}

static void wal_65536_incremental_vacuum(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"wal", 65536, "incremental", 5});
}

static void journal_delete(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"delete", 4096, "none", 0});
}

static void journal_truncate_512(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"truncate", 512, "full", 0});
}

static void journal_persist_65536(void **state)
{
    (void)state;
    images_under_writers(&(kind_t){"persist", 65536, "none", 0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wal_with_small_checkpoints),
        cmocka_unit_test(wal_that_grows),
        cmocka_unit_test(wal_512_auto_vacuum),
        cmocka_unit_test(wal_65536_incremental_vacuum),
        cmocka_unit_test(journal_delete),
        cmocka_unit_test(journal_truncate_512),
        cmocka_unit_test(journal_persist_65536),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
