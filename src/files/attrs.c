/*
 * files/attrs.c: owners' names and extended attributes.  Asks the system's user database and the
 * file system, nothing else.
 */
#include "files/attrs.h"

#include <errno.h>
#include <grp.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "base/str.h"

#define BUCKETS   256u
#define LIST_MAX  (64u << 10) /* the kernel's own limits */
#define VALUE_MAX (64u << 10)
#define AT_PATH   320 /* "/proc/self/fd/N/" and a name */

/* --- names --- */

typedef struct known_s {
    struct known_s *next;
    uint32_t id;
    uint8_t len;
    bool missing; /* of by_name: nobody is called so */
    char name[256];
} known_t;

enum { USER, GROUP, KINDS };

struct bk_names_s {
    pthread_mutex_t lock;
    known_t *by_id[KINDS][BUCKETS];
    known_t *by_name[KINDS][BUCKETS];
};

bk_names_t *bk_names_new(void)
{
    bk_names_t *names = calloc(1, sizeof *names);
    if (names != NULL)
        pthread_mutex_init(&names->lock, NULL);
    return names;
}

static void free_list(known_t *known)
{
    while (known != NULL) {
        known_t *next = known->next;
        free(known);
        known = next;
    }
}

void bk_names_free(bk_names_t *names)
{
    if (names == NULL)
        return;
    for (unsigned kind = 0; kind < KINDS; kind++) {
        for (unsigned i = 0; i < BUCKETS; i++) {
            free_list(names->by_id[kind][i]);
            free_list(names->by_name[kind][i]);
        }
    }
    pthread_mutex_destroy(&names->lock);
    free(names);
}

/* Room for the strings of an entry of the user database: some groups have thousands of members. */
#define ASK_MIN (4u << 10)
#define ASK_MAX (1u << 20)

static bool ask_once(unsigned kind, const char *name, uint32_t *id, char *out, char *buf,
                     size_t size, bool *again)
{
    int result;
    const char *found = NULL;
    if (kind == USER) {
        struct passwd user, *there = NULL;
        result = name != NULL ? getpwnam_r(name, &user, buf, size, &there)
                              : getpwuid_r(*id, &user, buf, size, &there);
        if (result == 0 && there != NULL) {
            found = user.pw_name;
            *id = user.pw_uid;
        }
    } else {
        struct group group, *there = NULL;
        result = name != NULL ? getgrnam_r(name, &group, buf, size, &there)
                              : getgrgid_r(*id, &group, buf, size, &there);
        if (result == 0 && there != NULL) {
            found = group.gr_name;
            *id = group.gr_gid;
        }
    }
    *again = result == ERANGE;
    return found != NULL && bk_strcpy(out, 256, found);
}

/* By name when it is not NULL, else by *id. */
static bool ask(unsigned kind, const char *name, uint32_t *id, char *out)
{
    for (size_t size = ASK_MIN; size <= ASK_MAX; size *= 4) {
        bool again = false;
        char *buf = malloc(size);
        bool found = buf != NULL && ask_once(kind, name, id, out, buf, size, &again);
        free(buf);
        if (found || !again)
            return found;
    }
    return false;
}

/* The lock is held while the system is asked: each number is asked once, and then never again. */
static const char *name_of(bk_names_t *names, unsigned kind, uint32_t id, uint8_t *len)
{
    known_t **bucket = &names->by_id[kind][id % BUCKETS];
    pthread_mutex_lock(&names->lock);
    known_t *known = *bucket;
    while (known != NULL && known->id != id)
        known = known->next;
    if (known == NULL && (known = calloc(1, sizeof *known)) != NULL) {
        uint32_t asked = id;
        if (!ask(kind, NULL, &asked, known->name))
            known->name[0] = '\0';
        known->id = id;
        known->len = (uint8_t)strlen(known->name);
        known->next = *bucket;
        *bucket = known;
    }
    pthread_mutex_unlock(&names->lock);
    *len = known != NULL ? known->len : 0;
    return known != NULL ? known->name : "";
}

const char *bk_names_user(bk_names_t *names, uint32_t uid, uint8_t *len)
{
    return name_of(names, USER, uid, len);
}

const char *bk_names_group(bk_names_t *names, uint32_t gid, uint8_t *len)
{
    return name_of(names, GROUP, gid, len);
}

