// The attention of a mixture of Gaussian windows that move along the memory (Graves 2013, arXiv:1308.0850): of K windows
//   kappa_k = kappa_(t-1),k + exp(kappa'_k)    phi_s = sum_k alpha_k exp(-beta_k (kappa_k - u)^2)    u = s + 1
// where alpha, beta and exp(kappa') are the exponentials of a query of 3 K values, in this order.
#pragma once

#include "activations.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
class Windows {
  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = V::kLanes;

    Windows(std::int64_t windows, std::int64_t row, Arena& arena)
        : K_(windows), row_(windows > 0 ? row : 0), places_(arena.take<T>(row_)) {}
    // Before all else: the places u, by s.
    void begin() const {
        for (std::int64_t s = 0; s < row_; ++s) places_[s] = static_cast<T>(s + 1);
    }

    // The query's values become their exponentials, centres those after the step, phi (whole vectors) is 0 past `count`.
    void attend(T* query, std::int64_t width, const T* before, std::int64_t count, T* centres, T* phi) const {
        for (std::int64_t i = 0; i < width; i += L) exp(V::load(query + i)).store(query + i);
        for (std::int64_t k = 0; k < K_; ++k) centres[k] = before[k] + query[2 * K_ + k];
        for (std::int64_t s = 0; s < padded<T>(count); s += L) {
            const V place = V::load(places_ + s);
            V sum = V::set(0);
            for (std::int64_t k = 0; k < K_; ++k) {
                const V gap = V::set(centres[k]) - place;
                sum = fma(V::set(query[k]), bell(query[K_ + k], gap), sum);
            }
            sum.store(phi + s);
        }
        for (std::int64_t s = count; s < padded<T>(count); ++s) phi[s] = 0;
    }

    // From dphi (whole vectors, 0 past `count`): the gradient of the query (panels of L, `panel` apart), and that of the centres
    // after the step becomes that of those before.
    void adjoint(const T* query, const T* centres, const T* dphi, std::int64_t count, T* dquery,
                 std::int64_t panel, T* dcentres) const {
        const auto at = [&](std::int64_t i) -> T& { return dquery[i / L * panel + i % L]; };
        for (std::int64_t i = 3 * K_; i < padded<T>(3 * K_); ++i) at(i) = 0;
        for (std::int64_t k = 0; k < K_; ++k) {
            V height = V::set(0), width = V::set(0), centre = V::set(0);
            for (std::int64_t s = 0; s < padded<T>(count); s += L) {
                const V gap = V::set(centres[k]) - V::load(places_ + s);
                const V d = V::load(dphi + s) * bell(query[K_ + k], gap), moved = d * gap;
                height = height + d;
                width = fma(moved, gap, width);
                centre = centre + moved;
            }
            const T alpha = query[k], beta = query[K_ + k];
            dcentres[k] -= 2 * alpha * beta * sum(centre);
            at(k) = alpha * sum(height);
            at(K_ + k) = -alpha * beta * sum(width);
            at(2 * K_ + k) = dcentres[k] * query[2 * K_ + k];
        }
    }

  private:
    static FUSEDRNN_INLINE V bell(T beta, V gap) { return exp_nonpositive(V::set(-beta) * (gap * gap)); }

    std::int64_t K_, row_;
    T* places_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
