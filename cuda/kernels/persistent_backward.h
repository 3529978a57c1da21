// All steps backward in one launch: a block keeps the transposed weights of its 16 units and the gradients of
// its cells' states in registers; the gate gradients go round the group through the exchange.
#pragma once

#include "kernels/persistent_forward.h"

namespace fusedrnn::cuda {

// Columns of W_hh. K is in the order in which blocks write it: by tile of 16 units, then gate, then unit.
template <class T, int G>
struct BackwardWeights {
    static constexpr bool kAlongRows = true;
    const T* w;
    std::int64_t H;
    FUSEDRNN_DEVICE T at(int, int row, int k) const {
        const std::int64_t column = block_index().x * 16 + row, gate = k / 16 % G;
        const std::int64_t u = k / (16 * G) * 16 + k % 16;
        return column < H && u < H ? load_constant(w + (gate * H + u) * H + column) : T{};
    }
};

template <class Cell, Math kMath, int kShare, int kCells>
class PersistentBackward {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    using T = typename MathTraits<kMath>::T;
    using C = float;
    using V = Vec<C>;
    using Product = PersistentProduct<kMath, 1, kShare>;

    FUSEDRNN_DEVICE explicit PersistentBackward(const PersistentBackwardArgs& args)
        : args_(args),
          product_(args.shape),
          exchange_(args.shape, args.exchange),
          H_(static_cast<int>(args.source.H)),
          unit_(block_index().x * 16 + thread_index() % 16),
          position_(group_position(args.shape) + thread_index() / 16) {}

    FUSEDRNN_DEVICE void run() {
        const int steps = static_cast<int>(length_at(args_.schedule, group_position(args_.shape)));
        if (steps <= 0) return;
        product_.load_weights(BackwardWeights<T, G>{static_cast<const T*>(args_.w_hh), args_.source.H});
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            cells_[i].carried = false;
            if (column(i) >= args_.shape.columns || position(i) >= args_.schedule.B) continue;
            cells_[i].row = static_cast<int>(row_at(args_.schedule.order, position(i)));
        }
        std::int64_t t = args_.source.reverse ? 0 : steps - 1, later_active = 0;
        for (int i = 0; i < steps; ++i) {
            step(t, later_active, i);
            later_active = active_at(args_.schedule, t);
            t += args_.source.reverse ? 1 : -1;
        }
        if (args_.dinitial[0] != nullptr || (S > 1 && args_.dinitial[1] != nullptr)) {
            multiply(steps);
            finish(0, later_active);
        }
    }

  private:
    struct Gradients {
        V ds[S];       // of the states before the step, but for the product
        bool carried;  // whether they reach the step before
        int row;
    };
    struct Inputs {
        V saved[Cell::kSaved], s[S], ds[S];
    };

    FUSEDRNN_DEVICE int column(int i) const { return (thread_index() + i * block_threads()) / 16; }
    FUSEDRNN_DEVICE int position(int i) const { return position_ + i * block_threads() / 16; }
    // Whether position(i) is in [from, to).
    FUSEDRNN_DEVICE bool is_cell(int i, std::int64_t from, std::int64_t to) const {
        const int p = position(i);
        return column(i) < args_.shape.columns && from <= p && p < to && unit_ < H_;
    }

    // The product with the gate gradients of the exchange; sums are there after it.
    FUSEDRNN_DEVICE void multiply(int exchange) const {
        constexpr int depth = 16 * G;
        exchange_.wait(exchange, product_.first_source(depth),
                       product_.last_source(depth, args_.shape.tiles));
        product_.run(exchange_.rows(exchange), exchange_.stride());
        block_barrier();
    }

    // The gradients of the states that the later step got.
    FUSEDRNN_DEVICE void add_product(int i, V (&ds)[S]) const {
        const Gradients& cell = cells_[i];
        FUSEDRNN_UNROLL
        for (int k = 0; k < S; ++k) ds[k] = cell.carried ? cell.ds[k] : V::set(0);
        if (cell.carried) ds[0] = ds[0] + V::set(product_.sum(column(i), thread_index() % 16).tile[0]);
    }

