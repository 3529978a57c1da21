// Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450):
//   xhat = (x - mean(x)) rstd   rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)   y = w xhat + b
// and, with g = w dy:
//   dx = rstd (g - mean(g) - xhat mean(g xhat))   dw = sum over rows of dy xhat   db = sum over rows of dy
//
// The mean is that of the distances from the row's first element, so that a constant row has none; what its rounding
// leaves is corrected by the mean of the distances from it (Chan, Golub and LeVeque 1983). A row whose squares overflow
// or vanish is taken times a power of two first, which rounds nothing.
#pragma once

#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Variances, eps included, between `least` and `most` need no scale: below, squares that vanished may count, above,
// 1 / sqrt may vanish. A distance of elements of size `least` is no denormal number. Scales are within 2^+-exponent;
// `back` brings gradients whose sums overflow to where they do not.
template <class T>
struct NormRange;

template <>
struct NormRange<float> {
    static constexpr double least = 0x1p-102, most = 0x1p120, largest = 0x1.fffffep127;
    static constexpr int exponent = 126;
    static constexpr float back = 0x1p64f;
};
template <>
struct NormRange<double> {
    static constexpr double least = 0x1p-969, most = 0x1p1000, largest = 0x1.fffffffffffffp1023;
    static constexpr int exponent = 1022;
    static constexpr double back = 0x1p512;
};

// xhat = (scale x - mean) rstd + shift.
template <class T>
struct RowMoments {
    T scale, mean, rstd, shift;

    FUSEDRNN_INLINE Vec<T> xhat(Vec<T> x) const {
        using V = Vec<T>;
        return fma(fma(x, V::set(scale), V::set(0) - V::set(mean)), V::set(rstd), V::set(shift));
    }
    // As the two arrays (n, 2) that forward leaves for backward.
    FUSEDRNN_INLINE void store(T* means, T* rstds) const {
        means[0] = scale, means[1] = mean;
        rstds[0] = rstd, rstds[1] = shift;
    }
    static FUSEDRNN_INLINE RowMoments load(const T* means, const T* rstds) {
        return {means[0], means[1], rstds[0], rstds[1]};
    }
};

// scale x - from, and 0 in the lanes past the end; the scale is 1 unless kScaled.
template <bool kScaled, class T>
FUSEDRNN_INLINE Vec<T> distance(const T* x, int m, T scale, T from) {
    using V = Vec<T>;
    const V v = load_up_to(x, m);
    return first_lanes((kScaled ? v * V::set(scale) : v) - V::set(from), m);
}

// The moments of a row times `scale`; the variance, eps included, is that of the scaled row.
template <bool kScaled, class Threads, class T>
FUSEDRNN_KERNEL_INLINE RowMoments<T> scaled_moments(std::int64_t dim, const T* x, T scale, T per_element,
                                                    double eps, double& variance) {
    using V = Vec<T>;
    const T first = x[0] * scale;
    const T mean = first + per_element * row_sum<T, Threads>(dim, [&](std::int64_t d, int m) {
                               return distance<kScaled>(x + d, m, scale, first);
                           });
    T sums[2];
    row_sums<T, Threads>(
        dim,
        [&](std::int64_t d, int m, V(&acc)[2]) {
            const V v = distance<kScaled>(x + d, m, scale, mean);
            acc[0] = acc[0] + v;
            acc[1] = fma(v, v, acc[1]);
        },
        sums);
    const double rest = static_cast<double>(per_element * sums[0]);
    const double spread = static_cast<double>(per_element * sums[1]) - rest * rest;
    variance = (spread < 0 ? 0 : spread) + eps;
    const double rstd = 1.0 / __builtin_sqrt(variance);
    return {scale, mean, static_cast<T>(rstd), static_cast<T>(-rest * rstd)};
}

// 2^-e for a number in [2^e, 2^(e + 1)), as far as T holds it.
template <class T>
FUSEDRNN_INLINE T scale_against(double size) {
    constexpr int kMost = NormRange<T>::exponent;
    const int e = size > 0 ? __builtin_ilogb(size) : 0;
    return static_cast<T>(__builtin_ldexp(1.0, e > kMost ? -kMost : e < -kMost ? kMost : -e));
}

