// Layer normalisation, cross-entropy and the optimisers, by the rows and elements of csrc/layers: the threads of a block
// share a row.
//
// An element is read and written by one thread; what threads tell each other goes through shared memory.
#pragma once

#include "kernels/block_sums.h"
#include "kernels/op_arguments.h"
#include "layers/cross_entropy.h"
#include "layers/layer_norm.h"
#include "layers/optimiser.h"

namespace fusedrnn::cuda {

// The same lane of all warps of a block.
struct BlockWarps {
    static FUSEDRNN_DEVICE std::int64_t index() { return warp(); }
    static FUSEDRNN_DEVICE std::int64_t count() { return block_threads() / 32; }
    static FUSEDRNN_DEVICE bool owns(std::int64_t i) { return i % count() == index(); }
    template <class T>
    static FUSEDRNN_DEVICE Vec<T> sum(Vec<T> own) {
        T* const all = shared_memory<T>();
        all[thread_index()] = own.v;
        block_barrier();
        Vec<T> total{all[lane()]};
        for (int i = lane() + 32; i < block_threads(); i += 32) total = total + Vec<T>{all[i]};
        block_barrier();
        return total;
    }
};

template <class T>
FUSEDRNN_KERNEL void layer_norm_rows(LayerNormArgs args) {
    const T *const x = static_cast<const T*>(args.x), *const w = static_cast<const T*>(args.w),
                   *const b = static_cast<const T*>(args.b);
    T *const y = static_cast<T*>(args.y), *const mean = static_cast<T*>(args.mean),
             *const rstd = static_cast<T*>(args.rstd);
    const T per_element = T(1) / static_cast<T>(args.dim);
    for (std::int64_t r = block_index().x; r < args.n; r += grid_size().x) {
        normalise_row<BlockThreads>(args.dim, x + r * args.dim, w, b, per_element, args.eps, y + r * args.dim,
                                    mean + 2 * r, rstd + 2 * r);
    }
}

template <class T>
FUSEDRNN_KERNEL void layer_norm_backward_rows(LayerNormBackwardArgs args) {
    const T *const mean = static_cast<const T*>(args.mean), *const rstd = static_cast<const T*>(args.rstd);
    for (std::int64_t r = block_index().x; r < args.n; r += grid_size().x) {
        const std::int64_t at = r * args.dim;
        layer_norm_dx<BlockThreads>(args.dim, static_cast<const T*>(args.x) + at,
                                    static_cast<const T*>(args.w), static_cast<const T*>(args.dy) + at,
                                    RowMoments<T>::load(mean + 2 * r, rstd + 2 * r),
                                    static_cast<T*>(args.dx) + at);
    }
}

template <class T>
FUSEDRNN_KERNEL void layer_norm_columns_32(LayerNormBackwardArgs args) {
    const std::int64_t d = std::int64_t{block_index().x} * 32 + lane();
    layer_norm_columns<BlockWarps, 1>(args.n, args.dim, d, d < args.dim ? 1 : 0,
                                      static_cast<const T*>(args.x), static_cast<const T*>(args.dy),
                                      static_cast<const T*>(args.mean), static_cast<const T*>(args.rstd),
                                      static_cast<T*>(args.dw), static_cast<T*>(args.db));
}

template <class T>
FUSEDRNN_KERNEL void cross_entropy_rows(CrossEntropyRowsArgs args) {
    const CrossEntropyArgs<void>& p = args.rows;
    const CrossEntropyArgs<T> rows{p.n,
                                   p.classes,
                                   static_cast<const T*>(p.logits),
                                   p.targets,
                                   static_cast<const T*>(p.weight),
                                   p.unit,
                                   p.ignore_index,
                                   p.label_smoothing,
                                   p.losses,
                                   static_cast<T*>(p.dlogits)};
    for (std::int64_t r = block_index().x; r < p.n; r += grid_size().x) {
        cross_entropy_row<BlockThreads>(rows, args.share_sum, r);
    }
}

// update(i) for this thread's elements.
template <class Update>
FUSEDRNN_DEVICE void for_elements(std::int64_t n, const Update& update) {
    const std::int64_t step = std::int64_t{grid_size().x} * block_threads();
    for (std::int64_t i = std::int64_t{block_index().x} * block_threads() + thread_index(); i < n;
         i += step) {
        update(i);
    }
}

template <class T>
FUSEDRNN_KERNEL void sgd_elements(SgdArgs args) {
    const auto update = sgd_update(static_cast<T*>(args.param), static_cast<const T*>(args.grad),
                                   static_cast<T*>(args.momentum_buf), args.options);
    for_elements(args.n, [&](std::int64_t i) { update(i, 1); });
}

template <class T>
FUSEDRNN_KERNEL void adam_elements(AdamArgs args) {
    const auto update = adam_update(static_cast<T*>(args.param), static_cast<const T*>(args.grad),
                                    static_cast<T*>(args.exp_avg), static_cast<T*>(args.exp_avg_sq),
                                    args.options, {args.first_bias, args.second_bias});
    Vec<T> largest{0};
    for_elements(args.n, [&](std::int64_t i) { update(largest, i, 1); });
    if (largest.v > kMost<T>) store(args.overflowed, std::uint8_t{1});
}

template <class T>
OpEntries make_op_entries() {
    constexpr int bytes = kOpThreads * static_cast<int>(sizeof(T));
    return {{"layer_norm", &layer_norm_rows<T>, bytes},
            {"layer_norm backward", &layer_norm_backward_rows<T>, bytes},
            {"layer_norm columns", &layer_norm_columns_32<T>, bytes},
            {"cross_entropy", &cross_entropy_rows<T>, bytes},
            {"sgd", &sgd_elements<T>, 0},
            {"adam", &adam_elements<T>, 0}};
}

}  // namespace fusedrnn::cuda
