/*
 * engine/moments.c: looks up segments by number and time, and brings a backup forward.  Reads
 * base_dir/wal and the storage; writes only the image that it is asked for.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "engine/moments_private.h"
#include "sqlite/dump.h"
#include "sqlite/hashes.h"
#include "sqlite/replay.h"

/* --- which transaction --- */

static void ask_anew(bk_moments_t *m, bk_moment_t *moment)
{
    *moment = (bk_moment_t){.of = m};
    m->gap[0] = m->gap[1] = (bk_moments_spot_t){0};
    m->absent = 0;
}

static bk_rc_t nothing(const bk_moments_t *m, bk_err_t *err)
{
    return bk_moments_none(m->database, &m->known, err);
}

bk_rc_t bk_moments_none(const char *database, const bk_capture_known_t *known, bk_err_t *err)
{
    char until[BK_TIME_TEXT];
    if (known->until == 0)
        return bk_err_set(err, BK_INVALID,
                          "database %s: no transactions were captured: set \"pitr_window\" in its "
                          "block, or recover a backup by its backup_id",
                          database);
    bk_time_format_exact(until, known->until);
    return bk_err_set(
        err, BK_INVALID,
        "database %s: it is captured, and nothing was committed up to %s: there is no "
        "moment but its backups: recover one by its backup_id",
        database, until);
}

/* The number of the last transaction of the segment that was there at time; count: none. */
static size_t last_until(const bk_txlog_t *log, int64_t time)
{
    size_t count = bk_txlog_count(log), found = count;
    for (size_t i = 0; i < count && bk_txlog_tx(log, i)->t_hi <= time; i++)
        found = i;
    return found;
}

bk_rc_t bk_moments_segment_at(bk_moments_t *m, int64_t time, size_t *at, bk_err_t *err)
{
    size_t low = 0, high = m->count;
    bk_rc_t rc = BK_OK;
    *at = m->count;
    while (low < high && rc == BK_OK) {
        size_t middle = low + (high - low) / 2, sound;
        bk_txlog_t *log;
        rc = bk_moments_next_sound(m, middle, high, &sound, &log, err);
        if (rc == BK_OK && log != NULL && bk_txlog_tx(log, 0)->t_hi <= time) {
            *at = sound;
            low = sound + 1;
        } else {
            high = middle;
        }
    }
    return rc;
}

/* What came behind a transaction. */
typedef struct {
    bool there;  /* one that can be read */
    bool broken; /* what was between is damaged or missing */
    bool apart;  /* nobody knows what was between: that, or a new epoch */
    size_t segment;
    bk_tx_t tx;
} next_t;

/* The last segment of the epoch that goes on: whatever sorts behind it was before, or is lost. */
static bool ends_capture(const bk_moments_t *m, size_t segment)
{
    return m->known.until != 0 && bk_moments_epoch_end(m, segment) == segment + 1 &&
           memcmp(m->known.epoch, m->segments[segment].epoch, BK_EPOCH_SIZE) == 0;
}

/* Behind transaction number at of a segment. */
static bk_rc_t next_of(bk_moments_t *m, size_t segment, size_t at, next_t *next, bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = bk_moments_segment(m, segment, &log, err);
    *next = (next_t){.segment = segment};
    if (rc == BK_OK && at + 1 < bk_txlog_count(log)) {
        next->there = true;
        next->tx = *bk_txlog_tx(log, at + 1);
        return BK_OK;
    }
    if (rc == BK_OK)
        rc = bk_moments_next_sound(m, segment + 1, m->count, &next->segment, &log, err);
    if (rc != BK_OK)
        return rc;
    next->there = log != NULL;
    if (next->there)
        next->tx = *bk_txlog_tx(log, 0);
    next->broken = !ends_capture(m, segment) &&
                   (next->segment > segment + 1 ||
                    (next->there && bk_moments_same_epoch(m, segment, segment + 1) &&
                     !bk_moments_follows(m, segment + 1)));
    next->apart =
        next->there && (next->broken || !bk_moments_same_epoch(m, segment, next->segment));
    return BK_OK;
}

