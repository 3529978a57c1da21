// Backward of a decoder: a sweep through the steps of each group of positions, which leaves the gradients of gates, queries and
// contexts; then the gradients of weights, inputs and the memory as large products over all rows.
#pragma once

#include "cpu/outer.h"
#include "sequence/decoder.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
class DecoderBackward {
  public:
    using Shape = DecoderShape<Cell, T>;
    using V = Vec<T>;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    static constexpr int G = Cell::kGates, S = Cell::kStates;

    // What all members share: weights as columns, and gradients. Panels are [panel][R][G][L], of the memory [panel][N][L].
    struct Shared {
        T *x_columns, *context_columns, *h_columns, *query_columns, *memory_columns;
        T *dgx, *dgh, *dqueries, *dcontexts, *dkeys, *denergy, *dmemory;
        Shared(const Shape& s, Arena& arena) {
            const std::int64_t gates = s.hp * G, rows = s.d.rows, memory = s.d.memory_rows;
            x_columns = arena.take<T>(padded<T>(s.d.I) * gates);
            context_columns = arena.take<T>(s.mp * gates);
            h_columns = arena.take<T>(s.hp * gates);
            query_columns = arena.take<T>(s.hp * s.ap);
            memory_columns = arena.take<T>(s.mp * s.ap);
            dgx = arena.take<T>(rows * gates);
            dgh = Cell::kSplitGates ? arena.take<T>(rows * gates) : dgx;
            dqueries = arena.take<T>(rows * s.ap);
            dcontexts = arena.take<T>(rows * s.mp);
            dkeys = arena.take<T>(memory * s.ap);
            denergy = arena.take<T>(s.d.B * s.ap);
            dmemory = arena.take<T>(memory * s.d.M + L);
        }
    };
    struct Member {
        T *carry, *de, *acc, *columns, *alphas, *energy;
        const T **rows, **others;
        Member(const Shape& s, Arena& arena) {
            carry = arena.take<T>(S * kRowGroup * s.hp);
            de = arena.take<T>(s.sp);
            acc = arena.take<T>(accumulator_vectors<1>() * L);
            const std::int64_t widest = larger(padded<T>(s.d.I), larger(s.mp, s.hp));
            columns = arena.take<T>(larger(s.d.rows, larger(s.d.memory_rows, s.d.T)) * widest);
            alphas = arena.take<T>(s.sp * larger(s.d.T, 1));
            energy = arena.take<T>(s.ap);
            const std::int64_t most = larger(larger(s.d.rows, s.d.memory_rows), larger(s.d.T, kRowGroup));
            rows = arena.take<const T*>(most);
            others = arena.take<const T*>(most);
        }
    };

    DecoderBackward(const DecoderBackwardArgs<T>& args, Team& team, void* workspace)
        : p_(args),
          f_(args.forward),
          s_(f_.sizes),
          team_(team),
          arena_(workspace),
          to_(s_, arena_),
          keys_(make_keys()),
          tape_(make_rows()) {}

    void run_member(int member) {
        Arena arena = arena_;
        for (int i = 0; i < member; ++i) Member(s_, arena);
        Member m(s_, arena);
        pack_weights(member);
        clear(member);
        pack_bias<T>(f_.params.w_energy, nullptr, 1, s_.d.A, m.energy);
        if (!team_.barrier(member)) return;
        const Range mine = decoder_positions(f_.schedule, s_.d.B, team_.size(), member);
        for (std::int64_t g = mine.begin; g < mine.end; g += kRowGroup) {
            if (!sweep(m, member, {g, smaller(g + kRowGroup, mine.end)})) return;
        }
        for (std::int64_t p = mine.begin; p < mine.end; ++p) {
            if (!context_memory(m, member, p)) return;
        }
        if (!team_.barrier(member)) return;
        weight_gradients(m, member);
        input_gradients(m, member);
        memory_gradients(m, member);
    }

