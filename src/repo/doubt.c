/*
 * repo/doubt.c: the notes of packs that are gone or damaged: two small files in the cache
 * directory.
 */
#include "repo/doubt.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/repo_private.h"

#define NOTES_MAX (16u << 20)

static const char *const names[BK_DOUBTS] = {"absent-packs", "bad-packs"};

struct bk_doubt_s {
    char *path[BK_DOUBTS];
    pthread_mutex_t lock;          /* guards what follows, and this process's writing */
    bk_packset_t noted[BK_DOUBTS]; /* what the files hold, as far as this process knows */
    bool read[BK_DOUBTS];
};

bk_doubt_t *bk_doubt_new(const char *cache_dir)
{
    bk_doubt_t *doubt = calloc(1, sizeof *doubt);
    bool enough = doubt != NULL;
    if (doubt == NULL)
        return NULL;
    pthread_mutex_init(&doubt->lock, NULL);
    for (size_t i = 0; i < BK_DOUBTS; i++) {
        char path[4096];
        enough = bk_fmt(path, sizeof path, "%s/%s", cache_dir, names[i]) &&
                 (doubt->path[i] = bk_strdup(path)) != NULL && enough;
    }
    if (enough)
        return doubt;
    bk_doubt_free(doubt);
    return NULL;
}

void bk_doubt_free(bk_doubt_t *doubt)
{
    if (doubt == NULL)
        return;
    for (size_t i = 0; i < BK_DOUBTS; i++) {
        bk_packset_free(&doubt->noted[i]);
        free(doubt->path[i]);
    }
    pthread_mutex_destroy(&doubt->lock);
    free(doubt);
}

/* --- the files; the lock is held --- */

/* A note that was cut off by a crash is the last one: what stands before it counts. */
static void read_notes(bk_doubt_t *doubt, bk_doubt_kind_t why)
{
    bk_buf_t bytes;
    bk_buf_init(&bytes, NOTES_MAX);
    if (bk_read_file(AT_FDCWD, doubt->path[why], &bytes, NULL) == BK_OK)
        (void)bk_packset_decode(&doubt->noted[why], bytes.data,
                                bytes.len - bytes.len % BK_PACKSET_ITEM, NULL);
    bk_buf_free(&bytes);
    doubt->read[why] = true;
}

static void append_note(const bk_doubt_t *doubt, bk_doubt_kind_t why, const bk_id_t *pack,
                        bk_kind_t kind)
{
    uint8_t note[BK_PACKSET_ITEM];
    struct stat st;
    bk_err_t err = {0};
    memcpy(note, pack->b, BK_ID_SIZE);
    note[BK_ID_SIZE] = (uint8_t)kind;
    int fd =
        bk_openat(AT_FDCWD, doubt->path[why], O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
    bool written = fd >= 0 && fstat(fd, &st) == 0;
    if (written && st.st_size % (off_t)sizeof note != 0)
        written = ftruncate(fd, st.st_size - st.st_size % (off_t)sizeof note) == 0;
    written = written && bk_write_all(fd, note, sizeof note, doubt->path[why], &err) == BK_OK &&
              fsync(fd) == 0;
    if (!written)
        bk_log(BK_LOG_WARN,
               "%s cannot be written: what is noted there is known until this process "
               "ends only",
               doubt->path[why]);
    if (fd >= 0)
        close(fd);
}

static void rewrite_notes(const bk_doubt_t *doubt, bk_doubt_kind_t why)
{
    bk_buf_t bytes;
    bk_err_t err = {0};
    bk_buf_init(&bytes, NOTES_MAX);
    bk_packset_encode(&doubt->noted[why], &bytes);
    if (bk_buf_ok(&bytes) && bk_publish_bytes(AT_FDCWD, doubt->path[why], 0600, bytes.data,
                                              bytes.len, false, &err) != BK_OK)
        bk_log(BK_LOG_WARN, "%s", err.text);
    bk_buf_free(&bytes);
}

/* --- notes --- */

void bk_doubt_add(bk_doubt_t *doubt, bk_doubt_kind_t why, const bk_id_t *pack, bk_kind_t kind)
{
    char object[BK_STORAGE_NAME];
    pthread_mutex_lock(&doubt->lock);
    if (!doubt->read[why])
        read_notes(doubt, why);
    bool fresh =
        !bk_packset_has(&doubt->noted[why], pack) && bk_packset_add(&doubt->noted[why], pack, kind);
    if (fresh)
        append_note(doubt, why, pack, kind);
    pthread_mutex_unlock(&doubt->lock);
    bk_pack_object_name(object, pack, kind);
    if (fresh)
        bk_log(
            BK_LOG_WARN,
            "%s is %s: the next backup stores again what it held, as far as the source still has "
            "it",
            object, why == BK_DOUBT_BAD ? "damaged" : "missing or has another size");
}

void bk_doubt_add_failure(bk_doubt_t *doubt, bk_rc_t rc, const bk_id_t *pack, bk_kind_t kind)
{
    if (rc == BK_NOT_FOUND)
        bk_doubt_add(doubt, BK_DOUBT_ABSENT, pack, kind);
    else if (rc == BK_CORRUPT || rc == BK_WRONG_KEY)
        bk_doubt_add(doubt, BK_DOUBT_BAD, pack, kind);
}

static bool add_all(bk_packset_t *to, const bk_packset_t *from)
{
    size_t at = 0;
    const bk_packset_item_t *item;
    while ((item = bk_packset_next(from, &at)) != NULL)
        if (!bk_packset_add(to, &item->name, (bk_kind_t)item->kind))
            return false;
    return true;
}

/* Notes of other processes are read anew; those of this one that could not be written are kept. */
static bk_rc_t copy_notes(bk_doubt_t *doubt, bk_doubt_kind_t why, bk_packset_t *set, bk_err_t *err)
{
    pthread_mutex_lock(&doubt->lock);
    read_notes(doubt, why);
    bool enough = add_all(set, &doubt->noted[why]);
    pthread_mutex_unlock(&doubt->lock);
    return enough ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "read notes of packs: out of memory");
}

