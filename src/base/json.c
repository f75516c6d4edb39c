/*
 * base/json.c: strict in, canonical out.
 */
#include "base/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"

static int dump_some(const char *text, size_t len, void *arg)
{
    bk_buf_t *out = arg;
    bk_buf_add(out, text, len);
    return bk_buf_ok(out) ? 0 : -1;
}

bk_rc_t bk_json_dump(json_t *value, bool canonical, bk_buf_t *out, bk_err_t *err)
{
    size_t flags =
        JSON_COMPACT | JSON_ENCODE_ANY | (canonical ? JSON_SORT_KEYS : JSON_PRESERVE_ORDER);
    if (value == NULL || json_dump_callback(value, dump_some, out, flags) != 0)
        return bk_err_set(err, BK_NO_MEMORY, "write JSON: out of memory or longer than %zu bytes",
                          out->max);
    return BK_OK;
}

bk_rc_t bk_json_parse(const void *text, size_t len, json_t **value, bk_err_t *err)
{
    json_error_t problem;
    *value = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &problem);
    if (*value == NULL)
        return bk_err_set(err, BK_MALFORMED, "not valid JSON: line %d, column %d: %s", problem.line,
                          problem.column, problem.text);
    return BK_OK;
}

void bk_want_begin(bk_want_t *want, json_t *object)
{
    *want = (bk_want_t){.object = object, .problems = json_array(), .known = json_object()};
}

/*
 * RFC 6901: "~" is "~0", "/" is "~1".  What does not fit is cut at a whole character: jansson takes
 * valid UTF-8 only, and a problem that is dropped would be a request believed.
 */
static void add_problem(bk_want_t *want, const char *name, const char *detail)
{
    char pointer[256] = "#/", text[256], why[512];
    size_t at = 2;
    for (; *name != '\0' && at + 3 < sizeof pointer; name++) {
        if (*name == '~' || *name == '/') {
            pointer[at++] = '~';
            pointer[at++] = *name == '~' ? '0' : '1';
        } else {
            pointer[at++] = *name;
        }
    }
    pointer[at] = '\0';
    bk_printable(text, sizeof text, pointer);
    bk_printable(why, sizeof why, detail);
    json_array_append_new(want->problems, json_pack("{ss ss}", "pointer", text, "detail", why));
}

void bk_want_problem(bk_want_t *want, const char *name, const char *fmt, ...)
{
    char detail[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(detail, sizeof detail, fmt, args);
    va_end(args);
    add_problem(want, name, detail);
}

/* The member when it is there and not null; marks it known. */
static json_t *member(bk_want_t *want, const char *name)
{
    json_object_set_new(want->known, name, json_true());
    json_t *value = json_object_get(want->object, name);
    return json_is_null(value) ? NULL : value;
}

bool bk_want_string(bk_want_t *want, const char *name, const char **value)
{
    json_t *v = member(want, name);
    if (v == NULL)
        return false;
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v)) {
        add_problem(want, name, "must be a string");
        return false;
    }
    *value = json_string_value(v);
    return true;
}

bool bk_want_bool(bk_want_t *want, const char *name, bool *value)
{
    json_t *v = member(want, name);
    if (v == NULL)
        return false;
    if (!json_is_boolean(v)) {
        add_problem(want, name, "must be true or false");
        return false;
    }
    *value = json_is_true(v);
    return true;
}

bool bk_want_uint(bk_want_t *want, const char *name, uint64_t min, uint64_t max, uint64_t *value)
{
    json_t *v = member(want, name);
    if (v == NULL)
        return false;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) < min ||
        (uint64_t)json_integer_value(v) > max) {
        bk_want_problem(want, name, "must be a whole number from %llu to %llu",
                        (unsigned long long)min, (unsigned long long)max);
        return false;
    }
    *value = (uint64_t)json_integer_value(v);
    return true;
}

bool bk_want_strings(bk_want_t *want, const char *name, json_t **array)
{
    json_t *v = member(want, name), *item;
    size_t i;
    if (v == NULL)
        return false;
    bool right = json_is_array(v);
    json_array_foreach(v, i, item)
    {
        if (!json_is_string(item) || strlen(json_string_value(item)) != json_string_length(item))
            right = false;
    }
    if (!right) {
        add_problem(want, name, "must be an array of strings");
        return false;
    }
    *array = v;
    return true;
}

bool bk_want_object(bk_want_t *want, const char *name, json_t **object)
{
    json_t *v = member(want, name);
    if (v == NULL)
        return false;
    if (!json_is_object(v)) {
        add_problem(want, name, "must be an object");
        return false;
    }
    *object = v;
    return true;
}

json_t *bk_want_done(bk_want_t *want)
{
    const char *name;
    json_t *value;
    json_object_foreach(want->object, name, value)
    {
        if (json_object_get(want->known, name) == NULL)
            add_problem(want, name, "is not known here");
    }
    json_t *problems = want->problems;
    json_decref(want->known);
    *want = (bk_want_t){0};
    if (json_array_size(problems) > 0)
        return problems;
    json_decref(problems);
    return NULL;
}

json_t *bk_json_name(const void *name, size_t len)
{
    char small[1024];
    if (len <= sizeof small / 4 - 1) {
        bk_name_escape(small, sizeof small, name, len);
        return json_string(small);
    }
    char *text = malloc(4 * len + 1);
    if (text == NULL)
        return NULL;
    bk_name_escape(text, 4 * len + 1, name, len);
    json_t *value = json_string(text);
    free(text);
    return value;
}

json_t *bk_json_moment(int64_t ns)
{
    char text[BK_TIME_TEXT];
    if (ns == 0)
        return json_null();
    bk_time_format_exact(text, ns);
    return json_string(text);
}

json_t *bk_json_time(int64_t ns)
{
    char text[BK_TIME_TEXT];
    if (ns == 0)
        return json_null();
    bk_time_format(text, ns);
    return json_string(text);
}
