/*
 * nginx/runner.c: worker 0 owns the sets and runs their jobs.
 *
 * Loop code, except the ..._work functions.  One timer drives everything: it
 * tries to own each set, takes the next job, publishes progress, status and
 * health, hands on the wish to cancel, and lets go when the worker leaves.  An
 * eventfd made before the fork lets any worker hurry it; when such a wake-up
 * is lost, the next tick finds the job all the same.  Each worker has one more,
 * by which the runner tells it that a job has ended.
 */

#include "nginx/module.h"

#include <malloc.h>
#include <sqlite3.h>
#include <sys/eventfd.h>

#include "base/json.h"
#include "crypto/hash.h"


#define NGX_HTTP_BACKUP_TICK       250      /* ms, while something goes on */
#define NGX_HTTP_BACKUP_IDLE       1000     /* ms */
#define NGX_HTTP_BACKUP_OWN        500      /* ms between tries */
#define NGX_HTTP_BACKUP_FOREIGN    30000    /* ms of tries before a warning */
#define NGX_HTTP_BACKUP_BUSY_PUB   1000     /* ms between status during a job */
#define NGX_HTTP_BACKUP_IDLE_PUB   5000     /* ms otherwise */
#define NGX_HTTP_BACKUP_RESYNC     60000    /* ms after a failed sync */

#define NGX_HTTP_BACKUP_QUEUE      256      /* works of a team */
#define NGX_HTTP_BACKUP_QUEUE_LEN  (8 * 1024 * 1024)


/* A job at work.  The loop counts who still looks at it. */
typedef struct {
    ngx_http_backup_set_t    *bset;
    ngx_uint_t                refs;
    char                      id[BK_JOB_ID];
    ngx_http_backup_ctl_t     ctl;
    ngx_http_backup_ctl_t     sync;         /* of the sync after it */
    bk_team_t                *team;
    bk_job_status_t           status;
    bk_rc_t                   rc;
    bk_rc_t                   sync_rc;
    bk_err_t                  err;
    unsigned                  posted:1;
} ngx_http_backup_job_t;


struct ngx_http_backup_runner_s {
    ngx_http_backup_job_t    *job;
    ngx_msec_t                own_next;
    ngx_msec_t                own_since;
    ngx_msec_t                sync_next;
    ngx_msec_t                publish_next;
    ngx_msec_t                leave;        /* when the worker began to */

    unsigned                  owned:1;
    unsigned                  busy:1;       /* own, sync, take or disown */
    unsigned                  released:1;   /* left before it owned */
    unsigned                  publishing:1;
    unsigned                  synced:1;
    unsigned                  again:1;      /* wake-up while busy */
    unsigned                  leaving:1;
    unsigned                  warned:1;
    unsigned                  trouble:1;
};


/* A short step of the runner on a thread. */
typedef struct {
    ngx_http_backup_set_t    *bset;
    ngx_http_backup_job_t    *job;
    ngx_http_backup_ctl_t     ctl;
    char                      id[BK_JOB_ID];
    bk_rc_t                   rc;
    bk_err_t                  err;

    bk_buf_t                  status;
    bk_buf_t                  health;
    bk_buf_t                  metrics;
    bk_buf_t                  brief;
    uint64_t                  tag;
    unsigned                  healthy:1;
} ngx_http_backup_step_t;


static void ngx_http_backup_tick(ngx_event_t *ev);
static void ngx_http_backup_awake(ngx_event_t *ev);
static ngx_connection_t *ngx_http_backup_listen(ngx_cycle_t *cycle,
    ngx_socket_t fd, void (*handler)(ngx_event_t *ev));
static void ngx_http_backup_called(ngx_event_t *ev);
static void ngx_http_backup_run(ngx_http_backup_set_t *bset,
    ngx_uint_t leaving);
static void ngx_http_backup_step(ngx_http_backup_set_t *bset,
    ngx_thread_pool_t *pool, void (*work)(void *), void (*done)(void *));
