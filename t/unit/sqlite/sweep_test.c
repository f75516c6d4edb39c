/*
 * t/unit/sqlite/sweep_test.c: all pages of a database are read in many short pins while it is
 * written to, and what is known of them in the end is what is there.
 */
#include <sys/prctl.h>

#include "unit/sqlite/capture_testing.h"

#define ROWS    12000u
#define WRITERS 3u

static void make_database(box_t *box, uint32_t page_size)
{
    char text[320];
    assert_true(chaos_make(box->db, "wal", page_size, "none"));
    sqlite3 *db = open_db(box->db);
    snprintf(text, sizeof text,
             "CREATE TABLE big(id INTEGER PRIMARY KEY, v);"
             "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %u)"
             "INSERT INTO big SELECT i, randomblob(1000) FROM n;"
             "PRAGMA wal_checkpoint(TRUNCATE)",
             ROWS);
    run_sql(db, text);
    sqlite3_close(db);
    box->sweep = 1;
    box->pin = 1; /* which is a MiB or two */
}

/* Another page with each commit, anywhere. */
static pid_t scatter(const box_t *box)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sqlite3 *db = open_db(box->db);
    sqlite3_busy_timeout(db, 20000);
    sqlite3_exec(db, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
    for (uint64_t seed = 1;; seed = seed * 6364136223846793005u + 1442695040888963407u) {
        char text[80];
        snprintf(text, sizeof text, "UPDATE big SET v = randomblob(1000) WHERE id = %u",
                 1 + (unsigned)(seed >> 33) % ROWS);
        if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
            _exit(1);
        usleep(300);
    }
}

static void forget_all(const box_t *box)
{
    struct dirent **names;
    int count = scandir(box->log, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", box->log, names[i]->d_name);
        unlink(path);
        free(names[i]);
    }
    free(names);
}

/* A stopped writer has committed what it has, and keeps nobody from reading. */
static void assert_known(box_t *box, const pid_t pids[WRITERS])
{
    char text[64];
    for (unsigned i = 0; i < WRITERS; i++) {
        char state = 0;
        assert_int_equal(kill(pids[i], SIGSTOP), 0);
        while (state != 'T') {
            snprintf(text, sizeof text, "/proc/%d/stat", (int)pids[i]);
            FILE *file = fopen(text, "re");
            assert_non_null(file);
            assert_int_equal(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
            fclose(file);
        }
    }
    step(box);
    take_base(box);
    assert_int_equal(state_of(box).page_count, box->pages);
    assert_true(state_of(box).digest == box->digest);
    for (unsigned i = 0; i < WRITERS; i++)
        kill(pids[i], SIGCONT);
}

static void first_reads(box_t *box, uint32_t page_size)
{
    oracle_t oracle = {.number = 0};
    make_database(box, page_size);
    pid_t pids[WRITERS] = {writer(box, &oracle, 0, 20, 0), writer(box, &oracle, 1, 1000, 0),
                           scatter(box)};
    for (unsigned round = 0; round < 12; round++) {
        forget_all(box);
        start(box);
        assert_true(state_of(box).new_epoch);
        assert_known(box, pids);
        stop(box);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        kill_hard(pids[i]);
}

static void a_first_read_knows_what_is_written_meanwhile(void **state)
{
    first_reads(*state, 4096);
}

static void so_it_does_with_small_pages(void **state)
{
    first_reads(*state, 512);
}

static void so_it_does_with_the_largest(void **state)
{
    first_reads(*state, 65536);
}

/* What nobody saw, found while more is written. */
static void a_gap_ends_with_a_commit(void **state)
{
    box_t *box = *state;
    oracle_t oracle = {.number = 0};
    make_database(box, 4096);
    take_base(box);
    start(box);
    stop(box);
    pid_t pids[2] = {writer(box, &oracle, 0, 1, 0), writer(box, &oracle, 1, 1000, 0)};
    for (unsigned round = 0; round < 12; round++) {
        usleep(20000);
        start(box);
        step(box);
        assert_false(state_of(box).new_epoch);
        stop(box);
    }
    start(box);
    for (unsigned i = 0; i < 2; i++)
        kill_hard(pids[i]);
    step(box);
    replay(box, judge, &oracle);
    assert_is_now(box);
    assert_true(box->gaps > 0);
}

static void a_large_one_need_not_be_written_to(void **state)
{
    box_t *box = *state;
    make_database(box, 1024);
    sqlite3 *db = open_db(box->db);
    start(box);
    take_base(box);
    assert_true(state_of(box).digest == box->digest);
    stop(box);
    forget_all(box);
    start(box);
    run_sql(db, "DELETE FROM big; VACUUM; INSERT INTO big VALUES(1, zeroblob(3000000))");
    step(box);
    take_base(box);
    assert_int_equal(state_of(box).page_count, box->pages);
    assert_true(state_of(box).digest == box->digest);
    sqlite3_close(db);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_first_read_knows_what_is_written_meanwhile),
        T(so_it_does_with_small_pages),
        T(so_it_does_with_the_largest),
        T(a_gap_ends_with_a_commit),
        T(a_large_one_need_not_be_written_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
