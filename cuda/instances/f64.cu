#include "instances/instance.h"

FUSEDRNN_INSTANCE(f64)
