/*
 * nginx/api.c: the routes of a backup_api location.
 *
 * Loop code.  What can be answered from memory is in pages.c; the rest becomes
 * a call for a thread.
 */

#include "nginx/api.h"

#include "base/str.h"


typedef enum {
    NGX_HTTP_BACKUP_PLAIN = 0,      /* /name */
    NGX_HTTP_BACKUP_ID,             /* /name/{id} */
    NGX_HTTP_BACKUP_ACTION          /* /name/{id}/action */
} ngx_http_backup_shape_e;


static ngx_int_t ngx_http_backup_index(ngx_http_request_t *r);


#define GET   NGX_HTTP_GET
#define POST  NGX_HTTP_POST

static ngx_http_backup_route_t  ngx_http_backup_routes[] = {

    { "", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "index",
      ngx_http_backup_index, 0, 0, "" },

    { "status", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "status",
      ngx_http_backup_status, 0, 0, "" },

    { "health", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "health",
      ngx_http_backup_health, 0, 0, "" },

    { "metrics", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "metrics",
      ngx_http_backup_metrics, 0, 0, "" },

    { "config", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "config",
      ngx_http_backup_config, 0, 0, "" },

    { "list", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "list",
      NULL, NGX_HTTP_BACKUP_OP_LIST, 0,
      "type since until tag storage limit cursor " },

    { "backups", NGX_HTTP_BACKUP_ID, NULL, GET, NGX_HTTP_BACKUP_VIEWER,
      "backup", NULL, NGX_HTTP_BACKUP_OP_BACKUP, 0, "" },

    { "backups", NGX_HTTP_BACKUP_ID, NULL, NGX_HTTP_DELETE,
      NGX_HTTP_BACKUP_ADMIN, "delete", NULL, NGX_HTTP_BACKUP_OP_SUBMIT,
      BK_JOB_DELETE, "" },

    { "jobs", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "jobs",
      NULL, NGX_HTTP_BACKUP_OP_JOBS, 0, "limit cursor " },

    { "jobs", NGX_HTTP_BACKUP_ID, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "job",
      NULL, NGX_HTTP_BACKUP_OP_JOB, 0, "wait " },

    { "jobs", NGX_HTTP_BACKUP_ACTION, "cancel", POST,
      NGX_HTTP_BACKUP_OPERATOR, "cancel", NULL, NGX_HTTP_BACKUP_OP_CANCEL, 0,
      "" },

    { "timeline", 0, NULL, GET, NGX_HTTP_BACKUP_VIEWER, "timeline",
      NULL, NGX_HTTP_BACKUP_OP_TIMELINE, 0,
      "database since until limit cursor " },

    { "databases", NGX_HTTP_BACKUP_ACTION, "detach", POST,
      NGX_HTTP_BACKUP_ADMIN, "detach", NULL, NGX_HTTP_BACKUP_OP_DETACH, 1, "" },

    { "databases", NGX_HTTP_BACKUP_ACTION, "attach", POST,
      NGX_HTTP_BACKUP_ADMIN, "attach", NULL, NGX_HTTP_BACKUP_OP_DETACH, 0, "" },

    { "create", 0, NULL, POST, NGX_HTTP_BACKUP_OPERATOR, "create",
      NULL, NGX_HTTP_BACKUP_OP_SUBMIT, BK_JOB_BACKUP, "" },

    { "recovery", 0, NULL, POST, NGX_HTTP_BACKUP_ADMIN, "recovery",
      NULL, NGX_HTTP_BACKUP_OP_SUBMIT, BK_JOB_RECOVERY, "" },

    { "validate-recovery", 0, NULL, POST, NGX_HTTP_BACKUP_OPERATOR,
      "validate-recovery", NULL, NGX_HTTP_BACKUP_OP_SUBMIT, BK_JOB_VALIDATE,
      "" },

    { "query", 0, NULL, POST, NGX_HTTP_BACKUP_ADMIN, "query",
      NULL, NGX_HTTP_BACKUP_OP_QUERY, 0, "" },

    { "verify", 0, NULL, POST, NGX_HTTP_BACKUP_OPERATOR, "verify",
      NULL, NGX_HTTP_BACKUP_OP_SUBMIT, BK_JOB_VERIFY, "" },

    { "test", 0, NULL, POST, NGX_HTTP_BACKUP_OPERATOR, "test",
      NULL, NGX_HTTP_BACKUP_OP_SUBMIT, BK_JOB_TEST, "" },

    { "cleanup", 0, NULL, POST, NGX_HTTP_BACKUP_ADMIN, "cleanup",
      NULL, NGX_HTTP_BACKUP_OP_SUBMIT, BK_JOB_CLEANUP, "" },

    { NULL, 0, NULL, 0, 0, NULL, NULL, 0, 0, NULL }
};


