/*
 * repo/keys.c: the key slots of a repository: keys/<ulid>, each the same keyring wrapped another
 * way.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "repo/repo_private.h"

#define SLOT_MAX  (64u << 10)
#define SLOTS_MAX 64

typedef struct {
    char *name;    /* object name */
    json_t *facts; /* id, kind, label, created; NULL when damaged */
} slot_t;

/*
 * The slots of this repository: those that a creator left behind who lost the race or died are not
 * among them.
 */
typedef struct {
    slot_t items[SLOTS_MAX];
    size_t count, sound;
} slots_t;

static void free_slots(slots_t *slots)
{
    for (size_t i = 0; i < slots->count; i++) {
        free(slots->items[i].name);
        json_decref(slots->items[i].facts);
    }
    slots->count = slots->sound = 0;
}

static bk_rc_t add_name(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    slots_t *slots = arg;
    if (slots->count == SLOTS_MAX)
        return bk_err_set(err, BK_CORRUPT, "the repository has more than %d key slots", SLOTS_MAX);
    slot_t *slot = &slots->items[slots->count];
    *slot = (slot_t){.name = bk_strdup(item->name)};
    if (slot->name == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "list key slots: out of memory");
    slots->count++;
    return BK_OK;
}

static bk_rc_t read_slot(bk_repo_t *repo, const char *name, bk_buf_t *slot, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    bk_buf_reset(slot);
    return bk_storage_get_all(bk_repo_storage(repo), name, slot, ctl, err);
}

static void hex_uuid(const bk_repo_t *repo, char out[2 * BK_UUID_SIZE + 1])
{
    bk_hex(out, bk_repo_uuid(repo), BK_UUID_SIZE);
}

/*
 * Only a hint that saves trying: the check of FORMAT decides.  A slot that cannot be read might be
 * ours.
 */
static bool is_ours(const bk_repo_t *repo, const bk_buf_t *slot)
{
    char uuid[2 * BK_UUID_SIZE + 1];
    json_t *object = NULL;
    hex_uuid(repo, uuid);
    if (bk_json_parse(slot->data, slot->len, &object, NULL) != BK_OK)
        return true;
    const char *named = json_string_value(json_object_get(object, "repository"));
    bool ours = named == NULL || strcmp(named, uuid) == 0;
    json_decref(object);
    return ours;
}

/* A slot removed between listing and reading is not there; other failures are the storage's. */
static bk_rc_t load_slots(bk_repo_t *repo, slots_t *slots, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t text;
    size_t kept = 0;
    bk_buf_init(&text, SLOT_MAX);
    bk_rc_t rc = bk_storage_list(bk_repo_storage(repo), "keys/", add_name, slots, ctl, err);
    for (size_t i = 0; i < slots->count; i++) {
        slot_t slot = slots->items[i];
        bk_rc_t found = rc == BK_OK ? read_slot(repo, slot.name, &text, ctl, err) : rc;
        if (found == BK_OK && is_ours(repo, &text)) {
            if (bk_slot_describe(text.data, text.len, &slot.facts, NULL) == BK_OK)
                slots->sound++;
            slots->items[kept++] = slot;
            continue;
        }
        free(slot.name);
        if (found == BK_TOO_LARGE)
            found = bk_err_set(err, BK_CORRUPT, "a key slot is longer than any can be");
        if (found != BK_OK && found != BK_NOT_FOUND)
            rc = found;
    }
    slots->count = kept;
    bk_buf_wipe(&text);
    if (rc != BK_OK)
        free_slots(slots);
    return rc;
}

/* BK_OK: opened.  BK_WRONG_KEY and BK_CORRUPT are about this slot alone. */
static bk_rc_t try_slot(bk_repo_t *repo, const char *name, const bk_secret_t *secret,
                        const bk_id_t *check, bk_keyring_t **ring, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t text;
    bk_id_t actual;
    bk_buf_init(&text, SLOT_MAX);
    bk_rc_t rc = read_slot(repo, name, &text, ctl, err);
    if (rc == BK_OK)
        rc = bk_slot_open(text.data, text.len, secret, ring, err);
    if (rc == BK_OK) {
        bk_repo_keyring_check(*ring, bk_repo_uuid(repo), &actual);
        if (!bk_id_equal(&actual, check)) {
            bk_keyring_free(*ring);
            *ring = NULL;
            rc = bk_err_set(err, BK_WRONG_KEY, "the slot belongs to another repository");
        }
    }
    bk_buf_wipe(&text);
    return rc;
}

