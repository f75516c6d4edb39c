/*
 * storage/registry.c: one row a driver, and the calls that every storage goes through: they check
 * names and put the storage, the operation and the object in front of a driver's failure.
 */
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/texts.h"
#include "storage/driver.h"
#include "storage/storage.h"

static const bk_storage_driver_t *const drivers[] = {&bk_storage_local};

#define DRIVERS (sizeof drivers / sizeof *drivers)

struct bk_storage_s {
    const bk_storage_driver_t *driver;
    char *name;
    void *self;
};

static const bk_storage_driver_t *find_driver(const char *name, bk_err_t *err)
{
    char known[128] = "";
    for (size_t i = 0; i < DRIVERS; i++) {
        if (name != NULL && strcmp(drivers[i]->driver, name) == 0)
            return drivers[i];
        size_t len = strlen(known);
        bk_fmt(known + len, sizeof known - len, "%s%s", i > 0 ? ", " : "", drivers[i]->driver);
    }
    bk_err_set(err, BK_UNSUPPORTED, "this build has no storage driver \"%s\"; it has: %s",
               name != NULL ? name : "", known);
    return NULL;
}

bk_rc_t bk_storage_driver_check(const char *driver, bk_err_t *err)
{
    return find_driver(driver, err) != NULL ? BK_OK : BK_UNSUPPORTED;
}

bk_rc_t bk_storage_config_check(const bk_storage_config_t *config, bk_err_t *err)
{
    const bk_storage_driver_t *driver = find_driver(config->driver, err);
    return driver != NULL ? driver->check(config, err) : BK_UNSUPPORTED;
}

bk_rc_t bk_storage_config_url(bk_storage_config_t *out, const char *url, bk_err_t *err)
{
    char known[128] = "";
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < DRIVERS; i++) {
        size_t len = strlen(drivers[i]->scheme), used = strlen(known);
        if (strncmp(url, drivers[i]->scheme, len) == 0 && strncmp(url + len, "://", 3) == 0) {
            out->driver = bk_strdup(drivers[i]->driver);
            out->name = bk_strdup(drivers[i]->scheme);
            bk_rc_t rc = out->driver != NULL && out->name != NULL
                             ? drivers[i]->url(out, url, err)
                             : bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", url);
            if (rc != BK_OK)
                bk_storage_config_free(out);
            return rc;
        }
        bk_fmt(known + used, sizeof known - used, "%s%s://…", i > 0 ? ", " : "",
               drivers[i]->scheme);
    }
    return bk_err_set(err, BK_INVALID, "%s: not a storage URL of this build; it knows %s", url,
                      known);
}

bk_rc_t bk_storage_open(const bk_storage_config_t *config, bk_storage_t **st, bk_err_t *err)
{
    const bk_storage_driver_t *driver = find_driver(config->driver, err);
    if (driver == NULL)
        return BK_UNSUPPORTED;
    bk_storage_t *storage = calloc(1, sizeof *storage);
    const char *name = config->name != NULL ? config->name : driver->driver;
    if (storage == NULL || (storage->name = bk_strdup(name)) == NULL) {
        free(storage);
        return bk_err_set(err, BK_NO_MEMORY, "open storage %s: out of memory", name);
    }
    storage->driver = driver;
    bk_rc_t rc = driver->open(config, &storage->self, err);
    if (rc != BK_OK) {
        bk_err_wrap(err, "%s %s", driver->driver, name);
        free(storage->name);
        free(storage);
        return rc;
    }
    *st = storage;
    return BK_OK;
}

void bk_storage_close(bk_storage_t *st)
{
    if (st == NULL)
        return;
    st->driver->close(st->self);
    free(st->name);
    free(st);
}

const char *bk_storage_name(const bk_storage_t *st)
{
    return st->name;
}

const char *bk_storage_driver(const bk_storage_t *st)
{
    return st->driver->driver;
}

unsigned bk_storage_features(const bk_storage_t *st)
{
    return st->driver->features;
}

const char *bk_storage_local_path(const bk_storage_t *st)
{
    return st->driver->local_path != NULL ? st->driver->local_path(st->self) : NULL;
}

bool bk_storage_name_valid(const char *name, bool prefix)
{
    size_t len = strlen(name), start = 0;
    if (len >= BK_STORAGE_NAME || (len == 0 && !prefix))
        return false;
    for (size_t i = 0; i <= len; i++) {
        char c = name[i];
        if (c == '/' || c == '\0') {
            size_t n = i - start;
            bool open_end = prefix && c == '\0';
            if ((n == 0 && !open_end) || (n > 0 && name[start] == '.') || n > 200)
                return false;
            start = i + 1;
        } else if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '.' || c == '_' || c == '-')) {
            return false;
        }
    }
    return true;
}

static bk_rc_t check_name(const bk_storage_t *st, const char *name, bk_err_t *err)
{
    if (bk_storage_name_valid(name, false))
        return BK_OK;
    return bk_err_set(err, BK_INVALID, "%s %s: \"%s\" is not an object name", st->driver->driver,
                      st->name, name);
}

static bk_rc_t explain(const bk_storage_t *st, const char *operation, const char *name, bk_rc_t rc,
                       bk_err_t *err)
{
    if (rc == BK_OK)
        return rc;
    if (rc == BK_IO)
        rc = BK_STORAGE;
    if (err != NULL) {
        err->rc = rc;
        bk_err_wrap(err, "%s %s: %s%s%s", st->driver->driver, st->name, operation,
                    *name != '\0' ? " " : "", name);
    }
    return rc;
}

