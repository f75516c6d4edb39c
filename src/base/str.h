/*
 * base/str.h: small text helpers shared by every layer.  Pure functions; any thread.
 */
#ifndef BK_BASE_STR_H
#define BK_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lower-case hexadecimal.  out holds 2 * len + 1 bytes.  Decoding wants exactly 2 * len digits,
 * either case. */
void bk_hex(char *out, const uint8_t *bytes, size_t len);
bool bk_unhex(uint8_t *out, size_t len, const char *text, size_t text_len);

/*
 * RFC 4648 base32, upper case, no padding.  encode: out holds (len * 8 + 4) / 5 + 1 bytes.  decode
 * accepts lower case, ignores blanks and '-', and returns the number of bytes or -1.
 */
void bk_base32(char *out, const uint8_t *bytes, size_t len);
int bk_unbase32(uint8_t *out, size_t out_size, const char *text);

/* Crockford ULID (https://github.com/ulid/spec): 26 characters and NUL, 48 bits of ms then 80
 * random bits. */
#define BK_ULID_LEN 26
void bk_ulid(char out[BK_ULID_LEN + 1]);

/* Copy as much as fits, always NUL-terminated.  False when it was cut. */
bool bk_strcpy(char *dst, size_t size, const char *src);
/* snprintf that tells whether everything fitted. */
bool bk_fmt(char *dst, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* strdup and strndup that never return an alias; NULL in gives NULL out; NULL also when memory is
 * exhausted. */
char *bk_strdup(const char *s);
char *bk_strndup(const char *s, size_t n);

/*
 * A file name or path as printable UTF-8: bytes that are not valid UTF-8, controls and '\' become
 * \xHH, so that the text is unique and reversible.  bk_name_unescape is the inverse and returns the
 * length or -1. out is always terminated; a longer result is cut.
 */
size_t bk_name_escape(char *out, size_t size, const void *name, size_t len);
int64_t bk_name_unescape(uint8_t *out, size_t size, const char *text);
/*
 * The same for a sentence that is only read, never reversed: '\' stays, so that names escaped
 * before stay as they are.  False when it was cut (at a whole character).
 */
bool bk_printable(char *out, size_t size, const char *text);

/*
 * "10", "64k", "16m", "2g", "1t" (powers of 1024) to bytes; "30d", "6h", "15m", "10s", "250ms",
 * "2w", "1y", combined as "1h30m" to milliseconds.  nginx's units.  False when the text is not
 * wholly one value or overflows.
 */
bool bk_parse_size(const char *text, uint64_t *bytes);
bool bk_parse_duration(const char *text, uint64_t *ms);

#endif
