// Forward over a whole sequence: a block of steps' input projections as one matrix product, then the time loop over the
// block, in which each panel of units goes from the recurrent product through the cell while it is in the L1 cache.
#pragma once

#include "cpu/forward_steps.h"
#include "cpu/masks.h"
#include "cpu/row_operations.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Of projected inputs: they stay in the L2 cache. But weights that do not stay there are read again for each block, which is
// then made as large as they are: one is read as much as the other is written.
inline constexpr std::int64_t kInputBlockBytes = 192 * 1024, kFarBytes = 3 << 20;
inline constexpr std::int64_t kLongProduct = std::int64_t{1}
                                             << 26;  // multiply-adds without a look at the team

// What makes the products: the panels of the problem's weights, or a Product for which input_product and its kin are
// overloaded (cpu/quantized_forward.h); one that prepares its rows takes all of them and all panels at once.
struct PanelProduct {
    static constexpr bool kPreparesRows = false;
};

// Steps in a block, for so many rows and panels of a member.
template <class Cell, class T>
std::int64_t block_steps(PanelProduct, const Dims& d, const CellSizes<Cell>& c, std::int64_t rows,
                         std::int64_t panels) {
    const std::int64_t vectors = panels * c.G * Vec<T>::kLanes * std::int64_t{sizeof(T)};
    const std::int64_t weight_bytes = panel_depth<T>(d.I) * vectors;
    const std::int64_t block_bytes = weight_bytes > kFarBytes ? weight_bytes : kInputBlockBytes;
    return block_bytes / larger(1, rows * vectors);
}

// Sizes and pieces of the workspace of one call.
template <class Cell, class T, class Product>
struct ForwardPlan : CellSizes<Cell> {
    using CellSizes<Cell>::G, CellSizes<Cell>::S, CellSizes<Cell>::kInterleaved;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    std::int64_t panels, member_rows, member_panels, steps, block_rows;
    // Shared by all members.
    ForwardRows<T> rows;
    T* table_gx;  // projected rows of the table: [panel][V][G][L]
    const CellPrograms* programs;
    // One piece a member.
    struct Member {
        T *gx, *acc;
        const T **x_rows, **h_rows;
        const T** state_rows;
        T** y_rows;
        Product product;
        typename TilesOf<Cell, T>::Type tiles;
        typename LinksOf<Cell, T>::Type links;
        typename MasksOf<Cell, T>::Type masks;
    };

    // `following`: its inputs come from a call that runs meanwhile.
    ForwardPlan(const RecurrentCell& cell, const Dims& d, int threads, bool following = false)
        : CellSizes<Cell>(cell), programs(cell.programs) {
        panels = panels_of<T>(d.H);
        const bool rows = recurrent_split(d, threads) == Split::kRows;
        member_rows = rows ? (d.B + threads - 1) / threads : d.B;
        member_panels = rows ? panels : (panels + threads - 1) / threads;
        steps =
            larger(1, smaller(d.T, block_steps<Cell, T>(Product{}, d, *this, member_rows, member_panels)));
        if (following) steps = smaller(steps, following_steps(d.T));
        block_rows = larger(1, steps * member_rows);
    }
    void take_shared(const Dims& d, Arena& arena) {
        rows = ForwardRows<T>(d, S, arena);
        table_gx = arena.template take<T>(panels * d.V * G * L);
    }
    Member take_member(const Dims& d, Arena& arena) const {
        Member m;
        m.gx = arena.template take<T>(block_rows * member_panels * G * L);
        std::int64_t group = group_vectors<Cell, kInterleaved>(*this, panels, member_rows);
        if constexpr (Product::kPreparesRows) {
            group = panels * member_rows;
            m.product = Product(d, block_rows, member_rows, arena);
        }
        m.acc = arena.template take<T>((group * G + accumulator_vectors<1>()) * L);
        m.x_rows = arena.template take<const T*>(block_rows);
        m.h_rows = arena.template take<const T*>(member_rows);
        m.state_rows = arena.template take<const T*>(member_rows * S);
        m.y_rows = arena.template take<T*>(member_rows);
        if constexpr (CellSizes<Cell>::kIsProgram) {
            const std::int64_t tiled = group_vectors<Cell, 1>(*this, panels, member_rows);
            m.tiles = ProgramTiles<T>(programs->forward, programs->inference, programs->values, S + 1, tiled,
                                      arena);
            m.links = Links<T>(*this, panels, arena);
            m.masks = Masks<T>(*programs, tiled, member_rows, panels, arena);
        }
        return m;
    }
};

