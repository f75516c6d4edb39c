/*
 * Behaviours: what a pin shows does not change whatever applications do meanwhile; every obstacle (rights, locks, links,
 * damage, nothing there) has an error that says what to do; a backup leaves beside the database what it found there; the
 * process knows which files it must not open itself.
 */
#include <pthread.h>
#include <pwd.h>

#include "base/attached.h"
#include "sqlite/source.h"
#include "unit/sqlite/sqlite_testing.h"

static bk_db_source_t *open_source(fixture_t *f, const char *path)
{
    bk_db_source_t *source;
    OK(bk_db_source_open(path, 20000, &f->ctl, &source, &f->err), &f->err);
    return source;
}

/* The error of a source that does not open; it must leave nothing behind. */
static bk_rc_t refused(fixture_t *f, const char *path, unsigned busy_ms)
{
    bk_db_source_t *source;
    bk_rc_t rc = bk_db_source_open(path, busy_ms, &f->ctl, &source, &f->err);
    assert_null(source);
    assert_true(rc != BK_OK);
    assert_int_equal(rc, f->err.rc);
    return rc;
}

static void assert_says(const fixture_t *f, const char *text)
{
    if (strstr(f->err.text, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", f->err.text, text);
}

static uint64_t digest_of(fixture_t *f, bk_db_source_t *source)
{
    const bk_db_info_t *info = bk_db_source_info(source);
    uint64_t digest = 0;
    uint8_t *pages = malloc(16 * (size_t)info->page_size);
    for (uint64_t first = 1; first <= info->page_count; first += 16) {
        unsigned n = info->page_count - first < 16 ? (unsigned)(info->page_count - first + 1) : 16;
        OK(bk_db_source_read(source, first, n, pages, &f->err), &f->err);
        for (unsigned i = 0; i < n; i++)
            digest ^=
                bk_db_page_hash(first + i, pages + (size_t)i * info->page_size, info->page_size);
    }
    free(pages);
    return digest;
}

static void make_wal(const char *path)
{
    assert_true(chaos_make(path, "wal", 4096, "none"));
}

/* --- what does not move --- */

static void write_much(const char *path)
{
    static const char log[] = "/dev/null";
    chaos_t chaos = {
        .path = path, .log = log, .seed = (uint64_t)bk_mono(), .autocheckpoint = 5, .commits = 60};
    pid_t pid = fork();
    int status;
    if (pid == 0)
        _exit(chaos_run(&chaos) ? 0 : 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void assert_stays(fixture_t *f, const char *path, uint64_t want_frames_over)
{
    bk_db_source_t *source = open_source(f, path);
    uint64_t before = digest_of(f, source);
    assert_true(bk_db_source_info(source)->wal_frames >= want_frames_over);
    for (int i = 0; i < 3; i++) {
        write_much(path);
        assert_int_equal(digest_of(f, source), before);
    }
    bk_db_source_close(source);
    source = open_source(f, path);
    assert_true(digest_of(f, source) != before);
    bk_db_source_close(source);
}

static void an_older_reader(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "BEGIN");
    query(db, "SELECT n FROM head");
}

static void uncheckpointed(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA wal_autocheckpoint=0; UPDATE head SET n=n+1;"
                "INSERT INTO t(v, filler) SELECT 1, randomblob(2000) FROM "
                "json_each('[1,2,3,4,5,6,7,8,9,10]')");
}

static void a_pin_shows_one_state(void **state)
{
    fixture_t f;
    char path[300];
    (void)state;
    fixture_start(&f, false);
    file_in(&f, "app.db", path);
    make_wal(path);
    /* Nothing in the log: the file alone. */
    assert_stays(&f, path, 0);
    /* Frames that are in no file yet. */
    kill_hard(hold(uncheckpointed, path));
    assert_stays(&f, path, 1);
    /* A log that is copied in part: an older reader holds the checkpoint up. */
    pid_t reader = hold(an_older_reader, path);
    write_much(path);
    assert_stays(&f, path, 1);
    kill_hard(reader);
    fixture_end(&f);
}

typedef struct {
    bk_db_source_t *source;
    uint64_t digest;
} reading_t;

static bk_rc_t read_all(void *arg, bk_err_t *err)
{
    reading_t *reading = arg;
    const bk_db_info_t *info = bk_db_source_info(reading->source);
    uint8_t *page = malloc(info->page_size);
    bk_rc_t rc = BK_OK;
    for (uint64_t n = 1; n <= info->page_count && rc == BK_OK; n++) {
        rc = bk_db_source_read(reading->source, n, 1, page, err);
        reading->digest ^= bk_db_page_hash(n, page, info->page_size);
    }
    free(page);
    return rc;
}

static bk_rc_t read_in_lanes(bk_team_t *team, void *arg, bk_err_t *err)
{
    reading_t *readings = arg;
    bk_group_t group;
    bk_group_init(&group);
    for (int i = 0; i < 8; i++)
        bk_team_submit(team, &group, read_all, &readings[i], 1);
    return bk_team_wait(team, &group, err);
}

static void lanes_read_at_once(void **state)
{
    fixture_t f;
    char path[300];
    reading_t readings[8] = {0};
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    kill_hard(hold(uncheckpointed, path));
    bk_db_source_t *source = open_source(&f, path);
    for (int i = 0; i < 8; i++)
        readings[i].source = source;
    OK(bk_team_run(4, read_in_lanes, readings, &f.err), &f.err);
    for (int i = 0; i < 8; i++)
        assert_int_equal(readings[i].digest, digest_of(&f, source));
    bk_db_source_close(source);
    fixture_end(&f);
}

/* --- obstacles --- */

static void what_is_no_database(void **state)
{
    fixture_t f;
    char path[300];
    (void)state;
    fixture_start(&f, false);
    file_in(&f, "app.db", path);
    assert_int_equal(refused(&f, path, 0), BK_NOT_FOUND);
    assert_int_equal(refused(&f, f.dir, 0), BK_CONFIG);
    OK(bk_publish_bytes(AT_FDCWD, path, 0600, "no database, just text, but long enough", 39, false,
                        &f.err),
       &f.err);
    assert_int_equal(refused(&f, path, 0), BK_CORRUPT);
    assert_false(bk_attached_has(&(struct stat){0}));
    fixture_end(&f);
}

static void an_empty_file_is_an_empty_image(void **state)
{
    fixture_t f;
    char path[300], image[300];
    bk_snapshot_db_t db;
    struct stat st;
    (void)state;
    fixture_start(&f, true);
    file_in(&f, "app.db", path);
    OK(bk_publish_bytes(AT_FDCWD, path, 0640, "", 0, false, &f.err), &f.err);
    dump(&f, path, "full_1", &db);
    assert_int_equal(db.page_count, 0);
    OK(materialise(&f, &db, file_in(&f, "image.db", image)), &f.err);
    assert_int_equal(stat(image, &st), 0);
    assert_int_equal(st.st_size, 0);
    free_db(&db);
    fixture_end(&f);
}

/* An application may have the file grow ahead of its database; in the log is the rest. */
static void what_is_behind_the_end_is_no_page(void **state)
{
    static const char *const modes[] = {"wal", "delete"};
    fixture_t f;
    struct stat st;
    char path[300];
    (void)state;
    fixture_start(&f, false);
    file_in(&f, "app.db", path);
    for (int i = 0; i < 2; i++) {
        assert_true(chaos_make(path, modes[i], 4096, "none"));
        sqlite3 *db = open_db(path);
        int chunk = 1 << 20;
        assert_int_equal(sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk), 0);
        for (int n = 0; n < 3; n++) {
            run_sql(db, "INSERT INTO t(v, filler) VALUES(1, randomblob(90000))");
            if (n > 0)
                run_sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
            bk_db_source_t *source = open_source(&f, path);
            assert_int_equal(bk_db_source_info(source)->page_count, query(db, "PRAGMA page_count"));
            bk_db_source_close(source);
        }
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, chunk);
        /* Who opens it finds a file of that length, and commits as many pages. */
        sqlite3_close(db);
        db = open_db(path);
        run_sql(db, "UPDATE t SET v=2");
        for (int n = 0; n < 2; n++) {
            bk_db_source_t *source = open_source(&f, path);
            assert_int_equal(bk_db_source_info(source)->page_count, query(db, "PRAGMA page_count"));
            bk_db_source_close(source);
            run_sql(db, "PRAGMA wal_checkpoint");
        }
        sqlite3_close(db);
        unlink(path);
    }
    fixture_end(&f);
}

