// What takes elements one by one.
#pragma once

#include "kernels/arguments.h"
#include "kernels/math.h"
#include "philox.h"

namespace fusedrnn::cuda {

template <class T>
FUSEDRNN_KERNEL void round_elements(RoundArgs args) {
    const std::int64_t step = std::int64_t{grid_size().x} * block_threads();
    for (std::int64_t i = std::int64_t{block_index().x} * block_threads() + thread_index(); i < args.n;
         i += step) {
        store(static_cast<T*>(args.to) + i, narrow<T>(load_constant(args.from + i)));
    }
}

// A thread takes the four elements of a Philox block; see csrc/layers/dropout.h.
template <class T, class C>
FUSEDRNN_KERNEL void dropout(DropoutArgs args) {
    const std::int64_t step = std::int64_t{grid_size().x} * block_threads();
    const C scale = static_cast<C>(args.scale);
    for (std::int64_t block = std::int64_t{block_index().x} * block_threads() + thread_index();
         4 * block < args.n; block += step) {
        std::uint32_t words[4];
        philox(static_cast<std::uint64_t>(block), args.offset, args.seed, words);
        FUSEDRNN_UNROLL
        for (int w = 0; w < 4; ++w) {
            const std::int64_t i = 4 * block + w;
            if (i >= args.n) break;
            const C x = widen(load_constant(static_cast<const T*>(args.x) + i));
            store(static_cast<T*>(args.y) + i, words[w] >= args.threshold ? narrow<T>(x * scale) : T{});
        }
    }
}

}  // namespace fusedrnn::cuda
