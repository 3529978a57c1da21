// Activations, linear layer, embedding, layer norm, cross-entropy and dropout. Everything is checked before anything is
// written.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/buffer.h"
#include "bindings/recurrent.h"
#include "bindings/run.h"
#include "bindings/spare_array.h"
#include "cpu/kernels.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

py::array new_like(const Array& x) { return new_array(x.dtype(), x.sizes()); }

template <class T>
T* data_of(py::array& array) {
    return static_cast<T*>(array.mutable_data());
}

template <class Select>
py::array activation(const py::object& value, const Select& select) {
    const Array x = Array::floats(value, "x").contiguous();
    py::array y = new_like(x);
    by_dtype(x.dtype(), [&]<class T>() {
        Team team(threads_for(4.0 * static_cast<double>(x.size())));
        run_released(team, [&] { select(layer_table<T>())(x.size(), x.data<T>(), data_of<T>(y), team); });
    });
    return y;
}

py::array exp(const py::object& x) {
    return activation(x, [](const auto& table) { return table.exp; });
}
py::array sigmoid(const py::object& x) {
    return activation(x, [](const auto& table) { return table.sigmoid; });
}
py::array tanh(const py::object& x) {
    return activation(x, [](const auto& table) { return table.tanh; });
}

// The dense kernels for float32 in what `compute` says; others have one kind.
template <class T>
const DenseKernels<T>& dense_kernels(Compute compute) {
    if constexpr (sizeof(T) == sizeof(float)) {
        if (compute != Compute::kFloat32) return bf16_kernels(compute).table->dense;
    }
    return kernel_table<T>().dense;
}

int linear_threads(std::int64_t n, std::int64_t in, std::int64_t out) {
    return threads_for(static_cast<double>(n) * static_cast<double>(in) * static_cast<double>(out) / 16);
}

py::array linear_forward(const py::object& x_, const py::object& weight_, const py::object& bias_,
                         const py::object& out_, const std::string& compute_) {
    const Compute compute = read_compute(compute_);
    const Array x = Array::floats(x_, "x").shape({{"N"}, {"I"}}).contiguous();
    const std::int64_t n = x.size(0), in = x.size(1);
    const Array weight = Array::parameter(weight_, "weight", x).shape({{"O"}, {"I", in}}).contiguous();
    const std::int64_t out = weight.size(0);
    const Array bias = Array::like(bias_, "bias", x, kOptional).shape({{"O", out}}).contiguous();
    const Array given = Array::like(out_, "out", x, kOptional)
                            .shape({{"N", n}, {"O", out}})
                            .writable()
                            .apart_from(x)
                            .apart_from(weight)
                            .apart_from(bias);
    py::array y = given.given() ? given.object() : new_array(x.dtype(), {n, out});
    by_dtype(x.dtype(), [&]<class T>() {
        const DenseKernels<T>& dense = dense_kernels<T>(compute);
        Team team(linear_threads(n, in, out));
        const AlignedBuffer workspace(dense.linear_workspace(n, in, out, team.size()));
        run_released(team, [&] {
            dense.linear_forward(n, in, out, x.data<T>(), weight.data<T>(), bias.data<T>(), data_of<T>(y),
                                 team, workspace.data());
        });
    });
    return y;
}

py::object linear_backward(const py::object& x_, const py::object& weight_, const py::object& dy_,
                           const py::object& dweight_, const py::object& dbias_, const py::object& need_dx_,
                           const std::string& compute_) {
    const Compute compute = read_compute(compute_);
    const Array x = Array::floats(x_, "x").shape({{"N"}, {"I"}}).contiguous();
    const std::int64_t n = x.size(0), in = x.size(1);
    const Array weight = Array::parameter(weight_, "weight", x).shape({{"O"}, {"I", in}}).contiguous();
    const std::int64_t out = weight.size(0);
    const Array dy = Array::like(dy_, "dy", x).shape({{"N", n}, {"O", out}}).contiguous();
    Array dweight = Array::like(dweight_, "dweight", x, kOptional).shape({{"O", out}, {"I", in}}).writable();
    Array dbias = Array::like(dbias_, "dbias", x, kOptional).shape({{"O", out}}).writable();
    for (Array* sum : {&dweight, &dbias}) sum->apart_from(x).apart_from(weight).apart_from(dy);
    dbias.apart_from(dweight);
    py::object dx = py::none();
    if (flag(need_dx_, "need_dx")) dx = new_array(x.dtype(), {n, in});
    by_dtype(x.dtype(), [&]<class T>() {
        const DenseKernels<T>& dense = dense_kernels<T>(compute);
        T* dx_data =
            dx.is_none() ? nullptr : static_cast<T*>(py::reinterpret_borrow<py::array>(dx).mutable_data());
        Team team(linear_threads(n, in, out));
        const AlignedBuffer workspace(dense.linear_workspace(n, in, out, team.size()));
        run_released(team, [&] {
            dense.linear_backward(n, in, out, x.data<T>(), weight.data<T>(), dy.data<T>(), dx_data,
                                  dweight.mutable_data<T>(), dbias.mutable_data<T>(), team, workspace.data());
        });
    });
    return dx;
}

