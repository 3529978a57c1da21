// The matrix product that every driver stands on: rows of A against panels of B.
//
// A panel holds L = kLanes output columns of G interleaved gates for all k: [K][G][L]. One call multiplies n rows by
// `panels` panels, and no result depends on how the work is split. On instruction sets for bfloat16 the panels hold pairs
// of rounded k instead, gate by gate, [G][K/2][L], or where each value is two of them (kParts) [G][K/32][2][16][L], and A is
// rounded on its way; sums are float32.
#pragma once

#include "cpu/gemm_tiles.h"
#include "cpu/partition.h"
#ifdef FUSEDRNN_BF16
#include "cpu/gemm_bf16.h"
#endif

namespace fusedrnn::FUSEDRNN_ISA {

// Vectors in a panel, for each gate.
template <class T>
constexpr std::int64_t panel_depth(std::int64_t k) {
    return kBf16 ? (k + 31) / 32 * 16 * kParts : k;
}

// Vectors that so many units of several gates take in a panel, and how far apart its gates are. In the last panel, where units
// do not fill a vector, gates stand side by side if that saves one: columns of padding are multiplied like any other.
template <class T>
constexpr std::int64_t panel_vectors(std::int64_t gates, std::int64_t units) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    return kBf16 || units >= L ? gates : (gates * units + L - 1) / L;
}
template <class T>
constexpr std::int64_t gate_distance(std::int64_t gates, std::int64_t units) {
    return panel_vectors<T>(gates, units) < gates ? units : Vec<T>::kLanes;
}

// Rows of k elements each.
template <class T>
FUSEDRNN_INLINE GemmArgs<T> plain_rows(const T* const* rows, std::int64_t n, std::int64_t k) {
    GemmArgs<T> args{};
    args.a = rows;
    args.n = n;
    args.chunks = 1;
    args.chunk_len = args.last_len = k;
    return args;
}
// Rows whose elements lie in panels of `width` values, the last of which may have fewer, `panel` apart.
template <class T>
FUSEDRNN_INLINE GemmArgs<T> paneled_rows(const T* const* rows, std::int64_t n, std::int64_t panels,
                                         std::int64_t width, std::int64_t panel, std::int64_t last_width) {
    GemmArgs<T> args{};
    args.a = rows;
    args.n = n;
    args.chunks = panels;
    args.chunk_len = panels > 1 ? width : last_width;
    args.chunk_stride = panel;
    args.last_len = last_width;
    return args;
}
template <class T>
FUSEDRNN_INLINE GemmArgs<T> paneled_rows(const T* const* rows, std::int64_t n, std::int64_t panels,
                                         std::int64_t width, std::int64_t panel) {
    return paneled_rows<T>(rows, n, panels, width, panel, width);
}

// Panels of B, which has so many columns, or so many for each of the gates that its panels interleave.
template <class T>
FUSEDRNN_INLINE void take_panels(GemmArgs<T>& args, const T* b, Range panels, std::int64_t columns,
                                 std::int64_t gates = 1) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    args.b_panel = panel_depth<T>(args.depth()) * gates * L;
    args.b = b + panels.begin * args.b_panel;
    args.panels = panels.end - panels.begin;
    args.columns = columns - panels.begin * L;
    args.last = panel_vectors<T>(gates, args.columns - (args.panels - 1) * L);
}

// Panels that one call should take for n rows: several where the rows alone cannot fill the registers, or for a rounded A to
// serve.
template <int G>
constexpr std::int64_t panels_at_once(std::int64_t rows) {
    if (kBf16) return (rows > 32 ? 16 : 32) / G;
    return tile_panels<G>(static_cast<int>(rows < 1 ? 1 : (rows < tile_rows<G>() ? rows : tile_rows<G>())));
}
template <int G>
constexpr std::int64_t most_panels_at_once() {
    return kBf16 ? panels_at_once<G>(1) : tile_panels<G>(1);
}

// Weights larger than this come from far away; of so many rows a product takes as long as their way.
inline constexpr std::int64_t kAheadBytes = 3 << 19, kAheadRows = 16;
inline bool come_from_far(std::int64_t bytes, std::int64_t rows) {
    return !kBf16 && rows >= kAheadRows && bytes > kAheadBytes;
}

// `panels` of B, of G gates and so many k, to come while n rows are multiplied by other ones.
template <int G, class T>
FUSEDRNN_INLINE Ahead bring(const T* b, Range panels, std::int64_t k, std::int64_t n) {
    constexpr std::int64_t kVectors = G * Vec<T>::kLanes, kLine = 64;
    const std::int64_t tiles = (n + tile_rows<G>() - 1) / tile_rows<G>();
    const std::int64_t bytes = (panels.end - panels.begin) * kVectors * std::int64_t{sizeof(T)};
    return {reinterpret_cast<const char*>(b + panels.begin * k * kVectors),
            smaller(kLine, (bytes + tiles - 1) / tiles)};
}

// out = init + A B for n rows and all panels.
template <class T, int G>
void gemm(const GemmArgs<T>& p) {
#ifdef FUSEDRNN_BF16
    gemm_bf16<G>(p);
#else
    gemm_tiles<T, G>(p);
#endif
}

}  // namespace fusedrnn::FUSEDRNN_ISA