static void lock_exclusively(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA locking_mode=EXCLUSIVE; UPDATE head SET n=n");
}

static void *stop_soon(void *arg)
{
    bk_sleep_ms(30);
    bk_ctl_stop(arg, BK_CANCELED);
    return NULL;
}

static void an_exclusive_application_is_named(void **state)
{
    fixture_t f;
    char path[300];
    pthread_t thread;
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    pid_t pid = hold(lock_exclusively, path);
    assert_int_equal(refused(&f, path, 50), BK_BUSY);
    assert_says(&f, "locking_mode=EXCLUSIVE");
    /* Waiting for a lock is no reason not to stop. */
    assert_int_equal(pthread_create(&thread, NULL, stop_soon, &f.ctl), 0);
    assert_int_equal(refused(&f, path, 3600 * 1000), BK_CANCELED);
    pthread_join(thread, NULL);
    kill_hard(pid);
    fixture_end(&f);
}

/* In a process of another user: what does the error name? */
static void as_nobody(fixture_t *f, const char *path, const char *says)
{
    int status;
    struct passwd *nobody = getpwnam("nobody");
    assert_non_null(nobody);
    pid_t pid = fork();
    if (pid == 0) {
        bk_db_source_t *source;
        bk_err_t err = {0};
        if (setgid(nobody->pw_gid) != 0 || setuid(nobody->pw_uid) != 0)
            _exit(9);
        bk_rc_t rc = bk_db_source_open(path, 100, NULL, &source, &err);
        bk_db_source_close(source);
        if (says == NULL ? rc == BK_OK : rc == BK_DENIED && strstr(err.text, says) != NULL)
            _exit(0);
        fprintf(stderr, "%s: %s\n", bk_rc_code(rc), err.text);
        _exit(1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (status != 0)
        fail_msg("nobody is not told about \"%s\" (%s)", says, f->dir);
}

static void keep_open(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA wal_autocheckpoint=0; UPDATE head SET n=n+1");
}

static void the_missing_right_is_named(void **state)
{
    fixture_t f;
    char path[300], wal[310], shm[310];
    (void)state;
    if (geteuid() != 0)
        SKIP_TEST();
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    snprintf(wal, sizeof wal, "%s-wal", path);
    snprintf(shm, sizeof shm, "%s-shm", path);
    assert_int_equal(chmod(path, 0604), 0);
    as_nobody(&f, path, "read and write /");
    assert_int_equal(chmod(path, 0666), 0);
    as_nobody(&f, path, "in directory /");
    /* With both companions there, no right on the directory is needed. */
    pid_t pid = hold(keep_open, path);
    as_nobody(&f, path, NULL);
    assert_int_equal(chmod(wal, 0600), 0);
    as_nobody(&f, path, "app.db-wal");
    assert_int_equal(chmod(wal, 0666), 0);
    assert_int_equal(chmod(shm, 0640), 0);
    as_nobody(&f, path, "app.db-shm");
    kill_hard(pid);
    fixture_end(&f);
}

static void a_damaged_schema_is_a_warning(void **state)
{
    fixture_t f;
    char path[300];
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql='CREATE TABLE t(' "
                "WHERE name='t'");
    sqlite3_close(db);
    bk_db_source_t *source = open_source(&f, path);
    assert_int_equal(f.ctl.notes_total, 1);
    assert_non_null(strstr(f.ctl.notes[0], "malformed"));
    assert_true(digest_of(&f, source) != 0);
    bk_db_source_close(source);
    fixture_end(&f);
}

static void a_log_counts_whatever_the_header_says(void **state)
{
    fixture_t f;
    char path[300];
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    kill_hard(hold(uncheckpointed, path));
    spoil(path, 18, "\1\1");
    bk_db_source_t *source = open_source(&f, path);
    assert_string_equal(bk_db_source_info(source)->journal, "wal");
    assert_true(bk_db_source_info(source)->wal_frames > 0);
    bk_db_source_close(source);
    fixture_end(&f);
}

static void a_removed_log_is_an_error(void **state)
{
    fixture_t f;
    char path[300], wal[310];
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    pid_t pid = hold(uncheckpointed, path);
    snprintf(wal, sizeof wal, "%s-wal", path);
    assert_int_equal(unlink(wal), 0);
    bk_rc_t rc = refused(&f, path, 100);
    assert_true(rc == BK_CORRUPT || rc == BK_IO);
    kill_hard(pid);
    fixture_end(&f);
}

/* --- a guest --- */

static void a_backup_leaves_what_it_found(void **state)
{
    fixture_t f;
    char path[300];
    struct stat before, after;
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    assert_false(exists(path, "-wal"));
    assert_int_equal(stat(path, &before), 0);
    bk_db_source_t *source = open_source(&f, path);
    digest_of(&f, source);
    bk_db_source_close(source);
    assert_false(exists(path, "-wal"));
    assert_false(exists(path, "-shm"));
    assert_int_equal(stat(path, &after), 0);
    assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof before.st_mtim);
    /* What a killed application left is not ours to clear up. */
    kill_hard(hold(uncheckpointed, path));
    source = open_source(&f, path);
    bk_db_source_close(source);
    assert_true(exists(path, "-wal"));
    assert_int_equal(stat(path, &after), 0);
    assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof before.st_mtim);
    fixture_end(&f);
}

