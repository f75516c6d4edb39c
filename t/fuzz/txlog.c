/*
 * t/fuzz/txlog.c: segments of transactions, open and sealed.  Whatever the bytes are, reading every
 * page of them ends, and what is refused is said to be damaged.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <unistd.h>

#include "sqlite/txlog.h"

typedef struct {
    const uint8_t *data;
    size_t size;
} bytes_t;

static void seed_of(unsigned transactions, int sealed)
{
    static const bk_txlog_info_t info = {.epoch = {1, 2}, .page_size = 512, .first = 3};
    static uint8_t content[1u << 16];
    char path[4200];
    uint8_t page[512] = {0};
    bk_txlog_writer_t *w = NULL;
    bk_err_t err = {0};
    snprintf(path, sizeof path, "%s/../segment-%ld", fuzz_dir, (long)getpid());
    FUZZ_CHECK(bk_txlog_create(path, &info, &w, &err) == BK_OK);
    for (unsigned i = 0; i < transactions; i++) {
        bk_tx_t tx = {.txid = 3 + i, .page_count = 10, .before = i, .after = i + 1};
        FUZZ_CHECK(bk_txlog_begin(w, &err) == BK_OK);
        for (uint32_t p = 1; p <= i; p++) {
            page[p] = (uint8_t)(i + p);
            FUZZ_CHECK(bk_txlog_page(w, p, page, &err) == BK_OK);
        }
        FUZZ_CHECK(bk_txlog_end(w, &tx, &err) == BK_OK);
    }
    if (sealed) {
        FUZZ_CHECK(bk_txlog_seal(w, &err) == BK_OK);
    } else {
        FUZZ_CHECK(bk_txlog_sync(w, &err) == BK_OK);
        bk_txlog_close(w);
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = read(fd, content, sizeof content);
    close(fd);
    unlink(path);
    FUZZ_CHECK(got > 0);
    fuzz_seed(content, (size_t)got);
}

static void seeds(void)
{
    for (unsigned i = 0; i < 5; i++) {
        seed_of(i, 0);
        seed_of(i, 1);
    }
}

static bk_rc_t read_bytes(void *arg, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    const bytes_t *b = arg;
    (void)err;
    FUZZ_CHECK(offset <= b->size && len <= b->size - offset);
    memcpy(out, b->data + offset, len);
    return BK_OK;
}

static bk_rc_t see_page(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    unsigned *sum = arg;
    (void)err;
    *sum += page[pgno % 512];
    return BK_OK;
}

static bool get_page(void *arg, uint32_t pgno, bk_txlog_spot_t spot)
{
    static uint8_t page[65536];
    bk_err_t err = {0};
    (void)bk_txlog_get(arg, spot, page, &err);
    return pgno % 8 != 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes_t bytes = {.data = data, .size = size};
    bk_txlog_source_t source = {.read = read_bytes, .arg = &bytes, .size = size};
    bk_txlog_t *log = NULL;
    bk_err_t err = {0};
    unsigned sum = 0;
    bk_rc_t rc = bk_txlog_open(&source, &log, &err);
    FUZZ_CHECK(rc == BK_OK || rc == BK_CORRUPT || rc == BK_NO_MEMORY || rc == BK_UNSUPPORTED);
    for (size_t i = 0; rc == BK_OK && i < bk_txlog_count(log) && i < 100; i++) {
        FUZZ_CHECK(bk_txlog_tx(log, i)->txid == bk_txlog_info(log)->first + i);
        (void)bk_txlog_pages(log, i, see_page, &sum, &err);
        (void)bk_txlog_numbers(log, i, get_page, log);
    }
    bk_txlog_free(log);
    return 0;
}
