// Backward over a whole sequence, in blocks of steps: the sweep through a block gives the gate gradients, each panel of
// units going from the recurrent product through the cell's backward while it is in the L1 cache; then the gradients of
// the inputs and weights follow as large products over all rows of the block (gradients.h).
#pragma once

#include "cpu/gradients.h"
#include "cpu/recompute.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class Backward : CellSizes<Cell> {
  public:
    using Sizes = CellSizes<Cell>;
    using Sizes::G, Sizes::S, Sizes::kMostStates;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using V = Vec<T>;
    using Member = typename BackwardPlan<Cell, T>::Member;

    Backward(const BackwardProblem<T>& problem, Team& team, void* workspace)
        : Sizes(*problem.cell),
          p_(problem),
          team_(team),
          plan_(*problem.cell, problem.dims, problem.saved == nullptr),
          gradients_(problem, plan_, team),
          recompute_(problem, plan_, team),
          arena_(workspace),
          hp_(padded<T>(problem.dims.H)) {
        plan_.take_shared(p_.dims, arena_);
        fill_zero(plan_.zero, larger(padded<T>(p_.dims.H), padded<T>(p_.dims.P)));
    }

    void run_member(int member) {
        Arena arena = arena_;
        Member m{};
        typename Recompute<Cell, T>::Member again{};
        for (int i = 0; i <= member; ++i) {
            m = plan_.take_member(p_.dims, arena);
            again = Recompute<Cell, T>::take_member(plan_, arena);
        }
        if constexpr (Sizes::kIsProgram) {
            m.tiles.use(plan_.programs->backward);
            if (plan_.recompute) again.tiles.use(plan_.programs->forward);
        }
        const Part part = part_of(p_.dims, plan_.panels, team_.size(), member);
        const bool by_units = part.stride == 1 && team_.size() > 1;
        clear_padding(member);
        if (p_.dims.V > 0) gradients_.clear_table(member);
        pass_through_empty_rows(member);
        if constexpr (Sizes::kIsProgram) {
            if (this->staged) clear_units(part);
            m.masks.begin(*plan_.programs, p_.draws, p_.dims, p_.schedule, part);
        }
        const std::int64_t total = longest(p_.dims, p_.schedule);
        Place later{-1, 0, 0}, here{0, 0, 0};
        for (std::int64_t q = 0; q < total; q += plan_.steps) {
            const std::int64_t end = smaller(q + plan_.steps, total);
            // A member alone needs the other buffer where its first step would write to rows of the last one, which it reads.
            const std::int64_t first = p_.schedule.active[sweep_time(p_.schedule, q, total)];
            if (q > 0 && (team_.size() > 1 || later.row < first)) here.buffer ^= 1;
            here.row = 0;
            if (plan_.recompute) recompute_.run(part, again, member, q, end);
            for (std::int64_t step = q; step < end; ++step) {
                here.t = sweep_time(p_.schedule, step, total);
                sweep_step(part, m, member, later, here);
                if (by_units ? !team_.barrier(member) : team_.cancelled(member, 0)) return;
                finish_rows(part, m, member, here);
                later = here;
                here.row += p_.schedule.active[here.t];
            }
            if (!team_.barrier(member)) return;
            gradients_.add_block(m, member, q, end, here.buffer);
        }
        if (Sizes::kIsProgram && this->staged && total > 0) gradients_.add_units(member);
        if (p_.dims.V > 0 && team_.barrier(member)) gradients_.add_table(m, member);
    }

  private:
    // Where the gate gradients of step t are: in which of the two buffers, from which row on. t = -1: no such step.
    struct Place {
        std::int64_t t;
        int buffer;
        std::int64_t row;
    };

    PreviousStates<Cell, T> previous() const {
        return PreviousStates<Cell, T>(p_, plan_.zero, p_.states, true);
    }
    std::int64_t row_of(std::int64_t position) const { return p_.schedule.order[position]; }
    T* gradient(T* const* buffers, const Place& place, std::int64_t panel, std::int64_t position) const {
        return buffers[place.buffer] + (panel * plan_.block_rows + place.row + position) * G * L;
    }

    void clear_padding(int member) {
        if (p_.dx.data == nullptr || p_.accumulate_dx || p_.dims.V > 0) return;
        for (std::int64_t position = member; position < p_.dims.B; position += team_.size()) {
            for (std::int64_t t = p_.schedule.length[position]; t < p_.dims.T; ++t) {
                fill_zero(p_.dx.row(t, row_of(position)), p_.dims.I);
            }
        }
    }

    void clear_units(const Part& part);
    void pass_through_empty_rows(int member) {
        for (std::int64_t position = member; position < p_.dims.B; position += team_.size()) {
            if (p_.schedule.length[position] != 0) continue;
            for (int k = 0; k < S; ++k) {
                const std::int64_t width = k == 0 ? p_.dims.P : p_.dims.H;
                const std::int64_t at = row_of(position) * width;
                copy_or_zero(p_.dfinal[k] == nullptr ? nullptr : p_.dfinal[k] + at, p_.dinitial[k] + at,
                             width);
            }
        }
    }

    // acc = (gate gradients of the step at `place`) W_hh for n rows from r on: output panels u and following.
    void recurrent_product(const Part& part, Member& m, const Place& place, std::int64_t u,
                           std::int64_t count, std::int64_t r, std::int64_t n, std::int64_t room) {
        if (!this->passes_h) return;
        for (std::int64_t i = 0; i < n; ++i)
            m.a_rows[i] = gradient(plan_.dgh, place, 0, part.position(r + i));
        GemmArgs<T> args =
            paneled_rows<T>(m.a_rows, n, plan_.panels, this->first_gates * L, plan_.block_rows * G * L,
                            this->first_gates * last_units<T>(unit_room<Cell, T>(p_.dims.H)));
        take_panels<T>(args, p_.weights.w_hh_t, {u, u + count}, p_.dims.P);
        args.out = m.acc;
        args.out_panel = room * L;
        args.out_row = L;
        gemm<T, 1>(args);
    }

    // A row's work for one panel of output.
    std::int64_t panel_work() const { return (plan_.panels * G * L + 64) * L; }

    // The gradient that reaches h after step `here` for row i: from the output, and from the step after it, or, for a
    // row's last step, from the final state.
    V hidden_gradient(const Place& here, std::int64_t position, std::int64_t unit, bool continues, bool cut,
                      const T* acc) const {
        const std::int64_t b = row_of(position), valid = p_.dims.P - unit;
        V dh = p_.dy.data == nullptr ? V::set(0) : load_part(p_.dy.row(here.t, b) + unit, valid);
        if (continues) {
            if (!cut) {
                if (this->passes_h) dh = dh + V::load(acc);
                if (this->direct_hidden) dh = dh + V::load(plan_.carry + position * S * hp_ + unit);
            } else if (p_.dreset[0] != nullptr) {
                give_to_reset(0, b, unit, p_.dims.P, gradient_before(position, unit, acc));
            }
        } else if (p_.dfinal[0] != nullptr) {
            dh = dh + load_part(p_.dfinal[0] + b * p_.dims.P + unit, valid);
        }
        return dh;
    }

    // The same of a state beyond h.
    V state_gradient(int k, const Place& here, std::int64_t position, std::int64_t unit, bool continues,
                     bool cut) const {
        const std::int64_t b = row_of(position), valid = p_.dims.H - unit;
        V ds = V::set(0);
        if (continues) {
            const T* carried = plan_.carry + (position * S + k) * hp_ + unit;
            if (!cut) {
                ds = V::load(carried);
            } else if (p_.dreset[k] != nullptr) {
                give_to_reset(k, b, unit, p_.dims.H, V::load(carried));
            }
        } else if (p_.dfinal[k] != nullptr) {
            ds = load_part(p_.dfinal[k] + b * p_.dims.H + unit, valid);
        }
        if (p_.dsteps[k].data != nullptr) ds = ds + load_part(p_.dsteps[k].row(here.t, b) + unit, valid);
        return ds;
    }

    // The gradient of h before a step, from its recurrent product and from where the step reads h itself.
    V gradient_before(std::int64_t position, std::int64_t unit, const T* acc) const {
        V dh = this->passes_h ? V::load(acc) : V::set(0);
        if (this->direct_hidden) dh = dh + V::load(plan_.carry + position * S * hp_ + unit);
        return dh;
    }

    // At a reset the gradient goes to what took the place of the state.
    void give_to_reset(int k, std::int64_t b, std::int64_t unit, std::int64_t width, V gradient) const {
        T* to = p_.dreset[k] + b * width + unit;
        store_part(load_part(to, width - unit) + gradient, to, width - unit);
    }

    // Ends early once the call was cancelled.
    void sweep_step(const Part& part, Member& m, int member, const Place& later, const Place& here) {
        const std::int64_t rows = part.rows(p_.schedule.active[here.t]);
        // Rows that have a later step are the first ones: where there is one going forward, all of them in reverse.
        std::int64_t continuing = 0;
        if (later.t >= 0) continuing = smaller(rows, part.rows(p_.schedule.active[later.t]));
        const PreviousStates<Cell, T> previous_states = previous();
        for (std::int64_t i = 0; i < rows; ++i) {
            const T* found[kMostStates]{};
            previous_states.find(here.t, part.position(i), found);
            for (int k = 0; k < S; ++k) m.state_rows[i * S + k] = found[k];
        }
        if (p_.dims.projected) {
            project_gradients(part, m, member, later, here, rows, continuing);
            return;
        }
        const std::int64_t panels = part.panels.end - part.panels.begin;
        const PanelGroups groups(panels, group_panels<Cell, 1>(*this, panels, rows), (here.t & 1) != 0);
        const std::int64_t room = group_rows<Cell>(rows);
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [u, end] = groups[q];
            const std::int64_t count = end - u, first = part.panels.begin + u;
            for (std::int64_t r = 0; r < rows; r += kRowGroup) {
                const std::int64_t n = smaller(kRowGroup, rows - r);
                if (team_.cancelled(member, n * count * panel_work())) return;
                prefetch_cells(part, m, here, {first, first + count}, {r, r + n});
                recurrent_product(part, m, later, first, count, r, larger(0, smaller(n, continuing - r)),
                                  room);
                if constexpr (Sizes::kIsProgram) {
                    run_program_cells(part, m, later, here, {first, first + count}, r, n, continuing, room);
                } else {
                    for (std::int64_t v = 0; v < count; ++v) {
                        const std::int64_t unit = (first + v) * L;
                        for (std::int64_t i = r; i < r + n; ++i) {
                            const std::int64_t position = part.position(i);
                            const bool continues = i < continuing;
                            const bool cut =
                                continues && previous_states.is_cut(later.t, row_of(position), position);
                            const T* acc = m.acc + (v * kRowGroup + i - r) * L;
                            const V dh = hidden_gradient(here, position, unit, continues, cut, acc);
                            cell_backward(m, here, first + v, i, position, dh, continues, cut);
                        }
                    }
                }
            }
        }
    }

    // The program's backward for n rows from r on of a group of panels: backward_program.h.
    void run_program_cells(const Part& part, Member& m, const Place& later, const Place& here, Range panels,
                           std::int64_t r, std::int64_t n, std::int64_t continuing, std::int64_t acc_rows);

    // What the cell kept in step `here` for one row of the batch and one panel. A tape has the rows of all steps,
    // recomputing those of the block.
    const T* saved_at(const Place& here, std::int64_t panel, std::int64_t position) const {
        const std::int64_t before = plan_.recompute ? here.row : p_.schedule.offset[here.t];
        const std::int64_t row = before * plan_.panels + panel * p_.schedule.active[here.t] + position;
        return (plan_.recompute ? plan_.saved : p_.saved) + row * this->kept * L;
    }

    // The tape of these cells comes from far away: it is on its way while their recurrent product is computed.
    FUSEDRNN_INLINE void prefetch_cells(const Part& part, const Member& m, const Place& here, Range panels,
                                        Range rows) const {
        const std::int64_t unit = panels.begin * L, units = (panels.end - panels.begin) * L;
        for (std::int64_t i = rows.begin; i < rows.end; ++i) {
            const std::int64_t position = part.position(i);
            for (std::int64_t panel = panels.begin; panel < panels.end; ++panel)
                prefetch(saved_at(here, panel, position), this->kept * L);
            if (p_.dy.data != nullptr) prefetch(p_.dy.row(here.t, row_of(position)) + unit, units);
            for (int k = this->direct_hidden ? 0 : 1; k < S; ++k)
                prefetch(m.state_rows[i * S + k] + unit, units);
        }
    }

    // The cell's backward for one row and one panel: gate gradients out, state gradients into `carry`.
    FUSEDRNN_INLINE void cell_backward(Member& m, const Place& here, std::int64_t panel, std::int64_t i,
                                       std::int64_t position, V dh, bool continues, bool cut) {
        const std::int64_t unit = panel * L, valid = p_.dims.H - unit, apart = smaller(L, valid);
        V saved[Cell::kSaved], units[kPerUnitRoom<Cell>], s[S], ds_next[S], ds[S];
        V dgx[G], dgh[G], dunits[kPerUnitRoom<Cell>];
        const T* from = saved_at(here, panel, position);
        for (int k = 0; k < Cell::kSaved; ++k) saved[k] = V::load(from + k * L);
        load_units<Cell, T>(p_.weights.units, panel, units);
        s[0] = Cell::kDirectHidden ? load_part(m.state_rows[i * S] + unit, valid) : V::set(0);
        ds_next[0] = dh;
        for (int k = 1; k < S; ++k) {
            s[k] = load_part(m.state_rows[i * S + k] + unit, valid);
            ds_next[k] = state_gradient(k, here, position, unit, continues, cut);
        }
        call_backward<Cell>(saved, units, s, ds_next, dgx, dgh, dunits, ds);
        if constexpr (Cell::kSplitGates) {
            T* to = gradient(plan_.dgx, here, panel, position);
            for (int g = 0; g < G; ++g) store_part(dgx[g], to + g * apart, valid);
        }
        T* to = gradient(plan_.dgh, here, panel, position);
        for (int g = 0; g < G; ++g) store_part(dgh[g], to + g * apart, valid);
        if constexpr (kPerUnit<Cell> > 0) {
            T* units_to = plan_.dunits[here.buffer] +
                          (panel * plan_.block_rows + here.row + position) * kPerUnit<Cell> * L;
            for (int v = 0; v < kPerUnit<Cell>; ++v) store_padded(dunits[v], units_to + v * L, valid);
        }
        for (int k = Cell::kDirectHidden ? 0 : 1; k < S; ++k) {
            ds[k].store(plan_.carry + (position * S + k) * hp_ + unit);
        }
    }

    // With a projection: first the gradient of the output, kept for dW_hr, then through W_hr into the cell:
    // backward_projected.h.
    void project_gradients(const Part& part, Member& m, int member, const Place& later, const Place& here,
                           std::int64_t rows, std::int64_t continuing);
    T* projected_gradient(const Place& place, std::int64_t panel, std::int64_t position) const {
        return plan_.dhidden[place.buffer] + (panel * plan_.block_rows + place.row + position) * L;
    }

    // The gradient of the initial state, for the rows whose first step was `here`.
    void finish_rows(const Part& part, Member& m, int member, const Place& here) {
        const PreviousStates<Cell, T> previous_states = previous();
        const std::int64_t rows = part.rows(p_.schedule.active[here.t]);
        std::int64_t first = 0;
        if (p_.schedule.reverse) {
            first = part.rows(p_.schedule.active[here.t + 1]);
        } else if (here.t > 0) {
            return;
        }
        const bool projected = p_.dims.projected;
        const std::int64_t begin = projected ? 0 : part.panels.begin;
        const std::int64_t end = projected ? plan_.p_panels : part.panels.end;
        const std::int64_t at_once = panels_at_once<1>(rows - first);
        for (std::int64_t r = first; r < rows; r += kRowGroup) {
            const std::int64_t n = smaller(kRowGroup, rows - r);
            for (std::int64_t u = begin; u < end; u += at_once) {
                const std::int64_t count = smaller(at_once, end - u);
                if (team_.cancelled(member, n * count * panel_work())) return;
                recurrent_product(part, m, here, u, count, r, n, kRowGroup);
                for (std::int64_t v = 0; v < count; ++v) {
                    for (std::int64_t i = r; i < r + n; ++i) {
                        const std::int64_t position = part.position(i), b = row_of(position),
                                           unit = (u + v) * L;
                        V dh = gradient_before(position, unit, m.acc + (v * kRowGroup + i - r) * L);
                        if (previous_states.is_cut(here.t, b, position)) {
                            if (p_.dreset[0] != nullptr) give_to_reset(0, b, unit, p_.dims.P, dh);
                            dh = V::set(0);
                        }
                        store_part(dh, p_.dinitial[0] + b * p_.dims.P + unit, p_.dims.P - unit);
                    }
                }
            }
            for (std::int64_t i = r; i < r + n; ++i) {
                const std::int64_t position = part.position(i), b = row_of(position);
                const bool cut = previous_states.is_cut(here.t, b, position);
                for (int k = 1; k < S; ++k) {
                    for (std::int64_t j = part.panels.begin; j < part.panels.end; ++j) {
                        V ds = V::load(plan_.carry + (position * S + k) * hp_ + j * L);
                        if (cut) {
                            if (p_.dreset[k] != nullptr) give_to_reset(k, b, j * L, p_.dims.H, ds);
                            ds = V::set(0);
                        }
                        store_part(ds, p_.dinitial[k] + b * p_.dims.H + j * L, p_.dims.H - j * L);
                    }
                }
            }
        }
    }

    const BackwardProblem<T>& p_;
    Team& team_;
    BackwardPlan<Cell, T> plan_;
    Gradients<Cell, T> gradients_;
    Recompute<Cell, T> recompute_;
    Arena arena_;
    std::int64_t hp_;
};

template <class Cell, class T>
std::int64_t backward_workspace(const RecurrentCell& cell, const Dims& dims, bool recompute, int threads) {
    BackwardPlan<Cell, T> plan(cell, dims, recompute);
    Arena arena(nullptr);
    plan.take_shared(dims, arena);
    for (int member = 0; member < threads; ++member) {
        plan.take_member(dims, arena);
        Recompute<Cell, T>::take_member(plan, arena);
    }
    return arena.used();
}

template <class Cell, class T>
void backward(const BackwardProblem<T>& problem, Team& team, void* workspace) {
    Backward<Cell, T> driver(problem, team, workspace);
    team.run([](void* context, int member) { static_cast<Backward<Cell, T>*>(context)->run_member(member); },
             &driver);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
