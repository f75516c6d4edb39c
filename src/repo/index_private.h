/*
 * repo/index_private.h: what the files of the index know of each other.
 *
 * index_load.c brings the segments in line with the storage, index_rebuild.c makes them up from
 * packs, index.c searches.  Look-ups see a view: an immutable set of segments.  A refresh works on
 * the tables below without disturbing them, then exchanges the view.
 */
#ifndef BK_REPO_INDEX_PRIVATE_H
#define BK_REPO_INDEX_PRIVATE_H

#include <pthread.h>

#include "repo/segment.h"

/* A pack as a segment names it. */
typedef struct {
    bk_id_t name;
    uint32_t size;
    bk_kind_t kind;
} bk_named_pack_t;

typedef struct {
    atomic_uint refs;
    bk_segment_t **segments; /* a reference of each */
    size_t count;
    pthread_mutex_t lock;   /* guards what follows, computed when first asked for */
    bk_named_pack_t *packs; /* each once, sorted */
    size_t pack_count;
    bool packs_known;
} bk_view_t;

/* A segment on the storage or in the spool. */
typedef struct {
    char *name;
    bk_segment_t *segment; /* NULL: it is in a merge, damaged, or not loaded yet */
    bool merged;           /* one of index->merges has its entries */
    bool damaged;          /* not fetched again as long as it is there */
    bool gone;             /* removed between listing and reading */
    bool hidden;           /* replaced by another segment that is here and sound */
} bk_known_t;

struct bk_index_s {
    bk_objects_t objects;
    const bk_keyring_t *ring;
    uint8_t uuid[BK_UUID_SIZE];
    char *cache_dir, *merge_dir;

    pthread_rwlock_t lock; /* guards view; never held during I/O */
    bk_view_t *view;

    pthread_mutex_t loading; /* guards what follows; one refresh at a time */
    bk_known_t *known;       /* sorted by name, so oldest first */
    size_t known_count;
    bk_segment_t **merges;
    size_t merge_count;
    bk_segment_t **made; /* in memory, for packs whose own segments are damaged */
    size_t made_count;
    bool looked; /* for merges of earlier processes */
};

/* Names of objects. */
typedef struct {
    char **names;
    size_t count, cap;
} bk_index_names_t;

/* index_load.c: bk_storage_list's function for a bk_index_names_t. */
bk_rc_t bk_index_names_add(void *names, const bk_storage_item_t *item, bk_err_t *err);
void bk_index_names_free(bk_index_names_t *names);

/* index.c: the view's segments are taken from the tables; loading is held. */
bk_rc_t bk_index_publish(bk_index_t *index, bk_err_t *err);

/* index_load.c: loading is held. */
bk_rc_t bk_index_load(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err);
bk_known_t *bk_index_known(const bk_index_t *index, const char *name, size_t len);
void bk_index_unload(bk_index_t *index);
/* Is there a damaged segment that no other one replaces? */
bool bk_index_is_damaged(const bk_index_t *index);

/* index_rebuild.c: loading is held. */
bk_rc_t bk_index_make_up(bk_index_t *index, bk_ctl_t *ctl, bk_err_t *err);

#endif
