// sigmoid and tanh where the products before them are rounded to 8 bits: two thirds of the operations of activations.h, which
// these overloads stand in for. Maximum error, measured by tests/test_compute.py: sigmoid(x)
// 4 + |x| ULP, tanh 5 ULP; NaN gives NaN, and results stay within [0, 1] and [-1, 1].
#pragma once

#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The coefficients after the first, 1, from the i-th on: of a minimax polynomial of 2^r, |r| <= 1/2, relative error 2^-23.4;
// and of one of tanh(x) = x P(x^2) / Q(x^2) for |x| <= 7.8, 2^-27.6. All fitted by weighted least squares.
inline constexpr float kPow2[] = {0.6931469775937151f, 0.24022242077586092f, 0.05550733748102728f,
                                  0.009671513134371267f, 0.0013264727111295387f};
inline constexpr float kTanhAbove[] = {0.13456708192825317f, 0.0035863537341356277f, 2.2151891243993305e-05f,
                                       1.5627495741910025e-08f};
inline constexpr float kTanhBelow[] = {0.4679003655910492f, 0.02621988207101822f, 0.00034359784331172705f,
                                       8.675467597640818e-07f};
inline constexpr float kTanhHigh = 7.8f;

// 1 + x (c[0] + x (c[1] + ...)).
template <int kCount>
FUSEDRNN_INLINE VecF polynomial_from_one(const float (&c)[kCount], VecF x) {
    VecF sum = VecF::set(c[kCount - 1]);
#pragma GCC unroll 8
    for (int i = kCount - 2; i >= 0; --i) sum = fma(sum, x, VecF::set(c[i]));
    return fma(sum, x, VecF::set(1));
}

FUSEDRNN_INLINE VecF sigmoid(VecF x) {
    constexpr float kMinusLog2e = -1.44269504088896341f;
    const VecF y = max(VecF::set(-126), min(VecF::set(126), x * VecF::set(kMinusLog2e)));
    const VecF n = round(y);
    const VecF e = times_pow2n(polynomial_from_one(kPow2, y - n), n);
    return divide_moderate(VecF::set(1), VecF::set(1) + e);
}

FUSEDRNN_INLINE VecF tanh(VecF x) {
    const VecF a = max(VecF::set(-kTanhHigh), min(VecF::set(kTanhHigh), x)), square = a * a;
    return divide_moderate(a * polynomial_from_one(kTanhAbove, square),
                           polynomial_from_one(kTanhBelow, square));
}

}  // namespace fusedrnn::FUSEDRNN_ISA
