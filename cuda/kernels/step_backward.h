// One step backward: the product that brings the gradient of h from the later step, the cell's backward on
// its result, the gate gradients. Blocks (tile of 8 N positions, tile of 16 units).
#pragma once

#include "cells/call.h"
#include "kernels/arguments.h"
#include "kernels/product.h"
#include "kernels/source.h"

namespace fusedrnn::cuda {

// Positions that a backward step has to look at: those alive now, and those whose first step was the later
// one.
template <class Args>
FUSEDRNN_HOST_DEVICE int positions_of(const Args& args) {
    return args.rows > args.later_rows ? args.rows : args.later_rows;
}

template <class Cell, Math kMath, int N, bool kVector>
class StepBackward {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    using Product = StepProduct<kMath, 1, N, kVector>;
    using T = typename Product::T;
    using C = typename Product::C;
    using V = typename MathTraits<kMath>::V;

    static FUSEDRNN_DEVICE void run(const StepBackwardArgs& args) {
        const int position = block_index().x * Product::kColumns, unit = block_index().y * kUnits;
        find_rows(args, position);
        block_barrier();
        Inputs inputs[kThreadCells<N>];
        FUSEDRNN_UNROLL
        for (int i = 0; i < kThreadCells<N>; ++i) {
            inputs[i] = read(args, position, unit, thread_index() + i * block_threads());
        }
        if (args.product == nullptr) {
            Product::run(static_cast<const T*>(args.product_w), unit, static_cast<int>(args.source.H),
                         args.k);
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
        V saved[Cell::kSaved], s[S], ds[S];  // ds: what reaches the states after the step but for the product
    };

    static FUSEDRNN_DEVICE void find_rows(const StepBackwardArgs& args, int position) {
        const int column = thread_index(), p = position + column;
        if (column >= Product::kColumns) return;
        RowEntry<T, C> entry;
        if (p < positions_of(args)) {
            entry.row = row_at(args.order, p);
            entry.carried = p < args.later_rows && !is_cut(args.source, args.later, p, entry.row);
            if (args.projected ? p < args.rows : entry.carried) {
                entry.factor =
                    static_cast<const T*>(args.product_rows) + static_cast<std::int64_t>(p) * args.k;
            }
            if (p < args.rows) {
                entry.hidden = hidden_before<T>(args.source, args.now, p, entry.row);
                if constexpr (S > 1) {
                    entry.states = state_before<C>(args.source, args.now, p, entry.row, 1,
                                                   static_cast<const C*>(args.states_before), S);
                }
            }
        }
        Product::table()[column] = entry;
    }

    static FUSEDRNN_DEVICE Inputs read(const StepBackwardArgs& args, int position, int unit, int cell) {
        Inputs inputs{};
        const int column = cell / kUnits, p = position + column;
        const std::int64_t H = args.source.H, u = unit + cell % kUnits;
        inputs.given = cell < Product::kCells && p < positions_of(args) && u < H;
        if (!inputs.given) return inputs;
        const RowEntry<T, C>& entry = Product::table()[column];
        read_gradients(args, p, u, entry, inputs);
        if (p >= args.rows) return inputs;
        const C* const tape = static_cast<const C*>(args.saved) + (p * H + u) * Cell::kSaved;
        FUSEDRNN_UNROLL
        for (int k = 0; k < Cell::kSaved; ++k) inputs.saved[k] = V::set(load_constant(tape + k));
        if constexpr (Cell::kDirectHidden) {
            if (entry.hidden != nullptr) inputs.s[0] = V::set(widen(load_constant(entry.hidden + u)));
        }
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) {
            const C* const from = k == 1 ? entry.states
                                         : state_before<C>(args.source, args.now, p, entry.row, k,
                                                           static_cast<const C*>(args.states_before), S);
            if (from != nullptr) inputs.s[k] = V::set(load_constant(from + u));
        }
        return inputs;
    }

    // From the later step, or, at a row's last step, from the final state; and from the output.
    static FUSEDRNN_DEVICE void read_gradients(const StepBackwardArgs& args, int p, std::int64_t u,
                                               const RowEntry<T, C>& entry, Inputs& inputs) {
        const std::int64_t H = args.source.H, row = entry.row;
        if (entry.carried) {
            const C* const carry = static_cast<const C*>(args.carry) + p * S * H + u;
            FUSEDRNN_UNROLL
            for (int k = Cell::kDirectHidden ? 0 : 1; k < S; ++k) inputs.ds[k] = V::set(load(carry + k * H));
        }
        if (p >= args.later_rows) {
            if (args.dfinal[0] != nullptr && !args.projected) {
                inputs.ds[0] =
                    V::set(widen(load_constant(static_cast<const T*>(args.dfinal[0]) + row * H + u)));
            }
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) {
                if (args.dfinal[k] == nullptr) continue;
                inputs.ds[k] = V::set(load_constant(static_cast<const C*>(args.dfinal[k]) + row * H + u));
            }
        }
        if (p < args.rows && args.dy != nullptr && !args.projected) {
            const T* const dy = static_cast<const T*>(args.dy) + row * args.dy_stride;
            inputs.ds[0] = inputs.ds[0] + V::set(widen(load_constant(dy + u)));
        }
    }

