/*
 * engine/timeline.c: GET /timeline: from when to when a database can be had as of any moment, what
 * nobody saw, and its transactions.  Reads the indexes of segments in base_dir and on the storage.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/bases.h"
#include "engine/engine_private.h"

#define DAY (86400 * BK_SEC)

/* A transaction that stands for what nobody saw. */
typedef struct {
    size_t segment;
    bk_tx_t tx;
} unseen_t;

/* Transactions of an epoch that are damaged or missing. */
typedef struct {
    uint64_t first, last; /* 0: none */
    const char *why;      /* NULL: they are missing */
} lost_t;

typedef struct {
    bk_moments_t *moments;
    bk_snapshot_list_t list;
    bk_bases_t bases; /* of the database at hand */
    const bk_timeline_filter_t *filter;
    bool several;                  /* databases: no transactions */
    uint8_t epoch[BK_TXLOG_EPOCH]; /* of the cursor */
    uint64_t before;               /* of that epoch only transactions below this one; 0: all */
    bool reached;
    unseen_t *unseen; /* of the database at hand, by time */
    size_t unseen_count, unseen_room;
    json_t *windows, *gaps, *transactions; /* newest first */
    char next[2 * BK_TXLOG_EPOCH + 24];
    unsigned left;
} timeline_t;

/* --- windows, and what is not in them --- */

static bk_rc_t add_unseen(timeline_t *t, size_t segment, const bk_tx_t *tx, bk_err_t *err)
{
    if (t->unseen_count == t->unseen_room) {
        size_t room = 2 * t->unseen_room + 16;
        unseen_t *more = realloc(t->unseen, room * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "timeline: out of memory");
        t->unseen = more;
        t->unseen_room = room;
    }
    t->unseen[t->unseen_count++] = (unseen_t){segment, *tx};
    return BK_OK;
}

/* Every segment is opened once, which also tells which of them can be read. */
static bk_rc_t look_at_all(timeline_t *t, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    t->unseen_count = 0;
    for (size_t s = 0; s < bk_moments_count(t->moments) && rc == BK_OK; s++) {
        bk_txlog_t *log;
        rc = bk_moments_look(t->moments, s, &log, err);
        size_t count = rc == BK_OK && log != NULL ? bk_txlog_count(log) : 0;
        for (size_t i = 0; i < count && rc == BK_OK; i++)
            if ((bk_txlog_tx(log, i)->flags & BK_TXLOG_GAP) != 0)
                rc = add_unseen(t, s, bk_txlog_tx(log, i), err);
    }
    return rc;
}

static void add_gap(timeline_t *t, int64_t from, int64_t to, const char *reason, uint64_t first,
                    uint64_t last)
{
    json_array_insert_new(t->gaps, 0,
                          json_pack("{so so ss sI sI}", "from", bk_json_moment(from), "to",
                                    bk_json_moment(to), "reason", reason, "transaction",
                                    (json_int_t)first, "last_transaction", (json_int_t)last));
}

static void add_lost(timeline_t *t, int64_t from, int64_t to, const lost_t *lost)
{
    add_gap(t, from, to, lost->why != NULL ? "damaged" : "missing", lost->first, lost->last);
    if (lost->why != NULL)
        json_object_set_new(json_array_get(t->gaps, 0), "detail",
                            bk_json_name(lost->why, strlen(lost->why)));
}

/* What is between the stretch before, which ends with a number, and this one. */
static void lose(lost_t *lost, uint64_t before, const bk_window_t *w, const char *why)
{
    bool missing = w->goes_on && w->txids[0] > before + 1;
    if (lost->first == 0 && (missing || w->damaged))
        lost->first = missing ? before + 1 : w->txids[0];
    if (w->damaged)
        lost->last = w->txids[1];
    else if (missing)
        lost->last = w->txids[0] - 1;
    if (lost->why == NULL)
        lost->why = why;
}

/* Between two epochs nobody looked, and what came before the first backup cannot be had either. */
static void add_new_epoch(timeline_t *t, int64_t until, const bk_window_t *w)
{
    if (w->reachable && w->earliest.txid > w->begin.txid)
        add_gap(t, until, w->from, "no_backup", w->begin.txid, w->earliest.txid - 1);
    else
        add_gap(t, until, w->from, "unseen", w->begin.txid, w->begin.txid);
}

static void add_window(timeline_t *t, const bk_window_t *w)
{
    const bk_tx_t *from = w->reachable ? &w->earliest : &w->begin;
    json_array_insert_new(t->windows, 0,
                          json_pack("{so so sI sI sb}", "from", bk_json_moment(w->from), "to",
                                    bk_json_moment(w->until), "first_transaction",
                                    (json_int_t)from->txid, "last_transaction",
                                    (json_int_t)w->end.txid, "recoverable", (int)w->reachable));
    for (size_t i = 0; i < t->unseen_count; i++) {
        const unseen_t *u = &t->unseen[i];
        if (u->segment >= w->first && u->segment <= w->last && u->tx.t_hi > w->from)
            add_gap(t, u->tx.t_lo, u->tx.t_hi, "unseen", u->tx.txid, u->tx.txid);
    }
}

