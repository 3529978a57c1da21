// Layer normalisation, cross-entropy and the optimisers on arrays in device memory.
#include "ops.h"

#include <initializer_list>

#include "bindings/optimiser_options.h"
#include "cuda/bindings/bindings.h"
#include "cuda/bindings/layer_call.h"

namespace fusedrnn::cuda {
namespace {

constexpr dlpack::Type kInt64{dlpack::kInt, 64, 1};

// Reads the arrays of a call, all contiguous, on one device and apart from those that it writes.
class OpCall {
  public:
    OpCall(py::handle value, const char* name, StreamNumber stream)
        : stream_(stream), first_(Argument::first(value, name, stream)) {
        first_.contiguous();
        if (!same_type(first_.type(), kFloat32) && !same_type(first_.type(), kFloat64)) {
            throw py::type_error(std::string(name) + ": expected dtype float32 or float64, got " +
                                 type_name(first_.type()));
        }
        extents_.push_back(first_.extent());
    }

    const Argument& first() const { return first_; }
    Math math() const { return same_type(first_.type(), kFloat64) ? Math::f64 : Math::ieee; }
    NumberRange range() const { return range_of(math() == Math::f64 ? DType::float64 : DType::float32); }

    const void* read(py::handle value, const char* name, const std::vector<Axis>& axes,
                     Presence presence = kRequired) {
        return take(value, name, axes, first_.type(), presence).data();
    }
    const void* read(py::handle value, const char* name, const std::vector<Axis>& axes, dlpack::Type type) {
        return take(value, name, axes, type, kRequired).data();
    }
    void* write(py::handle value, const char* name, const std::vector<Axis>& axes,
                Presence presence = kRequired) {
        return write(value, name, axes, first_.type(), presence);
    }
    void* write(py::handle value, const char* name, const std::vector<Axis>& axes, dlpack::Type type,
                Presence presence = kRequired) {
        Argument a = take(value, name, axes, type, presence);
        a.writable().apart_from(first_);
        return a.data();
    }

    template <class F>
    void run(F&& driver) const {
        run_call(first_.device(), extents_, [&] { driver(native_stream(stream_)); });
    }

  private:
    Argument take(py::handle value, const char* name, const std::vector<Axis>& axes, dlpack::Type type,
                  Presence presence) {
        Argument a = Argument::beside(value, name, type, first_, stream_, presence);
        a.shape(axes).contiguous();
        if (a.given()) extents_.push_back(a.extent());
        return a;
    }