static void ngx_http_backup_own(ngx_http_backup_set_t *bset);
static void ngx_http_backup_release_work(void *data);
static void ngx_http_backup_disown_done(void *data);
static void ngx_http_backup_sync_work(void *data);
static void ngx_http_backup_take(ngx_http_backup_set_t *bset);
static void ngx_http_backup_job_start(ngx_http_backup_set_t *bset,
    const char *id);
static void ngx_http_backup_job_post(ngx_http_backup_set_t *bset);
static void ngx_http_backup_job_watch(ngx_http_backup_set_t *bset,
    ngx_uint_t leaving);
static void ngx_http_backup_job_release(ngx_http_backup_job_t *job);
static void ngx_http_backup_publish(ngx_http_backup_set_t *bset);
static void ngx_http_backup_trouble(ngx_http_backup_set_t *bset,
    const char *text);


static ngx_event_t                   ngx_http_backup_timer;
static ngx_connection_t             *ngx_http_backup_wakeup;
static ngx_connection_t             *ngx_http_backup_caller;
static ngx_array_t                  *ngx_http_backup_callees;
static ngx_http_backup_main_conf_t  *ngx_http_backup_runner_conf;
static ngx_socket_t                  ngx_http_backup_wake_fd = -1;


ngx_int_t
ngx_http_backup_runner_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    ngx_uint_t               i;
    ngx_socket_t            *calls;
    ngx_http_backup_set_t  **sets;

    /* Once, before any thread. */

    (void) sqlite3_initialize();
    json_object_seed(0);

    ngx_http_backup_log_init(cycle->log);
    ngx_http_backup_wake_fd = bmcf->wake;

    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        sets[i]->ready = 1;
    }

    ngx_http_backup_callees = &bmcf->calls;
    calls = bmcf->calls.elts;

    if (ngx_worker < bmcf->calls.nelts
        && calls[ngx_worker] != (ngx_socket_t) -1)
    {
        ngx_http_backup_caller = ngx_http_backup_listen(cycle,
                                                        calls[ngx_worker],
                                                        ngx_http_backup_called);
        if (ngx_http_backup_caller == NULL) {
            return NGX_ERROR;
        }
    }

    if (ngx_worker != 0) {
        return NGX_OK;
    }

    for (i = 0; i < bmcf->sets.nelts; i++) {
        sets[i]->runner = ngx_pcalloc(cycle->pool,
                                      sizeof(ngx_http_backup_runner_t));
        if (sets[i]->runner == NULL) {
            return NGX_ERROR;
        }

        sets[i]->runner->own_since = ngx_current_msec;
        sets[i]->runner->own_next = ngx_current_msec;
        sets[i]->runner->publish_next = ngx_current_msec;

        if (ngx_http_backup_watch_init(cycle, sets[i]) != NGX_OK
            || ngx_http_backup_capture_init(cycle, sets[i]) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    ngx_http_backup_runner_conf = bmcf;

    if (bmcf->wake != (ngx_socket_t) -1) {
        ngx_http_backup_wakeup = ngx_http_backup_listen(cycle, bmcf->wake,
                                                        ngx_http_backup_awake);
        if (ngx_http_backup_wakeup == NULL) {
            return NGX_ERROR;
        }
    }

    ngx_http_backup_timer.handler = ngx_http_backup_tick;
    ngx_http_backup_timer.data = &ngx_http_backup_nowhere;
    ngx_http_backup_timer.log = cycle->log;
    ngx_http_backup_timer.cancelable = 1;

    ngx_add_timer(&ngx_http_backup_timer, 1);

    return NGX_OK;
}


void
ngx_http_backup_runner_exit(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    ngx_uint_t               i;
    ngx_socket_t            *calls;
    ngx_http_backup_set_t  **sets;

    /* The threads are gone by now. */

    if (ngx_http_backup_wakeup) {

        /* else nginx takes it for a leaked connection */

        ngx_close_connection(ngx_http_backup_wakeup);
        ngx_http_backup_wakeup = NULL;
        bmcf->wake = (ngx_socket_t) -1;
    }

    if (ngx_http_backup_caller) {
        ngx_close_connection(ngx_http_backup_caller);
        ngx_http_backup_caller = NULL;

        calls = bmcf->calls.elts;
        calls[ngx_worker] = (ngx_socket_t) -1;
    }

    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (sets[i]->engine == NULL) {
            continue;
        }

        ngx_http_backup_capture_exit(sets[i]);
        ngx_http_backup_watch_exit(sets[i]);

        if (sets[i]->runner && sets[i]->runner->owned) {
            bk_engine_disown(sets[i]->engine);
        }

        bk_engine_close(sets[i]->engine);
        sets[i]->engine = NULL;
    }

    ngx_http_backup_log_drain();
}


