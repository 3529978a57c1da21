// AVX-512 with matrix tiles of bytes (AMX), and sums of their products in vectors. See simd.h for the contract.
#pragma once

#include "simd/avx512vnni.h"
#include "simd/tiles.h"

#define FUSEDRNN_AMX_INT8 1