py::array embedding_forward(const py::object& indices_, const py::object& weight_) {
    const Array indices = Array::int64(indices_, "indices").shape({{"N"}}).contiguous();
    const Array weight = Array::floats(weight_, "weight").shape({{"V"}, {"D"}}).contiguous();
    const std::int64_t n = indices.size(0), dim = weight.size(1);
    const std::vector<std::int64_t> rows = checked_indices(indices, weight.size(0), "V");
    py::array y = new_array(weight.dtype(), {n, dim});
    by_dtype(weight.dtype(), [&]<class T>() {
        Team team(threads_for(static_cast<double>(y.size())));
        run_released(team, [&] {
            layer_table<T>().embedding_forward(n, dim, rows.data(), weight.data<T>(), data_of<T>(y), team);
        });
    });
    return y;
}

void embedding_backward(const py::object& indices_, const py::object& dy_, const py::object& dweight_) {
    const Array indices = Array::int64(indices_, "indices").shape({{"N"}}).contiguous();
    const Array dy = Array::floats(dy_, "dy").shape({{"N", indices.size(0)}, {"D"}}).contiguous();
    const std::int64_t n = dy.size(0), dim = dy.size(1);
    const Array dweight = Array::like(dweight_, "dweight", dy)
                              .shape({{"V"}, {"D", dim}})
                              .writable()
                              .apart_from(dy)
                              .apart_from(indices);
    const std::vector<std::int64_t> rows = checked_indices(indices, dweight.size(0), "V");
    by_dtype(dy.dtype(), [&]<class T>() {
        Team team(threads_for(static_cast<double>(dy.size())));
        run_released(team, [&] {
            layer_table<T>().embedding_backward(n, dim, rows.data(), dy.data<T>(), dweight.mutable_data<T>(),
                                                team);
        });
    });
}

std::tuple<py::array, py::array, py::array> layer_norm_forward(const py::object& x_,
                                                               const py::object& weight_,
                                                               const py::object& bias_,
                                                               const py::object& eps_) {
    const Array x = Array::floats(x_, "x").shape({{"N"}, {"D"}}).contiguous();
    const std::int64_t n = x.size(0), dim = x.size(1);
    const Array weight = Array::parameter(weight_, "weight", x, kOptional).shape({{"D", dim}}).contiguous();
    const Array bias = Array::like(bias_, "bias", x, kOptional).shape({{"D", dim}}).contiguous();
    const double eps = finite_number(eps_, "eps");
    require(eps >= 0, "eps", "a number >= 0", eps);
    py::array y = new_like(x), mean = new_array(x.dtype(), {n, 2}), rstd = new_array(x.dtype(), {n, 2});
    by_dtype(x.dtype(), [&]<class T>() {
        Team team(threads_for(static_cast<double>(x.size())));
        run_released(team, [&] {
            layer_table<T>().layer_norm_forward(n, dim, x.data<T>(), weight.data<T>(), bias.data<T>(), eps,
                                                data_of<T>(y), data_of<T>(mean), data_of<T>(rstd), team);
        });
    });
    return {y, mean, rstd};
}

