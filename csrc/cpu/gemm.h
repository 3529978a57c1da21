// The matrix product that every driver stands on: rows of A against panels of B.
//
// A panel holds L = kLanes output columns of G interleaved gates for all k: [K][G][L]. One call multiplies n rows by
// `panels` panels, and no result depends on how the work is split. On instruction sets for bfloat16 the panels hold pairs
// of rounded k instead, gate by gate, [G][K/2][L], and A is rounded on its way; sums are float32.
#pragma once

#include "cpu/gemm_tiles.h"
#ifdef FUSEDRNN_BF16
#include "cpu/gemm_bf16.h"
#endif

namespace fusedrnn::FUSEDRNN_ISA {

// Vectors in a panel, for each gate.
template <class T>
constexpr std::int64_t panel_depth(std::int64_t k) {
    return kBf16 ? (k + 31) / 32 * 16 : k;
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
