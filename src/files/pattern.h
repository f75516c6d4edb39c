/*
 * files/pattern.h: which paths.
 *
 * A pattern is matched against the path below the tree's root, in bytes ("a/b/c.wav"):
 *   ?  one byte but '/'      *  any run without '/'      **  any run of whole components, also none
 * [a-z] [!a-z]  a set \x the byte x            a pattern without '/' matches the last component
 * anywhere; with one (also leading) it is anchored at the root; a trailing '/' matches directories
 * only, and where patterns select files it stands for everything below them. "**" at the end wants
 * at least one component: "a/" "**" is what lies below a, not a.
 * A directory that is excluded is not entered.  Patterns are compiled once and immutable; any
 * thread.
 */
#ifndef BK_FILES_PATTERN_H
#define BK_FILES_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

typedef struct bk_pattern_s bk_pattern_t;

/* BK_INVALID with the position of what is wrong.  At most 1 024 bytes. */
bk_rc_t bk_pattern_compile(const char *text, bk_pattern_t **pattern, bk_err_t *err);
void bk_pattern_free(bk_pattern_t *pattern);
/* Time is linear in path length times pattern length, whatever the pattern. */
bool bk_pattern_match(const bk_pattern_t *pattern, const char *path, size_t len, bool directory);
/* True when something below the directory could match: a walk for the pattern has to enter it. */
bool bk_pattern_may_match_below(const bk_pattern_t *pattern, const char *dir, size_t len);

typedef struct {
    bk_pattern_t **items;
    size_t count;
} bk_patterns_t;

bk_rc_t bk_patterns_add(bk_patterns_t *patterns, const char *text, bk_err_t *err);
bool bk_patterns_match(const bk_patterns_t *patterns, const char *path, size_t len, bool directory);
/* True when a pattern for directories (trailing '/') matches: everything below is selected. */
bool bk_patterns_take_tree(const bk_patterns_t *patterns, const char *dir, size_t len);
bool bk_patterns_may_match_below(const bk_patterns_t *patterns, const char *dir, size_t len);
void bk_patterns_free(bk_patterns_t *patterns);

#endif
