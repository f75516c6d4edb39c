/*
 * t/fuzz/map.c: lists of chunks of arbitrary nodes.  Input: count u64 | depth u8 | first u64 | nodes (u16 length, bytes); a
 * node's id holds its place in that list.
 */
#include "fuzz.h"

#define bk_repo_get    fuzz_get
#define bk_session_put fuzz_put
#include "../../src/repo/map.c"

enum { NODES = 256, WANTED = 3000 };

static struct {
    const uint8_t *bytes;
    size_t len;
} nodes[NODES];
static size_t node_count, reads;

bk_rc_t fuzz_get(bk_repo_t *repo, const bk_id_t *id, bk_buf_t *out, bk_ctl_t *ctl, bk_err_t *err)
{
    (void)repo;
    (void)ctl;
    reads++;
    bk_buf_reset(out);
    /* Reads are limited: nothing but the ids of real nodes keeps a list from naming one node a thousand times. */
    if (id->b[0] >= node_count || reads > 2000)
        return bk_err_set(err, BK_CORRUPT, "no such node");
    bk_buf_add(out, nodes[id->b[0]].bytes, nodes[id->b[0]].len);
    return bk_buf_ok(out) ? BK_OK : bk_err_set(err, BK_CORRUPT, "too long");
}

static bk_buf_t written;

bk_rc_t fuzz_put(bk_session_t *session, bk_type_t type, bool probe, const void *data, size_t len,
                 bk_id_t *id, bk_err_t *err)
{
    (void)session;
    (void)type;
    (void)probe;
    (void)err;
    memset(id, 0, sizeof *id);
    id->b[0] = (uint8_t)node_count++;
    bk_buf_u16(&written, (uint16_t)len);
    bk_buf_add(&written, data, len);
    return BK_OK;
}

static void seed(uint64_t count)
{
    bk_map_t map;
    bk_err_t err = {0};
    bk_buf_t input;
    bk_map_builder_t *builder = bk_map_builder_new(NULL);
    bk_buf_init(&written, 1u << 24);
    bk_buf_init(&input, 1u << 24);
    node_count = 0;
    for (uint64_t i = 0; i < count; i++) {
        bk_chunk_ref_t ref = {.raw = 65536};
        FUZZ_CHECK(bk_map_builder_add(builder, &ref, &err) == BK_OK);
    }
    FUZZ_CHECK(bk_map_builder_finish(builder, &map, &err) == BK_OK);
    bk_map_builder_free(builder);
    bk_buf_u64(&input, map.count);
    bk_buf_u8(&input, map.depth);
    bk_buf_u64(&input, count / 2);
    bk_buf_add(&input, written.data, written.len);
    fuzz_seed(input.data, input.len);
    bk_buf_free(&written);
    bk_buf_free(&input);
}

static void seeds(void)
{
    seed(0);
    seed(2);
    seed(1030);
    seed(2100);
}

static bk_rc_t count_node(void *arg, const bk_id_t *node, bk_err_t *err)
{
    (void)node;
    /* A list of 2^40 chunks is a valid promise; its nodes need not all be asked for here. */
    return ++*(size_t *)arg > 5000 ? bk_err_set(err, BK_CANCELED, "enough") : BK_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bk_chunk_ref_t out[WANTED];
    bk_cur_t cur = bk_cur(data, size);
    bk_err_t err = {0};
    size_t count = 0;
    bk_map_t map = {.count = bk_cur_u64(&cur), .depth = bk_cur_u8(&cur)};
    uint64_t first = bk_cur_u64(&cur);
    for (node_count = 0; node_count < NODES && bk_cur_left(&cur) >= 2; node_count++) {
        size_t len = bk_cur_u16(&cur);
        if (len > bk_cur_left(&cur))
            len = bk_cur_left(&cur);
        nodes[node_count].bytes = bk_cur_bytes(&cur, len);
        nodes[node_count].len = len;
    }
    if (node_count == 0)
        return 0;
    map.root.b[0] = (uint8_t)(node_count - 1);
    reads = 0;
    for (size_t n = 1; n <= WANTED; n *= 7) {
        if (bk_map_read(NULL, &map, first, n, out, NULL, &err) != BK_OK)
            continue;
        for (size_t i = 0; i < n; i++)
            FUZZ_CHECK(out[i].raw > 0 && out[i].raw <= BK_CHUNK_MAX);
    }
    reads = 0;
    if (bk_map_each_node(NULL, &map, count_node, &count, NULL, &err) == BK_OK)
        FUZZ_CHECK(count >= 1);
    return 0;
}
