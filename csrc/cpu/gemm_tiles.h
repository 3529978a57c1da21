// The product of gemm.h in vector registers: each output is one chain of fused multiply-adds in the order of k, whatever
// the tile. Where a word of A or B is a pair of bfloat16 (Operand in simd.h), k counts the pairs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/gemm_args.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Vector accumulators of a tile: what the register file holds beside the operands.
inline constexpr int kAccumulators = kRegisters == 32 ? 24 : 12;

// Panels much larger than this leave the L1 cache between two row tiles; K is then cut into blocks. Tiles of 32 registers
// take so few bytes for each multiplication that the L2 cache can feed them.
inline constexpr std::int64_t kPanelBlockBytes = (kRegisters == 32 ? 96 : 20) * 1024;

// What the L2 cache surely holds.
inline constexpr std::int64_t kNearBytes = 512 * 1024;

template <class T>
using MicroKernel = void (*)(const GemmArgs<T>&, const T* const* a, std::int64_t a_offset);

// R rows times U panels of G vectors of `Lanes` lanes and one of `Last` vectors, all accumulators in registers. Every index into
// `acc` is a constant after unrolling: one that is not would put the array on the stack. One that looks ahead asks for a cache
// line with each k: in others even a line that is here costs a small product 2 to 3% of its time.
template <class T, int R, int U, int G, int Lanes, int Last = 0, bool LooksAhead = false>
void micro_kernel(const GemmArgs<T>& p, const T* const* a, std::int64_t a_offset) {
    using V = std::conditional_t<Lanes == Vec<T>::kLanes, Vec<T>, Narrow<T>>;
    using W = Operand<V>;
    constexpr int L = Vec<T>::kLanes, kWhole = U * G, N = kWhole + Last;
    V acc[R][N];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) {
            acc[r][n] = p.init == nullptr
                            ? V::set(0)
                            : V::load(p.init + (n / G) * p.init_panel + r * p.init_row + (n % G) * L);
        }
    }
    const T* row[R];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) row[r] = a[r] + a_offset;
    // A pointer for every three panels: they reach the other two by an index, and all fit in registers.
    constexpr int kGroups = (U + 2) / 3;
    const T* b[kGroups];
    const std::int64_t b_panel = p.b_panel;
#pragma GCC unroll 32
    for (int i = 0; i < kGroups; ++i) b[i] = p.b + 3 * i * b_panel;
    const T* last = p.b + U * b_panel;
    const auto weights = [&](int n) __attribute__((always_inline)) {
        return W::load(n < kWhole ? b[n / G / 3] + n / G % 3 * b_panel + (n % G) * L
                                  : last + (n - kWhole) * L);
    };
    // Chunks of an A that the L2 cache does not hold are too far apart for the hardware to foresee the next.
    const bool far = p.chunks * p.chunk_stride * static_cast<std::int64_t>(sizeof(T)) > kNearBytes;
    const char* next = LooksAhead ? p.ahead->next : nullptr;
    const std::int64_t next_bytes = LooksAhead ? p.ahead->bytes : 0;
    for (std::int64_t c = 0; c < p.chunks; ++c) {
        if (far && c + 1 < p.chunks) {
            for (int r = 0; r < R; ++r) prefetch(row[r] + p.chunk_stride, p.chunk_len);
        }
        const std::int64_t depth = c + 1 < p.chunks ? p.chunk_len : p.last_len;
        for (std::int64_t k = 0; k < depth; ++k) {
            if constexpr (LooksAhead) {
                __builtin_prefetch(next, 0, 2);
                next += next_bytes;
            }
            if constexpr (R <= N) {
                W x[R];
#pragma GCC unroll 32
                for (int r = 0; r < R; ++r) {
                    x[r] = W::set(row[r][k]);
                    keep_in_register(x[r]);
                }
#pragma GCC unroll 32
                for (int n = 0; n < N; ++n) {
                    W w = weights(n);
                    keep_in_register(w);
#pragma GCC unroll 32
                    for (int r = 0; r < R; ++r) acc[r][n] = fma(x[r], w, acc[r][n]);
                }
            } else {
                W w[N];
#pragma GCC unroll 32
                for (int n = 0; n < N; ++n) {
                    w[n] = weights(n);
                    keep_in_register(w[n]);
                }
#pragma GCC unroll 32
                for (int r = 0; r < R; ++r) {
                    W x = W::set(row[r][k]);
                    keep_in_register(x);
#pragma GCC unroll 32
                    for (int n = 0; n < N; ++n) acc[r][n] = fma(x, w[n], acc[r][n]);
                }
            }
#pragma GCC unroll 32
            for (int i = 0; i < kGroups; ++i) b[i] += G * L;
            if constexpr (Last > 0) last += Last * L;
        }
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) row[r] += p.chunk_stride;
    }
    if constexpr (LooksAhead) p.ahead->next = next;
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) {
            acc[r][n].store(p.out + (n / G) * p.out_panel + r * p.out_row + (n % G) * L);
        }
    }
}

