/*
 * engine/compact.c: chooses which segments to merge, and when the merged ones may go.  Writes a
 * file in scratch and to the storage.
 *
 * A run is taken from segments of about one size, so that each transaction is written anew only
 * once for each 32-fold.  The wide segment is published first; what it holds goes after a grace, in
 * which readers that listed before still find what they listed.
 */
#include "engine/compact.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/moments_private.h"

/* Those up to such a size are merged with each other, bytes. */
static const uint64_t tiers[] = {64u << 10, 2u << 20, 64u << 20};

typedef struct {
    bk_repo_t *repo;
    bk_ctl_t *ctl;
    char path[PATH_MAX];
    bk_history_list_t list; /* without what is merged already */
    bool *bad;              /* of each: it cannot be read */
} compact_t;

static bool follows(const compact_t *c, size_t i)
{
    const bk_history_name_t *a = &c->list.items[i - 1].name, *b = &c->list.items[i].name;
    return memcmp(a->epoch, b->epoch, BK_EPOCH_SIZE) == 0 && b->first == a->last + 1;
}

/* The first run of that size; *count: how many of it fit into one, 0: there is none. */
static void choose_of(const compact_t *c, uint64_t limit, size_t *first, size_t *count)
{
    size_t begin = 0, length = 0;
    *count = 0;
    for (size_t i = 0; i <= c->list.count; i++) {
        bool fits = i < c->list.count && !c->bad[i] && c->list.items[i].size <= limit;
        if (fits && length > 0 && follows(c, i)) {
            length++;
            continue;
        }
        if (length >= BK_COMPACT_RUN)
            break;
        begin = i;
        length = fits;
    }
    if (length < BK_COMPACT_RUN)
        return;
    uint64_t total = 0;
    for (*first = begin; *count < length && *count < BK_COMPACT_MOST; ++*count) {
        total += c->list.items[begin + *count].size;
        if (total > BK_COMPACT_CAP)
            break;
    }
}

/* BK_OK and *count less than it was: so many fit.  *bad: the one that cannot be read. */
static bk_rc_t merge(compact_t *c, size_t first, size_t *count, uint64_t *size, size_t *bad,
                     bk_err_t *err)
{
    bk_txlog_merge_t *to = NULL;
    size_t done = 0;
    bk_rc_t rc = bk_txlog_merge_new(c->path, &to, err);
    for (; rc == BK_OK && done < *count; done++) {
        bk_txlog_t *log = NULL;
        *bad = first + done;
        rc = bk_ctl_check(c->ctl, err);
        if (rc == BK_OK)
            rc = bk_moments_open_stored(c->repo, &c->list.items[first + done], c->ctl, &log, err);
        if (rc == BK_OK)
            rc = bk_txlog_merge_add(to, log, err);
        bk_txlog_free(log);
        if (rc == BK_TOO_LARGE && done >= 2) {
            rc = BK_OK;
            bk_err_clear(err);
            break;
        }
    }
    *count = done;
    if (rc == BK_OK)
        rc = bk_txlog_merge_end(to, size, err);
    bk_txlog_merge_free(to);
    return rc;
}

