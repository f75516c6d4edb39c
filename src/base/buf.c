/*
 * base/buf.c: buffers that know their maximum, and the cursor that never reads past its end.
 */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 256u

void bk_buf_init(bk_buf_t *buf, size_t max)
{
    *buf = (bk_buf_t){.max = max};
}

void bk_buf_free(bk_buf_t *buf)
{
    free(buf->data);
    bk_buf_init(buf, buf->max);
}

void bk_buf_wipe(bk_buf_t *buf)
{
    if (buf->data != NULL)
        explicit_bzero(buf->data, buf->cap);
    bk_buf_free(buf);
}

void bk_buf_reset(bk_buf_t *buf)
{
    buf->len = 0;
    buf->failed = false;
}

bool bk_buf_ok(const bk_buf_t *buf)
{
    return !buf->failed;
}

uint8_t *bk_buf_room(bk_buf_t *buf, size_t n)
{
    if (buf->failed || n > buf->max - buf->len) {
        buf->failed = true;
        return NULL;
    }
    size_t needed = buf->len + n;
    if (needed > buf->cap || buf->data == NULL) {
        /* Half as much again: appending stays linear, and a large buffer wastes little. */
        size_t cap = buf->cap + buf->cap / 2;
        if (cap < needed)
            cap = needed;
        if (cap < FIRST_CAPACITY)
            cap = FIRST_CAPACITY;
        if (cap > buf->max && needed <= buf->max)
            cap = buf->max;
        uint8_t *data = realloc(buf->data, cap > 0 ? cap : 1);
        if (data == NULL) {
            buf->failed = true;
            return NULL;
        }
        buf->data = data;
        buf->cap = cap;
    }
    return buf->data + buf->len;
}

void bk_buf_add(bk_buf_t *buf, const void *bytes, size_t n)
{
    uint8_t *room = bk_buf_room(buf, n);
    if (room == NULL || n == 0)
        return;
    memcpy(room, bytes, n);
    buf->len += n;
}

static void add_integer(bk_buf_t *buf, uint64_t v, size_t n)
{
    uint8_t *room = bk_buf_room(buf, n);
    if (room == NULL)
        return;
    for (size_t i = 0; i < n; i++)
        room[i] = (uint8_t)(v >> (8 * i));
    buf->len += n;
}

void bk_buf_u8(bk_buf_t *buf, uint8_t v)
{
    add_integer(buf, v, 1);
}

void bk_buf_u16(bk_buf_t *buf, uint16_t v)
{
    add_integer(buf, v, 2);
}

void bk_buf_u32(bk_buf_t *buf, uint32_t v)
{
    add_integer(buf, v, 4);
}

void bk_buf_u64(bk_buf_t *buf, uint64_t v)
{
    add_integer(buf, v, 8);
}

void bk_buf_i64(bk_buf_t *buf, int64_t v)
{
    add_integer(buf, (uint64_t)v, 8);
}

void bk_buf_printf(bk_buf_t *buf, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        buf->failed = true;
        return;
    }
    uint8_t *room = bk_buf_room(buf, (size_t)n + 1);
    if (room == NULL)
        return;
    va_start(args, fmt);
    vsnprintf((char *)room, (size_t)n + 1, fmt, args);
    va_end(args);
    buf->len += (size_t)n;
}

const char *bk_buf_str(bk_buf_t *buf)
{
    uint8_t *room = bk_buf_room(buf, 1);
    if (room == NULL)
        return NULL;
    *room = '\0';
    return (const char *)buf->data;
}

bk_cur_t bk_cur(const void *data, size_t len)
{
    static const uint8_t nothing;
    const uint8_t *p = data != NULL ? data : &nothing;
    return (bk_cur_t){.p = p, .end = p + (data != NULL ? len : 0), .failed = false};
}

bool bk_cur_ok(const bk_cur_t *cur)
{
    return !cur->failed;
}

size_t bk_cur_left(const bk_cur_t *cur)
{
    return cur->failed ? 0 : (size_t)(cur->end - cur->p);
}

const uint8_t *bk_cur_bytes(bk_cur_t *cur, size_t n)
{
    if (cur->failed || n > (size_t)(cur->end - cur->p)) {
        cur->failed = true;
        return NULL;
    }
    const uint8_t *at = cur->p;
    cur->p += n;
    return at;
}

static uint64_t take_integer(bk_cur_t *cur, size_t n)
{
    const uint8_t *at = bk_cur_bytes(cur, n);
    uint64_t v = 0;
    for (size_t i = 0; at != NULL && i < n; i++)
        v |= (uint64_t)at[i] << (8 * i);
    return v;
}

uint8_t bk_cur_u8(bk_cur_t *cur)
{
    return (uint8_t)take_integer(cur, 1);
}

uint16_t bk_cur_u16(bk_cur_t *cur)
{
    return (uint16_t)take_integer(cur, 2);
}

uint32_t bk_cur_u32(bk_cur_t *cur)
{
    return (uint32_t)take_integer(cur, 4);
}

uint64_t bk_cur_u64(bk_cur_t *cur)
{
    return take_integer(cur, 8);
}

int64_t bk_cur_i64(bk_cur_t *cur)
{
    return (int64_t)take_integer(cur, 8);
}

uint32_t bk_get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t bk_get_u64(const uint8_t *p)
{
    return (uint64_t)bk_get_u32(p) | (uint64_t)bk_get_u32(p + 4) << 32;
}

void bk_put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

void bk_put_u64(uint8_t *p, uint64_t v)
{
    bk_put_u32(p, (uint32_t)v);
    bk_put_u32(p + 4, (uint32_t)(v >> 32));
}
