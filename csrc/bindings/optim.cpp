// Optimisers and the operations on gradients, all in place. Arrays may have any shape, the same for all of one call.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/optimiser_options.h"
#include "bindings/run.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

// An array of param's shape that the step reads, or also writes.
Array beside(const Array& param, py::handle value, const char* name, Presence presence = kRequired) {
    return Array::like(value, name, param, presence).shape_of(param).contiguous().apart_from(param);
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
    const SgdOptions options =
        read_sgd_options(range_of(param.dtype()), lr, momentum, dampening, weight_decay, nesterov, first);
    const bool uses_momentum = options.momentum != 0;
    const Array buf = beside(param, momentum_buf_, "momentum_buf", uses_momentum ? kRequired : kOptional)
                          .writable()
                          .apart_from(grad);
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
    const NumberRange range = range_of(param.dtype());
    const AdamOptions options =
        read_adam_options(range, lr, beta1, beta2, eps, weight_decay, decoupled, step);
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
        if (!held) refuse_gradient(range, norm_of<T>(grad, HUGE_VAL));
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
    const NumberRange range = range_of(x.dtype());
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
