// Backward of a decoder: a sweep through the steps of each group of positions, which leaves the gradients of gates, queries,
// contexts and outputs; then those of weights, inputs and the memory as large products over all rows (decoder_gradients.h).
#pragma once

#include "sequence/decoder_gradients.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
class DecoderBackward : DecoderPlaces<T> {
    using Places = DecoderPlaces<T>;
    using Places::f_, Places::s_, Places::rows_;

  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = Vec<T>::kLanes;

    struct Member {
        T *carry, *fed, *de, *energy;
        const T **rows, **before, **dy;
        typename DecoderGradients<T>::Member products;
        // Of the attention of the step before, and of the coverage before that: [row][S]; and all of one row's.
        T *attention, *covered, *extra;
        T *flow,
            *sums;  // of one row: the gradients of its gates; a vector of parts for each row of the memory
        typename History<T>::Member history;
        Windows<T> windows;
        T* centres;  // their gradients, by row
        int member = 0;
        Member(const DecoderShape<T>& s, Arena& arena)
            : carry(arena.take<T>(s.S * kDecoderRows * s.hp)),
              fed(arena.take<T>(s.d.feeds ? kDecoderRows * s.hp : 0)),
              de(arena.take<T>(s.sp)),
              energy(arena.take<T>(s.ap)),
              rows(arena.take<const T*>(kDecoderRows)),
              before(arena.take<const T*>(kDecoderRows * s.S)),
              dy(arena.take<const T*>(kDecoderRows)),
              products(s, arena),
              attention(arena.take<T>(s.d.features() > 0 ? kDecoderRows * s.sp : 0)),
              covered(arena.take<T>(s.d.features() > 0 ? kDecoderRows * s.sp : 0)),
              extra(arena.take<T>(s.sp)),
              flow(arena.take<T>(s.d.contexts ? s.gates : 0)),
              sums(arena.take<T>(s.d.contexts ? larger(s.d.S, 1) * L : 0)),
              history(s.d, arena),
              windows(s.d.windows(), s.sp, arena),
              centres(arena.take<T>(kDecoderRows * s.d.windows())) {}
    };

    DecoderBackward(const DecoderBackwardArgs<T>& args, Team& team, void* workspace)
        : Places(args.forward, args.forward.tape),
          p_(args),
          team_(team),
          arena_(workspace),
          to_(s_, arena_),
          columns_(s_, args.columns),
          projections_(s_, args.forward.projections),
          history_(s_.d, args.forward.params.w_filter) {}

    void run_member(int member) {
        Arena arena = arena_;
        for (int i = 0; i < member; ++i) Member(s_, arena);
        Member m(s_, arena);
        m.member = member;
        m.windows.begin();
        DecoderGradients<T> gradients(p_, to_, team_, member);
        clear(member);
        pack_bias<T>(f_.params.w_energy, nullptr, 1, s_.d.A, m.energy);
        if (!team_.barrier(member)) return;
        const Range mine = decoder_positions(f_.schedule, s_.d.B, team_.size(), member);
        for (std::int64_t g = mine.begin; g < mine.end; g += kDecoderRows) {
            if (!sweep(m, member, {g, smaller(g + kDecoderRows, mine.end)})) return;
        }
        if (s_.d.contexts) {
            if (!team_.barrier(member)) return;
            gradients.contexts(m.products);
            if (!team_.barrier(member)) return;
        }
        for (std::int64_t p = mine.begin; p < mine.end; ++p) {
            if (!gradients.context_memory(m.products, p)) return;
            if (s_.multiplies() && !gradients.keys(m.products, p)) return;
        }
        if (!team_.barrier(member)) return;
        gradients.weights(m.products);
        gradients.inputs(m.products);
        gradients.memory(m.products);
    }

  private:
    struct Step {
        std::int64_t t, first, n, row0;
    };

    void clear(int member) {
        const auto part = [&](T* p, std::int64_t n) {
            const Range mine = share(n, team_.size(), member);
            fill_zero(p + mine.begin, mine.end - mine.begin);
        };
        if (s_.additive()) {
            part(to_.dkeys, s_.d.memory_rows * s_.ap);
            part(to_.denergy, s_.d.B * s_.ap);
        }
        part(to_.dfeatures, s_.d.B * s_.ap * s_.d.features());
        part(to_.dfilters, s_.d.B * s_.d.filters * s_.d.width);
        part(to_.dmemory, s_.d.memory_rows * s_.d.M + L);
    }

