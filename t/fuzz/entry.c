/*
 * t/fuzz/entry.c: directory entries.  What is accepted is sound, and writing it again gives the same bytes.
 */
#include "fuzz.h"

#include "repo/tree.h"

static bk_entry_t plain_entry(const char *name)
{
    return (bk_entry_t){.name = (const uint8_t *)name,
                        .name_len = (uint16_t)strlen(name),
                        .type = BK_ENTRY_FILE,
                        .mode = 0640,
                        .user = "app",
                        .user_len = 3,
                        .group = "www",
                        .group_len = 3,
                        .mtime = 1,
                        .links = 1};
}

static void seed(const bk_entry_t *entry)
{
    bk_buf_t bytes;
    bk_buf_init(&bytes, 1u << 16);
    bk_entry_encode(entry, &bytes);
    fuzz_seed(bytes.data, bytes.len);
    bk_buf_free(&bytes);
}

static void seeds(void)
{
    static const bk_chunk_ref_t refs[2] = {{.raw = 3}, {.raw = 4}};
    bk_entry_t e = plain_entry("dir");
    e.type = BK_ENTRY_DIR;
    seed(&e);
    e = plain_entry("link");
    e.type = BK_ENTRY_LINK;
    e.target = (const uint8_t *)"../there";
    e.target_len = 8;
    seed(&e);
    e = plain_entry("pipe");
    e.type = BK_ENTRY_FIFO;
    seed(&e);
    e = plain_entry("small");
    e.flags = BK_ENTRY_INLINE | BK_ENTRY_ATTRS;
    e.content = (const uint8_t *)"hello";
    e.content_len = 5;
    e.size = 5;
    seed(&e);
    e = plain_entry("sparse");
    e.flags = BK_ENTRY_CHUNKS | BK_ENTRY_EXTENTS;
    e.chunks = refs;
    e.chunk_count = 2;
    e.data_bytes = 7;
    e.size = 100;
    seed(&e);
    e = plain_entry("large");
    e.flags = BK_ENTRY_MAP;
    e.map_count = 5000;
    e.map_depth = 1;
    e.size = 1ull << 33;
    seed(&e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_chunk_ref_t *scratch = NULL;
    size_t cap = 0;
    bk_buf_t again;
    bk_cur_t cur = bk_cur(data, size);
    bk_buf_init(&again, size + 1);
    while (bk_cur_left(&cur) > 0) {
        bk_entry_t entry;
        bk_err_t err = {0};
        const uint8_t *start = cur.p;
        if (bk_entry_decode(&cur, &scratch, &cap, &entry, &err) != BK_OK) {
            FUZZ_CHECK(err.rc != BK_OK && err.text[0] != '\0');
            break;
        }
        FUZZ_CHECK(bk_entry_name_valid(entry.name, entry.name_len));
        bk_buf_reset(&again);
        bk_entry_encode(&entry, &again);
        FUZZ_CHECK(bk_buf_ok(&again) && again.len == (size_t)(cur.p - start) &&
                   memcmp(again.data, start, again.len) == 0);
    }
    bk_buf_free(&again);
    free(scratch);
    return 0;
}
