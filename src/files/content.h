/*
 * files/content.h: the content of one open file into the repository.
 *
 *   up to 1 KiB     inline in the entry
 *   up to 512 KiB   one chunk
 *   larger          cut by content; past 1 024 chunks listed in a map
 * Holes are found with SEEK_DATA and neither read nor stored; the SHA-256 is of the logical content
 * all the same.
 *
 * A reader belongs to one thread at a time and is reused from file to file.
 */
#ifndef BK_FILES_CONTENT_H
#define BK_FILES_CONTENT_H

#include <sys/stat.h>

#include "base/team.h"
#include "repo/map.h"
#include "repo/session.h"
#include "repo/tree.h"

typedef struct bk_reader_s bk_reader_t;

bk_reader_t *bk_reader_new(bk_session_t *session, bk_ctl_t *ctl); /* NULL: no memory */
void bk_reader_free(bk_reader_t *reader);

typedef struct {
    bk_entry_t *entry; /* gets flags, size, sha256 and what the flags say */
    void *owned;       /* memory that entry points into; the caller frees it with the entry */
    uint64_t bytes_read;
    int sys; /* errno when the source could not be read; the result is then BK_OK */
} bk_content_t;

/*
 * Read fd, which has st, from its start.  A file that is shorter than st says is kept as long as it
 * was.  team: not NULL lets other lanes store the chunks of this one file; only lane 0 may.
 * Fails when the repository fails or ctl says stop.
 */
bk_rc_t bk_content_read(bk_reader_t *reader, int fd, const struct stat *st, bk_team_t *team,
                        bk_content_t *content, bk_err_t *err);

/* SHA-256 of what fd holds, st.st_size bytes, holes included: for comparing.  0 or an errno. */
bk_rc_t bk_content_hash(bk_reader_t *reader, int fd, const struct stat *st, bk_id_t *sha256,
                        int *sys, bk_err_t *err);

#endif
