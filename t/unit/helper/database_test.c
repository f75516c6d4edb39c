/*
 * t/unit/helper/database_test.c: SQLite in a process without any right to a database opens it through the helper: with
 * and without companions, with a hot journal, below closed directories; and nothing else in the process is touched.
 */
#include "unit/helper/agent.h"

#include <grp.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "base/str.h"
#include "sqlite/connect.h"
#include "sqlite/opening.h"
#include "sqlite/source.h"

#define OWNER 12345

typedef struct {
    char *dir;
    char path[400], below[420];
    agent_t agent;
    bk_helper_t *client;
    bk_err_t err;
} db_t;

static void become(uid_t uid)
{
    assert_int_equal(setegid(uid), 0);
    assert_int_equal(seteuid(uid), 0);
}

static void become_root(void)
{
    assert_int_equal(seteuid(0), 0);
    assert_int_equal(setegid(0), 0);
}

static void run_sql(const char *path, const char *sql)
{
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    char *why = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK)
        fail_msg("%s: %s", sql, why);
    sqlite3_close(db);
}

/* As its owner, in a process of its own; kill: it dies before its transaction ends. */
static void owner_does(const db_t *d, const char *sql, bool die)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        sqlite3 *db = NULL;
        umask(0027);
        if (seteuid(0) != 0 || setgroups(0, NULL) != 0 || setgid(OWNER) != 0 ||
            setuid(OWNER) != 0 || sqlite3_open(d->path, &db) != SQLITE_OK ||
            sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
            _exit(1);
        if (die)
            kill(getpid(), SIGKILL);
        sqlite3_close(db);
        _exit(0);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(die ? WIFSIGNALED(status) : status == 0);
}

static int set_up(void **state)
{
    char dir[400];
    db_t *d = calloc(1, sizeof *d);
    *state = d;
    if (geteuid() != 0)
        return 0;
    d->dir = test_dir();
    assert_int_equal(chmod(d->dir, 0755), 0);
    snprintf(dir, sizeof dir, "%s/closed", d->dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(chown(dir, OWNER, OWNER), 0);
    snprintf(dir, sizeof dir, "%s/closed/data", d->dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(chown(dir, OWNER, OWNER), 0);
    snprintf(d->path, sizeof d->path, "%s/app.db", dir);
    owner_does(d, "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)", false);
    snprintf(d->below, sizeof d->below, "%s/below", dir);
    assert_int_equal(mkdir(d->below, 0700), 0);
    bk_fmt(d->below, sizeof d->below, "%s/below/app.db", dir);
    run_sql(d->below, "CREATE TABLE t(a)");
    const uint32_t may =
        BK_WIRE_DATABASE | BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE | BK_WIRE_MAY_WATCH;
    agent_root_t list[] = {{d->path, may}, {d->below, may}};
    d->agent = agent_start(list, 2);
    OK(bk_helper_new(d->agent.broker, &d->client, &d->err), &d->err);
    assert_int_equal(setgroups(0, NULL), 0);
    become(NOBODY);
    return 0;
}

static int tear_down(void **state)
{
    db_t *d = *state;
    if (d->dir != NULL) {
        become_root();
        bk_db_unhelp(d->path);
        bk_db_unhelp(d->below);
        bk_helper_free(d->client);
        agent_stop(&d->agent);
        test_dir_remove(d->dir);
    }
    free(d);
    return 0;
}

static void help(db_t *d)
{
    OK(bk_db_help(d->path, d->client, &d->err), &d->err);
    assert_true(bk_db_is_helped(d->path));
}

/* The number of rows of t, through a connection of ours; or the failure. */
static bk_rc_t count_rows(db_t *d, int *rows)
{
    char text[32] = "";
    bk_db_connection_t c;
    bk_err_clear(&d->err);
    bk_rc_t rc = bk_db_connect(&c, d->path, 1000, NULL, &d->err);
    if (rc == BK_OK)
        rc = bk_db_query(&c, "SELECT count(*) FROM t", text, sizeof text, &d->err);
    bk_db_disconnect(&c);
    *rows = (int)strtol(text, NULL, 10);
    return rc;
}

static void assert_rows(db_t *d, int wanted)
{
    int rows = -1;
    OK(count_rows(d, &rows), &d->err);
    assert_int_equal(rows, wanted);
}

static void assert_owner(const db_t *d, const char *end)
{
    char path[420];
    struct stat st;
    bk_fmt(path, sizeof path, "%s%s", d->path, end);
    become_root();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_uid, OWNER);
    assert_int_equal(st.st_gid, OWNER);
    assert_int_equal(st.st_mode & 0777, 0640);
    become(NOBODY);
}

static void a_closed_database_is_read_and_pinned(void **state)
{
    db_t *d = *state;
    bk_db_source_t *source;
    if (d->dir == NULL)
        SKIP_TEST();
    help(d);
    assert_rows(d, 2);
    OK(bk_db_source_open(d->path, 1000, NULL, &source, &d->err), &d->err);
    assert_string_equal(bk_db_source_info(source)->journal, "wal");
    assert_int_equal(bk_db_source_info(source)->uid, OWNER);
    assert_owner(d, "-wal");
    assert_owner(d, "-shm");
    owner_does(d, "INSERT INTO t VALUES(3)", false);
    bk_db_source_close(source);
    assert_rows(d, 3);
}

static void it_is_written_with_its_companions_being_the_owners(void **state)
{
    db_t *d = *state;
    bk_db_connection_t c;
    if (d->dir == NULL)
        SKIP_TEST();
    help(d);
    OK(bk_db_connect(&c, d->path, 1000, NULL, &d->err), &d->err);
    OK(bk_db_query(&c, "INSERT INTO t VALUES(7)", NULL, 0, &d->err), &d->err);
    assert_owner(d, "-wal");
    assert_owner(d, "-shm");
    owner_does(d, "INSERT INTO t VALUES(8)", false);
    bk_db_disconnect(&c);
    assert_rows(d, 4);
    owner_does(d, "DELETE FROM t", false);
}

static void a_hot_journal_is_rolled_back(void **state)
{
    db_t *d = *state;
    if (d->dir == NULL)
        SKIP_TEST();
    owner_does(d, "PRAGMA journal_mode=DELETE", false);
    owner_does(d,
               "PRAGMA cache_size=2; BEGIN; WITH RECURSIVE c(n) AS (VALUES(1) UNION ALL SELECT n+1 "
               "FROM c WHERE n<200) INSERT INTO t SELECT hex(randomblob(900)) FROM c",
               true);
    help(d);
    assert_rows(d, 2);
    assert_rows(d, 2);
}

static void without_help_the_message_says_who_could(void **state)
{
    db_t *d = *state;
    int rows;
    if (d->dir == NULL)
        SKIP_TEST();
    assert_int_equal(count_rows(d, &rows), BK_DENIED);
    assert_non_null(strstr(d->err.text, "backup_helper"));
    help(d);
    assert_rows(d, 2);
    bk_db_unhelp(d->path);
    assert_int_equal(count_rows(d, &rows), BK_DENIED);
}

static void a_helper_that_is_gone_is_a_missing_right(void **state)
{
    db_t *d = *state;
    int rows;
    if (d->dir == NULL)
        SKIP_TEST();
    help(d);
    become_root();
    agent_stop(&d->agent);
    d->agent = agent_start(&(agent_root_t){"/nonexistent", BK_WIRE_MAY_READ}, 1);
    become(NOBODY);
    assert_int_equal(count_rows(d, &rows), BK_DENIED);
}

static void other_files_are_none_of_its_business(void **state)
{
    db_t *d = *state;
    char path[420];
    sqlite3 *db = NULL;
    struct stat st;
    if (d->dir == NULL)
        SKIP_TEST();
    help(d);
    bk_fmt(path, sizeof path, "%s/closed/data/other.db", d->dir);
    become_root();
    run_sql(path, "CREATE TABLE t(a)");
    assert_int_equal(chmod(path, 0600), 0);
    become(NOBODY);
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_CANTOPEN);
    sqlite3_close(db);
    assert_int_equal(bk_db_stat(path, &st), -1);
    assert_int_equal(errno, EACCES);
    bk_fmt(path, sizeof path, "%s-walx", d->path);
    assert_int_equal(bk_db_open_file(path), -1);
    /* Where own rights do, nothing changes. */
    char own[] = "/tmp/ngx-backup-own.XXXXXX";
    int fd = mkstemp(own);
    assert_true(fd >= 0);
    close(fd);
    run_sql(own, "CREATE TABLE t(a)");
    unlink(own);
}