template <class Cell, class T, class Product>
class Forward : ForwardSteps<Cell, T> {
  public:
    using Base = ForwardSteps<Cell, T>;
    using Base::G, Base::S, Base::kInterleaved, Base::L, typename Base::V;

    Forward(const ForwardProblem<T>& problem, Team& team, void* workspace)
        : Base(problem, team),
          plan_(*problem.cell, problem.dims, team.size(), problem.input_progress != nullptr),
          arena_(workspace) {
        plan_.take_shared(p_.dims, arena_);
        this->use(plan_.rows);
    }

    void run_member(int member) {
        Arena arena = arena_;
        Member m{};
        for (int i = 0; i <= member; ++i) m = plan_.take_member(p_.dims, arena);
        if constexpr (Product::kPreparesRows) m.product.use(*p_.weights.quantized, team_);
        if constexpr (CellSizes<Cell>::kIsProgram) {
            m.tiles.use(p_.saved != nullptr ? plan_.programs->forward : plan_.programs->inference);
        }
        const Part part = part_of(p_.dims, plan_.panels, team_.size(), member);
        if constexpr (CellSizes<Cell>::kIsProgram)
            m.masks.begin(*plan_.programs, p_.draws, p_.dims, p_.schedule, part);
        this->clear_padding(part, member);
        if (p_.dims.V > 0) {
            project_table(m, member, share(plan_.panels, team_.size(), member));
            if (team_.size() > 1 && !team_.barrier(member)) return;
        }
        const std::int64_t total = longest(p_.dims, p_.schedule);
        const PreviousStates<Cell, T> previous = this->previous();
        for (std::int64_t s = 0; s < total; s += plan_.steps) {
            const std::int64_t end = smaller(s + plan_.steps, total);
            if (p_.input_progress != nullptr && !team_.wait(*p_.input_progress, end, member)) return;
            const bool projected = project_inputs(part, m, member, s, end);
            std::int64_t block_row = 0;
            for (std::int64_t step = s; step < end; ++step) {
                const std::int64_t t = time_of(step, total);
                const std::int64_t rows = part.rows(p_.schedule.active[t]);
                this->find_states(previous, part, t, rows, m.state_rows);
                run_step(part, m, member, t, rows, block_row, !projected);
                block_row += rows;
                const bool meet = part.stride == 1 && team_.size() > 1;
                if (meet ? !team_.barrier(member) : team_.cancelled(member, 0)) return;
                publish(step + 1);
            }
        }
        publish(p_.dims.T);
        this->store_final(part);
    }

  private:
    using Base::p_, Base::team_, Base::time_of;
    using Member = typename ForwardPlan<Cell, T, Product>::Member;

    FUSEDRNN_INLINE const auto& weights(const Member& m) const {
        if constexpr (Product::kPreparesRows)
            return m.product;
        else
            return p_.weights;
    }
    void publish(std::int64_t steps) {
        if (p_.output_progress != nullptr) p_.output_progress->steps.store(steps, std::memory_order_release);
    }

    // Every row of the table once: a sequence longer than the table needs no other product with W_ih.
    void project_table(Member& m, int member, Range panels) {
        const std::int64_t rows = p_.dims.V;
        for (std::int64_t v = 0; v < rows; v += plan_.block_rows) {
            const std::int64_t n = smaller(plan_.block_rows, rows - v);
            for (std::int64_t i = 0; i < n; ++i) m.x_rows[i] = p_.x.row(0, v + i);
            project(m, n, panels, plan_.table_gx + (panels.begin * rows + v) * G * L, rows, member);
        }
    }

