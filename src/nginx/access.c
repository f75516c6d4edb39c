/*
 * nginx/access.c: what the workers' user can reach, found out by the master
 * before it starts them.
 *
 * Configuration code: also runs under nginx -t, where it changes nothing.
 */

#include "nginx/module.h"

#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/publish.h"


/* Whether the workers, with all the groups they get, can write there. */

static ngx_uint_t
ngx_http_backup_writable(ngx_core_conf_t *ccf, const char *path,
    struct stat *st)
{
    int    i, n;
    gid_t  groups[256];

    if (ccf->user == 0 || (st->st_mode & S_IWOTH)) {
        return 1;
    }

    if (st->st_uid == ccf->user) {
        return (st->st_mode & S_IWUSR) ? 1 : 0;
    }

    /* an access control list has the last word, and only the kernel reads it */

    if (getxattr(path, "system.posix_acl_access", NULL, 0) > 0) {
        return 1;
    }

    n = 256;

    if (getgrouplist(ccf->username, ccf->group, groups, &n) == -1) {
        return 1;
    }

    for (i = 0; i < n; i++) {
        if (groups[i] == st->st_gid) {
            return (st->st_mode & S_IWGRP) ? 1 : 0;
        }
    }

    return 0;
}


/*
 * Directories that root must make, since workers cannot.  What lies above
 * them must be there: made here, it would be root's, and take the place of a
 * disk that is not mounted.  A storage's disk may come later (not required):
 * it must not keep the server from starting.  What is there is left alone: to
 * change the owner of a directory that was named by mistake would be worse
 * than a clear message.
 */

ngx_int_t
ngx_http_backup_directory(ngx_cycle_t *cycle, ngx_str_t *name,
    const char *path, ngx_uint_t required)
{
    bk_rc_t           rc;
    bk_err_t          err;
    struct stat       st;
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    bk_err_clear(&err);

    rc = bk_mkdir_check(path, &err);

    if (rc == BK_NOT_FOUND && !required) {
        ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                      "backup \"%V\": %s; until then its backups fail",
                      name, err.text);
        return NGX_OK;
    }

    if (rc != BK_OK) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0, "backup \"%V\": %s", name,
                      err.text);
        return NGX_ERROR;
    }

    if (geteuid() != 0 || ccf->user == (ngx_uid_t) NGX_CONF_UNSET_UINT) {
        return NGX_OK;
    }

    if (stat(path, &st) == 0) {
        if (!ngx_http_backup_writable(ccf, path, &st)) {
            ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                          "backup \"%V\": the workers' user \"%s\" cannot "
                          "write to \"%s\": chown it",
                          name, ccf->username, path);
            return NGX_ERROR;
        }

        return NGX_OK;
    }

    if (ngx_test_config) {
        return NGX_OK;
    }

    if (bk_mkdir_last(path, 0700, &err) != BK_OK) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0, "backup \"%V\": %s", name,
                      err.text);
        return NGX_ERROR;
    }

    if (chown(path, ccf->user, ccf->group) == -1) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, ngx_errno,
                      "backup \"%V\": chown(\"%s\") failed", name, path);
        return NGX_ERROR;
    }

    return NGX_OK;
}
