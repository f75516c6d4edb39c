/*
 * engine/status.c: GET /status and GET /health, from the catalog's figures and a look at the disks.
 * Nothing here waits for a storage (engine/probe.h).
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/capturing.h"
#include "engine/engine_private.h"
#include "engine/probe.h"
#include "engine/watching.h"
#include "sqlite/opening.h"

#define DAY          (86400 * BK_SEC)
#define DURABLE_LATE 30  /* s: a step that finds nothing takes one at most every second */
#define BATCH_LATE   90  /* s: after one that took a second there is none for 50 */
#define SHIPPED_LATE 300 /* s: ten times what it takes when all is well */
#define LOST_MOST    900 /* s: nobody is to lose more of a database */
#define BEGINNING    60  /* s: in which a new owner comes to know all this */

/* A figure of the summary that bk_engine_sync_from left in the catalog; 0 before the first. */
static json_int_t figure(const json_t *summary, const char *name)
{
    return json_integer_value(json_object_get(summary, name));
}

static json_t *or_null(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return value != NULL ? json_incref(value) : json_null();
}

/* --- status --- */

/* Each of them: whether it is in WAL mode shows in its -wal, which SQLite makes on first use. */
static json_t *databases(const bk_set_t *set)
{
    json_t *list = json_array();
    for (size_t i = 0; i < set->db_count; i++) {
        char wal[PATH_MAX];
        struct stat st;
        const char *path = set->dbs[i].path;
        bool there = bk_db_stat(path, &st) == 0;
        bool has_wal = bk_fmt(wal, sizeof wal, "%s-wal", path) && bk_db_stat(wal, &st) == 0;
        json_array_append_new(list, json_pack("{ss so sb sb}", "name", set->dbs[i].name, "path",
                                              bk_json_name(path, strlen(path)), "exists",
                                              (int)there, "wal_mode", (int)has_wal));
    }
    return list;
}

static json_t *database_status(const bk_engine_t *engine, const json_t *summary)
{
    const bk_set_t *set = engine->set;
    char wal[PATH_MAX];
    struct stat st;
    const char *path = set->db_count > 0 ? set->dbs[0].path : "";
    const char *journal = json_string_value(json_object_get(summary, "journal"));
    bool wal_mode = bk_fmt(wal, sizeof wal, "%s-wal", path) && bk_db_stat(wal, &st) == 0;
    wal_mode = set->db_count > 0 && (wal_mode || (journal != NULL && strcmp(journal, "wal") == 0));
    return json_pack("{so so so sb sb sI sI sI sI so sn so}", "captures",
                     bk_capturing_describe(engine->capturing), "databases", databases(set),
                     "database_path", bk_json_name(path, strlen(path)), "database_exists",
                     (int)(set->db_count > 0 && bk_db_stat(path, &st) == 0), "wal_mode_enabled",
                     (int)wal_mode, "total_backups", figure(summary, "with_database"),
                     "full_backups", figure(summary, "full"), "wal_backups", (json_int_t)0,
                     "total_backup_size", figure(summary, "database_size"), "last_full_backup",
                     or_null(summary, "last_database"), "last_wal_backup", "backup_directory",
                     bk_json_name(set->base_dir, strlen(set->base_dir)));
}

static json_t *files_status(const bk_engine_t *engine, const json_t *summary)
{
    const bk_set_t *set = engine->set;
    json_t *directories = json_array();
    json_int_t stored = figure(summary, "bytes");
    json_int_t size = figure(summary, "database_size") + figure(summary, "files_size");
    json_int_t saved = size > stored ? size - stored : 0;
    for (size_t i = 0; i < set->files_count; i++)
        json_array_append_new(directories,
                              bk_json_name(set->files[i].path, strlen(set->files[i].path)));
    return json_pack("{so sb so sI sI si sI sI sI sf so}", "monitored_directories", directories,
                     "realtime_monitoring_enabled", (int)bk_watching_any(engine->watching), "watch",
                     bk_watching_describe(engine->watching), "total_files_tracked",
                     figure(summary, "files"), "unique_content_items", figure(summary, "chunks"),
                     "backup_queue_size", 0, "total_original_size", figure(summary, "files_size"),
                     "total_backup_size", stored, "deduplication_saved", saved,
                     "storage_efficiency", size > 0 ? (double)saved / (double)size : 0.0,
                     "backup_directory", bk_json_name(set->base_dir, strlen(set->base_dir)));
}

