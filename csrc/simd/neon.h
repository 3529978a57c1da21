// NEON of AArch64: 4 floats or 2 doubles. See simd.h for the contract.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kRegisters = 32;

template <class T>
struct Vec;

template <>
struct Vec<float> {
    using Scalar = float;
    using Mask = uint32x4_t;
    static constexpr int kLanes = 4;
    float32x4_t v;

    // Lane l where bit l is set.
    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) {
        const std::uint32_t each[4] = {1, 2, 4, 8};
        return vtstq_u32(vdupq_n_u32(bits), vld1q_u32(each));
    }
    static FUSEDRNN_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
    static FUSEDRNN_INLINE Vec load_n(const float* p, int n) {
        if (n >= 4) return load(p);
        float32x4_t v = vdupq_n_f32(0);
        if (n > 0) v = vld1q_lane_f32(p, v, 0);
        if (n > 1) v = vld1q_lane_f32(p + 1, v, 1);
        if (n > 2) v = vld1q_lane_f32(p + 2, v, 2);
        return {v};
    }
    static FUSEDRNN_INLINE Vec set(float x) { return {vdupq_n_f32(x)}; }
    FUSEDRNN_INLINE void store(float* p) const { vst1q_f32(p, v); }
    FUSEDRNN_INLINE void store_n(float* p, int n) const {
        if (n > 0) vst1q_lane_f32(p, v, 0);
        if (n > 1) vst1q_lane_f32(p + 1, v, 1);
        if (n > 2) vst1q_lane_f32(p + 2, v, 2);
        if (n > 3) vst1q_lane_f32(p + 3, v, 3);
    }
};

template <>
struct Vec<double> {
    using Scalar = double;
    using Mask = uint64x2_t;
    static constexpr int kLanes = 2;
    float64x2_t v;

    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) {
        const std::uint64_t each[2] = {1, 2};
        return vtstq_u64(vdupq_n_u64(bits), vld1q_u64(each));
    }
    static FUSEDRNN_INLINE Vec load(const double* p) { return {vld1q_f64(p)}; }
    static FUSEDRNN_INLINE Vec load_n(const double* p, int n) {
        if (n >= 2) return load(p);
        const float64x2_t zero = vdupq_n_f64(0);
        return {n > 0 ? vld1q_lane_f64(p, zero, 0) : zero};
    }
    static FUSEDRNN_INLINE Vec set(double x) { return {vdupq_n_f64(x)}; }
    FUSEDRNN_INLINE void store(double* p) const { vst1q_f64(p, v); }
    FUSEDRNN_INLINE void store_n(double* p, int n) const {
        if (n > 0) vst1q_lane_f64(p, v, 0);
        if (n > 1) vst1q_lane_f64(p + 1, v, 1);
    }
};

using VecF = Vec<float>;
using VecD = Vec<double>;

template <class T>
using Narrow = Vec<T>;

