/*
 * repo/entry.c: one directory entry as bytes (tree.h has the grammar).  Decoding trusts nothing;
 * what the builder writes passes the same check, so that no backup is written that could not be
 * read.
 */
#include <stdlib.h>
#include <string.h>

#include "repo/map.h"
#include "repo/tree.h"

#define KNOWN_FLAGS                                                                                \
    (BK_ENTRY_INLINE | BK_ENTRY_CHUNKS | BK_ENTRY_MAP | BK_ENTRY_EXTENTS | BK_ENTRY_ATTRS |        \
     BK_ENTRY_DAMAGED)
#define CONTENT_FLAGS (BK_ENTRY_INLINE | BK_ENTRY_CHUNKS | BK_ENTRY_MAP)
#define REF_BYTES     36u /* id 32 | raw 4 */

static void encode_file(const bk_entry_t *e, bk_buf_t *out)
{
    bk_buf_add(out, e->sha256.b, BK_ID_SIZE);
    if (e->flags & BK_ENTRY_INLINE) {
        bk_buf_u16(out, e->content_len);
        bk_buf_add(out, e->content, e->content_len);
    }
    if (e->flags & BK_ENTRY_CHUNKS) {
        bk_buf_u32(out, e->chunk_count);
        for (uint32_t i = 0; i < e->chunk_count; i++) {
            bk_buf_add(out, e->chunks[i].id.b, BK_ID_SIZE);
            bk_buf_u32(out, e->chunks[i].raw);
        }
    }
    if (e->flags & BK_ENTRY_MAP) {
        bk_buf_add(out, e->map.b, BK_ID_SIZE);
        bk_buf_u64(out, e->map_count);
        bk_buf_u8(out, e->map_depth);
    }
    if (e->flags & BK_ENTRY_EXTENTS) {
        bk_buf_add(out, e->extents.b, BK_ID_SIZE);
        bk_buf_u64(out, e->data_bytes);
    }
}

void bk_entry_encode(const bk_entry_t *e, bk_buf_t *out)
{
    bk_buf_u16(out, e->name_len);
    bk_buf_add(out, e->name, e->name_len);
    bk_buf_u8(out, e->type);
    bk_buf_u16(out, e->flags);
    bk_buf_u32(out, e->mode);
    bk_buf_u32(out, e->uid);
    bk_buf_u32(out, e->gid);
    bk_buf_u8(out, e->user_len);
    bk_buf_add(out, e->user, e->user_len);
    bk_buf_u8(out, e->group_len);
    bk_buf_add(out, e->group, e->group_len);
    bk_buf_i64(out, e->mtime);
    bk_buf_i64(out, e->ctime);
    bk_buf_u64(out, e->size);
    bk_buf_u64(out, e->device);
    bk_buf_u64(out, e->inode);
    bk_buf_u32(out, e->links);
    if (e->type == BK_ENTRY_DIR) {
        bk_buf_add(out, e->child.b, BK_ID_SIZE);
        bk_buf_u64(out, e->children);
    } else if (e->type == BK_ENTRY_LINK) {
        bk_buf_u16(out, e->target_len);
        bk_buf_add(out, e->target, e->target_len);
    } else if (e->type == BK_ENTRY_FILE) {
        encode_file(e, out);
    }
    if (e->flags & BK_ENTRY_ATTRS)
        bk_buf_add(out, e->attrs.b, BK_ID_SIZE);
}

