/*
 * repo/session.c: writing one backup, in the order that keeps every listed backup readable (session.h).
 *
 * Lock order: session->lock alone; the index has its own.  A pack that is open belongs to the lane that took it out of
 * the list, so adding to it needs no lock.
 */
#include "repo/session.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/repo_private.h"
#include "repo/spool.h"

#define INDEX_ENTRIES 32768u
#define INDEX_AGE     (600 * BK_SEC)
#define LEASE_LIFE    (900 * BK_SEC)
#define LEASE_RENEW   (300 * BK_SEC)
#define OPEN_PACKS    32 /* of a kind, more than lanes ever */

/* Open addressing over ids; grows at half load. */
typedef struct {
    bk_id_t *slots; /* zero id: free */
    size_t cap, count;
} id_set_t;

typedef struct {
    bk_pack_t *packs[OPEN_PACKS];
    size_t count;
} open_packs_t;

struct bk_session_s {
    bk_repo_t *repo;
    bk_index_t *index;
    bk_ctl_t *ctl;
    bk_session_options_t options;
    char *host;
    char lease[BK_STORAGE_NAME];
    bk_id_t *condemned; /* names of packs, sorted */
    size_t condemned_count;

    pthread_mutex_t lock; /* guards what follows */
    id_set_t pending;
    open_packs_t data, meta;
    bk_pack_t *
        *finished; /* in no index segment yet; their bytes are freed, names and entries kept */
    size_t finished_count, finished_cap, finished_entries;
    int64_t index_due, lease_due;
    bk_session_stats_t stats;
    bool failed;
};

/* --- ids --- */

static size_t id_place(const id_set_t *set, const bk_id_t *id)
{
    size_t at = (size_t)bk_get_u64(id->b + 8) & (set->cap - 1);
    while (!bk_id_is_zero(&set->slots[at]) && !bk_id_equal(&set->slots[at], id))
        at = (at + 1) & (set->cap - 1);
    return at;
}

static bool id_has(const id_set_t *set, const bk_id_t *id)
{
    return set->cap > 0 && !bk_id_is_zero(&set->slots[id_place(set, id)]);
}

static bool id_add(id_set_t *set, const bk_id_t *id)
{
    if (2 * (set->count + 1) > set->cap) {
        id_set_t bigger = {.cap = set->cap > 0 ? 2 * set->cap : 1024, .count = set->count};
        bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
        if (bigger.slots == NULL)
            return false;
        for (size_t i = 0; i < set->cap; i++)
            if (!bk_id_is_zero(&set->slots[i]))
                bigger.slots[id_place(&bigger, &set->slots[i])] = set->slots[i];
        free(set->slots);
        *set = bigger;
    }
    set->slots[id_place(set, id)] = *id;
    set->count++;
    return true;
}

/* --- condemned packs --- */

typedef struct {
    bk_session_t *session;
    bk_id_t *names;
    size_t count, cap;
} condemned_t;

/* An object of condemned/ holds a JSON array of pack names in hexadecimal. */
static bk_rc_t read_condemned(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    condemned_t *list = arg;
    bk_session_t *session = list->session;
    bk_buf_t object, plain;
    json_t *names = NULL, *name;
    size_t i;

    bk_buf_init(&object, 64u << 20);
    bk_buf_init(&plain, 64u << 20);
    bk_rc_t rc =
        bk_storage_get_all(bk_repo_storage(session->repo), item->name, &object, session->ctl, err);
    if (rc == BK_OK)
        rc = bk_object_unwrap(bk_repo_keyring(session->repo), bk_repo_uuid(session->repo),
                              BK_KIND_CONDEMNED, object.data, object.len, &plain, err);
    if (rc == BK_OK)
        rc = bk_json_parse(plain.data, plain.len, &names, err);
    json_array_foreach(names, i, name)
    {
        if (rc != BK_OK)
            break;
        if (list->count == list->cap) {
            size_t cap = list->cap > 0 ? 2 * list->cap : 64;
            bk_id_t *more = realloc(list->names, cap * sizeof *more);
            if (more == NULL) {
                rc = bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", item->name);
                break;
            }
            list->names = more;
            list->cap = cap;
        }
        if (!json_is_string(name) ||
            !bk_id_unhex(&list->names[list->count++], json_string_value(name),
                         json_string_length(name)))
            rc = bk_err_set(err, BK_CORRUPT, "%s: not a list of packs", item->name);
    }
    json_decref(names);
    bk_buf_free(&object);
    bk_buf_free(&plain);
    return rc;
}