// Rows of the largest tile, whose pointers have to be in registers, and the most panels that a tile of R rows takes at once.
// Where a vector is a cache line, the L2 cache feeds four panels faster than eight, and four chains are enough; shorter
// vectors need more of them.
inline constexpr int kMostPanels = Vec<float>::kLanes == 16 ? 4 : 8;
template <int G>
constexpr int tile_rows() {
    constexpr int kMost = kRegisters == 32 ? 8 : 6;
    return kAccumulators / G < kMost ? kAccumulators / G : kMost;
}
template <int G>
constexpr int tile_panels(int rows) {
    const int fit = kAccumulators / (rows * G);
    return fit < 1 ? 1 : (fit > kMostPanels ? kMostPanels : fit);
}

// With fewer accumulators than this a tile waits for itself.
inline constexpr int kLeastAccumulators = 8;
// Whether so many rows multiply a last panel of fewer vectors beside the panels before it: alone it would wait for itself.
template <int G>
constexpr bool joins_last(std::int64_t rows, std::int64_t last) {
    return rows * last < kLeastAccumulators && tile_panels<G>(static_cast<int>(rows)) > 1;
}

// Every tile, by its rows and panels.
template <class T, int G>
class MicroKernels {
  public:
    constexpr MicroKernels() { fill<1, 1>(); }
    MicroKernel<T> operator()(std::int64_t rows, std::int64_t panels) const {
        return kernels_[rows - 1][panels - 1];
    }
    // Of so many panels the last has so many vectors.
    MicroKernel<T> joined(std::int64_t rows, std::int64_t panels, std::int64_t last) const {
        return joined_[rows - 1][panels - 1][last];
    }
    // For so many rows of one panel, or null: tiles of fewer rows have more to load for each k.
    MicroKernel<T> looking_ahead(std::int64_t rows) const { return looking_ahead_[rows - 1]; }
    // For a panel half of which, at least, is padding.
    MicroKernel<T> narrow(std::int64_t rows) const { return narrow_[rows - 1]; }

  private:
    template <int R, int U>
    constexpr void fill() {
        kernels_[R - 1][U - 1] = micro_kernel<T, R, U, G, Vec<T>::kLanes>;
        if constexpr (U == 1 && G == 1) narrow_[R - 1] = micro_kernel<T, R, 1, G, Narrow<T>::kLanes>;
        if constexpr (U > 1) join<R, U, 1>();
        if constexpr (U == 1 && tile_panels<G>(R) == 1 && 2 * R > tile_rows<G>())
            looking_ahead_[R - 1] = micro_kernel<T, R, 1, G, Vec<T>::kLanes, 0, true>;
        if constexpr (U < tile_panels<G>(R)) {
            fill<R, U + 1>();
        } else if constexpr (R < tile_rows<G>()) {
            fill<R + 1, 1>();
        }
    }
    template <int R, int U, int Last>
    constexpr void join() {
        if constexpr (Last < G && joins_last<G>(R, Last)) {
            joined_[R - 1][U - 1][Last] = micro_kernel<T, R, U - 1, G, Vec<T>::kLanes, Last>;
            join<R, U, Last + 1>();
        }
    }
    MicroKernel<T> kernels_[tile_rows<G>()][kMostPanels]{};
    MicroKernel<T> joined_[tile_rows<G>()][kMostPanels][G]{};
    MicroKernel<T> looking_ahead_[tile_rows<G>()]{};
    MicroKernel<T> narrow_[tile_rows<G>()]{};
};

