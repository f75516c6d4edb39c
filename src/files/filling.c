/*
 * files/filling.c: the content of one file: is what is there right already, and if not, the bytes
 * into a temporary.
 *
 * Runs in any lane.  Holds no descriptor between two calls, since a window has thousands of files;
 * but through the helper that of a file of several chunks, which nobody could open again.  Of those
 * the window begins few at a time.
 */
#include "files/filling.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/direct.h"
#include "base/str.h"

#define PIECES_MAX 1000000u

bk_item_t *bk_item_new(bk_restore_t *restore, bk_place_t *place, const bk_entry_t *entry)
{
    size_t refs = entry->chunk_count * sizeof(bk_chunk_ref_t);
    size_t text = (size_t)entry->name_len + 1 + entry->user_len + entry->group_len;
    bk_item_t *item = calloc(1, sizeof *item + refs + entry->content_len + text);
    if (item == NULL)
        return NULL;
    item->restore = restore;
    item->place = place;
    item->fd = -1;
    pthread_mutex_init(&item->writing, NULL);
    place->users++;
    item->entry = *entry;
    item->entry.target = NULL;
    /* The references come first: they want their alignment. */
    bk_chunk_ref_t *chunks = (bk_chunk_ref_t *)(item + 1);
    uint8_t *at = (uint8_t *)chunks + refs;
    if (refs > 0)
        memcpy(chunks, entry->chunks, refs);
    item->entry.chunks = chunks;
    if (entry->content_len > 0)
        memcpy(at, entry->content, entry->content_len);
    item->entry.content = at;
    at += entry->content_len;
    memcpy(at, entry->name, entry->name_len);
    item->entry.name = at;
    item->name = (const char *)at;
    at += entry->name_len + 1;
    memcpy(at, entry->user, entry->user_len);
    item->entry.user = (const char *)at;
    at += entry->user_len;
    memcpy(at, entry->group, entry->group_len);
    item->entry.group = (const char *)at;
    item->data_bytes = entry->flags & BK_ENTRY_EXTENTS ? entry->data_bytes : entry->size;
    return item;
}

void bk_item_free(bk_item_t *item)
{
    if (item == NULL)
        return;
    if (item->fd >= 0)
        close(item->fd);
    pthread_mutex_destroy(&item->writing);
    bk_place_release(item->place);
    free(item->pieces);
    free(item);
}

void bk_item_fail(bk_item_t *item, const bk_err_t *why)
{
    char path[PATH_MAX];
    if (atomic_exchange(&item->failed, true))
        return;
    if (!bk_place_path(item->place, item->name, path))
        bk_strcpy(path, sizeof path, item->place->path);
    bk_restore_fail(item->restore, path, why);
}

bk_rc_t bk_item_settle(bk_item_t *item, bk_rc_t rc, const bk_err_t *why, bk_err_t *err)
{
    if (rc == BK_OK)
        return BK_OK;
    if (!bk_restore_is_fatal(rc)) {
        bk_item_fail(item, why);
        return BK_OK;
    }
    if (err != NULL) {
        *err = *why;
        if (rc == BK_NO_SPACE)
            bk_err_wrap(err, "restore %s/%s", item->place->path, item->name);
    }
    return rc;
}

bool bk_item_needs_chunks(const bk_item_t *item)
{
    return (item->entry.flags & (BK_ENTRY_CHUNKS | BK_ENTRY_MAP)) != 0 && item->data_bytes > 0;
}

/* --- the temporary --- */

/* at: the place, or NULL to find it by its path. */
static int open_temporary(bk_item_t *item, const bk_at_t *at, bool create)
{
    int flags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT | O_EXCL : 0);
    char path[PATH_MAX];
    if (create)
        bk_temporary_name(item->restore, item->temporary);
    int fd = -1;
    if (at != NULL)
        fd = openat(at->fd, item->temporary, flags, 0600);
    else if (bk_place_path(item->place, item->temporary, path))
        fd = bk_root_open_raw(item->restore->road.root, path, flags, 0600);
    else
        errno = ENAMETOOLONG;
    if (fd < 0 && create)
        item->temporary[0] = '\0';
    return fd;
}

