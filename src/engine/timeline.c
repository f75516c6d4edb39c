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

typedef struct {
    bk_moments_t *moments;
    bk_snapshot_list_t list;
    bk_bases_t bases; /* of the database at hand */
    const bk_timeline_filter_t *filter;
    uint8_t epoch[BK_TXLOG_EPOCH]; /* of the cursor */
    uint64_t before;               /* of that epoch only transactions below this one; 0: all */
    bool reached;
    json_t *windows, *gaps, *transactions;
    char next[2 * BK_TXLOG_EPOCH + 24];
    unsigned left;
} timeline_t;

/* --- windows --- */

static json_t *describe_window(const bk_window_t *w)
{
    const bk_tx_t *from = w->reachable ? &w->earliest : &w->begin;
    return json_pack("{so so sI sI sb}", "from", bk_json_moment(from->t_hi), "to",
                     bk_json_moment(w->until), "first_transaction", (json_int_t)from->txid,
                     "last_transaction", (json_int_t)w->end.txid, "recoverable", (int)w->reachable);
}

static json_t *describe_gap(int64_t from, int64_t to, const bk_tx_t *tx)
{
    return json_pack("{so so sI}", "from", bk_json_moment(from), "to", bk_json_moment(to),
                     "transaction", (json_int_t)tx->txid);
}

static bk_rc_t add_windows(timeline_t *t, bk_err_t *err)
{
    size_t count = bk_moments_count(t->moments);
    bk_rc_t rc = BK_OK;
    bk_window_t before = {0};
    for (size_t first = 0; first < count && rc == BK_OK;) {
        bk_window_t w;
        rc = bk_moments_window(t->moments, first, &t->bases, &w, err);
        if (rc != BK_OK)
            break;
        json_array_insert_new(t->windows, 0, describe_window(&w));
        /* Between two epochs nobody looked. */
        if (first > 0)
            json_array_insert_new(t->gaps, 0, describe_gap(before.until, w.begin.t_hi, &w.begin));
        before = w;
        first = w.last + 1;
    }
    return rc;
}

/* --- transactions, newest first --- */

static void add_transaction(timeline_t *t, const bk_txlog_info_t *info, const bk_tx_t *tx)
{
    bool gap = (tx->flags & BK_TXLOG_GAP) != 0;
    bool shown = t->before == 0 || tx->txid < t->before;
    if (gap && t->filter->cursor == NULL)
        json_array_append_new(t->gaps, describe_gap(tx->t_lo, tx->t_hi, tx));
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
    bk_rc_t rc = bk_moments_segment(t->moments, at, &log, err);
    if (rc != BK_OK)
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
    for (size_t i = at + 1; i > 0 && rc == BK_OK && !done; i--) {
        if (t->next[0] != '\0' && t->filter->cursor != NULL)
            break;
        rc = add_segment(t, i - 1, &done, err);
    }
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
    if (rc == BK_OK)
        rc = add_transactions(t, err);
    json_array_append_new(list,
                          json_pack("{ss so so so so}", "database", name, "windows", t->windows,
                                    "gaps", t->gaps, "transactions", t->transactions, "next_cursor",
                                    t->next[0] != '\0' ? json_string(t->next) : json_null()));
    return rc;
}

static bk_rc_t all_databases(const bk_set_t *set, bk_repo_t *repo, const char *cache_dir,
                             const bk_timeline_filter_t *filter, bk_ctl_t *ctl, json_t *list,
                             bk_err_t *err)
{
    timeline_t t = {.filter = filter};
    bk_rc_t rc = bk_snapshot_list(repo, cache_dir, ctl, &t.list, err);
    if (rc == BK_OK && !read_cursor(&t))
        rc = bk_err_set(err, BK_INVALID, "cursor: is not one that a timeline gave");
    for (size_t i = 0; i < set->db_count && rc == BK_OK; i++) {
        const bk_set_db_t *db = &set->dbs[i];
        if (filter->database != NULL ? strcmp(db->name, filter->database) != 0
                                     : db->pitr_window == 0)
            continue;
        t.left = filter->limit;
        t.next[0] = '\0';
        rc = bk_moments_open(set->base_dir, set->name, db->name, repo, ctl, &t.moments, err);
        if (rc == BK_OK)
            rc = bk_bases_init(&t.bases, &t.list, db->name, err);
        if (rc == BK_OK)
            rc = one_database(&t, db->name, list, err);
        bk_bases_free(&t.bases);
        bk_moments_free(t.moments);
        t.moments = NULL;
    }
    bk_snapshot_list_free(&t.list);
    if (rc == BK_OK && filter->database != NULL && json_array_size(list) == 0)
        rc = bk_err_set(err, BK_NOT_FOUND, "there is no database block %s", filter->database);
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
        filter.limit = 100;
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
