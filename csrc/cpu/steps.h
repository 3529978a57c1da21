// What forward and backward share: which rows a member owns, and where a row finds the state before a step.
#pragma once

#include "cells/call.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/layout.h"
#include "cpu/partition.h"
#include "cpu/sizes.h"
#include "previous_state.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Rows whose accumulators stay in the L1 cache between matmul and cell; in bfloat16 as many as a column of tiles has.
inline constexpr std::int64_t kRowGroup = kBf16 ? 64 : 32;

// Positions first, first + stride, ... of the batch (in the order of the schedule) and a range of unit panels.
struct Part {
    std::int64_t first, stride;
    Range panels;

    // How many of the first `active` positions are this member's.
    std::int64_t rows(std::int64_t active) const {
        return active <= first ? 0 : (active - first - 1) / stride + 1;
    }
    std::int64_t position(std::int64_t i) const { return first + i * stride; }
};

inline Part part_of(const Dims& d, std::int64_t panels, int threads, int member) {
    if (recurrent_split(d, threads) == Split::kRows) return {member, threads, {0, panels}};
    return {0, 1, share(panels, threads, member)};
}

inline std::int64_t longest(const Dims& d, const Schedule& s) { return d.B == 0 ? 0 : s.length[0]; }

template <int G>
constexpr std::int64_t accumulator_vectors() {
    return kRowGroup * G * most_panels_at_once<G>();
}

// Rows and panels go from a product through the cells together, in groups. A program wants them larger than a product does:
// many vectors for each of its instructions, be it those of panels where there are few rows.
inline constexpr std::int64_t kProgramGroup = 64;
template <class Cell, int kGates>
std::int64_t group_panels(std::int64_t rows) {
    const std::int64_t panels = panels_at_once<kGates>(rows);
    if constexpr (!CellSizes<Cell>::kIsProgram) return panels;
    const std::int64_t wanted = kProgramGroup / smaller(kRowGroup, larger(1, rows));
    return larger(panels, wanted / panels * panels);
}
// Rows that a panel of a group has room for, and room for the vectors of a group.
template <class Cell>
std::int64_t group_rows(std::int64_t rows) {
    return CellSizes<Cell>::kIsProgram ? smaller(kRowGroup, rows) : kRowGroup;
}
template <class Cell, int kGates>
constexpr std::int64_t group_vectors() {
    if constexpr (!CellSizes<Cell>::kIsProgram) return kRowGroup * most_panels_at_once<kGates>();
    constexpr std::int64_t whole = kRowGroup * panels_at_once<kGates>(tile_rows<kGates>());
    return whole > kProgramGroup ? whole : kProgramGroup;
}

// The same of a cell that may work on whole rows: then all panels are one group.
template <class Cell, int kGates>
std::int64_t group_panels(const CellSizes<Cell>& c, std::int64_t panels, std::int64_t rows) {
    return c.staged ? panels : group_panels<Cell, kGates>(rows);
}
template <class Cell, int kGates>
std::int64_t group_vectors(const CellSizes<Cell>& c, std::int64_t panels, std::int64_t rows) {
    constexpr std::int64_t usual = group_vectors<Cell, kGates>();
    return c.staged ? larger(usual, panels * smaller(kRowGroup, rows)) : usual;
}

// Looks up the state before step t of row b at position p. `states`: those beyond h, by compact row (a tape) or by position
// (one state a row, overwritten by each step).
template <class Cell, class T>
class PreviousStates : CellSizes<Cell> {
    using CellSizes<Cell>::S, CellSizes<Cell>::kMostStates;

  public:
    template <class Problem>
    PreviousStates(const Problem& problem, const T* zero, const T* states, bool states_by_row)
        : CellSizes<Cell>(*problem.cell),
          schedule_(problem.schedule),
          source_(state_source(problem, S)),
          states_(states),
          states_by_row_(states_by_row) {
        source_.width = padded<T>(problem.dims.H);
        for (int k = 0; k < S; ++k) {
            if (source_.initial[k] == nullptr) source_.initial[k] = zero, source_.initial_stride[k] = 0;
            if (source_.reset[k] == nullptr) source_.reset[k] = zero, source_.reset_stride[k] = 0;
        }
    }

    // Whether a reset cuts the state on its way into step t.
    bool is_cut(std::int64_t t, std::int64_t b, std::int64_t p) const {
        return FUSEDRNN_ISA::is_cut(source_, {t, schedule_.active[t + 1]}, p, b);
    }

    void find(std::int64_t t, std::int64_t p, const T* (&out)[kMostStates]) const {
        const TimeStep now{t, schedule_.active[t + 1]};
        const std::int64_t b = schedule_.order[p], before = schedule_.reverse ? t + 1 : t - 1;
        const T* states = states_;
        if (states_by_row_ && before >= 0) states += schedule_.offset[before] * (S - 1) * source_.width;
        out[0] = hidden_before<T>(source_, now, p, b);
        for (int k = 1; k < S; ++k) out[k] = state_before(source_, now, p, b, k, states, S);
    }

  private:
    const Schedule& schedule_;
    StateSource source_;
    const T* states_;
    bool states_by_row_;
};

