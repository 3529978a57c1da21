// A recurrent decoder with attention over a memory m, whose keys k are made once. Its query s is the state before a step, and
// its context enters every gate (Bahdanau et al. 2014):
//   c_t = attention(s = h_(t-1))   h_t = cell([x_t; c_t], h_(t-1))   y_t = h_t
// or the state after it, whose output may be fed to the next (Luong, Pham and Manning 2015):
//   h_t = cell([x_t; y_(t-1)], h_(t-1))   c_t = attention(s = h_t)   y_t = tanh(W_c c_t + W_h h_t)
// Each member takes positions of about the same work, and these in groups: a group goes through all steps, so that its keys
// and memory stay near. Every product is a chain for each element, so that results depend on neither.
#pragma once

#include "sequence/attention.h"
#include "sequence/decoder_layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The weights of features: [A/L][feature][L].
template <class T>
void pack_features(const DecoderShape<T>& s, const DecoderParams<const T>& w, T* out) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    for (std::int64_t j = 0; j < s.ap; j += L) {
        for (std::int64_t c = 0; c < s.d.features(); ++c) {
            for (std::int64_t unit = j; unit < j + L; ++unit, ++out) {
                *out = unit >= s.d.A     ? T(0)
                       : c < s.d.filters ? w.w_location[unit * s.d.filters + c]
                                         : w.w_coverage[unit];
            }
        }
    }
}

// Every weight by another member, in turns.
template <class T>
void pack_decoder(const DecoderArgs<T>& args, Team& team, int member) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    const DecoderShape<T> s(args.sizes);
    const DecoderWeights<T> to(s, args.weights);
    const auto& w = args.params;
    const std::int64_t I = s.d.I, M = s.d.M, H = s.d.H, A = s.d.A;
    int item = 0;
    const auto mine = [&] { return item++ % team.size() == member; };
    const auto gates = [&](const T* from, std::int64_t k, T* out, std::int64_t stride) {
        for (std::int64_t j = 0; j < s.panels; ++j) {
            for (int g = 0; g < s.G; ++g, out += k * L) {
                pack_rows<T>(from + (g * H + j * L) * stride, 1, smaller(L, H - j * L), k, out, team, member,
                             stride);
            }
        }
    };
    if (mine()) gates(w.w_hh, H, to.h, H);
    if (mine()) gates(w.w_ih + I, s.F, to.fed, I + s.F);
    if (mine()) gates(w.w_ih, I, to.x, I + s.F);
    if (mine() && s.additive()) pack_rows<T>(w.w_query, 1, A, H, to.query, team, member);
    if (mine() && s.projects_memory()) pack_rows<T>(w.w_memory, 1, A, M, to.memory, team, member);
    if (mine() && s.d.current) {
        pack_rows<T>(w.w_output, 1, H, M, to.output_context, team, member, M + H);
        pack_rows<T>(w.w_output + M, 1, H, H, to.output_h, team, member, M + H);
    }
    if (mine()) pack_features<T>(s, w, to.features);
    if (!mine()) return;
    pack_bias<T>(w.b_ih, s.cell.split ? nullptr : w.b_hh, s.G, H, to.b_x);
    pack_bias<T>(w.b_hh, nullptr, s.G, H, to.b_h);
    pack_bias<T>(w.b_memory, nullptr, 1, A, to.b_memory);
    pack_bias<T>(w.w_energy, nullptr, 1, A, to.energy);
}

