/*
 * repo/tree.h: directories as Merkle trees of sorted entries.
 *
 *   node   = kind u8 (1 leaf, 2 branch) | version u8 1 | count u32 | items
 *   leaf item   = entry (below), sorted by name bytes, names unique
 *   branch item = name_len u16 | first name of the child | child id 32 | entries below u64
 *   entry  = name_len u16 | name | type u8 | flags u16 | mode u32 | uid u32 | gid u32
 *            | user u8-len text | group u8-len text | mtime i64 ns | ctime i64 ns | size u64
 *            | device u64 | inode u64 | links u32, then by type:
 *            DIR    child root id 32 | entries u64
 *            LINK   target_len u16 | target
 *            FILE   sha256 32, then by flags:
 *                   INLINE  len u16 | bytes
 *                   CHUNKS  n u32 | n x { id 32 | raw u32 }
 *                   MAP     root id 32 | chunks u64 | depth u8
 *                   EXTENTS blob id 32 | data bytes u64 (chunks hold only the data, in order)
 *            any    ATTRS   blob id 32
 *   extents blob = n u32 | n x { offset u64 | length u64 }
 *   attrs blob   = n u32 | n x { name_len u16 | name | len u32 | value }
 *
 * A node ends behind an entry whose name hashes (XXH3-64, seed 0) to a value with 7 low zero bits
 * once it has 4 KiB, or behind the entry with which it reaches 64 KiB; so one changed file among a
 * million rewrites a few nodes.  Branches are cut the same way by the first names of their
 * children.  An empty directory is a leaf without items.
 *
 * Builders and iterators belong to one thread; many may work at once.
 */
#ifndef BK_REPO_TREE_H
#define BK_REPO_TREE_H

#include "repo/repo.h"
#include "repo/session.h"

#define BK_NAME_MAX 255u  /* bytes of a name in a directory */
#define BK_LINK_MAX 4095u /* bytes of a link target */

typedef enum {
    BK_ENTRY_FILE = 1,
    BK_ENTRY_DIR = 2,
    BK_ENTRY_LINK = 3,
    BK_ENTRY_FIFO = 4
} bk_entry_type_t;

enum {
    BK_ENTRY_INLINE = 1,
    BK_ENTRY_CHUNKS = 2,
    BK_ENTRY_MAP = 4,
    BK_ENTRY_EXTENTS = 8,
    BK_ENTRY_ATTRS = 16,
    BK_ENTRY_DAMAGED = 32 /* changed while read and never stable: content is one reading of it */
};

typedef struct {
    bk_id_t id;
    uint32_t raw;
} bk_chunk_ref_t;

typedef struct {
    const uint8_t *name; /* not terminated, no '/', not empty, not "." or ".." */
    uint16_t name_len;
    uint8_t type;
    uint16_t flags;
    uint32_t mode; /* permission bits only, 07777 */
    uint32_t uid, gid;
    const char *user, *group; /* up to 255 bytes each, "" when unknown; not terminated */
    uint8_t user_len, group_len;
    int64_t mtime, ctime; /* ns */
    uint64_t size;        /* logical bytes of a file; 0 otherwise */
    uint64_t device, inode;
    uint32_t links;
    bk_id_t child; /* DIR: root node */
    uint64_t children;
    const uint8_t *target; /* LINK */
    uint16_t target_len;
    bk_id_t sha256;         /* FILE: of the whole logical content */
    const uint8_t *content; /* INLINE */
    uint16_t content_len;
    const bk_chunk_ref_t *chunks; /* CHUNKS: at most BK_MAP_FANOUT */
    uint32_t chunk_count;
    bk_id_t map; /* MAP */
    uint64_t map_count;
    uint8_t map_depth;
    bk_id_t extents; /* EXTENTS */
    uint64_t data_bytes;
    bk_id_t attrs; /* ATTRS */
} bk_entry_t;

/* Build one directory: add entries in strictly rising name order (memcmp), then finish. */
typedef struct bk_tree_builder_s bk_tree_builder_t;
bk_tree_builder_t *bk_tree_builder_new(bk_session_t *session); /* NULL: no memory */
bk_rc_t bk_tree_builder_add(bk_tree_builder_t *builder, const bk_entry_t *entry, bk_err_t *err);
/* Root node id and number of entries; an empty directory has an empty leaf.  The builder stays to
 * be freed. */
bk_rc_t bk_tree_builder_finish(bk_tree_builder_t *builder, bk_id_t *root, uint64_t *entries,
                               bk_err_t *err);
void bk_tree_builder_free(bk_tree_builder_t *builder);

/* Read one directory in name order.  The entry and what it points to are valid until the next call.
 */
typedef struct bk_tree_iter_s bk_tree_iter_t;
bk_rc_t bk_tree_iter_open(bk_repo_t *repo, const bk_id_t *root, bk_ctl_t *ctl,
                          bk_tree_iter_t **iter, bk_err_t *err);
/* *entry is NULL at the end. */
bk_rc_t bk_tree_iter_next(bk_tree_iter_t *iter, const bk_entry_t **entry, bk_err_t *err);
/* Go, forward or back, to the first entry whose name is >= name, reading only the nodes on the way.
 */
bk_rc_t bk_tree_iter_seek(bk_tree_iter_t *iter, const void *name, size_t len, bk_err_t *err);
void bk_tree_iter_close(bk_tree_iter_t *iter);

/* Not empty, not "." or "..", no '/' and no NUL, at most BK_NAME_MAX bytes. */
bool bk_entry_name_valid(const uint8_t *name, size_t len);
/* BK_CORRUPT when the entry contradicts itself; decode and the builder ask it. */
bk_rc_t bk_entry_check(const bk_entry_t *entry, bk_err_t *err);
/* One entry decoded from / encoded to bytes; decode checks every length: the fuzz target. */
void bk_entry_encode(const bk_entry_t *entry, bk_buf_t *out);
bk_rc_t bk_entry_decode(bk_cur_t *cur, bk_chunk_ref_t **scratch, size_t *scratch_cap,
                        bk_entry_t *entry, bk_err_t *err);

#endif
