// The formats of numbers, and the arithmetic of one thread.
#include <algorithm>
#include <cmath>
#include <limits>

#include "activations.h"
#include "check.h"

namespace emulator_check {

namespace {

// Between two neighbours of a format the middle goes to the even one, all else to the nearer one.
template <class Round, class Widen>
void check_rounding(const char* name, unsigned first, unsigned last, bool ties_away, Round round,
                    Widen widen) {
    bool good = true;
    for (unsigned bits = first; bits < last; ++bits) {
        const float low = widen(bits), high = widen(bits + 1);
        const auto middle = static_cast<float>((double{low} + double{high}) / 2);
        good &= round(low) == bits && round(high) == bits + 1;
        good &= round(middle) == (ties_away || bits % 2 == 1 ? bits + 1 : bits);
        good &= round(std::nextafter(middle, 0.0f)) == bits;
        good &= round(std::nextafter(middle, HUGE_VALF)) == bits + 1;
        good &= round(-low) == (bits | widen.sign) && round(-middle) == (round(middle) | widen.sign);
    }
    expect(good, std::string("rounding to ") + name);
}

struct WidenBf16 {
    unsigned sign = 0x8000;
    float operator()(unsigned bits) const { return to_float(bf16{static_cast<std::uint16_t>(bits)}); }
};
struct WidenF16 {
    unsigned sign = 0x8000;
    // Not the emulator's conversion: 2^(exponent - 25) (1024 + fraction).
    float operator()(unsigned bits) const {
        const unsigned exponent = bits >> 10;
        const double fraction = bits & 1023;
        return static_cast<float>(exponent == 0
                                      ? fraction * 0x1p-24
                                      : (1024 + fraction) * std::pow(2.0, static_cast<int>(exponent) - 25));
    }
};
struct WidenTf32 {
    unsigned sign = 0x80000000u >> 13;
    float operator()(unsigned bits) const { return as_float(bits << 13); }
};

// Units in the last place of T between got and want.
template <class T>
double ulps(T got, long double want) {
    const auto rounded = static_cast<T>(want);
    if (std::isinf(rounded) || std::isnan(rounded)) return got == rounded ? 0 : HUGE_VAL;
    const T magnitude = std::max(std::fabs(rounded), std::numeric_limits<T>::min());
    const T unit = std::nextafter(magnitude, std::numeric_limits<T>::infinity()) - magnitude;
    return static_cast<double>(std::fabs(static_cast<long double>(got) - want) / unit);
}

// activations.h on csrc/simd/cuda.h keeps what activations.h promises.
template <class T>
void check_activations(const char* name) {
    using V = Vec<T>;
    double worst = 0;
    for (int i = -30000; i <= 30000; ++i) {
        const T x = static_cast<T>(i) * static_cast<T>(i % 3 == 0 ? 0.0011 : 0.00003);
        const long double exact = x;
        worst = std::max(worst, ulps(exp(V::set(x)).v, std::exp(exact)) * 2);  // 1 ULP, the others 2
        worst = std::max(worst, ulps(sigmoid(V::set(x)).v, 1 / (1 + std::exp(-exact))));
        worst = std::max(worst, ulps(tanh(V::set(x)).v, std::tanh(exact)));
    }
    expect(worst <= 2, std::string("activations in ") + name + ": " + std::to_string(worst) + " ULP");
    const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
    expect(sigmoid(V::set(-inf)).v == 0 && sigmoid(V::set(inf)).v == 1 && tanh(V::set(-inf)).v == -1 &&
               std::isnan(sigmoid(V::set(nan)).v) && std::isnan(tanh(V::set(nan)).v) &&
               std::isnan(relu(V::set(nan)).v) && relu(V::set(T(-2))).v == 0 &&
               std::signbit(tanh(V::set(T(-0.0))).v),
           std::string("special values in ") + name);
    // fma rounds once.
    const T e = std::numeric_limits<T>::epsilon();
    expect(fma(V::set(1 + e), V::set(1 - e), V::set(-1)).v == -e * e, std::string("fma in ") + name);
}

}  // namespace

void check_numbers() {
    check_rounding(
        "bf16", 0, 0x7F7F, false, [](float x) { return unsigned{from_float<bf16>(x).bits}; }, WidenBf16{});
    check_rounding(
        "f16", 0, 0x7BFF, false, [](float x) { return unsigned{from_float<fp16>(x).bits}; }, WidenF16{});
    // From just below 1 to above 8; the exponent matters to nothing.
    check_rounding(
        "tf32", 0x3F7000u * 256 >> 13, 0x410100u * 256 >> 13, true,
        [](float x) { return round_tf32(x) >> 13; }, WidenTf32{});
    check_activations<float>("float");
    check_activations<double>("double");
    bool good = true;
    for (unsigned bits = 0; bits <= 0x7C00; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        good &= to_float(fp16{half}) == (bits == 0x7C00 ? HUGE_VALF : WidenF16{}(bits));
        good &= to_float(fp16{static_cast<std::uint16_t>(half | 0x8000)}) == -to_float(fp16{half});
    }
    expect(good, "f16 to float");
    const float inf = HUGE_VALF, nan = std::nanf("");
    expect(from_float<fp16>(65519.0f).bits == 0x7BFF && from_float<fp16>(65520.0f).bits == 0x7C00,
           "f16 overflow");
    expect(from_float<bf16>(3.4e38f).bits == 0x7F80 && from_float<bf16>(-inf).bits == 0xFF80,
           "bf16 overflow");
    expect(std::isnan(to_float(from_float<fp16>(nan))) && std::isnan(to_float(from_float<bf16>(nan))) &&
               std::isnan(as_float(round_tf32(nan))) && round_tf32(inf) == as_unsigned(inf),
           "NaN and infinity");
    expect(to_bf16x2(1.0f, 2.0f) == 0x40003F80 && to_f16x2(1.0f, 2.0f) == 0x40003C00, "pairs");
}

}  // namespace emulator_check
