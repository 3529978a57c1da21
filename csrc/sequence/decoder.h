// A recurrent decoder with attention over a memory m, whose keys k are made once. Its query s is the state before a step, and
// its context enters every gate (Bahdanau et al. 2014):
//   c_t = attention(s = h_(t-1))   h_t = cell([x_t; c_t], h_(t-1))   y_t = h_t
// or the state after it, whose output may be fed to the next (Luong, Pham and Manning 2015):
//   h_t = cell([x_t; y_(t-1)], h_(t-1))   c_t = attention(s = h_t)   y_t = tanh(W_c c_t + W_h h_t)
// Each member takes positions of about the same work, and these in groups: a group goes through all steps, so that its keys
// and memory stay near. Every product is a chain for each element, so that results depend on neither.
#pragma once

#include "sequence/attention.h"
#include "sequence/decoder_prepare.h"
#include "sequence/decoder_sampling.h"
#include "sequence/window.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
class Decoder : DecoderPlaces<T> {
    using Places = DecoderPlaces<T>;
    using Places::f_, Places::s_, Places::rows_;

  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = Vec<T>::kLanes;

    struct Member {
        T *gx, *acc, *contexts, *sums;
        std::int64_t *leaders, *sources;  // of the rows of a step (Step)
        const T **x_rows, **h_rows, **others, **before;
        T **after, **y_rows;
        typename History<T>::Member history;
        DecoderDraws<T> draws;
        Windows<T> windows;
        Member(const DecoderShape<T>& s, Arena& arena)
            : history(s.d, arena), draws(s.d, arena), windows(s.d.windows(), s.sp, arena) {
            gx = arena.take<T>(s.block * s.gates);
            acc = arena.take<T>(larger(kCellPanels, s.together) * s.G * L);
            contexts = arena.take<T>(s.d.contexts ? s.together * s.gates : 0);
            sums = arena.take<T>(larger(s.d.S, 1) * L);
            x_rows = arena.take<const T*>(s.block);
            leaders = arena.take<std::int64_t>(s.together);
            sources = arena.take<std::int64_t>(s.together);
            h_rows = arena.take<const T*>(s.together);
            others = arena.take<const T*>(s.together);
            before = arena.take<const T*>(s.together * s.S);
            after = arena.take<T*>(s.together * s.S);
            y_rows = arena.take<T*>(s.together);
        }
    };

    Decoder(const DecoderArgs<T>& args, Team& team, void* workspace)
        : Places(args, args.tape),
          team_(team),
          workspace_(workspace),
          weights_(s_, args.weights),
          head_(s_.d, args.sampling.head),
          projections_(s_, args.projections),
          history_(s_.d, args.params.w_filter) {}

    void run_member(int member) {
        Arena arena(workspace_);
        for (int i = 0; i < member; ++i) Member(s_, arena);
        Member m(s_, arena);
        m.windows.begin();
        const Range mine = decoder_positions(f_.schedule, s_.d.B, team_.size(), member);
        for (std::int64_t g = mine.begin; g < mine.end; g += s_.together) {
            const Range group{g, smaller(g + s_.together, mine.end)};
            if (!run_group(m, member, group)) return;
            finish(group);
        }
    }

