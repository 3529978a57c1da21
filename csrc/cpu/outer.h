// Weight gradients: dW += A^T X, a sum over many rows. A holds gate gradients in panels, [H/L][rows][G][L]; X is a list
// of rows. Each element of dW is one chain of fused multiply-adds in the order of the rows; in bfloat16 outer_bf16.h.
#pragma once

#include "cpu/gemm.h"
#include "cpu/outer_args.h"
#include "cpu/sizes.h"
#ifdef FUSEDRNN_BF16
#include "cpu/outer_bf16.h"
#endif

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kOuterPanels = 3;                // vectors of X columns in a tile
inline constexpr std::int64_t kOuterBlockRows = 192;  // a tile's share of X and A stays in the L1 cache

// Adds rows k of one tile: R consecutive values of A times U vectors, to where `dw` has their sums, if anywhere.
template <class T, int R, int U>
void outer_tile(const T* a, std::int64_t a_row, const T* x, std::int64_t rows, T* const (&dw)[R],
                std::int64_t columns) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    V acc[R][U];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
            acc[r][u] = dw[r] != nullptr ? load_part(dw[r] + u * L, columns - u * L) : V::set(0);
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
        if (dw[r] != nullptr) {
#pragma GCC unroll 16
            for (int u = 0; u < U; ++u) store_part(acc[r][u], dw[r] + u * L, columns - u * L);
        }
    }
}

// The vectors [first, last) of columns, packed group by group: a few rows at a time, so that each comes from far away
// once and whole.
template <class T>
void pack_columns_of(const OuterArgs<T>& p, std::int64_t first, std::int64_t last) {
    constexpr int L = Vec<T>::kLanes;
    constexpr std::int64_t kRows = 4, kAhead = 3 * kRows;
    const PanelGroups groups(last - first, kOuterPanels, false);
    for (std::int64_t r = 0; r < p.rows; r += kRows) {
        if (r % 256 == 0 && p.team.cancelled(p.member, 256 * (last - first) * L)) return;
        for (std::int64_t k = r + kAhead; k < smaller(r + kAhead + kRows, p.rows); ++k) {
            prefetch(p.x[k] + first * L, smaller(last * L, p.columns) - first * L);
        }
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [begin, end] = groups[q];
            T* to = p.buffer + (begin * p.rows + r * (end - begin)) * L;
            for (std::int64_t k = r; k < smaller(r + kRows, p.rows); ++k) {
                for (std::int64_t v = first + begin; v < first + end; ++v, to += L) {
                    load_part(p.x[k] + v * L, p.columns - v * L).store(to);
                }
            }
        }
    }
}

// Every tile of panel j against U packed vectors of columns, in blocks of rows.
template <class T, int U>
void outer_panel(const OuterArgs<T>& p, std::int64_t j, std::int64_t vector, const T* x) {
    constexpr int L = Vec<T>::kLanes;
    constexpr int kWanted = kAccumulators / kOuterPanels;
    constexpr int R = L % kWanted == 0 ? kWanted : (L % 4 == 0 ? 4 : 1);
    const std::int64_t column = vector * L, width = smaller(U * L, p.columns - column);
    const std::int64_t values = p.gates * p.apart(j);
    // The sums of R values from one on, which come while those before are multiplied.
    struct Sums {
        T* rows[R];
    };
    const auto sums_of = [&](std::int64_t value) {
        SumRows<T> all(p, j, value);
        Sums sums;
        for (T*& row : sums.rows) {
            row = all.next();
            if (row == nullptr) continue;
            row += column;
            prefetch(row, width);
        }
        return sums;
    };
    for (std::int64_t k = 0; k < p.rows; k += kOuterBlockRows) {
        const std::int64_t count = smaller(kOuterBlockRows, p.rows - k);
        const T* const a = p.a + j * p.a_panel + k * p.row_gates * L;
        Sums sums = sums_of(0);
        for (std::int64_t value = 0; value < values; value += R) {
            const Sums next = sums_of(value + R);
            if (sums.rows[0] != nullptr)
                outer_tile<T, R, U>(a + value, p.row_gates * L, x + k * U * L, count, sums.rows, width);
            sums = next;
        }
    }
}

