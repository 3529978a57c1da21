// AVX-512 F, DQ, VL: 16 floats or 8 doubles. See simd.h for the contract.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kRegisters = 32;

template <class T>
struct Vec;

template <>
struct Vec<float> {
    using Scalar = float;
    using Mask = __mmask16;
    static constexpr int kLanes = 16;
    __m512 v;

    static FUSEDRNN_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
    // Lane l where bit l is set.
    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) { return static_cast<Mask>(bits); }
    static FUSEDRNN_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static FUSEDRNN_INLINE Vec load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    static FUSEDRNN_INLINE Vec set(float x) { return {_mm512_set1_ps(x)}; }
    FUSEDRNN_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
    FUSEDRNN_INLINE void store_n(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
};

template <>
struct Vec<double> {
    using Scalar = double;
    using Mask = __mmask8;
    static constexpr int kLanes = 8;
    __m512d v;

    static FUSEDRNN_INLINE __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) { return static_cast<Mask>(bits); }
    static FUSEDRNN_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
    static FUSEDRNN_INLINE Vec load_n(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
    static FUSEDRNN_INLINE Vec set(double x) { return {_mm512_set1_pd(x)}; }
    FUSEDRNN_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
    FUSEDRNN_INLINE void store_n(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }
};

template <class T>
struct Narrow;

template <>
struct Narrow<float> {
    static constexpr int kLanes = 8;
    __m256 v;

    static FUSEDRNN_INLINE Narrow load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static FUSEDRNN_INLINE Narrow set(float x) { return {_mm256_set1_ps(x)}; }
    FUSEDRNN_INLINE void store(float* p) const {
        _mm256_storeu_ps(p, v);
        _mm256_storeu_ps(p + kLanes, _mm256_setzero_ps());
    }
};
template <>
struct Narrow<double> {
    static constexpr int kLanes = 4;
    __m256d v;

    static FUSEDRNN_INLINE Narrow load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static FUSEDRNN_INLINE Narrow set(double x) { return {_mm256_set1_pd(x)}; }
    FUSEDRNN_INLINE void store(double* p) const {
        _mm256_storeu_pd(p, v);
        _mm256_storeu_pd(p + kLanes, _mm256_setzero_pd());
    }
};

