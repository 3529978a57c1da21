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
T dropout_scale(double p) {
    return static_cast<T>(1.0 / (p < 1.0 ? 1.0 - p : 1.0));
}

// Which draws drop their element.
template <class Draw>
struct DropRule {
    // Those up to `last`: with p = 1 all of them, and with p = 0, where `odd` makes all odd, none.
    Draw last, odd;

    explicit DropRule(double p) {
        constexpr double kRange = static_cast<double>(std::uint64_t{1} << 8 * sizeof(Draw));
        const std::uint64_t threshold = static_cast<std::uint64_t>(p * kRange + 0.5);
        last = static_cast<Draw>(threshold > 0 ? threshold - 1 : 0);
        odd = threshold == 0 ? 1 : 0;
    }
    FUSEDRNN_INLINE bool drops(Draw draw) const { return static_cast<Draw>(draw | odd) <= last; }
};

// The draws of kPhiloxBlocks blocks from `first` on.
template <class Draw>
FUSEDRNN_INLINE void draw_from(const PhiloxBlocks& random, std::int64_t first,
                               Draw (&draws)[16 / sizeof(Draw) * kPhiloxBlocks]) {
    std::uint64_t block[kPhiloxBlocks];
    std::uint32_t words[4 * kPhiloxBlocks];
    for (int b = 0; b < kPhiloxBlocks; ++b) block[b] = static_cast<std::uint64_t>(first + b);
    random.draw(block, words);
    __builtin_memcpy(draws, words, sizeof draws);
}

template <class T>
void dropout(std::int64_t n, const T* x, T* y, double p, std::uint64_t seed, std::uint64_t offset,
             Team& team) {
    constexpr int kDraws = 4 * kPhiloxBlocks;
    const DropRule<std::uint32_t> rule(p);
    const T scale = dropout_scale<T>(p);
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        const PhiloxBlocks random(seed, offset);
        std::uint32_t draws[kDraws];
        T scaled[kDraws]{};
        for (std::int64_t i = begin; i < end; i += kDraws) {
            draw_from(random, i / 4, draws);
            const std::int64_t m = end - i < kDraws ? end - i : kDraws;
            // Apart from the comparison: compilers make vectors of both.
            for (std::int64_t j = 0; j < m; ++j) scaled[j] = x[i + j] * scale;
            for (int j = 0; j < kDraws; ++j) scaled[j] = rule.drops(draws[j]) ? T(0) : scaled[j];
            for (std::int64_t j = 0; j < m; ++j) y[i + j] = scaled[j];
        }
    });
}

inline void draw_mask(std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset, std::uint8_t* kept,
                      Team& team) {
    constexpr int kDraws = 8 * kPhiloxBlocks;
    const DropRule<std::uint16_t> rule(p);
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        const PhiloxBlocks random(seed, offset);
        std::uint16_t draws[kDraws];
        std::uint8_t each[kDraws], bytes[kPhiloxBlocks];
        for (std::int64_t i = begin; i < end; i += kDraws) {
            draw_from(random, i / 8, draws);
            for (int j = 0; j < kDraws; ++j) each[j] = rule.drops(draws[j]) ? 0 : 1;
            for (int b = 0; b < kPhiloxBlocks; ++b) {
                std::uint64_t eight;
                __builtin_memcpy(&eight, each + 8 * b, sizeof eight);
                // Byte k of the eight, a 0 or a 1, becomes bit k of the product's highest byte.
                bytes[b] = static_cast<std::uint8_t>(eight * 0x0102040810204080 >> 56);
            }
            const std::int64_t left = (end - i + 7) / 8;
            __builtin_memcpy(kept + i / 8, bytes,
                             static_cast<std::size_t>(left < kPhiloxBlocks ? left : kPhiloxBlocks));
        }
    });
}

// y = x / (1 - p) where kept, else 0, or y + that, for m elements, 32 at most, and their bits.
template <class T, bool kAdds>
FUSEDRNN_INLINE void mask_word(int m, std::uint32_t bits, T scale, const T* __restrict x, T* __restrict y) {
    for (int j = 0; j < m; ++j) {
        const T value = (bits & std::uint32_t{1} << j) != 0 ? x[j] * scale : T(0);
        y[j] = kAdds ? y[j] + value : value;
    }
}

// The same for the elements from `begin` on, a multiple of 8, to `end`.
template <class T, bool kAdds>
void mask_elements(std::int64_t begin, std::int64_t end, const std::uint8_t* kept, double p, const T* x,
                   T* y) {
    const T scale = dropout_scale<T>(p);
    std::int64_t i = begin;
    for (; i + 32 <= end; i += 32) {
        std::uint32_t bits;
        __builtin_memcpy(&bits, kept + i / 8, sizeof bits);
        mask_word<T, kAdds>(32, bits, scale, x + i, y + i);
    }
    for (; i < end; i += 8) {
        mask_word<T, kAdds>(end - i < 8 ? static_cast<int>(end - i) : 8, kept[i / 8], scale, x + i, y + i);
    }
}

template <class T>
void mask(std::int64_t n, const std::uint8_t* kept, double p, const T* x, T* y, Team& team) {
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        mask_elements<T, false>(begin, end, kept, p, x, y);
    });
}
template <class T>
void add_masked(std::int64_t n, const std::uint8_t* kept, double p, const T* x, T* y, Team& team) {
    parallel_ranges(team, n, kBlock, [&](int, std::int64_t begin, std::int64_t end) {
        mask_elements<T, true>(begin, end, kept, p, x, y);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
