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
    T* row;          // room for two, of as many values as are normalised together
    std::int64_t width;
    int count;

    Links() = default;
    Links(const CellSizes<ProgramCell>& c, std::int64_t panels, Arena& arena)
        : at(arena.template take<T>(kRowGroup * c.links * panels * L)),
          rows(arena.template take<const T*>(c.staged ? kRowGroup : 0)),
          row(arena.template take<T>(c.norms > 0 ? 2 * panels * L * larger(c.G, c.links) : 0)),
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

// The vectors of one row of some values, panel by panel: those before `whole` are all units, of the others, up to `total`,
// the first `rest` lanes.
template <class T>
struct RowVectors {
    static constexpr int L = Vec<T>::kLanes;
    std::int64_t whole, total;
    int rest;

    RowVectors(int count, std::int64_t units)
        : whole(units / L * count), total((units + L - 1) / L * count), rest(static_cast<int>(units % L)) {}

    // body(vector's place, its number, how many of its lanes are units), for row i of the values.
    template <class Body>
    static FUSEDRNN_INLINE void each(const Place<T>* values, int count, std::int64_t i, std::int64_t units,
                                     Body&& body) {
        std::int64_t k = 0, u = 0;
        const std::int64_t panel = values[0].panel;
        // Those of gates and of the tape stand beside each other.
        const bool beside = count == 1 || (values[count - 1].at == values[0].at + (count - 1) * L &&
                                           values[count - 1].panel == panel);
        if (beside) {
            T* at = values[0].at + i * values[0].row;
            for (; (u + 1) * L <= units; ++u, at += panel) {
                for (int v = 0; v < count; ++v, ++k) body(at + v * L, k, L);
            }
        }
        for (; u * L < units; ++u) {
            const int valid = static_cast<int>(smaller(L, units - u * L));
            for (int v = 0; v < count; ++v, ++k) {
                const Place<T>& p = values[v];
                body(p.at + i * p.row + u * p.panel, k, valid);
            }
        }
    }

    // N sums over them: add(number, sums, how many lanes are units). Four chains for each hide the latency of the additions.
    template <int N, class Add>
    FUSEDRNN_INLINE void sum_up(T (&sums)[N], Add&& add) const {
        using V = Vec<T>;
        constexpr int kChains = 4;
        V acc[kChains][N];
#pragma GCC unroll 8
        for (int j = 0; j < kChains; ++j) {
            for (int k = 0; k < N; ++k) acc[j][k] = V::set(0);
        }
        std::int64_t k = 0;
        for (; k + kChains <= whole; k += kChains) {
#pragma GCC unroll 8
            for (int j = 0; j < kChains; ++j) add(k + j, acc[j], L);
        }
        for (; k < whole; ++k) add(k, acc[0], L);
        for (; k < total; ++k) add(k, acc[0], rest);
        for (int n = 0; n < N; ++n) sums[n] = sum((acc[0][n] + acc[1][n]) + (acc[2][n] + acc[3][n]));
    }
};

// To `results`, which may be the values themselves: each of n rows of values less its mean, over the root of its variance
// and kNormaliseEps; lanes past the units become 0. keep(row, inverse of that root). `row` has room for one.
template <class T, class Keep>
void normalise(const Place<T>* values, const Place<T>* results, int count, std::int64_t n, std::int64_t units,
               T* row, Keep&& keep) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const RowVectors<T> vectors(count, units);
    const T each = T(1) / static_cast<T>(units * count);
    for (std::int64_t i = 0; i < n; ++i) {
        const V first = V::set(*(values[0].at + i * values[0].row));
        vectors.each(values, count, i, units, [&](const T* at, std::int64_t k, int valid) {
            first_lanes(V::load(at) - first, valid).store(row + k * L);
        });
        T total[1], sums[2];
        vectors.sum_up(total,
                       [&](std::int64_t k, V(&acc)[1], int) { acc[0] = acc[0] + V::load(row + k * L); });
        const V mean = V::set(each * total[0]);
        vectors.sum_up(sums, [&](std::int64_t k, V(&acc)[2], int valid) {
            const V d = first_lanes(V::load(row + k * L) - mean, valid);
            acc[0] = acc[0] + d;
            acc[1] = fma(d, d, acc[1]);
        });
        const double rest = static_cast<double>(each * sums[0]);
        const double spread = static_cast<double>(each * sums[1]) - rest * rest;
        const double inverse = 1.0 / __builtin_sqrt((spread < 0 ? 0 : spread) + kNormaliseEps);
        const V scale = V::set(static_cast<T>(inverse)), shift = V::set(static_cast<T>(-rest * inverse));
        vectors.each(results, count, i, units, [&](T* at, std::int64_t k, int valid) {
            first_lanes(fma(V::load(row + k * L) - mean, scale, shift), valid).store(at);
        });
        keep(i, static_cast<T>(inverse));
    }
}

