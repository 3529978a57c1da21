// One lane: plain C++, for any CPU. See simd.h for the contract.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kRegisters = 16;

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
    return {a.v * b.v + c.v};
}
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
    return {a.v < 0 ? -a.v : (a.v == 0 ? T(0) : a.v)};
}
template <class T>
FUSEDRNN_INLINE Vec<T> copysign(Vec<T> a, Vec<T> sign) {
    return {__builtin_signbit(sign.v) == __builtin_signbit(a.v) ? a.v : -a.v};
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

template <class T>
using Narrow = Vec<T>;

struct VecI {
    std::int32_t v;

    static FUSEDRNN_INLINE VecI set(std::int32_t x) { return {x}; }
    static FUSEDRNN_INLINE VecI load(const void* p) {
        VecI a;
        std::memcpy(&a.v, p, sizeof a.v);
        return a;
    }
};

FUSEDRNN_INLINE VecI operator^(VecI a, VecI b) { return {a.v ^ b.v}; }
FUSEDRNN_INLINE VecI dot4(VecI a, VecI b, VecI c) {
    for (int i = 0; i < 32; i += 8) {
        c.v += static_cast<std::int8_t>(a.v >> i) * static_cast<std::int8_t>(b.v >> i);
    }
    return c;
}
FUSEDRNN_INLINE Vec<float> to_float(VecI a) { return {static_cast<float>(a.v)}; }
FUSEDRNN_INLINE void store_int8(Vec<float> a, std::int8_t* p) { *p = static_cast<std::int8_t>(a.v); }
FUSEDRNN_INLINE void load_bf16(const std::uint16_t* p, Vec<float>& even, Vec<float>& odd) {
    const std::uint32_t bits[2] = {std::uint32_t{p[0]} << 16, std::uint32_t{p[1]} << 16};
    std::memcpy(&even.v, &bits[0], sizeof even.v);
    std::memcpy(&odd.v, &bits[1], sizeof odd.v);
}

// Adding and subtracting 1.5 * 2^(mantissa bits) rounds to nearest even without a library call.
FUSEDRNN_INLINE Vec<float> round(Vec<float> a) {
    volatile float shifted = a.v + 12582912.0f;
    return {shifted - 12582912.0f};
}
FUSEDRNN_INLINE Vec<double> round(Vec<double> a) {
    volatile double shifted = a.v + 6755399441055744.0;
    return {shifted - 6755399441055744.0};
}
// Without -fmath-errno the builtins are one instruction, not the library's function.
FUSEDRNN_INLINE Vec<float> sqrt(Vec<float> a) { return {__builtin_sqrtf(a.v)}; }
FUSEDRNN_INLINE Vec<double> sqrt(Vec<double> a) { return {__builtin_sqrt(a.v)}; }
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
