#include "instances/program_instance.h"

FUSEDRNN_PROGRAM_INSTANCE(ieee, float, float)
