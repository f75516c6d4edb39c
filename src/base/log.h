/*
 * base/log.h: where the engine's log lines go.
 *
 * One sink for the process, installed by the host (module, command line, test) before the first
 * thread starts.  The sink must be callable from any thread.  Without a sink, lines of level warn
 * and worse go to standard error.
 */
#ifndef BK_BASE_LOG_H
#define BK_BASE_LOG_H

typedef enum { BK_LOG_ERROR, BK_LOG_WARN, BK_LOG_NOTICE, BK_LOG_INFO, BK_LOG_DEBUG } bk_log_level_t;

/* line: one line without newline, no control bytes, at most 2 KiB; valid during the call only. */
typedef void (*bk_log_sink_t)(void *data, bk_log_level_t level, const char *line);

void bk_log_set(bk_log_sink_t sink, void *data, bk_log_level_t most_verbose);
void bk_log(bk_log_level_t level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
