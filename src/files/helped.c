/*
 * files/helped.c: a restore's files through the privileged helper: what one message can carry is
 * collected, always for one directory: comparing, making, metadata, naming.
 *
 * The helper makes the temporaries and passes their descriptors, so the content is written here, by
 * any lane.  Metadata come when all content of a window is in: a file that changed a moment ago
 * would have to be looked at for longer by a conversation that did not make it.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "files/filling.h"

#define LOT_BYTES (512u << 10) /* collected before they are written */
#define LOTS_OPEN 16u          /* directories that are collected for at a time */

typedef struct bk_lot_s {
    size_t count, bytes;
    bk_item_t *items[BK_WIRE_OPS];
    const uint8_t *data[BK_WIRE_OPS];
    size_t len[BK_WIRE_OPS];
    uint8_t room[LOT_BYTES];
} lot_t;

/* --- runs of items in one directory --- */

typedef bool (*want_fn)(const bk_item_t *item);

/* The next few wanted items of one directory, from *at on, which moves on. */
static size_t take(bk_item_t *const *items, size_t count, size_t *at, want_fn wanted,
                   bk_item_t *few[BK_WIRE_OPS])
{
    size_t n = 0;
    for (; *at < count && n < BK_WIRE_OPS; (*at)++) {
        bk_item_t *item = items[*at];
        if (!bk_item_helped(item) || atomic_load(&item->failed) || !wanted(item))
            continue;
        if (n > 0 && item->place != few[0]->place)
            break;
        few[n++] = item;
    }
    return n;
}

static bk_at_t directory_of(const bk_item_t *item)
{
    bk_at_t at;
    (void)bk_at_open(&item->restore->road, item->place->path, false, &at);
    return at;
}

static void fail_with(bk_item_t *item, int errnum, const char *what)
{
    bk_err_t why = {0};
    bk_at_error(&item->restore->road, errnum, what, &why);
    bk_item_fail(item, &why);
}

/* --- metadata --- */

/* Of a few items; those in *shared have further names and keep what they have. */
static bk_rc_t describe(bk_item_t *const *few, size_t count, bool fresh, bool shared[BK_WIRE_OPS],
                        bk_err_t *err)
{
    bk_at_t at = directory_of(few[0]);
    bk_subject_t *subjects = calloc(count, sizeof *subjects);
    if (subjects == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
    for (size_t i = 0; i < count; i++)
        subjects[i] = (bk_subject_t){.name = fresh ? few[i]->temporary : few[i]->name,
                                     .entry = &few[i]->entry,
                                     .fresh = fresh && !few[i]->place->inherits};
    bk_rc_t rc = bk_place_describe(few[0]->restore, &at, subjects, count, err);
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        shared[i] = subjects[i].shared;
        if (subjects[i].rc != BK_OK && (fresh || !shared[i]))
            bk_item_fail(few[i], &subjects[i].why);
    }
    free(subjects);
    return rc;
}

static bool is_written(const bk_item_t *item)
{
    return item->written && !item->filled;
}

bk_rc_t bk_helped_describe(bk_item_t *const *items, size_t count, bk_err_t *err)
{
    bk_item_t *few[BK_WIRE_OPS];
    bool shared[BK_WIRE_OPS];
    bk_rc_t rc = BK_OK;
    for (size_t at = 0, n; rc == BK_OK && (n = take(items, count, &at, is_written, few)) > 0;) {
        rc = describe(few, n, true, shared, err);
        for (size_t i = 0; i < n && rc == BK_OK; i++)
            few[i]->filled = !atomic_load(&few[i]->failed);
    }
    return rc;
}

/* --- is it right already --- */

static bool is_compared(const bk_item_t *item)
{
    return item->compare && (item->source == NULL || item->first) && !item->unchanged &&
           !item->filled;
}

static bk_rc_t hash_few(bk_item_t *const *few, const bk_helper_result_t *results, size_t count,
                        bk_reader_t *reader, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        bk_err_t why = {0};
        /* What cannot be looked at is replaced. */
        if (results[i].error != 0)
            continue;
        rc = bk_ctl_check(few[i]->restore->ctl, err);
        if (rc != BK_OK)
            break;
        rc = results[i].fd < 0
                 ? bk_item_in_use(&why)
                 : bk_item_is_right(few[i], results[i].fd, reader, &few[i]->unchanged, &why);
        rc = bk_item_settle(few[i], rc, &why, err);
    }
    return rc;
}

static bool is_unchanged(const bk_item_t *item)
{
    return item->compare && item->unchanged;
}

