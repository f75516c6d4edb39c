/*
 * nginx/module.c: the module: its directives outside of blocks, and the
 * moments of a process's life.
 *
 * Everything that can be wrong is found while the configuration is read.
 * After that, on a reload, nothing may fail: an error in init_module would end
 * the master and leave its workers behind.
 */

#include "nginx/module.h"

#include <dlfcn.h>


static ngx_int_t ngx_http_backup_preconf(ngx_conf_t *cf);
static ngx_int_t ngx_http_backup_postconf(ngx_conf_t *cf);
static void *ngx_http_backup_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_backup_init_main_conf(ngx_conf_t *cf, void *conf);
static char *ngx_http_backup_zone(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static ngx_int_t ngx_http_backup_init_module(ngx_cycle_t *cycle);
static ngx_int_t ngx_http_backup_init_process(ngx_cycle_t *cycle);
static void ngx_http_backup_exit_process(ngx_cycle_t *cycle);
static void ngx_http_backup_exit_master(ngx_cycle_t *cycle);


static ngx_command_t  ngx_http_backup_commands[] = {

    { ngx_string("backup"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_BLOCK|NGX_CONF_TAKE1,
      ngx_http_backup_block,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("backup_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_backup_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("backup_helper"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE12,
      ngx_http_backup_helper,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("backup_api"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_backup_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_backup_loc_conf_t, api),
      NULL },

    { ngx_string("backup_health"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_backup_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_backup_loc_conf_t, health),
      NULL },

    { ngx_string("backup_auth"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF
                        |NGX_HTTP_LMT_CONF|NGX_CONF_TAKE12,
      ngx_http_backup_auth,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("backup_token_file"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF
                        |NGX_HTTP_LMT_CONF|NGX_CONF_TAKE1,
      ngx_http_backup_tokens,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_backup_module_ctx = {
    ngx_http_backup_preconf,               /* preconfiguration */
    ngx_http_backup_postconf,              /* postconfiguration */

    ngx_http_backup_create_main_conf,      /* create main configuration */
    ngx_http_backup_init_main_conf,        /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_backup_create_loc_conf,       /* create location configuration */
    ngx_http_backup_merge_loc_conf         /* merge location configuration */
};


ngx_module_t  ngx_http_backup_module = {
    NGX_MODULE_V1,
    &ngx_http_backup_module_ctx,           /* module context */
    ngx_http_backup_commands,              /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_http_backup_init_module,           /* init module */
    ngx_http_backup_init_process,          /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_backup_exit_process,          /* exit process */
    ngx_http_backup_exit_master,           /* exit master */
    NGX_MODULE_V1_PADDING
};


/* Stands before the thread pools in the order of modules: see config. */

static ngx_command_t  ngx_backup_stop_commands[] = {
    ngx_null_command
};


static ngx_core_module_t  ngx_backup_stop_module_ctx = {
    ngx_string("backup_stop"),
    NULL,
    NULL
};


ngx_module_t  ngx_backup_stop_module = {
    NGX_MODULE_V1,
    &ngx_backup_stop_module_ctx,           /* module context */
    ngx_backup_stop_commands,              /* module directives */
    NGX_CORE_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_backup_stop_all,              /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_backup_preconf(ngx_conf_t *cf)
{
    ngx_http_backup_main_conf_t  *bmcf;

    static ngx_str_t  name = ngx_string("request_id");

    bmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_backup_module);

    bmcf->request_id = ngx_http_get_variable_index(cf, &name);

    return bmcf->request_id == NGX_ERROR ? NGX_ERROR : NGX_OK;
}


static ngx_int_t
ngx_http_backup_postconf(ngx_conf_t *cf)
{
    ngx_http_backup_filter_init();

    return NGX_OK;
}


static void
ngx_http_backup_cleanup_main(void *data)
{
    ngx_http_backup_main_conf_t  *bmcf = data;

    ngx_http_backup_wake_close(bmcf);

    /* The master reloaded without this module, or without a set. */

    ngx_http_backup_helper_exit(bmcf);
}


static void *
ngx_http_backup_create_main_conf(ngx_conf_t *cf)
{
    ngx_pool_cleanup_t           *cln;
    ngx_http_backup_main_conf_t  *bmcf;

    bmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_backup_main_conf_t));
    if (bmcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&bmcf->sets, cf->pool, 4,
                       sizeof(ngx_http_backup_set_t *))
        != NGX_OK)
    {
        return NULL;
    }

    if (ngx_array_init(&bmcf->calls, cf->pool, 4, sizeof(ngx_socket_t))
        != NGX_OK)
    {
        return NULL;
    }

    bmcf->wake = (ngx_socket_t) -1;

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL) {
        return NULL;
    }

    cln->handler = ngx_http_backup_cleanup_main;
    cln->data = bmcf;

    return bmcf;
}


static char *
ngx_http_backup_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_backup_main_conf_t *bmcf = conf;

    if (bmcf->sets.nelts == 0) {
        return NGX_CONF_OK;
    }

    return ngx_http_backup_zone_add(cf, bmcf) == NGX_OK ? NGX_CONF_OK
                                                        : NGX_CONF_ERROR;
}


/* backup_zone NAME:SIZE */

static char *
ngx_http_backup_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_main_conf_t *bmcf = conf;

    u_char     *p;
    ngx_str_t  *value, size;

    value = cf->args->elts;

    if (bmcf->zone_name.len) {
        return "is duplicate";
    }

    p = (u_char *) ngx_strchr(value[1].data, ':');

    if (p == NULL || p == value[1].data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\": it must be NAME:SIZE, "
                           "like ngx_backup:2m", &value[1]);
        return NGX_CONF_ERROR;
    }

    size.data = p + 1;
    size.len = value[1].data + value[1].len - size.data;

    bmcf->zone_name.data = value[1].data;
    bmcf->zone_name.len = p - value[1].data;
    bmcf->zone_size = ngx_parse_size(&size);

    if (bmcf->zone_size == NGX_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid size \"%V\"", &size);
        return NGX_CONF_ERROR;
    }

    if (bmcf->zone_size < 512 * 1024) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is too small: it needs 512k at least",
                           &value[1]);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_backup_init_module(ngx_cycle_t *cycle)
{
    ngx_int_t                      rc;
    ngx_uint_t                     i, n;
    const char                    *path;
    ngx_http_backup_set_t        **sets;
    ngx_http_backup_main_conf_t   *bmcf;

    bmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_backup_module);

    if (bmcf == NULL || bmcf->sets.nelts == 0) {
        return NGX_OK;
    }

    rc = NGX_OK;
    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (ngx_http_backup_directory(cycle, &sets[i]->name,
                                      sets[i]->set.base_dir, 1)
            != NGX_OK)
        {
            rc = NGX_ERROR;
        }

        if (ngx_http_backup_secrets(cycle, sets[i]) != NGX_OK) {
            rc = NGX_ERROR;
        }

        for (n = 0; n < sets[i]->set.storage_count; n++) {
            if (ngx_strcmp(sets[i]->set.storages[n].driver, "local") != 0) {
                continue;
            }

            path = bk_storage_config_get(&sets[i]->set.storages[n], "path");

            if (path
                && ngx_http_backup_directory(cycle, &sets[i]->name, path, 0)
                   != NGX_OK)
            {
                rc = NGX_ERROR;
            }
        }
    }

    if (!ngx_test_config) {
        ngx_http_backup_wake_make(cycle, bmcf);
    }

    /* a worker that begins slowly: the old one is told to quit before that */

    for (i = 0; ngx_process == NGX_PROCESS_MASTER && i < bmcf->sets.nelts; i++)
    {
        ngx_http_backup_heir(sets[i], 0);
    }

    if ((rc == NGX_OK || ngx_process == NGX_PROCESS_MASTER)
        && ngx_http_backup_helper_init(cycle, bmcf) != NGX_OK)
    {
        rc = NGX_ERROR;
    }

    /* On a reload an error would end the master: what runs goes on. */

    if (rc != NGX_OK && ngx_process == NGX_PROCESS_MASTER) {
        return NGX_OK;
    }

    return rc;
}