    // input_product of the first n of x_rows, a long one in pieces; ends early once the call was cancelled.
    void project(const Member& m, std::int64_t n, Range panels, T* out, std::int64_t out_rows, int member) {
        if constexpr (Product::kPreparesRows)
            return input_product<Cell, T>(*this, p_.dims, weights(m), m.x_rows, n, panels, out, out_rows);
        const std::int64_t row_work = larger(1, G * L * p_.dims.I);
        const std::int64_t piece_rows = smaller(n, larger(kRowGroup, kLongProduct / row_work));
        const bool far = comes_from_far(panels, p_.dims.I, n);
        const std::int64_t piece_panels = far ? panels_at_once<kInterleaved>(n)
                                              : larger(1, kLongProduct / (row_work * larger(1, piece_rows)));
        for (std::int64_t r = 0; r < n; r += piece_rows) {
            const std::int64_t count = smaller(piece_rows, n - r);
            for (std::int64_t u = panels.begin; u < panels.end; u += piece_panels) {
                const Range piece{u, smaller(u + piece_panels, panels.end)};
                const Range next{piece.end, smaller(piece.end + piece_panels, panels.end)};
                if (team_.cancelled(member, count * (piece.end - piece.begin) * row_work)) return;
                Ahead ahead = far ? bring<kInterleaved>(p_.weights.w_ih, next, p_.dims.I, count) : Ahead{};
                input_product<Cell, T>(*this, p_.dims, weights(m), m.x_rows + r, count, piece,
                                       out + ((u - panels.begin) * out_rows + r) * G * L, out_rows, &ahead);
            }
        }
    }

    // gx for all rows of steps [s, end). A single step is left to run_step, which then reads W_ih and W_hh side by side.
    bool project_inputs(const Part& part, Member& m, int member, std::int64_t s, std::int64_t end) {
        std::int64_t n = 0;
        const std::int64_t total = longest(p_.dims, p_.schedule);
        for (std::int64_t step = s; step < end; ++step) {
            const std::int64_t t = time_of(step, total);
            const std::int64_t rows = part.rows(p_.schedule.active[t]);
            for (std::int64_t i = 0; i < rows; ++i) {
                const std::int64_t b = p_.schedule.order[part.position(i)];
                m.x_rows[n++] =
                    p_.dims.V == 0 ? p_.x.row(t, b) : plan_.table_gx + p_.index[t * p_.dims.B + b] * G * L;
            }
        }
        if (p_.dims.V == 0) {
            if (end - s == 1 && !Product::kPreparesRows) return false;
            project(m, n, part.panels, m.gx, plan_.block_rows, member);
            return true;
        }
        for (std::int64_t panel = part.panels.begin; panel < part.panels.end; ++panel) {
            const std::int64_t offset = panel * p_.dims.V * G * L;
            T* to = m.gx + (panel - part.panels.begin) * plan_.block_rows * G * L;
            for (std::int64_t i = 0; i < n; ++i, to += G * L) {
                for (int g = 0; g < G; ++g) V::load(m.x_rows[i] + offset + g * L).store(to + g * L);
            }
        }
        return true;
    }

