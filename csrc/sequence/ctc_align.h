// The best alignment of a target by connectionist temporal classification, over the lattice of ctc.h.
#pragma once

#include "sequence/ctc.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The best path of one sequence; -inf where there is none.
template <class T>
double ctc_align_row(const CtcRow<T>& row, T* scratch, std::int64_t* alignment, Team& team, int member) {
    const CtcMemory& m = row.memory;
    const std::int64_t L = row.L, batch = row.in.batch;
    std::int64_t* const at = alignment + row.b;
    for (std::int64_t t = 0; t < row.in.steps; ++t) at[t * batch] = -1;
    if (row.steps == 0) return L == 0 ? 0 : -__builtin_huge_val();
    const auto always = [](void* context, std::int64_t) { return static_cast<T*>(context); };
    if (!ctc_log_lattice<true>(row, +always, scratch, team, member)) return __builtin_nan("");
    if (row.is_impossible()) return -__builtin_huge_val();
    // State 2 i + 1 is label i, state 2 i the blank before it.
    const auto value = [&](std::int64_t t, std::int64_t state) {
        return state % 2 ? m.labels(t)[state / 2] : m.blanks(t)[state / 2];
    };
    const std::int64_t last = row.steps - 1;
    std::int64_t state = L > 0 && value(last, 2 * L - 1) >= value(last, 2 * L) ? 2 * L - 1 : 2 * L;
    const double score = value(last, state);
    if (score < 0.5 * kNever) return -__builtin_huge_val();
    for (std::int64_t t = last; t >= 0; --t) {
        at[t * batch] = state % 2 ? state / 2 : -1;
        if (t == 0) break;
        std::int64_t best = state;
        if (state > 0 && value(t - 1, state - 1) > value(t - 1, best)) best = state - 1;
        if (state % 2 && state > 1 && m.skip[state / 2] == 0 &&
            value(t - 1, state - 2) > value(t - 1, best)) {
            best = state - 2;
        }
        state = best;
    }
    return score;
}

template <class T>
void ctc_align(const CtcArgs<T>& in, std::int64_t* alignment, double* scores, Team& team, void* workspace) {
    each_sequence(in, team, workspace, [&](int member, const CtcMemory& memory, T* scratch, std::int64_t b) {
        scores[b] = ctc_align_row(CtcRow<T>(in, b, memory), scratch, alignment, team, member);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
