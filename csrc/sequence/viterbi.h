// The best path of a conditional random field (Viterbi 1967), the first of equals.
#pragma once

#include "sequence/crf.h"

namespace fusedrnn::FUSEDRNN_ISA {

// y[j] = max_i (x[i] + w[i, j]): N vectors of columns.
template <int N>
FUSEDRNN_INLINE void columns_max(std::int64_t K, std::int64_t stride, const double* x, const double* w,
                                 double* y) {
    Lanes most[N];
    for (int n = 0; n < N; ++n) most[n] = Lanes::set(kNever);
    for (std::int64_t k = 0; k < K; ++k) {
        const Lanes a = Lanes::set(x[k]);
        for (int n = 0; n < N; ++n) most[n] = max(most[n], a + Lanes::load(w + k * stride + n * kLanes));
    }
    for (int n = 0; n < N; ++n) most[n].store(y + n * kLanes);
}

FUSEDRNN_INLINE void row_max_product(std::int64_t K, std::int64_t stride, const double* x, const double* w,
                                     double* y) {
    std::int64_t left = (K + kLanes - 1) / kLanes;
    for (; left >= 4; left -= 4) {
        columns_max<4>(K, stride, x, w, y);
        w += 4 * kLanes, y += 4 * kLanes;
    }
    switch (left) {
        case 3:
            return columns_max<3>(K, stride, x, w, y);
        case 2:
            return columns_max<2>(K, stride, x, w, y);
        case 1:
            return columns_max<1>(K, stride, x, w, y);
        default:
            return;
    }
}

// Where x + y is largest, the first of equals; 0 where all are NaN.
FUSEDRNN_INLINE std::int64_t largest_sum_at(std::int64_t K, const double* x, const double* y) {
    constexpr double kLowest = -__builtin_huge_val();
    Lanes most = Lanes::set(kLowest), at = Lanes::set(0);
    row_vectors<double>(K, [&](std::int64_t i, int n) {
        const Lanes sum = load_up_to(x + i, n) + load_up_to(y + i, n);
        const auto larger = less(most, n == kLanes ? sum : only_first(sum, n, kLowest));
        most = select(larger, sum, most);
        at = select(larger, Lanes::load(kLaneNumbersDouble) + Lanes::set(static_cast<double>(i)), at);
    });
    double values[kLanes], places[kLanes];
    most.store(values);
    at.store(places);
    int best = 0;
    for (int l = 1; l < kLanes; ++l) {
        const bool better =
            values[l] > values[best] || (values[l] == values[best] && places[l] < places[best]);
        best = better ? l : best;
    }
    return static_cast<std::int64_t>(places[best]);
}

// The best path of one sequence (Viterbi 1967), the first of equals; its score, NaN if the row has one.
template <class T>
double crf_best_path(const CrfRow<T>& r, std::int64_t* best, Team& team, int member) {
    const CrfWeights& w = r.w;
    const std::int64_t K = w.K, stride = w.stride, steps = r.steps, batch = r.p.batch;
    bool has_nan = false;
    for (std::int64_t t = 0; t < steps; ++t) {
        if (team.cancelled(member, r.work())) return 0;
        const T* const x = r.p.emissions + r.place(t);
        double* const a = r.lattice(t);
        if (t > 0) row_max_product(K, stride, r.lattice(t - 1), w.log_forward, a);
        for (std::int64_t j = 0; j < K; ++j) {
            const double before = t > 0 ? a[j] : at_least_never(r.p.start[j]);
            a[j] = at_least_never(before + static_cast<double>(x[j]));
            has_nan |= a[j] != a[j];
        }
    }
    double* const a = r.lattice(steps - 1);
    for (std::int64_t j = 0; j < K; ++j) a[j] += at_least_never(r.p.end[j]);
    std::int64_t tag = 0;
    for (std::int64_t j = 1; j < K; ++j) tag = a[j] > a[tag] ? j : tag;
    const double score = a[tag];
    for (std::int64_t t = steps - 1;; --t) {
        best[t * batch + r.b] = tag;
        if (t == 0) break;
        tag = largest_sum_at(K, r.lattice(t - 1), w.log_backward + tag * stride);
    }
    return has_nan || score != score ? __builtin_nan("")
           : score < 0.5 * kNever    ? -__builtin_huge_val()
                                     : score;
}

template <class T>
void crf_viterbi(const CrfArgs<T>& p, std::int64_t* best, double* scores, Team& team, void* workspace) {
    const CrfLayout layout(p.steps, p.batch, p.tags);
    Arena shared{static_cast<char*>(workspace)};
    CrfWeights w(shared, p.tags);
    prepare(p, w);
    parallel_ranges(team, p.batch, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena own{layout.member(workspace, member)}, none{nullptr};
        const CrfMemory memory(own, p.steps, w.stride);
        const CrfSums sums(none, 0, 0);
        for (std::int64_t b = begin; b < end; ++b) {
            if (team.cancelled(member, 1024)) return;
            const CrfRow<T> r{p, w, memory, sums, b, p.lengths[b]};
            for (std::int64_t t = r.steps; t < p.steps; ++t) best[t * p.batch + b] = -1;
            scores[b] = r.steps == 0 ? 0 : crf_best_path(r, best, team, member);
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
