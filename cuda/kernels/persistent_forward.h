// Many steps forward in one launch. A block keeps the weights of its 16 units and the states beyond h of its
// cells in registers; the hidden state goes round the group through the exchange, as the next step reads it:
// after resets, and with the initial state of the rows that begin there.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "kernels/persistent_product.h"
#include "kernels/rows.h"

namespace fusedrnn::cuda {

inline constexpr int kPersistentThreads = 32 * kPersistentWarps;

FUSEDRNN_DEVICE int group_position(const PersistentShape& shape) { return block_index().y * shape.columns; }

// Rows of W_hh, the tiles are gates.
template <class T>
struct ForwardWeights {
    static constexpr bool kAlongRows = false;
    const T* w;
    std::int64_t H;
    FUSEDRNN_DEVICE T at(int gate, int row, int k) const {
        const std::int64_t u = block_index().x * 16 + row;
        return u < H && k < H ? load_constant(w + (gate * H + u) * H + k) : T{};
    }
};

template <class Cell, Math kMath, int kShare, int kCells>
class PersistentForward {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    using T = typename MathTraits<kMath>::T;
    using C = float;
    using V = Vec<C>;
    using Product = PersistentProduct<kMath, G, kShare>;

    FUSEDRNN_DEVICE explicit PersistentForward(const PersistentForwardArgs& args)
        : args_(args),
          product_(args.shape),
          exchange_(args.shape, args.exchange),
          H_(static_cast<int>(args.source.H)),
          unit_(block_index().x * 16 + thread_index() % 16),
          position_(group_position(args.shape) + thread_index() / 16) {}

    FUSEDRNN_DEVICE void run() {
        const DeviceSchedule& schedule = args_.schedule;
        const std::int64_t length = length_at(schedule, group_position(args_.shape));
        std::int64_t steps =
            (length < args_.first + args_.count ? length : args_.first + args_.count) - args_.first;
        if (steps <= 0) return;
        product_.load_weights(ForwardWeights<T>{static_cast<const T*>(args_.w_hh), args_.source.H});
        const bool reverse = args_.source.reverse;
        std::int64_t t = reverse ? args_.first + steps - 1 : args_.first;
        begin(moment_at(t));
        exchange_.publish(1);
        const int first = product_.first_source(16), last = product_.last_source(16, args_.shape.tiles);
        for (int exchange = 1; exchange <= steps; ++exchange) {
            step(t, exchange, exchange == steps, first, last);
            t += reverse ? -1 : 1;
        }
    }

  private:
    struct Carried {
        V s[S];
        int row;
    };

    FUSEDRNN_DEVICE Moment moment_at(std::int64_t t) const { return {t, active_at(args_.schedule, t + 1)}; }
    FUSEDRNN_DEVICE int column(int i) const { return (thread_index() + i * block_threads()) / 16; }
    FUSEDRNN_DEVICE int position(int i) const { return position_ + i * block_threads() / 16; }
    FUSEDRNN_DEVICE bool is_cell(int i, std::int64_t active) const {
        return column(i) < args_.shape.columns && position(i) < active && unit_ < H_;
    }

    // The states before a step from memory: those of the step before the launch, of a reset, or initial ones.
    FUSEDRNN_DEVICE void load_states(Carried& cell, Moment now, int p) const {
        const T* const hidden = hidden_before<T>(args_.source, now, p, cell.row);
        cell.s[0] = V::set(hidden == nullptr ? C(0) : widen(load_constant(hidden + unit_)));
        if constexpr (S > 1) {
            const C* memory = static_cast<const C*>(args_.states);
            const std::int64_t before = args_.source.reverse ? now.t + 1 : now.t - 1;
            if (args_.states_by_index && before >= 0) memory += offset_at(args_.schedule, before) * H_;
            const C* const states = states_before<C>(args_.source, now, p, cell.row, memory);
            cell.s[1] = V::set(states == nullptr ? C(0) : load(states + unit_));
        }
    }

    FUSEDRNN_DEVICE void send(const Carried& cell, int exchange, int i) const {
        T* const to = exchange_.rows(exchange) + column(i) * exchange_.stride() + unit_;
        store(to, exchanged<kMath>(narrow<T>(cell.s[0].v)));
    }

