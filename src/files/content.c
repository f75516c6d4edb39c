/*
 * files/content.c: reading one file, cutting it, and handing its chunks to the session.
 *
 * Cuts are sought in a window; what is left of it after a cut moves to its front, so that no more
 * of it is ever touched than a look needs: it stays in the cache, and there are as many windows as
 * lanes.  Bytes are hashed as they arrive.
 */
#include "files/content.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WINDOW        BK_CHUNK_MAX
#define STEP          (1u << 20) /* of one read */
#define FIRST_LOOK    (3u << 20) /* most cuts are found in so much */
#define ZEROS         (64u << 10)
#define SPARSE_MIN    (64u << 10) /* files and holes below are not worth an extent */
#define EXTENTS_MAX   100000u
#define REF_BLOCK     1024u
#define CHUNKS_FLYING 6u /* copies of chunks waiting for other lanes: at most 8 MiB each */

typedef struct {
    uint64_t offset, length;
} extent_t;

struct bk_reader_s {
    bk_session_t *session;
    bk_ctl_t *ctl;
    uint8_t *window; /* WINDOW bytes of address space */
    bk_sha256_t *sha;

    int fd;
    uint64_t size;     /* logical bytes expected */
    extent_t *extents; /* what is read; heap unless it is &whole */
    size_t extent_count, extent_at;
    extent_t whole;
    uint64_t offset; /* next byte to read */
    uint64_t hashed; /* logical bytes hashed so far */
    uint64_t data;   /* bytes read */
    size_t len;      /* bytes in the window */
    bool end;
    int sys;

    bk_chunk_ref_t **blocks; /* of REF_BLOCK; their addresses stay while other lanes fill them */
    size_t block_cap;
    uint64_t ref_count;
};

static const uint8_t zeros[ZEROS];

bk_reader_t *bk_reader_new(bk_session_t *session, bk_ctl_t *ctl)
{
    bk_reader_t *reader = calloc(1, sizeof *reader);
    if (reader == NULL)
        return NULL;
    reader->session = session;
    reader->ctl = ctl;
    void *window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    reader->window = window != MAP_FAILED ? window : NULL;
    reader->sha = bk_sha256_new();
    if (reader->window == NULL || reader->sha == NULL) {
        bk_reader_free(reader);
        return NULL;
    }
    return reader;
}

static void forget_refs(bk_reader_t *reader)
{
    for (uint64_t i = 0; i * REF_BLOCK < reader->ref_count; i++)
        free(reader->blocks[i]);
    reader->ref_count = 0;
}

void bk_reader_free(bk_reader_t *reader)
{
    if (reader == NULL)
        return;
    forget_refs(reader);
    free(reader->blocks);
    if (reader->window != NULL)
        munmap(reader->window, WINDOW);
    bk_sha256_free(reader->sha);
    free(reader);
}

/* --- holes --- */

/* Join extents over the smallest holes until there are few enough. */
static size_t join_extents(extent_t *extents, size_t count, uint64_t hole)
{
    size_t kept = 0;
    for (size_t i = 1; i < count; i++) {
        extent_t *last = &extents[kept];
        if (extents[i].offset - (last->offset + last->length) < hole)
            last->length = extents[i].offset + extents[i].length - last->offset;
        else
            extents[++kept] = extents[i];
    }
    return count > 0 ? kept + 1 : 0;
}

