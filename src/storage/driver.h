/*
 * storage/driver.h: the drivers of this build, for registry.c alone, and what it offers to them.
 */
#ifndef BK_STORAGE_DRIVER_H
#define BK_STORAGE_DRIVER_H

#include "storage/storage.h"

extern const bk_storage_driver_t bk_storage_local;

/*
 * Whether a driver may meet this name: letters, digits and . _ - in components of 1 to 200 bytes,
 * none of them starting with '.' (temporaries, "..").  prefix: also "", and the last component may
 * be empty.
 */
bool bk_storage_name_valid(const char *name, bool prefix);

#endif