static ngx_connection_t *
ngx_http_backup_listen(ngx_cycle_t *cycle, ngx_socket_t fd,
    void (*handler)(ngx_event_t *ev))
{
    ngx_connection_t  *c;

    c = ngx_get_connection(fd, cycle->log);
    if (c == NULL) {
        return NULL;
    }

    c->read->handler = handler;
    c->read->log = cycle->log;
    c->write->log = cycle->log;

    if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        ngx_free_connection(c);
        return NULL;
    }

    return c;
}


static void
ngx_http_backup_signal(ngx_socket_t fd, const char *whom)
{
    uint64_t  one = 1;

    if (fd != (ngx_socket_t) -1
        && write(fd, &one, sizeof(one)) == -1
        && ngx_errno != NGX_EAGAIN)
    {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, ngx_errno,
                      "backup: waking %s failed", whom);
    }
}


static void
ngx_http_backup_hear(ngx_event_t *ev)
{
    ssize_t            n;
    uint64_t           count;
    ngx_connection_t  *c = ev->data;

    n = read(c->fd, &count, sizeof(count));

    if (n == -1 && ngx_errno == NGX_EAGAIN) {
        ev->ready = 0;
    }

    (void) ngx_handle_read_event(ev, 0);
}


void
ngx_http_backup_wake(void)
{
    ngx_http_backup_signal(ngx_http_backup_wake_fd, "the runner");
}


void
ngx_http_backup_call_waiters(void)
{
    ngx_uint_t     i;
    ngx_socket_t  *calls;

    calls = ngx_http_backup_callees->elts;

    for (i = 0; i < ngx_http_backup_callees->nelts; i++) {
        ngx_http_backup_signal(calls[i], "a worker");
    }
}


static void
ngx_http_backup_called(ngx_event_t *ev)
{
    ngx_http_backup_hear(ev);
    ngx_http_backup_look();
}


static void
ngx_http_backup_awake(ngx_event_t *ev)
{
    ngx_http_backup_hear(ev);

    ngx_http_backup_hurry();
}


void
ngx_http_backup_hurry(void)
{
    if (ngx_http_backup_timer.timer_set) {
        ngx_del_timer(&ngx_http_backup_timer);
    }

    ngx_http_backup_tick(&ngx_http_backup_timer);
}


static void
ngx_http_backup_tick(ngx_event_t *ev)
{
    ngx_uint_t                     i, leaving, active, waiting;
    ngx_http_backup_set_t        **sets;
    ngx_http_backup_runner_t      *rn;
    ngx_http_backup_main_conf_t   *bmcf = ngx_http_backup_runner_conf;

    ngx_http_backup_log_drain();

    active = 0;
    waiting = 0;
    leaving = (ngx_exiting || ngx_quit || ngx_terminate);
    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        ngx_http_backup_run(sets[i], leaving);

        rn = sets[i]->runner;

        if (rn->job || rn->busy || !rn->owned) {
            active = 1;
        }

        if (leaving && rn->owned && rn->job == NULL && !rn->busy) {
            active = 1;
            waiting = 1;
        }
    }

    /* the worker stays as long as a set waits for its next runner */

    ngx_http_backup_timer.cancelable = !waiting;

    ngx_add_timer(&ngx_http_backup_timer,
                  active ? NGX_HTTP_BACKUP_TICK : NGX_HTTP_BACKUP_IDLE);
}


