/*
 * engine/moments.c: looks up segments by epoch, number and time, and brings a backup forward.
 * Reads base_dir/wal and the storage; writes only the image that it is asked for.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "engine/covered.h"
#include "engine/moments_private.h"
#include "sqlite/dump.h"
#include "sqlite/replay.h"

#define NAME_LEN (2 * BK_EPOCH_SIZE + 1 + 20 + 3)

/* --- the list --- */

static bk_rc_t add(bk_moments_t *m, const bk_moments_segment_t *segment, bk_err_t *err)
{
    if (m->count == m->room) {
        size_t room = m->room * 2 + 64;
        bk_moments_segment_t *more = realloc(m->segments, room * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", m->database);
        m->segments = more;
        m->room = room;
    }
    m->segments[m->count++] = *segment;
    return BK_OK;
}

/* Open ones may be empty, and then there is nothing to look up in them. */
static bk_rc_t last_of(const char *path, uint64_t *last, bool *empty, bk_err_t *err)
{
    bk_txlog_t *log = NULL;
    bk_rc_t rc = bk_txlog_open_file(path, &log, err);
    size_t count = rc == BK_OK ? bk_txlog_count(log) : 0;
    *empty = count == 0;
    if (count > 0)
        *last = bk_txlog_tx(log, count - 1)->txid;
    bk_txlog_free(log);
    return rc;
}

static bk_rc_t list_local(bk_moments_t *m, const char *base_dir, bk_err_t *err)
{
    char dir[PATH_MAX], path[PATH_MAX];
    bk_rc_t rc = BK_OK;
    bk_fmt(dir, sizeof dir, "%s/" BK_MOMENTS_DIR "/%s", base_dir, m->database);
    DIR *stream = opendir(dir);
    if (stream == NULL)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "open %s", dir);
    for (const struct dirent *entry; rc == BK_OK && (entry = readdir(stream)) != NULL;) {
        bk_moments_segment_t segment = {0};
        const char *name = entry->d_name;
        if (strlen(name) != NAME_LEN || strcmp(name + NAME_LEN - 3, ".tx") != 0 ||
            !bk_unhex(segment.epoch, BK_EPOCH_SIZE, name, 2 * (size_t)BK_EPOCH_SIZE))
            continue;
        segment.first = strtoull(name + 2 * (size_t)BK_EPOCH_SIZE + 1, NULL, 10);
        bool empty = false;
        bk_fmt(path, sizeof path, "%s/%s", dir, name);
        rc = last_of(path, &segment.last, &empty, err);
        /* One that is gone was shipped just now. */
        if (rc == BK_NOT_FOUND || (rc == BK_OK && empty)) {
            rc = BK_OK;
            continue;
        }
        if (rc != BK_OK)
            break;
        segment.path = bk_strdup(path);
        rc = segment.path != NULL ? add(m, &segment, err)
                                  : bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
        if (rc != BK_OK)
            free(segment.path);
    }
    closedir(stream);
    return rc;
}

static bool is_local(const bk_moments_t *m, const bk_moments_segment_t *segment)
{
    for (size_t i = 0; i < m->count && m->segments[i].path != NULL; i++)
        if (m->segments[i].first == segment->first &&
            memcmp(m->segments[i].epoch, segment->epoch, BK_EPOCH_SIZE) == 0)
            return true;
    return false;
}

static bk_rc_t list_stored(bk_moments_t *m, bk_err_t *err)
{
    bk_history_list_t list;
    bk_rc_t rc = bk_history_list(m->repo, m->key, NULL, m->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < list.count && rc == BK_OK; i++) {
        const bk_history_name_t *name = &list.items[i].name;
        bk_moments_segment_t segment = {
            .first = name->first, .last = name->last, .item = list.items[i]};
        memcpy(segment.epoch, name->epoch, BK_EPOCH_SIZE);
        if (!is_local(m, &segment))
            rc = add(m, &segment, err);
    }
    bk_history_list_free(&list);
    return rc;
}

/* --- one segment --- */

typedef struct {
    bk_history_reader_t *reader;
    bk_ctl_t *ctl;
} stored_t;

static bk_rc_t read_stored(void *arg, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    const stored_t *stored = arg;
    return bk_history_read(stored->reader, offset, out, len, stored->ctl, err);
}

static void close_stored(void *arg)
{
    stored_t *stored = arg;
    bk_history_close(stored->reader);
    free(stored);
}