/* A storage that is made by the first backup is fine when it can be made. */
static bool is_usable(const bk_probe_answer_t *storage, const json_t *summary)
{
    bool beginning = !storage->there && storage->makeable && figure(summary, "total") == 0;
    return storage->silent == 0 && (storage->usable || beginning);
}

static void add_disk(json_t *storage, const bk_probe_answer_t *answer)
{
    double total = (double)answer->total, left = (double)answer->left;
    if (answer->total == 0)
        return;
    json_object_set_new(storage, "disk_total", json_integer((json_int_t)answer->total));
    json_object_set_new(storage, "disk_free", json_integer((json_int_t)answer->left));
    json_object_set_new(storage, "disk_used",
                        json_integer((json_int_t)(answer->total - answer->left)));
    json_object_set_new(storage, "disk_usage_percent", json_real(100 - 100 * left / total));
}

static json_t *storages_status(const bk_engine_t *engine, const json_t *summary)
{
    const bk_storage_config_t *storage = &engine->set->storages[0];
    const char *path = bk_storage_config_get(storage, "path");
    json_t *one = json_pack("{ss ss sb sI sI}", "backend_type", storage->driver, "name",
                            storage->name, "accessible", 1, "total_size", figure(summary, "bytes"),
                            "pack_count", figure(summary, "packs"));
    if (engine->probe != NULL) {
        bk_probe_answer_t answer;
        bk_probe_look(engine->probe, &answer);
        json_object_set_new(one, "accessible", json_boolean(is_usable(&answer, summary)));
        json_object_set_new(one, "checked", bk_json_time(answer.time));
        if (answer.silent != 0)
            json_object_set_new(one, "no_answer_since", bk_json_time(answer.silent));
        json_object_set_new(one, "base_path", bk_json_name(path, strlen(path)));
        add_disk(one, &answer);
    }
    return json_pack("[o]", one);
}

static json_t *operations(bk_engine_t *engine, const char *id, bk_ctl_t *ctl)
{
    json_t *all = json_object(), *job = NULL;
    if (id == NULL || ctl == NULL || bk_engine_job(engine, id, &job, NULL) != BK_OK)
        return all;
    json_t *progress = bk_job_progress(ctl);
    json_t *one = json_pack("{sO sO sO so}", "type", json_object_get(job, "type"), "started",
                            json_object_get(job, "started"), "status",
                            json_object_get(job, "status"), "last_updated", bk_json_time(bk_now()));
    json_object_update(one, progress);
    json_object_set_new(all, id, one);
    json_decref(progress);
    json_decref(job);
    return all;
}

static json_t *last_cleanup(bk_engine_t *engine)
{
    bk_job_row_t row;
    if (bk_catalog_last(engine->catalog, BK_JOB_CLEANUP, &row, NULL) != BK_OK)
        return json_null();
    json_t *time = bk_json_time(row.completed);
    bk_job_row_free(&row);
    return time;
}

static json_t *compression_status(const bk_set_t *set)
{
    static const char *const methods[] = {"none", "zstd", "gzip"};
    static const char *const extensions[] = {"", ".zst", ".gz"};
    return json_pack("{ss si ss sb sb}", "compression_method", methods[set->compression.codec],
                     "compression_level", set->compression.level, "extension",
                     extensions[set->compression.codec], "zstd_available", 1, "gzip_available", 1);
}

