// Backward over a whole sequence, in blocks of steps: the sweep through a block gives the gate gradients, each panel of
// units going from the recurrent product through the cell's backward while it is in the L1 cache; then the gradients of
// the inputs and weights follow as large products over all rows of the block.
//
// Blocks and the order of rows depend on the problem alone, never on the threads: so do the results.
#pragma once

#include "cpu/outer.h"
#include "cpu/steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kGradientBlockRows = 384;

// Sizes and pieces of the workspace of one call.
template <class Cell, class T>
struct BackwardPlan {
    static constexpr std::int64_t G = Cell::kGates, L = Vec<T>::kLanes;
    std::int64_t panels, p_panels, steps, block_rows;
    // Shared by all members. Gate gradients are [panel][row][G][L], twice: a block's first step needs the last of the
    // block before it.
    T *zero, *carry, *dgx[2], *dgh[2], *dhidden;
    struct Member {
        T *acc, *columns;
        const T** a_rows;            // the rows of a product
        const T **x_rows, **h_rows;  // inputs and previous hidden states of a whole block
        const T** state_rows;
    };

    explicit BackwardPlan(const Dims& d) {
        panels = panels_of<T>(d.H);
        p_panels = panels_of<T>(d.P);
        steps = larger(1, smaller(d.T, kGradientBlockRows / larger(1, d.B)));
        block_rows = steps * d.B;
    }
    void take_shared(const Dims& d, Arena& arena) {
        const std::int64_t gradients = panels * block_rows * G * L;
        zero = arena.template take<T>(larger(padded<T>(d.H), padded<T>(d.P)));
        carry = arena.template take<T>(d.B * Cell::kStates * padded<T>(d.H));
        for (int i = 0; i < 2; ++i) {
            dgx[i] = arena.template take<T>(gradients);
            dgh[i] = Cell::kSplitGates ? arena.template take<T>(gradients) : dgx[i];
        }
        dhidden = arena.template take<T>(d.projected ? p_panels * block_rows * L : 0);
    }
    Member take_member(const Dims& d, Arena& arena) const {
        Member m;
        m.acc = arena.template take<T>(accumulator_vectors<1>() * L);
        m.columns = arena.template take<T>(block_rows *
                                           larger(padded<T>(d.I), larger(padded<T>(d.H), padded<T>(d.P))));
        m.a_rows = arena.template take<const T*>(larger(block_rows, d.B));
        m.x_rows = arena.template take<const T*>(block_rows);
        m.h_rows = arena.template take<const T*>(block_rows);
        m.state_rows = arena.template take<const T*>(d.B * Cell::kStates);
        return m;
    }
};

template <class Cell, class T>
class Backward {
  public:
    static constexpr int G = Cell::kGates, S = Cell::kStates;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using V = Vec<T>;
    using Member = typename BackwardPlan<Cell, T>::Member;

    Backward(const BackwardProblem<T>& problem, Team& team, void* workspace)
        : p_(problem), team_(team), plan_(problem.dims), arena_(workspace), hp_(padded<T>(problem.dims.H)) {
        plan_.take_shared(p_.dims, arena_);
        fill_zero(plan_.zero, larger(padded<T>(p_.dims.H), padded<T>(p_.dims.P)));
    }

    void run_member(int member) {
        Arena arena = arena_;
        Member m{};
        for (int i = 0; i <= member; ++i) m = plan_.take_member(p_.dims, arena);
        const Part part = part_of(p_.dims, plan_.panels, team_.size(), member);
        const bool by_units = part.stride == 1 && team_.size() > 1;
        clear_padding(member);
        pass_through_empty_rows(member);
        const std::int64_t total = longest(p_.dims, p_.schedule);
        Place later{-1, 0, 0}, here{0, 0, 0};
        for (std::int64_t q = 0; q < total; q += plan_.steps) {
            const std::int64_t end = smaller(q + plan_.steps, total);
            here.row = 0;
            for (std::int64_t step = q; step < end; ++step) {
                here.t = time_of(step, total);
                sweep_step(part, m, later, here);
                if (by_units ? !team_.barrier(member) : team_.cancelled(member)) return;
                finish_rows(part, m, here);
                later = here;
                here.row += p_.schedule.active[here.t];
            }
            if (!team_.barrier(member)) return;
            block_gradients(m, member, q, end, here);
            here.buffer ^= 1;
        }
    }

