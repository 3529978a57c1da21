// Attention of one query over the rows of one memory: alpha = softmax(e), c = sum_s alpha_s m_s, e the energies of a score.
#pragma once

#include "sequence/score.h"

namespace fusedrnn::FUSEDRNN_ISA {

// alpha (count, then zeros to the whole vector) of the energies of a score; `sums` has a vector for each row.
template <class T, class Energies>
void attend(const Energies& score, const Keys<T>& keys, const T* q, T* sums, T* alpha) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    score.energies(keys, q, sums);
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

// dalpha_s = dc . m_s, and `extra` (count, or null) besides.
template <class T>
void attention_gradients(const T* m, std::int64_t stride, std::int64_t count, const T* dc, const T* extra,
                         T* dalpha) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    for (std::int64_t s = 0; s < count; ++s) {
        const T* const row = m + s * stride;
        V even = V::set(0), odd = V::set(0);
        std::int64_t j = 0;
        for (; j + 2 * L <= stride; j += 2 * L) {
            even = fma(V::load(row + j), V::load(dc + j), even);
            odd = fma(V::load(row + j + L), V::load(dc + j + L), odd);
        }
        if (j < stride) even = fma(V::load(row + j), V::load(dc + j), even);
        dalpha[s] = sum(even + odd) + (extra == nullptr ? T(0) : extra[s]);
    }
}

// The gradient de of the energies from that of alpha, in place: de_s = alpha_s (dalpha_s - sum over s' of alpha_s' dalpha_s').
template <class T>
void energy_gradients(std::int64_t count, const T* alpha, T* de) {
    T mean = 0;
    for (std::int64_t s = 0; s < count; ++s) mean += alpha[s] * de[s];
    for (std::int64_t s = 0; s < count; ++s) de[s] = alpha[s] * (de[s] - mean);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
