// What happens to whole rows between the programs of a step (RowOperation in cells/program_list.h), and the adjoints.
//
// Links are the values that one stage leaves for another: of a group of rows, row by row, so that a product may take
// them. Normalised values stay where they are. Their mean is that of the distances from the row's first value, so that
// equal values have none; what its rounding leaves is corrected by the mean of the distances from it.
#pragma once

#include "cpu/program_tiles.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Rows that are normalised together, and the chains of additions of each: in turn they hide the latency of an addition.
inline constexpr int kRowsTogether = 2, kChains = 2;

template <class T>
struct Links {
    static constexpr std::int64_t L = Vec<T>::kLanes;
    T* at;
    const T** rows;  // of a product
    T* normed;       // room for kRowsTogether of as many values as are normalised together
    std::int64_t width;
    int count;

    Links() = default;
    Links(const CellSizes<ProgramCell>& c, std::int64_t panels, Arena& arena)
        : at(arena.template take<T>(kRowGroup * c.links * panels * L)),
          rows(arena.template take<const T*>(c.staged ? kRowGroup : 0)),
          normed(arena.template take<T>(c.norms > 0 ? kRowsTogether * panels * L * larger(c.G, c.links) : 0)),
          width(panels * L),
          count(c.links) {}
    void place(ProgramTiles<T>& tiles, const CellPrograms& values) const {
        tiles.place(values.links, count, at, width, count * width, L);
    }
};
template <class Cell, class T>
struct LinksOf {
    using Type = NoTiles;
};
template <class T>
struct LinksOf<ProgramCell, T> {
    using Type = Links<T>;
};

// body(the first row's vector, how far the next row's is, the vector's number, its chain, how many of its lanes are units)
// for the vectors of the values of some rows, the first of them row i. A vector's chain depends on the value alone.
template <class T, class Body>
FUSEDRNN_INLINE void each_vector(const Place<T>* values, int count, std::int64_t i, std::int64_t units,
                                 const Body& body) {
    constexpr int L = Vec<T>::kLanes;
    const std::int64_t panel = values[0].panel, next = values[0].row;
    // Those of gates and of the tape stand beside each other.
    const bool beside = count == 1 || (values[count - 1].at == values[0].at + (count - 1) * L &&
                                       values[count - 1].panel == panel);
    std::int64_t k = 0, u = 0;
    if (beside) {
        T* at = values[0].at + i * next;
        for (; (u + 1) * L <= units; ++u, at += panel) {
            int v = 0;
            for (; v + 1 < count; v += 2, k += 2) {
                body(at + v * L, next, k, 0, L);
                body(at + (v + 1) * L, next, k + 1, 1, L);
            }
            if (v < count) body(at + v * L, next, k++, 0, L);
        }
    }
    for (; u * L < units; ++u) {
        const int valid = static_cast<int>(smaller(L, units - u * L));
        for (int v = 0; v < count; ++v, ++k) {
            const Place<T>& p = values[v];
            T* at = p.at + i * p.row + u * p.panel;
            if (v % 2 == 0)
                body(at, p.row, k, 0, valid);
            else
                body(at, p.row, k, 1, valid);
        }
    }
}

// body(number, chain, how many of its lanes are units) for the vectors of a row of so many values, one after another.
template <class T, class Body>
FUSEDRNN_INLINE void each_number(int count, std::int64_t units, const Body& body) {
    constexpr int L = Vec<T>::kLanes;
    const std::int64_t whole = units / L * count, total = panels_of<T>(units) * count;
    const int rest = static_cast<int>(units % L);
    std::int64_t k = 0;
    for (; k + 2 <= whole; k += 2) {
        body(k, 0, L);
        body(k + 1, 1, L);
    }
    if (k < whole) body(k++, 0, L);
    for (; k < total; ++k) body(k, 0, rest);
}

// Sums of R rows, N of each, while they are added up.
template <class T, int R, int N>
struct RowSums {
    Vec<T> of[kChains][R][N];

    FUSEDRNN_INLINE RowSums() {
#pragma GCC unroll 8
        for (int i = 0; i < kChains * R * N; ++i) of[i / (R * N)][i / N % R][i % N] = Vec<T>::set(0);
    }
    FUSEDRNN_INLINE T total(int r, int n) const { return sum(of[0][r][n] + of[1][r][n]); }
};

