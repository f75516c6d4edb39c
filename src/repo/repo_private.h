/*
 * repo/repo_private.h: what the files of repo/ know of an open repository.
 */
#ifndef BK_REPO_REPO_PRIVATE_H
#define BK_REPO_REPO_PRIVATE_H

#include "repo/repo.h"

/* Seal the keyring into a new slot object; its name into slot when that is not NULL. */
bk_rc_t bk_repo_write_slot(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                           char *slot, size_t size, bk_ctl_t *ctl, bk_err_t *err);
/* The keyring by the first slot that the secret opens; BK_WRONG_KEY when none does. */
bk_rc_t bk_repo_try_slots(bk_repo_t *repo, const bk_secret_t *secret, bk_keyring_t **ring,
                          bk_ctl_t *ctl, bk_err_t *err);
/* Key of a pack by its header, from a small cache. */
bk_rc_t bk_repo_pack_key(bk_repo_t *repo, const bk_id_t *pack, bk_kind_t kind, bk_object_key_t *key,
                         bk_ctl_t *ctl, bk_err_t *err);

#endif
