// What happens to whole rows between the programs of a step (RowOperation in cells/program_list.h), and the adjoints.
//
// Links are the values that one stage leaves for another: of a group of rows, row by row, so that a product may take
// them. Normalised values stay where they are. Their mean is that of the distances from the row's first value, so that
// equal values have none; what its rounding leaves is corrected by the mean of the distances from it.
#pragma once

#include "cpu/program_tiles.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct Links {
    static constexpr std::int64_t L = Vec<T>::kLanes;
    T* at;
    const T** rows;  // of a product
    std::int64_t width;
    int count;

    Links() = default;
    Links(const CellSizes<ProgramCell>& c, std::int64_t panels, Arena& arena)
        : at(arena.template take<T>(kRowGroup * c.links * panels * L)),
          rows(arena.template take<const T*>(c.staged ? kRowGroup : 0)),
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

// N sums over a row of `count` values: add(value, panel, valid lanes, sums), which adds a term of each vector to each. Four
// chains for each sum hide the latency of the additions.
template <int N, class T, class Add>
FUSEDRNN_INLINE void sum_values(int count, std::int64_t units, Add&& add, T (&sums)[N]) {
    using V = Vec<T>;
    constexpr int L = V::kLanes, kChains = 4;
    V acc[kChains][N];
#pragma GCC unroll 8
    for (int j = 0; j < kChains; ++j) {
        for (int k = 0; k < N; ++k) acc[j][k] = V::set(0);
    }
    const std::int64_t panels = (units + L - 1) / L;
    if (count == 1) {
        std::int64_t u = 0;
        for (; u + kChains < panels; u += kChains) {
#pragma GCC unroll 8
            for (int j = 0; j < kChains; ++j) add(0, u + j, L, acc[j]);
        }
        for (; u < panels; ++u) add(0, u, static_cast<int>(smaller(L, units - u * L)), acc[0]);
    } else {
        for (std::int64_t u = 0; u < panels; ++u) {
            const int valid = static_cast<int>(smaller(L, units - u * L));
            for (int v = 0; v < count; v += kChains) {
#pragma GCC unroll 8
                for (int j = 0; j < kChains; ++j) {
                    if (v + j < count) add(v + j, u, valid, acc[j]);
                }
            }
        }
    }
    for (int k = 0; k < N; ++k) sums[k] = sum((acc[0][k] + acc[1][k]) + (acc[2][k] + acc[3][k]));
}

// Each of n rows of values less its mean, over the root of its variance and kNormaliseEps; lanes past the units become 0.
// keep(row, inverse of that root).
template <class T, class Keep>
void normalise(const Place<T>* values, int count, std::int64_t n, std::int64_t units, Keep&& keep) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const T each = T(1) / static_cast<T>(units * count);
    for (std::int64_t i = 0; i < n; ++i) {
        const auto at = [&](int v, std::int64_t u) { return values[v].at + i * values[v].row + u * values[v].panel; };
        const V first = V::set(*at(0, 0));
        T from_first[1], sums[2];
        sum_values<1>(
            count, units,
            [&](int v, std::int64_t u, int valid, V(&acc)[1]) {
                acc[0] = acc[0] + first_lanes(V::load(at(v, u)) - first, valid);
            },
            from_first);
        const V mean = first + V::set(each * from_first[0]);
        sum_values<2>(
            count, units,
            [&](int v, std::int64_t u, int valid, V(&acc)[2]) {
                const V d = first_lanes(V::load(at(v, u)) - mean, valid);
                acc[0] = acc[0] + d;
                acc[1] = fma(d, d, acc[1]);
            },
            sums);
        const double rest = static_cast<double>(each * sums[0]);
        const double spread = static_cast<double>(each * sums[1]) - rest * rest;
        const double inverse = 1.0 / __builtin_sqrt((spread < 0 ? 0 : spread) + kNormaliseEps);
        const T rstd = static_cast<T>(inverse);
        const V scale = V::set(rstd), shift = V::set(static_cast<T>(-rest * inverse));
        for (std::int64_t u = 0; u * L < units; ++u) {
            const int valid = static_cast<int>(smaller(L, units - u * L));
            for (int v = 0; v < count; ++v) {
                T* const p = at(v, u);
                first_lanes(fma(V::load(p) - mean, scale, shift), valid).store(p);
            }
        }
        keep(i, rstd);
    }
}

