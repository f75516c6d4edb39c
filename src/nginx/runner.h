/*
 * nginx/runner.h: what the files of the runner share: runner.c decides what is
 * due, job.c runs a job, publish.c tells all workers, wake.c hurries it.
 */

#ifndef BK_NGINX_RUNNER_H
#define BK_NGINX_RUNNER_H


#include "nginx/module.h"


#define NGX_HTTP_BACKUP_IDLE_PUB   5000     /* ms, without a job */
#define NGX_HTTP_BACKUP_RESYNC     60000    /* ms after a failed sync */


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


/* runner.c */

/* Everything that is due for one set. */
void ngx_http_backup_run(ngx_http_backup_set_t *bset, ngx_uint_t leaving);
/* Run work on a thread and done on the loop, which frees the step. */
void ngx_http_backup_step(ngx_http_backup_set_t *bset,
    ngx_thread_pool_t *pool, void (*work)(void *), void (*done)(void *));
void ngx_http_backup_step_free(ngx_http_backup_step_t *step);


/* job.c */

void ngx_http_backup_job_start(ngx_http_backup_set_t *bset, const char *id);
/* Of a job that runs: stop it when somebody wants that, tell how far it is. */
void ngx_http_backup_job_watch(ngx_http_backup_set_t *bset,
    ngx_uint_t leaving);
void ngx_http_backup_job_release(ngx_http_backup_job_t *job);


/* publish.c */

void ngx_http_backup_publish(ngx_http_backup_set_t *bset);
/* Why the set does not run, for everybody who asks; "": it does. */
void ngx_http_backup_trouble(ngx_http_backup_set_t *bset, const char *text);


#endif
