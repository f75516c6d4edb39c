/*
 * storage/driver.h: the drivers of this build, for registry.c alone.
 */
#ifndef BK_STORAGE_DRIVER_H
#define BK_STORAGE_DRIVER_H

#include "storage/storage.h"

extern const bk_storage_driver_t bk_storage_local;

#endif
