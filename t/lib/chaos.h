/*
 * t/lib/chaos.h: a writer that does to a database what applications do to theirs, and keeps a log
 * from which anybody can tell later whether an image of the database is the content after some
 * commit, and which.
 *
 * The database: head(n) is the number of the last commit; t has rows.  Each commit appends to the
 * writer's log
 *
 *   B n digest time     before COMMIT is sent
 *   A n time            after it returned
 *   E name              something else that it did: chaos_event
 *
 * and the digest is over all rows, so several writers, rollbacks, VACUUM and checkpoints change
 * nothing about it.  A writer that is killed may leave a B without an A: that commit has or has not
 * happened.
 */
#ifndef BK_CHAOS_H
#define BK_CHAOS_H

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *path, *log,
        *journal; /* journal: each connection has its own rollback mode; may be NULL */
    uint64_t seed;
    bool steady;        /* it is never killed, and may do what would lose commits then */
    int autocheckpoint; /* frames; 0: never */
    long commits;       /* to make; 0: until SIGTERM */
} chaos_t;

static inline int64_t chaos_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline uint64_t chaos_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* --- the digest of the content --- */

static void chaos_row(sqlite3_context *context, int n, sqlite3_value **values)
{
    uint64_t *sum = sqlite3_aggregate_context(context, sizeof *sum), hash = 14695981039346656037u;
    for (int i = 0; i < n; i++) {
        const uint8_t *bytes = sqlite3_value_blob(values[i]);
        for (int b = 0; b < sqlite3_value_bytes(values[i]); b++)
            hash = (hash ^ bytes[b]) * 1099511628211u;
        hash = (hash ^ 0xff) * 1099511628211u;
    }
    *sum += chaos_random(&hash);
}

static void chaos_sum(sqlite3_context *context)
{
    uint64_t *sum = sqlite3_aggregate_context(context, sizeof *sum);
    sqlite3_result_int64(context, (sqlite3_int64)*sum);
}

static inline bool chaos_query(sqlite3 *db, const char *sql, int64_t *value)
{
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK)
        return false;
    bool ok = sqlite3_step(statement) == SQLITE_ROW;
    *value = ok ? sqlite3_column_int64(statement, 0) : 0;
    sqlite3_finalize(statement);
    return ok;
}

/* The number of the last commit and the digest of everything, as db shows it now. */
static inline bool chaos_content(sqlite3 *db, int64_t *number, uint64_t *digest)
{
    int64_t value = 0;
    bool ok = sqlite3_create_function(db, "digest", 3, SQLITE_UTF8, NULL, NULL, chaos_row,
                                      chaos_sum) == SQLITE_OK &&
              chaos_query(db, "SELECT n FROM head", number) &&
              chaos_query(db, "SELECT digest(id, v, filler) FROM t", &value);
    *digest = (uint64_t)value;
    return ok;
}

/* --- the writer --- */

static volatile sig_atomic_t chaos_stop;

static void chaos_on_term(int signal_number)
{
    (void)signal_number;
    chaos_stop = 1;
}

static inline bool chaos_sql(sqlite3 *db, const char *sql)
{
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK)
        return true;
    fprintf(stderr, "chaos: %s: %s\n", sql, sqlite3_errmsg(db));
    return false;
}

static inline bool chaos_make(const char *path, const char *journal, int page_size,
                              const char *auto_vacuum)
{
    sqlite3 *db;
    char sql[200];
    snprintf(sql, sizeof sql, "PRAGMA page_size=%d; PRAGMA auto_vacuum=%s; PRAGMA journal_mode=%s",
             page_size, auto_vacuum, journal);
    bool ok = sqlite3_open(path, &db) == SQLITE_OK && chaos_sql(db, sql) &&
              chaos_sql(db, "CREATE TABLE head(n INTEGER); INSERT INTO head VALUES(0);"
                            "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, filler BLOB);"
                            "CREATE INDEX i ON t(v, id); INSERT INTO t VALUES(1, 1, x'00')");
    sqlite3_close(db);
    return ok;
}

