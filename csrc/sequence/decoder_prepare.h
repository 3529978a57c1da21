// What a decoder makes before its steps: weights in panels, the memory with its keys, and for a search what tokens and the
// memory add to the gates.
#pragma once

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
            for (int g = 0; g < s.G; ++g, out += panel_depth<T>(k) * L) {
                pack_rows<T>(from + (g * H + j * L) * stride, 1, smaller(L, H - j * L), k, out, team, member,
                             stride);
            }
        }
    };
    if (mine()) gates(w.w_hh, H, to.h, H);
    if (mine()) gates(w.w_ih + I, s.F, to.fed, I + s.F);
    if (mine()) gates(w.w_ih, I, to.x, I + s.F);
    if (mine() && s.projects_query()) pack_rows<T>(w.query(), 1, A, H, to.query, team, member);
    if (mine() && s.projects_memory()) pack_rows<T>(w.w_memory, 1, A, M, to.memory, team, member);
    if (mine() && s.d.current) {
        pack_rows<T>(w.w_output, 1, H, M, to.output_context, team, member, M + H);
        pack_rows<T>(w.w_output + M, 1, H, H, to.output_h, team, member, M + H);
    }
    if (mine()) pack_features<T>(s, w, to.features);
    if (!mine()) return;
    pack_bias<T>(w.b_ih, s.cell.split ? nullptr : w.b_hh, s.G, H, to.b_x);
    pack_bias<T>(w.b_hh, nullptr, s.G, H, to.b_h);
    if (s.windowed()) pack_bias<T>(w.b_window, nullptr, 1, A, to.b_query);
    pack_bias<T>(w.b_memory, nullptr, 1, A, to.b_memory);
    pack_bias<T>(w.w_energy, nullptr, 1, A, to.energy);
}

// Products of rows [range) of a matrix (row by row `stride` apart) with panels, into panels [column/L][N][L]. False once the
// call was cancelled.
template <class T>
bool paneled_product(Range range, const T* from, std::int64_t stride, std::int64_t k, const T* b,
                     std::int64_t columns, const T* init, T* to, std::int64_t N, const T** rows, Team& team,
                     int member) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    for (std::int64_t r = range.begin; r < range.end; r += 2 * kDecoderRows) {
        const std::int64_t n = smaller(2 * kDecoderRows, range.end - r);
        if (team.cancelled(member, n * k * padded<T>(columns))) return false;
        for (std::int64_t i = 0; i < n; ++i) rows[i] = from + (r + i) * stride;
        GemmArgs<T> product = plain_rows<T>(rows, n, k);
        product.b = b;
        product.b_panel = panel_depth<T>(k) * L;
        product.panels = panels_of<T>(columns);
        product.columns = columns;
        product.init = init;
        product.init_panel = L;
        product.out = to + r * L;
        product.out_panel = N * L;
        product.out_row = L;
        gemm<T, 1>(product);
    }
    return true;
}

// Where a member of a team has room for the rows of a product.
template <class T>
const T** product_rows(void* workspace, int member) {
    Arena arena(workspace);
    const T** rows = nullptr;
    for (int i = 0; i <= member; ++i) rows = arena.take<const T*>(kDecoderRows * 2);
    return rows;
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
                if (s.d.score == Score::kDot) v.store(to.keys + j * N + row * L);
            }
        }
    }
    if (!s.projects_memory()) return;
    if (!paneled_product<T>(mine, to.memory, s.mp, M, weights.memory, s.d.A, weights.b_memory, to.keys, N,
                            product_rows<T>(workspace, member), team, member) ||
        !s.factored())
        return;
    for (std::int64_t j = 0; j < s.ap; j += L) {
        for (std::int64_t i = j * N + mine.begin * L; i < j * N + mine.end * L; i += L)
            key_factor<T>(V::load(to.keys + i)).store(to.factors + i);
    }
}

template <class T>
void project(const DecoderArgs<T>& args, const T* table, Team& team, void* workspace, int member) {
    const DecoderShape<T> s(args.sizes);
    const DecoderWeights<T> weights(s, args.weights);
    const DecoderKeys<T> keys(s, args.keys);
    const DecoderProjections<T> to(s, args.projections);
    const T** const rows = product_rows<T>(workspace, member);
    const Range mine = share(s.d.table, team.size(), member);
    for (std::int64_t r = mine.begin; r < mine.end; r += 2 * kDecoderRows) {
        const std::int64_t n = smaller(2 * kDecoderRows, mine.end - r);
        if (team.cancelled(member, n * s.d.I * s.gates)) return;
        for (std::int64_t i = 0; i < n; ++i) rows[i] = table + (r + i) * s.d.I;
        row_major_product<T>(plain_rows<T>(rows, n, s.d.I), weights.x, s.gates, weights.b_x, 0,
                             to.inputs + r * s.gates, s.gates);
    }
    if (!s.d.contexts) return;
    const std::int64_t N = s.d.memory_rows;
    paneled_product<T>(share(N, team.size(), member), keys.memory, s.mp, s.d.M, weights.fed, s.gates, nullptr,
                       to.memory, N, rows, team, member);
}

template <class T>
std::int64_t decoder_projection_bytes(const DecoderSizes& sizes) {
    return DecoderProjections<T>(DecoderShape<T>(sizes), nullptr).bytes;
}
template <class T>
void decoder_project(const DecoderArgs<T>& args, const T* table, Team& team, void* workspace) {
    struct Job {
        const DecoderArgs<T>& args;
        const T* table;
        Team& team;
        void* workspace;
    } job{args, table, team, workspace};
    team.run(
        [](void* c, int member) {
            const Job& own = *static_cast<Job*>(c);
            project(own.args, own.table, own.team, own.workspace, member);
        },
        &job);
}

template <class T>
std::int64_t decoder_weight_bytes(const DecoderSizes& sizes) {
    return DecoderWeights<T>(DecoderShape<T>(sizes), nullptr).bytes;
}
template <class T>
std::int64_t decoder_key_bytes(const DecoderSizes& sizes) {
    return DecoderKeys<T>(DecoderShape<T>(sizes), nullptr).bytes;
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
}  // namespace fusedrnn::FUSEDRNN_ISA