static void links_are_followed_with_their_log(void **state)
{
    fixture_t f;
    char path[300], link_path[300];
    (void)state;
    fixture_start(&f, false);
    assert_int_equal(mkdir(file_in(&f, "data", path), 0755), 0);
    make_wal(file_in(&f, "data/app.db", path));
    kill_hard(hold(uncheckpointed, path));
    assert_int_equal(symlink("data/app.db", file_in(&f, "app.db", link_path)), 0);
    bk_db_source_t *source = open_source(&f, link_path), *direct = open_source(&f, path);
    assert_true(bk_db_source_info(source)->wal_frames > 0);
    assert_int_equal(digest_of(&f, source), digest_of(&f, direct));
    bk_db_source_close(source);
    bk_db_source_close(direct);
    assert_false(exists(link_path, "-wal"));
    fixture_end(&f);
}

static void open_databases_are_known(void **state)
{
    fixture_t f;
    char path[300], shm[310];
    struct stat st, st_shm;
    (void)state;
    fixture_start(&f, false);
    make_wal(file_in(&f, "app.db", path));
    snprintf(shm, sizeof shm, "%s-shm", path);
    assert_int_equal(stat(path, &st), 0);
    assert_false(bk_attached_has(&st));
    bk_db_source_t *one = open_source(&f, path), *two = open_source(&f, path);
    assert_int_equal(stat(shm, &st_shm), 0);
    bk_db_source_close(one);
    assert_true(bk_attached_has(&st));
    assert_true(bk_attached_has(&st_shm));
    assert_int_equal(bk_attached_reserve(path, &st, stat, &f.err), BK_BUSY);
    assert_int_equal(bk_attached_reserve(path, NULL, stat, &f.err), BK_BUSY);
    bk_db_source_close(two);
    assert_false(bk_attached_has(&st));
    OK(bk_attached_reserve(path, &st, stat, &f.err), &f.err);
    assert_int_equal(refused(&f, path, 0), BK_BUSY);
    bk_attached_release(path);
    one = open_source(&f, path);
    bk_db_source_close(one);
    fixture_end(&f);
}

