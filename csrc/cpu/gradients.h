// The gradients of inputs and weights, as large products over all rows of a block of steps, once the sweep through the
// block has left their gate gradients.
//
// Blocks and the order of rows depend on the problem alone, never on the threads: so do the results.
#pragma once

#include "cpu/masks.h"
#include "cpu/outer.h"
#include "cpu/pack.h"
#include "cpu/row_operations.h"
#include "cpu/steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kGradientBlockRows = 384;

// Sizes and pieces of the workspace of one backward call.
template <class Cell, class T>
struct BackwardPlan : CellSizes<Cell> {
    using CellSizes<Cell>::G, CellSizes<Cell>::S, CellSizes<Cell>::units, CellSizes<Cell>::kept;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    const CellPrograms* programs;
    bool recompute;
    std::int64_t panels, p_panels, steps, block_rows;
    // Shared by all members. Gate gradients are [panel][row][G][L], the gates of the last panel as close as unit_room says,
    // and with a projection gradients of the output [panel][row][L], and of per-unit parameters [panel][row][values][L].
    // Twice: the next block's sweep begins while other members still read this block's. A step of several stages adds up
    // those of per-unit parameters itself, over the steps of each row of the batch: [panel][position][values][L].
    T *zero, *carry, *dgx[2], *dgh[2], *dhidden[2], *dunits[2];
    T* operands[2];  // of the products within a step: [row][product][H rounded up]
    T* table_gates;  // the sums of dgx over the places where a row of the table was looked up: [panel][V][G][L]
    // What the cells of a block keep, where the tape does not have it; laid out as the tape.
    T *saved, *moments;
    struct Member {
        T *acc, *columns;
        const T** a_rows;            // the rows of a product
        const T **x_rows, **h_rows;  // inputs and previous hidden states of a whole block
        T** dx_rows;                 // where the inputs' gradients go
        std::int64_t* indices;       // of the rows of a block in the table of inputs
        const T** state_rows;
        typename TilesOf<Cell, T>::Type tiles;
        typename LinksOf<Cell, T>::Type links;
        typename MasksOf<Cell, T>::Type masks;
    };

    // `no_tape`: it does not have what the cells keep.
    BackwardPlan(const RecurrentCell& cell, const Dims& d, bool no_tape)
        : CellSizes<Cell>(cell), programs(cell.programs), recompute(no_tape && kept > 0) {
        panels = panels_of<T>(d.H);
        p_panels = panels_of<T>(d.P);
        steps = larger(1, smaller(d.T, kGradientBlockRows / larger(1, d.B)));
        block_rows = larger(1, steps * d.B);
    }
    std::int64_t unit_rows(const Dims& d) const { return this->staged ? d.B : block_rows; }
    void take_shared(const Dims& d, Arena& arena) {
        const std::int64_t gradients = panels * block_rows * G * L;
        zero = arena.template take<T>(larger(padded<T>(d.H), padded<T>(d.P)));
        carry = arena.template take<T>(d.B * S * padded<T>(d.H));
        for (int i = 0; i < 2; ++i) {
            dgx[i] = arena.template take<T>(gradients);
            dgh[i] = this->split_gates ? arena.template take<T>(gradients) : dgx[i];
            dhidden[i] = arena.template take<T>(d.projected ? p_panels * block_rows * L : 0);
            dunits[i] =
                this->staged && i > 0 ? dunits[0] : arena.template take<T>(panels * unit_rows(d) * units * L);
            if constexpr (CellSizes<Cell>::kIsProgram)
                operands[i] = arena.template take<T>(block_rows * this->products * padded<T>(d.H));
        }
        table_gates = arena.template take<T>(panels * d.V * G * L);
        saved = arena.template take<T>(recompute ? panels * block_rows * kept * L : 0);
        if constexpr (CellSizes<Cell>::kIsProgram)
            moments = arena.template take<T>(recompute ? block_rows * this->norms : 0);
    }
    Member take_member(const Dims& d, Arena& arena) const {
        Member m;
        const std::int64_t group = group_vectors<Cell, 1>(*this, panels, d.B);
        m.acc = arena.template take<T>(larger(accumulator_vectors<1>(), group) * L);
        m.columns = arena.template take<T>(panel_depth<T>(block_rows) *
                                           larger(padded<T>(d.I), larger(padded<T>(d.H), padded<T>(d.P))));
        m.a_rows = arena.template take<const T*>(block_rows);
        m.x_rows = arena.template take<const T*>(block_rows);
        m.h_rows = arena.template take<const T*>(block_rows);
        m.dx_rows = arena.template take<T*>(block_rows);
        m.indices = arena.template take<std::int64_t>(block_rows);
        m.state_rows = arena.template take<const T*>(d.B * S);
        if constexpr (CellSizes<Cell>::kIsProgram) {
            m.tiles = ProgramTiles<T>(programs->backward, programs->backward, programs->values, 2 * S, group,
                                      arena);
            m.links = Links<T>(*this, panels, arena);
            m.masks = Masks<T>(*programs, group, d.B, panels, arena);
        }
        return m;
    }
};

