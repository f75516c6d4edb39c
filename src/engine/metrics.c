/*
 * engine/metrics.c: counters of ended jobs, kept as one value in the catalog, since the history of
 * jobs is pruned and counters must never fall; and the text that is made of them, of the status and
 * of the health.  Runs nothing and decides nothing.
 */
#include "engine/metrics.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/str.h"
#include "engine/capturing.h"
#include "engine/watching.h"
#include "sqlite/opening.h"

#define KEY     "totals"
#define BUCKETS 8

/* Upper bounds of the histogram of jobs, seconds. */
static const double bounds[BUCKETS] = {1, 5, 15, 60, 300, 900, 1800, 3600};

/* --- counting --- */

static json_t *child(json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    if (json_is_object(value))
        return value;
    value = json_object();
    json_object_set_new(object, name, value);
    return value;
}

static void add(json_t *object, const char *name, json_int_t n)
{
    json_int_t before = json_integer_value(json_object_get(object, name));
    json_object_set_new(object, name, json_integer(before + n));
}

static const char *type_of(bk_job_kind_t kind, const json_t *body)
{
    const char *type = json_string_value(json_object_get(body, "backup_type"));
    if (kind != BK_JOB_BACKUP)
        return bk_job_kind_name(kind);
    return type != NULL && strcmp(type, "incremental") == 0 ? type : "full";
}

static void count_seconds(json_t *one, double seconds)
{
    json_t *buckets = json_object_get(one, "buckets");
    if (json_array_size(buckets) != BUCKETS) {
        buckets = json_array();
        for (unsigned i = 0; i < BUCKETS; i++)
            json_array_append_new(buckets, json_integer(0));
        json_object_set_new(one, "buckets", buckets);
    }
    for (unsigned i = 0; i < BUCKETS; i++)
        if (seconds <= bounds[i])
            json_array_set_new(buckets, i,
                               json_integer(json_integer_value(json_array_get(buckets, i)) + 1));
    double sum = json_number_value(json_object_get(one, "sum"));
    json_object_set_new(one, "sum", json_real(sum + seconds));
    add(one, "count", 1);
}

/* The members of a backup's stats that are shown. */
static void note_stats(json_t *totals, json_t *one, const json_t *stats)
{
    static const char *const names[] = {"bytes_source",  "bytes_stored",  "files_new",
                                        "files_changed", "files_removed", "files_unmodified",
                                        "dedup_ratio",   "dirs_listed",   "compression_ratio"};
    const char *scan = json_string_value(json_object_get(stats, "scan"));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        json_object_set(one, names[i], json_object_get(stats, names[i]));
    add(totals, "bytes_stored", json_integer_value(json_object_get(stats, "bytes_stored")));
    add(totals, "watch_missed", json_integer_value(json_object_get(stats, "watch_missed")));
    if (scan != NULL)
        add(child(totals, "scans"), scan, 1);
}

typedef struct {
    bk_job_kind_t kind;
    const json_t *body, *result;
    bk_job_status_t status;
    double seconds;
} ended_t;

static void count(json_t *totals, void *arg)
{
    const ended_t *job = arg;
    const json_t *stats = json_object_get(job->result, "stats");
    bool good = job->status == BK_STATUS_COMPLETED || job->status == BK_STATUS_WARNING;
    json_t *one = child(child(totals, "jobs"), type_of(job->kind, job->body));
    add(child(one, "status"), bk_job_status_name(job->status), 1);
    count_seconds(one, job->seconds);
    json_object_set_new(one, "attempt", json_integer(bk_now() / BK_SEC));
    json_object_set_new(one, "good", json_boolean(good));
    if (good) {
        json_object_set_new(one, "success", json_integer(bk_now() / BK_SEC));
        json_object_set_new(one, "seconds", json_real(job->seconds));
    }
    if (good && json_is_object(stats))
        note_stats(totals, one, stats);
    if (job->kind == BK_JOB_VERIFY)
        add(totals, "verify_findings",
            json_integer_value(json_object_get(job->result, "findings_total")));
}

