/*
 * sqlite/vfs.c: the methods of the VFS and its files, and the list of the images that it shows.
 */
#include "sqlite/vfs.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/str.h"

#define VFS_NAME  "ngxbackup"
#define NAME_SIZE 40
#define TEMPORARY                                                                                  \
    (SQLITE_OPEN_TEMP_DB | SQLITE_OPEN_TEMP_JOURNAL | SQLITE_OPEN_TRANSIENT_DB |                   \
     SQLITE_OPEN_SUBJOURNAL)

struct bk_vfs_image_s {
    bk_vfs_image_t *next;
    bk_past_t *past;
    uint8_t *page; /* the one read last */
    uint64_t pgno; /* of it; 0: none */
    bk_err_t why;  /* of the first failure */
    char name[NAME_SIZE];
    char uri[NAME_SIZE + 64];
};

typedef struct {
    sqlite3_file base;
    bk_vfs_image_t *image;
} file_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bk_vfs_image_t *images; /* under lock */

/* --- a file --- */

static int file_close(sqlite3_file *base)
{
    (void)base;
    return SQLITE_OK;
}

static int hold_page(bk_vfs_image_t *image, uint64_t pgno)
{
    bk_err_t why = {0};
    if (image->pgno == pgno)
        return SQLITE_OK;
    image->pgno = 0;
    if (bk_past_page(image->past, pgno, image->page, &why) != BK_OK) {
        if (image->why.rc == BK_OK)
            image->why = why;
        return why.rc == BK_CANCELED || why.rc == BK_INTERRUPTED ? SQLITE_INTERRUPT
                                                                 : SQLITE_IOERR_READ;
    }
    image->pgno = pgno;
    return SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *out, int amount, sqlite3_int64 offset)
{
    bk_vfs_image_t *image = ((file_t *)base)->image;
    uint64_t page_size = bk_past_page_size(image->past), at = (uint64_t)offset;
    uint64_t end = bk_past_page_count(image->past) * page_size;
    size_t left = (size_t)amount;
    uint8_t *p = out;
    while (left > 0 && at < end) {
        size_t from = (size_t)(at % page_size), n = (size_t)page_size - from;
        if (n > left)
            n = left;
        int code = hold_page(image, at / page_size + 1);
        if (code != SQLITE_OK)
            return code;
        memcpy(p, image->page + from, n);
        p += n;
        at += n;
        left -= n;
    }
    memset(p, 0, left);
    return left == 0 ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int file_write(sqlite3_file *base, const void *data, int amount, sqlite3_int64 offset)
{
    (void)base, (void)data, (void)amount, (void)offset;
    return SQLITE_READONLY;
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size)
{
    (void)base, (void)size;
    return SQLITE_READONLY;
}

static int file_sync(sqlite3_file *base, int flags)
{
    (void)base, (void)flags;
    return SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *size)
{
    const bk_past_t *past = ((file_t *)base)->image->past;
    *size = (sqlite3_int64)(bk_past_page_count(past) * bk_past_page_size(past));
    return SQLITE_OK;
}

static int file_lock(sqlite3_file *base, int level)
{
    (void)base, (void)level;
    return SQLITE_OK;
}

static int file_reserved(sqlite3_file *base, int *reserved)
{
    (void)base;
    *reserved = 0;
    return SQLITE_OK;
}

static int file_control(sqlite3_file *base, int op, void *arg)
{
    (void)base, (void)op, (void)arg;
    return SQLITE_NOTFOUND;
}

static int file_sector(sqlite3_file *base)
{
    (void)base;
    return 4096;
}

static int file_traits(sqlite3_file *base)
{
    (void)base;
    return SQLITE_IOCAP_IMMUTABLE;
}

static const sqlite3_io_methods methods = {
    .iVersion = 1,
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_lock,
    .xCheckReservedLock = file_reserved,
    .xFileControl = file_control,
    .xSectorSize = file_sector,
    .xDeviceCharacteristics = file_traits,
};

/* --- the VFS --- */

static sqlite3_vfs *beneath(sqlite3_vfs *vfs)
{
    return vfs->pAppData;
}

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags,
                    int *out_flags)
{
    file_t *file = (file_t *)base;
    base->pMethods = NULL;
    if (name == NULL || (flags & TEMPORARY) != 0)
        return beneath(vfs)->xOpen(beneath(vfs), name, base, flags, out_flags);
    pthread_mutex_lock(&lock);
    bk_vfs_image_t *image = images;
    while (image != NULL && strcmp(image->name, name) != 0)
        image = image->next;
    pthread_mutex_unlock(&lock);
    if (image == NULL || (flags & SQLITE_OPEN_MAIN_DB) == 0)
        return SQLITE_CANTOPEN;
    file->image = image;
    base->pMethods = &methods;
    if (out_flags != NULL)
        *out_flags = (flags & ~(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE)) | SQLITE_OPEN_READONLY;
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
    (void)vfs, (void)name, (void)sync;
    return SQLITE_READONLY;
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *result)
{
    (void)vfs, (void)name, (void)flags;
    *result = 0; /* nothing lies beside an image */
    return SQLITE_OK;
}

