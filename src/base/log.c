/*
 * base/log.c: hands finished lines to the one sink.  Knows nothing of where they go.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/str.h"

#define LINE_MAX_BYTES 2048

static void to_stderr(void *data, bk_log_level_t level, const char *line)
{
    static const char *const name[] = {"error", "warn", "notice", "info", "debug"};
    (void)data;
    fprintf(stderr, "ngx-backup: %s: %s\n", name[level], line);
}

/* Written once, before the first thread starts. */
static struct {
    bk_log_sink_t sink;
    void *data;
    bk_log_level_t most_verbose;
} current = {to_stderr, NULL, BK_LOG_WARN};

void bk_log_set(bk_log_sink_t sink, void *data, bk_log_level_t most_verbose)
{
    current.sink = sink != NULL ? sink : to_stderr;
    current.data = data;
    current.most_verbose = most_verbose;
}

void bk_log(bk_log_level_t level, const char *fmt, ...)
{
    char raw[LINE_MAX_BYTES], line[LINE_MAX_BYTES];
    va_list args;
    if (level > current.most_verbose)
        return;
    va_start(args, fmt);
    int n = vsnprintf(raw, sizeof raw, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    bk_printable(line, sizeof line, raw);
    current.sink(current.data, level, line);
}
