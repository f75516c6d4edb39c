/*
 * files/compare.c: two trees side by side, directory by directory.  Touches the repository only.
 */
#include "files/compare.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

/* Two directories of one name still to be compared; one side may be missing. */
typedef struct {
    bk_id_t before, after;
    bool has_before, has_after;
    char *path; /* NULL: nobody asks where */
} pair_t;

typedef struct {
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    bk_compared_t *sums;
    bk_dirset_t *where;
    pair_t *items;
    size_t count, cap;
} work_t;

static int order(const bk_entry_t *a, const bk_entry_t *b)
{
    size_t len = a->name_len < b->name_len ? a->name_len : b->name_len;
    int diff = memcmp(a->name, b->name, len);
    return diff != 0 ? diff : (int)a->name_len - (int)b->name_len;
}

static bool push(work_t *work, const pair_t *pair)
{
    if (work->count == work->cap) {
        size_t cap = work->cap > 0 ? 2 * work->cap : 64;
        pair_t *more = realloc(work->items, cap * sizeof *more);
        if (more == NULL)
            return false;
        work->items = more;
        work->cap = cap;
    }
    work->items[work->count++] = *pair;
    return true;
}

/* The child directories of a pair, when there is something to see in them. */
static bool push_child(work_t *work, const pair_t *parent, const bk_entry_t *before,
                       const bk_entry_t *after)
{
    pair_t pair = {.has_before = before != NULL && before->type == BK_ENTRY_DIR,
                   .has_after = after != NULL && after->type == BK_ENTRY_DIR};
    if (pair.has_before)
        pair.before = before->child;
    if (pair.has_after)
        pair.after = after->child;
    if (!pair.has_before && !pair.has_after)
        return true;
    if (pair.has_before && pair.has_after && bk_id_equal(&pair.before, &pair.after))
        return true;
    /* Where the other side has nothing, the directory above is where the change is. */
    if (parent->path != NULL && pair.has_before && pair.has_after) {
        char path[PATH_MAX];
        bk_fmt(path, sizeof path, "%s%s%.*s", parent->path, parent->path[0] != '\0' ? "/" : "",
               (int)after->name_len, (const char *)after->name);
        if ((pair.path = bk_strdup(path)) == NULL)
            return false;
    }
    if (push(work, &pair))
        return true;
    free(pair.path);
    return false;
}

static void count_one(bk_compared_t *sums, const bk_entry_t *entry, int64_t sign)
{
    switch (entry->type) {
    case BK_ENTRY_FILE:
        sums->files += sign;
        sums->bytes += sign * (int64_t)entry->size;
        break;
    case BK_ENTRY_DIR:
        sums->dirs += sign;
        break;
    case BK_ENTRY_LINK:
        sums->links += sign;
        break;
    default:
        sums->others += sign;
    }
}

static void count_files(bk_compared_t *sums, const bk_entry_t *before, const bk_entry_t *after)
{
    bool was = before != NULL && before->type == BK_ENTRY_FILE;
    bool is = after != NULL && after->type == BK_ENTRY_FILE;
    sums->files_new += is && !was;
    sums->files_removed += was && !is;
    if (was && is)
        sums->files_changed += !bk_files_same(before, after);
}

static bool same_metadata(const bk_entry_t *a, const bk_entry_t *b)
{
    return a->type == b->type && a->mode == b->mode && a->uid == b->uid && a->gid == b->gid &&
           (a->flags & BK_ENTRY_ATTRS) == (b->flags & BK_ENTRY_ATTRS) &&
           ((a->flags & BK_ENTRY_ATTRS) == 0 || bk_id_equal(&a->attrs, &b->attrs));
}

static bool same_content(const bk_entry_t *a, const bk_entry_t *b)
{
    if (a->type == BK_ENTRY_DIR)
        return true; /* compared by themselves */
    if (a->mtime != b->mtime || a->size != b->size)
        return false;
    if (a->type == BK_ENTRY_FILE)
        return bk_id_equal(&a->sha256, &b->sha256);
    return a->type != BK_ENTRY_LINK ||
           (a->target_len == b->target_len && memcmp(a->target, b->target, a->target_len) == 0);
}

