/*
 * engine/keeping.c: which segments and backups the moments of a window need, and removes the others
 * when told to.  What is damaged stays as long as something sound in its place would: it may be
 * mended from a copy.
 */
#include <string.h>

#include "engine/moments_private.h"

/* Of segments first to end-1, a stretch, the last transaction that was there at a time. */
static bk_rc_t last_until(bk_moments_t *m, size_t first, size_t end, int64_t time, size_t *segment,
                          bk_tx_t *tx, bool *found, bk_err_t *err)
{
    *found = false;
    for (size_t s = first; s < end; s++) {
        bk_txlog_t *log;
        bk_rc_t rc = bk_moments_segment(m, s, &log, err);
        for (size_t i = 0; rc == BK_OK && i < bk_txlog_count(log); i++) {
            if (bk_txlog_tx(log, i)->t_hi > time)
                return BK_OK;
            *tx = *bk_txlog_tx(log, i);
            *segment = s;
            *found = true;
        }
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

/* The first transaction behind txid, of segments first to end-1, whose content a backup holds. */
static bk_rc_t look_forward(bk_moments_t *m, const bk_bases_t *bases, size_t first, size_t end,
                            uint64_t txid, bk_moment_t *moment, bool *found, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *found = false;
    for (size_t s = first; s < end && rc == BK_OK && !*found; s++) {
        bk_txlog_t *log;
        rc = bk_moments_segment(m, s, &log, err);
        for (size_t i = 0; rc == BK_OK && i < bk_txlog_count(log) && !*found; i++) {
            const bk_tx_t *tx = bk_txlog_tx(log, i);
            moment->base = tx->txid - 1;
            *found = s == first && i == 0 && bk_bases_find(bases, tx->before, 0, moment);
            if (*found || tx->txid <= txid)
                continue;
            moment->base = tx->txid;
            *found = bk_bases_find(bases, tx->after, tx->page_count, moment);
        }
    }
    return rc;
}

/* The last transaction of an epoch, and the capture has begun another: no time behind is known. */
static bool ends_history(const bk_moments_t *m, size_t segment, uint64_t txid)
{
    size_t end = bk_moments_epoch_end(m, segment);
    return m->known.until != 0 && m->segments[end - 1].last == txid &&
           memcmp(m->known.epoch, m->segments[segment].epoch, BK_EPOCH_SIZE) != 0;
}

typedef struct {
    bk_moments_t *m;
    const bk_bases_t *bases;
    int64_t since;
    bool *backups; /* NULL: nobody wants to know */
} keep_t;

/*
 * Segments first to end-1, a stretch; alone: nothing is left of the epoch before it.  *done: what
 * is before it is not needed.
 */
static bk_rc_t keep_stretch(const keep_t *k, size_t first, size_t end, bool alone, bool *done,
                            bk_err_t *err)
{
    bk_moments_t *m = k->m;
    bk_moment_t moment = {.of = m};
    size_t segment = 0, begin;
    bool found = false;
    bk_rc_t rc = last_until(m, first, end, k->since, &segment, &moment.tx, &found, err);
    uint64_t until = found ? moment.tx.txid : 0;
    if (rc == BK_OK && found)
        rc = bk_moments_look_back(m, k->bases, segment, &moment, &begin, &found, err);
    *done = found;
    if (rc == BK_OK && !found)
        rc = look_forward(m, k->bases, first, end, until, &moment, &found, err);
    if (rc != BK_OK)
        return rc;
    *done = *done || (alone && found);
    if (found && k->backups != NULL)
        k->backups[moment.backup - k->bases->list->items] = true;
    /* A time at the edge may mean the transaction that the backup is as of. */
    bool passed = until > moment.base || (until == moment.base && ends_history(m, segment, until));
    uint64_t from = passed ? moment.base + 1 : moment.base;
    for (size_t s = first; s < end; s++)
        m->segments[s].needed = !*done || m->segments[s].last >= from;
    return BK_OK;
}

/* Nothing of an epoch that no backup knows can be had; but the one that goes on may get one. */
static bk_rc_t keep_epoch(const keep_t *k, size_t first, size_t end, bk_err_t *err)
{
    bk_moments_t *m = k->m;
    bool done = false, sound = false;
    bk_rc_t rc = BK_OK;
    for (size_t at = end, begin; at > first && rc == BK_OK && !done; at = begin) {
        begin = at - 1;
        rc = bk_moments_sound(m, begin, &sound, err);
        m->segments[begin].needed = true;
        if (rc != BK_OK || !sound)
            continue;
        while (rc == BK_OK && begin > first && bk_moments_follows(m, begin)) {
            rc = bk_moments_sound(m, begin - 1, &sound, err);
            if (rc != BK_OK || !sound)
                break;
            begin--;
        }
        if (rc == BK_OK)
            rc = keep_stretch(k, begin, at, begin == first, &done, err);
    }
    return rc;
}

/* Nothing of it can be read. */
static bool is_lost(const bk_moments_t *m, size_t first, size_t end)
{
    while (first < end && m->segments[first].damage != NULL)
        first++;
    return first == end;
}

/*
 * One is over when the next one begins; that which goes on never is, although it may have begun
 * under a clock that was wrong, and before others.  When one that is lost began nobody can tell: it
 * is no reason for the end of another, and over itself when it is old and another one goes on.
 */
static bool is_over(const bk_moments_t *m, size_t first, size_t end, int64_t since)
{
    bool over = m->known.until != 0;
    if (over && memcmp(m->known.epoch, m->segments[first].epoch, BK_EPOCH_SIZE) == 0)
        return false;
    if (!is_lost(m, first, end)) {
        for (size_t s = end, next; s < m->count; s = next) {
            next = bk_moments_epoch_end(m, s);
            if (!is_lost(m, s, next))
                return m->segments[s].begins < since;
        }
        return false;
    }
    for (size_t s = first; s < end && over; s++)
        over = m->segments[s].item.mtime != 0 && m->segments[s].item.mtime < since;
    return over;
}

bk_rc_t bk_moments_keep(bk_moments_t *m, int64_t since, const bk_snapshot_list_t *list,
                        bool *backups, bk_err_t *err)
{
    bk_bases_t bases;
    keep_t k = {.m = m, .bases = &bases, .since = since, .backups = backups};
    bk_rc_t rc = bk_bases_init(&bases, list, m->set, m->database, err);
    bk_bases_leave_out_provisional(&bases);
    for (size_t first = 0, end; first < m->count && rc == BK_OK; first = end) {
        end = bk_moments_epoch_end(m, first);
        if (!is_over(m, first, end, since))
            rc = keep_epoch(&k, first, end, err);
    }
    bk_bases_free(&bases);
    return rc;
}

/* Not before its last transaction: that of one behind it, or when it was stored. */
static bk_rc_t ended_until(bk_moments_t *m, size_t at, int64_t *until, bk_err_t *err)
{
    size_t s;
    bk_txlog_t *log;
    int64_t stored = m->segments[at].item.mtime;
    bk_rc_t rc = bk_moments_next_sound(m, at, m->count, &s, &log, err);
    if (log != NULL)
        *until = bk_txlog_tx(log, s == at ? bk_txlog_count(log) - 1 : 0)->t_hi;
    else
        *until = stored != 0 ? stored : INT64_MAX;
    return rc;
}

bk_rc_t bk_moments_keep_since(bk_moments_t *m, int64_t since, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t s = 0; s < m->count && rc == BK_OK; s++) {
        int64_t until = 0;
        rc = ended_until(m, s, &until, err);
        m->segments[s].needed = until >= since;
    }
    return rc;
}

/* What it was listed as; not a wider one that it was found in since, which holds others as well. */
static bool is_alone(const bk_moments_segment_t *s)
{
    return s->path == NULL && s->item.name.first == s->first && s->item.name.last == s->last;
}

bk_rc_t bk_moments_remove(bk_moments_t *m, bool dry_run, uint64_t *count, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t s = 0; s < m->count && rc == BK_OK; s++) {
        if (m->segments[s].needed || !is_alone(&m->segments[s]))
            continue;
        rc = bk_ctl_check(m->ctl, err);
        if (rc == BK_OK && !dry_run)
            rc = bk_history_remove(m->repo, &m->segments[s].item, m->ctl, err);
        *count += rc == BK_OK;
    }
    return rc;
}

void bk_moments_note_lost(const bk_moments_t *m, bk_ctl_t *ctl)
{
    for (size_t s = 0; s < m->count; s++) {
        const bk_moments_segment_t *one = &m->segments[s];
        bk_err_t why = {0};
        bool hole = s > 0 && one->needed && m->segments[s - 1].needed &&
                    bk_moments_same_epoch(m, s - 1, s) && !bk_moments_follows(m, s);
        if (hole) {
            (void)bk_moments_broken(m, s - 1, &why);
            bk_ctl_note(ctl, "%s: %s", why.text, BK_MOMENTS_LOST);
        }
        if (one->needed && one->damage != NULL) {
            (void)bk_moments_damaged(m, s, &why);
            bk_ctl_note(ctl, "%s: %s", why.text, BK_MOMENTS_LOST);
        }
    }
}