static bk_rc_t set_size(const bk_item_t *item, int fd, bk_err_t *err)
{
    if ((item->entry.flags & BK_ENTRY_EXTENTS) && ftruncate(fd, (off_t)item->entry.size) != 0)
        return bk_err_sys(err, errno, "set its size");
    return BK_OK;
}

/* The last byte is in. */
static bk_rc_t complete(bk_item_t *item, int fd, bk_err_t *err)
{
    bk_rc_t rc = set_size(item, fd, err);
    if (rc == BK_OK)
        rc = bk_place_metadata(item->restore, fd, &item->entry, !item->place->inherits, err);
    /* The window's flush covers the root's file system only. */
    if (rc == BK_OK && item->place->other && fsync(fd) != 0)
        rc = bk_err_sys(err, errno, "flush it");
    item->filled = rc == BK_OK;
    return rc;
}

static bk_rc_t close_written(int fd, bk_rc_t rc, bk_err_t *err)
{
    /* Some file systems tell of a full disk only now. */
    if (close(fd) != 0 && rc == BK_OK && errno != EINTR)
        rc = bk_err_sys(err, errno, "close it");
    return rc;
}

bk_rc_t bk_item_close(const bk_item_t *item, int fd, bk_rc_t rc, bk_err_t *err)
{
    if (rc == BK_OK)
        rc = set_size(item, fd, err);
    return close_written(fd, rc, err);
}

bk_rc_t bk_item_write(const bk_item_t *item, int fd, const uint8_t *data, size_t len,
                      uint64_t offset, bk_err_t *err)
{
    if (item->pieces == NULL)
        return bk_direct_write(fd, data, len, offset, "it", err);
    size_t low = 0, high = item->piece_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (item->pieces[middle].before <= offset)
            low = middle;
        else
            high = middle;
    }
    bk_rc_t rc = BK_OK;
    for (size_t i = low; i < item->piece_count && len > 0 && rc == BK_OK; i++) {
        const bk_piece_t *piece = &item->pieces[i];
        uint64_t skip = offset - piece->before;
        if (skip >= piece->length)
            continue;
        size_t n = piece->length - skip < len ? (size_t)(piece->length - skip) : len;
        rc = bk_direct_write(fd, data, n, piece->offset + skip, "it", err);
        data += n;
        len -= n;
        offset += n;
    }
    return rc;
}

/* --- the extents of a sparse file --- */

static bk_rc_t parse_pieces(bk_item_t *item, const bk_buf_t *blob, bk_err_t *err)
{
    bk_cur_t cur = bk_cur(blob->data, blob->len);
    uint32_t count = bk_cur_u32(&cur);
    uint64_t end = 0, before = 0;
    if (count > PIECES_MAX || bk_cur_left(&cur) != (size_t)count * 16)
        return bk_err_set(err, BK_CORRUPT, "its extents are damaged");
    item->pieces = calloc((size_t)count + 1, sizeof *item->pieces);
    if (item->pieces == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read extents: out of memory");
    item->piece_count = count;
    for (uint32_t i = 0; i < count; i++) {
        bk_piece_t *piece = &item->pieces[i];
        piece->offset = bk_cur_u64(&cur);
        piece->length = bk_cur_u64(&cur);
        piece->before = before;
        if (piece->offset < end || piece->offset > item->entry.size ||
            piece->length > item->entry.size - piece->offset)
            return bk_err_set(err, BK_CORRUPT, "its extents are damaged");
        end = piece->offset + piece->length;
        before += piece->length;
    }
    if (before != item->data_bytes)
        return bk_err_set(err, BK_CORRUPT, "its extents do not add up");
    return BK_OK;
}

static bk_rc_t read_pieces(bk_item_t *item, bk_err_t *err)
{
    bk_buf_t blob;
    if (!(item->entry.flags & BK_ENTRY_EXTENTS))
        return BK_OK;
    bk_buf_init(&blob, BK_CHUNK_MAX);
    bk_rc_t rc =
        bk_repo_get(item->restore->repo, &item->entry.extents, &blob, item->restore->ctl, err);
    if (rc == BK_OK)
        rc = parse_pieces(item, &blob, err);
    bk_buf_free(&blob);
    return rc;
}

/* --- is it right already --- */

bk_rc_t bk_item_is_right(const bk_item_t *item, int fd, bk_reader_t *reader, bool *right,
                         bk_err_t *err)
{
    struct stat st;
    bk_id_t sha256;
    int sys = 0;
    *right = false;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != item->entry.size)
        return BK_OK;
    bk_rc_t rc = bk_content_hash(reader, fd, &st, &sha256, &sys, err);
    *right = rc == BK_OK && sys == 0 && bk_id_equal(&sha256, &item->entry.sha256);
    return rc;
}

