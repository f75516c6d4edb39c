/*
 * nginx/module.h: what the files of this folder share.
 *
 * Three kinds of code live here and never mix.  Configuration code runs in the
 * master (and under nginx -t) and may fail.  Loop code runs in a worker's event
 * loop and never blocks: no disk, no network, no lock held during I/O.  Thread
 * code (everything named ..._work) runs in a thread pool and touches its heap
 * context, the engine, and bk_log; nothing of nginx.
 */

#ifndef BK_NGINX_MODULE_H
#define BK_NGINX_MODULE_H


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#if !(NGX_THREADS)
#error "ngx-backup needs nginx built --with-threads"
#endif

#include <ngx_thread_pool.h>

#include "engine/engine.h"
#include "helper/client.h"


#define NGX_HTTP_BACKUP_BODY     65536
#define NGX_HTTP_BACKUP_KEY      255        /* bytes of Idempotency-Key */
#define NGX_HTTP_BACKUP_WAIT     25000      /* ms, longest wait for a job */
#define NGX_HTTP_BACKUP_STALE    60         /* s without a sign of the runner */


typedef enum {
    NGX_HTTP_BACKUP_NOBODY = 0,
    NGX_HTTP_BACKUP_VIEWER,
    NGX_HTTP_BACKUP_OPERATOR,
    NGX_HTTP_BACKUP_ADMIN
} ngx_http_backup_role_e;


typedef enum {
    NGX_HTTP_BACKUP_AUTH_UNSET = 0,
    NGX_HTTP_BACKUP_AUTH_BEARER,
    NGX_HTTP_BACKUP_AUTH_EXTERNAL
} ngx_http_backup_auth_e;


typedef enum {
    NGX_HTTP_BACKUP_HELPER_UNSET = 0,
    NGX_HTTP_BACKUP_HELPER_OFF,
    NGX_HTTP_BACKUP_HELPER_PROGRAM,
    NGX_HTTP_BACKUP_HELPER_EXTERNAL
} ngx_http_backup_helper_e;


/* Texts that the runner publishes in the zone for every worker. */
typedef enum {
    NGX_HTTP_BACKUP_STATUS = 0,
    NGX_HTTP_BACKUP_HEALTH,
    NGX_HTTP_BACKUP_HEALTH_BRIEF,
    NGX_HTTP_BACKUP_METRICS,
    NGX_HTTP_BACKUP_PROGRESS,
    NGX_HTTP_BACKUP_TROUBLE,        /* why the set does not run, or "" */
    NGX_HTTP_BACKUP_TEXTS
} ngx_http_backup_text_e;


typedef struct {
    u_char                      *data;
    size_t                       len;
    size_t                       size;
    uint64_t                     tag;           /* of the content, for ETag */
    time_t                       time;          /* when it was published */
} ngx_http_backup_text_t;


/* One set in the zone.  Everything is guarded by the zone's mutex. */
typedef struct {
    ngx_queue_t                  queue;
    u_char                       name[64];
    u_char                       running[BK_JOB_ID];
    u_char                       cancel[BK_JOB_ID];
    ngx_uint_t                   ended;         /* counts jobs that ended */
    ngx_uint_t                   healthy;       /* 0: answer health with 503 */
    ngx_pid_t                    heir;          /* the newest runner, or the
                                                   master: one is coming */
    ngx_uint_t                   heir_ready;    /* it watches, or cannot */
    ngx_http_backup_text_t       texts[NGX_HTTP_BACKUP_TEXTS];
} ngx_http_backup_slot_t;


typedef struct ngx_http_backup_runner_s  ngx_http_backup_runner_t;
typedef struct ngx_http_backup_watch_s  ngx_http_backup_watch_t;
typedef struct ngx_http_backup_capture_s  ngx_http_backup_capture_t;


/* One "backup NAME { }" of one cycle. */
typedef struct {
    ngx_str_t                    name;
    bk_set_t                     set;
    ngx_str_t                    config;        /* body of GET /config */
    ngx_str_t                    pool_name;
    ngx_str_t                    short_name;
    ngx_thread_pool_t           *pool;          /* jobs */
    ngx_thread_pool_t           *short_pool;    /* everything short */
    ngx_slab_pool_t             *shpool;
    ngx_http_backup_slot_t      *slot;
    unsigned                     db_path:1;

    /* a worker's own: */
    pthread_mutex_t              lock;          /* guards engine */
    bk_engine_t                 *engine;        /* NULL until first needed */
    ngx_http_backup_runner_t    *runner;        /* NULL unless worker 0 */
    ngx_http_backup_watch_t     *watch;         /* the same */
    ngx_http_backup_capture_t   *capture;       /* NULL: nothing to capture */
    unsigned                     ready:1;       /* init_process has run */
} ngx_http_backup_set_t;


