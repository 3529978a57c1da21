#include "instances/instance.h"

FUSEDRNN_INSTANCE(bf16)
