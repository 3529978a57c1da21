// Optimisers and the operations on gradients, all in place. Arrays may have any shape, the same for all of one call.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/run.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

std::vector<Axis> axes_of(const Array& x) {
    std::vector<Axis> axes;
    for (int i = 0; i < x.ndim(); ++i) axes.push_back({std::to_string(x.size(i)), x.size(i)});
    return axes;
}

// An array of param's shape that the step reads, or also writes.
Array beside(const Array& param, py::handle value, const char* name, Presence presence = kRequired) {
    return Array::like(value, name, param, presence).shape(axes_of(param)).contiguous().apart_from(param);
}

double fraction_below_one(py::handle value, const char* name) {
    const double number = finite_number(value, name);
    require(number >= 0 && number < 1, name, "a number in [0, 1)", number);
    return number;
}

// The numbers of a type: what is smaller than `least` counts as 0 in the kernels, what is larger than `most` as infinite.
struct Range {
    const char* name;
    double least, most;
};
Range range_of(DType dtype) {
    using F = std::numeric_limits<float>;
    using D = std::numeric_limits<double>;
    return dtype == DType::float32 ? Range{"float32", F::min(), F::max()}
                                   : Range{"float64", D::min(), D::max()};
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
double setting(py::handle value, const char* name, const Range& range, bool may_vanish = false) {
    const double number = finite_number(value, name), size = std::abs(number);
    if (size <= range.most && (size == 0 || size >= range.least || may_vanish)) return number;
    refuse(name,
           "0 or a number from " + text(range.least) + " to " + text(range.most) + ", as " + range.name +
               " holds",
           number);
}

template <class T>
double norm_of(const Array& x, double p) {
    std::vector<double> partial(static_cast<std::size_t>((x.size() + kNormBlock - 1) / kNormBlock));
    double result = 0;
    Team team(threads_for(static_cast<double>(x.size())));
    run_released(team,
                 [&] { result = layer_table<T>().norm(x.size(), x.data<T>(), p, partial.data(), team); });
    return result;
}

void sgd_step(const py::object& param_, const py::object& grad_, const py::object& momentum_buf_,
              const py::object& lr, const py::object& momentum, const py::object& dampening,
              const py::object& weight_decay, const py::object& nesterov, const py::object& first) {
    const Array param = Array::floats(param_, "param").writable();
    const Array grad = beside(param, grad_, "grad");
    const Range range = range_of(param.dtype());
    const SgdOptions options{setting(lr, "lr", range, true),
                             setting(momentum, "momentum", range),
                             setting(dampening, "dampening", range, true),
                             setting(weight_decay, "weight_decay", range),
                             flag(nesterov, "nesterov"),
                             flag(first, "first")};
    const bool uses_momentum = options.momentum != 0;
    const Array buf = beside(param, momentum_buf_, "momentum_buf", uses_momentum ? kRequired : kOptional)
                          .writable()
                          .apart_from(grad);
    require(uses_momentum || !options.nesterov, "momentum", "a number above 0 with nesterov",
            options.momentum);
    by_dtype(param.dtype(), [&]<class T>() {
        Team team(threads_for(static_cast<double>(param.size())));
        run_released(team, [&] {
            layer_table<T>().sgd_step(param.size(), param.mutable_data<T>(), grad.data<T>(),
                                      uses_momentum ? buf.mutable_data<T>() : nullptr, options, team);
        });
    });
}

void adam_step(const py::object& param_, const py::object& grad_, const py::object& exp_avg_,
               const py::object& exp_avg_sq_, const py::object& lr, const py::object& beta1,
               const py::object& beta2, const py::object& eps, const py::object& weight_decay,
               const py::object& decoupled, const py::object& step) {
    const Array param = Array::floats(param_, "param").writable();
    const Array grad = beside(param, grad_, "grad");
    const Array exp_avg = beside(param, exp_avg_, "exp_avg").writable().apart_from(grad);
    const Array exp_avg_sq =
        beside(param, exp_avg_sq_, "exp_avg_sq").writable().apart_from(grad).apart_from(exp_avg);
    const Range range = range_of(param.dtype());
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
    by_dtype(param.dtype(), [&]<class T>() {
        bool held = true;
        {
            Team team(threads_for(2.0 * static_cast<double>(param.size())));
            run_released(team, [&] {
                held = layer_table<T>().adam_step(param.size(), param.mutable_data<T>(), grad.data<T>(),
                                                  exp_avg.mutable_data<T>(), exp_avg_sq.mutable_data<T>(),
                                                  options, team);
            });
        }
        if (held) return;
        refuse(
            "grad",
            std::string("values whose squares ") + range.name +
                " holds (clip_grad_norm limits them; parameters with larger gradients were left as they are)",
            norm_of<T>(grad, HUGE_VAL));
    });
}

double norm(const py::object& x_, const py::object& p_) {
    const Array x = Array::floats(x_, "x").contiguous();
    const double p = real_number(p_, "p");
    require(p > 0, "p", "a number above 0", p);
    return by_dtype(x.dtype(), [&]<class T>() { return norm_of<T>(x, p); });
}

void scale(const py::object& x_, const py::object& factor_) {
    const Array x = Array::floats(x_, "x").writable();
    double factor = real_number(factor_, "factor");
    const Range range = range_of(x.dtype());
    by_dtype(x.dtype(), [&]<class T>() {
        constexpr double kStep = sizeof(T) == 4 ? 0x1p64 : 0x1p512;
        const auto multiply = [&](double by) {
            Team team(threads_for(static_cast<double>(x.size())));
            run_released(team, [&] { layer_table<T>().scale(x.size(), x.mutable_data<T>(), by, team); });
        };
        // What T does not hold is multiplied by in parts: 1e-40 times 1e38 is not 0.
        for (; factor != 0 && std::abs(factor) < range.least; factor *= kStep) multiply(1 / kStep);
        for (; std::isfinite(factor) && std::abs(factor) > range.most; factor /= kStep) multiply(kStep);
        multiply(factor);
    });
}

void clamp(const py::object& x_, const py::object& lo_, const py::object& hi_) {
    const Array x = Array::floats(x_, "x").writable();
    const double lo = real_number(lo_, "lo"), hi = real_number(hi_, "hi");
    require(!std::isnan(lo), "lo", "a number", lo);
    require(hi >= lo, "hi", "a number >= lo", hi);
    by_dtype(x.dtype(), [&]<class T>() {
        Team team(threads_for(static_cast<double>(x.size())));
        run_released(team, [&] { layer_table<T>().clamp(x.size(), x.mutable_data<T>(), lo, hi, team); });
    });
}

}  // namespace

void bind_optim(py::module_& m) {
    using py::arg;
    m.def("sgd_step", &sgd_step, arg("param"), arg("grad"), arg("momentum_buf"), arg("lr"), arg("momentum"),
          arg("dampening"), arg("weight_decay"), arg("nesterov"), arg("first"),
          "One step of stochastic gradient descent; param and momentum_buf change.");
    m.def("adam_step", &adam_step, arg("param"), arg("grad"), arg("exp_avg"), arg("exp_avg_sq"), arg("lr"),
          arg("beta1"), arg("beta2"), arg("eps"), arg("weight_decay"), arg("decoupled"), arg("step"),
          "One step of Adam, or of AdamW if decoupled; param, exp_avg and exp_avg_sq change.");
    m.def("norm", &norm, arg("x"), arg("p"), "Return (sum |x|^p)^(1/p), or max |x| for p = inf.");
    m.def("scale_", &scale, arg("x"), arg("factor"), "Multiply x in place.");
    m.def("clamp_", &clamp, arg("x"), arg("lo"), arg("hi"), "Limit x in place to [lo, hi]; NaN stays.");
}

}  // namespace fusedrnn
