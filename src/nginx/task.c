/*
 * nginx/task.c: work on thread pools, and stop flags for what may take long.
 *
 * A task lives on the heap, since what asked for it may be gone when it ends.
 * While one is at work a timer that is not cancelable keeps the worker in its
 * event loop: without it a worker that quits spins in the destruction of its
 * pools, and the task's end is never seen.  It also stops what nobody has to
 * wait for in a worker that leaves.
 */

#include "nginx/module.h"


#define NGX_HTTP_BACKUP_GUARD  500      /* ms; re-armed while the task runs */


typedef struct {
    ngx_thread_task_t   task;
    ngx_event_t         guard;
    void              (*work)(void *data);
    void              (*done)(void *data);
    void               *data;
} ngx_http_backup_task_t;


static void ngx_http_backup_task_handler(void *data, ngx_log_t *log);
static void ngx_http_backup_task_done(ngx_event_t *ev);
static void ngx_http_backup_task_guard(ngx_event_t *ev);
static void ngx_http_backup_stop(ngx_uint_t only_leaves);


ngx_connection_t  ngx_http_backup_nowhere = { .fd = (ngx_socket_t) -1 };

static ngx_queue_t  ngx_http_backup_ctls = {
    &ngx_http_backup_ctls, &ngx_http_backup_ctls
};


ngx_int_t
ngx_http_backup_post(ngx_thread_pool_t *pool, void (*work)(void *),
    void (*done)(void *), void *data)
{
    ngx_http_backup_task_t  *t;

    t = ngx_calloc(sizeof(ngx_http_backup_task_t), ngx_cycle->log);
    if (t == NULL) {
        return NGX_ERROR;
    }

    t->work = work;
    t->done = done;
    t->data = data;

    t->task.ctx = t;
    t->task.handler = ngx_http_backup_task_handler;
    t->task.event.handler = ngx_http_backup_task_done;
    t->task.event.data = t;
    t->task.event.log = ngx_cycle->log;

    t->guard.handler = ngx_http_backup_task_guard;
    t->guard.data = &ngx_http_backup_nowhere;
    t->guard.log = ngx_cycle->log;

    if (ngx_thread_task_post(pool, &t->task) != NGX_OK) {
        ngx_free(t);
        return NGX_ERROR;
    }

    ngx_add_timer(&t->guard, NGX_HTTP_BACKUP_GUARD);

    return NGX_OK;
}


static void
ngx_http_backup_task_handler(void *data, ngx_log_t *log)
{
    ngx_http_backup_task_t  *t = data;

    t->work(t->data);
}


static void
ngx_http_backup_task_done(ngx_event_t *ev)
{
    void                    *data;
    void                   (*done)(void *data);
    ngx_http_backup_task_t  *t = ev->data;

    if (t->guard.timer_set) {
        ngx_del_timer(&t->guard);
    }

    done = t->done;
    data = t->data;

    ngx_free(t);

    ngx_http_backup_log_drain();

    done(data);
}


/* Jobs have their grace, and the runner for it; all others end now. */

static void
ngx_http_backup_task_guard(ngx_event_t *ev)
{
    if (ngx_exiting || ngx_quit || ngx_terminate) {
        ngx_http_backup_stop(1);
    }

    ngx_add_timer(ev, NGX_HTTP_BACKUP_GUARD);
}


void
ngx_http_backup_ctl_init(ngx_http_backup_ctl_t *ctl, ngx_uint_t leaves)
{
    bk_ctl_init(&ctl->ctl);
    ctl->leaves = leaves;
    ngx_queue_insert_tail(&ngx_http_backup_ctls, &ctl->queue);
}


void
ngx_http_backup_ctl_done(ngx_http_backup_ctl_t *ctl)
{
    ngx_queue_remove(&ctl->queue);
    bk_ctl_free(&ctl->ctl);
}


static void
ngx_http_backup_stop(ngx_uint_t only_leaves)
{
    ngx_queue_t            *q;
    ngx_http_backup_ctl_t  *ctl;

    for (q = ngx_queue_head(&ngx_http_backup_ctls);
         q != ngx_queue_sentinel(&ngx_http_backup_ctls);
         q = ngx_queue_next(q))
    {
        ctl = ngx_queue_data(q, ngx_http_backup_ctl_t, queue);

        if (ctl->leaves || !only_leaves) {
            bk_ctl_stop(&ctl->ctl, BK_INTERRUPTED);
        }
    }
}


/*
 * The exit of a module that stands before the thread pools: they wait for
 * their tasks, and on TERM the master kills who waits longer than a second.
 */

void
ngx_http_backup_stop_all(ngx_cycle_t *cycle)
{
    ngx_http_backup_stop(0);
}


bk_rc_t
ngx_http_backup_engine(ngx_http_backup_set_t *bset, bk_engine_t **engine,
    bk_err_t *err)
{
    bk_rc_t       rc;
    bk_helper_t  *client;

    rc = BK_OK;

    (void) pthread_mutex_lock(&bset->lock);

    if (bset->engine == NULL) {
        rc = bk_engine_open(&bset->set, &bset->engine, err);

        if (rc != BK_OK) {
            bset->engine = NULL;

        } else if (geteuid() != 0
                   && ngx_http_backup_helper_client(&client, NULL) == BK_OK)
        {
            bk_engine_set_client(bset->engine, client);
        }
    }

    *engine = bset->engine;

    (void) pthread_mutex_unlock(&bset->lock);

    return rc;
}