typedef struct {
    ngx_array_t                  sets;          /* ngx_http_backup_set_t * */
    ngx_str_t                    zone_name;
    ssize_t                      zone_size;
    ngx_shm_zone_t              *zone;
    ngx_uint_t                   helper;        /* ..._helper_e */
    ngx_str_t                    helper_path;
    ngx_uint_t                   helper_default;    /* nothing is written */
    ngx_int_t                    request_id;    /* index of $request_id */
    ngx_socket_t                 wake;          /* eventfd, -1 */
    ngx_array_t                  calls;         /* eventfd of each worker */
} ngx_http_backup_main_conf_t;


typedef struct {
    ngx_str_t                    name;
    ngx_http_backup_role_e       role;
    u_char                       digest[32];
} ngx_http_backup_token_t;


typedef struct {
    ngx_str_t                    api;           /* set's name, or empty */
    ngx_str_t                    health;
    ngx_http_backup_set_t       *bset;
    u_char                      *file;          /* of backup_api, _health */
    ngx_uint_t                   line;

    ngx_uint_t                   auth;          /* ngx_http_backup_auth_e */
    ngx_uint_t                   external_role;
    ngx_str_t                    token_file;
    ngx_array_t                 *tokens;        /* ngx_http_backup_token_t */
} ngx_http_backup_loc_conf_t;


typedef struct {
    ngx_str_t                    name;
    ngx_http_backup_role_e       role;
} ngx_http_backup_user_t;


typedef struct ngx_http_backup_call_s  ngx_http_backup_call_t;


typedef struct {
    ngx_http_request_t          *request;
    ngx_http_backup_set_t       *bset;
    ngx_http_backup_user_t       user;
    ngx_http_backup_call_t      *call;          /* at work on a thread */
    const char                  *operation;     /* for the audit */

    ngx_queue_t                  waiters;       /* while wait is set */
    ngx_event_t                  wait;
    ngx_msec_t                   timeout;       /* 0: answer at once */
    ngx_msec_t                   deadline;
    ngx_msec_t                   polled;
    ngx_uint_t                   seen;          /* slot->ended */
    u_char                       job[BK_JOB_ID];

    ngx_str_t                    replaced;      /* body of our own problem */
    unsigned                     answered:1;    /* the answer is ours */
    unsigned                     preferred:1;   /* Prefer: wait */
    unsigned                     waiting:1;
} ngx_http_backup_ctx_t;


extern ngx_module_t  ngx_http_backup_module;
extern ngx_module_t  ngx_backup_conf_module;
extern ngx_module_t  ngx_backup_stop_module;


/* location.c: the directives in locations. */