FUSEDRNN_INLINE VecF operator+(VecF a, VecF b) { return {vaddq_f32(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator-(VecF a, VecF b) { return {vsubq_f32(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator*(VecF a, VecF b) { return {vmulq_f32(a.v, b.v)}; }
FUSEDRNN_INLINE VecF operator/(VecF a, VecF b) { return {vdivq_f32(a.v, b.v)}; }
FUSEDRNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
FUSEDRNN_INLINE uint32x4_t less(VecF a, VecF b) { return vcltq_f32(a.v, b.v); }
FUSEDRNN_INLINE VecF select(uint32x4_t m, VecF a, VecF b) { return {vbslq_f32(m, a.v, b.v)}; }
// Not vminq and vmaxq, which give NaN where either is NaN.
FUSEDRNN_INLINE VecF min(VecF a, VecF b) { return select(less(a, b), a, b); }
FUSEDRNN_INLINE VecF max(VecF a, VecF b) { return select(less(b, a), a, b); }
FUSEDRNN_INLINE VecF abs(VecF a) { return {vabsq_f32(a.v)}; }
FUSEDRNN_INLINE VecF copysign(VecF a, VecF sign) { return select(vdupq_n_u32(0x80000000u), sign, a); }
FUSEDRNN_INLINE VecF round(VecF a) { return {vrndnq_f32(a.v)}; }
FUSEDRNN_INLINE VecF sqrt(VecF a) { return {vsqrtq_f32(a.v)}; }
FUSEDRNN_INLINE VecF exponent(VecF a) {
    const uint32x4_t biased = vshrq_n_u32(vreinterpretq_u32_f32(a.v), 23);
    return {vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(biased), vdupq_n_s32(127)))};
}
FUSEDRNN_INLINE VecF pow2n(VecF n) {
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127));
    return {vreinterpretq_f32_s32(vshlq_n_s32(biased, 23))};
}
FUSEDRNN_INLINE float sum(VecF a) {
    const float32x2_t s2 = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
    return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}
FUSEDRNN_INLINE void keep_in_register(VecF& a) { asm("" : "+w"(a.v)); }

struct VecI {
    int32x4_t v;

    static FUSEDRNN_INLINE VecI set(std::int32_t x) { return {vdupq_n_s32(x)}; }
    static FUSEDRNN_INLINE VecI load(const void* p) {
        return {vreinterpretq_s32_s8(vld1q_s8(static_cast<const std::int8_t*>(p)))};
    }
};

FUSEDRNN_INLINE VecI operator^(VecI a, VecI b) { return {veorq_s32(a.v, b.v)}; }
FUSEDRNN_INLINE VecI dot4(VecI a, VecI b, VecI c) {
    const int8x16_t x = vreinterpretq_s8_s32(a.v), y = vreinterpretq_s8_s32(b.v);
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(x, y));
    return {vaddq_s32(c.v, vpaddq_s32(low, high))};
}
FUSEDRNN_INLINE VecF to_float(VecI a) { return {vcvtq_f32_s32(a.v)}; }
FUSEDRNN_INLINE void store_int8(VecF a, std::int8_t* p) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(a.v));
    const std::int32_t bytes = vget_lane_s32(vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
    __builtin_memcpy(p, &bytes, sizeof bytes);
}
FUSEDRNN_INLINE void load_bf16(const std::uint16_t* p, VecF& even, VecF& odd) {
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p));
    even.v = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    odd.v = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
}

FUSEDRNN_INLINE VecD operator+(VecD a, VecD b) { return {vaddq_f64(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator-(VecD a, VecD b) { return {vsubq_f64(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator*(VecD a, VecD b) { return {vmulq_f64(a.v, b.v)}; }
FUSEDRNN_INLINE VecD operator/(VecD a, VecD b) { return {vdivq_f64(a.v, b.v)}; }
FUSEDRNN_INLINE VecD fma(VecD a, VecD b, VecD c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
FUSEDRNN_INLINE uint64x2_t less(VecD a, VecD b) { return vcltq_f64(a.v, b.v); }
FUSEDRNN_INLINE VecD select(uint64x2_t m, VecD a, VecD b) { return {vbslq_f64(m, a.v, b.v)}; }
FUSEDRNN_INLINE VecD min(VecD a, VecD b) { return select(less(a, b), a, b); }
FUSEDRNN_INLINE VecD max(VecD a, VecD b) { return select(less(b, a), a, b); }
FUSEDRNN_INLINE VecD abs(VecD a) { return {vabsq_f64(a.v)}; }
FUSEDRNN_INLINE VecD copysign(VecD a, VecD sign) {
    return select(vdupq_n_u64(std::uint64_t{1} << 63), sign, a);
}
FUSEDRNN_INLINE VecD round(VecD a) { return {vrndnq_f64(a.v)}; }
FUSEDRNN_INLINE VecD sqrt(VecD a) { return {vsqrtq_f64(a.v)}; }
FUSEDRNN_INLINE VecD exponent(VecD a) {
    const uint64x2_t biased = vshrq_n_u64(vreinterpretq_u64_f64(a.v), 52);
    return {vcvtq_f64_s64(vsubq_s64(vreinterpretq_s64_u64(biased), vdupq_n_s64(1023)))};
}
FUSEDRNN_INLINE VecD pow2n(VecD n) {
    const int64x2_t biased = vaddq_s64(vcvtnq_s64_f64(n.v), vdupq_n_s64(1023));
    return {vreinterpretq_f64_s64(vshlq_n_s64(biased, 52))};
}
FUSEDRNN_INLINE double sum(VecD a) { return vgetq_lane_f64(a.v, 0) + vgetq_lane_f64(a.v, 1); }
FUSEDRNN_INLINE void keep_in_register(VecD& a) { asm("" : "+w"(a.v)); }

}  // namespace fusedrnn::FUSEDRNN_ISA
