/*
 * files/attrs.h: what a file has besides content, times and mode: names of its owners, extended
 * attributes and access control lists (which Linux keeps as extended attributes).
 *
 * Kept are user.*, security.*, trusted.* and the POSIX ACLs; security.ima and security.evm are
 * not, since they are seals of one machine.  Reading an attribute that this process may not see is
 * not a failure: the kernel does not list those.
 */
#ifndef BK_FILES_ATTRS_H
#define BK_FILES_ATTRS_H

#include <stdint.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/err.h"

/* Names of users and groups by number and back, asked once each.  Any thread. */
typedef struct bk_names_s bk_names_t;
bk_names_t *bk_names_new(void); /* NULL: no memory */
void bk_names_free(bk_names_t *names);
/* The name, "" when there is none; valid until bk_names_free. */
const char *bk_names_user(bk_names_t *names, uint32_t uid, uint8_t *len);
const char *bk_names_group(bk_names_t *names, uint32_t gid, uint8_t *len);
/* The number of that name on this machine, else the one given. */
uint32_t bk_names_uid(bk_names_t *names, const char *name, uint8_t len, uint32_t otherwise);
uint32_t bk_names_gid(bk_names_t *names, const char *name, uint8_t len, uint32_t otherwise);

#define BK_ATTRS_MAX (4u << 20) /* bytes of a blob */

/*
 * The attributes as a blob (repo/tree.h has its grammar), sorted by name, into out, which is reset;
 * out stays empty when there are none or the file system knows none.  0 or an errno.  The second
 * form is for what cannot be opened: name in the directory dir, links not followed.
 */
int bk_attrs_read(int fd, bk_buf_t *out);
int bk_attrs_read_at(int dir, const char *name, bk_buf_t *out);
/*
 * Make the attributes of fd those of the blob (empty: none).  fresh: the file is new, so nothing
 * has to be removed.  *refused counts those that the system did not take (no permission, not
 * supported there).
 */
bk_rc_t bk_attrs_write(int fd, bool fresh, const void *blob, size_t len, unsigned *refused,
                       bk_err_t *err);
bk_rc_t bk_attrs_write_at(int dir, const char *name, const void *blob, size_t len,
                          unsigned *refused, bk_err_t *err);

#endif
