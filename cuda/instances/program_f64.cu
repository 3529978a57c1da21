#include "instances/program_instance.h"

FUSEDRNN_PROGRAM_INSTANCE(f64, double, double)
