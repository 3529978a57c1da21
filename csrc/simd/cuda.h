// One lane, one thread of a GPU: for nvcc, and for host compilers, which build the same kernels where there is no
// GPU. See simd.h for the contract. Both give the same bits: every operation is rounded once, and none is
// contracted.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct Vec {
    using Scalar = T;
    using Mask = bool;
    static constexpr int kLanes = 1;
    T v;

    static FUSEDRNN_INLINE Vec load(const T* p) { return {*p}; }
    static FUSEDRNN_INLINE Vec load_n(const T* p, int n) { return {n > 0 ? *p : T(0)}; }
    static FUSEDRNN_INLINE Vec set(T x) { return {x}; }
    FUSEDRNN_INLINE void store(T* p) const { *p = v; }
    FUSEDRNN_INLINE void store_n(T* p, int n) const {
        if (n > 0) *p = v;
    }
};

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
FUSEDRNN_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
    return {a.v + b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
    return {a.v - b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
    return {a.v * b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
    return {a.v / b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return {std::fma(a.v, b.v, c.v)};
}
#endif

template <class T>
FUSEDRNN_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
    return {a.v < b.v ? a.v : b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
    return {a.v > b.v ? a.v : b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> abs(Vec<T> a) {
    return {std::fabs(a.v)};
}
template <class T>
FUSEDRNN_INLINE Vec<T> copysign(Vec<T> a, Vec<T> sign) {
    return {std::copysign(a.v, sign.v)};
}
FUSEDRNN_INLINE Vec<double> round(Vec<double> a) { return {std::rint(a.v)}; }
template <class T>
FUSEDRNN_INLINE bool less(Vec<T> a, Vec<T> b) {
    return a.v < b.v;
}
template <class T>
FUSEDRNN_INLINE Vec<T> select(bool m, Vec<T> a, Vec<T> b) {
    return m ? a : b;
}
template <class T>
FUSEDRNN_INLINE T sum(Vec<T> a) {
    return a.v;
}
template <class T>
FUSEDRNN_INLINE void keep_in_register(Vec<T>&) {}

#ifdef __CUDA_ARCH__
FUSEDRNN_INLINE Vec<float> sqrt(Vec<float> a) { return {__fsqrt_rn(a.v)}; }
FUSEDRNN_INLINE Vec<double> sqrt(Vec<double> a) { return {__dsqrt_rn(a.v)}; }
#else
template <class T>
FUSEDRNN_INLINE Vec<T> sqrt(Vec<T> a) {
    return {std::sqrt(a.v)};
}
#endif
FUSEDRNN_INLINE Vec<float> exponent(Vec<float> a) {
    std::uint32_t bits;
    std::memcpy(&bits, &a.v, sizeof bits);
    return {static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 127)};
}
FUSEDRNN_INLINE Vec<double> exponent(Vec<double> a) {
    std::uint64_t bits;
    std::memcpy(&bits, &a.v, sizeof bits);
    return {static_cast<double>(static_cast<std::int64_t>(bits >> 52) - 1023)};
}

#ifdef __CUDA_ARCH__
// Added to |x| < 2^22 it leaves x, rounded, in the last bits of the sum: two additions take less time than the
// conversions, of which a multiprocessor does few at once.
inline constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
FUSEDRNN_INLINE Vec<float> round(Vec<float> a) { return {__fadd_rn(__fadd_rn(a.v, kRounder), -kRounder)}; }
// Of a NaN something that is no NaN: what it scales is one.
FUSEDRNN_INLINE Vec<float> pow2n(Vec<float> n) {
    return {__uint_as_float((__float_as_uint(__fadd_rn(n.v, kRounder)) + 127u) << 23)};
}
#else
FUSEDRNN_INLINE Vec<float> round(Vec<float> a) { return {std::rint(a.v)}; }
FUSEDRNN_INLINE Vec<float> pow2n(Vec<float> n) {
    if (!(n.v == n.v)) return n;
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.v) + 127) << 23;
    float r;
    std::memcpy(&r, &bits, sizeof r);
    return {r};
}
#endif
FUSEDRNN_INLINE Vec<double> pow2n(Vec<double> n) {
    if (!(n.v == n.v)) return n;
    const std::uint64_t bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(n.v) + 1023) << 52;
    double r;
    std::memcpy(&r, &bits, sizeof r);
    return {r};
}

}  // namespace fusedrnn::FUSEDRNN_ISA
