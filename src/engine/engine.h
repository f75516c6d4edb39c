/*
 * engine/engine.h: everything a host (nginx worker, command line) asks of a set.
 *
 * The host submits requests; they become jobs in the catalog; the one process that holds the set's
 * lock takes them one by one and runs each on a team.  Functions marked [short] do a few catalog
 * reads or writes (milliseconds, a thread all the same, never an event loop); [job] may run for
 * hours; the others only compute.
 *
 * Threads: an engine may be used by several threads at once; each call opens what it needs of the
 * catalog or shares it under the engine's lock.  No call keeps anything of its arguments.
 *
 * Answers are JSON bodies exactly as REST returns them (docs/api.md), without "links", "instance"
 * and "request_id", which only the host knows.  json_t results are owned by the caller.
 */
#ifndef BK_ENGINE_ENGINE_H
#define BK_ENGINE_ENGINE_H

#include <jansson.h>

#include "base/buf.h"
#include "base/ctl.h"
#include "base/team.h"
#include "engine/set.h"
#include "helper/client.h"
#include "repo/snapshot.h"

#define BK_JOB_ID 64 /* "recovery_20251015_143000_2" and NUL */

typedef enum {
    BK_JOB_BACKUP,
    BK_JOB_RECOVERY,
    BK_JOB_VALIDATE, /* validate-recovery */
    BK_JOB_VERIFY,
    BK_JOB_TEST,
    BK_JOB_CLEANUP,
    BK_JOB_DELETE /* one backup */
} bk_job_kind_t;

typedef enum {
    BK_STATUS_QUEUED,
    BK_STATUS_RUNNING,
    BK_STATUS_CANCELING, /* running, and somebody wants it to stop */
    BK_STATUS_COMPLETED,
    BK_STATUS_WARNING,
    BK_STATUS_FAILED,
    BK_STATUS_CANCELED,
    BK_STATUS_INTERRUPTED
} bk_job_status_t;

const char *bk_job_kind_name(bk_job_kind_t kind);
const char *bk_job_status_name(bk_job_status_t status);

typedef struct bk_engine_s bk_engine_t;

/*
 * Open the catalog in base_dir (made when missing, 0700).  set is borrowed and outlives the engine.
 * Takes no lock: any number of processes may have an engine of the same set; only the owner runs
 * jobs.
 */
bk_rc_t bk_engine_open(const bk_set_t *set, bk_engine_t **engine, bk_err_t *err);
void bk_engine_close(bk_engine_t *engine);
const bk_set_t *bk_engine_set(const bk_engine_t *engine);

/*
 * Become the owner: BK_LOCKED while another process is (try again on a timer).  On success jobs
 * found "running" were cut off by a crash: they are marked interrupted and queued again (a recovery
 * is not: it is marked failed with what to do), and leftovers in scratch/ are removed.  [short]
 */
bk_rc_t bk_engine_own(bk_engine_t *engine, bk_err_t *err);
/*
 * Let go of it in good order: waits for the step of a capture that is under way, and asks the
 * helper what changed until now, up to seconds when that hangs.  [short]
 */
void bk_engine_disown(bk_engine_t *engine);

/*
 * Check a request body (may be NULL for kinds with defaults) without side effects: unknown members,
 * types, ranges, the rules of docs/api.md.  BK_INVALID with *problems = [{pointer, detail}] when it
 * is wrong.  FORBIDDEN for a target outside every restore_root.
 */
bk_rc_t bk_request_check(const bk_set_t *set, bk_job_kind_t kind, json_t *body, json_t **problems,
                         bk_err_t *err);

/*
 * Can the moment that a checked request names be had?  BK_INVALID, before a job is made of it, when
 * it can't; the message names the nearest, and *more, for bk_problem, is {"recovery_window": …} or
 * NULL.  May the backup that is to go?  BK_CONFLICT when not.
 * [short, but for the storage]
 */
bk_rc_t bk_engine_check(bk_engine_t *engine, bk_job_kind_t kind, json_t *body, bk_ctl_t *ctl,
                        json_t **more, bk_err_t *err);

/*
 * POST /query: check as bk_request_check does, and ask: SQL that only reads, of a database as of a
 * backup or a moment.  [short, but for the storage and what the query takes: timeout, at most 60 s]
 */
bk_rc_t bk_query_check(const bk_set_t *set, json_t *body, json_t **problems, bk_err_t *err);
bk_rc_t bk_engine_query(bk_engine_t *engine, json_t *body, bk_ctl_t *ctl, json_t **answer,
                        json_t **more, bk_err_t *err);

/*
 * POST /databases/{name}/detach and attach: whether its transactions are captured, from now on and
 * over restarts; the owner obeys within seconds.  BK_NOT_FOUND: no such database, or it has no
 * pitr_window.  [short]
 */
