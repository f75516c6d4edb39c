/*
 * t/fuzz/pattern.c: a pattern and a path, separated by a NUL.  Compiling never crashes; matching agrees with a plain recursive
 * matcher wherever that one ends in time; what lies below is never denied when it matches.
 */
#include "fuzz.h"

#include "files/pattern.h"

static void seeds(void)
{
    static const struct {
        const char *pattern, *path;
    } pairs[] = {
        {"*.tmp", "x/y/a.tmp"},
        {"a/**/b", "a/x/y/b"},
        {"/cache/", "cache"},
        {"[!a-c]?\\*", "dx*"},
        {"**/x/**/y", "1/x/2/y"},
        {"a*b*c", "aXbXc"},
        {"[]a]", "]"},
        {"**", "a/b"},
        {"a/**", "a"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char text[64];
        size_t len = strlen(pairs[i].pattern) + 1;
        memcpy(text, pairs[i].pattern, len);
        memcpy(text + len, pairs[i].path, strlen(pairs[i].path));
        fuzz_seed(text, len + strlen(pairs[i].path));
    }
}

/* The reference: exponential, so it gives up after some steps. */
typedef struct {
    size_t steps;
} budget_t;

enum { NO, YES, TIRED };

static bool set_has(const char **p, const char *end, unsigned char byte)
{
    const char *at = *p;
    bool negated = at < end && (*at == '!' || *at == '^'), has = false, first = true;
    if (negated)
        at++;
    while (at < end && (first || *at != ']')) {
        first = false;
        if (*at == '\\')
            at++;
        unsigned char low = (unsigned char)*at++, high = low;
        if (at + 1 < end && *at == '-' && at[1] != ']') {
            at++;
            if (*at == '\\')
                at++;
            high = (unsigned char)*at++;
        }
        has = has || (byte >= low && byte <= high);
    }
    *p = at + 1;
    return has != negated;
}

/* One component against one component. */
static int part(const char *p, const char *p_end, const char *s, const char *s_end, budget_t *b)
{
    if (b->steps-- == 0) {
        b->steps = 1;
        return TIRED;
    }
    if (p == p_end)
        return s == s_end ? YES : NO;
    if (*p == '*') {
        int skip = part(p + 1, p_end, s, s_end, b);
        if (skip != NO || s == s_end)
            return skip;
        return part(p, p_end, s + 1, s_end, b);
    }
    if (s == s_end)
        return NO;
    if (*p == '?')
        return part(p + 1, p_end, s + 1, s_end, b);
    if (*p == '[') {
        const char *next = p + 1;
        bool has = set_has(&next, p_end, (unsigned char)*s);
        return has ? part(next, p_end, s + 1, s_end, b) : NO;
    }
    if (*p == '\\')
        p++;
    return *p == *s ? part(p + 1, p_end, s + 1, s_end, b) : NO;
}

static const char *component(const char *p, const char *end)
{
    const char *slash = memchr(p, '/', (size_t)(end - p));
    return slash != NULL ? slash : end;
}

static int whole(const char *p, const char *p_end, const char *s, const char *s_end, budget_t *b)
{
    while (p < p_end && *p == '/')
        p++;
    if (p == p_end)
        return s == s_end ? YES : NO;
    const char *p_next = component(p, p_end), *s_next = component(s, s_end);
    const char *rest = s_next < s_end ? s_next + 1 : s_end;
    if (p_next - p == 2 && memcmp(p, "**", 2) == 0) {
        const char *q = p_next;
        while (q < p_end && *q == '/')
            q++;
        if (q == p_end)
            return s < s_end ? YES : NO;
        int none = whole(p_next, p_end, s, s_end, b);
        if (none != NO || s == s_end)
            return none;
        return whole(p, p_end, rest, s_end, b);
    }
    if (s == s_end)
        return NO;
    int one = part(p, p_next, s, s_next, b);
    return one == YES ? whole(p_next, p_end, rest, s_end, b) : one;
}

static int reference(const char *p, size_t len, const char *path, size_t path_len, bool directory)
{
    budget_t budget = {.steps = 20000};
    const char *end = p + len;
    bool only_dirs = len > 0 && end[-1] == '/';
    while (end > p && end[-1] == '/')
        end--;
    if (only_dirs && !directory)
        return NO;
    if (memchr(p, '/', (size_t)(end - p)) != NULL)
        return whole(p, end, path, path + path_len, &budget);
    const char *slash = memrchr(path, '/', path_len);
    const char *last = slash != NULL ? slash + 1 : path;
    return part(p, end, last, path + path_len, &budget);
}

/* As a walk builds them: components that are not empty. */
static bool path_sound(const char *path, size_t len)
{
    if (len == 0 || len > 200 || path[0] == '/' || path[len - 1] == '/')
        return false;
    for (size_t i = 0; i + 1 < len; i++)
        if (path[i] == '/' && path[i + 1] == '/')
            return false;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = memchr(data, '\0', size);
    if (nul == NULL)
        return 0;
    const char *text = (const char *)data, *path = (const char *)nul + 1;
    size_t len = (size_t)(nul - data), path_len = size - len - 1;
    bk_err_t err = {0};
    bk_pattern_t *pattern = NULL;
    if (bk_pattern_compile(text, &pattern, &err) != BK_OK) {
        FUZZ_CHECK(err.rc == BK_INVALID && err.text[0] != '\0');
        return 0;
    }
    if (path_sound(path, path_len)) {
        for (int directory = 0; directory < 2; directory++) {
            bool matches = bk_pattern_match(pattern, path, path_len, directory != 0);
            int expected = reference(text, len, path, path_len, directory != 0);
            FUZZ_CHECK(expected == TIRED || matches == (expected == YES));
            /* A walk must be able to get there. */
            for (size_t i = 1; matches && i < path_len; i++)
                FUZZ_CHECK(path[i] != '/' || bk_pattern_may_match_below(pattern, path, i));
        }
    }
    bk_pattern_free(pattern);
    return 0;
}
