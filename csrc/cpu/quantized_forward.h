// Inference over a sequence with weights of fewer bits: the steps of forward.h for few rows, without a tape, by
// one thread. States, resets and lengths are those of every forward call (steps.h).
#pragma once

#include "cpu/forward_steps.h"
#include "cpu/quantized.h"
#ifdef FUSEDRNN_AMX_INT8
#include "cpu/quantized_tiles.h"
#endif

namespace fusedrnn::FUSEDRNN_ISA {

// Of projected inputs, and of prepared x: they stay in the L2 cache, which is larger where there are tiles; products in tiles
// wait for nothing but W_ih, which each block reads once.
#ifdef FUSEDRNN_AMX_INT8
inline constexpr std::int64_t kQuantizedBlockBytes = 512 * 1024;
#else
inline constexpr std::int64_t kQuantizedBlockBytes = 128 * 1024;
#endif

// The workspace of one call. On an arena without memory it only counts.
template <class Format, class Cell>
struct QuantizedPlan {
    static constexpr std::int64_t G = Cell::kGates, L = Vec<float>::kLanes;
    std::int64_t panels, steps, block_rows;
    ForwardRows<float> rows;
    float *gx, *acc;
    PreparedRows<Format> x, h;
    const float** state_rows;

    QuantizedPlan(const Dims& d, Arena& arena) {
        const std::int64_t hp = padded<float>(d.H), pp = padded<float>(d.P);
        panels = panels_of<float>(d.H);
        const std::int64_t step_bytes =
            d.B * larger(hp * G, Format::row_values(d.I)) * std::int64_t{sizeof(float)};
        steps = larger(1, smaller(d.T, kQuantizedBlockBytes / larger(1, step_bytes)));
        block_rows = steps * d.B;
        rows = ForwardRows<float>(d, Cell::kStates, arena);
        gx = arena.take<float>(block_rows * hp * G);
        acc = arena.take<float>(d.B * larger(hp * G, pp));
        x = {block_rows, d.I, arena};
        h = {d.B, larger(d.P, d.H), arena};
        state_rows = arena.take<const float*>(d.B * Cell::kStates);
    }
};

template <class Format, class Cell>
class QuantizedForward : ForwardSteps<Cell, float> {
  public:
    using Base = ForwardSteps<Cell, float>;
    using Base::G, Base::S, Base::L;

    QuantizedForward(const ForwardProblem<float>& problem, const QuantizedWeights& weights, Team& team,
                     Arena arena)
        : Base(problem, team), w_(weights), plan_(problem.dims, arena) {
        this->use(plan_.rows);
    }

    void run() {
        this->clear_padding(whole(), 0);
        const std::int64_t total = longest(p_.dims, p_.schedule);
        for (std::int64_t s = 0; s < total; s += plan_.steps) {
            const std::int64_t end = smaller(s + plan_.steps, total);
            project_inputs(s, end, total);
            std::int64_t block_row = 0;
            for (std::int64_t step = s; step < end; ++step) {
                const std::int64_t t = time_of(step, total);
                run_step(t, block_row);
                block_row += p_.schedule.active[t];
                if (team_.cancelled(0, 0)) return;
            }
        }
        this->store_final(whole());
    }

  private:
    using Base::p_, Base::team_, Base::time_of, Base::hp_;

    // gx = W_ih x + b_x for all rows of steps [s, end): [panel][row][G][L].
    void project_inputs(std::int64_t s, std::int64_t end, std::int64_t total) {
        std::int64_t n = 0;
        for (std::int64_t step = s; step < end; ++step) {
            const std::int64_t t = time_of(step, total);
            for (std::int64_t i = 0; i < p_.schedule.active[t]; ++i, ++n) {
                plan_.x.set(n, p_.x.row(t, p_.schedule.order[i]), p_.dims.I);
            }
        }
        Product<Format> m(plan_.x, n, w_.ih, plan_.panels);
        m.init = w_.b_x;
        m.init_panel = G * L;
        m.put(plan_.gx, plan_.block_rows * G * L, G * L);
        multiply<Format, G>(m, team_);
    }

    void run_step(std::int64_t t, std::int64_t block_row) {
        const std::int64_t rows = p_.schedule.active[t];
        this->find_states(whole(), t, rows, plan_.state_rows);
        recurrent_product(rows, block_row);
        for (std::int64_t u = 0; u < plan_.panels; ++u) {
            for (std::int64_t i = 0; i < rows; ++i) {
                this->apply_cell(p_.dims, t, u, i, plan_.state_rows + i * S,
                                 plan_.acc + (u * rows + i) * G * L,
                                 plan_.gx + (u * plan_.block_rows + block_row + i) * G * L, L, w_.units,
                                 this->output_row(t, i), nullptr);
            }
        }
        if (p_.dims.projected) project_hidden(t, rows);
    }

    // acc = (gx, or the recurrent bias where gates are split) + W_hh h: [panel][row][G][L].
    void recurrent_product(std::int64_t rows, std::int64_t block_row) {
        for (std::int64_t i = 0; i < rows; ++i) {
            plan_.h.set(i, plan_.state_rows[i * S], p_.dims.P);
        }
        Product<Format> m(plan_.h, rows, w_.hh, plan_.panels);
        if constexpr (Cell::kSplitGates) {
            m.init = w_.b_h;
            m.init_panel = G * L;
        } else {
            m.init = plan_.gx + block_row * G * L;
            m.init_panel = plan_.block_rows * G * L;
            m.init_row = G * L;
        }
        m.put(plan_.acc, rows * G * L, G * L);
        multiply<Format, G>(m, team_);
    }

    // y = W_hr hidden.
    void project_hidden(std::int64_t t, std::int64_t rows) {
        for (std::int64_t i = 0; i < rows; ++i) {
            plan_.h.set(i, plan_.rows.hidden + i * hp_, p_.dims.H);
        }
        Product<Format> m(plan_.h, rows, w_.hr, panels_of<float>(p_.dims.P));
        m.put(plan_.acc, rows * L, L);
        multiply<Format, 1>(m, team_);
        for (std::int64_t u = 0; u < m.panels; ++u) {
            this->store_projected(whole(), t, u, 0, rows, plan_.acc + u * rows * L);
        }
    }

    // All rows and panels.
    Part whole() const { return {0, 1, {0, plan_.panels}}; }

    const QuantizedWeights& w_;
    QuantizedPlan<Format, Cell> plan_;
};

template <class Format, class Cell>
std::int64_t quantized_workspace(const RecurrentCell&, const Dims& dims) {
    Arena arena(nullptr);
    const QuantizedPlan<Format, Cell> plan(dims, arena);
    return arena.used();
}

template <class Format, class Cell>
void quantized_forward(const ForwardProblem<float>& problem, const QuantizedWeights& weights, Team& team,
                       void* workspace) {
    using Driver = QuantizedForward<Format, Cell>;
    Driver driver(problem, weights, team, Arena(workspace));
    team.run(
        [](void* context, int member) {
            if (member == 0) static_cast<Driver*>(context)->run();
        },
        &driver);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
