#include "instances/instance.h"

FUSEDRNN_INSTANCE(tf32x3)
