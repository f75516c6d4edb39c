/*
 * files/metadata.c: owner, attributes, mode and times of what a restore has placed: by a descriptor
 * or a name with this process's own rights, or of many names in one message to the helper.  What
 * the system does not take is counted, so that the job can say so.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "files/placing.h"

static void times_of(const bk_entry_t *entry, struct timespec times[2])
{
    int64_t ns = entry->mtime % BK_SEC;
    times[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
    times[1] = (struct timespec){.tv_sec = entry->mtime / BK_SEC - (ns < 0),
                                 .tv_nsec = ns < 0 ? ns + BK_SEC : ns};
}

static void owner_of(bk_restore_t *restore, const bk_entry_t *entry, uid_t *uid, gid_t *gid)
{
    *uid = bk_names_uid(restore->names, entry->user, entry->user_len, entry->uid);
    *gid = bk_names_gid(restore->names, entry->group, entry->group_len, entry->gid);
}

/* Set-user-id bits are an owner's promise: without the owner they would be somebody else's. */
static mode_t mode_of(const bk_entry_t *entry, bool owner_ok)
{
    mode_t mode = entry->mode & 07777;
    return owner_ok || entry->type == BK_ENTRY_DIR ? mode : mode & ~(mode_t)06000;
}

static bk_rc_t read_attrs(bk_restore_t *restore, const bk_entry_t *entry, bk_buf_t *blob,
                          bk_err_t *err)
{
    if (!(entry->flags & BK_ENTRY_ATTRS))
        return BK_OK;
    bk_rc_t rc = bk_repo_get(restore->repo, &entry->attrs, blob, restore->ctl, err);
    if (rc != BK_OK)
        bk_err_wrap(err, "extended attributes");
    return rc;
}

bk_rc_t bk_place_metadata(bk_restore_t *restore, int fd, const bk_entry_t *entry, bool fresh,
                          bk_err_t *err)
{
    struct stat st = {0};
    struct timespec times[2];
    bk_buf_t blob;
    bk_rc_t rc = BK_OK;
    unsigned refused = 0;
    bool owner_ok = false;
    if (!fresh && fstat(fd, &st) != 0)
        return bk_err_sys(err, errno, "look at it");
    if (restore->options->owners) {
        uid_t uid;
        gid_t gid;
        owner_of(restore, entry, &uid, &gid);
        owner_ok = (!fresh && st.st_uid == uid && st.st_gid == gid) || fchown(fd, uid, gid) == 0;
        if (!owner_ok)
            atomic_fetch_add(&restore->owner_refused, 1);
    }
    if ((entry->flags & BK_ENTRY_ATTRS) || !fresh) {
        bk_buf_init(&blob, BK_CHUNK_MAX);
        rc = read_attrs(restore, entry, &blob, err);
        if (rc == BK_OK)
            rc = bk_attrs_write(fd, fresh, blob.data, blob.len, &refused, err);
        bk_buf_free(&blob);
        atomic_fetch_add(&restore->attrs_refused, refused);
    }
    /* chown clears set-user-id bits, so the mode comes behind it, also when it seems right. */
    if (rc == BK_OK && fchmod(fd, mode_of(entry, owner_ok)) != 0)
        rc = bk_err_sys(err, errno, "set its mode");
    times_of(entry, times);
    if (rc == BK_OK && futimens(fd, times) != 0)
        rc = bk_err_sys(err, errno, "set its times");
    return rc;
}

static bk_rc_t metadata_at(bk_restore_t *restore, int dir, const char *name,
                           const bk_entry_t *entry, bk_err_t *err)
{
    struct timespec times[2];
    bk_buf_t blob;
    unsigned refused = 0;
    bool owner_ok = false;
    if (restore->options->owners) {
        uid_t uid;
        gid_t gid;
        owner_of(restore, entry, &uid, &gid);
        owner_ok = fchownat(dir, name, uid, gid, AT_SYMLINK_NOFOLLOW) == 0;
        if (!owner_ok)
            atomic_fetch_add(&restore->owner_refused, 1);
    }
    bk_buf_init(&blob, BK_CHUNK_MAX);
    bk_rc_t rc = read_attrs(restore, entry, &blob, err);
    if (rc == BK_OK && blob.len > 0)
        rc = bk_attrs_write_at(dir, name, blob.data, blob.len, &refused, err);
    bk_buf_free(&blob);
    atomic_fetch_add(&restore->attrs_refused, refused);
    if (rc == BK_OK && entry->type == BK_ENTRY_FIFO) {
        /* chmod follows links, a descriptor of the thing itself does not. */
        char path[64];
        int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        struct stat st;
        bk_fmt(path, sizeof path, "/proc/self/fd/%d", fd);
        if (fd < 0 || fstat(fd, &st) != 0 || !S_ISFIFO(st.st_mode) ||
            chmod(path, mode_of(entry, owner_ok)) != 0)
            rc = bk_err_sys(err, errno, "set its mode");
        if (fd >= 0)
            close(fd);
    }
    times_of(entry, times);
    if (rc == BK_OK && utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) != 0)
        rc = bk_err_sys(err, errno, "set its times");
    return rc;
}

/* --- through the helper --- */

/* The attributes as a descriptor that can be passed on: *fd is the caller's unless it is nothing.
 */
