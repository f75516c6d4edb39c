/*
 * nginx/helper.h: the master's side of the privileged helper: what helper.c
 * decides and spawn.c does.
 */

#ifndef BK_NGINX_HELPER_H
#define BK_NGINX_HELPER_H


#include "nginx/module.h"
#include "helper/client_private.h"


#define NGX_HTTP_BACKUP_HELPER_TEXT   512

#define NGX_HTTP_BACKUP_HELPER_RETRY                                          \
    "reload nginx to start it again (nginx -s reload)"


typedef struct {
    ngx_socket_t                  control;      /* the master's only; -1 */
    ngx_socket_t                  broker;       /* -1: no helper */
    ngx_uint_t                    mode;
    char                          path[BK_WIRE_PATH + 1];
    uint64_t                      generation;   /* of the configuration */
    uint32_t                      id;
    int                           pid;          /* of the supervisor */
    char                          release[32];
    char                          trouble[NGX_HTTP_BACKUP_HELPER_TEXT];
    ngx_http_backup_main_conf_t  *owner;        /* whose roots it has */
    unsigned                      standby:1;
    unsigned                      started:1;    /* in this process's life */

    /* a worker's own: */
    pthread_mutex_t               lock;         /* guards client */
    bk_helper_t                  *client;
    pthread_mutex_t               look_lock;    /* guards what follows */
    bk_talker_t                  *talker;       /* only asks how it is */
    int                           noticed;      /* of that agent: its cage */
    uint64_t                      refused;      /* as of the last warning */
    int64_t                       refused_at;   /* ns */
    unsigned                      seen:1;       /* it has answered once */
} ngx_http_backup_helper_t;


/* Of the process; it outlives the cycles. */
extern ngx_http_backup_helper_t  ngx_http_backup_the_helper;


/*
 * Start or reach the helper of bmcf and give it the first configuration; or
 * give the one that runs another configuration.  NGX_DECLINED: it refused, and
 * keeps the one that it has.  NGX_ERROR: there is none.  What went wrong is in
 * "trouble" then.
 */
ngx_int_t ngx_http_backup_helper_begin(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
ngx_int_t ngx_http_backup_helper_renew(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
/* Whether a helper takes what all sets name; NGX_ERROR: logged. */
ngx_int_t ngx_http_backup_helper_fits(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
/* Say QUIT and forget it. */
void ngx_http_backup_helper_end(void);
void ngx_http_backup_helper_trouble(const char *fmt, ...);
void ngx_http_backup_helper_close(ngx_socket_t *s);


#endif
