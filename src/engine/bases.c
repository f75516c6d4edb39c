/*
 * engine/bases.c: looks for backups whose content is what a transaction left behind, and says from
 * when to when moments can be had.  Reads segments.
 */
#include "engine/bases.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
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

bk_rc_t bk_bases_init(bk_bases_t *bases, const bk_snapshot_list_t *list, const char *set,
                      const char *database, bk_err_t *err)
{
    *bases = (bk_bases_t){.list = list, .items = calloc(list->count + 1, sizeof(base_t))};
    if (bases->items == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", database);
    for (size_t i = 0; i < list->count; i++) {
        const bk_snapshot_db_t *db = database_of(&list->items[i], database);
        if (db != NULL && strcmp(list->items[i].set, set) == 0)
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

void bk_bases_leave_out_provisional(bk_bases_t *bases)
{
    size_t kept = 0;
    for (size_t i = 0; i < bases->count; i++)
        if (!bases->list->items[bases->items[i].item].provisional)
            bases->items[kept++] = bases->items[i];
    bases->count = kept;
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

/*
 * From transaction moment->tx back to what a backup holds, as far as the numbers have no hole and
 * nothing is damaged; what was before the oldest one that is left counts as well.
 */
bk_rc_t bk_moments_look_back(bk_moments_t *m, const bk_bases_t *bases, size_t segment,
                             bk_moment_t *moment, size_t *begin, bool *found, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *found = false;
    moment->last = *begin = segment;
    for (size_t s = segment + 1; s > 0 && (s == segment + 1 || bk_moments_follows(m, s)); s--) {
        bk_txlog_t *log;
        rc = bk_moments_look(m, s - 1, &log, err);
        if (rc != BK_OK || log == NULL)
            break;
        moment->first = *begin = s - 1;
        for (size_t i = bk_txlog_count(log); i > 0; i--) {
            const bk_tx_t *tx = bk_txlog_tx(log, i - 1);
            if (tx->txid > moment->tx.txid)
                continue;
            moment->base = tx->txid;
            *found = bk_bases_find(bases, tx->after, tx->page_count, moment);
            if (!*found && i == 1) {
                moment->base = tx->txid - 1;
                *found = bk_bases_find(bases, tx->before, 0, moment);
            }
            if (*found)
                return BK_OK;
        }
    }
    return rc;
}

/* begin: of what could be looked at. */
static bk_rc_t nothing_to_begin_from(const bk_moments_t *m, size_t begin, uint64_t txid,
                                     bk_err_t *err)
{
    bk_err_t why = {0};
    if (begin == 0 || !bk_moments_same_epoch(m, begin - 1, begin))
        return bk_err_set(err, BK_NOT_FOUND,
                          "database %s: no backup was made between the beginning of the "
                          "capture and transaction %llu: nothing to begin from; moments can be had "
                          "from the first backup after it on, so make one if there was none",
                          m->database, (unsigned long long)txid);
    bk_rc_t rc = bk_moments_follows(m, begin) ? bk_moments_damaged(m, begin - 1, &why)
                                              : bk_moments_broken(m, begin - 1, &why);
    return bk_err_set(err, rc,
                      "%s; no backup was made between them and transaction %llu: moments from the "
                      "next backup on, and those before them, can be had",
                      why.text, (unsigned long long)txid);
}

bk_rc_t bk_moments_find_base(bk_moments_t *m, size_t segment, const bk_snapshot_list_t *list,
                             bk_moment_t *moment, bk_err_t *err)
{
    bk_bases_t bases;
    size_t begin = segment;
    bool found = false;
    bk_rc_t rc = bk_bases_init(&bases, list, m->set, m->database, err);
    if (rc == BK_OK)
        rc = bk_moments_look_back(m, &bases, segment, moment, &begin, &found, err);
    bk_bases_free(&bases);
    if (rc == BK_OK && !found)
        rc = nothing_to_begin_from(m, begin, moment->tx.txid, err);
    return rc;
}

/* --- windows --- */

#define ASIDE (60 * BK_SEC) /* how far clocks may be apart */

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

/* What was backed up behind this is not of the stretch: what comes next is known. */
static bk_rc_t stretch_over(bk_moments_t *m, const bk_window_t *w, int64_t *over, bk_err_t *err)
{
    size_t s;
    bk_txlog_t *log;
    bk_rc_t rc = bk_moments_next_sound(m, w->last + 1, m->count, &s, &log, err);
    int64_t next = log != NULL ? bk_txlog_tx(log, 0)->t_hi : 0;
    *over = log == NULL ? INT64_MAX : (next > w->until ? next : w->until) + ASIDE;
    return rc;
}

/* The oldest backup of the stretch is where its own time says, or a little beside. */
static bk_rc_t find_earliest(bk_moments_t *m, const bk_bases_t *bases, bk_window_t *w,
                             bk_err_t *err)
{
    const bk_snapshot_list_t *list = bases->list;
    int64_t over = 0;
    bk_rc_t rc = look_for_backup(m, bases, w->first, w, err);
    if (rc == BK_OK && !w->reachable)
        rc = stretch_over(m, w, &over, err);
    for (size_t i = 0; i < list->count && rc == BK_OK && !w->reachable; i++) {
        const bk_snapshot_db_t *db = database_of(&list->items[i], m->database);
        size_t at;
        if (db == NULL || db->instant < w->begin.t_lo || db->instant > over)
            continue;
        rc = bk_moments_segment_at(m, db->instant, &at, err);
        size_t from = at > w->first + 1 ? at - 1 : w->first + 1;
        for (size_t k = from; rc == BK_OK && k <= at + 1 && k <= w->last && !w->reachable; k++)
            rc = look_for_backup(m, bases, k, w, err);
    }
    return rc;
}

/* The last segment of those from first on that can be read, or all cannot, without a hole. */
static bk_rc_t stretch(bk_moments_t *m, size_t first, size_t *last, bool *sound, bk_err_t *err)
{
    bool next;
    bk_rc_t rc = bk_moments_sound(m, first, sound, err);
    for (*last = first; rc == BK_OK && *last + 1 < m->count; ++*last) {
        if (!bk_moments_follows(m, *last + 1))
            break;
        rc = bk_moments_sound(m, *last + 1, &next, err);
        if (next != *sound)
            break;
    }
    return rc;
}

/* A backup that the first transaction changed can be had from its own time on. */
static bk_rc_t stand_before(bk_moments_t *m, const bk_bases_t *bases, bk_window_t *w, bk_err_t *err)
{
    int64_t from;
    bk_rc_t rc = bk_moments_stands_from(m, w->first, &w->begin, bases->list, &from, err);
    if (rc == BK_OK && from != 0)
        w->from = from;
    return rc;
}

bk_rc_t bk_moments_window(bk_moments_t *m, size_t first, const bk_bases_t *bases, bk_window_t *w,
                          bk_err_t *err)
{
    bk_txlog_t *log;
    bool sound = false;
    *w = (bk_window_t){.first = first};
    bk_rc_t rc = stretch(m, first, &w->last, &sound, err);
    w->damaged = rc == BK_OK && !sound;
    w->goes_on = first > 0 && bk_moments_same_epoch(m, first - 1, first);
    w->txids[0] = m->segments[first].first;
    w->txids[1] = m->segments[w->last].last;
    if (rc != BK_OK || w->damaged)
        return rc;
    rc = bk_moments_segment(m, first, &log, err);
    if (rc != BK_OK)
        return rc;
    w->begin = *bk_txlog_tx(log, 0);
    rc = bk_moments_segment(m, w->last, &log, err);
    if (rc != BK_OK)
        return rc;
    bool ends = w->last + 1 == m->count || !bk_moments_same_epoch(m, w->last, w->last + 1);
    w->end = *bk_txlog_tx(log, bk_txlog_count(log) - 1);
    w->until = ends ? bk_moments_known_until(m, w->last, &w->end) : w->end.t_hi;
    rc = find_earliest(m, bases, w, err);
    w->from = w->reachable ? w->earliest.t_hi : w->begin.t_hi;
    return rc == BK_OK && w->reachable ? stand_before(m, bases, w, err) : rc;
}

const char *bk_moments_why(const bk_moments_t *m, size_t at)
{
    return m->segments[at].damage;
}

/* --- what is told with a refusal --- */

/* What can be had around what cannot. */
typedef struct {
    bk_moments_spot_t before, behind;
    uint64_t below, above; /* numbers; 0: none */
} beside_t;

static void look_beside(const bk_moments_t *m, const bk_window_t *w, beside_t *beside)
{
    const bk_moments_spot_t *gap = m->gap;
    bool from_within = w->from <= gap[0].time;
    if (from_within)
        beside->before =
            gap[0].time <= w->until ? gap[0] : (bk_moments_spot_t){w->until, w->end.txid};
    if (beside->behind.time == 0 && from_within && w->until >= gap[1].time)
        beside->behind = gap[1];
    if (beside->behind.time == 0 && !from_within)
        beside->behind =
            (bk_moments_spot_t){w->from, w->from < w->earliest.t_hi ? 0 : w->earliest.txid};
    if (w->end.txid < m->absent && w->end.txid > beside->below)
        beside->below = w->end.txid;
    if (w->earliest.txid > m->absent && (beside->above == 0 || w->earliest.txid < beside->above))
        beside->above = w->earliest.txid;
}

static void name_spot(char out[BK_TIME_TEXT + 40], const bk_moments_spot_t *spot)
{
    char at[BK_TIME_TEXT];
    bk_time_format_exact(at, spot->time);
    if (spot->txid == 0)
        bk_fmt(out, BK_TIME_TEXT + 40, "%s (a backup)", at);
    else
        bk_fmt(out, BK_TIME_TEXT + 40, "%s (transaction %llu)", at, (unsigned long long)spot->txid);
}

static void name_nearest(const bk_moments_t *m, const beside_t *b, bk_err_t *err)
{
    const bk_err_t why = *err;
    char before[BK_TIME_TEXT + 40], behind[BK_TIME_TEXT + 40];
    name_spot(before, &b->before);
    name_spot(behind, &b->behind);
    if (m->gap[1].time != 0 && b->before.time != 0 && b->behind.time != 0)
        (void)bk_err_set(err, why.rc, "%s: the nearest moments are %s and %s", why.text, before,
                         behind);
    else if (m->gap[1].time != 0 && (b->before.time != 0 || b->behind.time != 0))
        (void)bk_err_set(err, why.rc, "%s: the nearest moment is %s", why.text,
                         b->before.time != 0 ? before : behind);
    else if (m->absent != 0 && b->below != 0 && b->above != 0)
        (void)bk_err_set(err, why.rc, "%s: the nearest are %llu and %llu", why.text,
                         (unsigned long long)b->below, (unsigned long long)b->above);
    else if (m->absent != 0 && (b->below != 0 || b->above != 0))
        (void)bk_err_set(err, why.rc, "%s: the %s one is %llu", why.text,
                         b->below != 0 ? "last" : "first",
                         (unsigned long long)(b->below != 0 ? b->below : b->above));
}

static void add_gap(json_t *gaps, int64_t from, int64_t to)
{
    json_array_append_new(
        gaps, json_pack("{so so}", "from", bk_json_moment(from), "to", bk_json_moment(to)));
}

json_t *bk_moments_describe(bk_moments_t *m, const bk_snapshot_list_t *list, bk_err_t *err)
{
    bk_bases_t bases;
    bk_window_t w;
    beside_t beside = {0};
    int64_t earliest = 0, latest = 0;
    bool broken = false, told = m->gap[1].time == 0;
    json_t *gaps = json_array();
    bk_rc_t rc = bk_bases_init(&bases, list, m->set, m->database, NULL);
    for (size_t first = 0; rc == BK_OK && first < m->count; first = w.last + 1) {
        rc = bk_moments_window(m, first, &bases, &w, NULL);
        broken = broken || w.damaged || w.goes_on;
        if (rc != BK_OK || !w.reachable)
            continue;
        look_beside(m, &w, &beside);
        if (broken && latest != 0) {
            add_gap(gaps, latest, w.from);
            told = told || (beside.before.time == latest && beside.behind.time == w.from);
        }
        earliest = earliest == 0 ? w.from : earliest;
        latest = w.until;
        broken = false;
    }
    bk_bases_free(&bases);
    if (!told && beside.before.time != 0)
        add_gap(gaps, beside.before.time, beside.behind.time != 0 ? beside.behind.time : bk_now());
    if (err != NULL)
        name_nearest(m, &beside, err);
    if (earliest == 0) {
        json_decref(gaps);
        return NULL;
    }
    return json_pack("{ss so so so}", "database", m->database, "earliest", bk_json_moment(earliest),
                     "latest", bk_json_moment(latest), "gaps", gaps);
}
