// One step of beam searches side by side: the likeliest continuations of each sequence's hypotheses.
#pragma once

#include "sequence/continuations.h"
#include "sequence/lattice.h"
#include "sequence/sequence_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline std::int64_t beam_workspace(std::int64_t classes, std::int64_t count, int members) {
    Arena counted{nullptr};
    counted.take<double>(continuation_scratch(classes));
    counted.take<std::int32_t>(count);
    return counted.used * members;
}

// Of each group of hypotheses the `count` likeliest continuations, in order and of equals the first: hypothesis, token and
// log probability; -1, -1 and -inf where there are fewer.
template <class T>
void beam_step(const BeamArgs<T>& p, std::int64_t* parents, std::int64_t* tokens, double* totals, Team& team,
               void* workspace) {
    const std::int64_t each = beam_workspace(p.classes, p.count, 1);
    parallel_ranges(team, p.groups, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena arena{static_cast<char*>(workspace) + member * each};
        double* const e = arena.take<double>(continuation_scratch(p.classes));
        std::int32_t* const from = arena.take<std::int32_t>(p.count);
        for (std::int64_t g = begin; g < end; ++g) {
            const std::int64_t at = g * p.count, first = p.first[g], n = p.first[g + 1] - first;
            if (team.cancelled(member, 16 * (n + 1) * p.classes)) return;
            const std::uint8_t* const allowed =
                p.allowed == nullptr ? nullptr : p.allowed + first * p.classes;
            continuations<T>(
                {n, p.classes, p.classes, p.logits + first * p.classes, p.totals + first, allowed},
                {p.count, totals + at, from}, e);
            for (std::int64_t k = 0; k < p.count; ++k) {
                parents[at + k] = from[k] < 0 ? -1 : first + from[k] / p.classes;
                tokens[at + k] = from[k] < 0 ? -1 : from[k] % p.classes;
            }
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