static json_t *system_status(bk_engine_t *engine, const json_t *summary, json_int_t good,
                             json_int_t bad, const char *running_id, bk_ctl_t *running)
{
    const bk_set_t *set = engine->set;
    json_t *current = operations(engine, running_id, running);
    json_int_t size = figure(summary, "database_size") + figure(summary, "files_size");
    json_t *statistics =
        json_pack("{sI sI sI sI so so}", "total_backups", good + bad, "successful_backups", good,
                  "failed_backups", bad, "total_size_backed_up", size, "last_full_backup",
                  or_null(summary, "last_full"), "last_incremental_backup",
                  or_null(summary, "last_incremental"));
    json_t *orchestrator =
        json_pack("{sb so sI so}", "initialized", 1, "backup_base_dir",
                  bk_json_name(set->base_dir, strlen(set->base_dir)), "current_operations",
                  (json_int_t)json_object_size(current), "statistics", statistics);
    return json_pack("{so so so so so so}", "orchestrator", orchestrator, "database",
                     database_status(engine, summary), "files", files_status(engine, summary),
                     "compression", compression_status(set), "storage_backends",
                     storages_status(engine, summary), "current_operations", current);
}

static json_t *helper_status(bk_engine_t *engine)
{
    bk_engine_helper_t helper;
    bk_engine_get_helper(engine, &helper);
    json_t *status = json_pack("{ss}", "state", bk_engine_helper_name(helper.state));
    if (helper.state == BK_ENGINE_HELPER_ACTIVE) {
        json_t *watch = json_array();
        if (helper.inotify)
            json_array_append_new(watch, json_string("inotify"));
        if (helper.fanotify)
            json_array_append_new(watch, json_string("fanotify"));
        json_object_set_new(status, "version", json_string(helper.release));
        json_object_set_new(status, "pid", json_integer(helper.pid));
        json_object_set_new(status, "generation", json_integer((json_int_t)helper.generation));
        json_object_set_new(status, "watch", watch);
        json_object_set_new(status, "caged", json_boolean(helper.caged));
        json_object_set_new(status, "refused", json_integer((json_int_t)helper.refused));
    }
    if (helper.text[0] != '\0')
        json_object_set_new(status, "detail", bk_json_name(helper.text, strlen(helper.text)));
    return status;
}

bk_rc_t bk_engine_status(bk_engine_t *engine, const char *running_id, bk_ctl_t *running,
                         json_t **status, bk_err_t *err)
{
    const bk_set_t *set = engine->set;
    uint64_t counts[8];
    json_t *summary = NULL;
    if (atomic_load(&engine->lock_fd) >= 0)
        bk_engine_obey_detach(engine);
    bk_rc_t rc = bk_catalog_counts(engine->catalog, counts, err);
    if (rc == BK_OK)
        rc = bk_catalog_value(engine->catalog, "summary", &summary, err);
    if (rc != BK_OK)
        return rc;
    bool encrypted = set->key_count > 0 || set->passphrase_file != NULL;
    json_int_t good = (json_int_t)(counts[BK_STATUS_COMPLETED] + counts[BK_STATUS_WARNING]);
    json_int_t bad = (json_int_t)counts[BK_STATUS_FAILED];
    /* The history of jobs is kept for a while, and lost with a damaged catalog; backups are not. */
    if (good < figure(summary, "total"))
        good = figure(summary, "total");
    json_t *configuration = json_pack(
        "{sb sb sb sb sI}", "scheduling_enabled", 0, "realtime_monitoring",
        (int)(set->files_count > 0 && bk_watching_any(engine->watching)), "compression_enabled",
        (int)(set->compression.codec != BK_CODEC_RAW), "encryption_enabled", (int)encrypted,
        "storage_backends", (json_int_t)set->storage_count);
    json_t *statistics = json_pack(
        "{so sI sI sI so so so}", "started", bk_json_time(engine->started), "total_operations",
        good + bad, "successful_operations", good, "failed_operations", bad, "last_full_backup",
        or_null(summary, "last_full"), "last_incremental_backup",
        or_null(summary, "last_incremental"), "last_cleanup", last_cleanup(engine));
    *status =
        json_pack("{so ss ss sb so so so so s{sI sI} sI so}", "timestamp", bk_json_time(bk_now()),
                  "backup", set->name, "version", BK_VERSION, "service_running", 1, "backup_system",
                  system_status(engine, summary, good, bad, running_id, running), "configuration",
                  configuration, "helper", helper_status(engine), "statistics", statistics, "jobs",
                  "running", (json_int_t)(counts[BK_STATUS_RUNNING] + counts[BK_STATUS_CANCELING]),
                  "queued", (json_int_t)counts[BK_STATUS_QUEUED], "backups",
                  figure(summary, "total"), "last_successful_backup", or_null(summary, "newest"));
    json_decref(summary);
    return *status != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "status: out of memory");
}