bk_rc_t bk_storage_put(bk_storage_t *st, const char *name, const void *data, size_t len,
                       bool exclusive, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = check_name(st, name, err);
    if (rc != BK_OK || (rc = bk_ctl_check(ctl, err)) != BK_OK)
        return rc;
    return explain(st, "write", name,
                   st->driver->put(st->self, name, data, len, exclusive, ctl, err), err);
}

bk_rc_t bk_storage_put_file(bk_storage_t *st, const char *name, const char *path, bk_ctl_t *ctl,
                            bk_err_t *err)
{
    bk_rc_t rc = check_name(st, name, err);
    if (rc != BK_OK || (rc = bk_ctl_check(ctl, err)) != BK_OK)
        return rc;
    return explain(st, "write", name, st->driver->put_file(st->self, name, path, ctl, err), err);
}

bk_rc_t bk_storage_get(bk_storage_t *st, const char *name, uint64_t offset, size_t len, void *out,
                       size_t *got, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = check_name(st, name, err);
    *got = 0;
    if (rc != BK_OK || (rc = bk_ctl_check(ctl, err)) != BK_OK)
        return rc;
    return explain(st, "read", name,
                   st->driver->get(st->self, name, offset, len, out, got, ctl, err), err);
}

/* What follows the first bytes in out: of an object too large to be replaced under its name. */
static bk_rc_t get_rest(bk_storage_t *st, const char *name, size_t have, bk_buf_t *out,
                        bk_ctl_t *ctl, bk_err_t *err)
{
    uint64_t size;
    size_t got = 0;
    bk_rc_t rc = bk_storage_size(st, name, &size, ctl, err);
    if (rc != BK_OK || size == have)
        return rc;
    if (size > have && size - have > out->max - out->len)
        return bk_err_set(err, BK_TOO_LARGE,
                          "%s %s: read %s: it has %llu bytes, more than expected",
                          st->driver->driver, st->name, name, (unsigned long long)size);
    size_t rest = size > have ? (size_t)(size - have) : 0;
    uint8_t *room = bk_buf_room(out, rest);
    if (room == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s %s: read %s: out of memory", st->driver->driver,
                          st->name, name);
    if (rest > 0)
        rc = bk_storage_get(st, name, have, rest, room, &got, ctl, err);
    if (rc == BK_OK && (rest == 0 || got != rest))
        rc = bk_err_set(err, BK_CORRUPT, "%s %s: read %s: it became shorter meanwhile",
                        st->driver->driver, st->name, name);
    if (rc == BK_OK)
        out->len += got;
    return rc;
}

/* Most objects read so are small: one request tells their content and their end. */
bk_rc_t bk_storage_get_all(bk_storage_t *st, const char *name, bk_buf_t *out, bk_ctl_t *ctl,
                           bk_err_t *err)
{
    size_t before = out->len, left = out->max - out->len, got = 0;
    size_t first = left < BK_STORAGE_SMALL + 1 ? left : BK_STORAGE_SMALL + 1;
    uint8_t *room = bk_buf_room(out, first);
    if (room == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s %s: read %s: out of memory", st->driver->driver,
                          st->name, name);
    bk_rc_t rc = bk_storage_get(st, name, 0, first, room, &got, ctl, err);
    if (rc != BK_OK)
        return rc;
    out->len += got;
    if (got == first && (rc = get_rest(st, name, got, out, ctl, err)) != BK_OK)
        out->len = before;
    return rc;
}

bk_rc_t bk_storage_size(bk_storage_t *st, const char *name, uint64_t *size, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    bk_rc_t rc = check_name(st, name, err);
    if (rc != BK_OK || (rc = bk_ctl_check(ctl, err)) != BK_OK)
        return rc;
    return explain(st, "look at", name, st->driver->size(st->self, name, size, ctl, err), err);
}

/* Tells a failure of the caller's function from one of the driver. */
typedef struct {
    bk_storage_list_fn fn;
    void *arg;
    bool stopped;
} visit_t;

static bk_rc_t visit(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    visit_t *v = arg;
    bk_rc_t rc = v->fn(v->arg, item, err);
    v->stopped = rc != BK_OK;
    return rc;
}

bk_rc_t bk_storage_collect(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    if (bk_texts_add(arg, item->name, item->size))
        return BK_OK;
    return bk_err_set(err, BK_NO_MEMORY, "list objects: out of memory");
}

bk_rc_t bk_storage_list(bk_storage_t *st, const char *prefix, bk_storage_list_fn fn, void *arg,
                        bk_ctl_t *ctl, bk_err_t *err)
{
    visit_t v = {.fn = fn, .arg = arg};
    bk_rc_t rc = bk_ctl_check(ctl, err);
    if (rc != BK_OK)
        return rc;
    if (!bk_storage_name_valid(prefix, true))
        return bk_err_set(err, BK_INVALID, "%s %s: \"%s\" is not a prefix of object names",
                          st->driver->driver, st->name, prefix);
    rc = st->driver->list(st->self, prefix, visit, &v, ctl, err);
    return v.stopped ? rc : explain(st, "list", prefix, rc, err);
}

bk_rc_t bk_storage_remove(bk_storage_t *st, const char *name, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = check_name(st, name, err);
    if (rc != BK_OK || (rc = bk_ctl_check(ctl, err)) != BK_OK)
        return rc;
    return explain(st, "remove", name, st->driver->remove(st->self, name, ctl, err), err);
}

bk_rc_t bk_storage_free_space(bk_storage_t *st, uint64_t *bytes, bk_err_t *err)
{
    *bytes = UINT64_MAX;
    if (st->driver->free_space == NULL)
        return BK_OK;
    return explain(st, "ask for free space", "", st->driver->free_space(st->self, bytes, err), err);
}
