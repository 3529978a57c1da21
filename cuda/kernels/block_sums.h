// Sums over the threads of a block, in the same order in every run.
#pragma once

#include "device/device.h"

namespace fusedrnn::cuda {

// join(every thread's value) in the same order in every run.
template <class T, class Join>
FUSEDRNN_DEVICE T join_block(T own, const Join& join) {
    FUSEDRNN_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) own = join(own, shuffle_xor(own, mask));
    T* const warps = shared_memory<T>();
    if (lane() == 0) warps[warp()] = own;
    block_barrier();
    T joined = warps[0];
    for (int w = 1; w < block_threads() / 32; ++w) joined = join(joined, warps[w]);
    block_barrier();
    return joined;
}

// As OneThread of csrc/layers/row.h.
struct BlockThreads {
    static FUSEDRNN_DEVICE std::int64_t index() { return thread_index(); }
    static FUSEDRNN_DEVICE std::int64_t count() { return block_threads(); }
    static FUSEDRNN_DEVICE bool owns(std::int64_t i) { return i % count() == index(); }
    template <class T>
    static FUSEDRNN_DEVICE T sum(T own) {
        return join_block(own, [](T a, T b) { return a + b; });
    }
    template <class T>
    static FUSEDRNN_DEVICE T largest(T own) {
        return join_block(own, [](T a, T b) { return b > a ? b : a; });
    }
};

}  // namespace fusedrnn::cuda
