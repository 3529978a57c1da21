// One step forward, for any cell and any sizes: the recurrent product, the cell on its result, the new state.
// Blocks (tile of 8 N positions, tile of 16 units).
#pragma once

#include "cells/call.h"
#include "kernels/arguments.h"
#include "kernels/product.h"
#include "kernels/source.h"

namespace fusedrnn::cuda {

template <class Cell, Math kMath, int N, bool kVector>
class StepForward {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    using Product = StepProduct<kMath, G, N, kVector>;
    using T = typename Product::T;
    using C = typename Product::C;
    using V = typename MathTraits<kMath>::V;

    static FUSEDRNN_DEVICE void run(const StepForwardArgs& args) {
        const int position = block_index().x * Product::kColumns, unit = block_index().y * kUnits;
        const int units = static_cast<int>(args.source.H);
        find_rows(args, position);
        block_barrier();
        // What the cells need besides the product is on its way while the product is made.
        Inputs inputs[kThreadCells<N>];
        FUSEDRNN_UNROLL
        for (int i = 0; i < kThreadCells<N>; ++i) {
            inputs[i] = read(args, position, unit, thread_index() + i * block_threads());
        }
        if (args.product == nullptr) {
            Product::run(static_cast<const T*>(args.w_hh), unit, units, static_cast<int>(args.source.P));
        }
        FUSEDRNN_UNROLL
        for (int i = 0; i < kThreadCells<N>; ++i) {
            const int cell = thread_index() + i * block_threads();
            if (inputs[i].given) {
                apply(args, position + cell / kUnits, unit + cell % kUnits, cell, inputs[i]);
            }
        }
    }

  private:
    struct Inputs {
        bool given;
        V gx[G], s[S];
    };

    static FUSEDRNN_DEVICE void find_rows(const StepForwardArgs& args, int position) {
        const int column = thread_index(), p = position + column;
        if (column >= Product::kColumns) return;
        RowEntry<T, C> entry;
        if (p < args.rows) {
            entry.row = row_at(args.order, p);
            entry.factor = entry.hidden = hidden_before<T>(args.source, args.now, p, entry.row);
            if constexpr (S > 1) {
                entry.states = state_before<C>(args.source, args.now, p, entry.row, 1,
                                               static_cast<const C*>(args.states_before), S);
            }
        }
        Product::table()[column] = entry;
    }

    static FUSEDRNN_DEVICE Inputs read(const StepForwardArgs& args, int position, int unit, int cell) {
        Inputs inputs{};
        const int column = cell / kUnits;
        const std::int64_t H = args.source.H, p = position + column, u = unit + cell % kUnits;
        inputs.given = cell < Product::kCells && p < args.rows && u < H;
        if (!inputs.given) return inputs;
        const C* const gx = static_cast<const C*>(args.gx) + p * G * H + u;
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) inputs.gx[g] = V::set(load_constant(gx + g * H));
        const RowEntry<T, C>& entry = Product::table()[column];
        if constexpr (Cell::kDirectHidden) {
            if (entry.hidden != nullptr) inputs.s[0] = V::set(widen(load_constant(entry.hidden + u)));
        }
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) {
            const C* const from = k == 1
                                      ? entry.states
                                      : state_before<C>(args.source, args.now, static_cast<int>(p), entry.row,
                                                        k, static_cast<const C*>(args.states_before), S);
            if (from != nullptr) inputs.s[k] = V::set(load(from + u));
        }
        return inputs;
    }

    static FUSEDRNN_DEVICE void apply(const StepForwardArgs& args, std::int64_t p, std::int64_t u, int cell,
                                      const Inputs& inputs) {
        const std::int64_t H = args.source.H;
        V gates[G], s_next[S], saved[Cell::kSaved];
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            if (args.product == nullptr) {
                gates[g] = V::set(Product::sum(g, cell / kUnits, cell % kUnits));
            } else {
                gates[g] = V::set(load_constant(static_cast<const C*>(args.product) + (p * G + g) * H + u));
            }
            if constexpr (!Cell::kSplitGates) {
                gates[g] = gates[g] + inputs.gx[g];
            } else if (args.b_hh != nullptr) {
                gates[g] =
                    gates[g] + V::set(widen(load_constant(static_cast<const T*>(args.b_hh) + g * H + u)));
            }
        }
        const V units[1] = {};
        call_forward<Cell>(inputs.gx, gates, units, inputs.s, s_next, saved);
        const std::int64_t row = args.hidden_by_position ? p : Product::table()[cell / kUnits].row;
        store(static_cast<T*>(args.hidden) + row * args.hidden_stride + u, narrow<T>(s_next[0].v));
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) {
            store(static_cast<C*>(args.states) + (p * (S - 1) + k - 1) * H + u, s_next[k].v);
        }
        if (args.saved == nullptr) return;
        C* const tape = static_cast<C*>(args.saved) + (p * H + u) * Cell::kSaved;
        FUSEDRNN_UNROLL
        for (int k = 0; k < Cell::kSaved; ++k) store(tape + k, saved[k].v);
    }
};

template <class Cell, Math kMath, int N, bool kVector>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kStepThreads, 1) void step_forward(StepForwardArgs args) {
    StepForward<Cell, kMath, N, kVector>::run(args);
}

// The output from the hidden state, where there is a projection. Blocks (tile of 8 N positions, tile of 16
// outputs).
template <Math kMath, int N, bool kVector>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kStepThreads, 1) void step_project(ProjectArgs args) {
    using Product = StepProduct<kMath, 1, N, kVector>;
    using T = typename Product::T;
    using C = typename Product::C;
    const int position = block_index().x * Product::kColumns, unit = block_index().y * kUnits;
    if (thread_index() < Product::kColumns) {
        const int p = position + thread_index();
        RowEntry<T, C> entry;
        if (p < args.count) {
            entry.factor = static_cast<const T*>(args.rows) + static_cast<std::int64_t>(p) * args.k;
            entry.row = row_at(args.order, p);
        }
        Product::table()[thread_index()] = entry;
    }
    block_barrier();
    Product::run(static_cast<const T*>(args.w), unit, args.m, args.k);
    for (int cell = thread_index(); cell < Product::kCells; cell += block_threads()) {
        const int column = cell / kUnits, u = unit + cell % kUnits;
        if (position + column >= args.count || u >= args.m) continue;
        T* const to = static_cast<T*>(args.out) + Product::table()[column].row * args.out_stride;
        store(to + u, narrow<T>(Product::sum(0, column, cell % kUnits)));
    }
}

}  // namespace fusedrnn::cuda
