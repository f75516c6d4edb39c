/*
 * nginx/location.c: the directives in locations, and how they are inherited.
 *
 * Configuration code.
 */

#include "nginx/module.h"


void *
ngx_http_backup_create_loc_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_backup_loc_conf_t));
}


char *
ngx_http_backup_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_backup_loc_conf_t *prev = parent;
    ngx_http_backup_loc_conf_t *conf = child;

    ngx_str_t                     *name;
    ngx_uint_t                     i;
    ngx_http_backup_set_t        **sets;
    ngx_http_core_loc_conf_t      *clcf;
    ngx_http_backup_main_conf_t   *bmcf;

    if (conf->auth == NGX_HTTP_BACKUP_AUTH_UNSET) {
        conf->auth = prev->auth;
        conf->external_role = prev->external_role;
    }

    if (conf->token_file.data == NULL) {
        conf->token_file = prev->token_file;
        conf->tokens = prev->tokens;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    /*
     * "if" and "limit_except" are locations of their own for nginx.  Without
     * the handler, methods that limit_except allows would find a file.
     */

    if (clcf->noname && conf->api.len == 0 && conf->health.len == 0
        && prev->bset)
    {
        conf->api = prev->api;
        conf->health = prev->health;
        conf->file = prev->file;
        conf->line = prev->line;

        if (clcf->lmt_excpt && clcf->handler == NULL) {
            clcf->handler = prev->api.len ? ngx_http_backup_api_handler
                                          : ngx_http_backup_health_handler;
        }
    }

    name = conf->api.len ? &conf->api : &conf->health;

    if (name->len == 0) {
        return NGX_CONF_OK;
    }

    bmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_backup_module);
    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (sets[i]->name.len == name->len
            && ngx_memcmp(sets[i]->name.data, name->data, name->len) == 0)
        {
            conf->bset = sets[i];
        }
    }

    if (conf->bset == NULL) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "there is no \"backup %V { }\" in http for \"%s\" "
                      "in %s:%ui", name,
                      conf->api.len ? "backup_api" : "backup_health",
                      conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    if (conf->api.len && conf->auth == NGX_HTTP_BACKUP_AUTH_UNSET) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"backup_api\" without \"backup_auth\": write "
                      "\"backup_auth bearer\" with \"backup_token_file\", or "
                      "\"backup_auth external\" when other directives guard "
                      "this location, in %s:%ui", conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    if (conf->auth == NGX_HTTP_BACKUP_AUTH_BEARER && conf->tokens == NULL) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"backup_auth bearer\" needs \"backup_token_file\" "
                      "in %s:%ui", conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* backup_api NAME, backup_health NAME */

char *
ngx_http_backup_location(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_loc_conf_t *blcf = conf;

    ngx_str_t                 *value;
    ngx_uint_t                 regex;
    ngx_http_core_loc_conf_t  *clcf;

    value = cf->args->elts;

    if (blcf->api.len || blcf->health.len) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "this location has \"%s\" already",
                           blcf->api.len ? "backup_api" : "backup_health");
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    regex = 0;
#if (NGX_PCRE)
    regex = (clcf->regex != NULL);
#endif

    if ((regex || clcf->named) && cmd->offset
                        == offsetof(ngx_http_backup_loc_conf_t, api))
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"backup_api\" needs a location with a plain "
                           "prefix, like \"location /admin/backup\"");
        return NGX_CONF_ERROR;
    }

    *(ngx_str_t *) ((char *) blcf + cmd->offset) = value[1];

    if (value[1].len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" needs the name of a backup", &cmd->name);
        return NGX_CONF_ERROR;
    }

    blcf->file = cf->conf_file->file.name.data;
    blcf->line = cf->conf_file->line;

    clcf->handler = blcf->api.len ? ngx_http_backup_api_handler
                                  : ngx_http_backup_health_handler;

    return NGX_CONF_OK;
}


char *
ngx_http_backup_tokens(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_loc_conf_t *blcf = conf;

    ngx_str_t  *value = cf->args->elts;

    if (blcf->token_file.data) {
        return "is duplicate";
    }

    blcf->token_file = value[1];

    if (ngx_conf_full_name(cf->cycle, &blcf->token_file, 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return ngx_http_backup_read_tokens(cf, blcf);
}