/* Everything that is due for one set. */

static void
ngx_http_backup_run(ngx_http_backup_set_t *bset, ngx_uint_t leaving)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    if (leaving && !rn->leaving) {
        rn->leaving = 1;
        rn->leave = ngx_current_msec;
    }

    if (rn->job) {
        ngx_http_backup_job_watch(bset, leaving);
    }

    ngx_http_backup_watch_tick(bset, leaving);
    ngx_http_backup_capture_tick(bset, rn->owned);

    if (!rn->publishing && !(leaving && !rn->owned)
        && (ngx_msec_int_t) (ngx_current_msec - rn->publish_next) >= 0)
    {
        ngx_http_backup_publish(bset);
    }

    if (rn->busy) {
        rn->again = 1;
        return;
    }

    if (leaving) {
        if (rn->owned && rn->job == NULL
            && !ngx_http_backup_watch_waits(bset,
                                            ngx_current_msec - rn->leave))
        {
            ngx_http_backup_own(bset);

        } else if (!rn->owned && !rn->released) {
            rn->released = 1;
            rn->busy = 1;
            ngx_http_backup_step(bset, bset->short_pool,
                                 ngx_http_backup_release_work,
                                 ngx_http_backup_disown_done);
        }

        return;
    }

    if (!rn->owned) {
        if ((ngx_msec_int_t) (ngx_current_msec - rn->own_next) >= 0) {
            ngx_http_backup_own(bset);
        }

        return;
    }

    if (rn->job == NULL) {
        ngx_http_backup_take(bset);
    }
}


static void
ngx_http_backup_step(ngx_http_backup_set_t *bset, ngx_thread_pool_t *pool,
    void (*work)(void *), void (*done)(void *))
{
    ngx_http_backup_step_t  *step;

    step = ngx_calloc(sizeof(ngx_http_backup_step_t), ngx_cycle->log);
    if (step == NULL) {
        bset->runner->busy = 0;
        bset->runner->publishing = 0;
        return;
    }

    step->bset = bset;
    step->rc = bk_err_set(&step->err, BK_UNAVAILABLE,
                          "the queue of the thread pool is full: enlarge "
                          "max_queue");
    ngx_http_backup_ctl_init(&step->ctl, 1);
    bk_buf_init(&step->status, 262144);
    bk_buf_init(&step->health, 65536);
    bk_buf_init(&step->metrics, 262144);
    bk_buf_init(&step->brief, 4096);

    if (bset->runner->job) {
        step->job = bset->runner->job;
        step->job->refs++;
    }

    if (ngx_http_backup_post(pool, work, done, step) != NGX_OK) {
        done(step);
    }
}


static void
ngx_http_backup_step_free(ngx_http_backup_step_t *step)
{
    if (step->job) {
        ngx_http_backup_job_release(step->job);
    }

    ngx_http_backup_ctl_done(&step->ctl);
    bk_buf_free(&step->status);
    bk_buf_free(&step->health);
    bk_buf_free(&step->metrics);
    bk_buf_free(&step->brief);
    ngx_free(step);
}


/* To own: the lock, and the catalog in line with the storage. */

static void
ngx_http_backup_own_work(void *data)
{
    bk_engine_t             *engine;
    ngx_http_backup_step_t  *step = data;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);

    if (step->rc == BK_OK) {
        step->rc = bk_engine_own(engine, &step->err);
    }
}


static void
ngx_http_backup_disown_work(void *data)
{
    bk_engine_t             *engine;
    ngx_http_backup_step_t  *step = data;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);

    if (step->rc == BK_OK) {
        bk_engine_disown(engine);
    }
}


/* The next one is here already, before this one had the set. */

