/*
 * nginx/conf_values.c: the directives inside the blocks that set a value:
 * texts, paths, flags, times, sizes, and those with words of their own.
 *
 * Configuration code.
 */

#include "nginx/conf.h"

#include "base/str.h"


static char *ngx_http_backup_assign(ngx_conf_t *cf, char **field,
    ngx_str_t *value);
static ngx_int_t ngx_http_backup_parse_duration(ngx_conf_t *cf,
    ngx_command_t *cmd, ngx_str_t *whole, const char *text, uint64_t *ms);


static char *
ngx_http_backup_assign(ngx_conf_t *cf, char **field, ngx_str_t *value)
{
    if (value->len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "the value must not be empty");
        return NGX_CONF_ERROR;
    }

    free(*field);

    *field = bk_strdup((char *) value->data);

    return *field ? NGX_CONF_OK : NGX_CONF_ERROR;
}


char *
ngx_http_backup_text(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t  *value = cf->args->elts;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return ngx_http_backup_assign(cf,
                            (char **) ((char *) block->object + cmd->offset),
                            &value[1]);
}


/* Relative paths start where nginx starts its own. */

char *
ngx_http_backup_path(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_str_t   *value = cf->args->elts;
    ngx_uint_t   conf_prefix;

    conf_prefix = (cmd->type & NGX_HTTP_BACKUP_ENCRYPTION) ? 1 : 0;

    if (value[1].len
        && ngx_conf_full_name(cf->cycle, &value[1], conf_prefix) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return ngx_http_backup_text(cf, cmd, conf);
}


char *
ngx_http_backup_flag(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    bool       *field;
    ngx_str_t  *value = cf->args->elts;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    field = (bool *) ((char *) block->object + cmd->offset);

    if (ngx_strcmp(value[1].data, "on") == 0) {
        *field = true;

    } else if (ngx_strcmp(value[1].data, "off") == 0) {
        *field = false;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" in \"%V\": it must be "
                           "\"on\" or \"off\"", &value[1], &cmd->name);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_backup_parse_duration(ngx_conf_t *cf, ngx_command_t *cmd,
    ngx_str_t *whole, const char *text, uint64_t *ms)
{
    if (ngx_strcmp(text, "off") == 0) {
        *ms = 0;
        return NGX_OK;
    }

    if (!bk_parse_duration(text, ms)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid time \"%V\" in \"%V\": write it as 30s, "
                           "15m, 6h, 30d or \"off\"", whole, &cmd->name);
        return NGX_ERROR;
    }

    return NGX_OK;
}


char *
ngx_http_backup_duration(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t  *value = cf->args->elts;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK
        || ngx_http_backup_parse_duration(cf, cmd, &value[1],
                         (char *) value[1].data,
                         (uint64_t *) ((char *) block->object + cmd->offset))
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_backup_size(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    uint64_t   *field;
    ngx_str_t  *value = cf->args->elts;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    field = (uint64_t *) ((char *) block->object + cmd->offset);

    if (!bk_parse_size((char *) value[1].data, field)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid size \"%V\" in \"%V\": write it as 512k, "
                           "100m or 2g", &value[1], &cmd->name);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_backup_texts(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    char       ***list;
    bk_err_t      err;
    ngx_str_t    *value = cf->args->elts;
    ngx_uint_t    i;

    bk_err_clear(&err);
    list = (char ***) ((char *) block->object + cmd->offset);

    for (i = 1; i < cf->args->nelts; i++) {
        if (value[i].len == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "empty value in \"%V\"", &cmd->name);
            return NGX_CONF_ERROR;
        }

        if (bk_set_add_text(list, (char *) value[i].data, &err) != BK_OK) {
            return ngx_http_backup_failed(cf, &err);
        }
    }

    return NGX_CONF_OK;
}


char *
ngx_http_backup_compression(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_int_t          level, most;
    ngx_str_t         *value = cf->args->elts;
    bk_compression_t  *how = &block->bset->set.compression;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (ngx_strcmp(value[1].data, "zstd") == 0) {
        how->codec = BK_CODEC_ZSTD;
        how->level = 3;
        most = 19;

    } else if (ngx_strcmp(value[1].data, "gzip") == 0) {
        how->codec = BK_CODEC_GZIP;
        how->level = 6;
        most = 9;

    } else if (ngx_strcmp(value[1].data, "off") == 0) {
        how->codec = BK_CODEC_RAW;
        how->level = 0;
        most = 0;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "unknown compression \"%V\": it must be \"zstd\", "
                           "\"gzip\" or \"off\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (cf->args->nelts == 2) {
        return NGX_CONF_OK;
    }

    level = NGX_ERROR;

    if (ngx_strncmp(value[2].data, "level=", 6) == 0) {
        level = ngx_atoi(value[2].data + 6, value[2].len - 6);
    }

    if (level < 1 || level > most) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           most ? "invalid parameter \"%V\": it must be "
                                  "level=1 to level=%i"
                                : "invalid parameter \"%V\": \"compression "
                                  "off\" has none", &value[2], most);
        return NGX_CONF_ERROR;
    }

    how->level = (int) level;

    return NGX_CONF_OK;
}


char *
ngx_http_backup_retention(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    size_t       n;
    uint64_t    *field;
    ngx_str_t   *value = cf->args->elts;
    ngx_uint_t   i;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "database=", 9) == 0) {
            n = 9;
            field = &block->bset->set.retention_db;

        } else if (ngx_strncmp(value[i].data, "files=", 6) == 0) {
            n = 6;
            field = &block->bset->set.retention_files;

        } else {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\": it must be "
                               "database=TIME or files=TIME", &value[i]);
            return NGX_CONF_ERROR;
        }

        if (ngx_http_backup_parse_duration(cf, cmd, &value[i],
                                           (char *) value[i].data + n, field)
            != NGX_OK)
        {
            return NGX_CONF_ERROR;
        }
    }

    return NGX_CONF_OK;
}


char *
ngx_http_backup_thread_pool(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t              *value = cf->args->elts;
    ngx_http_backup_set_t  *bset = block->bset;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    bset->pool_name = value[1];

    if (cf->args->nelts == 2) {
        return NGX_CONF_OK;
    }

    if (ngx_strncmp(value[2].data, "short=", 6) != 0 || value[2].len == 6) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\": it must be short=POOL",
                           &value[2]);
        return NGX_CONF_ERROR;
    }

    bset->short_name.data = value[2].data + 6;
    bset->short_name.len = value[2].len - 6;

    return NGX_CONF_OK;
}


char *
ngx_http_backup_wal(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t    *value = cf->args->elts;
    bk_set_db_t  *db = block->object;

    if (ngx_http_backup_first(cf, cmd, block) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (ngx_strcmp(value[1].data, "on") == 0) {
        db->wal = BK_WAL_ON;

    } else if (ngx_strcmp(value[1].data, "off") == 0) {
        db->wal = BK_WAL_OFF;

    } else if (ngx_strcmp(value[1].data, "require") == 0) {
        db->wal = BK_WAL_REQUIRE;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" in \"wal\": it must be "
                           "\"on\", \"off\" or \"require\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


char *
ngx_http_backup_key(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_block_t *block = conf;

    ngx_str_t  *value = cf->args->elts;

    if (ngx_conf_full_name(cf->cycle, &value[2], 1) != NGX_OK
        || bk_set_add_key(&block->bset->set, (char *) value[1].data,
                          (char *) value[2].data) == NULL)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