static bk_rc_t add_windows(timeline_t *t, bk_err_t *err)
{
    size_t count = bk_moments_count(t->moments);
    bk_rc_t rc = look_at_all(t, err);
    bk_window_t w;
    lost_t lost = {0};
    uint64_t number = 0; /* the last one before */
    int64_t until = 0;   /* of the window before */
    for (size_t first = 0; first < count && rc == BK_OK; first = w.last + 1) {
        rc = bk_moments_window(t->moments, first, &t->bases, &w, err);
        if (rc != BK_OK)
            break;
        lose(&lost, number, &w, bk_moments_why(t->moments, first));
        number = w.txids[1];
        if (w.damaged)
            continue;
        if (lost.first != 0)
            add_lost(t, until, w.from, &lost);
        else if (first > 0)
            add_new_epoch(t, until, &w);
        add_window(t, &w);
        lost = (lost_t){0};
        until = w.until;
    }
    if (rc == BK_OK && lost.first != 0)
        add_lost(t, until, bk_now(), &lost);
    return rc;
}

/* --- transactions, newest first --- */

static void add_transaction(timeline_t *t, const bk_txlog_info_t *info, const bk_tx_t *tx)
{
    bool gap = (tx->flags & BK_TXLOG_GAP) != 0;
    bool shown = t->before == 0 || tx->txid < t->before;
    if (!shown)
        return;
    if (t->left == 0) {
        if (t->next[0] == '\0') {
            bk_hex(t->next, info->epoch, sizeof info->epoch);
            size_t len = strlen(t->next);
            bk_fmt(t->next + len, sizeof t->next - len, "-%llu", (unsigned long long)tx->txid + 1);
        }
        return;
    }
    t->left--;
    json_array_append_new(t->transactions,
                          json_pack("{sI so so sI sI sb sb}", "transaction", (json_int_t)tx->txid,
                                    "after", bk_json_moment(tx->t_lo), "until",
                                    bk_json_moment(tx->t_hi), "pages", (json_int_t)tx->pages,
                                    "page_count", (json_int_t)tx->page_count, "gap", (int)gap,
                                    "batch", (int)((tx->flags & BK_TXLOG_BATCH) != 0)));
}

/* *done: all that is older is before the time that is asked for. */
static bk_rc_t add_segment(timeline_t *t, size_t at, bool *done, bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = bk_moments_look(t->moments, at, &log, err);
    if (rc != BK_OK || log == NULL)
        return rc;
    const bk_txlog_info_t *info = bk_txlog_info(log);
    if (t->before > 0) {
        bool same = memcmp(info->epoch, t->epoch, sizeof t->epoch) == 0;
        if (!same && !t->reached)
            return BK_OK; /* newer than the cursor */
        t->reached = true;
        t->before = same ? t->before : 0;
    }
    for (size_t i = bk_txlog_count(log); i > 0 && !*done; i--) {
        const bk_tx_t *tx = bk_txlog_tx(log, i - 1);
        *done = tx->t_hi < t->filter->since;
        if (!*done && tx->t_hi <= t->filter->until)
            add_transaction(t, info, tx);
    }
    return BK_OK;
}

static bk_rc_t add_transactions(timeline_t *t, bk_err_t *err)
{
    size_t at;
    bool done = false;
    bk_rc_t rc = bk_moments_segment_at(t->moments, t->filter->until, &at, err);
    if (rc != BK_OK || at == bk_moments_count(t->moments))
        return rc;
    for (size_t i = at + 1; i > 0 && rc == BK_OK && !done && t->next[0] == '\0'; i--)
        rc = add_segment(t, i - 1, &done, err);
    if (rc == BK_OK && t->filter->cursor != NULL && !t->reached)
        rc = bk_err_set(err, BK_INVALID,
                        "cursor: what it stands for is not there, or not any more: begin anew");
    return rc;
}

static bool read_cursor(timeline_t *t)
{
    const char *text = t->filter->cursor;
    char *end;
    if (text == NULL)
        return true;
    if (strlen(text) < 2 * BK_TXLOG_EPOCH + 2 || text[2 * BK_TXLOG_EPOCH] != '-' ||
        !bk_unhex(t->epoch, BK_TXLOG_EPOCH, text, 2 * (size_t)BK_TXLOG_EPOCH))
        return false;
    t->before = strtoull(text + 2 * BK_TXLOG_EPOCH + 1, &end, 10);
    return *end == '\0' && t->before > 0;
}

