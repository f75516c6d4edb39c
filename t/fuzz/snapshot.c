/*
 * t/fuzz/snapshot.c: snapshots.  What is accepted can be written, and read and written again without a difference.
 */
#include "fuzz.h"

#include "base/str.h"
#include "repo/snapshot.h"

static void seeds(void)
{
    static bk_snapshot_tree_t tree = {.name = "audio", .path = "/srv/\xff", .files = 1};
    static bk_snapshot_db_t db = {.name = "main",
                                  .path = "/srv/app.db",
                                  .map = {.count = 2},
                                  .page_size = 4096,
                                  .block_size = 65536,
                                  .page_count = 17,
                                  .journal = "wal",
                                  .mode = 0640};
    bk_snapshot_t s = {
        .backup_id = "full_20251015_143000", .kind = "full", .set = "a", .host = "b"};
    bk_buf_t text;
    bk_err_t err = {0};
    bk_buf_init(&text, 1u << 16);
    FUZZ_CHECK(bk_snapshot_encode(&s, &text, &err) == BK_OK);
    fuzz_seed(text.data, text.len);
    s.trees = &tree;
    s.dbs = &db;
    s.tree_count = s.db_count = 1;
    s.description = "x\n";
    s.tags = json_pack("[s]", "t");
    s.config = json_pack("{s{ss}}", "files", "path", "/srv");
    s.unreadable = json_pack("[{ss si ss}]", "path", "p", "errno", 13, "error", "e");
    s.unreadable_total = 1;
    s.stats = json_pack("{si}", "bytes_new", 1);
    bk_buf_reset(&text);
    FUZZ_CHECK(bk_snapshot_encode(&s, &text, &err) == BK_OK);
    fuzz_seed(text.data, text.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_snapshot_t first, second;
    bk_buf_t one, two;
    bk_err_t err = {0};
    if (bk_snapshot_decode(data, size, &first, &err) != BK_OK) {
        FUZZ_CHECK(err.rc != BK_OK && err.text[0] != '\0');
        return 0;
    }
    bk_buf_init(&one, 8 * size + 4096);
    bk_buf_init(&two, 8 * size + 4096);
    FUZZ_CHECK(bk_backup_id_valid(first.backup_id));
    FUZZ_CHECK(bk_snapshot_encode(&first, &one, &err) == BK_OK);
    FUZZ_CHECK(bk_snapshot_decode(one.data, one.len, &second, &err) == BK_OK);
    FUZZ_CHECK(bk_snapshot_encode(&second, &two, &err) == BK_OK);
    FUZZ_CHECK(one.len == two.len && memcmp(one.data, two.data, one.len) == 0);
    bk_snapshot_free(&first);
    bk_snapshot_free(&second);
    bk_buf_free(&one);
    bk_buf_free(&two);
    return 0;
}
