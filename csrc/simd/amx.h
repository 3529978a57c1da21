// AVX-512 with matrix tiles of bfloat16 (AMX). See simd.h for the contract.
#pragma once

#include "simd/avx512bf16.h"
#include "simd/tiles.h"

#define FUSEDRNN_AMX 1
