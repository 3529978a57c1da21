// Many steps forward in one launch, but for the recurrent product: what a thread loads, carries from step to
// step, computes and stores for its cells. The states beyond h stay in its registers.
//
// `Kernel`, the class that is derived from this one, brings the product. Exchange e, from 0, is the hidden
// state that step e of the launch multiplies: after resets, and with the initial state of the rows that begin
// there.
//   prepare(steps)       the weights into registers, once
//   send(active, e)      hidden(i) of all cells goes to who multiplies it; positions from `active` on have
//                        none
//   multiply(e)          waits for an exchange, and leaves its product
//   sum(i)               the product for cell i: an array of one number for each gate
// Exchanges are sent, and multiplied, one after the other.
#pragma once

#include "kernels/sweep.h"

namespace fusedrnn::cuda {

template <class Kernel, class Cell, Math kMath, int kCells>
class SweepForward : protected SweepCells {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    using T = typename MathTraits<kMath>::T;
    using C = float;
    using V = typename MathTraits<kMath>::V;

    FUSEDRNN_DEVICE void run() {
        const std::int64_t length = length_at(args_.schedule, first_position_),
                           last = args_.first + args_.count;
        const int steps = static_cast<int>((length < last ? length : last) - args_.first);
        if (steps <= 0) return;
        kernel().prepare(steps);
        const bool reverse = args_.source.reverse;
        // Kept, since to compute them from the arguments in every step takes longer than the step's own work.
        plain_ = is_plain(args_.schedule, args_.source);
        const int first_row = index_at(args_.schedule, static_cast<int>(args_.first));
        C* const gx = const_cast<C*>(static_cast<const C*>(args_.gx)) + unit_;
        gx_ = opaque(row_of(gx, -first_row, G * H_));
        int t = static_cast<int>(args_.first) + (reverse ? steps - 1 : 0);
        begin(t);
        kernel().send(alive_at(args_.schedule, t), 0);
        for (int exchange = 0; exchange < steps; ++exchange) {
            step(t, exchange, exchange + 1 == steps);
            t += reverse ? -1 : 1;
        }
    }

  protected:
    FUSEDRNN_DEVICE SweepForward(const SweepForwardArgs& args, const SweepCells& cells)
        : SweepCells(cells), args_(args) {}

    FUSEDRNN_DEVICE T hidden(int i) const { return exchanged<kMath>(narrow<T>(cells_[i].s[0].v)); }

  private:
    struct Carried {
        V s[S];
        int row;
    };

    FUSEDRNN_DEVICE Kernel& kernel() { return static_cast<Kernel&>(*this); }
    FUSEDRNN_DEVICE TimeStep time_step_at(int t) const { return {t, active_at(args_.schedule, t + 1)}; }

    // The states before a step from memory: those of the step before the launch, of a reset, or initial ones.
    FUSEDRNN_DEVICE void load_states(Carried& cell, TimeStep now, int p) const {
        const T* const hidden = hidden_before<T>(args_.source, now, p, cell.row);
        cell.s[0] = V::set(hidden == nullptr ? C(0) : widen(load_constant(hidden + unit_)));
        if constexpr (S > 1) {
            const C* memory = static_cast<const C*>(args_.states);
            const std::int64_t before = args_.source.reverse ? now.t + 1 : now.t - 1;
            if (args_.states_by_index && before >= 0) {
                memory += offset_at(args_.schedule, before) * (S - 1) * H_;
            }
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) {
                const C* const from = state_before<C>(args_.source, now, p, cell.row, k, memory, S);
                cell.s[k] = V::set(from == nullptr ? C(0) : load(from + unit_));
            }
        }
    }