// The products of so many gates, given the first: one where panels interleave the gates, else one for each, from weights of
// its own to its place among the interleaved results.
template <class Cell, class T>
FUSEDRNN_INLINE void gate_products(const Dims& d, GemmArgs<T>& args, int gates) {
    constexpr int together = CellSizes<Cell>::kInterleaved;
    gemm<T, together>(args);
    for (int g = together; g < gates; g += together) {
        args.b += panels_of<T>(d.H) * args.b_panel;
        args.init += together * Vec<T>::kLanes;
        args.out += together * Vec<T>::kLanes;
        gemm<T, together>(args);
    }
}

// gx = x W_ih^T + b for n rows of inputs: [panel][row][G][L], the last panel as gate_distance says, with room for `out_rows` rows in each panel.
template <class Cell, class T>
void input_product(const CellSizes<Cell>& c, const Dims& d, const Packed<T>& weights, const T* const* rows,
                   std::int64_t n, Range panels, T* out, std::int64_t out_rows, Ahead* ahead = nullptr) {
    constexpr std::int64_t L = Vec<T>::kLanes, together = CellSizes<Cell>::kInterleaved;
    GemmArgs<T> args = plain_rows<T>(rows, n, d.I);
    args.ahead = ahead;
    take_panels<T>(args, weights.w_ih, panels, d.H, together);
    args.init = weights.b_x + panels.begin * c.G * L;
    args.init_panel = c.G * L;
    args.out = out;
    args.out_panel = out_rows * c.G * L;
    args.out_row = c.G * L;
    gate_products<Cell>(d, args, c.G);
}

// (gx, or the recurrent bias where gates are split) + h W_hh^T for n rows of h, laid out as the result of input_product.
template <class Cell, class T>
void hidden_product(const CellSizes<Cell>& c, const Dims& d, const Packed<T>& weights, const T* const* rows,
                    std::int64_t n, Range panels, const T* gx, std::int64_t gx_rows, T* out,
                    std::int64_t out_rows, Ahead* ahead = nullptr) {
    if (c.first_gates == 0) return;
    constexpr std::int64_t L = Vec<T>::kLanes, together = CellSizes<Cell>::kInterleaved;
    GemmArgs<T> args = plain_rows<T>(rows, n, d.P);
    args.ahead = ahead;
    take_panels<T>(args, weights.w_hh, panels, d.H, together);
    if (c.split_gates) {
        args.init = weights.b_h + panels.begin * c.G * L;
        args.init_panel = c.G * L;
    } else {
        args.init = gx;
        args.init_panel = gx_rows * c.G * L;
        args.init_row = c.G * L;
    }
    args.out = out;
    args.out_panel = out_rows * c.G * L;
    args.out_row = c.G * L;
    gate_products<Cell>(d, args, c.first_gates);
}

// hidden W_hr^T for n rows: [panel][out_rows][L].
template <class T>
void output_product(const Dims& d, const Packed<T>& weights, const T* const* rows, std::int64_t n,
                    Range panels, T* out, std::int64_t out_rows) {
    GemmArgs<T> args = plain_rows<T>(rows, n, d.H);
    take_panels<T>(args, weights.w_hr, panels, d.P);
    args.out = out;
    args.out_panel = out_rows * Vec<T>::kLanes;
    args.out_row = Vec<T>::kLanes;
    gemm<T, 1>(args);
}

// What the units of a panel have of all per-unit parameters.
template <class Cell, class T>
FUSEDRNN_INLINE void load_units(const T* packed, std::int64_t panel, Vec<T> (&units)[kPerUnitRoom<Cell>]) {
    constexpr int L = Vec<T>::kLanes;
    for (int v = 0; v < kPerUnit<Cell>; ++v) {
        units[v] = Vec<T>::load(packed + (panel * kPerUnit<Cell> + v) * L);
    }
}

// What `valid` units have of gates that stand so far apart; zeros past them, where other gates may stand.
template <int G, class T>
FUSEDRNN_INLINE void load_gates(const T* from, std::int64_t apart, std::int64_t valid, Vec<T> (&gates)[G]) {
    constexpr int L = Vec<T>::kLanes;
    if (apart == L) {
        for (int g = 0; g < G; ++g) gates[g] = Vec<T>::load(from + g * L);
    } else {
        for (int g = 0; g < G; ++g) gates[g] = Vec<T>::load_n(from + g * apart, static_cast<int>(valid));
    }
}

// The cell for one row and one panel of units. `acc` is what hidden_product gave, gx what input_product gave (read where
// gates are split), whose gates are so far `apart`, `units` the packed per-unit parameters, `state` the rows of the state
// before the step.
template <class Cell, class T>
FUSEDRNN_INLINE void cell_forward(const Dims& d, const T* acc, const T* gx, std::int64_t apart,
                                  const T* packed_units, const T* const* state, std::int64_t panel,
                                  Vec<T> (&s_next)[Cell::kStates], Vec<T> (&keep)[Cell::kSaved]) {
    using V = Vec<T>;
    constexpr int G = Cell::kGates, S = Cell::kStates, L = V::kLanes;
    const std::int64_t unit = panel * L, valid = d.H - unit;
    V from_x[G], gates[G], units[kPerUnitRoom<Cell>], s[S];
    load_gates(acc, apart, valid, gates);
    s[0] = Cell::kDirectHidden ? load_part(state[0] + unit, valid) : V::set(0);
    for (int k = 1; k < S; ++k) s[k] = load_part(state[k] + unit, valid);
    if constexpr (Cell::kSplitGates) load_gates(gx, apart, valid, from_x);
    load_units<Cell, T>(packed_units, panel, units);
    call_forward<Cell>(from_x, gates, units, s, s_next, keep);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