static void
ngx_http_backup_release_work(void *data)
{
    bk_engine_t             *engine;
    ngx_http_backup_step_t  *step = data;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);

    if (step->rc == BK_OK) {
        bk_engine_capture_release(engine);
    }
}


static void
ngx_http_backup_disown_done(void *data)
{
    ngx_http_backup_step_t  *step = data;

    step->bset->runner->busy = 0;

    if (step->rc == BK_OK) {
        step->bset->runner->owned = 0;
    }

    ngx_http_backup_step_free(step);
}


static void
ngx_http_backup_own_done(void *data)
{
    ngx_http_backup_set_t     *bset;
    ngx_http_backup_step_t    *step = data;
    ngx_http_backup_runner_t  *rn;

    bset = step->bset;
    rn = bset->runner;

    rn->busy = 0;
    rn->own_next = ngx_current_msec + NGX_HTTP_BACKUP_OWN;

    switch (step->rc) {

    case BK_OK:
        rn->owned = 1;
        rn->synced = 0;
        rn->sync_next = ngx_current_msec;

        /* what a killed runner left there */
        ngx_http_backup_running(bset, "");
        ngx_http_backup_ended(bset);
        ngx_http_backup_call_waiters();

        ngx_http_backup_trouble(bset, "");
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "backup \"%V\": this worker runs its jobs now",
                      &bset->name);
        break;

    case BK_LOCKED:
        if (!rn->warned && (ngx_msec_int_t) (ngx_current_msec - rn->own_since)
                           > NGX_HTTP_BACKUP_FOREIGN)
        {
            rn->warned = 1;
            ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                          "backup \"%V\": another process runs its jobs: %s",
                          &bset->name, step->err.text);
        }

        break;

    default:
        if (!rn->warned) {
            rn->warned = 1;
            ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                          "backup \"%V\" cannot run: %s",
                          &bset->name, step->err.text);
        }

        rn->own_next = ngx_current_msec + NGX_HTTP_BACKUP_IDLE_PUB;
        ngx_http_backup_trouble(bset, step->err.text);
    }

    ngx_http_backup_step_free(step);

    if (rn->owned) {
        rn->publish_next = ngx_current_msec;
        ngx_http_backup_run(bset, ngx_exiting || ngx_quit || ngx_terminate);
    }
}


static void
ngx_http_backup_own(ngx_http_backup_set_t *bset)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    rn->busy = 1;

    if (rn->owned) {
        ngx_http_backup_step(bset, bset->short_pool,
                             ngx_http_backup_disown_work,
                             ngx_http_backup_disown_done);
        return;
    }

    ngx_http_backup_step(bset, bset->short_pool, ngx_http_backup_own_work,
                         ngx_http_backup_own_done);
}


static void
ngx_http_backup_sync_work(void *data)
{
    bk_engine_t             *engine;
    ngx_http_backup_step_t  *step = data;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);

    if (step->rc == BK_OK) {
        step->rc = bk_engine_sync(engine, &step->ctl.ctl, &step->err);
    }
}


static void
ngx_http_backup_sync_done(void *data)
{
    ngx_http_backup_set_t     *bset;
    ngx_http_backup_step_t    *step = data;
    ngx_http_backup_runner_t  *rn;

    bset = step->bset;
    rn = bset->runner;

    rn->busy = 0;
    rn->synced = 1;

    if (step->rc == BK_OK) {
        rn->sync_next = 0;

    } else {
        rn->sync_next = ngx_current_msec + NGX_HTTP_BACKUP_RESYNC;

        if (step->rc != BK_INTERRUPTED) {
            ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                          "backup \"%V\": reading the list of backups from "
                          "the storage failed: %s", &bset->name,
                          step->err.text);
        }
    }

    ngx_http_backup_step_free(step);

    rn->publish_next = ngx_current_msec;
    ngx_http_backup_run(bset, ngx_exiting || ngx_quit || ngx_terminate);
}


