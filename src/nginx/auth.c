/*
 * nginx/auth.c: who asks, and what they may.
 *
 * Tokens are read with the configuration, kept as SHA-256, and compared in
 * constant time against all of them.  "external" trusts the access phase of
 * nginx, which has passed before a content handler is called.
 */

#include "nginx/module.h"

#include <sys/stat.h>

#include "base/str.h"
#include "crypto/hash.h"


#define NGX_HTTP_BACKUP_TOKEN_MAX   4096
#define NGX_HTTP_BACKUP_TOKEN_FILE  1048576


static ngx_int_t ngx_http_backup_token_line(ngx_conf_t *cf,
    ngx_http_backup_loc_conf_t *blcf, ngx_uint_t number, u_char *p,
    u_char *last);


static const char  *ngx_http_backup_roles[] = {
    "nobody", "viewer", "operator", "admin"
};


const char *
ngx_http_backup_role_name(ngx_uint_t role)
{
    return ngx_http_backup_roles[role];
}


static ngx_uint_t
ngx_http_backup_role(u_char *name, size_t len)
{
    ngx_uint_t  i;

    for (i = NGX_HTTP_BACKUP_VIEWER; i <= NGX_HTTP_BACKUP_ADMIN; i++) {
        if (ngx_strlen(ngx_http_backup_roles[i]) == len
            && ngx_memcmp(ngx_http_backup_roles[i], name, len) == 0)
        {
            return i;
        }
    }

    return NGX_HTTP_BACKUP_NOBODY;
}


/* backup_auth bearer | external [role=ROLE] */

char *
ngx_http_backup_auth(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_loc_conf_t *blcf = conf;

    ngx_str_t  *value = cf->args->elts;

    if (blcf->auth != NGX_HTTP_BACKUP_AUTH_UNSET) {
        return "is duplicate";
    }

    if (ngx_strcmp(value[1].data, "bearer") == 0 && cf->args->nelts == 2) {
        blcf->auth = NGX_HTTP_BACKUP_AUTH_BEARER;
        return NGX_CONF_OK;
    }

    if (ngx_strcmp(value[1].data, "external") != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid \"backup_auth\": it must be \"bearer\" or "
                           "\"external [role=viewer|operator|admin]\"");
        return NGX_CONF_ERROR;
    }

    blcf->auth = NGX_HTTP_BACKUP_AUTH_EXTERNAL;
    blcf->external_role = NGX_HTTP_BACKUP_VIEWER;

    if (cf->args->nelts == 2) {
        return NGX_CONF_OK;
    }

    blcf->external_role = NGX_HTTP_BACKUP_NOBODY;

    if (ngx_strncmp(value[2].data, "role=", 5) == 0) {
        blcf->external_role = ngx_http_backup_role(value[2].data + 5,
                                                   value[2].len - 5);
    }

    if (blcf->external_role == NGX_HTTP_BACKUP_NOBODY) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\": it must be role=viewer, "
                           "role=operator or role=admin", &value[2]);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_backup_read_tokens(ngx_conf_t *cf, ngx_http_backup_loc_conf_t *blcf)
{
    u_char           *text, *p, *last, *end;
    ssize_t           n;
    ngx_fd_t          fd;
    ngx_uint_t        line;
    struct stat       st;

    fd = open((char *) blcf->token_file.data,
              O_RDONLY|O_CLOEXEC|O_NOCTTY|O_NONBLOCK);

    if (fd == -1) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "cannot read backup_token_file \"%V\"",
                           &blcf->token_file);
        return NGX_CONF_ERROR;
    }

    text = NULL;
    n = 0;

    if (fstat(fd, &st) == -1 || !S_ISREG(st.st_mode)
        || st.st_size > NGX_HTTP_BACKUP_TOKEN_FILE)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "backup_token_file \"%V\" must be a regular file "
                           "of at most 1m", &blcf->token_file);
        goto failed;
    }

    if (st.st_mode & S_IRWXO) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "backup_token_file \"%V\" is open to everybody: "
                           "chmod o= it", &blcf->token_file);
        goto failed;
    }

    text = ngx_alloc(st.st_size + 1, cf->log);
    if (text == NULL) {
        goto failed;
    }

    while (n < st.st_size) {
        ssize_t  got = read(fd, text + n, st.st_size - n);

        if (got == -1 && ngx_errno == NGX_EINTR) {
            continue;
        }

        if (got <= 0) {
            break;
        }

        n += got;
    }

    blcf->tokens = ngx_array_create(cf->pool, 4,
                                    sizeof(ngx_http_backup_token_t));
    if (blcf->tokens == NULL) {
        goto failed;
    }

    line = 0;
    last = text + n;

    for (p = text; p < last; p = end + 1) {
        end = ngx_strlchr(p, last, '\n');
        if (end == NULL) {
            end = last;
        }

        line++;

        if (ngx_http_backup_token_line(cf, blcf, line, p, end) != NGX_OK) {
            goto failed;
        }
    }

    if (blcf->tokens->nelts == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "backup_token_file \"%V\" has no token: "
                           "\"ngx-backup token new\" makes one",
                           &blcf->token_file);
        goto failed;
    }

    ngx_free(text);
    (void) close(fd);

    return NGX_CONF_OK;

