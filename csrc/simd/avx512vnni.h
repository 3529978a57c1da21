// AVX-512 with sums of products of bytes (AVX512_VNNI). See simd.h for the contract.
#pragma once

#define FUSEDRNN_VNNI 1

#include "simd/avx512.h"
