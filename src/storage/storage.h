/*
 * storage/storage.h: the contract of a storage driver, and how the rest of the project uses one.
 *
 * A storage keeps immutable objects under relative names of [A-Za-z0-9._/-] ("packs/ab/ab12…").
 * Publishing is atomic: under a name there is nothing or the whole object, also after a crash; a
 * call that returned BK_OK survives power loss. A driver is one file, one row in registry.c, one
 * docs page, and passes t/unit/storage/conformance unchanged.
 *
 * Threads: one bk_storage_t may be used by many threads at once; a driver does its own locking.
 * Calls block, polling ctl at least every 100 ms where they wait.  Errors: BK_NOT_FOUND, BK_EXISTS,
 * BK_NO_SPACE, BK_DENIED, BK_CANCELED or BK_STORAGE, the text naming storage, operation and object
 * ("local disk: write packs/ab/…: …").
 */
#ifndef BK_STORAGE_STORAGE_H
#define BK_STORAGE_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ctl.h"
#include "base/err.h"

#define BK_STORAGE_NAME 512 /* longest object name with NUL */

typedef struct bk_storage_s bk_storage_t;

/* One storage as configured: driver, a name for people, and the driver's own settings as key/value
 * text. */
typedef struct {
    char *driver; /* "local", "s3", "sftp" */
    char *name;   /* "disk" */
    struct {
        char *key, *value;
    } * settings;
    unsigned count;
} bk_storage_config_t;

void bk_storage_config_free(bk_storage_config_t *config);
bk_rc_t bk_storage_config_set(bk_storage_config_t *config, const char *key, const char *value,
                              bk_err_t *err);
const char *bk_storage_config_get(const bk_storage_config_t *config, const char *key); /* or NULL */
/* "file:///path" (and what later drivers add) to a configuration; out is initialised. */
bk_rc_t bk_storage_config_url(bk_storage_config_t *out, const char *url, bk_err_t *err);
/* What is wrong with the settings, without touching the storage: for nginx -t.  BK_CONFIG. */
bk_rc_t bk_storage_config_check(const bk_storage_config_t *config, bk_err_t *err);
/* BK_OK when the driver exists in this build, else BK_UNSUPPORTED with the list of those that do.
 */
bk_rc_t bk_storage_driver_check(const char *driver, bk_err_t *err);

/* Features a caller may take advantage of. */
enum {
    BK_STORAGE_ADOPT = 1, /* put_file may take the file itself (hard link) instead of copying it */
    BK_STORAGE_FREE = 2   /* free space is known */
};

typedef struct {
    char *name;    /* full object name, valid during the callback */
    uint64_t size; /* bytes */
    int64_t mtime; /* ns since 1970, storage's clock; 0 unknown */
} bk_storage_item_t;

/* Return anything but BK_OK to stop the listing with that result. */
typedef bk_rc_t (*bk_storage_list_fn)(void *arg, const bk_storage_item_t *item, bk_err_t *err);

/* Such a function: adds name and size to arg, a bk_texts_t. */
bk_rc_t bk_storage_collect(void *arg, const bk_storage_item_t *item, bk_err_t *err);

/* Lazy: creates nothing and connects to nothing.  config is copied. */
bk_rc_t bk_storage_open(const bk_storage_config_t *config, bk_storage_t **st, bk_err_t *err);
void bk_storage_close(bk_storage_t *st);
const char *bk_storage_name(const bk_storage_t *st);   /* "disk" */
const char *bk_storage_driver(const bk_storage_t *st); /* "local" */
unsigned bk_storage_features(const bk_storage_t *st);
/* Path of a local storage for exclusion from file trees and free-space checks, or NULL. */
const char *bk_storage_local_path(const bk_storage_t *st);

/* exclusive: BK_EXISTS when the name is taken (atomic test). Otherwise replaces. */
bk_rc_t bk_storage_put(bk_storage_t *st, const char *name, const void *data, size_t len,
                       bool exclusive, bk_ctl_t *ctl, bk_err_t *err);
/* Publish a file of this machine, fsynced already.  An existing object of that name is success
 * (names are content). */
bk_rc_t bk_storage_put_file(bk_storage_t *st, const char *name, const char *path, bk_ctl_t *ctl,
                            bk_err_t *err);
/* Bytes [offset, offset + len) into out; *got < len only when the object ends there. */
bk_rc_t bk_storage_get(bk_storage_t *st, const char *name, uint64_t offset, size_t len, void *out,
                       size_t *got, bk_ctl_t *ctl, bk_err_t *err);
/*
 * The whole object, appended to out (limited by its maximum: BK_TOO_LARGE).  An object of up to
 * BK_STORAGE_SMALL bytes comes from one state also while it is being replaced.
 */
#define BK_STORAGE_SMALL 16384
bk_rc_t bk_storage_get_all(bk_storage_t *st, const char *name, bk_buf_t *out, bk_ctl_t *ctl,
                           bk_err_t *err);
bk_rc_t bk_storage_size(bk_storage_t *st, const char *name, uint64_t *size, bk_ctl_t *ctl,
                        bk_err_t *err);
/* Every object whose name starts with prefix, in name order; none is success. */
bk_rc_t bk_storage_list(bk_storage_t *st, const char *prefix, bk_storage_list_fn fn, void *arg,
                        bk_ctl_t *ctl, bk_err_t *err);
/* Removing what is not there is success. */
bk_rc_t bk_storage_remove(bk_storage_t *st, const char *name, bk_ctl_t *ctl, bk_err_t *err);
/* Bytes free, or UINT64_MAX when the storage does not say. */
bk_rc_t bk_storage_free_space(bk_storage_t *st, uint64_t *bytes, bk_err_t *err);

/*
 * What a driver implements.  Required unless marked; self is the driver's own state.
 * The bk_storage_* functions above check names, add "driver name: operation object: " to failures
 * and turn BK_IO into BK_STORAGE.
 */
typedef struct {
    const char *driver;
    unsigned features;
    bk_rc_t (*check)(const bk_storage_config_t *config, bk_err_t *err);
    bk_rc_t (*url)(bk_storage_config_t *out, const char *url, bk_err_t *err); /* own scheme only */
    const char *scheme;                                                       /* "file" */
    bk_rc_t (*open)(const bk_storage_config_t *config, void **self, bk_err_t *err);
    void (*close)(void *self);
    bk_rc_t (*put)(void *self, const char *name, const void *data, size_t len, bool exclusive,
                   bk_ctl_t *ctl, bk_err_t *err);
    bk_rc_t (*put_file)(void *self, const char *name, const char *path, bk_ctl_t *ctl,
                        bk_err_t *err);
    bk_rc_t (*get)(void *self, const char *name, uint64_t offset, size_t len, void *out,
                   size_t *got, bk_ctl_t *ctl, bk_err_t *err);
    bk_rc_t (*size)(void *self, const char *name, uint64_t *size, bk_ctl_t *ctl, bk_err_t *err);
    bk_rc_t (*list)(void *self, const char *prefix, bk_storage_list_fn fn, void *arg, bk_ctl_t *ctl,
                    bk_err_t *err);
    bk_rc_t (*remove)(void *self, const char *name, bk_ctl_t *ctl, bk_err_t *err);
    bk_rc_t (*free_space)(void *self, uint64_t *bytes, bk_err_t *err); /* optional */
    const char *(*local_path)(void *self);                             /* optional */
} bk_storage_driver_t;

#endif
