// log, softplus, elu, erf, sine and cosine on a vector V of float or double, as activations.h: no table, no branch, the
// same operations in the same order on every instruction set.
//
// Maximum error, measured by tests/test_programs.py, in units in the last place of the result unless it says otherwise:
//   log       2 ULP
//   softplus  2 ULP
//   elu       2 ULP
//   erf       2 ULP
//   sin, cos  1 ULP of 1 for |x| <= 4096 (float) or 10^6 (double); farther away they lose accuracy, and mean nothing
//             once x has no fraction of a turn
// NaN gives NaN. log is NaN below 0 and -inf at 0, to which denormal numbers belong; sin and cos of infinity are NaN.
// Of a zero elu and sin are 0 whatever its sign.
#pragma once

#include <cstddef>

#include "activations.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct ElementaryConstants;

template <>
struct ElementaryConstants<float> {
    static constexpr float smallest = 1.17549435e-38f, largest = 3.40282347e38f;
    static constexpr float infinity = __builtin_inff(), nan = __builtin_nanf("");
    // 2 atanh(s) = 2 s + s z p(z), z = s s <= 1/9.
    static constexpr float atanh[] = {0.6666667579f, 0.3999886908f, 0.2861707732f, 0.2142580789f,
                                      0.2430715634f};
    // pi/2 in parts, the first two of 11 bits: n times them is exact up to n = 2^13.
    static constexpr float half_pi[] = {1.5703125f, 4.83751296997070312e-4f, 7.54978995489188217e-8f};
    // sin(r) = r + r z p(z), cos(r) = 1 - z/2 + z z p(z), z = r r, |r| <= pi/4.
    static constexpr float sin[] = {-0.1666665444f, 0.008332146981f, -0.0001951324201f};
    static constexpr float cos[] = {0.0416666468f, -0.001388735952f, 2.443710795e-5f};
    // erf(x) = x + x p(x x) for |x| <= 1, and 1 - exp(-p((|x| - 1) / width)) from there to `one`, where it is 1.
    static constexpr float erf_near[] = {0.1283791659f,   -0.3761262706f,    0.1128360001f,  -0.02685444345f,
                                         0.005189533447f, -0.0008020817606f, 7.889052769e-5f};
    static constexpr float erf_one = 4, erf_width = 1.5f;
    static constexpr float erf_far[] = {1.849605518f,    3.958450092f,   1.897018461f,    0.1400522497f,
                                        -0.05004235117f, 0.01383554193f, -0.002101599077f};
};

template <>
struct ElementaryConstants<double> {
    static constexpr double smallest = 2.2250738585072014e-308, largest = 1.7976931348623157e308;
    static constexpr double infinity = __builtin_inf(), nan = __builtin_nan("");
    static constexpr double atanh[] = {
        0.66666666666666303729,  0.40000000000157134489, 0.28571428547889353959, 0.22222223966830193978,
        0.18181744034022227582,  0.15386557650932874455, 0.13301001709739713709, 0.12105878399549927527,
        0.083409560133723872304, 0.17017060953180520976};
    static constexpr double half_pi[] = {1.57079632673412561416626, 6.077100506303965976595549e-11,
                                         2.022266248795950732399685e-21};  // the first two of 32 bits
    static constexpr double sin[] = {-0.16666666666666666639,    0.0083333333333333221425,
                                     -0.00019841269841254369292, 2.7557319213827172057e-6,
                                     -2.5052104815965783899e-8,  1.6058354293867078238e-10,
                                     -7.5780790470040626512e-13};
    static constexpr double cos[] = {0.041666666666666666614,    -0.0013888888888888873853,
                                     0.000024801587301571154349, -2.755731921520597984e-7,
                                     2.0876754323837071851e-9,   -1.1470288087500573446e-11,
                                     4.7378611443138095068e-14};
    static constexpr double erf_near[] = {
        0.12837916709551257389,    -0.3761263890318375238,      0.11283791670955120356,
        -0.026866170645129867997,  0.0052239776254236095919,    -0.00085483270219559766518,
        0.00012055332903810452572, -0.000014925647594432712057, 1.6462045979199128314e-6,
        -1.6364649531967558908e-7, 1.4792469455471482169e-8,    -1.2164967435387806755e-9,
        8.7104610401966604111e-11, -4.2331226307808150635e-12};
    static constexpr double erf_one = 6, erf_width = 2.5;
    static constexpr double erf_far[] = {
        1.8496055099332482571,      6.5974187855869706874,      5.2694203522417222821,
        0.64939215690368683618,     -0.39194630370003632861,    0.19315454785309987056,
        -0.057940061180548286818,   -0.016038725642180465877,   0.041441430609359828779,
        -0.036654722334065210531,   0.019642619764327858612,    -0.0034045675920464709076,
        -0.0058171010104815431514,  0.0077574315235046206473,   -0.0055575486322131602828,
        0.0026688373320401229521,   -0.00085796315789668265953, 0.00016785769942829698254,
        -0.000015134050759791511546};
};