    T* carry(Member& m, int k, std::int64_t i) const { return m.carry + (k * kDecoderRows + i) * s_.hp; }

    // False once the call was cancelled.
    bool sweep(Member& m, int member, Range group) {
        const std::int64_t total = f_.schedule.length[group.begin];
        std::int64_t n = 0;
        for (std::int64_t t = total - 1; t >= 0; --t) {
            const std::int64_t active = smaller(f_.schedule.active[t], group.end) - group.begin;
            for (; n < active; ++n) load_final(m, n, group.begin + n);
            const Step step{t, group.begin, n, this->row_of(t, group.begin)};
            const std::int64_t work = n * (s_.gates * (s_.d.H + s_.F + 64) + s_.ap * s_.hp);
            if (team_.cancelled(member, work)) return false;
            s_.d.current ? back_through_attention_first(m, step) : back_through_cell_first(m, step);
        }
        for (; n < group.end - group.begin; ++n) load_final(m, n, group.begin + n);
        for (std::int64_t i = 0; i < n; ++i) {
            for (int k = 0; k < s_.S; ++k) {
                copy(carry(m, k, i), p_.dinitial[k] + this->batch_row(group.begin + i) * s_.d.H, s_.d.H);
            }
        }
        return true;
    }
    void load_final(Member& m, std::int64_t i, std::int64_t position) const {
        for (int k = 0; k < s_.S; ++k) {
            T* const to = carry(m, k, i);
            fill_zero(to, s_.hp);
            if (p_.dfinal[k] != nullptr) copy(p_.dfinal[k] + this->batch_row(position) * s_.d.H, to, s_.d.H);
        }
        if (s_.d.feeds) fill_zero(m.fed + i * s_.hp, s_.hp);
        fill_zero(m.centres + i * s_.d.windows(), s_.d.windows());
        if (s_.d.features() == 0) return;
        fill_zero(m.attention + i * s_.sp, s_.sp);
        fill_zero(m.covered + i * s_.sp, s_.sp);
    }

    // The query is the state before the step.
    void back_through_cell_first(Member& m, const Step& step) {
        back_through_cell(m, step, p_.dy != nullptr);
        if (!s_.d.contexts) {
            row_major_product<T>(gates(m, step, to_.dgx), columns_.fed, s_.d.M, nullptr, 0,
                                 to_.dcontexts + step.row0 * s_.mp, s_.mp);
        }
        back_through_state(m, step);
        back_through_attention(m, step);
    }

    // The query is the state after the step.
    void back_through_attention_first(Member& m, const Step& step) {
        back_through_output(m, step);
        back_through_attention(m, step);
        back_through_cell(m, step, false);
        if (s_.d.feeds) {
            row_major_product<T>(gates(m, step, to_.dgx), columns_.fed, s_.d.H, nullptr, 0, m.fed, s_.hp);
        }
        back_through_state(m, step);
    }

    // Gradients in panels of `width`, as the rows of a product.
    GemmArgs<T> paneled(Member& m, const Step& step, const T* panels, std::int64_t count,
                        std::int64_t width) const {
        for (std::int64_t i = 0; i < step.n; ++i) m.rows[i] = panels + (step.row0 + i) * width;
        return paneled_rows<T>(m.rows, step.n, count, width, s_.d.rows * width);
    }
    GemmArgs<T> gates(Member& m, const Step& step, const T* panels) const {
        return paneled(m, step, panels, s_.panels, s_.G * L);
    }

