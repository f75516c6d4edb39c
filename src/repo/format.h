/*
 * repo/format.h: constants of what is written on a storage.  docs/repository-format.md is the
 * specification; every number here is stored and never changes its meaning.
 */
#ifndef BK_REPO_FORMAT_H
#define BK_REPO_FORMAT_H

#include <stdint.h>

#define BK_FORMAT_VERSION 1

/* Chunk types: the first byte under the chunk id, so that equal bytes of two types are two chunks.
 */
typedef enum {
    BK_TYPE_FILE = 1,  /* part of a file, or a whole small one */
    BK_TYPE_BLOCK = 2, /* block of a database */
    BK_TYPE_TREE = 3,  /* node of a directory */
    BK_TYPE_MAP = 4,   /* node of a list of chunks */
    BK_TYPE_BLOB = 5   /* extended attributes, extents */
} bk_type_t;

/* TREE, MAP and BLOB live in meta/ packs, the others in packs/. */
#define BK_TYPE_IS_META(type) ((type) >= BK_TYPE_TREE)

#define BK_CHUNK_MIN   (512u << 10)
#define BK_CHUNK_AVG   (2u << 20)
#define BK_CHUNK_MAX   (8u << 20)
#define BK_INLINE_MAX  1024u       /* files up to this lie in their tree entry */
#define BK_BLOCK_SIZE  (64u << 10) /* of databases; twice from BK_BLOCK_LARGE bytes up */
#define BK_BLOCK_LARGE (8ull << 30)
#define BK_PACK_TARGET (16u << 20) /* of a small repository; see bk_pack_target */
#define BK_META_TARGET (4u << 20)
#define BK_PACK_MAX    (80u << 20) /* readers refuse longer packs */
#define BK_MAP_FANOUT  1024u

#endif
