/*
 * files/pattern.c: compiling and matching path patterns (pattern.h has the language).
 *
 * A pattern is a list of components, each a list of tokens.  Both levels are matched with one place
 * to go back to, the last star: the earliest match of what lies between two stars is never worse
 * than a later one.  Hence each token meets each byte at most once and no pattern can make matching
 * explode.  Touches nothing but memory.
 */
#include "files/pattern.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PATTERN_MAX 1024u

enum { BYTE, ANY, STAR, SET };

typedef struct {
    uint8_t kind;
    uint8_t byte; /* BYTE */
    uint16_t set; /* SET: number of the set */
} token_t;

typedef struct {
    uint32_t bits[8];
} set_t;

typedef struct {
    uint16_t first, count; /* tokens */
    bool any_depth;        /* "**": any run of components */
} part_t;

struct bk_pattern_s {
    bool anchored;  /* matched from the root, not against the last component alone */
    bool directory; /* matches directories only */
    uint16_t part_count, token_count, set_count;
    part_t *parts;
    token_t *tokens;
    set_t *sets;
};

/* --- compiling --- */

typedef struct {
    const char *text;
    size_t at, len;
    bk_pattern_t *pattern;
    bk_err_t *err;
} parser_t;

static bk_rc_t refuse(const parser_t *p, size_t at, const char *why)
{
    return bk_err_set(p->err, BK_INVALID, "pattern \"%s\": %s at position %zu", p->text, why,
                      at + 1);
}

static void add_token(bk_pattern_t *pattern, uint8_t kind, uint8_t byte, uint16_t set)
{
    pattern->tokens[pattern->token_count++] = (token_t){.kind = kind, .byte = byte, .set = set};
}

/* One byte of a set, with its backslash resolved. */
static bk_rc_t set_byte(parser_t *p, size_t start, uint8_t *byte)
{
    if (p->text[p->at] == '\\')
        p->at++;
    if (p->at >= p->len || p->text[p->at] == '/')
        return refuse(p, start, "'[' without ']'");
    *byte = (uint8_t)p->text[p->at++];
    return BK_OK;
}

/* Behind '['.  A ']' that comes first is a member. */
static bk_rc_t parse_set(parser_t *p)
{
    bk_pattern_t *pattern = p->pattern;
    size_t start = p->at - 1;
    set_t *set = &pattern->sets[pattern->set_count];
    bool negated = p->at < p->len && (p->text[p->at] == '!' || p->text[p->at] == '^');
    if (negated)
        p->at++;
    for (bool first = true; first || (p->at < p->len && p->text[p->at] != ']'); first = false) {
        uint8_t low, high;
        size_t from = p->at;
        bk_rc_t rc = set_byte(p, start, &low);
        if (rc != BK_OK)
            return rc;
        high = low;
        if (p->at + 1 < p->len && p->text[p->at] == '-' && p->text[p->at + 1] != ']') {
            p->at++;
            if ((rc = set_byte(p, start, &high)) != BK_OK)
                return rc;
        }
        if (high < low)
            return refuse(p, from, "a range that runs backwards");
        for (unsigned byte = low; byte <= high; byte++)
            set->bits[byte / 32] |= 1u << (byte % 32);
    }
    if (p->at >= p->len)
        return refuse(p, start, "'[' without ']'");
    p->at++;
    for (size_t i = 0; negated && i < 8; i++)
        set->bits[i] = ~set->bits[i];
    add_token(pattern, SET, 0, pattern->set_count++);
    return BK_OK;
}