void bk_engine_timeless(json_t *status)
{
    const json_t *system = json_object_get(status, "backup_system");
    json_t *captures = json_object_get(json_object_get(system, "database"), "captures"), *one;
    size_t i;
    json_t *storages = json_object_get(system, "storage_backends");
    json_object_del(status, "timestamp");
    json_array_foreach(storages, i, one) json_object_del(one, "checked");
    json_array_foreach(captures, i, one)
    {
        json_object_del(one, "durable_age_seconds");
        json_object_del(one, "shipped_age_seconds");
    }
}

/* --- health --- */

typedef enum { PASS, WARN, FAIL } verdict_t;

static const char *const verdicts[] = {"pass", "warn", "fail"};

static void add_check(json_t *checks, const char *name, verdict_t verdict, json_t *value,
                      const char *unit, const char *output, verdict_t *worst)
{
    json_t *one = json_pack("{ss so ss* ss so}", "componentType", "component", "observedValue",
                            value, "observedUnit", unit, "status", verdicts[verdict], "time",
                            bk_json_time(bk_now()));
    if (output != NULL && verdict != PASS)
        json_object_set_new(one, "output", bk_json_name(output, strlen(output)));
    json_object_set_new(checks, name, json_pack("[o]", one));
    if (verdict > *worst)
        *worst = verdict;
}

static void check_age(const bk_engine_t *engine, const json_t *summary, json_t *checks,
                      verdict_t *worst)
{
    json_int_t newest = figure(summary, "newest_ns");
    int64_t age = bk_now() - newest;
    uint64_t max = engine->set->health_max_age;
    if (newest == 0)
        add_check(checks, "backup:age", WARN, json_null(), "s", "there is no backup yet", worst);
    else
        add_check(checks, "backup:age", max > 0 && age / BK_MS > (int64_t)max ? WARN : PASS,
                  json_integer(age / BK_SEC), "s", "the newest backup is older than health_max_age",
                  worst);
}

static void check_snapshots(const json_t *summary, json_t *checks, verdict_t *worst)
{
    if (figure(summary, "damaged") > 0)
        add_check(
            checks, "repository:backups", FAIL, json_integer(figure(summary, "damaged")), NULL,
            "backups in the storage cannot be read: verify names them, deleting them ends this",
            worst);
}

static void check_history(const json_t *summary, json_t *checks, verdict_t *worst)
{
    char text[1024];
    const char *missing = json_string_value(json_object_get(summary, "missing"));
    if (missing == NULL)
        return;
    bk_fmt(text, sizeof text, "%s on the storage: " BK_MOMENTS_LOST, missing);
    add_check(checks, "repository:transactions", WARN, json_string(missing), NULL, text, worst);
}

static void check_last_job(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    bk_job_row_t row;
    if (bk_catalog_last(engine->catalog, BK_JOB_BACKUP, &row, NULL) != BK_OK)
        return;
    verdict_t verdict = row.status == BK_STATUS_FAILED    ? FAIL
                        : row.status == BK_STATUS_WARNING ? WARN
                                                          : PASS;
    const char *error = json_string_value(json_object_get(row.result, "error"));
    add_check(checks, "backup:result", verdict, json_string(bk_job_status_name(row.status)), NULL,
              error != NULL ? error : "the last backup ended with warnings", worst);
    bk_job_row_free(&row);
}

static void check_disk(const bk_engine_t *engine, const bk_probe_answer_t *answer, json_t *checks,
                       verdict_t *worst)
{
    uint64_t bytes = 0;
    bk_err_t why = {0};
    const bk_set_t *set = engine->set;
    bk_free_space(set->base_dir, &bytes, NULL);
    bk_rc_t rc = bk_judge_space(set->base_dir, bytes, set->min_free, &why);
    if (rc == BK_OK && answer->total > 0 && answer->there)
        rc = bk_judge_space(bk_storage_config_get(&set->storages[0], "path"), answer->left,
                            set->min_free, &why);
    add_check(checks, "disk:free", rc == BK_OK ? PASS : FAIL, json_integer((json_int_t)bytes), "By",
              why.text, worst);
}