static bk_rc_t one_database(timeline_t *t, const char *name, json_t *list, bk_err_t *err)
{
    t->windows = json_array();
    t->gaps = json_array();
    t->transactions = json_array();
    bk_rc_t rc = add_windows(t, err);
    if (rc == BK_OK && !t->several)
        rc = add_transactions(t, err);
    json_t *one = json_pack("{ss so so}", "database", name, "windows", t->windows, "gaps", t->gaps);
    if (t->several) {
        json_decref(t->transactions);
    } else {
        json_object_set_new(one, "transactions", t->transactions);
        json_object_set_new(one, "next_cursor",
                            t->next[0] != '\0' ? json_string(t->next) : json_null());
    }
    json_array_append_new(list, one);
    return rc;
}

static bk_rc_t look_at(timeline_t *t, const bk_set_t *set, const char *name, bk_repo_t *repo,
                       bk_ctl_t *ctl, json_t *list, bk_err_t *err)
{
    t->left = t->filter->limit;
    t->next[0] = '\0';
    bk_rc_t rc = bk_moments_open(set->base_dir, set->name, name, repo, ctl, &t->moments, err);
    if (rc == BK_OK)
        rc = bk_bases_init(&t->bases, &t->list, set->name, name, err);
    if (rc == BK_OK)
        rc = one_database(t, name, list, err);
    bk_bases_free(&t->bases);
    bk_moments_free(t->moments);
    t->moments = NULL;
    return rc;
}

static bool is_wanted(const bk_timeline_filter_t *filter, const bk_set_db_t *db)
{
    return filter->database != NULL ? strcmp(db->name, filter->database) == 0 : db->pitr_window > 0;
}

/* Transactions have an order within one database: of several nobody could go on with the next. */
static bk_rc_t check_cursor(timeline_t *t, const bk_set_t *set, bk_err_t *err)
{
    size_t wanted = 0;
    for (size_t i = 0; i < set->db_count; i++)
        wanted += is_wanted(t->filter, &set->dbs[i]);
    t->several = wanted > 1;
    if (wanted == 0 && t->filter->database != NULL)
        return bk_err_set(err, BK_NOT_FOUND, "there is no database block %s", t->filter->database);
    if (!read_cursor(t))
        return bk_err_set(err, BK_INVALID, "cursor: is not one that a timeline gave");
    if (t->several && t->filter->cursor != NULL)
        return bk_err_set(err, BK_INVALID,
                          "cursor: transactions are those of one database: name it with "
                          "\"database\"");
    return BK_OK;
}

static bk_rc_t all_databases(const bk_set_t *set, bk_repo_t *repo, const char *cache_dir,
                             const bk_timeline_filter_t *filter, bk_ctl_t *ctl, json_t *list,
                             bk_err_t *err)
{
    timeline_t t = {.filter = filter};
    bk_rc_t rc = check_cursor(&t, set, err);
    if (rc == BK_OK)
        rc = bk_snapshot_list(repo, cache_dir, ctl, &t.list, err);
    for (size_t i = 0; i < set->db_count && rc == BK_OK; i++)
        if (is_wanted(filter, &set->dbs[i]))
            rc = look_at(&t, set, set->dbs[i].name, repo, ctl, list, err);
    free(t.unseen);
    bk_snapshot_list_free(&t.list);
    return rc;
}

bk_rc_t bk_timeline(const bk_set_t *set, bk_repo_t *repo, const char *cache_dir,
                    const bk_timeline_filter_t *wanted, bk_ctl_t *ctl, json_t **answer,
                    bk_err_t *err)
{
    bk_timeline_filter_t filter = *wanted;
    *answer = NULL;
    if (filter.until == 0)
        filter.until = bk_now();
    if (filter.since == 0)
        filter.since = filter.until - DAY;
    if (filter.limit == 0)
        filter.limit = 50;
    json_t *list = json_array();
    bk_rc_t rc = all_databases(set, repo, cache_dir, &filter, ctl, list, err);
    if (rc != BK_OK) {
        json_decref(list);
        return rc;
    }
    *answer = json_pack("{so so so}", "since", bk_json_moment(filter.since), "until",
                        bk_json_moment(filter.until), "databases", list);
    return BK_OK;
}

bk_rc_t bk_engine_timeline(bk_engine_t *engine, const bk_timeline_filter_t *filter, bk_ctl_t *ctl,
                           json_t **answer, bk_err_t *err)
{
    bk_opened_t opened;
    *answer = NULL;
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_timeline(engine->set, opened.repo, engine->cache_dir, filter, ctl, answer, err);
    bk_engine_close_repo(&opened);
    return rc;
}