static int compare_ids(const void *a, const void *b)
{
    return bk_id_compare(a, b);
}

static bk_rc_t list_condemned(bk_session_t *session, bk_err_t *err)
{
    condemned_t list = {.session = session};
    bk_rc_t rc = bk_storage_list(bk_repo_storage(session->repo), "condemned/", read_condemned,
                                 &list, session->ctl, err);
    if (rc != BK_OK) {
        free(list.names);
        return rc;
    }
    if (list.count > 1)
        qsort(list.names, list.count, sizeof *list.names, compare_ids);
    free(session->condemned);
    session->condemned = list.names;
    session->condemned_count = list.count;
    return BK_OK;
}

static bool is_condemned(void *arg, const bk_id_t *pack)
{
    const bk_session_t *session = arg;
    return session->condemned_count > 0 &&
           bsearch(pack, session->condemned, session->condemned_count, sizeof *pack, compare_ids) !=
               NULL;
}

/* --- lease --- */

static bk_rc_t write_lease(bk_session_t *session, bk_err_t *err)
{
    char expires[BK_TIME_TEXT], started[BK_TIME_TEXT];
    bk_buf_t text, object;
    int64_t now = bk_now();
    bk_time_format(started, now);
    bk_time_format(expires, now + LEASE_LIFE);
    bk_buf_init(&text, 4096);
    bk_buf_init(&object, 8192);
    json_t *lease = json_pack("{ss si ss ss}", "host", session->host, "pid", (int)getpid(),
                              "renewed", started, "expires", expires);
    bk_rc_t rc = bk_json_dump(lease, true, &text, err);
    json_decref(lease);
    if (rc == BK_OK)
        rc = bk_object_wrap(bk_repo_keyring(session->repo), bk_repo_uuid(session->repo),
                            BK_KIND_LEASE, text.data, text.len, &object, err);
    if (rc == BK_OK)
        rc = bk_storage_put(bk_repo_storage(session->repo), session->lease, object.data, object.len,
                            false, session->ctl, err);
    session->lease_due = bk_mono() + LEASE_RENEW;
    bk_buf_free(&text);
    bk_buf_free(&object);
    return rc;
}

/* A lease that ran out while the machine slept is over: a collector may have gone ahead. */
static bk_rc_t check_lease(bk_session_t *session, bk_err_t *err)
{
    if (!session->options.upload)
        return BK_OK;
    if (bk_mono() > session->lease_due - LEASE_RENEW + LEASE_LIFE)
        return bk_err_set(
            err, BK_INTERRUPTED,
            "the lease on the storage ran out while the backup stood still; run it again");
    return bk_mono() > session->lease_due ? write_lease(session, err) : BK_OK;
}

/* The lease is a file of this session: ended when the session ends, whatever ctl says. */
static void end_lease(bk_session_t *session)
{
    if (session->lease[0] != '\0')
        bk_storage_remove(bk_repo_storage(session->repo), session->lease, NULL, NULL);
    session->lease[0] = '\0';
}

static void free_pack(bk_pack_t *pack)
{
    if (pack == NULL)
        return;
    bk_pack_free(pack);
    free(pack);
}

static void free_session(bk_session_t *session)
{
    if (session == NULL)
        return;
    end_lease(session);
    for (size_t i = 0; i < session->data.count; i++)
        free_pack(session->data.packs[i]);
    for (size_t i = 0; i < session->meta.count; i++)
        free_pack(session->meta.packs[i]);
    for (size_t i = 0; i < session->finished_count; i++)
        free_pack(session->finished[i]);
    free(session->finished);
    free(session->pending.slots);
    free(session->condemned);
    free(session->host);
    pthread_mutex_destroy(&session->lock);
    free(session);
}