    // Rows [from, to) have no step any more.
    FUSEDRNN_DEVICE void finish(std::int64_t from, std::int64_t to) const {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, from, to)) continue;
            V ds[S];
            add_product(i, ds);
            const std::int64_t at = static_cast<std::int64_t>(cells_[i].row) * H_ + unit_;
            if (args_.dinitial[0] != nullptr)
                store(static_cast<T*>(args_.dinitial[0]) + at, narrow<T>(ds[0].v));
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) {
                if (args_.dinitial[k] != nullptr) store(static_cast<C*>(args_.dinitial[k]) + at, ds[k].v);
            }
        }
    }

    // Everything that does not depend on the later step.
    FUSEDRNN_DEVICE Inputs read(int i, Moment now, std::int64_t index, std::int64_t later_active) const {
        Inputs inputs{};
        const int p = position(i);
        const std::int64_t row = cells_[i].row;
        const C* const tape = static_cast<const C*>(args_.saved) + ((index + p) * H_ + unit_) * Cell::kSaved;
        FUSEDRNN_UNROLL
        for (int k = 0; k < Cell::kSaved; ++k) inputs.saved[k] = V::set(load_constant(tape + k));
        if constexpr (Cell::kDirectHidden) {
            const T* const hidden = hidden_before<T>(args_.source, now, p, row);
            if (hidden != nullptr) inputs.s[0] = V::set(widen(load_constant(hidden + unit_)));
        }
        if constexpr (S > 1) {
            const C* memory = static_cast<const C*>(args_.states);
            const std::int64_t before = args_.source.reverse ? now.t + 1 : now.t - 1;
            if (before >= 0) memory += offset_at(args_.schedule, before) * H_;
            const C* const states = states_before<C>(args_.source, now, p, row, memory);
            if (states != nullptr) inputs.s[1] = V::set(load_constant(states + unit_));
        }
        if (p >= later_active) {
            if (args_.dfinal[0] != nullptr) {
                const T* const from = static_cast<const T*>(args_.dfinal[0]) + row * H_ + unit_;
                inputs.ds[0] = V::set(widen(load_constant(from)));
            }
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) {
                if (args_.dfinal[k] == nullptr) continue;
                inputs.ds[k] =
                    V::set(load_constant(static_cast<const C*>(args_.dfinal[k]) + row * H_ + unit_));
            }
        }
        if (args_.dy.data != nullptr) {
            const T* const dy =
                static_cast<const T*>(args_.dy.data) + now.t * args_.dy.t_stride + row * args_.dy.b_stride;
            inputs.ds[0] = inputs.ds[0] + V::set(widen(load_constant(dy + unit_)));
        }
        return inputs;
    }

    // Step `done` of the sweep.
    FUSEDRNN_DEVICE void step(std::int64_t t, std::int64_t later_active, int done) {
        const DeviceSchedule& schedule = args_.schedule;
        const Moment now{t, active_at(schedule, t + 1)};
        const std::int64_t active = active_at(schedule, t), index = offset_at(schedule, t);
        Inputs inputs[kCells] = {};
        bool cut[kCells] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, 0, active)) continue;
            inputs[i] = read(i, now, index, later_active);
            cut[i] = is_cut(args_.source, now, position(i), cells_[i].row);
        }
        if (done > 0) multiply(done);
        finish(active, later_active);
        V dgx[kCells][G] = {}, dgh[kCells][G] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, 0, active)) continue;
            apply(i, inputs[i], dgx[i], dgh[i]);
            cells_[i].carried = !cut[i];
            T* const to = exchange_.rows(done + 1) + column(i) * exchange_.stride() +
                          block_index().x * 16 * G + thread_index() % 16;
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) store(to + g * 16, exchanged<kMath>(narrow<T>(dgh[i][g].v)));
        }
        exchange_.publish(done + 1);
        // Nobody in this launch waits for the rest.
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, 0, active)) keep(index + position(i), dgx[i], dgh[i]);
        }
    }

    FUSEDRNN_DEVICE void apply(int i, const Inputs& inputs, V (&dgx)[G], V (&dgh)[G]) {
        V ds[S];
        add_product(i, ds);
        FUSEDRNN_UNROLL
        for (int k = 0; k < S; ++k) ds[k] = ds[k] + inputs.ds[k];
        if constexpr (Cell::kSplitGates) {
            Cell::backward(inputs.saved, inputs.s, ds, dgx, dgh, cells_[i].ds);
        } else {
            Cell::backward(inputs.saved, inputs.s, ds, dgh, cells_[i].ds);
        }
    }

    FUSEDRNN_DEVICE void keep(std::int64_t index, const V (&dgx)[G], const V (&dgh)[G]) const {
        const std::int64_t at = index * G * H_ + unit_;
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            store(static_cast<T*>(args_.dgh) + at + g * H_, narrow<T>(dgh[g].v));
            if constexpr (Cell::kSplitGates)
                store(static_cast<T*>(args_.dgx) + at + g * H_, narrow<T>(dgx[g].v));
        }
    }

    const PersistentBackwardArgs& args_;
    Product product_;
    Exchange<T> exchange_;
    int H_, unit_, position_;  // of the thread's first cell
    Gradients cells_[kCells];
};

template <class Cell, Math kMath, int kShare, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kPersistentThreads,
                                       1) void persistent_backward(PersistentBackwardArgs args) {
    PersistentBackward<Cell, kMath, kShare, kCells>(args).run();
}

}  // namespace fusedrnn::cuda
