// Cross-entropy of a softmax, and its gradient. With p = softmax(logits), target t, class weights w (1 where absent),
// smoothing s and C classes, each row that is not ignored has
//   loss       = -(1 - s) w_t log p_t - s/C sum_c w_c log p_c
//   dlogits_c  = p_c ((1 - s) w_t + s/C sum_k w_k) - (1 - s) w_t [c = t] - s/C w_c
#pragma once

#include "activations.h"
#include "layers/layer_table.h"
#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The largest element; NaN is passed over.
template <class T>
FUSEDRNN_INLINE T row_max(std::int64_t width, const T* x) {
    constexpr T kLowest = -static_cast<T>(__builtin_huge_val());
    Vec<T> most = Vec<T>::set(kLowest);
    row_vectors<T>(width, [&](std::int64_t c, int m) {
        most = max(m == Vec<T>::kLanes ? Vec<T>::load(x + c) : load_filled(x + c, m, kLowest), most);
    });
    T lanes[Vec<T>::kLanes], result = kLowest;
    most.store(lanes);
    for (const T lane : lanes) result = lane > result ? lane : result;
    return result;
}

template <class T>
void cross_entropy_row(const CrossEntropyArgs<T>& p, double weight_sum, std::int64_t r) {
    using V = Vec<T>;
    const std::int64_t classes = p.classes, target = p.targets[r];
    const T* x = p.logits + r * classes;
    T* dx = p.dlogits + r * classes;
    if (target == p.ignore_index) {
        p.losses[r] = p.weights[r] = 0;
        row_vectors<T>(classes, [&](std::int64_t c, int m) { store_up_to(V::set(0), dx + c, m); });
        return;
    }
    const T most = row_max(classes, x);
    const V shift = V::set(most);
    const T sum_exp = row_sum<T>(classes, [&](std::int64_t c, int m) {
        store_up_to(exp_nonpositive(load_up_to(x + c, m) - shift), dx + c, m);
        return load_up_to(dx + c, m);
    });
    const double w_target = p.weight == nullptr ? 1.0 : static_cast<double>(p.weight[target]);
    const double smooth = p.label_smoothing / static_cast<double>(classes), hard = 1.0 - p.label_smoothing;
    const double log_sum = __builtin_log(static_cast<double>(sum_exp));
    double loss = hard * w_target * (log_sum - (static_cast<double>(x[target]) - static_cast<double>(most)));
    if (smooth > 0) {
        const T sum_x = row_sum<T>(classes, [&](std::int64_t c, int m) {
            const V distance = (m == V::kLanes ? V::load(x + c) : load_filled(x + c, m, most)) - shift;
            return p.weight == nullptr ? distance : distance * load_up_to(p.weight + c, m);
        });
        loss += smooth * (weight_sum * log_sum - static_cast<double>(sum_x));
    }
    p.losses[r] = static_cast<T>(loss);
    p.weights[r] = static_cast<T>(w_target);
    const V scale =
        V::set(static_cast<T>((hard * w_target + smooth * weight_sum) / static_cast<double>(sum_exp)));
    const V share = V::set(static_cast<T>(smooth));
    row_vectors<T>(classes, [&](std::int64_t c, int m) {
        V v = load_up_to(dx + c, m) * scale;
        if (smooth > 0) v = v - (p.weight == nullptr ? share : share * load_up_to(p.weight + c, m));
        store_up_to(v, dx + c, m);
    });
    dx[target] -= static_cast<T>(hard * w_target);
}

template <class T>
void cross_entropy(const CrossEntropyArgs<T>& p, Team& team) {
    double weight_sum = static_cast<double>(p.classes);
    if (p.weight != nullptr) {
        weight_sum = 0;
        for (std::int64_t c = 0; c < p.classes; ++c) weight_sum += static_cast<double>(p.weight[c]);
    }
    interruptible_blocks(team, p.n, rows_per_block(p.classes), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) cross_entropy_row(p, weight_sum, r);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