bk_rc_t bk_session_begin(bk_repo_t *repo, const bk_session_options_t *options, bk_ctl_t *ctl,
                         bk_session_t **result, bk_err_t *err)
{
    char ulid[BK_ULID_LEN + 1], host[128];
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
    pthread_mutex_init(&session->lock, NULL);
    session->index_due = bk_mono() + INDEX_AGE;
    bk_rc_t rc = BK_OK;
    if (options->upload) {
        /* Object names are plain; a host name may hold anything. */
        bk_strcpy(host, sizeof host, options->host);
        for (char *p = host; *p != '\0'; p++)
            if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9')))
                *p = '-';
        bk_ulid(ulid);
        bk_fmt(session->lease, sizeof session->lease, "leases/h-%.100s/%s", host, ulid);
        rc = write_lease(session, err);
        if (rc == BK_OK)
            rc = bk_spool_ship(repo, ctl, err);
    }
    if (rc == BK_OK)
        rc = list_condemned(session, err);
    if (rc == BK_OK)
        rc = bk_repo_index(repo, ctl, &session->index, err);
    if (rc == BK_OK)
        rc = bk_index_refresh(session->index, ctl, err);
    if (rc != BK_OK)
        free_session(session);
    else
        *result = session;
    return rc;
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

bool bk_session_has(bk_session_t *session, const bk_id_t *id)
{
    bk_location_t where;
    if (bk_index_find_except(session->index, id, is_condemned, session, &where))
        return true;
    pthread_mutex_lock(&session->lock);
    bool has = id_has(&session->pending, id);
    pthread_mutex_unlock(&session->lock);
    return has;
}

/* --- packs --- */

/* Lock held.  New segment of everything finished; the spool's copies of those packs may go then. */
static bk_rc_t flush_index(bk_session_t *session, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    uint64_t bytes = 0;
    if (session->finished_count == 0)
        return BK_OK;
    bk_rc_t rc =
        bk_index_store(bk_repo_keyring(session->repo), bk_repo_uuid(session->repo),
                       (const bk_pack_t *const *)session->finished, session->finished_count,
                       bk_repo_objects(session->repo)->spool, name, &bytes, NULL, err);
    if (rc == BK_OK && session->options.upload)
        rc = bk_spool_ship_one(session->repo, name, true, session->ctl, err);
    if (rc != BK_OK)
        return rc;
    session->stats.bytes_stored += bytes;
    for (size_t i = 0; i < session->finished_count; i++) {
        bk_pack_t *pack = session->finished[i];
        if (session->options.upload) {
            bk_pack_object_name(name, &pack->name, pack->kind);
            bk_storage_remove(bk_repo_objects(session->repo)->spool, name, NULL, NULL);
        }
        free_pack(pack);
    }
    session->finished_count = session->finished_entries = 0;
    session->index_due = bk_mono() + INDEX_AGE;
    return BK_OK;
}

static bk_rc_t remember_finished(bk_session_t *session, bk_pack_t *pack, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&session->lock);
    if (session->finished_count == session->finished_cap) {
        size_t cap = session->finished_cap > 0 ? 2 * session->finished_cap : 64;
        bk_pack_t **more = realloc(session->finished, cap * sizeof *more);
        if (more == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "store a pack: out of memory");
        else {
            session->finished = more;
            session->finished_cap = cap;
        }
    }
    if (rc == BK_OK) {
        session->finished[session->finished_count++] = pack;
        session->finished_entries += pack->count;
        session->stats.packs++;
        session->stats.bytes_stored += pack->bytes.len;
        if (session->ctl != NULL)
            atomic_fetch_add(&session->ctl->bytes_stored, pack->bytes.len);
        if (session->finished_entries >= INDEX_ENTRIES || bk_mono() > session->index_due)
            rc = flush_index(session, err);
        if (rc == BK_OK)
            rc = check_lease(session, err);
    } else {
        free_pack(pack);
    }
    pthread_mutex_unlock(&session->lock);
    return rc;
}

/* Seal a pack, make it durable in the spool, then on the storage.  Takes the pack over. */
static bk_rc_t finish_pack(bk_session_t *session, bk_pack_t *pack, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    bk_repo_t *repo = session->repo;
    bk_rc_t rc = bk_pack_finish(pack, bk_repo_keyring(repo), bk_repo_uuid(repo), err);
    if (rc == BK_OK) {
        bk_pack_object_name(name, &pack->name, pack->kind);
        rc = bk_storage_put(bk_repo_objects(repo)->spool, name, pack->bytes.data, pack->bytes.len,
                            false, session->ctl, err);
    }
    if (rc == BK_OK && session->options.upload)
        rc = bk_spool_ship_one(repo, name, false, session->ctl, err);
    if (rc != BK_OK) {
        free_pack(pack);
        return rc;
    }
    size_t len = pack->bytes.len;
    bk_buf_free(&pack->bytes);
    pack->bytes.len = len; /* the index wants the size */
    return remember_finished(session, pack, err);
}

