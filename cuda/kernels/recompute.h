// The cells of a block of steps once more, from what their products gave: what they keep for backward.
#pragma once

#include "cells/call.h"
#include "kernels/rows.h"

namespace fusedrnn::cuda {

// Blocks (step, rows).
template <class Cell, class T, class C>
FUSEDRNN_KERNEL void recompute_cells(RecomputeArgs args) {
    using V = Vec<C>;
    constexpr int G = Cell::kGates, S = Cell::kStates;
    const std::int64_t H = args.source.H;
    for_rows(args.schedule, args.first, [&](std::int64_t t, int p, std::int64_t b, std::int64_t index) {
        const TimeStep now{t, active_at(args.schedule, t + 1)};
        const T* hidden = nullptr;
        if constexpr (Cell::kDirectHidden) hidden = hidden_before<T>(args.source, now, p, b);
        const C* states[S] = {};
        if constexpr (S > 1) {
            // Of t = -1, which is none, nothing is read.
            const std::int64_t before = args.source.reverse ? t + 1 : t > 0 ? t - 1 : 0;
            const C* const memory =
                static_cast<const C*>(args.states) + offset_at(args.schedule, before) * (S - 1) * H;
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) states[k] = state_before<C>(args.source, now, p, b, k, memory, S);
        }
        for (std::int64_t u = lane(); u < H; u += 32) {
            const auto read = [&](const void* gates, V(&to)[G]) {
                const C* const from = static_cast<const C*>(gates) + index * G * H + u;
                FUSEDRNN_UNROLL
                for (int g = 0; g < G; ++g) to[g] = V::set(load_constant(from + g * H));
            };
            V gx[G], gates[G], s[S]{}, s_next[S], saved[Cell::kSaved];
            const V units[1] = {};
            if (hidden != nullptr) s[0] = V::set(widen(load_constant(hidden + u)));
            FUSEDRNN_UNROLL
            for (int k = 1; k < S; ++k) {
                if (states[k] != nullptr) s[k] = V::set(load_constant(states[k] + u));
            }
            if constexpr (Cell::kSplitGates) read(args.gx, gx);
            read(Cell::kSplitGates ? args.gh : args.gx, gates);
            call_forward<Cell>(gx, gates, units, s, s_next, saved);
            C* const to = static_cast<C*>(args.saved) + (index * H + u) * Cell::kSaved;
            FUSEDRNN_UNROLL
            for (int k = 0; k < Cell::kSaved; ++k) store(to + k, saved[k].v);
        }
    });
}

}  // namespace fusedrnn::cuda
