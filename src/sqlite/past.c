/*
 * sqlite/past.c: finds the newest version of each page.  Reads only what base and segments give.
 */
#include "sqlite/past.h"

#include <stdlib.h>
#include <string.h>

#include "sqlite/source.h"

#define OPEN_LOGS 8u /* that stay at hand, with their indexes */

/* The newest version of a page; pgno 0: a free place of the table. */
typedef struct {
    uint32_t pgno, segment;
    bk_txlog_spot_t spot;
} version_t;

typedef struct {
    bk_txlog_t *log; /* NULL: none */
    size_t at;
    uint64_t used;
} held_t;

struct bk_past_s {
    bk_past_base_t base;
    bk_past_segments_t segments;
    bk_ctl_t *ctl;
    uint64_t page_count, digest;
    uint64_t base_end;   /* pages of the base up to here count */
    version_t *versions; /* open addressing; room is a power of two */
    size_t count, room;
    held_t held[OPEN_LOGS];
    uint64_t clock;
};

/* --- segments at hand --- */

static bk_rc_t open_log(bk_past_t *past, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    held_t *held = &past->held[0];
    for (size_t i = 0; i < OPEN_LOGS; i++) {
        held_t *one = &past->held[i];
        if (one->log != NULL && one->at == at) {
            held = one;
            break;
        }
        if (one->used < held->used)
            held = one;
    }
    if (held->log == NULL || held->at != at) {
        if (held->log != NULL)
            past->segments.close(past->segments.arg, held->at, held->log);
        held->log = NULL;
        held->used = 0;
        bk_rc_t rc = past->segments.open(past->segments.arg, at, &held->log, err);
        if (rc != BK_OK) {
            held->log = NULL;
            return rc;
        }
        held->at = at;
    }
    held->used = ++past->clock;
    *log = held->log;
    return BK_OK;
}

static void forget_log(bk_past_t *past, size_t at)
{
    for (size_t i = 0; i < OPEN_LOGS; i++) {
        held_t *one = &past->held[i];
        if (one->log == NULL || one->at != at)
            continue;
        past->segments.close(past->segments.arg, at, one->log);
        *one = (held_t){.log = NULL};
    }
}

/* What is gone since it was opened may be had from elsewhere, at the same spot. */
static bk_rc_t read_spot(bk_past_t *past, size_t at, bk_txlog_spot_t spot, uint8_t *page,
                         bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = open_log(past, at, &log, err);
    if (rc == BK_OK)
        rc = bk_txlog_get(log, spot, page, err);
    if (rc != BK_NOT_FOUND)
        return rc;
    forget_log(past, at);
    bk_err_clear(err);
    rc = open_log(past, at, &log, err);
    return rc == BK_OK ? bk_txlog_get(log, spot, page, err) : rc;
}

/* --- the table --- */

static size_t place_of(const bk_past_t *past, uint32_t pgno)
{
    size_t at = (pgno * 2654435769u) & (past->room - 1);
    while (past->versions[at].pgno != 0 && past->versions[at].pgno != pgno)
        at = (at + 1) & (past->room - 1);
    return at;
}

static bool grow(bk_past_t *past)
{
    version_t *old = past->versions;
    size_t had = past->room;
    size_t room = had > 0 ? 2 * had : 1024;
    version_t *versions = calloc(room, sizeof *versions);
    if (versions == NULL)
        return false;
    past->versions = versions;
    past->room = room;
    for (size_t i = 0; i < had; i++)
        if (old[i].pgno != 0)
            past->versions[place_of(past, old[i].pgno)] = old[i];
    free(old);
    return true;
}

/* --- from the newest transaction back --- */

typedef struct {
    bk_past_t *past;
    uint64_t end; /* no later transaction kept pages behind it */
    uint32_t segment;
} note_t;

static bool note_page(void *arg, uint32_t pgno, bk_txlog_spot_t spot)
{
    note_t *note = arg;
    bk_past_t *past = note->past;
    if (pgno == 0 || pgno > note->end)
        return true;
    if (past->count * 4 >= past->room * 3 && !grow(past))
        return false;
    version_t *version = &past->versions[place_of(past, pgno)];
    if (version->pgno == 0) {
        *version = (version_t){.pgno = pgno, .segment = note->segment, .spot = spot};
        past->count++;
    }
    return true;
}

static bk_rc_t missing(uint64_t txid, bk_err_t *err)
{
    return bk_err_set(err, BK_NOT_FOUND, "the segment with transaction %llu is missing",
                      (unsigned long long)txid);
}

static bk_rc_t no_chain(uint64_t txid, const char *what, bk_err_t *err)
{
    return bk_err_set(err, BK_CORRUPT, "transaction %llu %s", (unsigned long long)txid, what);
}

/* The transactions of one segment, from *want back to the base. */
static bk_rc_t note_segment(bk_past_t *past, size_t at, note_t *note, uint64_t *want,
                            uint64_t *digest, bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = bk_ctl_check(past->ctl, err);
    if (rc == BK_OK)
        rc = open_log(past, at, &log, err);
    if (rc != BK_OK)
        return rc;
    note->segment = (uint32_t)at;
    if (bk_txlog_info(log)->page_size != past->base.page_size)
        return no_chain(bk_txlog_info(log)->first, "has another page size than the base", err);
    for (size_t i = bk_txlog_count(log); i > 0 && *want > past->base.txid; i--) {
        const bk_tx_t *tx = bk_txlog_tx(log, i - 1);
        if (tx->txid > *want)
            continue;
        if (tx->txid < *want)
            return missing(*want, err);
        if (tx->page_count > UINT32_MAX)
            return no_chain(tx->txid, "has an impossible size", err);
        if (note->end == UINT64_MAX) { /* the newest one */
            past->page_count = note->end = tx->page_count;
            past->digest = tx->after;
        } else if (tx->after != *digest) {
            return no_chain(tx->txid + 1, "does not follow the one before it", err);
        }
        if (tx->page_count < note->end)
            note->end = tx->page_count;
        if (!bk_txlog_numbers(log, i - 1, note_page, note))
            return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
        *digest = tx->before;
        --*want;
    }
    return BK_OK;
}

