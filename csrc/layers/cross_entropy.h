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
template <class Threads, class T>
FUSEDRNN_KERNEL_INLINE T row_max(std::int64_t width, const T* x) {
    constexpr T kLowest = -static_cast<T>(__builtin_huge_val());
    Vec<T> most = Vec<T>::set(kLowest);
    row_vectors<T, Threads>(width, [&](std::int64_t c, int m) {
        most = max(m == Vec<T>::kLanes ? Vec<T>::load(x + c) : load_filled(x + c, m, kLowest), most);
    });
    T lanes[Vec<T>::kLanes], result = kLowest;
    most.store(lanes);
    for (const T lane : lanes) result = lane > result ? lane : result;
    return Threads::largest(result);
}

template <class T>
FUSEDRNN_INLINE double class_weight(const CrossEntropyArgs<T>& p, std::int64_t c) {
    return p.weight == nullptr ? p.unit : static_cast<double>(p.weight[c]);
}

// share sum_c w_c (most - x_c). Its terms may overflow in T though the loss does not, and a class without weight counts
// nothing even where its logit is infinite: then element by element, in halves.
template <class Threads, class T>
FUSEDRNN_KERNEL_INLINE double smoothing_loss(const CrossEntropyArgs<T>& p, const T* x, T most, double share) {
    using V = Vec<T>;
    const V shift = V::set(most);
    const T distances = row_sum<T, Threads>(p.classes, [&](std::int64_t c, int m) {
        const V distance = shift - (m == V::kLanes ? V::load(x + c) : load_filled(x + c, m, most));
        return p.weight == nullptr ? distance : distance * load_up_to(p.weight + c, m);
    });
    if (distances - distances == 0) {
        return share * (p.weight == nullptr ? p.unit : 1) * static_cast<double>(distances);
    }
    double half = 0;
    for (std::int64_t c = 0; c < p.classes; ++c) {
        const double w = share * class_weight(p, c);
        if (w != 0) half += w * (0.5 * static_cast<double>(most) - 0.5 * static_cast<double>(x[c]));
    }
    return 2 * half;
}

// share_sum: what smoothing spreads over all classes.
template <class Threads, class T>
FUSEDRNN_KERNEL_CODE void cross_entropy_row(const CrossEntropyArgs<T>& p, double share_sum, std::int64_t r) {
    using V = Vec<T>;
    const std::int64_t classes = p.classes, target = p.targets[r];
    const T* x = p.logits + r * classes;
    T* dx = p.dlogits + r * classes;
    const double share = p.label_smoothing / static_cast<double>(classes);
    const double hard = target == p.ignore_index ? 0 : (1.0 - p.label_smoothing) * class_weight(p, target);
    if (target == p.ignore_index || (hard == 0 && share == 0)) {
        if (Threads::owns(0)) p.losses[r] = 0;
        row_vectors<T, Threads>(classes, [&](std::int64_t c, int m) { store_up_to(V::set(0), dx + c, m); });
        return;
    }
    const T most = row_max<Threads>(classes, x);
    const V shift = V::set(most);
    const T sum_exp = row_sum<T, Threads>(classes, [&](std::int64_t c, int m) {
        store_up_to(exp_nonpositive(load_up_to(x + c, m) - shift), dx + c, m);
        return load_up_to(dx + c, m);
    });
    double loss = (hard + share_sum) * __builtin_log(static_cast<double>(sum_exp));
    if (hard != 0) {
        loss += 2 * (hard * (0.5 * static_cast<double>(most) - 0.5 * static_cast<double>(x[target])));
    }
    if (share > 0) loss += smoothing_loss<Threads>(p, x, most, share);
    if (Threads::owns(0)) p.losses[r] = loss;
    const V scale = V::set(static_cast<T>((hard + share_sum) / static_cast<double>(sum_exp)));
    const V part = V::set(static_cast<T>(share * (p.weight == nullptr ? p.unit : 1)));
    row_vectors<T, Threads>(classes, [&](std::int64_t c, int m) {
        V v = load_up_to(dx + c, m) * scale;
        if (share > 0) v = v - (p.weight == nullptr ? part : part * load_up_to(p.weight + c, m));
        store_up_to(v, dx + c, m);
    });
    if (Threads::owns(target)) dx[target] -= static_cast<T>(hard);
}

template <class T>
void cross_entropy(const CrossEntropyArgs<T>& p, Team& team) {
    const double share = p.label_smoothing / static_cast<double>(p.classes);
    double share_sum = p.label_smoothing * p.unit;
    if (p.weight != nullptr) {
        share_sum = 0;
        for (std::int64_t c = 0; c < p.classes; ++c) share_sum += share * class_weight(p, c);
    }
    interruptible_blocks(team, p.n, rows_per_block(p.classes), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) cross_entropy_row<OneThread>(p, share_sum, r);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
