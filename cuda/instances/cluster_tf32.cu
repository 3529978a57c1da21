#include "cluster_instance.h"

FUSEDRNN_CLUSTER_INSTANCE(tf32)