static inline void chaos_event(int log, const char *name)
{
    char line[60];
    int len = snprintf(line, sizeof line, "E %s\n", name);
    if (write(log, line, (size_t)len) != len)
        fprintf(stderr, "chaos: the log cannot be written\n");
}

static inline bool chaos_change(sqlite3 *db, uint64_t *state)
{
    char sql[200];
    uint64_t r = chaos_random(state);
    int size = (int)((r >> 40) % 3000) + 1, v = (int)((r >> 8) % 50),
        n = (r >> 4) % 20 == 0 ? 60 : (int)((r >> 16) % 6) + 1;
    if (r % 10 < 5)
        snprintf(sql, sizeof sql,
                 "INSERT INTO t(v, filler) SELECT %d, randomblob(%d) FROM t LIMIT %d", v, size, n);
    else if (r % 10 < 8)
        snprintf(sql, sizeof sql, "UPDATE t SET v=v+1, filler=randomblob(%d) WHERE id %% 37 = %d",
                 size, v % 37);
    else
        snprintf(sql, sizeof sql, "DELETE FROM t WHERE id > 1 AND id %% 4 = %d", v % 4);
    return chaos_sql(db, sql);
}

/* One change, perhaps in a savepoint, which may be taken back. */
static inline bool chaos_step(sqlite3 *db, int log, uint64_t *state, bool nested)
{
    bool ok = !nested || chaos_sql(db, "SAVEPOINT s");
    ok = ok && chaos_change(db, state);
    if (ok && nested && chaos_random(state) % 2 == 0) {
        ok = chaos_sql(db, "ROLLBACK TO s");
        chaos_event(log, "savepoint taken back");
    }
    return ok && (!nested || chaos_sql(db, "RELEASE s"));
}

/* Pages left the cache before their transaction ended. */
static inline bool chaos_spilled(sqlite3 *db)
{
    int count = 0, most;
    sqlite3_db_status(db, SQLITE_DBSTATUS_CACHE_SPILL, &count, &most, 1);
    return count > 0;
}

/* One transaction; *committed when it was one. */
static inline bool chaos_transaction(sqlite3 *db, int log, uint64_t *state, bool steady,
                                     bool *committed)
{
    char line[120];
    int64_t number = 0;
    uint64_t digest = 0;
    *committed = false;
    /* After both a spill and ROLLBACK TO, SQLite 3.40 may leave frames that its own recovery does
     * not take: with a writer killed then, commits that returned would be gone. */
    bool nested = chaos_random(state) % 4 == 0;
    bool spills = steady || !nested;
    (void)chaos_spilled(db); /* VACUUM did */
    bool ok = chaos_sql(db, spills ? "PRAGMA cache_spill=1" : "PRAGMA cache_spill=0") &&
              chaos_sql(db, "BEGIN IMMEDIATE");
    for (uint64_t i = chaos_random(state) % 5 + 1; i > 0 && ok; i--)
        ok = chaos_step(db, log, state, nested);
    if (chaos_spilled(db))
        chaos_event(log, nested ? "spill with savepoints" : "spill");
    if (ok && chaos_random(state) % 10 == 0) {
        chaos_event(log, "rollback");
        return chaos_sql(db, "ROLLBACK");
    }
    ok = ok && chaos_sql(db, "UPDATE head SET n = n + 1") && chaos_content(db, &number, &digest);
    if (!ok)
        return false;
    int len = snprintf(line, sizeof line, "B %lld %llx %lld\n", (long long)number,
                       (unsigned long long)digest, (long long)chaos_now());
    if (write(log, line, (size_t)len) != len || !chaos_sql(db, "COMMIT"))
        return false;
    *committed = true;
    len = snprintf(line, sizeof line, "A %lld %lld\n", (long long)number, (long long)chaos_now());
    return write(log, line, (size_t)len) == len;
}

/* What applications do now and then.  It may be in another's way, and give up: that is no failure.
 */