    // Ends early once the call was cancelled.
    void run_step(const Part& part, Member& m, int member, std::int64_t t, std::int64_t rows,
                  std::int64_t block_row, bool project) {
        for (std::int64_t i = 0; i < rows; ++i) {
            m.h_rows[i] = m.state_rows[i * S];
            m.y_rows[i] = this->output_row(t, part.position(i));
        }
        const std::int64_t panels = part.panels.end - part.panels.begin, most = rows_at_once(rows);
        const std::int64_t room = Product::kPreparesRows ? rows : group_rows<Cell>(rows);
        const std::int64_t at_once =
            Product::kPreparesRows ? panels : group_panels<Cell, kInterleaved>(*this, panels, rows);
        const PanelGroups groups(panels, at_once, ((t & 1) != 0) != p_.backwards);
        const std::int64_t h_size = this->multiplies_h ? p_.dims.P : 0;
        const std::int64_t depth = h_size + (project ? p_.dims.I : 0), panel_work = (depth + 16) * G * L;
        const bool far = comes_from_far(part.panels, depth, rows);
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [u, end] = groups[q];
            const std::int64_t first = part.panels.begin + u, count = end - u;
            Ahead next_input{}, next_hidden{};  // nothing of the last group, with which the next step begins
            if (far && q + 1 < groups.count()) {
                const Range next{part.panels.begin + groups[q + 1].begin,
                                 part.panels.begin + groups[q + 1].end};
                next_input = bring<kInterleaved>(p_.weights.w_ih, next, p_.dims.I, rows);
                next_hidden = bring<kInterleaved>(p_.weights.w_hh, next, p_.dims.P, rows);
            }
            for (std::int64_t r = 0; r < rows; r += most) {
                const std::int64_t n = smaller(most, rows - r);
                if (team_.cancelled(member, n * count * panel_work)) return;
                if (project) {
                    input_product<Cell, T>(*this, p_.dims, weights(m), m.x_rows + r, n,
                                           {first, first + count}, m.gx + (u * plan_.block_rows + r) * G * L,
                                           plan_.block_rows, &next_input);
                }
                if (this->staged) prefetch_tape(part, t, {r, r + n});
                const T* gx = m.gx + (u * plan_.block_rows + block_row + r) * G * L;
                if (this->multiplies_h) {
                    hidden_product<Cell, T>(*this, p_.dims, weights(m), m.h_rows + r, n,
                                            {first, first + count}, gx, plan_.block_rows, m.acc, room,
                                            &next_hidden);
                }
                if constexpr (CellSizes<Cell>::kIsProgram) {
                    run_program_cells(part, m, t, {first, first + count}, r, n, gx, room);
                } else {
                    for (std::int64_t v = u; v < end; ++v, gx += plan_.block_rows * G * L) {
                        apply_cells(part, m, t, v, r, n, m.acc + (v - u) * room * G * L, gx);
                    }
                }
            }
        }
        if (p_.dims.projected) project_hidden(part, m, member, t, rows);
    }

    // Whether weights of so many k for each of the panels do not stay in the L2 cache until these rows read them again. (A
    // program's gates lie apart.)
    bool comes_from_far(Range panels, std::int64_t k, std::int64_t rows) const {
        return !Product::kPreparesRows && !CellSizes<Cell>::kIsProgram &&
               come_from_far((panels.end - panels.begin) * k * G * L * std::int64_t{sizeof(T)}, rows);
    }

    // The cell for n rows of one panel (v counts from the member's first).
    FUSEDRNN_INLINE void apply_cells(const Part& part, const Member& m, std::int64_t t, std::int64_t v,
                                     std::int64_t r, std::int64_t n, const T* acc, const T* gx) const {
        const Dims d = p_.dims;
        const T* const units = weights(m).units;
        const T* const* const states = m.state_rows;
        T* const* const y_rows = m.y_rows;
        const std::int64_t panel = part.panels.begin + v, first = part.first, stride = part.stride;
        const std::int64_t apart = Product::kPreparesRows ? L : gate_distance<T>(G, d.H - panel * L);
        T* saved = p_.saved;
        if (saved != nullptr) {
            const std::int64_t row = p_.schedule.offset[t] * plan_.panels + panel * p_.schedule.active[t];
            saved += row * this->kept * L;
        }
        for (std::int64_t i = r; i < r + n; ++i, acc += G * L, gx += G * L) {
            const std::int64_t position = first + i * stride;
            this->apply_cell(d, t, panel, position, states + i * S, acc, gx, apart, units, y_rows[i],
                             saved == nullptr ? nullptr : saved + position * this->kept * L);
        }
    }

    // What rows leave on the tape goes far away, row by row: the lines come while their product is computed.
    void prefetch_tape(const Part& part, std::int64_t t, Range rows) const {
        if (p_.saved == nullptr) return;
        const std::int64_t active = p_.schedule.active[t], kept = this->kept * L;
        for (std::int64_t panel = 0; panel < plan_.panels; ++panel) {
            const std::int64_t before = p_.schedule.offset[t] * plan_.panels + panel * active;
            for (std::int64_t i = rows.begin; i < rows.end; ++i)
                prefetch(p_.saved + (before + part.position(i)) * kept, kept);
        }
    }

    // The program for n rows of a group of panels.
    void run_program_cells(const Part& part, Member& m, std::int64_t t, Range panels, std::int64_t r,
                           std::int64_t n, const T* gx, std::int64_t acc_rows) const {
        auto& tiles = m.tiles;
        const CellPrograms& at = *plan_.programs;
        const std::int64_t position = part.position(r), width = p_.dims.H, row = G * L;
        T* const from_x = const_cast<T*>(gx);
        tiles.place(0, G, from_x, L, row, plan_.block_rows * row);
        if (this->multiplies_h) {
            tiles.place(at.gates, G, m.acc, L, row, acc_rows * row);
        } else {
            tiles.place(at.gates, G, from_x, L, row, plan_.block_rows * row);
        }
        for (int k = 0; k < S; ++k) {
            if ((tiles.reads_before() >> k & 1) == 0) continue;
            tiles.place_rows(at.before + k, m.state_rows + r * S + k, S, n, panels, width, k);
        }
        tiles.place(at.units, this->units, p_.weights.units + panels.begin * this->units * L, L, 0,
                    this->units * L);
        m.links.place(tiles, at);
        m.masks.place(tiles, at, tiles.reads_masks(), p_.draws, p_.dims, r, n, panels, [&](std::int64_t i) {
            return t * p_.dims.B + p_.schedule.order[part.position(r + i)];
        });
        tiles.place_output_rows(at.after, m.y_rows + r, n, panels, width, S);
        if (S > 1) {
            tiles.place(at.after + 1, S - 1, this->states_out(t, position) + panels.begin * L, this->hp_,
                        part.stride * (S - 1) * this->hp_, L);
        }
        if (p_.saved != nullptr) {
            const std::int64_t active = p_.schedule.active[t], kept = this->kept * L;
            const std::int64_t before =
                p_.schedule.offset[t] * plan_.panels + panels.begin * active + position;
            tiles.place(at.saved, this->kept, p_.saved + before * kept, L, part.stride * kept, active * kept);
        }
        tiles.run_stages(n, panels.end - panels.begin, [&](const RowOperation& operation, Range some) {
            const bool keeps = p_.saved != nullptr;
            operate(*this, p_.dims, p_.weights, at, operation, tiles, m.links, some,
                    HiddenGates<T>{gx, plan_.block_rows, m.acc, acc_rows}, keeps,
                    [&](std::int64_t i, T rstd) {
                        if (!keeps) return;
                        const std::int64_t at_row = p_.schedule.offset[t] + part.position(r + i);
                        p_.moments[at_row * this->norms + operation.number] = rstd;
                    });
        });
        tiles.store_rows(at.after, m.y_rows + r, n, panels, width, S);
    }

    // y = hidden W_hr^T.
    void project_hidden(const Part& part, Member& m, int member, std::int64_t t, std::int64_t rows) {
        const std::int64_t panels = panels_of<T>(p_.dims.P), most = rows_at_once(rows);
        const std::int64_t at_once = Product::kPreparesRows ? panels : panels_at_once<1>(rows);
        for (std::int64_t u = 0; u < panels; u += at_once) {
            const std::int64_t count = smaller(at_once, panels - u);
            for (std::int64_t r = 0; r < rows; r += most) {
                const std::int64_t n = smaller(most, rows - r);
                if (team_.cancelled(member, n * count * L * p_.dims.H)) return;
                output_product<T>(p_.dims, weights(m), m.y_rows + r, n, {u, u + count}, m.acc, most);
                for (std::int64_t v = 0; v < count; ++v) {
                    this->store_projected(part, t, u + v, r, n, m.acc + v * most * L);
                }
            }
        }
    }

    static std::int64_t rows_at_once(std::int64_t rows) {
        return Product::kPreparesRows ? larger(1, rows) : kRowGroup;
    }

    ForwardPlan<Cell, T, Product> plan_;
    Arena arena_;
};

template <class Cell, class T, class Product = PanelProduct>
std::int64_t forward_workspace(const RecurrentCell& cell, const Dims& dims, int threads) {
    ForwardPlan<Cell, T, Product> plan(cell, dims, threads);
    Arena arena(nullptr);
    plan.take_shared(dims, arena);
    for (int member = 0; member < threads; ++member) plan.take_member(dims, arena);
    return arena.used();
}

template <class Cell, class T, class Product = PanelProduct>
void forward(const ForwardProblem<T>& problem, Team& team, void* workspace) {
    using Driver = Forward<Cell, T, Product>;
    Driver driver(problem, team, workspace);
    team.run([](void* context, int member) { static_cast<Driver*>(context)->run_member(member); }, &driver);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
