/*
 * nginx/pages.c: what is answered from memory: status, health, metrics and the
 * configuration.
 *
 * Loop code.
 */

#include "nginx/api.h"

#include "base/clock.h"


static ngx_int_t ngx_http_backup_send_health(ngx_http_request_t *r,
    ngx_http_backup_set_t *bset, ngx_uint_t which);


#define NGX_HTTP_BACKUP_NOT_UP                                                \
    "# HELP nginx_backup_up 1: a worker looks after the backups.\n"           \
    "# TYPE nginx_backup_up gauge\n"                                          \
    "nginx_backup_up{backup=\"%V\"} 0\n"


ngx_int_t
ngx_http_backup_status(ngx_http_request_t *r)
{
    time_t                  time;
    uint64_t                tag;
    ngx_int_t               rc;
    ngx_str_t               body, trouble;
    ngx_table_elt_t        *h;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    rc = ngx_http_backup_get(ctx->bset, NGX_HTTP_BACKUP_STATUS, r->pool, &body,
                             &tag, &time);
    if (rc == NGX_ERROR) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (rc == NGX_DECLINED || ngx_time() - time > NGX_HTTP_BACKUP_STALE) {

        rc = ngx_http_backup_get(ctx->bset, NGX_HTTP_BACKUP_TROUBLE, r->pool,
                                 &trouble, NULL, NULL);

        return ngx_http_backup_refuse(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                      BK_UNAVAILABLE,
                                      rc == NGX_OK ? (char *) trouble.data
                                      : "The worker that runs the backups "
                                        "has not reported yet");
    }

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    h->hash = 1;
    ngx_str_set(&h->key, "ETag");
    h->value.data = ngx_pnalloc(r->pool, 18);
    if (h->value.data == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    h->value.len = ngx_sprintf(h->value.data, "\"%016xL\"", tag)
                   - h->value.data;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif
    r->headers_out.etag = h;

    return ngx_http_backup_answer(r, NGX_HTTP_OK, "application/json", &body);
}


/* A scrape always gets an answer: that nobody looks after the set is one. */

ngx_int_t
ngx_http_backup_metrics(ngx_http_request_t *r)
{
    time_t                  time;
    ngx_int_t               rc;
    ngx_str_t               body;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    rc = ngx_http_backup_get(ctx->bset, NGX_HTTP_BACKUP_METRICS, r->pool,
                             &body, NULL, &time);
    if (rc == NGX_ERROR) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (rc == NGX_DECLINED || ngx_time() - time > NGX_HTTP_BACKUP_STALE) {

        body.data = ngx_pnalloc(r->pool, sizeof(NGX_HTTP_BACKUP_NOT_UP)
                                         + ctx->bset->name.len);
        if (body.data == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        body.len = ngx_sprintf(body.data, NGX_HTTP_BACKUP_NOT_UP,
                               &ctx->bset->name)
                   - body.data;
    }

    return ngx_http_backup_answer(r, NGX_HTTP_OK,
                                  "text/plain; version=0.0.4; charset=utf-8",
                                  &body);
}


ngx_int_t
ngx_http_backup_config(ngx_http_request_t *r)
{
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    return ngx_http_backup_answer(r, NGX_HTTP_OK, "application/json",
                                  &ctx->bset->config);
}


ngx_int_t
ngx_http_backup_health(ngx_http_request_t *r)
{
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    return ngx_http_backup_send_health(r, ctx->bset, NGX_HTTP_BACKUP_HEALTH);
}


static ngx_int_t
ngx_http_backup_send_health(ngx_http_request_t *r, ngx_http_backup_set_t *bset,
    ngx_uint_t which)
{
    char        now[BK_TIME_TEXT];
    json_t     *json;
    time_t      time;
    ngx_int_t   rc;
    ngx_str_t   body, trouble;
    ngx_uint_t  status;

    rc = ngx_http_backup_get(bset, which, r->pool, &body, NULL, &time);
    if (rc == NGX_ERROR) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (rc == NGX_OK && ngx_time() - time <= NGX_HTTP_BACKUP_STALE) {
        status = bset->slot->healthy ? NGX_HTTP_OK
                                     : NGX_HTTP_SERVICE_UNAVAILABLE;

        return ngx_http_backup_answer(r, status, "application/health+json",
                                      &body);
    }

    /* Nobody looks after the set: that is not healthy, whatever was before. */

    bk_time_format(now, bk_now());

    json = json_pack("{s:s, s:b, s:s}", "status", "fail", "healthy", 0,
                     "timestamp", now);

    if (which == NGX_HTTP_BACKUP_HEALTH) {
        rc = ngx_http_backup_get(bset, NGX_HTTP_BACKUP_TROUBLE, r->pool,
                                 &trouble, NULL, NULL);

        json_object_set_new(json, "output", json_string(
                            rc == NGX_OK ? (char *) trouble.data
                            : "the worker that runs the backups has not "
                              "reported"));
    }

    rc = ngx_http_backup_dump(r->pool, json, &body);
    json_decref(json);

    if (rc != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_backup_answer(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "application/health+json", &body);
}


/* Open to everybody; details are for those who show who they are. */

ngx_int_t
ngx_http_backup_health_handler(ngx_http_request_t *r)
{
    ngx_int_t               rc;
    ngx_http_backup_ctx_t  *ctx;

    if (r != r->main) {
        return NGX_HTTP_FORBIDDEN;
    }

    ctx = ngx_http_backup_new_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->operation = "health";

    if (r->method != NGX_HTTP_GET && r->method != NGX_HTTP_HEAD) {
        if (ngx_http_backup_header_text(r, "Allow", "GET, HEAD") != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ngx_str_set(&ctx->user.name, "-");

        return ngx_http_backup_refuse(r, NGX_HTTP_NOT_ALLOWED, BK_FAILED,
                                      "This resource does not have this "
                                      "method, see Allow");
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    rc = ngx_http_backup_authenticate(r, &ctx->user);

    return ngx_http_backup_send_health(r, ctx->bset,
                                       rc == NGX_OK
                                       ? NGX_HTTP_BACKUP_HEALTH
                                       : NGX_HTTP_BACKUP_HEALTH_BRIEF);
}