static uint32_t id_of(bk_names_t *names, unsigned kind, const char *name, uint8_t len,
                      uint32_t otherwise)
{
    unsigned hash = 5381;
    if (len == 0 || memchr(name, '\0', len) != NULL)
        return otherwise;
    for (size_t i = 0; i < len; i++)
        hash = hash * 33 + (unsigned char)name[i];
    known_t **bucket = &names->by_name[kind][hash % BUCKETS];
    pthread_mutex_lock(&names->lock);
    known_t *known = *bucket;
    while (known != NULL && (known->len != len || memcmp(known->name, name, len) != 0))
        known = known->next;
    if (known == NULL && (known = calloc(1, sizeof *known)) != NULL) {
        char found[256];
        memcpy(known->name, name, len);
        known->len = len;
        known->missing = !ask(kind, known->name, &known->id, found);
        known->next = *bucket;
        *bucket = known;
    }
    pthread_mutex_unlock(&names->lock);
    return known != NULL && !known->missing ? known->id : otherwise;
}

uint32_t bk_names_uid(bk_names_t *names, const char *name, uint8_t len, uint32_t otherwise)
{
    return id_of(names, USER, name, len, otherwise);
}

uint32_t bk_names_gid(bk_names_t *names, const char *name, uint8_t len, uint32_t otherwise)
{
    return id_of(names, GROUP, name, len, otherwise);
}

/* --- extended attributes: by descriptor, or by a path whose last component is not followed --- */

typedef struct {
    int fd;
    const char *path; /* NULL: fd */
} object_t;

static ssize_t list_attrs(const object_t *object, char *list, size_t size)
{
    return object->path != NULL ? llistxattr(object->path, list, size)
                                : flistxattr(object->fd, list, size);
}

static ssize_t get_attr(const object_t *object, const char *name, void *value, size_t size)
{
    return object->path != NULL ? lgetxattr(object->path, name, value, size)
                                : fgetxattr(object->fd, name, value, size);
}

static int set_attr(const object_t *object, const char *name, const void *value, size_t size)
{
    return object->path != NULL ? lsetxattr(object->path, name, value, size, 0)
                                : fsetxattr(object->fd, name, value, size, 0);
}

