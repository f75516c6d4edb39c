/*
 * repo/doubt.h: packs that the index names and that cannot be relied on.
 *
 * Whoever meets such a pack (a reader, a verification, the end of a backup) notes it beside the
 * cached index.  The next session takes the chunks in it for absent: what the source still has is
 * stored again, in new packs, where readers of old and new backups find it.  Nothing is removed.
 *
 *   absent-packs   gone, or of another size: looked for again whenever a session begins
 *   bad-packs      there, but damaged: until a verification of level 2 finds them sound
 *
 * The notes outlive the process but are only a help: without them (another machine, a new cache)
 * readers try every copy of a chunk all the same, and the next verification notes again.
 *
 * Threads: any.  Several processes may share the files: each note is one append.
 */
#ifndef BK_REPO_DOUBT_H
#define BK_REPO_DOUBT_H

#include "repo/packset.h"

typedef enum { BK_DOUBT_ABSENT, BK_DOUBT_BAD, BK_DOUBTS } bk_doubt_kind_t;

typedef struct bk_doubt_s bk_doubt_t;

bk_doubt_t *bk_doubt_new(const char *cache_dir); /* NULL: no memory */
void bk_doubt_free(bk_doubt_t *doubt);

/* Note a pack, once.  A note that cannot be written holds for this process. */
void bk_doubt_add(bk_doubt_t *doubt, bk_doubt_kind_t why, const bk_id_t *pack, bk_kind_t kind);
/* What a failure to read from a pack says of it; a storage that does not answer says nothing. */
void bk_doubt_add_failure(bk_doubt_t *doubt, bk_rc_t rc, const bk_id_t *pack, bk_kind_t kind);
/*
 * Add to set what is to be taken for absent now; *since is when the last note was made (ns; 0:
 * there is none).
 */
bk_rc_t bk_doubt_load(bk_repo_t *repo, bk_packset_t *set, int64_t *since, bk_ctl_t *ctl,
                      bk_err_t *err);
/* Every frame of every pack was read: these were not found sound, all others were. */
void bk_doubt_settle(bk_doubt_t *doubt, const bk_packset_t *bad);

#endif