void
ngx_http_backup_prefix(ngx_http_request_t *r, ngx_str_t *prefix)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    *prefix = clcf->name;

    while (prefix->len && prefix->data[prefix->len - 1] == '/') {
        prefix->len--;
    }
}


ngx_http_backup_ctx_t *
ngx_http_backup_new_ctx(ngx_http_request_t *r)
{
    ngx_http_backup_ctx_t       *ctx;
    ngx_http_backup_loc_conf_t  *blcf;

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_backup_ctx_t));
    if (ctx == NULL) {
        return NULL;
    }

    blcf = ngx_http_get_module_loc_conf(r, ngx_http_backup_module);

    ctx->request = r;
    ctx->bset = blcf->bset;
    ctx->operation = "request";

    ngx_http_set_ctx(r, ctx, ngx_http_backup_module);

    return ctx;
}


/* Split what follows the prefix.  False when it has no route's shape. */

static ngx_uint_t
ngx_http_backup_split(ngx_http_request_t *r, ngx_str_t part[3],
    ngx_uint_t *shape)
{
    u_char      *p, *last, *slash;
    ngx_str_t    prefix;
    ngx_uint_t   n;

    ngx_http_backup_prefix(r, &prefix);

    if (r->uri.len < prefix.len) {
        return 0;
    }

    p = r->uri.data + prefix.len;
    last = r->uri.data + r->uri.len;

    if (p < last && *p++ != '/') {
        return 0;
    }

    ngx_memzero(part, 3 * sizeof(ngx_str_t));
    *shape = NGX_HTTP_BACKUP_PLAIN;

    for (n = 0; p < last; n++) {
        if (n == 3) {
            return 0;
        }

        slash = ngx_strlchr(p, last, '/');

        part[n].data = p;
        part[n].len = (slash ? slash : last) - p;
        *shape = n;

        if (part[n].len == 0) {
            return 0;
        }

        p = slash ? slash + 1 : last;
    }

    return 1;
}


ngx_uint_t
ngx_http_backup_equal(ngx_str_t *s, const char *text)
{
    return s->len == ngx_strlen(text)
           && (s->len == 0 || ngx_memcmp(s->data, text, s->len) == 0);
}


/* NULL: allow tells which methods there are, "" when there is no resource. */

static ngx_http_backup_route_t *
ngx_http_backup_match(ngx_http_request_t *r, ngx_str_t part[3],
    ngx_uint_t shape, ngx_str_t *allow)
{
    u_char                   *p, *methods;
    ngx_uint_t                method;
    ngx_http_backup_route_t  *route;

    methods = ngx_pnalloc(r->pool, 64);
    if (methods == NULL) {
        return NULL;
    }

    p = methods;
    method = (r->method == NGX_HTTP_HEAD) ? NGX_HTTP_GET : r->method;

    for (route = ngx_http_backup_routes; route->name; route++) {

        if (route->shape != shape
            || !ngx_http_backup_equal(&part[0], route->name)
            || (route->action
                && !ngx_http_backup_equal(&part[2], route->action)))
        {
            continue;
        }

        if (route->method == method) {
            return route;
        }

        p = ngx_slprintf(p, methods + 64, "%s%s",
                         p == methods ? "" : ", ",
                         route->method == NGX_HTTP_GET ? "GET, HEAD"
                         : route->method == NGX_HTTP_POST ? "POST"
                         : "DELETE");
    }

    allow->data = methods;
    allow->len = p - methods;

    return NULL;
}


