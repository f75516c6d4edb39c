/*
 * repo/keys.c: the key slots of a repository: keys/<ulid>, each the same keyring wrapped another way.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "repo/repo_private.h"

#define SLOT_MAX  (64u << 10)
#define SLOTS_MAX 64

typedef struct {
    char *names[SLOTS_MAX];
    size_t count;
} slots_t;

static bk_rc_t add_name(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    slots_t *slots = arg;
    if (slots->count == SLOTS_MAX)
        return bk_err_set(err, BK_CORRUPT, "the repository has more than %d key slots", SLOTS_MAX);
    if ((slots->names[slots->count] = bk_strdup(item->name)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "list key slots: out of memory");
    slots->count++;
    return BK_OK;
}

static void free_slots(slots_t *slots)
{
    for (size_t i = 0; i < slots->count; i++)
        free(slots->names[i]);
    slots->count = 0;
}

static bk_rc_t read_slot(bk_repo_t *repo, const char *name, bk_buf_t *slot, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    bk_buf_reset(slot);
    return bk_storage_get_all(bk_repo_storage(repo), name, slot, ctl, err);
}

bk_rc_t bk_repo_try_slots(bk_repo_t *repo, const bk_secret_t *secret, bk_keyring_t **ring,
                          bk_ctl_t *ctl, bk_err_t *err)
{
    slots_t slots = {0};
    bk_buf_t slot;
    size_t damaged = 0;
    bool opened = false;
    bk_buf_init(&slot, SLOT_MAX);
    bk_rc_t rc = bk_storage_list(bk_repo_storage(repo), "keys/", add_name, &slots, ctl, err);
    for (size_t i = 0; i < slots.count && rc == BK_OK && !opened; i++) {
        rc = read_slot(repo, slots.names[i], &slot, ctl, err);
        if (rc != BK_OK)
            break;
        rc = bk_slot_open(slot.data, slot.len, secret, ring, err);
        opened = rc == BK_OK;
        if (rc == BK_CORRUPT) {
            bk_ctl_note(ctl, "%s: the key slot is damaged", slots.names[i]);
            damaged++;
        }
        if (rc == BK_CORRUPT || rc == BK_WRONG_KEY)
            rc = BK_OK;
    }
    if (rc == BK_OK && !opened)
        rc = bk_err_set(err, BK_WRONG_KEY,
                        "the %s opens none of the %zu key slots of the repository%s",
                        secret->key != NULL ? "key" : "passphrase", slots.count,
                        damaged > 0 ? "; a damaged slot was passed over" : "");
    else if (opened)
        bk_err_clear(err);
    free_slots(&slots);
    bk_buf_wipe(&slot);
    return rc;
}

bk_rc_t bk_repo_write_slot(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                           char *slot_name, size_t size, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t slot;
    bk_keyring_t *proof = NULL;
    json_t *facts = NULL;
    char name[BK_STORAGE_NAME];

    bk_buf_init(&slot, SLOT_MAX);
    bk_rc_t rc = bk_slot_seal(bk_repo_keyring(repo), secret, label, &slot, err);
    if (rc == BK_OK)
        rc = bk_slot_describe(slot.data, slot.len, &facts, err);
    if (rc == BK_OK) {
        bk_fmt(name, sizeof name, "keys/%s", json_string_value(json_object_get(facts, "id")));
        rc = bk_storage_put(bk_repo_storage(repo), name, slot.data, slot.len, true, ctl, err);
    }
    /* Prove it: read back and open. */
    if (rc == BK_OK)
        rc = read_slot(repo, name, &slot, ctl, err);
    if (rc == BK_OK)
        rc = bk_slot_open(slot.data, slot.len, secret, &proof, err);
    if (rc == BK_OK && slot_name != NULL)
        bk_strcpy(slot_name, size, name + strlen("keys/"));
    if (proof != NULL)
        bk_keyring_free(proof);
    json_decref(facts);
    bk_buf_wipe(&slot);
    return rc;
}

bk_rc_t bk_repo_key_add(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                        char *slot_name, size_t size, bk_ctl_t *ctl, bk_err_t *err)
{
    if (!bk_repo_encrypted(repo))
        return bk_err_set(err, BK_INVALID, "the repository is not encrypted: it has no keys");
    return bk_repo_write_slot(repo, secret, label, slot_name, size, ctl, err);
}

bk_rc_t bk_repo_key_remove(bk_repo_t *repo, const char *slot, bk_ctl_t *ctl, bk_err_t *err)
{
    slots_t slots = {0};
    char name[BK_STORAGE_NAME];
    bool there = false;
    if (!bk_fmt(name, sizeof name, "keys/%s", slot))
        return bk_err_set(err, BK_NOT_FOUND, "there is no key slot of that name");
    bk_rc_t rc = bk_storage_list(bk_repo_storage(repo), "keys/", add_name, &slots, ctl, err);
    for (size_t i = 0; i < slots.count; i++)
        there = there || strcmp(slots.names[i], name) == 0;
    if (rc == BK_OK && !there)
        rc = bk_err_set(err, BK_NOT_FOUND, "there is no key slot %s", slot);
    else if (rc == BK_OK && slots.count < 2)
        rc = bk_err_set(err, BK_CONFLICT,
                        "%s is the last key slot: without it nobody could read the repository; add "
                        "another first",
                        slot);
    if (rc == BK_OK)
        rc = bk_storage_remove(bk_repo_storage(repo), name, ctl, err);
    free_slots(&slots);
    return rc;
}

bk_rc_t bk_repo_key_list(bk_repo_t *repo, json_t **list, bk_ctl_t *ctl, bk_err_t *err)
{
    slots_t slots = {0};
    bk_buf_t slot;
    bk_buf_init(&slot, SLOT_MAX);
    *list = json_array();
    bk_rc_t rc = bk_storage_list(bk_repo_storage(repo), "keys/", add_name, &slots, ctl, err);
    for (size_t i = 0; i < slots.count && rc == BK_OK; i++) {
        json_t *facts = NULL;
        rc = read_slot(repo, slots.names[i], &slot, ctl, err);
        if (rc != BK_OK)
            break;
        if (bk_slot_describe(slot.data, slot.len, &facts, NULL) != BK_OK)
            facts = json_pack("{ss ss ss ss}", "id", slots.names[i] + strlen("keys/"), "kind",
                              "damaged", "label", "", "created", "");
        json_array_append_new(*list, facts);
    }
    free_slots(&slots);
    bk_buf_free(&slot);
    return rc;
}