static bk_rc_t take_pack(bk_session_t *session, bk_kind_t kind, bk_pack_t **pack, bk_err_t *err)
{
    open_packs_t *open = kind == BK_KIND_META ? &session->meta : &session->data;
    *pack = NULL;
    pthread_mutex_lock(&session->lock);
    if (open->count > 0)
        *pack = open->packs[--open->count];
    pthread_mutex_unlock(&session->lock);
    if (*pack != NULL)
        return BK_OK;
    bk_pack_t *fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "start a pack: out of memory");
    bk_rc_t rc = bk_pack_init(fresh, kind, bk_repo_encrypted(session->repo), err);
    if (rc != BK_OK)
        free(fresh);
    else
        *pack = fresh;
    return rc;
}

static bk_rc_t give_pack(bk_session_t *session, bk_pack_t *pack, bk_err_t *err)
{
    open_packs_t *open = pack->kind == BK_KIND_META ? &session->meta : &session->data;
    bool kept = false;
    if (bk_pack_size(pack) < (pack->kind == BK_KIND_META ? BK_META_TARGET : BK_PACK_TARGET)) {
        pthread_mutex_lock(&session->lock);
        if (open->count < OPEN_PACKS) {
            open->packs[open->count++] = pack;
            kept = true;
        }
        pthread_mutex_unlock(&session->lock);
    }
    return kept ? BK_OK : finish_pack(session, pack, err);
}

/* True when the caller is the first to bring this chunk and has to store it. */
static bk_rc_t reserve(bk_session_t *session, const bk_id_t *id, size_t len, bool *mine,
                       bk_err_t *err)
{
    bk_location_t where;
    bk_rc_t rc = BK_OK;
    bool indexed = bk_index_find_except(session->index, id, is_condemned, session, &where);
    pthread_mutex_lock(&session->lock);
    *mine = !indexed && !id_has(&session->pending, id);
    if (session->failed)
        rc = bk_err_set(err, BK_FAILED, "the backup failed already");
    else if (*mine && !id_add(&session->pending, id))
        rc = bk_err_set(err, BK_NO_MEMORY, "store a chunk: out of memory");
    if (*mine) {
        session->stats.chunks_new++;
        session->stats.bytes_new += len;
    } else {
        session->stats.chunks_known++;
        session->stats.bytes_known += len;
    }
    pthread_mutex_unlock(&session->lock);
    return rc;
}

static bk_compression_t compression_of(const bk_session_t *session, bk_type_t type)
{
    bk_compression_t how = session->options.compression;
    if (type != BK_TYPE_FILE && how.codec != BK_CODEC_GZIP)
        how = (bk_compression_t){.codec = BK_CODEC_ZSTD, .level = 1};
    if (type == BK_TYPE_BLOCK && session->options.compression.codec == BK_CODEC_RAW)
        how = session->options.compression;
    return how;
}

bk_rc_t bk_session_put(bk_session_t *session, bk_type_t type, bool probe, const void *data,
                       size_t len, bk_id_t *id, bk_err_t *err)
{
    bool mine;
    bk_buf_t packed;
    bk_codec_t codec;
    bk_pack_t *pack = NULL;

    if (len > BK_CHUNK_MAX)
        return bk_err_set(err, BK_TOO_LARGE, "store a chunk: %zu bytes are too many", len);
    bk_chunk_id(bk_repo_keyring(session->repo), (uint8_t)type, data, len, id);
    bk_rc_t rc = reserve(session, id, len, &mine, err);
    if (rc != BK_OK || !mine)
        return rc;
    bk_buf_init(&packed, BK_CHUNK_MAX + 4096);
    rc = bk_compress(compression_of(session, type), probe, data, len, &packed, &codec, err);
    if (rc == BK_OK)
        rc = take_pack(session, BK_TYPE_IS_META(type) ? BK_KIND_META : BK_KIND_PACK, &pack, err);
    if (rc == BK_OK) {
        rc = bk_pack_add(pack, id, type, codec, packed.data, packed.len, (uint32_t)len, err);
        if (rc == BK_OK)
            rc = give_pack(session, pack, err);
        else
            free_pack(pack);
    }
    bk_buf_free(&packed);
    if (rc != BK_OK) {
        pthread_mutex_lock(&session->lock);
        session->failed = true;
        pthread_mutex_unlock(&session->lock);
    }
    return rc;
}

/* --- the end --- */

static bk_rc_t flush_packs(bk_session_t *session, open_packs_t *open, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    while (open->count > 0 && rc == BK_OK)
        rc = finish_pack(session, open->packs[--open->count], err);
    return rc;
}

