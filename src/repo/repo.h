/*
 * repo/repo.h: one repository on one storage: opening, creating, keys, reading chunks.
 *
 * Threads: after bk_repo_open every function here may be called by several threads at once, except
 * refresh, close and the key functions.  Long calls poll ctl.
 */
#ifndef BK_REPO_REPO_H
#define BK_REPO_REPO_H

#include "base/ctl.h"
#include "base/team.h"
#include "crypto/keyring.h"
#include "repo/chunker.h"
#include "repo/index.h"
#include "storage/storage.h"

typedef struct bk_repo_s bk_repo_t;

typedef struct {
    bk_storage_t *storage;    /* borrowed, outlives the repository */
    const char *cache_dir;    /* exists; index segments are cached in it */
    const char *spool_dir;    /* what is not on the storage yet; NULL: none, read only */
    bk_secret_t secret;       /* both NULL: only an unencrypted repository can be opened or made */
    const bk_keyring_t *ring; /* opened before: used instead of the secret if it is this one's */
    bool create;              /* make it when the storage has none */
    bool plain;               /* with create: without encryption */
    const char *label;        /* with create: of the first key slot */
} bk_repo_options_t;

/*
 * Errors: BK_REPO_MISSING (no FORMAT), BK_CONFLICT (create, but objects of another repository are
 * there, without its FORMAT), BK_WRONG_KEY, BK_CONFIG (encrypted but no secret; or a
 * secret although the repository is plain), BK_UNSUPPORTED (newer format), BK_STORAGE.  The index
 * is loaded on first need.
 */
bk_rc_t bk_repo_open(const bk_repo_options_t *options, bk_ctl_t *ctl, bk_repo_t **repo,
                     bk_err_t *err);
void bk_repo_close(bk_repo_t *repo);

bk_storage_t *bk_repo_storage(bk_repo_t *repo);
const bk_objects_t *bk_repo_objects(const bk_repo_t *repo);
const char *bk_repo_spool_dir(const bk_repo_t *repo); /* or NULL */
const bk_keyring_t *bk_repo_keyring(const bk_repo_t *repo);
const uint8_t *bk_repo_uuid(const bk_repo_t *repo); /* BK_UUID_SIZE bytes */
const bk_chunker_t *bk_repo_chunker(const bk_repo_t *repo);
bool bk_repo_encrypted(const bk_repo_t *repo);
bk_rc_t bk_repo_index(bk_repo_t *repo, bk_ctl_t *ctl, bk_index_t **index,
                      bk_err_t *err); /* borrowed */

/* Key slots: add wraps the same keyring once more and proves it by reopening; remove refuses the
 * last one. */
bk_rc_t bk_repo_key_add(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                        char *slot_name, size_t size, bk_ctl_t *ctl, bk_err_t *err);
bk_rc_t bk_repo_key_remove(bk_repo_t *repo, const char *slot, bk_ctl_t *ctl, bk_err_t *err);
/* Array of {slot, id, kind, label, created}; owned by the caller. */
struct json_t;
bk_rc_t bk_repo_key_list(bk_repo_t *repo, struct json_t **list, bk_ctl_t *ctl, bk_err_t *err);

/*
 * One chunk by id: metadata, single look-ups.  out is reset, then holds the raw bytes.  Recently
 * used pack keys are kept, and meta packs are read whole once and cached (bounded).  BK_CORRUPT
 * when the index does not know it or it is damaged.
 */
bk_rc_t bk_repo_get(bk_repo_t *repo, const bk_id_t *id, bk_buf_t *out, bk_ctl_t *ctl,
                    bk_err_t *err);

/*
 * Many chunks in the best order: grouped by pack, sorted by offset, ranges closer than 256 KiB
 * merged, fetched by the team's lanes in parallel.  deliver is called once for each want, from any
 * lane, with data valid during the call; equal ids are fetched once.  A failed chunk: deliver is
 * called with data NULL and the failure, and decides (BK_OK: go on).
 */
typedef struct {
    bk_id_t id;
    uint32_t raw; /* expected length, checked */
    void *user;   /* for deliver */
    uint64_t tag; /* for deliver */
} bk_want_chunk_t;

typedef bk_rc_t (*bk_deliver_fn)(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                                 const bk_err_t *failure, bk_err_t *err);
/* wants is sorted in place.  Memory in use stays below about 24 MiB a lane. */
bk_rc_t bk_repo_fetch(bk_repo_t *repo, bk_want_chunk_t *wants, size_t count, bk_team_t *team,
                      bk_deliver_fn deliver, void *arg, bk_ctl_t *ctl, bk_err_t *err);

#endif