// A polynomial by its coefficients, the constant one first.
template <const auto& coefficients, std::size_t i = 0, class V>
FUSEDRNN_INLINE V polynomial(V x) {
    constexpr auto coefficient = coefficients[i];
    if constexpr (i + 1 == sizeof coefficients / sizeof coefficients[0]) {
        return V::set(coefficient);
    } else {
        return fma(polynomial<coefficients, i + 1>(x), x, V::set(coefficient));
    }
}

// log(1 + f) - f for sqrt(1/2) - 1 <= f <= 1: with s = f / (2 + f) it is 2 atanh(s) - f, and 2 s = f - s f.
template <class V>
FUSEDRNN_INLINE V log1p_beyond(V f) {
    using C = ElementaryConstants<typename V::Scalar>;
    const V s = f / (V::set(2) + f), z = s * s;
    return s * (z * polynomial<C::atanh>(z) - f);
}

template <class V>
FUSEDRNN_INLINE V log(V x) {
    using C = ElementaryConstants<typename V::Scalar>;
    using E = ExpConstants<typename V::Scalar>;
    constexpr typename V::Scalar sqrt2 = 1.41421356237309504880;
    // x = 2^n (1 + f). 2^-n in two factors: n reaches one past the largest exponent.
    const V n = exponent(x * V::set(sqrt2)), half = round(n * V::set(0.5));
    const V zero = V::set(0), f = x * pow2n(zero - half) * pow2n(half - n) - V::set(1);
    const V rest = fma(n, V::set(E::ln2_lo), log1p_beyond(f));
    V y = fma(n, V::set(E::ln2_hi), f + rest);
    y = select(less(x, V::set(C::smallest)), V::set(-C::infinity), y);
    y = select(less(x, zero), V::set(C::nan), y);
    return select(less(V::set(C::largest), x), x, y);
}

// log(1 + exp(x)).
template <class V>
FUSEDRNN_INLINE V softplus(V x) {
    const V e = exp_nonpositive(V::set(0) - abs(x));
    return max(V::set(0), x) + (e + log1p_beyond(e));
}

// x, and exp(x) - 1 for x <= 0.
template <class V>
FUSEDRNN_INLINE V elu(V x) {
    using C = ExpConstants<typename V::Scalar>;
    V n, p;
    reduce_exp(max(V::set(C::low), min(V::set(0), x)), n, p);
    const V s = pow2n(n);
    return select(less(V::set(0), x), x, fma(p, s, s - V::set(1)));
}

template <class V>
FUSEDRNN_INLINE V erf(V x) {
    using C = ElementaryConstants<typename V::Scalar>;
    const V one = V::set(1), a = min(V::set(C::erf_one), abs(x));
    const V u = (a - one) * V::set(1 / C::erf_width);
    const V far = one - exp_nonpositive(V::set(0) - polynomial<C::erf_far>(u));
    const V near = fma(x, polynomial<C::erf_near>(a * a), x);
    return select(less(one, a), copysign(far, x), near);
}

// The sine of x + turn / 4 full turns.
template <class V>
FUSEDRNN_INLINE V sine(V x, typename V::Scalar turn) {
    using C = ElementaryConstants<typename V::Scalar>;
    constexpr typename V::Scalar two_over_pi = 0.63661977236758134308;
    const V n = round(x * V::set(two_over_pi));
    V r = fma(n, V::set(-C::half_pi[0]), x);
    r = fma(n, V::set(-C::half_pi[1]), r);
    r = fma(n, V::set(-C::half_pi[2]), r);
    r = min(V::set(1), max(V::set(-1), r));  // it is smaller wherever n was exact
    const V z = r * r;
    const V sin_r = fma(r * z, polynomial<C::sin>(z), r);
    const V cos_r = fma(z * z, polynomial<C::cos>(z), fma(z, V::set(-0.5), V::set(1)));
    // The quarters of a turn that are left, in [-1/2, 1/2] turns.
    V left = (n + V::set(turn)) * V::set(0.25);
    left = left - round(left);
    const V y = select(less(abs(abs(left) - V::set(0.25)), V::set(0.125)), cos_r, sin_r);
    const V positive = select(less(V::set(0.375), left), V::set(0) - y, y);
    return select(less(left, V::set(-0.125)), V::set(0) - y, positive);
}
template <class V>
FUSEDRNN_INLINE V sin(V x) {
    return sine(x, 0);
}
template <class V>
FUSEDRNN_INLINE V cos(V x) {
    return sine(x, 1);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
