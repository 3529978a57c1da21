// One lane, whatever computes it: what scalar.h and cuda.h share.
#pragma once

#include <cstdint>
#include <cstring>

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct Vec {
    using Scalar = T;
    using Mask = bool;
    static constexpr int kLanes = 1;
    T v;

    static FUSEDRNN_INLINE Mask lanes(std::uint32_t bits) { return (bits & 1) != 0; }
    static FUSEDRNN_INLINE Vec load(const T* p) { return {*p}; }
    static FUSEDRNN_INLINE Vec load_n(const T* p, int n) { return {n > 0 ? *p : T(0)}; }
    static FUSEDRNN_INLINE Vec set(T x) { return {x}; }
    FUSEDRNN_INLINE void store(T* p) const { *p = v; }
    FUSEDRNN_INLINE void store_n(T* p, int n) const {
        if (n > 0) *p = v;
    }
};

template <class T>
FUSEDRNN_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
    return {a.v < b.v ? a.v : b.v};
}
template <class T>
FUSEDRNN_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
    return {a.v > b.v ? a.v : b.v};
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
FUSEDRNN_INLINE Vec<double> pow2n(Vec<double> n) {
    if (!(n.v == n.v)) return n;
    const std::uint64_t bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(n.v) + 1023) << 52;
    double r;
    std::memcpy(&r, &bits, sizeof r);
    return {r};
}

// The code of a GPU has its own of these.
#ifndef __CUDA_ARCH__
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
FUSEDRNN_INLINE Vec<float> pow2n(Vec<float> n) {
    if (!(n.v == n.v)) return n;
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.v) + 127) << 23;
    float r;
    std::memcpy(&r, &bits, sizeof r);
    return {r};
}
#endif

}  // namespace fusedrnn::FUSEDRNN_ISA
