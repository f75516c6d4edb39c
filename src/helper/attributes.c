/*
 * helper/attributes.c: reading and setting extended attributes through /proc/self/fd, the one way
 * to those of an O_PATH descriptor.  The blob to be set comes from a worker: it is checked as a
 * whole first.
 */
#include "helper/attributes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "helper/task.h"

#define LIST_MAX  (64u << 10) /* the kernel's own limits */
#define VALUE_MAX (64u << 10)
#define NAME_MOST 255u
#define COUNT_MAX 65536u

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Seals of one machine are not kept. */
static bool kept(const char *name)
{
    if (begins(name, "security."))
        return strcmp(name, "security.ima") != 0 && strcmp(name, "security.evm") != 0;
    return begins(name, "user.") || begins(name, "trusted.") ||
           strcmp(name, "system.posix_acl_access") == 0 ||
           strcmp(name, "system.posix_acl_default") == 0;
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int add(const char *path, const char *name, bk_buf_t *out, uint32_t *count)
{
    size_t len = strlen(name), start = out->len;
    bk_buf_u16(out, (uint16_t)len);
    bk_buf_add(out, name, len);
    uint8_t *room = bk_buf_room(out, 4 + VALUE_MAX);
    if (room == NULL)
        return E2BIG;
    ssize_t size = getxattr(path, name, room + 4, VALUE_MAX);
    if (size < 0) {
        /* Gone since it was listed, or not for us. */
        out->len = start;
        return errno == ENODATA || errno == EPERM || errno == EACCES || errno == EOPNOTSUPP ? 0
                                                                                            : errno;
    }
    bk_put_u32(room, (uint32_t)size);
    out->len += 4 + (size_t)size;
    (*count)++;
    return 0;
}

static int add_all(const char *path, const char *list, size_t len, bk_buf_t *out)
{
    size_t count = 0, most = 0;
    uint32_t added = 0;
    int errnum = 0;
    for (size_t i = 0; i < len; i++)
        most += list[i] == '\0';
    const char **names = calloc(most + 1, sizeof *names);
    if (names == NULL)
        return ENOMEM;
    for (const char *name = list; name < list + len; name += strlen(name) + 1)
        if (kept(name))
            names[count++] = name;
    qsort(names, count, sizeof *names, compare);
    if (count > 0)
        bk_buf_u32(out, 0);
    for (size_t i = 0; i < count && errnum == 0; i++)
        errnum = add(path, names[i], out, &added);
    free(names);
    if (errnum != 0 || added == 0)
        bk_buf_reset(out);
    else
        bk_put_u32(out->data, added);
    return errnum;
}

int bk_attributes_read(int fd, bk_buf_t *out)
{
    char path[BK_TASK_PROC], few[1024], *list = few, *many = NULL;
    bk_task_proc(path, fd);
    bk_buf_reset(out);
    ssize_t len = listxattr(path, few, sizeof few);
    if (len < 0 && errno == ERANGE) {
        list = many = malloc(LIST_MAX);
        if (many == NULL)
            return ENOMEM;
        len = listxattr(path, many, LIST_MAX);
    }
    int errnum = 0;
    if (len < 0)
        errnum = errno == EOPNOTSUPP || errno == ENOSYS ? 0 : errno;
    else if (len > 0)
        errnum = add_all(path, list, (size_t)len, out);
    free(many);
    return errnum;
}

/* --- setting --- */

typedef struct {
    char name[NAME_MOST + 1];
    const uint8_t *value;
    uint32_t len;
} attribute_t;

static bool next(bk_cur_t *cur, attribute_t *attribute)
{
    uint16_t len = bk_cur_u16(cur);
    const uint8_t *name = bk_cur_bytes(cur, len);
    attribute->len = bk_cur_u32(cur);
    attribute->value = bk_cur_bytes(cur, attribute->len);
    if (!bk_cur_ok(cur) || len == 0 || len > NAME_MOST || attribute->len > VALUE_MAX ||
        memchr(name, '\0', len) != NULL)
        return false;
    memcpy(attribute->name, name, len);
    attribute->name[len] = '\0';
    return kept(attribute->name);
}

static bool sound(const void *blob, size_t len)
{
    attribute_t attribute;
    if (len == 0)
        return true;
    bk_cur_t cur = bk_cur(blob, len);
    uint32_t count = bk_cur_u32(&cur);
    if (!bk_cur_ok(&cur) || count > COUNT_MAX)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (!next(&cur, &attribute))
            return false;
    return bk_cur_left(&cur) == 0;
}

static bool named(const void *blob, size_t len, const char *name)
{
    attribute_t attribute;
    bk_cur_t cur = bk_cur(blob, len);
    uint32_t count = len > 0 ? bk_cur_u32(&cur) : 0;
    for (uint32_t i = 0; i < count && next(&cur, &attribute); i++)
        if (strcmp(attribute.name, name) == 0)
            return true;
    return false;
}

/* What is there and not in the blob goes; labels of security belong to the machine and stay. */
static void remove_others(const char *path, const bk_buf_t *now, const void *blob, size_t len)
{
    attribute_t have;
    bk_cur_t cur = bk_cur(now->data, now->len);
    uint32_t count = now->len > 0 ? bk_cur_u32(&cur) : 0;
    for (uint32_t i = 0; i < count && next(&cur, &have); i++)
        if (!begins(have.name, "security.") && !begins(have.name, "trusted.") &&
            !named(blob, len, have.name))
            removexattr(path, have.name);
}

int bk_attributes_write(int fd, bool fresh, bool capabilities, const void *blob, size_t len,
                        unsigned *refused, bool *withheld)
{
    char path[BK_TASK_PROC];
    attribute_t attribute;
    if (!sound(blob, len))
        return EINVAL;
    bk_task_proc(path, fd);
    if (!fresh) {
        bk_buf_t now;
        bk_buf_init(&now, BK_WIRE_ATTRS_MAX);
        int errnum = bk_attributes_read(fd, &now);
        bool same = errnum == 0 && now.len == len && (len == 0 || memcmp(now.data, blob, len) == 0);
        if (errnum == 0 && !same)
            remove_others(path, &now, blob, len);
        bk_buf_free(&now);
        if (errnum != 0 || same)
            return errnum;
    }
    bk_cur_t cur = bk_cur(blob, len);
    uint32_t count = len > 0 ? bk_cur_u32(&cur) : 0;
    for (uint32_t i = 0; i < count && next(&cur, &attribute); i++) {
        if (!capabilities && strcmp(attribute.name, "security.capability") == 0) {
            *withheld = true;
            continue;
        }
        if (setxattr(path, attribute.name, attribute.value, attribute.len, 0) == 0)
            continue;
        if (errno == ENOSPC || errno == EDQUOT || errno == EIO)
            return errno;
        (*refused)++;
    }
    return 0;
}
