// AVX-512 with products of bfloat16 (AVX512_BF16). See simd.h for the contract.
#pragma once

#include "simd/avx512.h"

#define FUSEDRNN_BF16 1

namespace fusedrnn::FUSEDRNN_ISA {

// Words of two bfloat16 each.
template <class V>
struct Operand;
template <>
struct Operand<Vec<float>> {
    __m512 v;

    static FUSEDRNN_INLINE Operand load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static FUSEDRNN_INLINE Operand set(float x) { return {_mm512_set1_ps(x)}; }
};
template <>
struct Operand<Narrow<float>> {
    __m256 v;

    static FUSEDRNN_INLINE Operand load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static FUSEDRNN_INLINE Operand set(float x) { return {_mm256_set1_ps(x)}; }
};

FUSEDRNN_INLINE __m512bh bf16(__m512 words) { return (__m512bh)_mm512_castps_si512(words); }
FUSEDRNN_INLINE __m256bh bf16(__m256 words) { return (__m256bh)_mm256_castps_si256(words); }
FUSEDRNN_INLINE VecF fma(Operand<VecF> a, Operand<VecF> b, VecF c) {
    return {_mm512_dpbf16_ps(c.v, bf16(a.v), bf16(b.v))};
}
FUSEDRNN_INLINE Narrow<float> fma(Operand<Narrow<float>> a, Operand<Narrow<float>> b, Narrow<float> c) {
    return {_mm256_dpbf16_ps(c.v, bf16(a.v), bf16(b.v))};
}
template <class V>
FUSEDRNN_INLINE void keep_in_register(Operand<V>& a) {
    asm("" : "+v"(a.v));
}

FUSEDRNN_INLINE VecF neighbours(VecF first, VecF second) {
    return {_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(second.v, first.v))};
}
FUSEDRNN_INLINE VecF interleaved(VecF even, VecF odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both))};
}

FUSEDRNN_INLINE void leave_rest(VecF& a, VecF& b) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
    const auto widened = [](__m256i halves) {
        return VecF{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
    };
    a = a - widened(_mm512_castsi512_si256(both));
    b = b - widened(_mm512_extracti64x4_epi64(both, 1));
}

// From an estimate of 1 / b: within 2 ULP, where products are rounded to 8 bits.
FUSEDRNN_INLINE VecF divide_unchecked(VecF a, VecF b) {
    const __m512 estimate = _mm512_rcp14_ps(b.v), two = _mm512_set1_ps(2.0f);
    return {_mm512_mul_ps(_mm512_mul_ps(a.v, estimate), _mm512_fnmadd_ps(b.v, estimate, two))};
}

FUSEDRNN_INLINE VecF times_pow2n(VecF a, VecF n) { return {_mm512_scalef_ps(a.v, n.v)}; }

}  // namespace fusedrnn::FUSEDRNN_ISA
