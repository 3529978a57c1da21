// The energies of one query over the rows of one memory, and their adjoints.
//   additive (Bahdanau et al. 2014)   e_s = v . tanh(k_s + q)   tanh is computed again in backward
//   product (Luong, Pham and Manning 2015)   e_s = q . k_s
// Keys are in panels, [A/L][rows][L]: for each the sums over s stay in registers.
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

// With features of each row: k + q becomes k + q + W f_s.
template <class T>
struct Features {
    const T *weights, *values;  // [A/L][count][L], [count][row]
    std::int64_t count, row;
};
template <class T>
struct FeatureGradients {
    T *weights,
        *sums;  // [A/L]...[count][L], panels `panel` apart; [count][row][L], a vector of parts for each value
    std::int64_t panel;
};

template <class T, bool kFeatures>
struct AdditiveScore {
    using V = Vec<T>;
    static constexpr int L = V::kLanes;
    const T* v;
    Features<T> features;

    FUSEDRNN_INLINE V argument(V key, V query, std::int64_t j, std::int64_t s) const {
        V sum = key + query;
        if constexpr (kFeatures) {
            const T* const w = features.weights + j * features.count * L;
            for (std::int64_t c = 0; c < features.count; ++c)
                sum = fma(V::set(features.values[c * features.row + s]), V::load(w + c * L), sum);
        }
        return sum;
    }

    // e_s is the sum of the lanes of the vector s of `sums`.
    void energies(const Keys<T>& keys, const T* q, T* sums) const {
        for (std::int64_t j = 0; j < keys.panels; ++j) {
            const V query = V::load(q + j * L), weight = V::load(v + j * L);
            const T* const k = keys.first + j * keys.panel;
            if (j == 0) {
                for (std::int64_t s = 0; s < keys.count; ++s) {
                    (weight * tanh(argument(V::load(k + s * L), query, j, s))).store(sums + s * L);
                }
            } else {
                for (std::int64_t s = 0; s < keys.count; ++s) {
                    const V u = tanh(argument(V::load(k + s * L), query, j, s));
                    fma(weight, u, V::load(sums + s * L)).store(sums + s * L);
                }
            }
        }
    }

    // dq (panels of L, `dq_panel` apart) is set, dkeys (as the keys), dv (`dv_panel` apart) and those of features are added
    // to.
    void adjoint(const Keys<T>& keys, const T* q, const T* de, T* dq, std::int64_t dq_panel, T* dkeys, T* dv,
                 std::int64_t dv_panel, const FeatureGradients<T>& df) const {
        const V one = V::set(1);
        for (std::int64_t j = 0; j < keys.panels; ++j) {
            const V query = V::load(q + j * L), weight = V::load(v + j * L);
            const T* const k = keys.first + j * keys.panel;
            T* const dk = dkeys + j * keys.panel;
            V query_sum = V::set(0), weight_sum = V::load(dv + j * dv_panel);
            for (std::int64_t s = 0; s < keys.count; ++s) {
                const V u = tanh(argument(V::load(k + s * L), query, j, s)), e = V::set(de[s]);
                const V d = e * weight * (one - u * u);
                weight_sum = fma(e, u, weight_sum);
                query_sum = query_sum + d;
                (V::load(dk + s * L) + d).store(dk + s * L);
                if constexpr (kFeatures) feature_adjoint(d, j, s, df);
            }
            weight_sum.store(dv + j * dv_panel);
            query_sum.store(dq + j * dq_panel);
        }
    }

    FUSEDRNN_INLINE void feature_adjoint(V d, std::int64_t j, std::int64_t s,
                                         const FeatureGradients<T>& df) const {
        for (std::int64_t c = 0; c < features.count; ++c) {
            T* const dw = df.weights + j * df.panel + c * L;
            T* const sum = df.sums + (c * features.row + s) * L;
            fma(V::set(features.values[c * features.row + s]), d, V::load(dw)).store(dw);
            const V w = V::load(features.weights + (j * features.count + c) * L);
            (j == 0 ? w * d : fma(w, d, V::load(sum))).store(sum);
        }
    }
};

// Its adjoints are sums of rows: of keys for the query, of the queries of all steps for a key (attention.h).
template <class T>
struct ProductScore {
    using V = Vec<T>;
    static constexpr int L = V::kLanes;

    void energies(const Keys<T>& keys, const T* q, T* sums) const {
        std::int64_t j = 0;
        for (; j + 4 <= keys.panels; j += 4) add_panels<4>(keys, j, q, sums);
        for (; j < keys.panels; ++j) add_panels<1>(keys, j, q, sums);
    }

  private:
    // A few panels at once, so that the sums are seldom read and written.
    template <int P>
    FUSEDRNN_INLINE static void add_panels(const Keys<T>& keys, std::int64_t j, const T* q, T* sums) {
        V query[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) query[p] = V::load(q + (j + p) * L);
        const T* const k = keys.first + j * keys.panel;
        for (std::int64_t s = 0; s < keys.count; ++s) {
            V sum = j == 0 ? V::set(0) : V::load(sums + s * L);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) sum = fma(query[p], V::load(k + p * keys.panel + s * L), sum);
            sum.store(sums + s * L);
        }
    }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
