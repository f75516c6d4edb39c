/*
 * nginx/request.c: a request while a thread works for it: its body, its call,
 * the answer, and waiting for a job.
 *
 * Loop code.  A client may leave at any time: the cleanup of the request cuts
 * the call loose, which then ends unseen.
 */

#include "nginx/module.h"

#include <fcntl.h>

#include "base/str.h"


#define NGX_HTTP_BACKUP_POLL    250     /* ms between looks at the zone */
#define NGX_HTTP_BACKUP_LOOK    3000    /* ms between looks at the catalog */


static void ngx_http_backup_body_ready(ngx_http_request_t *r);
static ngx_int_t ngx_http_backup_take_body(ngx_http_request_t *r,
    ngx_http_backup_call_t *call);
static void ngx_http_backup_call_done(void *data);
static void ngx_http_backup_request_gone(void *data);
static ngx_int_t ngx_http_backup_call_answer(ngx_http_request_t *r,
    ngx_http_backup_call_t *call);
static ngx_int_t ngx_http_backup_fail(ngx_http_request_t *r, bk_rc_t rc,
    ngx_uint_t status, const char *text);
static void ngx_http_backup_wait_more(ngx_http_backup_ctx_t *ctx);
static void ngx_http_backup_wait_end(ngx_http_backup_ctx_t *ctx);
static void ngx_http_backup_wait_handler(ngx_event_t *ev);


static ngx_queue_t  ngx_http_backup_waiters = {
    &ngx_http_backup_waiters, &ngx_http_backup_waiters
};


static char *
ngx_http_backup_heap(ngx_str_t *s)
{
    return bk_strndup((char *) s->data, s->len);
}


ngx_http_backup_call_t *
ngx_http_backup_call_new(ngx_http_request_t *r, ngx_uint_t op)
{
    ngx_str_t                prefix, *key;
    ngx_http_backup_ctx_t   *ctx;
    ngx_http_backup_call_t  *call;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    call = calloc(1, sizeof(ngx_http_backup_call_t));
    if (call == NULL) {
        return NULL;
    }

    call->bset = ctx->bset;
    call->op = op;
    call->body_fd = -1;
    call->filter.limit = 50;

    ngx_http_backup_ctl_init(&call->ctl, 1);
    bk_buf_init(&call->text, 64 * 1024 * 1024);

    ngx_http_backup_prefix(r, &prefix);

    call->prefix = ngx_http_backup_heap(&prefix);
    call->user = ngx_http_backup_heap(&ctx->user.name);
    call->request_id = ngx_http_backup_heap(ngx_http_backup_request_id(r));

    key = ngx_http_backup_find_header(r, "idempotency-key");
    if (key && key->len) {
        call->idempotency_key = ngx_http_backup_heap(key);
    }

    if (call->prefix == NULL || call->user == NULL || call->request_id == NULL
        || (key && key->len && call->idempotency_key == NULL))
    {
        ngx_http_backup_call_free(call);
        return NULL;
    }

    return call;
}


/* What the zone knows of the running job goes along. */

static void
ngx_http_backup_call_zone(ngx_http_request_t *r, ngx_http_backup_call_t *call)
{
    ngx_str_t               progress;
    ngx_uint_t              canceling;
    ngx_http_backup_set_t  *bset = call->bset;

    (void) ngx_cpystrn((u_char *) call->running, bset->slot->running,
                       BK_JOB_ID);

    if (!ngx_http_backup_is_running(bset, call->running, &canceling)) {
        call->running[0] = '\0';
        return;
    }

    if (ngx_http_backup_get(bset, NGX_HTTP_BACKUP_PROGRESS, r->pool, &progress,
                            NULL, NULL)
        == NGX_OK)
    {
        call->progress = ngx_http_backup_heap(&progress);
    }
}


/* From now on the end of the request is seen. */

static ngx_int_t
ngx_http_backup_watch(ngx_http_request_t *r, ngx_http_backup_ctx_t *ctx)
{
    ngx_http_cleanup_t  *cln;

    if (ctx->wait.handler) {
        return NGX_OK;
    }

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_backup_request_gone;
    cln->data = ctx;

    ctx->wait.handler = ngx_http_backup_wait_handler;
    ctx->wait.data = &ngx_http_backup_nowhere;
    ctx->wait.log = r->connection->log;
    ctx->deadline = ngx_current_msec + ctx->timeout;

    return NGX_OK;
}


