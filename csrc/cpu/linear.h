// A dense layer on the same products: y = x W^T + b, and its gradients.
#pragma once

#include "cpu/kernels.h"
#include "cpu/outer.h"
#include "cpu/pack.h"
#include "cpu/steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct Linear {
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using V = Vec<T>;

    std::int64_t n, in, out;
    const T *x, *w, *b, *dy;
    T *y, *dx, *dw, *db;
    Team* team;
    // Workspace: W in panels (forward) or as columns (backward), dy in panels, the bias; then a piece a member.
    T *panels, *dy_panels, *bias;
    struct Member {
        T *acc, *columns;
        const T** rows;
    };
    void* members;

    void take_shared(Arena& arena) {
        panels = arena.take<T>(
            larger(padded<T>(out) * panel_depth<T>(in), padded<T>(in) * panel_depth<T>(out)) + L);
        dy_panels = arena.take<T>(padded<T>(out) * n);
        bias = arena.take<T>(padded<T>(out));
    }
    Member take_member(Arena& arena) const {
        return {arena.take<T>(accumulator_vectors<1>() * L), arena.take<T>(panel_depth<T>(n) * padded<T>(in)),
                arena.take<const T*>(n)};
    }
    Member member_piece(int member) const {
        Arena arena(members);
        Member m{};
        for (int i = 0; i <= member; ++i) m = take_member(arena);
        return m;
    }

    // c (rows of this member, width) = the rows `a` times the packed panels.
    void product(const GemmArgs<T>& a, Member& m, int member, Range rows, const T* init, std::int64_t width,
                 T* c) {
        const std::int64_t count = panels_of<T>(width), at_once = panels_at_once<1>(kRowGroup);
        for (std::int64_t u = 0; u < count; u += at_once) {
            for (std::int64_t r = rows.begin; r < rows.end; r += kRowGroup) {
                GemmArgs<T> args = a;
                args.a += r;
                args.n = smaller(kRowGroup, rows.end - r);
                take_panels<T>(args, panels, {u, smaller(u + at_once, count)}, width);
                if (init != nullptr) {
                    args.init = init + u * L;
                    args.init_panel = L;
                }
                args.out = m.acc;
                args.out_panel = kRowGroup * L;
                args.out_row = L;
                gemm<T, 1>(args);
                if (team->cancelled(member, args.n * args.panels * args.b_panel)) return;
                for (std::int64_t v = 0; v < args.panels; ++v) {
                    const std::int64_t column = (u + v) * L;
                    for (std::int64_t i = 0; i < args.n; ++i) {
                        store_part(V::load(m.acc + (v * kRowGroup + i) * L), c + (r + i) * width + column,
                                   width - column);
                    }
                }
            }
        }
    }

    void forward_member(int member) {
        const Range mine = share(panels_of<T>(out), team->size(), member);
        const std::int64_t first = mine.begin * L, units = smaller(mine.end * L, out) - first;
        if (units > 0) {
            pack_rows<T>(w + first * in, 1, units, in, panels + first * panel_depth<T>(in), *team, member);
            pack_bias<T>(b == nullptr ? nullptr : b + first, nullptr, 1, units, bias + first);
        }
        if (!team->barrier(member)) return;
        Member m = member_piece(member);
        const Range rows = share(n, team->size(), member);
        for (std::int64_t r = rows.begin; r < rows.end; ++r) m.rows[r] = x + r * in;
        product(plain_rows<T>(m.rows, n, in), m, member, rows, bias, out, y);
    }

    void backward_member(int member) {
        Member m = member_piece(member);
        const std::int64_t out_panels = panels_of<T>(out);
        const Range rows = share(n, team->size(), member);
        for (std::int64_t r = rows.begin; r < rows.end && !team->cancelled(member, out * kPackWork); ++r) {
            for (std::int64_t j = 0; j < out_panels; ++j) {
                load_part(dy + r * out + j * L, out - j * L).store(dy_panels + (j * n + r) * L);
            }
        }
        if (dx != nullptr) {
            const Range mine = share(panels_of<T>(in), team->size(), member);
            for (std::int64_t j = mine.begin; j < mine.end && !team->cancelled(member, out * L * kPackWork);
                 ++j)
                pack_column_panel(j);
        }
        if (!team->barrier(member)) return;
        if (dx != nullptr) {
            for (std::int64_t r = rows.begin; r < rows.end; ++r) m.rows[r] = dy_panels + r * L;
            product(paneled_rows<T>(m.rows, n, out_panels, L, n * L, last_units<T>(out)), m, member, rows,
                    nullptr, in, dx);
        }
        if (dw != nullptr) {
            for (std::int64_t r = 0; r < n; ++r) m.rows[r] = x + r * in;
            const OuterArgs<T> args{dy_panels, n * L, 1, 1, out, m.rows, n, in, dw, m.columns, *team, member};
            const Range mine = share(panels_of<T>(in), team->size(), member);
            outer<T>(args, mine.begin, mine.end);
        }
        if (db != nullptr) {
            const Range mine = share(out_panels, team->size(), member);
            sum_vectors<T, 1>(dy_panels, n * L, 1, n, out, db, nullptr, mine.begin, mine.end, *team, member);
        }
    }
    void pack_column_panel(std::int64_t j) {
        PanelWriter<T> panel(panels + j * panel_depth<T>(out) * L);
        for (std::int64_t k = 0; k < out; ++k) panel.put(load_part(w + k * in + j * L, in - j * L));
        panel.finish();
    }
};

template <class T>
std::int64_t linear_workspace(std::int64_t n, std::int64_t in, std::int64_t out, int threads) {
    Linear<T> layer{};
    layer.n = n;
    layer.in = in;
    layer.out = out;
    Arena arena(nullptr);
    layer.take_shared(arena);
    for (int i = 0; i < threads; ++i) layer.take_member(arena);
    return arena.used();
}

template <class T>
void run_linear(Linear<T>& layer, void* workspace, bool backward) {
    Arena arena(workspace);
    layer.take_shared(arena);
    layer.members = static_cast<std::byte*>(workspace) + arena.used();
    if (backward) {
        layer.team->run([](void* c, int member) { static_cast<Linear<T>*>(c)->backward_member(member); },
                        &layer);
    } else {
        layer.team->run([](void* c, int member) { static_cast<Linear<T>*>(c)->forward_member(member); },
                        &layer);
    }
}

template <class T>
void linear_forward(std::int64_t n, std::int64_t in, std::int64_t out, const T* x, const T* w, const T* b,
                    T* y, Team& team, void* workspace) {
    Linear<T> layer{};
    layer.n = n, layer.in = in, layer.out = out;
    layer.x = x, layer.w = w, layer.b = b, layer.y = y, layer.team = &team;
    run_linear(layer, workspace, false);
}

template <class T>
void linear_backward(std::int64_t n, std::int64_t in, std::int64_t out, const T* x, const T* w, const T* dy,
                     T* dx, T* dw, T* db, Team& team, void* workspace) {
    Linear<T> layer{};
    layer.n = n, layer.in = in, layer.out = out;
    layer.x = x, layer.w = w, layer.dy = dy, layer.dx = dx, layer.dw = dw, layer.db = db, layer.team = &team;
    run_linear(layer, workspace, true);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