static inline void chaos_housekeeping(sqlite3 *db, int log, uint64_t r)
{
    static const char *const modes[] = {"passive", "full", "restart", "truncate"};
    char name[60];
    unsigned mode = (unsigned)((r >> 8) % 4);
    int frames = -1;
    int64_t before = 0, after = 0;
    sqlite3_busy_timeout(db, 50);
    if (r % 25 == 0) {
        bool done = sqlite3_wal_checkpoint_v2(db, NULL, (int)mode, &frames, NULL) == SQLITE_OK;
        snprintf(name, sizeof name, "%s checkpoint%s", modes[mode], done ? "" : " in vain");
        if (frames >= 0 || !done) /* of a log */
            chaos_event(log, name);
    }
    if (r % 83 == 0)
        chaos_event(log, sqlite3_exec(db, "VACUUM", NULL, NULL, NULL) == SQLITE_OK
                             ? "vacuum"
                             : "vacuum in vain");
    if (r % 29 == 0 && chaos_query(db, "PRAGMA freelist_count", &before) &&
        sqlite3_exec(db, "PRAGMA incremental_vacuum(5)", NULL, NULL, NULL) == SQLITE_OK &&
        chaos_query(db, "PRAGMA freelist_count", &after) && after < before)
        chaos_event(log, "incremental vacuum");
    sqlite3_busy_timeout(db, 60000);
}

/* False when SQLite ever failed: a backup must not disturb the application. */
static inline bool chaos_run(const chaos_t *chaos)
{
    sqlite3 *db;
    char sql[160];
    const char *pause = getenv("CHAOS_PAUSE"); /* between two transactions, at most so many us */
    uint64_t state = chaos->seed;
    long commits = 0;
    bool committed, ok = true;
    int log = open(chaos->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    signal(SIGTERM, chaos_on_term);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that failed leaves nobody writing */
    if (log < 0 || sqlite3_open(chaos->path, &db) != SQLITE_OK)
        return false;
    sqlite3_busy_timeout(db, 60000);
    /* A cache of a few pages makes transactions spill into the log before they commit, or roll
     * back. */
    snprintf(sql, sizeof sql,
             "PRAGMA cache_size=12; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=%d; %s%s",
             chaos->autocheckpoint, chaos->journal != NULL ? "PRAGMA journal_mode=" : "",
             chaos->journal != NULL ? chaos->journal : "");
    ok = chaos_sql(db, sql);
    while (ok && !chaos_stop && (chaos->commits == 0 || commits < chaos->commits)) {
        ok = chaos_transaction(db, log, &state, chaos->steady, &committed);
        commits += committed;
        uint64_t r = chaos_random(&state);
        chaos_housekeeping(db, log, r);
        if (r % 11 == 0)
            usleep((useconds_t)(r >> 32) % 3000);
        if (pause != NULL)
            usleep((useconds_t)(chaos_random(&state) % strtoull(pause, NULL, 10)));
    }
    sqlite3_close(db);
    close(log);
    return ok;
}

/* --- the oracle --- */

/*
 * Is (number, digest) the content after a commit that an image taken between the times from and to
 * may show?  It must hold all that was acknowledged before from, and nothing that was not begun
 * before to.  Logs of several writers are looked at together. NULL, or what is wrong.
 */
static inline const char *chaos_judge(const char *const *logs, size_t count, int64_t number,
                                      uint64_t digest, int64_t from, int64_t to)
{
    bool found = number == 0;
    for (size_t i = 0; i < count; i++) {
        FILE *file = fopen(logs[i], "r");
        char line[120];
        if (file == NULL)
            continue;
        while (fgets(line, sizeof line, file) != NULL) {
            long long n, time;
            unsigned long long d;
            if (sscanf(line, "A %lld %lld", &n, &time) == 2) {
                if (time < from && n > number) {
                    fclose(file);
                    return "an acknowledged commit is missing";
                }
            } else if (sscanf(line, "B %lld %llx %lld", &n, &d, &time) == 3 && n == number &&
                       d == digest && time <= to) {
                found = true;
            }
        }
        fclose(file);
    }
    return found ? NULL : "no commit has this content";
}

#endif
