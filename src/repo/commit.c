/*
 * repo/commit.c: the end of a session: the last packs, the index, and the snapshot that makes it a
 * backup.
 */
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "repo/session_private.h"
#include "repo/spool.h"

#define SNAPSHOT_MAX (256u << 20)

/* --- the last packs --- */

/* Move the frames of one open pack behind those of another. */
static bk_rc_t merge(bk_session_t *session, bk_open_pack_t *into, bk_open_pack_t *from,
                     bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&into->lock);
    pthread_mutex_lock(&from->lock);
    for (size_t i = 0; i < from->pack.count && rc == BK_OK; i++) {
        const bk_pack_entry_t *entry = &from->pack.entries[i];
        rc = bk_pack_add(&into->pack, &entry->id, (bk_type_t)entry->type, (bk_codec_t)entry->codec,
                         from->pack.bytes.data + entry->offset, entry->stored - from->pack.overhead,
                         entry->raw, err);
        if (rc == BK_OK)
            bk_recent_place(session->recent, &into->pack.entries[into->pack.count - 1], into);
    }
    if (rc == BK_OK) {
        free(from->pack.entries);
        from->pack.entries = NULL;
        bk_pack_reset(&from->pack);
    }
    pthread_mutex_unlock(&from->lock);
    pthread_mutex_unlock(&into->lock);
    return rc;
}

/* Each lane may have begun a pack; small ones are put together before they are sealed. */
static bk_rc_t flush_packs(bk_session_t *session, bk_open_packs_t *list, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < list->count && rc == BK_OK; i++) {
        bk_open_pack_t *into = list->packs[i];
        if (into->pack.count == 0)
            continue;
        for (size_t j = i + 1; j < list->count && rc == BK_OK; j++) {
            bk_open_pack_t *from = list->packs[j];
            if (from->pack.count > 0 &&
                bk_pack_size(&into->pack) + bk_pack_size(&from->pack) <= list->target)
                rc = merge(session, into, from, err);
        }
        if (rc == BK_OK)
            rc = bk_session_close_pack(session, into, err);
    }
    return rc;
}

/* --- the snapshot --- */

static bk_rc_t is_other(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    (void)err;
    return strcmp(item->name, arg) == 0 ? BK_OK : BK_EXISTS;
}

/* BK_EXISTS when there is a snapshot of that backup id, other than own (which may be ""). */
static bk_rc_t check_id_free(bk_session_t *session, const char *backup_id, char *own, bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    bk_fmt(prefix, sizeof prefix, "snapshots/%s-", backup_id);
    bk_rc_t rc =
        bk_objects_list(bk_repo_objects(session->repo), prefix, is_other, own, session->ctl, err);
    if (rc == BK_EXISTS)
        return bk_err_set(err, BK_EXISTS, "there is a backup %s already", backup_id);
    return rc;
}

/*
 * Nothing this backup relies on may be condemned, gone or cut off.  Asked before publishing, so
 * that a backup known to be bad is never listed, and after it, because a collector may look between
 * the two.
 */
static bk_rc_t check_relied(bk_session_t *session, bool existence, bk_err_t *err)
{
    bk_packset_t condemned = {0}, missing = {0};
    char object[BK_STORAGE_NAME];
    const bk_packset_item_t *item;
    size_t at = 0;
    bk_rc_t rc = bk_packset_condemned(session->repo, &condemned, session->ctl, err);
    if (rc == BK_OK && (item = bk_packset_common(&session->relied, &condemned)) != NULL) {
        bk_pack_object_name(object, &item->name, (bk_kind_t)item->kind);
        rc = bk_err_set(err, BK_STORAGE,
                        "%s, which this backup relies on, was condemned while it ran; the backup "
                        "was not kept: run it again",
                        object);
    }
    if (rc == BK_OK && existence)
        rc = bk_packset_missing(session->repo, &session->relied, &missing, session->ctl, err);
    if (rc == BK_OK && missing.count > 0) {
        for (size_t i = 0; (item = bk_packset_next(&missing, &i)) != NULL;)
            bk_doubt_add(bk_repo_doubt(session->repo), BK_DOUBT_ABSENT, &item->name,
                         (bk_kind_t)item->kind);
        item = bk_packset_next(&missing, &at);
        bk_pack_object_name(object, &item->name, (bk_kind_t)item->kind);
        rc = bk_err_set(err, BK_STORAGE,
                        "%s %s: %s and %zu more packs are not as the index names them, so the "
                        "backup was not kept: run it again, the next one stores their content anew",
                        bk_storage_driver(bk_repo_storage(session->repo)),
                        bk_storage_name(bk_repo_storage(session->repo)), object, missing.count - 1);
    }
    bk_packset_free(&condemned);
    bk_packset_free(&missing);
    return rc;
}

/*
 * As long as the snapshot that nodes were taken over from is there, so is all that they name: no
 * collector takes a pack from a snapshot that is listed.
 */
