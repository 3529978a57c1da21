// Many steps forward in one launch, by clusters. A block keeps the weights of its units and the states beyond
// h of its cells in registers; each writes the hidden state of its units, as the next step reads it, straight
// into the shared memory of all blocks of its cluster.
//
// Exchange e, from 0, is what step e of the launch multiplies. It fills one of two buffers, and an mbarrier
// counts its bytes. The buffer is written again by exchange e + 2: only by blocks that have all of exchange e
// + 1, the own share of which a block sends after it is done with the rows and the sums of e.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "kernels/cluster_product.h"
#include "kernels/rows.h"

namespace fusedrnn::cuda {

// Polls of an mbarrier before the launch is given up as lost: each takes up to a millisecond where nothing
// comes.
inline constexpr int kMostClusterPolls = 1 << 20;

template <class Cell, Math kMath, int kTiles, int kCells>
class ClusterForward {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    static constexpr int kColumns = 8 * kCells, kUnitsOfBlock = 16 * kTiles;
    using T = typename MathTraits<kMath>::T;
    using C = float;
    using V = Vec<C>;
    using Product = ClusterProduct<kMath, G, kTiles, kColumns>;
    using Sum = typename Product::Sum;

    static constexpr int shared_bytes() { return kHeadBytes + 2 * Product::kRowBytes + Product::kSumBytes; }

    FUSEDRNN_DEVICE explicit ClusterForward(const ClusterForwardArgs& args)
        : args_(args),
          H_(static_cast<int>(args.source.H)),
          unit_(cluster_rank() * kUnitsOfBlock + thread_index() % kUnitsOfBlock),
          column_(thread_index() / kUnitsOfBlock),
          position_(block_index().y * kColumns + column_) {}

    FUSEDRNN_DEVICE void run() {
        const DeviceSchedule& schedule = args_.schedule;
        const std::int64_t length = schedule.length == nullptr
                                        ? schedule.T
                                        : load_constant(schedule.length + block_index().y * kColumns);
        const std::int64_t last = args_.first + args_.count;
        const int steps = static_cast<int>((length < last ? length : last) - args_.first);
        if (steps <= 0) return;
        prepare(steps);
        product_.load_weights(static_cast<const T*>(args_.w_hh), cluster_rank() * kUnitsOfBlock, H_,
                              args_.vector);
        const bool reverse = args_.source.reverse;
        std::int64_t t = reverse ? args_.first + steps - 1 : args_.first;
        begin(moment_at(t));
        cluster_barrier();
        send(active_at(schedule, t), 0);
        for (int exchange = 0; exchange < steps; ++exchange) {
            step(t, exchange, steps);
            t += reverse ? -1 : 1;
        }
    }

  private:
    struct Carried {
        V s[S];
        int row;
    };
    static constexpr int kHeadBytes = 64;  // two mbarriers

    static FUSEDRNN_DEVICE Mbarrier* mbarrier(int exchange) {
        return shared_memory<Mbarrier>() + exchange % 2;
    }
    static FUSEDRNN_DEVICE T* rows(int exchange) {
        return reinterpret_cast<T*>(shared_memory<unsigned char>() + kHeadBytes +
                                    exchange % 2 * Product::kRowBytes);
    }
    static FUSEDRNN_DEVICE Sum* sums() {
        return reinterpret_cast<Sum*>(shared_memory<unsigned char>() + kHeadBytes + 2 * Product::kRowBytes);
    }
    // What an exchange brings to each block.
    static FUSEDRNN_DEVICE int exchange_bytes() {
        return kColumns * cluster_size() * kUnitsOfBlock * static_cast<int>(sizeof(T));
    }

    FUSEDRNN_DEVICE Moment moment_at(std::int64_t t) const { return {t, active_at(args_.schedule, t + 1)}; }
    FUSEDRNN_DEVICE int position(int i) const { return position_ + 8 * i; }
    FUSEDRNN_DEVICE bool is_cell(int i, std::int64_t active) const {
        return position(i) < active && unit_ < H_;
    }