/* The caller holds a reference to the request for us. */

ngx_int_t
ngx_http_backup_call_post(ngx_http_request_t *r, ngx_http_backup_call_t *call)
{
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    if (ngx_http_backup_watch(r, ctx) != NGX_OK) {
        goto failed;
    }

    ngx_http_backup_call_zone(r, call);

    call->request = r;
    ctx->call = call;
    ctx->seen = ngx_http_backup_ended_count(ctx->bset);
    ctx->polled = ngx_current_msec;

    if (ngx_http_backup_post(ctx->bset->short_pool, ngx_http_backup_call_work,
                             ngx_http_backup_call_done, call)
        != NGX_OK)
    {
        ctx->call = NULL;
        goto failed;
    }

    r->read_event_handler = ngx_http_test_reading;
    r->write_event_handler = ngx_http_request_empty_handler;

    return NGX_DONE;

failed:

    ngx_http_backup_call_free(call);

    ngx_http_finalize_request(r, ngx_http_backup_fail(r, BK_UNAVAILABLE, 0,
                                     "The server has too much to do: try "
                                     "again later"));
    return NGX_DONE;
}


static ngx_int_t
ngx_http_backup_fail(ngx_http_request_t *r, bk_rc_t rc, ngx_uint_t status,
    const char *text)
{
    bk_err_t  err;

    bk_err_clear(&err);
    bk_err_set(&err, rc, "%s", text);

    ngx_http_backup_audit(r, status ? status : (ngx_uint_t) bk_rc_http(rc),
                          NULL);

    return ngx_http_backup_problem(r, &err, status, NULL);
}


ngx_int_t
ngx_http_backup_call_with_body(ngx_http_request_t *r,
    ngx_http_backup_call_t *call)
{
    ngx_int_t               rc;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    if (r->headers_in.content_length_n > NGX_HTTP_BACKUP_BODY) {
        ngx_http_backup_call_free(call);

        rc = ngx_http_discard_request_body(r);
        if (rc != NGX_OK) {
            return rc;
        }

        return ngx_http_backup_fail(r, BK_TOO_LARGE, 0,
                                    "The request body is larger than 64 KiB");
    }

    if (ngx_http_backup_watch(r, ctx) != NGX_OK) {
        ngx_http_backup_call_free(call);
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->call = call;
    r->request_body_in_single_buf = 1;

    rc = ngx_http_read_client_request_body(r, ngx_http_backup_body_ready);

    return rc >= NGX_HTTP_SPECIAL_RESPONSE ? rc : NGX_DONE;
}


static void
ngx_http_backup_body_ready(ngx_http_request_t *r)
{
    ngx_int_t                rc;
    ngx_http_backup_ctx_t   *ctx;
    ngx_http_backup_call_t  *call;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    call = ctx->call;
    ctx->call = NULL;

    rc = ngx_http_backup_take_body(r, call);

    if (rc != NGX_OK || ctx->answered) {
        ngx_http_backup_call_free(call);
        ngx_http_finalize_request(r, rc);
        return;
    }

    (void) ngx_http_backup_call_post(r, call);
}


ngx_uint_t
ngx_http_backup_is_json(ngx_http_request_t *r)
{
    ngx_str_t  *type;

    if (r->headers_in.content_type == NULL) {
        return 0;
    }

    type = &r->headers_in.content_type->value;

    return type->len >= 16
           && ngx_strncasecmp(type->data, (u_char *) "application/json", 16)
              == 0
           && (type->len == 16 || type->data[16] == ';'
               || type->data[16] == ' ');
}


/* Copies what is in memory; a temporary file is read by the thread. */

static ngx_int_t
ngx_http_backup_take_body(ngx_http_request_t *r, ngx_http_backup_call_t *call)
{
    off_t         size;
    u_char       *p;
    size_t        n;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    if (r->request_body == NULL || r->request_body->bufs == NULL) {
        return NGX_OK;
    }

    size = 0;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        size += ngx_buf_size(cl->buf);
    }

    if (size == 0) {
        return NGX_OK;
    }

    if (size > NGX_HTTP_BACKUP_BODY) {
        return ngx_http_backup_fail(r, BK_TOO_LARGE, 0,
                                    "The request body is larger than 64 KiB");
    }

    if (!ngx_http_backup_is_json(r)) {
        return ngx_http_backup_fail(r, BK_FAILED,
                                    NGX_HTTP_UNSUPPORTED_MEDIA_TYPE,
                                    "The body must be JSON: send "
                                    "Content-Type: application/json");
    }

    call->body = malloc(size);
    if (call->body == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    call->body_len = size;
    p = call->body;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        b = cl->buf;

        if (ngx_buf_in_memory(b)) {
            n = b->last - b->pos;
            p = ngx_cpymem(p, b->pos, n);
            continue;
        }

        if (!b->in_file || b->file_last == b->file_pos) {
            continue;
        }

        /* nginx writes all of a body to the file, or nothing */

        if (p != call->body || ngx_buf_size(b) != size) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        call->body_fd = fcntl(b->file->fd, F_DUPFD_CLOEXEC, 0);
        if (call->body_fd == -1) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        call->body_offset = b->file_pos;

        return NGX_OK;
    }

    return NGX_OK;
}