static void
ngx_http_backup_take_work(void *data)
{
    bk_engine_t             *engine;
    ngx_http_backup_step_t  *step = data;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);

    if (step->rc == BK_OK) {
        step->rc = bk_engine_take(engine, step->id, &step->err);
    }
}


static void
ngx_http_backup_take_done(void *data)
{
    ngx_uint_t                 again;
    ngx_http_backup_set_t     *bset;
    ngx_http_backup_step_t    *step = data;
    ngx_http_backup_runner_t  *rn;

    bset = step->bset;
    rn = bset->runner;

    rn->busy = 0;
    again = rn->again;
    rn->again = 0;

    if (step->rc == BK_OK && step->id[0] != '\0') {
        ngx_http_backup_job_start(bset, step->id);

    } else if (step->rc == BK_OK) {
        ngx_http_backup_trouble(bset, "");

        if (again) {

            /* submitted after the catalog was read */

            ngx_http_backup_run(bset,
                                ngx_exiting || ngx_quit || ngx_terminate);
        }

    } else if (!rn->trouble) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "backup \"%V\": looking for a job failed: %s",
                      &bset->name, step->err.text);
        ngx_http_backup_trouble(bset, step->err.text);
    }

    ngx_http_backup_step_free(step);
}


static void
ngx_http_backup_take(ngx_http_backup_set_t *bset)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    rn->busy = 1;
    rn->again = 0;

    if (!rn->synced
        || (rn->sync_next
            && (ngx_msec_int_t) (ngx_current_msec - rn->sync_next) >= 0))
    {
        ngx_http_backup_step(bset, bset->pool, ngx_http_backup_sync_work,
                             ngx_http_backup_sync_done);
        return;
    }

    ngx_http_backup_step(bset, bset->short_pool, ngx_http_backup_take_work,
                         ngx_http_backup_take_done);
}


/* Lane 0 of a job; then the catalog learns what is on the storage now. */

static void
ngx_http_backup_job_work(void *data)
{
    bk_err_t                err = { .rc = BK_OK };
    bk_engine_t            *engine;
    ngx_http_backup_job_t  *job = data;

    job->rc = ngx_http_backup_engine(job->bset, &engine, &job->err);

    if (job->rc == BK_OK) {
        ngx_http_backup_helper_look(engine, &job->ctl.ctl);

        job->rc = bk_engine_run(engine, job->id, job->team, &job->ctl.ctl,
                                &job->status, &job->err);
        bk_team_close(job->team);

        job->sync_rc = bk_engine_sync(engine, &job->sync.ctl, &err);

    } else {
        bk_team_close(job->team);
    }

#ifdef __GLIBC__

    /* Each thread's heap keeps what a pack took; the next job has others. */

    (void) malloc_trim(0);

#endif
}


static void
ngx_http_backup_job_done(void *data)
{
    ngx_http_backup_job_t     *job = data;
    ngx_http_backup_set_t     *bset;
    ngx_http_backup_runner_t  *rn;

    bset = job->bset;
    rn = bset->runner;

    /* The engine has logged the end; not that it could not even begin. */

    if (job->rc != BK_OK && job->status == BK_STATUS_FAILED) {
        ngx_log_error(NGX_LOG_INFO, ngx_cycle->log, 0,
                      "backup \"%V\": job %s: %s", &bset->name, job->id,
                      job->err.text);
    }

    if (job->sync_rc != BK_OK) {
        rn->sync_next = ngx_current_msec + NGX_HTTP_BACKUP_RESYNC;
    }

    rn->job = NULL;
    rn->publish_next = ngx_current_msec;

    ngx_http_backup_job_release(job);

    ngx_http_backup_running(bset, "");
    ngx_http_backup_ended(bset);
    ngx_http_backup_call_waiters();

    ngx_http_backup_run(bset, ngx_exiting || ngx_quit || ngx_terminate);
}


static void
ngx_http_backup_lane_work(void *data)
{
    bk_team_lane(data);
}


