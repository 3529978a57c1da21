// One lane: plain C++, for any CPU. See simd.h for the contract.
#pragma once

#include <cstdint>
#include <cstring>

#include "one_lane.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kRegisters = 16;

template <class T>
FUSEDRNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return {a.v * b.v + c.v};
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

}  // namespace fusedrnn::FUSEDRNN_ISA
