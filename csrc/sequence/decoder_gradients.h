// What a decoder's sweep through the steps leaves, and the gradients of weights, inputs and the memory from it: large products
// over all rows, each member's own part of the results.
#pragma once

#include "cpu/outer.h"
#include "sequence/decoder.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Weights as columns; those of features as [A/L][feature][L].
template <class T>
struct DecoderColumns {
    T *x, *fed, *h, *query, *memory, *output_context, *output_h, *features;
    std::int64_t bytes;
    DecoderColumns(const DecoderShape<T>& s, void* block) {
        Arena arena(block);
        const std::int64_t gates = panel_depth<T>(s.gates), attention = panel_depth<T>(s.ap);
        const std::int64_t out = s.d.current ? panel_depth<T>(s.hp) : 0;
        x = arena.take<T>(padded<T>(s.d.I) * gates);
        fed = arena.take<T>(s.fp * gates);
        h = arena.take<T>(s.hp * gates);
        query = arena.take<T>(s.projects_query() ? s.hp * attention : 0);
        memory = arena.take<T>(s.projects_memory() ? s.mp * attention : 0);
        output_context = arena.take<T>(s.mp * out);
        output_h = arena.take<T>(s.hp * out);
        features = arena.take<T>(s.ap * s.d.features());
        bytes = arena.used();
    }
};

// Every weight by another member, in turns.
template <class T>
void pack_decoder_columns(const DecoderArgs<T>& args, void* block, Team& team, int member) {
    const DecoderShape<T> s(args.sizes);
    const DecoderColumns<T> to(s, block);
    const auto& w = args.params;
    const std::int64_t I = s.d.I, M = s.d.M, H = s.d.H, A = s.d.A, input = I + s.F;
    int item = 0;
    const auto mine = [&] { return item++ % team.size() == member; };
    const auto columns = [&](const T* from, std::int64_t gates, std::int64_t units, std::int64_t n, T* out,
                             std::int64_t stride) {
        pack_columns<T>(from, gates, units, padded<T>(units), n, out, team, member, stride);
    };
    if (mine()) columns(w.w_hh, s.G, H, H, to.h, H);
    if (mine()) columns(w.w_ih + I, s.G, H, s.F, to.fed, input);
    if (mine()) columns(w.w_ih, s.G, H, I, to.x, input);
    if (mine() && s.projects_query()) columns(w.query(), 1, A, H, to.query, H);
    if (mine() && s.projects_memory()) columns(w.w_memory, 1, A, M, to.memory, M);
    if (mine()) pack_features<T>(s, w, to.features);
    if (mine() && s.d.current) {
        columns(w.w_output, 1, H, M, to.output_context, M + H);
        columns(w.w_output + M, 1, H, H, to.output_h, M + H);
    }
}

// Gradients. Panels are [panel][R][G][L] or [panel][R][L], of the memory [panel][N][L].
template <class T>
struct DecoderFlow {
    T *dgx, *dgh, *dqueries, *dcontexts, *doutputs, *denergies, *dkeys, *denergy, *dmemory;
    T *dfeatures, *dfilters;  // [A/L][B][feature][L]; [B][C][K]
    DecoderFlow(const DecoderShape<T>& s, Arena& arena) {
        const std::int64_t rows = s.d.rows, memory = s.d.memory_rows, out = s.d.current ? s.hp : 0;
        dgx = arena.take<T>(rows * s.gates);
        dgh = s.cell.split ? arena.take<T>(rows * s.gates) : dgx;
        dqueries = arena.take<T>(rows * s.ap);
        dcontexts = arena.take<T>(rows * s.mp);
        doutputs = arena.take<T>(rows * out);
        denergies = arena.take<T>(s.multiplies() ? rows * s.sp : 0);
        dkeys = arena.take<T>(memory * s.key_columns());
        denergy = arena.take<T>(s.additive() ? s.d.B * s.ap : 0);
        dmemory = arena.take<T>(memory * s.d.M + Vec<T>::kLanes);
        dfeatures = arena.take<T>(s.ap * s.d.B * s.d.features());
        dfilters = arena.take<T>(s.d.B * s.d.filters * s.d.width);
    }
};