/* The metadata of those that are right.  One with names elsewhere is not changed: it is replaced.
 */
static bk_rc_t set_unchanged(bk_item_t *const *few, size_t count, bk_err_t *err)
{
    bk_item_t *right[BK_WIRE_OPS];
    bool shared[BK_WIRE_OPS];
    size_t at = 0, n = take(few, count, &at, is_unchanged, right);
    bk_rc_t rc = n > 0 ? describe(right, n, false, shared, err) : BK_OK;
    for (size_t i = 0; i < n && rc == BK_OK; i++)
        right[i]->unchanged = !shared[i] && !atomic_load(&right[i]->failed);
    return rc;
}

bk_rc_t bk_helped_compare(bk_item_t *const *items, size_t count, bk_reader_t *reader, bk_err_t *err)
{
    bk_item_t *few[BK_WIRE_OPS];
    bk_helper_op_t ops[BK_WIRE_OPS];
    bk_helper_result_t results[BK_WIRE_OPS];
    bk_rc_t rc = BK_OK;
    for (size_t at = 0, n; rc == BK_OK && (n = take(items, count, &at, is_compared, few)) > 0;) {
        bk_at_t dir = directory_of(few[0]);
        for (size_t i = 0; i < n; i++)
            ops[i] = (bk_helper_op_t){
                .call = BK_WIRE_OPEN, .name = few[i]->name, .flags = (uint32_t)O_NOATIME};
        if (bk_at_batch(&dir, ops, n, results) != 0)
            return bk_at_error(dir.road, BK_AT_GONE, "", err);
        for (size_t i = 0; i < n; i++)
            if (results[i].fd >= 0 && !bk_attached_hold(results[i].fd))
                results[i].fd = -1;
        rc = hash_few(few, results, n, reader, err);
        for (size_t i = 0; i < n; i++)
            bk_attached_close(results[i].fd);
        if (rc == BK_OK && !few[0]->restore->options->dry_run)
            rc = set_unchanged(few, n, err);
    }
    return rc;
}

/* --- content --- */

static bk_rc_t fill_one(bk_item_t *item, int fd, const uint8_t *data, size_t len, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = len > 0 ? bk_item_write(item, fd, data, len, 0, &why) : BK_OK;
    rc = bk_item_close(item, fd, rc, &why);
    item->written = rc == BK_OK;
    return bk_item_settle(item, rc, &why, err);
}

/* Make the temporaries of a lot and write them; the lot is empty then, whatever came of it. */
static bk_rc_t work_off(lot_t *lot, bk_err_t *err)
{
    bk_helper_op_t ops[BK_WIRE_OPS];
    bk_helper_result_t results[BK_WIRE_OPS];
    size_t count = lot->count;
    bk_rc_t rc = BK_OK;
    lot->count = lot->bytes = 0;
    if (count == 0)
        return BK_OK;
    bk_at_t at = directory_of(lot->items[0]);
    for (size_t i = 0; i < count; i++) {
        bk_temporary_name(lot->items[i]->restore, lot->items[i]->temporary);
        ops[i] = (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = lot->items[i]->temporary};
    }
    if (bk_at_batch(&at, ops, count, results) != 0)
        return bk_at_error(at.road, BK_AT_GONE, "", err);
    for (size_t i = 0; i < count; i++) {
        bk_item_t *item = lot->items[i];
        if (results[i].error == 0 && results[i].fd >= 0 && rc == BK_OK) {
            rc = fill_one(item, results[i].fd, lot->data[i], lot->len[i], err);
        } else if (results[i].fd >= 0) {
            close(results[i].fd);
        } else {
            item->temporary[0] = '\0';
            fail_with(item, results[i].error, "make a temporary file");
        }
    }
    return rc;
}

/* The lot for that directory, else an empty one, else the one that was begun first. */
static lot_t *take_lot(bk_restore_t *restore, const bk_place_t *place)
{
    lot_t *lot = NULL;
    size_t n, best;
    pthread_mutex_lock(&restore->lock);
    n = best = restore->lot_count;
    for (size_t i = 0; i < n; i++) {
        const lot_t *one = restore->lots[i];
        if (one->count > 0 && one->items[0]->place == place) {
            best = i;
            break;
        }
        if (one->count == 0 && best == n)
            best = i;
    }
    if (best == n && n >= LOTS_OPEN)
        best = 0;
    if (best < n) {
        lot = restore->lots[best];
        memmove(&restore->lots[best], &restore->lots[best + 1],
                (n - best - 1) * sizeof restore->lots[0]);
        restore->lot_count--;
    }
    pthread_mutex_unlock(&restore->lock);
    if (lot == NULL && (lot = malloc(sizeof *lot)) != NULL)
        lot->count = lot->bytes = 0;
    return lot;
}

