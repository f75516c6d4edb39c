/*
 * repo/session.c: beginning a backup and putting chunks into it.  The end is commit.c; the order of
 * all that is written stands in session.h and must not be changed.
 *
 * Lock order: flush_lock or a pack's lock, then session->lock or the table of recent chunks.  An
 * open pack belongs to the lane that took it out of the list; its own lock only keeps readers of
 * fresh chunks out while it changes.
 */
#include "repo/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/session_private.h"
#include "repo/spool.h"

#define INDEX_ENTRIES 32768u
#define INDEX_AGE     (600 * BK_SEC)
#define TEND_EVERY    (20 * BK_SEC)
#define PACK_ENTRIES  65536u
/*
 * A pack that holds half its target is closed rather than let a chunk push it further beyond than
 * this.
 */
#define PACK_SLACK (2u << 20)
/* Where packs are larger than usual, all lanes fill these few: memory must not grow with them. */
#define SHARED_BYTES (64u << 20)

/* --- the beginning and the end of the memory --- */

static void free_open_packs(bk_open_packs_t *open)
{
    for (size_t i = 0; i < open->count; i++) {
        bk_pack_free(&open->packs[i]->pack);
        pthread_mutex_destroy(&open->packs[i]->lock);
        free(open->packs[i]);
    }
    open->count = 0;
}

static void free_finished(bk_pack_t **packs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(packs[i]->entries);
        free(packs[i]);
    }
    free(packs);
}

void bk_session_free(bk_session_t *session)
{
    if (session == NULL)
        return;
    bk_lease_end(session);
    if (session->recent != NULL)
        bk_recent_clear(session->recent);
    free_open_packs(&session->data);
    free_open_packs(&session->meta);
    free_finished(session->finished, session->finished_count);
    bk_packset_free(&session->absent);
    bk_packset_free(&session->relied);
    if (session->spool_lock >= 0)
        close(session->spool_lock);
    pthread_mutex_destroy(&session->lock);
    pthread_cond_destroy(&session->given);
    pthread_mutex_destroy(&session->flush_lock);
    pthread_mutex_destroy(&session->lease_lock);
    free(session->host);
    free(session);
}

static bk_rc_t lock_spool(bk_session_t *session, bk_err_t *err)
{
    char path[4096];
    if (!bk_fmt(path, sizeof path, "%s/.lock", bk_repo_spool_dir(session->repo)))
        return bk_err_set(err, BK_INVALID, "begin a backup: the spool's path is too long");
    bk_rc_t rc = bk_lock_file(path, &session->spool_lock, err);
    if (rc == BK_LOCKED)
        return bk_err_set(err, BK_LOCKED,
                          "begin a backup: another backup is writing through the spool %s",
                          bk_repo_spool_dir(session->repo));
    return rc;
}

static void choose_targets(bk_session_t *session)
{
    uint64_t chunks, packs, bytes;
    bk_index_totals(session->index, &chunks, &packs, &bytes);
    session->meta.target = bk_pack_target(BK_KIND_META, bytes);
    session->data.target = bk_pack_target(BK_KIND_PACK, bytes);
    if (session->data.target > BK_PACK_TARGET)
        session->data.most = (unsigned)(SHARED_BYTES / session->data.target);
}

/*
 * The order matters: lease, then condemned/, then index/ (a collector looks at them the other way
 * round).
 */
static bk_rc_t prepare(bk_session_t *session, bk_err_t *err)
{
    bk_repo_t *repo = session->repo;
    bk_rc_t rc = BK_OK;
    if (session->options.upload) {
        rc = bk_lease_begin(session, err);
        if (rc == BK_OK)
            rc = bk_spool_ship(repo, session->ctl, err);
    }
    if (rc == BK_OK)
        rc = bk_packset_condemned(repo, &session->absent, session->ctl, err);
    if (rc == BK_OK)
        rc = bk_doubt_load(repo, &session->absent, &session->doubted, session->ctl, err);
    if (rc == BK_OK)
        rc = bk_repo_index(repo, session->ctl, &session->index, err);
    if (rc == BK_OK)
        rc = bk_index_refresh(session->index, session->ctl, err);
    if (rc == BK_OK)
        choose_targets(session);
    return rc;
}