static void
ngx_http_backup_lane_done(void *data)
{
    /* void */
}


static void
ngx_http_backup_job_start(ngx_http_backup_set_t *bset, const char *id)
{
    ngx_http_backup_job_t  *job;

    job = ngx_calloc(sizeof(ngx_http_backup_job_t), ngx_cycle->log);
    if (job == NULL) {
        return;
    }

    job->team = bk_team_new(bset->set.lanes ? bset->set.lanes : 1,
                            NGX_HTTP_BACKUP_QUEUE, NGX_HTTP_BACKUP_QUEUE_LEN);
    if (job->team == NULL) {
        ngx_free(job);
        return;
    }

    job->bset = bset;
    job->refs = 1;
    job->status = BK_STATUS_FAILED;
    (void) ngx_cpystrn((u_char *) job->id, (u_char *) id, BK_JOB_ID);

    ngx_http_backup_ctl_init(&job->ctl, 0);
    ngx_http_backup_ctl_init(&job->sync, 0);

    bset->runner->job = job;
    bset->runner->publish_next = ngx_current_msec;

    ngx_http_backup_running(bset, job->id);

    ngx_http_backup_job_post(bset);
}


/* The pool's queue may be full: the next tick tries again. */

static void
ngx_http_backup_job_post(ngx_http_backup_set_t *bset)
{
    ngx_uint_t              i;
    ngx_http_backup_job_t  *job = bset->runner->job;

    if (ngx_http_backup_post(bset->pool, ngx_http_backup_job_work,
                             ngx_http_backup_job_done, job)
        != NGX_OK)
    {
        return;
    }

    job->posted = 1;

    for (i = 1; i < bset->set.lanes; i++) {
        bk_team_ref(job->team);

        if (ngx_http_backup_post(bset->pool, ngx_http_backup_lane_work,
                                 ngx_http_backup_lane_done, job->team)
            != NGX_OK)
        {
            bk_team_unref(job->team);
            break;
        }
    }
}


static void
ngx_http_backup_job_watch(ngx_http_backup_set_t *bset, ngx_uint_t leaving)
{
    char                      *text;
    json_t                    *progress;
    ngx_uint_t                 canceling;
    ngx_http_backup_job_t     *job;
    ngx_http_backup_runner_t  *rn = bset->runner;

    job = rn->job;

    if (leaving
        && (ngx_terminate
            || (ngx_msec_t) (ngx_current_msec - rn->leave)
               >= (ngx_msec_t) bset->set.shutdown_grace))
    {
        bk_ctl_stop(&job->ctl.ctl, BK_INTERRUPTED);
        bk_ctl_stop(&job->sync.ctl, BK_INTERRUPTED);
    }

    if (!job->posted) {
        ngx_http_backup_job_post(bset);
    }

    if (ngx_http_backup_is_running(bset, job->id, &canceling) && canceling) {
        bk_ctl_stop(&job->ctl.ctl, BK_CANCELED);
    }

    progress = bk_job_progress(&job->ctl.ctl);
    text = progress ? json_dumps(progress, JSON_COMPACT) : NULL;

    if (text) {
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_PROGRESS, text,
                            ngx_strlen(text), 0);
    }

    free(text);
    json_decref(progress);
}


static void
ngx_http_backup_job_release(ngx_http_backup_job_t *job)
{
    if (--job->refs) {
        return;
    }

    ngx_http_backup_ctl_done(&job->ctl);
    ngx_http_backup_ctl_done(&job->sync);
    bk_team_unref(job->team);
    ngx_free(job);
}


/* Status and health as texts, computed on a thread. */