/* The first one of all that can be read. */
static bk_rc_t first_of(bk_moments_t *m, next_t *next, bk_err_t *err)
{
    bk_txlog_t *log;
    *next = (next_t){.there = true, .apart = true};
    bk_rc_t rc = bk_moments_next_sound(m, 0, m->count, &next->segment, &log, err);
    if (rc == BK_OK && log == NULL)
        rc = bk_moments_damaged(m, 0, err);
    if (rc == BK_OK)
        next->tx = *bk_txlog_tx(log, 0);
    return rc;
}

bk_rc_t bk_moments_broken(const bk_moments_t *m, size_t before, bk_err_t *err)
{
    size_t at = before + 1;
    uint64_t first = m->segments[before].last + 1, last;
    if (at < m->count && bk_moments_same_epoch(m, before, at) && !bk_moments_follows(m, at)) {
        last = m->segments[at].first - 1;
        return bk_err_set(err, BK_NOT_FOUND,
                          "database %s: the segment with transactions %llu to %llu is missing",
                          m->database, (unsigned long long)first, (unsigned long long)last);
    }
    return bk_moments_damaged(m, at, err);
}

bk_rc_t bk_moments_damaged(const bk_moments_t *m, size_t at, bk_err_t *err)
{
    const bk_moments_segment_t *s = &m->segments[at];
    return bk_err_set(err, BK_CORRUPT, "database %s: transactions %llu to %llu cannot be read: %s",
                      m->database, (unsigned long long)s->first, (unsigned long long)s->last,
                      s->damage);
}

/* Nobody saw what happened in a gap: from the last look before it. */
static bk_rc_t check_seen(bk_moments_t *m, size_t segment, int64_t time, const bk_moment_t *moment,
                          const next_t *next, bk_err_t *err)
{
    char at[BK_TIME_TEXT];
    const bk_tx_t *tx = &moment->tx;
    bool gap = next->apart || (next->tx.flags & BK_TXLOG_GAP) != 0;
    int64_t seen = !next->apart && next->tx.t_lo > tx->t_hi ? next->tx.t_lo : tx->t_hi;
    if (!gap || time <= seen)
        return BK_OK;
    m->gap[0] = (bk_moments_spot_t){seen, moment->from != NULL ? 0 : tx->txid};
    m->gap[1] = (bk_moments_spot_t){next->tx.t_hi, next->tx.txid};
    if (next->broken) {
        bk_err_t why = {0};
        (void)bk_moments_broken(m, segment, &why);
        return bk_err_set(err, BK_INVALID, "%s", why.text);
    }
    bk_time_format_exact(at, time);
    return bk_err_set(err, BK_INVALID, "database %s: nobody saw what happened at %s", m->database,
                      at);
}

int64_t bk_moments_known_until(const bk_moments_t *m, size_t segment, const bk_tx_t *last)
{
    bool same = memcmp(m->known.epoch, m->segments[segment].epoch, BK_EPOCH_SIZE) == 0;
    return same && m->known.until > last->t_hi ? m->known.until : last->t_hi;
}

/* Behind the last transaction there may be more that nobody captured. */
static bk_rc_t check_covered(const bk_moments_t *m, size_t segment, int64_t time,
                             bk_moment_t *moment, bk_err_t *err)
{
    char at[BK_TIME_TEXT], until[BK_TIME_TEXT];
    int64_t known = bk_moments_known_until(m, segment, &moment->tx);
    moment->unsure = time > known;
    if (!moment->unsure || !m->served)
        return BK_OK;
    bk_time_format_exact(at, time);
    bk_time_format_exact(until, known);
    return bk_err_set(err, BK_INVALID,
                      "database %s: %s is not known: its transactions are captured up to %s "
                      "(transaction %llu); GET …/status says whether it goes on",
                      m->database, at, until, (unsigned long long)moment->tx.txid);
}

