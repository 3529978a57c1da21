// Sums and maps over the elements of one row, by the threads that share it: one on a CPU, a block of them on a GPU, each
// with every so many vectors.
#pragma once

#include <cstdint>

#include "simd/simd.h"

// Before a function that only kernels call: FUSEDRNN_KERNEL_INLINE to be inlined, FUSEDRNN_KERNEL_CODE where it pays,
// FUSEDRNN_KERNEL_RARELY never; and FUSEDRNN_UNROLL_BY(n) before a loop.
#ifdef __CUDACC__
#define FUSEDRNN_KERNEL_INLINE __device__ inline __attribute__((always_inline))
#define FUSEDRNN_KERNEL_CODE __device__
#define FUSEDRNN_KERNEL_RARELY __device__  // a call would take a stack
#define FUSEDRNN_UNROLL_BY(n) _Pragma("unroll")
#else
#define FUSEDRNN_KERNEL_INLINE FUSEDRNN_INLINE
#define FUSEDRNN_KERNEL_CODE
#define FUSEDRNN_KERNEL_RARELY __attribute__((noinline))
#define FUSEDRNN_UNROLL_BY(n) _Pragma(FUSEDRNN_STRING(GCC unroll n))
#endif

namespace fusedrnn::FUSEDRNN_ISA {

// The first n elements at p, and `fill` in the other lanes.
template <class T>
FUSEDRNN_INLINE Vec<T> load_filled(const T* p, int n, T fill) {
    T lanes[Vec<T>::kLanes];
    Vec<T>::set(fill).store(lanes);
    Vec<T>::load_n(p, n).store_n(lanes, n);
    return Vec<T>::load(lanes);
}

struct OneThread {
    static constexpr std::int64_t index() { return 0; }
    static constexpr std::int64_t count() { return 1; }
    // Whether it is the thread that has element i.
    static constexpr bool owns(std::int64_t) { return true; }
    // Of all threads' values.
    template <class T>
    static FUSEDRNN_INLINE T sum(T own) {
        return own;
    }
    template <class T>
    static FUSEDRNN_INLINE T largest(T own) {
        return own;
    }
};

// body(i, n) for the vectors of the row: n = kLanes, and less for the last.
template <class T, class Threads = OneThread, class Body>
FUSEDRNN_KERNEL_INLINE void row_vectors(std::int64_t width, const Body& body) {
    constexpr int L = Vec<T>::kLanes;
    std::int64_t i = Threads::index() * L;
    for (; i + L <= width; i += Threads::count() * L) body(i, L);
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

// v in the first n lanes, and 0 in the others.
template <class T>
FUSEDRNN_INLINE Vec<T> first_lanes(Vec<T> v, int n) {
    if (n == Vec<T>::kLanes) return v;
    T lanes[Vec<T>::kLanes];
    v.store(lanes);
    return Vec<T>::load_n(lanes, n);
}

// N sums over the row: add(i, n, acc) adds to acc[0] .. acc[N - 1] terms of the elements i to i + n, and 0 in the lanes
// past them. Four chains for each sum hide the latency of the additions; a sum for each block keeps the rounding error
// of long rows small.
template <class T, class Threads = OneThread, int N, class Add>
FUSEDRNN_KERNEL_INLINE void row_sums(std::int64_t width, const Add& add, T (&sums)[N]) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const std::int64_t step = Threads::count() * L, block = 64 * 4 * step;
    V total[N];
    for (V& v : total) v = V::set(0);
    for (std::int64_t i = Threads::index() * L; i < width;) {
        const std::int64_t end = width - i < block ? width : i + block;
        V acc[4][N];
        for (auto& chain : acc) {
            for (V& v : chain) v = V::set(0);
        }
        for (; i + 3 * step + L <= end; i += 4 * step) {
            FUSEDRNN_UNROLL_BY(4)
            for (int k = 0; k < 4; ++k) add(i + k * step, L, acc[k]);
        }
        for (; i < end; i += step) add(i, end - i < L ? static_cast<int>(end - i) : L, acc[0]);
        for (int s = 0; s < N; ++s) {
            total[s] = total[s] + ((acc[0][s] + acc[1][s]) + (acc[2][s] + acc[3][s]));
        }
    }
    for (int s = 0; s < N; ++s) sums[s] = Threads::sum(sum(total[s]));
}

// The sum of term(i, n) over the row.
template <class T, class Threads = OneThread, class Term>
FUSEDRNN_KERNEL_INLINE T row_sum(std::int64_t width, const Term& term) {
    T sums[1];
    row_sums<T, Threads>(
        width, [&](std::int64_t i, int n, Vec<T>(&acc)[1]) { acc[0] = acc[0] + term(i, n); }, sums);
    return sums[0];
}

// The largest |term(i, n)|, terms as in row_sum; NaN is passed over.
template <class T, class Threads = OneThread, class Term>
FUSEDRNN_KERNEL_INLINE T row_largest(std::int64_t width, const Term& term) {
    using V = Vec<T>;
    V most = V::set(0);
    row_vectors<T, Threads>(width, [&](std::int64_t i, int n) { most = max(abs(term(i, n)), most); });
    T lanes[V::kLanes], result = 0;
    most.store(lanes);
    for (const T lane : lanes) result = lane > result ? lane : result;
    return Threads::largest(result);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