static void
ngx_http_backup_request_gone(void *data)
{
    ngx_http_backup_ctx_t  *ctx = data;

    ngx_http_backup_wait_end(ctx);

    if (ctx->call == NULL) {
        return;
    }

    if (ctx->call->request == NULL) {

        /* the body never came whole, no thread has seen the call */

        ngx_http_backup_call_free(ctx->call);

    } else {

        /* nobody will see the plan that it may be making */

        bk_ctl_stop(&ctx->call->ctl.ctl, BK_CANCELED);
        ctx->call->request = NULL;
    }

    ctx->call = NULL;
}


static void
ngx_http_backup_call_done(void *data)
{
    ngx_int_t                rc;
    ngx_connection_t        *c;
    ngx_http_request_t      *r;
    ngx_http_backup_ctx_t   *ctx;
    ngx_http_backup_call_t  *call = data;

    if (call->stop) {
        ngx_http_backup_cancel(call->bset, call->id);
    }

    if (call->op == NGX_HTTP_BACKUP_OP_CANCEL && !call->failed) {
        ngx_http_backup_ended(call->bset);
        ngx_http_backup_call_waiters();
    }

    if (call->wake || call->stop) {
        ngx_http_backup_wake();
    }

    r = call->request;

    if (r == NULL) {
        ngx_http_backup_call_free(call);
        return;
    }

    c = r->connection;
    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);
    ctx->call = NULL;

    ngx_http_set_log_request(c->log, r);

    rc = ngx_http_backup_call_answer(r, call);

    ngx_http_backup_call_free(call);

    if (rc == NGX_AGAIN) {
        ngx_http_backup_wait_more(ctx);

    } else {
        ngx_http_finalize_request(r, rc);
    }

    ngx_http_run_posted_requests(c);
}


static ngx_int_t
ngx_http_backup_job_location(ngx_http_request_t *r, const char *id)
{
    u_char     *p;
    ngx_str_t   prefix, location;

    ngx_http_backup_prefix(r, &prefix);

    p = ngx_pnalloc(r->pool, prefix.len + sizeof("/jobs/") + BK_JOB_ID);
    if (p == NULL) {
        return NGX_ERROR;
    }

    location.data = p;
    location.len = ngx_sprintf(p, "%V/jobs/%s", &prefix, id) - p;

    return ngx_http_backup_header(r, "Location", &location);
}


/* NGX_AGAIN: the job has not ended, and the client wants to wait for it. */

