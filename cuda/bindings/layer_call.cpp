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

Context Context::of(StreamNumber stream, const py::object& empty, Math math, py::handle x) {
    const std::optional<DeviceStream> place = device_stream_of(x);
    const bool serves = place && place->stream == stream;
    return {stream, empty, math, serves ? exchange_of(x) : nullptr};
}

dlpack::Type Context::type(Element element, const Argument& x) const {
    return element == Element::kBool ? kBool : element == Element::kStored ? x.type() : compute_type(math);
}

Argument Context::make(const std::vector<std::int64_t>& sizes, dlpack::Type type, Name name,
                       const Argument& x) const {
    py::tuple shape(sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        checked_product({static_cast<std::int64_t>(type.bits / 8), sizes[i]});
        shape[i] = sizes[i];
    }
    const py::object made = empty(shape, type_name(type));
    Argument a = Argument::beside(made, name, type, x, stream);
    if (a.array().shape != sizes) {
        std::vector<Axis> axes;
        for (const std::int64_t size : sizes) axes.push_back({nullptr, size});
        a.shape(axes);
    }
    a.writable();
    return a;
}

Argument Context::make_inside(std::int64_t size, dlpack::Type type, Name name, const Argument& x) const {
    std::optional<DeviceArray> array;
    if (exchange != nullptr) array = allocate_exchanged(*exchange, {size}, type, x.device(), name.str());
    // The library's own function says best why there is no memory.
    return array ? Argument::inside(*std::move(array), name) : make({size}, type, name, x);
}

std::shared_ptr<LayerTape> make_tape(const DeviceCell& cell, std::shared_ptr<const Timetable> timetable,
                                     const CallArguments& in, bool recompute, const Context& context) {
    const std::int64_t rows = timetable->rows(), width = in.dims.H;
    const auto part = [&](Element element, std::int64_t count, const char* name) {
        return context.make_inside(checked_product({rows, width, count}), element, name, in.x);
    };
    auto tape = std::make_shared<LayerTape>();
    tape->cell = &cell;
    tape->math = context.math;
    tape->timetable = std::move(timetable);
    if (!recompute) tape->saved = part(Element::kComputed, cell.saved, "saved");
    if (const int norms = cell.programs == nullptr ? 0 : cell.programs->cell.norms; norms > 0 && !recompute) {
        tape->moments =
            context.make_inside(checked_product({rows, norms}), Element::kComputed, "moments", in.x);
    }
    if (cell.states > 1) tape->states = part(Element::kComputed, cell.states - 1, "states");
    if (in.dims.projected) tape->hidden = part(Element::kStored, 1, "hidden");
    return tape;
}

}  // namespace fusedrnn::cuda
