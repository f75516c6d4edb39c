/*
 * repo/fetch.c: many chunks in the order they lie in, near ones with one read, by all lanes at
 * once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "repo/repo_private.h"

#define GAP           (256u << 10) /* bytes read in vain rather than a second request */
#define RANGE_MAX     (4u << 20)   /* of one read, but a single longer frame */
#define WHOLE_PERCENT 60u

typedef struct {
    bk_want_chunk_t *want;
    bk_location_t where;
} place_t;

typedef struct {
    bk_repo_t *repo;
    bk_deliver_fn deliver;
    void *arg;
    bk_ctl_t *ctl;
    const bk_group_t *group; /* of all reads: once one failed, the others need not go on */
} job_t;

typedef struct {
    job_t *job;
    place_t *first; /* sorted by offset, all in one pack */
    size_t count;
} range_t;

static int by_place(const void *a, const void *b)
{
    const place_t *x = a, *y = b;
    int order = bk_id_compare(&x->where.pack, &y->where.pack);
    if (order != 0)
        return order;
    return x->where.entry.offset < y->where.entry.offset
               ? -1
               : x->where.entry.offset > y->where.entry.offset;
}

static uint64_t end_of(const place_t *place)
{
    return (uint64_t)place->where.entry.offset + place->where.entry.stored;
}

/* A stop request is never a chunk's failure. */
static bool is_stop(bk_rc_t rc)
{
    return rc == BK_CANCELED || rc == BK_INTERRUPTED;
}

static bk_rc_t deliver_raw(const job_t *job, bk_want_chunk_t *want, const uint8_t *raw, size_t len,
                           bk_err_t *err)
{
    bk_err_t failure = {0};
    static const uint8_t nothing[1]; /* an empty chunk is data, too */
    if (len == want->raw)
        return job->deliver(job->arg, want, len > 0 ? raw : nothing, NULL, err);
    bk_err_set(&failure, BK_CORRUPT, "a chunk has %zu bytes where %u were expected", len,
               (unsigned)want->raw);
    return job->deliver(job->arg, want, NULL, &failure, err);
}

/*
 * The places first..first+count-1 could not be read from where the index says.  Another copy may be
 * sound, or the chunk is one of the running session; else everybody who wanted it is told the
 * failure.
 */
static bk_rc_t deliver_otherwise(const job_t *job, const place_t *first, size_t count,
                                 const bk_err_t *failure, bk_err_t *err)
{
    bk_buf_t raw;
    bk_rc_t rc = BK_OK;
    bk_buf_init(&raw, BK_CHUNK_MAX);
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        bk_err_t why = {0};
        bk_want_chunk_t *want = first[i].want;
        bool same = i > 0 && bk_id_equal(&first[i - 1].want->id, &want->id);
        bk_rc_t got = same ? BK_OK : bk_repo_get(job->repo, &want->id, &raw, job->ctl, &why);
        if (same && raw.len == 0 && want->raw > 0)
            got = BK_CORRUPT; /* as for its twin just before */
        if (is_stop(got)) {
            if (err != NULL)
                *err = why;
            rc = got;
        } else if (got == BK_OK) {
            rc = deliver_raw(job, want, raw.data, raw.len, err);
        } else {
            rc = job->deliver(job->arg, want, NULL, failure != NULL ? failure : &why, err);
        }
    }
    bk_buf_free(&raw);
    return rc;
}

