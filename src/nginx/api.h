/*
 * nginx/api.h: what the files of the API share: api.c the routes, args.c their
 * parameters, pages.c the answers that are in memory.  Loop code.
 */

#ifndef BK_NGINX_API_H
#define BK_NGINX_API_H


#include "nginx/module.h"


typedef struct {
    const char               *name;
    ngx_uint_t                shape;
    const char               *action;
    ngx_uint_t                method;
    ngx_http_backup_role_e    role;
    const char               *operation;
    ngx_int_t               (*handler)(ngx_http_request_t *r);
    ngx_uint_t                op;
    ngx_uint_t                kind;
    const char               *args;         /* known query parameters */
} ngx_http_backup_route_t;


/* api.c */

ngx_http_backup_ctx_t *ngx_http_backup_new_ctx(ngx_http_request_t *r);
ngx_uint_t ngx_http_backup_equal(ngx_str_t *s, const char *text);
/* A problem instead of an answer; the body of the request is discarded. */
ngx_int_t ngx_http_backup_refuse(ngx_http_request_t *r, ngx_uint_t status,
    bk_rc_t rc, const char *text);


/* args.c: NGX_OK, also when a problem was answered (ctx->answered). */

ngx_int_t ngx_http_backup_args(ngx_http_request_t *r,
    ngx_http_backup_route_t *route, ngx_http_backup_call_t *call);
void ngx_http_backup_prefer(ngx_http_request_t *r,
    ngx_http_backup_ctx_t *ctx);


/* pages.c */

ngx_int_t ngx_http_backup_status(ngx_http_request_t *r);
ngx_int_t ngx_http_backup_health(ngx_http_request_t *r);
ngx_int_t ngx_http_backup_metrics(ngx_http_request_t *r);
ngx_int_t ngx_http_backup_config(ngx_http_request_t *r);


#endif
