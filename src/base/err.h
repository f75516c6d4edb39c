/*
 * base/err.h: the one table of failures.
 *
 * Every function that can fail returns a bk_rc_t and, when it is not BK_OK, has described the
 * failure in the bk_err_t it was given: object, operation, cause, remedy.  The same text then reads
 * the same in the log, the job, the API problem and the command line.  No function here allocates;
 * all are safe from any thread on a private bk_err_t.
 */
#ifndef BK_BASE_ERR_H
#define BK_BASE_ERR_H

/*
 * name, stable number, exit code of the command line, HTTP status, problem code, title.
 * Numbers are stored in catalogs: never change one, only add.
 */
#define BK_ERR_TABLE(X)                                                                            \
    X(OK, 0, 0, 200, "Ok", "Success")                                                              \
    X(FAILED, 1, 1, 500, "Failed", "The operation failed")                                         \
    X(INVALID, 2, 2, 422, "Invalid", "The request is not valid")                                   \
    X(MALFORMED, 3, 2, 400, "Malformed", "The request cannot be parsed")                           \
    X(CONFIG, 4, 2, 500, "Configuration", "The configuration is not valid")                        \
    X(NOT_FOUND, 5, 1, 404, "NotFound", "There is no such object")                                 \
    X(EXISTS, 6, 1, 409, "Exists", "The object exists already")                                    \
    X(CONFLICT, 7, 1, 409, "Conflict", "Another operation is in the way")                          \
    X(BUSY, 8, 1, 409, "Busy", "The database is in use")                                           \
    X(DENIED, 9, 1, 500, "PermissionDenied", "The operating system denied access")                 \
    X(FORBIDDEN, 10, 1, 403, "Forbidden", "The target is not allowed")                             \
    X(NO_SPACE, 11, 1, 507, "NoSpace", "There is not enough free space")                           \
    X(IO, 12, 1, 500, "InputOutput", "Reading or writing failed")                                  \
    X(STORAGE, 13, 1, 502, "Storage", "The storage failed")                                        \
    X(REPO_MISSING, 14, 10, 404, "RepositoryMissing", "There is no repository at this storage")    \
    X(LOCKED, 15, 11, 409, "Locked", "Another process owns it")                                    \
    X(WRONG_KEY, 16, 12, 500, "WrongKey", "The key does not open this repository")                 \
    X(CORRUPT, 17, 1, 500, "Corrupt", "Stored data is damaged")                                    \
    X(NO_MEMORY, 18, 1, 500, "NoMemory", "Memory is exhausted")                                    \
    X(UNSUPPORTED, 19, 1, 501, "Unsupported", "This is not supported")                             \
    X(CHANGED, 20, 1, 500, "Changed", "The source changed while it was read")                      \
    X(TIMEOUT, 21, 1, 504, "Timeout", "It took too long")                                          \
    X(CANCELED, 22, 1, 409, "Canceled", "The job was canceled")                                    \
    X(INTERRUPTED, 23, 130, 503, "Interrupted", "The job was interrupted and will resume")         \
    X(TOO_LARGE, 24, 2, 413, "TooLarge", "The request is too large")                               \
    X(UNAVAILABLE, 25, 1, 503, "Unavailable", "The service is starting or stopping")

typedef enum {
#define X(name, number, exitcode, http, code, title) BK_##name = number,
    BK_ERR_TABLE(X)
#undef X
} bk_rc_t;

/* Longest message kept, in bytes with the final NUL; longer ones end in "...". */
#define BK_ERR_TEXT 1024

typedef struct {
    bk_rc_t rc;             /* BK_OK when nothing failed */
    int sys;                /* errno behind it, or 0 */
    char text[BK_ERR_TEXT]; /* one printable sentence, outermost object first */
} bk_err_t;

/* Facts of the table.  An unknown number is answered as BK_FAILED. */
const char *bk_rc_code(bk_rc_t rc);
const char *bk_rc_title(bk_rc_t rc);
int bk_rc_exit(bk_rc_t rc);
int bk_rc_http(bk_rc_t rc);

/* Forget any failure.  A bk_err_t needs this (or "= {0}") before first use. */
void bk_err_clear(bk_err_t *err);

/*
 * Describe a failure and return rc, so that callers write: return bk_err_set(err, BK_CORRUPT,
 * "..."). err may be NULL (nothing is recorded).  An earlier text is replaced.
 */
bk_rc_t bk_err_set(bk_err_t *err, bk_rc_t rc, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * The same for a failed system call: appends ": " and the errno's text, and picks the rc by errno
 * (ENOSPC and EDQUOT NO_SPACE, EACCES/EPERM/EROFS DENIED, ENOENT/ENOTDIR NOT_FOUND, EEXIST EXISTS,
 * ENOMEM NO_MEMORY, else IO).  EROFS always has the same remedy, which is put behind it.
 */
bk_rc_t bk_err_sys(bk_err_t *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "context: " in front of the text that is there; rc and sys stay.  Returns err->rc (BK_FAILED
 * for NULL). */
bk_rc_t bk_err_wrap(bk_err_t *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Put "; remedy" behind it: what the reader can do.  rc and sys stay, as with bk_err_wrap. */
bk_rc_t bk_err_remedy(bk_err_t *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
