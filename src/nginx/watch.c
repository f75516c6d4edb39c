/*
 * nginx/watch.c: changes of a set's files, as the privileged helper tells them.
 *
 * Loop code, except the ..._work functions.  Worker 0 watches from its start,
 * also while an older runner still has the set: so that after a reload there
 * is no time that nobody saw, the old one lets go only when the new one has
 * pinned what it will capture, and watches or cannot, or after a while.  The
 * loop sees that there is something to read; a thread reads it, since whoever
 * takes a backup may be reading just then, and holds the engine's lock while
 * a helper that hangs lets it wait.  So the loop calls nothing of the engine
 * that takes a lock but at the very end.
 */

#include "nginx/module.h"


#define NGX_HTTP_BACKUP_WATCH_FIRST    1000     /* ms to the second try */
#define NGX_HTTP_BACKUP_WATCH_LONGEST  30000
#define NGX_HTTP_BACKUP_WATCH_HEIR     5000     /* ms to wait for the heir */
#define NGX_HTTP_BACKUP_WATCH_EVERY    30000    /* ms, without an event */


struct ngx_http_backup_watch_s {
    ngx_http_backup_set_t    *bset;
    ngx_connection_t         *connection;       /* its fd is the engine's */
    ngx_msec_t                next;
    ngx_msec_t                pause;
    int                       fd;
    bk_rc_t                   rc;
    bk_err_t                  err;
    ngx_uint_t                watched;          /* as of the last drain */
    ngx_uint_t                known;            /* what capture was told */
    unsigned                  busy:1;
    unsigned                  again:1;          /* an event while busy */
    unsigned                  seen:1;           /* it has worked once */
    unsigned                  ready:1;          /* as told to the zone */
};


static void ngx_http_backup_watch_open_work(void *data);
static void ngx_http_backup_watch_open_done(void *data);
static void ngx_http_backup_watch_drain_work(void *data);
static void ngx_http_backup_watch_drain_done(void *data);
static void ngx_http_backup_watch_read(ngx_event_t *ev);
static void ngx_http_backup_watch_drain(ngx_http_backup_watch_t *w);
static void ngx_http_backup_watch_close(ngx_http_backup_watch_t *w);
static void ngx_http_backup_watch_retry(ngx_http_backup_watch_t *w);
static void ngx_http_backup_watch_ready(ngx_http_backup_watch_t *w);
static void ngx_http_backup_watch_written(ngx_http_backup_watch_t *w);


ngx_int_t
ngx_http_backup_watch_init(ngx_cycle_t *cycle, ngx_http_backup_set_t *bset)
{
    ngx_http_backup_watch_t  *w;

    w = ngx_pcalloc(cycle->pool, sizeof(ngx_http_backup_watch_t));
    if (w == NULL) {
        return NGX_ERROR;
    }

    w->bset = bset;
    w->next = ngx_current_msec;
    w->pause = NGX_HTTP_BACKUP_WATCH_FIRST;
    bset->watch = w;

    ngx_http_backup_heir(bset, 0);

    return NGX_OK;
}


void
ngx_http_backup_watch_tick(ngx_http_backup_set_t *bset, ngx_uint_t leaving)
{
    ngx_http_backup_watch_t  *w = bset->watch;

    /* a backup has read the watch, too, and wakes nobody */

    if (w->connection) {
        ngx_http_backup_watch_written(w);
    }

    if (w->busy || leaving
        || (ngx_msec_int_t) (ngx_current_msec - w->next) < 0)
    {
        return;
    }

    /* a tree that could not be watched is tried again */

    if (w->connection) {
        w->next = ngx_current_msec + NGX_HTTP_BACKUP_WATCH_EVERY;
        ngx_http_backup_watch_drain(w);
        return;
    }

    w->busy = 1;
    w->rc = bk_err_set(&w->err, BK_UNAVAILABLE,
                       "the queue of the thread pool is full");

    if (ngx_http_backup_post(bset->short_pool,
                             ngx_http_backup_watch_open_work,
                             ngx_http_backup_watch_open_done, w)
        != NGX_OK)
    {
        ngx_http_backup_watch_open_done(w);
    }
}


static void
ngx_http_backup_watch_open_work(void *data)
{
    bk_engine_t              *engine;
    bk_helper_t              *client;
    ngx_http_backup_watch_t  *w = data;

    w->rc = ngx_http_backup_engine(w->bset, &engine, &w->err);

    /* before the old runner hears that it may let go, helper or not */

    if (w->rc == BK_OK) {
        bk_engine_capture_hold(engine);
        w->rc = ngx_http_backup_helper_client(&client, &w->err);
    }

    if (w->rc == BK_OK) {
        w->rc = bk_engine_watch(engine, client, &w->fd, &w->err);
    }
}


