#include "instances/program_instance.h"

FUSEDRNN_PROGRAM_INSTANCE(bf16, bf16, float)
