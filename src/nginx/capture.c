/*
 * nginx/capture.c: the transactions of a set's databases, step by step.
 *
 * Loop code, except the ..._work functions.  Each captured database has a task
 * of its own, so that one that is locked, or read for the first time, keeps no
 * other waiting.  A step runs on a thread when the watcher tells that a
 * database was written to, and after the time that the step before asked for;
 * each ship_interval what was sealed is shipped, on another thread.  Only the
 * worker that has the set does anything.
 */

#include "nginx/module.h"


#define NGX_HTTP_BACKUP_CAPTURE_RETRY  1000     /* the queue was full */


typedef struct {
    ngx_http_backup_capture_t  *capture;
    ngx_uint_t                  number;         /* the engine's */
    ngx_event_t                 timer;
    unsigned                    wait;           /* ms, of the last step */
    ngx_uint_t                  written;        /* what that step was told */
    unsigned                    woken:1;
    unsigned                    busy:1;
} ngx_http_backup_captured_t;


struct ngx_http_backup_capture_s {
    ngx_http_backup_set_t       *bset;
    ngx_http_backup_captured_t  *databases;
    ngx_uint_t                   count;
    ngx_msec_t                   ship_next;
    ngx_http_backup_ctl_t        ship;
    unsigned                     owned:1;
    unsigned                     shipping:1;
};


static void ngx_http_backup_capture_timer(ngx_event_t *ev);
static void ngx_http_backup_capture_step(ngx_http_backup_captured_t *db);
static void ngx_http_backup_capture_work(void *data);
static void ngx_http_backup_capture_done(void *data);
static void ngx_http_backup_capture_ship_work(void *data);
static void ngx_http_backup_capture_ship_done(void *data);


ngx_int_t
ngx_http_backup_capture_init(ngx_cycle_t *cycle, ngx_http_backup_set_t *bset)
{
    size_t                       i, count;
    ngx_http_backup_capture_t   *cp;
    ngx_http_backup_captured_t  *db;

    count = 0;

    for (i = 0; i < bset->set.db_count; i++) {
        count += (bset->set.dbs[i].pitr_window > 0);
    }

    if (count == 0) {
        return NGX_OK;
    }

    cp = ngx_pcalloc(cycle->pool, sizeof(ngx_http_backup_capture_t));
    if (cp == NULL) {
        return NGX_ERROR;
    }

    db = ngx_pcalloc(cycle->pool, count * sizeof(ngx_http_backup_captured_t));
    if (db == NULL) {
        return NGX_ERROR;
    }

    cp->bset = bset;
    cp->databases = db;
    cp->count = count;
    cp->ship_next = ngx_current_msec + (ngx_msec_t) bset->set.ship_interval;

    for (i = 0; i < count; i++) {
        db[i].capture = cp;
        db[i].number = i;
        db[i].timer.handler = ngx_http_backup_capture_timer;
        db[i].timer.data = &ngx_http_backup_nowhere;
        db[i].timer.log = cycle->log;
        db[i].timer.cancelable = 1;
    }

    bset->capture = cp;

    return NGX_OK;
}


void
ngx_http_backup_capture_tick(ngx_http_backup_set_t *bset, ngx_uint_t owned)
{
    ngx_uint_t                  i;
    ngx_http_backup_capture_t  *cp = bset->capture;

    if (cp == NULL) {
        return;
    }

    cp->owned = owned;

    if (!owned) {
        return;
    }

    for (i = 0; i < cp->count; i++) {
        if (!cp->databases[i].busy && !cp->databases[i].timer.timer_set) {
            ngx_http_backup_capture_step(&cp->databases[i]);
        }
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


/* Which database it was is not told. */

void
ngx_http_backup_capture_wake(ngx_http_backup_set_t *bset)
{
    ngx_uint_t                   i;
    ngx_http_backup_capture_t   *cp = bset->capture;
    ngx_http_backup_captured_t  *db;

    for (i = 0; cp && i < cp->count; i++) {
        db = &cp->databases[i];
        db->woken = 1;

        if (!db->busy && db->timer.timer_set) {
            ngx_del_timer(&db->timer);
            ngx_http_backup_capture_step(db);
        }
    }
}


static void
ngx_http_backup_capture_timer(ngx_event_t *ev)
{
    ngx_http_backup_capture_step((ngx_http_backup_captured_t *)
                                 ((u_char *) ev
                                  - offsetof(ngx_http_backup_captured_t,
                                             timer)));
}


static void
ngx_http_backup_capture_step(ngx_http_backup_captured_t *db)
{
    db->busy = 1;
    db->written = db->woken;
    db->woken = 0;

    if (ngx_http_backup_post(db->capture->bset->short_pool,
                             ngx_http_backup_capture_work,
                             ngx_http_backup_capture_done, db)
        != NGX_OK)
    {
        db->wait = NGX_HTTP_BACKUP_CAPTURE_RETRY;
        ngx_http_backup_capture_done(db);
    }
}


static void
ngx_http_backup_capture_work(void *data)
{
    bk_err_t                     err;
    bk_engine_t                 *engine;
    ngx_http_backup_captured_t  *db = data;

    bk_err_clear(&err);
    db->wait = NGX_HTTP_BACKUP_CAPTURE_RETRY;

    /* a failure is logged where it happens, and tried again */

    if (ngx_http_backup_engine(db->capture->bset, &engine, &err) == BK_OK
        && db->number < bk_engine_captures(engine))
    {
        (void) bk_engine_capture(engine, db->number, db->written,
                                     &db->wait, &err);
    }
}


static void
ngx_http_backup_capture_done(void *data)
{
    ngx_http_backup_captured_t  *db = data;

    db->busy = 0;

    if (!db->capture->owned || ngx_exiting) {
        return;
    }

    ngx_add_timer(&db->timer, db->woken ? 1 : ngx_max(db->wait, 1));
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
    cp->ship_next = ngx_current_msec
                    + (ngx_msec_t) cp->bset->set.ship_interval;
    ngx_http_backup_ctl_done(&cp->ship);
}


void
ngx_http_backup_capture_exit(ngx_http_backup_set_t *bset)
{
    ngx_uint_t                  i;
    ngx_http_backup_capture_t  *cp = bset->capture;

    for (i = 0; cp && i < cp->count; i++) {
        if (cp->databases[i].timer.timer_set) {
            ngx_del_timer(&cp->databases[i].timer);
        }
    }
}
