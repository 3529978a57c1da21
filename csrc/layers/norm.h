// Norms of an array: sums in double over fixed blocks and fixed lanes, combined pairwise, so that the result depends on
// neither the number of threads nor the instruction set.
#pragma once

#include "layers/layer_table.h"
#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

struct SumOfAbs {
    static FUSEDRNN_INLINE double term(double a, double) { return a; }
    static FUSEDRNN_INLINE double join(double a, double b) { return a + b; }
};

struct SumOfSquares {
    static FUSEDRNN_INLINE double term(double a, double) { return a * a; }
    static FUSEDRNN_INLINE double join(double a, double b) { return a + b; }
};

struct SumOfPowers {
    static FUSEDRNN_INLINE double term(double a, double p) { return __builtin_pow(a, p); }
    static FUSEDRNN_INLINE double join(double a, double b) { return a + b; }
};

struct Largest {
    static FUSEDRNN_INLINE double term(double a, double) { return a; }
    // NaN wins.
    static FUSEDRNN_INLINE double join(double a, double b) {
        return static_cast<int>(b > a) | static_cast<int>(b != b) ? b : a;
    }
};

// a[0] joined with a[n/2], a[1] with a[n/2 + 1], and so on until one is left.
template <class Rule>
FUSEDRNN_INLINE double join_pairwise(double* a, std::int64_t n) {
    while (n > 1) {
        const std::int64_t half = (n + 1) / 2;
        for (std::int64_t i = 0; i + half < n; ++i) a[i] = Rule::join(a[i], a[i + half]);
        n = half;
    }
    return a[0];
}

template <class T, class Rule>
double norm_block(const T* x, std::int64_t n, double p, double scale) {
    constexpr int kLanes = 16;
    double lanes[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int k = 0; k < kLanes; ++k) {
            lanes[k] =
                Rule::join(lanes[k], Rule::term(__builtin_fabs(static_cast<double>(x[i + k]) * scale), p));
        }
    }
    for (int k = 0; i < n; ++i, ++k) {
        lanes[k] = Rule::join(lanes[k], Rule::term(__builtin_fabs(static_cast<double>(x[i]) * scale), p));
    }
    return join_pairwise<Rule>(lanes, kLanes);
}

// The sum over all elements times `scale`.
template <class T, class Rule>
double norm_total(std::int64_t n, const T* x, double p, double scale, double* partial, Team& team) {
    interruptible_blocks(team, n, kNormBlock, [&](std::int64_t begin, std::int64_t end) {
        partial[begin / kNormBlock] = norm_block<T, Rule>(x + begin, end - begin, p, scale);
    });
    return join_pairwise<Rule>(partial, (n + kNormBlock - 1) / kNormBlock);
}

// The largest |x|, or NaN where there is one: the fixed lanes above find that.
template <class T>
double largest_of_block(const T* x, std::int64_t n) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    V most[4], poison[4];  // NaN once an element is not finite
    for (int k = 0; k < 4; ++k) most[k] = poison[k] = V::set(0);
    std::int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const V v = V::load(x + i + k * L);
            most[k] = max(abs(v), most[k]);
            poison[k] = fma(v, V::set(0), poison[k]);
        }
    }
    for (; i < n; i += L) {
        const V v = load_up_to(x + i, n - i < L ? static_cast<int>(n - i) : L);
        most[0] = max(abs(v), most[0]);
        poison[0] = fma(v, V::set(0), poison[0]);
    }
    if (sum((poison[0] + poison[1]) + (poison[2] + poison[3])) != 0)
        return norm_block<T, Largest>(x, n, 1, 1);
    T lanes[L], result = 0;
    max(max(most[0], most[1]), max(most[2], most[3])).store(lanes);
    for (const T lane : lanes) result = lane > result ? lane : result;
    return static_cast<double>(result);
}

template <class T>
double largest(std::int64_t n, const T* x, double* partial, Team& team) {
    interruptible_blocks(team, n, kNormBlock, [&](std::int64_t begin, std::int64_t end) {
        partial[begin / kNormBlock] = largest_of_block(x + begin, end - begin);
    });
    return join_pairwise<Largest>(partial, (n + kNormBlock - 1) / kNormBlock);
}

template <class T, class Rule>
double power_norm(std::int64_t n, const T* x, double p, double* partial, Team& team) {
    const auto root = [p](double total) {
        return p == 2 ? __builtin_sqrt(total) : __builtin_pow(total, 1 / p);
    };
    const double total = norm_total<T, Rule>(n, x, p, 1.0, partial, team);
    // With a small p, what a power rounds off is much of the root.
    if (total != total || (total > 1e-280 && total < 1e300 && p > 1e-3)) return root(total);
    // Zero, or the powers overflow or underflow: relative to the largest element they do neither.
    const double most = largest(n, x, partial, team);
    if (!(most > 0) || most == __builtin_huge_val()) return most;
    const double scale = 1 / (most < 4e307 ? most : 4e307);  // beyond, it would be a denormal number
    return root(norm_total<T, Rule>(n, x, p, scale, partial, team)) / scale;
}

template <class T>
double norm(std::int64_t n, const T* x, double p, double* partial, Team& team) {
    if (n == 0) return 0;
    if (p == 1) return norm_total<T, SumOfAbs>(n, x, p, 1.0, partial, team);
    if (p == 2) return power_norm<T, SumOfSquares>(n, x, p, partial, team);
    if (p == __builtin_huge_val()) return largest(n, x, partial, team);
    return power_norm<T, SumOfPowers>(n, x, p, partial, team);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
