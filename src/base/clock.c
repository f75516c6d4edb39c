/*
 * base/clock.c: RFC 3339 in and out, in UTC only: no time zone data, no locale, no shared state.
 */
#include "base/clock.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t bk_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * BK_SEC + ts.tv_nsec;
}

int64_t bk_mono(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * BK_SEC + ts.tv_nsec;
}

static void split(int64_t ns, struct tm *tm, int *ms)
{
    time_t seconds = (time_t)(ns / BK_SEC);
    int64_t rest = ns % BK_SEC;
    if (rest < 0) {
        seconds--;
        rest += BK_SEC;
    }
    gmtime_r(&seconds, tm);
    *ms = (int)(rest / BK_MS);
}

void bk_time_format(char out[BK_TIME_TEXT], int64_t ns)
{
    struct tm tm;
    int ms;
    split(ns, &tm, &ms);
    strftime(out, BK_TIME_TEXT, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

void bk_time_format_exact(char out[BK_TIME_TEXT], int64_t ns)
{
    struct tm tm;
    int ms;
    split(ns, &tm, &ms);
    long part = (long)(ns % BK_SEC + (ns % BK_SEC < 0 ? BK_SEC : 0));
    size_t len = strftime(out, BK_TIME_TEXT, "%Y-%m-%dT%H:%M:%S", &tm);
    if (part % 1000 != 0)
        snprintf(out + len, BK_TIME_TEXT - len, ".%09ldZ", part);
    else if (part % 1000000 != 0)
        snprintf(out + len, BK_TIME_TEXT - len, ".%06ldZ", part / 1000);
    else
        snprintf(out + len, BK_TIME_TEXT - len, ".%03ldZ", part / 1000000);
}

void bk_time_stamp(char out[BK_TIME_TEXT], int64_t ns)
{
    struct tm tm;
    int ms;
    split(ns, &tm, &ms);
    strftime(out, BK_TIME_TEXT, "%Y%m%d_%H%M%S", &tm);
}

/* Exactly n digits. */
static bool digits(const char **text, int n, int *value)
{
    *value = 0;
    for (int i = 0; i < n; i++, (*text)++) {
        if (!isdigit((unsigned char)**text))
            return false;
        *value = *value * 10 + (**text - '0');
    }
    return true;
}

static bool one_of(const char **text, const char *set)
{
    if (**text == '\0' || strchr(set, **text) == NULL)
        return false;
    (*text)++;
    return true;
}

static int days_in_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && leap);
}

static bool fraction(const char **text, int64_t *ns)
{
    int64_t unit = BK_SEC / 10;
    *ns = 0;
    if (**text != '.')
        return true;
    (*text)++;
    if (!isdigit((unsigned char)**text))
        return false;
    for (; isdigit((unsigned char)**text); (*text)++, unit /= 10)
        *ns += (**text - '0') * unit;
    return true;
}

static bool offset(const char **text, int *seconds)
{
    int hours, minutes;
    *seconds = 0;
    if (**text == '\0')
        return true;
    if (one_of(text, "Zz"))
        return true;
    int sign = **text == '-' ? -1 : 1;
    if (!one_of(text, "+-") || !digits(text, 2, &hours) || !one_of(text, ":") ||
        !digits(text, 2, &minutes) || hours > 23 || minutes > 59)
        return false;
    *seconds = sign * (hours * 3600 + minutes * 60);
    return true;
}

bool bk_time_parse(const char *text, int64_t *ns)
{
    int year, month, day, hour, minute, second, shift;
    int64_t part;
    if (!digits(&text, 4, &year) || !one_of(&text, "-") || !digits(&text, 2, &month) ||
        !one_of(&text, "-") || !digits(&text, 2, &day) || !one_of(&text, "Tt ") ||
        !digits(&text, 2, &hour) || !one_of(&text, ":") || !digits(&text, 2, &minute) ||
        !one_of(&text, ":") || !digits(&text, 2, &second) || !fraction(&text, &part) ||
        !offset(&text, &shift) || *text != '\0')
        return false;
    if (year < 1970 || year > 2261 || month < 1 || month > 12 || day < 1 ||
        day > days_in_month(year, month) || hour > 23 || minute > 59 || second > 60)
        return false;
    struct tm tm = {.tm_year = year - 1900,
                    .tm_mon = month - 1,
                    .tm_mday = day,
                    .tm_hour = hour,
                    .tm_min = minute,
                    .tm_sec = second};
    *ns = ((int64_t)timegm(&tm) - shift) * BK_SEC + part;
    return true;
}

void bk_sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L};
    nanosleep(&ts, NULL);
}

void bk_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

bool bk_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t until)
{
    struct timespec ts = {.tv_sec = until / BK_SEC, .tv_nsec = until % BK_SEC};
    return pthread_cond_timedwait(cond, mutex, &ts) == 0;
}
