/*
 * repo/repo_private.h: what the files of repo/ know of an open repository.
 */
#ifndef BK_REPO_REPO_PRIVATE_H
#define BK_REPO_REPO_PRIVATE_H

#include "repo/packcache.h"
#include "repo/recent.h"
#include "repo/repo.h"

const char *bk_repo_cache_dir(const bk_repo_t *repo);
bk_packcache_t *bk_repo_packcache(bk_repo_t *repo);
struct bk_doubt_s *bk_repo_doubt(bk_repo_t *repo);
/* The chunks of the running session; made on first need, lives as long as the repository. */
bk_rc_t bk_repo_recent(bk_repo_t *repo, bk_recent_t **recent, bk_err_t *err);
/* bk_recent_read, when there ever was a session. */
bk_rc_t bk_repo_read_recent(bk_repo_t *repo, const bk_id_t *id, bk_buf_t *out, bk_location_t *where,
                            bk_ctl_t *ctl, bk_err_t *err);
/* A public value that FORMAT holds: only the keyring this repository was made with gives it. */
void bk_repo_keyring_check(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                           bk_id_t *check);

/* Seal the keyring into a new slot object; its object name into name. */
bk_rc_t bk_repo_write_slot(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                           char name[BK_STORAGE_NAME], bk_ctl_t *ctl, bk_err_t *err);
/*
 * The keyring by the first slot that the secret opens and that gives FORMAT's check.  BK_WRONG_KEY
 * when none does, BK_CORRUPT when there is no slot or none is undamaged.
 */
bk_rc_t bk_repo_try_slots(bk_repo_t *repo, const bk_secret_t *secret, const bk_id_t *check,
                          bk_keyring_t **ring, bk_ctl_t *ctl, bk_err_t *err);
/* Key of a pack by its header, from a small cache. */
bk_rc_t bk_repo_pack_key(bk_repo_t *repo, const bk_id_t *pack, bk_kind_t kind, bk_object_key_t *key,
                         bk_ctl_t *ctl, bk_err_t *err);

#endif
