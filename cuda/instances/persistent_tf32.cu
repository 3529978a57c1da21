#include "instances/persistent_instance.h"

FUSEDRNN_PERSISTENT_INSTANCE(tf32)
