/*
 * nginx/args.c: query parameters and preferences of a request.
 *
 * Loop code.
 */

#include "nginx/api.h"

#include "base/clock.h"
#include "base/str.h"


/* One query parameter, decoded, on the heap. */

static char *
ngx_http_backup_arg(u_char *data, size_t len)
{
    char    *text;
    u_char  *dst, *src;

    text = malloc(len + 1);
    if (text == NULL) {
        return NULL;
    }

    dst = (u_char *) text;
    src = data;

    ngx_unescape_uri(&dst, &src, len, 0);
    *dst = '\0';

    return text;
}


/* False with a problem appended when the value is not right. */

static ngx_uint_t
ngx_http_backup_set_arg(ngx_http_backup_call_t *call,
    ngx_http_backup_ctx_t *ctx, ngx_str_t *name, char *value)
{
    int64_t    time;
    ngx_int_t  n;

    if (ngx_http_backup_equal(name, "type")) {
        free(call->type);
        call->type = value;
        return 1;
    }

    if (ngx_http_backup_equal(name, "tag")) {
        free(call->tag);
        call->tag = value;
        return 1;
    }

    if (ngx_http_backup_equal(name, "storage")) {
        free(call->storage);
        call->storage = value;
        return 1;
    }

    if (ngx_http_backup_equal(name, "database")) {
        free(call->database);
        call->database = value;
        return 1;
    }

    if (ngx_http_backup_equal(name, "cursor")) {
        free(call->cursor);
        call->cursor = value;
        return 1;
    }

    if (ngx_http_backup_equal(name, "since")
        || ngx_http_backup_equal(name, "until"))
    {
        if (!bk_time_parse(value, &time)) {
            free(value);
            return 0;
        }

        if (name->data[0] == 's') {
            call->filter.since = time;

        } else {
            call->filter.until = time;
        }

        free(value);
        return 1;
    }

    n = ngx_atoi((u_char *) value, ngx_strlen(value));
    free(value);

    if (ngx_http_backup_equal(name, "limit")) {
        call->filter.limit = (unsigned) n;
        return n >= 1 && n <= 500;
    }

    /* wait */

    if (n < 0) {
        return 0;
    }

    ctx->timeout = ngx_min(n, NGX_HTTP_BACKUP_WAIT / 1000) * 1000;

    return 1;
}


/* Is it one of these words, each of which ends with a blank? */

static ngx_uint_t
ngx_http_backup_known(ngx_str_t *name, const char *words)
{
    size_t  len;

    for ( /* void */ ; *words; words += len + 1) {
        len = ngx_strchr(words, ' ') - words;

        if (name->len == len && ngx_memcmp(name->data, words, len) == 0) {
            return 1;
        }
    }

    return 0;
}


ngx_int_t
ngx_http_backup_args(ngx_http_request_t *r, ngx_http_backup_route_t *route,
    ngx_http_backup_call_t *call)
{
    char                   *value;
    u_char                 *p, *last, *end, *eq;
    bk_err_t                err;
    ngx_str_t               name;
    ngx_http_backup_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_backup_module);

    p = r->args.data;
    last = p + r->args.len;

    for ( /* void */ ; p < last; p = end + 1) {
        end = ngx_strlchr(p, last, '&');
        if (end == NULL) {
            end = last;
        }

        if (p == end) {
            continue;
        }

        eq = ngx_strlchr(p, end, '=');

        name.data = p;
        name.len = (eq ? eq : end) - p;

        /* A filter that is misspelled must not list everything. */

        bk_err_clear(&err);

        if (!ngx_http_backup_known(&name, route->args)) {
            bk_err_set(&err, BK_INVALID, "Unknown query parameter \"%.*s\"%s%s",
                       (int) ngx_min(name.len, 64), (char *) name.data,
                       route->args[0] ? ": there are " : "", route->args);
            return ngx_http_backup_refuse(r, 0, err.rc, err.text);
        }

        value = eq ? ngx_http_backup_arg(eq + 1, end - eq - 1)
                   : ngx_http_backup_arg(end, 0);
        if (value == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        if (!ngx_http_backup_set_arg(call, ctx, &name, value)) {
            bk_err_set(&err, BK_INVALID, "The value of query parameter "
                       "\"%.*s\" is not right: %s", (int) name.len,
                       (char *) name.data,
                       name.data[0] == 'l' ? "it is a number from 1 to 500"
                       : name.data[0] == 'w' ? "it is a number of seconds"
                       : "it is a time like 2025-10-15T14:30:00Z");
            return ngx_http_backup_refuse(r, 0, err.rc, err.text);
        }
    }

    return NGX_OK;
}


/* Prefer: wait=N (RFC 7240). */

void
ngx_http_backup_prefer(ngx_http_request_t *r, ngx_http_backup_ctx_t *ctx)
{
    u_char     *p, *end;
    ngx_int_t   n;
    ngx_str_t  *value;

    value = ngx_http_backup_find_header(r, "prefer");
    if (value == NULL) {
        return;
    }

    p = ngx_strlcasestrn(value->data, value->data + value->len,
                         (u_char *) "wait=", 4);
    if (p == NULL || (p > value->data && p[-1] != ' ' && p[-1] != ','
                      && p[-1] != ';'))
    {
        return;
    }

    p += 5;

    for (end = p; end < value->data + value->len && *end >= '0' && *end <= '9';
         end++)
    {
        /* void */
    }

    n = ngx_atoi(p, end - p);
    if (n == NGX_ERROR) {
        return;
    }

    ctx->timeout = ngx_min(n, NGX_HTTP_BACKUP_WAIT / 1000) * 1000;
    ctx->preferred = 1;
}
