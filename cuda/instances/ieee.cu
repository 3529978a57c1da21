#include "instances/instance.h"

FUSEDRNN_INSTANCE(ieee)