py::array layer_norm_backward(const py::object& x_, const py::object& weight_, const py::object& dy_,
                              const py::object& mean_, const py::object& rstd_, const py::object& dweight_,
                              const py::object& dbias_) {
    const Array x = Array::floats(x_, "x").shape({{"N"}, {"D"}}).contiguous();
    const std::int64_t n = x.size(0), dim = x.size(1);
    const Array weight = Array::parameter(weight_, "weight", x, kOptional).shape({{"D", dim}}).contiguous();
    const Array dy = Array::like(dy_, "dy", x).shape({{"N", n}, {"D", dim}}).contiguous();
    const Array mean = Array::like(mean_, "mean", x).shape({{"N", n}, {"2", 2}}).contiguous();
    const Array rstd = Array::like(rstd_, "rstd", x).shape({{"N", n}, {"2", 2}}).contiguous();
    Array dweight = Array::like(dweight_, "dweight", x, kOptional).shape({{"D", dim}}).writable();
    Array dbias = Array::like(dbias_, "dbias", x, kOptional).shape({{"D", dim}}).writable();
    for (Array* sum : {&dweight, &dbias}) {
        sum->apart_from(x).apart_from(weight).apart_from(dy).apart_from(mean).apart_from(rstd);
    }
    dbias.apart_from(dweight);
    py::array dx = new_like(x);
    by_dtype(x.dtype(), [&]<class T>() {
        Team team(threads_for(2.0 * static_cast<double>(x.size())));
        run_released(team, [&] {
            layer_table<T>().layer_norm_backward(n, dim, x.data<T>(), weight.data<T>(), dy.data<T>(),
                                                 mean.data<T>(), rstd.data<T>(), data_of<T>(dx),
                                                 dweight.mutable_data<T>(), dbias.mutable_data<T>(), team);
        });
    });
    return dx;
}

void require_finite(const Array& x) {
    by_dtype(x.dtype(), [&]<class T>() {
        for (std::int64_t i = 0; x.given() && i < x.size(); ++i) {
            const double value = static_cast<double>(x.data<T>()[i]);
            if (!std::isfinite(value)) require(false, x.name().c_str(), "finite numbers", value);
        }
    });
}

// What the targets that are not ignored count in a mean, and each class's part of it: `parts`, or `unit` for all without
// weights. Relative to the largest weight, so that no sum overflows.
template <class T>
double shares_of_mean(const std::vector<std::int64_t>& targets, std::int64_t ignore_index, const T* weight,
                      std::vector<T>& parts, double& unit) {
    double largest = 0, count = 0;
    for (std::size_t c = 0; c < parts.size(); ++c) {
        largest = std::max(largest, std::abs(static_cast<double>(weight[c])));
    }
    const auto relative = [&](std::int64_t c) {
        return weight == nullptr ? 1 : largest == 0 ? 0 : static_cast<double>(weight[c]) / largest;
    };
    for (const std::int64_t target : targets) {
        if (target != ignore_index) count += relative(target);
    }
    if (count == 0) return count;
    unit = 1 / count;
    for (std::size_t c = 0; c < parts.size(); ++c) {
        parts[c] = static_cast<T>(relative(static_cast<std::int64_t>(c)) / count);
    }
    return count;
}

std::tuple<py::array, double, py::array> cross_entropy(const py::object& logits_, const py::object& targets_,
                                                       const py::object& weight_,
                                                       const py::object& ignore_index_,
                                                       const py::object& label_smoothing_,
                                                       const py::object& mean_) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
    const Array logits = Array::floats(logits_, "logits").shape({{"N"}, {"C"}}).contiguous();
    const std::int64_t n = logits.size(0), classes = logits.size(1);
    const Array targets = Array::int64(targets_, "targets").shape({{"N", n}}).contiguous();
    const Array weight =
        Array::like(weight_, "weight", logits, kOptional).shape({{"C", classes}}).contiguous();
    require_finite(weight);
    const std::int64_t ignore_index = integer(ignore_index_, "ignore_index", -kMost, kMost);
    const double smoothing = finite_number(label_smoothing_, "label_smoothing");
    require(smoothing >= 0 && smoothing <= 1, "label_smoothing", "a number in [0, 1]", smoothing);
    const bool mean = flag(mean_, "mean");
    const std::vector<std::int64_t> target = checked_indices(targets, classes, "C", &ignore_index);
    py::array losses = new_array(DType::float64, {n}), dlogits = new_like(logits);
    double count = static_cast<double>(n);
    by_dtype(logits.dtype(), [&]<class T>() {
        std::vector<T> parts(mean && weight.given() ? static_cast<std::size_t>(classes) : 0);
        double unit = 1;
        if (mean) count = shares_of_mean(target, ignore_index, weight.data<T>(), parts, unit);
        if (count == 0) {
            std::fill_n(data_of<double>(losses), n, 0.0);
            std::fill_n(data_of<T>(dlogits), logits.size(), T(0));
            return;
        }
        const CrossEntropyArgs<T> args{n,
                                       classes,
                                       logits.data<T>(),
                                       target.data(),
                                       parts.empty() ? weight.data<T>() : parts.data(),
                                       unit,
                                       ignore_index,
                                       smoothing,
                                       data_of<double>(losses),
                                       data_of<T>(dlogits)};
        Team team(threads_for(4.0 * static_cast<double>(logits.size())));
        run_released(team, [&] { layer_table<T>().cross_entropy(args, team); });
    });
    return {losses, count, dlogits};
}

