/*
 * nginx/conf.c: "backup NAME { }" and the blocks inside it, as a bk_set_t.
 *
 * Configuration code.  The blocks go through nginx's own parser under a module
 * type of their own, so that include works and every mistake has its file and
 * line.  Nothing here has an effect outside memory: nginx -t and nginx -s parse
 * the configuration too.
 */

#include "nginx/conf.h"

#include <stddef.h>

#include "base/json.h"
#include "base/str.h"


#define NGX_HTTP_BACKUP_CONF_MODULE   0x504b4342     /* "BCKP" */


static char *ngx_http_backup_parse(ngx_conf_t *cf, ngx_uint_t type,
    ngx_http_backup_block_t *block);
static char *ngx_http_backup_finish(ngx_conf_t *cf,
    ngx_http_backup_main_conf_t *bmcf, ngx_http_backup_set_t *bset);
static char *ngx_http_backup_database(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_backup_files(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_backup_encryption(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_backup_storage(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_backup_setting(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_command_t  ngx_backup_conf_commands[] = {

    { ngx_string("database"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_BLOCK|NGX_CONF_TAKE1,
      ngx_http_backup_database, 0, 0, NULL },

    { ngx_string("files"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_BLOCK|NGX_CONF_TAKE1,
      ngx_http_backup_files, 0, 0, NULL },

    { ngx_string("encryption"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_BLOCK|NGX_CONF_NOARGS,
      ngx_http_backup_encryption, 0, 0, NULL },

    { ngx_string("storage"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_BLOCK|NGX_CONF_TAKE2,
      ngx_http_backup_storage, 0, 0, NULL },

    { ngx_string("base_dir"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_path, 0, offsetof(bk_set_t, base_dir), NULL },

    { ngx_string("compression"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE12,
      ngx_http_backup_compression, 0, 0, NULL },

    { ngx_string("pitr_window"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_duration, 0, offsetof(bk_set_t, pitr_window), NULL },

    { ngx_string("ship_interval"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_duration, 0, offsetof(bk_set_t, ship_interval), NULL },

    { ngx_string("retention"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE12,
      ngx_http_backup_retention, 0, 0, NULL },

    { ngx_string("restore_root"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_1MORE,
      ngx_http_backup_texts, 0, offsetof(bk_set_t, restore_roots), NULL },

    { ngx_string("restore_in_place"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_flag, 0, offsetof(bk_set_t, restore_in_place), NULL },

    { ngx_string("restore_safety"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_flag, 0, offsetof(bk_set_t, restore_safety), NULL },

    { ngx_string("restore_setuid"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_flag, 0, offsetof(bk_set_t, restore_setuid), NULL },

    { ngx_string("min_free"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_size, 0, offsetof(bk_set_t, min_free), NULL },

    { ngx_string("shutdown_grace"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_duration, 0, offsetof(bk_set_t, shutdown_grace), NULL },

    { ngx_string("health_max_age"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE1,
      ngx_http_backup_duration, 0, offsetof(bk_set_t, health_max_age), NULL },

    { ngx_string("thread_pool"),
      NGX_HTTP_BACKUP_SET|NGX_CONF_TAKE12,
      ngx_http_backup_thread_pool, 0, 0, NULL },

    { ngx_string("path"),
      NGX_HTTP_BACKUP_DATABASE|NGX_CONF_TAKE1,
      ngx_http_backup_text, 0, offsetof(bk_set_db_t, path), NULL },

    { ngx_string("wal"),
      NGX_HTTP_BACKUP_DATABASE|NGX_CONF_TAKE1,
      ngx_http_backup_wal, 0, 0, NULL },

    { ngx_string("busy_timeout"),
      NGX_HTTP_BACKUP_DATABASE|NGX_CONF_TAKE1,
      ngx_http_backup_duration, 0, offsetof(bk_set_db_t, busy_timeout), NULL },

    { ngx_string("pitr_window"),
      NGX_HTTP_BACKUP_DATABASE|NGX_CONF_TAKE1,
      ngx_http_backup_duration, 0, offsetof(bk_set_db_t, pitr_window), NULL },

    { ngx_string("check"),
      NGX_HTTP_BACKUP_DATABASE|NGX_CONF_TAKE1,
      ngx_http_backup_texts, 0, offsetof(bk_set_db_t, checks), NULL },

    { ngx_string("path"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_TAKE1,
      ngx_http_backup_text, 0, offsetof(bk_set_files_t, path), NULL },

    { ngx_string("match"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_1MORE,
      ngx_http_backup_texts, 0, offsetof(bk_set_files_t, match), NULL },

    { ngx_string("exclude"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_1MORE,
      ngx_http_backup_texts, 0, offsetof(bk_set_files_t, exclude), NULL },

    { ngx_string("max_file_size"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_TAKE1,
      ngx_http_backup_size, 0, offsetof(bk_set_files_t, max_size), NULL },

    { ngx_string("one_file_system"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_TAKE1,
      ngx_http_backup_flag, 0, offsetof(bk_set_files_t, one_file_system),
      NULL },

    { ngx_string("cachedir"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_TAKE1,
      ngx_http_backup_flag, 0, offsetof(bk_set_files_t, cachedir), NULL },

    { ngx_string("xattrs"),
      NGX_HTTP_BACKUP_FILES|NGX_CONF_TAKE1,
      ngx_http_backup_flag, 0, offsetof(bk_set_files_t, xattrs), NULL },

    { ngx_string("key"),
      NGX_HTTP_BACKUP_ENCRYPTION|NGX_CONF_TAKE2,
      ngx_http_backup_key, 0, 0, NULL },

    { ngx_string("passphrase_file"),
      NGX_HTTP_BACKUP_ENCRYPTION|NGX_CONF_TAKE1,
      ngx_http_backup_path, 0, offsetof(bk_set_t, passphrase_file), NULL },

      ngx_null_command
};


ngx_module_t  ngx_backup_conf_module = {
    NGX_MODULE_V1,
    NULL,                                  /* module context */
    ngx_backup_conf_commands,              /* module directives */
    NGX_HTTP_BACKUP_CONF_MODULE,           /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static char *
ngx_http_backup_parse(ngx_conf_t *cf, ngx_uint_t type,
    ngx_http_backup_block_t *block)
{
    char        *rv;
    void        *confs[2], **ctx;
    ngx_conf_t   save;

    /*
     * nginx looks for a directive's conf by the ctx_index of its module.  That
     * of "include" is -1, hence the first element.
     */

    confs[0] = NULL;
    confs[1] = block;
    ctx = &confs[1];

    ngx_backup_conf_module.ctx_index = 0;

    save = *cf;
    cf->ctx = &ctx;
    cf->module_type = NGX_HTTP_BACKUP_CONF_MODULE;
    cf->cmd_type = type;
    cf->handler = NULL;

    rv = ngx_conf_parse(cf, NULL);

    *cf = save;

    return rv;
}


char *
ngx_http_backup_failed(ngx_conf_t *cf, bk_err_t *err)
{
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "%s", err->text);

    return NGX_CONF_ERROR;
}


ngx_int_t
ngx_http_backup_first(ngx_conf_t *cf, ngx_command_t *cmd,
    ngx_http_backup_block_t *block)
{
    ngx_uint_t  i;

    for (i = 0; i < block->nseen; i++) {
        if (block->seen[i] == cmd) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" directive is duplicate", &cmd->name);
            return NGX_ERROR;
        }
    }

    if (block->nseen < NGX_HTTP_BACKUP_SEEN) {
        block->seen[block->nseen++] = cmd;
    }

    return NGX_OK;
}


static void
ngx_http_backup_cleanup_set(void *data)
{
    ngx_http_backup_set_t  *bset = data;

    bk_set_free(&bset->set);
    (void) pthread_mutex_destroy(&bset->lock);
}


char *
ngx_http_backup_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_main_conf_t *bmcf = conf;

    char                     *rv;
    bk_err_t                  err;
    ngx_str_t                *value;
    ngx_uint_t                i;
    ngx_pool_cleanup_t       *cln;
    ngx_http_backup_set_t    *bset, **slot;
    ngx_http_backup_block_t   block;

    value = cf->args->elts;

    if (value[1].len >= sizeof(bset->slot->name)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "backup name \"%V\" is longer than %uz characters",
                           &value[1], sizeof(bset->slot->name) - 1);
        return NGX_CONF_ERROR;
    }

    slot = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (slot[i]->name.len == value[1].len
            && ngx_memcmp(slot[i]->name.data, value[1].data, value[1].len) == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "backup \"%V\" is defined twice", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    bset = ngx_pcalloc(cf->pool, sizeof(ngx_http_backup_set_t));
    if (bset == NULL) {
        return NGX_CONF_ERROR;
    }

    bset->name = value[1];

    cln = ngx_pool_cleanup_add(cf->pool, 0);
    if (cln == NULL || pthread_mutex_init(&bset->lock, NULL) != 0) {
        return NGX_CONF_ERROR;
    }

    bk_err_clear(&err);

    if (bk_set_init(&bset->set, (char *) value[1].data, &err) != BK_OK) {
        return ngx_http_backup_failed(cf, &err);
    }

    cln->handler = ngx_http_backup_cleanup_set;
    cln->data = bset;

    ngx_memzero(&block, sizeof(ngx_http_backup_block_t));
    block.bset = bset;
    block.object = &bset->set;

    rv = ngx_http_backup_parse(cf, NGX_HTTP_BACKUP_SET, &block);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    rv = ngx_http_backup_finish(cf, bmcf, bset);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    slot = ngx_array_push(&bmcf->sets);
    if (slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = bset;

    return NGX_CONF_OK;
}


static char *
ngx_http_backup_finish(ngx_conf_t *cf, ngx_http_backup_main_conf_t *bmcf,
    ngx_http_backup_set_t *bset)
{
    size_t                    n;
    json_t                   *json, *item;
    bk_rc_t                   rc;
    bk_err_t                  err;
    ngx_str_t                 path;
    ngx_int_t                 ok;
    ngx_uint_t                i;
    ngx_http_backup_set_t   **sets;

    bk_err_clear(&err);

    if (bset->set.base_dir == NULL) {
        path.len = sizeof("backup_") - 1 + bset->name.len;
        path.data = ngx_pnalloc(cf->pool, path.len + 1);
        if (path.data == NULL) {
            return NGX_CONF_ERROR;
        }

        (void) ngx_sprintf(path.data, "backup_%V%Z", &bset->name);

        if (ngx_conf_full_name(cf->cycle, &path, 0) != NGX_OK) {
            return NGX_CONF_ERROR;
        }

        bset->set.base_dir = bk_strdup((char *) path.data);
        if (bset->set.base_dir == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    json = json_array();
    rc = bk_set_check(&bset->set, true, json, &err);

    json_array_foreach(json, n, item) {
        ngx_conf_log_error(NGX_LOG_WARN, cf, 0, "backup \"%V\": %s",
                           &bset->name, json_string_value(item));
    }

    json_decref(json);

    if (rc != BK_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "backup \"%V\": %s",
                           &bset->name, err.text);
        return NGX_CONF_ERROR;
    }

    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (ngx_strcmp(sets[i]->set.base_dir, bset->set.base_dir) == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "backup \"%V\" has the base_dir of backup "
                               "\"%V\": each needs its own",
                               &bset->name, &sets[i]->name);
            return NGX_CONF_ERROR;
        }
    }

    if (bset->pool_name.len == 0) {
        ngx_str_set(&bset->pool_name, "backup");
    }

    bset->pool = ngx_thread_pool_add(cf, &bset->pool_name);
    bset->short_pool = ngx_thread_pool_add(cf, bset->short_name.len
                                               ? &bset->short_name : NULL);

    if (bset->pool == NULL || bset->short_pool == NULL) {
        return NGX_CONF_ERROR;
    }

    /*
     * A pool is first in, first out, and its threads give way to requests: the
     * API, or files that are sent, would hang behind each job.
     */

    if (ngx_strcmp(bset->pool_name.data, "default") == 0
        || bset->pool == bset->short_pool)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "backup \"%V\": jobs need a thread pool of their "
                           "own, \"%V\" serves requests too, which would wait "
                           "behind each job: "
                           "leave \"thread_pool\" out here, and write "
                           "\"thread_pool backup threads=4 max_queue=512;\" "
                           "at the top of nginx.conf", &bset->name,
                           &bset->pool_name);
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < bmcf->sets.nelts; i++) {

        if (bset->pool == sets[i]->short_pool
            || bset->short_pool == sets[i]->pool)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "backup \"%V\" and backup \"%V\": the short= "
                               "pool of one is the jobs' pool of the other, "
                               "and would wait behind each job: leave short= "
                               "out", &bset->name, &sets[i]->name);
            return NGX_CONF_ERROR;
        }
    }

    json = bk_set_describe(&bset->set);
    ok = ngx_http_backup_dump(cf->pool, json, &bset->config);
    json_decref(json);

    return ok == NGX_OK ? NGX_CONF_OK : NGX_CONF_ERROR;
}


static char *
ngx_http_backup_inner(ngx_conf_t *cf, ngx_uint_t type,
    ngx_http_backup_block_t *outer, void *object)
{
    ngx_http_backup_block_t  block;

    if (object == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&block, sizeof(ngx_http_backup_block_t));
    block.bset = outer->bset;
    block.object = object;

    return ngx_http_backup_parse(cf, type, &block);
}


static char *
ngx_http_backup_database(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t  *value = cf->args->elts;

    return ngx_http_backup_inner(cf, NGX_HTTP_BACKUP_DATABASE, block,
                                 bk_set_add_db(&block->bset->set,
                                               (char *) value[1].data));
}


static char *
ngx_http_backup_files(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t  *value = cf->args->elts;

    return ngx_http_backup_inner(cf, NGX_HTTP_BACKUP_FILES, block,
                                 bk_set_add_files(&block->bset->set,
                                                  (char *) value[1].data));
}


static char *
ngx_http_backup_encryption(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char                    *rv;
    bk_set_t                *set;
    ngx_http_backup_block_t *block = conf;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    set = &block->bset->set;

    rv = ngx_http_backup_inner(cf, NGX_HTTP_BACKUP_ENCRYPTION, block, set);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    /* An empty block that silently meant "not encrypted" would be a trap. */

    if (set->key_count == 0 && set->passphrase_file == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"encryption\" names no key: write "
                           "\"key ID FILE\" or \"passphrase_file FILE\", "
                           "or remove the block");
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/*
 * What is inside a storage block belongs to its driver, so any name is taken
 * here and the driver says which it does not know.
 */

static char *
ngx_http_backup_storage(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    char                 *rv;
    bk_err_t              err;
    ngx_str_t            *value = cf->args->elts;
    ngx_conf_t            save;
    bk_storage_config_t  *storage;

    bk_err_clear(&err);

    if (bk_storage_driver_check((char *) value[1].data, &err) != BK_OK) {
        return ngx_http_backup_failed(cf, &err);
    }

    storage = bk_set_add_storage(&block->bset->set, (char *) value[1].data,
                                 (char *) value[2].data);
    if (storage == NULL) {
        return NGX_CONF_ERROR;
    }

    save = *cf;
    cf->handler = ngx_http_backup_setting;
    cf->handler_conf = (void *) storage;

    rv = ngx_conf_parse(cf, NULL);

    *cf = save;

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (bk_storage_config_check(storage, &err) != BK_OK) {
        return ngx_http_backup_failed(cf, &err);
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_backup_setting(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    bk_storage_config_t *storage = conf;

    bk_err_t    err;
    ngx_str_t  *value = cf->args->elts;

    if (cf->args->nelts == 2 && ngx_strcmp(value[0].data, "include") == 0) {
        return ngx_conf_include(cf, cmd, conf);
    }

    if (cf->args->nelts != 2) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid number of arguments in \"%V\"", &value[0]);
        return NGX_CONF_ERROR;
    }

    bk_err_clear(&err);

    if (bk_storage_config_set(storage, (char *) value[0].data,
                              (char *) value[1].data, &err)
        != BK_OK)
    {
        return ngx_http_backup_failed(cf, &err);
    }

    return NGX_CONF_OK;
}