  private:
    DecoderKeys<Cell, T> make_keys() const {
        Arena arena(f_.keys);
        return DecoderKeys<Cell, T>(s_, arena);
    }
    DecoderRows<Cell, T> make_rows() const {
        Arena arena(f_.tape);
        return DecoderRows<Cell, T>(s_, true, arena);
    }

    void pack_weights(int member) {
        const auto& w = f_.params;
        const std::int64_t I = s_.d.I, M = s_.d.M, H = s_.d.H, A = s_.d.A;
        int item = 0;
        const auto mine = [&] { return item++ % team_.size() == member; };
        if (mine()) pack_columns<T>(w.w_hh, G, H, H, to_.h_columns, team_, member);
        if (mine()) pack_columns<T>(w.w_ih + I, G, H, M, to_.context_columns, team_, member, I + M);
        if (mine() && p_.dx != nullptr) pack_columns<T>(w.w_ih, G, H, I, to_.x_columns, team_, member, I + M);
        if (mine()) pack_columns<T>(w.w_query, 1, A, H, to_.query_columns, team_, member);
        if (mine()) pack_columns<T>(w.w_memory, 1, A, M, to_.memory_columns, team_, member);
    }
    void clear(int member) {
        const auto part = [&](T* p, std::int64_t n) {
            const Range mine = share(n, team_.size(), member);
            fill_zero(p + mine.begin, mine.end - mine.begin);
        };
        part(to_.dkeys, s_.d.memory_rows * s_.ap);
        part(to_.denergy, s_.d.B * s_.ap);
        part(to_.dmemory, s_.d.memory_rows * s_.d.M + L);
    }

    std::int64_t batch_row(std::int64_t position) const { return f_.schedule.order[position]; }
    std::int64_t row_of(std::int64_t t, std::int64_t position) const {
        return f_.schedule.offset[t] + position;
    }
    const T* state_before(int k, std::int64_t t, std::int64_t position) const {
        if (t == 0) return tape_.initial + (k * s_.d.B + position) * s_.hp;
        const std::int64_t row = row_of(t - 1, position);
        return k == 0 ? tape_.hidden + row * s_.hp : tape_.states + (row * (S - 1) + k - 1) * s_.hp;
    }
    T* carry(Member& m, int k, std::int64_t i) const { return m.carry + (k * kRowGroup + i) * s_.hp; }

    // False once the call was cancelled.
    bool sweep(Member& m, int member, Range group) {
        const std::int64_t total = f_.schedule.length[group.begin];
        std::int64_t n = 0;
        for (std::int64_t t = total - 1; t >= 0; --t) {
            const std::int64_t active = smaller(f_.schedule.active[t], group.end) - group.begin;
            for (; n < active; ++n) load_final(m, n, group.begin + n);
            if (!sweep_step(m, member, t, group.begin, n)) return false;
        }
        for (; n < group.end - group.begin; ++n) load_final(m, n, group.begin + n);
        for (std::int64_t i = 0; i < n; ++i) {
            for (int k = 0; k < S; ++k) {
                copy(carry(m, k, i), p_.dinitial[k] + batch_row(group.begin + i) * s_.d.H, s_.d.H);
            }
        }
        return true;
    }
    void load_final(Member& m, std::int64_t i, std::int64_t position) const {
        for (int k = 0; k < S; ++k) {
            T* const to = carry(m, k, i);
            fill_zero(to, s_.hp);
            if (p_.dfinal[k] != nullptr) copy(p_.dfinal[k] + batch_row(position) * s_.d.H, to, s_.d.H);
        }
    }