    // The gradients of the gates; the carry becomes the pointwise part of that of the states before.
    void back_through_cell(Member& m, const Step& step, bool with_dy) {
        for (std::int64_t i = 0; i < step.n; ++i) {
            for (int k = 0; k < s_.S; ++k)
                m.before[i * s_.S + k] = this->state_before(k, step.t, step.first + i);
            if (with_dy) m.dy[i] = this->step_row(p_.dy, step.t, step.first + i, s_.d.H);
        }
        const std::int64_t place = step.row0 * s_.G * L;
        s_.cell.backward({s_.d.H, s_.panels, step.n, rows_.saved + step.row0 * s_.hp * s_.cell.saved,
                          m.before, with_dy ? m.dy : nullptr, m.carry, s_.hp, kDecoderRows * s_.hp,
                          to_.dgx + place, to_.dgh + place, s_.d.rows * s_.G * L});
    }
    void back_through_state(Member& m, const Step& step) {
        row_major_product<T>(gates(m, step, to_.dgh), columns_.h, s_.d.H, m.carry, s_.hp, m.carry, s_.hp);
    }

    // y = tanh(a): the gradient of a, of the context and, added to the carry, of the state.
    void back_through_output(Member& m, const Step& step) {
        const V one = V::set(1);
        for (std::int64_t i = 0; i < step.n; ++i) {
            const T* const dy =
                p_.dy == nullptr ? nullptr : this->step_row(p_.dy, step.t, step.first + i, s_.d.H);
            for (std::int64_t j = 0; j < s_.hp; j += L) {
                V d = dy == nullptr ? V::set(0) : load_part(dy + j, s_.d.H - j);
                if (s_.d.feeds) d = d + V::load(m.fed + i * s_.hp + j);
                const V y = V::load(rows_.outputs + (step.row0 + i) * s_.hp + j);
                (d * (one - y * y)).store(to_.doutputs + (j / L * s_.d.rows + step.row0 + i) * L);
            }
        }
        const GemmArgs<T> rows = paneled(m, step, to_.doutputs, s_.panels, L);
        row_major_product<T>(rows, columns_.output_context, s_.d.M, nullptr, 0,
                             to_.dcontexts + step.row0 * s_.mp, s_.mp);
        row_major_product<T>(rows, columns_.output_h, s_.d.H, m.carry, s_.hp, m.carry, s_.hp);
    }

    // The gradient of the query goes into the carry.
    void back_through_attention(Member& m, const Step& step) {
        for (std::int64_t i = 0; i < step.n; ++i) {
            if (team_.cancelled(m.member, 2 * s_.attention_work())) return;
            back_through_attention(m, step.t, step.first + i, step.row0 + i, i);
        }
        if (s_.projects_query()) {
            row_major_product<T>(paneled(m, step, to_.dqueries, s_.ap / L, L), columns_.query, s_.d.H,
                                 m.carry, s_.hp, m.carry, s_.hp);
            return;
        }
        for (std::int64_t i = 0; i < step.n; ++i) {
            for (std::int64_t j = 0; j < s_.panels; ++j) {
                T* const to = carry(m, 0, i) + j * L;
                (V::load(to) + V::load(to_.dqueries + (j * s_.d.rows + step.row0 + i) * L)).store(to);
            }
        }
    }
    void back_through_attention(Member& m, std::int64_t t, std::int64_t position, std::int64_t row,
                                std::int64_t i) {
        const std::int64_t count = f_.memory_lengths[position], dq_panel = s_.d.rows * L;
        T* const dq = to_.dqueries + row * L;
        if (count == 0) {
            for (std::int64_t j = 0; j < s_.ap / L; ++j) V::set(0).store(dq + j * dq_panel);
            return;
        }
        const T* extra = p_.dalpha == nullptr ? nullptr : this->step_row(p_.dalpha, t, position, s_.d.S);
        T *const dattention = m.attention + i * s_.sp, *const dcovered = m.covered + i * s_.sp;
        if (s_.d.features() > 0) {
            for (std::int64_t s = 0; s < count; ++s)
                m.extra[s] = (extra == nullptr ? T(0) : extra[s]) + (dattention[s] + dcovered[s]);
            extra = m.extra;
        }
        T* const de = s_.multiplies() ? to_.denergies + row * s_.sp : m.de;
        if (s_.d.contexts) {
            projected_gradients(m, position, row, count, extra, de);
        } else {
            attention_gradients<T>(this->memory_of(position), s_.mp, count, to_.dcontexts + row * s_.mp,
                                   extra, de);
        }
        if (const std::int64_t K = s_.d.windows(); K > 0) {
            for (std::int64_t s = count; s < padded<T>(count); ++s) de[s] = 0;
            m.windows.adjoint(this->query_of(t, position), this->centres_of(row), de, count, dq, dq_panel,
                              m.centres + i * K);
            return;
        }
        energy_gradients<T>(count, rows_.alphas + row * s_.sp, de);
        const Keys<T> keys{this->keys_of(this->keys_.keys, position), s_.d.memory_rows * L, s_.ap / L, count};
        const T* const q = this->query_of(t, position);
        T* const dkeys = this->keys_of(to_.dkeys, position);
        T* const dv = to_.denergy + position * L;
        if (const std::int64_t features = s_.d.features(); features > 0) {
            AdditiveScore<T, true>{m.energy, this->row_features(columns_.features, row)}.adjoint(
                keys, q, de, dq, dq_panel, dkeys, dv, s_.d.B * L,
                {to_.dfeatures + position * features * L, m.history.sums, s_.d.B * features * L});
            for (std::int64_t c = 0; c < features; ++c) {
                fill_zero(m.history.gradients + c * s_.sp, s_.sp);
                for (std::int64_t s = 0; s < count; ++s)
                    m.history.gradients[c * s_.sp + s] = sum(V::load(m.history.sums + (c * s_.sp + s) * L));
            }
            history_.adjoint(this->attention_before(t, position), m.history, dattention, dcovered,
                             to_.dfilters + position * s_.d.filters * s_.d.width);
        } else if (s_.factored()) {
            FactoredScore<T>{m.energy, this->keys_of(this->keys_.factors, position)}.adjoint(
                keys, q, de, dq, dq_panel, dkeys, dv, s_.d.B * L);
        } else {
            // Those of the keys once all steps are known.
            weighted_sum<T>({keys.first, keys.panel, L, keys.panels, count}, de, dq, dq_panel);
        }
    }