bk_rc_t bk_moments_open_stored(bk_repo_t *repo, const bk_history_item_t *item, bk_ctl_t *ctl,
                               bk_txlog_t **log, bk_err_t *err)
{
    stored_t *stored = calloc(1, sizeof *stored);
    if (stored == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    stored->ctl = ctl;
    bk_rc_t rc = bk_history_open(repo, item, &stored->reader, ctl, err);
    if (rc != BK_OK) {
        free(stored);
        return rc;
    }
    bk_txlog_source_t source = {.read = read_stored,
                                .close = close_stored,
                                .arg = stored,
                                .size = bk_history_length(stored->reader)};
    return bk_txlog_open(&source, log, err);
}

/* What was in base_dir is shipped meanwhile, or it is part of a wider one now. */
static bk_rc_t look_on_storage(const bk_moments_t *m, bk_moments_segment_t *s, bk_err_t *err)
{
    bk_history_list_t list;
    bk_rc_t rc = bk_history_list(m->repo, m->key, s->epoch, m->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    rc = BK_NOT_FOUND;
    for (size_t i = 0; i < list.count && rc != BK_OK; i++)
        if (list.items[i].name.first <= s->first && list.items[i].name.last >= s->last) {
            s->item = list.items[i];
            rc = BK_OK;
        }
    bk_history_list_free(&list);
    if (rc == BK_OK) {
        free(s->path);
        s->path = NULL;
        bk_err_clear(err);
    }
    return rc;
}

/* As it was when it was listed, whatever lies around it on the storage. */
static bk_rc_t open_item(const bk_moments_t *m, const bk_moments_segment_t *s, bk_txlog_t **log,
                         bk_err_t *err)
{
    const bk_history_name_t *name = &s->item.name;
    bk_rc_t rc = bk_moments_open_stored(m->repo, &s->item, m->ctl, log, err);
    if (rc != BK_OK || (name->first == s->first && name->last == s->last))
        return rc;
    rc = bk_txlog_narrow(*log, s->first, s->last, err);
    if (rc != BK_OK) {
        bk_txlog_free(*log);
        *log = NULL;
    }
    return rc;
}

bk_rc_t bk_moments_log(bk_moments_t *m, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    bk_moments_segment_t *s = &m->segments[at];
    bk_rc_t rc = bk_ctl_check(m->ctl, err);
    if (rc != BK_OK)
        return rc;
    rc = s->path != NULL ? bk_txlog_open_file(s->path, log, err) : open_item(m, s, log, err);
    if (rc == BK_NOT_FOUND && look_on_storage(m, s, err) == BK_OK)
        rc = open_item(m, s, log, err);
    return rc == BK_OK ? rc
                       : bk_err_wrap(err, "database %s: transactions from %llu on", m->database,
                                     (unsigned long long)s->first);
}

static void let_go(bk_moments_t *m)
{
    bk_txlog_free(m->log);
    m->log = NULL;
    m->held = SIZE_MAX;
}

bk_rc_t bk_moments_segment(bk_moments_t *m, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (m->held != at) {
        let_go(m);
        rc = bk_moments_log(m, at, &m->log, err);
        if (rc == BK_OK)
            m->held = at;
    }
    *log = m->log;
    return rc;
}

/* --- order --- */

static int by_epoch(const void *a, const void *b)
{
    const bk_moments_segment_t *x = a, *y = b;
    int order = memcmp(x->epoch, y->epoch, BK_EPOCH_SIZE);
    if (order != 0)
        return order;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    return x->last > y->last ? -1 : x->last < y->last;
}

static int by_time(const void *a, const void *b)
{
    const bk_moments_segment_t *x = a, *y = b;
    if (x->begins != y->begins)
        return x->begins < y->begins ? -1 : 1;
    return by_epoch(a, b);
}

bool bk_moments_same_epoch(const bk_moments_t *m, size_t a, size_t b)
{
    return memcmp(m->segments[a].epoch, m->segments[b].epoch, BK_EPOCH_SIZE) == 0;
}

/* By epoch: without those that another one holds wholly. */
static void drop_narrow(bk_moments_t *m)
{
    size_t count = 0;
    for (size_t i = 0; i < m->count; i++) {
        bk_moments_segment_t *s = &m->segments[i];
        const bk_moments_segment_t *wide = count > 0 ? &m->segments[count - 1] : NULL;
        if (wide != NULL && memcmp(wide->epoch, s->epoch, BK_EPOCH_SIZE) == 0 &&
            s->last <= wide->last)
            free(s->path);
        else
            m->segments[count++] = *s;
    }
    m->count = count;
}

/* Epochs have no order of their own: that of their first transactions. */
static bk_rc_t sort(bk_moments_t *m, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (m->count > 1)
        qsort(m->segments, m->count, sizeof *m->segments, by_epoch);
    drop_narrow(m);
    for (size_t i = 0; i < m->count && rc == BK_OK; i++) {
        bk_txlog_t *log;
        if (i > 0 && bk_moments_same_epoch(m, i - 1, i)) {
            m->segments[i].begins = m->segments[i - 1].begins;
            continue;
        }
        rc = bk_moments_segment(m, i, &log, err);
        if (rc == BK_OK)
            m->segments[i].begins = bk_txlog_tx(log, 0)->t_lo;
    }
    let_go(m);
    if (m->count > 1)
        qsort(m->segments, m->count, sizeof *m->segments, by_time);
    return rc;
}

void bk_moments_key(const char *set, const char *database, char out[BK_HISTORY_NAME])
{
    bk_fmt(out, BK_HISTORY_NAME, "%s.%s", set, database);
}

bool bk_moments_known(const char *base_dir, const char *database, bk_capture_known_t *known)
{
    char dir[PATH_MAX];
    *known = (bk_capture_known_t){.until = 0};
    return base_dir != NULL &&
           bk_fmt(dir, sizeof dir, "%s/" BK_MOMENTS_DIR "/%s", base_dir, database) &&
           bk_covered_read(dir, known);
}

bk_rc_t bk_moments_open(const char *base_dir, const char *set, const char *database,
                        bk_repo_t *repo, bk_ctl_t *ctl, bk_moments_t **moments, bk_err_t *err)
{
    bk_moments_t *m = calloc(1, sizeof *m);
    *moments = NULL;
    if (m == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", database);
    m->database = database;
    bk_moments_key(set, database, m->key);
    m->repo = repo;
    m->ctl = ctl;
    m->held = SIZE_MAX;
    /* Before the list: what was durable then is in it. */
    m->served = base_dir != NULL;
    (void)bk_moments_known(base_dir, database, &m->known);
    bk_rc_t rc = base_dir != NULL ? list_local(m, base_dir, err) : BK_OK;
    if (rc == BK_OK)
        rc = list_stored(m, err);
    if (rc == BK_OK)
        rc = sort(m, err);
    if (rc == BK_OK)
        *moments = m;
    else
        bk_moments_free(m);
    return rc;
}

void bk_moments_free(bk_moments_t *m)
{
    if (m == NULL)
        return;
    let_go(m);
    for (size_t i = 0; i < m->count; i++)
        free(m->segments[i].path);
    free(m->segments);
    free(m);
}

size_t bk_moments_count(const bk_moments_t *m)
{
    return m->count;
}

size_t bk_moments_epoch_end(const bk_moments_t *m, size_t at)
{
    size_t end = at + 1;
    while (end < m->count && bk_moments_same_epoch(m, at, end))
        end++;
    return end;
}

/* --- which transaction --- */

static bk_rc_t nothing(const bk_moments_t *m, bk_err_t *err)
{
    return bk_err_set(err, BK_INVALID,
                      "database %s: no transactions were captured: set \"pitr_window\" in its "
                      "block, or recover a backup by its backup_id",
                      m->database);
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
    while (low < high && rc == BK_OK) {
        size_t middle = low + (high - low) / 2;
        bk_txlog_t *log;
        rc = bk_moments_segment(m, middle, &log, err);
        if (rc == BK_OK && bk_txlog_count(log) > 0 && bk_txlog_tx(log, 0)->t_hi <= time)
            low = middle + 1;
        else
            high = middle;
    }
    *at = low > 0 ? low - 1 : m->count;
    return rc;
}

/* The transaction behind one; false: it is the last. */
static bk_rc_t next_of(bk_moments_t *m, size_t segment, size_t at, bk_tx_t *next, bool *there,
                       bool *same, bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = bk_moments_segment(m, segment, &log, err);
    *there = false;
    if (rc == BK_OK && at + 1 < bk_txlog_count(log)) {
        *next = *bk_txlog_tx(log, at + 1);
        *there = true;
    } else if (rc == BK_OK && segment + 1 < m->count) {
        rc = bk_moments_segment(m, segment + 1, &log, err);
        *there = rc == BK_OK && bk_txlog_count(log) > 0;
        if (*there)
            *next = *bk_txlog_tx(log, 0);
        /* A new epoch: what was between is not known. */
        *same = bk_moments_same_epoch(m, segment, segment + 1);
        if (*there && !*same)
            next->flags |= BK_TXLOG_GAP;
    }
    return rc;
}

/* Nobody saw what happened in a gap: from the last look before it. */
static bk_rc_t check_seen(bk_moments_t *m, int64_t time, const bk_tx_t *tx, const bk_tx_t *next,
                          bool same_epoch, bk_err_t *err)
{
    char at[BK_TIME_TEXT], from[BK_TIME_TEXT], to[BK_TIME_TEXT];
    int64_t seen = same_epoch && next->t_lo > tx->t_hi ? next->t_lo : tx->t_hi;
    if ((next->flags & BK_TXLOG_GAP) == 0 || time <= seen)
        return BK_OK;
    m->gap[0] = seen;
    m->gap[1] = next->t_hi;
    bk_time_format_exact(at, time);
    bk_time_format_exact(from, seen);
    bk_time_format_exact(to, next->t_hi);
    return bk_err_set(err, BK_INVALID,
                      "database %s: nobody saw what happened at %s: the nearest moments are %s "
                      "(transaction %llu) and %s (transaction %llu)",
                      m->database, at, from, (unsigned long long)tx->txid, to,
                      (unsigned long long)next->txid);
}

int64_t bk_moments_known_until(const bk_moments_t *m, const bk_tx_t *last)
{
    bool same = memcmp(m->known.epoch, m->segments[m->count - 1].epoch, BK_EPOCH_SIZE) == 0;
    return same && m->known.until > last->t_hi ? m->known.until : last->t_hi;
}

/* Behind the last transaction there may be more that nobody captured. */
static bk_rc_t check_covered(const bk_moments_t *m, int64_t time, bk_moment_t *moment,
                             bk_err_t *err)
{
    char at[BK_TIME_TEXT], until[BK_TIME_TEXT];
    int64_t known = bk_moments_known_until(m, &moment->tx);
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

static bk_rc_t too_early(bk_moments_t *m, int64_t time, bk_err_t *err)
{
    char at[BK_TIME_TEXT], from[BK_TIME_TEXT];
    bk_txlog_t *log;
    bk_rc_t rc = bk_moments_segment(m, 0, &log, err);
    if (rc != BK_OK || bk_txlog_count(log) == 0)
        return rc != BK_OK ? rc : nothing(m, err);
    bk_time_format_exact(at, time);
    bk_time_format_exact(from, bk_txlog_tx(log, 0)->t_hi);
    return bk_err_set(err, BK_INVALID,
                      "database %s: %s is before the first transaction that was captured, of %s: "
                      "recover a backup of that time by its backup_id",
                      m->database, at, from);
}

bk_rc_t bk_moments_at(bk_moments_t *m, int64_t time, const bk_snapshot_list_t *list,
                      bk_moment_t *moment, bk_err_t *err)
{
    size_t segment, at;
    bk_txlog_t *log;
    bk_tx_t next;
    bool there = false, same = true;
    *moment = (bk_moment_t){.of = m};
    if (m->count == 0)
        return nothing(m, err);
    if (time > bk_now())
        return bk_err_set(err, BK_INVALID, "point_in_time lies in the future");
    bk_rc_t rc = bk_moments_segment_at(m, time, &segment, err);
    if (rc == BK_OK && segment == m->count)
        return too_early(m, time, err);
    if (rc == BK_OK)
        rc = bk_moments_segment(m, segment, &log, err);
    if (rc != BK_OK)
        return rc;
    at = last_until(log, time);
    moment->tx = *bk_txlog_tx(log, at);
    rc = next_of(m, segment, at, &next, &there, &same, err);
    if (rc == BK_OK && there && (next.flags & BK_TXLOG_BATCH) != 0 && time > next.t_lo)
        moment->batch = next.t_hi;
    if (rc == BK_OK && there)
        rc = check_seen(m, time, &moment->tx, &next, same, err);
    else if (rc == BK_OK)
        rc = check_covered(m, time, moment, err);
    return rc == BK_OK ? bk_moments_find_base(m, segment, list, moment, err) : rc;
}

/* The segment of that transaction, from the newest one below end on; m->count: there is none. */
static bk_rc_t segment_of(bk_moments_t *m, size_t end, uint64_t txid, size_t *segment, bk_tx_t *tx,
                          bk_err_t *err)
{
    *segment = m->count;
    for (size_t s = end; s > 0; s--) {
        bk_txlog_t *log;
        if (m->segments[s - 1].first > txid || m->segments[s - 1].last < txid)
            continue;
        bk_rc_t rc = bk_moments_segment(m, s - 1, &log, err);
        if (rc != BK_OK)
            return rc;
        size_t at = (size_t)(txid - m->segments[s - 1].first);
        if (at >= bk_txlog_count(log))
            continue;
        *tx = *bk_txlog_tx(log, at);
        *segment = s - 1;
        break;
    }
    return BK_OK;
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
    *moment = (bk_moment_t){.of = m};
    if (m->count == 0)
        return nothing(m, err);
    bk_rc_t rc = segment_of(m, m->count, txid, &segment, &moment->tx, err);
    if (rc == BK_OK && segment == m->count)
        return bk_err_set(err, BK_INVALID, "database %s: there is no transaction %llu", m->database,
                          (unsigned long long)txid);
    for (begin = segment; rc == BK_OK && begin > 0 && bk_moments_same_epoch(m, begin - 1, begin);)
        begin--;
    if (rc == BK_OK)
        rc = segment_of(m, begin, txid, &older, &other, err);
    if (rc == BK_OK && older != m->count)
        return ambiguous(m, &moment->tx, &other, err);
    return rc == BK_OK ? bk_moments_find_base(m, segment, list, moment, err) : rc;
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
