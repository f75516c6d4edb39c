/*
 * sqlite/hashes.h: a hash of every page of a database, and their XOR, the digest: what is known of
 * its content without having it.  8 bytes a page in memory; saved now and then with the place in
 * the write-ahead log that it belongs to.  One thread at a time.
 */
#ifndef BK_SQLITE_HASHES_H
#define BK_SQLITE_HASHES_H

#include "sqlite/txlog.h"

typedef struct {
    uint64_t *of; /* page number - 1; 0 of the lock page */
    uint64_t count, room;
    uint32_t page_size;
    uint64_t digest;
} bk_hashes_t;

/* What they are the hashes of. */
typedef struct {
    uint8_t epoch[BK_TXLOG_EPOCH];
    uint64_t txid; /* after this transaction; 0: before the first */
    bk_txlog_place_t place;
    int64_t seen;   /* ns: by then the database was so */
    int64_t looked; /* ns: what was committed until then is in it, what comes next is not */
    int64_t began;  /* ns: the epoch */
    uint64_t inode; /* of the database */
} bk_hashes_state_t;

void bk_hashes_init(bk_hashes_t *hashes, uint32_t page_size);
void bk_hashes_free(bk_hashes_t *hashes);
/* Of a page; one that does not exist: 0. */
uint64_t bk_hashes_get(const bk_hashes_t *hashes, uint64_t pgno);
/* The digest after the database has count pages, of which those that are new are zeros. */
uint64_t bk_hashes_resized(const bk_hashes_t *hashes, uint64_t count);
/* Make it so. */
bk_rc_t bk_hashes_resize(bk_hashes_t *hashes, uint64_t count, bk_err_t *err);
/* pgno is at most count. */
void bk_hashes_set(bk_hashes_t *hashes, uint64_t pgno, uint64_t hash);

/* A file, whole or not at all.  load: BK_NOT_FOUND, BK_CORRUPT. */
bk_rc_t bk_hashes_save(const bk_hashes_t *hashes, const bk_hashes_state_t *state, const char *path,
                       bk_err_t *err);
bk_rc_t bk_hashes_load(bk_hashes_t *hashes, bk_hashes_state_t *state, const char *path,
                       bk_err_t *err);

#endif