  private:
    // Where the gate gradients of step t are: in which of the two buffers, from which row on. t = -1: no such step.
    struct Place {
        std::int64_t t;
        int buffer;
        std::int64_t row;
    };

    // Steps are taken against the direction of the forward pass.
    std::int64_t time_of(std::int64_t step, std::int64_t total) const {
        return p_.schedule.reverse ? step : total - 1 - step;
    }
    PreviousStates<Cell, T> previous() const {
        return PreviousStates<Cell, T>(p_, plan_.zero, p_.states, true);
    }
    std::int64_t row_of(std::int64_t position) const { return p_.schedule.order[position]; }
    T* gradient(T* const* buffers, const Place& place, std::int64_t panel, std::int64_t position) const {
        return buffers[place.buffer] + (panel * plan_.block_rows + place.row + position) * G * L;
    }

    void clear_padding(int member) {
        if (p_.dx.data == nullptr || p_.accumulate_dx) return;
        for (std::int64_t position = member; position < p_.dims.B; position += team_.size()) {
            for (std::int64_t t = p_.schedule.length[position]; t < p_.dims.T; ++t) {
                fill_zero(p_.dx.row(t, row_of(position)), p_.dims.I);
            }
        }
    }

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
                           std::int64_t count, std::int64_t r, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i)
            m.a_rows[i] = gradient(plan_.dgh, place, 0, part.position(r + i));
        GemmArgs<T> args{};
        args.a = m.a_rows;
        args.n = n;
        args.chunks = plan_.panels;
        args.chunk_len = G * L;
        args.chunk_stride = plan_.block_rows * G * L;
        args.b_panel = plan_.panels * G * L * L;
        args.b = p_.weights.w_hh_t + u * args.b_panel;
        args.panels = count;
        args.out = m.acc;
        args.out_panel = kRowGroup * L;
        args.out_row = L;
        gemm<T, 1>(args);
    }

    // The gradient that reaches h after step `here` for row i: from the output, and from the step after it, or, for a
    // row's last step, from the final state.
    V hidden_gradient(const Place& here, std::int64_t position, std::int64_t unit, bool continues, bool cut,
                      const T* acc) const {
        const std::int64_t b = row_of(position), valid = p_.dims.P - unit;
        V dh = p_.dy.data == nullptr ? V::set(0) : load_part(p_.dy.row(here.t, b) + unit, valid);
        if (continues) {
            if (!cut) {
                dh = dh + V::load(acc);
                if constexpr (Cell::kDirectHidden) dh = dh + V::load(plan_.carry + position * S * hp_ + unit);
            }
        } else if (p_.dfinal[0] != nullptr) {
            dh = dh + load_part(p_.dfinal[0] + b * p_.dims.P + unit, valid);
        }
        return dh;
    }

    V state_gradient(int k, std::int64_t position, std::int64_t unit, bool continues, bool cut) const {
        if (continues) return cut ? V::set(0) : V::load(plan_.carry + (position * S + k) * hp_ + unit);
        if (p_.dfinal[k] == nullptr) return V::set(0);
        return load_part(p_.dfinal[k] + row_of(position) * p_.dims.H + unit, p_.dims.H - unit);
    }

    void sweep_step(const Part& part, Member& m, const Place& later, const Place& here) {
        const std::int64_t rows = part.rows(p_.schedule.active[here.t]);
        // Rows that have a later step are the first ones: where there is one going forward, all of them in reverse.
        std::int64_t continuing = 0;
        if (later.t >= 0) continuing = smaller(rows, part.rows(p_.schedule.active[later.t]));
        const PreviousStates<Cell, T> previous_states = previous();
        for (std::int64_t i = 0; i < rows; ++i) {
            const T* found[S];
            previous_states.find(here.t, part.position(i), found);
            for (int k = 0; k < S; ++k) m.state_rows[i * S + k] = found[k];
        }
        if (p_.dims.projected) {
            project_gradients(part, m, later, here, rows, continuing);
            return;
        }
        const std::int64_t panels = part.panels.end - part.panels.begin, at_once = panels_at_once<1>(rows);
        for (std::int64_t u = 0; u < panels; u += at_once) {
            const std::int64_t count = smaller(at_once, panels - u), first = part.panels.begin + u;
            for (std::int64_t r = 0; r < rows; r += kRowGroup) {
                const std::int64_t n = smaller(kRowGroup, rows - r);
                recurrent_product(part, m, later, first, count, r, larger(0, smaller(n, continuing - r)));
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

    // The cell's backward for one row and one panel: gate gradients out, state gradients into `carry`.
    FUSEDRNN_INLINE void cell_backward(Member& m, const Place& here, std::int64_t panel, std::int64_t i,
                                       std::int64_t position, V dh, bool continues, bool cut) {
        const std::int64_t unit = panel * L, valid = p_.dims.H - unit, active = p_.schedule.active[here.t];
        V saved[Cell::kSaved], s[S], ds_next[S], ds[S], dgh[G];
        const T* from =
            p_.saved + (p_.schedule.offset[here.t] * plan_.panels + panel * active) * Cell::kSaved * L;
        for (int k = 0; k < Cell::kSaved; ++k) saved[k] = V::load(from + (position * Cell::kSaved + k) * L);
        s[0] = Cell::kDirectHidden ? load_part(m.state_rows[i * S] + unit, valid) : V::set(0);
        ds_next[0] = dh;
        for (int k = 1; k < S; ++k) {
            s[k] = load_part(m.state_rows[i * S + k] + unit, valid);
            ds_next[k] = state_gradient(k, position, unit, continues, cut);
        }
        if constexpr (Cell::kSplitGates) {
            V dgx[G];
            Cell::backward(saved, s, ds_next, dgx, dgh, ds);
            T* to = gradient(plan_.dgx, here, panel, position);
            for (int g = 0; g < G; ++g) store_padded(dgx[g], to + g * L, valid);
        } else {
            Cell::backward(saved, s, ds_next, dgh, ds);
        }
        T* to = gradient(plan_.dgh, here, panel, position);
        for (int g = 0; g < G; ++g) store_padded(dgh[g], to + g * L, valid);
        for (int k = Cell::kDirectHidden ? 0 : 1; k < S; ++k) {
            ds[k].store(plan_.carry + (position * S + k) * hp_ + unit);
        }
    }

    // With a projection: first the gradient of the output, kept for dW_hr, then through W_hr into the cell.
    void project_gradients(const Part& part, Member& m, const Place& later, const Place& here,
                           std::int64_t rows, std::int64_t continuing) {
        const PreviousStates<Cell, T> previous_states = previous();
        const std::int64_t at_once = panels_at_once<1>(rows);
        for (std::int64_t r = 0; r < rows; r += kRowGroup) {
            const std::int64_t n = smaller(kRowGroup, rows - r);
            for (std::int64_t u = 0; u < plan_.p_panels; u += at_once) {
                const std::int64_t count = smaller(at_once, plan_.p_panels - u);
                recurrent_product(part, m, later, u, count, r, larger(0, smaller(n, continuing - r)));
                for (std::int64_t v = 0; v < count; ++v) {
                    const std::int64_t unit = (u + v) * L;
                    for (std::int64_t i = r; i < r + n; ++i) {
                        const std::int64_t position = part.position(i);
                        const bool cut =
                            i < continuing && previous_states.is_cut(later.t, row_of(position), position);
                        const V dh = hidden_gradient(here, position, unit, i < continuing, cut,
                                                     m.acc + (v * kRowGroup + i - r) * L);
                        store_padded(dh, projected_gradient(here, u + v, position), p_.dims.P - unit);
                    }
                }
            }
            for (std::int64_t i = 0; i < n; ++i)
                m.a_rows[i] = projected_gradient(here, 0, part.position(r + i));
            for (std::int64_t u = 0; u < plan_.panels; u += at_once) {
                GemmArgs<T> args{};
                args.a = m.a_rows;
                args.n = n;
                args.chunks = plan_.p_panels;
                args.chunk_len = L;
                args.chunk_stride = plan_.block_rows * L;
                args.b_panel = plan_.p_panels * L * L;
                args.b = p_.weights.w_hr_t + u * args.b_panel;
                args.panels = smaller(at_once, plan_.panels - u);
                args.out = m.acc;
                args.out_panel = kRowGroup * L;
                args.out_row = L;
                gemm<T, 1>(args);
                for (std::int64_t v = 0; v < args.panels; ++v) {
                    for (std::int64_t i = r; i < r + n; ++i) {
                        const std::int64_t position = part.position(i);
                        const bool cut =
                            i < continuing && previous_states.is_cut(later.t, row_of(position), position);
                        cell_backward(m, here, u + v, i, position,
                                      V::load(m.acc + (v * kRowGroup + i - r) * L), i < continuing, cut);
                    }
                }
            }
        }
    }
    T* projected_gradient(const Place& place, std::int64_t panel, std::int64_t position) const {
        return plan_.dhidden + (panel * plan_.block_rows + place.row + position) * L;
    }

    // The gradient of the initial state, for the rows whose first step was `here`.
    void finish_rows(const Part& part, Member& m, const Place& here) {
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
                recurrent_product(part, m, here, u, count, r, n);
                for (std::int64_t v = 0; v < count; ++v) {
                    for (std::int64_t i = r; i < r + n; ++i) {
                        const std::int64_t position = part.position(i), b = row_of(position),
                                           unit = (u + v) * L;
                        V dh = V::load(m.acc + (v * kRowGroup + i - r) * L);
                        if constexpr (Cell::kDirectHidden)
                            dh = dh + V::load(plan_.carry + position * S * hp_ + unit);
                        if (previous_states.is_cut(here.t, b, position)) dh = V::set(0);
                        store_part(dh, p_.dinitial[0] + b * p_.dims.P + unit, p_.dims.P - unit);
                    }
                }
            }
            for (std::int64_t i = r; i < r + n; ++i) {
                const std::int64_t position = part.position(i), b = row_of(position);
                const bool cut = previous_states.is_cut(here.t, b, position);
                for (int k = 1; k < S; ++k) {
                    for (std::int64_t j = part.panels.begin; j < part.panels.end; ++j) {
                        const V ds =
                            cut ? V::set(0) : V::load(plan_.carry + (position * S + k) * hp_ + j * L);
                        store_part(ds, p_.dinitial[k] + b * p_.dims.H + j * L, p_.dims.H - j * L);
                    }
                }
            }
        }
    }

    // dx, dW and db from the steps [q, end) of the sweep, whose gate gradients fill rows [0, here.row).
    void block_gradients(Member& m, int member, std::int64_t q, std::int64_t end, const Place& here) {
        const std::int64_t total = longest(p_.dims, p_.schedule), rows = here.row;
        const PreviousStates<Cell, T> previous_states = previous();
        std::int64_t n = 0;
        for (std::int64_t step = q; step < end; ++step) {
            const std::int64_t t = time_of(step, total);
            for (std::int64_t position = 0; position < p_.schedule.active[t]; ++position) {
                const T* found[S];
                previous_states.find(t, position, found);
                m.h_rows[n] = found[0];
                m.x_rows[n] = p_.x.row(t, row_of(position));
                ++n;
            }
        }
        input_gradients(m, member, q, here);
        const T* dgx = plan_.dgx[here.buffer];
        const T* dgh = plan_.dgh[here.buffer];
        const std::int64_t a_panel = plan_.block_rows * G * L;
        const std::int64_t columns_x = panels_of<T>(p_.dims.I), columns_h = panels_of<T>(p_.dims.P);
        const Range mine = share(columns_x + columns_h, team_.size(), member);
        if (p_.dparams.w_ih != nullptr) {
            const OuterArgs<T> args{dgx,       a_panel,         G,        p_.dims.H, m.x_rows, rows,
                                    p_.dims.I, p_.dparams.w_ih, m.columns};
            outer<T>(args, smaller(mine.begin, columns_x), smaller(mine.end, columns_x));
        }
        if (p_.dparams.w_hh != nullptr) {
            const OuterArgs<T> args{dgh,       a_panel,         G,        p_.dims.H, m.h_rows, rows,
                                    p_.dims.P, p_.dparams.w_hh, m.columns};
            outer<T>(args, larger(mine.begin - columns_x, 0), larger(mine.end - columns_x, 0));
        }
        const Range bias = share(plan_.panels, team_.size(), member);
        if constexpr (Cell::kSplitGates) {
            sum_rows<T, G>(dgx, a_panel, rows, p_.dims.H, p_.dparams.b_ih, nullptr, bias.begin, bias.end);
            sum_rows<T, G>(dgh, a_panel, rows, p_.dims.H, p_.dparams.b_hh, nullptr, bias.begin, bias.end);
        } else {
            sum_rows<T, G>(dgx, a_panel, rows, p_.dims.H, p_.dparams.b_ih, p_.dparams.b_hh, bias.begin,
                           bias.end);
        }
        if (p_.dims.projected && p_.dparams.w_hr != nullptr) projection_gradients(m, member, q, end);
    }

    // dx = dgx W_ih for this member's share of the block's rows.
    void input_gradients(Member& m, int member, std::int64_t q, const Place& here) {
        if (p_.dx.data == nullptr || p_.dims.I == 0) return;
        const std::int64_t total = longest(p_.dims, p_.schedule);
        const Range mine = share(here.row, team_.size(), member);
        const std::int64_t panels = panels_of<T>(p_.dims.I), at_once = panels_at_once<1>(kRowGroup);
        for (std::int64_t row = mine.begin; row < mine.end; ++row) {
            m.a_rows[row] = plan_.dgx[here.buffer] + row * G * L;
        }
        for (std::int64_t u = 0; u < panels; u += at_once) {
            std::int64_t step = q, step_row = 0;  // the step that a row belongs to, and the step's first row
            for (std::int64_t r = mine.begin; r < mine.end; r += kRowGroup) {
                GemmArgs<T> args{};
                args.a = m.a_rows + r;
                args.n = smaller(kRowGroup, mine.end - r);
                args.chunks = plan_.panels;
                args.chunk_len = G * L;
                args.chunk_stride = plan_.block_rows * G * L;
                args.b_panel = plan_.panels * G * L * L;
                args.b = p_.weights.w_ih_t + u * args.b_panel;
                args.panels = smaller(at_once, panels - u);
                args.out = m.acc;
                args.out_panel = kRowGroup * L;
                args.out_row = L;
                gemm<T, 1>(args);
                for (std::int64_t i = 0; i < args.n; ++i) {
                    while (r + i - step_row >= p_.schedule.active[time_of(step, total)]) {
                        step_row += p_.schedule.active[time_of(step++, total)];
                    }
                    T* dx = p_.dx.row(time_of(step, total), row_of(r + i - step_row));
                    for (std::int64_t v = 0; v < args.panels; ++v) {
                        const std::int64_t column = (u + v) * L, valid = p_.dims.I - column;
                        V value = V::load(m.acc + (v * kRowGroup + i) * L);
                        if (p_.accumulate_dx) value = value + load_part(dx + column, valid);
                        store_part(value, dx + column, valid);
                    }
                }
            }
        }
    }

    // dW_hr += (gradient of the output)^T hidden.
    void projection_gradients(Member& m, int member, std::int64_t q, std::int64_t end) {
        const std::int64_t total = longest(p_.dims, p_.schedule);
        std::int64_t n = 0;
        for (std::int64_t step = q; step < end; ++step) {
            const std::int64_t t = time_of(step, total);
            for (std::int64_t position = 0; position < p_.schedule.active[t]; ++position) {
                m.a_rows[n++] = p_.hidden + (p_.schedule.offset[t] + position) * hp_;
            }
        }
        const OuterArgs<T> args{plan_.dhidden, plan_.block_rows * L, 1,        p_.dims.P, m.a_rows, n,
                                p_.dims.H,     p_.dparams.w_hr,      m.columns};
        const Range mine = share(panels_of<T>(p_.dims.H), team_.size(), member);
        outer<T>(args, mine.begin, mine.end);
    }

    const BackwardProblem<T>& p_;
    Team& team_;
    BackwardPlan<Cell, T> plan_;
    Arena arena_;
    std::int64_t hp_;
};

template <class Cell, class T>
std::int64_t backward_workspace(const Dims& dims, int threads) {
    BackwardPlan<Cell, T> plan(dims);
    Arena arena(nullptr);
    plan.take_shared(dims, arena);
    for (int member = 0; member < threads; ++member) plan.take_member(dims, arena);
    return arena.used();
}

template <class Cell, class T>
void backward(const BackwardProblem<T>& problem, Team& team, void* workspace) {
    Backward<Cell, T> driver(problem, team, workspace);
    team.run([](void* context, int member) { static_cast<Backward<Cell, T>*>(context)->run_member(member); },
             &driver);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
