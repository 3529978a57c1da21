// AVX-512 with matrix tiles of bfloat16 (AMX). See simd.h for the contract.
#pragma once

#include "simd/avx512bf16.h"

#define FUSEDRNN_AMX 1

namespace fusedrnn::FUSEDRNN_ISA {

// The tiles' sizes, as the instruction that sets them reads them. A tile of A or B has rows of 16 words, one of C of 16
// float32.
struct TileSizes {
    std::uint8_t palette = 1, start = 0;
    std::uint8_t reserved[14]{};
    std::uint16_t row_bytes[16]{};
    std::uint8_t rows[16]{};

    void set(int tile, std::int64_t count) {
        row_bytes[tile] = 64;
        rows[tile] = static_cast<std::uint8_t>(count);
    }
};
static_assert(sizeof(TileSizes) == 64);

// Tiles of these sizes while it lives.
class Tiles {
  public:
    explicit Tiles(const TileSizes& sizes) { _tile_loadconfig(&sizes); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
