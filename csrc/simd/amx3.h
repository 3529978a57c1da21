// AMX, each float32 the sum of two bfloat16 (compute "bf16x3"). See simd.h for the contract.
#pragma once

#include "simd/amx.h"

#define FUSEDRNN_BF16_PARTS 2
