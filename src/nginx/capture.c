/*
 * nginx/capture.c: the transactions of a set's databases, step by step.
 *
 * Loop code, except the ..._work functions.  A step runs on a thread when the
 * watcher tells that a database was written to, and after the time that the
 * step before asked for; every 10 s what was sealed is shipped, on another
 * thread.  Only the worker that has the set does anything.
 */

#include "nginx/module.h"


#define NGX_HTTP_BACKUP_CAPTURE_SHIP   10000    /* ms */
#define NGX_HTTP_BACKUP_CAPTURE_RETRY  1000     /* the queue was full */


struct ngx_http_backup_capture_s {
    ngx_http_backup_set_t    *bset;
    ngx_event_t               timer;
    ngx_msec_t                ship_next;
    ngx_http_backup_ctl_t     ship;
    unsigned                  wait;             /* ms, of the last step */
    ngx_uint_t                written;          /* what that step was told */
    unsigned                  woken:1;
    unsigned                  owned:1;
    unsigned                  busy:1;
    unsigned                  shipping:1;
};


static void ngx_http_backup_capture_timer(ngx_event_t *ev);
static void ngx_http_backup_capture_step(ngx_http_backup_capture_t *cp);
static void ngx_http_backup_capture_work(void *data);
static void ngx_http_backup_capture_done(void *data);
static void ngx_http_backup_capture_ship_work(void *data);
static void ngx_http_backup_capture_ship_done(void *data);


ngx_int_t
ngx_http_backup_capture_init(ngx_cycle_t *cycle, ngx_http_backup_set_t *bset)
{
    size_t                      i;
    ngx_http_backup_capture_t  *cp;

    for (i = 0; i < bset->set.db_count; i++) {
        if (bset->set.dbs[i].pitr_window > 0) {
            break;
        }
    }

    if (i == bset->set.db_count) {
        return NGX_OK;
    }

    cp = ngx_pcalloc(cycle->pool, sizeof(ngx_http_backup_capture_t));
    if (cp == NULL) {
        return NGX_ERROR;
    }

    cp->bset = bset;
    cp->ship_next = ngx_current_msec + NGX_HTTP_BACKUP_CAPTURE_SHIP;
    cp->timer.handler = ngx_http_backup_capture_timer;
    cp->timer.data = &ngx_http_backup_nowhere;
    cp->timer.log = cycle->log;
    cp->timer.cancelable = 1;

    bset->capture = cp;

    return NGX_OK;
}


void
ngx_http_backup_capture_tick(ngx_http_backup_set_t *bset, ngx_uint_t owned)
{
    ngx_http_backup_capture_t  *cp = bset->capture;

    if (cp == NULL) {
        return;
    }

    cp->owned = owned;

    if (!owned) {
        return;
    }

    if (!cp->busy && !cp->timer.timer_set) {
        ngx_http_backup_capture_step(cp);
    }

    if (cp->shipping
        || (ngx_msec_int_t) (ngx_current_msec - cp->ship_next) < 0)
    {
        return;
    }

    cp->shipping = 1;
    ngx_http_backup_ctl_init(&cp->ship, 1);

    if (ngx_http_backup_post(bset->short_pool,
                             ngx_http_backup_capture_ship_work,
                             ngx_http_backup_capture_ship_done, cp)
        != NGX_OK)
    {
        ngx_http_backup_capture_ship_done(cp);
    }
}


void
ngx_http_backup_capture_wake(ngx_http_backup_set_t *bset)
{
    ngx_http_backup_capture_t  *cp = bset->capture;

    if (cp == NULL) {
        return;
    }

    cp->woken = 1;

    if (!cp->busy && cp->timer.timer_set) {
        ngx_del_timer(&cp->timer);
        ngx_http_backup_capture_step(cp);
    }
}


static void
ngx_http_backup_capture_timer(ngx_event_t *ev)
{
    ngx_http_backup_capture_step((ngx_http_backup_capture_t *)
                                 ((u_char *) ev
                                  - offsetof(ngx_http_backup_capture_t,
                                             timer)));
}


static void
ngx_http_backup_capture_step(ngx_http_backup_capture_t *cp)
{
    cp->busy = 1;
    cp->written = cp->woken;
    cp->woken = 0;

    if (ngx_http_backup_post(cp->bset->short_pool,
                             ngx_http_backup_capture_work,
                             ngx_http_backup_capture_done, cp)
        != NGX_OK)
    {
        cp->wait = NGX_HTTP_BACKUP_CAPTURE_RETRY;
        ngx_http_backup_capture_done(cp);
    }
}


static void
ngx_http_backup_capture_work(void *data)
{
    bk_err_t                    err;
    bk_engine_t                *engine;
    ngx_http_backup_capture_t  *cp = data;

    bk_err_clear(&err);
    cp->wait = NGX_HTTP_BACKUP_CAPTURE_RETRY;

    /* a failure is logged where it happens, and tried again */

    if (ngx_http_backup_engine(cp->bset, &engine, &err) == BK_OK) {
        (void) bk_engine_capture(engine, cp->written, &cp->wait, &err);
    }
}


static void
ngx_http_backup_capture_done(void *data)
{
    ngx_http_backup_capture_t  *cp = data;

    cp->busy = 0;

    if (!cp->owned || ngx_exiting) {
        return;
    }

    ngx_add_timer(&cp->timer, cp->woken ? 1 : ngx_max(cp->wait, 1));
}


static void
ngx_http_backup_capture_ship_work(void *data)
{
    bk_err_t                    err;
    bk_engine_t                *engine;
    ngx_http_backup_capture_t  *cp = data;

    bk_err_clear(&err);

    if (ngx_http_backup_engine(cp->bset, &engine, &err) == BK_OK) {
        (void) bk_engine_ship(engine, &cp->ship.ctl, &err);
    }
}


static void
ngx_http_backup_capture_ship_done(void *data)
{
    ngx_http_backup_capture_t  *cp = data;

    cp->shipping = 0;
    cp->ship_next = ngx_current_msec + NGX_HTTP_BACKUP_CAPTURE_SHIP;
    ngx_http_backup_ctl_done(&cp->ship);
}


void
ngx_http_backup_capture_exit(ngx_http_backup_set_t *bset)
{
    if (bset->capture && bset->capture->timer.timer_set) {
        ngx_del_timer(&bset->capture->timer);
    }
}