static void check_storage(const bk_engine_t *engine, const bk_probe_answer_t *answer,
                          const json_t *summary, json_t *checks, verdict_t *worst)
{
    const bk_storage_config_t *storage = &engine->set->storages[0];
    const char *path = bk_storage_config_get(storage, "path");
    char name[64], since[BK_TIME_TEXT], text[PATH_MAX + 128] = "";
    bool good = true;
    bk_fmt(name, sizeof name, "storage_%s:accessible", storage->name);
    if (engine->probe != NULL) {
        good = is_usable(answer, summary);
        bk_time_format(since, answer->silent);
        if (answer->silent != 0)
            bk_fmt(text, sizeof text, "%s has not answered since %s: look at its disk or server",
                   path, since);
        else
            bk_fmt(text, sizeof text,
                   "%s cannot be read and written by nginx's workers, or is not mounted", path);
    }
    add_check(checks, name, good ? PASS : FAIL, json_boolean(good), NULL, text, worst);
}

static void check_verified(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    json_t *value = NULL;
    if (bk_catalog_value(engine->catalog, "verify", &value, NULL) != BK_OK || value == NULL)
        return;
    bool good = json_is_true(json_object_get(value, "good"));
    add_check(checks, "repository:verified", good ? PASS : FAIL, or_null(value, "time"), NULL,
              "the last verification found damage; GET …/jobs shows it", worst);
    json_decref(value);
}

/* A week is enough for somebody to have seen it. */
static void check_catalog(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    json_t *when = NULL;
    if (bk_catalog_value(engine->catalog, "replaced", &when, NULL) == BK_OK && when != NULL &&
        bk_now() - json_integer_value(when) < 7 * DAY)
        add_check(checks, "catalog:state", WARN, json_string("replaced"), NULL,
                  "the catalog was damaged and replaced; the history of jobs is lost", worst);
    json_decref(when);
}

/* Where there is one: workers go on without, so that it is down is a warning. */
static void check_helper(bk_engine_t *engine, json_t *checks, verdict_t *worst)
{
    bk_engine_helper_t helper;
    bk_engine_get_helper(engine, &helper);
    if (helper.state != BK_ENGINE_HELPER_OFF)
        add_check(checks, "helper:state", helper.state == BK_ENGINE_HELPER_DOWN ? WARN : PASS,
                  json_string(bk_engine_helper_name(helper.state)), NULL, helper.text, worst);
}

/* Moments need a backup that is not older than the unbroken history that they belong to. */
static void check_base(const json_t *one, const json_t *summary, const char *name, json_t *checks,
                       verdict_t *worst)
{
    const char *text = json_string_value(json_object_get(one, "epoch_began"));
    char check[128], output[256];
    int64_t began = 0;
    if (text == NULL || !bk_time_parse(text, &began))
        return;
    bk_fmt(check, sizeof check, "database_%s:base", name);
    bk_fmt(
        output, sizeof output,
        "make a backup: what is captured since %s is not connected with what was captured before "
        "and can be recovered only after one",
        text);
    add_check(checks, check, figure(summary, "database_ns") < began ? WARN : PASS,
              json_string(text), NULL, output, worst);
}

static json_t *seconds(int64_t ns)
{
    return ns > 0 ? json_real((double)(ns / BK_MS) / 1000) : json_real(0);
}

/*
 * What would be lost with the machine's disk: what was committed since the last look at the
 * database; one that was never looked at since this process is to capture it.
 */