void bk_metrics_count(bk_engine_t *engine, bk_job_kind_t kind, const json_t *body,
                      bk_job_status_t status, const json_t *result, double seconds)
{
    ended_t job = {kind, body, result, status, seconds};
    (void)bk_catalog_edit_value(engine->catalog, KEY, count, &job, NULL);
}

/* --- the text --- */

typedef struct {
    bk_buf_t *out;
    const char *set;
} text_t;

static void family(const text_t *t, const char *name, const char *type, const char *help)
{
    bk_buf_printf(t->out, "# HELP nginx_backup_%s %s\n# TYPE nginx_backup_%s %s\n", name, help,
                  name, type);
}

static void label(const text_t *t, const char *name, const char *value)
{
    bk_buf_printf(t->out, ",%s=\"", name);
    for (const char *p = value; *p != '\0'; p++) {
        if (*p == '\n')
            bk_buf_add(t->out, "\\n", 2);
        else if (*p == '"' || *p == '\\')
            bk_buf_printf(t->out, "\\%c", *p);
        else
            bk_buf_add(t->out, p, 1);
    }
    bk_buf_u8(t->out, '"');
}

static void number(const text_t *t, double value)
{
    if (value == floor(value) && fabs(value) < 9e15)
        bk_buf_printf(t->out, "} %lld\n", (long long)value);
    else
        bk_buf_printf(t->out, "} %.9g\n", value);
}

/* labels: name, value, ..., NULL */
static void sample(const text_t *t, const char *name, double value, ...)
{
    va_list args;
    const char *key;
    bk_buf_printf(t->out, "nginx_backup_%s{backup=\"%s\"", name, t->set);
    va_start(args, value);
    while ((key = va_arg(args, const char *)) != NULL)
        label(t, key, va_arg(args, const char *));
    va_end(args);
    number(t, value);
}

static void plain(const text_t *t, const char *name, const char *type, const char *help,
                  double value)
{
    family(t, name, type, help);
    sample(t, name, value, NULL);
}

