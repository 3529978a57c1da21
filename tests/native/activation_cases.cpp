// The activations, to 2 ULP of the exact values.
#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

constexpr double kUlp = 2.0;

template <class T>
struct Wider {
    using Type = double;
};
template <>
struct Wider<double> {
    using Type = long double;
};
template <class T>
using Wide = typename Wider<T>::Type;

template <class W>
W exact_exp(W x) {
    return std::exp(x);
}
// Accurate in both tails.
template <class W>
W exact_sigmoid(W x) {
    const W e = std::exp(-std::abs(x));
    return x < 0 ? e / (1 + e) : 1 / (1 + e);
}
template <class W>
W exact_tanh(W x) {
    const W twice = -2 * std::abs(x);
    return std::copysign(-std::expm1(twice) / (1 + std::exp(twice)), x);
}

// Exact values that are denormal may be flushed to zero, those beyond the largest number may be that or
// infinite.
template <class T>
double ulp_error(T got, Wide<T> exact) {
    using Limits = std::numeric_limits<T>;
    const Wide<T> size = std::abs(exact);
    if (size > Limits::max()) return std::abs(got) >= Limits::max() ? 0 : Limits::infinity();
    if (size < Limits::min() && got == 0) return 0;
    const int exponent = size < Limits::min() ? Limits::min_exponent - 1 : std::ilogb(size);
    const Wide<T> ulp = std::ldexp(Wide<T>(1), exponent - (Limits::digits - 1));
    const double error = static_cast<double>(std::abs(static_cast<Wide<T>>(got) - exact) / ulp);
    return error == error ? error : Limits::infinity();
}

// All exponents, both signs, and dense samples where the functions are not constant.
template <class T>
Array<T> samples(std::int64_t count) {
    Array<T> x(1, count);
    Random random(3);
    constexpr double kRanges[] = {0.1, 0.7, 2.0, 20.0, 100.0, 760.0};
    for (std::int64_t i = 0; i < count; ++i) {
        if (i % 2 == 0) {
            const int exponent = static_cast<int>(random.below(2 * std::numeric_limits<T>::max_exponent)) -
                                 std::numeric_limits<T>::max_exponent;
            x.data()[i] = static_cast<T>(std::ldexp(random.uniform(), exponent));
        } else {
            x.data()[i] = static_cast<T>(kRanges[i / 2 % 6] * random.uniform());
        }
    }
    return x;
}

template <class T>
void check_activation(const char* function, void (*kernel)(std::int64_t, const T*, T*, Team&),
                      Wide<T> (*exact)(Wide<T>), std::int64_t count, Report& report) {
    const std::string name = std::string(type_name<T>()) + " " + function + " N" + std::to_string(count);
    const Array<T> x = samples<T>(count);
    Array<T> y(1, count);
    Team team(1);
    kernel(x.width(), x.data(), y.data(), team);
    double worst = 0;
    for (std::int64_t i = 0; i < x.width(); ++i) {
        const double error = ulp_error(y.data()[i], exact(static_cast<Wide<T>>(x.data()[i])));
        worst = std::max(worst, error);
    }
    if (!(worst <= kUlp)) report.fail(name, "ULP", worst);
    if (!y.intact()) report.fail(name, "written outside", 0);
    report.done(name, {{"y", Digest().add(y)}});
}

// NaN and infinities at every place of a vector and of its tail, with ordinary neighbours.
template <class T>
void check_special(const LayerTable<T>& table, Report& report) {
    constexpr T kNan = std::numeric_limits<T>::quiet_NaN(), kInf = std::numeric_limits<T>::infinity();
    struct Case {
        const char* name;
        void (*kernel)(std::int64_t, const T*, T*, Team&);
        T at_infinity, at_minus_infinity;
    };
    const Case cases[] = {{"exp", table.exp, kInf, 0},
                          {"sigmoid", table.sigmoid, 1, 0},
                          {"tanh", table.tanh, 1, -1},
                          {"clamp",
                           [](std::int64_t n, const T* x, T* y, Team& team) {
                               std::copy_n(x, n, y);
                               layer_table<T>().clamp(n, y, -2, 3, team);
                           },
                           3, -2}};
    Team team(1);
    for (const Case& c : cases) {
        const std::pair<T, T> pairs[] = {{kNan, kNan}, {kInf, c.at_infinity}, {-kInf, c.at_minus_infinity}};
        for (const auto& [value, want] : pairs) {
            for (std::int64_t place = 0; place < 19; ++place) {
                Array<T> x = Array<T>(1, 19).fill(T(0.25)), y(1, 19);
                x.data()[place] = value;
                c.kernel(19, x.data(), y.data(), team);
                for (std::int64_t i = 0; i < 19; ++i) {
                    const T got = y.data()[i];
                    const bool right = i != place         ? std::isfinite(got)
                                       : std::isnan(want) ? std::isnan(got)
                                                          : got == want;
                    if (!right) report.fail(std::string(type_name<T>()) + " " + c.name, "special", got);
                }
            }
        }
    }
}

}  // namespace

template <class T>
void check_activations(const LayerTable<T>& layers, Report& report) {
    for (const std::int64_t count : {1003, 20003}) {
        if (count > 1003 && report.sampled()) continue;
        check_activation<T>("exp", layers.exp, exact_exp<Wide<T>>, count, report);
        check_activation<T>("sigmoid", layers.sigmoid, exact_sigmoid<Wide<T>>, count, report);
        check_activation<T>("tanh", layers.tanh, exact_tanh<Wide<T>>, count, report);
    }
    check_special(layers, report);
}

template void check_activations<float>(const LayerTable<float>&, Report&);
template void check_activations<double>(const LayerTable<double>&, Report&);

}  // namespace kernel_check