template <class T>
class DecoderGradients : DecoderPlaces<T> {
    using Places = DecoderPlaces<T>;
    using Places::f_, Places::s_, Places::rows_;

  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = Vec<T>::kLanes;

    struct Member {
        T *acc, *columns, *alphas;
        const T **rows, **others;
        Member(const DecoderShape<T>& s, Arena& arena) {
            acc = arena.take<T>(accumulator_vectors<1>() * L);
            const std::int64_t widest = larger(padded<T>(s.d.I), larger(s.mp, s.hp));
            const std::int64_t most = larger(larger(s.d.rows, s.d.memory_rows), s.d.T);
            columns = arena.take<T>(panel_depth<T>(most) * widest);
            alphas = arena.take<T>(s.sp * larger(s.d.T, 1));
            rows = arena.take<const T*>(most);
            others = arena.take<const T*>(most);
        }
    };

    DecoderGradients(const DecoderBackwardArgs<T>& args, const DecoderFlow<T>& flow, Team& team, int member)
        : Places(args.forward, args.forward.tape),
          p_(args),
          to_(flow),
          columns_(s_, args.columns),
          team_(team),
          member_(member) {}

    // dc = W^T dgates of all rows at once, where no step had to wait for it.
    void contexts(Member& m) {
        const Range rows = share(s_.d.rows, team_.size(), member_);
        const std::int64_t n = rows.end - rows.begin, width = s_.G * L;
        if (team_.cancelled(member_, n * s_.gates * s_.mp)) return;
        for (std::int64_t i = 0; i < n; ++i) m.rows[i] = to_.dgx + (rows.begin + i) * width;
        row_major_product<T>(paneled_rows<T>(m.rows, n, s_.panels, width, s_.d.rows * width), columns_.fed,
                             s_.d.M, nullptr, 0, to_.dcontexts + rows.begin * s_.mp, s_.mp);
    }

    // dm_s = sum_t alpha_t,s dc_t of one position. False once the call was cancelled.
    bool context_memory(Member& m, std::int64_t position) {
        const std::int64_t steps = f_.schedule.length[position], count = f_.memory_lengths[position];
        for (std::int64_t t = 0; t < steps; ++t) {
            const std::int64_t row = this->row_of(t, position);
            m.rows[t] = to_.dcontexts + row * s_.mp;
            for (std::int64_t j = 0; j < panels_of<T>(count); ++j) {
                V::load(rows_.alphas + row * s_.sp + j * L).store(m.alphas + (j * steps + t) * L);
            }
        }
        if (count == 0 || steps == 0) return true;
        outer<T>({m.alphas, steps * L, 1, 1, count, m.rows, steps, s_.d.M,
                  to_.dmemory + f_.memory_first[position] * s_.d.M, m.columns, team_, member_},
                 0, panels_of<T>(s_.d.M));
        return !team_.cancelled(member_, 0);
    }

    // The gradients of the keys of one position, where the score is a product. False once the call was cancelled.
    bool keys(Member& m, std::int64_t position) {
        const std::int64_t steps = f_.schedule.length[position], count = f_.memory_lengths[position];
        if (team_.cancelled(member_, steps * count * s_.ap)) return false;
        for (std::int64_t t = 0; t < steps; ++t) {
            m.others[t] = to_.denergies + this->row_of(t, position) * s_.sp;
            m.rows[t] = this->query_of(t, position);
        }
        key_gradients<T>(steps, m.others, m.rows, count, s_.ap / L, this->keys_of(to_.dkeys, position),
                         s_.d.memory_rows * L);
        return true;
    }

