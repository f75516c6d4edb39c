/*
 * nginx/runner.c: worker 0 owns the sets and runs their jobs.
 *
 * Loop code, except the ..._work functions.  One timer drives everything: it
 * tries to own each set, takes the next job, publishes progress, status and
 * health, hands on the wish to cancel, and lets go when the worker leaves.
 */

#include "nginx/runner.h"

#include <sqlite3.h>


#define NGX_HTTP_BACKUP_TICK       250      /* ms, while something goes on */
#define NGX_HTTP_BACKUP_IDLE       1000     /* ms */
#define NGX_HTTP_BACKUP_OWN        500      /* ms between tries */
#define NGX_HTTP_BACKUP_FOREIGN    30000    /* ms of tries before a warning */


static void ngx_http_backup_tick(ngx_event_t *ev);
static void ngx_http_backup_own(ngx_http_backup_set_t *bset);
static void ngx_http_backup_release_work(void *data);
static void ngx_http_backup_disown_done(void *data);
static void ngx_http_backup_sync_work(void *data);
static void ngx_http_backup_take(ngx_http_backup_set_t *bset);


static ngx_event_t                   ngx_http_backup_timer;
static ngx_http_backup_main_conf_t  *ngx_http_backup_runner_conf;


ngx_int_t
ngx_http_backup_runner_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    ngx_uint_t               i;
    ngx_http_backup_set_t  **sets;

    /* Once, before any thread. */

    (void) sqlite3_initialize();
    json_object_seed(0);

    ngx_http_backup_log_init(cycle->log);

    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        sets[i]->ready = 1;
    }

    if (ngx_http_backup_wake_init(cycle, bmcf) != NGX_OK) {
        return NGX_ERROR;
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
    ngx_http_backup_set_t  **sets;

    /* The threads are gone by now. */

    ngx_http_backup_wake_exit(bmcf);

    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (sets[i]->engine == NULL) {
            continue;
        }

        ngx_http_backup_capture_exit(sets[i]);

        if (sets[i]->runner && sets[i]->runner->owned) {
            bk_engine_disown(sets[i]->engine);
        }

        ngx_http_backup_watch_exit(sets[i]);
        bk_engine_close(sets[i]->engine);
        sets[i]->engine = NULL;
    }

    ngx_http_backup_log_drain();
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

        if (leaving && rn->owned && rn->job == NULL
            && (!rn->busy
                || ngx_http_backup_watch_waits(sets[i],
                                               ngx_current_msec - rn->leave)))
        {
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

void
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


void
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


void
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
