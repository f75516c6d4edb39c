/*
 * base/texts.h: a growing list of texts, each with a size: names of objects, of files in a
 * directory.  One owner; the texts are the list's.
 */
#ifndef BK_BASE_TEXTS_H
#define BK_BASE_TEXTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *text;
    uint64_t size; /* what it names has so many bytes; 0 when nobody asks */
} bk_text_t;

typedef struct {
    bk_text_t *items;
    size_t count, cap;
} bk_texts_t; /* zero-initialise */

/* The text is copied.  False: out of memory, the list is what it was. */
bool bk_texts_add(bk_texts_t *list, const char *text, uint64_t size);
/* By bytes; of equal texts one is kept. */
void bk_texts_sort(bk_texts_t *list);
/* In a sorted list. */
bool bk_texts_has(const bk_texts_t *list, const char *text);
/* Forget the items from count on. */
void bk_texts_cut(bk_texts_t *list, size_t count);
void bk_texts_free(bk_texts_t *list);

#endif
