/*
 * helper/attributes.h: extended attributes and access control lists of a file as the blob that
 * backups hold (repo/tree.h has its grammar), out and in; what files/attrs.h is for a process with
 * rights of its own.
 */
#ifndef BK_HELPER_ATTRIBUTES_H
#define BK_HELPER_ATTRIBUTES_H

#include <stdbool.h>

#include "base/buf.h"

/* fd: an O_PATH descriptor, also of a link.  out is reset; empty when there are none.  0 or an
 * errno. */
int bk_attributes_read(int fd, bk_buf_t *out);
/*
 * Make the attributes those of the blob.  fresh: nothing has to be removed.  capabilities: whether
 * security.capability may be set; *withheld says that one was left out.  *refused counts those that
 * the file system did not take.  EINVAL: the blob is damaged, and nothing was changed.
 */
int bk_attributes_write(int fd, bool fresh, bool capabilities, const void *blob, size_t len,
                        unsigned *refused, bool *withheld);

#endif
