/*
 * sqlite/replay.c: writes the pages of transactions into an image, and keeps its digest.  Touches
 * the one file.
 */
#include "sqlite/replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/publish.h"
#include "sqlite/source.h"

typedef struct {
    bk_replay_t *image;
    uint8_t *page; /* as it was */
} run_t;

/* A page behind the end of the file is zeros. */
static bk_rc_t hash_of(run_t *run, uint64_t pgno, uint64_t *hash, bk_err_t *err)
{
    const bk_replay_t *image = run->image;
    size_t got;
    bk_rc_t rc = bk_pread_all(image->fd, run->page, image->page_size, (pgno - 1) * image->page_size,
                              &got, image->path, err);
    *hash = 0;
    if (rc != BK_OK || pgno == bk_db_lock_page(image->page_size))
        return rc;
    memset(run->page + got, 0, image->page_size - got);
    *hash = bk_db_page_hash(pgno, run->page, image->page_size);
    return BK_OK;
}

static bk_rc_t resize(run_t *run, uint64_t page_count, bk_err_t *err)
{
    bk_replay_t *image = run->image;
    uint64_t hash, from = image->page_count, to = page_count;
    bk_rc_t rc = BK_OK;
    if (from > to) {
        from = page_count;
        to = image->page_count;
    } else if (ftruncate(image->fd, (off_t)(page_count * image->page_size)) != 0) {
        return bk_err_sys(err, errno, "resize %s", image->path);
    }
    for (uint64_t pgno = from + 1; pgno <= to && rc == BK_OK; pgno++) {
        rc = hash_of(run, pgno, &hash, err);
        image->digest ^= hash;
    }
    if (rc == BK_OK && ftruncate(image->fd, (off_t)(page_count * image->page_size)) != 0)
        rc = bk_err_sys(err, errno, "resize %s", image->path);
    image->page_count = page_count;
    return rc;
}

static bk_rc_t put_page(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    run_t *run = arg;
    bk_replay_t *image = run->image;
    uint64_t before;
    if (pgno == bk_db_lock_page(image->page_size))
        return bk_err_set(err, BK_CORRUPT, "page %u is not in the database", pgno);
    bk_rc_t rc = hash_of(run, pgno, &before, err);
    image->digest ^= before ^ bk_db_page_hash(pgno, page, image->page_size);
    return rc == BK_OK ? bk_pwrite_all(image->fd, page, image->page_size,
                                       (uint64_t)(pgno - 1) * image->page_size, image->path, err)
                       : rc;
}

bk_rc_t bk_replay(bk_replay_t *image, bk_past_t *past, bk_err_t *err)
{
    run_t run = {.image = image, .page = malloc(image->page_size)};
    bk_rc_t rc = BK_OK;
    if (run.page == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", image->path);
    if (bk_past_page_size(past) != image->page_size)
        rc = bk_err_set(err, BK_CORRUPT, "%s has another page size than its transactions",
                        image->path);
    /* What was cut off in between comes back as zeros. */
    if (rc == BK_OK && bk_past_base_end(past) < image->page_count)
        rc = resize(&run, bk_past_base_end(past), err);
    if (rc == BK_OK)
        rc = resize(&run, bk_past_page_count(past), err);
    if (rc == BK_OK)
        rc = bk_past_changes(past, put_page, &run, err);
    if (rc == BK_OK && image->digest != bk_past_digest(past))
        rc = bk_err_set(err, BK_CORRUPT, "%s: its pages are not what the transaction left behind",
                        image->path);
    free(run.page);
    return rc;
}