/* --- the lock page --- */

static void the_page_at_1_gib_is_left_out(void **state)
{
    fixture_t f;
    char path[300], image[300];
    bk_snapshot_db_t db;
    uint8_t page[65536] = {0}, zeros[65536] = {0};
    (void)state;
    fixture_start(&f, false);
    file_in(&f, "app.db", path);
    assert_true(chaos_make(path, "delete", 65536, "none"));
    sqlite3 *app = open_db(path);
    run_sql(app,
            "PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF;"
            "INSERT INTO t(v, filler) VALUES(7, zeroblob(540000000)), (8, zeroblob(540000000))");
    sqlite3_close(app);
    /* SQLite never looks at it, so whatever lies there must not come along. */
    spoil(path, 0x40000000, "left over");
    bk_db_source_t *source = open_source(&f, path);
    uint64_t lock_page = bk_db_lock_page(65536);
    assert_int_equal(lock_page, 16385);
    assert_true(bk_db_source_info(source)->page_count > lock_page);
    OK(bk_db_source_read(source, lock_page, 1, page, &f.err), &f.err);
    assert_memory_equal(page, zeros, sizeof page);
    bk_db_source_close(source);
    dump(&f, path, "full_1", &db);
    OK(materialise(&f, &db, file_in(&f, "image.db", image)), &f.err);
    app = open_db(image);
    assert_int_equal(query(app, "SELECT sum(length(filler)) FROM t WHERE v IN (7, 8)"), 1080000000);
    sqlite3_close(app);
    free_db(&db);
    fixture_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pin_shows_one_state),
        cmocka_unit_test(lanes_read_at_once),
        cmocka_unit_test(what_is_no_database),
        cmocka_unit_test(an_empty_file_is_an_empty_image),
        cmocka_unit_test(what_is_behind_the_end_is_no_page),
        cmocka_unit_test(an_exclusive_application_is_named),
        cmocka_unit_test(the_missing_right_is_named),
        cmocka_unit_test(a_damaged_schema_is_a_warning),
        cmocka_unit_test(a_log_counts_whatever_the_header_says),
        cmocka_unit_test(a_removed_log_is_an_error),
        cmocka_unit_test(a_backup_leaves_what_it_found),
        cmocka_unit_test(links_are_followed_with_their_log),
        cmocka_unit_test(open_databases_are_known),
        cmocka_unit_test(the_page_at_1_gib_is_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
