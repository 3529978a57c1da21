// The steps of the optimisers, element by element in the order of PyTorch's formulas. Every operation is rounded once,
// so that all instruction sets give the same bits.
#pragma once

#include "layers/layer_table.h"
#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kLine = 64;  // elements: a multiple of every vector and of the cache line

// body(i, m) for the vectors of n elements, each member's part of them.
template <class T, class Body>
void parallel_vectors(Team& team, std::int64_t n, const Body& body) {
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        // A copy: what lies in memory, or is captured by reference, is read again after every store.
        row_vectors<T>(end - begin, [body, begin](std::int64_t i, int m) { body(begin + i, m); });
    });
}

template <class T>
inline constexpr double kLeastNormal = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;
template <class T>
inline constexpr T kMost = static_cast<T>(sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023);
template <class T>
inline constexpr T kSmallUnit = static_cast<T>(sizeof(T) == 4 ? 0x1p-64 : 0x1p-512);

// g = grad + weight_decay param;  buf = momentum buf + (1 - dampening) g, or g at first;
// param -= lr (g + momentum buf) if nesterov, lr buf with momentum, lr g without.
// Returns update(i, m), which does so for the m elements from i on.
template <class T>
FUSEDRNN_KERNEL_INLINE auto sgd_update(T* param, const T* grad, T* momentum_buf, const SgdOptions& o) {
    using V = Vec<T>;
    // A rate too small for T is taken in two factors: times a large gradient it is not 0.
    const bool small = o.lr < kLeastNormal<T>;
    const V unit = V::set(kSmallUnit<T>);
    const V lr = V::set(static_cast<T>(small ? o.lr / static_cast<double>(kSmallUnit<T>) : o.lr));
    const V decay = V::set(static_cast<T>(o.weight_decay));
    const bool first = o.first, nesterov = o.nesterov;
    const V keep = V::set(static_cast<T>(o.momentum)), take = V::set(static_cast<T>(1 - o.dampening));
    return [=](std::int64_t i, int m) {
        const V p = load_up_to(param + i, m);
        V g = load_up_to(grad + i, m) + decay * p;
        if (momentum_buf != nullptr) {
            const V buf = first ? g : keep * load_up_to(momentum_buf + i, m) + take * g;
            store_up_to(buf, momentum_buf + i, m);
            g = nesterov ? g + keep * buf : buf;
        }
        store_up_to(p - (small ? lr * (g * unit) : lr * g), param + i, m);
    };
}

template <class T>
void sgd_step(std::int64_t n, T* param, const T* grad, T* momentum_buf, const SgdOptions& o, Team& team) {
    parallel_vectors<T>(team, n, sgd_update(param, grad, momentum_buf, o));
}

FUSEDRNN_INLINE float root(float x) { return __builtin_sqrtf(x); }
FUSEDRNN_INLINE double root(double x) { return __builtin_sqrt(x); }

// The square root of every lane: compilers make one instruction of it.
template <class T>
FUSEDRNN_INLINE Vec<T> root(Vec<T> x) {
    T lanes[Vec<T>::kLanes];
    x.store(lanes);
    for (T& lane : lanes) lane = root(lane);
    return Vec<T>::load(lanes);
}

// What is left of the first steps' zeros in the averages of Adam: 1 - beta^step.
struct AdamBias {
    double first, second;
};
inline __attribute__((always_inline)) AdamBias adam_bias(const AdamOptions& o) {
    const double step = static_cast<double>(o.step);
    return {1 - __builtin_pow(o.beta1, step), 1 - __builtin_pow(o.beta2, step)};
}

// Kingma & Ba 2014, arXiv:1412.6980v9; decoupled decay: Loshchilov & Hutter 2019, arXiv:1711.05101v3.
//   g = grad + weight_decay param, or param -= lr weight_decay param if decoupled
//   m += (1 - beta1) (g - m)   v = beta2 v + (1 - beta2) g^2
//   param -= lr c / (1 - beta1^step) m / (sqrt(v) + c eps)   c = sqrt(1 - beta2^step)
// An element whose v overflows is left alone. Returns update(largest, i, lanes), which does so for the elements from i on
// and collects the largest v.
template <class T>
FUSEDRNN_KERNEL_INLINE auto adam_update(T* param, const T* grad, T* exp_avg, T* exp_avg_sq,
                                        const AdamOptions& o, const AdamBias& bias) {
    using V = Vec<T>;
    const V shrink = V::set(static_cast<T>(o.decoupled ? 1 - o.lr * o.weight_decay : 1));
    const V decay = V::set(static_cast<T>(o.decoupled ? 0 : o.weight_decay));
    const V take1 = V::set(static_cast<T>(1 - o.beta1));
    const V keep2 = V::set(static_cast<T>(o.beta2)), take2 = V::set(static_cast<T>(1 - o.beta2));
    const double correction = __builtin_sqrt(bias.second);
    const V size = V::set(static_cast<T>(o.lr * correction / bias.first));
    const V eps = V::set(static_cast<T>(o.eps * correction));
    const V most = V::set(kMost<T>);
    return [=](V& largest, std::int64_t i, int lanes) {
        const V p = load_up_to(param + i, lanes), g = load_up_to(grad + i, lanes) + decay * p;
        const V m_old = load_up_to(exp_avg + i, lanes), v_old = load_up_to(exp_avg_sq + i, lanes);
        const V m = m_old + take1 * (g - m_old), v = keep2 * v_old + take2 * g * g;
        const auto lost = less(most, v);  // NaN is not, and stays
        largest = max(v, largest);
        store_up_to(select(lost, m_old, m), exp_avg + i, lanes);
        store_up_to(select(lost, v_old, v), exp_avg_sq + i, lanes);
        const V moved = shrink * p - size * (m / (root(v) + eps));
        store_up_to(select(lost, p, moved), param + i, lanes);
    };
}

// Returns whether no v overflowed.
template <class T>
bool adam_step(std::int64_t n, T* param, const T* grad, T* exp_avg, T* exp_avg_sq, const AdamOptions& o,
               Team& team) {
    using V = Vec<T>;
    const auto update = adam_update(param, grad, exp_avg, exp_avg_sq, o, adam_bias(o));
    bool overflowed = false;
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        V largest = V::set(0);
        row_vectors<T>(end - begin,
                       [update, begin, &largest](std::int64_t i, int m) { update(largest, begin + i, m); });
        T lanes[V::kLanes];
        largest.store(lanes);
        for (const T lane : lanes) {
            if (lane > kMost<T>) __atomic_store_n(&overflowed, true, __ATOMIC_RELAXED);
        }
    });
    return !overflowed;
}

template <class T>
void scale(std::int64_t n, T* x, double factor, Team& team) {
    const Vec<T> f = Vec<T>::set(static_cast<T>(factor));
    parallel_vectors<T>(team, n,
                        [=](std::int64_t i, int m) { store_up_to(load_up_to(x + i, m) * f, x + i, m); });
}

// NaN stays.
template <class T>
void clamp(std::int64_t n, T* x, double lo, double hi, Team& team) {
    using V = Vec<T>;
    const V low = V::set(static_cast<T>(lo)), high = V::set(static_cast<T>(hi));
    parallel_vectors<T>(team, n, [=](std::int64_t i, int m) {
        store_up_to(min(high, max(low, load_up_to(x + i, m))), x + i, m);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
