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

// Rows of a matrix in vectors: the vector u of row s at first + u * panel + s * row.
template <class T>
struct RowVectors {
    const T* first;
    std::int64_t panel, row, panels, count;
};

// U vectors from j on of c = sum_s alpha_s m_s, `c_panel` apart.
template <class T, int U>
FUSEDRNN_INLINE void weighted_vectors(const RowVectors<T>& m, std::int64_t j, const T* alpha, T* c,
                                      std::int64_t c_panel) {
    using V = Vec<T>;
    V acc[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[u] = V::set(0);
    const T* from = m.first + j * m.panel;
    for (std::int64_t s = 0; s < m.count; ++s, from += m.row) {
        const V a = V::set(alpha[s]);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) acc[u] = fma(a, V::load(from + u * m.panel), acc[u]);
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[u].store(c + (j + u) * c_panel);
}

// c = sum_s alpha_s m_s: the context, and of keys the gradient of a query.
template <class T>
void weighted_sum(const RowVectors<T>& m, const T* alpha, T* c, std::int64_t c_panel) {
    std::int64_t j = 0;
    for (; j + 8 <= m.panels; j += 8) weighted_vectors<T, 8>(m, j, alpha, c, c_panel);
    for (; j < m.panels; ++j) weighted_vectors<T, 1>(m, j, alpha, c, c_panel);
}

// R rows of dalpha from s on.
template <class T, int R>
FUSEDRNN_INLINE void attention_gradient_rows(const T* m, std::int64_t stride, std::int64_t s, const T* dc,
                                             const T* extra, T* dalpha) {
    using V = Vec<T>;
    V acc[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r] = V::set(0);
    for (std::int64_t j = 0; j < stride; j += V::kLanes) {
        const V d = V::load(dc + j);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[r] = fma(V::load(m + (s + r) * stride + j), d, acc[r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) dalpha[s + r] = sum(acc[r]) + (extra == nullptr ? T(0) : extra[s + r]);
}

// dalpha_s = dc . m_s, and `extra` (count, or null) besides.
template <class T>
void attention_gradients(const T* m, std::int64_t stride, std::int64_t count, const T* dc, const T* extra,
                         T* dalpha) {
    std::int64_t s = 0;
    for (; s + 4 <= count; s += 4) attention_gradient_rows<T, 4>(m, stride, s, dc, extra, dalpha);
    for (; s < count; ++s) attention_gradient_rows<T, 1>(m, stride, s, dc, extra, dalpha);
}

// R keys from s on, U panels from j on.
template <class T, int R, int U>
FUSEDRNN_INLINE void key_tile(std::int64_t steps, const T* const* de, const T* const* q, std::int64_t s,
                              std::int64_t j, T* dkeys, std::int64_t panel) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    V acc[R][U];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) acc[r][u] = V::set(0);
    }
    for (std::int64_t t = 0; t < steps; ++t) {
        V query[U];
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) query[u] = V::load(q[t] + (j + u) * L);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const V e = V::set(de[t][s + r]);
#pragma GCC unroll 2
            for (int u = 0; u < U; ++u) acc[r][u] = fma(e, query[u], acc[r][u]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) acc[r][u].store(dkeys + (j + u) * panel + (s + r) * L);
    }
}

// dk_s = sum_t de_t,s q_t of products with the queries of all steps; dk lies as the keys.
template <class T>
void key_gradients(std::int64_t steps, const T* const* de, const T* const* q, std::int64_t count,
                   std::int64_t panels, T* dkeys, std::int64_t panel) {
    constexpr int R = kRegisters == 32 ? 8 : 4;
    for (std::int64_t s = 0; s < count;) {
        const bool tile = s + R <= count;
        for (std::int64_t j = 0; j < panels;) {
            const bool two = j + 2 <= panels;
            if (two) {
                tile ? key_tile<T, R, 2>(steps, de, q, s, j, dkeys, panel)
                     : key_tile<T, 1, 2>(steps, de, q, s, j, dkeys, panel);
            } else {
                tile ? key_tile<T, R, 1>(steps, de, q, s, j, dkeys, panel)
                     : key_tile<T, 1, 1>(steps, de, q, s, j, dkeys, panel);
            }
            j += two ? 2 : 1;
        }
        s += tile ? R : 1;
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
