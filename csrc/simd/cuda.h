// One lane, one thread of a GPU: for nvcc, and for host compilers, which build the same kernels where there is no
// GPU. See simd.h for the contract. Both give the same bits: every operation is rounded once, and none is
// contracted.
#pragma once

#include <cmath>
#include <cstdint>

#include "one_lane.h"

namespace fusedrnn::FUSEDRNN_ISA {

#ifdef __CUDA_ARCH__
FUSEDRNN_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {__fadd_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {__dadd_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {__fsub_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {__dsub_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {__fmul_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {__dmul_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {__fdiv_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return {__ddiv_rn(a.v, b.v)}; }
FUSEDRNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
    return {__fmaf_rn(a.v, b.v, c.v)};
}
FUSEDRNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return {__fma_rn(a.v, b.v, c.v)};
}
// A reciprocal and a quotient, each corrected once: the bits of a / b as long as nothing comes near the ends of the
// range, and without the branch to the code for these, behind which nothing else would be computed meanwhile.
FUSEDRNN_INLINE Vec<float> divide_unchecked(Vec<float> a, Vec<float> b) {
    float about;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(about) : "f"(b.v));
    const float reciprocal = __fmaf_rn(about, __fmaf_rn(-b.v, about, 1.0f), about);
    const float quotient = __fmul_rn(a.v, reciprocal);
    return {__fmaf_rn(reciprocal, __fmaf_rn(-b.v, quotient, a.v), quotient)};
}
FUSEDRNN_INLINE Vec<double> divide_unchecked(Vec<double> a, Vec<double> b) { return a / b; }
#else
template <class T>
FUSEDRNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return {std::fma(a.v, b.v, c.v)};
}
#endif

template <class T>
FUSEDRNN_INLINE Vec<T> abs(Vec<T> a) {
    return {std::fabs(a.v)};
}
template <class T>
FUSEDRNN_INLINE Vec<T> copysign(Vec<T> a, Vec<T> sign) {
    return {std::copysign(a.v, sign.v)};
}
FUSEDRNN_INLINE Vec<double> round(Vec<double> a) { return {std::rint(a.v)}; }

#ifdef __CUDA_ARCH__
FUSEDRNN_INLINE Vec<float> sqrt(Vec<float> a) { return {__fsqrt_rn(a.v)}; }
FUSEDRNN_INLINE Vec<double> sqrt(Vec<double> a) { return {__dsqrt_rn(a.v)}; }
// Added to |x| < 2^22 it leaves x, rounded, in the last bits of the sum: two additions take less time than the
// conversions, of which a multiprocessor does few at once.
inline constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
FUSEDRNN_INLINE Vec<float> round(Vec<float> a) { return {__fadd_rn(__fadd_rn(a.v, kRounder), -kRounder)}; }
// Of a NaN something that is no NaN: what it scales is one.
FUSEDRNN_INLINE Vec<float> pow2n(Vec<float> n) {
    return {__uint_as_float((__float_as_uint(__fadd_rn(n.v, kRounder)) + 127u) << 23)};
}
#else
template <class T>
FUSEDRNN_INLINE Vec<T> sqrt(Vec<T> a) {
    return {std::sqrt(a.v)};
}
FUSEDRNN_INLINE Vec<float> round(Vec<float> a) { return {std::rint(a.v)}; }
#endif

}  // namespace fusedrnn::FUSEDRNN_ISA