// Where squares may have overflowed or vanished: relative to the largest distance, or the largest element if distances
// overflow or are denormal themselves.
template <class Threads, class T>
FUSEDRNN_KERNEL_RARELY RowMoments<T> extreme_moments(std::int64_t dim, const T* x, T per_element, double eps,
                                                     const RowMoments<T>& plain) {
    using Range = NormRange<T>;
    const double size = static_cast<double>(
        row_largest<T, Threads>(dim, [&](std::int64_t d, int m) { return load_up_to(x + d, m); }));
    const double spread = static_cast<double>(row_largest<T, Threads>(
        dim, [&](std::int64_t d, int m) { return distance<false>(x + d, m, T(1), plain.mean); }));
    const bool finite = plain.mean - plain.mean == 0;
    if (finite && spread == 0 && size >= Range::least) {
        // A constant row has xhat = 0 whatever eps is; without eps there is no gradient either.
        const double rstd = 1.0 / __builtin_sqrt(eps);
        return {1, plain.mean,
                static_cast<T>(eps == 0                ? 0
                               : rstd < Range::largest ? rstd
                                                       : Range::largest),
                0};
    }
    const double most = finite && spread > 0 && spread <= Range::largest ? spread : size;
    const double root = __builtin_sqrt(eps);
    const T scale = scale_against<T>(most > root ? most : root);
    const double factor = static_cast<double>(scale);
    double variance;
    RowMoments<T> moments =
        scaled_moments<true, Threads>(dim, x, scale, per_element, eps * factor * factor, variance);
    if (variance == 0) moments.rstd = moments.shift = 0;
    return moments;
}

template <class Threads, class T>
FUSEDRNN_KERNEL_INLINE RowMoments<T> row_moments(std::int64_t dim, const T* x, T per_element, double eps) {
    using Range = NormRange<T>;
    double variance;
    const RowMoments<T> moments = scaled_moments<false, Threads>(dim, x, T(1), per_element, eps, variance);
    if (variance > Range::least && variance < Range::most) return moments;
    return extreme_moments<Threads>(dim, x, per_element, eps, moments);
}

template <class Threads, class T>
FUSEDRNN_KERNEL_INLINE void normalise_row(std::int64_t dim, const T* x, const T* w, const T* b, T per_element,
                                          double eps, T* y, T* mean, T* rstd) {
    const RowMoments<T> moments = row_moments<Threads>(dim, x, per_element, eps);
    if (Threads::owns(0)) moments.store(mean, rstd);
    // By value: what is captured by reference is read again after every store.
    row_vectors<T, Threads>(dim, [=](std::int64_t d, int m) {
        Vec<T> v = moments.xhat(load_up_to(x + d, m));
        if (w != nullptr) v = v * load_up_to(w + d, m);
        if (b != nullptr) v = v + load_up_to(b + d, m);
        store_up_to(v, y + d, m);
    });
}

template <class T>
void layer_norm_forward(std::int64_t n, std::int64_t dim, const T* x, const T* w, const T* b, double eps,
                        T* y, T* mean, T* rstd, Team& team) {
    if (dim == 0) return;
    const T per_element = T(1) / static_cast<T>(dim);
    interruptible_blocks(team, n, rows_per_block(dim), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            normalise_row<OneThread>(dim, x + r * dim, w, b, per_element, eps, y + r * dim, mean + 2 * r,
                                     rstd + 2 * r);
        }
    });
}

// dx / `back`, but for the row's scale. Returns whether all sums are finite.
template <class Threads, class T>
FUSEDRNN_KERNEL_INLINE bool scaled_dx(std::int64_t dim, const T* x, const T* w, const T* dy,
                                      const RowMoments<T>& moments, T forth, T* dx) {
    using V = Vec<T>;
    const T per_element = T(1) / static_cast<T>(dim);
    const auto g = [=](std::int64_t d, int m) {
        const V v = load_up_to(dy + d, m) * V::set(forth);
        return w == nullptr ? v : v * load_up_to(w + d, m);
    };
    const auto xhat = [=](std::int64_t d, int m) { return moments.xhat(load_up_to(x + d, m)); };
    // Relative to the first, so that a constant g has no distance from its mean.
    const T first = w == nullptr ? dy[0] * forth : dy[0] * forth * w[0];
    T sums[2];
    row_sums<T, Threads>(
        dim,
        [&](std::int64_t d, int m, V(&acc)[2]) {
            const V v = g(d, m);
            acc[0] = acc[0] + first_lanes(v - V::set(first), m);
            acc[1] = fma(v, first_lanes(xhat(d, m), m), acc[1]);
        },
        sums);
    const V mean_g = V::set(first + per_element * sums[0]), mean_gx = V::set(per_element * sums[1]);
    const V scale = V::set(moments.rstd);
    row_vectors<T, Threads>(dim, [=](std::int64_t d, int m) {
        store_up_to(scale * (g(d, m) - mean_g - xhat(d, m) * mean_gx), dx + d, m);
    });
    return (sums[0] + sums[1]) * T(0) == T(0);
}