// The memory's rows, padded, and its keys.
template <class T>
void prepare_memory(const DecoderArgs<T>& args, const DecoderMemory<T>& from, Team& team, void* workspace,
                    int member) {
    using V = Vec<T>;
    constexpr std::int64_t L = V::kLanes;
    const DecoderShape<T> s(args.sizes);
    const DecoderWeights<T> weights(s, args.weights);
    const DecoderKeys<T> to(s, args.keys);
    Arena arena(workspace);
    const T** rows = nullptr;
    for (int i = 0; i <= member; ++i) rows = arena.take<const T*>(kDecoderRows * 2);
    std::int64_t row = 0;
    const std::int64_t N = s.d.memory_rows, M = s.d.M;
    const Range mine = share(N, team.size(), member);
    for (std::int64_t b = 0; b < from.batch; ++b) {
        for (std::int64_t step = 0; step < from.lengths[b]; ++step, ++row) {
            if (row < mine.begin || row >= mine.end) continue;
            const T* const m = from.memory + (step * from.batch + b) * M;
            for (std::int64_t j = 0; j < s.mp; j += L) {
                const V v = load_part(m + j, M - j);
                v.store(to.memory + row * s.mp + j);
                if (!s.projects_memory()) v.store(to.keys + j * N + row * L);
            }
        }
    }
    if (!s.projects_memory()) return;
    for (std::int64_t r = mine.begin; r < mine.end; r += 2 * kDecoderRows) {
        const std::int64_t n = smaller(2 * kDecoderRows, mine.end - r);
        if (team.cancelled(member, n * M * s.ap)) return;
        for (std::int64_t i = 0; i < n; ++i) rows[i] = to.memory + (r + i) * s.mp;
        GemmArgs<T> product = plain_rows<T>(rows, n, M);
        product.b = weights.memory;
        product.b_panel = M * L;
        product.panels = s.ap / L;
        product.columns = s.d.A;
        product.init = weights.b_memory;
        product.init_panel = L;
        product.out = to.keys + r * L;
        product.out_panel = N * L;
        product.out_row = L;
        gemm<T, 1>(product);
    }
}

template <class T>
class Decoder : DecoderPlaces<T> {
    using Places = DecoderPlaces<T>;
    using Places::f_, Places::s_, Places::rows_;

  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = Vec<T>::kLanes;

    struct Member {
        T *gx, *acc, *sums;
        const T **x_rows, **h_rows, **others, **before;
        T **after, **y_rows;
        typename History<T>::Member history;
        Member(const DecoderShape<T>& s, Arena& arena) : history(s.d, arena) {
            gx = arena.take<T>(s.block * s.gates);
            acc = arena.take<T>(larger(kCellPanels, kDecoderRows) * s.G * L);
            sums = arena.take<T>(larger(s.d.S, 1) * L);
            x_rows = arena.take<const T*>(s.block);
            h_rows = arena.take<const T*>(kDecoderRows);
            others = arena.take<const T*>(kDecoderRows);
            before = arena.take<const T*>(kDecoderRows * s.S);
            after = arena.take<T*>(kDecoderRows * s.S);
            y_rows = arena.take<T*>(kDecoderRows);
        }
    };

    Decoder(const DecoderArgs<T>& args, Team& team, void* workspace)
        : Places(args, args.tape),
          team_(team),
          workspace_(workspace),
          weights_(s_, args.weights),
          history_(s_.d, args.params.w_filter) {}

    void run_member(int member) {
        Arena arena(workspace_);
        for (int i = 0; i < member; ++i) Member(s_, arena);
        Member m(s_, arena);
        const Range mine = decoder_positions(f_.schedule, s_.d.B, team_.size(), member);
        for (std::int64_t g = mine.begin; g < mine.end; g += kDecoderRows) {
            const Range group{g, smaller(g + kDecoderRows, mine.end)};
            if (!run_group(m, member, group)) return;
            finish(group);
        }
    }

  private:
    // What a step works on: rows [row0, row0 + n) of the step t, of positions from `first` on, and their part of gx.
    struct Step {
        std::int64_t t, first, n, row0;
        T* gx;
    };

    void load_initial(Range group) const {
        const auto load = [&](const T* from, T* to, std::int64_t p, std::int64_t width) {
            fill_zero(to, padded<T>(width));
            if (from != nullptr) copy(from + this->batch_row(p) * width, to, width);
        };
        for (std::int64_t p = group.begin; p < group.end; ++p) {
            for (int k = 0; k < s_.S; ++k) {
                load(f_.initial[k], rows_.initial + (k * s_.d.B + p) * s_.hp, p, s_.d.H);
            }
            if (s_.d.feeds) load(f_.feed, rows_.feed + p * s_.hp, p, s_.d.H);
            if (s_.d.features() == 0) continue;
            load(f_.attention, rows_.attention + p * s_.sp, p, s_.d.S);
            load(f_.covered, rows_.covered + p * s_.sp, p, s_.d.S);
        }
    }