// The adjoint, in place of the gradients g of the normalised values y: rstd (g - mean(g) - y mean(g y)).
template <class T, class Rstd>
void normalise_backward(const Place<T>* gradients, const Place<T>* results, int count, std::int64_t n,
                        std::int64_t units, T* row, Rstd&& rstd) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const RowVectors<T> vectors(count, units);
    const T each = T(1) / static_cast<T>(units * count);
    T* const ys = row + vectors.total * L;
    for (std::int64_t i = 0; i < n; ++i) {
        vectors.each(gradients, count, i, units, [&](const T* at, std::int64_t k, int valid) {
            first_lanes(V::load(at), valid).store(row + k * L);
        });
        vectors.each(results, count, i, units, [&](const T* at, std::int64_t k, int valid) {
            first_lanes(V::load(at), valid).store(ys + k * L);
        });
        T sums[2];
        vectors.sum_up(sums, [&](std::int64_t k, V(&acc)[2], int) {
            const V g = V::load(row + k * L);
            acc[0] = acc[0] + g;
            acc[1] = fma(g, V::load(ys + k * L), acc[1]);
        });
        const T scale = rstd(i);
        const V by = V::set(scale), minus_mean = V::set(-scale * (each * sums[0]));
        const V minus_slope = V::set(-scale * (each * sums[1]));
        vectors.each(gradients, count, i, units, [&](T* at, std::int64_t k, int valid) {
            const V d = fma(V::load(row + k * L), by, minus_mean);
            first_lanes(fma(V::load(ys + k * L), minus_slope, d), valid).store(at);
        });
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

// An operation of forward on n rows of a group that has all panels. Where `keeps`, normalised values go to the tape.
template <class T, class Keep>
void operate(const CellSizes<ProgramCell>& c, const Dims& d, const Packed<T>& weights,
             const CellPrograms& values, const RowOperation& operation, const ProgramTiles<T>& tiles,
             const Links<T>& links, std::int64_t n, const HiddenGates<T>& gates, bool keeps, Keep&& keep) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    if (operation.kind == RowKind::kNormalise) {
        const Place<T>* const from = tiles.places(operation.value);
        const Place<T>* const to = keeps ? tiles.places(values.saved + operation.saved) : from;
        normalise<T>(from, to, operation.count, n, d.H, links.row, keep);
        return;
    }
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
                      std::int64_t n, const Place<T>& gates, Rstd&& rstd) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    if (operation.kind == RowKind::kNormalise) {
        normalise_backward<T>(tiles.places(operation.value), tiles.places(values.saved + operation.saved),
                              operation.count, n, d.H, links.row, rstd);
        return;
    }
    const std::int64_t panels = panels_of<T>(d.H);
    for (std::int64_t i = 0; i < n; ++i) links.rows[i] = gates.at + i * gates.row + operation.first_gate * L;
    GemmArgs<T> args = paneled_rows<T>(links.rows, n, panels, operation.count * L, gates.panel);
    take_panels<T>(args, weights.w_hh_t + operation.first_gate * links.width * links.width, {0, panels}, d.H);
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
