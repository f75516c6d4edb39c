/*
 * base/err.c: composes failure texts.  Allocates nothing: it must work when memory or disk are
 * exhausted.
 */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

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

/*
 * Keep raw as one printable line: control bytes in a file name would forge log lines, bytes that
 * are not UTF-8 would make the JSON of a problem fail.  A cut text ends in "...".
 */
static void keep(bk_err_t *err, const char *raw, bool cut)
{
    const size_t room = sizeof err->text - sizeof "...";
    if (bk_printable(err->text, sizeof err->text, raw) && !cut)
        return;
    size_t len = strlen(err->text);
    if (len > room)
        len = room;
    while (len > 0 && ((unsigned char)err->text[len] & 0xc0) == 0x80)
        len--;
    memcpy(err->text + len, "...", sizeof "...");
}

/* Append to the text in raw, which holds BK_ERR_TEXT bytes.  True when something was left out. */
static bool append(char *raw, const char *fmt, va_list args)
{
    size_t len = strlen(raw);
    int wanted = vsnprintf(raw + len, BK_ERR_TEXT - len, fmt, args);
    return wanted < 0 || (size_t)wanted >= BK_ERR_TEXT - len;
}

static bool append_text(char *raw, const char *before, const char *text)
{
    size_t len = strlen(raw);
    return !bk_fmt(raw + len, BK_ERR_TEXT - len, "%s%s", before, text);
}

/* The arguments may point into err->text: everything is composed beside it. */
static void describe(bk_err_t *err, bk_rc_t rc, int sys, const char *fmt, va_list args)
{
    char raw[BK_ERR_TEXT] = "";
    bool cut = append(raw, fmt, args);
    if (sys != 0) {
        char reason[128];
        cut |= append_text(raw, ": ", strerror_r(sys, reason, sizeof reason));
        if (sys == EROFS)
            cut |= append_text(raw, "; ", "mount it writable");
    }
    err->rc = rc;
    err->sys = sys;
    keep(err, raw, cut);
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
        va_list args;
        va_start(args, fmt);
        describe(err, rc, errnum, fmt, args);
        va_end(args);
    }
    return rc;
}

bk_rc_t bk_err_wrap(bk_err_t *err, const char *fmt, ...)
{
    char raw[BK_ERR_TEXT] = "";
    va_list args;
    if (err == NULL)
        return BK_FAILED;
    va_start(args, fmt);
    bool cut = append(raw, fmt, args);
    va_end(args);
    cut |= append_text(raw, ": ", err->text);
    keep(err, raw, cut);
    return err->rc != BK_OK ? err->rc : BK_FAILED;
}

bk_rc_t bk_err_remedy(bk_err_t *err, const char *fmt, ...)
{
    char raw[BK_ERR_TEXT] = "";
    va_list args;
    if (err == NULL)
        return BK_FAILED;
    bool cut = append_text(raw, err->text, "; ");
    va_start(args, fmt);
    cut |= append(raw, fmt, args);
    va_end(args);
    keep(err, raw, cut);
    return err->rc != BK_OK ? err->rc : BK_FAILED;
}