    // Of a search: the states before the first step of some positions; and the step t of n of them, whose tokens or inputs
    // lie by position. False once the call was cancelled.
    void begin(Range positions) const { load_initial(positions); }
    bool search_step(Member& m, int member, std::int64_t t, std::int64_t first, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) m.x_rows[i] = input_of(0, first + i);
        return project_inputs(m, member, n) && advance(m, member, t, first, n, m.gx);
    }
    const T* output_after(std::int64_t t, std::int64_t position) const {
        const std::int64_t row = this->row_of(t, position);
        return s_.d.current ? rows_.outputs + row * s_.hp : this->state_after(0, row);
    }

  private:
    // What a step works on: rows [row0, row0 + n) of the step t, of positions from `first` on, and their part of gx. Where
    // hypotheses go on from the same state, one of them leads the others: what follows from the state alone is made of the
    // leaders, and lies in rows from row0 on, too. Each row has a source among them.
    struct Step {
        std::int64_t t, first, n, row0;
        T* gx;
        std::int64_t leading;
    };

    void load_initial(Range group) const {
        const auto load = [&](const T* from, T* to, std::int64_t p, std::int64_t width) {
            fill_zero(to, padded<T>(width));
            if (from != nullptr) copy(from + this->state_row(p) * width, to, width);
        };
        for (std::int64_t p = group.begin; p < group.end; ++p) {
            for (int k = 0; k < s_.S; ++k) {
                load(f_.initial[k], rows_.initial + (k * s_.d.B + p) * s_.hp, p, s_.d.H);
            }
            if (s_.d.feeds) load(f_.feed, rows_.feed + p * s_.hp, p, s_.d.H);
            if (const std::int64_t K = s_.d.windows(); K > 0) {
                T* const to = rows_.first_centres + p * K;
                fill_zero(to, K);
                if (f_.centres != nullptr) copy(f_.centres + this->state_row(p) * K, to, K);
            }
            if (s_.d.features() == 0) continue;
            load(f_.attention, rows_.attention + p * s_.sp, p, s_.d.S);
            load(f_.covered, rows_.covered + p * s_.sp, p, s_.d.S);
        }
    }

    // False once the call was cancelled.
    bool run_group(Member& m, int member, Range group) {
        load_initial(group);
        const std::int64_t most = group.end - group.begin, total = f_.schedule.length[group.begin];
        // Inputs that are drawn are known one step after the other.
        const std::int64_t steps = s_.d.classes > 0 ? 1 : larger(1, s_.block / most);
        const auto active = [&](std::int64_t t) {
            return larger(0, smaller(f_.schedule.active[t], group.end) - group.begin);
        };
        for (std::int64_t block = 0; block < total; block += steps) {
            const std::int64_t end = smaller(block + steps, total);
            if (s_.d.classes > 0 && block > 0 && !draw_inputs(m, member, group, block, active(block)))
                return false;
            std::int64_t n = 0;
            for (std::int64_t t = block; t < end; ++t) {
                for (std::int64_t i = 0; i < active(t); ++i) {
                    m.x_rows[n++] = input_of(t, group.begin + i);
                }
            }
            if (!project_inputs(m, member, n)) return false;
            T* gx = m.gx;
            for (std::int64_t t = block; t < end; ++t) {
                const std::int64_t count = active(t);
                if (!advance(m, member, t, group.begin, count, gx)) return false;
                gx += count * s_.gates;
            }
        }
        return true;
    }

    // The inputs' part of the gates of n rows, to which m.x_rows then points.
    bool project_inputs(Member& m, int member, std::int64_t n) const {
        if (f_.tokens == nullptr) {
            if (team_.cancelled(member, n * s_.d.I * s_.gates)) return false;
            row_major_product<T>(plain_rows<T>(m.x_rows, n, s_.d.I), weights_.x, s_.gates, weights_.b_x, 0,
                                 m.gx, s_.gates);
            for (std::int64_t i = 0; i < n; ++i) m.x_rows[i] = m.gx + i * s_.gates;
        } else if (!s_.d.contexts) {
            for (std::int64_t i = 0; i < n; ++i) copy(m.x_rows[i], m.gx + i * s_.gates, s_.gates);
        }
        return true;
    }

    bool advance(Member& m, int member, std::int64_t t, std::int64_t first, std::int64_t n, T* gx) {
        const Step step{
            t, first, n, this->row_of(t, first), gx, this->find_leaders(t, first, n, m.leaders, m.sources)};
        return s_.d.current ? step_then_attend(m, member, step) : attend_then_step(m, member, step);
    }

    // What a step reads, or where its token was projected already what that adds to the gates.
    const T* input_of(std::int64_t t, std::int64_t position) const {
        if (f_.tokens == nullptr) return this->step_row(f_.x, t, position, s_.d.I);
        return projections_.inputs + *this->step_row(f_.tokens, t, position, 1) * s_.gates;
    }

    // Before the step t: some of its n inputs become tokens drawn from what the head makes of the outputs before.
    bool draw_inputs(Member& m, int member, Range group, std::int64_t t, std::int64_t n) {
        const DecoderSampling<T>& p = f_.sampling;
        const std::int64_t classes = s_.d.classes, row = padded<T>(classes);
        const std::int64_t count = choose_rows(
            p, t, s_.d.B, n, m.draws, [&](std::int64_t i) { return this->batch_row(group.begin + i); });
        if (team_.cancelled(member, count * row * (s_.d.H + 16))) return false;
        for (std::int64_t i = 0; i < count; ++i)
            m.draws.outputs[i] = this->step_row(f_.y, t - 1, group.begin + m.draws.steps[i], s_.d.H);
        row_major_product<T>(plain_rows<T>(m.draws.outputs, count, s_.d.H), head_.weight, classes, head_.bias,
                             0, m.draws.logits, row);
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t position = group.begin + m.draws.steps[i];
            const std::int64_t token = draw_class(m.draws.logits + i * row, classes, m.draws.at[i]);
            *this->step_row(p.tokens, t, position, 1) = token;
            copy(p.table + token * s_.d.I, this->step_row(p.x, t, position, s_.d.I), s_.d.I);
        }
        return true;
    }

    bool attend_then_step(Member& m, int member, const Step& step) {
        return attend_rows(m, member, step) && run_cell(m, member, step);
    }
    bool step_then_attend(Member& m, int member, const Step& step) {
        return run_cell(m, member, step) && attend_rows(m, member, step) && make_outputs(m, member, step);
    }

    bool attend_rows(Member& m, int member, const Step& step) {
        const auto [t, first, n, row0, gx, leading] = step;
        if (s_.projects_query()) {
            if (team_.cancelled(member, leading * s_.ap * s_.d.H)) return false;
            for (std::int64_t i = 0; i < leading; ++i)
                m.h_rows[i] = this->query_state(t, first + m.leaders[i]);
            const T* const bias = s_.windowed() ? weights_.b_query : nullptr;
            row_major_product<T>(plain_rows<T>(m.h_rows, leading, s_.d.H), weights_.query, s_.d.A, bias, 0,
                                 rows_.queries + row0 * s_.ap, s_.ap);
        }
        for (std::int64_t i = 0; i < leading; ++i) {
            if (team_.cancelled(member, s_.attention_work())) return false;
            attend_row(m, t, first + m.leaders[i], row0 + i);
        }
        for (std::int64_t i = 0; f_.alpha != nullptr && i < n; ++i) {
            copy(rows_.alphas + (row0 + m.sources[i]) * s_.sp, this->step_row(f_.alpha, t, first + i, s_.d.S),
                 s_.d.S);
        }
        return true;
    }

    void attend_row(Member& m, std::int64_t t, std::int64_t position, std::int64_t row) const {
        const std::int64_t count = f_.memory_lengths[position];
        T* const alpha = rows_.alphas + row * s_.sp;
        fill_zero(alpha, s_.sp);
        if (s_.windowed()) {
            m.windows.attend(rows_.queries + row * s_.ap, s_.ap, this->centres_before(t, position), count,
                             this->centres_of(row), alpha);
        } else if (count > 0) {
            const Keys<T> keys{this->keys_of(this->keys_.keys, position), s_.d.memory_rows * L, s_.ap / L,
                               count};
            const T* const q =
                s_.projects_query() ? rows_.queries + row * s_.ap : this->query_state(t, position);
            if (s_.d.features() > 0) {
                history_.features(this->attention_before(t, position), this->covered_before(t, position),
                                  m.history, this->features_of(row));
                attend<T>(AdditiveScore<T, true>{weights_.energy, this->row_features(weights_.features, row)},
                          keys, q, m.sums, alpha);
            } else if (s_.factored()) {
                attend<T>(FactoredScore<T>{weights_.energy, this->keys_of(this->keys_.factors, position)},
                          keys, q, m.sums, alpha);
            } else {
                attend<T>(ProductScore<T>{}, keys, q, m.sums, alpha);
            }
        }
        if (s_.d.contexts && !f_.keeps) return;
        weighted_sum<T>({this->memory_of(position), L, s_.mp, s_.mp / L, count}, alpha,
                        rows_.contexts + row * s_.mp, L);
    }

    // The gates of a few panels at a time, and the cell on them while they are near.
    bool run_cell(Member& m, int member, const Step& step) {
        const auto [t, first, n, row0, gx, leading] = step;
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t leader = first + m.leaders[m.sources[i]];
            for (int k = 0; k < s_.S; ++k) {
                m.before[i * s_.S + k] = this->state_before(k, t, leader);
                m.after[i * s_.S + k] = this->state_after(k, row0 + i);
            }
            if (f_.y != nullptr) m.y_rows[i] = this->step_row(f_.y, t, first + i, s_.d.H);
            if (s_.F > 0) m.others[i] = this->fed_to(t, first + i);
        }
        for (std::int64_t i = 0; i < leading; ++i) m.h_rows[i] = m.before[m.leaders[i] * s_.S];
        if (s_.d.contexts && !project_contexts(m, member, step)) return false;
        const PanelGroups groups(s_.panels, larger(1, kCellPanels / larger(1, n)), (t & 1) != 0);
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [u, end] = groups[q];
            const std::int64_t width = (end - u) * s_.G * L;
            if (team_.cancelled(member, n * width * (s_.F + s_.d.H + 64))) return false;
            T* const mine = gx + u * s_.G * L;
            const T* init = s_.cell.split ? weights_.b_h + u * s_.G * L : mine;
            std::int64_t init_row = s_.cell.split ? 0 : s_.gates;
            if (s_.d.contexts) {
                if (!s_.cell.split) init = m.contexts + u * s_.G * L;
            } else if (s_.F > 0) {
                row_major_product<T>(plain_rows<T>(m.others, n, s_.F),
                                     weights_.fed + u * s_.G * panel_depth<T>(s_.F) * L, width, mine,
                                     s_.gates, mine, s_.gates);
            }
            row_major_product<T>(plain_rows<T>(m.h_rows, leading, s_.d.H),
                                 weights_.h + u * s_.G * panel_depth<T>(s_.d.H) * L, width, init, init_row,
                                 m.acc, width);
            CellStep<T> cell{s_.d.H,
                             {u, end},
                             n,
                             m.acc,
                             mine,
                             width,
                             s_.gates,
                             nullptr,
                             nullptr,
                             m.before,
                             m.after,
                             s_.d.current || f_.y == nullptr ? nullptr : m.y_rows,
                             f_.keeps ? rows_.saved + row0 * s_.hp * s_.cell.saved : nullptr};
            if (s_.d.contexts) {
                cell.gx = m.contexts + u * s_.G * L;
                cell.sources = m.sources, cell.inputs = m.x_rows + (gx - m.gx) / s_.gates;
            }
            s_.cell.forward(cell);
        }
        return true;
    }

    // What the contexts of the leaders add to the gates, from what the rows of the memory add: rows of the same memory at once.
    bool project_contexts(Member& m, int member, const Step& step) const {
        const std::int64_t N = s_.d.memory_rows;
        const auto position = [&](std::int64_t i) { return step.first + m.leaders[i]; };
        for (std::int64_t i = 0, next = 0; i < step.leading; i = next) {
            const std::int64_t memory = f_.memory_first[position(i)], count = f_.memory_lengths[position(i)];
            for (; next < step.leading && this->same_memory(position(next), position(i)); ++next)
                m.others[next - i] = rows_.alphas + (step.row0 + next) * s_.sp;
            if (team_.cancelled(member, (next - i) * count * s_.gates)) return false;
            if (count == 0) fill_zero(m.contexts + i * s_.gates, (next - i) * s_.gates);
            if (count == 0) continue;
            GemmArgs<T> product = plain_rows<T>(m.others, next - i, count);
            product.b = projections_.memory + memory * L;
            product.b_panel = N * L;
            product.panels = s_.gates / L;
            product.columns = s_.gates;
            product.out = m.contexts + i * s_.gates;
            product.out_panel = L;
            product.out_row = s_.gates;
            gemm<T, 1>(product);
        }
        return true;
    }

    // y = tanh(W_c c + W_h h)
    bool make_outputs(Member& m, int member, const Step& step) {
        const auto [t, first, n, row0, gx, leading] = step;
        if (team_.cancelled(member, n * s_.hp * (s_.d.M + s_.d.H + 16))) return false;
        for (std::int64_t i = 0; i < n; ++i) {
            m.others[i] = rows_.contexts + (row0 + i) * s_.mp;
            m.h_rows[i] = this->state_after(0, row0 + i);
        }
        T* const out = rows_.outputs + row0 * s_.hp;
        row_major_product<T>(plain_rows<T>(m.others, n, s_.d.M), weights_.output_context, s_.d.H, nullptr, 0,
                             out, s_.hp);
        row_major_product<T>(plain_rows<T>(m.h_rows, n, s_.d.H), weights_.output_h, s_.d.H, out, s_.hp, out,
                             s_.hp);
        for (std::int64_t i = 0; i < n; ++i) {
            for (std::int64_t j = 0; j < s_.hp; j += L)
                tanh(V::load(out + i * s_.hp + j)).store(out + i * s_.hp + j);
            if (f_.y != nullptr) copy(out + i * s_.hp, this->step_row(f_.y, t, first + i, s_.d.H), s_.d.H);
        }
        return true;
    }

    // The states after the last step, and zeros past it.
    void finish(Range group) const {
        for (std::int64_t p = group.begin; p < group.end; ++p) {
            const std::int64_t length = f_.schedule.length[p], b = this->batch_row(p);
            for (int k = 0; k < s_.S; ++k) {
                copy(this->state_before(k, length, p), f_.final[k] + b * s_.d.H, s_.d.H);
            }
            if (const std::int64_t K = s_.d.windows(); K > 0)
                copy(this->centres_before(length, p), f_.final_centres + b * K, K);
            for (std::int64_t t = length; t < s_.d.T; ++t) {
                fill_zero(f_.y + (t * s_.d.B + b) * s_.d.H, s_.d.H);
                fill_zero(f_.alpha + (t * s_.d.B + b) * s_.d.S, s_.d.S);
            }
        }
    }

    Team& team_;
    void* workspace_;
    const DecoderWeights<T> weights_;
    const DecoderHead<T> head_;
    const DecoderProjections<T> projections_;
    const History<T> history_;
};

template <class T>
std::int64_t decoder_tape_bytes(const DecoderSizes& sizes, bool keeps) {
    return DecoderRows<T>(DecoderShape<T>(sizes), keeps, nullptr).bytes;
}
template <class T>
std::int64_t decoder_workspace(const DecoderSizes& sizes, int members) {
    Arena arena(nullptr);
    const DecoderShape<T> shape(sizes);
    for (int i = 0; i < members; ++i) typename Decoder<T>::Member(shape, arena);
    return larger(arena.used(), members * kDecoderRows * 2 * static_cast<std::int64_t>(sizeof(T*)));
}

template <class T>
void decoder_forward(const DecoderArgs<T>& args, Team& team, void* workspace) {
    Decoder<T> decoder(args, team, workspace);
    team.run([](void* c, int member) { static_cast<Decoder<T>*>(c)->run_member(member); }, &decoder);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