static bk_rc_t pack_attrs(bk_restore_t *restore, const bk_entry_t *entry, int *fd, bk_err_t *err)
{
    bk_buf_t blob;
    *fd = restore->road.nothing;
    if (!(entry->flags & BK_ENTRY_ATTRS))
        return BK_OK;
    bk_buf_init(&blob, BK_CHUNK_MAX);
    bk_rc_t rc = read_attrs(restore, entry, &blob, err);
    if (rc == BK_OK && blob.len > 0) {
        *fd = memfd_create("attributes", MFD_CLOEXEC);
        rc = *fd < 0 ? bk_err_sys(err, errno, "make a memory file")
                     : bk_write_all(*fd, blob.data, blob.len, "attributes", err);
        if (rc != BK_OK && *fd >= 0)
            close(*fd);
    }
    bk_buf_free(&blob);
    return rc;
}

static bk_helper_op_t operation(bk_restore_t *restore, const bk_subject_t *subject)
{
    const bk_entry_t *entry = subject->entry;
    struct timespec times[2];
    times_of(entry, times);
    bk_helper_op_t op = {.call = BK_WIRE_META,
                         .name = subject->name,
                         .mode = mode_of(entry, restore->options->owners),
                         .mtime = times[1],
                         .set = BK_WIRE_SET_MODE | BK_WIRE_SET_MTIME};
    if (restore->options->owners) {
        op.set |= BK_WIRE_SET_OWNER;
        owner_of(restore, entry, &op.uid, &op.gid);
    }
    op.set |= subject->fresh ? BK_WIRE_SET_FRESH : BK_WIRE_SET_ATTRS;
    if (entry->flags & BK_ENTRY_ATTRS)
        op.set |= BK_WIRE_SET_ATTRS;
    return op;
}

static void settle_subject(bk_restore_t *restore, bk_subject_t *subject,
                           const bk_helper_result_t *result)
{
    uint32_t refused = result->refused;
    subject->shared = result->error == EMLINK;
    if (result->error != 0)
        subject->rc = bk_at_error(&restore->road, result->error, "set its owner, mode and times",
                                  &subject->why);
    if (result->error != 0)
        return;
    if ((refused & BK_WIRE_REFUSED_OWNER) != 0)
        atomic_fetch_add(&restore->owner_refused, 1);
    if ((refused & BK_WIRE_REFUSED_SETUID) != 0)
        atomic_fetch_add(&restore->setuid_refused, 1);
    atomic_fetch_add(&restore->attrs_refused, refused & BK_WIRE_REFUSED_ATTRS);
}

bk_rc_t bk_place_describe(bk_restore_t *restore, const bk_at_t *at, bk_subject_t *subjects,
                          size_t count, bk_err_t *err)
{
    bk_helper_op_t ops[BK_WIRE_OPS];
    bk_helper_result_t results[BK_WIRE_OPS];
    size_t sent[BK_WIRE_OPS], n = 0;
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        bk_subject_t *subject = &subjects[i];
        ops[n] = operation(restore, subject);
        subject->shared = false;
        subject->rc = pack_attrs(restore, subject->entry, &ops[n].attrs, &subject->why);
        if (subject->rc == BK_OK)
            sent[n++] = i;
        else if (bk_restore_is_fatal(subject->rc))
            rc = subject->rc;
        if (rc != BK_OK && err != NULL)
            *err = subject->why;
    }
    if (rc == BK_OK && n > 0 && bk_at_batch(at, ops, n, results) != 0)
        rc = bk_at_error(at->road, BK_AT_GONE, "", err);
    for (size_t i = 0; i < n; i++) {
        if (rc == BK_OK)
            settle_subject(restore, &subjects[sent[i]], &results[i]);
        if (ops[i].attrs != restore->road.nothing && ops[i].attrs >= 0)
            close(ops[i].attrs);
    }
    return rc;
}

bk_rc_t bk_place_metadata_at(bk_restore_t *restore, const bk_at_t *at, const char *name,
                             const bk_entry_t *entry, bool fresh, bk_err_t *err)
{
    if (!bk_at_helped(at))
        return metadata_at(restore, at->fd, name, entry, err);
    bk_subject_t subject = {.name = name, .entry = entry, .fresh = fresh};
    bk_rc_t rc = bk_place_describe(restore, at, &subject, 1, err);
    if (rc != BK_OK || subject.rc == BK_OK)
        return rc;
    if (err != NULL)
        *err = subject.why;
    return subject.shared ? BK_EXISTS : subject.rc;
}

int bk_place_mkdir(bk_restore_t *restore, const bk_at_t *at, const char *name,
                   const bk_entry_t *entry)
{
    bk_helper_op_t ops[2] = {{.call = BK_WIRE_MKDIR, .name = name},
                             {.call = BK_WIRE_META, .name = name, .set = BK_WIRE_SET_OWNER}};
    bk_helper_result_t results[2];
    if (!bk_at_helped(at))
        return bk_at_mkdir(at, name);
    owner_of(restore, entry, &ops[1].uid, &ops[1].gid);
    int errnum = bk_at_batch(at, ops, restore->options->owners ? 2 : 1, results);
    /* A refused owner shows again at the end, where it is counted. */
    return errnum != 0 ? errnum : results[0].error;
}