/* The directory of one is above the other. */
static void of_databases_below_each_other_the_nearest_answers(void **state)
{
    db_t *d = *state;
    char dir[420], real[420];
    struct stat st, wanted;
    if (d->dir == NULL)
        SKIP_TEST();
    OK(bk_db_help(d->below, d->client, &d->err), &d->err);
    help(d);
    bk_fmt(dir, sizeof dir, "%s/closed/data", d->dir);
    become_root();
    assert_int_equal(stat(dir, &wanted), 0);
    become(NOBODY);
    assert_int_equal(bk_db_stat(dir, &st), 0);
    assert_int_equal(st.st_ino, wanted.st_ino);
    assert_int_equal(st.st_mode, wanted.st_mode);
    bk_fmt(real, sizeof real, "%s/closed/data/below", d->dir);
    assert_int_equal(bk_db_stat(real, &st), 0);
    assert_true(st.st_ino != wanted.st_ino && S_ISDIR(st.st_mode));
    assert_rows(d, 2);
}

typedef struct {
    const char *path;
    atomic_bool stop, denied;
} asking_t;

static void *ask_all_the_time(void *arg)
{
    asking_t *asking = arg;
    struct stat st;
    while (!atomic_load(&asking->stop))
        if (bk_db_stat(asking->path, &st) != 0)
            atomic_store(&asking->denied, true);
    return NULL;
}

/* As after a reload, while a job reads. */
static void another_client_takes_over_without_a_moment_in_between(void **state)
{
    db_t *d = *state;
    bk_helper_t *other;
    pthread_t thread;
    if (d->dir == NULL)
        SKIP_TEST();
    asking_t asking = {.path = d->path};
    become_root();
    OK(bk_helper_new(d->agent.broker, &other, &d->err), &d->err);
    become(NOBODY);
    help(d);
    assert_int_equal(pthread_create(&thread, NULL, ask_all_the_time, &asking), 0);
    for (unsigned i = 0; i < 200; i++)
        OK(bk_db_help(d->path, i % 2 == 0 ? other : d->client, &d->err), &d->err);
    atomic_store(&asking.stop, true);
    pthread_join(thread, NULL);
    assert_false(atomic_load(&asking.denied));
    assert_rows(d, 2);
    bk_helper_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_closed_database_is_read_and_pinned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(it_is_written_with_its_companions_being_the_owners, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_hot_journal_is_rolled_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_help_the_message_says_who_could, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_helper_that_is_gone_is_a_missing_right, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(other_files_are_none_of_its_business, set_up, tear_down),
        cmocka_unit_test_setup_teardown(of_databases_below_each_other_the_nearest_answers, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(another_client_takes_over_without_a_moment_in_between,
                                        set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