// One block of k: row tiles and groups of panels as equal as they can be.
template <class T, int G>
void gemm_block(const GemmArgs<T>& p, std::int64_t a_offset) {
    static constexpr MicroKernels<T, G> kernels;
    constexpr int kRows = tile_rows<G>(), L = Vec<T>::kLanes, kNarrow = Narrow<T>::kLanes;
    const std::int64_t tiles = (p.n + kRows - 1) / kRows;
    const bool narrow = G == 1 && kNarrow < L && p.columns <= (p.panels - 1) * L + kNarrow &&
                        p.n / tiles * G >= kLeastAccumulators;
    const std::int64_t whole = p.panels - (narrow ? 1 : 0);
    const std::int64_t wide = tile_panels<G>(static_cast<int>((p.n + tiles - 1) / tiles));
    const std::int64_t groups = (whole + wide - 1) / wide;
    for (std::int64_t u = 0, group = 0; u < p.panels; ++group) {
        const std::int64_t panels = group < groups ? (whole - u) / (groups - group) : 1;
        const bool joined = G > 1 && p.last < G && u + panels == p.panels;
        std::int64_t r = 0;
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            const std::int64_t rows = (p.n - r) / (tiles - tile);
            GemmArgs<T> part = p;
            part.b += u * p.b_panel;
            if (part.init != nullptr) part.init += u * p.init_panel + r * p.init_row;
            part.out += u * p.out_panel + r * p.out_row;
            MicroKernel<T> kernel = group >= groups ? kernels.narrow(rows)
                                    : joined        ? kernels.joined(rows, panels, p.last)
                                                    : kernels(rows, panels);
            if (p.ahead != nullptr && p.ahead->bytes > 0 && !joined && kernels.looking_ahead(rows) != nullptr)
                kernel = kernels.looking_ahead(rows);
            kernel(part, p.a + r, a_offset);
            r += rows;
        }
        u += panels;
    }
}

template <class T, int G>
void gemm_tiles(const GemmArgs<T>& p);

// The last panel, which has fewer vectors than the others: that of a product of as many gates as it has vectors.
template <class T, int G>
void gemm_last(const GemmArgs<T>& p) {
    if constexpr (G > 0) {
        if (p.last == G) {
            gemm_tiles<T, G>(p);
        } else {
            gemm_last<T, G - 1>(p);
        }
    }
}

// out = init + A B for n rows and all panels.
template <class T, int G>
void gemm_tiles(const GemmArgs<T>& p) {
    constexpr int L = Vec<T>::kLanes;
    if (p.n == 0 || p.panels == 0) return;
    const std::int64_t rows = p.n < tile_rows<G>() ? p.n : tile_rows<G>();
    if (G > 1 && p.last < G && (p.panels == 1 || !joins_last<G>(rows, p.last))) {
        const std::int64_t before = p.panels - 1;
        GemmArgs<T> part = p;
        part.panels = before;
        part.last = G;
        gemm_tiles<T, G>(part);
        part.panels = 1;
        part.columns = L;
        part.last = p.last;
        part.b += before * p.b_panel;
        if (part.init != nullptr) part.init += before * p.init_panel;
        part.out += before * p.out_panel;
        gemm_last<T, G - 1>(part);
        return;
    }
    const std::int64_t group = tile_panels<G>(static_cast<int>(rows));
    const std::int64_t k_bytes = group * G * L * static_cast<std::int64_t>(sizeof(T));
    if (p.n <= tile_rows<G>() || p.depth() * k_bytes <= kPanelBlockBytes * 3 / 2) {
        gemm_block<T, G>(p, 0);
        return;
    }
    // Whole chunks where A is chunked, elements where it is not.
    const bool chunked = p.chunks > 1;
    const std::int64_t unit = chunked ? p.chunk_len : 1;
    const std::int64_t units = chunked ? p.chunks : p.chunk_len;
    const std::int64_t most =
        kPanelBlockBytes / (unit * k_bytes) > 0 ? kPanelBlockBytes / (unit * k_bytes) : 1;
    const std::int64_t blocks = (units + most - 1) / most;
    for (std::int64_t u = 0; u < p.panels; u += group) {
        std::int64_t first = 0;
        for (std::int64_t block = 0; block < blocks; ++block) {
            const std::int64_t count = (units - first) / (blocks - block);
            GemmArgs<T> part = p;
            part.panels = u + group <= p.panels ? group : p.panels - u;
            part.columns = p.columns - u * L;
            part.b = p.b + u * p.b_panel + first * unit * G * L;
            part.out = p.out + u * p.out_panel;
            if (block == 0) {
                if (part.init != nullptr) part.init += u * p.init_panel;
            } else {
                part.init = part.out;
                part.init_row = p.out_row;
                part.init_panel = p.out_panel;
            }
            if (chunked) {
                part.chunks = count;
                part.last_len = block + 1 < blocks ? p.chunk_len : p.last_len;
            } else {
                part.chunk_len = part.last_len = count;
            }
            gemm_block<T, G>(part, chunked ? first * p.chunk_stride : first);
            first += count;
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
