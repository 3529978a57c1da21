// The likeliest continuations of the hypotheses of one sequence, of a beam search.
#pragma once

#include "activations.h"
#include "layers/cross_entropy.h"
#include "sequence/best.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct Hypotheses {
    std::int64_t n, classes, stride;
    const T* logits;              // (n, V), rows of them `stride` apart
    const double* totals;         // (n)
    const std::uint8_t* allowed;  // (n, V), which tokens may come next; null for all
};

// Of which the scratch of `continuations` has room.
inline std::int64_t continuation_scratch(std::int64_t classes) { return classes + Vec<double>::kLanes; }

// Scores of all continuations, hypothesis by hypothesis and token by token, into the best of them, each from hypothesis * V +
// token. False where a logit is NaN or inf. e is scratch.
template <class T>
bool continuations(const Hypotheses<T>& p, const Best& best, double* e) {
    using V = Vec<double>;
    constexpr int L = V::kLanes;
    constexpr double kInfinity = __builtin_huge_val();
    const std::int64_t whole = (p.classes + L - 1) / L * L;
    for (std::int64_t c = p.classes; c < whole; ++c) e[c] = -kInfinity;
    best.clear();
    bool good = true;
    for (std::int64_t r = 0; r < p.n; ++r) {
        const T* const x = p.logits + r * p.stride;
        int above = 0;
        for (std::int64_t c = 0; c < p.classes; ++c) {
            e[c] = static_cast<double>(x[c]);
            above |= x[c] < static_cast<T>(kInfinity) ? 0 : 1;
        }
        good &= above == 0;
        const double most = row_max<OneThread>(whole, e);
        const V shift = V::set(most);
        const double sum = row_sum<double>(
            whole, [&](std::int64_t c, int) { return exp_nonpositive(V::load(e + c) - shift); });
        const double offset = p.totals[r] - most - __builtin_log(sum);
        if (!(offset + most > best.scores[best.n - 1])) continue;
        const std::uint8_t* const allowed = p.allowed == nullptr ? nullptr : p.allowed + r * p.classes;
        for (std::int64_t c = 0; c < p.classes; ++c) {
            if (allowed == nullptr || allowed[c] != 0) best.add(offset + e[c], r * p.classes + c);
        }
    }
    return good;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
