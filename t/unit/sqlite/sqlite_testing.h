/*
 * t/unit/sqlite/sqlite_testing.h: what the tests of src/sqlite share: an application's database, played by SQL, and the road
 * of a backup through a repository.
 */
#ifndef BK_SQLITE_TESTING_H
#define BK_SQLITE_TESTING_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "lib/chaos.h"
#include "sqlite/check.h"
#include "sqlite/dump.h"
#include "unit/repo/repo_testing.h"

static inline void run_sql(sqlite3 *db, const char *sql)
{
    char *message = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s: %s", sql, message);
}

static inline long query(sqlite3 *db, const char *sql)
{
    int64_t value;
    if (!chaos_query(db, sql, &value))
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    return (long)value;
}

static inline sqlite3 *open_db(const char *path)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 20000);
    return db;
}

static inline const char *file_in(const fixture_t *f, const char *name, char out[300])
{
    snprintf(out, 300, "%s/%s", f->dir, name);
    return out;
}

static inline bool exists(const char *path, const char *end)
{
    char name[400];
    struct stat st;
    snprintf(name, sizeof name, "%s%s", path, end);
    return lstat(name, &st) == 0;
}

/* Keep a process that has done something to a database: do_it runs there, then it stops until it is killed. */
static inline pid_t hold(void (*do_it)(const char *path), const char *path)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        do_it(path);
        raise(SIGSTOP);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    return pid;
}

static inline void kill_hard(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static inline void spoil(const char *path, off_t at, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, text, strlen(text), at), strlen(text));
    close(fd);
}

/* --- through a repository --- */

typedef struct {
    fixture_t *f;
    bk_session_t *session;
    const char *path, *file;
    bk_snapshot_db_t *db;
    unsigned busy_ms;
} job_t;

static inline bk_rc_t dump_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    job_t *job = arg;
    bk_db_source_t *source;
    bk_rc_t rc = bk_db_source_open(job->path, job->busy_ms, &job->f->ctl, &source, err);
    if (rc == BK_OK)
        rc = bk_db_dump(job->session, source, job->path, NULL, team, job->db, &job->f->ctl, err);
    bk_db_source_close(source);
    return rc;
}

/* As its callers do: what cannot be proved is of no use. */
static inline bk_rc_t materialise_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    job_t *job = arg;
    int fd = open(job->file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    bk_rc_t rc = bk_db_materialise(job->f->repo, job->db, fd, job->file, team, &job->f->ctl, err);
    if (rc == BK_OK)
        rc = bk_db_check(fd, job->file, &job->f->ctl, err);
    close(fd);
    if (rc != BK_OK)
        unlink(job->file);
    return rc;
}

static inline void free_db(bk_snapshot_db_t *db)
{
    free(db->path);
    free(db->journal);
    memset(db, 0, sizeof *db);
}

/* Back up path; *db describes it. */
static inline void dump(fixture_t *f, const char *path, const char *id, bk_snapshot_db_t *db)
{
    static char name[] = "main";
    *db = (bk_snapshot_db_t){.name = name};
    job_t job = {.f = f, .path = path, .db = db, .busy_ms = 60000};
    job.session = fixture_session(f, true);
    OK(bk_team_run(3, dump_main, &job, &f->err), &f->err);
    OK(fixture_commit(f, job.session, id, NULL), &f->err);
}

static inline bk_rc_t materialise(fixture_t *f, bk_snapshot_db_t *db, const char *file)
{
    job_t job = {.f = f, .file = file, .db = db};
    return bk_team_run(3, materialise_main, &job, &f->err);
}

/* Back up path and bring it back as file. */
static inline void round_trip(fixture_t *f, const char *path, const char *file, const char *id)
{
    bk_snapshot_db_t db;
    dump(f, path, id, &db);
    OK(materialise(f, &db, file), &f->err);
    free_db(&db);
}

#endif
