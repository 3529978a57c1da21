// The steps of the optimisers, element by element in the order of PyTorch's formulas. Plain loops, which the compiler
// turns into vectors: every operation is rounded once, so that all instruction sets give the same bits.
#pragma once

#include "layers/layer_table.h"
#include "layers/parallel.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kLine = 64;  // borders between members, in elements

// g = grad + weight_decay param;  buf = momentum buf + (1 - dampening) g, or g at first;
// param -= lr (g + momentum buf) if nesterov, lr buf with momentum, lr g without.
template <class T>
void sgd_step(std::int64_t n, T* param, const T* grad, T* momentum_buf, const SgdOptions& o, Team& team) {
    const T lr = static_cast<T>(o.lr), decay = static_cast<T>(o.weight_decay);
    const T momentum = static_cast<T>(o.momentum);
    const T keep = o.first ? T(0) : momentum, take = o.first ? T(1) : static_cast<T>(1 - o.dampening);
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        T* __restrict p = param;
        const T* __restrict d = grad;
        T* __restrict buf = momentum_buf;
        if (buf == nullptr) {
            for (std::int64_t i = begin; i < end; ++i) p[i] -= lr * (d[i] + decay * p[i]);
            return;
        }
        if (o.first) {
            for (std::int64_t i = begin; i < end; ++i) buf[i] = 0;
        }
        if (o.nesterov) {
            for (std::int64_t i = begin; i < end; ++i) {
                const T g = d[i] + decay * p[i];
                buf[i] = keep * buf[i] + take * g;
                p[i] -= lr * (g + momentum * buf[i]);
            }
        } else {
            for (std::int64_t i = begin; i < end; ++i) {
                buf[i] = keep * buf[i] + take * (d[i] + decay * p[i]);
                p[i] -= lr * buf[i];
            }
        }
    });
}

FUSEDRNN_INLINE double power(double base, std::int64_t exponent) {
    return __builtin_pow(base, static_cast<double>(exponent));
}

FUSEDRNN_INLINE float root(float x) { return __builtin_sqrtf(x); }
FUSEDRNN_INLINE double root(double x) { return __builtin_sqrt(x); }

// Kingma & Ba 2014, arXiv:1412.6980v9; decoupled decay: Loshchilov & Hutter 2019, arXiv:1711.05101v3.
//   g = grad + weight_decay param, or param -= lr weight_decay param if decoupled
//   m += (1 - beta1) (g - m)   v = beta2 v + (1 - beta2) g^2
//   param -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
template <class T>
void adam_step(std::int64_t n, T* param, const T* grad, T* exp_avg, T* exp_avg_sq, const AdamOptions& o, Team& team) {
    const T shrink = static_cast<T>(o.decoupled ? 1 - o.lr * o.weight_decay : 1);
    const T decay = static_cast<T>(o.decoupled ? 0 : o.weight_decay);
    const T take1 = static_cast<T>(1 - o.beta1), keep2 = static_cast<T>(o.beta2), take2 = static_cast<T>(1 - o.beta2);
    const T size = static_cast<T>(o.lr / (1 - power(o.beta1, o.step)));
    const T correction = static_cast<T>(__builtin_sqrt(1 - power(o.beta2, o.step)));
    const T eps = static_cast<T>(o.eps);
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        T* __restrict p = param;
        const T* __restrict d = grad;
        T* __restrict m = exp_avg;
        T* __restrict v = exp_avg_sq;
        for (std::int64_t i = begin; i < end; ++i) {
            const T g = d[i] + decay * p[i];
            const T m_next = m[i] + take1 * (g - m[i]);
            const T v_next = keep2 * v[i] + take2 * g * g;
            m[i] = m_next;
            v[i] = v_next;
            p[i] = shrink * p[i] - size * (m_next / (root(v_next) / correction + eps));
        }
    });
}

template <class T>
void scale(std::int64_t n, T* x, double factor, Team& team) {
    const T f = static_cast<T>(factor);
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) x[i] *= f;
    });
}

// NaN stays.
template <class T>
void clamp(std::int64_t n, T* x, double lo, double hi, Team& team) {
    const T low = static_cast<T>(lo), high = static_cast<T>(hi);
    parallel_ranges(team, n, kLine, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) x[i] = x[i] < low ? low : (x[i] > high ? high : x[i]);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
