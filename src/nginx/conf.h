/*
 * nginx/conf.h: what the files that read "backup NAME { }" share: conf.c the
 * blocks, conf_values.c the directives with values.  Configuration code.
 */

#ifndef BK_NGINX_CONF_H
#define BK_NGINX_CONF_H


#include "nginx/module.h"


/* Contexts within the module type; all inside NGX_ANY_CONF. */
#define NGX_HTTP_BACKUP_SET           0x02000000
#define NGX_HTTP_BACKUP_DATABASE      0x04000000
#define NGX_HTTP_BACKUP_FILES         0x08000000
#define NGX_HTTP_BACKUP_ENCRYPTION    0x10000000

#define NGX_HTTP_BACKUP_SEEN          32


/* What a directive inside a block gets as its conf. */
typedef struct {
    ngx_http_backup_set_t  *bset;
    void                   *object;         /* cmd->offset is into this */
    ngx_command_t          *seen[NGX_HTTP_BACKUP_SEEN];
    ngx_uint_t              nseen;
} ngx_http_backup_block_t;


/* conf.c */

ngx_int_t ngx_http_backup_first(ngx_conf_t *cf, ngx_command_t *cmd,
    ngx_http_backup_block_t *block);
char *ngx_http_backup_failed(ngx_conf_t *cf, bk_err_t *err);


/* conf_values.c: one handler a kind of value. */

char *ngx_http_backup_text(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_path(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_flag(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_duration(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_size(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_texts(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_compression(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_retention(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_thread_pool(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_wal(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_backup_key(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


#endif
