// One step of beam searches side by side: the likeliest continuations of each sequence's hypotheses.
#pragma once

#include "sequence/crf_nbest.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Scores of group g's continuations, hypothesis by hypothesis and token by token, into the best of them. e is scratch of V.
template <class T>
void beam_group(const BeamArgs<T>& p, std::int64_t g, const Best& best, double* e) {
    best.clear();
    const std::int64_t first = p.first[g];
    for (std::int64_t r = first; r < p.first[g + 1]; ++r) {
        const T* const x = p.logits + r * p.classes;
        for (std::int64_t c = 0; c < p.classes; ++c) e[c] = static_cast<double>(x[c]);
        const double most = row_max<OneThread>(p.classes, e);
        const Lanes shift = Lanes::set(most);
        const double sum = row_sum<double>(p.classes, [&](std::int64_t c, int m) {
            if (m == kLanes) return exp_nonpositive(Lanes::load(e + c) - shift);
            return only_first(exp_nonpositive(load_up_to(e + c, m) - shift), m, 0.0);
        });
        const double offset = p.totals[r] - most - __builtin_log(sum);
        if (!(offset + most > best.scores[best.n - 1])) continue;
        const std::uint8_t* const allowed = p.allowed == nullptr ? nullptr : p.allowed + r * p.classes;
        for (std::int64_t c = 0; c < p.classes; ++c) {
            if (allowed == nullptr || allowed[c] != 0) best.add(offset + e[c], (r - first) * p.classes + c);
        }
    }
}

inline std::int64_t beam_workspace(std::int64_t classes, std::int64_t count, int members) {
    Arena counted{nullptr};
    counted.take<double>(classes);
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
        double* const e = arena.take<double>(p.classes);
        std::int32_t* const from = arena.take<std::int32_t>(p.count);
        for (std::int64_t g = begin; g < end; ++g) {
            const std::int64_t at = g * p.count;
            if (team.cancelled(member, 16 * (p.first[g + 1] - p.first[g] + 1) * p.classes)) return;
            beam_group(p, g, {p.count, totals + at, from}, e);
            for (std::int64_t k = 0; k < p.count; ++k) {
                parents[at + k] = from[k] < 0 ? -1 : p.first[g] + from[k] / p.classes;
                tokens[at + k] = from[k] < 0 ? -1 : from[k] % p.classes;
            }
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
