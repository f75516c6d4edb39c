/*
 * nginx/answer.c: how every answer leaves: JSON, problem documents, and the
 * errors that nginx itself makes in our locations, turned into problems too.
 *
 * Loop code.
 */

#include "nginx/module.h"

#include "base/json.h"


static ngx_int_t ngx_http_backup_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_backup_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);


static ngx_http_output_header_filter_pt  ngx_http_backup_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_backup_next_body_filter;


void
ngx_http_backup_filter_init(void)
{
    ngx_http_backup_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_backup_header_filter;

    ngx_http_backup_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_backup_body_filter;
}


ngx_str_t *
ngx_http_backup_request_id(ngx_http_request_t *r)
{
    ngx_http_variable_value_t    *v;
    ngx_http_backup_main_conf_t  *bmcf;

    static ngx_str_t  none = ngx_string("-");
    static ngx_str_t  id;

    bmcf = ngx_http_get_module_main_conf(r, ngx_http_backup_module);
    v = ngx_http_get_indexed_variable(r, bmcf->request_id);

    if (v == NULL || v->not_found || v->len == 0) {
        return &none;
    }

    id.len = v->len;
    id.data = v->data;

    return &id;
}


ngx_str_t *
ngx_http_backup_find_header(ngx_http_request_t *r, const char *name)
{
    size_t            len;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    len = ngx_strlen(name);
    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return NULL;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == len
            && ngx_strncasecmp(h[i].key.data, (u_char *) name, len) == 0)
        {
            return &h[i].value;
        }
    }
}


