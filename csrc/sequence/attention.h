// Additive attention of one query over the rows of one memory (Bahdanau et al. 2014):
//   e_s = v . tanh(k_s + q)   alpha = softmax(e)   c = sum_s alpha_s m_s
// Keys are in panels, [A/L][rows][L]: for each the sum over s stays in registers. tanh is computed again in backward.
#pragma once

#include "activations.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct Keys {
    const T* first;      // the first row of panel 0
    std::int64_t panel;  // from one panel to the next
    std::int64_t panels, count;
};

// alpha (count, then zeros to the whole vector); `sums` has a vector for each row.
template <class T>
void attend(const Keys<T>& keys, const T* q, const T* v, T* sums, T* alpha) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    for (std::int64_t j = 0; j < keys.panels; ++j) {
        const V query = V::load(q + j * L), weight = V::load(v + j * L);
        const T* const k = keys.first + j * keys.panel;
        if (j == 0) {
            for (std::int64_t s = 0; s < keys.count; ++s) {
                (weight * tanh(V::load(k + s * L) + query)).store(sums + s * L);
            }
        } else {
            for (std::int64_t s = 0; s < keys.count; ++s) {
                fma(weight, tanh(V::load(k + s * L) + query), V::load(sums + s * L)).store(sums + s * L);
            }
        }
    }
    T most = -static_cast<T>(__builtin_huge_val());
    for (std::int64_t s = 0; s < keys.count; ++s) {
        alpha[s] = sum(V::load(sums + s * L));
        most = alpha[s] > most ? alpha[s] : most;
    }
    const std::int64_t whole = padded<T>(keys.count);
    for (std::int64_t s = keys.count; s < whole; ++s) alpha[s] = -static_cast<T>(__builtin_huge_val());
    V total = V::set(0);
    for (std::int64_t s = 0; s < whole; s += L) {
        const V e = exp_nonpositive(V::load(alpha + s) - V::set(most));
        e.store(alpha + s);
        total = total + e;
    }
    const V share = V::set(1 / sum(total));
    for (std::int64_t s = 0; s < whole; s += L) (V::load(alpha + s) * share).store(alpha + s);
    for (std::int64_t s = keys.count; s < whole; ++s) alpha[s] = 0;
}

// U vectors of c = sum_s alpha_s m_s, m being rows of `stride`.
template <class T, int U>
FUSEDRNN_INLINE void weighted_rows(const T* m, std::int64_t stride, std::int64_t count, const T* alpha,
                                   T* c) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    V acc[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[u] = V::set(0);
    for (std::int64_t s = 0; s < count; ++s) {
        const V a = V::set(alpha[s]);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) acc[u] = fma(a, V::load(m + s * stride + u * L), acc[u]);
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[u].store(c + u * L);
}

template <class T>
void context(const T* m, std::int64_t stride, std::int64_t count, const T* alpha, T* c) {
    constexpr int L = Vec<T>::kLanes, kAtOnce = 8;
    std::int64_t j = 0;
    for (; j + kAtOnce * L <= stride; j += kAtOnce * L)
        weighted_rows<T, kAtOnce>(m + j, stride, count, alpha, c + j);
    for (; j < stride; j += L) weighted_rows<T, 1>(m + j, stride, count, alpha, c + j);
}

// The gradient de of the energies: dalpha_s = dc . m_s, and `extra` (count, or null) besides; de_s = alpha_s (dalpha_s - sum
// over s' of alpha_s' dalpha_s').
template <class T>
void energy_gradients(const T* m, std::int64_t stride, std::int64_t count, const T* alpha, const T* dc,
                      const T* extra, T* de) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    T mean = 0;
    for (std::int64_t s = 0; s < count; ++s) {
        const T* const row = m + s * stride;
        V even = V::set(0), odd = V::set(0);
        std::int64_t j = 0;
        for (; j + 2 * L <= stride; j += 2 * L) {
            even = fma(V::load(row + j), V::load(dc + j), even);
            odd = fma(V::load(row + j + L), V::load(dc + j + L), odd);
        }
        if (j < stride) even = fma(V::load(row + j), V::load(dc + j), even);
        de[s] = sum(even + odd) + (extra == nullptr ? T(0) : extra[s]);
        mean += alpha[s] * de[s];
    }
    for (std::int64_t s = 0; s < count; ++s) de[s] = alpha[s] * (de[s] - mean);
}

// Back through the energies: dq (panels of L, `dq_panel` apart) is set, dkeys (as the keys) and dv (`dv_panel` apart) are
// added to.
template <class T>
void attend_backward(const Keys<T>& keys, const T* q, const T* v, const T* de, T* dq, std::int64_t dq_panel,
                     T* dkeys, T* dv, std::int64_t dv_panel) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    const V one = V::set(1);
    for (std::int64_t j = 0; j < keys.panels; ++j) {
        const V query = V::load(q + j * L), weight = V::load(v + j * L);
        const T* const k = keys.first + j * keys.panel;
        T* const dk = dkeys + j * keys.panel;
        V query_sum = V::set(0), weight_sum = V::load(dv + j * dv_panel);
        for (std::int64_t s = 0; s < keys.count; ++s) {
            const V u = tanh(V::load(k + s * L) + query), e = V::set(de[s]);
            const V d = e * weight * (one - u * u);
            weight_sum = fma(e, u, weight_sum);
            query_sum = query_sum + d;
            (V::load(dk + s * L) + d).store(dk + s * L);
        }
        weight_sum.store(dv + j * dv_panel);
        query_sum.store(dq + j * dq_panel);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
