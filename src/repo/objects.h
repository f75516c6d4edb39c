/*
 * repo/objects.h: where a repository's objects are: on the storage, and those that have not got
 * there yet in the spool.
 *
 * The spool is a storage of the local driver with the same names. Reading looks at the storage
 * first; what is in neither is BK_NOT_FOUND. Any thread.
 */
#ifndef BK_REPO_OBJECTS_H
#define BK_REPO_OBJECTS_H

#include "crypto/object.h"
#include "storage/storage.h"

typedef struct {
    bk_storage_t *storage;
    bk_storage_t *spool; /* NULL: none */
} bk_objects_t;

bk_rc_t bk_objects_get(const bk_objects_t *objects, const char *name, uint64_t offset, size_t len,
                       void *out, size_t *got, bk_ctl_t *ctl, bk_err_t *err);
bk_rc_t bk_objects_get_all(const bk_objects_t *objects, const char *name, bk_buf_t *out,
                           bk_ctl_t *ctl, bk_err_t *err);
bk_rc_t bk_objects_size(const bk_objects_t *objects, const char *name, uint64_t *size,
                        bk_ctl_t *ctl, bk_err_t *err);
/* Names on the storage, then those in the spool; a name that is in both is told twice. */
bk_rc_t bk_objects_list(const bk_objects_t *objects, const char *prefix, bk_storage_list_fn fn,
                        void *arg, bk_ctl_t *ctl, bk_err_t *err);

/* "packs/ab/ab12..." or "meta/...", by kind; out: BK_STORAGE_NAME bytes. */
void bk_pack_object_name(char *out, const bk_id_t *name, bk_kind_t kind);
/* The SHA-256 that ends an object's name ("index/<ulid>-<sha256>", "packs/ab/<sha256>"). */
bool bk_object_name_id(const char *name, bk_id_t *id);

#endif
