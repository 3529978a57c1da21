// The product of quantized.h in the matrix tiles of AMX: sums are exact, as in vectors, and so are the results the same.
#pragma once

#include "cpu/quantized.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The sums of up to 32 rows and two vectors of columns, or of 16 and four: tiles 0 to 3.
struct TileSums {
    alignas(64) std::int32_t of[4][kTileRows * kTileRows];
};

template <int kRowTiles>
FUSEDRNN_INLINE void multiply_bytes(const std::int8_t* x, std::int64_t x_row, std::int64_t tiles,
                                    const std::int8_t* const (&w)[4], std::int64_t w_row, TileSums& sums) {
    settle(x);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t k = 0; k < tiles; ++k) {
        const std::int8_t* const rows = x + k * 64;
        const std::int64_t step = k * kTileRows * w_row;
        if constexpr (kRowTiles == 1) {
            _tile_loadd(4, rows, x_row);
            _tile_loadd(5, w[0] + step, w_row);
            _tile_dpbssd(0, 4, 5);
            _tile_loadd(6, w[1] + step, w_row);
            _tile_dpbssd(1, 4, 6);
            _tile_loadd(7, w[2] + step, w_row);
            _tile_dpbssd(2, 4, 7);
            _tile_loadd(5, w[3] + step, w_row);
            _tile_dpbssd(3, 4, 5);
        } else {
            _tile_loadd(4, rows, x_row);
            _tile_loadd(6, w[0] + step, w_row);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, w[1] + step, w_row);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(5, rows + kTileRows * x_row, x_row);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums.of[0], 64);
    _tile_stored(1, sums.of[1], 64);
    _tile_stored(2, sums.of[2], 64);
    _tile_stored(3, sums.of[3], 64);
}

// For n rows: the last tile of sums and the last of A have what is left of them.
inline TileSizes byte_sizes_for(std::int64_t n) {
    TileSizes sizes;
    for (int tile = 0; tile < 8; ++tile) sizes.set(tile, kTileRows);
    if (n <= kTileRows) {
        for (int tile = 0; tile < 5; ++tile) sizes.set(tile, n);
    } else {
        for (const int tile : {2, 3, 5}) sizes.set(tile, n - kTileRows);
    }
    return sizes;
}

// The results of n rows from r on in one vector of columns, the i-th of the tiles' `columns`.
template <int G>
FUSEDRNN_INLINE void finish_column(const Product<Int8>& p, std::int64_t r, std::int64_t n,
                                   std::int64_t column, int columns, int i, const TileSums& sums) {
    constexpr std::int64_t L = Vec<float>::kLanes;
    const std::int64_t panel = column / G, gate = column % G * L;
    const float* const scale = p.w_scale + panel * G * L + gate;
    for (std::int64_t row = 0; row < n; ++row) {
        const std::int32_t* const sum =
            sums.of[columns == 2 ? row / kTileRows * 2 + i : i] + row % kTileRows * kTileRows;
        const float* const init =
            p.init == nullptr ? nullptr : p.init + panel * p.init_panel + (r + row) * p.init_row + gate;
        Int8::finish(VecI::load(sum), init, scale, p.x_scale[r + row])
            .store(p.out + panel * p.out_panel + (r + row) * p.out_row + gate);
    }
}

// Ends early once the team is cancelled.
template <int G>
void multiply_in_tiles(const Product<Int8>& p, Team& team) {
    constexpr std::int64_t L = Vec<float>::kLanes, kRow = G * L * Int8::kGroup;
    static_assert(L == kTileRows);
    const std::int64_t tiles = p.groups / kTileRows, w_panel = p.groups * kRow, count = p.panels * G;
    // All rows against some columns before the next ones: the weights come from far away once.
    constexpr std::int64_t kColumnsAtOnce = 32;
    TileSums sums;
    for (std::int64_t first = 0; first < count; first += kColumnsAtOnce) {
        const std::int64_t end = smaller(first + kColumnsAtOnce, count);
        for (std::int64_t r = 0; r < p.n; r += 2 * kTileRows) {
            const std::int64_t n = smaller(2 * kTileRows, p.n - r);
            const int columns = n > kTileRows ? 2 : 4;
            const std::int8_t* const x = p.x + r * p.x_row + Int8::signed_part(p.x_row);
            const Tiles configured(byte_sizes_for(n));
            for (std::int64_t c = first; c < end; c += columns) {
                if (team.cancelled(0, n * columns * L * p.groups)) return;
                const std::int8_t* w[4]{};
                for (int i = 0; i < columns; ++i) {
                    const std::int64_t column = smaller(c + i, end - 1);
                    w[i] = p.w + column / G * w_panel + column % G * L * Int8::kGroup;
                }
                if (columns == 2) {
                    multiply_bytes<2>(x, p.x_row, tiles, w, kRow, sums);
                } else {
                    multiply_bytes<1>(x, p.x_row, tiles, w, kRow, sums);
                }
                for (int i = 0; i < columns && c + i < end; ++i)
                    finish_column<G>(p, r, n, c + i, columns, i, sums);
            }
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
