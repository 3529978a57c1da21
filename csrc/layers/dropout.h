// Dropout (Srivastava et al. 2014): y = x / (1 - p) with probability 1 - p, else 0.
//
// Element e is kept where word e % 4 of the Philox block (e / 4, offset) under the key `seed` is at least p 2^32: the
// mask is never stored, backward draws it again. The mask of a weight takes half a word each, the lower one first, which is
// at least p 2^16, and is kept, a bit each: there are as many elements to draw for as in all else of a short call.
#pragma once

#include "layers/parallel.h"
#include "philox_blocks.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
void dropout(std::int64_t n, const T* x, T* y, double p, std::uint64_t seed, std::uint64_t offset,
             Team& team) {
    constexpr int kDraws = 4 * kPhiloxBlocks;
    const std::uint64_t threshold = static_cast<std::uint64_t>(p * 0x1p32 + 0.5);
    // Words up to `last` drop their element: with p = 1 all of them, and with p = 0, where `odd` makes all odd, none.
    const auto last = static_cast<std::uint32_t>(threshold > 0 ? threshold - 1 : 0);
    const std::uint32_t odd = threshold == 0 ? 1 : 0;
    const T scale = static_cast<T>(1.0 / (p < 1.0 ? 1.0 - p : 1.0));
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        const PhiloxBlocks random(seed, offset);
        std::uint32_t words[kDraws];
        T scaled[kDraws]{};
        for (std::int64_t i = begin; i < end; i += kDraws) {
            random.draw_from(i / 4, words);
            const std::int64_t m = end - i < kDraws ? end - i : kDraws;
            // Apart from the comparison: compilers make vectors of both.
            for (std::int64_t j = 0; j < m; ++j) scaled[j] = x[i + j] * scale;
            for (int j = 0; j < kDraws; ++j) scaled[j] = (words[j] | odd) <= last ? T(0) : scaled[j];
            for (std::int64_t j = 0; j < m; ++j) y[i + j] = scaled[j];
        }
    });
}

inline void draw_mask(std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset, std::uint8_t* kept,
                      Team& team) {
    constexpr int kWords = 4 * kPhiloxBlocks, kHalves = 2 * kWords;
    const auto threshold = static_cast<std::uint32_t>(p * 0x1p16 + 0.5);
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        const PhiloxBlocks random(seed, offset);
        std::uint32_t words[kWords], bits[kWords / 16];
        for (std::int64_t i = begin; i < end; i += kHalves) {
            random.draw_from(i / 8, words);
            for (int w = 0; w < kWords; w += 16)
                bits[w / 16] =
                    threshold == 0 ? ~0u : halves_above(words + w, static_cast<std::uint16_t>(threshold - 1));
            const std::int64_t left = (end - i + 7) / 8;
            __builtin_memcpy(kept + i / 8, bits,
                             static_cast<std::size_t>(left < kPhiloxBlocks ? left : kPhiloxBlocks));
        }
    });
}

// Of one word of bits: y += x * scale where kept, or, with no x, y = y * scale where kept, else 0.
template <class T>
FUSEDRNN_INLINE void mask_word(int m, std::uint32_t bits, T scale, const T* __restrict x, T* __restrict y) {
    if (x != nullptr) {
        for (int j = 0; j < m; ++j) y[j] += (bits & std::uint32_t{1} << j) != 0 ? x[j] * scale : T(0);
    } else {
        for (int j = 0; j < m; ++j) y[j] = (bits & std::uint32_t{1} << j) != 0 ? y[j] * scale : T(0);
    }
}

template <class T>
void add_masked(std::int64_t n, const std::uint8_t* kept, T scale, const T* x, T* y, Team& team) {
    parallel_ranges(team, n, kBlock, [&](int, std::int64_t begin, std::int64_t end) {
        const auto word = [&](std::int64_t i, int m, std::uint32_t bits) {
            mask_word(m, bits, scale, x == nullptr ? nullptr : x + i, y + i);
        };
        std::int64_t i = begin;
        for (; i + 32 <= end; i += 32) {
            std::uint32_t bits;
            __builtin_memcpy(&bits, kept + i / 8, sizeof bits);
            word(i, 32, bits);
        }
        for (; i < end; i += 8) word(i, end - i < 8 ? static_cast<int>(end - i) : 8, kept[i / 8]);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