static void
ngx_http_backup_watch_open_done(void *data)
{
    ngx_connection_t         *c;
    ngx_http_backup_watch_t  *w = data;

    w->busy = 0;

    if (w->rc != BK_OK) {
        ngx_http_backup_watch_retry(w);
        return;
    }

    c = ngx_get_connection(w->fd, ngx_cycle->log);

    if (c == NULL) {
        ngx_http_backup_watch_retry(w);
        return;
    }

    w->connection = c;
    w->next = ngx_current_msec + NGX_HTTP_BACKUP_WATCH_EVERY;

    c->data = w;
    c->read->handler = ngx_http_backup_watch_read;
    c->read->log = ngx_cycle->log;
    c->write->log = ngx_cycle->log;

    /* what came before is read now, what comes from now on is an event */

    ngx_http_backup_watch_drain(w);
}


static void
ngx_http_backup_watch_read(ngx_event_t *ev)
{
    ngx_connection_t         *c = ev->data;
    ngx_http_backup_watch_t  *w = c->data;

    if (ngx_event_flags & NGX_USE_LEVEL_EVENT) {
        (void) ngx_del_event(ev, NGX_READ_EVENT, 0);
    }

    ngx_http_backup_watch_drain(w);
}


static void
ngx_http_backup_watch_drain(ngx_http_backup_watch_t *w)
{
    if (w->busy) {
        w->again = 1;
        return;
    }

    w->busy = 1;
    w->again = 0;
    w->rc = BK_OK;

    if (ngx_http_backup_post(w->bset->short_pool,
                             ngx_http_backup_watch_drain_work,
                             ngx_http_backup_watch_drain_done, w)
        != NGX_OK)
    {
        /* the queue is full: rather a walk than a helper that waits */

        w->busy = 0;
        ngx_http_backup_watch_close(w);
        ngx_http_backup_watch_retry(w);
    }
}


static void
ngx_http_backup_watch_drain_work(void *data)
{
    ngx_http_backup_watch_t  *w = data;

    w->rc = bk_engine_watch_drain(w->bset->engine, &w->err);
    w->watched = (w->rc == BK_OK && bk_engine_watched(w->bset->engine));
}


static void
ngx_http_backup_watch_drain_done(void *data)
{
    ngx_event_t              *rev;
    ngx_http_backup_watch_t  *w = data;

    w->busy = 0;

    ngx_http_backup_watch_written(w);

    if (w->connection == NULL) {
        return;
    }

    if (w->rc != BK_OK) {
        ngx_http_backup_watch_close(w);
        ngx_http_backup_watch_retry(w);
        return;
    }

    if (w->watched) {
        w->pause = NGX_HTTP_BACKUP_WATCH_FIRST;
        ngx_http_backup_watch_ready(w);

        if (!w->seen) {
            w->seen = 1;
            ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                          "backup \"%V\": changes of files are noticed from "
                          "now on", &w->bset->name);
        }
    }

    if (w->again) {
        ngx_http_backup_watch_drain(w);
        return;
    }

    rev = w->connection->read;
    rev->ready = 0;

    if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        ngx_http_backup_watch_close(w);
        ngx_http_backup_watch_retry(w);
    }
}


static void
ngx_http_backup_watch_written(ngx_http_backup_watch_t *w)
{
    ngx_uint_t  written;

    written = bk_engine_written(w->bset->engine);

    if (written != w->known) {
        w->known = written;
        ngx_http_backup_capture_wake(w->bset);
    }
}


/*
 * The descriptor is the engine's, which closes it when it begins anew: on a
 * thread, since whoever takes a backup may be waiting for the helper just
 * then.  Until that happens nothing is lost: who takes a backup reads it, too.
 */

static void
ngx_http_backup_watch_close(ngx_http_backup_watch_t *w)
{
    ngx_connection_t  *c = w->connection;

    if (c == NULL) {
        return;
    }

    w->connection = NULL;

    /* not before the first drain: the kernel would not know it, an alert */

    if (c->read->active) {
        if (ngx_del_conn) {
            ngx_del_conn(c, 0);

        } else {
            (void) ngx_del_event(c->read, NGX_READ_EVENT, 0);
        }
    }

    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }

    ngx_free_connection(c);
    c->fd = (ngx_socket_t) -1;
}


static void
ngx_http_backup_watch_retry(ngx_http_backup_watch_t *w)
{
    if (w->seen) {
        w->seen = 0;
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "backup \"%V\": changes of files are not noticed for "
                      "now: %s", &w->bset->name, w->err.text);
    }

    /* nobody needs to wait for this one */

    ngx_http_backup_watch_ready(w);

    w->next = ngx_current_msec + w->pause;
    w->pause = ngx_min(2 * w->pause, NGX_HTTP_BACKUP_WATCH_LONGEST);
}


static void
ngx_http_backup_watch_ready(ngx_http_backup_watch_t *w)
{
    if (!w->ready) {
        w->ready = 1;
        ngx_http_backup_heir(w->bset, 1);
    }
}


ngx_uint_t
ngx_http_backup_watch_waits(ngx_http_backup_set_t *bset, ngx_msec_t since)
{
    return since < NGX_HTTP_BACKUP_WATCH_HEIR
           && ngx_http_backup_heir_comes(bset);
}


void
ngx_http_backup_watch_exit(ngx_http_backup_set_t *bset)
{
    if (bset->watch == NULL) {
        return;
    }

    ngx_http_backup_watch_close(bset->watch);

    /* the threads are gone by now: nobody holds what this takes */

    bk_engine_watch_end(bset->engine);
}