static ngx_int_t
ngx_http_backup_call_answer(ngx_http_request_t *r, ngx_http_backup_call_t *call)
{
    json_t                 *problems;
    ngx_str_t               body;
    ngx_uint_t              status;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    status = call->failed ? (ngx_uint_t) bk_rc_http(call->err.rc)
                          : call->status;

    if (!ctx->waiting) {
        ngx_http_backup_audit(r, status, call->job);
    }

    if (call->failed) {
        if (call->job[0] != '\0' && status == NGX_HTTP_CONFLICT
            && ngx_http_backup_job_location(r, call->job) != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        problems = call->problems;
        call->problems = NULL;

        return ngx_http_backup_problem(r, &call->err, status, problems);
    }

    if (call->job[0] != '\0' && ctx->timeout && !call->ended
        && call->op != NGX_HTTP_BACKUP_OP_CANCEL
        && (ngx_msec_int_t) (ctx->deadline - ngx_current_msec) > 0
        && !ngx_exiting && !ngx_terminate)
    {
        (void) ngx_cpystrn(ctx->job, (u_char *) call->job, BK_JOB_ID);
        ctx->waiting = 1;

        return NGX_AGAIN;
    }

    if (ctx->preferred && call->job[0] != '\0') {
        status = call->ended ? NGX_HTTP_OK : NGX_HTTP_ACCEPTED;

        if (ngx_http_backup_header_text(r, "Preference-Applied", "wait")
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    if (status == NGX_HTTP_ACCEPTED
        && (ngx_http_backup_job_location(r, call->job) != NGX_OK
            || ngx_http_backup_header_text(r, "Retry-After", "1") != NGX_OK))
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (call->replayed
        && ngx_http_backup_header_text(r, "Idempotency-Replayed", "true")
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    body.len = call->text.len;
    body.data = ngx_pnalloc(r->pool, body.len + 1);
    if (body.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (body.len) {
        ngx_memcpy(body.data, call->text.data, body.len);
    }

    return ngx_http_backup_answer(r, status, "application/json", &body);
}


/*
 * The end of a job is announced through an eventfd.  One that came before the
 * request began to wait is in the count; one that got lost, as it does to the
 * workers of an older cycle, is found by a slow look.
 */

static void
ngx_http_backup_wait_more(ngx_http_backup_ctx_t *ctx)
{
    ngx_queue_insert_tail(&ngx_http_backup_waiters, &ctx->waiters);

    ngx_add_timer(&ctx->wait,
                  ngx_http_backup_ended_count(ctx->bset) == ctx->seen
                  ? NGX_HTTP_BACKUP_POLL : 1);
}


static void
ngx_http_backup_wait_end(ngx_http_backup_ctx_t *ctx)
{
    if (ctx->wait.timer_set) {
        ngx_del_timer(&ctx->wait);
    }

    if (ctx->waiters.next) {
        ngx_queue_remove(&ctx->waiters);
        ctx->waiters.next = NULL;
    }
}


/* Each request looks by its own timer: it may end, and others with it. */

void
ngx_http_backup_look(void)
{
    ngx_queue_t            *q;
    ngx_http_backup_ctx_t  *ctx;

    for (q = ngx_queue_head(&ngx_http_backup_waiters);
         q != ngx_queue_sentinel(&ngx_http_backup_waiters);
         q = ngx_queue_next(q))
    {
        ctx = ngx_queue_data(q, ngx_http_backup_ctx_t, waiters);

        ngx_del_timer(&ctx->wait);
        ngx_add_timer(&ctx->wait, 1);
    }
}


/*
 * Looks into the zone often and into the catalog when a job has ended, when
 * time is up, and now and then in case that was missed.
 */

static void
ngx_http_backup_wait_handler(ngx_event_t *ev)
{
    ngx_uint_t               leaving;
    ngx_connection_t        *c;
    ngx_http_request_t      *r;
    ngx_http_backup_ctx_t   *ctx;
    ngx_http_backup_call_t  *call;

    ctx = (ngx_http_backup_ctx_t *)
                       ((u_char *) ev - offsetof(ngx_http_backup_ctx_t, wait));
    r = ctx->request;
    c = r->connection;

    ngx_http_backup_wait_end(ctx);

    leaving = (ngx_exiting || ngx_terminate
               || (ngx_msec_int_t) (ctx->deadline - ngx_current_msec) <= 0);

    if (!leaving
        && ngx_http_backup_ended_count(ctx->bset) == ctx->seen
        && ngx_current_msec - ctx->polled < NGX_HTTP_BACKUP_LOOK)
    {
        ngx_http_backup_wait_more(ctx);
        return;
    }

    ngx_http_set_log_request(c->log, r);

    call = ngx_http_backup_call_new(r, NGX_HTTP_BACKUP_OP_JOB);

    if (call == NULL) {
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);

    } else {
        (void) ngx_cpystrn((u_char *) call->id, ctx->job, BK_JOB_ID);
        (void) ngx_http_backup_call_post(r, call);
    }

    ngx_http_run_posted_requests(c);
}
