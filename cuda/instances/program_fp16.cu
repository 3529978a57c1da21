#include "instances/program_instance.h"

FUSEDRNN_PROGRAM_INSTANCE(fp16, fp16, float)
