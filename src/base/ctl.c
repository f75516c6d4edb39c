/*
 * base/ctl.c: counters, the stop flag and the warnings of one job.
 */
#include "base/ctl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"

#define NOTE_MAX 2048

void bk_ctl_init(bk_ctl_t *ctl)
{
    memset(ctl, 0, sizeof *ctl);
    ctl->started = bk_mono();
    ctl->phase = "start";
    pthread_mutex_init(&ctl->lock, NULL);
}

void bk_ctl_free(bk_ctl_t *ctl)
{
    for (unsigned i = 0; i < ctl->notes_kept; i++)
        free(ctl->notes[i]);
    ctl->notes_kept = 0;
    pthread_mutex_destroy(&ctl->lock);
}

void bk_ctl_stop(bk_ctl_t *ctl, bk_rc_t why)
{
    int running = 0;
    atomic_compare_exchange_strong(&ctl->stop, &running, (int)why);
}

bk_rc_t bk_ctl_check(bk_ctl_t *ctl, bk_err_t *err)
{
    if (ctl == NULL)
        return BK_OK;
    int why = atomic_load_explicit(&ctl->stop, memory_order_relaxed);
    if (why == 0)
        return BK_OK;
    if (why == BK_CANCELED)
        return bk_err_set(err, BK_CANCELED, "the job was canceled");
    return bk_err_set(err, (bk_rc_t)why, "the job was interrupted; it will be resumed");
}

void bk_ctl_phase(bk_ctl_t *ctl, const char *phase)
{
    if (ctl == NULL)
        return;
    pthread_mutex_lock(&ctl->lock);
    ctl->phase = phase;
    ctl->current[0] = '\0';
    pthread_mutex_unlock(&ctl->lock);
}

void bk_ctl_current(bk_ctl_t *ctl, const char *text)
{
    if (ctl == NULL)
        return;
    pthread_mutex_lock(&ctl->lock);
    bk_printable(ctl->current, sizeof ctl->current, text);
    pthread_mutex_unlock(&ctl->lock);
}

void bk_ctl_note(bk_ctl_t *ctl, const char *fmt, ...)
{
    char raw[NOTE_MAX], line[NOTE_MAX];
    va_list args;
    if (ctl == NULL)
        return;
    va_start(args, fmt);
    int n = vsnprintf(raw, sizeof raw, fmt, args);
    va_end(args);
    bk_printable(line, sizeof line, n >= 0 ? raw : fmt);
    pthread_mutex_lock(&ctl->lock);
    ctl->notes_total++;
    if (ctl->notes_kept < BK_CTL_NOTES) {
        char *copy = bk_strdup(line);
        if (copy != NULL)
            ctl->notes[ctl->notes_kept++] = copy;
    }
    pthread_mutex_unlock(&ctl->lock);
}
