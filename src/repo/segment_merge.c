/*
 * repo/segment_merge.c: many segments into one local file, in one pass over sorted inputs and with
 * one buffer, however large they are.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/publish.h"
#include "repo/segment.h"

#define BUFFER (1u << 20)

/* What is written goes through a buffer and the checksum. */
typedef struct {
    bk_publish_t pub;
    const char *path;
    XXH64_state_t *sum;
    uint8_t *buffer;
    size_t used;
    bk_rc_t rc;
    bk_err_t *err;
} out_t;

static void flush(out_t *out)
{
    if (out->rc == BK_OK && out->used > 0) {
        XXH64_update(out->sum, out->buffer, out->used);
        out->rc = bk_write_all(out->pub.fd, out->buffer, out->used, out->path, out->err);
    }
    out->used = 0;
}

/* Room for n <= BUFFER bytes. */
static uint8_t *room(out_t *out, size_t n)
{
    if (out->used + n > BUFFER)
        flush(out);
    out->used += n;
    return out->buffer + out->used - n;
}

static void put_u32(out_t *out, uint32_t v)
{
    bk_put_u32(room(out, 4), v);
}

/* One input's place in the merge; base: place of its first pack in the merged table. */
typedef struct {
    const bk_segment_t *segment;
    const uint8_t *entry;
    uint32_t left, base, rank;
} input_t;

static bool before(const input_t *a, const input_t *b)
{
    int order = memcmp(a->entry, b->entry, BK_ID_SIZE);
    return order != 0 ? order < 0 : a->rank < b->rank;
}

/* Restore the heap below i. */
static void sink(input_t *heap, size_t count, size_t i)
{
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= count)
            return;
        if (child + 1 < count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &heap[i]))
            return;
        input_t swap = heap[i];
        heap[i] = heap[child];
        heap[child] = swap;
        i = child;
    }
}

static void put_entries(out_t *out, input_t *heap, size_t count)
{
    for (size_t i = count / 2; i-- > 0;)
        sink(heap, count, i);
    while (count > 0 && out->rc == BK_OK) {
        input_t *first = &heap[0];
        uint8_t *entry = room(out, BK_SEGMENT_ENTRY_BYTES);
        uint32_t pack = bk_get_u32(first->entry + 32);
        if (pack >= first->segment->packs) {
            out->rc = bk_err_set(out->err, BK_CORRUPT, "merge the index cache: %s is damaged",
                                 first->segment->name);
            return;
        }
        memcpy(entry, first->entry, BK_SEGMENT_ENTRY_BYTES);
        bk_put_u32(entry + 32, first->base + pack);
        first->entry += BK_SEGMENT_ENTRY_BYTES;
        if (--first->left == 0)
            heap[0] = heap[--count];
        sink(heap, count, 0);
    }
}

static void put_packs(out_t *out, const bk_segment_t *segment)
{
    for (uint32_t i = 0; i < segment->packs; i++)
        memcpy(room(out, BK_SEGMENT_PACK_BYTES), bk_segment_pack_bytes(segment, i),
               BK_SEGMENT_PACK_BYTES);
}

/* Of a merge, the segments in it; of a stored segment, itself. */
static bool is_merge(const bk_segment_t *segment)
{
    return segment->superseded > 0;
}

static void put_name(out_t *out, const void *name, size_t len)
{
    *room(out, 1) = (uint8_t)len;
    memcpy(room(out, len), name, len);
}

static void put_names(out_t *out, const bk_segment_t *segment)
{
    if (!is_merge(segment)) {
        put_name(out, segment->name, strlen(segment->name));
        return;
    }
    bk_cur_t cur = bk_segment_superseded(segment);
    for (uint32_t i = 0; i < segment->superseded; i++) {
        uint8_t len = bk_cur_u8(&cur);
        const uint8_t *name = bk_cur_bytes(&cur, len);
        if (name != NULL)
            put_name(out, name, len);
    }
}

static void put_header(out_t *out, bk_segment_t *const *inputs, size_t count)
{
    uint32_t packs = 0, entries = 0, names = 0;
    for (size_t i = 0; i < count; i++) {
        packs += inputs[i]->packs;
        entries += inputs[i]->entries;
        names += is_merge(inputs[i]) ? inputs[i]->superseded : 1;
    }
    memcpy(room(out, 8), BK_SEGMENT_MAGIC, 8);
    put_u32(out, BK_SEGMENT_VERSION);
    put_u32(out, packs);
    put_u32(out, entries);
    put_u32(out, names);
    for (size_t byte = 0; byte < 256; byte++) {
        uint32_t sum = 0;
        for (size_t i = 0; i < count; i++)
            sum += bk_get_u32(inputs[i]->bytes + BK_SEGMENT_HEADER + 4 * byte);
        put_u32(out, sum);
    }
}

static void put_all(out_t *out, bk_segment_t *const *inputs, size_t count, input_t *heap)
{
    uint8_t sum[8];
    size_t used = 0;
    uint32_t base = 0;
    put_header(out, inputs, count);
    for (size_t i = 0; i < count; i++) {
        put_packs(out, inputs[i]);
        if (inputs[i]->entries > 0)
            heap[used++] = (input_t){.segment = inputs[i],
                                     .entry = bk_segment_entry_bytes(inputs[i], 0),
                                     .left = inputs[i]->entries,
                                     .base = base,
                                     .rank = (uint32_t)i};
        base += inputs[i]->packs;
    }
    put_entries(out, heap, used);
    for (size_t i = 0; i < count; i++)
        put_names(out, inputs[i]);
    flush(out);
    bk_put_u64(sum, XXH64_digest(out->sum));
    if (out->rc == BK_OK)
        out->rc = bk_write_all(out->pub.fd, sum, sizeof sum, out->path, out->err);
}

bk_rc_t bk_segment_merge(bk_segment_t *const *inputs, size_t count, const char *path, bk_err_t *err)
{
    out_t out = {.path = path, .err = err};
    input_t *heap = calloc(count, sizeof *heap);
    out.buffer = malloc(BUFFER);
    out.sum = XXH64_createState();
    if (heap == NULL || out.buffer == NULL || out.sum == NULL) {
        out.rc = bk_err_set(err, BK_NO_MEMORY, "merge the index cache: out of memory");
    } else {
        XXH64_reset(out.sum, 0);
        out.rc = bk_publish_open(&out.pub, AT_FDCWD, path, 0600, err);
        if (out.rc == BK_OK) {
            put_all(&out, inputs, count, heap);
            if (out.rc == BK_OK)
                out.rc = bk_publish_commit(&out.pub, false, err);
            else
                bk_publish_abort(&out.pub);
        }
    }
    XXH64_freeState(out.sum);
    free(out.buffer);
    free(heap);
    return out.rc;
}

static int by_size(const void *a, const void *b)
{
    const bk_segment_t *x = *(bk_segment_t *const *)a, *y = *(bk_segment_t *const *)b;
    if (x->entries != y->entries)
        return x->entries < y->entries ? -1 : 1;
    return strcmp(x->name, y->name);
}

size_t bk_segment_choose(bk_segment_t **candidates, size_t count)
{
    uint64_t entries = 0, bytes = 0;
    size_t chosen = 0;
    if (count > 1)
        qsort(candidates, count, sizeof *candidates, by_size);
    for (size_t i = 0; i < count; i++) {
        bytes += candidates[i]->len;
        if (bytes > BK_SEGMENT_MAX)
            break;
        if (candidates[i]->entries <= entries)
            chosen = i + 1;
        entries += candidates[i]->entries;
    }
    return chosen;
}
