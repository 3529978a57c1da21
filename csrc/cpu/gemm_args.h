// The operands of a product: gemm.h.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Weights beyond the L2 cache that the next product reads: with each k of this one so many of their bytes, a cache line at most,
// come into it.
struct Ahead {
    const char* next;
    std::int64_t bytes;  // 0: nothing
};

template <class T>
struct GemmArgs {
    const T* const* a;  // n rows. Element k of a row: k = c * chunk_len + j is at a[c * chunk_stride + j]
    std::int64_t n;
    std::int64_t chunks, chunk_len, chunk_stride;
    std::int64_t last_len;  // of the last chunk, as long as the others or shorter
    const T* b;             // panel u at b + u * b_panel
    std::int64_t b_panel;
    std::int64_t panels;
    std::int64_t columns;  // that the panels have; what is past them is padding, whose result is 0
    std::int64_t
        last;  // of more gates than one: vectors of the last panel, as many as the others have or fewer
    const T*
        init;  // accumulators of row r, panel u start from init + u * init_panel + r * init_row; null: from 0
    std::int64_t init_panel, init_row;
    T* out;  // and end at out + u * out_panel + r * out_row
    std::int64_t out_panel, out_row;
    Ahead* ahead;  // or null

    std::int64_t depth() const { return (chunks - 1) * chunk_len + last_len; }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