bk_rc_t bk_session_begin(bk_repo_t *repo, const bk_session_options_t *options, bk_ctl_t *ctl,
                         bk_session_t **result, bk_err_t *err)
{
    if (bk_repo_spool_dir(repo) == NULL)
        return bk_err_set(err, BK_INVALID, "the repository was opened for reading only");
    bk_session_t *session = calloc(1, sizeof *session);
    if (session == NULL || (session->host = bk_strdup(options->host)) == NULL) {
        free(session);
        return bk_err_set(err, BK_NO_MEMORY, "begin a backup: out of memory");
    }
    session->repo = repo;
    session->ctl = ctl;
    session->options = *options;
    session->options.host = session->host;
    session->spool_lock = -1;
    pthread_mutex_init(&session->lock, NULL);
    pthread_cond_init(&session->given, NULL);
    pthread_mutex_init(&session->flush_lock, NULL);
    pthread_mutex_init(&session->lease_lock, NULL);
    atomic_init(&session->due, bk_mono() + TEND_EVERY);
    bk_rc_t rc = lock_spool(session, err);
    if (rc == BK_OK)
        rc = prepare(session, err);
    if (rc == BK_OK)
        rc = bk_repo_recent(repo, &session->recent, err);
    if (rc != BK_OK)
        bk_session_free(session);
    else
        *result = session;
    return rc;
}

void bk_session_rely(bk_session_t *session, const char *snapshot)
{
    bk_strcpy(session->relied_snapshot, sizeof session->relied_snapshot, snapshot);
}

bool bk_session_doubts(const bk_session_t *session, int64_t since)
{
    return session->doubted > since;
}

bk_repo_t *bk_session_repo(bk_session_t *session)
{
    return session->repo;
}

bk_ctl_t *bk_session_ctl(bk_session_t *session)
{
    return session->ctl;
}

void bk_session_stats(bk_session_t *session, bk_session_stats_t *stats)
{
    pthread_mutex_lock(&session->lock);
    *stats = session->stats;
    pthread_mutex_unlock(&session->lock);
}

bk_rc_t bk_session_fail(bk_session_t *session, bk_rc_t rc, const bk_err_t *err)
{
    if (rc == BK_OK)
        return rc;
    pthread_mutex_lock(&session->lock);
    if (session->failure.rc == BK_OK) {
        if (err != NULL)
            session->failure = *err;
        session->failure.rc = rc;
    }
    pthread_mutex_unlock(&session->lock);
    return rc;
}

/* --- index segments --- */

static void give_back(bk_session_t *session, bk_pack_t **packs, size_t count, size_t entries)
{
    pthread_mutex_lock(&session->lock);
    bk_pack_t **all = realloc(packs, (count + session->finished_count + 1) * sizeof *all);
    if (all != NULL) {
        for (size_t i = 0; i < session->finished_count; i++)
            all[count++] = session->finished[i];
        free(session->finished);
        session->finished = all;
        session->finished_count = session->finished_cap = count;
        session->finished_entries += entries;
        packs = NULL;
        count = 0;
    }
    pthread_mutex_unlock(&session->lock);
    free_finished(packs, count); /* their packs wait in the spool all the same */
}

bk_rc_t bk_session_flush_index(bk_session_t *session, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    bk_repo_t *repo = session->repo;
    bk_storage_t *spool = bk_repo_objects(repo)->spool;
    uint64_t bytes = 0;

    pthread_mutex_lock(&session->flush_lock);
    pthread_mutex_lock(&session->lock);
    bk_pack_t **packs = session->finished;
    size_t count = session->finished_count, entries = session->finished_entries;
    session->finished = NULL;
    session->finished_count = session->finished_cap = session->finished_entries = 0;
    pthread_mutex_unlock(&session->lock);

    bk_rc_t rc = BK_OK;
    if (count > 0) {
        rc = bk_index_store(bk_repo_keyring(repo), bk_repo_uuid(repo),
                            (const bk_pack_t *const *)packs, count, spool, name, &bytes, NULL, err);
        if (rc == BK_OK && session->options.upload)
            rc = bk_spool_ship_one(repo, name, true, session->ctl, err);
    }
    if (rc != BK_OK) {
        give_back(session, packs, count, entries);
    } else if (count > 0) {
        pthread_mutex_lock(&session->lock);
        session->stats.bytes_stored += bytes;
        pthread_mutex_unlock(&session->lock);
        if (session->ctl != NULL)
            atomic_fetch_add(&session->ctl->bytes_stored, bytes);
        /* The spool's copy served to rebuild the segment after a crash. */
        for (size_t i = 0; i < count && session->options.upload; i++) {
            bk_pack_object_name(name, &packs[i]->name, packs[i]->kind);
            bk_storage_remove(spool, name, NULL, NULL);
        }
        /* When the index cannot be read again just now, the chunks simply stay in the table. */
        if (bk_index_refresh(session->index, session->ctl, NULL) == BK_OK)
            bk_recent_indexed(session->recent, packs, count);
        free_finished(packs, count);
    } else {
        free(packs);
    }
    pthread_mutex_unlock(&session->flush_lock);
    return rc;
}