/* Nothing behind it can be read, and there was something. */
static bk_rc_t check_end(bk_moments_t *m, size_t segment, int64_t time, const bk_tx_t *tx,
                         bk_err_t *err)
{
    bk_err_t why = {0};
    if (time <= tx->t_hi)
        return BK_OK;
    m->gap[0] = (bk_moments_spot_t){tx->t_hi, tx->txid};
    m->gap[1] = (bk_moments_spot_t){bk_now(), 0};
    (void)bk_moments_broken(m, segment, &why);
    return bk_err_set(err, BK_INVALID, "%s: after them there are only backups", why.text);
}

/* The newest backup of it until then; of those of one time the last. */
static const bk_snapshot_db_t *newest_until(const bk_moments_t *m, int64_t time,
                                            const bk_snapshot_list_t *list,
                                            const bk_snapshot_t **backup)
{
    const bk_snapshot_db_t *newest = NULL;
    for (size_t i = 0; i < list->count; i++) {
        const bk_snapshot_t *s = &list->items[i];
        for (size_t n = 0; n < s->db_count && strcmp(s->set, m->set) == 0; n++) {
            const bk_snapshot_db_t *db = &s->dbs[n];
            if (strcmp(db->name, m->database) == 0 && db->instant <= time &&
                (newest == NULL || db->instant >= newest->instant)) {
                newest = db;
                *backup = s;
            }
        }
    }
    return newest;
}

/*
 * The end (ns) of the epoch before the one that a segment, or the next one to come, begins; 0: it
 * is the first.  *known: there is one or the other, and nothing that is lost between.
 */
static bk_rc_t end_before(bk_moments_t *m, size_t first, int64_t *end, bool *known, bk_err_t *err)
{
    bk_txlog_t *log;
    *end = 0;
    *known = first == 0;
    bool goes_on = first > 0 && first < m->count && bk_moments_same_epoch(m, first - 1, first);
    if (first == 0 || goes_on || ends_capture(m, first - 1))
        return BK_OK;
    bk_rc_t rc = bk_moments_look(m, first - 1, &log, err);
    *known = rc == BK_OK && log != NULL;
    if (*known)
        *end = bk_txlog_tx(log, bk_txlog_count(log) - 1)->t_hi;
    return rc;
}

bk_rc_t bk_moments_stands_from(bk_moments_t *m, size_t first, const bk_tx_t *tx,
                               const bk_snapshot_list_t *list, int64_t *from, bk_err_t *err)
{
    const bk_snapshot_t *backup;
    const bk_snapshot_db_t *db;
    bool known, gap = (tx->flags & BK_TXLOG_GAP) != 0;
    int64_t end, until = gap ? tx->t_lo : tx->t_hi - 1;
    *from = 0;
    bk_rc_t rc = end_before(m, first, &end, &known, err);
    for (; rc == BK_OK && known; until = db->instant - 1) {
        db = newest_until(m, until, list, &backup);
        if (db == NULL || db->instant <= end)
            break;
        if (db->digest == tx->before)
            *from = db->instant;
        else if (db->instant <= tx->t_lo || *from != 0)
            break; /* a younger one is of what the transaction left behind */
    }
    return rc;
}

/*
 * Before the first transaction of an epoch there was the backup that it changed: nothing was
 * committed from the one to the other.  moment->from stays NULL: there is none until time.
 */
static bk_rc_t stand_on(bk_moments_t *m, int64_t time, const bk_snapshot_list_t *list,
                        bk_moment_t *moment, next_t *next, bk_err_t *err)
{
    int64_t begin;
    bk_rc_t rc = bk_moments_stands_from(m, next->segment, &next->tx, list, &begin, err);
    if (rc != BK_OK || begin == 0 || time < begin)
        return rc;
    const bk_snapshot_db_t *from = newest_until(m, time, list, &moment->backup);
    while (from->digest != next->tx.before)
        from = newest_until(m, from->instant - 1, list, &moment->backup);
    moment->from = from;
    moment->tx = (bk_tx_t){.txid = next->tx.txid - 1,
                           .page_count = from->page_count,
                           .t_lo = from->instant,
                           .t_hi = from->instant,
                           .after = from->digest};
    moment->base = moment->tx.txid;
    moment->first = moment->last = next->segment;
    next->apart = false;
    return BK_OK;
}

