/*
 * base/clock.h: wall clock for what people read, monotonic clock for what programs measure.  Any
 * thread.
 */
#ifndef BK_BASE_CLOCK_H
#define BK_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BK_MS  1000000LL
#define BK_SEC 1000000000LL

/* Nanoseconds since 1970-01-01T00:00:00Z. */
int64_t bk_now(void);
/* Nanoseconds of CLOCK_MONOTONIC. */
int64_t bk_mono(void);

/* "2025-10-15T14:30:00Z", or exactly: ".250Z", with 6 or 9 digits where it takes them. */
#define BK_TIME_TEXT 32
void bk_time_format(char out[BK_TIME_TEXT], int64_t ns);
void bk_time_format_exact(char out[BK_TIME_TEXT], int64_t ns);
/* RFC 3339, fraction up to 9 digits; without offset it is UTC; 'T' may be a blank.  False when not
 * wholly a time. */
bool bk_time_parse(const char *text, int64_t *ns);
/* "20251015_143000" in UTC: the time part of backup ids. */
void bk_time_stamp(char out[BK_TIME_TEXT], int64_t ns);

/* Sleep; wakes up early on EINTR. */
void bk_sleep_ms(unsigned ms);

/* A condition that is waited for until a time of bk_mono(), mutex held; false: it is over.  May
 * wake up without a reason. */
void bk_cond_init(pthread_cond_t *cond);
bool bk_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t until);

#endif