// The time of a step of the sweep, which goes against the direction of the forward pass.
inline std::int64_t sweep_time(const Schedule& schedule, std::int64_t step, std::int64_t total) {
    return schedule.reverse ? step : total - 1 - step;
}

template <class Cell, class T>
class Gradients : CellSizes<Cell> {
  public:
    using Sizes = CellSizes<Cell>;
    using Sizes::G, Sizes::S;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using Plan = BackwardPlan<Cell, T>;
    using Member = typename Plan::Member;

    Gradients(const BackwardProblem<T>& problem, const Plan& plan, Team& team)
        : Sizes(*problem.cell),
          p_(problem),
          plan_(plan),
          team_(team),
          to_(by_role<Cell>(*problem.cell, problem.dparams)),
          room_(unit_room<Cell, T>(problem.dims.H)) {}

    // Before the first block: nothing has been looked up yet.
    void clear_table(int member) {
        const Range panels = share(plan_.panels, team_.size(), member);
        const std::int64_t size = p_.dims.V * G * L;
        fill_zero(plan_.table_gates + panels.begin * size, (panels.end - panels.begin) * size);
    }

    // Adds the steps [begin, end) of the sweep, whose gate gradients stand in one of the two buffers.
    void add_block(Member& m, int member, std::int64_t begin, std::int64_t end, int buffer) {
        const std::int64_t rows = find_rows(m, begin, end), a_panel = plan_.block_rows * G * L;
        const T* dgx = plan_.dgx[buffer];
        const T* dgh = plan_.dgh[buffer];
        if (p_.rows.dgx != nullptr) leave_rows(m, member, begin, end, buffer);
        // Columns of dW_ih, then of dW_hh; none of dW_ih where the table's rows bring them in the end.
        const std::int64_t inputs = p_.dims.V == 0 ? panels_of<T>(p_.dims.I) : 0;
        const Range mine = share(inputs + panels_of<T>(p_.dims.P), team_.size(), member);
        if (p_.dims.V == 0) {
            input_gradients(m, member, dgx, a_panel, rows,
                            {smaller(mine.begin, inputs), smaller(mine.end, inputs)});
        } else {
            add_to_table(m, member, dgx, rows);
        }
        if (to_.w_hh != nullptr) {
            // The first steps of a sequence, which end the sweep, may have had no state to multiply.
            std::int64_t with_state = rows;
            while (with_state > 0 && m.h_rows[with_state - 1] == plan_.zero) --with_state;
            const Range columns{larger(mine.begin - inputs, 0), larger(mine.end - inputs, 0)};
            const OuterArgs<T> args{dgh,        a_panel,   G,        this->first_gates, p_.dims.H, m.h_rows,
                                    with_state, p_.dims.P, to_.w_hh, m.columns,         team_,     member,
                                    0,          room_};
            outer<T>(args, columns.begin, columns.end);
            if constexpr (Sizes::kIsProgram) product_gradients(m, member, buffer, rows, columns);
        }
        if (p_.dims.V == 0) input_bias_gradients(member, dgx, a_panel, rows);
        if (this->split_gates) {
            const Range bias = share(plan_.panels, team_.size(), member);
            sum_gates<Cell, T>(*this, dgh, a_panel, rows, p_.dims.H, to_.b_hh, nullptr, bias.begin, bias.end,
                               team_, member);
        }
        if (this->units > 0 && !this->staged) unit_gradients(member, buffer, rows);
        if (p_.dims.projected && to_.w_hr != nullptr)
            projection_gradients(m, member, begin, end, plan_.dhidden[buffer]);
    }

    // After the last block of a step of several stages: what was added up for each row of the batch.
    void add_units(int member) const { unit_gradients(member, 0, p_.dims.B); }

    // After the last block and a barrier: what all blocks together say of the table, of W_ih and of the bias beside it.
    void add_table(Member& m, int member) {
        input_bias_gradients(member, plan_.table_gates, p_.dims.V * G * L, p_.dims.V);
        const Range columns = share(panels_of<T>(p_.dims.I), team_.size(), member);
        for (std::int64_t v = 0; v < p_.dims.V; v += plan_.block_rows) {
            const std::int64_t rows = smaller(plan_.block_rows, p_.dims.V - v);
            for (std::int64_t i = 0; i < rows; ++i) {
                m.x_rows[i] = p_.x.row(0, v + i);
                if (p_.dx.data != nullptr) m.dx_rows[i] = p_.dx.row(0, v + i);
            }
            input_gradients(m, member, plan_.table_gates + v * G * L, p_.dims.V * G * L, rows, columns);
        }
    }

