// The n best paths of a conditional random field, in order: Viterbi's algorithm with the n best ways to each tag. Of equal
// ones those come first that end in, and come from, the first tags.
#pragma once

#include "sequence/best.h"
#include "sequence/crf.h"

namespace fusedrnn::FUSEDRNN_ISA {

// One member's memory: the n best scores of each tag, of two steps, and for each step where they are from.
struct NBestMemory {
    std::int64_t width;  // K n
    double *here, *before;
    std::int32_t* from;

    FUSEDRNN_INLINE NBestMemory(Arena& arena, std::int64_t steps, std::int64_t tags, std::int64_t n)
        : width(tags * n),
          here(arena.take<double>(width)),
          before(arena.take<double>(width)),
          from(arena.take<std::int32_t>((steps + 1) * width)) {}
};

// Sets the tags of sequence b, (n, T, B), and their scores, (n, B).
template <class T>
void crf_nbest_row(const CrfArgs<T>& p, std::int64_t n, std::int64_t b, NBestMemory m, std::int64_t* tags,
                   double* scores, Team& team, int member) {
    const std::int64_t K = p.tags, steps = p.lengths[b], batch = p.batch;
    for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t t = 0; t < p.steps; ++t) tags[(i * p.steps + t) * batch + b] = -1;
        scores[i * batch + b] = i == 0 && steps == 0 ? 0 : -__builtin_huge_val();
    }
    if (steps == 0) return;
    bool has_nan = false;
    for (std::int64_t t = 0; t < steps; ++t) {
        if (team.cancelled(member, 4 * K * m.width)) return;
        const T* const x = p.emissions + (t * batch + b) * K;
        for (std::int64_t j = 0; j < K; ++j) {
            const double emission = static_cast<double>(x[j]);
            has_nan |= emission != emission;
            const Best best{n, m.here + j * n, m.from + t * m.width + j * n};
            best.clear();
            if (t == 0) {
                best.add(p.start[j] + emission, 0);
                continue;
            }
            for (std::int64_t i = 0; i < K; ++i) {
                const double added = p.transitions[i * K + j] + emission;
                for (std::int64_t k = i * n; k < (i + 1) * n; ++k) {
                    if (!best.add(m.before[k] + added, k)) break;
                }
            }
        }
        double* const other = m.before;
        m.before = m.here, m.here = other;
    }
    const Best best{n, m.here, m.from + steps * m.width};
    best.clear();
    for (std::int64_t k = 0; k < m.width; ++k) best.add(m.before[k] + p.end[k / n], k);
    for (std::int64_t i = 0; i < n; ++i) {
        scores[i * batch + b] = has_nan ? __builtin_nan("") : best.scores[i];
        std::int32_t k = best.from[i];
        for (std::int64_t t = steps - 1; t >= 0 && k >= 0; --t) {
            tags[(i * p.steps + t) * batch + b] = k / n;
            k = m.from[t * m.width + k];
        }
    }
}

inline std::int64_t crf_nbest_workspace(std::int64_t steps, std::int64_t tags, std::int64_t n, int members) {
    Arena counted{nullptr};
    const NBestMemory counting(counted, steps, tags, n);
    return counted.used * members;
}

template <class T>
void crf_nbest(const CrfArgs<T>& p, std::int64_t n, std::int64_t* tags, double* scores, Team& team,
               void* workspace) {
    const std::int64_t each = crf_nbest_workspace(p.steps, p.tags, n, 1);
    parallel_ranges(team, p.batch, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena arena{static_cast<char*>(workspace) + member * each};
        const NBestMemory memory(arena, p.steps, p.tags, n);
        for (std::int64_t b = begin; b < end && !team.cancelled(member, 1024); ++b) {
            crf_nbest_row(p, n, b, memory, tags, scores, team, member);
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