py::array spare_like(const py::object& x_) {
    const Array x = Array::floats(x_, "x").contiguous();
    const py::array like = x.object();
    return spare_array(x.dtype(), {like.shape(), like.shape() + like.ndim()});
}

py::array dropout(const py::object& x_, const py::object& p_, const py::object& seed_,
                  const py::object& offset_, const py::object& out_) {
    const Array x = Array::floats(x_, "x").contiguous();
    const double p = finite_number(p_, "p");
    require(p >= 0 && p <= 1, "p", "a number in [0, 1]", p);
    const std::uint64_t seed = unsigned_integer(seed_, "seed"), offset = unsigned_integer(offset_, "offset");
    Array out = Array::like(out_, "out", x, kOptional);
    if (!out_.is(x_)) out.apart_from(x);
    out.shape_of(x).writable();
    py::array y = out.given() ? out.object() : new_like(x);
    by_dtype(x.dtype(), [&]<class T>() {
        Team team(threads_for(4.0 * static_cast<double>(x.size())));
        run_released(team, [&] {
            layer_table<T>().dropout(x.size(), x.data<T>(), data_of<T>(y), p, seed, offset, team);
        });
    });
    return y;
}

}  // namespace

void bind_layers(py::module_& m) {
    using py::arg;
    m.def("exp", &exp, arg("x"), "Return exp(x), element by element.");
    m.def("sigmoid", &sigmoid, arg("x"), "Return 1 / (1 + exp(-x)), element by element.");
    m.def("tanh", &tanh, arg("x"), "Return tanh(x), element by element.");
    m.def("linear_forward", &linear_forward, arg("x"), arg("weight"), arg("bias"), arg("out") = py::none(),
          arg("compute") = "float32", "Return y (N, O) = x (N, I) weight (O, I)^T + bias (O,).");
    m.def("linear_backward", &linear_backward, arg("x"), arg("weight"), arg("dy"), arg("dweight"),
          arg("dbias"), arg("need_dx"), arg("compute") = "float32",
          "Return dx or None; dweight and dbias, where given, are added to.");
    m.def("embedding_forward", &embedding_forward, arg("indices"), arg("weight"),
          "Return weight[indices] (N, D).");
    m.def("embedding_backward", &embedding_backward, arg("indices"), arg("dy"), arg("dweight"),
          "Add each row of dy to its row of dweight, in order.");
    m.def("layer_norm_forward", &layer_norm_forward, arg("x"), arg("weight"), arg("bias"), arg("eps"),
          "Return y (N, D) and what backward needs of each row: mean (N, 2) and rstd (N, 2).");
    m.def("layer_norm_backward", &layer_norm_backward, arg("x"), arg("weight"), arg("dy"), arg("mean"),
          arg("rstd"), arg("dweight"), arg("dbias"), "Return dx; dweight and dbias are added to.");
    m.def("cross_entropy", &cross_entropy, arg("logits"), arg("targets"), arg("weight"), arg("ignore_index"),
          arg("label_smoothing"), arg("mean"),
          "Return losses (N,) in float64, what the targets count in a mean, and the gradient of the sum of "
          "the losses "
          "(N, C); with `mean`, losses and gradient are divided by that count, and 0 if it is 0.");
    m.def("spare_like", &spare_like, arg("x"),
          "Return an array like x, not initialised, in memory that goes to the next calls when it is freed.");
    m.def("dropout", &dropout, arg("x"), arg("p"), arg("seed"), arg("offset"), arg("out") = py::none(),
          "Return x / (1 - p) where element e of stream (seed, offset) is kept, else 0; out may be x.");
}

}  // namespace fusedrnn
