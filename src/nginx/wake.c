/*
 * nginx/wake.c: how the processes of nginx hurry each other.
 *
 * Loop code.  An eventfd made before the fork lets any worker hurry the runner;
 * each worker has one more, by which the runner tells it that a job has ended.
 * What gets lost is found by the next tick all the same.
 */

#include "nginx/module.h"

#include <sys/eventfd.h>


static ngx_connection_t *ngx_http_backup_listen(ngx_cycle_t *cycle,
    ngx_socket_t fd, void (*handler)(ngx_event_t *ev));
static void ngx_http_backup_called(ngx_event_t *ev);
static void ngx_http_backup_awake(ngx_event_t *ev);


static ngx_connection_t  *ngx_http_backup_wakeup;
static ngx_connection_t  *ngx_http_backup_caller;
static ngx_array_t       *ngx_http_backup_callees;
static ngx_socket_t       ngx_http_backup_wake_fd = -1;


/*
 * Made before the fork, so that each worker has all of them.  Without one,
 * ticks find jobs and their ends all the same.
 */

static ngx_socket_t
ngx_http_backup_eventfd(ngx_cycle_t *cycle)
{
    ngx_socket_t  fd;

    fd = eventfd(0, EFD_NONBLOCK|EFD_CLOEXEC);

    if (fd == (ngx_socket_t) -1) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno,
                      "backup: eventfd() failed");
    }

    return fd;
}


void
ngx_http_backup_wake_make(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    ngx_int_t         i;
    ngx_socket_t     *call;
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    bmcf->wake = ngx_http_backup_eventfd(cycle);

    for (i = 0; i < (ccf->master ? ccf->worker_processes : 1); i++) {
        call = ngx_array_push(&bmcf->calls);
        if (call == NULL) {
            return;
        }

        *call = ngx_http_backup_eventfd(cycle);
    }
}


void
ngx_http_backup_wake_close(ngx_http_backup_main_conf_t *bmcf)
{
    ngx_uint_t     i;
    ngx_socket_t  *calls;

    calls = bmcf->calls.elts;

    for (i = 0; i < bmcf->calls.nelts; i++) {
        if (calls[i] != (ngx_socket_t) -1) {
            (void) close(calls[i]);
        }
    }

    bmcf->calls.nelts = 0;

    if (bmcf->wake != (ngx_socket_t) -1) {
        (void) close(bmcf->wake);
        bmcf->wake = (ngx_socket_t) -1;
    }
}


ngx_int_t
ngx_http_backup_wake_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    ngx_socket_t  *calls;

    ngx_http_backup_wake_fd = bmcf->wake;

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

    if (ngx_worker == 0 && bmcf->wake != (ngx_socket_t) -1) {
        ngx_http_backup_wakeup = ngx_http_backup_listen(cycle, bmcf->wake,
                                                        ngx_http_backup_awake);
        if (ngx_http_backup_wakeup == NULL) {
            return NGX_ERROR;
        }

        /* so that we are told when the worker quits */

        ngx_http_backup_wakeup->idle = 1;
    }

    return NGX_OK;
}


void
ngx_http_backup_wake_exit(ngx_http_backup_main_conf_t *bmcf)
{
    ngx_socket_t  *calls;

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
    ngx_connection_t  *c = ev->data;

    if (c->close) {
        c->close = 0;
        c->idle = 0;

    } else {
        ngx_http_backup_hear(ev);
    }

    ngx_http_backup_hurry();
}
