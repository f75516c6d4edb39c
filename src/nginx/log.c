/*
 * nginx/log.c: log lines of threads, kept until the event loop writes them.
 *
 * nginx's log must not be used from a thread (its handlers read requests, and
 * syslog has state), so the sink only queues.  The queue is bounded: a flood
 * loses lines and says how many.
 */

#include "nginx/module.h"

#include "base/log.h"


#define NGX_HTTP_BACKUP_LINES  1024


typedef struct ngx_http_backup_line_s  ngx_http_backup_line_t;

struct ngx_http_backup_line_s {
    ngx_http_backup_line_t  *next;
    bk_log_level_t           level;
    char                     text[1];
};


static void ngx_http_backup_log_sink(void *data, bk_log_level_t level,
    const char *line);


static struct {
    pthread_mutex_t           lock;
    ngx_http_backup_line_t   *first;
    ngx_http_backup_line_t  **last;
    ngx_uint_t                count;
    ngx_uint_t                lost;
} ngx_http_backup_lines = {
    PTHREAD_MUTEX_INITIALIZER, NULL, &ngx_http_backup_lines.first, 0, 0
};


void
ngx_http_backup_log_init(ngx_log_t *log)
{
    bk_log_level_t  level;

    level = BK_LOG_WARN;

    if (log->log_level & NGX_LOG_DEBUG_HTTP) {
        level = BK_LOG_DEBUG;

    } else if (log->log_level >= NGX_LOG_INFO) {
        level = BK_LOG_INFO;

    } else if (log->log_level >= NGX_LOG_NOTICE) {
        level = BK_LOG_NOTICE;
    }

    bk_log_set(ngx_http_backup_log_sink, NULL, level);
}


static void
ngx_http_backup_log_sink(void *data, bk_log_level_t level, const char *text)
{
    size_t                   len;
    ngx_http_backup_line_t  *line;

    len = strlen(text);
    line = malloc(sizeof(ngx_http_backup_line_t) + len);

    if (line) {
        line->next = NULL;
        line->level = level;
        memcpy(line->text, text, len + 1);
    }

    (void) pthread_mutex_lock(&ngx_http_backup_lines.lock);

    if (line && ngx_http_backup_lines.count < NGX_HTTP_BACKUP_LINES) {
        *ngx_http_backup_lines.last = line;
        ngx_http_backup_lines.last = &line->next;
        ngx_http_backup_lines.count++;
        line = NULL;

    } else {
        ngx_http_backup_lines.lost++;
    }

    (void) pthread_mutex_unlock(&ngx_http_backup_lines.lock);

    free(line);
}


void
ngx_http_backup_log_drain(void)
{
    ngx_uint_t               level, lost;
    ngx_http_backup_line_t  *line, *next;

    static const ngx_uint_t  levels[] = {
        NGX_LOG_ERR, NGX_LOG_WARN, NGX_LOG_NOTICE, NGX_LOG_INFO, NGX_LOG_DEBUG
    };

    (void) pthread_mutex_lock(&ngx_http_backup_lines.lock);

    line = ngx_http_backup_lines.first;
    lost = ngx_http_backup_lines.lost;
    ngx_http_backup_lines.first = NULL;
    ngx_http_backup_lines.last = &ngx_http_backup_lines.first;
    ngx_http_backup_lines.count = 0;
    ngx_http_backup_lines.lost = 0;

    (void) pthread_mutex_unlock(&ngx_http_backup_lines.lock);

    for ( /* void */ ; line; line = next) {
        next = line->next;
        level = levels[line->level];

        if (level == NGX_LOG_DEBUG) {
            ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ngx_cycle->log, 0,
                           "%s", line->text);

        } else {
            ngx_log_error(level, ngx_cycle->log, 0, "%s", line->text);
        }

        free(line);
    }

    if (lost) {
        ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                      "backup: %ui log lines were lost", lost);
    }
}