    FUSEDRNN_DEVICE void begin(Moment now) {
        const std::int64_t active = active_at(args_.schedule, now.t);
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (column(i) < args_.shape.columns && position(i) < args_.schedule.B) {
                cells_[i].row = static_cast<int>(row_at(args_.schedule.order, position(i)));
            }
            if (!is_cell(i, active)) continue;
            load_states(cells_[i], now, position(i));
            send(cells_[i], 1, i);
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

    FUSEDRNN_DEVICE void step(std::int64_t t, int exchange, bool is_last, int first, int last) {
        const DeviceSchedule& schedule = args_.schedule;
        const std::int64_t active = active_at(schedule, t), index = offset_at(schedule, t);
        const std::int64_t next_t = args_.source.reverse ? t - 1 : t + 1;
        const Moment next = moment_at(is_last ? t : next_t);
        const std::int64_t next_active = is_last ? 0 : active_at(schedule, next_t);
        // Under way while the group is waited for. `replaced`: the next step does not read what this one
        // leaves.
        V gx[kCells][G] = {};
        bool replaced[kCells] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, next_active)) {
                replaced[i] = is_cut(args_.source, next, position(i), cells_[i].row) ||
                              !has_step_before(args_.source, next, position(i));
            }
            if (!is_cell(i, active)) continue;
            const std::int64_t row = index - offset_at(schedule, args_.first) + position(i);
            const C* const from = static_cast<const C*>(args_.gx) + row * G * H_ + unit_;
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) gx[i][g] = V::set(load_constant(from + g * H_));
        }
        exchange_.wait(exchange, first, last);
        product_.run(exchange_.rows(exchange), exchange_.stride());
        block_barrier();
        V after[kCells][S] = {}, saved[kCells][Cell::kSaved] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, active)) apply(i, gx[i], after[i], saved[i]);
            if (!is_cell(i, next_active)) continue;
            if (replaced[i]) load_states(cells_[i], next, position(i));
            send(cells_[i], exchange + 1, i);
        }
        if (!is_last) exchange_.publish(exchange + 1);
        // Nobody in this launch waits for the rest.
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, active)) keep(i, t, index + position(i), after[i], saved[i]);
        }
    }

    FUSEDRNN_DEVICE void apply(int i, const V (&gx)[G], V (&after)[S], V (&saved)[Cell::kSaved]) {
        Carried& cell = cells_[i];
        const typename Product::Sum sum = product_.sum(column(i), thread_index() % 16);
        V gates[G];
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            gates[g] = V::set(sum.tile[g]);
            if constexpr (Cell::kSplitGates) {
                gates[g] = gates[g] + b_hh_[g];
            } else {
                gates[g] = gates[g] + gx[g];
            }
        }
        if constexpr (Cell::kSplitGates) {
            Cell::forward(gx, gates, cell.s, after, saved);
        } else {
            Cell::forward(gates, cell.s, after, saved);
        }
        // h is what the output holds.
        cell.s[0] = V::set(widen(narrow<T>(after[0].v)));
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) cell.s[k] = after[k];
    }

    FUSEDRNN_DEVICE void keep(int i, std::int64_t t, std::int64_t index, const V (&after)[S],
                              const V (&saved)[Cell::kSaved]) const {
        T* const y = static_cast<T*>(args_.y.data) + t * args_.y.t_stride + cells_[i].row * args_.y.b_stride;
        store(y + unit_, narrow<T>(after[0].v));
        const std::int64_t row = args_.states_by_index ? index : position(i);
        FUSEDRNN_UNROLL
        for (int k = 1; k < S; ++k) store(static_cast<C*>(args_.states) + row * H_ + unit_, after[k].v);
        if (args_.saved == nullptr) return;
        C* const tape = static_cast<C*>(args_.saved) + (index * H_ + unit_) * Cell::kSaved;
        FUSEDRNN_UNROLL
        for (int k = 0; k < Cell::kSaved; ++k) store(tape + k, saved[k].v);
    }

    const PersistentForwardArgs& args_;
    Product product_;
    Exchange<T> exchange_;
    int H_, unit_, position_;  // of the thread's first cell
    Carried cells_[kCells];
    V b_hh_[Cell::kSplitGates ? G : 1];
};

template <class Cell, Math kMath, int kShare, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kPersistentThreads,
                                       1) void persistent_forward(PersistentForwardArgs args) {
    PersistentForward<Cell, kMath, kShare, kCells>(args).run();
}

}  // namespace fusedrnn::cuda
