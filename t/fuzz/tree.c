/*
 * t/fuzz/tree.c: directories of arbitrary nodes.  The input is a list of nodes (u16 length, bytes); a node's id holds its
 * place in that list, so that branches may name any node, also themselves.  The code under test is compiled in with another
 * source and sink of chunks.
 */
#include "fuzz.h"

#define bk_repo_get    fuzz_get
#define bk_session_put fuzz_put
#include "../../src/repo/tree.c"

enum { NODES = 256 };

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
    if (id->b[0] >= node_count)
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

/* The root is stored last; the reader below starts there. */
static void seed(unsigned count, unsigned name_len)
{
    bk_id_t root;
    uint64_t entries;
    bk_err_t err = {0};
    bk_tree_builder_t *builder = bk_tree_builder_new(NULL);
    bk_buf_init(&written, 1u << 24);
    node_count = 0;
    for (unsigned i = 0; i < count; i++) {
        char name[BK_NAME_MAX + 1];
        snprintf(name, sizeof name, "%0*u", (int)name_len, i);
        bk_entry_t entry = {.name = (const uint8_t *)name,
                            .name_len = (uint16_t)name_len,
                            .type = BK_ENTRY_FIFO,
                            .user = "",
                            .group = ""};
        FUZZ_CHECK(bk_tree_builder_add(builder, &entry, &err) == BK_OK);
    }
    FUZZ_CHECK(bk_tree_builder_finish(builder, &root, &entries, &err) == BK_OK);
    bk_tree_builder_free(builder);
    fuzz_seed(written.data, written.len);
    bk_buf_free(&written);
}

static void seeds(void)
{
    seed(0, 1);
    seed(3, 1);
    seed(50, 2);
    seed(400, 3);
    seed(1500, 250);
}

static void check_walk(bk_tree_iter_t *iter, bk_err_t *err)
{
    uint8_t last[BK_NAME_MAX];
    uint16_t last_len = 0;
    const bk_entry_t *entry;
    while (bk_tree_iter_next(iter, &entry, err) == BK_OK && entry != NULL) {
        FUZZ_CHECK(bk_entry_name_valid(entry->name, entry->name_len));
        FUZZ_CHECK(last_len == 0 ||
                   compare_names(last, last_len, entry->name, entry->name_len) < 0);
        memcpy(last, entry->name, entry->name_len);
        last_len = entry->name_len;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_cur_t cur = bk_cur(data, size);
    bk_tree_iter_t *iter;
    const bk_entry_t *entry;
    bk_err_t err = {0};
    bk_id_t root = {{0}};
    reads = 0;
    for (node_count = 0; node_count < NODES && bk_cur_left(&cur) >= 2; node_count++) {
        size_t len = bk_cur_u16(&cur);
        if (len > bk_cur_left(&cur))
            len = bk_cur_left(&cur);
        nodes[node_count].bytes = bk_cur_bytes(&cur, len);
        nodes[node_count].len = len;
    }
    if (node_count == 0)
        return 0;
    root.b[0] = (uint8_t)(node_count - 1);
    if (bk_tree_iter_open(NULL, &root, NULL, &iter, &err) != BK_OK)
        return 0;
    check_walk(iter, &err);
    /* Nodes are read once each at most, and a chain of branches that names itself comes to an end. */
    FUZZ_CHECK(reads <= 2 * node_count + LEVELS);
    bk_tree_iter_close(iter);

    if (bk_tree_iter_open(NULL, &root, NULL, &iter, &err) != BK_OK)
        return 0;
    for (size_t at = 0; at + 8 <= size && at < 64 * 8; at += 8) {
        size_t len = data[at] % 8;
        if (bk_tree_iter_seek(iter, data + at + 1, len, &err) != BK_OK ||
            bk_tree_iter_next(iter, &entry, &err) != BK_OK)
            break;
        FUZZ_CHECK(entry == NULL ||
                   compare_names(entry->name, entry->name_len, data + at + 1, len) >= 0);
    }
    bk_tree_iter_close(iter);
    return 0;
}