/*
 * From time to time, by whichever lane comes first: the lease must not run out while nothing new is
 * found, and packs that were closed long ago get their index segment.
 */
static bk_rc_t tend(bk_session_t *session, bk_err_t *err)
{
    int64_t now = bk_mono(), due = atomic_load_explicit(&session->due, memory_order_relaxed);
    if (now < due || !atomic_compare_exchange_strong(&session->due, &due, now + TEND_EVERY))
        return BK_OK;
    if (session->options.upload) {
        bk_err_t why = {0};
        /* One failure is no harm: the lease has ten more minutes, and the commit looks again. */
        if (bk_lease_keep(session, &why) != BK_OK)
            bk_ctl_note(session->ctl, "renewing the lease: %s", why.text);
    }
    pthread_mutex_lock(&session->lock);
    bool old = session->finished_count > 0 && now - session->finished_since > INDEX_AGE;
    pthread_mutex_unlock(&session->lock);
    return old ? bk_session_flush_index(session, err) : BK_OK;
}

/* --- packs --- */

/* Takes the entries over; the pack is empty afterwards, its memory kept for the next chunks. */
static bk_rc_t remember_finished(bk_session_t *session, bk_pack_t *pack, bk_err_t *err)
{
    bool full = false;
    bk_pack_t *record = calloc(1, sizeof *record);
    if (record == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "close a pack: out of memory");
    *record = (bk_pack_t){.kind = pack->kind,
                          .overhead = pack->overhead,
                          .entries = pack->entries,
                          .count = pack->count,
                          .cap = pack->cap,
                          .name = pack->name};
    record->bytes.len = pack->bytes.len; /* the index wants the size */
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&session->lock);
    if (session->finished_count == session->finished_cap) {
        size_t cap = session->finished_cap > 0 ? 2 * session->finished_cap : 64;
        bk_pack_t **more = realloc(session->finished, cap * sizeof *more);
        if (more == NULL) {
            rc = bk_err_set(err, BK_NO_MEMORY, "close a pack: out of memory");
        } else {
            session->finished = more;
            session->finished_cap = cap;
        }
    }
    if (rc == BK_OK && !bk_packset_add(&session->relied, &pack->name, pack->kind))
        rc = bk_err_set(err, BK_NO_MEMORY, "close a pack: out of memory");
    if (rc == BK_OK) {
        if (session->finished_count == 0)
            session->finished_since = bk_mono();
        session->finished[session->finished_count++] = record;
        session->finished_entries += pack->count;
        session->stats.packs++;
        session->stats.bytes_stored += pack->bytes.len;
        full = session->finished_entries >= INDEX_ENTRIES;
    }
    pthread_mutex_unlock(&session->lock);
    if (rc != BK_OK) {
        free(record);
        return rc;
    }
    if (session->ctl != NULL)
        atomic_fetch_add(&session->ctl->bytes_stored, pack->bytes.len);
    bk_pack_reset(pack);
    return full ? bk_session_flush_index(session, err) : BK_OK;
}

bk_rc_t bk_session_close_pack(bk_session_t *session, bk_open_pack_t *open, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    bk_repo_t *repo = session->repo;
    bk_pack_t *pack = &open->pack;

    /* Readers wait until the chunks can be found in the spool. */
    pthread_mutex_lock(&open->lock);
    bk_rc_t rc = bk_pack_finish(pack, bk_repo_keyring(repo), bk_repo_uuid(repo), err);
    if (rc == BK_OK) {
        bk_pack_object_name(name, &pack->name, pack->kind);
        rc = bk_storage_put(bk_repo_objects(repo)->spool, name, pack->bytes.data, pack->bytes.len,
                            false, session->ctl, err);
    }
    if (rc == BK_OK)
        rc = bk_recent_close(session->recent, pack, err);
    pthread_mutex_unlock(&open->lock);
    if (rc == BK_OK && session->options.upload)
        rc = bk_spool_ship_one(repo, name, false, session->ctl, err);
    return rc == BK_OK ? remember_finished(session, pack, err) : rc;
}

static bk_open_packs_t *list_of(bk_session_t *session, bk_kind_t kind)
{
    return kind == BK_KIND_META ? &session->meta : &session->data;
}