/*
 * The epoch that goes on has no transaction yet: its capture keeps what it began with, and had seen
 * nothing else at its last look.
 */
static bool not_begun(const bk_moments_t *m, next_t *next)
{
    char path[PATH_MAX];
    bk_hashes_t hashes;
    bk_hashes_state_t state;
    for (size_t s = 0; s < m->count; s++)
        if (memcmp(m->known.epoch, m->segments[s].epoch, BK_EPOCH_SIZE) == 0)
            return false;
    if (m->known.until == 0 ||
        !bk_fmt(path, sizeof path, "%s/" BK_MOMENTS_DIR "/%s/hashes", m->base_dir, m->database) ||
        bk_hashes_load(&hashes, &state, path, NULL) != BK_OK)
        return false;
    bool same =
        memcmp(m->known.epoch, state.epoch, BK_EPOCH_SIZE) == 0 && m->known.txid == state.txid;
    int64_t end = m->known.until + 1;
    *next = (next_t){.there = same, .apart = same, .segment = m->count};
    next->tx = (bk_tx_t){.txid = state.txid + 1, .t_lo = end, .t_hi = end, .before = hashes.digest};
    bk_hashes_free(&hashes);
    return same;
}

/* The same when that transaction is still to come. */
static bk_rc_t stand_still(bk_moments_t *m, int64_t time, const bk_snapshot_list_t *list,
                           bk_moment_t *moment, next_t *next, bk_err_t *err)
{
    next_t coming;
    if (time > m->known.until || !not_begun(m, &coming))
        return BK_OK;
    bk_rc_t rc = stand_on(m, time, list, moment, &coming, err);
    if (moment->from != NULL)
        *next = coming;
    return rc;
}

static bk_rc_t too_early(const bk_moments_t *m, int64_t time, const bk_tx_t *first, bk_err_t *err)
{
    char at[BK_TIME_TEXT], from[BK_TIME_TEXT];
    bk_time_format_exact(at, time);
    bk_time_format_exact(from, first->t_hi);
    return bk_err_set(err, BK_INVALID,
                      "database %s: %s is before the first transaction that is there, of %s: "
                      "recover a backup of that time by its backup_id",
                      m->database, at, from);
}

/* The last transaction until time, and what came behind it; the segment is count: there is none. */
static bk_rc_t around(bk_moments_t *m, int64_t time, size_t *segment, bk_tx_t *tx, next_t *next,
                      bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = bk_moments_segment_at(m, time, segment, err);
    if (rc == BK_OK && *segment == m->count)
        return first_of(m, next, err);
    if (rc == BK_OK)
        rc = bk_moments_segment(m, *segment, &log, err);
    if (rc != BK_OK)
        return rc;
    size_t at = last_until(log, time);
    *tx = *bk_txlog_tx(log, at);
    return next_of(m, *segment, at, next, err);
}

/* Without one it is in no window. */
static bk_rc_t find_base(bk_moments_t *m, size_t segment, const bk_snapshot_list_t *list,
                         bk_moment_t *moment, bk_err_t *err)
{
    bk_rc_t rc = bk_moments_find_base(m, segment, list, moment, err);
    if (rc != BK_OK)
        m->gap[0] = m->gap[1] = (bk_moments_spot_t){moment->tx.t_hi, moment->tx.txid};
    return rc;
}

