/*
 * engine/covered.h: until when a database's transactions are known to be captured: what was
 * committed before is durable in base_dir.  One small record in the directory of its segments,
 * written by the process that captures with every look at the database; any process reads it.
 */
#ifndef BK_ENGINE_COVERED_H
#define BK_ENGINE_COVERED_H

#include "sqlite/capture.h"

/* Best effort, and not flushed: an older record is the safe direction.  *fd: -1 at first, then open
 * for the next time; the caller's to close. */
void bk_covered_write(const char *dir, const bk_capture_known_t *known, int *fd);
/* False, with all zeros: there is none that is whole. */
bool bk_covered_read(const char *dir, bk_capture_known_t *known);

#endif