    FUSEDRNN_DEVICE void begin(int t) {
        const int B = static_cast<int>(args_.schedule.B), active = alive_at(args_.schedule, t);
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, 0, B)) continue;
            cells_[i].row = static_cast<int>(row_at(args_.schedule.order, position(i)));
            if (position(i) < active) load_states(cells_[i], time_step_at(t), position(i));
        }
        if constexpr (Cell::kSplitGates) {
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) {
                b_hh_[g] = V::set(0);
                if (args_.b_hh == nullptr || unit_ >= H_) continue;
                b_hh_[g] = V::set(widen(load_constant(static_cast<const T*>(args_.b_hh) + g * H_ + unit_)));
            }
        }
    }

    FUSEDRNN_DEVICE void step(int t, int exchange, bool is_last) {
        const DeviceSchedule& schedule = args_.schedule;
        const int index = index_at(schedule, t), next_t = args_.source.reverse ? t - 1 : t + 1;
        const int B = static_cast<int>(schedule.B), active = plain_ ? B : alive_at(schedule, t);
        const int next_active = is_last ? 0 : plain_ ? B : alive_at(schedule, next_t);
        // Under way while the others are waited for.
        V gx[kCells][G] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, 0, active)) continue;
            const C* const from = row_of(gx_, index + position(i), G * H_);
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) gx[i][g] = V::set(load_constant(from + g * H_));
        }
        // Whether the next step does not read what this one leaves.
        bool replaced[kCells] = {};
        TimeStep next{};
        if (!plain_ && !is_last) {
            next = time_step_at(next_t);
            FUSEDRNN_UNROLL
            for (int i = 0; i < kCells; ++i) {
                if (!is_cell(i, 0, next_active)) continue;
                replaced[i] = is_cut(args_.source, next, position(i), cells_[i].row) ||
                              !has_step_before(args_.source, next, position(i));
            }
        }
        kernel().multiply(exchange);
        V after[kCells][S] = {}, saved[kCells][Cell::kSaved] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, 0, active)) apply(i, gx[i], after[i], saved[i]);
            if (replaced[i]) load_states(cells_[i], next, position(i));
        }
        if (!is_last) kernel().send(next_active, exchange + 1);
        // Nobody in this launch waits for the rest.
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, 0, active)) keep(i, t, index + position(i), after[i], saved[i]);
        }
    }

    FUSEDRNN_DEVICE void apply(int i, const V (&gx)[G], V (&after)[S], V (&saved)[Cell::kSaved]) {
        Carried& cell = cells_[i];
        const auto sum = kernel().sum(i);
        V gates[G];
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            gates[g] = V::set(sum.value[g]);
            if constexpr (Cell::kSplitGates) {
                gates[g] = gates[g] + b_hh_[g];
            } else {
                gates[g] = gates[g] + gx[g];
            }
        }
        const V units[1] = {};
        call_forward<Cell>(gx, gates, units, cell.s, after, saved);
        // h is what the output holds.
        cell.s[0] = V::set(widen(narrow<T>(after[0].v)));
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) cell.s[k] = after[k];
    }

    FUSEDRNN_DEVICE void keep(int i, int t, int index, const V (&after)[S],
                              const V (&saved)[Cell::kSaved]) const {
        T* const y = static_cast<T*>(args_.y.data) + t * args_.y.t_stride + cells_[i].row * args_.y.b_stride;
        store(y + unit_, narrow<T>(after[0].v));
        const int row = args_.states_by_index ? index : position(i);
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) {
            C* const to = row_of(static_cast<C*>(args_.states), row, (S - 1) * H_) + (k - 1) * H_;
            store(to + unit_, after[k].v);
        }
        if (args_.saved == nullptr) return;
        C* const tape = row_of(static_cast<C*>(args_.saved), index, H_ * Cell::kSaved);
        store_numbers(tape + unit_ * Cell::kSaved, saved);
    }

    const SweepForwardArgs& args_;
    bool plain_;
    C* gx_;  // of this thread's unit, where compact index 0 would be
    Carried cells_[kCells];
    V b_hh_[Cell::kSplitGates ? G : 1];
};

}  // namespace fusedrnn::cuda