static bk_rc_t flush(bk_session_t *session, bk_err_t *err)
{
    bk_rc_t rc = flush_packs(session, &session->data, err);
    if (rc == BK_OK)
        rc = flush_packs(session, &session->meta, err);
    if (rc == BK_OK) {
        pthread_mutex_lock(&session->lock);
        rc = flush_index(session, err);
        pthread_mutex_unlock(&session->lock);
    }
    return rc;
}

static bk_rc_t is_taken(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    (void)err;
    (void)item;
    *(bool *)arg = true;
    return BK_EXISTS;
}

static bk_rc_t check_id_free(bk_session_t *session, const char *backup_id, bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    bool taken = false;
    bk_fmt(prefix, sizeof prefix, "snapshots/%s-", backup_id);
    bk_rc_t rc = bk_objects_list(bk_repo_objects(session->repo), prefix, is_taken, &taken,
                                 session->ctl, err);
    if (taken)
        return bk_err_set(err, BK_EXISTS, "there is a backup %s already", backup_id);
    return rc;
}

static bk_rc_t publish_snapshot(bk_session_t *session, const char *backup_id, const void *body,
                                size_t len, char name[BK_STORAGE_NAME], bk_err_t *err)
{
    bk_buf_t object;
    bk_id_t digest;
    char hex[BK_ID_HEX];
    bk_buf_init(&object, 256u << 20);
    bk_rc_t rc = bk_object_wrap(bk_repo_keyring(session->repo), bk_repo_uuid(session->repo),
                                BK_KIND_SNAPSHOT, body, len, &object, err);
    if (rc == BK_OK) {
        bk_sha256(&digest, object.data, object.len);
        bk_id_hex(hex, &digest);
        bk_fmt(name, BK_STORAGE_NAME, "snapshots/%s-%s", backup_id, hex);
        session->stats.bytes_stored += object.len;
        rc = bk_storage_put(bk_repo_objects(session->repo)->spool, name, object.data, object.len,
                            true, session->ctl, err);
    }
    if (rc == BK_OK && session->options.upload)
        rc = bk_spool_ship_one(session->repo, name, true, NULL, err);
    bk_buf_free(&object);
    return rc;
}

/* A collector that condemned a pack meanwhile would delete it under the new snapshot. */
static bk_rc_t check_after_publishing(bk_session_t *session, const char *name, bk_err_t *err)
{
    size_t before = session->condemned_count;
    bk_rc_t rc = list_condemned(session, err);
    if (rc != BK_OK || session->condemned_count == before)
        return rc;
    bk_storage_remove(bk_repo_storage(session->repo), name, NULL, NULL);
    return bk_err_set(
        err, BK_CONFLICT,
        "packs were condemned while the backup ran, so it was withdrawn: run it again");
}

bk_rc_t bk_session_commit(bk_session_t *session, const char *backup_id, const void *body,
                          size_t len, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    bk_rc_t rc = session->failed ? bk_err_set(err, BK_FAILED, "the backup failed already") : BK_OK;
    if (rc == BK_OK)
        rc = flush(session, err);
    if (rc == BK_OK)
        rc = check_lease(session, err);
    if (rc == BK_OK && session->options.upload) {
        size_t before = session->condemned_count;
        rc = list_condemned(session, err);
        if (rc == BK_OK && session->condemned_count != before)
            rc = bk_err_set(err, BK_CONFLICT,
                            "packs were condemned while the backup ran: run it again");
    }
    if (rc == BK_OK)
        rc = check_id_free(session, backup_id, err);
    if (rc == BK_OK)
        rc = publish_snapshot(session, backup_id, body, len, name, err);
    if (rc == BK_OK && session->options.upload)
        rc = check_after_publishing(session, name, err);
    /* Readers of this process see the new chunks. */
    if (rc == BK_OK)
        rc = bk_index_refresh(session->index, NULL, err);
    free_session(session);
    return rc;
}

void bk_session_abort(bk_session_t *session)
{
    if (session == NULL)
        return;
    /* What is whole already is worth keeping; failures here change nothing any more. */
    session->ctl = NULL;
    pthread_mutex_lock(&session->lock);
    flush_index(session, NULL);
    pthread_mutex_unlock(&session->lock);
    if (session->index != NULL)
        bk_index_refresh(session->index, NULL, NULL);
    free_session(session);
}