static int remove_attr(const object_t *object, const char *name)
{
    return object->path != NULL ? lremovexattr(object->path, name) : fremovexattr(object->fd, name);
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool kept(const char *name)
{
    if (starts_with(name, "security."))
        return strcmp(name, "security.ima") != 0 && strcmp(name, "security.evm") != 0;
    return starts_with(name, "user.") || starts_with(name, "trusted.") ||
           strcmp(name, "system.posix_acl_access") == 0 ||
           strcmp(name, "system.posix_acl_default") == 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Pointers into list, sorted; *count of them.  Caller frees.  NULL: no memory. */
static const char **sort_names(const char *list, size_t len, size_t *count)
{
    size_t all = 0;
    for (size_t i = 0; i < len; i++)
        all += list[i] == '\0';
    const char **sorted = calloc(all + 1, sizeof *sorted);
    *count = 0;
    if (sorted == NULL)
        return NULL;
    for (const char *p = list; p < list + len; p += strlen(p) + 1)
        if (kept(p))
            sorted[(*count)++] = p;
    qsort(sorted, *count, sizeof *sorted, by_text);
    return sorted;
}

static int add_value(const object_t *object, const char *name, bk_buf_t *out, uint32_t *count)
{
    size_t name_len = strlen(name), start = out->len;
    bk_buf_u16(out, (uint16_t)name_len);
    bk_buf_add(out, name, name_len);
    uint8_t *room = bk_buf_room(out, 4 + VALUE_MAX);
    if (room == NULL)
        return E2BIG;
    ssize_t len = get_attr(object, name, room + 4, VALUE_MAX);
    if (len < 0) {
        out->len = start;
        /* Gone since it was listed, or listed but not for us. */
        return errno == ENODATA || errno == EPERM || errno == EACCES || errno == EOPNOTSUPP ? 0
                                                                                            : errno;
    }
    bk_put_u32(room, (uint32_t)len);
    out->len += 4 + (size_t)len;
    (*count)++;
    return 0;
}

static int read_attrs(const object_t *object, bk_buf_t *out)
{
    char few[1024], *list = few, *many = NULL;
    uint32_t count = 0;
    size_t names = 0;
    bk_buf_reset(out);
    ssize_t len = list_attrs(object, few, sizeof few);
    if (len < 0 && errno == ERANGE) {
        list = many = malloc(LIST_MAX);
        if (many == NULL)
            return ENOMEM;
        len = list_attrs(object, many, LIST_MAX);
    }
    if (len <= 0) {
        int errnum = len == 0 || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : errno;
        free(many);
        return errnum;
    }
    const char **sorted = sort_names(list, (size_t)len, &names);
    int errnum = sorted == NULL ? ENOMEM : 0;
    if (names > 0)
        bk_buf_u32(out, 0);
    for (size_t i = 0; i < names && errnum == 0; i++)
        errnum = add_value(object, sorted[i], out, &count);
    free(sorted);
    free(many);
    if (errnum != 0 || count == 0)
        bk_buf_reset(out);
    else
        bk_put_u32(out->data, count);
    return errnum;
}

int bk_attrs_read(int fd, bk_buf_t *out)
{
    object_t object = {.fd = fd};
    return read_attrs(&object, out);
}

/* The kernel has no llistxattrat yet; /proc stands in.  Without /proc there are none. */
static bool name_at(int dir, const char *name, char path[AT_PATH])
{
    return bk_fmt(path, AT_PATH, "/proc/self/fd/%d/%s", dir, name);
}

int bk_attrs_read_at(int dir, const char *name, bk_buf_t *out)
{
    char path[AT_PATH];
    object_t object = {.fd = -1, .path = path};
    if (!name_at(dir, name, path))
        return ENAMETOOLONG;
    int errnum = read_attrs(&object, out);
    return errnum == ENOENT ? 0 : errnum;
}

/* --- setting --- */

typedef struct {
    char name[256];
    const uint8_t *value;
    uint32_t len;
} attr_t;

/*
 * The next attribute of a blob.  Only names that a backup keeps: a forged blob sets nothing else.
 */
static bool next_attr(bk_cur_t *cur, attr_t *attr)
{
    uint16_t name_len = bk_cur_u16(cur);
    const uint8_t *name = bk_cur_bytes(cur, name_len);
    attr->len = bk_cur_u32(cur);
    attr->value = bk_cur_bytes(cur, attr->len);
    if (!bk_cur_ok(cur) || name_len == 0 || name_len >= sizeof attr->name ||
        memchr(name, '\0', name_len) != NULL || attr->len > VALUE_MAX)
        return false;
    memcpy(attr->name, name, name_len);
    attr->name[name_len] = '\0';
    return kept(attr->name);
}

/* Remove what the blob does not name. */
static bk_rc_t remove_others(const object_t *object, const void *blob, size_t len,
                             const bk_buf_t *now, bk_err_t *err)
{
    bk_cur_t there = bk_cur(now->data, now->len);
    uint32_t there_count = bk_cur_u32(&there);
    for (uint32_t i = 0; i < there_count; i++) {
        attr_t have, want;
        bool wanted = false;
        if (!next_attr(&there, &have))
            break;
        bk_cur_t cur = bk_cur(blob, len);
        uint32_t count = len > 0 ? bk_cur_u32(&cur) : 0;
        for (uint32_t j = 0; j < count && !wanted; j++) {
            if (!next_attr(&cur, &want))
                return bk_err_set(err, BK_CORRUPT, "extended attributes are damaged");
            wanted = strcmp(want.name, have.name) == 0;
        }
        /* Security labels belong to the machine: a backup without one says nothing. */
        if (!wanted && !starts_with(have.name, "security.") && !starts_with(have.name, "trusted."))
            remove_attr(object, have.name);
    }
    return BK_OK;
}

static bk_rc_t write_attrs(const object_t *object, bool fresh, const void *blob, size_t len,
                           unsigned *refused, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    attr_t attr;
    if (!fresh) {
        bk_buf_t now;
        bk_buf_init(&now, BK_ATTRS_MAX);
        bool same = read_attrs(object, &now) == 0 && now.len == len &&
                    (len == 0 || memcmp(now.data, blob, len) == 0);
        if (!same)
            rc = remove_others(object, blob, len, &now, err);
        bk_buf_free(&now);
        if (same || rc != BK_OK)
            return rc;
    }
    bk_cur_t cur = bk_cur(blob, len);
    uint32_t count = len > 0 ? bk_cur_u32(&cur) : 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!next_attr(&cur, &attr))
            return bk_err_set(err, BK_CORRUPT, "extended attributes are damaged");
        if (set_attr(object, attr.name, attr.value, attr.len) == 0)
            continue;
        if (errno == ENOSPC || errno == EDQUOT || errno == EIO)
            return bk_err_sys(err, errno, "set attribute %s", attr.name);
        (*refused)++;
    }
    if (!bk_cur_ok(&cur) || bk_cur_left(&cur) != 0)
        return bk_err_set(err, BK_CORRUPT, "extended attributes are damaged");
    return BK_OK;
}

bk_rc_t bk_attrs_write(int fd, bool fresh, const void *blob, size_t len, unsigned *refused,
                       bk_err_t *err)
{
    object_t object = {.fd = fd};
    return write_attrs(&object, fresh, blob, len, refused, err);
}

bk_rc_t bk_attrs_write_at(int dir, const char *name, const void *blob, size_t len,
                          unsigned *refused, bk_err_t *err)
{
    char path[AT_PATH];
    object_t object = {.fd = -1, .path = path};
    if (!name_at(dir, name, path))
        return bk_err_sys(err, ENAMETOOLONG, "set attributes");
    return write_attrs(&object, true, blob, len, refused, err);
}
