// The steps of the optimisers, element by element in the order of PyTorch's formulas. Every operation is rounded once,
// so that all instruction sets give the same bits.
#pragma once

#include "layers/layer_table.h"
#include "layers/parallel.h"
#include "layers/row.h"

namespace fusedrnn::FUSEDRNN_ISA {

// body(i, m) for the vectors of n elements, each member's part of them.
template <class T, class Body>
void parallel_vectors(Team& team, std::int64_t n, const Body& body) {
    constexpr std::int64_t kLine = 64;  // elements: a multiple of every vector and of the cache line
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        row_vectors<T>(end - begin, [&](std::int64_t i, int m) { body(begin + i, m); });
    });
}

// g = grad + weight_decay param;  buf = momentum buf + (1 - dampening) g, or g at first;
// param -= lr (g + momentum buf) if nesterov, lr buf with momentum, lr g without.
template <class T>
void sgd_step(std::int64_t n, T* param, const T* grad, T* momentum_buf, const SgdOptions& o, Team& team) {
    using V = Vec<T>;
    const V lr = V::set(static_cast<T>(o.lr)), decay = V::set(static_cast<T>(o.weight_decay));
    const V keep = V::set(static_cast<T>(o.momentum)), take = V::set(static_cast<T>(1 - o.dampening));
    parallel_vectors<T>(team, n, [&](std::int64_t i, int m) {
        const V p = load_up_to(param + i, m);
        V g = load_up_to(grad + i, m) + decay * p;
        if (momentum_buf != nullptr) {
            const V buf = o.first ? g : keep * load_up_to(momentum_buf + i, m) + take * g;
            store_up_to(buf, momentum_buf + i, m);
            g = o.nesterov ? g + keep * buf : buf;
        }
        store_up_to(p - lr * g, param + i, m);
    });
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

FUSEDRNN_INLINE double power(double base, std::int64_t exponent) {
    return __builtin_pow(base, static_cast<double>(exponent));
}

// Kingma & Ba 2014, arXiv:1412.6980v9; decoupled decay: Loshchilov & Hutter 2019, arXiv:1711.05101v3.
//   g = grad + weight_decay param, or param -= lr weight_decay param if decoupled
//   m += (1 - beta1) (g - m)   v = beta2 v + (1 - beta2) g^2
//   param -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
template <class T>
void adam_step(std::int64_t n, T* param, const T* grad, T* exp_avg, T* exp_avg_sq, const AdamOptions& o,
               Team& team) {
    using V = Vec<T>;
    const V shrink = V::set(static_cast<T>(o.decoupled ? 1 - o.lr * o.weight_decay : 1));
    const V decay = V::set(static_cast<T>(o.decoupled ? 0 : o.weight_decay));
    const V take1 = V::set(static_cast<T>(1 - o.beta1));
    const V keep2 = V::set(static_cast<T>(o.beta2)), take2 = V::set(static_cast<T>(1 - o.beta2));
    const V size = V::set(static_cast<T>(o.lr / (1 - power(o.beta1, o.step))));
    const V correction = V::set(static_cast<T>(__builtin_sqrt(1 - power(o.beta2, o.step))));
    const V eps = V::set(static_cast<T>(o.eps));
    parallel_vectors<T>(team, n, [&](std::int64_t i, int lanes) {
        const V p = load_up_to(param + i, lanes), g = load_up_to(grad + i, lanes) + decay * p;
        const V m_old = load_up_to(exp_avg + i, lanes), v_old = load_up_to(exp_avg_sq + i, lanes);
        const V m = m_old + take1 * (g - m_old), v = keep2 * v_old + take2 * g * g;
        store_up_to(m, exp_avg + i, lanes);
        store_up_to(v, exp_avg_sq + i, lanes);
        store_up_to(shrink * p - size * (m / (root(v) / correction + eps)), param + i, lanes);
    });
}

template <class T>
void scale(std::int64_t n, T* x, double factor, Team& team) {
    const Vec<T> f = Vec<T>::set(static_cast<T>(factor));
    parallel_vectors<T>(team, n,
                        [&](std::int64_t i, int m) { store_up_to(load_up_to(x + i, m) * f, x + i, m); });
}

// NaN stays.
template <class T>
void clamp(std::int64_t n, T* x, double lo, double hi, Team& team) {
    using V = Vec<T>;
    const V low = V::set(static_cast<T>(lo)), high = V::set(static_cast<T>(hi));
    parallel_vectors<T>(team, n, [&](std::int64_t i, int m) {
        store_up_to(min(high, max(low, load_up_to(x + i, m))), x + i, m);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
