/*
 * t/unit/helper/fidelity_helped_test.c: what fidelity_test.c asks of a restore, with every name placed through the helper.
 */
#include "unit/helper/helped.h"

#include "unit/files/fidelity_test.c"
