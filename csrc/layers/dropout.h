// Dropout (Srivastava et al. 2014): y = x / (1 - p) with probability 1 - p, else 0.
//
// Element e is kept where word e % 4 of the Philox block (e / 4, offset) under the key `seed` is at least p 2^32: the
// mask is never stored, backward draws it again. The mask of a weight takes half a word each, the lower one first, which is
// at least p 2^16: there are as many elements to draw for as in all else of a short call.
#pragma once

#include "layers/parallel.h"
#include "philox_blocks.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T, class Draw, bool kAdds>
void drop(std::int64_t n, const T* x, T* y, double p, std::uint64_t seed, std::uint64_t offset, Team& team) {
    constexpr int kBlocks = kPhiloxBlocks, kOfBlock = 16 / sizeof(Draw), kDraws = kOfBlock * kBlocks;
    constexpr double kRange = static_cast<double>(std::uint64_t{1} << 8 * sizeof(Draw));
    const std::uint64_t threshold = static_cast<std::uint64_t>(p * kRange + 0.5);
    // Draws up to `last` drop their element: with p = 1 all of them, and with p = 0, where `odd` makes all odd, none.
    const auto last = static_cast<std::uint32_t>(threshold > 0 ? threshold - 1 : 0);
    const std::uint32_t odd = threshold == 0 ? 1 : 0;
    const T scale = static_cast<T>(1.0 / (p < 1.0 ? 1.0 - p : 1.0));
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        const PhiloxBlocks random(seed, offset);
        std::uint64_t block[kBlocks];
        std::uint32_t words[4 * kBlocks];
        Draw draws[kDraws];
        T scaled[kDraws]{};
        for (std::int64_t i = begin; i < end; i += kDraws) {
            const std::uint64_t first = static_cast<std::uint64_t>(i) / kOfBlock;
            for (int b = 0; b < kBlocks; ++b) block[b] = first + static_cast<std::uint64_t>(b);
            random.draw(block, words);
            __builtin_memcpy(draws, words, sizeof draws);
            const std::int64_t m = end - i < kDraws ? end - i : kDraws;
            // Apart from the comparison, and that of 32 bits: compilers make vectors of both.
            for (std::int64_t j = 0; j < m; ++j) scaled[j] = x[i + j] * scale;
            for (int j = 0; j < kDraws; ++j) {
                const std::uint32_t drawn = draws[j] | odd;
                scaled[j] = drawn <= last ? T(0) : scaled[j];
            }
            for (std::int64_t j = 0; j < m; ++j) y[i + j] = kAdds ? y[i + j] + scaled[j] : scaled[j];
        }
    });
}

template <class T>
void dropout(std::int64_t n, const T* x, T* y, double p, std::uint64_t seed, std::uint64_t offset,
             Team& team) {
    drop<T, std::uint32_t, false>(n, x, y, p, seed, offset, team);
}
template <class T>
void weight_dropout(std::int64_t n, const T* w, T* masked, double p, std::uint64_t seed, std::uint64_t offset,
                    Team& team) {
    drop<T, std::uint16_t, false>(n, w, masked, p, seed, offset, team);
}
template <class T>
void add_weight_dropout(std::int64_t n, const T* gradient, T* sum, double p, std::uint64_t seed,
                        std::uint64_t offset, Team& team) {
    drop<T, std::uint16_t, true>(n, gradient, sum, p, seed, offset, team);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