bool bk_files_same(const bk_entry_t *before, const bk_entry_t *after)
{
    bool trusted = before->ctime != 0 && after->ctime != 0;
    return same_metadata(before, after) && same_content(before, after) &&
           before->inode == after->inode && before->device == after->device &&
           (before->ctime == after->ctime || !trusted) &&
           ((before->flags ^ after->flags) & BK_ENTRY_DAMAGED) == 0;
}

static void note_where(work_t *work, const pair_t *pair, const bk_entry_t *before,
                       const bk_entry_t *after)
{
    bool both = before != NULL && after != NULL;
    if (work->where == NULL || pair->path == NULL || !pair->has_before || !pair->has_after)
        return;
    if (!both || !same_metadata(before, after) || !same_content(before, after))
        bk_dirset_add(work->where, pair->path, false);
}

static bk_rc_t open_side(const work_t *work, bool there, const bk_id_t *id, bk_tree_iter_t **iter,
                         const bk_entry_t **entry, bk_err_t *err)
{
    *entry = NULL;
    if (!there)
        return BK_OK;
    bk_rc_t rc = bk_tree_iter_open(work->repo, id, work->ctl, iter, err);
    return rc == BK_OK ? bk_tree_iter_next(*iter, entry, err) : rc;
}

static bk_rc_t compare_pair(work_t *work, const pair_t *pair, bk_err_t *err)
{
    bk_tree_iter_t *old = NULL, *new = NULL;
    const bk_entry_t *before, *after = NULL;
    bk_rc_t rc = open_side(work, pair->has_before, &pair->before, &old, &before, err);
    if (rc == BK_OK)
        rc = open_side(work, pair->has_after, &pair->after, &new, &after, err);
    while (rc == BK_OK && (before != NULL || after != NULL)) {
        int which = before == NULL ? 1 : after == NULL ? -1 : order(before, after);
        const bk_entry_t *was = which <= 0 ? before : NULL, *is = which >= 0 ? after : NULL;
        if (was != NULL)
            count_one(work->sums, was, -1);
        if (is != NULL)
            count_one(work->sums, is, 1);
        count_files(work->sums, was, is);
        note_where(work, pair, was, is);
        if (!push_child(work, pair, was, is))
            rc = bk_err_set(err, BK_NO_MEMORY, "compare two backups: out of memory");
        if (rc == BK_OK && which <= 0)
            rc = bk_tree_iter_next(old, &before, err);
        if (rc == BK_OK && which >= 0)
            rc = bk_tree_iter_next(new, &after, err);
    }
    bk_tree_iter_close(old);
    bk_tree_iter_close(new);
    return rc;
}

bk_rc_t bk_files_compare(bk_repo_t *repo, const bk_id_t *before, const bk_id_t *after,
                         bk_compared_t *sums, bk_dirset_t *where, bk_ctl_t *ctl, bk_err_t *err)
{
    work_t work = {.repo = repo, .ctl = ctl, .sums = sums, .where = where};
    pair_t first = {.before = *before, .after = *after, .has_before = true, .has_after = true};
    bk_rc_t rc = BK_OK;
    memset(sums, 0, sizeof *sums);
    if (bk_id_equal(before, after))
        return BK_OK;
    first.path = bk_strdup("");
    if (first.path == NULL || !push(&work, &first)) {
        free(first.path);
        return bk_err_set(err, BK_NO_MEMORY, "compare two backups: out of memory");
    }
    while (rc == BK_OK && work.count > 0) {
        pair_t pair = work.items[--work.count];
        rc = compare_pair(&work, &pair, err);
        free(pair.path);
    }
    while (work.count > 0)
        free(work.items[--work.count].path);
    free(work.items);
    return rc;
}
