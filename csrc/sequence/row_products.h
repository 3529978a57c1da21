// Products of a row with a matrix of doubles whose rows are padded to whole vectors, and of rows with rows.
#pragma once

#include "sequence/lattice.h"

namespace fusedrnn::FUSEDRNN_ISA {

// y (stride) = x (K) w (K, stride): N vectors of columns, in two chains.
template <int N>
FUSEDRNN_INLINE void columns_product(std::int64_t K, std::int64_t stride, const double* x, const double* w,
                                     double* y) {
    Lanes even[N], odd[N];
    for (int n = 0; n < N; ++n) even[n] = odd[n] = Lanes::set(0);
    std::int64_t k = 0;
    for (; k + 2 <= K; k += 2) {
        const Lanes a = Lanes::set(x[k]), b = Lanes::set(x[k + 1]);
        for (int n = 0; n < N; ++n) {
            even[n] = fma(a, Lanes::load(w + k * stride + n * kLanes), even[n]);
            odd[n] = fma(b, Lanes::load(w + (k + 1) * stride + n * kLanes), odd[n]);
        }
    }
    if (k < K) {
        const Lanes a = Lanes::set(x[k]);
        for (int n = 0; n < N; ++n) even[n] = fma(a, Lanes::load(w + k * stride + n * kLanes), even[n]);
    }
    for (int n = 0; n < N; ++n) (even[n] + odd[n]).store(y + n * kLanes);
}

FUSEDRNN_INLINE void row_product(std::int64_t K, std::int64_t stride, const double* x, const double* w,
                                 double* y) {
    std::int64_t left = (K + kLanes - 1) / kLanes;
    for (; left >= 6 || left == 5; left -= 5) {
        columns_product<5>(K, stride, x, w, y);
        w += 5 * kLanes, y += 5 * kLanes;
    }
    switch (left) {
        case 4:
            return columns_product<4>(K, stride, x, w, y);
        case 3:
            return columns_product<3>(K, stride, x, w, y);
        case 2:
            return columns_product<2>(K, stride, x, w, y);
        case 1:
            return columns_product<1>(K, stride, x, w, y);
        default:
            return;
    }
}

// sum (K, stride) += over n rows of a (n, stride) and b (n, stride) a[i] b[j]: a tile of R rows and N vectors.
template <int R, int N>
FUSEDRNN_INLINE void outer_tile(std::int64_t n, std::int64_t stride, const double* a, const double* b,
                                double* sum) {
    Lanes acc[R][N];
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < N; ++c) acc[r][c] = Lanes::load(sum + r * stride + c * kLanes);
    }
    for (std::int64_t t = 0; t < n; ++t, a += stride, b += stride) {
        Lanes right[N];
        for (int c = 0; c < N; ++c) right[c] = Lanes::load(b + c * kLanes);
        for (int r = 0; r < R; ++r) {
            const Lanes left = Lanes::set(a[r]);
            for (int c = 0; c < N; ++c) acc[r][c] = fma(left, right[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < N; ++c) acc[r][c].store(sum + r * stride + c * kLanes);
    }
}

template <int R>
FUSEDRNN_INLINE void outer_rows(std::int64_t n, std::int64_t K, std::int64_t stride, const double* a,
                                const double* b, double* sum) {
    std::int64_t j = 0;
    const std::int64_t whole = (K + kLanes - 1) / kLanes * kLanes;
    for (; j + 3 * kLanes <= whole; j += 3 * kLanes) outer_tile<R, 3>(n, stride, a, b + j, sum + j);
    if (j + 2 * kLanes <= whole) {
        outer_tile<R, 2>(n, stride, a, b + j, sum + j);
    } else if (j < whole) {
        outer_tile<R, 1>(n, stride, a, b + j, sum + j);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