bk_rc_t bk_moments_at(bk_moments_t *m, int64_t time, const bk_snapshot_list_t *list,
                      bk_moment_t *moment, bk_err_t *err)
{
    size_t segment;
    next_t next;
    ask_anew(m, moment);
    if (m->count == 0)
        return nothing(m, err);
    bk_rc_t rc = around(m, time, &segment, &moment->tx, &next, err);
    if (rc == BK_OK && next.apart)
        rc = stand_on(m, time, list, moment, &next, err);
    else if (rc == BK_OK && !next.there && !next.broken)
        rc = stand_still(m, time, list, moment, &next, err);
    if (rc == BK_OK && segment == m->count && moment->from == NULL)
        return too_early(m, time, &next.tx, err);
    if (rc == BK_OK && next.there && (next.tx.flags & BK_TXLOG_BATCH) != 0 && time > next.tx.t_lo)
        moment->batch = next.tx.t_hi;
    if (rc == BK_OK && next.there)
        rc = check_seen(m, segment, time, moment, &next, err);
    else if (rc == BK_OK && next.broken)
        rc = check_end(m, segment, time, &moment->tx, err);
    else if (rc == BK_OK)
        rc = check_covered(m, segment, time, moment, err);
    if (rc != BK_OK || moment->from != NULL)
        return rc;
    return find_base(m, segment, list, moment, err);
}

/* --- by number --- */

/* The segment of that transaction, from the newest one below end on; m->count: there is none. */
static bk_rc_t segment_of(bk_moments_t *m, size_t end, uint64_t txid, size_t *segment, bk_tx_t *tx,
                          bk_err_t *err)
{
    *segment = m->count;
    for (size_t s = end; s > 0; s--) {
        bk_txlog_t *log;
        if (m->segments[s - 1].first > txid || m->segments[s - 1].last < txid)
            continue;
        bk_rc_t rc = bk_moments_look(m, s - 1, &log, err);
        if (rc == BK_OK && log == NULL)
            rc = bk_moments_damaged(m, s - 1, err);
        if (rc != BK_OK)
            return rc;
        *tx = *bk_txlog_tx(log, (size_t)(txid - m->segments[s - 1].first));
        *segment = s - 1;
        break;
    }
    return BK_OK;
}

static bk_rc_t no_such(bk_moments_t *m, uint64_t txid, bk_err_t *err)
{
    m->absent = txid;
    for (size_t s = 1; s < m->count; s++)
        if (bk_moments_same_epoch(m, s - 1, s) && m->segments[s - 1].last < txid &&
            m->segments[s].first > txid)
            return bk_moments_broken(m, s - 1, err);
    return bk_err_set(err, BK_INVALID, "database %s: there is no transaction %llu", m->database,
                      (unsigned long long)txid);
}

static bk_rc_t ambiguous(const bk_moments_t *m, const bk_tx_t *one, const bk_tx_t *other,
                         bk_err_t *err)
{
    char first[BK_TIME_TEXT], second[BK_TIME_TEXT];
    bk_time_format_exact(first, other->t_hi);
    bk_time_format_exact(second, one->t_hi);
    return bk_err_set(err, BK_INVALID,
                      "database %s: there are two transactions %llu, of %s and of %s: ask for the "
                      "one that is meant by its time",
                      m->database, (unsigned long long)one->txid, first, second);
}

/* The numbers of an epoch go on from those before, unless nothing of these was known any more. */
bk_rc_t bk_moments_number(bk_moments_t *m, uint64_t txid, const bk_snapshot_list_t *list,
                          bk_moment_t *moment, bk_err_t *err)
{
    size_t segment, begin, older;
    bk_tx_t other;
    ask_anew(m, moment);
    if (m->count == 0)
        return nothing(m, err);
    bk_rc_t rc = segment_of(m, m->count, txid, &segment, &moment->tx, err);
    if (rc == BK_OK && segment == m->count)
        return no_such(m, txid, err);
    for (begin = segment; rc == BK_OK && begin > 0 && bk_moments_same_epoch(m, begin - 1, begin);)
        begin--;
    if (rc == BK_OK)
        rc = segment_of(m, begin, txid, &older, &other, err);
    if (rc == BK_OK && older != m->count)
        return ambiguous(m, &moment->tx, &other, err);
    return rc == BK_OK ? find_base(m, segment, list, moment, err) : rc;
}