static void check_durable(const bk_capture_report_t *r, json_t *checks, verdict_t *worst)
{
    char check[128];
    int64_t now = bk_now(), owned = r->since != 0 ? now - r->since : 0;
    int64_t age = r->durable != 0 ? now - r->durable : owned;
    bool late = age > (r->batches ? BATCH_LATE : DURABLE_LATE) * BK_SEC;
    /* A machine that was off for a night begins with an old look. */
    bool lost = age > LOST_MOST * BK_SEC && owned > BEGINNING * BK_SEC;
    bk_fmt(check, sizeof check, "database_%s:durable_age", r->name);
    add_check(checks, check,
              r->stuck || lost                ? FAIL
              : late || r->problem[0] != '\0' ? WARN
                                              : PASS,
              r->durable != 0 ? seconds(age) : json_null(), "s",
              r->problem[0] != '\0' ? r->problem : "transactions are not captured", worst);
}

/* What would be lost with the machine.  Before the first backup nothing can be there. */
static void check_shipped(const bk_capture_report_t *r, bool backed_up, json_t *checks,
                          verdict_t *worst)
{
    char check[128];
    int64_t now = bk_now(), age = now - r->shipped;
    bool known = r->shipped != 0;
    bool beginning = now - r->since < BEGINNING * BK_SEC && r->shipping[0] == '\0';
    bool lost = known && age > LOST_MOST * BK_SEC && now - r->since > BEGINNING * BK_SEC;
    bool late = known ? age > SHIPPED_LATE * BK_SEC : !beginning;
    bk_fmt(check, sizeof check, "database_%s:shipped_age", r->name);
    add_check(checks, check,
              lost && backed_up ? FAIL
              : late            ? WARN
                                : PASS,
              known ? seconds(age) : json_null(), "s",
              r->shipping[0] != '\0' ? r->shipping
              : known                ? "transactions are in base_dir, but not on the storage"
                                     : "nobody knows which transactions are on the storage",
              worst);
}

static void check_content(const bk_capture_report_t *r, json_t *checks, verdict_t *worst)
{
    char check[128];
    bk_fmt(check, sizeof check, "database_%s:content", r->name);
    add_check(checks, check, r->doubted ? FAIL : PASS, bk_json_time(r->proved), NULL,
              "the database is not what its transactions made of it: until all of it is compared "
              "no moment from now on is right",
              worst);
}

static void check_captures(const bk_engine_t *engine, const json_t *summary, json_t *checks,
                           verdict_t *worst)
{
    json_t *list = bk_capturing_describe(engine->capturing), *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        bk_capture_report_t r;
        bk_capturing_report(engine->capturing, i, &r);
        check_durable(&r, checks, worst);
        check_shipped(&r, figure(summary, "newest_ns") != 0, checks, worst);
        check_content(&r, checks, worst);
        check_base(one, summary, r.name, checks, worst);
    }
    json_decref(list);
}

bk_rc_t bk_engine_health(bk_engine_t *engine, json_t **health, bk_err_t *err)
{
    verdict_t worst = PASS;
    json_t *summary = NULL;
    char description[64];
    bk_rc_t rc = bk_catalog_value(engine->catalog, "summary", &summary, err);
    if (rc != BK_OK)
        return rc;
    json_t *checks = json_object();
    check_age(engine, summary, checks, &worst);
    check_last_job(engine, checks, &worst);
    bk_probe_answer_t storage = {0};
    if (engine->probe != NULL)
        bk_probe_look(engine->probe, &storage);
    check_storage(engine, &storage, summary, checks, &worst);
    check_disk(engine, &storage, checks, &worst);
    check_verified(engine, checks, &worst);
    check_history(summary, checks, &worst);
    check_snapshots(summary, checks, &worst);
    check_catalog(engine, checks, &worst);
    check_helper(engine, checks, &worst);
    check_captures(engine, summary, checks, &worst);
    bk_fmt(description, sizeof description, "backup of %s", engine->set->name);
    *health = json_pack("{ss ss ss ss ss so sb sb sI so so}", "status", verdicts[worst], "version",
                        "1", "releaseId", BK_VERSION, "serviceId", engine->set->name, "description",
                        description, "timestamp", bk_json_time(bk_now()), "healthy",
                        (int)(worst != FAIL), "service_running", 1, "storage_backends_count",
                        (json_int_t)engine->set->storage_count, "last_successful_backup",
                        or_null(summary, "newest"), "checks", checks);
    json_decref(summary);
    return *health != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "health: out of memory");
}
