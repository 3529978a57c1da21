// The additive score of keys whose exponentials are made once, for the queries of all steps:
//   tanh(k + q) = 1 - 2 t,   t = 1 / (1 + e^(2k) e^(2q))
// Of several panels the t come from one division: 1 / a = b (1 / (a b)). The sum of v is the same for all keys, and is left out
// of the energies. Queries so large that a factor would overflow take tanh itself (score.h).
#pragma once

#include "sequence/score.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Queries may be so large. Keys beyond `key` are as good as at it for each of these: t is 0 or 1 to the last digit. So it is
// at 1 / `most`, four of which can be multiplied.
template <class T>
struct FactorLimits {
    static constexpr T query = 30, key = sizeof(T) == 4 ? 40 : 52;
    static constexpr T most = sizeof(T) == 4 ? T(1ll << 31) : T(1ll << 60);
};

template <class T>
FUSEDRNN_INLINE Vec<T> key_factor(Vec<T> k) {
    using V = Vec<T>;
    constexpr T limit = FactorLimits<T>::key;
    return exp(V::set(2) * min(V::set(limit), max(V::set(-limit), k)));
}

template <class T>
struct FactoredScore {
    using V = Vec<T>;
    static constexpr int L = V::kLanes;
    const T *v, *factors;  // factors lie as the keys

    // As of AdditiveScore, but for a sum that all energies have.
    void energies(const Keys<T>& keys, const T* q, T* sums) const {
        if (!fits(keys, q)) return AdditiveScore<T, false>{v, {}}.energies(keys, q, sums);
        for_panels(keys, [&]<int P>(std::int64_t j) {
            V query[P], weight[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                query[p] = exp(V::set(2) * V::load(q + (j + p) * L));
                weight[p] = V::set(-2) * V::load(v + (j + p) * L);
            }
            const T* const k = factors + j * keys.panel;
            for (std::int64_t s = 0; s < keys.count; ++s) {
                V t[P], sum = j == 0 ? V::set(0) : V::load(sums + s * L);
                inverses(k + s * L, keys.panel, query, t);
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) sum = fma(weight[p], t[p], sum);
                sum.store(sums + s * L);
            }
        });
    }

    // As of AdditiveScore.
    void adjoint(const Keys<T>& keys, const T* q, const T* de, T* dq, std::int64_t dq_panel, T* dkeys, T* dv,
                 std::int64_t dv_panel) const {
        if (!fits(keys, q))
            return AdditiveScore<T, false>{v, {}}.adjoint(keys, q, de, dq, dq_panel, dkeys, dv, dv_panel, {});
        T total = 0;
        for (std::int64_t s = 0; s < keys.count; ++s) total += de[s];
        for_panels(keys, [&]<int P>(std::int64_t j) {
            V query[P], weight[P], query_sum[P], weight_sum[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                query[p] = exp(V::set(2) * V::load(q + (j + p) * L));
                weight[p] = V::set(4) * V::load(v + (j + p) * L);
                query_sum[p] = weight_sum[p] = V::set(0);
            }
            const T* const k = factors + j * keys.panel;
            T* const dk = dkeys + j * keys.panel;
            for (std::int64_t s = 0; s < keys.count; ++s) {
                const V e = V::set(de[s]);
                V t[P];
                inverses(k + s * L, keys.panel, query, t);
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) {
                    // 1 - tanh^2 = 4 t (1 - t)
                    const V et = e * t[p], d = weight[p] * (et - et * t[p]);
                    T* const to = dk + p * keys.panel + s * L;
                    weight_sum[p] = weight_sum[p] + et;
                    query_sum[p] = query_sum[p] + d;
                    (V::load(to) + d).store(to);
                }
            }
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                T* const to = dv + (j + p) * dv_panel;
                (V::load(to) + fma(V::set(-2), weight_sum[p], V::set(total))).store(to);
                query_sum[p].store(dq + (j + p) * dq_panel);
            }
        });
    }

  private:
    static bool fits(const Keys<T>& keys, const T* q) {
        V most = V::set(0);
        for (std::int64_t j = 0; j < keys.panels; ++j) most = max(most, abs(V::load(q + j * L)));
        return sum(select(less(V::set(FactorLimits<T>::query), most), V::set(1), V::set(0))) == 0;
    }

    // As many panels at a time as the registers hold.
    template <class Body>
    FUSEDRNN_INLINE static void for_panels(const Keys<T>& keys, const Body& body) {
        std::int64_t j = 0;
        if constexpr (kRegisters == 32) {
            for (; j + 4 <= keys.panels; j += 4) body.template operator()<4>(j);
        }
        for (; j + 2 <= keys.panels; j += 2) body.template operator()<2>(j);
        if (j < keys.panels) body.template operator()<1>(j);
    }

    // t of the same row in P panels.
    template <int P>
    FUSEDRNN_INLINE static void inverses(const T* k, std::int64_t panel, const V (&query)[P], V (&t)[P]) {
        const V one = V::set(1);
        V u[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p)
            u[p] = min(V::set(FactorLimits<T>::most), fma(V::load(k + p * panel), query[p], one));
        if constexpr (P == 1) {
            t[0] = one / u[0];
        } else if constexpr (P == 2) {
            const V both = one / (u[0] * u[1]);
            t[0] = u[1] * both, t[1] = u[0] * both;
        } else {
            const V first = u[0] * u[1], last = u[2] * u[3], all = one / (first * last);
            const V of_first = last * all, of_last = first * all;
            t[0] = u[1] * of_first, t[1] = u[0] * of_first;
            t[2] = u[3] * of_last, t[3] = u[2] * of_last;
        }
    }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
