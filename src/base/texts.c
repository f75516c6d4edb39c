/*
 * base/texts.c: an array that doubles.
 */
#include "base/texts.h"

#include <stdlib.h>
#include <string.h>

#include "base/str.h"

bool bk_texts_add(bk_texts_t *list, const char *text, uint64_t size)
{
    if (list->count == list->cap) {
        size_t cap = list->cap > 0 ? 2 * list->cap : 64;
        bk_text_t *more = realloc(list->items, cap * sizeof *more);
        if (more == NULL)
            return false;
        list->items = more;
        list->cap = cap;
    }
    char *copy = bk_strdup(text);
    if (copy == NULL)
        return false;
    list->items[list->count++] = (bk_text_t){.text = copy, .size = size};
    return true;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(((const bk_text_t *)a)->text, ((const bk_text_t *)b)->text);
}

void bk_texts_sort(bk_texts_t *list)
{
    size_t kept = 0;
    if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, by_text);
    for (size_t i = 0; i < list->count; i++) {
        if (kept > 0 && strcmp(list->items[kept - 1].text, list->items[i].text) == 0)
            free(list->items[i].text);
        else
            list->items[kept++] = list->items[i];
    }
    list->count = kept;
}

bool bk_texts_has(const bk_texts_t *list, const char *text)
{
    bk_text_t wanted = {.text = (char *)(uintptr_t)text};
    return list->count > 0 &&
           bsearch(&wanted, list->items, list->count, sizeof wanted, by_text) != NULL;
}

void bk_texts_cut(bk_texts_t *list, size_t count)
{
    while (list->count > count)
        free(list->items[--list->count].text);
}

void bk_texts_free(bk_texts_t *list)
{
    bk_texts_cut(list, 0);
    free(list->items);
    *list = (bk_texts_t){0};
}
