#include "instances/program_instance.h"

FUSEDRNN_PROGRAM_INSTANCE(f32, float, float)
