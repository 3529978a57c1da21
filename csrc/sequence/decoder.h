// A recurrent decoder with additive attention, whose query is the previous state and whose context enters every gate:
//   alpha_t = softmax_s(v . tanh(W_q h_(t-1) + k_s))   k = W_m m + b_m
//   c_t = sum_s alpha_t,s m_s      h_t = cell([x_t; c_t], h_(t-1))
// Each member takes positions of about the same work, and these in groups: a group goes through all steps, so that its keys
// and memory stay near. Every product is a chain for each element, so that results depend on neither.
#pragma once

#include "cpu/pack.h"
#include "sequence/attention.h"
#include "sequence/decoder_layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

// out = init + (rows of A) B for all columns, row-major: out + r * out_row. `init` null, a bias, or `out` itself.
template <class T>
FUSEDRNN_INLINE void row_major_product(GemmArgs<T> args, const T* b, std::int64_t columns, const T* init,
                                       std::int64_t init_row, T* out, std::int64_t out_row) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    args.b = b;
    args.b_panel = args.chunks * args.chunk_len * L;
    args.panels = panels_of<T>(columns);
    args.columns = columns;
    args.init = init;
    args.init_panel = L;
    args.init_row = init_row;
    args.out = out;
    args.out_panel = L;
    args.out_row = out_row;
    gemm<T, 1>(args);
}
template <class T>
FUSEDRNN_INLINE GemmArgs<T> plain_rows(const T* const* rows, std::int64_t n, std::int64_t k) {
    GemmArgs<T> args{};
    args.a = rows;
    args.n = n;
    args.chunks = 1;
    args.chunk_len = k;
    return args;
}

template <class Cell, class T>
class Decoder {
  public:
    using Shape = DecoderShape<Cell, T>;
    using V = Vec<T>;
    static constexpr std::int64_t L = Vec<T>::kLanes;
    static constexpr int G = Cell::kGates, S = Cell::kStates;

    struct Member {
        T *gx, *acc, *sums;
        const T **x_rows, **h_rows, **c_rows, **state_rows;
        Member(const Shape& s, Arena& arena) {
            gx = arena.take<T>(s.block * s.hp * G);
            acc = arena.take<T>(accumulator_vectors<G>() * L);
            sums = arena.take<T>(larger(s.d.S, 1) * L);
            x_rows = arena.take<const T*>(s.block);
            h_rows = arena.take<const T*>(kRowGroup);
            c_rows = arena.take<const T*>(kRowGroup);
            state_rows = arena.take<const T*>(kRowGroup * S);
        }
    };

    Decoder(const DecoderArgs<T>& args, Team& team, void* workspace)
        : p_(args),
          s_(args.sizes),
          dims_(s_.dims()),
          team_(team),
          workspace_(workspace),
          weights_(make_weights()),
          keys_(make_keys()),
          rows_(make_rows()) {}

    void prepare_member(const DecoderMemory<T>& from, int member) {
        pack_weights(member);
        Arena arena(workspace_);
        const T** rows = nullptr;
        for (int i = 0; i <= member; ++i) rows = arena.take<const T*>(kRowGroup * 2);
        std::int64_t row = 0;
        const Range mine = share(s_.d.memory_rows, team_.size(), member);
        for (std::int64_t b = 0; b < from.batch; ++b) {
            for (std::int64_t s = 0; s < from.lengths[b]; ++s, ++row) {
                if (row < mine.begin || row >= mine.end) continue;
                const T* const m = from.memory + (s * from.batch + b) * s_.d.M;
                T* const to = keys_.memory + row * s_.mp;
                for (std::int64_t j = 0; j < s_.mp; j += L) load_part(m + j, s_.d.M - j).store(to + j);
            }
        }
        if (!team_.barrier(member)) return;
        for (std::int64_t r = mine.begin; r < mine.end; r += 2 * kRowGroup) {
            const std::int64_t n = smaller(2 * kRowGroup, mine.end - r);
            if (team_.cancelled(member, n * s_.d.M * s_.ap)) return;
            for (std::int64_t i = 0; i < n; ++i) rows[i] = keys_.memory + (r + i) * s_.mp;
            GemmArgs<T> args = plain_rows<T>(rows, n, s_.d.M);
            args.b = weights_.memory;
            args.b_panel = s_.d.M * L;
            args.panels = s_.ap / L;
            args.columns = s_.d.A;
            args.init = weights_.b_memory;
            args.init_panel = L;
            args.out = keys_.keys + r * L;
            args.out_panel = s_.d.memory_rows * L;
            args.out_row = L;
            gemm<T, 1>(args);
        }
    }

