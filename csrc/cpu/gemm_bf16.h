// The product of gemm.h with operands rounded to bfloat16. Rows of A are rounded a few at a time, into tiles of 32 k, in the
// layout that the matrix tiles of AMX have; where there is no AMX, vectors multiply the same tiles.
#pragma once

#include "cpu/gemm_tiles.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kTileRows = 16, kTileDepth = 32, kTileWords = kTileDepth / 2;
inline constexpr std::int64_t kRoundedRows = 2 * kTileRows;
inline constexpr std::int64_t kRoundedTiles =
    16;  // of each row at a time: with all rows they stay in the L1 cache

// Rows of A by the tiles of their k.
struct RoundedRows {
    alignas(64) float words[kRoundedTiles][kRoundedRows][kTileWords];
};

// The values [k, end) of rows [r, r + n) of A, zeros past the last; end <= chunks * chunk_len. Chunks, if there are several,
// are whole vectors.
inline void round_rows(const GemmArgs<float>& p, std::int64_t r, std::int64_t n, std::int64_t k,
                       std::int64_t end, RoundedRows& out) {
    constexpr int L = Vec<float>::kLanes;
    for (std::int64_t i = 0; i < n && k < end; ++i) {
        const float* from = p.a[r + i] + k / p.chunk_len * p.chunk_stride;
        std::int64_t at = k % p.chunk_len;
        std::int64_t left = end - k;
        const auto next = [&] {
            if (left <= 0) return Vec<float>::set(0);
            const Vec<float> v = load_part(from + at, smaller(left, p.chunk_len - at));
            left -= L;
            at += L;
            if (at == p.chunk_len) {
                at = 0;
                from += p.chunk_stride;
            }
            return v;
        };
        for (std::int64_t tile = 0; left > 0; ++tile) {
            const Vec<float> first = next();
            neighbours(first, next()).store(out.words[tile][i]);
        }
    }
}

#ifdef FUSEDRNN_AMX

// The tiles that hold sums, rows of A and columns of B.
enum Tile : int { kSums, kRowsOfA = 4, kColumnsOfB = 6 };

// `kTwice` rows of tiles, with two columns of tiles, or four columns where there is one row: four chains of sums in any case,
// as many as hide how long a product takes.
template <int G, bool kTwice>
void tile_columns(const GemmArgs<float>& p, const RoundedRows& a, std::int64_t tiles, const float* b,
                  const float* init, float* out) {
    constexpr std::int64_t kBytes = sizeof(float), L = kTileRows;
    constexpr int kColumns = kTwice ? 2 : 4;
    const std::int64_t count = p.panels * G;
    const std::int64_t init_row = p.init_row * kBytes, out_row = p.out_row * kBytes;
    const std::int64_t init_below = kTileRows * p.init_row, out_below = kTileRows * p.out_row;
    const auto places = [](const auto* from, std::int64_t panel, std::int64_t column, std::int64_t last) {
        column = smaller(column, last);
        return from + column / G * panel + column % G * L;
    };
    for (std::int64_t c = 0; c < count; c += kColumns) {
        const float* columns[4];
        const float* starts[4];
        float* ends[4];
        const std::int64_t last = count - 1;
        for (int i = 0; i < kColumns; ++i) {
            columns[i] = places(b, p.b_panel, c + i, last);
            if (init != nullptr) starts[i] = places(init, p.init_panel, c + i, last);
            ends[i] = out + (places(out, p.out_panel, c + i, last) - out);
        }
        if (init == nullptr) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        } else if constexpr (kTwice) {
            _tile_loadd(0, starts[0], init_row);
            _tile_loadd(1, starts[1], init_row);
            _tile_loadd(2, starts[0] + init_below, init_row);
            _tile_loadd(3, starts[1] + init_below, init_row);
        } else {
            _tile_loadd(0, starts[0], init_row);
            _tile_loadd(1, starts[1], init_row);
            _tile_loadd(2, starts[2], init_row);
            _tile_loadd(3, starts[3], init_row);
        }
        constexpr std::int64_t kRow = G * L * kBytes, kStep = kTileWords * G * L;
        for (std::int64_t k = 0; k < tiles; ++k) {
            if constexpr (kTwice) {
                _tile_loadd(4, a.words[k][0], 64);
                _tile_loadd(6, columns[0] + k * kStep, kRow);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, columns[1] + k * kStep, kRow);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a.words[k][kTileRows], 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            } else {
                _tile_loadd(4, a.words[k][0], 64);
                _tile_loadd(6, columns[0] + k * kStep, kRow);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, columns[1] + k * kStep, kRow);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(6, columns[2] + k * kStep, kRow);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(7, columns[3] + k * kStep, kRow);
                _tile_dpbf16ps(3, 4, 7);
            }
        }
        // A column past the last is the last once more, and stored with the same values.
        if constexpr (kTwice) {
            _tile_stored(0, ends[0], out_row);
            _tile_stored(1, ends[1], out_row);
            _tile_stored(2, ends[0] + out_below, out_row);
            _tile_stored(3, ends[1] + out_below, out_row);
        } else {
            _tile_stored(0, ends[0], out_row);
            _tile_stored(1, ends[1], out_row);
            _tile_stored(2, ends[2], out_row);
            _tile_stored(3, ends[3], out_row);
        }
    }
}

