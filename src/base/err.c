/*
 * base/err.c: composes failure texts in place.  Allocates nothing: it must work when memory or disk are exhausted.
 */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    bk_rc_t rc;
    int exit_code, http;
    const char *code, *title;
} row_t;

static const row_t rows[] = {
#define X(name, number, exitcode, http, code, title) {BK_##name, exitcode, http, code, title},
    BK_ERR_TABLE(X)
#undef X
};

static const row_t *find_row(bk_rc_t rc)
{
    const row_t *failed = &rows[BK_FAILED];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].rc == rc)
            return &rows[i];
    return failed;
}

const char *bk_rc_code(bk_rc_t rc)
{
    return find_row(rc)->code;
}

const char *bk_rc_title(bk_rc_t rc)
{
    return find_row(rc)->title;
}

int bk_rc_exit(bk_rc_t rc)
{
    return find_row(rc)->exit_code;
}

int bk_rc_http(bk_rc_t rc)
{
    return find_row(rc)->http;
}

void bk_err_clear(bk_err_t *err)
{
    if (err == NULL)
        return;
    err->rc = BK_OK;
    err->sys = 0;
    err->text[0] = '\0';
}

/* Control bytes would let a file name forge log lines; a cut text ends in "...". */
static void finish(bk_err_t *err, int wanted)
{
    for (char *p = err->text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    if (wanted >= (int)sizeof err->text)
        memcpy(err->text + sizeof err->text - 4, "...", 4);
}

static void describe(bk_err_t *err, bk_rc_t rc, int sys, const char *fmt, va_list args)
{
    err->rc = rc;
    err->sys = sys;
    int wanted = vsnprintf(err->text, sizeof err->text, fmt, args);
    if (wanted < 0)
        err->text[0] = '\0';
    finish(err, wanted);
}

bk_rc_t bk_err_set(bk_err_t *err, bk_rc_t rc, const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        describe(err, rc, 0, fmt, args);
        va_end(args);
    }
    return rc;
}

static bk_rc_t rc_of_errno(int errnum)
{
    switch (errnum) {
    case ENOSPC:
    case EDQUOT:
        return BK_NO_SPACE;
    case EACCES:
    case EPERM:
    case EROFS:
        return BK_DENIED;
    case ENOENT:
    case ENOTDIR:
        return BK_NOT_FOUND;
    case EEXIST:
        return BK_EXISTS;
    case ENOMEM:
        return BK_NO_MEMORY;
    default:
        return BK_IO;
    }
}

bk_rc_t bk_err_sys(bk_err_t *err, int errnum, const char *fmt, ...)
{
    bk_rc_t rc = rc_of_errno(errnum);
    if (err != NULL) {
        char buf[128];
        va_list args;
        va_start(args, fmt);
        describe(err, rc, errnum, fmt, args);
        va_end(args);
        size_t len = strlen(err->text);
        int wanted = snprintf(err->text + len, sizeof err->text - len, ": %s",
                              strerror_r(errnum, buf, sizeof buf));
        finish(err, (int)len + wanted);
    }
    return rc;
}

bk_rc_t bk_err_wrap(bk_err_t *err, const char *fmt, ...)
{
    char inner[BK_ERR_TEXT];
    if (err == NULL)
        return BK_FAILED;
    memcpy(inner, err->text, sizeof inner);
    va_list args;
    va_start(args, fmt);
    describe(err, err->rc, err->sys, fmt, args);
    va_end(args);
    size_t len = strlen(err->text);
    int wanted = snprintf(err->text + len, sizeof err->text - len, ": %s", inner);
    finish(err, (int)len + wanted);
    return err->rc != BK_OK ? err->rc : BK_FAILED;
}
