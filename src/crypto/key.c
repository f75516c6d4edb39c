/*
 * crypto/key.c: the key a person keeps, files that hold secrets, and memory for them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"
#include "crypto/keyring.h"

#define CHECK_BYTES  3
#define GROUP        4
#define KEY_FILE_MAX 4096

static void checksum(uint8_t out[CHECK_BYTES], const uint8_t key[BK_KEY_SIZE])
{
    static const char label[] = "ngx-backup key";
    uint8_t digest[32];
    bk_hmac_sha256(digest, label, sizeof label - 1, key, BK_KEY_SIZE);
    memcpy(out, digest, CHECK_BYTES);
}

void bk_key_generate(uint8_t key[BK_KEY_SIZE])
{
    bk_random(key, BK_KEY_SIZE);
}

void bk_key_encode(char out[80], const uint8_t key[BK_KEY_SIZE])
{
    uint8_t bytes[BK_KEY_SIZE + CHECK_BYTES];
    char text[BK_KEY_TEXT];
    memcpy(bytes, key, BK_KEY_SIZE);
    checksum(bytes + BK_KEY_SIZE, key);
    bk_base32(text, bytes, sizeof bytes);
    for (size_t i = 0; text[i] != '\0'; i++) {
        if (i > 0 && i % GROUP == 0)
            *out++ = '-';
        *out++ = text[i];
    }
    *out = '\0';
    explicit_bzero(bytes, sizeof bytes);
    explicit_bzero(text, sizeof text);
}

bk_rc_t bk_key_decode(uint8_t key[BK_KEY_SIZE], const char *text, bk_err_t *err)
{
    uint8_t bytes[BK_KEY_SIZE + CHECK_BYTES], check[CHECK_BYTES];
    bk_rc_t rc = BK_OK;
    if (bk_unbase32(bytes, sizeof bytes, text) != (int)sizeof bytes) {
        rc = bk_err_set(err, BK_CONFIG, "not a key: a key has 56 letters A-Z and digits 2-7");
    } else {
        checksum(check, bytes);
        if (bk_equal_secret(check, bytes + BK_KEY_SIZE, CHECK_BYTES))
            memcpy(key, bytes, BK_KEY_SIZE);
        else
            rc = bk_err_set(err, BK_CONFIG, "the key is mistyped: its checksum does not fit");
    }
    explicit_bzero(bytes, sizeof bytes);
    return rc;
}

static bk_rc_t read_private(const char *path, bk_buf_t *out, bk_err_t *err)
{
    struct stat st;
    /* Not blocking: a FIFO in the file's place must not stop the program. */
    int fd = bk_openat(AT_FDCWD, path, O_RDONLY | O_NOCTTY | O_NONBLOCK, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "read secret file %s", path);
    bk_rc_t rc = BK_OK;
    size_t got = 0, most = out->max - out->len;
    uint8_t *room = bk_buf_room(out, most);
    if (fstat(fd, &st) != 0)
        rc = bk_err_sys(err, errno, "read secret file %s", path);
    else if (!S_ISREG(st.st_mode))
        rc = bk_err_set(err, BK_CONFIG, "secret file %s is not a regular file", path);
    else if ((st.st_mode & S_IRWXO) != 0)
        rc = bk_err_set(err, BK_CONFIG, "secret file %s is open to everybody: chmod o= %s", path,
                        path);
    else if (room == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "read secret file %s: out of memory", path);
    else if ((rc = bk_read_all(fd, room, most, &got, path, err)) == BK_OK && got == most)
        rc = bk_err_set(err, BK_CONFIG, "secret file %s is too long", path);
    out->len += got;
    close(fd);
    return rc;
}

/* 32 raw bytes are all printable once in 10^13 keys: then it is a text that was cut or mistyped. */
static bool is_raw_key(const bk_buf_t *file)
{
    size_t printable = 0;
    for (size_t i = 0; i < file->len; i++)
        printable += file->data[i] == '\n' || (file->data[i] >= 0x20 && file->data[i] < 0x7f);
    return file->len == BK_KEY_SIZE && printable < BK_KEY_SIZE;
}

/* The text without comments; 32 raw bytes are taken as they are. */
static bk_rc_t parse_key(const bk_buf_t *file, uint8_t key[BK_KEY_SIZE], bk_err_t *err)
{
    char text[KEY_FILE_MAX + 1];
    size_t len = 0;
    bool comment = false;
    if (is_raw_key(file)) {
        memcpy(key, file->data, BK_KEY_SIZE);
        return BK_OK;
    }
    for (size_t i = 0; i < file->len && i < KEY_FILE_MAX; i++) {
        char c = (char)file->data[i];
        if (c == '\n')
            comment = false;
        else if (c == '#')
            comment = true;
        if (!comment && c != '\n' && c != '\r')
            text[len++] = c != '\0' ? c : '?'; /* a NUL must not end the text unnoticed */
    }
    text[len] = '\0';
    bk_rc_t rc = bk_key_decode(key, text, err);
    explicit_bzero(text, sizeof text);
    return rc;
}

bk_rc_t bk_key_read_file(const char *path, uint8_t key[BK_KEY_SIZE], bk_err_t *err)
{
    bk_buf_t file;
    bk_buf_init(&file, KEY_FILE_MAX);
    bk_rc_t rc = read_private(path, &file, err);
    if (rc == BK_OK && (rc = parse_key(&file, key, err)) != BK_OK)
        bk_err_wrap(err, "key file %s", path);
    bk_buf_wipe(&file);
    return rc;
}

bk_rc_t bk_secret_read_file(const char *path, bk_buf_t *out, bk_err_t *err)
{
    bk_buf_reset(out);
    bk_rc_t rc = read_private(path, out, err);
    if (rc != BK_OK)
        return rc;
    const uint8_t *end = memchr(out->data, '\n', out->len);
    if (end != NULL)
        out->len = (size_t)(end - out->data);
    if (out->len > 0 && out->data[out->len - 1] == '\r')
        out->len--;
    if (out->len == 0)
        return bk_err_set(err, BK_CONFIG, "secret file %s: its first line is empty", path);
    if (memchr(out->data, '\0', out->len) != NULL)
        return bk_err_set(err, BK_CONFIG, "secret file %s: its first line is not text", path);
    return BK_OK;
}

void *bk_secret_alloc(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    /* Both may be refused (limits); the secret is then as safe as the rest of the process. */
    (void)mlock(p, size);
    (void)madvise(p, size, MADV_DONTDUMP);
    return p;
}

void bk_secret_free(void *p, size_t size)
{
    if (p == NULL)
        return;
    explicit_bzero(p, size);
    munmap(p, size);
}