failed:

    if (text) {
        ngx_free(text);
    }

    (void) close(fd);

    return NGX_CONF_ERROR;
}


/* name:role:sha256hex, blank lines, and comments */

static ngx_int_t
ngx_http_backup_token_line(ngx_conf_t *cf, ngx_http_backup_loc_conf_t *blcf,
    ngx_uint_t number, u_char *p, u_char *last)
{
    u_char                   *role, *hex;
    ngx_http_backup_token_t  *token;

    while (last > p && (last[-1] == ' ' || last[-1] == '\r'
                        || last[-1] == '\t'))
    {
        last--;
    }

    if (p == last || *p == '#') {
        return NGX_OK;
    }

    role = ngx_strlchr(p, last, ':');
    hex = role ? ngx_strlchr(role + 1, last, ':') : NULL;

    if (hex == NULL || role == p) {
        goto invalid;
    }

    token = ngx_array_push(blcf->tokens);
    if (token == NULL) {
        return NGX_ERROR;
    }

    token->role = ngx_http_backup_role(role + 1, hex - role - 1);

    if (token->role == NGX_HTTP_BACKUP_NOBODY
        || !bk_unhex(token->digest, sizeof(token->digest), (char *) hex + 1,
                     last - hex - 1))
    {
        goto invalid;
    }

    token->name.len = role - p;
    token->name.data = ngx_pnalloc(cf->pool, token->name.len + 1);
    if (token->name.data == NULL) {
        return NGX_ERROR;
    }

    (void) ngx_cpystrn(token->name.data, p, token->name.len + 1);

    return NGX_OK;

invalid:

    /* The line itself is not shown: it may be a token in plain. */

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "backup_token_file \"%V\" line %ui is not "
                       "\"name:viewer|operator|admin:SHA-256 in hexadecimal\"",
                       &blcf->token_file, number);
    return NGX_ERROR;
}