    bool sweep_step(Member& m, int member, std::int64_t t, std::int64_t first, std::int64_t n) {
        const std::int64_t row0 = row_of(t, first);
        const std::int64_t work = n * s_.hp * G * (s_.d.H + s_.d.M + 64) + n * s_.d.S * (s_.mp + 16 * s_.ap);
        if (team_.cancelled(member, work)) return false;
        for (std::int64_t i = 0; i < n; ++i) back_through_cell(m, t, first + i, row0 + i, i);
        const auto gates = [&](const T* panels) {
            for (std::int64_t i = 0; i < n; ++i) m.rows[i] = panels + (row0 + i) * G * L;
            GemmArgs<T> args{};
            args.a = m.rows;
            args.n = n;
            args.chunks = s_.panels;
            args.chunk_len = G * L;
            args.chunk_stride = s_.d.rows * G * L;
            return args;
        };
        row_major_product<T>(gates(to_.dgx), to_.context_columns, s_.d.M, nullptr, 0,
                             to_.dcontexts + row0 * s_.mp, s_.mp);
        row_major_product<T>(gates(to_.dgh), to_.h_columns, s_.d.H, m.carry, s_.hp, m.carry, s_.hp);
        for (std::int64_t i = 0; i < n; ++i) back_through_attention(m, t, first + i, row0 + i);
        GemmArgs<T> args{};
        for (std::int64_t i = 0; i < n; ++i) m.rows[i] = to_.dqueries + (row0 + i) * L;
        args.a = m.rows;
        args.n = n;
        args.chunks = s_.ap / L;
        args.chunk_len = L;
        args.chunk_stride = s_.d.rows * L;
        row_major_product<T>(args, to_.query_columns, s_.d.H, m.carry, s_.hp, m.carry, s_.hp);
        return true;
    }

    // The gradients of the gates; the carry becomes the pointwise part of that of the states before.
    void back_through_cell(Member& m, std::int64_t t, std::int64_t position, std::int64_t row,
                           std::int64_t i) {
        const T* const dy = p_.dy == nullptr ? nullptr : p_.dy + (t * s_.d.B + batch_row(position)) * s_.d.H;
        const V none[kPerUnitRoom<Cell>]{V::set(0)};
        for (std::int64_t j = 0; j < s_.panels; ++j) {
            const std::int64_t unit = j * L;
            V saved[Cell::kSaved], before[S], next[S], dgx[G], dgh[G], dunits[kPerUnitRoom<Cell>], ds[S];
            for (int k = 0; k < Cell::kSaved; ++k) {
                saved[k] = V::load(tape_.saved + ((row * s_.panels + j) * Cell::kSaved + k) * L);
            }
            for (int k = 0; k < S; ++k) {
                before[k] = V::load(state_before(k, t, position) + unit);
                next[k] = V::load(carry(m, k, i) + unit);
            }
            if (dy != nullptr) next[0] = next[0] + load_part(dy + unit, s_.d.H - unit);
            call_backward<Cell>(saved, none, before, next, dgx, dgh, dunits, ds);
            T* const to = to_.dgh + (j * s_.d.rows + row) * G * L;
            for (int g = 0; g < G; ++g) dgh[g].store(to + g * L);
            if constexpr (Cell::kSplitGates) {
                T* const also = to_.dgx + (j * s_.d.rows + row) * G * L;
                for (int g = 0; g < G; ++g) dgx[g].store(also + g * L);
            }
            (Cell::kDirectHidden ? ds[0] : V::set(0)).store(carry(m, 0, i) + unit);
            for (int k = 1; k < S; ++k) ds[k].store(carry(m, k, i) + unit);
        }
    }

    void back_through_attention(Member& m, std::int64_t t, std::int64_t position, std::int64_t row) {
        const std::int64_t first = f_.memory_first[position], count = f_.memory_lengths[position];
        T* const dq = to_.dqueries + row * L;
        const std::int64_t dq_panel = s_.d.rows * L;
        if (count == 0) {
            for (std::int64_t j = 0; j < s_.ap / L; ++j) V::set(0).store(dq + j * dq_panel);
            return;
        }
        const T* const extra =
            p_.dalpha == nullptr ? nullptr : p_.dalpha + (t * s_.d.B + batch_row(position)) * s_.d.S;
        energy_gradients<T>(keys_.memory + first * s_.mp, s_.mp, count, tape_.alphas + row * s_.sp,
                            to_.dcontexts + row * s_.mp, extra, m.de);
        const std::int64_t panel = s_.d.memory_rows * L;
        attend_backward<T>({keys_.keys + first * L, panel, s_.ap / L, count}, tape_.queries + row * s_.ap,
                           m.energy, m.de, dq, dq_panel, to_.dkeys + first * L, to_.denergy + position * L,
                           s_.d.B * L);
    }

