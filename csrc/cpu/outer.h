// Weight gradients: dW += A^T X, a sum over many rows. A holds gate gradients in panels, [H/L][rows][G][L]; X is a list
// of rows. Each element of dW is one chain of fused multiply-adds in the order of the rows.
#pragma once

#include "cpu/gemm.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kOuterPanels = 3;  // vectors of X columns in a tile
inline constexpr std::int64_t kOuterBlockBytes = 24 * 1024;

template <class T>
struct OuterArgs {
    const T* a;  // panel j, row k, gate g, lane l at a + j * a_panel + (k * G + g) * L + l
    std::int64_t a_panel;
    std::int64_t gates, units;  // G, H
    const T* const* x;          // `rows` rows of `columns` values
    std::int64_t rows, columns;
    T* dw;      // (G*H, columns)
    T* buffer;  // rows * kOuterPanels * L
};

// Adds rows k of one tile: R consecutive lanes of A, the first `valid` of which are units, times U vectors.
template <class T, int R, int U>
void outer_tile(const T* a, std::int64_t a_row, const T* x, std::int64_t rows, T* dw, std::int64_t dw_row,
                std::int64_t valid, std::int64_t columns) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    V acc[R][U];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            acc[r][u] = r < valid ? load_part(dw + r * dw_row + u * L, columns - u * L) : V::set(0);
        }
    }
    for (std::int64_t k = 0; k < rows; ++k) {
        V w[U];
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            w[u] = V::load(x + u * L);
            keep_in_register(w[u]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            V scale = V::set(a[r]);
            keep_in_register(scale);
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) acc[r][u] = fma(scale, w[u], acc[r][u]);
        }
        a += a_row;
        x += U * L;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        if (r < valid) {
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) store_part(acc[r][u], dw + r * dw_row + u * L, columns - u * L);
        }
    }
}

// U vectors of columns from `column` on: X packed once, then every tile of A, in blocks of rows that fit the L1 cache.
template <class T, int U>
void outer_columns(const OuterArgs<T>& p, std::int64_t column) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    constexpr int kWanted = kAccumulators / kOuterPanels;
    constexpr int R = L % kWanted == 0 ? kWanted : (L % 4 == 0 ? 4 : 1);
    const std::int64_t width = smaller(U * L, p.columns - column);
    for (std::int64_t k = 0; k < p.rows; ++k) {
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            load_part(p.x[k] + column + u * L, width - u * L).store(p.buffer + (k * U + u) * L);
        }
    }
    const std::int64_t block = larger(1, kOuterBlockBytes / (U * L * static_cast<std::int64_t>(sizeof(T))));
    for (std::int64_t k0 = 0; k0 < p.rows; k0 += block) {
        const std::int64_t count = smaller(block, p.rows - k0);
        for (std::int64_t j = 0; j < panels_of<T>(p.units); ++j) {
            const T* a = p.a + j * p.a_panel + k0 * p.gates * L;
            for (std::int64_t g = 0; g < p.gates; ++g) {
                for (std::int64_t unit = j * L; unit < smaller((j + 1) * L, p.units); unit += R) {
                    T* dw = p.dw + (g * p.units + unit) * p.columns + column;
                    outer_tile<T, R, U>(a + g * L + (unit - j * L), p.gates * L, p.buffer + k0 * U * L, count,
                                        dw, p.columns, p.units - unit, width);
                }
            }
        }
    }
}

// The columns of vectors [first, last) of X.
template <class T>
void outer(const OuterArgs<T>& p, std::int64_t first, std::int64_t last) {
    constexpr int L = Vec<T>::kLanes;
    if (p.rows == 0) return;
    while (first < last) {
        const std::int64_t left = last - first;
        if (left >= 3) {
            outer_columns<T, 3>(p, first * L);
            first += 3;
        } else if (left == 2) {
            outer_columns<T, 2>(p, first * L);
            first += 2;
        } else {
            outer_columns<T, 1>(p, first * L);
            first += 1;
        }
    }
}

// db[g*H + unit] += the sum over rows of A, for the panels [first, last), in the order of the rows.
template <class T, int G>
void sum_rows(const T* a, std::int64_t a_panel, std::int64_t rows, std::int64_t units, T* db, T* db_also,
              std::int64_t first, std::int64_t last) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    for (std::int64_t j = first; j < last; ++j) {
        const std::int64_t valid = units - j * L;
        V acc[G];
        for (int g = 0; g < G; ++g) acc[g] = V::set(0);
        const T* from = a + j * a_panel;
        for (std::int64_t k = 0; k < rows; ++k) {
#pragma GCC unroll 8
            for (int g = 0; g < G; ++g) acc[g] = acc[g] + V::load(from + (k * G + g) * L);
        }
        for (int g = 0; g < G; ++g) {
            T* to[2] = {db, db_also};
            for (T* target : to) {
                if (target == nullptr) continue;
                target += g * units + j * L;
                store_part(load_part(target, valid) + acc[g], target, valid);
            }
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
