/*
 * files/changes.c: the journal of changes: three sets and what they are worth.  Touches memory
 * only.
 */
#include "files/changes.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct bk_changes_s {
    pthread_mutex_t lock;
    bk_dirset_t dirty;  /* since the last take */
    bk_dirset_t taken;  /* by the backup at work */
    bk_dirset_t limits; /* not watched */
    bk_dirset_t again;  /* listed by each backup */
    bool taking;
    bool incomplete, taken_incomplete; /* more may have changed than the set says */
    bool watched;
    int64_t since;          /* bk_mono: when it became so */
    bk_changes_base_t base; /* backup "": none */
    unsigned lost;
    int64_t last;
};

bk_changes_t *bk_changes_new(void)
{
    bk_changes_t *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    pthread_mutex_init(&c->lock, NULL);
    c->incomplete = true;
    return c;
}

void bk_changes_free(bk_changes_t *c)
{
    if (c == NULL)
        return;
    bk_dirset_free(&c->dirty);
    bk_dirset_free(&c->taken);
    bk_dirset_free(&c->limits);
    bk_dirset_free(&c->again);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void bk_changes_tell(bk_changes_t *c, bk_changes_kind_t kind, const char *path)
{
    pthread_mutex_lock(&c->lock);
    switch (kind) {
    case BK_CHANGES_DIRTY:
    case BK_CHANGES_TREE:
        bk_dirset_add(&c->dirty, path, kind == BK_CHANGES_TREE);
        c->last = bk_now();
        break;
    case BK_CHANGES_LIMIT:
        /* From now on nothing is told of it; what happened there before was told. */
        bk_dirset_add(&c->limits, path, true);
        bk_dirset_add(&c->dirty, path, true);
        break;
    case BK_CHANGES_LOST:
        bk_dirset_free(&c->limits); /* they are told again */
        c->incomplete = true;
        c->lost += c->watched;
        c->watched = false;
        break;
    case BK_CHANGES_WATCHED:
        c->watched = true;
        c->since = bk_mono();
    }
    pthread_mutex_unlock(&c->lock);
}

static void give_back(bk_changes_t *c)
{
    if (!c->taking)
        return;
    bk_dirset_merge(&c->dirty, &c->taken);
    bk_dirset_free(&c->taken);
    c->incomplete = c->incomplete || c->taken_incomplete;
    c->taking = false;
}

bool bk_changes_take(bk_changes_t *c, const bk_dirset_t **dirty, bk_changes_base_t *base)
{
    pthread_mutex_lock(&c->lock);
    give_back(c);
    c->taken = c->dirty;
    bk_dirset_init(&c->dirty);
    bk_dirset_merge(&c->taken, &c->limits);
    bk_dirset_merge(&c->taken, &c->again);
    c->taken_incomplete = c->incomplete;
    c->incomplete = !c->watched;
    c->taking = true;
    *dirty = &c->taken;
    *base = c->base;
    bool usable = !c->taken_incomplete && c->base.backup[0] != '\0';
    pthread_mutex_unlock(&c->lock);
    return usable;
}

void bk_changes_done(bk_changes_t *c, const bk_changes_base_t *base, bk_dirset_t *again)
{
    pthread_mutex_lock(&c->lock);
    c->base = *base;
    bk_dirset_free(&c->taken);
    bk_dirset_free(&c->again);
    c->again = *again;
    bk_dirset_init(again);
    c->taking = false;
    pthread_mutex_unlock(&c->lock);
}

void bk_changes_give_back(bk_changes_t *c)
{
    pthread_mutex_lock(&c->lock);
    give_back(c);
    pthread_mutex_unlock(&c->lock);
}

typedef struct {
    const bk_changes_t *changes;
    bk_dirset_t *rest;
} explain_t;

static bool explain_one(void *arg, const char *path, bool tree)
{
    const explain_t *explain = arg;
    const bk_changes_t *c = explain->changes;
    if (!c->incomplete && !bk_dirset_has(&c->dirty, path) && !bk_dirset_has(&c->taken, path))
        bk_dirset_add(explain->rest, path, tree);
    return true;
}

void bk_changes_explain(bk_changes_t *c, const bk_dirset_t *where, bk_dirset_t *rest)
{
    explain_t explain = {c, rest};
    pthread_mutex_lock(&c->lock);
    (void)bk_dirset_each(where, explain_one, &explain);
    pthread_mutex_unlock(&c->lock);
}

void bk_changes_state(bk_changes_t *c, bk_changes_state_t *state)
{
    pthread_mutex_lock(&c->lock);
    *state =
        (bk_changes_state_t){.watched = c->watched,
                             .complete = !c->incomplete && !(c->taking && c->taken_incomplete) &&
                                         c->base.backup[0] != '\0',
                             .limited = !bk_dirset_empty(&c->limits),
                             .dirty = c->dirty.marked + c->taken.marked,
                             .lost = c->lost,
                             .last = c->last};
    pthread_mutex_unlock(&c->lock);
}

/* --- from one process to its successor ---
 *
 *   journal = backup u8-len text | fingerprint u64 | walked i64 | dirs u64 | links u64 | others u64
 *             | complete u8 | dirty | again
 *   set     = n u32 | n x { tree u8 | len u16 | path }
 */

static bool encode_one(void *arg, const char *path, bool tree)
{
    bk_buf_t *out = arg;
    size_t len = strlen(path);
    bk_buf_u8(out, tree);
    bk_buf_u16(out, (uint16_t)len);
    bk_buf_add(out, path, len);
    return true;
}

/* False: a path that cannot be told. */
static bool encode_set(const bk_dirset_t *set, bk_buf_t *out)
{
    bk_buf_u32(out, (uint32_t)set->marked);
    return bk_dirset_each(set, encode_one, out);
}

void bk_changes_encode(bk_changes_t *c, bk_buf_t *out)
{
    pthread_mutex_lock(&c->lock);
    size_t len = strlen(c->base.backup);
    give_back(c);
    bk_dirset_merge(&c->dirty, &c->limits); /* where nothing was told */
    bk_buf_u8(out, (uint8_t)len);
    bk_buf_add(out, c->base.backup, len);
    bk_buf_u64(out, c->base.fingerprint);
    bk_buf_i64(out, c->base.walked);
    bk_buf_u64(out, c->base.dirs);
    bk_buf_u64(out, c->base.links);
    bk_buf_u64(out, c->base.others);
    bk_buf_u8(out, !c->incomplete && c->watched);
    if (!encode_set(&c->dirty, out) || !encode_set(&c->again, out))
        bk_buf_u8(out, 0xff); /* which makes it damaged */
    pthread_mutex_unlock(&c->lock);
}

static bool decode_set(bk_cur_t *cur, bk_dirset_t *set)
{
    uint32_t count = bk_cur_u32(cur);
    for (uint32_t i = 0; i < count && bk_cur_ok(cur); i++) {
        char path[PATH_MAX];
        bool tree = bk_cur_u8(cur) != 0;
        uint16_t len = bk_cur_u16(cur);
        const uint8_t *text = bk_cur_bytes(cur, len);
        if (text == NULL || len >= sizeof path || memchr(text, '\0', len) != NULL)
            return false;
        memcpy(path, text, len);
        path[len] = '\0';
        bk_dirset_add(set, path, tree);
    }
    return bk_cur_ok(cur);
}

bk_rc_t bk_changes_resume(bk_changes_t *c, bk_cur_t *cur, int64_t until, bk_err_t *err)
{
    bk_changes_base_t base = {.backup = ""};
    bk_dirset_t dirty, again;
    bk_dirset_init(&dirty);
    bk_dirset_init(&again);
    uint8_t len = bk_cur_u8(cur);
    const uint8_t *text = bk_cur_bytes(cur, len);
    if (text != NULL && len < sizeof base.backup)
        memcpy(base.backup, text, len);
    base.fingerprint = bk_cur_u64(cur);
    base.walked = bk_cur_i64(cur);
    base.dirs = bk_cur_u64(cur);
    base.links = bk_cur_u64(cur);
    base.others = bk_cur_u64(cur);
    bool complete = bk_cur_u8(cur) == 1;
    bool sound = decode_set(cur, &dirty) && decode_set(cur, &again) && text != NULL &&
                 len < sizeof base.backup;
    pthread_mutex_lock(&c->lock);
    /* Without a gap: this process saw everything from before the other stopped to see. */
    if (sound && complete && c->watched && c->since <= until && c->base.backup[0] == '\0' &&
        !c->taking) {
        bk_dirset_merge(&c->dirty, &dirty);
        bk_dirset_free(&c->again);
        c->again = again;
        bk_dirset_init(&again);
        c->base = base;
        c->incomplete = false;
    }
    pthread_mutex_unlock(&c->lock);
    bk_dirset_free(&dirty);
    bk_dirset_free(&again);
    return sound ? BK_OK
                 : bk_err_set(err, BK_CORRUPT, "the journal of changes in base_dir is damaged");
}