static ngx_int_t
ngx_http_backup_bearer(ngx_http_request_t *r, ngx_http_backup_user_t *user)
{
    u_char                      *p, *last;
    bk_id_t                      digest;
    ngx_str_t                   *value;
    ngx_uint_t                   i;
    ngx_http_backup_token_t     *tokens, *found;
    ngx_http_backup_loc_conf_t  *blcf;

    blcf = ngx_http_get_module_loc_conf(r, ngx_http_backup_module);

    if (r->headers_in.authorization == NULL || blcf->tokens == NULL) {
        return NGX_HTTP_UNAUTHORIZED;
    }

    value = &r->headers_in.authorization->value;

    if (value->len < 8 || value->len > NGX_HTTP_BACKUP_TOKEN_MAX
        || ngx_strncasecmp(value->data, (u_char *) "Bearer ", 7) != 0)
    {
        return NGX_HTTP_UNAUTHORIZED;
    }

    p = value->data + 7;
    last = value->data + value->len;

    while (p < last && *p == ' ') {
        p++;
    }

    while (last > p && last[-1] == ' ') {
        last--;
    }

    bk_sha256(&digest, p, last - p);

    found = NULL;
    tokens = blcf->tokens->elts;

    /* All are compared: time must not tell which exists. */

    for (i = 0; i < blcf->tokens->nelts; i++) {
        if (bk_equal_secret(tokens[i].digest, &digest,
                            sizeof(tokens[i].digest)))
        {
            found = &tokens[i];
        }
    }

    if (found == NULL) {
        return NGX_HTTP_UNAUTHORIZED;
    }

    user->name = found->name;
    user->role = found->role;

    return NGX_OK;
}


/* "http://HOST" with the host that this request names. */

static ngx_uint_t
ngx_http_backup_own_origin(ngx_http_request_t *r, ngx_str_t *origin)
{
    u_char     *p;
    ngx_str_t  *host;

    if (r->headers_in.host == NULL) {
        return 0;
    }

    host = &r->headers_in.host->value;
    p = ngx_strlchr(origin->data, origin->data + origin->len, ':');

    return p && origin->len == (size_t) (p - origin->data) + 3 + host->len
           && ngx_strncmp(p, "://", 3) == 0
           && ngx_strncasecmp(p + 3, host->data, host->len) == 0;
}


/*
 * May a page of another site have made a browser send this?  It adds what it
 * remembers (Basic credentials, a client certificate) to such requests.  New
 * browsers say where a request comes from.  With others a page can send a POST
 * of its own, but no other method, no JSON and no header with a name of its
 * own without asking the server first, which does not answer that.
 */

static ngx_uint_t
ngx_http_backup_foreign(ngx_http_request_t *r)
{
    ngx_str_t  *site, *origin;

    site = ngx_http_backup_find_header(r, "sec-fetch-site");

    if (site) {
        return !(site->len == 11
                 && ngx_strncmp(site->data, "same-origin", 11) == 0)
               && !(site->len == 4 && ngx_strncmp(site->data, "none", 4) == 0);
    }

    if (r->method != NGX_HTTP_POST || ngx_http_backup_is_json(r)
        || ngx_http_backup_find_header(r, "x-requested-with"))
    {
        return 0;
    }

    origin = ngx_http_backup_find_header(r, "origin");

    return origin == NULL || !ngx_http_backup_own_origin(r, origin);
}


ngx_int_t
ngx_http_backup_authenticate(ngx_http_request_t *r,
    ngx_http_backup_user_t *user)
{
    ngx_http_backup_loc_conf_t  *blcf;

    user->role = NGX_HTTP_BACKUP_NOBODY;
    ngx_str_set(&user->name, "-");

    blcf = ngx_http_get_module_loc_conf(r, ngx_http_backup_module);

    if (blcf->auth == NGX_HTTP_BACKUP_AUTH_BEARER) {
        return ngx_http_backup_bearer(r, user);
    }

    if (blcf->auth != NGX_HTTP_BACKUP_AUTH_EXTERNAL) {
        return NGX_HTTP_UNAUTHORIZED;
    }

    ngx_str_set(&user->name, "external");

    if (r->headers_in.user.len) {
        user->name = r->headers_in.user;
    }

    if (r->method != NGX_HTTP_GET && r->method != NGX_HTTP_HEAD
        && ngx_http_backup_foreign(r))
    {
        return NGX_HTTP_FORBIDDEN;
    }

    user->role = blcf->external_role;

    return NGX_OK;
}
