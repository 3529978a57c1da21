// Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450):
//   xhat = (x - mean(x)) rstd   rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)   y = w xhat + b
// and, with g = w dy:
//   dx = rstd (g - mean(g) - xhat mean(g xhat))   dw = sum over rows of dy xhat   db = sum over rows of dy
#pragma once

#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
void layer_norm_forward(std::int64_t n, std::int64_t dim, const T* x, const T* w, const T* b, double eps,
                        T* y, T* mean, T* rstd, Team& team) {
    using V = Vec<T>;
    const T per_element = dim > 0 ? T(1) / static_cast<T>(dim) : T(0);
    interruptible_blocks(team, n, rows_per_block(dim), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            const T* row = x + r * dim;
            T* out = y + r * dim;
            mean[r] =
                per_element * row_sum<T>(dim, [&](std::int64_t d, int m) { return load_up_to(row + d, m); });
            const V centre = V::set(mean[r]);
            const T squares = row_sum<T>(dim, [&](std::int64_t d, int m) {
                const V distance =
                    (m == V::kLanes ? V::load(row + d) : load_filled(row + d, m, mean[r])) - centre;
                return distance * distance;
            });
            rstd[r] = static_cast<T>(1.0 / __builtin_sqrt(static_cast<double>(per_element * squares) + eps));
            const V scale = V::set(rstd[r]);
            row_vectors<T>(dim, [&](std::int64_t d, int m) {
                V v = (load_up_to(row + d, m) - centre) * scale;
                if (w != nullptr) v = v * load_up_to(w + d, m);
                if (b != nullptr) v = v + load_up_to(b + d, m);
                store_up_to(v, out + d, m);
            });
        }
    });
}

template <class T>
void layer_norm_dx(std::int64_t dim, const T* x, const T* w, const T* dy, T mean, T rstd, T* dx) {
    using V = Vec<T>;
    const T per_element = dim > 0 ? T(1) / static_cast<T>(dim) : T(0);
    const V centre = V::set(mean), scale = V::set(rstd);
    const auto g = [&](std::int64_t d, int m) {
        const V v = load_up_to(dy + d, m);
        return w == nullptr ? v : v * load_up_to(w + d, m);
    };
    const auto xhat = [&](std::int64_t d, int m) { return (load_up_to(x + d, m) - centre) * scale; };
    const V mean_g = V::set(per_element * row_sum<T>(dim, g));
    // In the lanes past the end g is 0, and so is the product.
    const V mean_gx =
        V::set(per_element * row_sum<T>(dim, [&](std::int64_t d, int m) { return g(d, m) * xhat(d, m); }));
    row_vectors<T>(dim, [&](std::int64_t d, int m) {
        store_up_to(scale * (g(d, m) - mean_g - xhat(d, m) * mean_gx), dx + d, m);
    });
}

// Columns d to d + m of dw and db: partial sums of 64 rows keep the rounding error of long sums small.
template <class T>
void layer_norm_columns(std::int64_t n, std::int64_t dim, std::int64_t d, int m, const T* x, const T* dy,
                        const T* mean, const T* rstd, T* dw, T* db) {
    using V = Vec<T>;
    V total_w = V::set(0), total_b = V::set(0);
    for (std::int64_t first = 0; first < n; first += 64) {
        const std::int64_t last = first + 64 < n ? first + 64 : n;
        V part_w = V::set(0), part_b = V::set(0);
        for (std::int64_t r = first; r < last; ++r) {
            const V v = load_up_to(dy + r * dim + d, m);
            const V xhat = (load_up_to(x + r * dim + d, m) - V::set(mean[r])) * V::set(rstd[r]);
            part_w = fma(v, xhat, part_w);
            part_b = part_b + v;
        }
        total_w = total_w + part_w;
        total_b = total_b + part_b;
    }
    if (dw != nullptr) store_up_to(load_up_to(dw + d, m) + total_w, dw + d, m);
    if (db != nullptr) store_up_to(load_up_to(db + d, m) + total_b, db + d, m);
}

template <class T>
void layer_norm_backward(std::int64_t n, std::int64_t dim, const T* x, const T* w, const T* dy, const T* mean,
                         const T* rstd, T* dx, T* dw, T* db, Team& team) {
    constexpr std::int64_t kColumns = 64 / sizeof(T);  // a cache line
    parallel_ranges(team, n, 1, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            layer_norm_dx(dim, x + r * dim, w, dy + r * dim, mean[r], rstd[r], dx + r * dim);
        }
    });
    if (dw == nullptr && db == nullptr) return;
    parallel_ranges(team, dim, kColumns, [&](int, std::int64_t begin, std::int64_t end) {
        row_vectors<T>(end - begin, [&](std::int64_t d, int m) {
            layer_norm_columns(n, dim, begin + d, m, x, dy, mean, rstd, dw, db);
        });
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