    StreamNumber stream_;
    Argument first_;
    Extents extents_;
};

struct RowsShape {
    std::int64_t n, width;
};
RowsShape rows_shape(const OpCall& call, const char* n, const char* width) {
    Argument first = call.first();
    first.shape({{n}, {width}});
    return {first.size(0), first.size(1)};
}

void layer_norm(py::handle x, py::handle weight, py::handle bias, double eps, py::handle y, py::handle mean,
                py::handle rstd, StreamNumber stream) {
    OpCall call(x, "x", stream);
    const auto [n, dim] = rows_shape(call, "N", "D");
    LayerNormArgs args{};
    args.n = n, args.dim = dim, args.eps = eps;
    args.x = call.first().data();
    args.w = call.read(weight, "weight", {{"D", dim}}, kOptional);
    args.b = call.read(bias, "bias", {{"D", dim}}, kOptional);
    args.y = call.write(y, "y", {{"N", n}, {"D", dim}});
    args.mean = call.write(mean, "mean", {{"N", n}, {"2", 2}});
    args.rstd = call.write(rstd, "rstd", {{"N", n}, {"2", 2}});
    call.run([&](Stream on) { layer_norm_forward(call.math(), args, on); });
}

void layer_norm_gradients(py::handle x, py::handle weight, py::handle dy, py::handle mean, py::handle rstd,
                          py::handle dx, py::handle dweight, py::handle dbias, StreamNumber stream) {
    OpCall call(x, "x", stream);
    const auto [n, dim] = rows_shape(call, "N", "D");
    LayerNormBackwardArgs args{};
    args.n = n, args.dim = dim;
    args.x = call.first().data();
    args.w = call.read(weight, "weight", {{"D", dim}}, kOptional);
    args.dy = call.read(dy, "dy", {{"N", n}, {"D", dim}});
    args.mean = call.read(mean, "mean", {{"N", n}, {"2", 2}});
    args.rstd = call.read(rstd, "rstd", {{"N", n}, {"2", 2}});
    args.dx = call.write(dx, "dx", {{"N", n}, {"D", dim}});
    args.dw = call.write(dweight, "dweight", {{"D", dim}}, kOptional);
    args.db = call.write(dbias, "dbias", {{"D", dim}}, kOptional);
    call.run([&](Stream on) { layer_norm_backward(call.math(), args, on); });
}

void cross_entropy_of(py::handle logits, py::handle targets, py::handle weight, double unit,
                      double weight_sum, std::int64_t ignore_index, double label_smoothing, py::handle losses,
                      py::handle dlogits, StreamNumber stream) {
    OpCall call(logits, "logits", stream);
    const auto [n, classes] = rows_shape(call, "N", "C");
    CrossEntropyRowsArgs args{};
    CrossEntropyArgs<void>& rows = args.rows;
    rows.n = n, rows.classes = classes;
    rows.logits = call.first().data();
    rows.targets = static_cast<const std::int64_t*>(call.read(targets, "targets", {{"N", n}}, kInt64));
    rows.weight = call.read(weight, "weight", {{"C", classes}}, kOptional);
    rows.unit = unit;
    rows.ignore_index = ignore_index, rows.label_smoothing = label_smoothing;
    rows.losses = static_cast<double*>(call.write(losses, "losses", {{"N", n}}, kFloat64));
    rows.dlogits = call.write(dlogits, "dlogits", {{"N", n}, {"C", classes}});
    args.share_sum = label_smoothing / static_cast<double>(classes) * weight_sum;
    call.run([&](Stream on) { cross_entropy(call.math(), args, on); });
}

std::vector<Axis> axes_of(const Argument& param) {
    std::vector<Axis> axes;
    for (const std::int64_t size : param.array().shape) axes.push_back({nullptr, size});
    return axes;
}

void sgd(py::handle param, py::handle grad, py::handle momentum_buf, py::handle lr, py::handle momentum,
         py::handle dampening, py::handle weight_decay, py::handle nesterov, py::handle first,
         StreamNumber stream) {
    OpCall call(param, "param", stream);
    Argument written = call.first();
    const std::vector<Axis> axes = axes_of(written.writable());
    SgdArgs args{};
    args.options = read_sgd_options(call.range(), lr, momentum, dampening, weight_decay, nesterov, first);
    args.n = written.array().size();
    args.param = written.data();
    args.grad = call.read(grad, "grad", axes);
    if (args.options.momentum != 0) args.momentum_buf = call.write(momentum_buf, "momentum_buf", axes);
    call.run([&](Stream on) { sgd_step(call.math(), args, on); });
}

void adam(py::handle param, py::handle grad, py::handle exp_avg, py::handle exp_avg_sq, py::handle overflowed,
          py::handle lr, py::handle beta1, py::handle beta2, py::handle eps, py::handle weight_decay,
          py::handle decoupled, py::handle step, StreamNumber stream) {
    OpCall call(param, "param", stream);
    Argument written = call.first();
    const std::vector<Axis> axes = axes_of(written.writable());
    AdamArgs args{};
    args.options = read_adam_options(call.range(), lr, beta1, beta2, eps, weight_decay, decoupled, step);
    args.n = written.array().size();
    args.param = written.data();
    args.grad = call.read(grad, "grad", axes);
    args.exp_avg = call.write(exp_avg, "exp_avg", axes);
    args.exp_avg_sq = call.write(exp_avg_sq, "exp_avg_sq", axes);
    args.overflowed = static_cast<std::uint8_t*>(call.write(overflowed, "overflowed", {{"1", 1}}, kUint8));
    call.run([&](Stream on) { adam_step(call.math(), args, on); });
}

}  // namespace

void bind_ops(py::module_& m) {
    using py::arg;
    const auto stream = arg("stream") = kLegacyStream;
    m.def("layer_norm_forward", &layer_norm, arg("x"), arg("weight"), arg("bias"), arg("eps"), arg("y"),
          arg("mean"), arg("rstd"), stream, "As fusedrnn._core.layer_norm_forward, into y, mean and rstd.");
    m.def("layer_norm_backward", &layer_norm_gradients, arg("x"), arg("weight"), arg("dy"), arg("mean"),
          arg("rstd"), arg("dx"), arg("dweight"), arg("dbias"), stream,
          "As fusedrnn._core.layer_norm_backward, into dx.");
    m.def(
        "cross_entropy", &cross_entropy_of, arg("logits"), arg("targets"), arg("weight"), arg("unit"),
        arg("weight_sum"), arg("ignore_index"), arg("label_smoothing"), arg("losses"), arg("dlogits"), stream,
        "Write the losses, in float64, and the gradient of their sum. Each class counts its weight, or unit; "
        "weight_sum is their sum, and targets are checked.");
    m.def("sgd_step", &sgd, arg("param"), arg("grad"), arg("momentum_buf"), arg("lr"), arg("momentum"),
          arg("dampening"), arg("weight_decay"), arg("nesterov"), arg("first"), stream,
          "As fusedrnn._core.sgd_step.");
    m.def("adam_step", &adam, arg("param"), arg("grad"), arg("exp_avg"), arg("exp_avg_sq"), arg("overflowed"),
          arg("lr"), arg("beta1"), arg("beta2"), arg("eps"), arg("weight_decay"), arg("decoupled"),
          arg("step"), stream,
          "As fusedrnn._core.adam_step; overflowed (1,) becomes 1 where squares overflow.");
    m.def(
        "refuse_gradient",
        [](bool wide, double largest) {
            refuse_gradient(range_of(wide ? DType::float64 : DType::float32), largest);
        },
        arg("wide"), arg("largest"), "Raise for a gradient whose squares overflow.");
}

}  // namespace fusedrnn::cuda
