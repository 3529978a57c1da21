#include "instances/instance.h"

FUSEDRNN_INSTANCE(fp16)
