/*
 * repo/chunker.h: where to cut a stream.  FastCDC (Xia et al., USENIX ATC 2016), Gear hash over a
 * 256-entry table of 64-bit words, normalisation level 2.  The table is AES-256-CTR(chunker key)
 * keystream, so that cut points tell a stranger nothing.  Immutable after creation; any thread.
 */
#ifndef BK_REPO_CHUNKER_H
#define BK_REPO_CHUNKER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t gear[256];
} bk_chunker_t;

void bk_chunker_init(bk_chunker_t *chunker, const uint8_t key[32]);
/*
 * Length of the first chunk of data: at least BK_CHUNK_MIN and at most BK_CHUNK_MAX, less only when
 * len is less.  Give BK_CHUNK_MAX bytes unless the stream ends sooner; the cut then depends on the
 * data alone.
 */
size_t bk_chunker_cut(const bk_chunker_t *chunker, const uint8_t *data, size_t len);

#endif