static void
ngx_http_backup_publish_work(void *data)
{
    bk_id_t                  digest;
    json_t                  *status, *health, *brief;
    bk_buf_t                 plain;
    bk_engine_t             *engine;
    const char              *text, *timestamp;
    ngx_http_backup_step_t  *step = data;

    status = NULL;
    health = NULL;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);
    if (step->rc != BK_OK) {
        return;
    }

    ngx_http_backup_helper_look(engine, &step->ctl.ctl);

    step->rc = bk_engine_status(engine, step->job ? step->job->id : NULL,
                                step->job ? &step->job->ctl.ctl : NULL,
                                &status, &step->err);
    if (step->rc == BK_OK) {
        step->rc = bk_engine_health(engine, &health, &step->err);
    }

    if (step->rc == BK_OK) {
        step->rc = bk_engine_metrics(engine, status, health, &step->metrics,
                                     &step->err);
    }

    if (step->rc != BK_OK) {
        goto done;
    }

    step->rc = bk_json_dump(status, false, &step->status, &step->err);
    if (step->rc != BK_OK) {
        goto done;
    }

    /* The tag is of what can change, not of when it was looked at. */

    bk_buf_init(&plain, 262144);
    bk_engine_timeless(status);

    if (bk_json_dump(status, true, &plain, NULL) == BK_OK) {
        bk_sha256(&digest, plain.data, plain.len);
        memcpy(&step->tag, &digest, sizeof(step->tag));
    }

    bk_buf_free(&plain);

    text = json_string_value(json_object_get(health, "status"));
    timestamp = json_string_value(json_object_get(health, "timestamp"));
    step->healthy = json_is_true(json_object_get(health, "healthy"));

    brief = json_pack("{s:s, s:b}", "status", text ? text : "fail",
                      "healthy", (int) step->healthy);

    if (timestamp && brief) {
        json_object_set_new(brief, "timestamp", json_string(timestamp));
    }

    step->rc = bk_json_dump(health, false, &step->health, &step->err);

    if (step->rc == BK_OK && brief) {
        step->rc = bk_json_dump(brief, false, &step->brief, &step->err);
    }

    json_decref(brief);

done:

    json_decref(status);
    json_decref(health);
}


static void
ngx_http_backup_publish_done(void *data)
{
    ngx_http_backup_set_t     *bset;
    ngx_http_backup_step_t    *step = data;
    ngx_http_backup_runner_t  *rn;

    bset = step->bset;
    rn = bset->runner;

    rn->publishing = 0;

    if (step->rc == BK_OK && step->status.len) {
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_STATUS,
                            (char *) step->status.data, step->status.len,
                            step->tag);
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_HEALTH,
                            (char *) step->health.data, step->health.len, 0);
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_METRICS,
                            (char *) step->metrics.data, step->metrics.len, 0);
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_HEALTH_BRIEF,
                            (char *) step->brief.data, step->brief.len, 0);

        bset->slot->healthy = step->healthy;

    } else if (step->rc != BK_OK) {
        ngx_http_backup_trouble(bset, step->err.text);
    }

    ngx_http_backup_step_free(step);
}


static void
ngx_http_backup_publish(ngx_http_backup_set_t *bset)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    rn->publish_next = ngx_current_msec + (rn->job ? NGX_HTTP_BACKUP_BUSY_PUB
                                                   : NGX_HTTP_BACKUP_IDLE_PUB);

    /*
     * Only the owner knows of the running job.  Whoever waits for the lock
     * speaks up when nobody else does.
     */

    if (!rn->owned
        && ngx_time() - bset->slot->texts[NGX_HTTP_BACKUP_STATUS].time
           < NGX_HTTP_BACKUP_STALE / 2)
    {
        return;
    }

    rn->publishing = 1;

    ngx_http_backup_step(bset, bset->short_pool, ngx_http_backup_publish_work,
                         ngx_http_backup_publish_done);
}


static void
ngx_http_backup_trouble(ngx_http_backup_set_t *bset, const char *text)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    if (text[0] == '\0' && !rn->trouble) {
        return;
    }

    rn->trouble = (text[0] != '\0');

    ngx_http_backup_put(bset, NGX_HTTP_BACKUP_TROUBLE, text,
                        ngx_strlen(text), 0);
}