    // dm_s = sum_t alpha_t,s dc_t of one position.
    bool context_memory(Member& m, int member, std::int64_t position) {
        const std::int64_t steps = f_.schedule.length[position], count = f_.memory_lengths[position];
        for (std::int64_t t = 0; t < steps; ++t) {
            const std::int64_t row = row_of(t, position);
            m.rows[t] = to_.dcontexts + row * s_.mp;
            for (std::int64_t j = 0; j < panels_of<T>(count); ++j) {
                V::load(tape_.alphas + row * s_.sp + j * L).store(m.alphas + (j * steps + t) * L);
            }
        }
        if (count == 0 || steps == 0) return true;
        outer<T>({m.alphas, steps * L, 1, 1, count, m.rows, steps, s_.d.M,
                  to_.dmemory + f_.memory_first[position] * s_.d.M, m.columns, team_, member},
                 0, panels_of<T>(s_.d.M));
        return !team_.cancelled(member, 0);
    }

    void weight_gradients(Member& m, int member) {
        const DecoderParams<T>& dw = p_.dparams;
        if (dw.w_ih == nullptr) return;
        const std::int64_t R = s_.d.rows, N = s_.d.memory_rows, I = s_.d.I, M = s_.d.M, H = s_.d.H,
                           A = s_.d.A;
        const auto columns = [&](OuterArgs<T> args) {
            const Range mine = share(panels_of<T>(args.columns), team_.size(), member);
            outer<T>(args, mine.begin, mine.end);
        };
        find_rows(m.rows, m.others);
        columns({to_.dgx, R * G * L, G, G, H, m.rows, R, I, dw.w_ih, m.columns, team_, member, I + M});
        columns({to_.dgh, R * G * L, G, G, H, m.others, R, H, dw.w_hh, m.columns, team_, member});
        columns({to_.dqueries, R * L, 1, 1, A, m.others, R, H, dw.w_query, m.columns, team_, member});
        for (std::int64_t r = 0; r < R; ++r) m.rows[r] = tape_.contexts + r * s_.mp;
        columns({to_.dgx, R * G * L, G, G, H, m.rows, R, M, dw.w_ih + I, m.columns, team_, member, I + M});
        for (std::int64_t r = 0; r < N; ++r) m.rows[r] = keys_.memory + r * s_.mp;
        columns({to_.dkeys, N * L, 1, 1, A, m.rows, N, M, dw.w_memory, m.columns, team_, member});
        const CellSizes<Cell> sizes{RecurrentCell{}};
        const Range units = share(s_.panels, team_.size(), member),
                    keys = share(s_.ap / L, team_.size(), member);
        sum_gates<Cell, T>(sizes, to_.dgx, R * G * L, R, H, dw.b_ih, Cell::kSplitGates ? nullptr : dw.b_hh,
                           units.begin, units.end, team_, member);
        if (Cell::kSplitGates) {
            sum_gates<Cell, T>(sizes, to_.dgh, R * G * L, R, H, dw.b_hh, nullptr, units.begin, units.end,
                               team_, member);
        }
        sum_vectors<T, 1>(to_.dkeys, N * L, 1, N, A, dw.b_memory, nullptr, keys.begin, keys.end, team_,
                          member);
        sum_vectors<T, 1>(to_.denergy, s_.d.B * L, 1, s_.d.B, A, dw.w_energy, nullptr, keys.begin, keys.end,
                          team_, member);
    }
    // The inputs and the hidden states before of all rows.
    void find_rows(const T** x, const T** h) const {
        std::int64_t r = 0;
        for (std::int64_t t = 0; t < s_.d.T; ++t) {
            for (std::int64_t p = 0; p < f_.schedule.active[t]; ++p, ++r) {
                x[r] = f_.x + (t * s_.d.B + batch_row(p)) * s_.d.I;
                h[r] = state_before(0, t, p);
            }
        }
    }