    void weights(Member& m) {
        const DecoderParams<T>& dw = p_.dparams;
        if (dw.w_ih == nullptr) return;
        const std::int64_t R = s_.d.rows, N = s_.d.memory_rows, I = s_.d.I, M = s_.d.M, H = s_.d.H,
                           A = s_.d.A, input = I + s_.F;
        const int G = s_.G;
        // dw += (gradients in panels of `gates` vectors)^T (the rows in m.rows)
        const auto outer_of = [&](const T* panels, std::int64_t gates, std::int64_t units, std::int64_t rows,
                                  std::int64_t columns, T* to, std::int64_t stride) {
            const Range mine = share(panels_of<T>(columns), team_.size(), member_);
            outer<T>({panels, rows * gates * L, gates, gates, units, m.rows, rows, columns, to, m.columns,
                      team_, member_, stride},
                     mine.begin, mine.end);
        };
        const auto of_steps = [&](const auto& row) {
            std::int64_t r = 0;
            for (std::int64_t t = 0; t < s_.d.T; ++t) {
                for (std::int64_t p = 0; p < f_.schedule.active[t]; ++p) m.rows[r++] = row(t, p);
            }
        };
        of_steps([&](std::int64_t t, std::int64_t p) { return this->step_row(f_.x, t, p, I); });
        outer_of(to_.dgx, G, H, R, I, dw.w_ih, input);
        of_steps([&](std::int64_t t, std::int64_t p) { return this->state_before(0, t, p); });
        outer_of(to_.dgh, G, H, R, H, dw.w_hh, H);
        if (s_.F > 0) {
            of_steps([&](std::int64_t t, std::int64_t p) { return this->fed_to(t, p); });
            outer_of(to_.dgx, G, H, R, s_.F, dw.w_ih + I, input);
        }
        of_steps([&](std::int64_t t, std::int64_t p) { return this->query_state(t, p); });
        if (s_.projects_query()) outer_of(to_.dqueries, 1, A, R, H, dw.query(), H);
        if (s_.d.current) {
            outer_of(to_.doutputs, 1, H, R, H, dw.w_output + M, M + H);
            for (std::int64_t r = 0; r < R; ++r) m.rows[r] = rows_.contexts + r * s_.mp;
            outer_of(to_.doutputs, 1, H, R, M, dw.w_output, M + H);
        }
        const auto sums = [&](const T* panels, std::int64_t gates, std::int64_t rows, std::int64_t units,
                              T* db, T* also) {
            const Range mine = share(panels_of<T>(units), team_.size(), member_);
            sum_some<T>(panels, rows * gates * L, gates, gates, rows, units, db, also, mine.begin, mine.end,
                        team_, member_);
        };
        sums(to_.dgx, G, R, H, dw.b_ih, s_.cell.split ? nullptr : dw.b_hh);
        if (s_.cell.split) sums(to_.dgh, G, R, H, dw.b_hh, nullptr);
        if (s_.windowed()) sums(to_.dqueries, 1, R, A, dw.b_window, nullptr);
        if (s_.projects_memory()) {
            for (std::int64_t r = 0; r < N; ++r) m.rows[r] = this->keys_.memory + r * s_.mp;
            outer_of(to_.dkeys, 1, A, N, M, dw.w_memory, M);
        }
        if (s_.additive()) {
            sums(to_.dkeys, 1, N, A, dw.b_memory, nullptr);
            sums(to_.denergy, 1, s_.d.B, A, dw.w_energy, nullptr);
        }
        feature_weights(dw);
    }

    void inputs(Member& m) {
        if (p_.dx == nullptr) return;
        const Range rows = share(s_.d.rows, team_.size(), member_);
        const std::int64_t I = s_.d.I, B = s_.d.B;
        // Where each row of the gradient goes, as where its input was.
        std::int64_t r = 0;
        for (std::int64_t t = 0; t < s_.d.T; ++t) {
            for (std::int64_t p = 0; p < f_.schedule.active[t]; ++p, ++r) {
                m.others[r] = this->step_row(f_.x, t, p, I);
                m.rows[r] = to_.dgx + r * s_.G * L;
            }
        }
        product(m, paneled_rows<T>(m.rows, 0, s_.panels, s_.G * L, s_.d.rows * s_.G * L), rows, columns_.x, I,
                [&](std::int64_t row, std::int64_t column, V v) {
                    store_part(v, p_.dx + (m.others[row] - f_.x) + column, I - column);
                });
        const Range mine = share(B, team_.size(), member_);
        for (std::int64_t p = mine.begin; p < mine.end; ++p) {
            for (std::int64_t t = f_.schedule.length[p]; t < s_.d.T; ++t) {
                fill_zero(this->step_row(p_.dx, t, p, I), I);
            }
        }
    }