static int vfs_full_name(sqlite3_vfs *vfs, const char *name, int size, char *out)
{
    (void)vfs;
    return bk_strcpy(out, (size_t)size, name) ? SQLITE_OK : SQLITE_CANTOPEN;
}

static int vfs_random(sqlite3_vfs *vfs, int size, char *out)
{
    return beneath(vfs)->xRandomness(beneath(vfs), size, out);
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
    return beneath(vfs)->xSleep(beneath(vfs), us);
}

static int vfs_time(sqlite3_vfs *vfs, double *now)
{
    return beneath(vfs)->xCurrentTime(beneath(vfs), now);
}

static int vfs_last_error(sqlite3_vfs *vfs, int size, char *out)
{
    return beneath(vfs)->xGetLastError(beneath(vfs), size, out);
}

static sqlite3_vfs image_vfs = {
    .iVersion = 1,
    .mxPathname = 512,
    .zName = VFS_NAME,
    .xOpen = vfs_open,
    .xDelete = vfs_delete,
    .xAccess = vfs_access,
    .xFullPathname = vfs_full_name,
    .xRandomness = vfs_random,
    .xSleep = vfs_sleep,
    .xCurrentTime = vfs_time,
    .xGetLastError = vfs_last_error,
};

/* Once in a process; under lock. */
static bool is_registered(void)
{
    if (image_vfs.pAppData != NULL)
        return true;
    sqlite3_vfs *usual = sqlite3_vfs_find(NULL);
    if (usual == NULL)
        return false;
    image_vfs.szOsFile =
        usual->szOsFile > (int)sizeof(file_t) ? usual->szOsFile : (int)sizeof(file_t);
    image_vfs.pAppData = usual;
    if (sqlite3_vfs_register(&image_vfs, 0) == SQLITE_OK)
        return true;
    image_vfs.pAppData = NULL;
    return false;
}

/* --- images --- */

bk_rc_t bk_vfs_show(bk_past_t *past, bk_vfs_image_t **result, bk_err_t *err)
{
    uint8_t token[16];
    *result = NULL;
    bk_vfs_image_t *image = calloc(1, sizeof *image);
    if (image != NULL)
        image->page = malloc(bk_past_page_size(past));
    if (image == NULL || image->page == NULL || getrandom(token, sizeof token, 0) != sizeof token) {
        if (image != NULL)
            free(image->page);
        free(image);
        return bk_err_set(err, BK_NO_MEMORY, "show an image to SQLite: out of memory");
    }
    image->past = past;
    bk_hex(image->name, token, sizeof token);
    bk_fmt(image->uri, sizeof image->uri, "file:%s?vfs=" VFS_NAME "&mode=ro&immutable=1",
           image->name);
    pthread_mutex_lock(&lock);
    bool there = is_registered();
    if (there) {
        image->next = images;
        images = image;
    }
    pthread_mutex_unlock(&lock);
    if (there) {
        *result = image;
        return BK_OK;
    }
    free(image->page);
    free(image);
    return bk_err_set(err, BK_FAILED, "SQLite does not take the VFS " VFS_NAME);
}

void bk_vfs_hide(bk_vfs_image_t *image)
{
    if (image == NULL)
        return;
    pthread_mutex_lock(&lock);
    bk_vfs_image_t **link = &images;
    while (*link != image)
        link = &(*link)->next;
    *link = image->next;
    pthread_mutex_unlock(&lock);
    free(image->page);
    free(image);
}

const char *bk_vfs_uri(const bk_vfs_image_t *image)
{
    return image->uri;
}

bk_rc_t bk_vfs_failure(const bk_vfs_image_t *image, bk_rc_t rc, bk_err_t *err)
{
    if (rc == BK_OK || image->why.rc == BK_OK)
        return rc;
    if (err != NULL)
        *err = image->why;
    return image->why.rc;
}