    void run_member(int member) {
        Arena arena(workspace_);
        for (int i = 0; i < member; ++i) Member(s_, arena);
        Member m(s_, arena);
        const Range mine = decoder_positions(p_.schedule, s_.d.B, team_.size(), member);
        for (std::int64_t g = mine.begin; g < mine.end; g += kRowGroup) {
            const Range group{g, smaller(g + kRowGroup, mine.end)};
            if (!run_group(m, member, group)) return;
            finish(group);
        }
    }

  private:
    DecoderWeights<Cell, T> make_weights() const {
        Arena arena(p_.weights);
        return DecoderWeights<Cell, T>(s_, arena);
    }
    DecoderKeys<Cell, T> make_keys() const {
        Arena arena(p_.keys);
        return DecoderKeys<Cell, T>(s_, arena);
    }
    DecoderRows<Cell, T> make_rows() const {
        Arena arena(p_.tape);
        return DecoderRows<Cell, T>(s_, p_.keeps, arena);
    }

    // Every weight by another member, in turns.
    void pack_weights(int member) {
        const auto& w = p_.params;
        const std::int64_t I = s_.d.I, M = s_.d.M, H = s_.d.H, A = s_.d.A;
        int item = 0;
        const auto mine = [&] { return item++ % team_.size() == member; };
        if (mine()) pack_rows<T>(w.w_hh, G, H, H, weights_.cell.w_hh, team_, member);
        if (mine()) pack_rows<T>(w.w_ih + I, G, H, M, weights_.context, team_, member, I + M);
        if (mine()) pack_rows<T>(w.w_ih, G, H, I, weights_.cell.w_ih, team_, member, I + M);
        if (mine()) pack_rows<T>(w.w_query, 1, A, H, weights_.query, team_, member);
        if (mine()) pack_rows<T>(w.w_memory, 1, A, M, weights_.memory, team_, member);
        if (!mine()) return;
        pack_bias<T>(w.b_ih, Cell::kSplitGates ? nullptr : w.b_hh, G, H, weights_.cell.b_x);
        pack_bias<T>(w.b_hh, nullptr, G, H, weights_.cell.b_h);
        pack_bias<T>(w.b_memory, nullptr, 1, A, weights_.b_memory);
        pack_bias<T>(w.w_energy, nullptr, 1, A, weights_.energy);
    }

    std::int64_t row_of(std::int64_t t, std::int64_t position) const {
        return p_.keeps ? p_.schedule.offset[t] + position : (t & 1) * s_.d.B + position;
    }
    std::int64_t batch_row(std::int64_t position) const { return p_.schedule.order[position]; }
    const T* state_before(int k, std::int64_t t, std::int64_t position) const {
        if (t == 0) return rows_.initial + (k * s_.d.B + position) * s_.hp;
        return state_after(k, row_of(t - 1, position));
    }
    T* state_after(int k, std::int64_t row) const {
        return k == 0 ? rows_.hidden + row * s_.hp : rows_.states + (row * (S - 1) + k - 1) * s_.hp;
    }

    void load_initial(Range group) const {
        for (int k = 0; k < S; ++k) {
            for (std::int64_t p = group.begin; p < group.end; ++p) {
                T* const to = rows_.initial + (k * s_.d.B + p) * s_.hp;
                fill_zero(to, s_.hp);
                if (p_.initial[k] != nullptr) copy(p_.initial[k] + batch_row(p) * s_.d.H, to, s_.d.H);
            }
        }
    }