// The adjoint, in place of the gradients g of the normalised values y: rstd (g - mean(g) - y mean(g y)).
template <class T, class Rstd>
void normalise_backward(const Place<T>* gradients, const Place<T>* results, int count, std::int64_t n,
                        std::int64_t units, Rstd&& rstd) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const T each = T(1) / static_cast<T>(units * count);
    for (std::int64_t i = 0; i < n; ++i) {
        const auto at = [i](const Place<T>& p, std::int64_t u) { return p.at + i * p.row + u * p.panel; };
        T sums[2];
        sum_values<2>(
            count, units,
            [&](int v, std::int64_t u, int valid, V(&acc)[2]) {
                const V g = first_lanes(V::load(at(gradients[v], u)), valid);
                acc[0] = acc[0] + g;
                acc[1] = fma(g, first_lanes(V::load(at(results[v], u)), valid), acc[1]);
            },
            sums);
        const T scale = rstd(i);
        const V minus_mean = V::set(-scale * (each * sums[0])), minus_slope = V::set(-scale * (each * sums[1]));
        for (std::int64_t u = 0; u * L < units; ++u) {
            const int valid = static_cast<int>(smaller(L, units - u * L));
            for (int v = 0; v < count; ++v) {
                T* const p = at(gradients[v], u);
                const V d = fma(V::load(p), V::set(scale), minus_mean);
                first_lanes(fma(V::load(at(results[v], u)), minus_slope, d), valid).store(p);
            }
        }
    }
}

// Where a group's products are: gx, which they start from where the gates are not split, and what they give.
template <class T>
struct HiddenGates {
    const T* gx;
    std::int64_t gx_rows;
    T* out;
    std::int64_t out_rows;
};

// An operation of forward on n rows of a group that has all panels.
template <class T, class Keep>
void operate(const CellSizes<ProgramCell>& c, const Dims& d, const Packed<T>& weights,
             const RowOperation& operation, const ProgramTiles<T>& tiles, const Links<T>& links, std::int64_t n,
             const HiddenGates<T>& gates, Keep&& keep) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    if (operation.kind == RowKind::kNormalise) {
        normalise<T>(tiles.places(operation.value), operation.count, n, d.H, keep);
        return;
    }
    for (std::int64_t i = 0; i < n; ++i)
        links.rows[i] = links.at + (i * links.count + operation.link) * links.width;
    const std::int64_t first = operation.first_gate * L, panels = panels_of<T>(d.H);
    GemmArgs<T> args{};
    args.a = links.rows;
    args.n = n;
    args.chunks = 1;
    args.chunk_len = d.H;
    args.b_panel = d.H * L;
    args.b = weights.w_hh + operation.first_gate * panels * args.b_panel;
    args.panels = panels;
    args.columns = d.H;
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
                      std::int64_t n, const Place<T>& gates, Rstd&& rstd) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    if (operation.kind == RowKind::kNormalise) {
        normalise_backward<T>(tiles.places(operation.value), tiles.places(values.saved + operation.saved),
                              operation.count, n, d.H, rstd);
        return;
    }
    const std::int64_t panels = panels_of<T>(d.H);
    for (std::int64_t i = 0; i < n; ++i) links.rows[i] = gates.at + i * gates.row + operation.first_gate * L;
    GemmArgs<T> args{};
    args.a = links.rows;
    args.n = n;
    args.chunks = panels;
    args.chunk_len = operation.count * L;
    args.chunk_stride = gates.panel;
    args.b = weights.w_hh_t + operation.first_gate * links.width * links.width;
    args.b_panel = panels * operation.count * L * L;
    args.panels = panels;
    args.columns = d.H;
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
