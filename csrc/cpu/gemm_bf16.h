// The product of gemm.h with operands rounded to bfloat16. Rows of A are rounded a few at a time, into tiles of 32 k, in the
// layout that the matrix tiles of AMX have; where there is no AMX, vectors multiply the same tiles. Where a value is the sum of
// two (kParts), tiles of what rounding left follow those of rounded values, and three products make one: the fourth, of what
// was left of both, is below what a float32 sum keeps of the others.
#pragma once

#include "cpu/gemm_tiles.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

#ifndef FUSEDRNN_AMX
inline constexpr std::int64_t kTileRows = 16;
#endif
inline constexpr std::int64_t kTileDepth = 32, kTileWords = kTileDepth / 2;
inline constexpr std::int64_t kRoundedRows = 4 * kTileRows;
inline constexpr std::int64_t kRoundedTiles = 32;  // at a time: they stay in the L1 cache beside those of B

// The products that make up one, by the parts of A and of B that they take.
struct Parts {
    int a, b;
};
inline constexpr int kProducts = kParts == 1 ? 1 : 3;
inline constexpr Parts kPartsOf[] = {{0, 0}, {1, 0}, {0, 1}};

// Rows of A by the tiles of their k, of 16 rows by 16 words each: [k / 32][part][row].
struct RoundedRows {
    alignas(64) float words[kRoundedTiles * kTileRows * kTileWords];
    std::int64_t row_tiles;

    // How much of k there is room for.
    std::int64_t depth() const { return kRoundedTiles / (row_tiles * kParts); }
    std::int64_t part_words() const { return row_tiles * kTileRows * kTileWords; }
    std::int64_t tile_words() const { return kParts * part_words(); }
};

// The values [k, end) of rows [r, r + n) of A, zeros past the last; end <= depth(). Chunks before the last are whole
// vectors.
inline void round_rows(const GemmArgs<float>& p, std::int64_t r, std::int64_t n, std::int64_t k,
                       std::int64_t end, RoundedRows& out) {
    constexpr int L = Vec<float>::kLanes;
    if (k >= end) return;
    const std::int64_t chunk = p.chunk_len, first = k / chunk * p.chunk_stride, start = k % chunk;
    for (std::int64_t i = 0; i < n; ++i) {
        const float* from = p.a[r + i] + first;
        std::int64_t at = start, left = end - k;
        for (std::int64_t tile = 0; left > 0; ++tile, left -= kTileDepth) {
            const std::int64_t here = smaller(left, chunk - at);
            Vec<float> low, high;
            if (here >= kTileDepth) {
                low = Vec<float>::load(from + at);
                high = Vec<float>::load(from + at + L);
            } else {
                // The end of a row, or of a chunk whose next one goes on.
                low = load_part(from + at, here);
                high = here > L      ? load_part(from + at + L, here - L)
                       : left > here ? load_part(from + at + here - chunk + p.chunk_stride, left - here)
                                     : Vec<float>::set(0);
            }
            float* const to = out.words + tile * out.tile_words() + i * kTileWords;
            neighbours(low, high).store(to);
            for (int part = 1; part < kParts; ++part) {
                leave_rest(low, high);
                neighbours(low, high).store(to + part * out.part_words());
            }
            at += kTileDepth;
            for (; at >= chunk; at -= chunk) from += p.chunk_stride;
        }
    }
}

#ifdef FUSEDRNN_AMX

// Sums are in tiles 0 to 3, as many as hide how long a product takes: of 16 rows by four vectors of columns, 32 by two, and
// of 48 or 64 rows by one.
template <int kRowTiles>
inline constexpr int kTileColumns = kRowTiles > 2 ? 1 : 4 / kRowTiles;

struct TilePlaces {
    const float* init[4];  // null: from 0
    const float* b[4];
    float* out[4];
};

// For tiles 0 to 3 by row, then column: what `move` does to one, which instructions name by a number.
#define FUSEDRNN_EACH_SUM(move)                      \
    if constexpr (kRowTiles == 1) {                  \
        move(0, 0, 0);                               \
        move(1, 0, 1);                               \
        move(2, 0, 2);                               \
        move(3, 0, 3);                               \
    } else if constexpr (kRowTiles == 2) {           \
        move(0, 0, 0);                               \
        move(1, 0, 1);                               \
        move(2, 1, 0);                               \
        move(3, 1, 1);                               \
    } else {                                         \
        move(0, 0, 0);                               \
        move(1, 1, 0);                               \
        move(2, 2, 0);                               \
        if constexpr (kRowTiles == 4) move(3, 3, 0); \
    }
#define FUSEDRNN_LOAD_SUM(tile, row, column) \
    _tile_loadd(tile, at.init[column] + row * kTileRows * init_row, init_row * kBytes)
#define FUSEDRNN_STORE_SUM(tile, row, column) \
    _tile_stored(tile, at.out[column] + row * kTileRows * out_row, out_row * kBytes)

