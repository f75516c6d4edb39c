/*
 * files/finishing.c: removing what the backup does not have, and the metadata of directories, by
 * own rights or many at a time through the helper.
 */
#include "files/finishing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"

bk_rc_t bk_finish_extras(bk_restore_t *restore, const bk_extra_t *extras, size_t count,
                         bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < count && rc == BK_OK; i++) {
        char path[PATH_MAX];
        bk_err_t why = {0};
        uint64_t before = restore->stats.deleted;
        if (!bk_place_path(extras[i].place, extras[i].name, path))
            continue;
        bk_at_t at;
        if (bk_at_open(&restore->road, extras[i].place->path, extras[i].place->other, &at) != 0)
            continue;
        rc = bk_place_remove(restore, &at, extras[i].name, extras[i].path,
                             restore->options->dry_run, &why);
        bk_at_close(&at);
        if (rc == BK_OK && restore->stats.deleted != before)
            bk_restore_plan(restore, path, "delete", 0);
        if (rc != BK_OK && bk_restore_is_fatal(rc)) {
            if (err != NULL)
                *err = why;
        } else if (rc != BK_OK) {
            bk_restore_fail(restore, path, &why);
            rc = BK_OK;
        }
    }
    return rc;
}

static bk_rc_t settle_dir(bk_restore_t *restore, const bk_final_t *final, bk_rc_t rc,
                          const bk_err_t *why, bk_err_t *err)
{
    if (rc == BK_OK)
        return BK_OK;
    if (!bk_restore_is_fatal(rc)) {
        bk_restore_fail(restore, final->place->path, why);
        return BK_OK;
    }
    if (err != NULL)
        *err = *why;
    return rc;
}

static bk_rc_t finish_own(bk_restore_t *restore, const bk_final_t *final, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    int fd = bk_root_open_raw(restore->road.root, final->place->path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) {
        rc = bk_err_sys(&why, errno, "open directory");
    } else {
        rc = bk_place_metadata(restore, fd, &final->entry, final->place->fresh, &why);
        close(fd);
    }
    return settle_dir(restore, final, rc, &why, err);
}

/* Length of the path above a directory's own name. */
static size_t above_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? (size_t)(slash - path) : 0;
}

/* Through the helper: as many as have the same directory above them.  *taken of them. */
static bk_rc_t finish_helped(bk_restore_t *restore, const bk_final_t *finals, size_t count,
                             size_t *taken, bk_err_t *err)
{
    const char *first = finals[0].place->path;
    size_t len = above_of(first), n = 0;
    char above[PATH_MAX];
    bk_at_t at;
    bk_subject_t *subjects = calloc(BK_WIRE_OPS, sizeof *subjects);
    *taken = 0;
    if (subjects == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "restore files: out of memory");
    bk_fmt(above, sizeof above, "%.*s", (int)len, first);
    for (; n < count && n < BK_WIRE_OPS && !finals[n].place->other; n++) {
        const char *path = finals[n].place->path;
        if (above_of(path) != len || memcmp(path, first, len) != 0)
            break;
        subjects[n] = (bk_subject_t){.name = path + len + (len > 0),
                                     .entry = &finals[n].entry,
                                     .fresh = finals[n].place->fresh};
    }
    (void)bk_at_open(&restore->road, above, false, &at);
    bk_rc_t rc = bk_place_describe(restore, &at, subjects, n, err);
    for (size_t i = 0; i < n && rc == BK_OK; i++)
        rc = settle_dir(restore, &finals[i], subjects[i].rc, &subjects[i].why, err);
    free(subjects);
    *taken = n;
    return rc;
}

bk_rc_t bk_finish_dirs(bk_restore_t *restore, const bk_final_t *finals, size_t count, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0, taken; i < count && rc == BK_OK; i += taken) {
        taken = 1;
        if (restore->road.helper != NULL && !finals[i].place->other)
            rc = finish_helped(restore, finals + i, count - i, &taken, err);
        else
            rc = finish_own(restore, &finals[i], err);
    }
    return rc;
}
