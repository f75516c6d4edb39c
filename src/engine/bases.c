/*
 * engine/bases.c: looks for backups whose content is what a transaction left behind, and says what
 * may go.  Reads segments; removes those that nothing needs, when told to.
 */
#include "engine/bases.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/moments_private.h"

/* --- backups by content --- */

typedef struct bk_base_s {
    uint64_t digest, page_count;
    size_t item;                /* of the list */
    const bk_snapshot_db_t *db; /* in it */
} base_t;

static int by_digest(const void *a, const void *b)
{
    const base_t *x = a, *y = b;
    if (x->digest != y->digest)
        return x->digest < y->digest ? -1 : 1;
    return x->item > y->item ? -1 : x->item < y->item;
}

static const bk_snapshot_db_t *database_of(const bk_snapshot_t *s, const char *name)
{
    for (size_t i = 0; i < s->db_count; i++)
        if (strcmp(s->dbs[i].name, name) == 0)
            return &s->dbs[i];
    return NULL;
}

bk_rc_t bk_bases_init(bk_bases_t *bases, const bk_snapshot_list_t *list, const char *database,
                      bk_err_t *err)
{
    *bases = (bk_bases_t){.list = list, .items = calloc(list->count + 1, sizeof(base_t))};
    if (bases->items == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", database);
    for (size_t i = 0; i < list->count; i++) {
        const bk_snapshot_db_t *db = database_of(&list->items[i], database);
        if (db != NULL)
            bases->items[bases->count++] = (base_t){db->digest, db->page_count, i, db};
    }
    if (bases->count > 1)
        qsort(bases->items, bases->count, sizeof *bases->items, by_digest);
    return BK_OK;
}

void bk_bases_free(bk_bases_t *bases)
{
    free(bases->items);
    *bases = (bk_bases_t){0};
}

bool bk_bases_find(const bk_bases_t *bases, uint64_t digest, uint64_t page_count,
                   bk_moment_t *moment)
{
    size_t low = 0, high = bases->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (bases->items[middle].digest < digest)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < bases->count && bases->items[low].digest == digest; low++)
        if (page_count == 0 || bases->items[low].page_count == page_count) {
            moment->backup = &bases->list->items[bases->items[low].item];
            moment->from = bases->items[low].db;
            return true;
        }
    return false;
}

/* --- what a transaction left behind, backwards --- */

static bool is_oldest(const bk_moments_t *m, size_t segment)
{
    return segment == 0 || !bk_moments_same_epoch(m, segment - 1, segment);
}

static bk_rc_t missing(const bk_moments_t *m, uint64_t txid, bk_err_t *err)
{
    return bk_err_set(err, BK_NOT_FOUND,
                      "database %s: the segment with transaction %llu is missing", m->database,
                      (unsigned long long)txid);
}

/*
 * From transaction moment->tx back to what a backup holds, or to the oldest transaction that is
 * left of the epoch: what was before that one counts as well, whatever its number.  The numbers of
 * an epoch have no holes, so a segment that is missing shows.
 */
static bk_rc_t look_back(bk_moments_t *m, const bk_bases_t *bases, size_t segment,
                         bk_moment_t *moment, bool *found, bk_err_t *err)
{
    uint64_t want = moment->tx.txid;
    bk_rc_t rc = BK_OK;
    *found = false;
    moment->last = segment;
    for (size_t s = segment + 1; s > 0 && rc == BK_OK; s--) {
        bk_txlog_t *log;
        rc = bk_moments_segment(m, s - 1, &log, err);
        for (size_t i = rc == BK_OK ? bk_txlog_count(log) : 0; i > 0; i--) {
            const bk_tx_t *tx = bk_txlog_tx(log, i - 1);
            if (tx->txid > want)
                continue;
            if (tx->txid < want)
                return missing(m, want, err);
            moment->first = s - 1;
            moment->base = tx->txid;
            *found = bk_bases_find(bases, tx->after, tx->page_count, moment);
            if (*found)
                return BK_OK;
            moment->base = --want;
            *found = i == 1 && is_oldest(m, s - 1) && bk_bases_find(bases, tx->before, 0, moment);
            if (*found)
                return BK_OK;
        }
        if (is_oldest(m, s - 1))
            break;
    }
    return rc;
}