template <class Threads, class T>
FUSEDRNN_KERNEL_CODE void layer_norm_dx(std::int64_t dim, const T* x, const T* w, const T* dy,
                                        const RowMoments<T>& moments, T* dx) {
    using V = Vec<T>;
    T back = 1;
    if (!scaled_dx<Threads>(dim, x, w, dy, moments, T(1), dx)) {
        back = NormRange<T>::back;
        scaled_dx<Threads>(dim, x, w, dy, moments, 1 / back, dx);
    }
    if (moments.scale == 1 && back == 1) return;
    row_vectors<T, Threads>(dim, [&](std::int64_t d, int m) {
        store_up_to(load_up_to(dx + d, m) * V::set(moments.scale) * V::set(back), dx + d, m);
    });
}

template <class T>
inline constexpr std::int64_t kLineColumns = 64 / sizeof(T);  // a cache line

// Columns d to d + width of dw and db, kColumns at most: partial sums of 64 rows keep the rounding error of long sums
// small. The threads share the rows.
template <class Threads, std::int64_t kColumns, class T>
FUSEDRNN_KERNEL_CODE void layer_norm_columns(std::int64_t n, std::int64_t dim, std::int64_t d, int width,
                                             const T* x, const T* dy, const T* mean, const T* rstd, T* dw,
                                             T* db) {
    using V = Vec<T>;
    constexpr int L = V::kLanes, kVectors = kColumns / L;
    int lanes[kVectors];
    V total_w[kVectors], total_b[kVectors];
    for (int k = 0; k < kVectors; ++k) {
        lanes[k] = width <= k * L ? 0 : width - k * L < L ? width - k * L : L;
        total_w[k] = total_b[k] = V::set(0);
    }
    for (std::int64_t first = 64 * Threads::index(); first < n; first += 64 * Threads::count()) {
        const std::int64_t last = first + 64 < n ? first + 64 : n;
        V part_w[kVectors], part_b[kVectors];
        for (int k = 0; k < kVectors; ++k) part_w[k] = part_b[k] = V::set(0);
        for (std::int64_t r = first; r < last; ++r) {
            const RowMoments<T> moments = RowMoments<T>::load(mean + 2 * r, rstd + 2 * r);
            FUSEDRNN_UNROLL_BY(16)
            for (int k = 0; k < kVectors; ++k) {
                const std::int64_t i = r * dim + d + k * L;
                const V v = load_up_to(dy + i, lanes[k]);
                part_w[k] = fma(v, moments.xhat(load_up_to(x + i, lanes[k])), part_w[k]);
                part_b[k] = part_b[k] + v;
            }
        }
        for (int k = 0; k < kVectors; ++k) {
            total_w[k] = total_w[k] + part_w[k];
            total_b[k] = total_b[k] + part_b[k];
        }
    }
    for (int k = 0; k < kVectors; ++k) {
        total_w[k] = Threads::sum(total_w[k]);
        total_b[k] = Threads::sum(total_b[k]);
        if (!Threads::owns(0)) continue;
        const std::int64_t i = d + k * L;
        if (dw != nullptr) store_up_to(load_up_to(dw + i, lanes[k]) + total_w[k], dw + i, lanes[k]);
        if (db != nullptr) store_up_to(load_up_to(db + i, lanes[k]) + total_b[k], db + i, lanes[k]);
    }
}

template <class T>
void layer_norm_backward(std::int64_t n, std::int64_t dim, const T* x, const T* w, const T* dy, const T* mean,
                         const T* rstd, T* dx, T* dw, T* db, Team& team) {
    if (dim == 0) return;
    parallel_ranges(team, n, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            layer_norm_dx<OneThread>(dim, x + r * dim, w, dy + r * dim,
                                     RowMoments<T>::load(mean + 2 * r, rstd + 2 * r), dx + r * dim);
        }
    });
    if (dw == nullptr && db == nullptr) return;
    constexpr std::int64_t kColumns = kLineColumns<T>;
    parallel_ranges(team, dim, kColumns, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t d = begin; d < end; d += kColumns) {
            const std::int64_t width = end - d < kColumns ? end - d : kColumns;
            layer_norm_columns<OneThread, kColumns>(n, dim, d, static_cast<int>(width), x, dy, mean, rstd, dw,
                                                    db);
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
