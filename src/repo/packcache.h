/*
 * repo/packcache.h: what reading chunks keeps between calls: keys of packs, and whole metadata
 * packs, so that walking a tree costs one read a pack.  Bounded: 512 keys, 16 MiB of packs.  Any
 * thread; no lock is held while the storage is asked.
 */
#ifndef BK_REPO_PACKCACHE_H
#define BK_REPO_PACKCACHE_H

#include "base/ctl.h"
#include "repo/index.h"

typedef struct bk_packcache_s bk_packcache_t;

bk_packcache_t *bk_packcache_new(void); /* NULL: no memory */
void bk_packcache_free(bk_packcache_t *cache);

bool bk_packcache_find_key(bk_packcache_t *cache, const bk_id_t *pack, bk_object_key_t *key);
void bk_packcache_add_key(bk_packcache_t *cache, const bk_id_t *pack, const bk_object_key_t *key);

/*
 * The stored bytes of a frame in a metadata pack, and the pack's header.  The pack is read whole
 * and kept; several threads that want it wait for the first.  BK_CORRUPT when the pack ends before
 * the frame does.
 */
bk_rc_t bk_packcache_frame(bk_packcache_t *cache, const bk_objects_t *objects,
                           const bk_location_t *where, uint8_t header[BK_OBJECT_HEADER],
                           uint8_t *frame, bk_ctl_t *ctl, bk_err_t *err);

#endif
