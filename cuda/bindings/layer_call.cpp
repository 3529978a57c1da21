#include "cuda/bindings/layer_call.h"

#include "kernels/table.h"

namespace fusedrnn::cuda {

Math math_of(const Argument& x, const std::string& float32_mode) {
    if (same_type(x.type(), kFloat64)) return Math::f64;
    if (same_type(x.type(), kBfloat16)) return Math::bf16;
    if (same_type(x.type(), kFloat16)) return Math::fp16;
    if (!same_type(x.type(), kFloat32)) {
        throw py::type_error(x.name() + ": expected dtype float32, float64, bfloat16 or float16, got " +
                             type_name(x.type()));
    }
    for (const Math math : {Math::ieee, Math::tf32, Math::tf32x3}) {
        if (float32_mode == kMathNames[static_cast<int>(math)]) return math;
    }
    throw py::value_error("float32_mode: expected ieee, tf32 or tf32x3, got '" + float32_mode + "'");
}

dlpack::Type compute_type(Math math) { return math == Math::f64 ? kFloat64 : kFloat32; }

std::string indexed(const char* name, int k) { return std::string(name) + "[" + std::to_string(k) + "]"; }

Context Context::of(StreamNumber stream, const py::object& empty, py::handle x) {
    const std::optional<DeviceStream> place = device_stream_of(x);
    const bool serves = place && place->stream == stream;
    return {stream, empty, serves ? exchange_of(x) : nullptr};
}

Argument Context::make(const std::vector<std::int64_t>& sizes, dlpack::Type type, const std::string& name,
                       const Argument& first) const {
    py::tuple shape(sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        checked_product({static_cast<std::int64_t>(type.bits / 8), sizes[i]});
        shape[i] = sizes[i];
    }
    const py::object made = empty(shape, type_name(type));
    Argument a = Argument::beside(made, name, type, first, stream);
    if (a.array().shape != sizes) {
        std::vector<Axis> axes;
        for (const std::int64_t size : sizes) axes.push_back({nullptr, size});
        a.shape(axes);
    }
    a.contiguous().writable();
    return a;
}

Argument Context::make_inside(std::int64_t size, dlpack::Type type, const std::string& name,
                              const Argument& first) const {
    std::optional<DeviceArray> array;
    if (exchange != nullptr) array = allocate_exchanged(*exchange, {size}, type, first.device(), name);
    // The library's own function says best why there is no memory.
    return array ? Argument::inside(*std::move(array), name) : make({size}, type, name, first);
}

Argument Context::workspace(std::int64_t bytes, const Argument& first) const {
    return make_inside(bytes, kUint8, "workspace", first);
}

WeightArguments read_weights(const DeviceCell& cell, py::handle params, const Argument& x,
                             StreamNumber stream) {
    WeightArguments w;
    for (int i = 0; i < cell.parameter_count; ++i) {
        const Parameter& p = cell.parameters[i];
        w.of.push_back(Argument::beside(parameter_of(params, cell, i), p.name, x.type(), x, stream,
                                        p.need == Need::kRequired ? kRequired : kOptional));
    }
    w.dims.I = x.size(x.ndim() - 1);
    check_parameters(cell, device_cells(), w.of, w.dims);
    for (Argument& a : w.of) a.contiguous();
    return w;
}

StateForm state_form(int k, const Dims& d, Math math, dlpack::Type storage) {
    if (k > 0) return {d.H, "H", compute_type(math)};
    return {d.P, d.projected ? "P" : "H", storage};
}

void read_states(py::handle state, py::handle reset_state, const DeviceCell& cell, Math math,
                 CallArguments& in, StreamNumber stream) {
    const int states = cell.states;
    const Dims& d = in.weights.dims;
    for (int k = 0; k < states; ++k) {
        const StateForm form = state_form(k, d, math, in.x.type());
        const Axis width{form.symbol, form.width};
        if (!state.is_none()) {
            in.initial[k] = Argument::beside(item_of(state, "state", states, k), indexed("state", k),
                                             form.type, in.x, stream, kOptional);
            in.initial[k].shape({{"B", d.B}, width}).contiguous();
        }
        if (!reset_state.is_none()) {
            Argument& a = in.reset[k];
            a = Argument::beside(item_of(reset_state, "reset_state", states, k), indexed("reset_state", k),
                                 form.type, in.x, stream, kOptional);
            a.shape(a.given() && a.ndim() == 1 ? std::vector<Axis>{width}
                                               : std::vector<Axis>{{"B", d.B}, width});
            a.contiguous();
        }
    }
}

std::shared_ptr<LayerTape> make_tape(const DeviceCell& cell, Math math,
                                     std::shared_ptr<const Timetable> timetable, const CallArguments& in,
                                     bool recompute, const Context& context) {
    const Dims& d = in.weights.dims;
    const std::int64_t rows = timetable->rows();
    auto tape = std::make_shared<LayerTape>();
    tape->cell = &cell;
    tape->math = math;
    tape->timetable = std::move(timetable);
    if (!recompute) {
        tape->saved =
            context.make_inside(checked_product({rows, d.H, cell.saved}), compute_type(math), "saved", in.x);
    }
    if (const int norms = cell.programs == nullptr ? 0 : cell.programs->cell.norms; norms > 0 && !recompute) {
        tape->moments =
            context.make_inside(checked_product({rows, norms}), compute_type(math), "moments", in.x);
    }
    if (cell.states > 1) {
        tape->states = context.make_inside(checked_product({rows, d.H, cell.states - 1}), compute_type(math),
                                           "states", in.x);
    }
    if (d.projected) {
        tape->hidden = context.make_inside(checked_product({rows, d.H}), in.x.type(), "hidden", in.x);
    }
    return tape;
}

}  // namespace fusedrnn::cuda