template <int R, class T, class Keep>
FUSEDRNN_INLINE void normalise_rows(const Place<T>* values, const Place<T>* results, int count,
                                    std::int64_t i, std::int64_t units, T* rows, const Keep& keep) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const std::int64_t size = panels_of<T>(units) * count * L;
    const T each = T(1) / static_cast<T>(units * count);
    V first[R], mean[R], scale[R], shift[R];
    for (int r = 0; r < R; ++r) first[r] = V::set(*(values[0].at + (i + r) * values[0].row));
    RowSums<T, R, 1> distances;
    each_vector(values, count, i, units,
                [&](const T* at, std::int64_t next, std::int64_t k, int chain, int valid)
                    __attribute__((always_inline)) {
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r) {
                            const V d = first_lanes(V::load(at + r * next) - first[r], valid);
                            d.store(rows + r * size + k * L);
                            distances.of[chain][r][0] = distances.of[chain][r][0] + d;
                        }
                    });
    for (int r = 0; r < R; ++r) mean[r] = V::set(each * distances.total(r, 0));
    RowSums<T, R, 2> moments;
    each_number<T>(count, units, [&](std::int64_t k, int chain, int valid) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            V(&sums)[2] = moments.of[chain][r];
            const V d = first_lanes(V::load(rows + r * size + k * L) - mean[r], valid);
            sums[0] = sums[0] + d;
            sums[1] = fma(d, d, sums[1]);
        }
    });
    for (int r = 0; r < R; ++r) {
        const double rest = static_cast<double>(each * moments.total(r, 0));
        const double spread = static_cast<double>(each * moments.total(r, 1)) - rest * rest;
        const double inverse = 1.0 / __builtin_sqrt((spread < 0 ? 0 : spread) + kNormaliseEps);
        scale[r] = V::set(static_cast<T>(inverse));
        shift[r] = V::set(static_cast<T>(-rest * inverse));
        keep(i + r, static_cast<T>(inverse));
    }
    each_vector(results, count, i, units,
                [&](T* at, std::int64_t next, std::int64_t k, int, int valid) __attribute__((always_inline)) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        const V d = V::load(rows + r * size + k * L) - mean[r];
                        first_lanes(fma(d, scale[r], shift[r]), valid).store(at + r * next);
                    }
                });
}

// To `results`, which may be the values themselves: each of n rows of values less its mean, over the root of its variance
// and kNormaliseEps; lanes past the units become 0. keep(row, inverse of that root). `rows` has room for kRowsTogether.
template <class T, class Keep>
void normalise(const Place<T>* values, const Place<T>* results, int count, Range some, std::int64_t units,
               T* rows, const Keep& keep) {
    std::int64_t i = some.begin;
    for (; i + kRowsTogether <= some.end; i += kRowsTogether)
        normalise_rows<kRowsTogether>(values, results, count, i, units, rows, keep);
    for (; i < some.end; ++i) normalise_rows<1>(values, results, count, i, units, rows, keep);
}

template <int R, class T, class Rstd>
FUSEDRNN_INLINE void normalise_rows_backward(const Place<T>* gradients, const Place<T>* results, int count,
                                             std::int64_t i, std::int64_t units, T* rows, const Rstd& rstd) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const std::int64_t size = panels_of<T>(units) * count * L;
    const T each = T(1) / static_cast<T>(units * count);
    each_vector(results, count, i, units,
                [&](const T* at, std::int64_t next, std::int64_t k, int, int valid)
                    __attribute__((always_inline)) {
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r)
                            first_lanes(V::load(at + r * next), valid).store(rows + r * size + k * L);
                    });
    RowSums<T, R, 2> moments;
    each_vector(gradients, count, i, units,
                [&](const T* at, std::int64_t next, std::int64_t k, int chain, int valid)
                    __attribute__((always_inline)) {
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r) {
                            V(&sums)[2] = moments.of[chain][r];
                            const V g = first_lanes(V::load(at + r * next), valid);
                            sums[0] = sums[0] + g;
                            sums[1] = fma(g, V::load(rows + r * size + k * L), sums[1]);
                        }
                    });
    V by[R], minus_mean[R], minus_slope[R];
    for (int r = 0; r < R; ++r) {
        const T scale = rstd(i + r);
        by[r] = V::set(scale);
        minus_mean[r] = V::set(-scale * (each * moments.total(r, 0)));
        minus_slope[r] = V::set(-scale * (each * moments.total(r, 1)));
    }
    each_vector(gradients, count, i, units,
                [&](T* at, std::int64_t next, std::int64_t k, int, int valid) __attribute__((always_inline)) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        const V d = fma(V::load(at + r * next), by[r], minus_mean[r]);
                        const V y = V::load(rows + r * size + k * L);
                        first_lanes(fma(y, minus_slope[r], d), valid).store(at + r * next);
                    }
                });
}