/* Of what is noted, only what is in set: the rest is sound, or there again. */
static void keep_only(bk_doubt_t *doubt, bk_doubt_kind_t why, const bk_packset_t *set)
{
    bk_packset_t kept = {0};
    size_t at = 0;
    const bk_packset_item_t *item;
    bool enough = true;
    pthread_mutex_lock(&doubt->lock);
    read_notes(doubt, why);
    while (enough && (item = bk_packset_next(&doubt->noted[why], &at)) != NULL)
        if (bk_packset_has(set, &item->name))
            enough = bk_packset_add(&kept, &item->name, (bk_kind_t)item->kind);
    if (enough && kept.count < doubt->noted[why].count) {
        bk_packset_free(&doubt->noted[why]);
        doubt->noted[why] = kept;
        rewrite_notes(doubt, why);
    } else {
        bk_packset_free(&kept);
    }
    pthread_mutex_unlock(&doubt->lock);
}

bk_rc_t bk_doubt_load(bk_repo_t *repo, bk_packset_t *set, int64_t *since, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    bk_doubt_t *doubt = bk_repo_doubt(repo);
    bk_packset_t noted = {0}, absent = {0};
    *since = 0;
    bk_rc_t rc = copy_notes(doubt, BK_DOUBT_ABSENT, &noted, err);
    if (rc == BK_OK && noted.count > 0)
        rc = bk_packset_missing(repo, &noted, &absent, ctl, err);
    if (rc == BK_OK && absent.count < noted.count)
        keep_only(doubt, BK_DOUBT_ABSENT, &absent);
    if (rc == BK_OK && !add_all(set, &absent))
        rc = bk_err_set(err, BK_NO_MEMORY, "read notes of packs: out of memory");
    if (rc == BK_OK)
        rc = copy_notes(doubt, BK_DOUBT_BAD, set, err);
    for (size_t i = 0; i < BK_DOUBTS; i++) {
        struct stat st;
        if (stat(doubt->path[i], &st) != 0 || st.st_size == 0)
            continue;
        int64_t noted_at = (int64_t)st.st_mtim.tv_sec * BK_SEC + st.st_mtim.tv_nsec;
        *since = noted_at > *since ? noted_at : *since;
    }
    bk_packset_free(&noted);
    bk_packset_free(&absent);
    return rc;
}

void bk_doubt_settle(bk_doubt_t *doubt, const bk_packset_t *bad)
{
    keep_only(doubt, BK_DOUBT_BAD, bad);
}