    // False once the call was cancelled.
    bool run_group(Member& m, int member, Range group) {
        load_initial(group);
        const std::int64_t most = group.end - group.begin, total = p_.schedule.length[group.begin];
        const std::int64_t steps = larger(1, s_.block / most);
        const auto active = [&](std::int64_t t) {
            return larger(0, smaller(p_.schedule.active[t], group.end) - group.begin);
        };
        const CellSizes<Cell> sizes{RecurrentCell{}};
        for (std::int64_t block = 0; block < total; block += steps) {
            const std::int64_t end = smaller(block + steps, total);
            std::int64_t n = 0;
            for (std::int64_t t = block; t < end; ++t) {
                for (std::int64_t i = 0; i < active(t); ++i) {
                    m.x_rows[n++] = p_.x + (t * s_.d.B + batch_row(group.begin + i)) * s_.d.I;
                }
            }
            if (team_.cancelled(member, n * s_.d.I * s_.hp * G)) return false;
            input_product<Cell, T>(sizes, dims_, weights_.cell, m.x_rows, n, {0, s_.panels}, m.gx, n);
            std::int64_t row = 0;
            for (std::int64_t t = block; t < end; ++t) {
                if (!run_step(m, member, sizes, t, group.begin, active(t), m.gx + row * G * L, n))
                    return false;
                row += active(t);
            }
        }
        return true;
    }

    bool run_step(Member& m, int member, const CellSizes<Cell>& sizes, std::int64_t t, std::int64_t first,
                  std::int64_t n, T* gx, std::int64_t gx_rows) {
        const std::int64_t row0 = row_of(t, first);
        for (std::int64_t i = 0; i < n; ++i) {
            for (int k = 0; k < S; ++k) m.state_rows[i * S + k] = state_before(k, t, first + i);
            m.h_rows[i] = m.state_rows[i * S];
            m.c_rows[i] = rows_.contexts + (row0 + i) * s_.mp;
        }
        if (team_.cancelled(member, n * s_.ap * s_.d.H)) return false;
        row_major_product<T>(plain_rows<T>(m.h_rows, n, s_.d.H), weights_.query, s_.d.A, nullptr, 0,
                             rows_.queries + row0 * s_.ap, s_.ap);
        for (std::int64_t i = 0; i < n; ++i) attend_row(m, t, first + i, row0 + i);
        const PanelGroups groups(s_.panels, group_panels<Cell, G>(n), (t & 1) != 0);
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [u, end] = groups[q];
            if (team_.cancelled(member, n * (end - u) * G * L * (s_.d.M + s_.d.H + 64))) return false;
            T* const mine = gx + u * gx_rows * G * L;
            GemmArgs<T> args = plain_rows<T>(m.c_rows, n, s_.d.M);
            args.b = weights_.context + u * s_.d.M * G * L;
            args.b_panel = s_.d.M * G * L;
            args.panels = end - u;
            args.columns = s_.d.H - u * L;
            args.init = args.out = mine;
            args.init_panel = args.out_panel = gx_rows * G * L;
            args.init_row = args.out_row = G * L;
            gemm<T, G>(args);
            hidden_product<Cell, T>(sizes, dims_, weights_.cell, m.h_rows, n, {u, end}, mine, gx_rows, m.acc,
                                    kRowGroup);
            for (std::int64_t v = u; v < end; ++v) {
                for (std::int64_t i = 0; i < n; ++i) {
                    apply_cell(m, t, v, first + i, row0 + i, m.acc + ((v - u) * kRowGroup + i) * G * L,
                               mine + ((v - u) * gx_rows + i) * G * L, m.state_rows + i * S);
                }
            }
        }
        return true;
    }

    void attend_row(Member& m, std::int64_t t, std::int64_t position, std::int64_t row) const {
        const std::int64_t first = p_.memory_first[position], count = p_.memory_lengths[position];
        T* const alpha = rows_.alphas + row * s_.sp;
        T* const out = p_.alpha + (t * s_.d.B + batch_row(position)) * s_.d.S;
        fill_zero(alpha, s_.sp);
        if (count > 0) {
            const Keys<T> keys{keys_.keys + first * L, s_.d.memory_rows * L, s_.ap / L, count};
            attend<T>(keys, rows_.queries + row * s_.ap, weights_.energy, m.sums, alpha);
        }
        copy(alpha, out, s_.d.S);
        context<T>(keys_.memory + first * s_.mp, s_.mp, count, alpha, rows_.contexts + row * s_.mp);
    }

    FUSEDRNN_INLINE void apply_cell(Member&, std::int64_t t, std::int64_t panel, std::int64_t position,
                                    std::int64_t row, const T* acc, const T* gx,
                                    const T* const* state) const {
        V next[S], keep[Cell::kSaved];
        cell_forward<Cell, T>(dims_, acc, gx, nullptr, state, panel, next, keep);
        const std::int64_t unit = panel * L;
        for (int k = 0; k < S; ++k) next[k].store(state_after(k, row) + unit);
        store_part(next[0], p_.y + (t * s_.d.B + batch_row(position)) * s_.d.H + unit, s_.d.H - unit);
        if (!p_.keeps) return;
        T* const saved = rows_.saved + (row * s_.panels + panel) * Cell::kSaved * L;
        for (int k = 0; k < Cell::kSaved; ++k) keep[k].store(saved + k * L);
    }

    // The states after the last step, and zeros past it.
    void finish(Range group) const {
        for (std::int64_t p = group.begin; p < group.end; ++p) {
            const std::int64_t length = p_.schedule.length[p], b = batch_row(p);
            for (int k = 0; k < S; ++k) copy(state_before(k, length, p), p_.final[k] + b * s_.d.H, s_.d.H);
            for (std::int64_t t = length; t < s_.d.T; ++t) {
                fill_zero(p_.y + (t * s_.d.B + b) * s_.d.H, s_.d.H);
                fill_zero(p_.alpha + (t * s_.d.B + b) * s_.d.S, s_.d.S);
            }
        }
    }

    const DecoderArgs<T>& p_;
    const Shape s_;
    const Dims dims_;
    Team& team_;
    void* workspace_;
    const DecoderWeights<Cell, T> weights_;
    const DecoderKeys<Cell, T> keys_;
    const DecoderRows<Cell, T> rows_;
};