static bk_rc_t check_source(bk_session_t *session, bk_err_t *err)
{
    uint64_t size;
    bk_err_t why = {0};
    if (session->relied_snapshot[0] == '\0')
        return BK_OK;
    bk_rc_t rc = bk_objects_size(bk_repo_objects(session->repo), session->relied_snapshot, &size,
                                 session->ctl, &why);
    if (rc == BK_NOT_FOUND)
        return bk_err_set(err, BK_STORAGE,
                          "%s, which this backup takes over directories from, was removed while it "
                          "ran; the backup was not kept: run it again",
                          session->relied_snapshot);
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

/* Seal the snapshot into the spool, with the list of packs it relies on beside it. */
static bk_rc_t spool_snapshot(bk_session_t *session, const char *backup_id, const void *body,
                              size_t len, char name[BK_STORAGE_NAME], bk_err_t *err)
{
    bk_repo_t *repo = session->repo;
    bk_storage_t *spool = bk_repo_objects(repo)->spool;
    char relies[BK_STORAGE_NAME], hex[BK_ID_HEX];
    bk_buf_t object, packs;
    bk_id_t digest;

    bk_buf_init(&object, SNAPSHOT_MAX);
    bk_buf_init(&packs, SNAPSHOT_MAX);
    bk_rc_t rc = bk_object_wrap(bk_repo_keyring(repo), bk_repo_uuid(repo), BK_KIND_SNAPSHOT, body,
                                len, &object, err);
    if (rc == BK_OK) {
        bk_sha256(&digest, object.data, object.len);
        bk_id_hex(hex, &digest);
        bk_fmt(name, BK_STORAGE_NAME, "snapshots/%s-%s", backup_id, hex);
        bk_spool_relies_name(relies, name);
        bk_packset_encode(&session->relied, &packs);
        rc = bk_buf_ok(&packs)
                 ? bk_storage_put(spool, relies, packs.data, packs.len, false, session->ctl, err)
                 : bk_err_set(err, BK_NO_MEMORY, "publish a backup: out of memory");
    }
    if (rc == BK_OK)
        rc = bk_storage_put(spool, name, object.data, object.len, true, session->ctl, err);
    if (rc == BK_OK) {
        session->stats.bytes_stored += object.len;
        if (session->ctl != NULL)
            atomic_fetch_add(&session->ctl->bytes_stored, object.len);
    }
    bk_buf_free(&object);
    bk_buf_free(&packs);
    return rc;
}

static bk_rc_t publish(bk_session_t *session, const char *backup_id, const void *body, size_t len,
                       bk_err_t *err)
{
    char name[BK_STORAGE_NAME] = "";
    bool upload = session->options.upload;
    bk_rc_t rc = check_id_free(session, backup_id, name, err);
    if (rc != BK_OK)
        return rc;
    rc = spool_snapshot(session, backup_id, body, len, name, err);
    if (rc == BK_OK && upload)
        rc = bk_spool_ship_one(session->repo, name, false, session->ctl, err);
    /* From here to the end the backup is listed but provisional. */
    if (rc == BK_OK && upload)
        rc = check_relied(session, true, err);
    if (rc == BK_OK)
        rc = check_source(session, err);
    if (rc == BK_OK)
        rc = check_id_free(session, backup_id, name, err);
    if (name[0] != '\0' && rc != BK_OK) {
        /*
         * A backup that was reported as failed must not appear, now or when the spool is shipped.
         */
        if (upload)
            bk_storage_remove(bk_repo_storage(session->repo), name, NULL, NULL);
        bk_spool_forget_snapshot(session->repo, name);
    } else if (upload) {
        bk_spool_forget_snapshot(session->repo, name);
    }
    return rc;
}

bk_rc_t bk_session_flush(bk_session_t *session, bk_err_t *err)
{
    bk_rc_t rc = session->failure.rc;
    if (rc != BK_OK && err != NULL)
        *err = session->failure;
    if (rc == BK_OK)
        rc = flush_packs(session, &session->data, err);
    if (rc == BK_OK)
        rc = flush_packs(session, &session->meta, err);
    if (rc == BK_OK)
        rc = bk_session_flush_index(session, err);
    return rc;
}

bk_rc_t bk_session_commit(bk_session_t *session, const char *backup_id, const void *body,
                          size_t len, bk_err_t *err)
{
    bk_rc_t rc = bk_session_flush(session, err);
    if (rc == BK_OK && session->options.upload)
        rc = bk_lease_keep(session, err);
    if (rc == BK_OK && session->options.upload)
        rc = check_relied(session, false, err);
    if (rc == BK_OK)
        rc = publish(session, backup_id, body, len, err);
    bk_session_free(session);
    return rc;
}

void bk_session_abort(bk_session_t *session)
{
    if (session == NULL)
        return;
    /*
     * What is closed already is worth keeping.  When the storage is what failed, it waits in the
     * spool.
     */
    session->ctl = NULL;
    bk_rc_t why = session->failure.rc;
    if (why == BK_OK || why == BK_CANCELED || why == BK_INTERRUPTED)
        bk_session_flush_index(session, NULL);
    bk_session_free(session);
}
