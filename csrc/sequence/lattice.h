// What the sequence kernels share: workspaces, softmax of a row, sums in the logarithmic domain, and powers of two that
// keep a lattice in range.
#pragma once

#include <cstdint>

#include "activations.h"
#include "elementary.h"
#include "layers/cross_entropy.h"
#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Lattices are of double, whatever the type of the input: with 11 bits of exponent few of them underflow.
using Lanes = Vec<double>;
inline constexpr int kLanes = Lanes::kLanes;
inline constexpr std::int64_t kRowLine = 8;  // doubles of a cache line, a multiple of every kLanes

FUSEDRNN_INLINE std::int64_t whole_lines(std::int64_t n) { return (n + kRowLine - 1) / kRowLine * kRowLine; }

// Hands out parts of a workspace, or counts them where there is none.
struct Arena {
    char* data;
    std::int64_t used = 0;

    template <class U>
    FUSEDRNN_INLINE U* take(std::int64_t n) {
        char* const p = data == nullptr ? nullptr : data + used;
        used += (n * static_cast<std::int64_t>(sizeof(U)) + 63) / 64 * 64;
        return reinterpret_cast<U*>(p);
    }
};

FUSEDRNN_INLINE void zero(double* p, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) p[i] = 0;
}

FUSEDRNN_INLINE double largest_lane(Lanes v) {
    double lanes[kLanes], result = -__builtin_huge_val();
    v.store(lanes);
    for (const double lane : lanes) result = lane > result ? lane : result;
    return result;
}

inline constexpr double kLn2 = 0.693147180559945309417;

// Every so many steps a lattice is brought back to where its largest value is in [1, 2).
inline constexpr std::int64_t kStepsBetweenScales = 4;

alignas(64) inline constexpr float kLaneNumbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) inline constexpr double kLaneNumbersDouble[] = {0, 1, 2, 3, 4, 5, 6, 7};

// v in the first n lanes, and `other` elsewhere.
FUSEDRNN_INLINE Vec<float> only_first(Vec<float> v, int n, float other) {
    using V = Vec<float>;
    return select(less(V::load(kLaneNumbers), V::set(static_cast<float>(n))), v, V::set(other));
}
FUSEDRNN_INLINE Vec<double> only_first(Vec<double> v, int n, double other) {
    using V = Vec<double>;
    return select(less(V::load(kLaneNumbersDouble), V::set(n)), v, V::set(other));
}

// exp(x - most) of a row, their sum and the smallest; x and e may be one.
template <class T>
struct RowExponentials {
    T most, sum, least;
};

template <class T>
FUSEDRNN_KERNEL_INLINE RowExponentials<T> row_exponentials(std::int64_t width, const T* x, T* e) {
    using V = Vec<T>;
    constexpr T kLowest = -static_cast<T>(__builtin_huge_val());
    V largest = V::set(kLowest);
    row_vectors<T>(width, [&](std::int64_t c, int m) {
        const V v = m == V::kLanes ? V::load(x + c) : only_first(V::load_n(x + c, m), m, kLowest);
        largest = max(v, largest);
    });
    T lanes[V::kLanes], most = kLowest, smallest = 1;
    largest.store(lanes);
    for (const T lane : lanes) most = lane > most ? lane : most;
    const V shift = V::set(most);
    V least = V::set(1);
    const T sum = row_sum<T>(width, [&](std::int64_t c, int m) {
        V v = exp_nonpositive(load_up_to(x + c, m) - shift);
        store_up_to(v, e + c, m);
        least = min(m == V::kLanes ? v : only_first(v, m, 1), least);
        return m == V::kLanes ? v : only_first(v, m, 0);
    });
    least.store(lanes);
    for (const T lane : lanes) smallest = lane < smallest ? lane : smallest;
    return {most, sum, smallest};
}

// Asks for a row of an array that is read with a stride which no processor foresees; long rows are foreseen soon.
template <class T>
FUSEDRNN_INLINE void prefetch_row(std::int64_t width, const T* x) {
    const char* const p = reinterpret_cast<const char*>(x);
    const std::int64_t bytes = width * static_cast<std::int64_t>(sizeof(T)), most = bytes < 512 ? bytes : 512;
    for (std::int64_t i = 0; i < most; i += 64) __builtin_prefetch(p + i);
    __builtin_prefetch(p + most - 1);
}
inline constexpr std::int64_t kStepsAhead = 6;

// A sum of logarithms, by products that stay in range.
class LogSum {
  public:
    FUSEDRNN_INLINE void multiply(double x) {
        product_ *= x;
        if (!(product_ < 0x1p400) || product_ < 0x1p-400) flush();
    }
    FUSEDRNN_INLINE void add(double x) { sum_ += x; }
    FUSEDRNN_INLINE double value() {
        flush();
        return sum_;
    }

  private:
    FUSEDRNN_INLINE void flush() {
        sum_ += __builtin_log(product_);
        product_ = 1;
    }
    double sum_ = 0, product_ = 1;
};

// 2^-n with 2^n the power below x, to be multiplied by; 1 where x is no positive finite number.
FUSEDRNN_INLINE double scale_towards_one(double x, double& exponent_sum) {
    if (!(x > 0x1p-1000 && x < 0x1p1000)) return 1;
    const int n = __builtin_ilogb(x);
    exponent_sum += n;
    return __builtin_ldexp(1.0, -n);
}

// Zero among logarithms: sums of two of them are still numbers.
inline constexpr double kNever = -1e300;

FUSEDRNN_INLINE Lanes log_add(Lanes a, Lanes b) {
    const Lanes most = max(a, b), least = min(a, b);
    return max(most + log(Lanes::set(1) + exp_nonpositive(least - most)), Lanes::set(kNever));
}

FUSEDRNN_INLINE Lanes log_add(Lanes a, Lanes b, Lanes c) {
    const Lanes most = max(max(a, b), c);
    const Lanes sum = exp_nonpositive(a - most) + exp_nonpositive(b - most) + exp_nonpositive(c - most);
    return max(most + log(sum), Lanes::set(kNever));
}

FUSEDRNN_INLINE double at_least_never(double x) { return x < kNever ? kNever : x; }

FUSEDRNN_INLINE double log_add(double a, double b) {
    const double most = a > b ? a : b, least = a > b ? b : a;
    return most + __builtin_log1p(__builtin_exp(least - most));
}

// A value of an adjoint up to which what underflowed in the lattice counts nothing: of each path at most 2^-1022 times
// it was lost.
inline constexpr double kMostAdjoint = 0x1p800;

}  // namespace fusedrnn::FUSEDRNN_ISA