    // dalpha_s = dgates . W m_s: as attention_gradients, but without the weights.
    void projected_gradients(Member& m, std::int64_t position, std::int64_t row, std::int64_t count,
                             const T* extra, T* de) const {
        const std::int64_t N = s_.d.memory_rows, width = s_.G * L;
        for (std::int64_t j = 0; j < s_.panels; ++j)
            copy(to_.dgx + (j * s_.d.rows + row) * width, m.flow + j * width, width);
        const Keys<T> rows{this->keys_of(projections_.memory, position), N * L, s_.gates / L, count};
        ProductScore<T>{}.energies(rows, m.flow, m.sums);
        for (std::int64_t s = 0; s < count; ++s)
            de[s] = sum(V::load(m.sums + s * L)) + (extra == nullptr ? T(0) : extra[s]);
    }

    const DecoderBackwardArgs<T>& p_;
    Team& team_;
    Arena arena_;
    const DecoderFlow<T> to_;
    const DecoderColumns<T> columns_;
    const DecoderProjections<T> projections_;
    const History<T> history_;
};

template <class T>
std::int64_t decoder_backward_workspace(const DecoderSizes& sizes, int members) {
    Arena arena(nullptr);
    const DecoderShape<T> shape(sizes);
    DecoderFlow<T>(shape, arena);
    for (int i = 0; i < members; ++i) typename DecoderBackward<T>::Member(shape, arena);
    return arena.used();
}

template <class T>
std::int64_t decoder_column_bytes(const DecoderSizes& sizes) {
    return DecoderColumns<T>(DecoderShape<T>(sizes), nullptr).bytes;
}
template <class T>
void decoder_pack_columns(const DecoderArgs<T>& args, void* columns, Team& team) {
    struct Job {
        const DecoderArgs<T>& args;
        void* columns;
        Team& team;
    } job{args, columns, team};
    team.run(
        [](void* c, int member) {
            const Job& own = *static_cast<Job*>(c);
            pack_decoder_columns(own.args, own.columns, own.team, member);
        },
        &job);
}

template <class T>
void decoder_backward(const DecoderBackwardArgs<T>& args, Team& team, void* workspace) {
    DecoderBackward<T> job(args, team, workspace);
    team.run([](void* c, int member) { static_cast<DecoderBackward<T>*>(c)->run_member(member); }, &job);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