/* Ids of jobs and backups. */

static ngx_uint_t
ngx_http_backup_id(ngx_str_t *s, char *id)
{
    u_char  c;
    size_t  i;

    if (s->len >= BK_JOB_ID) {
        return 0;
    }

    for (i = 0; i < s->len; i++) {
        c = s->data[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
              || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.'))
        {
            return 0;
        }

        id[i] = (char) c;
    }

    id[i] = '\0';

    return 1;
}


ngx_int_t
ngx_http_backup_refuse(ngx_http_request_t *r, ngx_uint_t status, bk_rc_t rc,
    const char *text)
{
    bk_err_t   err;
    ngx_int_t  ok;

    ok = ngx_http_discard_request_body(r);
    if (ok != NGX_OK) {
        return ok;
    }

    bk_err_clear(&err);
    bk_err_set(&err, rc, "%s", text);

    ngx_http_backup_audit(r, status ? status : (ngx_uint_t) bk_rc_http(rc),
                          NULL);

    return ngx_http_backup_problem(r, &err, status, NULL);
}


static ngx_int_t
ngx_http_backup_unauthorized(ngx_http_request_t *r)
{
    ngx_table_elt_t             *h;
    ngx_http_backup_loc_conf_t  *blcf;

    blcf = ngx_http_get_module_loc_conf(r, ngx_http_backup_module);

    if (blcf->auth == NGX_HTTP_BACKUP_AUTH_BEARER) {
        h = ngx_list_push(&r->headers_out.headers);
        if (h == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        h->hash = 1;
        ngx_str_set(&h->key, "WWW-Authenticate");
        ngx_str_set(&h->value, "Bearer realm=\"backup\"");
#if (nginx_version >= 1023000)
        h->next = NULL;
#endif
        r->headers_out.www_authenticate = h;
    }

    return ngx_http_backup_refuse(r, NGX_HTTP_UNAUTHORIZED, BK_FAILED,
                                  "Give a valid token: "
                                  "Authorization: Bearer TOKEN");
}


static ngx_int_t
ngx_http_backup_forbidden(ngx_http_request_t *r,
    ngx_http_backup_route_t *route)
{
    char                    text[256];
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    bk_fmt(text, sizeof(text), "%s needs the role %s, these credentials have "
           "the role %s", route->operation,
           ngx_http_backup_role_name(route->role),
           ngx_http_backup_role_name(ctx->user.role));

    return ngx_http_backup_refuse(r, NGX_HTTP_FORBIDDEN, BK_FAILED, text);
}


static ngx_int_t
ngx_http_backup_dispatch(ngx_http_request_t *r, ngx_http_backup_route_t *route,
    ngx_str_t part[3])
{
    ngx_int_t                rc;
    ngx_str_t               *key;
    ngx_http_backup_ctx_t   *ctx;
    ngx_http_backup_call_t  *call;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    if (route->handler) {
        rc = ngx_http_discard_request_body(r);

        return rc == NGX_OK ? route->handler(r) : rc;
    }

    if (!ctx->bset->ready) {
        return ngx_http_backup_refuse(r, NGX_HTTP_SERVICE_UNAVAILABLE,
                                      BK_UNAVAILABLE,
                                      "This process has no threads for "
                                      "backups: restart nginx with "
                                      "master_process on");
    }

    key = ngx_http_backup_find_header(r, "idempotency-key");

    if (key && key->len > NGX_HTTP_BACKUP_KEY) {
        return ngx_http_backup_refuse(r, 0, BK_INVALID,
                                      "Idempotency-Key must have at most "
                                      "255 characters");
    }

    call = ngx_http_backup_call_new(r, route->op);
    if (call == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    call->kind = route->kind;

    if (part[1].len && !ngx_http_backup_id(&part[1], call->id)) {
        ngx_http_backup_call_free(call);
        return ngx_http_backup_refuse(r, NGX_HTTP_NOT_FOUND, BK_NOT_FOUND,
                                      "There is nothing of that name");
    }

    rc = ngx_http_backup_args(r, route, call);

    if (rc != NGX_OK || ctx->answered) {
        ngx_http_backup_call_free(call);
        return rc;
    }

    if (route->op == NGX_HTTP_BACKUP_OP_SUBMIT) {
        ngx_http_backup_prefer(r, ctx);
    }

    if (route->method == NGX_HTTP_POST
        && (route->op == NGX_HTTP_BACKUP_OP_SUBMIT
            || route->op == NGX_HTTP_BACKUP_OP_QUERY))
    {
        return ngx_http_backup_call_with_body(r, call);
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        ngx_http_backup_call_free(call);
        return rc;
    }

    r->main->count++;

    return ngx_http_backup_call_post(r, call);
}


ngx_int_t
ngx_http_backup_api_handler(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_str_t                 part[3], allow;
    ngx_uint_t                shape;
    ngx_http_backup_ctx_t    *ctx;
    ngx_http_backup_route_t  *route;

    /* An answer of ours must not become a part of another's. */

    if (r != r->main) {
        return NGX_HTTP_FORBIDDEN;
    }

    ctx = ngx_http_backup_new_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    route = NULL;
    ngx_str_null(&allow);

    if (ngx_http_backup_split(r, part, &shape)) {
        route = ngx_http_backup_match(r, part, shape, &allow);
    }

    if (route) {
        ctx->operation = route->operation;
    }

    rc = ngx_http_backup_authenticate(r, &ctx->user);

    if (rc == NGX_HTTP_UNAUTHORIZED) {
        return ngx_http_backup_unauthorized(r);
    }

    if (rc == NGX_HTTP_FORBIDDEN) {
        return ngx_http_backup_refuse(r, NGX_HTTP_FORBIDDEN, BK_FAILED,
                                      "A page of another site may have sent "
                                      "this request: send Content-Type: "
                                      "application/json, or an "
                                      "X-Requested-With header");
    }

    if (route == NULL && allow.len) {
        if (ngx_http_backup_header(r, "Allow", &allow) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return ngx_http_backup_refuse(r, NGX_HTTP_NOT_ALLOWED, BK_FAILED,
                                      "This resource does not have this "
                                      "method, see Allow");
    }

    if (route == NULL) {
        return ngx_http_backup_refuse(r, NGX_HTTP_NOT_FOUND, BK_NOT_FOUND,
                                      "There is no such resource: GET the "
                                      "location itself for the list");
    }

    if (ctx->user.role < route->role) {
        return ngx_http_backup_forbidden(r, route);
    }

    return ngx_http_backup_dispatch(r, route, part);
}


static ngx_int_t
ngx_http_backup_index(ngx_http_request_t *r)
{
    char                      link[1024];
    json_t                   *json, *links;
    ngx_int_t                 rc;
    ngx_str_t                 body, prefix;
    ngx_http_backup_ctx_t    *ctx;
    ngx_http_backup_route_t  *route;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);
    ngx_http_backup_prefix(r, &prefix);

    links = json_object();

    for (route = ngx_http_backup_routes; route->name; route++) {
        if (route->shape == NGX_HTTP_BACKUP_PLAIN
            && bk_fmt(link, sizeof(link), "%.*s/%s", (int) prefix.len,
                      (char *) prefix.data, route->name))
        {
            json_object_set_new(links,
                                route->name[0] ? route->name : "self",
                                json_string(link));
        }
    }

    json = json_pack("{s:s, s:s, s:s, s:o}", "name", "ngx-backup",
                     "version", BK_VERSION, "backup",
                     (char *) ctx->bset->name.data, "links", links);

    rc = ngx_http_backup_dump(r->pool, json, &body);
    json_decref(json);

    if (rc != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_backup_answer(r, NGX_HTTP_OK, "application/json", &body);
}