bool bk_entry_name_valid(const uint8_t *name, size_t len)
{
    if (len == 0 || len > BK_NAME_MAX || memchr(name, '/', len) != NULL ||
        memchr(name, '\0', len) != NULL)
        return false;
    return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

/* The content of a file has exactly as many bytes as its size promises. */
static bk_rc_t check_content(const bk_entry_t *e, bk_err_t *err)
{
    uint64_t bytes = e->flags & BK_ENTRY_EXTENTS ? e->data_bytes : e->size, sum = 0;
    unsigned form = e->flags & CONTENT_FLAGS;
    if ((e->flags & BK_ENTRY_EXTENTS) && e->data_bytes > e->size)
        return bk_err_set(err, BK_CORRUPT, "a sparse file has more data than bytes");
    switch (form) {
    case 0:
        break;
    case BK_ENTRY_INLINE:
        if (e->content_len > BK_INLINE_MAX)
            return bk_err_set(err, BK_CORRUPT, "a directory entry holds too many bytes inline");
        sum = e->content_len;
        break;
    case BK_ENTRY_CHUNKS:
        if (e->chunk_count > BK_MAP_FANOUT)
            return bk_err_set(err, BK_CORRUPT,
                              "a directory entry has an impossible list of chunks");
        for (uint32_t i = 0; i < e->chunk_count; i++) {
            if (e->chunks[i].raw == 0 || e->chunks[i].raw > BK_CHUNK_MAX)
                return bk_err_set(err, BK_CORRUPT, "a directory entry names an impossible chunk");
            sum += e->chunks[i].raw;
        }
        break;
    case BK_ENTRY_MAP: {
        bk_map_t map = {.root = e->map, .count = e->map_count, .depth = e->map_depth};
        if (!bk_map_valid(&map) || map.count == 0 || map.count > bytes)
            return bk_err_set(err, BK_CORRUPT, "a directory entry has an impossible map of chunks");
        return BK_OK; /* the map's own items tell their sizes */
    }
    default:
        return bk_err_set(err, BK_CORRUPT, "a directory entry has no single content");
    }
    if (sum != bytes)
        return bk_err_set(err, BK_CORRUPT,
                          "the content of a directory entry has another length than the file");
    return BK_OK;
}

bk_rc_t bk_entry_check(const bk_entry_t *e, bk_err_t *err)
{
    if (!bk_entry_name_valid(e->name, e->name_len))
        return bk_err_set(err, BK_CORRUPT, "a directory entry has an impossible name");
    if ((e->flags & ~KNOWN_FLAGS) != 0 || (e->mode & ~07777u) != 0)
        return bk_err_set(err, BK_CORRUPT, "a directory entry has impossible flags");
    if (e->type == BK_ENTRY_FILE)
        return check_content(e, err);
    if (e->type != BK_ENTRY_DIR && e->type != BK_ENTRY_LINK && e->type != BK_ENTRY_FIFO)
        return bk_err_set(err, BK_CORRUPT, "a directory entry has an unknown type");
    if ((e->flags & (CONTENT_FLAGS | BK_ENTRY_EXTENTS)) != 0 || e->size != 0)
        return bk_err_set(err, BK_CORRUPT, "a directory entry has content, but is not a file");
    if (e->type == BK_ENTRY_LINK && (e->target_len == 0 || e->target_len > BK_LINK_MAX ||
                                     memchr(e->target, '\0', e->target_len) != NULL))
        return bk_err_set(err, BK_CORRUPT, "a symbolic link has an impossible target");
    return BK_OK;
}

static void take_id(bk_cur_t *cur, bk_id_t *id)
{
    const uint8_t *bytes = bk_cur_bytes(cur, BK_ID_SIZE);
    if (bytes != NULL)
        memcpy(id->b, bytes, BK_ID_SIZE);
}

static bk_rc_t take_chunks(bk_cur_t *cur, bk_chunk_ref_t **scratch, size_t *cap, bk_entry_t *e,
                           bk_err_t *err)
{
    e->chunk_count = bk_cur_u32(cur);
    if (e->chunk_count > BK_MAP_FANOUT || bk_cur_left(cur) / REF_BYTES < e->chunk_count) {
        e->chunk_count = 0;
        return bk_err_set(err, BK_CORRUPT, "a directory entry has an impossible list of chunks");
    }
    if (e->chunk_count > *cap) {
        bk_chunk_ref_t *more = realloc(*scratch, e->chunk_count * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "read a directory: out of memory");
        *scratch = more;
        *cap = e->chunk_count;
    }
    for (uint32_t i = 0; i < e->chunk_count; i++) {
        take_id(cur, &(*scratch)[i].id);
        (*scratch)[i].raw = bk_cur_u32(cur);
    }
    e->chunks = *scratch;
    return BK_OK;
}

static bk_rc_t take_file(bk_cur_t *cur, bk_chunk_ref_t **scratch, size_t *cap, bk_entry_t *e,
                         bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    take_id(cur, &e->sha256);
    if (e->flags & BK_ENTRY_INLINE) {
        e->content_len = bk_cur_u16(cur);
        e->content = bk_cur_bytes(cur, e->content_len);
    }
    if (e->flags & BK_ENTRY_CHUNKS)
        rc = take_chunks(cur, scratch, cap, e, err);
    if (e->flags & BK_ENTRY_MAP) {
        take_id(cur, &e->map);
        e->map_count = bk_cur_u64(cur);
        e->map_depth = bk_cur_u8(cur);
    }
    if (e->flags & BK_ENTRY_EXTENTS) {
        take_id(cur, &e->extents);
        e->data_bytes = bk_cur_u64(cur);
    }
    return rc;
}

bk_rc_t bk_entry_decode(bk_cur_t *cur, bk_chunk_ref_t **scratch, size_t *scratch_cap, bk_entry_t *e,
                        bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    memset(e, 0, sizeof *e);
    e->name_len = bk_cur_u16(cur);
    e->name = bk_cur_bytes(cur, e->name_len);
    e->type = bk_cur_u8(cur);
    e->flags = bk_cur_u16(cur);
    e->mode = bk_cur_u32(cur);
    e->uid = bk_cur_u32(cur);
    e->gid = bk_cur_u32(cur);
    e->user_len = bk_cur_u8(cur);
    e->user = (const char *)bk_cur_bytes(cur, e->user_len);
    e->group_len = bk_cur_u8(cur);
    e->group = (const char *)bk_cur_bytes(cur, e->group_len);
    e->mtime = bk_cur_i64(cur);
    e->ctime = bk_cur_i64(cur);
    e->size = bk_cur_u64(cur);
    e->device = bk_cur_u64(cur);
    e->inode = bk_cur_u64(cur);
    e->links = bk_cur_u32(cur);
    if (e->type == BK_ENTRY_DIR) {
        take_id(cur, &e->child);
        e->children = bk_cur_u64(cur);
    } else if (e->type == BK_ENTRY_LINK) {
        e->target_len = bk_cur_u16(cur);
        e->target = bk_cur_bytes(cur, e->target_len);
    } else if (e->type == BK_ENTRY_FILE) {
        rc = take_file(cur, scratch, scratch_cap, e, err);
    }
    if (e->flags & BK_ENTRY_ATTRS)
        take_id(cur, &e->attrs);
    if (rc == BK_OK && !bk_cur_ok(cur))
        rc = bk_err_set(err, BK_CORRUPT, "a directory entry is cut off");
    return rc == BK_OK ? bk_entry_check(e, err) : rc;
}
