/*
 * base/json.h: jansson, with the few habits this project wants: sorted canonical output, strict
 * input, errors that name the member by JSON pointer (RFC 6901).  json_t is not shared between
 * threads.
 */
#ifndef BK_BASE_JSON_H
#define BK_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

/* Append the text: canonical is compact with sorted keys, else members keep their order. */
bk_rc_t bk_json_dump(json_t *value, bool canonical, bk_buf_t *out, bk_err_t *err);
/* Parse exactly one value: no duplicate keys, no trailing bytes, depth limited.  BK_MALFORMED
 * otherwise. */
bk_rc_t bk_json_parse(const void *text, size_t len, json_t **value, bk_err_t *err);

/*
 * A checked walk over one object.  Each bk_want_* marks the member as known and, when it is there
 * and not null, stores it; a wrong type adds {pointer, detail} to problems.  bk_want_done adds one
 * for every member nobody asked for. Strings stay owned by the object.
 */
typedef struct {
    json_t *object;   /* borrowed */
    json_t *problems; /* array, owned until bk_want_done */
    json_t *known;    /* object, owned until bk_want_done */
} bk_want_t;

void bk_want_begin(bk_want_t *want, json_t *object);
bool bk_want_string(bk_want_t *want, const char *name,
                    const char **value); /* true when present and right */
bool bk_want_bool(bk_want_t *want, const char *name, bool *value);
bool bk_want_uint(bk_want_t *want, const char *name, uint64_t min, uint64_t max, uint64_t *value);
bool bk_want_strings(bk_want_t *want, const char *name,
                     json_t **array); /* array of strings, borrowed */
bool bk_want_object(bk_want_t *want, const char *name, json_t **object);
void bk_want_problem(bk_want_t *want, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The problems, owned by the caller, or NULL when there were none. */
json_t *bk_want_done(bk_want_t *want);

/* String value from bytes that may not be UTF-8 (bk_name_escape). */
json_t *bk_json_name(const void *name, size_t len);
/* RFC 3339 with Z, or null for 0.  moment: exactly, so that it can be asked for. */
json_t *bk_json_time(int64_t ns);
json_t *bk_json_moment(int64_t ns);

#endif