// The columns of vectors [first, last) of X. A's panels are the outer loop: each is read from far away once.
template <class T>
void outer(const OuterArgs<T>& p, std::int64_t first, std::int64_t last) {
#ifdef FUSEDRNN_BF16
    outer_bf16(p, first, last);
#else
    constexpr int L = Vec<T>::kLanes;
    if (p.rows == 0 || first >= last) return;
    pack_columns_of(p, first, last);
    const std::int64_t work = p.rows * p.gates * L * kOuterPanels * L;
    const PanelGroups groups(last - first, kOuterPanels, false);
    for (std::int64_t j = 0; j < panels_of<T>(p.units); ++j) {
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            if (p.team.cancelled(p.member, work)) return;
            const auto [begin, end] = groups[q];
            const T* x = p.buffer + begin * p.rows * L;
            if (end - begin == 3) {
                outer_panel<T, 3>(p, j, first + begin, x);
            } else if (end - begin == 2) {
                outer_panel<T, 2>(p, j, first + begin, x);
            } else {
                outer_panel<T, 1>(p, j, first + begin, x);
            }
        }
    }
#endif
}

// db[g*H + unit] += the sum over rows of A, for the panels [first, last), in the order of the rows. The G are the first of
// the `width` vectors of a row; in the last panel they may stand side by side.
template <class T, int G, bool kSideBySide = false>
FUSEDRNN_INLINE void sum_vectors(const T* a, std::int64_t a_panel, std::int64_t width, std::int64_t rows,
                                 std::int64_t units, T* db, T* db_also, std::int64_t first, std::int64_t last,
                                 Team& team, int member) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    for (std::int64_t j = first; j < last && !team.cancelled(member, rows * G * L); ++j) {
        const std::int64_t valid = units - j * L;
        V acc[G];
        for (int g = 0; g < G; ++g) acc[g] = V::set(0);
        const T* from = a + j * a_panel;
        const std::int64_t apart = kSideBySide ? smaller(L, valid) : L;
        for (std::int64_t k = 0; k < rows; ++k) {
#pragma GCC unroll 8
            for (int g = 0; g < G; ++g) acc[g] = acc[g] + V::load(from + k * width * L + g * apart);
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

// The same for G, the number of vectors that are summed, known when the program runs.
template <class T>
void sum_some(const T* a, std::int64_t a_panel, std::int64_t width, std::int64_t count, std::int64_t rows,
              std::int64_t units, T* db, T* db_also, std::int64_t first, std::int64_t last, Team& team,
              int member) {
    constexpr int kAtOnce = 4;
    const auto moved = [](T* p, std::int64_t n) { return p == nullptr ? nullptr : p + n; };
    std::int64_t g = 0;
    for (; g + kAtOnce <= count; g += kAtOnce) {
        sum_vectors<T, kAtOnce>(a + g * Vec<T>::kLanes, a_panel, width, rows, units, moved(db, g * units),
                                moved(db_also, g * units), first, last, team, member);
    }
    for (; g < count; ++g) {
        sum_vectors<T, 1>(a + g * Vec<T>::kLanes, a_panel, width, rows, units, moved(db, g * units),
                          moved(db_also, g * units), first, last, team, member);
    }
}

// The G of a cell, all vectors of a row.
template <class Cell, class T>
void sum_gates(const CellSizes<Cell>& c, const T* a, std::int64_t a_panel, std::int64_t rows,
               std::int64_t units, T* db, T* db_also, std::int64_t first, std::int64_t last, Team& team,
               int member) {
    if constexpr (CellSizes<Cell>::kIsProgram) {
        sum_some<T>(a, a_panel, c.G, c.G, rows, units, db, db_also, first, last, team, member);
    } else {
        sum_vectors<T, Cell::kGates, true>(a, a_panel, Cell::kGates, rows, units, db, db_also, first, last,
                                           team, member);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