static bk_rc_t make_pack(bk_session_t *session, bk_kind_t kind, bk_open_pack_t **result,
                         bk_err_t *err)
{
    bk_open_packs_t *list = list_of(session, kind);
    bk_open_pack_t *open = calloc(1, sizeof *open);
    bk_rc_t rc = open == NULL ? bk_err_set(err, BK_NO_MEMORY, "start a pack: out of memory")
                              : bk_pack_init(&open->pack, kind, list->target,
                                             bk_repo_encrypted(session->repo), err);
    if (rc == BK_OK) {
        pthread_mutex_init(&open->lock, NULL);
        *result = open;
        return rc;
    }
    free(open);
    pthread_mutex_lock(&session->lock);
    list->made--;
    pthread_cond_signal(&session->given);
    pthread_mutex_unlock(&session->lock);
    return rc;
}

/* Where the packs are few, wait until another lane gives one back; every taker does, soon. */
static bk_rc_t take_pack(bk_session_t *session, bk_kind_t kind, bk_open_pack_t **result,
                         bk_err_t *err)
{
    bk_open_packs_t *list = list_of(session, kind);
    bk_open_pack_t *open = NULL;
    pthread_mutex_lock(&session->lock);
    while (list->count == 0 && list->most > 0 && list->made >= list->most)
        pthread_cond_wait(&session->given, &session->lock);
    if (list->count > 0)
        open = list->packs[--list->count];
    else
        list->made++;
    pthread_mutex_unlock(&session->lock);
    *result = open;
    return open != NULL ? BK_OK : make_pack(session, kind, result, err);
}

/*
 * Empty ones go to the bottom: the fewer packs are begun, the fewer small ones there are at the
 * end.
 */
static void give_pack(bk_session_t *session, bk_open_pack_t *open)
{
    bk_open_packs_t *list = list_of(session, open->pack.kind);
    pthread_mutex_lock(&session->lock);
    if (list->count < BK_OPEN_PACKS) {
        size_t at = open->pack.count == 0 ? 0 : list->count;
        memmove(&list->packs[at + 1], &list->packs[at], (list->count - at) * sizeof *list->packs);
        list->packs[at] = open;
        list->count++;
        open = NULL;
        if (list->most > 0)
            pthread_cond_signal(&session->given);
    }
    pthread_mutex_unlock(&session->lock);
    if (open !=
        NULL) { /* more lanes than anybody has; what it holds is in the table of recent chunks */
        bk_err_t err = {.rc = BK_FAILED, .text = "too many packs are open"};
        bk_session_fail(session, BK_FAILED, &err);
    }
}

/* --- chunks --- */

static bool is_absent(void *arg, const bk_id_t *pack)
{
    return bk_packset_has(arg, pack);
}

/* The index has the chunk in a pack that will stay: the backup relies on that pack from now on. */
static bool find_indexed(bk_session_t *session, const bk_id_t *id)
{
    bk_location_t where;
    bk_index_refuse_fn refuse = session->absent.count > 0 ? is_absent : NULL;
    if (!bk_index_find_except(session->index, id, refuse, &session->absent, &where))
        return false;
    pthread_mutex_lock(&session->lock);
    bool added = bk_packset_add(&session->relied, &where.pack, where.kind);
    pthread_mutex_unlock(&session->lock);
    return added; /* without memory to remember it, it is better stored again */
}

bool bk_session_has(bk_session_t *session, const bk_id_t *id)
{
    bk_err_t err = {0};
    bk_session_fail(session, tend(session, &err), &err);
    return find_indexed(session, id) || bk_recent_has(session->recent, id) ||
           find_indexed(session, id); /* it may have moved to the index between the two */
}

/* *mine: nobody stored the chunk yet, the caller has to. */
static bk_rc_t reserve(bk_session_t *session, const bk_id_t *id, size_t len, bool *mine,
                       bk_err_t *err)
{
    bk_rc_t rc;
    *mine = false;
    do {
        uint64_t generation = bk_recent_generation(session->recent);
        if (find_indexed(session, id)) {
            rc = BK_OK;
            break;
        }
        rc = bk_recent_claim(session->recent, id, generation, mine, err);
    } while (rc == BK_CONFLICT);
    pthread_mutex_lock(&session->lock);
    if (*mine) {
        session->stats.chunks_new++;
        session->stats.bytes_new += len;
    } else if (rc == BK_OK) {
        session->stats.chunks_known++;
        session->stats.bytes_known += len;
    }
    pthread_mutex_unlock(&session->lock);
    return rc;
}

static bk_compression_t compression_of(const bk_session_t *session, bk_type_t type)
{
    bk_compression_t how = session->options.compression;
    if (type == BK_TYPE_FILE || how.codec == BK_CODEC_GZIP ||
        (type == BK_TYPE_BLOCK && how.codec == BK_CODEC_RAW))
        return how;
    return (bk_compression_t){.codec = BK_CODEC_ZSTD, .level = 1};
}

