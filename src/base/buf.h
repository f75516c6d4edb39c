/*
 * base/buf.h: growing byte buffers with a stated maximum, and the cursor that every parser reads
 * through.
 *
 * Writers append to a bk_buf_t; the first append that would pass its maximum, or fails to allocate,
 * marks the buffer failed and drops this and all later appends, so that a run of appends needs one
 * check at its end (bk_buf_ok). Readers take fields from a bk_cur_t; the first field that is not
 * wholly there marks the cursor failed and yields zeros from then on, so a parser needs one check
 * (bk_cur_ok) before it believes what it read. Integers are little-endian.  Not thread-safe: one
 * owner per object.
 */
#ifndef BK_BASE_BUF_H
#define BK_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *data; /* heap, owned by the buffer; NULL while empty */
    size_t len;    /* bytes in use */
    size_t cap;    /* bytes allocated */
    size_t max;    /* len never passes this */
    bool failed;   /* an append was dropped */
} bk_buf_t;

/* An empty buffer that may grow to max bytes (> 0).  Cannot fail; allocates nothing. */
void bk_buf_init(bk_buf_t *buf, size_t max);
/* Free the memory; the buffer is empty and usable again.  bk_buf_wipe zeroises first (secrets). */
void bk_buf_free(bk_buf_t *buf);
void bk_buf_wipe(bk_buf_t *buf);
/* Forget content and failure, keep the memory. */
void bk_buf_reset(bk_buf_t *buf);
bool bk_buf_ok(const bk_buf_t *buf);
/* Room for n more bytes at data + len, or NULL (buffer then failed).  The caller adds to len
 * itself. */
uint8_t *bk_buf_room(bk_buf_t *buf, size_t n);
void bk_buf_add(bk_buf_t *buf, const void *bytes, size_t n);
void bk_buf_u8(bk_buf_t *buf, uint8_t v);
void bk_buf_u16(bk_buf_t *buf, uint16_t v);
void bk_buf_u32(bk_buf_t *buf, uint32_t v);
void bk_buf_u64(bk_buf_t *buf, uint64_t v);
void bk_buf_i64(bk_buf_t *buf, int64_t v);
/* Text; printf appends no NUL.  bk_buf_str makes data NUL-terminated (not counted in len) and
 * returns it, or NULL. */
void bk_buf_printf(bk_buf_t *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *bk_buf_str(bk_buf_t *buf);

typedef struct {
    const uint8_t *p, *end;
    bool failed;
} bk_cur_t;

bk_cur_t bk_cur(const void *data, size_t len);
bool bk_cur_ok(const bk_cur_t *cur);
size_t bk_cur_left(const bk_cur_t *cur); /* 0 once failed */
uint8_t bk_cur_u8(bk_cur_t *cur);
uint16_t bk_cur_u16(bk_cur_t *cur);
uint32_t bk_cur_u32(bk_cur_t *cur);
uint64_t bk_cur_u64(bk_cur_t *cur);
int64_t bk_cur_i64(bk_cur_t *cur);
/* The next n bytes in place, or NULL (cursor failed).  n == 0 yields a non-NULL pointer. */
const uint8_t *bk_cur_bytes(bk_cur_t *cur, size_t n);

/* Unaligned little-endian access for fixed layouts that were bounds-checked already. */
uint32_t bk_get_u32(const uint8_t *p);
uint64_t bk_get_u64(const uint8_t *p);
void bk_put_u32(uint8_t *p, uint32_t v);
void bk_put_u64(uint8_t *p, uint64_t v);

#endif