void *ngx_http_backup_create_loc_conf(ngx_conf_t *cf);
char *ngx_http_backup_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
char *ngx_http_backup_location(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_backup_tokens(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);


/* conf.c: the blocks. */

char *ngx_http_backup_block(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);


/* access.c: what the workers' user can reach. */

ngx_int_t ngx_http_backup_directory(ngx_cycle_t *cycle, ngx_str_t *name,
    const char *path, ngx_uint_t required);
/* Keys and passphrases, which the configuration has read as root. */
ngx_int_t ngx_http_backup_secrets(ngx_cycle_t *cycle,
    ngx_http_backup_set_t *bset);


/* zone.c: what workers share.  Loop code. */

ngx_int_t ngx_http_backup_zone_add(ngx_conf_t *cf,
    ngx_http_backup_main_conf_t *bmcf);
void ngx_http_backup_put(ngx_http_backup_set_t *bset, ngx_uint_t which,
    const char *data, size_t len, uint64_t tag);
/* A copy in pool; time tells its age; NGX_DECLINED when there is none. */
ngx_int_t ngx_http_backup_get(ngx_http_backup_set_t *bset, ngx_uint_t which,
    ngx_pool_t *pool, ngx_str_t *text, uint64_t *tag, time_t *time);
void ngx_http_backup_running(ngx_http_backup_set_t *bset, const char *id);
void ngx_http_backup_ended(ngx_http_backup_set_t *bset);
ngx_uint_t ngx_http_backup_ended_count(ngx_http_backup_set_t *bset);
/* True when id runs now; wanted tells whether it is being canceled. */
ngx_uint_t ngx_http_backup_is_running(ngx_http_backup_set_t *bset,
    const char *id, ngx_uint_t *canceling);
void ngx_http_backup_cancel(ngx_http_backup_set_t *bset, const char *id);
/* This process will run the set; ready: it sees what changes, or never will. */
void ngx_http_backup_heir(ngx_http_backup_set_t *bset, ngx_uint_t ready);
/* Another process will run the set, and is not ready yet. */
ngx_uint_t ngx_http_backup_heir_comes(ngx_http_backup_set_t *bset);


/* task.c: thread pools. */

/*
 * Run work(data) on a thread and then done(data) on the loop.  done is always
 * called, unless the process is terminated; the request that asked may be gone
 * by then.  A guard timer keeps the worker in its loop meanwhile.
 */
ngx_int_t ngx_http_backup_post(ngx_thread_pool_t *pool, void (*work)(void *),
    void (*done)(void *), void *data);

/* A stop flag that the end of the worker raises; loop code adds and removes. */
typedef struct {
    ngx_queue_t                  queue;
    bk_ctl_t                     ctl;
    ngx_uint_t                   leaves;    /* as soon as the worker does */
} ngx_http_backup_ctl_t;

void ngx_http_backup_ctl_init(ngx_http_backup_ctl_t *ctl, ngx_uint_t leaves);
void ngx_http_backup_ctl_done(ngx_http_backup_ctl_t *ctl);
void ngx_http_backup_stop_all(ngx_cycle_t *cycle);

/* The set's engine, opened when it is not.  Thread code. */
bk_rc_t ngx_http_backup_engine(ngx_http_backup_set_t *bset,
    bk_engine_t **engine, bk_err_t *err);

/* An event that has no connection: debug logs look for a descriptor. */
extern ngx_connection_t  ngx_http_backup_nowhere;


/* log.c: lines from threads, written by the loop. */

void ngx_http_backup_log_init(ngx_log_t *log);
void ngx_http_backup_log_drain(void);


/* capture.c: worker 0 takes in transactions while it has the set. */

ngx_int_t ngx_http_backup_capture_init(ngx_cycle_t *cycle,
    ngx_http_backup_set_t *bset);
void ngx_http_backup_capture_tick(ngx_http_backup_set_t *bset,
    ngx_uint_t owned);
/* A database was written to. */
void ngx_http_backup_capture_wake(ngx_http_backup_set_t *bset);
void ngx_http_backup_capture_exit(ngx_http_backup_set_t *bset);


/* watch.c: worker 0 is told what changes. */

ngx_int_t ngx_http_backup_watch_init(ngx_cycle_t *cycle,
    ngx_http_backup_set_t *bset);
void ngx_http_backup_watch_tick(ngx_http_backup_set_t *bset,
    ngx_uint_t leaving);
/* A runner that leaves, since so many ms, should not let go yet. */
ngx_uint_t ngx_http_backup_watch_waits(ngx_http_backup_set_t *bset,
    ngx_msec_t since);
void ngx_http_backup_watch_exit(ngx_http_backup_set_t *bset);


/* runner.c: worker 0 runs the jobs. */

ngx_int_t ngx_http_backup_runner_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
void ngx_http_backup_runner_exit(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
/* The runner looks at everything now. */
void ngx_http_backup_hurry(void);


/* wake.c: processes that hurry each other. */

/* The master, for each cycle; closed with the configuration. */
void ngx_http_backup_wake_make(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
void ngx_http_backup_wake_close(ngx_http_backup_main_conf_t *bmcf);
ngx_int_t ngx_http_backup_wake_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
void ngx_http_backup_wake_exit(ngx_http_backup_main_conf_t *bmcf);
/* Any worker: there is something to do. */
void ngx_http_backup_wake(void);
/* A job has ended: whoever waits for one looks now. */
void ngx_http_backup_call_waiters(void);


/* request.c: requests that wait for a job. */

void ngx_http_backup_look(void);
ngx_uint_t ngx_http_backup_is_json(ngx_http_request_t *r);


/* helper.c: the privileged helper. */

char *ngx_http_backup_helper(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
/* The master, for each cycle: start it, or tell it the new directories. */
ngx_int_t ngx_http_backup_helper_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf);
/* The master: end it, when bmcf is the one it serves, or NULL. */
void ngx_http_backup_helper_exit(ngx_http_backup_main_conf_t *bmcf);
/* At the start and the end of each process below the master. */
void ngx_http_backup_helper_process(ngx_cycle_t *cycle);
void ngx_http_backup_helper_leave(void);
/*
 * A worker's side of it, shared by all threads of the process, made when first
 * needed.  BK_UNAVAILABLE when there is no helper.  Thread code.
 */
bk_rc_t ngx_http_backup_helper_client(bk_helper_t **client, bk_err_t *err);
/* Ask how it is, and have the engine show it.  Up to 2 s.  Thread code. */
void ngx_http_backup_helper_look(bk_engine_t *engine, bk_ctl_t *ctl);


/* auth.c: who asks, and what they may. */

char *ngx_http_backup_auth(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_backup_read_tokens(ngx_conf_t *cf,
    ngx_http_backup_loc_conf_t *blcf);
/* NGX_OK, NGX_HTTP_UNAUTHORIZED or NGX_HTTP_FORBIDDEN. */
ngx_int_t ngx_http_backup_authenticate(ngx_http_request_t *r,
    ngx_http_backup_user_t *user);
const char *ngx_http_backup_role_name(ngx_uint_t role);


/* answer.c: answers, problems, and nginx's own errors as problems. */

void ngx_http_backup_filter_init(void);
/* The body is sent as it is; it must live as long as the request. */
ngx_int_t ngx_http_backup_answer(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, ngx_str_t *body);
ngx_int_t ngx_http_backup_header(ngx_http_request_t *r, const char *name,
    ngx_str_t *value);
ngx_int_t ngx_http_backup_header_text(ngx_http_request_t *r, const char *name,
    const char *value);
/* Takes problems over. */
ngx_int_t ngx_http_backup_problem(ngx_http_request_t *r, const bk_err_t *err,
    ngx_uint_t status, json_t *problems);
ngx_str_t *ngx_http_backup_request_id(ngx_http_request_t *r);
ngx_str_t *ngx_http_backup_find_header(ngx_http_request_t *r,
    const char *name);
ngx_int_t ngx_http_backup_dump(ngx_pool_t *pool, json_t *value,
    ngx_str_t *text);
void ngx_http_backup_audit(ngx_http_request_t *r, ngx_uint_t status,
    const char *job);


/* api.c: routes; pages.c: health for everybody. */

ngx_int_t ngx_http_backup_api_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_backup_health_handler(ngx_http_request_t *r);
/* The location's prefix, without a slash at its end. */
void ngx_http_backup_prefix(ngx_http_request_t *r, ngx_str_t *prefix);


typedef enum {
    NGX_HTTP_BACKUP_OP_LIST,
    NGX_HTTP_BACKUP_OP_BACKUP,
    NGX_HTTP_BACKUP_OP_JOBS,
    NGX_HTTP_BACKUP_OP_JOB,
    NGX_HTTP_BACKUP_OP_SUBMIT,
    NGX_HTTP_BACKUP_OP_QUERY,
    NGX_HTTP_BACKUP_OP_TIMELINE,
    NGX_HTTP_BACKUP_OP_DETACH,
    NGX_HTTP_BACKUP_OP_CANCEL
} ngx_http_backup_op_e;


/* call.c, request.c: a request that needs the engine. */

struct ngx_http_backup_call_s {
    /* loop code */
    ngx_http_request_t          *request;       /* NULL: gone */
    ngx_http_backup_set_t       *bset;
    ngx_uint_t                   op;
    ngx_uint_t                   kind;          /* bk_job_kind_t */
    ngx_http_backup_ctl_t        ctl;

    /* what is asked, for the thread; strings are heap */
    char                         id[BK_JOB_ID];
    char                        *prefix;
    char                        *user;
    char                        *request_id;
    char                        *idempotency_key;
    char                        *type;
    char                        *tag;
    char                        *storage;
    char                        *cursor;
    char                        *database;
    bk_list_filter_t             filter;
    u_char                      *body;
    size_t                       body_len;
    int                          body_fd;       /* or -1 */
    off_t                        body_offset;
    char                         running[BK_JOB_ID];
    char                        *progress;

    /* the answer */
    ngx_uint_t                   status;
    bk_buf_t                     text;
    bk_err_t                     err;
    json_t                      *problems;
    char                         job[BK_JOB_ID];
    unsigned                     failed:1;
    unsigned                     ended:1;       /* the job has */
    unsigned                     replayed:1;
    unsigned                     wake:1;
    unsigned                     stop:1;        /* ask the runner */
};


void ngx_http_backup_call_work(void *data);
void ngx_http_backup_call_free(ngx_http_backup_call_t *call);

ngx_http_backup_call_t *ngx_http_backup_call_new(ngx_http_request_t *r,
    ngx_uint_t op);
/* Takes call over.  NGX_DONE, or what the handler has to return. */
ngx_int_t ngx_http_backup_call_post(ngx_http_request_t *r,
    ngx_http_backup_call_t *call);
ngx_int_t ngx_http_backup_call_with_body(ngx_http_request_t *r,
    ngx_http_backup_call_t *call);


#endif
