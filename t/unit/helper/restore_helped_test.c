/*
 * t/unit/helper/restore_helped_test.c: what restore_test.c asks of a restore, with every name placed through the helper.
 */
#include "unit/helper/helped.h"

#include "unit/files/restore_test.c"
