// All steps backward in one launch, but for the recurrent product: what a thread loads, carries from step to
// step, computes and stores for its cells. The gradients of their states stay in its registers.
//
// `Kernel`, the class that is derived from this one, brings the product. Exchange e, from 0, is that of the
// gate gradients of the sweep's step e with W_hh.
//   prepare(exchanges)     the weights into registers, once
//   send(dgh, active, e)   the gate gradients of all cells go to who multiplies them, or the products to who
//                          adds them up; positions from `active` on have none
//   receive(e)             waits for an exchange
//   product(i)             its result for cell i
#pragma once

#include "kernels/sweep.h"

namespace fusedrnn::cuda {

template <class Kernel, class Cell, Math kMath, int kCells>
class SweepBackward : protected SweepCells {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    using T = typename MathTraits<kMath>::T;
    using C = float;
    using V = typename MathTraits<kMath>::V;

    FUSEDRNN_DEVICE void run() {
        const int steps = static_cast<int>(length_at(args_.schedule, first_position_));
        if (steps <= 0) return;
        bool to_initial = false;
        FUSEDRNN_UNROLL
        for (int k = 0; k < S; ++k) to_initial = to_initial || args_.dinitial[k] != nullptr;
        const int exchanges = to_initial ? steps : steps - 1;
        kernel().prepare(exchanges);
        plain_ = is_plain(args_.schedule, args_.source);
        const int B = static_cast<int>(args_.schedule.B);
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            cells_[i].carried = false;
            if (!is_cell(i, 0, B)) continue;
            cells_[i].row = static_cast<int>(row_at(args_.schedule.order, position(i)));
        }
        int t = args_.source.reverse ? 0 : steps - 1, later_active = 0;
        for (int done = 0; done < steps; ++done) {
            step(t, later_active, done, exchanges);
            later_active = plain_ ? B : alive_at(args_.schedule, t);
            t += args_.source.reverse ? 1 : -1;
        }
        if (to_initial) {
            kernel().receive(steps - 1);
            finish(0, later_active);
        }
    }

  protected:
    FUSEDRNN_DEVICE SweepBackward(const SweepBackwardArgs& args, const SweepCells& cells)
        : SweepCells(cells), args_(args) {}

  private:
    struct Gradients {
        V ds[S];       // of the states before the step, but for the product
        bool carried;  // whether they reach the step before
        int row;
    };
    struct Inputs {
        V saved[Cell::kSaved], s[S], ds[S];
    };

    FUSEDRNN_DEVICE Kernel& kernel() { return static_cast<Kernel&>(*this); }
    FUSEDRNN_DEVICE const Kernel& kernel() const { return static_cast<const Kernel&>(*this); }

    // The gradients of the states that the later step got.
    FUSEDRNN_DEVICE void add_product(int i, V (&ds)[S]) const {
        const Gradients& cell = cells_[i];
        FUSEDRNN_UNROLL
        for (int k = 0; k < S; ++k) ds[k] = cell.carried ? cell.ds[k] : V::set(0);
        if (cell.carried) ds[0] = ds[0] + V::set(kernel().product(i));
    }

    // Rows [from, to) have no step any more.
    FUSEDRNN_DEVICE void finish(int from, int to) const {
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
    FUSEDRNN_DEVICE Inputs read(int i, TimeStep now, int index, int later_active) const {
        Inputs inputs{};
        const int p = position(i);
        const std::int64_t row = cells_[i].row;
        const C* const tape = row_of(static_cast<const C*>(args_.saved), index + p, H_ * Cell::kSaved);
        load_numbers(tape + unit_ * Cell::kSaved, inputs.saved);
        if constexpr (Cell::kDirectHidden) {
            const T* const hidden = hidden_before<T>(args_.source, now, p, row);
            if (hidden != nullptr) inputs.s[0] = V::set(widen(load_constant(hidden + unit_)));
        }
        if constexpr (S > 1) {
            const C* memory = static_cast<const C*>(args_.states);
            const int before = static_cast<int>(args_.source.reverse ? now.t + 1 : now.t - 1);
            if (before >= 0) memory = row_of(memory, index_at(args_.schedule, before), (S - 1) * H_);
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) {
                const C* const from = state_before<C>(args_.source, now, p, row, k, memory, S);
                if (from != nullptr) inputs.s[k] = V::set(load_constant(from + unit_));
            }
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
    FUSEDRNN_DEVICE void step(int t, int later_active, int done, int exchanges) {
        const DeviceSchedule& schedule = args_.schedule;
        const int index = index_at(schedule, t),
                  active = plain_ ? static_cast<int>(schedule.B) : alive_at(schedule, t);
        const TimeStep now{t, plain_ && t + 1 < schedule.T ? schedule.B : active_at(schedule, t + 1)};
        Inputs inputs[kCells] = {};
        bool cut[kCells] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, 0, active)) continue;
            inputs[i] = read(i, now, index, later_active);
            cut[i] = is_cut(args_.source, now, position(i), cells_[i].row);
        }
        if (done > 0) kernel().receive(done - 1);
        finish(active, later_active);
        V dgx[kCells][G] = {}, dgh[kCells][G] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, 0, active)) continue;
            apply(i, inputs[i], dgx[i], dgh[i]);
            cells_[i].carried = !cut[i];
        }
        if (done < exchanges) kernel().send(dgh, active, done);
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
        V dunits[1];
        const V units[1] = {};
        call_backward<Cell>(inputs.saved, units, inputs.s, ds, dgx, dgh, dunits, cells_[i].ds);
    }

    FUSEDRNN_DEVICE void keep(int index, const V (&dgx)[G], const V (&dgh)[G]) const {
        const std::int64_t at = static_cast<std::int64_t>(index) * (G * H_) + unit_;
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            store(static_cast<T*>(args_.dgh) + at + g * H_, narrow<T>(dgh[g].v));
            if constexpr (Cell::kSplitGates)
                store(static_cast<T*>(args_.dgx) + at + g * H_, narrow<T>(dgx[g].v));
        }
    }

    const SweepBackwardArgs& args_;
    bool plain_;
    Gradients cells_[kCells];
};

}  // namespace fusedrnn::cuda