    static FUSEDRNN_DEVICE void apply(const StepBackwardArgs& args, int p, std::int64_t u, int cell,
                                      const Inputs& inputs) {
        V ds[S];
        FUSEDRNN_UNROLL
        for (int k = 0; k < S; ++k) ds[k] = inputs.ds[k];
        if (args.product == nullptr) {
            ds[0] = ds[0] + V::set(Product::sum(0, cell / kUnits, cell % kUnits));
        } else {
            ds[0] =
                ds[0] + V::set(load_constant(static_cast<const C*>(args.product) + p * args.source.H + u));
        }
        if (p < args.rows) {
            apply_cell(args, p, u, inputs, ds);
        } else {
            store_initial(args, Product::table()[cell / kUnits].row, u, ds);
        }
    }

    static FUSEDRNN_DEVICE void apply_cell(const StepBackwardArgs& args, int p, std::int64_t u,
                                           const Inputs& inputs, const V (&ds_next)[S]) {
        const std::int64_t H = args.source.H, at = static_cast<std::int64_t>(p) * G * H + u;
        V dgx[G], dgh[G], ds[S], dunits[1];
        const V units[1] = {};
        call_backward<Cell>(inputs.saved, units, inputs.s, ds_next, dgx, dgh, dunits, ds);
        if constexpr (Cell::kSplitGates) {
            T* const to = static_cast<T*>(args.dgx) + at;
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) store(to + g * H, narrow<T>(dgx[g].v));
        }
        T* const to = static_cast<T*>(args.dgh) + at;
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) store(to + g * H, narrow<T>(dgh[g].v));
        C* const carry = static_cast<C*>(args.carry) + p * S * H + u;
        FUSEDRNN_UNROLL
        for (int k = Cell::kDirectHidden ? 0 : 1; k < S; ++k) store(carry + k * H, ds[k].v);
    }

    static FUSEDRNN_DEVICE void store_initial(const StepBackwardArgs& args, std::int64_t row, std::int64_t u,
                                              const V (&ds)[S]) {
        const std::int64_t at = row * args.source.H + u;
        if (args.dinitial[0] != nullptr && !args.projected) {
            store(static_cast<T*>(args.dinitial[0]) + at, narrow<T>(ds[0].v));
        }
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) {
            if (args.dinitial[k] != nullptr) store(static_cast<C*>(args.dinitial[k]) + at, ds[k].v);
        }
    }
};

template <class Cell, Math kMath, int N, bool kVector>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kStepThreads, 1) void step_backward(StepBackwardArgs args) {
    StepBackward<Cell, kMath, N, kVector>::run(args);
}

// The gradient of the output, where there is a projection; it does not depend on the cell. Blocks (tile of 8
// N positions, tile of 16 outputs).
template <Math kMath, int N, bool kVector>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kStepThreads, 1) void step_output_gradient(OutputGradientArgs args) {
    using Product = StepProduct<kMath, 1, N, kVector>;
    using T = typename Product::T;
    using C = typename Product::C;
    const int position = block_index().x * Product::kColumns, unit = block_index().y * kUnits;
    const std::int64_t P = args.source.P;
    if (thread_index() < Product::kColumns) {
        const int p = position + thread_index();
        RowEntry<T, C> entry;
        if (p < positions_of(args)) {
            entry.row = row_at(args.order, p);
            if (p < args.later_rows && !is_cut(args.source, args.later, p, entry.row)) {
                entry.factor = static_cast<const T*>(args.dgh) + static_cast<std::int64_t>(p) * args.k;
            }
        }
        Product::table()[thread_index()] = entry;
    }
    block_barrier();
    Product::run(static_cast<const T*>(args.w_hh_t), unit, static_cast<int>(P), args.k);
    for (int cell = thread_index(); cell < Product::kCells; cell += block_threads()) {
        const int column = cell / kUnits, p = position + column, u = unit + cell % kUnits;
        if (p >= positions_of(args) || u >= P) continue;
        const std::int64_t row = Product::table()[column].row;
        C d = Product::sum(0, column, cell % kUnits);
        if (p >= args.rows) {
            if (args.dinitial != nullptr) store(static_cast<T*>(args.dinitial) + row * P + u, narrow<T>(d));
            continue;
        }
        if (p >= args.later_rows && args.dfinal != nullptr) {
            d += widen(load_constant(static_cast<const T*>(args.dfinal) + row * P + u));
        }
        if (args.dy != nullptr) {
            d += widen(load_constant(static_cast<const T*>(args.dy) + row * args.dy_stride + u));
        }
        store(static_cast<T*>(args.dout) + p * P + u, narrow<T>(d));
    }
}

}  // namespace fusedrnn::cuda