bk_rc_t bk_moments_find_base(bk_moments_t *m, size_t segment, const bk_snapshot_list_t *list,
                             bk_moment_t *moment, bk_err_t *err)
{
    bk_bases_t bases;
    bool found = false;
    bk_rc_t rc = bk_bases_init(&bases, list, m->database, err);
    if (rc == BK_OK)
        rc = look_back(m, &bases, segment, moment, &found, err);
    bk_bases_free(&bases);
    if (rc == BK_OK && !found)
        rc = bk_err_set(err, BK_NOT_FOUND,
                        "database %s: no backup was made between the beginning of the "
                        "capture and transaction %llu: nothing to begin from",
                        m->database, (unsigned long long)moment->tx.txid);
    return rc;
}

/* --- windows --- */

/* The first transaction of a segment whose content a backup has. */
static bk_rc_t look_for_backup(bk_moments_t *m, const bk_bases_t *bases, size_t segment,
                               bk_window_t *w, bk_err_t *err)
{
    bk_txlog_t *log;
    bk_moment_t moment;
    bk_rc_t rc = bk_moments_segment(m, segment, &log, err);
    for (size_t i = 0; rc == BK_OK && i < bk_txlog_count(log) && !w->reachable; i++) {
        const bk_tx_t *tx = bk_txlog_tx(log, i);
        bool is_first = segment == w->first && i == 0;
        w->reachable = bk_bases_find(bases, tx->after, tx->page_count, &moment) ||
                       (is_first && bk_bases_find(bases, tx->before, 0, &moment));
        w->earliest = *tx;
    }
    return rc;
}

/* The oldest backup of the epoch is where its own time says, or a little beside. */
static bk_rc_t find_earliest(bk_moments_t *m, const bk_bases_t *bases, bk_window_t *w,
                             bk_err_t *err)
{
    const bk_snapshot_list_t *list = bases->list;
    bk_rc_t rc = look_for_backup(m, bases, w->first, w, err);
    for (size_t i = 0; i < list->count && rc == BK_OK && !w->reachable; i++) {
        const bk_snapshot_db_t *db = database_of(&list->items[i], m->database);
        size_t at;
        if (db == NULL || db->instant < w->begin.t_lo)
            continue;
        rc = bk_moments_segment_at(m, db->instant, &at, err);
        size_t from = at > w->first + 1 ? at - 1 : w->first + 1;
        for (size_t k = from; rc == BK_OK && k <= at + 1 && k <= w->last && !w->reachable; k++)
            rc = look_for_backup(m, bases, k, w, err);
    }
    return rc;
}

bk_rc_t bk_moments_window(bk_moments_t *m, size_t first, const bk_bases_t *bases, bk_window_t *w,
                          bk_err_t *err)
{
    bk_txlog_t *log;
    *w = (bk_window_t){.first = first, .last = bk_moments_epoch_end(m, first) - 1};
    bk_rc_t rc = bk_moments_segment(m, first, &log, err);
    if (rc != BK_OK)
        return rc;
    w->begin = *bk_txlog_tx(log, 0);
    rc = bk_moments_segment(m, w->last, &log, err);
    if (rc != BK_OK)
        return rc;
    w->end = *bk_txlog_tx(log, bk_txlog_count(log) - 1);
    w->until = w->last + 1 == m->count ? bk_moments_known_until(m, &w->end) : w->end.t_hi;
    return find_earliest(m, bases, w, err);
}

json_t *bk_moments_describe(bk_moments_t *m, const bk_snapshot_list_t *list)
{
    bk_bases_t bases;
    int64_t earliest = 0, latest = 0;
    json_t *gaps = json_array();
    bk_rc_t rc = bk_bases_init(&bases, list, m->database, NULL);
    for (size_t first = 0; rc == BK_OK && first < m->count;) {
        bk_window_t w;
        rc = bk_moments_window(m, first, &bases, &w, NULL);
        if (rc == BK_OK && w.reachable) {
            earliest = earliest == 0 ? w.earliest.t_hi : earliest;
            latest = w.until;
        }
        first = w.last + 1;
    }
    bk_bases_free(&bases);
    if (m->gap[1] != 0)
        json_array_append_new(gaps, json_pack("{so so}", "from", bk_json_moment(m->gap[0]), "to",
                                              bk_json_moment(m->gap[1])));
    if (earliest == 0) {
        json_decref(gaps);
        return NULL;
    }
    return json_pack("{so so so}", "earliest", bk_json_moment(earliest), "latest",
                     bk_json_moment(latest), "gaps", gaps);
}