/* Extents of data, or one that is the whole file.  0 or an errno. */
static int find_extents(bk_reader_t *reader, const struct stat *st)
{
    size_t cap = 0, count = 0;
    extent_t *extents = NULL;
    uint64_t size = (uint64_t)st->st_size, at = 0, hole = SPARSE_MIN;
    reader->whole = (extent_t){0, size};
    reader->extents = &reader->whole;
    reader->extent_count = 1;
    if (size < SPARSE_MIN || (uint64_t)st->st_blocks * 512 >= size)
        return 0;
    while (at < size) {
        off_t data = lseek(reader->fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t next = data < 0 ? -1 : lseek(reader->fd, data, SEEK_HOLE);
        if (next < 0) {
            free(extents);
            return errno == EINVAL ? 0 : errno; /* a file system without holes */
        }
        if ((uint64_t)data >= size || next <= data)
            break;
        if (count == cap && count >= 2 * EXTENTS_MAX) {
            for (; count > EXTENTS_MAX; hole *= 2)
                count = join_extents(extents, count, hole);
        } else if (count == cap) {
            cap = cap > 0 ? 2 * cap : 16;
            extent_t *more = realloc(extents, cap * sizeof *more);
            if (more == NULL) {
                free(extents);
                return ENOMEM;
            }
            extents = more;
        }
        at = (uint64_t)next < size ? (uint64_t)next : size;
        extents[count++] = (extent_t){(uint64_t)data, at - (uint64_t)data};
    }
    for (count = join_extents(extents, count, hole); count > EXTENTS_MAX; hole *= 2)
        count = join_extents(extents, count, hole);
    if (count == 1 && extents[0].offset == 0 && extents[0].length == size) {
        free(extents);
        return 0;
    }
    if (extents == NULL && (extents = calloc(1, sizeof *extents)) == NULL)
        return ENOMEM;
    reader->extents = extents;
    reader->extent_count = count;
    return 0;
}

static void forget_extents(bk_reader_t *reader)
{
    if (reader->extents != &reader->whole)
        free(reader->extents);
    reader->extents = &reader->whole;
}

static bool is_sparse(const bk_reader_t *reader)
{
    return reader->extents != &reader->whole;
}

/* The hole up to offset counts as zeros. */
static bk_rc_t hash_zeros(bk_reader_t *reader, uint64_t offset, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (unsigned i = 0; reader->hashed < offset && rc == BK_OK; i++) {
        uint64_t left = offset - reader->hashed;
        size_t n = left < ZEROS ? (size_t)left : ZEROS;
        bk_sha256_add(reader->sha, zeros, n);
        reader->hashed += n;
        if (i % 256 == 255)
            rc = bk_ctl_check(reader->ctl, err);
    }
    return rc;
}

/* --- reading --- */

static bk_rc_t start(bk_reader_t *reader, int fd, const struct stat *st, bk_err_t *err)
{
    reader->fd = fd;
    reader->size = (uint64_t)st->st_size;
    reader->extent_at = 0;
    reader->hashed = reader->data = 0;
    reader->len = 0;
    reader->end = false;
    reader->sys = find_extents(reader, st);
    reader->end = reader->sys != 0 || reader->extent_count == 0;
    if (!reader->end)
        reader->offset = reader->extents[0].offset;
    if (reader->sys == ENOMEM)
        return bk_err_set(err, BK_NO_MEMORY, "read a file: out of memory");
    return BK_OK;
}

/* The end came early: the file is as long as what was there. */
static void cut_short(bk_reader_t *reader)
{
    reader->size = reader->hashed;
    if (is_sparse(reader)) {
        extent_t *extent = &reader->extents[reader->extent_at];
        extent->length = reader->offset - extent->offset;
        reader->extent_count = reader->extent_at + (extent->length > 0);
    }
    reader->end = true;
}

/* Bring more data into the window until it holds want bytes or the file ends. */
static bk_rc_t fill_window(bk_reader_t *reader, size_t want, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    while (reader->len < want && !reader->end && rc == BK_OK) {
        const extent_t *extent = &reader->extents[reader->extent_at];
        uint64_t left = extent->offset + extent->length - reader->offset;
        size_t room = want - reader->len < STEP ? want - reader->len : STEP;
        uint8_t *to = reader->window + reader->len;
        if ((rc = bk_ctl_check(reader->ctl, err)) != BK_OK ||
            (rc = hash_zeros(reader, reader->offset, err)) != BK_OK)
            break;
        ssize_t n = pread(reader->fd, to, left < room ? (size_t)left : room, (off_t)reader->offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            reader->sys = errno;
            reader->end = true;
            break;
        }
        if (n == 0 && left > 0) {
            cut_short(reader);
            break;
        }
        bk_sha256_add(reader->sha, to, (size_t)n);
        reader->len += (size_t)n;
        reader->offset += (uint64_t)n;
        reader->hashed += (uint64_t)n;
        reader->data += (uint64_t)n;
        if (reader->ctl != NULL)
            atomic_fetch_add(&reader->ctl->bytes_read, (uint64_t)n);
        if (reader->offset == extent->offset + extent->length) {
            if (++reader->extent_at == reader->extent_count)
                reader->end = true;
            else
                reader->offset = reader->extents[reader->extent_at].offset;
        }
    }
    return rc;
}

/* --- chunks --- */

static bk_rc_t new_ref(bk_reader_t *reader, bk_chunk_ref_t **ref, bk_err_t *err)
{
    size_t block = (size_t)(reader->ref_count / REF_BLOCK);
    if (reader->ref_count % REF_BLOCK == 0) {
        if (block == reader->block_cap) {
            size_t cap = reader->block_cap > 0 ? 2 * reader->block_cap : 8;
            bk_chunk_ref_t **more = realloc(reader->blocks, cap * sizeof *more);
            if (more == NULL)
                return bk_err_set(err, BK_NO_MEMORY, "cut a file: out of memory");
            reader->blocks = more;
            reader->block_cap = cap;
        }
        reader->blocks[block] = calloc(REF_BLOCK, sizeof **reader->blocks);
        if (reader->blocks[block] == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "cut a file: out of memory");
    }
    *ref = &reader->blocks[block][reader->ref_count++ % REF_BLOCK];
    return BK_OK;
}

/* A chunk on its way to another lane. */
typedef struct {
    bk_session_t *session;
    bk_chunk_ref_t *ref;
    uint8_t data[];
} flying_t;

static bk_rc_t put_flying(void *arg, bk_err_t *err)
{
    flying_t *chunk = arg;
    bk_rc_t rc = bk_session_put(chunk->session, BK_TYPE_FILE, true, chunk->data, chunk->ref->raw,
                                &chunk->ref->id, err);
    free(chunk);
    return rc;
}

static bk_rc_t send_chunk(bk_reader_t *reader, bk_team_t *team, bk_group_t *group,
                          const uint8_t *data, bk_chunk_ref_t *ref, bk_err_t *err)
{
    while (atomic_load(&group->pending) >= CHUNKS_FLYING && !bk_group_failed(group))
        if (!bk_team_help(team))
            bk_team_wait(team, group, NULL);
    if (bk_group_failed(group))
        return bk_team_wait(team, group, err);
    flying_t *chunk = malloc(sizeof *chunk + ref->raw);
    if (chunk == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "store a chunk: out of memory");
    chunk->session = reader->session;
    chunk->ref = ref;
    memcpy(chunk->data, data, ref->raw);
    bk_team_submit(team, group, put_flying, chunk, ref->raw);
    return BK_OK;
}

/* Bytes of the next chunk, at the front of the window; 0 at the end. */
static bk_rc_t next_cut(bk_reader_t *reader, const bk_chunker_t *chunker, size_t *cut,
                        bk_err_t *err)
{
    bk_rc_t rc = fill_window(reader, FIRST_LOOK, err);
    if (rc != BK_OK)
        return rc;
    *cut = bk_chunker_cut(chunker, reader->window, reader->len);
    /* A cut at the very end of what is there may be no cut at all. */
    if (*cut == reader->len && !reader->end && reader->len < WINDOW) {
        if ((rc = fill_window(reader, WINDOW, err)) != BK_OK)
            return rc;
        *cut = bk_chunker_cut(chunker, reader->window, reader->len);
    }
    return BK_OK;
}

static bk_rc_t store_chunks(bk_reader_t *reader, bk_team_t *team, bk_err_t *err)
{
    const bk_chunker_t *chunker = bk_repo_chunker(bk_session_repo(reader->session));
    bk_group_t group;
    bk_rc_t rc = BK_OK;
    size_t cut = 0;
    bk_group_init(&group);
    while (rc == BK_OK) {
        bk_chunk_ref_t *ref = NULL;
        rc = next_cut(reader, chunker, &cut, err);
        if (rc != BK_OK || cut == 0 || reader->sys != 0)
            break;
        if ((rc = new_ref(reader, &ref, err)) != BK_OK)
            break;
        ref->raw = (uint32_t)cut;
        if (team != NULL)
            rc = send_chunk(reader, team, &group, reader->window, ref, err);
        else
            rc = bk_session_put(reader->session, BK_TYPE_FILE, true, reader->window, cut, &ref->id,
                                err);
        reader->len -= cut;
        memmove(reader->window, reader->window + cut, reader->len);
    }
    bk_err_t failure = {0};
    bk_rc_t done = bk_team_wait(team, &group, &failure);
    if (rc == BK_OK && done != BK_OK) {
        if (err != NULL)
            *err = failure;
        rc = done;
    }
    return rc;
}

/* --- what the entry says --- */

static bk_rc_t list_in_map(bk_reader_t *reader, bk_entry_t *entry, bk_err_t *err)
{
    bk_map_t map;
    bk_map_builder_t *builder = bk_map_builder_new(reader->session);
    if (builder == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "list the chunks of a file: out of memory");
    bk_rc_t rc = BK_OK;
    for (uint64_t i = 0; i < reader->ref_count && rc == BK_OK; i++)
        rc = bk_map_builder_add(builder, &reader->blocks[i / REF_BLOCK][i % REF_BLOCK], err);
    if (rc == BK_OK)
        rc = bk_map_builder_finish(builder, &map, err);
    if (rc == BK_OK) {
        entry->map = map.root;
        entry->map_count = map.count;
        entry->map_depth = map.depth;
        entry->flags |= BK_ENTRY_MAP;
    }
    bk_map_builder_free(builder);
    return rc;
}

static bk_rc_t list_chunks(bk_reader_t *reader, bk_content_t *content, bk_err_t *err)
{
    bk_entry_t *entry = content->entry;
    if (reader->ref_count == 0)
        return BK_OK;
    if (reader->ref_count > BK_MAP_FANOUT)
        return list_in_map(reader, entry, err);
    size_t bytes = (size_t)reader->ref_count * sizeof(bk_chunk_ref_t);
    bk_chunk_ref_t *refs = malloc(bytes);
    if (refs == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "list the chunks of a file: out of memory");
    memcpy(refs, reader->blocks[0], bytes);
    content->owned = refs;
    entry->chunks = refs;
    entry->chunk_count = (uint32_t)reader->ref_count;
    entry->flags |= BK_ENTRY_CHUNKS;
    return BK_OK;
}

static bk_rc_t list_extents(bk_reader_t *reader, bk_entry_t *entry, bk_err_t *err)
{
    bk_buf_t blob;
    bk_buf_init(&blob, BK_CHUNK_MAX);
    bk_buf_u32(&blob, (uint32_t)reader->extent_count);
    for (size_t i = 0; i < reader->extent_count; i++) {
        bk_buf_u64(&blob, reader->extents[i].offset);
        bk_buf_u64(&blob, reader->extents[i].length);
    }
    bk_rc_t rc = bk_buf_ok(&blob) ? bk_session_put(reader->session, BK_TYPE_BLOB, false, blob.data,
                                                   blob.len, &entry->extents, err)
                                  : bk_err_set(err, BK_NO_MEMORY, "list extents: out of memory");
    entry->data_bytes = reader->data;
    entry->flags |= BK_ENTRY_EXTENTS;
    bk_buf_free(&blob);
    return rc;
}

/* Small files: one read, at most one chunk. */
static bk_rc_t read_small(bk_reader_t *reader, bk_content_t *content, bk_err_t *err)
{
    bk_entry_t *entry = content->entry;
    bk_rc_t rc = fill_window(reader, (size_t)reader->size, err);
    if (rc != BK_OK || reader->sys != 0 || reader->len == 0)
        return rc;
    size_t len = reader->len;
    bool in_entry = len <= BK_INLINE_MAX;
    content->owned = malloc(in_entry ? len : sizeof(bk_chunk_ref_t));
    if (content->owned == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read a file: out of memory");
    if (in_entry) {
        memcpy(content->owned, reader->window, len);
        entry->content = content->owned;
        entry->content_len = (uint16_t)len;
        entry->flags |= BK_ENTRY_INLINE;
        return BK_OK;
    }
    bk_chunk_ref_t *ref = content->owned;
    ref->raw = (uint32_t)len;
    entry->chunks = ref;
    entry->chunk_count = 1;
    entry->flags |= BK_ENTRY_CHUNKS;
    return bk_session_put(reader->session, BK_TYPE_FILE, true, reader->window, len, &ref->id, err);
}

bk_rc_t bk_content_read(bk_reader_t *reader, int fd, const struct stat *st, bk_team_t *team,
                        bk_content_t *content, bk_err_t *err)
{
    bk_entry_t *entry = content->entry;
    content->owned = NULL;
    content->bytes_read = 0;
    entry->flags &= (uint16_t) ~(BK_ENTRY_INLINE | BK_ENTRY_CHUNKS | BK_ENTRY_MAP |
                                 BK_ENTRY_EXTENTS | BK_ENTRY_DAMAGED);
    entry->chunks = NULL;
    entry->chunk_count = 0;
    bk_rc_t rc = start(reader, fd, st, err);
    if (rc == BK_OK && reader->size <= BK_CHUNK_MIN && !is_sparse(reader)) {
        rc = read_small(reader, content, err);
    } else if (rc == BK_OK) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        rc = store_chunks(reader, team, err);
        if (rc == BK_OK && reader->sys == 0)
            rc = hash_zeros(reader, reader->size, err);
        if (rc == BK_OK && reader->sys == 0)
            rc = list_chunks(reader, content, err);
        if (rc == BK_OK && reader->sys == 0 && is_sparse(reader))
            rc = list_extents(reader, entry, err);
    }
    bk_sha256_end(reader->sha, &entry->sha256);
    entry->size = reader->size;
    content->bytes_read = reader->data;
    content->sys = reader->sys;
    if (rc != BK_OK || reader->sys != 0) {
        free(content->owned);
        content->owned = NULL;
    }
    forget_refs(reader);
    forget_extents(reader);
    return rc;
}

bk_rc_t bk_content_hash(bk_reader_t *reader, int fd, const struct stat *st, bk_id_t *sha256,
                        int *sys, bk_err_t *err)
{
    bk_rc_t rc = start(reader, fd, st, err);
    while (rc == BK_OK && !reader->end) {
        rc = fill_window(reader, STEP, err);
        reader->len = 0;
    }
    if (rc == BK_OK && reader->sys == 0)
        rc = hash_zeros(reader, reader->size, err);
    bk_sha256_end(reader->sha, sha256);
    *sys = reader->sys;
    forget_extents(reader);
    return rc;
}