/* One component, up to '/' or the end. */
static bk_rc_t parse_part(parser_t *p)
{
    bk_pattern_t *pattern = p->pattern;
    part_t *part = &pattern->parts[pattern->part_count];
    size_t start = p->at;
    bk_rc_t rc = BK_OK;
    part->first = pattern->token_count;
    while (p->at < p->len && p->text[p->at] != '/' && rc == BK_OK) {
        char c = p->text[p->at++];
        if (c == '*') {
            /* Stars in a row say no more than one. */
            if (pattern->token_count == part->first ||
                pattern->tokens[pattern->token_count - 1].kind != STAR)
                add_token(pattern, STAR, 0, 0);
        } else if (c == '?') {
            add_token(pattern, ANY, 0, 0);
        } else if (c == '[') {
            rc = parse_set(p);
        } else if (c == '\\' && (p->at == p->len || p->text[p->at] == '/')) {
            rc = refuse(p, p->at - 1, "a backslash with nothing to quote");
        } else {
            add_token(pattern, BYTE, (uint8_t)(c == '\\' ? p->text[p->at++] : c), 0);
        }
    }
    if (rc != BK_OK)
        return rc;
    size_t len = p->at - start;
    const char *text = p->text + start;
    if ((len == 1 && text[0] == '.') || (len == 2 && memcmp(text, "..", 2) == 0))
        return refuse(p, start, "\".\" and \"..\" never match");
    part->count = (uint16_t)(pattern->token_count - part->first);
    part->any_depth = len == 2 && memcmp(text, "**", 2) == 0;
    /* One "**" behind another adds nothing. */
    if (!(part->any_depth && pattern->part_count > 0 && part[-1].any_depth))
        pattern->part_count++;
    return BK_OK;
}

bk_rc_t bk_pattern_compile(const char *text, bk_pattern_t **result, bk_err_t *err)
{
    parser_t p = {.text = text, .len = strnlen(text, PATTERN_MAX + 1), .err = err};
    if (p.len == 0)
        return bk_err_set(err, BK_INVALID, "a pattern is empty; \"*\" matches everything");
    if (p.len > PATTERN_MAX)
        return bk_err_set(err, BK_INVALID, "pattern \"%.40s…\": longer than %u bytes", text,
                          PATTERN_MAX);
    bk_pattern_t *pattern = p.pattern = calloc(1, sizeof *pattern);
    if (pattern == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "compile a pattern: out of memory");
    pattern->tokens = calloc(p.len, sizeof *pattern->tokens);
    pattern->parts = calloc(p.len + 1, sizeof *pattern->parts);
    pattern->sets = calloc(p.len, sizeof *pattern->sets);
    bk_rc_t rc = BK_OK;
    if (pattern->tokens == NULL || pattern->parts == NULL || pattern->sets == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "compile a pattern: out of memory");
    while (p.at < p.len && rc == BK_OK) {
        if (p.text[p.at] != '/') {
            rc = parse_part(&p);
        } else {
            p.at++;
            while (p.at < p.len && p.text[p.at] == '/')
                p.at++;
            pattern->directory = p.at == p.len;
            if (p.at < p.len || pattern->part_count == 0)
                pattern->anchored = true;
        }
    }
    if (rc == BK_OK && pattern->part_count == 0)
        rc = refuse(&p, 0, "nothing but '/'");
    if (rc != BK_OK)
        bk_pattern_free(pattern);
    else
        *result = pattern;
    return rc;
}

void bk_pattern_free(bk_pattern_t *pattern)
{
    if (pattern == NULL)
        return;
    free(pattern->tokens);
    free(pattern->parts);
    free(pattern->sets);
    free(pattern);
}

/* --- matching --- */

static bool token_takes(const bk_pattern_t *pattern, const token_t *token, uint8_t byte)
{
    switch (token->kind) {
    case BYTE:
        return token->byte == byte;
    case ANY:
        return true;
    default:
        return (pattern->sets[token->set].bits[byte / 32] >> (byte % 32)) & 1;
    }
}

/* A component of the pattern against a component of the path. */
static bool part_matches(const bk_pattern_t *pattern, const part_t *part, const char *name,
                         size_t len)
{
    const token_t *tokens = pattern->tokens + part->first;
    size_t t = 0, n = 0, star = SIZE_MAX, star_n = 0;
    while (n < len) {
        if (t < part->count && tokens[t].kind == STAR) {
            star = t++;
            star_n = n;
        } else if (t < part->count && token_takes(pattern, &tokens[t], (uint8_t)name[n])) {
            t++;
            n++;
        } else if (star != SIZE_MAX) {
            t = star + 1;
            n = ++star_n;
        } else {
            return false;
        }
    }
    while (t < part->count && tokens[t].kind == STAR)
        t++;
    return t == part->count;
}