FUSEDRNN_INLINE Narrow<float> fma(Narrow<float> a, Narrow<float> b, Narrow<float> c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
FUSEDRNN_INLINE Narrow<double> fma(Narrow<double> a, Narrow<double> b, Narrow<double> c) {
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
template <class T>
FUSEDRNN_INLINE void keep_in_register(Narrow<T>& a) {
    asm("" : "+v"(a.v));
}

using VecF = Vec<float>;
using VecD = Vec<double>;

FUSEDRNN_INLINE VecF operator+(VecF a, VecF b) { return {_mm512_add_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator-(VecF a, VecF b) { return {_mm512_sub_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator*(VecF a, VecF b) { return {_mm512_mul_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator/(VecF a, VecF b) { return {_mm512_div_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FUSEDRNN_INLINE VecF min(VecF a, VecF b) { return {_mm512_min_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF max(VecF a, VecF b) { return {_mm512_max_ps(a.v, b.v)}; }
FUSEDRNN_INLINE VecF abs(VecF a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
FUSEDRNN_INLINE VecF copysign(VecF a, VecF sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(bit, a.v), _mm512_and_ps(bit, sign.v))};
}
FUSEDRNN_INLINE VecF round(VecF a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FUSEDRNN_INLINE VecF sqrt(VecF a) { return {_mm512_sqrt_ps(a.v)}; }
FUSEDRNN_INLINE VecF exponent(VecF a) {
    const __m512i biased = _mm512_srli_epi32(_mm512_castps_si512(a.v), 23);
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(biased, _mm512_set1_epi32(127)))};
}
FUSEDRNN_INLINE VecF pow2n(VecF n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
FUSEDRNN_INLINE __mmask16 less(VecF a, VecF b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
FUSEDRNN_INLINE VecF select(__mmask16 m, VecF a, VecF b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
FUSEDRNN_INLINE float sum(VecF a) {
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
FUSEDRNN_INLINE void keep_in_register(VecF& a) { asm("" : "+v"(a.v)); }

// Element l of row r becomes element r of row l.
FUSEDRNN_INLINE void transpose(VecF (&rows)[16]) {
    __m512 pairs[16], fours[16];
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
        pairs[r] = _mm512_unpacklo_ps(rows[r].v, rows[r + 1].v);
        pairs[r + 1] = _mm512_unpackhi_ps(rows[r].v, rows[r + 1].v);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const __m512d low = _mm512_castps_pd(pairs[r + i]), high = _mm512_castps_pd(pairs[r + i + 2]);
            fours[r + 2 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            fours[r + 2 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    // fours[r + i]: of rows r to r + 3 the columns i, i + 4, i + 8 and i + 12.
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512 even = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xdd);
        const __m512 even_below = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
        const __m512 odd_below = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xdd);
        rows[i].v = _mm512_shuffle_f32x4(even, even_below, 0x88);
        rows[i + 4].v = _mm512_shuffle_f32x4(odd, odd_below, 0x88);
        rows[i + 8].v = _mm512_shuffle_f32x4(even, even_below, 0xdd);
        rows[i + 12].v = _mm512_shuffle_f32x4(odd, odd_below, 0xdd);
    }
}

struct VecI {
    __m512i v;

    static FUSEDRNN_INLINE VecI set(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
    static FUSEDRNN_INLINE VecI load(const void* p) { return {_mm512_loadu_si512(p)}; }
};

FUSEDRNN_INLINE VecI operator^(VecI a, VecI b) { return {_mm512_xor_si512(a.v, b.v)}; }
FUSEDRNN_INLINE VecI dot4(VecI a, VecI b, VecI c) {
#ifdef FUSEDRNN_VNNI
    return {_mm512_dpbusd_epi32(c.v, a.v, b.v)};
#else
    const __m512i pairs = _mm512_maddubs_epi16(a.v, b.v);
    return {_mm512_add_epi32(c.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#endif
}
FUSEDRNN_INLINE VecF to_float(VecI a) { return {_mm512_cvtepi32_ps(a.v)}; }
FUSEDRNN_INLINE void store_int8(VecF a, std::int8_t* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
FUSEDRNN_INLINE void load_bf16(const std::uint16_t* p, VecF& even, VecF& odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}

FUSEDRNN_INLINE VecD operator+(VecD a, VecD b) { return {_mm512_add_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator-(VecD a, VecD b) { return {_mm512_sub_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator*(VecD a, VecD b) { return {_mm512_mul_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator/(VecD a, VecD b) { return {_mm512_div_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD fma(VecD a, VecD b, VecD c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
FUSEDRNN_INLINE VecD min(VecD a, VecD b) { return {_mm512_min_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD max(VecD a, VecD b) { return {_mm512_max_pd(a.v, b.v)}; }
FUSEDRNN_INLINE VecD abs(VecD a) { return {_mm512_andnot_pd(_mm512_set1_pd(-0.0), a.v)}; }
FUSEDRNN_INLINE VecD copysign(VecD a, VecD sign) {
    const __m512d bit = _mm512_set1_pd(-0.0);
    return {_mm512_or_pd(_mm512_andnot_pd(bit, a.v), _mm512_and_pd(bit, sign.v))};
}
FUSEDRNN_INLINE VecD round(VecD a) {
    return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FUSEDRNN_INLINE VecD sqrt(VecD a) { return {_mm512_sqrt_pd(a.v)}; }
FUSEDRNN_INLINE VecD exponent(VecD a) {
    // As the last bits of 2^52 they are a number.
    const __m512d power = _mm512_set1_pd(4503599627370496.0);
    const __m512i biased = _mm512_srli_epi64(_mm512_castpd_si512(a.v), 52);
    const __m512d sum = _mm512_castsi512_pd(_mm512_or_si512(biased, _mm512_castpd_si512(power)));
    return {_mm512_sub_pd(sum, _mm512_add_pd(power, _mm512_set1_pd(1023)))};
}
FUSEDRNN_INLINE VecD pow2n(VecD n) {
    const __m512i biased = _mm512_add_epi64(_mm512_cvtpd_epi64(n.v), _mm512_set1_epi64(1023));
    return {_mm512_castsi512_pd(_mm512_slli_epi64(biased, 52))};
}
FUSEDRNN_INLINE __mmask8 less(VecD a, VecD b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
FUSEDRNN_INLINE VecD select(__mmask8 m, VecD a, VecD b) { return {_mm512_mask_blend_pd(m, b.v, a.v)}; }
FUSEDRNN_INLINE double sum(VecD a) {
    const __m256d s4 = _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
    const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(s4), _mm256_extractf128_pd(s4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
}
FUSEDRNN_INLINE void keep_in_register(VecD& a) { asm("" : "+v"(a.v)); }

}  // namespace fusedrnn::FUSEDRNN_ISA