template <class Cell, class T>
std::int64_t decoder_weight_bytes(const DecoderSizes& sizes) {
    Arena arena(nullptr);
    DecoderWeights<Cell, T>(DecoderShape<Cell, T>(sizes), arena);
    return arena.used();
}
template <class Cell, class T>
std::int64_t decoder_key_bytes(const DecoderSizes& sizes) {
    Arena arena(nullptr);
    DecoderKeys<Cell, T>(DecoderShape<Cell, T>(sizes), arena);
    return arena.used();
}
template <class Cell, class T>
std::int64_t decoder_tape_bytes(const DecoderSizes& sizes, bool keeps) {
    Arena arena(nullptr);
    DecoderRows<Cell, T>(DecoderShape<Cell, T>(sizes), keeps, arena);
    return arena.used();
}
template <class Cell, class T>
std::int64_t decoder_workspace(const DecoderSizes& sizes, int members) {
    Arena arena(nullptr);
    const DecoderShape<Cell, T> shape(sizes);
    for (int i = 0; i < members; ++i) typename Decoder<Cell, T>::Member(shape, arena);
    return larger(arena.used(), members * kRowGroup * 2 * static_cast<std::int64_t>(sizeof(T*)));
}

template <class Cell, class T>
void decoder_prepare(const DecoderArgs<T>& args, const DecoderMemory<T>& memory, Team& team,
                     void* workspace) {
    struct Job {
        Decoder<Cell, T> decoder;
        const DecoderMemory<T>& memory;
    } job{{args, team, workspace}, memory};
    team.run(
        [](void* c, int member) {
            Job& own = *static_cast<Job*>(c);
            own.decoder.prepare_member(own.memory, member);
        },
        &job);
}
template <class Cell, class T>
void decoder_forward(const DecoderArgs<T>& args, Team& team, void* workspace) {
    Decoder<Cell, T> decoder(args, team, workspace);
    team.run([](void* c, int member) { static_cast<Decoder<Cell, T>*>(c)->run_member(member); }, &decoder);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