static bk_rc_t note_all(bk_past_t *past, uint64_t txid, bk_err_t *err)
{
    note_t note = {.past = past, .end = UINT64_MAX};
    uint64_t want = txid, digest = past->base.digest;
    bk_rc_t rc = BK_OK;
    past->page_count = past->base.page_count;
    past->digest = past->base.digest;
    for (size_t at = past->segments.count; at > 0 && want > past->base.txid && rc == BK_OK; at--)
        rc = note_segment(past, at - 1, &note, &want, &digest, err);
    if (rc != BK_OK)
        return rc;
    if (want > past->base.txid)
        return missing(want, err);
    if (digest != past->base.digest)
        return no_chain(past->base.txid + 1, "does not follow what the base holds", err);
    past->base_end = past->base.page_count < note.end ? past->base.page_count : note.end;
    return BK_OK;
}

bk_rc_t bk_past_open(const bk_past_base_t *base, const bk_past_segments_t *segments, uint64_t txid,
                     bk_ctl_t *ctl, bk_past_t **result, bk_err_t *err)
{
    *result = NULL;
    bk_past_t *past = calloc(1, sizeof *past);
    if (past == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    past->base = *base;
    past->segments = *segments;
    past->ctl = ctl;
    bk_rc_t rc = grow(past) ? note_all(past, txid, err)
                            : bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    if (rc == BK_OK)
        *result = past;
    else
        bk_past_free(past);
    return rc;
}

void bk_past_free(bk_past_t *past)
{
    if (past == NULL)
        return;
    for (size_t i = 0; i < OPEN_LOGS; i++)
        if (past->held[i].log != NULL)
            past->segments.close(past->segments.arg, past->held[i].at, past->held[i].log);
    free(past->versions);
    free(past);
}

/* --- pages --- */

uint32_t bk_past_page_size(const bk_past_t *past)
{
    return past->base.page_size;
}

uint64_t bk_past_page_count(const bk_past_t *past)
{
    return past->page_count;
}

bk_rc_t bk_past_page(bk_past_t *past, uint64_t pgno, uint8_t *page, bk_err_t *err)
{
    if (pgno == 0 || pgno > past->page_count)
        return bk_err_set(err, BK_INVALID, "there is no page %llu", (unsigned long long)pgno);
    const version_t *version = &past->versions[place_of(past, (uint32_t)pgno)];
    if (pgno == bk_db_lock_page(past->base.page_size) ||
        (version->pgno == 0 && pgno > past->base_end)) {
        memset(page, 0, past->base.page_size);
        return BK_OK;
    }
    if (version->pgno == 0)
        return past->base.page(past->base.arg, pgno, page, err);
    return read_spot(past, version->segment, version->spot, page, err);
}

uint64_t bk_past_base_end(const bk_past_t *past)
{
    return past->base_end;
}

bool bk_past_same(const bk_past_t *past, uint64_t pgno)
{
    return pgno <= past->base_end && past->versions[place_of(past, (uint32_t)pgno)].pgno == 0;
}

uint64_t bk_past_digest(const bk_past_t *past)
{
    return past->digest;
}

static int by_place(const void *a, const void *b)
{
    const version_t *x = a, *y = b;
    if (x->segment != y->segment)
        return x->segment < y->segment ? -1 : 1;
    if (x->spot.part != y->spot.part)
        return x->spot.part < y->spot.part ? -1 : 1;
    return x->spot.slot < y->spot.slot ? -1 : x->spot.slot > y->spot.slot;
}

bk_rc_t bk_past_changes(bk_past_t *past, bk_txlog_page_fn fn, void *arg, bk_err_t *err)
{
    size_t count = 0;
    bk_rc_t rc = BK_OK;
    uint8_t *page = malloc(past->base.page_size);
    version_t *list = malloc((past->count + 1) * sizeof *list);
    if (page == NULL || list == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    for (size_t i = 0; i < past->room && rc == BK_OK; i++)
        if (past->versions[i].pgno != 0)
            list[count++] = past->versions[i];
    if (count > 1)
        qsort(list, count, sizeof *list, by_place);
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        if (i % 1024 == 0)
            rc = bk_ctl_check(past->ctl, err);
        if (rc == BK_OK)
            rc = read_spot(past, list[i].segment, list[i].spot, page, err);
        if (rc == BK_OK)
            rc = fn(arg, list[i].pgno, page, err);
    }
    free(list);
    free(page);
    return rc;
}

bk_rc_t bk_past_check(bk_past_t *past, bk_err_t *err)
{
    uint64_t digest = 0, lock_page = bk_db_lock_page(past->base.page_size);
    bk_rc_t rc = BK_OK;
    uint8_t *page = malloc(past->base.page_size);
    if (page == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "check an image: out of memory");
    for (uint64_t pgno = 1; pgno <= past->page_count && rc == BK_OK; pgno++) {
        if (pgno % 1024 == 0)
            rc = bk_ctl_check(past->ctl, err);
        if (rc == BK_OK)
            rc = bk_past_page(past, pgno, page, err);
        if (rc == BK_OK && pgno != lock_page)
            digest ^= bk_db_page_hash(pgno, page, past->base.page_size);
    }
    free(page);
    if (rc == BK_OK && digest != past->digest)
        rc = bk_err_set(err, BK_CORRUPT, "the pages are not what the transaction left behind");
    return rc;
}
