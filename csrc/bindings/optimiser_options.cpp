#include "bindings/optimiser_options.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

namespace fusedrnn {
namespace {

double fraction_below_one(py::handle value, const char* name) {
    const double number = finite_number(value, name);
    require(number >= 0 && number < 1, name, "a number in [0, 1)", number);
    return number;
}

std::string text(double number) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.3g", number);
    return digits;
}

[[noreturn]] void refuse(const char* name, const std::string& expected, double value) {
    require(false, name, expected, value);
    std::abort();
}

// A setting that multiplies arrays of the type, unless it is that small that `may_vanish`.
double setting(py::handle value, const char* name, const NumberRange& range, bool may_vanish = false) {
    const double number = finite_number(value, name), size = std::abs(number);
    if (size <= range.most && (size == 0 || size >= range.least || may_vanish)) return number;
    refuse(name,
           "0 or a number from " + text(range.least) + " to " + text(range.most) + ", as " + range.name +
               " holds",
           number);
}

}  // namespace

NumberRange range_of(DType dtype) {
    using F = std::numeric_limits<float>;
    using D = std::numeric_limits<double>;
    return dtype == DType::float32 ? NumberRange{"float32", F::min(), F::max()}
                                   : NumberRange{"float64", D::min(), D::max()};
}

SgdOptions read_sgd_options(const NumberRange& range, py::handle lr, py::handle momentum,
                            py::handle dampening, py::handle weight_decay, py::handle nesterov,
                            py::handle first) {
    const SgdOptions options{setting(lr, "lr", range, true),
                             setting(momentum, "momentum", range),
                             setting(dampening, "dampening", range, true),
                             setting(weight_decay, "weight_decay", range),
                             flag(nesterov, "nesterov"),
                             flag(first, "first")};
    require(options.momentum != 0 || !options.nesterov, "momentum", "a number above 0 with nesterov",
            options.momentum);
    return options;
}

AdamOptions read_adam_options(const NumberRange& range, py::handle lr, py::handle beta1, py::handle beta2,
                              py::handle eps, py::handle weight_decay, py::handle decoupled,
                              py::handle step) {
    const AdamOptions options{setting(lr, "lr", range, true),
                              fraction_below_one(beta1, "beta1"),
                              fraction_below_one(beta2, "beta2"),
                              finite_number(eps, "eps"),
                              setting(weight_decay, "weight_decay", range),
                              flag(decoupled, "decoupled"),
                              integer(step, "step", 1, std::numeric_limits<std::int64_t>::max())};
    // A gradient below it has no square in exp_avg_sq: its step would be without bounds, or 0 / 0.
    const double least_eps = std::sqrt(range.least / (1 - options.beta2));
    if (options.eps < least_eps) {
        refuse("eps",
               "a number >= sqrt(" + text(range.least) + " / (1 - beta2)) = " + text(least_eps) +
                   ", so that " + range.name + " holds its square",
               options.eps);
    }
    if (std::abs(options.lr) / (1 - options.beta1) > range.most) {
        refuse("lr", std::string("lr / (1 - beta1) within ") + range.name, options.lr);
    }
    if (options.decoupled && std::abs(options.lr * options.weight_decay) > range.most) {
        refuse("weight_decay", std::string("lr * weight_decay within ") + range.name, options.weight_decay);
    }
    return options;
}

void refuse_gradient(const NumberRange& range, double largest) {
    refuse("grad",
           std::string("values whose squares ") + range.name +
               " holds (clip_grad_norm limits them; parameters with larger gradients were left as they are)",
           largest);
}

}  // namespace fusedrnn
