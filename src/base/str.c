/*
 * base/str.c: encodings and units.  No locale, no allocation but the two duplicates.
 */
#include "base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

void bk_hex(char *out, const uint8_t *bytes, size_t len)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digit[bytes[i] >> 4];
        out[2 * i + 1] = digit[bytes[i] & 15];
    }
    out[2 * len] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool bk_unhex(uint8_t *out, size_t len, const char *text, size_t text_len)
{
    if (text_len != 2 * len)
        return false;
    for (size_t i = 0; i < len; i++) {
        int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static const char base32[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

void bk_base32(char *out, const uint8_t *bytes, size_t len)
{
    uint32_t bits = 0;
    unsigned count = 0;
    for (size_t i = 0; i < len; i++) {
        bits = bits << 8 | bytes[i];
        for (count += 8; count >= 5; count -= 5)
            *out++ = base32[bits >> (count - 5) & 31];
        bits &= (1u << count) - 1;
    }
    if (count > 0)
        *out++ = base32[bits << (5 - count) & 31];
    *out = '\0';
}

int bk_unbase32(uint8_t *out, size_t out_size, const char *text)
{
    uint32_t bits = 0;
    unsigned count = 0;
    size_t len = 0;
    for (; *text != '\0'; text++) {
        if (*text == ' ' || *text == '-' || *text == '\t')
            continue;
        char c = *text >= 'a' && *text <= 'z' ? (char)(*text - 'a' + 'A') : *text;
        const char *at = strchr(base32, c);
        if (at == NULL)
            return -1;
        bits = bits << 5 | (uint32_t)(at - base32);
        count += 5;
        if (count >= 8) {
            if (len == out_size)
                return -1;
            count -= 8;
            out[len++] = (uint8_t)(bits >> count);
            bits &= (1u << count) - 1;
        }
    }
    /* Five bits or more left over: a digit that no encoder writes. */
    return bits == 0 && count < 5 ? (int)len : -1;
}

void bk_ulid(char out[BK_ULID_LEN + 1])
{
    static const char crockford[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    uint8_t random[10] = {0};
    uint64_t ms = (uint64_t)(bk_now() / BK_MS);
    size_t got = 0;
    while (got < sizeof random) {
        ssize_t n = getrandom(random + got, sizeof random - got, 0);
        if (n > 0)
            got += (size_t)n;
    }
    for (int i = 9; i >= 0; i--, ms >>= 5)
        out[i] = crockford[ms & 31];
    uint32_t bits = 0;
    unsigned count = 0;
    char *p = out + 10;
    for (size_t i = 0; i < sizeof random; i++) {
        bits = bits << 8 | random[i];
        for (count += 8; count >= 5; count -= 5)
            *p++ = crockford[bits >> (count - 5) & 31];
        bits &= (1u << count) - 1;
    }
    *p = '\0';
}

bool bk_strcpy(char *dst, size_t size, const char *src)
{
    size_t len = strnlen(src, size);
    if (size == 0)
        return false;
    bool fits = len < size;
    if (!fits)
        len = size - 1;
    memcpy(dst, src, len);
    dst[len] = '\0';
    return fits;
}

bool bk_fmt(char *dst, size_t size, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(dst, size, fmt, args);
    va_end(args);
    return n >= 0 && (size_t)n < size;
}

char *bk_strdup(const char *s)
{
    return s != NULL ? bk_strndup(s, strlen(s)) : NULL;
}

char *bk_strndup(const char *s, size_t n)
{
    if (s == NULL)
        return NULL;
    size_t len = strnlen(s, n);
    char *copy = malloc(len + 1);
    if (copy == NULL)
        return NULL;
    memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

/* Length of the valid UTF-8 sequence at p (RFC 3629), or 0. */
static size_t utf8_length(const uint8_t *p, size_t left)
{
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
               : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
               : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                             : 0;
    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    if (p[0] == 0xc2 && p[1] < 0xa0) /* C1 controls */
        return 0;
    return n;
}

/* How many of the len bytes fitted; *at: bytes written.  backslash: escape it, too. */
static size_t escape(char *out, size_t size, const uint8_t *p, size_t len, bool backslash,
                     size_t *at)
{
    size_t i = 0;
    *at = 0;
    while (i < len && size > 0) {
        size_t n = utf8_length(p + i, len - i);
        if (n == 1 && (p[i] < 0x20 || p[i] == 0x7f || (p[i] == '\\' && backslash)))
            n = 0;
        if (*at + (n > 0 ? n : 4) >= size)
            break;
        if (n == 0) {
            snprintf(out + *at, 5, "\\x%02x", p[i]);
            *at += 4;
            i++;
        } else {
            memcpy(out + *at, p + i, n);
            *at += n;
            i += n;
        }
    }
    if (size > 0)
        out[*at] = '\0';
    return i;
}

size_t bk_name_escape(char *out, size_t size, const void *name, size_t len)
{
    size_t at;
    escape(out, size, name, len, true, &at);
    return at;
}

bool bk_printable(char *out, size_t size, const char *text)
{
    size_t at, len = strlen(text);
    return escape(out, size, (const uint8_t *)text, len, false, &at) == len;
}

int64_t bk_name_unescape(uint8_t *out, size_t size, const char *text)
{
    size_t len = 0;
    while (*text != '\0') {
        uint8_t byte = (uint8_t)*text;
        size_t used = 1;
        if (byte == '\\') {
            if (text[1] != 'x' || text[2] == '\0' ||
                !bk_unhex(&byte, 1, text + 2, strnlen(text + 2, 2)))
                return -1;
            used = 4;
        }
        if (len == size)
            return -1;
        out[len++] = byte;
        text += used;
    }
    return (int64_t)len;
}

/* Decimal digits; at least one. */
static bool number(const char **text, uint64_t *value)
{
    if (**text < '0' || **text > '9')
        return false;
    *value = 0;
    for (; **text >= '0' && **text <= '9'; (*text)++) {
        uint64_t digit = (uint64_t)(**text - '0');
        if (*value > (UINT64_MAX - digit) / 10)
            return false;
        *value = *value * 10 + digit;
    }
    return true;
}

bool bk_parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "kmgt";
    if (!number(&text, bytes))
        return false;
    if (*text == '\0')
        return true;
    char c = *text >= 'A' && *text <= 'Z' ? (char)(*text - 'A' + 'a') : *text;
    const char *unit = strchr(units, c);
    if (unit == NULL || text[1] != '\0')
        return false;
    unsigned shift = 10 * (unsigned)(unit - units + 1);
    if (*bytes > UINT64_MAX >> shift)
        return false;
    *bytes <<= shift;
    return true;
}

bool bk_parse_duration(const char *text, uint64_t *ms)
{
    static const struct {
        const char *name;
        uint64_t ms;
    } units[] = {{"ms", 1},       {"s", 1000},      {"m", 60000},       {"h", 3600000},
                 {"d", 86400000}, {"w", 604800000}, {"M", 2592000000u}, {"y", 31536000000u}};
    *ms = 0;
    do {
        uint64_t value, unit = 0;
        size_t len = 0;
        if (!number(&text, &value))
            return false;
        while ((text[len] >= 'a' && text[len] <= 'z') || text[len] == 'M')
            len++;
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (strlen(units[i].name) == len && strncmp(units[i].name, text, len) == 0)
                unit = units[i].ms;
        if (len == 0 && *text == '\0')
            unit = 1000;
        if (unit == 0 || value > UINT64_MAX / unit || *ms > UINT64_MAX - value * unit)
            return false;
        *ms += value * unit;
        text += len;
    } while (*text != '\0');
    return true;
}