bk_rc_t bk_item_in_use(bk_err_t *err)
{
    return bk_err_set(err, BK_BUSY,
                      "it is a database that a backup or recovery has open: "
                      "recover it again later");
}

static bk_rc_t compare_existing(bk_item_t *item, const bk_at_t *at, bk_reader_t *reader,
                                bk_err_t *err)
{
    int fd;
    if (bk_at_read(at, item->name, O_NOATIME, &fd) != 0)
        return BK_OK; /* cannot tell: it is replaced */
    if (!bk_attached_hold(fd))
        return bk_item_in_use(err);
    bk_rc_t rc = bk_item_is_right(item, fd, reader, &item->unchanged, err);
    if (item->unchanged && !item->restore->options->dry_run)
        rc = bk_place_metadata(item->restore, fd, &item->entry, false, err);
    bk_attached_close(fd);
    return rc;
}

/* --- writing --- */

/* A file that lies in its entry, is empty, or is one hole. */
static bk_rc_t write_plain(bk_item_t *item, const bk_at_t *at, bk_err_t *err)
{
    const bk_entry_t *entry = &item->entry;
    if (entry->content_len != item->data_bytes)
        return bk_err_set(err, BK_CORRUPT, "its content is not as long as its entry says");
    bk_rc_t rc = read_pieces(item, err);
    if (rc != BK_OK)
        return rc;
    if (bk_item_helped(item))
        return bk_helped_write(item, entry->content, entry->content_len, err);
    int fd = open_temporary(item, at, true);
    if (fd < 0)
        return bk_err_sys(err, errno, "make a temporary file");
    if (entry->content_len > 0)
        rc = bk_item_write(item, fd, entry->content, entry->content_len, 0, err);
    if (rc == BK_OK)
        rc = complete(item, fd, err);
    return close_written(fd, rc, err);
}

bk_rc_t bk_item_prepare(bk_item_t *item, const bk_at_t *at, bk_reader_t *reader, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    if (item->compare && !bk_item_helped(item))
        rc = compare_existing(item, at, reader, &why);
    if (rc == BK_OK && !item->unchanged && !item->restore->options->dry_run &&
        !bk_item_needs_chunks(item))
        rc = write_plain(item, at, &why);
    return bk_item_settle(item, rc, &why, err);
}

/*
 * Room in one piece, since chunks come in any order and each goes to the disk at once.  A file
 * system that cannot reserve is no failure; one that is full is the same failure sooner.
 */
static bk_rc_t reserve(const bk_item_t *item, int fd, bk_err_t *err)
{
    if (item->pieces != NULL || item->data_bytes < BK_DIRECT_MIN)
        return BK_OK;
    int failed = TEMP_FAILURE_RETRY(fallocate(fd, 0, 0, (off_t)item->data_bytes));
    return failed != 0 && errno == ENOSPC ? bk_err_sys(err, errno, "reserve its room") : BK_OK;
}

