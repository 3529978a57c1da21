// Dropout (Srivastava et al. 2014): y = x / (1 - p) with probability 1 - p, else 0.
//
// Element e is kept where word e % 4 of the Philox block (e / 4, offset) under the key `seed` is at least p 2^32: the
// mask is never stored, backward draws it again.
#pragma once

#include "layers/parallel.h"
#include "philox_blocks.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
void dropout(std::int64_t n, const T* x, T* y, double p, std::uint64_t seed, std::uint64_t offset,
             Team& team) {
    constexpr int kBlocks = kPhiloxBlocks, kWords = 4 * kBlocks;
    const std::uint64_t threshold = static_cast<std::uint64_t>(p * 4294967296.0 + 0.5);
    // Words up to `last` drop their element: with p = 1 all of them, and with p = 0, where `odd` makes all odd, none.
    const auto last = static_cast<std::uint32_t>(threshold > 0 ? threshold - 1 : 0);
    const std::uint32_t odd = threshold == 0 ? 1 : 0;
    const T scale = static_cast<T>(1.0 / (p < 1.0 ? 1.0 - p : 1.0));
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        const PhiloxBlocks random(seed, offset);
        std::uint64_t block[kBlocks];
        std::uint32_t words[kWords];
        T scaled[kWords]{};
        for (std::int64_t i = begin; i < end; i += kWords) {
            const std::uint64_t first = static_cast<std::uint64_t>(i) / 4;
            for (int b = 0; b < kBlocks; ++b) block[b] = first + static_cast<std::uint64_t>(b);
            random.draw(block, words);
            const std::int64_t m = end - i < kWords ? end - i : kWords;
            // Apart from the comparison, and that of 32 bits: compilers make vectors of both.
            for (std::int64_t j = 0; j < m; ++j) scaled[j] = x[i + j] * scale;
            for (int j = 0; j < kWords; ++j) scaled[j] = (words[j] | odd) <= last ? T(0) : scaled[j];
            for (std::int64_t j = 0; j < m; ++j) y[i + j] = scaled[j];
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
