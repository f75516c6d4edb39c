/*
 * nginx/job.c: one job at work: its lanes on the pool's threads, and the loop
 * that looks after it.
 *
 * Loop code, except the ..._work functions.
 */

#include "nginx/runner.h"

#include <malloc.h>
#include <sys/resource.h>


#define NGX_HTTP_BACKUP_NICE       10       /* above the worker's own */
#define NGX_HTTP_BACKUP_QUEUE      256      /* works of a team */
#define NGX_HTTP_BACKUP_QUEUE_LEN  (8 * 1024 * 1024)


static void ngx_http_backup_job_post(ngx_http_backup_set_t *bset);


/*
 * A thread of the jobs' pool has time: requests go first.  In Linux each thread
 * has a priority of its own, and only root may raise one again, which is why
 * this pool is nobody else's.
 */

static void
ngx_http_backup_give_way(void)
{
    int                   own;
    static __thread char  given;

    if (given) {
        return;
    }

    given = 1;
    own = getpriority(PRIO_PROCESS, 0);

    (void) setpriority(PRIO_PROCESS, 0, own + NGX_HTTP_BACKUP_NICE);
}


/* Lane 0 of a job; then the catalog learns what is on the storage now. */

static void
ngx_http_backup_job_work(void *data)
{
    bk_err_t                err = { .rc = BK_OK };
    bk_engine_t            *engine;
    ngx_http_backup_job_t  *job = data;

    ngx_http_backup_give_way();

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
    ngx_http_backup_give_way();

    bk_team_lane(data);
}


static void
ngx_http_backup_lane_done(void *data)
{
    /* void */
}


void
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


void
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


void
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