bk_rc_t bk_moments_since(bk_moments_t *m, const bk_capture_state_t *since,
                         const bk_snapshot_db_t *from, uint64_t txid, bk_moment_t *moment,
                         bk_err_t *err)
{
    size_t segment;
    *moment = (bk_moment_t){.of = m, .base = since->txid, .from = from};
    bk_rc_t rc = segment_of(m, m->count, txid, &segment, &moment->tx, err);
    if (rc != BK_OK)
        return rc;
    if (segment == m->count || txid <= since->txid ||
        memcmp(m->segments[segment].epoch, since->epoch, BK_EPOCH_SIZE) != 0)
        return no_such(m, txid, err);
    moment->first = moment->last = segment;
    while (m->segments[moment->first].first > since->txid + 1 &&
           bk_moments_follows(m, moment->first))
        moment->first--;
    return BK_OK;
}

bk_rc_t bk_moments_placed(bk_moments_t *m, const bk_txlog_place_t *place, int64_t instant,
                          uint64_t *txid, bk_err_t *err)
{
    *txid = 0;
    for (size_t s = m->count; s > 0; s--) {
        bk_txlog_t *log;
        if (memcmp(m->segments[s - 1].epoch, m->known.epoch, BK_EPOCH_SIZE) != 0)
            return BK_OK;
        bk_rc_t rc = bk_moments_segment(m, s - 1, &log, err);
        for (size_t i = rc == BK_OK ? bk_txlog_count(log) : 0; i > 0; i--) {
            const bk_tx_t *tx = bk_txlog_tx(log, i - 1);
            bool found = bk_txlog_same_place(&tx->place, place);
            *txid = found ? tx->txid : 0;
            if (found || tx->t_hi < instant)
                return BK_OK;
        }
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

/* --- the image --- */

static bk_rc_t open_log(void *arg, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    const bk_moment_t *moment = arg;
    return bk_moments_log(moment->of, moment->first + at, log, err);
}

static void close_log(void *arg, size_t at, bk_txlog_t *log)
{
    (void)arg, (void)at;
    bk_txlog_free(log);
}

bk_rc_t bk_moments_past(const bk_moment_t *moment, bk_past_page_fn page, void *arg,
                        bk_past_t **past, bk_err_t *err)
{
    const bk_snapshot_db_t *from = moment->from;
    bk_past_base_t base = {.page = page,
                           .arg = arg,
                           .txid = moment->base,
                           .page_count = from->page_count,
                           .digest = from->digest,
                           .page_size = from->page_size};
    bk_past_segments_t segments = {.open = open_log,
                                   .close = close_log,
                                   .arg = (void *)(uintptr_t)moment,
                                   .count = moment->last - moment->first + 1};
    bk_rc_t rc = bk_past_open(&base, &segments, moment->tx.txid, moment->of->ctl, past, err);
    return rc == BK_OK ? rc : bk_err_wrap(err, "database %s", moment->of->database);
}

static bk_rc_t bring_forward(const bk_moment_t *moment, bk_replay_t *image, bk_err_t *err)
{
    bk_past_t *past = NULL;
    bk_rc_t rc = bk_moments_past(moment, NULL, NULL, &past, err);
    if (rc == BK_OK)
        rc = bk_replay(image, past, err);
    bk_past_free(past);
    return rc;
}

bk_rc_t bk_moments_image(const bk_moment_t *moment, int fd, const char *file, bk_team_t *team,
                         bk_err_t *err)
{
    const bk_snapshot_db_t *from = moment->from;
    bk_replay_t image = {.fd = fd,
                         .path = file,
                         .page_size = from->page_size,
                         .page_count = from->page_count,
                         .digest = from->digest};
    bk_rc_t rc = bk_db_materialise(moment->of->repo, from, fd, file, team, moment->of->ctl, err);
    return rc == BK_OK ? bring_forward(moment, &image, err) : rc;
}
