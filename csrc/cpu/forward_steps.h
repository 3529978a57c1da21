// What a forward pass does whatever makes its products: where rows find their states and put them, the cell, and rows that have
// no step.
#pragma once

#include "cpu/steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

// What a call without a tape keeps of each position: the states beyond h, and h before the projection.
template <class T>
struct ForwardRows {
    T *zero, *states, *hidden;

    ForwardRows() = default;
    ForwardRows(const Dims& d, int cell_states, Arena& arena)
        : zero(arena.template take<T>(larger(padded<T>(d.H), padded<T>(d.P)))),
          states(arena.template take<T>(d.B * (cell_states - 1) * padded<T>(d.H))),
          hidden(arena.template take<T>(d.projected ? d.B * padded<T>(d.H) : 0)) {}
};

template <class Cell, class T>
class ForwardSteps : protected CellSizes<Cell> {
  public:
    using Sizes = CellSizes<Cell>;
    using Sizes::G, Sizes::S, Sizes::kMostStates;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using V = Vec<T>;

  protected:
    ForwardSteps(const ForwardProblem<T>& problem, Team& team)
        : Sizes(*problem.cell), p_(problem), team_(team), hp_(padded<T>(problem.dims.H)) {}

    void use(const ForwardRows<T>& rows) {
        rows_ = rows;
        fill_zero(rows_.zero, larger(hp_, padded<T>(p_.dims.P)));
    }
    std::int64_t time_of(std::int64_t step, std::int64_t total) const {
        return p_.schedule.reverse ? total - 1 - step : step;
    }
    T* states_out(std::int64_t t, std::int64_t position) const {
        if (p_.states != nullptr) return p_.states + (p_.schedule.offset[t] + position) * (S - 1) * hp_;
        return rows_.states + position * (S - 1) * hp_;
    }
    PreviousStates<Cell, T> previous() const {
        return {p_, rows_.zero, p_.states != nullptr ? p_.states : rows_.states, p_.states != nullptr};
    }
    // The rows of the states before step t, of the first `rows` of a part.
    void find_states(const PreviousStates<Cell, T>& previous, const Part& part, std::int64_t t,
                     std::int64_t rows, const T** state_rows) const {
        for (std::int64_t i = 0; i < rows; ++i) {
            const T* found[kMostStates]{};
            previous.find(t, part.position(i), found);
            for (int k = 0; k < S; ++k) state_rows[i * S + k] = found[k];
        }
    }

    // Outputs past the end of a row are zero.
    void clear_padding(const Part& part, int member) {
        const bool shared = part.stride == 1 && team_.size() > 1;
        for (std::int64_t i = shared ? member : 0; i < part.rows(p_.dims.B); i += shared ? team_.size() : 1) {
            const std::int64_t position = part.position(i);
            for (std::int64_t t = p_.schedule.length[position]; t < p_.dims.T; ++t) {
                fill_zero(p_.y.row(t, p_.schedule.order[position]), p_.dims.P);
            }
        }
    }

    // Where the cell puts h: the output, or the row that the projection reads.
    T* output_row(std::int64_t t, std::int64_t position) const {
        if (!p_.dims.projected) return p_.y.row(t, p_.schedule.order[position]);
        if (p_.hidden != nullptr) return p_.hidden + (p_.schedule.offset[t] + position) * hp_;
        return rows_.hidden + position * hp_;
    }

    // The cell for one row and one panel. `d`: a copy of the problem's sizes, which no vector that is stored may alias.
    FUSEDRNN_INLINE void apply_cell(const Dims& d, std::int64_t t, std::int64_t panel, std::int64_t position,
                                    const T* const* state, const T* acc, const T* gx, std::int64_t apart,
                                    const T* units, T* y, T* saved) const {
        const std::int64_t unit = panel * L;
        V s_next[S], keep[Cell::kSaved];
        cell_forward<Cell, T>(d, acc, gx, apart, units, state, panel, s_next, keep);
        store_part(s_next[0], y + unit, d.H - unit);
        if constexpr (S > 1) {
            T* to = states_out(t, position) + unit;
            for (int k = 1; k < S; ++k) s_next[k].store(to + (k - 1) * hp_);
        }
        if (saved != nullptr) {
            for (int k = 0; k < Cell::kSaved; ++k) keep[k].store(saved + k * L);
        }
    }

    // One panel of the output where there is a projection, for n rows from r on.
    void store_projected(const Part& part, std::int64_t t, std::int64_t panel, std::int64_t r, std::int64_t n,
                         const T* values) const {
        const std::int64_t unit = panel * L;
        for (std::int64_t i = 0; i < n; ++i) {
            T* y = p_.y.row(t, p_.schedule.order[part.position(r + i)]);
            store_part(V::load(values + i * L), y + unit, p_.dims.P - unit);
        }
    }

    // The state after each row's last step; the initial state where there was none. Copies this member's units.
    void store_final(const Part& part) {
        const std::int64_t unit = part.panels.begin * L;
        const std::int64_t h_end = p_.dims.projected ? p_.dims.P : smaller(part.panels.end * L, p_.dims.H);
        const std::int64_t units = larger(0, smaller(part.panels.end * L, p_.dims.H) - unit);
        for (std::int64_t i = 0; i < part.rows(p_.dims.B); ++i) {
            const std::int64_t position = part.position(i), b = p_.schedule.order[position];
            const std::int64_t length = p_.schedule.length[position];
            for (int k = 0; k < S; ++k) {
                const std::int64_t width = k == 0 ? p_.dims.P : p_.dims.H;
                const T* from;
                if (length == 0) {
                    from = p_.initial[k] == nullptr ? nullptr : p_.initial[k] + b * width + unit;
                } else {
                    const std::int64_t last = p_.schedule.reverse ? 0 : length - 1;
                    from = (k == 0 ? p_.y.row(last, b) : states_out(last, position) + (k - 1) * hp_) + unit;
                }
                copy_or_zero(from, p_.final[k] + b * width + unit, k == 0 ? h_end - unit : units);
            }
        }
    }

    const ForwardProblem<T>& p_;
    Team& team_;
    ForwardRows<T> rows_;
    std::int64_t hp_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