inline TileSizes sizes_for(std::int64_t rows) {
    TileSizes sizes;
    const std::int64_t above = smaller(rows, kTileRows), below = larger(rows - kTileRows, 0);
    const bool twice = below > 0;
    sizes.set(0, above);
    sizes.set(1, above);
    sizes.set(2, twice ? below : above);
    sizes.set(3, twice ? below : above);
    sizes.set(4, above);
    sizes.set(5, twice ? below : above);
    sizes.set(6, kTileRows);
    sizes.set(7, kTileRows);
    return sizes;
}

#endif

// One block of k of up to kRoundedRows rows from r on.
template <int G>
void multiply_rounded(const GemmArgs<float>& p, const RoundedRows& a, std::int64_t r, std::int64_t n,
                      std::int64_t first_tile, std::int64_t tiles) {
    const float* const b = p.b + first_tile * kTileWords * G * Vec<float>::kLanes;
    float* const out = p.out + r * p.out_row;
    const float* init = p.init == nullptr ? nullptr : p.init + r * p.init_row;
    GemmArgs<float> block = p;
    if (first_tile > 0) {
        init = out;
        block.init_panel = p.out_panel;
        block.init_row = p.out_row;
    }
#ifdef FUSEDRNN_AMX
    if (n > kTileRows) {
        tile_columns<G, true>(block, a, tiles, b, init, out);
    } else {
        tile_columns<G, false>(block, a, tiles, b, init, out);
    }
#else
    const float* rows[kRoundedRows];
    for (std::int64_t i = 0; i < n; ++i) rows[i] = a.words[0][i];
    block.a = rows;
    block.n = n;
    block.chunks = tiles;
    block.chunk_len = kTileWords;
    block.chunk_stride = kRoundedRows * kTileWords;
    block.b = b;
    block.init = init;
    block.out = out;
    gemm_tiles<float, G>(block);
#endif
}

template <int G>
void gemm_bf16(const GemmArgs<float>& p) {
    const std::int64_t k = p.chunks * p.chunk_len, tiles = (k + kTileDepth - 1) / kTileDepth;
    RoundedRows a;
    for (std::int64_t r = 0; r < p.n && p.panels > 0; r += kRoundedRows) {
        const std::int64_t n = smaller(kRoundedRows, p.n - r);
#ifdef FUSEDRNN_AMX
        const Tiles configured(sizes_for(n));
#endif
        for (std::int64_t tile = 0; tile == 0 || tile < tiles; tile += kRoundedTiles) {
            const std::int64_t count = smaller(kRoundedTiles, tiles - tile);
            round_rows(p, r, n, tile * kTileDepth, smaller((tile + count) * kTileDepth, k), a);
            multiply_rounded<G>(p, a, r, n, tile, count);
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
