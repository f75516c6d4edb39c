/*
 * t/unit/engine/fixture.h: an application (a WAL database, two trees), a set that protects it, and
 * an engine; all in a directory of its own.
 */
#ifndef BK_TEST_ENGINE_FIXTURE_H
#define BK_TEST_ENGINE_FIXTURE_H

#include "unit/testing.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "crypto/keyring.h"
#include "engine/engine.h"

typedef struct {
    char *dir;
    bk_set_t set;
    bk_engine_t *engine;
    bk_err_t err; /* of the last job */
    bk_ctl_t ctl; /* of the running job */
} fixture_t;

static inline void quiet(void *data, bk_log_level_t level, const char *line)
{
    (void)data;
    (void)level;
    if (getenv("VERBOSE") != NULL)
        fprintf(stderr, "log: %s\n", line);
}

/* The path of a name in the fixture's directory; four at a time. */
static inline const char *at(const fixture_t *f, const char *name)
{
    static char paths[4][1024];
    static unsigned next;
    char *path = paths[next++ % 4];
    assert_true(bk_fmt(path, sizeof paths[0], "%s/%s", f->dir, name));
    return path;
}

static inline void put(const fixture_t *f, const char *name, const char *text)
{
    bk_err_t err = {0};
    char dir[1024];
    bk_strcpy(dir, sizeof dir, at(f, name));
    *strrchr(dir, '/') = '\0';
    OK(bk_mkdirs(dir, 0755, &err), &err);
    int fd = open(at(f, name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

/* What a file holds, or NULL when it is not there; the last one stays valid. */
static inline const char *get(const fixture_t *f, const char *name)
{
    static char text[65536];
    int fd = open(at(f, name), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    assert_true(n >= 0);
    text[n] = '\0';
    return text;
}

static inline bool there(const fixture_t *f, const char *name)
{
    struct stat st;
    return lstat(at(f, name), &st) == 0;
}

static inline sqlite3 *open_db(const fixture_t *f, const char *name)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(at(f, name), &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 10000);
    return db;
}

static inline void sql(sqlite3 *db, const char *text)
{
    char *why = NULL;
    if (sqlite3_exec(db, text, NULL, NULL, &why) != SQLITE_OK)
        fail_msg("%s: %s", text, why);
}

static inline int64_t number(sqlite3 *db, const char *text)
{
    sqlite3_stmt *statement;
    assert_int_equal(sqlite3_prepare_v2(db, text, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    int64_t value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

static inline int64_t number_in(const fixture_t *f, const char *name, const char *text)
{
    sqlite3 *db = open_db(f, name);
    int64_t value = number(db, text);
    sqlite3_close(db);
    return value;
}

static inline char *text_at(const fixture_t *f, const char *name)
{
    char *text = bk_strdup(at(f, name));
    assert_non_null(text);
    return text;
}

static inline void make_app(fixture_t *f)
{
    put(f, "app/uploads/a.wav", "sound a");
    put(f, "app/uploads/2025/b.wav", "sound b, which is longer");
    put(f, "app/uploads/2025/c.mp3", "music");
    put(f, "app/uploads/skip.tmp", "temporary");
    put(f, "app/transcripts/t.txt", "text");
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "PRAGMA journal_mode=WAL; CREATE TABLE jobs(id INTEGER PRIMARY KEY, name TEXT);"
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
            " INSERT INTO jobs SELECT i, 'job ' || i FROM n");
    sqlite3_close(db);
    bk_sleep_ms(60); /* younger files are read again: their times cannot be trusted */
}

/* A key file; another byte is another key. */
static inline void put_key(const fixture_t *f, const char *name, uint8_t byte)
{
    uint8_t key[BK_KEY_SIZE];
    char text[80];
    memset(key, byte, sizeof key);
    bk_key_encode(text, key);
    put(f, name, text);
    assert_int_equal(chmod(at(f, name), 0600), 0);
}

/* where: of the storage, absolute; NULL: in the fixture's own directory. */
static inline void make_set(fixture_t *f, bool encrypted, const char *where)
{
    bk_err_t err = {0};
    bk_set_t *set = &f->set;
    OK(bk_set_init(set, "app", &err), &err);
    set->base_dir = text_at(f, "base");
    set->min_free = 0;
    set->pitr_window = 0;
    set->restore_in_place = true;
    bk_set_add_db(set, "main")->path = text_at(f, "app/app.db");
    bk_set_files_t *files = bk_set_add_files(set, "uploads");
    files->path = text_at(f, "app/uploads");
    OK(bk_set_add_text(&files->exclude, "*.tmp", &err), &err);
    bk_set_add_files(set, "transcripts")->path = text_at(f, "app/transcripts");
    bk_storage_config_t *storage = bk_set_add_storage(set, "local", "disk");
    OK(bk_storage_config_set(storage, "path", where != NULL ? where : at(f, "storage"), &err),
       &err);
    OK(bk_set_add_text(&set->restore_roots, at(f, "restored"), &err), &err);
    if (encrypted) {
        put_key(f, "k1.key", 1);
        assert_non_null(bk_set_add_key(set, "k1", at(f, "k1.key")));
    }
}

static inline void open_engine(fixture_t *f)
{
    bk_err_t err = {0};
    OK(bk_set_check(&f->set, true, NULL, &err), &err);
    OK(bk_engine_open(&f->set, &f->engine, &err), &err);
    OK(bk_engine_own(f->engine, &err), &err);
}

static inline void close_engine(fixture_t *f)
{
    bk_engine_close(f->engine);
    f->engine = NULL;
}

static inline fixture_t *fixture_new(bool encrypted)
{
    fixture_t *f = calloc(1, sizeof *f);
    bk_log_set(quiet, NULL, BK_LOG_DEBUG);
    f->dir = test_dir();
    make_app(f);
    make_set(f, encrypted, NULL);
    return f;
}

static inline void fixture_free(fixture_t *f)
{
    close_engine(f);
    bk_set_free(&f->set);
    test_dir_remove(f->dir);
    free(f);
}

static inline int set_up(void **state)
{
    fixture_t *f = fixture_new(false);
    open_engine(f);
    *state = f;
    return 0;
}

static inline int set_up_encrypted(void **state)
{
    fixture_t *f = fixture_new(true);
    open_engine(f);
    *state = f;
    return 0;
}

static inline int tear_down(void **state)
{
    fixture_free(*state);
    return 0;
}

static inline json_t *json(const char *text)
{
    json_error_t why;
    json_t *value = json_loads(text, 0, &why);
    if (value == NULL)
        fail_msg("%s: %s", text, why.text);
    return value;
}

/* Queue a job; its id. */
static inline bk_rc_t submit(fixture_t *f, bk_job_kind_t kind, const char *body, char id[BK_JOB_ID])
{
    bool replayed;
    json_t *object = body != NULL ? json(body) : NULL;
    bk_submit_t request = {.kind = kind, .body = object, .trigger = "api", .requested_by = "me"};
    f->err = (bk_err_t){0};
    bk_rc_t rc = bk_engine_submit(f->engine, &request, id, &replayed, &f->err);
    json_decref(object);
    return rc;
}

typedef struct {
    fixture_t *f;
    const char *id;
    bk_job_status_t status;
} run_t;

static inline bk_rc_t run_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    run_t *run = arg;
    bk_engine_run(run->f->engine, run->id, team, &run->f->ctl, &run->status, err);
    return BK_OK;
}

static inline bk_job_status_t run_taken(fixture_t *f, const char *id)
{
    run_t run = {.f = f, .id = id};
    f->err = (bk_err_t){0};
    bk_team_run(2, run_main, &run, &f->err);
    return run.status;
}

/* Take the next job and run it to its end. */
static inline bk_job_status_t run_next(fixture_t *f, char id[BK_JOB_ID])
{
    bk_err_t err = {0};
    OK(bk_engine_take(f->engine, id, &err), &err);
    assert_string_not_equal(id, "");
    bk_ctl_init(&f->ctl);
    bk_job_status_t status = run_taken(f, id);
    bk_ctl_free(&f->ctl);
    return status;
}

static inline json_t *job_of(fixture_t *f, const char *id)
{
    bk_err_t err = {0};
    json_t *job = NULL;
    OK(bk_engine_job(f->engine, id, &job, &err), &err);
    return job;
}

/* Submit, run, and give the job's document; its status must be the expected one. */
static inline json_t *do_job(fixture_t *f, bk_job_kind_t kind, const char *body,
                             const char *expected)
{
    char id[BK_JOB_ID], taken[BK_JOB_ID];
    if (submit(f, kind, body, id) != BK_OK)
        fail_msg("submit %s: %s", body, f->err.text);
    run_next(f, taken);
    assert_string_equal(id, taken);
    json_t *job = job_of(f, id);
    const char *status = json_string_value(json_object_get(job, "status"));
    if (strcmp(status, expected) != 0) {
        char *text = json_dumps(job, JSON_INDENT(1));
        print_error("%s\n", text);
        free(text);
        fail_msg("%s: %s", id, status);
    }
    return job;
}

static inline void done(json_t *job)
{
    json_decref(job);
}

/* The id of a new backup. */
static inline void back_up(fixture_t *f, const char *type, char id[BK_BACKUP_ID])
{
    char body[64];
    bk_fmt(body, sizeof body, "{\"backup_type\": \"%s\"}", type);
    json_t *job = do_job(f, BK_JOB_BACKUP, body, "completed");
    bk_strcpy(id, BK_BACKUP_ID, json_string_value(json_object_get(job, "backup_id")));
    done(job);
}

/* The value of "a.b.c", or NULL. */
static inline json_t *member(json_t *value, const char *path)
{
    char text[256];
    bk_strcpy(text, sizeof text, path);
    char *part = text;
    while (value != NULL && part != NULL) {
        char *dot = strchr(part, '.');
        if (dot != NULL)
            *dot++ = '\0';
        value = json_is_array(value) ? json_array_get(value, strtoul(part, NULL, 10))
                                     : json_object_get(value, part);
        part = dot;
    }
    return value;
}

static inline const char *text_of(json_t *value, const char *path)
{
    const char *text = json_string_value(member(value, path));
    return text != NULL ? text : "(none)";
}

static inline int64_t int_of(json_t *value, const char *path)
{
    assert_true(json_is_integer(member(value, path)));
    return json_integer_value(member(value, path));
}

static inline void assert_contains(const char *text, const char *part)
{
    if (text == NULL || strstr(text, part) == NULL)
        fail_msg("\"%s\" does not contain \"%s\"", text != NULL ? text : "(null)", part);
}

/* Run as a user that permissions apply to: in a child, after giving it the fixture's directory. */
static inline void as_nobody(fixture_t *f, void (*fn)(fixture_t *f))
{
    close_engine(f);
    if (geteuid() == 0)
        test_give(f->dir, 65534);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(99);
        open_engine(f);
        fn(f);
        close_engine(f);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#endif