template <int kRowTiles>
FUSEDRNN_INLINE void multiply_tiles(const RoundedRows& a, std::int64_t tiles, const TilePlaces& at,
                                    std::int64_t init_row, std::int64_t out_row) {
    constexpr std::int64_t kBytes = sizeof(float), kTile = kTileRows * kTileWords;
    settle(a.words);
    if (at.init[0] == nullptr) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        FUSEDRNN_EACH_SUM(FUSEDRNN_LOAD_SUM)
    }
    for (std::int64_t k = 0; k < tiles; ++k) {
#pragma GCC unroll 3
        for (int product = 0; product < kProducts; ++product) {
            const Parts part = kPartsOf[product];
            const float* const rows = a.words + (k * kParts + part.a) * kRowTiles * kTile;
            const std::int64_t step = (k * kParts + part.b) * kTile;
            if constexpr (kRowTiles == 1) {
                _tile_loadd(4, rows, 64);
                _tile_loadd(5, at.b[0] + step, 64);
                _tile_dpbf16ps(0, 4, 5);
                _tile_loadd(6, at.b[1] + step, 64);
                _tile_dpbf16ps(1, 4, 6);
                _tile_loadd(7, at.b[2] + step, 64);
                _tile_dpbf16ps(2, 4, 7);
                _tile_loadd(5, at.b[3] + step, 64);
                _tile_dpbf16ps(3, 4, 5);
            } else if constexpr (kRowTiles == 2) {
                _tile_loadd(4, rows, 64);
                _tile_loadd(6, at.b[0] + step, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, at.b[1] + step, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, rows + kTile, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            } else {
                _tile_loadd(4, at.b[0] + step, 64);
                _tile_loadd(5, rows, 64);
                _tile_dpbf16ps(0, 5, 4);
                _tile_loadd(6, rows + kTile, 64);
                _tile_dpbf16ps(1, 6, 4);
                if constexpr (kRowTiles == 3) {
                    _tile_loadd(7, rows + 2 * kTile, 64);
                    _tile_dpbf16ps(2, 7, 4);
                } else {
                    _tile_loadd(5, rows + 2 * kTile, 64);
                    _tile_dpbf16ps(2, 5, 4);
                    _tile_loadd(7, rows + 3 * kTile, 64);
                    _tile_dpbf16ps(3, 7, 4);
                }
            }
        }
    }
    FUSEDRNN_EACH_SUM(FUSEDRNN_STORE_SUM)
}

#undef FUSEDRNN_STORE_SUM
#undef FUSEDRNN_LOAD_SUM
#undef FUSEDRNN_EACH_SUM

// All columns; one past the last is the last once more, and stored with the same values.
template <int G, int kRowTiles>
void tile_columns(const GemmArgs<float>& p, const RoundedRows& a, std::int64_t tiles) {
    constexpr int kColumns = kTileColumns<kRowTiles>;
    const std::int64_t count = p.panels * G;
    for (std::int64_t first = 0; first < count; first += kColumns) {
        TilePlaces at{};
        for (int i = 0; i < kColumns; ++i) {
            const std::int64_t column = smaller(first + i, count - 1), panel = column / G;
            const std::int64_t gate = column % G, place = gate * kTileRows;
            at.b[i] = p.b + panel * p.b_panel + gate * (p.b_panel / G);
            at.out[i] = p.out + panel * p.out_panel + place;
            if (p.init != nullptr) at.init[i] = p.init + panel * p.init_panel + place;
        }
        multiply_tiles<kRowTiles>(a, tiles, at, p.init_row, p.out_row);
    }
}

// For n rows: the last tile of sums and the last tile of A have what is left of them.
inline TileSizes sizes_for(std::int64_t n) {
    TileSizes sizes;
    for (int tile = 0; tile < 8; ++tile) sizes.set(tile, kTileRows);
    const std::int64_t row_tiles = (n + kTileRows - 1) / kTileRows, last = n - (row_tiles - 1) * kTileRows;
    if (row_tiles == 1) {
        for (int tile = 0; tile < 5; ++tile) sizes.set(tile, last);
    } else if (row_tiles == 2) {
        for (const int tile : {2, 3, 5}) sizes.set(tile, last);
    } else {
        sizes.set(row_tiles == 3 ? 2 : 3, last);
        sizes.set(7, last);
    }
    return sizes;
}

#endif

// One block of k.
template <int G>
void multiply_rounded(const GemmArgs<float>& p, const RoundedRows& a, std::int64_t tiles) {
#ifdef FUSEDRNN_AMX
    constexpr decltype(&tile_columns<G, 1>) kColumns[] = {tile_columns<G, 1>, tile_columns<G, 2>,
                                                          tile_columns<G, 3>, tile_columns<G, 4>};
    kColumns[a.row_tiles - 1](p, a, tiles);
#else
    static_assert(kParts == 1);
    GemmArgs<float> words = p;
    const float* rows[kRoundedRows];
    for (std::int64_t i = 0; i < p.n; ++i) rows[i] = a.words + i * kTileWords;
    words.a = rows;
    words.chunks = tiles;
    words.chunk_len = words.last_len = kTileWords;
    words.chunk_stride = a.tile_words();
    for (int g = 0; g < G; ++g) {
        gemm_tiles<float, 1>(words);
        words.b += p.b_panel / G;
        words.out += Vec<float>::kLanes;
        if (p.init != nullptr) words.init += Vec<float>::kLanes;
    }
#endif
}

template <int G>
void gemm_bf16(const GemmArgs<float>& p) {
    if (p.panels == 0) return;
    const std::int64_t k = p.depth();
    RoundedRows a;
    for (std::int64_t r = 0; r < p.n; r += kRoundedRows) {
        GemmArgs<float> block = p;
        block.n = smaller(kRoundedRows, p.n - r);
        block.out += r * p.out_row;
        if (p.init != nullptr) block.init += r * p.init_row;
        a.row_tiles = (block.n + kTileRows - 1) / kTileRows;
#ifdef FUSEDRNN_AMX
        const Tiles configured(sizes_for(block.n));
#endif
        std::int64_t first = 0;
        do {
            const std::int64_t end = smaller(first + a.depth() * kTileDepth, k);
            round_rows(p, r, block.n, first, end, a);
            multiply_rounded<G>(block, a, (end - first + kTileDepth - 1) / kTileDepth);
            block.b += a.depth() * kParts * kTileWords * Vec<float>::kLanes;
            block.init = block.out;
            block.init_panel = p.out_panel;
            block.init_row = p.out_row;
            first = end;
        } while (first < k);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