/* Nobody stores zeros: the id is all zero, the length says how many. */
static bk_rc_t deliver_zeros(const job_t *job, bk_want_chunk_t *want, bk_err_t *err)
{
    if (want->raw > BK_CHUNK_MAX)
        return deliver_raw(job, want, NULL, 0, err);
    uint8_t *zeros = calloc(want->raw + 1u, 1);
    if (zeros == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read a chunk: out of memory");
    bk_rc_t rc = deliver_raw(job, want, zeros, want->raw, err);
    free(zeros);
    return rc;
}

/* Places first..first+count-1 want the same frame. */
static bk_rc_t deliver_frame(const job_t *job, const place_t *first, size_t count,
                             const bk_object_key_t *key, uint8_t *frame, uint8_t *raw,
                             bk_err_t *err)
{
    bk_err_t failure = {0};
    const bk_pack_entry_t *entry = &first->where.entry;
    bk_rc_t rc = bk_pack_frame(bk_repo_keyring(job->repo), key, entry, frame, raw, &failure);
    if (rc != BK_OK) {
        char name[BK_STORAGE_NAME];
        bk_pack_object_name(name, &first->where.pack, first->where.kind);
        bk_err_wrap(&failure, "%s at %u", name, (unsigned)entry->offset);
        return deliver_otherwise(job, first, count, &failure, err);
    }
    for (size_t i = 0; i < count && rc == BK_OK; i++)
        rc = deliver_raw(job, first[i].want, raw, entry->raw, err);
    return rc;
}

static bk_rc_t fetch_range(void *arg, bk_err_t *err)
{
    range_t *range = arg;
    const job_t *job = range->job;
    const place_t *first = range->first, *last = first + range->count - 1;
    uint32_t start = first->where.entry.offset, raw_max = 1;
    size_t len = 0, got = 0;
    char name[BK_STORAGE_NAME];
    bk_object_key_t key = {0};
    bk_err_t failure = {0};

    for (const place_t *place = first; place <= last; place++) {
        if (end_of(place) - start > len)
            len = (size_t)(end_of(place) - start);
        if (place->where.entry.raw > raw_max)
            raw_max = place->where.entry.raw;
    }
    uint8_t *bytes = malloc(len + 1), *raw = malloc(raw_max);
    bk_rc_t rc = bk_ctl_check(job->ctl, err);
    if (rc == BK_OK && (bytes == NULL || raw == NULL))
        rc = bk_err_set(err, BK_NO_MEMORY, "read a pack: out of memory");
    if (rc != BK_OK || bk_group_failed(job->group))
        goto done;
    bk_pack_object_name(name, &first->where.pack, first->where.kind);
    rc = bk_repo_pack_key(job->repo, &first->where.pack, first->where.kind, &key, job->ctl,
                          &failure);
    if (rc == BK_OK)
        rc = bk_objects_get(bk_repo_objects(job->repo), name, start, len, bytes, &got, job->ctl,
                            &failure);
    if (is_stop(rc)) {
        if (err != NULL)
            *err = failure;
        goto done;
    }
    if (rc != BK_OK) {
        bk_err_wrap(&failure, "%s", name);
        rc = deliver_otherwise(job, first, range->count, &failure, err);
        goto done;
    }
    for (size_t i = 0, n; i < range->count && rc == BK_OK && !bk_group_failed(job->group); i += n) {
        const place_t *place = &first[i];
        size_t offset = place->where.entry.offset - start;
        for (n = 1;
             i + n < range->count && first[i + n].where.entry.offset == place->where.entry.offset;)
            n++;
        if ((rc = bk_ctl_check(job->ctl, err)) != BK_OK)
            break;
        if (offset + place->where.entry.stored > got) {
            bk_err_set(&failure, BK_CORRUPT, "%s is cut off", name);
            rc = deliver_otherwise(job, place, n, &failure, err);
        } else {
            rc = deliver_frame(job, place, n, &key, bytes + offset, raw, err);
        }
    }
done:
    free(bytes);
    free(raw);
    bk_object_key_wipe(&key);
    free(range);
    return rc;
}

static bk_rc_t submit_range(job_t *job, bk_team_t *team, bk_group_t *group, place_t *first,
                            size_t count, bk_err_t *err)
{
    range_t *range = malloc(sizeof *range);
    if (range == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "plan reading: out of memory");
    *range = (range_t){.job = job, .first = first, .count = count};
    bk_team_submit(team, group, fetch_range, range,
                   (size_t)(end_of(&first[count - 1]) - first->where.entry.offset));
    return BK_OK;
}

/* One pack's places, cut into reads. */
static bk_rc_t submit_pack(job_t *job, bk_team_t *team, bk_group_t *group, place_t *first,
                           size_t count, bk_err_t *err)
{
    uint64_t wanted = 0;
    for (size_t i = 0; i < count; i++)
        if (i == 0 || first[i].where.entry.offset != first[i - 1].where.entry.offset)
            wanted += first[i].where.entry.stored;
    /* Where most is wanted, gaps do not matter. */
    uint64_t gap =
        wanted * 100 >= (uint64_t)first->where.pack_size * WHOLE_PERCENT ? UINT32_MAX : GAP;
    bk_rc_t rc = BK_OK;
    for (size_t i = 0, n; i < count && rc == BK_OK; i += n) {
        uint64_t start = first[i].where.entry.offset, end = end_of(&first[i]);
        for (n = 1; i + n < count; n++) {
            const place_t *next = &first[i + n];
            if (next->where.entry.offset > end + gap || end_of(next) - start > RANGE_MAX)
                break;
            if (end_of(next) > end)
                end = end_of(next);
        }
        rc = submit_range(job, team, group, &first[i], n, err);
    }
    return rc;
}

bk_rc_t bk_repo_fetch(bk_repo_t *repo, bk_want_chunk_t *wants, size_t count, bk_team_t *team,
                      bk_deliver_fn deliver, void *arg, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_group_t group;
    job_t job = {.repo = repo, .deliver = deliver, .arg = arg, .ctl = ctl, .group = &group};
    bk_index_t *index;
    size_t found = 0;

    if (count == 0)
        return BK_OK;
    bk_rc_t rc = bk_repo_index(repo, ctl, &index, err);
    if (rc != BK_OK)
        return rc;
    place_t *places = calloc(count, sizeof *places);
    if (places == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "plan reading %zu chunks: out of memory", count);
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        places[found].want = &wants[i];
        if (bk_id_is_zero(&wants[i].id))
            rc = deliver_zeros(&job, &wants[i], err);
        else if (bk_index_find(index, &wants[i].id, &places[found].where))
            found++;
        else
            rc = deliver_otherwise(&job, &places[found], 1, NULL, err);
    }
    qsort(places, found, sizeof *places, by_place);
    bk_group_init(&group);
    for (size_t i = 0, n; i < found && rc == BK_OK && !bk_group_failed(&group); i += n) {
        for (n = 1; i + n < found && bk_id_equal(&places[i].where.pack, &places[i + n].where.pack);)
            n++;
        rc = submit_pack(&job, team, &group, &places[i], n, err);
    }
    bk_err_t failure = {0};
    bk_rc_t done = bk_team_wait(team, &group, &failure);
    free(places);
    if (rc == BK_OK && done != BK_OK) {
        if (err != NULL)
            *err = failure;
        rc = done;
    }
    return rc;
}