bk_rc_t bk_engine_detach(bk_engine_t *engine, const char *name, bool detached, json_t **answer,
                         bk_err_t *err);

typedef struct {
    const char *database; /* NULL: each captured one */
    const char *cursor;   /* NULL: from the newest; of one database */
    int64_t since, until; /* ns; 0: a day before until; now */
    unsigned limit;       /* transactions, 1..500; 0: 50 */
} bk_timeline_filter_t;

/*
 * GET /timeline: from when to when each database can be had as of any moment, what nobody saw and
 * what is damaged or missing, and, when there is one such database, its transactions, newest first.
 * [short, but for the storage]
 */
bk_rc_t bk_engine_timeline(bk_engine_t *engine, const bk_timeline_filter_t *filter, bk_ctl_t *ctl,
                           json_t **answer, bk_err_t *err);
/*
 * The same from a storage alone, for the command line that has no engine: of set name, databases
 * and their pitr_window count, and base_dir when there is one.  cache_dir may be NULL.
 */
bk_rc_t bk_timeline(const bk_set_t *set, bk_repo_t *repo, const char *cache_dir,
                    const bk_timeline_filter_t *filter, bk_ctl_t *ctl, json_t **answer,
                    bk_err_t *err);

typedef struct {
    bk_job_kind_t kind;
    json_t *body;             /* checked request, borrowed; may be NULL */
    const char *trigger;      /* "api", "capture" */
    const char *requested_by; /* user or token name */
    const char *request_id;
    const char *idempotency_key; /* NULL: none */
} bk_submit_t;

/*
 * Queue a job; id gets its name ("full_20251015_143000", "_2" when that second is taken).
 * BK_CONFLICT when an equal job is already queued or running (id is then that one's); backups may
 * follow each other, so there only one that waits behind a running job is in the way.  With a known
 * idempotency key: the same request of the same user gives BK_OK and the first job's id with
 * *replayed; another kind, body or user BK_INVALID.  [short]
 */
bk_rc_t bk_engine_submit(bk_engine_t *engine, const bk_submit_t *request, char id[BK_JOB_ID],
                         bool *replayed, bk_err_t *err);
/* What a recovery or cleanup with dry_run would do, now.  [job, read-only] */
bk_rc_t bk_engine_plan(bk_engine_t *engine, bk_job_kind_t kind, json_t *body, bk_team_t *team,
                       bk_ctl_t *ctl, json_t **plan, bk_err_t *err);

/* Owner only: the oldest queued job, marked running; id "" when there is none.  [short] */
bk_rc_t bk_engine_take(bk_engine_t *engine, char id[BK_JOB_ID], bk_err_t *err);
/*
 * Owner only: run a taken job on lane 0 and record its end in the catalog: completed, warning,
 * failed, canceled, or interrupted (then queued again).  The result is the job's; BK_OK also with
 * warnings (*status tells).  [job]
 */
bk_rc_t bk_engine_run(bk_engine_t *engine, const char *id, bk_team_t *team, bk_ctl_t *ctl,
                      bk_job_status_t *status, bk_err_t *err);
/*
 * Cancel a job: a queued one is *status canceled at once; of a running one the wish is recorded, so
 * that it outlives a runner that leaves or dies: *status canceling, and the owner should raise the
 * job's ctl.  BK_CONFLICT when it has ended, BK_NOT_FOUND.  [short]
 */
bk_rc_t bk_engine_cancel(bk_engine_t *engine, const char *id, bk_job_status_t *status,
                         bk_err_t *err);

/* Body of a job from the catalog [short]; progress of a running one is added by bk_job_progress. */
bk_rc_t bk_engine_job(bk_engine_t *engine, const char *id, json_t **job, bk_err_t *err);
/* {"jobs":[…],"total","next_cursor"}, newest first.  cursor NULL: from the start; limit 1..500.
 * [short] */
bk_rc_t bk_engine_jobs(bk_engine_t *engine, const char *cursor, unsigned limit, json_t **list,
                       bk_err_t *err);
/* {"progress", "progress_detail":{…}, "phase"} from the counters; also used in status. */
json_t *bk_job_progress(bk_ctl_t *ctl);

typedef struct {
    const char *type, *tag, *storage, *cursor; /* NULL: any */
    int64_t since, until;                      /* ns, 0: any */
    unsigned limit;                            /* 1..500 */
} bk_list_filter_t;

/* GET /list and GET /backups/{id} from the catalog's copy of the snapshots.  [short] */
bk_rc_t bk_engine_list(bk_engine_t *engine, const bk_list_filter_t *filter, json_t **list,
                       bk_err_t *err);