static ngx_http_backup_main_conf_t *
ngx_http_backup_process_conf(ngx_cycle_t *cycle)
{
    ngx_http_backup_main_conf_t  *bmcf;

    /* cache manager and loader have no threads and no jobs */

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NULL;
    }

    bmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_backup_module);

    return (bmcf && bmcf->sets.nelts) ? bmcf : NULL;
}


/*
 * A worker that leaves unloads its modules while threads of its pools still
 * end: nginx waits for their last task, not for them.  What frees the contexts
 * of such a thread is code of this module, so it stays until the process ends.
 * Not in the master, which may load another one.
 */

static void
ngx_http_backup_stay(ngx_cycle_t *cycle)
{
    Dl_info  info;

    if (ngx_process != NGX_PROCESS_WORKER
        || dladdr((void *) &ngx_http_backup_module, &info) == 0)
    {
        return;
    }

    if (dlopen(info.dli_fname, RTLD_NOW|RTLD_NOLOAD|RTLD_NODELETE) == NULL) {
        ngx_log_error(NGX_LOG_INFO, cycle->log, 0,
                      "backup: the module cannot be kept in this process: %s",
                      dlerror());
    }
}


static ngx_int_t
ngx_http_backup_init_process(ngx_cycle_t *cycle)
{
    ngx_http_backup_main_conf_t  *bmcf;

    ngx_http_backup_helper_process(cycle);

    bmcf = ngx_http_backup_process_conf(cycle);

    if (bmcf) {
        ngx_http_backup_stay(cycle);
    }

    return bmcf ? ngx_http_backup_runner_init(cycle, bmcf) : NGX_OK;
}


static void
ngx_http_backup_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_backup_main_conf_t  *bmcf;

    bmcf = ngx_http_backup_process_conf(cycle);

    if (bmcf) {
        ngx_http_backup_runner_exit(cycle, bmcf);
    }

    ngx_http_backup_helper_leave();
}


static void
ngx_http_backup_exit_master(ngx_cycle_t *cycle)
{
    ngx_http_backup_helper_exit(NULL);
}