static bk_rc_t begin_helped(bk_item_t *item, bk_err_t *err)
{
    bk_at_t at;
    int errnum = bk_at_open(&item->restore->road, item->place->path, false, &at);
    bk_temporary_name(item->restore, item->temporary);
    if (errnum == 0)
        errnum = bk_at_create(&at, item->temporary, &item->fd);
    bk_at_close(&at);
    if (errnum == 0)
        return reserve(item, item->fd, err);
    item->temporary[0] = '\0';
    return bk_at_error(&item->restore->road, errnum, "make a temporary file", err);
}

bk_rc_t bk_item_begin(bk_item_t *item, bk_err_t *err)
{
    bk_err_t why = {0};
    const bk_entry_t *entry = &item->entry;
    uint64_t chunks = entry->flags & BK_ENTRY_MAP ? entry->map_count : entry->chunk_count;
    atomic_store(&item->left, chunks);
    bk_rc_t rc = read_pieces(item, &why);
    /* One chunk: whoever gets it makes the file. */
    if (rc == BK_OK && chunks > 1 && bk_item_helped(item)) {
        rc = begin_helped(item, &why);
    } else if (rc == BK_OK && chunks > 1) {
        int fd = open_temporary(item, NULL, true);
        if (fd < 0)
            rc = bk_err_sys(&why, errno, "make a temporary file");
        else
            rc = close_written(fd, reserve(item, fd, &why), &why);
    }
    return bk_item_settle(item, rc, &why, err);
}

/* One of several chunks of a file that stays open until the last of them. */
static bk_rc_t write_helped(bk_item_t *item, const bk_want_chunk_t *want, const uint8_t *data,
                            bk_err_t *err)
{
    pthread_mutex_lock(&item->writing);
    bk_rc_t rc = bk_item_write(item, item->fd, data, want->raw, want->tag, err);
    pthread_mutex_unlock(&item->writing);
    if (atomic_fetch_sub(&item->left, 1) != 1 || rc != BK_OK || atomic_load(&item->failed))
        return rc;
    int fd = item->fd;
    item->fd = -1;
    rc = bk_item_close(item, fd, rc, err);
    item->written = rc == BK_OK;
    return rc;
}

static bk_rc_t write_chunk(bk_item_t *item, const bk_want_chunk_t *want, const uint8_t *data,
                           bk_err_t *err)
{
    if (item->fd >= 0)
        return write_helped(item, want, data, err);
    if (bk_item_helped(item))
        return bk_helped_write(item, data, want->raw, err);
    int fd = open_temporary(item, NULL, item->temporary[0] == '\0');
    if (fd < 0)
        return bk_err_sys(err, errno, "open its temporary file");
    bk_rc_t rc = bk_item_write(item, fd, data, want->raw, want->tag, err);
    /* Also when another chunk failed: the count must come to its end. */
    if (atomic_fetch_sub(&item->left, 1) == 1 && rc == BK_OK && !atomic_load(&item->failed))
        rc = complete(item, fd, err);
    return close_written(fd, rc, err);
}

bk_rc_t bk_item_deliver(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                        const bk_err_t *failure, bk_err_t *err)
{
    bk_item_t *item = want->user;
    bk_restore_t *restore = arg;
    bk_err_t why = {0};
    if (atomic_load(&item->failed))
        return BK_OK;
    if (data == NULL) {
        bk_item_fail(item, failure);
        return BK_OK;
    }
    bk_rc_t rc = write_chunk(item, want, data, &why);
    if (rc == BK_OK && restore->ctl != NULL)
        atomic_fetch_add_explicit(&restore->ctl->bytes_done, want->raw, memory_order_relaxed);
    return bk_item_settle(item, rc, &why, err);
}