  private:
    // dW_hh of gates whose products are not those of h.
    void product_gradients(Member& m, int member, int buffer, std::int64_t rows, Range columns) const {
        const std::int64_t width = padded<T>(p_.dims.H), a_panel = plan_.block_rows * G * L;
        for_each_product(*plan_.programs, [&](const RowOperation& product) {
            for (std::int64_t i = 0; i < rows; ++i)
                m.a_rows[i] = plan_.operands[buffer] + (i * this->products + product.number) * width;
            const OuterArgs<T> args{plan_.dgh[buffer] + product.first_gate * L,
                                    a_panel,
                                    G,
                                    product.count,
                                    p_.dims.H,
                                    m.a_rows,
                                    rows,
                                    p_.dims.H,
                                    to_.w_hh + product.first_gate * p_.dims.H * p_.dims.H,
                                    m.columns,
                                    team_,
                                    member};
            outer<T>(args, columns.begin, columns.end);
        });
    }

    // Of per-unit parameters, each its columns of what the cells gave.
    void unit_gradients(int member, int buffer, std::int64_t rows) const {
        const Range panels = share(plan_.panels, team_.size(), member);
        const std::int64_t a_panel = plan_.unit_rows(p_.dims) * this->units * L;
        for_each_per_unit(*p_.cell, [&](int place, int values, int first) {
            sum_some<T>(plan_.dunits[buffer] + first * L, a_panel, this->units, values, rows, p_.dims.H,
                        p_.dparams.of[place], nullptr, panels.begin, panels.end, team_, member);
        });
    }

    // Finds what the rows of a block read in the forward pass, in the order of the gate gradients; returns their number.
    std::int64_t find_rows(Member& m, std::int64_t begin, std::int64_t end) const {
        const std::int64_t total = longest(p_.dims, p_.schedule);
        const PreviousStates<Cell, T> previous_states(p_, plan_.zero, p_.states, true);
        std::int64_t n = 0;
        for (std::int64_t step = begin; step < end; ++step) {
            const std::int64_t t = sweep_time(p_.schedule, step, total);
            for (std::int64_t position = 0; position < p_.schedule.active[t]; ++position, ++n) {
                const std::int64_t b = p_.schedule.order[position];
                const T* found[Sizes::kMostStates]{};
                previous_states.find(t, position, found);
                m.h_rows[n] = found[0];
                if (p_.dims.V > 0) {
                    m.indices[n] = p_.index[t * p_.dims.B + b];
                    continue;
                }
                m.x_rows[n] = p_.x.row(t, b);
                if (p_.dx.data != nullptr) m.dx_rows[n] = p_.dx.row(t, b);
            }
        }
        return n;
    }

    // Copies what makes the weights' gradients to where each row of the batch has it apart.
    void leave_rows(const Member& m, int member, std::int64_t begin, std::int64_t end, int buffer) const {
        const std::int64_t total = longest(p_.dims, p_.schedule), width = G * p_.dims.H;
        const Range mine = share(p_.dims.B, team_.size(), member);
        std::int64_t n = 0;
        for (std::int64_t step = begin; step < end; ++step) {
            const std::int64_t t = sweep_time(p_.schedule, step, total);
            for (std::int64_t position = 0; position < p_.schedule.active[t]; ++position, ++n) {
                if (position < mine.begin || position >= mine.end) continue;
                const std::int64_t b = p_.schedule.order[position], place = b * p_.dims.T + t;
                const T* x = p_.dims.V > 0 ? p_.x.row(0, m.indices[n]) : m.x_rows[n];
                copy_or_zero(x, p_.rows.x + place * p_.dims.I, p_.dims.I);
                copy_or_zero(m.h_rows[n], p_.rows.h + place * p_.dims.P, p_.dims.P);
                leave_gates(plan_.dgx[buffer], n, p_.rows.dgx + place * width);
                if (this->split_gates) leave_gates(plan_.dgh[buffer], n, p_.rows.dgh + place * width);
            }
        }
    }
    void leave_gates(const T* gates, std::int64_t row, T* to) const {
        for (std::int64_t panel = 0; panel < plan_.panels; ++panel) {
            const T* from = gates + (panel * plan_.block_rows + row) * G * L;
            const std::int64_t unit = panel * L;
            const std::int64_t apart = smaller(L, room_ - unit);
            for (int g = 0; g < G; ++g) {
                store_part(Vec<T>::load(from + g * apart), to + g * p_.dims.H + unit, p_.dims.H - unit);
            }
        }
    }