/* --- what is needed --- */

/* Of segments first..end-1, an epoch, the last transaction that was there at a time; false: none.
 */
static bk_rc_t last_until(bk_moments_t *m, size_t first, size_t end, int64_t time, size_t *segment,
                          bk_tx_t *tx, bool *found, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *found = false;
    for (size_t s = first; s < end && rc == BK_OK; s++) {
        bk_txlog_t *log;
        rc = bk_moments_segment(m, s, &log, err);
        size_t count = rc == BK_OK ? bk_txlog_count(log) : 0;
        for (size_t i = 0; i < count; i++) {
            if (bk_txlog_tx(log, i)->t_hi > time)
                return BK_OK;
            *tx = *bk_txlog_tx(log, i);
            *segment = s;
            *found = true;
        }
    }
    return rc;
}

/* The first transaction behind txid, of segments first..end-1, whose content a backup holds. */
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

/* Nothing of an epoch that no backup knows can be had; but the one that goes on may get one. */
static bk_rc_t keep_epoch(bk_moments_t *m, const bk_bases_t *bases, size_t first, size_t end,
                          int64_t since, bool *backups, bk_err_t *err)
{
    bk_moment_t moment = {.of = m};
    size_t segment = 0;
    bool found = false;
    bk_rc_t rc = last_until(m, first, end, since, &segment, &moment.tx, &found, err);
    uint64_t until = found ? moment.tx.txid : 0;
    if (rc == BK_OK && found)
        rc = look_back(m, bases, segment, &moment, &found, err);
    if (rc == BK_OK && !found)
        rc = look_forward(m, bases, first, end, until, &moment, &found, err);
    if (rc != BK_OK)
        return rc;
    if (found && backups != NULL)
        backups[moment.backup - bases->list->items] = true;
    for (size_t s = first; s < end; s++)
        m->segments[s].needed = !found || m->segments[s].last > moment.base;
    return BK_OK;
}

/* Nothing may go for a backup that is not known to last. */
static void leave_out_provisional(bk_bases_t *bases)
{
    size_t kept = 0;
    for (size_t i = 0; i < bases->count; i++)
        if (!bases->list->items[bases->items[i].item].provisional)
            bases->items[kept++] = bases->items[i];
    bases->count = kept;
}

bk_rc_t bk_moments_keep(bk_moments_t *m, int64_t since, const bk_snapshot_list_t *list,
                        bool *backups, bk_err_t *err)
{
    bk_bases_t bases;
    bk_rc_t rc = bk_bases_init(&bases, list, m->database, err);
    leave_out_provisional(&bases);
    for (size_t first = 0, end; first < m->count && rc == BK_OK; first = end) {
        end = bk_moments_epoch_end(m, first);
        /* One is over when the next one begins. */
        if (end == m->count || m->segments[end].begins >= since)
            rc = keep_epoch(m, &bases, first, end, since, backups, err);
    }
    bk_bases_free(&bases);
    return rc;
}

bk_rc_t bk_moments_keep_since(bk_moments_t *m, int64_t since, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t s = 0; s < m->count && rc == BK_OK; s++) {
        bk_txlog_t *log;
        rc = bk_moments_segment(m, s, &log, err);
        size_t count = rc == BK_OK ? bk_txlog_count(log) : 0;
        m->segments[s].needed = count == 0 || bk_txlog_tx(log, count - 1)->t_hi >= since;
    }
    return rc;
}

bk_rc_t bk_moments_remove(bk_moments_t *m, bool dry_run, uint64_t *count, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t s = 0; s < m->count && rc == BK_OK; s++) {
        if (m->segments[s].needed || m->segments[s].path != NULL)
            continue;
        rc = bk_ctl_check(m->ctl, err);
        if (rc == BK_OK && !dry_run)
            rc = bk_history_remove(m->repo, &m->segments[s].item, m->ctl, err);
        *count += rc == BK_OK;
    }
    return rc;
}