    // Rows [begin, end) of a product with `columns` columns, stored by store(row, column, vector).
    template <class Store>
    void product(Member& m, int member, GemmArgs<T> args, Range rows, const T* b, std::int64_t columns,
                 const Store& store) {
        const std::int64_t count = panels_of<T>(columns), at_once = panels_at_once<1>(kRowGroup);
        const T* const* const all = args.a;
        args.b_panel = args.chunks * args.chunk_len * L;
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
                if (team_.cancelled(member, args.n * args.panels * args.b_panel)) return;
                gemm<T, 1>(args);
                for (std::int64_t v = 0; v < args.panels; ++v) {
                    for (std::int64_t i = 0; i < args.n; ++i) {
                        store(r + i, (u + v) * L, V::load(m.acc + (v * kRowGroup + i) * L));
                    }
                }
            }
        }
    }

    void input_gradients(Member& m, int member) {
        if (p_.dx == nullptr) return;
        const Range rows = share(s_.d.rows, team_.size(), member);
        const std::int64_t I = s_.d.I, B = s_.d.B;
        // Where each row of the gradient goes, as where its input was.
        find_rows(m.others, m.rows);
        for (std::int64_t r = rows.begin; r < rows.end; ++r) m.rows[r] = to_.dgx + r * G * L;
        GemmArgs<T> args{};
        args.a = m.rows;
        args.chunks = s_.panels;
        args.chunk_len = G * L;
        args.chunk_stride = s_.d.rows * G * L;
        product(m, member, args, rows, to_.x_columns, I, [&](std::int64_t r, std::int64_t column, V v) {
            store_part(v, p_.dx + (m.others[r] - f_.x) + column, I - column);
        });
        const Range mine = share(B, team_.size(), member);
        for (std::int64_t p = mine.begin; p < mine.end; ++p) {
            for (std::int64_t t = f_.schedule.length[p]; t < s_.d.T; ++t) {
                fill_zero(p_.dx + (t * B + batch_row(p)) * I, I);
            }
        }
    }

    void memory_gradients(Member& m, int member) {
        const Range rows = share(s_.d.memory_rows, team_.size(), member);
        const std::int64_t M = s_.d.M;
        for (std::int64_t r = rows.begin; r < rows.end; ++r) m.rows[r] = to_.dkeys + r * L;
        GemmArgs<T> args{};
        args.a = m.rows;
        args.chunks = s_.ap / L;
        args.chunk_len = L;
        args.chunk_stride = s_.d.memory_rows * L;
        product(m, member, args, rows, to_.memory_columns, M, [&](std::int64_t r, std::int64_t column, V v) {
            T* const to = p_.dmemory + (p_.memory_step[r] * s_.d.B + p_.memory_owner[r]) * M + column;
            store_part(v + load_part(to_.dmemory + r * M + column, M - column), to, M - column);
        });
    }

    const DecoderBackwardArgs<T>& p_;
    const DecoderArgs<T>& f_;
    const Shape s_;
    Team& team_;
    Arena arena_;
    const Shared to_;
    const DecoderKeys<Cell, T> keys_;
    const DecoderRows<Cell, T> tape_;
};

template <class Cell, class T>
std::int64_t decoder_backward_workspace(const DecoderSizes& sizes, int members) {
    Arena arena(nullptr);
    const DecoderShape<Cell, T> shape(sizes);
    typename DecoderBackward<Cell, T>::Shared(shape, arena);
    for (int i = 0; i < members; ++i) typename DecoderBackward<Cell, T>::Member(shape, arena);
    return arena.used();
}

template <class Cell, class T>
void decoder_backward(const DecoderBackwardArgs<T>& args, Team& team, void* workspace) {
    DecoderBackward<Cell, T> job(args, team, workspace);
    team.run([](void* c, int member) { static_cast<DecoderBackward<Cell, T>*>(c)->run_member(member); },
             &job);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
