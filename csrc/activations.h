// exp, sigmoid and tanh on a vector V of float or double: no table, no branch, the same operations in the same order
// on every instruction set.
//
// Maximum error, measured by tests/test_activations.py over the whole range (results that are denormal may be 0):
//   float   exp 1 ULP, sigmoid 2 ULP, tanh 2 ULP
//   double  exp 1 ULP, sigmoid 2 ULP, tanh 2 ULP
// NaN gives NaN; sigmoid(-inf) = 0, sigmoid(inf) = 1, tanh(+-inf) = +-1, exp(-inf) = 0, exp(inf) = inf.
//
// All three stand on one reduction: x = n ln2 + r with |r| <= ln2 / 2, and
//   expm1(r) = r + r^2 q(r),   exp(x) = 2^n (1 + expm1(r)),   q a minimax polynomial in the relative error of expm1(r).
#pragma once

#include "simd/simd.h"
#ifdef FUSEDRNN_BF16
#include "activations_bf16.h"
#endif

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    static constexpr float log2e = 1.44269504088896341f;
    // ln2_hi has 9 significant bits: n * ln2_hi is exact.
    static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440054690583e-4f;
    static constexpr float low = -88.0f, high = 88.8f;  // 2^n is 0 below, inf above
    static constexpr float tanh_high = 9.1f;            // tanh rounds to 1 from 9.02 on
    static constexpr int degree = 5;                    // relative error 2^-31.9
    static constexpr float q[degree + 1] = {0.50000000444002836f,   0.16666666369052549f,
                                            0.041666359818771964f,  0.0083333895288295106f,
                                            0.0013940720127785084f, 0.00019845908053931178f};
};

template <>
struct ExpConstants<double> {
    static constexpr double log2e = 1.44269504088896340735992468100;
    static constexpr double ln2_hi = 6.93145751953125e-1,
                            ln2_lo = 1.42860682030941723212e-6;  // 20 significant bits
    static constexpr double low = -709.0, high = 709.9;
    static constexpr double tanh_high = 19.1;
    static constexpr int degree = 11;  // relative error 2^-68
    static constexpr double q[degree + 1] = {
        0.4999999999999999999,      0.16666666666666666686,   0.041666666666666691314,
        0.0083333333333333123679,   0.0013888888888872200188, 0.0001984126984134309555,
        0.000024801587349634230226, 2.7557319117361447695e-6, 2.7557252229195330647e-7,
        2.505216764470573594e-8,    2.0921499131768205738e-9, 1.605981201189134886e-10};
};

// q(r) from its i-th coefficient on. A loop over the array would need it in memory, which CUDA's devices do not have.
template <class V, int i = 0>
FUSEDRNN_INLINE V exp_polynomial(V r) {
    using C = ExpConstants<typename V::Scalar>;
    constexpr typename V::Scalar coefficient = C::q[i];
    if constexpr (i == C::degree) {
        return V::set(coefficient);
    } else {
        return fma(exp_polynomial<V, i + 1>(r), r, V::set(coefficient));
    }
}

// n and expm1(r) of the reduction.
template <class V>
FUSEDRNN_INLINE void reduce_exp(V x, V& n, V& p) {
    using C = ExpConstants<typename V::Scalar>;
    n = round(x * V::set(C::log2e));
    const V r = fma(n, V::set(-C::ln2_lo), fma(n, V::set(-C::ln2_hi), x));
    p = fma(r * r, exp_polynomial(r), r);
}

template <class V>
FUSEDRNN_INLINE V exp(V x) {
    using C = ExpConstants<typename V::Scalar>;
    V n, p;
    reduce_exp(min(V::set(C::high), max(V::set(C::low), x)), n, p);
    // 2^n in two factors: n reaches one past the largest exponent.
    const V half = round(n * V::set(0.5));
    const V scaled = fma(p, pow2n(half), pow2n(half)) * pow2n(n - half);
    return scaled;
}

// exp(x) for x <= 0.
template <class V>
FUSEDRNN_INLINE V exp_nonpositive(V x) {
    using C = ExpConstants<typename V::Scalar>;
    V n, p;
    reduce_exp(max(V::set(C::low), x), n, p);
    // Not fma(p, s, s): without a fused multiply-add, p s would underflow where the result does not.
    return (V::set(1) + p) * pow2n(n);
}

// num / sum where sum = 1 + small was rounded and dropped `lost`: 1 / sum is near enough to 1 to correct with it.
template <class V>
FUSEDRNN_INLINE V divide_corrected(V num, V sum, V lost) {
    const V quotient = divide_moderate(num, sum);
    return fma(quotient, V::set(0) - lost, quotient);
}

// 1 / (1 + exp(-x)) for x >= 0 and exp(x) / (1 + exp(x)) below: the negative tail keeps its relative accuracy.
template <class V>
FUSEDRNN_INLINE V sigmoid(V x) {
    const V one = V::set(1);
    const V e = exp_nonpositive(V::set(0) - abs(x));
    const V sum = one + e;
    return divide_corrected(select(less(x, V::set(0)), e, one), sum, e - (sum - one));
}

// With e = exp(-2 |x|): (1 - e) / (1 + e), both rounded once from the reduced exponential, then the sign of x.
template <class V>
FUSEDRNN_INLINE V tanh(V x) {
    using C = ExpConstants<typename V::Scalar>;
    const V one = V::set(1);
    const V a = min(V::set(C::tanh_high), abs(x));
    V n, p;
    reduce_exp(V::set(-2) * a, n, p);
    const V s = pow2n(n);
    const V difference = fma(p, s, s - one);
    const V sum = fma(p, s, s + one);
    return copysign(divide_moderate(difference, sum), x);
}

template <class V>
FUSEDRNN_INLINE V relu(V x) {
    return max(V::set(0), x);  // NaN stays NaN
}

}  // namespace fusedrnn::FUSEDRNN_ISA
