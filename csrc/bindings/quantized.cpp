// Networks with weights of fewer bits: packing and the sequence call. Inference only.
#include "bindings/quantized.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/run.h"

namespace fusedrnn {
namespace {

constexpr const char* kFormatNames[kWeightFormats] = {"bf16", "int8"};

int format_by_name(const std::string& name) {
    for (int i = 0; i < kWeightFormats; ++i) {
        if (name == kFormatNames[i]) return i;
    }
    throw py::value_error("weights: expected one of bf16, int8, got '" + name + "'");
}

// Every sum of int8 products has to fit in int32, and that of a row's magnitudes in a float's 24 bits.
void check_sums(int format, const char* name, const char* symbol, std::int64_t size) {
    constexpr std::int64_t kMost = 131072;
    if (format != kInt8 || size <= kMost) return;
    throw py::value_error(std::string(name) + ": expected " + symbol + " <= " + std::to_string(kMost) +
                          " for int8, got " + std::to_string(size));
}

py::ssize_t length_of(py::handle sequence, const char* expected) {
    if (!py::isinstance<py::list>(sequence) && !py::isinstance<py::tuple>(sequence)) {
        throw py::type_error("layers: expected " + std::string(expected) + ", got " +
                             Py_TYPE(sequence.ptr())->tp_name);
    }
    const py::ssize_t count = PySequence_Size(sequence.ptr());
    if (count == 0) throw py::value_error("layers: expected " + std::string(expected) + ", got none");
    return count;
}

// The N values of neighbouring k that panels hold side by side, for each format (cpu/quantized.h).
constexpr std::int64_t kNeighbours[kWeightFormats] = {2, 4};

// [H/L][K/N][G][L][N] as (G*H, K).
template <class T>
py::array_t<T> without_panels(const void* panels, std::int64_t gates, std::int64_t units, std::int64_t k_size,
                              std::int64_t neighbours, std::int64_t groups) {
    const std::int64_t lanes = kernel_table<float>().lanes;
    py::array_t<T> made(std::vector<py::ssize_t>{gates * units, k_size});
    T* to = made.mutable_data();
    for (std::int64_t g = 0; g < gates; ++g) {
        for (std::int64_t unit = 0; unit < units; ++unit) {
            for (std::int64_t k = 0; k < k_size; ++k) {
                const std::int64_t group = (unit / lanes * groups + k / neighbours) * gates + g;
                *to++ = static_cast<const T*>(
                    panels)[(group * lanes + unit % lanes) * neighbours + k % neighbours];
            }
        }
    }
    return made;
}

}  // namespace

Quantized::Quantized(const std::string& cell, py::handle layers, const std::string& weights)
    : cell_(cell_by_name(cell)), format_(format_by_name(weights)) {
    if (cell_.quantized == nullptr) {
        throw py::value_error("cell: expected one with quantized kernels, got " + cell);
    }
    const py::ssize_t count = length_of(layers, "a list of layers");
    std::int64_t inputs = -1;
    for (py::ssize_t i = 0; i < count; ++i) {
        const py::object parts = item_of(layers, "layers", count, i);
        const py::ssize_t directions = length_of(parts, "a list of directions in each layer");
        if (directions > 2 || (i > 0 && directions != directions_)) {
            throw py::value_error("layers: expected 1 or 2 directions, as many in each layer, got " +
                                  std::to_string(directions));
        }
        directions_ = static_cast<int>(directions);
        for (py::ssize_t d = 0; d < directions; ++d) {
            const py::object params = item_of(parts, "layers", directions, d);
            if (inputs < 0) inputs = WeightArrays::input_weight(cell_, params).size(1);
            add(params, inputs);
        }
        inputs = directions * dims().P;
    }
}

void Quantized::add(py::handle params, std::int64_t inputs) {
    const Array input = Array::floats(new_array(DType::float32, {0, inputs}), "the input");
    const WeightArrays w = WeightArrays::read(cell_, params, input);
    check_sums(format_, "weight_ih", "I", w.dims.I);
    check_sums(format_, "weight_hh", "H", w.dims.H);
    if (!layers_.empty() && (w.dims.H != dims().H || w.dims.P != dims().P)) {
        throw py::value_error("weight_hh: expected H, P = " + std::to_string(dims().H) + ", " +
                              std::to_string(dims().P) + " as in the first layer, got " +
                              std::to_string(w.dims.H) + ", " + std::to_string(w.dims.P));
    }
    QuantizedLayer layer;
    layer.dims = w.dims;
    layer.memory = AlignedBuffer(kernels().packed_bytes(cell_, w.dims));
    const Params<const float> pointers = w.pointers<float>();
    Team team(1);
    run_released(team,
                 [&] { kernels().pack(cell_, w.dims, pointers, layer.memory.data(), layer.weights, team); });
    layers_.push_back(std::move(layer));
}

// For each layer and direction, the same on every instruction set: (weight_ih, weight_hh, weight_hr) as they are kept,
// the scales of their rows, and the biases of the input and, where gates are split, of the recurrent part.
py::list Quantized::weights() const {
    const std::int64_t gates = cell_.gates, neighbours = kNeighbours[format_];
    const auto vector = [](const float* panels, std::int64_t g, std::int64_t units) -> py::object {
        if (panels == nullptr) return py::none();
        return without_panels<float>(panels, g, units, 1, 1, 1).reshape({-1});
    };
    py::list all;
    for (const QuantizedLayer& layer : layers_) {
        const QuantizedWeights& w = layer.weights;
        const Dims& d = layer.dims;
        if (w.units != nullptr) {
            throw py::value_error(std::string("weights: expected a cell without per-unit parameters, got ") +
                                  cell_.name);
        }
        const auto matrix = [&](const QuantizedWeights::Matrix& m, std::int64_t g, std::int64_t units,
                                std::int64_t k_size) -> py::object {
            if (m.w == nullptr) return py::none();
            if (format_ == kInt8)
                return without_panels<std::int8_t>(m.w, g, units, k_size, neighbours, m.groups);
            return without_panels<std::uint16_t>(m.w, g, units, k_size, neighbours, m.groups);
        };
        all.append(py::make_tuple(py::make_tuple(matrix(w.ih, gates, d.H, d.I), matrix(w.hh, gates, d.H, d.P),
                                                 matrix(w.hr, 1, d.P, d.H)),
                                  py::make_tuple(vector(w.ih.scale, gates, d.H),
                                                 vector(w.hh.scale, gates, d.H), vector(w.hr.scale, 1, d.P)),
                                  py::make_tuple(vector(w.b_x, gates, d.H), vector(w.b_h, gates, d.H))));
    }
    return all;
}

QuantizedStates QuantizedStates::read(py::handle value, const char* name, const Quantized& net,
                                      std::int64_t batch, bool replacements) {
    QuantizedStates s;
    if (value.is_none()) return s;
    const int states = net.cell().states;
    for (int k = 0; k < states; ++k) {
        Array& a = s.all[k];
        a = Array::like(item_of(value, name, states, k), {name, k}, float32_reference(), kOptional);
        const Axis rows{"num_layers*D", net.rows()};
        const Axis width = state_axis(net.dims(), k);
        if (replacements && a.given() && a.ndim() == 2) {
            a.shape({rows, width});
        } else {
            a.shape({rows, {"B", batch}, width});
        }
        a.made_contiguous();
    }
    return s;
}

py::tuple Quantized::forward(py::handle x_value, py::handle out_value, py::handle state, py::handle lengths,
                             py::handle resets_value, py::handle reset_state) const {
    const int states = cell_.states;
    Array x = Array::like(x_value, "x", float32_reference());
    x.shape({{"T"}, {"B"}, {"I", dims().I}}).made_rows();
    const std::int64_t seq_len = x.size(0), batch = x.size(1), width = directions_ * dims().P;
    const QuantizedStates initial = QuantizedStates::read(state, "state", *this, batch, false);
    const QuantizedStates replacement = QuantizedStates::read(reset_state, "reset_state", *this, batch, true);
    Array resets = Array::boolean(resets_value, "resets", kOptional);
    resets.shape({{"T", seq_len}, {"B", batch}}).made_contiguous();
    const std::vector<std::int64_t> ends = checked_lengths(lengths, seq_len, batch);
    Array out = Array::like(out_value, "out", x);
    out.shape({{"T", seq_len}, {"B", batch}, {"D*H", width}}).writable_rows().apart_from(x);
    for (int k = 0; k < states; ++k) out.apart_from(initial.all[k]).apart_from(replacement.all[k]);

    py::tuple final(states);
    float* finals[kMaxStates] = {};
    for (int k = 0; k < states; ++k) {
        py::array made = new_array(DType::float32, {rows(), batch, state_width(dims(), k)});
        finals[k] = static_cast<float*>(made.mutable_data());
        final[k] = made;
    }
    const std::int64_t* valid = ends.empty() ? nullptr : ends.data();
    const Timetable timetables[2] = {{seq_len, batch, valid, false}, {seq_len, batch, valid, true}};
    // A layer reads the output of the one below, from one of two buffers, and writes the other.
    AlignedBuffer between[2];
    const std::int64_t layers = rows() / directions_;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(2, layers - 1); ++i) {
        between[i] = AlignedBuffer(checked_product({seq_len, batch, width, std::int64_t{sizeof(float)}}));
    }
    std::int64_t bytes = 0;
    std::vector<ForwardProblem<float>> problems(layers_.size());
    for (std::int64_t row = 0; row < rows(); ++row) {
        ForwardProblem<float>& p = problems[static_cast<std::size_t>(row)];
        const std::int64_t i = row / directions_, direction = row % directions_;
        Dims d = layer(row).dims;
        d.T = seq_len;
        d.B = batch;
        Sequence<const float> from{x.data<float>(), x.stride(0), x.stride(1)};
        Sequence<float> to{out.mutable_data<float>(), out.stride(0), out.stride(1)};
        if (i > 0) from = {between[(i - 1) % 2].as<float>(), batch * width, width};
        if (i < layers - 1) to = {between[i % 2].as<float>(), batch * width, width};
        to.data += direction * d.P;
        p = forward_problem<float>(cell_, d, timetables[direction].view(resets.data<std::uint8_t>()),
                                   layer(row).weights.packed(), from, to, [&](int k) {
                                       return StateRows<float>{initial.part(k, row),
                                                               finals[k] + row * batch * state_width(d, k)};
                                   });
        for (int k = 0; k < states; ++k) {
            p.reset[k] = replacement.part(k, row);
            p.reset_stride[k] = replacement.has_batch(k) ? state_width(d, k) : 0;
        }
        bytes = std::max(bytes, kernels().forward_workspace(cell_, p.dims, 1));
    }
    const AlignedBuffer workspace(bytes);
    Team team(1);
    run_released(team, [&] {
        for (std::size_t i = 0; i < problems.size() && !team.was_cancelled(); ++i)
            kernels().forward(problems[i], team, workspace.data());
    });
    return final;
}

void bind_quantized(py::module_& m) {
    py::class_<Quantized, std::shared_ptr<Quantized>>(m, "Quantized")
        .def(py::init<const std::string&, py::handle, const std::string&>(), py::arg("cell"),
             py::arg("layers"), py::arg("weights"))
        .def("forward", &Quantized::forward, py::arg("x"), py::arg("out"), py::arg("state") = py::none(),
             py::kw_only(), py::arg("lengths") = py::none(), py::arg("resets") = py::none(),
             py::arg("reset_state") = py::none())
        .def("weights", &Quantized::weights)
        .def_property_readonly("nbytes", &Quantized::nbytes);
}

}  // namespace fusedrnn