// The adjoint, in place of the gradients g of the normalised values y: rstd (g - mean(g) - y mean(g y)).
template <class T, class Rstd>
void normalise_backward(const Place<T>* gradients, const Place<T>* results, int count, Range some,
                        std::int64_t units, T* rows, const Rstd& rstd) {
    std::int64_t i = some.begin;
    for (; i + kRowsTogether <= some.end; i += kRowsTogether)
        normalise_rows_backward<kRowsTogether>(gradients, results, count, i, units, rows, rstd);
    for (; i < some.end; ++i) normalise_rows_backward<1>(gradients, results, count, i, units, rows, rstd);
}

// Where a group's products are: gx, which they start from where the gates are not split, and what they give.
template <class T>
struct HiddenGates {
    const T* gx;
    std::int64_t gx_rows;
    T* out;
    std::int64_t out_rows;
};

// An operation of forward on n rows of a group that has all panels. Where `keeps`, normalised values go to the tape.
template <class T, class Keep>
void operate(const CellSizes<ProgramCell>& c, const Dims& d, const Packed<T>& weights,
             const CellPrograms& values, const RowOperation& operation, const ProgramTiles<T>& tiles,
             const Links<T>& links, Range rows, const HiddenGates<T>& gates, bool keeps, Keep&& keep) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    if (operation.kind == RowKind::kNormalise) {
        const Place<T>* const from = tiles.places(operation.value);
        const Place<T>* const to = keeps ? tiles.places(values.saved + operation.saved) : from;
        normalise<T>(from, to, operation.count, rows, d.H, links.normed, keep);
        return;
    }
    const std::int64_t n = rows.end;
    for (std::int64_t i = 0; i < n; ++i)
        links.rows[i] = links.at + (i * links.count + operation.link) * links.width;
    const std::int64_t first = operation.first_gate * L, panels = panels_of<T>(d.H);
    GemmArgs<T> args = plain_rows<T>(links.rows, n, d.H);
    take_panels<T>(args, weights.w_hh, {0, panels}, d.H);
    args.b += operation.first_gate * panels * args.b_panel;
    if (c.split_gates) {
        args.init = weights.b_h + first;
        args.init_panel = c.G * L;
    } else {
        args.init = gates.gx + first;
        args.init_panel = gates.gx_rows * c.G * L;
        args.init_row = c.G * L;
    }
    args.out = gates.out + first;
    args.out_panel = gates.out_rows * c.G * L;
    args.out_row = c.G * L;
    gate_products<ProgramCell>(d, args, operation.count);
}

// Where the gradients of the gates of h are, for n rows of a group: those of row i, panel u at `at` + i * row + u * panel.
template <class T, class Rstd>
void operate_backward(const Dims& d, const Packed<T>& weights, const CellPrograms& values,
                      const RowOperation& operation, const ProgramTiles<T>& tiles, const Links<T>& links,
                      Range rows, const Place<T>& gates, Rstd&& rstd) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    if (operation.kind == RowKind::kNormalise) {
        normalise_backward<T>(tiles.places(operation.value), tiles.places(values.saved + operation.saved),
                              operation.count, rows, d.H, links.normed, rstd);
        return;
    }
    const std::int64_t n = rows.end;
    const std::int64_t panels = panels_of<T>(d.H);
    for (std::int64_t i = 0; i < n; ++i) links.rows[i] = gates.at + i * gates.row + operation.first_gate * L;
    GemmArgs<T> args = paneled_rows<T>(links.rows, n, panels, operation.count * L, gates.panel);
    take_panels<T>(args, weights.w_hh_t + operation.first_gate * panel_depth<T>(links.width) * links.width,
                   {0, panels}, d.H);
    args.out = links.at + operation.link * links.width;
    args.out_panel = L;
    args.out_row = links.count * links.width;
    gemm<T, 1>(args);
}

// Calls f(operation) for each product within a step.
template <class F>
FUSEDRNN_INLINE void for_each_product(const CellPrograms& programs, F&& f) {
    for (int i = 0; i < programs.forward.count; ++i) {
        const ProgramStage& stage = programs.forward.stages[i];
        for (int k = 0; k < stage.operation_count; ++k) {
            if (stage.operations[k].kind == RowKind::kProduct) f(stage.operations[k]);
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
