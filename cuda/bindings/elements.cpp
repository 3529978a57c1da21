// What takes arrays element by element.
#include "cuda/bindings/bindings.h"
#include "cuda/bindings/layer_call.h"
#include "launches.h"

namespace fusedrnn::cuda {
namespace {

// An array of the shape of `from`, to be written.
Argument output_beside(py::handle value, const char* name, dlpack::Type type, const Argument& from,
                       StreamNumber stream) {
    std::vector<Axis> axes;
    for (const std::int64_t size : from.array().shape) axes.push_back({nullptr, size});
    Argument to = Argument::beside(value, name, type, from, stream);
    to.shape(axes).writable().apart_from(from);
    return to;
}

void round_to(py::handle weight, py::handle rounded, StreamNumber stream) {
    Argument from = Argument::first(weight, "weight", stream);
    from.contiguous();
    Argument to = Argument::first(rounded, "rounded", stream);
    const Math math = math_of(to, "ieee");
    if (!same_type(from.type(), kFloat32) || storage_bytes(math) != 2) {
        throw py::type_error("weight: expected dtype float32, to be rounded to bfloat16 or float16, got " +
                             type_name(from.type()) + ", to be rounded to " + type_name(to.type()));
    }
    to = output_beside(rounded, "rounded", to.type(), from, stream);
    run_call(from.device(), {from.extent(), to.extent()}, [&] {
        Launcher(math, native_stream(stream))
            .round(static_cast<const float*>(from.data()), from.array().size(), to.data());
    });
}

void drop_out(py::handle x, py::handle y, double p, std::uint64_t seed, std::uint64_t offset,
              StreamNumber stream) {
    Argument from = Argument::first(x, "x", stream);
    from.contiguous();
    const Math math = math_of(from, "ieee");
    const Argument to = output_beside(y, "y", from.type(), from, stream);
    if (!(p >= 0.0 && p <= 1.0)) {
        throw py::value_error("p: expected a number in [0, 1], got " + std::to_string(p));
    }
    run_call(from.device(), {from.extent(), to.extent()}, [&] {
        Launcher(math, native_stream(stream))
            .dropout(from.data(), from.array().size(), p, seed, offset, to.data());
    });
}

}  // namespace

void bind_elements(py::module_& m) {
    m.def("round", &round_to, py::arg("weight"), py::arg("rounded"), py::arg("stream") = kLegacyStream,
          "Round a float32 array to the 16 bits of another, ties to even.");
    m.def("dropout", &drop_out, py::arg("x"), py::arg("y"), py::arg("p"), py::arg("seed"), py::arg("offset"),
          py::arg("stream") = kLegacyStream, "Write dropout of x to y, as fusedrnn._core.dropout.");
}

}  // namespace fusedrnn::cuda
