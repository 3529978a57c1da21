// What the cells of a block of steps keep for backward, computed once more where the tape does not hold it. All inputs of
// the cells are known by then, so that the rows of all steps go through the products together. Bitwise what forward kept.
#pragma once

#include "cpu/gradients.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Recompute : CellSizes<Cell> {
  public:
    using Sizes = CellSizes<Cell>;
    using Sizes::G, Sizes::S, Sizes::kInterleaved, Sizes::kMostStates;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using Plan = BackwardPlan<Cell, T>;

    struct Member {
        T *gx, *acc;
        const T **x_rows, **state_rows;
        const T** h_rows;
        T** to;                  // where panel 0 of a row goes
        std::int64_t* to_panel;  // and how far the next panel is
        std::int64_t* block_row;
        std::int64_t* batch_row;  // t * B + b, for masks
        typename TilesOf<Cell, T>::Type tiles;
        typename LinksOf<Cell, T>::Type links;
        typename MasksOf<Cell, T>::Type masks;
    };
    static Member take_member(const Plan& plan, Arena& arena) {
        const std::int64_t rows = plan.recompute ? plan.block_rows : 0;
        const std::int64_t group = group_vectors<Cell, kInterleaved>(plan, plan.panels, rows);
        const std::int64_t products = plan.recompute ? group * plan.G * L : 0;
        Member m;
        m.gx = arena.template take<T>(products);
        m.acc = arena.template take<T>(products);
        m.x_rows = arena.template take<const T*>(rows);
        m.state_rows = arena.template take<const T*>(rows * plan.S);
        m.h_rows = arena.template take<const T*>(rows);
        m.to = arena.template take<T*>(rows);
        m.to_panel = arena.template take<std::int64_t>(rows);
        m.block_row = arena.template take<std::int64_t>(plan.staged ? rows : 0);
        if constexpr (Sizes::kIsProgram) {
            if (plan.recompute) {
                const StagedProgram& program = plan.programs->forward;
                const std::int64_t tiled = group_vectors<Cell, 1>(plan, plan.panels, rows);
                m.tiles = ProgramTiles<T>(program, program, plan.programs->values, 2 * plan.S + plan.kept,
                                          tiled, arena);
                m.links = Links<T>(plan, plan.panels, arena);
                m.masks = Masks<T>(*plan.programs, tiled, 0, 0, arena);
                m.batch_row = arena.template take<std::int64_t>(rows);
            }
        }
        return m;
    }

    Recompute(const BackwardProblem<T>& problem, const Plan& plan, Team& team)
        : Sizes(*problem.cell), p_(problem), plan_(plan), team_(team) {}

    // The rows and panels of one member, for the steps [begin, end) of the sweep; ends early once the call was cancelled.
    void run(const Part& part, Member& m, int member, std::int64_t begin, std::int64_t end) const {
        const std::int64_t n = find_rows(part, m, begin, end), room = group_rows<Cell>(n);
        const std::int64_t at_once =
            group_panels<Cell, kInterleaved>(*this, part.panels.end - part.panels.begin, n);
        for (std::int64_t u = part.panels.begin; u < part.panels.end; u += at_once) {
            const Range panels{u, smaller(u + at_once, part.panels.end)};
            for (std::int64_t r = 0; r < n; r += kRowGroup) {
                const std::int64_t rows = smaller(kRowGroup, n - r);
                const std::int64_t work = rows * at_once * G * L * (p_.dims.I + p_.dims.P);
                if (team_.cancelled(member, work)) return;
                input_product<Cell, T>(*this, p_.dims, p_.weights, m.x_rows + r, rows, panels, m.gx, room);
                if (this->multiplies_h) {
                    hidden_product<Cell, T>(*this, p_.dims, p_.weights, m.h_rows + r, rows, panels, m.gx,
                                            room, m.acc, room);
                }
                if constexpr (Sizes::kIsProgram) {
                    keep_group(m, r, rows, panels, room);
                } else {
                    for (std::int64_t panel = u; panel < panels.end; ++panel) {
                        const std::int64_t at = (panel - u) * kRowGroup * G * L;
                        const std::int64_t apart = gate_distance<T>(G, p_.dims.H - panel * L);
                        for (std::int64_t i = 0; i < rows; ++i) {
                            keep_row(m, r + i, panel, m.acc + at + i * G * L, m.gx + at + i * G * L, apart);
                        }
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
                const T* found[kMostStates]{};
                previous_states.find(t, position, found);
                for (int k = 0; k < S; ++k) m.state_rows[n * S + k] = found[k];
                m.h_rows[n] = found[0];
                m.x_rows[n] = p_.dims.V == 0 ? p_.x.row(t, b) : p_.x.row(0, p_.index[t * p_.dims.B + b]);
                m.to[n] = plan_.saved + (block_row * plan_.panels + position) * this->kept * L;
                m.to_panel[n] = active * this->kept * L;
                if (this->staged) m.block_row[n] = block_row + position;
                if constexpr (Sizes::kIsProgram) m.batch_row[n] = t * p_.dims.B + b;
            }
            block_row += active;
        }
        return n;
    }

    FUSEDRNN_INLINE void keep_row(const Member& m, std::int64_t row, std::int64_t panel, const T* acc,
                                  const T* gx, std::int64_t apart) const {
        Vec<T> s_next[S], keep[Cell::kSaved];
        cell_forward<Cell, T>(p_.dims, acc, gx, apart, p_.weights.units, m.state_rows + row * S, panel,
                              s_next, keep);
        T* to = m.to[row] + panel * m.to_panel[row];
        for (int k = 0; k < Cell::kSaved; ++k) keep[k].store(to + k * L);
    }

    // The program for n rows from r on; what it keeps goes through memory of the group, for the rows may be of many steps.
    void keep_group(Member& m, std::int64_t r, std::int64_t n, Range panels, std::int64_t room) const {
        const CellPrograms& at = *plan_.programs;
        auto& tiles = m.tiles;
        const std::int64_t row = G * L;
        tiles.place(0, G, m.gx, L, row, room * row);
        tiles.place(at.gates, G, this->multiplies_h ? m.acc : m.gx, L, row, room * row);
        for (int k = 0; k < S; ++k) {
            tiles.place(at.after + k, tiles.gathered(S + k, n));
            if ((at.forward.reads_before >> k & 1) == 0) continue;
            tiles.place_rows(at.before + k, m.state_rows + r * S + k, S, n, panels, p_.dims.H, k);
        }
        tiles.place(at.units, this->units, p_.weights.units + panels.begin * this->units * L, L, 0,
                    this->units * L);
        for (int k = 0; k < this->kept; ++k) tiles.place(at.saved + k, tiles.gathered(2 * S + k, n));
        m.links.place(tiles, at);
        m.masks.place(tiles, at, at.forward.reads_masks, p_.draws, p_.dims, r, n, panels,
                      [&](std::int64_t i) { return m.batch_row[r + i]; });
        tiles.run_stages(n, panels.end - panels.begin, [&](const RowOperation& operation, Range some) {
            operate(*this, p_.dims, p_.weights, at, operation, tiles, m.links, some,
                    HiddenGates<T>{m.gx, room, m.acc, room}, true, [&](std::int64_t i, T rstd) {
                        plan_.moments[m.block_row[r + i] * this->norms + operation.number] = rstd;
                    });
        });
        for (int k = 0; k < this->kept; ++k) {
            const Place<T> from = tiles.gathered(2 * S + k, n);
            for (std::int64_t i = 0; i < n; ++i) {
                T* to = m.to[r + i] + panels.begin * m.to_panel[r + i] + k * L;
                for (std::int64_t u = 0; u < panels.end - panels.begin; ++u, to += m.to_panel[r + i]) {
                    Vec<T>::load(from.at + i * from.row + u * from.panel).store(to);
                }
            }
        }
    }

    const BackwardProblem<T>& p_;
    const Plan& plan_;
    Team& team_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
