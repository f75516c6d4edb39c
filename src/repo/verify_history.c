/*
 * repo/verify_history.c: whether the transactions of each epoch follow each other, and what a
 * damaged segment costs.  Looks at names; verify.c reads the objects.
 */
#include <string.h>

#include "base/str.h"
#include "repo/history.h"
#include "repo/repo_private.h"
#include "repo/verify_private.h"

static bk_rc_t tell_missing(void *arg, const bk_history_name_t *missing, bk_err_t *err)
{
    char hex[2 * BK_EPOCH_SIZE + 1], object[BK_STORAGE_NAME];
    (void)err;
    bk_hex(hex, missing->epoch, BK_EPOCH_SIZE);
    bk_fmt(object, sizeof object, "wal/%s/%s", missing->database, hex);
    bk_verify_problem(arg, object, "transactions %llu to %llu are missing",
                      (unsigned long long)missing->first, (unsigned long long)missing->last);
    return BK_OK;
}

bk_rc_t bk_verify_history(bk_verify_t *v, bk_err_t *err)
{
    return bk_history_missing(v->repo, NULL, tell_missing, v, v->ctl, err);
}

static bool is_bad(const bk_verify_t *v, const bk_history_item_t *item)
{
    char object[BK_STORAGE_NAME];
    bk_history_object(object, item);
    for (size_t i = 0; i < v->problem_count; i++)
        if (strcmp(v->problems[i].object, object) == 0)
            return true;
    return false;
}

/* Are all of them in sound ones as well?  Before segments are removed that were merged they are. */
static bool is_spare(const bk_verify_t *v, const bk_history_list_t *list,
                     const bk_history_name_t *name)
{
    uint64_t next = name->first;
    for (size_t i = 0; i < list->count && next <= name->last; i++) {
        const bk_history_name_t *other = &list->items[i].name;
        if (strcmp(other->database, name->database) == 0 &&
            memcmp(other->epoch, name->epoch, BK_EPOCH_SIZE) == 0 && other->first <= next &&
            other->last >= next && !is_bad(v, &list->items[i]))
            next = other->last + 1;
    }
    return next > name->last;
}

bk_rc_t bk_verify_spare(bk_verify_t *v, bk_err_t *err)
{
    bk_history_list_t list = {0};
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < v->problem_count && rc == BK_OK; i++) {
        bk_history_name_t name;
        if (!bk_history_parse(v->problems[i].object, &name))
            continue;
        if (list.items == NULL)
            rc = bk_history_list_every(v->repo, v->ctl, &list, err);
        v->problems[i].spare = rc == BK_OK && is_spare(v, &list, &name);
    }
    bk_history_list_free(&list);
    return rc;
}