ngx_int_t
ngx_http_backup_dump(ngx_pool_t *pool, json_t *value, ngx_str_t *text)
{
    size_t   n;
    u_char  *p;

    n = value ? json_dumpb(value, NULL, 0, JSON_COMPACT) : 0;
    if (n == 0) {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(pool, n);
    if (p == NULL || json_dumpb(value, (char *) p, n, JSON_COMPACT) != n) {
        return NGX_ERROR;
    }

    text->len = n;
    text->data = p;

    return NGX_OK;
}


ngx_int_t
ngx_http_backup_header(ngx_http_request_t *r, const char *name,
    ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.len = ngx_strlen(name);
    h->key.data = (u_char *) name;
    h->value = *value;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif

    return NGX_OK;
}


ngx_int_t
ngx_http_backup_header_text(ngx_http_request_t *r, const char *name,
    const char *value)
{
    ngx_str_t  s;

    s.len = ngx_strlen(value);
    s.data = (u_char *) value;

    return ngx_http_backup_header(r, name, &s);
}


/* What all answers have, whoever made them. */

static ngx_int_t
ngx_http_backup_common(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, size_t len)
{
    r->headers_out.status = status;
    r->headers_out.status_line.len = 0;

    /* nginx has no phrase for it and would send an empty one */

    if (status == 422) {
        ngx_str_set(&r->headers_out.status_line, "422 Unprocessable Content");
    }

    r->headers_out.content_type.len = ngx_strlen(type);
    r->headers_out.content_type.data = (u_char *) type;
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    ngx_str_null(&r->headers_out.charset);
    r->headers_out.content_length_n = len;
    r->headers_out.last_modified_time = -1;

    if (r->headers_out.content_length) {
        r->headers_out.content_length->hash = 0;
        r->headers_out.content_length = NULL;
    }

    if (ngx_http_backup_header_text(r, "Cache-Control", "no-store") != NGX_OK
        || ngx_http_backup_header(r, "X-Request-ID",
                                  ngx_http_backup_request_id(r)) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_backup_answer(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, ngx_str_t *body)
{
    ngx_int_t               rc;
    ngx_buf_t              *b;
    ngx_chain_t             out;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);
    if (ctx) {
        ctx->answered = 1;
    }

    if (ngx_http_backup_common(r, status, type, body->len) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = body->data;
    b->last = body->data + body->len;
    b->memory = body->len ? 1 : 0;
    b->last_buf = 1;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


/* What only HTTP knows has codes of its own. */

static const struct {
    ngx_uint_t   status;
    const char  *code;
    const char  *title;
} ngx_http_backup_codes[] = {
    { 401, "Unauthorized", "Authentication is required" },
    { 403, "Forbidden", "This is not allowed" },
    { 405, "MethodNotAllowed", "This method is not allowed here" },
    { 415, "UnsupportedMediaType", "The media type is not supported" },
    { 429, "TooManyRequests", "Too many requests" },
    { 0, NULL, NULL }
};


static json_t *
ngx_http_backup_problem_json(ngx_http_request_t *r, const bk_err_t *err,
    ngx_uint_t status, json_t *problems)
{
    json_t      *json;
    ngx_str_t   *id;
    ngx_uint_t   i;

    json = bk_problem(err, problems);
    if (json == NULL) {
        return NULL;
    }

    id = ngx_http_backup_request_id(r);

    for (i = 0; ngx_http_backup_codes[i].status; i++) {
        if (ngx_http_backup_codes[i].status == status
            && status != (ngx_uint_t) bk_rc_http(err->rc))
        {
            json_object_set_new(json, "type", json_string("about:blank"));
            json_object_set_new(json, "title",
                                json_string(ngx_http_backup_codes[i].title));
            json_object_set_new(json, "code",
                                json_string(ngx_http_backup_codes[i].code));
        }
    }

    json_object_set_new(json, "status", json_integer(status));
    json_object_set_new(json, "instance", bk_json_name(r->uri.data,
                                                       r->uri.len));
    json_object_set_new(json, "request_id", bk_json_name(id->data, id->len));

    return json;
}


ngx_int_t
ngx_http_backup_problem(ngx_http_request_t *r, const bk_err_t *err,
    ngx_uint_t status, json_t *problems)
{
    json_t     *json;
    ngx_int_t   rc;
    ngx_str_t   body;

    if (status == 0) {
        status = bk_rc_http(err->rc);
    }

    if (status == NGX_HTTP_SERVICE_UNAVAILABLE
        && ngx_http_backup_header_text(r, "Retry-After", "2") != NGX_OK)
    {
        json_decref(problems);
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    json = ngx_http_backup_problem_json(r, err, status, problems);
    rc = ngx_http_backup_dump(r->pool, json, &body);
    json_decref(json);

    if (rc != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_backup_answer(r, status, "application/problem+json",
                                  &body);
}


/*
 * An error page of nginx in one of our locations: from an access module, a
 * limit, a body that is too large.  It keeps its status and its headers and
 * gets a body that a program can read.
 */

static ngx_int_t
ngx_http_backup_header_filter(ngx_http_request_t *r)
{
    json_t                      *json;
    bk_err_t                     err;
    ngx_int_t                    rc;
    ngx_uint_t                   status;
    ngx_http_backup_ctx_t       *ctx;
    ngx_http_backup_loc_conf_t  *blcf;

    status = r->headers_out.status;

    if (status < 400 || r != r->main || r->upstream) {
        return ngx_http_backup_next_header_filter(r);
    }

    blcf = ngx_http_get_module_loc_conf(r, ngx_http_backup_module);
    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    if (blcf->bset == NULL || (ctx && ctx->answered)) {
        return ngx_http_backup_next_header_filter(r);
    }

    if (ctx == NULL) {
        ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_backup_ctx_t));
        if (ctx == NULL) {
            return NGX_ERROR;
        }

        ngx_http_set_ctx(r, ctx, ngx_http_backup_module);
    }

    bk_err_clear(&err);

    switch (status) {

    case NGX_HTTP_UNAUTHORIZED:
        bk_err_set(&err, BK_FAILED, "The request has no valid credentials");
        break;

    case NGX_HTTP_FORBIDDEN:
        bk_err_set(&err, BK_FAILED, "The server does not allow this request");
        break;

    case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
        bk_err_set(&err, BK_TOO_LARGE, "The request body is too large");
        break;

    case NGX_HTTP_SERVICE_UNAVAILABLE:
    case NGX_HTTP_TOO_MANY_REQUESTS:
        bk_err_set(&err, BK_UNAVAILABLE,
                   "The server limits requests: try again later");
        break;

    default:
        bk_err_set(&err, status < 500 ? BK_MALFORMED : BK_FAILED,
                   "The server cannot answer this request (%u)",
                   (unsigned) status);
    }

    json = ngx_http_backup_problem_json(r, &err, status, NULL);
    rc = ngx_http_backup_dump(r->pool, json, &ctx->replaced);
    json_decref(json);

    if (rc != NGX_OK
        || ngx_http_backup_common(r, status, "application/problem+json",
                                  ctx->replaced.len) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_backup_next_header_filter(r);
}


static ngx_int_t
ngx_http_backup_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_buf_t              *b;
    ngx_chain_t             out;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    if (ctx == NULL || ctx->replaced.len == 0 || r != r->main) {
        return ngx_http_backup_next_body_filter(r, in);
    }

    if (in == NULL) {
        return ngx_http_backup_next_body_filter(r, NULL);
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = ctx->replaced.data;
    b->last = b->pos + ctx->replaced.len;
    b->memory = 1;
    b->last_buf = 1;
    b->last_in_chain = 1;

    ngx_str_null(&ctx->replaced);

    out.buf = b;
    out.next = NULL;

    return ngx_http_backup_next_body_filter(r, &out);
}


/* Who did what: every request that would change something. */

void
ngx_http_backup_audit(ngx_http_request_t *r, ngx_uint_t status,
    const char *job)
{
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    if (ctx == NULL || r->method == NGX_HTTP_GET
        || r->method == NGX_HTTP_HEAD)
    {
        return;
    }

    ngx_log_error(NGX_LOG_NOTICE, r->connection->log, 0,
                  "backup \"%V\" audit: user \"%V\" (%s) from %V: %s: "
                  "%ui%s%s, request id %V",
                  &ctx->bset->name, &ctx->user.name,
                  ngx_http_backup_role_name(ctx->user.role),
                  &r->connection->addr_text, ctx->operation, status,
                  job && *job ? ", job " : "", job ? job : "",
                  ngx_http_backup_request_id(r));
}
