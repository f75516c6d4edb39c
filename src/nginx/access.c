/*
 * nginx/access.c: what the workers' user can reach, found out by the master
 * before it starts them.
 *
 * Configuration code: also runs under nginx -t, where it changes nothing.
 */

#include "nginx/module.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/stat.h>

#include "base/publish.h"
#include "base/str.h"


#define NGX_HTTP_BACKUP_GROUPS  256


/*
 * The identity of the workers, for files alone: the kernel knows modes, groups,
 * access control lists and what lies above.  It is the caller's own, and root
 * is back before anybody else could see it.
 */

typedef struct {
    int    n;
    gid_t  groups[NGX_HTTP_BACKUP_GROUPS];
} ngx_http_backup_groups_t;


static ngx_int_t
ngx_http_backup_become(ngx_core_conf_t *ccf, ngx_http_backup_groups_t *saved)
{
    int    n;
    gid_t  groups[NGX_HTTP_BACKUP_GROUPS];

    n = NGX_HTTP_BACKUP_GROUPS;
    saved->n = getgroups(NGX_HTTP_BACKUP_GROUPS, saved->groups);

    if (saved->n == -1
        || getgrouplist(ccf->username, ccf->group, groups, &n) == -1
        || setgroups(n, groups) == -1)
    {
        return NGX_ERROR;
    }

    (void) setfsgid(ccf->group);
    (void) setfsuid(ccf->user);

    return NGX_OK;
}


static void
ngx_http_backup_return(ngx_http_backup_groups_t *saved)
{
    (void) setfsuid(geteuid());
    (void) setfsgid(getegid());
    (void) setgroups(saved->n, saved->groups);
}


/* Each gives 0, or why they could not. */

static ngx_err_t
ngx_http_backup_write_as(ngx_core_conf_t *ccf, const char *path)
{
    ngx_err_t                 err;
    ngx_http_backup_groups_t  saved;

    if (ngx_http_backup_become(ccf, &saved) != NGX_OK) {
        return 0;
    }

    err = (faccessat(AT_FDCWD, path, R_OK|W_OK|X_OK, AT_EACCESS) == -1)
          ? ngx_errno : 0;

    ngx_http_backup_return(&saved);

    return err;
}


static ngx_err_t
ngx_http_backup_open_as(ngx_core_conf_t *ccf, const char *path, int flags)
{
    int                       fd;
    ngx_err_t                 err;
    ngx_http_backup_groups_t  saved;

    if (ngx_http_backup_become(ccf, &saved) != NGX_OK) {
        return 0;
    }

    fd = open(path, flags|O_CLOEXEC|O_NOCTTY|O_NONBLOCK);
    err = (fd == -1) ? ngx_errno : 0;

    ngx_http_backup_return(&saved);

    if (fd != -1) {
        (void) close(fd);
    }

    return err;
}


/* The first directory on the way that they may not enter, into above. */

static ngx_uint_t
ngx_http_backup_closed(ngx_core_conf_t *ccf, const char *path,
    char above[NGX_MAX_PATH])
{
    const char  *p;

    for (p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {

        /* its "." is found by whoever may enter it */

        if (bk_fmt(above, NGX_MAX_PATH, "%.*s/.", (int) (p - path), path)
            && ngx_http_backup_open_as(ccf, above, O_PATH) == NGX_EACCES)
        {
            above[p - path] = '\0';
            return 1;
        }
    }

    return 0;
}


/*
 * Directories that root must make, since workers cannot.  What lies above
 * them must be there: made here, it would be root's, and take the place of a
 * disk that is not mounted.  A storage's disk may come later (not required),
 * and any disk may have become read-only: neither must keep the server from
 * starting.  What is there is left alone: to change the owner of a directory
 * that was named by mistake would be worse than a clear message.
 */

ngx_int_t
ngx_http_backup_directory(ngx_cycle_t *cycle, ngx_str_t *name,
    const char *path, ngx_uint_t required)
{
    char              above[NGX_MAX_PATH];
    bk_rc_t           rc;
    bk_err_t          err;
    ngx_err_t         denied;
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
        denied = ngx_http_backup_write_as(ccf, path);

        if (denied == EROFS) {
            ngx_log_error(NGX_LOG_WARN, cycle->log, denied,
                          "backup \"%V\": \"%s\" cannot be written: mount it "
                          "writable; until then backups fail", name, path);
            return NGX_OK;
        }

        if (denied != NGX_EACCES) {
            return NGX_OK;
        }

        if (ngx_http_backup_closed(ccf, path, above)) {
            ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                          "backup \"%V\": the workers' user \"%s\" cannot "
                          "write to \"%s\", since it may not enter \"%s\": "
                          "chmod o+x that, or choose another directory",
                          name, ccf->username, path, above);

        } else {
            ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                          "backup \"%V\": the workers' user \"%s\" cannot "
                          "write to \"%s\": chown it",
                          name, ccf->username, path);
        }

        return NGX_ERROR;
    }

    if (ngx_test_config) {
        return NGX_OK;
    }

    if (bk_mkdir_last(path, 0700, &err) != BK_OK) {

        if (err.sys == EROFS) {
            ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                          "backup \"%V\": %s; until then backups fail", name,
                          err.text);
            return NGX_OK;
        }

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


/*
 * The configuration was read by root, who can read all: what the workers
 * cannot is found here, and not by each backup.
 */

static ngx_int_t
ngx_http_backup_secret(ngx_cycle_t *cycle, ngx_str_t *name, const char *path)
{
    char              above[NGX_MAX_PATH];
    struct stat       st;
    ngx_err_t         err;
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    err = ngx_http_backup_open_as(ccf, path, O_RDONLY);

    if (err == 0) {
        return NGX_OK;
    }

    if (ngx_http_backup_closed(ccf, path, above)) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "backup \"%V\": the workers' user \"%s\" cannot "
                      "read \"%s\", since it may not enter \"%s\": "
                      "chgrp that to a group of this user and chmod g+x it",
                      name, ccf->username, path, above);
        return NGX_ERROR;
    }

    if (stat(path, &st) == 0 && st.st_uid == ccf->user) {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, err,
                      "backup \"%V\": the workers' user \"%s\" cannot read "
                      "\"%s\": chmod u+r %s", name, ccf->username, path, path);
        return NGX_ERROR;
    }

    ngx_log_error(NGX_LOG_EMERG, cycle->log, err,
                  "backup \"%V\": the workers' user \"%s\" cannot read "
                  "\"%s\": chown %s %s", name, ccf->username, path,
                  ccf->username, path);

    return NGX_ERROR;
}


ngx_int_t
ngx_http_backup_secrets(ngx_cycle_t *cycle, ngx_http_backup_set_t *bset)
{
    size_t            i;
    ngx_int_t         rc;
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    if (geteuid() != 0 || ccf->user == 0 || !ccf->master
        || ccf->user == (ngx_uid_t) NGX_CONF_UNSET_UINT)
    {
        return NGX_OK;
    }

    rc = NGX_OK;

    for (i = 0; i < bset->set.key_count; i++) {
        if (ngx_http_backup_secret(cycle, &bset->name, bset->set.keys[i].file)
            != NGX_OK)
        {
            rc = NGX_ERROR;
        }
    }

    if (bset->set.passphrase_file
        && ngx_http_backup_secret(cycle, &bset->name,
                                  bset->set.passphrase_file)
           != NGX_OK)
    {
        rc = NGX_ERROR;
    }

    return rc;
}