    // The mbarriers, and zeros where no block sends units.
    static FUSEDRNN_DEVICE void prepare(int steps) {
        if (thread_index() == 0) {
            for (int i = 0; i < 2; ++i) {
                mbarrier_init(mbarrier(i), 1);
                if (i < steps) mbarrier_arrive(mbarrier(i), exchange_bytes());
            }
        }
        const int sent = cluster_size() * kUnitsOfBlock, rest = Product::kDepth - sent;
        for (int i = thread_index(); i < 2 * kColumns * rest; i += block_threads()) {
            rows(0)[i / rest * Product::kStride + sent + i % rest] = T{};
        }
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

    FUSEDRNN_DEVICE void begin(Moment now) {
        const std::int64_t active = active_at(args_.schedule, now.t);
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (position(i) < args_.schedule.B) {
                cells_[i].row = static_cast<int>(row_at(args_.schedule.order, position(i)));
            }
            if (is_cell(i, active)) load_states(cells_[i], now, position(i));
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

    // The 16 bytes of a row that this lane's element is in.
    static FUSEDRNN_DEVICE Vector16 gather_piece(T element) {
        constexpr int step = kPiece<T> / 4;
        unsigned word;
        if constexpr (sizeof(T) == 2) {
            const unsigned own = element.bits, other = shuffle_xor(own, 1);
            word = (lane() & 1) != 0 ? other | own << 16 : own | other << 16;
        } else {
            word = as_unsigned(element);
        }
        const bool odd = (lane() & step) != 0, upper = (lane() & 2 * step) != 0;
        const unsigned neighbour = shuffle_xor(word, step);
        const unsigned low = odd ? neighbour : word, high = odd ? word : neighbour;
        const unsigned other_low = shuffle_xor(low, 2 * step), other_high = shuffle_xor(high, 2 * step);
        if (upper) return {{other_low, other_high, low, high}};
        return {{low, high, other_low, other_high}};
    }

    // The lanes that hold a piece take turns at the blocks. Rows that are not alive are sent as zeros.
    FUSEDRNN_DEVICE void send(std::int64_t active, int exchange) const {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            const T element = is_cell(i, active) ? narrow<T>(cells_[i].s[0].v) : T{};
            const Vector16 piece = gather_piece(element);
            T* const to =
                rows(exchange) + (column_ + 8 * i) * Product::kStride + unit_ / kPiece<T> * kPiece<T>;
            for (int rank = lane() % kPiece<T>; rank < cluster_size(); rank += kPiece<T>) {
                st_async(map_shared(reinterpret_cast<Vector16*>(to), rank), piece,
                         map_shared(mbarrier(exchange), rank));
            }
        }
    }

    static FUSEDRNN_DEVICE void wait(int exchange) {
        const auto parity = static_cast<unsigned>(exchange / 2 % 2);
        for (int polls = 0; !mbarrier_try_wait(mbarrier(exchange), parity); ++polls) {
            if (polls == kMostClusterPolls) trap();
            spin_pause();
        }
    }

    FUSEDRNN_DEVICE void step(std::int64_t t, int exchange, int steps) {
        const DeviceSchedule& schedule = args_.schedule;
        const bool is_last = exchange + 1 == steps;
        const std::int64_t active = active_at(schedule, t), index = offset_at(schedule, t);
        const std::int64_t next_t = args_.source.reverse ? t - 1 : t + 1;
        const Moment next = moment_at(is_last ? t : next_t);
        const std::int64_t next_active = is_last ? 0 : active_at(schedule, next_t);
        // Under way while the others are waited for.
        V gx[kCells][G] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!is_cell(i, active)) continue;
            const std::int64_t row = index - offset_at(schedule, args_.first) + position(i);
            const C* const from = static_cast<const C*>(args_.gx) + row * G * H_ + unit_;
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) gx[i][g] = V::set(load_constant(from + g * H_));
        }
        wait(exchange);
        if (thread_index() == 0 && exchange + 2 < steps)
            mbarrier_arrive(mbarrier(exchange), exchange_bytes());
        product_.run(rows(exchange), sums());
        block_barrier();
        V after[kCells][S] = {}, saved[kCells][Cell::kSaved] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            const int p = position(i);
            if (is_cell(i, active)) apply(i, gx[i], after[i], saved[i]);
            if (!is_cell(i, next_active)) continue;
            Carried& cell = cells_[i];
            if (is_cut(args_.source, next, p, cell.row) || !has_step_before(args_.source, next, p)) {
                load_states(cell, next, p);
            }
        }
        if (!is_last) send(next_active, exchange + 1);
        // Nobody in this launch waits for the rest.
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (is_cell(i, active)) keep(i, t, index + position(i), after[i], saved[i]);
        }
    }

    FUSEDRNN_DEVICE void apply(int i, const V (&gx)[G], V (&after)[S], V (&saved)[Cell::kSaved]) {
        Carried& cell = cells_[i];
        const Sum sum = Product::sum(sums(), column_ + 8 * i, thread_index() % kUnitsOfBlock);
        V gates[G];
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            gates[g] = V::set(sum.gate[g]);
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

    const ClusterForwardArgs& args_;
    Product product_;
    int H_, unit_, column_, position_;  // of the thread's first cell
    Carried cells_[kCells];
    V b_hh_[Cell::kSplitGates ? G : 1];
};

template <class Cell, Math kMath, int kTiles, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(cluster_threads(kTiles),
                                       1) void cluster_forward(ClusterForwardArgs args) {
    ClusterForward<Cell, kMath, kTiles, kCells>(args).run();
}

}  // namespace fusedrnn::cuda
