// One lane, one thread of a GPU: for nvcc, and for the host compiler that builds the same kernels for the
// emulator. See simd.h for the contract. Both give the same bits: every operation is rounded once, and none
// is contracted.
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
template <class T>
FUSEDRNN_INLINE Vec<T> round(Vec<T> a) {
    return {std::rint(a.v)};
}
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

FUSEDRNN_INLINE Vec<float> pow2n(Vec<float> n) {
    if (!(n.v == n.v)) return n;
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.v) + 127) << 23;
    float r;
    std::memcpy(&r, &bits, sizeof r);
    return {r};
}
FUSEDRNN_INLINE Vec<double> pow2n(Vec<double> n) {
    if (!(n.v == n.v)) return n;
    const std::uint64_t bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(n.v) + 1023) << 52;
    double r;
    std::memcpy(&r, &bits, sizeof r);
    return {r};
}

}  // namespace fusedrnn::FUSEDRNN_ISA
