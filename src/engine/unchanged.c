/*
 * engine/unchanged.c: the transaction that a pinned database is as of, and the backup that it
 * stands on.  Reads segments of base_dir and of the storage.
 */
#include "engine/unchanged.h"

#include <stdlib.h>
#include <string.h>

#include "engine/bases.h"

/* Who shares the storage is not believed. */
static bk_rc_t choose_own(const bk_unchanged_of_t *of, bk_snapshot_list_t *own, bk_err_t *err)
{
    own->items = calloc(of->list->count + 1, sizeof *own->items);
    if (own->items == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < of->list->count; i++) {
        const bk_snapshot_t *s = &of->list->items[i];
        if (strcmp(s->set, of->set) == 0 && strcmp(s->host, of->host) == 0)
            own->items[own->count++] = *s;
    }
    return BK_OK;
}

/* A backup that holds just that: no transaction is asked. */
static bk_rc_t find_same(const bk_unchanged_of_t *of, const bk_capture_state_t *state,
                         bk_unchanged_t *u, bk_err_t *err)
{
    bk_bases_t bases;
    bk_past_segments_t none = {.count = 0};
    bk_rc_t rc = bk_bases_init(&bases, &u->own, of->set, of->database, err);
    bool found = rc == BK_OK && bk_bases_find(&bases, state->digest, state->page_count, &u->moment);
    bk_bases_free(&bases);
    if (!found)
        return rc;
    bk_past_base_t base = {
        .page_count = state->page_count, .digest = state->digest, .page_size = state->page_size};
    rc = bk_past_open(&base, &none, 0, of->ctl, &u->past, err);
    if (rc == BK_OK)
        u->known = (bk_db_known_t){.like = u->moment.from, .past = u->past};
    return rc;
}

/* A new epoch begins with the number of the last transaction before it, and another content. */
static bool is_it(const bk_unchanged_t *u, const bk_txlog_place_t *place, uint64_t page_count,
                  const bk_capture_state_t *state)
{
    const bk_tx_t *tx = &u->moment.tx;
    return tx->page_count == page_count &&
           (state != NULL ? tx->after == state->digest : bk_txlog_same_place(&tx->place, place));
}

static void tell(bk_unchanged_t *u, uint64_t digest, uint64_t page_count)
{
    u->told = true;
    u->digest = digest;
    u->page_count = page_count;
}

/* What was changed since the blocks were seen, up to a transaction. */
static bk_rc_t find_seen(const bk_unchanged_of_t *of, uint64_t txid, bk_unchanged_t *u,
                         bk_err_t *err)
{
    const bk_capture_state_t *since = of->since;
    bk_past_segments_t none = {.count = 0};
    bk_past_base_t base = {
        .page_count = since->page_count, .digest = since->digest, .page_size = since->page_size};
    bk_rc_t rc = BK_OK;
    u->since = (bk_snapshot_db_t){
        .page_size = since->page_size, .page_count = since->page_count, .digest = since->digest};
    if (txid == since->txid && u->digest == since->digest) {
        rc = bk_past_open(&base, &none, 0, of->ctl, &u->past, err);
    } else {
        if (u->moments == NULL)
            rc = bk_moments_open(of->base_dir, of->set, of->database, of->repo, of->ctl,
                                 &u->moments, err);
        if (rc == BK_OK)
            rc = bk_moments_since(u->moments, since, &u->since, txid, &u->moment, err);
        if (rc == BK_OK)
            rc = bk_moments_past(&u->moment, NULL, NULL, &u->past, err);
    }
    if (rc == BK_OK)
        u->known = (bk_db_known_t){.seen = of->seen, .past = u->past};
    return rc;
}

static bk_rc_t find(const bk_unchanged_of_t *of, const bk_db_info_t *pinned,
                    const bk_capture_state_t *state, bk_unchanged_t *u, bk_err_t *err)
{
    bk_txlog_place_t place;
    uint64_t txid = state != NULL ? state->txid : 0;
    bk_capture_place(pinned, &place);
    if (state != NULL)
        tell(u, state->digest, state->page_count);
    if (state != NULL && of->all)
        return of->seen != NULL ? find_seen(of, txid, u, err) : BK_OK;
    bk_rc_t rc = choose_own(of, &u->own, err);
    if (rc == BK_OK && state != NULL)
        rc = find_same(of, state, u, err);
    if (rc != BK_OK || u->past != NULL || (state == NULL && place.frame == 0))
        return rc;
    rc = bk_moments_open(of->base_dir, of->set, of->database, of->repo, of->ctl, &u->moments, err);
    if (rc == BK_OK && state == NULL)
        rc = bk_moments_placed(u->moments, &place, pinned->instant, &txid, err);
    if (rc == BK_OK && txid > 0 && of->seen != NULL) {
        rc = find_seen(of, txid, u, err);
        if (rc == BK_OK && u->past != NULL && bk_past_page_count(u->past) == pinned->page_count)
            tell(u, bk_past_digest(u->past), pinned->page_count);
        return rc;
    }
    if (rc == BK_OK && txid > 0)
        rc = bk_moments_number(u->moments, txid, &u->own, &u->moment, err);
    if (rc != BK_OK || txid == 0 || !is_it(u, &place, pinned->page_count, state))
        return rc;
    tell(u, u->moment.tx.after, u->moment.tx.page_count);
    if (of->all)
        return BK_OK;
    rc = bk_moments_past(&u->moment, NULL, NULL, &u->past, err);
    if (rc == BK_OK)
        u->known = (bk_db_known_t){.like = u->moment.from, .past = u->past};
    return rc;
}

bk_rc_t bk_unchanged_find(const bk_unchanged_of_t *of, const bk_db_info_t *pinned,
                          const bk_capture_state_t *state, bk_unchanged_t *u, bk_err_t *err)
{
    bk_err_t why = {0};
    *u = (bk_unchanged_t){.moments = NULL};
    bk_rc_t rc = find(of, pinned, state, u, &why);
    return rc == BK_OK ? rc : bk_ctl_check(of->ctl, err);
}

void bk_unchanged_free(bk_unchanged_t *u)
{
    bk_past_free(u->past);
    bk_moments_free(u->moments);
    free(u->own.items); /* they are the list's */
    *u = (bk_unchanged_t){.moments = NULL};
}