/* A chunk on its way into a pack. */
typedef struct {
    const bk_id_t *id;
    bk_type_t type;
    bool probe;
    const void *data;
    size_t len;
    bk_buf_t *packed; /* in the form of codec; NULL: not compressed yet */
    bk_codec_t codec;
} chunk_t;

/*
 * Compress straight into the pack, without a buffer between and a copy; but where lanes share packs
 * that was done before, all at once.
 */
static bk_rc_t append(bk_session_t *session, bk_open_pack_t *open, const chunk_t *chunk,
                      bk_err_t *err)
{
    pthread_mutex_lock(&open->lock);
    bk_rc_t rc = chunk->packed != NULL ? bk_pack_add(&open->pack, chunk->id, chunk->type,
                                                     chunk->codec, chunk->packed->data,
                                                     chunk->packed->len, (uint32_t)chunk->len, err)
                                       : bk_pack_append(&open->pack, chunk->id, chunk->type,
                                                        compression_of(session, chunk->type),
                                                        chunk->probe, chunk->data, chunk->len, err);
    if (rc == BK_OK)
        bk_recent_place(session->recent, &open->pack.entries[open->pack.count - 1], open);
    pthread_mutex_unlock(&open->lock);
    return rc;
}

static bk_rc_t put_into_pack(bk_session_t *session, const chunk_t *chunk, bk_err_t *err)
{
    bk_open_pack_t *open = NULL;
    bk_kind_t kind = BK_TYPE_IS_META(chunk->type) ? BK_KIND_META : BK_KIND_PACK;
    size_t target = list_of(session, kind)->target;
    bk_rc_t rc = take_pack(session, kind, &open, err);
    if (rc != BK_OK) {
        bk_recent_drop(session->recent, chunk->id);
        return rc;
    }
    size_t size = bk_pack_size(&open->pack);
    size_t len = chunk->packed != NULL ? chunk->packed->len : chunk->len;
    if (size >= target / 2 && size + len > target + PACK_SLACK)
        rc = bk_session_close_pack(session, open, err);
    if (rc == BK_OK)
        rc = append(session, open, chunk, err);
    if (rc != BK_OK)
        bk_recent_drop(session->recent, chunk->id);
    else if (bk_pack_size(&open->pack) >= target || open->pack.count >= PACK_ENTRIES)
        rc = bk_session_close_pack(session, open, err);
    give_pack(session, open);
    return rc;
}

static bk_rc_t store(bk_session_t *session, const chunk_t *chunk, bk_err_t *err)
{
    bk_buf_t packed;
    if (BK_TYPE_IS_META(chunk->type) || session->data.most == 0)
        return put_into_pack(session, chunk, err);
    bk_buf_init(&packed, BK_CHUNK_MAX + (1u << 20));
    chunk_t packed_chunk = *chunk;
    packed_chunk.packed = &packed;
    bk_rc_t rc = bk_compress(compression_of(session, chunk->type), chunk->probe, chunk->data,
                             chunk->len, &packed, &packed_chunk.codec, err);
    if (rc == BK_OK)
        rc = put_into_pack(session, &packed_chunk, err);
    else
        bk_recent_drop(session->recent, chunk->id);
    bk_buf_free(&packed);
    return rc;
}

bk_rc_t bk_session_put(bk_session_t *session, bk_type_t type, bool probe, const void *data,
                       size_t len, bk_id_t *id, bk_err_t *err)
{
    bool mine = false;
    bk_err_t why = {0};
    if (len > BK_CHUNK_MAX)
        return bk_err_set(err, BK_TOO_LARGE, "store a chunk: %zu bytes are too many", len);
    bk_chunk_id(bk_repo_keyring(session->repo), (uint8_t)type, data, len, id);
    pthread_mutex_lock(&session->lock);
    if (session->failure.rc != BK_OK)
        why = session->failure;
    pthread_mutex_unlock(&session->lock);
    bk_rc_t rc = why.rc;
    if (rc == BK_OK)
        rc = tend(session, &why);
    if (rc == BK_OK)
        rc = reserve(session, id, len, &mine, &why);
    if (rc == BK_OK && mine)
        rc = store(session,
                   &(chunk_t){.id = id, .type = type, .probe = probe, .data = data, .len = len},
                   &why);
    if (rc != BK_OK && err != NULL)
        *err = why;
    return bk_session_fail(session, rc, &why);
}