static double figure(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

/* --- jobs --- */

static void put_statuses(const text_t *t, const json_t *jobs)
{
    const char *type, *status;
    json_t *one, *count;
    family(t, "jobs_total", "counter", "Jobs that came to an end.");
    json_object_foreach((json_t *)(uintptr_t)jobs, type, one)
        json_object_foreach(json_object_get(one, "status"), status, count)
            sample(t, "jobs_total", json_number_value(count), "type", type, "status", status, NULL);
}

static void put_histogram(const text_t *t, const json_t *jobs)
{
    const char *type;
    json_t *one;
    char bound[32];
    family(t, "job_duration_seconds", "histogram", "How long jobs took.");
    json_object_foreach((json_t *)(uintptr_t)jobs, type, one)
    {
        const json_t *buckets = json_object_get(one, "buckets");
        for (unsigned i = 0; i < BUCKETS; i++) {
            bk_fmt(bound, sizeof bound, "%g", bounds[i]);
            sample(t, "job_duration_seconds_bucket", json_number_value(json_array_get(buckets, i)),
                   "type", type, "le", bound, NULL);
        }
        sample(t, "job_duration_seconds_bucket", figure(one, "count"), "type", type, "le", "+Inf",
               NULL);
        sample(t, "job_duration_seconds_sum", figure(one, "sum"), "type", type, NULL);
        sample(t, "job_duration_seconds_count", figure(one, "count"), "type", type, NULL);
    }
}

/* One gauge for each kind of job that has the member. */
static void put_each(const text_t *t, const json_t *jobs, const char *member, const char *name,
                     const char *help)
{
    const char *type;
    json_t *one;
    family(t, name, "gauge", help);
    json_object_foreach((json_t *)(uintptr_t)jobs, type, one)
    {
        const json_t *value = json_object_get(one, member);
        if (json_is_number(value))
            sample(t, name, json_number_value(value), "type", type, NULL);
        else if (json_is_boolean(value))
            sample(t, name, json_is_true(value), "type", type, NULL);
    }
}

static void put_files(const text_t *t, const json_t *jobs)
{
    static const char *const states[] = {"new", "changed", "removed", "unmodified"};
    const char *type;
    json_t *one;
    char member[32];
    family(t, "last_files", "gauge",
           "Files of the last good backup, compared with the one before.");
    json_object_foreach((json_t *)(uintptr_t)jobs, type,
                        one) for (unsigned i = 0; i < sizeof states / sizeof states[0]; i++)
    {
        bk_fmt(member, sizeof member, "files_%s", states[i]);
        if (json_object_get(one, member) != NULL)
            sample(t, "last_files", figure(one, member), "type", type, "state", states[i], NULL);
    }
}

static void put_jobs(const text_t *t, const json_t *totals, const json_t *status)
{
    const json_t *jobs = json_object_get(totals, "jobs"), *now = json_object_get(status, "jobs");
    put_statuses(t, jobs);
    put_histogram(t, jobs);
    plain(t, "jobs_running", "gauge", "Jobs that run.", figure(now, "running"));
    plain(t, "jobs_queued", "gauge", "Jobs that wait.", figure(now, "queued"));
    put_each(t, jobs, "attempt", "last_attempt_timestamp_seconds", "End of the last job.");
    put_each(t, jobs, "success", "last_success_timestamp_seconds", "End of the last good job.");
    put_each(t, jobs, "good", "last_status", "1: the last job was good, 0: it was not.");
    put_each(t, jobs, "seconds", "last_duration_seconds", "How long the last good job took.");
    put_each(t, jobs, "bytes_source", "last_source_bytes",
             "Size of what the last good backup holds.");
    put_each(t, jobs, "bytes_stored", "last_stored_bytes",
             "What the last good backup added to the storage.");
    put_each(t, jobs, "compression_ratio", "last_compression_ratio",
             "New bytes by stored bytes, last good backup.");
    put_each(t, jobs, "dedup_ratio", "last_dedup_ratio",
             "Bytes seen by new bytes, last good backup.");
    put_each(t, jobs, "dirs_listed", "last_directories_listed",
             "Directories that the last good backup listed.");
    put_files(t, jobs);
    plain(t, "stored_bytes_total", "counter", "Bytes that backups added to the storage.",
          figure(totals, "bytes_stored"));
    plain(t, "verify_findings_total", "counter", "Damages that verifications found.",
          figure(totals, "verify_findings"));
}

static void put_progress(const text_t *t, const json_t *status)
{
    const json_t *running =
        json_object_get(json_object_get(status, "backup_system"), "current_operations");
    const char *id;
    json_t *one;
    family(t, "job_progress_ratio", "gauge", "How far the running job is, 0 to 1.");
    json_object_foreach((json_t *)(uintptr_t)running, id, one)
    {
        const char *type = json_string_value(json_object_get(one, "type"));
        sample(t, "job_progress_ratio", figure(one, "progress") / 100, "type",
               type != NULL ? type : "", NULL);
    }
}

/* --- what there is --- */

static void put_repository(const text_t *t, const json_t *summary, const json_t *status)
{
    const json_t *storages =
        json_object_get(json_object_get(status, "backup_system"), "storage_backends");
    size_t i;
    json_t *one;
    plain(t, "backups", "gauge", "Backups that are listed.", figure(summary, "total"));
    plain(t, "backups_damaged", "gauge", "Backups that cannot be read.",
          figure(summary, "damaged"));
    plain(t, "chunks", "gauge", "Chunks in the repository.", figure(summary, "chunks"));
    if (figure(summary, "newest_ns") > 0)
        plain(t, "last_backup_timestamp_seconds", "gauge",
              "End of the newest backup: its age is the recovery point objective reached.",
              floor(figure(summary, "newest_ns") / BK_SEC));
    family(t, "storage_up", "gauge", "1: the storage can be used.");
    json_array_foreach(storages, i, one)
        sample(t, "storage_up", json_is_true(json_object_get(one, "accessible")), "storage",
               json_string_value(json_object_get(one, "name")), NULL);
    family(t, "storage_bytes", "gauge", "Size of the repository on the storage.");
    json_array_foreach(storages, i, one)
        sample(t, "storage_bytes", figure(one, "total_size"), "storage",
               json_string_value(json_object_get(one, "name")), NULL);
    family(t, "storage_free_bytes", "gauge", "Room that is left on the storage, when it is known.");
    json_array_foreach(storages, i, one) if (json_object_get(one, "disk_free") != NULL)
        sample(t, "storage_free_bytes", figure(one, "disk_free"), "storage",
               json_string_value(json_object_get(one, "name")), NULL);
}

static void put_databases(const text_t *t, const bk_set_t *set)
{
    static const char *const ends[] = {"", "-wal"}, *const names[] = {"database_bytes",
                                                                      "wal_bytes"};
    static const char *const helps[] = {"Size of the database file.",
                                        "Size of its write-ahead log."};
    char path[PATH_MAX];
    struct stat st;
    for (unsigned n = 0; n < 2; n++) {
        family(t, names[n], "gauge", helps[n]);
        for (size_t i = 0; i < set->db_count; i++)
            if (bk_fmt(path, sizeof path, "%s%s", set->dbs[i].path, ends[n]) &&
                bk_db_stat(path, &st) == 0)
                sample(t, names[n], (double)st.st_size, "database", set->dbs[i].name, NULL);
    }
}

static void put_capture(const text_t *t, const json_t *captures, const char *member,
                        const char *name, const char *type, const char *help)
{
    size_t i;
    json_t *one;
    family(t, name, type, help);
    json_array_foreach(captures, i, one)
    {
        const json_t *value = json_object_get(one, member);
        const char *database = json_string_value(json_object_get(one, "name"));
        if (json_is_number(value))
            sample(t, name, json_number_value(value), "database", database, NULL);
        else if (json_is_boolean(value))
            sample(t, name, json_is_true(value), "database", database, NULL);
    }
}

static void put_shipped(const text_t *t, bk_engine_t *engine)
{
    const bk_storage_config_t *storage = &engine->set->storages[0];
    family(t, "shipped_age_seconds", "gauge",
           "So long ago all that was committed was on the storage.");
    for (size_t i = 0; i < bk_capturing_count(engine->capturing); i++) {
        bk_capture_report_t r;
        bk_capturing_report(engine->capturing, i, &r);
        int64_t age = bk_now() - r.shipped;
        if (r.shipped != 0)
            sample(t, "shipped_age_seconds", age > 0 ? (double)(age / BK_MS) / 1000 : 0, "database",
                   r.name, "storage", storage->name, NULL);
    }
}

static void put_proved(const text_t *t, bk_engine_t *engine)
{
    family(t, "capture_proved_timestamp_seconds", "gauge",
           "When all pages were last compared with what was captured.");
    for (size_t i = 0; i < bk_capturing_count(engine->capturing); i++) {
        bk_capture_report_t r;
        bk_capturing_report(engine->capturing, i, &r);
        if (r.proved != 0)
            sample(t, "capture_proved_timestamp_seconds", floor((double)r.proved / BK_SEC),
                   "database", r.name, NULL);
    }
}

static void put_captures(const text_t *t, bk_engine_t *engine)
{
    json_t *captures = bk_capturing_describe(engine->capturing);
    if (json_array_size(captures) > 0) {
        put_capture(t, captures, "capturing", "capture_up", "gauge",
                    "1: every transaction of the database is captured.");
        put_capture(t, captures, "transaction", "captured_transactions_total", "counter",
                    "Transactions that are durable; begins anew when the database is another.");
        put_capture(t, captures, "gaps", "capture_gaps_total", "counter",
                    "Intervals that nobody saw.");
        put_capture(t, captures, "durable_age_seconds", "durable_age_seconds", "gauge",
                    "So long ago all that was committed was durable in base_dir.");
        put_shipped(t, engine);
        put_proved(t, engine);
        put_capture(t, captures, "wal_frames", "wal_frames", "gauge",
                    "Frames in the write-ahead log.");
    }
    json_decref(captures);
}

static void put_watch(const text_t *t, bk_engine_t *engine, const json_t *totals)
{
    json_t *trees = bk_watching_describe(engine->watching), *one, *count;
    const char *scan;
    size_t i;
    family(t, "watched", "gauge", "1: changes of the file tree are noticed as they happen.");
    json_array_foreach(trees, i, one)
        sample(t, "watched", json_is_true(json_object_get(one, "watching")), "files",
               json_string_value(json_object_get(one, "name")), NULL);
    family(t, "watch_dirty_directories", "gauge",
           "Directories that changed since the last backup.");
    json_array_foreach(trees, i, one)
        sample(t, "watch_dirty_directories", figure(one, "dirty_directories"), "files",
               json_string_value(json_object_get(one, "name")), NULL);
    json_decref(trees);
    plain(t, "watch_missed_total", "counter",
          "Changed directories that the watcher had not told of and a walk found.",
          figure(totals, "watch_missed"));
    family(t, "scans_total", "counter", "Backups of files by how changes were found.");
    json_object_foreach(json_object_get(totals, "scans"), scan, count)
        sample(t, "scans_total", json_number_value(count), "scan", scan, NULL);
}

static void put_helper(const text_t *t, bk_engine_t *engine)
{
    bk_engine_helper_t helper;
    bk_engine_get_helper(engine, &helper);
    if (helper.state == BK_ENGINE_HELPER_OFF)
        return;
    plain(t, "helper_up", "gauge", "1: the privileged helper answers.",
          helper.state == BK_ENGINE_HELPER_ACTIVE);
    if (helper.state != BK_ENGINE_HELPER_ACTIVE)
        return;
    plain(t, "helper_caged", "gauge", "1: it is behind all its walls.", helper.caged);
    plain(t, "helper_refused_total", "counter", "Requests that it refused, since its start.",
          (double)helper.refused);
}

bk_rc_t bk_engine_metrics(bk_engine_t *engine, const json_t *status, const json_t *health,
                          bk_buf_t *out, bk_err_t *err)
{
    text_t t = {.out = out, .set = engine->set->name};
    json_t *totals = NULL, *summary = NULL;
    const char *verdict = json_string_value(json_object_get(health, "status"));
    bk_rc_t rc = bk_catalog_value(engine->catalog, KEY, &totals, err);
    if (rc == BK_OK)
        rc = bk_catalog_value(engine->catalog, "summary", &summary, err);
    if (rc == BK_OK) {
        family(&t, "build_info", "gauge", "Always 1; the version is a label.");
        sample(&t, "build_info", 1, "version", BK_VERSION, NULL);
        plain(&t, "up", "gauge", "1: a worker looks after the backups.", 1);
        plain(&t, "healthy", "gauge", "1: health is pass, 0: it is warn or fail.",
              verdict != NULL && strcmp(verdict, "pass") == 0);
        put_jobs(&t, totals, status);
        put_progress(&t, status);
        put_repository(&t, summary, status);
        put_databases(&t, engine->set);
        put_captures(&t, engine);
        put_watch(&t, engine, totals);
        put_helper(&t, engine);
        if (!bk_buf_ok(out))
            rc = bk_err_set(err, BK_NO_MEMORY, "metrics: more than %zu bytes", out->max);
    }
    json_decref(totals);
    json_decref(summary);
    return rc;
}