/* False when there are as many as there can be: the caller works it off then. */
static bool keep_lot(bk_restore_t *restore, lot_t *lot)
{
    pthread_mutex_lock(&restore->lock);
    bool kept = restore->lot_count < sizeof restore->lots / sizeof restore->lots[0];
    if (kept)
        restore->lots[restore->lot_count++] = lot;
    pthread_mutex_unlock(&restore->lock);
    return kept;
}

static void add(lot_t *lot, bk_item_t *item, const uint8_t *data, size_t len)
{
    lot->items[lot->count] = item;
    lot->data[lot->count] = data;
    lot->len[lot->count] = len;
    lot->count++;
}

bk_rc_t bk_helped_write(bk_item_t *item, const uint8_t *data, size_t len, bk_err_t *err)
{
    bk_restore_t *restore = item->restore;
    lot_t *lot = take_lot(restore, item->place);
    bk_rc_t rc = BK_OK;
    if (lot == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
    bool fits = lot->count < BK_WIRE_OPS && len <= LOT_BYTES - lot->bytes &&
                (lot->count == 0 || lot->items[0]->place == item->place);
    if (!fits)
        rc = work_off(lot, err);
    if (rc == BK_OK && len <= LOT_BYTES / 4) {
        uint8_t *copy = lot->room + lot->bytes;
        if (len > 0)
            memcpy(copy, data, len);
        lot->bytes += len;
        add(lot, item, copy, len);
    } else if (rc == BK_OK && (rc = work_off(lot, err)) == BK_OK) {
        /* A large one goes from where it is. */
        add(lot, item, data, len);
        rc = work_off(lot, err);
    }
    if (!keep_lot(restore, lot)) {
        if (rc == BK_OK)
            rc = work_off(lot, err);
        free(lot);
    }
    return rc;
}

bk_rc_t bk_helped_write_rest(bk_restore_t *restore, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < restore->lot_count && rc == BK_OK; i++)
        rc = work_off(restore->lots[i], err);
    return rc;
}

void bk_helped_forget(bk_restore_t *restore)
{
    while (restore->lot_count > 0)
        free(restore->lots[--restore->lot_count]);
}

/* --- names --- */

static bool is_nameless(const bk_item_t *item)
{
    return item->filled && item->temporary[0] != '\0' && item->existing != BK_ASIDE;
}

bk_rc_t bk_helped_publish(bk_item_t *const *items, size_t count, bk_err_t *err)
{
    bk_item_t *few[BK_WIRE_OPS];
    bk_helper_op_t ops[BK_WIRE_OPS];
    bk_helper_result_t results[BK_WIRE_OPS];
    for (size_t at = 0, n; (n = take(items, count, &at, is_nameless, few)) > 0;) {
        bk_at_t dir = directory_of(few[0]);
        bk_rc_t rc = bk_ctl_check(few[0]->restore->ctl, err);
        if (rc != BK_OK)
            return rc;
        for (size_t i = 0; i < n; i++)
            ops[i] = (bk_helper_op_t){
                .call = BK_WIRE_RENAME, .name = few[i]->temporary, .name2 = few[i]->name};
        if (bk_at_batch(&dir, ops, n, results) != 0)
            return bk_at_error(dir.road, BK_AT_GONE, "", err);
        for (size_t i = 0; i < n; i++) {
            if (results[i].error == 0) {
                few[i]->temporary[0] = '\0';
            } else {
                few[i]->filled = false;
                fail_with(few[i], results[i].error, "give it its name");
            }
        }
    }
    return BK_OK;
}

void bk_helped_discard(bk_item_t *const *items, size_t count)
{
    bk_helper_op_t ops[BK_WIRE_OPS];
    bk_helper_result_t results[BK_WIRE_OPS];
    for (size_t i = 0; i < count;) {
        size_t n = 0, first = i;
        for (; i < count && n < BK_WIRE_OPS && items[i]->place == items[first]->place; i++)
            if (bk_item_helped(items[i]) && items[i]->temporary[0] != '\0')
                ops[n++] = (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = items[i]->temporary};
        bk_at_t at = directory_of(items[first]);
        /* Without a helper they stay, for the next restore to remove. */
        if (n > 0 && bk_at_batch(&at, ops, n, results) != 0)
            return;
    }
}
