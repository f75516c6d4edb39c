/*
 * t/fuzz/wal.c: the write-ahead log of an application's database and its index: input = index header, then the log.
 *
 * Checksums are made right first for half of the inputs, or nothing would get past them.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sqlite/wal.h"

#define PAGES_MAX (1u << 20)

static void put_big(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static uint32_t get_big(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t get_native(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Written anew, not shared with what is tested. */
static void sum_up(int big, const uint8_t *p, size_t len, uint32_t sum[2])
{
    for (size_t i = 0; i + 8 <= len; i += 8) {
        sum[0] += (big ? get_big(p + i) : get_native(p + i)) + sum[1];
        sum[1] += (big ? get_big(p + i + 4) : get_native(p + i + 4)) + sum[0];
    }
}

static void mend_index(uint8_t *index, const uint32_t last[2])
{
    uint32_t sum[2] = {0, 0};
    memcpy(index + 24, last, 8);
    sum_up(0, index, 40, sum);
    memcpy(index + 40, sum, 8);
    memcpy(index + 48, index, 48);
}

/* Salts of the index, checksums and all, so that the log fits as far as it goes. */
static void mend(uint8_t *data, size_t size)
{
    uint8_t *log = data + BK_WAL_INDEX_HEADER, *end = data + size;
    uint32_t page_size, frames, sum[2] = {0, 0};
    uint16_t stored;
    memcpy(&stored, data + 14, 2);
    page_size = (uint32_t)(stored & 0xfe00) + ((uint32_t)(stored & 1) << 16);
    memcpy(data, &(uint32_t){3007000}, 4);
    memcpy(&frames, data + 16, 4);
    data[12] = 1;
    if (size < BK_WAL_INDEX_HEADER + 32 || page_size < 512)
        return;
    int big = data[13] != 0;
    put_big(log, 0x377f0682u | (uint32_t)big);
    put_big(log + 8, page_size);
    memcpy(log + 16, data + 32, 8);
    sum_up(big, log, 24, sum);
    put_big(log + 24, sum[0]);
    put_big(log + 28, sum[1]);
    log += 32;
    for (uint32_t i = 0; i < frames && (size_t)(end - log) >= 24 + page_size; i++) {
        memcpy(log + 8, data + 32, 8);
        sum_up(big, log, 8, sum);
        sum_up(big, log + 24, page_size, sum);
        put_big(log + 16, sum[0]);
        put_big(log + 20, sum[1]);
        log += 24 + page_size;
    }
    mend_index(data, sum);
}

static void seed(int big, uint32_t frames, uint32_t pages)
{
    size_t size = BK_WAL_INDEX_HEADER + 32 + frames * (24 + 512);
    uint8_t *data = calloc(1, size);
    uint16_t page_size = 512;
    FUZZ_CHECK(data != NULL);
    data[13] = (uint8_t)big;
    memcpy(data + 14, &page_size, 2);
    memcpy(data + 16, &frames, 4);
    memcpy(data + 20, &pages, 4);
    memset(data + 32, 0x5a, 8);
    for (uint32_t i = 0; i < frames; i++)
        put_big(data + BK_WAL_INDEX_HEADER + 32 + i * (24 + 512), i % 7 + 1);
    mend(data, size);
    fuzz_seed(data, size);
    free(data);
}

static void seeds(void)
{
    seed(0, 0, 0);
    seed(0, 3, 7);
    seed(1, 40, 5);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    bk_wal_header_t header;
    bk_err_t err = {0};
    if (size < BK_WAL_INDEX_HEADER)
        return 0;
    if (fd < 0)
        fd = memfd_create("wal", MFD_CLOEXEC);
    FUZZ_CHECK(fd >= 0);
    uint8_t *copy = malloc(size);
    FUZZ_CHECK(copy != NULL);
    memcpy(copy, data, size);
    if (size % 2 == 0)
        mend(copy, size);
    size_t len = size - BK_WAL_INDEX_HEADER;
    FUZZ_CHECK(ftruncate(fd, 0) == 0);
    FUZZ_CHECK(pwrite(fd, copy + BK_WAL_INDEX_HEADER, len, 0) == (ssize_t)len);
    if (bk_wal_index_parse(copy, &header) && header.pages <= PAGES_MAX && header.frames > 0) {
        uint32_t *frame_of = calloc(header.pages + 1, sizeof *frame_of);
        FUZZ_CHECK(frame_of != NULL);
        if (bk_wal_scan(fd, "wal", &header, frame_of, NULL, &err) != BK_OK)
            FUZZ_CHECK(err.rc != BK_OK && err.text[0] != '\0');
        else
            FUZZ_CHECK(bk_wal_frame_offset(header.frames, header.page_size) + header.page_size <=
                       len);
        for (uint32_t i = 0; i < header.pages; i++)
            FUZZ_CHECK(frame_of[i] <= header.frames);
        free(frame_of);
    }
    free(copy);
    return 0;
}