static size_t component_end(const char *path, size_t from, size_t len)
{
    const char *slash = memchr(path + from, '/', len - from);
    return slash != NULL ? (size_t)(slash - path) : len;
}

/* All components of the path.  A "**" at the end wants at least one. */
static bool match_anchored(const bk_pattern_t *pattern, const char *path, size_t len)
{
    size_t part = 0, at = 0, star = SIZE_MAX, star_at = 0;
    while (at < len) {
        size_t end = component_end(path, at, len);
        size_t next = end < len ? end + 1 : len;
        if (part < pattern->part_count && pattern->parts[part].any_depth) {
            if (part + 1 == pattern->part_count)
                return true;
            star = part++;
            star_at = at;
        } else if (part < pattern->part_count &&
                   part_matches(pattern, &pattern->parts[part], path + at, end - at)) {
            part++;
            at = next;
        } else if (star != SIZE_MAX) {
            end = component_end(path, star_at, len);
            star_at = end < len ? end + 1 : len;
            part = star + 1;
            at = star_at;
        } else {
            return false;
        }
    }
    return part == pattern->part_count;
}

bool bk_pattern_match(const bk_pattern_t *pattern, const char *path, size_t len, bool directory)
{
    if (len == 0 || (pattern->directory && !directory))
        return false;
    if (pattern->anchored)
        return match_anchored(pattern, path, len);
    const char *slash = memrchr(path, '/', len);
    size_t start = slash != NULL ? (size_t)(slash - path) + 1 : 0;
    return part_matches(pattern, &pattern->parts[0], path + start, len - start);
}

bool bk_pattern_may_match_below(const bk_pattern_t *pattern, const char *dir, size_t len)
{
    size_t part = 0;
    if (!pattern->anchored || len == 0)
        return true;
    for (size_t at = 0; at < len; part++) {
        size_t end = component_end(dir, at, len);
        if (part == pattern->part_count)
            return false;
        if (pattern->parts[part].any_depth)
            return true;
        if (!part_matches(pattern, &pattern->parts[part], dir + at, end - at))
            return false;
        at = end < len ? end + 1 : len;
    }
    return part < pattern->part_count;
}

/* --- lists --- */

bk_rc_t bk_patterns_add(bk_patterns_t *patterns, const char *text, bk_err_t *err)
{
    bk_pattern_t *pattern = NULL;
    bk_rc_t rc = bk_pattern_compile(text, &pattern, err);
    if (rc != BK_OK)
        return rc;
    bk_pattern_t **more = realloc(patterns->items, (patterns->count + 1) * sizeof *more);
    if (more == NULL) {
        bk_pattern_free(pattern);
        return bk_err_set(err, BK_NO_MEMORY, "add a pattern: out of memory");
    }
    more[patterns->count++] = pattern;
    patterns->items = more;
    return BK_OK;
}

bool bk_patterns_match(const bk_patterns_t *patterns, const char *path, size_t len, bool directory)
{
    for (size_t i = 0; i < patterns->count; i++)
        if (bk_pattern_match(patterns->items[i], path, len, directory))
            return true;
    return false;
}

bool bk_patterns_take_tree(const bk_patterns_t *patterns, const char *path, size_t len)
{
    for (size_t i = 0; i < patterns->count; i++)
        if (patterns->items[i]->directory && bk_pattern_match(patterns->items[i], path, len, true))
            return true;
    return false;
}

bool bk_patterns_may_match_below(const bk_patterns_t *patterns, const char *dir, size_t len)
{
    for (size_t i = 0; i < patterns->count; i++)
        if (bk_pattern_may_match_below(patterns->items[i], dir, len))
            return true;
    return false;
}

void bk_patterns_free(bk_patterns_t *patterns)
{
    for (size_t i = 0; i < patterns->count; i++)
        bk_pattern_free(patterns->items[i]);
    free(patterns->items);
    *patterns = (bk_patterns_t){0};
}