    // That through the contexts and that through the keys.
    void memory(Member& m) {
        const Range rows = share(s_.d.memory_rows, team_.size(), member_);
        const std::int64_t M = s_.d.M;
        const auto store = [&](std::int64_t r, std::int64_t column, V v) {
            T* const to = p_.dmemory + (p_.memory_step[r] * s_.d.B + p_.memory_owner[r]) * M + column;
            store_part(v + load_part(to_.dmemory + r * M + column, M - column), to, M - column);
        };
        if (!s_.projects_memory()) {
            for (std::int64_t r = rows.begin; r < rows.end; ++r) {
                for (std::int64_t j = 0; j < s_.mp / L; ++j) {
                    const T* const dkey = to_.dkeys + (j * s_.d.memory_rows + r) * L;
                    store(r, j * L, s_.windowed() ? V::set(0) : V::load(dkey));
                }
            }
            return;
        }
        for (std::int64_t r = rows.begin; r < rows.end; ++r) m.rows[r] = to_.dkeys + r * L;
        product(m, paneled_rows<T>(m.rows, 0, s_.ap / L, L, s_.d.memory_rows * L), rows, columns_.memory, M,
                store);
    }

  private:
    // Sums over the positions, in their order.
    void feature_weights(const DecoderParams<T>& dw) {
        const std::int64_t B = s_.d.B, C = s_.d.filters, n = s_.d.features(), filters = C * s_.d.width;
        const auto add = [&](const T* from, std::int64_t stride, T* to) {
            T sum = 0;
            for (std::int64_t p = 0; p < B; ++p) sum += from[p * stride];
            *to += sum;
        };
        if (n == 0) return;
        const Range units = share(s_.d.A, team_.size(), member_),
                    taps = share(filters, team_.size(), member_);
        for (std::int64_t unit = units.begin; unit < units.end; ++unit) {
            if (team_.cancelled(member_, B * n * L)) return;
            for (std::int64_t c = 0; c < n; ++c) {
                add(to_.dfeatures + (unit / L * B * n + c) * L + unit % L, n * L,
                    c < C ? dw.w_location + unit * C + c : dw.w_coverage + unit);
            }
        }
        for (std::int64_t i = taps.begin; i < taps.end; ++i) add(to_.dfilters + i, filters, dw.w_filter + i);
    }

    // Rows [begin, end) of a product with `columns` columns, stored by store(row, column, vector).
    template <class Store>
    void product(Member& m, GemmArgs<T> args, Range rows, const T* b, std::int64_t columns,
                 const Store& store) {
        const std::int64_t count = panels_of<T>(columns), at_once = panels_at_once<1>(kRowGroup);
        const T* const* const all = args.a;
        args.b_panel = panel_depth<T>(args.depth()) * L;
        for (std::int64_t u = 0; u < count; u += at_once) {
            for (std::int64_t r = rows.begin; r < rows.end; r += kRowGroup) {
                args.a = all + r;
                args.n = smaller(kRowGroup, rows.end - r);
                args.b = b + u * args.b_panel;
                args.panels = smaller(at_once, count - u);
                args.columns = columns - u * L;
                args.out = m.acc;
                args.out_panel = kRowGroup * L;
                args.out_row = L;
                if (team_.cancelled(member_, args.n * args.panels * args.b_panel)) return;
                gemm<T, 1>(args);
                for (std::int64_t v = 0; v < args.panels; ++v) {
                    for (std::int64_t i = 0; i < args.n; ++i) {
                        store(r + i, (u + v) * L, V::load(m.acc + (v * kRowGroup + i) * L));
                    }
                }
            }
        }
    }

    const DecoderBackwardArgs<T>& p_;
    const DecoderFlow<T>& to_;
    const DecoderColumns<T> columns_;
    Team& team_;
    const int member_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
