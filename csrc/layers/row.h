// Sums and maps over the elements of one row.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The first n elements at p, and `fill` in the other lanes.
template <class T>
FUSEDRNN_INLINE Vec<T> load_filled(const T* p, int n, T fill) {
    T lanes[Vec<T>::kLanes];
    Vec<T>::set(fill).store(lanes);
    Vec<T>::load_n(p, n).store_n(lanes, n);
    return Vec<T>::load(lanes);
}

// The sum of term(i, n) over the row, where a term holds the elements i to i + n and 0 in its other lanes. Four chains
// hide the latency of the additions; a sum for each block keeps the rounding error of long rows small.
template <class T, class Term>
FUSEDRNN_INLINE T row_sum(std::int64_t width, const Term& term) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    constexpr std::int64_t kSumBlock = 64 * 4 * L;
    V total = V::set(0);
    for (std::int64_t i = 0; i < width;) {
        const std::int64_t end = width - i < kSumBlock ? width : i + kSumBlock;
        V acc[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
        for (; i + 4 * L <= end; i += 4 * L) {
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) acc[k] = acc[k] + term(i + k * L, L);
        }
        for (; i < end; i += L) acc[0] = acc[0] + term(i, end - i < L ? static_cast<int>(end - i) : L);
        total = total + ((acc[0] + acc[1]) + (acc[2] + acc[3]));
    }
    return sum(total);
}

// body(i, n) for the vectors of the row: n = kLanes, and less for the last.
template <class T, class Body>
FUSEDRNN_INLINE void row_vectors(std::int64_t width, const Body& body) {
    constexpr int L = Vec<T>::kLanes;
    std::int64_t i = 0;
    for (; i + L <= width; i += L) body(i, L);
    if (i < width) body(i, static_cast<int>(width - i));
}

template <class T>
FUSEDRNN_INLINE Vec<T> load_up_to(const T* p, int n) {
    return n == Vec<T>::kLanes ? Vec<T>::load(p) : Vec<T>::load_n(p, n);
}

template <class T>
FUSEDRNN_INLINE void store_up_to(Vec<T> v, T* p, int n) {
    if (n == Vec<T>::kLanes) {
        v.store(p);
    } else {
        v.store_n(p, n);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
