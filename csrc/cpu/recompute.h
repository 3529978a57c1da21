// What the cells of a block of steps keep for backward, computed once more where the tape does not hold it. All inputs of
// the cells are known by then, so that the rows of all steps go through the products together. Bitwise what forward kept.
#pragma once

#include "cpu/gradients.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Recompute {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using Plan = BackwardPlan<Cell, T>;

    struct Member {
        T *gx, *acc;
        const T **x_rows, **state_rows;
        const T** h_rows;
        T** to;                  // where panel 0 of a row goes
        std::int64_t* to_panel;  // and how far the next panel is
    };
    static Member take_member(const Plan& plan, Arena& arena) {
        const std::int64_t rows = plan.recompute ? plan.block_rows : 0;
        const std::int64_t products = plan.recompute ? accumulator_vectors<G>() * L : 0;
        Member m;
        m.gx = arena.template take<T>(products);
        m.acc = arena.template take<T>(products);
        m.x_rows = arena.template take<const T*>(rows);
        m.state_rows = arena.template take<const T*>(rows * S);
        m.h_rows = arena.template take<const T*>(rows);
        m.to = arena.template take<T*>(rows);
        m.to_panel = arena.template take<std::int64_t>(rows);
        return m;
    }

    Recompute(const BackwardProblem<T>& problem, const Plan& plan, Team& team)
        : p_(problem), plan_(plan), team_(team) {}

    // The rows and panels of one member, for the steps [begin, end) of the sweep; ends early once the call was cancelled.
    void run(const Part& part, const Member& m, int member, std::int64_t begin, std::int64_t end) const {
        const std::int64_t n = find_rows(part, m, begin, end), at_once = panels_at_once<G>(n);
        for (std::int64_t u = part.panels.begin; u < part.panels.end; u += at_once) {
            const Range panels{u, smaller(u + at_once, part.panels.end)};
            for (std::int64_t r = 0; r < n; r += kRowGroup) {
                const std::int64_t rows = smaller(kRowGroup, n - r);
                const std::int64_t work = rows * at_once * G * L * (p_.dims.I + p_.dims.P);
                if (team_.cancelled(member, work)) return;
                input_product<Cell, T>(p_.dims, p_.weights, m.x_rows + r, rows, panels, m.gx, kRowGroup);
                hidden_product<Cell, T>(p_.dims, p_.weights, m.h_rows + r, rows, panels, m.gx, kRowGroup,
                                        m.acc, kRowGroup);
                for (std::int64_t panel = u; panel < panels.end; ++panel) {
                    const std::int64_t at = (panel - u) * kRowGroup * G * L;
                    for (std::int64_t i = 0; i < rows; ++i) {
                        keep_row(m, r + i, panel, m.acc + at + i * G * L, m.gx + at + i * G * L);
                    }
                }
            }
        }
    }

  private:
    // What the member's rows of the block read in the forward pass, and where their cells' results go.
    std::int64_t find_rows(const Part& part, const Member& m, std::int64_t begin, std::int64_t end) const {
        const std::int64_t total = longest(p_.dims, p_.schedule);
        const PreviousStates<Cell, T> previous_states(p_, plan_.zero, p_.states, true);
        std::int64_t n = 0, block_row = 0;
        for (std::int64_t step = begin; step < end; ++step) {
            const std::int64_t t = sweep_time(p_.schedule, step, total), active = p_.schedule.active[t];
            const std::int64_t rows = part.rows(active);
            for (std::int64_t i = 0; i < rows; ++i, ++n) {
                const std::int64_t position = part.position(i), b = p_.schedule.order[position];
                const T* found[S];
                previous_states.find(t, position, found);
                for (int k = 0; k < S; ++k) m.state_rows[n * S + k] = found[k];
                m.h_rows[n] = found[0];
                m.x_rows[n] = p_.dims.V == 0 ? p_.x.row(t, b) : p_.x.row(0, p_.index[t * p_.dims.B + b]);
                m.to[n] = plan_.saved + (block_row * plan_.panels + position) * Cell::kSaved * L;
                m.to_panel[n] = active * Cell::kSaved * L;
            }
            block_row += active;
        }
        return n;
    }

    FUSEDRNN_INLINE void keep_row(const Member& m, std::int64_t row, std::int64_t panel, const T* acc,
                                  const T* gx) const {
        Vec<T> s_next[S], keep[Cell::kSaved];
        cell_forward<Cell, T>(p_.dims, acc, gx, p_.weights.units, m.state_rows + row * S, panel, s_next,
                              keep);
        T* to = m.to[row] + panel * m.to_panel[row];
        for (int k = 0; k < Cell::kSaved; ++k) keep[k].store(to + k * L);
    }

    const BackwardProblem<T>& p_;
    const Plan& plan_;
    Team& team_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