    void add_to_table(const Member& m, int member, const T* dgx, std::int64_t rows) {
        const Range panels = share(plan_.panels, team_.size(), member);
        for (std::int64_t j = panels.begin; j < panels.end; ++j) {
            const T* from = dgx + j * plan_.block_rows * G * L;
            T* table = plan_.table_gates + j * p_.dims.V * G * L;
            const std::int64_t count = G * smaller(L, room_ - j * L);
            for (std::int64_t k = 0; k < rows; ++k, from += G * L) {
                T* to = table + m.indices[k] * G * L;
                for (std::int64_t i = 0; i < count; i += L)
                    store_part(load_part(to + i, count - i) + load_part(from + i, count - i), to + i,
                               count - i);
            }
        }
    }

    // From the gradients of gx for `rows` rows, [panel][row][G][L]: dx for this member's share of the rows, and the given
    // columns of dW_ih.
    void input_gradients(Member& m, int member, const T* gates, std::int64_t a_panel, std::int64_t rows,
                         Range columns) {
        if (p_.dx.data != nullptr && p_.dims.I > 0) {
            back_through_inputs(m, member, gates, a_panel, share(rows, team_.size(), member));
        }
        if (to_.w_ih == nullptr) return;
        const OuterArgs<T> args{gates,     a_panel,  G,         G,     p_.dims.H, m.x_rows, rows,
                                p_.dims.I, to_.w_ih, m.columns, team_, member,    0,        room_};
        outer<T>(args, columns.begin, columns.end);
    }

    // db_ih from the same, and db_hh where the gates are not split.
    void input_bias_gradients(int member, const T* gates, std::int64_t a_panel, std::int64_t rows) {
        const Range panels = share(plan_.panels, team_.size(), member);
        sum_gates<Cell, T>(*this, gates, a_panel, rows, p_.dims.H, to_.b_ih,
                           this->split_gates ? nullptr : to_.b_hh, panels.begin, panels.end, team_, member);
    }

    // dx = dgx W_ih.
    void back_through_inputs(Member& m, int member, const T* gates, std::int64_t a_panel, Range rows) {
        const PanelGroups groups(panels_of<T>(p_.dims.I), panels_at_once<1>(kRowGroup), false);
        for (std::int64_t row = rows.begin; row < rows.end; ++row) m.a_rows[row] = gates + row * G * L;
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [u, end] = groups[q];
            for (std::int64_t r = rows.begin; r < rows.end; r += kRowGroup) {
                const std::int64_t n = smaller(kRowGroup, rows.end - r);
                GemmArgs<T> args =
                    paneled_rows<T>(m.a_rows + r, n, plan_.panels, G * L, a_panel, G * last_units<T>(room_));
                take_panels<T>(args, p_.weights.w_ih_t, {u, end}, p_.dims.I);
                args.out = m.acc;
                args.out_panel = kRowGroup * L;
                args.out_row = L;
                gemm<T, 1>(args);
                if (team_.cancelled(member, args.n * args.panels * args.b_panel)) return;
                for (std::int64_t i = 0; i < args.n; ++i) {
                    for (std::int64_t v = 0; v < args.panels; ++v) {
                        const std::int64_t column = (u + v) * L, valid = p_.dims.I - column;
                        T* dx = m.dx_rows[r + i] + column;
                        Vec<T> value = Vec<T>::load(m.acc + (v * kRowGroup + i) * L);
                        if (p_.accumulate_dx) value = value + load_part(dx, valid);
                        store_part(value, dx, valid);
                    }
                }
            }
        }
    }

    // dW_hr += (gradient of the output)^T hidden.
    void projection_gradients(Member& m, int member, std::int64_t begin, std::int64_t end, const T* dhidden) {
        const std::int64_t total = longest(p_.dims, p_.schedule), hidden_row = padded<T>(p_.dims.H);
        std::int64_t n = 0;
        for (std::int64_t step = begin; step < end; ++step) {
            const std::int64_t t = sweep_time(p_.schedule, step, total);
            for (std::int64_t position = 0; position < p_.schedule.active[t]; ++position) {
                m.a_rows[n++] = p_.hidden + (p_.schedule.offset[t] + position) * hidden_row;
            }
        }
        const OuterArgs<T> args{dhidden,   plan_.block_rows * L,
                                1,         1,
                                p_.dims.P, m.a_rows,
                                n,         p_.dims.H,
                                to_.w_hr,  m.columns,
                                team_,     member};
        const Range mine = share(panels_of<T>(p_.dims.H), team_.size(), member);
        outer<T>(args, mine.begin, mine.end);
    }

    const BackwardProblem<T>& p_;
    const Plan& plan_;
    Team& team_;
    const DenseParams<T> to_;
    const std::int64_t room_;  // of each gate for its units
};

}  // namespace fusedrnn::FUSEDRNN_ISA
