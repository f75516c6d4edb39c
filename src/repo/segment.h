/*
 * repo/segment.h: one index segment in memory or mapped: its layout, its checks, searching it, and
 * merging many into one.  For the files of repo/index*.c alone; the format is in repo/index.h.
 *
 * A segment is immutable and counted: the index and its views share it.  Any thread may read one it
 * holds a reference of.
 */
#ifndef BK_REPO_SEGMENT_H
#define BK_REPO_SEGMENT_H

#include <stdatomic.h>

#include "repo/index.h"

#define BK_SEGMENT_MAX        (1u << 30)
#define BK_SEGMENT_MAGIC      "NGXBKIDX"
#define BK_SEGMENT_VERSION    1u
#define BK_SEGMENT_HEADER     24u
#define BK_SEGMENT_PACKS      (BK_SEGMENT_HEADER + 1024u) /* behind the fan-out */
#define BK_SEGMENT_PACK_BYTES 48u /* name 32 | size 4 | kind 2 | reserved 2 | created 8 */
#define BK_SEGMENT_ENTRY_BYTES                                                                     \
    48u /* id 32 | pack 4 | offset 4 | stored 4 | raw 3 | type, codec 1 */

typedef struct {
    atomic_uint refs;
    char *name; /* object name, or the local file name of a merge; owned */
    const uint8_t *bytes;
    size_t len;
    bool mapped; /* munmap, else free */
    uint32_t packs, entries, superseded;
} bk_segment_t;

/* Takes bytes (malloc), also when it fails.  Every bound is checked. */
bk_rc_t bk_segment_take(const char *name, uint8_t *bytes, size_t len, bk_segment_t **segment,
                        bk_err_t *err);
/*
 * Map a local file that was checked when it was written.  BK_NOT_FOUND, or BK_CORRUPT when its
 * checksum tells that it is not what was written.
 */
bk_rc_t bk_segment_map(const char *name, const char *path, bk_segment_t **segment, bk_err_t *err);
bk_segment_t *bk_segment_ref(bk_segment_t *segment);
void bk_segment_unref(bk_segment_t *segment);

/* Number of the first entry whose id is not less. */
uint32_t bk_segment_lower(const bk_segment_t *segment, const bk_id_t *id);
/* Is there such an entry, and has it this id? */
bool bk_segment_has(const bk_segment_t *segment, uint32_t number, const bk_id_t *id);
/* False when there is no such entry, or it names a pack that is not there. */
bool bk_segment_entry(const bk_segment_t *segment, uint32_t number, bk_location_t *where);
void bk_segment_pack(const bk_segment_t *segment, uint32_t number, bk_id_t *name, uint32_t *size,
                     bk_kind_t *kind);
/* Where packs and entries start; number up to their count. */
const uint8_t *bk_segment_pack_bytes(const bk_segment_t *segment, uint32_t number);
const uint8_t *bk_segment_entry_bytes(const bk_segment_t *segment, uint32_t number);
/* Cursor over segment->superseded × { length u8 | object name }. */
bk_cur_t bk_segment_superseded(const bk_segment_t *segment);

/* bk_index_encode with the names of the segments that this one replaces. */
bk_rc_t bk_segment_encode(const bk_pack_t *const *packs, size_t count, int64_t created,
                          const char *const *superseded, size_t superseded_count, bk_buf_t *out,
                          bk_err_t *err);
/* bk_index_store likewise. */
bk_rc_t bk_segment_store(const bk_keyring_t *ring, const uint8_t uuid[BK_UUID_SIZE],
                         const bk_pack_t *const *packs, size_t count, const char *const *superseded,
                         size_t superseded_count, bk_storage_t *to, char name[BK_STORAGE_NAME],
                         uint64_t *bytes, bk_ctl_t *ctl, bk_err_t *err);

/*
 * A merge is a segment in a local file that holds the entries of several, so that thousands are
 * searched as one.  Its superseded names are those of the segments in it.  Unlike a stored segment
 * it may hold an id several times, those of the first inputs first: each is another copy of the
 * chunk.
 */

/* Write the merge of two or more segments to path. */
bk_rc_t bk_segment_merge(bk_segment_t *const *inputs, size_t count, const char *path,
                         bk_err_t *err);
/*
 * Which to merge: sorts candidates by size and returns how many of the first ones.  What stays has
 * sizes that at least double, so there are few of them, and an entry is rewritten few times in its
 * life.
 */
size_t bk_segment_choose(bk_segment_t **candidates, size_t count);

#endif
