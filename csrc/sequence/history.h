// What additive energies may know of the past: features of the rows of a memory, linear in the attention of the steps before.
//   location (Chorowski et al. 2015)   f_c,s = sum_k F_c,k alpha_(t-1),(s + k - (K-1)/2), which is 0 outside of the memory
//   coverage (See, Liu and Manning 2017)   f_s = sum over t' < t of alpha_t',s
#pragma once

#include "cpu/layout.h"
#include "sequence/decoder_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Features lie as [feature][S in whole vectors], those of filters first.
template <class T>
class History {
  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = V::kLanes;

    struct Member {
        T *padded_row, *sums, *gradients;
        Member(const DecoderSizes& d, Arena& arena) {
            const std::int64_t sp = padded<T>(d.S), n = d.features() > 0 ? 1 : 0;
            padded_row = arena.take<T>(n * (sp + d.width + L));
            sums = arena.take<T>(d.features() * larger(sp, 1) * L);
            gradients = arena.take<T>(d.features() * sp);
        }
    };

    History(const DecoderSizes& d, const T* filters)
        : filters_(filters), C_(d.filters), K_(d.width), coverage_(d.coverage), sp_(padded<T>(d.S)) {}

    // From the attention of the step before and its coverage, null at the beginning of all.
    void features(const T* before, const T* covered, Member& m, T* f) const {
        if (C_ > 0) pad(before, m);
        for (std::int64_t c = 0; c < C_; ++c) {
            for (std::int64_t s = 0; s < sp_; s += L) {
                V sum = V::set(0);
                for (std::int64_t k = 0; k < K_; ++k) {
                    sum = fma(V::set(filters_[c * K_ + k]), V::load(m.padded_row + s + k), sum);
                }
                sum.store(f + c * sp_ + s);
            }
        }
        if (!coverage_) return;
        for (std::int64_t s = 0; s < sp_; s += L)
            (V::load(covered + s) + V::load(before + s)).store(f + C_ * sp_ + s);
    }

    // From m.gradients, of the features: dbefore is set, dcovered and dfilters (C, K) are added to.
    void adjoint(const T* before, Member& m, T* dbefore, T* dcovered, T* dfilters) const {
        if (coverage_) {
            const T* const df = m.gradients + C_ * sp_;
            for (std::int64_t s = 0; s < sp_; s += L)
                (V::load(dcovered + s) + V::load(df + s)).store(dcovered + s);
        }
        fill_zero(dbefore, sp_);
        if (C_ == 0) return;
        pad(before, m);
        for (std::int64_t c = 0; c < C_; ++c) {
            for (std::int64_t k = 0; k < K_; ++k) {
                V sum = V::set(0);
                for (std::int64_t s = 0; s < sp_; s += L)
                    sum = fma(V::load(m.gradients + c * sp_ + s), V::load(m.padded_row + s + k), sum);
                dfilters[c * K_ + k] += fusedrnn::FUSEDRNN_ISA::sum(sum);
            }
        }
        for (std::int64_t c = 0; c < C_; ++c) {
            pad(m.gradients + c * sp_, m);
            for (std::int64_t s = 0; s < sp_; s += L) {
                V sum = V::load(dbefore + s);
                for (std::int64_t k = 0; k < K_; ++k) {
                    sum = fma(V::set(filters_[c * K_ + k]), V::load(m.padded_row + s + K_ - 1 - k), sum);
                }
                sum.store(dbefore + s);
            }
        }
    }

  private:
    void pad(const T* row, Member& m) const {
        fill_zero(m.padded_row, sp_ + K_ + L);
        copy(row, m.padded_row + (K_ - 1) / 2, sp_);
    }

    const T* filters_;
    std::int64_t C_, K_;
    bool coverage_;
    std::int64_t sp_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
