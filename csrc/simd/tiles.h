// The matrix tiles of AMX: their sizes, and that they are in use. A tile of A has rows of 64 bytes; one of B four bytes of each
// of 16 columns in a row; one of C 16 float32 or int32.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kTileRows = 16;

// As the instruction that sets them reads them.
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

// What was stored there, and anywhere else, is in memory: compilers do not know all that the tiles' instructions read.
FUSEDRNN_INLINE void settle(const void* there) { asm volatile("" : : "r"(there) : "memory"); }

// Tiles of these sizes while it lives.
class Tiles {
  public:
    explicit Tiles(const TileSizes& sizes) {
        settle(&sizes);
        _tile_loadconfig(&sizes);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