bk_rc_t bk_engine_backup(bk_engine_t *engine, const char *id, json_t **backup, bk_err_t *err);
/* Bring the catalog's copy in line with the storage: at the owner's start, and after each job.
 * [job] */
bk_rc_t bk_engine_sync(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err);

/* What the host knows of the privileged helper, for status, health and self-test. */
typedef enum {
    BK_ENGINE_HELPER_OFF,     /* not wanted, or not possible: text says why, or is empty */
    BK_ENGINE_HELPER_ACTIVE,  /* it answers */
    BK_ENGINE_HELPER_STANDBY, /* it waits until that of an older nginx is gone */
    BK_ENGINE_HELPER_DOWN     /* it should answer and does not: text says what to do */
} bk_engine_helper_state_t;

typedef struct {
    bk_engine_helper_state_t state;
    int pid;             /* of its agent */
    uint64_t generation; /* of its configuration */
    uint64_t refused;    /* what it did not do for workers, since its start */
    bool inotify, fanotify;
    bool caged; /* behind all its walls */
    char release[32];
    char text[512];
} bk_engine_helper_t;

/*
 * Watch the set's files through a helper that answers, from now on: *fd is to be polled for reading
 * (drain at once, too).  What happened before is not known, so that the next backup walks, unless
 * the process that owned the set before watched until later.  Called again it watches anew.
 * drain reads what was told, and tries trees again that could not be watched: call it every 30 s,
 * too.  BK_UNAVAILABLE: the watch is over, so begin anew after a while.
 * end closes fd, as beginning anew does: stop polling it first.  [short] all of them: each may wait
 * for a thread that talks to a helper that hangs.
 */
bk_rc_t bk_engine_watch(bk_engine_t *engine, bk_helper_t *helper, int *fd, bk_err_t *err);
bk_rc_t bk_engine_watch_drain(bk_engine_t *engine, bk_err_t *err);
void bk_engine_watch_end(bk_engine_t *engine);
/* Is each of its trees watched now, or is it known why not? */
bool bk_engine_watched(bk_engine_t *engine);
/* Counts what was told of databases: it changed, so something was written to one.  Never waits. */
unsigned bk_engine_written(bk_engine_t *engine);

/*
 * Owner only: take in what was committed to one of the databases that have a pitr_window, which: 0
 * to captures - 1; several threads, for several databases.  woken: something was written; *again:
 * call again after so many ms at the latest.  A failure is in the log and in the status, and tried
 * again.  [short], but for the first time: then it reads all of it.
 * ship: what was sealed since, to the storage; every 10 s.  [job]
 */
size_t bk_engine_captures(bk_engine_t *engine);
bk_rc_t bk_engine_capture(bk_engine_t *engine, size_t which, bool woken, unsigned *again,
                          bk_err_t *err);
bk_rc_t bk_engine_ship(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err);
/* Once, before the set is owned and the one who owns it lets go: nothing is missed in between. */
void bk_engine_capture_hold(bk_engine_t *engine);
/* This process leaves without having owned the set: what it holds would let the log grow. */
void bk_engine_capture_release(bk_engine_t *engine);

/*
 * What jobs ask for files that this process has no right to; NULL, as at first: nobody.  Borrowed,
 * and to be there as long as a job may run.
 */
void bk_engine_set_client(bk_engine_t *engine, bk_helper_t *client);
/* Without it a host has none (BK_ENGINE_HELPER_OFF).  Asks an active one for the databases. */
void bk_engine_set_helper(bk_engine_t *engine, const bk_engine_helper_t *helper);

/*
 * GET /status and GET /health (full, and what an unauthenticated caller sees), computed from
 * catalog and disk by the owner and published to the other workers by the host.  running may be
 * NULL.  [short]
 */
bk_rc_t bk_engine_status(bk_engine_t *engine, const char *running_id, bk_ctl_t *running,
                         json_t **status, bk_err_t *err);
bk_rc_t bk_engine_health(bk_engine_t *engine, json_t **health, bk_err_t *err);

/* Take out of a status what changes although nothing happened. */
void bk_engine_timeless(json_t *status);

/*
 * GET /metrics in Prometheus' text format, appended to out; status and health as computed just
 * before.  [short]
 */
bk_rc_t bk_engine_metrics(bk_engine_t *engine, const json_t *status, const json_t *health,
                          bk_buf_t *out, bk_err_t *err);

/* GET /backups/{id} from a snapshot; with "completed_ns" for the catalog.  Also for the
 * command line that has no engine. */
json_t *bk_describe_snapshot(const bk_snapshot_t *snapshot, const char *storage);

/* Problem document (RFC 9457) of a failure: type, title, status, detail, code, and errors when
 * given (taken over); an object: its members instead. */
json_t *bk_problem(const bk_err_t *err, json_t *problems);

#endif
