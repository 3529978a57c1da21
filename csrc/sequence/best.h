// The n best of scores that come one after another.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The n largest scores that it was given, in order, and where each is from; -inf and NaN are none.
struct Best {
    std::int64_t n;
    double* scores;
    std::int32_t* from;

    FUSEDRNN_INLINE void clear() const {
        for (std::int64_t m = 0; m < n; ++m) scores[m] = -__builtin_huge_val(), from[m] = -1;
    }
    // False if it is none of them.
    FUSEDRNN_INLINE bool add(double score, std::int64_t source) const {
        if (!(score > scores[n - 1])) return false;
        std::int64_t m = n - 1;
        for (; m > 0 && score > scores[m - 1]; --m) scores[m] = scores[m - 1], from[m] = from[m - 1];
        scores[m] = score, from[m] = static_cast<std::int32_t>(source);
        return true;
    }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
