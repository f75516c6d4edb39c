/*
 * t/fuzz/index.c: index segments.  The checksum at the end is made right first, or nothing would get past it.
 */
#include "fuzz.h"

#include <xxhash.h>

#include "repo/index.h"

static void seed(size_t packs, size_t chunks)
{
    bk_pack_t list[4];
    const bk_pack_t *ptrs[4];
    bk_buf_t out;
    bk_err_t err = {0};
    memset(list, 0, sizeof list);
    for (size_t p = 0; p < packs; p++) {
        list[p].kind = p % 2 == 0 ? BK_KIND_PACK : BK_KIND_META;
        list[p].bytes.len = 100000;
        list[p].entries = calloc(chunks, sizeof *list[p].entries);
        list[p].count = chunks;
        FUZZ_CHECK(list[p].entries != NULL);
        for (size_t i = 0; i < chunks; i++) {
            list[p].entries[i] = (bk_pack_entry_t){
                .offset = 80, .stored = 9, .raw = 10, .type = p % 2 == 0 ? 1 : 3, .codec = 1};
            memset(list[p].entries[i].id.b, (int)(i * 7 + p), BK_ID_SIZE);
        }
        ptrs[p] = &list[p];
    }
    bk_buf_init(&out, 1u << 20);
    FUZZ_CHECK(bk_index_encode(ptrs, packs, 1, &out, &err) == BK_OK);
    fuzz_seed(out.data, out.len);
    bk_buf_free(&out);
    for (size_t p = 0; p < packs; p++)
        free(list[p].entries);
}

static void seeds(void)
{
    seed(1, 1);
    seed(2, 3);
    seed(4, 30);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_err_t err = {0};
    uint8_t *copy = malloc(size + 1);
    FUZZ_CHECK(copy != NULL);
    memcpy(copy, data, size);
    if (size >= 8)
        bk_put_u64(copy + size - 8, XXH64(copy, size - 8, 0));
    if (bk_index_check(copy, size, &err) != BK_OK)
        FUZZ_CHECK(err.rc != BK_OK && err.text[0] != '\0');
    free(copy);
    return 0;
}
