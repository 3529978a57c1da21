// AVX2 with FMA: 8 floats or 4 doubles. See simd.h for the contract.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kRegisters = 16;

template <class T>
struct Vec;

alignas(64) inline constexpr std::int32_t kTail32[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                         0,  0,  0,  0,  0,  0,  0,  0};
alignas(64) inline constexpr std::int64_t kTail64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

template <>
struct Vec<float> {
    using Scalar = float;
    using Mask = __m256;
    static constexpr int kLanes = 8;
    __m256 v;

    static FUSEDRNN_INLINE __m256i first(int n) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTail32 + 8 - n));
    }
    // Lane l where bit l is set.
    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) {
        const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each);
        return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, each));
    }
    static FUSEDRNN_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static FUSEDRNN_INLINE Vec load_n(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
    static FUSEDRNN_INLINE Vec set(float x) { return {_mm256_set1_ps(x)}; }
    FUSEDRNN_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
    FUSEDRNN_INLINE void store_n(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
};

template <>
struct Vec<double> {
    using Scalar = double;
    using Mask = __m256d;
    static constexpr int kLanes = 4;
    __m256d v;

    static FUSEDRNN_INLINE __m256i first(int n) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTail64 + 4 - n));
    }
    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) {
        const __m256i each = _mm256_setr_epi64x(1, 2, 4, 8);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(bits)), each);
        return _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, each));
    }
    static FUSEDRNN_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static FUSEDRNN_INLINE Vec load_n(const double* p, int n) { return {_mm256_maskload_pd(p, first(n))}; }
    static FUSEDRNN_INLINE Vec set(double x) { return {_mm256_set1_pd(x)}; }
    FUSEDRNN_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
    FUSEDRNN_INLINE void store_n(double* p, int n) const { _mm256_maskstore_pd(p, first(n), v); }
};

using VecF = Vec<float>;
using VecD = Vec<double>;

template <class T>
using Narrow = Vec<T>;

FUSEDRNN_INLINE VecF operator+(VecF a, VecF b) { return {_mm256_add_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator-(VecF a, VecF b) { return {_mm256_sub_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator*(VecF a, VecF b) { return {_mm256_mul_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator/(VecF a, VecF b) { return {_mm256_div_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
FUSEDRNN_INLINE VecF min(VecF a, VecF b) { return {_mm256_min_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF max(VecF a, VecF b) { return {_mm256_max_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF abs(VecF a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
FUSEDRNN_INLINE VecF copysign(VecF a, VecF sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(bit, a.v), _mm256_and_ps(bit, sign.v))};
}
FUSEDRNN_INLINE VecF round(VecF a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FUSEDRNN_INLINE VecF sqrt(VecF a) { return {_mm256_sqrt_ps(a.v)}; }
FUSEDRNN_INLINE VecF exponent(VecF a) {
    const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(a.v), 23);
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)))};
}
FUSEDRNN_INLINE VecF pow2n(VecF n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
FUSEDRNN_INLINE __m256 less(VecF a, VecF b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
FUSEDRNN_INLINE VecF select(__m256 m, VecF a, VecF b) { return {_mm256_blendv_ps(b.v, a.v, m)}; }
FUSEDRNN_INLINE float sum(VecF a) {
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
FUSEDRNN_INLINE void keep_in_register(VecF& a) { asm("" : "+x"(a.v)); }

// Element l of row r becomes element r of row l.
FUSEDRNN_INLINE void transpose(VecF (&rows)[8]) {
    __m256 pairs[8], fours[8];
#pragma GCC unroll 4
    for (int r = 0; r < 8; r += 2) {
        pairs[r] = _mm256_unpacklo_ps(rows[r].v, rows[r + 1].v);
        pairs[r + 1] = _mm256_unpackhi_ps(rows[r].v, rows[r + 1].v);
    }
#pragma GCC unroll 2
    for (int r = 0; r < 8; r += 4) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            fours[r + 2 * i] = _mm256_shuffle_ps(pairs[r + i], pairs[r + i + 2], 0x44);
            fours[r + 2 * i + 1] = _mm256_shuffle_ps(pairs[r + i], pairs[r + i + 2], 0xee);
        }
    }
    // fours[r + i]: of rows r to r + 3 the columns i and i + 4.
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        rows[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

struct VecI {
    __m256i v;

    static FUSEDRNN_INLINE VecI set(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
    static FUSEDRNN_INLINE VecI load(const void* p) {
        return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
    }
};

FUSEDRNN_INLINE VecI operator^(VecI a, VecI b) { return {_mm256_xor_si256(a.v, b.v)}; }
FUSEDRNN_INLINE VecI dot4(VecI a, VecI b, VecI c) {
    const __m256i pairs = _mm256_maddubs_epi16(a.v, b.v);
    return {_mm256_add_epi32(c.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
FUSEDRNN_INLINE VecF to_float(VecI a) { return {_mm256_cvtepi32_ps(a.v)}; }
FUSEDRNN_INLINE void store_int8(VecF a, std::int8_t* p) {
    const __m256i n = _mm256_cvtps_epi32(a.v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
FUSEDRNN_INLINE void load_bf16(const std::uint16_t* p, VecF& even, VecF& odd) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

FUSEDRNN_INLINE VecD operator+(VecD a, VecD b) { return {_mm256_add_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator-(VecD a, VecD b) { return {_mm256_sub_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator*(VecD a, VecD b) { return {_mm256_mul_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator/(VecD a, VecD b) { return {_mm256_div_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD fma(VecD a, VecD b, VecD c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
FUSEDRNN_INLINE VecD min(VecD a, VecD b) { return {_mm256_min_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD max(VecD a, VecD b) { return {_mm256_max_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD abs(VecD a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
FUSEDRNN_INLINE VecD copysign(VecD a, VecD sign) {
    const __m256d bit = _mm256_set1_pd(-0.0);
    return {_mm256_or_pd(_mm256_andnot_pd(bit, a.v), _mm256_and_pd(bit, sign.v))};
}
FUSEDRNN_INLINE VecD round(VecD a) {
    return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FUSEDRNN_INLINE VecD sqrt(VecD a) { return {_mm256_sqrt_pd(a.v)}; }
FUSEDRNN_INLINE VecD exponent(VecD a) {
    // As the last bits of 2^52 they are a number.
    const __m256d power = _mm256_set1_pd(4503599627370496.0);
    const __m256i biased = _mm256_srli_epi64(_mm256_castpd_si256(a.v), 52);
    const __m256d sum = _mm256_castsi256_pd(_mm256_or_si256(biased, _mm256_castpd_si256(power)));
    return {_mm256_sub_pd(sum, _mm256_add_pd(power, _mm256_set1_pd(1023)))};
}
FUSEDRNN_INLINE VecD pow2n(VecD n) {
    const __m256i biased =
        _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v)), _mm256_set1_epi64x(1023));
    return {_mm256_castsi256_pd(_mm256_slli_epi64(biased, 52))};
}
FUSEDRNN_INLINE __m256d less(VecD a, VecD b) { return _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ); }
FUSEDRNN_INLINE VecD select(__m256d m, VecD a, VecD b) { return {_mm256_blendv_pd(b.v, a.v, m)}; }
FUSEDRNN_INLINE double sum(VecD a) {
    const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
}
FUSEDRNN_INLINE void keep_in_register(VecD& a) { asm("" : "+x"(a.v)); }

}  // namespace fusedrnn::FUSEDRNN_ISA