static bk_rc_t publish(compact_t *c, size_t first, size_t count, uint64_t size, bk_err_t *err)
{
    bk_history_name_t name = c->list.items[first].name;
    name.last = c->list.items[first + count - 1].name.last;
    int fd = open(c->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bk_rc_t rc = fd < 0 ? bk_err_sys(err, errno, "open %s", c->path)
                        : bk_history_put(c->repo, &name, fd, size, c->ctl, err);
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Both the file and its sealed copy are on this machine for a while. */
static bool has_room(const bk_engine_t *engine, const compact_t *c, size_t first, size_t count)
{
    uint64_t room = 0, total = 0;
    for (size_t i = 0; i < count; i++)
        total += c->list.items[first + i].size;
    return bk_free_space(engine->scratch_dir, &room, NULL) == BK_OK &&
           room >= engine->set->min_free + 2 * total;
}

/* The next run; one that has something damaged in it ends there. */
static bk_rc_t merge_one(bk_engine_t *engine, compact_t *c, size_t *merged, bk_err_t *err)
{
    for (size_t tier = 0; tier < sizeof tiers / sizeof *tiers;) {
        size_t first, count, bad = 0;
        uint64_t size = 0;
        bk_err_t why = {0};
        choose_of(c, tiers[tier], &first, &count);
        if (count < 2 || !has_room(engine, c, first, count)) {
            tier++;
            continue;
        }
        (void)unlink(c->path);
        bk_rc_t rc = merge(c, first, &count, &size, &bad, &why);
        if (rc == BK_OK)
            rc = publish(c, first, count, size, &why);
        (void)unlink(c->path);
        if (rc == BK_CORRUPT || rc == BK_NOT_FOUND || rc == BK_TOO_LARGE) {
            c->bad[bad] = true;
            bk_ctl_note(c->ctl, "%s", why.text);
            continue;
        }
        *merged = rc == BK_OK ? count : 0;
        if (rc != BK_OK && err != NULL)
            *err = why;
        return rc;
    }
    return BK_OK;
}

/* What a wider one holds; not its twin, which has the same name but for the checksum. */
static bool may_go(const bk_history_list_t *all, size_t i, int64_t grace)
{
    const bk_history_item_t *item = &all->items[i], *wide = &all->items[item->within];
    bool wider = wide->name.first < item->name.first || wide->name.last > item->name.last;
    return item->within != i && wider && wide->mtime != 0 && bk_now() - wide->mtime >= grace;
}

/* It has what its name tells, and every byte of it can be read: others go for its sake. */
static bk_rc_t check_whole(compact_t *c, const bk_history_item_t *item, bk_err_t *err)
{
    char object[BK_STORAGE_NAME];
    bk_txlog_t *log = NULL;
    bk_rc_t rc = bk_moments_open_stored(c->repo, item, c->ctl, &log, err);
    if (rc == BK_OK)
        rc = bk_txlog_narrow(log, item->name.first, item->name.last, err);
    bk_history_object(object, item);
    if (rc == BK_OK)
        rc = bk_history_check(c->repo, object, item->size, c->ctl, err);
    bk_txlog_free(log);
    return rc;
}

/* Can all of a wide one be read from those that it was made from? */
static bool has_originals(compact_t *c, size_t wide)
{
    const bk_history_name_t *name = &c->list.items[wide].name;
    uint64_t next = name->first;
    for (size_t i = wide + 1; i < c->list.count && c->list.items[i].within == wide; i++) {
        const bk_history_item_t *item = &c->list.items[i];
        if (item->name.first <= next && item->name.last >= next &&
            check_whole(c, item, NULL) == BK_OK)
            next = item->name.last + 1;
    }
    return next > name->last;
}

/* It hides what it was made from: while that is there, it is no loss. */
static bk_rc_t drop_damaged(compact_t *c, size_t wide, const bk_err_t *why, bk_err_t *err)
{
    bool spare = has_originals(c, wide);
    bk_ctl_note(c->ctl, "%s: %s", why->text,
                spare ? "it is removed, and what it was merged from is merged again"
                      : "what is left of what it was merged from stays");
    return spare ? bk_history_remove(c->repo, &c->list.items[wide], c->ctl, err) : BK_OK;
}

static bk_rc_t remove_merged(compact_t *c, int64_t grace, bk_err_t *err)
{
    size_t checked = SIZE_MAX;
    bk_rc_t rc = BK_OK, whole = BK_OK;
    for (size_t i = 0; i < c->list.count && rc == BK_OK; i++) {
        bk_err_t why = {0};
        if (!may_go(&c->list, i, grace))
            continue;
        const bk_history_item_t *item = &c->list.items[i];
        rc = bk_ctl_check(c->ctl, err);
        if (rc == BK_OK && checked != item->within) {
            checked = item->within;
            whole = check_whole(c, &c->list.items[checked], &why);
            if (whole == BK_CORRUPT || whole == BK_WRONG_KEY)
                rc = drop_damaged(c, checked, &why, err);
            else if (whole != BK_OK && err != NULL)
                *err = why;
            if (whole != BK_OK && whole != BK_CORRUPT && whole != BK_WRONG_KEY)
                rc = whole;
        }
        if (rc == BK_OK && whole == BK_OK)
            rc = bk_history_remove(c->repo, item, c->ctl, err);
    }
    return rc;
}

bk_rc_t bk_compact(bk_engine_t *engine, bk_repo_t *repo, const char *key, int64_t grace,
                   size_t *merged, bk_ctl_t *ctl, bk_err_t *err)
{
    compact_t c = {.repo = repo, .ctl = ctl};
    bk_history_list_t *list = &c.list;
    *merged = 0;
    if (!bk_fmt(c.path, sizeof c.path, "%s/merged-%s.tx", engine->scratch_dir, key))
        return bk_err_set(err, BK_TOO_LARGE, "%s: the path is too long", engine->scratch_dir);
    bk_rc_t rc = bk_history_list_all(repo, key, ctl, list, err);
    size_t count = 0;
    if (rc == BK_OK)
        rc = remove_merged(&c, grace, err);
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i].within == i)
            list->items[count++] = list->items[i];
    list->count = count;
    c.bad = calloc(count + 1, sizeof *c.bad);
    if (rc == BK_OK && c.bad == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "merge transactions: out of memory");
    if (rc == BK_OK)
        rc = merge_one(engine, &c, merged, err);
    free(c.bad);
    bk_history_list_free(list);
    return rc;
}