    // False once the call was cancelled.
    bool run_group(Member& m, int member, Range group) {
        load_initial(group);
        const std::int64_t most = group.end - group.begin, total = f_.schedule.length[group.begin];
        const std::int64_t steps = larger(1, s_.block / most);
        const auto active = [&](std::int64_t t) {
            return larger(0, smaller(f_.schedule.active[t], group.end) - group.begin);
        };
        for (std::int64_t block = 0; block < total; block += steps) {
            const std::int64_t end = smaller(block + steps, total);
            std::int64_t n = 0;
            for (std::int64_t t = block; t < end; ++t) {
                for (std::int64_t i = 0; i < active(t); ++i) {
                    m.x_rows[n++] = this->step_row(f_.x, t, group.begin + i, s_.d.I);
                }
            }
            if (team_.cancelled(member, n * s_.d.I * s_.gates)) return false;
            row_major_product<T>(plain_rows<T>(m.x_rows, n, s_.d.I), weights_.x, s_.gates, weights_.b_x, 0,
                                 m.gx, s_.gates);
            T* gx = m.gx;
            for (std::int64_t t = block; t < end; ++t) {
                const Step step{t, group.begin, active(t), this->row_of(t, group.begin), gx};
                if (!(s_.d.current ? step_then_attend(m, member, step) : attend_then_step(m, member, step)))
                    return false;
                gx += step.n * s_.gates;
            }
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
        const auto [t, first, n, row0, gx] = step;
        if (s_.additive()) {
            if (team_.cancelled(member, n * s_.ap * s_.d.H)) return false;
            for (std::int64_t i = 0; i < n; ++i) m.h_rows[i] = this->query_state(t, first + i);
            row_major_product<T>(plain_rows<T>(m.h_rows, n, s_.d.H), weights_.query, s_.d.A, nullptr, 0,
                                 rows_.queries + row0 * s_.ap, s_.ap);
        }
        for (std::int64_t i = 0; i < n; ++i) {
            if (team_.cancelled(member, s_.attention_work())) return false;
            attend_row(m, t, first + i, row0 + i);
        }
        return true;
    }

    void attend_row(Member& m, std::int64_t t, std::int64_t position, std::int64_t row) const {
        const std::int64_t count = f_.memory_lengths[position];
        T* const alpha = rows_.alphas + row * s_.sp;
        fill_zero(alpha, s_.sp);
        if (count > 0) {
            const Keys<T> keys{this->keys_of(this->keys_.keys, position), s_.d.memory_rows * L, s_.ap / L,
                               count};
            const T* const q = this->query_of(t, position);
            if (s_.d.features() > 0) {
                history_.features(this->attention_before(t, position), this->covered_before(t, position),
                                  m.history, this->features_of(row));
                attend<T>(AdditiveScore<T, true>{weights_.energy, this->row_features(weights_.features, row)},
                          keys, q, m.sums, alpha);
            } else if (s_.additive()) {
                attend<T>(AdditiveScore<T, false>{weights_.energy, {}}, keys, q, m.sums, alpha);
            } else {
                attend<T>(ProductScore<T>{}, keys, q, m.sums, alpha);
            }
        }
        copy(alpha, this->step_row(f_.alpha, t, position, s_.d.S), s_.d.S);
        context<T>(this->memory_of(position), s_.mp, count, alpha, rows_.contexts + row * s_.mp);
    }

    // The gates of a few panels at a time, and the cell on them while they are near.
    bool run_cell(Member& m, int member, const Step& step) {
        const auto [t, first, n, row0, gx] = step;
        for (std::int64_t i = 0; i < n; ++i) {
            for (int k = 0; k < s_.S; ++k) {
                m.before[i * s_.S + k] = this->state_before(k, t, first + i);
                m.after[i * s_.S + k] = this->state_after(k, row0 + i);
            }
            m.h_rows[i] = m.before[i * s_.S];
            m.y_rows[i] = this->step_row(f_.y, t, first + i, s_.d.H);
            if (s_.F > 0) m.others[i] = this->fed_to(t, first + i);
        }
        const PanelGroups groups(s_.panels, larger(1, kCellPanels / larger(1, n)), (t & 1) != 0);
        for (std::int64_t q = 0; q < groups.count(); ++q) {
            const auto [u, end] = groups[q];
            const std::int64_t width = (end - u) * s_.G * L;
            if (team_.cancelled(member, n * width * (s_.F + s_.d.H + 64))) return false;
            T* const mine = gx + u * s_.G * L;
            if (s_.F > 0) {
                row_major_product<T>(plain_rows<T>(m.others, n, s_.F), weights_.fed + u * s_.G * s_.F * L,
                                     width, mine, s_.gates, mine, s_.gates);
            }
            const T* const init = s_.cell.split ? weights_.b_h + u * s_.G * L : mine;
            row_major_product<T>(plain_rows<T>(m.h_rows, n, s_.d.H), weights_.h + u * s_.G * s_.d.H * L,
                                 width, init, s_.cell.split ? 0 : s_.gates, m.acc, width);
            s_.cell.forward({s_.d.H,
                             {u, end},
                             n,
                             m.acc,
                             mine,
                             width,
                             s_.gates,
                             m.before,
                             m.after,
                             s_.d.current ? nullptr : m.y_rows,
                             f_.keeps ? rows_.saved + row0 * s_.hp * s_.cell.saved : nullptr});
        }
        return true;
    }

    // y = tanh(W_c c + W_h h)
    bool make_outputs(Member& m, int member, const Step& step) {
        const auto [t, first, n, row0, gx] = step;
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
            T* const y = this->step_row(f_.y, t, first + i, s_.d.H);
            for (std::int64_t j = 0; j < s_.hp; j += L) {
                const V v = tanh(V::load(out + i * s_.hp + j));
                v.store(out + i * s_.hp + j);
                store_part(v, y + j, s_.d.H - j);
            }
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
            for (std::int64_t t = length; t < s_.d.T; ++t) {
                fill_zero(f_.y + (t * s_.d.B + b) * s_.d.H, s_.d.H);
                fill_zero(f_.alpha + (t * s_.d.B + b) * s_.d.S, s_.d.S);
            }
        }
    }