bk_rc_t bk_repo_try_slots(bk_repo_t *repo, const bk_secret_t *secret, const bk_id_t *check,
                          bk_keyring_t **ring, bk_ctl_t *ctl, bk_err_t *err)
{
    slots_t slots = {.count = 0};
    size_t damaged = 0;
    bool opened = false;
    bk_rc_t rc = load_slots(repo, &slots, ctl, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < slots.count && rc == BK_OK && !opened; i++) {
        rc = try_slot(repo, slots.items[i].name, secret, check, ring, ctl, err);
        opened = rc == BK_OK;
        if (rc == BK_CORRUPT) {
            bk_ctl_note(ctl, "%s: the key slot is damaged", slots.items[i].name);
            damaged++;
        }
        if (rc == BK_CORRUPT || rc == BK_WRONG_KEY)
            rc = BK_OK;
    }
    if (rc == BK_OK && opened)
        bk_err_clear(err);
    else if (rc == BK_OK && slots.count == 0)
        rc = bk_err_set(err, BK_CORRUPT,
                        "the repository is encrypted but its key slots (keys/) are gone: copy them "
                        "back from another copy of the storage");
    else if (rc == BK_OK && damaged == slots.count)
        rc = bk_err_set(err, BK_CORRUPT,
                        "every key slot of the repository is damaged: copy keys/ back from another "
                        "copy of the storage");
    else if (rc == BK_OK)
        rc = bk_err_set(err, BK_WRONG_KEY,
                        "the %s opens none of the %zu key slots of the repository%s",
                        secret->key != NULL ? "key" : "passphrase", slots.count,
                        damaged > 0 ? "; a damaged slot was passed over" : "");
    free_slots(&slots);
    return rc;
}

/* The slot's text with the repository's id in it. */
static bk_rc_t seal_slot(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                         bk_buf_t *slot, char name[BK_STORAGE_NAME], bk_err_t *err)
{
    char uuid[2 * BK_UUID_SIZE + 1];
    json_t *object = NULL;
    bk_rc_t rc = bk_slot_seal(bk_repo_keyring(repo), secret, label, slot, err);
    if (rc == BK_OK)
        rc = bk_json_parse(slot->data, slot->len, &object, err);
    if (rc == BK_OK) {
        hex_uuid(repo, uuid);
        json_object_set_new(object, "repository", json_string(uuid));
        bk_fmt(name, BK_STORAGE_NAME, "keys/%s", json_string_value(json_object_get(object, "id")));
        bk_buf_reset(slot);
        rc = bk_json_dump(object, true, slot, err);
    }
    json_decref(object);
    return rc;
}

bk_rc_t bk_repo_write_slot(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                           char name[BK_STORAGE_NAME], bk_ctl_t *ctl, bk_err_t *err)
{
    bk_buf_t slot;
    bk_id_t check;
    bk_keyring_t *proof = NULL;
    bk_buf_init(&slot, SLOT_MAX);
    bk_rc_t rc = seal_slot(repo, secret, label, &slot, name, err);
    if (rc == BK_OK)
        rc = bk_storage_put(bk_repo_storage(repo), name, slot.data, slot.len, true, ctl, err);
    /* Prove it: read back, open, compare. */
    if (rc == BK_OK) {
        bk_repo_keyring_check(bk_repo_keyring(repo), bk_repo_uuid(repo), &check);
        rc = try_slot(repo, name, secret, &check, &proof, ctl, err);
        if (rc != BK_OK) {
            bk_err_wrap(err, "read back the new key slot %s", name);
            bk_storage_remove(bk_repo_storage(repo), name, NULL, NULL);
        }
    }
    bk_keyring_free(proof);
    bk_buf_wipe(&slot);
    return rc;
}

bk_rc_t bk_repo_key_add(bk_repo_t *repo, const bk_secret_t *secret, const char *label,
                        char *slot_name, size_t size, bk_ctl_t *ctl, bk_err_t *err)
{
    char name[BK_STORAGE_NAME];
    if (!bk_repo_encrypted(repo))
        return bk_err_set(err, BK_INVALID, "the repository is not encrypted: it has no keys");
    bk_rc_t rc = bk_repo_write_slot(repo, secret, label, name, ctl, err);
    if (rc == BK_OK && slot_name != NULL)
        bk_strcpy(slot_name, size, name + strlen("keys/"));
    return rc;
}

bk_rc_t bk_repo_key_remove(bk_repo_t *repo, const char *slot, bk_ctl_t *ctl, bk_err_t *err)
{
    slots_t slots = {.count = 0};
    const slot_t *found = NULL;
    bk_rc_t rc = load_slots(repo, &slots, ctl, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < slots.count; i++)
        if (strcmp(slots.items[i].name + strlen("keys/"), slot) == 0)
            found = &slots.items[i];
    if (found == NULL)
        rc = bk_err_set(err, BK_NOT_FOUND, "there is no key slot %s", slot);
    else if (slots.sound - (found->facts != NULL) < 1)
        rc = bk_err_set(err, BK_CONFLICT,
                        "%s is the last usable key slot: without it nobody could read the "
                        "repository; add another first",
                        slot);
    else
        rc = bk_storage_remove(bk_repo_storage(repo), found->name, ctl, err);
    free_slots(&slots);
    return rc;
}

bk_rc_t bk_repo_key_list(bk_repo_t *repo, json_t **list, bk_ctl_t *ctl, bk_err_t *err)
{
    slots_t slots = {.count = 0};
    *list = NULL;
    bk_rc_t rc = load_slots(repo, &slots, ctl, err);
    if (rc != BK_OK)
        return rc;
    *list = json_array();
    for (size_t i = 0; i < slots.count; i++) {
        const char *name = slots.items[i].name + strlen("keys/");
        json_t *facts = slots.items[i].facts != NULL
                            ? json_deep_copy(slots.items[i].facts)
                            : json_pack("{ss ss ss ss}", "id", name, "kind", "damaged", "label", "",
                                        "created", "");
        json_object_set_new(facts, "slot", json_string(name));
        json_array_append_new(*list, facts);
    }
    free_slots(&slots);
    return BK_OK;
}