    Team& team_;
    void* workspace_;
    const DecoderWeights<T> weights_;
    const History<T> history_;
};

template <class T>
std::int64_t decoder_weight_bytes(const DecoderSizes& sizes) {
    return DecoderWeights<T>(DecoderShape<T>(sizes), nullptr).bytes;
}
template <class T>
std::int64_t decoder_key_bytes(const DecoderSizes& sizes) {
    return DecoderKeys<T>(DecoderShape<T>(sizes), nullptr).bytes;
}
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
void decoder_pack(const DecoderArgs<T>& args, Team& team) {
    struct Job {
        const DecoderArgs<T>& args;
        Team& team;
    } job{args, team};
    team.run(
        [](void* c, int member) {
            const Job& own = *static_cast<Job*>(c);
            pack_decoder(own.args, own.team, member);
        },
        &job);
}
template <class T>
void decoder_prepare(const DecoderArgs<T>& args, const DecoderMemory<T>& memory, Team& team,
                     void* workspace) {
    struct Job {
        const DecoderArgs<T>& args;
        const DecoderMemory<T>& memory;
        Team& team;
        void* workspace;
    } job{args, memory, team, workspace};
    team.run(
        [](void* c, int member) {
            const Job& own = *static_cast<Job*>(c);
            prepare_memory(own.args, own.memory, own.team, own.workspace, member);
        },
        &job);
}
template <class T>
void decoder_forward(const DecoderArgs<T>& args, Team& team, void* workspace) {
    Decoder<T> decoder(args, team, workspace);
    team.run([](void* c, int member) { static_cast<Decoder<T>*>(c)->run_member(member); }, &decoder);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
